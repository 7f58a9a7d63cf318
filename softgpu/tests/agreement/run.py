"""Runs the cases on a CUDA driver and keeps what it answered: the golden files that every other machine is held to.

    python3 -m softgpu.tests.agreement.run --libcuda libcuda.so.1 --out DIR       (from the root of the repository)

Needs Python 3.10 or later, numpy and a driver; no toolkit. On an H100 or H200 with driver 580 it takes under a minute.
It writes DIR/<name of the device>.npz and prints how many cases ran, were refused as they must be, were refused though
the table has them, were accepted though the PTX ISA does not have them, or did not agree with the references.
`--check` compares with the golden files that are there and writes nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import hashlib
import json
import multiprocessing
import sys
import time
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from softgpu.tests.agreement import cases
from softgpu.tests.agreement.case import THREADS, Case

GOLDEN = Path(__file__).resolve().parent / "golden"
BATCH = 48
OUTPUT_BYTES = 16384
# Outcomes of a case.
RAN, REFUSED, FAILED, NEWER, NOT_RUN = "ran", "refused", "failed", "needs a newer device", "not run"


def header(sm: int) -> str:
    if sm >= 100:
        return ".version 8.8\n.target sm_100\n.address_size 64\n"
    return f".version 8.8\n.target sm_{max(sm, 90)}\n.address_size 64\n"


class DriverError(Exception):
    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"{call} returned {code}")
        self.code = code


class Driver:
    """The few calls of the CUDA driver API that are needed."""

    def __init__(self, path: str) -> None:
        self.lib = ctypes.CDLL(path)
        self.call("cuInit", 0)
        device = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        name = ctypes.create_string_buffer(128)
        self.call("cuDeviceGetName", name, 128, device)
        self.name = name.value.decode()
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(major), 75, device)
        self.call("cuDeviceGetAttribute", ctypes.byref(minor), 76, device)
        self.sm = 10 * major.value + minor.value
        version = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(version))
        self.version = version.value
        self.device = device
        self.context = ctypes.c_void_p()
        self.start()

    def start(self) -> None:
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), self.device)
        self.enter()
        self.input, self.output = self.allocate(65536), self.allocate(OUTPUT_BYTES)

    def facts(self) -> dict[str, Any]:
        return {"device": self.name, "sm": self.sm, "driver": self.version, "threads": THREADS}

    def call(self, function: str, *args: Any) -> None:
        code = getattr(self.lib, function)(*args)
        if code:
            raise DriverError(function, code)

    def enter(self) -> None:
        """Makes the context the calling thread's."""
        self.call("cuCtxSetCurrent", self.context)

    def allocate(self, size: int) -> ctypes.c_uint64:
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address

    def load(self, text: str) -> ctypes.c_void_p:
        module = ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), text.encode())
        return module

    def unload(self, module: ctypes.c_void_p) -> None:
        self.call("cuModuleUnload", module)

    def function(self, module: ctypes.c_void_p, name: str) -> ctypes.c_void_p:
        f = ctypes.c_void_p()
        self.call("cuModuleGetFunction", ctypes.byref(f), module, name.encode())
        return f

    def run(self, f: ctypes.c_void_p, data: bytes, size: int) -> bytes:
        if data:
            self.call("cuMemcpyHtoD_v2", self.input, data, ctypes.c_size_t(len(data)))
        args = (ctypes.c_void_p * 2)(ctypes.addressof(self.input), ctypes.addressof(self.output))
        self.call("cuLaunchKernel", f, 1, 1, 1, THREADS, 1, 1, 0, None, args, None)
        out = ctypes.create_string_buffer(size)
        self.call("cuMemcpyDtoH_v2", out, self.output, ctypes.c_size_t(size))
        return out.raw


Loaded = list[tuple[Case, "ctypes.c_void_p | None", "ctypes.c_void_p | None"]]


def load(driver: Driver, batch: Sequence[Case], version: str) -> Loaded:
    """Modules and functions of the cases; a case that the driver refuses has none. Halves a batch that is refused."""
    driver.enter()
    text = version + "".join(c.kernel(f"k{i}") for i, c in enumerate(batch))
    module = None
    try:
        module = driver.load(text)
        # softgpu decodes a kernel when it is asked for.
        functions = [driver.function(module, f"k{i}") for i in range(len(batch))]
        return [(c, module, f) for c, f in zip(batch, functions, strict=True)]
    except DriverError as e:
        if module is not None:
            driver.unload(module)
        if e.code not in (218, 222, 200, 209):
            raise
        if len(batch) == 1:
            return [(batch[0], None, None)]
    middle = len(batch) // 2
    return load(driver, batch[:middle], version) + load(driver, batch[middle:], version)


def batches(selected: Iterable[Case], sm: int) -> list[tuple[list[Case], str]]:
    plain = [c for c in selected if c.sm < 100 or sm >= 100]
    out: list[tuple[list[Case], str]] = []
    for newer in (False, True):
        good = [c for c in plain if not c.refused and (c.sm >= 100) == newer]
        out += [(good[i : i + BATCH], header(100 if newer else 90)) for i in range(0, len(good), BATCH)]
        out += [([c], header(100 if newer else 90)) for c in plain if c.refused and (c.sm >= 100) == newer]
    return out


