// The session side of the shim against a fake worker, both ends as threads of one program, for the sanitizers.
//   session_test shm|tcp|raw|raw-spin SCENARIO      raw-spin: as on a machine where waits spin
#define _GNU_SOURCE
#include "session_test.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "session/copier.h"
#include "session/futex.h"

void orion_api_after_fork(void) {}

// Instead of the C library's: on two CPUs or fewer waits never spin, and those paths are to be tested anywhere.
static uint32_t shown_cpus = 1;
int sched_getaffinity(pid_t pid, size_t bytes, cpu_set_t* set) {
  (void)pid;
  CPU_ZERO_S(bytes, set);
  for (uint32_t i = 0; i < shown_cpus; i++) CPU_SET_S(i, bytes, set);
  return 0;
}

orion_session* session;
static uint64_t device_base;

static void attach(void) {
  CHECK(orion_ready() == CUDA_ERROR_NOT_INITIALIZED);
  CHECK(orion_attach() == CUDA_SUCCESS && orion_attach() == CUDA_SUCCESS);
  CHECK(orion_ready() == CUDA_SUCCESS && orion_device_count() == 1 && !orion_device_at(1));
  const orion_device* device = orion_device_at(0);
  CHECK(strcmp(device->name, "fake device") == 0 && device->attributes[16] == 4 && device->has_attribute[16]);
  session = device->session;
  device_base = device->slot_base;
  fake_worker_share(session->segment, session->host_base);
}

static orion_op head(uint16_t code, uint32_t stream) {
  return (orion_op){.code = code, .context = 1, .stream = stream};
}

uint64_t ping(uint64_t value) {
  orion_op_ping op = {.op = head(ORION_OP_PING, 0), .value = value};
  orion_reply_ping reply = {0};
  uint32_t bytes = 0;
  CHECK(orion_call(session, &op.op, sizeof op, NULL, 0, &reply, sizeof reply, &bytes) == CUDA_SUCCESS);
  CHECK(bytes == sizeof reply);
  return reply.value;
}

CUresult mark(uint32_t stream, uint64_t value) {
  orion_op_mark op = {.op = head(ORION_OP_MARK, stream), .word = ORION_WORD_STREAMS + stream, .value = value};
  return orion_submit(session, &op.op, sizeof op, NULL, 0);
}

CUresult wait_mark(uint32_t stream, uint64_t value) {
  return orion_wait_word(session, ORION_WORD_STREAMS + stream, value, 1);
}

// The worker counts an operation after it has answered it.
static bool executed_becomes(uint64_t count) {
  const uint64_t until_ns = orion_now_ns() + 10000000000ull;
  while (fake_worker_executed() < count && orion_now_ns() < until_ns) usleep(1000);
  return fake_worker_executed() == count;
}

// ------------------------------------------------------------------------------------------------- calls

enum { CALL_THREADS = 80, CALL_ROUNDS = 30, ECHO_MAX = 16000 };  // more threads than reply slots

static uint32_t first_stream = 1;  // words only grow: a second run needs other streams

static void* call_thread(void* argument) {
  const uint32_t stream = first_stream + (uint32_t)(uintptr_t)argument;
  uint8_t* sent = malloc(ECHO_MAX);
  uint8_t* got = malloc(ECHO_MAX);
  for (uint32_t round = 1; round <= CALL_ROUNDS; round++) {
    const uint64_t value = (uint64_t)stream << 32 | round;
    CHECK(ping(value) == value);
    const uint32_t bytes = 1 + (stream * 977 + round * 3571) % ECHO_MAX;
    memset(sent, (int)(stream + round), bytes);
    orion_op_module_get_function op = {.op = head(ORION_OP_MODULE_GET_FUNCTION, 0)};
    uint32_t got_bytes = 0;
    CHECK(orion_call(session, &op.op, sizeof op, sent, bytes, got, ECHO_MAX, &got_bytes) == CUDA_SUCCESS);
    CHECK(got_bytes == bytes && memcmp(sent, got, bytes) == 0);
    orion_op_nop nop = {.op = head(ORION_OP_NOP, stream)};
    for (int i = 0; i < 20; i++) CHECK(orion_submit(session, &nop.op, sizeof nop, NULL, 0) == CUDA_SUCCESS);
    CHECK(mark(stream, round) == CUDA_SUCCESS && wait_mark(stream, round) == CUDA_SUCCESS);
    CHECK(orion_word(session, ORION_WORD_STREAMS + stream) == round);
  }
  free(sent);
  free(got);
  return NULL;
}

