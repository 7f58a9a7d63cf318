"""PyTorch: training, decoding, inference, graphs, compilation, and what the first kernel costs."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.measure import median_time, nothing
from benchmarks.workloads.registry import Result, workload


def seeded_torch() -> Any:
    import torch

    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return torch


def train_resnet50(batch: int) -> Result:
    """Images per second, and the loss after five steps: batches come from page-locked memory, without waiting."""
    torch = seeded_torch()
    import torchvision

    model = torchvision.models.resnet50().cuda().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    criterion = torch.nn.CrossEntropyLoss()
    images = torch.randn(batch, 3, 224, 224).pin_memory()
    labels = torch.randint(0, 1000, (batch,)).pin_memory()
    loss: Any = None

    def step() -> None:
        nonlocal loss
        on_device = images.to("cuda", non_blocking=True, memory_format=torch.channels_last)
        wanted = labels.to("cuda", non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = criterion(model(on_device), wanted)
        loss.backward()
        optimizer.step()

    for _ in range(5):
        step()
    digest = loss.item()
    seconds = median_time(step, lambda: loss.item(), 5, 10)
    return batch / seconds, digest


@workload("images/s", "higher", "training", rtol=2e-2)
def resnet50_train_bs64() -> Result:
    return train_resnet50(64)


@workload("images/s", "higher", "training", rtol=2e-2)
def resnet50_train_bs256() -> Result:
    return train_resnet50(256)


@workload("tokens/s", "higher", "eager greedy decode, batch 1, 124M parameters")
def gpt2_decode_eager() -> Result:
    torch = seeded_torch()
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config()).cuda().half().eval()
    prompt = torch.arange(32, device="cuda")[None]
    options = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        tokens = model.generate(prompt, **options)
        digest = int((tokens[0].cpu() * torch.arange(tokens.shape[1])).sum())
        seconds = median_time(lambda: model.generate(prompt, **options), torch.cuda.synchronize, 3)
    return 64 / seconds, digest


@workload("ms", "lower", "batch 1, sequence 128, one .item() per inference")
def bert_infer_bs1() -> Result:
    torch = seeded_torch()
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig()).cuda().half().eval()
    tokens = torch.arange(128, device="cuda")[None]

    def infer() -> float:
        return float(model(tokens).last_hidden_state.float().sum().item())

    with torch.no_grad():
        for _ in range(10):
            digest = infer()
        seconds = median_time(infer, nothing, 5, 40)
    return seconds * 1e3, digest


@workload("us", "lower", "replay of a captured 20-layer half MLP")
def cuda_graph_replay() -> Result:
    torch = seeded_torch()
    model = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(20)]).cuda().half()
    x = torch.randn(8, 1024, device="cuda").half()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(3):
            model(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        y = model(x)
    graph.replay()
    torch.cuda.synchronize()
    digest = y.float().sum().item()
    seconds = median_time(graph.replay, torch.cuda.synchronize, 7, 200)
    return seconds * 1e6, digest


@workload("ms", "lower", "torch.compile (Triton) kernel, 10 calls", rtol=1e-3)
def torch_compile() -> Result:
    torch = seeded_torch()
    fused = torch.compile(lambda x, y: torch.nn.functional.gelu(x @ y).sum(-1))
    x = torch.randn(512, 512, device="cuda")
    digest = fused(x, x).sum().item()
    seconds = median_time(lambda: fused(x, x), torch.cuda.synchronize, 5, 10)
    return seconds * 1e3, digest


@workload("s", "lower", "process start to the first result of a CUDA matmul in PyTorch, minus the import")
def attach_first_kernel() -> Result:
    torch = seeded_torch()
    start = time.perf_counter()
    x = torch.ones(64, 64, device="cuda")
    digest = (x @ x).sum().item()
    return time.perf_counter() - start, digest
