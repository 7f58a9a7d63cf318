"""Memory quotas and moved memory on a real driver: does each kind of memory stop at the quota, what does the driver say
that the worker has, what comes back, and what does a move cost?

    python3 -m benchmarks.memory_session --device nvidia --out DIR [--parts rows,kill,swap] [--quota-mib 2048]

DIR gets memory.json. `rows`: for each kind of memory a program takes until it is refused; the ledger (orion-server's)
and NVML (the driver's, where there is one) are read while it is full, and again when it has given all back. `kill`: a
full program is killed; when is its quota back, and can another read what it wrote? `swap`: two vGPUs that do not fit
together: first alternately, the moves timed against page-locked copies of the same run, then both busy at once; the
sums of every step must be those of a run alone. Exit status 1: something was not as promised.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.memory_program import OUT_OF_MEMORY, ROWS
from benchmarks.places import Places, say

MIB = 1 << 20
PINNED_MIB = 512
PROGRAM = [sys.executable, "-m", "benchmarks.memory_program"]
KEPT_BYTES = 4 * MIB
MOVES_LIMIT = 0.6  # of the page-locked copy's rate


class Program:
    """One of memory_program's, on a server, without a driver in sight."""

    def __init__(self, places: Places, place: str, *arguments: str, **settings: str) -> None:
        environment = {**places.environment(place), **settings}
        self.process = subprocess.Popen(
            places.command(place, [*PROGRAM, *arguments]), env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the program ended: exit {self.process.wait(60)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def begin(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def does(self, line: str = "") -> dict[str, Any]:
        self.begin(line)
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def program(places: Places, place: str, *arguments: str, **settings: str) -> Iterator[Program]:
    made = Program(places, place, *arguments, **settings)
    try:
        yield made
    finally:
        made.close()


def ledger(address: str) -> list[dict[str, Any]]:
    from orion_client.control_client import stats

    return [
        {"used_bytes": v.used_bytes, "quota_bytes": v.quota_bytes, "out_bytes": v.out_bytes,
         "pinned_bytes": v.pinned_bytes, "kind_bytes": {k: n for k, n in v.kind_bytes.items() if n}}
        for v in stats(address).vgpus
    ]  # fmt: skip


def until_alone(address: str) -> None:
    deadline_s = time.monotonic() + 60
    while ledger(address) and time.monotonic() < deadline_s:
        time.sleep(0.02)


class Nvml:
    """What the driver says is in use on GPU 0; None without NVML."""

    def __init__(self, device: str) -> None:
        self.call: Any = None
        if device == "nvidia":
            import ctypes

            class Memory(ctypes.Structure):
                _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]

            nvml, handle = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
            if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)):
                return

            def used() -> int:
                memory = Memory()
                code = nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
                return -1 if code else memory.used

            self.call = used

    def used_bytes(self) -> int | None:
        return None if self.call is None else self.call()


def row(places: Places, place: str, name: str, quota_mib: int, nvml: Nvml) -> dict[str, Any]:
    """One kind of memory against the quota, and what was not as promised."""
    with program(places, place, "take", name, ORION_GMEM=str(quota_mib), ORION_RATIO="20") as taker:
        full = taker.answer()
        (books,), driver_full = ledger(places.address), nvml.used_bytes()
        freed = taker.does()
        time.sleep(0.2)
        after, driver_after = ledger(places.address), nvml.used_bytes()
        taker.begin()
    until_alone(places.address)
    wrong = []
    if full["code"] != OUT_OF_MEMORY:
        wrong.append(f"refused with {full['code']}, not {OUT_OF_MEMORY}")
    if full["total_bytes"] != quota_mib * MIB or books["quota_bytes"] != quota_mib * MIB:
        wrong.append("the total is not the quota")
    if books["used_bytes"] > books["quota_bytes"]:
        wrong.append("the ledger is above the quota")
    if not freed["free_was_there"]:
        wrong.append("what was told to be free could not be had")
    # A heap may keep its last chunk, and the module of the row's kernel stays loaded.
    if freed["free_bytes"] + KEPT_BYTES < full["before"]["free_bytes"]:
        wrong.append("not all of it came back")
    kept: dict[str, Any] = {"code": full["code"], "calls": full["count"], "ledger": books, "wrong": wrong}
    kept["after_free"] = {
        "ledger": after, "free_bytes": freed["free_bytes"], "before_bytes": full["before"]["free_bytes"],
    }  # fmt: skip
    if driver_full is not None and driver_after is not None:
        # Against the same worker without what the row took: the context is in both.
        kept["driver_took_bytes"] = driver_full - driver_after
        kept["ledger_took_bytes"] = books["used_bytes"] - (after[0]["used_bytes"] if after else 0)
    return kept