void run_threads(uint32_t count, void* (*body)(void*)) {
  pthread_t threads[CALL_THREADS];
  for (uintptr_t i = 0; i < count; i++) CHECK(pthread_create(&threads[i], NULL, body, (void*)i) == 0);
  for (uint32_t i = 0; i < count; i++) CHECK(pthread_join(threads[i], NULL) == 0);
}

static void test_calls(void) {
  run_threads(CALL_THREADS, call_thread);
  CHECK(executed_becomes((uint64_t)CALL_THREADS * CALL_ROUNDS * 23));
  CHECK(orion_thread_index() < CALL_THREADS + 1);  // indices of dead threads are used again
  first_stream += CALL_THREADS;
  run_threads(4, call_thread);
  char small[4];
  uint32_t bytes = 0;
  orion_op_module_get_function op = {.op = head(ORION_OP_MODULE_GET_FUNCTION, 0)};
  CHECK(orion_call(session, &op.op, sizeof op, "0123456789", 10, small, sizeof small, &bytes) == CUDA_SUCCESS);
  CHECK(bytes == 4 && memcmp(small, "0123", 4) == 0);
}

// ------------------------------------------------------------------------------------------------- a full ring

static void* fill_thread(void* argument) {
  const uint32_t stream = 1 + (uint32_t)(uintptr_t)argument;
  static uint8_t tail[32764];
  for (int i = 0; i < 400; i++) {  // three threads: about 39 MB through a ring of 2 MiB
    orion_op_launch op = {.op = head(ORION_OP_LAUNCH, stream), .param_bytes = sizeof tail};
    CHECK(orion_submit(session, &op.op, sizeof op, tail, sizeof tail) == CUDA_SUCCESS);
  }
  CHECK(mark(stream, 1) == CUDA_SUCCESS && wait_mark(stream, 1) == CUDA_SUCCESS);
  return NULL;
}

static void* release_thread(void* argument) {
  (void)argument;
  usleep(300000);
  fake_worker_hold(false);
  return NULL;
}

static void test_full(void) {
  fake_worker_hold(true);
  pthread_t releaser;
  CHECK(pthread_create(&releaser, NULL, release_thread, NULL) == 0);
  run_threads(3, fill_thread);
  CHECK(pthread_join(releaser, NULL) == 0 && executed_becomes(3 * 401));
}

// ------------------------------------------------------------------------------------------------- copies

CUresult copy_in(uint64_t offset, uint64_t to, uint64_t bytes) {
  orion_op_copy_h2d op = {
      .op = head(ORION_OP_COPY_H2D, 1), .device_dst = device_base + to, .src_off = offset, .size_bytes = bytes};
  op.op.bulk_seq = orion_push_host(session, offset, bytes);
  return orion_submit(session, &op.op, sizeof op, NULL, 0);
}

CUresult copy_out(uint64_t from, uint64_t offset, uint64_t bytes, uint64_t value) {
  orion_op_copy_d2h op = {
      .op = head(ORION_OP_COPY_D2H, 1), .src = device_base + from, .dst_off = offset, .size_bytes = bytes};
  const CUresult result = orion_submit(session, &op.op, sizeof op, NULL, 0);
  orion_note_pull(session, offset, bytes, ORION_WORD_STREAMS + 1, value);
  return result;
}

