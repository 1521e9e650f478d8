"""The rules between settings."""

from dataclasses import fields

import pytest

from raftcache.config import Config, load, violations
from raftcache.errors import ConfigError
from raftcache.kv.limits import CEILINGS, KvLimits
from raftcache.node.settings import EngineSettings

LOOPBACK = ("127.0.0.1:7500", "127.9.9.9:7500", "[::1]:7500", "localhost:7500")
ELSEWHERE = ("10.0.0.1:7500", "[2001:db8::1]:7500", "localhost.example:7500")


def test_the_defaults_break_no_rule() -> None:
    """All of them together."""
    assert [] == list(violations(Config()))


@pytest.mark.parametrize(
    ("flags", "path"),
    [
        ({"raft.heartbeat_ticks": 3}, "raft.election_timeout_ticks"),
        ({"raft.election_timeout_ticks": 5}, "raft.election_timeout_ticks"),
        ({"limits.value_bytes_max": "5MiB"}, "limits.batch_bytes_max"),
        ({"limits.scan_bytes_max": "512KiB"}, "limits.scan_bytes_max"),
        ({"limits.transaction_bytes_max": "8MiB"}, "limits.batch_bytes_max"),
        ({"limits.batch_bytes_max": "8MiB"}, "limits.frame_bytes_max"),
        ({"raft.append_bytes_max": "8MiB"}, "limits.frame_bytes_max"),
        ({"storage.segment_bytes": "4MiB"}, "storage.segment_bytes"),
        ({"storage.log_bytes_max": "64MiB"}, "storage.log_bytes_max"),
        ({"storage.log_bytes_per_checkpoint": "2GiB"}, "storage.log_bytes_max"),
        ({"storage.map_bytes": "1GiB"}, "storage.map_bytes"),
        ({"raft.inflight_bytes_max": "512KiB"}, "raft.inflight_bytes_max"),
        ({"raft.uncommitted_bytes_max": "2MiB"}, "raft.uncommitted_bytes_max"),
        ({"limits.in_flight_bytes_max": "2MiB"}, "limits.in_flight_bytes_max"),
        ({"limits.batch_reply_bytes_max": "512MiB"}, "limits.in_flight_bytes_max"),
        ({"limits.in_flight_bytes_max": "40MiB"}, "limits.in_flight_bytes_max"),
        ({"limits.session_reply_bytes_total_max": "512KiB"}, "limits.session_reply_bytes_total_max"),
        ({"listen.peer": "127.0.0.1:7400"}, "listen.peer"),
        ({"listen.client": ""}, "listen.client"),
        ({"listen.client": "0.0.0.0:7400", "tls.insecure": True}, "listen.advertise_client"),
        ({"listen.admin": "[::]:7402"}, "listen.advertise_admin"),
        ({"listen.advertise_peer": "0.0.0.0:7401"}, "listen.advertise_peer"),
        ({"tls.client_cert": "a.pem"}, "tls.client_cert"),
        ({"tls.client_ca": "a.pem"}, "tls.client_ca"),
        ({"tls.peer_cert": "a.pem", "tls.peer_key": "a.key"}, "tls.peer_cert"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(flags: dict[str, object], path: str) -> None:
    """What is allowed in must fit into everything that it passes through; the message names the setting to change."""
    with pytest.raises(ConfigError) as caught:
        load(flags=flags)
    assert path == caught.value.metadata["path"]
    assert caught.value.message.startswith(f"{path}: ")


@pytest.mark.parametrize(("port", "certified"), [("client", "client"), ("peer", "peer"), ("admin", "peer")])
def test_a_port_beyond_loopback_needs_tls_or_the_word_insecure(port: str, certified: str) -> None:
    """The default must not put anybody's data on a network."""
    for address in LOOPBACK:
        load(flags={f"listen.{port}": address})
    for address in ELSEWHERE:
        with pytest.raises(ConfigError, match="is not a loopback address"):
            load(flags={f"listen.{port}": address})
        load(flags={f"listen.{port}": address, "tls.insecure": True})
        certificates = {f"tls.{certified}_{name}": f"{name}.pem" for name in ("cert", "key", "ca")}
        load(flags={f"listen.{port}": address, **certificates})


def test_free_ports_may_be_asked_for_on_all_three_listeners() -> None:
    """Port 0 is not a port taken twice."""
    load(flags={f"listen.{name}": "127.0.0.1:0" for name in ("client", "peer", "admin")})


def test_limits_agree_with_the_state_machines() -> None:
    """The same names, defaults and ceilings, though neither layer may import the other."""
    ours = Config().limits
    highest = {}
    for item in fields(KvLimits):
        assert getattr(KvLimits(), item.name) == getattr(ours, item.name), item.name
        setting = next(field for field in fields(ours) if field.name == item.name).metadata["setting"]
        highest[item.name] = int(setting.hi)
        if item.name in ("key_bytes_max", "value_bytes_max", "transaction_operations_max", "transaction_bytes_max"):
            assert getattr(CEILINGS, item.name) == setting.hi, item.name
    KvLimits(**highest)


def test_the_engine_has_the_same_defaults() -> None:
    """A test or simulation that builds an engine by hand runs with what production runs with."""
    config, engine = Config(), EngineSettings()
    sections = (config.raft, config.storage, config.limits)
    compared = 0
    for item in fields(engine):
        for suffix, factor in (("_ns", 1), ("_ms", 1_000_000), ("_us", 1_000)):
            name = item.name if suffix == "_ns" else item.name.removesuffix("_ns") + suffix
            for section in sections:
                if hasattr(section, name) and (suffix == "_ns" or item.name.endswith("_ns")):
                    assert getattr(engine, item.name) == getattr(section, name) * factor, item.name
                    compared += 1
    assert compared >= 15, f"only {compared} settings were found in both: were they renamed?"


def test_advertised_addresses_default_to_the_listeners() -> None:
    """One machine needs no second setting."""
    listen = Config().listen
    assert listen.client == listen.advertised_client
