"""The network between client and server goes away without a word: nobody closes a connection, nothing is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
UNPLUGGED = ROOT / "tests" / "programs" / "unplugged.py"
DEVICE_UNAVAILABLE = 46


def test_a_call_that_waits_returns_when_the_network_has_gone_silent():
    own_network = ["unshare", "--net"]
    if subprocess.run([*own_network, "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a network namespace")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ORION_TCP_LANES": "raw"}
    done = subprocess.run(
        [*own_network, sys.executable, str(UNPLUGGED)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["before"] == [0, 0, 0, 0]
    assert found["after"] == [DEVICE_UNAVAILABLE, DEVICE_UNAVAILABLE]
    assert len(found["told"]) == 1, found["told"]
