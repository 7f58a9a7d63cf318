// Offered images. The node's cache belongs to orion-server: it is asked here, over a socket of packets, whether it has
// an image, and given what was uploaded. It trusts neither this process nor the client: it hashes what it is given, and
// hands an image out only to a session that uploaded it or proves that its client has the bytes.
//
// An image lives in a memfd. Before anybody looks at its bytes the memfd is sealed, so that they stay what they are.
#include "image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "desk.h"

#define IMAGES 1024u
#define PENDING_MAX_BYTES (8ull << 30)  // of all images that are offered and not loaded yet
#define ANSWER_TIMEOUT_NS 10000000000ull
#define ANSWER_POLL_NS 100000u
#define SEALS (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

enum { UPLOAD = 0, HERE = 1, PROVE = 2 };  // what IMAGE_OFFER and IMAGE_PROVE answer

enum image_state {
  FREE,
  ASKING,  // orion-server's answer is awaited by a parked operation
  NONCE,   // the client's proof is awaited
  FILLING,
  READY,
};

typedef struct image {
  enum image_state state;
  int fd;
  bool uploaded;  // by this client: orion-server is to have it
  uint32_t tag;   // of the last question
  bool answered;
  uint32_t answer;
  uint64_t bytes, filled;
  uint8_t hash[32], nonce[32];
} image;

struct image_table {
  image images[IMAGES];
  uint64_t pending_bytes;
  uint32_t last_tag;
};

// ------------------------------------------------------------------------------------------------ orion-server
enum { ASK_LOOKUP = 1, ASK_PROOF = 2, GIVE_IMAGE = 3 };

static bool ask(orion_engine* e, image* m, uint32_t kind, const uint8_t* extra) {
  desk_packet p = {.kind = kind, .tag = ++e->images->last_tag, .bytes = m->bytes};
  memcpy(p.hash, m->hash, sizeof p.hash);
  if (extra) memcpy(p.extra, extra, sizeof p.extra);
  m->tag = p.tag;
  m->answered = false;
  return desk_send(e, &p, -1);
}

int image_answer(orion_engine* e, const desk_packet* p, int fd) {
  for (uint32_t i = 0; e->images && i < IMAGES; i++) {
    image* m = &e->images->images[i];
    struct stat status;
    if (m->state != ASKING || m->tag != p->tag || m->answered) continue;
    m->answered = true;
    m->answer = p->kind;
    memcpy(m->nonce, p->extra, sizeof m->nonce);
    if (p->kind == HERE && (fd < 0 || fstat(fd, &status) || (uint64_t)status.st_size != m->bytes)) m->answer = UPLOAD;
    if (m->answer == HERE) {
      m->fd = fd;
      fd = -1;
    }
  }
  return fd;
}

// ------------------------------------------------------------------------------------------------ images
static image* image_at(orion_engine* e, uint32_t index) {
  return e->images && index < IMAGES ? &e->images->images[index] : NULL;
}

static void release(orion_engine* e, image* m) {
  if (m->state == FREE) return;
  if (m->fd >= 0) close(m->fd);
  e->images->pending_bytes -= m->bytes;
  *m = (image){.state = FREE, .fd = -1};
}

void image_drop(orion_engine* e, uint32_t index) {
  image* m = image_at(e, index);
  if (m) release(e, m);
}

void image_free_all(orion_engine* e) {
  for (uint32_t i = 0; e->images && i < IMAGES; i++) release(e, &e->images->images[i]);
  free(e->images);
  e->images = NULL;
}

