// Between two servers nothing is shared: the client moves the bytes of copies and holds the order of events.
#ifndef ORION_SHIM_RELAY_H
#define ORION_SHIM_RELAY_H

#include "copy.h"

/// At the start of a process with several sessions: sets staging aside. False: a session has none to give.
bool orion_relay_start(orion_peer* peer);

/// True for copies that no server can do alone: between devices of different sessions, or between a device and
/// page-locked memory where stream, device and memory are not of one session. Pageable memory is left to the caller.
bool orion_is_relayed(const orion_stream* stream, const orion_place* to, const orion_place* from);

/// Copies a volume in the stream's order and returns at once. At least one side is device memory or an array; what lies
/// in host memory is read and written when the copy's turn comes. Between devices on a NULL stream, or where
/// `serializes`: in the order of all streams of the stream's and both sides' contexts.
CUresult orion_relay_copy(orion_stream* stream, const orion_copy_side* to, const orion_copy_side* from,
                          const orion_volume* volume, bool serializes);

/// What the stream gets from now on comes after words[word] >= value of another session; returns at once. A wait that
/// fails lets the stream go on, and is a late error of the calling thread.
CUresult orion_relay_wait(orion_stream* stream, orion_context* context, uint32_t word, uint64_t value);

/// Before memory is given back: returns when no relayed copy needs a byte of it any more.
void orion_relay_settle(uint64_t start, uint64_t bytes);
/// The same for an allocation of which `address` is a byte, and for all that a context has.
void orion_relay_settle_allocation(uint64_t address);
void orion_relay_settle_context(const orion_context* context);

#endif
