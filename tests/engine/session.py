"""A client and an engine in one process, joined by the shared-memory rings: no shim, no server.

The address ranges are the client's to choose; here nobody else reserves them, so the engine may map the arena itself.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from orion_server.engine._engine import ffi, lib  # noqa: E402

from wire.spec.ops import OPS  # noqa: E402

FORMATS = {"u16": "H", "i32": "i", "u32": "I", "f32": "f", "u64": "Q"}
BY_NAME = {op.name: op for op in OPS}
NO_REPLY = 0xFFFFFFFF
HOST_BASE, SLOT_BASE, SLOT_BYTES = 0x100000000000, 0x200000000000, 1 << 36
MIB = 1 << 20
CHUNK = 2 * MIB
STAGING_BYTES = 64 * MIB
ARENA_BYTES = 256 * MIB
WORD_FREES_DONE, WORD_SESSION_ERROR = 2, 1
WORD_CONTEXT_ERROR, WORD_NULL, WORD_THREAD_ERROR, WORD_STREAMS = 64, 128, 1024, 4096
WORD_DYNAMIC = 40960

ADD_PTX = b""".version 7.0
.target sm_70
.address_size 64
.visible .global .align 4 .u32 total;
.visible .entry add(.param .u64 counter, .param .u32 amount)
{ .reg .u64 %rd<2>; .reg .u32 %r<3>;
  ld.param.u64 %rd1, [counter]; ld.param.u32 %r1, [amount];
  atom.global.add.u32 %r2, [%rd1], %r1;
  ret; }
.visible .entry hold(.param .u64 flag)
{ .reg .u64 %rd<2>; .reg .u32 %r<2>; .reg .pred %p;
  ld.param.u64 %rd1, [flag];
again:
  ld.volatile.global.u32 %r1, [%rd1];
  setp.eq.u32 %p, %r1, 0;
  @%p bra again;
  ret; }
.visible .entry fault()
{ .reg .u64 %rd<2>; .reg .u32 %r<2>;
  mov.u64 %rd1, 4096; mov.u32 %r1, 1;
  st.global.u32 [%rd1], %r1;
  ret; }
"""


def client_library() -> Any:
    """Builds tests/engine/client.c once per change."""
    source = Path(__file__).with_name("client.c")
    target = ROOT / "build" / "engine_tests" / "libclient.so"
    wire = ROOT / "wire" / "include"
    newest = max(path.stat().st_mtime for path in [source, *wire.glob("*.h")])
    if not target.exists() or target.stat().st_mtime < newest:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(f".{os.getpid()}")
        command = ["gcc", "-std=c11", "-D_GNU_SOURCE", "-O1", "-shared", "-fPIC", f"-I{wire}", str(source)]
        subprocess.run([*command, "-o", str(fresh)], check=True)
        fresh.replace(target)
    library = ctypes.CDLL(str(target))
    library.client_map.restype = ctypes.c_void_p
    library.client_word.restype = ctypes.c_uint64
    library.client_reply_payload.restype = ctypes.c_void_p
    return library


def libcuda_path() -> str:
    return os.environ.get("SOFTGPU_LIBCUDA", str(ROOT / "build" / "softgpu" / "libcuda.so.1"))


def pack(name: str, fields: dict[str, Any], tail: bytes = b"", **header: int) -> bytes:
    """One operation's bytes."""
    op = BY_NAME[name]
    known = {field for field, _ in op.fields}
    if set(fields) - known:
        raise ValueError(f"{name} has no fields {set(fields) - known}")
    values = [fields.get(field, 0) for field, _ in op.fields]
    body = struct.pack("<" + "".join(FORMATS[kind] for _, kind in op.fields), *values)
    body += b"\0" * (-(32 + len(body)) % 8)
    head = struct.pack(
        "<HHIHHIIIQ",
        header.get("code", op.code),
        0,
        32 + len(body) + len(tail),
        header.get("context", 1),
        header.get("thread", 0),
        header.get("stream", 0),
        header.get("reply_slot", NO_REPLY),
        header.get("reply_seq", 0),
        header.get("bulk_seq", 0),
    )
    return head + body + tail


