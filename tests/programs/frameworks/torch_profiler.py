"""torch.profiler with activities of the CPU and of the GPU. Orion has no CUPTI (docs/limits.md): a program that
profiles must run to its end and have its CPU's events; how many the GPU had is told, not compared."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from report import checksum, report
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

STEPS = 3


def main() -> None:
    start = torch.arange(64 * 64, device="cuda", dtype=torch.float32).reshape(64, 64) % 5
    x = start
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(STEPS):
            x = (x @ start) % 5  # small integers: exact
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        traced = json.loads(path.read_text())["traceEvents"]
    digest = {
        "result": checksum(x),
        "products": sum(event.name == "aten::mm" for event in profiler.events()),
        "traced_products": sum(event.get("name") == "aten::mm" for event in traced),
    }
    gpu_events = sum(event.device_type == DeviceType.CUDA for event in profiler.events())
    report(digest, torch=torch.__version__, gpu_events=gpu_events)


if __name__ == "__main__":
    main()
