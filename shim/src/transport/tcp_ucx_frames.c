// Frames over UCX: lane 0 in the order in which the worker sent it, large pieces by rendezvous from and to the arena.
// All of it is of whoever moves the bytes.
#define _GNU_SOURCE
#include <string.h>

#include "../session/internal.h"
#include "tcp_ucx.h"

static void fail(ucx_lanes* ucx, orion_ucs_status status) {
  ucx->mover->broken = true;
  if (ucx->fault == ORION_UCS_OK) ucx->fault = status;
}

static void lose_malformed(ucx_lanes* ucx, const char* lane) {
  ucx->mover->at_end = true;
  orion_tcp_lose_malformed(ucx->state, lane);
}

static void lose_memory(ucx_lanes* ucx) {
  ucx->mover->at_end = true;
  orion_session_lose(ucx->state->session, CUDA_ERROR_OUT_OF_MEMORY, "this process is out of memory");
}

// ------------------------------------------------------------------------------------------------- sending

static void slot_sent(void* request, orion_ucs_status status, void* user_data) {
  ucx_slot* slot = user_data;
  slot->busy = false;
  slot->ucx->slots_busy--;
  slot->ucx->events++;
  if (status != ORION_UCS_OK) fail(slot->ucx, status);
  slot->ucx->link.api.request_free(request);
}

static ucx_slot* free_slot(ucx_lanes* ucx) {
  for (uint32_t i = 0; i < UCX_SLOTS; i++)
    if (!ucx->slots[i]->busy) return ucx->slots[i];
  return NULL;
}

// Sends the frame whose body has been written to the slot.
static void send_slot(ucx_lanes* ucx, ucx_slot* slot, const orion_frame* frame) {
  slot->head = (orion_ucx_head){*frame, ++ucx->order_out, ucx->cookie};
  void* request = orion_ucx_send(&ucx->link, ucx->eps[0], &slot->head, slot->body, ORION_UCP_AM_EAGER,
                                 ORION_UCS_MEMORY_HOST, NULL, slot_sent, slot);
  if (orion_ucs_is_error(request)) {
    fail(ucx, orion_ucs_error(request));
  } else if (request) {
    slot->busy = true;
    ucx->slots_busy++;
  }
}

void orion_ucx_confirm(ucx_lanes* ucx) {
  const orion_frame frame = {.type = ORION_FRAME_CONTROL};
  send_slot(ucx, free_slot(ucx), &frame);
}

static void piece_sent(void* request, orion_ucs_status status, void* user_data) {
  ucx_piece* piece = user_data;
  ucx_lanes* ucx = piece->ucx;
  free(piece->bounce);
  piece->bounce = NULL;
  piece->busy = false;
  ucx->pieces_busy--;
  ucx->events++;
  orion_tcp_stripe_sent(ucx->state);
  if (status != ORION_UCS_OK) fail(ucx, status);
  if (request) ucx->link.api.request_free(request);
}

static bool send_piece(ucx_lanes* ucx) {
  tcp_state* state = ucx->state;
  ucx_piece* piece = ucx->pieces;
  while (piece->busy) piece++;
  orion_frame frame;
  if (!orion_tcp_try_stripe(state, &frame)) return false;
  piece->busy = true;
  ucx->pieces_busy++;
  const uint32_t lane = 1 + ucx->next_lane++ % state->stripe_count;
  frame.flags = (uint16_t)lane;
  piece->head = (orion_ucx_head){frame, 0, ucx->cookie};
  const uint8_t* from = state->session->host_base + frame.a;
  pthread_mutex_lock(&state->lock);
  const bool plain = orion_tcp_is_plain(state, frame.a, frame.a + frame.bytes);
  pthread_mutex_unlock(&state->lock);
  if (!plain) {
    piece->bounce = malloc(frame.bytes);
    if (!piece->bounce) {
      lose_memory(ucx);
      return false;
    }
    orion_tcp_load(state, frame.a, piece->bounce, frame.bytes);
    from = piece->bounce;
  }
  void* request = orion_ucx_send(&ucx->link, ucx->eps[lane], &piece->head, from, ORION_UCP_AM_RNDV,
                                 ORION_UCS_MEMORY_HOST, NULL, piece_sent, piece);
  if (!request || orion_ucs_is_error(request)) piece_sent(NULL, orion_ucs_error(request), piece);
  return true;
}

