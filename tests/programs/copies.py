"""A client that copies a known pattern to the device and back, small and large ranges, until a call fails or ROUNDS are
done. Prints {"code": the first CUresult that is not 0, or 0, "rounds": whole ones, "same": whether all came back}."""

from __future__ import annotations

import ctypes
import json
import sys

PATTERN = b"<<what a tenant copies is nobody's business>>"
# The last fills some records of a stripe; the middle one some of lane 0; the first travels with other operations.
SIZES = (len(PATTERN), 200 << 10, 1 << 20)

context = ctypes.c_void_p()
pointer = ctypes.c_uint64()


def one_round(cuda: ctypes.CDLL) -> tuple[int, bool]:
    for size in SIZES:
        sent = (PATTERN * (size // len(PATTERN) + 1))[:size]
        back = ctypes.create_string_buffer(size)
        code = cuda.cuMemcpyHtoD_v2(pointer, sent, ctypes.c_size_t(size))
        code = code or cuda.cuMemcpyDtoH_v2(back, pointer, ctypes.c_size_t(size)) or cuda.cuCtxSynchronize()
        if code or back.raw != sent:
            return code, code != 0
    return 0, True


def main() -> None:
    cuda = ctypes.CDLL("libcuda.so.1")
    code = cuda.cuInit(0) or cuda.cuCtxCreate_v2(ctypes.byref(context), 0, 0)
    code = code or cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(max(SIZES)))
    rounds, same = 0, True
    while not code and same and rounds < int(sys.argv[1]):
        code, same = one_round(cuda)
        rounds += code == 0
    print(json.dumps({"code": code, "rounds": rounds, "same": same}), flush=True)


if __name__ == "__main__":
    main()
