#include "upload.h"

CUresult orion_upload_take(orion_upload* upload, orion_session* session, uint64_t bytes) {
  *upload = (orion_upload){.session = session, .bytes = (bytes + 4095) & ~4095ull};
  if (bytes <= ORION_STAGING_LIMIT_BYTES) {
    upload->is_staging = true;
    return orion_staging_take(session, bytes, &upload->offset);
  }
  uint8_t* start = orion_arena_allocate(session, upload->bytes);
  if (start == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  upload->offset = (uint64_t)(start - session->host_base);
  return CUDA_SUCCESS;
}

void orion_upload_give(orion_upload* upload) {
  if (upload->is_staging) {
    orion_staging_give(upload->session, upload->offset, 0, 0);
  } else {
    orion_arena_free(upload->session, orion_upload_address(upload), upload->bytes);
  }
}
