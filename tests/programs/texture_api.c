// Textures and surfaces: fetches by kernels with every kind of resource, address mode and filter; surface loads and
// stores; what objects say of themselves.
// clang-format off
#define CALLS(X)                                                                                                   \
  X(cuTexObjectCreate,                                                                                             \
    (CUtexObject*, const CUDA_RESOURCE_DESC*, const CUDA_TEXTURE_DESC*, const CUDA_RESOURCE_VIEW_DESC*))           \
  X(cuTexObjectDestroy, (CUtexObject))                                                                             \
  X(cuTexObjectGetResourceDesc, (CUDA_RESOURCE_DESC*, CUtexObject))                                                \
  X(cuTexObjectGetTextureDesc, (CUDA_TEXTURE_DESC*, CUtexObject))                                                  \
  X(cuTexObjectGetResourceViewDesc, (CUDA_RESOURCE_VIEW_DESC*, CUtexObject))                                       \
  X(cuSurfObjectCreate, (CUsurfObject*, const CUDA_RESOURCE_DESC*))                                                \
  X(cuSurfObjectDestroy, (CUsurfObject)) X(cuSurfObjectGetResourceDesc, (CUDA_RESOURCE_DESC*, CUsurfObject))       \
      X(cuArray3DCreate_v2, (CUarray*, const CUDA_ARRAY3D_DESCRIPTOR*)) X(cuArrayDestroy, (CUarray))               \
          X(cuMipmappedArrayCreate, (CUmipmappedArray*, const CUDA_ARRAY3D_DESCRIPTOR*, unsigned))                 \
              X(cuMipmappedArrayGetLevel, (CUarray*, CUmipmappedArray, unsigned))                                  \
                  X(cuMipmappedArrayDestroy, (CUmipmappedArray)) X(cuMemcpy3D_v2, (const CUDA_MEMCPY3D*))          \
                      X(cuMemAlloc_v2, (CUdeviceptr*, size_t)) X(cuMemFree_v2, (CUdeviceptr))                      \
                          X(cuMemAllocPitch_v2, (CUdeviceptr*, size_t*, size_t, size_t, unsigned))                 \
                              X(cuMemcpyHtoD_v2, (CUdeviceptr, const void*, size_t))                               \
                                  X(cuMemcpyDtoH_v2, (void*, CUdeviceptr, size_t))                                 \
                                      X(cuModuleLoadData, (CUmodule*, const void*))                                \
                                          X(cuModuleGetFunction, (CUfunction*, CUmodule, const char*))             \
                                              X(cuModuleUnload, (CUmodule)) X(cuCtxSynchronize, (void))            \
                                                  X(cuLaunchKernel,                                                \
                                                    (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, \
                                                     unsigned, unsigned, CUstream, void**, void**))
// clang-format on

#include "area.h"

// Kernels take a handle, an array of coordinates (4 words for each thread) and an array of results (4 words).
#define KERNEL(name, body)                                                                                 \
  ".visible .entry " name                                                                                  \
  "(.param .u64 object, .param .u64 from, .param .u64 to)\n"                                               \
  "{ .reg .u64 %rd<8>; .reg .f32 %f<12>; .reg .u32 %r<12>; .reg .u32 %i<8>;\n"                             \
  "  ld.param.u64 %rd1, [object]; ld.param.u64 %rd2, [from]; ld.param.u64 %rd3, [to];\n"                   \
  "  mov.u32 %r1, %tid.x; mul.wide.u32 %rd4, %r1, 16;\n"                                                   \
  "  add.u64 %rd5, %rd2, %rd4; add.u64 %rd6, %rd3, %rd4;\n"                                                \
  "  ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd5]; ld.global.v4.u32 {%i1, %i2, %i3, %i4}, [%rd5];\n" body \
  "  ret; }\n"
