// Images of more than one plane: cubemaps, layers, levels of a mipmap; surfaces of each; how texels become numbers.
#ifndef ORION_TESTS_RUNTIME_LAYERS_H
#define ORION_TESTS_RUNTIME_LAYERS_H

#include "harness.h"

__global__ void sample_faces(float* out, cudaTextureObject_t texture, int width) {
  const float u = (threadIdx.x + 0.5f) / width * 2 - 1, v = (threadIdx.y + 0.5f) / width * 2 - 1;
  const float axes[6][3] = {{1, -v, -u}, {-1, -v, u}, {u, 1, v}, {u, -1, -v}, {u, -v, 1}, {-u, -v, -1}};
  const float* to = axes[blockIdx.x];
  out[(blockIdx.x * width + threadIdx.y) * width + threadIdx.x] = texCubemap<float>(texture, to[0], to[1], to[2]);
}

__global__ void sample_planes(float* out, cudaTextureObject_t texture, int width) {
  const float x = threadIdx.x + 0.5f, y = threadIdx.y + 0.5f;
  out[(blockIdx.x * width + threadIdx.y) * width + threadIdx.x] = tex2DLayered<float>(texture, x, y, (int)blockIdx.x);
}

__global__ void sample_levels(float* out, cudaTextureObject_t texture, int width) {
  const float x = (threadIdx.x + 0.5f) / width, y = (threadIdx.y + 0.5f) / width;
  out[(blockIdx.x * width + threadIdx.y) * width + threadIdx.x] = tex2DLod<float>(texture, x, y, blockIdx.x * 0.5f);
}

__global__ void write_planes(cudaSurfaceObject_t surface, int width) {
  const int x = threadIdx.x, y = threadIdx.y, layer = blockIdx.x;
  const float value = (float)((layer * width + y) * width + x) * 0.25f;
  surf2DLayeredwrite(value, surface, x * (int)sizeof(float), y, layer);
}

__global__ void write_faces(cudaSurfaceObject_t surface, int width) {
  const int x = threadIdx.x, y = threadIdx.y, face = blockIdx.x;
  surfCubemapwrite((float)(face * 1000 + y * width + x), surface, x * (int)sizeof(float), y, face);
}

__global__ void write_volume(cudaSurfaceObject_t surface) {
  const int x = threadIdx.x, y = threadIdx.y, z = blockIdx.x;
  const int old = surf3Dread<int>(surface, x * (int)sizeof(int), y, z, cudaBoundaryModeZero);
  surf3Dwrite(old * 2 + z, surface, x * (int)sizeof(int), y, z);
}

__global__ void write_level(cudaSurfaceObject_t surface, int level) {
  surf2Dwrite((float)(level * 100 + threadIdx.y * 10 + threadIdx.x), surface, threadIdx.x * 4, threadIdx.y);
}

__global__ void read_normalized(float4* out, cudaTextureObject_t texture, int width) {
  out[threadIdx.y * width + threadIdx.x] = tex2D<float4>(texture, threadIdx.x + 0.5f, threadIdx.y + 0.5f);
}

__global__ void gather(float4* out, cudaTextureObject_t texture, int width) {
  out[threadIdx.y * width + threadIdx.x] = tex2Dgather<float4>(texture, threadIdx.x + 1.0f, threadIdx.y + 1.0f, 1);
}

enum { EDGE = 16 };

static cudaTextureObject_t texture_of(cudaArray_t array, cudaTextureDesc how) {
  cudaResourceDesc resource = {};
  resource.resType = cudaResourceTypeArray;
  resource.res.array.array = array;
  cudaTextureObject_t texture = 0;
  OK(cudaCreateTextureObject(&texture, &resource, &how, NULL));
  return texture;
}

static cudaSurfaceObject_t surface_of(cudaArray_t array) {
  cudaResourceDesc resource = {};
  resource.resType = cudaResourceTypeArray;
  resource.res.array.array = array;
  cudaSurfaceObject_t surface = 0;
  OK(cudaCreateSurfaceObject(&surface, &resource));
  return surface;
}

static void copy_planes(cudaArray_t array, void* host, size_t planes, cudaMemcpyKind kind) {
  cudaMemcpy3DParms copy = {};
  copy.kind = kind;
  copy.extent = make_cudaExtent(EDGE, EDGE, planes);
  if (kind == cudaMemcpyHostToDevice) {
    copy.srcPtr = make_cudaPitchedPtr(host, EDGE * 4, EDGE, EDGE);
    copy.dstArray = array;
  } else {
    copy.srcArray = array;
    copy.dstPtr = make_cudaPitchedPtr(host, EDGE * 4, EDGE, EDGE);
  }
  OK(cudaMemcpy3D(&copy));
}

