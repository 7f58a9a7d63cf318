// Large copies straight between the network and device memory (GPUDirect), where UCX can.
//
// Such a copy stays parked from the time that its stream has reached it until its last byte has arrived, so that
// everything behind it waits as behind a host function, and nothing on the GPU waits for the network. Copies that stand
// behind nothing but such copies are under way beside them.
//
// To the device: pieces that the client offers wait a short time for their operation. Where its stream is not there
// yet, they go to the arena: the network then works beside the GPU, and no other stream ever waits for this one. To the
// host: the worker's arena has what was sent too, except for staging: the client does not send what it is about to
// receive, and a later operation may read it here.
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "launcher.h"
#include "net_ucx.h"

#define COPIES 32u
#define MEMORIES 64u
#define PATIENCE_NS 300000ull  // for the stream to reach a copy to the device: less than DIRECT_HOLD_NS
#define FLUSH_CURRENT_CONTEXT 0
#define FLUSH_TO_OWNER 100
#define CUDA_SINCE_MINOR 16u  // UCX takes registrations that it is given, and caches none of its own, since 1.16

// Device memory that UCX knows: one range of the engine's, as a whole.
typedef struct direct_memory {
  uint64_t serial;  // of the range; 0: free
  uint64_t base, bytes;
  void* registration;  // NULL: refused
  int type;
  bool gives_registration;  // UCX takes it
  uint32_t users;           // copies under way
} direct_memory;

typedef struct direct_copy {
  const orion_op* op;  // in its parked entry; NULL: free
  enum { DIRECT_WAITS, DIRECT_GOES } state;
  bool out;
  uint64_t arena, device, bytes;
  uint64_t first, last;  // numbers of the pieces that come
  uint64_t* landed;      // a bit for each piece that came to the device
  uint64_t sent;
  uint32_t running;  // pieces that UCX is moving
  uint32_t track;    // whose `value` says that the stream has reached it; 0: not marked yet
  uint64_t value, deadline_ns;
  direct_memory* memory;
} direct_copy;

typedef struct direct_table {
  direct_copy copies[COPIES];
  direct_memory memories[MEMORIES];
  uint32_t used, going, next_memory;
  uint64_t arena_until;   // offers up to this number go to the arena
  uint32_t others_epoch;  // == epoch: something else than copies under way is parked
  int probe[2];           // a pipe: what may be written to it is host memory
  bool gives_registrations, has_refused;
  uint64_t domains;  // of the RDMA devices that carry the lanes, a bit each; 0: there are none, or nothing is known
  bool is_rdma;
  uint64_t events;               // pieces that have come or gone
  uint64_t in_bytes, out_bytes;  // that went this way
} direct_table;

static ucx_lanes* lanes_of(const orion_engine* e) { return e->net->state; }

// ------------------------------------------------------------------------------------------------ whether at all
static const char* why_not(const orion_engine* e, const char* carriers) {
  const orion_ucx_link* link = &lanes_of(e)->link;
  const char* wish = getenv("ORION_UCX_DIRECT");
  if (wish && strcmp(wish, "off") == 0) return "ORION_UCX_DIRECT is off";
  if (e->config.null_engine) return "there is no device";
  // Without RDMA it takes CUDA at both ends, and the client has none.
  if (link->has_cuda && !orion_ucx_is_rdma(carriers)) return "this is no RDMA";
  if (wish && strcmp(wish, "on") == 0) return NULL;
  if (!link->has_cuda) return "this UCX has no CUDA support";
  if (link->api.major == 1 && link->api.minor < CUDA_SINCE_MINOR) return "that takes UCX 1.16";
  return NULL;
}

/// Those of the lanes' devices that have staging, which is registered with all of them: so a remote key tells.
static uint64_t rdma_domains(const orion_engine* e) {
  const ucx_lanes* u = lanes_of(e);
  if (!u->link.memory) return 0;
  return orion_ucx_rdma_domains(&u->link, u->eps[u->stripe_count ? 1 : 0]) &
         orion_ucx_domains(&u->link, u->link.memory, ORION_UCS_MEMORY_HOST);
}

