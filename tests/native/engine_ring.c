// Both ends of the rings as threads of one program: several producers push into one session, the engine (with the null
// driver) answers, by itself and with launchers. Built with a sanitizer by engine.sh; a lost, doubled or reordered
// operation makes it fail.
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "engine.h"
#include "gen_ops.h"
#include "orion_ring.h"

#define PRODUCERS 4u
#define ROUNDS 4000u
#define ARENA_BYTES (64ull << 20)
#define IMAGE_OFFSET (1u << 20)

#define CHECK(condition)                                              \
  do {                                                                \
    if (!(condition)) {                                               \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      abort();                                                        \
    }                                                                 \
  } while (0)

static orion_segment* segment;

static void wake(_Atomic uint32_t* word) {
  atomic_fetch_add(word, 1);
  syscall(SYS_futex, word, FUTEX_WAKE, 1 << 30, NULL, NULL, 0);
}

static void nap(_Atomic uint32_t* word, uint32_t seen) {
  const struct timespec some = {0, 1000000};
  syscall(SYS_futex, word, FUTEX_WAIT, seen, &some, NULL, 0);
}

static void push(bool express, const orion_op* op, uint32_t head_bytes, const void* tail) {
  const orion_ring ring = express ? orion_express_ring(segment) : orion_main_ring(segment);
  while (!orion_ring_push(ring, op, head_bytes, tail)) {
    const uint32_t seen = atomic_load(&ring.control->space);
    atomic_fetch_add(&ring.control->producers_parked, 1);
    nap(&ring.control->space, seen);
    atomic_fetch_sub(&ring.control->producers_parked, 1);
  }
  if (orion_ring_must_wake(ring)) wake(&ring.control->wake);
}

static void wait_word(uint32_t slot, uint32_t word, uint64_t value) {
  atomic_store(&segment->waiters[slot].value, value);
  atomic_store(&segment->waiters[slot].word, word);
  atomic_fetch_add(&segment->client_waiters, 1);
  wake(&segment->watcher_wake);
  for (;;) {
    const uint32_t seen = atomic_load(&segment->client_wake);
    if (atomic_load(&segment->words[word]) >= value) break;
    nap(&segment->client_wake, seen);
  }
  atomic_store(&segment->waiters[slot].word, 0);
  atomic_fetch_sub(&segment->client_waiters, 1);
}

static uint64_t call(uint32_t slot, bool express, orion_op* op, uint64_t sequence, int32_t* result) {
  op->reply_slot = slot;
  op->reply_seq = (uint32_t)sequence;
  push(express, op, op->bytes, NULL);
  orion_reply* reply = &segment->replies[slot];
  atomic_fetch_add(&segment->client_waiters, 1);
  for (;;) {
    const uint32_t seen = atomic_load(&segment->client_wake);
    if (atomic_load_explicit(&reply->done, memory_order_acquire) == sequence) break;
    nap(&segment->client_wake, seen);
  }
  atomic_fetch_sub(&segment->client_waiters, 1);
  *result = reply->result;
  uint64_t value = 0;
  memcpy(&value, reply->payload, sizeof value);
  return value;
}

static void* produce(void* argument) {
  const uint32_t me = (uint32_t)(uintptr_t)argument;
  const uint32_t stream = me + 1;
  orion_op_stream_create create = {.op = {.code = ORION_OP_STREAM_CREATE,
                                          .bytes = sizeof create,
                                          .context = 1,
                                          .thread = (uint16_t)me,
                                          .stream = stream,
                                          .reply_slot = ORION_NO_REPLY},
                                   .stream_flags = me & 1};
  push(false, &create.op, sizeof create, NULL);
  uint8_t tail[4096];
  uint64_t mark = 0;
  for (uint32_t round = 1; round <= ROUNDS; round++) {
    // Sizes from one slot to many, so that entries wrap around the ring's end at every place.
    const uint32_t tail_bytes = 1 + round * 37 % sizeof tail;
    memset(tail, (int)round, tail_bytes);
    orion_op_copy_h2d_inline copy = {.op = {.code = ORION_OP_COPY_H2D_INLINE,
                                            .bytes = (uint32_t)sizeof copy + tail_bytes,
                                            .context = 1,
                                            .thread = (uint16_t)me,
                                            .stream = stream,
                                            .reply_slot = ORION_NO_REPLY},
                                     .device_dst = ORION_DEVICE_SLOT_CANDIDATE(0)};
    push(false, &copy.op, sizeof copy, tail);
    orion_op_launch launch = {.op = {.code = ORION_OP_LAUNCH,
                                     .bytes = (uint32_t)sizeof launch + tail_bytes,
                                     .context = 1,
                                     .thread = (uint16_t)me,
                                     .stream = stream,
                                     .reply_slot = ORION_NO_REPLY},
                              .function = 1,
                              .grid_x = round,
                              .param_bytes = tail_bytes};
    push(false, &launch.op, sizeof launch, tail);
    if (round % 16 == 0) {
      orion_op_mark m = {.op = {.code = ORION_OP_MARK,
                                .bytes = sizeof m,
                                .context = 1,
                                .thread = (uint16_t)me,
                                .stream = stream,
                                .reply_slot = ORION_NO_REPLY},
                         .word = ORION_WORD_STREAMS + stream,
                         .value = ++mark};
      push(false, &m.op, sizeof m, NULL);
      CHECK(atomic_load(&segment->words[m.word]) <= mark);  // never ahead of what was asked for
      if (round % 64 == 0) wait_word(me, m.word, mark);
    }
    if (round % 50 == 0) {
      orion_op_ping ping = {.op = {.code = ORION_OP_PING, .bytes = sizeof ping, .context = 1}, .value = round};
      int32_t result = -1;
      CHECK(call(me, true, &ping.op, round, &result) == round && result == 0);
    }
  }
  return NULL;
}

