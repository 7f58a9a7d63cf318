// The bare floors, measured without any of Orion's machinery but the ring's header: what a message, a round trip and a
// TCP ping-pong cost on this machine at least. Prints one JSON object.
//
//   floors [seconds per measurement, default 1]
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "gen_ops.h"
#include "orion_ring.h"

#define BURST 8192
#define MESSAGE_BYTES 112  // a launch of a kernel with some parameters: one slot

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int compare(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

typedef struct shared {
  orion_segment segment;
  _Alignas(64) _Atomic uint64_t ping;
  _Alignas(64) _Atomic uint64_t pong;
  _Alignas(64) _Atomic uint32_t futex_ping;
  _Alignas(64) _Atomic uint32_t futex_pong;
  _Alignas(64) _Atomic bool stop;
} shared;

static void futex_wait(_Atomic uint32_t* word, uint32_t value) {
  syscall(SYS_futex, word, FUTEX_WAIT, value, NULL, NULL, 0);
}
static void futex_wake(_Atomic uint32_t* word) { syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0); }

static void consume(shared* s) {
  static uint64_t buffer[ORION_OP_MAX_BYTES / 8];
  uint64_t position = 0;
  const orion_ring ring = orion_main_ring(&s->segment);
  while (!atomic_load(&s->stop))
    if (orion_ring_pop(ring, &position, (orion_op*)buffer) != ORION_RING_OP) sched_yield();
}

/// Producer's cost of one message while a consumer process drains: bursts that fit the ring, the ring empty before
/// each.
static void ring_one_way(shared* s, double seconds, double* push_ns, double* drain_ns) {
  const pid_t child = fork();
  if (child == 0) {
    consume(s);
    _exit(0);
  }
  static union {
    orion_op op;
    uint8_t bytes[MESSAGE_BYTES];
  } message;
  message.op.code = ORION_OP_NOP;
  message.op.bytes = MESSAGE_BYTES;
  const orion_ring ring = orion_main_ring(&s->segment);
  double pushes[10000], drains[10000];
  size_t count = 0;
  for (const double end = now() + seconds; now() < end && count < 10000; count++) {
    const double start = now();
    for (int i = 0; i < BURST; i++)
      while (!orion_ring_push(ring, &message.op, MESSAGE_BYTES, NULL)) sched_yield();
    const double pushed = now();
    while (atomic_load(&ring.control->head) != atomic_load(&ring.control->tail)) sched_yield();
    pushes[count] = (pushed - start) / BURST * 1e9;
    drains[count] = (now() - start) / BURST * 1e9;
  }
  atomic_store(&s->stop, true);
  waitpid(child, NULL, 0);
  qsort(pushes, count, sizeof *pushes, compare);
  qsort(drains, count, sizeof *drains, compare);
  *push_ns = pushes[count / 2];
  *drain_ns = drains[count / 2];
}

static double median_rtt_us(double* samples, size_t count) {
  qsort(samples, count, sizeof *samples, compare);
  return samples[count / 2] * 1e6;
}

/// Two words in shared memory, both sides spinning (yielding, so that two busy cores suffice).
static double spin_round_trip(shared* s, double* samples, size_t rounds) {
  const pid_t child = fork();
  if (child == 0) {
    for (uint64_t i = 1; i <= rounds; i++) {
      while (atomic_load_explicit(&s->ping, memory_order_acquire) != i) {
      }
      atomic_store_explicit(&s->pong, i, memory_order_release);
    }
    _exit(0);
  }
  for (uint64_t i = 1; i <= rounds; i++) {
    const double start = now();
    atomic_store_explicit(&s->ping, i, memory_order_release);
    while (atomic_load_explicit(&s->pong, memory_order_acquire) != i) {
    }
    samples[i - 1] = now() - start;
  }
  waitpid(child, NULL, 0);
  return median_rtt_us(samples, rounds);
}

/// The same with both sides asleep on a futex: what a machine without a core to spare has to pay.
static double futex_round_trip(shared* s, double* samples, size_t rounds) {
  const pid_t child = fork();
  if (child == 0) {
    for (uint32_t i = 1; i <= rounds; i++) {
      while (atomic_load(&s->futex_ping) != i) futex_wait(&s->futex_ping, i - 1);
      atomic_store(&s->futex_pong, i);
      futex_wake(&s->futex_pong);
    }
    _exit(0);
  }
  for (uint32_t i = 1; i <= rounds; i++) {
    const double start = now();
    atomic_store(&s->futex_ping, i);
    futex_wake(&s->futex_ping);
    while (atomic_load(&s->futex_pong) != i) futex_wait(&s->futex_pong, i - 1);
    samples[i - 1] = now() - start;
  }
  waitpid(child, NULL, 0);
  return median_rtt_us(samples, rounds);
}

/// 64 bytes each way over loopback TCP, blocking sockets, no delay.
static double tcp_round_trip(double* samples, size_t rounds) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  if (listener < 0 || bind(listener, (struct sockaddr*)&address, sizeof address) || listen(listener, 1) ||
      getsockname(listener, (struct sockaddr*)&address, &length)) {
    perror("tcp");
    exit(1);
  }
  const int one = 1;
  char buffer[64] = {0};
  const pid_t child = fork();
  if (child == 0) {
    const int s = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(s, (struct sockaddr*)&address, sizeof address)) _exit(1);
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    while (recv(s, buffer, sizeof buffer, MSG_WAITALL) == sizeof buffer)
      if (send(s, buffer, sizeof buffer, 0) != sizeof buffer) break;
    _exit(0);
  }
  const int s = accept(listener, NULL, NULL);
  setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  for (size_t i = 0; i < rounds; i++) {
    const double start = now();
    if (send(s, buffer, sizeof buffer, 0) != sizeof buffer ||
        recv(s, buffer, sizeof buffer, MSG_WAITALL) != sizeof buffer)
      exit(1);
    samples[i] = now() - start;
  }
  close(s);
  waitpid(child, NULL, 0);
  return median_rtt_us(samples, rounds);
}

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? atof(argv[1]) : 1.0;
  const size_t rounds = 20000;
  shared* s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  double* samples = calloc(rounds, sizeof *samples);
  if (s == MAP_FAILED || !samples) return 1;
  double push_ns, drain_ns;
  ring_one_way(s, seconds, &push_ns, &drain_ns);
  const double spin = spin_round_trip(s, samples, rounds);
  const double futex = futex_round_trip(s, samples, rounds / 4);
  const double tcp = tcp_round_trip(samples, rounds / 4);
  printf(
      "{\"cpus\": %ld, \"ring_push_ns\": %.1f, \"ring_drain_ns\": %.1f, \"shm_spin_rtt_us\": %.2f, "
      "\"shm_futex_rtt_us\": %.2f, \"tcp_rtt_us\": %.2f}\n",
      sysconf(_SC_NPROCESSORS_ONLN), push_ns, drain_ns, spin, futex, tcp);
  free(samples);
  return 0;
}
