// Lanes that are UCX endpoints: RDMA where the node has it. All of it on the engine's own thread. Plain TCP lanes are
// offered beside until the client has come over one kind of them, so that it can fall back without asking.
//
// UCX itself parses what arrives before anything here sees it, and whoever reaches its ports may send it something.
// What comes here is believed where it carries the session's cookie (orion_ucx_link.h).
#include "net_ucx.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define GREETING_LIMIT_NS 5000000000ull
#define PROGRESS_MOST 64
#define INLINE_QUEUE_BYTES (4u << 20)  // copies wait while more than this waits for lane 0
#define CLOSE_LIMIT_NS 200000000ull
#define BOTH_WAIT_NS 10000000ull  // while plain lanes are open too, which UCX's descriptor does not tell

static ucx_lanes* lanes_of(const orion_engine* e) { return e->net->state; }

static int log_fd;
static bool is_isolated;  // this process serves one session

static void on_log(int level, const char* line) {
  // While it closes a connection UCX asks interfaces for their state, which it can do without.
  if (is_isolated && strstr(line, "socket create failed")) return;
  char text[300];
  const int bytes = snprintf(text, sizeof text, "orion engine: %s: UCX: %s\n",
                             level == ORION_UCS_LOG_ERROR ? "error" : "warning", line);
  if (write(log_fd, text, bytes < (int)sizeof text ? (size_t)bytes : sizeof text - 1) < 0) return;
}

static void fail(ucx_lanes* u, orion_ucs_status status) {
  u->lost = true;
  if (u->fault == ORION_UCS_OK) u->fault = status;
  u->events++;
}

// ------------------------------------------------------------------------------------------------ strangers
static void on_error(void* argument, void* ep, orion_ucs_status status) {
  orion_engine* e = argument;
  ucx_lanes* u = lanes_of(e);
  for (uint32_t i = 0; i < u->stranger_count; i++) {
    if (u->strangers[i].ep != ep) continue;
    u->strangers[i].until_ns = 0;
    return;
  }
  fail(u, status);
}

static void on_connection(void* request, void* argument) {
  orion_engine* e = argument;
  ucx_lanes* u = lanes_of(e);
  if (u->all_in || u->stranger_count == UCX_STRANGERS) {
    (void)u->link.api.listener_reject(u->listener, request);
    return;
  }
  const orion_ucp_ep_params params = {
      .mask = ORION_UCP_EP_CONNECTION | ORION_UCP_EP_ERROR_MODE | ORION_UCP_EP_ERROR_HANDLER,
      .error_mode = ORION_UCP_ERRORS_OF_PEER,
      .error = {on_error, e},
      .connection = request};
  void* ep = NULL;
  const orion_ucs_status status = u->link.api.ep_create(u->link.worker, &params, &ep);
  if (status) {
    engine_log(e, ENGINE_LOG_WARN, "a UCX connection failed: %s", u->link.api.status_string(status));
    return;
  }
  u->strangers[u->stranger_count++] = (ucx_stranger){ep, engine_now_ns() + GREETING_LIMIT_NS};
  u->events++;
}

static void close_ep(ucx_lanes* u, void* ep) {
  void* request = orion_ucx_close_ep(&u->link, ep, true);
  if (request) u->link.api.request_free(request);
}

static void drop_strangers(orion_engine* e, bool all) {
  ucx_lanes* u = lanes_of(e);
  const uint64_t now_ns = engine_now_ns();
  for (uint32_t i = 0; i < u->stranger_count;) {
    if (!all && now_ns < u->strangers[i].until_ns) {
      i++;
      continue;
    }
    if (!all) engine_log(e, ENGINE_LOG_WARN, "a connection without this session's token was ignored");
    close_ep(u, u->strangers[i].ep);
    u->strangers[i] = u->strangers[--u->stranger_count];
  }
}

// It is closed outside of UCX's calls.
static void refuse(ucx_lanes* u, const void* ep) {
  for (uint32_t i = 0; i < u->stranger_count; i++)
    if (u->strangers[i].ep == ep) u->strangers[i].until_ns = 0;
}

