// 2D and 3D copies between every pair of memory kinds, against a model; batches of copies; what is refused.
// clang-format off
#define CALLS(X)                                                                                                       \
  X(cuMemcpy2D_v2, (const CUDA_MEMCPY2D*))                                                                             \
  X(cuMemcpy2DAsync_v2, (const CUDA_MEMCPY2D*, CUstream))                                                              \
  X(cuMemcpy2DUnaligned_v2, (const CUDA_MEMCPY2D*))                                                                    \
  X(cuMemcpy3D_v2, (const CUDA_MEMCPY3D*)) X(cuMemcpy3DAsync_v2, (const CUDA_MEMCPY3D*, CUstream))                     \
      X(cuMemcpy3DPeer, (const CUDA_MEMCPY3D_PEER*)) X(cuMemcpy3DPeerAsync, (const CUDA_MEMCPY3D_PEER*, CUstream))     \
          X(cuMemAlloc_v2, (CUdeviceptr*, size_t)) X(cuMemFree_v2, (CUdeviceptr))                                      \
              X(cuMemHostAlloc, (void**, size_t, unsigned)) X(cuMemFreeHost, (void*))                                  \
                  X(cuMemcpyHtoD_v2, (CUdeviceptr, const void*, size_t))                                               \
                      X(cuMemcpyDtoH_v2, (void*, CUdeviceptr, size_t)) X(cuStreamCreate, (CUstream*, unsigned))        \
                          X(cuStreamSynchronize, (CUstream)) X(cuStreamDestroy_v2, (CUstream))                         \
                              X(cuArray3DCreate_v2, (CUarray*, const CUDA_ARRAY3D_DESCRIPTOR*))                        \
                                  X(cuArrayDestroy, (CUarray)) X(cuMemcpyBatchAsync_v2,                                \
                                                                 (CUdeviceptr*, CUdeviceptr*, size_t*, size_t,         \
                                                                  CUmemcpyAttributes*, size_t*, size_t, CUstream))     \
                                      X(cuMemcpyBatchAsync, (CUdeviceptr*, CUdeviceptr*, size_t*, size_t,              \
                                                             CUmemcpyAttributes*, size_t*, size_t, size_t*, CUstream)) \
                                          X(cuMemcpy3DBatchAsync_v2,                                                   \
                                            (size_t, CUDA_MEMCPY3D_BATCH_OP*, unsigned long long, CUstream))
// clang-format on

#include "area.h"

enum { PITCH = 128, ROWS = 9, SLICES = 4, BYTES = PITCH * ROWS * SLICES };
enum kind { PAGEABLE, PINNED, DEVICE, UNIFIED_PINNED, UNIFIED_DEVICE, UNIFIED_PAGEABLE };

static uint8_t pageable[2][BYTES], model[BYTES], seen[BYTES];
static uint8_t* pinned[2];
static CUdeviceptr memory[2];
static CUstream stream;

static void begin(void) {
  for (int i = 0; i < 2; i++) {
    OK(cuMemHostAlloc((void**)&pinned[i], BYTES, 0));
    OK(cuMemAlloc_v2(&memory[i], BYTES));
  }
  OK(cuStreamCreate(&stream, 0));  // ordered with the NULL stream, on which memory is filled
}

static void end(void) {
  for (int i = 0; i < 2; i++) {
    OK(cuMemFreeHost(pinned[i]));
    OK(cuMemFree_v2(memory[i]));
  }
  OK(cuStreamDestroy_v2(stream));
}

static CUdeviceptr address(enum kind kind, int which) {
  switch (kind) {
    case DEVICE:
    case UNIFIED_DEVICE:
      return memory[which];
    case PINNED:
    case UNIFIED_PINNED:
      return (CUdeviceptr)(uintptr_t)pinned[which];
    default:
      return (CUdeviceptr)(uintptr_t)pageable[which];
  }
}

static CUmemorytype type_of(enum kind kind) {
  if (kind == DEVICE) return CU_MEMORYTYPE_DEVICE;
  return kind == PAGEABLE || kind == PINNED ? CU_MEMORYTYPE_HOST : CU_MEMORYTYPE_UNIFIED;
}

static int is_device(enum kind kind) { return kind == DEVICE || kind == UNIFIED_DEVICE; }

static void put(enum kind kind, int which, const uint8_t* bytes) {
  if (is_device(kind)) {
    const CUresult code = cuMemcpyHtoD_v2(memory[which], bytes, BYTES);
    if (code != 0) CODE(0, code);
  } else {
    memcpy((void*)(uintptr_t)address(kind, which), bytes, BYTES);
  }
}