#define SAMPLE(name, instruction, coordinates)                               \
  KERNEL(name, "  " instruction " {%f5, %f6, %f7, %f8}, [%rd1, " coordinates \
               "];\n  st.global.v4.f32 [%rd6], {%f5, %f6, %f7, %f8};\n")
#define FETCH(name, instruction, coordinates)                                \
  KERNEL(name, "  " instruction " {%r5, %r6, %r7, %r8}, [%rd1, " coordinates \
               "];\n  st.global.v4.u32 [%rd6], {%r5, %r6, %r7, %r8};\n")

static const char ptx[] = ".version 7.0\n.target sm_70\n.address_size 64\n"  //
    SAMPLE("sample_1d", "tex.1d.v4.f32.f32", "{%f1}")                        //
    SAMPLE("sample_2d", "tex.2d.v4.f32.f32", "{%f1, %f2}")
        SAMPLE("sample_3d", "tex.3d.v4.f32.f32", "{%f1, %f2, %f3, %f3}")
            SAMPLE("sample_layer", "tex.a2d.v4.f32.f32", "{%i4, %f1, %f2, %f2}")
                SAMPLE("fetch_1d", "tex.1d.v4.f32.s32", "{%i1}")  //
    FETCH("fetch_2d", "tex.2d.v4.u32.s32", "{%i1, %i2}")
        KERNEL("sample_level",
               "  tex.level.2d.v4.f32.f32 {%f5, %f6, %f7, %f8}, [%rd1, {%f1, %f2}], %f3;\n"
               "  st.global.v4.f32 [%rd6], {%f5, %f6, %f7, %f8};\n")
            KERNEL("surface_2d",  // every element + 1000; elements outside read 0
                   "  shl.b32 %i1, %i1, 2; suld.b.2d.b32.zero {%r5}, [%rd1, {%i1, %i2}];\n"
                   "  add.u32 %r5, %r5, 1000; sust.b.2d.b32.zero [%rd1, {%i1, %i2}], {%r5};\n"
                   "  st.global.u32 [%rd6], %r5;\n")
                KERNEL("surface_3d",
                       "  shl.b32 %i1, %i1, 3; suld.b.3d.v2.b32.clamp {%r5, %r6}, [%rd1, {%i1, %i2, %i3, %i3}];\n"
                       "  st.global.v2.u32 [%rd6], {%r5, %r6}; add.u32 %r5, %r5, 7;\n"
                       "  sust.b.3d.v2.b32.trap [%rd1, {%i1, %i2, %i3, %i3}], {%r5, %r6};\n");

enum { THREADS_MAX = 32 };

static CUmodule module;
static CUdeviceptr coordinates, results;

static void begin(void) {
  OK(cuModuleLoadData(&module, ptx));
  OK(cuMemAlloc_v2(&coordinates, THREADS_MAX * 16));
  OK(cuMemAlloc_v2(&results, THREADS_MAX * 16));
}

static void end(void) {
  OK(cuCtxSynchronize());
  OK(cuMemFree_v2(coordinates));
  OK(cuMemFree_v2(results));
  OK(cuModuleUnload(module));
}

static void launch(const char* name, unsigned long long object, const void* from, unsigned count, void* to) {
  CUfunction function;
  OK(cuModuleGetFunction(&function, module, name));
  OK(cuMemcpyHtoD_v2(coordinates, from, count * 16));
  void* params[] = {&object, &coordinates, &results};
  OK(cuLaunchKernel(function, 1, 1, 1, count, 1, 1, 0, NULL, params, NULL));
  OK(cuMemcpyDtoH_v2(to, results, count * 16));
}

