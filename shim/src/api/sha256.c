#include "sha256.h"

#include <stdbool.h>
#include <string.h>

#define BLOCK_BYTES 64u

typedef void compress_fn(uint32_t state[8], const uint8_t* blocks, size_t count);

// The first 32 bits of the fractional parts of the cube roots of the first 64 primes (FIPS 180-4).
static const uint32_t ROUND[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static inline uint32_t rotate(uint32_t x, unsigned n) { return x >> n | x << (32 - n); }

static void compress_portable(uint32_t state[8], const uint8_t* blocks, size_t count) {
  for (; count != 0; count--, blocks += BLOCK_BYTES) {
    uint32_t w[64];
    for (int i = 0; i < 16; i++) {
      const uint8_t* b = blocks + 4 * i;
      w[i] = (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | b[3];
    }
    for (int i = 16; i < 64; i++) {
      const uint32_t low = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
      const uint32_t high = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + low + w[i - 7] + high;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
#pragma GCC unroll 8
    for (int i = 0; i < 64; i++) {
      const uint32_t mixed = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
      const uint32_t first = h + mixed + ((e & f) ^ (~e & g)) + ROUND[i] + w[i];
      const uint32_t turned = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
      const uint32_t second = turned + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + first;
      d = c, c = b, b = a, a = first + second;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
  }
}

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

// The instructions keep the state as (a, b, e, f) and (c, d, g, h), the first named in the highest lane; each does two
// rounds, and a vector of four schedule words serves two of them.
__attribute__((target("sha,sse4.1,ssse3"))) static void compress_x86(uint32_t state[8], const uint8_t* blocks,
                                                                     size_t count) {
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0bll, 0x0405060700010203ll);
  const __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i*)state), 0xb1);
  const __m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i*)(state + 4)), 0x1b);
  __m128i abef = _mm_alignr_epi8(badc, hgfe, 8);
  __m128i cdgh = _mm_blend_epi16(hgfe, badc, 0xf0);
  for (; count != 0; count--, blocks += BLOCK_BYTES) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i w[4];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
      if (i < 4) {
        w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i*)(blocks + 16 * i)), big_endian);
      } else {
        const __m128i last = w[(i + 3) & 3];
        const __m128i middle = _mm_alignr_epi8(last, w[(i + 2) & 3], 4);
        const __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(w[i & 3], w[(i + 1) & 3]), middle);
        w[i & 3] = _mm_sha256msg2_epu32(sum, last);
      }
      const __m128i words = _mm_add_epi32(w[i & 3], _mm_loadu_si128((const __m128i*)(ROUND + 4 * i)));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, words);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(words, 0x0e));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1b);
  const __m128i dchg = _mm_shuffle_epi32(cdgh, 0xb1);
  _mm_storeu_si128((__m128i*)state, _mm_blend_epi16(feba, dchg, 0xf0));
  _mm_storeu_si128((__m128i*)(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

static compress_fn* fastest(void) {
  unsigned a, b, c, d;
  const bool has_sse = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_SSE4_1) != 0 && (c & bit_SSSE3) != 0;
  const bool has_sha = __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & 1u << 29) != 0;
  return has_sse && has_sha ? compress_x86 : compress_portable;
}
#else
static compress_fn* fastest(void) { return compress_portable; }
#endif

static void digest(compress_fn* compress, const uint8_t* prefix, size_t prefix_bytes, const uint8_t* data, size_t bytes,
                   uint8_t out[32]) {
  uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  const uint64_t total_bits = ((uint64_t)prefix_bytes + bytes) * 8;
  uint8_t block[2 * BLOCK_BYTES];
  size_t kept = 0;
  const uint8_t* parts[2] = {prefix, data};
  const size_t sizes[2] = {prefix_bytes, bytes};
  for (int i = 0; i < 2; i++) {
    const uint8_t* at = parts[i];
    size_t left = sizes[i];
    if (kept != 0) {
      const size_t fill = left < BLOCK_BYTES - kept ? left : BLOCK_BYTES - kept;
      if (fill != 0) memcpy(block + kept, at, fill);
      kept += fill;
      at += fill;
      left -= fill;
      if (kept == BLOCK_BYTES) {
        compress(state, block, 1);
        kept = 0;
      }
    }
    if (left == 0) continue;
    compress(state, at, left / BLOCK_BYTES);
    kept = left % BLOCK_BYTES;
    memcpy(block, at + left - kept, kept);
  }
  const size_t end = kept + 9 <= BLOCK_BYTES ? BLOCK_BYTES : sizeof block;
  memset(block + kept, 0, end - kept);
  block[kept] = 0x80;
  for (int i = 0; i < 8; i++) block[end - 1 - i] = (uint8_t)(total_bits >> 8 * i);
  compress(state, block, end / BLOCK_BYTES);
  for (int i = 0; i < 32; i++) out[i] = (uint8_t)(state[i / 4] >> (24 - 8 * (i % 4)));
}

void orion_sha256(const void* prefix, size_t prefix_bytes, const void* data, size_t bytes, uint8_t out[32]) {
  digest(fastest(), prefix, prefix_bytes, data, bytes, out);
}

void orion_sha256_portable(const void* prefix, size_t prefix_bytes, const void* data, size_t bytes, uint8_t out[32]) {
  digest(compress_portable, prefix, prefix_bytes, data, bytes, out);
}
