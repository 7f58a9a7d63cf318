"""Modules, libraries, the linker and fatbin images."""

from __future__ import annotations

import ctypes
import pathlib
import struct
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p

import pytest

from tests.softgpu import libcuda
from tests.softgpu.libcuda import PTX, Cuda, run_child

KIND_PTX, KIND_ELF = 1, 2
FLAG_LZ4, FLAG_ZSTD = 0x2000, 0x8000


def entry(payload: bytes, kind: int = KIND_PTX, sm: int = 70, flags: int = 0x11, text_size: int = 0) -> bytes:
    padded = payload + bytes(-len(payload) % 8)
    packed = len(payload) if text_size else 0
    header = struct.pack(
        "<HHIQIIHHIIIQQQ", kind, 0x101, 64, len(padded), packed, 0, 0, 7, sm, 0, 0, flags, 0, text_size
    )
    assert len(header) == 64
    return header + padded


def container(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def lz4_literals(data: bytes) -> bytes:
    """One LZ4 sequence that holds all of `data` as literals."""
    length = len(data)
    if length < 15:
        return bytes([length << 4]) + data
    rest = length - 15
    return bytes([0xF0]) + b"\xff" * (rest // 255) + bytes([rest % 255]) + data


def load_code(cu: Cuda, image: bytes) -> int:
    out = c_void_p()
    return cu.code("cuModuleLoadData", byref(out), c_char_p(image))


def test_functions_and_globals(cu: Cuda, module: c_void_p) -> None:
    assert cu.function(module, b"bump").value
    out = c_void_p()
    assert cu.code("cuModuleGetFunction", byref(out), module, b"absent") == libcuda.NOT_FOUND
    assert cu.code("cuModuleGetFunction", byref(out), module, None) == libcuda.INVALID_VALUE
    address, size = c_uint64(), c_size_t()
    cu.call("cuModuleGetGlobal_v2", byref(address), byref(size), module, b"counter")
    assert size.value == 4
    assert cu.read_u32(address) == 41
    cu.write(address, (5).to_bytes(4, "little"))
    cu.launch(cu.function(module, b"bump"), [address, c_uint(6)])
    assert cu.read_u32(address) == 11
    assert cu.code("cuModuleGetGlobal_v2", byref(address), byref(size), module, b"absent") == libcuda.NOT_FOUND


def test_enumerate(cu: Cuda, module: c_void_p) -> None:
    count = cu.get(c_uint, "cuModuleGetFunctionCount", module)
    assert count == PTX.count(b".entry")
    functions = (c_void_p * count)()
    cu.call("cuModuleEnumerateFunctions", functions, count, module)
    names = set()
    for function in functions:
        name = c_char_p()
        cu.call("cuFuncGetName", byref(name), c_void_p(function))
        names.add(name.value)
    assert {b"bump", b"nothing"} <= names


def test_modules_have_their_own_globals(cu: Cuda) -> None:
    addresses = {cu.get(c_uint64, "cuModuleGetGlobal_v2", byref(c_size_t()), cu.module(), b"counter") for _ in range(3)}
    assert len(addresses) == 3


def test_unload_frees_memory_and_handles(cu: Cuda) -> None:
    module = cu.module()
    cu.call("cuModuleUnload", module)
    before = cu.get(c_size_t, "cuMemGetInfo_v2", byref(c_size_t()))
    module = cu.module()
    cu.call("cuModuleUnload", module)
    assert cu.get(c_size_t, "cuMemGetInfo_v2", byref(c_size_t())) == before


@pytest.mark.softgpu_only
def test_stale_module_and_function(cu: Cuda) -> None:
    module = cu.module()
    function = cu.function(module, b"nothing")
    cu.call("cuModuleUnload", module)
    assert cu.code("cuModuleUnload", module) == libcuda.INVALID_HANDLE
    assert cu.code("cuModuleGetFunction", byref(c_void_p()), module, b"bump") == libcuda.INVALID_HANDLE
    assert cu.launch_code(function, []) == libcuda.INVALID_HANDLE


def test_bad_images(cu: Cuda) -> None:
    assert load_code(cu, b"") == libcuda.INVALID_IMAGE
    assert load_code(cu, b"not ptx at all") == libcuda.INVALID_IMAGE
    assert load_code(cu, b".version 7.0\n.target sm_70\n.address_size 64\nbad;") == libcuda.INVALID_PTX
    assert load_code(cu, b".version 99.0\n.target sm_70\n.address_size 64\n") == libcuda.UNSUPPORTED_PTX_VERSION
    assert cu.code("cuModuleLoadData", byref(c_void_p()), None) == libcuda.INVALID_VALUE
    assert cu.code("cuModuleLoadData", None, PTX) == libcuda.INVALID_VALUE
    assert cu.code("cuModuleLoad", byref(c_void_p()), b"/no/such/file") == libcuda.FILE_NOT_FOUND


def test_file(cu: Cuda, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "module.ptx"
    path.write_bytes(PTX)
    out = c_void_p()
    cu.call("cuModuleLoad", byref(out), str(path).encode())
    assert cu.function(out, b"bump").value


@pytest.mark.softgpu_only
def test_refused_instruction_is_named() -> None:
    """A kernel is decoded when it is first asked for; the others of its module still run."""
    done = run_child("""
cu.call("cuInit", 0)
cu.context()
module = cu.module(PTX.replace(b"atom.global.add.u32", b"atom.global.frobnicate.u32"))
assert cu.code("cuModuleGetFunction", byref(c_void_p()), module, b"bump") == INVALID_PTX
cu.launch(cu.function(module, b"nothing"), [])
cu.call("cuCtxSynchronize")
""")
    assert done.returncode == 0, done.stderr
    assert "frobnicate" in done.stderr


def test_log_sizes(cu: Cuda) -> None:
    log = ctypes.create_string_buffer(b"\xff" * 16, 16)
    options = (c_int * 2)(5, 6)
    values = (c_void_p * 2)(ctypes.addressof(log), 8)
    bad = b".version 7.0\n.target sm_70\n.address_size 64\n.nonsense here\n"
    assert cu.code("cuModuleLoadDataEx", byref(c_void_p()), c_char_p(bad), 2, options, values) == libcuda.INVALID_PTX
    assert log.raw[8:] == b"\xff" * 8  # nothing behind the room that was given
    assert b"\0" in log.raw[:8]
    assert cu.code("cuModuleLoadDataEx", byref(c_void_p()), c_char_p(PTX), 1, (c_int * 1)(999), values) == (
        libcuda.INVALID_VALUE
    )


@pytest.mark.softgpu_only  # made by hand: real drivers crash on some of these images
class TestFatbin:
    def check(self, cu: Cuda, image: bytes) -> None:
        module = cu.module(image)
        target = cu.alloc(4)
        cu.call("cuMemsetD32_v2", target, 0, c_size_t(1))
        cu.launch(cu.function(module, b"bump"), [target, c_uint(7)])
        assert cu.read_u32(target) == 7

    def test_stored(self, cu: Cuda) -> None:
        self.check(cu, container(entry(PTX + b"\0")))

    def test_wrapper(self, cu: Cuda) -> None:
        image = ctypes.create_string_buffer(container(entry(PTX + b"\0")))
        wrapper = struct.pack("<IIQQ", 0x466243B1, 1, ctypes.addressof(image), 0)
        self.check(cu, wrapper)

    def test_lz4(self, cu: Cuda) -> None:
        text = PTX + b"\0"
        self.check(cu, container(entry(lz4_literals(text), flags=0x11 | FLAG_LZ4, text_size=len(text))))

    def test_lz4_with_matches(self, cu: Cuda) -> None:
        # Literals, then a match that overlaps itself (200 newlines from one), then literals to the end.
        head, tail = b"\n", PTX + b"\0"
        extra = 199 - 19
        packed = bytes([0x1F]) + head + struct.pack("<H", 1) + bytes([extra]) + lz4_literals(tail)
        size = len(head) + 199 + len(tail)
        self.check(cu, container(entry(packed, flags=0x11 | FLAG_LZ4, text_size=size)))

    def test_zstd(self, cu: Cuda) -> None:
        try:
            zstd = ctypes.CDLL("libzstd.so.1")
        except OSError:
            pytest.skip("no libzstd")
        zstd.ZSTD_compress.restype = c_size_t
        text = PTX + b"\0"
        room = ctypes.create_string_buffer(len(text) + 1024)
        size = zstd.ZSTD_compress(room, c_size_t(len(room)), c_char_p(text), c_size_t(len(text)), 3)
        self.check(cu, container(entry(room.raw[:size], flags=0x11 | FLAG_ZSTD, text_size=len(text))))

    def test_best_architecture_is_chosen(self, cu: Cuda) -> None:
        older = PTX.replace(b"bump", b"wrong")
        newer = b".version 9.0\n.target sm_120\n"
        self.check(cu, container(entry(older, sm=52), entry(newer, sm=120), entry(PTX, sm=75)))

    def test_machine_code_only(self, cu: Cuda) -> None:
        assert load_code(cu, container(entry(b"\x7fELF" + bytes(60), kind=KIND_ELF))) == libcuda.NO_BINARY_FOR_GPU
        assert load_code(cu, b"\x7fELF\x02\x01\x01") == libcuda.NO_BINARY_FOR_GPU
        assert load_code(cu, container(entry(PTX, sm=120))) == libcuda.NO_BINARY_FOR_GPU
        assert load_code(cu, container()) == libcuda.INVALID_IMAGE

    @pytest.mark.parametrize("flags", [0x11, 0x11 | FLAG_LZ4])
    def test_truncated_at_every_byte(self, cu: Cuda, flags: int, tmp_path: pathlib.Path) -> None:
        text = b".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry k(){ret;}\n\0"
        packed = lz4_literals(text) if flags & FLAG_LZ4 else text
        image = container(entry(packed, flags=flags, text_size=len(text) if flags & FLAG_LZ4 else 0))
        assert load_code(cu, image) == libcuda.SUCCESS
        path = tmp_path / "cut.fatbin"
        for length in range(1, len(image)):
            path.write_bytes(image[:length])
            # A file: the size is known and the container does not fit.
            code = cu.code("cuModuleLoad", byref(c_void_p()), str(path).encode())
            assert code in (libcuda.INVALID_IMAGE, libcuda.INVALID_PTX), length
        for body in range(len(image) - 16):
            # A pointer: the header says less than the entry needs, and ends exactly at an unreadable page.
            code = load_at_page_end(cu, struct.pack("<IHHQ", 0xBA55ED50, 1, 16, body) + image[16 : 16 + body])
            assert code == libcuda.INVALID_IMAGE, body

    def test_damaged_headers(self, cu: Cuda) -> None:
        image = bytearray(container(entry(lz4_literals(PTX), flags=0x11 | FLAG_LZ4, text_size=len(PTX))))
        for at in range(4, 80):
            for value in (0x00, 0x7F, 0xFF):
                if image[at] == value:
                    continue
                damaged = bytes(image[:at]) + bytes([value]) + bytes(image[at + 1 :])
                # Sizes that grew reach behind the bytes we own; only those that stay inside may be tried.
                if struct.unpack_from("<Q", damaged, 8)[0] + struct.unpack_from("<H", damaged, 6)[0] > len(image):
                    continue
                load_code(cu, damaged + bytes(8))


def load_at_page_end(cu: Cuda, image: bytes) -> int:
    """Loads an image whose last byte is the last readable one."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = c_void_p
    page = 4096
    pages = -(-len(image) // page)
    base = libc.mmap(None, c_size_t((pages + 1) * page), 3, 0x22, -1, ctypes.c_long(0))
    libc.mprotect(c_void_p(base + pages * page), c_size_t(page), 0)
    start = base + pages * page - len(image)
    ctypes.memmove(start, image, len(image))
    code = cu.code("cuModuleLoadData", byref(c_void_p()), c_void_p(start))
    libc.munmap(c_void_p(base), c_size_t((pages + 1) * page))
    return code


class TestLibraries:
    def load(self, cu: Cuda, code: bytes = PTX) -> c_void_p:
        out = c_void_p()
        cu.call("cuLibraryLoadData", byref(out), c_char_p(code), None, None, 0, None, None, 0)
        return out

    def test_kernel_is_launched_like_a_function(self, cu: Cuda) -> None:
        library = self.load(cu)
        kernel = c_void_p(cu.get(c_void_p, "cuLibraryGetKernel", library, b"bump"))
        target = cu.alloc(4)
        cu.call("cuMemsetD32_v2", target, 0, c_size_t(1))
        cu.launch(kernel, [target, c_uint(7)])
        function = c_void_p(cu.get(c_void_p, "cuKernelGetFunction", kernel))
        cu.launch(function, [target, c_uint(7)])
        assert cu.read_u32(target) == 14
        assert cu.get(c_int, "cuKernelGetAttribute", 0, kernel, 0) == 1024
        name = c_char_p()
        cu.call("cuKernelGetName", byref(name), kernel)
        assert name.value == b"bump"
        offset, size = c_size_t(), c_size_t()
        cu.call("cuKernelGetParamInfo", kernel, c_size_t(1), byref(offset), byref(size))
        assert (offset.value, size.value) == (8, 4)
        assert cu.code("cuLibraryGetKernel", byref(c_void_p()), library, b"absent") == libcuda.NOT_FOUND
        cu.call("cuLibraryUnload", library)

    def test_globals_and_module(self, cu: Cuda) -> None:
        library = self.load(cu)
        address = cu.get(c_uint64, "cuLibraryGetGlobal", byref(c_size_t()), library, b"counter")
        assert cu.read_u32(address) == 41
        module = c_void_p(cu.get(c_void_p, "cuLibraryGetModule", library))
        again = cu.get(c_uint64, "cuModuleGetGlobal_v2", byref(c_size_t()), module, b"counter")
        assert again == address
        assert cu.get(c_uint, "cuLibraryGetKernelCount", library) == PTX.count(b".entry")
        cu.call("cuLibraryUnload", library)

    def test_each_context_has_its_own(self, driver: Cuda) -> None:
        library = self.load(driver)
        addresses = []
        contexts = [driver.context() for _ in range(2)]
        for context in contexts:
            driver.call("cuCtxSetCurrent", context)
            addresses.append(driver.get(c_uint64, "cuLibraryGetGlobal", byref(c_size_t()), library, b"counter"))
        assert addresses[0] != addresses[1]
        driver.call("cuLibraryUnload", library)
        for context in contexts:
            driver.call("cuCtxDestroy_v2", context)


class TestLink:
    CALLEE = b"""
.version 7.0
.target sm_70
.address_size 64
.visible .func (.param .u32 r) twice(.param .u32 x)
{ .reg .u32 %r<3>; ld.param.u32 %r1, [x]; add.u32 %r2, %r1, %r1; st.param.u32 [r], %r2; ret; }
"""
    CALLER = b"""
.version 7.0
.target sm_70
.address_size 64
.extern .func (.param .u32 r) twice(.param .u32 x);
.visible .entry doubled(.param .u64 p, .param .u32 n)
{ .reg .u64 %rd<2>; .reg .u32 %r<3>;
  ld.param.u64 %rd1, [p]; ld.param.u32 %r1, [n];
  { .param .u32 a; .param .u32 b;
    st.param.u32 [a], %r1;
    call (b), twice, (a);
    ld.param.u32 %r2, [b]; }
  st.global.u32 [%rd1], %r2; ret; }
"""

    def add(self, cu: Cuda, state: c_void_p, text: bytes, kind: int = 1) -> int:
        return cu.code("cuLinkAddData_v2", state, kind, c_char_p(text), c_size_t(len(text) + 1), b"x", 0, None, None)

    def test_two_texts(self, cu: Cuda) -> None:
        state = c_void_p()
        cu.call("cuLinkCreate_v2", 0, None, None, byref(state))
        assert self.add(cu, state, self.CALLER) == libcuda.SUCCESS
        assert self.add(cu, state, self.CALLEE) == libcuda.SUCCESS
        image, size = c_void_p(), c_size_t()
        cu.call("cuLinkComplete", state, byref(image), byref(size))
        module = c_void_p()
        cu.call("cuModuleLoadData", byref(module), image)
        cu.call("cuLinkDestroy", state)
        target = cu.alloc(4)
        cu.launch(cu.function(module, b"doubled"), [target, c_uint(21)])
        assert cu.read_u32(target) == 42

    @pytest.mark.softgpu_only
    def test_errors(self, cu: Cuda) -> None:
        state = c_void_p()
        log = ctypes.create_string_buffer(1024)
        options = (c_int * 2)(5, 6)
        values = (c_void_p * 2)(ctypes.addressof(log), 1024)
        cu.call("cuLinkCreate_v2", 2, options, values, byref(state))
        assert self.add(cu, state, b"\x7fELF", kind=0) == libcuda.NO_BINARY_FOR_GPU
        assert self.add(cu, state, self.CALLER) == libcuda.SUCCESS
        assert cu.code("cuLinkComplete", state, byref(c_void_p()), None) != libcuda.SUCCESS
        assert b"twice" in log.value
        cu.call("cuLinkDestroy", state)
        assert cu.code("cuLinkDestroy", state) == libcuda.INVALID_HANDLE
