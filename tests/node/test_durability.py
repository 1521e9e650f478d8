"""What becomes durable, when, and what a slow or a full disk does to it."""

import contextlib
import itertools
from collections.abc import Iterator

import pytest

from raftcache.errors import OutcomeUnknown, StorageFull
from raftcache.ids import Index, NodeId, ShardId, Term
from raftcache.kv.operations import (
    Delete,
    GetResult,
    Increment,
    OpenSession,
    SessionResult,
    SessionStamp,
    WriteResult,
)
from raftcache.kv.slots import slot_of
from raftcache.node.group_commit import READIES_HELD_MAX
from raftcache.node.settings import MS
from raftcache.node.status import cluster_info, local_status
from raftcache.raft.core import Raft
from raftcache.raft.messages import AppendReply, Ready, VoteReply
from raftcache.storage.simulated_disk import SimulatedCrash
from raftcache.storage.state import StateStore
from raftcache.storage.wal import ReplicaWrite, Wal
from tests.node.nodes import SHARD, Asked, Node, Nodes, administer, at_end_nothing_in_flight


def others(nodes: Nodes, node: Node) -> list[Node]:
    return [other for other in nodes if other is not node]


def slow(count: int = 1, **options: object) -> Nodes:
    """Nodes that sync in a thread."""
    return Nodes(count, sync_inline_below_ns=-1, **options)  # type: ignore[arg-type]


# --- The order of things ------------------------------------------------------------------------------------------


def test_readies_are_persisted_in_the_order_in_which_they_were_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a sync runs in its thread more of them gather; each is reported after the sync that covers it, in order."""
    nodes = slow()
    node = nodes.lead()
    synced, persisted, reported = [0], Raft.persisted, []
    sync = Wal.sync

    def count(self: Wal) -> None:
        sync(self)
        synced[0] += 1

    def report(self: Raft, ready: Ready) -> None:
        reported.append((ready.number, synced[0]))
        persisted(self, ready)

    monkeypatch.setattr(Wal, "sync", count)
    monkeypatch.setattr(Raft, "persisted", report)
    node.scheduler.hold = True
    for number in range(5):
        nodes.put(node, b"k%d" % number)
        assert all(each <= synced[0] for _, each in reported)
    assert 1 == len(node.scheduler.blocking), "one sync at a time"
    before = len(reported)
    node.scheduler.step_blocking()
    assert before == len(reported), "nothing is reported in the thread"
    node.scheduler.hold = False
    nodes.run()
    numbers = [number for number, _ in reported]
    assert sorted(numbers) == numbers
    assert len(numbers) > before


def test_no_promise_leaves_while_its_sync_is_in_flight() -> None:
    """A follower whose disk hangs acknowledges nothing and votes for nobody, and answers heartbeats all the same."""
    nodes = slow(3)
    leader = nodes.lead()
    follower = others(nodes, leader)[0]
    nodes.run()
    follower.scheduler.hold = True
    follower.network.sent.clear()
    nodes.put(leader, b"k")
    nodes.tick(5)
    sent = [type(message).__name__ for _, shard, message in follower.network.sent if shard == SHARD]
    assert "HeartbeatReply" in sent
    assert "AppendReply" not in sent
    follower.scheduler.hold = False
    nodes.run()
    promises = [m for _, s, m in follower.network.sent if s == SHARD and isinstance(m, AppendReply)]
    assert promises


def test_slow_disk_stops_neither_heartbeats_nor_the_other_shards_reads() -> None:
    """Pitfall 43: while one sync takes for ever, the loop goes on: nobody is voted out, reads are answered."""
    nodes = slow(3, shards=2)
    leader = nodes.lead()
    nodes.make_leader(leader, ShardId(2))
    nodes.put(leader, b"k")
    nodes.run()
    term = leader.replica().raft.term
    leader.scheduler.hold = True
    write = nodes.put(leader, b"other", timeout_ns=30_000 * MS)
    nodes.tick(30)
    assert leader.leads()
    assert term == leader.replica().raft.term
    # The followers have it on two disks, and that is a majority: nobody waits for the slow one.
    assert isinstance(nodes.get(leader, b"k").result, GetResult)
    leader.scheduler.hold = False
    nodes.run()
    assert isinstance(write.result, WriteResult)


def test_writes_that_come_during_a_sync_are_one_entry_when_it_ends() -> None:
    """A group of their own for each would cost every node a sync each."""
    nodes = slow(3)
    leader = nodes.lead()
    nodes.run()
    leader.scheduler.hold = True
    first = nodes.put(leader, b"k0")
    appended = leader.replica().raft.log.last_index
    later = [nodes.put(leader, b"k%d" % number) for number in range(1, 5)]
    assert appended == leader.replica().raft.log.last_index
    leader.scheduler.hold = False
    nodes.run()
    assert isinstance(first.result, WriteResult)
    assert {appended + 1} == {asked.replies[0].index for asked in later}


def test_sync_that_ends_when_the_node_has_closed_is_followed_by_nothing() -> None:
    """What waits for the log to be free must not touch one that is closed."""
    nodes = slow()
    node = nodes.lead()
    node.scheduler.hold = True
    nodes.put(node, b"k")
    ran: list[int] = []
    node.engine.commit.between_syncs("late", lambda: ran.append(1))
    node.engine.close()
    while node.scheduler.step():
        pass
    assert [] == ran


def test_housekeeping_comes_to_its_turn_between_two_syncs_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is always a next group to sync; what needs the log to itself gets it all the same, and does not pile up."""
    nodes = slow()
    node = nodes.lead()
    collected = []
    collect = Wal.collect
    monkeypatch.setattr(Wal, "collect", lambda self: (collected.append(1), collect(self))[1])
    node.scheduler.hold = True
    for _ in range(100):
        # Whenever a sync is done, the next group is there already.
        nodes.put(node, b"k", run=False)
        node.clock.advance_ns(nodes.settings.tick_ns)
        node.engine.tick()
        nodes.run()
        if node.scheduler.blocking:
            node.scheduler.step_blocking()
        nodes.run()
        assert len(node.engine.commit._between) <= 3
    assert 5 <= len(collected) <= 10