void direct_open(orion_engine* e, const char* carriers, char words[160]) {
  const orion_ucx_link* link = &lanes_of(e)->link;
  const char* wish = getenv("ORION_UCX_DIRECT");
  if (wish && wish[0] && strcmp(wish, "auto") != 0 && strcmp(wish, "on") != 0 && strcmp(wish, "off") != 0) {
    engine_log(e, ENGINE_LOG_WARN, "ORION_UCX_DIRECT is %.32s, which is none of auto, on and off: auto is taken", wish);
  }
  const char* why = why_not(e, carriers);
  direct_table* t = why ? NULL : calloc(1, sizeof *t);
  if (!why && !t) why = "out of memory";
  if (!why && pipe2(t->probe, O_CLOEXEC | O_NONBLOCK)) {
    free(t);
    why = "out of descriptors";
  }
  if (why) {
    snprintf(words, 160, "through pinned host memory: %s", why);
    return;
  }
  // Copies wait for their streams by what this thread has issued: it issues everything then. Nothing has been yet.
  launcher_stop(e);
  t->is_rdma = orion_ucx_is_rdma(carriers);
  t->domains = rdma_domains(e);
  t->gives_registrations = link->api.major > 1 || link->api.minor >= CUDA_SINCE_MINOR;
  e->direct = t;
  e->memory_for_rdma = link->has_cuda;
  snprintf(words, 160,
           "straight to and from device memory where their streams are ready, else through pinned host memory");
}

// ------------------------------------------------------------------------------------------------ memory
static bool is_host_memory(const direct_table* t, uint64_t address) {
  char ignored;
  if (write(t->probe[1], (const void*)(uintptr_t)address, 1) != 1) return false;
  return read(t->probe[0], &ignored, 1) == 1;
}

static void drop_memory(orion_engine* e, direct_memory* m) {
  ucx_lanes* u = lanes_of(e);
  if (m->registration) (void)u->link.api.mem_unmap(u->link.context, m->registration);
  *m = (direct_memory){0};
}

static bool make_current(orion_engine* e, uint32_t context) {
  if (e->current_context == context) return true;
  if (answer_check(e, context, (int32_t)e->driver.context_set_current(e->contexts[context].handle))) return false;
  e->current_context = context;
  return true;
}

/// The range that has all of it; NULL: none. What the program maps by itself may go at any time.
static const range* range_of(const orion_engine* e, uint64_t address, uint64_t bytes) {
  const device_state* d = memory_device_at(e, address);
  const uint32_t index = d ? d->chunk_range[(address - d->base) / ORION_CHUNK_BYTES] : 0;
  const range* r = index ? &e->ranges[index] : NULL;
  if (!r || !r->serial || r->memory || r->is_out) return NULL;
  return address - r->base <= r->bytes && bytes <= r->bytes - (address - r->base) ? r : NULL;
}

static void refuse(orion_engine* e, const char* why) {
  direct_table* t = e->direct;
  if (!t->has_refused) {
    engine_log(e, ENGINE_LOG_WARN, "UCX cannot use device memory, whose copies go through pinned host memory: %s", why);
  }
  t->has_refused = true;
}

static direct_memory* free_memory(orion_engine* e) {
  direct_table* t = e->direct;
  for (uint32_t i = 0; i < MEMORIES; i++) {
    if (!t->memories[i].serial) return &t->memories[i];
  }
  for (uint32_t i = 0; i < MEMORIES; i++) {
    direct_memory* m = &t->memories[t->next_memory++ % MEMORIES];
    if (m->users) continue;
    drop_memory(e, m);
    return m;
  }
  return NULL;
}

/// The memory of a range, registered; NULL: UCX refuses.
static direct_memory* register_range(orion_engine* e, const range* r) {
  direct_table* t = e->direct;
  for (uint32_t i = 0; i < MEMORIES; i++) {
    if (t->memories[i].serial == r->serial) return t->memories[i].registration ? &t->memories[i] : NULL;
  }
  const ucx_lanes* u = lanes_of(e);
  direct_memory* m = free_memory(e);
  if (!m) return NULL;
  *m = (direct_memory){
      .serial = r->serial, .base = r->base, .bytes = r->bytes, .gives_registration = t->gives_registrations};
  m->type = u->link.has_cuda ? ORION_UCS_MEMORY_CUDA : ORION_UCS_MEMORY_HOST;
  if (!u->link.has_cuda && !is_host_memory(t, r->base)) {
    refuse(e, "it has no CUDA support");
    return NULL;
  }
  const orion_ucs_status status =
      orion_ucx_map(&u->link, (void*)(uintptr_t)r->base, r->bytes, m->type, &m->registration);
  if (status != ORION_UCS_OK) {
    m->registration = NULL;
    refuse(e, u->link.api.status_string(status));
    return NULL;
  }
  if (!t->is_rdma || (orion_ucx_domains(&u->link, m->registration, m->type) & t->domains)) return m;
  // UCX would copy at both ends: the client, which has no CUDA, could not, and its session would be lost.
  (void)u->link.api.mem_unmap(u->link.context, m->registration);
  m->registration = NULL;
  refuse(e, "the RDMA device cannot reach it (is nvidia_peermem loaded, or dma-buf supported?)");
  return NULL;
}

