// Two processes that share device memory: CUDA IPC and exported memory handles.
#include "cuda_types.h"

#define CALLS(X)                                                                                          \
  X(cuDeviceGetAttribute, (int*, CUdevice_attribute, CUdevice))                                           \
  X(cuIpcGetMemHandle, (CUipcMemHandle*, CUdeviceptr))                                                    \
  X(cuIpcOpenMemHandle_v2, (CUdeviceptr*, CUipcMemHandle, unsigned))                                      \
  X(cuIpcCloseMemHandle, (CUdeviceptr))                                                                   \
  X(cuMemExportToShareableHandle,                                                                         \
    (void*, CUmemGenericAllocationHandle, CUmemAllocationHandleType, unsigned long long))                 \
  X(cuMemImportFromShareableHandle, (CUmemGenericAllocationHandle*, void*, CUmemAllocationHandleType))    \
  X(cuMemAddressReserve, (CUdeviceptr*, size_t, size_t, CUdeviceptr, unsigned long long))                 \
  X(cuMemAddressFree, (CUdeviceptr, size_t))                                                              \
  X(cuMemCreate, (CUmemGenericAllocationHandle*, size_t, const CUmemAllocationProp*, unsigned long long)) \
  X(cuMemRelease, (CUmemGenericAllocationHandle))                                                         \
  X(cuMemMap, (CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long))            \
  X(cuMemUnmap, (CUdeviceptr, size_t))                                                                    \
  X(cuMemSetAccess, (CUdeviceptr, size_t, const CUmemAccessDesc*, size_t))                                \
  X(cuMemGetAllocationPropertiesFromHandle, (CUmemAllocationProp*, CUmemGenericAllocationHandle))         \
  X(cuMemGetAddressRange_v2, (CUdeviceptr*, size_t*, CUdeviceptr))                                        \
  X(cuMemGetInfo_v2, (size_t*, size_t*))                                                                  \
  X(cuMemAlloc_v2, (CUdeviceptr*, size_t))                                                                \
  X(cuMemFree_v2, (CUdeviceptr))                                                                          \
  X(cuMemAllocAsync, (CUdeviceptr*, size_t, CUstream))                                                    \
  X(cuMemAllocHost_v2, (void**, size_t))                                                                  \
  X(cuMemFreeHost, (void*))                                                                               \
  X(cuMemcpyHtoD_v2, (CUdeviceptr, const void*, size_t))                                                  \
  X(cuMemcpyDtoH_v2, (void*, CUdeviceptr, size_t))                                                        \
  X(cuMemsetD32_v2, (CUdeviceptr, unsigned, size_t))                                                      \
  X(cuPointerGetAttribute, (void*, CUpointer_attribute, CUdeviceptr))                                     \
  X(cuCtxSynchronize, (void))

#include "area.h"
#include "processes.h"

#define MIB ((size_t)1 << 20)
#define INVALID_CONTEXT 201

// ------------------------------------------------------------------------------------------------ the other process
enum command { OPEN = 1, CLOSE, READ, FILL, ALLOCATE, FREE, IMPORT, UNMAP, RANGE };

