// Fuzz target of the frame decoders and of operation validation: frames go in as if a client with the right token had
// sent them, the engine (with the null driver) works on them. Whatever comes, no sanitizer may complain.
//
// With ORION_FUZZ_SEEDS=FOLDER it writes there the inputs that libFuzzer (fuzz.sh) starts from.
//
// An input is a byte that chooses the lanes (odd: plain sockets), then a row of (u8 lane, u16 bytes, bytes). Over
// ZeroMQ's lanes the bytes are one frame; over plain sockets they are the next of a stream, of lane 0 or of a stripe.
#include <linux/sockios.h>
#include <sys/ioctl.h>

#include "../../orion_server/engine/engine.c"
#include "../../orion_server/engine/net_raw.h"

#define FUZZ_ARENA_BYTES (64ull << 20)
#define INPUT_MAX_BYTES 65536u
#define SEEDS 3000u

#define ARENA_PLACE ORION_HOST_ARENA_CANDIDATE(1)  // the first lies in AddressSanitizer's shadow

enum { LANES_ZMQ, LANES_RAW };
enum { LANE_0, STRIPE };

typedef struct target {
  orion_engine* engine;
  int ends[2];  // plain sockets: the client's
} target;

static void require(bool good) {
  if (!good) abort();
}

// Lane 0 and one stripe, as if they had been greeted.
static void join_lanes(target* t) {
  raw_lanes* r = net_raw_of(t->engine);
  int pair[2];
  require(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
  r->ops = pair[0];
  t->ends[LANE_0] = pair[1];
  require(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
  require(net_stripe_start(t->engine, 0, pair[0], NULL, NULL));
  t->ends[STRIPE] = pair[1];
  r->stripe_count = 1;
  r->lanes_in = 2;
  r->complete = true;
}

static void make_engine(target* t, bool raw) {
  const orion_engine_config config = {.null_engine = 1, .transport = ORION_ENGINE_TCP, .log_level = -1};
  const uint8_t token[32] = {1};
  char ends[2][64];
  const orion_engine_device device = {0, ORION_DEVICE_SLOT_CANDIDATE(0), 64ull << 20};
  const orion_engine_bind_request request = {.segment_fd = -1,
                                             .arena_fd = -1,
                                             .host_base = ARENA_PLACE,
                                             .arena_bytes = FUZZ_ARENA_BYTES,
                                             .device_count = 1,
                                             .devices = &device};
  uint64_t conflicts = 0;
  const int lanes = raw ? ORION_ENGINE_LANES_RAW : ORION_ENGINE_LANES_ZMQ;
  require(orion_engine_new(&config, &t->engine) == 0);
  require(orion_engine_tcp_listen(t->engine, lanes, "127.0.0.1", ORION_ENGINE_CIPHER_NONE, token, sizeof token, ends[0],
                                  ends[1]) == 0);
  require(orion_engine_bind(t->engine, &request, &conflicts) == 0);
  if (raw) join_lanes(t);
}

static void free_engine(target* t, bool raw) {
  if (raw) {
    close(t->ends[LANE_0]);
    close(t->ends[STRIPE]);
  }
  orion_engine_free(t->engine);
  t->engine = NULL;
}

static void read_away(int fd) {
  static uint8_t bin[1 << 16];
  while (recv(fd, bin, sizeof bin, MSG_DONTWAIT) > 0) continue;
}

// Answers go nowhere: they are dropped so that they do not end the session as unread.
static void drop_answers(target* t, bool raw) {
  struct orion_net* n = t->engine->net;
  if (raw) {
    read_away(t->ends[LANE_0]);
    read_away(t->ends[STRIPE]);
    net_raw_of(t->engine)->first_sent = 0;
  }
  while (n->first_frame) net_frame_sent(n);
  net_free_copies(n->urgent.first);
  net_free_copies(n->copies.first);
  n->urgent = (copy_list){NULL, &n->urgent.first};
  n->copies = (copy_list){NULL, &n->copies.first};
}

static void give_frame(target* t, bool bulk, const uint8_t* data, size_t bytes) {
  orion_frame head;
  if (!net_takes_operations(t->engine->net)) return;
  if (net_frame_ok(data, bytes, &head)) {
    net_take_frame(t->engine, &head, data + sizeof head, bulk);
  } else {
    net_malformed(t->engine, "fuzz");
  }
}

// The stripe's thread has a moment to take what came, so that most of it is worked on before what follows.
static void give_bytes(target* t, bool stripe, const uint8_t* data, size_t bytes) {
  const int fd = t->ends[stripe ? STRIPE : LANE_0];
  if (bytes) (void)!send(fd, data, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
  int left = 1;
  for (int i = 0; stripe && i < 20 && left; i++) {
    const struct timespec moment = {0, 1000};
    nanosleep(&moment, NULL);
    if (ioctl(fd, SIOCOUTQ, &left)) break;
  }
}

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (!size) return 0;
  const bool raw = data[0] & 1;
  target one = {0}, *t = &one;
  make_engine(t, raw);
  for (size_t at = 1; at + 3 <= size;) {
    uint16_t bytes = 0;
    memcpy(&bytes, data + at + 1, sizeof bytes);
    const bool second = data[at] & 1;
    at += 3;
    if (bytes > size - at) bytes = (uint16_t)(size - at);
    (raw ? give_bytes : give_frame)(t, second, data + at, bytes);
    at += bytes;
    (void)work_once(t->engine);
    drop_answers(t, raw);
    if (t->engine->end) break;
  }
  free_engine(t, raw);  // an input means the same whatever came before it
  return 0;
}

// ------------------------------------------------------------------------------------------------ seeds
static uint64_t state;

static uint64_t draw(void) {  // xorshift: the same everywhere, so that a seed is enough to repeat a failure
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

static uint64_t interesting(void) {
  static const uint64_t values[] = {0,
                                    1,
                                    2,
                                    3,
                                    4,
                                    8,
                                    64,
                                    4096,
                                    ORION_WORD_STREAMS + 1,
                                    ORION_WORD_DYNAMIC,
                                    1ull << 20,
                                    ORION_CHUNK_BYTES,
                                    FUZZ_ARENA_BYTES,
                                    FUZZ_ARENA_BYTES - 1,
                                    ARENA_PLACE,
                                    ORION_DEVICE_SLOT_CANDIDATE(0),
                                    ORION_DEVICE_SLOT_CANDIDATE(0) + ORION_CHUNK_BYTES,
                                    (64ull << 20) - ORION_CHUNK_BYTES,
                                    0x7fffffff,
                                    0xffffffff,
                                    1ull << 47,
                                    UINT64_MAX,
                                    UINT64_MAX - 4095};
  return draw() % 8 ? values[draw() % (sizeof values / sizeof values[0])] : draw();
}

static size_t add_operation(uint8_t* to, uint16_t* type) {
  uint16_t code = 0;
  do {
    code = (uint16_t)(draw() % ORION_OP_CODE_END);
  } while (!ORION_OP_INFO[code].fixed_bytes || (code == ORION_OP_DETACH && draw() % 64));
  const orion_op_info* info = &ORION_OP_INFO[code];
  const uint32_t tail = info->has_tail ? (uint32_t)(draw() % 5 * 8 + draw() % 2) : 0;
  orion_op op = {.code = code,
                 .bytes = info->fixed_bytes + tail,
                 .context = (uint16_t)(draw() % 3),
                 .stream = (uint32_t)(draw() % 4),
                 .reply_slot = draw() % 2 ? ORION_NO_REPLY : (uint32_t)(draw() % ORION_REPLY_SLOTS),
                 .reply_seq = 1,
                 .bulk_seq = draw() % 16 ? 0 : draw() % 4};
  *type = info->flags & ORION_OPF_EXPRESS ? ORION_FRAME_OPS_EXPRESS : ORION_FRAME_OPS_MAIN;
  memcpy(to, &op, sizeof op);
  for (size_t at = sizeof op; at < op.bytes; at += 4) {
    const uint64_t value = interesting();
    const bool wide = at % 8 == 0 && at + 8 <= op.bytes && draw() % 2;
    memcpy(to + at, &value, wide ? 8 : (op.bytes - at < 4 ? op.bytes - at : 4));
    if (wide) at += 4;
  }
  const size_t padded = (op.bytes + 7u) & ~7u;
  memset(to + op.bytes, 0, padded - op.bytes);
  return padded;
}

// One record; over plain sockets sometimes two, with what comes later in between.
static size_t add_record(uint8_t* to, uint8_t lane, const uint8_t* frame, size_t bytes) {
  const uint16_t length = (uint16_t)bytes;
  to[0] = lane;
  memcpy(to + 1, &length, sizeof length);
  memcpy(to + 3, frame, bytes);
  return 3 + bytes;
}

static uint64_t sequence;  // of numbered frames, in one input

static size_t add_runs(uint8_t* body) {
  size_t bytes = 0;
  for (uint64_t i = draw() % 4; i > 0; i--) {
    const orion_run run = {.offset = draw() % 32 ? draw() % 65536 : interesting(), .bytes = (uint32_t)(draw() % 64)};
    memcpy(body + bytes, &run, sizeof run);
    bytes += sizeof run + ((run.bytes + 7u) & ~7u);
  }
  return bytes;
}

static size_t add_frame(uint8_t* to, bool raw) {
  static uint8_t frame[8192];
  uint8_t* body = frame + sizeof(orion_frame);
  orion_frame head = {.sequence = draw() % 8, .a = interesting(), .b = interesting()};
  uint8_t lane = LANE_0;
  size_t bytes = 0;
  const uint64_t kind = draw() % 8;
  // Most often a number that may follow: an engine that has ended takes nothing more.
  if (kind < 2 && draw() % 32) head.sequence = sequence + (kind == 0) + (draw() % 8 == 0);
  switch (kind) {
    case 0:
      head.type = draw() % 4 || (raw && draw() % 2) ? ORION_FRAME_BULK : ORION_FRAME_RUNS;
      lane = raw ? (uint8_t)(draw() % 2) : 1;
      bytes = head.type == ORION_FRAME_RUNS ? add_runs(body) : 1 + draw() % 128;
      if (draw() % 32) head.a = draw() % 65536;
      if (raw && draw() % 32) head.b = sequence - (sequence ? draw() % 2 : 0);
      if (head.sequence > sequence && head.sequence < sequence + 4) sequence = head.sequence;
      break;
    case 1: {
      head.type = ORION_FRAME_CLIENT_WORDS;
      const orion_word_update update = {draw() % (ORION_CLIENT_WORDS + 1), interesting()};
      memcpy(body, &update, sizeof update);
      bytes = sizeof update;
      break;
    }
    default:
      bytes = add_operation(body, &head.type);
      break;
  }
  head.bytes = (uint32_t)bytes;
  memcpy(frame, &head, sizeof head);
  bytes += sizeof head;
  const size_t first = raw && draw() % 4 == 0 ? draw() % bytes : bytes;
  size_t used = add_record(to, lane, frame, first);
  if (first < bytes) used += add_record(to + used, lane, frame + first, bytes - first);
  return used;
}

static void write_seeds(const char* folder) {
  static uint8_t input[INPUT_MAX_BYTES];
  // Every input opens a context first, so that most operations have something to work on.
  static const struct {
    orion_frame head;
    orion_op_ctx_primary primary;
  } opening = {
      {.type = ORION_FRAME_OPS_MAIN, .bytes = sizeof opening.primary},
      {.op = {
           .code = ORION_OP_CTX_PRIMARY, .bytes = sizeof opening.primary, .context = 1, .reply_slot = ORION_NO_REPLY}}};
  _Static_assert(sizeof opening == sizeof opening.head + sizeof opening.primary, "no gap");
  for (uint64_t round = 0; round < SEEDS; round++) {
    state = (round + 1) * 0x9e3779b97f4a7c15ull;
    const bool raw = round % 2;
    input[0] = raw;
    sequence = 0;
    size_t size = 1;
    size += add_record(input + size, LANE_0, (const uint8_t*)&opening, sizeof opening);
    const uint64_t frames = 1 + draw() % 60;
    for (uint64_t i = 0; i < frames && size + 8192 < sizeof input; i++) size += add_frame(input + size, raw);
    char path[4096];
    snprintf(path, sizeof path, "%s/%05u", folder, (unsigned)round);
    FILE* file = fopen(path, "wb");
    require(file && fwrite(input, 1, size, file) == size && fclose(file) == 0);
  }
}

int LLVMFuzzerInitialize(int* argc, char*** argv) {
  (void)argc, (void)argv;
  const char* folder = getenv("ORION_FUZZ_SEEDS");
  if (folder) write_seeds(folder);
  return 0;
}
