#include "attached.h"

#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "orion_seal.h"

static void read_text(orion_unpacker* u, char* out, size_t capacity) {
  const uint8_t* text = NULL;
  const uint32_t bytes = orion_unpack_bytes(u, &text);
  if (bytes >= capacity)
    u->bad = true;
  else
    orion_printable(out, capacity, (const char*)text, bytes);
}

static void read_fixed(orion_unpacker* u, void* out, uint32_t bytes) {
  const uint8_t* data = NULL;
  if (orion_unpack_bytes(u, &data) != bytes || u->bad)
    u->bad = true;
  else
    memcpy(out, data, bytes);
}

static void read_attributes(orion_unpacker* u, orion_device* device) {
  for (uint32_t pairs = orion_unpack_map(u); pairs && !u->bad; pairs--) {
    const int64_t id = orion_unpack_integer(u);
    const int64_t value = orion_unpack_integer(u);
    if (u->bad || id < 0 || id >= 256 || value < INT32_MIN || value > INT32_MAX) continue;  // a newer driver's
    device->attributes[id] = (int32_t)value;
    device->has_attribute[id] = true;
  }
}

static void read_pair(orion_unpacker* u, int64_t* first, int64_t* second) {
  const uint32_t items = orion_unpack_array(u);
  if (items < 2) u->bad = true;
  *first = orion_unpack_integer(u);
  *second = orion_unpack_integer(u);
  for (uint32_t i = 2; i < items && !u->bad; i++) orion_unpack_skip(u);
}

static void read_peers(orion_unpacker* u, orion_device* device) {
  const uint32_t peers = orion_unpack_array(u);
  for (uint32_t p = 0; p < peers && !u->bad; p++) {
    const uint32_t values = orion_unpack_array(u);
    for (uint32_t v = 0; v < values && !u->bad; v++) {
      const int64_t value = orion_unpack_integer(u);
      if (p < ORION_DEVICES && v < ORION_PEER_VALUES && value >= INT32_MIN && value <= INT32_MAX)
        device->peers[p][v] = (int32_t)value;
    }
  }
}

static void read_device(orion_unpacker* u, orion_device* device) {
  int64_t first = 0;
  int64_t second = 0;
  memset(device, 0, sizeof *device);
  for (uint32_t pairs = orion_unpack_map(u); pairs && !u->bad; pairs--) {
    const uint8_t* key = NULL;
    const uint32_t n = orion_unpack_bytes(u, &key);
    if (orion_unpack_equals(key, n, "ordinal")) {
      const int64_t ordinal = orion_unpack_integer(u);
      if (ordinal < 0 || ordinal >= (int64_t)ORION_DEVICES) u->bad = true;
      device->remote_ordinal = (uint32_t)ordinal;
    } else if (orion_unpack_equals(key, n, "name")) {
      read_text(u, device->name, sizeof device->name);
    } else if (orion_unpack_equals(key, n, "uuid")) {
      read_fixed(u, device->uuid.bytes, 16);
    } else if (orion_unpack_equals(key, n, "pci_bus_id")) {
      read_text(u, device->pci_bus_id, sizeof device->pci_bus_id);
    } else if (orion_unpack_equals(key, n, "total_bytes")) {
      device->total_bytes = (uint64_t)orion_unpack_integer(u);
    } else if (orion_unpack_equals(key, n, "slot_bytes")) {
      device->slot_bytes = (uint64_t)orion_unpack_integer(u);
    } else if (orion_unpack_equals(key, n, "attributes")) {
      read_attributes(u, device);
    } else if (orion_unpack_equals(key, n, "peers")) {
      read_peers(u, device);
    } else if (orion_unpack_equals(key, n, "priority_range")) {
      read_pair(u, &first, &second);
      device->least_priority = (int32_t)first;
      device->greatest_priority = (int32_t)second;
    } else {
      orion_unpack_skip(u);
    }
  }
  const uint64_t spacing = ORION_DEVICE_SLOT_CANDIDATE(1) - ORION_DEVICE_SLOT_CANDIDATE(0);
  if (device->slot_bytes == 0 || device->slot_bytes > spacing || device->slot_bytes % ORION_CHUNK_BYTES) u->bad = true;
}

