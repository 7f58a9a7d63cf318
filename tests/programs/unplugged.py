"""A network that goes away without a word: run in a network namespace of its own (`unshare --net`), where loopback is
the network between a server and a program. Prints what the program's calls return before and after."""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import subprocess
import sys
from pathlib import Path

from orion_client.private_server import PrivateServer

SCRIPTED = Path(__file__).resolve().parent / "scripted.py"
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def set_loopback(is_up: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(sock, SIOCGIFFLAGS, request), 16)
        flags = flags | IFF_UP if is_up else flags & ~IFF_UP
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags))


def main() -> None:
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        sys.exit("this is the machine's own network: start it with `unshare --net`")
    set_loopback(True)
    with PrivateServer("softgpu") as server:
        command = [sys.executable, "-m", "orion_client.run", "--server", server.address, "--transport", "tcp", "--"]
        program = subprocess.Popen(
            [*command, sys.executable, str(SCRIPTED)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        stdin, stdout, stderr = program.stdin, program.stdout, program.stderr
        assert stdin and stdout and stderr

        def steps(*names: str) -> list[int]:
            results = []
            for name in names:
                stdin.write(name + "\n")
                stdin.flush()
                results.append(int(stdout.readline()))
            return results

        before = steps("attach", "allocate", "fill", "read")
        set_loopback(False)
        after = steps("read", "sync")
        stdin.close()
        told = [line for line in stderr.read().splitlines() if line.startswith("orion:")]
        program.wait(60)
        print(json.dumps({"before": before, "after": after, "told": told}), flush=True)


if __name__ == "__main__":
    main()
