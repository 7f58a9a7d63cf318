// Host nodes: the function runs in the client. What the driver calls is a trampoline that tells the client (through the
// loop, which alone may send) and waits for the client's word, without any CUDA call.
//
// One lane for each client word that an executable graph uses. Nodes of a lane run one after the other: the word that
// announces a node stands until the client has answered.
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "graph.h"

#define SLOTS_PER_CHUNK 256u
#define CHUNKS 256u
#define NAP_MIN_NS 20000
#define NAP_MAX_NS 500000
#define END_WAIT_NAPS 4000

typedef struct host_slot {
  struct host_lane* lane;
  uint32_t host_node;
} host_slot;

typedef struct host_lane {
  struct host_lane* next;
  orion_engine* engine;
  uint32_t callback, word;
  uint32_t graph;        // whose host nodes these are
  uint64_t published;    // value of `fired` that the client has been told
  pthread_mutex_t turn;  // one host node at a time
  _Atomic uint64_t generation;
  _Atomic uint64_t fired;  // generation << 16 | host node
  host_slot* chunks[CHUNKS];
} host_lane;

static void trampoline(void* argument) {
  const host_slot* slot = argument;
  host_lane* lane = slot->lane;
  orion_engine* e = lane->engine;
  graph_table* table = e->graphs;
  atomic_fetch_add(&table->host_running, 1);
  pthread_mutex_lock(&lane->turn);
  const uint64_t generation = atomic_fetch_add(&lane->generation, 1) + 1;
  atomic_store_explicit(&lane->fired, generation << 16 | slot->host_node, memory_order_release);
  atomic_store_explicit(&e->graph_signal, 1, memory_order_seq_cst);
  long nap_ns = NAP_MIN_NS;
  while (!atomic_load(&table->ending)) {
    if (atomic_load_explicit(&e->graph_signal, memory_order_relaxed)) engine_wake(e);
    if (atomic_load_explicit(&e->segment->client_words[lane->callback], memory_order_acquire) >= generation) break;
    const struct timespec nap = {0, nap_ns};
    nanosleep(&nap, NULL);
    nap_ns = nap_ns * 3 / 2 < NAP_MAX_NS ? nap_ns * 3 / 2 : NAP_MAX_NS;
  }
  pthread_mutex_unlock(&lane->turn);
  atomic_fetch_sub(&table->host_running, 1);
}

bool graph_host_node(host_lane* lane, uint32_t host_node, CUDA_HOST_NODE_PARAMS* params) {
  if (!lane || host_node >= SLOTS_PER_CHUNK * CHUNKS) return false;
  host_slot** chunk = &lane->chunks[host_node / SLOTS_PER_CHUNK];
  if (!*chunk) *chunk = calloc(SLOTS_PER_CHUNK, sizeof **chunk);
  if (!*chunk) return false;
  host_slot* slot = *chunk + host_node % SLOTS_PER_CHUNK;
  *slot = (host_slot){lane, host_node};
  *params = (CUDA_HOST_NODE_PARAMS){trampoline, slot};
  return true;
}

host_lane* graph_lane(orion_engine* e, uint32_t callback, uint32_t word, uint64_t host_base, uint32_t graph) {
  graph_table* table = e->graphs;
  host_lane* lane = table->lanes[callback];
  if (!lane) {
    lane = calloc(1, sizeof *lane);
    if (!lane) return NULL;
    lane->engine = e;
    lane->callback = callback;
    pthread_mutex_init(&lane->turn, NULL);
    lane->next = table->first_lane;
    table->first_lane = lane;
    table->lanes[callback] = lane;
  }
  lane->word = word;
  lane->graph = graph;
  // A definition for an update shares the lane of a graph that may be running, and then gives no base.
  if (host_base > atomic_load(&lane->generation)) atomic_store(&lane->generation, host_base);
  return lane;
}

void graph_mark_before(const graph_state* g, bool* before) {
  for (bool grew = true; grew;) {
    grew = false;
    for (uint32_t i = g->edge_count; i-- > 0;) {
      if (!before[g->edges[i].to] || before[g->edges[i].from]) continue;
      before[g->edges[i].from] = grew = true;
    }
  }
}

// Over tcp the client's memory is brought up to date before its function runs: with what the copies before the node
// have written.
static void send_written(orion_engine* e, const graph_state* g, uint32_t host_node) {
  bool* before = calloc(g->node_count, sizeof *before);
  if (!before) return;
  for (uint32_t i = 0; i < g->node_count; i++) before[i] = g->nodes[i].is_host && g->nodes[i].host_node == host_node;
  graph_mark_before(g, before);
  for (uint32_t i = 0; i < g->node_count; i++) {
    if (before[i] && g->nodes[i].written.bytes) net_bytes_out(e, g->nodes[i].written.offset, g->nodes[i].written.bytes);
  }
  free(before);
}

void graph_publish(orion_engine* e) {
  atomic_store_explicit(&e->graph_signal, 0, memory_order_seq_cst);
  for (host_lane* lane = e->graphs->first_lane; lane; lane = lane->next) {
    const uint64_t fired = atomic_load_explicit(&lane->fired, memory_order_acquire);
    if (fired == lane->published) continue;
    lane->published = fired;
    const graph_state* g = &e->graphs->states[lane->graph];
    if (e->net && g->alive) send_written(e, g, (uint32_t)(fired & 0xffff));
    answer_set_word(e, lane->word, fired);
  }
}

void graph_end(orion_engine* e) {
  if (!e->graphs) return;
  atomic_store(&e->graphs->ending, 1);
  const struct timespec nap = {0, NAP_MAX_NS};
  for (int i = 0; i < END_WAIT_NAPS && atomic_load(&e->graphs->host_running); i++) nanosleep(&nap, NULL);
}

void graph_lanes_free(orion_engine* e) {
  while (e->graphs->first_lane) {
    host_lane* lane = e->graphs->first_lane;
    e->graphs->first_lane = lane->next;
    pthread_mutex_destroy(&lane->turn);
    for (uint32_t i = 0; i < CHUNKS; i++) free(lane->chunks[i]);
    free(lane);
  }
}