void fill_device(uint64_t at, uint64_t bytes, uint32_t value) {
  orion_op_memset op = {.op = head(ORION_OP_MEMSET, 1),
                        .device_dst = device_base + at,
                        .width = bytes,
                        .height = 1,
                        .value = value,
                        .element_bytes = 1};
  CHECK(orion_submit(session, &op.op, sizeof op, NULL, 0) == CUDA_SUCCESS);
}

bool all_equal(const uint8_t* at, uint64_t bytes, uint8_t value) {
  return at[0] == value && memcmp(at, at + 1, bytes - 1) == 0;
}

// The sanitizer does not see order that travels through a socket; the worker's counter shows it the same order.
bool device_holds(uint64_t at, uint64_t bytes, uint8_t value) {
  return fake_worker_executed() != 0 && all_equal(fake_device_memory + at, bytes, value) && fake_worker_executed() != 0;
}

// A pinned buffer that the stream fills and reads back with no wait between: the worker's bytes are the newer ones.
static void test_bounce(void) {
  enum { BYTES = 3 << 20, B = 8 << 20 };
  uint8_t* pinned = orion_arena_allocate(session, BYTES);
  CHECK(pinned && pinned >= session->host_base + ORION_STAGING_BYTES);
  const uint64_t offset = (uint64_t)(pinned - session->host_base);
  for (uint64_t round = 1; round <= 20; round++) {
    memset(pinned, 0xee, BYTES);
    fill_device(0, BYTES, (uint32_t)round);
    CHECK(copy_out(0, offset + 4096, BYTES - 8192, round) == CUDA_SUCCESS);  // the first and last page stay ours
    CHECK(copy_in(offset, B, BYTES) == CUDA_SUCCESS);
    CHECK(mark(1, round) == CUDA_SUCCESS && wait_mark(1, round) == CUDA_SUCCESS);
    CHECK(all_equal(pinned + 4096, BYTES - 8192, (uint8_t)round) && all_equal(pinned, 4096, 0xee));
    CHECK(device_holds(B, 4096, 0xee));
    CHECK(device_holds(B + 4096, BYTES - 8192, (uint8_t)round));
    CHECK(device_holds(B + BYTES - 4096, 4096, 0xee));
  }
  orion_arena_free(session, pinned, BYTES);
  uint8_t* again = orion_arena_allocate(session, BYTES);
  CHECK(again == pinned && all_equal(again, BYTES, 0));  // the pages were given back
  void* parts[8];
  for (int i = 0; i < 8; i++) CHECK((parts[i] = orion_arena_allocate(session, 5000)));
  for (int i = 0; i < 8; i += 2) orion_arena_free(session, parts[i], 5000);
  for (int i = 1; i < 8; i += 2) orion_arena_free(session, parts[i], 5000);
  orion_arena_free(session, again, BYTES);
  CHECK(orion_arena_allocate(session, ORION_HOST_ARENA_BYTES - ORION_STAGING_BYTES) == pinned);  // all coalesced
  CHECK(!orion_arena_allocate(session, 1));
}

static void* staging_thread(void* argument) {
  const uint32_t stream = 1 + (uint32_t)(uintptr_t)argument;
  for (uint32_t round = 1; round <= 60; round++) {  // up to 480 MB through 64 MiB of staging
    const uint64_t bytes = 1 + (stream * 7919ull + round * 104729ull) % (4 << 20);
    uint64_t offset = 0;
    CHECK(orion_staging_take(session, bytes, &offset) == CUDA_SUCCESS && offset % 64 == 0);
    CHECK(offset + bytes <= ORION_STAGING_BYTES);
    uint8_t* block = session->host_base + offset;
    memset(block, (int)(stream * 16 + round), bytes);
    orion_op_copy_h2d op = {.op = head(ORION_OP_COPY_H2D, stream),
                            .device_dst = device_base + (stream - 1) * (4ull << 20),
                            .src_off = offset,
                            .size_bytes = bytes};
    op.op.bulk_seq = orion_push_host(session, offset, bytes);
    CHECK(orion_submit(session, &op.op, sizeof op, NULL, 0) == CUDA_SUCCESS && mark(stream, round) == CUDA_SUCCESS);
    if (round % 7 == 0) {
      CHECK(wait_mark(stream, round) == CUDA_SUCCESS);
      CHECK(device_holds((stream - 1) * (4ull << 20), bytes, (uint8_t)(stream * 16 + round)));
      orion_staging_give(session, offset, 0, 0);
    } else {
      orion_staging_give(session, offset, ORION_WORD_STREAMS + stream, round);
    }
  }
  CHECK(wait_mark(stream, 60) == CUDA_SUCCESS);
  return NULL;
}