static void send_control(ucx_lanes* u, uint32_t lane) {
  static const uint8_t nothing[8];
  orion_ucx_head* head = &u->welcomes[lane];  // stays until it is sent
  *head = (orion_ucx_head){.frame = {.type = ORION_FRAME_CONTROL, .flags = (uint16_t)lane}, .cookie = u->cookie};
  const orion_ucp_request_param param = {.mask = ORION_UCP_OP_FLAGS, .flags = ORION_UCP_AM_EAGER};
  void* request = u->link.api.am_send_nbx(u->eps[lane], ORION_UCX_AM, head, sizeof *head, nothing, 0, &param);
  if (orion_ucs_is_error(request)) {
    fail(u, orion_ucs_error(request));
  } else if (request) {
    u->link.api.request_free(request);
  }
}

// A greeting: the connection that it came on becomes a lane where it shows the token.
static void admit(orion_engine* e, const orion_frame* head, const uint8_t* body, void* ep) {
  ucx_lanes* u = lanes_of(e);
  uint32_t i = 0;
  while (i < u->stranger_count && u->strangers[i].ep != ep) i++;
  if (i == u->stranger_count || head->bytes != sizeof u->token || sodium_memcmp(body, u->token, sizeof u->token) ||
      head->b > ORION_STRIPES_MAX || head->a > head->b || (u->lanes_in && head->b != u->stripe_count) ||
      u->eps[head->a]) {
    refuse(u, ep);
    return;
  }
  u->strangers[i] = u->strangers[--u->stranger_count];
  u->eps[head->a] = ep;
  u->stripe_count = (uint32_t)head->b;
  u->lanes_in++;
  // At once: the client's first frame may come in the same call of UCX.
  u->all_in = u->eps[0] && u->lanes_in == 1 + u->stripe_count;
  send_control(u, (uint32_t)head->a);
}

// ------------------------------------------------------------------------------------------------ from the client
static void hold(orion_engine* e, const orion_ucx_head* head, const uint8_t* body) {
  ucx_lanes* u = lanes_of(e);
  if (u->held_bytes > ORION_UCX_AHEAD_BYTES) {
    engine_end(e, ORION_END_BROKEN, "the client sends more than it may ahead");
    return;
  }
  ucx_held* held = malloc(sizeof *held);
  held_frame* frame = held ? net_held_new(e, &head->frame, body) : NULL;
  if (!frame) {
    free(held);
    engine_end(e, ORION_END_FAILED, "out of memory");
    return;
  }
  held->order = head->order;
  held->frame = frame;
  ucx_held** at = &u->held;
  while (*at && (*at)->order < head->order) at = &(*at)->next;
  held->next = *at;
  *at = held;
  u->held_bytes += sizeof *held + frame->bytes;
}

static void take_frame(orion_engine* e, const orion_frame* head, const uint8_t* body) {
  ucx_lanes* u = lanes_of(e);
  u->order_in++;
  if (net_order_is_numbered(head)) {
    net_order_take(e, &u->order, head, body);
  } else {
    net_take_frame(e, head, body, false);
  }
}

static void take_lane_0(orion_engine* e, const orion_ucx_head* head, const uint8_t* body) {
  ucx_lanes* u = lanes_of(e);
  if (head->order <= u->order_in) {
    net_malformed(e, "out of order");
  } else if (u->complete && !u->held && head->order == u->order_in + 1 && net_takes_operations(e->net)) {
    take_frame(e, &head->frame, body);
  } else {
    hold(e, head, body);
  }
}

static bool take_held(orion_engine* e) {
  ucx_lanes* u = lanes_of(e);
  bool any = false;
  while (u->held && u->held->order == u->order_in + 1 && net_takes_operations(e->net) && !e->end) {
    ucx_held* first = u->held;
    take_frame(e, &first->frame->head, first->frame->data);
    u->held = first->next;
    u->held_bytes -= sizeof *first + first->frame->bytes;
    free(first->frame);
    free(first);
    any = true;
  }
  if (u->held && u->held->order <= u->order_in) net_malformed(e, "out of order");
  return any;
}

static void received(void* request, orion_ucs_status status, size_t bytes, void* user_data) {
  ucx_receive* receive = user_data;
  orion_engine* e = receive->engine;
  ucx_lanes* u = lanes_of(e);
  (void)bytes;
  if (status != ORION_UCS_OK) {
    fail(u, status);
  } else {
    net_stored* slot = &u->order.window[receive->frame.sequence % ORION_WINDOW];
    slot->offset = receive->frame.a;
    slot->bytes = receive->frame.bytes;
    atomic_store_explicit(&slot->sequence, receive->frame.sequence, memory_order_release);
  }
  if (receive->direct) direct_received(e, receive->direct, &receive->frame);
  receive->state = UCX_FREE;
  u->receive_count--;
  u->events++;
  if (request) u->link.api.request_free(request);
}

