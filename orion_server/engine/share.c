// Memory and events shared between workers. An exported memory's descriptor goes to orion-server, which names it by a
// token that cannot be guessed and gives it to whoever of the same tenant shows that token. Neither side's client ever
// sees the descriptor; of an event the driver's handle travels in its place. Once imported it is memory like that of
// VMM_CREATE, which lives on when its exporter has ended; it is counted as used by the exporter alone.
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "desk.h"

#define ANSWER_TIMEOUT_NS 10000000000ull
#define ANSWER_POLL_NS 100000u

// orion_server/shares.py: what is asked, and what is answered.
enum { GIVE_SHARE = 16, TAKE_SHARE = 17, DROP_SHARE = 18, GIVE_EVENT = 19, TAKE_EVENT = 20 };
enum { SHARE_REFUSED = 16, SHARE_HERE = 17 };

/// What a parked operation awaits; a reply slot belongs to one operation at a time.
typedef struct question {
  uint64_t sequence;
  uint32_t tag;
  bool asked, answered;
  int fd;
  desk_packet answer;
} question;

struct share_table {
  question questions[ORION_REPLY_SLOTS];
  uint32_t last_tag;
};

static void forget(question* q) {
  if (q->asked && q->fd >= 0) close(q->fd);
  *q = (question){.fd = -1};
}

void share_free_all(orion_engine* e) {
  for (uint32_t i = 0; e->shares && i < ORION_REPLY_SLOTS; i++) forget(&e->shares->questions[i]);
  free(e->shares);
  e->shares = NULL;
}

int share_answer(orion_engine* e, const desk_packet* p, int fd) {
  for (uint32_t i = 0; e->shares && i < ORION_REPLY_SLOTS; i++) {
    question* q = &e->shares->questions[i];
    if (!q->asked || q->answered || q->tag != p->tag) continue;
    q->answered = true;
    q->answer = *p;
    q->fd = fd;
    return -1;
  }
  return fd;
}

/// The question that this operation has asked; NULL: none yet.
static question* asked_by(orion_engine* e, const orion_op* op) {
  if (!e->shares) return NULL;
  question* q = &e->shares->questions[op->reply_slot];
  return q->asked && q->sequence == op->reply_seq ? q : NULL;
}

static int32_t ask(orion_engine* e, const orion_op* op, desk_packet* p, int fd) {
  if (!e->shares) {
    e->shares = calloc(1, sizeof *e->shares);
    if (!e->shares) return CUDA_ERROR_OUT_OF_MEMORY;
    for (uint32_t i = 0; i < ORION_REPLY_SLOTS; i++) e->shares->questions[i].fd = -1;
  }
  question* q = &e->shares->questions[op->reply_slot];
  forget(q);
  p->tag = ++e->shares->last_tag;
  if (!desk_send(e, p, fd)) return CUDA_ERROR_NOT_SUPPORTED;  // there is no orion-server behind this engine
  *q = (question){.sequence = op->reply_seq, .tag = p->tag, .asked = true, .fd = -1};
  return 0;
}

/// True when the operation may go on: it is answered, or orion-server will not answer any more.
static bool has_answer(orion_engine* e, const question* q, parked_op* node) {
  desk_receive(e);
  if (q->answered) return true;
  const uint64_t now_ns = engine_now_ns();
  if (node && !node->deadline_ns) node->deadline_ns = now_ns + ANSWER_TIMEOUT_NS;
  if (node && now_ns >= node->deadline_ns) {
    engine_log(e, ENGINE_LOG_WARN, "orion-server did not answer about shared memory or a shared event");
    return true;
  }
  park_cause(e, CAUSE_TIME, 0, node ? now_ns + ANSWER_POLL_NS : 0, NULL);
  return false;
}

static int32_t verdict(const question* q) {
  if (!q->answered) return CUDA_ERROR_OPERATING_SYSTEM;
  return q->answer.kind == SHARE_HERE ? 0 : CUDA_ERROR_INVALID_VALUE;
}

// ------------------------------------------------------------------------------------------------ export
/// What an export is about.
typedef struct exported {
  CUmemGenericAllocationHandle handle;
  share_token* token;
  uint64_t bytes, offset;
} exported;

static bool find(orion_engine* e, const orion_op_share_export* o, exported* x) {
  if (o->memory) {
    memory_state* m = vmm_memory(e, o->memory);
    if (!m) return false;
    *x = (exported){m->handle, &m->token, m->bytes, 0};
    return true;
  }
  const device_state* d = memory_device_at(e, o->device_address);
  const uint32_t index = d ? d->chunk_range[(o->device_address - d->base) / ORION_CHUNK_BYTES] : 0;
  if (!index || e->ranges[index].memory) return false;
  range* r = &e->ranges[index];
  r->stays = true;
  *x = (exported){r->handle, &r->token, r->bytes, o->device_address - r->base};
  return true;
}

