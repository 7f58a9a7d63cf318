// Another host: what all kinds of lanes share. One thread at a time drains both rings in order, whatever is there at
// once and no timers, and stores what comes back where a shared-memory worker would have stored it. Memory stays
// bounded because the ring and staging are the credit: the thread takes from a ring only what the socket takes from it.
#define _GNU_SOURCE
#include "tcp.h"

#include <errno.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../session/futex.h"
#include "../session/internal.h"
#include "orion_ucx_link.h"

static tcp_state* state_of(orion_session* session) { return session->transport_state; }

void orion_tcp_kick(orion_session* session, bool express) {
  (void)express;  // one thread sleeps for both rings
  bool slept = atomic_exchange(&session->main_ring.control->consumer_parked, 0) != 0;
  slept |= atomic_exchange(&session->express_ring.control->consumer_parked, 0) != 0;
  const uint64_t one = 1;
  if (slept && write(state_of(session)->wake_fd, &one, sizeof one) < 0) return;  // full: it is awake anyway
}

static bool tcp_alive(orion_session* session) {
  const tcp_state* state = state_of(session);
  return atomic_load(&session->lost) == 0 && (!state->lanes->is_reachable || state->lanes->is_reachable(state));
}

static void tcp_client_word(orion_session* session, uint32_t callback, uint64_t generation) {
  if (orion_tcp_end_host_function(session, callback, generation)) return;
  tcp_state* state = state_of(session);
  atomic_fetch_or(&state->client_words_dirty[callback / 64], 1ull << (callback % 64));
  atomic_store(&state->has_client_words, true);
  if (orion_ring_must_wake(session->main_ring)) orion_tcp_kick(session, false);
}

static void tcp_drop_pages(orion_session* session, void* address, uint64_t bytes) {
  (void)session;
  madvise(address, bytes, MADV_DONTNEED);
}

// ------------------------------------------------------------------------------------------------- sending

static void gather(orion_ring ring, uint64_t* position, tcp_batch* batch) {
  const uint64_t before = *position;
  while (batch->bytes < TCP_BATCH_BYTES) {
    orion_op* op = (orion_op*)(void*)(batch->body + batch->bytes);
    if (orion_ring_pop(ring, position, op) != ORION_RING_OP) break;  // our own ring: never broken
    const uint32_t padded = (op->bytes + 7u) & ~7u;
    memset(batch->body + batch->bytes + op->bytes, 0, padded - op->bytes);
    batch->bytes += padded;
  }
  if (*position != before) {
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&ring.control->producers_parked)) orion_futex_wake_all(&ring.control->space);
  }
}

static bool has_credit(const tcp_state* state) {
  return state->credit_bytes == 0 ||
         state->main_sent_bytes < orion_word(state->session, ORION_WORD_TAKEN) + state->credit_bytes;
}

bool orion_tcp_gather(tcp_state* state) {
  if (state->main_batch.bytes == 0 && state->express_batch.bytes == 0) {
    // Main first, express sent first: whatever was in the express ring before a main operation precedes it here too.
    if (has_credit(state)) gather(state->session->main_ring, &state->main_position, &state->main_batch);
    state->main_sent_bytes += state->main_batch.bytes;
    gather(state->session->express_ring, &state->express_position, &state->express_batch);
  }
  return state->main_batch.bytes != 0 || state->express_batch.bytes != 0;
}

bool orion_tcp_has_operations(const tcp_state* state) {
  return (has_credit(state) && orion_ring_ready(state->session->main_ring, state->main_position)) ||
         orion_ring_ready(state->session->express_ring, state->express_position);
}

bool orion_tcp_has_bulk_work(const tcp_state* state) {
  return atomic_load(&state->has_bulk) || atomic_load(&state->has_client_words);
}

uint32_t orion_tcp_take_client_words(tcp_state* state, uint32_t* group, orion_word_update updates[64]) {
  if (*group == 0 && !atomic_exchange(&state->has_client_words, false)) return 0;
  uint32_t count = 0;
  while (count == 0 && *group < ORION_CLIENT_WORDS / 64) {
    const uint64_t dirty = atomic_exchange(&state->client_words_dirty[*group], 0);
    for (uint64_t left = dirty; left; left &= left - 1) {
      const uint32_t index = *group * 64 + (uint32_t)__builtin_ctzll(left);
      updates[count++] = (orion_word_update){index, atomic_load(&state->session->segment->client_words[index])};
    }
    (*group)++;
  }
  return count;
}

void orion_tcp_return_client_words(tcp_state* state, const orion_word_update* updates, uint32_t count) {
  for (uint32_t i = 0; i < count; i++)
    atomic_fetch_or(&state->client_words_dirty[updates[i].index / 64], 1ull << (updates[i].index % 64));
  atomic_store(&state->has_client_words, true);
}

void orion_tcp_lose_malformed(tcp_state* state, const char* lane) {
  orion_session_lose(state->session, CUDA_ERROR_DEVICE_UNAVAILABLE, "the worker sent a malformed frame on the %s lane",
                     lane);
}

