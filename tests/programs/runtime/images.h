// Arrays, textures and surfaces; tensor cores.
#ifndef ORION_TESTS_RUNTIME_IMAGES_H
#define ORION_TESTS_RUNTIME_IMAGES_H

#include <cuda_fp16.h>
#include <mma.h>

#include "harness.h"

__global__ void sample(float* out, cudaTextureObject_t texture, int width, int height, float scale) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
  if (x < width) out[y * width + x] = tex2D<float>(texture, (x + 0.5f) * scale, (y + 0.5f) * scale);
}

__global__ void fetch(int* out, cudaTextureObject_t texture, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) out[i] = tex1Dfetch<int>(texture, i) + 1;
}

__global__ void sample_layers(float* out, cudaTextureObject_t texture, int width) {
  out[blockIdx.x * width + threadIdx.x] = tex1DLayered<float>(texture, threadIdx.x + 0.5f, blockIdx.x);
}

__global__ void sample_cube(float* out, cudaTextureObject_t texture, int width) {
  const int i = threadIdx.x;
  out[blockIdx.x * width + i] = tex3D<float>(texture, i + 0.25f, blockIdx.x + 0.5f, 1.5f);
}

__global__ void write_surface(cudaSurfaceObject_t surface, int width) {
  const int x = threadIdx.x, y = blockIdx.x;
  const float old = surf2Dread<float>(surface, x * (int)sizeof(float), y);
  surf2Dwrite(old * 2 + (float)(y * width), surface, x * (int)sizeof(float), y);
}

static void test_textures() {
  enum { WIDTH = 64, HEIGHT = 32, COUNT = WIDTH * HEIGHT };
  float pixels[COUNT];
  for (int i = 0; i < COUNT; i++) pixels[i] = (float)((i * 37) % 101);
  const cudaChannelFormatDesc format = cudaCreateChannelDesc<float>();
  cudaArray_t array, layers, cube;
  float* out = NULL;
  OK(cudaMalloc(&out, sizeof pixels));
  OK(cudaMallocArray(&array, &format, WIDTH, HEIGHT, cudaArraySurfaceLoadStore));
  OK(cudaMemcpy2DToArray(array, 0, 0, pixels, WIDTH * 4, WIDTH * 4, HEIGHT, cudaMemcpyHostToDevice));
  cudaResourceDesc resource = {};
  resource.resType = cudaResourceTypeArray;
  resource.res.array.array = array;
  cudaTextureDesc how = {};
  how.addressMode[0] = cudaAddressModeWrap;
  how.addressMode[1] = cudaAddressModeWrap;
  how.filterMode = cudaFilterModeLinear;
  how.normalizedCoords = 1;
  cudaTextureObject_t texture;
  OK(cudaCreateTextureObject(&texture, &resource, &how, NULL));
  sample<<<dim3(1, HEIGHT), WIDTH>>>(out, texture, WIDTH, HEIGHT, 0.03f);
  OK(cudaGetLastError());
  SAY("textures.linear_wrap", device_digest(out, sizeof pixels));
  OK(cudaDestroyTextureObject(texture));
  how = {};
  how.addressMode[0] = how.addressMode[1] = cudaAddressModeBorder;
  how.borderColor[0] = 5.0f;
  OK(cudaCreateTextureObject(&texture, &resource, &how, NULL));
  sample<<<dim3(1, HEIGHT), WIDTH>>>(out, texture, WIDTH, HEIGHT, 1.5f);
  SAY("textures.point_border", device_digest(out, sizeof pixels));
  cudaTextureDesc seen = {};
  OK(cudaGetTextureObjectTextureDesc(&seen, texture));
  IS("textures.desc", cudaAddressModeBorder, seen.addressMode[1]);
  OK(cudaDestroyTextureObject(texture));
  // Linear memory, as integers.
  cudaResourceDesc linear = {};
  linear.resType = cudaResourceTypeLinear;
  linear.res.linear.desc = cudaCreateChannelDesc<int>();
  linear.res.linear.sizeInBytes = sizeof pixels;
  int* numbers = NULL;
  OK(cudaMalloc(&numbers, sizeof pixels));
  OK(cudaMemcpy(numbers, pixels, sizeof pixels, cudaMemcpyHostToDevice));
  linear.res.linear.devPtr = numbers;
  how = {};
  OK(cudaCreateTextureObject(&texture, &linear, &how, NULL));
  fetch<<<COUNT / 256, 256>>>((int*)out, texture, COUNT);
  SAY("textures.fetch", device_digest(out, sizeof pixels));
  OK(cudaDestroyTextureObject(texture));
  // Pitched memory.
  float* pitched = NULL;
  size_t pitch = 0;
  OK(cudaMallocPitch(&pitched, &pitch, WIDTH * 4, HEIGHT));
  OK(cudaMemcpy2D(pitched, pitch, pixels, WIDTH * 4, WIDTH * 4, HEIGHT, cudaMemcpyHostToDevice));
  cudaResourceDesc plane = {};
  plane.resType = cudaResourceTypePitch2D;
  plane.res.pitch2D.desc = format;
  plane.res.pitch2D.devPtr = pitched;
  plane.res.pitch2D.width = WIDTH;
  plane.res.pitch2D.height = HEIGHT;
  plane.res.pitch2D.pitchInBytes = pitch;
  how = {};
  how.filterMode = cudaFilterModeLinear;
  OK(cudaCreateTextureObject(&texture, &plane, &how, NULL));
  sample<<<dim3(1, HEIGHT), WIDTH>>>(out, texture, WIDTH, HEIGHT, 0.7f);
  SAY("textures.pitched", device_digest(out, sizeof pixels));
  OK(cudaDestroyTextureObject(texture));
  // Layers and three dimensions.
  OK(cudaMalloc3DArray(&layers, &format, make_cudaExtent(WIDTH, 0, 4), cudaArrayLayered));
  OK(cudaMalloc3DArray(&cube, &format, make_cudaExtent(WIDTH, 8, 4), 0));
  cudaMemcpy3DParms copy = {};
  copy.srcPtr = make_cudaPitchedPtr(pixels, WIDTH * 4, WIDTH, 1);
  copy.dstArray = layers;
  copy.extent = make_cudaExtent(WIDTH, 1, 4);
  copy.kind = cudaMemcpyHostToDevice;
  OK(cudaMemcpy3D(&copy));
  copy.srcPtr = make_cudaPitchedPtr(pixels, WIDTH * 4, WIDTH, 8);
  copy.dstArray = cube;
  copy.extent = make_cudaExtent(WIDTH, 8, 4);
  OK(cudaMemcpy3D(&copy));
  how.normalizedCoords = 0;
  resource.res.array.array = layers;
  OK(cudaCreateTextureObject(&texture, &resource, &how, NULL));
  OK(cudaMemset(out, 0, sizeof pixels));
  sample_layers<<<4, WIDTH>>>(out, texture, WIDTH);
  SAY("textures.layers", device_digest(out, sizeof pixels));
  OK(cudaDestroyTextureObject(texture));
  resource.res.array.array = cube;
  OK(cudaCreateTextureObject(&texture, &resource, &how, NULL));
  sample_cube<<<8, WIDTH>>>(out, texture, WIDTH);
  SAY("textures.cube", device_digest(out, sizeof pixels));
  OK(cudaDestroyTextureObject(texture));
  // A surface on the first array.
  cudaSurfaceObject_t surface;
  resource.res.array.array = array;
  OK(cudaCreateSurfaceObject(&surface, &resource));
  write_surface<<<HEIGHT, WIDTH>>>(surface, WIDTH);
  float back[COUNT];
  OK(cudaMemcpy2DFromArray(back, WIDTH * 4, array, 0, 0, WIDTH * 4, HEIGHT, cudaMemcpyDeviceToHost));
  IS("surfaces.value", (int)(pixels[3 * WIDTH + 5] * 2 + 3 * WIDTH), (int)back[3 * WIDTH + 5]);
  SAY("surfaces.digest", digest(back, sizeof back));
  OK(cudaDestroySurfaceObject(surface));
  cudaExtent extent = {};
  unsigned flags = 0;
  cudaChannelFormatDesc seen_format = {};
  OK(cudaArrayGetInfo(&seen_format, &extent, &flags, array));
  IS("arrays.width", WIDTH, extent.width);
  IS("arrays.flags", cudaArraySurfaceLoadStore, flags);
  OK(cudaFreeArray(array));
  OK(cudaFreeArray(layers));
  OK(cudaFreeArray(cube));
  // Levels of a mipmap are arrays of their own.
  cudaMipmappedArray_t mipmap;
  cudaArray_t level;
  OK(cudaMallocMipmappedArray(&mipmap, &format, make_cudaExtent(64, 64, 0), 3));
  OK(cudaGetMipmappedArrayLevel(&level, mipmap, 2));
  OK(cudaArrayGetInfo(&seen_format, &extent, &flags, level));
  IS("arrays.level_width", 16, extent.width);
  OK(cudaFreeMipmappedArray(mipmap));
  OK(cudaFree(out));
  OK(cudaFree(numbers));
  OK(cudaFree(pitched));
}

