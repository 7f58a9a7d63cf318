// Arrays and mipmapped arrays: descriptors, copies with every other kind of memory, and what is refused.
// clang-format off
#define CALLS(X)                                                                                                  \
  X(cuArrayCreate_v2, (CUarray*, const CUDA_ARRAY_DESCRIPTOR*))                                                   \
  X(cuArray3DCreate_v2, (CUarray*, const CUDA_ARRAY3D_DESCRIPTOR*))                                               \
  X(cuArrayDestroy, (CUarray))                                                                                    \
  X(cuArrayGetDescriptor_v2, (CUDA_ARRAY_DESCRIPTOR*, CUarray))                                                   \
  X(cuArray3DGetDescriptor_v2, (CUDA_ARRAY3D_DESCRIPTOR*, CUarray))                                               \
  X(cuArrayGetMemoryRequirements, (CUDA_ARRAY_MEMORY_REQUIREMENTS*, CUarray, CUdevice))                           \
  X(cuArrayGetSparseProperties, (CUDA_ARRAY_SPARSE_PROPERTIES*, CUarray))                                         \
  X(cuArrayGetPlane, (CUarray*, CUarray, unsigned))                                                               \
  X(cuMipmappedArrayCreate, (CUmipmappedArray*, const CUDA_ARRAY3D_DESCRIPTOR*, unsigned))                        \
  X(cuMipmappedArrayGetLevel, (CUarray*, CUmipmappedArray, unsigned))                                             \
  X(cuMipmappedArrayDestroy, (CUmipmappedArray))                                                                  \
  X(cuMemcpyHtoA_v2, (CUarray, size_t, const void*, size_t))                                                      \
  X(cuMemcpyAtoH_v2, (void*, CUarray, size_t, size_t))                                                            \
  X(cuMemcpyHtoAAsync_v2, (CUarray, size_t, const void*, size_t, CUstream))                                       \
  X(cuMemcpyAtoHAsync_v2, (void*, CUarray, size_t, size_t, CUstream))                                             \
  X(cuMemcpyDtoA_v2, (CUarray, size_t, CUdeviceptr, size_t))                                                      \
  X(cuMemcpyAtoD_v2, (CUdeviceptr, CUarray, size_t, size_t))                                                      \
  X(cuMemcpyAtoA_v2, (CUarray, size_t, CUarray, size_t, size_t))                                                  \
  X(cuMemcpy2D_v2, (const CUDA_MEMCPY2D*))                                                                        \
  X(cuMemcpy2DAsync_v2, (const CUDA_MEMCPY2D*, CUstream))                                                         \
  X(cuMemcpy3D_v2, (const CUDA_MEMCPY3D*))                                                                        \
  X(cuMemcpy3DPeer, (const CUDA_MEMCPY3D_PEER*))                                                                  \
  X(cuDeviceGetCount, (int*)) X(cuMemAlloc_v2, (CUdeviceptr*, size_t)) X(cuMemFree_v2, (CUdeviceptr))             \
      X(cuMemHostAlloc, (void**, size_t, unsigned)) X(cuMemFreeHost, (void*))                                     \
          X(cuMemcpyHtoD_v2, (CUdeviceptr, const void*, size_t)) X(cuMemcpyDtoH_v2, (void*, CUdeviceptr, size_t)) \
              X(cuStreamCreate, (CUstream*, unsigned)) X(cuStreamSynchronize, (CUstream))                         \
                  X(cuStreamDestroy_v2, (CUstream)) X(cuCtxSynchronize, (void))                                   \
                      X(cuMemsetD8_v2, (CUdeviceptr, unsigned char, size_t))                                      \
                          X(cuCtxCreate_v2, (CUcontext*, unsigned, CUdevice)) X(cuCtxDestroy_v2, (CUcontext))
// clang-format on

#include "area.h"

static CUarray flat(size_t width, size_t height) {
  const CUDA_ARRAY_DESCRIPTOR d = {width, height, CU_AD_FORMAT_FLOAT, 1};
  CUarray array = NULL;
  OK(cuArrayCreate_v2(&array, &d));
  return array;
}

static CUarray deep(size_t width, size_t height, size_t depth, unsigned channels, unsigned flags) {
  const CUDA_ARRAY3D_DESCRIPTOR d = {width, height, depth, CU_AD_FORMAT_FLOAT, channels, flags};
  CUarray array = NULL;
  OK(cuArray3DCreate_v2(&array, &d));
  return array;
}

