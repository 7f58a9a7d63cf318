// Tensor maps: what the driver refuses, and that a map depends on its arguments and on nothing else.
// clang-format off
#define CALLS(X)                                                                                                     \
  X(cuTensorMapEncodeTiled,                                                                                          \
    (CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,  \
     const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill)) \
  X(cuTensorMapEncodeIm2col,                                                                                         \
    (CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const int*,         \
     const int*, cuuint32_t, cuuint32_t, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,               \
     CUtensorMapL2promotion, CUtensorMapFloatOOBfill))                                                               \
  X(cuTensorMapReplaceAddress, (CUtensorMap*, void*))                                                                \
  X(cuMemAlloc_v2, (CUdeviceptr*, size_t)) X(cuMemFree_v2, (CUdeviceptr))
// clang-format on

#include "area.h"

enum { UINT8 = 0, INT32 = 3, FLOAT16 = 6, FLOAT32 = 7 };

static const cuuint64_t dimensions[5] = {256, 128, 8, 4, 2};
static const cuuint64_t strides[4] = {1024, 131072, 1048576, 4194304};
static const cuuint32_t box[5] = {32, 16, 1, 1, 1}, ones[5] = {1, 1, 1, 1, 1};

static CUresult tiled(CUtensorMap* map, CUdeviceptr address, cuuint32_t rank) {
  return cuTensorMapEncodeTiled(map, FLOAT32, rank, (void*)address, dimensions, strides, box, ones, 0, 3, 2, 0);
}

static CUdeviceptr memory(void) {
  CUdeviceptr address = 0;
  OK(cuMemAlloc_v2(&address, 16 << 20));
  return address;
}

static void test_tiled(void) {
  const CUdeviceptr a = memory();
  CUtensorMap first, again, other;
  for (cuuint32_t rank = 1; rank <= 5; rank++) OK(tiled(&first, a, rank));
  OK(tiled(&first, a, 2));
  memset(&again, 0xab, sizeof again);
  OK(tiled(&again, a, 2));
  TRUE(memcmp(&first, &again, sizeof first) == 0);
  OK(tiled(&other, a, 3));
  TRUE(memcmp(&first, &other, sizeof first) != 0);
  OK(tiled(&other, a + 4096, 2));
  TRUE(memcmp(&first, &other, sizeof first) != 0);
  for (int i = 0; i < 16; i++) {
    if (first.opaque[i] != other.opaque[i]) NOTE(i);
  }
  NOTE(first.opaque[0] == a);
  // The same through a second encoding of the shape with each address, in any order.
  CUtensorMap direct;
  OK(tiled(&direct, a + 4096, 2));
  TRUE(memcmp(&other, &direct, sizeof direct) == 0);
  OK(tiled(&direct, a, 2));
  TRUE(memcmp(&first, &direct, sizeof direct) == 0);
  OK(cuTensorMapReplaceAddress(&direct, (void*)(a + 4096)));
  TRUE(memcmp(&other, &direct, sizeof direct) == 0);
  OK(cuMemFree_v2(a));
}

static void test_many_shapes(void) {
  const CUdeviceptr a = memory();
  static CUtensorMap maps[600];
  cuuint64_t shape[2] = {0, 64};
  int differ = 0;
  for (int pass = 0; pass < 2; pass++) {
    for (int i = 0; i < 600; i++) {
      shape[0] = 64 + i;
      CUtensorMap map;
      const CUresult code = cuTensorMapEncodeTiled(&map, FLOAT16, 2, (void*)a, shape, strides, box, ones, 0, 0, 0, 0);
      if (code != 0) CODE(0, code);
      if (pass == 0) maps[i] = map;
      differ += pass == 1 && memcmp(&map, &maps[i], sizeof map) != 0;
      differ += i > 0 && memcmp(&map, &maps[i - 1], sizeof map) == 0;
    }
  }
  IS(0, differ);
  OK(cuMemFree_v2(a));
}

enum { THREADS = 4, SHAPES = 12, ADDRESSES = 5 };
static CUtensorMap reference[SHAPES][ADDRESSES];
static CUdeviceptr shared;

static CUresult one_of(CUtensorMap* map, int number, int place) {
  const cuuint64_t shape[2] = {64 + (cuuint64_t)number * 8, 64};
  return cuTensorMapEncodeTiled(map, FLOAT16, 2, (void*)(shared + (CUdeviceptr)place * 4096), shape, strides, box, ones,
                                0, 0, 0, 0);
}

static void* encode_many(void* seed) {
  uint64_t wrong = cuCtxSetCurrent(context) != 0;
  for (uint64_t i = 0, at = (uint64_t)(uintptr_t)seed; i < 3000; i++, at = at * 25 + 7) {
    CUtensorMap map;
    const int number = (int)(at % SHAPES), place = (int)(at / SHAPES % ADDRESSES);
    wrong += one_of(&map, number, place) != 0 || memcmp(&map, &reference[number][place], sizeof map) != 0;
  }
  return (void*)(uintptr_t)wrong;
}

