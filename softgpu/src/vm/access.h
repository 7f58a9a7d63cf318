// Checked access of a warp to memory.
#pragma once
#include "handlers.h"

namespace sg::vm {

enum class Where : uint8_t { generic, global, shared };

/// True if every lane in mask may touch `bytes` (a power of two, also the alignment) at its address. Else raises.
bool check_slow(Warp& w, const uint64_t* address, uint32_t mask, uint32_t bytes, uint32_t align, Where where);

/// Ranges by state space. The first asks the address space if no kept range holds the address.
bool find_device_range(Warp& w, uint64_t address, uint64_t bytes, Range* out);
bool find_local(const Warp& w, uint64_t address, uint64_t bytes, Range* out);
Range shared_range(const Warp& w);

inline namespace SG_ISA {

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
  if (where != Where::global) {
    uint64_t begin = reinterpret_cast<uint64_t>(b.shared);
    Range r{begin, begin + b.shared_bytes};
    if (r.contains(address, bytes)) return r;
    if (where == Where::shared) return {};
  }
  refresh_ranges(b);
  for (const Range& r : b.ranges) {
    if (r.contains(address, bytes)) return r;
  }
  return {};
}

/// A: what an address register has in a lane. Elements have `size` bytes.
template <class A, uint32_t size>
[[gnu::noinline]] void make_plan(const A* a, AccessPlan* p) {
  A first = a[0], differ = 0;
  for (uint32_t l = 0; l < kLanes; ++l) differ |= (a[l] - first) ^ static_cast<A>(l * size);
  // What wraps around in a register of 32 bits does not lie together.
  constexpr A kMost = static_cast<A>(~A{0}) - kLanes * size;
  if (differ == 0 && first <= kMost) {
    for (uint32_t g = 0; g < 4; ++g) {
      p->base[g] = first + g * 8 * size;
      p->same[g] = false;
    }
    p->low = first;
    p->span = kLanes * size;
    p->shape = AccessPlan::dense;
    return;
  }
  uint64_t low = ~uint64_t{0}, high = 0;
  A bits = 0;
  bool usable = true;
  uint32_t count = 0;  // of rows of equal addresses
  for (uint32_t g = 0; g < 4; ++g) {
    A base = a[8 * g], same = 0, dense = 0;
    for (uint32_t i = 0; i < 8; ++i) {
      A from = a[8 * g + i] - base;
      same |= from;
      dense |= from ^ static_cast<A>(i * size);
    }
    usable &= (same == 0 || dense == 0) && base <= kMost;
    bits |= base - first;
    p->base[g] = base;
    p->same[g] = same == 0;
    count += same == 0;
    uint64_t end = base + (same == 0 ? 1 : 8) * uint64_t{size};
    low = base < low ? base : low;
    high = end > high ? end : high;
  }
  p->low = low;
  p->span = high - low;
  usable &= (bits & (size - 1)) == 0;
  p->shape = !usable      ? AccessPlan::none
             : count == 0 ? AccessPlan::rows
             : count == 4 ? AccessPlan::all_same
                          : AccessPlan::mixed;
}

/// The plan of a load or store of elements of T; null if lanes have to be looked at one by one, which includes accesses
/// that are faulty.
template <class T>
inline const AccessPlan* plan_access(Warp& w, const Insn& in, bool wide, Where where, uint32_t mask, AccessPlan* own) {
  if (mask != kFullMask) return nullptr;
  AccessPlan* p = in.plan ? &w.plans[in.plan - 1] : own;
  if (!in.plan || !in.plan_made) {
    if (wide) {
      make_plan<uint64_t, sizeof(T)>(w.reg<uint64_t>(in.a), p);
    } else {
      make_plan<uint32_t, sizeof(T)>(w.reg<uint32_t>(in.a), p);
    }
  }
  uint64_t imm = static_cast<uint64_t>(in.imm);
  if (!p->usable() || ((p->base[0] + imm) & (sizeof(T) - 1))) return nullptr;
  return known_range(*w.block, p->low + imm, p->span, where).end ? p : nullptr;
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

}  // namespace SG_ISA
}  // namespace sg::vm
