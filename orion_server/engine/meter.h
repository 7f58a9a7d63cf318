// How long work takes on the GPU: estimates by what it is, and measurement by timed events around it.
//
// An interval is a run of operations on one stream without a gap that the engine knows of: between two events where the
// time is charged as measured, or merely counted by estimates where nobody else wants the GPU. Intervals of several
// streams overlap and end in any order; what is charged is their union (timeline.h).
#ifndef ORION_ENGINE_METER_H
#define ORION_ENGINE_METER_H

#include "internal.h"

#define METER_UNKNOWN UINT64_MAX

bool meter_init(orion_engine* e);
void meter_free(orion_engine* e);
/// Sets what e->turns says of an operation with GPU time: its identity, its place among the estimates, and the estimate
/// in nanoseconds; METER_UNKNOWN: it has not been measured yet.
void meter_look(orion_engine* e, const orion_op* op);
/// Right before the operation that was looked at last is issued: an interval is open on its stream, whose context is
/// current. `measured`: it is to be charged by events; else by estimates, and the operation alone is timed now and
/// then.
void meter_before(orion_engine* e, const orion_op* op, bool measured);
/// Right after it has been issued.
void meter_after(orion_engine* e, const orion_op* op, uint64_t estimate_ns, bool measured);
/// Instead of meter_after: the operation was refused.
void meter_refused(orion_engine* e, const orion_op* op);
/// Whether anything of the device is not taken in yet.
bool meter_is_busy(const orion_engine* e, uint32_t device);
/// Another operation of the stream is about to be issued: where that is no GPU time, its open interval ends.
void meter_interrupt(orion_engine* e, const orion_op* op);
/// Ends all open intervals of a device.
void meter_close_device(orion_engine* e, uint32_t device);
/// Ends the open intervals that have been open for long. Called when there is nothing else to do.
void meter_close_old(orion_engine* e, uint64_t now_ns);
/// Takes in what is complete: the devices' spent_ns and in_flight_ns. Returns whether something was.
bool meter_pass(orion_engine* e);
/// The context's events go with it; what they would have measured is not charged.
void meter_drop_context(orion_engine* e, uint32_t context);

#endif
