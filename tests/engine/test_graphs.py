"""Executable graphs: definitions, launches, host nodes, updates, and definitions that no correct client sends."""

from __future__ import annotations

import random
import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from isolated import isolated, main
from session import BY_NAME, WORD_DYNAMIC, WORD_SESSION_ERROR, Session, pack

CALLBACK = 7


def node(s: Session, index: int, name: str = "", tail: bytes = b"", exec_: int = 1, **values: int) -> None:
    inner = pack(name, values, tail) if name else b""
    s.push("GRAPH_NODE", inner, exec=exec_, node=index, kind=0 if name else 1)


def edges(s: Session, *pairs: tuple[int, int], exec_: int = 1) -> None:
    s.push("GRAPH_EDGES", b"".join(struct.pack("<IIII", a, b, 0, 0) for a, b in pairs), exec=exec_, count=len(pairs))


def instantiate(s: Session, exec_: int = 1) -> tuple[int, int]:
    result, payload = s.call("GRAPH_INSTANTIATE", exec=exec_)
    return result, int(struct.unpack_from("<I", payload)[0]) if payload else 0xFFFFFFFF


def opened(s: Session) -> int:
    s.open()
    address = s.map()
    assert s.load()[0] == 0
    s.function(b"add", 1)
    s.push("STREAM_CREATE", stream=1, stream_flags=1)
    return address


def add_kernel(s: Session, index: int, address: int, amount: int, exec_: int = 1) -> None:
    shape = {f"{kind}_{axis}": 1 for kind in ("grid", "block") for axis in "xyz"}
    params = struct.pack("<QI", address, amount)
    node(s, index, "LAUNCH", params, exec_, function=1, param_bytes=len(params), **shape)


def value(s: Session, address: int) -> int:
    s.push("COPY_D2H", stream=1, src=address, dst_off=4096, size_bytes=4)
    s.sync(1)
    return int(struct.unpack("<I", s.read_host(4096, 4))[0])


def define_chain(s: Session, address: int, amount: int, exec_: int = 1) -> None:
    s.push("GRAPH_DEFINE", exec=exec_, node_count=4)
    node(s, 0, "MEMSET", b"", exec_, device_dst=address, width=1, height=1, value=5, element_bytes=4)
    add_kernel(s, 1, address, amount, exec_)
    node(s, 2, exec_=exec_)
    node(s, 3, "COPY_D2D", b"", exec_, device_dst=address + 64, src=address, size_bytes=4)
    edges(s, (0, 1), (1, 2), (2, 3), exec_=exec_)


@isolated
def test_a_definition_runs_at_each_launch() -> None:
    with Session() as s:
        address = opened(s)
        define_chain(s, address, 3)
        assert instantiate(s) == (0, 0xFFFFFFFF)
        for _ in range(3):
            s.push("GRAPH_LAUNCH", stream=1, exec=1)
        assert value(s, address + 64) == 8
        define_chain(s, address, 30, exec_=2)
        result, payload = s.call("GRAPH_UPDATE", exec=1, source=2)
        assert (result, struct.unpack_from("<I", payload)[0]) == (0, 0)
        s.push("GRAPH_DESTROY", exec=2)
        s.push("GRAPH_LAUNCH", stream=1, exec=1)
        assert value(s, address + 64) == 35
        inner = pack("MEMSET", {"device_dst": address, "width": 1, "height": 1, "value": 100, "element_bytes": 4})
        assert s.call("GRAPH_SET_NODE", inner, exec=1, node=0, kind=0)[0] == 0
        assert s.call("GRAPH_SET_ENABLED", exec=1, node=1, enabled=0)[0] == 0
        s.push("GRAPH_LAUNCH", stream=1, exec=1)
        assert value(s, address + 64) == 100
        s.push("GRAPH_LAUNCH", stream=1, exec=1)
        s.push("GRAPH_DESTROY", exec=1)
        assert value(s, address + 64) == 100
        assert s.late_error()[0] == 0
        s.push("GRAPH_LAUNCH", stream=1, exec=1)
        s.sync(1)
        assert s.late_error()[2] == 400


@isolated
def test_a_host_node_waits_for_the_client() -> None:
    with Session() as s:
        address = opened(s)
        word = WORD_DYNAMIC + CALLBACK
        s.push("GRAPH_DEFINE", exec=1, node_count=3, callback=CALLBACK, word=word, host_base=10)
        add_kernel(s, 0, address, 1)
        s.push("GRAPH_NODE", exec=1, node=1, kind=2, host_node=3)
        add_kernel(s, 2, address, 1)
        edges(s, (0, 1), (1, 2))
        assert instantiate(s)[0] == 0
        s.push("MEMSET", stream=1, device_dst=address, width=1, height=1, element_bytes=4)
        s.push("GRAPH_LAUNCH", stream=1, exec=1)
        mark, number = s.mark(1)
        assert s.wait_word(word, 11 << 16)
        assert s.word(word) == 11 << 16 | 3
        time.sleep(0.05)
        assert s.word(mark) < number
        s.client.client_set_client_word(s.segment, CALLBACK, 11)
        assert s.wait_word(mark, number)
        assert value(s, address) == 2
        # nothing waits for the client once the session ends
        s.push("GRAPH_LAUNCH", stream=1, exec=1)
        assert s.wait_word(word, 12 << 16)


