// Moves the memory of whole devices of a session out to host memory and back, at the same addresses.
//
// Only memory of MEM_MAP that no other process knows: what the program has mapped by itself, arrays, modules and
// contexts stay. Each range keeps its host memory (backing) as long as orion-server allows, because registering it with
// the driver takes longer than a copy does.
//
// Nothing here waits: a pass registers one piece, or starts some copies, or finds that they are done. Kernels reach any
// memory of the session through peers, so one device that is not whole holds all work.
#include "swap.h"

#include <string.h>
#include <sys/mman.h>

#include "seat.h"

#define PIECE_BYTES (64ull << 20)   // registered and copied as one
#define BATCH_BYTES (512ull << 20)  // on their way at a time, unless one range has more

static uint64_t load(const _Atomic uint64_t* word) { return atomic_load_explicit(word, memory_order_acquire); }
static void store(_Atomic uint64_t* word, uint64_t value) { atomic_store_explicit(word, value, memory_order_release); }
static void add(_Atomic uint64_t* word, uint64_t value) {
  store(word, atomic_load_explicit(word, memory_order_relaxed) + value);
}
static bool is_out_wish(uint64_t residency) { return residency & 1; }

/// Memory that can be moved: of this device, made by MEM_MAP, known to nobody else.
static bool is_movable(const orion_engine* e, uint32_t device, const range* r) {
  return r->serial && !r->memory && !r->stays && e->contexts[r->context].device == device;
}

// ------------------------------------------------------------------------------------------------ backing
static uint64_t piece_bytes(const range* r, uint64_t offset) {
  return r->bytes - offset < PIECE_BYTES ? r->bytes - offset : PIECE_BYTES;
}

