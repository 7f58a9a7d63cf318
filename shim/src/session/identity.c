#define _GNU_SOURCE
#include "identity.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "orion_wire.h"

#ifndef ORION_CLIENT_VERSION
#define ORION_CLIENT_VERSION "0.1.0"
#endif

void orion_boot_id(char* out, size_t capacity) {
  out[0] = 0;
  FILE* file = fopen("/proc/sys/kernel/random/boot_id", "re");
  if (!file) return;
  if (!fgets(out, (int)capacity, file)) out[0] = 0;
  out[strcspn(out, "\n")] = 0;
  fclose(file);
}

void orion_pack_identity(orion_packer* p) {
  char host[64];
  char program[400];  // the protocol's bound for text
  orion_boot_id(host, sizeof host);
  const ssize_t program_bytes = readlink("/proc/self/exe", program, sizeof program - 1);
  program[program_bytes > 0 ? program_bytes : 0] = 0;
  orion_pack_string(p, "wire");
  orion_pack_array(p, 2);
  orion_pack_unsigned(p, ORION_WIRE_MAJOR);
  orion_pack_unsigned(p, ORION_WIRE_MINOR);
  orion_pack_string(p, "client");
  orion_pack_string(p, ORION_CLIENT_VERSION);
  orion_pack_string(p, "pid");
  orion_pack_unsigned(p, (uint64_t)getpid());
  orion_pack_string(p, "uid");
  orion_pack_unsigned(p, getuid());
  orion_pack_string(p, "host");
  orion_pack_string(p, host);
  orion_pack_string(p, "program");
  orion_pack_string(p, program);
}