#define NEAR(expected, value)                                                                               \
  do {                                                                                                      \
    const double want_ = (expected), have_ = (value), off_ = want_ > have_ ? want_ - have_ : have_ - want_; \
    report(off_ < 1e-6, __LINE__, #value " (micro)", (long long)(want_ * 1e6), (long long)(have_ * 1e6));   \
  } while (0)

static CUarray make(CUarray_format format, unsigned channels, size_t width, size_t height, size_t depth, unsigned flags,
                    const void* content, size_t element_bytes) {
  const CUDA_ARRAY3D_DESCRIPTOR d = {width, height, depth, format, channels, flags};
  CUarray array = NULL;
  OK(cuArray3DCreate_v2(&array, &d));
  const size_t rows = height ? height : 1;
  const CUDA_MEMCPY3D c = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                           .srcHost = content,
                           .srcPitch = width * element_bytes,
                           .srcHeight = rows,
                           .dstMemoryType = CU_MEMORYTYPE_ARRAY,
                           .dstArray = array,
                           .WidthInBytes = width * element_bytes,
                           .Height = rows,
                           .Depth = depth ? depth : 1};
  OK(cuMemcpy3D_v2(&c));
  return array;
}

static CUDA_RESOURCE_DESC of_array(CUarray array) {
  CUDA_RESOURCE_DESC r;
  memset(&r, 0, sizeof r);
  r.resType = CU_RESOURCE_TYPE_ARRAY;
  r.res.array.hArray = array;
  return r;
}

static CUtexObject texture(const CUDA_RESOURCE_DESC* resource, CUaddress_mode mode, CUfilter_mode filter,
                           unsigned flags) {
  CUDA_TEXTURE_DESC t;
  memset(&t, 0, sizeof t);
  for (int i = 0; i < 3; i++) t.addressMode[i] = mode;
  t.filterMode = filter;
  t.flags = flags;
  CUtexObject object = 0;
  OK(cuTexObjectCreate(&object, resource, &t, NULL));
  return object;
}

enum { WRAP = CU_TR_ADDRESS_MODE_WRAP, CLAMP = CU_TR_ADDRESS_MODE_CLAMP, MIRROR = CU_TR_ADDRESS_MODE_MIRROR };
enum { BORDER = CU_TR_ADDRESS_MODE_BORDER, POINT = CU_TR_FILTER_MODE_POINT, LINEAR = CU_TR_FILTER_MODE_LINEAR };

static float grid[4][4][4];  // [z][y][x] = 100 z + 10 y + x

static CUarray grid_array(size_t height, size_t depth, unsigned flags) {
  for (int i = 0; i < 64; i++) grid[i / 16][i / 4 % 4][i % 4] = (float)(i / 16 * 100 + i / 4 % 4 * 10 + i % 4);
  return make(CU_AD_FORMAT_FLOAT, 1, 4, height, depth, flags, grid, 4);
}

static void test_point(void) {
  begin();
  float out[4][4];
  CUarray line = grid_array(0, 0, 0), square = grid_array(4, 0, 0), cube = grid_array(4, 4, 0);
  CUDA_RESOURCE_DESC r = of_array(line);
  CUtexObject t = texture(&r, CLAMP, POINT, 0);
  const float xs[4][4] = {{0.5f}, {2.9f}, {-3}, {100}};
  launch("sample_1d", t, xs, 4, out);
  NEAR(0, out[0][0]);
  NEAR(2, out[1][0]);
  NEAR(0, out[2][0]);
  NEAR(3, out[3][0]);
  NOTE(out[0][1]);  // channels that are not there
  NOTE(out[0][3]);
  OK(cuTexObjectDestroy(t));
  r = of_array(square);
  t = texture(&r, CLAMP, POINT, 0);
  const float xy[4][4] = {{1.5f, 2.5f}, {-3, 9}, {3.999f, 0}, {4, 1}};
  launch("sample_2d", t, xy, 4, out);
  NEAR(21, out[0][0]);
  NEAR(30, out[1][0]);
  NEAR(3, out[2][0]);
  NEAR(13, out[3][0]);
  OK(cuTexObjectDestroy(t));
  r = of_array(cube);
  t = texture(&r, CLAMP, POINT, 0);
  const float xyz[3][4] = {{1.5f, 2.5f, 3.5f}, {0, 0, 9}, {2, 3, 1}};
  launch("sample_3d", t, xyz, 3, out);
  NEAR(321, out[0][0]);
  NEAR(300, out[1][0]);
  NEAR(132, out[2][0]);
  OK(cuTexObjectDestroy(t));
  OK(cuArrayDestroy(line));
  OK(cuArrayDestroy(square));
  OK(cuArrayDestroy(cube));
  end();
}

