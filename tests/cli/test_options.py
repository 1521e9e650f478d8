"""Durations, keys and addresses, as they are typed."""

import os
from pathlib import Path

import click
import pytest

from raftcache.cli import dev_state
from raftcache.cli.dev_state import DevCluster, DevNode
from raftcache.cli.endpoints import find_endpoints
from raftcache.cli.exits import Exit
from raftcache.cli.options import base64_bytes, duration, take_key
from raftcache.cli.processes import identity_of
from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("10s", 10.0), ("2m", 120.0), ("1.5", 1.5), ("1h", 3600.0)]
)
def test_a_duration_has_a_unit_or_is_seconds(text: str, seconds: float) -> None:
    """As in `--timeout 500ms`."""
    assert seconds == duration(text)


@pytest.mark.parametrize("text", ["0", "", "-1s", "10 s", "25h", "1d", "nan", "1e3"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """With the forms that there are."""
    with pytest.raises(click.BadParameter, match="write 500ms"):
        duration(text)


def test_a_key_is_text_or_base64() -> None:
    """And one of the two only."""
    words = ["ä", "value"]
    assert "ä".encode() == take_key(words, None)
    assert ["value"] == words
    assert b"\x00\xff" == take_key(words, base64_bytes("AP8="))
    assert ["value"] == words
    with pytest.raises(click.BadParameter):
        base64_bytes("no base64!")


def a_cluster(tag: str, tmp_path: Path, address: str) -> DevCluster:
    """One whose node is this very process."""
    node = DevNode("n1", address, "127.0.0.1:2", "127.0.0.1:3", identity_of(os.getpid()))
    return DevCluster(tag, tmp_path / tag, ephemeral=False, shards=1, nodes=[node])


def test_a_running_development_cluster_is_found(state_home: Path, tmp_path: Path) -> None:
    """The one there is, or the one without a tag of its own; else one must say which."""
    assert (("127.0.0.1:7400",), "the default address") == find_endpoints(None)
    dev_state.save(a_cluster("mine", tmp_path, "127.0.0.1:11"))
    assert (("127.0.0.1:11",), "the development cluster 'mine'") == find_endpoints(None)
    dev_state.save(a_cluster("yours", tmp_path, "127.0.0.1:12"))
    with pytest.raises(click.UsageError, match="mine, yours"):
        find_endpoints(None)
    dev_state.save(a_cluster("default", tmp_path, "127.0.0.1:13"))
    assert ("127.0.0.1:13",) == find_endpoints(None)[0]
    assert ("10.0.0.1:7400", "b:1") == find_endpoints("10.0.0.1,b:1")[0]
    assert state_home.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("get",),
        ("get", ""),
        ("get", "a", "b"),
        ("get", "a", "--timeout", "soon"),
        ("get", "a", "--endpoints", "a:b:c"),
        ("get", "a", "--tls-cert", "x"),
        ("get", "a", "--tls-cert", "x", "--tls-key", "y"),
        ("put", "a", "b", "c"),
        ("put", "a", "b", "--file", "c"),
        ("put", "a", "--file", "/does/not/exist"),
        ("put", "a", "b", "--if-absent", "--if-exists"),
        ("cas", "a"),
        ("cas", "a", "b", "--if-absent", "--expected-file", "c"),
        ("incr", "a", "many"),
        ("incr", "a", "9223372036854775808"),
        ("scan", "a", "--prefix", "b"),
        ("scan", "a", "--from", "b"),
        ("scan", "--limit", "-1"),
        ("init",),
        ("init", "--peers", "a:1,a:1"),
        ("init", "--peers", "a"),
        ("node", "join", "a:0"),
        ("shard", "replicas", "move", "1", "n1"),
        ("leader", "transfer", "one"),
        ("dev", "--ephemeral", "--data-dir", "x"),
        ("dev", "--random-ports", "--base-port", "7400"),
        ("dev", "--tag", "../x"),
        ("dev", "--set", "tls.insecure=true"),
        ("bench", "--duration", "2h"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_ends_with_two_and_words(arguments: tuple[str, ...], run: Run) -> None:
    """Nothing is tried, and standard output stays empty."""
    result = run(*arguments)
    assert (Exit.USAGE, "") == (result.exit_code, result.stdout)
    assert result.stderr


def test_a_value_that_begins_with_a_dash_is_explained(run: Run) -> None:
    """The usual way is not known to everybody."""
    assert "write -- before it" in run("put", "offset", "-x").stderr