static void test_descriptors(void) {
  CUarray array = flat(64, 48);
  CUDA_ARRAY_DESCRIPTOR two;
  CUDA_ARRAY3D_DESCRIPTOR three;
  OK(cuArrayGetDescriptor_v2(&two, array));
  IS(64, two.Width);
  IS(48, two.Height);
  IS(CU_AD_FORMAT_FLOAT, two.Format);
  IS(1, two.NumChannels);
  OK(cuArray3DGetDescriptor_v2(&three, array));
  IS(48, three.Height);
  IS(0, three.Depth);
  IS(0, three.Flags);
  OK(cuArrayDestroy(array));
  array = deep(16, 8, 4, 4, CUDA_ARRAY3D_SURFACE_LDST);
  OK(cuArray3DGetDescriptor_v2(&three, array));
  IS(4, three.Depth);
  IS(4, three.NumChannels);
  IS(CUDA_ARRAY3D_SURFACE_LDST, three.Flags);
  NOTE(cuArrayGetDescriptor_v2(&two, array));
  OK(cuArrayDestroy(array));
  OK(cuArrayDestroy(deep(16, 0, 8, 2, CUDA_ARRAY3D_LAYERED)));
  OK(cuArrayDestroy(deep(16, 16, 8, 2, CUDA_ARRAY3D_LAYERED)));
  OK(cuArrayDestroy(deep(16, 16, 6, 2, CUDA_ARRAY3D_CUBEMAP)));
  OK(cuArrayDestroy(deep(16, 16, 12, 2, CUDA_ARRAY3D_CUBEMAP | CUDA_ARRAY3D_LAYERED)));
}

static void test_refused(void) {
  CUarray array = NULL;
  CUDA_ARRAY3D_DESCRIPTOR d = {16, 16, 0, CU_AD_FORMAT_FLOAT, 1, 0}, good = d;
  CODE(1, cuArray3DCreate_v2(NULL, &d));
  CODE(1, cuArray3DCreate_v2(&array, NULL));
  d.Width = 0;
  CODE(1, cuArray3DCreate_v2(&array, &d));
  d = good;
  d.NumChannels = 3;
  CODE(1, cuArray3DCreate_v2(&array, &d));
  d = good;
  d.Format = 77;
  CODE(1, cuArray3DCreate_v2(&array, &d));
  d = good;
  d.Width = (size_t)1 << 40;
  CODE(1, cuArray3DCreate_v2(&array, &d));
  d = good;
  d.Flags = CUDA_ARRAY3D_CUBEMAP;
  d.Depth = 5;
  CODE(1, cuArray3DCreate_v2(&array, &d));
  d = good;
  d.Height = 0;
  d.Depth = 8;  // rows are missing
  CODE(1, cuArray3DCreate_v2(&array, &d));
  array = flat(16, 16);
  CUDA_ARRAY_MEMORY_REQUIREMENTS requirements;
  CUDA_ARRAY_SPARSE_PROPERTIES sparse;
  CUarray plane;
  CODE(1, cuArrayGetMemoryRequirements(&requirements, array, device));
  CODE(1, cuArrayGetSparseProperties(&sparse, array));
  NOTE(cuArrayGetPlane(&plane, array, 0));
  CODE(1, cuArray3DGetDescriptor_v2(NULL, array));
  OK(cuArrayDestroy(array));
  CODE(709, cuArrayDestroy(array));
  CODE(400, cuArrayDestroy(NULL));
}

// ------------------------------------------------------------------------------------------------ copies

enum { WIDTH = 37, HEIGHT = 21, DEPTH = 5, PITCH = 64 };  // floats

static float host_in[DEPTH][HEIGHT][PITCH], host_out[DEPTH][HEIGHT][PITCH];

static void fill(void) {
  for (int z = 0; z < DEPTH; z++) {
    for (int y = 0; y < HEIGHT; y++) {
      for (int x = 0; x < PITCH; x++) {
        host_in[z][y][x] = (float)(z * 10000 + y * 100 + x);
        host_out[z][y][x] = -1;
      }
    }
  }
}

