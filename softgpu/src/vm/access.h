// Checked access of a warp to memory.
#pragma once
#include "handlers.h"

namespace sg::vm {

enum class Where : uint8_t { generic, global, shared };

/// True if every lane in mask may touch `bytes` (a power of two, also the alignment) at its address. Else raises.
bool check_slow(Warp& w, const uint64_t* address, uint32_t mask, uint32_t bytes, uint32_t align, Where where);

inline bool check(Warp& w, const uint64_t* address, uint32_t mask, uint32_t bytes, uint32_t align, Where where) {
  uint64_t low = ~uint64_t{0}, high = 0, bits = 0;
  auto add = [&](uint64_t a) {
    low = a < low ? a : low;
    high = a > high ? a : high;
    bits |= a;
  };
  if (mask == kFullMask) {
    for (uint32_t l = 0; l < kLanes; ++l) add(address[l]);
  } else {
    for (uint32_t rest = mask; rest; rest &= rest - 1) add(address[__builtin_ctz(rest)]);
  }
  if ((bits & (align - 1)) == 0) {
    auto inside = [&](const Range& r) {
      return low >= r.begin && high <= r.end && bytes <= r.end - high;
    };
    if (where == Where::shared) {
      uint64_t begin = reinterpret_cast<uint64_t>(w.block->shared);
      if (inside({begin, begin + w.block->shared_bytes})) return true;
    } else {
      uint64_t epoch = w.block->launch->memory->epoch();
      if (__builtin_expect(w.epoch != epoch, 0)) {
        w.epoch = epoch;
        for (Range& old : w.ranges) old = {};
      }
      for (const Range& r : w.ranges) {
        if (inside(r)) return true;
      }
    }
  }
  return check_slow(w, address, mask, bytes, align, where);
}

/// Addresses of all lanes: slot in.a of 8- or 4-byte lanes plus in.imm.
inline void addresses(const Warp& w, uint32_t slot, bool wide, int64_t imm, uint64_t* out) {
  if (wide) {
    const uint64_t* a = w.reg<uint64_t>(slot);
    for (uint32_t l = 0; l < kLanes; ++l) out[l] = a[l] + static_cast<uint64_t>(imm);
  } else {
    const uint32_t* a = w.reg<uint32_t>(slot);
    for (uint32_t l = 0; l < kLanes; ++l) out[l] = a[l] + static_cast<uint64_t>(imm);
  }
}

template <class T>
inline T load_from(uint64_t address) {
  T v;
  std::memcpy(&v, reinterpret_cast<const void*>(address), sizeof(T));
  return v;
}
template <class T>
inline void store_to(uint64_t address, T v) {
  std::memcpy(reinterpret_cast<void*>(address), &v, sizeof(T));
}

}  // namespace sg::vm
