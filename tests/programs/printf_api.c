// What kernels print, and failed assertions, reach the program's own stdout and stderr before a wait returns.
//
// gcc -std=gnu11 -I wire/include tests/programs/printf_api.c -o printf_api -ldl -lpthread
#include "cuda_types.h"

// clang-format off
#define CALLS(X) \
  X(cuModuleLoadData, (CUmodule*, const void*)) X(cuModuleUnload, (CUmodule)) \
  X(cuModuleGetFunction, (CUfunction*, CUmodule, const char*)) \
  X(cuLaunchKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, CUstream, void**, void**)) \
  X(cuCtxSynchronize, (void)) X(cuStreamSynchronize, (CUstream)) X(cuEventSynchronize, (CUevent)) \
  X(cuEventCreate, (CUevent*, unsigned)) X(cuEventRecord, (CUevent, CUstream)) X(cuEventDestroy_v2, (CUevent)) \
  X(cuStreamAddCallback, (CUstream, CUstreamCallback, void*, unsigned)) X(cuStreamCreate, (CUstream*, unsigned)) \
  X(cuStreamDestroy_v2, (CUstream)) X(cuMemAlloc_v2, (CUdeviceptr*, size_t)) \
  X(cuMemFree_v2, (CUdeviceptr)) X(cuMemcpyDtoH_v2, (void*, CUdeviceptr, size_t)) \
  X(cuCtxCreate_v2, (CUcontext*, unsigned, CUdevice)) X(cuCtxDestroy_v2, (CUcontext)) \
  X(cuLibraryLoadData, (CUlibrary*, const void*, CUjit_option*, void**, unsigned, CUlibraryOption*, void**, unsigned)) \
  X(cuLibraryGetKernel, (CUkernel*, CUlibrary, const char*)) X(cuLibraryUnload, (CUlibrary))
// clang-format on

#include "area.h"

// say: each thread of block 0 prints "N: thread T of 1.5\n". fail: thread 0 asserts.
static const char ptx[] =
    ".version 7.0\n.target sm_70\n.address_size 64\n"
    ".extern .func (.param .b32 done) vprintf (.param .b64 format, .param .b64 arguments);\n"
    ".extern .func __assertfail (.param .b64 message, .param .b64 file, .param .b32 line, .param .b64 function,\n"
    "  .param .b64 size);\n"
    ".global .align 1 .b8 text[22] = {37,100,58,32,116,104,114,101,97,100,32,37,100,32,111,102,32,37,102,10,0,0};\n"
    ".global .align 1 .b8 what[6] = {110,32,33,61,32,0};\n"
    ".global .align 1 .b8 file[5] = {97,46,99,117,0};\n"
    ".global .align 1 .b8 func[5] = {102,97,105,108,0};\n"
    ".visible .entry say(.param .u32 n)\n"
    "{ .local .align 8 .b8 depot[16]; .reg .b64 %rd<6>; .reg .b32 %r<6>; .reg .f64 %f<2>;\n"
    "  ld.param.u32 %r1, [n]; mov.u32 %r2, %tid.x; mov.u64 %rd1, depot; cvta.local.u64 %rd2, %rd1;\n"
    "  st.local.u32 [%rd1], %r1; st.local.u32 [%rd1+4], %r2;\n"
    "  mov.f64 %f1, 0d3FF8000000000000; st.local.f64 [%rd1+8], %f1;\n"
    "  mov.u64 %rd3, text; cvta.global.u64 %rd4, %rd3;\n"
    "  { .param .b64 a; .param .b64 b; .param .b32 c; st.param.b64 [a], %rd4; st.param.b64 [b], %rd2;\n"
    "    call.uni (c), vprintf, (a, b); ld.param.b32 %r3, [c]; }\n"
    "  ret; }\n"
    ".visible .entry fail(.param .u32 n)\n"
    "{ .reg .b64 %rd<8>; .reg .b32 %r<3>;\n"
    "  mov.u64 %rd1, what; cvta.global.u64 %rd2, %rd1; mov.u64 %rd3, file; cvta.global.u64 %rd4, %rd3;\n"
    "  mov.u64 %rd5, func; cvta.global.u64 %rd6, %rd5; mov.u32 %r1, 42; mov.u64 %rd7, 1;\n"
    "  { .param .b64 a; .param .b64 b; .param .b32 c; .param .b64 d; .param .b64 e;\n"
    "    st.param.b64 [a], %rd2; st.param.b64 [b], %rd4; st.param.b32 [c], %r1; st.param.b64 [d], %rd6;\n"
    "    st.param.b64 [e], %rd7; call.uni __assertfail, (a, b, c, d, e); }\n"
    "  ret; }\n";

static int saved = -1, replaced;
static FILE* caught;

/// From here on the program's stdout (1) or stderr (2) is a file.
static void catch_begin(int fd) {
  fflush(stdout);
  fflush(stderr);
  replaced = fd;
  saved = dup(fd);
  caught = tmpfile();
  dup2(fileno(caught), fd);
}

/// What has come so far, then an empty file again.
static const char* catch_news(void) {
  static char text[1 << 20];
  fflush(stdout);
  const ssize_t bytes = pread(fileno(caught), text, sizeof text - 1, 0);
  text[bytes > 0 ? bytes : 0] = 0;
  (void)!ftruncate(fileno(caught), 0);
  lseek(fileno(caught), 0, SEEK_SET);
  return text;
}

static void catch_end(void) {
  fflush(stdout);
  dup2(saved, replaced);
  close(saved);
  fclose(caught);
}

