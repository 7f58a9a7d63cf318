// A worker's seat: what orion-server grants it of each GPU, and what it takes. Memory of those two alone; no client
// maps it. Every field has one writer. What the worker writes is hostile to the server: it runs a tenant's kernels.
//
// Memory. The worker adds to charged_bytes, then looks at granted_bytes, and takes its addition back when that is less
// (both sequentially consistent): the server may lower the grant at any time and sees, afterwards, whether it came too
// late. A worker that needs more asks: asked_bytes, then asked + 1, then the doorbell; it is answered when
// answered == asked, whatever the grant is then.
//
// GPU time. A grant is a number, greater than the last one. The worker holds it while returned != grant. It admits work
// while it holds one, recalled != grant and what it has admitted in this grant is below budget_ns, and sets returned
// when nothing of it is left in flight. budget_ns may grow while a grant lasts. A worker with work and no grant sets
// wants and rings the doorbell.
//
// Residency. When residency becomes odd, the worker lets what runs end, moves its memory to the host and gives it back
// to the driver; all work waits from then on, until an even value has brought it back to the same addresses. The server
// does so only to a worker that holds no grant.
#ifndef ORION_SEAT_H
#define ORION_SEAT_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdint.h>

#define ORION_SEAT_MAGIC 0x0053414553u
#define ORION_SEAT_VERSION 1u
#define ORION_SEAT_DEVICES 64u
#define ORION_SEAT_NO_LIMIT UINT64_MAX

// What device memory is charged for.
enum orion_memory_kind {
  ORION_MEMORY_BUFFER,   // cuMemAlloc, cuMemAllocPitch, pools, graph allocations: MEM_MAP
  ORION_MEMORY_VIRTUAL,  // cuMemCreate
  ORION_MEMORY_ARRAY,    // arrays and mipmapped arrays
  ORION_MEMORY_MODULE,   // images: code, globals, local memory that their kernels need
  ORION_MEMORY_CONTEXT,  // contexts that the program adds
  ORION_MEMORY_LIMIT,    // heap, stack, printf buffer: cuCtxSetLimit
  ORION_MEMORY_GRAPH,    // executable graphs
  ORION_MEMORY_KINDS
};

typedef struct orion_seat_device {
  // by orion-server: memory
  alignas(64) _Atomic uint64_t granted_bytes;  // charged_bytes may not exceed it; ORION_SEAT_NO_LIMIT
  _Atomic uint64_t quota_bytes;                // of the vGPU, what programs see as total; 0: no quota
  _Atomic uint64_t others_bytes;               // charged by other workers of the same vGPU, when the server last looked
  _Atomic uint64_t answered;
  // by orion-server: GPU time
  alignas(64) _Atomic uint64_t grant;  // 0: none yet
  _Atomic uint64_t budget_ns;          // written before the grant; ORION_SEAT_NO_LIMIT: nobody else wants the GPU
  _Atomic uint64_t recalled;           // number of a grant that shall end
  _Atomic uint64_t is_limited;         // 0: work needs no grant on this GPU (no vGPU, or nothing to share)
  // by orion-server: where the memory is
  alignas(64) _Atomic uint64_t residency;  // grows; odd: it shall go to host memory, even: it shall be on the GPU
  _Atomic uint64_t backing_granted_bytes;  // host memory that the worker may keep for it
  // by the worker: memory
  alignas(64) _Atomic uint64_t charged_bytes;
  _Atomic uint64_t kind_bytes[ORION_MEMORY_KINDS];  // of it; for people
  _Atomic uint64_t asked, asked_bytes;              // asked_bytes: what charged_bytes shall become
  // by the worker: GPU time
  alignas(64) _Atomic uint64_t wants;  // 1: work waits for a grant
  _Atomic uint64_t returned;           // number of the last grant of which nothing is in flight
  _Atomic uint64_t ending;             // number of a grant whose last work is about to end: the next may be given
  _Atomic uint64_t spent_ns;           // measured GPU time of all work so far
  _Atomic uint64_t in_flight_ns;       // estimate of work admitted and not yet measured
  _Atomic uint64_t throttled_ns;       // time in which work waited for a grant
  _Atomic uint64_t works;              // operations admitted: launches, graph launches, fills, copies on the device
  _Atomic uint64_t cold_works;         // of them, those without an estimate
  // by the worker: where the memory is
  alignas(64) _Atomic uint64_t residency_done;  // the last value of residency that has been reached
  _Atomic uint64_t residency_failed;            // the last one that could not be: no memory here or there
  _Atomic uint64_t wants_residency;             // 1: work waits for memory that is not on the GPU
  _Atomic uint64_t out_bytes;                   // of charged_bytes, what lies in host memory alone
  _Atomic uint64_t backing_bytes;               // host memory kept for it
  _Atomic uint64_t moved_out_bytes, moved_in_bytes, moving_out_ns, moving_in_ns;
} orion_seat_device;

typedef struct orion_seat {
  uint32_t magic, version;                // by the server, before the worker starts
  alignas(64) _Atomic uint32_t wake;      // futex; the server adds 1 after it has changed something, and writes wake_fd
  _Atomic uint64_t pinned_granted_bytes;  // by the server: pinned host memory; ORION_SEAT_NO_LIMIT
  alignas(64) _Atomic uint64_t pinned_bytes;  // by the worker
  _Atomic uint32_t polls;  // by the worker: 1: it sleeps on descriptors, wake_fd among them; 0: on the futex
  orion_seat_device devices[ORION_SEAT_DEVICES];  // by the server's ordinals
} orion_seat;

#endif
