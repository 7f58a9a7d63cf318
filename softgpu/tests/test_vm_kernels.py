"""Whole kernels, compiled by nvcc and Numba, against numpy."""

from __future__ import annotations

import ctypes
import math
import re
from pathlib import Path

import numpy as np
import pytest

from softgpu.tests import vm

PTX = Path(__file__).resolve().parent / "ptx"
rng = np.random.default_rng(1)


def load(name: str) -> vm.Machine:
    return vm.Machine((PTX / f"{name}.ptx").read_text())


@pytest.fixture(scope="module")
def basic() -> vm.Machine:
    return load("basic")


def floats(n: int, scale: float = 1.0) -> np.ndarray:
    return ((rng.random(n) - 0.5) * 2 * scale).astype(np.float32)


def test_every_kernel_decodes(basic: vm.Machine) -> None:
    assert len(basic.kernel_names()) >= 25
    for name in basic.kernel_names():
        basic.kernel(name)


def test_vecadd_with_partial_block(basic: vm.Machine) -> None:
    a, b = floats(1000), floats(1000)
    c = basic.buffer(np.zeros(1000, np.float32))
    basic.run("vecadd", 4, 256, basic.buffer(a), basic.buffer(b), c, 1000)
    assert np.array_equal(c.get(), a + b)


def test_saxpy_is_fused(basic: vm.Machine) -> None:
    x, y = floats(5000), floats(5000)
    out = basic.buffer(y)
    basic.run("saxpy_stride", 3, 128, 1.7, basic.buffer(x), out, 5000)
    exact = np.float64(np.float32(1.7)) * x.astype(np.float64) + y  # the product is exact in f64
    assert np.array_equal(out.get(), exact.astype(np.float32))


def test_block_reduce(basic: vm.Machine) -> None:
    x = rng.integers(-50, 50, 4 * 256).astype(np.float32)
    out = basic.buffer(np.zeros(4, np.float32))
    basic.run("block_reduce", 4, 256, basic.buffer(x), out)
    assert np.array_equal(out.get(), x.reshape(4, 256).sum(1))


def test_warp_reduce(basic: vm.Machine) -> None:
    x = rng.integers(-1000, 1000, 256, dtype=np.int32)
    down, butterfly = basic.buffer(np.zeros(8, np.int32)), basic.buffer(np.zeros(256, np.int32))
    basic.run("warp_reduce", 2, 128, basic.buffer(x), down, butterfly)
    sums = x.reshape(8, 32).sum(1)
    assert np.array_equal(down.get(), sums)
    assert np.array_equal(butterfly.get(), np.repeat(sums, 32))


def test_histogram_atomics(basic: vm.Machine) -> None:
    x = rng.integers(0, 1 << 32, 20000, dtype=np.uint32)
    counts, sums = basic.buffer(np.zeros(16, np.uint32)), basic.buffer(np.zeros(16, np.float32))
    top, by_cas = basic.buffer(np.zeros(1, np.uint32)), basic.buffer(np.zeros(1, np.uint32))
    basic.run("histogram", 79, 256, basic.buffer(x), 20000, counts, sums, top, by_cas)
    expected = np.bincount(x % 16, minlength=16)
    assert np.array_equal(counts.get(), expected)
    assert np.array_equal(sums.get(), expected)
    assert top.get()[0] == x.max()
    assert by_cas.get()[0] == (x & 3).sum()


def test_matmul(basic: vm.Machine) -> None:
    a, b = rng.integers(-9, 9, (64, 64)).astype(np.float32), rng.integers(-9, 9, (64, 64)).astype(np.float32)
    c = basic.buffer(np.zeros((64, 64), np.float32))
    basic.run("matmul", (4, 4), (16, 16), basic.buffer(a), basic.buffer(b), c, 64)
    assert np.array_equal(c.get(), a @ b)


def test_math_f32(basic: vm.Machine) -> None:
    x = np.concatenate([floats(500, 10), floats(500, 1e5)])
    out = basic.buffer(np.zeros((7, 1000), np.float32))
    basic.run("math_f32", 4, 256, basic.buffer(x), out, 1000)
    d = x.astype(np.float64)
    expected = [
        np.sin(d),
        np.exp(d * np.float32(0.001)),
        np.log(abs(d) + 1),
        (abs(d) + 0.5) ** np.float64(np.float32(0.7)),
        np.tanh(d),
        np.sqrt(abs(d)),
        1 / (abs(d) + 1),
    ]
    for got, want in zip(out.get(), expected, strict=False):
        np.testing.assert_allclose(got, want.astype(np.float32), rtol=2e-5, atol=1e-6)


