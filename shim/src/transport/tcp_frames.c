// Frames from the worker. Every count and index is checked before it is used; the caller ends the session on BAD.
#include <string.h>

#include "orion_runs.h"
#include "tcp.h"

static bool read_header(const void* data, size_t bytes, orion_frame* header, const uint8_t** body) {
  if (bytes < sizeof *header) return false;
  memcpy(header, data, sizeof *header);
  *body = (const uint8_t*)data + sizeof *header;
  return header->bytes <= ORION_FRAME_MAX_BYTES && header->bytes == bytes - sizeof *header;
}

static enum tcp_frame_result take_reply(orion_segment* segment, const orion_frame* header, const uint8_t* body) {
  if (header->a >= ORION_REPLY_SLOTS || header->bytes > ORION_REPLY_BYTES) return TCP_FRAME_BAD;
  orion_reply* reply = &segment->replies[header->a];
  reply->result = (int32_t)header->b;
  reply->bytes = header->bytes;
  if (header->bytes) memcpy(reply->payload, body, header->bytes);
  atomic_store_explicit(&reply->done, header->sequence, memory_order_release);
  return TCP_FRAME_OK;
}

static enum tcp_frame_result take_words(tcp_state* state, const orion_frame* header, const uint8_t* body) {
  if (header->bytes % sizeof(orion_word_update)) return TCP_FRAME_BAD;
  const uint32_t count = header->bytes / (uint32_t)sizeof(orion_word_update);
  orion_word_update update;
  for (uint32_t i = 0; i < count; i++) {
    memcpy(&update, body + i * sizeof update, sizeof update);
    if (update.index >= ORION_WORDS) return TCP_FRAME_BAD;
  }
  if (header->sequence > atomic_load(&state->sequence_received)) return TCP_FRAME_HOLD;
  for (uint32_t i = 0; i < count; i++) {
    memcpy(&update, body + i * sizeof update, sizeof update);
    // Words only grow; this thread alone writes them, and one frame may tell a word twice, the newer value first.
    _Atomic uint64_t* word = &state->session->segment->words[update.index];
    if (update.value > atomic_load_explicit(word, memory_order_relaxed))
      atomic_store_explicit(word, update.value, memory_order_release);
  }
  return TCP_FRAME_OK;
}

enum tcp_frame_result orion_tcp_take_ops(tcp_state* state, const orion_frame* header, const uint8_t* body) {
  switch (header->type) {
    case ORION_FRAME_CONTROL:
      return TCP_FRAME_OK;
    case ORION_FRAME_REPLY:
      return take_reply(state->session->segment, header, body);
    case ORION_FRAME_WORDS:
      return take_words(state, header, body);
    default:
      return TCP_FRAME_BAD;
  }
}

enum tcp_frame_result orion_tcp_take_ops_frame(tcp_state* state, const void* data, size_t bytes) {
  orion_frame header;
  const uint8_t* body = NULL;
  return read_header(data, bytes, &header, &body) ? orion_tcp_take_ops(state, &header, body) : TCP_FRAME_BAD;
}

static void store(tcp_state* state, uint64_t offset, const uint8_t* from, uint64_t bytes) {
  if (atomic_load_explicit(&state->coherent_count, memory_order_acquire) ||
      atomic_load_explicit(&state->adopted_count, memory_order_acquire))
    orion_tcp_store(state, offset, from, bytes);
  else if (bytes)
    memcpy(state->session->host_base + offset, from, bytes);
}

static enum tcp_frame_result take_runs(tcp_state* state, const orion_frame* header, const uint8_t* body) {
  uint64_t at = 0;
  orion_run run;
  const uint8_t* from = NULL;
  int more;
  while ((more = orion_run_get(body, header->bytes, ORION_HOST_ARENA_BYTES, &at, &run, &from)) > 0)
    store(state, run.offset, from, run.bytes);
  return more < 0 ? TCP_FRAME_BAD : TCP_FRAME_OK;
}

enum tcp_frame_result orion_tcp_take_bulk(tcp_state* state, const orion_frame* header, const uint8_t* body) {
  if (header->sequence < atomic_load(&state->sequence_received)) return TCP_FRAME_BAD;
  if (header->type == ORION_FRAME_RUNS) return take_runs(state, header, body);
  if (header->type != ORION_FRAME_BULK || header->a > ORION_HOST_ARENA_BYTES ||
      header->bytes > ORION_HOST_ARENA_BYTES - header->a)
    return TCP_FRAME_BAD;
  store(state, header->a, body, header->bytes);
  return TCP_FRAME_OK;
}

enum tcp_frame_result orion_tcp_take_bulk_frame(tcp_state* state, const void* data, size_t bytes) {
  orion_frame header;
  const uint8_t* body = NULL;
  return read_header(data, bytes, &header, &body) ? orion_tcp_take_bulk(state, &header, body) : TCP_FRAME_BAD;
}
