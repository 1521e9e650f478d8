"""What an operator reads when a node does not start: exit status, and a sentence that names the thing and says what to do.

All cases are started at the same time, beside a node that holds its ports and its directory; each test reads what its own
one came to.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from crc32c import crc32c

from raftcache.admin.v1 import admin_pb2
from tests.support.cluster import Node, free_ports, running, wait_until

UNWRITABLE = "/sys"
"""Where not even root makes a directory; for everybody else the test takes the write permission away from one."""


@dataclass(frozen=True)
class Case:
    """A node that must not start. `prepare` makes it so; it gets the node, its neighbour, and the neighbour's old data."""

    prepare: Callable[[Node, Node, Path], None]
    words: tuple[str, ...]
    """Of the message."""
    status: int = 1


def _config_file(text: str) -> Callable[[Node, Node, Path], None]:
    def prepare(node: Node, neighbour: Node, old: Path) -> None:
        path = node.directory / "raftcache.toml"
        path.write_text(text)
        node.arguments += ["--config", str(path)]

    return prepare


def _settings(**settings: str) -> Callable[[Node, Node, Path], None]:
    def prepare(node: Node, neighbour: Node, old: Path) -> None:
        for name, value in settings.items():
            node.settings[name.replace("__", ".")] = value.format(node=node, neighbour=neighbour)

    return prepare


def _unwritable(node: Node, neighbour: Node, old: Path) -> None:
    parent = Path(UNWRITABLE)
    if os.geteuid() != 0:
        parent = node.directory / "read-only"
        parent.mkdir(mode=0o500)
    node.settings["node.data_dir"] = str(parent / "raftcache-test")


def _foreign(node: Node, neighbour: Node, old: Path) -> None:
    node.data.mkdir()
    (node.data / "thesis.odt").write_text("somebody's work")


def _newer(node: Node, neighbour: Node, old: Path) -> None:
    shutil.copytree(old, node.data)
    path = node.data / "identity.json"
    facts = json.loads(path.read_text())
    del facts["crc32c"]
    facts["format_version"] = 99
    facts["crc32c"] = crc32c(json.dumps(facts, sort_keys=True).encode())
    path.write_text(json.dumps(facts))


def _without(part: str) -> Callable[[Node, Node, Path], None]:
    def prepare(node: Node, neighbour: Node, old: Path) -> None:
        shutil.copytree(old, node.data)
        path = node.data / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return prepare


def _log_of_another(node: Node, neighbour: Node, old: Path) -> None:
    """The identity says one node, the log another: half of a directory was copied."""
    shutil.copytree(old, node.data)
    path = node.data / "identity.json"
    facts = json.loads(path.read_text())
    del facts["crc32c"]
    facts["node"] += 1
    facts["crc32c"] = crc32c(json.dumps(facts, sort_keys=True).encode())
    path.write_text(json.dumps(facts))


