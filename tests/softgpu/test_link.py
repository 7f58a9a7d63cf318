"""cuLink: object files and archives, the device runtime, grid-wide barriers."""

from __future__ import annotations

import subprocess
from ctypes import c_char_p, c_int, c_size_t, c_uint, c_void_p
from pathlib import Path

import pytest

from tests.softgpu import libcuda
from tests.softgpu.libcuda import Cuda

PTX_INPUT, OBJECT, LIBRARY = 1, 3, 4

HELPER = b""".version 7.0
.target sm_70
.address_size 64
.visible .func (.param .b32 r) twice(.param .b32 x)
{ .reg .b32 %r<2>; ld.param.b32 %r1, [x]; add.u32 %r1, %r1, %r1; st.param.b32 [r], %r1; ret; }
"""

CALLER = b""".version 7.0
.target sm_70
.address_size 64
.extern .func (.param .b32 r) twice(.param .b32 x);
.visible .entry call(.param .u64 p)
{ .reg .u64 %rd<2>; .reg .b32 %r<2>;
  ld.param.u64 %rd1, [p];
  { .param .b32 a; .param .b32 got;
    st.param.b32 [a], 21;
    call (got), twice, (a);
    ld.param.b32 %r1, [got]; }
  st.global.u32 [%rd1], %r1;
  ret; }
"""

# Each round every block reads its right neighbour's value and, past the barrier, makes its own that one + 1.
GRID = b""".version 7.0
.target sm_70
.address_size 64
.extern .func (.param .b64 r) cudaCGGetIntrinsicHandle(.param .b32 scope);
.extern .func (.param .b32 r) cudaCGSynchronize(.param .b64 handle, .param .b32 flags);
.extern .func (.param .b32 r) cudaCGGetSize(.param .b64 a, .param .b64 b, .param .b64 handle);
.extern .func (.param .b32 r) cudaCGGetRank(.param .b64 a, .param .b64 b, .param .b64 handle);
.visible .entry rotate(.param .u64 p, .param .u32 rounds)
{ .reg .u64 %rd<8>; .reg .b32 %r<20>; .reg .pred %p;
  .local .align 4 .b8 place[16];
  ld.param.u64 %rd1, [p]; ld.param.u32 %r1, [rounds];
  { .param .b32 a; .param .b64 got;
    st.param.b32 [a], 1;
    call (got), cudaCGGetIntrinsicHandle, (a);
    ld.param.b64 %rd2, [got]; }
  mov.u64 %rd3, place;
  cvta.local.u64 %rd3, %rd3;
  add.u64 %rd4, %rd3, 4;
  mov.u64 %rd7, 0;
  { .param .b64 a; .param .b64 b; .param .b64 c; .param .b32 got;
    st.param.b64 [a], %rd3; st.param.b64 [b], %rd7; st.param.b64 [c], %rd2;
    call (got), cudaCGGetSize, (a, b, c);
    st.param.b64 [a], %rd4;
    call (got), cudaCGGetRank, (a, b, c); }
  ld.u32 %r2, [%rd3];      // threads of the grid
  ld.u32 %r3, [%rd4];      // this one's rank
  add.u32 %r4, %r3, 1;
  rem.u32 %r4, %r4, %r2;
  mul.wide.u32 %rd5, %r4, 4;
  add.u64 %rd5, %rd5, %rd1;
  mul.wide.u32 %rd6, %r3, 4;
  add.u64 %rd6, %rd6, %rd1;
LOOP:
  setp.eq.u32 %p, %r1, 0;
  @%p bra END;
  sub.u32 %r1, %r1, 1;
  ld.volatile.global.u32 %r5, [%rd5];
  { .param .b64 a; .param .b32 b; .param .b32 got;
    st.param.b64 [a], %rd2; st.param.b32 [b], 0;
    call (got), cudaCGSynchronize, (a, b);
    ld.param.b32 %r6, [got]; }
  add.u32 %r5, %r5, 1;
  mad.lo.u32 %r5, %r6, 1000000, %r5;  // a barrier that was refused shows
  st.volatile.global.u32 [%rd6], %r5;
  { .param .b64 a; .param .b32 b; .param .b32 got;
    st.param.b64 [a], %rd2; st.param.b32 [b], 0;
    call (got), cudaCGSynchronize, (a, b); }
  bra LOOP;
END:
  ret; }
"""


def fatbin(cu: Cuda, text: bytes) -> bytes:
    """A container with this PTX, made by the linker itself."""
    state = c_void_p()
    cu.call("cuLinkCreate_v2", 0, None, None, libcuda.byref(state))
    cu.call("cuLinkAddData_v2", state, PTX_INPUT, c_char_p(text), c_size_t(len(text) + 1), b"", 0, None, None)
    image, size = c_void_p(), c_size_t()
    cu.call("cuLinkComplete", state, libcuda.byref(image), libcuda.byref(size))
    made = libcuda.ctypes.string_at(image.value or 0, size.value)
    cu.call("cuLinkDestroy", state)
    return made


def object_file(folder: Path, name: str, container: bytes | None) -> Path:
    """An object file as nvcc makes it: the container in a section of its own."""
    (folder / "code.fatbin").write_bytes(container or b"")
    section = f'.section __nv_relfatbin, "a"\n.incbin "{folder}/code.fatbin"\n' if container else ""
    (folder / "code.s").write_text(section + '.section .note.GNU-stack, ""\n')
    made = folder / name
    subprocess.run(["gcc", "-c", str(folder / "code.s"), "-o", str(made)], check=True)
    return made