void direct_forget(orion_engine* e, uint64_t serial) {
  direct_table* t = e->direct;
  for (uint32_t i = 0; serial && e->net && e->net->state && i < MEMORIES; i++) {
    if (t->memories[i].serial == serial) drop_memory(e, &t->memories[i]);
  }
}

int direct_memory_type(const direct_copy* copy) { return copy->memory->type; }

void* direct_registration(const direct_copy* copy) {
  return copy->memory->gives_registration ? copy->memory->registration : NULL;
}

// ------------------------------------------------------------------------------------------------ one copy
static direct_copy* find(const orion_engine* e, const orion_op* op) {
  direct_table* t = e->direct;
  for (uint32_t i = 0; t->used && i < COPIES; i++) {
    if (t->copies[i].op == op) return &t->copies[i];
  }
  return NULL;
}

static void release(orion_engine* e, direct_copy* c) {
  direct_table* t = e->direct;
  if (c->state == DIRECT_GOES) {
    c->memory->users--;
    t->going--;
  }
  free(c->landed);
  *c = (direct_copy){0};
  t->used--;
}

void direct_end(orion_engine* e, const orion_op* op) {
  direct_copy* c = find(e, op);
  if (c) release(e, c);
}

// Offers up to this number, which no copy has claimed, need not wait for their operation.
static void give_to_arena(orion_engine* e, uint64_t sequence) {
  direct_table* t = e->direct;
  if (sequence > t->arena_until) t->arena_until = sequence;
}

/// What the operation copies, where it may go this way; its `op` stays NULL. False: it may not.
static bool describe(const orion_engine* e, const orion_op* op, direct_copy* c) {
  *c = (direct_copy){.out = op->code == ORION_OP_COPY_D2H};
  if (c->out) {
    const orion_op_copy_d2h* o = (const orion_op_copy_d2h*)op;
    c->arena = o->dst_off, c->device = o->src, c->bytes = o->size_bytes;
  } else if (op->code == ORION_OP_COPY_H2D) {
    const orion_op_copy_h2d* o = (const orion_op_copy_h2d*)op;
    c->arena = o->src_off, c->device = o->device_dst, c->bytes = o->size_bytes;
  } else {
    return false;
  }
  if (c->bytes < ORION_STRIPE_MIN_BYTES || e->swap.holds || !lanes_of(e)->stripe_count) return false;
  const context_state* context = &e->contexts[op->context];
  const stream_state* s = &e->streams[stream_index(op)];
  if (!context->alive || context->sticky || !s->alive || s->context != op->context) return false;
  if (!memory_host_ok(e, c->arena, c->bytes) || coherent_touches(e, c->arena, c->bytes) ||
      !range_of(e, c->device, c->bytes)) {
    return false;
  }
  if (c->out) return true;
  const uint64_t pieces = (c->bytes + ORION_BULK_BYTES - 1) / ORION_BULK_BYTES;
  c->last = op->bulk_seq;
  c->first = c->last - pieces + 1;
  return c->last > e->bulk_arrived && c->last > e->direct->arena_until && c->last >= pieces;
}

static direct_copy* begin(orion_engine* e, const orion_op* op, const direct_copy* described) {
  direct_table* t = e->direct;
  if (t->used == COPIES) return NULL;
  direct_copy* c = t->copies;
  while (c->op) c++;
  uint64_t* landed = NULL;
  if (!described->out) {
    landed = calloc((described->last - described->first) / 64 + 1, sizeof *landed);
    if (!landed) return NULL;
  }
  *c = *described;
  c->op = op;
  c->landed = landed;
  c->deadline_ns = engine_now_ns() + PATIENCE_NS;
  t->used++;
  return c;
}

