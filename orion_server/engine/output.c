// What kernels print. The driver writes it into this process, at calls of its own that wait; the process has files as
// its stdout and stderr, and a client whose kernels may print asks for their news after each of its waits.
//
// Files, not pipes: the thread that makes the driver write is the one that reads.
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

#define WAIT_NS 2000000ull        // the loop stands still meanwhile; then the client asks again
#define UNREAD_MAX (64ull << 20)  // of a client that never asks
#define PUNCH_BYTES (1ull << 20)
#define SCAN_PLAIN_MAX (64ull << 20)
#define SCAN_PACKED_MAX (1ull << 20)  // larger images are libraries', whose loading would suffer
#define SCAN_UNPACKED_MAX (32ull << 20)
#define LEFTOVER_MAX 4096u
#define FATBIN_MAGIC 0xba55ed50u
#define FLAG_LZ4 0x2000u
#define FLAG_ZSTD 0x8000u

// ------------------------------------------------------------------------------------------------ files
// The end of a process says why on stderr, and nobody would read it there.
static struct {
  int from, to;
  _Atomic uint64_t taken;
} leftover = {-1, -1, 0};

static void tell_leftover(void) {
  char text[LEFTOVER_MAX];
  if (leftover.from < 0 || leftover.to < 0) return;
  const ssize_t bytes = pread(leftover.from, text, sizeof text, (off_t)atomic_load(&leftover.taken));
  if (bytes > 0 && write(leftover.to, text, (size_t)bytes) < 0) return;
}

static void on_abort(int signal_number) {
  (void)signal_number;
  tell_leftover();
}

void output_begin(orion_engine* e) {
  if (e->config.stdout_fd <= 0 || e->config.stderr_fd <= 0) return;
  leftover.from = e->config.stderr_fd;
  leftover.to = e->config.log_fd > 0 ? e->config.log_fd : -1;
  struct sigaction action = {.sa_handler = on_abort, .sa_flags = (int)SA_RESETHAND};
  (void)sigaction(SIGABRT, &action, NULL);
  e->output.may_print = ORION_OUTPUT_KEPT;
  answer_set_word(e, ORION_WORD_DEVICE_OUTPUT, ORION_OUTPUT_KEPT);
}

void output_end(orion_engine* e) {
  if (e->config.stderr_fd > 0) tell_leftover();
}

static uint64_t unread(const orion_engine* e, uint32_t which) {
  struct stat status;
  const int fd = which ? e->config.stderr_fd : e->config.stdout_fd;
  if (fstat(fd, &status) || (uint64_t)status.st_size <= e->output.taken[which]) return 0;
  return (uint64_t)status.st_size - e->output.taken[which];
}

static void count_taken(orion_engine* e, uint32_t which, uint64_t bytes) {
  e->output.taken[which] += bytes;
  if (which) atomic_store(&leftover.taken, e->output.taken[1]);
  if (e->output.taken[which] - e->output.freed[which] < PUNCH_BYTES) return;
  const uint64_t until = e->output.taken[which] & ~4095ull;
  const int fd = which ? e->config.stderr_fd : e->config.stdout_fd;
  (void)fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)e->output.freed[which],
                  (off_t)(until - e->output.freed[which]));
  e->output.freed[which] = until;
}

static uint32_t take(orion_engine* e, uint32_t which, uint8_t* to, uint32_t room) {
  const uint64_t there = unread(e, which);
  const uint64_t wanted = there < room ? there : room;
  const int fd = which ? e->config.stderr_fd : e->config.stdout_fd;
  const ssize_t got = wanted ? pread(fd, to, wanted, (off_t)e->output.taken[which]) : 0;
  if (got <= 0) return 0;
  count_taken(e, which, (uint64_t)got);
  return (uint32_t)got;
}

