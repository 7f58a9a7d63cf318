// This worker's seat (orion_seat.h): what orion-server grants it of each GPU. Without one nothing is limited.
#ifndef ORION_ENGINE_SEAT_H
#define ORION_ENGINE_SEAT_H

#include "internal.h"
#include "orion_seat.h"

/// Maps the seat that the configuration names. False: there is one that cannot be used.
bool seat_open(orion_engine* e);
void seat_close(orion_engine* e);
/// What the seat says of a device (index into e->devices); NULL: no seat.
static inline orion_seat_device* seat_device(const orion_engine* e, uint32_t device) {
  return e->seat && e->devices[device].ordinal < ORION_SEAT_DEVICES ? &e->seat->devices[e->devices[device].ordinal]
                                                                    : NULL;
}
/// Tells orion-server that something of the seat has changed.
void seat_ring(orion_engine* e);

#endif
