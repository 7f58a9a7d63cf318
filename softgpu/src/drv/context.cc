// Contexts: which stream is meant, the NULL stream's order, faults, and the end of a context.
#include <algorithm>
#include <cstdio>
#include <utility>

#include "capture.h"
#include "state.h"

namespace sg {

namespace {

std::atomic<uint64_t> next_context_id{1};

// A primary context's own memory is not counted: there is always one, and programs do not choose it.
constexpr size_t kContextBytes = size_t{8} << 20;
constexpr size_t kStackBytes = 1024, kPrintfBytes = 1 << 20, kHeapBytes = 8 << 20;

size_t above(size_t bytes, size_t included_bytes) { return bytes > included_bytes ? bytes - included_bytes : 0; }

constexpr uintptr_t kLegacyHandle = 1;     // CU_STREAM_LEGACY
constexpr uintptr_t kPerThreadHandle = 2;  // CU_STREAM_PER_THREAD

}  // namespace

Context::Context(int device_ordinal, bool is_primary, unsigned context_flags)
    : device(device_ordinal),
      primary(is_primary),
      id(next_context_id.fetch_add(1)),
      flags(context_flags),
      space(std::make_shared<ContextSpace>(device_ordinal, id)) {
  const size_t defaults[CU_LIMIT_MAX] = {kStackBytes, kPrintfBytes, kHeapBytes, 2, 2048, 64, 0, 0, 0, 0};
  for (int i = 0; i < CU_LIMIT_MAX; ++i) limits[i] = defaults[i];
}

bool Context::take_memory(size_t stack_bytes, size_t printf_bytes, size_t heap_bytes, size_t local_bytes) {
  Driver& driver = Driver::get();
  DeviceArena& arena = *driver.devices[device]->arena;
  if (printf_bytes > arena.capacity_bytes() || heap_bytes > arena.capacity_bytes()) return false;
  // Every thread that the device can hold has a stack, on which local memory lies, whatever the grids are.
  const size_t threads = static_cast<size_t>(driver.multiprocessors) * kMaxThreadsPerMultiprocessor;
  const size_t stacks_bytes = driver.record ? 0 : above(std::max(stack_bytes, local_bytes), kStackBytes) * threads;
  const size_t bytes =
      (primary ? 0 : kContextBytes) + above(printf_bytes, kPrintfBytes) + above(heap_bytes, kHeapBytes) + stacks_bytes;
  return memory_.resize(arena, round_up(bytes, kDriverUnitBytes));
}

bool Context::take_limit(int limit, size_t value) {
  const auto of = [&](int which) { return limit == which ? value : limits[which].load(); };
  return take_memory(of(CU_LIMIT_STACK_SIZE), of(CU_LIMIT_PRINTF_FIFO_SIZE), of(CU_LIMIT_MALLOC_HEAP_SIZE),
                     local_bytes_);
}

bool Context::take_local(size_t local_bytes) {
  if (local_bytes <= local_bytes_.load(std::memory_order_relaxed)) return true;
  const bool taken = take_memory(limits[CU_LIMIT_STACK_SIZE], limits[CU_LIMIT_PRINTF_FIFO_SIZE],
                                 limits[CU_LIMIT_MALLOC_HEAP_SIZE], local_bytes);
  if (taken) local_bytes_ = local_bytes;
  return taken;
}

void Context::give_memory() {
  local_bytes_ = 0;
  memory_.resize(*Driver::get().devices[device]->arena, 0);
}

std::shared_ptr<Stream> Context::add_stream(StreamRole role, int priority) {
  auto stream = std::make_shared<Stream>(shared_from_this(), role, priority);
  std::lock_guard lock(order_mutex_);
  // Streams that were destroyed while busy stay listed until they have run dry.
  streams_.erase(
      std::remove_if(streams_.begin(), streams_.end(), [](const auto& old) { return old->destroyed && old->idle(); }),
      streams_.end());
  streams_.push_back(stream);
  return stream;
}

void Context::drop_stream(const std::shared_ptr<Stream>& stream) {
  std::lock_guard lock(order_mutex_);
  if (stream->idle()) streams_.erase(std::remove(streams_.begin(), streams_.end(), stream), streams_.end());
}

std::shared_ptr<Stream> Context::legacy_stream() {
  {
    std::lock_guard lock(order_mutex_);
    if (legacy_) return legacy_;
  }
  auto stream = add_stream(StreamRole::legacy, 0);
  std::lock_guard lock(order_mutex_);
  if (legacy_) {
    streams_.erase(std::remove(streams_.begin(), streams_.end(), stream), streams_.end());
  } else {
    legacy_ = std::move(stream);
  }
  return legacy_;
}

CUresult Context::stream(CUstream stream_handle, bool per_thread_default, std::shared_ptr<Stream>* out) {
  const auto value = reinterpret_cast<uintptr_t>(stream_handle);
  if (value == kPerThreadHandle || (value == 0 && per_thread_default)) {
    auto& slot = thread_state().default_streams[{id, generation.load()}];
    if (!slot) slot = add_stream(StreamRole::per_thread, 0);
    *out = slot;
    return CUDA_SUCCESS;
  }
  if (value == 0 || value == kLegacyHandle) {
    *out = legacy_stream();
    return CUDA_SUCCESS;
  }
  *out = Driver::get().streams.get(stream_handle);
  return *out ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

Ticket Context::submit(const std::shared_ptr<Stream>& stream, StreamOp op, bool start_worker) {
  if (Recorder* recorder = Recorder::current) {
    recorder->op = std::move(op);
    recorder->filled = true;
    return {stream, 0};
  }
  if (stream->capturing || (stream->role == StreamRole::legacy && capturing_blocking > 0)) {
    capture_operation(stream, std::move(op));
    return {stream, 0};
  }
  if (stream->role == StreamRole::non_blocking) return {stream, stream->push(std::move(op), start_worker)};
  std::lock_guard lock(order_mutex_);
  if (stream->role == StreamRole::legacy) {
    for (const auto& other : streams_) {
      if (other == stream || other->role == StreamRole::non_blocking || other->idle()) continue;
      op.waits.push_back({other, other->submitted()});
    }
  } else if (legacy_ && !legacy_->idle()) {
    op.waits.push_back({legacy_, legacy_->submitted()});
  }
  return {stream, stream->push(std::move(op), start_worker)};
}

CUresult Context::run_now(const std::shared_ptr<Stream>& stream, StreamOp op) {
  refuse_capture(stream);
  check_capture_safe();
  const Ticket ticket = submit(stream, std::move(op), false);
  stream->wait(ticket.sequence, true);
  return fault.load(std::memory_order_acquire);
}

std::vector<Ticket> Context::tickets(const std::shared_ptr<Stream>& stream) {
  if (stream->role != StreamRole::legacy) return {{stream, stream->submitted()}};
  std::vector<Ticket> found;
  std::lock_guard lock(order_mutex_);
  for (const auto& other : streams_) {
    if (other->role != StreamRole::non_blocking) found.push_back({other, other->submitted()});
  }
  return found;
}

std::vector<Ticket> Context::all_tickets() {
  std::vector<Ticket> found;
  std::lock_guard lock(order_mutex_);
  for (const auto& stream : streams_) found.push_back({stream, stream->submitted()});
  return found;
}

void Context::wait(const std::vector<Ticket>& tickets) {
  for (const Ticket& ticket : tickets) ticket.stream->wait(ticket.sequence, true);
}

void Context::set_fault(CUresult code, const std::string& message) {
  int none = 0;
  if (!fault.compare_exchange_strong(none, code)) return;  // the first fault stays
  if (Driver::get().verbose) std::fprintf(stderr, "softgpu: error %d: %s\n", code, message.c_str());
}

void Context::tear_down() {
  Driver& driver = Driver::get();
  closing = true;  // ends waits for values that nobody will write
  synchronize();
  const auto mine = [this](const auto& object) { return object.context.get() == this; };
  auto dead_streams = driver.streams.take_if(mine);
  driver.events.take_if(mine);
  driver.links.take_if(mine);
  driver.textures.take_if(mine);
  driver.arrays.take_if(mine);
  driver.mipmapped_arrays.take_if(mine);
  for (auto& library : driver.libraries.all()) {
    std::lock_guard lock(library->mutex);
    library->modules.erase({id, generation.load()});
  }
  for (auto& module : driver.modules.take_if(mine)) {
    driver.functions.take_if([&](const Function& function) { return function.module_handle == module->handle; });
  }
  std::vector<std::shared_ptr<Stream>> all;
  {
    std::lock_guard lock(order_mutex_);
    all.swap(streams_);
    legacy_.reset();
  }
  for (auto& stream : all) {
    stream->destroyed = true;
    stream->close();
  }
  // Module memory goes with its program; pool and VMM memory belong to no context.
  driver.release_regions(driver.map.remove_if([this](const Region& region) {
    return region.context_id == id && region.kind != RegionKind::module && region.kind != RegionKind::pool &&
           region.kind != RegionKind::vmm;
  }));
  give_memory();
  space->peer_mask = 0;
  fault = 0;
  closing = false;
  generation.fetch_add(1);
}

}  // namespace sg
