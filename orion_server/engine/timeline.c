#include "timeline.h"

#include <string.h>

static void remove_spans(timeline* t, uint32_t first, uint32_t count) {
  memmove(&t->spans[first], &t->spans[first + count], (t->count - first - count) * sizeof *t->spans);
  t->count -= count;
}

/// Makes room: the two spans with the smallest gap between them become one.
static void join_nearest(timeline* t) {
  uint32_t nearest = 0;
  for (uint32_t i = 1; i + 1 < t->count; i++) {
    const double gap_ms = t->spans[i + 1].from_ms - t->spans[i].to_ms;
    if (gap_ms < t->spans[nearest + 1].from_ms - t->spans[nearest].to_ms) nearest = i;
  }
  t->spans[nearest].to_ms = t->spans[nearest + 1].to_ms;
  t->spans[nearest].busy_ms += t->spans[nearest + 1].busy_ms;
  remove_spans(t, nearest + 1, 1);
}

/// How much of the span lies busy between two times.
static double busy_between(const timeline_span* s, double from_ms, double to_ms) {
  const double begin_ms = from_ms > s->from_ms ? from_ms : s->from_ms, end_ms = to_ms < s->to_ms ? to_ms : s->to_ms;
  const double whole_ms = s->to_ms - s->from_ms, part_ms = end_ms - begin_ms;
  if (part_ms >= whole_ms) return s->busy_ms;
  return part_ms > 0 ? s->busy_ms * (part_ms / whole_ms) : 0;
}

double timeline_add(timeline* t, double from_ms, double to_ms) {
  if (!(to_ms > from_ms)) return 0;
  uint32_t first = t->count;  // most intervals are later than all before
  while (first > 0 && t->spans[first - 1].to_ms >= from_ms) first--;
  timeline_span joined = {from_ms, to_ms, 0};
  double covered_ms = 0;
  uint32_t end = first;
  for (; end < t->count && t->spans[end].from_ms <= to_ms; end++) {
    const timeline_span* s = &t->spans[end];
    covered_ms += busy_between(s, from_ms, to_ms);
    joined.busy_ms += s->busy_ms;
    if (s->from_ms < joined.from_ms) joined.from_ms = s->from_ms;
    if (s->to_ms > joined.to_ms) joined.to_ms = s->to_ms;
  }
  const double uncovered_ms = to_ms - from_ms > covered_ms ? to_ms - from_ms - covered_ms : 0;
  joined.busy_ms += uncovered_ms;
  if (end > first) {
    t->spans[first] = joined;
    remove_spans(t, first + 1, end - first - 1);
    return uncovered_ms;
  }
  if (t->count == TIMELINE_SPANS) {
    join_nearest(t);
    // The place may have moved, and the interval may lie inside of what was joined.
    return timeline_add(t, from_ms, to_ms);
  }
  memmove(&t->spans[first + 1], &t->spans[first], (t->count - first) * sizeof *t->spans);
  t->spans[first] = joined;
  t->count++;
  return uncovered_ms;
}

void timeline_move_origin(timeline* t, double by_ms) {
  for (uint32_t i = 0; i < t->count; i++) {
    t->spans[i].from_ms -= by_ms;
    t->spans[i].to_ms -= by_ms;
  }
}
