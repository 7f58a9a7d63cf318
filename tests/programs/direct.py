"""Large copies of all linear kinds with their bytes checked, in an order that only streams and events give. Prints one
JSON object: {step: what is wrong, or nothing}. Named steps alone where there are arguments."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable

KIB, MIB = 1 << 10, 1 << 20
# Round the size from which pieces travel by themselves, and round one piece of those.
SIZES = (
    4,
    64 * KIB,
    256 * KIB - 1,
    256 * KIB,
    256 * KIB + 1,
    MIB - 1,
    MIB,
    MIB + 1,
    2 * MIB,
    5 * MIB + 12345,
    40 * MIB,
)
cuda = ctypes.CDLL("libcuda.so.1")
Pointer = ctypes.c_uint64


def ok(code: int, what: str) -> None:
    if code:
        raise SystemExit(f"{what}: {code}")


def call(name: str, *arguments: object) -> None:
    ok(getattr(cuda, name)(*arguments), name)


def size(bytes_: int) -> ctypes.c_size_t:
    return ctypes.c_size_t(bytes_)


def pattern(bytes_: int, seed: int) -> bytes:
    """No two offsets of a few MiB look alike."""
    block = b"".join((i * 2654435761 + seed * 40503 & 0xFFFFFFFF).to_bytes(4, "little") for i in range(16411))
    return (block * (bytes_ // len(block) + 1))[:bytes_]


def device(bytes_: int) -> Pointer:
    pointer = Pointer()
    call("cuMemAlloc_v2", ctypes.byref(pointer), size(bytes_))
    return pointer


class Pinned:
    def __init__(self, bytes_: int, content: bytes = b"") -> None:
        self.bytes, self.address = bytes_, ctypes.c_void_p()
        call("cuMemHostAlloc", ctypes.byref(self.address), size(bytes_), 0)
        if content:
            self.set(content)

    def set(self, content: bytes) -> None:
        assert self.address.value is not None
        ctypes.memmove(self.address.value, content, len(content))

    def get(self) -> bytes:
        assert self.address.value is not None
        return ctypes.string_at(self.address.value, self.bytes)

    def part(self, offset: int) -> ctypes.c_void_p:
        return ctypes.c_void_p((self.address.value or 0) + offset)

    def free(self) -> None:
        call("cuMemFreeHost", self.address)


def stream(flags: int = 1) -> ctypes.c_void_p:
    made = ctypes.c_void_p()
    call("cuStreamCreate", ctypes.byref(made), flags)
    return made


def event() -> ctypes.c_void_p:
    made = ctypes.c_void_p()
    call("cuEventCreate", ctypes.byref(made), 2)
    return made


def offset(pointer: Pointer, bytes_: int) -> Pointer:
    return Pointer(pointer.value + bytes_)


def sizes() -> str:
    """Pageable and page-locked, synchronous, at odd places of both sides."""
    for bytes_ in SIZES:
        for shift in (0, 12):
            target = device(bytes_ + 64)
            sent = pattern(bytes_, bytes_ + shift)
            call("cuMemcpyHtoD_v2", offset(target, shift), sent, size(bytes_))
            back = ctypes.create_string_buffer(bytes_)
            call("cuMemcpyDtoH_v2", back, offset(target, shift), size(bytes_))
            if back.raw != sent:
                return f"{bytes_} bytes, pageable"
            pinned = Pinned(bytes_ + 64, sent[::-1])
            call("cuMemcpyHtoD_v2", offset(target, shift), pinned.address, size(bytes_))
            pinned.set(bytes(bytes_))
            call("cuMemcpyDtoH_v2", pinned.part(shift), offset(target, shift), size(bytes_))
            if pinned.get()[shift : shift + bytes_] != sent[::-1]:
                return f"{bytes_} bytes, page-locked"
            pinned.free()
            call("cuMemFree_v2", target)
    return ""


def rows() -> str:
    """2D and 3D copies are not made straight, but stand among those that are."""
    width, height, pitch = 3000, 700, 4096
    target, sent = device(pitch * height), pattern(width * height, 5)
    call("cuMemcpyHtoD_v2", target, pattern(pitch * height, 6), size(pitch * height))
    words = ctypes.c_uint64 * 16
    source = ctypes.cast(sent, ctypes.c_void_p).value or 0
    copy = words(0, 0, 1, source, 0, 0, width, 0, 0, 2, 0, target.value, 0, pitch, width, height)
    call("cuMemcpy2D_v2", ctypes.byref(copy))
    back = ctypes.create_string_buffer(pitch * height)
    call("cuMemcpyDtoH_v2", back, target, size(pitch * height))
    raw = back.raw
    for y in range(height):
        if raw[y * pitch : y * pitch + width] != sent[y * width : (y + 1) * width]:
            return f"row {y}"
    return ""


def bounce() -> str:
    """Through one page-locked buffer without a wait: what comes down goes up again from where it came to."""
    bytes_ = 6 * MIB
    for flags in (0, 1, None):
        s = stream(flags) if flags is not None else None
        a, b, c = device(bytes_), device(bytes_), device(bytes_)
        for seed in range(4):
            sent = pattern(bytes_, seed)
            call("cuMemcpyHtoD_v2", a, sent, size(bytes_))
            call("cuStreamSynchronize", None)  # only its bytes are taken, and the stream need not wait for that one
            pinned, half = Pinned(bytes_, bytes([seed]) * bytes_), bytes_ // 2
            call("cuMemcpyHtoDAsync_v2", b, pinned.address, size(bytes_), s)
            call("cuMemcpyDtoHAsync_v2", pinned.part(half), offset(a, half), size(half), s)
            call("cuMemcpyHtoDAsync_v2", c, pinned.address, size(bytes_), s)
            call("cuMemcpyDtoHAsync_v2", pinned.address, c, size(bytes_), s)
            call("cuStreamSynchronize", s)
            if pinned.get() != bytes([seed]) * half + sent[half:]:
                return f"round {seed}, stream flags {flags}"
            pinned.free()
        for p in (a, b, c):
            call("cuMemFree_v2", p)
    return ""


def order() -> str:
    """Copies between fills and copies on the device, all queued at once."""
    bytes_, s = 4 * MIB, stream()
    a, b = device(bytes_), device(bytes_)
    first, second = Pinned(bytes_, pattern(bytes_, 1)), Pinned(bytes_, pattern(bytes_, 2))
    out = [Pinned(bytes_) for _ in range(4)]
    for _ in range(5):
        call("cuMemsetD32Async", a, 0x01020304, size(bytes_ // 4), s)
        call("cuMemcpyDtoHAsync_v2", out[0].address, a, size(bytes_), s)
        call("cuMemcpyHtoDAsync_v2", a, first.address, size(bytes_), s)
        call("cuMemcpyDtoDAsync_v2", b, a, size(bytes_), s)
        call("cuMemcpyHtoDAsync_v2", a, second.address, size(bytes_), s)
        call("cuMemcpyDtoHAsync_v2", out[1].address, a, size(bytes_), s)
        call("cuMemcpyDtoHAsync_v2", out[2].address, b, size(bytes_), s)
        call("cuMemsetD32Async", a, 0, size(bytes_ // 4), s)
        call("cuMemcpyDtoHAsync_v2", out[3].address, a, size(bytes_), s)
        call("cuStreamSynchronize", s)
        wanted = [b"\x04\x03\x02\x01" * (bytes_ // 4), second.get(), first.get(), bytes(bytes_)]
        for number, (one, expected) in enumerate(zip(out, wanted, strict=True)):
            if one.get() != expected:
                return f"result {number}"
            one.set(b"\xff" * bytes_)
    return ""


def same_place() -> str:
    """Two copies to the same device memory, and two to the same page-locked memory: the last one stays."""
    bytes_, s = 3 * MIB, stream()
    a = device(bytes_)
    one, two, back = Pinned(bytes_, pattern(bytes_, 1)), Pinned(bytes_, pattern(bytes_, 2)), Pinned(bytes_)
    for _ in range(8):
        call("cuMemcpyHtoDAsync_v2", a, one.address, size(bytes_), s)
        call("cuMemcpyHtoDAsync_v2", a, two.address, size(bytes_), s)
        call("cuMemcpyDtoHAsync_v2", back.address, a, size(bytes_), s)
        call("cuMemsetD32Async", a, 7, size(bytes_ // 4), s)
        call("cuMemcpyDtoHAsync_v2", back.address, a, size(bytes_), s)
        call("cuMemcpyHtoDAsync_v2", a, two.address, size(bytes_), s)
        call("cuStreamSynchronize", s)
        if back.get() != b"\x07\0\0\0" * (bytes_ // 4):
            return "page-locked memory"
        call("cuMemcpyDtoH_v2", back.address, a, size(bytes_))
        if back.get() != two.get():
            return "device memory"
    return ""


def two_streams() -> str:
    """One waits for the other's event, and back again; the NULL stream waits for a blocking one."""
    bytes_, s, t = 4 * MIB, stream(), stream(0)
    a, b = device(bytes_), device(bytes_)
    sent, back = Pinned(bytes_, pattern(bytes_, 9)), Pinned(bytes_)
    for round_ in range(8):
        there, here = event(), event()
        sent.set(pattern(bytes_, round_))
        call("cuMemcpyHtoDAsync_v2", a, sent.address, size(bytes_), s)
        call("cuEventRecord", there, s)
        call("cuStreamWaitEvent", t, there, 0)
        call("cuMemcpyDtoDAsync_v2", b, a, size(bytes_), t)
        call("cuEventRecord", here, t)
        call("cuStreamWaitEvent", s, here, 0)
        call("cuMemsetD32Async", a, 0, size(bytes_ // 4), s)
        call("cuMemcpyDtoHAsync_v2", back.address, b, size(bytes_), None)
        call("cuEventSynchronize", here)
        call("cuStreamSynchronize", None)
        if back.get() != sent.get():
            return f"round {round_}"
        for one in (there, here):
            call("cuEventDestroy_v2", one)
        call("cuStreamSynchronize", s)
    return ""


def a_stream_that_waits() -> str:
    """For a word that another stream writes behind copies of its own: nobody holds the other's bytes up."""
    bytes_, s, t = 24 * MIB, stream(), stream()
    word, a, b = device(4), device(bytes_), device(bytes_)
    one, two = Pinned(bytes_, pattern(bytes_, 3)), Pinned(bytes_, pattern(bytes_, 4))
    first, second = Pinned(bytes_), Pinned(bytes_)
    call("cuMemsetD32_v2", word, 0, size(1))
    for round_ in range(1, 4):
        call("cuStreamWaitValue32_v2", s, word, round_, 0)
        call("cuMemcpyHtoDAsync_v2", a, one.address, size(bytes_), s)
        call("cuMemcpyDtoHAsync_v2", first.address, a, size(bytes_), s)
        call("cuMemcpyHtoDAsync_v2", b, two.address, size(bytes_), t)
        call("cuMemcpyDtoHAsync_v2", second.address, b, size(bytes_), t)
        call("cuStreamSynchronize", t)
        if second.get() != two.get():
            return "the other stream's bytes"
        call("cuStreamWriteValue32_v2", t, word, round_, 0)
        call("cuStreamSynchronize", s)
        if first.get() != one.get():
            return "its bytes"
        for pinned in (first, second):
            pinned.set(bytes(bytes_))
    return ""


def host_function() -> str:
    """What it writes is what a copy behind it takes, also where another copy took the same memory before."""
    bytes_, s = 2 * MIB, stream()
    a, b = device(bytes_), device(bytes_)
    source, back = Pinned(bytes_), Pinned(bytes_)
    late = pattern(bytes_, 11)
    write = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: source.set(late))
    for round_ in range(4):
        source.set(pattern(bytes_, round_))
        call("cuMemcpyHtoDAsync_v2", a, source.address, size(bytes_), s)
        call("cuLaunchHostFunc", s, write, None)
        call("cuMemcpyHtoDAsync_v2", b, source.address, size(bytes_), s)
        call("cuMemcpyDtoHAsync_v2", back.address, b, size(bytes_), s)
        call("cuStreamSynchronize", s)
        if back.get() != late:
            return f"behind the function, round {round_}"
        call("cuMemcpyDtoH_v2", back.address, a, size(bytes_))
        if back.get() != pattern(bytes_, round_):
            return f"before the function, round {round_}"
    return ""


def freed_and_made_again() -> str:
    """Memory goes while copies of it are on their way, and other memory comes to its place."""
    s = stream()
    for round_ in range(12):
        bytes_ = (2 + round_ % 3 * 4) * MIB
        a = device(bytes_)
        sent, back = Pinned(bytes_, pattern(bytes_, round_)), Pinned(bytes_)
        call("cuMemcpyHtoDAsync_v2", a, sent.address, size(bytes_), s)
        call("cuMemcpyDtoHAsync_v2", back.address, a, size(bytes_), s)
        call("cuMemFree_v2", a)
        call("cuStreamSynchronize", s)
        if back.get() != sent.get():
            return f"round {round_}"
        sent.free()
        back.free()
    return ""


def contexts() -> str:
    """A context that ends with copies queued, and another one beside it."""
    bytes_ = 8 * MIB
    for round_ in range(3):
        other, before = ctypes.c_void_p(), ctypes.c_void_p()
        call("cuCtxGetCurrent", ctypes.byref(before))
        call("cuCtxCreate_v2", ctypes.byref(other), 0, 0)
        a, s = device(bytes_), stream()
        sent, back = Pinned(bytes_, pattern(bytes_, round_)), Pinned(bytes_)
        call("cuMemcpyHtoDAsync_v2", a, sent.address, size(bytes_), s)
        call("cuMemcpyDtoHAsync_v2", back.address, a, size(bytes_), s)
        if round_ != 1:
            call("cuCtxSynchronize")
            if back.get() != sent.get():
                return f"round {round_}"
        call("cuCtxDestroy_v2", other)
        call("cuCtxSetCurrent", before)
    return ""


def endless() -> str:
    """Says that it begins, and copies up and down until it is ended."""
    bytes_, s = 64 * MIB, stream()
    a, sent, back = device(bytes_), Pinned(bytes_), Pinned(bytes_)
    print("ready", flush=True)
    while True:
        call("cuMemcpyHtoDAsync_v2", a, sent.address, size(bytes_), s)
        call("cuMemcpyDtoHAsync_v2", back.address, a, size(bytes_), s)
        call("cuStreamSynchronize", s)


STEPS: dict[str, Callable[[], str]] = {
    f.__name__: f
    for f in (
        sizes, rows, bounce, order, same_place, two_streams, a_stream_that_waits, host_function, freed_and_made_again,
        contexts, endless,
    )
}  # fmt: skip


def main() -> None:
    context = ctypes.c_void_p()
    call("cuInit", 0)
    call("cuCtxCreate_v2", ctypes.byref(context), 0, 0)
    wanted = sys.argv[1:] or [name for name in STEPS if name != "endless"]
    print(json.dumps({name: STEPS[name]() for name in wanted}), flush=True)


if __name__ == "__main__":
    main()