/// How many floats of the box differ from the source, and how many outside it were touched.
static int wrong(int depth, int height, int width) {
  int count = 0;
  for (int z = 0; z < DEPTH; z++) {
    for (int y = 0; y < HEIGHT; y++) {
      for (int x = 0; x < PITCH; x++) {
        const int inside = z < depth && y < height && x < width;
        count += host_out[z][y][x] != (inside ? host_in[z][y][x] : -1);
      }
    }
  }
  return count;
}

static CUDA_MEMCPY2D box_2d(void) { return (CUDA_MEMCPY2D){.WidthInBytes = WIDTH * 4, .Height = HEIGHT}; }

static void to_array(CUDA_MEMCPY2D* c, CUarray array) {
  c->dstMemoryType = CU_MEMORYTYPE_ARRAY;
  c->dstArray = array;
}

static void from_array(CUDA_MEMCPY2D* c, CUarray array) {
  c->srcMemoryType = CU_MEMORYTYPE_ARRAY;
  c->srcArray = array;
}

static void read_back(CUarray array) {
  CUDA_MEMCPY2D c = box_2d();
  from_array(&c, array);
  c.dstMemoryType = CU_MEMORYTYPE_HOST;
  c.dstHost = host_out;
  c.dstPitch = PITCH * 4;
  OK(cuMemcpy2D_v2(&c));
}

static void write_in(CUarray array) {
  CUDA_MEMCPY2D c = box_2d();
  c.srcMemoryType = CU_MEMORYTYPE_HOST;
  c.srcHost = host_in;
  c.srcPitch = PITCH * 4;
  to_array(&c, array);
  OK(cuMemcpy2D_v2(&c));
}

static void test_copies_2d(void) {
  CUarray a = flat(WIDTH, HEIGHT), b = flat(WIDTH, HEIGHT);
  fill();
  write_in(a);
  read_back(a);
  IS(0, wrong(1, HEIGHT, WIDTH));
  // Array to array, then through device memory with a pitch.
  fill();
  CUDA_MEMCPY2D c = box_2d();
  from_array(&c, a);
  to_array(&c, b);
  OK(cuMemcpy2D_v2(&c));
  read_back(b);
  IS(0, wrong(1, HEIGHT, WIDTH));
  CUdeviceptr memory;
  OK(cuMemAlloc_v2(&memory, sizeof host_in));
  OK(cuMemsetD8_v2(memory, 0, sizeof host_in));
  c = box_2d();
  from_array(&c, a);
  c.dstMemoryType = CU_MEMORYTYPE_DEVICE;
  c.dstDevice = memory;
  c.dstPitch = PITCH * 4;
  OK(cuMemcpy2D_v2(&c));
  CUarray d = flat(WIDTH, HEIGHT);
  c = box_2d();
  c.srcMemoryType = CU_MEMORYTYPE_UNIFIED;
  c.srcDevice = memory;
  c.srcPitch = PITCH * 4;
  to_array(&c, d);
  OK(cuMemcpy2D_v2(&c));
  fill();
  read_back(d);
  IS(0, wrong(1, HEIGHT, WIDTH));
  // A part: 8 columns from (4, 3) to (10, 7).
  c = (CUDA_MEMCPY2D){.srcXInBytes = 16, .srcY = 3, .dstXInBytes = 40, .dstY = 7, .WidthInBytes = 32, .Height = 5};
  from_array(&c, a);
  to_array(&c, b);
  OK(cuMemcpy2D_v2(&c));
  fill();
  read_back(b);
  IS(304, host_out[0][7][10]);
  IS(711, host_out[0][11][17]);
  IS(718, host_out[0][7][18]);
  IS(609, host_out[0][6][9]);
  OK(cuMemFree_v2(memory));
  OK(cuArrayDestroy(a));
  OK(cuArrayDestroy(b));
  OK(cuArrayDestroy(d));
}

