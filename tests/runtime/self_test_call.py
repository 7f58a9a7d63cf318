"""Asks the driver for the runtime's self-test, as a libcudart does: prints the code and the three answers."""

from __future__ import annotations

import ctypes

TABLE = (ctypes.c_uint8 * 16)(*bytes.fromhex("d4082055bde6704b8d34ba123c66e1f2"))
driver = ctypes.CDLL("libcuda.so.1")
assert driver.cuInit(0) == 0
table = ctypes.c_void_p()
assert driver.cuGetExportTable(ctypes.byref(table), TABLE) == 0
assert table.value is not None
slots = ctypes.cast(table.value, ctypes.POINTER(ctypes.c_void_p))
ask = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p)(slots[1] or 0)
for version in (13000, 13001, 13002):
    answer = (ctypes.c_uint8 * 16)()
    print(ask(version, 1_700_000_000, answer), bytes(answer).hex())
