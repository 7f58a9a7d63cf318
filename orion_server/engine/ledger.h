// What this worker's session has of each GPU's memory, charged against what orion-server grants (orion_seat.h). Without
// a seat all of it succeeds and costs nothing.
//
// Kinds whose size is known are charged before the driver is called and given back when it refuses: the ledger is never
// above the grant. Of the others the driver's free memory tells, before and after: see ledger_settle.
#ifndef ORION_ENGINE_LEDGER_H
#define ORION_ENGINE_LEDGER_H

#include "internal.h"

/// The grant is too small, but orion-server has been asked for more: the operation is to be tried again. No CUresult.
#define LEDGER_WAITS (-2)

/// Charges `bytes` to a device (index into e->devices) for an operation that can be tried again. 0,
/// CUDA_ERROR_OUT_OF_MEMORY, or LEDGER_WAITS: for a second at most.
int32_t ledger_charge(orion_engine* e, const orion_op* op, uint32_t device, enum orion_memory_kind kind,
                      uint64_t bytes);
/// The same for one that cannot: waits for orion-server's answer, for 20 ms at most. 0 or CUDA_ERROR_OUT_OF_MEMORY.
int32_t ledger_charge_now(orion_engine* e, uint32_t device, enum orion_memory_kind kind, uint64_t bytes);
void ledger_uncharge(orion_engine* e, uint32_t device, enum orion_memory_kind kind, uint64_t bytes);
/// Whether a question of a waiting operation has been answered, or has waited too long.
bool ledger_answered(const orion_engine* e);

/// Free memory of a device, of which a context is current, before a call that takes an unknown part of it.
typedef struct ledger_mark {
  uint64_t free_bytes;
  bool taken;  // false: the device has no limit, and nothing is measured
} ledger_mark;
ledger_mark ledger_begin(const orion_engine* e, uint32_t device);
/// Charges what the device has less since the mark, `most_bytes` of it at most: what other processes take meanwhile
/// looks the same. CUDA_ERROR_OUT_OF_MEMORY: nothing is charged, and the caller undoes its call. `*charged_bytes` grows
/// by what was charged.
int32_t ledger_settle(orion_engine* e, uint32_t device, enum orion_memory_kind kind, ledger_mark mark,
                      uint64_t most_bytes, uint64_t* charged_bytes);
/// The same for a call that cannot be undone: charged in any case. CUDA_ERROR_OUT_OF_MEMORY: over the grant, so that
/// later allocations fail.
int32_t ledger_settle_anyway(orion_engine* e, uint32_t device, enum orion_memory_kind kind, ledger_mark mark,
                             uint64_t most_bytes, uint64_t* charged_bytes);
/// The most that loading an image of so many bytes may be charged.
static inline uint64_t ledger_image_most(uint64_t image_bytes) { return 16 * image_bytes + (64ull << 20); }

/// Settles the first use of a function, whose code may be loaded only then and stays with its module.
int32_t ledger_function(orion_engine* e, uint32_t module, ledger_mark mark);

/// Pinned host memory, which has a quota of its own.
bool ledger_pin(orion_engine* e, uint64_t bytes);
void ledger_unpin(orion_engine* e, uint64_t bytes);

/// An upper bound of what an array or mipmapped array takes, in bytes; UINT64_MAX: more than any GPU has.
uint64_t ledger_array_bytes(const CUDA_ARRAY3D_DESCRIPTOR* descriptor, uint32_t levels);

/// Before the first launch of a kernel with more local memory than any before it in its context: the driver then gives
/// each thread that the device can hold so much, and keeps it. 0 or CUDA_ERROR_OUT_OF_MEMORY.
int32_t ledger_local_grow(orion_engine* e, uint32_t context, uint32_t local_bytes);
static inline int32_t ledger_local(orion_engine* e, uint32_t context, uint32_t local_bytes) {
  return local_bytes <= e->ledger.contexts[context].local_bytes ? 0 : ledger_local_grow(e, context, local_bytes);
}
/// cuCtxSetLimit of the current context, within the grant. 0 or a CUresult.
int32_t ledger_set_limit(orion_engine* e, uint32_t context, uint32_t limit, uint64_t value);
/// Limits are what they were before the program changed them, as after a reset of the device.
void ledger_reset_limits(orion_engine* e, uint32_t context);
/// Gives back what is charged to the context itself.
void ledger_context_end(orion_engine* e, uint32_t context);

/// What programs see of a device; false: it has no quota, and the driver's own figures hold. Both in bytes; as much as
/// is free can be allocated at once.
bool ledger_view(const orion_engine* e, uint32_t device, uint64_t* free_bytes, uint64_t* total_bytes);
/// DEVICE_MEMORY: answers.
void ledger_device_memory(orion_engine* e, const orion_op* op);

#endif
