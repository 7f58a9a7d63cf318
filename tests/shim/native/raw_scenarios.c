// Scenarios over plain sockets: those who wait move the bytes, large ranges travel on stripes.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fake_raw.h"
#include "session/futex.h"
#include "session_test.h"

static uint64_t offset_of(const uint8_t* at) { return (uint64_t)(at - session->host_base); }

static uint8_t* pinned(uint64_t bytes) {
  uint8_t* at = orion_arena_allocate(session, bytes);
  CHECK(at);
  return at;
}

// ------------------------------------------------------------------------------------------------- several that wait

enum { WAITERS = 6, WAIT_ROUNDS = 150, LAUNCH_ROUNDS = 6000 };

static CUresult launch(uint32_t stream) {
  static const uint8_t parameters[200] = {0};
  orion_op_launch op = {.op = {.code = ORION_OP_LAUNCH, .context = 1, .stream = stream},
                        .param_bytes = sizeof parameters};
  return orion_submit(session, &op.op, sizeof op, parameters, sizeof parameters);
}

// Threads 0 and 1 launch and seldom wait; the others do little else than wait, for words or for replies.
static void* wait_and_launch(void* argument) {
  const uint32_t me = (uint32_t)(uintptr_t)argument, stream = 1 + me;
  if (me < 2) {
    for (uint32_t i = 1; i <= LAUNCH_ROUNDS; i++) {
      CHECK(launch(stream) == CUDA_SUCCESS);
      if (i % 1000 == 0) CHECK(mark(stream, i) == CUDA_SUCCESS && wait_mark(stream, i) == CUDA_SUCCESS);
    }
    return NULL;
  }
  for (uint32_t i = 1; i <= WAIT_ROUNDS; i++) {
    if (me % 2 == 0) CHECK(launch(stream) == CUDA_SUCCESS);
    if (me < 5) CHECK(mark(stream, i) == CUDA_SUCCESS && wait_mark(stream, i) == CUDA_SUCCESS);
    if (me >= 4) CHECK(ping((uint64_t)me << 32 | i) == ((uint64_t)me << 32 | i));
    if (me == 3 && i % 16 == 0) usleep(2000);  // long enough for the I/O thread to fall asleep
  }
  return NULL;
}

void test_waiters(void) { run_threads(WAITERS, wait_and_launch); }

// ------------------------------------------------------------------------------------------------- large ranges

static void fill_pattern(uint8_t* at, uint64_t bytes, uint32_t seed) {
  for (uint64_t i = 0; i + 4 <= bytes; i += 4) {
    const uint32_t value = (uint32_t)i * 2654435761u + seed;
    memcpy(at + i, &value, 4);
  }
}

static void check_pattern(const uint8_t* at, uint64_t bytes, uint32_t seed) {
  for (uint64_t i = 0; i + 4 <= bytes; i += 4) {
    uint32_t value = 0;
    memcpy(&value, at + i, 4);
    CHECK(value == (uint32_t)i * 2654435761u + seed);
  }
}

// Ranges of all sizes, on stripes and beside them, in one stream and with one wait: whatever overtakes, the device
// brings back what was sent last.
void test_stripes(void) {
  enum { BYTES = 12 << 20, SMALL = 20000 };
  uint8_t* from = pinned(BYTES);
  uint8_t* to = pinned(BYTES);
  const uint64_t striped = fake_raw_striped();
  for (uint32_t round = 1; round <= 6; round++) {
    const uint64_t bytes = round % 2 ? BYTES : (BYTES - round * 333333) & ~3ull;
    fill_pattern(from, bytes, round);
    memset(to, 0, BYTES);
    CHECK(copy_in(offset_of(from), 0, bytes / 2) == CUDA_SUCCESS);
    for (uint64_t at = bytes / 2; at < bytes / 2 + SMALL; at += 1000)
      CHECK(copy_in(offset_of(from) + at, at, 1000) == CUDA_SUCCESS);
    CHECK(copy_in(offset_of(from) + bytes / 2, bytes / 2, bytes - bytes / 2) == CUDA_SUCCESS);
    CHECK(copy_out(0, offset_of(to), bytes / 3, round) == CUDA_SUCCESS);
    CHECK(copy_out(bytes / 3, offset_of(to) + bytes / 3, SMALL, round) == CUDA_SUCCESS);
    CHECK(copy_out(bytes / 3 + SMALL, offset_of(to) + bytes / 3 + SMALL, bytes - bytes / 3 - SMALL, round) ==
          CUDA_SUCCESS);
    CHECK(mark(1, round) == CUDA_SUCCESS && wait_mark(1, round) == CUDA_SUCCESS);
    check_pattern(to, bytes, round);
  }
  CHECK(fake_raw_striped() - striped >= 6 * 2 * 8);
}

