// Two devices in one process: copies between them of every shape, and order between their streams. Sections without a
// mark hold on any driver; those marked "ours" are about devices of two servers.
//
//   gcc -std=gnu11 -I wire/include tests/programs/peer_copies.c -o peer_copies -ldl -lpthread && ./peer_copies
//   [section...]
#include <sched.h>

#include "cuda_types.h"

// clang-format off
#define CALLS(X) \
  X(cuDeviceGetCount, (int*)) X(cuCtxSynchronize, (void)) X(cuMemAlloc_v2, (CUdeviceptr*, size_t)) \
  X(cuMemFree_v2, (CUdeviceptr)) X(cuMemcpyHtoD_v2, (CUdeviceptr, const void*, size_t)) \
  X(cuMemcpyDtoH_v2, (void*, CUdeviceptr, size_t)) X(cuMemcpyDtoD_v2, (CUdeviceptr, CUdeviceptr, size_t)) \
  X(cuMemcpyDtoDAsync_v2, (CUdeviceptr, CUdeviceptr, size_t, CUstream)) X(cuMemcpy, (CUdeviceptr, CUdeviceptr, size_t)) \
  X(cuMemcpyAsync, (CUdeviceptr, CUdeviceptr, size_t, CUstream)) \
  X(cuMemcpyPeer, (CUdeviceptr, CUcontext, CUdeviceptr, CUcontext, size_t)) \
  X(cuMemcpyPeerAsync, (CUdeviceptr, CUcontext, CUdeviceptr, CUcontext, size_t, CUstream)) \
  X(cuMemcpy3DPeer, (const CUDA_MEMCPY3D_PEER*)) X(cuMemcpy3DPeerAsync, (const CUDA_MEMCPY3D_PEER*, CUstream)) \
  X(cuMemcpy2D_v2, (const CUDA_MEMCPY2D*)) X(cuMemcpy2DAsync_v2, (const CUDA_MEMCPY2D*, CUstream)) \
  X(cuMemcpy3DAsync_v2, (const CUDA_MEMCPY3D*, CUstream)) \
  X(cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void*, size_t, CUstream)) \
  X(cuMemcpyDtoHAsync_v2, (void*, CUdeviceptr, size_t, CUstream)) \
  X(cuMemsetD8_v2, (CUdeviceptr, unsigned char, size_t)) X(cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream)) \
  X(cuMemHostAlloc, (void**, size_t, unsigned)) X(cuMemFreeHost, (void*)) \
  X(cuStreamCreate, (CUstream*, unsigned)) X(cuStreamDestroy_v2, (CUstream)) X(cuStreamSynchronize, (CUstream)) \
  X(cuStreamQuery, (CUstream)) X(cuStreamWaitEvent, (CUstream, CUevent, unsigned)) \
  X(cuEventCreate, (CUevent*, unsigned)) X(cuEventRecord, (CUevent, CUstream)) X(cuEventDestroy_v2, (CUevent)) \
  X(cuEventQuery, (CUevent)) X(cuEventSynchronize, (CUevent)) X(cuLaunchHostFunc, (CUstream, CUhostFn, void*)) \
  X(cuArray3DCreate_v2, (CUarray*, const CUDA_ARRAY3D_DESCRIPTOR*)) X(cuArrayDestroy, (CUarray)) \
  X(cuMemcpy3D_v2, (const CUDA_MEMCPY3D*)) X(cuCtxCreate_v2, (CUcontext*, unsigned, CUdevice)) \
  X(cuCtxDestroy_v2, (CUcontext)) X(cuStreamBeginCapture_v2, (CUstream, CUstreamCaptureMode)) \
  X(cuStreamEndCapture, (CUstream, CUgraph*)) X(cuGraphDestroy, (CUgraph)) \
  X(cuDeviceCanAccessPeer, (int*, CUdevice, CUdevice)) X(cuCtxEnablePeerAccess, (CUcontext, unsigned)) \
  X(cuPointerGetAttribute, (void*, int, CUdeviceptr)) X(cuMemAllocAsync, (CUdeviceptr*, size_t, CUstream)) \
  X(cuMemFreeAsync, (CUdeviceptr, CUstream)) X(cuCtxRecordEvent, (CUcontext, CUevent)) \
  X(cuCtxWaitEvent, (CUcontext, CUevent))
// clang-format on
#include "area.h"

static CUcontext contexts[2];

/// What each section begins with: both primary contexts, the first one current.
static void both(void) {
  for (int d = 0; d < 2; d++) OK(cuDevicePrimaryCtxRetain(&contexts[d], d));
  OK(cuCtxSetCurrent(contexts[0]));
}

static void done(void) {
  OK(cuCtxSetCurrent(NULL));
  for (int d = 0; d < 2; d++) OK(cuDevicePrimaryCtxRelease_v2(d));
}

