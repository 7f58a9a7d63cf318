"""The fields of `--query-gpu` and `--query-compute-apps`: names, units and values as nvidia-smi writes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orion_client.smi.gather import Device, Process
from orion_client.text import printable

NOT_AVAILABLE = "[N/A]"
Value = str | int | float | None


@dataclass(frozen=True)
class Row:
    """What a line is about; `process` in --query-compute-apps."""

    device: Device
    count: int
    at_s: float
    process: Process | None = None


@dataclass(frozen=True)
class Field:
    """`unit` stands in the header and behind each value, unless `nounits` is asked for."""

    name: str
    read: Callable[[Row], Value]
    unit: str = ""
    about: str = ""

    @property
    def header(self) -> str:
        return f"{self.name} [{self.unit}]" if self.unit else self.name

    def text(self, row: Row, units: bool) -> str:
        value = self.read(row)
        if value is None or value == "":
            return NOT_AVAILABLE
        shown = f"{value:.2f}" if isinstance(value, float) else printable(str(value))
        return f"{shown} {self.unit}" if self.unit and units else shown


def _metric(name: str, key: str, unit: str = "", about: str = "") -> Field:
    return Field(name, lambda r: r.device.metrics.get(key), unit, about)


def _watts(name: str, key: str, about: str = "") -> Field:
    def read(row: Row) -> float | None:
        value = row.device.metrics.get(key)
        return None if value is None else value / 1000

    return Field(name, read, "W", about)


def _switch(name: str, key: str, on: str = "Enabled", off: str = "Disabled") -> Field:
    def read(row: Row) -> str | None:
        value = row.device.metrics.get(key)
        return None if value is None else on if value else off

    return Field(name, read)


def _absent(name: str, unit: str = "") -> Field:
    return Field(name, lambda row: None, unit)


def _constant(name: str, text: str) -> Field:
    return Field(name, lambda row: text)


def timestamp(at_s: float) -> str:
    """2026/01/31 12:34:56.789."""
    return time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(at_s)) + f".{int(at_s * 1000) % 1000:03d}"


def bus_id(device: Device) -> str:
    """With eight digits for the domain, as the management library has it; empty where nothing is known."""
    domain, separator, rest = device.pci_bus_id.upper().partition(":")
    return f"{domain:0>8}:{rest}" if separator else ""


def cuda_text(version: int) -> str:
    """13020 as 13.2; empty where nothing is known."""
    return f"{version // 1000}.{version % 1000 // 10}" if version else ""


def compute_capability(device: Device) -> str:
    """ "9.0"; empty where nothing is known."""
    major, minor = device.metrics.get("compute_major"), device.metrics.get("compute_minor")
    return "" if major is None or minor is None else f"{major}.{minor}"


def performance_state(device: Device) -> str:
    """ "P0"; empty where nothing is known."""
    state = device.metrics.get("performance_state")
    return "" if state is None or state > 15 else f"P{state}"


def compute_mode(device: Device) -> str:
    """As the tools call it; empty where nothing is known."""
    modes = {0: "Default", 1: "Exclusive_Thread", 2: "Prohibited", 3: "Exclusive_Process"}
    return modes.get(device.metrics.get("compute_mode", -1), "")


def _pci(index: int) -> Callable[[Row], str | None]:
    def read(row: Row) -> str | None:
        parts = bus_id(row.device).replace(".", ":").split(":")
        return f"0x{parts[index].lstrip('0') or '0':0>{4 if index == 0 else 2}}" if len(parts) == 4 else None

    return read


def _hex(key: str) -> Callable[[Row], str | None]:
    def read(row: Row) -> str | None:
        value = row.device.metrics.get(key)
        return None if value is None else f"0x{value:08X}"

    return read


def mib(count_bytes: int) -> int:
    """Whole MiB."""
    return count_bytes >> 20


def _total(row: Row) -> int | None:
    return mib(row.device.total_bytes) or None


def _used(row: Row) -> int | None:
    return mib(row.device.used_bytes) if row.device.total_bytes else None


def _free(row: Row) -> int | None:
    total, used = _total(row), _used(row)
    return None if total is None or used is None else max(0, total - used)


_GPU = [
    Field("timestamp", lambda r: timestamp(r.at_s), about="when the values were read"),
    Field("driver_version", lambda r: r.device.driver, about="of the server's driver"),
    Field("count", lambda r: r.count, about="number of GPUs"),
    Field("name", lambda r: r.device.name, about="or gpu_name"),
    _absent("serial"),
    Field("uuid", lambda r: r.device.uuid, about="or gpu_uuid"),
    Field("index", lambda r: r.device.index),
    Field("pci.bus_id", lambda r: bus_id(r.device), about="or gpu_bus_id: domain:bus:device.function"),
    Field("pci.domain", _pci(0)),
    Field("pci.bus", _pci(1)),
    Field("pci.device", _pci(2)),
    Field("pci.device_id", _hex("pci_device_id")),
    Field("pci.sub_device_id", _hex("pci_subsystem_id")),
    _metric("pcie.link.gen.current", "pcie_generation"),
    _metric("pcie.link.gen.gpucurrent", "pcie_generation"),
    _metric("pcie.link.gen.max", "pcie_generation_max"),
    _metric("pcie.link.gen.gpumax", "pcie_generation_max"),
    _metric("pcie.link.width.current", "pcie_width"),
    _metric("pcie.link.width.max", "pcie_width_max"),
    _constant("display_mode", "Disabled"),
    _constant("display_attached", "No"),
    _constant("display_active", "Disabled"),
    _switch("persistence_mode", "persistence_mode"),
    _constant("accounting.mode", "Disabled"),
    _absent("accounting.buffer_size"),
    _absent("vbios_version"),
    _absent("inforom.img"),
    _metric("fan.speed", "fan_percent", "%"),
    Field("pstate", lambda r: performance_state(r.device), about="performance state, P0 is the fastest"),
    Field("memory.total", _total, "MiB", "the vGPU's quota, else the GPU's memory"),
    Field("memory.reserved", lambda r: mib(r.device.metrics.get("memory_reserved_bytes", 0)), "MiB"),
    Field("memory.used", _used, "MiB"),
    Field("memory.free", _free, "MiB"),
    Field("compute_mode", lambda r: compute_mode(r.device)),
    Field("compute_cap", lambda r: compute_capability(r.device)),
    _metric("utilization.gpu", "utilization_gpu_percent", "%", "100 % is all that the vGPU may have"),
    _metric("utilization.memory", "utilization_memory_percent", "%"),
    _metric("utilization.encoder", "encoder_percent", "%"),
    _metric("utilization.decoder", "decoder_percent", "%"),
    _switch("ecc.mode.current", "ecc_current"),
    _switch("ecc.mode.pending", "ecc_pending"),
    _absent("ecc.errors.corrected.volatile.total"),
    _absent("ecc.errors.uncorrected.volatile.total"),
    _absent("ecc.errors.corrected.aggregate.total"),
    _absent("ecc.errors.uncorrected.aggregate.total"),
    _absent("retired_pages.pending"),
    _metric("temperature.gpu", "temperature_c", about="degrees C"),
    _absent("temperature.memory"),
    _constant("power.management", "Supported"),
    _watts("power.draw", "power_mw"),
    _watts("power.draw.average", "power_mw"),
    _watts("power.draw.instant", "power_mw"),
    _watts("power.limit", "power_limit_mw"),
    _watts("enforced.power.limit", "power_enforced_mw"),
    _watts("power.default_limit", "power_default_mw"),
    _watts("power.min_limit", "power_min_mw"),
    _watts("power.max_limit", "power_max_mw"),
    _metric("clocks.current.graphics", "clock_graphics_mhz", "MHz"),
    _metric("clocks.current.sm", "clock_sm_mhz", "MHz"),
    _metric("clocks.current.memory", "clock_memory_mhz", "MHz"),
    _metric("clocks.current.video", "clock_video_mhz", "MHz"),
    _metric("clocks.max.graphics", "clock_max_graphics_mhz", "MHz"),
    _metric("clocks.max.sm", "clock_max_sm_mhz", "MHz"),
    _metric("clocks.max.memory", "clock_max_memory_mhz", "MHz"),
    _switch("mig.mode.current", "mig_current"),
    _switch("mig.mode.pending", "mig_pending"),
    Field("gpu_operation_mode.current", lambda row: None),
    Field("gpu_operation_mode.pending", lambda row: None),
]
_APPS = [
    Field("timestamp", lambda r: timestamp(r.at_s)),
    Field("gpu_name", lambda r: r.device.name),
    Field("gpu_bus_id", lambda r: bus_id(r.device)),
    _absent("gpu_serial"),
    Field("gpu_uuid", lambda r: r.device.uuid),
    Field("pid", lambda r: r.process.pid if r.process else None),
    Field("process_name", lambda r: r.process.name if r.process else None, about="or name"),
    Field("used_gpu_memory", lambda r: mib(r.process.used_bytes) if r.process else None, "MiB", "or used_memory"),
]
GPU_FIELDS = {field.name: field for field in _GPU}
APP_FIELDS = {field.name: field for field in _APPS}
_GPU_ALIASES = {
    "gpu_name": "name", "gpu_uuid": "uuid", "gpu_bus_id": "pci.bus_id", "gpu_serial": "serial",
    "clocks.gr": "clocks.current.graphics", "clocks.sm": "clocks.current.sm", "clocks.mem": "clocks.current.memory",
    "clocks.video": "clocks.current.video", "clocks.max.gr": "clocks.max.graphics",
    "clocks.max.mem": "clocks.max.memory",
}  # fmt: skip
_APP_ALIASES = {"name": "process_name", "used_memory": "used_gpu_memory"}


class UnknownField(Exception):
    """Carries the field's name as it was written."""


def fields(text: str, apps: bool = False) -> list[Field]:
    """Of a list with commas."""
    known, aliases = (APP_FIELDS, _APP_ALIASES) if apps else (GPU_FIELDS, _GPU_ALIASES)
    found = []
    for word in text.split(","):
        name = word.strip()
        field = known.get(aliases.get(name, name))
        if field is None:
            raise UnknownField(name)
        found.append(field)
    return found


def lines(wanted: Sequence[Field], rows: Sequence[Row], header: bool, units: bool) -> list[str]:
    """As `--format=csv` writes them: no quotes, a comma and a space between."""
    told = [", ".join(field.header for field in wanted)] if header else []
    return told + [", ".join(field.text(row, units) for field in wanted) for row in rows]