void ucx_start_receives(orion_engine* e) {
  ucx_lanes* u = lanes_of(e);
  u->holds_offers = false;
  for (uint32_t i = 0; i < UCX_RECEIVES && u->receive_count && !u->lost && !e->end; i++) {
    ucx_receive* receive = &u->receives[i];
    const orion_frame* head = &receive->frame;
    if (receive->state != UCX_OFFERED || head->b > e->bulk_arrived || head->sequence > e->bulk_arrived + ORION_WINDOW) {
      continue;
    }
    if (atomic_load_explicit(&u->order.window[head->sequence % ORION_WINDOW].sequence, memory_order_relaxed)) {
      net_malformed(e, "bulk comes twice");
      return;
    }
    void* to = e->arena + head->a;
    if (e->direct) {
      const enum direct_place place = direct_place_of(e, receive, &to);
      u->holds_offers |= place == DIRECT_LATER;
      if (place == DIRECT_LATER) continue;
    }
    receive->state = UCX_RUNNING;
    void* request = orion_ucx_receive(&u->link, receive->descriptor, to, head->bytes,
                                      receive->direct ? direct_memory_type(receive->direct) : ORION_UCS_MEMORY_HOST,
                                      receive->direct ? direct_registration(receive->direct) : NULL, received, receive);
    if (!request || orion_ucs_is_error(request)) received(NULL, orion_ucs_error(request), 0, receive);
  }
}

static orion_ucs_status take_offer(orion_engine* e, const orion_frame* head, void* descriptor) {
  ucx_lanes* u = lanes_of(e);
  if (e->end) return ORION_UCS_OK;
  if (u->receive_count == UCX_RECEIVES || !orion_stripe_frame_ok(head, e->arena_bytes) ||
      head->sequence <= e->bulk_arrived) {
    net_malformed(e, "bulk that is offered");
    return ORION_UCS_OK;
  }
  ucx_receive* receive = u->receives;
  while (receive->state != UCX_FREE) receive++;
  *receive = (ucx_receive){.engine = e,
                           .state = UCX_OFFERED,
                           .frame = *head,
                           .descriptor = descriptor,
                           .offered_ns = e->direct ? engine_now_ns() : 0};
  u->receive_count++;
  return ORION_UCS_INPROGRESS;
}

static orion_ucs_status take_message(void* argument, const void* header, size_t header_bytes, void* data, size_t bytes,
                                     const orion_ucp_am_recv_param* param) {
  orion_engine* e = argument;
  ucx_lanes* u = lanes_of(e);
  orion_ucx_head head;
  u->events++;
  if (!orion_ucx_head_ok(header, header_bytes, bytes, u->cookie, &head)) {
    if (param->attr & ORION_UCP_AM_RECV_REPLY_EP) refuse(u, param->reply_ep);
    return ORION_UCS_OK;
  }
  const bool is_offer = (param->attr & ORION_UCP_AM_RECV_RNDV) != 0;
  if (!u->all_in) {
    if (!is_offer && head.frame.type == ORION_FRAME_CONTROL && (param->attr & ORION_UCP_AM_RECV_REPLY_EP)) {
      admit(e, &head.frame, data, param->reply_ep);
    }
    return ORION_UCS_OK;
  }
  if (is_offer) return take_offer(e, &head.frame, data);
  if (head.frame.flags != 0) {
    net_malformed(e, "on a lane for large bulk");
  } else if (!e->end) {
    take_lane_0(e, &head, data);
  }
  return ORION_UCS_OK;
}

// ------------------------------------------------------------------------------------------------ which lanes it is
static void isolate(orion_engine* e, int mode, int tells) {
  if (mode == ENGINE_ISOLATE_NOT) return;
  const int error = orion_isolate(ORION_ISOLATE_LANES, tells);
  is_isolated = !error;
  if (!error) return;
  engine_log(e, ENGINE_LOG_WARN, "no filter of system calls: %s", strerror(error));
  if (mode == ENGINE_ISOLATE_REQUIRED) engine_end(e, ORION_END_FAILED, "the filter of system calls is required");
}

static void close_listener(ucx_lanes* u) {
  if (u->listener) u->link.api.listener_destroy(u->listener);
  u->listener = NULL;
}

