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

CUresult look_up(const char* symbol, void** out, int version, uint64_t flags, int* status) {
  if (!symbol || !out || flags > kPerThreadDefaultStream || version > kDriverVersion) return CUDA_ERROR_INVALID_VALUE;
  *out = nullptr;
  if (status) *status = kFound;
  if (std::strcmp(symbol, "cuGetProcAddress") == 0) {
    constexpr int kFirst = 11030, kWithStatus = 12000;
    if (version >= kWithStatus) {
      *out = reinterpret_cast<void*>(&cuGetProcAddress_v2);
    } else if (version >= kFirst) {
      *out = reinterpret_cast<void*>(&cuGetProcAddress);
    } else if (status) {
      *status = kVersionNotSufficient;
    }
    return *out ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
  }
  const Proc* best = nullptr;
  bool known = false;
  for (const Proc& proc : kProcs) {
    if (std::strcmp(proc.name, symbol) != 0) continue;
    known = true;
    if (proc.version <= version && (!best || proc.version > best->version)) best = &proc;
  }
  if (status) *status = best ? kFound : known ? kVersionNotSufficient : kSymbolNotFound;
  if (!best) return CUDA_ERROR_NOT_FOUND;
  *out = reinterpret_cast<void*>(flags == kPerThreadDefaultStream ? best->per_thread : best->legacy);
  return CUDA_SUCCESS;
}

}  // namespace

CUresult cuGetProcAddress(const char* symbol, void** out, int version, uint64_t flags) {
  return look_up(symbol, out, version, flags, nullptr);
}

CUresult cuGetProcAddress_v2(const char* symbol, void** out, int version, uint64_t flags, int* status) {
  return look_up(symbol, out, version, flags, status);
}
