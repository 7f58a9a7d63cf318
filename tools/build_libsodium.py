"""Builds the private static libsodium that encrypts what crosses a network: libzmq's CURVE and plain TCP lanes.

The source comes from PyNaCl's source release, which carries libsodium whole. Its configure step is not run: the few
answers that the sources need are below, so that the same recipe serves gcc and zig.

Prints the prefix: PREFIX/include, PREFIX/lib/libsodium.a, PREFIX/licences.
"""

from __future__ import annotations

import argparse
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from buildlib import cached, compiler_commands, fetch_sdist, job_count, recipe_key, run

PYNACL_VERSION = "1.6.2"
PYNACL_SHA256 = "018494d6d696ae03c7e656e5e74cdfd8ea1326962cc401bcf018f1ed8436811c"
LIBSODIUM_VERSION = "1.0.20"
LIBRARY_MAJOR, LIBRARY_MINOR = 26, 2

FLAGS = ["-std=c11", "-O3", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections", "-w", "-DNDEBUG"]
FLAGS += ["-fno-strict-aliasing", "-fno-strict-overflow", "-pthread"]
# Its clang no longer takes libsodium's way of asking for AVX-512, which is for hashing passwords alone.
FLAGS_OF = {"gcc": [], "zig": ["-UHAVE_AVX512FINTRIN_H"]}
# What libsodium's configure finds out on x86-64 Linux. Each line holds for glibc 2.17, the oldest that is supported:
# HAVE_GETRANDOM is left out, the system call is made then. CPU features are asked for at run time.
ANSWERS = """\
CONFIGURED=1 SODIUM_STATIC=1 _GNU_SOURCE=1 NATIVE_LITTLE_ENDIAN=1 TLS=_Thread_local
HAVE_CPUID=1 HAVE_AVX_ASM=1 HAVE_TI_MODE=1 HAVE_INLINE_ASM=1 HAVE_WEAK_SYMBOLS=1
HAVE_ATOMIC_OPS=1 HAVE_C11_MEMORY_FENCES=1 HAVE_C_VARARRAYS=1
HAVE_GCC_MEMORY_FENCES=1 HAVE_PTHREAD=1 HAVE_PTHREAD_PRIO_INHERIT=1 HAVE_CATCHABLE_SEGV=1 HAVE_CATCHABLE_ABRT=1
HAVE_MMINTRIN_H=1 HAVE_EMMINTRIN_H=1 HAVE_PMMINTRIN_H=1 HAVE_TMMINTRIN_H=1 HAVE_SMMINTRIN_H=1 HAVE_AVXINTRIN_H=1
HAVE_AVX2INTRIN_H=1 HAVE_AVX512FINTRIN_H=1 HAVE_WMMINTRIN_H=1 HAVE_RDRAND=1
HAVE_SYS_MMAN_H=1 HAVE_SYS_PARAM_H=1 HAVE_SYS_AUXV_H=1 HAVE_ALLOCA_H=1 HAVE_ALLOCA=1
HAVE_MMAP=1 HAVE_MLOCK=1 HAVE_MADVISE=1 HAVE_MPROTECT=1 HAVE_RAISE=1 HAVE_SYSCONF=1 HAVE_GETPID=1 HAVE_GETAUXVAL=1
HAVE_POSIX_MEMALIGN=1 HAVE_NANOSLEEP=1 HAVE_CLOCK_GETTIME=1
"""


def build_libsodium(compiler: str) -> Path:
    compile_c, archiver, identity = compiler_commands(compiler, "cc")
    key = recipe_key([PYNACL_SHA256, identity, ANSWERS, *FLAGS, *FLAGS_OF[compiler]])

    def build(work: Path) -> None:
        libsodium = fetch_sdist("pynacl", PYNACL_VERSION, PYNACL_SHA256) / "src" / "libsodium"
        sources = libsodium / "src" / "libsodium"
        shutil.copytree(sources / "include", work / "include", ignore=shutil.ignore_patterns("Makefile*", "*.in"))
        version = (sources / "include" / "sodium" / "version.h.in").read_text()
        for name, value in (
            ("@VERSION@", LIBSODIUM_VERSION),
            ("@SODIUM_LIBRARY_VERSION_MAJOR@", str(LIBRARY_MAJOR)),
            ("@SODIUM_LIBRARY_VERSION_MINOR@", str(LIBRARY_MINOR)),
            ("@SODIUM_LIBRARY_MINIMAL_DEF@", ""),
        ):
            version = version.replace(name, value)
        (work / "include" / "sodium" / "version.h").write_text(version)
        objects = work / "objects"
        objects.mkdir()
        defines = [*(f"-D{answer}" for answer in ANSWERS.split()), *FLAGS_OF[compiler]]
        includes = [f"-I{work / 'include'}", f"-I{work / 'include' / 'sodium'}"]

        def compile_one(source: Path) -> str:
            target = objects / f"{source.relative_to(sources).as_posix().replace('/', '_')}.o"
            run([*compile_c, *FLAGS, *defines, *includes, "-c", str(source), "-o", str(target)], quiet=True)
            return str(target)

        with ThreadPoolExecutor(job_count()) as pool:
            compiled = list(pool.map(compile_one, sorted(sources.rglob("*.[cS]"))))
        (work / "lib").mkdir()
        run([*archiver, "rcs", str(work / "lib" / "libsodium.a"), *compiled], quiet=True)
        shutil.rmtree(objects)
        shutil.rmtree(work / "include" / "sodium" / "private")
        (work / "licences").mkdir()
        shutil.copy2(libsodium / "LICENSE", work / "licences" / "libsodium-LICENSE")

    return cached(f"libsodium-{LIBSODIUM_VERSION}-{compiler}-{key}", build)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", choices=("gcc", "zig"), default="gcc")
    print(build_libsodium(parser.parse_args().compiler))


if __name__ == "__main__":
    main()
