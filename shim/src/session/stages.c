#define _GNU_SOURCE
#include "stages.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "futex.h"
#include "session.h"

orion_attach_times orion_attach_took;

static uint64_t boot_ns(void) {
  struct timespec now = {0};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void orion_attach_begins(void) {
  memset(&orion_attach_took, 0, sizeof orion_attach_took);
  orion_attach_took.began_ns = orion_now_ns();
  orion_attach_took.began_boot_ns = boot_ns();
}

uint64_t orion_process_ns(void) {
  char text[1024];
  FILE* file = fopen("/proc/self/stat", "re");
  if (!file) return 0;
  const size_t bytes = fread(text, 1, sizeof text - 1, file);
  fclose(file);
  text[bytes] = 0;
  // The name, in parentheses, may hold anything; the start is the 22nd field, the state behind the name the third.
  const char* at = strrchr(text, ')');
  for (int field = 2; at && field < 22; field++) at = strchr(at + 1, ' ');
  const long ticks = sysconf(_SC_CLK_TCK);
  if (!at || ticks <= 0) return 0;
  const uint64_t started_ns = strtoull(at + 1, NULL, 10) * (1000000000u / (uint64_t)ticks);
  return orion_attach_took.began_boot_ns > started_ns ? orion_attach_took.began_boot_ns - started_ns : 0;
}

// ------------------------------------------------------------------------------------------------- stages

static void add(orion_stages* stages, const char* name, uint64_t ns) {
  uint32_t i = 0;
  while (i < stages->count && strcmp(stages->list[i].name, name) != 0) i++;
  if (i == ORION_STAGES_MAX) return;
  if (i == stages->count) {
    stages->count++;
    stages->list[i].ns = 0;
    snprintf(stages->list[i].name, sizeof stages->list[i].name, "%s", name);
  }
  stages->list[i].ns += ns;
}

void orion_stages_begin(orion_stages* stages) { stages->last_ns = orion_now_ns(); }

void orion_stages_lap(orion_stages* stages, const char* name) {
  const uint64_t now_ns = orion_now_ns();
  add(stages, name, now_ns - stages->last_ns);
  stages->last_ns = now_ns;
}

static bool is_name(const uint8_t* text, uint32_t bytes) {
  for (uint32_t i = 0; i < bytes; i++) {
    if (text[i] != '_' && (text[i] < 'a' || text[i] > 'z')) return false;
  }
  return bytes != 0 && bytes < sizeof((orion_stage*)NULL)->name;
}

void orion_stages_read(orion_stages* stages, orion_unpacker* u) {
  for (uint32_t pairs = orion_unpack_map(u); pairs && !u->bad; pairs--) {
    const uint8_t* text = NULL;
    const uint32_t bytes = orion_unpack_bytes(u, &text);
    const int64_t us = orion_unpack_integer(u);
    if (u->bad || us < 0 || us > UINT32_MAX || !is_name(text, bytes)) continue;
    char name[sizeof((orion_stage*)NULL)->name];
    memcpy(name, text, bytes);
    name[bytes] = 0;
    add(stages, name, (uint64_t)us * 1000);
  }
}

// ------------------------------------------------------------------------------------------------- telling

static double ms(uint64_t ns) { return (double)ns / 1e6; }

static void describe(const orion_stages* stages, char* out, size_t capacity) {
  size_t used = 0;
  out[0] = 0;
  for (uint32_t i = 0; i < stages->count && used < capacity; i++) {
    const int wrote =
        snprintf(out + used, capacity - used, "%s%s %.2f", i ? ", " : "", stages->list[i].name, ms(stages->list[i].ns));
    if (wrote > 0) used += (size_t)wrote;
  }
}

static void describe_record(const orion_attach_record* record, char* out, size_t capacity) {
  char own[400];
  char server[400];
  describe(&record->own, own, sizeof own);
  describe(&record->server, server, sizeof server);
  snprintf(out, capacity, "%s over %s, ms: %s; of it the server: %s (%s worker)", record->address,
           record->transport ? record->transport : "nothing", own, server[0] ? server : "not told",
           record->worker_was_warm ? "warm" : "cold");
}

void orion_attach_log(void) {
  const orion_attach_times* t = &orion_attach_took;
  for (uint32_t i = 0; i < t->count; i++) {
    char text[1100];
    describe_record(&t->records[i], text, sizeof text);
    orion_log(ORION_LOG_INFO, "attach took %.2f ms; %s", ms(t->total_ns), text);
  }
}

void orion_attach_print(FILE* file) {
  const orion_attach_times* t = &orion_attach_took;
  fprintf(file, "attach: %.2f ms, begun %.0f ms after the start of the process\n", ms(t->total_ns),
          ms(orion_process_ns()));
  for (uint32_t i = 0; i < t->count; i++) {
    char text[1100];
    describe_record(&t->records[i], text, sizeof text);
    fprintf(file, "attach: %s\n", text);
  }
}

static void print_stages(FILE* file, const orion_stages* stages) {
  fputc('{', file);
  for (uint32_t i = 0; i < stages->count; i++)
    fprintf(file, "%s\"%s\": %llu", i ? ", " : "", stages->list[i].name, (unsigned long long)stages->list[i].ns);
  fputc('}', file);
}

// The user's own text: what JSON would mind is left out.
static void print_address(FILE* file, const char* address) {
  for (; *address; address++) {
    if (*address != '"' && *address != '\\' && (unsigned char)*address >= 0x20) fputc(*address, file);
  }
}

void orion_attach_json(FILE* file) {
  const orion_attach_times* t = &orion_attach_took;
  fprintf(file, "{\"process_ns\": %llu, \"config_ns\": %llu, \"total_ns\": %llu, \"servers\": [",
          (unsigned long long)orion_process_ns(), (unsigned long long)t->config_ns, (unsigned long long)t->total_ns);
  for (uint32_t i = 0; i < t->count; i++) {
    const orion_attach_record* record = &t->records[i];
    fprintf(file, "%s{\"address\": \"", i ? ", " : "");
    print_address(file, record->address);
    fprintf(file,
            "\", \"transport\": \"%s\", \"warm\": %s, \"stages_ns\": ", record->transport ? record->transport : "",
            record->worker_was_warm ? "true" : "false");
    print_stages(file, &record->own);
    fprintf(file, ", \"server_ns\": ");
    print_stages(file, &record->server);
    fputc('}', file);
  }
  fprintf(file, "]}");
}
