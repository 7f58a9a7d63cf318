"""An unmodified program with nothing but what the CDI file of a claim gives its container: on a softgpu server of a
pool it sees the vGPU of its claim."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from orion_client.libraries import client_folder
from orion_client.private_server import PrivateServer
from orion_k8s.dra import DRIVER
from orion_k8s.dra.cdi import LIBRARIES, Contents, file_of
from tests.k8s.dra_world import Cluster, go

PROGRAM = """
import ctypes, json
cuda = ctypes.CDLL("libcuda.so.1")
assert cuda.cuInit(0) == 0
count, context, free, total = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
assert cuda.cuDeviceGetCount(ctypes.byref(count)) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0 and cuda.cuCtxSetCurrent(context) == 0
assert cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
print(json.dumps([count.value, total.value >> 20]))
"""


def container(path: Path) -> dict[str, str]:
    """The environment as a container runtime makes it of a CDI file, with the client library where it is here."""
    edits = json.loads(path.read_text())["devices"][0]["containerEdits"]
    told = dict(entry.split("=", 1) for entry in edits["env"])
    assert {m["containerPath"]: m["hostPath"] for m in edits["mounts"]}[LIBRARIES] == str(client_folder())
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORION_", "LD_"))}
    return environment | {name: value.replace(LIBRARIES, str(client_folder())) for name, value in told.items()}


async def run(environment: dict[str, str]) -> list[int]:
    program = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, env=environment,
                                                   stdout=asyncio.subprocess.PIPE)  # fmt: skip
    told, _ = await asyncio.wait_for(program.communicate(), 100)
    assert program.returncode == 0
    return list(json.loads(told))


def test_a_program_sees_the_vgpu_of_its_claim() -> None:
    async def body(world: Cluster) -> None:
        world.contents = Contents(world.pool.address, client_folder(), world.folder / "run")
        extra = ("--controller", world.pool.address, "--name", "gpu-1", "--vgpu-count", "4")
        server = await asyncio.to_thread(PrivateServer, "softgpu", extra=extra)
        with server:
            await world.pool.joined("gpu-1")
            await world.publish(servers={"gpu-1"})
            await world.start_node()
            (device, *_) = world.devices("gpu-1")
            claim = world.claim("c", [("gpu-1", device)], [{"gmem": "512Mi", "ratio": "25", "vgpus": "1"}])
            await world.kubelet.prepare(claim)
            environment = container(file_of(world.cdi, DRIVER, claim["metadata"]["uid"]))
            assert await run(environment) == [1, 512]
            assert await asyncio.gather(run(environment), run(environment)) == [[1, 512], [1, 512]]  # both share it
            (pod,) = (await world.reservations()).values()
            assert (pod["vgpus"], pod["expires_s"]) == (1, None)
            await world.kubelet.unprepare(claim)
            assert await world.reservations() == {}

    go({}, body)
