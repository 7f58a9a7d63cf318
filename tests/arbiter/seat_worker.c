// A worker's part of a seat, for tests: the words by name, and the charging protocol of orion_seat.h, in processes that
// race. Compiled as a library for Python and as a program: seat_worker SEAT_FD DOORBELL_FD TRUTH_FD QUOTA ROUNDS SEED.
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "orion_seat.h"

uint64_t seat_offset(uint32_t device, const char* name) {
#define WORD(field)          \
  if (!strcmp(name, #field)) \
  return offsetof(orion_seat, devices) + device * sizeof(orion_seat_device) + offsetof(orion_seat_device, field)
  WORD(granted_bytes);
  WORD(quota_bytes);
  WORD(others_bytes);
  WORD(answered);
  WORD(grant);
  WORD(budget_ns);
  WORD(recalled);
  WORD(is_limited);
  WORD(charged_bytes);
  WORD(asked);
  WORD(asked_bytes);
  WORD(wants);
  WORD(returned);
  WORD(ending);
  WORD(spent_ns);
  WORD(in_flight_ns);
  WORD(throttled_ns);
  WORD(works);
#undef WORD
  if (!strcmp(name, "pinned_granted_bytes")) return offsetof(orion_seat, pinned_granted_bytes);
  if (!strcmp(name, "wake")) return offsetof(orion_seat, wake);
  if (!strcmp(name, "polls")) return offsetof(orion_seat, polls);
  return UINT64_MAX;
}

/// What all workers have allocated: raised after charging and lowered before giving back, so never more than is
/// charged.
typedef struct truth {
  _Atomic uint64_t bytes, most_bytes, charges, refusals;
} truth;

static int charge(orion_seat_device* d, uint64_t bytes) {
  if (atomic_fetch_add(&d->charged_bytes, bytes) + bytes <= atomic_load(&d->granted_bytes)) return 1;
  atomic_fetch_sub(&d->charged_bytes, bytes);
  return 0;
}

static int charge_or_ask(orion_seat_device* d, int doorbell_fd, uint64_t bytes) {
  if (charge(d, bytes)) return 1;
  const uint64_t one = 1;
  const struct timespec look = {0, 20000};
  atomic_store(&d->asked_bytes, atomic_load(&d->charged_bytes) + bytes);
  atomic_fetch_add(&d->asked, 1);
  if (write(doorbell_fd, &one, sizeof one) < 0) return 0;
  while (atomic_load(&d->answered) != atomic_load(&d->asked)) nanosleep(&look, NULL);
  return charge(d, bytes);
}

static void note(truth* t, uint64_t bytes) {
  const uint64_t now = atomic_fetch_add(&t->bytes, bytes) + bytes;
  uint64_t most = atomic_load(&t->most_bytes);
  while (now > most && !atomic_compare_exchange_weak(&t->most_bytes, &most, now)) continue;
}

int main(int argc, char** argv) {
  if (argc != 7) return 2;
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // a test that has ended leaves nobody who waits for an answer
  orion_seat* seat = mmap(NULL, sizeof *seat, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[1]), 0);
  truth* t = mmap(NULL, sizeof *t, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[3]), 0);
  if (seat == MAP_FAILED || t == MAP_FAILED) return 3;
  orion_seat_device* d = &seat->devices[0];
  const int doorbell_fd = atoi(argv[2]);
  const uint64_t quota = strtoull(argv[4], NULL, 10), rounds = strtoull(argv[5], NULL, 10);
  uint64_t state = strtoull(argv[6], NULL, 10) * 2654435761u + 1;
  uint64_t held[16] = {0};
  for (uint64_t i = 0; i < rounds; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    uint64_t* slot = &held[state >> 60];
    if (*slot) {
      atomic_fetch_sub(&t->bytes, *slot);
      atomic_fetch_sub(&d->charged_bytes, *slot);
      *slot = 0;
      continue;
    }
    // Large ones meet the quota; small ones are charged without asking, while the grant may be lowered.
    const uint64_t bytes = 1 + (state >> 20) % (state >> 59 & 1 ? quota / 8 : quota / 1024);
    if (charge_or_ask(d, doorbell_fd, bytes)) {
      *slot = bytes;
      note(t, bytes);
      atomic_fetch_add(&t->charges, 1);
    } else {
      atomic_fetch_add(&t->refusals, 1);
    }
  }
  for (int i = 0; i < 16; i++) {
    atomic_fetch_sub(&t->bytes, held[i]);
    atomic_fetch_sub(&d->charged_bytes, held[i]);
  }
  return 0;
}
