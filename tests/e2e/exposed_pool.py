"""Run in a network namespace of its own (`unshare --net`): a pool on an address that is not loopback."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from orion_client.libraries import client_folder
from tests.e2e.test_pool import PROGRAM
from tests.e2e.test_pool_secure import CLIENT_KEY, SERVER_KEY, Controller, run, tool, until
from tests.security.exposed import ADDRESS
from tests.security.server import TIMEOUT_S, Server, environment


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
            look_at(controller, server)


def look_at(controller: Controller, server: Server) -> None:
    """What tools learn while a program runs: in the pool; of the server, as its operator; as anybody."""
    keys = {"ORION_CONTROLLER": controller.address, "ORION_CONTROLLER_KEY": controller.key(),
            "ORION_CLIENT_KEY": CLIENT_KEY, "ORION_GROUP_ID": "looked-at"}  # fmt: skip
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "stay"], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=environment(**keys, LD_LIBRARY_PATH=str(client_folder()), ORION_GMEM="64"),
    )  # fmt: skip
    assert program.stdin and program.stdout
    program.stdout.readline()
    until(lambda: str(program.pid) in tool("orion_client.smi", "--json", **keys).stdout)
    nvml = ("import ctypes; n = ctypes.CDLL('libnvidia-ml.so.1'); d = ctypes.c_void_p(); "
            "name = ctypes.create_string_buffer(96); print(n.nvmlInit_v2() or "
            "n.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(d)) or n.nvmlDeviceGetName(d, name, 96), "
            "'named' if b'softgpu' in name.value.lower() else name.value)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", nvml], capture_output=True, text=True, timeout=TIMEOUT_S,
                          env=environment(**keys, LD_LIBRARY_PATH=str(client_folder()), ORION_GMEM="64"))  # fmt: skip
    print(done.stdout.strip() or done.stderr, flush=True)
    token = (server.log_file.parent / "admin-token").read_text().strip()
    for shown in (token, CLIENT_KEY):
        direct = {"ORION_SERVER": server.address, "ORION_SERVER_KEY": server.key, "ORION_CLIENT_KEY": shown}
        seen = tool("orion_client.smi", "--json", **direct)
        print("refused" if "belongs to a pool" in seen.stdout else "not refused", seen.returncode, flush=True)
    program.communicate("\n", TIMEOUT_S)


if __name__ == "__main__":
    main()
