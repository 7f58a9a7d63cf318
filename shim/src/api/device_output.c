#include "device_output.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "futex.h"

// A GPU that others keep busy comes to it within its time slices. Longer, only the program's own work can hold it.
#define PATIENCE_NS 500000000ull

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;  // one thread at a time: the pieces stay in order

enum { NOT_WRITTEN = 2 };  // of orion_reply_device_output.more

static void write_all(int fd, const uint8_t* text, size_t bytes) {
  while (bytes != 0) {
    const ssize_t wrote = write(fd, text, bytes);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return;  // a closed or full stdout is the program's business
    text += wrote;
    bytes -= (size_t)wrote;
  }
}

void orion_device_output_write(orion_session* session, uint32_t context) {
  const int saved = errno;
  if (orion_word(session, ORION_WORD_DEVICE_OUTPUT) == 0 || session->device_output_from == ORION_OUTPUT_NEVER) {
    return;
  }
  uint8_t payload[ORION_REPLY_BYTES];
  orion_reply_device_output reply = {0};
  bool flush = true;
  pthread_mutex_lock(&mutex);
  const uint64_t until_ns = orion_now_ns() + PATIENCE_NS;
  do {
    orion_op_device_output op = {.op = {.code = ORION_OP_DEVICE_OUTPUT, .context = (uint16_t)context}, .flush = flush};
    uint32_t bytes = 0;
    const CUresult result = orion_call(session, &op.op, sizeof op, NULL, 0, payload, sizeof payload, &bytes);
    if (result != CUDA_SUCCESS || bytes < sizeof reply) break;
    memcpy(&reply, payload, sizeof reply);
    const uint32_t text_bytes = bytes - (uint32_t)sizeof reply;
    if (reply.stdout_bytes > text_bytes || reply.stderr_bytes > text_bytes - reply.stdout_bytes) break;
    if (reply.stdout_bytes != 0) {
      // Behind what the program has printed itself, and whole.
      flockfile(stdout);
      (void)fflush(stdout);
      write_all(STDOUT_FILENO, payload + sizeof reply, reply.stdout_bytes);
      funlockfile(stdout);
    }
    write_all(STDERR_FILENO, payload + sizeof reply + reply.stdout_bytes, reply.stderr_bytes);
    flush = flush && reply.more == NOT_WRITTEN;
  } while (reply.more != 0 && (reply.more != NOT_WRITTEN || orion_now_ns() < until_ns));
  pthread_mutex_unlock(&mutex);
  errno = saved;
}
