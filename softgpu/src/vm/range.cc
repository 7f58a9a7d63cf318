// The memory that a warp may touch.
#include "access.h"

namespace sg::vm {

bool find_device_range(Warp& w, uint64_t address, uint64_t bytes, Range* out) {
  Block& b = *w.block;
  refresh_ranges(b);
  for (const Range& r : b.ranges) {
    if (r.contains(address, bytes)) {
      *out = r;
      return true;
    }
  }
  Range r;
  // The epoch was read before this, so a range that is taken away meanwhile is noticed at the next access.
  if (!b.launch->memory->find(address, &r) || !r.contains(address, bytes)) return false;
  for (uint32_t i = 3; i > 0; --i) b.ranges[i] = b.ranges[i - 1];
  b.ranges[0] = r;
  *out = r;
  return true;
}

Range shared_range(const Warp& w) {
  uint64_t begin = reinterpret_cast<uint64_t>(w.block->shared);
  return {begin, begin + w.block->shared_bytes};
}

bool find_local(const Warp& w, uint64_t address, uint64_t bytes, Range* out) {
  for (const Frame* f = w.frame; f; f = f->parent) {
    uint64_t begin = reinterpret_cast<uint64_t>(f->local);
    Range r{begin, begin + uint64_t{kLanes} * f->code->local_bytes};
    if (f->local && r.contains(address, bytes)) {
      *out = r;
      return true;
    }
    begin = reinterpret_cast<uint64_t>(f->stack.get());
    r = {begin, begin + kLanes * kStackBytes};
    if (begin && r.contains(address, bytes)) {
      *out = r;
      return true;
    }
  }
  return false;
}

bool find_range(Warp& w, uint64_t address, uint64_t bytes, Range* out) {
  Range r = shared_range(w);
  if (r.contains(address, bytes)) {
    *out = r;
    return true;
  }
  if (find_local(w, address, bytes, out)) return true;
  if (w.block->launch->params.contains(address, bytes)) {
    *out = w.block->launch->params;
    return true;
  }
  return find_device_range(w, address, bytes, out);
}

bool check_slow(Warp& w, const uint64_t* address, uint32_t mask, uint32_t bytes, uint32_t align, Where where) {
  Range r;
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    uint64_t a = address[__builtin_ctz(rest)];
    if (a & (align - 1)) {
      w.raise(Fault::misaligned_address, a);
      return false;
    }
    bool ok = where == Where::shared   ? shared_range(w).contains(a, bytes)
              : where == Where::global ? find_device_range(w, a, bytes, &r)
                                       : find_range(w, a, bytes, &r);
    if (!ok) {
      w.raise(Fault::illegal_address, a);
      return false;
    }
  }
  return true;
}

bool read_string(Warp& w, uint64_t address, size_t most, std::string* out) {
  while (out->size() < most) {
    Range r;
    if (!find_range(w, address, 1, &r)) {
      w.raise(Fault::illegal_address, address);
      return false;
    }
    for (; address < r.end && out->size() < most; ++address) {
      char c = load_from<char>(address);
      if (c == '\0') return true;
      out->push_back(c);
    }
  }
  return true;
}

}  // namespace sg::vm
