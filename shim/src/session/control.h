// Control messages to one server: msgpack maps over a ZeroMQ DEALER. Used at attach and by the management library.
#ifndef ORION_SHIM_CONTROL_H
#define ORION_SHIM_CONTROL_H

#include "config.h"
#include "msgpack.h"
#include "session.h"

enum { ORION_CONTROL_MAX_BYTES = 4 << 20, ORION_CONTROL_VERSION = 1 };

typedef struct orion_control {
  char address[ORION_SERVER_NAME_BYTES];
  bool address_is_default, is_encrypted;
  uint32_t timeout_ms;
  void *context, *socket, *monitor;
  uint64_t next_id;
  uint8_t* answer;  // the last answer
  size_t answer_bytes;
} orion_control;

/// Connects. CUDA_SUCCESS, or the code for cuInit after one line on stderr (when `quiet`: none). `server_key`: the
/// server's public key (z85), with which everything is encrypted, or empty.
CUresult orion_control_open(orion_control* control, const char* address, const char* server_key, bool is_default,
                            uint32_t timeout_ms, bool quiet);
/// Starts a request map of 3 + `pairs` pairs: v, type and id are written here.
void orion_control_begin(orion_control* control, orion_packer* packer, const char* type, uint32_t pairs);
/// Sends and waits for the answer of the same id. CUDA_SUCCESS: answer and its type are there, and the type is not
/// "error". Otherwise one line on stderr (unless quiet) and the code.
CUresult orion_control_request(orion_control* control, const orion_packer* packer, char type[32], bool quiet);
/// Sends and does not wait.
void orion_control_tell(orion_control* control, const orion_packer* packer);
/// Leaves no thread behind. Undelivered messages get at most 200 ms.
void orion_control_close(orion_control* control);

/// Iterates over the pairs of the answer: key as bytes.
orion_unpacker orion_control_answer(const orion_control* control, uint32_t* pairs);

#endif