def test_mark_that_vouches_for_the_last_batch_is_made_off_the_loop_on_a_slow_disk() -> None:
    """It syncs three files: on the loop it would hold up the heartbeats once a second."""
    nodes = slow()
    node = nodes.lead()
    nodes.put(node, b"k")
    node.scheduler.hold = True
    nodes.tick(10)
    assert 1 == len(node.scheduler.blocking)
    assert node.engine.commit.syncing
    write = nodes.put(node, b"meanwhile")
    assert [] == write.replies
    node.scheduler.hold = False
    nodes.run()
    assert isinstance(write.result, WriteResult)


def test_shutdown_waits_for_the_sync_in_flight() -> None:
    """Nothing writes to the log beside a sync, not even its last words."""
    nodes = slow()
    node = nodes.lead()
    node.scheduler.hold = True
    write = nodes.put(node, b"k")
    assert node.engine.commit.syncing
    node.stop()
    assert write.replies
    node.start()
    nodes.lead()
    assert isinstance(nodes.get(node, b"k").result, GetResult)


def test_readies_without_promises_are_not_kept_while_a_sync_is_in_flight() -> None:
    """Heartbeats go on for as long as the disk hangs; nothing of them gathers."""
    nodes = slow(3)
    leader = nodes.lead()
    nodes.run()
    leader.scheduler.hold = True
    nodes.put(leader, b"k", timeout_ns=600_000 * MS)
    nodes.tick(200)
    assert len(leader.engine.commit._group) < 10


