"""What a driver takes for itself counts as used memory, in figures that are softgpu's own."""

from __future__ import annotations

from ctypes import byref, c_char_p, c_size_t, c_uint64, c_void_p

import pytest

from tests.softgpu.libcuda import PTX, Cuda

pytestmark = pytest.mark.softgpu_only

KIB, MIB = 1 << 10, 1 << 20
THREADS = 16 * 2048
STACK, PRINTF, HEAP = 0, 1, 2
DEEP = b""".version 7.0
.target sm_70
.address_size 64
.visible .entry deep(.param .u64 out)
{ .reg .u64 %rd<3>;
  .local .align 8 .b8 stack[3072];
  ld.param.u64 %rd1, [out];
  mov.u64 %rd2, stack;
  st.local.u64 [%rd2], %rd1;
  ret; }
"""


def free(cu: Cuda) -> int:
    free_bytes, total_bytes = c_size_t(), c_size_t()
    cu.call("cuMemGetInfo_v2", byref(free_bytes), byref(total_bytes))
    return free_bytes.value


def test_modules_and_kernels(cu: Cuda) -> None:
    before = free(cu)
    padded = b"// " + b"x" * (3 * MIB) + b"\n" + PTX
    module = cu.module(padded)
    loaded = free(cu)
    assert 3 * MIB <= before - loaded < 3 * MIB + 192 * KIB  # and its variables
    cu.function(module, b"bump")
    assert loaded - free(cu) == 64 * KIB
    cu.function(module, b"bump")
    assert loaded - free(cu) == 64 * KIB
    cu.call("cuModuleUnload", module)
    assert free(cu) == before


def test_an_image_that_does_not_fit_is_refused_and_leaves_nothing(cu: Cuda) -> None:
    before = free(cu)
    address = cu.alloc(before - MIB)
    assert cu.code("cuModuleLoadData", byref(c_void_p()), c_char_p(b"// " + b"x" * (2 * MIB) + b"\n" + PTX)) == 2
    assert free(cu) == MIB
    cu.call("cuMemFree_v2", address)
    assert free(cu) == before


def test_contexts_beside_the_primary_one(cu: Cuda) -> None:
    before = free(cu)
    context = c_void_p()
    cu.call("cuCtxCreate_v2", byref(context), 0, 0)
    assert before - free(cu) == 8 * MIB
    cu.call("cuCtxDestroy_v2", context)
    assert free(cu) == before


def test_limits(cu: Cuda) -> None:
    context = c_void_p()
    cu.call("cuCtxCreate_v2", byref(context), 0, 0)
    before = free(cu)
    for limit, default, value, taken in (
        (STACK, 1024, 2048, 1024 * THREADS),
        (PRINTF, MIB, 3 * MIB, 2 * MIB),
        (HEAP, 8 * MIB, 16 * MIB, 8 * MIB),
    ):
        cu.call("cuCtxSetLimit", limit, c_size_t(value))
        assert before - free(cu) == taken
        assert cu.code("cuCtxSetLimit", limit, c_size_t(1 << 62)) != 0
        assert cu.get(c_size_t, "cuCtxGetLimit", limit) == value
        assert before - free(cu) == taken
        cu.call("cuCtxSetLimit", limit, c_size_t(default))
        assert free(cu) == before
    cu.call("cuCtxDestroy_v2", context)


def test_local_memory_stays_with_the_context(cu: Cuda) -> None:
    outside = free(cu)
    context = c_void_p()
    cu.call("cuCtxCreate_v2", byref(context), 0, 0)
    function = cu.function(cu.module(DEEP), b"deep")
    before = free(cu)
    for _ in range(2):
        cu.launch(function, [c_uint64(0)])
        assert before - free(cu) == 2048 * THREADS
    cu.call("cuCtxSetLimit", STACK, c_size_t(2048))  # less than there is
    assert before - free(cu) == 2048 * THREADS
    cu.call("cuCtxDestroy_v2", context)
    assert free(cu) == outside


def test_executable_graphs_from_their_first_upload(cu: Cuda) -> None:
    graph, node, instance = c_void_p(), c_void_p(), c_void_p()
    cu.call("cuGraphCreate", byref(graph), 0)
    cu.call("cuGraphAddEmptyNode", byref(node), graph, None, c_size_t(0))
    before = free(cu)
    cu.call("cuGraphInstantiateWithFlags", byref(instance), graph, c_uint64(0))
    assert free(cu) == before
    stream = cu.stream()
    for name in ("cuGraphUpload", "cuGraphLaunch"):
        cu.call(name, instance, stream)
        assert before - free(cu) == 64 * KIB
    cu.call("cuStreamSynchronize", stream)
    cu.call("cuGraphExecDestroy", instance)
    cu.call("cuGraphDestroy", graph)
    assert free(cu) == before