static int is_line(const char* text, int n) {
  char expected[64];
  snprintf(expected, sizeof expected, "%d: thread 0 of 1.500000\n", n);
  return strcmp(text, expected) == 0;
}

static void launch(CUfunction function, int n, unsigned threads, CUstream stream) {
  void* parameters[] = {&n};
  if (cuLaunchKernel(function, 1, 1, 1, threads, 1, 1, 0, stream, parameters, NULL)) failures++;
}

static void test_waits(void) {
  CUmodule module = NULL;
  CUfunction say = NULL;
  CUstream stream = NULL;
  CUevent event = NULL;
  CUdeviceptr memory = 0;
  int word = 0, right[8] = {0};
  OK(cuModuleLoadData(&module, ptx));
  OK(cuModuleGetFunction(&say, module, "say"));
  OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
  OK(cuEventCreate(&event, 0));
  OK(cuMemAlloc_v2(&memory, 64));
  catch_begin(1);
  launch(say, 1, 1, NULL);
  if (cuCtxSynchronize()) failures++;
  right[0] = is_line(catch_news(), 1);
  launch(say, 2, 1, stream);
  if (cuStreamSynchronize(stream)) failures++;
  right[1] = is_line(catch_news(), 2);
  launch(say, 3, 1, stream);
  if (cuEventRecord(event, stream) || cuEventSynchronize(event)) failures++;
  right[2] = is_line(catch_news(), 3);
  launch(say, 4, 1, NULL);
  if (cuMemcpyDtoH_v2(&word, memory, sizeof word)) failures++;
  right[3] = is_line(catch_news(), 4);
  // A wait with nothing printed prints nothing; what the program printed itself is before what kernels did.
  if (cuCtxSynchronize()) failures++;
  right[4] = catch_news()[0] == 0;
  setvbuf(stdout, NULL, _IOFBF, 4096);
  printf("before\n");
  launch(say, 5, 1, NULL);
  if (cuCtxSynchronize()) failures++;
  printf("after\n");
  right[5] = strcmp(catch_news(), "before\n5: thread 0 of 1.500000\nafter\n") == 0;
  setvbuf(stdout, NULL, _IOLBF, 0);
  // More than one answer holds.
  for (int i = 0; i < 8; i++) launch(say, 6, 256, NULL);
  if (cuCtxSynchronize()) failures++;
  const char* text = catch_news();
  int lines = 0, wrong = 0;
  for (const char* at = text; *at != 0; at = strchr(at, '\n') + 1, lines++) {
    int n = 0, thread = -1;
    wrong += sscanf(at, "%d: thread %d of 1.500000", &n, &thread) != 2 || n != 6 || thread < 0 || thread > 255;
  }
  catch_end();
  for (int i = 0; i < 6; i++) IS(1, right[i]);
  IS(8 * 256, lines);
  IS(0, wrong);
  OK(cuEventDestroy_v2(event));
  OK(cuStreamDestroy_v2(stream));
  OK(cuMemFree_v2(memory));
  OK(cuModuleUnload(module));
}

static void read_news(CUstream stream, CUresult status, void* right) {
  (void)stream;
  *(int*)right = status == CUDA_SUCCESS && is_line(catch_news(), 7);
}

static void test_callback(void) {
  CUmodule module = NULL;
  CUfunction say = NULL;
  CUstream stream = NULL;
  int right = 0;
  OK(cuModuleLoadData(&module, ptx));
  OK(cuModuleGetFunction(&say, module, "say"));
  OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
  catch_begin(1);
  launch(say, 7, 1, stream);
  const CUresult added = cuStreamAddCallback(stream, read_news, &right, 0);
  const CUresult waited = cuStreamSynchronize(stream);
  catch_end();
  IS(0, added);
  IS(0, waited);
  IS(1, right);
  OK(cuStreamDestroy_v2(stream));
  OK(cuModuleUnload(module));
}

static void test_end_of_a_context(void) {
  CUcontext own = NULL;
  CUlibrary library = NULL;
  CUkernel say = NULL;
  OK(cuCtxCreate_v2(&own, 0, device));
  OK(cuLibraryLoadData(&library, ptx, NULL, NULL, 0, NULL, NULL, 0));
  OK(cuLibraryGetKernel(&say, library, "say"));
  catch_begin(1);
  launch((CUfunction)say, 9, 1, NULL);
  const CUresult result = cuCtxDestroy_v2(own);
  const int right = is_line(catch_news(), 9);
  catch_end();
  IS(0, result);
  IS(1, right);
  OK(cuLibraryUnload(library));
}

static void test_assertion(void) {
  CUmodule module = NULL;
  CUfunction fail = NULL;
  OK(cuModuleLoadData(&module, ptx));
  OK(cuModuleGetFunction(&fail, module, "fail"));
  catch_begin(2);
  launch(fail, 1, 1, NULL);
  const CUresult result = cuCtxSynchronize();
  char text[512];
  snprintf(text, sizeof text, "%s", catch_news());
  catch_end();
  IS(CUDA_ERROR_ASSERT, result);
  printf("note %s", text);
  TRUE(strstr(text, "a.cu:42: fail: block: [0,0,0], thread: [0,0,0] Assertion `n != ` failed.") != NULL);
}

SECTIONS({"waits", test_waits, 0}, {"callback", test_callback, 0},
         {"end_of_a_context", test_end_of_a_context, OWN_CONTEXT}, {"assertion", test_assertion, LAST})