static CUdeviceptr memory_of(int d, size_t bytes) {
  CUdeviceptr address = 0;
  OK(cuCtxSetCurrent(contexts[d]));
  OK(cuMemAlloc_v2(&address, bytes));
  return address;
}

static CUstream stream_of(int d) {
  CUstream stream = NULL;
  OK(cuCtxSetCurrent(contexts[d]));
  OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
  return stream;
}

static CUevent event_of(int d) {
  CUevent event = NULL;
  OK(cuCtxSetCurrent(contexts[d]));
  OK(cuEventCreate(&event, CU_EVENT_DISABLE_TIMING));
  return event;
}

static void pattern(uint8_t* to, size_t bytes, uint32_t seed) {
  for (size_t i = 0; i < bytes; i++) {
    seed = seed * 1664525u + 1013904223u;
    to[i] = (uint8_t)(seed >> 24);
  }
}

/// A host function that holds its stream until `open` is set.
typedef struct hold {
  _Atomic int open;
} hold;

static void hold_function(void* data) {
  hold* h = data;
  while (!h->open) sched_yield();
}

// ------------------------------------------------------------------------------------------------ linear copies

enum { GUARD = 64 };

static CUresult copy_by(int call, CUdeviceptr to, int to_device, CUdeviceptr from, size_t bytes, CUstream stream) {
  CUcontext target = contexts[to_device], source = contexts[1 - to_device];
  switch (call) {
    case 0:
      return cuMemcpyPeer(to, target, from, source, bytes);
    case 1:
      return cuMemcpyPeerAsync(to, target, from, source, bytes, stream);
    case 2:
      return cuMemcpyDtoD_v2(to, from, bytes);
    case 3:
      return cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
    case 4:
      return cuMemcpy(to, from, bytes);
    case 5:
      return cuMemcpyAsync(to, from, bytes, stream);
    default:
      return cuMemcpyPeerAsync(to, target, from, source, bytes, NULL);
  }
}
enum { CALL_COUNT = 7 };

/// One size, by all calls, in both directions, with either context current; the bytes around stay as they are.
static void check_size(size_t bytes, int calls) {
  uint8_t *in = malloc(bytes + 1), *out = malloc(bytes + 2 * GUARD);
  for (int direction = 0; direction < 2; direction++) {
    const CUdeviceptr from = memory_of(direction, bytes + 1), to = memory_of(1 - direction, bytes + 2 * GUARD);
    for (int call = 0; call < calls; call++) {
      const int current = (call + direction) % 2;
      CUstream stream = stream_of(current);
      pattern(in, bytes, (uint32_t)(bytes + 17 * (unsigned)call + 5 * (unsigned)direction));
      if (bytes > 0) OK(cuMemcpyHtoD_v2(from, in, bytes));
      OK(cuMemsetD8_v2(to, 0xaa, bytes + 2 * GUARD));
      OK(cuCtxSetCurrent(contexts[1 - direction]));
      OK(cuCtxSynchronize());
      OK(cuCtxSetCurrent(contexts[current]));
      OK(copy_by(call, to + GUARD, 1 - direction, from, bytes, stream));
      OK(cuCtxSynchronize());
      OK(cuMemcpyDtoH_v2(out, to, bytes + 2 * GUARD));
      TRUE(memcmp(out + GUARD, in, bytes) == 0);
      int untouched = 1;
      for (int i = 0; i < GUARD; i++) untouched &= out[i] == 0xaa && out[GUARD + bytes + (size_t)i] == 0xaa;
      TRUE(untouched);
      OK(cuStreamDestroy_v2(stream));
    }
    OK(cuMemFree_v2(from));
    OK(cuMemFree_v2(to));
  }
  free(in);
  free(out);
}

static void test_sizes(void) {
  static const size_t sizes[] = {
      0, 1, 3, 255, 4096, 4097, 65537, 1u << 20, (2u << 20) - 1, 2u << 20, (2u << 20) + 1, (9u << 20) + 13};
  both();
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
    check_size(sizes[i], sizes[i] < 4u << 20 ? CALL_COUNT : 2);
  done();
}

/// More than all staging of a session.
static void test_large(void) {
  both();
  check_size((66u << 20) + 5, 1);
  done();
}

// ------------------------------------------------------------------------------------------------ rows and arrays

typedef struct shape {
  size_t width, height, depth, from_pitch, from_rows, to_pitch, to_rows, from_x, from_y, from_z, to_x, to_y, to_z;
} shape;

