"""Where settings come from, and what is said when one is wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.config import Config, load, parse_assignment
from raftcache.errors import ConfigError

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a configuration file and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "raftcache.toml"
        path.write_text(text)
        return path

    return write


def refusal(**sources: object) -> str:
    """The message with which these sources are refused."""
    with pytest.raises(ConfigError) as caught:
        load(**sources)  # type: ignore[arg-type]
    assert caught.value.definite
    return caught.value.message


def test_without_sources_the_defaults_hold() -> None:
    """A node starts without any configuration, on loopback."""
    assert Config() == load()


def test_command_line_wins_over_environment_over_file_over_default(write: Write) -> None:
    """Each source overrides the ones below it, setting by setting."""
    path = write('[limits]\nkey_bytes_max = 100\nvalue_bytes_max = "1KiB"\nsession_window = 7\n')
    environ = {"RAFTCACHE_LIMITS__VALUE_BYTES_MAX": "2KiB", "RAFTCACHE_LIMITS__SESSION_WINDOW": "8"}

    config = load(path=path, environ=environ, flags={"limits.session_window": 9})

    limits = config.limits
    assert (100, 2048, 9) == (limits.key_bytes_max, limits.value_bytes_max, limits.session_window)
    assert Config().limits.sessions_max == limits.sessions_max


def test_every_kind_of_setting_can_come_from_the_environment() -> None:
    """Containers set no files: text stands for numbers, flags and ratios too."""
    config = load(
        environ={
            "RAFTCACHE_NODE__NAME": "n1",
            "RAFTCACHE_TLS__INSECURE": "true",
            "RAFTCACHE_TELEMETRY__TRACE_SAMPLE_RATIO": "0.5",
            "RAFTCACHE_RAFT__TICK_MS": "50ms",
            "RAFTCACHE_LOG__LEVEL": "debug",
        }
    )
    assert "n1" == config.node.name
    assert (True, 0.5) == (config.tls.insecure, config.telemetry.trace_sample_ratio)
    assert (50, "debug") == (config.raft.tick_ms, config.log.level)


def test_the_clients_environment_is_not_looked_at() -> None:
    """RAFTCACHE_ENDPOINTS, with one underscore, belongs to the client."""
    assert Config() == load(environ={"RAFTCACHE_ENDPOINTS": "n1:7400", "PATH": "/bin", "OTHER__THING": "1"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[limit]\n", "limit ({path}): there is no such section; did you mean limits?"),
        ("tick_ms = 5\n", "tick_ms ({path}): there is no such section; did you mean raft.tick_ms?"),
        (
            "[limits]\nkey_byte_max = 5\n",
            "limits.key_byte_max ({path}): there is no such setting; did you mean key_bytes_max?",
        ),
        ("[limits]\ntick_ms = 5\n", "limits.tick_ms ({path}): there is no such setting; did you mean raft.tick_ms?"),
        ("raft = 5\n", "raft ({path}): 5 is not a section; write [raft] on a line of its own"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(write: Write, text: str, expected: str) -> None:
    """A misspelt limit must not silently stay at its default."""
    path = write(text)
    assert expected.format(path=path) == refusal(path=path)


def test_unknown_names_in_environment_and_flags_say_where_they_stand() -> None:
    """The message names the variable, so that nobody searches the file for it."""
    assert "(environment variable RAFTCACHE_RAFT__TICKMS)" in refusal(environ={"RAFTCACHE_RAFT__TICKMS": "1"})
    assert "(command line)" in refusal(flags={"raft.tickms": "1"})


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("limits.value_bytes_max", "1XB", "\"1XB\" has the unknown unit 'XB'; write"),
        ("limits.value_bytes_max", "1GiB", '"1GiB" is out of range; allowed are 1B to 16MiB'),
        ("limits.value_bytes_max", True, "true is not a number"),
        ("limits.value_bytes_max", 1.5, "1.5 is not a number"),
        ("limits.key_bytes_max", 0, "0 is out of range; allowed are 1B to 506B"),
        ("raft.tick_ms", "1h", '"1h" is out of range; allowed are 5ms to 1s'),
        ("raft.heartbeat_ticks", "2.5", '"2.5" is not a whole number'),
        ("telemetry.trace_sample_ratio", "2", '"2" is out of range; allowed are 0 to 1'),
        ("telemetry.trace_sample_ratio", "nan", '"nan" is out of range'),
        ("telemetry.tracing", "jaeger", '"jaeger" is not one of off, otlp, console'),
        ("log.level", "warn", '"warn" is not one of debug, info, warning, error; did you mean warning?'),
        ("tls.insecure", "maybe", '"maybe" is not true or false'),
        ("tls.insecure", 1, "1 is not true or false"),
        ("listen.client", "7400", '"7400" is not host:port'),
        ("listen.client", "::1:7400", '"::1:7400" has an IPv6 address without brackets'),
        ("listen.client", "h:99999", "\"h:99999\" has the bad port '99999'"),
        ("listen.client", 7400, "7400 is not text; write it in quotes"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(path: str, value: object, expected: str) -> None:
    """The message has the path, the value as it was written, and what to write instead."""
    message = refusal(flags={path: value})
    assert message.startswith(f"{path} (command line): ")
    assert expected in message


def test_a_file_that_is_missing_or_no_toml_is_refused_by_name(write: Write, tmp_path: Path) -> None:
    """The first thing that goes wrong in production is the path."""
    missing = tmp_path / "missing.toml"
    assert f"{missing}: cannot be read: No such file or directory" == refusal(path=missing)
    assert "is not TOML: " in refusal(path=write("[raft\n"))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    assert f"{binary}: is not UTF-8 text" == refusal(path=binary)


def test_an_assignment_of_the_command_line_is_split_at_its_first_equals_sign() -> None:
    """Values may contain the sign themselves."""
    assert ("node.name", "zone=a") == parse_assignment("node.name=zone=a")
    for text in ("node.name", "=x", "name=x", "a.b.c=1"):
        with pytest.raises(ConfigError):
            parse_assignment(text)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
def test_no_text_in_a_file_does_anything_but_load_or_be_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    """Garbage yields a ConfigError, never another exception."""
    path = tmp_path_factory.mktemp("fuzz") / "raftcache.toml"
    path.write_text(text)
    try:
        load(path=path)
    except ConfigError:
        pass
