// The engine: replays one client's operations in a worker process. This header is all that Python (cffi) and the native
// tests see of it.
//
// Life: new -> (set_primary) -> [tcp_listen] -> bind (again after a conflict) -> run -> free.
// Threads: `run` belongs to one thread and makes every driver call of the session (but see `launchers`). `stop`,
// `client_lost`, `get_stats` and `reason` may be called from any other thread meanwhile. Nothing else may.
#ifndef ORION_ENGINE_H
#define ORION_ENGINE_H

#include <stdint.h>

typedef struct orion_engine orion_engine;

enum orion_engine_transport { ORION_ENGINE_SHM = 0, ORION_ENGINE_TCP = 1 };

typedef struct orion_engine_config {
  const char* libcuda_path;  // the library that the worker has already loaded; NULL only with null_engine
  int null_engine;           // 1: no driver at all; work is validated and dropped, markers are written at once
  int transport;             // enum orion_engine_transport
  int cpu_count;             // CPUs that this process may use; 0: ask the system
  int launchers;             // threads that launch for programs with several busy streams (launcher.h); 0: none
  int launchers_always;      // 1: they get every launch that they may, not only where that is faster. For tests
  int spin_us;               // how long to spin before sleeping; ignored (no spinning) with two CPUs or fewer
  int ucx_spin_us;           // over UCX instead of spin_us, on any number of CPUs; -1: as spin_us
  int image_fd;              // socket of packets to orion-server's image cache; 0 or less: none
  int seat_fd;               // memory of this worker's seat (orion_seat.h); 0 or less: nothing is limited
  int doorbell_fd, wake_fd;  // eventfds of the seat: to orion-server, and from it
  int stdout_fd, stderr_fd;  // files that are this process's stdout and stderr, for the client; 0 or less: none
  int log_fd;                // where the engine's own lines go; 0 or less: stderr
  int log_level;             // 0 errors only, 1 + warnings, 2 + session events, 3 + every refused operation
} orion_engine_config;

typedef struct orion_engine_device {
  uint32_t ordinal;  // the driver's
  uint64_t base;     // slot that the client reserved: a multiple of 2 MiB
  uint64_t bytes;
} orion_engine_device;

typedef struct orion_engine_bind_request {
  int segment_fd;  // shm: memfd of orion_engine_segment_bytes(); tcp: -1
  int arena_fd;    // shm: memfd of arena_bytes; tcp: -1
  uint64_t host_base;
  uint64_t arena_bytes;
  uint32_t device_count;
  const orion_engine_device* devices;
} orion_engine_bind_request;

// What the last prepare or bind took; next to nothing where it found all prepared.
typedef struct orion_engine_bind_times {
  uint64_t map_ns;       // segment and arena
  uint64_t reserve_ns;   // device slots
  uint64_t register_ns;  // words and staging, with the driver
} orion_engine_bind_times;

typedef struct orion_engine_stats {
  uint64_t operations;
  uint64_t launches;
  uint64_t work_operations;  // launches, copies and fills
  uint64_t replies;
  uint64_t late_errors;
  uint64_t parked;  // operations that had to wait for something
  uint64_t parked_now;
  uint64_t frees_pending;
  uint64_t maps_waiting;  // allocations that wait for pending frees
  uint64_t pinned_bytes;
  uint64_t bytes_in;           // over tcp: bulk received
  uint64_t bytes_out;          // over tcp: bulk sent
  uint64_t image_bytes;        // images: received from this client
  uint64_t lanes;              // over tcp: lanes on which the client has shown the token; 2 or more: connected
  uint64_t commit_gaps;        // times that a producer left its reserved slots uncommitted for over 100 ms
  uint64_t fatal_result;       // 0, or the CUresult after which this worker must be replaced
  uint64_t busy_ns;            // of the thread inside run: in passes that found something to do
  uint64_t looking_ns;         // in passes that found nothing, and between them
  uint64_t asleep_ns;          // waiting in the system
  uint64_t launches_timed;     // one launch in 64
  uint64_t launches_timed_ns;  // that those spent inside the driver
  uint64_t launches_handed;    // to launchers
  uint64_t mapped_bytes[64];   // per bound device
} orion_engine_stats;

// What ended orion_engine_run.
enum orion_engine_end {
  ORION_END_DETACHED = 1,     // the client left in good order
  ORION_END_CLIENT_LOST = 2,  // its socket or lane ended
  ORION_END_BROKEN = 3,       // it sent something that no correct client sends; see orion_engine_reason
  ORION_END_STOPPED = 4,      // orion_engine_stop
  ORION_END_FAILED = 5,       // the engine itself could not go on
};

