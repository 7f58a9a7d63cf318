"""The runner of cuda-samples: on a small checkout of our own on softgpu, and on a real one where
ORION_CUDA_SAMPLES names it."""

from __future__ import annotations

import glob
import json
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cuda_samples import main
from benchmarks.masking import digest, masked
from benchmarks.samples_build import find_samples, mirror, reason_in
from tests.benchmarks.fake_samples import write_checkout, write_sample

REAL = os.environ.get("ORION_CUDA_SAMPLES")
SOFTGPU = ["--device", "softgpu", "--jobs", "2"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    checkout, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("out")
    write_checkout(checkout)
    before = contents(checkout)
    status = main([str(checkout), "--out", str(out), "--filter", "[01]_*/*", *SOFTGPU])
    assert contents(checkout) == before, "the checkout is only read"
    return checkout, out, status


@pytest.fixture(scope="module")
def kept(session: tuple[Path, Path, int]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads((session[1] / "samples.json").read_text())
    return answer


def test_every_way_to_end_is_counted(session: tuple[Path, Path, int], kept: dict[str, Any]) -> None:
    assert session[2] == 1 and not kept["good"]
    assert (kept["samples"], kept["built"], len(kept["programs"])) == (11, 8, 8)
    assert kept["counts"] == {
        "native": {"pass": 6, "waived": 1, "fail": 1, "timeout": 0},
        "shm": {"pass": 5, "waived": 1, "fail": 2, "timeout": 0,
                "same": 6, "outcome differs": 1, "output differs": 1},
        "tcp": {"pass": 5, "waived": 1, "fail": 2, "timeout": 0,
                "same": 6, "outcome differs": 1, "output differs": 1},
    }  # fmt: skip
    assert kept["machine"]["commit"] and "cuda_samples" in kept["machine"]["command"]


def test_what_does_not_build_says_why(kept: dict[str, Any]) -> None:
    reasons = {name.rpartition("/")[2]: reason for name, reason in kept["not_built"].items()}
    assert reasons.keys() == {"broken", "no_window", "no_window_old"}
    assert "no_such_name" in reasons["broken"]
    assert "NoWindows not found" in reasons["no_window"]
    assert "libwindows.so not found" in reasons["no_window_old"]


@pytest.mark.parametrize("name", ["0_New/fill#1", "0_New/fill#2", "1_Old/fill_old"])
def test_numbers_of_a_run_are_no_difference(kept: dict[str, Any], name: str) -> None:
    rows = kept["programs"][f"Samples/{name}"]
    assert [row["outcome"] for row in rows.values()] == ["pass"] * 3
    assert len({row["digest"] for row in rows.values()}) == 1 and rows["native"]["steady"]


def test_arguments_of_the_checkout_are_given(kept: dict[str, Any]) -> None:
    digests = [kept["programs"][f"Samples/0_New/fill#{number}"]["shm"]["digest"] for number in (1, 2)]
    assert digests[0] != digests[1]
    assert kept["left_out"] == ["Samples/1_Old/window:window"]


def test_another_end_is_told_with_the_last_lines(session: tuple[Path, Path, int], kept: dict[str, Any]) -> None:
    row = kept["programs"]["Samples/1_Old/fails_remotely"]["shm"]
    assert row["verdict"] == "outcome differs" and row["exit"] < 0 and "remote" in row["tail"]
    shown = (session[1] / "samples.txt").read_text()
    assert "outcome differs: Samples/1_Old/fails_remotely over shm: pass -> fail" in shown


def test_other_output_is_told_line_by_line(session: tuple[Path, Path, int], kept: dict[str, Any]) -> None:
    row = kept["programs"]["Samples/0_New/nested/prints_remotely"]["tcp"]
    assert row["verdict"] == "output differs" and row["outcome"] == "pass"
    assert {"-there", "+here"} <= set(row["different"]) and "-first" not in row["different"]
    assert "    +here\n" in (session[1] / "samples.txt").read_text()


def test_a_sample_that_fails_everywhere_is_the_same(kept: dict[str, Any]) -> None:
    for name, outcome in (("fails", "fail"), ("waived", "waived")):
        rows = kept["programs"][f"Samples/0_New/{name}"]
        assert {row["outcome"] for row in rows.values()} == {outcome} and rows["shm"]["verdict"] == "same"


def test_output_that_changes_natively_is_not_compared(kept: dict[str, Any]) -> None:
    assert kept["unsteady"] == ["Samples/1_Old/unsteady"]
    assert kept["programs"]["Samples/1_Old/unsteady"]["tcp"]["verdict"] == "same"


def test_a_resumed_session_runs_only_what_is_missing(
    session: tuple[Path, Path, int], kept: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    checkout, out, _ = session
    options = ["--filter", "fails*", "--transports", "shm", "--json", "--resume", *SOFTGPU]
    assert main([str(checkout), "--out", str(out), *options]) == 1
    again = json.loads(capsys.readouterr().out)
    assert again["programs"].keys() == {"Samples/0_New/fails", "Samples/1_Old/fails_remotely"}
    for name, rows in again["programs"].items():
        assert rows["native"] == kept["programs"][name]["native"]
    assert again["samples"] == 2 and "run_seconds" not in again


def test_a_program_that_hangs_is_stopped_everywhere(tmp_path: Path) -> None:
    checkout, out = tmp_path / "checkout", tmp_path / "out"
    write_checkout(checkout)
    options = ["--filter", "2_Slow/*", "--timeout", "0.5", *SOFTGPU]
    assert main([str(checkout), "--out", str(out), *options]) == 0
    kept = json.loads((out / "samples.json").read_text())
    rows = kept["programs"]["Samples/2_Slow/hangs"]
    assert [row["outcome"] for row in rows.values()] == ["timeout"] * 3 and rows["tcp"]["verdict"] == "same"


def test_builds_alone(tmp_path: Path) -> None:
    checkout, out = tmp_path / "checkout", tmp_path / "out"
    write_checkout(checkout)
    assert main([str(checkout), "--out", str(out), "--filter", "waived", "--build-only", *SOFTGPU]) == 0
    assert main([str(checkout), "--out", str(out), "--filter", "broken", "--build-only", *SOFTGPU]) == 1
    assert main([str(checkout), "--out", str(out), "--filter", "nothing*", "--build-only", *SOFTGPU]) == 2


@pytest.mark.parametrize(
    "options", [["--out", "inside"], ["--out", "../o", "--jobs", "0"], ["--out", "../o", "--transports", "x"]]
)
def test_wrong_options(tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    monkeypatch.chdir(checkout)
    with pytest.raises(SystemExit) as end:
        main([str(checkout), *options])
    assert end.value.code == 2


def test_a_later_run_with_other_samples_writes_nothing_to_the_checkout(tmp_path: Path) -> None:
    checkout, work = tmp_path / "checkout", tmp_path / "work"
    write_checkout(checkout)
    samples = find_samples(checkout)
    for sample in samples:
        mirror(checkout, work, [sample])
        assert not (work / sample.name).is_symlink()
        assert (work / sample.name).resolve() == (work / sample.name)
    assert (work / "Common").is_symlink()


def test_one_folder_is_one_sample(tmp_path: Path) -> None:
    """A project of several folders is built as one; samples without a folder for their category are found."""
    write_sample(tmp_path, "together", "cmake", "project(together)\nadd_subdirectory(part)\n")
    write_sample(tmp_path, "together/part", "cmake")
    write_sample(tmp_path, "flat", "make")
    found = [(sample.name, sample.kind) for sample in find_samples(tmp_path)]
    assert found == [("Samples/flat", "make"), ("Samples/together", "cmake")]


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("a\nx.cu(3): error: no such thing\nx.cu(4): error: more\n", "x.cu(3): error: no such thing"),
        ("CMake Error at CMakeLists.txt:4 (find_package):\n\n  By not providing X\n", "By not providing X"),
        (">>> WARNING - libGL.so not found\nwaived\n", ">>> WARNING - libGL.so not found"),
        ("-- Could not find X - not found\nmain.c:(.text+0x9): undefined reference to `x'\n", "undefined reference"),
        ("one\nlast\n\n", "last"),
        ("", "nothing said"),
    ],
)
def test_reasons(log: str, reason: str) -> None:
    assert reason in reason_in(log)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Processing time: 0.123000 (ms)", "Processing time: 12.5 (ms)", True),
        ("done in 3 ms with 7 blocks", "done in 41.25 ms with 7 blocks", True),
        ("done in 3 ms with 7 blocks", "done in 3 ms with 8 blocks", False),
        ("1,024.5 GB/s copied", "999 GB/s copied", True),
        ("Performance= 3253.19 GFlop/s, Time= 0.040 msec", "Performance= 1.2e3 GFlop/s, Time= 9 msec", True),
        ("at 0x7f12ab000000", "at 0x7fffab001000", True),
        ("flags 0x10", "flags 0x11", False),
        ("[01:02:03] start 2026-01-01", "[11:12:13] start 2027-02-03", True),
        ("value   12.5 ok", "value 12.5 ok", True),
        ("value 12.5 ok", "value 12.6 ok", False),
        ("sum of 16 s", "sum of 17 s", True),
        ("sum of 16 squares", "sum of 17 squares", False),
        ("max error -1.5e-07", "max error -1.6e-07", False),
        ("GPU0 free 100 bytes", "GPU0 free 200 bytes", True),
        ("GPU0 timing 1", "GPU1 timing 1", False),
    ],
)
def test_masks(one: str, other: str, same: bool) -> None:
    assert (digest(masked(one)) == digest(masked(other))) is same


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.skipif(not REAL, reason="ORION_CUDA_SAMPLES names no checkout of cuda-samples")
@pytest.mark.skipif(not glob.glob("/dev/nvidia[0-9]*"), reason="no GPU")
def test_a_real_checkout(tmp_path: Path) -> None:
    assert REAL is not None
    assert main([REAL, "--out", str(tmp_path)]) == 0, (tmp_path / "samples.txt").read_text()
