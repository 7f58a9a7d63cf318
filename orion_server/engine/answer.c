// What the engine tells the client: replies, words, late errors, faults.
#include <string.h>

#include "internal.h"

bool answer_is_fatal(int32_t result) {
  switch (result) {
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_NVLINK_UNCORRECTABLE:
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_LAUNCH_FAILED:
    case CUDA_ERROR_CONTAINED:
    // What a driver answers to everything once its device has fallen off the bus. Nothing that was queued there ends.
    case CUDA_ERROR_DEVICE_UNAVAILABLE:
    case CUDA_ERROR_EXTERNAL_DEVICE:
    case CUDA_ERROR_UNKNOWN:
      return true;
    default:
      return false;
  }
}

void answer_flush(orion_engine* e) {
  if (!e->wake_pending) return;
  e->wake_pending = false;
  atomic_thread_fence(memory_order_seq_cst);
  if (atomic_load_explicit(&e->segment->client_waiters, memory_order_relaxed)) {
    atomic_fetch_add_explicit(&e->segment->client_wake, 1, memory_order_release);
    engine_futex_wake(&e->segment->client_wake);
  }
}

void answer_set_word(orion_engine* e, uint32_t word, uint64_t value) {
  atomic_store_explicit(&e->segment->words[word], value, memory_order_release);
  if (e->net) net_word(e, word);
  e->wake_pending = true;
}

void answer_reply(orion_engine* e, const orion_op* op, int32_t result, const void* payload, uint32_t bytes) {
  if (op->reply_slot == ORION_NO_REPLY) return;
  STAT_ADD(e, stat_replies, 1);
  if (bytes > ORION_REPLY_BYTES) bytes = ORION_REPLY_BYTES;
  if (e->net) {
    net_reply(e, op->reply_slot, result, op->reply_seq, payload, bytes);
    return;
  }
  orion_reply* reply = &e->segment->replies[op->reply_slot];
  reply->result = result;
  reply->bytes = bytes;
  if (bytes) memcpy(reply->payload, payload, bytes);
  atomic_store_explicit(&reply->done, op->reply_seq, memory_order_release);
  e->wake_pending = true;
}

void answer_result(orion_engine* e, const orion_op* op, int32_t result) {
  if (op->reply_slot != ORION_NO_REPLY) {
    answer_reply(e, op, result, NULL, 0);
    return;
  }
  if (!result) return;
  // A corrupted context speaks through its own word; it is not every later operation's own error.
  if (answer_is_fatal(result)) return;
  STAT_ADD(e, stat_late, 1);
  engine_log(e, ENGINE_LOG_DEBUG, "%s on context %u stream %u of thread %u: CUresult %d (told to the client later)",
             ORION_OP_INFO[op->code].name, op->context, op->stream, op->thread, result);
  answer_set_word(e, ORION_WORD_THREAD_ERROR + op->thread,
                  ORION_LATE_ERROR(++e->late_count[op->thread], op->code, result));
}

void answer_fault(orion_engine* e, uint32_t context, int32_t result) {
  context_state* c = &e->contexts[context];
  if (!c->alive || c->sticky) return;
  c->sticky = result;
  STAT_SET(e, stat_fatal, (uint64_t)result);
  engine_log(e, ENGINE_LOG_WARN, "context %u is corrupted: CUresult %d", context, result);
  order_abandon(e, context);
  answer_set_word(e, ORION_WORD_CONTEXT_ERROR + context, (uint64_t)result);
}

int32_t answer_check(orion_engine* e, uint32_t context, int32_t result) {
  if (result && context && answer_is_fatal(result)) answer_fault(e, context, result);
  return result;
}
