"""Asks the management library everything that monitors, PyTorch and NCCL ask, through nvidia-ml-py, and prints JSON.
An answer that is an error is given as its number. With an argument: attaches through the driver API first and holds
that many bytes on device 0."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import pynvml as n


def ask(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        value = function(*arguments)
    except n.NVMLError as error:
        return {"error": error.value}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    return plain(value)


def plain(value: Any) -> Any:
    if isinstance(value, ctypes.Array):
        return [plain(item) for item in value]
    if isinstance(value, (ctypes.Structure, ctypes.Union, n.nvmlFriendlyObject)):
        names = [f[0] for f in value._fields_] if hasattr(value, "_fields_") else list(vars(value))
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, (ctypes.c_uint, ctypes.c_int)):
        return value.value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


SIMPLE = """Name UUID Index MinorNumber PciInfo MemoryInfo UtilizationRates PowerUsage PowerManagementLimit
PowerManagementDefaultLimit PowerManagementLimitConstraints EnforcedPowerLimit TotalEnergyConsumption PerformanceState
PersistenceMode ComputeMode EccMode MigMode MaxMigDeviceCount Brand Architecture NumGpuCores FanSpeed
CudaComputeCapability CurrPcieLinkGeneration MaxPcieLinkGeneration CurrPcieLinkWidth MaxPcieLinkWidth
CurrentClocksThrottleReasons CurrentClocksEventReasons ComputeRunningProcesses GraphicsRunningProcesses
MPSComputeRunningProcesses EncoderUtilization Serial VbiosVersion Attributes NumaNodeId MemoryBusWidth
SupportedMemoryClocks""".split()


def device_report(handle: Any, others: list[Any]) -> dict[str, Any]:
    report = {name: ask(getattr(n, f"nvmlDeviceGet{name}"), handle) for name in SIMPLE}
    report["MemoryInfo_v2"] = ask(n.nvmlDeviceGetMemoryInfo, handle, n.nvmlMemory_v2)
    report["MemoryInfo_wrong_version"] = ask(n.nvmlDeviceGetMemoryInfo, handle, 1)
    report["PciInfo_v2"] = ask(n.nvmlDeviceGetPciInfo_v2, handle) if hasattr(n, "nvmlDeviceGetPciInfo_v2") else None
    report["Temperature"] = ask(n.nvmlDeviceGetTemperature, handle, n.NVML_TEMPERATURE_GPU)
    report["TemperatureV"] = ask(n.nvmlDeviceGetTemperatureV, handle, n.NVML_TEMPERATURE_GPU)
    report["Threshold"] = [ask(n.nvmlDeviceGetTemperatureThreshold, handle, kind) for kind in (0, 1, 99)]
    report["ClockInfo"] = [ask(n.nvmlDeviceGetClockInfo, handle, kind) for kind in range(5)]
    report["MaxClockInfo"] = [ask(n.nvmlDeviceGetMaxClockInfo, handle, kind) for kind in range(4)]
    report["CpuAffinity"] = ask(n.nvmlDeviceGetCpuAffinity, handle, 16)
    report["IsMig"] = ask(n.nvmlDeviceIsMigDeviceHandle, handle)
    report["NvLinkState"] = ask(n.nvmlDeviceGetNvLinkState, handle, 0)
    report["P2P"] = [[ask(n.nvmlDeviceGetP2PStatus, handle, o, c) for c in (0, 1, 2)] for o in others]
    report["Ancestor"] = [ask(n.nvmlDeviceGetTopologyCommonAncestor, handle, o) for o in others]
    fields = ask(n.nvmlDeviceGetFieldValues, handle, [n.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, 1])
    report["Fields"] = [[f["nvmlReturn"], f["value"]["ullVal"]] for f in fields] if isinstance(fields, list) else fields
    uuid, bus = n.nvmlDeviceGetUUID(handle), n.nvmlDeviceGetPciInfo(handle).busId
    report["ByUUID"] = ask(lambda: n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByUUID(uuid)))
    report["ByPciBusId"] = ask(lambda: n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByPciBusId(bus)))
    report["SetPersistenceMode"] = ask(n.nvmlDeviceSetPersistenceMode, handle, 1)
    return report


def hold(size_bytes: int) -> None:
    cuda = ctypes.CDLL("libcuda.so.1")
    context, device, address = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_uint64()
    calls = (
        cuda.cuInit(0),
        cuda.cuDeviceGet(ctypes.byref(device), 0),
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
        cuda.cuCtxSetCurrent(context),
        cuda.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(size_bytes)),
        cuda.cuCtxSynchronize(),
    )
    assert calls == (0,) * 6, calls


def main() -> None:
    before = ask(n.nvmlDeviceGetCount)
    started = ask(n.nvmlInit)
    if started is not None:
        print(json.dumps({"init": started}))
        return
    handles = [n.nvmlDeviceGetHandleByIndex(i) for i in range(n.nvmlDeviceGetCount())]
    if len(sys.argv) > 1:
        hold(int(sys.argv[1]))
        time.sleep(0.3)  # older answers are not used again
    report = {
        "pid": os.getpid(),
        "before_init": before,
        "DriverVersion": ask(n.nvmlSystemGetDriverVersion),
        "NVMLVersion": ask(n.nvmlSystemGetNVMLVersion),
        "CudaDriverVersion": ask(n.nvmlSystemGetCudaDriverVersion_v2),
        "ProcessName": ask(n.nvmlSystemGetProcessName, os.getpid()),
        "no_device": ask(n.nvmlDeviceGetHandleByIndex, len(handles)),
        "no_uuid": ask(n.nvmlDeviceGetHandleByUUID, "GPU-00000000-0000-0000-0000-000000000000"),
        "event_set": ask(n.nvmlEventSetCreate),
        "devices": [device_report(handle, handles) for handle in handles],
    }
    n.nvmlShutdown()
    report["after_shutdown"] = ask(n.nvmlDeviceGetName, handles[0])
    print(json.dumps(report))


main()