static void check_shape(const shape* s, int asynchronous) {
  const size_t from_bytes = s->from_pitch * s->from_rows * (s->depth + s->from_z);
  const size_t to_bytes = s->to_pitch * s->to_rows * (s->depth + s->to_z);
  uint8_t *in = malloc(from_bytes), *out = malloc(to_bytes), *expected = malloc(to_bytes);
  pattern(in, from_bytes, (uint32_t)(s->width + s->height));
  const CUdeviceptr from = memory_of(0, from_bytes), to = memory_of(1, to_bytes);
  OK(cuMemcpyHtoD_v2(from, in, from_bytes));
  pattern(expected, to_bytes, 99);
  OK(cuMemcpyHtoD_v2(to, expected, to_bytes));
  OK(cuCtxSynchronize());  // the copy runs on a stream that waits for no NULL stream
  for (size_t z = 0; z < s->depth; z++) {
    for (size_t y = 0; y < s->height; y++) {
      memcpy(expected + ((z + s->to_z) * s->to_rows + y + s->to_y) * s->to_pitch + s->to_x,
             in + ((z + s->from_z) * s->from_rows + y + s->from_y) * s->from_pitch + s->from_x, s->width);
    }
  }
  const CUDA_MEMCPY3D_PEER c = {.srcXInBytes = s->from_x,
                                .srcY = s->from_y,
                                .srcZ = s->from_z,
                                .srcMemoryType = CU_MEMORYTYPE_DEVICE,
                                .srcDevice = from,
                                .srcContext = contexts[0],
                                .srcPitch = s->from_pitch,
                                .srcHeight = s->from_rows,
                                .dstXInBytes = s->to_x,
                                .dstY = s->to_y,
                                .dstZ = s->to_z,
                                .dstMemoryType = CU_MEMORYTYPE_DEVICE,
                                .dstDevice = to,
                                .dstContext = contexts[1],
                                .dstPitch = s->to_pitch,
                                .dstHeight = s->to_rows,
                                .WidthInBytes = s->width,
                                .Height = s->height,
                                .Depth = s->depth};
  CUstream stream = stream_of(asynchronous);
  OK(asynchronous ? cuMemcpy3DPeerAsync(&c, stream) : cuMemcpy3DPeer(&c));
  OK(cuCtxSynchronize());
  OK(cuMemcpyDtoH_v2(out, to, to_bytes));
  TRUE(memcmp(out, expected, to_bytes) == 0);
  OK(cuStreamDestroy_v2(stream));
  OK(cuMemFree_v2(from));
  OK(cuMemFree_v2(to));
  free(in);
  free(out);
  free(expected);
}

static void test_volumes(void) {
  static const shape shapes[] = {
      {.width = 1, .height = 1, .depth = 1, .from_pitch = 7, .from_rows = 1, .to_pitch = 5, .to_rows = 1},
      {.width = 33,
       .height = 5,
       .depth = 3,
       .from_pitch = 64,
       .from_rows = 7,
       .to_pitch = 41,
       .to_rows = 5,
       .from_x = 3,
       .from_y = 2,
       .from_z = 1,
       .to_x = 8,
       .to_z = 2},
      {.width = 4096,
       .height = 700,
       .depth = 2,
       .from_pitch = 4608,
       .from_rows = 700,
       .to_pitch = 4096,
       .to_rows = 701,
       .to_y = 1},
      {.width = 512, .height = 64, .depth = 4, .from_pitch = 512, .from_rows = 64, .to_pitch = 512, .to_rows = 64},
      {.width = (2u << 20) + 17,
       .height = 3,
       .depth = 2,
       .from_pitch = (2u << 20) + 32,
       .from_rows = 3,
       .to_pitch = (2u << 20) + 20,
       .to_rows = 4,
       .to_x = 2,
       .to_y = 1},
  };
  both();
  for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
    check_shape(&shapes[i], 0);
    check_shape(&shapes[i], 1);
  }
  // A 2D copy with the other context current.
  enum { WIDTH = 100, ROWS = 50, PITCH = 128 };
  static uint8_t in[PITCH * ROWS], out[PITCH * ROWS];
  pattern(in, sizeof in, 4);
  const CUdeviceptr from = memory_of(0, sizeof in), to = memory_of(1, sizeof in);
  OK(cuMemcpyHtoD_v2(from, in, sizeof in));
  OK(cuMemsetD8_v2(to, 1, sizeof in));
  OK(cuCtxSynchronize());
  const CUDA_MEMCPY2D c = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                           .srcDevice = from,
                           .srcPitch = PITCH,
                           .dstMemoryType = CU_MEMORYTYPE_UNIFIED,
                           .dstDevice = to,
                           .dstPitch = PITCH,
                           .WidthInBytes = WIDTH,
                           .Height = ROWS};
  OK(cuMemcpy2D_v2(&c));
  OK(cuCtxSynchronize());
  OK(cuMemcpyDtoH_v2(out, to, sizeof out));
  int same = 1;
  for (int i = 0; i < PITCH * ROWS; i++) same &= out[i] == (i % PITCH < WIDTH ? in[i] : 1);
  TRUE(same);
  OK(cuMemFree_v2(from));
  OK(cuMemFree_v2(to));
  done();
}

