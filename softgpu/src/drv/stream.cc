// cuStream*: creation, waiting, callbacks, and the operations on memory words.
#include "stream.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "api.h"
#include "capture.h"

using namespace sg;

namespace {

CUresult create_stream(CUstream* out, unsigned flags, int priority) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    if (!out || flags > CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
    const auto role = flags == CU_STREAM_NON_BLOCKING ? StreamRole::non_blocking : StreamRole::blocking;
    auto stream = context.add_stream(role, std::clamp(priority, kGreatestStreamPriority, kLeastStreamPriority));
    *out = to_handle<CUstream>(driver.streams.add(stream));
    return CUDA_SUCCESS;
  });
}

bool all_complete(const std::vector<Ticket>& tickets) {
  return std::all_of(tickets.begin(), tickets.end(),
                     [](const Ticket& ticket) { return ticket.stream->is_complete(ticket.sequence); });
}

CUresult synchronize_stream(CUstream handle, bool per_thread) {
  return with_stream(handle, per_thread, [&](Driver& driver, Context& context, const auto& stream) -> CUresult {
    refuse_wait_in_capture(stream);
    check_capture_safe();
    Context::wait(context.tickets(stream));
    driver.trim_pools();
    return context.fault.load();
  });
}

CUresult query_stream(CUstream handle, bool per_thread) {
  return with_stream(handle, per_thread, [&](Driver&, Context& context, const auto& stream) -> CUresult {
    refuse_wait_in_capture(stream);
    check_capture_safe();
    if (!all_complete(context.tickets(stream))) return CUDA_ERROR_NOT_READY;
    return context.fault.load();
  });
}

struct CallbackScope {
  CallbackScope() { thread_state().in_callback = true; }
  ~CallbackScope() { thread_state().in_callback = false; }
};

CUresult launch_host_function(CUstream handle, bool per_thread, CUhostFn function, void* argument) {
  return with_stream(handle, per_thread, [&](Driver&, Context& context, const auto& stream) -> CUresult {
    if (!function) return CUDA_ERROR_INVALID_VALUE;
    StreamOp op;
    op.node_type = CU_GRAPH_NODE_TYPE_HOST;
    op.run = [function, argument] {
      CallbackScope scope;
      function(argument);
    };
    context.submit(stream, std::move(op));
    return CUDA_SUCCESS;
  });
}

CUresult add_callback(CUstream handle, bool per_thread, CUstreamCallback callback, void* argument, unsigned flags) {
  return with_stream(handle, per_thread, [&](Driver&, Context& context, const auto& stream) -> CUresult {
    if (!callback || flags != 0) return CUDA_ERROR_INVALID_VALUE;
    refuse_capture(stream);
    StreamOp op;
    op.even_after_fault = true;  // unlike a host function, a callback is told of the fault
    op.run = [handle, callback, argument, owner = context.shared_from_this()] {
      CallbackScope scope;
      callback(handle, owner->fault.load(), argument);
    };
    context.submit(stream, std::move(op));
    return CUDA_SUCCESS;
  });
}

// --- operations on memory words ---

struct WordOp {
  bool wait = false;
  bool wide = false;
  uint64_t address = 0;
  uint64_t value = 0;
  unsigned flags = 0;
};

bool reached(const WordOp& op, uint64_t seen) {
  switch (op.flags) {
    case CU_STREAM_WAIT_VALUE_GEQ:  // cyclic comparison, as the API says
      return op.wide ? static_cast<int64_t>(seen - op.value) >= 0
                     : static_cast<int32_t>(static_cast<uint32_t>(seen) - static_cast<uint32_t>(op.value)) >= 0;
    case CU_STREAM_WAIT_VALUE_EQ:
      return seen == op.value;
    case CU_STREAM_WAIT_VALUE_AND:
      return (seen & op.value) != 0;
    default:
      return op.wide ? ~(seen | op.value) != 0 : ~static_cast<uint32_t>(seen | op.value) != 0;
  }
}