void orion_tcp_lose_forged(tcp_state* state, const char* lane) {
  orion_session_lose(state->session, CUDA_ERROR_DEVICE_UNAVAILABLE,
                     "bytes on the %s lane were changed, repeated, reordered or left out between the worker and here",
                     lane);
}

void orion_tcp_connection_lost_since(tcp_state* state, const char* why) {
  // At exit the worker may leave as soon as it has read our detach, before the lanes are closed here.
  if (!atomic_load(&state->stop) && orion_ready() != CUDA_ERROR_DEINITIALIZED)
    orion_session_lose(state->session, CUDA_ERROR_DEVICE_UNAVAILABLE, "the connection to the worker is lost%s%s%s",
                       why ? " (" : "", why ? why : "", why ? ")" : "");
}

void orion_tcp_connection_lost(tcp_state* state) { orion_tcp_connection_lost_since(state, NULL); }

// ------------------------------------------------------------------------------------------------- life

static void* io_thread(void* argument) {
  tcp_state* state = argument;
  state->lanes->run(state);
  atomic_store(&state->stop, true);
  state->lanes->close(state);
  atomic_store(&state->stopped, 1);
  orion_futex_wake_all(&state->stopped);
  return NULL;
}

static void tcp_close(orion_session* session) {
  tcp_state* state = state_of(session);
  if (!state->has_thread || atomic_exchange(&state->asked_to_stop, true)) return;
  atomic_store(&state->stop, true);
  const uint64_t one = 1;
  if (write(state->wake_fd, &one, sizeof one) < 0) return;
  const uint64_t until_ns = orion_now_ns() + 2 * TCP_CLOSE_LIMIT_MS * 1000000ull;
  while (atomic_load(&state->stopped) == 0 && orion_now_ns() < until_ns)
    orion_futex_wait(&state->stopped, 0, TCP_CLOSE_LIMIT_MS * 1000);
  if (atomic_load(&state->stopped)) pthread_join(state->thread, NULL);
}

static void tcp_after_fork(orion_session* session) {
  tcp_state* state = state_of(session);
  close(state->wake_fd);
  state->lanes->after_fork(state);
}

// The kinds of lanes differ for a session in their name, and whether a waiting thread can move the bytes itself.
#define TCP_TRANSPORT(name_of_kind, help_of_kind)           \
  {                                                         \
      .name = (name_of_kind),                               \
      .posts_waiters = false,                               \
      .kick = orion_tcp_kick,                               \
      .alive = tcp_alive,                                   \
      .push_host = orion_tcp_push_host,                     \
      .push_pinned = orion_tcp_push_pinned,                 \
      .begin_host_function = orion_tcp_begin_host_function, \
      .note_rows = orion_tcp_note_rows,                     \
      .coherent_begin = orion_tcp_coherent_begin,           \
      .coherent_push = orion_tcp_coherent_push,             \
      .coherent_end = orion_tcp_coherent_end,               \
      .adoptable = orion_tcp_adoptable,                     \
      .adopt = orion_tcp_adopt,                             \
      .adopt_end = orion_tcp_adopt_end,                     \
      .place = orion_tcp_place,                             \
      .unplace = orion_tcp_unplace,                         \
      .client_word = tcp_client_word,                       \
      .drop_pages = tcp_drop_pages,                         \
      .close = tcp_close,                                   \
      .after_fork = tcp_after_fork,                         \
      .help = (help_of_kind),                               \
  }

static const struct tcp_kind {
  const char* scheme;  // of the endpoint
  orion_transport transport;
  const tcp_lanes* lanes;
} kinds[] = {
    {"raw://", TCP_TRANSPORT("tcp", orion_mover_help), &orion_tcp_raw_lanes},
    {"ucx://", TCP_TRANSPORT("ucx", orion_mover_help), &orion_tcp_ucx_lanes},
    {"tcp://", TCP_TRANSPORT("tcp", NULL), &orion_tcp_zmq_lanes},
};

static const struct tcp_kind* kind_of(const char* endpoint) {
  const struct tcp_kind* kind = kinds;
  while (kind != &kinds[sizeof kinds / sizeof *kinds - 1] && strncmp(endpoint, kind->scheme, 6) != 0) kind++;
  return kind;
}

// ------------------------------------------------------------------------------------------------- opening

void orion_tcp_resolve(const tcp_state* state, const char* scheme, const char* endpoint, char out[320]) {
  static const char* const any[] = {"*:", "0.0.0.0:"};
  const size_t skip = strlen(scheme) + 3;
  for (int i = 0; i < 2; i++) {
    const size_t n = strlen(any[i]);
    if (strlen(endpoint) < skip || strncmp(endpoint + skip, any[i], n) != 0) continue;
    const char* address = state->session->server_address;
    const char* colon = strrchr(address, ':');
    snprintf(out, 320, "%s://%.*s:%s", scheme, (int)(colon ? colon - address : 0), address, endpoint + skip + n);
    return;
  }
  snprintf(out, 320, "%s", endpoint);
}

