"""Launches: parameters, limits, attributes, occupancy, faults that stay."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int, c_size_t, c_uint, c_uint8, c_uint32, c_uint64, c_void_p

import pytest

from tests.softgpu import libcuda
from tests.softgpu.libcuda import Cuda, check_child


def test_grid_and_block(cu: Cuda, bump: c_void_p) -> None:
    target = cu.alloc(4)
    cu.call("cuMemsetD32_v2", target, 0, c_size_t(1))
    cu.launch(bump, [target, c_uint(1)], grid=(3, 2, 2), block=(5, 4, 3))
    assert cu.read_u32(target) == 3 * 2 * 2 * 5 * 4 * 3


def test_parameters_are_taken_at_the_call(cu: Cuda, module: c_void_p) -> None:
    stream = cu.stream()
    flag, target = cu.host_alloc(4), cu.alloc(4)
    c_uint32.from_address(flag).value = 0
    cu.call("cuStreamWaitValue32_v2", stream, c_uint64(flag), 1, 1)
    value = c_uint(10)
    cu.launch(cu.function(module, b"store"), [target, value], stream=stream)
    value.value = 20
    c_uint32.from_address(flag).value = 1
    cu.call("cuStreamSynchronize", stream)
    assert cu.read_u32(target) == 10


def test_mixed_parameters(cu: Cuda, module: c_void_p) -> None:
    target = cu.alloc(16)
    struct = (c_uint64 * 3)(1, 2, 0x1122334455667788)
    mixed = cu.function(module, b"mixed")
    cu.launch(mixed, [c_uint(5), target, c_uint8(9), struct])
    raw = cu.read(target, 16)
    assert int.from_bytes(raw[:4], "little") == 5
    assert int.from_bytes(raw[8:], "little") == 0x1122334455667788
    layout = []
    for i in range(4):
        offset, size = c_size_t(), c_size_t()
        cu.call("cuFuncGetParamInfo", mixed, c_size_t(i), byref(offset), byref(size))
        layout.append((offset.value, size.value))
    assert layout == [(0, 4), (8, 8), (16, 1), (24, 24)]
    assert cu.code("cuFuncGetParamInfo", mixed, c_size_t(4), byref(offset), byref(size)) == libcuda.INVALID_VALUE


def extra_launch(cu: Cuda, function: c_void_p, buffer: ctypes.Array[ctypes.c_char], size: int) -> int:
    length = c_size_t(size)
    extra = (c_void_p * 5)(1, ctypes.addressof(buffer), 2, ctypes.addressof(length), 0)
    return cu.code("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, None, None, extra)


def test_extra_buffer(cu: Cuda, bump: c_void_p) -> None:
    target = cu.alloc(4)
    cu.call("cuMemsetD32_v2", target, 0, c_size_t(1))
    buffer = ctypes.create_string_buffer(16)
    ctypes.memmove(buffer, bytes(target) + bytes(c_uint(6)), 12)
    assert extra_launch(cu, bump, buffer, 12) == libcuda.SUCCESS
    assert cu.read_u32(target) == 6
    assert extra_launch(cu, bump, buffer, 0) == libcuda.INVALID_VALUE
    assert extra_launch(cu, bump, buffer, 16) == libcuda.LAUNCH_OUT_OF_RESOURCES


@pytest.mark.parametrize(
    ("grid", "block", "code"),
    [
        ((0, 1, 1), (1, 1, 1), libcuda.INVALID_VALUE),
        ((1, 1, 1), (1, 0, 1), libcuda.INVALID_VALUE),
        ((1, 65536, 1), (1, 1, 1), libcuda.INVALID_VALUE),
        ((1, 1, 65536), (1, 1, 1), libcuda.INVALID_VALUE),
        ((1 << 31, 1, 1), (1, 1, 1), libcuda.INVALID_VALUE),
        ((1, 1, 1), (1025, 1, 1), libcuda.INVALID_VALUE),
        ((1, 1, 1), (32, 33, 1), libcuda.INVALID_VALUE),
        ((1, 1, 1), (1, 1, 65), libcuda.INVALID_VALUE),
        ((1, 1, 1), (1024, 1, 1), libcuda.SUCCESS),
    ],
)
def test_shape_limits(
    cu: Cuda, module: c_void_p, grid: tuple[int, int, int], block: tuple[int, int, int], code: int
) -> None:
    assert cu.launch_code(cu.function(module, b"nothing"), [], grid=grid, block=block) == code


def test_kernel_limits(cu: Cuda, module: c_void_p) -> None:
    bounded, required = cu.function(module, b"bounded"), cu.function(module, b"required")
    pointer = c_uint64(0)
    assert cu.get(c_int, "cuFuncGetAttribute", 0, bounded) == 64
    assert cu.launch_code(bounded, [pointer], block=(64, 1, 1)) == libcuda.SUCCESS
    assert cu.launch_code(bounded, [pointer], block=(65, 1, 1)) == libcuda.INVALID_VALUE
    assert cu.launch_code(required, [pointer], block=(32, 2, 1)) == libcuda.SUCCESS
    assert cu.launch_code(required, [pointer], block=(64, 1, 1)) == libcuda.INVALID_VALUE
    assert cu.launch_code(required, [pointer], block=(32, 1, 1)) == libcuda.INVALID_VALUE
    cu.call("cuCtxSynchronize")


def test_shared_memory_limits(cu: Cuda, module: c_void_p) -> None:
    user = cu.function(module, b"shared_user")
    pointer = c_uint64(0)
    kib = 1024
    assert cu.get(c_int, "cuFuncGetAttribute", 1, user) == kib
    assert cu.get(c_int, "cuFuncGetAttribute", 8, user) == 47 * kib
    assert cu.launch_code(user, [pointer], shared=47 * kib) == libcuda.SUCCESS
    assert cu.launch_code(user, [pointer], shared=48 * kib) == libcuda.INVALID_VALUE
    cu.call("cuFuncSetAttribute", user, 8, 64 * kib)
    assert cu.get(c_int, "cuFuncGetAttribute", 8, user) == 64 * kib
    assert cu.launch_code(user, [pointer], shared=64 * kib) == libcuda.SUCCESS
    assert cu.launch_code(user, [pointer], shared=64 * kib + 1) == libcuda.INVALID_VALUE
    assert cu.code("cuFuncSetAttribute", user, 8, 1 << 20) == libcuda.INVALID_VALUE
    assert cu.code("cuFuncSetAttribute", user, 999, 1) == libcuda.INVALID_VALUE
    cu.call("cuCtxSynchronize")


def test_bad_parameters(cu: Cuda, bump: c_void_p) -> None:
    assert cu.code("cuLaunchKernel", bump, 1, 1, 1, 1, 1, 1, 0, None, None, None) == libcuda.INVALID_VALUE
    assert cu.code("cuLaunchKernel", None, 1, 1, 1, 1, 1, 1, 0, None, None, None) == libcuda.INVALID_HANDLE


def test_occupancy(cu: Cuda, module: c_void_p) -> None:
    nothing, bounded = cu.function(module, b"nothing"), cu.function(module, b"bounded")
    occupancy = "cuOccupancyMaxActiveBlocksPerMultiprocessor"
    assert cu.get(c_int, occupancy, nothing, 1024, c_size_t(0)) == 2
    assert cu.get(c_int, occupancy, nothing, 32, c_size_t(0)) == 32
    assert cu.get(c_int, occupancy, bounded, 128, c_size_t(0)) == 16
    assert cu.get(c_int, occupancy, bounded, 2000, c_size_t(0)) == 0
    assert cu.code(occupancy, byref(c_int()), nothing, 0, c_size_t(0)) == libcuda.INVALID_VALUE
    grid, block = c_int(), c_int()
    cu.call("cuOccupancyMaxPotentialBlockSize", byref(grid), byref(block), bounded, None, c_size_t(0), 0)
    assert block.value == 64 and grid.value > 0
    room = c_size_t()
    cu.call("cuOccupancyAvailableDynamicSMemPerBlock", byref(room), nothing, 1, 32)
    assert room.value == 48 * 1024


@pytest.mark.softgpu_only  # a real driver crashed in it
def test_launch_of_the_old_api(cu: Cuda, bump: c_void_p) -> None:
    target = cu.alloc(4)
    cu.call("cuMemsetD32_v2", target, 0, c_size_t(1))
    cu.call("cuFuncSetBlockShape", bump, 8, 2, 1)
    cu.call("cuFuncSetSharedSize", bump, 0)
    cu.call("cuParamSetSize", bump, 12)
    cu.call("cuParamSetv", bump, 0, byref(target), 8)
    cu.call("cuParamSeti", bump, 8, 5)
    cu.call("cuLaunchGrid", bump, 3, 2)
    cu.call("cuLaunchGridAsync", bump, 1, 1, cu.stream(0))
    cu.call("cuCtxSynchronize")
    assert cu.read_u32(target) == 5 * 16 * 7
    assert cu.code("cuFuncSetBlockShape", bump, 0, 1, 1) == libcuda.INVALID_VALUE
    assert cu.code("cuParamSetv", bump, -4, byref(target), 8) == libcuda.INVALID_VALUE


class LaunchConfig(ctypes.Structure):
    _fields_ = [
        ("grid", c_uint * 3), ("block", c_uint * 3), ("shared", c_uint), ("stream", c_void_p),
        ("attributes", c_void_p), ("count", c_uint),
    ]  # fmt: skip


class LaunchAttribute(ctypes.Structure):
    _fields_ = [("id", c_int), ("pad", c_int), ("value", c_int * 16)]


def launch_ex(
    cu: Cuda, function: c_void_p, args: list[c_uint64 | c_uint], blocks: int, *attributes: LaunchAttribute
) -> int:
    array = (LaunchAttribute * max(len(attributes), 1))(*attributes)
    config = LaunchConfig(
        (c_uint * 3)(blocks, 1, 1), (c_uint * 3)(32, 1, 1), 0, None, ctypes.addressof(array), len(attributes)
    )
    params = (c_void_p * max(len(args), 1))(*[ctypes.addressof(a) for a in args])
    return cu.code("cuLaunchKernelEx", byref(config), function, params, None)


def test_launch_ex(cu: Cuda, bump: c_void_p) -> None:
    target = cu.alloc(4)
    cu.call("cuMemsetD32_v2", target, 0, c_size_t(1))
    cooperative = LaunchAttribute(2, 0, (c_int * 16)(1))
    assert launch_ex(cu, bump, [target, c_uint(1)], 2) == libcuda.SUCCESS
    assert launch_ex(cu, bump, [target, c_uint(1)], 2, cooperative) == libcuda.SUCCESS
    assert cu.read_u32(target) == 128
    assert launch_ex(cu, bump, [target, c_uint(1)], 1 << 20, cooperative) == libcuda.COOPERATIVE_LAUNCH_TOO_LARGE


def test_cooperative_launch(cu: Cuda, bump: c_void_p) -> None:
    target = cu.alloc(4)
    cu.call("cuMemsetD32_v2", target, 0, c_size_t(1))
    params = (c_void_p * 2)(ctypes.addressof(target), ctypes.addressof(one := c_uint(1)))
    cu.call("cuLaunchCooperativeKernel", bump, 4, 1, 1, 64, 1, 1, 0, None, params)
    assert cu.read_u32(target) == 256
    assert one.value == 1
    code = cu.code("cuLaunchCooperativeKernel", bump, 1 << 20, 1, 1, 64, 1, 1, 0, None, params)
    assert code == libcuda.COOPERATIVE_LAUNCH_TOO_LARGE


FAULT = """
cu.call("cuInit", 0)
context = cu.context()
module = cu.module()
stream, other, event = cu.stream(), cu.stream(), cu.event()
host = cu.host_alloc(16)
ctypes.memset(host, 0, 16)
"""


def test_illegal_address_stays() -> None:
    check_child(
        FAULT
        + """
