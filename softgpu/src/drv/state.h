// The driver's objects and how they hang together. A handle's table owns the object; whoever works with it holds a
// shared_ptr, so a destroyed object lives until its last operation is done.
#pragma once
#include <array>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "../mem/arena.h"
#include "array.h"
#include "cuda_types.h"
#include "handle.h"
#include "sg.h"
#include "shared_event.h"
#include "stream.h"

namespace sg {

constexpr int kDriverVersion = 13000;
constexpr int kMaxThreadsPerBlock = 1024;
constexpr int kPortableClusterBlocks = 8;
constexpr int kMaxThreadsPerMultiprocessor = 2048;
constexpr int kMaxBlocksPerMultiprocessor = 32;
constexpr int kRegistersPerMultiprocessor = 65536;
constexpr int kSharedPerBlockBytes = 48 << 10;
constexpr int kReservedSharedPerBlockBytes = 1 << 10;
constexpr int kLeastStreamPriority = 0;
constexpr int kGreatestStreamPriority = -5;

/// What kernels of one context see.
class ContextSpace : public AddressSpace {
 public:
  ContextSpace(int device, uint64_t context_id) : device_(device), context_id_(context_id) {}
  bool find(uint64_t address, Range* out) const override;
  uint64_t epoch() const override;
  const std::atomic<uint64_t>* epoch_counter() const override;
  bool texture(uint64_t handle, Texture* out) const override;
  void* allocate_module_memory(size_t bytes) override;
  void free_module_memory(void* address) override;
  void* allocate_managed_memory(size_t bytes) override;
  std::atomic<uint32_t> peer_mask{0};

 private:
  const int device_;
  const uint64_t context_id_;
};

/// One recording of an event: where it stands, and when it was reached.
struct EventRecord {
  Ticket ticket;
  std::atomic<bool> reached{false};
  std::atomic<int64_t> time_ns{0};
};

struct Event {
  uint64_t handle = 0;
  std::shared_ptr<Context> context;
  unsigned flags = 0;
  std::mutex mutex;
  std::shared_ptr<EventRecord> last;             // null: never recorded
  std::shared_ptr<struct EventCapture> capture;  // last recorded in a capture
  std::shared_ptr<SharedEvent> shared;           // of several processes: this, not `last`, tells its records

  std::shared_ptr<EventRecord> record() {
    std::lock_guard lock(mutex);
    return last;
  }
};

struct Module;

struct Function {
  uint64_t handle = 0;
  std::weak_ptr<Module> module;
  uint64_t module_handle = 0;
  const Kernel* kernel = nullptr;                // lives as long as the module's program
  DriverMemory code;                             // loaded at first use
  std::atomic<int> max_dynamic_shared_bytes{0};  // at first what static shared memory leaves of the default limit
  std::atomic<int> carveout{-1};
  // What cuFuncSetBlockShape and its like keep until the launch. One thread at a time, as the old API asks.
  std::mutex launch_state_mutex;
  std::array<unsigned, 3> block_shape{1, 1, 1};
  unsigned shared_bytes = 0;
  std::vector<uint8_t> param_buffer;
};

struct Module : std::enable_shared_from_this<Module> {
  uint64_t handle = 0;
  std::shared_ptr<Context> context;
  std::shared_ptr<ContextSpace> space;  // the program frees its globals here, after the context may be gone
  std::unique_ptr<Program> program;
  DriverMemory code;
  bool owned_by_library = false;
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<Function>, std::less<>> functions;
  /// Finds or decodes a kernel. 500 for an unknown name, the machine's code if the PTX cannot run.
  CUresult function(const char* name, std::shared_ptr<Function>* out);
};

struct LibraryKernel {
  uint64_t handle = 0;
  uint64_t library_handle = 0;
  std::string name;
  std::atomic<int> max_dynamic_shared_bytes{-1};  // -1: not set, the function's own value holds
};

struct Library {
  uint64_t handle = 0;
  std::vector<std::string> texts;
  /// Linked without a device, for names and attributes: a library belongs to no context.
  std::unique_ptr<AddressSpace> outline_space;
  std::unique_ptr<Program> outline;
  std::mutex mutex;
  std::map<std::pair<uint64_t, uint64_t>, std::shared_ptr<Module>> modules;  // by context id and generation
  std::map<std::string, std::shared_ptr<LibraryKernel>, std::less<>> kernels;
  /// The library's module in `context`, loaded at first use.
  CUresult module_in(const std::shared_ptr<Context>& context, std::shared_ptr<Module>* out, std::string* log);
};

struct LinkState {
  uint64_t handle = 0;
  std::shared_ptr<Context> context;
  std::vector<CUjit_option> options;
  void** option_values = nullptr;  // the program keeps them alive until cuLinkDestroy, as the API asks
  std::vector<std::string> texts;
  std::vector<uint8_t> image;
  bool failed = false;  // linked in vain: good for nothing more
};

struct MemoryPool {
  uint64_t handle = 0;
  int device = 0;
  bool is_default = false;
  bool destroyed = false;
  std::mutex mutex;
  uint32_t access_mask = 0;
  uint64_t max_size_bytes = 0;
  uint64_t release_threshold_bytes = 0;
  uint64_t used_bytes = 0;  // as the program asked for them
  uint64_t held_bytes = 0;  // what they are charged to the device
  uint64_t idle_bytes = 0;  // charged to the device and kept for later; addresses are taken anew each time
  uint64_t used_high_bytes = 0;
  uint64_t reserved_high_bytes = 0;
  std::array<int, 4> reuse{0, 1, 1, 1};  // by attribute number 1..3

