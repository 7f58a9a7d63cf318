// The ledger of device memory and pinned memory.
#include "ledger.h"

#include <time.h>

#include "seat.h"

#define ANSWER_WAIT_NS 1000000000ull
#define ANSWER_NOW_NS 20000000ull
#define LOOK_NS 20000u
#define STACK_DEFAULT_BYTES 1024u
#define FUNCTION_MOST_BYTES (64ull << 20)  // one may bring the rest of its module with it
#define PAGE_BYTES (64ull << 10)
#define TILE_ROW_BYTES 64u
#define TILE_ROWS 128u
#define ELEMENT_MOST_BYTES 16u
#define LIMIT_STACK 0u
#define LIMIT_HEAP 2u

static uint64_t load(const _Atomic uint64_t* from) { return atomic_load_explicit(from, memory_order_seq_cst); }

/// For people, hence written by this thread alone and without order.
static void note_kind(orion_seat_device* s, enum orion_memory_kind kind, uint64_t bytes) {
  STAT_ADD(s, kind_bytes[kind], bytes);
}

static bool is_limited(const orion_seat_device* s) { return s && load(&s->granted_bytes) != ORION_SEAT_NO_LIMIT; }

// ------------------------------------------------------------------------------------------------ charging
/// Adds, then looks: a grant that is lowered meanwhile is seen here, or what was added is seen by orion-server. What
/// does not fit is not added even for a moment, but in that race.
static bool try_charge(orion_seat_device* s, enum orion_memory_kind kind, uint64_t bytes) {
  const uint64_t charged = load(&s->charged_bytes), granted = load(&s->granted_bytes);
  if (charged > granted || bytes > granted - charged) return false;
  const uint64_t sum = atomic_fetch_add_explicit(&s->charged_bytes, bytes, memory_order_seq_cst) + bytes;
  if (sum > load(&s->granted_bytes)) {
    atomic_fetch_sub_explicit(&s->charged_bytes, bytes, memory_order_seq_cst);
    return false;
  }
  note_kind(s, kind, bytes);
  return true;
}

/// Whether orion-server could grant more: another worker of the vGPU may have what it does not use. A quota that this
/// worker has all of is final.
static bool may_grow(const orion_seat_device* s, uint64_t bytes) {
  const uint64_t quota = load(&s->quota_bytes), charged = load(&s->charged_bytes), granted = load(&s->granted_bytes);
  if (granted == ORION_SEAT_NO_LIMIT || (quota && (charged > quota || bytes > quota - charged))) return false;
  return load(&s->others_bytes) > 0 || !quota || granted < quota;
}

static void ask(orion_engine* e, orion_seat_device* s, uint64_t bytes) {
  atomic_store_explicit(&s->asked_bytes, load(&s->charged_bytes) + bytes, memory_order_seq_cst);
  atomic_fetch_add_explicit(&s->asked, 1, memory_order_seq_cst);
  seat_ring(e);
}

static bool is_answered(const orion_seat_device* s, const ledger_question* q) {
  return load(&s->answered) >= q->number;
}

/// Names an operation, over all its tries: no two that wait have the same.
static uint64_t key_of(const orion_op* op) { return op->reply_seq << 16 ^ op->reply_slot ^ 1ull << 63; }

int32_t ledger_charge(orion_engine* e, const orion_op* op, uint32_t device, enum orion_memory_kind kind,
                      uint64_t bytes) {
  orion_seat_device* s = seat_device(e, device);
  if (!s) return 0;
  ledger_question* q = &e->ledger.questions[device];
  const uint64_t key = key_of(op), now_ns = engine_now_ns();
  const bool is_mine = q->key == key;
  // In this order: a grant that came with the answer is seen.
  const bool answered = is_mine && is_answered(s, q);
  const bool charged = try_charge(s, kind, bytes);
  if (charged || answered || !may_grow(s, bytes) || (is_mine && now_ns >= q->deadline_ns)) {
    if (is_mine) q->key = 0;
    return charged ? 0 : CUDA_ERROR_OUT_OF_MEMORY;
  }
  // One question at a time: another's stands until its operation has come for the answer, or is too late for it.
  if (is_mine || (q->key && now_ns < q->deadline_ns)) return LEDGER_WAITS;
  ask(e, s, bytes);
  *q = (ledger_question){key, load(&s->asked), now_ns + ANSWER_WAIT_NS};
  return LEDGER_WAITS;
}

bool ledger_answered(const orion_engine* e) {
  for (uint32_t i = 0; i < e->device_count; i++) {
    const ledger_question* q = &e->ledger.questions[i];
    const orion_seat_device* s = q->key ? seat_device(e, i) : NULL;
    if (s && (is_answered(s, q) || engine_now_ns() >= q->deadline_ns)) return true;
  }
  return false;
}

