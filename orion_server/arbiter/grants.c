// How much memory each worker may charge. The sum of a slice's grants is never above its quota: a grant that is lowered
// is counted as what the worker is seen to have charged afterwards.
#include "internal.h"

static uint64_t quota_of(const orion_arbiter* a, int slice) {
  const uint64_t quota_bytes = a->slices[slice].limits.quota_bytes;
  return quota_bytes ? quota_bytes : ORION_SEAT_NO_LIMIT;
}

/// What the worker has charged: no more than it has ever been granted counts, whatever it says.
static uint64_t charged_of(const seat* s, int gpu) {
  const uint64_t charged = get(&seat_at(s, gpu)->charged_bytes), granted = get(&seat_at(s, gpu)->granted_bytes);
  return charged < granted ? charged : granted;
}

static bool has_slice(const seat* s, int gpu, int slice) { return s->is_used && s->places[gpu].slice == slice; }

uint64_t grants_charged(const orion_arbiter* a, int slice) {
  const int gpu = a->slices[slice].gpu;
  uint64_t sum = 0;
  for (uint32_t i = 0; i < SEATS_MAX; i++) {
    if (!has_slice(&a->seats[i], gpu, slice)) continue;
    const uint64_t charged = get(&seat_at(&a->seats[i], gpu)->charged_bytes);
    sum = charged > UINT64_MAX - sum ? UINT64_MAX : sum + charged;
  }
  return sum;
}

static uint64_t granted_sum(const orion_arbiter* a, int slice) {
  const int gpu = a->slices[slice].gpu;
  uint64_t sum = 0;
  for (uint32_t i = 0; i < SEATS_MAX; i++) {
    if (!has_slice(&a->seats[i], gpu, slice)) continue;
    const uint64_t granted = get(&seat_at(&a->seats[i], gpu)->granted_bytes);
    sum = granted > UINT64_MAX - sum ? UINT64_MAX : sum + granted;
  }
  return sum;
}

static uint32_t seats_of(const orion_arbiter* a, int slice) {
  uint32_t count = 0;
  for (uint32_t i = 0; i < SEATS_MAX; i++) count += has_slice(&a->seats[i], a->slices[slice].gpu, slice);
  return count;
}

static void set_granted(orion_arbiter* a, uint32_t index, int gpu, uint64_t bytes) {
  seat* s = &a->seats[index];
  if (get(&seat_at(s, gpu)->granted_bytes) == bytes) return;
  put(&seat_at(s, gpu)->granted_bytes, bytes);
  s->has_changed = true;
}

uint64_t grants_reclaim(orion_arbiter* a, uint32_t index, int gpu) {
  const seat* s = &a->seats[index];
  const uint64_t before = get(&seat_at(s, gpu)->granted_bytes), charged = charged_of(s, gpu);
  if (charged == before) return before;
  set_granted(a, index, gpu, charged);
  // A charge that was made before it could see the lower grant stands.
  const uint64_t again = get(&seat_at(s, gpu)->charged_bytes);
  if (again > charged) set_granted(a, index, gpu, again < before ? again : before);
  return get(&seat_at(s, gpu)->granted_bytes);
}

void grants_begin(orion_arbiter* a, uint32_t index, int gpu) {
  seat* s = &a->seats[index];
  const int slice = s->places[gpu].slice;
  orion_seat_device* d = seat_at(s, gpu);
  put(&d->quota_bytes, a->slices[slice].limits.quota_bytes);
  put(&d->backing_granted_bytes, a->gpus[gpu].backing_bytes);
  // The first of a slice gets it whole; a second one asks, as does everybody on a GPU with a capacity.
  const bool is_first = seats_of(a, slice) == 1 && !a->gpus[gpu].capacity_bytes;
  set_granted(a, index, gpu, is_first || quota_of(a, slice) == ORION_SEAT_NO_LIMIT ? quota_of(a, slice) : 0);
  put(&s->memory->pinned_granted_bytes,
      a->slices[slice].limits.pinned_bytes ? a->slices[slice].limits.pinned_bytes : ORION_SEAT_NO_LIMIT);
  grants_tell_others(a, slice);
  s->has_changed = true;
}

void grants_tell_others(orion_arbiter* a, int slice) {
  const int gpu = a->slices[slice].gpu;
  const uint64_t all = grants_charged(a, slice);
  for (uint32_t i = 0; i < SEATS_MAX; i++) {
    seat* s = &a->seats[i];
    if (!has_slice(s, gpu, slice)) continue;
    const uint64_t own = get(&seat_at(s, gpu)->charged_bytes);
    put(&seat_at(s, gpu)->others_bytes, all > own ? all - own : 0);
    put(&seat_at(s, gpu)->quota_bytes, a->slices[slice].limits.quota_bytes);
  }
}

