"""When checkpoints are taken, what they let go of, and how snapshots come and go."""

import itertools
from dataclasses import replace
from typing import Any

import pytest

from raftcache.errors import RaftCacheError, StorageFull
from raftcache.ids import CATALOG_SHARD, Index, NodeId, ReplicaId, ShardId, Term
from raftcache.kv.slots import slot_of
from raftcache.node.settings import MS
from raftcache.raft.messages import AppendReply, Configuration, InstallSnapshot, Message, SnapshotMeta
from raftcache.storage.checkpoint_result import OnCheckpoint
from raftcache.storage.checkpoints import Outgoing
from raftcache.storage.state import CheckpointDamaged, CheckpointFailed, StateLost, StateStore
from raftcache.storage.wal import ReplicaWrite, WalConfig
from tests.node import nodes as nodes_module
from tests.node.nodes import SHARD, Node, Nodes

Begun = list[tuple[SnapshotMeta, OnCheckpoint]]


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Begun:
    """Checkpoints that were begun, with what ends them: by itself none does."""
    begun: Begun = []
    monkeypatch.setattr(StateStore, "begin_checkpoint", lambda self, meta, done: begun.append((meta, done)))
    return begun


def others(nodes: Nodes, node: Node) -> list[Node]:
    return [other for other in nodes if other is not node]


def test_checkpoints_are_taken_by_log_bytes_and_let_go_of_the_log() -> None:
    """The log stays short, and the trailing part is kept for followers that were away for a moment."""
    nodes = Nodes(3, log_bytes_per_checkpoint=2_000, trailing_log_bytes=500)
    leader = nodes.lead()
    for number in range(100):
        nodes.put(leader, b"k%d" % number, b"x" * 50)
        nodes.tick()
    for node in nodes:
        log = node.replica().log
        assert node.engine.checkpointing.checkpoints >= 3
        assert log.last_index() - log.start_index < 80
        newest = log.snapshot()
        assert newest is not None
        assert log.start_index < newest.index, "some is kept below the checkpoint"


def test_log_past_its_limit_keeps_no_trailing_part() -> None:
    """What holds the oldest segments goes first; kept for laggards, it would pin them for ever."""
    nodes = Nodes(1, log_bytes_per_checkpoint=1 << 30, log_bytes_max=1, trailing_log_bytes=1 << 30)
    node = nodes.lead()
    for number in range(10):
        nodes.put(node, b"k%d" % number, b"x" * 50)
        nodes.tick()
    nodes.tick(5)
    newest = node.replica().log.snapshot()
    assert newest is not None
    assert newest.index == node.replica().log.start_index


def test_one_checkpoint_at_a_time(begun: Begun) -> None:
    """Each costs a copy and a verification."""
    nodes = Nodes(1, shards=3, log_bytes_per_checkpoint=1)
    node = nodes.lead()
    for shard in (ShardId(2), ShardId(3)):
        nodes.lead(shard)
    for number in range(50):
        nodes.put(node, b"k%d" % number)
    nodes.tick(20)
    assert 1 == len(begun), "the others wait for the one that never ends here"


def two_due(**settings: int) -> tuple[Nodes, Node]:
    """A node with two shards that have both more log than calls for a checkpoint."""
    nodes = Nodes(1, shards=2, log_bytes_per_checkpoint=2_000, **settings)
    node = nodes.lead()
    nodes.lead(ShardId(2))
    while min(node.replica(shard).checkpoint_log_bytes for shard in (SHARD, ShardId(2))) < 2_000:
        for number in range(50):
            nodes.put(node, b"k%d" % number, b"x" * 50)
    return nodes, node


def test_a_node_rests_twice_as_long_as_its_checkpoint_took(begun: Begun) -> None:
    """Where a checkpoint takes long the next is not begun at once, however much log there is."""
    nodes, _ = two_due()
    nodes.tick()
    ((meta, done),) = begun
    nodes.tick(10)
    done(CheckpointFailed(meta, StorageFull("no room")))
    nodes.tick(19)
    assert 1 == len(begun)
    nodes.tick(1)
    assert 2 == len(begun)


