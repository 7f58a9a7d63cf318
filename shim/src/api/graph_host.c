// What a launched graph does in the client: host nodes, and copies from and to ordinary memory.
//
// One lane, with a thread, for each executable graph with host nodes. The worker's word tells which node has been
// reached; the client's word tells that its function has returned. A lane waits only while launches are on their way,
// and serves another graph when its own is gone: words only grow.
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "copy.h"
#include "graph.h"
#include "host_function.h"

struct orion_graph_lane {
  orion_graph_lane* next_free;
  orion_session* session;
  uint32_t context, callback, word;
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  orion_exec* exec;
  uint64_t expected, handled;
  bool is_busy;  // holds a reference to `exec`
};

static pthread_mutex_t lanes_mutex = PTHREAD_MUTEX_INITIALIZER;
static orion_graph_lane* free_lanes;

static void push_ranges(const orion_exec* exec, const uint8_t* before) {
  if (!orion_over_network(exec->context->session)) return;
  for (uint32_t i = 0; i < exec->step_count; i++) {
    uint64_t offset;
    const uint64_t bytes = orion_step_arena(&exec->steps[i], false, &offset);
    if (bytes != 0 && (before == NULL || !before[i])) (void)orion_push_host(exec->context->session, offset, bytes);
  }
}

static void run_node(orion_exec* exec, uint32_t host_node) {
  if (host_node >= exec->host_nodes) return;
  const uint8_t* before = exec->before_host == NULL ? NULL : exec->before_host + (size_t)host_node * exec->step_count;
  pthread_mutex_lock(&exec->mutex);
  const orion_node_work work = exec->steps[exec->host_steps[host_node]].work;
  if (before != NULL) orion_exec_scatter(exec, before);
  pthread_mutex_unlock(&exec->mutex);
  orion_in_host_function = true;
  work.function(work.data);
  orion_in_host_function = false;
  pthread_mutex_lock(&exec->mutex);
  if (before != NULL) orion_exec_gather(exec, before);
  push_ranges(exec, before);
  pthread_mutex_unlock(&exec->mutex);
}

static void* serve(void* argument) {
  orion_graph_lane* lane = argument;
  for (;;) {
    pthread_mutex_lock(&lane->mutex);
    while (lane->handled == lane->expected) pthread_cond_wait(&lane->changed, &lane->mutex);
    orion_exec* exec = lane->exec;
    uint64_t next = lane->handled + 1;
    pthread_mutex_unlock(&lane->mutex);
    if (orion_wait_word(lane->session, lane->word, next << 16, lane->context) == CUDA_SUCCESS) {
      run_node(exec, (uint32_t)(orion_word(lane->session, lane->word) & 0xffff));
    } else {  // the context is lost: nothing will be reached, and whoever waits inside the worker is let go
      pthread_mutex_lock(&lane->mutex);
      next = lane->expected;
      pthread_mutex_unlock(&lane->mutex);
    }
    orion_set_client_word(lane->session, lane->callback, next);
    pthread_mutex_lock(&lane->mutex);
    lane->handled = next;
    const bool done = lane->handled == lane->expected;
    if (done) lane->is_busy = false;
    pthread_mutex_unlock(&lane->mutex);
    if (done) orion_exec_release(exec);
  }
  return NULL;
}

static bool start_thread(orion_graph_lane* lane) {
  pthread_t thread;
  sigset_t before;
  orion_block_signals(&before);  // the program's signals stay with its own threads
  const bool started = pthread_create(&thread, NULL, serve, lane) == 0;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (started) pthread_detach(thread);
  return started;
}

static orion_graph_lane* new_lane(void) {
  orion_graph_lane* lane = calloc(1, sizeof *lane);
  const uint32_t callback = lane == NULL ? 0 : orion_callback_index_take();
  if (callback == 0) {
    free(lane);
    return NULL;
  }
  lane->callback = callback;
  lane->word = ORION_WORD_DYNAMIC + callback;
  pthread_mutex_init(&lane->mutex, NULL);
  pthread_cond_init(&lane->changed, NULL);
  if (start_thread(lane)) return lane;
  free(lane);  // its index is lost: without threads this process does not get far anyway
  return NULL;
}