static void test_threads(void) {
  shared = memory();
  pthread_t threads[THREADS];
  for (int i = 0; i < SHAPES * ADDRESSES; i++)
    OK(one_of(&reference[i / ADDRESSES][i % ADDRESSES], i / ADDRESSES, i % ADDRESSES));
  for (int i = 0; i < THREADS; i++)
    IS(0, pthread_create(&threads[i], NULL, encode_many, (void*)(uintptr_t)(i * 13 + 1)));
  for (int i = 0; i < THREADS; i++) {
    void* wrong;
    IS(0, pthread_join(threads[i], &wrong));
    IS(0, (uintptr_t)wrong);
  }
  OK(cuMemFree_v2(shared));
}

static void test_refused(void) {
  const CUdeviceptr a = memory();
  CUtensorMap map;
  CODE(1, tiled(&map, a, 0));
  CODE(1, tiled(&map, a, 6));
  CODE(1, tiled(&map, a + 8, 2));
  OK(tiled(&map, a + 16, 2));
  CODE(1, cuTensorMapEncodeTiled(&map, 99, 2, (void*)a, dimensions, strides, box, ones, 0, 0, 0, 0));
  const cuuint64_t no_dimension[2] = {0, 8}, odd_stride[1] = {1000};
  const cuuint32_t wide_box[2] = {64, 16}, huge_box[2] = {32, 257}, nine[2] = {1, 9};
  CODE(1, cuTensorMapEncodeTiled(&map, FLOAT32, 2, (void*)a, no_dimension, strides, box, ones, 0, 0, 0, 0));
  CODE(1, cuTensorMapEncodeTiled(&map, FLOAT32, 2, (void*)a, dimensions, odd_stride, box, ones, 0, 0, 0, 0));
  CODE(1, cuTensorMapEncodeTiled(&map, FLOAT32, 2, (void*)a, dimensions, strides, huge_box, ones, 0, 0, 0, 0));
  CODE(1, cuTensorMapEncodeTiled(&map, FLOAT32, 2, (void*)a, dimensions, strides, wide_box, ones, 0, 3, 0, 0));
  CODE(1, cuTensorMapEncodeTiled(&map, FLOAT32, 2, (void*)a, dimensions, strides, box, nine, 0, 0, 0, 0));
  CODE(1, cuTensorMapEncodeTiled(&map, INT32, 2, (void*)a, dimensions, strides, box, ones, 0, 0, 0, 1));
  // Interleaved by 32 bytes asks for addresses on 32: a map of a good address says nothing about others.
  const cuuint64_t blocks[3] = {16, 64, 8}, block_strides[2] = {64, 4096};
  const cuuint32_t block_box[3] = {16, 8, 1};
  const CUresult interleaved =
      cuTensorMapEncodeTiled(&map, FLOAT16, 3, (void*)a, blocks, block_strides, block_box, ones, 2, 1, 0, 0);
  NOTE(interleaved);
  if (interleaved == 0) {
    OK(cuTensorMapEncodeTiled(&map, FLOAT16, 3, (void*)(a + 32), blocks, block_strides, block_box, ones, 2, 1, 0, 0));
    CODE(1,
         cuTensorMapEncodeTiled(&map, FLOAT16, 3, (void*)(a + 16), blocks, block_strides, block_box, ones, 2, 1, 0, 0));
  }
  OK(tiled(&map, a, 2));
  NOTE(cuTensorMapReplaceAddress(&map, (void*)(a + 8)));
  OK(cuMemFree_v2(a));
}

static void test_im2col(void) {
  const CUdeviceptr a = memory();
  CUtensorMap first, second;
  const cuuint64_t image[4] = {64, 32, 32, 4}, image_strides[3] = {128, 4096, 131072};
  const int lower[2] = {-1, -1}, upper[2] = {-1, -1}, wild[2] = {-1, 200};
  OK(cuTensorMapEncodeIm2col(&first, FLOAT16, 4, (void*)a, image, image_strides, lower, upper, 64, 128, ones, 0, 3, 2,
                             0));
  OK(cuTensorMapEncodeIm2col(&second, FLOAT16, 4, (void*)a, image, image_strides, lower, upper, 32, 128, ones, 0, 3, 2,
                             0));
  TRUE(memcmp(&first, &second, sizeof first) != 0);
  OK(cuTensorMapEncodeIm2col(&second, FLOAT16, 4, (void*)a, image, image_strides, lower, upper, 64, 128, ones, 0, 3, 2,
                             0));
  TRUE(memcmp(&first, &second, sizeof first) == 0);
  CODE(1, cuTensorMapEncodeIm2col(&second, FLOAT16, 2, (void*)a, image, image_strides, lower, upper, 64, 128, ones, 0,
                                  3, 2, 0));
  CODE(1, cuTensorMapEncodeIm2col(&second, FLOAT16, 4, (void*)a, image, image_strides, lower, wild, 64, 128, ones, 0, 3,
                                  2, 0));
  CODE(1, cuTensorMapEncodeIm2col(&second, FLOAT16, 4, (void*)a, image, image_strides, lower, upper, 257, 128, ones, 0,
                                  0, 2, 0));
  OK(cuMemFree_v2(a));
}

static void test_without_context(void) {
  CUtensorMap map;
  CODE(201, tiled(&map, 0x7f0000000000ull, 2));
}

SECTIONS({"tiled", test_tiled, 0}, {"many_shapes", test_many_shapes, 0}, {"threads", test_threads, 0},
         {"refused", test_refused, 0}, {"im2col", test_im2col, 0},
         {"without_context", test_without_context, OWN_CONTEXT})
