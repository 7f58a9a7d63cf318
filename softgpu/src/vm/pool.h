// Host threads that help to run launches.
#pragma once
#include <functional>

namespace sg::vm {

/// Threads that a launch may use, the calling one among them: SOFTGPU_THREADS, else the number of processors.
unsigned thread_limit();

/// Runs `work` on the calling thread and, while it lasts, on up to `threads` - 1 others that happen to be free.
/// `work` must come to its end whatever number of threads runs it. Returns when all of them have left it.
void run_parallel(unsigned threads, const std::function<void()>& work);

}  // namespace sg::vm
