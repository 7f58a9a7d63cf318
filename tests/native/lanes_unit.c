// What orion_lanes.h computes: when bytes are at the other end of an emulated link, which ranges may overtake one
// another, and which headers of stripes are believed. And which records of orion_seal.h can be opened, by whom.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define ORION_SEAL_REKEY 8u
#include "orion_lanes.h"
#include "orion_seal.h"

#define CHECK(condition)                                              \
  do {                                                                \
    if (!(condition)) {                                               \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      abort();                                                        \
    }                                                                 \
  } while (0)

static void check_link(void) {
  orion_link link = {0};
  CHECK(!orion_link_on(&link) && orion_link_due(&link, 1000, 1 << 20) == 1000);
  orion_link_set(&link, &(orion_link_wish){.round_trip_ns = 1000000});
  CHECK(orion_link_on(&link) && link.delay_ns == 500000);
  CHECK(orion_link_due(&link, 7, 1 << 20) == 500007 && orion_link_due(&link, 8, 1) == 500008);
  // 1 byte in 1 ns: what is given while the wire is taken waits for it, what is given later does not.
  link = (orion_link){0};
  orion_link_set(&link, &(orion_link_wish){.round_trip_ns = 2000, .bytes_per_second = 1000000000});
  CHECK(orion_link_due(&link, 10000, 500) == 10000 + 500 + 1000);
  CHECK(orion_link_due(&link, 10100, 500) == 10000 + 1000 + 1000);
  CHECK(orion_link_due(&link, 20000, 500) == 20000 + 500 + 1000);
  link = (orion_link){0};
  orion_link_set(&link, &(orion_link_wish){.bytes_per_second = 1000});
  CHECK(orion_link_on(&link) && orion_link_due(&link, 0, 1) == 1000000 && orion_link_due(&link, 0, 1) == 2000000);
  orion_link_set(&link, &(orion_link_wish){.round_trip_ns = UINT64_MAX});
  CHECK(link.delay_ns == ORION_LINK_MOST_NS);
}

enum { THREADS = 4, GIVEN = 20000 };
static orion_link shared;

static void* give(void* argument) {
  uint64_t last = 0;
  (void)argument;
  for (int i = 0; i < GIVEN; i++) {
    const uint64_t due = orion_link_due(&shared, 0, 3);
    CHECK(due > last);  // nothing of one sender overtakes
    last = due;
  }
  return NULL;
}

// Lanes share the bandwidth: no byte is lost from the account, whoever gives it.
static void check_shared_link(void) {
  orion_link_set(&shared, &(orion_link_wish){.bytes_per_second = 1000000000});
  pthread_t threads[THREADS];
  for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, give, NULL) == 0);
  for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  CHECK(atomic_load(&shared.free_ns) == 3ull * THREADS * GIVEN);
}

static void check_group(void) {
  orion_group group = {0};
  orion_group_join(&group, 1, 0, 100);
  CHECK(group.after == 0 && group.count == 1);
  orion_group_join(&group, 2, 100, 200);  // beside it
  CHECK(group.after == 0 && group.count == 2);
  orion_group_join(&group, 3, 199, 201);  // one byte of the second again
  CHECK(group.after == 2 && group.count == 1);
  orion_group_join(&group, 4, 0, 199);
  CHECK(group.after == 2 && group.count == 2);
  orion_group_close(&group, 5);
  CHECK(group.after == 5 && group.count == 0);
  for (uint64_t i = 0; i < 16; i++) orion_group_join(&group, 6 + i, i * 10, i * 10 + 10);
  CHECK(group.after == 5 && group.count == 16);
  orion_group_join(&group, 22, 1000, 1010);  // no room to remember it
  CHECK(group.after == 21 && group.count == 1);
}

static void check_header(void) {
  const uint64_t arena = 1 << 30;
  const orion_frame good = {
      .type = ORION_FRAME_BULK, .bytes = ORION_BULK_BYTES, .sequence = 5, .a = arena - ORION_BULK_BYTES, .b = 4};
  CHECK(orion_stripe_frame_ok(&good, arena));
  orion_frame bad = good;
  bad.a++;
  CHECK(!orion_stripe_frame_ok(&bad, arena));
  bad.a = UINT64_MAX;
  CHECK(!orion_stripe_frame_ok(&bad, arena));
  bad = good;
  bad.b = 5;  // would wait for itself
  CHECK(!orion_stripe_frame_ok(&bad, arena));
  bad = good;
  bad.bytes = 0;
  CHECK(!orion_stripe_frame_ok(&bad, arena));
  bad.bytes = ORION_BULK_BYTES + 1;
  bad.a = 0;
  CHECK(!orion_stripe_frame_ok(&bad, arena));
  bad = good;
  bad.type = ORION_FRAME_RUNS;
  CHECK(!orion_stripe_frame_ok(&bad, arena));
}

