// Control messages to one server: msgpack maps over a ZeroMQ DEALER. Used at attach and by the management library.
#ifndef ORION_SHIM_CONTROL_H
#define ORION_SHIM_CONTROL_H

#include "config.h"
#include "log.h"
#include "msgpack.h"
#include "session.h"

enum { ORION_CONTROL_MAX_BYTES = 4 << 20, ORION_CONTROL_VERSION = 1 };

enum orion_control_failure {
  ORION_CONTROL_WELL,
  ORION_CONTROL_UNSENT,
  ORION_CONTROL_SILENT,   // no answer in time
  ORION_CONTROL_CLOSED,   // the other end has gone, or speaks something else
  ORION_CONTROL_GARBAGE,  // not a message of ours
  ORION_CONTROL_OTHER_VERSION,
  ORION_CONTROL_REFUSED,  // an answer of type "error"
};

/// What the sentences call the other end.
enum orion_control_peer {
  ORION_PEER_SERVER,  // that the user named
  ORION_PEER_CONTROLLER,
  ORION_PEER_OF_POOL,  // a server that a controller named
};

typedef struct orion_control {
  char address[ORION_SERVER_NAME_BYTES];
  bool address_is_default, is_encrypted;
  uint32_t timeout_ms;
  void *context, *socket, *monitor;
  uint64_t next_id;
  uint8_t* answer;  // the last answer
  size_t answer_bytes;
  enum orion_control_peer peer;  // set after opening, where it is no named server
  uint64_t also_answer;          // an earlier request whose answer may still come, besides the last one's; 0: none
  enum orion_control_failure failure;
  char why[ORION_LINE_BYTES];  // the sentence of the last failure; before the connection stands, its reason alone
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
/// Only waits, `timeout_ms` at most, for the answer to a request that has been sent.
CUresult orion_control_await(orion_control* control, uint32_t timeout_ms, char type[32], bool quiet);
/// Sends and does not wait.
void orion_control_tell(orion_control* control, const orion_packer* packer);
/// Leaves no thread behind. Undelivered messages get at most 200 ms.
void orion_control_close(orion_control* control);

/// Iterates over the pairs of the answer: key as bytes.
orion_unpacker orion_control_answer(const orion_control* control, uint32_t* pairs);

#endif
