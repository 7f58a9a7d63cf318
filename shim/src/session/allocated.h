// A controller's answers to ALLOCATE, taken apart and bounded.
#ifndef ORION_SHIM_ALLOCATED_H
#define ORION_SHIM_ALLOCATED_H

#include "control.h"

enum { ORION_TICKET_MAX_BYTES = 2048, ORION_ALLOCATION_BYTES = 65 };

/// Some of the vGPUs: the server that has them, and what to show it. The ticket is the server's business; nothing here
/// looks into it.
typedef struct orion_granted {
  char server[256];  // its name in the pool
  char address[ORION_SERVER_NAME_BYTES];
  char public_key[41];  // empty: not encrypted
  uint32_t ticket_bytes;
  uint8_t ticket[ORION_TICKET_MAX_BYTES];
} orion_granted;

typedef struct orion_grant {
  char allocation[ORION_ALLOCATION_BYTES];
  double attach_within_s;
  uint32_t count;
  orion_granted servers[ORION_SERVERS_MAX];  // in the order in which the program counts devices
} orion_grant;

typedef struct orion_queued {
  int64_t position, ticket;
  char reason[400];
} orion_queued;

/// Whether a text from the wire is host:port.
bool orion_is_address(const char* text);
/// False when the answer is not a well-formed "allocated": nothing of it is to be used then, but `allocation`, which is
/// empty or can be given up.
bool orion_allocated_read(const orion_control* control, orion_grant* grant);
bool orion_queued_read(const orion_control* control, orion_queued* queued);
/// The leader's address; empty when the answer does not name one.
void orion_not_leader_read(const orion_control* control, char leader[ORION_SERVER_NAME_BYTES]);

#endif
