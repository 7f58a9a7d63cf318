"""Turns over a network: an engine that sleeps on descriptors finds what orion-server grants."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pytest
from isolated import isolated, main
from remote import Remote
from seat import SEAT
from session import ADD_PTX, CHUNK, MIB, SLOT_BASE
from test_turns import MS, Server

ADD = 1
ROUNDS = 20


@pytest.fixture(autouse=True, params=["raw", "zmq"])
def lanes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_TEST_LANES", request.param)


def was_taken(server: Server) -> bool:
    """Whether the engine has read the descriptor that wakes it."""
    try:
        os.eventfd_read(server.wake_fd)
    except BlockingIOError:
        return True
    return False


@isolated
def test_a_turn_wakes_an_engine_that_sleeps_on_descriptors() -> None:
    server = Server()
    with Remote(seat=server.fds) as r:
        assert struct.unpack_from("<I", server.memory, SEAT["polls"])[0] == 1
        assert r.call("CTX_PRIMARY", device=0)[0] == 0
        assert r.call("MEM_MAP", device_address=SLOT_BASE, size_bytes=CHUNK)[0] == 0
        number = r.send_bulk(MIB, ADD_PTX)
        assert r.call("MODULE_LOAD", module=1, image_off=MIB, image_bytes=len(ADD_PTX), bulk_seq=number)[0] == 0
        assert r.call("MODULE_GET_FUNCTION", b"add", module=1, function=ADD)[0] == 0
        r.push("STREAM_CREATE", stream=1, stream_flags=1)
        number = r.send_bulk(0, bytes(4))
        r.push("COPY_H2D", stream=1, device_dst=SLOT_BASE, src_off=0, size_bytes=4, bulk_seq=number)
        shape = {f"{kind}_{axis}": 1 for kind in ("grid", "block") for axis in "xyz"}
        for turn in range(1, ROUNDS + 1):
            r.push("LAUNCH", struct.pack("<QI", SLOT_BASE, 2), stream=1, function=ADD, param_bytes=12, **shape)
            server.until(0, "wants", 1)
            assert r.call("PING", value=turn)[0] == 0  # what is no GPU time goes on
            assert server[0, "works"] == turn - 1
            grant = server.give(1000 * MS)
            server.until(0, "returned", grant)
            assert server[0, "works"] == turn
            assert was_taken(server)
        r.push("COPY_D2H", stream=1, src=SLOT_BASE, dst_off=0, size_bytes=4)
        r.sync(1, 1)
        assert struct.unpack("<I", r.arena[0]) == (2 * ROUNDS,)


if __name__ == "__main__":
    main(globals())
