// How the bytes of a plain TCP lane travel where they are encrypted: cut into records, each sealed with a key that
// belongs to one lane and one direction and with a nonce that counts the lane's records. A record that was changed,
// left out, repeated, moved to another lane or sent back cannot be opened, and ends the session.
//
// A record: length of the plaintext (4 bytes, authenticated), the ciphertext, a tag. Records cut a stream of bytes;
// they know nothing of frames.
#ifndef ORION_SEAL_H
#define ORION_SEAL_H

#include <sodium.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "orion_lanes.h"

#define ORION_RECORD_BYTES (64u << 10)  // of plaintext, at most: sealed in one cache and sent in one system call
#define ORION_RECORD_HEAD 4u
#define ORION_RECORD_TAG 16u
#define ORION_RECORD_EXTRA (ORION_RECORD_HEAD + ORION_RECORD_TAG)
#define ORION_RECORD_MOST (ORION_RECORD_BYTES + ORION_RECORD_EXTRA)
// After that many records the key is replaced by one derived from it: at most 256 GiB under one key, far below where
// AES-GCM's bounds begin to matter, and what was sent before cannot be read with a key that is stolen later.
#ifndef ORION_SEAL_REKEY
#define ORION_SEAL_REKEY (1u << 22)
#endif
#define ORION_SESSION_KEY_BYTES 32u  // the session's token

enum orion_direction { ORION_TO_WORKER = 1, ORION_TO_CLIENT = 2 };

// The first bytes of an encrypted lane, in clear; behind them the greeting, sealed. Which key to try is all that it
// says.
#define ORION_SEALED_MAGIC 0x3144455341455324ull
typedef struct orion_sealed_preamble {
  uint64_t magic;
  uint64_t lane;
} orion_sealed_preamble;

/// One direction of one lane. Used by one thread at a time.
typedef struct orion_seal {
  crypto_aead_aes256gcm_state aes;
  uint8_t key[32];
  uint64_t count;  // records so far: the nonce
  enum orion_cipher cipher;
} orion_seal;

/// Whether this machine can use a cipher. AES without instructions for it would be slow and leak through caches.
static inline bool orion_cipher_usable(enum orion_cipher cipher) {
  if (sodium_init() < 0) return false;
  return cipher == ORION_CIPHER_CHACHA20POLY1305 ||
         (cipher == ORION_CIPHER_AES256GCM && crypto_aead_aes256gcm_is_available());
}

static inline void orion_seal_use_key(orion_seal* seal) {
  if (seal->cipher == ORION_CIPHER_AES256GCM) crypto_aead_aes256gcm_beforenm(&seal->aes, seal->key);
}

/// `cipher` is usable. The same token, lane and direction never begin twice on one end that seals.
static inline void orion_seal_begin(orion_seal* seal, enum orion_cipher cipher,
                                    const uint8_t token[ORION_SESSION_KEY_BYTES], enum orion_direction direction,
                                    uint32_t lane) {
  const uint8_t purpose[] = {
      'o', 'r', 'i', 'o', 'n', ' ', 'l', 'a', 'n', 'e', (uint8_t)cipher, (uint8_t)direction, (uint8_t)lane};
  seal->cipher = cipher;
  seal->count = 0;
  crypto_generichash_blake2b(seal->key, sizeof seal->key, purpose, sizeof purpose, token, ORION_SESSION_KEY_BYTES);
  orion_seal_use_key(seal);
}

static inline void orion_seal_next(orion_seal* seal) {
  static const uint8_t purpose[] = "orion next key";
  if (++seal->count % ORION_SEAL_REKEY) return;
  uint8_t next[32];
  crypto_generichash_blake2b(next, sizeof next, purpose, sizeof purpose, seal->key, sizeof seal->key);
  memcpy(seal->key, next, sizeof next);
  sodium_memzero(next, sizeof next);
  orion_seal_use_key(seal);
}

static inline void orion_seal_nonce(const orion_seal* seal, uint8_t nonce[12]) {
  memset(nonce, 0, 4);
  memcpy(nonce + 4, &seal->count, 8);
}

/// Seals 1 to ORION_RECORD_BYTES bytes into `record`, which has room for ORION_RECORD_EXTRA more. `from` may be
/// record + ORION_RECORD_HEAD. Returns the bytes of the record.
static inline size_t orion_seal_put(orion_seal* seal, uint8_t* record, const uint8_t* from, size_t bytes) {
  const uint32_t length = (uint32_t)bytes;
  uint8_t nonce[12];
  orion_seal_nonce(seal, nonce);
  memcpy(record, &length, sizeof length);
  uint8_t* to = record + ORION_RECORD_HEAD;
  if (seal->cipher == ORION_CIPHER_AES256GCM)
    crypto_aead_aes256gcm_encrypt_afternm(to, NULL, from, bytes, record, ORION_RECORD_HEAD, NULL, nonce, &seal->aes);
  else
    crypto_aead_chacha20poly1305_ietf_encrypt(to, NULL, from, bytes, record, ORION_RECORD_HEAD, NULL, nonce, seal->key);
  orion_seal_next(seal);
  return bytes + ORION_RECORD_EXTRA;
}

/// Bytes of plaintext that a record's first four bytes announce; 0 when no end of ours has written them.
static inline size_t orion_record_bytes(const uint8_t* record) {
  uint32_t length;
  memcpy(&length, record, sizeof length);
  return length <= ORION_RECORD_BYTES ? length : 0;
}

/// Opens a whole record of `bytes` of plaintext into `to`, which may be record + ORION_RECORD_HEAD. False: it is not
/// the record that the other end sealed next.
static inline bool orion_seal_open(orion_seal* seal, const uint8_t* record, size_t bytes, uint8_t* to) {
  uint8_t nonce[12];
  orion_seal_nonce(seal, nonce);
  const uint8_t* from = record + ORION_RECORD_HEAD;
  const size_t sealed = bytes + ORION_RECORD_TAG;
  const int opened = seal->cipher == ORION_CIPHER_AES256GCM
                         ? crypto_aead_aes256gcm_decrypt_afternm(to, NULL, NULL, from, sealed, record,
                                                                 ORION_RECORD_HEAD, nonce, &seal->aes)
                         : crypto_aead_chacha20poly1305_ietf_decrypt(to, NULL, NULL, from, sealed, record,
                                                                     ORION_RECORD_HEAD, nonce, seal->key);
  if (opened != 0) return false;
  orion_seal_next(seal);
  return true;
}

/// Bytes of the records that `bytes` of plaintext fill.
static inline size_t orion_sealed_bytes(size_t bytes) {
  return bytes + (bytes + ORION_RECORD_BYTES - 1) / ORION_RECORD_BYTES * ORION_RECORD_EXTRA;
}

/// Seals any number of bytes into consecutive records; `to` has room for orion_sealed_bytes. Returns their bytes.
static inline size_t orion_seal_stream(orion_seal* seal, uint8_t* to, const uint8_t* from, size_t bytes) {
  size_t used = 0;
  for (size_t at = 0; at < bytes;) {
    const size_t piece = bytes - at < ORION_RECORD_BYTES ? bytes - at : ORION_RECORD_BYTES;
    used += orion_seal_put(seal, to + used, from + at, piece);
    at += piece;
  }
  return used;
}

#endif