static void read_cipher(orion_unpacker* u, enum orion_cipher* cipher) {
  const uint8_t* name = NULL;
  const uint32_t n = orion_unpack_bytes(u, &name);
  if (orion_unpack_equals(name, n, "aes256gcm"))
    *cipher = ORION_CIPHER_AES256GCM;
  else if (orion_unpack_equals(name, n, "chacha20poly1305"))
    *cipher = ORION_CIPHER_CHACHA20POLY1305;
  else if (n != 0)
    u->bad = true;
  if (*cipher != ORION_CIPHER_NONE && !orion_cipher_usable(*cipher)) u->bad = true;  // it was not offered
}

static void read_devices(orion_unpacker* u, orion_attach_answer* attached) {
  const uint32_t count = orion_unpack_array(u);
  if (count > ORION_DEVICES || attached->devices) u->bad = true;
  if (u->bad || count == 0) return;
  attached->devices = calloc(count, sizeof *attached->devices);
  if (!attached->devices) u->bad = true;
  for (uint32_t i = 0; i < count && !u->bad; i++) read_device(u, &attached->devices[attached->device_count++]);
}

bool orion_attached_read(const orion_control* control, orion_attach_answer* attached) {
  memset(attached, 0, sizeof *attached);
  uint32_t pairs = 0;
  orion_unpacker unpacker = orion_control_answer(control, &pairs);
  orion_unpacker* u = &unpacker;
  for (; pairs && !u->bad; pairs--) {
    const uint8_t* key = NULL;
    const uint32_t n = orion_unpack_bytes(u, &key);
    const uint8_t* start = u->at;
    if (orion_unpack_equals(key, n, "session")) {
      orion_unpack_skip(u);
      const size_t bytes = (size_t)(u->at - start);
      if (bytes > sizeof attached->session_id) {
        u->bad = true;
      } else {
        memcpy(attached->session_id, start, bytes);
        attached->session_id_bytes = (uint32_t)bytes;
      }
    } else if (orion_unpack_equals(key, n, "token")) {
      read_fixed(u, attached->token, sizeof attached->token);
      attached->has_token = !u->bad;
    } else if (orion_unpack_equals(key, n, "wire")) {
      read_pair(u, &attached->wire_major, &attached->wire_minor);
    } else if (orion_unpack_equals(key, n, "server")) {
      read_text(u, attached->server_version, sizeof attached->server_version);
    } else if (orion_unpack_equals(key, n, "device_name_kind")) {
      char kind[32];
      read_text(u, kind, sizeof kind);
      attached->is_softgpu = !u->bad && strcmp(kind, "softgpu") == 0;
    } else if (orion_unpack_equals(key, n, "runtime_validated")) {
      attached->runtime_validated = orion_unpack_integer(u) != 0;
    } else if (orion_unpack_equals(key, n, "driver_version")) {
      attached->driver_version = (int)orion_unpack_integer(u);
    } else if (orion_unpack_equals(key, n, "shm_socket")) {
      read_text(u, attached->shm_socket, sizeof attached->shm_socket);
    } else if (orion_unpack_equals(key, n, "tcp_ops")) {
      read_text(u, attached->tcp_ops, sizeof attached->tcp_ops);
    } else if (orion_unpack_equals(key, n, "tcp_bulk")) {
      read_text(u, attached->tcp_bulk, sizeof attached->tcp_bulk);
    } else if (orion_unpack_equals(key, n, "ucx")) {
      read_text(u, attached->ucx, sizeof attached->ucx);
    } else if (orion_unpack_equals(key, n, "ucx_refused")) {
      read_text(u, attached->ucx_refused, sizeof attached->ucx_refused);
    } else if (orion_unpack_equals(key, n, "cipher")) {
      read_cipher(u, &attached->cipher);
    } else if (orion_unpack_equals(key, n, "warm")) {
      attached->worker_was_warm = orion_unpack_integer(u) != 0;
    } else if (orion_unpack_equals(key, n, "stages")) {
      orion_stages_read(&attached->server_stages, u);
    } else if (orion_unpack_equals(key, n, "devices")) {
      read_devices(u, attached);
    } else {
      orion_unpack_skip(u);
    }
  }
  return !u->bad && attached->has_token && attached->session_id_bytes != 0;
}