static void close_raw(orion_engine* e) {
  struct orion_net* n = e->net;
  ucx_lanes* u = n->state;
  if (!u->raw) return;
  n->state = u->raw;
  net_raw_lanes.close(e);
  n->state = u;
  u->raw = NULL;
}

static void free_lanes(ucx_lanes* u) {
  for (uint32_t i = 0; i < UCX_SENDS; i++) free(u->sends[i].frame);
  while (u->held) {
    ucx_held* next = u->held->next;
    free(u->held->frame);
    free(u->held);
    u->held = next;
  }
  net_order_free(&u->order);
  free(u);
}

// UCX's lanes are no more; the client may still come over the plain ones, or has.
static void fall_back(orion_engine* e) {
  struct orion_net* n = e->net;
  ucx_lanes* u = n->state;
  drop_strangers(e, true);
  for (uint32_t i = 0; i <= ORION_STRIPES_MAX; i++) {
    if (u->eps[i]) close_ep(u, u->eps[i]);
  }
  close_listener(u);
  orion_ucx_close(&u->link);
  const int mode = u->isolate, tells = u->tells;
  n->state = u->raw;
  n->lanes = &net_raw_lanes;
  free_lanes(u);
  isolate(e, mode, tells);
}

// Lets the plain lanes greet. True when they moved; the client may have come over them.
static bool greet_raw(orion_engine* e) {
  struct orion_net* n = e->net;
  ucx_lanes* u = n->state;
  n->state = u->raw;
  const bool moved = net_raw_lanes.receive(e);
  const bool here = ((raw_lanes*)u->raw)->complete;
  n->state = u;
  if (here) {
    engine_log(e, ENGINE_LOG_INFO, "the client does not come over UCX and uses tcp");
    fall_back(e);
  }
  return moved;
}

// All lanes have come. UCX opens sockets until both ends know of each connection, which is so once the welcomes have
// arrived: nothing of the client's is executed before, since the filter closes then.
static void begin_flush(orion_engine* e) {
  ucx_lanes* u = lanes_of(e);
  u->flushing = true;
  const orion_ucp_request_param param = {0};
  for (uint32_t i = 0; i <= u->stripe_count; i++) {
    u->flushes[i] = u->link.api.ep_flush_nbx(u->eps[i], &param);
    if (orion_ucs_is_error(u->flushes[i])) {
      fail(u, orion_ucs_error(u->flushes[i]));
      u->flushes[i] = NULL;
    }
  }
}

static bool is_flushed(ucx_lanes* u) {
  for (uint32_t i = 0; i <= u->stripe_count; i++) {
    if (!u->flushes[i]) continue;
    if (u->link.api.request_check_status(u->flushes[i]) == ORION_UCS_INPROGRESS) return false;
    u->link.api.request_free(u->flushes[i]);
    u->flushes[i] = NULL;
  }
  return true;
}

static void complete(orion_engine* e) {
  ucx_lanes* u = lanes_of(e);
  char carriers[160], copies[160];
  u->complete = true;
  drop_strangers(e, true);
  close_listener(u);
  close_raw(e);
  orion_ucx_describe(&u->link, u->eps[0], carriers, sizeof carriers);
  u->link.tells_all = orion_ucx_is_tcp(carriers);
  direct_open(e, carriers, copies);
  engine_log(e, ENGINE_LOG_INFO, "lanes over UCX %u.%u.%u (%s), not encrypted; copies go %s", u->link.api.major,
             u->link.api.minor, u->link.api.release, carriers, copies);
  isolate(e, u->isolate, u->tells);
  if (e->config.ucx_spin_us >= 0) {
    e->spin_ns = (uint64_t)e->config.ucx_spin_us * 1000;
    e->spin_allowed = e->spin_ns != 0;
  }
  atomic_store(&e->lanes_are_ucx, true);
  STAT_ADD(e, stat_lanes, 2);
}

// Once the arena is there. False: nothing is left of UCX here.
static bool prepare(orion_engine* e) {
  ucx_lanes* u = lanes_of(e);
  char device[64];
  u->prepared = true;
  if (!orion_rdma_device("", device)) return true;
  const char* why = orion_ucx_register(&u->link, e->arena, ORION_STAGING_BYTES);
  if (!why) return true;
  engine_log(e, ENGINE_LOG_WARN, "no UCX for this client, which may use tcp: %s", why);
  fall_back(e);
  return false;
}

static void flush(orion_engine* e);