cu.call("cuStreamWaitValue32_v2", stream, c_uint64(host + 8), 1, 1)
cu.launch(cu.function(module, b"store"), [c_uint64(64), c_uint(1)], stream=stream)
cu.call("cuStreamWriteValue32_v2", stream, c_uint64(host), 1, 0)
cu.call("cuEventRecord", event, stream)
c_uint32.from_address(host + 8).value = 1
assert cu.code("cuStreamSynchronize", stream) == ILLEGAL_ADDRESS
for name, args in [
    ("cuCtxSynchronize", ()), ("cuStreamQuery", (other,)), ("cuEventQuery", (event,)),
    ("cuMemAlloc_v2", (byref(c_uint64()), c_size_t(4))), ("cuStreamCreate", (byref(c_void_p()), 0)),
    ("cuModuleGetFunction", (byref(c_void_p()), module, b"bump")),
]:
    assert cu.code(name, *args) == ILLEGAL_ADDRESS, name
assert ctypes.c_uint32.from_address(host).value == 0  # the marker behind the fault is never written
"""
    )


@pytest.mark.softgpu_only
def test_fault_ends_with_the_context() -> None:
    check_child(
        FAULT
        + """
cu.launch(cu.function(module, b"store"), [c_uint64(64), c_uint(1)])
assert cu.code("cuCtxSynchronize") == ILLEGAL_ADDRESS
cu.call("cuCtxDestroy_v2", context)
cu.context()
target = cu.alloc(4)
cu.launch(cu.function(cu.module(), b"store"), [target, c_uint(3)])
assert cu.read_u32(target) == 3
"""
    )


@pytest.mark.softgpu_only
def test_use_after_free_is_a_fault() -> None:
    check_child(
        FAULT
        + """
