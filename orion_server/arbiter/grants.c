// How much memory each worker may charge. The sum of a slice's grants is never above its quota: a grant that is lowered
// is counted as what the worker is seen to have charged afterwards. What has been granted is remembered here; the
// seat's own word for it could have been written by the worker.
#include "internal.h"

static uint64_t quota_of(const orion_arbiter* a, int slice) {
  const uint64_t quota_bytes = a->slices[slice].limits.quota_bytes;
  return quota_bytes ? quota_bytes : ORION_SEAT_NO_LIMIT;
}

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

/// Changes a word of the seat only where it differs: the worker reads the same cache line.
static void put_changed(_Atomic uint64_t* word, uint64_t value) {
  if (get(word) != value) put(word, value);
}

static bool has_slice(const seat* s, int gpu, int slice) { return s->is_used && s->places[gpu].slice == slice; }

uint64_t grants_charged(const orion_arbiter* a, int slice) {
  const int gpu = a->slices[slice].gpu;
  uint64_t sum = 0;
  for (uint32_t i = 0; i < a->seat_count; i++) {
    if (!has_slice(&a->seats[i], gpu, slice)) continue;
    const uint64_t charged = get(&seat_at(&a->seats[i], gpu)->charged_bytes);
    sum = charged > UINT64_MAX - sum ? UINT64_MAX : sum + charged;
  }
  return sum;
}

uint64_t grants_held(orion_arbiter* a, uint32_t index, int gpu) {
  place* p = &a->seats[index].places[gpu];
  // What is above the quota since that was lowered can only become less: such a worker charges nothing without asking.
  if (p->overdrawn_bytes) {
    p->overdrawn_bytes = least(p->overdrawn_bytes, get(&seat_at(&a->seats[index], gpu)->charged_bytes));
  }
  return p->granted_bytes > p->overdrawn_bytes ? p->granted_bytes : p->overdrawn_bytes;
}

static uint64_t held_sum(orion_arbiter* a, int slice) {
  const int gpu = a->slices[slice].gpu;
  uint64_t sum = 0;
  for (uint32_t i = 0; i < a->seat_count; i++) {
    if (!has_slice(&a->seats[i], gpu, slice)) continue;
    const uint64_t held = grants_held(a, i, gpu);
    sum = held > UINT64_MAX - sum ? UINT64_MAX : sum + held;
  }
  return sum;
}

static uint32_t seats_of(const orion_arbiter* a, int slice) {
  uint32_t count = 0;
  for (uint32_t i = 0; i < a->seat_count; i++) count += has_slice(&a->seats[i], a->slices[slice].gpu, slice);
  return count;
}

static void set_granted(orion_arbiter* a, uint32_t index, int gpu, uint64_t bytes) {
  seat* s = &a->seats[index];
  if (s->places[gpu].granted_bytes == bytes) return;
  s->places[gpu].granted_bytes = bytes;
  put(&seat_at(s, gpu)->granted_bytes, bytes);
  s->has_changed = true;
}

uint64_t grants_reclaim(orion_arbiter* a, uint32_t index, int gpu) {
  const seat* s = &a->seats[index];
  const uint64_t before = s->places[gpu].granted_bytes;
  const uint64_t charged = least(get(&seat_at(s, gpu)->charged_bytes), before);
  if (charged == before) return before;
  set_granted(a, index, gpu, charged);
  // A charge that was made before it could see the lower grant stands.
  const uint64_t again = get(&seat_at(s, gpu)->charged_bytes);
  if (again > charged) set_granted(a, index, gpu, least(again, before));
  return s->places[gpu].granted_bytes;
}

void grants_begin(orion_arbiter* a, uint32_t index, int gpu) {
  seat* s = &a->seats[index];
  const int slice = s->places[gpu].slice;
  orion_seat_device* d = seat_at(s, gpu);
  put(&d->quota_bytes, a->slices[slice].limits.quota_bytes);
  s->places[gpu].answered = get(&d->answered);
  // The first of a slice gets it whole; a second one asks, as does everybody on a GPU with a capacity.
  const bool is_first = seats_of(a, slice) == 1 && !a->gpus[gpu].capacity_bytes;
  s->places[gpu].granted_bytes = is_first || quota_of(a, slice) == ORION_SEAT_NO_LIMIT ? quota_of(a, slice) : 0;
  put(&d->granted_bytes, s->places[gpu].granted_bytes);
  put(&s->memory->pinned_granted_bytes,
      a->slices[slice].limits.pinned_bytes ? a->slices[slice].limits.pinned_bytes : ORION_SEAT_NO_LIMIT);
  grants_tell_others(a, slice);
  s->has_changed = true;
}

void grants_tell_others(orion_arbiter* a, int slice) {
  const int gpu = a->slices[slice].gpu;
  const uint64_t all = grants_charged(a, slice);
  for (uint32_t i = 0; i < a->seat_count; i++) {
    seat* s = &a->seats[i];
    if (!has_slice(s, gpu, slice)) continue;
    const uint64_t own = get(&seat_at(s, gpu)->charged_bytes);
    put_changed(&seat_at(s, gpu)->others_bytes, all > own ? all - own : 0);
    put_changed(&seat_at(s, gpu)->quota_bytes, a->slices[slice].limits.quota_bytes);
  }
}