  uint64_t reserved_bytes() const { return held_bytes + idle_bytes; }
  /// Under the mutex: gives idle memory back until no more than `keep_bytes` is held.
  void trim(DeviceArena& arena, uint64_t keep_bytes) {
    const uint64_t over_bytes = reserved_bytes() > keep_bytes ? reserved_bytes() - keep_bytes : 0;
    const uint64_t given_bytes = over_bytes < idle_bytes ? over_bytes : idle_bytes;
    arena.uncharge(given_bytes);
    idle_bytes -= given_bytes;
  }
};

struct MemoryHandle {
  uint64_t handle = 0;
  std::shared_ptr<PhysicalMemory> memory;
  // Under the mutex of vmm.cc. A handle nobody holds any more keeps its value as long as the memory is mapped.
  int references = 1;
  int mappings = 0;
};

struct Device {
  int ordinal = 0;
  CUuuid uuid{};
  int pci_bus = 0;
  std::unique_ptr<DeviceArena> arena;
  std::shared_ptr<Context> primary;
  std::mutex primary_mutex;
  int primary_references = 0;
  unsigned primary_flags = 0;
  std::shared_ptr<MemoryPool> default_pool;
  std::shared_ptr<MemoryPool> current_pool;
  std::mutex pool_mutex;
};

struct Context : std::enable_shared_from_this<Context> {
  Context(int device_ordinal, bool is_primary, unsigned context_flags);

  uint64_t handle = 0;
  const int device;
  const bool primary;
  const uint64_t id;
  std::atomic<unsigned> flags;
  std::atomic<bool> active{true};  // false: destroyed, or a primary context that nobody retains
  std::atomic<bool> closing{false};
  std::atomic<int> fault{0};
  std::atomic<int> capturing_blocking{0};  // blocking streams that capture: the NULL stream is out of use
  std::atomic<uint64_t> generation{1};     // grows at each reset
  std::atomic<bool> cancel{false};
  std::atomic<int> attach_count{1};
  std::atomic<int> cache_config{0};
  std::atomic<int> shared_config{1};
  std::array<std::atomic<size_t>, CU_LIMIT_MAX> limits;
  /// Takes what a driver takes for a context of this kind with these limits, and for kernels that want so many bytes of
  /// local memory a thread. False, and nothing has changed, if the device has no room.
  bool take_memory(size_t stack_bytes, size_t printf_bytes, size_t heap_bytes, size_t local_bytes);
  bool take_limit(int limit, size_t value);
  /// Grows the local memory where a kernel wants more than any before it.
  bool take_local(size_t local_bytes);
  void give_memory();
  const std::shared_ptr<ContextSpace> space;

  /// The stream behind a stream argument. 400 if it is none, or one of another context.
  CUresult stream(CUstream handle, bool per_thread_default, std::shared_ptr<Stream>* out);
  std::shared_ptr<Stream> legacy_stream();
  std::shared_ptr<Stream> add_stream(StreamRole role, int priority);
  void drop_stream(const std::shared_ptr<Stream>& stream);

