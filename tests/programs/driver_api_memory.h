// Part of driver_api.c: device memory, pinned memory, copies, fills, pointer attributes.

static uint8_t pattern(size_t i, unsigned seed) { return (uint8_t)(i * 131 + (i >> 8) * 29 + seed); }
static void fill_pattern(uint8_t* p, size_t n, unsigned seed) {
  for (size_t i = 0; i < n; i++) p[i] = pattern(i, seed);
}
static int is_pattern(const uint8_t* p, size_t n, unsigned seed) {
  for (size_t i = 0; i < n; i++) {
    if (p[i] != pattern(i, seed)) return 0;
  }
  return 1;
}

static void test_memory(void) {
  CUdeviceptr p = 0, q = 0, base = 0;
  size_t bytes = 0, free_before = 0, free_after = 0, total = 0;
  CODE(1, cuMemAlloc_v2(NULL, 16));
  CODE(1, cuMemAlloc_v2(&p, 0));
  CODE(2, cuMemAlloc_v2(&p, (size_t)1 << 46));
  OK(cuMemAlloc_v2(&p, 1));
  IS(0, p % 256);
  OK(cuMemGetAddressRange_v2(&base, &bytes, p));
  IS(p, base);
  IS(1, bytes);
  OK(cuMemGetAddressRange_v2(NULL, &bytes, p));
  CODE(500, cuMemGetAddressRange_v2(&base, &bytes, 0x10));
  OK(cuMemFree_v2(p));
  CODE(1, cuMemFree_v2(p));
  OK(cuMemFree_v2(0));
  CODE(1, cuMemFree_v2(0x1234567));
  OK(cuMemAlloc_v2(&p, 3 << 20));
  CODE(1, cuMemFree_v2(p + 512));
  OK(cuMemGetAddressRange_v2(&base, &bytes, p + 4096));
  IS(p, base);
  IS(3 << 20, bytes);
  // Several rounds: another program on the GPU may free memory between the two questions.
  for (int round = 0; round < 10; round++) {
    OK(cuMemGetInfo_v2(&free_before, &total));
    TRUE(free_before < total);
    OK(cuMemAlloc_v2(&q, 64 << 20));
    OK(cuMemGetInfo_v2(&free_after, &total));
    OK(cuMemFree_v2(q));
    if (free_before >= free_after + (64 << 20)) break;
  }
  TRUE(free_before >= free_after + (64 << 20));
  OK(cuMemFree_v2(p));
  size_t pitch = 0;
  OK(cuMemAllocPitch_v2(&p, &pitch, 1000, 10, 4));
  IS(0, pitch % 512);
  TRUE(pitch >= 1000);
  OK(cuMemFree_v2(p));
  CODE(1, cuMemAllocPitch_v2(&p, &pitch, 0, 10, 4));
  CODE(1, cuMemAllocPitch_v2(&p, &pitch, 1000, 10, 3));
  // Many small blocks: distinct, and used again.
  enum { COUNT = 600 };
  static CUdeviceptr blocks[COUNT];
  int bad = 0;
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < COUNT; i++) bad += cuMemAlloc_v2(&blocks[i], 100 + (size_t)(i * 7919 % 30000)) != 0;
    for (int i = 0; i < COUNT; i++) bad += cuMemsetD32_v2(blocks[i], (unsigned)i, 25) != 0;
    for (int i = 0; i < COUNT; i += 37) {
      unsigned out[25];
      bad += cuMemcpyDtoH_v2(out, blocks[i], sizeof out) != 0 || out[0] != (unsigned)i || out[24] != (unsigned)i;
    }
    for (int i = 0; i < COUNT; i++) bad += cuMemFree_v2(blocks[(i * 7 + 3) % COUNT]) != 0;
  }
  IS(0, bad);
}