static void test_address_modes(void) {
  begin();
  float out[6][4];
  CUarray square = grid_array(4, 0, 0);
  const CUDA_RESOURCE_DESC r = of_array(square);
  // On the unit interval; 4 elements of 1/4.
  const float xy[6][4] = {{0.125f, 0.125f}, {1.125f, 0.125f}, {-0.125f, 0.125f},
                          {1.375f, 0.125f}, {2.125f, 0.125f}, {0.125f, -0.375f}};
  const float expected[4][6] = {{0, 0, 3, 1, 0, 20}, {0, 3, 0, 3, 3, 0}, {0, 3, 0, 2, 0, 10}, {0, 0, 0, 0, 0, 0}};
  for (int mode = WRAP; mode <= BORDER; mode++) {
    CUtexObject t = texture(&r, (CUaddress_mode)mode, POINT, CU_TRSF_NORMALIZED_COORDINATES);
    launch("sample_2d", t, xy, 6, out);
    for (int i = 0; i < 6; i++) NEAR(expected[mode][i], out[i][0]);
    OK(cuTexObjectDestroy(t));
  }
  CUDA_TEXTURE_DESC d;
  memset(&d, 0, sizeof d);
  for (int i = 0; i < 3; i++) d.addressMode[i] = BORDER;
  d.borderColor[0] = 7.5f;
  CUtexObject t;
  OK(cuTexObjectCreate(&t, &r, &d, NULL));
  const float outside[2][4] = {{-1, 1}, {1.5f, 1.5f}};
  launch("sample_2d", t, outside, 2, out);
  NEAR(7.5, out[0][0]);
  NEAR(11, out[1][0]);
  OK(cuTexObjectDestroy(t));
  OK(cuArrayDestroy(square));
  end();
}

static void test_linear_filter(void) {
  begin();
  float out[5][4];
  CUarray square = grid_array(4, 0, 0), cube = grid_array(4, 4, 0);
  CUDA_RESOURCE_DESC r = of_array(square);
  CUtexObject t = texture(&r, CLAMP, LINEAR, 0);
  const float xy[5][4] = {{2, 0.5f}, {0.5f, 0.5f}, {1, 2}, {1.75f, 0.5f}, {0, 0}};
  launch("sample_2d", t, xy, 5, out);
  NEAR(1.5, out[0][0]);
  NEAR(0, out[1][0]);
  NEAR(15.5, out[2][0]);
  NEAR(1.25, out[3][0]);
  NEAR(0, out[4][0]);
  OK(cuTexObjectDestroy(t));
  t = texture(&r, WRAP, LINEAR, CU_TRSF_NORMALIZED_COORDINATES);
  const float unit[1][4] = {{0, 0.125f}};  // halfway between the last and the first
  launch("sample_2d", t, unit, 1, out);
  NEAR(1.5, out[0][0]);
  OK(cuTexObjectDestroy(t));
  r = of_array(cube);
  t = texture(&r, CLAMP, LINEAR, 0);
  const float xyz[1][4] = {{1, 1, 1}};
  launch("sample_3d", t, xyz, 1, out);
  NEAR(55.5, out[0][0]);
  OK(cuTexObjectDestroy(t));
  OK(cuArrayDestroy(square));
  OK(cuArrayDestroy(cube));
  end();
}

