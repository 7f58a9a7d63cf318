"""What the GPUs tell about themselves, for clients' management library: NVIDIA's own (NVML), where it is there.

NVML is not CUDA: it makes no context and needs no worker, so the daemon asks it. Calls can take milliseconds; they run
on a thread, and answers are kept for a moment however many clients ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orion_server.libcuda import Libcuda, is_orion_client_library
from wire import control

log = logging.getLogger("orion.telemetry")

LIBRARY = "libnvidia-ml.so.1"
FRESH_S = 0.1
_VERSION_BYTES = 80

# CUDA's device attributes: known for every kind of device.
_CUDA_ATTRIBUTES = {
    "multiprocessors": 16,
    "compute_mode": 20,
    "ecc_current": 32,
    "memory_bus_bits": 37,
    "compute_major": 75,
    "compute_minor": 76,
}
# NVML getters `name(device, unsigned int*)`, with arguments between the two where `between` has some.
_STATIC_GETTERS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("minor_number", "nvmlDeviceGetMinorNumber", ()),
    ("brand", "nvmlDeviceGetBrand", ()),
    ("architecture", "nvmlDeviceGetArchitecture", ()),
    ("cores", "nvmlDeviceGetNumGpuCores", ()),
    ("memory_bus_bits", "nvmlDeviceGetMemoryBusWidth", ()),
    ("pcie_generation_max", "nvmlDeviceGetMaxPcieLinkGeneration", ()),
    ("pcie_width_max", "nvmlDeviceGetMaxPcieLinkWidth", ()),
    ("power_default_mw", "nvmlDeviceGetPowerManagementDefaultLimit", ()),
    ("temperature_shutdown_c", "nvmlDeviceGetTemperatureThreshold", (0,)),
    ("temperature_slowdown_c", "nvmlDeviceGetTemperatureThreshold", (1,)),
    ("clock_max_graphics_mhz", "nvmlDeviceGetMaxClockInfo", (0,)),
    ("clock_max_sm_mhz", "nvmlDeviceGetMaxClockInfo", (1,)),
    ("clock_max_memory_mhz", "nvmlDeviceGetMaxClockInfo", (2,)),
    ("clock_max_video_mhz", "nvmlDeviceGetMaxClockInfo", (3,)),
)
_LIVE_GETTERS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("temperature_c", "nvmlDeviceGetTemperature", (0,)),
    ("power_mw", "nvmlDeviceGetPowerUsage", ()),
    ("power_limit_mw", "nvmlDeviceGetPowerManagementLimit", ()),
    ("power_enforced_mw", "nvmlDeviceGetEnforcedPowerLimit", ()),
    ("clock_graphics_mhz", "nvmlDeviceGetClockInfo", (0,)),
    ("clock_sm_mhz", "nvmlDeviceGetClockInfo", (1,)),
    ("clock_memory_mhz", "nvmlDeviceGetClockInfo", (2,)),
    ("clock_video_mhz", "nvmlDeviceGetClockInfo", (3,)),
    ("performance_state", "nvmlDeviceGetPerformanceState", ()),
    ("fan_percent", "nvmlDeviceGetFanSpeed", ()),
    ("pcie_generation", "nvmlDeviceGetCurrPcieLinkGeneration", ()),
    ("pcie_width", "nvmlDeviceGetCurrPcieLinkWidth", ()),
    ("persistence_mode", "nvmlDeviceGetPersistenceMode", ()),
    ("compute_mode", "nvmlDeviceGetComputeMode", ()),
)
_PAIRS: tuple[tuple[str, str, str], ...] = (
    ("ecc_current", "ecc_pending", "nvmlDeviceGetEccMode"),
    ("mig_current", "mig_pending", "nvmlDeviceGetMigMode"),
    ("encoder_percent", "encoder_period_us", "nvmlDeviceGetEncoderUtilization"),
    ("decoder_percent", "decoder_period_us", "nvmlDeviceGetDecoderUtilization"),
)
_P2P_CAPABILITIES = 5  # read, write, NVLink, atomics, PCI


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Memory2(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint),
        ("total", ctypes.c_ulonglong),
        ("reserved", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class _Pci(ctypes.Structure):
    _fields_ = (
        ("bus_id_legacy", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("device_id", ctypes.c_uint),
        ("subsystem_id", ctypes.c_uint),
        ("bus_id", ctypes.c_char * 32),
    )


def find_library(libcuda: Libcuda, wish: str) -> Path | None:
    """NVML beside the driver's libcuda (`wish` "auto"), at the path that `wish` names, or nowhere ("off")."""
    if wish == "off" or (wish == "auto" and libcuda.kind != "nvidia"):
        return None
    path = Path(libcuda.path).parent / LIBRARY if wish == "auto" else Path(wish)
    if path.is_file() and not is_orion_client_library(path):
        return path
    log.warning("no %s at %s: clients see no utilisation, temperature or power", LIBRARY, path)
    return None