static bool crosses(uint64_t a, uint64_t b, uint64_t a_bytes, uint64_t b_bytes) {
  return a < b + b_bytes && b < a + a_bytes;
}

/// Whether a copy that is under way writes what this one reads, or either writes what the other does.
static bool conflicts(const orion_engine* e, const direct_copy* c) {
  for (uint32_t i = 0; i < COPIES; i++) {
    const direct_copy* o = &e->direct->copies[i];
    if (!o->op || o == c || o->state != DIRECT_GOES) continue;
    if (!(o->out && c->out) && crosses(o->device, c->device, o->bytes, c->bytes)) return true;
    if ((o->out || c->out) && crosses(o->arena, c->arena, o->bytes, c->bytes)) return true;
  }
  return false;
}

/// Places a marker of which the GPU says that the stream has reached the copy. False: none can be placed.
static bool mark_place(orion_engine* e, direct_copy* c) {
  stream_state* s = &e->streams[stream_index(c->op)];
  track* t = &e->tracks[s->track];
  if (s->handle && !s->blocking) {
    order_mark_track(e, s->track);
    c->value = t->issued;
    c->track = s->track;
    return t->marked == t->issued;
  }
  // On the stream itself: it waits for whatever the copy would wait for, and holds what that would hold.
  if (!make_current(e, c->op->context)) return false;
  order_issued(e, s);
  const uint64_t value = t->issued + 1;
  const CUdeviceptr word = e->done_device + (uint64_t)s->track * 8;
  if (answer_check(e, c->op->context, (int32_t)e->driver.write_value64(s->handle, word, value, 0))) return false;
  t->issued = t->marked = value;
  c->value = value;
  c->track = s->track;
  return true;
}

enum place { PLACE_NOT_YET, PLACE_REACHED, PLACE_UNKNOWN };

static enum place place_of(orion_engine* e, direct_copy* c) {
  if (c->track) {
    const track* t = &e->tracks[c->track];
    const bool there = !t->dirty || t->issued < c->value || order_track_done(e, c->track) >= c->value;
    return there ? PLACE_REACHED : PLACE_NOT_YET;
  }
  order_sweep(e);
  const stream_state* s = &e->streams[stream_index(c->op)];
  bool any = false;
  for (uint32_t i = e->first_dirty; i && !any; i = e->tracks[i].next_dirty) {
    any = e->tracks[i].context == c->op->context;
  }
  if (!any || (s->handle && !s->blocking && order_track_idle(e, s->track))) return PLACE_REACHED;
  return mark_place(e, c) ? PLACE_NOT_YET : PLACE_UNKNOWN;
}

/// The stream is there. False: the copy goes through the arena after all.
static bool go(orion_engine* e, direct_copy* c) {
  stream_state* s = &e->streams[stream_index(c->op)];
  const range* r = range_of(e, c->device, c->bytes);
  if (!r || !make_current(e, c->op->context)) return false;
  c->memory = register_range(e, r);
  if (!c->memory) return false;
  if (c->out && c->arena + c->bytes > ORION_STAGING_BYTES) {
    const CUresult code = e->driver.copy_d2h(e->arena + c->arena, c->device, c->bytes, s->handle);
    if (answer_check(e, c->op->context, (int32_t)code)) return false;
    order_issued(e, s);
  }
  c->memory->users++;
  c->state = DIRECT_GOES;
  e->direct->going++;
  if (c->out) {
    (void)direct_send(e);
  } else {
    ucx_start_receives(e);
  }
  return true;
}

static bool is_done(const orion_engine* e, const direct_copy* c) {
  return c->running == 0 && (c->out ? c->sent == c->bytes : e->bulk_arrived >= c->last);
}

enum verdict { COPY_GOES, COPY_DONE, COPY_ELSEWHERE };

