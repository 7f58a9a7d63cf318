#include "hmac_md2.h"

#include <string.h>

enum { BLOCK_BYTES = 16, ROUNDS = 18 };

/// The permutation of RFC 1319, made from the digits of pi.
static const uint8_t pi_permutation[256] = {
    41,  46,  67,  201, 162, 216, 124, 1,   61,  54,  84,  161, 236, 240, 6,   19,  98,  167, 5,   243, 192, 199,
    115, 140, 152, 147, 43,  217, 188, 76,  130, 202, 30,  155, 87,  60,  253, 212, 224, 22,  103, 66,  111, 24,
    138, 23,  229, 18,  190, 78,  196, 214, 218, 158, 222, 73,  160, 251, 245, 142, 187, 47,  238, 122, 169, 104,
    121, 145, 21,  178, 7,   63,  148, 194, 16,  137, 11,  34,  95,  33,  128, 127, 93,  154, 90,  144, 50,  39,
    53,  62,  204, 231, 191, 247, 151, 3,   255, 25,  48,  179, 72,  165, 181, 209, 215, 94,  146, 42,  172, 86,
    170, 198, 79,  184, 56,  210, 150, 164, 125, 182, 118, 252, 107, 226, 156, 116, 4,   241, 69,  157, 112, 89,
    100, 113, 135, 32,  134, 91,  207, 101, 230, 45,  168, 2,   27,  96,  37,  173, 174, 176, 185, 246, 28,  70,
    97,  105, 52,  64,  126, 15,  85,  71,  163, 35,  221, 81,  175, 58,  195, 92,  249, 206, 186, 197, 234, 38,
    44,  83,  13,  110, 133, 40,  132, 9,   211, 223, 205, 244, 65,  129, 77,  82,  106, 220, 55,  200, 108, 193,
    171, 250, 36,  225, 123, 8,   12,  189, 177, 74,  120, 136, 149, 139, 227, 99,  232, 109, 233, 203, 213, 254,
    59,  0,   29,  57,  242, 239, 183, 14,  102, 88,  208, 228, 166, 119, 114, 248, 235, 117, 75,  10,  49,  68,
    80,  180, 143, 237, 31,  26,  219, 153, 141, 51,  159, 17,  131, 20,
};

static void absorb(orion_md2* md2, const uint8_t* block) {
  uint8_t last = md2->checksum[BLOCK_BYTES - 1];
  for (int i = 0; i < BLOCK_BYTES; i++) {
    md2->state[BLOCK_BYTES + i] = block[i];
    md2->state[2 * BLOCK_BYTES + i] = md2->state[i] ^ block[i];
    last = md2->checksum[i] ^= pi_permutation[block[i] ^ last];
  }
  uint8_t carry = 0;
  for (int round = 0; round < ROUNDS; round++) {
    for (size_t i = 0; i < sizeof md2->state; i++) carry = md2->state[i] ^= pi_permutation[carry];
    carry = (uint8_t)(carry + round);
  }
}

void orion_md2_begin(orion_md2* md2) { memset(md2, 0, sizeof *md2); }

void orion_md2_add(orion_md2* md2, const void* data, size_t bytes) {
  const uint8_t* from = data;
  while (bytes-- != 0) {
    md2->pending[md2->pending_bytes++] = *from++;
    if (md2->pending_bytes < BLOCK_BYTES) continue;
    absorb(md2, md2->pending);
    md2->pending_bytes = 0;
  }
}

void orion_md2_end(orion_md2* md2, uint8_t digest[ORION_MD2_BYTES]) {
  const uint8_t missing = (uint8_t)(BLOCK_BYTES - md2->pending_bytes);
  memset(md2->pending + md2->pending_bytes, missing, missing);
  absorb(md2, md2->pending);
  uint8_t checksum[BLOCK_BYTES];
  memcpy(checksum, md2->checksum, sizeof checksum);
  absorb(md2, checksum);
  memcpy(digest, md2->state, ORION_MD2_BYTES);
}

void orion_hmac_md2_begin(orion_hmac_md2* hmac, const uint8_t key[ORION_MD2_BYTES]) {
  uint8_t inner[BLOCK_BYTES], outer[BLOCK_BYTES];
  for (int i = 0; i < BLOCK_BYTES; i++) {
    inner[i] = key[i] ^ 0x36;
    outer[i] = key[i] ^ 0x5c;
  }
  orion_md2_begin(&hmac->inner);
  orion_md2_add(&hmac->inner, inner, sizeof inner);
  orion_md2_begin(&hmac->outer);
  orion_md2_add(&hmac->outer, outer, sizeof outer);
}

void orion_hmac_md2_add(orion_hmac_md2* hmac, const void* data, size_t bytes) {
  orion_md2_add(&hmac->inner, data, bytes);
}

void orion_hmac_md2_end(orion_hmac_md2* hmac, uint8_t digest[ORION_MD2_BYTES]) {
  uint8_t inner[ORION_MD2_BYTES];
  orion_md2_end(&hmac->inner, inner);
  orion_md2_add(&hmac->outer, inner, sizeof inner);
  orion_md2_end(&hmac->outer, digest);
}
