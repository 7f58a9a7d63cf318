// What issuing work costs in a CUDA driver, and what cheaper ways there are: launches by one thread and by several, on
// one stream and on several, graphs with and without updated parameters, markers, events. Prints one JSON object; exit
// 1 when the counters do not show every launch. benchmarks/launch_facts.py compiles and runs it.
//
//   launch_facts [samples, 0: as many as usual] [only rows whose names contain this]
#define _GNU_SOURCE
#include "launch_facts.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SAMPLES_MAX 101
#define NODES_MAX 300
#define KERNEL_NS 3000.0  // of the kernel that takes a while
#define CLOCK_RATE_ATTRIBUTE 13

facts_driver cu;
bool facts_small;
CUstream facts_streams[8];
CUdeviceptr facts_counter;
static uint64_t* words;
static CUdeviceptr words_device;
static CUevent event;
static uint32_t samples = 31;
static const char* only = "";
static uint64_t counted, digest;
static bool good = true, first_row = true;
static uint64_t spin_cycles = 100;
static uint64_t last_word;  // value that the newest marker writes

void facts_check(CUresult result, const char* what, int line) {
  if (!result) return;
  fprintf(stderr, "launch_facts: line %d: %s -> %d\n", line, what, (int)result);
  exit(2);
}

double facts_now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

// ------------------------------------------------------------------------------------------------ kernels
kernel facts_kernel(uint32_t params, bool spins) {
  char ptx[4096];
  int used = snprintf(ptx, sizeof ptx,
                      ".version 7.0\n.target sm_70\n.address_size 64\n"
                      ".visible .entry bump(.param .u64 counter, .param .u32 amount");
  for (uint32_t i = 2; i < params; i++) {
    used += snprintf(ptx + used, sizeof ptx - (size_t)used, ", .param .u64 other%u", i);
  }
  used += snprintf(ptx + used, sizeof ptx - (size_t)used,
                   ")\n{ .reg .u64 %%rd<6>; .reg .u32 %%r<3>; .reg .pred %%p;\n"
                   "  ld.param.u64 %%rd1, [counter]; ld.param.u32 %%r1, [amount];\n");
  if (spins) {
    used += snprintf(ptx + used, sizeof ptx - (size_t)used,
                     "  ld.param.u64 %%rd2, [other2]; mov.u64 %%rd3, %%clock64;\n"
                     "again:\n"
                     "  mov.u64 %%rd4, %%clock64; sub.u64 %%rd5, %%rd4, %%rd3; setp.lt.u64 %%p, %%rd5, %%rd2;\n"
                     "  @%%p bra again;\n");
  }
  snprintf(ptx + used, sizeof ptx - (size_t)used, "  atom.global.add.u32 %%r2, [%%rd1], %%r1;\n  ret; }\n");
  kernel k = {.params = params, .packed_bytes = params > 2 ? 8 * params : 12};
  CUmodule module;
  CHECK(cu.module_load(&module, ptx));
  CHECK(cu.module_function(&k.function, module, "bump"));
  return k;
}

void facts_arguments(arguments* to, const kernel* k, CUdeviceptr counter, uint32_t amount) {
  *to = (arguments){.counter = counter, .amount = amount, .packed_bytes = k->packed_bytes};
  to->others[2] = spin_cycles;
  to->pointers[0] = &to->counter;
  to->pointers[1] = &to->amount;
  memcpy(to->packed, &to->counter, 8);
  memcpy(to->packed + 8, &to->amount, 4);
  for (uint32_t i = 2; i < k->params; i++) {
    to->pointers[i] = &to->others[i];
    memcpy(to->packed + (size_t)8 * i, &to->others[i], 8);
  }
  void* extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, to->packed, CU_LAUNCH_PARAM_BUFFER_SIZE, &to->packed_bytes,
                   CU_LAUNCH_PARAM_END};
  memcpy(to->extra, extra, sizeof extra);
}

