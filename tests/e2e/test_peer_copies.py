"""Copies between two devices of one server: what is issued before and after them on either device is ordered."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from orion_client.libraries import client_folder
from orion_client.private_server import PrivateServer
from tests.e2e.transports import TRANSPORTS

PROGRAM = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
def ok(code):
    assert code == 0, code
ok(cuda.cuInit(0))
size, contexts, blocks, wrong = 3 << 20, [], [], 0
for ordinal in range(2):
    context, block = ctypes.c_void_p(), ctypes.c_uint64()
    ok(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), ordinal))
    ok(cuda.cuCtxSetCurrent(context))
    ok(cuda.cuMemAlloc_v2(ctypes.byref(block), ctypes.c_size_t(2 * size)))
    contexts.append(context), blocks.append(block)
host, n = (ctypes.c_ubyte * size)(), ctypes.c_size_t(size)
for i in range(40):
    here, there = i % 2, 1 - i % 2
    ok(cuda.cuCtxSetCurrent(contexts[here]))
    ok(cuda.cuMemsetD8_v2(blocks[here], ctypes.c_ubyte(i + 1), n))
    target = ctypes.c_uint64(blocks[there].value + size)
    if sys.argv[1] == "cuMemcpyPeer":
        ok(cuda.cuMemcpyPeer(target, contexts[there], blocks[here], contexts[here], n))
    else:
        ok(getattr(cuda, sys.argv[1])(target, blocks[here], n))
    ok(cuda.cuCtxSetCurrent(contexts[there]))
    ok(cuda.cuMemcpyDtoH_v2(host, target, n))
    wrong += bytes(host) != bytes([i + 1]) * size
print("wrong", wrong)
"""


@pytest.fixture(scope="module")
def two_devices() -> Iterator[PrivateServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTGPU_DEVICES", "2")
        patch.setenv("SOFTGPU_MEMORY_MIB", "256")
        server = PrivateServer("softgpu")
    yield server
    server.stop()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("call", ["cuMemcpyPeer", "cuMemcpyDtoD_v2", "cuMemcpy"])
def test_later_work_sees_what_was_copied(two_devices: PrivateServer, call: str, transport: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ORION_", "CUDA_"))}
    environment |= {"ORION_SERVER": two_devices.address, "ORION_TRANSPORT": transport,
                    "LD_LIBRARY_PATH": str(client_folder())}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", PROGRAM, call], env=environment, capture_output=True, text=True,
                          timeout=150)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "wrong 0\n"), done.stderr
