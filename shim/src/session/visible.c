// CUDA_DEVICE_ORDER and CUDA_VISIBLE_DEVICES, applied to the devices of all sessions.
#define _GNU_SOURCE
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "internal.h"

// A rough figure for "fastest first": multiprocessors times clock, weighted by the architecture's width.
static uint64_t speed(const orion_device* device) {
  const int multiprocessors = device->attributes[CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT];
  const int clock_khz = device->attributes[CU_DEVICE_ATTRIBUTE_CLOCK_RATE];
  const int lanes = device->attributes[CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR];
  return (uint64_t)(multiprocessors > 0 ? multiprocessors : 0) * (uint64_t)(clock_khz > 0 ? clock_khz : 1) *
         (uint64_t)(lanes > 0 ? lanes : 1);
}

static bool goes_before(const orion_device* a, const orion_device* b, bool by_pci) {
  if (!by_pci) return speed(a) > speed(b);
  return a->session == b->session && strcasecmp(a->pci_bus_id, b->pci_bus_id) < 0;
}

static int find_uuid(orion_device* const* devices, uint32_t count, const char* text, size_t length) {
  int found = -1;
  for (uint32_t i = 0; i < count; i++) {
    static const char digits[] = "0123456789abcdef";
    char uuid[41] = "gpu-";
    size_t n = 4;
    for (int byte = 0; byte < 16; byte++) {
      if (byte == 4 || byte == 6 || byte == 8 || byte == 10) uuid[n++] = '-';
      const unsigned char value = (unsigned char)devices[i]->uuid.bytes[byte];
      uuid[n++] = digits[value >> 4];
      uuid[n++] = digits[value & 15];
    }
    if (length > n || strncasecmp(text, uuid, length) != 0) continue;
    if (found >= 0) return -1;  // a prefix of two
    found = (int)i;
  }
  return found;
}

static int find_entry(orion_device* const* devices, uint32_t count, const char* text, size_t length) {
  if (length >= 4 && strncasecmp(text, "gpu-", 4) == 0) return find_uuid(devices, count, text, length);
  if (length == 0 || length > 9) return -1;
  int index = 0;
  for (size_t i = 0; i < length; i++) {
    if (!isdigit((unsigned char)text[i])) return -1;
    index = index * 10 + (text[i] - '0');
  }
  return index < (int)count ? index : -1;
}

uint32_t orion_visible_devices(orion_device* const* all, uint32_t count, const char* order, const char* visible,
                               orion_device** out) {
  const bool as_given = order && strcmp(order, ORION_ORDER_AS_GIVEN) == 0;
  const bool by_pci = order && strcmp(order, "PCI_BUS_ID") == 0;
  for (uint32_t i = 0; i < count; i++) {  // a stable insertion sort
    uint32_t at = i;
    for (; !as_given && at > 0 && goes_before(all[i], out[at - 1], by_pci); at--) out[at] = out[at - 1];
    out[at] = all[i];
  }
  if (!visible) return count;
  orion_device* sorted[ORION_DEVICES_MAX];
  memcpy(sorted, out, count * sizeof *out);
  bool used[ORION_DEVICES_MAX] = {false};
  uint32_t chosen = 0;
  for (const char* text = visible;; text++) {
    while (*text == ' ' || *text == '\t') text++;
    size_t length = strcspn(text, ",");
    const char* comma = text + length;
    while (length && isspace((unsigned char)text[length - 1])) length--;
    const int index = find_entry(sorted, count, text, length);
    if (index < 0) break;       // an invalid entry, -1 among them, ends the list
    if (used[index]) return 0;  // a device named twice hides all
    used[index] = true;
    out[chosen++] = sorted[index];
    if (!*comma) break;
    text = comma;
  }
  return chosen;
}
