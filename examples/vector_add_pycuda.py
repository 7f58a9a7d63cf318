"""Adds two vectors on a GPU with pycuda and checks the result against numpy.

An ordinary pycuda program: nothing in it knows of Orion. The kernel is given as PTX, so that no compiler is needed.
"""

import sys

import numpy as np
import pycuda.autoinit
import pycuda.driver as cuda

PTX = b"""
.version 6.4
.target sm_50
.address_size 64
.visible .entry add(.param .u64 a, .param .u64 b, .param .u64 out, .param .u32 count)
{
  .reg .pred %p;
  .reg .f32 %f<3>;
  .reg .b32 %r<5>;
  .reg .b64 %rd<7>;
  ld.param.u64 %rd0, [a];
  ld.param.u64 %rd1, [b];
  ld.param.u64 %rd2, [out];
  ld.param.u32 %r0, [count];
  mov.u32 %r1, %ctaid.x;
  mov.u32 %r2, %ntid.x;
  mov.u32 %r3, %tid.x;
  mad.lo.s32 %r4, %r1, %r2, %r3;
  setp.ge.u32 %p, %r4, %r0;
  @%p bra done;
  mul.wide.u32 %rd3, %r4, 4;
  add.s64 %rd4, %rd0, %rd3;
  add.s64 %rd5, %rd1, %rd3;
  add.s64 %rd6, %rd2, %rd3;
  ld.global.f32 %f0, [%rd4];
  ld.global.f32 %f1, [%rd5];
  add.f32 %f2, %f0, %f1;
  st.global.f32 [%rd6], %f2;
done:
  ret;
}
"""


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    random = np.random.default_rng(0)
    a = random.random(count, dtype=np.float32)
    b = random.random(count, dtype=np.float32)
    out = np.empty_like(a)

    add = cuda.module_from_buffer(PTX).get_function("add")
    threads = 256
    grid = ((count + threads - 1) // threads, 1)
    add(cuda.In(a), cuda.In(b), cuda.Out(out), np.uint32(count), block=(threads, 1, 1), grid=grid)

    name = pycuda.autoinit.device.name()
    if not np.array_equal(out, a + b):
        print(f"WRONG: {np.count_nonzero(out != a + b)} of {count} elements differ from numpy, on {name}")
        return 1
    print(f"{count} elements added on {name}: equal to numpy, sum {float(out.sum(dtype=np.float64)):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