static bool receive(orion_engine* e) {
  ucx_lanes* u = lanes_of(e);
  if (!u->prepared && !prepare(e)) return true;
  const uint64_t events = u->events, arrived = e->bulk_arrived;
  if (e->net->first_frame) flush(e);  // what somebody waits for, before a look at the network
  for (int i = 0; i < PROGRESS_MOST && !e->end && u->link.api.worker_progress(u->link.worker); i++) continue;
  if (!u->complete) {
    if (u->stranger_count) drop_strangers(e, false);
    if (u->all_in && !u->flushing) begin_flush(e);
    // Its first frame says that it has all welcomes: until then it may still give up and come over plain TCP.
    if (u->all_in && u->held && is_flushed(u)) {
      complete(e);
      return true;
    }
    if (u->all_in && u->lost) {
      engine_log(e, ENGINE_LOG_INFO, "UCX's lanes were lost before the client used them: it may use tcp (%s)",
                 u->link.api.status_string(u->fault));
      fall_back(e);
      return true;
    }
    return greet_raw(e) || e->net->state != u || u->events != events;
  }
  bool moved = take_held(e);
  moved |= net_order_take_due(e, &u->order);
  if (u->receive_count) {
    ucx_start_receives(e);
    moved |= net_order_take_due(e, &u->order);
  }
  return moved || u->events != events || e->bulk_arrived != arrived;
}

static void check(orion_engine* e) {
  const ucx_lanes* u = lanes_of(e);
  if (u->lost && u->complete) {
    engine_end(e, ORION_END_CLIENT_LOST, "the client closed a lane (%s)", u->link.api.status_string(u->fault));
  }
}

// ------------------------------------------------------------------------------------------------ towards the client
static void frame_sent(void* request, orion_ucs_status status, void* user_data) {
  ucx_send* send = user_data;
  ucx_lanes* u = lanes_of(send->engine);
  free(send->frame);
  send->frame = NULL;
  u->sends_busy--;
  u->events++;
  if (status != ORION_UCS_OK) fail(u, status);
  u->link.api.request_free(request);
}

static void flush(orion_engine* e) {
  struct orion_net* n = e->net;
  ucx_lanes* u = n->state;
  if (e->direct && !u->lost) (void)direct_send(e);
  while (u->complete && !u->lost && n->first_frame && u->sends_busy < UCX_SENDS) {
    ucx_send* send = u->sends;
    while (send->frame) send++;
    out_frame* f = net_frame_taken(n);
    send->engine = e;
    memcpy(&send->head.frame, f->data, sizeof send->head.frame);
    send->head.order = ++u->order_out;
    send->head.cookie = u->cookie;
    void* request = orion_ucx_send(&u->link, u->eps[0], &send->head, f->data + sizeof(orion_frame), ORION_UCP_AM_EAGER,
                                   ORION_UCS_MEMORY_HOST, NULL, frame_sent, send);
    if (request && !orion_ucs_is_error(request)) {
      send->frame = f;
      u->sends_busy++;
      continue;
    }
    free(f);
    if (request) fail(u, orion_ucs_error(request));
  }
}

// Large copies of memory that no kernel goes on writing are sent from where they are.
static bool is_large(const orion_engine* e, const out_copy* c) {
  return c && !e->net->is_urgent && c->kind == OUT_WHOLE && c->bytes >= ORION_STRIPE_MIN_BYTES &&
         lanes_of(e)->stripe_count && !coherent_touches(e, c->offset, c->bytes);
}

static bool has_room(orion_engine* e, const out_copy* copy) {
  const ucx_lanes* u = lanes_of(e);
  if (!u->complete || u->lost) return false;
  if (is_large(e, copy)) return u->pieces_busy < ORION_UCX_IN_FLIGHT;
  return e->net->is_urgent || e->net->queued_bytes < INLINE_QUEUE_BYTES;
}

static void piece_sent(void* request, orion_ucs_status status, void* user_data) {
  ucx_piece* piece = user_data;
  ucx_lanes* u = lanes_of(piece->engine);
  if (piece->direct) direct_sent(piece->engine, piece->direct);
  piece->busy = false;
  u->pieces_busy--;
  u->events++;
  if (status != ORION_UCS_OK) fail(u, status);
  if (request) u->link.api.request_free(request);
}