@pytest.mark.parametrize("inline", [True, False])
def test_group_of_one_loses_nothing_to_a_power_cut(inline: bool) -> None:
    """Pitfall 22: there is nobody else who has it. The power is cut at the n-th operation of the disk, for every n; what was
    answered until then is there afterwards."""
    cuts = 0
    for step in range(200):
        nodes = Nodes(1, seed=step) if inline else slow(seed=step)
        node = nodes.lead()
        asked: list[tuple[bytes, Asked]] = []
        node.disk.crash_at = node.disk.operations + step
        with contextlib.suppress(SimulatedCrash):
            for number in range(20):
                key = b"k%d" % number
                asked.append((key, nodes.put(node, key, run=False)))
                if number % 2:
                    nodes.run()
            break
        cuts += 1
        node.crash(power_cut=True)
        node.start()
        nodes.lead()
        acknowledged = [key for key, each in asked if each.replies and isinstance(each.result, WriteResult)]
        found = [nodes.get(node, key).result for key in acknowledged]
        lost = [key for key, each in zip(acknowledged, found, strict=True) if getattr(each, "entry", None) is None]
        assert [] == lost, f"acknowledged, and gone after a power cut at step {step}"
    assert cuts > 10


# --- A full disk --------------------------------------------------------------------------------------------------


def fill(nodes: Nodes, node: Node) -> None:
    """From here on `node`'s disk takes not one byte more than it has."""
    node.disk.capacity_bytes = node.disk.used_bytes()


def test_full_disk_refuses_writes_hands_leadership_on_and_comes_back() -> None:
    """The node lives, its shards are led by others within a second, and it takes part again when there is room."""
    nodes = Nodes(3, segment_bytes=64 << 10)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        nodes.tick(2)
        fill(nodes, leader)
        value = b"x" * 8000
        asked = [nodes.put(leader, b"k%d" % number, value, timeout_ns=20_000 * MS) for number in range(30)]
        nodes.until(lambda: not leader.leads() and any(n.leads() for n in nodes), "another leader")
        nodes.until(lambda: all(each.replies for each in asked), "all replies", ticks=250)
        assert leader.host is not None, leader.fatal_reason
        # What was proposed here and committed by the others is unknown here until it is on this disk, too.
        assert {WriteResult, StorageFull, OutcomeUnknown} >= {type(each.result) for each in asked}
        assert not leader.engine.wants_to_lead
        leader.disk.capacity_bytes = None
        nodes.until(lambda: leader.engine.wants_to_lead and nodes.level(), "the node to take part again")
        assert "disk_recovered" in leader.observer.names()


def test_node_with_a_full_log_still_votes() -> None:
    """What needs no room is not held back by what does: the vote of another shard's replica goes out."""
    nodes = Nodes(3, shards=2, segment_bytes=64 << 10)
    leader = nodes.lead()
    victim, third = others(nodes, leader)
    for shard in (ShardId(0), ShardId(2)):
        nodes.make_leader(leader, shard)
    nodes.tick(2)
    fill(nodes, victim)
    for number in range(20):
        nodes.put(leader, b"k%d" % number, b"x" * 8000)
    nodes.tick(2)
    assert victim.engine.commit.full
    held = {replica.shard for replica, _ in victim.engine.commit._group}
    free = next(shard for shard in (ShardId(0), SHARD, ShardId(2)) if shard not in held)
    victim.network.sent.clear()
    nodes.isolate(leader)
    nodes.tick(nodes.settings.election_timeout_ticks)
    third.replica(free).raft.campaign()
    third.engine.touch(third.replica(free))
    nodes.run()
    assert third.leads(free)
    assert any(isinstance(m, VoteReply) and m.granted for _, s, m in victim.network.sent if s == free)