class Session:
    """One bound engine, its thread, and the client's end."""

    def __init__(
        self,
        null: bool = False,
        devices: int = 1,
        conflict: str = "",
        image_fd: int = 0,
        output: tuple[int, int] | None = None,
        log_fd: int = 0,
        launchers: int = int(os.environ.get("ENGINE_TEST_LAUNCHERS", "0")),
        slots: list[tuple[int, int]] | None = None,
        prepared: tuple[int, bool, list[tuple[int, int]]] | None = None,
        seat: tuple[int, int, int] | None = None,
    ) -> None:
        """`slots`: (ordinal, candidate) of each device; `prepared`: host base, whether the arena is the client's too,
        and slots, before the bind; `seat`: descriptors of its memory, its doorbell and its wake."""
        self.client = client_library()
        config = ffi.new("orion_engine_config *")
        path = ffi.new("char[]", libcuda_path().encode())
        config.libcuda_path = ffi.NULL if null else path
        config.null_engine = null
        config.transport = lib.ORION_ENGINE_SHM
        config.image_fd = image_fd
        config.log_level = int(os.environ.get("ENGINE_TEST_LOG", "1"))
        config.log_fd = log_fd
        config.launchers, config.launchers_always = launchers, 1
        if seat:
            config.seat_fd, config.doorbell_fd, config.wake_fd = seat
        if output:
            config.stdout_fd, config.stderr_fd = output
        if seat:
            config.seat_fd, config.doorbell_fd, config.wake_fd = seat
        made = ffi.new("orion_engine **")
        assert lib.orion_engine_new(config, made) == 0
        self.engine = made[0]
        self.segment_fd = os.memfd_create("segment")
        os.ftruncate(self.segment_fd, lib.orion_engine_segment_bytes())
        self.arena_fd = os.memfd_create("arena")
        os.ftruncate(self.arena_fd, ARENA_BYTES)
        self.conflicts = 0
        if prepared:
            host_base, shared, early = prepared
            request, self.keep = self.request(early, host_base, self.arena_fd if shared else -1)
            assert lib.orion_engine_prepare(self.engine, request) == 0
        self.bind_result = self.bind(devices, slots=slots)
        self.sequence = 0
        self.marks: dict[int, int] = {}
        self.end = 0
        self.freed = 0
        self.thread = threading.Thread(target=self._run, daemon=True)
        if self.bind_result == 0:
            self.segment = ctypes.c_void_p(self.client.client_map(self.segment_fd))
            self.arena = (ctypes.c_uint8 * ARENA_BYTES).from_address(HOST_BASE)
            self.thread.start()

    def request(self, slots: list[tuple[int, int]], host_base: int, arena_fd: int) -> tuple[Any, Any]:
        rows = ffi.new("orion_engine_device[]", len(slots))
        for row, (ordinal, candidate) in zip(rows, slots, strict=True):
            row.ordinal, row.base, row.bytes = ordinal, SLOT_BASE + candidate * (1 << 40), SLOT_BYTES
        request = ffi.new("orion_engine_bind_request *")
        request.segment_fd, request.arena_fd = self.segment_fd, arena_fd
        request.host_base, request.arena_bytes = host_base, ARENA_BYTES
        request.device_count, request.devices = len(slots), rows
        return request, rows

    def bind(self, devices: int, host_base: int = HOST_BASE, slots: list[tuple[int, int]] | None = None) -> int:
        request, keep = self.request(slots or [(i, i) for i in range(devices)], host_base, self.arena_fd)
        conflicts = ffi.new("uint64_t *")
        result = int(lib.orion_engine_bind(self.engine, request, conflicts))
        del keep
        self.conflicts = int(conflicts[0])
        return result

    def _run(self) -> None:
        self.end = lib.orion_engine_run(self.engine)

    # ---- operations
    def push(self, name: str, tail: bytes = b"", /, **values: Any) -> None:
        header = {
            k: values.pop(k) for k in ("context", "thread", "stream", "reply_slot", "reply_seq", "code") if k in values
        }
        raw = pack(name, values, tail, **header)
        self.push_raw(raw, "express" in BY_NAME[name].flags)

    def push_raw(self, raw: bytes, express: bool = False) -> None:
        assert self.client.client_push(self.segment, int(express), raw, len(raw)) == 0, "the ring stayed full"

    def call(
        self, name: str, tail: bytes = b"", /, timeout_ms: int = 20000, slot: int = 0, **values: Any
    ) -> tuple[int, bytes]:
        """Pushes and waits for the reply: (result, payload)."""
        sequence = self.ask(name, tail, slot=slot, **values)
        return self.answer(sequence, slot=slot, timeout_ms=timeout_ms)

    def ask(self, name: str, tail: bytes = b"", /, slot: int = 0, **values: Any) -> int:
        self.sequence += 1
        self.push(name, tail, reply_slot=slot, reply_seq=self.sequence, **values)
        return self.sequence

    def answer(self, sequence: int, slot: int = 0, timeout_ms: int = 20000) -> tuple[int, bytes]:
        there = self.client.client_wait_reply(self.segment, slot, ctypes.c_uint64(sequence), timeout_ms)
        if not there:
            raise TimeoutError("no reply")
        result = ctypes.c_int32(self.client.client_reply_result(self.segment, slot)).value
        size = self.client.client_reply_bytes(self.segment, slot)
        return result, ctypes.string_at(self.client.client_reply_payload(self.segment, slot), size)

    def word(self, index: int) -> int:
        return int(self.client.client_word(self.segment, index))

    def wait_word(self, word: int, value: int, timeout_ms: int = 20000, slot: int = 0) -> bool:
        return bool(self.client.client_wait_word(self.segment, slot, word, ctypes.c_uint64(value), timeout_ms))

    def mark(self, stream: int = 0, context: int = 1) -> tuple[int, int]:
        word = WORD_STREAMS + stream if stream else WORD_NULL + context
        self.marks[word] = self.marks.get(word, 0) + 1
        self.push("MARK", stream=stream, context=context, word=word, value=self.marks[word])
        return word, self.marks[word]

    def sync(self, stream: int = 0, context: int = 1, timeout_ms: int = 20000) -> None:
        word, value = self.mark(stream, context)
        if not self.wait_word(word, value, timeout_ms):
            raise TimeoutError(f"marker of stream {stream}")

    def late_error(self, thread: int = 0) -> tuple[int, int, int]:
        value = self.word(WORD_THREAD_ERROR + thread)
        return value >> 32, value >> 16 & 0xFFFF, value & 0xFFFF

    # ---- a usable context
    def open(self, context: int = 1, device: int = 0) -> None:
        result, payload = self.call("CTX_PRIMARY", context=context, device=device)
        assert result == 0 and len(payload) == 16, result

    def map(self, chunks: int = 1, at: int = 0, context: int = 1, device: int = 0) -> int:
        address = SLOT_BASE + device * (1 << 40) + at * CHUNK
        result, _ = self.call("MEM_MAP", context=context, device_address=address, size_bytes=chunks * CHUNK)
        assert result == 0, result
        return address

    def load(self, image: bytes = ADD_PTX, module: int = 1, offset: int = MIB) -> tuple[int, bytes]:
        ctypes.memmove(HOST_BASE + offset, image, len(image))
        return self.call("MODULE_LOAD", module=module, image_off=offset, image_bytes=len(image))

    def function(self, name: bytes, index: int, module: int = 1) -> tuple[dict[int, int], list[tuple[int, int]]]:
        result, payload = self.call("MODULE_GET_FUNCTION", name, module=module, function=index)
        assert result == 0, result
        attribute_count, param_count = struct.unpack_from("<II", payload)
        numbers = struct.unpack_from(f"<{2 * (attribute_count + param_count)}i", payload, 8)
        pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
        return dict(pairs[:attribute_count]), pairs[attribute_count:]

    def launch(self, function: int, params: bytes, stream: int = 0, **values: int) -> None:
        shape = {f"{kind}_{axis}": 1 for kind in ("grid", "block") for axis in "xyz"} | values
        self.push("LAUNCH", params, stream=stream, function=function, param_bytes=len(params), **shape)

    def write_host(self, offset: int, data: bytes) -> None:
        ctypes.memmove(HOST_BASE + offset, data, len(data))

    def read_host(self, offset: int, size: int) -> bytes:
        return ctypes.string_at(HOST_BASE + offset, size)

    def stats(self) -> Any:
        stats = ffi.new("orion_engine_stats *")
        lib.orion_engine_get_stats(self.engine, stats)
        return stats

    def reason(self) -> str:
        text = ffi.new("char[256]")
        lib.orion_engine_reason(self.engine, text, 256)
        return bytes(ffi.string(text)).decode()

    def ended(self, timeout_s: float = 20) -> int:
        """Which end the engine came to by itself."""
        self.thread.join(timeout_s)
        if self.thread.is_alive():
            raise TimeoutError("the engine still runs")
        return int(self.end)

    def close(self) -> int:
        if self.thread.is_alive():
            lib.orion_engine_stop(self.engine)
            self.thread.join(20)
            assert not self.thread.is_alive(), "the engine does not stop"
        if self.bind_result == 0:
            self.client.client_unmap(self.segment)
        lib.orion_engine_free(self.engine)
        os.close(self.segment_fd)
        os.close(self.arena_fd)
        return int(self.end)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
