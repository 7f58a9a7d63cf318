// The worker's side of turns on the GPU (orion_seat.h): what may be issued now, and when a turn is given back.
#ifndef ORION_ENGINE_TURNS_H
#define ORION_ENGINE_TURNS_H

#include "internal.h"

bool turns_init(orion_engine* e);
void turns_free(orion_engine* e);
/// Whether the operation takes GPU time on a device whose time is shared out.
bool turns_concern(const orion_engine* e, const orion_op* op);
/// Whether such an operation may be issued now. False: it has been given a cause to wait.
bool turns_admit(orion_engine* e, const orion_op* op);
/// Whether what waits for the device's turn is worth another look.
bool turns_may_go_on(const orion_engine* e, uint32_t device);
/// Executes an operation that turns_concern: with its time measured.
enum step turns_execute(orion_engine* e, const orion_op* op, parked_op* node);
/// Another operation of the stream is about to be issued.
void turns_interrupt(orion_engine* e, const orion_op* op);
/// One look at grants and at what is complete. Returns whether something moved.
bool turns_pass(orion_engine* e);
/// Whether the loop must look often: what runs decides what comes next.
bool turns_are_close(const orion_engine* e);
/// Whether the server has written something that turns_pass has not seen.
bool turns_have_news(const orion_engine* e);
/// Whether launches may go to launchers: nothing measures each of them.
bool turns_are_free(const orion_engine* e, uint32_t context);
/// Most operations that may be parked: fewer while they wait for a turn, so that a look at them stays cheap.
uint32_t turns_parked_most(const orion_engine* e);
void turns_drop_context(orion_engine* e, uint32_t context);

#endif