def test_compaction_that_meets_a_full_log_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what makes room: it is written before anything else once it fits."""
    nodes = Nodes(1, segment_bytes=64 << 10)
    node = nodes.lead()
    for number in range(4):
        nodes.put(node, b"k%d" % number, b"x" * 8000)
    replica = node.replica()
    write, compacted = Wal.write, []

    def full(self: Wal, batch: list[ReplicaWrite]) -> None:
        if any(each.entries or each.compact_to for each in batch):
            raise StorageFull("no room")
        write(self, batch)

    def watched(self: Wal, batch: list[ReplicaWrite]) -> None:
        compacted.extend(each.compact_to for each in batch if each.compact_to is not None)
        write(self, batch)

    monkeypatch.setattr(Wal, "write", full)
    node.engine.commit.write_later(ReplicaWrite(replica.replica_id, compact_to=replica.raft.applied))
    nodes.put(node, b"more", timeout_ns=60_000 * MS)
    nodes.tick(5)
    assert node.engine.commit.full
    monkeypatch.setattr(Wal, "write", watched)
    nodes.tick(2)
    assert [replica.raft.applied - 1] == compacted or compacted, compacted
    assert "" == node.engine.commit.full


def test_promises_held_back_by_a_full_log_are_bounded() -> None:
    """A replica that can write nothing for hours still answers its leader; what it says is dropped past a limit."""
    nodes = Nodes(1)
    node = nodes.lead()
    commit, replica = node.engine.commit, node.replica()
    commit.full = "no room"
    promise = AppendReply(replica.replica_id, replica.replica_id, Term(1), Index(1))
    for number in range(READIES_HELD_MAX + 100):
        ready = Ready(number=number, hard_state=None, entries=[], snapshot=None, snapshot_keeps_log=False)
        ready.messages_after_persist = [promise]
        commit.add(replica, ready)
    assert READIES_HELD_MAX == len(commit._group)


def test_room_that_housekeeping_does_not_find_stops_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """`collect` wants to write on a full disk: the tick goes on to checkpoints and membership."""
    nodes = Nodes(1)
    node = nodes.lead()

    def refuse(self: Wal) -> None:
        raise StorageFull("no room")

    monkeypatch.setattr(Wal, "collect", refuse)
    ticked = []
    monkeypatch.setattr(node.engine.keeper, "tick", lambda: ticked.append(1))
    nodes.tick(25)
    assert 25 == len(ticked)


def test_new_replica_waits_for_room() -> None:
    """A directory that gives the node a replica while the log takes nothing: it is created when there is room."""
    from dataclasses import replace

    from raftcache.node.directory import DirectoryReplica

    nodes = Nodes(1, shards=1)
    node = nodes.lead()
    create, room = Wal.create, []

    def maybe(self: Wal, *args: object) -> None:
        if not room:
            raise StorageFull("no room")
        create(self, *args)  # type: ignore[arg-type]

    directory = node.engine.directory
    shard = replace(
        directory.shards[SHARD],
        shard=ShardId(2),
        ranges=(),
        replicas=(DirectoryReplica(directory.next_replica, NodeId(node.node), "joining"),),  # type: ignore[arg-type]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Wal, "create", maybe)
        node.engine.adopt(
            replace(
                directory,
                epoch=directory.epoch + 1,
                shards=directory.shards | {ShardId(2): shard},
                next_replica=directory.next_replica + 1,
            )
        )
        nodes.tick(3)
        assert node.engine.local(ShardId(2)) is None
        room.append(True)
        nodes.tick(2)
        assert node.engine.local(ShardId(2)) is not None


def test_failed_sync_ends_the_process_and_the_others_go_on() -> None:
    """An error of fdatasync: no reply, no retry; after its restart the node has what it had promised."""
    nodes = Nodes(3)
    leader = nodes.lead()
    nodes.put(leader, b"before")
    leader.disk.inject("fdatasync", 5)
    asked = nodes.put(leader, b"k")
    assert leader.host is None
    assert leader.fatal_reason
    assert [] == asked.replies
    new = nodes.lead()
    leader.start()
    nodes.until(nodes.level, "the node to be level again")
    assert nodes.get(new, b"before").result.entry is not None  # type: ignore[attr-defined]


def test_state_near_its_limit_refuses_what_adds_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shard keeps its leader, reads and deletes go on, the other shards take everything; it resumes with room."""
    taken = {SHARD: 0}
    nodes = Nodes(3, shards=2)
    leader = nodes.lead()
    nodes.make_leader(leader, ShardId(2))
    mine, other = (next(k for k in keys() if leader.engine.owner(slot_of(k)) == s) for s in (SHARD, ShardId(2)))
    stores = {replica.state: replica.shard for node in nodes for replica in node.engine.replicas.values()}
    monkeypatch.setattr(StateStore, "space", lambda self: (taken.get(stores[self], 0), 1000))
    nodes.put(leader, mine)
    session = nodes.ask(leader, OpenSession(), shard=SHARD).result
    taken[SHARD] = 900
    nodes.tick(10)
    for node in nodes:
        refused = nodes.put(node, mine).result
        assert isinstance(refused, StorageFull)
        assert "storage.map_bytes" in refused.message
        assert isinstance(nodes.ask(node, Increment(b"{%s}n" % mine)).result, StorageFull)
        assert isinstance(nodes.get(node, mine).result, GetResult)
        assert isinstance(nodes.put(node, other).result, WriteResult)
        assert "state_full" in node.observer.names()
    assert isinstance(session, SessionResult)
    stamp = SessionStamp(session.session, 1, 1)
    assert isinstance(nodes.ask(leader, Delete(mine), stamp=stamp).result, WriteResult)
    assert leader.leads()
    assert leader.engine.wants_to_lead
    (problem,) = [p for p in administer(nodes, leader.host.administration.cluster()).problems if "refuses" in p]  # type: ignore[union-attr]
    assert "storage.map_bytes" in problem
    taken[SHARD] = 860
    nodes.tick(10)
    assert isinstance(nodes.put(leader, mine).result, StorageFull), "what is at the edge does not flicker"
    taken[SHARD] = 800
    nodes.tick(10)
    assert isinstance(nodes.put(leader, mine).result, WriteResult)
    assert [800, 800, 800] == [node.replica().state_bytes for node in nodes]


