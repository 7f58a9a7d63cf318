"""Settings: where they come from, which one wins, what is said of wrong ones, and who may be listened to."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orion_controller import config
from orion_controller.config import (
    ConfigError,
    Endpoint,
    Settings,
    cautions,
    check_exposed,
    load,
    load_environment,
    load_file,
)

# As the product's package has it.
PRODUCT_FILE = """
controller:
  listen_ip: 0.0.0.0
  listen_port: 9124
  log_level: warn
  log_file: "/var/log/orion/controller.log"
  vgpu_num: 8
  authentication:
    client-key:
    server-key: "a-server-key"
    administrator-key: ""
database:
  name: etcd
  data-dir: "/root/.orion/etcd"
  listen-client-urls: http://127.0.0.1:23791
  advertise-client-urls: http://127.0.0.1:23791
  listen-peer-urls: http://127.0.0.1:23801
  initial-advertise-peer-urls: http://127.0.0.1:23801
  initial-cluster: etcd=http://127.0.0.1:23801
  initial-cluster-state: new
  initial-cluster-token: Orion-database-cluster
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def file(text: str) -> Path:
        path = tmp_path / "controller.yaml"
        path.write_text(text)
        path.chmod(0o600)
        return path

    return file


def test_the_products_file_is_understood_and_its_etcd_named_once(write: Any) -> None:
    settings = load_file(write(PRODUCT_FILE), Settings())
    assert settings.zmq == Endpoint("0.0.0.0", 9124)
    assert settings.log_level == "warning"
    assert settings.log_file == Path("/var/log/orion/controller.log")
    assert settings.vgpu_count == 8
    assert (settings.client_key, settings.server_key, settings.administrator_key) == ("", "a-server-key", "")
    assert settings.ignored == ()
    lines = [line for line in cautions(settings) if "etcd" in line]
    assert len(lines) == 1
    for key in ("database.name", "database.data-dir", "database.initial-cluster-token"):
        assert key in lines[0]


def test_our_keys(write: Any) -> None:
    settings = load_file(
        write(
            """
controller:
  http: "[::1]:8443"
  zmq: 127.0.0.1:9999
  data-dir: /srv/orion
  curve: on
  policy: spread
  queue_patience: 12.5
  idle_release: 0
  lease: 8
  authentication: {admin-password-file: /run/secrets/orion}
  behind_proxy: yes
database:
  url: postgresql://orion:hidden-word@db.example/orion
"""
        ),
        Settings(),
    )
    assert settings.http == Endpoint("::1", 8443) and str(settings.http) == "[::1]:8443"
    assert settings.zmq == Endpoint("127.0.0.1", 9999)
    assert settings.data_dir == Path("/srv/orion")
    assert (settings.curve, settings.policy, settings.behind_proxy) == ("on", "spread", True)
    assert (settings.queue_patience_s, settings.idle_release_s, settings.lease_s) == (12.5, 0.0, 8.0)
    assert settings.admin_password_file == Path("/run/secrets/orion")
    assert settings.database_url == "postgresql://orion:hidden-word@db.example/orion"
    assert "hidden-word" not in repr(settings)


