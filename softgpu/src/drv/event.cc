// cuEvent*.
#include <chrono>

#include "api.h"
#include "capture.h"

using namespace sg;

namespace {

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

CUresult record_event(CUevent handle, CUstream stream_handle, bool per_thread, unsigned flags) {
  return with_stream(stream_handle, per_thread, [&](Driver& driver, Context& context, const auto& stream) -> CUresult {
    auto event = driver.events.get(handle);
    if (!event || event->context.get() != &context) return CUDA_ERROR_INVALID_HANDLE;
    if (flags > 1) return CUDA_ERROR_INVALID_VALUE;
    if (stream->capturing || (stream->role == StreamRole::legacy && context.capturing_blocking > 0)) {
      capture_event(*event, event, stream, flags == 1);
      return CUDA_SUCCESS;
    }
    if (flags == 1) return CUDA_ERROR_INVALID_VALUE;  // external nodes exist in captures only
    StreamOp op;
    op.even_after_fault = true;
    if (event->shared) {
      const uint64_t number = event->shared->begin_record();
      op.run = [shared = event->shared, number] { shared->end_record(number); };
      std::lock_guard lock(event->mutex);
      event->capture = nullptr;
      context.submit(stream, std::move(op));
      return CUDA_SUCCESS;
    }
    auto record = std::make_shared<EventRecord>();
    op.run = [record] {
      record->time_ns = now_ns();
      record->reached = true;
    };
    std::lock_guard lock(event->mutex);
    event->capture = nullptr;
    record->ticket = context.submit(stream, std::move(op));
    event->last = std::move(record);
    return CUDA_SUCCESS;
  });
}

template <class F>
CUresult with_event(CUevent handle, F f) {
  return with_driver([&](Driver& driver) -> CUresult {
    auto event = driver.events.get(handle);
    if (!event) return CUDA_ERROR_INVALID_HANDLE;
    const int fault = event->context->fault.load();
    if (fault != 0) return fault;
    return f(*event);
  });
}

bool is_complete(const EventRecord& record) { return record.ticket.stream->is_complete(record.ticket.sequence); }

bool is_complete(const SharedEvent& event) { return event.is_complete(event.last_record()); }

CUevent add_event(Driver& driver, Context& context, unsigned flags, std::shared_ptr<SharedEvent> shared) {
  auto event = std::make_shared<Event>();
  event->context = context.shared_from_this();
  event->flags = flags;
  event->shared = std::move(shared);
  return to_handle<CUevent>(driver.events.add(std::move(event)));
}

}  // namespace

SG_API cuEventCreate(CUevent* out, unsigned flags) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    if (!out || (flags & ~unsigned{CU_EVENT_FLAGS_MASK}) != 0) return CUDA_ERROR_INVALID_VALUE;
    std::shared_ptr<SharedEvent> shared;
    if (flags & CU_EVENT_INTERPROCESS) {
      if (!(flags & CU_EVENT_DISABLE_TIMING)) return CUDA_ERROR_INVALID_VALUE;
      shared = SharedEvent::create();
      if (!shared) return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *out = add_event(driver, context, flags, std::move(shared));
    return CUDA_SUCCESS;
  });
}

SG_API cuEventDestroy_v2(CUevent handle) {
  return with_driver([&](Driver& driver) -> CUresult {
    return driver.events.take(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
  });
}
SG_ALIAS(cuEventDestroy, cuEventDestroy_v2);

SG_API cuEventRecord(CUevent event, CUstream stream) { return record_event(event, stream, false, 0); }
SG_API cuEventRecord_ptsz(CUevent event, CUstream stream) { return record_event(event, stream, true, 0); }
SG_API cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned flags) {
  return record_event(event, stream, false, flags);
}
SG_API cuEventRecordWithFlags_ptsz(CUevent event, CUstream stream, unsigned flags) {
  return record_event(event, stream, true, flags);
}

SG_API cuEventQuery(CUevent handle) {
  return with_event(handle, [](Event& event) -> CUresult {
    refuse_captured_event(event);
    check_capture_safe();
    auto record = event.record();
    if (event.shared ? !is_complete(*event.shared) : record && !is_complete(*record)) return CUDA_ERROR_NOT_READY;
    return event.context->fault.load();
  });
}

SG_API cuEventSynchronize(CUevent handle) {
  return with_event(handle, [](Event& event) -> CUresult {
    refuse_captured_event(event);
    check_capture_safe();
    if (event.shared) event.shared->wait(event.shared->last_record(), *event.context);
    if (auto record = event.record()) record->ticket.stream->wait(record->ticket.sequence, true);
    Driver::get().trim_pools();
    return event.context->fault.load();
  });
}

SG_API cuEventElapsedTime(float* milliseconds, CUevent start_handle, CUevent end_handle) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!milliseconds) return CUDA_ERROR_INVALID_VALUE;
    auto start = driver.events.get(start_handle);
    auto end = driver.events.get(end_handle);
    if (!start || !end || start->context->device != end->context->device) return CUDA_ERROR_INVALID_HANDLE;
    if ((start->flags | end->flags) & CU_EVENT_DISABLE_TIMING) return CUDA_ERROR_INVALID_HANDLE;
    const int fault = start->context->fault.load();
    if (fault != 0) return fault;
    auto first = start->record();
    auto second = end->record();
    if (!first || !second) return CUDA_ERROR_INVALID_HANDLE;
    if (!is_complete(*first) || !is_complete(*second)) return CUDA_ERROR_NOT_READY;
    *milliseconds = static_cast<float>(static_cast<double>(second->time_ns - first->time_ns) * 1e-6);
    return CUDA_SUCCESS;
  });
}
SG_ALIAS(cuEventElapsedTime_v2, cuEventElapsedTime);

SG_API cuIpcGetEventHandle(CUipcEventHandle* out, CUevent handle) {
  return with_driver([&](Driver& driver) -> CUresult {
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    auto event = driver.events.get(handle);
    if (!event || !event->shared) return CUDA_ERROR_INVALID_HANDLE;
    *out = event->shared->handle();
    return CUDA_SUCCESS;
  });
}

SG_API cuIpcOpenEventHandle(CUevent* out, CUipcEventHandle handle) {
  return with_context([&](Driver& driver, Context& context) -> CUresult {
    if (!out) return CUDA_ERROR_INVALID_VALUE;
    std::shared_ptr<SharedEvent> shared;
    const CUresult opened = SharedEvent::open(handle, &shared);
    if (opened != CUDA_SUCCESS) return opened;
    *out = add_event(driver, context, CU_EVENT_DISABLE_TIMING, std::move(shared));
    return CUDA_SUCCESS;
  });
}
