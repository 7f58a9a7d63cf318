// HMAC (RFC 2104) over MD2 (RFC 1319).
#ifndef ORION_SHIM_HMAC_MD2_H
#define ORION_SHIM_HMAC_MD2_H

#include <stddef.h>
#include <stdint.h>

enum { ORION_MD2_BYTES = 16 };

typedef struct orion_md2 {
  uint8_t state[48];  // digest, block, digest ^ block
  uint8_t checksum[16];
  uint8_t pending[16];
  uint32_t pending_bytes;
} orion_md2;

void orion_md2_begin(orion_md2* md2);
void orion_md2_add(orion_md2* md2, const void* data, size_t bytes);
void orion_md2_end(orion_md2* md2, uint8_t digest[ORION_MD2_BYTES]);

typedef struct orion_hmac_md2 {
  orion_md2 inner, outer;
} orion_hmac_md2;

/// A key of the block's size, 16 bytes: the only one needed here.
void orion_hmac_md2_begin(orion_hmac_md2* hmac, const uint8_t key[ORION_MD2_BYTES]);
void orion_hmac_md2_add(orion_hmac_md2* hmac, const void* data, size_t bytes);
void orion_hmac_md2_end(orion_hmac_md2* hmac, uint8_t digest[ORION_MD2_BYTES]);

#endif
