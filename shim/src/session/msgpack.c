#include "msgpack.h"

#include <string.h>

static void put(orion_packer* p, const void* data, size_t bytes) {
  if (bytes > p->capacity - p->bytes) {
    p->overflow = true;
    return;
  }
  if (bytes) memcpy(p->data + p->bytes, data, bytes);
  p->bytes += bytes;
}

static void put_head(orion_packer* p, uint8_t code, uint64_t value, int width_bytes) {
  uint8_t head[9] = {code};
  for (int i = 0; i < width_bytes; i++) head[1 + i] = (uint8_t)(value >> (8 * (width_bytes - 1 - i)));
  put(p, head, 1 + (size_t)width_bytes);
}

void orion_pack_map(orion_packer* p, uint32_t pairs) {
  if (pairs < 16)
    put_head(p, (uint8_t)(0x80 | pairs), 0, 0);
  else
    put_head(p, 0xdf, pairs, 4);
}

void orion_pack_array(orion_packer* p, uint32_t items) {
  if (items < 16)
    put_head(p, (uint8_t)(0x90 | items), 0, 0);
  else
    put_head(p, 0xdd, items, 4);
}

void orion_pack_string(orion_packer* p, const char* text) {
  const size_t bytes = strlen(text);
  if (bytes < 32)
    put_head(p, (uint8_t)(0xa0 | bytes), 0, 0);
  else
    put_head(p, 0xdb, bytes, 4);
  put(p, text, bytes);
}

void orion_pack_binary(orion_packer* p, const void* data, uint32_t bytes) {
  put_head(p, 0xc6, bytes, 4);
  put(p, data, bytes);
}

void orion_pack_unsigned(orion_packer* p, uint64_t value) {
  if (value < 128)
    put_head(p, (uint8_t)value, 0, 0);
  else if (value <= 0xffffffffu)
    put_head(p, 0xce, value, 4);
  else
    put_head(p, 0xcf, value, 8);
}

void orion_pack_bool(orion_packer* p, bool value) { put_head(p, value ? 0xc3 : 0xc2, 0, 0); }

void orion_pack_raw(orion_packer* p, const void* packed, size_t bytes) { put(p, packed, bytes); }

static uint64_t get(orion_unpacker* u, size_t width_bytes) {
  if (u->bad || (size_t)(u->end - u->at) < width_bytes) {
    u->bad = true;
    return 0;
  }
  uint64_t value = 0;
  for (size_t i = 0; i < width_bytes; i++) value = value << 8 | *u->at++;
  return value;
}

static const uint8_t* get_bytes(orion_unpacker* u, uint64_t bytes) {
  if (u->bad || (uint64_t)(u->end - u->at) < bytes) {
    u->bad = true;
    return NULL;
  }
  const uint8_t* data = u->at;
  u->at += bytes;
  return data;
}

uint32_t orion_unpack_map(orion_unpacker* u) {
  const uint8_t code = (uint8_t)get(u, 1);
  if ((code & 0xf0) == 0x80) return code & 15;
  if (code == 0xde) return (uint32_t)get(u, 2);
  if (code == 0xdf) return (uint32_t)get(u, 4);
  u->bad = true;
  return 0;
}

uint32_t orion_unpack_array(orion_unpacker* u) {
  const uint8_t code = (uint8_t)get(u, 1);
  if ((code & 0xf0) == 0x90) return code & 15;
  if (code == 0xdc) return (uint32_t)get(u, 2);
  if (code == 0xdd) return (uint32_t)get(u, 4);
  u->bad = true;
  return 0;
}

uint32_t orion_unpack_bytes(orion_unpacker* u, const uint8_t** data) {
  const uint8_t code = (uint8_t)get(u, 1);
  uint64_t bytes = 0;
  if ((code & 0xe0) == 0xa0)
    bytes = code & 31;
  else if (code == 0xd9 || code == 0xc4)
    bytes = get(u, 1);
  else if (code == 0xda || code == 0xc5)
    bytes = get(u, 2);
  else if (code == 0xdb || code == 0xc6)
    bytes = get(u, 4);
  else
    u->bad = true;
  *data = get_bytes(u, bytes);
  return u->bad ? 0 : (uint32_t)bytes;
}

int64_t orion_unpack_integer(orion_unpacker* u) {
  const uint8_t code = (uint8_t)get(u, 1);
  if (code < 0x80) return code;
  if (code >= 0xe0) return (int8_t)code;
  switch (code) {
    case 0xc2:  // booleans are accepted as numbers
    case 0xc3:
      return code & 1;
    case 0xcc:
      return (int64_t)get(u, 1);
    case 0xcd:
      return (int64_t)get(u, 2);
    case 0xce:
      return (int64_t)get(u, 4);
    case 0xcf: {
      const uint64_t value = get(u, 8);
      if (value > INT64_MAX) u->bad = true;
      return u->bad ? 0 : (int64_t)value;
    }
    case 0xd0:
      return (int8_t)get(u, 1);
    case 0xd1:
      return (int16_t)get(u, 2);
    case 0xd2:
      return (int32_t)get(u, 4);
    case 0xd3:
      return (int64_t)get(u, 8);
    default:
      u->bad = true;
      return 0;
  }
}

double orion_unpack_number(orion_unpacker* u) {
  if (u->bad || u->at == u->end || (*u->at != 0xca && *u->at != 0xcb)) return (double)orion_unpack_integer(u);
  const bool is_wide = *u->at++ == 0xcb;
  const uint64_t bits = get(u, is_wide ? 8 : 4);
  const uint32_t low = (uint32_t)bits;
  double wide = 0;
  float narrow = 0;
  memcpy(&wide, &bits, sizeof wide);
  memcpy(&narrow, &low, sizeof narrow);
  return u->bad ? 0 : is_wide ? wide : (double)narrow;
}

static void skip(orion_unpacker* u, int depth) {
  if (u->bad || u->at == u->end || depth > ORION_MSGPACK_DEPTH) {
    u->bad = true;
    return;
  }
  const uint8_t code = *u->at;
  const uint8_t* data = NULL;
  if (code < 0x80 || code >= 0xe0 || code == 0xc0 || code == 0xc2 || code == 0xc3) {
    u->at++;
  } else if ((code & 0xf0) == 0x80 || code == 0xde || code == 0xdf) {
    for (uint64_t left = 2ull * orion_unpack_map(u); left && !u->bad; left--) skip(u, depth + 1);
  } else if ((code & 0xf0) == 0x90 || code == 0xdc || code == 0xdd) {
    for (uint32_t left = orion_unpack_array(u); left && !u->bad; left--) skip(u, depth + 1);
  } else if ((code >= 0xcc && code <= 0xd3) || code == 0xca || code == 0xcb) {
    static const uint8_t widths[] = {4, 8, 1, 2, 4, 8, 1, 2, 4, 8};  // from 0xca
    get_bytes(u, 1u + widths[code - 0xca]);
  } else if (code >= 0xd4 && code <= 0xd8) {
    get_bytes(u, 2u + (1u << (code - 0xd4)));
  } else if (code >= 0xc7 && code <= 0xc9) {
    u->at++;
    const uint64_t bytes = get(u, (size_t)1 << (code - 0xc7));
    get_bytes(u, bytes + 1);
  } else {
    orion_unpack_bytes(u, &data);
  }
}

void orion_unpack_skip(orion_unpacker* u) { skip(u, 0); }

bool orion_unpack_equals(const uint8_t* data, uint32_t bytes, const char* text) {
  return data && strlen(text) == bytes && memcmp(data, text, bytes) == 0;
}
