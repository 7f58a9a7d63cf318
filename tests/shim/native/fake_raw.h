// The fake worker's side of plain TCP lanes: one thread that reads lane 0 and all stripes, puts numbered frames in the
// order that their headers ask for, and sends large ranges over the stripes in turn.
#ifndef ORION_TESTS_FAKE_RAW_H
#define ORION_TESTS_FAKE_RAW_H

#include <stdbool.h>
#include <stdint.h>

#include "orion_wire.h"

/// Listens. The endpoint as the worker would offer it.
void fake_raw_open(char endpoint[64]);
/// Waits for a client that shows the token on every lane, and welcomes it.
void fake_raw_welcome(const uint8_t token[32]);
/// Reads what has come, waiting for at most `timeout_ms`. Bytes go to `arena`, client words to `words`.
void fake_raw_read(uint8_t* arena, uint64_t* words, int timeout_ms);
/// The next frame of operations, to be freed by the caller; NULL: there is none.
uint8_t* fake_raw_take_ops(void);
/// All numbered frames up to this one have been stored.
uint64_t fake_raw_received(void);
/// A frame on lane 0.
void fake_raw_send(uint16_t type, uint64_t sequence, uint64_t a, uint64_t b, const void* body, uint32_t bytes);
/// A range of the arena, numbered: in pieces over the stripes, or on lane 0 when it is small.
void fake_raw_send_range(const uint8_t* arena, uint64_t offset, uint64_t bytes);
/// The number of the last frame that was sent.
uint64_t fake_raw_sent(void);
/// How many pieces have gone over stripes, and have come over them.
uint64_t fake_raw_striped(void);
void fake_raw_close(void);

enum fake_raw_act {
  FAKE_RAW_NOTHING,
  FAKE_RAW_CLOSE_LANE_0,
  FAKE_RAW_RESET_LANE_0,
  FAKE_RAW_RESET_STRIPE,  // behind the first half of a piece
  FAKE_RAW_BAD_STRIPE,    // a header that names bytes outside the arena
  FAKE_RAW_LONG_STRIPE,   // one with a piece that is too long
  FAKE_RAW_OLD_STRIPE,    // one with a number that has been stored
  FAKE_RAW_UNKNOWN,       // a frame of no known type on lane 0
  FAKE_RAW_LONG,          // a frame on lane 0 that is too long
  FAKE_RAW_OLD_BULK,      // bulk on lane 0 with a number that has been stored
  FAKE_RAW_WORDS_FIRST,   // word FAKE_RAW_WORD on lane 0, and a while later the bulk that it names on a stripe
  FAKE_RAW_HELD_END,      // a word that waits for bulk, and then an orderly end of all lanes
};
enum { FAKE_RAW_WORD = 5000, FAKE_RAW_FIRST_BYTES = 300 << 10 };
/// In the worker's thread.
void fake_raw_act(enum fake_raw_act act, uint8_t* arena, uint64_t offset);

#endif
