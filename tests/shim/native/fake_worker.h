// A server and a worker as threads of the test program: they speak the control protocol and drain the ring, over shm,
// tcp (ZeroMQ's lanes) or raw (plain sockets), and execute the few operations that the tests use against a block of
// host memory that plays the device.
#ifndef ORION_TESTS_FAKE_WORKER_H
#define ORION_TESTS_FAKE_WORKER_H

#include <stdbool.h>
#include <stdint.h>

enum { FAKE_DEVICE_BYTES = 32 << 20 };

/// Starts the threads and points ORION_SERVER and ORION_TRANSPORT at them.
void fake_worker_start(const char* transport);
/// shm, after attach: the worker uses the client's mappings, so that the sanitizers see one memory and not two.
void fake_worker_share(void* client_segment, uint8_t* client_arena);
extern uint8_t* fake_device_memory;  // what device address slot_base + i holds

/// The worker dies: its sockets close, nothing is answered any more.
void fake_worker_kill(void);
/// The worker stops taking operations, or goes on.
void fake_worker_hold(bool hold);
bool fake_worker_saw_detach(void);
uint64_t fake_worker_executed(void);
/// Sets a word as the engine would.
void fake_worker_word(uint32_t word, uint64_t value);
/// raw: misbehaves (enum fake_raw_act); `offset` is a place in the arena where the client expects nothing.
void fake_worker_act(int act, uint64_t offset);
/// tcp, raw: the next frame on the operations lane is garbage.
void fake_worker_garbage(void);

#define CHECK(condition)                                                      \
  do {                                                                        \
    if (!(condition)) {                                                       \
      fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      _Exit(1);                                                               \
    }                                                                         \
  } while (0)

#endif
