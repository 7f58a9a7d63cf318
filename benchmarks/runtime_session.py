"""Programs of the CUDA runtime, built by nvcc in several ways, natively and then remotely: every line must be equal.

    python3 -m benchmarks.runtime_session --device nvidia --out DIR             builds with the nvcc of this machine
    python3 -m benchmarks.runtime_session --build-only FOLDER                   only builds, here
    python3 -m benchmarks.runtime_session --device nvidia --out DIR --programs FOLDER   runs what was built elsewhere

DIR gets runtime.json. `failed`: promises of CUDA that were broken. `different`: lines `name value` that are not the
native ones; `deliberate`: those that the client changes on purpose (DELIBERATE), each with its reason, which count as
equal. Exit status 0: nothing failed, and everything is equal to native everywhere.
"""

from __future__ import annotations

import argparse
import difflib
import glob
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.places import NATIVE, Outcome, Places, parse_places, say
from benchmarks.sections import Section, by_section, listed, outcomes, possible

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "tests" / "programs" / "runtime"
HOPPER = ["-gencode", "arch=compute_90,code=[sm_90,compute_90]"]
# PTX that any GPU since Ampere's compiler takes and no machine code: the driver compiles it.
PTX_ONLY = ["-gencode", "arch=compute_80,code=compute_80"]
VARIANTS: dict[str, list[str]] = {
    "static": HOPPER,
    "shared": [*HOPPER, "-cudart", "shared"],
    "per_thread": [*HOPPER, "--default-stream", "per-thread"],
    "rdc": [*HOPPER, "-rdc=true", "separate.cu", "-lcudadevrt"],
    "ptx": PTX_ONLY,
}
MOST_LINES = 60
EVERYWHERE, NETWORK = ("shm", "tcp"), ("tcp",)
NOT_CARRIED = "a facility that the client does not carry, so it is reported as absent"
NETWORK_MANAGED = "over a network nothing travels while a kernel runs"
# Values that the client changes on purpose: name -> (places, what it says there, reason). Nothing else is excused.
DELIBERATE: dict[str, tuple[tuple[str, ...], str, str]] = {
    "attribute.89": (NETWORK, "0", NETWORK_MANAGED),
    "managed.concurrent": (NETWORK, "0", NETWORK_MANAGED),
    "attribute.110": (EVERYWHERE, "0", f"GPUDirect RDMA: {NOT_CARRIED}"),
    "attribute.113": (EVERYWHERE, "0", f"read-only registration of host memory: {NOT_CARRIED}"),
    "attribute.114": (EVERYWHERE, "0", f"timeline semaphores: {NOT_CARRIED}"),
    "attribute.116": (EVERYWHERE, "0", f"GPUDirect RDMA: {NOT_CARRIED}"),
    "attribute.119": (EVERYWHERE, "0", f"memory pools shared between processes: {NOT_CARRIED}"),
    "attribute.124": (EVERYWHERE, "0", f"DMA buffers: {NOT_CARRIED}"),
    "attribute.128": (EVERYWHERE, "0", f"fabric handles: {NOT_CARRIED}"),
    "attribute.141": (EVERYWHERE, "0", f"virtual memory on a NUMA node of the host: {NOT_CARRIED}"),
    "attribute.144": (EVERYWHERE, "0", f"memory pools on the host: {NOT_CARRIED}"),
    "attribute.145": (EVERYWHERE, "0", f"virtual memory on the host: {NOT_CARRIED}"),
}


def find_nvcc() -> str | None:
    on_path = shutil.which("nvcc")
    return on_path or next(iter(sorted(glob.glob("/usr/local/cuda*/bin/nvcc"), reverse=True)), None)


