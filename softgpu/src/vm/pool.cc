#include "pool.h"

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

namespace sg::vm {
namespace {

struct Job {
  const std::function<void()>* work = nullptr;
  unsigned running = 0;
  bool closed = false;
};

struct Pool {
  std::mutex mutex;
  std::condition_variable wake, left;
  std::deque<std::shared_ptr<Job>> jobs;
  unsigned threads = 0, idle = 0;

  void serve() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      ++idle;
      wake.wait(lock, [&] { return !jobs.empty(); });
      --idle;
      std::shared_ptr<Job> job = std::move(jobs.front());
      jobs.pop_front();
      if (job->closed) continue;
      ++job->running;
      lock.unlock();
      (*job->work)();
      lock.lock();
      if (--job->running == 0) left.notify_all();
    }
  }
};

Pool& pool() {
  static Pool* const p = new Pool;  // its threads run until the process ends
  return *p;
}

}  // namespace

unsigned thread_limit() {
  static const unsigned limit = [] {
    const char* s = std::getenv("SOFTGPU_THREADS");
    long n = s ? std::atol(s) : 0;
    if (n < 1) n = static_cast<long>(std::thread::hardware_concurrency());
    return static_cast<unsigned>(std::clamp(n, 1L, 256L));
  }();
  return limit;
}

void run_parallel(unsigned threads, const std::function<void()>& work) {
  if (threads <= 1) return work();
  Pool& p = pool();
  auto job = std::make_shared<Job>();
  job->work = &work;
  {
    std::lock_guard<std::mutex> lock(p.mutex);
    for (unsigned i = 1; i < threads; ++i) p.jobs.push_back(job);
    while (p.idle < p.jobs.size() && p.threads + 1 < thread_limit()) {
      try {
        std::thread([&p] { p.serve(); }).detach();
      } catch (const std::system_error&) {
        break;  // fewer helpers
      }
      ++p.threads;
      if (p.threads >= p.jobs.size()) break;
    }
  }
  p.wake.notify_all();
  work();
  std::unique_lock<std::mutex> lock(p.mutex);
  job->closed = true;
  p.jobs.erase(std::remove(p.jobs.begin(), p.jobs.end(), job), p.jobs.end());
  p.left.wait(lock, [&] { return job->running == 0; });
}

}  // namespace sg::vm