static void test_pinned(void) {
  void *h = NULL, *h2 = NULL;
  CUdeviceptr d = 0, p = 0;
  unsigned flags = 0;
  OK(cuMemHostAlloc(&h, 0, 0));
  CODE(1, cuMemHostAlloc(&h, 16, 0x100));
  OK(cuMemHostAlloc(&h, 100000, 1));
  OK(cuMemAllocHost_v2(&h2, 5000));
  OK(cuMemHostGetDevicePointer_v2(&d, h, 0));
  IS((uintptr_t)h, d);
  OK(cuMemHostGetFlags(&flags, h));
  IS(3, flags);
  OK(cuMemHostGetFlags(&flags, h2));
  IS(3, flags);
  int on_stack = 0;
  CODE(1, cuMemHostGetDevicePointer_v2(&d, &on_stack, 0));
  CODE(1, cuMemFreeHost(&on_stack));
  OK(cuMemAlloc_v2(&p, 100000));
  fill_pattern(h, 100000, 1);
  OK(cuMemcpyHtoD_v2(p, h, 100000));
  memset(h, 0, 100000);
  OK(cuMemcpyDtoH_v2(h, p, 100000));
  TRUE(is_pattern(h, 100000, 1));
  // The buffer is filled by the stream and read back by it, with no wait between.
  CUstream stream = NULL;
  CUdeviceptr q = 0;
  OK(cuMemAlloc_v2(&q, 65536));
  OK(cuStreamCreate(&stream, 1));
  int bad = 0;
  for (int i = 0; i < 50; i++) {
    bad += cuMemsetD8Async(p, (unsigned char)i, 65536, stream) != 0;
    bad += cuMemcpyDtoHAsync_v2(h, p, 65536, stream) != 0;
    bad += cuMemcpyHtoDAsync_v2(q, h, 65536, stream) != 0;
    bad += cuStreamSynchronize(stream) != 0;
    uint8_t out[2];
    bad += cuMemcpyDtoH_v2(out, q + 65534, 2) != 0 || out[0] != (uint8_t)i || ((uint8_t*)h)[777] != (uint8_t)i;
    memset(h, 0xee, 65536);  // the program's own bytes, which the next up-copy must not pick up
  }
  IS(0, bad);
  OK(cuStreamDestroy_v2(stream));
  OK(cuMemFree_v2(q));
  OK(cuMemFree_v2(p));
  OK(cuMemFreeHost(h));
  CODE(1, cuMemFreeHost(h));
  OK(cuMemFreeHost(h2));
  void* mine = NULL;
  if (posix_memalign(&mine, 4096, 8192) != 0) return;
  OK(cuMemHostRegister_v2(mine, 8192, 0));
  CODE(712, cuMemHostRegister_v2(mine, 8192, 0));
  OK(cuMemHostUnregister(mine));
  CODE(713, cuMemHostUnregister(mine));
  free(mine);
}

static void round_trip(size_t n, size_t device_skip, size_t host_skip, CUstream stream, int async) {
  CUdeviceptr p = 0;
  uint8_t *in = malloc(n + 64), *out = malloc(n + 64);
  int bad = cuMemAlloc_v2(&p, n + 64) != 0;
  fill_pattern(in + host_skip, n, (unsigned)n);
  memset(out, 0, n + 64);
  if (async) {
    bad += cuMemcpyHtoDAsync_v2(p + device_skip, in + host_skip, n, stream) != 0;
    memset(in, 0, n + 64);  // pageable: taken at the call
    bad += cuMemcpyDtoHAsync_v2(out + host_skip, p + device_skip, n, stream) != 0;
    bad += cuStreamSynchronize(stream) != 0;
  } else {
    bad += cuMemcpyHtoD_v2(p + device_skip, in + host_skip, n) != 0;
    memset(in, 0, n + 64);
    bad += cuMemcpyDtoH_v2(out + host_skip, p + device_skip, n) != 0;
  }
  bad += !is_pattern(out + host_skip, n, (unsigned)n) || out[host_skip + n] != 0;
  bad += cuMemFree_v2(p) != 0;
  char what[80];
  snprintf(what, sizeof what, "round trip of %zu bytes, async %d", n, async);
  report(!bad, __LINE__, what, 0, bad);
  free(in);
  free(out);
}

