// The driver's private tables, as NVIDIA's libraries call them: shapes, codes and lifetimes measured on driver 580.
// clang-format off
#define CALLS(X) \
  X(cuGetExportTable, (const void**, const CUuuid*)) X(cuCtxGetCurrent, (CUcontext*)) \
  X(cuDevicePrimaryCtxGetState, (CUdevice, unsigned*, int*)) X(cuDevicePrimaryCtxReset_v2, (CUdevice)) \
  X(cuCtxCreate_v2, (CUcontext*, unsigned, CUdevice)) X(cuCtxDestroy_v2, (CUcontext)) X(cuCtxGetDevice, (CUdevice*)) \
  X(cuCtxGetApiVersion, (CUcontext, unsigned*)) X(cuCtxGetId, (CUcontext, unsigned long long*)) \
  X(cuModuleLoadData, (CUmodule*, const void*)) X(cuModuleUnload, (CUmodule)) \
  X(cuModuleGetFunction, (CUfunction*, CUmodule, const char*)) X(cuMemAlloc_v2, (CUdeviceptr*, size_t)) \
  X(cuMemFree_v2, (CUdeviceptr)) X(cuCtxSynchronize, (void)) X(cuMemcpyDtoH_v2, (void*, CUdeviceptr, size_t))
// clang-format on
#include "area.h"

#define INVALID_CONTEXT CUDA_ERROR_INVALID_CONTEXT
#define INVALID_HANDLE CUDA_ERROR_INVALID_HANDLE

typedef void* slot;
typedef void (*destructor)(CUcontext, void*, void*);
typedef struct storage {
  CUresult (*put)(CUcontext, void*, void*, destructor);
  CUresult (*drop)(CUcontext, void*);
  CUresult (*get)(void**, CUcontext, void*);
} storage;

static slot* table(const char* hex) {
  CUuuid id;
  for (int i = 0; i < 16; i++) {
    unsigned byte;
    sscanf(hex + 2 * i, "%2x", &byte);
    id.bytes[i] = (char)byte;
  }
  const void* found = NULL;
  OK(cuGetExportTable(&found, &id));
  if (found == NULL) exit(2);
  return (slot*)found;
}

#define RUNTIME "6bd5fb6c5bf4e74a8987d93912fd9df9"
#define HOOKS "a094798c2e742e7493f20800200c0a66"
#define THREAD "42d85a8123f6cb478298f6e78a3aecdc"
#define STORAGE "c693336e1121df11a8c368f355d89593"
#define CHECKS "263e88607cd2614392f6bbd5006dfa7e"
#define SELF_TEST "d4082055bde6704b8d34ba123c66e1f2"
#define LOGGING "f8cff95121468b4eb9e2fb469e7c0dd9"
#define CONTEXT "21318c60971432488ca641ff7324c8f2"
#define MODULE "6e163fbeb958444d835ce182aff1991e"
#define BLAS "1734dc26800d47458726c0f1e7dd8bca"

static void test_shapes(void) {
  static const struct {
    const char* id;
    size_t bytes;
    int empty;
  } all[] = {{RUNTIME, 104, 10}, {HOOKS, 56, 0},     {THREAD, 24, 0},   {CHECKS, 120, 0}, {SELF_TEST, 24, 0},
             {LOGGING, 24, 0},   {CONTEXT, 744, 91}, {MODULE, 792, 93}, {BLAS, 136, 0}};
  for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
    slot* slots = table(all[i].id);
    IS(all[i].bytes, (size_t)slots[0]);
    TRUE(slots == table(all[i].id));
    for (size_t s = 1; s < all[i].bytes / sizeof(slot); s++) {
      if ((slots[s] == NULL) != (all[i].empty != 0 && (size_t)all[i].empty == s)) {
        report(0, __LINE__, all[i].id, 0, (long long)s);
      }
    }
  }
  CUuuid unknown = {{1, 2, 3}};
  const void* found = NULL;
  CODE(CUDA_ERROR_INVALID_VALUE, cuGetExportTable(&found, &unknown));
  IS(0, (uintptr_t)found);
}