int32_t ledger_charge_now(orion_engine* e, uint32_t device, enum orion_memory_kind kind, uint64_t bytes) {
  orion_seat_device* s = seat_device(e, device);
  if (!s || try_charge(s, kind, bytes)) return 0;
  const uint64_t until_ns = engine_now_ns() + ANSWER_NOW_NS;
  const struct timespec look = {0, LOOK_NS};
  // A question that is on its way is answered first: its operation must not take this answer for its own.
  while (may_grow(s, bytes) && load(&s->answered) != load(&s->asked) && engine_now_ns() < until_ns) {
    nanosleep(&look, NULL);
  }
  if (!may_grow(s, bytes) || load(&s->answered) != load(&s->asked)) return CUDA_ERROR_OUT_OF_MEMORY;
  ask(e, s, bytes);
  while (load(&s->answered) != load(&s->asked) && engine_now_ns() < until_ns) nanosleep(&look, NULL);
  return try_charge(s, kind, bytes) ? 0 : CUDA_ERROR_OUT_OF_MEMORY;
}

void ledger_uncharge(orion_engine* e, uint32_t device, enum orion_memory_kind kind, uint64_t bytes) {
  orion_seat_device* s = bytes ? seat_device(e, device) : NULL;
  if (!s) return;
  atomic_fetch_sub_explicit(&s->charged_bytes, bytes, memory_order_seq_cst);
  note_kind(s, kind, -bytes);
}

bool ledger_pin(orion_engine* e, uint64_t bytes) {
  orion_seat* s = e->seat;
  if (!s) return true;
  const uint64_t pinned = load(&s->pinned_bytes), granted = load(&s->pinned_granted_bytes);
  if (pinned > granted || bytes > granted - pinned) return false;
  atomic_store_explicit(&s->pinned_bytes, pinned + bytes, memory_order_seq_cst);
  return true;
}

void ledger_unpin(orion_engine* e, uint64_t bytes) {
  if (e->seat) atomic_fetch_sub_explicit(&e->seat->pinned_bytes, bytes, memory_order_seq_cst);
}

// ------------------------------------------------------------------------------------------------ measuring
ledger_mark ledger_begin(const orion_engine* e, uint32_t device) {
  size_t free_bytes = 0, total_bytes = 0;
  if (!is_limited(seat_device(e, device)) || e->driver.memory_info(&free_bytes, &total_bytes)) return (ledger_mark){0};
  return (ledger_mark){free_bytes, true};
}

static uint64_t taken_since(const orion_engine* e, ledger_mark mark, uint64_t most_bytes) {
  size_t free_bytes = 0, total_bytes = 0;
  if (!mark.taken || e->driver.memory_info(&free_bytes, &total_bytes)) return 0;
  const uint64_t taken_bytes = free_bytes < mark.free_bytes ? mark.free_bytes - free_bytes : 0;
  return taken_bytes < most_bytes ? taken_bytes : most_bytes;
}

int32_t ledger_settle(orion_engine* e, uint32_t device, enum orion_memory_kind kind, ledger_mark mark,
                      uint64_t most_bytes, uint64_t* charged_bytes) {
  const uint64_t bytes = taken_since(e, mark, most_bytes);
  const int32_t result = bytes ? ledger_charge_now(e, device, kind, bytes) : 0;
  if (!result) *charged_bytes += bytes;
  return result;
}

int32_t ledger_settle_anyway(orion_engine* e, uint32_t device, enum orion_memory_kind kind, ledger_mark mark,
                             uint64_t most_bytes, uint64_t* charged_bytes) {
  const uint64_t bytes = taken_since(e, mark, most_bytes);
  const int32_t result = bytes ? ledger_charge_now(e, device, kind, bytes) : 0;
  if (result) {
    orion_seat_device* s = seat_device(e, device);
    atomic_fetch_add_explicit(&s->charged_bytes, bytes, memory_order_seq_cst);
    note_kind(s, kind, bytes);
  }
  *charged_bytes += bytes;
  return result;
}

int32_t ledger_function(orion_engine* e, uint32_t module, ledger_mark mark) {
  module_state* m = &e->modules[module];
  return ledger_settle_anyway(e, e->contexts[m->context].device, ORION_MEMORY_MODULE, mark, FUNCTION_MOST_BYTES,
                              &m->charged_bytes);
}