def test_math_f64(basic: vm.Machine) -> None:
    x = np.concatenate([(rng.random(500) - 0.5) * 20, (rng.random(500) - 0.5) * 2e7])
    out = basic.buffer(np.zeros((7, 1000)))
    basic.run("math_f64", 4, 256, basic.buffer(x), out, 1000)
    expected = [
        np.sin(x),
        np.exp(x * 1e-6),
        np.log(abs(x) + 1),
        (abs(x) + 0.5) ** 0.7,
        np.array([math.erf(v * 1e-6) for v in x]),
        1 / (abs(x) + 1),
        np.fmod(x, 3.7),
    ]
    for got, want in zip(out.get(), expected, strict=False):
        np.testing.assert_allclose(got, want, rtol=4e-15, atol=1e-15)


def test_int64(basic: vm.Machine) -> None:
    n = 500
    a = rng.integers(-(1 << 63), (1 << 63) - 1, n, dtype=np.int64)
    b = rng.integers(-(1 << 40), 1 << 40, n, dtype=np.int64) | 1
    b[:100] = rng.integers(1, 100, 100)
    out = basic.buffer(np.zeros((6, n), np.int64))
    basic.run("int64_ops", 2, 256, basic.buffer(a), basic.buffer(b), out, n)

    def wrap(v: int) -> int:
        return (v + (1 << 63)) % (1 << 64) - (1 << 63)

    pairs = [(int(x), int(y)) for x, y in zip(a, b, strict=False)]
    quotients = [abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1) for x, y in pairs]
    expected = [
        [wrap(x * y) for x, y in pairs],
        [x * y >> 64 for x, y in pairs],
        quotients,
        [x - q * y for (x, y), q in zip(pairs, quotients, strict=False)],
        [bin(x % (1 << 64)).count("1") for x, _ in pairs],
        [64 - (x % (1 << 64)).bit_length() for x, _ in pairs],
    ]
    for got, want in zip(out.get(), expected, strict=False):
        assert got.tolist() == want


def test_half(basic: vm.Machine) -> None:
    n = 2000
    a, b = (rng.standard_normal(n) * 30).astype(np.float16), (rng.standard_normal(n) * 30).astype(np.float16)
    out = basic.buffer(np.zeros((4, n), np.float16))
    basic.run("half_ops", 8, 256, basic.buffer(a), basic.buffer(b), out, n)
    d, e = a.astype(np.float64), b.astype(np.float64)
    for got, want in zip(out.get(), [d + e, d * e, d * e + d, d * 3], strict=False):
        assert np.array_equal(got, want.astype(np.float16))


def test_local_array(basic: vm.Machine) -> None:
    x = rng.integers(0, 100, 64, dtype=np.int32)
    out = basic.buffer(np.zeros(64, np.int32))
    basic.run("local_array", 1, 64, basic.buffer(x), out, 64)
    for t, got in enumerate(out.get()):
        a = [int(x[(t + i) % 64]) for i in range(32)]
        s = 0
        for i in range(32):
            s = s * 3 + a[(int(x[t]) + i) & 31]
        assert int(got) % (1 << 32) == s % (1 << 32)


def test_recursion(basic: vm.Machine) -> None:
    out, calls = basic.buffer(np.zeros(14, np.int32)), basic.buffer(np.zeros(1, np.int32))
    basic.run("recursion", 1, 14, out, calls)
    fib = [0, 1]
    while len(fib) < 14:
        fib.append(fib[-1] + fib[-2])
    assert out.get().tolist() == fib

    def count(n: int) -> int:
        return 1 if n < 2 else 1 + count(n - 1) + count(n - 2)

    assert calls.get()[0] == sum(count(n) for n in range(14))


def test_function_pointers_diverge(basic: vm.Machine) -> None:
    which = rng.integers(0, 3, 64, dtype=np.int32)
    out = basic.buffer(np.zeros(64, np.int32))
    basic.run("function_pointers", 1, 64, basic.buffer(which), out)
    t = np.arange(64)
    assert np.array_equal(out.get(), np.choose(which, [t + 7, t * 7, t - 7]))