static void test_copies(void) {
  static const size_t sizes[] = {1, 3, 4, 100, 4095, 4096, 4097, 65536, 1000003, 2097152, 2097153, 9000001, 40000000};
  CUstream stream = NULL;
  OK(cuStreamCreate(&stream, 0));
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    round_trip(sizes[i], i % 5, i % 3, NULL, 0);
    round_trip(sizes[i], i % 4, i % 7, stream, 1);
    round_trip(sizes[i], 0, 0, NULL, 1);
  }
  CUdeviceptr p = 0, q = 0;
  uint8_t buffer[4096], out[4096];
  OK(cuMemAlloc_v2(&p, 2 << 20));
  OK(cuMemAlloc_v2(&q, 2 << 20));
  CODE(1, cuMemcpyHtoD_v2(p + (2 << 20) - 8, buffer, 16));
  CODE(1, cuMemcpyDtoH_v2(buffer, p + (2 << 20) - 8, 16));
  CODE(1, cuMemcpyHtoD_v2(0x1000, buffer, 16));
  CODE(1, cuMemcpyHtoD_v2(0, buffer, 16));
  CODE(1, cuMemcpyDtoD_v2(p, 0x1000, 16));
  OK(cuMemcpyHtoD_v2(p, buffer, 0));
  fill_pattern(buffer, sizeof buffer, 9);
  OK(cuMemcpyHtoD_v2(p, buffer, sizeof buffer));
  OK(cuMemcpyDtoD_v2(q + 100, p, sizeof buffer));
  OK(cuMemcpy((CUdeviceptr)(uintptr_t)out, q + 100, sizeof out));
  TRUE(is_pattern(out, sizeof out, 9));
  memset(out, 0, sizeof out);
  OK(cuMemcpy((CUdeviceptr)(uintptr_t)out, (CUdeviceptr)(uintptr_t)buffer, sizeof out));
  TRUE(is_pattern(out, sizeof out, 9));
  OK(cuMemcpyAsync(q, p, 4096, stream));
  OK(cuMemcpyDtoDAsync_v2(p + 8192, q, 4096, stream));
  OK(cuMemcpyPeer(q + 8192, context, p, context, 4096));
  OK(cuStreamSynchronize(stream));
  memset(out, 0, sizeof out);
  OK(cuMemcpyDtoH_v2(out, p + 8192, sizeof out));
  TRUE(is_pattern(out, sizeof out, 9));
  memset(out, 0, sizeof out);
  OK(cuMemcpyDtoH_v2(out, q + 8192, sizeof out));
  TRUE(is_pattern(out, sizeof out, 9));
  // Reads after writes of kernels and copies on one stream.
  OK(cuMemsetD32Async(p, 0, 1000, stream));
  for (unsigned i = 1; i <= 20; i++) OK(launch_add(p, 1000, i, stream));
  unsigned sums[1000];
  OK(cuMemcpyDtoHAsync_v2(sums, p, sizeof sums, stream));
  OK(cuStreamSynchronize(stream));
  IS(210, sums[0]);
  IS(210, sums[999]);
  OK(cuMemFree_v2(p));
  OK(cuMemFree_v2(q));
  OK(cuStreamDestroy_v2(stream));
}

static CUDA_MEMCPY2D up_2d(const void* host, size_t host_pitch, CUdeviceptr p, size_t pitch, size_t width,
                           size_t height) {
  CUDA_MEMCPY2D c = {0};
  c.srcMemoryType = CU_MEMORYTYPE_HOST;
  c.srcHost = host;
  c.srcPitch = host_pitch;
  c.dstMemoryType = CU_MEMORYTYPE_DEVICE;
  c.dstDevice = p;
  c.dstPitch = pitch;
  c.WidthInBytes = width;
  c.Height = height;
  return c;
}