  /// Queues `op` with the waits that the NULL stream's rules add.
  Ticket submit(const std::shared_ptr<Stream>& stream, StreamOp op, bool start_worker = true);
  /// Queues, waits, and returns the context's fault if there is one.
  CUresult run_now(const std::shared_ptr<Stream>& stream, StreamOp op);
  /// All that a synchronisation with `stream` waits for: for the NULL stream also every blocking stream.
  std::vector<Ticket> tickets(const std::shared_ptr<Stream>& stream);
  std::vector<Ticket> all_tickets();
  static void wait(const std::vector<Ticket>& tickets);
  void synchronize() { wait(all_tickets()); }

  void set_fault(CUresult code, const std::string& message);
  /// Ends all work and frees all that belongs to the context.
  void tear_down();

 private:
  std::mutex order_mutex_;  // submissions to the NULL stream and to blocking streams are ordered by it
  std::vector<std::shared_ptr<Stream>> streams_;
  std::shared_ptr<Stream> legacy_;
  DriverMemory memory_;
  std::atomic<size_t> local_bytes_{0};  // the largest of any kernel launched so far
};

/// The whole driver. Made at the first call, never destroyed: streams may still run while the process exits.
class Driver {
 public:
  static Driver& get();

  CUresult init();
  bool initialized() const { return initialized_.load(std::memory_order_acquire); }

  std::vector<std::unique_ptr<Device>> devices;
  MemoryMap map;
  ExecGate gate;
  unsigned op_delay_us = 0;
  bool verbose = false;
  int cc_major = 8;
  int cc_minor = 0;
  /// SOFTGPU_RECORD=1: images become outlines, launches are checked and queued but run nothing, and the device is of
  /// the size that the libraries' machine code was written for.
  bool record = false;
  int multiprocessors = 16;
  int shared_per_block_optin_bytes = 163 << 10;
  int shared_per_multiprocessor_bytes = 164 << 10;

  HandleTable<Context> contexts{HandleKind::context};
  HandleTable<Stream> streams{HandleKind::stream};
  HandleTable<Event> events{HandleKind::event};
  HandleTable<Module> modules{HandleKind::module};
  HandleTable<Function> functions{HandleKind::function};
  HandleTable<Library> libraries{HandleKind::library};
  HandleTable<LibraryKernel> kernels{HandleKind::kernel};
  HandleTable<LinkState> links{HandleKind::link};
  HandleTable<MemoryPool> pools{HandleKind::pool};
  HandleTable<MemoryHandle> memory_handles{HandleKind::physical_memory};
  HandleTable<Array> arrays{HandleKind::array};
  HandleTable<MipmappedArray> mipmapped_arrays{HandleKind::mipmapped_array};
  HandleTable<TextureObject> textures{HandleKind::texture};

  Device* device(CUdevice ordinal);
  /// Gives a region's memory back, after it was removed from the map and the gate was passed.
  void reclaim(const Region& region);
  /// Pools give back what they hold beyond their threshold: after each wait of the program.
  void trim_pools();
  /// Reclaims regions that were removed from the map, after the gate where their pages go away.
  void release_regions(const std::vector<Region>& regions);

 private:
  Driver();
  std::atomic<bool> initialized_{false};
  std::mutex init_mutex_;
};

/// Per-thread state.
struct ThreadState {
  std::vector<std::shared_ptr<Context>> stack;
  std::map<std::pair<uint64_t, uint64_t>, std::shared_ptr<Stream>> default_streams;  // by context id, generation
  bool in_callback = false;
  int capture_mode = 0;
  ~ThreadState();
};
ThreadState& thread_state();

/// The context current to this thread, usable or not.
std::shared_ptr<Context> current_context();

/// The function behind a CUfunction or a CUkernel passed as one; a kernel means its function in the current context.
CUresult resolve_function(Driver& driver, const std::shared_ptr<Context>& context, CUfunction handle,
                          std::shared_ptr<Function>* out);

/// Loads PTX texts into a context. `managed`: memory of their managed variables, where that is there already.
CUresult make_module(const std::shared_ptr<Context>& context, const std::vector<std::string>& texts,
                     std::shared_ptr<Module>* out, std::string* log, void* managed = nullptr);

/// CUDA_MODULE_LOADING=EAGER: libraries are loaded into every context at once, not at first use.
bool loads_eagerly();

struct ManagedOwner {
  int device = 0;
  uint64_t context_id = 0;  // 0: bound to no context
  unsigned flags = 0;
};
/// managed.cc: memory in reach of the host and of every device. nullptr: out of memory.
void* allocate_managed(Driver& driver, size_t bytes, const ManagedOwner& owner);

}  // namespace sg