static void test_cubemaps() {
  enum { COUNT = EDGE * EDGE * 6 };
  static float texels[COUNT], back[COUNT];
  for (int i = 0; i < COUNT; i++) texels[i] = (float)((i * 29) % 113);
  const cudaChannelFormatDesc format = cudaCreateChannelDesc<float>();
  const dim3 plane(EDGE, EDGE);
  float* out = NULL;
  cudaArray_t cube = NULL, layers = NULL;
  cudaTextureDesc how = {};
  OK(cudaMalloc(&out, sizeof texels));
  OK(cudaMalloc3DArray(&cube, &format, make_cudaExtent(EDGE, EDGE, 6), cudaArrayCubemap | cudaArraySurfaceLoadStore));
  copy_planes(cube, texels, 6, cudaMemcpyHostToDevice);
  how.normalizedCoords = 1;
  cudaTextureObject_t texture = texture_of(cube, how);
  sample_faces<<<6, plane>>>(out, texture, EDGE);
  OK(cudaMemcpy(back, out, sizeof back, cudaMemcpyDeviceToHost));
  // The directions are those of the texels' centres: every texel comes back as it is.
  IS("cubemaps.faces", 0, memcmp(back, texels, sizeof back));
  OK(cudaDestroyTextureObject(texture));
  how.filterMode = cudaFilterModeLinear;
  texture = texture_of(cube, how);
  // Half as many threads each way: each has a word of its own, at the corner of four texels.
  sample_faces<<<6, dim3(EDGE / 2, EDGE / 2)>>>(out, texture, EDGE / 2);
  OK(cudaGetLastError());
  SAY("cubemaps.linear", device_digest(out, sizeof texels / 4));
  OK(cudaDestroyTextureObject(texture));
  cudaSurfaceObject_t surface = surface_of(cube);
  write_faces<<<6, plane>>>(surface, EDGE);
  copy_planes(cube, back, 6, cudaMemcpyDeviceToHost);
  IS("cubemaps.written", 4000 + 5 * EDGE + 7, back[(4 * EDGE + 5) * EDGE + 7]);
  OK(cudaDestroySurfaceObject(surface));
  OK(cudaFreeArray(cube));
  OK(cudaMalloc3DArray(&layers, &format, make_cudaExtent(EDGE, EDGE, 6), cudaArrayLayered | cudaArraySurfaceLoadStore));
  surface = surface_of(layers);
  write_planes<<<6, plane>>>(surface, EDGE);
  OK(cudaDestroySurfaceObject(surface));
  texture = texture_of(layers, {});
  sample_planes<<<6, plane>>>(out, texture, EDGE);
  OK(cudaMemcpy(back, out, sizeof back, cudaMemcpyDeviceToHost));
  for (int i = 0; i < COUNT; i++) texels[i] = (float)i * 0.25f;
  IS("cubemaps.layers", 0, memcmp(back, texels, sizeof back));
  OK(cudaDestroyTextureObject(texture));
  OK(cudaFreeArray(layers));
  SAY_CODE("cubemaps.not_square",
           cudaMalloc3DArray(&cube, &format, make_cudaExtent(EDGE, EDGE / 2, 6), cudaArrayCubemap));
  SAY_CODE("cubemaps.five_faces", cudaMalloc3DArray(&cube, &format, make_cudaExtent(EDGE, EDGE, 5), cudaArrayCubemap));
  OK(cudaFree(out));
}

