"""One whole session on a machine: correctness first, then native, shm and tcp rows in turn, floors, and a table.

    python3 -m benchmarks.session --device nvidia --out DIR      on a GPU machine
    python3 -m benchmarks.session --device softgpu --out DIR     anywhere: a check of the path, never a GPU timing

Clients of a GPU run live in a mount namespace without the driver (benchmarks.isolation), and each row looks at its own
mappings besides. DIR gets session.json (everything), table.txt and server logs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import rows as row_programs
from benchmarks.machine import describe
from benchmarks.places import say
from benchmarks.servers import client_environment, server
from benchmarks.table import render

ROOT = Path(__file__).resolve().parent.parent
TRANSPORTS = ("shm", "tcp")
DRIVER_API_SECTIONS = (
    "devices contexts memory pinned copies copies2d memset pointers modules launches library link occupancy streams "
    "events callbacks threads misc mapped callback_writes fault"
).split()


def run(command: list[str], environment: dict[str, str], timeout_s: float) -> dict[str, Any]:
    """Runs a program; its last JSON line, or what went wrong."""
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, cwd=ROOT)
    except subprocess.TimeoutExpired as late:
        tail = late.stderr[-500:] if late.stderr else b""
        return {"error": f"no answer in {timeout_s:g} s", "tail": tail.decode() if isinstance(tail, bytes) else tail}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"error": f"exit {done.returncode}", "tail": (done.stdout[-600:] + done.stderr[-1200:])}
    return dict(json.loads(lines[-1]))


class Session:
    def __init__(self, device: str, out: Path, repeats: int, names: list[str]) -> None:
        self.device, self.out, self.repeats, self.names = device, out, repeats, names
        self.result: dict[str, Any] = {"machine": describe("benchmarks.session"), "rows": {}, "programs": {}}
        self.native = dict(os.environ)
        if device == "softgpu":
            from orion_client import libraries

            self.native["LD_LIBRARY_PATH"] = str(libraries.softgpu_folder())

    def hidden(self, command: list[str]) -> list[str]:
        return [sys.executable, "-m", "benchmarks.isolation", "--", *command] if self.device == "nvidia" else command

    def program(self, name: str, command: list[str], environment: dict[str, str], timeout_s: float = 120) -> None:
        """A whole program: only its exit code and the end of its output count."""
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s, cwd=ROOT)
            text, code = done.stdout[-1500:] + done.stderr[-1500:], done.returncode
        except subprocess.TimeoutExpired:
            text, code = f"no end in {timeout_s:g} s", -1
        self.result["programs"][name] = {"exit": code, "tail": text if code else text[-400:]}
        say(f"{name}: {'passed' if code == 0 else f'FAILED ({code})'}")

    def programs(self, label: str, environment: dict[str, str], hide: bool) -> None:
        wrap = self.hidden if hide else list
        driver_api = ROOT / "build/tests/driver_api"
        if driver_api.exists():
            self.program(f"driver_api/{label}", wrap([str(driver_api)]), environment)
        for example in ("vector_add_numba.py", "vector_add_pycuda.py"):
            if (ROOT / "examples" / example).exists():
                self.program(f"{example}/{label}", wrap([sys.executable, f"examples/{example}"]), environment)

    def measure(self, addresses: dict[str, dict[str, str]]) -> None:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in addresses}
        for repeat in range(self.repeats):
            for row in self.names:
                for label, environment in addresses.items():
                    command = [sys.executable, "-m", "benchmarks.rows", row]
                    answer = run(self.hidden(command) if label != "native" else command, environment, 150)
                    answer["name"] = row
                    runs[label].append(answer)
                    value = (
                        f"{answer['value']:.4g} {answer['unit']}"
                        if "value" in answer
                        else f"FAILED {answer['error']}: {answer['tail'][-300:]}"
                    )
                    say(f"{repeat} {row} {label}: {value}")
        self.result["rows"] = runs

    def go(self) -> int:
        self.programs("native", self.native, hide=False)
        with server(self.device, log=self.out / "server.log") as address:
            environments = {"native": self.native}
            for transport in TRANSPORTS:
                environments[transport] = client_environment(address, transport)
                self.programs(transport, environments[transport], hide=True)
            self.measure(environments)
        text, good = render(self.result["rows"])
        good = good and all(p["exit"] == 0 for p in self.result["programs"].values())
        self.result["table"] = text.splitlines()
        self.result["good"] = good
        (self.out / "session.json").write_text(json.dumps(self.result, indent=1))
        (self.out / "table.txt").write_text(text + "\n")
        print(text)
        return 0 if good else 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["nvidia", "softgpu"], required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for session.json, table.txt and logs")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repeats of every row (default 3)")
    parser.add_argument("--rows", default=",".join(row_programs.ROWS), help="comma-separated rows")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    return Session(arguments.device, arguments.out, arguments.repeats, arguments.rows.split(",")).go()


if __name__ == "__main__":
    sys.exit(main())
