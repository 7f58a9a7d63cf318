"""nvidia-smi's table, 91 characters wide, of this container's devices."""

from __future__ import annotations

import time

from orion_client import __version__
from orion_client.smi import query
from orion_client.smi.gather import Device
from orion_client.text import printable

_WIDTH = 89
_LEFT, _MIDDLE, _RIGHT = 41, 24, 22
_BAR = "+" + "-" * _WIDTH + "+"
_RULE = f"+{'-' * _LEFT}+{'-' * _MIDDLE}+{'-' * _RIGHT}+"


def box(devices: list[Device], now_s: float) -> list[str]:
    """The lines."""
    driver = next((d.driver for d in devices if d.driver), "") or "N/A"
    versions = [d.cuda_version for d in devices if d.cuda_version]
    cuda = query.cuda_text(min(versions)) if versions else "N/A"
    head = f" {f'NVIDIA-SMI {driver} (Orion {__version__})':<36} Driver Version: {driver:<13}  CUDA Version: {cuda:<6}"
    date = time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(now_s))
    lines = [date + "       ", _BAR, f"|{head:<{_WIDTH}.{_WIDTH}}|",
             f"|{'-' * _LEFT}+{'-' * _MIDDLE}+{'-' * _RIGHT}|",
             _row(" GPU  Name                 Persistence-M ", " Bus-Id          Disp.A ", " Volatile Uncorr. ECC "),
             _row(" Fan  Temp   Perf          Pwr:Usage/Cap ", "           Memory-Usage ", " GPU-Util  Compute M. "),
             _row("", "", "               MIG M. "),
             f"|{'=' * _LEFT}+{'=' * _MIDDLE}+{'=' * _RIGHT}|"]  # fmt: skip
    for device in devices:
        lines += [*_device(device), _RULE]
    return [*lines, " " * (_WIDTH + 2), *_processes(devices)]


def _row(left: str, middle: str, right: str) -> str:
    return f"|{left:<{_LEFT}.{_LEFT}}|{middle:<{_MIDDLE}.{_MIDDLE}}|{right:<{_RIGHT}.{_RIGHT}}|"


def _device(device: Device) -> list[str]:
    m = device.metrics
    persistence = _on_off(m.get("persistence_mode"))
    ecc = "N/A" if m.get("ecc_current") is None else "0" if m["ecc_current"] else "Off"
    fan = f"{m['fan_percent']}%" if "fan_percent" in m else "N/A"
    temperature = f"{m['temperature_c']}C" if "temperature_c" in m else "N/A"
    usage = f"{m['power_mw'] / 1000:.0f}W" if "power_mw" in m else "N/A"
    cap = f"{m['power_enforced_mw'] / 1000:.0f}W" if "power_enforced_mw" in m else "N/A"
    memory = "N/A"
    if device.total_bytes:
        memory = f"{query.mib(device.used_bytes)}MiB / {query.mib(device.total_bytes):>6}MiB"
    busy = f"{m['utilization_gpu_percent']}%" if "utilization_gpu_percent" in m else "N/A"
    mig = {0: "Disabled", 1: "Enabled"}.get(m.get("mig_current", -1), "N/A")
    name = printable(device.name)
    if len(name) > 27:
        name = name[:24] + "..."
    state = query.performance_state(device) or "N/A"
    return [
        _row(f" {device.index:>3}  {name:<27} {persistence:>5} ", f"   {query.bus_id(device) or 'N/A':>16} Off ",
             f" {ecc:>20} "),
        _row(f" {fan:>3}  {temperature:>4}  {state:>4} {f'{usage} / {cap}':>22} ", f" {memory:>22} ",
             f" {busy:>8} {query.compute_mode(device) or 'N/A':>11} "),
        _row("", "", f" {mig:>20} "),
    ]  # fmt: skip


def _on_off(value: int | None) -> str:
    return "N/A" if value is None else "On" if value else "Off"


def _processes(devices: list[Device]) -> list[str]:
    heads = (
        " Processes:",
        "  GPU   GI   CI        PID   Type   Process name                              GPU Memory ",
        "        ID   ID                                                               Usage      ",
    )
    lines = [_BAR, *(f"|{head:<{_WIDTH}}|" for head in heads), f"|{'=' * _WIDTH}|"]
    shown = [(device, process) for device in devices for process in device.processes]
    for device, process in shown:
        name = printable(process.name)
        if len(name) > 41:
            name = "..." + name[-38:]
        used = f"{query.mib(process.used_bytes)}MiB"
        text = f"  {device.index:>3}   N/A  N/A {process.pid:>10}      C   {name:<41} {used:>9} "
        lines.append(f"|{text:<{_WIDTH}.{_WIDTH}}|")
    if not shown:
        lines.append(f"|{'  No running processes found':<{_WIDTH}}|")
    return [*lines, _BAR]