// Keeps addresses free where programs have their memory (HOST_REGISTER_AT). For a worker's process, once, before it
// loads the driver.
void orion_engine_reserve_addresses(void);
// Narrows what the kernel lets this process do, on all its threads and for good (isolate.c). READY: with contexts made,
// before a client is known. LANES: once the lanes listen. `tells`: the kernel logs what it refuses. 0, or an errno:
// ENOSYS where the kernel has no seccomp.
enum orion_isolate_stage { ORION_ISOLATE_READY, ORION_ISOLATE_LANES };
int orion_isolate(int stage, int tells);
// 0, or a CUresult: 3 when libcuda cannot be used, 2 without memory. `*engine` is NULL unless 0.
int orion_engine_new(const orion_engine_config* config, orion_engine** engine);
// Hands over a primary context that the worker (pycuda) holds. Without it the engine retains the primary itself.
int orion_engine_set_primary(orion_engine* engine, uint32_t ordinal, uint64_t context);
// Does now what a bind with this request would do, before any client is known. A bind keeps of it what it asks for in
// the same way: descriptors (by number: they stay open), addresses, sizes. 0; -1 when an address range is taken, or a
// CUresult: then nothing is prepared.
int orion_engine_prepare(orion_engine* engine, const orion_engine_bind_request* request);
// Changes the transport of an engine that is not bound; closes the lanes that it has.
int orion_engine_set_transport(orion_engine* engine, int transport);
// tcp: opens the lanes on an IPv4 address and writes their endpoints (at least 64 bytes each; plain TCP has one, and an
// empty second). `token` is what the client must send first on each connection; with a cipher (plain TCP alone) it is
// never sent: everything is sealed with keys derived from it (orion_seal.h).
enum orion_engine_lanes { ORION_ENGINE_LANES_ZMQ, ORION_ENGINE_LANES_RAW };
enum orion_engine_cipher {
  ORION_ENGINE_CIPHER_NONE,
  ORION_ENGINE_CIPHER_AES256GCM,
  ORION_ENGINE_CIPHER_CHACHA20POLY1305
};
// Whether this machine's CPU can use it.
int orion_engine_cipher_usable(int cipher);
int orion_engine_tcp_listen(orion_engine* engine, int lanes, const char* address, int cipher, const uint8_t* token,
                            uint32_t token_bytes, char* ops_endpoint, char* bulk_endpoint);
// Also offers UCX's lanes (RDMA), until the client has come over them or over plain TCP, whose lanes are open already;
// the endpoint as above. `devices`: those that UCX may use, as it names them; empty: all. UCX goes on opening sockets
// until the client has come: `isolate` (below) says what happens then with the filter LANES. Not 0: there are none, and
// `why` (256 bytes) says why; plain TCP stays as it is.
enum orion_engine_isolate { ENGINE_ISOLATE_NOT, ENGINE_ISOLATE_ON, ENGINE_ISOLATE_REQUIRED };
int orion_engine_ucx_listen(orion_engine* engine, const char* devices, int isolate, int tells, char* endpoint,
                            char* why);
// Loads UCX: 1 and its version (32 bytes), or 0 and why not (256 bytes).
int orion_engine_ucx_usable(char* version, char* why);
// What carries the session over a network: "tcp" or "ucx". Only true once the client has come.
const char* orion_engine_lanes(const orion_engine* engine);
// 0: bound. -1: an address range is taken; *conflicts has bit 0 for the host arena, bit 1 + i for devices[i], and the
// call may be repeated with other addresses. Otherwise a CUresult.
int orion_engine_bind(orion_engine* engine, const orion_engine_bind_request* request, uint64_t* conflicts);
void orion_engine_get_bind_times(const orion_engine* engine, orion_engine_bind_times* times);
// Serves the client until the session ends; enum orion_engine_end. Blocks: cffi releases the GIL around it.
int orion_engine_run(orion_engine* engine);
void orion_engine_stop(orion_engine* engine);
void orion_engine_client_lost(orion_engine* engine);
void orion_engine_get_stats(orion_engine* engine, orion_engine_stats* stats);
// One sentence on why the session ended; at least 256 bytes. Empty while it runs.
void orion_engine_reason(orion_engine* engine, char* text, uint32_t capacity);
// Gives back all that the session made. Not while `run` is running.
void orion_engine_free(orion_engine* engine);

uint64_t orion_engine_segment_bytes(void);
uint64_t orion_engine_arena_bytes(void);
// What a client proposes first, for the host arena and for its i-th device.
uint64_t orion_engine_host_candidate(uint32_t i);
uint64_t orion_engine_slot_candidate(uint32_t i);

#endif
