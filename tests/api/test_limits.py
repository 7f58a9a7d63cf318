"""What docs/limits.md says is refused is refused, as it says: each function of its table, by name."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import pytest

from orion_client.private_server import PrivateServer
from tests.runtime.tools import ROOT, run_program

PAGE = (ROOT / "docs" / "limits.md").read_text()
TABLE = PAGE.split("## Refused functions")[1].split("##")[0]
FUNCTIONS = sorted(
    {name for row in TABLE.splitlines() if row.startswith("|") for name in re.findall(r"`(cu[A-Z]\w+)`", row)}
)
# Arguments that no function may look at before it refuses.
CALLS = """
import ctypes, sys
driver, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
assert driver.cuInit(0) == 0
assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0 and driver.cuCtxSetCurrent(context) == 0
for name in sys.argv[1:]:
    print(name, getattr(driver, name)(*[ctypes.create_string_buffer(4096)] * 6), flush=True)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateServer]:
    with PrivateServer("softgpu") as running:
        yield running


def test_the_page_names_functions() -> None:
    assert len(FUNCTIONS) > 20


def test_refused_functions_say_so(server: PrivateServer) -> None:
    done = run_program(ROOT / "build" / "shim", server, sys.executable, "-c", CALLS, *FUNCTIONS)
    assert done.stdout.splitlines() == [f"{name} 801" for name in FUNCTIONS], done.stderr
    rest = "is not implemented: it returns CUDA_ERROR_NOT_SUPPORTED (see docs/api-coverage.md)"
    assert rest in PAGE
    said = [row for row in done.stderr.splitlines() if row.startswith("orion: warning")]
    assert said == [f"orion: warning: {name} {rest}" for name in FUNCTIONS]


def test_an_unknown_export_table_is_named(server: PrivateServer) -> None:
    program = "import ctypes; c = ctypes.CDLL('libcuda.so.1'); p = ctypes.c_void_p(); "
    program += "print(c.cuGetExportTable(ctypes.byref(p), bytes(range(1, 17))))"
    done = run_program(ROOT / "build" / "shim", server, sys.executable, "-c", program)
    assert done.stdout.split() == ["1"]
    assert "table 0102030405060708090a0b0c0d0e0f10 is unknown and answered with CUDA_ERROR_INVALID_VALUE" in done.stderr
    assert "is unknown and answered with CUDA_ERROR_INVALID_VALUE" in PAGE
