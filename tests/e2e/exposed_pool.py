"""Run in a network namespace of its own (`unshare --net`): a pool on an address that is not loopback."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from tests.e2e.test_pool_secure import SERVER_KEY, Controller, run, until
from tests.security.exposed import ADDRESS
from tests.security.server import Server


def main() -> None:
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        sys.exit("this is the machine's own network: start it with `unshare --net`")
    folder = Path(sys.argv[1])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"], check=True)
    key_file = folder / "server-key"
    key_file.write_text(SERVER_KEY)
    key_file.chmod(0o600)
    with Controller(folder / "c", "--zmq", f"{ADDRESS}:0") as controller:
        options = ["--controller", controller.address, "--controller-key", controller.key()]
        options += ["--pool-key-file", str(key_file)]
        with Server(folder / "s", *options, listen=f"{ADDRESS}:0") as server:
            until(lambda: f"at {controller.address} as" in server.log)
            code, mib, said = run(controller, key=controller.key(), ORION_GMEM="64")
            print(code, mib, "encrypted" if "encrypted (" in said else said, flush=True)


if __name__ == "__main__":
    main()
