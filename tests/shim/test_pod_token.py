"""The token by which a pod proves to a controller that it is itself: whom it is shown to, and files that hold none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orion_client import pool_port, settings
from orion_client.control_client import ServerUnreachable
from tests.e2e.pool_controller import PoolController
from tests.shim.test_pool_answers import LIBRARY, one_line, refusing, run_init
from wire import pool

NVML = "import ctypes; print(ctypes.CDLL('libnvidia-ml.so.1').nvmlInit_v2())"


@pytest.fixture
def controller() -> Iterator[PoolController]:
    def script(request: object, _: PoolController) -> list[object]:
        if isinstance(request, pool.Lookup):
            return [pool.LookedUp(id=request.id, servers=[])]
        return refusing(1)(request, _)  # type: ignore[return-value]

    running = PoolController(script)  # type: ignore[arg-type]
    yield running
    running.stop()


def lookup_by_nvml(**settings: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORION_", "CUDA_"))}
    environment |= {"LD_LIBRARY_PATH": str(LIBRARY.parent), "HOME": "/nonexistent"} | settings
    done = subprocess.run([sys.executable, "-c", NVML], env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def test_a_controller_is_shown_the_token_as_the_file_has_it_now(controller: PoolController, tmp_path: Path) -> None:
    file = tmp_path / "token"
    for token in ("first." + "t" * 2000, "renewed", "x" * 8192):
        file.write_text(token + "\n" * (len(token) < 8192))
        run_init(ORION_CONTROLLER=controller.address, ORION_GROUP_ID="uid", ORION_TOKEN_FILE=str(file))
        lookup_by_nvml(ORION_CONTROLLER=controller.address, ORION_GROUP_ID="uid", ORION_TOKEN_FILE=str(file))
        assert [type(request) for request in controller.requests[:2]] == [pool.Allocate, pool.Lookup]
        assert {(request.group, request.token) for request in controller.requests} == {("uid", token)}
        controller.requests.clear()


def test_a_token_never_travels_in_clear(controller: PoolController, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """To an address that is not surely this machine's, it takes an encrypted connection. 127.1 is 127.0.0.1 to a
    resolver, and a name as far as one can see."""
    file = tmp_path / "token"
    file.write_text("secret")
    address = controller.address.replace("127.0.0.1", "127.1")
    _, lines = run_init(ORION_CONTROLLER=address, ORION_TOKEN_FILE=str(file), ORION_LOG="info")
    assert any("would travel in clear" in line and "ORION_CONTROLLER_KEY" in line for line in lines)
    lookup_by_nvml(ORION_CONTROLLER=address, ORION_TOKEN_FILE=str(file))
    for name, value in (("ORION_TOKEN_FILE", str(file)), ("HOME", "/nonexistent")):
        monkeypatch.setenv(name, value)
    pool_port.lookup([address])
    assert [request.token for request in controller.requests] == ["", "", ""]
    pool_port.lookup([controller.address])
    assert controller.requests[-1].token == "secret"


def test_without_the_file_there_is_no_token(controller: PoolController) -> None:
    codes, lines = run_init(ORION_CONTROLLER=controller.address, ORION_TOKEN_FILE="/nowhere/token")
    assert codes == [1, 1]
    one_line(lines, "no GPU for this")  # what the controller says; a pool may do without tokens
    assert controller.requests[0].token == ""


def empty(path: Path) -> None:
    path.touch()


def binary(path: Path) -> None:
    path.write_bytes(b"to\0ken")


def spaced(path: Path) -> None:
    path.write_text("two words")


def too_long(path: Path) -> None:
    path.write_text("x" * 8193)


@pytest.mark.parametrize("make", [empty, binary, spaced, too_long, os.mkfifo, os.mkdir])
def test_a_file_that_holds_no_token_is_named(
    controller: PoolController, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    file = tmp_path / "token"
    make(file)
    codes, lines = run_init(ORION_CONTROLLER=controller.address, ORION_TOKEN_FILE=str(file))
    assert codes == [800, 800]
    one_line(lines, f"ORION_TOKEN_FILE={file}")
    assert f"ORION_TOKEN_FILE={file}" in lookup_by_nvml(ORION_CONTROLLER=controller.address, ORION_TOKEN_FILE=str(file))
    monkeypatch.setenv("ORION_TOKEN_FILE", str(file))
    with pytest.raises(settings.SettingError, match="ORION_TOKEN_FILE="):
        settings.pod_token(controller.address)
    with pytest.raises(ServerUnreachable, match="ORION_TOKEN_FILE="):
        pool_port.lookup([controller.address])
    assert not controller.requests