target = cu.alloc(1 << 20)
cu.call("cuMemFree_v2", target)
cu.launch(cu.function(module, b"store"), [target, c_uint(1)])
assert cu.code("cuCtxSynchronize") == ILLEGAL_ADDRESS
"""
    )


@pytest.mark.softgpu_only
def test_unmapped_and_unregistered_memory_is_a_fault() -> None:
    check_child(
        FAULT
        + """
cu.call("cuMemFreeHost", c_void_p(host))
cu.launch(cu.function(module, b"store"), [c_uint64(host), c_uint(1)])
assert cu.code("cuCtxSynchronize") == ILLEGAL_ADDRESS
"""
    )


@pytest.mark.softgpu_only
def test_fault_releases_waiting_streams() -> None:
    check_child(
        FAULT
        + """
cu.call("cuStreamWaitValue32_v2", other, c_uint64(host), 1, 1)
cu.launch(cu.function(module, b"store"), [c_uint64(64), c_uint(1)], stream=stream)
assert cu.code("cuStreamSynchronize", other) in (ILLEGAL_ADDRESS, SUCCESS)
assert cu.code("cuCtxSynchronize") == ILLEGAL_ADDRESS
cu.call("cuCtxDestroy_v2", context)
"""
    )


@pytest.mark.softgpu_only
def test_primary_reset_clears_a_fault() -> None:
    check_child("""
