"""Over tcp with ORION_COHERENT=off nothing would keep managed memory right: it is not offered, and says so."""

from __future__ import annotations

import os
import subprocess
import sys

from orion_client.libraries import client_folder
from orion_client.private_server import PrivateServer

PROGRAM = """
import ctypes as c
cuda = c.CDLL("libcuda.so.1")
context, address, value = c.c_void_p(), c.c_uint64(), c.c_int(9)
codes = [cuda.cuInit(0), cuda.cuDevicePrimaryCtxRetain(c.byref(context), 0), cuda.cuCtxSetCurrent(context)]
codes.append(cuda.cuDeviceGetAttribute(c.byref(value), 83, 0))
ptx = b".version 7.0 .target sm_70 .address_size 64 .visible .global .attribute(.managed) .u32 v;"
library = c.c_void_p()
codes.append(cuda.cuLibraryLoadData(c.byref(library), ptx, None, None, 0, None, None, 0))
found = cuda.cuLibraryGetManaged(c.byref(address), None, library, b"v")
print(codes, value.value, cuda.cuMemAllocManaged(c.byref(address), c.c_size_t(4096), 1), found)
"""


def run(server: PrivateServer, transport: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ORION_", "CUDA_"))}
    clean |= {"LD_LIBRARY_PATH": str(client_folder()), "ORION_SERVER": server.address}
    clean |= {"ORION_TRANSPORT": transport, "ORION_COHERENT": "off"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=clean, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() + done.stderr


def test_off() -> None:
    with PrivateServer("softgpu") as server:
        assert run(server, "shm") == "[0, 0, 0, 0, 0] 1 0 0"
        refused = run(server, "tcp")
        assert refused.startswith("[0, 0, 0, 0, 0] 0 801 801")
        assert "no managed memory over tcp with ORION_COHERENT=off" in refused
        assert "the __managed__ variable v at 0x" in refused
