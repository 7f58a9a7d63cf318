// Just enough msgpack for control messages. The writer fills a fixed buffer and remembers an overflow; the reader
// never reads past its end, never recurses deeper than ORION_MSGPACK_DEPTH, and after the first error yields zeros.
#ifndef ORION_SHIM_MSGPACK_H
#define ORION_SHIM_MSGPACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ORION_MSGPACK_DEPTH = 16 };

typedef struct orion_packer {
  uint8_t* data;
  size_t bytes, capacity;
  bool overflow;
} orion_packer;

void orion_pack_map(orion_packer* p, uint32_t pairs);
void orion_pack_array(orion_packer* p, uint32_t items);
void orion_pack_string(orion_packer* p, const char* text);
void orion_pack_binary(orion_packer* p, const void* data, uint32_t bytes);
void orion_pack_unsigned(orion_packer* p, uint64_t value);
void orion_pack_bool(orion_packer* p, bool value);
void orion_pack_raw(orion_packer* p, const void* packed, size_t bytes);  // already msgpack

typedef struct orion_unpacker {
  const uint8_t *at, *end;
  bool bad;
} orion_unpacker;

/// Counts of what follows. A count is what the sender claims: loop while it lasts and !bad.
uint32_t orion_unpack_map(orion_unpacker* u);
uint32_t orion_unpack_array(orion_unpacker* u);
/// A string or binary; *data points into the message.
uint32_t orion_unpack_bytes(orion_unpacker* u, const uint8_t** data);
int64_t orion_unpack_integer(orion_unpacker* u);  // unsigned values above INT64_MAX are an error
double orion_unpack_number(orion_unpacker* u);    // an integer or a float
/// Skips one value of any type.
void orion_unpack_skip(orion_unpacker* u);
/// Reads a string or binary and says whether it equals `text`.
bool orion_unpack_equals(const uint8_t* data, uint32_t bytes, const char* text);

#endif
