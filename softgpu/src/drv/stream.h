// A stream: a queue of operations that run one after the other, on a thread of the stream or on the thread of a
// caller that waits for them.
//
// Invariant: an operation only ever waits for operations that were submitted before it (Ticket), so streams cannot
// wait for each other in a circle.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace sg {

struct Context;
class Stream;

/// A place in a stream's order.
struct Ticket {
  std::shared_ptr<Stream> stream;
  uint64_t sequence = 0;
};

struct StreamOp {
  std::vector<Ticket> waits;
  std::function<void()> run;
  int node_type = 5;              // what it is in a graph (CU_GRAPH_NODE_TYPE_...); 5: empty
  bool even_after_fault = false;  // bookkeeping that must happen in a faulted context too
};

enum class StreamRole : uint8_t { legacy, per_thread, blocking, non_blocking };

class Stream : public std::enable_shared_from_this<Stream> {
 public:
  Stream(std::shared_ptr<Context> context, StreamRole role, int priority);

  /// Puts an operation at the end. Use Context::submit, which adds what the NULL stream's rules ask for.
  /// `start_worker` false: the caller waits for the result at once and may run it itself.
  uint64_t push(StreamOp op, bool start_worker);
  /// Returns when `sequence` is complete. `help`: run queued operations on this thread meanwhile.
  void wait(uint64_t sequence, bool help);
  bool is_complete(uint64_t sequence) const { return completed_.load(std::memory_order_acquire) >= sequence; }
  uint64_t submitted() const { return submitted_.load(std::memory_order_acquire); }
  bool idle() const { return is_complete(submitted()); }
  /// The worker ends once the queue is empty.
  void close();

  uint64_t handle = 0;
  const std::shared_ptr<Context> context;
  const StreamRole role;
  const int priority;
  const uint64_t id;
  std::atomic<bool> destroyed{false};
  std::atomic<bool> capturing{false};

 private:
  void worker();
  /// Runs the first operation. Called with the lock held and no executor active.
  void run_front(std::unique_lock<std::mutex>& lock);

  std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable done_;
  std::deque<StreamOp> queue_;
  std::atomic<uint64_t> submitted_{0};
  std::atomic<uint64_t> completed_{0};
  bool executing_ = false;
  bool worker_started_ = false;
  bool closing_ = false;
};

}  // namespace sg