/// One more piece of the range's host memory. False: there is none to be had.
static bool back_piece(orion_engine* e, orion_seat_device* seat, range* r) {
  if (!r->backing) {
    const uint64_t granted = load(&seat->backing_granted_bytes), kept = load(&seat->backing_bytes);
    if (kept > granted || r->bytes > granted - kept) return false;
    void* p = mmap(NULL, r->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return false;
    (void)madvise(p, r->bytes, MADV_HUGEPAGE);  // far fewer pages to pin
    (void)madvise(p, r->bytes, MADV_DONTFORK);
    r->backing = p;
    add(&seat->backing_bytes, r->bytes);
  }
  const uint64_t bytes = piece_bytes(r, r->backed_bytes);
  if (e->driver.host_register(r->backing + r->backed_bytes, bytes, CU_MEMHOSTREGISTER_PORTABLE)) return false;
  r->backed_bytes += bytes;
  return true;
}

static void drop_backing(orion_engine* e, orion_seat_device* seat, range* r) {
  if (!r->backing) return;
  for (uint64_t at = 0; at < r->backed_bytes; at += piece_bytes(r, at)) {
    (void)e->driver.host_unregister(r->backing + at);
  }
  munmap(r->backing, r->bytes);
  if (seat) add(&seat->backing_bytes, -r->bytes);
  r->backing = NULL;
  r->backed_bytes = 0;
}

void swap_forget(orion_engine* e, range* r) {
  const device_state* d = memory_device_at(e, r->base);
  orion_seat_device* seat = d ? seat_device(e, (uint32_t)(d - e->devices)) : NULL;
  if (r->is_out && seat) add(&seat->out_bytes, -r->bytes);
  r->is_out = false;
  drop_backing(e, seat, r);
}

// ------------------------------------------------------------------------------------------------ copies
/// The device's primary context is current, and its stream for copies exists.
static bool use_stream_of(orion_engine* e, uint32_t device) {
  swap_device* w = &e->swap.devices[device];
  if (e->driver.context_set_current(e->devices[device].primary)) return false;
  e->current_context = 0;
  return w->stream || !e->driver.stream_create(&w->stream, CU_STREAM_NON_BLOCKING, 0);
}

/// False: the driver refuses, and the session has ended.
static bool copy_range(orion_engine* e, CUstream stream, const range* r, bool out) {
  int32_t result = 0;
  for (uint64_t at = 0; at < r->bytes && !result; at += piece_bytes(r, at)) {
    const uint64_t bytes = piece_bytes(r, at);
    result = (int32_t)(out ? e->driver.copy_d2h(r->backing + at, r->base + at, bytes, stream)
                           : e->driver.copy_h2d(r->base + at, r->backing + at, bytes, stream));
  }
  if (result) engine_end(e, ORION_END_FAILED, "memory cannot be moved: CUresult %d", result);
  return !result;
}

static void put(orion_engine* e, swap_device* w, uint32_t index) {
  w->batch[w->batch_count++] = index;
  w->batch_bytes += e->ranges[index].bytes;
  if (w->batch_count == 1) {
    w->batch_at_ns = engine_now_ns();
    e->swap.moving++;
  }
}

/// Whether all copies of the batch are done. Sets `*result` where they have failed.
static bool batch_is_done(orion_engine* e, uint32_t device, int32_t* result) {
  const int32_t told = use_stream_of(e, device) ? (int32_t)e->driver.stream_query(e->swap.devices[device].stream) : 46;
  if (told == CUDA_ERROR_NOT_READY) return false;
  *result = told;
  return true;
}

static void end_batch(orion_engine* e, swap_device* w, _Atomic uint64_t* bytes, _Atomic uint64_t* time_ns) {
  add(bytes, w->batch_bytes);
  add(time_ns, engine_now_ns() - w->batch_at_ns);
  w->batch_count = 0;
  w->batch_bytes = 0;
  e->swap.moving--;
}

static void finish_out(orion_engine* e, orion_seat_device* seat, swap_device* w, int32_t failed) {
  for (uint32_t i = 0; i < w->batch_count && !failed; i++) {
    range* r = &e->ranges[w->batch[i]];
    if (e->direct) direct_forget(e, r->serial);
    (void)e->driver.memory_unmap(r->base, r->bytes);
    (void)e->driver.memory_release(r->handle);
    r->is_out = true;
    add(&seat->out_bytes, r->bytes);
  }
  end_batch(e, w, &seat->moved_out_bytes, &seat->moving_out_ns);
}

static void finish_in(orion_engine* e, orion_seat_device* seat, swap_device* w) {
  const uint64_t granted = load(&seat->backing_granted_bytes);
  for (uint32_t i = 0; i < w->batch_count; i++) {
    range* r = &e->ranges[w->batch[i]];
    r->is_out = false;
    add(&seat->out_bytes, -r->bytes);
    if (load(&seat->backing_bytes) > granted) drop_backing(e, seat, r);
  }
  end_batch(e, w, &seat->moved_in_bytes, &seat->moving_in_ns);
}

// ------------------------------------------------------------------------------------------------ one device
enum fill { FILL_NOTHING, FILL_SOME, FILL_FAILED };

/// The next range, at or after `w->next`, that is (not) on the GPU; 0: no more.
static uint32_t next_range(const orion_engine* e, uint32_t device, const swap_device* w, bool out) {
  for (uint32_t i = w->next; i < e->range_fresh; i++) {
    if (e->ranges[i].is_out == out && is_movable(e, device, &e->ranges[i])) return i;
  }
  return 0;
}

static enum fill fill_out(orion_engine* e, uint32_t device, orion_seat_device* seat) {
  swap_device* w = &e->swap.devices[device];
  while (w->batch_count < SWAP_BATCH) {
    const uint32_t index = next_range(e, device, w, false);
    if (!index) break;
    range* r = &e->ranges[index];
    if (w->batch_count && w->batch_bytes + r->bytes > BATCH_BYTES) break;
    if (r->backed_bytes < r->bytes) {
      if (w->batch_count) break;  // a copy is better begun before the next slow call
      return use_stream_of(e, device) && back_piece(e, seat, r) ? FILL_SOME : FILL_FAILED;
    }
    if (!use_stream_of(e, device) || !copy_range(e, w->stream, r, true)) return FILL_FAILED;
    put(e, w, index);
    w->next = index + 1;
  }
  return w->batch_count ? FILL_SOME : FILL_NOTHING;
}

static enum fill fill_in(orion_engine* e, uint32_t device) {
  swap_device* w = &e->swap.devices[device];
  while (w->batch_count < SWAP_BATCH) {
    const uint32_t index = next_range(e, device, w, true);
    if (!index) break;
    range* r = &e->ranges[index];
    if (w->batch_count && w->batch_bytes + r->bytes > BATCH_BYTES) break;
    if (!use_stream_of(e, device) || memory_back(e, r)) return w->batch_count ? FILL_SOME : FILL_FAILED;
    if (!copy_range(e, w->stream, r, false)) return FILL_FAILED;
    put(e, w, index);
    w->next = index + 1;
  }
  return w->batch_count ? FILL_SOME : FILL_NOTHING;
}

static void reached(orion_engine* e, orion_seat_device* seat, swap_device* w, enum swap_phase phase) {
  w->phase = phase;
  if (phase == SWAP_RESIDENT) store(&seat->wants_residency, 0);
  store(&seat->residency_done, w->wish);
  seat_ring(e);
}

static void failed(orion_engine* e, orion_seat_device* seat, swap_device* w) {
  w->phase = SWAP_GONE;
  store(&seat->residency_failed, w->wish);
  seat_ring(e);
}

static void begin(swap_device* w, enum swap_phase phase, uint64_t wish) {
  w->phase = phase;
  w->wish = wish;
  w->next = 1;
}

static bool leave(orion_engine* e, uint32_t device, orion_seat_device* seat, uint64_t wish) {
  swap_device* w = &e->swap.devices[device];
  if (w->batch_count) {
    int32_t result = 0;
    if (!batch_is_done(e, device, &result)) return false;
    finish_out(e, seat, w, result);
    if (result) engine_end(e, ORION_END_FAILED, "memory could not be copied to the host: CUresult %d", result);
    return true;
  }
  if (!is_out_wish(wish)) {  // wanted again meanwhile
    begin(w, SWAP_RETURNING, wish);
    return true;
  }
  switch (fill_out(e, device, seat)) {
    case FILL_SOME:
      return true;
    case FILL_FAILED:  // what has no place in the host's memory stays here
      engine_log(e, ENGINE_LOG_WARN, "no host memory for all that shall leave the GPU");
      store(&seat->residency_failed, w->wish);
      break;
    case FILL_NOTHING:
      break;
  }
  reached(e, seat, w, SWAP_GONE);
  return true;
}

static bool come_back(orion_engine* e, uint32_t device, orion_seat_device* seat) {
  swap_device* w = &e->swap.devices[device];
  if (w->batch_count) {
    int32_t result = 0;
    if (!batch_is_done(e, device, &result)) return false;
    finish_in(e, seat, w);
    if (result) engine_end(e, ORION_END_FAILED, "memory could not be copied back: CUresult %d", result);
    return true;
  }
  switch (fill_in(e, device)) {
    case FILL_SOME:
      return true;
    case FILL_FAILED:  // no room: orion-server makes some and asks again
      failed(e, seat, w);
      return true;
    case FILL_NOTHING:
      break;
  }
  reached(e, seat, w, SWAP_RESIDENT);
  return true;
}

static bool step(orion_engine* e, uint32_t device, orion_seat_device* seat, uint64_t wish) {
  swap_device* w = &e->swap.devices[device];
  switch (w->phase) {
    case SWAP_RESIDENT:
      begin(w, is_out_wish(wish) ? SWAP_ENDING : SWAP_RESIDENT, wish);
      if (w->phase == SWAP_RESIDENT) reached(e, seat, w, SWAP_RESIDENT);
      return true;
    case SWAP_ENDING:  // nothing new is issued any more; what was, ends
      if (!is_out_wish(wish)) {
        begin(w, SWAP_RESIDENT, wish);
        reached(e, seat, w, SWAP_RESIDENT);
        return true;
      }
      if (!e->swap.has_ticket) e->swap.has_ticket = order_take_ticket(e, 0, &e->swap.ticket);
      if (!e->swap.has_ticket || !order_ticket_reached(e, &e->swap.ticket) || direct_is_going(e)) {
        return false;
      }
      e->swap.has_ticket = false;
      w->phase = SWAP_LEAVING;
      return true;
    case SWAP_LEAVING:
      return leave(e, device, seat, wish);
    case SWAP_GONE:
      if (wish == w->wish) return false;
      if (is_out_wish(wish)) {
        begin(w, SWAP_LEAVING, wish);
      } else {
        begin(w, SWAP_RETURNING, wish);
      }
      return true;
    case SWAP_RETURNING:
      return come_back(e, device, seat);
  }
  return false;
}

bool swap_pass(orion_engine* e) {
  bool moved = false;
  uint32_t whole = 0;
  for (uint32_t i = 0; i < e->device_count && !e->end; i++) {
    orion_seat_device* seat = seat_device(e, i);
    swap_device* w = &e->swap.devices[i];
    const uint64_t wish = seat ? load(&seat->residency) : 0;
    if (seat && e->devices[i].reserved && (w->phase != SWAP_RESIDENT || wish != w->wish)) {
      moved |= step(e, i, seat, wish);
    }
    whole += w->phase == SWAP_RESIDENT;
  }
  e->swap.holds = whole != e->device_count;
  return moved;
}

// ------------------------------------------------------------------------------------------------ the rest
bool swap_holds(orion_engine* e, const orion_op* op) {
  if (!e->swap.holds) return false;
  const bool needs = (ORION_OP_INFO[op->code].flags & ORION_OPF_WORK) || op->code == ORION_OP_SHARE_EXPORT ||
                     op->code == ORION_OP_CTX_RESET || op->code == ORION_OP_CTX_DESTROY;
  if (!needs) return false;
  for (uint32_t i = 0; i < e->device_count; i++) {
    orion_seat_device* seat = seat_device(e, i);
    if (!seat || e->swap.devices[i].phase == SWAP_RESIDENT || load(&seat->wants_residency)) continue;
    store(&seat->wants_residency, 1);
    seat_ring(e);
  }
  return true;
}

void swap_stop(orion_engine* e) {
  for (uint32_t i = 0; i < e->device_count; i++) {
    swap_device* w = &e->swap.devices[i];
    if (!w->stream || e->driver.context_set_current(e->devices[i].primary)) continue;
    (void)e->driver.stream_synchronize(w->stream);
    (void)e->driver.stream_destroy(w->stream);
    *w = (swap_device){0};
  }
  order_ticket_free(&e->swap.ticket);
  e->swap.moving = 0;
  e->current_context = 0;
}
