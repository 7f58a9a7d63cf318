// Launcher threads: they make the driver calls of launches that the engine's thread has checked and ordered, so that
// programs which launch on several streams at once are not held to one thread's rate.
//
// A stream's launches go to one launcher, in order; so do the markers behind them. Any other call that concerns the
// stream is made by the engine's thread once that launcher has made those before it (launcher_settle). Without
// any (config.launchers 0) engine->launchers is NULL and nothing of this costs more than that look.
#ifndef ORION_ENGINE_LAUNCHER_H
#define ORION_ENGINE_LAUNCHER_H

#include "internal.h"

/// False: no memory or no threads; the engine does without.
bool launcher_start(orion_engine* e, uint32_t count);
/// Everything handed over has been issued when this returns, and the threads are gone.
void launcher_stop(orion_engine* e);

/// Hands a checked launch over, and counts it. False: it is the caller's to make, and nothing of its stream is on the
/// way.
bool launcher_take(orion_engine* e, stream_state* s, const function_state* f, const orion_op* op);
/// Hands a marker over where it must stand behind launches on the way. False: there are none.
bool launcher_write(orion_engine* e, uint32_t track_index, CUstream stream, CUdeviceptr address, uint64_t value);
/// True while launches of the track are on the way to the driver.
bool launcher_pending(const orion_engine* e, uint32_t track_index);
/// Waits until they are issued. As long as the engine's thread would have taken to issue them itself, at most.
void launcher_settle(orion_engine* e, uint32_t track_index);
/// Before an operation is executed: whatever must have been issued before it.
void launcher_before(orion_engine* e, const orion_op* op);
/// Takes failures back from the launchers: they are told like those of the engine's own calls.
void launcher_collect(orion_engine* e);

#endif
