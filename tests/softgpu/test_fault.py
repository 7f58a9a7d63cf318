"""SOFTGPU_FAULT: what a test asks for happens at its place and nowhere else; what cannot be understood is refused."""

from __future__ import annotations

import pytest

from tests.softgpu.libcuda import check_child, run_child

pytestmark = pytest.mark.softgpu_only

START = """
cu.call("cuInit", 0)
context = cu.context()
module = cu.module(PTX)
def alloc_code(size=64):
    return cu.code("cuMemAlloc_v2", byref(c_uint64()), c_size_t(size))
"""


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("cuMemAlloc_v2", "has no effect"),
        ("cuNoSuchCall=2", "names neither launch"),
        ("malloc=2", "names neither launch"),
        ("cuMemAlloc_v2#0=2", "has no count"),
        ("cuMemAlloc_v2#x=2", "has no count"),
        ("cuMemAlloc_v2(3)=2", "takes no parentheses"),
        ("launch(=700", "no closing parenthesis"),
        ("launch()=700", "names no kernel"),
        ("alloc(much)=2", "no number of bytes"),
        ("copy=slow", "has no milliseconds"),
        ("copy=slow:0", "has no milliseconds"),
        ("copy=late", "no effect that is known"),
        ("launch=0", "no effect that is known"),
        ("launch=lost:", "no effect that is known"),
        ("alloc=2;launch=1000", '"launch=1000"'),
    ],
)
def test_what_cannot_be_understood_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    done = run_child("assert cu.code('cuInit', 0) == INVALID_VALUE", SOFTGPU_FAULT=text)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("softgpu: SOFTGPU_FAULT: ") and sentence in lines[0]


def test_the_nth_call_of_a_function_fails() -> None:
    check_child(
        START + "assert [alloc_code() for _ in range(4)] == [0, 0, 209, 0]\nassert cu.code('cuCtxSynchronize') == 0",
        SOFTGPU_FAULT="cuMemAlloc_v2#3=209",
    )


def test_calls_from_the_nth_on_fail_and_rules_stand_side_by_side() -> None:
    check_child(
        START + "assert [alloc_code() for _ in range(4)] == [0, 2, 2, 2]\n"
        "assert cu.code('cuEventCreate', byref(c_void_p()), 0) == 304\n"
        "assert cu.code('cuEventCreate', byref(c_void_p()), 0) == 0",
        SOFTGPU_FAULT=" cuMemAlloc_v2 # 2+ = 2 ; cuEventCreate=304; ",
    )


# Functions whose work is done by a helper that they share with others: each is still told apart.
HELPED = """
cu.call("cuInit", 0)
context = cu.context()
stream, buffer, size, word = cu.stream(), c_uint64(), c_size_t(64), ctypes.create_string_buffer(64)
plain = cu.alloc(64)
def one(name):
    if name.startswith("cuMemAllocAsync"):
        return cu.code(name, byref(buffer), size, stream)
    if name.startswith("cuMemFreeAsync"):
        return cu.code(name, buffer, stream)
    if name.startswith("cuMemcpyHtoDAsync"):
        return cu.code(name, plain, word, size, stream)
    if name.startswith("cuMemcpyHtoD"):
        return cu.code(name, plain, word, size)
    if name.startswith("cuMemcpyDtoH"):
        return cu.code(name, word, plain, size)
    if name.startswith("cuMemsetD8"):
        return cu.code(name, plain, 1, size)
    if name.startswith("cuStreamCreate"):
        return cu.code(name, byref(c_void_p()), 0)
    return cu.code(name, stream) if "Stream" in name else cu.code(name)
names = ["cuMemAllocAsync", "cuMemAllocAsync_ptsz", "cuMemcpyHtoD_v2", "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoH_v2",
         "cuMemsetD8_v2", "cuStreamSynchronize", "cuStreamQuery", "cuCtxSynchronize", "cuStreamCreate",
         "cuMemFreeAsync", "cuMemFreeAsync_ptsz"]
"""


@pytest.mark.parametrize("name", ["cuMemAllocAsync_ptsz", "cuMemcpyHtoD_v2", "cuMemcpyHtoDAsync_v2", "cuMemsetD8_v2",
                                  "cuStreamQuery", "cuMemFreeAsync"])  # fmt: skip
def test_only_the_named_function_fails(name: str) -> None:
    out = check_child(HELPED + "print([n for n in names if one(n) == 777])", SOFTGPU_FAULT=f"{name}#1+=777")
    assert out.strip() == str([name])


