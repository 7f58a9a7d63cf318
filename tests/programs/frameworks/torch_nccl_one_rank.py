"""One rank of NCCL, met through a file: nothing leaves the machine."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.update(NCCL_SOCKET_IFNAME="lo", NCCL_IB_DISABLE="1")

import torch
import torch.distributed as dist
from report import checksum, report


def main() -> None:
    torch.cuda.set_device(0)
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "store"), 1)
        dist.init_process_group("nccl", store=store, rank=0, world_size=1)
        x = torch.arange(1 << 18, device="cuda")
        dist.all_reduce(x)
        gathered = [torch.zeros_like(x)]
        dist.all_gather(gathered, x + 1)
        dist.barrier(device_ids=[0])
        digest = {"reduced": checksum(x), "gathered": checksum(gathered[0])}
        dist.destroy_process_group()
    report(digest, torch=torch.__version__, nccl=list(torch.cuda.nccl.version()))


if __name__ == "__main__":
    main()