CUresult check(Driver& driver, const Context& context, const WordOp& op) {
  const unsigned known = op.wait ? 3u : 1u;  // 1: no memory barrier
  const size_t bytes = op.wide ? 8 : 4;
  if (op.wait && (op.flags & CU_STREAM_WAIT_VALUE_FLUSH)) return CUDA_ERROR_NOT_SUPPORTED;  // no remote writers
  if ((op.flags & ~known) != 0 || op.address % bytes != 0) return CUDA_ERROR_INVALID_VALUE;
  auto region = driver.map.find(op.address);
  if (region && region->kind == RegionKind::managed) return CUDA_ERROR_INVALID_VALUE;  // as cuda.h says
  return driver.map.covers(op.address, bytes, context.device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

/// Runs in stream order. Each access holds a pass, so the word cannot be unmapped under it.
void perform(Driver& driver, Context& context, const WordOp& op) {
  const size_t bytes = op.wide ? 8 : 4;
  unsigned pause_us = 1;
  while (true) {
    {
      ExecGate::Pass pass(driver.gate);
      if (!driver.map.covers(op.address, bytes, context.device)) {
        context.set_fault(CUDA_ERROR_ILLEGAL_ADDRESS, "a stream memory operation names memory that is gone");
        return;
      }
      auto* narrow_word = reinterpret_cast<uint32_t*>(op.address);
      auto* wide_word = reinterpret_cast<uint64_t*>(op.address);
      if (!op.wait) {
        // Everything that the stream did before is visible to whoever sees the new value.
        std::atomic_thread_fence(std::memory_order_seq_cst);
        if (op.wide) {
          __atomic_store_n(wide_word, op.value, __ATOMIC_RELEASE);
        } else {
          __atomic_store_n(narrow_word, static_cast<uint32_t>(op.value), __ATOMIC_RELEASE);
        }
        return;
      }
      const uint64_t seen =
          op.wide ? __atomic_load_n(wide_word, __ATOMIC_ACQUIRE) : __atomic_load_n(narrow_word, __ATOMIC_ACQUIRE);
      if (reached(op, seen)) return;
    }
    if (context.fault.load() != 0 || context.closing.load()) return;
    std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
    pause_us = std::min(pause_us * 2, 500u);
  }
}

CUresult submit_words(CUstream handle, bool per_thread, std::vector<WordOp> words) {
  return with_stream(handle, per_thread, [&](Driver& driver, Context& context, const auto& stream) -> CUresult {
    for (const WordOp& word : words) {
      const CUresult checked = check(driver, context, word);
      if (checked != CUDA_SUCCESS) return checked;
    }
    StreamOp op;
    op.node_type = CU_GRAPH_NODE_TYPE_BATCH_MEM_OP;
    op.run = [&driver, &context, batch = std::move(words)] {
      for (const WordOp& word : batch) perform(driver, context, word);
    };
    context.submit(stream, std::move(op));
    return CUDA_SUCCESS;
  });
}

CUresult batch(CUstream handle, bool per_thread, unsigned count, const CUstreamBatchMemOpParams* params,
               unsigned flags) {
  constexpr unsigned kMaxBatch = 256;
  if (flags != 0 || count > kMaxBatch || (count > 0 && !params)) return CUDA_ERROR_INVALID_VALUE;
  return guarded([&]() -> CUresult {
    std::vector<WordOp> words;
    for (unsigned i = 0; i < count; ++i) {
      const auto& given = params[i].value_op;
      WordOp word;
      word.address = given.address;
      word.flags = given.flags;
      switch (params[i].operation) {
        case CU_STREAM_MEM_OP_WAIT_VALUE_32:
        case CU_STREAM_MEM_OP_WRITE_VALUE_32:
          word.wait = params[i].operation == CU_STREAM_MEM_OP_WAIT_VALUE_32;
          word.value = given.value;
          break;
        case CU_STREAM_MEM_OP_WAIT_VALUE_64:
        case CU_STREAM_MEM_OP_WRITE_VALUE_64:
          word.wait = params[i].operation == CU_STREAM_MEM_OP_WAIT_VALUE_64;
          word.wide = true;
          word.value = given.value64;
          break;
        case CU_STREAM_MEM_OP_FLUSH_REMOTE_WRITES:
        case CU_STREAM_MEM_OP_BARRIER:
          continue;  // operations of a stream are ordered and fenced anyway
        default:
          return CUDA_ERROR_INVALID_VALUE;
      }
      words.push_back(word);
    }
    return submit_words(handle, per_thread, std::move(words));
  });
}

CUresult word_op(CUstream stream, bool per_thread, bool wait, bool wide, CUdeviceptr address, uint64_t value,
                 unsigned flags) {
  return guarded([&] { return submit_words(stream, per_thread, {WordOp{wait, wide, address, value, flags}}); });
}

CUresult wait_event(CUstream handle, bool per_thread, CUevent event_handle, unsigned flags) {
  return with_stream(handle, per_thread, [&](Driver& driver, Context& context, const auto& stream) -> CUresult {
    if (flags > 1) return CUDA_ERROR_INVALID_VALUE;
    auto event = driver.events.get(event_handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    if (capture_wait(event, stream, flags == 1)) return CUDA_SUCCESS;
    if (event->shared) {
      const uint64_t number = event->shared->last_record();
      if (event->shared->is_complete(number)) return CUDA_SUCCESS;
      StreamOp op;
      op.run = [&context, shared = event->shared, number] { shared->wait(number, context); };
      context.submit(stream, std::move(op));
      return CUDA_SUCCESS;
    }
    auto record = event->record();
    if (!record || record->ticket.stream->is_complete(record->ticket.sequence)) return CUDA_SUCCESS;
    StreamOp op;
    op.waits.push_back(record->ticket);
    op.run = [] {};
    context.submit(stream, std::move(op));
    return CUDA_SUCCESS;
  });
}

CUresult stream_flags(CUstream handle, bool per_thread, unsigned* flags) {
  return with_stream(handle, per_thread, [&](Driver&, Context&, const auto& stream) -> CUresult {
    if (!flags) return CUDA_ERROR_INVALID_VALUE;
    *flags = stream->role == StreamRole::non_blocking ? unsigned{CU_STREAM_NON_BLOCKING} : 0u;
    return CUDA_SUCCESS;
  });
}

CUresult stream_priority(CUstream handle, bool per_thread, int* priority) {
  return with_stream(handle, per_thread, [&](Driver&, Context&, const auto& stream) -> CUresult {
    if (!priority) return CUDA_ERROR_INVALID_VALUE;
    *priority = stream->priority;
    return CUDA_SUCCESS;
  });
}

CUresult stream_context(CUstream handle, bool per_thread, CUcontext* out) {
  return with_stream(handle, per_thread, [&](Driver&, Context& context, const auto&) -> CUresult {
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    *out = to_handle<CUcontext>(context.handle);
    return CUDA_SUCCESS;
  });
}

CUresult stream_device(CUstream handle, bool per_thread, CUdevice* out) {
  return with_stream(handle, per_thread, [&](Driver&, Context& context, const auto&) -> CUresult {
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    *out = context.device;
    return CUDA_SUCCESS;
  });
}

CUresult stream_id(CUstream handle, bool per_thread, unsigned long long* id) {
  return with_stream(handle, per_thread, [&](Driver&, Context&, const auto& stream) -> CUresult {
    if (!id) return CUDA_ERROR_INVALID_VALUE;
    *id = stream->id;
    return CUDA_SUCCESS;
  });
}

CUresult get_attribute(CUstream handle, bool per_thread, CUlaunchAttributeID id, CUlaunchAttributeValue* value) {
  return with_stream(handle, per_thread, [&](Driver&, Context&, const auto& stream) -> CUresult {
    if (!value) return CUDA_ERROR_INVALID_VALUE;
    if (id == CU_LAUNCH_ATTRIBUTE_PRIORITY) {
      value->priority = stream->priority;
      return CUDA_SUCCESS;
    }
    return CUDA_ERROR_NOT_SUPPORTED;
  });
}

}  // namespace

SG_API cuStreamCreate(CUstream* out, unsigned flags) { return create_stream(out, flags, 0); }
SG_API cuStreamCreateWithPriority(CUstream* out, unsigned flags, int priority) {
  return create_stream(out, flags, priority);
}

SG_API cuStreamDestroy_v2(CUstream handle) {
  return with_context([&](Driver& driver, Context&) -> CUresult {
    auto stream = driver.streams.take(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    forget_capture(stream);
    stream->destroyed = true;  // queued work still runs
    stream->close();
    stream->context->drop_stream(stream);
    return CUDA_SUCCESS;
  });
}
SG_ALIAS(cuStreamDestroy, cuStreamDestroy_v2);

SG_API cuStreamSynchronize(CUstream s) { return synchronize_stream(s, false); }
SG_API cuStreamSynchronize_ptsz(CUstream s) { return synchronize_stream(s, true); }
SG_API cuStreamQuery(CUstream s) { return query_stream(s, false); }
SG_API cuStreamQuery_ptsz(CUstream s) { return query_stream(s, true); }

SG_API cuLaunchHostFunc(CUstream s, CUhostFn fn, void* arg) { return launch_host_function(s, false, fn, arg); }
SG_API cuLaunchHostFunc_ptsz(CUstream s, CUhostFn fn, void* arg) { return launch_host_function(s, true, fn, arg); }
SG_API cuStreamAddCallback(CUstream s, CUstreamCallback fn, void* arg, unsigned flags) {
  return add_callback(s, false, fn, arg, flags);
}
SG_API cuStreamAddCallback_ptsz(CUstream s, CUstreamCallback fn, void* arg, unsigned flags) {
  return add_callback(s, true, fn, arg, flags);
}

SG_API cuStreamWaitEvent(CUstream s, CUevent event, unsigned flags) { return wait_event(s, false, event, flags); }
SG_API cuStreamWaitEvent_ptsz(CUstream s, CUevent event, unsigned flags) { return wait_event(s, true, event, flags); }

SG_API cuStreamWaitValue32_v2(CUstream s, CUdeviceptr address, uint32_t value, unsigned flags) {
  return word_op(s, false, true, false, address, value, flags);
}
SG_API cuStreamWaitValue32_v2_ptsz(CUstream s, CUdeviceptr address, uint32_t value, unsigned flags) {
  return word_op(s, true, true, false, address, value, flags);
}
SG_API cuStreamWaitValue64_v2(CUstream s, CUdeviceptr address, uint64_t value, unsigned flags) {
  return word_op(s, false, true, true, address, value, flags);
}
SG_API cuStreamWaitValue64_v2_ptsz(CUstream s, CUdeviceptr address, uint64_t value, unsigned flags) {
  return word_op(s, true, true, true, address, value, flags);
}
SG_API cuStreamWriteValue32_v2(CUstream s, CUdeviceptr address, uint32_t value, unsigned flags) {
  return word_op(s, false, false, false, address, value, flags);
}
SG_API cuStreamWriteValue32_v2_ptsz(CUstream s, CUdeviceptr address, uint32_t value, unsigned flags) {
  return word_op(s, true, false, false, address, value, flags);
}
SG_API cuStreamWriteValue64_v2(CUstream s, CUdeviceptr address, uint64_t value, unsigned flags) {
  return word_op(s, false, false, true, address, value, flags);
}
SG_API cuStreamWriteValue64_v2_ptsz(CUstream s, CUdeviceptr address, uint64_t value, unsigned flags) {
  return word_op(s, true, false, true, address, value, flags);
}
SG_ALIAS(cuStreamWaitValue32, cuStreamWaitValue32_v2);
SG_ALIAS(cuStreamWaitValue32_ptsz, cuStreamWaitValue32_v2_ptsz);
SG_ALIAS(cuStreamWaitValue64, cuStreamWaitValue64_v2);
SG_ALIAS(cuStreamWaitValue64_ptsz, cuStreamWaitValue64_v2_ptsz);
SG_ALIAS(cuStreamWriteValue32, cuStreamWriteValue32_v2);
SG_ALIAS(cuStreamWriteValue32_ptsz, cuStreamWriteValue32_v2_ptsz);
SG_ALIAS(cuStreamWriteValue64, cuStreamWriteValue64_v2);
SG_ALIAS(cuStreamWriteValue64_ptsz, cuStreamWriteValue64_v2_ptsz);

SG_API cuStreamBatchMemOp_v2(CUstream s, unsigned count, CUstreamBatchMemOpParams* params, unsigned flags) {
  return batch(s, false, count, params, flags);
}
SG_API cuStreamBatchMemOp_v2_ptsz(CUstream s, unsigned count, CUstreamBatchMemOpParams* params, unsigned flags) {
  return batch(s, true, count, params, flags);
}
SG_ALIAS(cuStreamBatchMemOp, cuStreamBatchMemOp_v2);
SG_ALIAS(cuStreamBatchMemOp_ptsz, cuStreamBatchMemOp_v2_ptsz);

SG_API cuThreadExchangeStreamCaptureMode(int* mode) {
  return with_driver([&](Driver&) -> CUresult {
    if (!mode || *mode < 0 || *mode > 2) return CUDA_ERROR_INVALID_VALUE;
    std::swap(*mode, thread_state().capture_mode);
    return CUDA_SUCCESS;
  });
}

SG_API cuStreamGetFlags(CUstream s, unsigned* flags) { return stream_flags(s, false, flags); }
SG_API cuStreamGetFlags_ptsz(CUstream s, unsigned* flags) { return stream_flags(s, true, flags); }
SG_API cuStreamGetPriority(CUstream s, int* priority) { return stream_priority(s, false, priority); }
SG_API cuStreamGetPriority_ptsz(CUstream s, int* priority) { return stream_priority(s, true, priority); }
SG_API cuStreamGetCtx(CUstream s, CUcontext* context) { return stream_context(s, false, context); }
SG_API cuStreamGetCtx_ptsz(CUstream s, CUcontext* context) { return stream_context(s, true, context); }
SG_API cuStreamGetDevice(CUstream s, CUdevice* device) { return stream_device(s, false, device); }
SG_API cuStreamGetDevice_ptsz(CUstream s, CUdevice* device) { return stream_device(s, true, device); }
SG_API cuStreamGetId(CUstream s, unsigned long long* id) { return stream_id(s, false, id); }
SG_API cuStreamGetId_ptsz(CUstream s, unsigned long long* id) { return stream_id(s, true, id); }
SG_API cuStreamGetAttribute(CUstream s, CUlaunchAttributeID id, CUlaunchAttributeValue* value) {
  return get_attribute(s, false, id, value);
}
SG_API cuStreamGetAttribute_ptsz(CUstream s, CUlaunchAttributeID id, CUlaunchAttributeValue* value) {
  return get_attribute(s, true, id, value);
}
