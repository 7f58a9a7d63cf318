"""torch.compile where the loader's cache knows no driver: Triton looks for libcuda with `ldconfig -p`, and on a client
must find it without. Its caches are fresh, or what an earlier run had linked would be used."""

from __future__ import annotations

import os
import subprocess
import tempfile

from report import checksum, report


def mixed(x, y):  # type: ignore[no-untyped-def]
    return ((x * 3 + y) ^ (y >> 2)).sum(-1)


def driver_in_the_loader_cache() -> bool:
    listing = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    return "libcuda.so" in listing


def main(caches: str) -> None:
    listed = driver_in_the_loader_cache()
    if os.environ.get("ORION_REMOTE") == "1" and listed:
        raise AssertionError("ldconfig -p names libcuda.so on a client")
    os.environ.update(TORCHINDUCTOR_CACHE_DIR=f"{caches}/inductor", TRITON_CACHE_DIR=f"{caches}/triton")
    import torch
    from torch._inductor import metrics

    x = torch.arange(512 * 512, device="cuda", dtype=torch.int32).reshape(512, 512)
    y = x.flip(0).contiguous()
    compiled = torch.compile(mixed)(x, y)
    digest = {"compiled": checksum(compiled), "eager": checksum(mixed(x, y)), "kernels": metrics.generated_kernel_count}
    report(digest, torch=torch.__version__, libcuda_in_loader_cache=listed)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
