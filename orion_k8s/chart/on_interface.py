"""Runs a command with the address of a network interface in it: `on_interface eth1 -- orion-server --listen={address}`.

The product's chart binds its server to an interface by name (`server.net`), because nodes have several networks.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys

PLACEHOLDER = "{address}"
_SIOCGIFADDR = 0x8915
_NAME_BYTES_MAX = 15
_EXIT_SETUP = 2


def address_of(interface: str) -> str:
    """Its IPv4 address. ValueError says what is wrong, and which interfaces there are."""
    name = interface.encode()
    if not 1 <= len(name) <= _NAME_BYTES_MAX:
        raise ValueError(f"{interface!r} is no network interface: a name has 1 to {_NAME_BYTES_MAX} bytes")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", name))
        except OSError as error:
            there = ", ".join(found for _, found in socket.if_nameindex())
            raise ValueError(
                f"the network interface {interface!r} of this node has no IPv4 address ({error.strerror}); there are: "
                f"{there}. Set the chart's server.interface to one of them, or to nothing for the node's address"
            ) from None
    return socket.inet_ntoa(answer[20:24])


def main(arguments: list[str]) -> int:
    """Replaces this process by the command; an exit code where that is not possible."""
    if len(arguments) < 3 or arguments[1] != "--":
        print("usage: python -m orion_k8s.chart.on_interface INTERFACE -- COMMAND [ARGUMENT...]", file=sys.stderr)
        return _EXIT_SETUP
    try:
        address = address_of(arguments[0])
    except ValueError as error:
        print(f"orion: {error}", file=sys.stderr)
        return _EXIT_SETUP
    command = [argument.replace(PLACEHOLDER, address) for argument in arguments[2:]]
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"orion: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return _EXIT_SETUP


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
