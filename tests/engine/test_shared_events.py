"""Events of several processes against the engine, with a socket for orion-server and a second process that uses the
driver by itself; hostile clients and answers."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
from ctypes import byref
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolated import isolated, main
from session import NO_REPLY, WORD_DYNAMIC, Session, libcuda_path
from test_shares import HERE, INVALID_HANDLE, INVALID_VALUE, NOT_SUPPORTED, PACKET, REFUSED, TOKEN, WORDS, connected
from test_shares import Desk as MemoryDesk

DROP, GIVE_EVENT, TAKE_EVENT = 18, 19, 20
NOT_READY = 600
EVENTS = 1 << 20
SHARED = 2 | 4  # CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS


class Desk(MemoryDesk):
    def handle_of(self) -> tuple[int, bytes]:
        """The tag and the driver's handle of the event that the engine gives."""
        data = self.socket.recv(200)
        kind, tag, _, first, second = PACKET.unpack(data)
        assert kind == GIVE_EVENT
        return tag, first + second

    def answer_handle(self, tag: int, handle: bytes) -> None:
        self.socket.send(PACKET.pack(HERE, tag, 0, handle[:32], handle[32:]))


def joined() -> tuple[Session, Desk]:
    s, desk = connected()
    for stream in (1, 2):
        s.push("STREAM_CREATE", stream=stream, stream_flags=1)
    return s, Desk(desk.socket)


def export(s: Session, desk: Desk, event: int) -> bytes:
    """The driver's handle."""
    sequence = s.ask("EVENT_EXPORT", slot=1, event=event)
    tag, handle = desk.handle_of()
    desk.answer(HERE, tag, 0, TOKEN)
    assert s.answer(sequence, slot=1) == (0, TOKEN)
    return handle


def take(s: Session, desk: Desk, event: int, handle: bytes) -> int:
    sequence = s.ask("EVENT_IMPORT", slot=1, event=event, **WORDS)
    kind, tag, _, token = desk.packet()
    assert kind == TAKE_EVENT and token == TOKEN
    desk.answer_handle(tag, handle)
    return s.answer(sequence, slot=1)[0]


def query(s: Session, event: int, wait: int = 0) -> int:
    return s.call("EVENT_QUERY", slot=2, event=event, wait=wait)[0]


def park(s: Session, stream: int, callback: int) -> None:
    word = WORD_DYNAMIC + callback
    s.push("HOST_FUNCTION", stream=stream, callback=callback, generation=1, word=word, value=1)
    assert s.wait_word(word, 1)


# ---------------------------------------------------------------------------------------------- the other process
class Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_ubyte * 64),)


class Other:
    """A process with an event and two streams that it holds until it lets them go."""

    def __init__(self, handle: bytes = b"") -> None:
        command = [sys.executable, __file__, "--other", handle.hex()]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.handle = bytes.fromhex(self._line())

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def tell(self, *words: object) -> int:
        assert self.process.stdin
        print(*words, file=self.process.stdin, flush=True)
        return int(self._line())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> Other:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


def other_main(given: bytes) -> None:
    cuda = ctypes.CDLL(libcuda_path())
    context, event, words = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint64()
    streams = [ctypes.c_void_p(), ctypes.c_void_p()]
    handle = Handle.from_buffer_copy(given or bytes(64))
    codes = [cuda.cuInit(0), cuda.cuDevicePrimaryCtxRetain(byref(context), 0), cuda.cuCtxSetCurrent(context)]
    codes += [cuda.cuStreamCreate(byref(stream), 1) for stream in streams]
    codes.append(cuda.cuMemAlloc_v2(byref(words), ctypes.c_size_t(8)))
    if given:
        codes.append(cuda.cuIpcOpenEventHandle(byref(event), handle))
    else:
        codes += [cuda.cuEventCreate(byref(event), SHARED), cuda.cuIpcGetEventHandle(byref(handle), event)]
    assert not any(codes), codes
    gates = (ctypes.c_uint32 * 2).from_address(words.value)
    print(bytes(handle.reserved).hex(), flush=True)
    for line in sys.stdin:
        name, *rest = line.split()
        which = int(rest[0]) if rest else 0
        code = 0
        if name == "record":  # behind a gate
            gates[which] = 0
            at = ctypes.c_uint64(words.value + 4 * which)
            code = cuda.cuStreamWaitValue32_v2(streams[which], at, ctypes.c_uint32(1), 0)
            code = code or cuda.cuEventRecord(event, streams[which])
        elif name == "go":
            gates[which] = 1
        elif name == "query":
            code = cuda.cuEventQuery(event)
        elif name == "destroy":
            code = cuda.cuEventDestroy_v2(event)
        print(code, flush=True)