static void test_copies_pinned(void) {
  CUarray a = flat(WIDTH, HEIGHT);
  CUstream stream;
  OK(cuStreamCreate(&stream, 1));
  float *in, *out;
  OK(cuMemHostAlloc((void**)&in, sizeof host_in, 0));
  OK(cuMemHostAlloc((void**)&out, sizeof host_in, 0));
  fill();
  memcpy(in, host_in, sizeof host_in);
  memcpy(out, host_out, sizeof host_out);
  CUDA_MEMCPY2D c = box_2d();
  c.srcMemoryType = CU_MEMORYTYPE_HOST;
  c.srcHost = in;
  c.srcPitch = PITCH * 4;
  to_array(&c, a);
  OK(cuMemcpy2DAsync_v2(&c, stream));
  c = box_2d();
  from_array(&c, a);
  c.dstMemoryType = CU_MEMORYTYPE_HOST;
  c.dstHost = out;
  c.dstPitch = PITCH * 4;
  OK(cuMemcpy2DAsync_v2(&c, stream));
  OK(cuStreamSynchronize(stream));
  memcpy(host_out, out, sizeof host_out);
  IS(0, wrong(1, HEIGHT, WIDTH));
  OK(cuStreamDestroy_v2(stream));
  OK(cuMemFreeHost(in));
  OK(cuMemFreeHost(out));
  OK(cuArrayDestroy(a));
}

static void test_copies_3d(void) {
  CUarray a = deep(WIDTH, HEIGHT, DEPTH, 1, 0), layers = deep(WIDTH, HEIGHT, DEPTH, 1, CUDA_ARRAY3D_LAYERED);
  fill();
  CUDA_MEMCPY3D c = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                     .srcHost = host_in,
                     .srcPitch = PITCH * 4,
                     .srcHeight = HEIGHT,
                     .dstMemoryType = CU_MEMORYTYPE_ARRAY,
                     .dstArray = a,
                     .WidthInBytes = WIDTH * 4,
                     .Height = HEIGHT,
                     .Depth = DEPTH};
  OK(cuMemcpy3D_v2(&c));
  c.srcMemoryType = CU_MEMORYTYPE_ARRAY;
  c.srcArray = a;
  c.dstArray = layers;
  OK(cuMemcpy3D_v2(&c));
  CUDA_MEMCPY3D back = {.srcMemoryType = CU_MEMORYTYPE_ARRAY,
                        .srcArray = layers,
                        .dstMemoryType = CU_MEMORYTYPE_HOST,
                        .dstHost = host_out,
                        .dstPitch = PITCH * 4,
                        .dstHeight = HEIGHT,
                        .WidthInBytes = WIDTH * 4,
                        .Height = HEIGHT,
                        .Depth = DEPTH};
  OK(cuMemcpy3D_v2(&back));
  IS(0, wrong(DEPTH, HEIGHT, WIDTH));
  // One cell of one slice, and the peer form with one context on both sides.
  CUDA_MEMCPY3D_PEER cell = {.srcMemoryType = CU_MEMORYTYPE_ARRAY,
                             .srcArray = a,
                             .srcXInBytes = 4,
                             .srcY = 2,
                             .srcZ = 3,
                             .srcContext = context,
                             .dstMemoryType = CU_MEMORYTYPE_HOST,
                             .dstHost = host_out,
                             .dstPitch = PITCH * 4,
                             .dstHeight = HEIGHT,
                             .dstContext = context,
                             .WidthInBytes = 4,
                             .Height = 1,
                             .Depth = 1};
  OK(cuMemcpy3DPeer(&cell));
  IS(30201, host_out[0][0][0]);
  OK(cuArrayDestroy(a));
  OK(cuArrayDestroy(layers));
}

static void test_copies_row(void) {
  CUarray a = flat(256, 0), b = flat(256, 0);
  float in[256], out[256] = {0};
  for (int i = 0; i < 256; i++) in[i] = (float)(i + 1);
  OK(cuMemcpyHtoA_v2(a, 0, in, sizeof in));
  OK(cuMemcpyAtoA_v2(b, 64, a, 0, 512));
  OK(cuMemcpyAtoH_v2(out, b, 64, 512));
  IS(1, out[0]);
  IS(128, out[127]);
  IS(0, out[128]);
  CUdeviceptr memory;
  OK(cuMemAlloc_v2(&memory, sizeof in));
  OK(cuMemcpyAtoD_v2(memory + 16, a, 40, 80));
  OK(cuMemcpyDtoA_v2(b, 0, memory + 16, 80));
  CUstream stream;
  OK(cuStreamCreate(&stream, 0));
  OK(cuMemcpyHtoAAsync_v2(b, 80, in, 8, stream));
  OK(cuMemcpyAtoHAsync_v2(out, b, 0, 88, stream));
  OK(cuStreamSynchronize(stream));
  IS(11, out[0]);
  IS(30, out[19]);
  IS(1, out[20]);
  IS(2, out[21]);
  OK(cuStreamDestroy_v2(stream));
  CODE(1, cuMemcpyHtoA_v2(a, 1020, in, 8));
  CODE(1, cuMemcpyAtoH_v2(out, a, 1024, 4));
  NOTE(cuMemcpyAtoH_v2(out, a, 2, 4));
  CUarray square = flat(16, 16);
  NOTE(cuMemcpyHtoA_v2(square, 0, in, 64));
  NOTE(cuMemcpyHtoA_v2(square, 0, in, 128));
  OK(cuMemFree_v2(memory));
  OK(cuArrayDestroy(a));
  OK(cuArrayDestroy(b));
  OK(cuArrayDestroy(square));
}