static CUDA_MEMCPY2D down_2d(void* host, size_t host_pitch, CUdeviceptr p, size_t pitch, size_t width, size_t height) {
  CUDA_MEMCPY2D c = {0};
  c.srcMemoryType = CU_MEMORYTYPE_DEVICE;
  c.srcDevice = p;
  c.srcPitch = pitch;
  c.dstMemoryType = CU_MEMORYTYPE_HOST;
  c.dstHost = host;
  c.dstPitch = host_pitch;
  c.WidthInBytes = width;
  c.Height = height;
  return c;
}

static int same_rows(const uint8_t* a, size_t a_pitch, const uint8_t* b, size_t b_pitch, size_t width, size_t rows) {
  for (size_t y = 0; y < rows; y++) {
    if (memcmp(a + y * a_pitch, b + y * b_pitch, width) != 0) return 0;
  }
  return 1;
}

static void copies_2d_of(uint8_t* in, uint8_t* out, size_t host_pitch, size_t width, size_t height) {
  CUdeviceptr p = 0, q = 0;
  size_t pitch = 0, pitch_2 = 0;
  OK(cuMemAllocPitch_v2(&p, &pitch, width, height, 4));
  OK(cuMemAllocPitch_v2(&q, &pitch_2, width + 1024, height + 2, 4));
  fill_pattern(in, host_pitch * height, 3);
  memset(out, 0xaa, host_pitch * height);
  CUDA_MEMCPY2D c = up_2d(in, host_pitch, p, pitch, width, height);
  OK(cuMemcpy2D_v2(&c));
  c = (CUDA_MEMCPY2D){.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                      .srcDevice = p,
                      .srcPitch = pitch,
                      .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                      .dstDevice = q,
                      .dstPitch = pitch_2,
                      .dstXInBytes = 64,
                      .dstY = 2,
                      .WidthInBytes = width,
                      .Height = height};
  OK(cuMemcpy2D_v2(&c));
  c = down_2d(out, host_pitch, q, pitch_2, width, height);
  c.srcXInBytes = 64;
  c.srcY = 2;
  OK(cuMemcpy2DUnaligned_v2(&c));
  TRUE(same_rows(in, host_pitch, out, host_pitch, width, height));
  TRUE(host_pitch == width || out[width] == 0xaa);
  memset(out, 0, host_pitch * height);
  c = down_2d(out, host_pitch, p, pitch, width, height);
  OK(cuMemcpy2DAsync_v2(&c, NULL));
  OK(cuStreamSynchronize(NULL));
  TRUE(same_rows(in, host_pitch, out, host_pitch, width, height));
  OK(cuMemFree_v2(p));
  OK(cuMemFree_v2(q));
}

