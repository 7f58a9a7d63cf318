// Fuzz target of the frame decoder and of operation validation: frames go in as if a client with the right token had
// sent them, the engine (with the null driver) works on them. Whatever comes, no sanitizer may complain.
//
// With libFuzzer: clang -fsanitize=fuzzer,address -DORION_LIBFUZZER. Without, main() mutates by itself:
//   fuzz_frame [ROUNDS [SEED]]      runs ROUNDS inputs from SEED; a failing seed repeats
//
// An input is a row of (u8 lane, u16 bytes, bytes). The engine's sources are included to reach the decoder itself.
#include "../../orion_server/engine/engine.c"
#include "../../orion_server/engine/net_zmq.c"

#define FUZZ_ARENA_BYTES (64ull << 20)
#define INPUT_MAX_BYTES 65536u

#define ARENA_PLACE ORION_HOST_ARENA_CANDIDATE(1)  // the first lies in AddressSanitizer's shadow

static orion_engine* engine;

static void make_engine(void) {
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
  if (orion_engine_new(&config, &engine) || orion_engine_tcp_listen(engine, ORION_ENGINE_LANES_ZMQ, token, sizeof token, ends[0], ends[1]) ||
      orion_engine_bind(engine, &request, &conflicts)) {
    abort();
  }
}

// Answers go nowhere: nobody listens. They are dropped so that they do not end the session as unread.
static void drop_answers(struct orion_net* n) {
  while (n->first_frame) {
    out_frame* next = n->first_frame->next;
    free(n->first_frame);
    n->first_frame = next;
  }
  n->last_frame = &n->first_frame;
  n->queued_bytes = 0;
  free_copies(n->urgent.first);
  free_copies(n->copies.first);
  n->urgent = (copy_list){NULL, NULL};
  n->copies = (copy_list){NULL, NULL};
  n->urgent.last = &n->urgent.first;
  n->copies.last = &n->copies.first;
}

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static uint32_t uses;
  if (!engine) make_engine();
  struct orion_net* n = engine->net;
  for (size_t at = 0; at + 3 <= size;) {
    uint16_t bytes = 0;
    memcpy(&bytes, data + at + 1, sizeof bytes);
    const bool bulk = data[at] & 1;
    at += 3;
    if (bytes > size - at) bytes = (uint16_t)(size - at);
    if (!n->express && n->held_bytes <= HELD_MAX_BYTES) {
      zmq_msg_t message;
      if (zmq_msg_init_size(&message, bytes)) abort();
      memcpy(zmq_msg_data(&message), data + at, bytes);
      take_frame(engine, bulk ? &n->bulk : &n->ops, &message);
      zmq_msg_close(&message);
    }
    at += bytes;
    (void)work_once(engine);
    drop_answers(n);
    if (engine->end) break;
  }
  // An ended session is over; a fresh engine also forgets what earlier inputs made.
  if (engine->end || ++uses % 64 == 0) {
    orion_engine_free(engine);
    engine = NULL;
  }
  return 0;
}

#ifndef ORION_LIBFUZZER
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

static size_t add_frame(uint8_t* to) {
  orion_frame head = {.sequence = draw() % 8, .a = interesting(), .b = interesting()};
  uint8_t* body = to + 3 + sizeof head;
  uint8_t lane = 0;
  size_t bytes = 0;
  switch (draw() % 8) {
    case 0:
      head.type = ORION_FRAME_BULK;
      lane = 1;
      bytes = draw() % 128;
      for (size_t i = 0; i < bytes; i++) body[i] = (uint8_t)draw();
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
  memcpy(to + 3, &head, sizeof head);
  const uint16_t length = (uint16_t)(sizeof head + bytes);
  to[0] = lane;
  memcpy(to + 1, &length, sizeof length);
  return 3 + length;
}

int main(int argc, char** argv) {
  const uint64_t rounds = argc > 1 ? strtoull(argv[1], NULL, 10) : 20000;
  const uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
  static uint8_t input[INPUT_MAX_BYTES];
  for (uint64_t round = 0; round < rounds; round++) {
    state = (seed + round) * 0x9e3779b97f4a7c15ull + 1;
    // Every input opens a context first, so that most operations have something to work on.
    static const orion_op_ctx_primary primary = {
        .op = {.code = ORION_OP_CTX_PRIMARY, .bytes = sizeof primary, .context = 1, .reply_slot = ORION_NO_REPLY}};
    const orion_frame head = {.type = ORION_FRAME_OPS_MAIN, .bytes = sizeof primary};
    const uint16_t length = sizeof head + sizeof primary;
    input[0] = 0;
    memcpy(input + 1, &length, sizeof length);
    memcpy(input + 3, &head, sizeof head);
    memcpy(input + 3 + sizeof head, &primary, sizeof primary);
    size_t size = 3u + length;
    const uint64_t frames = 1 + draw() % 60;
    for (uint64_t i = 0; i < frames && size + 4096 < sizeof input; i++) size += add_frame(input + size);
    if (draw() % 2) {
      for (uint64_t flips = 1 + draw() % 4; flips; flips--) input[draw() % size] ^= (uint8_t)(1u << draw() % 8);
    }
    LLVMFuzzerTestOneInput(input, size);
  }
  if (engine) orion_engine_free(engine);
  printf("fuzz_frame: %llu inputs from seed %llu: ok\n", (unsigned long long)rounds, (unsigned long long)seed);
  return 0;
}
#endif
