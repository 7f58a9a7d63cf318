"""Build entry: compiles the client libraries, the software GPU and the engine into the wheel.

Metadata is in pyproject.toml. The wheel is built with zig so that it runs on every distribution with glibc 2.17 or
newer; development builds (`make build`) use the system's gcc and never pass here.
docs/decisions/0001-one-wheel.md gives the reasons.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Command, Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

from build_native import build_release  # noqa: E402


class BuildNative(Command):
    """The sub-command of `build` that puts compiled files beside the packages of the wheel."""

    description = "compile the client libraries, softgpu and the engine"
    user_options: list[tuple[str, str | None, str]] = []

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        # An editable install uses the libraries that `make build` makes in the source tree.
        if not self.editable_mode:
            assert self.build_lib is not None
            build_release(Path(self.build_lib))

    def get_source_files(self) -> list[str]:
        return []

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Build(build):
    sub_commands = [*build.sub_commands, ("build_native", None)]


class NativeDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        # The files come from CMake and cffi, not from ext_modules; without this the wheel would claim to be pure.
        return True


class BdistWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        # The engine uses the limited API of 3.11; tests/packaging checks the glibc floor that the tag promises.
        return "cp311", "abi3", "manylinux_2_17_x86_64"


setup(
    packages=find_packages(include=["benchmarks*", "orion_*", "wire*"]),
    include_package_data=False,
    # The C programs of the benchmarks are compiled where they run, against the wire's headers; nvidia-smi is a script
    # that orion-run puts into PATH; the portal's pages are built before.
    package_data={
        "benchmarks": ["native/*.c", "native/*.h"],
        "orion_client": ["bin/nvidia-smi"],
        "orion_controller.portal": ["dist/*", "dist/assets/*"],
        "wire": ["include/*.h"],
    },
    cmdclass={"bdist_wheel": BdistWheel, "build": Build, "build_native": BuildNative},
    distclass=NativeDistribution,
)