/// Reads the seat's request. False: there is none.
static bool is_asking(orion_arbiter* a, uint32_t index, int gpu) {
  place* p = &a->seats[index].places[gpu];
  const orion_seat_device* d = seat_at(&a->seats[index], gpu);
  // The number first: a request that comes between the two is answered once more.
  p->asked = get(&d->asked);
  p->asked_bytes = get(&d->asked_bytes);
  return p->asked != p->answered;
}

static void answer(orion_arbiter* a, uint32_t index, int gpu) {
  seat* s = &a->seats[index];
  s->places[gpu].answered = s->places[gpu].asked;
  put(&seat_at(s, gpu)->answered, s->places[gpu].answered);
  s->has_changed = true;
}

uint64_t grants_wanted(orion_arbiter* a, uint32_t index, int gpu) {
  if (!is_asking(a, index, gpu)) return 0;
  const uint64_t bytes = a->seats[index].places[gpu].asked_bytes, held = grants_held(a, index, gpu);
  return bytes > held ? bytes - held : 0;
}

void grants_allow(orion_arbiter* a, uint32_t index, int gpu, uint64_t bytes) {
  if (bytes) {
    set_granted(a, index, gpu, grants_held(a, index, gpu) + bytes);
    a->seats[index].places[gpu].overdrawn_bytes = 0;
  }
  answer(a, index, gpu);
}

void grants_refuse(orion_arbiter* a, uint32_t index, int gpu) { answer(a, index, gpu); }

/// What of the quota nobody has been granted, after taking from the others what they do not use where it is needed.
static uint64_t room_for(orion_arbiter* a, int slice, uint32_t index, uint64_t wanted) {
  const int gpu = a->slices[slice].gpu;
  const uint64_t quota = quota_of(a, slice);
  uint64_t sum = held_sum(a, slice);
  for (uint32_t i = 0; i < a->seat_count && (sum > quota || quota - sum < wanted); i++) {
    if (i == index || !has_slice(&a->seats[i], gpu, slice)) continue;
    (void)grants_reclaim(a, i, gpu);
    sum = held_sum(a, slice);
  }
  return sum < quota ? quota - sum : 0;
}

void grants_answer(orion_arbiter* a, int slice) {
  const int gpu = a->slices[slice].gpu;
  // First: who asks may want to know no more than this.
  grants_tell_others(a, slice);
  for (uint32_t i = 0; i < a->seat_count; i++) {
    if (!has_slice(&a->seats[i], gpu, slice) || !is_asking(a, i, gpu)) continue;
    const uint64_t wanted = grants_wanted(a, i, gpu);
    const uint64_t room = wanted ? room_for(a, slice, i, wanted) : 0;
    if (wanted > room) {
      grants_refuse(a, i, gpu);
    } else if (!a->gpus[gpu].capacity_bytes) {
      const uint64_t stepped = (wanted + GRANT_STEP_BYTES - 1) / GRANT_STEP_BYTES * GRANT_STEP_BYTES;
      grants_allow(a, i, gpu, wanted ? least(stepped, room) : 0);
    }
  }
}

/// The slice has more than its new quota: no worker charges anything any more before it has asked, and is granted what
/// the others have left.
static void overdraw(orion_arbiter* a, int slice) {
  const int gpu = a->slices[slice].gpu;
  for (uint32_t i = 0; i < a->seat_count; i++) {
    if (!has_slice(&a->seats[i], gpu, slice)) continue;
    a->seats[i].places[gpu].overdrawn_bytes = grants_held(a, i, gpu);
    set_granted(a, i, gpu, 0);
  }
}

bool grants_resize(orion_arbiter* a, int slice, uint64_t quota_bytes, int shrink) {
  const int gpu = a->slices[slice].gpu;
  const uint64_t wanted = quota_bytes ? quota_bytes : ORION_SEAT_NO_LIMIT;
  uint64_t before[SEATS_MAX] = {0};
  for (uint32_t i = 0; i < a->seat_count; i++) {
    if (!has_slice(&a->seats[i], gpu, slice)) continue;
    before[i] = a->seats[i].places[gpu].granted_bytes;
    (void)grants_reclaim(a, i, gpu);
  }
  const bool is_over = held_sum(a, slice) > wanted;
  if ((is_over || grants_charged(a, slice) > wanted) && shrink == ORION_SHRINK_REFUSE) {
    for (uint32_t i = 0; i < a->seat_count; i++) {
      if (has_slice(&a->seats[i], gpu, slice)) set_granted(a, i, gpu, before[i]);
    }
    return false;
  }
  a->slices[slice].limits.quota_bytes = quota_bytes;
  // One alone has it all, also where that is less than it has charged.
  const bool is_single = seats_of(a, slice) == 1 && !a->gpus[gpu].capacity_bytes;
  if (is_over && !is_single) overdraw(a, slice);
  for (uint32_t i = 0; i < a->seat_count; i++) {
    if (!has_slice(&a->seats[i], gpu, slice)) continue;
    const bool has_all = is_single || !quota_bytes;
    if (has_all || !is_over) {
      const uint64_t held = grants_held(a, i, gpu);
      a->seats[i].places[gpu].overdrawn_bytes = 0;
      set_granted(a, i, gpu, has_all ? wanted : held);
    }
    a->seats[i].has_changed = true;
  }
  grants_tell_others(a, slice);
  return true;
}
