// The rows of launch_facts with several issuing threads: each for itself, or fed by one that decides and hands over.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "launch_facts.h"

#define THREADS_MAX 8
#define QUEUE_SLOTS 1024u  // more than a burst of one stream: the one that hands over never waits here

/// What is handed over: as large as an operation of a client's ring with eight parameters.
typedef struct order {
  CUfunction function;
  CUstream stream;
  size_t param_bytes;
  uint8_t params[104];
} order;

typedef struct issuer {
  pthread_t thread;
  plan* plan;
  uint32_t index, launches;
  CUcontext context;
  CUstream stream;
  kernel kernel;
  CUdeviceptr counter;
  double started, issued, finished;
  order* queue;
  _Alignas(64) _Atomic uint64_t put;
  _Alignas(64) _Atomic uint64_t taken;
} issuer;

static issuer issuers[THREADS_MAX];
static pthread_barrier_t barrier;
static _Atomic bool ending;
static bool yields;  // too few CPUs for everyone to spin

static void breathe(void) {
  if (yields) {
    sched_yield();
  } else {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

static void prepare(issuer* me) {
  if (me->context) {
    CHECK(cu.context_set_current(me->context));
    return;
  }
  me->context = facts_context();
  me->kernel = facts_kernel(me->plan->kernel->params, false);
  CHECK(cu.stream_create(&me->stream, 1));
  CHECK(cu.memory_allocate(&me->counter, 256));
  CHECK(cu.memory_set(me->counter, 0, 4));
  CHECK(cu.context_synchronize());
}

static void* issue_alone(void* argument) {
  issuer* me = argument;
  const bool own = me->plan->sharing == OWN_CONTEXT;
  prepare(me);
  arguments a;
  facts_arguments(&a, &me->kernel, me->counter, 1);
  for (;;) {
    pthread_barrier_wait(&barrier);
    if (ending) break;
    me->started = facts_now_ns();
    for (uint32_t i = 0; i < me->launches; i++) {
      CHECK(cu.launch(me->kernel.function, 1, 1, 1, 1, 1, 1, 0, me->stream, a.pointers, NULL));
    }
    me->issued = facts_now_ns();
    CHECK(cu.stream_synchronize(me->stream));
    me->finished = facts_now_ns();
    pthread_barrier_wait(&barrier);
  }
  if (own) {
    uint32_t seen = 0;
    CHECK(cu.memory_read(&seen, me->counter, 4));
    me->launches = seen;  // threads_close adds them up
    CHECK(cu.context_destroy(me->context));
  }
  return NULL;
}

static void* issue_orders(void* argument) {
  issuer* me = argument;
  prepare(me);
  uint64_t next = 0, known = 0;
  for (;;) {
    while (next == known) {
      known = atomic_load_explicit(&me->put, memory_order_acquire);
      if (next != known) break;
      if (atomic_load_explicit(&ending, memory_order_relaxed)) return NULL;
      breathe();
    }
    order* o = &me->queue[next % QUEUE_SLOTS];
    void* extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, o->params, CU_LAUNCH_PARAM_BUFFER_SIZE, &o->param_bytes,
                     CU_LAUNCH_PARAM_END};
    CHECK(cu.launch(o->function, 1, 1, 1, 1, 1, 1, 0, o->stream, NULL, extra));
    atomic_store_explicit(&me->taken, ++next, memory_order_release);
  }
}

void threads_open(plan* p) {
  yields = sysconf(_SC_NPROCESSORS_ONLN) <= (long)p->threads;
  atomic_store(&ending, false);
  pthread_barrier_init(&barrier, NULL, p->threads + 1);
  CUcontext primary;
  CHECK(cu.primary_retain(&primary, 0));
  for (uint32_t i = 0; i < p->threads; i++) {
    issuer* it = &issuers[i];
    order* queue = it->queue ? it->queue : aligned_alloc(64, QUEUE_SLOTS * sizeof(order));
    *it = (issuer){.plan = p, .index = i, .launches = p->count / p->threads, .queue = queue};
    if (p->sharing != OWN_CONTEXT) {
      it->context = primary;
      it->stream = facts_streams[p->sharing == ONE_STREAM ? 0 : i];
      it->kernel = *p->kernel;
      it->counter = facts_counter;
    }
    if (pthread_create(&it->thread, NULL, p->sharing == HANDED_OVER ? issue_orders : issue_alone, it)) exit(2);
  }
}

void threads_close(plan* p) {
  atomic_store(&ending, true);
  if (p->sharing != HANDED_OVER) pthread_barrier_wait(&barrier);
  for (uint32_t i = 0; i < p->threads; i++) {
    pthread_join(issuers[i].thread, NULL);
    if (p->sharing == OWN_CONTEXT) facts_counted(issuers[i].launches);
  }
  pthread_barrier_destroy(&barrier);
}

// One thread deals launches out, stream by stream in turn; each stream's launcher makes the driver's call.
static sample deal(plan* p) {
  arguments a;
  facts_arguments(&a, p->kernel, facts_counter, 1);
  uint64_t put[THREADS_MAX];
  for (uint32_t i = 0; i < p->threads; i++) put[i] = atomic_load(&issuers[i].put);
  const double start = facts_now_ns();
  for (uint32_t i = 0; i < p->count; i++) {
    const uint32_t to = i % p->threads;
    issuer* it = &issuers[to];
    order* o = &it->queue[put[to] % QUEUE_SLOTS];
    o->function = it->kernel.function;
    o->stream = it->stream;
    o->param_bytes = a.packed_bytes;
    memcpy(o->params, a.packed, a.packed_bytes);
    atomic_store_explicit(&it->put, ++put[to], memory_order_release);
  }
  sample s = {0};
  for (uint32_t i = 0; i < p->threads; i++) {
    while (atomic_load_explicit(&issuers[i].taken, memory_order_acquire) != put[i]) breathe();
  }
  s.issue = facts_now_ns() - start;
  CHECK(cu.context_synchronize());
  s.total = facts_now_ns() - start;
  p->expected += p->count;
  return s;
}

sample threads_sample(plan* p) {
  if (p->sharing == HANDED_OVER) return deal(p);
  pthread_barrier_wait(&barrier);
  pthread_barrier_wait(&barrier);
  double started = issuers[0].started, issued = 0, finished = 0, calls = 0;
  for (uint32_t i = 0; i < p->threads; i++) {
    const issuer* it = &issuers[i];
    if (it->started < started) started = it->started;
    if (it->issued > issued) issued = it->issued;
    if (it->finished > finished) finished = it->finished;
    calls += (it->issued - it->started) / it->launches / p->threads;
  }
  p->expected += p->count;
  return (sample){.issue = issued - started, .total = finished - started, .more = calls};
}