static void test_primary(void) {
  CUresult (*primary_context)(CUcontext*, CUdevice) = (CUresult (*)(CUcontext*, CUdevice))table(RUNTIME)[2];
  CUcontext early = NULL, retained = NULL, current = NULL;
  OK(primary_context(&early, device));
  TRUE(early != NULL);
  unsigned flags = 7, version = 0;
  int active = 7;
  OK(cuDevicePrimaryCtxGetState(device, &flags, &active));
  IS(0, active);
  IS(0, flags);
  // As the runtime's cudaSetDevice does, before anything is retained.
  OK(cuCtxSetCurrent(early));
  OK(cuCtxGetCurrent(&current));
  TRUE(current == early);
  CUdevice of = -1;
  OK(cuCtxGetDevice(&of));
  IS(device, of);
  CODE(INVALID_CONTEXT, cuCtxGetApiVersion(early, &version));
  OK(cuDevicePrimaryCtxGetState(device, &flags, &active));
  IS(0, active);
  OK(cuDevicePrimaryCtxRetain(&retained, device));
  TRUE(retained == early);
  OK(cuCtxGetApiVersion(early, &version));
  NOTE(version);
  OK(primary_context(&early, device));
  TRUE(retained == early);
  OK(cuDevicePrimaryCtxRelease_v2(device));
  OK(cuDevicePrimaryCtxGetState(device, &flags, &active));
  IS(0, active);
  OK(cuCtxSetCurrent(NULL));
}

static struct {
  CUcontext handle, current;
  void *key, *value;
  pthread_t thread;
} destroyed[8];
static int destroyed_count;

static void note_destroyed(CUcontext handle, void* key, void* value) {
  if (destroyed_count == 8) return;
  CUcontext current = NULL;
  cuCtxGetCurrent(&current);
  destroyed[destroyed_count].handle = handle;
  destroyed[destroyed_count].current = current;
  destroyed[destroyed_count].key = key;
  destroyed[destroyed_count].value = value;
  destroyed[destroyed_count++].thread = pthread_self();
}

static char keys[8];

static void test_storage_codes(void) {
  const storage* with = (const storage*)table(STORAGE);
  void* value = &keys[7];
  OK(cuCtxSetCurrent(NULL));
  CODE(INVALID_CONTEXT, with->put(NULL, &keys[0], &keys[1], NULL));
  CODE(INVALID_CONTEXT, with->get(&value, NULL, &keys[0]));
  CODE(INVALID_CONTEXT, with->drop(NULL, &keys[0]));
  TRUE(value == &keys[7]);
  // An explicit context needs no current one, and does not become it.
  CUcontext current = (CUcontext)1;
  OK(with->put(context, &keys[0], &keys[1], note_destroyed));
  OK(with->get(&value, context, &keys[0]));
  TRUE(value == &keys[1]);
  OK(cuCtxGetCurrent(&current));
  TRUE(current == NULL);
  OK(cuCtxSetCurrent(context));
  value = &keys[7];
  CODE(INVALID_HANDLE, with->get(&value, NULL, &keys[5]));
  TRUE(value == &keys[7]);
  CODE(INVALID_HANDLE, with->drop(NULL, &keys[5]));
  CODE(INVALID_HANDLE, with->put(NULL, &keys[0], &keys[2], NULL));
  for (int i = 0; i < 2; i++) {
    OK(with->get(&value, NULL, &keys[0]));
    TRUE(value == &keys[1]);
  }
  destroyed_count = 0;
  OK(with->drop(NULL, &keys[0]));
  IS(0, destroyed_count);
  CODE(INVALID_HANDLE, with->get(&value, NULL, &keys[0]));
  OK(with->put(NULL, &keys[0], &keys[3], NULL));
  OK(with->get(&value, NULL, &keys[0]));
  TRUE(value == &keys[3]);
  OK(with->drop(context, &keys[0]));
}

static void test_storage_inactive(void) {
  const storage* with = (const storage*)table(STORAGE);
  CUresult (*primary_context)(CUcontext*, CUdevice) = (CUresult (*)(CUcontext*, CUdevice))table(RUNTIME)[2];
  CUcontext early = NULL;
  void* value = NULL;
  OK(primary_context(&early, device));
  CODE(INVALID_HANDLE, with->get(&value, early, &keys[0]));
  OK(with->put(early, &keys[0], &keys[1], NULL));
  OK(cuDevicePrimaryCtxRetain(&context, device));
  OK(with->get(&value, context, &keys[0]));
  TRUE(value == &keys[1]);
  OK(with->drop(context, &keys[0]));
  OK(cuDevicePrimaryCtxRelease_v2(device));
}