static void test_staging(void) {
  uint64_t offset = 0;
  CHECK(orion_staging_take(session, (4 << 20) + 1, &offset) == CUDA_ERROR_INVALID_VALUE);
  run_threads(4, staging_thread);
  uint64_t blocks[16];
  for (int i = 0; i < 16; i++) CHECK(orion_staging_take(session, 4 << 20, &blocks[i]) == CUDA_SUCCESS);
  for (int i = 0; i < 16; i++) orion_staging_give(session, blocks[i], 0, 0);
  for (int i = 0; i < 16; i++)
    orion_staging_give(session, blocks[i], ORION_WORD_STREAMS + 40, 1);  // not taken: ignored
  for (int i = 0; i < 16; i++) CHECK(orion_staging_take(session, 4 << 20, &blocks[i]) == CUDA_SUCCESS);
  for (int i = 0; i < 16; i++) orion_staging_give(session, blocks[i], ORION_WORD_STREAMS + 40, 1);
  fake_worker_word(ORION_WORD_CONTEXT_ERROR + 1, 700);  // the marker never comes: a fault must end the wait
  CHECK(orion_staging_take(session, 4096, &offset) == CUDA_ERROR_ILLEGAL_ADDRESS);
}

// ------------------------------------------------------------------------------------------------- errors

static void test_errors(void) {
  orion_op_function_set_cache_config op = {.op = head(ORION_OP_FUNCTION_SET_CACHE_CONFIG, 1), .function = 1};
  CHECK(orion_take_late_error(session) == CUDA_SUCCESS);
  CHECK(orion_submit(session, &op.op, sizeof op, NULL, 0) == CUDA_SUCCESS);
  CHECK(mark(1, 1) == CUDA_SUCCESS && wait_mark(1, 1) == CUDA_SUCCESS);
  CHECK(orion_take_late_error(session) == CUDA_ERROR_INVALID_HANDLE);
  CHECK(orion_take_late_error(session) == CUDA_SUCCESS);  // told once
  CHECK(orion_wait_word(session, ORION_WORDS, 1, 1) == CUDA_ERROR_INVALID_VALUE);
  fake_worker_word(ORION_WORD_CONTEXT_ERROR + 1, 719);
  CHECK(wait_mark(1, 2) == CUDA_ERROR_LAUNCH_FAILED);  // that marker was never placed
  CHECK(orion_context_error(session, 1) == CUDA_ERROR_LAUNCH_FAILED);
  CHECK(orion_context_error(session, 2) == CUDA_SUCCESS && ping(5) == 5);
  fake_worker_word(ORION_WORD_SESSION_ERROR, 46);
  CHECK(orion_wait_word(session, ORION_WORD_STREAMS + 2, 1, 2) == CUDA_ERROR_DEVICE_UNAVAILABLE);
  CHECK(mark(1, 3) == CUDA_ERROR_DEVICE_UNAVAILABLE &&
        orion_context_error(session, 2) == CUDA_ERROR_DEVICE_UNAVAILABLE);
}

static void test_callback(void) {
  for (uint64_t generation = 1; generation <= 5; generation++) {
    orion_op_host_function op = {.op = head(ORION_OP_HOST_FUNCTION, 1),
                                 .callback = 70,
                                 .generation = generation,
                                 .word = ORION_WORD_DYNAMIC + 3,
                                 .value = generation};
    CHECK(orion_submit(session, &op.op, sizeof op, NULL, 0) == CUDA_SUCCESS && mark(1, generation) == CUDA_SUCCESS);
    CHECK(orion_wait_word(session, ORION_WORD_DYNAMIC + 3, generation, 1) == CUDA_SUCCESS);
    usleep(2000);
    CHECK(orion_word(session, ORION_WORD_STREAMS + 1) == generation - 1);  // the stream is parked
    orion_set_client_word(session, 70, generation);
    CHECK(wait_mark(1, generation) == CUDA_SUCCESS);
  }
}