@isolated
def test_a_parked_launch_keeps_its_graph() -> None:
    with Session() as s:
        address = opened(s)
        s.push("STREAM_CREATE", stream=2, stream_flags=1)
        define_chain(s, address, 3)
        assert instantiate(s)[0] == 0
        s.push("HOST_FUNCTION", stream=1, callback=1, generation=1, word=WORD_DYNAMIC + 1, value=1)
        s.push("GRAPH_LAUNCH", stream=1, exec=1)
        inner = pack("MEMSET", {"device_dst": address, "width": 1, "height": 1, "value": 90, "element_bytes": 4})
        change = s.ask("GRAPH_SET_NODE", inner, exec=1, node=0, kind=0)
        s.push("GRAPH_LAUNCH", stream=2, exec=1)  # launches of one graph keep their order over streams
        s.push("GRAPH_DESTROY", exec=1)
        define_chain(s, address + 128, 1, exec_=2)  # another graph does not wait
        assert instantiate(s, 2)[0] == 0
        first, second = s.mark(1), s.mark(2)
        assert s.wait_word(WORD_DYNAMIC + 1, 1)
        time.sleep(0.05)
        assert s.word(first[0]) < first[1] and s.word(second[0]) < second[1]
        s.client.client_set_client_word(s.segment, 1, 1)
        assert s.answer(change)[0] == 0
        assert s.wait_word(*first) and s.wait_word(*second)
        assert value(s, address + 64) == 93
        assert s.late_error()[0] == 0


@isolated
def test_the_first_error_of_a_definition_is_told() -> None:
    with Session() as s:
        address = opened(s)
        for bad in (
            {"name": "MEMSET", "device_dst": 1 << 40, "width": 1, "height": 1, "element_bytes": 4},
            {"name": "COPY_D2D", "device_dst": address, "src": 0, "size_bytes": 8},
            {"name": "COPY_H2D", "device_dst": address, "src_off": 100 << 20, "size_bytes": 8},
            {"name": "LAUNCH", "function": 99},
            {"name": "EVENT_RECORD", "event": 5},
            {"name": "STREAM_WRITE_VALUE", "device_address": 3, "width_bytes": 4},
            {"name": "CTX_SET_CACHE_CONFIG"},
            {"name": "GRAPH_DESTROY", "exec": 1},
        ):
            s.push("GRAPH_DEFINE", exec=1, node_count=2)
            node(s, 0)
            node(s, 1, **bad)
            result, where = instantiate(s)
            assert result in (1, 400, 801) and where == 1, (bad, result)
            s.push("GRAPH_DESTROY", exec=1)
        s.push("GRAPH_DEFINE", exec=1, node_count=2)
        node(s, 0)
        node(s, 1)
        edges(s, (0, 1), (1, 0))
        assert instantiate(s)[0] != 0
        assert s.word(WORD_SESSION_ERROR) == 0


@isolated
def test_wild_definitions_are_refused() -> None:
    generator = random.Random(7)
    numbers = [0, 1, 2, 3, 65535, 65536, 1 << 20, 0xFFFFFFFF]
    with Session() as s:
        address = opened(s)
        names = [name for name in BY_NAME if name.startswith("GRAPH_")]
        for _ in range(4000):
            name = generator.choice(names)
            values = {field: generator.choice(numbers) for field, _ in BY_NAME[name].fields}
            values["exec"] = generator.choice([1, 2, 3, 65535, 65536, 0xFFFFFFFF])
            if name == "GRAPH_DEFINE":
                values["node_count"] = generator.choice([0, 4, 1 << 20, 1 << 21, 0xFFFFFFFF])
            tail = b""
            if BY_NAME[name].tail:
                inner = generator.choice([n for n in BY_NAME if n not in ("DETACH", "CTX_DESTROY")])
                fields = {f: generator.choice([0, 1, address, 64]) & 0x7FFFFFFF for f, _ in BY_NAME[inner].fields}
                tail = generator.choice([pack(inner, fields), generator.randbytes(64), b"", generator.randbytes(300)])
            s.push_raw(pack(name, values, tail, stream=1, reply_slot=1))
        assert s.call("PING", value=1)[0] == 0
        assert s.word(WORD_SESSION_ERROR) == 0
        assert s.word(64 + 1) == 0


if __name__ == "__main__":
    main(globals())