static void test_storage_reset(void) {
  const storage* with = (const storage*)table(STORAGE);
  void* value = NULL;
  destroyed_count = 0;
  for (int i = 0; i < 3; i++) OK(with->put(NULL, &keys[i], &keys[i + 3], note_destroyed));
  OK(with->put(NULL, &keys[6], &keys[7], NULL));
  OK(with->get(&value, NULL, &keys[1]));
  OK(cuCtxSetCurrent(NULL));
  OK(cuDevicePrimaryCtxReset_v2(device));
  IS(3, destroyed_count);
  for (int i = 0; i < 3; i++) {
    TRUE(destroyed[i].key == &keys[2 - i]);
    TRUE(destroyed[i].value == &keys[5 - i]);
    TRUE(destroyed[i].handle == context);
    TRUE(destroyed[i].current == NULL);
    TRUE(pthread_equal(destroyed[i].thread, pthread_self()));
  }
  CUcontext current = (CUcontext)1;
  OK(cuCtxGetCurrent(&current));
  TRUE(current == NULL);
  CODE(INVALID_HANDLE, with->get(&value, context, &keys[1]));
}

static void test_storage_destroy(void) {
  const storage* with = (const storage*)table(STORAGE);
  CUcontext own = NULL;
  OK(cuCtxCreate_v2(&own, 0, device));
  OK(with->put(NULL, &keys[0], &keys[1], note_destroyed));
  destroyed_count = 0;
  OK(cuCtxDestroy_v2(own));
  IS(1, destroyed_count);
  TRUE(destroyed[0].value == &keys[1]);
  // A later context does not see it, wherever it lies.
  OK(cuCtxCreate_v2(&own, 0, device));
  void* value = NULL;
  CODE(INVALID_HANDLE, with->get(&value, NULL, &keys[0]));
  OK(cuCtxDestroy_v2(own));
  IS(1, destroyed_count);
}

/// Nobody measured it: the lines of a native run decide.
static void test_storage_release(void) {
  const storage* with = (const storage*)table(STORAGE);
  OK(cuDevicePrimaryCtxRetain(&context, device));
  OK(with->put(context, &keys[0], &keys[1], note_destroyed));
  destroyed_count = 0;
  OK(cuDevicePrimaryCtxRelease_v2(device));
  NOTE(destroyed_count);
  NOTE(destroyed_count == 1 && destroyed[0].current == context);
  void* value = NULL;
  NOTE(with->get(&value, context, &keys[0]));
}

typedef struct worker {
  const storage* with;
  int number, bad;
} worker;

static void* put_get_drop(void* argument) {
  worker* self = argument;
  OK(cuCtxSetCurrent(context));
  void* mine = (char*)self + 1;
  for (int i = 0; i < 2000; i++) {
    void* value = NULL;
    self->bad += self->with->put(NULL, mine, self, NULL) != 0;
    for (int j = 0; j < 4; j++) self->bad += self->with->get(&value, NULL, mine) != 0 || value != self;
    self->bad += self->with->get(&value, NULL, &keys[0]) != 0 || value != &keys[1];
    self->bad += self->with->drop(NULL, mine) != 0;
    self->bad += self->with->get(&value, NULL, mine) != INVALID_HANDLE;
  }
  return NULL;
}

static void test_storage_threads(void) {
  worker workers[4];
  pthread_t threads[4];
  const storage* with = (const storage*)table(STORAGE);
  OK(with->put(NULL, &keys[0], &keys[1], NULL));
  for (int i = 0; i < 4; i++) {
    workers[i] = (worker){with, i, 0};
    pthread_create(&threads[i], NULL, put_get_drop, &workers[i]);
  }
  for (int i = 0; i < 4; i++) {
    pthread_join(threads[i], NULL);
    IS(0, workers[i].bad);
  }
  OK(with->drop(NULL, &keys[0]));
}