static void test_arrays(void) {
  enum { WIDTH = 300, ROWS = 41, DEPTH = 3, BYTES = 4 * WIDTH * ROWS * DEPTH };
  static uint8_t in[BYTES], out[BYTES];
  const CUDA_ARRAY3D_DESCRIPTOR d = {
      .Width = WIDTH, .Height = ROWS, .Depth = DEPTH, .Format = CU_AD_FORMAT_UNSIGNED_INT32, .NumChannels = 1};
  CUarray arrays[2];
  both();
  for (int i = 0; i < 2; i++) {
    OK(cuCtxSetCurrent(contexts[i]));
    OK(cuArray3DCreate_v2(&arrays[i], &d));
  }
  pattern(in, BYTES, 8);
  const CUDA_MEMCPY3D fill = {.srcMemoryType = CU_MEMORYTYPE_HOST,
                              .srcHost = in,
                              .srcPitch = 4 * WIDTH,
                              .srcHeight = ROWS,
                              .dstMemoryType = CU_MEMORYTYPE_ARRAY,
                              .dstArray = arrays[0],
                              .WidthInBytes = 4 * WIDTH,
                              .Height = ROWS,
                              .Depth = DEPTH};
  OK(cuCtxSetCurrent(contexts[0]));
  OK(cuMemcpy3D_v2(&fill));
  OK(cuCtxSynchronize());
  CUDA_MEMCPY3D_PEER c = {.srcMemoryType = CU_MEMORYTYPE_ARRAY,
                          .srcArray = arrays[0],
                          .srcContext = contexts[0],
                          .dstMemoryType = CU_MEMORYTYPE_ARRAY,
                          .dstArray = arrays[1],
                          .dstContext = contexts[1],
                          .WidthInBytes = 4 * WIDTH,
                          .Height = ROWS,
                          .Depth = DEPTH};
  CUstream stream = stream_of(1);
  OK(cuMemcpy3DPeerAsync(&c, stream));
  // On from the array to the first device's plain memory.
  const CUdeviceptr back = memory_of(0, BYTES);
  c.srcArray = arrays[1];
  c.srcContext = contexts[1];
  c.dstMemoryType = CU_MEMORYTYPE_DEVICE;
  c.dstArray = NULL;
  c.dstDevice = back;
  c.dstContext = contexts[0];
  c.dstPitch = 4 * WIDTH;
  c.dstHeight = ROWS;
  OK(cuMemcpy3DPeerAsync(&c, stream));
  OK(cuStreamSynchronize(stream));
  OK(cuMemcpyDtoH_v2(out, back, BYTES));
  TRUE(memcmp(in, out, BYTES) == 0);
  for (int i = 0; i < 2; i++) OK(cuArrayDestroy(arrays[i]));
  OK(cuMemFree_v2(back));
  OK(cuStreamDestroy_v2(stream));
  done();
}

// ------------------------------------------------------------------------------------------------ order

/// The copy waits for its stream, which a host function holds; its call returns meanwhile, and so does the wait of the
/// other device's stream for the event behind it.
static void test_order(void) {
  enum { BYTES = 3u << 20 };
  static uint8_t out[BYTES];
  both();
  for (int on = 0; on < 2; on++) {  // the stream of the source, then of the destination
    hold h = {0};
    const CUdeviceptr from = memory_of(0, BYTES), to = memory_of(1, BYTES), then = memory_of(1 - on, BYTES);
    CUstream first = stream_of(on), second = stream_of(1 - on), other = stream_of(on);
    CUevent copied = event_of(on), unused = event_of(on);
    OK(cuCtxSetCurrent(contexts[0]));
    OK(cuMemsetD8_v2(from, 1, BYTES));
    OK(cuCtxSynchronize());
    OK(cuCtxSetCurrent(contexts[1]));
    OK(cuMemsetD8_v2(to, 2, BYTES));
    OK(cuCtxSynchronize());
    OK(cuLaunchHostFunc(first, hold_function, &h));
    OK(cuMemsetD8Async(on == 0 ? from : to, 3, BYTES, first));
    OK(cuMemcpyPeerAsync(to, contexts[1], from, contexts[0], BYTES, first));
    OK(cuMemsetD8Async(on == 0 ? from : to, 4, 1, first));  // later work of the stream comes later
    OK(cuEventRecord(copied, first));
    OK(cuStreamWaitEvent(second, unused, 0));  // never recorded: complete
    OK(cuStreamWaitEvent(second, copied, 0));
    OK(cuEventRecord(copied, other));  // a new record changes nothing for the wait before it
    OK(cuMemcpyPeerAsync(then, contexts[1 - on], on == 0 ? to : from, contexts[1], BYTES, second));
    CODE(600, cuStreamQuery(first));
    CODE(600, cuStreamQuery(second));
    OK(cuEventSynchronize(copied));  // of the stream that nothing holds
    h.open = 1;
    OK(cuStreamSynchronize(second));
    OK(cuStreamQuery(first));
    OK(cuMemcpyDtoH_v2(out, to, BYTES));
    const uint8_t brought = on == 0 ? 3 : 1;
    TRUE(out[1] == brought && out[BYTES - 1] == brought && memcmp(out + 1, out + 2, BYTES - 2) == 0);
    TRUE(out[0] == (on == 0 ? 3 : 4));
    OK(cuMemcpyDtoH_v2(out, then, BYTES));
    TRUE(out[BYTES - 1] == brought || on == 1);
    OK(cuStreamDestroy_v2(first));
    OK(cuStreamDestroy_v2(second));
    OK(cuStreamDestroy_v2(other));
    OK(cuEventDestroy_v2(copied));
    OK(cuEventDestroy_v2(unused));
    OK(cuMemFree_v2(from));
    OK(cuMemFree_v2(to));
    OK(cuMemFree_v2(then));
  }
  done();
}