__global__ void multiply_tiles(float* out, const half* a, const half* b) {
  using namespace nvcuda;
  wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> left;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::row_major> right;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
  wmma::fill_fragment(sum, 0.0f);
  wmma::load_matrix_sync(left, a, 16);
  wmma::load_matrix_sync(right, b, 16);
  wmma::mma_sync(sum, left, right, sum);
  wmma::store_matrix_sync(out, sum, 16, wmma::mem_row_major);
}

static void test_tensor_cores() {
  half a[256], b[256];
  float *out = NULL, back[256];
  half *da = NULL, *db = NULL;
  for (int i = 0; i < 256; i++) {
    a[i] = __float2half((float)(i % 7));
    b[i] = __float2half((float)(i % 5));
  }
  OK(cudaMalloc(&da, sizeof a));
  OK(cudaMalloc(&db, sizeof b));
  OK(cudaMalloc(&out, sizeof back));
  OK(cudaMemcpy(da, a, sizeof a, cudaMemcpyHostToDevice));
  OK(cudaMemcpy(db, b, sizeof b, cudaMemcpyHostToDevice));
  multiply_tiles<<<1, 32>>>(out, da, db);
  OK(cudaMemcpy(back, out, sizeof back, cudaMemcpyDeviceToHost));
  int expected = 0;
  for (int k = 0; k < 16; k++) expected += ((2 * 16 + k) % 7) * ((k * 16 + 3) % 5);
  IS("tensor_cores.value", expected, (int)back[2 * 16 + 3]);
  SAY("tensor_cores.digest", digest(back, sizeof back));
  OK(cudaFree(da));
  OK(cudaFree(db));
  OK(cudaFree(out));
}

#endif  // ORION_TESTS_RUNTIME_IMAGES_H
