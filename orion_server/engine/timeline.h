// The time that a GPU has been busy, as the union of intervals that come in any order. Pure arithmetic.
#ifndef ORION_ENGINE_TIMELINE_H
#define ORION_ENGINE_TIMELINE_H

#include <stdint.h>

#define TIMELINE_SPANS 64u

/// Spans do not touch. A span that was joined from several has gaps, whose sum is known and whose places are not.
typedef struct timeline_span {
  double from_ms, to_ms, busy_ms;
} timeline_span;

typedef struct timeline {
  timeline_span spans[TIMELINE_SPANS];  // by time
  uint32_t count;
} timeline;

/// Adds an interval and returns how much of it no earlier one has covered, in milliseconds. Exact, but for intervals
/// that begin or end inside of a joined span: its gaps count as evenly spread.
double timeline_add(timeline* t, double from_ms, double to_ms);
/// Times are told from a later origin from here on.
void timeline_move_origin(timeline* t, double by_ms);

#endif