def rows(places: Places, place: str, quota_mib: int, nvml: Nvml) -> dict[str, Any]:
    done = {}
    for name in ROWS:
        say(f"row {name}, {place}")
        try:
            done[name] = row(places, place, name, quota_mib, nvml)
        except (RuntimeError, OSError, ValueError) as error:
            done[name] = {"wrong": [str(error)]}
            until_alone(places.address)
    return done


def kill(places: Places, place: str, quota_mib: int, limit_s: float) -> dict[str, Any]:
    until_alone(places.address)
    settings = {"ORION_GMEM": str(quota_mib), "ORION_RATIO": "20"}
    size_mib = quota_mib * 7 // 8 // 64 * 64
    with program(places, place, "keep", str(size_mib), **settings) as full:
        full.answer()
        full.does("steps 2")
        full.process.send_signal(signal.SIGKILL)
        began_s = time.monotonic()
        until_alone(places.address)
        back_s = time.monotonic() - began_s
    with program(places, place, "fresh", **settings) as reader:
        seen = reader.answer()
    wrong = [] if back_s <= limit_s else [f"the quota came back after {back_s:.2f} s"]
    if seen["dirty_pieces"] or not seen["pieces"]:
        wrong.append(f"{seen['dirty_pieces']} of {seen['pieces']} pieces were not zero")
    return {"quota_back_s": round(back_s, 3), **seen, "wrong": wrong}