CASES = {
    "unknown setting in the file": Case(
        _config_file("[limits]\nvalue_byte_max = 5\n"),
        ("limits.value_byte_max", "raftcache.toml", "there is no such setting", "did you mean value_bytes_max?"),
        status=2,
    ),
    "unknown setting on the command line": Case(
        _settings(raft__tick="5"), ("raft.tick", "command line", "there is no such setting"), status=2
    ),
    "not loopback, no TLS": Case(
        _settings(listen__client="0.0.0.0:{node.client_port}", listen__advertise_client="{node.address}"),
        ("listen.client", "not a loopback address", "tls.client_cert", "tls.insecure"),
        status=2,
    ),
    "directory that cannot be written": Case(_unwritable, ("data directory", "cannot be used")),
    "directory of somebody else": Case(_foreign, ("not a raftcache data directory", "thesis.odt", "Name an empty")),
    "directory in use": Case(
        _settings(node__data_dir="{neighbour.data}"), ("in use by the process with id {neighbour.process.pid}",)
    ),
    "directory of a newer release": Case(_newer, ("format 99", "up to 1", "start the newer release again")),
    "directory without its log": Case(_without("log"), ("log", "raftcache:")),
    "log of another node": Case(_log_of_another, ("log", "node")),
    "client port in use": Case(
        _settings(listen__client="{neighbour.address}"), ("{neighbour.address}", "in use by another process?")
    ),
    "peer port in use": Case(
        _settings(listen__peer="{neighbour.peer_address}"), ("{neighbour.peer_address}", "in use by another process?")
    ),
    "admin port in use": Case(
        _settings(listen__admin="{neighbour.admin_address}"),
        ("{neighbour.admin_address}", "listen.admin", "in use by another process?"),
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What became of all cases."""

    neighbour: Node
    nodes: dict[str, Node]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """Every case started, and ended; the neighbour still runs."""
    root = tmp_path_factory.mktemp("refused")
    with running(root / "cluster", nodes=1, shards=1) as cluster:
        neighbour = cluster.nodes[0]
        old = root / "old"
        # A copy as a crash leaves it: nothing is written to it afterwards.
        neighbour.kill()
        shutil.copytree(neighbour.data, old)
        cluster.restart(neighbour)
        nodes = {}
        for number, (name, case) in enumerate(CASES.items()):
            client, peer, admin = free_ports(3)
            node = nodes[name] = Node(f"case-{number}", root / f"case-{number}", client, peer, admin)
            node.directory.mkdir()
            case.prepare(node, neighbour, old)
        try:
            for node in nodes.values():
                node.start(wait=False)
            for name, node in nodes.items():
                wait_until(lambda node=node: not node.running, f"the node to refuse: {name}")  # type: ignore[misc]
            yield Outcome(neighbour, nodes)
        finally:
            for node in nodes.values():
                node.kill()


@pytest.mark.parametrize("name", CASES)
def test_node_that_cannot_start_says_why_and_what_to_do(outcome: Outcome, name: str) -> None:
    """A status that a supervisor understands, one sentence for a person, and nothing that looks like a crash."""
    node, case = outcome.nodes[name], CASES[name]
    said = node.tail(1000)
    assert case.status == node.exit_status, said
    sentence = next(line for line in said.splitlines() if line.startswith("raftcache: "))
    for words in case.words:
        assert words.format(neighbour=outcome.neighbour) in said, said
    assert "Traceback" not in said, said
    assert len(sentence) < 600, sentence


def test_files_of_somebody_else_are_left_alone(outcome: Outcome) -> None:
    """A refused directory has nothing in it but the lock that was taken to look."""
    data = outcome.nodes["directory of somebody else"].data
    assert {"thesis.odt"} == {path.name for path in data.iterdir()} - {"lock"}


def test_neighbour_is_none_the_worse(outcome: Outcome) -> None:
    """Whoever holds a directory and its ports goes on, whatever is tried beside it."""
    assert outcome.neighbour.running
    status, _ = outcome.neighbour.http("/readyz")
    assert 200 == status


def test_node_of_another_cluster_is_not_taken_in(outcome: Outcome, tmp_path: Path) -> None:
    """`init` and `join` refuse a member of another cluster, name both clusters, and say what to do."""
    with running(tmp_path, nodes=1, shards=1) as other:
        stranger = outcome.neighbour
        request = admin_pb2.JoinNodeRequest(peer_address=stranger.peer_address)
        with pytest.raises(grpc.RpcError) as refused:
            other.admin(other.nodes[0]).JoinNode(request, timeout=10)
        assert grpc.StatusCode.FAILED_PRECONDITION is refused.value.code()
        details = refused.value.details() or ""
        assert str(other.info().cluster) in details, details
        assert "empty data directory" in details, details

        fresh = other.add_node()
        fresh.start()
        init = admin_pb2.InitRequest(peer_addresses=[fresh.peer_address, stranger.peer_address], shards=1)
        with pytest.raises(grpc.RpcError) as refused:
            other.admin(fresh).Init(init, timeout=10)
        assert grpc.StatusCode.FAILED_PRECONDITION is refused.value.code()
        assert stranger.peer_address in (refused.value.details() or "")
        assert "belongs to cluster" in (refused.value.details() or "")