/// A buffer that goes to and fro over many streams, held together by events alone.
static void test_chains(void) {
  enum { CHAINS = 12, HOPS = 10, BYTES = 200001 };
  static uint8_t in[BYTES], out[BYTES];
  CUstream streams[CHAINS][2];
  CUevent events[CHAINS][2];
  CUdeviceptr buffers[CHAINS][2];
  both();
  for (int c = 0; c < CHAINS; c++) {
    for (int d = 0; d < 2; d++) {
      streams[c][d] = stream_of(d);
      events[c][d] = event_of(d);
      buffers[c][d] = memory_of(d, BYTES);
    }
    pattern(in, BYTES, (uint32_t)c);
    OK(cuMemcpyHtoD_v2(buffers[c][0], in, BYTES));
  }
  for (int hop = 0; hop < HOPS; hop++) {
    const int at = hop % 2;
    for (int c = 0; c < CHAINS; c++) {
      OK(cuMemcpyPeerAsync(buffers[c][1 - at], contexts[1 - at], buffers[c][at], contexts[at], BYTES, streams[c][at]));
      OK(cuEventRecord(events[c][at], streams[c][at]));
      OK(cuStreamWaitEvent(streams[c][1 - at], events[c][at], 0));
      OK(cuMemsetD8Async(buffers[c][1 - at] + (unsigned)hop, (unsigned char)(hop + c), 1, streams[c][1 - at]));
    }
  }
  for (int c = 0; c < CHAINS; c++) {
    OK(cuStreamSynchronize(streams[c][HOPS % 2]));
    pattern(in, BYTES, (uint32_t)c);
    for (int hop = 0; hop < HOPS; hop++) in[hop] = (uint8_t)(hop + c);
    OK(cuMemcpyDtoH_v2(out, buffers[c][HOPS % 2], BYTES));
    TRUE(memcmp(in, out, BYTES) == 0);
    for (int d = 0; d < 2; d++) {
      OK(cuStreamDestroy_v2(streams[c][d]));
      OK(cuEventDestroy_v2(events[c][d]));
      OK(cuMemFree_v2(buffers[c][d]));
    }
  }
  done();
}

/// cuMemcpyPeer waits for all work of both contexts, streams that nothing waits for included, and they wait for it.
static void test_serialized(void) {
  enum { BYTES = 300000 };
  both();
  hold h = {0};
  uint8_t* out = NULL;
  const CUdeviceptr from = memory_of(0, BYTES), to = memory_of(1, BYTES), elsewhere = memory_of(1, BYTES);
  CUstream held[2] = {stream_of(0), stream_of(1)}, free_streams[2] = {stream_of(0), stream_of(1)};
  OK(cuCtxSetCurrent(contexts[1]));
  OK(cuMemHostAlloc((void**)&out, BYTES, 0));
  memset(out, 0, BYTES);
  OK(cuMemsetD8_v2(to, 1, BYTES));
  OK(cuCtxSynchronize());
  OK(cuLaunchHostFunc(held[0], hold_function, &h));
  OK(cuMemsetD8Async(from, 7, BYTES, held[0]));
  OK(cuMemcpyPeer(to, contexts[1], from, contexts[0], BYTES));
  OK(cuMemsetD8Async(from, 9, BYTES, free_streams[0]));       // later work of the source's context
  OK(cuMemcpyDtoHAsync_v2(out, to, BYTES, free_streams[1]));  // and of the destination's
  CUstream late = stream_of(1);                               // made only now
  OK(cuMemcpyDtoDAsync_v2(elsewhere, to, BYTES, late));
  CODE(600, cuStreamQuery(free_streams[0]));
  CODE(600, cuStreamQuery(free_streams[1]));
  CODE(600, cuStreamQuery(late));
  h.open = 1;
  OK(cuStreamSynchronize(free_streams[1]));
  TRUE(out[0] == 7 && memcmp(out, out + 1, BYTES - 1) == 0);
  OK(cuStreamSynchronize(late));
  OK(cuMemcpyDtoH_v2(out, elsewhere, BYTES));
  TRUE(out[0] == 7 && memcmp(out, out + 1, BYTES - 1) == 0);
  OK(cuStreamSynchronize(free_streams[0]));
  OK(cuMemcpyDtoH_v2(out, from, BYTES));
  TRUE(out[0] == 9 && out[BYTES - 1] == 9);
  // Work of a stream that is destroyed meanwhile counts too; and copies follow one another.
  h.open = 0;
  OK(cuLaunchHostFunc(held[1], hold_function, &h));
  OK(cuMemsetD8Async(to, 11, BYTES, held[1]));
  OK(cuStreamDestroy_v2(held[1]));
  OK(cuMemcpyPeer(from, contexts[0], to, contexts[1], BYTES));
  OK(cuMemcpyPeer(to, contexts[1], from, contexts[0], BYTES - 1));
  h.open = 1;
  OK(cuCtxSynchronize());
  OK(cuMemcpyDtoH_v2(out, from, BYTES));
  TRUE(out[0] == 11 && memcmp(out, out + 1, BYTES - 1) == 0);
  OK(cuStreamDestroy_v2(held[0]));
  OK(cuStreamDestroy_v2(late));
  for (int d = 0; d < 2; d++) OK(cuStreamDestroy_v2(free_streams[d]));
  OK(cuMemFreeHost(out));
  OK(cuMemFree_v2(from));
  OK(cuMemFree_v2(to));
  OK(cuMemFree_v2(elsewhere));
  done();
}