Results = dict[str, tuple[str, bytes]]
# A module that is not compiled, or a kernel that has not ended, by then never will be.
BATCH_LIMIT_S = 25.0


def work(path: str, selected: Sequence[Case], pipe: Connection) -> None:
    """A process that runs batches of cases, named by their places in `selected`, and tells of each case. A driver may
    die of PTX that it does not like, and a fault stays with its context: neither is more than this process's end."""
    driver = Driver(path)
    pipe.send(driver.facts())
    while True:
        numbers, version = pipe.recv()
        for case, _, function in load(driver, [selected[i] for i in numbers], version):
            if function is None:
                pipe.send((case.name, REFUSED, b""))
            elif case.refused:
                pipe.send((case.name, RAN, b""))
            else:
                try:
                    raw = driver.run(function, case.input_bytes(), case.output_size())
                except DriverError as e:
                    print(f"{case.name}: {e}", file=sys.stderr, flush=True)
                    pipe.send((case.name, FAILED, b""))
                    return
                pipe.send((case.name, RAN, raw))
        pipe.send(None)


class Worker:
    """One such process, and what it is at."""

    def __init__(self, path: str, selected: Sequence[Case]) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        # Forked: the cases are made once. The parent never loads the driver.
        self.process = multiprocessing.get_context("fork").Process(
            target=work, args=(path, selected, theirs), daemon=True
        )
        self.process.start()
        theirs.close()
        self.facts: dict[str, Any] = {}
        self.left: list[int] = []  # of its batch, what it has not told of
        self.is_busy = False
        self.version = ""
        self.since_s = time.monotonic()

    def give(self, numbers: list[int], version: str) -> None:
        self.left, self.version, self.since_s, self.is_busy = numbers, version, time.monotonic(), True
        self.pipe.send((numbers, version))

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def collect(path: str, selected: Sequence[Case], budget_s: float, workers: int) -> tuple[dict[str, Any], Results]:
    """What the driver says of its device, and outcome and output bytes of each case by name."""
    results: Results = {c.name: (NOT_RUN, b"") for c in selected}
    place = {c.name: i for i, c in enumerate(selected)}
    end_s = time.monotonic() + budget_s
    facts: dict[str, Any] = {}
    waiting: list[tuple[list[int], str]] = []
    alive = [Worker(path, selected)]

    def told(worker: Worker, message: Any) -> None:
        if isinstance(message, dict):
            worker.facts = message
            if not facts:
                facts.update(message)
                newest = 100 if facts["device"].startswith("softgpu") else facts["sm"]
                for c in selected:
                    if c.sm >= 100 > newest:
                        results[c.name] = (NEWER, b"")
                waiting.extend(([place[c.name] for c in batch], v) for batch, v in batches(selected, newest))
                alive.extend(Worker(path, selected) for _ in range(min(workers, len(waiting)) - 1))
        elif message is None:
            worker.is_busy = False
        else:
            name, outcome, raw = message
            results[name] = (outcome, raw)
            worker.left.remove(place[name])

    def lost(worker: Worker) -> None:
        """It has died, or does not come back: of what it was at the halves are tried apart, down to the one case."""
        left, hung = worker.left, time.monotonic() - worker.since_s > BATCH_LIMIT_S
        worker.end()
        alive.remove(worker)
        if not worker.facts:
            raise RuntimeError(f"{path} does not start: exit status {worker.process.exitcode}")
        if len(left) == 1:
            how = "does not end" if hung else f"ends the process ({worker.process.exitcode})"
            print(f"{selected[left[0]].name}: {how}", file=sys.stderr, flush=True)
            results[selected[left[0]].name] = (FAILED, b"")
        elif left:
            middle = len(left) // 2
            waiting.extend([(left[:middle], worker.version), (left[middle:], worker.version)])
        if waiting:
            alive.append(Worker(path, selected))

    while alive:
        over = time.monotonic() > end_s
        for worker in list(alive):
            if worker.facts and not worker.is_busy:
                if waiting and not over:
                    worker.give(*waiting.pop())
                else:
                    worker.end()
                    alive.remove(worker)
            elif time.monotonic() - worker.since_s > BATCH_LIMIT_S:
                lost(worker)
        for pipe in wait([worker.pipe for worker in alive], 1.0):
            worker = next(w for w in alive if w.pipe is pipe)
            try:
                while worker.pipe.poll():
                    told(worker, worker.pipe.recv())
            except (EOFError, ConnectionError):
                lost(worker)
    return facts, results


def against_references(case: Case, raw: bytes, step: int = 1) -> list[str]:
    got = case.columns(raw)
    if case.kind == "invariant":
        return [] if case.check is None or case.check(got) else ["its invariant does not hold"]
    want = case.expected(step)
    return [] if want is None else case.differences(got, want, step=step)


