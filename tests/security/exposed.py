"""Run in a network namespace of its own (`unshare --net`): servers on an address that is not loopback."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from tests.security.server import Server, copy

ADDRESS = "198.51.100.1"


def main() -> None:
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        sys.exit("this is the machine's own network: start it with `unshare --net`")
    key_file, folder = sys.argv[1], Path(sys.argv[2])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"], check=True)
    for listen in (ADDRESS, "0.0.0.0"):
        with Server(folder, "--client-key-file", key_file, listen=f"{listen}:0") as server:
            port = server.address.rpartition(":")[2]
            ran = copy(f"{ADDRESS}:{port}", server.key, ORION_CLIENT_KEY=Path(key_file).read_text().strip())
            encrypted = any("encrypted (" in line for line in ran.said)
            print(listen, ran.found["code"], "encrypted" if encrypted else ran.said, flush=True)


if __name__ == "__main__":
    main()
