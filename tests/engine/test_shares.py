"""Exported and imported memory against the engine, with a socket for orion-server; hostile clients and answers."""

from __future__ import annotations

import os
import random
import select
import socket
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolated import isolated, main
from session import CHUNK, NO_REPLY, SLOT_BASE, SLOT_BYTES, Session

PACKET = struct.Struct("<IIQ32s32s")
GIVE, TAKE, DROP = 16, 17, 18
REFUSED, HERE = 16, 17
INVALID_VALUE, INVALID_HANDLE, NOT_SUPPORTED = 1, 400, 801
POSIX_FD = 1
ACCESS = struct.pack("<IiII", 1, 0, 3, 0)
TOKEN = bytes(range(1, 17))
WORDS = dict(zip(("token_0", "token_1"), struct.unpack("<2Q", TOKEN), strict=True))


class Desk:
    """orion-server's end of the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.fd = -1  # the last one that came

    def packet(self, timeout_s: float = 10.0) -> tuple[int, int, int, bytes]:
        assert select.select([self.socket], [], [], timeout_s)[0], "the engine has sent nothing"
        data, fds, _, _ = socket.recv_fds(self.socket, 200, 4)
        kind, tag, size, token, _ = PACKET.unpack(data)
        if fds:
            self.fd = fds[0]
        return kind, tag, size, token[:16]

    def quiet(self, timeout_s: float = 0.05) -> bool:
        return not select.select([self.socket], [], [], timeout_s)[0]

    def answer(self, kind: int, tag: int, size: int = 0, token: bytes = b"", fd: int = -1) -> None:
        packet = PACKET.pack(kind, tag, size, token.ljust(32, b"\0"), bytes(32))
        socket.send_fds(self.socket, [packet], [fd] if fd >= 0 else [])


def connected() -> tuple[Session, Desk]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s = Session(image_fd=theirs.detach())
    s.open()
    return s, Desk(ours)


def export(s: Session, desk: Desk, token: bytes = TOKEN, **values: int) -> tuple[int, bytes]:
    sequence = s.ask("SHARE_EXPORT", slot=1, **values)
    kind, tag, size, _ = desk.packet()
    assert kind == GIVE and desk.fd >= 0
    desk.answer(HERE, tag, size, token)
    return s.answer(sequence, slot=1)


def take(s: Session, desk: Desk, memory: int, kind: int = HERE, size: int = CHUNK, fd: int = -1) -> int:
    sequence = s.ask("SHARE_IMPORT", slot=1, memory=memory, **WORDS)
    asked, tag, _, token = desk.packet()
    assert asked == TAKE and token == TOKEN
    desk.answer(kind, tag, size, fd=fd)
    return s.answer(sequence, slot=1)[0]


def read(s: Session, address: int) -> bytes:
    s.push("COPY_D2H", dst_off=0, src=address, size_bytes=8)
    s.sync()
    return s.read_host(0, 8)


@isolated
def test_what_is_exported_can_be_imported_and_outlives_it() -> None:
    s, desk = connected()
    with s:
        plain = s.map(4)
        s.push("COPY_H2D_INLINE", b"exported", device_dst=plain + 3 * CHUNK)
        s.sync()
        result, payload = export(s, desk, device_address=plain + CHUNK + 512)
        assert (result, payload) == (0, TOKEN + struct.pack("<QQ", CHUNK + 512, 4 * CHUNK))
        # the same token without another question
        assert s.call("SHARE_EXPORT", device_address=plain)[1] == TOKEN + struct.pack("<QQ", 0, 4 * CHUNK)
        used = s.stats().mapped_bytes[0]
        assert take(s, desk, 5, size=4 * CHUNK, fd=desk.fd) == 0
        at = SLOT_BASE + 100 * CHUNK
        s.push("VMM_MAP", device_address=at, size_bytes=4 * CHUNK, memory=5)
        s.push("VMM_SET_ACCESS", ACCESS, device_address=at, size_bytes=4 * CHUNK, count=1)
        assert read(s, at + 3 * CHUNK) == b"exported"
        assert s.stats().mapped_bytes[0] == used  # the exporter's
        s.push("MEM_FREE", device_address=plain, size_bytes=4 * CHUNK, unmap=1)
        s.sync()
        assert desk.packet()[0::3] == (DROP, TOKEN)
        assert read(s, at + 3 * CHUNK) == b"exported"
        s.push("VMM_UNMAP", device_address=at, size_bytes=4 * CHUNK)
        s.push("VMM_RELEASE", memory=5)
        assert s.call("NOP")[0] == 0
        assert s.stats().mapped_bytes[0] == 0
        assert s.late_error() == (0, 0, 0)


@isolated
def test_memory_of_the_program_and_what_may_not_leave() -> None:
    s, desk = connected()
    with s:
        for memory, types in ((1, POSIX_FD), (2, 0)):
            assert s.call("VMM_CREATE", memory=memory, size_bytes=CHUNK, handle_types=types)[0] == 0
        assert export(s, desk, memory=1) == (0, TOKEN + struct.pack("<QQ", 0, CHUNK))
        assert s.call("SHARE_EXPORT", memory=2)[0] == INVALID_VALUE
        s.push("VMM_RELEASE", memory=1)
        assert desk.packet()[0::3] == (DROP, TOKEN)
        s.push("VMM_RELEASE", memory=2)
        assert s.call("NOP")[0] == 0
        assert desk.quiet()


@isolated
def test_what_no_client_sends_is_refused() -> None:
    s, desk = connected()
    with s:
        plain = s.map(1)
        at = SLOT_BASE + 100 * CHUNK
        assert s.call("VMM_CREATE", memory=1, size_bytes=CHUNK)[0] == 0
        s.push("VMM_MAP", device_address=at, size_bytes=CHUNK, memory=1)
        for address in (0, plain + CHUNK, SLOT_BASE - 1, SLOT_BASE + SLOT_BYTES, (1 << 64) - 1, at):
            assert s.call("SHARE_EXPORT", device_address=address)[0] == INVALID_VALUE
        for memory in (2, 262144, 0xFFFFFFFF):
            assert s.call("SHARE_EXPORT", memory=memory, device_address=plain)[0] == INVALID_VALUE
        assert desk.quiet()
        assert export(s, desk, device_address=plain)[0] == 0
        for memory in (0, 1, 262144, 0xFFFFFFFF):  # none, taken, beyond
            assert take(s, desk, memory, fd=desk.fd) == INVALID_HANDLE
        # one-way: nobody would learn what came of it
        s.push("SHARE_EXPORT", device_address=plain, thread=3, reply_slot=NO_REPLY)
        s.push("SHARE_IMPORT", memory=9, thread=3, reply_slot=NO_REPLY)
        assert s.call("NOP")[0] == 0
        assert s.late_error(3)[2] == INVALID_VALUE
        assert desk.quiet()


@isolated
def test_answers_that_no_server_gives() -> None:
    s, desk = connected()
    with s:
        pipe = os.pipe()
        assert take(s, desk, 1, kind=REFUSED) == INVALID_VALUE
        assert take(s, desk, 1, kind=999) == INVALID_VALUE
        assert take(s, desk, 1) == INVALID_VALUE  # without a descriptor
        assert take(s, desk, 1, fd=pipe[0]) != 0  # no memory
        for size in (0, 1, CHUNK - 1, CHUNK + 4096, 1 << 63):
            assert take(s, desk, 1, size=size, fd=pipe[0]) == INVALID_VALUE
        # more than there is: the mapping is the driver's to refuse
        plain = s.map(1)
        assert export(s, desk, device_address=plain)[0] == 0
        assert take(s, desk, 1, size=4 * CHUNK, fd=desk.fd) == 0
        assert s.call("VMM_MAP", device_address=SLOT_BASE + 50 * CHUNK, size_bytes=4 * CHUNK, memory=1)[0] != 0
        # answers to nothing, with descriptors: dropped
        held = len(os.listdir("/proc/self/fd"))
        for tag in range(500, 520):
            desk.answer(HERE, tag, CHUNK, fd=pipe[0])
        assert take(s, desk, 2, kind=REFUSED) == INVALID_VALUE
        assert len(os.listdir("/proc/self/fd")) == held
        other = s.map(1, at=4)
        sequence = s.ask("SHARE_EXPORT", slot=1, device_address=other)
        _, tag, _, _ = desk.packet()
        desk.answer(REFUSED, tag)
        assert s.answer(sequence, slot=1)[0] == INVALID_VALUE


@isolated
def test_other_work_goes_on_while_the_answer_is_awaited() -> None:
    s, desk = connected()
    with s:
        plain = s.map(1)
        sequence = s.ask("SHARE_EXPORT", slot=1, device_address=plain)
        _, tag, _, _ = desk.packet()
        s.push("COPY_H2D_INLINE", b"meantime", device_dst=plain)
        assert read(s, plain) == b"meantime"
        second = s.ask("SHARE_EXPORT", slot=2, device_address=plain)
        _, other_tag, _, _ = desk.packet()
        desk.answer(HERE, other_tag, CHUNK, b"\7" * 16)
        assert s.answer(second, slot=2)[1][:16] == b"\7" * 16
        desk.answer(HERE, tag, CHUNK, TOKEN)
        assert s.answer(sequence, slot=1)[0] == 0


@isolated
def test_without_a_server_nothing_is_shared() -> None:
    with Session() as s:
        s.open()
        plain = s.map(1)
        assert s.call("SHARE_EXPORT", device_address=plain)[0] == NOT_SUPPORTED
        assert s.call("SHARE_IMPORT", memory=1, **WORDS)[0] == NOT_SUPPORTED


@isolated
def test_random_operations_leave_the_session_alive() -> None:
    generator = random.Random(11)
    s, desk = connected()
    with s:
        s.map(2)
        for _ in range(100):
            name = generator.choice(["SHARE_EXPORT", "SHARE_IMPORT", "VMM_RELEASE", "VMM_MAP"])
            values = {"memory": generator.choice([0, 1, 2, 3, 262143, 262144])}
            if name == "SHARE_EXPORT":
                values["device_address"] = SLOT_BASE + generator.randrange(4 * CHUNK)
            elif name == "SHARE_IMPORT":
                values |= WORDS
            elif name == "VMM_MAP":
                values |= {"device_address": SLOT_BASE + 8 * CHUNK, "size_bytes": CHUNK}
            sequence = s.ask(name, slot=1, **values)
            while not desk.quiet():
                kind, tag, size, _ = desk.packet()
                if kind == GIVE:
                    desk.answer(HERE, tag, size, generator.randbytes(16))
                elif kind == TAKE:
                    desk.answer(generator.choice([REFUSED, HERE]), tag, CHUNK, fd=desk.fd)
            s.answer(sequence, slot=1)
        assert s.call("PING", value=3)[0] == 0


if __name__ == "__main__":
    main(globals())
