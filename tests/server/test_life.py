"""Start and end of the daemon."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from orion_client.private_server import PrivateServer
from orion_server.admin_token import AdminToken
from orion_server.channel import MAX_MESSAGE_BYTES, ChannelError, Decoder, encode
from orion_server.config import ConfigError, Settings, check_slices, load_file, parse_listen, private_directory
from orion_server.libcuda import LibcudaError, choose, is_orion_client_library
from wire import control
from wire.router import RateLimiter


def run_server(*arguments, timeout_s=60):
    command = [sys.executable, "-m", "orion_server", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)


@pytest.mark.parametrize("address", ["0.0.0.0:9960", "192.168.1.2:0", "[::]:1", "10.0.0.1"])
def test_addresses_that_others_reach_are_refused(address):
    result = run_server("--listen", address, "--device", "softgpu")
    assert result.returncode == 2
    assert "refusing to listen" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_listen_forms():
    assert parse_listen("127.0.0.1:0") == ("127.0.0.1", 0)
    assert parse_listen(":9961") == ("127.0.0.1", 9961)
    assert parse_listen("localhost") == ("127.0.0.1", 9960)
    for bad in ("127.0.0.1:x", "127.0.0.1:70000", "gpu.example:1"):
        with pytest.raises(ConfigError):
            parse_listen(bad)


def test_port_in_use_is_one_line(server):
    result = run_server("--listen", server.address, "--device", "softgpu")
    assert result.returncode == 1
    assert "in use" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_library_without_devices_is_one_line(tmp_path):
    not_a_library = tmp_path / "libcuda.so.1"
    not_a_library.write_text("not ELF")
    result = run_server("--listen", "127.0.0.1:0", "--libcuda", str(not_a_library))
    assert result.returncode == 1
    assert "cannot serve" in result.stderr and "libcuda" in result.stderr
    assert "Traceback" not in result.stderr


def test_orions_own_client_library_is_never_loaded(tmp_path):
    fake = tmp_path / "libcuda.so.1"
    fake.write_bytes(b"\x7fELF" + b"\0" * 100 + b"ORION_SERVER\0")
    assert is_orion_client_library(fake)
    with pytest.raises(LibcudaError):
        choose("auto", str(fake))


def test_config_file_uses_the_products_keys(tmp_path):
    path = tmp_path / "server.conf"
    path.write_text(
        '[server]\nlisten_port = 9999\nbind_addr = 127.0.0.1\nenable_shm = "false"\nenable_kvm = true\n'
        "[log]\nlog_level = DEBUG\n"
    )
    settings = load_file(path, Settings())
    assert (settings.port, settings.enable_shm, settings.log_level) == (9999, False, "debug")
    assert settings.ignored == ("[server] enable_kvm",)
    for bad in ("[server]\nlisten_port = many\n", "[server]\nbind_addr = example\n", "[log]\nlog_level = LOUD\n", "x"):
        path.write_text(bad)
        with pytest.raises(ConfigError):
            load_file(path, Settings())


def test_what_cannot_divide_a_gpu_is_one_line(tmp_path):
    for arguments, text in (
        (("--vgpu-count", "101"), "--vgpu-count"),
        (("--ratio-policy", "soft"), "it is one of hard, elastic"),
        (("--metrics", "0.0.0.0:1"), "refusing to listen on 0.0.0.0"),
    ):
        result = run_server("--listen", "127.0.0.1:0", "--device", "softgpu", *arguments)
        assert result.returncode == 2
        assert text in result.stderr
    path = tmp_path / "server.conf"
    path.write_text("[server]\nvgpu_count = 2\nratio_policy = elastic\nmetrics_listen = 127.0.0.1:0\n")
    settings = load_file(path, Settings())
    assert (settings.vgpu_count, settings.ratio_policy, settings.metrics_listen) == (2, "elastic", "127.0.0.1:0")
    path.write_text("[server]\nvgpu_count = -1\n")
    with pytest.raises(ConfigError):
        check_slices(load_file(path, Settings()))


def test_admin_token_is_one_for_a_folder_and_closed_to_others(tmp_path):
    token = AdminToken(tmp_path)
    assert stat.S_IMODE(token.path.stat().st_mode) == 0o600
    text = token.path.read_text().strip()
    assert len(text) == 64 and token.admits(text)
    assert not token.admits("") and not token.admits(text[:-1]) and not token.admits("é" * 64)
    assert AdminToken(tmp_path).admits(text)  # a second server of the same folder
    token.path.chmod(0o644)
    with pytest.raises(ConfigError):
        AdminToken(tmp_path)
    token.path.chmod(0o600)
    token.path.write_text("short")
    with pytest.raises(ConfigError):
        AdminToken(tmp_path)
    token.path.unlink()
    assert not AdminToken(tmp_path).admits(text)


def test_socket_folder_must_be_ours_alone(tmp_path):
    folder = private_directory(tmp_path / "s")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o755)
    with pytest.raises(ConfigError):
        private_directory(folder)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(ConfigError):
        private_directory(link)


def test_sigterm_drains_and_a_second_one_stops(server, client, attach, eventually):
    attached = client.ask(attach())
    assert isinstance(attached, control.Attached)
    with PrivateServer("softgpu", extra=("--drain-timeout", "60")) as patient:
        own = type(client)(patient.address)
        try:
            own.ask(attach())
            patient.process.send_signal(signal.SIGTERM)
            eventually(lambda: isinstance(own.ask(attach()), control.Error))
            assert patient.process.poll() is None  # one client is still there
            patient.process.send_signal(signal.SIGTERM)
            assert patient.process.wait(10) == 0
        finally:
            own.close()


def test_no_process_and_no_socket_file_is_left(tmp_path, attach, connect, eventually):
    folder = tmp_path / "sockets"
    with PrivateServer("softgpu", extra=("--socket-dir", str(folder))) as server:
        connect(server.address).ask(attach())
        pid = server.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert children
    eventually(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    assert [path.name for path in folder.iterdir()] == ["admin-token"]


def test_workers_die_with_a_killed_server(server, eventually):
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert children
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def test_channel_decoder_bounds_what_a_worker_says():
    message = {"type": "hello", "devices": [{"ordinal": 0}]}
    framed = encode(message)
    decoder = Decoder()
    assert decoder.feed(framed[:3]) == []
    assert decoder.feed(framed[3:] + framed) == [message, message]
    for bad in ((MAX_MESSAGE_BYTES + 1).to_bytes(4, "little"), b"\1\0\0\0\xc1", b"\1\0\0\0\x05"):
        with pytest.raises(ChannelError):
            Decoder().feed(bad)


def test_rate_limiter_by_its_own_clock():
    limiter = RateLimiter(burst=2, per_second=1, buckets=2)
    assert [limiter.admit(b"a", 0.0) for _ in range(3)] == [True, True, False]
    assert limiter.admit(b"b", 0.0)
    assert limiter.admit(b"a", 1.0)
    assert not limiter.admit(b"a", 1.5)