# ---------------------------------------------------------------------------------------------- tests
@isolated
def test_an_event_is_exported_once_and_until_its_end() -> None:
    s, desk = joined()
    with s:
        assert s.call("EVENT_CREATE", event=1, event_flags=SHARED)[0] == 0
        handle = export(s, desk, 1)
        assert s.call("EVENT_EXPORT", event=1) == (0, TOKEN)  # without another question
        assert desk.quiet()
        with Other(handle) as other:
            assert other.tell("query") == 0
            park(s, 1, 7)
            s.push("EVENT_RECORD", stream=1, event=1)
            sequence = s.ask("EVENT_ISSUED", slot=3, event=1)
            assert s.call("NOP")[0] == 0
            assert query(s, 1) == NOT_READY  # though the driver has no record yet
            s.client.client_set_client_word(s.segment, 7, 1)
            assert s.answer(sequence, slot=3)[0] == 0
            assert query(s, 1, wait=1) == 0
            assert other.tell("record", 0) == 0
            assert query(s, 1) == NOT_READY
            assert other.tell("go", 0) == 0
            assert query(s, 1, wait=1) == 0
        s.push("EVENT_DESTROY", event=1)
        assert desk.packet()[0::3] == (DROP, TOKEN)
        assert query(s, 1) == INVALID_HANDLE
        assert s.late_error() == (0, 0, 0)


@isolated
def test_an_event_of_another_process() -> None:
    s, desk = joined()
    with s, Other() as other:
        assert take(s, desk, 5, other.handle) == 0
        assert query(s, 5) == query(s, 5, wait=1) == 0  # never recorded
        assert other.tell("record", 0) == 0
        assert query(s, 5) == NOT_READY
        s.push("STREAM_WAIT_EVENT", stream=1, event=5)
        waits = s.mark(1)
        assert not s.wait_word(*waits, timeout_ms=50)
        sequence = s.ask("EVENT_QUERY", slot=4, event=5, wait=1)
        assert other.tell("go", 0) == 0
        assert s.answer(sequence, slot=4)[0] == 0
        assert s.wait_word(*waits)
        s.push("EVENT_RECORD", stream=2, event=5)
        s.sync(2)
        assert other.tell("query") == 0
        assert s.call("EVENT_EXPORT", event=5)[0] == INVALID_HANDLE  # it was opened, not made
        # its maker's end is not ours
        other.kill()
        assert query(s, 5) == 0
        s.push("EVENT_RECORD", stream=2, event=5)
        assert query(s, 5, wait=1) == 0
        s.push("EVENT_DESTROY", event=5)
        assert s.call("NOP")[0] == 0
        assert desk.quiet()
        assert s.late_error() == (0, 0, 0)


@isolated
def test_a_parked_wait_means_the_record_before_it() -> None:
    s, desk = joined()
    with s, Other() as other:
        assert take(s, desk, 5, other.handle) == 0
        for generation in (1, 2):
            assert other.tell("record", 0) == 0
            word = WORD_DYNAMIC + 7
            s.push("HOST_FUNCTION", stream=1, callback=7, generation=generation, word=word, value=generation)
            assert s.wait_word(word, generation)
            s.push("STREAM_WAIT_EVENT", stream=1, event=5)
            s.push("STREAM_WAIT_EVENT", stream=1, event=5)
            waits = s.mark(1)
            assert s.call("EVENT_ISSUED", event=5)[0] == 0  # the wait has what it means
            assert other.tell("record", 1) == 0
            s.client.client_set_client_word(s.segment, 7, generation)
            assert not s.wait_word(*waits, timeout_ms=50)
            assert other.tell("go", 0) == 0
            assert s.wait_word(*waits)
            assert query(s, 5) == NOT_READY
            assert other.tell("go", 1) == 0
            assert query(s, 5, wait=1) == 0
        # the event may end before the wait is issued
        s.push("HOST_FUNCTION", stream=1, callback=8, generation=1, word=WORD_DYNAMIC + 8, value=1)
        assert other.tell("record", 0) == 0
        s.push("STREAM_WAIT_EVENT", stream=1, event=5)
        s.push("EVENT_DESTROY", event=5)
        waits = s.mark(1)
        assert s.call("NOP")[0] == 0
        s.client.client_set_client_word(s.segment, 8, 1)
        assert not s.wait_word(*waits, timeout_ms=50)
        assert other.tell("go", 0) == 0
        assert s.wait_word(*waits)
        assert s.late_error() == (0, 0, 0)


@isolated
def test_waits_from_before_the_export() -> None:
    s, desk = joined()
    with s:
        assert s.call("EVENT_CREATE", event=1, event_flags=SHARED)[0] == 0
        s.push("EVENT_RECORD", stream=2, event=1)
        park(s, 1, 7)
        s.push("STREAM_WAIT_EVENT", stream=1, event=1)
        handle = export(s, desk, 1)
        with Other(handle) as other:
            assert other.tell("record", 0) == 0
            waits = s.mark(1)
            s.client.client_set_client_word(s.segment, 7, 1)
            assert s.wait_word(*waits)  # not the other's record
            assert query(s, 1) == NOT_READY
            assert other.tell("go", 0) == 0
            assert query(s, 1, wait=1) == 0
        # a record on another stream does not stand behind such a wait either
        park(s, 1, 8)
        s.push("STREAM_WAIT_EVENT", stream=1, event=1)
        s.push("EVENT_RECORD", stream=2, event=1)
        assert s.call("EVENT_ISSUED", event=1)[0] == 0
        s.client.client_set_client_word(s.segment, 8, 1)
        s.sync(1)
        assert s.late_error() == (0, 0, 0)


