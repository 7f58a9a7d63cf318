"""Who may have the self-test answered: the server runs a runtime on its driver, tells the outcome at attach, and the
client goes by that. A stand-in for the runtime says what each case needs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orion_client.libraries import softgpu_folder
from orion_client.private_server import PrivateServer
from tests.runtime.tools import HERE, ROOT, run_cudart, run_program

REFUSED = [["801", "0" * 32]] * 3


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Builds the stand-in and names it to the server; returns the file that shows that it was run."""

    def build(codes: str) -> Path:
        library, trace = tmp_path / "libcudart.so.13", tmp_path / "was-run"
        source = HERE / "fake_cudart.c"
        subprocess.run(["gcc", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
        monkeypatch.setenv("ORION_CUDART", str(library))
        monkeypatch.setenv("FAKE_CUDART_CODES", codes)
        monkeypatch.setenv("FAKE_CUDART_TRACE", str(trace))
        return trace

    return build


def nvidia_server() -> PrivateServer:
    """A server that takes softgpu's library for NVIDIA's driver."""
    return PrivateServer("nvidia", log_level="info", extra=("--libcuda", str(softgpu_folder() / "libcuda.so.1")))


def ask(client: Path, server: PrivateServer, **settings: str) -> tuple[list[list[str]], str]:
    done = run_program(client, server, sys.executable, HERE / "self_test_call.py", **settings)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()], done.stderr


def test_answered_where_the_runtime_works(
    shipped_client: Path, fake: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    trace = fake("0")
    with nvidia_server() as server:
        assert trace.exists()
        answers, said = ask(shipped_client, server)
    assert [code for code, _ in answers] == ["0", "0", "0"]
    assert answers[0][1] == "5c67cb031c184133e8d14c1faa83d38e"
    assert len({text for _, text in answers}) == 3
    assert said == ""
    assert "runtime validated" in capfd.readouterr().err


@pytest.mark.parametrize(("codes", "reason"), [("46", "GPU 0: 46"), ("-1", "ended with status -6"), ("", "validated")])
def test_refused_where_it_does_not(
    shipped_client: Path, fake: Callable[[str], Path], capfd: pytest.CaptureFixture[str], codes: str, reason: str
) -> None:
    fake(codes)
    with nvidia_server() as server:
        answers, said = ask(shipped_client, server)
    assert answers == REFUSED
    assert "has not validated NVIDIA's runtime" in said and len(said.splitlines()) == 1
    assert reason in capfd.readouterr().err


def test_the_user_can_turn_it_off(shipped_client: Path, fake: Callable[[str], Path]) -> None:
    fake("0")
    with nvidia_server() as server:
        answers, said = ask(shipped_client, server, ORION_RUNTIME_SELFTEST="0")
    assert answers == REFUSED
    assert "ORION_RUNTIME_SELFTEST=0" in said


def test_never_run_for_softgpu(shipped_client: Path, fake: Callable[[str], Path]) -> None:
    trace = fake("0")
    with PrivateServer("softgpu") as server:
        answers, said = ask(shipped_client, server)
    assert answers == REFUSED and "softgpu" in said
    assert not trace.exists()


def test_nvidias_runtime_does_not_pass_on_softgpu(
    shipped_client: Path,
    cudart: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    library = cudart("13.5")
    monkeypatch.setenv("ORION_CUDART", str(library))
    with nvidia_server() as server:
        assert run_cudart(shipped_client, server, library).stdout.splitlines() == ["cudaGetDeviceCount 801"]
    assert "runtime not validated" in capfd.readouterr().err


def test_every_runtime_that_is_found_is_tried_newest_first(tmp_path: Path) -> None:
    for name in ("libcudart.so.11.0", "libcudart.so.13", "libcudart.so.12"):
        folder = tmp_path / "nvidia" / name[-2:] / "lib"
        folder.mkdir(parents=True)
        (folder / name).touch()
    code = "from orion_server.worker.runtime_validation import find_cudart; print(*find_cudart())"
    found = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(tmp_path)!r}); {code}"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    ).stdout.split()
    ours = [Path(path).name for path in found if path.startswith(str(tmp_path))]
    assert ours == ["libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"]
