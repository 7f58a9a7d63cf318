// How much of a GPU does this process get? Kernels of a fixed amount of work, and the time at which each was done.
//
//   slice_probe calibrate ITEM_MS GRAPH BLOCKS THREADS DEPTH       finds the iterations that make an item last ITEM_MS
//   slice_probe saturate ITERATIONS GRAPH BLOCKS THREADS SECONDS DEPTH
//                                                                  items back to back, DEPTH of them in flight
//   slice_probe request ITERATIONS GRAPH BLOCKS THREADS SECONDS RATE SEED
//                                                                  Poisson arrivals, RATE a second: item and wait
//
// An item is a kernel, or with GRAPH > 0 one launch of an executable graph of that many kernels. BLOCKS 0: one for each
// multiprocessor. The work is integer arithmetic in registers, a constant of the GPU: it needs no bandwidth, and less
// power than makes clocks fall. Except for `calibrate` the program prints `ready` and waits for a line on standard
// input, so that several can begin together. It prints one JSON object. Times are CLOCK_MONOTONIC; `done_us` and
// `latency_us` count from `began`. `digest` is what one kernel computes, or -1 when not each of them has computed it.
#define _GNU_SOURCE
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>

#include "cuda_calls.h"

#define DEPTH_MAX 64
#define GRAPH_MAX 1024
#define WARM_UP_ITEMS 5
#define WARM_UP_SECONDS 0.3
#define CALIBRATION_ROUNDS 4
#define CALIBRATION_SECONDS 0.6
#define CALIBRATION_LOOPS 3  // their median counts

// Two chains of dependent multiplications a thread; the first thread of each block adds their end to the sum.
static const char BURN_PTX[] =
    ".version 7.0\n.target sm_70\n.address_size 64\n"
    ".visible .entry burn(.param .u64 sum, .param .u32 iterations)\n"
    "{ .reg .u32 %r<8>; .reg .u64 %rd<2>; .reg .pred %p<2>;\n"
    "  ld.param.u64 %rd1, [sum]; ld.param.u32 %r1, [iterations];\n"
    "  mov.u32 %r2, %tid.x; mov.u32 %r3, %ctaid.x; mad.lo.u32 %r4, %r3, 2654435761, %r2; xor.b32 %r5, %r4, "
    "1540483477;\n"
    "  mov.u32 %r6, 0;\n"
    "again:\n"
    "  mad.lo.u32 %r4, %r4, 1664525, 1013904223; mad.lo.u32 %r5, %r5, 22695477, 1;\n"
    "  mad.lo.u32 %r4, %r4, 1103515245, 12345; mad.lo.u32 %r5, %r5, 134775813, 1;\n"
    "  add.u32 %r6, %r6, 1; setp.lt.u32 %p1, %r6, %r1; @%p1 bra again;\n"
    "  xor.b32 %r4, %r4, %r5; setp.ne.u32 %p1, %r2, 0; @%p1 ret;\n"
    "  atom.global.add.u32 %r7, [%rd1], %r4; ret; }\n";

static void *context, *module, *kernel, *stream, *executable, *events[DEPTH_MAX];
static unsigned long long sum;
static uint32_t iterations;
static unsigned graph_kernels, blocks, threads;
static unsigned long launched;  // kernels since the sum was cleared
static uint32_t right_value;    // what one kernel adds
static cuda_function launch, graph_launch, synchronize, record, wait_event;

static double now(void) { return seconds_of(CLOCK_MONOTONIC); }

static void launch_kernel(void) {
  void* params[] = {&sum, &iterations};
  check(launch(kernel, blocks, 1, 1, threads, 1, 1, 0, stream, params, NULL), "cuLaunchKernel");
}

static void item(void) {
  if (graph_kernels) {
    check(graph_launch(executable, stream), "cuGraphLaunch");
    launched += graph_kernels;
  } else {
    launch_kernel();
    launched++;
  }
}

static void make_graph(void) {
  void* graph;
  check(need("cuStreamBeginCapture_v2")(stream, 1), "cuStreamBeginCapture");  // this thread's calls only
  for (unsigned i = 0; i < graph_kernels; i++) launch_kernel();
  check(need("cuStreamEndCapture")(stream, &graph), "cuStreamEndCapture");
  if (executable) check(need("cuGraphExecDestroy")(executable), "cuGraphExecDestroy");
  check(need("cuGraphInstantiateWithFlags")(&executable, graph, 0ull), "cuGraphInstantiateWithFlags");
  check(need("cuGraphDestroy")(graph), "cuGraphDestroy");
}

