"""A network that is emulated: answers take its time, results stay right."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
NUMBA = str(ROOT / "examples" / "vector_add_numba.py")
ROUND_TRIP_US = 20000

# A call that asks the server: its shortest time of several is what cannot be undercut.
ASK = """
import ctypes, time
cu = ctypes.CDLL("libcuda.so.1")
context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
assert cu.cuInit(0) == 0 and cu.cuCtxCreate_v2(ctypes.byref(context), 0, 0) == 0
times = []
for _ in range(3):
    began = time.perf_counter()
    assert cu.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
    times.append(time.perf_counter() - began)
assert 0 < free.value <= total.value
print(min(times))
"""

# Large and small copies in both directions over a slow wire: content, and the time that the wire alone takes.
COPY = """
import ctypes, os, time
cu = ctypes.CDLL("libcuda.so.1")
context, memory = ctypes.c_void_p(), ctypes.c_uint64()
size = 8 << 20
assert cu.cuInit(0) == 0 and cu.cuCtxCreate_v2(ctypes.byref(context), 0, 0) == 0
assert cu.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(size)) == 0
sent, got = os.urandom(size), ctypes.create_string_buffer(size)
began = time.perf_counter()
assert cu.cuMemcpyHtoD_v2(memory, sent, ctypes.c_size_t(size)) == 0
small = os.urandom(1000)
assert cu.cuMemcpyHtoD_v2(ctypes.c_uint64(memory.value + 5000), small, ctypes.c_size_t(1000)) == 0
assert cu.cuMemcpyDtoH_v2(got, memory, ctypes.c_size_t(size)) == 0
print(time.perf_counter() - began)
assert got.raw == sent[:5000] + small + sent[6000:]
"""


def test_an_answer_takes_a_round_trip(server, run):
    result = run(server.address, "tcp", sys.executable, "-c", ASK, ORION_EMULATE_RTT_US=str(ROUND_TRIP_US))
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) >= ROUND_TRIP_US / 1e6


@pytest.mark.parametrize("stripes", ["0", "1", "3"])
def test_copies_take_the_time_of_the_wire(server, run, nothing_left, stripes):
    network = {"ORION_EMULATE_RTT_US": "1000", "ORION_EMULATE_GBIT": "1", "ORION_TCP_STRIPES": stripes}
    result = run(server.address, "tcp", sys.executable, "-c", COPY, **network)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) >= 2 * (8 << 20) * 8 / 1e9
    nothing_left(server.address)


def test_a_program_is_right(server, run, nothing_left):
    result = run(server.address, "tcp", sys.executable, NUMBA, "50000", ORION_EMULATE_RTT_US=str(ROUND_TRIP_US))
    assert result.returncode == 0, result.stderr
    assert "equal to numpy" in result.stdout
    nothing_left(server.address)


@pytest.mark.parametrize("name", ["ORION_EMULATE_RTT_US", "ORION_EMULATE_GBIT"])
def test_zmq_lanes_refuse(server, run, name):
    result = run(server.address, "tcp", sys.executable, "-c", ASK, ORION_TCP_LANES="zmq", **{name: "100"})
    assert result.returncode != 0
    assert "need plain TCP lanes" in result.stderr