def test_a_kernel_faults_by_name_and_by_number_and_the_fault_stays() -> None:
    code = (
        START
        + """
p = cu.alloc(4)
bump, store = cu.function(module, b"bump"), cu.function(module, b"store")
cu.launch(store, [p, c_uint32(5)]); cu.launch(bump, [p, c_uint32(1)])
assert cu.code("cuCtxSynchronize") == 0 and cu.read_u32(p) == 6
cu.launch(store, [p, c_uint32(5)]); cu.launch(bump, [p, c_uint32(1)])
assert cu.code("cuCtxSynchronize") == ILLEGAL_ADDRESS and cu.code("cuCtxSynchronize") == ILLEGAL_ADDRESS
assert alloc_code() == ILLEGAL_ADDRESS
cu.call("cuCtxDestroy_v2", context)
context = cu.context()
cu.call("cuCtxSynchronize")
"""
    )
    check_child(code, SOFTGPU_FAULT="launch(bump)#2=700")
    check_child(code, SOFTGPU_FAULT="launch#4=700")


def test_an_allocation_fails_of_whatever_kind_and_by_size() -> None:
    check_child(
        START
        + """
pool, handle, prop = c_uint64(), c_uint64(), pinned_on()
def create():
    return cu.code("cuMemCreate", byref(handle), c_size_t(GRANULARITY), byref(prop), c_uint64(0))
def from_pool(size):
    return cu.code("cuMemAllocAsync", byref(pool), c_size_t(size), None)
assert [alloc_code(), create(), from_pool(64), alloc_code()] == [0, 0, 2, 0]
assert [alloc_code(4096), from_pool(4096), alloc_code(4097), from_pool(4095)] == [2, 2, 0, 0]
assert create() == 0 and cu.code("cuMemAllocManaged", byref(pool), c_size_t(4096), 1) == 2
""",
        SOFTGPU_FAULT="alloc#3=2; alloc(4096)#1+=2",
    )


def test_a_slow_copy_holds_up_its_stream_only() -> None:
    check_child(
        START
        + """
a, b, host = cu.alloc(4096), cu.alloc(4096), cu.host_alloc(8192)
slow, quick = cu.stream(), cu.stream()
cu.call("cuMemcpyHtoDAsync_v2", a, c_void_p(host), c_size_t(4096), slow)
cu.call("cuMemcpyHtoDAsync_v2", b, c_void_p(host), c_size_t(2048), quick)
cu.call("cuStreamSynchronize", quick)
assert cu.code("cuStreamQuery", slow) == NOT_READY  # ten minutes are left
os._exit(0)
""",
        SOFTGPU_FAULT="copy(4096)=slow:600000",
    )


def test_a_slow_call_holds_up_its_thread_only() -> None:
    check_child(
        START
        + """
thread = threading.Thread(target=lambda: (cu.call("cuCtxSetCurrent", context), cu.alloc(64)), daemon=True)
thread.start()
before, total = c_size_t(), c_size_t()
for _ in range(50):
    cu.call("cuMemGetInfo_v2", byref(before), byref(total))
assert thread.is_alive()
os._exit(0)
""",
        SOFTGPU_FAULT="cuMemAlloc_v2=slow:600000",
    )


@pytest.mark.parametrize("where, code", [("launch(bump)=lost", 999), ("cuCtxSynchronize#2=lost:46", 46)])
def test_a_device_that_falls_off_answers_nothing_any_more(where: str, code: int) -> None:
    check_child(
        START
        + f"""
p = cu.alloc(4)
cu.call("cuCtxSynchronize")
cu.launch(cu.function(module, b"bump"), [p, c_uint32(1)])
assert cu.code("cuCtxSynchronize") == {code}
assert [alloc_code(), cu.code("cuMemFree_v2", p), cu.code("cuCtxDestroy_v2", context)] == [{code}] * 3
assert cu.code("cuInit", 0) == cu.code("cuDeviceGet", byref(c_int()), 0) == {code}
assert cu.code("cuCtxCreate_v2", byref(c_void_p()), 0, 1) == {code}
name = c_char_p()
assert cu.code("cuGetErrorName", {code}, byref(name)) == 0 and name.value
""",
        SOFTGPU_FAULT=where,
    )


def test_a_running_kernel_ends_when_the_device_falls_off() -> None:
    check_child(
        START
        + """
flag = cu.alloc(4)
cu.write(flag, bytes(4))
cu.launch(cu.function(module, b"await_flag"), [flag], stream=cu.stream())  # nobody ever writes the flag
assert cu.code("cuEventCreate", byref(c_void_p()), 0) == 999
assert cu.code("cuCtxSynchronize") == 999
""",
        SOFTGPU_FAULT="cuEventCreate=lost",
    )
