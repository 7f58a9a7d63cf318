"""What `orion-bench slices` asks its server: the same requests that orionctl sends, without a process to start.

The modules of the control protocol are imported when a server is asked: rows without one need nothing but Python.
"""

from __future__ import annotations

import time

from benchmarks.bench.runner import TaskError

FREE_TIMEOUT_S = 20.0


def set_ratio(address: str, group: str, ratio: int, timeout_s: float) -> tuple[float, float]:
    """Changes the ratio of a group's programs; CLOCK_MONOTONIC when it was asked and when it was answered."""
    from orion_client import settings
    from orion_client.control_client import ServerUnreachable, ask, next_id
    from wire import control

    try:
        token = settings.admin_token(None)
        asked_s = time.monotonic()
        ask(address, control.Resize(id=next_id(), token=token, target=group, ratio=ratio), control.Resized, timeout_s)
    except (ServerUnreachable, settings.SettingError) as error:
        raise TaskError(f"the ratio was not changed: {error}", whole=True) from None
    return asked_s, time.monotonic()


def wait_until_free(address: str) -> None:
    """Until no vGPU is there: what the tenants before have had is given back."""
    from orion_client.control_client import ServerUnreachable, stats

    deadline = time.monotonic() + FREE_TIMEOUT_S
    try:
        while names := [vgpu.vgpu for vgpu in stats(address).vgpus]:
            if time.monotonic() > deadline:
                raise TaskError(f"vGPUs without a program are still there after {FREE_TIMEOUT_S:g} s: {names}")
            time.sleep(0.05)
    except ServerUnreachable as error:
        raise TaskError(f"the server tells nothing of its vGPUs: {error}", whole=True) from None
