"""Two threads of Python, each on a stream of its own, at the same time: whole numbers, so that every order of the two
gives the same result."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from report import checksum, report

STEPS = 300


def work(index: int, start: threading.Barrier) -> tuple[str, str]:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x = torch.arange(1 << 16, device="cuda") + index
        base = (torch.arange(64 * 64, device="cuda", dtype=torch.float32).reshape(64, 64) + index) % 5
        product = base
        start.wait()
        for step in range(STEPS):
            x = (x * 31 + step) % 1_000_003
            if step % 10 == 0:
                product = (product @ base) % 5
        at_end = torch.cuda.Event()
        at_end.record()
    at_end.synchronize()
    return checksum(x), checksum(product)


def main() -> None:
    torch.cuda.init()
    start = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(work, index, start) for index in range(2)]
        results = [future.result() for future in running]
    report({"threads": results}, torch=torch.__version__)


if __name__ == "__main__":
    main()
