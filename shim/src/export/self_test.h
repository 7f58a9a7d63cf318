// The runtime's self-test: what it is told, from what the client reports.
#ifndef ORION_SHIM_SELF_TEST_H
#define ORION_SHIM_SELF_TEST_H

#include <stdint.h>

typedef struct orion_self_test_device {
  uint8_t uuid[16];
  int32_t pci_domain, pci_bus, pci_device;
} orion_self_test_device;

/// Who asks, and of which driver. Addresses are those of this process.
typedef struct orion_self_test {
  uint32_t driver_version, version, process, thread;
  uint64_t runtime_table, self_test_table, self_test_function, unix_seconds;
  const orion_self_test_device* devices;
  uint32_t device_count;
} orion_self_test;

void orion_self_test_answer(const orion_self_test* test, uint8_t answer[16]);

#endif
