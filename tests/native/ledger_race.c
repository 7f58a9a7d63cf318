// A grant that is lowered while the engine charges against it: once orion-server has seen that no more is charged than
// the new grant, nothing beyond it is ever held.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "ledger.h"

#define QUOTA_BYTES (64ull * ORION_CHUNK_BYTES)
#define ROUNDS 1000000
#define BLOCKS 64
#define LOOKS 200
#define LOWERED 20000

static orion_seat seat;
static _Atomic uint64_t held_bytes;  // what the engine believes to have
static _Atomic uint64_t lowered;     // grants that came in time
static _Atomic int done;

static uint32_t next_random(uint32_t* state) { return *state = *state * 1664525u + 1013904223u; }

static void* server(void* argument) {
  orion_seat_device* d = &seat.devices[0];
  uint32_t random = 7;
  (void)argument;
  while (!atomic_load(&done)) {
    const uint64_t grant = (next_random(&random) >> 8) % (QUOTA_BYTES + 1);
    atomic_store(&d->granted_bytes, grant);
    if (atomic_load(&d->charged_bytes) > grant) {  // too late: it is the worker's
      atomic_store(&d->granted_bytes, QUOTA_BYTES);
      continue;
    }
    atomic_fetch_add(&lowered, 1);
    for (int i = 0; i < LOOKS; i++) {
      if (atomic_load(&held_bytes) <= grant) continue;
      fprintf(stderr, "held beyond the grant of %llu bytes\n", (unsigned long long)grant);
      abort();
    }
    atomic_store(&d->granted_bytes, QUOTA_BYTES);
  }
  return NULL;
}

int main(void) {
  orion_engine* e = aligned_alloc(64, (sizeof *e + 63) / 64 * 64);
  if (!e) return 1;
  memset(e, 0, sizeof *e);
  e->seat = &seat;
  e->device_count = 1;
  e->config.doorbell_fd = eventfd(0, EFD_NONBLOCK);
  seat.devices[0].quota_bytes = seat.devices[0].granted_bytes = QUOTA_BYTES;
  pthread_t thread;
  if (pthread_create(&thread, NULL, server, NULL)) return 1;
  uint64_t blocks[BLOCKS] = {0}, charged = 0, refused = 0;
  uint32_t random = 1;
  const orion_op op = {.reply_seq = 1};
  for (int round = 0; round < ROUNDS || atomic_load(&lowered) < LOWERED; round++) {
    uint64_t* block = &blocks[(next_random(&random) >> 8) % BLOCKS];
    if (*block) {
      atomic_fetch_sub(&held_bytes, *block);
      ledger_uncharge(e, 0, ORION_MEMORY_BUFFER, *block);
      *block = 0;
      continue;
    }
    const uint64_t bytes = (1 + (next_random(&random) >> 8) % 4) * ORION_CHUNK_BYTES;
    if (ledger_charge(e, &op, 0, ORION_MEMORY_BUFFER, bytes)) {
      refused++;
    } else {
      atomic_fetch_add(&held_bytes, bytes);
      *block = bytes;
      charged++;
    }
  }
  atomic_store(&done, 1);
  pthread_join(thread, NULL);
  for (int i = 0; i < BLOCKS; i++) ledger_uncharge(e, 0, ORION_MEMORY_BUFFER, blocks[i]);
  const bool exact = !seat.devices[0].charged_bytes && !seat.devices[0].kind_bytes[ORION_MEMORY_BUFFER];
  printf("%llu charged, %llu refused\n", (unsigned long long)charged, (unsigned long long)refused);
  close(e->config.doorbell_fd);
  free(e);
  return exact && charged && refused ? 0 : 1;
}