static void test_layers(void) {
  begin();
  float out[3][4];
  CUarray layers = grid_array(4, 4, CUDA_ARRAY3D_LAYERED);
  const CUDA_RESOURCE_DESC r = of_array(layers);
  CUtexObject t = texture(&r, CLAMP, POINT, 0);
  float xy[3][4] = {{1.5f, 2.5f}, {3.5f, 0.5f}, {0.5f, 0.5f}};
  for (int i = 0; i < 3; i++) memcpy(&xy[i][3], &(int){i + 1}, 4);
  launch("sample_layer", t, xy, 3, out);
  NEAR(121, out[0][0]);
  NEAR(203, out[1][0]);
  NEAR(300, out[2][0]);
  OK(cuTexObjectDestroy(t));
  OK(cuArrayDestroy(layers));
  end();
}

static void test_integers(void) {
  begin();
  const uint8_t bytes[4][4] = {{0, 51, 102, 255}, {1, 2, 3, 4}, {10, 20, 30, 40}, {200, 201, 202, 203}};
  CUarray array = make(CU_AD_FORMAT_UNSIGNED_INT8, 4, 2, 2, 0, 0, bytes, 4);
  const CUDA_RESOURCE_DESC r = of_array(array);
  float fractions[1][4];
  CUtexObject t = texture(&r, CLAMP, POINT, 0);
  const float xy[1][4] = {{0.5f, 0.5f}};
  launch("sample_2d", t, xy, 1, fractions);
  NEAR(0, fractions[0][0]);
  NEAR(0.2, fractions[0][1]);
  NEAR(0.4, fractions[0][2]);
  NEAR(1, fractions[0][3]);
  OK(cuTexObjectDestroy(t));
  t = texture(&r, CLAMP, POINT, CU_TRSF_READ_AS_INTEGER);
  uint32_t whole[3][4];
  const int at[3][4] = {{0, 0}, {1, 0}, {1, 1}};
  launch("fetch_2d", t, at, 3, whole);
  IS(51, whole[0][1]);
  IS(1, whole[1][0]);
  IS(203, whole[2][3]);
  OK(cuTexObjectDestroy(t));
  OK(cuArrayDestroy(array));
  end();
}

static void test_linear_memory(void) {
  begin();
  float values[64], out[5][4];
  for (int i = 0; i < 64; i++) values[i] = (float)i * 2;
  CUdeviceptr memory;
  OK(cuMemAlloc_v2(&memory, sizeof values));
  OK(cuMemcpyHtoD_v2(memory, values, sizeof values));
  CUDA_RESOURCE_DESC r;
  memset(&r, 0, sizeof r);
  r.resType = CU_RESOURCE_TYPE_LINEAR;
  r.res.linear.devPtr = memory;
  r.res.linear.format = CU_AD_FORMAT_FLOAT;
  r.res.linear.numChannels = 1;
  r.res.linear.sizeInBytes = sizeof values;
  CUtexObject t = texture(&r, CLAMP, POINT, 0);
  const int at[5][4] = {{0}, {1}, {63}, {64}, {-1}};
  launch("fetch_1d", t, at, 5, out);
  NEAR(0, out[0][0]);
  NEAR(2, out[1][0]);
  NEAR(126, out[2][0]);
  NEAR(0, out[3][0]);
  NEAR(0, out[4][0]);
  // What is written later is seen by later launches.
  values[1] = 77;
  OK(cuMemcpyHtoD_v2(memory, values, sizeof values));
  launch("fetch_1d", t, at, 2, out);
  NEAR(77, out[1][0]);
  OK(cuTexObjectDestroy(t));
  CUDA_TEXTURE_DESC d;
  memset(&d, 0, sizeof d);
  r.res.linear.sizeInBytes = 0;
  NOTE(cuTexObjectCreate(&t, &r, &d, NULL));
  OK(cuMemFree_v2(memory));
  end();
}

