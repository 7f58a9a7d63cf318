"""Over what the programs of these tests reach their servers. `ORION_E2E_TRANSPORTS=ucx pytest tests/e2e`, say, for UCX
over its own tcp: tests that have no choice of a transport are left out then."""

from __future__ import annotations

import os

CHOSEN = os.environ.get("ORION_E2E_TRANSPORTS", "")
TRANSPORTS = tuple((CHOSEN or "shm,tcp").split(","))
UCX = {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "lo"}  # loopback alone
