"""A program of the CUDA driver API that knows nothing of Orion: adds two vectors and tells what it sees, as JSON.

vgpu.py [SECONDS]: goes on for so long, a line a second. Needs nothing but Python.
"""

import ctypes
import glob
import json
import sys
import time

PTX = b"""
.version 6.4
.target sm_50
.address_size 64
.visible .entry add(.param .u64 a, .param .u64 b, .param .u64 out, .param .u32 count)
{
  .reg .pred %p;
  .reg .b32 %r<9>;
  .reg .b64 %rd<7>;
  ld.param.u64 %rd0, [a];
  ld.param.u64 %rd1, [b];
  ld.param.u64 %rd2, [out];
  ld.param.u32 %r0, [count];
  mov.u32 %r1, %ctaid.x;
  mov.u32 %r2, %ntid.x;
  mov.u32 %r3, %tid.x;
  mad.lo.s32 %r4, %r1, %r2, %r3;
  setp.ge.u32 %p, %r4, %r0;
  @%p bra done;
  mul.wide.u32 %rd3, %r4, 4;
  add.s64 %rd4, %rd0, %rd3;
  add.s64 %rd5, %rd1, %rd3;
  add.s64 %rd6, %rd2, %rd3;
  ld.global.u32 %r5, [%rd4];
  ld.global.u32 %r6, [%rd5];
  add.u32 %r7, %r5, %r6;
  st.global.u32 [%rd6], %r7;
done:
  ret;
}
"""
COUNT = 10_000

# Whatever is preloaded answers to this name; without it there is no such library in the image.
cuda = ctypes.CDLL("libcuda.so.1")


def check(code: int, what: str) -> None:
    if code != 0:
        print(json.dumps({"error": code, "in": what}), flush=True)
        sys.exit(1)


def memory_mib() -> int:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    check(cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), "cuMemGetInfo")
    return total.value >> 20


def add() -> bool:
    """Whether COUNT sums are right."""
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    check(cuda.cuModuleLoadData(ctypes.byref(module), PTX), "cuModuleLoadData")
    check(cuda.cuModuleGetFunction(ctypes.byref(function), module, b"add"), "cuModuleGetFunction")
    size = ctypes.c_size_t(4 * COUNT)
    vector = ctypes.c_uint32 * COUNT
    first, second, out = vector(*range(COUNT)), vector(*range(7, COUNT + 7)), vector()
    on_device = []
    for source in (first, second, out):
        pointer = ctypes.c_uint64()
        check(cuda.cuMemAlloc_v2(ctypes.byref(pointer), size), "cuMemAlloc")
        check(cuda.cuMemcpyHtoD_v2(pointer, source, size), "cuMemcpyHtoD")
        on_device.append(pointer)
    values = [*on_device, ctypes.c_uint32(COUNT)]
    arguments = (ctypes.c_void_p * 4)(*(ctypes.addressof(value) for value in values))
    check(
        cuda.cuLaunchKernel(function, (COUNT + 255) // 256, 1, 1, 256, 1, 1, 0, None, arguments, None), "cuLaunchKernel"
    )
    check(cuda.cuMemcpyDtoH_v2(out, on_device[2], size), "cuMemcpyDtoH")
    for pointer in on_device:
        check(cuda.cuMemFree_v2(pointer), "cuMemFree")
    return list(out) == [2 * one + 7 for one in range(COUNT)]


check(cuda.cuInit(0), "cuInit")
count = ctypes.c_int()
check(cuda.cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount")
name = ctypes.create_string_buffer(256)
check(cuda.cuDeviceGetName(name, 256, 0), "cuDeviceGetName")
context = ctypes.c_void_p()
check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0), "cuDevicePrimaryCtxRetain")
check(cuda.cuCtxSetCurrent(context), "cuCtxSetCurrent")
until = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 0)
while True:
    told = {"devices": count.value, "name": name.value.decode(), "mib": memory_mib(), "sums": add()}
    print(json.dumps({**told, "device_nodes": glob.glob("/dev/nvidia*")}), flush=True)
    if time.monotonic() >= until:
        break
    time.sleep(1)
