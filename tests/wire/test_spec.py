"""The function spec: contradictions are errors, generated files are fresh, the entry points are a real driver's."""

from __future__ import annotations

import csv
import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from wire import gen, gen_api
from wire.spec import api

ROOT = Path(__file__).resolve().parents[2]
REQUESTS = ROOT / "tests/wire/data/get_proc_address_requests.csv"


def parsed(text: str) -> None:
    api.check(api.parse(text, "test"))


def test_generated_files_are_fresh() -> None:
    check = subprocess.run([sys.executable, "-m", "wire.gen", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout


def test_generator_needs_only_the_standard_library() -> None:
    """-S hides installed packages: whoever builds from source has none yet."""
    run = [sys.executable, "-S", "-I", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import wire.gen"]
    assert subprocess.run(run, capture_output=True).returncode == 0


def test_check_notices_a_stale_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gen, "ROOT", tmp_path)
    assert gen.main(["--check"]) == 1
    assert gen.main([]) == 0
    assert gen.main(["--check"]) == 0
    (tmp_path / "shim/src/gen/gen_stubs.c").write_text("")
    assert gen.main(["--check"]) == 1


def test_an_asynchronous_function_with_outputs_that_are_not_client_minted_is_an_error() -> None:
    entry = "cuThing one-way\n  2000 cuThing(CUstream *phStream, unsigned int flags)\n"
    with pytest.raises(api.SpecError, match=r"outputs \['phStream'\] are not client-minted"):
        parsed(entry)
    parsed(entry + "  phStream: minted\n")
    with pytest.raises(api.SpecError, match="not client-minted"):
        parsed(entry + "  phStream: inout\n")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("cuA sometimes\n  2000 cuA(void)\n", "unknown class"),
        ("cuA local quickly\n  2000 cuA(void)\n", "unknown word"),
        ("cuA unsupported\n  2000 cuA(void)\n", "without a reason"),
        ("cuA local\n", "no ABI"),
        ("cuA local\n  2000 cuA(void)\ncuA local\n  3000 cuA_v2(void)\n", "described twice"),
        ("cuA local\n  2000 cuA(void)\ncuB local\n  2000 cuA(void)\n", "also belongs to"),
        ("cuA local\n  3000 cuA(void)\n  2000 cuA_v2(void)\n", "versions must grow"),
        ("cuA local op=LAUNCH\n  2000 cuA(void)\n", "neither travels"),
        ("cuA reply op=WARP\n  2000 cuA(void)\n", "unknown operations"),
        ("cuA reply op=MEMSET work\n  2000 cuA(void)\n", "no operation that carries it has one"),
        ("cuA one-way op=MEM_INFO\n  2000 cuA(void)\n", "waits for a reply"),
        ("cuA one-way op=MEMSET\n  2000 cuA(void)\n", "flag work disagrees"),
        ("cuA one-way work op=MODULE_UNLOAD\n  2000 cuA(void)\n", "disagrees"),
        ("cuA one-way work op=COPY_H2D\n  2000 cuA(const void *from, size_t n)\n", "from travels and has no length"),
        ("cuA local\n  2000 cuA(void)\n  x: out\n", "notes on unknown parameters"),
        ("cuA local\n  2000 cuA(int *x)\n  x: sideways\n", "cannot read"),
        ("cuA local\n  2000 cuA_ptsz\n", "has no cuA above it"),
        ("cuA local\n  2000 cuA\n", "a prototype belongs"),
    ],
)
def test_contradictions_are_errors(entry: str, message: str) -> None:
    with pytest.raises(api.SpecError, match=message):
        parsed(entry)


def test_implemented_symbols_are_all_in_the_spec() -> None:
    """A definition under a misspelt name would never be exported."""
    assert gen_api.implemented() <= {abi.symbol for f in api.load() for abi in f.abis}


def requests() -> list[dict[str, str]]:
    with REQUESTS.open() as file:
        return list(csv.DictReader(file))


