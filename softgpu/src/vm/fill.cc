// Values of slots that are known before the code of a frame runs.
#include "handlers.h"

namespace sg::vm {
namespace {

void splat(const Slot& s, uint8_t* to, uint64_t value) {
  if (s.bytes == 4) {
    uint32_t v = static_cast<uint32_t>(value);
    for (uint32_t l = 0; l < kLanes; ++l) reinterpret_cast<uint32_t*>(to)[l] = v;
  } else if (s.bytes == 8) {
    for (uint32_t l = 0; l < kLanes; ++l) reinterpret_cast<uint64_t*>(to)[l] = value;
  } else {
    for (uint32_t l = 0; l < kLanes; ++l) {
      reinterpret_cast<uint64_t*>(to)[2 * l] = value;
      reinterpret_cast<uint64_t*>(to)[2 * l + 1] = 0;
    }
  }
}

/// Calls give(lane, x, y, z) with the place of each thread of the warp in its block.
template <class F>
void each_place(uint32_t first, const uint32_t* n, F give) {
  uint32_t x = first % n[0], y = first / n[0] % n[1], z = first / n[0] / n[1];
  for (uint32_t l = 0; l < kLanes; ++l) {
    give(l, x, y, z);
    if (++x < n[0]) continue;
    x = 0;
    if (++y < n[1]) continue;
    y = 0;
    ++z;
  }
}

template <class F>
void each(const Slot& s, uint8_t* to, F value) {
  if (s.bytes == 4) {
    for (uint32_t l = 0; l < kLanes; ++l) reinterpret_cast<uint32_t*>(to)[l] = static_cast<uint32_t>(value(l));
  } else {
    for (uint32_t l = 0; l < kLanes; ++l) reinterpret_cast<uint64_t*>(to)[l] = value(l);
  }
}

}  // namespace

uint32_t rank_of(Fill fill) {
  switch (fill) {
    case Fill::constant:
      return 0;
    case Fill::tid_x:
    case Fill::tid_y:
    case Fill::tid_z:
    case Fill::warp:
      return 2;
    case Fill::ctaid_x:
    case Fill::ctaid_y:
    case Fill::ctaid_z:
      return 3;
    default:
      return 1;
  }
}

void fill_slots(const Warp& w, Frame* frame, bool constants_too) {
  const Block& b = *w.block;
  const Launch& launch = *b.launch->launch;
  uint32_t first = w.index * kLanes;
  const uint32_t *n = launch.block, *grid = launch.grid;
  const Code& code = *frame->code;
  size_t from = constants_too                          ? 0
                : frame->filled_launch != b.launch->id ? code.launch_slots
                : frame->filled_warp != w.index        ? code.warp_slots
                                                       : code.block_slots;
  frame->filled_launch = b.launch->id;
  frame->filled_warp = w.index;
  for (size_t i = from; i < code.slots.size(); ++i) {
    const Slot& s = code.slots[i];
    uint8_t* to = frame->regs + s.offset;
    auto all = [&](uint64_t v) { splat(s, to, v); };
    auto one = [&](uint32_t l, uint32_t v) {
      if (s.bytes == 4) {
        reinterpret_cast<uint32_t*>(to)[l] = v;
      } else {
        reinterpret_cast<uint64_t*>(to)[l] = v;
      }
    };
    switch (s.fill) {
      case Fill::constant:
        all(s.value);
        break;
      case Fill::tid_x:
        if (n[0] % kLanes == 0) {  // all lanes in a row of the block
          uint32_t x = first % n[0];
          each(s, to, [&](uint32_t l) { return x + l; });
        } else {
          each_place(first, n, [&](uint32_t l, uint32_t x, uint32_t, uint32_t) { one(l, x); });
        }
        break;
      case Fill::tid_y:
        if (n[0] % kLanes == 0) {
          all(first / n[0] % n[1]);
        } else {
          each_place(first, n, [&](uint32_t l, uint32_t, uint32_t y, uint32_t) { one(l, y); });
        }
        break;
      case Fill::tid_z:
        each_place(first, n, [&](uint32_t l, uint32_t, uint32_t, uint32_t z) { one(l, z); });
        break;
      case Fill::ntid_x:
        all(n[0]);
        break;
      case Fill::ntid_y:
        all(n[1]);
        break;
      case Fill::ntid_z:
        all(n[2]);
        break;
      case Fill::ctaid_x:
        all(b.index[0]);
        break;
      case Fill::ctaid_y:
        all(b.index[1]);
        break;
      case Fill::ctaid_z:
        all(b.index[2]);
        break;
      case Fill::nctaid_x:
        all(grid[0]);
        break;
      case Fill::nctaid_y:
        all(grid[1]);
        break;
      case Fill::nctaid_z:
        all(grid[2]);
        break;
      case Fill::lane:
        each(s, to, [&](uint32_t l) { return uint64_t{l}; });
        break;
      case Fill::warp:
        all(w.index);
        break;
      case Fill::warps:
        all(b.warps.size());
        break;
      case Fill::sm:
        all(0);
        break;
      case Fill::sms:
        all(1);
        break;
      case Fill::grid_id:
        all(b.launch->id);
        break;
      case Fill::lanemask_eq:
        each(s, to, [&](uint32_t l) { return uint64_t{1} << l; });
        break;
      case Fill::lanemask_le:
        each(s, to, [&](uint32_t l) { return (uint64_t{2} << l) - 1; });
        break;
      case Fill::lanemask_lt:
        each(s, to, [&](uint32_t l) { return (uint64_t{1} << l) - 1; });
        break;
      case Fill::lanemask_ge:
        each(s, to, [&](uint32_t l) { return kFullMask & ~((uint64_t{1} << l) - 1); });
        break;
      case Fill::lanemask_gt:
        each(s, to, [&](uint32_t l) { return kFullMask & ~((uint64_t{2} << l) - 1); });
        break;
      case Fill::dynamic_shared_bytes:
        all(launch.dynamic_shared_bytes);
        break;
      case Fill::total_shared_bytes:
        all(b.shared_bytes);
        break;
      case Fill::envreg1:
        all(b.launch->grid_workspace >> 32);
        break;
      case Fill::envreg2:
        all(b.launch->grid_workspace & 0xffffffffu);
        break;
      case Fill::shared_address:
        all(reinterpret_cast<uint64_t>(b.shared) + s.value);
        break;
      case Fill::dynamic_shared_address:
        all(reinterpret_cast<uint64_t>(b.shared) + b.image->static_shared_bytes + s.value);
        break;
      case Fill::local_address:
        each(s, to, [&](uint32_t l) {
          return reinterpret_cast<uint64_t>(frame->local) + uint64_t{l} * frame->code->local_bytes + s.value;
        });
        break;
      case Fill::param_address:
        all(b.launch->params.begin + s.value);
        break;
    }
  }
}

}  // namespace sg::vm