static bool send_bulk(ucx_lanes* ucx) {
  tcp_state* state = ucx->state;
  bool any = false;
  tcp_range piece;
  while (!ucx->mover->broken && !ucx->mover->at_end && atomic_load(&state->has_bulk)) {
    if (ucx->pieces_busy < ORION_UCX_IN_FLIGHT && send_piece(ucx)) {
      any = true;
      continue;
    }
    ucx_slot* slot = free_slot(ucx);
    if (!slot || !orion_tcp_next_piece(state, &piece)) break;
    const orion_frame frame = orion_tcp_piece_header(state, &piece);
    orion_tcp_piece_body(state, &piece, slot->body);
    send_slot(ucx, slot, &frame);
    orion_tcp_piece_sent(state, &piece);
    any = true;
  }
  return any;
}

static bool send_batch(ucx_lanes* ucx, tcp_batch* batch, uint16_t type) {
  ucx_slot* slot = batch->bytes ? free_slot(ucx) : NULL;
  if (!slot || ucx->mover->broken) return false;
  const orion_frame frame = {.type = type, .bytes = batch->bytes};
  memcpy(slot->body, batch->body, batch->bytes);
  batch->bytes = 0;
  send_slot(ucx, slot, &frame);
  return true;
}

static bool send_operations(ucx_lanes* ucx) {
  tcp_state* state = ucx->state;
  if (ucx->slots_busy == UCX_SLOTS || !orion_tcp_gather(state)) return false;
  bool any = send_batch(ucx, &state->express_batch, ORION_FRAME_OPS_EXPRESS);
  // What was in the express ring before a main operation precedes it here too.
  if (state->express_batch.bytes == 0) any |= send_batch(ucx, &state->main_batch, ORION_FRAME_OPS_MAIN);
  return any;
}

static bool send_client_words(ucx_lanes* ucx) {
  orion_word_update updates[64];
  uint32_t count = 0, group = 0;
  bool any = false;
  while (!ucx->mover->broken && (count = orion_tcp_take_client_words(ucx->state, &group, updates)) != 0) {
    ucx_slot* slot = free_slot(ucx);
    if (!slot) {
      orion_tcp_return_client_words(ucx->state, updates, count);
      break;
    }
    const orion_frame frame = {.type = ORION_FRAME_CLIENT_WORDS, .bytes = count * (uint32_t)sizeof *updates};
    memcpy(slot->body, updates, frame.bytes);
    send_slot(ucx, slot, &frame);
    any = true;
  }
  return any;
}

bool orion_ucx_send_out(ucx_lanes* ucx) {
  if (ucx->mover->broken || ucx->mover->at_end) return false;
  bool any = send_bulk(ucx);
  any |= send_operations(ucx);
  if (atomic_load(&ucx->state->has_client_words)) any |= send_client_words(ucx);
  return any;
}

bool orion_ucx_can_send(const ucx_lanes* ucx) {
  const tcp_state* state = ucx->state;
  if (ucx->mover->broken || ucx->mover->at_end || ucx->slots_busy == UCX_SLOTS) return false;
  if (state->main_batch.bytes || state->express_batch.bytes || orion_tcp_has_operations(state)) return true;
  // While pieces are on their way, the end of one of them is what makes room.
  return atomic_load(&state->has_client_words) ||
         (atomic_load(&state->has_bulk) && ucx->pieces_busy < ORION_UCX_IN_FLIGHT);
}

// ------------------------------------------------------------------------------------------------- lane 0

static void stored(ucx_lanes* ucx, uint64_t sequence) {
  tcp_state* state = ucx->state;
  ucx->window[sequence % ORION_WINDOW] = sequence;
  uint64_t received = atomic_load(&state->sequence_received);
  while (ucx->window[(received + 1) % ORION_WINDOW] == received + 1) received++;
  atomic_store(&state->sequence_received, received);
}

static enum tcp_frame_result take_frame(ucx_lanes* ucx, const orion_frame* frame, const uint8_t* body) {
  if (frame->type != ORION_FRAME_BULK && frame->type != ORION_FRAME_RUNS)
    return orion_tcp_take_ops(ucx->state, frame, body);
  const uint64_t next = atomic_load(&ucx->state->sequence_received) + 1;
  if (frame->sequence < next) return TCP_FRAME_BAD;
  if (frame->sequence > next) return TCP_FRAME_HOLD;
  const enum tcp_frame_result result = orion_tcp_take_bulk(ucx->state, frame, body);
  if (result == TCP_FRAME_OK) stored(ucx, frame->sequence);
  return result;
}

