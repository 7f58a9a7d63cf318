"""What workers write: passed on in whole lines, bounded, and harmless to a terminal."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import Callable, Coroutine

from orion_server import worker_log
from orion_server.worker_log import WorkerLog


def told(act: Callable[[int, WorkerLog, io.StringIO], Coroutine[None, None, None]]) -> str:
    async def whole() -> str:
        read_fd, write_fd = os.pipe()
        out = io.StringIO()
        log = WorkerLog(read_fd, out)
        await act(write_fd, log, out)
        os.close(write_fd)
        log.close()
        return out.getvalue()

    return asyncio.run(whole())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20.0):
        while not condition():
            await asyncio.sleep(0.001)


def test_lines_come_whole_and_the_last_one_at_the_end() -> None:
    async def act(fd: int, log: WorkerLog, out: io.StringIO) -> None:
        os.write(fd, b"first\nsec")
        await until(lambda: out.getvalue() == "first\n")
        os.write(fd, b"ond\nleft")
        await until(lambda: out.getvalue() == "first\nsecond\n")

    assert told(act) == "first\nsecond\nleft\n"


def test_control_characters_and_bytes_that_are_no_text_are_shown_as_such() -> None:
    async def act(fd: int, log: WorkerLog, out: io.StringIO) -> None:
        os.write(fd, b"a\x1b[2Jb\x00\x7f\r\t\xc3\xa4\xff\n")

    assert told(act) == "a?[2Jb???\tä\ufffd\n"


def test_a_line_without_end_is_cut() -> None:
    async def act(fd: int, log: WorkerLog, out: io.StringIO) -> None:
        os.write(fd, b"x" * 10000)
        await until(lambda: len(out.getvalue()) > 8000)

    lines = told(act).splitlines()
    assert "".join(lines) == "x" * 10000
    assert max(map(len, lines)) <= worker_log._LINE_MAX_BYTES


def test_a_worker_that_floods_waits_and_the_loop_does_not() -> None:
    async def act(fd: int, log: WorkerLog, out: io.StringIO) -> None:
        os.set_blocking(fd, False)
        os.write(fd, b"y\n" * 32768)  # as much as a pipe holds
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(out.getvalue()) <= worker_log._READ_BYTES  # one read, then a pause
        await until(lambda: len(out.getvalue()) == 65536)

    told(act)
