"""The CDI specification of a claim: what a container runtime gives to the containers that use it. There is no device
node in it: a client of Orion needs a library and an address."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from orion_client.libraries import LIBCUDA, LIBNVML

CDI_VERSION = "0.5.0"  # names of devices may begin with a digit
CLASS = "claim"
CLIENT_FOLDER = "/var/lib/orion/client"  # of the node: where the device plugin puts the client libraries
LIBRARIES = "/usr/lib/orion"
SOCKETS = "/run/orion"


@dataclass(frozen=True)
class Contents:
    """What every container gets. `client_folder`: of the node, with libcuda.so.1; `socket_folder`: of the node, given
    where it is there. `environment`: besides what the claim says."""

    controller: str
    client_folder: Path
    socket_folder: Path
    environment: dict[str, str] = field(default_factory=dict)


def device_id(driver: str, claim_uid: str) -> str:
    return f"{driver}/{CLASS}={claim_uid}"


def specification(driver: str, claim_uid: str, values: dict[str, str], contents: Contents) -> dict[str, Any]:
    """`values`: ORION_* of the claim; they go before what is set for every container."""
    environment = {
        "LD_PRELOAD": f"{LIBRARIES}/{LIBCUDA}:{LIBRARIES}/{LIBNVML}",
        "TRITON_LIBCUDA_PATH": LIBRARIES,
        # An NVIDIA runtime on the node adds no device nodes of its own.
        "NVIDIA_VISIBLE_DEVICES": "void",
        "ORION_CONTROLLER": contents.controller,
        **contents.environment,
        **values,
    }
    mounts = [_mount(contents.client_folder, LIBRARIES, ["ro", "nosuid", "nodev", "rbind"])]
    if contents.socket_folder.is_dir():
        # A socket can be connected to where it cannot be replaced.
        mounts.append(_mount(contents.socket_folder, SOCKETS, ["ro", "nosuid", "nodev", "noexec", "rbind"]))
    edits = {"env": [f"{name}={value}" for name, value in sorted(environment.items())], "mounts": mounts}
    return {
        "cdiVersion": CDI_VERSION,
        "kind": f"{driver}/{CLASS}",
        "devices": [{"name": claim_uid, "containerEdits": edits}],
    }


def _mount(host: Path, container: str, options: list[str]) -> dict[str, Any]:
    return {"hostPath": str(host), "containerPath": container, "options": options}


def file_of(folder: Path, driver: str, claim_uid: str) -> Path:
    return folder / f"{driver}-{CLASS}-{claim_uid}.json"


def write_whole(path: Path, value: Any) -> None:
    """A JSON file that is there as a whole or not at all, also after a power failure. Keys may be in it: 0600."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(value), indent=1))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
