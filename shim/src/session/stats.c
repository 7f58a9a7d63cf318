#define _GNU_SOURCE
#include "stats.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "futex.h"
#include "session.h"
#include "stages.h"

enum { PATH_BYTES = 2048 + 16, FUNCTIONS_MAX = 1024 };

bool orion_stats_on;
orion_image_counts orion_images;
static bool wished;
static char json_path[PATH_BYTES];  // empty: the table on stderr
static orion_counter* _Atomic counters;
// Waits of threads that are in no counted function: the lanes that run host functions.
static orion_counter outside = {.name = "(outside)"};
static _Thread_local orion_counter* current __attribute__((tls_model("initial-exec")));
static uint64_t began_ns;

// "%p" in the path is this process's id, so that the processes of one program do not overwrite each other's file.
static void set_json_path(const char* path) {
  const char* mark = strstr(path, "%p");
  if (mark)
    snprintf(json_path, sizeof json_path, "%.*s%d%s", (int)(mark - path), path, (int)getpid(), mark + 2);
  else
    snprintf(json_path, sizeof json_path, "%s", path);
}

void orion_stats_start(const char* wish) {
  if (strcmp(wish, "0") == 0) return;
  if (strcmp(wish, "1") != 0) set_json_path(wish + strlen("json:"));
  began_ns = orion_now_ns();
  wished = true;
  orion_stats_on = true;
}

// Other threads may add while this clears: a program that wants exact figures has none running then.
void orion_stats_restart(void) {
  if (!wished) return;
  for (orion_counter* c = atomic_load(&counters); c; c = c->next) {
    c->calls = c->waits = c->bytes_out = c->bytes_in = c->total_ns = c->wait_ns = 0;
  }
  memset(&orion_images, 0, sizeof orion_images);
  began_ns = orion_now_ns();
  orion_stats_on = true;
}

void orion_stats_after_fork(void) {
  wished = false;
  orion_stats_on = false;
  current = NULL;
}

static void list(orion_counter* counter) {
  if (atomic_load_explicit(&counter->listed, memory_order_relaxed) || atomic_exchange(&counter->listed, true)) return;
  orion_counter* first = atomic_load(&counters);
  do {
    counter->next = first;
  } while (!atomic_compare_exchange_weak(&counters, &first, counter));
}

static void add(_Atomic uint64_t* to, uint64_t value) { atomic_fetch_add_explicit(to, value, memory_order_relaxed); }

static void set_once(_Atomic uint64_t* to, uint64_t value) {
  if (atomic_load_explicit(to, memory_order_relaxed) != 0) return;
  uint64_t none = 0;
  atomic_compare_exchange_strong_explicit(to, &none, value ? value : 1, memory_order_relaxed, memory_order_relaxed);
}

orion_counted orion_stats_enter(orion_counter* counter) {
  if (current) return (orion_counted){NULL, 0};  // called by a counted function
  list(counter);
  current = counter;
  add(&counter->calls, 1);
  const uint64_t now_ns = orion_now_ns();
  set_once(&counter->first_at_ns, now_ns - orion_attach_took.began_ns);
  return (orion_counted){counter, now_ns};
}

void orion_stats_leave(orion_counter* counter, uint64_t began_ns) {
  const uint64_t took_ns = orion_now_ns() - began_ns;
  add(&counter->total_ns, took_ns);
  set_once(&counter->first_ns, took_ns);
  current = NULL;
}

static orion_counter* charged(void) {
  if (current) return current;
  list(&outside);
  return &outside;
}

uint64_t orion_stats_wait_begin(void) {
  add(&charged()->waits, 1);
  return orion_now_ns();
}

void orion_stats_wait_end(uint64_t wait_began_ns) { add(&charged()->wait_ns, orion_now_ns() - wait_began_ns); }

void orion_stats_add_bytes(uint64_t out, uint64_t in) {
  orion_counter* counter = charged();
  if (out) add(&counter->bytes_out, out);
  if (in) add(&counter->bytes_in, in);
}

// ------------------------------------------------------------------------------------------------- the report

typedef struct row {
  const char* name;
  unsigned long long calls, waits, bytes_out, bytes_in, total_ns, wait_ns, first_at_ns, first_ns;
} row;

static row row_of(const orion_counter* counter) {
  return (row){.name = counter->name,
               .calls = atomic_load(&counter->calls),
               .waits = atomic_load(&counter->waits),
               .bytes_out = atomic_load(&counter->bytes_out),
               .bytes_in = atomic_load(&counter->bytes_in),
               .total_ns = atomic_load(&counter->total_ns),
               .wait_ns = atomic_load(&counter->wait_ns),
               .first_at_ns = atomic_load(&counter->first_at_ns),
               .first_ns = atomic_load(&counter->first_ns)};
}

static int by_time(const void* a, const void* b) {
  const row* one = a;
  const row* other = b;
  if (one->total_ns != other->total_ns) return one->total_ns < other->total_ns ? 1 : -1;
  return strcmp(one->name, other->name);
}

