"""A managed variable's address is the driver's: what the program has mapped there is left alone. A forked child gets
a copy of what its parent had."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from orion_client.libraries import client_folder
from orion_client.private_server import PrivateServer

PROGRAM = """
import ctypes as c, os
cuda, libc = c.CDLL("libcuda.so.1"), c.CDLL(None)
libc.mmap.restype = c.c_void_p
ptx = b".version 7.0 .target sm_70 .address_size 64 .visible .global .attribute(.managed) .u32 values[4] = {11, 22};"
library, address = c.c_void_p(), c.c_uint64()

def look():
    assert cuda.cuLibraryLoadData(c.byref(library), ptx, None, None, 0, None, None, 0) == 0
    return cuda.cuLibraryGetManaged(c.byref(address), None, library, b"values")

assert cuda.cuInit(0) == 0 and look() == 0
values = (c.c_uint32 * 4).from_address(address.value)
values[2] = 99
child = os.fork()
if child == 0:
    seen = list(values)
    values[0] = 1234
    os._exit(seen != [11, 22, 99, 0])
print("child", os.waitpid(child, 0)[1], values[0])
assert cuda.cuLibraryUnload(library) == 0
before, page = address.value, c.c_void_p(address.value & ~4095)
ANONYMOUS_NOREPLACE = 0x22 | 0x100000
assert libc.mmap(page, c.c_size_t(4096), 3, ANONYMOUS_NOREPLACE, -1, c.c_long(0)) == page.value  # the pages are gone
code = look()
while code == 0 and address.value != before:  # until the driver takes the same address again
    code = look()
print("taken", code, (c.c_char * 16).from_address(before).raw == bytes(16))
libc.munmap(page, c.c_size_t(4096))
again = cuda.cuLibraryGetManaged(c.byref(address), None, library, b"values")
print("free", again, list((c.c_uint32 * 4).from_address(address.value)))
"""


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_address(transport: str) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ORION_", "CUDA_"))}
    with PrivateServer("softgpu") as server:
        clean |= {"LD_LIBRARY_PATH": str(client_folder()), "ORION_SERVER": server.address, "ORION_TRANSPORT": transport}
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=clean, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["child 0 11", "taken 801 True", "free 0 [11, 22, 0, 0]"], done.stderr
    assert "this process uses its address for something else" in done.stderr
