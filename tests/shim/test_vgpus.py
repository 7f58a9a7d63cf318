"""How many devices a process sees, which, in what order: ORION_VGPU and CUDA_VISIBLE_DEVICES, two devices there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from orion_client.libraries import client_folder
from orion_client.private_server import PrivateServer

ASK = """
import ctypes, json, uuid
cuda = ctypes.CDLL("libcuda.so.1")
code = cuda.cuInit(0)
count, found = ctypes.c_int(), []
if code == 0:
    cuda.cuDeviceGetCount(ctypes.byref(count))
for ordinal in range(count.value):
    device, raw = ctypes.c_int(), (ctypes.c_uint8 * 16)()
    assert cuda.cuDeviceGet(ctypes.byref(device), ordinal) == 0
    assert cuda.cuDeviceGetUuid_v2(raw, device) == 0
    found.append("GPU-" + str(uuid.UUID(bytes=bytes(raw))))
print(json.dumps([code, found]))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTGPU_DEVICES", "2")
        running = PrivateServer("softgpu")
    with running:
        yield running


def ask(server: PrivateServer, **extra: str) -> tuple[int, list[str], str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ORION_", "CUDA_"))}
    environment = {**clean, "LD_LIBRARY_PATH": str(client_folder()), "ORION_SERVER": server.address, **extra}
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    code, found = json.loads(done.stdout)
    return code, found, done.stderr


def test_all_are_there_by_default_and_as_many_as_are_wanted(server: PrivateServer) -> None:
    code, both, _ = ask(server)
    assert code == 0 and len(set(both)) == 2
    assert ask(server, ORION_VGPU="2")[1] == both
    (one,) = ask(server, ORION_VGPU="1")[1]
    assert one in both


def test_more_than_there_are_is_refused_with_a_sentence(server: PrivateServer) -> None:
    code, found, told = ask(server, ORION_VGPU="3")
    assert (code, found) == (101, [])
    assert "3 vGPUs wanted, this server has 2 GPU(s)" in told and "lower ORION_VGPU" in told


def test_visible_devices_choose_and_order(server: PrivateServer) -> None:
    both = ask(server)[1]
    assert ask(server, CUDA_VISIBLE_DEVICES="1,0")[1] == both[::-1]
    assert ask(server, CUDA_VISIBLE_DEVICES="1")[1] == [both[1]]
    assert ask(server, CUDA_VISIBLE_DEVICES=f"{both[1]},{both[0]}")[1] == both[::-1]
    assert ask(server, CUDA_VISIBLE_DEVICES="0,7,1")[1] == [both[0]]
    assert ask(server, CUDA_VISIBLE_DEVICES="")[0] == 100
    assert ask(server, CUDA_VISIBLE_DEVICES="1", CUDA_DEVICE_ORDER="PCI_BUS_ID")[1] == [both[1]]
