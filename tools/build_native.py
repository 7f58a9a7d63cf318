"""Builds everything that is compiled: the client libraries, softgpu, the engine and the arbiter.

    build_native.py                     development build with the system's gcc, in build/ and in place
    build_native.py --release FOLDER    release build with zig (glibc 2.17), laid out as in the wheel
    build_native.py --test-client       build/shim-test: answers the runtime's self-test without a GPU; never installed

All are incremental.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import sys
from pathlib import Path

from build_libzmq import build_libzmq
from buildlib import job_count, run
from zig_wrappers import zig_folder, zig_wrappers

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "orion_server" / "engine"
CLIENT_LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1")
ARBITER = ROOT / "orion_server" / "arbiter"


def cmake_build(source: Path, build: Path, settings: dict[str, str]) -> None:
    cmake = shutil.which("cmake")
    if cmake is None:
        raise SystemExit("cmake is missing: apt-get install cmake, or pip install cmake")
    defines = [f"-D{name}={value}" for name, value in settings.items()]
    configure = [cmake, "-S", str(source), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release"]
    run([*configure, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *defines], quiet=True)
    run([cmake, "--build", str(build), "--parallel", str(job_count())], quiet=True)


def newest(paths: list[Path]) -> float:
    return max(path.stat().st_mtime for path in paths)


def build_module(source: Path, output: Path, variables: dict[str, str]) -> Path:
    """Runs a folder's own builder: `_NAME.abi3.so` of SOURCE/build_NAME.py. cffi's own build always compiles
    everything, so it is skipped when nothing that it reads is newer."""
    name = source.name
    module = output / f"_{name}.abi3.so"
    sources = [path for path in source.iterdir() if path.suffix in (".c", ".h", ".py")]
    sources = [path for path in sources if not path.name.startswith(f"_{name}")]
    sources += list((ROOT / "wire" / "include").glob("*.h"))
    if module.exists() and module.stat().st_mtime > newest(sources):
        return module
    env = {**os.environ, **variables}
    output.mkdir(parents=True, exist_ok=True)
    run([sys.executable, str(source / f"build_{name}.py"), "--output-dir", str(output)], cwd=ROOT, env=env, quiet=True)
    if not module.exists():
        raise SystemExit(f"build_{name}.py made no {module}")
    return module


def build_development() -> None:
    libzmq = build_libzmq("gcc")
    cmake_build(ROOT / "shim", ROOT / "build" / "shim", {"ORION_LIBZMQ_DIR": str(libzmq)})
    cmake_build(ROOT / "softgpu", ROOT / "build" / "softgpu", {})
    # Linked by the C++ driver, with its runtime inside, because libzmq is C++.
    linker = "g++ -shared -static-libstdc++ -static-libgcc"
    build_module(ENGINE, ENGINE, {"LDSHARED": linker, "ORION_LIBZMQ_DIR": str(libzmq)})
    build_module(ARBITER, ARBITER, {})


def build_test_client() -> None:
    """For tests/runtime only (docs/nvidia-runtime.md). Nothing that packages looks into this folder."""
    folder = ROOT / "build" / "shim-test"
    folder.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:  # several test processes begin at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        settings = {"ORION_LIBZMQ_DIR": str(build_libzmq("gcc")), "ORION_TEST_RUNTIME_VALIDATED": "ON"}
        cmake_build(ROOT / "shim", folder, settings)


def copy_licences(libzmq: Path, folder: Path) -> None:
    """The licence texts of what is linked in; NOTICE names them."""
    folder.mkdir(parents=True, exist_ok=True)
    zig = zig_folder()
    for source, name in (
        (ROOT / "LICENSE", "LICENSE"),
        (ROOT / "NOTICE", "NOTICE"),
        (libzmq / "licences" / "COPYING", "libzmq-COPYING"),
        (libzmq / "licences" / "COPYING.LESSER", "libzmq-COPYING.LESSER"),
        (libzmq / "licences" / "libsodium-LICENSE", "libsodium-LICENSE"),
        (zig / "LICENSE", "zig-LICENSE"),
        (zig / "lib" / "libcxx" / "LICENSE.TXT", "libcxx-LICENSE"),
        (zig / "lib" / "libcxxabi" / "LICENSE.TXT", "libcxxabi-LICENSE"),
        (zig / "lib" / "libunwind" / "LICENSE.TXT", "libunwind-LICENSE"),
    ):
        shutil.copyfile(source, folder / name)


def release_settings(wrappers: Path, libzmq: Path) -> dict[str, str]:
    toolchain = ROOT / "cmake" / "zig-glibc-2.17.cmake"
    return {
        "CMAKE_TOOLCHAIN_FILE": str(toolchain),
        "ORION_ZIG_BIN": str(wrappers),
        "ORION_LIBZMQ_DIR": str(libzmq),
    }


def build_release_client(destination: Path) -> None:
    """libcuda.so.1 and libnvidia-ml.so.1 of the client, with the licences of what they contain."""
    wrappers = zig_wrappers()
    libzmq = build_libzmq("zig")
    # Keyed by the wrappers: CMake refuses to change the compiler of a build folder.
    build = ROOT / "build" / "release" / wrappers.name
    cmake_build(ROOT / "shim", build / "shim", release_settings(wrappers, libzmq))
    destination.mkdir(parents=True, exist_ok=True)
    for name in CLIENT_LIBRARIES:
        shutil.copyfile(build / "shim" / name, destination / name)
        (destination / name).chmod(0o755)
    copy_licences(libzmq, destination / "licences")


def build_release(destination: Path) -> None:
    """Every compiled file of the wheel, under `destination` as in site-packages."""
    wrappers = zig_wrappers()
    libzmq = build_libzmq("zig")
    build = ROOT / "build" / "release" / wrappers.name
    build_release_client(destination / "orion_client" / "lib")

    cmake_build(ROOT / "softgpu", build / "softgpu", release_settings(wrappers, libzmq))
    server_libraries = destination / "orion_server" / "lib"
    server_libraries.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(build / "softgpu" / "libcuda.so.1", server_libraries / "libcuda.so.1")
    (server_libraries / "libcuda.so.1").chmod(0o755)

    compilers = {
        "CC": str(wrappers / "zig-cc"),
        "CXX": str(wrappers / "zig-c++"),
        "LDSHARED": f"{wrappers / 'zig-c++'} -shared",
        "LDCXXSHARED": f"{wrappers / 'zig-c++'} -shared",
    }
    for source, variables in ((ENGINE, {"ORION_LIBZMQ_DIR": str(libzmq)}), (ARBITER, {})):
        module = build_module(source, build / source.name, {**compilers, **variables})
        target = destination / "orion_server" / source.name / module.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(module, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, metavar="FOLDER", help="release build into FOLDER")
    parser.add_argument("--test-client", action="store_true", help="the client for tests without a GPU")
    arguments = parser.parse_args()
    if arguments.release:
        build_release(arguments.release)
    elif arguments.test_client:
        build_test_client()
    else:
        build_development()


if __name__ == "__main__":
    main()