cu.call("cuInit", 0)
primary = c_void_p()
cu.call("cuDevicePrimaryCtxRetain", byref(primary), 0)
cu.call("cuCtxSetCurrent", primary)
cu.launch(cu.function(cu.module(), b"store"), [c_uint64(64), c_uint(1)])
assert cu.code("cuCtxSynchronize") == ILLEGAL_ADDRESS
assert cu.code("cuMemAlloc_v2", byref(c_uint64()), c_size_t(4)) == ILLEGAL_ADDRESS
cu.call("cuDevicePrimaryCtxReset_v2", 0)
assert cu.code("cuCtxSynchronize") == CONTEXT_IS_DESTROYED
cu.call("cuDevicePrimaryCtxRetain", byref(primary), 0)
cu.call("cuCtxSynchronize")
cu.alloc(4)
""")


@pytest.mark.softgpu_only
def test_endless_kernel_meets_the_step_limit() -> None:
    check_child(
        FAULT
        + """
cu.launch(cu.function(module, b"await_flag"), [c_uint64(host)], stream=stream)
assert cu.code("cuStreamSynchronize", stream) == 702
""",
        SOFTGPU_STEP_LIMIT="100000",
    )


ALIGNED = b""".version 7.0
.target sm_70
.address_size 64
.visible .entry places(.param .u64 p)
{ .reg .u64 %rd<4>; .reg .u32 %r<2>;
  .local .align 256 .b8 mine[8];
  .shared .align 256 .b8 ours[8];
  ld.param.u64 %rd1, [p];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd2, %r1, 16;
  add.u64 %rd1, %rd1, %rd2;
  mov.u64 %rd3, mine;
  cvta.local.u64 %rd3, %rd3;
  st.global.u64 [%rd1], %rd3;
  mov.u64 %rd3, ours;
  cvta.shared.u64 %rd3, %rd3;
  st.global.u64 [%rd1+8], %rd3;
  ret; }
