"""A module of PTX alone, which the driver compiles, loaded and launched by CuPy."""

from __future__ import annotations

import tempfile
from pathlib import Path

import cupy
import numpy
from report import checksum, report

COUNT, ROOM = 1000, 1024
# out[i] = i * i + 7 for i < count
PTX = """
.version 7.0
.target sm_70
.address_size 64
.visible .entry squares(.param .u64 out, .param .u32 count)
{ .reg .u32 %r<6>; .reg .u64 %rd<3>; .reg .pred %p;
  ld.param.u64 %rd1, [out]; ld.param.u32 %r1, [count];
  mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x;
  mad.lo.u32 %r2, %r2, %r3, %r4;
  setp.ge.u32 %p, %r2, %r1;
  @%p bra done;
  mad.lo.u32 %r5, %r2, %r2, 7;
  mad.wide.u32 %rd2, %r2, 4, %rd1;
  st.global.u32 [%rd2], %r5;
done:
  ret; }
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "squares.ptx"
        path.write_text(PTX)
        kernel = cupy.RawModule(path=str(path)).get_function("squares")
        out = cupy.zeros(ROOM, cupy.uint32)
        kernel((ROOM // 64,), (64,), (out, numpy.uint32(COUNT)))
        values = out.get()
    report(
        {"out": checksum(values), "last": int(values[COUNT - 1]), "beyond": int(values[COUNT])}, cupy=cupy.__version__
    )


if __name__ == "__main__":
    main()
