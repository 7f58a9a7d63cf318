// What the engine itself costs for each launch that it replays: it finds a ring full of launches, with a driver that
// does nothing, and runs until they are done. Prints one JSON object; `replay_cost COUNT` runs one ring of COUNT only,
// for callgrind.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "engine.h"
#include "gen_ops.h"
#include "orion_ring.h"

#define ARENA_BYTES (64ull << 20)
#define PARAMS 10u
#define MOST 8000u  // of two slots each: fits the ring
#define RUNS 31

#define CHECK(condition)                                              \
  do {                                                                \
    if (!(condition)) {                                               \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      exit(1);                                                        \
    }                                                                 \
  } while (0)

static orion_segment* segment;
static const char image[] = ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry kernel() { ret; }\n";

static void push(orion_op* op, uint32_t bytes, const void* tail, uint32_t tail_bytes) {
  op->context = 1;
  op->bytes = bytes + tail_bytes;
  CHECK(orion_ring_push(orion_main_ring(segment), op, bytes, tail));
}

static int memory(uint64_t bytes) {
  const int fd = (int)syscall(SYS_memfd_create, "replay-cost", 0);
  CHECK(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
  return fd;
}

static double now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void fill(uint32_t launches) {
  orion_op_ctx_primary primary = {.op = {.code = ORION_OP_CTX_PRIMARY, .reply_slot = 0, .reply_seq = 1}};
  push(&primary.op, sizeof primary, NULL, 0);
  orion_op_stream_create stream = {.op = {.code = ORION_OP_STREAM_CREATE, .stream = 1, .reply_slot = ORION_NO_REPLY},
                                   .stream_flags = 1};
  push(&stream.op, sizeof stream, NULL, 0);
  orion_op_module_load module = {
      .op = {.code = ORION_OP_MODULE_LOAD, .reply_slot = 1, .reply_seq = 1}, .module = 1, .image_bytes = sizeof image};
  push(&module.op, sizeof module, NULL, 0);
  static const char name[] = "kernel_params_10";
  orion_op_module_get_function function = {
      .op = {.code = ORION_OP_MODULE_GET_FUNCTION, .reply_slot = 2, .reply_seq = 1}, .module = 1, .function = 1};
  push(&function.op, sizeof function, name, sizeof name - 1);
  uint64_t params[PARAMS] = {0};
  for (uint32_t i = 0; i < launches; i++) {
    orion_op_launch launch = {.op = {.code = ORION_OP_LAUNCH, .stream = 1, .reply_slot = ORION_NO_REPLY},
                              .function = 1,
                              .grid_x = 1,
                              .grid_y = 1,
                              .grid_z = 1,
                              .block_x = 1,
                              .block_y = 1,
                              .block_z = 1,
                              .param_bytes = sizeof params};
    push(&launch.op, sizeof launch, params, sizeof params);
  }
  orion_op_detach detach = {.op = {.code = ORION_OP_DETACH, .reply_slot = ORION_NO_REPLY}};
  push(&detach.op, sizeof detach, NULL, 0);
}

/// Nanoseconds of a whole session of so many launches.
static double replay(uint32_t launches) {
  const orion_engine_config config = {.null_engine = 1, .transport = ORION_ENGINE_SHM};
  orion_engine* engine = NULL;
  CHECK(orion_engine_new(&config, &engine) == 0);
  const orion_engine_device device = {0, ORION_DEVICE_SLOT_CANDIDATE(0), 1ull << 30};
  const orion_engine_bind_request request = {.segment_fd = memory(sizeof(orion_segment)),
                                             .arena_fd = memory(ARENA_BYTES),
                                             .host_base = ORION_HOST_ARENA_CANDIDATE(0),
                                             .arena_bytes = ARENA_BYTES,
                                             .device_count = 1,
                                             .devices = &device};
  CHECK(pwrite(request.arena_fd, image, sizeof image, 0) == sizeof image);
  const int segment_fd = dup(request.segment_fd);
  uint64_t conflicts = 0;
  CHECK(orion_engine_bind(engine, &request, &conflicts) == 0);
  const size_t align = _Alignof(orion_segment);
  uint8_t* room = mmap(NULL, sizeof *segment + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(room != MAP_FAILED);
  uint8_t* place = room + (align - (uintptr_t)room % align) % align;
  segment = mmap(place, sizeof *segment, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, segment_fd, 0);
  CHECK(segment != MAP_FAILED);
  fill(launches);
  const double begin = now_ns();
  CHECK(orion_engine_run(engine) == ORION_END_DETACHED);
  const double took = now_ns() - begin;
  for (int i = 0; i < 3; i++) CHECK(segment->replies[i].done == 1 && segment->replies[i].result == 0);
  orion_engine_stats stats;
  orion_engine_get_stats(engine, &stats);
  CHECK(stats.work_operations == launches && stats.late_errors == 0);
  orion_engine_free(engine);
  munmap(room, sizeof *segment + align);
  close(segment_fd);
  return took;
}

static int compare(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

int main(int argc, char** argv) {
  if (argc > 1) {
    const unsigned long count = strtoul(argv[1], NULL, 10);
    CHECK(count <= MOST);
    (void)replay((uint32_t)count);
    return 0;
  }
  static double times[RUNS];
  for (int i = 0; i < RUNS; i++) times[i] = (replay(MOST) - replay(0)) / MOST;
  qsort(times, RUNS, sizeof times[0], compare);
  printf("{\"launch_replay_ns\": %.1f}\n", times[RUNS / 2]);
  return 0;
}