static void test_copies_refused(void) {
  CUarray a = flat(WIDTH, HEIGHT);
  CUDA_MEMCPY2D c = box_2d(), good;
  c.srcMemoryType = CU_MEMORYTYPE_HOST;
  c.srcHost = host_in;
  c.srcPitch = PITCH * 4;
  to_array(&c, a);
  good = c;
  c.dstY = 1;
  CODE(1, cuMemcpy2D_v2(&c));
  c = good;
  c.dstXInBytes = 4;
  CODE(1, cuMemcpy2D_v2(&c));
  c = good;
  c.srcHost = NULL;
  CODE(1, cuMemcpy2D_v2(&c));
  c = good;
  c.srcMemoryType = 9;
  CODE(1, cuMemcpy2D_v2(&c));
  c = good;
  c.srcMemoryType = CU_MEMORYTYPE_DEVICE;
  c.srcDevice = 4096;
  CODE(1, cuMemcpy2D_v2(&c));
  c = good;
  c.WidthInBytes = 0;
  NOTE(cuMemcpy2D_v2(&c));
  OK(cuArrayDestroy(a));
}

static void test_large(void) {
  enum { SIDE = 1500 };
  CUarray a = flat(SIDE, SIDE);
  uint32_t *in = malloc(SIDE * SIDE * 4), *out = calloc(SIDE * SIDE, 4);
  for (uint32_t i = 0; i < SIDE * SIDE; i++) in[i] = i * 2654435761u;
  CUDA_MEMCPY2D c = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                     .srcHost = in,
                     .srcPitch = SIDE * 4,
                     .WidthInBytes = SIDE * 4,
                     .Height = SIDE};
  to_array(&c, a);
  OK(cuMemcpy2DAsync_v2(&c, NULL));
  memset(in, 0, SIDE * 4);  // pageable bytes are taken at the call
  CUDA_MEMCPY2D back = {.dstMemoryType = CU_MEMORYTYPE_HOST,
                        .dstHost = out,
                        .dstPitch = SIDE * 4,
                        .WidthInBytes = SIDE * 4,
                        .Height = SIDE};
  from_array(&back, a);
  OK(cuMemcpy2D_v2(&back));
  uint32_t differ = 0;
  for (uint32_t i = 0; i < SIDE * SIDE; i++) differ += out[i] != i * 2654435761u;
  IS(0, differ);
  free(in);
  free(out);
  OK(cuArrayDestroy(a));
}

