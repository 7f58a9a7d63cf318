// Launch attributes as they travel, and which of them do: the client refuses the others at the call, the worker again.
#ifndef ORION_LAUNCH_H
#define ORION_LAUNCH_H

#include <stdbool.h>
#include <stdint.h>

#include "cuda_enums.h"

#define ORION_LAUNCH_ATTRIBUTES_MAX 16u

/// An attribute in the tail of LAUNCH_EX.
typedef struct orion_wire_attribute {
  uint32_t id, pad;
  uint8_t value[64];
} orion_wire_attribute;

/// Attributes of launches whose value holds no handle of the client's process. The window of an access policy is an
/// address all the same, a hint for caching: the worker checks it like a copy's.
static inline bool orion_launch_attribute_travels(uint32_t id) {
  switch (id) {
    case CU_LAUNCH_ATTRIBUTE_IGNORE:
    case CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW:
    case CU_LAUNCH_ATTRIBUTE_COOPERATIVE:
    case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
    case CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
    case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION:
    case CU_LAUNCH_ATTRIBUTE_PRIORITY:
    case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP:
    case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN:
    case CU_LAUNCH_ATTRIBUTE_PREFERRED_CLUSTER_DIMENSION:
    case CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
    case CU_LAUNCH_ATTRIBUTE_NVLINK_UTIL_CENTRIC_SCHEDULING:
      return true;
    default:
      return false;
  }
}

#endif
