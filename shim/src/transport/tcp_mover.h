// Who moves the bytes of lane 0, where any thread may (plain sockets, UCX): one thread at a time, a thread that waits
// for something or else the I/O thread.
#ifndef ORION_SHIM_TCP_MOVER_H
#define ORION_SHIM_TCP_MOVER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "transport.h"

struct tcp_state;

// What the kinds of lanes do differently. Called by whoever moves the bytes.
typedef struct tcp_moves {
  /// One round: sends and receives what there is. True when something moved.
  bool (*once)(struct tcp_state* state);
  /// Whether `once` would move something, as far as that can be told without asking the network.
  bool (*has_work)(const struct tcp_state* state);
  /// Asked last before a sleep: false when something has come meanwhile. NULL: the descriptor tells by itself.
  bool (*may_sleep)(struct tcp_state* state);
  /// Whether what the lane has next must wait for others: its descriptor is readable and that is no news. NULL: never.
  bool (*is_held)(const struct tcp_state* state);
  /// Whether all that the program has left behind has arrived.
  bool (*is_drained)(struct tcp_state* state);
} tcp_moves;

typedef struct tcp_mover {
  const tcp_moves* moves;
  _Atomic uint32_t moving;
  _Atomic bool io_awake;  // the I/O thread will look by itself
  int lane_fd;            // readable when the lane has something
  int all_fd;             // epoll: lane_fd and wake_fd
  int io_fd;              // epoll: all_fd. While a waiting thread moves the bytes it tells the I/O thread nothing
  bool watches_room;      // all_fd also waits for room in the lane
  // Under `moving`.
  bool blocked;     // the lane takes no more at present; its descriptor tells when it does
  bool broken;      // it takes nothing any more; what it has received is still read
  bool at_end;      // nothing more is read
  uint64_t due_ns;  // when something that has been sent to an emulated network is due; UINT64_MAX: nothing
} tcp_mover;

/// Makes the descriptors; `lane_fd` stays the caller's. False: there are none left.
bool orion_mover_open(struct tcp_state* state, const tcp_moves* moves, int lane_fd);
/// Closes them. Threads that wait may still look at the rest.
void orion_mover_close(const struct tcp_state* state);
/// The I/O thread, until the session stops or is lost; then what is left is sent, for a bounded time. True when nobody
/// else moves the bytes any more; false: another thread is at it still.
bool orion_mover_run(struct tcp_state* state);
/// orion_transport.help: moves bytes until `ready`.
enum orion_help orion_mover_help(orion_session* session, bool (*ready)(void* argument), void* argument,
                                 uint32_t context, uint64_t spin_until_ns, uint64_t until_ns);

struct timespec orion_time_left(uint64_t until_ns);

#endif