const char* orion_tcp_address(const tcp_state* state, const char* scheme, const char* endpoint,
                              struct sockaddr_in* address) {
  char text[320];
  orion_tcp_resolve(state, scheme, endpoint, text);
  char* colon = strrchr(text, ':');
  const size_t skip = strlen(scheme) + 3;
  if (strlen(text) <= skip || colon < text + skip) return "its endpoint is malformed";
  *colon = 0;
  const struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM};
  struct addrinfo* found = NULL;
  const int error = getaddrinfo(text + skip, colon + 1, &hints, &found);
  if (error || !found) return gai_strerror(error);
  memcpy(address, found->ai_addr, sizeof *address);
  freeaddrinfo(found);
  return NULL;
}

static const char* make_memory(orion_session* session) {
  session->segment = orion_map_segment(-1);
  if (!session->segment) return "no memory for the segment";
  session->segment->magic = ORION_SEGMENT_MAGIC;
  session->segment->major = ORION_WIRE_MAJOR;
  session->segment->minor = ORION_WIRE_MINOR;
  session->segment->segment_bytes = sizeof *session->segment;
  session->main_ring = orion_main_ring(session->segment);
  session->express_ring = orion_express_ring(session->segment);
  void* arena = mmap(session->host_base, ORION_HOST_ARENA_BYTES, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (arena == MAP_FAILED) return "no memory for the host arena (is RLIMIT_AS set?)";
  madvise(arena, ORION_HOST_ARENA_BYTES, MADV_DONTFORK);
  return NULL;
}

static const char* start_thread(tcp_state* state) {
  // The program's signals are its own: none is handled on this thread.
  sigset_t before;
  orion_block_signals(&before);
  state->has_thread = pthread_create(&state->thread, NULL, io_thread, state) == 0;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (!state->has_thread) return "no thread for network I/O";
  pthread_setname_np(state->thread, "orion-io");
  return NULL;
}

static const char* open_all(tcp_state* state, const char* const endpoints[2], const uint8_t token[32],
                            uint32_t timeout_ms) {
  const char* why = make_memory(state->session);
  if (why) return why;
  state->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (state->wake_fd < 0) return "out of descriptors";
  why = state->lanes->open(state, endpoints, token, orion_now_ns() + timeout_ms * 1000000ull);
  return why ? why : start_thread(state);
}

bool orion_tcp_open(orion_session* session, const orion_config* config, const char* ops_endpoint,
                    const char* bulk_endpoint, enum orion_cipher cipher, const uint8_t token[32], uint32_t timeout_ms,
                    const char* instead) {
  const struct tcp_kind* kind = kind_of(ops_endpoint);
  const bool raw = kind->lanes == &orion_tcp_raw_lanes, ucx = kind->lanes == &orion_tcp_ucx_lanes;
  if (!raw && (config->emulate_rtt_ns || config->emulate_bytes_per_second)) {
    orion_log(ORION_LOG_ERROR,
              "ORION_EMULATE_RTT_US and ORION_EMULATE_GBIT need plain TCP lanes: leave ORION_TCP_LANES "
              "as it is and use a server that offers them");
    return false;
  }
  tcp_state* state = calloc(1, sizeof *state);
  if (!state) {
    orion_log(ORION_LOG_ERROR, "out of memory");
    return false;
  }
  state->session = session;
  state->wake_fd = -1;
  state->mover = (tcp_mover){.lane_fd = -1, .all_fd = -1, .io_fd = -1, .due_ns = UINT64_MAX};
  state->lanes = kind->lanes;
  state->cipher = raw ? cipher : ORION_CIPHER_NONE;
  state->stripe_count = raw || (ucx && config->tcp_stripes) ? config->tcp_stripes : ucx;
  state->ucx_registers = ucx && orion_rdma_device(config->ibverbs_device, state->ucx_devices);
  if (!config->ibverbs_device[0]) state->ucx_devices[0] = 0;
  state->link_wish = (orion_link_wish){config->emulate_rtt_ns, config->emulate_bytes_per_second};
  pthread_mutex_init(&state->lock, NULL);
  pthread_cond_init(&state->has_range, NULL);
  pthread_cond_init(&state->in_place_ended, NULL);
  session->transport_state = state;
  session->transport = &kind->transport;
  session->transport_name = session->transport->name;
  const char* const endpoints[] = {ops_endpoint, bulk_endpoint};
  const char* why = open_all(state, endpoints, token, timeout_ms);
  if (!why) return true;
  session->transport = NULL;
  orion_log(instead ? ORION_LOG_WARN : ORION_LOG_ERROR, "the %s connection to the worker of %s (%s) failed: %s%s%s",
            kind->transport.name, session->server_address, ops_endpoint, why, instead ? "; using " : "",
            instead ? instead : "");
  atomic_store(&state->stop, true);
  state->lanes->close(state);
  if (state->wake_fd >= 0) close(state->wake_fd);
  if (session->segment) munmap(session->segment, sizeof *session->segment);
  session->segment = NULL;
  pthread_cond_destroy(&state->in_place_ended);
  pthread_cond_destroy(&state->has_range);
  pthread_mutex_destroy(&state->lock);
  free(state);
  session->transport_state = NULL;
  return false;
}
