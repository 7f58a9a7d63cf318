"""One process on two servers: every address that the program sees is one thing only."""

from __future__ import annotations

import sys
from pathlib import Path

PROGRAM = str(Path(__file__).resolve().parent.parent / "programs" / "two_servers.py")


def test_no_address_twice_nor_in_client_memory(server, second_server, transport, run, nothing_left):
    both = f"{server.address},{second_server.address}"
    result = run(both, transport, sys.executable, PROGRAM, "10000")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert "10000 allocations on 2 devices" in result.stdout
    nothing_left(server.address)
    nothing_left(second_server.address)
