// How long attaching took, stage by stage, on this side and on each server's. Always kept: a dozen clock readings a
// process.
#ifndef ORION_SHIM_STAGES_H
#define ORION_SHIM_STAGES_H

#include <stdbool.h>
#include <stdio.h>

#include "config.h"
#include "msgpack.h"

enum { ORION_STAGES_MAX = 16 };

typedef struct orion_stage {
  char name[20];  // small letters and underscores
  uint64_t ns;
} orion_stage;

typedef struct orion_stages {
  orion_stage list[ORION_STAGES_MAX];
  uint32_t count;
  uint64_t last_ns;
} orion_stages;

/// One server that this process attached to.
typedef struct orion_attach_record {
  char address[ORION_SERVER_NAME_BYTES];
  const char* transport;
  bool worker_was_warm;
  orion_stages own, server;
} orion_attach_record;

typedef struct orion_attach_times {
  uint64_t began_ns;       // when cuInit began to attach
  uint64_t began_boot_ns;  // the same moment by the clock in which the system tells when a process started
  uint64_t config_ns, total_ns;
  uint32_t count;
  orion_attach_record records[ORION_SERVERS_MAX];
} orion_attach_times;

extern orion_attach_times orion_attach_took;

/// The next stage begins now.
void orion_stages_begin(orion_stages* stages);
/// What has passed since the beginning or the last lap was `name`; a second one of that name is added to the first.
void orion_stages_lap(orion_stages* stages, const char* name);
/// Reads a map of names to microseconds, as a server tells them; what is not one is left out.
void orion_stages_read(orion_stages* stages, orion_unpacker* u);

void orion_attach_begins(void);
/// From the start of the process to the beginning of attach, to the system's tick; 0 where it does not tell.
uint64_t orion_process_ns(void);
/// One line on ORION_LOG=info for each server.
void orion_attach_log(void);
/// The value of "attach" in the statistics.
void orion_attach_json(FILE* file);
/// The same as lines of text.
void orion_attach_print(FILE* file);

#endif
