// Oversubscribed memory: what a tenant does not use goes to host memory and comes back to the same addresses.
#ifndef ORION_ENGINE_SWAP_H
#define ORION_ENGINE_SWAP_H

#include "internal.h"

/// One look at what orion-server wants to be where. Returns whether something moved.
bool swap_pass(orion_engine* e);
/// The operation needs memory that is, or soon will be, elsewhere; orion-server has been told that it is wanted.
bool swap_holds(orion_engine* e, const orion_op* op);
/// True while a copy is under way: no range may be unmapped.
static inline bool swap_is_moving(const orion_engine* e) { return e->swap.moving != 0; }
/// The range goes: its host memory too.
void swap_forget(orion_engine* e, range* r);
/// Waits for copies under way. Before the memory of a session is given back.
void swap_stop(orion_engine* e);

#endif
