"""Runs numba-cuda's own test suite, unmodified, as a client of an orion-server on softgpu.

    numba_suite.py                      the whole suite (`make numba`)
    numba_suite.py cudapy.test_atomics  these modules
    numba_suite.py --selection          those in tests/numba_suite/selection.txt

Each module is a process of its own under orion-run; several run at a time. What fails and is not expected to is run
again alone, because some tests give themselves a few seconds. Failures are then compared with
tests/numba_suite/expected.toml: a new one, or one that is there no longer, is exit code 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from buildlib import cached, install_target, job_count, recipe_key

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SUITE = ROOT / "tests" / "numba_suite"
FOLDERS = ("cudapy", "cudadrv", "doc_examples", "nocuda", "nrt")
# Headers for NVRTC and libcudadevrt.a, which Numba looks for in a toolkit; the versions of the `numba` extra.
TOOLKIT_WHEELS = ["nvidia-cuda-runtime==13.0.96", "nvidia-cuda-crt==13.0.88", "nvidia-cuda-cccl==13.0.85"]
# Those of numba-cuda's time: in later ones an IPC handle has no `reserved`, which it reads.
BINDINGS = ["cuda-bindings==13.0.3"]
MODULE_TIMEOUT_S = 900.0
TEST_TIMEOUT_S = 240.0
MAX_RESTARTS = 4  # of one module, after crashes or time limits


@dataclass
class Module:
    name: str
    outcomes: dict[str, str] = field(default_factory=dict)  # test -> passed, failed, skipped
    reasons: dict[str, str] = field(default_factory=dict)
    took_s: float = 0.0


def tests_folder() -> Path:
    spec = importlib.util.find_spec("numba_cuda")
    if spec is None or spec.origin is None:
        raise SystemExit("numba-cuda is not installed: pip install 'orion-vgpu[numba]'")
    return Path(spec.origin).parent / "numba" / "cuda" / "tests"


def all_modules() -> list[str]:
    folder = tests_folder()
    return [f"{part}.{path.stem}" for part in FOLDERS for path in sorted((folder / part).glob("test_*.py"))]


def toolkit() -> Path:
    """A toolkit as Numba looks for it, made of wheels, apart from any environment."""
    wheels = install_target(TOOLKIT_WHEELS, "numba-toolkit-wheels")

    def build(work: Path) -> None:
        for part in ("include", "lib"):
            (work / part).symlink_to(wheels / "nvidia" / "cu13" / part)
        (work / "lib64").symlink_to("lib")

    return cached(f"numba-toolkit-{recipe_key([*TOOLKIT_WHEELS, str(wheels)])}", build)


def run_module(name: str, server: str, transport: str, only: frozenset[str] = frozenset()) -> Module:
    """`only`: these tests of the module; none: all."""
    module = Module(name)
    started_s = time.monotonic()
    part, stem = name.split(".", 1)
    path = tests_folder() / part / f"{stem}.py"
    for _ in range(MAX_RESTARTS + 1):
        with tempfile.TemporaryDirectory(prefix="numba-suite-") as scratch:
            ended = _run_process(module, path, Path(scratch), server, transport, only)
        if ended is None:
            break
    else:
        module.outcomes[f"{name}::module"] = "failed"
        module.reasons[f"{name}::module"] = f"given up after {MAX_RESTARTS} restarts"
    module.took_s = time.monotonic() - started_s
    return module


def _run_process(
    module: Module, path: Path, scratch: Path, server: str, transport: str, only: frozenset[str]
) -> str | None:
    """Runs what of the module has no outcome yet. What cut it off, or None."""
    log = scratch / "log.jsonl"
    log.touch()
    (scratch / "pytest.ini").write_text("[pytest]\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "SOFTGPU_", "PYTEST_"))}
    environment |= {
        "PYTHONPATH": f"{ROOT}:{SUITE}:{install_target(BINDINGS, 'numba-suite-bindings')}",
        "NUMBA_SUITE_LOG": str(log),
        "NUMBA_SUITE_DONE": "\n".join(module.outcomes),
        "NUMBA_SUITE_ONLY": "\n".join(only),
        "CUDA_HOME": str(toolkit()),
        "TMPDIR": str(scratch),
    }
    command = [sys.executable, "-m", "orion_client.run", "--server", server, "--transport", transport, "--"]
    command += [sys.executable, "-m", "pytest", "-q", "-p", "numba_suite_plugin"]
    command += ["-c", str(scratch / "pytest.ini"), "--rootdir", str(tests_folder()), "-p", "no:cacheprovider"]
    command += ["-p", "no:schemathesis", "-p", "no:xdist", "--timeout", str(TEST_TIMEOUT_S), str(path)]
    output = scratch / "output"
    with output.open("w") as sink:
        process = subprocess.Popen(command, cwd=scratch, env=environment, stdout=sink, stderr=subprocess.STDOUT)
        try:
            code = process.wait(MODULE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
            code = None
    running = ""
    for text in log.read_text().splitlines():
        line = json.loads(text)
        test, outcome = line["test"], line["outcome"]
        if outcome == "started":
            running = test
            continue
        if module.outcomes.get(test) == "failed":
            continue  # a failing subtest, or a failing test whose tear-down went well
        module.outcomes[test] = outcome
        if line.get("reason"):
            module.reasons[test] = line["reason"]
        if running == test:
            running = ""
    if code in (0, 1, 5) and not running:
        return None
    cut = "module time limit" if code is None else f"exit code {code}"
    if not running:
        running = f"{module.name}::module"
    module.outcomes[running] = "failed"
    module.reasons[running] = f"{cut}: {output.read_text(errors='replace')[-300:]}"
    return cut if running != f"{module.name}::module" else None


def run_again(module: Module, server: str, transport: str) -> None:
    """Gives what failed unexpectedly a second run, with the machine to itself."""
    failed = {test for test, outcome in module.outcomes.items() if outcome == "failed"} - set(expected_failures())
    tests = frozenset(test for test in failed if not test.endswith(("::", "::module")))
    if not tests:
        return
    again = run_module(module.name, server, transport, tests)
    for test in tests:
        module.outcomes[test] = again.outcomes.get(test, "failed")
        print(f"again, alone: {test}: {module.outcomes[test]}", flush=True)


def expected_failures() -> dict[str, str]:
    data = tomllib.loads((SUITE / "expected.toml").read_text())
    return {test: group["reason"] for group in data.values() for test in group["tests"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="cudapy.test_atomics, ...")
    parser.add_argument("--selection", action="store_true")
    parser.add_argument("--jobs", type=int, default=job_count())
    parser.add_argument("--transport", default="shm", choices=("shm", "tcp"))
    parser.add_argument("--results", type=Path, help="write each test's outcome here (JSON)")
    arguments = parser.parse_args()
    modules = arguments.modules or all_modules()
    if arguments.selection:
        modules = (SUITE / "selection.txt").read_text().split()
    from orion_client.private_server import PrivateServer

    print_lock = threading.Lock()
    with PrivateServer("softgpu") as server, ThreadPoolExecutor(arguments.jobs) as pool:

        def one(name: str) -> Module:
            module = run_module(name, server.address, arguments.transport)
            count = Counter(module.outcomes.values())
            with print_lock:
                print(f"{name}: {dict(count)} {module.took_s:.1f} s", flush=True)
                for test, outcome in module.outcomes.items():
                    if outcome == "failed":
                        print(f"  {test}: {module.reasons.get(test, '')[:300]!r}", flush=True)
            return module

        finished = list(pool.map(one, modules))
        for module in finished:
            run_again(module, server.address, arguments.transport)
    outcomes = {test: outcome for module in finished for test, outcome in module.outcomes.items()}
    if arguments.results:
        reasons = {test: reason for module in finished for test, reason in module.reasons.items()}
        arguments.results.write_text(json.dumps({"outcomes": outcomes, "reasons": reasons}, indent=1))
    return judge(outcomes, set(modules))


def judge(outcomes: dict[str, str], modules: set[str]) -> int:
    """Compares with the checked-in list; 1 when something is not as it says."""
    count = Counter(outcomes.values())
    failed = {test for test, outcome in outcomes.items() if outcome == "failed"}
    passed = {test for test, outcome in outcomes.items() if outcome == "passed"}
    expected = {test for test in expected_failures() if test.split("::")[0] in modules}
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")
    wrong = [f"fails, and expected.toml does not say so: {test}" for test in sorted(failed - expected)]
    wrong += [f"passes: take it out of expected.toml: {test}" for test in sorted(expected & passed)]
    wrong += [f"in expected.toml, but there is no such test: {test}" for test in sorted(expected - set(outcomes))]
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