def test_switch(basic: vm.Machine) -> None:
    v = np.arange(32, dtype=np.int32) % 8 - 1
    out = basic.buffer(np.zeros(32, np.int32))
    basic.run("switch_case", 1, 32, basic.buffer(v), out)
    table = {0: 10, 1: 21, 2: 5, 3: 48, 4: -5, 5: 125}
    assert out.get().tolist() == [table.get(int(x), -1) for x in v]


def test_dynamic_shared(basic: vm.Machine) -> None:
    x = rng.integers(0, 100, 96, dtype=np.int32)
    out = basic.buffer(np.zeros(96, np.int32))
    basic.run("dynamic_shared", 1, 96, basic.buffer(x), out, shared=96 * 4)
    assert np.array_equal(out.get(), x[::-1])
    with pytest.raises(vm.Fault) as e:
        basic.run("dynamic_shared", 1, 96, basic.buffer(x), out, shared=95 * 4)
    assert e.value.code == 700


def test_constants_and_globals(basic: vm.Machine) -> None:
    out = basic.buffer(np.zeros(8, np.float32))
    address, size = basic.global_address("counter")
    assert size == 4
    before = np.ctypeslib.as_array((ctypes.c_int32 * 1).from_address(address))
    start = int(before[0])
    basic.run("constant_and_global", 1, 8, out)
    assert out.get().tolist() == [1.5, 2.5, -3.5, 4.5] * 2
    assert int(before[0]) == start + 10
    assert basic.info("constant_and_global")["const_bytes"] == 16


def test_votes(basic: vm.Machine) -> None:
    x = rng.integers(-2, 95, 32, dtype=np.int32)
    x[3] = 94
    out = basic.buffer(np.zeros(192, np.uint32))
    basic.run("votes", 1, 32, basic.buffer(x), out)
    got = out.get().reshape(6, 32)
    assert (got[0] == sum(1 << i for i in range(32) if x[i] > 0)).all()
    assert (got[1] == 1).all()
    assert (got[2] == (x > -1).all()).all()
    assert got[3].tolist() == [sum(1 << i for i in range(32) if x[i] & 3 == x[t] & 3) for t in range(32)]
    assert (got[4] == np.uint32(x.sum() % (1 << 32))).all()
    assert (got[5][1::2] == 0xAAAAAAAA).all()


def test_spinlock(basic: vm.Machine) -> None:
    lock, value = basic.buffer(np.zeros(1, np.int32)), basic.buffer(np.zeros(1, np.int32))
    basic.run("spinlock", 6, 64, lock, value)
    assert value.get()[0] == 6 * 64


def test_barrier_reductions(basic: vm.Machine) -> None:
    x = (np.arange(80) % 6).astype(np.int32)
    out = basic.buffer(np.zeros(240, np.int32))
    basic.run("sync_counts", 1, 80, basic.buffer(x), out)
    got = out.get().reshape(3, 80)
    assert (got[0] == (x > 2).sum()).all() and (got[1] == 1).all() and (got[2] == 1).all()


def test_printf(basic: vm.Machine) -> None:
    basic.run("print_some", 1, 4, 255)
    assert basic.printed == (
        "thread 0 of 4: text 318.75|-12345678646|ff|A%\nthread 1 of 4: text 318.75|-12345678646|ff|B%\n"
    )


def test_assert_and_trap(basic: vm.Machine) -> None:
    good, bad = np.ones(32, np.int32), np.ones(32, np.int32)
    bad[7] = -1
    basic.run("check_positive", 1, 32, basic.buffer(good))
    with pytest.raises(vm.Fault) as e:
        basic.run("check_positive", 1, 32, basic.buffer(bad))
    assert e.value.code == 710 and "in[threadIdx.x] > 0" in e.value.text and "thread: [7,0,0]" in e.value.text
    basic.run("trap_if", 1, 32, basic.buffer(good))
    good[31] = 3
    with pytest.raises(vm.Fault) as e:
        basic.run("trap_if", 1, 32, basic.buffer(good))
    assert e.value.code == 719


def test_struct_parameter(basic: vm.Machine) -> None:
    raw = np.zeros(1, np.dtype([("a", "i4"), ("pad", "i4"), ("b", "f8"), ("c", "f4", 3), ("pad2", "i4")]))
    raw["a"], raw["b"], raw["c"] = 3, 0.5, [1, 2, 4]
    out = basic.buffer(np.zeros(6))
    basic.run("struct_param", 1, 6, raw.tobytes(), out)
    assert out.get().tolist() == [4.5, 5.5, 7.5] * 2