/// A whole context's events across.
static void test_context_events(void) {
  enum { BYTES = 70000 };
  static uint8_t out[BYTES];
  both();
  hold h = {0};
  const CUdeviceptr a = memory_of(0, BYTES), b = memory_of(1, BYTES);
  CUstream first = stream_of(0), second = stream_of(1);
  CUevent event = event_of(0);
  OK(cuLaunchHostFunc(first, hold_function, &h));
  OK(cuMemsetD8Async(a, 5, BYTES, first));
  OK(cuCtxRecordEvent(contexts[0], event));
  OK(cuCtxWaitEvent(contexts[1], event));
  OK(cuMemcpyPeerAsync(b, contexts[1], a, contexts[0], BYTES, second));
  CODE(600, cuStreamQuery(second));
  h.open = 1;
  OK(cuStreamSynchronize(second));
  OK(cuMemcpyDtoH_v2(out, b, BYTES));
  TRUE(out[0] == 5 && out[BYTES - 1] == 5);
  OK(cuEventDestroy_v2(event));
  OK(cuStreamDestroy_v2(first));
  OK(cuStreamDestroy_v2(second));
  OK(cuMemFree_v2(a));
  OK(cuMemFree_v2(b));
  done();
}

/// Page-locked memory of either context between the devices: read and written when the copies' turns come.
static void test_pinned(void) {
  enum { BYTES = 5000001, PITCH = 4000, ROWS = 1000, WIDTH = 3001 };
  both();
  for (int owner = 0; owner < 2; owner++) {
    hold h = {0};
    uint8_t *between = NULL, *out = malloc(BYTES);
    const CUdeviceptr a = memory_of(0, BYTES), b = memory_of(1, BYTES);
    CUstream first = stream_of(0), second = stream_of(1);
    CUevent event = event_of(0);
    OK(cuCtxSetCurrent(contexts[owner]));
    OK(cuMemHostAlloc((void**)&between, BYTES, CU_MEMHOSTALLOC_PORTABLE));
    memset(between, 1, BYTES);
    OK(cuCtxSetCurrent(contexts[1]));
    OK(cuMemsetD8_v2(b, 0, BYTES));
    OK(cuCtxSynchronize());
    OK(cuLaunchHostFunc(first, hold_function, &h));
    OK(cuMemsetD8Async(a, 6, BYTES, first));
    OK(cuMemcpyDtoHAsync_v2(between, a, BYTES, first));
    OK(cuEventRecord(event, first));
    OK(cuStreamWaitEvent(second, event, 0));
    OK(cuMemcpyHtoDAsync_v2(b, between, BYTES, second));
    TRUE(between[0] == 1 && between[BYTES - 1] == 1);
    h.open = 1;
    OK(cuStreamSynchronize(second));
    TRUE(between[0] == 6 && memcmp(between, between + 1, BYTES - 1) == 0);
    OK(cuMemcpyDtoH_v2(out, b, BYTES));
    TRUE(out[0] == 6 && memcmp(out, out + 1, BYTES - 1) == 0);
    // Rows, and the calls that wait.
    pattern(between, BYTES, 3);
    OK(cuMemcpyHtoD_v2(a, between, BYTES));
    OK(cuMemcpyHtoD_v2(b, between, BYTES));
    OK(cuCtxSynchronize());
    memset(between, 2, BYTES);
    const CUDA_MEMCPY2D c = {.srcMemoryType = CU_MEMORYTYPE_DEVICE,
                             .srcDevice = a,
                             .srcPitch = PITCH,
                             .dstMemoryType = CU_MEMORYTYPE_HOST,
                             .dstHost = between,
                             .dstPitch = PITCH,
                             .WidthInBytes = WIDTH,
                             .Height = ROWS};
    OK(cuMemcpy2DAsync_v2(&c, first));
    OK(cuStreamSynchronize(first));
    pattern(out, BYTES, 3);
    int same = 1;
    for (int i = 0; i < PITCH * ROWS; i++) same &= between[i] == (i % PITCH < WIDTH ? out[i] : 2);
    TRUE(same);
    OK(cuMemcpyDtoH_v2(between, b, BYTES));
    TRUE(memcmp(between, out, BYTES) == 0);
    OK(cuMemFreeHost(between));
    OK(cuEventDestroy_v2(event));
    OK(cuStreamDestroy_v2(first));
    OK(cuStreamDestroy_v2(second));
    OK(cuMemFree_v2(a));
    OK(cuMemFree_v2(b));
    free(out);
  }
  done();
}