void output_bound(orion_engine* e) {
  if (e->output.may_print < ORION_OUTPUT_EXPECTED) return;
  for (uint32_t which = 0; which < 2; which++) {
    const uint64_t bytes = unread(e, which);
    if (bytes <= UNREAD_MAX) continue;
    engine_log(e, ENGINE_LOG_WARN, "dropped %llu bytes of device output that the client did not ask for",
               (unsigned long long)bytes);
    count_taken(e, which, bytes);
  }
}

// ------------------------------------------------------------------------------------------------ the driver's part
/// Makes the driver write what has been printed: a wait on a stream of ours, which nothing of the client can hold for
/// long. It has work, so that the wait is one. False: the GPU, busy with others, has not come to it yet.
static bool flush_driver(orion_engine* e, uint32_t index) {
  context_state* c = &e->contexts[index];
  if (!c->alive || e->config.null_engine) return true;
  if (e->current_context != index) {
    if (answer_check(e, index, (int32_t)e->driver.context_set_current(c->handle))) return true;
    e->current_context = index;
  }
  if (c->sticky) {  // nothing runs any more: this tells the fault and what belongs to it
    (void)e->driver.context_synchronize();
    return true;
  }
  CUstream* stream = &e->output.streams[index];
  if (!*stream && e->driver.stream_create(stream, CU_STREAM_NON_BLOCKING, 0)) return true;
  // Work of an earlier question that is still there serves as well: the driver writes when it is waited for.
  uint64_t value = e->output.awaited[index];
  if (atomic_load_explicit(&e->done[0], memory_order_acquire) >= value) {
    value = ++e->output.flushes;
    if (answer_check(e, index, (int32_t)e->driver.write_value64(*stream, e->done_device, value, 0))) return true;
    e->output.awaited[index] = value;
  }
  const uint64_t until_ns = engine_now_ns() + WAIT_NS;
  while (atomic_load_explicit(&e->done[0], memory_order_acquire) < value) {
    if (engine_now_ns() > until_ns) return false;
    engine_pause(32);
  }
  (void)answer_check(e, index, (int32_t)e->driver.stream_synchronize(*stream));
  return true;
}

void output_drop_context(orion_engine* e, uint32_t index) {
  if (e->output.streams[index]) (void)e->driver.stream_destroy(e->output.streams[index]);
  e->output.streams[index] = NULL;
  e->output.awaited[index] = 0;
}

void output_take(orion_engine* e, const orion_op* op) {
  if (e->output.may_print < ORION_OUTPUT_KEPT) {
    answer_result(e, op, CUDA_ERROR_NOT_SUPPORTED);
    return;
  }
  const orion_op_device_output* o = (const orion_op_device_output*)op;
  const bool written = !o->flush || !op->context || flush_driver(e, op->context);
  (void)fflush(stdout);
  uint8_t payload[ORION_REPLY_BYTES];
  orion_reply_device_output reply = {0};
  const uint32_t room = sizeof payload - sizeof reply;
  reply.stdout_bytes = take(e, 0, payload + sizeof reply, room);
  reply.stderr_bytes = take(e, 1, payload + sizeof reply + reply.stdout_bytes, room - reply.stdout_bytes);
  reply.more = !written ? 2 : unread(e, 0) || unread(e, 1);
  memcpy(payload, &reply, sizeof reply);
  answer_reply(e, op, 0, payload, (uint32_t)sizeof reply + reply.stdout_bytes + reply.stderr_bytes);
}

// ------------------------------------------------------------------------------------------------ who may print
static bool names_printf(const void* bytes, uint64_t count) { return memmem(bytes, count, "vprintf", 7) != NULL; }

