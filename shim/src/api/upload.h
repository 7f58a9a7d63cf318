// Temporary arena memory for images: staging when small enough, else a range of the arena.
#ifndef ORION_SHIM_UPLOAD_H
#define ORION_SHIM_UPLOAD_H

#include "session.h"

#define ORION_STAGING_LIMIT_BYTES (4ull << 20)

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

#endif