static void* serve(void* engine) { return (void*)(uintptr_t)orion_engine_run(engine); }

static int memory(uint64_t bytes) {
  const int fd = (int)syscall(SYS_memfd_create, "engine-ring", 0);
  CHECK(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
  return fd;
}

// Sanitizers keep their own shadow where clients would propose: any free place will do here. It is the low end of a
// wide gap, which later mappings fill from its other end.
static uint64_t free_place(void) {
  void* p = mmap(NULL, 16 * ARENA_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(p != MAP_FAILED && munmap(p, 16 * ARENA_BYTES) == 0);
  return (uint64_t)(uintptr_t)p;
}

static void* map(int fd, uint64_t bytes, size_t align) {
  uint8_t* room = mmap(NULL, bytes + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(room != MAP_FAILED);
  room += (align - (uintptr_t)room % align) % align;
  void* at = mmap(room, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
  CHECK(at != MAP_FAILED);
  return at;
}

/// Function 1 of module 1: the null driver knows every name.
static void load_function(int arena_fd) {
  const char text[] = ".version 7.0\n.target sm_70\n";
  char* arena = map(arena_fd, ARENA_BYTES, 4096);
  memcpy(arena + IMAGE_OFFSET, text, sizeof text);
  munmap(arena, ARENA_BYTES);
  int32_t result = -1;
  orion_op_module_load load = {.op = {.code = ORION_OP_MODULE_LOAD, .bytes = sizeof load, .context = 1},
                               .module = 1,
                               .image_off = IMAGE_OFFSET,
                               .image_bytes = sizeof text};
  (void)call(0, false, &load.op, (1u << 30) + 2, &result);
  CHECK(result == 0);
  struct {
    orion_op_module_get_function head;
    char name[8];
  } get = {{.op = {.code = ORION_OP_MODULE_GET_FUNCTION, .bytes = sizeof get.head + 4, .context = 1},
            .module = 1,
            .function = 1},
           "name"};
  (void)call(0, false, &get.head.op, (1u << 30) + 3, &result);
  CHECK(result == 0);
}

static void run(int launchers) {
  const orion_engine_config config = {
      .null_engine = 1, .transport = ORION_ENGINE_SHM, .spin_us = 20, .launchers = launchers, .launchers_always = 1};
  orion_engine* engine = NULL;
  CHECK(orion_engine_new(&config, &engine) == 0);
  const orion_engine_device device = {0, ORION_DEVICE_SLOT_CANDIDATE(0), 1ull << 30};
  const orion_engine_bind_request request = {.segment_fd = memory(sizeof(orion_segment)),
                                             .arena_fd = memory(ARENA_BYTES),
                                             .host_base = free_place(),
                                             .arena_bytes = ARENA_BYTES,
                                             .device_count = 1,
                                             .devices = &device};
  uint64_t conflicts = 0;
  CHECK(orion_engine_bind(engine, &request, &conflicts) == 0);
  segment = map(request.segment_fd, sizeof *segment, _Alignof(orion_segment));
  CHECK(segment->magic == ORION_SEGMENT_MAGIC);
  pthread_t server, producers[PRODUCERS];
  CHECK(pthread_create(&server, NULL, serve, engine) == 0);
  int32_t result = -1;
  orion_op_ctx_primary primary = {.op = {.code = ORION_OP_CTX_PRIMARY, .bytes = sizeof primary, .context = 1}};
  (void)call(0, false, &primary.op, 1u << 30, &result);
  CHECK(result == 0);
  orion_op_mem_map memory_map = {.op = {.code = ORION_OP_MEM_MAP, .bytes = sizeof memory_map, .context = 1},
                                 .device_address = device.base,
                                 .size_bytes = ORION_CHUNK_BYTES};
  (void)call(0, true, &memory_map.op, (1u << 30) + 1, &result);
  CHECK(result == 0);
  load_function(request.arena_fd);
  for (uintptr_t i = 0; i < PRODUCERS; i++) CHECK(pthread_create(&producers[i], NULL, produce, (void*)i) == 0);
  for (uint32_t i = 0; i < PRODUCERS; i++) CHECK(pthread_join(producers[i], NULL) == 0);
  for (uint32_t i = 0; i < PRODUCERS; i++) wait_word(i, ORION_WORD_STREAMS + i + 1, ROUNDS / 16);
  orion_op_detach detach = {.op = {.code = ORION_OP_DETACH, .bytes = sizeof detach, .reply_slot = ORION_NO_REPLY}};
  push(false, &detach.op, sizeof detach, NULL);
  void* end = NULL;
  CHECK(pthread_join(server, &end) == 0 && (uintptr_t)end == ORION_END_DETACHED);
  orion_engine_stats stats;
  orion_engine_get_stats(engine, &stats);
  const uint64_t each = 1 + 2 * ROUNDS + ROUNDS / 16 + ROUNDS / 50;
  CHECK(stats.operations == PRODUCERS * each + 5);
  CHECK(stats.work_operations == (uint64_t)PRODUCERS * 2 * ROUNDS && stats.late_errors == 0);
  CHECK(launchers ? stats.launches_handed > (uint64_t)PRODUCERS * ROUNDS * 9 / 10 : !stats.launches_handed);
  orion_engine_free(engine);
  munmap(segment, sizeof *segment);
  close(request.segment_fd);
  close(request.arena_fd);
}

int main(void) {
  run(0);
  run(3);
  puts("engine_ring: ok");
  return 0;
}
