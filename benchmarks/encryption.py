"""What encrypting the TCP lanes costs: the same programs over the same loopback with lanes in clear, with AES-256-GCM
and with ChaCha20-Poly1305, in turn, and the ratios of each turn.

    python3 -m benchmarks.encryption [--repeats 5] [--stripes N] [--out FILE]

The engine accepts operations and drops the GPU work, so what is left is the path. `native/client_cost.c` measures a
reply and a launch; this module, as a program of its own, copies of 16 MiB of page-locked memory.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, describe
from benchmarks.programs import compile_program
from benchmarks.servers import client_environment, server

MODES = {
    "clear": {"ORION_ENCRYPT": "off"},
    "aes256gcm": {"ORION_ENCRYPT": "on", "ORION_CIPHER": "aes256gcm"},
    "chacha20poly1305": {"ORION_ENCRYPT": "on", "ORION_CIPHER": "chacha20poly1305"},
}
COPY_BYTES = 16 << 20
COPY_SECONDS = 1.5
# Of times: less is better, so the ratio is turned over. All ratios are fractions of what lanes in clear do.
TIMES = ("reply_us", "reply_p99_us", "launch_wall_ns")
RATES = ("h2d_gb_per_s", "d2h_gb_per_s")


def copies() -> dict[str, float]:
    """In a process under the client library: GB/s of copies in and out."""
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: Any) -> None:
        code = getattr(cuda, name)(*arguments)
        if code:
            raise SystemExit(f"{name}: {code}")

    context, device, host = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_void_p()
    size = ctypes.c_size_t(COPY_BYTES)
    call("cuInit", 0)
    call("cuCtxCreate_v2", ctypes.byref(context), 0, 0)
    call("cuMemAlloc_v2", ctypes.byref(device), size)
    call("cuMemHostAlloc", ctypes.byref(host), size, 0)
    ctypes.memset(host, 1, COPY_BYTES)
    result = {}
    for rate, name, arguments in (
        ("h2d_gb_per_s", "cuMemcpyHtoD_v2", (device, host, size)),
        ("d2h_gb_per_s", "cuMemcpyDtoH_v2", (host, device, size)),
    ):
        for _ in range(2):
            call(name, *arguments)
        call("cuCtxSynchronize")
        count, began_s = 0, time.perf_counter()
        while time.perf_counter() - began_s < COPY_SECONDS:
            call(name, *arguments)
            call("cuCtxSynchronize")
            count += 1
        result[rate] = count * COPY_BYTES / (time.perf_counter() - began_s) / 1e9
    return result


def run(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def spread(values: list[float]) -> list[float]:
    return [round(value, 4) for value in (statistics.median(values), min(values), max(values))]


def measure(repeats: int, stripes: int | None) -> dict[str, Any]:
    turns: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory(prefix="orion-encryption-") as name:
        state = Path(name) / "state"
        client = compile_program("client_cost", Path(name))
        with server("softgpu", "--null-engine", "--curve", "on", "--state-dir", str(state)) as address:
            key = subprocess.run([sys.executable, "-m", "orion_server", "key", "--state-dir", str(state)],
                                 check=True, capture_output=True, text=True).stdout.strip()  # fmt: skip
            chosen = {**client_environment(address, "tcp"), "ORION_SERVER_KEY": key}
            if stripes is not None:
                chosen["ORION_TCP_STRIPES"] = str(stripes)
            for _ in range(repeats):
                for mode, settings in MODES.items():
                    environment = {**chosen, **settings}
                    own = [sys.executable, "-m", "benchmarks.encryption", "--copies"]
                    turns[mode].append(run([str(client)], environment) | run(own, environment))
    keys = [*TIMES, *RATES]
    fractions = {
        mode: {
            key: spread([
                plain[key] / turn[key] if key in TIMES else turn[key] / plain[key]
                for plain, turn in zip(turns["clear"], turns[mode], strict=True)
            ])
            for key in keys
        }
        for mode in MODES if mode != "clear"
    }  # fmt: skip
    return {
        **describe("benchmarks.encryption"),
        "load_average": os.getloadavg(),
        "repeats": repeats,
        "stripes": stripes if stripes is not None else "default",
        "measured [median, low, high]": {
            mode: {key: spread([turn[key] for turn in turns[mode]]) for key in keys} for mode in MODES
        },
        "fraction of lanes in clear [median, low, high]": fractions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stripes", type=int, help="ORION_TCP_STRIPES; left out: as the client chooses")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--copies", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.copies:
        print(json.dumps(copies()))
        return
    result = json.dumps(measure(arguments.repeats, arguments.stripes), indent=1)
    if arguments.out:
        arguments.out.write_text(result + "\n")
    print(result)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