def save(path: Path, facts: dict[str, Any], selected: Sequence[Case], results: Results) -> None:
    entries = []
    blob = bytearray()
    for case in selected:
        outcome, raw = results[case.name]
        kept = b"" if case.kind == "invariant" else raw
        entries.append([case.name, case.sha(), outcome, len(blob), len(kept)])
        blob += kept
    text = json.dumps({"facts": facts, "cases": entries}, separators=(",", ":"))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, index=np.frombuffer(text.encode(), np.uint8), data=np.frombuffer(bytes(blob), np.uint8))


class Golden:
    """What a device answered: outcome and bytes of a case, if the case is still the one that it answered."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            index = json.loads(file["index"].tobytes())
            self.data = file["data"].tobytes()
        self.facts: dict[str, Any] = index["facts"]
        self.cases = {name: (sha, outcome, at, size) for name, sha, outcome, at, size in index["cases"]}

    def answer(self, case: Case) -> tuple[str, bytes] | None:
        entry = self.cases.get(case.name)
        if entry is None or entry[0] != case.sha():
            return None
        _, outcome, at, size = entry
        return outcome, self.data[at : at + size]

    def output(self, case: Case) -> bytes | None:
        """The bytes that it answered, if there are any to compare with: of a form that it took though the references
        thought that it would not, it was never asked for them."""
        answer = self.answer(case)
        if answer is None or answer[0] != RAN or case.kind == "invariant" or len(answer[1]) != case.output_size():
            return None
        return answer[1]


@functools.cache
def goldens() -> list[Golden]:
    return [Golden(p) for p in sorted(GOLDEN.glob("*.npz"))]


def report(selected: Sequence[Case], results: Results, known: Sequence[Golden]) -> dict[str, Any]:
    count = dict.fromkeys((RAN, REFUSED, FAILED, NEWER, NOT_RUN), 0)
    lists: dict[str, list[str]] = {"refused though in the table": [], "accepted though not in the ISA": []}
    lists |= {"differs from the reference": [], "differs from a golden file": []}
    compared = 0
    for case in selected:
        outcome, raw = results[case.name]
        count[outcome] += 1
        if outcome == REFUSED and not case.refused:
            lists["refused though in the table"].append(case.name)
        elif outcome == RAN and case.refused:
            lists["accepted though not in the ISA"].append(case.name)
        elif outcome == RAN:
            wrong = against_references(case, raw)
            if wrong:
                lists["differs from the reference"].append(f"{case.name}: {len(wrong)} of {THREADS}: {wrong[0]}")
            for golden in known:
                known_raw = golden.output(case)
                if known_raw is None:
                    continue
                compared += 1
                wrong = case.differences(case.columns(raw), case.columns(known_raw), twice=True)
                if wrong:
                    lists["differs from a golden file"].append(f"{case.name}: {len(wrong)}: {wrong[0]}")
    return {"counts": count, "compared with golden files": compared, "lists": lists}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libcuda", default="libcuda.so.1", help="the driver to run on, by name or path")
    parser.add_argument("--out", type=Path, help="folder for the golden file and the report")
    parser.add_argument("--check", action="store_true", help="compare with the golden files of the repository only")
    parser.add_argument("--only", default="", help="cases whose name starts with this")
    parser.add_argument("--budget-s", type=float, default=40.0, help="seconds after which no more batches are begun")
    parser.add_argument("--workers", type=int, default=8, help="processes that compile and run at the same time")
    args = parser.parse_args()
    if not args.check and not args.out:
        parser.error("--out DIR or --check is needed")
    start = time.monotonic()
    made, reasons = cases.everything()
    # The many comparisons and conversions last: if time runs out, it is they that are missing.
    selected = sorted(
        (c for c in made.values() if c.name.startswith(args.only)),
        key=lambda c: (c.refused, c.name.split(".")[0] in ("set", "setp", "cvt"), c.name.startswith("set.")),
    )
    generated = time.monotonic()
    facts, results = collect(args.libcuda, selected, args.budget_s, args.workers)
    print(f"{facts['device']}, sm_{facts['sm']}, driver {facts['driver']}", flush=True)
    safe = "_".join("".join(ch if ch.isalnum() else " " for ch in facts["device"]).lower().split())
    if args.out:
        path = args.out / f"{safe}.npz"
        save(path, facts, selected, results)
    ran = time.monotonic()
    if args.out:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"wrote {path}, {path.stat().st_size} bytes, sha256 {digest[:16]}")
    outcome = report(selected, results, goldens() if args.check else [])
    outcome["combinations without a case"] = len(reasons)
    outcome["seconds"] = {
        "generate": round(generated - start, 1),
        "run": round(ran - generated, 1),
        "compare": round(time.monotonic() - ran, 1),
    }
    if args.out:
        (args.out / "report.json").write_text(json.dumps(outcome, indent=1) + "\n")
    print(json.dumps({k: v for k, v in outcome.items() if k != "lists"}, indent=1))
    for title, names in outcome["lists"].items():
        print(f"{title}: {len(names)}")
        for n in names[:15]:
            print(f"  {n}")
    return 1 if any(outcome["lists"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
