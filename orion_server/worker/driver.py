"""What a worker asks of libcuda off the hot path: contexts through pycuda, the device snapshot through ctypes.

pycuda has no names for attributes newer than itself, and the snapshot must hold all that this driver knows, because
the client answers cuDeviceGetAttribute from it.
"""

from __future__ import annotations

import ctypes
import logging
from typing import Any

log = logging.getLogger("orion.worker")

# Attribute numbers are dense from 1; asking for one that the driver does not know fails cleanly.
_ATTRIBUTES = range(1, 256)
_P2P_ATTRIBUTES = range(1, 6)
_SLOT_MIN_BYTES = 16 << 30
_SLOT_MAX_BYTES = 1 << 40


_EXERCISE_PTX = b""".version 7.0
.target sm_70
.address_size 64
.visible .entry store(.param .u64 to)
{ .reg .u64 %rd<2>; .reg .u32 %r<2>;
  ld.param.u64 %rd1, [to]; mov.u32 %r1, 2; st.global.u32 [%rd1], %r1;
  ret; }
\0"""


class DriverError(Exception):
    """A CUDA call failed: the message names it."""


def load(path: str) -> ctypes.CDLL:
    """Loads the library and what needs it; nothing is initialised."""
    # RTLD_GLOBAL and before pycuda: its extension needs libcuda.so.1 and takes the one that is loaded already.
    library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    import pycuda.driver  # noqa: F401

    return library


class Driver:
    """The libcuda of this process, with a primary context made on every device."""

    def __init__(self, path: str) -> None:
        self._cuda = load(path)
        import pycuda.driver

        self._pycuda = pycuda.driver
        self._pycuda.init()
        self.path = path
        self.driver_version: int = self._int("cuDriverGetVersion")
        self.contexts: list[Any] = []
        self.primary_handles: list[int] = []
        for ordinal in range(self._pycuda.Device.count()):
            context = self._pycuda.Device(ordinal).retain_primary_context()
            context.push()
            handle = ctypes.c_void_p()
            self._check("cuCtxGetCurrent", ctypes.byref(handle))
            self.contexts.append(context)
            self.primary_handles.append(handle.value or 0)
            self._pycuda.Context.pop()
        if not self.contexts:
            raise DriverError("the driver shows no device")

    def snapshot(self) -> list[dict[str, Any]]:
        """Everything that attach tells a client about each device."""
        return [self._device(ordinal) for ordinal in range(len(self.contexts))]

    def free_bytes(self) -> list[int]:
        """Memory that each device has left, beside this process's context and all that others have there."""
        free: list[int] = []
        for context in self.contexts:
            context.push()
            try:
                free.append(self._pycuda.mem_get_info()[0])
            finally:
                self._pycuda.Context.pop()
        return free

    def exercise(self) -> None:
        """Loads a module on every device, runs it, and copies: what a driver does at the first of each (its compiler,
        local memory, copy queues) is done before there is a client who would wait for it. Nothing of it stays."""
        for context in self.contexts:
            context.push()
            try:
                self._exercise()
            except DriverError as error:
                log.warning("the driver's first steps failed: %s", error)
            finally:
                self._pycuda.Context.pop()

    def _exercise(self) -> None:
        module, function, stream = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        address, host = ctypes.c_uint64(), ctypes.c_uint32(1)
        size = ctypes.c_size_t(ctypes.sizeof(host))
        self._check("cuModuleLoadData", ctypes.byref(module), _EXERCISE_PTX)
        try:
            self._check("cuModuleGetFunction", ctypes.byref(function), module, b"store")
            self._check("cuStreamCreate", ctypes.byref(stream), 1)
            self._check("cuMemAlloc_v2", ctypes.byref(address), size)
            self._check("cuMemcpyHtoDAsync_v2", address, ctypes.byref(host), size, stream)
            parameters = (ctypes.c_void_p * 1)(ctypes.addressof(address))
            self._check("cuLaunchKernel", function, *([1] * 6), 0, stream, parameters, None)
            self._check("cuMemcpyDtoHAsync_v2", ctypes.byref(host), address, size, stream)
            self._check("cuStreamSynchronize", stream)
        finally:
            if address.value:
                self._check("cuMemFree_v2", address)
            if stream.value:
                self._check("cuStreamDestroy_v2", stream)
            self._check("cuModuleUnload", module)

    def _device(self, ordinal: int) -> dict[str, Any]:
        device = self._pycuda.Device(ordinal)
        handle = self._int("cuDeviceGet", ctypes.c_int(ordinal))
        total_bytes = device.total_memory()
        attributes: dict[int, int] = {}
        value = ctypes.c_int()
        for attribute in _ATTRIBUTES:
            if self._cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle) == 0:
                attributes[attribute] = value.value
        uuid = (ctypes.c_uint8 * 16)()
        self._check("cuDeviceGetUuid", uuid, handle)
        flags = ctypes.c_uint()
        active = ctypes.c_int()
        self._check("cuDevicePrimaryCtxGetState", handle, ctypes.byref(flags), ctypes.byref(active))
        least, greatest = ctypes.c_int(), ctypes.c_int()
        self.contexts[ordinal].push()
        try:
            self._check("cuCtxGetStreamPriorityRange", ctypes.byref(least), ctypes.byref(greatest))
        finally:
            self._pycuda.Context.pop()
        return {
            "ordinal": ordinal,
            "name": device.name(),
            "uuid": bytes(uuid),
            "pci_bus_id": device.pci_bus_id(),
            "total_bytes": total_bytes,
            "attributes": attributes,
            "priority_range": [least.value, greatest.value],
            "primary_flags": flags.value,
            "slot_bytes": slot_bytes(total_bytes),
            "peers": [self._peer(handle, other) for other in range(len(self.contexts))],
        }

    def _peer(self, handle: int, other: int) -> list[int]:
        """[whether kernels of the device reach the other's memory, P2P attributes 1, 2, ...]; of itself: nothing."""
        peer = self._int("cuDeviceGet", ctypes.c_int(other))
        if peer == handle:
            return [0]
        row = [self._int("cuDeviceCanAccessPeer", handle, peer)]
        value = ctypes.c_int()
        for attribute in _P2P_ATTRIBUTES:
            told = self._cuda.cuDeviceGetP2PAttribute(ctypes.byref(value), attribute, handle, peer) == 0
            row.append(value.value if told else 0)
        return row

    def _check(self, name: str, *arguments: Any) -> None:
        result = getattr(self._cuda, name)(*arguments)
        if result != 0:
            raise DriverError(f"{name} returned {result}")

    def _int(self, name: str, *arguments: Any) -> int:
        value = ctypes.c_int()
        self._check(name, ctypes.byref(value), *arguments)
        return value.value