static void test_pitched_memory(void) {
  begin();
  CUdeviceptr memory;
  size_t pitch;
  float out[3][4];
  OK(cuMemAllocPitch_v2(&memory, &pitch, 16, 4, 4));
  for (int i = 0; i < 16; i++) grid[0][i / 4][i % 4] = (float)(i / 4 * 10 + i % 4);
  for (int y = 0; y < 4; y++) OK(cuMemcpyHtoD_v2(memory + y * pitch, grid[0][y], 16));
  CUDA_RESOURCE_DESC r;
  memset(&r, 0, sizeof r);
  r.resType = CU_RESOURCE_TYPE_PITCH2D;
  r.res.pitch2D.devPtr = memory;
  r.res.pitch2D.format = CU_AD_FORMAT_FLOAT;
  r.res.pitch2D.numChannels = 1;
  r.res.pitch2D.width = 4;
  r.res.pitch2D.height = 4;
  r.res.pitch2D.pitchInBytes = pitch;
  CUtexObject t = texture(&r, CLAMP, LINEAR, 0);
  const float xy[3][4] = {{2, 0.5f}, {1, 2}, {9, 9}};
  launch("sample_2d", t, xy, 3, out);
  NEAR(1.5, out[0][0]);
  NEAR(15.5, out[1][0]);
  NEAR(33, out[2][0]);
  OK(cuTexObjectDestroy(t));
  CUDA_TEXTURE_DESC d;
  memset(&d, 0, sizeof d);
  r.res.pitch2D.pitchInBytes = pitch + 4;
  CODE(1, cuTexObjectCreate(&t, &r, &d, NULL));
  OK(cuMemFree_v2(memory));
  end();
}

static void test_levels(void) {
  begin();
  CUmipmappedArray mipmap;
  const CUDA_ARRAY3D_DESCRIPTOR d = {8, 8, 0, CU_AD_FORMAT_FLOAT, 1, 0};
  OK(cuMipmappedArrayCreate(&mipmap, &d, 3));
  float content[64], out[3][4];
  for (unsigned i = 0; i < 3; i++) {
    CUarray level;
    OK(cuMipmappedArrayGetLevel(&level, mipmap, i));
    for (int k = 0; k < 64; k++) content[k] = (float)(i * 100 + k);
    const CUDA_MEMCPY3D c = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                             .srcHost = content,
                             .srcPitch = 32u >> i,
                             .dstMemoryType = CU_MEMORYTYPE_ARRAY,
                             .dstArray = level,
                             .WidthInBytes = 32u >> i,
                             .Height = 8u >> i,
                             .Depth = 1};
    OK(cuMemcpy3D_v2(&c));
  }
  CUDA_RESOURCE_DESC r;
  memset(&r, 0, sizeof r);
  r.resType = CU_RESOURCE_TYPE_MIPMAPPED_ARRAY;
  r.res.mipmap.hMipmappedArray = mipmap;
  CUDA_TEXTURE_DESC t;
  memset(&t, 0, sizeof t);
  for (int i = 0; i < 3; i++) t.addressMode[i] = CLAMP;
  t.flags = CU_TRSF_NORMALIZED_COORDINATES;
  t.maxMipmapLevelClamp = 2;
  CUtexObject object;
  OK(cuTexObjectCreate(&object, &r, &t, NULL));
  const float at[3][4] = {{0.99f, 0.99f, 0}, {0.99f, 0.99f, 1}, {0.01f, 0.01f, 2}};
  launch("sample_level", object, at, 3, out);
  NEAR(63, out[0][0]);
  NEAR(115, out[1][0]);
  NEAR(200, out[2][0]);
  OK(cuTexObjectDestroy(object));
  OK(cuMipmappedArrayDestroy(mipmap));
  end();
}

