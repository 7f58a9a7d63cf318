// Checked access of a warp to memory.
#pragma once
#include "handlers.h"

namespace sg::vm {

enum class Where : uint8_t { generic, global, shared };

/// True if every lane in mask may touch `bytes` (a power of two, also the alignment) at its address. Else raises.
bool check_slow(Warp& w, const uint64_t* address, uint32_t mask, uint32_t bytes, uint32_t align, Where where);

/// Forgets cached ranges if one may have been taken away since.
inline void refresh_ranges(Block& b) {
  const std::atomic<uint64_t>* counter = b.launch->epoch;
  uint64_t epoch = counter ? counter->load(std::memory_order_acquire) : b.launch->memory->epoch();
  if (__builtin_expect(b.epoch == epoch, 1)) return;
  b.epoch = epoch;
  for (Range& old : b.ranges) old = {};
}

/// The known range that holds `bytes` at `address`; an empty one if there is none.
inline Range known_range(Block& b, uint64_t address, uint64_t bytes, Where where) {
  if (where == Where::shared) {
    uint64_t begin = reinterpret_cast<uint64_t>(b.shared);
    Range r{begin, begin + b.shared_bytes};
    return r.contains(address, bytes) ? r : Range{};
  }
  refresh_ranges(b);
  for (const Range& r : b.ranges) {
    if (r.contains(address, bytes)) return r;
  }
  return {};
}

/// True if all lanes run and address neighbouring elements that they may touch.
template <class T>
inline bool is_dense(Warp& w, const uint64_t* address, uint32_t mask, Where where) {
  if (mask != kFullMask) return false;
  uint64_t first = address[0], differ = first & (sizeof(T) - 1);
  for (uint32_t l = 0; l < kLanes; ++l) differ |= (address[l] - first) ^ (l * sizeof(T));
  return differ == 0 && known_range(*w.block, first, kLanes * sizeof(T), where).end != 0;
}

inline bool check(Warp& w, const uint64_t* address, uint32_t mask, uint32_t bytes, uint32_t align, Where where) {
  Range r = known_range(*w.block, address[__builtin_ctz(mask)], bytes, where);
  if (r.end != 0) {
    // An address is inside if neither its distance from the range's begin nor what is then left is negative.
    uint64_t most = r.end - r.begin - bytes, outside = 0, bits = 0;
    auto add = [&](uint64_t a) {
      uint64_t offset = a - r.begin;
      outside |= offset | (most - offset);
      bits |= a;
    };
    if (mask == kFullMask) {
      for (uint32_t l = 0; l < kLanes; ++l) add(address[l]);
    } else {
      for (uint32_t rest = mask; rest; rest &= rest - 1) add(address[__builtin_ctz(rest)]);
    }
    if (outside >> 63 == 0 && (bits & (align - 1)) == 0) return true;
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
