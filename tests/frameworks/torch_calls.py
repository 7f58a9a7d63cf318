"""What PyTorch programs do, on a device that computes nothing: prints `ok NAME` or what went wrong for each step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

F = nn.functional


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype, device="cuda")


def attention() -> None:
    q = zeros(1, 4, 64, 64, dtype=torch.bfloat16)
    F.scaled_dot_product_attention(q, q, q)


def streams_and_events() -> None:
    stream, event = torch.cuda.Stream(), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(stream):
        zeros(64) * 2
    event.record(stream)
    torch.cuda.current_stream().wait_event(event)
    event.synchronize()


def graph() -> None:
    captured, static = torch.cuda.CUDAGraph(), zeros(64)
    with torch.cuda.graph(captured):
        static += 1
    captured.replay()


def training_step() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).cuda()
    optimizer = torch.optim.Adam(model.parameters())
    model(zeros(4, 64)).sum().backward()
    optimizer.step()


STEPS: dict[str, Callable[[], object]] = {
    "device": torch.cuda.get_device_properties,
    "allocate": lambda: zeros(256, 256) + 1,
    "copies": lambda: torch.arange(100_000).cuda().cpu(),
    "pinned copies": lambda: torch.zeros(1000).pin_memory().cuda(non_blocking=True),
    "matmul float32": lambda: zeros(256, 256) @ zeros(256, 256),
    "matmul bfloat16": lambda: zeros(256, 256, dtype=torch.bfloat16) @ zeros(256, 256, dtype=torch.bfloat16),
    "convolution": lambda: F.conv2d(zeros(4, 3, 32, 32), zeros(8, 3, 3, 3)),
    "attention": attention,
    "fft": lambda: torch.fft.fft(zeros(256, 256)),
    "sort": lambda: torch.sort(zeros(10_000)),
    "random": lambda: torch.rand(100, device="cuda"),
    "lu": lambda: torch.linalg.lu_factor(torch.eye(16).cuda()),
    "sparse": lambda: torch.sparse.mm(torch.eye(32).to_sparse_csr().cuda(), zeros(32, 32)),
    "streams": streams_and_events,
    "graph": graph,
    "training": training_step,
    "cache": torch.cuda.empty_cache,
}
for name, step in STEPS.items():
    try:
        step()
        torch.cuda.synchronize()
        print("ok", name, flush=True)
    except Exception as error:
        print("failed", name, str(error).replace("\n", " "), flush=True)
print("ok end")
