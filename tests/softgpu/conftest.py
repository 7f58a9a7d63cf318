"""Fixtures for the tests of softgpu. Two devices, so that what needs a peer has one."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from ctypes import c_void_p

import pytest

from tests.softgpu.libcuda import PTX, Cuda, is_softgpu, library_path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/softgpu" in str(item.path) and not is_softgpu() and "softgpu_only" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="says something about softgpu only"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "softgpu_only: does not hold on a real driver")


@pytest.fixture(scope="session")
def driver() -> Cuda:
    path = library_path()
    if is_softgpu() and not pathlib.Path(path).exists():
        pytest.fail(f"{path} is not built: cmake -S softgpu -B build/softgpu && cmake --build build/softgpu")
    # The library in this process reads its settings at cuInit; servers that other tests start must not inherit them.
    with pytest.MonkeyPatch.context() as settings:
        for name, value in (("SOFTGPU_DEVICES", "2"), ("SOFTGPU_MEMORY_MIB", "1024")):
            if name not in os.environ:
                settings.setenv(name, value)
        cuda = Cuda()
        cuda.call("cuInit", 0)
    return cuda


@pytest.fixture
def cu(driver: Cuda) -> Iterator[Cuda]:
    """The driver with a fresh context current."""
    context = driver.context()
    yield driver
    driver.call("cuCtxDestroy_v2", context)


@pytest.fixture
def module(cu: Cuda) -> c_void_p:
    return cu.module(PTX)


@pytest.fixture
def bump(cu: Cuda, module: c_void_p) -> c_void_p:
    return cu.function(module, b"bump")