static void test_levels() {
  float* out = NULL;
  cudaMipmappedArray_t mipmap = NULL;
  const cudaChannelFormatDesc format = cudaCreateChannelDesc<float>();
  OK(cudaMalloc(&out, EDGE * EDGE * 5 * sizeof(float)));
  OK(cudaMallocMipmappedArray(&mipmap, &format, make_cudaExtent(8, 8, 0), 3, cudaArraySurfaceLoadStore));
  for (int level = 0; level < 3; level++) {
    cudaArray_t array = NULL;
    OK(cudaGetMipmappedArrayLevel(&array, mipmap, level));
    cudaSurfaceObject_t surface = surface_of(array);
    write_level<<<1, dim3(8 >> level, 8 >> level)>>>(surface, level);
    OK(cudaDestroySurfaceObject(surface));
  }
  cudaResourceDesc resource = {};
  resource.resType = cudaResourceTypeMipmappedArray;
  resource.res.mipmap.mipmap = mipmap;
  cudaTextureDesc how = {};
  how.normalizedCoords = 1;
  how.filterMode = how.mipmapFilterMode = cudaFilterModeLinear;
  how.maxMipmapLevelClamp = 2;
  cudaTextureObject_t texture = 0;
  OK(cudaCreateTextureObject(&texture, &resource, &how, NULL));
  sample_levels<<<5, dim3(EDGE, EDGE)>>>(out, texture, EDGE);
  OK(cudaGetLastError());
  SAY("levels.linear", device_digest(out, EDGE * EDGE * 5 * sizeof(float)));
  OK(cudaDestroyTextureObject(texture));
  OK(cudaFreeMipmappedArray(mipmap));
  OK(cudaFree(out));
}

static void test_texels() {
  enum { COUNT = EDGE * EDGE };
  unsigned char bytes[COUNT * 4];
  float4 back[COUNT];
  float4* out = NULL;
  cudaArray_t array = NULL;
  for (int i = 0; i < COUNT * 4; i++) bytes[i] = (unsigned char)(i * 13);
  OK(cudaMalloc(&out, sizeof back));
  const cudaChannelFormatDesc four_bytes = cudaCreateChannelDesc<uchar4>();
  OK(cudaMallocArray(&array, &four_bytes, EDGE, EDGE, cudaArrayTextureGather));
  OK(cudaMemcpy2DToArray(array, 0, 0, bytes, EDGE * 4, EDGE * 4, EDGE, cudaMemcpyHostToDevice));
  cudaTextureDesc how = {};
  how.readMode = cudaReadModeNormalizedFloat;
  how.addressMode[0] = how.addressMode[1] = cudaAddressModeClamp;
  cudaTextureObject_t texture = texture_of(array, how);
  read_normalized<<<1, dim3(EDGE, EDGE)>>>(out, texture, EDGE);
  OK(cudaMemcpy(back, out, sizeof back, cudaMemcpyDeviceToHost));
  IS("texels.normalized", bytes[37 * 4 + 2], (int)(back[37].z * 255.0f + 0.5f));
  SAY("texels.normalized_digest", digest(back, sizeof back));
  gather<<<1, dim3(EDGE, EDGE)>>>(out, texture, EDGE);
  OK(cudaGetLastError());
  SAY("texels.gathered", device_digest(out, sizeof back));
  OK(cudaDestroyTextureObject(texture));
  how.sRGB = 1;
  texture = texture_of(array, how);
  read_normalized<<<1, dim3(EDGE, EDGE)>>>(out, texture, EDGE);
  SAY("texels.srgb", device_digest(out, sizeof back));
  OK(cudaDestroyTextureObject(texture));
  OK(cudaFreeArray(array));
  // A volume that kernels read and write, and a part of it copied back.
  int ints[COUNT * 4], part[4 * 3 * 2];
  fill(ints, COUNT * 4, 5);
  const cudaChannelFormatDesc one_int = cudaCreateChannelDesc<int>();
  OK(cudaMalloc3DArray(&array, &one_int, make_cudaExtent(EDGE, EDGE, 4), cudaArraySurfaceLoadStore));
  copy_planes(array, ints, 4, cudaMemcpyHostToDevice);
  cudaSurfaceObject_t surface = surface_of(array);
  write_volume<<<4, dim3(EDGE, EDGE)>>>(surface);
  OK(cudaDestroySurfaceObject(surface));
  cudaMemcpy3DParms copy = {};
  copy.kind = cudaMemcpyDeviceToHost;
  copy.srcArray = array;
  copy.srcPos = make_cudaPos(5, 6, 2);
  copy.dstPtr = make_cudaPitchedPtr(part, 4 * sizeof(int), 4, 3);
  copy.extent = make_cudaExtent(4, 3, 2);
  OK(cudaMemcpy3D(&copy));
  IS("texels.volume", (int)((unsigned)ints[(3 * EDGE + 8) * EDGE + 7] * 2 + 3), part[(1 * 3 + 2) * 4 + 2]);
  SAY("texels.volume_digest", digest(part, sizeof part));
  OK(cudaFreeArray(array));
  OK(cudaFree(out));
}

#endif  // ORION_TESTS_RUNTIME_LAYERS_H
