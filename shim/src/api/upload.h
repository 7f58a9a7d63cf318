// How images reach the worker: small ones through staging, larger ones by content, uploaded in pieces where nobody on
// the server's side has them yet.
#ifndef ORION_SHIM_UPLOAD_H
#define ORION_SHIM_UPLOAD_H

#include "session.h"

#define ORION_STAGING_LIMIT_BYTES ORION_IMAGE_OFFER_MIN_SHM_BYTES
#define ORION_IMAGE_IN_ARENA 0xffffffffu

/// Temporary arena memory: staging when small enough, else a range of the arena.
typedef struct orion_upload {
  orion_session* session;
  uint64_t offset, bytes;
  bool is_staging;
} orion_upload;

CUresult orion_upload_take(orion_upload* upload, orion_session* session, uint64_t bytes);
void orion_upload_give(orion_upload* upload);
static inline uint8_t* orion_upload_address(const orion_upload* upload) {
  return upload->session->host_base + upload->offset;
}

/// What names an image: its size and hash. The hash is made at the first offer and kept with the library.
typedef struct orion_image {
  const void* data;
  uint64_t bytes;
  bool hashed;
  uint8_t hash[32];
} orion_image;

/// Brings an image to the worker under a fresh index, which the load that names it consumes. The index goes back with
/// orion_image_give once that load has been answered.
CUresult orion_image_send(orion_session* session, orion_image* image, uint32_t* index);
void orion_image_give(uint32_t index);

/// An image (in the arena when small) and the space for its logs, ready for a load.
typedef struct orion_shipment {
  orion_upload upload;
  bool has_upload;
  uint32_t image;  // ORION_IMAGE_IN_ARENA or an index
  uint64_t image_off, log_off, bulk_seq;
  uint8_t* logs;  // NULL without
} orion_shipment;

CUresult orion_shipment_make(orion_shipment* shipment, orion_session* session, orion_image* image, uint64_t log_bytes);
void orion_shipment_end(orion_shipment* shipment);

#endif