def test_warp_barrier_in_divergent_code(basic: vm.Machine) -> None:
    out = basic.buffer(np.zeros(32, np.int32))
    basic.run("warp_barrier", 1, 32, out)
    s = [t * 2 if t < 16 else t * 3 for t in range(32)]
    assert out.get().tolist() == s[::-1]


def test_device_heap(basic: vm.Machine) -> None:
    slots, out = basic.buffer(np.zeros(40, np.uint64)), basic.buffer(np.zeros(40, np.int32))
    basic.run("heap", 1, 40, slots, out)
    assert out.get().tolist() == [8 * t + 28 for t in range(40)]


def test_grid_barrier() -> None:
    m = load("grid")
    start = rng.integers(0, 1000, 8 * 64, dtype=np.int32)
    data = m.buffer(start)
    m.run("rotate", 8, 64, data, 5, cooperative=True)
    assert np.array_equal(data.get(), np.roll(start, -5) + 5)


def numba_array(buffer: vm.Buffer) -> list:
    """The arguments into which Numba unpacks an array."""
    n, size = int(np.prod(buffer.shape)), buffer.dtype.itemsize
    strides = [size * int(np.prod(buffer.shape[i + 1 :])) for i in range(len(buffer.shape))]
    return [0, 0, n, size, buffer, *buffer.shape, *strides]


def numba_kernel(m: vm.Machine) -> str:
    (name,) = m.kernel_names()
    return name


def test_numba_vecadd() -> None:
    m = load("numba_vecadd")
    a, b = floats(300), floats(300)
    c = m.buffer(np.zeros(300, np.float32))
    args = numba_array(m.buffer(a)) + numba_array(m.buffer(b)) + numba_array(c)
    m.run(numba_kernel(m), 3, 128, *args)
    assert np.array_equal(c.get(), a + b)


def test_numba_matmul() -> None:
    m = load("numba_matmul")
    a, b = rng.integers(-9, 9, (32, 32)).astype(np.float32), rng.integers(-9, 9, (32, 32)).astype(np.float32)
    c = m.buffer(np.zeros((32, 32), np.float32))
    args = numba_array(m.buffer(a)) + numba_array(m.buffer(b)) + numba_array(c)
    m.run(numba_kernel(m), (4, 4), (8, 8), *args)
    assert np.array_equal(c.get(), a @ b)


def test_numba_warp_sum_and_atomics() -> None:
    m = load("numba_warp_sum")
    x = rng.integers(-99, 99, 256, dtype=np.int32)
    out = m.buffer(np.zeros(1, np.int32))
    m.run(numba_kernel(m), 2, 128, *numba_array(m.buffer(x)), *numba_array(out))
    assert out.get()[0] == x.sum()
    m = load("numba_atomics")
    v = rng.integers(0, 1 << 31, 1000, dtype=np.uint32)
    counts, top, total = m.buffer(np.zeros(10, np.int32)), m.buffer(np.zeros(1, np.uint32)), m.buffer(np.zeros(1))
    args = [*numba_array(m.buffer(v)), *numba_array(counts), *numba_array(top), *numba_array(total)]
    m.run(numba_kernel(m), 4, 256, *args)
    assert np.array_equal(counts.get(), np.bincount(v % 10, minlength=10))
    assert top.get()[0] == v.max() and total.get()[0] == float(v.sum(dtype=np.uint64))


def test_numba_maths() -> None:
    m = load("numba_maths")
    x = (rng.random(200) - 0.5) * 20
    out = m.buffer(np.zeros((7, 200)))
    m.run(numba_kernel(m), 1, 256, *numba_array(m.buffer(x)), *numba_array(out))
    expected = [
        np.sin(x),
        np.exp(x),
        np.log(abs(x) + 1),
        np.sqrt(abs(x)),
        np.arctan2(x, 2),
        abs(x) ** 1.5,
        np.array([math.lgamma(abs(v) + 0.5) for v in x]),
    ]
    for got, want in zip(out.get(), expected, strict=False):
        np.testing.assert_allclose(got, want, rtol=1e-14, atol=1e-14)


def test_numba_print() -> None:
    m = load("numba_printing")
    m.run(numba_kernel(m), 1, 32, 42)
    assert re.fullmatch(r"n is 42 2\.50*\n", m.printed)
