"""The page: everything that was measured is on it, in both themes, and nothing comes from elsewhere."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks import cli
from benchmarks.bench import plots, report
from benchmarks.bench.plots import inline
from tests.benchmarks.bench_rows import row, whole_run

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def save(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    return folder


def page_of(folder: Path, rows: list[dict[str, Any]], status: int = 0) -> str:
    pytest.importorskip("matplotlib")
    target = folder / "page.html"
    assert report.write([save(folder, rows)], target) == (target, status)
    return target.read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of rows of every command."""
    return page_of(tmp_path_factory.mktemp("whole"), whole_run())


class Balance(HTMLParser):
    """Counts what is opened and not closed."""

    VOID = {"meta", "path", "use", "rect", "line", "circle", "stop"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attributes if name == "id" and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attributes if name == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open and self.open.pop() == tag, tag


def test_the_page_has_every_part(whole: str) -> None:
    for words in (
        "NVIDIA H200, 580.1", "c0ffee", "Some CPU, 16 CPUs", "2000 ns a launch", ">raw<", "orion-bench latency",
        "every digest is the native one", "25 us, 25 Gbit/s", "1000 us, 25 Gbit/s", "of 1 client", "waits, tcp",
        "2.5x bare TCP", "bare TCP, 4 streams", "what launch_wall is",
    ):  # fmt: skip
        assert words in whole, words
    for command in ("latency", "launch", "copy", "attach", "scale", "network", "suite"):
        assert f'<section id="{command}">' in whole
    assert whole.count("<svg") == 7
    assert "softgpu" not in whole.split("</style>")[1]


def test_nothing_is_loaded_from_elsewhere(whole: str) -> None:
    assert not re.search(r"https?:|//[a-z]|<script|<link|<img|<iframe|@import|\bsrc=", whole)
    assert set(re.findall(r'href="(.)', whole)) == {"#"}
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", whole))


def test_the_page_is_well_formed(whole: str) -> None:
    parser = Balance()
    parser.feed(whole)
    assert parser.open == []
    assert len(set(parser.ids)) == len(parser.ids), "ids are unique, also of the plots"


def test_both_themes_define_every_colour_that_is_used(whole: str) -> None:
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", whole))
    light, dark = (set(re.findall(r"(--[a-z0-9-]+):", theme)) for theme in (report.LIGHT, report.DARK))
    assert used and used <= light == dark
    assert "prefers-color-scheme:dark" in whole and "color-scheme:light dark" in whole
    drawings = "".join(re.findall(r"<svg.*?</svg>", whole, re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}", drawings)) == set(), "a colour that does not follow the theme"


def test_a_wrong_digest_is_the_first_thing_one_reads(tmp_path: Path) -> None:
    text = page_of(tmp_path, [row(), row(place="shm", digest=8), row(place="tcp")], status=1)
    assert text.index("rows are wrong") < text.index("<section")
    assert "latency launch_and_sync over shm: the digest is DIFFERENT" in text
    assert "every digest is the native one" not in text


def test_softgpu_is_no_gpu(tmp_path: Path) -> None:
    rows = [{**each, "run": {**each["run"], "device": "softgpu", "gpu": ""}} for each in whole_run()]
    assert "they are no GPU timings" in page_of(tmp_path, rows)


def test_the_newest_run_of_each_command_counts(tmp_path: Path) -> None:
    new = {**row()["run"], "commit": "decade"}
    rows = [row(value=111), row("suite", "bert_infer_bs1"), row(value=222, run=new, when="2026-12-03T00:00:00Z")]
    text = page_of(tmp_path, rows)
    assert "222" in text and "111" not in text and "c0ffee" in text and "decade" in text


def test_text_is_escaped(tmp_path: Path) -> None:
    assert "<b>x" not in page_of(tmp_path, [row(by="<b>x", what="<b>x", name="<b>x")])


def test_results_of_a_suite_session(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "page.html"
    # gpt2_decode_eager was not reached over tcp: that is no row, and no failure.
    assert report.write([RESULTS / "2026-11-28-h100-suite.json"], target)[1] == 0
    text = target.read_text()
    shutil.copy(RESULTS / "2026-11-28-h100-suite.json", tmp_path / "suite.json")
    report.write([tmp_path], target)
    assert target.read_text() == text
    assert "resnet50_train_bs64" in text and "14c470d" in text and "NVIDIA H100 80GB HBM3, 580.159.04" in text


@pytest.mark.parametrize("content", [None, "", "no json\n", '{"some": "thing"}\n'])
def test_without_rows_there_is_no_page(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "rows.jsonl").write_text(content)
    done = CliRunner().invoke(cli.app, ["report", "--out", str(tmp_path)])
    assert done.exit_code == 2 and "measure first" in done.output
    assert not (tmp_path / "report.html").exists()


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    save(tmp_path, whole_run())
    done = CliRunner().invoke(cli.app, ["report", "--out", str(tmp_path)])
    assert done.exit_code == 2 and "pip install 'orion-vgpu[report]'" in " ".join(done.output.split())


def test_the_command_writes_where_it_is_told(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    save(tmp_path / "in", whole_run())
    page = tmp_path / "new" / "page.html"
    done = CliRunner().invoke(cli.app, ["report", str(tmp_path / "in"), "--html", str(page)])
    assert done.exit_code == 0 and str(page) in done.output and page.exists()


def test_a_drawing_loses_its_header_and_keeps_its_references() -> None:
    svg = ('<?xml version="1.0"?><!DOCTYPE svg PUBLIC "x" "http://x"><svg width="9pt" height="8pt" viewBox="0 0 9 8" '
           'xmlns="http://x"><defs><path id="m1"/></defs><g id="axes_1"><use xlink:href="#m1" stroke="#0a0b0c"/></g>'
           "</svg>")  # fmt: skip
    assert inline(svg, "T") == (
        '<svg role="img" aria-label="T" viewBox="0 0 9 8"><defs><path id="m1"/></defs>'
        '<g><use href="#m1" stroke="var(--ink)"/></g></svg>'
    )


def test_a_plot_of_few_rows_is_no_error() -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.bench.summary import summarise

    for command, draw in plots.PLOTS.items():
        mine = [each for each in whole_run() if each["command"] == command and each["place"] != "native"]
        assert all("<svg" in drawing for drawing in draw(summarise(mine[:1]))), command