def slot_bytes(total_bytes: int) -> int:
    """Addresses for a device: four times its memory, so that a fragmented slot still has room for a large block."""
    wanted = 1 << max(0, 4 * total_bytes - 1).bit_length()
    return max(_SLOT_MIN_BYTES, min(_SLOT_MAX_BYTES, wanted))


def null_snapshot() -> list[dict[str, Any]]:
    """The one device of the null engine, which accepts and drops work: a measure of everything but the GPU."""
    total_bytes = 8 << 30
    # Block and grid limits, warp size, clock, compute capability 8.0: enough for cuInit and launches to pass.
    attributes = {1: 1024, 2: 1024, 3: 1024, 4: 64, 5: (1 << 31) - 1, 6: 65535, 7: 65535, 8: 49152, 9: 65536, 10: 32}
    attributes |= {11: (1 << 31) - 1, 12: 65536, 13: 1_000_000, 16: 1, 19: 1, 31: 1, 39: 2048, 41: 1, 75: 8, 76: 0}
    attributes |= {81: 102400, 82: 65536, 95: 1, 97: 101376, 106: 32}
    return [
        {
            "ordinal": 0,
            "name": "null engine",
            "uuid": b"orion-null-gpu-0",
            "pci_bus_id": "0000:00:00.0",
            "total_bytes": total_bytes,
            "attributes": attributes,
            "priority_range": [0, 0],
            "primary_flags": 0,
            "slot_bytes": slot_bytes(total_bytes),
        }
    ]