/// Maps memory at an address of its own, for all that the device may do.
static CUresult map_memory(CUmemGenericAllocationHandle memory, size_t bytes, CUdeviceptr* address) {
  const CUmemAccessDesc access = {{CU_MEM_LOCATION_TYPE_DEVICE, device}, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  CUresult code = cuMemAddressReserve(address, bytes, 0, 0, 0);
  if (code == 0) code = cuMemMap(*address, bytes, 0, memory, 0);
  if (code == 0) code = cuMemSetAccess(*address, bytes, &access, 1);
  return code;
}

static CUresult unmap_memory(CUdeviceptr address, size_t bytes) {
  const CUresult code = cuMemUnmap(address, bytes);
  return code != 0 ? code : cuMemAddressFree(address, bytes);
}

static CUresult begin(void) { return 0; }

static void serve(const request* r, int fd, answer* a) {
  CUmemGenericAllocationHandle memory;
  CUipcMemHandle handle;
  a->address = r->address;
  switch (r->command) {
    case OPEN:
      memcpy(&handle, r->handle, sizeof handle);
      a->code = cuIpcOpenMemHandle_v2(&a->address, handle, r->value);
      break;
    case CLOSE:
      a->code = cuIpcCloseMemHandle(r->address);
      break;
    case READ:
      a->code = cuMemcpyDtoH_v2(&a->value, r->address, sizeof a->value);
      break;
    case FILL:
      a->code = cuMemsetD32_v2(r->address, r->value, r->bytes / 4);
      if (a->code == 0) a->code = cuCtxSynchronize();
      break;
    case ALLOCATE:
      a->code = cuMemAlloc_v2(&a->address, r->bytes);
      if (a->code == 0) a->code = cuMemsetD32_v2(a->address, r->value, r->bytes / 4);
      if (a->code == 0) a->code = cuCtxSynchronize();
      if (a->code == 0) a->code = cuIpcGetMemHandle(&handle, a->address);
      memcpy(a->handle, &handle, sizeof handle);
      break;
    case FREE:
      a->code = cuMemFree_v2(r->address);
      break;
    case IMPORT:
      a->code = cuMemImportFromShareableHandle(&memory, (void*)(intptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
      if (a->code == 0) a->code = map_memory(memory, r->bytes, &a->address);
      if (a->code == 0) a->code = cuMemRelease(memory);
      break;
    case UNMAP:
      a->code = unmap_memory(r->address, r->bytes);
      break;
    case RANGE:
      a->code = cuMemGetAddressRange_v2(&a->address, &a->bytes, r->address);
      break;
    default:
      break;
  }
}

static answer open_in(process p, const CUipcMemHandle* handle) {
  request r = {.command = OPEN, .value = CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS};
  memcpy(r.handle, handle, sizeof r.handle);
  return tell_with(p, r, -1);
}

static unsigned value_at(CUdeviceptr address) {
  unsigned value = 0;
  OK(cuMemcpyDtoH_v2(&value, address, sizeof value));
  return value;
}

// ------------------------------------------------------------------------------------------------ sections
static void test_memory(void) {
  CUdeviceptr memory;
  CUipcMemHandle handle, again, inside;
  OK(cuMemAlloc_v2(&memory, 8 * MIB));
  OK(cuMemsetD32_v2(memory, 0x11223344, 2 * MIB));
  OK(cuCtxSynchronize());  // other processes' reads are not behind it
  OK(cuIpcGetMemHandle(&handle, memory));
  OK(cuIpcGetMemHandle(&again, memory));
  OK(cuIpcGetMemHandle(&inside, memory + 5 * MIB));
  NOTE(memcmp(&handle, &again, sizeof handle) == 0);
  NOTE(memcmp(&handle, &inside, sizeof handle) == 0);
  const process p = start();
  const answer opened = open_in(p, &handle);
  IS(0, opened.code);
  IS(0x11223344, TELL(p, READ, opened.address).value);
  IS(0x11223344, TELL(p, READ, opened.address + 8 * MIB - 4).value);
  const answer range = TELL(p, RANGE, opened.address + 5 * MIB);
  IS(0, range.code);
  IS(opened.address, range.address);
  NOTE(range.bytes);
  // both ways
  IS(0, TELL(p, FILL, opened.address + 4 * MIB, 4 * MIB, 7).code);
  IS(7, value_at(memory + 4 * MIB));
  IS(0x11223344, value_at(memory + 4 * MIB - 4));
  OK(cuMemsetD32_v2(memory, 99, 1));
  OK(cuCtxSynchronize());
  IS(99, TELL(p, READ, opened.address).value);
  // the handle of an address inside opens the same allocation
  const answer second = open_in(p, &inside);
  IS(0, second.code);
  IS(opened.address, second.address);
  IS(0, TELL(p, CLOSE, opened.address).code);
  IS(99, TELL(p, READ, opened.address).value);  // opened twice, closed once
  IS(0, TELL(p, CLOSE, opened.address).code);
  IS(1, TELL(p, CLOSE, opened.address).code);
  IS(1, TELL(p, RANGE, opened.address).code == 0 ? 0 : 1);
  // and once more after it was closed
  const answer third = open_in(p, &handle);
  IS(0, third.code);
  IS(99, TELL(p, READ, third.address).value);
  NOTE(TELL(p, FREE, third.address).code);
  NOTE(TELL(p, CLOSE, third.address).code);
  IS(0, finish(p));
  IS(99, value_at(memory));
  OK(cuMemFree_v2(memory));
}

static void test_small(void) {
  // what is smaller than the driver's own unit
  CUdeviceptr a, b;
  CUipcMemHandle of_a, of_b;
  OK(cuMemAlloc_v2(&a, 1000));
  OK(cuMemAlloc_v2(&b, 4096));
  OK(cuMemsetD32_v2(a, 1, 250));
  OK(cuMemsetD32_v2(b, 2, 1024));
  OK(cuCtxSynchronize());
  OK(cuIpcGetMemHandle(&of_a, a));
  OK(cuIpcGetMemHandle(&of_b, b));
  const process p = start();
  const answer in_a = open_in(p, &of_a), in_b = open_in(p, &of_b);
  IS(0, in_a.code);
  IS(0, in_b.code);
  IS(1, TELL(p, READ, in_a.address).value);
  IS(2, TELL(p, READ, in_b.address).value);
  NOTE(in_b.address - in_a.address == b - a);
  IS(0, TELL(p, CLOSE, in_a.address).code);
  IS(2, TELL(p, READ, in_b.address + 4092).value);
  IS(0, TELL(p, FILL, in_b.address, 4096, 3).code);
  IS(0, TELL(p, CLOSE, in_b.address).code);
  IS(3, value_at(b));
  IS(1, value_at(a));
  IS(0, finish(p));
  OK(cuMemFree_v2(a));
  OK(cuMemFree_v2(b));
}

static void test_refusals(void) {
  CUdeviceptr memory, pooled, opened = 0;
  void* host;
  CUipcMemHandle handle, broken;
  OK(cuMemAlloc_v2(&memory, 4 * MIB));
  OK(cuIpcGetMemHandle(&handle, memory));
  CODE(INVALID_CONTEXT, cuIpcOpenMemHandle_v2(&opened, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS));
  CODE(1, cuIpcGetMemHandle(NULL, memory));
  CODE(1, cuIpcGetMemHandle(&broken, 0));
  CODE(1, cuIpcGetMemHandle(&broken, 4096));
  CODE(1, cuIpcCloseMemHandle(memory));
  CODE(1, cuIpcCloseMemHandle(0));
  OK(cuMemAllocAsync(&pooled, MIB, NULL));
  OK(cuCtxSynchronize());
  CODE(1, cuIpcGetMemHandle(&broken, pooled));
  OK(cuMemFree_v2(pooled));
  OK(cuMemAllocHost_v2(&host, 4096));
  CODE(1, cuIpcGetMemHandle(&broken, (CUdeviceptr)(uintptr_t)host));
  OK(cuMemFreeHost(host));
  const process p = start();
  memset(&broken, 0, sizeof broken);
  TRUE(open_in(p, &broken).code != 0);
  NOTE(open_in(p, &broken).code);
  memset(&broken, 0xa5, sizeof broken);
  TRUE(open_in(p, &broken).code != 0);
  for (size_t i = 0; i < sizeof handle.reserved; i += 7) {
    broken = handle;
    broken.reserved[i] ^= 0x40;
    NOTE(open_in(p, &broken).code);
  }
  request r = {.command = OPEN, .value = 0};
  memcpy(r.handle, &handle, sizeof handle);
  IS(1, tell_with(p, r, -1).code);
  r.value = 2;
  IS(1, tell_with(p, r, -1).code);
  // what the exporter has freed cannot be opened any more
  OK(cuMemFree_v2(memory));
  OK(cuCtxSynchronize());
  NOTE(open_in(p, &handle).code);
  IS(0, finish(p));
}

static void test_ends(void) {
  // the other process makes memory, which lives on here when that process is gone
  const process p = start();
  answer made = TELL(p, .command = ALLOCATE, .bytes = 4 * MIB, .value = 42);
  IS(0, made.code);
  CUipcMemHandle handle;
  memcpy(&handle, made.handle, sizeof handle);
  CUdeviceptr opened;
  OK(cuIpcOpenMemHandle_v2(&opened, handle, CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS));
  IS(42, value_at(opened));
  IS(0, TELL(p, FREE, made.address).code);
  IS(42, value_at(opened));
  end_at_once(p);
  IS(42, value_at(opened));
  OK(cuMemsetD32_v2(opened, 43, MIB));
  IS(43, value_at(opened));
  OK(cuIpcCloseMemHandle(opened));
  // an importer that dies leaves nothing behind
  CUdeviceptr memory;
  OK(cuMemAlloc_v2(&memory, 4 * MIB));
  OK(cuMemsetD32_v2(memory, 5, MIB));
  OK(cuIpcGetMemHandle(&handle, memory));
  const process q = start();
  IS(0, open_in(q, &handle).code);
  end_at_once(q);
  IS(5, value_at(memory));
  OK(cuMemFree_v2(memory));
}

static CUmemAllocationProp properties(CUmemAllocationHandleType type) {
  CUmemAllocationProp p;
  memset(&p, 0, sizeof p);
  p.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  p.requestedHandleTypes = type;
  p.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  p.location.id = device;
  return p;
}

static void test_descriptors(void) {
  int supported = 0;
  OK(cuDeviceGetAttribute(&supported, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, device));
  IS(1, supported);
  const CUmemAllocationHandleType type = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  const CUmemAllocationProp p = properties(type), closed = properties(CU_MEM_HANDLE_TYPE_NONE);
  CUmemGenericAllocationHandle memory, private_memory, own;
  CUdeviceptr address, second;
  int fd = -1;
  OK(cuMemCreate(&memory, 4 * MIB, &p, 0));
  OK(map_memory(memory, 4 * MIB, &address));
  OK(cuMemsetD32_v2(address, 0x55667788, MIB));
  OK(cuCtxSynchronize());
  OK(cuMemExportToShareableHandle(&fd, memory, type, 0));
  TRUE(fd >= 0);
  TRUE(fcntl(fd, F_GETFD) >= 0);
  int none = -1;
  CODE(1, cuMemExportToShareableHandle(NULL, memory, type, 0));
  CODE(1, cuMemExportToShareableHandle(&none, memory, type, 1));
  OK(cuMemCreate(&private_memory, 2 * MIB, &closed, 0));
  CODE(1, cuMemExportToShareableHandle(&none, private_memory, type, 0));
  OK(cuMemRelease(private_memory));

  // into this process: another handle for the same memory
  OK(cuMemImportFromShareableHandle(&own, (void*)(intptr_t)fd, type));
  CUmemAllocationProp told;
  OK(cuMemGetAllocationPropertiesFromHandle(&told, own));
  IS(CU_MEM_LOCATION_TYPE_DEVICE, told.location.type);
  IS(device, told.location.id);
  IS(0, told.requestedHandleTypes);  // what was asked for when it was made does not travel
  int further = -1;
  NOTE(cuMemExportToShareableHandle(&further, own, type, 0));
  if (further >= 0) close(further);
  OK(map_memory(own, 4 * MIB, &second));
  IS(0x55667788, value_at(second + 2 * MIB));
  OK(unmap_memory(second, 4 * MIB));
  OK(cuMemRelease(own));

  // into another one
  const process q = start();
  const answer there = tell_with(q, (request){.command = IMPORT, .bytes = 4 * MIB}, fd);
  IS(0, there.code);
  IS(0x55667788, TELL(q, READ, there.address + 4 * MIB - 4).value);
  IS(0, TELL(q, FILL, there.address, 2 * MIB, 3).code);
  IS(3, value_at(address));
  IS(0x55667788, value_at(address + 2 * MIB));
  // imported twice, at two addresses
  const answer twice = tell_with(q, (request){.command = IMPORT, .bytes = 4 * MIB}, fd);
  IS(0, twice.code);
  TRUE(twice.address != there.address);
  IS(3, TELL(q, READ, twice.address).value);
  IS(0, TELL(q, UNMAP, there.address, 4 * MIB).code);
  // the importer keeps it
  OK(unmap_memory(address, 4 * MIB));
  OK(cuMemRelease(memory));
  IS(3, TELL(q, READ, twice.address).value);
  IS(0, TELL(q, UNMAP, twice.address, 4 * MIB).code);
  close(fd);

  // what is no memory
  int ends[2];
  if (pipe(ends) != 0) perror("pipe");
  TRUE(tell_with(q, (request){.command = IMPORT, .bytes = 4 * MIB}, ends[0]).code != 0);
  NOTE(tell_with(q, (request){.command = IMPORT, .bytes = 4 * MIB}, ends[0]).code);
  close(ends[0]);
  close(ends[1]);
  TRUE(cuMemImportFromShareableHandle(&own, (void*)(intptr_t)-1, type) != 0);
  TRUE(cuMemImportFromShareableHandle(&own, (void*)(intptr_t)1000, type) != 0);
  NOTE(cuMemImportFromShareableHandle(&own, (void*)(intptr_t)1000, type));
  IS(0, finish(q));
}

/// Natively a number that is no handle ends the process.
static void test_no_handle(void) {
  int none = -1;
  CODE(1, cuMemExportToShareableHandle(&none, 12345, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
}

static long long free_bytes(void) {
  size_t bytes = 0, total = 0;
  OK(cuMemGetInfo_v2(&bytes, &total));
  return (long long)bytes;
}

static void test_used_once(void) {
  // imported memory is counted where it was made; nothing stays when everything is given back
  const long long size = 64 * MIB;
  const process p = start();
  (void)TELL(p, RANGE, 0);  // its own context is there from now on, which takes memory too
  int counted_once = 0, came_back = 0;
  // Other programs may use the device too: they spoil a comparison, but not one after the other.
  for (int round = 0; round < 20 && !(counted_once && came_back); round++) {
    CUdeviceptr memory;
    CUipcMemHandle handle;
    OK(cuMemAlloc_v2(&memory, 64 * MIB));
    OK(cuIpcGetMemHandle(&handle, memory));
    const long long before = free_bytes();
    const answer opened = open_in(p, &handle);
    IS(0, opened.code);
    counted_once |= before - free_bytes() < size;
    IS(0, TELL(p, CLOSE, opened.address).code);
    OK(cuMemFree_v2(memory));
    // who keeps it beside us may hear of its end a moment later
    for (int i = 0; i < 100 && !came_back; i++) {
      came_back = free_bytes() >= before + size;
      if (!came_back) usleep(10000);
    }
  }
  TRUE(counted_once);
  TRUE(came_back);
  IS(0, finish(p));
}

static const section all[] = {
    {"memory", test_memory, DRIVER_TABLES},     {"small", test_small, DRIVER_TABLES},
    {"refusals", test_refusals, DRIVER_TABLES}, {"ends", test_ends, DRIVER_TABLES | NOT_NATIVE},
    {"descriptors", test_descriptors, 0},       {"used_once", test_used_once, DRIVER_TABLES},
    {"no_handle", test_no_handle, NOT_NATIVE},
};

int main(int argc, char** argv) {
  if (argc == 3 && strcmp(argv[1], "--child") == 0) return child_main(atoi(argv[2]));
  return area_main(all, (int)(sizeof all / sizeof all[0]), argc, argv);
}