static void test_mipmaps(void) {
  CUmipmappedArray mipmap;
  CUDA_ARRAY3D_DESCRIPTOR d = {32, 16, 0, CU_AD_FORMAT_FLOAT, 1, 0}, seen;
  CUarray levels[3], again;
  CODE(1, cuMipmappedArrayCreate(NULL, &d, 3));
  CODE(1, cuMipmappedArrayCreate(&mipmap, NULL, 3));
  OK(cuMipmappedArrayCreate(&mipmap, &d, 3));
  for (unsigned i = 0; i < 3; i++) {
    OK(cuMipmappedArrayGetLevel(&levels[i], mipmap, i));
    OK(cuArray3DGetDescriptor_v2(&seen, levels[i]));
    IS(32 >> i, seen.Width);
    IS(16 >> i, seen.Height);
  }
  OK(cuMipmappedArrayGetLevel(&again, mipmap, 1));
  NOTE(again == levels[1]);
  CODE(1, cuMipmappedArrayGetLevel(&again, mipmap, 3));
  CODE(1, cuMipmappedArrayGetLevel(NULL, mipmap, 0));
  float row[8] = {1, 2, 3, 4, 5, 6, 7, 8}, out[8] = {0};
  CUDA_MEMCPY2D c = {
      .srcMemoryType = CU_MEMORYTYPE_HOST, .srcHost = row, .srcPitch = 32, .WidthInBytes = 32, .Height = 1};
  to_array(&c, levels[2]);
  OK(cuMemcpy2D_v2(&c));
  CUDA_MEMCPY2D back = {
      .dstMemoryType = CU_MEMORYTYPE_HOST, .dstHost = out, .dstPitch = 32, .WidthInBytes = 32, .Height = 1};
  from_array(&back, levels[2]);
  OK(cuMemcpy2D_v2(&back));
  IS(8, out[7]);
  OK(cuMipmappedArrayDestroy(mipmap));
  CODE(709, cuMipmappedArrayDestroy(mipmap));
  OK(cuMipmappedArrayCreate(&mipmap, &d, 100));  // as many as there can be
  OK(cuMipmappedArrayGetLevel(&again, mipmap, 5));
  CODE(1, cuMipmappedArrayGetLevel(&again, mipmap, 6));
  OK(cuMipmappedArrayDestroy(mipmap));
}

static void test_many(void) {
  for (int i = 0; i < 300; i++) {
    const CUDA_ARRAY_DESCRIPTOR d = {64, 64, CU_AD_FORMAT_UNSIGNED_INT8, 4};
    CUarray array;
    const CUresult made = cuArrayCreate_v2(&array, &d), ended = made ? made : cuArrayDestroy(array);
    if (made || ended) CODE(0, made ? made : ended);
  }
  OK(cuCtxSynchronize());
}

static void test_context_ends(void) {
  CUcontext own;
  OK(cuCtxCreate_v2(&own, 0, device));
  (void)flat(64, 64);
  (void)deep(8, 8, 8, 1, 0);
  OK(cuCtxDestroy_v2(own));
}

/// With one device there is nothing to see.
static void test_two_devices(void) {
  int count = 0;
  OK(cuDeviceGetCount(&count));
  NOTE(count);
  if (count < 2) return;
  CUcontext contexts[2];
  CUarray a[2];
  for (int i = 0; i < 2; i++) {
    OK(cuDevicePrimaryCtxRetain(&contexts[i], i));
    OK(cuCtxSetCurrent(contexts[i]));
    a[i] = flat(WIDTH, HEIGHT);
  }
  // The second device's array is filled from the first one's, by the peer form.
  OK(cuCtxSetCurrent(contexts[0]));
  fill();
  write_in(a[0]);
  CUDA_MEMCPY3D_PEER peer = {.srcMemoryType = CU_MEMORYTYPE_ARRAY,
                             .srcArray = a[0],
                             .srcContext = contexts[0],
                             .dstMemoryType = CU_MEMORYTYPE_ARRAY,
                             .dstArray = a[1],
                             .dstContext = contexts[1],
                             .WidthInBytes = WIDTH * 4,
                             .Height = HEIGHT,
                             .Depth = 1};
  OK(cuMemcpy3DPeer(&peer));
  OK(cuCtxSynchronize());
  OK(cuCtxSetCurrent(contexts[1]));
  OK(cuCtxSynchronize());
  read_back(a[1]);
  IS(0, wrong(1, HEIGHT, WIDTH));
  for (int i = 0; i < 2; i++) {
    OK(cuCtxSetCurrent(contexts[i]));
    OK(cuArrayDestroy(a[i]));
    OK(cuDevicePrimaryCtxRelease_v2(i));
  }
  OK(cuCtxSetCurrent(NULL));
}

SECTIONS({"descriptors", test_descriptors, 0}, {"refused", test_refused, 0}, {"copies_2d", test_copies_2d, 0},
         {"copies_pinned", test_copies_pinned, 0}, {"copies_3d", test_copies_3d, 0}, {"copies_row", test_copies_row, 0},
         {"copies_refused", test_copies_refused, 0}, {"large", test_large, 0}, {"mipmaps", test_mipmaps, 0},
         {"many", test_many, 0}, {"context_ends", test_context_ends, OWN_CONTEXT},
         {"two_devices", test_two_devices, OWN_CONTEXT})
