"""The address book: who is dialed where, what is remembered, and what a node that is not ready answers."""

from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace

import pytest

from raftcache.errors import RaftCacheError, Unavailable
from raftcache.ids import ClusterId, Index, NodeId, ReplicaId, ShardId, Term
from raftcache.node.directory import Directory, DirectoryNode
from raftcache.raft.messages import Configuration, InstallSnapshot, SnapshotMeta
from raftcache.server.peer_handler import HostHandler
from raftcache.storage.data_directory import DataDirectory
from raftcache.storage.simulated_disk import SimulatedDisk

TWO = NodeId(2)
MOVED = ("10.0.0.2", 7401)


@dataclass
class FakeNetwork:
    """Says who is connected."""

    up: set[NodeId] = field(default_factory=set)

    def connected(self, node: NodeId) -> bool:
        return node in self.up


def handler(disk: SimulatedDisk | None = None, *, listed: str = "10.0.0.9:7401") -> tuple[HostHandler, FakeNetwork]:
    disk = disk or SimulatedDisk(Random(1))
    data = DataDirectory.open(disk, "data", process_id=1, new_node_id=lambda: NodeId(1))
    made = HostHandler(data)
    network = FakeNetwork()
    entry = DirectoryNode(TWO, "n2", listed, listed, listed)
    engine = SimpleNamespace(directory=Directory(ClusterId(5), 1, {TWO: entry}))
    made.host = SimpleNamespace(engine=engine, network=network)  # type: ignore[assignment]
    return made, network


def test_unknown_node_has_no_address() -> None:
    """Nobody is dialed by guess."""
    made, _ = handler()
    assert None is made.address_of(NodeId(7))


def test_listed_address_serves_until_the_node_says_another() -> None:
    """What it says itself is newer, as a rule."""
    made, _ = handler()
    assert ("10.0.0.9", 7401) == made.address_of(TWO)
    made.on_connected(TWO, MOVED)
    assert MOVED == made.address_of(TWO)


def test_node_that_moved_while_nobody_could_hear_it_is_found_by_the_directory() -> None:
    """What was heard leads nowhere: both addresses are dialed in turns until the node is met, and then only the good one."""
    made, network = handler()
    made.on_connected(TWO, MOVED)
    dialed = [made.address_of(TWO) for _ in range(4)]
    assert [MOVED, ("10.0.0.9", 7401), MOVED, ("10.0.0.9", 7401)] == dialed
    network.up.add(TWO)
    assert [MOVED, MOVED] == [made.address_of(TWO) for _ in range(2)]


def test_ipv6_addresses_come_back_as_they_were() -> None:
    """From a greeting into the book, from the book to a dial, over a restart."""
    disk = SimulatedDisk(Random(1))
    made, _ = handler(disk, listed="[fd00::9]:7401")
    assert ("fd00::9", 7401) == made.address_of(TWO)
    made.on_connected(TWO, ("fd00::2", 7401))
    assert ("fd00::2", 7401) == made.address_of(TWO)
    disk.crash(Random(1), power_cut=True)
    again, _ = handler(disk)
    assert ("fd00::2", 7401) == again.address_of(TWO)


def test_newest_life_of_a_node_survives_a_restart() -> None:
    """Pitfall 37: a peer that was restored from an older copy is known for what it is, even by a node that restarted since."""
    disk = SimulatedDisk(Random(1))
    made, _ = handler(disk)
    made.incarnations[TWO] = 12
    made.on_connected(TWO, MOVED)
    disk.crash(Random(1), power_cut=True)
    again, _ = handler(disk)
    assert {TWO: 12} == again.incarnations


def test_book_is_written_only_for_news() -> None:
    """Connections come and go; the disk hears of addresses and of new lives."""
    disk = SimulatedDisk(Random(1))
    made, _ = handler(disk)
    made.incarnations[TWO] = 1
    made.on_connected(TWO, MOVED)
    before = disk.operations
    for _ in range(5):
        made.on_connected(TWO, MOVED)
    assert before == disk.operations
    made.incarnations[TWO] = 2
    made.on_connected(TWO, MOVED)
    assert before < disk.operations


def test_nodes_that_left_are_forgotten_and_their_lives_are_not() -> None:
    """The book is bounded by the cluster; a restored copy of a node that left is refused all the same."""
    made, _ = handler()
    made.incarnations[NodeId(8)] = 3
    made.on_connected(NodeId(8), MOVED)
    made.on_connected(TWO, MOVED)
    assert None is made.address_of(NodeId(8))
    assert 3 == made.incarnations[NodeId(8)]


def test_full_disk_costs_no_more_than_the_hint() -> None:
    """The book is not kept, the connection is."""
    disk = SimulatedDisk(Random(1))
    made, _ = handler(disk)
    disk.capacity_bytes = disk.used_bytes()
    made.on_connected(TWO, MOVED)
    assert MOVED == made.address_of(TWO)


def test_node_that_is_not_built_yet_answers_and_takes_no_snapshot() -> None:
    """Whoever asks while it starts is not left to his deadline."""
    made, _ = handler()
    made.host = None
    answers: list[bytes] = []
    made.on_request(TWO, 1, b"anything", answers.append)
    assert [b""] == answers
    made.on_messages(TWO, [])
    made.on_disconnected(TWO)
    meta = SnapshotMeta(Index(1), Term(1), Configuration())
    message = InstallSnapshot(ReplicaId(1), ReplicaId(2), Term(1), meta)
    with pytest.raises(Unavailable):
        made.on_snapshot(TWO, ShardId(1), message, size=1, digest=b"")
    assert issubclass(Unavailable, RaftCacheError)
