// The bare floor of copies over TCP: bytes through loopback in sends and receives of 1 MiB, with one stream and with
// four, each a thread on either side. `fixed` uses the same MiB again and again, which stays in the cache; `cycling`
// walks through a large buffer on both sides, as a copy of real data does. Prints one JSON object: GB/s, the median of
// intervals, and their lowest and highest.
//
//   tcp_stream [seconds per measurement, default 1]
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHUNK_BYTES ((size_t)1 << 20)
#define CYCLE_BYTES ((size_t)256 << 20)  // all streams of one side together: far above any cache
#define MAX_STREAMS 4
#define INTERVALS 10

typedef struct stream {
  pthread_t thread;
  int socket;
  char* buffer;
  size_t buffer_bytes;
  _Alignas(64) _Atomic uint64_t received_bytes;
} stream;

// A socket that is shut down still hands out what comes in, as long as something does: receivers are told to stop.
static atomic_bool stop;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int compare(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

static void fail(const char* what) {
  perror(what);
  exit(1);
}

/// Written once, so that no page is the kernel's shared page of zeroes.
static char* touched(size_t bytes) {
  char* buffer = malloc(bytes);
  if (!buffer) fail("malloc");
  memset(buffer, 0x5a, bytes);
  return buffer;
}

static void* send_all(void* argument) {
  stream* s = argument;
  for (size_t at = 0;; at = (at + CHUNK_BYTES) % s->buffer_bytes)
    for (size_t done = 0; done < CHUNK_BYTES;) {
      const ssize_t sent = send(s->socket, s->buffer + at + done, CHUNK_BYTES - done, MSG_NOSIGNAL);
      if (sent <= 0) return NULL;  // the receiver has seen enough
      done += (size_t)sent;
    }
}

static void* receive_all(void* argument) {
  stream* s = argument;
  for (size_t at = 0;; at = (at + CHUNK_BYTES) % s->buffer_bytes)
    for (size_t done = 0; done < CHUNK_BYTES;) {
      const ssize_t got = recv(s->socket, s->buffer + at + done, CHUNK_BYTES - done, 0);
      if (got <= 0 || atomic_load_explicit(&stop, memory_order_relaxed)) return NULL;
      done += (size_t)got;
      atomic_fetch_add_explicit(&s->received_bytes, (uint64_t)got, memory_order_relaxed);
    }
}

static void start(stream* streams, int count, bool cycling, void* (*body)(void*)) {
  const size_t each = cycling ? CYCLE_BYTES / (size_t)count : CHUNK_BYTES;
  for (int i = 0; i < count; i++) {
    streams[i].buffer_bytes = each;
    streams[i].buffer = touched(each);
    if (pthread_create(&streams[i].thread, NULL, body, &streams[i])) fail("pthread_create");
  }
}

static uint64_t total(stream* streams, int count) {
  uint64_t bytes = 0;
  for (int i = 0; i < count; i++) bytes += atomic_load_explicit(&streams[i].received_bytes, memory_order_relaxed);
  return bytes;
}

static void measure(int count, bool cycling, double seconds, double* rates) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof address;
  if (listener < 0 || bind(listener, (struct sockaddr*)&address, sizeof address) || listen(listener, MAX_STREAMS) ||
      getsockname(listener, (struct sockaddr*)&address, &length))
    fail("listen");
  static stream streams[MAX_STREAMS];
  memset(streams, 0, sizeof streams);
  atomic_store(&stop, false);
  const pid_t child = fork();
  if (child < 0) fail("fork");
  if (child == 0) {
    for (int i = 0; i < count; i++) {
      streams[i].socket = socket(AF_INET, SOCK_STREAM, 0);
      if (connect(streams[i].socket, (struct sockaddr*)&address, sizeof address)) _exit(1);
      setsockopt(streams[i].socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    start(streams, count, cycling, send_all);
    for (int i = 0; i < count; i++) pthread_join(streams[i].thread, NULL);
    _exit(0);
  }
  for (int i = 0; i < count; i++)
    if ((streams[i].socket = accept(listener, NULL, NULL)) < 0) fail("accept");
  start(streams, count, cycling, receive_all);
  usleep((useconds_t)(seconds * 0.2e6));  // warm-up: congestion windows and receive buffers grow
  for (int i = 0; i < INTERVALS; i++) {
    const double began = now();
    const uint64_t before = total(streams, count);
    usleep((useconds_t)(seconds * 1e6 / INTERVALS));
    rates[i] = (double)(total(streams, count) - before) / (now() - began) / 1e9;
  }
  atomic_store(&stop, true);
  for (int i = 0; i < count; i++) {
    pthread_join(streams[i].thread, NULL);
    close(streams[i].socket);  // with bytes unread: the sender's next send fails, and it ends
    free(streams[i].buffer);
  }
  close(listener);
  int status = 0;
  waitpid(child, &status, 0);
  if (status) fail("sender");
  qsort(rates, INTERVALS, sizeof *rates, compare);
}

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? atof(argv[1]) : 1.0;
  if (!(seconds > 0 && seconds <= 60)) {
    fprintf(stderr, "usage: tcp_stream [seconds per measurement, at most 60]\n");
    return 2;
  }
  const struct {
    const char* name;
    int streams;
    bool cycling;
  } kinds[] = {
      {"tcp_1_fixed", 1, false}, {"tcp_1_cycling", 1, true}, {"tcp_4_fixed", 4, false}, {"tcp_4_cycling", 4, true}};
  printf("{");
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
    double rates[INTERVALS];
    measure(kinds[i].streams, kinds[i].cycling, seconds, rates);
    printf("%s\"%s\": [%.3f, %.3f, %.3f]", i ? ", " : "", kinds[i].name,
           (rates[INTERVALS / 2 - 1] + rates[INTERVALS / 2]) / 2, rates[0], rates[INTERVALS - 1]);
  }
  printf("}\n");
  return 0;
}
