// What carries ring bytes between this process and its worker. Sessions know transports only through this table.
#ifndef ORION_SHIM_TRANSPORT_H
#define ORION_SHIM_TRANSPORT_H

#include "../session/config.h"
#include "orion_lanes.h"
#include "session.h"

enum orion_help { ORION_HELP_READY, ORION_HELP_LATER, ORION_HELP_BUSY };

typedef struct orion_transport {
  const char* name;
  /// Over shm the worker's watcher polls only the words that a client thread has posted; over a network every
  /// marker's word is relayed, so nothing is posted.
  bool posts_waiters;
  /// Wakes the consumer of the ring. Called after a push when the consumer has said that it sleeps.
  void (*kick)(orion_session* session, bool express);
  /// Moves bytes on the thread of a caller that waits, until ready(argument), an error of `context` or of the session
  /// (LATER), or `until_ns`; spins before it sleeps until `spin_until_ns`. BUSY: another thread is at it, and will wake
  /// this one. NULL: bytes move without those who wait.
  enum orion_help (*help)(orion_session* session, bool (*ready)(void* argument), void* argument, uint32_t context,
                          uint64_t spin_until_ns, uint64_t until_ns);
  /// False once the worker or the way to it is gone. May be called by any thread, at every timeout of a wait.
  bool (*alive)(orion_session* session);
  uint64_t (*push_host)(orion_session* session, uint64_t offset, uint64_t bytes);
  uint64_t (*push_pinned)(orion_session* session, uint64_t offset, uint64_t bytes, uint32_t callback,
                          uint64_t generation);
  void (*begin_host_function)(orion_session* session, uint32_t callback, uint64_t generation, uint32_t word);
  void (*note_rows)(orion_session* session, const orion_pulled_rows* rows, uint32_t word, uint64_t value);
  /// NULL where both ends share the memory.
  bool (*coherent_begin)(orion_session* session, uint64_t offset, uint64_t bytes, bool unsent);
  uint64_t (*coherent_push)(orion_session* session, uint64_t offset, uint64_t bytes);
  void (*coherent_end)(orion_session* session, uint64_t offset, uint64_t bytes);
  const char* (*adoptable)(orion_session* session, uint64_t address, uint64_t bytes);
  const char* (*adopt)(orion_session* session, uint64_t address, uint64_t bytes, uint64_t offset);
  bool (*adopt_end)(orion_session* session, uint64_t address, uint64_t bytes, uint64_t offset);
  const char* (*place)(orion_session* session, uint64_t address, uint64_t bytes, uint64_t offset);
  void (*unplace)(orion_session* session, uint64_t address, uint64_t bytes, uint64_t offset);
  /// client_words[callback] = generation has been stored.
  void (*client_word)(orion_session* session, uint32_t callback, uint64_t generation);
  /// Gives the pages of an arena range back to the system; its content becomes zero.
  void (*drop_pages)(orion_session* session, void* address, uint64_t bytes);
  /// Delivers what is in the rings within a bounded time, then closes. Mappings stay: other threads may still read.
  void (*close)(orion_session* session);
  /// In the child after fork: forget descriptors and threads of the parent. Async-signal-safe.
  void (*after_fork)(orion_session* session);
} orion_transport;

/// shm, step 1 (before BIND): connects to the worker's unix socket. -1 with errno when that is impossible.
int orion_shm_connect(const char* path);
/// shm, step 2 (after BOUND): sends the token, receives and maps segment and arena. False after one line on stderr.
bool orion_shm_open(orion_session* session, int socket_fd, const uint8_t token[32], uint32_t timeout_ms);
/// tcp, ucx (after BOUND): makes the segment and the arena here, connects the lanes, starts the I/O thread. The scheme
/// of `ops_endpoint` names their kind: raw (plain TCP, one endpoint for all connections), tcp (ZeroMQ) or ucx.
/// `instead`: what is tried next where this fails, for the log; NULL: nothing.
bool orion_tcp_open(orion_session* session, const orion_config* config, const char* ops_endpoint,
                    const char* bulk_endpoint, enum orion_cipher cipher, const uint8_t token[32], uint32_t timeout_ms,
                    const char* instead);

/// What UCX has chosen to carry lane 0 of an open session over ucx.
const char* orion_tcp_ucx_carriers(const orion_session* session);

#endif