"""


def test_local_and_shared_variables_are_aligned_as_they_ask(cu: Cuda) -> None:
    out = cu.alloc(16 * 40)
    cu.launch(cu.function(cu.module(ALIGNED), b"places"), [out], block=(40, 1, 1))
    got = cu.read(out, 16 * 40)
    addresses = [int.from_bytes(got[i : i + 8], "little") for i in range(0, len(got), 8)]
    assert [address % 256 for address in addresses] == [0] * 80
    assert len(set(addresses[::2])) == 40


HEAP = b""".version 7.0
.target sm_70
.address_size 64
.extern .func (.param .b64 r) malloc(.param .b64 n);
.extern .func free(.param .b64 p);
.visible .entry take(.param .u64 p, .param .u64 n)
{ .reg .u64 %rd<4>;
  ld.param.u64 %rd1, [p]; ld.param.u64 %rd2, [n];
  { .param .b64 a; .param .b64 got;
    st.param.b64 [a], %rd2;
    call (got), malloc, (a);
    ld.param.b64 %rd3, [got]; }
  st.global.u64 [%rd1], %rd3;
  ret; }
.visible .entry give(.param .u64 p)
{ .reg .u64 %rd<2>;
  ld.param.u64 %rd1, [p];
  { .param .b64 a; st.param.b64 [a], %rd1; call free, (a); }
  ret; }
"""


@pytest.mark.softgpu_only  # how much a GPU's heap loses to its own records is not said
def test_kernels_malloc_is_bounded_by_the_limit_of_the_heap(cu: Cuda) -> None:
    module = cu.module(HEAP)
    take, give, out = cu.function(module, b"take"), cu.function(module, b"give"), cu.alloc(8)

    def taken(size: int) -> int:
        cu.launch(take, [out, c_uint64(size)])
        return int.from_bytes(cu.read(out, 8), "little")

    mib = libcuda.MIB
    first = taken(5 * mib)
    assert first != 0 and taken(4 * mib) == 0 and taken(3 * mib) != 0  # 8 MiB, the default
    cu.launch(give, [c_uint64(first)])
    assert taken(5 * mib) != 0 and taken(1) == 0
    heap_limit = 2
    cu.call("cuCtxSetLimit", heap_limit, c_size_t(32 * mib))
    assert taken(24 * mib) != 0 and taken(1) == 0
    cu.call("cuCtxSynchronize")
