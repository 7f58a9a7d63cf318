// Loops over lanes that handlers are made of.
#pragma once
#include <type_traits>

#include "vm.h"

#define SG_IVDEP _Pragma("GCC ivdep")

namespace sg::vm {
inline namespace SG_ISA {

/// How a value of T sits in a lane: types below 32 bits are widened.
template <class T>
using Cell = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, from);
}

template <class T>
using Bits = std::conditional_t<
    sizeof(T) == 8, uint64_t,
    std::conditional_t<sizeof(T) == 4, uint32_t, std::conditional_t<sizeof(T) == 2, uint16_t, uint8_t>>>;

template <class T>
inline T get(const void* slot, uint32_t lane) {
  return bits_as<T>(static_cast<Bits<T>>(static_cast<const Cell<T>*>(slot)[lane]));
}

template <class T>
inline void put(void* slot, uint32_t lane, T value) {
  static_cast<Cell<T>*>(slot)[lane] = bits_as<Bits<T>>(value);
}

/// Calls body(lane) for the lanes in mask. A full mask makes a loop that the compiler can vectorise.
template <class Body>
inline void for_lanes(uint32_t mask, Body body) {
  if (mask == kFullMask) {
    SG_IVDEP
    for (uint32_t lane = 0; lane < kLanes; ++lane) body(lane);
  } else {
    for (uint32_t rest = mask; rest; rest &= rest - 1) body(static_cast<uint32_t>(__builtin_ctz(rest)));
  }
}

template <class T, class R, class F>
inline void map1(Warp& w, const Insn& in, uint32_t mask, F f) {
  const uint8_t* a = w.regs + in.a;
  uint8_t* d = w.regs + in.d;
  for_lanes(mask, [&](uint32_t l) { put<R>(d, l, f(get<T>(a, l))); });
}

template <class T, class U, class R, class F>
inline void map2(Warp& w, const Insn& in, uint32_t mask, F f) {
  const uint8_t *a = w.regs + in.a, *b = w.regs + in.b;
  uint8_t* d = w.regs + in.d;
  for_lanes(mask, [&](uint32_t l) { put<R>(d, l, f(get<T>(a, l), get<U>(b, l))); });
}

template <class T, class U, class V, class R, class F>
inline void map3(Warp& w, const Insn& in, uint32_t mask, F f) {
  const uint8_t *a = w.regs + in.a, *b = w.regs + in.b, *c = w.regs + in.c;
  uint8_t* d = w.regs + in.d;
  for_lanes(mask, [&](uint32_t l) { put<R>(d, l, f(get<T>(a, l), get<U>(b, l), get<V>(c, l))); });
}

inline void set_pred(uint32_t* slot, uint32_t mask, uint32_t bits) { *slot = (*slot & ~mask) | (bits & mask); }

}  // namespace SG_ISA
}  // namespace sg::vm