// ------------------------------------------------------------------------------------------------ threads

enum { THREADS = 6, ROUNDS = 12, MOST = 3u << 20 };

static void* copy_to_and_fro(void* argument) {
  const uint32_t number = (uint32_t)(uintptr_t)argument;
  uint8_t *in = malloc(MOST), *out = malloc(MOST);
  CUdeviceptr here[2] = {0, 0}, there = 0;
  CUstream stream = NULL;
  uintptr_t bad = 0;
#define STEP(call) bad += (call) != CUDA_SUCCESS
  STEP(cuCtxSetCurrent(contexts[(number + 1) % 2]));
  STEP(cuMemAlloc_v2(&there, MOST));
  STEP(cuCtxSetCurrent(contexts[number % 2]));
  for (int i = 0; i < 2; i++) STEP(cuMemAlloc_v2(&here[i], MOST));
  STEP(cuStreamCreate(&stream, number % 3 == 0 ? CU_STREAM_NON_BLOCKING : CU_STREAM_DEFAULT));
  for (uint32_t round = 0; round < ROUNDS; round++) {
    const size_t bytes = 1 + (round * 2654435761u + number * 40503u) % MOST;
    pattern(in, bytes, round * 31 + number);
    STEP(cuMemcpyHtoD_v2(here[0], in, bytes));
    STEP(cuCtxSynchronize());
    STEP(cuMemcpyAsync(there, here[0], bytes, stream));
    if (round % 4 == 3) {
      STEP(cuMemcpyPeer(here[1], contexts[number % 2], there, contexts[(number + 1) % 2], bytes));
    } else {
      STEP(cuMemcpyAsync(here[1], there, bytes, stream));
    }
    STEP(cuCtxSynchronize());
    STEP(cuMemcpyDtoH_v2(out, here[1], bytes));
    bad += memcmp(in, out, bytes) != 0;
  }
  STEP(cuStreamDestroy_v2(stream));
  STEP(cuMemFree_v2(there));
  for (int i = 0; i < 2; i++) STEP(cuMemFree_v2(here[i]));
#undef STEP
  free(in);
  free(out);
  return (void*)bad;
}

static void test_threads(void) {
  pthread_t threads[THREADS];
  both();
  for (uintptr_t i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, copy_to_and_fro, (void*)i);
  for (int i = 0; i < THREADS; i++) {
    void* bad;
    pthread_join(threads[i], &bad);
    IS(0, (uintptr_t)bad);
  }
  done();
}

// ------------------------------------------------------------------------------------------------ ends and attributes

static void* open_later(void* data) {
  usleep(200000);
  ((hold*)data)->open = 1;
  return NULL;
}

/// Memory, a stream and a context that end while a copy still needs them: natively these calls wait.
static void test_ends(void) {
  enum { BYTES = 2500000 };
  uint8_t *in = malloc(BYTES), *out = malloc(BYTES);
  pattern(in, BYTES, 12);
  both();
  for (int what = 0; what < 3; what++) {
    hold h = {0};
    pthread_t opener;
    CUcontext own = contexts[0];
    CUdeviceptr from = 0;
    const CUdeviceptr to = memory_of(1, BYTES);
    CUstream stream = stream_of(1);
    if (what == 2) OK(cuCtxCreate_v2(&own, 0, 0));
    OK(cuCtxSetCurrent(own));
    OK(cuMemAlloc_v2(&from, BYTES));
    OK(cuMemcpyHtoD_v2(from, in, BYTES));
    OK(cuCtxSynchronize());
    OK(cuLaunchHostFunc(stream, hold_function, &h));
    OK(cuMemcpyPeerAsync(to, contexts[1], from, own, BYTES, stream));
    pthread_create(&opener, NULL, open_later, &h);
    if (what == 0) OK(cuMemFree_v2(from));
    if (what == 1) OK(cuStreamDestroy_v2(stream));
    if (what == 2) OK(cuCtxDestroy_v2(own));
    OK(cuCtxSetCurrent(contexts[1]));
    OK(cuCtxSynchronize());
    OK(cuMemcpyDtoH_v2(out, to, BYTES));
    TRUE(memcmp(in, out, BYTES) == 0);
    pthread_join(opener, NULL);
    if (what == 1) OK(cuMemFree_v2(from));
    if (what != 1) OK(cuStreamDestroy_v2(stream));
    OK(cuMemFree_v2(to));
  }
  done();
  free(in);
  free(out);
}

