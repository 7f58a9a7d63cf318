"""A training loop whose batches come from two forked workers through page-locked memory: CUDA is in use when the
workers are forked, and a thread of the parent pins what they send."""

from __future__ import annotations

import os

os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what deterministic products need

import torch
from report import checksum, report
from torch import nn
from torch.utils.data import DataLoader, Dataset, get_worker_info

EPOCHS, SAMPLES, FEATURES, CLASSES = 3, 256, 32, 8


class Samples(Dataset):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        generator = torch.Generator().manual_seed(index)
        return torch.randn(FEATURES, generator=generator), index % CLASSES, get_worker_info().id


def main() -> None:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    model = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, CLASSES)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = DataLoader(
        Samples(),
        batch_size=32,
        shuffle=True,
        generator=torch.Generator().manual_seed(1),
        num_workers=2,
        multiprocessing_context="fork",
        pin_memory=True,
    )
    losses, workers, pinned = [], set(), True
    for _ in range(EPOCHS):
        for features, labels, worker in loader:
            pinned &= features.is_pinned() and labels.is_pinned()
            workers.update(worker.tolist())
            optimizer.zero_grad()
            wanted = labels.to("cuda", non_blocking=True)
            loss = nn.functional.cross_entropy(model(features.to("cuda", non_blocking=True)), wanted)
            loss.backward()
            optimizer.step()
        losses.append(loss.item().hex())
    weights = torch.cat([parameter.flatten() for parameter in model.parameters()])
    digest = {"losses": losses, "weights": checksum(weights), "workers": sorted(workers), "pinned": pinned}
    report(digest, torch=torch.__version__)


if __name__ == "__main__":
    main()