static void get(enum kind kind, int which) {
  if (is_device(kind)) {
    const CUresult code = cuMemcpyDtoH_v2(seen, memory[which], BYTES);
    if (code != 0) CODE(0, code);
  } else {
    memcpy(seen, (void*)(uintptr_t)address(kind, which), BYTES);
  }
}

typedef struct shape {
  size_t width, height, depth, from_x, from_y, from_z, to_x, to_y, to_z;
} shape;

static const shape shapes[] = {{1, 1, 1, 0, 0, 0, 0, 0, 0},   {13, 7, 1, 0, 0, 0, 5, 2, 0},
                               {64, 5, 1, 3, 2, 0, 64, 4, 0}, {PITCH, ROWS, 1, 0, 0, 0, 0, 0, 0},
                               {33, 4, 3, 1, 2, 1, 9, 5, 0},  {PITCH, ROWS, SLICES, 0, 0, 0, 0, 0, 0},
                               {100, 1, 2, 0, 3, 1, 20, 0, 2}};

static void expect(const shape* s, const uint8_t* source) {
  for (size_t z = 0; z < s->depth; z++) {
    for (size_t y = 0; y < s->height; y++) {
      memcpy(model + ((z + s->to_z) * ROWS + y + s->to_y) * PITCH + s->to_x,
             source + ((z + s->from_z) * ROWS + y + s->from_y) * PITCH + s->from_x, s->width);
    }
  }
}

static CUresult copy_2d(const shape* s, enum kind to, enum kind from, int how) {
  CUDA_MEMCPY2D c = {.srcXInBytes = s->from_x,
                     .srcY = s->from_y,
                     .srcMemoryType = type_of(from),
                     .srcPitch = PITCH,
                     .dstXInBytes = s->to_x,
                     .dstY = s->to_y,
                     .dstMemoryType = type_of(to),
                     .dstPitch = PITCH,
                     .WidthInBytes = s->width,
                     .Height = s->height};
  c.srcHost = (void*)(uintptr_t)(c.srcDevice = address(from, 0));
  c.dstHost = (void*)(uintptr_t)(c.dstDevice = address(to, 1));
  if (how == 0) return cuMemcpy2D_v2(&c);
  if (how == 1) return cuMemcpy2DUnaligned_v2(&c);
  return cuMemcpy2DAsync_v2(&c, stream);
}

static CUresult copy_3d(const shape* s, enum kind to, enum kind from, int how) {
  CUDA_MEMCPY3D c = {.srcXInBytes = s->from_x,
                     .srcY = s->from_y,
                     .srcZ = s->from_z,
                     .srcMemoryType = type_of(from),
                     .srcPitch = PITCH,
                     .srcHeight = ROWS,
                     .dstXInBytes = s->to_x,
                     .dstY = s->to_y,
                     .dstZ = s->to_z,
                     .dstMemoryType = type_of(to),
                     .dstPitch = PITCH,
                     .dstHeight = ROWS,
                     .WidthInBytes = s->width,
                     .Height = s->height,
                     .Depth = s->depth};
  c.srcHost = (void*)(uintptr_t)(c.srcDevice = address(from, 0));
  c.dstHost = (void*)(uintptr_t)(c.dstDevice = address(to, 1));
  if (how == 0) return cuMemcpy3D_v2(&c);
  if (how == 1) return cuMemcpy3DAsync_v2(&c, stream);
  CUDA_MEMCPY3D_PEER peer;
  memcpy(&peer, &c, sizeof peer);
  peer.srcContext = peer.dstContext = context;
  return how == 2 ? cuMemcpy3DPeer(&peer) : cuMemcpy3DPeerAsync(&peer, stream);
}

static void every_pair(int first_kind, int last_kind, int deep, int ways) {
  begin();
  uint8_t source[BYTES];
  for (int i = 0; i < BYTES; i++) source[i] = (uint8_t)(i * 7 + i / 251);
  for (int to = 0; to <= last_kind; to++) {
    for (int from = 0; from <= last_kind; from++) {
      if (to < first_kind && from < first_kind) continue;
      for (int how = 0; how < ways; how++) {
        int bad = 0;
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
          if (!deep && (shapes[i].depth > 1 || shapes[i].from_z != 0)) continue;
          memset(model, 0xee, BYTES);
          put(to, 1, model);
          put(from, 0, source);
          expect(&shapes[i], source);
          const CUresult code = deep ? copy_3d(&shapes[i], to, from, how) : copy_2d(&shapes[i], to, from, how);
          if (code == 0 && cuStreamSynchronize(stream) == 0) {
            if (!is_device(to) && is_device(from) == is_device(to)) (void)cuStreamSynchronize(NULL);
            get(to, 1);
            if (memcmp(seen, model, BYTES) != 0) bad |= 1 << i;
          } else {
            printf("note: to %d from %d way %d shape %d: %d\n", to, from, how, (int)i, code);
            bad |= 1 << i;
          }
        }
        IS(0, bad);
      }
    }
  }
  end();
}

