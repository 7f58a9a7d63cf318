"""RDMA through UCX: what this server offers, to whom, and why not. See docs/rdma.md."""

from __future__ import annotations

import fcntl
import socket
import struct
from dataclasses import replace
from pathlib import Path

from orion_server.config import ConfigError, Settings
from wire import control

_DEVICES = Path("/sys/class/infiniband")
_SIOCGIFADDR = 0x8915


def active_ports(folder: Path = _DEVICES) -> list[str]:
    """Ports of RDMA devices that have a link, as UCX names them: `mlx5_0:1`."""
    found = []
    for state in sorted(folder.glob("*/ports/*/state")):
        try:
            if state.read_text().startswith("4:"):  # ACTIVE
                found.append(f"{state.parent.parent.parent.name}:{state.parent.name}")
        except OSError:  # it has just gone
            continue
    return found


def address_of(interface: str) -> str:
    """The IPv4 address of a network interface; ConfigError where it has none."""
    name = interface.encode()
    if not 0 < len(name) < 16:
        raise ConfigError(f"bind_net {interface!r}: it is the name of a network interface, such as eth0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", name))
        except OSError as error:
            raise ConfigError(f"bind_net {interface}: that interface has no IPv4 address ({error.strerror})") from error
    return socket.inet_ntoa(answer[20:24])


def bind_to_net(settings: Settings) -> Settings:
    """Settings whose address is that of the interface `bind_net`, where one is named."""
    if not settings.bind_net:
        return settings
    address = address_of(settings.bind_net)
    if settings.host not in (Settings.host, address):
        raise ConfigError(f"bind_net {settings.bind_net} and the address {settings.host}: name one of them")
    return replace(settings, host=address)


class Rdma:
    """What the settings and this machine allow."""

    def __init__(self, settings: Settings, ports: list[str]) -> None:
        self._enabled = settings.enable_rdma
        self.port = ""
        wanted = settings.ibverbs_device
        for port in ports:
            if wanted in ("", port, port.rpartition(":")[0]):
                self.port = port
                break
        # What workers tell UCX to use: all devices, where nobody has named one.
        self.devices = (self.port or wanted) if wanted else ""
        self._wanted = wanted

    @property
    def enabled(self) -> bool:
        """Whether workers load UCX."""
        return self._enabled

    def describe(self) -> str:
        """One line for the log at the start."""
        if not self.port:
            missing = f"no active device {self._wanted}" if self._wanted else "no active RDMA device"
            return f"RDMA is enabled and this machine has {missing}: only clients with ORION_TRANSPORT=ucx use UCX"
        return f"RDMA is enabled on {self.port}; what travels over it is not encrypted"

    def refusal(self, request: control.Attach, worker_why: str) -> str:
        """Why a client that asks for UCX's lanes does not get them; empty: it does. `worker_why`: of its worker."""
        if not self._enabled:
            return "RDMA is not enabled there (orion-server --enable-rdma)"
        if request.encrypt == "on":
            return "the client wants its lanes encrypted, and RDMA is not"
        if worker_why:
            return worker_why
        if request.ucx == "rdma" and not self.port:
            return "it has no active RDMA device"
        return ""


def check(settings: Settings) -> None:
    """Refuses settings that contradict each other."""
    if settings.enable_rdma and settings.encrypt == "required":
        raise ConfigError("--enable-rdma and --encrypt required contradict each other: RDMA data is not encrypted")
