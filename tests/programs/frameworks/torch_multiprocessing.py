"""CUDA tensors between two processes (spawn) through torch.multiprocessing, both ways, sent while the stream that
computes them is busy; and an event of each process that the other one waits for."""

from __future__ import annotations

from typing import Any

import torch
from report import checksum, report, traces_of_a_local_driver
from torch import multiprocessing

COUNT = 1 << 18
BUSY_CYCLES = 100_000_000
WAIT_S = 90


def other(jobs: Any, results: Any, done: Any) -> None:
    """Answers each tensor with one of its own and adds one to what it was sent."""
    kept = []
    while (tensor := jobs.get(timeout=WAIT_S)) is not None:
        answer = tensor.flip(0) * 2
        tensor += 1
        kept.append(answer)  # the sender of a tensor keeps it until the receiver is done
        results.put(answer)
        del tensor
    handle = jobs.get(timeout=WAIT_S)
    theirs = torch.cuda.Event.from_ipc_handle(torch.device("cuda", 0), handle)
    theirs.synchronize()
    ours = torch.cuda.Event(enable_timing=False, interprocess=True)
    torch.cuda._sleep(BUSY_CYCLES)
    ours.record()
    results.put((ours.ipc_handle(), theirs.query(), not traces_of_a_local_driver()))
    done.wait(WAIT_S)


def tensors() -> dict[str, torch.Tensor]:
    numbers = torch.arange(COUNT, device="cuda", dtype=torch.int32)
    made = {
        "numbers": numbers * 3,
        "halves": (torch.arange(1 << 12, device="cuda") % 512).half() / 4,
        "part": numbers[1000:5000],  # of memory that holds more
        "small": torch.arange(5, device="cuda"),
    }
    torch.cuda._sleep(BUSY_CYCLES)
    made["busy"] = numbers * 5 + 1
    return made


def main() -> None:
    context = multiprocessing.get_context("spawn")
    jobs, results, done = context.Queue(), context.Queue(), context.Event()
    process = context.Process(target=other, args=(jobs, results, done))
    process.start()
    sent = tensors()
    answers = {}
    for name, tensor in sent.items():
        jobs.put(tensor)
        answers[name] = checksum(results.get(timeout=WAIT_S))
    jobs.put(None)
    event = torch.cuda.Event(enable_timing=False, interprocess=True)
    torch.cuda._sleep(BUSY_CYCLES)
    event.record()
    jobs.put(event.ipc_handle())
    handle, complete, child_clean = results.get(timeout=WAIT_S)
    theirs = torch.cuda.Event.from_ipc_handle(torch.device("cuda", 0), handle)
    torch.cuda.current_stream().wait_event(theirs)
    torch.cuda.synchronize()
    digest: dict[str, Any] = {
        "answers": answers,
        "sent": {name: checksum(tensor) for name, tensor in sent.items()},
        "events": [complete, theirs.query()],
    }
    done.set()
    process.join(WAIT_S)
    digest["exit"] = process.exitcode
    report(digest, torch=torch.__version__, child_clean=child_clean)


if __name__ == "__main__":
    main()