static void test_every_pair_2d(void) { every_pair(0, UNIFIED_DEVICE, 0, 3); }
static void test_every_pair_3d(void) { every_pair(0, UNIFIED_DEVICE, 1, 4); }
// Pageable memory by its unified address, apart: not every machine that runs this takes it.
static void test_unified_pageable(void) {
  every_pair(UNIFIED_PAGEABLE, UNIFIED_PAGEABLE, 0, 3);
  every_pair(UNIFIED_PAGEABLE, UNIFIED_PAGEABLE, 1, 4);
}

static void test_refused(void) {
  begin();
  CUDA_MEMCPY2D good = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                        .srcHost = pageable[0],
                        .srcPitch = PITCH,
                        .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                        .dstDevice = memory[1],
                        .dstPitch = PITCH,
                        .WidthInBytes = 64,
                        .Height = 4},
                c = good;
  OK(cuMemcpy2D_v2(&c));
  c.WidthInBytes = 0;
  NOTE(cuMemcpy2D_v2(&c));
  c = good;
  c.Height = 0;
  NOTE(cuMemcpy2D_v2(&c));
  CODE(1, cuMemcpy2D_v2(NULL));
  c = good;
  c.srcPitch = 32;
  CODE(1, cuMemcpy2D_v2(&c));
  c = good;
  c.dstXInBytes = 100;
  CODE(1, cuMemcpy2D_v2(&c));
  c = good;
  c.dstDevice = 4096;
  CODE(1, cuMemcpy2D_v2(&c));
  c = good;
  c.dstMemoryType = 17;
  CODE(1, cuMemcpy2D_v2(&c));
  c = good;
  c.Height = 1 << 20;  // beyond the allocation
  c.srcPitch = 64;
  c.srcHost = calloc(1 << 20, 64);
  NOTE(cuMemcpy2D_v2(&c));
  free((void*)(uintptr_t)c.srcHost);
  c = good;
  c.dstPitch = c.srcPitch = 0;  // not given: packed
  NOTE(cuMemcpy2D_v2(&c));
  CUDA_MEMCPY3D deep = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                        .srcHost = pageable[0],
                        .srcPitch = PITCH,
                        .srcHeight = 2,
                        .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                        .dstDevice = memory[1],
                        .dstPitch = PITCH,
                        .dstHeight = ROWS,
                        .WidthInBytes = 64,
                        .Height = 4,
                        .Depth = 2};
  CODE(1, cuMemcpy3D_v2(&deep));
  deep.srcHeight = ROWS;
  OK(cuMemcpy3D_v2(&deep));
  deep.dstHeight = deep.dstPitch = 0;
  NOTE(cuMemcpy3D_v2(&deep));
  CODE(1, cuMemcpy3D_v2(NULL));
  end();
}

static void test_batch(void) {
  begin();
  for (int i = 0; i < 4096; i++) pinned[0][i] = (uint8_t)(i * 3), pageable[0][i] = (uint8_t)(i * 5);
  memset(pinned[1], 0, BYTES);
  CUdeviceptr to[3] = {memory[0], memory[0] + 1024, memory[1]};
  CUdeviceptr from[3] = {address(PINNED, 0), address(PAGEABLE, 0), address(PAGEABLE, 0) + 512};
  size_t sizes[3] = {1024, 512, 256}, firsts[2] = {0, 1}, failed = 77;
  CUmemcpyAttributes attributes[2];
  memset(attributes, 0, sizeof attributes);
  attributes[0].srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
  attributes[1].srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL;
  OK(cuMemcpyBatchAsync_v2(to, from, sizes, 3, attributes, firsts, 2, stream));
  CUdeviceptr back[2] = {address(PINNED, 1), address(PINNED, 1) + 2048}, sources[2] = {memory[0], memory[1]};
  size_t lengths[2] = {1536, 256};
  OK(cuMemcpyBatchAsync(back, sources, lengths, 2, attributes, firsts, 1, &failed, stream));
  OK(cuStreamSynchronize(stream));
  TRUE(memcmp(pinned[1], pinned[0], 1024) == 0);
  TRUE(memcmp(pinned[1] + 1024, pageable[0], 512) == 0);
  TRUE(memcmp(pinned[1] + 2048, pageable[0] + 512, 256) == 0);
  CODE(1, cuMemcpyBatchAsync_v2(to, from, sizes, 3, NULL, firsts, 1, stream));
  CODE(1, cuMemcpyBatchAsync_v2(to, from, sizes, 3, attributes, firsts, 0, stream));
  CODE(1, cuMemcpyBatchAsync_v2(to, from, sizes, 3, attributes, firsts, 4, stream));
  CODE(1, cuMemcpyBatchAsync_v2(NULL, from, sizes, 3, attributes, firsts, 1, stream));
  NOTE(cuMemcpyBatchAsync_v2(to, from, sizes, 0, attributes, firsts, 0, stream));
  NOTE(cuMemcpyBatchAsync_v2(to, from, sizes, 3, attributes, firsts, 1, NULL));
  firsts[0] = 1;
  CODE(1, cuMemcpyBatchAsync_v2(to, from, sizes, 3, attributes, firsts, 1, stream));
  firsts[0] = 0;
  attributes[0].srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_INVALID;
  CODE(1, cuMemcpyBatchAsync_v2(to, from, sizes, 3, attributes, firsts, 1, stream));
  attributes[0].srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_ANY;
  OK(cuMemcpyBatchAsync_v2(to, from, sizes, 3, attributes, firsts, 1, stream));
  OK(cuStreamSynchronize(stream));
  end();
}

