"""What a container with vGPUs gets: the client library, where the controller is, a way to this node's server. No device
nodes: its CUDA calls leave it over a socket or shared memory."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from orion_client.libraries import LIBCUDA, LIBNVML

LIBRARIES = "/usr/lib/orion"
SOCKETS = "/run/orion"
TOKEN_FILE = "/var/run/secrets/orion/token"


@dataclass(frozen=True)
class Gives:
    """Settings of the plugin for containers. Folders are the node's; an empty one is not mounted."""

    controller: str  # host:port[,host:port...]
    controller_key: str = ""
    client_dir: str = "/var/lib/orion/client"
    socket_dir: str = SOCKETS
    token_file: str = TOKEN_FILE


def environment(gives: Gives, vgpus: int) -> dict[str, str]:
    """Variables; a pod's own of the same names go before them."""
    values = {
        "ORION_CONTROLLER": gives.controller,
        # As many as the limit of the resource says, where the pod does not say.
        "ORION_VGPU": str(vgpus),
        "LD_PRELOAD": f"{LIBRARIES}/{LIBCUDA}:{LIBRARIES}/{LIBNVML}",
        "TRITON_LIBCUDA_PATH": LIBRARIES,
        # Images made for NVIDIA's container runtime ask it for all GPUs of the node: not from here.
        "NVIDIA_VISIBLE_DEVICES": "void",
    }
    if gives.controller_key:
        values["ORION_CONTROLLER_KEY"] = gives.controller_key
    if gives.token_file:
        values["ORION_TOKEN_FILE"] = gives.token_file
    return values


def mounts(gives: Gives, has_local_server: bool) -> list[tuple[str, str]]:
    """(in the container, on the node), all read-only. Sockets can be connected to where they cannot be replaced."""
    found = [(LIBRARIES, gives.client_dir)] if gives.client_dir else []
    if gives.socket_dir and has_local_server:
        found.append((SOCKETS, gives.socket_dir))
    return found


def install_libraries(source: Path, target: Path) -> list[str]:
    """Copies the client libraries into the folder that containers see; the names of those that have changed. A file is
    replaced as a whole: programs that run keep theirs. OSError."""
    target.mkdir(parents=True, exist_ok=True)
    changed = []
    for name in (LIBCUDA, LIBNVML):
        data = (source / name).read_bytes()
        path = target / name
        if path.is_file() and path.read_bytes() == data:
            continue
        descriptor, partial = tempfile.mkstemp(dir=target, prefix=f".{name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.chmod(partial, 0o755)
            os.replace(partial, path)
        except BaseException:
            os.unlink(partial)
            raise
        changed.append(name)
    return changed