def test_every_setting_of_a_file_can_come_from_the_environment_and_every_field_from_somewhere() -> None:
    fields = set(config._FILE_KEYS.values()) | set(config._CONVERT)
    assert {name for name in fields if "." not in name} == set(Settings.__dataclass_fields__) - {
        "ignored", "ignored_etcd", "cautions"}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("controller: {listen_port: 70000}", r"controller.yaml: controller.listen_port = '70000': .* 0 .* to 65535"),
        ("controller: {listen_port: true}", "controller.listen_port = 'True'"),
        ("controller: {listen_ip: gpu-master}", "'gpu-master' is no IP address"),
        ("controller: {log_level: loud}", "controller.log_level = 'loud': it is one of debug, info, warning, error"),
        ("controller: {vgpu_num: 0}", "whole number from 1 to 100"),
        ("controller: {vgpu_num: 2.5}", "whole number from 1 to 100"),
        ("controller: {policy: best}", "one of binpack, spread"),
        ("controller: {lease: .nan}", "a number from 1 to 3600 seconds"),
        ("controller: {lease: [1]}", "a number from 1 to 3600 seconds"),
        ("controller: {behind_proxy: perhaps}", "true or false"),
        ("controller: {authentication: word}", "controller.authentication = 'word': it is a section"),
        ("controller: {authentication: {client-key: {a: b}}}", "controller.authentication.client-key: it is text"),
        ("controller: {data_dir: [x]}", "controller.data_dir"),
        ("controller: {tls_cert: true}", "controller.tls_cert"),
        ("database: {url: 'mysql://h/n'}", "database.url: .* sqlite and postgresql are known"),
        ("database: 3", "it is a section"),
        ("- a", "has no sections"),
        ("a: [", "is no YAML"),
        ("a: !!python/object:os.system {}", "is no YAML"),
        ("\0", "is no YAML"),
        ("[" * 400, "is no YAML"),
        ("#" * (1 << 21), "larger than 1 MiB"),
    ],
)
def test_wrong_values_are_named_with_file_key_and_what_is_allowed(write: Any, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as raised:
        load_file(write(text), Settings())
    assert "controller.yaml" in str(raised.value)


def test_a_wrong_key_or_url_is_refused_without_showing_it(write: Any) -> None:
    for text in ("controller: {authentication: {client-key: 'hidden word'}}",
                 "database: {url: 'mysql://u:hidden@h/n'}"):  # fmt: skip
        with pytest.raises(ConfigError) as raised:
            load_file(write(text), Settings())
        assert "hidden" not in str(raised.value)


def test_unknown_keys_are_named_and_typing_errors_guessed(write: Any) -> None:
    settings = load_file(write("controller: {polcy: spread, new: 1}\nother: {a: 1}\ndatabase: {nme: x}"), Settings())
    said = "\n".join(cautions(settings))
    for part in ("controller.polcy (meant: policy?)", "controller.new", "other", "database.nme"):
        assert part in said
    assert settings.policy == "binpack"


def test_an_empty_file_changes_nothing(write: Any) -> None:
    assert load_file(write("# nothing\n"), Settings()) == Settings()
    assert load_file(write("controller:\ndatabase:\n"), Settings()) == Settings()


def test_keys_that_everybody_can_read_are_cautioned_against(write: Any) -> None:
    path = write("controller: {authentication: {client-key: abc}}")
    assert not cautions(load_file(path, Settings()))
    path.chmod(0o644)
    assert "chmod o-r" in cautions(load_file(path, Settings()))[0]
    path.write_text("controller: {policy: spread}")
    assert not cautions(load_file(path, Settings()))


def test_options_win_over_the_environment_over_the_users_file_over_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    system = tmp_path / "etc" / "controller.yaml"
    system.write_text("controller: {listen_port: 1001, http: 127.0.0.1:1001, vgpu_num: 1, lease: 11, policy: spread}")
    (tmp_path / ".orion").mkdir()
    (tmp_path / ".orion" / "controller.yaml").write_text(
        "controller: {listen_port: 1002, http: 127.0.0.1:1002, vgpu_num: 2, lease: 12}"
    )
    monkeypatch.setattr(config, "SYSTEM_FILE", system)
    environment = {
        "HOME": str(tmp_path), "ORION_CONTROLLER_ZMQ": "127.0.0.1:1003", "ORION_CONTROLLER_HTTP": "127.0.0.1:1003",
        "ORION_CONTROLLER_VGPU_COUNT": "3", "PORT": "77",
    }  # fmt: skip
    settings = load({"http": "127.0.0.1:1004", "vgpu_count": None}, environment=environment)
    assert settings.http.port == 1004
    assert settings.zmq.port == 1003
    assert settings.vgpu_count == 3
    assert settings.lease_s == 12
    assert settings.policy == "spread"


def test_a_named_file_stands_alone_and_must_be_there(write: Any, tmp_path: Path) -> None:
    (tmp_path / ".orion").mkdir()
    (tmp_path / ".orion" / "controller.yaml").write_text("controller: {vgpu_num: 7}")
    environment = {"HOME": str(tmp_path)}
    assert load({}, environment=environment).vgpu_count == 7
    assert load({}, write("controller: {lease: 9}"), environment).vgpu_count == 4
    with pytest.raises(ConfigError, match=r"cannot read /nowhere/c\.yaml"):
        load({}, Path("/nowhere/c.yaml"), environment)


def test_the_products_container_variables_and_kubernetes_own() -> None:
    environment = {
        "PORT": "9200", "LOG": "WARN",
        # What a cluster sets in every pod beside a service that is named orion-controller.
        "ORION_CONTROLLER_PORT": "tcp://10.0.0.7:9123", "ORION_CONTROLLER_SERVICE_HOST": "10.0.0.7",
        "ORION_CONTROLLER_PORT_9123_TCP_PROTO": "tcp", "ORION_CONTROLLER": "10.0.0.7:9123",
    }  # fmt: skip
    settings = load_environment(environment, Settings())
    assert settings == load_environment({"PORT": "9200", "LOG": "warning"}, Settings())
    assert settings.zmq == Endpoint("127.0.0.1", 9200) and settings.log_level == "warning"
    with pytest.raises(ConfigError, match="the environment's LOG = '/var/log/x': it is one of debug"):
        load_environment({"LOG": "/var/log/x"}, Settings())


def test_the_first_password_comes_from_file_environment_or_configuration(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("a word in a file\n")
    configured = Settings(admin_password="configured word", admin_password_file=tmp_path / "other")
    assert Settings().first_password() == ""
    assert load_environment({"ORION_ADMIN_PASSWORD": "word"}, configured).first_password() == "word"
    both = {"ORION_ADMIN_PASSWORD": "word", "ORION_ADMIN_PASSWORD_FILE": str(file)}
    assert load_environment(both, configured).first_password() == "a word in a file"
    with pytest.raises(ConfigError, match=r"cannot read the password of admin in .*other: No such file"):
        configured.first_password()
    file.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        Settings(admin_password_file=file).first_password()


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:80", Endpoint("127.0.0.1", 80)),
        ("localhost:80", Endpoint("127.0.0.1", 80)),
        (":80", Endpoint("127.0.0.1", 80)),
        ("80", Endpoint("127.0.0.1", 80)),
        ("10.0.0.1", Endpoint("10.0.0.1", 15502)),
        ("*:80", Endpoint("0.0.0.0", 80)),
        ("[::]:80", Endpoint("::", 80)),
        ("::1", Endpoint("::1", 15502)),
    ],
)
def test_addresses(text: str, endpoint: Endpoint) -> None:
    assert load({"http": text}, environment={"HOME": "/nowhere"}).http == endpoint


