// Stands for NVIDIA's runtime where there is none to run: says what FAKE_CUDART_CODES lists, one code for each GPU, and
// leaves a file that shows that it was run.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int codes[8], count, current;

int cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return 0;
}

int cudaGetDeviceCount(int* devices) {
  const char* list = getenv("FAKE_CUDART_CODES");
  for (char* copy = strdup(list); copy != NULL && *copy != 0 && count < 8; copy = strchr(copy, ',')) {
    if (*copy == ',') copy++;
    codes[count++] = atoi(copy);
  }
  FILE* trace = fopen(getenv("FAKE_CUDART_TRACE"), "w");
  if (trace != NULL) fclose(trace);
  if (count > 0 && codes[0] == -1) abort();
  *devices = count;
  return 0;
}

int cudaSetDevice(int device) {
  current = device;
  return 0;
}

int cudaFree(void* address) {
  (void)address;
  return codes[current];
}