static enum verdict look(orion_engine* e, direct_copy* c) {
  const context_state* context = &e->contexts[c->op->context];
  if ((!context->alive || context->sticky) && c->running == 0) return COPY_ELSEWHERE;
  if (c->state == DIRECT_WAITS) {
    // The rest of one that it has to wait for may still be issued to the GPU: what was marked before says nothing.
    const bool is_free = !conflicts(e, c);
    if (!is_free) c->track = 0;
    const enum place place = is_free ? place_of(e, c) : PLACE_NOT_YET;
    const bool late = !c->out && engine_now_ns() >= c->deadline_ns;
    if (place == PLACE_UNKNOWN || (place == PLACE_NOT_YET && late)) return COPY_ELSEWHERE;
    if (place == PLACE_REACHED && !go(e, c)) return COPY_ELSEWHERE;
    if (c->state == DIRECT_WAITS) {
      if (c->track) park_cause(e, CAUSE_WORD, c->track, c->value, NULL);
      if (!c->out) park_cause(e, CAUSE_TIME, 0, c->deadline_ns, NULL);
    }
  }
  if (c->state == DIRECT_GOES && is_done(e, c)) return COPY_DONE;
  park_cause(e, CAUSE_DIRECT, 0, e->direct->events, NULL);
  if (!c->out) park_cause(e, CAUSE_BULK, 0, c->last, NULL);
  return COPY_GOES;
}

static void give_up(orion_engine* e, direct_copy* c) {
  if (!c->out) give_to_arena(e, c->last);
  release(e, c);
}

bool direct_ready(orion_engine* e, const orion_op* op, const parked_op* node) {
  direct_copy* c = node ? find(e, op) : NULL;
  direct_copy described;
  if (!c && describe(e, op, &described)) {
    if (!node) {
      park_cause(e, CAUSE_TIME, 0, 0, NULL);  // its entry is what tells it from others
      return false;
    }
    c = begin(e, op, &described);
  }
  const enum verdict verdict = c ? look(e, c) : COPY_ELSEWHERE;
  if (verdict != COPY_ELSEWHERE) return verdict == COPY_DONE;
  if (c) {
    give_up(e, c);
  } else if (op->bulk_seq > e->bulk_arrived) {
    give_to_arena(e, op->bulk_seq);
  }
  return true;
}

void direct_follow(orion_engine* e, const orion_op* op) {
  direct_copy described;
  if (e->direct->others_epoch == e->epoch || e->swap.holds) return;
  direct_copy* c = find(e, op);
  if (!c && describe(e, op, &described)) c = begin(e, op, &described);
  if (c && look(e, c) == COPY_ELSEWHERE) give_up(e, c);
}

void direct_blocked(orion_engine* e, const orion_op* op) {
  const direct_copy* c = find(e, op);
  if (op->code != ORION_OP_MARK && !(c && c->state == DIRECT_GOES)) e->direct->others_epoch = e->epoch;
}

bool direct_is_going(const orion_engine* e) { return e->direct && e->direct->going; }
uint64_t direct_events(const orion_engine* e) { return e->direct->events; }

enum direct_outcome direct_finish(orion_engine* e, const orion_op* op, CUstream stream, CUresult* code) {
  const direct_copy* c = find(e, op);
  *code = CUDA_SUCCESS;
  if (!c || c->state != DIRECT_GOES) return DIRECT_NOTHING;
  if (c->out) return DIRECT_ALL;
  // What the network's device has written is seen by whatever is issued from here on.
  if (c->memory->type == ORION_UCS_MEMORY_CUDA)
    (void)e->driver.flush_rdma_writes(FLUSH_CURRENT_CONTEXT, FLUSH_TO_OWNER);
  // What has come to the arena instead.
  bool any = false;
  for (uint64_t i = 0, count = c->last - c->first + 1; i < count && !*code; i++) {
    if (c->landed[i / 64] >> (i % 64) & 1) continue;
    const uint64_t first = i;
    while (i + 1 < count && !(c->landed[(i + 1) / 64] >> ((i + 1) % 64) & 1)) i++;
    const uint64_t at = first * ORION_BULK_BYTES, end = (i + 1) * ORION_BULK_BYTES;
    const uint64_t bytes = (end < c->bytes ? end : c->bytes) - at;
    *code = e->driver.copy_h2d(c->device + at, e->arena + c->arena + at, bytes, stream);
    any = true;
  }
  return any ? DIRECT_REST : DIRECT_ALL;
}