static void* killer_thread(void* argument) {
  (void)argument;
  usleep(200000);
  fake_worker_kill();
  return NULL;
}

static void* stuck_thread(void* argument) {
  const uint32_t stream = 1 + (uint32_t)(uintptr_t)argument;
  CHECK(wait_mark(stream, 1000) == CUDA_ERROR_DEVICE_UNAVAILABLE);
  CHECK(mark(stream, 1000) == CUDA_ERROR_DEVICE_UNAVAILABLE);
  CHECK(!orion_arena_allocate(session, 4096));
  uint64_t offset = 0;
  CHECK(orion_staging_take(session, 4096, &offset) == CUDA_ERROR_DEVICE_UNAVAILABLE);
  return NULL;
}

static void test_death(void) {
  pthread_t killer;
  CHECK(ping(1) == 1 && pthread_create(&killer, NULL, killer_thread, NULL) == 0);
  run_threads(8, stuck_thread);
  CHECK(pthread_join(killer, NULL) == 0);
}

static void test_garbage(void) {
  fake_worker_garbage();
  CHECK(wait_mark(1, 1) == CUDA_ERROR_DEVICE_UNAVAILABLE);
}

// A full ring and a worker that never takes from it again.
static void test_full_death(void) {
  fake_worker_hold(true);
  pthread_t killer;
  CHECK(pthread_create(&killer, NULL, killer_thread, NULL) == 0);
  static uint8_t tail[32764];
  orion_op_launch op = {.op = head(ORION_OP_LAUNCH, 1), .param_bytes = sizeof tail};
  CUresult result = CUDA_SUCCESS;
  for (int i = 0; i < 100000 && result == CUDA_SUCCESS; i++)
    result = orion_submit(session, &op.op, sizeof op, tail, sizeof tail);
  CHECK(result == CUDA_ERROR_DEVICE_UNAVAILABLE && pthread_join(killer, NULL) == 0);
}

// ------------------------------------------------------------------------------------------------- fork, exit, sync

static void test_fork(void) {
  CHECK(ping(1) == 1);
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    orion_op_nop op = {.op = head(ORION_OP_NOP, 0)};
    const bool good = orion_ready() == CUDA_ERROR_NOT_INITIALIZED && !orion_attached() && orion_device_count() == 0 &&
                      orion_attach() == CUDA_ERROR_NOT_INITIALIZED &&
                      orion_submit(session, &op.op, sizeof op, NULL, 0) == CUDA_ERROR_NOT_INITIALIZED &&
                      orion_call(session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL) == CUDA_ERROR_NOT_INITIALIZED &&
                      orion_wait_word(session, 5000, 1, 1) == CUDA_ERROR_NOT_INITIALIZED &&
                      orion_word(session, 5000) == 0;
    _exit(good ? 0 : 1);
  }
  int status = 1;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  CHECK(ping(2) == 2);  // the parent goes on
}

uint64_t executed_at_exit;

static void after_exit_handlers(void) {
  const uint64_t until_ns = orion_now_ns() + 5000000000ull;
  while (!fake_worker_saw_detach() && orion_now_ns() < until_ns) usleep(1000);
  CHECK(fake_worker_saw_detach());
  CHECK(executed_at_exit == 0 || executed_becomes(executed_at_exit));
  CHECK(orion_ready() == CUDA_ERROR_DEINITIALIZED && mark(1, 1) == CUDA_ERROR_DEINITIALIZED);
  CHECK(orion_attach() == CUDA_ERROR_DEINITIALIZED);
}