def archive(folder: Path, *members: Path) -> Path:
    made = folder / "library.a"
    subprocess.run(["ar", "rcs", str(made), *map(str, members)], check=True)
    return made


def linked(cu: Cuda, text: bytes, kind: int, path: Path, expected: int = libcuda.SUCCESS) -> c_void_p:
    """The module of `text` and a file. `expected`: what adding the file answers."""
    state = c_void_p()
    cu.call("cuLinkCreate_v2", 0, None, None, libcuda.byref(state))
    try:
        cu.call("cuLinkAddData_v2", state, PTX_INPUT, c_char_p(text), c_size_t(len(text) + 1), b"", 0, None, None)
        assert cu.code("cuLinkAddFile_v2", state, kind, str(path).encode(), 0, None, None) == expected
        image, size, module = c_void_p(), c_size_t(), c_void_p()
        if expected == libcuda.SUCCESS:
            cu.call("cuLinkComplete", state, libcuda.byref(image), libcuda.byref(size))
            cu.call("cuModuleLoadData", libcuda.byref(module), image)
        return module
    finally:
        cu.call("cuLinkDestroy", state)


@pytest.mark.parametrize("kind", [OBJECT, LIBRARY])
def test_device_functions_come_from_objects_and_archives(cu: Cuda, tmp_path: Path, kind: int) -> None:
    made = object_file(tmp_path, "an_object_with_a_long_name.o", fatbin(cu, HELPER))
    path = archive(tmp_path, object_file(tmp_path, "host.o", None), made) if kind == LIBRARY else made
    call = cu.function(linked(cu, CALLER, kind, path), b"call")
    out = cu.alloc(4)
    cu.launch(call, [out])
    assert cu.read_u32(out) == 42


@pytest.mark.softgpu_only
def test_damaged_objects_and_archives_are_refused(cu: Cuda, tmp_path: Path) -> None:
    made = object_file(tmp_path, "helper.o", fatbin(cu, HELPER))
    whole, broken = archive(tmp_path, made).read_bytes(), tmp_path / "broken"
    for size in range(0, len(whole), 61):
        broken.write_bytes(whole[:size])
        state = c_void_p()
        cu.call("cuLinkCreate_v2", 0, None, None, libcuda.byref(state))
        code = cu.code("cuLinkAddFile_v2", state, LIBRARY, str(broken).encode(), 0, None, None)
        # 1: empty; 0: cut behind a member, which is an archive too
        assert code in (libcuda.INVALID_IMAGE, libcuda.INVALID_VALUE, libcuda.SUCCESS)
        assert code != libcuda.SUCCESS or size < 200
        cu.call("cuLinkDestroy", state)
    broken.write_bytes(b"not an object file at all")
    linked(cu, CALLER, LIBRARY, broken, expected=libcuda.INVALID_IMAGE)


def cooperative_launch(cu: Cuda, function: c_void_p, args: list, grid: int, block: int) -> int:
    params = (c_void_p * len(args))(*[libcuda.ctypes.addressof(a) for a in args])
    return cu.code("cuLaunchCooperativeKernel", function, grid, 1, 1, block, 1, 1, 0, None, params)


@pytest.mark.softgpu_only
def test_grid_barriers_of_the_device_runtime(cu: Cuda, tmp_path: Path) -> None:
    runtime = archive(tmp_path, object_file(tmp_path, "cuda_device_runtime.o", None))
    rotate = cu.function(linked(cu, GRID, LIBRARY, runtime), b"rotate")
    blocks, threads, rounds = 24, 48, 20
    count = blocks * threads
    data = cu.alloc(4 * count)
    cu.write(data, b"".join(i.to_bytes(4, "little") for i in range(count)))
    assert cooperative_launch(cu, rotate, [data, c_uint(rounds)], blocks, threads) == libcuda.SUCCESS
    got = cu.read(data, 4 * count)
    values = [int.from_bytes(got[i : i + 4], "little") for i in range(0, len(got), 4)]
    assert values == [(i + rounds) % count + rounds for i in range(count)]
    # Without a cooperative launch there is no grid to wait for: the call says so.
    cu.launch(rotate, [data, c_uint(1)])
    assert cu.read_u32(data) >= 1000000


@pytest.mark.softgpu_only
def test_all_blocks_of_a_cooperative_launch_must_fit(cu: Cuda, tmp_path: Path) -> None:
    runtime = archive(tmp_path, object_file(tmp_path, "cuda_device_runtime.o", None))
    rotate = cu.function(linked(cu, GRID, LIBRARY, runtime), b"rotate")
    fit = c_int()
    cu.call("cuOccupancyMaxActiveBlocksPerMultiprocessor", libcuda.byref(fit), rotate, 1024, c_size_t(0))
    processors = cu.get(c_int, "cuDeviceGetAttribute", 16, 0)
    assert cu.get(c_int, "cuDeviceGetAttribute", 95, 0) == 1
    most = fit.value * processors
    data = cu.alloc(4 * most * 1024)
    assert cooperative_launch(cu, rotate, [data, c_uint(1)], most, 1024) == libcuda.SUCCESS
    too_many = cooperative_launch(cu, rotate, [data, c_uint(1)], most + 1, 1024)
    assert too_many == libcuda.COOPERATIVE_LAUNCH_TOO_LARGE
    cu.call("cuCtxSynchronize")
