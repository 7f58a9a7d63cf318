// Host functions and stream callbacks run in the client. The stream is parked in the engine until the client's word
// says that the function has returned.
//
// One thread for each stream that has any: with one for all, a function of a stream that waits (directly or not) for
// another stream's function would stand before it in the queue for ever.
#include "host_function.h"

#include <signal.h>
#include <stdlib.h>

#include "api.h"
#include "capture.h"
#include "coherent.h"
#include "device_output.h"

typedef struct callback {
  struct callback* next;
  uint64_t generation;
  CUhostFn function;  // one of the three
  CUstreamCallback on_stream;
  void (*task)(void* data, CUresult status);
  CUstream handle;
  void* data;
} callback;

typedef struct orion_callback_lane {
  orion_session* session;
  uint32_t context, index, word;
  pthread_mutex_t mutex;
  pthread_cond_t changed;
  callback *first, *last;
  bool retired;
} orion_callback_lane;

// Index = client word; its generations and its completion word only grow, also from one lane to the next.
static pthread_mutex_t index_mutex = PTHREAD_MUTEX_INITIALIZER;
static uint64_t generations[ORION_CLIENT_WORDS];
static bool index_used[ORION_CLIENT_WORDS];

static uint32_t take_index(void) {
  uint32_t index = 1;
  pthread_mutex_lock(&index_mutex);
  while (index < ORION_CLIENT_WORDS && index_used[index]) index++;
  if (index < ORION_CLIENT_WORDS) index_used[index] = true;
  pthread_mutex_unlock(&index_mutex);
  return index;
}

uint32_t orion_callback_index_take(void) {
  const uint32_t index = take_index();
  return index == ORION_CLIENT_WORDS ? 0 : index;
}

static void give_index(uint32_t index) {
  pthread_mutex_lock(&index_mutex);
  index_used[index] = false;
  pthread_mutex_unlock(&index_mutex);
}

static void run(const callback* work, CUresult status) {
  if (work->task != NULL) {
    work->task(work->data, status);
    return;
  }
  orion_in_host_function = true;
  if (work->on_stream != NULL) {
    work->on_stream(work->handle, status, work->data);
  } else if (status == CUDA_SUCCESS) {
    work->function(work->data);
  }
  orion_in_host_function = false;
}

static void* serve(void* argument) {
  orion_callback_lane* lane = argument;
  pthread_mutex_lock(&lane->mutex);
  for (;;) {
    while (lane->first == NULL && !lane->retired) pthread_cond_wait(&lane->changed, &lane->mutex);
    callback* work = lane->first;
    if (work == NULL) break;
    pthread_mutex_unlock(&lane->mutex);
    const CUresult status = orion_wait_word(lane->session, lane->word, work->generation, lane->context);
    // What the work before it has printed precedes what it prints, as natively.
    const bool tells = work->task == NULL && orion_device_output_expected(lane->session);
    if (tells) orion_device_output_write(lane->session, lane->context);
    run(work, status);
    orion_set_client_word(lane->session, lane->index, work->generation);
    pthread_mutex_lock(&lane->mutex);
    lane->first = work->next;
    if (lane->first == NULL) lane->last = NULL;
    free(work);
  }
  pthread_mutex_unlock(&lane->mutex);
  give_index(lane->index);
  pthread_mutex_destroy(&lane->mutex);
  pthread_cond_destroy(&lane->changed);
  free(lane);
  return NULL;
}

static bool start_thread(orion_callback_lane* lane) {
  pthread_t thread;
  sigset_t before;
  orion_block_signals(&before);  // the program's signals stay with its own threads
  const bool started = pthread_create(&thread, NULL, serve, lane) == 0;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (started) pthread_detach(thread);
  return started;
}