// A copy of what is not taken yet, in its place by `order`.
static void hold(ucx_lanes* ucx, uint64_t order, const orion_frame* frame, const uint8_t* body) {
  ucx_held* held = malloc(sizeof *held + frame->bytes);
  if (!held || ucx->held_bytes > ORION_UCX_AHEAD_BYTES) {
    free(held);
    lose_memory(ucx);
    return;
  }
  held->order = order;
  held->frame = *frame;
  if (frame->bytes) memcpy(held->body, body, frame->bytes);
  ucx_held** at = &ucx->held;
  while (*at && (*at)->order < order) at = &(*at)->next;
  held->next = *at;
  *at = held;
  ucx->held_bytes += frame->bytes;
}

static void take_lane_0(ucx_lanes* ucx, const orion_ucx_head* head, const uint8_t* body) {
  if (head->order <= ucx->order_in) {
    lose_malformed(ucx, "operations");
    return;
  }
  if (!ucx->held && head->order == ucx->order_in + 1) {
    const enum tcp_frame_result result = take_frame(ucx, &head->frame, body);
    if (result == TCP_FRAME_BAD) lose_malformed(ucx, "operations");
    if (result == TCP_FRAME_OK) ucx->order_in++;
    if (result != TCP_FRAME_HOLD) return;
  }
  hold(ucx, head->order, &head->frame, body);
}

static void take_held(ucx_lanes* ucx) {
  while (ucx->held && ucx->held->order == ucx->order_in + 1 && !ucx->mover->at_end) {
    ucx_held* first = ucx->held;
    const enum tcp_frame_result result = take_frame(ucx, &first->frame, first->body);
    if (result == TCP_FRAME_HOLD) return;
    if (result == TCP_FRAME_BAD) lose_malformed(ucx, "operations");
    ucx->order_in++;
    ucx->events++;
    ucx->held = first->next;
    ucx->held_bytes -= first->frame.bytes;
    free(first);
  }
  if (ucx->held && ucx->held->order <= ucx->order_in && !ucx->mover->at_end) lose_malformed(ucx, "operations");
}

// ------------------------------------------------------------------------------------------------- large pieces

static void end_receive(ucx_receive* receive) {
  ucx_lanes* ucx = receive->ucx;
  tcp_state* state = ucx->state;
  if (receive->in_place >= 0) {
    pthread_mutex_lock(&state->lock);
    state->in_place[receive->in_place].end = 0;
    pthread_mutex_unlock(&state->lock);
    pthread_cond_broadcast(&state->in_place_ended);
    ucx->in_place_count--;
  }
  free(receive->bounce);
  receive->bounce = NULL;
  receive->state = UCX_FREE;
  ucx->receive_count--;
  ucx->events++;
}

static void received(void* request, orion_ucs_status status, size_t bytes, void* user_data) {
  ucx_receive* receive = user_data;
  ucx_lanes* ucx = receive->ucx;
  (void)bytes;
  if (status != ORION_UCS_OK) {
    fail(ucx, status);
  } else {
    if (receive->bounce) orion_tcp_store(ucx->state, receive->frame.a, receive->bounce, receive->frame.bytes);
    stored(ucx, receive->frame.sequence);
  }
  end_receive(receive);
  if (request) ucx->link.api.request_free(request);
}

enum place { PLACE_TAKEN, PLACE_LATER, PLACE_BOUNCE };

// Marks the place as being written. LATER: as many as may be are already; BOUNCE: it is not plain memory.
static enum place take_place(ucx_receive* receive) {
  tcp_state* state = receive->ucx->state;
  const uint64_t first = receive->frame.a, end = first + receive->frame.bytes;
  receive->in_place = -1;
  pthread_mutex_lock(&state->lock);
  const bool is_plain = orion_tcp_is_plain(state, first, end);
  if (is_plain) {
    for (uint32_t i = 0; i < ORION_STRIPES_MAX && receive->in_place < 0; i++)
      if (state->in_place[i].end == 0) receive->in_place = (int)i;
    if (receive->in_place >= 0) {
      state->in_place[receive->in_place].first = first;
      state->in_place[receive->in_place].end = end;
    }
  }
  pthread_mutex_unlock(&state->lock);
  if (!is_plain) return PLACE_BOUNCE;
  if (receive->in_place < 0) return PLACE_LATER;
  receive->ucx->in_place_count++;
  return PLACE_TAKEN;
}