/// Number and total of an open request. False: none.
static bool open_request(const seat* s, int gpu, uint64_t* number, uint64_t* bytes) {
  const orion_seat_device* d = seat_at(s, gpu);
  *number = get(&d->asked);
  *bytes = get(&d->asked_bytes);
  return *number != get(&d->answered);
}

static void answer(orion_arbiter* a, uint32_t index, int gpu) {
  seat* s = &a->seats[index];
  put(&seat_at(s, gpu)->answered, get(&seat_at(s, gpu)->asked));
  s->has_changed = true;
}

uint64_t grants_wanted(const orion_arbiter* a, uint32_t index, int gpu) {
  const seat* s = &a->seats[index];
  uint64_t number = 0, bytes = 0;
  if (!open_request(s, gpu, &number, &bytes)) return 0;
  const uint64_t granted = get(&seat_at(s, gpu)->granted_bytes);
  return bytes > granted ? bytes - granted : 0;
}

void grants_allow(orion_arbiter* a, uint32_t index, int gpu, uint64_t bytes) {
  set_granted(a, index, gpu, get(&seat_at(&a->seats[index], gpu)->granted_bytes) + bytes);
  answer(a, index, gpu);
}

void grants_refuse(orion_arbiter* a, uint32_t index, int gpu) { answer(a, index, gpu); }

/// What of the quota nobody has been granted, after taking from the others what they do not use where it is needed.
static uint64_t room_for(orion_arbiter* a, int slice, uint32_t index, uint64_t wanted) {
  const int gpu = a->slices[slice].gpu;
  const uint64_t quota = quota_of(a, slice);
  uint64_t sum = granted_sum(a, slice);
  for (uint32_t i = 0; i < SEATS_MAX && (sum > quota || quota - sum < wanted); i++) {
    if (i == index || !has_slice(&a->seats[i], gpu, slice)) continue;
    const uint64_t before = get(&seat_at(&a->seats[i], gpu)->granted_bytes);
    sum -= before - grants_reclaim(a, i, gpu);
  }
  return sum < quota ? quota - sum : 0;
}

void grants_answer(orion_arbiter* a, int slice) {
  const int gpu = a->slices[slice].gpu;
  for (uint32_t i = 0; i < SEATS_MAX; i++) {
    uint64_t number = 0, bytes = 0;
    if (!has_slice(&a->seats[i], gpu, slice) || !open_request(&a->seats[i], gpu, &number, &bytes)) continue;
    const uint64_t wanted = grants_wanted(a, i, gpu);
    const uint64_t room = wanted ? room_for(a, slice, i, wanted) : 0;
    if (wanted > room) {
      grants_refuse(a, i, gpu);
    } else if (!a->gpus[gpu].capacity_bytes) {
      const uint64_t stepped = (wanted + GRANT_STEP_BYTES - 1) / GRANT_STEP_BYTES * GRANT_STEP_BYTES;
      grants_allow(a, i, gpu, stepped < room ? stepped : room);
    }
  }
  grants_tell_others(a, slice);
}

bool grants_resize(orion_arbiter* a, int slice, uint64_t quota_bytes, int shrink) {
  const int gpu = a->slices[slice].gpu;
  const uint64_t wanted = quota_bytes ? quota_bytes : ORION_SEAT_NO_LIMIT;
  uint64_t grants_before[SEATS_MAX] = {0}, sum = 0;
  const bool is_single = seats_of(a, slice) == 1 && !a->gpus[gpu].capacity_bytes;
  for (uint32_t i = 0; i < SEATS_MAX; i++) {
    if (!has_slice(&a->seats[i], gpu, slice)) continue;
    grants_before[i] = get(&seat_at(&a->seats[i], gpu)->granted_bytes);
    sum += grants_reclaim(a, i, gpu);
  }
  if ((sum > wanted || grants_charged(a, slice) > wanted) && shrink == ORION_SHRINK_REFUSE) {
    for (uint32_t i = 0; i < SEATS_MAX; i++) {
      if (has_slice(&a->seats[i], gpu, slice)) set_granted(a, i, gpu, grants_before[i]);
    }
    return false;
  }
  a->slices[slice].limits.quota_bytes = quota_bytes;
  for (uint32_t i = 0; i < SEATS_MAX; i++) {
    if (!has_slice(&a->seats[i], gpu, slice)) continue;
    if (is_single || wanted == ORION_SEAT_NO_LIMIT) set_granted(a, i, gpu, wanted);
    a->seats[i].has_changed = true;
  }
  grants_tell_others(a, slice);
  return true;
}