static void test_surfaces(void) {
  begin();
  uint32_t content[16], seen[16], out[6][4];
  for (uint32_t i = 0; i < 16; i++) content[i] = i;
  CUarray array = make(CU_AD_FORMAT_UNSIGNED_INT32, 1, 4, 4, 0, CUDA_ARRAY3D_SURFACE_LDST, content, 4);
  CUDA_RESOURCE_DESC r = of_array(array), told;
  CUsurfObject surface;
  OK(cuSurfObjectCreate(&surface, &r));
  memset(&told, 0xff, sizeof told);
  OK(cuSurfObjectGetResourceDesc(&told, surface));
  IS(CU_RESOURCE_TYPE_ARRAY, told.resType);
  TRUE(told.res.array.hArray == array);
  const int at[6][4] = {{0, 0}, {3, 0}, {1, 2}, {3, 3}, {4, 0}, {0, -1}};
  launch("surface_2d", surface, at, 6, out);
  IS(1000, out[0][0]);
  IS(1003, out[1][0]);
  IS(1009, out[2][0]);
  IS(1015, out[3][0]);
  IS(1000, out[4][0]);
  IS(1000, out[5][0]);
  const CUDA_MEMCPY3D back = {.srcMemoryType = CU_MEMORYTYPE_ARRAY,
                              .srcArray = array,
                              .dstMemoryType = CU_MEMORYTYPE_HOST,
                              .dstHost = seen,
                              .dstPitch = 16,
                              .WidthInBytes = 16,
                              .Height = 4,
                              .Depth = 1};
  OK(cuMemcpy3D_v2(&back));
  IS(1000, seen[0]);
  IS(1, seen[1]);
  IS(1003, seen[3]);
  IS(4, seen[4]);
  IS(1009, seen[9]);
  IS(1015, seen[15]);
  OK(cuSurfObjectDestroy(surface));
  OK(cuArrayDestroy(array));
  uint32_t pairs[8][2];
  for (uint32_t i = 0; i < 8; i++) pairs[i][0] = i, pairs[i][1] = i * 11;
  array = make(CU_AD_FORMAT_UNSIGNED_INT32, 2, 2, 2, 2, CUDA_ARRAY3D_SURFACE_LDST, pairs, 8);
  r = of_array(array);
  OK(cuSurfObjectCreate(&surface, &r));
  const int cells[2][4] = {{1, 0, 1}, {0, 1, 0}};
  launch("surface_3d", surface, cells, 2, out);
  IS(5, out[0][0]);
  IS(55, out[0][1]);
  IS(2, out[1][0]);
  launch("surface_3d", surface, cells, 2, out);
  IS(12, out[0][0]);
  IS(55, out[0][1]);
  IS(9, out[1][0]);
  OK(cuSurfObjectDestroy(surface));
  OK(cuArrayDestroy(array));
  end();
}

static void test_objects(void) {
  CUarray square = grid_array(4, 0, 0);
  CUDA_RESOURCE_DESC r = of_array(square), resource;
  CUDA_TEXTURE_DESC t, told;
  CUDA_RESOURCE_VIEW_DESC view;
  CUtexObject object = 0, other = 0;
  memset(&t, 0, sizeof t);
  for (int i = 0; i < 3; i++) t.addressMode[i] = CLAMP;
  t.filterMode = LINEAR;
  CODE(1, cuTexObjectCreate(NULL, &r, &t, NULL));
  CODE(1, cuTexObjectCreate(&object, NULL, &t, NULL));
  CODE(1, cuTexObjectCreate(&object, &r, NULL, NULL));
  OK(cuTexObjectCreate(&object, &r, &t, NULL));
  OK(cuTexObjectCreate(&other, &r, &t, NULL));
  TRUE(object != 0);
  TRUE(object != other);
  NOTE(object);
  OK(cuTexObjectGetResourceDesc(&resource, object));
  IS(CU_RESOURCE_TYPE_ARRAY, resource.resType);
  TRUE(resource.res.array.hArray == square);
  OK(cuTexObjectGetTextureDesc(&told, object));
  IS(CLAMP, told.addressMode[0]);
  IS(LINEAR, told.filterMode);
  IS(0, told.flags);
  OK(cuTexObjectGetResourceViewDesc(&view, object));
  memset(&view, 0, sizeof view);
  view.width = view.height = 4;
  CUtexObject viewed;
  const CUresult with_view = cuTexObjectCreate(&viewed, &r, &t, &view);
  NOTE(with_view);
  if (with_view == 0) {
    memset(&view, 0, sizeof view);
    OK(cuTexObjectGetResourceViewDesc(&view, viewed));
    IS(4, view.width);
    OK(cuTexObjectDestroy(viewed));
  }
  r.flags = 1;
  NOTE(cuTexObjectCreate(&viewed, &r, &t, NULL));
  r.flags = 0;
  r.resType = 9;
  CODE(1, cuTexObjectCreate(&viewed, &r, &t, NULL));
  r = of_array(square);
  CUsurfObject surface;
  NOTE(cuSurfObjectCreate(&surface, &r));  // made without CUDA_ARRAY3D_SURFACE_LDST
  OK(cuTexObjectDestroy(object));
  OK(cuTexObjectDestroy(other));
  OK(cuArrayDestroy(square));
}