def build(folder: Path, variants: list[str]) -> dict[str, Path]:
    """One program for each variant, and the libcudart of the toolkit beside them for the one that loads it."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise FileNotFoundError("no nvcc on PATH or in /usr/local/cuda*/bin")
    folder.mkdir(parents=True, exist_ok=True)

    def one(variant: str) -> str:
        program = folder / f"runtime_{variant}"
        command = [nvcc, "-O1", "-std=c++17", "runtime_api.cu", *VARIANTS[variant], "-o", str(program)]
        command += ["-Xlinker", "-rpath,$ORIGIN", "-diag-suppress", "177,550"]
        return subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, check=False).stderr

    with ThreadPoolExecutor(2) as pool:
        problems = dict(zip(variants, pool.map(one, variants)))
    for variant, text in problems.items():
        if "error" in text:
            say(f"{variant} does not build: {text[-1500:]}")
    for library in sorted((Path(nvcc).resolve().parent.parent / "lib64").glob("libcudart.so.*")):
        shutil.copy(library, folder / library.name)
    return found(folder, variants)


def found(folder: Path, variants: list[str]) -> dict[str, Path]:
    programs = {variant: folder / f"runtime_{variant}" for variant in variants}
    return {variant: program for variant, program in programs.items() if program.exists()}


@dataclass
class Run:
    lines: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0

    def take(self, sections: list[Section], outcome: Outcome) -> None:
        self.seconds += outcome.seconds
        for section in sections:
            self.lines.setdefault(section.name, [])
        for section_name, line in by_section(sections, outcome):
            if line.startswith("FAIL"):
                self.failed.setdefault(section_name, []).append(line)
            elif not line.startswith("failures "):
                self.lines.setdefault(section_name, []).append(line)

    def deliberate(self, native: Run, place: str) -> dict[str, str]:
        """The names with a deliberate difference here, each with its reason."""
        out = {}
        for section, lines in self.lines.items():
            there = dict(line.split(" ", 1) for line in native.lines.get(section, []) if " " in line)
            for line in lines:
                name, _, value = line.partition(" ")
                places, said, reason = DELIBERATE.get(name, ((), "", ""))
                if place in places and value == said and there.get(name, value) != value:
                    out[name] = reason
        return out

    def differences(self, native: Run, excused: Collection[str] = ()) -> dict[str, list[str]]:
        """For each section the lines that only native (-) or only this place (+) has, without the names excused."""

        def judged(lines: list[str]) -> list[str]:
            return [line for line in lines if line.partition(" ")[0] not in excused]

        out = {}
        for section in sorted(self.lines.keys() | native.lines.keys()):
            delta = difflib.ndiff(judged(native.lines.get(section, [])), judged(self.lines.get(section, [])))
            changed = [line for line in delta if line.startswith(("- ", "+ "))]
            if changed:
                out[section] = changed[:MOST_LINES]
        return out

    def record(self, native: Run | None, place: str = NATIVE) -> dict[str, Any]:
        kept: dict[str, Any] = {
            "sections": len(self.lines),
            "values": sum(map(len, self.lines.values())),
            "seconds": round(self.seconds, 1),
            "failed": {name: lines[:MOST_LINES] for name, lines in self.failed.items()},
        }
        if native is None:
            kept["lines"] = self.lines
        else:
            kept["deliberate"] = self.deliberate(native, place)
            kept["different"] = self.differences(native, kept["deliberate"])
        return kept


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["nvidia", "softgpu"])
    parser.add_argument("--out", type=Path, help="folder for runtime.json and server logs")
    parser.add_argument("--build-only", type=Path, metavar="FOLDER", help="build into FOLDER and stop")
    parser.add_argument("--programs", type=Path, metavar="FOLDER", help="programs built before")
    parser.add_argument("--variants", default=",".join(VARIANTS), help=f"comma-separated, of {','.join(VARIANTS)}")
    parser.add_argument("--sections", default="", help="comma-separated sections (default: all)")
    parser.add_argument("--places", default="native,shm,tcp", help="comma-separated, default native,shm,tcp")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for each process (default 60)")
    parser.add_argument("--each", action="store_true", help="a process for every section")
    arguments = parser.parse_args(argv)
    variants = arguments.variants.split(",")
    if not set(variants) <= set(VARIANTS):
        parser.error(f"--variants takes {','.join(VARIANTS)}")
    if arguments.build_only:
        return 0 if len(build(arguments.build_only, variants)) == len(variants) else 1
    if not arguments.device or not arguments.out:
        parser.error("--device and --out are needed")
    arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    folder = arguments.programs or ROOT / "build" / "tests" / "runtime"
    programs = found(folder.resolve(), variants) if arguments.programs else build(folder, variants)
    answer: dict[str, Any] = {"machine": describe("benchmarks.runtime_session"), "variants": {}}
    good = len(programs) == len(variants)
    answer["not_built"] = sorted(set(variants) - set(programs))
    chosen_names = {name for name in arguments.sections.split(",") if name}
    with Places(arguments.device, parse_places(arguments.places), arguments.out / "server.log") as places:
        for variant, program in programs.items():
            sections = [s for s in listed(program) if not chosen_names or s.name in chosen_names]
            runs: dict[str, Run] = {}
            for place in places:
                run = runs[place] = Run()

                def process(names: list[str], place: str = place, program: Path = program) -> Outcome:
                    return places.run(place, [str(program), *names], arguments.timeout)

                for ran, outcome in outcomes(possible(sections, arguments.device, place), process, arguments.each):
                    run.take(ran, outcome)
                record = run.record(runs.get(NATIVE) if place != NATIVE else None, place)
                answer["variants"].setdefault(variant, {})[place] = record
                different = record.get("different", {})
                good &= not record["failed"] and not different
                say(f"{variant} {place}: {record['values']} values; failed {list(record['failed'])}, "
                    f"different {list(different)} ({record['seconds']} s)")  # fmt: skip
                for line in [*chain(*record["failed"].values())][:8] + [*chain(*different.values())][:12]:
                    say(f"    {line}")
                answer["good"] = good
                answer["seconds"] = round(time.monotonic() - started, 1)
                (arguments.out / "runtime.json").write_text(json.dumps(answer, indent=1))
    print(f"{len(programs)} of {len(variants)} programs: {'equal to native everywhere' if good else 'FAILED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