static int32_t begin_upload(image* m) {
  // Through syscall, because glibc has memfd_create only since 2.27.
  m->fd = (int)syscall(SYS_memfd_create, "orion-image", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (m->fd < 0 || ftruncate(m->fd, (off_t)m->bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  m->state = FILLING;
  m->uploaded = true;
  return 0;
}

/// What both questions end with. `reply_bytes`: of the operation's reply, which begins with the state.
static enum step conclude(orion_engine* e, const orion_op* op, image* m, uint32_t answer) {
  orion_reply_image_offer reply = {.state = answer};
  int32_t result = 0;
  if (answer == HERE) {
    m->state = READY;
  } else if (answer == PROVE && op->code == ORION_OP_IMAGE_OFFER) {
    m->state = NONCE;
    memcpy(&reply.nonce_0, m->nonce, sizeof m->nonce);
  } else {
    reply.state = UPLOAD;
    result = begin_upload(m);
  }
  if (result) release(e, m);
  answer_reply(e, op, result, &reply,
               op->code == ORION_OP_IMAGE_OFFER ? sizeof reply : sizeof(orion_reply_image_prove));
  return STEP_DONE;
}

/// A question's operation stays parked until its answer is there. Without one the client uploads.
static enum step await_answer(orion_engine* e, const orion_op* op, image* m, parked_op* node) {
  desk_receive(e);
  const uint64_t now_ns = engine_now_ns();
  if (!m->answered) {
    if (node && !node->deadline_ns) node->deadline_ns = now_ns + ANSWER_TIMEOUT_NS;
    if (!node || now_ns < node->deadline_ns) {
      park_cause(e, CAUSE_TIME, 0, node ? now_ns + ANSWER_POLL_NS : 0, NULL);
      return STEP_AGAIN;
    }
    engine_log(e, ENGINE_LOG_WARN, "orion-server did not answer about an image");
  }
  return conclude(e, op, m, m->answered ? m->answer : UPLOAD);
}

static enum step offer(orion_engine* e, const orion_op* op, parked_op* node) {
  const orion_op_image_offer* o = (const orion_op_image_offer*)op;
  if (!e->images) {
    e->images = calloc(1, sizeof *e->images);
    for (uint32_t i = 0; e->images && i < IMAGES; i++) e->images->images[i].fd = -1;
  }
  image* m = image_at(e, o->image);
  if (m && node && m->state == ASKING) return await_answer(e, op, m, node);
  int32_t result = 0;
  if (!e->images) {
    result = CUDA_ERROR_OUT_OF_MEMORY;
  } else if (!m || m->state != FREE || !o->size_bytes || o->size_bytes > IMAGE_MAX_BYTES) {
    result = CUDA_ERROR_INVALID_VALUE;
  } else if (o->size_bytes > PENDING_MAX_BYTES - e->images->pending_bytes) {
    result = CUDA_ERROR_OUT_OF_MEMORY;
  }
  if (result) {
    answer_result(e, op, result);
    return STEP_DONE;
  }
  m->bytes = o->size_bytes;
  e->images->pending_bytes += m->bytes;
  memcpy(m->hash, &o->hash_0, sizeof m->hash);
  m->state = ASKING;
  if (ask(e, m, ASK_LOOKUP, NULL)) return await_answer(e, op, m, node);
  return conclude(e, op, m, UPLOAD);
}

static enum step prove(orion_engine* e, const orion_op* op, parked_op* node) {
  const orion_op_image_prove* o = (const orion_op_image_prove*)op;
  image* m = image_at(e, o->image);
  if (m && node && m->state == ASKING) return await_answer(e, op, m, node);
  if (!m || m->state != NONCE) {
    answer_result(e, op, CUDA_ERROR_INVALID_VALUE);
    return STEP_DONE;
  }
  m->state = ASKING;
  uint8_t proof[32];
  memcpy(proof, &o->proof_0, sizeof proof);
  if (ask(e, m, ASK_PROOF, proof)) return await_answer(e, op, m, node);
  return conclude(e, op, m, UPLOAD);
}

static void receive_data(orion_engine* e, const orion_op* op) {
  const orion_op_image_data* o = (const orion_op_image_data*)op;
  image* m = image_at(e, o->image);
  int32_t result = CUDA_ERROR_INVALID_VALUE;
  if (m && m->state == FILLING && o->at == m->filled && o->size_bytes && o->size_bytes <= m->bytes - m->filled &&
      part_inside(o->arena_off, o->size_bytes, e->arena_bytes)) {
    result = 0;
    for (uint64_t done = 0; done < o->size_bytes && !result;) {
      const ssize_t wrote = pwrite(m->fd, e->arena + o->arena_off + done, o->size_bytes - done, (off_t)(o->at + done));
      if (wrote > 0) {
        done += (uint64_t)wrote;
      } else if (wrote == 0 || errno != EINTR) {
        result = CUDA_ERROR_OUT_OF_MEMORY;
      }
    }
    if (!result) {
      m->filled += o->size_bytes;
      STAT_ADD(e, stat_image_bytes, o->size_bytes);
    }
  }
  answer_result(e, op, result);
}

int32_t image_take(orion_engine* e, uint32_t index, void** map, uint64_t* bytes) {
  image* m = image_at(e, index);
  if (!m || (m->state != READY && (m->state != FILLING || m->filled != m->bytes))) {
    if (m && m->state != ASKING) release(e, m);
    return CUDA_ERROR_INVALID_VALUE;
  }
  int32_t result = 0;
  bool text = false;
  const uint8_t* view = MAP_FAILED;
  if (m->state == FILLING && fcntl(m->fd, F_ADD_SEALS, SEALS)) result = CUDA_ERROR_OPERATING_SYSTEM;
  if (!result) view = mmap(NULL, m->bytes, PROT_READ, MAP_SHARED, m->fd, 0);
  if (!result && view == MAP_FAILED) result = CUDA_ERROR_OUT_OF_MEMORY;
  // Behind the mapping there is nothing to read: text must end inside.
  if (!result && (!image_check(view, m->bytes, &text) || (text && view[m->bytes - 1]))) {
    result = CUDA_ERROR_INVALID_IMAGE;
  }
  if (!result && m->uploaded && e->config.image_fd > 0) {
    desk_packet p = {.kind = GIVE_IMAGE, .bytes = m->bytes};
    memcpy(p.hash, m->hash, sizeof p.hash);
    (void)desk_send(e, &p, m->fd);
  }
  if (result && view != MAP_FAILED) munmap((void*)view, m->bytes);
  if (!result) {
    *map = (void*)view;
    *bytes = m->bytes;
  }
  release(e, m);
  return result;
}

static void load_module(orion_engine* e, const orion_op* op) {
  const orion_op_image_module_load* o = (const orion_op_image_module_load*)op;
  if (!use_context(e, op)) {
    image_drop(e, o->image);
    return;
  }
  void* map = NULL;
  uint64_t bytes = 0;
  jit j;
  int32_t result = o->module >= ORION_MODULES || e->modules[o->module].alive ? CUDA_ERROR_INVALID_VALUE : 0;
  if (!result) result = jit_begin(e, &j, op, o->option_count, o->log_off, o->info_log_bytes, o->error_log_bytes);
  if (result) {
    image_drop(e, o->image);
    answer_result(e, op, result);
    return;
  }
  result = image_take(e, o->image, &map, &bytes);
  if (result) {
    answer_result(e, op, result);
  } else {
    module_open(e, op, o->module, map, bytes, &j, o->log_off);
    munmap(map, bytes);
  }
  jit_end(&j);
}

enum step image_execute(orion_engine* e, const orion_op* op, parked_op* node) {
  switch ((enum orion_op_code)op->code) {
    case ORION_OP_IMAGE_OFFER:
      return offer(e, op, node);
    case ORION_OP_IMAGE_PROVE:
      return prove(e, op, node);
    case ORION_OP_IMAGE_DATA:
      receive_data(e, op);
      break;
    case ORION_OP_IMAGE_MODULE_LOAD:
      load_module(e, op);
      break;
    default:
      image_drop(e, ((const orion_op_image_drop*)op)->image);
      answer_result(e, op, 0);
      break;
  }
  return STEP_DONE;
}