def swap(
    places: Places, place: str, quota_mib: int, cycles: int, busy_s: float, native: dict[str, int]
) -> dict[str, Any]:
    size_mib = quota_mib * 7 // 8 // 64 * 64
    settings = {"ORION_GMEM": str(quota_mib), "ORION_RATIO": "40"}
    wrong: list[str] = []
    with program(places, place, "keep", str(size_mib), **settings) as alone:
        size_bytes = alone.answer()["bytes"]
        began_s = time.monotonic()
        want = alone.does(f"steps {cycles}")["sums"]
        step_s = (time.monotonic() - began_s) / cycles
    until_alone(places.address)
    took_s, moved = [], []
    with (
        program(places, place, "keep", str(size_mib), **settings) as a,
        program(places, place, "keep", str(size_mib), **settings) as b,
    ):
        a.answer(), b.answer()
        got: dict[str, list[str]] = {"a": [], "b": []}
        for cycle in range(cycles):
            for name, one in (("a", a), ("b", b)):
                seconds = one.does("touch")["seconds"]
                moved.append(sum(v["out_bytes"] for v in ledger(places.address)))
                if cycle:  # the first ones register host memory, which stays
                    took_s.append(seconds)
                got[name] += one.does("steps 1")["sums"]
        for name, sums in got.items():
            if sums != want:
                wrong.append(f"{name}: step {next(i for i in range(cycles) if sums[i] != want[i])} has another sum")
        say(f"swap, {place}: {cycles} cycles; both busy for {busy_s:.0f} s")
        until_s = time.monotonic() + busy_s
        for one in (a, b):
            one.begin(f"until {until_s}")
        busy = [one.answer()["sums"] for one in (a, b)]
        if busy[0][: len(busy[1])] != busy[1][: len(busy[0])]:
            wrong.append("two that were busy at once do not agree")
    until_alone(places.address)
    least = min(moved[1:], default=0)
    if least < size_bytes // 2:
        wrong.append(f"only {least} bytes were out after a touch: nothing had to move")
    # A touch takes the other's bytes out and its own in, one after the other.
    copy_s = size_bytes / native["d2h_bytes_per_s"] + size_bytes / native["h2d_bytes_per_s"]
    of_copy = copy_s / statistics.median(took_s)
    if of_copy < MOVES_LIMIT:
        wrong.append(f"moves run at {of_copy:.2f} of the page-locked copies, not {MOVES_LIMIT}")
    return {
        "bytes_each": size_bytes, "cycles": cycles, "step_alone_s": round(step_s, 4), "busy_steps": [*map(len, busy)],
        "move_out_and_in_s": {"median": round(statistics.median(took_s), 4), "least": round(min(took_s), 4),
                              "most": round(max(took_s), 4)},
        "native": native, "of_native_copies": round(of_copy, 3), "last_sum": want[-1], "wrong": wrong,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="nvidia, softgpu or auto: orion-server's")
    parser.add_argument("--out", type=Path, required=True, help="folder for memory.json and the server's logs")
    parser.add_argument("--parts", default="rows,kill,swap")
    parser.add_argument("--places", default="shm,tcp", help="of the rows; the others run over the first")
    parser.add_argument("--quota-mib", type=int, default=2048)
    parser.add_argument("--swap-quota-mib", type=int, default=8192)
    parser.add_argument("--card-mib", type=int, default=12288, help="of the GPU's memory, what `swap` shares out")
    parser.add_argument("--kill-limit-s", type=float, default=1, help="within which a killed program's quota is back")
    parser.add_argument("--cycles", type=int, default=20, help="of `swap`: in each, both go out once and come back")
    parser.add_argument("--busy-s", type=float, default=15)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    names = tuple(args.places.split(","))
    result: dict[str, Any] = {"machine": describe("benchmarks.memory_session")}
    nvml = Nvml(args.device)
    parts = args.parts.split(",")
    if "rows" in parts or "kill" in parts:
        options = ("--vgpu-count", "4", "--pinned-mib", str(PINNED_MIB))
        with Places(args.device, names, args.out / "server.log", options) as places:
            if "rows" in parts:
                result["rows"] = {place: rows(places, place, args.quota_mib, nvml) for place in names}
            if "kill" in parts:
                result["kill"] = kill(places, names[0], args.quota_mib, args.kill_limit_s)
    if "swap" in parts:
        native = native_copies(args.device, args.out)
        card_mib = native["total_bytes"] // MIB
        moving = ("--vgpu-count", "4", "--swap-mib", str(args.swap_quota_mib),
                  "--reserve-mib", str(max(0, card_mib - args.card_mib)))  # fmt: skip
        with Places(args.device, names[:1], args.out / "swap.log", moving) as places:
            result["swap"] = swap(places, names[0], args.swap_quota_mib, args.cycles, args.busy_s, native)
    wrong = [*walk(result)]
    result["wrong"] = wrong
    (args.out / "memory.json").write_text(json.dumps(result, indent=1) + "\n")
    for line in wrong or ["all as promised"]:
        print(line)
    return 1 if wrong else 0


def native_copies(device: str, out: Path) -> dict[str, int]:
    """Rates of page-locked copies without Orion, and the GPU's memory."""
    with Places(device, ("native",), out / "native.log") as places:
        outcome = places.run("native", [*PROGRAM, "copies", "1024" if device == "nvidia" else "64"], 120)
    if not outcome.good:
        raise RuntimeError(f"copies without Orion: {outcome.failure}\n{outcome.stderr[-2000:]}")
    answer: dict[str, int] = json.loads(outcome.stdout)
    return answer


def walk(part: Any, name: str = "") -> Iterator[str]:
    """Every promise that was not kept, by its place in the result."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key == "wrong":
                yield from (f"{name}: {line}" for line in value)
            else:
                yield from walk(value, f"{name}.{key}".lstrip("."))


if __name__ == "__main__":
    sys.exit(main())