void ucx_send_piece(orion_engine* e, const orion_frame* head, const void* body, struct direct_copy* direct) {
  ucx_lanes* u = lanes_of(e);
  ucx_piece* piece = u->pieces;
  while (piece->busy) piece++;
  const uint32_t lane = 1 + u->next_lane++ % u->stripe_count;
  piece->engine = e;
  piece->busy = true;
  piece->direct = direct;
  piece->head = (orion_ucx_head){*head, 0, u->cookie};
  piece->head.frame.flags = (uint16_t)lane;
  u->pieces_busy++;
  void* request = orion_ucx_send(&u->link, u->eps[lane], &piece->head, body, ORION_UCP_AM_RNDV,
                                 direct ? direct_memory_type(direct) : ORION_UCS_MEMORY_HOST,
                                 direct ? direct_registration(direct) : NULL, piece_sent, piece);
  if (!request || orion_ucs_is_error(request)) piece_sent(NULL, orion_ucs_error(request), piece);
}

static bool send_numbered(orion_engine* e, const out_copy* copy, uint16_t type, uint64_t a, const uint8_t* body,
                          uint64_t bytes) {
  struct orion_net* n = e->net;
  ucx_lanes* u = n->state;
  const uint64_t sequence = n->bulk_sent + 1;
  if (is_large(e, copy)) {
    if (copy->sent == 0 || u->group.count == 0) {
      orion_group_join(&u->group, sequence, a, copy->offset + copy->bytes);
    }
    const orion_frame head = {
        .type = ORION_FRAME_BULK, .bytes = (uint32_t)bytes, .sequence = sequence, .a = a, .b = u->group.after};
    ucx_send_piece(e, &head, body, NULL);
  } else {
    orion_group_close(&u->group, sequence);
    net_queue_frame(e, type, sequence, a, 0, body, (uint32_t)bytes);
    // What is sent, not what lies there by now: a kernel may go on writing.
    if (!e->end && type == ORION_FRAME_BULK && e->coherent_count) {
      const out_frame* last = (const out_frame*)((const uint8_t*)n->last_frame - offsetof(out_frame, next));
      coherent_known(e, a, last->data + sizeof(orion_frame), bytes);
    }
  }
  n->bulk_sent = sequence;
  STAT_ADD(e, stat_out, bytes);
  return !e->end;
}

// ------------------------------------------------------------------------------------------------ sleeping
static void wait_for_work(orion_engine* e, uint64_t timeout_ns) {
  const struct orion_net* n = e->net;
  const ucx_lanes* u = n->state;
  if (u->raw && timeout_ns > BOTH_WAIT_NS) timeout_ns = BOTH_WAIT_NS;
  if (u->holds_offers && timeout_ns > DIRECT_HOLD_NS / 2) timeout_ns = DIRECT_HOLD_NS / 2;
  struct pollfd fds[2] = {{.fd = n->wake_fd, .events = POLLIN}, {.fd = u->link.efd, .events = POLLIN}};
  if (orion_ucx_busy(&u->link, &u->events)) return;
  const struct timespec timeout = {(time_t)(timeout_ns / 1000000000ull), (long)(timeout_ns % 1000000000ull)};
  if (ppoll(fds, 2, &timeout, NULL) > 0 && fds[0].revents) {
    uint64_t ignored = 0;
    if (read(n->wake_fd, &ignored, sizeof ignored) < 0) return;
  }
}

// ------------------------------------------------------------------------------------------------ life
// What has been queued goes out and arrives, for a bounded time.
static void close_lanes(orion_engine* e) {
  ucx_lanes* u = lanes_of(e);
  direct_tell(e);
  const uint64_t until_ns = engine_now_ns() + CLOSE_LIMIT_NS;
  while (u->complete && !u->lost && (e->net->first_frame || u->sends_busy) && engine_now_ns() < until_ns) {
    flush(e);
    (void)u->link.api.worker_progress(u->link.worker);
  }
  drop_strangers(e, true);
  void* requests[1 + ORION_STRIPES_MAX] = {NULL};
  for (uint32_t i = 0; i <= ORION_STRIPES_MAX; i++) {
    if (u->eps[i]) requests[i] = orion_ucx_close_ep(&u->link, u->eps[i], u->lost);
  }
  bool all = !u->lost;
  u->lost = true;
  const uint64_t closed_until_ns = engine_now_ns() + CLOSE_LIMIT_NS;
  for (uint32_t i = 0; i <= ORION_STRIPES_MAX; i++) {
    while (requests[i] && u->link.api.request_check_status(requests[i]) == ORION_UCS_INPROGRESS &&
           engine_now_ns() < closed_until_ns) {
      (void)u->link.api.worker_progress(u->link.worker);
    }
    if (!requests[i]) continue;
    all &= u->link.api.request_check_status(requests[i]) != ORION_UCS_INPROGRESS;
    u->link.api.request_free(requests[i]);
  }
  close_listener(u);
  close_raw(e);
  // UCX ends the process that destroys a worker whose endpoints have something left to do (1.13, also after an endpoint
  // was lost and closed), and may send from this memory still. The process ends soon.
  if (all && !u->sends_busy && !u->pieces_busy && !u->receive_count) {
    direct_close(e);
    orion_ucx_close(&u->link);
    free_lanes(u);
  }
  e->net->state = NULL;
}

