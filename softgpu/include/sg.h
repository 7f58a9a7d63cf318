// The seam inside softgpu: the PTX machine (src/ptx, src/vm) on one side, the driver API (src/drv, src/mem)
// on the other. Neither side includes the other's headers; both include this one.
//
// Invariants
//   * A device address is a host address of this process. All device memory lies in ranges that AddressSpace knows.
//   * Nothing that comes from a PTX text, an image or a kernel parameter may crash the process: the machine checks
//     every access against AddressSpace and reports a Fault instead.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "sg_texture.h"

namespace sg {

/// CUresult codes with which a running kernel can end. Values are CUDA's.
enum class Fault : int {
  none = 0,
  illegal_address = 700,
  launch_timeout = 702,  // the step limit (SOFTGPU_STEP_LIMIT) was reached
  assert_failed = 710,
  illegal_instruction = 715,
  misaligned_address = 716,
  invalid_pc = 718,
  launch_failed = 719,  // trap, barrier mismatch
};

/// Half-open range of addresses that kernels may touch.
struct Range {
  uint64_t begin = 0;
  uint64_t end = 0;
  bool contains(uint64_t address, size_t bytes) const {
    return address >= begin && address <= end && bytes <= end - address;
  }
};

/// The memory of one context's device as kernels see it. Implemented by src/mem; every method is thread-safe.
class AddressSpace {
 public:
  virtual ~AddressSpace() = default;
  /// The mapped range that holds `address` (device memory, module globals, managed and registered host memory).
  /// False if there is none. A caller may keep the range while `epoch()` does not change.
  virtual bool find(uint64_t address, Range* out) const = 0;
  /// Grows by one whenever a range is taken away. Kept ranges are then stale.
  virtual uint64_t epoch() const = 0;
  /// Where epoch() reads its answer, if it is one number: saves a call for each access. It lives as long as this does.
  virtual const std::atomic<uint64_t>* epoch_counter() const { return nullptr; }
  /// Memory for a module's globals and constants, zeroed, at least 256-byte aligned; nullptr when out of memory.
  virtual void* allocate_module_memory(size_t bytes) = 0;
  virtual void free_module_memory(void* address) = 0;
  /// The same for managed variables, which the host and every device reach. Without it they are the module's own.
  virtual void* allocate_managed_memory(size_t bytes) { return allocate_module_memory(bytes); }
  virtual void free_managed_memory(void* address) { free_module_memory(address); }
  /// What a texture or surface handle means. False for one that means nothing here.
  virtual bool texture(uint64_t handle, Texture* out) const {
    (void)handle, (void)out;
    return false;
  }
};

/// One kernel parameter: where it sits in the packed parameter buffer.
struct Param {
  uint32_t offset_bytes = 0;
  uint32_t size_bytes = 0;
  uint32_t align_bytes = 1;
};

/// What cuFuncGetAttribute and launch validation need of a kernel.
struct Kernel {
  std::string name;
  std::vector<Param> params;
  uint32_t param_bytes = 0;          // size of the packed parameter buffer
  uint32_t static_shared_bytes = 0;  // without dynamic (extern) shared memory
  uint32_t const_bytes = 0;
  uint32_t local_bytes = 0;                // per thread
  uint32_t registers = 32;                 // an invented but stable number: there are no registers to count
  uint32_t max_threads_per_block = 1024;   // .maxntid / .reqntid, else 1024
  uint32_t required_block[3] = {0, 0, 0};  // .reqntid, 0 = not given
  int ptx_version = 0;                     // 10 * major + minor, e.g. 90
  int target_sm = 0;                       // e.g. 80
};

/// A .global or .const variable with a name visible outside the module.
struct Global {
  std::string name;
  uint64_t address = 0;
  size_t size_bytes = 0;
  bool is_managed = false;
};

/// Grid, block and parameters of a launch. `params` has kernel.param_bytes bytes and stays valid during run().
struct Launch {
  uint32_t grid[3] = {1, 1, 1};
  uint32_t block[3] = {1, 1, 1};
  uint32_t dynamic_shared_bytes = 0;
  bool cooperative = false;                 // all blocks are co-resident: grid-wide barriers work
  uint64_t heap_bytes = uint64_t{8} << 20;  // what malloc of the program's kernels may have handed out at a time
  const void* params = nullptr;
};

/// What a finished launch says.
struct RunResult {
  Fault fault = Fault::none;
  std::string message;  // for a fault: kernel, line of PTX, address
  uint64_t steps = 0;   // warp instructions executed
};

/// One linked module: one or more PTX texts, decoded lazily per kernel, its globals laid out in memory.
class Program {
 public:
  virtual ~Program() = default;
  virtual const std::vector<Global>& globals() const = 0;
  virtual const std::vector<std::string>& kernel_names() const = 0;
  /// Where the managed variables lie; nullptr: there are none.
  virtual void* managed_memory() const = 0;
  /// Decodes the kernel at first use. nullptr with *error set ("line 12: unsupported instruction wgmma...") if it
  /// cannot; *code is then a CUresult (218 INVALID_PTX, 500 NOT_FOUND). Thread-safe.
  virtual const Kernel* kernel(std::string_view name, std::string* error, int* code) = 0;
  /// Runs a launch to its end on the calling thread and the machine's workers. Thread-safe; launches of several
  /// streams may run at once. `cancel` non-null and true: stop soon with launch_failed.
  /// Text printed by kernels goes to `print` (stdout of the process if null).
  virtual RunResult run(const Kernel& kernel, const Launch& launch, const std::atomic<bool>* cancel,
                        const std::function<void(std::string_view)>& print) = 0;
};

/// Which build of the machine's handlers runs: "avx2" or "baseline". SOFTGPU_ISA=baseline forces the latter.
const char* instruction_set();

/// Parses and links PTX texts. On failure returns nullptr, sets *code to a CUresult (218 INVALID_PTX, 209
/// NO_BINARY_FOR_GPU, 2 OUT_OF_MEMORY, 222 UNSUPPORTED_PTX_VERSION, 302 for a missing extern...) and *log to what a
/// user can act on. `managed`: memory of another program of the same texts, whose managed variables are this one's too.
std::unique_ptr<Program> link_ptx(const std::vector<std::string_view>& texts, AddressSpace& memory, std::string* log,
                                  int* code, void* managed = nullptr);

}  // namespace sg