typedef struct image_row {
  unsigned long long known, known_bytes, uploaded, uploaded_bytes, small, small_bytes, hash_ns;
} image_row;

static image_row image_row_of(void) {
  return (image_row){.known = atomic_load(&orion_images.known),
                     .known_bytes = atomic_load(&orion_images.known_bytes),
                     .uploaded = atomic_load(&orion_images.uploaded),
                     .uploaded_bytes = atomic_load(&orion_images.uploaded_bytes),
                     .small = atomic_load(&orion_images.small),
                     .small_bytes = atomic_load(&orion_images.small_bytes),
                     .hash_ns = atomic_load(&orion_images.hash_ns)};
}

static void print_table(FILE* file, const row* rows, size_t count, const row* sum, double seconds) {
  fprintf(file, "orion: statistics of process %d over %.3f s (ORION_STATS=1)\n", (int)getpid(), seconds);
  fprintf(file, "%-44s %10s %8s %14s %14s %12s %12s\n", "function", "calls", "waits", "bytes out", "bytes in",
          "time us", "waiting us");
  for (size_t i = 0; i <= count; i++) {
    const row* r = i < count ? &rows[i] : sum;
    fprintf(file, "%-44s %10llu %8llu %14llu %14llu %12.1f %12.1f\n", r->name, r->calls, r->waits, r->bytes_out,
            r->bytes_in, (double)r->total_ns / 1000, (double)r->wait_ns / 1000);
  }
  const image_row images = image_row_of();
  fprintf(
      file,
      "images: %llu known to the server (%llu bytes not sent), %llu uploaded (%llu bytes), %llu small ones sent with "
      "their load (%llu bytes); hashing %.2f ms\n",
      images.known, images.known_bytes, images.uploaded, images.uploaded_bytes, images.small, images.small_bytes,
      (double)images.hash_ns / 1e6);
  orion_attach_print(file);
}

static void print_json_row(FILE* file, const row* r, const char* end) {
  fprintf(file,
          "{\"calls\": %llu, \"waits\": %llu, \"bytes_out\": %llu, \"bytes_in\": %llu, \"total_ns\": %llu, "
          "\"wait_ns\": %llu%s",
          r->calls, r->waits, r->bytes_out, r->bytes_in, r->total_ns, r->wait_ns, end);
}

static void print_json_images(FILE* file) {
  const image_row i = image_row_of();
  fprintf(file,
          "{\"known\": %llu, \"known_bytes\": %llu, \"uploaded\": %llu, \"uploaded_bytes\": %llu, \"small\": %llu, "
          "\"small_bytes\": %llu, \"hash_ns\": %llu}",
          i.known, i.known_bytes, i.uploaded, i.uploaded_bytes, i.small, i.small_bytes, i.hash_ns);
}

static void print_json(FILE* file, const row* rows, size_t count, const row* sum, double seconds) {
  fprintf(file, "{\"pid\": %d, \"seconds\": %.6f, \"total\": ", (int)getpid(), seconds);
  print_json_row(file, sum, "}");
  fprintf(file, ", \"attach\": ");
  orion_attach_json(file);
  fprintf(file, ", \"images\": ");
  print_json_images(file);
  fprintf(file, ", \"functions\": {");
  for (size_t i = 0; i < count; i++) {
    fprintf(file, "%s\n  \"%s\": ", i ? "," : "", rows[i].name);
    print_json_row(file, &rows[i], "");
    fprintf(file, ", \"first_at_ns\": %llu, \"first_ns\": %llu}", rows[i].first_at_ns, rows[i].first_ns);
  }
  fprintf(file, "}}\n");
}

void orion_stats_tell(void) {
  if (!orion_stats_on) return;
  orion_stats_on = false;
  row* rows = calloc(FUNCTIONS_MAX, sizeof *rows);
  if (!rows) return;
  size_t count = 0;
  row sum = {.name = "total"};
  for (const orion_counter* c = atomic_load(&counters); c && count < FUNCTIONS_MAX; c = c->next) {
    const row r = row_of(c);
    if (r.calls == 0 && r.waits == 0) continue;
    rows[count++] = r;
    sum.calls += r.calls;
    sum.waits += r.waits;
    sum.bytes_out += r.bytes_out;
    sum.bytes_in += r.bytes_in;
    sum.total_ns += r.total_ns;
    sum.wait_ns += r.wait_ns;
  }
  qsort(rows, count, sizeof *rows, by_time);
  const double seconds = (double)(orion_now_ns() - began_ns) / 1e9;
  if (json_path[0]) {
    FILE* file = fopen(json_path, "we");
    if (file) print_json(file, rows, count, &sum, seconds);
    if (!file || fclose(file) != 0)
      orion_log(ORION_LOG_WARN, "cannot write the statistics to %s: %s", json_path, strerror(errno));
  } else {
    print_table(stderr, rows, count, &sum, seconds);
  }
  free(rows);
}
