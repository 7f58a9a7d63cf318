"""Prometheus metrics of a running server, over HTTP."""

from __future__ import annotations

import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orion_client.private_server import PrivateServer
from tests.server.seat_view import SeatView, worker_pids
from wire import control

MIB = 1 << 20


@pytest.fixture
def port(tmp_path: Path) -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    return number


@pytest.fixture
def server(port: int) -> Iterator[PrivateServer]:
    options = ("--null-engine", "--vgpu-count", "4", "--metrics", f"127.0.0.1:{port}")
    with PrivateServer("softgpu", extra=options) as running:
        yield running


def scrape(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def samples(port: int) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(scrape(port)):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_vgpus_are_told_with_their_limits_and_what_they_use(
    port: int, server: PrivateServer, client: Any, attach: Callable[..., control.Attach]
) -> None:
    assert "orion_vgpu_memory_used_bytes" not in samples(port)  # nobody is there
    assert isinstance(client.ask(attach(group='a "team"\n', gmem_mib=1000, ratio=30)), control.Attached)
    seats = [SeatView(pid) for pid in worker_pids(server.process.pid)]
    (seat,) = [seat for seat in seats if seat.read("quota_bytes")]
    seat.write("charged_bytes", 300 * MIB)
    found = samples(port)
    labels, used = found["orion_vgpu_memory_used_bytes"][0]
    assert used == 300 * MIB
    assert labels["node"] == os.uname().nodename and labels["vgpu"] == "vgpu-1" and labels["group"] == 'a "team"\n'
    assert re.fullmatch(r"GPU-[0-9a-f-]{36}", labels["gpu"])
    assert found["orion_vgpu_memory_limit_bytes"] == [(labels, 1000 * MIB)]
    assert found["orion_vgpu_ratio_configured"] == [(labels, 0.3)]
    for name in ("orion_vgpu_ratio_achieved", "orion_vgpu_throttled_seconds_total", "orion_vgpu_launches_total",
                 "orion_vgpu_memory_context_bytes", "orion_vgpu_memory_module_bytes",
                 "orion_vgpu_memory_buffer_bytes"):  # fmt: skip
        assert [told for told, _ in found[name]] == [labels], name
    (build,) = found["orion_build_info"]
    assert build[0]["version"]
    assert found["orion_gpu_memory_given_bytes"][0][1] == 1000 * MIB
    assert found["orion_gpu_ratio_given"][0][1] == 0.3
    for view in seats:
        view.close()


def test_health_and_unknown_paths(port: int, server: PrivateServer) -> None:
    assert scrape(port, "/healthz") == "ok\n"
    with pytest.raises(urllib.error.HTTPError) as error:
        scrape(port, "/secrets")
    assert error.value.code == 404


def test_who_says_nothing_keeps_nobody_waiting(port: int, server: PrivateServer) -> None:
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
    assert scrape(port, "/healthz") == "ok\n"
    for connection in silent:
        connection.close()


def test_a_port_in_use_is_one_line(port: int, server: PrivateServer, capfd: pytest.CaptureFixture[str]) -> None:
    from orion_client.private_server import PrivateServerFailed

    with pytest.raises(PrivateServerFailed):
        PrivateServer("softgpu", extra=("--null-engine", "--metrics", f"127.0.0.1:{port}"))
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "metrics" in line]
    assert f"cannot serve metrics on 127.0.0.1:{port}" in line and "in use" in line
