// The queue of a stream.
#include <chrono>
#include <thread>

#include "state.h"
#include "stream.h"

namespace sg {

namespace {
std::atomic<uint64_t> next_stream_id{1};
}

Stream::Stream(std::shared_ptr<Context> ctx, StreamRole stream_role, int stream_priority)
    : context(std::move(ctx)), role(stream_role), priority(stream_priority), id(next_stream_id.fetch_add(1)) {}

uint64_t Stream::push(StreamOp op, bool start_worker) {
  std::unique_lock lock(mutex_);
  queue_.push_back(std::move(op));
  const uint64_t sequence = submitted_.load(std::memory_order_relaxed) + 1;
  submitted_.store(sequence, std::memory_order_release);
  if (start_worker && !worker_started_) {
    worker_started_ = true;
    std::thread([self = shared_from_this()] { self->worker(); }).detach();
  }
  const bool wake = start_worker && !executing_;
  lock.unlock();
  if (wake) work_.notify_one();
  return sequence;
}

void Stream::run_front(std::unique_lock<std::mutex>& lock) {
  StreamOp op = std::move(queue_.front());
  queue_.pop_front();
  executing_ = true;
  lock.unlock();
  for (const Ticket& ticket : op.waits) ticket.stream->wait(ticket.sequence, false);
  const unsigned delay_us = Driver::get().op_delay_us;
  if (delay_us > 0) std::this_thread::sleep_for(std::chrono::microseconds(delay_us));
  if (op.even_after_fault || context->fault.load(std::memory_order_acquire) == 0) {
    try {
      op.run();
    } catch (const std::bad_alloc&) {
      context->set_fault(CUDA_ERROR_LAUNCH_FAILED, "the host is out of memory");
    } catch (...) {
      context->set_fault(CUDA_ERROR_LAUNCH_FAILED, "internal error");
    }
  }
  op = StreamOp{};  // what the operation kept alive goes before the operation counts as complete
  lock.lock();
  executing_ = false;
  completed_.fetch_add(1, std::memory_order_release);
  done_.notify_all();
}

void Stream::worker() {
  std::unique_lock lock(mutex_);
  while (true) {
    work_.wait(lock, [&] { return !executing_ && (closing_ || !queue_.empty()); });
    if (queue_.empty()) return;
    run_front(lock);
  }
}

void Stream::wait(uint64_t sequence, bool help) {
  if (is_complete(sequence)) return;
  std::unique_lock lock(mutex_);
  while (!is_complete(sequence)) {
    if (help && !executing_) {
      run_front(lock);
    } else {
      // A helper also looks again when an operation is done: it may take the next one before the worker wakes.
      done_.wait(lock);
    }
  }
  const bool wake = help && !executing_ && !queue_.empty();
  lock.unlock();
  if (wake) work_.notify_one();
}

void Stream::close() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  work_.notify_all();
}

}  // namespace sg