def keys() -> Iterator[bytes]:
    return (b"k%d" % number for number in itertools.count())


def test_disk_below_its_floor_lets_the_directory_through() -> None:
    """Writes of clients are refused; taking a replica away is a way out, and must pass."""
    nodes = Nodes(1)
    node = nodes.lead()
    nodes.lead(ShardId(0))
    node.disk_free = 0
    nodes.tick(10)
    assert isinstance(nodes.put(node, b"k").result, StorageFull)
    answers = {node.node: local_status(node.engine, "")}
    (problem,) = cluster_info(node.engine.directory, answers).problems
    assert "the disk of this node is full" in problem
    del answers[node.node]["refusing"]
    assert not cluster_info(node.engine.directory, answers).problems, "a node of an earlier release does not say"
    outcomes: list[object] = []
    node.engine.keeper.update(lambda directory: directory, outcomes.append)
    nodes.run()
    assert 1 == len(outcomes)
    assert not isinstance(outcomes[0], StorageFull)
    node.disk_free = 1 << 40
    nodes.tick(10)
    assert isinstance(nodes.put(node, b"k").result, WriteResult)


def test_leadership_stays_where_every_disk_is_low() -> None:
    """Nobody has room: writes are refused, reads go on, and no leadership is handed round and round."""
    nodes = Nodes(3)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        assert isinstance(nodes.put(leader, b"k", b"v").result, WriteResult)
        for node in nodes:
            node.disk_free = 0
        nodes.until(lambda: all(node.engine.router.refusing for node in nodes), "every node to refuse writes")
        nodes.tick(10)
        before = {node.node: node.replica().raft.term for node in nodes}
        nodes.tick(50)
        after = {node.node: node.replica().raft.term for node in nodes}
        assert before == after
        assert isinstance(nodes.put(nodes.lead(), b"k", b"w").result, StorageFull)
        found = nodes.get(nodes.lead(), b"k").result
        assert isinstance(found, GetResult)
        assert found.entry is not None
        assert b"v" == found.entry.value


def test_live_states_of_many_shards_are_committed_one_after_the_other() -> None:
    """All at once they would hold the loop up for as many milliseconds."""
    nodes = Nodes(1, shards=20)
    node = nodes.lead()
    keys: dict[ShardId | None, bytes] = {}
    for number in range(1_000):
        keys.setdefault(node.engine.owner(slot_of(b"k%d" % number)), b"k%d" % number)
    for shard, key in keys.items():
        assert shard is not None
        nodes.lead(shard)
        nodes.put(node, key)

    def waiting() -> int:
        return sum(replica.uncommitted_commands > 0 for replica in node.engine.replicas.values())

    most, before = 0, waiting()
    assert before >= 15
    for _ in range(60):
        nodes.tick()
        most, before = max(most, before - waiting()), waiting()
    assert (0, True) == (before, 1 <= most <= 2)