@isolated
def test_what_no_client_sends_is_refused() -> None:
    s, desk = joined()
    with s:
        assert s.call("EVENT_CREATE", event=1, event_flags=SHARED)[0] == 0
        assert s.call("EVENT_CREATE", event=2, event_flags=2)[0] == 0
        beyond = (3, EVENTS - 1, EVENTS, EVENTS + 1, EVENTS + 2, 0xFFFFFFFF)
        for event in (2, *beyond):
            assert s.call("EVENT_EXPORT", event=event)[0] == INVALID_HANDLE
        for event in beyond:
            assert query(s, event) == INVALID_HANDLE
            assert query(s, event, wait=1) == INVALID_HANDLE
            assert s.call("EVENT_ISSUED", event=event)[0] == INVALID_HANDLE
        for event in (1, *beyond[2:]):
            assert s.call("EVENT_IMPORT", event=event, **WORDS)[0] in (INVALID_VALUE, INVALID_HANDLE)
        assert desk.quiet()
        for name in ("EVENT_EXPORT", "EVENT_IMPORT"):  # one-way: nobody would learn what came of it
            s.push(name, event=9, thread=3, reply_slot=NO_REPLY)
        assert s.call("NOP")[0] == 0
        assert s.late_error(3)[2] == INVALID_VALUE
        assert desk.quiet()


@isolated
def test_answers_that_no_server_gives() -> None:
    s, desk = joined()
    with s:
        for handle in (bytes(64), b"\xa5" * 64, random.Random(3).randbytes(64)):
            assert take(s, desk, 4, handle) != 0
            assert query(s, 4) == INVALID_HANDLE
        sequence = s.ask("EVENT_IMPORT", slot=1, event=4, **WORDS)
        _, tag, _, _ = desk.packet()
        pipe = os.pipe()
        desk.answer(REFUSED, tag, fd=pipe[0])
        assert s.answer(sequence, slot=1)[0] == INVALID_VALUE
        assert s.call("EVENT_CREATE", event=1, event_flags=SHARED)[0] == 0
        own = export(s, desk, 1)
        assert take(s, desk, 4, own) != 0  # the driver knows it as this process's
        assert s.call("EVENT_CREATE", event=4, event_flags=SHARED)[0] == 0
        sequence = s.ask("EVENT_EXPORT", slot=1, event=4)
        tag, _ = desk.handle_of()
        desk.answer(REFUSED, tag)
        assert s.answer(sequence, slot=1)[0] == INVALID_VALUE
        assert query(s, 4) == 0


@isolated
def test_without_a_server_nothing_is_shared() -> None:
    with Session() as s:
        s.open()
        assert s.call("EVENT_CREATE", event=1, event_flags=SHARED)[0] == 0
        assert s.call("EVENT_EXPORT", event=1)[0] == NOT_SUPPORTED
        assert s.call("EVENT_IMPORT", event=2, **WORDS)[0] == NOT_SUPPORTED


@isolated
def test_random_operations_leave_the_session_alive() -> None:
    generator = random.Random(12)
    s, desk = joined()
    names = ["EVENT_CREATE", "EVENT_DESTROY", "EVENT_RECORD", "STREAM_WAIT_EVENT", "EVENT_ISSUED", "EVENT_QUERY"]
    with s, Other() as other:
        for step in range(300):
            name = generator.choice([*names, "EVENT_EXPORT", "EVENT_IMPORT", "HOST_FUNCTION"])
            values: dict[str, int] = {"event": generator.choice([0, 1, 2, 3, EVENTS, EVENTS + 1])}
            if name in ("EVENT_RECORD", "STREAM_WAIT_EVENT"):
                values["stream"] = generator.choice([1, 2])
            elif name == "EVENT_CREATE":
                values["event_flags"] = generator.choice([2, SHARED])
            elif name == "EVENT_IMPORT":
                values |= WORDS
            elif name == "HOST_FUNCTION":
                values = {"stream": 1, "callback": 7, "generation": step, "word": WORD_DYNAMIC + 7, "value": step}
            s.push(name, reply_slot=1, reply_seq=10**6 + step, **values)
            if generator.random() < 0.5:
                s.client.client_set_client_word(s.segment, 7, step)
            while not desk.quiet(0.001):
                kind, tag, _, _, _ = PACKET.unpack(desk.socket.recv(200))
                if kind == GIVE_EVENT:
                    desk.answer(generator.choice([REFUSED, HERE]), tag, 0, generator.randbytes(16))
                elif kind == TAKE_EVENT:
                    desk.answer_handle(tag, generator.choice([other.handle, bytes(64)]))
        s.client.client_set_client_word(s.segment, 7, 10**6)
        assert s.call("PING", value=3)[0] == 0


if __name__ == "__main__":
    if sys.argv[1] == "--other":
        other_main(bytes.fromhex(sys.argv[2]))
    else:
        main(globals())
