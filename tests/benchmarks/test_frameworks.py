"""The session of framework programs, with tiny programs in the place of frameworks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.framework_session import PROGRAMS, different, main, programs_in, told

LINE = 'import json, os\nprint(json.dumps({"digest": {"a": 1, "b": %s}, "info": {"pid": os.getpid()}, "clean": %s}))\n'
SAME = "'same'"
REMOTE = "os.environ.get('ORION_REMOTE', 'native')"


def session(tmp_path: Path, **programs: str) -> tuple[int, dict[str, Any], str]:
    folder, out = tmp_path / "programs", tmp_path / "out"
    folder.mkdir()
    for name, text in programs.items():
        (folder / f"{name}.py").write_text(text)
    options = ["--device", "softgpu", "--places", "native,shm", "--timeout", "20"]
    status = main([*options, "--out", str(out), "--programs", str(folder)])
    return status, json.loads((out / "frameworks.json").read_text()), (out / "frameworks.txt").read_text()


def test_equal_digests_are_good_whatever_info_says(tmp_path: Path) -> None:
    status, kept, shown = session(tmp_path, equal=LINE % (SAME, True))
    assert status == 0 and kept["good"]
    rows = [kept["rows"][place]["equal"] for place in ("native", "shm")]
    assert rows[0]["digest"] == rows[1]["digest"] and rows[0]["info"] != rows[1]["info"]
    assert "same" in shown


def test_a_differing_digest_is_told_with_both_values(tmp_path: Path) -> None:
    status, kept, shown = session(tmp_path, equal=LINE % (SAME, True), other=LINE % (REMOTE, True))
    assert status == 1 and not kept["good"]
    assert kept["rows"]["shm"]["other"]["different"] == {"b": ["native", "1"]}
    assert "different" not in kept["rows"]["shm"]["equal"]
    assert "DIFFERENT" in shown and "same" in shown


@pytest.mark.parametrize(
    ("text", "error", "tail"),
    [
        ("import os\nif 'ORION_REMOTE' in os.environ:\n  raise SystemExit('no way')\n", "exit 1", "no way"),
        ("import os\nif 'ORION_REMOTE' in os.environ:\n  print('hello')\n  os._exit(0)\n", "0 JSON lines", "hello"),
    ],
)
def test_a_failing_program_is_told_and_stops_nothing(tmp_path: Path, text: str, error: str, tail: str) -> None:
    line = LINE % (SAME, True)
    status, kept, shown = session(tmp_path, failing=text + line, later=line)
    assert status == 1 and not kept["good"]
    row = kept["rows"]["shm"]["failing"]
    assert error in row["error"] and tail in row["tail"] and "value" not in row
    assert "value" in kept["rows"]["native"]["failing"] and "value" in kept["rows"]["shm"]["later"]
    assert "failed" in shown


def test_a_program_that_fails_natively_is_not_good(tmp_path: Path) -> None:
    text = "import os\nif 'ORION_REMOTE' not in os.environ:\n  raise SystemExit(4)\n"
    status, kept, shown = session(tmp_path, failing=text + LINE % (SAME, True))
    assert status == 1 and kept["rows"]["native"]["failing"]["exit"] == 4
    assert "no native" in shown


def test_a_client_that_saw_a_driver_is_not_good(tmp_path: Path) -> None:
    status, _, shown = session(tmp_path, local=LINE % (SAME, "'ORION_REMOTE' not in os.environ"))
    assert status == 1 and "LOCAL GPU" in shown


@pytest.mark.parametrize("text", ["", "{}\n", '{"digest": 1, "clean": true}\n', '{"digest": {}}\n', "{}\n{}\n", "{x\n"])
def test_what_is_no_result(text: str) -> None:
    with pytest.raises(ValueError):
        told(text)


def test_a_missing_value_differs() -> None:
    assert different({"digest": {"a": 1, "b": 2}}, {"digest": {"b": 2, "c": 3}}) == {"a": [1, None], "c": [None, 3]}


def test_every_program_is_one_of_the_session() -> None:
    assert set(programs_in(PROGRAMS)) == {path.stem for path in PROGRAMS.glob("*.py")} - {"report"}
    assert "ptx_only" in programs_in(PROGRAMS)
