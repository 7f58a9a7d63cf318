"""pytest plugin inside the process that runs one module of numba-cuda's suite: one JSON line for each test's start and
end, so that what a crash or a time limit cut off is known too."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from types import ModuleType

import pytest

_REASON_CHARACTERS = 400


def _say(**line: object) -> None:
    with open(os.environ["NUMBA_SUITE_LOG"], "a") as log:
        log.write(json.dumps(line) + "\n")


def _name(nodeid: str) -> str:
    """`cudapy.test_x::Class::test` of a path below numba/cuda/tests."""
    path, _, rest = nodeid.partition("::")
    module = path.removesuffix(".py").replace("/", ".")  # the root folder is numba/cuda/tests
    return f"{module}::{rest}"


class _SuiteModule(pytest.Module):
    """Imported by the name that users import it by: pytest would take `numba_cuda/numba` for a root of modules, and
    numba's `cuda` then hides NVIDIA's."""

    def _getobj(self) -> ModuleType:
        return importlib.import_module("numba.cuda.tests." + _name(self.nodeid).removesuffix("::"))


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    return _SuiteModule.from_parent(parent, path=module_path)


def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Dir:
    return pytest.Dir.from_parent(parent, path=path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """NUMBA_SUITE_DONE: tests that are not run again. NUMBA_SUITE_ONLY: if not empty, the only ones that are run."""
    done, only = (set(filter(None, os.environ[f"NUMBA_SUITE_{name}"].split("\n"))) for name in ("DONE", "ONLY"))
    items[:] = [item for item in items if _name(item.nodeid) not in done and (not only or _name(item.nodeid) in only)]


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed or report.skipped:
        _say(test=_name(report.nodeid), outcome="failed" if report.failed else "skipped", reason=_reason(report))


def pytest_runtest_logstart(nodeid: str, location: object) -> None:
    _say(test=_name(nodeid), outcome="started")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.passed and (report.when != "call" or hasattr(report, "context")):
        return  # set-up, and subtests: the test's own report follows
    outcome = report.outcome
    if report.skipped and hasattr(report, "wasxfail"):
        outcome = "passed"  # the suite itself expects this failure
    _say(test=_name(report.nodeid), outcome=outcome, reason="" if outcome == "passed" else _reason(report))


def _reason(report: pytest.CollectReport | pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])[:_REASON_CHARACTERS]
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    return str(text)[:_REASON_CHARACTERS]


@pytest.fixture(scope="class")
def initialize_from_pytest_config(request: pytest.FixtureRequest) -> None:
    """What the suite's own conftest, which its wheel leaves out, gives each class."""
    if request.cls is not None:
        request.cls._dump_failed_filechecks = False
