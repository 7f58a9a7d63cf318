#include "upload.h"

#include <stdlib.h>
#include <string.h>

#include "../session/futex.h"
#include "../session/stats.h"
#include "handles.h"
#include "sha256.h"

#define IMAGES 1024u
#define PIECE_BYTES (4ull << 20)

enum { UPLOAD = 0, HERE = 1, PROVE = 2 };  // what the worker answers to an offer

typedef struct image_index {
  orion_entry entry;
} image_index;

static orion_table indices = {.tag = 0,
                              .entry_bytes = sizeof(image_index),
                              .limit = IMAGES,
                              .next_unused = 1,
                              .mutex = PTHREAD_MUTEX_INITIALIZER};

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

static CUresult offer(orion_session* session, const orion_image* image, uint32_t index,
                      orion_reply_image_offer* reply) {
  orion_op_image_offer op = {.op = {.code = ORION_OP_IMAGE_OFFER}, .image = index, .size_bytes = image->bytes};
  memcpy(&op.hash_0, image->hash, sizeof image->hash);
  return orion_call(session, &op.op, sizeof op, NULL, 0, reply, sizeof *reply, NULL);
}

static void hash(const void* prefix, size_t prefix_bytes, const orion_image* image, uint8_t out[32]) {
  const uint64_t began_ns = orion_now_ns();
  orion_sha256(prefix, prefix_bytes, image->data, image->bytes, out);
  atomic_fetch_add(&orion_images.hash_ns, orion_now_ns() - began_ns);
}

static void count(_Atomic uint64_t* images, _Atomic uint64_t* bytes, const orion_image* image) {
  atomic_fetch_add(images, 1);
  atomic_fetch_add(bytes, image->bytes);
}

/// The server has the image but gives it only to those who have it too: a hash that leaked is no key to the bytes.
static CUresult prove(orion_session* session, const orion_image* image, uint32_t index,
                      const orion_reply_image_offer* challenge, uint32_t* state) {
  uint8_t proof[32];
  orion_op_image_prove op = {.op = {.code = ORION_OP_IMAGE_PROVE}, .image = index};
  hash(&challenge->nonce_0, sizeof proof, image, proof);
  memcpy(&op.proof_0, proof, sizeof proof);
  orion_reply_image_prove reply = {0};
  const CUresult result = orion_call(session, &op.op, sizeof op, NULL, 0, &reply, sizeof reply, NULL);
  *state = reply.state;
  return result;
}

static CUresult send_pieces(orion_session* session, const orion_image* image, uint32_t index) {
  uint64_t offset;
  const uint64_t piece = image->bytes < PIECE_BYTES ? image->bytes : PIECE_BYTES;
  CUresult result = orion_staging_take(session, piece, &offset);
  if (result != CUDA_SUCCESS) return result;
  for (uint64_t at = 0; at < image->bytes && result == CUDA_SUCCESS; at += piece) {
    const uint64_t bytes = image->bytes - at < piece ? image->bytes - at : piece;
    memcpy(session->host_base + offset, (const uint8_t*)image->data + at, bytes);
    orion_op_image_data op = {
        .op = {.code = ORION_OP_IMAGE_DATA}, .image = index, .at = at, .arena_off = offset, .size_bytes = bytes};
    op.op.bulk_seq = orion_push_host(session, offset, bytes);
    result = orion_call(session, &op.op, sizeof op, NULL, 0, NULL, 0, NULL);
  }
  orion_staging_give(session, offset, 0, 0);
  return result;
}

CUresult orion_image_send(orion_session* session, orion_image* image, uint32_t* index) {
  image_index* entry = orion_table_take(&indices);
  if (entry == NULL) return CUDA_ERROR_OUT_OF_MEMORY;
  *index = entry->entry.index;
  if (!image->hashed) {
    hash(NULL, 0, image, image->hash);
    image->hashed = true;
  }
  orion_reply_image_offer reply = {0};
  CUresult result = offer(session, image, *index, &reply);
  if (result != CUDA_SUCCESS) {
    orion_table_give(&indices, entry);  // a refused offer has opened nothing
    return result;
  }
  uint32_t state = reply.state;
  if (state == PROVE) result = prove(session, image, *index, &reply, &state);
  if (result == CUDA_SUCCESS && state == UPLOAD) {
    result = send_pieces(session, image, *index);
    count(&orion_images.uploaded, &orion_images.uploaded_bytes, image);
  } else if (result == CUDA_SUCCESS) {
    count(&orion_images.known, &orion_images.known_bytes, image);
  }
  if (result != CUDA_SUCCESS) {
    orion_op_image_drop op = {.op = {.code = ORION_OP_IMAGE_DROP}, .image = *index};
    (void)orion_submit(session, &op.op, sizeof op, NULL, 0);
    orion_table_give(&indices, entry);
  }
  return result;
}

void orion_image_give(uint32_t index) { orion_table_give(&indices, orion_table_at(&indices, index)); }

CUresult orion_shipment_make(orion_shipment* shipment, orion_session* session, orion_image* image, uint64_t log_bytes) {
  *shipment = (orion_shipment){.image = ORION_IMAGE_IN_ARENA};
  const bool in_arena = image->bytes < session->image_offer_min_bytes;
  const uint64_t log_at = in_arena ? (image->bytes + 63) & ~63ull : 0;
  if (!in_arena) {
    const CUresult result = orion_image_send(session, image, &shipment->image);
    if (result != CUDA_SUCCESS) return result;
  }
  if (in_arena || log_bytes != 0) {
    const CUresult result = orion_upload_take(&shipment->upload, session, log_at + log_bytes);
    if (result != CUDA_SUCCESS) {
      if (!in_arena) {
        orion_op_image_drop op = {.op = {.code = ORION_OP_IMAGE_DROP}, .image = shipment->image};
        (void)orion_submit(session, &op.op, sizeof op, NULL, 0);
        orion_image_give(shipment->image);
      }
      return result;
    }
    shipment->has_upload = true;
    shipment->image_off = shipment->upload.offset;
    shipment->log_off = shipment->upload.offset + log_at;
    shipment->logs = session->host_base + shipment->log_off;
  }
  if (in_arena) {
    memcpy(orion_upload_address(&shipment->upload), image->data, image->bytes);
    shipment->bulk_seq = orion_push_host(session, shipment->image_off, image->bytes);
    count(&orion_images.small, &orion_images.small_bytes, image);
  }
  return CUDA_SUCCESS;
}

void orion_shipment_end(orion_shipment* shipment) {
  if (shipment->has_upload) orion_upload_give(&shipment->upload);
  if (shipment->image != ORION_IMAGE_IN_ARENA) orion_image_give(shipment->image);
}