/// A block of LZ4. False where it is damaged; the driver is the judge of that.
static bool unpack_lz4(const uint8_t* in, uint64_t in_bytes, uint8_t* out, uint64_t out_bytes) {
  uint64_t from = 0, to = 0;
  while (from < in_bytes) {
    const uint8_t token = in[from++];
    uint64_t lengths[2] = {token >> 4, token & 15};
    for (uint32_t part = 0; part < 2; part++) {
      if (part == 1) {
        if (from == in_bytes) return true;  // the last sequence has literals only
        if (in_bytes - from < 2) return false;
      }
      const uint64_t distance = part ? in[from] | (uint64_t)in[from + 1] << 8 : 0;
      if (part) from += 2;
      for (uint8_t more = 255; lengths[part] >= 15 && more == 255; lengths[part] += more) {
        if (from >= in_bytes || lengths[part] > out_bytes) return false;
        more = in[from++];
      }
      const uint64_t length = lengths[part] + (part ? 4 : 0);
      if (length > out_bytes - to || (part && (!distance || distance > to)) || (!part && length > in_bytes - from)) {
        return false;
      }
      for (uint64_t i = 0; i < length; i++, to++) out[to] = part ? out[to - distance] : in[from + i];
      if (!part) from += length;
    }
  }
  return false;
}

/// libzstd where this machine has one. Without it compressed images of CUDA 12.8 and later are not looked into.
static bool unpack_zstd(const uint8_t* in, uint64_t in_bytes, uint8_t* out, uint64_t out_bytes) {
  static size_t (*decompress)(void*, size_t, const void*, size_t);
  static bool asked;
  if (!asked) {
    asked = true;
    void* library = dlopen("libzstd.so.1", RTLD_NOW | RTLD_LOCAL);
    void* found = library ? dlsym(library, "ZSTD_decompress") : NULL;
    memcpy(&decompress, &found, sizeof found);
  }
  return decompress && decompress(out, out_bytes, in, in_bytes) == out_bytes;
}

static uint64_t field(const uint8_t* at, uint32_t bytes) {
  uint64_t value = 0;
  memcpy(&value, at, bytes);
  return value;
}

/// One packed entry of a container; all of it is inside.
static bool entry_prints(const uint8_t* entry, uint64_t header_bytes, uint64_t payload_bytes) {
  const uint64_t flags = field(entry + 0x28, 8), unpacked_bytes = field(entry + 0x38, 8);
  uint64_t packed_bytes = field(entry + 0x10, 4);
  if (!(flags & (FLAG_LZ4 | FLAG_ZSTD)) || !unpacked_bytes || unpacked_bytes > SCAN_UNPACKED_MAX) return false;
  if (!packed_bytes || packed_bytes > payload_bytes) packed_bytes = payload_bytes;
  uint8_t* out = malloc(unpacked_bytes);
  if (!out) return false;
  const bool unpacked =
      (flags & FLAG_LZ4 ? unpack_lz4 : unpack_zstd)(entry + header_bytes, packed_bytes, out, unpacked_bytes);
  const bool prints = unpacked && names_printf(out, unpacked_bytes);
  free(out);
  return prints;
}

void output_scan(orion_engine* e, const uint8_t* image, uint64_t bytes) {
  if (e->output.may_print != ORION_OUTPUT_KEPT || bytes < 16) return;
  bool prints = bytes <= SCAN_PLAIN_MAX && names_printf(image, bytes);
  if (!prints && bytes <= SCAN_PACKED_MAX && field(image, 4) == FATBIN_MAGIC) {
    // image_check has followed the same steps.
    const uint64_t end = field(image + 6, 2) + field(image + 8, 8);
    for (uint64_t at = field(image + 6, 2); at < end && !prints;) {
      const uint64_t header_bytes = field(image + at + 4, 4), payload_bytes = field(image + at + 8, 8);
      prints = entry_prints(image + at, header_bytes, payload_bytes);
      at += header_bytes + payload_bytes;
    }
  }
  if (!prints) return;
  engine_log(e, ENGINE_LOG_INFO, "an image of %llu bytes has kernels that may print: waits ask for it from now on",
             (unsigned long long)bytes);
  e->output.may_print = ORION_OUTPUT_EXPECTED;
  answer_set_word(e, ORION_WORD_DEVICE_OUTPUT, ORION_OUTPUT_EXPECTED);
}