static bool has_token(const share_token* t) { return t->words[0] || t->words[1]; }

static int32_t ask_to_keep(orion_engine* e, const orion_op* op, const exported* x) {
  int fd = -1;
  int32_t result = vmm_some_context(e);
  if (!result) {
    result = (int32_t)e->driver.memory_export(&fd, x->handle,
                                              (CUmemAllocationHandleType)CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
  }
  if (result) return result;
  desk_packet p = {.kind = GIVE_SHARE, .bytes = x->bytes};
  result = ask(e, op, &p, fd);
  close(fd);
  return result;
}

static enum step export_memory(orion_engine* e, const orion_op* op, parked_op* node) {
  exported x;
  int32_t result = find(e, (const orion_op_share_export*)op, &x) ? 0 : CUDA_ERROR_INVALID_VALUE;
  question* q = asked_by(e, op);
  if (!result && !has_token(x.token)) {
    if (!q) {
      result = ask_to_keep(e, op, &x);
      q = asked_by(e, op);
    }
    if (!result && !has_answer(e, q, node)) return STEP_AGAIN;
    if (!result) result = verdict(q);
    if (!result) memcpy(x.token->words, q->answer.hash, sizeof x.token->words);
  }
  if (q) forget(q);
  orion_reply_share_export reply = {0};
  if (!result) {
    reply = (orion_reply_share_export){x.token->words[0], x.token->words[1], x.offset, x.bytes};
  }
  answer_reply(e, op, result, &reply, result ? 0 : sizeof reply);
  return STEP_DONE;
}

void share_withdraw(orion_engine* e, share_token* token) {
  if (!has_token(token)) return;
  desk_packet p = {.kind = DROP_SHARE};
  memcpy(p.hash, token->words, sizeof token->words);
  *token = (share_token){0};
  // Without it the memory or event would stay with orion-server until this worker ends.
  if (!desk_send_surely(e, &p))
    engine_log(e, ENGINE_LOG_WARN, "orion-server could not be told that memory or an event is gone");
}

// ------------------------------------------------------------------------------------------------ import
static int32_t adopt(orion_engine* e, const orion_op_share_import* o, question* q, orion_reply_share_import* reply) {
  const uint64_t bytes = q->answer.bytes;
  // What the exporter's worker said of its memory; the driver does not tell.
  if (!bytes || bytes % ORION_CHUNK_BYTES || bytes > SLOT_MAX_BYTES || q->fd < 0) return CUDA_ERROR_INVALID_VALUE;
  CUmemGenericAllocationHandle handle = 0;
  CUmemAllocationProp properties = {0};
  int32_t result = vmm_some_context(e);
  if (result) return result;
  result = (int32_t)e->driver.memory_import(&handle, (void*)(intptr_t)q->fd,
                                            (CUmemAllocationHandleType)CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
  if (result) return result;
  result = (int32_t)e->driver.memory_properties(&properties, handle);
  if (!result && properties.location.type != CU_MEM_LOCATION_TYPE_DEVICE) result = CUDA_ERROR_INVALID_VALUE;
  if (!result) result = vmm_adopt(e, o->memory, handle, bytes, properties.location.id);
  if (result) {
    if (result == CUDA_ERROR_INVALID_DEVICE) {
      engine_log(e, ENGINE_LOG_WARN, "shared memory lies on GPU %d, which this session does not have",
                 properties.location.id);
    }
    (void)e->driver.memory_release(handle);
    return result;
  }
  *reply = (orion_reply_share_import){.size_bytes = bytes, .device = (uint32_t)properties.location.id};
  return 0;
}

static enum step import_memory(orion_engine* e, const orion_op* op, parked_op* node) {
  const orion_op_share_import* o = (const orion_op_share_import*)op;
  question* q = asked_by(e, op);
  int32_t result = 0;
  if (!q) {
    desk_packet p = {.kind = TAKE_SHARE};
    memcpy(p.hash, &o->token_0, sizeof(share_token));
    result = ask(e, op, &p, -1);
    q = asked_by(e, op);
  }
  if (!result && !has_answer(e, q, node)) return STEP_AGAIN;
  orion_reply_share_import reply = {0};
  if (!result) result = verdict(q);
  if (!result) result = adopt(e, o, q, &reply);
  if (q) forget(q);
  answer_reply(e, op, result, &reply, result ? 0 : sizeof reply);
  return STEP_DONE;
}

// ------------------------------------------------------------------------------------------------ events
_Static_assert(offsetof(desk_packet, extra) == offsetof(desk_packet, hash) + 32, "a handle fills both");
_Static_assert(sizeof(CUipcEventHandle) == 64, "CUipcEventHandle");

static int32_t ask_to_keep_event(orion_engine* e, const orion_op* op, uint32_t index) {
  event_state* v = &e->events[index];
  CUipcEventHandle handle;
  const int32_t result = answer_check(e, op->context, (int32_t)e->driver.event_export(&handle, v->handle));
  if (result) return result;
  event_keep(e, index);
  v->shared = true;
  desk_packet p = {.kind = GIVE_EVENT};
  memcpy(p.hash, &handle, sizeof p.hash);
  memcpy(p.extra, (const uint8_t*)&handle + sizeof p.hash, sizeof p.extra);
  return ask(e, op, &p, -1);
}

static int32_t keep_token(event_state* v, const question* q) {
  v->token = malloc(sizeof *v->token);
  if (!v->token) return CUDA_ERROR_OUT_OF_MEMORY;
  memcpy(v->token->words, q->answer.hash, sizeof v->token->words);
  return 0;
}

static enum step export_event(orion_engine* e, const orion_op* op, parked_op* node) {
  const orion_op_event_export* o = (const orion_op_event_export*)op;
  if (!use_context(e, op)) return STEP_DONE;
  event_state* v = o->event < ORION_EVENTS ? &e->events[o->event] : NULL;
  int32_t result =
      v && v->alive && v->context == op->context && v->flags & CU_EVENT_INTERPROCESS ? 0 : CUDA_ERROR_INVALID_HANDLE;
  question* q = asked_by(e, op);
  if (!result && !v->token) {
    if (!q) {
      result = ask_to_keep_event(e, op, o->event);
      q = asked_by(e, op);
    }
    if (!result && !has_answer(e, q, node)) return STEP_AGAIN;
    if (!result) result = verdict(q);
    if (!result) result = keep_token(v, q);
  }
  if (q) forget(q);
  orion_reply_event_export reply = {0};
  if (!result) reply = (orion_reply_event_export){v->token->words[0], v->token->words[1]};
  answer_reply(e, op, result, &reply, result ? 0 : sizeof reply);
  return STEP_DONE;
}

static int32_t adopt_event(orion_engine* e, const orion_op* op, const question* q) {
  CUipcEventHandle given;
  memcpy(&given, q->answer.hash, sizeof q->answer.hash);
  memcpy((uint8_t*)&given + sizeof q->answer.hash, q->answer.extra, sizeof q->answer.extra);
  CUevent handle = NULL;
  const int32_t result = answer_check(e, op->context, (int32_t)e->driver.event_import(&handle, given));
  if (result) return result;
  const uint32_t index = ((const orion_op_event_import*)op)->event;
  event_bind(e, op, index, handle, CU_EVENT_DISABLE_TIMING);
  e->events[index].shared = true;
  return 0;
}

static enum step import_event(orion_engine* e, const orion_op* op, parked_op* node) {
  const orion_op_event_import* o = (const orion_op_event_import*)op;
  if (!use_context(e, op)) return STEP_DONE;
  question* q = asked_by(e, op);
  int32_t result = o->event >= ORION_EVENTS || e->events[o->event].alive ? CUDA_ERROR_INVALID_VALUE : 0;
  if (!result && !q) {
    desk_packet p = {.kind = TAKE_EVENT};
    memcpy(p.hash, &o->token_0, sizeof(share_token));
    result = ask(e, op, &p, -1);
    q = asked_by(e, op);
  }
  if (!result && !has_answer(e, q, node)) return STEP_AGAIN;
  if (!result) result = verdict(q);
  if (!result) result = adopt_event(e, op, q);
  if (q) forget(q);
  answer_reply(e, op, result, NULL, 0);
  return STEP_DONE;
}

enum step share_execute(orion_engine* e, const orion_op* op, parked_op* node) {
  if (op->reply_slot == ORION_NO_REPLY) {  // what it gives could not be told
    answer_result(e, op, CUDA_ERROR_INVALID_VALUE);
    return STEP_DONE;
  }
  switch (op->code) {
    case ORION_OP_SHARE_EXPORT:
      return export_memory(e, op, node);
    case ORION_OP_SHARE_IMPORT:
      return import_memory(e, op, node);
    case ORION_OP_EVENT_EXPORT:
      return export_event(e, op, node);
    default:
      return import_event(e, op, node);
  }
}
