// Copies between what a program may name: device memory, pinned memory in the arena, everything else (pageable).
#ifndef ORION_SHIM_COPY_H
#define ORION_SHIM_COPY_H

#include "memory.h"

enum orion_side { ORION_SIDE_HOST, ORION_SIDE_DEVICE };

/// One end of a copy. `pinned` is usable by the worker of `session` in place.
typedef struct orion_place {
  enum orion_side side;
  uint64_t address;
  uint64_t arena_shift;  // of pinned memory: its address plus this is the arena's
  bool pinned;
  bool is_variable;        // device memory that the program reads and writes itself
  orion_context* context;  // of device and pinned memory
} orion_place;

/// Of pinned memory of the stream's session: where the worker finds the byte that the program has at `address`.
static inline uint64_t orion_arena_offset(const orion_stream* stream, const orion_place* place, uint64_t address) {
  return address + place->arena_shift - (uint64_t)(uintptr_t)stream->session->host_base;
}

/// Classifies an address that CUDA calls a device pointer (or a unified one, when `unified`), and checks the range.
CUresult orion_place_device(uint64_t address, uint64_t bytes, bool unified, orion_place* place);
orion_place orion_place_host(const void* address, uint64_t bytes);

/// Linear copy on `stream`. `wait`: return when the destination may be used (device destinations: when the bytes are
/// taken), as the synchronous calls do.
CUresult orion_copy(orion_stream* stream, orion_place destination, orion_place source, uint64_t bytes, bool wait);
/// The same. `serializes`: between two servers in the order of all streams of the contexts, as cuMemcpyPeer is.
CUresult orion_copy_serial(orion_stream* stream, orion_place destination, orion_place source, uint64_t bytes, bool wait,
                           bool serializes);

/// Rows of a 2D or 3D region in host memory, for gathering into and scattering out of staging.
typedef struct orion_rows {
  uint8_t* first;
  uint64_t pitch_bytes, width_bytes, rows;
} orion_rows;

/// Device to pageable host in pieces through staging: `issue` submits one piece's operation into arena offset `offset`.
/// Several pieces are in flight.
typedef struct orion_pull {
  orion_stream* stream;
  uint32_t head, count;
  struct {
    uint64_t offset, value;
    orion_rows rows;
  } pieces[8];
} orion_pull;
void orion_pull_begin(orion_pull* pull, orion_stream* stream);
/// A staging block for the next piece; drains earlier ones when it has to.
CUresult orion_pull_take(orion_pull* pull, uint64_t bytes, uint64_t* offset);
/// The piece's operation is submitted: places its marker. The block is given back on any result.
CUresult orion_pull_issued(orion_pull* pull, uint64_t offset, orion_rows rows);
/// Waits for all pieces and scatters them. `result`: of the work so far; nothing is scattered after a failure.
CUresult orion_pull_end(orion_pull* pull, CUresult result);

/// A part of memory that a 2D or 3D copy reads or writes: its first row, and how far rows and slices are apart.
typedef struct orion_region {
  orion_place place;
  uint64_t pitch_bytes, rows;  // rows of one slice in memory, used or not
} orion_region;

typedef struct orion_volume {
  uint64_t width_bytes, height, depth;
} orion_volume;

/// What a program says of one end of a copy.
typedef struct orion_copy_end {
  CUmemorytype type;
  const void* host;
  CUdeviceptr device;
  size_t x_bytes, y, z, pitch_bytes, rows;
} orion_copy_end;

// copy_rows.c
CUresult orion_region_of(const orion_copy_end* end, const orion_volume* volume, orion_region* region);
static inline uint64_t orion_row_address(const orion_region* r, uint64_t y, uint64_t z) {
  return r->place.address + (z * r->rows + y) * r->pitch_bytes;
}

/// Rows of one slice that pass through staging at once, without gaps at `arena_offset`.
typedef struct orion_copy_piece {
  uint64_t first_row, slice, x_bytes, arena_offset, bulk_seq;
  orion_volume size;
} orion_copy_piece;

/// Submits the operation between a piece and the copy's other end, which lies on the device.
typedef CUresult (*orion_submit_piece)(orion_stream* stream, const void* device, const orion_copy_piece* piece);
CUresult orion_push_rows(orion_stream* stream, const orion_region* from, const orion_volume* volume,
                         orion_submit_piece submit, const void* device);
CUresult orion_pull_rows(orion_stream* stream, const orion_region* to, const orion_volume* volume,
                         orion_submit_piece submit, const void* device);

/// One end of a copy: an array and a corner in it, or memory (no array).
typedef struct orion_copy_side {
  struct orion_array* array;
  uint64_t x_bytes, y, z;
  orion_region region;
} orion_copy_side;
/// copy_array.c: between a piece and a side that lies on the device.
CUresult orion_side_submit(orion_stream* stream, const orion_copy_side* side, const orion_copy_piece* piece,
                           bool to_device);

/// Makes page-locked memory of the program visible to the worker for an operation that the stream gets next, with what
/// the stream's earlier host functions write to it. Returns the operation's bulk_seq.
uint64_t orion_push_program_memory(orion_stream* stream, uint64_t offset, uint64_t bytes);

/// Gives a staging block back behind the stream's work so far.
CUresult orion_staging_give_behind(orion_stream* stream, uint64_t offset);

/// Synchronous end of a copy that the program waits for: marker, wait, errors of this thread.
CUresult orion_copy_wait(orion_stream* stream);

#define ORION_COPY_PIECE_BYTES (2ull << 20)

#endif