// The same memory is sent again and again with other content, large and small parts in turn: the newest arrives last.
// The wait before a change is for the copy alone, as a program does it.
void test_resend(void) {
  enum { BYTES = 3 << 20, ROUNDS = 24 };
  uint8_t* at = pinned(BYTES);
  for (uint32_t round = 1; round <= ROUNDS; round++) {
    memset(at, (int)round, BYTES);
    CHECK(copy_in(offset_of(at), 0, BYTES) == CUDA_SUCCESS);
    CHECK(copy_in(offset_of(at) + 4096, 4096, round % 2 ? 1000 : 1 << 20) == CUDA_SUCCESS);
    CHECK(copy_in(offset_of(at), BYTES, BYTES) == CUDA_SUCCESS);
    CHECK(mark(1, round) == CUDA_SUCCESS && wait_mark(1, round) == CUDA_SUCCESS);
    CHECK(device_holds(0, 2 * BYTES, (uint8_t)round));
  }
  // And out of the device: two copies to one place, with a change between them.
  for (uint32_t round = 1; round <= ROUNDS; round++) {
    const uint64_t value = ROUNDS + round;
    fill_device(0, BYTES, 100 + round);
    CHECK(copy_out(0, offset_of(at), BYTES, value) == CUDA_SUCCESS);
    fill_device(0, BYTES, 200 + round);
    CHECK(copy_out(0, offset_of(at), round % 2 ? BYTES : 5000, value) == CUDA_SUCCESS);
    CHECK(mark(1, value) == CUDA_SUCCESS && wait_mark(1, value) == CUDA_SUCCESS);
    CHECK(all_equal(at, 5000, (uint8_t)(200 + round)));
    CHECK(all_equal(at + 5000, BYTES - 5000, (uint8_t)((round % 2 ? 200 : 100) + round)));
  }
}

// ------------------------------------------------------------------------------------------------- held frames

void test_words_first(void) {
  uint8_t* at = pinned(FAKE_RAW_FIRST_BYTES);
  memset(at, 1, FAKE_RAW_FIRST_BYTES);
  fake_worker_act(FAKE_RAW_WORDS_FIRST, offset_of(at));
  CHECK(orion_wait_word(session, FAKE_RAW_WORD, 1, 1) == CUDA_SUCCESS);
  CHECK(all_equal(at, FAKE_RAW_FIRST_BYTES, 0x5a));
  CHECK(ping(3) == 3);
}

static void* wait_for_loss(void* argument) {
  const uint32_t stream = 1 + (uint32_t)(uintptr_t)argument;
  CHECK(wait_mark(stream, 1000) == CUDA_ERROR_DEVICE_UNAVAILABLE);
  CHECK(launch(stream) == CUDA_ERROR_DEVICE_UNAVAILABLE);
  return NULL;
}

static void expect_loss(int act) {
  uint8_t* at = pinned(4096);
  CHECK(ping(1) == 1);
  fake_worker_act(act, offset_of(at));
  run_threads(4, wait_for_loss);
}

void test_held_end(void) { expect_loss(FAKE_RAW_HELD_END); }
void test_close_lane_0(void) { expect_loss(FAKE_RAW_CLOSE_LANE_0); }
void test_reset_stripe(void) { expect_loss(FAKE_RAW_RESET_STRIPE); }

// Only who sends notices.
void test_reset_lane_0(void) {
  CHECK(ping(1) == 1);
  fake_worker_act(FAKE_RAW_RESET_LANE_0, 0);
  CUresult result = CUDA_SUCCESS;
  for (int i = 0; i < 10000000 && result == CUDA_SUCCESS; i++) result = launch(1);
  CHECK(result == CUDA_ERROR_DEVICE_UNAVAILABLE);
  run_threads(4, wait_for_loss);
}

// What is sent is named from outside: a session ends over each.
void test_bad_frames(void) {
  const char* named = getenv("FAKE_RAW_ACT");
  CHECK(named);
  expect_loss(atoi(named));
}

// ------------------------------------------------------------------------------------------------- fork, exit

static void* wait_long(void* argument) {
  (void)argument;
  CHECK(orion_wait_word(session, FAKE_RAW_WORD, 1, 1) == CUDA_SUCCESS);
  return NULL;
}

// A thread that waits moves the bytes while another forks: the child has neither, the parent goes on.
void test_fork_wait(void) {
  pthread_t waiter;
  uint8_t* at = pinned(FAKE_RAW_FIRST_BYTES);
  CHECK(ping(1) == 1 && pthread_create(&waiter, NULL, wait_long, NULL) == 0);
  for (int i = 0; i < 10; i++) {
    usleep(3000);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
      orion_op_nop op = {.op = {.code = ORION_OP_NOP}};
      const bool good = orion_call(session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL) == CUDA_ERROR_NOT_INITIALIZED &&
                        launch(1) == CUDA_ERROR_NOT_INITIALIZED &&
                        orion_wait_word(session, FAKE_RAW_WORD, 1, 1) == CUDA_ERROR_NOT_INITIALIZED;
      _exit(good ? 0 : 1);
    }
    int status = 1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(ping(2) == 2);
  }
  fake_worker_act(FAKE_RAW_WORDS_FIRST, offset_of(at));
  CHECK(pthread_join(waiter, NULL) == 0 && all_equal(at, FAKE_RAW_FIRST_BYTES, 0x5a));
}

// The worker takes everything that was submitted before exit, and the detach behind it.
void test_exit_unsent(void) {
  enum { OPERATIONS = 300, BYTES = 2 << 20 };  // sockets take all of it at once
  static uint8_t tail[400];
  uint8_t* at = pinned(BYTES);
  CHECK(ping(1) == 1);
  usleep(20000);  // the worker counts behind its answer
  executed_at_exit = fake_worker_executed() + OPERATIONS + 2;
  fake_worker_hold(true);
  memset(at, 7, BYTES);
  for (int i = 0; i < OPERATIONS; i++) {
    orion_op_launch op = {.op = {.code = ORION_OP_LAUNCH, .context = 1, .stream = 1}, .param_bytes = sizeof tail};
    CHECK(orion_submit(session, &op.op, sizeof op, tail, sizeof tail) == CUDA_SUCCESS);
  }
  CHECK(copy_in(offset_of(at), 0, BYTES) == CUDA_SUCCESS);
  fake_worker_hold(false);
}