static const char* open_listener(orion_engine* e, ucx_lanes* u, char* endpoint) {
  struct sockaddr_in address = {.sin_family = AF_INET};
  if (inet_pton(AF_INET, e->net->address, &address.sin_addr) != 1) return "no IPv4 address";
  const orion_ucp_listener_params params = {.mask = ORION_UCP_LISTENER_SOCKADDR | ORION_UCP_LISTENER_CONNECTION,
                                            .address = {(const struct sockaddr*)&address, sizeof address},
                                            .connection = {on_connection, e}};
  orion_ucs_status status = u->link.api.listener_create(u->link.worker, &params, &u->listener);
  if (status) {
    u->listener = NULL;
    return orion_ucx_why(&u->link, "UCX cannot listen", status);
  }
  orion_ucp_listener_attr attr = {.mask = ORION_UCP_LISTENER_ATTR_SOCKADDR};
  status = u->link.api.listener_query(u->listener, &attr);
  if (status) return orion_ucx_why(&u->link, "UCX does not tell where it listens", status);
  memcpy(&address, &attr.address, sizeof address);
  // With this UCX's release, which the client compares with its own.
  snprintf(endpoint, 64, "ucx://%s:%u#%u.%u", e->net->address, (unsigned)ntohs(address.sin_port), u->link.api.major,
           u->link.api.minor);
  return NULL;
}

int orion_engine_ucx_listen(orion_engine* e, const char* devices, int isolate_mode, int tells, char* endpoint,
                            char* why) {
  struct orion_net* n = e->net;
  why[0] = endpoint[0] = 0;
  if (!n || n->lanes != &net_raw_lanes || n->token_bytes != 32) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  ucx_lanes* u = calloc(1, sizeof *u);
  if (!u) return CUDA_ERROR_OUT_OF_MEMORY;
  log_fd = e->config.log_fd > 0 ? e->config.log_fd : 2;
  orion_ucx_token(n->token, u->token);
  u->cookie = orion_ucx_cookie(u->token);
  u->isolate = isolate_mode;
  u->tells = tells;
  // A UCX with CUDA support looks for devices in the context that is current.
  if (e->device_count && e->devices[0].primary) (void)e->driver.context_set_current(e->devices[0].primary);
  const char* reason = orion_ucx_open(&u->link, devices, "", orion_ucx_managers(n->address), take_message, e, on_log);
  if (!reason) reason = open_listener(e, u, endpoint);
  if (!reason) {
    u->raw = n->state;
    n->state = u;
    n->lanes = &net_ucx_lanes;
    return 0;
  }
  snprintf(why, 256, "%s", reason);
  close_listener(u);
  orion_ucx_close(&u->link);
  free_lanes(u);
  return CUDA_ERROR_OPERATING_SYSTEM;
}

const char* orion_engine_lanes(const orion_engine* e) { return atomic_load(&e->lanes_are_ucx) ? "ucx" : "tcp"; }

int orion_engine_ucx_usable(char* version, char* why) {
  orion_ucx_api api;
  why[0] = version[0] = 0;
  log_fd = 2;
  const char* reason = orion_ucx_load(&api, on_log, why, 256);
  if (!reason) {
    snprintf(version, 32, "%u.%u.%u", api.major, api.minor, api.release);
    return 1;
  }
  if (reason != why) snprintf(why, 256, "%s", reason);
  return 0;
}

const net_lanes net_ucx_lanes = {
    .receive = receive,
    .check = check,
    .flush = flush,
    .has_room = has_room,
    .send_numbered = send_numbered,
    .wait = wait_for_work,
    .close = close_lanes,
};