static void prepare(void) {
  open_driver();
  check(need("cuInit")(0), "cuInit");
  check(need("cuDevicePrimaryCtxRetain")(&context, 0), "cuDevicePrimaryCtxRetain");
  check(need("cuCtxSetCurrent")(context), "cuCtxSetCurrent");
  check(need("cuModuleLoadData")(&module, BURN_PTX), "cuModuleLoadData");
  check(need("cuModuleGetFunction")(&kernel, module, "burn"), "cuModuleGetFunction");
  check(need("cuStreamCreate")(&stream, 1u), "cuStreamCreate");
  check(need("cuMemAlloc_v2")(&sum, (size_t)4), "cuMemAlloc");
  for (int i = 0; i < DEPTH_MAX; i++) check(need("cuEventCreate")(&events[i], 2u), "cuEventCreate");
  if (!blocks) check(need("cuDeviceGetAttribute")(&blocks, 16, 0), "cuDeviceGetAttribute");  // multiprocessors
  launch = need("cuLaunchKernel");
  graph_launch = need("cuGraphLaunch");
  synchronize = need("cuStreamSynchronize");
  record = need("cuEventRecord");
  wait_event = need("cuEventSynchronize");
}

static uint32_t read_sum(void) {
  uint32_t value;
  check(synchronize(stream), "cuStreamSynchronize");
  check(need("cuMemcpyDtoH_v2")(&value, sum, (size_t)4), "cuMemcpyDtoH");
  return value;
}

static void clear_sum(void) {
  check(synchronize(stream), "cuStreamSynchronize");  // nothing of before is left to add
  check(need("cuMemsetD32_v2")(sum, 0u, (size_t)1), "cuMemsetD32");
  check(need("cuCtxSynchronize")(), "cuCtxSynchronize");  // the stream does not wait for the default stream
  launched = 0;
}

/// What one kernel of these iterations adds to the sum; learned once, from a kernel alone.
static void learn_the_value(void) {
  clear_sum();
  launch_kernel();
  right_value = read_sum();
}

static long long digest(void) {
  return read_sum() == (uint32_t)(launched * (unsigned long)right_value) ? (long long)right_value : -1;
}

static double seconds_each(int count) {
  check(synchronize(stream), "cuStreamSynchronize");
  const double began = now();
  for (int i = 0; i < count; i++) item();
  check(synchronize(stream), "cuStreamSynchronize");
  return (now() - began) / count;
}

static int items_in(double seconds, double item_seconds) {
  const double count = seconds / item_seconds;
  return count < 3 ? 3 : count > 100000 ? 100000 : (int)count;
}

typedef struct {
  double* at;
  size_t count, room;
} series;

static void add(series* s, double value) {
  if (s->count == s->room) {
    s->room = s->room ? 2 * s->room : 4096;
    s->at = realloc(s->at, s->room * sizeof *s->at);
    if (!s->at) {
      fprintf(stderr, "out of memory\n");
      exit(1);
    }
  }
  s->at[s->count++] = value;
}

static void tell(const char* name, const series* s) {
  printf(", \"%s\": [", name);
  for (size_t i = 0; i < s->count; i++) printf(i ? ",%.0f" : "%.0f", s->at[i] * 1e6);
  printf("]");
}

/// Items back to back, `depth` of them in flight: when each was done, since `began`.
static void back_to_back(series* done, double began, double seconds, int depth) {
  for (unsigned long i = 0; now() - began < seconds; i++) {
    void* event = events[i % (unsigned)depth];
    if (i >= (unsigned)depth) {
      check(wait_event(event), "cuEventSynchronize");
      add(done, now() - began);
    }
    item();
    check(record(event, stream), "cuEventRecord");
  }
}

/// The median of some loops like those that are measured afterwards, the events in them included.
static double seconds_alone(int depth, double item_seconds) {
  double loops[CALIBRATION_LOOPS];
  for (int i = 0; i < CALIBRATION_LOOPS; i++) {
    const double longest = (depth + 10) * item_seconds;
    series done = {0};
    back_to_back(&done, now(), longest > CALIBRATION_SECONDS ? longest : CALIBRATION_SECONDS, depth);
    check(synchronize(stream), "cuStreamSynchronize");
    if (done.count < 2) {
      fprintf(stderr, "too slow to be calibrated\n");
      exit(1);
    }
    loops[i] = (done.at[done.count - 1] - done.at[0]) / (double)(done.count - 1);
    free(done.at);
  }
  qsort(loops, CALIBRATION_LOOPS, sizeof *loops, compare_doubles);
  return loops[CALIBRATION_LOOPS / 2];
}