// ------------------------------------------------------------------------------------------------ arrays
static uint64_t rounded(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

static uint64_t element_bytes(const CUDA_ARRAY3D_DESCRIPTOR* d) {
  switch ((int)d->Format) {
    case 0x01:  // integers of 8, 16 and 32 bits
    case 0x08:
      return d->NumChannels;
    case 0x02:
    case 0x09:
    case 0x10:  // half
      return 2ull * d->NumChannels;
    case 0x03:
    case 0x0a:
    case 0x20:  // float
      return 4ull * d->NumChannels;
    default:  // blocks, planes, normalised: none has more
      return ELEMENT_MOST_BYTES;
  }
}

// The driver stores arrays in tiles, 64 bytes wide and at most 128 rows high, of which a flat array has fewer: the rows
// are rounded to the next power of two up to there.
uint64_t ledger_array_bytes(const CUDA_ARRAY3D_DESCRIPTOR* d, uint32_t levels) {
  const bool layered = d->Flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP);
  uint64_t width = d->Width, height = d->Height ? d->Height : 1, depth = d->Depth ? d->Depth : 1, sum = 0;
  for (uint32_t level = 0; level < (levels ? levels : 1); level++) {
    uint64_t tile_rows = 1, bytes;
    while (tile_rows < height && tile_rows < TILE_ROWS) tile_rows *= 2;
    if (__builtin_mul_overflow(rounded(width * element_bytes(d), TILE_ROW_BYTES), rounded(height, tile_rows), &bytes) ||
        __builtin_mul_overflow(bytes, depth, &bytes) || __builtin_add_overflow(sum, bytes, &sum)) {
      return UINT64_MAX;
    }
    width = width > 1 ? width / 2 : 1;
    height = height > 1 ? height / 2 : 1;
    if (!layered) depth = depth > 1 ? depth / 2 : 1;
  }
  return sum > SLOT_MAX_BYTES ? UINT64_MAX : rounded(sum, PAGE_BYTES);
}

// ------------------------------------------------------------------------------------------------ contexts
/// Threads that the device can hold at once: each has a stack, on which a kernel's local memory lies.
static uint64_t resident_threads(orion_engine* e, uint32_t device) {
  uint64_t* known = &e->ledger.threads[device];
  const CUdevice ordinal = (CUdevice)e->devices[device].ordinal;
  int processors = 0, threads = 0;
  if (!*known && !e->driver.device_attribute(&processors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, ordinal) &&
      !e->driver.device_attribute(&threads, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, ordinal)) {
    *known = (uint64_t)processors * (uint64_t)threads;
  }
  return *known;
}

/// What a thread has on its stack without more memory.
static uint64_t stack_bytes(const orion_engine* e, uint32_t context) {
  const ledger_context* c = &e->ledger.contexts[context];
  size_t limit = 0;
  if (e->driver.context_get_limit(&limit, LIMIT_STACK) || limit < STACK_DEFAULT_BYTES) limit = STACK_DEFAULT_BYTES;
  return c->local_bytes > limit ? c->local_bytes : limit;
}

int32_t ledger_local_grow(orion_engine* e, uint32_t context, uint32_t local_bytes) {
  ledger_context* c = &e->ledger.contexts[context];
  const uint32_t device = e->contexts[context].device;
  const uint64_t there = is_limited(seat_device(e, device)) ? stack_bytes(e, context) : UINT64_MAX;
  const uint64_t bytes =
      local_bytes > there ? rounded((local_bytes - there) * resident_threads(e, device), PAGE_BYTES) : 0;
  const int32_t result = bytes ? ledger_charge_now(e, device, ORION_MEMORY_MODULE, bytes) : 0;
  if (result) return result;
  c->local_bytes = local_bytes;
  c->local_charged_bytes += bytes;
  return 0;
}

/// What raising a limit takes at least, now or at the next launch.
static uint64_t limit_growth(orion_engine* e, uint32_t context, uint32_t limit, uint64_t from, uint64_t to) {
  if (limit == LIMIT_STACK) {
    const uint64_t there = stack_bytes(e, context);
    // No thread may have so much: the driver refuses it.
    if (to <= there || to > UINT32_MAX) return 0;
    return rounded((to - there) * resident_threads(e, e->contexts[context].device), PAGE_BYTES);
  }
  return limit <= LIMIT_HEAP && to > from ? rounded(to - from, PAGE_BYTES) : 0;
}

static void lower_limit(orion_engine* e, uint32_t context, uint32_t limit, uint64_t value, ledger_mark mark) {
  ledger_context* c = &e->ledger.contexts[context];
  const uint32_t device = e->contexts[context].device;
  const ledger_mark now = ledger_begin(e, device);
  uint64_t given_bytes = mark.taken && now.free_bytes > mark.free_bytes ? now.free_bytes - mark.free_bytes : 0;
  const bool is_as_before = c->limits_changed & 1u << limit && value <= c->limit_before[limit];
  if (is_as_before || given_bytes > c->limit_charged_bytes[limit]) given_bytes = c->limit_charged_bytes[limit];
  c->limit_charged_bytes[limit] -= given_bytes;
  ledger_uncharge(e, device, ORION_MEMORY_LIMIT, given_bytes);
}