static void test_sync(void) {
  for (int i = 0; i < 10; i++) {
    const uint64_t before = fake_worker_executed();
    fill_device(0, 16, (uint32_t)i + 1);
    CHECK(fake_worker_executed() >= before + 1 && device_holds(0, 16, (uint8_t)(i + 1)));  // done at its return
  }
}

// ------------------------------------------------------------------------------------------------- shared copies

enum { COPY_ROUNDS = 40, COPY_BYTES_MAX = 3 << 20 };

// Sizes around what is shared and what is not, at odd addresses; nothing beside the copy is touched.
static void* copy_much(void* argument) {
  uint32_t seed = (uint32_t)(uintptr_t)argument;
  uint8_t* from = malloc(COPY_BYTES_MAX + 64);
  uint8_t* to = malloc(COPY_BYTES_MAX + 64);
  CHECK(from && to);
  for (int round = 0; round < COPY_ROUNDS; round++) {
    seed = seed * 1664525u + 1013904223u;
    const size_t bytes = round % 4 == 0 ? 1 + seed % 70000 : (512u << 10) - 1 + seed % (2u << 20);
    const size_t shift = seed >> 26;
    for (size_t i = 0; i < bytes; i++) from[i] = (uint8_t)(i * 7 + seed);
    memset(to, 0xEE, bytes + 64);
    orion_copy_bytes(to + shift, from, bytes);
    CHECK(memcmp(to + shift, from, bytes) == 0);
    for (size_t i = 0; i < shift; i++) CHECK(to[i] == 0xEE);
    for (size_t i = shift + bytes; i < bytes + 64; i++) CHECK(to[i] == 0xEE);
  }
  free(from);
  free(to);
  return NULL;
}

static void test_copies(void) {
  orion_copier_set(4);
  pthread_t threads[3];
  for (uintptr_t i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], NULL, copy_much, (void*)(i + 1)) == 0);
  for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
  const pid_t child = fork();  // has no helpers, and makes its own
  CHECK(child >= 0);
  if (child == 0) {
#ifdef __SANITIZE_THREAD__
    orion_copier_set(1);  // it forbids threads in a child of several
#endif
    copy_much((void*)(uintptr_t)9);
    _exit(0);
  }
  int status = 1;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  copy_much((void*)(uintptr_t)10);
}

int main(int argc, char** argv) {
  static const struct {
    const char* name;
    void (*body)(void);
  } scenarios[] = {{"calls", test_calls},
                   {"full", test_full},
                   {"bounce", test_bounce},
                   {"staging", test_staging},
                   {"errors", test_errors},
                   {"callback", test_callback},
                   {"death", test_death},
                   {"full_death", test_full_death},
                   {"fork", test_fork},
                   {"garbage", test_garbage},
                   {"sync", test_sync},
                   {"copies", test_copies},
                   {"exit", NULL},
                   {"waiters", test_waiters},
                   {"stripes", test_stripes},
                   {"resend", test_resend},
                   {"words_first", test_words_first},
                   {"held_end", test_held_end},
                   {"close_lane_0", test_close_lane_0},
                   {"reset_lane_0", test_reset_lane_0},
                   {"reset_stripe", test_reset_stripe},
                   {"bad_frames", test_bad_frames},
                   {"fork_wait", test_fork_wait},
                   {"exit_unsent", test_exit_unsent},
                   {"answers", test_answers}};
  if (argc != 3) return 2;
  atexit(after_exit_handlers);  // registered before attach, so it runs after the shim's own
  if (strstr(argv[1], "-spin")) shown_cpus = 4;
  if (strcmp(argv[2], "sync") == 0) setenv("ORION_SYNC", "1", 1);
  fake_worker_start(argv[1]);
  for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++) {
    if (strcmp(scenarios[i].name, argv[2]) != 0) continue;
    attach();
    if (scenarios[i].body) scenarios[i].body();
    printf("%s over %s: ok\n", argv[2], argv[1]);
    if (strncmp(argv[2], "exit", 4) == 0) exit(0);
    fflush(stdout);
    _Exit(0);  // the fake worker's threads still run
  }
  return 2;
}