class Telemetry:
    """One server's GPUs as NVML sees them, or as CUDA does where there is no NVML."""

    def __init__(self, library: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.driver = ""
        self._clock = clock
        self._nvml: ctypes.CDLL | None = None
        self._handles: list[ctypes.c_void_p | None] = []
        self._static: list[dict[str, int]] = []
        self._live: list[dict[str, int]] = []
        self._peers: list[list[list[int]]] = []
        self._read_at = float("-inf")
        self._lock = asyncio.Lock()
        if library is not None:
            self._open(library)

    def describe(self, gpus: list[control.Device]) -> None:
        """Looks the devices up and reads what does not change."""
        self._handles = [self._find(gpu) for gpu in gpus]
        self._live = [{} for _ in gpus]
        self._static = []
        for gpu, handle in zip(gpus, self._handles, strict=True):
            facts = {name: gpu.attributes[a] for name, a in _CUDA_ATTRIBUTES.items() if a in gpu.attributes}
            if handle is not None:
                facts |= self._read_static(handle)
            self._static.append(facts)
        self._peers = [[self._read_peer(a, b) for b in self._handles] for a in self._handles]

    def used_bytes(self) -> dict[bytes, int]:
        """Memory in use on every GPU of this machine, by UUID, whoever uses it; without NVML nothing."""
        found: dict[bytes, int] = {}
        count = ctypes.c_uint()
        if self._nvml is None or not self._ask("nvmlDeviceGetCount_v2", ctypes.byref(count)):
            return found
        name = ctypes.create_string_buffer(96)
        memory = _Memory2(version=ctypes.sizeof(_Memory2) | 2 << 24)
        for index in range(count.value):
            handle = ctypes.c_void_p()
            if (
                self._ask("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
                and self._ask("nvmlDeviceGetUUID", handle, name, ctypes.c_uint(len(name)))
                and self._ask("nvmlDeviceGetMemoryInfo_v2", handle, ctypes.byref(memory))
            ):
                with contextlib.suppress(ValueError):  # a MIG device has another form
                    found[uuid.UUID(name.value.decode("ascii", "replace").removeprefix("GPU-")).bytes] = memory.used
        return found

    async def refresh(self) -> None:
        """Reads the live values, at most once in FRESH_S for all who ask."""
        async with self._lock:
            now_s = self._clock()
            if self._nvml is None or now_s - self._read_at < FRESH_S:
                return
            self._live = await asyncio.to_thread(self._read_all)
            self._read_at = self._clock()

    def metrics(self, index: int) -> dict[str, int]:
        """The values of one device; what is not known is not in it."""
        return self._static[index] | self._live[index]

    def peers(self, index: int) -> list[list[int]]:
        """For each device: [topology level, P2P status by capability...]; empty without NVML."""
        return self._peers[index]

    # ------------------------------------------------------------------------------------------ NVML

    def _open(self, path: Path) -> None:
        try:
            nvml = ctypes.CDLL(str(path))
            result = nvml.nvmlInit_v2()
        except (OSError, AttributeError) as error:
            log.warning("cannot use %s: %s", path, error)
            return
        if result != 0:
            log.warning("%s: nvmlInit_v2 returned %d", path, result)
            return
        self._nvml = nvml
        text = ctypes.create_string_buffer(_VERSION_BYTES)
        if self._ask("nvmlSystemGetDriverVersion", text, ctypes.c_uint(_VERSION_BYTES)):
            self.driver = text.value.decode("ascii", "replace")

    def _ask(self, name: str, *arguments: Any) -> bool:
        try:
            return bool(getattr(self._nvml, name)(*arguments) == 0)
        except AttributeError:
            return False  # an older NVML

    def _find(self, gpu: control.Device) -> ctypes.c_void_p | None:
        if self._nvml is None:
            return None
        handle = ctypes.c_void_p()
        name = f"GPU-{uuid.UUID(bytes=gpu.uuid)}".encode()
        if self._ask("nvmlDeviceGetHandleByUUID", name, ctypes.byref(handle)):
            return handle
        if self._ask("nvmlDeviceGetHandleByPciBusId_v2", gpu.pci_bus_id.encode(), ctypes.byref(handle)):
            return handle
        log.warning("NVML does not know GPU %d (%s)", gpu.ordinal, gpu.name)
        return None

    def _get(self, handle: ctypes.c_void_p, getters: tuple[tuple[str, str, tuple[int, ...]], ...]) -> dict[str, int]:
        found: dict[str, int] = {}
        value = ctypes.c_uint()
        for key, name, between in getters:
            if self._ask(name, handle, *(ctypes.c_uint(a) for a in between), ctypes.byref(value)):
                found[key] = value.value
        return found

    def _read_static(self, handle: ctypes.c_void_p) -> dict[str, int]:
        found = self._get(handle, _STATIC_GETTERS)
        pci = _Pci()
        if self._ask("nvmlDeviceGetPciInfo_v3", handle, ctypes.byref(pci)):
            found["pci_device_id"], found["pci_subsystem_id"] = pci.device_id, pci.subsystem_id
        least, most = ctypes.c_uint(), ctypes.c_uint()
        limits = (handle, ctypes.byref(least), ctypes.byref(most))
        if self._ask("nvmlDeviceGetPowerManagementLimitConstraints", *limits):
            found["power_min_mw"], found["power_max_mw"] = least.value, most.value
        return found

    def _read_peer(self, one: ctypes.c_void_p | None, other: ctypes.c_void_p | None) -> list[int]:
        if one is None or other is None:
            return []
        value = ctypes.c_uint()
        if not self._ask("nvmlDeviceGetTopologyCommonAncestor", one, other, ctypes.byref(value)):
            return []
        row = [value.value]
        for capability in range(_P2P_CAPABILITIES):
            told = self._ask("nvmlDeviceGetP2PStatus", one, other, ctypes.c_uint(capability), ctypes.byref(value))
            row.append(value.value if told else 6)  # 6: unknown
        return row

    def _read_all(self) -> list[dict[str, int]]:
        return [{} if handle is None else self._read_live(handle) for handle in self._handles]

    def _read_live(self, handle: ctypes.c_void_p) -> dict[str, int]:
        found = self._get(handle, _LIVE_GETTERS)
        memory2 = _Memory2(version=ctypes.sizeof(_Memory2) | 2 << 24)
        memory = _Memory()
        if self._ask("nvmlDeviceGetMemoryInfo_v2", handle, ctypes.byref(memory2)):
            found |= {"memory_used_bytes": memory2.used, "memory_reserved_bytes": memory2.reserved,
                      "memory_total_bytes": memory2.total}  # fmt: skip
        elif self._ask("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory)):
            found |= {"memory_used_bytes": memory.used, "memory_total_bytes": memory.total}
        rates = _Utilization()
        if self._ask("nvmlDeviceGetUtilizationRates", handle, ctypes.byref(rates)):
            found |= {"utilization_gpu_percent": rates.gpu, "utilization_memory_percent": rates.memory}
        wide = ctypes.c_ulonglong()
        if self._ask("nvmlDeviceGetTotalEnergyConsumption", handle, ctypes.byref(wide)):
            found["energy_mj"] = min(wide.value, (1 << 63) - 1)
        if self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle, ctypes.byref(wide)):
            found["clock_reasons"] = min(wide.value, (1 << 63) - 1)
        first, second = ctypes.c_uint(), ctypes.c_uint()
        for one, other, name in _PAIRS:
            if self._ask(name, handle, ctypes.byref(first), ctypes.byref(second)):
                found[one], found[other] = first.value, second.value
        return found