int32_t ledger_set_limit(orion_engine* e, uint32_t context, uint32_t limit, uint64_t value) {
  ledger_context* c = &e->ledger.contexts[context];
  const uint32_t device = e->contexts[context].device;
  size_t before = 0;
  const bool counts = seat_device(e, device) && limit < LEDGER_LIMITS && !e->driver.context_get_limit(&before, limit);
  if (!counts) return (int32_t)e->driver.context_set_limit(limit, value);
  const ledger_mark mark = ledger_begin(e, device);
  uint64_t charged_bytes = mark.taken ? limit_growth(e, context, limit, before, value) : 0;
  int32_t result = charged_bytes ? ledger_charge_now(e, device, ORION_MEMORY_LIMIT, charged_bytes) : 0;
  if (result) return result;
  result = (int32_t)e->driver.context_set_limit(limit, value);
  if (!result && mark.taken) {
    // What the driver took beyond that.
    const ledger_mark rest = {mark.free_bytes > charged_bytes ? mark.free_bytes - charged_bytes : 0, true};
    result = ledger_settle(e, device, ORION_MEMORY_LIMIT, rest, SLOT_MAX_BYTES, &charged_bytes);
    if (result) (void)e->driver.context_set_limit(limit, before);
  }
  if (result) {
    ledger_uncharge(e, device, ORION_MEMORY_LIMIT, charged_bytes);
    return result;
  }
  if (!(c->limits_changed & 1u << limit)) c->limit_before[limit] = before;
  c->limits_changed |= 1u << limit;
  c->limit_charged_bytes[limit] += charged_bytes;
  if (value < before) lower_limit(e, context, limit, value, mark);
  return 0;
}

static void uncharge_limits(orion_engine* e, uint32_t context) {
  ledger_context* c = &e->ledger.contexts[context];
  for (uint32_t limit = 0; limit < LEDGER_LIMITS; limit++) {
    ledger_uncharge(e, e->contexts[context].device, ORION_MEMORY_LIMIT, c->limit_charged_bytes[limit]);
    c->limit_charged_bytes[limit] = 0;
  }
  c->limits_changed = 0;
}

void ledger_reset_limits(orion_engine* e, uint32_t context) {
  const ledger_context* c = &e->ledger.contexts[context];
  for (uint32_t limit = 0; limit < LEDGER_LIMITS; limit++) {
    if (c->limits_changed & 1u << limit) (void)e->driver.context_set_limit(limit, c->limit_before[limit]);
  }
  uncharge_limits(e, context);
}

void ledger_context_end(orion_engine* e, uint32_t context) {
  ledger_context* c = &e->ledger.contexts[context];
  const uint32_t device = e->contexts[context].device;
  uncharge_limits(e, context);
  ledger_uncharge(e, device, ORION_MEMORY_MODULE, c->local_charged_bytes);
  ledger_uncharge(e, device, ORION_MEMORY_CONTEXT, c->own_bytes);
  *c = (ledger_context){0};
}

// ------------------------------------------------------------------------------------------------ the program's view
static uint64_t less(uint64_t bytes, uint64_t taken_bytes) { return bytes > taken_bytes ? bytes - taken_bytes : 0; }

bool ledger_view(const orion_engine* e, uint32_t device, uint64_t* free_bytes, uint64_t* total_bytes) {
  const orion_seat_device* s = seat_device(e, device);
  const uint64_t quota = s ? load(&s->quota_bytes) : 0;
  if (!quota) return false;
  *total_bytes = quota;
  *free_bytes =
      less(less(quota, load(&s->others_bytes)), load(&s->charged_bytes)) / ORION_CHUNK_BYTES * ORION_CHUNK_BYTES;
  return true;
}

void ledger_device_memory(orion_engine* e, const orion_op* op) {
  const orion_op_device_memory* o = (const orion_op_device_memory*)op;
  uint32_t device = 0;
  while (device < e->device_count && (e->devices[device].ordinal != o->device || !e->devices[device].reserved))
    device++;
  orion_reply_device_memory reply = {0};
  const bool exists = device < e->device_count;
  if (exists) (void)ledger_view(e, device, &reply.free_bytes, &reply.quota_bytes);
  answer_reply(e, op, exists ? 0 : CUDA_ERROR_INVALID_DEVICE, &reply, sizeof reply);
}