@pytest.mark.parametrize("text", ["", "host:80", "1.2.3.4:x", "1.2.3.4:-1", "1.2.3.4:99999", "[::1]x", "1.2.3:4:5"])
def test_no_addresses(text: str) -> None:
    with pytest.raises(ConfigError, match="--http"):
        load({"http": text or "/"}, environment={"HOME": "/nowhere"})


def test_what_belongs_together(tmp_path: Path) -> None:
    environment = {"HOME": "/nowhere"}
    with pytest.raises(ConfigError, match="go together"):
        load({"tls_cert": "/dev/null"}, environment=environment)
    with pytest.raises(ConfigError, match="no such file"):
        load({"tls_cert": tmp_path / "c", "tls_key": tmp_path / "k"}, environment=environment)
    with pytest.raises(ConfigError, match="at least two heartbeats"):
        load({"lease_s": 3, "heartbeat_s": 2}, environment=environment)


EVERYWHERE = Endpoint("0.0.0.0", 1)
KEYS = {"client_key": "c", "server_key": "s"}


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({}, []),
        ({"http": Endpoint("::1", 1), "zmq": Endpoint("127.9.9.9", 1)}, []),
        ({"http": EVERYWHERE}, ["TLS"]),
        ({"http": Endpoint("192.0.2.1", 1)}, ["TLS"]),
        ({"http": Endpoint("::", 1)}, ["TLS"]),
        ({"http": EVERYWHERE, "behind_proxy": True}, []),
        ({"http": EVERYWHERE, "tls_cert": Path("c"), "tls_key": Path("k")}, []),
        ({"http": EVERYWHERE, "insecure_network": True}, ["TLS"]),
        ({"zmq": EVERYWHERE}, ["client-key", "server-key"]),
        ({"zmq": EVERYWHERE, "client_key": "c"}, ["server-key"]),
        ({"zmq": EVERYWHERE, **KEYS}, []),
        ({"zmq": EVERYWHERE, **KEYS, "curve": "off"}, ["encryption"]),
        ({"zmq": EVERYWHERE, **KEYS, "curve": "off", "behind_proxy": True}, ["encryption"]),
        ({"zmq": EVERYWHERE, **KEYS, "curve": "off", "insecure_network": True}, []),
        ({"zmq": EVERYWHERE, "insecure_network": True}, ["client-key", "server-key"]),
    ],
)
def test_what_other_machines_reach_has_to_be_guarded(changes: dict[str, Any], missing: list[str]) -> None:
    found = check_exposed(Settings(**changes))
    assert len(found) == len(missing)
    for sentence, word in zip(found, missing):
        assert word in sentence