// ------------------------------------------------------------------------------------------------ pieces
enum direct_place direct_place_of(orion_engine* e, ucx_receive* receive, void** where) {
  const direct_table* t = e->direct;
  const orion_frame* head = &receive->frame;
  // Where parts of a copy's bytes are not sent, the numbers before its own are another's: then the places differ.
  bool is_claimed = false, waits = false;
  for (uint32_t i = 0; t->used && i < COPIES; i++) {
    direct_copy* c = &e->direct->copies[i];
    if (!c->op || c->out || head->sequence < c->first || head->sequence > c->last) continue;
    const uint64_t at = (head->sequence - c->first) * ORION_BULK_BYTES, left = c->bytes - at;
    if (head->a != c->arena + at || head->bytes != (left < ORION_BULK_BYTES ? left : ORION_BULK_BYTES)) {
      is_claimed = true;
      continue;
    }
    if (c->state == DIRECT_WAITS) {
      waits |= engine_now_ns() < c->deadline_ns;
      is_claimed = true;
      continue;
    }
    if (!make_current(e, c->op->context)) return DIRECT_ARENA;
    receive->direct = c;
    c->running++;
    *where = (void*)(uintptr_t)(c->device + at);
    return DIRECT_DEVICE;
  }
  if (waits) return DIRECT_LATER;
  if (is_claimed || head->sequence <= t->arena_until || engine_now_ns() - receive->offered_ns >= DIRECT_HOLD_NS)
    return DIRECT_ARENA;
  return DIRECT_LATER;
}

void direct_received(orion_engine* e, direct_copy* c, const orion_frame* head) {
  const uint64_t piece = head->sequence - c->first;
  c->landed[piece / 64] |= 1ull << (piece % 64);
  e->direct->in_bytes += head->bytes;
  c->running--;
  e->direct->events++;
}

bool direct_send(orion_engine* e) {
  direct_table* t = e->direct;
  struct orion_net* n = e->net;
  ucx_lanes* u = n->state;
  bool any = false;
  // Numbers that are spoken for already come next.
  if (!t->going || n->pending_bytes || n->urgent.first) return false;
  for (uint32_t i = 0; i < COPIES; i++) {
    direct_copy* c = &t->copies[i];
    if (!c->op || !c->out || c->state != DIRECT_GOES || c->sent == c->bytes) continue;
    while (c->sent < c->bytes && u->pieces_busy < ORION_UCX_IN_FLIGHT && !u->lost) {
      const uint64_t left = c->bytes - c->sent, bytes = left < ORION_BULK_BYTES ? left : ORION_BULK_BYTES;
      const uint64_t sequence = n->bulk_sent + 1, at = c->sent;
      if (!make_current(e, c->op->context)) break;
      if (at == 0 || u->group.count == 0) orion_group_join(&u->group, sequence, c->arena, c->arena + c->bytes);
      const orion_frame head = {.type = ORION_FRAME_BULK,
                                .bytes = (uint32_t)bytes,
                                .sequence = sequence,
                                .a = c->arena + at,
                                .b = u->group.after};
      n->bulk_sent = sequence;
      c->sent += bytes;
      c->running++;
      STAT_ADD(e, stat_out, bytes);
      t->out_bytes += bytes;
      ucx_send_piece(e, &head, (const void*)(uintptr_t)(c->device + at), c);
      any = true;
    }
  }
  return any;
}

void direct_sent(orion_engine* e, direct_copy* c) {
  c->running--;
  e->direct->events++;
}

// ------------------------------------------------------------------------------------------------ life
void direct_tell(orion_engine* e) {
  const direct_table* t = e->direct;
  if (!t) return;
  engine_log(e, ENGINE_LOG_INFO, "bytes that went straight: %llu to device memory, %llu from it",
             (unsigned long long)t->in_bytes, (unsigned long long)t->out_bytes);
}

void direct_close(orion_engine* e) {
  for (uint32_t i = 0; e->direct && i < MEMORIES; i++) drop_memory(e, &e->direct->memories[i]);
}

void direct_free(orion_engine* e) {
  direct_table* t = e->direct;
  if (!t) return;
  for (uint32_t i = 0; i < COPIES; i++) free(t->copies[i].landed);
  close(t->probe[0]);
  close(t->probe[1]);
  free(t);
  e->direct = NULL;
}