/// Under the stream's mutex.
static orion_callback_lane* lane_of(orion_stream* stream) {
  orion_callback_lane* lane = atomic_load(&stream->lane);
  if (lane != NULL) return lane;
  const uint32_t index = take_index();
  if (index == ORION_CLIENT_WORDS) return NULL;
  lane = calloc(1, sizeof *lane);
  if (lane == NULL) {
    give_index(index);
    return NULL;
  }
  lane->session = stream->session;
  lane->context = stream->context->entry.index;
  lane->index = index;
  lane->word = ORION_WORD_DYNAMIC + index;
  pthread_mutex_init(&lane->mutex, NULL);
  pthread_cond_init(&lane->changed, NULL);
  if (!start_thread(lane)) {
    pthread_mutex_destroy(&lane->mutex);
    pthread_cond_destroy(&lane->changed);
    free(lane);
    give_index(index);
    return NULL;
  }
  atomic_store(&stream->lane, lane);
  return lane;
}

void orion_callback_lane_retire(orion_stream* stream) {
  orion_callback_lane* lane = atomic_exchange(&stream->lane, NULL);
  if (lane == NULL) return;
  pthread_mutex_lock(&lane->mutex);
  lane->retired = true;
  pthread_cond_signal(&lane->changed);
  pthread_mutex_unlock(&lane->mutex);
}

static CUresult enqueue(orion_stream* stream, const callback* wish) {
  callback* work = malloc(sizeof *work);
  if (work == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  *work = *wish;
  work->next = NULL;
  pthread_mutex_lock(&stream->mutex);
  orion_callback_lane* lane = lane_of(stream);
  orion_coherent_mark(stream);  // the function sees what the work before it has written
  CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
  if (lane != NULL) {
    work->generation = ++generations[lane->index];  // a lane's index is its own, and this stream's mutex is held
    atomic_store(&stream->host_function, (uint64_t)lane->index << 48 | work->generation);
    orion_begin_host_function(stream->session, lane->index, work->generation, stream->word);
    orion_op_host_function op = {.op = {.code = ORION_OP_HOST_FUNCTION},
                                 .callback = lane->index,
                                 .generation = work->generation,
                                 .word = lane->word,
                                 .value = work->generation};
    result = orion_stream_submit(stream, &op.op, sizeof op, NULL, 0);
  }
  if (result == CUDA_SUCCESS) {
    pthread_mutex_lock(&lane->mutex);
    if (lane->last != NULL) {
      lane->last->next = work;
    } else {
      lane->first = work;
    }
    lane->last = work;
    pthread_cond_signal(&lane->changed);
    pthread_mutex_unlock(&lane->mutex);
  } else {
    free(work);
  }
  pthread_mutex_unlock(&stream->mutex);
  return result;
}

CUresult orion_host_function_enqueue(orion_stream* stream, CUhostFn function, void* data) {
  return enqueue(stream, &(callback){.function = function, .data = data});
}

CUresult orion_stream_task_enqueue(orion_stream* stream, void (*task)(void* data, CUresult status), void* data) {
  return enqueue(stream, &(callback){.task = task, .data = data});
}

ORION_API CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void* data) {
  ORION_ENTER_STREAM(stream, handle);
  ORION_REQUIRE(function != NULL, CUDA_ERROR_INVALID_VALUE);
  if (orion_is_captured(stream)) {
    orion_node_work work = {.function = function, .data = data};
    return orion_capture_node(stream, CU_GRAPH_NODE_TYPE_HOST, &work);
  }
  return enqueue(stream, &(callback){.function = function, .data = data});
}

ORION_API CUresult cuStreamAddCallback(CUstream handle, CUstreamCallback function, void* data, unsigned int flags) {
  ORION_ENTER_STREAM(stream, handle);
  ORION_REQUIRE(function != NULL && flags == 0, CUDA_ERROR_INVALID_VALUE);
  if (orion_is_captured(stream)) return orion_capture_refuse(stream);
  return enqueue(stream, &(callback){.on_stream = function, .handle = handle, .data = data});
}
