"""SOFTGPU_RECORD=1: machine code is accepted, its kernels and variables can be asked for, launches have no effect."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import zlib
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p

import pytest

LIBCUDA = os.environ.get("SOFTGPU_LIBCUDA", os.path.join(os.path.dirname(__file__), "../../build/softgpu/libcuda.so.1"))
KERNEL, HELPER, VARIABLE = "scale", "helper", "table"
PARAMS = ((0, 8), (8, 4), (16, 40))  # offset, bytes


def cubin() -> bytes:
    """An ELF64 file with a kernel of three parameters, a device function and a variable, laid out like NVIDIA's."""
    strings = b"\0" + b"\0".join(n.encode() for n in (KERNEL, HELPER, VARIABLE)) + b"\0"
    at = {n: strings.index(n.encode() + b"\0") for n in (KERNEL, HELPER, VARIABLE)}
    info = b"".join(
        struct.pack("<BBHIHHI", 4, 0x17, 12, 0, ordinal, offset, size << 18 | 0x1F000)
        for ordinal, (offset, size) in reversed(list(enumerate(PARAMS)))
    )
    symbols = b"\0" * 24 + b"".join(
        struct.pack("<IBBHQQ", at[name], kind, other, section, 0, size)
        for name, kind, other, section, size in (
            (KERNEL, 0x12, 0x10, 4, 128),
            (HELPER, 0x12, 0x00, 4, 128),
            (VARIABLE, 0x11, 0x00, 5, 256),
        )
    )
    sections = [
        ("", 0, b"", 0, 0),
        (".symtab", 2, symbols, 2, 0),
        (".strtab", 3, strings, 0, 0),
        (f".nv.info.{KERNEL}", 0x70000000, info, 0, 0),
        (f".text.{KERNEL}", 1, b"\0" * 128, 0, 0),
        (".nv.global", 8, b"", 0, 256),
        (".shstrtab", 3, b"", 0, 0),
    ]
    names = b"\0".join(s[0].encode() for s in sections) + b"\0"
    body, headers, offset = b"", b"", 64
    for name, kind, data, link, size in sections:
        data = names if name == ".shstrtab" else data
        where = names.index(b"\0" + name.encode() + b"\0") + 1 if name else 0
        headers += struct.pack("<IIQQQQIIQQ", where, kind, 0, 0, offset, len(data) or size, link, 0, 1, 0)
        body += data
        offset += len(data)
    head = b"\x7fELF\x02\x01\x01\x33\x07" + b"\0" * 7
    return head + struct.pack("<HHIQQQIHHHHHH", 2, 190, 1, 0, 0, offset, 0, 64, 0, 0, 64, 7, 6) + body + headers


def container(code: bytes, sm: int, flags: int = 0x11) -> bytes:
    payload = code + b"\0" * (-len(code) % 8)
    entry = struct.pack("<HHIQIIHHIIIQQQ", 2, 0x101, 64, len(payload), 0, 0, 8, 1, sm, 0, 0, flags, 0, 0)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entry) + len(payload)) + entry + payload


def look(image: bytes) -> str:
    """What the driver says about the image, one line for each question. Runs in a process of its own."""
    cu = ctypes.CDLL(LIBCUDA)
    out = []
    context, module, function, address, size = c_void_p(), c_void_p(), c_void_p(), c_uint64(), c_size_t()
    assert (
        cu.cuInit(0) == 0 and cu.cuDevicePrimaryCtxRetain(byref(context), 0) == 0 and cu.cuCtxSetCurrent(context) == 0
    )
    out.append(f"load {cu.cuModuleLoadData(byref(module), c_char_p(image))}")
    out.append(f"helper {cu.cuModuleGetFunction(byref(function), module, HELPER.encode())}")
    out.append(f"kernel {cu.cuModuleGetFunction(byref(function), module, KERNEL.encode())}")
    for index in range(4):
        offset, bytes_ = c_size_t(), c_size_t()
        code = cu.cuFuncGetParamInfo(function, c_size_t(index), byref(offset), byref(bytes_))
        out.append(f"param {index} {code} {offset.value} {bytes_.value}")
    code = cu.cuModuleGetGlobal_v2(byref(address), byref(size), module, VARIABLE.encode())
    out.append(f"variable {code} {size.value}")
    values = (c_uint64 * 8)()
    params = (c_void_p * 3)(*[ctypes.addressof(values)] * 3)
    out.append(f"launch {cu.cuLaunchKernel(function, 1 << 20, 65535, 1, 1024, 1, 1, 0, None, params, None)}")
    out.append(f"sync {cu.cuCtxSynchronize()}")
    major = c_int()
    cu.cuDeviceGetAttribute(byref(major), 75, 0)
    out.append(f"major {major.value}")
    return "\n".join(out)


def run(image: bytes, record: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, __file__],
        input=image,
        env={**os.environ, "SOFTGPU_RECORD": record},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


pytestmark = pytest.mark.softgpu_only

WHOLE = [
    "load 0",
    "helper 500",
    "kernel 0",
    "param 0 0 0 8",
    "param 1 0 8 4",
    "param 2 0 16 40",
    "param 3 1 0 0",
    "variable 0 256",
    "launch 0",
    "sync 0",
    "major 9",
]


@pytest.mark.parametrize(
    "image",
    [cubin(), container(cubin(), 90), container(cubin(), 90, 0x100011)],
    ids=["cubin", "container", "exact architecture"],
)
def test_kernels_of_machine_code_are_found_and_do_nothing(image: bytes) -> None:
    assert run(image, "1") == WHOLE


def test_without_it_machine_code_is_refused() -> None:
    assert run(cubin(), "0")[0] == "load 209"


def test_machine_code_for_other_devices_is_refused() -> None:
    assert run(container(cubin(), 80), "1")[0] == "load 209"


def test_damaged_machine_code_does_not_crash() -> None:
    whole = cubin()
    seed = zlib.crc32(whole)
    for _ in range(12):
        seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
        damaged = bytearray(whole)
        damaged[16 + seed % (len(whole) - 16)] ^= 0xFF
        assert run(container(bytes(damaged), 90), "1")[-1] == "major 9"


if __name__ == "__main__":
    print(look(sys.stdin.buffer.read()))