static void test_attributes(void) {
  int count = 0;
  both();
  OK(cuDeviceGetCount(&count));
  IS(2, count);
  for (int d = 0; d < 2; d++) {
    int ordinal = -1;
    void* host = NULL;
    CUdeviceptr pooled = 0;
    const CUdeviceptr plain = memory_of(d, 1000), large = memory_of(d, 5u << 20);
    CUstream stream = stream_of(d);
    OK(cuMemHostAlloc(&host, 4096, 0));
    OK(cuMemAllocAsync(&pooled, 3000, stream));
    OK(cuCtxSetCurrent(contexts[1 - d]));
    const CUdeviceptr all[] = {plain, plain + 999, large + (4u << 20), pooled, (CUdeviceptr)(uintptr_t)host};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
      OK(cuPointerGetAttribute(&ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, all[i]));
      IS(d, ordinal);
    }
    OK(cuMemFreeAsync(pooled, stream));
    OK(cuStreamSynchronize(stream));
    OK(cuStreamDestroy_v2(stream));
    OK(cuMemFree_v2(plain));
    OK(cuMemFree_v2(large));
    OK(cuMemFreeHost(host));
  }
  done();
}

/// No peer access, no capture over two servers; what is refused leaves the rest as it is.
static void test_refusals(void) {
  enum { BYTES = 4096 };
  int can = -1;
  CUgraph graph = NULL;
  both();
  for (int d = 0; d < 2; d++) {
    OK(cuDeviceCanAccessPeer(&can, d, 1 - d));
    IS(0, can);
    OK(cuCtxSetCurrent(contexts[d]));
    CODE(217, cuCtxEnablePeerAccess(contexts[1 - d], 0));
  }
  const CUdeviceptr a = memory_of(0, BYTES), b = memory_of(1, BYTES);
  CUstream first = stream_of(0), second = stream_of(1);
  CUevent event = event_of(0), other = event_of(1);
  OK(cuStreamBeginCapture_v2(first, CU_STREAM_CAPTURE_MODE_RELAXED));
  CODE(801, cuMemcpyPeerAsync(b, contexts[1], a, contexts[0], BYTES, first));
  OK(cuMemsetD8Async(a, 1, BYTES, first));
  OK(cuStreamEndCapture(first, &graph));
  OK(cuGraphDestroy(graph));
  // A stream of the other server cannot join, nor can a capture wait for what that server does.
  OK(cuStreamBeginCapture_v2(first, CU_STREAM_CAPTURE_MODE_RELAXED));
  OK(cuEventRecord(event, first));
  CODE(801, cuStreamWaitEvent(second, event, 0));
  CODE(901, cuStreamEndCapture(first, &graph));
  OK(cuEventRecord(other, second));
  OK(cuStreamBeginCapture_v2(first, CU_STREAM_CAPTURE_MODE_RELAXED));
  CODE(905, cuStreamWaitEvent(first, other, 0));
  CODE(901, cuStreamEndCapture(first, &graph));
  OK(cuMemsetD8Async(b, 3, BYTES, second));
  OK(cuStreamSynchronize(second));
  OK(cuStreamSynchronize(first));
  OK(cuEventDestroy_v2(event));
  OK(cuEventDestroy_v2(other));
  OK(cuStreamDestroy_v2(first));
  OK(cuStreamDestroy_v2(second));
  OK(cuMemFree_v2(a));
  OK(cuMemFree_v2(b));
  done();
}

SECTIONS({"sizes", test_sizes, OWN_CONTEXT}, {"large", test_large, OWN_CONTEXT}, {"volumes", test_volumes, OWN_CONTEXT},
         {"arrays", test_arrays, OWN_CONTEXT}, {"order", test_order, OWN_CONTEXT}, {"chains", test_chains, OWN_CONTEXT},
         {"serialized", test_serialized, OWN_CONTEXT | NOT_NATIVE},
         {"context_events", test_context_events, OWN_CONTEXT}, {"pinned", test_pinned, OWN_CONTEXT},
         {"threads", test_threads, OWN_CONTEXT}, {"ends", test_ends, OWN_CONTEXT},
         {"attributes", test_attributes, OWN_CONTEXT}, {"refusals", test_refusals, OWN_CONTEXT | NOT_NATIVE})
