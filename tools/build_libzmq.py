"""Builds the private static libzmq that is linked into the client libraries and the engine.

The source comes from pyzmq's source release, the registry's last one that carries libzmq whole. That release leaves out
libzmq's own build files, so the sources are compiled here directly; only what this project uses is compiled
(no GSSAPI, PGM, NORM, TIPC, VMCI or WebSockets). CURVE uses the private libsodium (tools/build_libsodium.py), which
lies in the same prefix; there is no dependency beyond libc and the C++ runtime.

Prints the prefix: PREFIX/include, PREFIX/lib/libzmq.a, PREFIX/lib/libsodium.a, PREFIX/licences.
"""

from __future__ import annotations

import argparse
import fnmatch
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from build_libsodium import build_libsodium
from buildlib import cached, compiler_commands, fetch_sdist, job_count, recipe_key, run

PYZMQ_VERSION = "25.1.2"
PYZMQ_SHA256 = "93f1aa311e8bb912e34f004cf186407a4e90eec4f0ecc0efd26056bf7eda0226"
LIBZMQ_VERSION = "4.3.4"

FLAGS = ["-std=c++11", "-O2", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-ffunction-sections"]
FLAGS += ["-fdata-sections", "-DNDEBUG", "-D_GNU_SOURCE", "-D_REENTRANT", "-D_THREAD_SAFE", "-DSODIUM_STATIC", "-w"]
LEFT_OUT = ["gssapi_*", "norm_*", "pgm_*", "tipc_*", "vmci*", "ws_*", "wss_*"]

# What libzmq's own configure step finds out on Linux. Each line holds for glibc 2.17, the oldest that is supported;
# getrandom, strlcpy and the like came later and must not be used.
PLATFORM = """\
#pragma once
#define ZMQ_HAVE_LINUX
#define ZMQ_IOTHREAD_POLLER_USE_EPOLL
#define ZMQ_IOTHREAD_POLLER_USE_EPOLL_CLOEXEC
#define ZMQ_POLL_BASED_ON_POLL
#define ZMQ_USE_CV_IMPL_PTHREADS
#define ZMQ_CACHELINE_SIZE 64
#define ZMQ_HAVE_ATOMIC_INTRINSICS
#define ZMQ_HAVE_EVENTFD
#define ZMQ_HAVE_EVENTFD_CLOEXEC
#define ZMQ_HAVE_IFADDRS
#define ZMQ_HAVE_IPC
#define ZMQ_HAVE_NOEXCEPT
#define ZMQ_HAVE_O_CLOEXEC
#define ZMQ_HAVE_PTHREAD_SETNAME_2
#define ZMQ_HAVE_PTHREAD_SET_AFFINITY
#define ZMQ_HAVE_SOCK_CLOEXEC
#define ZMQ_HAVE_SO_BINDTODEVICE
#define ZMQ_HAVE_SO_KEEPALIVE
#define ZMQ_HAVE_SO_PEERCRED
#define ZMQ_HAVE_SO_PRIORITY
#define ZMQ_HAVE_TCP_KEEPCNT
#define ZMQ_HAVE_TCP_KEEPIDLE
#define ZMQ_HAVE_TCP_KEEPINTVL
#define ZMQ_HAVE_UIO
#define HAVE_ACCEPT4
#define HAVE_CLOCK_GETTIME
#define HAVE_FORK
#define HAVE_IF_NAMETOINDEX
#define HAVE_MKDTEMP
#define HAVE_POSIX_MEMALIGN
#define HAVE_STRNLEN
#define ZMQ_HAVE_CURVE
#define ZMQ_USE_LIBSODIUM
"""


def build_libzmq(compiler: str) -> Path:
    cxx, archiver, identity = compiler_commands(compiler, "c++")
    libsodium = build_libsodium(compiler)
    key = recipe_key([PYZMQ_SHA256, identity, PLATFORM, libsodium.name, *FLAGS, *LEFT_OUT])

    def build(work: Path) -> None:
        release = fetch_sdist("pyzmq", PYZMQ_VERSION, PYZMQ_SHA256)
        libzmq = release / "bundled" / "zeromq"
        objects = work / "objects"
        objects.mkdir()
        (objects / "platform.hpp").write_text(PLATFORM)
        sources = [
            path
            for path in sorted((libzmq / "src").glob("*.cpp"))
            if not any(fnmatch.fnmatch(path.name, pattern) for pattern in LEFT_OUT)
        ]

        def compile_one(source: Path) -> str:
            target = objects / f"{source.stem}.o"
            # platform.hpp is found in `objects`, ahead of the folder of the sources.
            includes = [f"-I{objects}", f"-I{libzmq / 'include'}", f"-I{libsodium / 'include'}"]
            run([*cxx, *FLAGS, *includes, "-c", str(source), "-o", str(target)], quiet=True)
            return str(target)

        with ThreadPoolExecutor(job_count()) as pool:
            compiled = list(pool.map(compile_one, sources))
        for part in ("include", "lib", "licences"):
            shutil.copytree(libsodium / part, work / part)
        run([*archiver, "rcs", str(work / "lib" / "libzmq.a"), *compiled], quiet=True)
        shutil.rmtree(objects)
        for header in ("zmq.h", "zmq_utils.h"):
            shutil.copy2(libzmq / "include" / header, work / "include")
        for licence in ("COPYING", "COPYING.LESSER"):
            shutil.copy2(libzmq / licence, work / "licences")

    return cached(f"libzmq-{LIBZMQ_VERSION}-{compiler}-{key}", build)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", choices=("gcc", "zig"), default="gcc")
    print(build_libzmq(parser.parse_args().compiler))


if __name__ == "__main__":
    main()