static void calibrate(double item_ms, int depth) {
  const double wanted = item_ms * 1e-3;
  iterations = 100;
  if (graph_kernels) make_graph();
  double took = seconds_each(3);
  for (int i = 0; i < CALIBRATION_ROUNDS; i++) {
    const double next = iterations * wanted / took;
    iterations = next < 1 ? 1 : next > 4e9 ? 4000000000u : (uint32_t)next;
    if (graph_kernels) make_graph();
    seconds_each(items_in(WARM_UP_SECONDS, wanted));  // clocks rise
    took = seconds_each(items_in(WARM_UP_SECONDS, wanted));
  }
  learn_the_value();
  clear_sum();
  const double alone = seconds_alone(depth, took);
  printf("{\"iterations\": %u, \"alone_ms\": %.6f, \"digest\": %lld}\n", iterations, alone * 1e3, digest());
}

static void wait_for_go(void) {
  char line[16];
  learn_the_value();
  if (graph_kernels) make_graph();
  for (int i = 0; i < WARM_UP_ITEMS; i++) item();
  clear_sum();
  printf("ready\n");
  fflush(stdout);
  if (!fgets(line, sizeof line, stdin)) exit(1);
}

static void saturate(double seconds, int depth) {
  series done = {0};
  wait_for_go();
  const double began = now();
  back_to_back(&done, began, seconds, depth);
  printf("{\"began\": %.6f, \"digest\": %lld", began, digest());
  tell("done_us", &done);
  printf("}\n");
}

/// In (0, 1): splitmix64, so that a seed means the same arrivals everywhere.
static double uniform(uint64_t* state) {
  uint64_t z = *state += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return ((double)((z ^ (z >> 31)) >> 11) + 0.5) / 9007199254740992.0;
}

/// The interval to the next arrival: -ln(u) / rate, the logarithm by the series of atanh; no libm.
static double interval(uint64_t* state, double rate) {
  double u = uniform(state), twos = 0;
  while (u < 0.5) u *= 2, twos++;
  const double y = (u - 1) / (u + 1), square = y * y;
  double term = y, log = 0;
  for (int k = 1; k < 40; k += 2, term *= square) log += 2 * term / k;
  return (twos * 0.69314718055994531 - log) / rate;
}

static void sleep_until(double when) {
  struct timespec t = {.tv_sec = (time_t)when, .tv_nsec = (long)((when - (double)(time_t)when) * 1e9)};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL)) {
  }
}

/// One request after the other, first come first served: the latency counts from the arrival, so that a request that
/// waited for the one before it tells that time too.
static void request(double seconds, double rate, uint64_t seed) {
  series done = {0}, latency = {0};
  wait_for_go();
  prctl(PR_SET_TIMERSLACK, 1000ul);
  const double began = now();
  for (double arrival = interval(&seed, rate); arrival < seconds; arrival += interval(&seed, rate)) {
    sleep_until(began + arrival);
    item();
    check(synchronize(stream), "cuStreamSynchronize");
    const double at = now() - began;
    add(&done, at);
    add(&latency, at - arrival);
  }
  printf("{\"began\": %.6f, \"digest\": %lld", began, digest());
  tell("done_us", &done);
  tell("latency_us", &latency);
  printf("}\n");
}

static int usage(void) {
  fprintf(stderr,
          "usage: slice_probe calibrate ITEM_MS GRAPH BLOCKS THREADS DEPTH\n"
          "       slice_probe saturate ITERATIONS GRAPH BLOCKS THREADS SECONDS DEPTH\n"
          "       slice_probe request ITERATIONS GRAPH BLOCKS THREADS SECONDS RATE SEED\n");
  return 2;
}

int main(int argc, char** argv) {
  if (argc < 6) return usage();
  const char* mode = argv[1];
  const double seconds = argc > 6 ? atof(argv[6]) : 0;
  graph_kernels = (unsigned)strtoul(argv[3], NULL, 10);
  blocks = (unsigned)strtoul(argv[4], NULL, 10);
  threads = (unsigned)strtoul(argv[5], NULL, 10);
  if (graph_kernels > GRAPH_MAX || !threads || threads > 1024) return usage();
  if (!strcmp(mode, "calibrate")) {
    const int depth = argc == 7 ? atoi(argv[6]) : 0;
    if (!(atof(argv[2]) > 0) || depth < 1 || depth > DEPTH_MAX) return usage();
    prepare();
    calibrate(atof(argv[2]), depth);
    return 0;
  }
  iterations = (uint32_t)strtoul(argv[2], NULL, 10);
  if (!iterations || !(seconds > 0 && seconds <= 3600)) return usage();
  if (!strcmp(mode, "saturate") && argc == 8) {
    const int depth = atoi(argv[7]);
    if (depth < 1 || depth > DEPTH_MAX) return usage();
    prepare();
    saturate(seconds, depth);
  } else if (!strcmp(mode, "request") && argc == 9 && atof(argv[7]) > 0) {
    prepare();
    request(seconds, atof(argv[7]), strtoull(argv[8], NULL, 10));
  } else {
    return usage();
  }
  return 0;
}