static void test_copies_2d(void) {
  uint8_t *in = malloc(12 << 20), *out = malloc(12 << 20);
  copies_2d_of(in, out, 100, 100, 10);
  copies_2d_of(in, out, 1000, 333, 77);
  copies_2d_of(in, out, 5000, 4096, 2000);
  void *pinned = NULL, *pinned_out = NULL;
  OK(cuMemHostAlloc(&pinned, 1 << 20, 0));
  OK(cuMemHostAlloc(&pinned_out, 1 << 20, 0));
  copies_2d_of(pinned, pinned_out, 2048, 1500, 300);
  CUdeviceptr p = 0;
  OK(cuMemAlloc_v2(&p, 1 << 20));
  CUDA_MEMCPY2D c = up_2d(in, 100, p, 64, 100, 10);
  CODE(1, cuMemcpy2D_v2(&c));
  c = up_2d(in, 4096, p, 4096, 4096, 257);
  CODE(1, cuMemcpy2D_v2(&c));
  c = up_2d(NULL, 4096, p, 4096, 4096, 2);
  CODE(1, cuMemcpy2D_v2(&c));
  CODE(1, cuMemcpy2D_v2(NULL));
  // A box out of the middle of a volume: 20 x 10 x 5 of 64 x 32 x 16.
  fill_pattern(in, 64 * 32 * 16, 5);
  OK(cuMemcpyHtoD_v2(p, in, 64 * 32 * 16));
  CUDA_MEMCPY3D v = {.srcXInBytes = 7,
                     .srcY = 3,
                     .srcZ = 2,
                     .srcMemoryType = CU_MEMORYTYPE_DEVICE,
                     .srcDevice = p,
                     .srcPitch = 64,
                     .srcHeight = 32,
                     .dstMemoryType = CU_MEMORYTYPE_HOST,
                     .dstHost = out,
                     .dstPitch = 20,
                     .dstHeight = 10,
                     .WidthInBytes = 20,
                     .Height = 10,
                     .Depth = 5};
  memset(out, 0, 1000);
  OK(cuMemcpy3D_v2(&v));
  int bad = 0;
  for (int z = 0; z < 5; z++) {
    for (int y = 0; y < 10; y++) {
      bad += memcmp(out + (z * 10 + y) * 20, in + ((z + 2) * 32 + y + 3) * 64 + 7, 20) != 0;
    }
  }
  IS(0, bad);
  // And back into another place, asynchronously.
  CUDA_MEMCPY3D w = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                     .srcHost = out,
                     .srcPitch = 20,
                     .srcHeight = 10,
                     .dstXInBytes = 1,
                     .dstY = 2,
                     .dstZ = 3,
                     .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                     .dstDevice = p + (1 << 19),
                     .dstPitch = 64,
                     .dstHeight = 32,
                     .WidthInBytes = 20,
                     .Height = 10,
                     .Depth = 5};
  OK(cuMemsetD8_v2(p + (1 << 19), 0, 64 * 32 * 16));
  OK(cuMemcpy3DAsync_v2(&w, NULL));
  OK(cuMemcpyDtoH_v2(in, p + (1 << 19), 64 * 32 * 16));
  for (int z = 0; z < 5; z++) {
    for (int y = 0; y < 10; y++) {
      bad += memcmp(out + (z * 10 + y) * 20, in + ((z + 3) * 32 + y + 2) * 64 + 1, 20) != 0;
    }
  }
  IS(0, bad);
  IS(0, in[0]);
  OK(cuMemFree_v2(p));
  OK(cuMemFreeHost(pinned));
  OK(cuMemFreeHost(pinned_out));
  free(in);
  free(out);
}

static void test_memset(void) {
  CUdeviceptr p = 0;
  static uint32_t words[4096];
  uint8_t* bytes = (uint8_t*)words;
  OK(cuMemAlloc_v2(&p, sizeof words));
  OK(cuMemsetD32_v2(p, 0xdeadbeef, 4096));
  OK(cuMemcpyDtoH_v2(words, p, sizeof words));
  IS(0xdeadbeef, words[0]);
  IS(0xdeadbeef, words[4095]);
  OK(cuMemsetD8_v2(p + 1, 7, 5));
  OK(cuMemsetD16_v2(p + 100, 0x1234, 3));
  OK(cuMemcpyDtoH_v2(words, p, sizeof words));
  IS(0xef, bytes[0]);
  IS(7, bytes[1]);
  IS(7, bytes[5]);
  IS(0xad, bytes[6]);
  IS(0x34, bytes[100]);
  IS(0x12, bytes[105]);
  IS(0xad, bytes[106]);
  CODE(1, cuMemsetD32_v2(p + 2, 0, 1));
  CODE(1, cuMemsetD16_v2(p + 1, 0, 1));
  CODE(1, cuMemsetD8_v2(p, 0, sizeof words + (2 << 20)));
  CODE(1, cuMemsetD8_v2(0x1000, 0, 1));
  OK(cuMemsetD8_v2(p, 0, 0));
  OK(cuMemsetD8_v2(p, 0, sizeof words));
  OK(cuMemsetD2D8_v2(p + 3, 64, 9, 5, 4));
  OK(cuMemsetD2D32_v2(p + 1024, 64, 0x01020304, 2, 3));
  CODE(1, cuMemsetD2D8_v2(p, 4, 9, 5, 4));
  OK(cuMemsetD32Async(p + 8192, 3, 10, NULL));
  OK(cuMemcpyDtoH_v2(words, p, sizeof words));
  IS(0, bytes[2]);
  IS(9, bytes[3]);
  IS(9, bytes[3 * 64 + 7]);
  IS(0, bytes[3 * 64 + 8]);
  IS(0, bytes[4 * 64 + 3]);
  IS(0x01020304, words[256 + 2 * 16 + 1]);
  IS(0, words[256 + 3 * 16]);
  IS(3, words[2048 + 9]);
  IS(0, words[2048 + 10]);
  OK(cuMemFree_v2(p));
}

