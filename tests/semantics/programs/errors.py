"""Faults, late errors, fork: each in a process of its own."""

from __future__ import annotations

import os
import sys
from ctypes import byref, c_size_t, c_uint64
from pathlib import Path

from tests.semantics.tools import NON_BLOCKING, REMOTE, Program, Thread, equal


def fault_is_told_by_every_later_call(p: Program) -> None:
    stream, other = p.cu.stream(NON_BLOCKING), p.cu.stream(NON_BLOCKING)
    p.cu.launch(p.fault, [], stream=stream)
    equal(p.cu.code("cuStreamSynchronize", stream), 700)

    def elsewhere() -> None:
        equal(p.cu.code("cuStreamSynchronize", other), 700)
        equal(p.cu.code("cuMemAlloc_v2", byref(c_uint64()), c_size_t(4096)), 700)
        equal(p.cu.launch_code(p.nothing, [], stream=other), 700)

    Thread(p, elsewhere).join()
    for _ in range(3):
        equal(p.cu.code("cuCtxSynchronize"), 700)


def waiting_calls_tell_the_culprit(p: Program) -> None:
    """With ORION_SYNC=1: the call before is innocent, the call itself tells."""
    equal(p.cu.launch_code(p.nothing, []), 0)
    equal(p.cu.launch_code(p.fault, []), 700)


def bystander(p: Program) -> None:
    """Adds until its stdin ends, and says when it has begun: other clients' faults must not reach it."""
    counter, stream, count = p.counter(), p.cu.stream(NON_BLOCKING), 0
    print("ready", flush=True)
    for _ in sys.stdin:
        for _ in range(50):
            p.add(counter, stream)
            p.sync(stream)
            count += 1
        equal(p.cu.read_u32(counter), count)
        print("good", flush=True)


def forked_child_is_not_initialised(p: Program) -> None:
    def lines() -> set[str]:
        return {line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:" in line}

    shared = lines()
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        codes = [
            p.cu.code("cuMemAlloc_v2", byref(c_uint64()), c_size_t(4096)),
            p.cu.code("cuCtxSynchronize"),
            p.cu.launch_code(p.nothing, []),
            p.cu.code("cuInit", 0),
        ]
        os.write(write_fd, f"{codes} {len(shared & lines())}".encode())
        os._exit(0)
    os.waitpid(pid, 0)
    told, inherited = os.read(read_fd, 200).decode().rsplit(" ", 1)
    equal(told, "[3, 3, 3, 3]")
    if REMOTE:
        equal(int(inherited), 0)
        assert shared or os.environ["ORION_TRANSPORT"] == "tcp"
    counter = p.counter(6)
    p.add(counter, None)
    equal(p.cu.read_u32(counter), 7)


def child_forked_before_init_attaches_itself(p: Program) -> None:
    """Runs in a fresh process: `p` is the parent's own, made after the fork by the caller."""
    code = (
        "import os\n"
        "pid = os.fork()\n"
        "from tests.semantics.tools import Program\n"
        "p = Program(); c = p.counter(5); p.add(c, None)\n"
        "good = p.cu.read_u32(c) == 6\n"
        "if pid == 0: os._exit(not good)\n"
        "raise SystemExit(not good or os.waitpid(pid, 0)[1] != 0)\n"
    )
    import subprocess

    equal(subprocess.run([sys.executable, "-c", code], check=False).returncode, 0)


PROGRAMS = [fault_is_told_by_every_later_call, forked_child_is_not_initialised,
            child_forked_before_init_attaches_itself]  # fmt: skip
