// cuGetProcAddress: from a name, a version and a choice of default stream to the function of that ABI.
#include <cstdint>
#include <cstring>

#include "cuda_types.h"

// Only the addresses matter here, so every function is declared without its parameters.
#define SG_PROC(name, version, legacy, per_thread) \
  extern "C" CUresult legacy();                    \
  extern "C" CUresult per_thread();
#include "procaddr.def"
#undef SG_PROC

extern "C" {
__attribute__((visibility("default"))) CUresult cuGetProcAddress(const char* symbol, void** out, int version,
                                                                 uint64_t flags);
__attribute__((visibility("default"))) CUresult cuGetProcAddress_v2(const char* symbol, void** out, int version,
                                                                    uint64_t flags, int* status);
}

namespace {

constexpr int kDriverVersion = 13000;
constexpr uint64_t kPerThreadDefaultStream = 2;
enum QueryResult : int { kFound = 0, kSymbolNotFound = 1, kVersionNotSufficient = 2 };

struct Proc {
  const char* name;
  int version;  // of CUDA, with which this ABI came
  CUresult (*legacy)();
  CUresult (*per_thread)();
};

constexpr Proc kProcs[] = {
#define SG_PROC(name, version, legacy, per_thread) {#name, version, &legacy, &per_thread},
#include "procaddr.def"
#undef SG_PROC
};

/// The newest ABI that `version` may ask for. A name that is not found is no error here: *out is then nullptr.
CUresult look_up(const char* symbol, void** out, int version, uint64_t flags, int* status) {
  constexpr uint64_t kKnownFlags = 3;
  if (!symbol || !out || flags > kKnownFlags || version > kDriverVersion) return CUDA_ERROR_INVALID_VALUE;
  *out = nullptr;
  *status = kSymbolNotFound;
  if (std::strcmp(symbol, "cuGetProcAddress") == 0) {
    constexpr int kFirst = 11030, kWithStatus = 12000;
    *status = version >= kFirst ? kFound : kVersionNotSufficient;
    if (version >= kWithStatus) {
      *out = reinterpret_cast<void*>(&cuGetProcAddress_v2);
    } else if (version >= kFirst) {
      *out = reinterpret_cast<void*>(&cuGetProcAddress);
    }
    return CUDA_SUCCESS;
  }
  const Proc* best = nullptr;
  for (const Proc& proc : kProcs) {
    if (std::strcmp(proc.name, symbol) != 0) continue;
    if (*status == kSymbolNotFound) *status = kVersionNotSufficient;
    if (proc.version <= version && (!best || proc.version > best->version)) best = &proc;
  }
  if (!best) return CUDA_SUCCESS;
  *status = kFound;
  *out = reinterpret_cast<void*>(flags & kPerThreadDefaultStream ? best->per_thread : best->legacy);
  return CUDA_SUCCESS;
}

}  // namespace

// The two ABIs differ in what they say about a name that is not there.
CUresult cuGetProcAddress(const char* symbol, void** out, int version, uint64_t flags) {
  void* found = nullptr;
  int status = kFound;
  const CUresult result = out ? look_up(symbol, &found, version, flags, &status) : CUDA_ERROR_INVALID_VALUE;
  if (result != CUDA_SUCCESS) return result;
  if (!found) return CUDA_ERROR_NOT_FOUND;
  *out = found;
  return CUDA_SUCCESS;
}

CUresult cuGetProcAddress_v2(const char* symbol, void** out, int version, uint64_t flags, int* status) {
  int found = kFound;
  const CUresult result = look_up(symbol, out, version, flags, &found);
  if (result == CUDA_SUCCESS && status) *status = found;
  return result;
}
