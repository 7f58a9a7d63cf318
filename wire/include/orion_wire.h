// What crosses the boundary between a client process and its worker, written once: the session segment, the operation
// header, replies, completion words, and the frames that carry the same bytes over a network.
//
// Both ends are x86-64/AArch64 little-endian. Nothing here is a pointer; every index and length that one end reads was
// possibly written by a hostile other end and is bounded before use.
//
// Read in this order: operation header -> ring (orion_ring.h) -> words -> replies -> segment -> frames.
#ifndef ORION_WIRE_H
#define ORION_WIRE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ORION_WIRE_MAJOR 1  // unequal majors do not talk
#define ORION_WIRE_MINOR 0  // a minor adds operations and appends to replies; ends one minor apart work together
#define ORION_SEGMENT_MAGIC 0x314e4f49524f4755ull

// ---------------------------------------------------------------------------------------------- operations
// An operation is a header, fixed fields (gen_ops.h) and an optional tail of bytes. `bytes` counts all three.
// Operations of one session are executed in ring order, except that ops of a parked stream and all that depend on
// them wait; see orion_server/engine.

#define ORION_NO_REPLY 0xffffffffu
#define ORION_OP_MAX_BYTES (48u * 1024u)  // 32,764 bytes of kernel parameters and the fields of the largest op fit

typedef struct orion_op {
  uint16_t code;        // enum orion_op_code
  uint16_t flags;       // per operation
  uint32_t bytes;       // header + fields + tail
  uint16_t context;     // client-minted context index, 0 = none
  uint16_t thread;      // client thread index: receiver of late errors, < ORION_THREADS
  uint32_t stream;      // client-minted stream index; 0 = the context's legacy NULL stream
  uint32_t reply_slot;  // ORION_NO_REPLY or < ORION_REPLY_SLOTS
  uint32_t reply_seq;   // value that the engine stores into the slot's `done`
  uint64_t bulk_seq;    // the op runs only when bulk transfers up to this number have arrived (0: none; shm: always 0)
} orion_op;

// ---------------------------------------------------------------------------------------------- limits
#define ORION_CONTEXTS 64u     // 1 .. 63
#define ORION_STREAMS 32768u   // 1 .. 32767, per session
#define ORION_EVENTS 1048576u  // per session
#define ORION_MODULES 65536u
#define ORION_FUNCTIONS 1048576u
#define ORION_MEMORIES 262144u        // 1 .. 262143: cuMemCreate
#define ORION_GRAPHS 65536u           // executable graphs, 1 .. 65535
#define ORION_GRAPH_NODES (1u << 20)  // of all executable graphs of a session
#define ORION_ARRAYS 65536u
#define ORION_MIPMAPS 65536u
#define ORION_TEXTURES 65536u  // and surfaces
#define ORION_THREADS 1024u    // client threads share indices modulo this
#define ORION_DEVICES 64u

// ---------------------------------------------------------------------------------------------- words
// Completion words only grow. The engine side (CPU or GPU) writes them, the client loads them with acquire.
// A ticket is (word, value): reached when words[word] >= value.
#define ORION_WORDS 65536u
#define ORION_WORD_SESSION_ERROR 1u    // 0, or the CUresult that ends the session
#define ORION_WORD_FREES_DONE 2u       // count of MEM_FREE operations whose memory may be used again (FIFO order)
#define ORION_WORD_ENGINE_BEAT 3u      // grows while the engine lives; for diagnosis only
#define ORION_WORD_DEVICE_OUTPUT 4u    // 0, ORION_OUTPUT_KEPT or ORION_OUTPUT_EXPECTED
#define ORION_WORD_TAKEN 5u            // plain TCP lanes: bytes of main operations that have gone into the ring
#define ORION_WORD_CONTEXT_ERROR 64u   // + context index: 0 or the sticky CUresult of that context
#define ORION_WORD_THREAD_ERROR 1024u  // + thread index: see ORION_LATE_ERROR
#define ORION_WORD_STREAMS 4096u       // + stream index (NULL stream of context c: ORION_WORD_NULL_STREAM + c)
#define ORION_WORD_NULL_STREAM 128u
#define ORION_WORD_DYNAMIC 40960u  // .. ORION_WORDS: events (spare), callbacks

// A late error: how many this thread had so far, the op that failed and the CUresult. The client remembers the last
// value that it has told, so nobody needs to reset the word.
#define ORION_LATE_ERROR(count, op_code, result) \
  (((uint64_t)(count) << 32) | ((uint64_t)(op_code) << 16) | (uint64_t)(uint16_t)(result))

// What kernels print is kept for the client (DEVICE_OUTPUT); kernels that may print have been loaded.
#define ORION_OUTPUT_KEPT 1u
#define ORION_OUTPUT_EXPECTED 2u

// Client words: written by the client, read by the engine only as "this host function is done" (never as ledger or
// order). callback c, generation g is done when client_words[c] >= g.
#define ORION_CLIENT_WORDS 4096u

// ---------------------------------------------------------------------------------------------- replies
#define ORION_REPLY_SLOTS 64u
#define ORION_REPLY_BYTES 16320u

typedef struct orion_reply {
  _Atomic uint64_t done;  // the op's reply_seq, stored last with release
  int32_t result;         // CUresult
  uint32_t bytes;         // of payload, <= ORION_REPLY_BYTES: bound it again on reading
  uint8_t payload[ORION_REPLY_BYTES];
  uint8_t pad[16384 - 16 - ORION_REPLY_BYTES];
} orion_reply;

// ---------------------------------------------------------------------------------------------- rings
#define ORION_SLOT_PAYLOAD 120u
#define ORION_MAIN_SLOTS 16384u    // 2 MiB
#define ORION_EXPRESS_SLOTS 2048u  // 256 KiB

