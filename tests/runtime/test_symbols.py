"""Every function that NVIDIA's runtime of CUDA 13.0 and the libraries on it ask for by name, version and flags: the
client hands it out as the driver does (data/runtime_requests.csv, seen on driver 580)."""

from __future__ import annotations

import csv
import ctypes
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUESTS = HERE / "data" / "runtime_requests.csv"
ROOT = HERE.parents[1]

PROGRAM = """
import csv, ctypes, sys
driver = ctypes.CDLL(sys.argv[1])
find = driver.cuGetProcAddress_v2
find.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_void_p]
for row in csv.DictReader(open(sys.argv[2])):
    address, status = ctypes.c_void_p(), ctypes.c_int(-1)
    code = find(row["symbol"].encode(), ctypes.byref(address), int(row["version"]), int(row["flags"]),
                ctypes.byref(status))
    found = int(address.value is not None)
    if code != 0 or found != int(row["found"]):
        print(row["symbol"], row["version"], row["flags"], "code", code, "found", found)
"""


def test_every_request_is_answered_as_by_the_driver(shipped_client: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(shipped_client / "libcuda.so.1"), str(REQUESTS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == ""


def test_requests_without_an_implementation_are_listed_with_a_reason() -> None:
    """A function that only says "not supported" has its reason in the coverage table."""
    coverage = (ROOT / "docs" / "api-coverage.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in coverage.splitlines() if "|" in line]
    table = {row[0]: row for row in rows if len(row) == 5 and row[0].startswith("cu")}
    with REQUESTS.open() as file:
        names = {row["symbol"] for row in csv.DictReader(file) if row["found"] == "1"}
    assert names <= set(table)
    assert [name for name in names if table[name][3] == "no" and not table[name][4]] == []


def test_functions_that_are_found_by_dlsym(shipped_client: Path) -> None:
    library = ctypes.CDLL(str(shipped_client / "libcuda.so.1"))
    for name in ("cuGetProcAddress", "cuGetProcAddress_v2", "cuDriverGetVersion", "cuGetExportTable"):
        assert getattr(library, name)