static void test_pointers(void) {
  CUdeviceptr p = 0, value = 0;
  void* h = NULL;
  unsigned type = 0;
  CUcontext owner = NULL;
  int ordinal = -1;
  unsigned long long id = 0, id_2 = 0;
  unsigned flag = 9;
  size_t range_bytes = 0;
  OK(cuMemAlloc_v2(&p, 5000));
  OK(cuMemHostAlloc(&h, 5000, 0));
  OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p + 10));
  IS(CU_MEMORYTYPE_DEVICE, type);
  OK(cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, (uintptr_t)h));
  IS(CU_MEMORYTYPE_HOST, type);
  OK(cuPointerGetAttribute(&owner, CU_POINTER_ATTRIBUTE_CONTEXT, p));
  TRUE(owner == context);
  OK(cuPointerGetAttribute(&value, CU_POINTER_ATTRIBUTE_DEVICE_POINTER, p + 10));
  IS(p + 10, value);
  OK(cuPointerGetAttribute(&value, CU_POINTER_ATTRIBUTE_HOST_POINTER, (uintptr_t)h + 8));
  IS((uintptr_t)h + 8, value);
  CODE(1, cuPointerGetAttribute(&value, CU_POINTER_ATTRIBUTE_HOST_POINTER, p));
  OK(cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, p));
  IS(device, ordinal);
  OK(cuPointerGetAttribute(&flag, CU_POINTER_ATTRIBUTE_IS_MANAGED, p));
  IS(0, flag);
  OK(cuPointerGetAttribute(&id, CU_POINTER_ATTRIBUTE_BUFFER_ID, p));
  OK(cuPointerGetAttribute(&id_2, CU_POINTER_ATTRIBUTE_BUFFER_ID, p + 100));
  IS(id, id_2);
  OK(cuPointerGetAttribute(&value, CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, p + 10));
  IS(p, value);
  OK(cuPointerGetAttribute(&range_bytes, CU_POINTER_ATTRIBUTE_RANGE_SIZE, p + 10));
  IS(5000, range_bytes);
  int on_stack = 0;
  CODE(1, cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, (uintptr_t)&on_stack));
  CODE(1, cuPointerGetAttribute(NULL, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, p));
  CODE(1, cuPointerGetAttribute(&type, 9999, p));
  int which[3] = {CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, CU_POINTER_ATTRIBUTE_CONTEXT};
  void* outs[3] = {&type, &ordinal, &owner};
  OK(cuPointerGetAttributes(3, which, outs, p));
  IS(CU_MEMORYTYPE_DEVICE, type);
  TRUE(owner == context);
  OK(cuPointerGetAttributes(3, which, outs, (uintptr_t)&on_stack));
  IS(0, type);
  IS(-2, ordinal);
  TRUE(owner == NULL);
  OK(cuMemFreeHost(h));
  OK(cuMemFree_v2(p));
}

// A kernel works on pinned memory directly.
static void test_mapped(void) {
  unsigned* h = NULL;
  OK(cuMemHostAlloc((void**)&h, 4096, CU_MEMHOSTALLOC_DEVICEMAP));
  memset(h, 0, 4096);
  OK(launch_add((CUdeviceptr)(uintptr_t)h, 1000, 5, NULL));
  OK(cuCtxSynchronize());
  IS(5, h[0]);
  IS(5, h[999]);
  OK(cuMemFreeHost(h));
}
