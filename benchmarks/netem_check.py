"""Is the emulated network like one? A reply's time with ORION_EMULATE_RTT_US against the kernel's own delay (netem).

    python -m benchmarks.netem_check [--rtt-us 1000] [--calls 200] [--device softgpu] [--output FILE]

orion-server listens on loopback only, so both ends run in one network namespace of their own, whose `lo` delays every
packet: a round trip passes it twice. Needs `unshare` and `tc`, and a kernel with sch_netem; without these the rest is
measured and the table says what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
INSIDE = "ORION_NETEM_CHECK_INSIDE"

ASK = """
import ctypes, json, sys, time
cu = ctypes.CDLL("libcuda.so.1")
context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
assert cu.cuInit(0) == 0 and cu.cuCtxCreate_v2(ctypes.byref(context), 0, 0) == 0
times = []
for _ in range(int(sys.argv[1])):
    began = time.perf_counter_ns()
    assert cu.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
    times.append((time.perf_counter_ns() - began) / 1e3)
times.sort()
print(json.dumps({"min_us": times[0], "median_us": times[len(times) // 2], "p90_us": times[len(times) * 9 // 10]}))
"""


def measure(server: str, calls: int, **network: str) -> dict[str, float]:
    command = [sys.executable, "-m", "orion_client.run", "--server", server, "--transport", "tcp", "--"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **network}
    done = subprocess.run(
        [*command, sys.executable, "-c", ASK, str(calls)], env=environment, capture_output=True, text=True, timeout=300
    )
    if done.returncode != 0:
        raise SystemExit(f"the program failed: {done.stderr.strip()}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


def set_delay(one_way_us: float) -> str:
    """Delays every packet of `lo`. What keeps that from working, or ""."""
    command = ["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", f"{one_way_us:g}us", "limit", "100000"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "there is no tc (package iproute2)"
    if done.returncode == 0:
        return ""
    return f"the kernel refused netem (is sch_netem there?): {done.stderr.strip()}"


def run_inside(arguments: argparse.Namespace) -> int:
    from orion_client.private_server import PrivateServer

    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    rows: dict[str, dict[str, float]] = {}
    with PrivateServer(arguments.device) as server:
        rows["loopback"] = measure(server.address, arguments.calls)
        wish = {"ORION_EMULATE_RTT_US": f"{arguments.rtt_us:g}"}
        rows["emulated"] = measure(server.address, arguments.calls, **wish)
        missing = set_delay(arguments.rtt_us / 2)
        if not missing:
            rows["netem"] = measure(server.address, arguments.calls)
    result: dict[str, Any] = {"rtt_us": arguments.rtt_us, "calls": arguments.calls, "rows": rows}
    if missing:
        result["netem_missing"] = missing
    else:
        result["emulated_over_netem"] = rows["emulated"]["median_us"] / rows["netem"]["median_us"]
    print(f"{'network':10} {'min us':>10} {'median us':>10} {'p90 us':>10}")
    for name, row in rows.items():
        print(f"{name:10} {row['min_us']:10.1f} {row['median_us']:10.1f} {row['p90_us']:10.1f}")
    if missing:
        print(f"netem: not measured: {missing}")
    else:
        print(f"emulated / netem (median): {result['emulated_over_netem']:.3f}")
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(result, indent=2) + "\n")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtt-us", type=float, default=1000.0)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--device", default="softgpu", choices=("softgpu", "nvidia"))
    parser.add_argument("--output", help="a JSON file")
    arguments = parser.parse_args()
    if INSIDE in os.environ:
        return run_inside(arguments)
    # A namespace of its own: nobody else's loopback is delayed. As another user than root, with a user namespace too.
    command = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    inside = [sys.executable, "-m", "benchmarks.netem_check", *sys.argv[1:]]
    environment = {**os.environ, INSIDE: "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, *inside], env=environment, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
