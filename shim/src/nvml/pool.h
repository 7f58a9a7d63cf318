// Which servers of the pool have vGPUs of this process, asked of its controller.
#ifndef ORION_NVML_POOL_H
#define ORION_NVML_POOL_H

#include "../session/config.h"

typedef struct orion_nvml_servers {
  char addresses[ORION_SERVERS_MAX][ORION_SERVER_NAME_BYTES];
  char public_keys[ORION_SERVERS_MAX][ORION_SERVER_KEY_BYTES];  // z85; empty: not encrypted
  char stats_keys[ORION_SERVERS_MAX][ORION_CLIENT_KEY_BYTES + 1];
  uint32_t count;  // 0: nothing has been allocated
} orion_nvml_servers;

/// False, after one line on stderr unless `quiet`, when no controller answers.
bool orion_nvml_lookup(const orion_config* config, orion_nvml_servers* servers, bool quiet);

#endif
