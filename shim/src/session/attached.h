// The server's answer to ATTACH, taken apart and bounded.
#ifndef ORION_SHIM_ATTACHED_H
#define ORION_SHIM_ATTACHED_H

#include "control.h"
#include "orion_lanes.h"
#include "stages.h"

typedef struct orion_attach_answer {
  uint8_t session_id[160];  // msgpack as the server sent it, to be repeated
  uint32_t session_id_bytes;
  uint8_t token[32];
  bool has_token;
  int64_t wire_major, wire_minor;
  char server_version[64];
  bool is_softgpu;
  bool runtime_validated;
  int driver_version;
  char shm_socket[108];
  char tcp_ops[160], tcp_bulk[160];
  char ucx[160];             // endpoint of the UCX lanes; empty: not offered
  char ucx_refused[256];     // why not, where it was asked for
  enum orion_cipher cipher;  // of the plain TCP lanes
  bool worker_was_warm;
  orion_stages server_stages;
  orion_device* devices;  // malloc
  uint32_t device_count;
} orion_attach_answer;

/// False when the answer is not a well-formed "attached". The caller frees `devices` in either case.
bool orion_attached_read(const orion_control* control, orion_attach_answer* attached);

#endif