enum { THREADS = 4 };

/// Objects of several threads: what each asks of its own must be what it made it from.
static void* make_objects(void* own) {
  uint64_t wrong = cuCtxSetCurrent(context) != 0;
  const CUarray array = own;
  for (int i = 0; i < 200; i++) {
    CUDA_RESOURCE_DESC r = of_array(array), told;
    CUDA_TEXTURE_DESC t, seen;
    CUtexObject objects[3];
    memset(&t, 0, sizeof t);
    for (int k = 0; k < 3; k++) {
      t.filterMode = (i + k) % 2 ? CU_TR_FILTER_MODE_LINEAR : CU_TR_FILTER_MODE_POINT;
      wrong += cuTexObjectCreate(&objects[k], &r, &t, NULL) != 0;
    }
    for (int k = 0; k < 3; k++) {
      wrong += cuTexObjectGetResourceDesc(&told, objects[k]) != 0 || told.res.array.hArray != array;
      wrong += cuTexObjectGetTextureDesc(&seen, objects[k]) != 0 ||
               (seen.filterMode == CU_TR_FILTER_MODE_LINEAR) != ((i + k) % 2 != 0);
      wrong += cuTexObjectDestroy(objects[k]) != 0;
    }
  }
  return (void*)(uintptr_t)wrong;
}

static void test_threads(void) {
  pthread_t threads[THREADS];
  CUarray arrays[THREADS];
  for (int i = 0; i < THREADS; i++) {
    arrays[i] = grid_array(4, 0, 0);
    IS(0, pthread_create(&threads[i], NULL, make_objects, arrays[i]));
  }
  for (int i = 0; i < THREADS; i++) {
    void* wrong;
    IS(0, pthread_join(threads[i], &wrong));
    IS(0, (uintptr_t)wrong);
  }
  for (int i = 0; i < THREADS; i++) OK(cuArrayDestroy(arrays[i]));
}

static void test_many(void) {
  begin();
  float out[1][4];
  const float at[1][4] = {{1.5f, 2.5f}};
  for (int i = 0; i < 50; i++) {  // indices and handles are used again, in the order of the calls
    CUarray square = grid_array(4, 0, 0);
    const CUDA_RESOURCE_DESC r = of_array(square);
    CUtexObject t = texture(&r, CLAMP, POINT, 0);
    launch("sample_2d", t, at, 1, out);
    NEAR(21, out[0][0]);
    OK(cuTexObjectDestroy(t));
    OK(cuArrayDestroy(square));
  }
  end();
}

SECTIONS({"point", test_point, 0}, {"address_modes", test_address_modes, 0}, {"linear_filter", test_linear_filter, 0},
         {"layers", test_layers, 0}, {"integers", test_integers, 0}, {"linear_memory", test_linear_memory, 0},
         {"pitched_memory", test_pitched_memory, 0}, {"levels", test_levels, 0}, {"surfaces", test_surfaces, 0},
         {"objects", test_objects, 0}, {"many", test_many, 0}, {"threads", test_threads, 0})