// ------------------------------------------------------------------------------------------------ rows
static int compare(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

static void print_spread(const char* name, double* values, uint32_t count) {
  qsort(values, count, sizeof *values, compare);
  printf(", \"%s\": {\"median\": %.1f, \"p10\": %.1f, \"p90\": %.1f, \"min\": %.1f}", name, values[count / 2],
         values[count / 10], values[count - 1 - count / 10], values[0]);
}

void facts_counted(uint64_t amount) { counted += amount; }

CUcontext facts_context(void) {
  CUcontext context;
  CHECK(cu.context_create(&context, 0, 0));
  return context;
}

void facts_row(const char* name, plan p, sample_function take) {
  double issue[SAMPLES_MAX], total[SAMPLES_MAX], more[SAMPLES_MAX];
  if (!strstr(name, only)) return;
  p.expected = counted = 0;
  CHECK(cu.memory_set(facts_counter, 0, 4));
  CHECK(cu.context_synchronize());
  if (p.threads) threads_open(&p);
  for (uint32_t i = 0; i < samples + 2; i++) {
    const sample s = take(&p);
    if (i < 2) continue;  // the first ones fill caches and the driver's pools
    issue[i - 2] = s.issue / p.count;
    total[i - 2] = s.total / p.count;
    more[i - 2] = s.more;
  }
  if (p.threads) threads_close(&p);
  uint32_t seen = 0;
  CHECK(cu.context_synchronize());
  CHECK(cu.memory_read(&seen, facts_counter, 4));
  counted += seen;
  const bool whole = counted == p.expected;
  good = good && whole;
  digest += counted;
  printf("%s\n  {\"name\": \"%s\", \"units\": %u", first_row ? "" : ",", name, p.count);
  first_row = false;
  print_spread("issue_ns", issue, samples);
  print_spread("total_ns", total, samples);
  if (p.more) print_spread(p.more, more, samples);
  printf(", \"counted\": %llu, \"whole\": %s}", (unsigned long long)counted, whole ? "true" : "false");
  fflush(stdout);
}

// ------------------------------------------------------------------------------------------------ one thread
static void put_behind(const plan* p, CUstream stream) {
  if (p->behind == WORD) {
    CHECK(cu.write_value64(stream, words_device, ++last_word, 0));
  } else if (p->behind == WORDS) {
    CUstreamBatchMemOpParams all[8] = {0};
    last_word++;
    for (uint32_t i = 0; i < p->batch; i++) {
      all[i].writeValue.operation = CU_STREAM_MEM_OP_WRITE_VALUE_64;
      all[i].writeValue.address = words_device + 8 * i;
      all[i].writeValue.value64 = last_word;
    }
    CHECK(cu.batch_values(stream, p->batch, all, 0));
  } else {
    CHECK(cu.event_record(event, stream));
  }
}

static sample launches(plan* p) {
  arguments a;
  facts_arguments(&a, p->kernel, facts_counter, 1);
  CUlaunchConfig config = {.gridDimX = 1, .gridDimY = 1, .gridDimZ = 1, .blockDimX = 1, .blockDimY = 1, .blockDimZ = 1};
  const CUfunction f = p->kernel->function;
  const double start = facts_now_ns();
  for (uint32_t i = 0; i < p->count; i++) {
    const CUstream stream = facts_streams[p->streams > 1 ? i % p->streams : 0];
    if (p->how == BY_POINTERS) {
      CHECK(cu.launch(f, 1, 1, 1, 1, 1, 1, 0, stream, a.pointers, NULL));
    } else if (p->how == BY_BUFFER) {
      CHECK(cu.launch(f, 1, 1, 1, 1, 1, 1, 0, stream, NULL, a.extra));
    } else {
      config.hStream = stream;
      CHECK(cu.launch_ex(&config, f, a.pointers, NULL));
    }
    if (p->behind && (i + 1) % p->every == 0) put_behind(p, stream);
  }
  sample s = {.issue = facts_now_ns() - start};
  CHECK(cu.context_synchronize());
  s.total = facts_now_ns() - start;
  p->expected += p->count;
  if (__atomic_load_n(words, __ATOMIC_ACQUIRE) != last_word) good = false;
  return s;
}

// A call alone: what a marker or an event costs when no launch stands before it.
static sample alone(plan* p) {
  const double start = facts_now_ns();
  for (uint32_t i = 0; i < p->count; i++) put_behind(p, facts_streams[0]);
  sample s = {.issue = facts_now_ns() - start};
  CHECK(cu.context_synchronize());
  s.total = facts_now_ns() - start;
  return s;
}

// ------------------------------------------------------------------------------------------------ graphs
static CUgraph chain;
static CUgraphNode chain_nodes[NODES_MAX];
static CUgraphExec chain_exec;
static uint32_t amounts[NODES_MAX];

static CUDA_KERNEL_NODE_PARAMS node_params(const kernel* k, arguments* a) {
  return (CUDA_KERNEL_NODE_PARAMS){.func = k->function,
                                   .gridDimX = 1,
                                   .gridDimY = 1,
                                   .gridDimZ = 1,
                                   .blockDimX = 1,
                                   .blockDimY = 1,
                                   .blockDimZ = 1,
                                   .kernelParams = a->pointers};
}

static CUgraph build(const plan* p, CUgraphNode* nodes, uint32_t amount) {
  CUgraph graph;
  arguments a;
  CHECK(cu.graph_create(&graph, 0));
  facts_arguments(&a, p->kernel, facts_counter, amount);
  const CUDA_KERNEL_NODE_PARAMS params = node_params(p->kernel, &a);
  for (uint32_t i = 0; i < p->nodes; i++) {
    CHECK(cu.graph_add_kernel(&nodes[i], graph, i ? &nodes[i - 1] : NULL, i ? 1 : 0, &params));
  }
  return graph;
}

static void chain_open(const plan* p) {
  chain = build(p, chain_nodes, 1);
  CHECK(cu.graph_instantiate(&chain_exec, chain, 0));
  for (uint32_t i = 0; i < p->nodes; i++) amounts[i] = 1;
}

static void chain_close(void) {
  CHECK(cu.context_synchronize());
  CHECK(cu.graph_exec_destroy(chain_exec));
  CHECK(cu.graph_destroy(chain));
}

// Launches of one executable graph; before each, a part of its nodes gets other parameters.
static sample replays(plan* p) {
  static uint32_t round;
  const uint32_t rounds = p->count / p->nodes;
  double updating = 0;
  uint32_t updated = 0;
  const double start = facts_now_ns();
  for (uint32_t r = 0; r < rounds; r++) {
    round++;
    const double before = facts_now_ns();
    for (uint32_t i = 0; i < p->nodes; i++) {
      if (i * p->updated_percent / 100 == (i + 1) * p->updated_percent / 100) continue;
      arguments a;
      amounts[i] = 1 + (round + i) % 5;
      facts_arguments(&a, p->kernel, facts_counter, amounts[i]);
      const CUDA_KERNEL_NODE_PARAMS params = node_params(p->kernel, &a);
      CHECK(cu.graph_exec_kernel(chain_exec, chain_nodes[i], &params));
      updated++;
    }
    updating += facts_now_ns() - before;
    CHECK(cu.graph_launch(chain_exec, facts_streams[0]));
    for (uint32_t i = 0; i < p->nodes; i++) p->expected += amounts[i];
  }
  sample s = {.issue = facts_now_ns() - start, .more = updated ? updating / updated : 0};
  CHECK(cu.context_synchronize());
  s.total = facts_now_ns() - start;
  return s;
}

// A graph made anew: adding nodes is `issue`, making it executable is `more` (of one node).
static sample builds(plan* p) {
  static CUgraphNode nodes[NODES_MAX];
  const double start = facts_now_ns();
  const CUgraph graph = build(p, nodes, 1);
  sample s = {.issue = facts_now_ns() - start};
  CUgraphExec exec;
  const double before = facts_now_ns();
  CHECK(cu.graph_instantiate(&exec, graph, 0));
  s.more = (facts_now_ns() - before) / p->nodes;
  CHECK(cu.graph_launch(exec, facts_streams[0]));
  CHECK(cu.context_synchronize());
  s.total = facts_now_ns() - start;
  CHECK(cu.graph_exec_destroy(exec));
  CHECK(cu.graph_destroy(graph));
  p->expected += p->nodes;
  return s;
}

// A graph made anew that only lends its parameters to one that is executable already.
static sample exec_updates(plan* p) {
  static CUgraphNode nodes[NODES_MAX];
  static uint32_t round;
  const uint32_t amount = 1 + ++round % 5;
  const double start = facts_now_ns();
  const CUgraph graph = build(p, nodes, amount);
  sample s = {.issue = facts_now_ns() - start};
  CUgraphExecUpdateResultInfo info = {0};
  const double before = facts_now_ns();
  CHECK(cu.graph_exec_update(chain_exec, graph, &info));
  s.more = (facts_now_ns() - before) / p->nodes;
  CHECK(cu.graph_launch(chain_exec, facts_streams[0]));
  CHECK(cu.context_synchronize());
  s.total = facts_now_ns() - start;
  CHECK(cu.graph_destroy(graph));
  p->expected += (uint64_t)p->nodes * amount;
  return s;
}

// ------------------------------------------------------------------------------------------------ all of it
static void launch_rows(kernel* by_params[3], kernel* slow, uint32_t burst) {
  static const char* const names[][3] = {{"launch_2", "launch_8", "launch_16"},
                                         {"launch_buffer_2", "launch_buffer_8", "launch_buffer_16"},
                                         {"launch_ex_2", "launch_ex_8", "launch_ex_16"}};
  for (int how = BY_POINTERS; how <= BY_CONFIG; how++) {
    for (int i = 0; i < 3; i++) {
      facts_row(names[how][i], (plan){.kernel = by_params[i], .count = burst, .how = how}, launches);
    }
  }
  facts_row("launch_3us", (plan){.kernel = slow, .count = burst}, launches);
  facts_row("launch_8_unbroken", (plan){.kernel = by_params[1], .count = burst * 16}, launches);
  facts_row("launch_8_4_streams", (plan){.kernel = by_params[1], .count = burst, .streams = 4}, launches);
  facts_row("launch_8_4_streams_unbroken", (plan){.kernel = by_params[1], .count = burst * 16, .streams = 4}, launches);
  facts_row("launch_3us_4_streams", (plan){.kernel = slow, .count = burst, .streams = 4}, launches);
}

static void marker_rows(kernel* k, uint32_t burst) {
  const uint32_t every[] = {1, 8, 64};
  for (int i = 0; i < 3; i++) {
    char name[48];
    snprintf(name, sizeof name, "launch_8_word_every_%u", every[i]);
    facts_row(name, (plan){.kernel = k, .count = burst, .behind = WORD, .every = every[i]}, launches);
    snprintf(name, sizeof name, "launch_8_event_every_%u", every[i]);
    facts_row(name, (plan){.kernel = k, .count = burst, .behind = EVENT, .every = every[i]}, launches);
  }
  facts_row("launch_8_batch_of_1_every_8", (plan){.kernel = k, .count = burst, .behind = WORDS, .every = 8, .batch = 1},
            launches);
  facts_row("launch_8_batch_of_4_every_8", (plan){.kernel = k, .count = burst, .behind = WORDS, .every = 8, .batch = 4},
            launches);
  facts_row("word_alone", (plan){.kernel = k, .count = burst, .behind = WORD}, alone);
  facts_row("event_alone", (plan){.kernel = k, .count = burst, .behind = EVENT}, alone);
}

static void graph_rows(kernel* k) {
  const uint32_t nodes[] = {32, 99, 300}, percents[] = {0, 10, 50, 100};
  for (int n = 0; n < 3; n++) {
    char name[64];
    plan p = {.kernel = k, .nodes = nodes[n], .count = nodes[n], .more = "updated_node_ns"};
    chain_open(&p);
    for (int i = 0; i < 4; i++) {
      p.updated_percent = percents[i];
      p.count = nodes[n];
      snprintf(name, sizeof name, "graph_%u_updated_%u", nodes[n], percents[i]);
      facts_row(name, p, replays);
      p.count = nodes[n] * (facts_small ? 2 : 16);
      snprintf(name, sizeof name, "graph_%u_updated_%u_unbroken", nodes[n], percents[i]);
      facts_row(name, p, replays);
    }
    p.count = nodes[n];
    p.more = "exec_update_node_ns";
    snprintf(name, sizeof name, "graph_%u_exec_update", nodes[n]);
    facts_row(name, p, exec_updates);
    chain_close();
    p.more = "instantiate_node_ns";
    snprintf(name, sizeof name, "graph_%u_built", nodes[n]);
    facts_row(name, p, builds);
  }
}

static void thread_rows(kernel* k, kernel* slow, uint32_t burst) {
  static const char* const kinds[] = {"own_stream", "own_context", "one_stream", "handed_over"};
  for (int sharing = OWN_STREAM; sharing <= HANDED_OVER; sharing++) {
    for (uint32_t threads = 1; threads <= 8; threads *= 2) {
      if (sharing == ONE_STREAM && (threads == 1 || threads == 8)) continue;
      char name[48];
      plan p = {.kernel = k, .count = burst * threads, .threads = threads, .sharing = sharing, .more = "call_ns"};
      if (sharing == ONE_STREAM) p.count = burst;  // one queue for all of them
      if (sharing == HANDED_OVER) p.more = NULL;
      snprintf(name, sizeof name, "threads_%u_%s", threads, kinds[sharing]);
      facts_row(name, p, threads_sample);
      if (sharing == OWN_STREAM) {
        p.count = burst * threads * 16;
        snprintf(name, sizeof name, "threads_%u_own_stream_unbroken", threads);
        facts_row(name, p, threads_sample);
        p.count = burst * threads;
      }
      if (sharing == OWN_CONTEXT || sharing == ONE_STREAM) continue;
      p.kernel = slow;
      snprintf(name, sizeof name, "threads_%u_%s_3us", threads, kinds[sharing]);
      facts_row(name, p, threads_sample);
    }
  }
}

static void open_driver(void) {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  if (!library) {
    fprintf(stderr, "launch_facts: %s\n", dlerror());
    exit(2);
  }
#define LOAD(member, symbol, parameters)                         \
  *(void**)&cu.member = dlsym(library, symbol);                  \
  if (!cu.member) {                                              \
    fprintf(stderr, "launch_facts: no %s in libcuda\n", symbol); \
    exit(2);                                                     \
  }
  FACTS_FUNCTIONS(LOAD)
#undef LOAD
}

int main(int argc, char** argv) {
  open_driver();
  char device[256] = "";
  int version = 0, clock_khz = 0;
  CUcontext context;
  CHECK(cu.init(0));
  CHECK(cu.device_name(device, sizeof device, 0));
  CHECK(cu.driver_version(&version));
  CHECK(cu.primary_retain(&context, 0));
  CHECK(cu.context_set_current(context));
  facts_small = strncmp(device, "softgpu", 7) == 0;
  if (facts_small) {
    samples = 3;
  } else if (!cu.device_attribute(&clock_khz, CLOCK_RATE_ATTRIBUTE, 0)) {
    spin_cycles = (uint64_t)(clock_khz * 1e-6 * KERNEL_NS);
  }
  if (argc > 1 && atoi(argv[1])) samples = (uint32_t)atoi(argv[1]);
  if (argc > 2) only = argv[2];
  if (samples < 1 || samples > SAMPLES_MAX) samples = SAMPLES_MAX;
  CHECK(cu.memory_allocate(&facts_counter, 256));
  for (int i = 0; i < 8; i++) CHECK(cu.stream_create(&facts_streams[i], 1));
  CHECK(cu.event_create(&event, 2));  // no time is taken: what a framework's ordering events are
  words = aligned_alloc(4096, 4096);
  memset(words, 0, 4096);
  CHECK(cu.host_register(words, 4096, 3));
  CHECK(cu.host_device_pointer(&words_device, words, 0));
  kernel two = facts_kernel(2, false), eight = facts_kernel(8, false), sixteen = facts_kernel(16, false);
  kernel slow = facts_kernel(3, true);
  // A burst stays below the driver's queue (launch 1021 of a stream waits for the device).
  const uint32_t burst = facts_small ? 16 : 512;
  const double start = facts_now_ns();
  printf("{\"device\": \"%s\", \"driver\": %d, \"cpus\": %ld, \"samples\": %u, \"rows\": [", device, version,
         sysconf(_SC_NPROCESSORS_ONLN), samples);
  launch_rows((kernel*[]){&two, &eight, &sixteen}, &slow, burst);
  marker_rows(&eight, burst);
  graph_rows(&eight);
  thread_rows(&eight, &slow, burst);
  printf("\n], \"seconds\": %.1f, \"digest\": %llu, \"good\": %s}\n", (facts_now_ns() - start) * 1e-9,
         (unsigned long long)digest, good ? "true" : "false");
  return good ? 0 : 1;
}