typedef struct orion_slot {
  _Atomic uint64_t sequence;  // position + 1 when committed
  uint8_t payload[ORION_SLOT_PAYLOAD];
} orion_slot;

typedef struct orion_ring_control {
  _Alignas(64) _Atomic uint64_t tail;             // next position to reserve (producers)
  _Atomic uint64_t seen_head;                     // what producers last read of `head`; never beyond it
  _Alignas(64) _Atomic uint64_t head;             // next position to consume (consumer); all before are free
  _Alignas(64) _Atomic uint32_t consumer_parked;  // 1: the consumer sleeps on `wake`
  _Atomic uint32_t wake;                          // futex
  _Atomic uint32_t producers_parked;              // producers waiting for space
  _Atomic uint32_t space;                         // futex, grows when space is made for a parked producer
} orion_ring_control;

// ---------------------------------------------------------------------------------------------- waiters
// A client thread that parks posts what it waits for; the watcher polls only posted words and wakes the client.
#define ORION_WAITERS 64u
typedef struct orion_waiter {
  _Atomic uint32_t word;  // 0: free
  uint32_t pad;
  _Atomic uint64_t value;
} orion_waiter;

// ---------------------------------------------------------------------------------------------- segment
// One memfd, sealed against resizing, mapped by both ends over shm. Over a network each end has its own: the client's
// rings are drained by its I/O thread, the worker's are filled by its network side, words and replies travel back.
typedef struct orion_segment {
  uint64_t magic;
  uint32_t major, minor;
  uint64_t segment_bytes;
  _Alignas(64) _Atomic uint32_t client_wake;  // futex: grows when a reply or a posted word is there
  _Atomic uint32_t client_waiters;            // client threads parked on client_wake
  _Atomic uint32_t watcher_wake;              // futex: grows when a waiter is posted
  _Atomic uint32_t watcher_parked;
  _Alignas(64) orion_ring_control main_control;
  _Alignas(64) orion_ring_control express_control;
  _Alignas(64) orion_waiter waiters[ORION_WAITERS];
  _Alignas(4096) _Atomic uint64_t client_words[ORION_CLIENT_WORDS];
  _Alignas(4096) orion_reply replies[ORION_REPLY_SLOTS];
  _Alignas(4096) orion_slot express_slots[ORION_EXPRESS_SLOTS];
  _Alignas(4096) orion_slot main_slots[ORION_MAIN_SLOTS];
  _Alignas(65536) _Atomic uint64_t words[ORION_WORDS];  // registered with the driver: the GPU writes here
} orion_segment;

// ---------------------------------------------------------------------------------------------- addresses
// Agreed, never translated. The client reserves (PROT_NONE, MAP_FIXED_NOREPLACE) the host arena and a slot for each
// device, proposes them in BIND, and tries the next candidate when the worker answers "conflict".
#define ORION_HOST_ARENA_BYTES (64ull << 30)  // sparse memfd: pinned memory and staging live in it
#define ORION_STAGING_BYTES (64ull << 20)     // the first bytes of the arena: staging, registered at bind
#define ORION_HOST_ARENA_CANDIDATE(i) (0x100000000000ull + (uint64_t)(i) * 0x004000000000ull)   // 256 GiB apart
#define ORION_DEVICE_SLOT_CANDIDATE(i) (0x200000000000ull + (uint64_t)(i) * 0x010000000000ull)  // 1 TiB apart
#define ORION_CANDIDATES 32u
#define ORION_CHUNK_BYTES (2ull << 20)  // device memory is mapped in chunks of this granularity

// ---------------------------------------------------------------------------------------------- frames
// This header and `bytes` of body; over ZeroMQ each message is one. Lane 0 carries ops, replies, words and control;
// bulk has lanes of its own (orion_lanes.h; over ZeroMQ lane 1). Frames of one lane stay in order; between lanes only
// sequence numbers order.
enum orion_frame_type {
  ORION_FRAME_CONTROL = 1,       // both ways: a msgpack map (bind, bound, detach)
  ORION_FRAME_OPS_MAIN = 2,      // client: operations, each padded to 8 bytes, for the main ring
  ORION_FRAME_OPS_EXPRESS = 3,   // client: the same for the express ring
  ORION_FRAME_BULK = 4,          // both ways: `a` = host arena offset, `sequence`, `b`: orion_lanes.h; body = the bytes
  ORION_FRAME_REPLY = 5,         // worker: `a` = slot, `b` = result, `sequence` = done; body = payload
  ORION_FRAME_WORDS = 6,         // worker: body = orion_word_update[]; `sequence` = bulk that must be stored before
  ORION_FRAME_CLIENT_WORDS = 7,  // client: body = orion_word_update[]; `sequence` = bulk that must be stored before
  ORION_FRAME_RUNS = 8,          // both ways: pieces of the host arena (orion_runs.h), numbered like BULK
};

typedef struct orion_frame {
  uint16_t type;
  uint16_t flags;
  uint32_t bytes;  // of the body
  uint64_t sequence;
  uint64_t a;
  uint64_t b;
} orion_frame;

typedef struct orion_word_update {
  uint64_t index;
  uint64_t value;
} orion_word_update;

#define ORION_FRAME_MAX_BYTES (8u << 20)  // larger bodies are refused; bulk is cut into pieces of ORION_BULK_BYTES
#define ORION_BULK_BYTES (1u << 20)

_Static_assert(sizeof(orion_op) == 32, "operation header");
_Static_assert(sizeof(orion_slot) == 128, "slot");
_Static_assert(sizeof(orion_reply) == 16384, "reply");
_Static_assert(sizeof(orion_frame) == 32, "frame");

#endif
