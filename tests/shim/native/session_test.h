// What all scenarios of the session test use.
#ifndef ORION_TESTS_SESSION_TEST_H
#define ORION_TESTS_SESSION_TEST_H

#include "fake_worker.h"
#include "session.h"

extern orion_session* session;
/// What the worker must have executed when the program has ended; 0: it does not matter.
extern uint64_t executed_at_exit;

uint64_t ping(uint64_t value);
/// A mark behind the stream's work, and the wait for it.
CUresult mark(uint32_t stream, uint64_t value);
CUresult wait_mark(uint32_t stream, uint64_t value);
/// Copies on stream 1, between an offset of the arena and an offset of the device.
CUresult copy_in(uint64_t offset, uint64_t to, uint64_t bytes);
CUresult copy_out(uint64_t from, uint64_t offset, uint64_t bytes, uint64_t value);
void fill_device(uint64_t at, uint64_t bytes, uint32_t value);
bool all_equal(const uint8_t* at, uint64_t bytes, uint8_t value);
bool device_holds(uint64_t at, uint64_t bytes, uint8_t value);
void run_threads(uint32_t count, void* (*body)(void*));

void test_answers(void);

// Over plain sockets alone.
void test_waiters(void);
void test_stripes(void);
void test_resend(void);
void test_words_first(void);
void test_held_end(void);
void test_close_lane_0(void);
void test_reset_lane_0(void);
void test_reset_stripe(void);
void test_bad_frames(void);
void test_fork_wait(void);
void test_exit_unsent(void);

#endif