def test_a_log_that_is_too_long_is_not_rested_for(begun: Begun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of the disk stands above the rest."""
    nodes, node = two_due()
    nodes.tick()
    ((meta, done),) = begun
    nodes.tick(10)
    done(CheckpointFailed(meta, StorageFull("no room")))
    nodes.tick()
    assert 1 == len(begun)
    node.engine.settings = replace(node.engine.settings, log_bytes_max=1)
    (other,) = {node.replica().replica_id, node.replica(ShardId(2)).replica_id} - {*meta.configuration.voters}
    monkeypatch.setattr(node.engine.wal, "pinned_by", lambda: other)
    nodes.tick()
    assert 2 == len(begun)


@pytest.mark.parametrize("restarted", [False, True])
def test_idle_shards_do_not_hold_the_log_of_a_busy_one(restarted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold its oldest segment: by what is kept for laggards, or by the empty entry of an election. Neither grows, so nothing
    else would ever make them let go."""
    small = {"batch_bytes_max": 4 << 10, "cache_bytes_max": 64 << 10, "pinned_bytes_max": 4 << 10}
    monkeypatch.setattr(nodes_module, "WalConfig", lambda segment_bytes: WalConfig(segment_bytes=8 << 10, **small))
    limits = {"log_bytes_per_checkpoint": 8 << 10, "trailing_log_bytes": 4 << 10, "log_bytes_max": 64 << 10}
    nodes = Nodes(1, shards=8, disk_free_bytes_min=0, **limits)
    node = nodes.lead()
    keys: dict[ShardId | None, bytes] = {}
    for number in range(200):
        key = b"k%d" % number
        keys.setdefault(node.engine.owner(slot_of(key)), key)
    assert 8 == len(keys)
    for shard, key in keys.items():
        assert shard is not None
        nodes.lead(shard)
        for _ in range(4 if restarted else 18):
            nodes.put(node, key, bytes(512))
        nodes.tick(10)
    if restarted:
        node.stop()
        node.start()
        nodes.run()
        for shard in keys:
            assert shard is not None
            nodes.lead(shard)
    for number in range(600):
        nodes.put(node, keys[SHARD], bytes(512))
        nodes.tick()
        assert number < 100 or node.engine.wal.log_bytes <= 96 << 10, f"after {number} puts to one shard"


def test_a_compaction_that_waits_makes_way_for_the_next() -> None:
    """On a full disk one comes with every tick, and none can be written."""
    nodes = Nodes(1)
    commit = nodes.lead().engine.commit
    for index in range(1, 100):
        commit.write_later(ReplicaWrite(ReplicaId(1), compact_to=Index(index)))
    assert [99] == [write.compact_to for write in commit._side_writes.values()]


def test_one_replica_that_lets_go_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its segments go with the next `collect` only; until then the others need not give up what they keep for laggards."""
    monkeypatch.setattr(nodes_module, "WalConfig", lambda segment_bytes: WalConfig(segment_bytes=8 << 10))
    nodes = Nodes(1, shards=4, trailing_log_bytes=2 << 10, log_bytes_max=1 << 20, disk_free_bytes_min=0)
    node = nodes.lead()
    keys: dict[ShardId | None, bytes] = {}
    for number in range(200):
        keys.setdefault(node.engine.owner(slot_of(b"k%d" % number)), b"k%d" % number)
    for number in range(4):
        nodes.lead(ShardId(number + 1))
    engine, wal = node.engine, node.engine.wal
    settings = engine.settings

    def checkpoint(*shards: ShardId) -> None:
        for shard in shards:
            engine.checkpointing.begin(node.replica(shard))
            nodes.run()

    # Nothing is held to begin with.
    checkpoint(CATALOG_SHARD, *(ShardId(number + 1) for number in range(4)))
    engine.settings = replace(settings, log_bytes_max=1)
    nodes.tick(20)
    engine.settings = settings
    # Then one shard holds all that another writes, and two have only just been written to.
    nodes.put(node, keys[SHARD], bytes(100))
    for _ in range(200):
        nodes.put(node, keys[ShardId(2)], bytes(512))
    late = (ShardId(3), ShardId(4))
    for shard in late:
        nodes.put(node, keys[shard], bytes(100))
    checkpoint(SHARD, ShardId(2), *late)
    kept = [node.replica(shard).log.start_index for shard in late]
    engine.settings = replace(settings, log_bytes_max=wal.log_bytes - 1)
    with monkeypatch.context() as patch:
        patch.setattr(engine.commit, "keep_house", lambda: None)
        nodes.tick(10)
        assert wal.bytes_needed() < wal.log_bytes, "one let go, and nothing is collected yet"
    assert kept == [node.replica(shard).log.start_index for shard in late]
    nodes.tick(10)
    assert wal.log_bytes <= engine.settings.log_bytes_max // 2


def test_what_was_written_before_a_clean_restart_counts() -> None:
    """It is not replayed now, but it would be after a crash: a node that restarts often takes its checkpoints all the same."""
    nodes = Nodes(1, log_bytes_per_checkpoint=20_000)
    node = nodes.lead()
    for _ in range(6):
        for number in range(60):
            nodes.put(node, b"k%d" % number, b"x" * 50)
        nodes.tick(3)
        assert node.replica().log.data_bytes <= 20_000
        node.stop()
        node.start()
        nodes.run()
        nodes.lead()
    assert node.replica().log.start_index > 0


def test_replicas_of_a_group_take_their_checkpoints_one_after_the_other() -> None:
    """A majority has its disks for the log meanwhile: the nodes are an eighth of the log apart."""
    nodes = Nodes(3, log_bytes_per_checkpoint=8_000)
    leader = nodes.lead()
    first: list[int] = []
    for number in range(400):
        nodes.put(leader, b"k%d" % number, b"x" * 50)
        nodes.tick()
        done = sum(node.engine.checkpointing.checkpoints > 0 for node in nodes)
        assert len(first) <= done <= len(first) + 1, "two nodes began theirs together"
        if done > len(first):
            first.append(number)
        if done == 3:
            break
    assert 3 == len(first)
    assert min(later - earlier for earlier, later in itertools.pairwise(first)) >= 5


def test_no_sync_holds_the_loop_up_while_a_checkpoint_is_written(begun: Begun) -> None:
    """The disk is busy with it, and a sync may take a tenth of a second: it is a thread's, until the checkpoint has ended."""
    nodes = Nodes(1, log_bytes_per_checkpoint=500)
    node = nodes.lead()
    node.scheduler.hold = True
    nodes.put(node, b"k")
    assert not node.scheduler.blocking, "a fast disk is synced on the loop"
    node.scheduler.hold = False
    for _ in range(20):
        nodes.put(node, b"k")
        nodes.tick()
    assert 1 == len(begun), "it has begun, and has not ended"
    node.scheduler.hold = True
    nodes.put(node, b"k")
    assert 1 == len(node.scheduler.blocking)
    node.scheduler.hold = False
    nodes.run()
    ((meta, done),) = begun
    done(CheckpointFailed(meta, StorageFull("no room")))
    node.scheduler.hold = True
    nodes.put(node, b"k")
    assert not node.scheduler.blocking


def test_checkpoint_that_does_not_add_up_condemns_the_live_state() -> None:
    """It is also the scrub: the replica rebuilds itself, be it the leader."""
    nodes = Nodes(3)
    leader = nodes.lead()
    nodes.put(leader, b"k")
    replica = leader.replica()
    meta = SnapshotMeta(replica.raft.applied, Term(1), Configuration())
    leader.engine.checkpointing._on_checkpoint(replica, 0, CheckpointDamaged(meta, "a hash is wrong"))
    nodes.run()
    assert leader.replica() is not replica
    nodes.until(nodes.level, "the rebuilt replica to be level")


def test_commit_that_fails_before_a_checkpoint_rebuilds_that_replica_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's word is gone; checkpoints of the others go on."""
    nodes = Nodes(1, shards=2)
    node = nodes.lead()
    nodes.lead(ShardId(2))
    nodes.put(node, b"k")
    replica, commit = node.replica(), StateStore.commit

    def fail(self: StateStore) -> None:
        if self is replica.state:
            raise StateLost("a full map")
        commit(self)

    monkeypatch.setattr(StateStore, "commit", fail)
    node.engine.checkpointing.begin(replica)
    nodes.run()
    assert node.replica() is not replica
    second = node.replica(ShardId(2))
    node.engine.checkpointing.begin(second)
    nodes.run()
    newest = second.log.snapshot()
    assert newest is not None
    assert newest.index == second.raft.applied


def test_snapshot_of_what_is_known_or_of_an_old_leader_is_refused() -> None:
    """Before its bytes are received."""
    nodes = Nodes(3)
    leader = nodes.lead()
    nodes.put(leader, b"k")
    nodes.tick(2)
    follower = others(nodes, leader)[0]
    replica = follower.replica()
    voters = Configuration(voters=replica.raft.configuration.voters)
    sender = leader.replica().replica_id

    def offer(*, index: int, term: int, to: int | None = None, shard: ShardId = SHARD) -> None:
        meta = SnapshotMeta(Index(index), Term(1), voters)
        message = InstallSnapshot(type(sender)(to or replica.replica_id), sender, Term(term), meta)
        follower.engine.checkpointing.receive(leader.node, shard, message, size=10, digest=b"")

    for refused in (
        {"index": 1, "term": replica.raft.term},
        {"index": 999, "term": replica.raft.term - 1},
        {"index": 999, "term": replica.raft.term, "to": 77},
        {"index": 999, "term": replica.raft.term, "shard": CATALOG_SHARD},
    ):
        with pytest.raises(RaftCacheError):
            offer(**refused)  # type: ignore[arg-type]
    offer(index=999, term=replica.raft.term)


def test_snapshot_that_is_damaged_on_its_way_is_not_installed_and_comes_again() -> None:
    """Neither the core nor the state hears of it; Raft asks again, and the next one is good."""
    nodes = Nodes(3)
    leader = nodes.lead()
    victim = others(nodes, leader)[0]
    victim.crash()
    for number in range(5):
        nodes.put(leader, b"k%d" % number)
    leader.engine.checkpointing.begin(leader.replica())
    nodes.run()
    nodes.tick(3)
    nodes.hold_snapshots = True
    victim.start()
    nodes.until(lambda: bool(nodes.held_snapshots), "a snapshot to be on its way")
    chunk = Outgoing.chunk
    with pytest.MonkeyPatch.context() as patch:

        def flipped(self: Outgoing) -> bytes:
            data = bytearray(chunk(self))
            if len(data) > 40:
                data[-20] ^= 4
            return bytes(data)

        patch.setattr(Outgoing, "chunk", flipped)
        for start in nodes.held_snapshots:
            start()
        nodes.run()
    assert "snapshot_installed" not in victim.observer.names()
    nodes.hold_snapshots = False
    nodes.until(nodes.level, "the next snapshot")
    assert "snapshot_installed" in victim.observer.names()


def test_snapshots_on_their_way_are_bounded_and_nobody_is_forgotten() -> None:
    """At most two leave a node at once; the third follower is served when one has arrived."""
    nodes = Nodes(3, shards=3, snapshots_out_max=1)
    leader = nodes[1]
    for shard in (ShardId(1), ShardId(2), ShardId(3)):
        nodes.make_leader(leader, shard)
    victim = nodes[2]
    victim.crash()
    for shard in (ShardId(1), ShardId(2), ShardId(3)):
        for number in range(200):
            nodes.put(leader, b"%d" % number, timeout_ns=10_000 * MS, run=False)
        nodes.run()
        leader.engine.checkpointing.begin(leader.replica(shard))
        nodes.run()
    nodes.tick(3)
    nodes.hold_snapshots = True
    victim.start()
    nodes.tick(20)
    assert 1 == len(leader.engine.checkpointing._sending)
    nodes.hold_snapshots = False
    for start in nodes.held_snapshots:
        start()
    nodes.until(lambda: all(nodes.level(ShardId(s)) for s in (1, 2, 3)), "all to be level", ticks=400)


def test_log_after_a_snapshot_on_its_way_is_kept() -> None:
    """Compacted past it, its receiver would need the next snapshot, and under load never come to an end."""
    nodes = Nodes(3, trailing_log_bytes=0)
    leader = nodes.lead()
    follower = others(nodes, leader)[0]

    def write_and_checkpoint() -> None:
        for number in range(20):
            nodes.put(leader, b"k%d" % number, bytes(100))
        leader.engine.checkpointing.begin(leader.replica())
        nodes.run()
        nodes.tick()

    follower.crash()
    write_and_checkpoint()
    nodes.hold_snapshots = True
    follower.start()
    nodes.until(lambda: bool(nodes.held_snapshots), "a snapshot to be on its way")
    sent = leader.replica().log.snapshot()
    assert sent is not None
    for _ in range(3):
        write_and_checkpoint()
    assert leader.replica().log.start_index == sent.index
    nodes.hold_snapshots = False
    for start in nodes.held_snapshots:
        start()
    nodes.until(lambda: nodes.level(SHARD), "the follower to be level")
    assert 1 == leader.engine.checkpointing.snapshots_sent
    write_and_checkpoint()
    assert leader.replica().log.start_index > sent.index


def test_snapshot_whose_acknowledgement_was_lost_is_not_offered_for_ever() -> None:
    """Found by the simulator: the follower has it, and neither its acknowledgement nor the end of the transfer reaches the
    leader, whose log begins right after it. The refusal of the next offer tells how far the follower is."""
    nodes = Nodes(3)
    leader = nodes.lead()
    follower = others(nodes, leader)[0]
    follower.crash()
    for number in range(5):
        nodes.put(leader, b"k%d" % number)
    leader.engine.checkpointing.begin(leader.replica())
    nodes.run()
    nodes.tick(3)
    follower.start()
    send = follower.network.send

    def acknowledgements_are_lost(node: NodeId, shard: ShardId, message: Message) -> None:
        if not isinstance(message, AppendReply) or message.rejected:
            send(node, shard, message)

    transfer = leader.network.send_snapshot

    def outcome_is_lost(*args: Any) -> None:
        transfer(*args[:-1], lambda ok: args[-1](False))

    follower.network.send = acknowledgements_are_lost  # type: ignore[method-assign]
    leader.network.send_snapshot = outcome_is_lost  # type: ignore[method-assign]
    nodes.until(lambda: "snapshot_installed" in follower.observer.names(), "the snapshot to be installed")
    follower.network.send = send  # type: ignore[method-assign]
    leader.network.send_snapshot = transfer  # type: ignore[method-assign]
    nodes.until(
        lambda: leader.replica().raft.progress[follower.replica().replica_id].match == leader.replica().raft.last_index,
        "the leader to know",
    )
    assert 1 == follower.observer.names().count("snapshot_installed")