static void start_receive(ucx_receive* receive) {
  ucx_lanes* ucx = receive->ucx;
  uint8_t* to = ucx->state->session->host_base + receive->frame.a;
  const enum place place = take_place(receive);
  if (place == PLACE_LATER) return;
  receive->state = UCX_RUNNING;
  if (place == PLACE_BOUNCE) {
    to = receive->bounce = malloc(receive->frame.bytes);
    if (!to) {
      lose_memory(ucx);
      end_receive(receive);
      return;
    }
  }
  void* request = orion_ucx_receive(&ucx->link, receive->descriptor, to, receive->frame.bytes, ORION_UCS_MEMORY_HOST,
                                    NULL, received, receive);
  if (!request || orion_ucs_is_error(request)) received(NULL, orion_ucs_error(request), 0, receive);
}

static bool is_turn(const ucx_receive* receive, uint64_t sequence_received) {
  return receive->state == UCX_OFFERED && receive->frame.b <= sequence_received &&
         receive->frame.sequence <= sequence_received + ORION_WINDOW;
}

static orion_ucs_status take_offer(ucx_lanes* ucx, const orion_frame* frame, void* descriptor) {
  if (ucx->mover->at_end || ucx->receive_count == UCX_RECEIVES ||
      !orion_stripe_frame_ok(frame, ORION_HOST_ARENA_BYTES) ||
      frame->sequence <= atomic_load(&ucx->state->sequence_received)) {
    if (!ucx->mover->at_end) lose_malformed(ucx, "bulk");
    return ORION_UCS_OK;
  }
  ucx_receive* receive = ucx->receives;
  while (receive->state != UCX_FREE) receive++;
  *receive = (ucx_receive){.ucx = ucx, .state = UCX_OFFERED, .frame = *frame, .descriptor = descriptor, .in_place = -1};
  ucx->receive_count++;
  return ORION_UCS_INPROGRESS;
}

void orion_ucx_take_due(ucx_lanes* ucx) {
  uint64_t before;
  do {
    before = ucx->events;
    if (ucx->held) take_held(ucx);
    if (!ucx->receive_count) continue;
    const uint64_t sequence_received = atomic_load(&ucx->state->sequence_received);
    for (uint32_t i = 0; i < UCX_RECEIVES && !ucx->mover->broken && !ucx->mover->at_end; i++)
      if (is_turn(&ucx->receives[i], sequence_received)) start_receive(&ucx->receives[i]);
  } while (ucx->events != before && !ucx->mover->at_end);
}

// ------------------------------------------------------------------------------------------------- messages

orion_ucs_status orion_ucx_take(void* argument, const void* header, size_t header_bytes, void* data, size_t bytes,
                                const orion_ucp_am_recv_param* param) {
  ucx_lanes* ucx = argument;
  orion_ucx_head head;
  if (!orion_ucx_head_ok(header, header_bytes, bytes, ucx->cookie, &head)) return ORION_UCS_OK;
  ucx->events++;
  const uint32_t lane = head.frame.flags;
  if (param->attr & ORION_UCP_AM_RECV_RNDV) return take_offer(ucx, &head.frame, data);
  if (head.frame.type == ORION_FRAME_CONTROL) {
    if (lane <= ucx->state->stripe_count) ucx->greeted |= 1u << lane;
  } else if (lane == 0 && !ucx->mover->at_end) {
    take_lane_0(ucx, &head, data);
  }
  return ORION_UCS_OK;
}

void orion_ucx_free_frames(ucx_lanes* ucx) {
  while (ucx->held) {
    ucx_held* next = ucx->held->next;
    free(ucx->held);
    ucx->held = next;
  }
  for (uint32_t i = 0; i < UCX_SLOTS; i++) free(ucx->slots[i]);
  for (uint32_t i = 0; i < ORION_UCX_IN_FLIGHT; i++) free(ucx->pieces[i].bounce);
  for (uint32_t i = 0; i < UCX_RECEIVES; i++) free(ucx->receives[i].bounce);
}