CUresult orion_lane_open(orion_exec* exec, uint64_t* base) {
  orion_session* session = exec->context->session;
  pthread_mutex_lock(&lanes_mutex);
  orion_graph_lane** link = &free_lanes;
  while (*link != NULL && (*link)->session != session) link = &(*link)->next_free;
  orion_graph_lane* lane = *link;
  if (lane != NULL) *link = lane->next_free;
  pthread_mutex_unlock(&lanes_mutex);
  if (lane == NULL) lane = new_lane();
  if (lane == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  pthread_mutex_lock(&lane->mutex);
  lane->session = session;
  lane->context = exec->context->entry.index;
  lane->exec = exec;
  *base = lane->handled;
  pthread_mutex_unlock(&lane->mutex);
  exec->lane = lane;
  return CUDA_SUCCESS;
}

uint32_t orion_lane_callback(const orion_graph_lane* lane) { return lane == NULL ? 0 : lane->callback; }

void orion_lane_close(orion_graph_lane* lane) {
  if (lane == NULL) return;
  pthread_mutex_lock(&lanes_mutex);
  lane->next_free = free_lanes;
  free_lanes = lane;
  pthread_mutex_unlock(&lanes_mutex);
}

void orion_lane_expect(orion_graph_lane* lane, uint32_t count) {
  pthread_mutex_lock(&lane->mutex);
  if (!lane->is_busy) atomic_fetch_add(&lane->exec->references, 1);
  lane->is_busy = true;
  lane->expected += count;
  pthread_cond_signal(&lane->changed);
  pthread_mutex_unlock(&lane->mutex);
}

// ------------------------------------------------------------------------------------------------ ordinary memory

static void move_rows(const orion_step* step, uint8_t* shadow) {
  const orion_host_side* host = &step->work.host;
  for (uint64_t z = 0; z < host->slices; z++) {
    for (uint64_t y = 0; y < host->rows; y++, shadow += host->width_bytes) {
      uint8_t* row = host->first + z * host->slice_bytes + y * host->pitch_bytes;
      if (host->is_written) {
        memcpy(row, shadow, host->width_bytes);
      } else {
        memcpy(shadow, row, host->width_bytes);
      }
    }
  }
}

static void move_all(orion_exec* exec, const uint8_t* before, bool written) {
  for (uint32_t i = 0; i < exec->step_count; i++) {
    orion_step* step = &exec->steps[i];
    if (step->work.host.rows == 0 || step->work.host.is_written != written || step->is_disabled) continue;
    if (before != NULL && before[i] != written) continue;
    const bool is_delivered = step->is_delivered;
    step->is_delivered = written && before != NULL;  // until the end of the launch
    if (!is_delivered) move_rows(step, exec->context->session->host_base + step->shadow);
  }
}

void orion_exec_gather(orion_exec* exec, const uint8_t* before) { move_all(exec, before, false); }
void orion_exec_scatter(orion_exec* exec, const uint8_t* before) { move_all(exec, before, true); }

/// Page-locked memory for shadows is not given back: that would wait for all work. It serves the next graph.
typedef struct orion_shadow {
  struct orion_shadow* next;
  orion_context* context;
  uint32_t epoch;
  uint8_t* first;
  uint64_t bytes;
} orion_shadow;

static orion_shadow* free_shadows;  // under lanes_mutex

CUresult orion_shadow_take(orion_exec* exec, uint64_t bytes, uint64_t* offset) {
  orion_context* context = exec->context;
  pthread_mutex_lock(&lanes_mutex);
  orion_shadow** link = &free_shadows;
  while (*link != NULL &&
         ((*link)->context != context || (*link)->bytes < bytes || !orion_same_epoch(context, (*link)->epoch))) {
    link = &(*link)->next;
  }
  orion_shadow* shadow = *link;
  if (shadow != NULL) *link = shadow->next;
  pthread_mutex_unlock(&lanes_mutex);
  if (shadow == NULL) {
    void* first;
    const CUresult result = orion_pinned_allocate(context, bytes, &first);
    if (result != CUDA_SUCCESS) return result;
    shadow = calloc(1, sizeof *shadow);
    if (shadow == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
    *shadow = (orion_shadow){.context = context, .epoch = atomic_load(&context->epoch), .first = first, .bytes = bytes};
  }
  exec->shadow = shadow;
  *offset = (uint64_t)(shadow->first - context->session->host_base);
  return CUDA_SUCCESS;
}

void orion_shadow_give(orion_exec* exec) {
  orion_shadow* shadow = exec->shadow;
  if (shadow == NULL) return;
  exec->shadow = NULL;
  pthread_mutex_lock(&lanes_mutex);
  shadow->next = free_shadows;
  free_shadows = shadow;
  pthread_mutex_unlock(&lanes_mutex);
}

static uint64_t span_3d(const orion_op_copy_3d* o, bool written) {
  const uint64_t pitch = written ? o->dst_pitch : o->src_pitch, rows = written ? o->dst_height : o->src_height;
  if (o->width_bytes == 0 || o->height == 0 || o->depth == 0) return 0;
  return ((o->depth - 1) * rows + o->height - 1) * pitch + o->width_bytes;
}

uint64_t orion_step_arena(const orion_step* step, bool written, uint64_t* offset) {
  const orion_op* op = step->work.op;
  *offset = 0;
  if (op == NULL || step->is_disabled) return 0;
  if (op->code == ORION_OP_COPY_H2D && !written) {
    *offset = ((const orion_op_copy_h2d*)op)->src_off;
    return ((const orion_op_copy_h2d*)op)->size_bytes;
  }
  if (op->code == ORION_OP_COPY_D2H && written) {
    *offset = ((const orion_op_copy_d2h*)op)->dst_off;
    return ((const orion_op_copy_d2h*)op)->size_bytes;
  }
  if (op->code != ORION_OP_COPY_3D) return 0;
  const orion_op_copy_3d* o = (const orion_op_copy_3d*)op;
  if ((written ? o->dst_kind : o->src_kind) != 1) return 0;
  *offset = written ? o->dst_address + (o->dst_z * o->dst_height + o->dst_y) * o->dst_pitch + o->dst_x_bytes
                    : o->src_address + (o->src_z * o->src_height + o->src_y) * o->src_pitch + o->src_x_bytes;
  return span_3d(o, written);
}