def test_what_is_allowed_on_demand_is_cautioned_against() -> None:
    open_ = Settings(http=EVERYWHERE, zmq=EVERYWHERE, **KEYS, curve="off", insecure_network=True, behind_proxy=True)
    said = "\n".join(cautions(open_))
    assert "tickets travel in clear" in said and "only a proxy" in said
    assert cautions(Settings()) == []


def test_encryption_is_by_itself_on_where_others_can_listen_in() -> None:
    assert not Settings().uses_curve
    assert Settings(curve="on").uses_curve
    assert Settings(zmq=EVERYWHERE).uses_curve
    assert not Settings(zmq=EVERYWHERE, curve="off").uses_curve


def test_the_data_directory_is_the_systems_for_root_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert config.default_data_dir() == Path("/var/lib/orion")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert config.default_data_dir() == Path("/state/orion")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/ann")
    assert config.default_data_dir() == Path("/home/ann/.local/state/orion")


def test_what_others_are_told_is_an_address_that_they_can_use() -> None:
    assert Settings().zmq_for_others(4711) == "127.0.0.1:4711"
    assert Settings().http_for_others(4711) == "http://127.0.0.1:4711"
    assert Settings(zmq=EVERYWHERE).zmq_for_others(4711) == f"{os.uname().nodename}:4711"
    tls = Settings(http=Endpoint("::1", 0), tls_cert=Path("c"), tls_key=Path("k"))
    assert tls.http_for_others(4711) == "https://[::1]:4711"
    told = Settings(http=EVERYWHERE, advertise_http="https://gpus.example", advertise_zmq="gpus.example:9123")
    assert (told.http_for_others(1), told.zmq_for_others(1)) == ("https://gpus.example", "gpus.example:9123")


def test_keys_that_are_bearer_tokens_cannot_be_guessed(write: Any) -> None:
    with pytest.raises(ConfigError, match="at least 16 characters; make one with: openssl rand -hex 32") as caught:
        load_file(write("controller: {authentication: {viewer-key: too-short-a-key}}"), Settings())
    assert "too-short" not in str(caught.value)
    settings = load_environment({"ORION_CONTROLLER_ADMINISTRATOR_KEY": "a" * 16, "ORION_CONTROLLER_VIEWER_KEY": ""},
                                Settings())  # fmt: skip
    assert (settings.administrator_key, settings.viewer_key) == ("a" * 16, "")


def test_kubernetes(write: Any) -> None:
    """Pods' tokens make the client key unnecessary off loopback, and need an encrypted port there."""
    text = "kubernetes: {token-review: true, audience: vgpus, require_reservation: yes, kubeconfig: /etc/kube}"
    settings = load({}, write(text), {})
    assert (settings.token_review, settings.token_audience) == (True, "vgpus")
    assert (settings.require_reservation, settings.kubeconfig) == (True, "/etc/kube")
    assert load({}, write(text), {"ORION_CONTROLLER_TOKEN_REVIEW": "1"}).token_review
    with pytest.raises(ConfigError, match="require_reservation needs token_review"):
        load({}, write("kubernetes: {require-reservation: true}"), {})
    with pytest.raises(ConfigError, match=r"kubernetes.audience = 'a b': it is the audience"):
        load({}, write("kubernetes: {token-review: true, audience: a b}"), {})
    exposed = Settings(zmq=EVERYWHERE, server_key="s" * 16, token_review=True)
    assert check_exposed(exposed) == []
    (missing,) = check_exposed(replace(exposed, curve="off", insecure_network=True))
    assert "pods show their tokens to nobody in clear" in missing
    assert len(check_exposed(replace(exposed, token_review=False))) == 1
