// What is complete: a private counter for each stream, written by the GPU into a page that no client maps.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "internal.h"
#include "launcher.h"

#define FAULT_CHECK_NS 2000000ull
#define FAULT_CHECK_STREAMS 64u

bool order_init(orion_engine* e) {
  void* page = mmap(NULL, TRACK_COUNT * sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return false;
  e->done = page;
  e->tracks = calloc(TRACK_COUNT, sizeof *e->tracks);
  e->free_tracks = malloc(TRACK_COUNT * sizeof *e->free_tracks);
  e->fresh_track = 1;
  return e->tracks && e->free_tracks;
}

void order_free(orion_engine* e) {
  if (e->done) munmap((void*)e->done, TRACK_COUNT * sizeof(uint64_t));
  free(e->tracks);
  free(e->free_tracks);
}

uint32_t order_track_open(orion_engine* e, CUstream stream, uint32_t context) {
  uint32_t index = 0;
  if (e->free_track_count) {
    index = e->free_tracks[--e->free_track_count];
  } else if (e->fresh_track < TRACK_COUNT) {
    index = e->fresh_track++;
  } else {
    return 0;
  }
  track* t = &e->tracks[index];
  *t = (track){.stream = stream, .context = (uint16_t)context, .open = true};
  atomic_store_explicit(&e->done[index], 0, memory_order_relaxed);
  return index;
}

static void track_recycle(orion_engine* e, uint32_t index) { e->free_tracks[e->free_track_count++] = index; }

// The track outlives its stream while work is pending: tickets name it.
void order_track_close(orion_engine* e, uint32_t index) {
  track* t = &e->tracks[index];
  if (t->dirty && t->issued > t->marked) order_mark_track(e, index);
  t->open = false;
  if (!t->dirty) track_recycle(e, index);
}

void order_mark_track(orion_engine* e, uint32_t index) {
  track* t = &e->tracks[index];
  if (!t->open || t->marked == t->issued) return;
  context_state* c = &e->contexts[t->context];
  if (c->sticky) return;
  stream_state* s = NULL;
  CUstream stream = t->stream;
  if (!stream) {
    // The NULL stream: its private marker obeys the same rule as the client's.
    s = marker_stream(e, &e->streams[STREAM_NULL_BASE + t->context]);
    if (!s) return;
    stream = s->handle;
  }
  const uint64_t value = t->issued + 1;
  if (e->launchers && launcher_write(e, index, stream, e->done_device + (uint64_t)index * 8, value)) {
    t->issued = t->marked = value;
    return;
  }
  if (e->current_context != t->context) {
    if (e->driver.context_set_current(c->handle)) return;
    e->current_context = t->context;
  }
  const int32_t result = (int32_t)e->driver.write_value64(stream, e->done_device + (uint64_t)index * 8, value, 0);
  if (answer_check(e, t->context, result)) return;
  t->issued = value;
  t->marked = value;
}

void order_issued(orion_engine* e, stream_state* stream) {
  const uint32_t index = stream->track;
  track* t = &e->tracks[index];
  t->issued++;
  if (e->config.null_engine) {  // work is done when it is issued
    t->marked = t->known_done = t->issued;
    return;
  }
  if (!t->dirty) {
    t->dirty = true;
    t->next_dirty = e->first_dirty;
    e->first_dirty = index;
  }
  if (t->issued - t->marked >= TRACK_MARK_EVERY) order_mark_track(e, index);
}

// Drops finished tracks from the list of dirty ones.
void order_sweep(orion_engine* e) {
  uint32_t* link = &e->first_dirty;
  while (*link) {
    const uint32_t index = *link;
    track* t = &e->tracks[index];
    if (order_track_done(e, index) >= t->issued) {
      t->known_done = t->issued;
      t->dirty = false;
      *link = t->next_dirty;
      if (!t->open) track_recycle(e, index);
    } else {
      link = &t->next_dirty;
    }
  }
}

bool order_take_ticket(orion_engine* e, uint32_t context, ticket* out) {
  order_sweep(e);
  out->count = 0;
  for (uint32_t index = e->first_dirty; index; index = e->tracks[index].next_dirty) {
    track* t = &e->tracks[index];
    if (context && t->context != context) continue;
    order_mark_track(e, index);
    if (out->count == out->capacity) {
      const uint32_t capacity = out->capacity ? out->capacity * 2 : 8;
      ticket_part* parts = realloc(out->parts, capacity * sizeof *parts);
      if (!parts) return false;
      out->parts = parts;
      out->capacity = capacity;
    }
    out->parts[out->count++] = (ticket_part){index, t->issued};
  }
  return true;
}

// A recycled track starts again at 0 and would make an old ticket wait for a stranger's work. It is recycled only when
// its old value was reached, so "not dirty" answers first.
bool order_ticket_reached(const orion_engine* e, const ticket* t) {
  for (uint32_t i = 0; i < t->count; i++) {
    const track* tr = &e->tracks[t->parts[i].track];
    if (!tr->dirty || tr->issued < t->parts[i].value) continue;
    if (order_track_done(e, t->parts[i].track) < t->parts[i].value) return false;
  }
  return true;
}

void order_ticket_free(ticket* t) {
  free(t->parts);
  *t = (ticket){0};
}

void order_abandon(orion_engine* e, uint32_t context) {
  for (uint32_t index = e->first_dirty; index; index = e->tracks[index].next_dirty) {
    if (e->tracks[index].context == context) e->tracks[index].known_done = e->tracks[index].issued;
  }
}

void order_check_faults(orion_engine* e, uint64_t now_ns) {
  if (!e->first_dirty || now_ns - e->last_fault_check_ns < FAULT_CHECK_NS) return;
  e->last_fault_check_ns = now_ns;
  output_bound(e);
  order_sweep(e);
  uint64_t asked_null = 0;  // contexts whose closed tracks were covered by asking their NULL stream
  uint32_t left = FAULT_CHECK_STREAMS;
  for (uint32_t index = e->first_dirty; index && left; index = e->tracks[index].next_dirty, left--) {
    track* t = &e->tracks[index];
    context_state* c = &e->contexts[t->context];
    if (c->sticky) {
      t->known_done = t->issued;
      continue;
    }
    if (!c->alive) continue;
    if (e->launchers && launcher_pending(e, index)) continue;  // "idle" would speak of less than was issued
    if (!t->open) {
      if (asked_null >> t->context & 1) continue;
      asked_null |= 1ull << t->context;
    }
    if (e->current_context != t->context) {
      if (answer_check(e, t->context, (int32_t)e->driver.context_set_current(c->handle))) continue;
      e->current_context = t->context;
    }
    const int32_t result = (int32_t)e->driver.stream_query(t->open ? t->stream : NULL);
    if (result == 0) {
      if (t->open) t->known_done = t->issued;
    } else if (result != 600) {
      answer_check(e, t->context, result);
    }
  }
  order_sweep(e);
}