static const uint8_t token[ORION_SESSION_KEY_BYTES] = {7, 1, 7};

static orion_seal begin(enum orion_cipher cipher, enum orion_direction direction, uint32_t lane) {
  orion_seal seal;
  orion_seal_begin(&seal, cipher, token, direction, lane);
  return seal;
}

// A failed attempt leaves the seal as it was, so one can be asked again and again.
static bool opens(orion_seal* seal, const uint8_t* record, size_t bytes) {
  static uint8_t out[ORION_RECORD_BYTES];
  return orion_seal_open(seal, record, bytes, out);
}

static void check_seal(enum orion_cipher cipher) {
  enum { BYTES = 100 };
  static uint8_t plain[ORION_RECORD_BYTES], record[ORION_RECORD_MOST], next[ORION_RECORD_MOST], out[ORION_RECORD_BYTES];
  for (size_t i = 0; i < sizeof plain; i++) plain[i] = (uint8_t)(i * 31);
  orion_seal to = begin(cipher, ORION_TO_WORKER, 3), from = begin(cipher, ORION_TO_WORKER, 3);
  CHECK(orion_seal_put(&to, record, plain, BYTES) == BYTES + ORION_RECORD_EXTRA && orion_record_bytes(record) == BYTES);
  orion_seal_put(&to, next, plain, BYTES);
  CHECK(memcmp(record + ORION_RECORD_HEAD, plain, BYTES) != 0 && memcmp(record, next, sizeof record) != 0);
  // Every byte counts, the length's too.
  for (size_t i = 0; i < BYTES + ORION_RECORD_EXTRA; i++) {
    record[i] ^= 0x40;
    CHECK(!opens(&from, record, BYTES));
    record[i] ^= 0x40;
  }
  CHECK(!opens(&from, record, BYTES - 1));
  CHECK(!opens(&from, next, BYTES));  // left out
  orion_seal lane = begin(cipher, ORION_TO_WORKER, 2), back = begin(cipher, ORION_TO_CLIENT, 3);
  CHECK(!opens(&lane, record, BYTES) && !opens(&back, record, BYTES));
  CHECK(orion_seal_open(&from, record, BYTES, out) && memcmp(out, plain, BYTES) == 0);
  CHECK(!opens(&from, record, BYTES));  // repeated
  CHECK(orion_seal_open(&from, next, BYTES, out));
  // In place, whole records, and across changes of the key.
  for (uint32_t i = 0; i < 3 * ORION_SEAL_REKEY; i++) {
    uint8_t key[32];
    memcpy(key, to.key, sizeof key);
    memcpy(record + ORION_RECORD_HEAD, plain, sizeof plain);
    orion_seal_put(&to, record, record + ORION_RECORD_HEAD, sizeof plain);
    CHECK(orion_seal_open(&from, record, sizeof plain, record + ORION_RECORD_HEAD));
    CHECK(memcmp(record + ORION_RECORD_HEAD, plain, sizeof plain) == 0);
    CHECK((memcmp(key, to.key, sizeof key) == 0) == (to.count % ORION_SEAL_REKEY != 0));
  }
  // A stream that is cut into records.
  static uint8_t stream[2 * ORION_RECORD_BYTES + 1], sealed[2 * ORION_RECORD_BYTES + 1 + 3 * ORION_RECORD_EXTRA];
  CHECK(orion_seal_stream(&to, sealed, stream, sizeof stream) == sizeof sealed);
  CHECK(orion_sealed_bytes(sizeof stream) == sizeof sealed);
  for (size_t at = 0, bytes; at < sizeof sealed; at += bytes + ORION_RECORD_EXTRA) {
    bytes = orion_record_bytes(sealed + at);
    CHECK(bytes != 0 && opens(&from, sealed + at, bytes));
  }
}

static void check_record_bytes(void) {
  uint32_t length = ORION_RECORD_BYTES;
  CHECK(orion_record_bytes((const uint8_t*)&length) == ORION_RECORD_BYTES);
  length++;
  CHECK(orion_record_bytes((const uint8_t*)&length) == 0);
  length = UINT32_MAX;
  CHECK(orion_record_bytes((const uint8_t*)&length) == 0);
}

int main(void) {
  CHECK(orion_cipher_usable(ORION_CIPHER_CHACHA20POLY1305) && !orion_cipher_usable(ORION_CIPHER_NONE));
  check_seal(ORION_CIPHER_CHACHA20POLY1305);
  if (orion_cipher_usable(ORION_CIPHER_AES256GCM)) check_seal(ORION_CIPHER_AES256GCM);
  check_record_bytes();
  check_link();
  check_shared_link();
  check_group();
  check_header();
  puts("lanes_unit: ok");
  return 0;
}
