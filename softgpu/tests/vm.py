"""Runs PTX on the software GPU's machine without a driver, for the tests in this folder."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = Path(os.environ.get("SOFTGPU_VM_BUILD", ROOT / "build" / "softgpu_vm"))


def library() -> ctypes.CDLL:
    """The test library, built first unless SOFTGPU_VM_TEST names one."""
    path = os.environ.get("SOFTGPU_VM_TEST")
    if not path:
        BUILD.parent.mkdir(parents=True, exist_ok=True)
        with BUILD.with_suffix(".lock").open("w") as lock:  # several test processes begin at the same time
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (BUILD / "CMakeCache.txt").exists():
                configure = ["cmake", "-S", str(ROOT / "softgpu/src/vm"), "-B", str(BUILD)]
                subprocess.run(configure + ["-DSOFTGPU_VM_TEST=ON", "-DCMAKE_BUILD_TYPE=Release"], check=True)
            subprocess.run(["cmake", "--build", str(BUILD), "-j2"], check=True, stdout=subprocess.DEVNULL)
        path = str(BUILD / "libsoftgpu_vm_test.so")
    lib = ctypes.CDLL(path)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for name, result, args in [
        ("sgt_open", pointer, []),
        ("sgt_close", None, [pointer]),
        ("sgt_instruction_set", ctypes.c_char_p, []),
        ("sgt_alloc", pointer, [pointer, size]),
        ("sgt_free", None, [pointer, pointer]),
        ("sgt_text", ctypes.c_char_p, [pointer]),
        ("sgt_printed", ctypes.c_char_p, [pointer]),
        ("sgt_cancel", None, [pointer, ctypes.c_int]),
        ("sgt_link", ctypes.c_int, [pointer, pointer, size]),
        ("sgt_kernel", pointer, [pointer, ctypes.c_char_p, pointer]),
        ("sgt_kernel_count", size, [pointer]),
        ("sgt_kernel_name", ctypes.c_char_p, [pointer, size]),
        ("sgt_kernel_info", None, [pointer, pointer]),
        ("sgt_param", None, [pointer, ctypes.c_uint32, pointer]),
        ("sgt_global", ctypes.c_uint64, [pointer, ctypes.c_char_p, pointer]),
        (
            "sgt_run",
            ctypes.c_int,
            [pointer, pointer, pointer, pointer, ctypes.c_uint32, ctypes.c_int, pointer, pointer],
        ),
    ]:
        function = getattr(lib, name)
        function.restype = result
        function.argtypes = args
    return lib


LIB = library()


class PtxError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class Fault(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class Buffer:
    """Device memory that starts with a copy of an array."""

    def __init__(self, machine: Machine, array: np.ndarray) -> None:
        self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes
        self.address: int = LIB.sgt_alloc(machine.session, max(array.nbytes, 1))
        ctypes.memmove(self.address, np.ascontiguousarray(array).ctypes.data, array.nbytes)

    def get(self) -> np.ndarray:
        out = np.empty(self.shape, self.dtype)
        ctypes.memmove(out.ctypes.data, self.address, self.nbytes)
        return out


class Machine:
    """One program with its memory."""

    def __init__(self, *texts: str) -> None:
        self.session = LIB.sgt_open()
        array = (ctypes.c_char_p * len(texts))(*[t.encode() for t in texts])
        code = LIB.sgt_link(self.session, array, len(texts))
        self.steps = 0
        self.printed = ""
        if code:
            text = LIB.sgt_text(self.session).decode()
            self.close()
            raise PtxError(code, text)

    def close(self) -> None:
        if self.session:
            LIB.sgt_close(self.session)
            self.session = None

    def __del__(self) -> None:
        self.close()

    def buffer(self, array: np.ndarray) -> Buffer:
        return Buffer(self, array)

    def kernel_names(self) -> list[str]:
        return [LIB.sgt_kernel_name(self.session, i).decode() for i in range(LIB.sgt_kernel_count(self.session))]

    def kernel(self, name: str) -> int:
        code = ctypes.c_int()
        kernel = LIB.sgt_kernel(self.session, name.encode(), ctypes.byref(code))
        if not kernel:
            raise PtxError(code.value, LIB.sgt_text(self.session).decode())
        return int(kernel)

    def info(self, name: str) -> dict[str, int]:
        out = (ctypes.c_uint32 * 6)()
        LIB.sgt_kernel_info(self.kernel(name), out)
        keys = ("param_bytes", "static_shared_bytes", "local_bytes", "const_bytes", "max_threads", "params")
        return dict(zip(keys, out, strict=False))

    def global_address(self, name: str) -> tuple[int, int]:
        size = ctypes.c_size_t()
        address = LIB.sgt_global(self.session, name.encode(), ctypes.byref(size))
        return address, size.value

    def run(
        self,
        name: str,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        *args: Any,
        shared: int = 0,
        cooperative: bool = False,
    ) -> None:
        """Arguments: Buffer, int (packed to the parameter's size), float (f32 or f64 by size), bytes, numpy scalar."""
        kernel = self.kernel(name)
        info = self.info(name)
        params = bytearray(max(info["param_bytes"], 1))
        assert info["params"] == len(args), "wrong number of arguments"
        place = (ctypes.c_uint32 * 3)()
        for i, arg in enumerate(args):
            LIB.sgt_param(kernel, i, place)
            offset, size = place[0], place[1]
            if isinstance(arg, Buffer):
                raw = struct.pack("<Q", arg.address)
            elif isinstance(arg, bytes):
                raw = arg
            elif isinstance(arg, np.generic):
                raw = arg.tobytes()
            elif isinstance(arg, float):
                raw = struct.pack("<f" if size == 4 else "<d", arg)
            else:
                raw = int(arg).to_bytes(size, "little", signed=arg < 0)
            assert len(raw) == size, f"argument {i} has {len(raw)} bytes, the parameter {size}"
            params[offset : offset + size] = raw
        dims = [(list(d) + [1, 1, 1])[:3] if not isinstance(d, int) else [d, 1, 1] for d in (grid, block)]
        arrays = [(ctypes.c_uint32 * 3)(*d) for d in dims]
        raw_params = (ctypes.c_char * len(params)).from_buffer(params)
        steps = ctypes.c_uint64()
        code = LIB.sgt_run(
            self.session, kernel, arrays[0], arrays[1], shared, int(cooperative), raw_params, ctypes.byref(steps)
        )
        self.steps = steps.value
        self.printed = LIB.sgt_printed(self.session).decode(errors="replace")
        if code:
            raise Fault(code, LIB.sgt_text(self.session).decode(errors="replace"))