static void test_batch_3d(void) {
  begin();
  const CUDA_ARRAY3D_DESCRIPTOR d = {16, 4, 2, CU_AD_FORMAT_UNSIGNED_INT32, 1, 0};
  CUarray array;
  OK(cuArray3DCreate_v2(&array, &d));
  uint32_t* in = (uint32_t*)pinned[0];
  for (uint32_t i = 0; i < 128; i++) in[i] = i;
  memset(pinned[1], 0, BYTES);
  CUDA_MEMCPY3D_BATCH_OP ops[2];
  memset(ops, 0, sizeof ops);
  ops[0].src.type = CU_MEMCPY_OPERAND_TYPE_POINTER;
  ops[0].src.op.ptr.ptr = address(PINNED, 0);
  ops[0].dst.type = CU_MEMCPY_OPERAND_TYPE_ARRAY;
  ops[0].dst.op.array.array = array;
  ops[0].extent = (CUextent3D){16, 4, 2};
  ops[0].srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
  ops[1] = ops[0];
  ops[1].dst.type = CU_MEMCPY_OPERAND_TYPE_POINTER;
  ops[1].dst.op.ptr.ptr = memory[0];
  ops[1].dst.op.ptr.rowLength = 32;
  ops[1].extent = (CUextent3D){16, 4, 1};  // bytes, between pointers
  OK(cuMemcpy3DBatchAsync_v2(2, ops, 0, stream));
  CUDA_MEMCPY3D_BATCH_OP back = ops[0];
  back.src.type = CU_MEMCPY_OPERAND_TYPE_ARRAY;
  back.src.op.array.array = array;
  back.src.op.array.offset = (CUoffset3D){2, 1, 1};
  back.dst.type = CU_MEMCPY_OPERAND_TYPE_POINTER;
  memset(&back.dst.op, 0, sizeof back.dst.op);
  back.dst.op.ptr.ptr = address(PINNED, 1);
  back.dst.op.ptr.rowLength = 8;
  back.extent = (CUextent3D){4, 2, 1};
  OK(cuMemcpy3DBatchAsync_v2(1, &back, 0, stream));
  OK(cuStreamSynchronize(stream));
  const uint32_t* out = (const uint32_t*)pinned[1];
  IS(64 + 16 + 2, out[0]);
  IS(64 + 16 + 5, out[3]);
  IS(0, out[4]);
  IS(64 + 32 + 2, out[8]);
  CODE(1, cuMemcpy3DBatchAsync_v2(1, &back, 1, stream));
  CODE(1, cuMemcpy3DBatchAsync_v2(1, NULL, 0, stream));
  back.extent.width = 0;
  CODE(1, cuMemcpy3DBatchAsync_v2(1, &back, 0, stream));
  back.extent.width = 4;
  back.srcAccessOrder = 0;
  CODE(1, cuMemcpy3DBatchAsync_v2(1, &back, 0, stream));
  NOTE(cuMemcpy3DBatchAsync_v2(0, &back, 0, stream));
  OK(cuArrayDestroy(array));
  end();
}

SECTIONS({"every_pair_2d", test_every_pair_2d, 0}, {"every_pair_3d", test_every_pair_3d, 0},
         {"unified_pageable", test_unified_pageable, 0}, {"refused", test_refused, 0}, {"batch", test_batch, 0},
         {"batch_3d", test_batch_3d, 0})
