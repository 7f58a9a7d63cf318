"""How many instructions the calls that programs make most take in the client library, over shared memory.

    python3 -m benchmarks.instruction_counts [--update] [--where NAME]

Runs `native/local_calls.c` under callgrind in front of an engine that does no work. The worker is stopped while calls
are counted: otherwise it depends on its sleep whether a push has to wake it. Each call is made 16 and 32 times; the
difference is what one costs, without what only a first call does. `instruction_counts.json` keeps what was counted
last; tests/benchmarks/test_instruction_counts.py holds the library to it. `--where` tells in which functions they are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.programs import compile_program
from benchmarks.servers import client_environment, server

COUNTS = Path(__file__).resolve().parent / "instruction_counts.json"
PROGRAM = "local_calls"
FEW = 16  # of local_calls.c
ALLOWED = 1.2  # compilers and C libraries differ a little; a new check or a lost inlining shows

Costs = Counter[str]


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text().split():
                found += [int(child), *children(int(child))]
    return found


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def workers(server_pid: int) -> list[int]:
    """Everything that the server has started: the client's worker, and spare ones."""
    return children(server_pid)


def self_costs(dump: Path) -> Costs:
    """Instructions by function, without those of the measuring program itself."""
    names: dict[str, str] = {}
    costs: Costs = Counter()
    of_program, function, is_call = False, "", False

    def name_of(text: str, kind: str) -> str:
        match = re.match(r"\((\d+)\)(?: (.*))?", text)
        if match is None:
            return text
        if match[2] is not None:
            names[kind + match[1]] = match[2]
        return names[kind + match[1]]

    for line in dump.read_text().splitlines():
        key, equals, rest = line.partition("=")
        if equals and key in ("ob", "cob"):
            name = name_of(rest, "ob")
            if key == "ob":
                of_program = Path(name).name == PROGRAM
        elif equals and key in ("fn", "cfn"):
            name = name_of(rest, "fn")
            if key == "fn":
                function = name
        elif equals and key == "calls":
            is_call = True
        elif re.match(r"[+\-*\d]", line):
            if not is_call and not of_program:
                costs[function] += int(line.split()[1])
            is_call = False
    return costs


def run_client(folder: Path) -> dict[str, Costs]:
    """Each call's costs by function: of 32 calls less those of 16."""
    program = compile_program(PROGRAM, folder)
    with server("softgpu", "--null-engine") as address:
        server_pid = next(pid for pid in children(os.getpid()) if b"orion_server" in command_of(pid))
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=" + str(folder / "out"), "--quiet",
                   str(program), "count"]  # fmt: skip
        with subprocess.Popen(command, env=client_environment(address, "shm"), text=True, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:  # fmt: skip
            assert client.stdin is not None and client.stdout is not None and client.stderr is not None
            if client.stdout.readline() != "ready\n":
                raise RuntimeError(client.stderr.read())
            with stopped(workers(server_pid)):
                client.stdin.write("go\n")
                client.stdin.flush()
                counted = client.stdout.readline()
            client.stdin.write("go\n")
            client.stdin.flush()
            if counted != "counted\n" or client.wait(60) != 0:
                raise RuntimeError(f"the counted calls did not end: {client.stderr.read()}")
    dumps: dict[str, dict[int, Costs]] = {}
    for dump in folder.glob("out.*"):
        trigger = re.search(r"^desc: Trigger: Client Request: (\w+) (\d+)$", dump.read_text(), re.MULTILINE)
        if trigger is not None:
            dumps.setdefault(trigger[1], {})[int(trigger[2])] = self_costs(dump)
    return {name: many[2 * FEW] - many[FEW] for name, many in dumps.items() if name != "loop"}


def command_of(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def count() -> dict[str, Costs]:
    if shutil.which("valgrind") is None:
        raise RuntimeError("valgrind is missing: tools/setup.sh installs it")
    with tempfile.TemporaryDirectory(prefix="orion-count-") as folder:
        return run_client(Path(folder))


def per_call(costs: dict[str, Costs]) -> dict[str, int]:
    return {name: round(sum(of.values()) / FEW) for name, of in sorted(costs.items())}


def committed() -> dict[str, int]:
    counts: dict[str, int] = json.loads(COUNTS.read_text())
    return counts


def complaints(now: dict[str, int], before: dict[str, int]) -> list[str]:
    """One sentence for each call that has grown, or that is counted on one side only."""
    update = "if it has to be so, run `python3 -m benchmarks.instruction_counts --update` and commit the file"
    said = []
    for name, limit in before.items():
        if name not in now:
            said.append(f"{name} is in {COUNTS.name} and was not counted; {update}.")
        elif now[name] > ALLOWED * limit:
            said.append(f"{name} takes {now[name]} instructions in the client library, {limit} when last counted; "
                        f"`--where {name}` shows where they are; {update}.")  # fmt: skip
    said += [f"{name} is counted and not in {COUNTS.name}; {update}." for name in now if name not in before]
    return said


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help=f"write {COUNTS.name}")
    parser.add_argument("--where", metavar="NAME", help="the functions in which this call's instructions are")
    arguments = parser.parse_args(argv)
    costs = count()
    if arguments.where:
        for function, instructions in costs[arguments.where].most_common():
            print(f"{instructions / FEW:10.1f}  {function}")
        return 0
    now = per_call(costs)
    before = committed() if COUNTS.exists() else {}
    for name, instructions in now.items():
        print(f"{name:36} {instructions:8} {before.get(name, '-'):>8}")
    if arguments.update:
        COUNTS.write_text(json.dumps(now, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