def test_every_entry_point_that_a_real_driver_gave_is_there() -> None:
    wrong = []
    for row in requests():
        if not row["symbol"]:
            continue  # the empty-name probe is answered before the table is asked
        symbol, status = gen_api.lookup(row["symbol"], int(row["version"]), int(row["flags"]))
        if (symbol is not None) != (row["found"] == "1") or (status == 0) != (row["result"] == "0"):
            wrong.append((row["symbol"], row["version"], row["flags"], symbol, status))
        # cudart asks for a per-thread variant only where there is one.
        if row["flags"] == "2" and symbol and not symbol.endswith(("_ptsz", "_ptds")):
            wrong.append((row["symbol"], row["version"], "no per-thread variant", symbol))
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "version", "flags", "symbol", "status"),
    [
        ("cuGetProcAddress", 11030, 0, "cuGetProcAddress", 0),
        ("cuGetProcAddress", 12000, 0, "cuGetProcAddress_v2", 0),
        ("cuGetProcAddress", 13000, 2, "cuGetProcAddress_v2", 0),
        ("cuCtxCreate", 3020, 0, "cuCtxCreate_v2", 0),
        ("cuCtxCreate", 12000, 0, "cuCtxCreate_v3", 0),
        ("cuCtxSynchronize", 12080, 0, "cuCtxSynchronize", 0),
        ("cuCtxSynchronize", 13000, 0, "cuCtxSynchronize_v2", 0),
        ("cuLaunchKernel", 7000, 2, "cuLaunchKernel_ptsz", 0),
        ("cuLaunchKernel", 7000, 1, "cuLaunchKernel", 0),
        ("cuLaunchKernel", 4000, 2, "cuLaunchKernel", 0),
        ("cuMemcpyHtoD", 7000, 2, "cuMemcpyHtoD_v2_ptds", 0),
        ("cuMemPrefetchAsync", 8000, 2, "cuMemPrefetchAsync_ptsz", 0),
        ("cuMemPrefetchAsync", 12020, 2, "cuMemPrefetchAsync_v2_ptsz", 0),
        ("cuLaunchKernelEx", 11050, 0, None, 2),
        ("cuInit", 1, 0, None, 2),
        ("cuMemAlloc_v2", 13000, 0, None, 1),
        ("cuNothing", 13000, 0, None, 1),
    ],
)
def test_lookup_rules(name: str, version: int, flags: int, symbol: str | None, status: int) -> None:
    assert gen_api.lookup(name, version, flags) == (symbol, status)


def test_the_generated_table_answers_as_the_rule_says(tmp_path: Path) -> None:
    """gen_procaddr.c linked against a dummy of every symbol, asked for every name around every version."""
    symbols = sorted(abi.symbol for f in api.load() for abi in f.abis)
    (tmp_path / "dummies.c").write_text("\n".join(f"int {s}(void) {{ return {i}; }}" for i, s in enumerate(symbols)))
    includes = [f"-I{ROOT / 'wire/include'}", f"-I{ROOT / 'shim/src'}", f"-I{ROOT / 'shim/src/api'}"]
    library = tmp_path / "table.so"
    subprocess.run(
        ["gcc", "-std=c11", "-D_GNU_SOURCE", "-shared", "-fPIC", *includes, "-o", library,
         ROOT / "shim/src/gen/gen_procaddr.c", tmp_path / "dummies.c"],
        check=True,
    )  # fmt: skip
    table = ctypes.CDLL(str(library))
    table.orion_lookup_symbol.restype = ctypes.c_void_p
    table.orion_lookup_symbol.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint64, ctypes.POINTER(ctypes.c_int)]
    address = {ctypes.cast(getattr(table, symbol), ctypes.c_void_p).value: symbol for symbol in symbols}
    status = ctypes.c_int()
    asked = 0
    for name in [*(f.name for f in api.load()), "", "cu", "cuNothing", "zz"]:
        versions = {1, 13000, *(v + d for n, v, _, _ in gen_api.entry_points() if n == name for d in (-1, 0, 1))}
        for version in sorted(versions):
            for flags in (0, 1, 2):
                got = table.orion_lookup_symbol(name.encode(), version, flags, ctypes.byref(status))
                assert (address.get(got), status.value) == gen_api.lookup(name, version, flags), (name, version, flags)
                asked += 1
    assert asked > 4000