static void test_tools(void) {
  void* buffer = NULL;
  size_t count = 0;
  slot* hooks = table(HOOKS);
  static const struct {
    int slot;
    size_t count;
  } buffers[] = {{2, 1024}, {6, 14}};
  for (int i = 0; i < 2; i++) {
    ((void (*)(void**, size_t*))hooks[buffers[i].slot])(&buffer, &count);
    IS(buffers[i].count, count);
    for (size_t b = 0; b < count; b++) {
      if (((volatile char*)buffer)[b] != 0) report(0, __LINE__, "a flag is set", 0, (long long)b);
    }
  }
  CUcontext current = NULL;
  OK(((CUresult (*)(CUcontext*))table(THREAD)[2])(&current));
  TRUE(current == context);
  OK(cuCtxSetCurrent(NULL));
  OK(((CUresult (*)(CUcontext*))table(THREAD)[2])(&current));
  TRUE(current == NULL);
  OK(cuCtxSetCurrent(context));
  uint32_t wrapped = 7;
  void* inner = NULL;
  slot* in = table(CHECKS);
  OK(((CUresult (*)(CUcontext, uint32_t*, void**))in[2])(NULL, &wrapped, &inner));
  IS(0, wrapped);
  IS(0, ((uint32_t (*)(void))in[3])());
}

static void test_context_numbers(void) {
  CUresult (*number_of)(CUcontext, uint64_t*) = (CUresult (*)(CUcontext, uint64_t*))table(CONTEXT)[4];
  uint64_t number = 7, other = 7;
  unsigned long long id = 0;
  OK(number_of(NULL, &number));
  IS(0, number);
  OK(number_of(context, &number));
  OK(cuCtxGetId(context, &id));
  IS(id, number);
  TRUE(number != 0);
  CUcontext second;
  OK(cuCtxCreate_v2(&second, 0, device));
  OK(number_of(second, &other));
  TRUE(other != number);
  OK(cuCtxDestroy_v2(second));
}

static const char source[] =
    ".version 6.4\n.target sm_50\n.address_size 64\n"
    ".visible .entry one(.param .u64 to) { .reg .u64 %a; .reg .u32 %v; ld.param.u64 %a, [to]; mov.u32 %v, 41; "
    "st.global.u32 [%a], %v; ret; }\n";
static const char two_functions[] =
    ".version 6.4\n.target sm_50\n.address_size 64\n"
    ".visible .entry first() { ret; }\n.visible .entry second() { ret; }\n";

static uint64_t keep_function(void* to, CUfunction function, uint64_t unused) {
  (void)unused;
  CUfunction** next = to;
  *(*next)++ = function;
  return 0;
}

static void test_functions_of_a_module(void) {
  uint64_t (*for_each)(CUcontext, CUmodule, uint64_t (*)(void*, CUfunction, uint64_t), void*) =
      (uint64_t (*)(CUcontext, CUmodule, uint64_t (*)(void*, CUfunction, uint64_t), void*))table(MODULE)[7];
  CUmodule module;
  OK(cuModuleLoadData(&module, two_functions));
  CUfunction found[4] = {NULL};
  CUfunction* next = found;
  IS(2, for_each(context, module, keep_function, &next));
  TRUE(next == found + 2 && found[0] != NULL && found[1] != NULL && found[0] != found[1]);
  OK(cuModuleUnload(module));

  OK(cuModuleLoadData(&module, source));
  next = found;
  IS(1, for_each(context, module, keep_function, &next));
  OK(cuModuleUnload(module));
}

SECTIONS({"shapes", test_shapes, DRIVER_TABLES}, {"primary", test_primary, OWN_CONTEXT | DRIVER_TABLES},
         {"storage_codes", test_storage_codes, DRIVER_TABLES},
         {"storage_inactive", test_storage_inactive, OWN_CONTEXT | DRIVER_TABLES},
         {"storage_destroy", test_storage_destroy, OWN_CONTEXT | DRIVER_TABLES},
         {"storage_release", test_storage_release, OWN_CONTEXT | DRIVER_TABLES},
         {"storage_threads", test_storage_threads, DRIVER_TABLES | NOT_NATIVE}, {"tools", test_tools, DRIVER_TABLES},
         {"context_numbers", test_context_numbers, DRIVER_TABLES},
         {"functions_of_a_module", test_functions_of_a_module, DRIVER_TABLES},
         {"storage_reset", test_storage_reset, DRIVER_TABLES | LAST})
