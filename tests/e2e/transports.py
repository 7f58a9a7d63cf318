"""Over what the programs of these tests reach their servers. `ORION_E2E_TRANSPORTS=ucx pytest tests/e2e`, say, for UCX
over its own tcp: tests that have no choice of a transport are left out then."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

CHOSEN = os.environ.get("ORION_E2E_TRANSPORTS", "")
TRANSPORTS = tuple((CHOSEN or "shm,tcp").split(","))
UCX = {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "lo"}  # loopback alone


@contextmanager
def environment_of(wanted: Mapping[str, str]) -> Iterator[None]:
    """Variables of this process, and of the servers that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in wanted.items():
            patch.setenv(name, value)
        yield
