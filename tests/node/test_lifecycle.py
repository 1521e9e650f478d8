"""Replicas that are damaged, rebuilt, created and removed, one by one, while the others of their node go on."""

import contextlib
from dataclasses import replace

import pytest

from raftcache.errors import Corruption, OutcomeUnknown, UnsupportedVersion
from raftcache.ids import Index, NodeId, ReplicaId, ShardId
from raftcache.kv.machine import Machine
from raftcache.kv.operations import (
    GetResult,
    Increment,
    IncrementResult,
    OpenSession,
    SessionResult,
    SessionStamp,
    WriteResult,
)
from raftcache.kv.slots import slot_of
from raftcache.node.api import Consistency
from raftcache.node.directory import DirectoryReplica
from raftcache.node.kinds import KIND_FORWARD
from raftcache.node.lifecycle import PAUSE_TICKS_MIN
from raftcache.node.settings import MS
from raftcache.raft.core import Raft
from raftcache.raft.messages import Heartbeat, Message
from raftcache.server.home import DiskHome
from raftcache.storage.data_directory import DataDirectory
from raftcache.storage.simulated_disk import SimulatedCrash
from raftcache.storage.state import StateLost, StateStore
from raftcache.storage.wal import WalConfig
from tests.node.nodes import CATALOG, SHARD, Ended, Node, Nodes, at_end_nothing_in_flight, replica_ids

SECOND = ShardId(2)


def others(nodes: Nodes, node: Node) -> list[Node]:
    return [other for other in nodes if other is not node]


def key_of(node: Node, shard: ShardId) -> bytes:
    """A key in that shard."""
    return next(key for key in (b"k%d" % n for n in range(1000)) if node.engine.owner(slot_of(key)) == shard)


def checkpoint(nodes: Nodes, node: Node, shard: ShardId = SHARD) -> Index:
    """Takes a checkpoint of the replica now; the index."""
    node.engine.checkpointing.begin(node.replica(shard))
    nodes.run()
    newest = node.replica(shard).log.snapshot()
    assert newest is not None
    return newest.index


# --- Bugs and poison ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [AssertionError("a bug"), KeyError("a bug"), UnsupportedVersion("a newer entry")])
@pytest.mark.parametrize("where", ["apply", "step", "tick", "persisted", "propose"])
def test_bug_in_one_replica_stops_that_replica_and_nothing_else(
    where: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pitfall 41: the node's other shards go on, and so does the shard, with its other replicas; every request is answered."""
    nodes = Nodes(3, shards=2)
    with at_end_nothing_in_flight(nodes):
        victim = nodes.lead()
        nodes.make_leader(victim, SECOND)
        broken = victim.replica()
        target = Machine if where == "apply" else Raft
        original = getattr(target, where)

        def fail(self: object, *args: object, **options: object) -> object:
            if self in (broken.raft, broken.machine):
                raise error
            return original(self, *args, **options)

        monkeypatch.setattr(target, where, fail)
        asked = [nodes.put(victim, key_of(victim, SHARD)), nodes.put(victim, key_of(victim, SECOND))]
        nodes.tick(3)
        assert broken.stopped
        assert victim.leads(SECOND)
        nodes.until(lambda: all(each.replies for each in asked), "all replies", ticks=60)
        assert isinstance(asked[1].result, WriteResult)
        nodes.until(lambda: any(n.leads() for n in others(nodes, victim)), "another leader of the broken shard")
        # Through the very node whose replica is broken:
        again = nodes.put(victim, key_of(victim, SHARD), b"again")
        nodes.tick(5)
        assert isinstance(again.result, WriteResult)
        events = victim.observer.of("replica_stopped")
        assert [broken.replica_id] == [event["replica"] for event in events]


def test_poison_in_the_log_does_not_make_a_replica_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pitfall 41: an entry that cannot be applied is met again after each rebuild; the pauses grow, nothing is skipped."""
    nodes = Nodes(3)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        victim = others(nodes, leader)[0]
        ids = {victim.replica().replica_id}
        apply, attempts = Machine.apply, []

        def poisoned(self: Machine, index: Index, term: object, data: bytes) -> object:
            owner = next((r for r in victim.engine.replicas.values() if r.machine is self), None)
            if owner is not None and owner.replica_id in ids and b"poison" in data:
                attempts.append(index)
                raise Corruption("the entry cannot be decoded")
            return apply(self, index, term, data)  # type: ignore[arg-type]

        monkeypatch.setattr(Machine, "apply", poisoned)
        assert isinstance(nodes.put(leader, b"k", b"poison").result, WriteResult)
        nodes.tick(300)
        assert 4 <= len(attempts) <= 7, attempts
        assert 1 == len(set(attempts))
        machine = victim.replica().machine
        assert machine is not None
        assert machine.applied_index < attempts[0], "nothing is skipped"
        # The release that can read it is installed, so to say:
        monkeypatch.setattr(Machine, "apply", apply)
        nodes.until(nodes.level, "the replica to come back by itself", ticks=700)


# --- Damage and rebuilding ----------------------------------------------------------------------------------------


def test_lost_state_is_rebuilt_from_checkpoint_and_log() -> None:
    """The live state is given up; the replica comes back by itself, level, and everything acknowledged is there."""
    nodes = Nodes(3)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        nodes.put(leader, b"before")
        checkpoint(nodes, leader)
        nodes.put(leader, b"after")
        old = leader.replica()
        leader.engine.rebuild(old, "an LMDB error")
        assert [(SHARD, "an LMDB error")] == leader.engine.not_serving()
        nodes.run()
        assert leader.replica() is not old
        assert [] == leader.engine.not_serving()
        assert leader.replica().commands_applied >= old.commands_applied, "counters never go back"
        nodes.until(nodes.level, "the replica to be level")
        for key in (b"before", b"after"):
            asked = nodes.get(leader, key)
            nodes.until(lambda asked=asked: bool(asked.replies), "the read")  # type: ignore[misc]
            assert asked.result.entry is not None  # type: ignore[attr-defined]


def test_state_without_any_intact_checkpoint_is_fetched_from_the_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log and vote are intact: the replica starts, asks for a snapshot (though its log needs none) and is level again."""
    nodes = Nodes(3)
    leader = nodes.lead()
    for number in range(5):
        nodes.put(leader, b"k%d" % number)
    nodes.tick(3)
    victim = others(nodes, leader)[0]
    victim.crash()
    replica_id = replica_ids(nodes)[victim.node]
    state_files = [p for p in victim.disk._visible if f"replicas/{replica_id}/checkpoints" in p and p.endswith("state")]
    assert state_files
    for path in state_files:
        victim.disk.flip_bit(path, 20, 3)
    victim.start()
    assert "state_lost" in victim.observer.names()
    nodes.until(nodes.level, "the state to be fetched")
    assert "snapshot_installed" in victim.observer.names()
    assert victim.replica().raft.snapshot_wanted is False


def test_state_that_does_not_add_up_stops_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of the checkpoint are right and their sums are not: the replica starts without a state and fetches one."""
    nodes = Nodes(3, shards=2)
    leader = nodes.lead()
    nodes.put(leader, b"k")
    victim = others(nodes, leader)[0]
    nodes.tick(2)
    victim.crash()
    init, failures = Machine.__init__, []

    def once(self: Machine, records: object, limits: object) -> None:
        init(self, records, limits)  # type: ignore[arg-type]
        if self.shard == SHARD and not failures:
            failures.append(1)
            raise Corruption("it does not add up")

    monkeypatch.setattr(Machine, "__init__", once)
    victim.start()
    nodes.until(nodes.level, "the state to be fetched")
    assert "snapshot_installed" in victim.observer.names()


def test_replica_that_cannot_be_opened_leaves_the_others_of_its_node_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One state directory refuses at the start: the node serves its other shards, says so, and tries again."""
    nodes = Nodes(3, shards=2)
    nodes.lead()
    nodes.lead(SECOND)
    victim = nodes[1]
    replica_id = victim.replica().replica_id
    victim.crash()
    opened, refused = StateStore.open, []

    def maybe(self: StateStore) -> object:
        if self.directory.endswith(f"/{replica_id}") and len(refused) < 3:
            refused.append(1)
            raise StateLost("the disk refuses")
        return opened(self)

    monkeypatch.setattr(StateStore, "open", maybe)
    victim.start()
    nodes.tick(3)
    assert victim.engine.local(SHARD) is None
    assert victim.engine.local(SECOND) is not None
    assert "the disk refuses" in victim.engine.lifecycle.absent[replica_id].reason
    nodes.until(lambda: victim.engine.local(SHARD) is not None and nodes.level(), "the replica to come back")
    assert {} == victim.engine.lifecycle.absent


def test_rebuild_that_fails_is_tried_again_with_growing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without room for the rebuilt state: it comes back when there is room, and does not spin until then."""
    nodes = Nodes(3)
    leader = nodes.lead()
    victim = others(nodes, leader)[0]
    nodes.tick(2)
    opened, attempts, room = StateStore.open, [], []

    def maybe(self: StateStore) -> object:
        if not room:
            attempts.append(1)
            raise StateLost("no room")
        return opened(self)

    monkeypatch.setattr(StateStore, "open", maybe)
    victim.engine.rebuild(victim.replica(), "a full map")
    nodes.tick(10 * PAUSE_TICKS_MIN)
    assert 2 <= len(attempts) <= 5
    assert victim.replica().stopped
    room.append(True)
    nodes.until(nodes.level, "the replica to come back", ticks=700)


def test_rebuild_while_its_readies_are_on_their_way_to_the_disk() -> None:
    """Some are being synced, others wait for that; the rebuilt replica goes on from what was written, and loses nothing."""
    nodes = Nodes(3, sync_inline_below_ns=-1)
    leader = nodes.lead()
    victim = others(nodes, leader)[0]
    nodes.run()
    victim.scheduler.hold = True
    first = nodes.put(leader, b"first")
    nodes.put(leader, b"second")
    assert victim.engine.commit.syncing
    assert victim.engine.commit._group
    victim.engine.rebuild(victim.replica(), "an LMDB error")
    nodes.run()
    assert victim.replica().stopped, "nothing is opened beside a sync"
    victim.scheduler.hold = False
    nodes.run()
    assert "" == victim.replica().stopped
    nodes.until(nodes.level, "the replica to be level")
    assert isinstance(first.result, WriteResult)


def test_rebuild_while_a_checkpoint_is_being_taken_does_not_end_all_checkpoints() -> None:
    """The one in progress is given up with the state it is of; the next one is taken."""
    nodes = Nodes(1)
    node = nodes.lead()
    nodes.put(node, b"k")
    node.engine.checkpointing.begin(node.replica())
    node.engine.rebuild(node.replica(), "an LMDB error")
    nodes.lead()
    nodes.put(node, b"k2")
    assert checkpoint(nodes, node) == node.replica().raft.applied


def test_sender_that_was_rebuilt_hears_of_the_end_of_its_earlier_snapshot() -> None:
    """A transfer outlives its replica object; the rebuilt one may wait for it, and must not for ever."""
    nodes = Nodes(3)
    leader = nodes.lead()
    follower = others(nodes, leader)[0]
    victim = follower.replica().replica_id
    follower.crash()
    for number in range(5):
        nodes.put(leader, b"k%d" % number)
    checkpoint(nodes, leader)
    nodes.tick(3)
    nodes.hold_snapshots = True
    follower.start()
    nodes.until(lambda: bool(nodes.held_snapshots), "a snapshot to be on its way")
    old = leader.replica()
    leader.engine.rebuild(old, "an LMDB error")
    nodes.run()
    rebuilt = leader.replica()
    reported: list[tuple[ReplicaId, bool]] = []
    rebuilt.raft.report_snapshot = lambda peer, ok: reported.append((peer, ok))  # type: ignore[method-assign]
    follower.crash()
    for start in nodes.held_snapshots:
        start()
    nodes.run()
    assert (victim, False) in reported


def test_older_checkpoint_below_the_logs_beginning_is_not_gone_on_from() -> None:
    """The newest checkpoint is damaged and an older one is still there: what the log lost in between must not be forgotten."""
    nodes = Nodes(3, trailing_log_bytes=0)
    leader = nodes.lead()
    victim = others(nodes, leader)[0]
    for number in range(5):
        nodes.put(leader, b"k%d" % number)
    nodes.tick(2)
    # The older one stays, because it cannot be renamed away.
    victim.disk.inject("rename", 13, path_part="old-", times=1000)
    index = checkpoint(nodes, victim)
    nodes.tick(2)
    assert victim.replica().log.start_index == index
    last = victim.replica().log.last_index()
    victim.crash()
    replica_id = replica_ids(nodes)[victim.node]
    newest = [p for p in victim.disk._visible if f"replicas/{replica_id}/checkpoints/" in p and p.endswith("state")]
    for path in sorted(newest)[-1:]:
        victim.disk.flip_bit(path, 20, 3)
    victim.start()
    assert last <= victim.replica().log.last_index(), "acknowledged entries are still here"
    assert victim.replica().raft.snapshot_wanted
    nodes.until(nodes.level, "the state to be fetched")


def test_follower_that_lags_behind_the_log_gets_a_snapshot_while_it_is_being_removed() -> None:
    """Its replica is destroyed in the midst of the transfer: the sender is told, and nothing is left of it."""
    nodes = Nodes(3, trailing_log_bytes=0)
    leader = nodes.lead()
    victim = others(nodes, leader)[0]
    replica_id = victim.replica().replica_id
    victim.crash()
    for number in range(5):
        nodes.put(leader, b"k%d" % number)
    checkpoint(nodes, leader)
    nodes.tick(3)
    nodes.hold_snapshots = True
    victim.start()
    nodes.until(lambda: bool(nodes.held_snapshots), "a snapshot to be on its way")
    directory = victim.engine.directory
    shard = directory.shards[SHARD]
    without = replace(shard, replicas=tuple(r for r in shard.replicas if r.node != victim.node))
    victim.engine.adopt(replace(directory, epoch=directory.epoch + 1, shards=directory.shards | {SHARD: without}))
    nodes.run()
    assert victim.engine.local(SHARD) is None
    nodes.hold_snapshots = False
    for start in nodes.held_snapshots:
        start()
    nodes.run()
    assert set() == leader.engine.checkpointing._sending
    assert not [path for path in victim.disk._visible if path.startswith(f"data/replicas/{replica_id}/")]


# --- As the directory wants it ------------------------------------------------------------------------------------


def test_replica_that_the_directory_no_longer_lists_is_destroyed_for_good() -> None:
    """It leaves a tombstone: not even a directory that lists it again brings it back."""
    nodes = Nodes(3)
    nodes.lead()
    node = nodes[1]
    replica_id = node.replica().replica_id
    directory = node.engine.directory
    shard = directory.shards[SHARD]
    without = replace(shard, replicas=tuple(r for r in shard.replicas if r.node != node.node))
    node.engine.adopt(replace(directory, epoch=directory.epoch + 1, shards=directory.shards | {SHARD: without}))
    nodes.run()
    assert node.engine.local(SHARD) is None
    assert replica_id in node.engine.wal.removed()
    assert not [path for path in node.disk._visible if path.startswith(f"data/replicas/{replica_id}")]
    node.engine.adopt(replace(directory, epoch=directory.epoch + 2))
    nodes.run()
    assert node.engine.local(SHARD) is None


def test_directory_that_is_older_than_a_replica_does_not_destroy_it() -> None:
    """An operator puts an old copy of the directory back: a voter that it does not know is not thrown away."""
    nodes = Nodes(3)
    nodes.lead()
    node = nodes[1]
    old = replace(
        node.engine.directory,
        epoch=node.engine.directory.epoch + 1,
        shards={s: replace(d, replicas=()) for s, d in node.engine.directory.shards.items()},
        next_replica=1,
    )
    node.engine.adopt(old)
    nodes.run()
    assert node.engine.local(SHARD) is not None
    assert set() == node.engine.wal.removed()


def test_voter_that_is_not_here_any_more_is_not_begun_anew() -> None:
    """Pitfall 35: a blank replica in the place of a voter would vote a second time. The node goes on without it, and says so."""
    nodes = Nodes(1)
    node = nodes.lead()
    directory = node.engine.directory
    lost = DirectoryReplica(ReplicaId(directory.next_replica), NodeId(node.node), "voter")
    shard = replace(directory.shards[SHARD], shard=SECOND, ranges=(), replicas=(lost,))
    node.engine.adopt(
        replace(
            directory,
            epoch=directory.epoch + 1,
            shards=directory.shards | {SECOND: shard},
            next_replica=directory.next_replica + 1,
        )
    )
    nodes.run()
    assert node.engine.local(SECOND) is None
    assert lost.replica not in node.engine.wal.replicas()
    assert "was a voter here" in node.engine.lifecycle.absent[lost.replica].reason
    # Once it is replaced nothing of it is left.
    node.engine.adopt(replace(directory, epoch=directory.epoch + 2, next_replica=directory.next_replica + 1))
    nodes.run()
    assert {} == node.engine.lifecycle.absent


def test_node_whose_log_was_wiped_after_init_refuses_to_start() -> None:
    """Pitfall 35: even in its first life, before its first restart, a node that had a log does not begin another one."""
    nodes = Nodes(3)
    nodes.lead()
    node = nodes[1]
    node.crash()
    for path in [path for path in node.disk._visible if path.startswith("data/log/")]:
        node.disk.unlink(path)
    with pytest.raises(Corruption):
        node.start()


def test_files_of_a_removed_replica_that_a_crash_left_are_deleted_at_the_start() -> None:
    """The tombstone is durable before the files go: what is left over goes with the next start."""
    nodes = Nodes(3)
    nodes.lead()
    node = nodes[1]
    replica_id = node.replica().replica_id
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StateStore, "destroy", lambda self: None)
        directory = node.engine.directory
        shard = directory.shards[SHARD]
        without = replace(shard, replicas=tuple(r for r in shard.replicas if r.node != node.node))
        node.engine.adopt(replace(directory, epoch=directory.epoch + 1, shards=directory.shards | {SHARD: without}))
        nodes.run()
    assert [path for path in node.disk._visible if path.startswith(f"data/replicas/{replica_id}/")]
    node.crash()
    node.start()
    assert not [path for path in node.disk._visible if path.startswith(f"data/replicas/{replica_id}/")]


def test_lost_or_damaged_directory_file_is_replaced_by_the_others() -> None:
    """The log says which replicas are here; the directory comes from a catalog replica, or from another node."""
    nodes = Nodes(4)
    nodes.lead()
    with_catalog = nodes[1]
    without_catalog = next(node for node in nodes if node.engine.local(CATALOG) is None)
    for node in (with_catalog, without_catalog):
        expected = node.engine.directory
        node.crash()
        node.disk.flip_bit("data/directory.json", 40, 2)
        node.start()
        assert "directory_lost" in node.observer.names()
        nodes.until(
            lambda node=node, expected=expected: node.engine.directory == expected,  # type: ignore[misc]
            "the directory to be there again",
        )
        node.crash()
        node.start()
        assert "directory_lost" not in node.observer.names()
        assert expected == node.engine.directory


def test_every_single_flipped_bit_of_the_directory_file_is_noticed() -> None:
    """One wrong digit would have a node look for replicas that are not its own, or throw its own away."""
    nodes = Nodes(1)
    node = nodes.lead()
    node.crash()
    size = len(node.disk.open("data/directory.json").pread(1 << 20, 0))
    data = DataDirectory.open(node.disk, "data", process_id=1, new_node_id=lambda: node.node)
    home = DiskHome(node.disk, data, WalConfig(), node.fatal)
    assert home.load_directory() is not None
    for offset in range(0, size, 7):
        node.disk.flip_bit("data/directory.json", offset, offset % 8)
        with pytest.raises((Corruption, UnsupportedVersion)):
            home.load_directory()
        node.disk.flip_bit("data/directory.json", offset, offset % 8)


# --- Strangers ----------------------------------------------------------------------------------------------------


def test_message_of_a_replica_from_another_node_than_its_own_is_dropped() -> None:
    """Pitfall 43: a replica never moves; whoever speaks in its name from elsewhere is not heard."""
    nodes = Nodes(3)
    leader = nodes.lead()
    follower, third = others(nodes, leader)
    replica = follower.replica()
    term = replica.raft.term
    forged = Heartbeat(replica.replica_id, leader.replica().replica_id, type(term)(term + 5), Index(1))
    follower.engine.on_messages(third.node, [(SHARD, forged)])
    assert term == replica.raft.term
    assert 1 == follower.engine.strangers


@pytest.mark.parametrize("shard", [CATALOG, SECOND, ShardId(77)])
def test_message_under_another_shards_number_is_dropped(shard: ShardId) -> None:
    """Pitfall 43: the shard in the header and the replica that is named must belong together."""
    nodes = Nodes(3, shards=2)
    leader = nodes.lead()
    follower = others(nodes, leader)[0]
    replica = follower.replica()
    term = replica.raft.term
    message: Message = Heartbeat(replica.replica_id, leader.replica().replica_id, type(term)(term + 5), Index(1))
    follower.engine.on_messages(leader.node, [(shard, message)])
    assert term == replica.raft.term
    assert 1 == follower.engine.strangers


def test_stopped_replica_is_served_by_the_others() -> None:
    """A node whose replica is stopped sends linearizable and stale reads to those that work."""
    nodes = Nodes(3)
    with at_end_nothing_in_flight(nodes):
        leader = nodes.lead()
        nodes.put(leader, b"k")
        nodes.tick(2)
        victim = others(nodes, leader)[0]
        victim.engine.lifecycle.stop(victim.replica(), AssertionError("a bug"))
        for consistency in Consistency:
            asked = nodes.get(victim, b"k", consistency=consistency)
            nodes.tick(3)
            assert isinstance(asked.result, GetResult), (consistency, asked.result)


def test_loop_that_stalled_for_two_election_timeouts_is_not_voted_out_for_ever() -> None:
    """Pitfall 44: a node that did not run for a while comes back to a leader, at most one term later."""
    nodes = Nodes(3)
    leader = nodes.lead()
    term = leader.replica().raft.term
    # It takes part in nothing, and nothing of it is lost.
    nodes.isolate(leader)
    for node in others(nodes, leader):
        for _ in range(2 * nodes.settings.election_timeout_ticks):
            node.clock.advance_ns(nodes.settings.tick_ns)
            node.engine.tick()
            nodes.run()
    nodes.heal()
    nodes.tick(20)
    new = nodes.lead()
    assert new.replica().raft.term <= term + 2
    assert isinstance(nodes.put(leader, b"k", timeout_ns=10_000 * MS).result, WriteResult)


def test_shard_time_never_goes_back_whatever_the_wall_clocks_say() -> None:
    """Leaders with clocks an hour apart follow each other: the shard's time goes on from where it was."""
    nodes = Nodes(3)
    times = []
    for number, node in enumerate((nodes[1], nodes[2], nodes[3], nodes[1])):
        nodes.make_leader(node)
        node.clock.jump_wall_ms((-1) ** number * 3_600_000)
        nodes.put(node, b"k")
        nodes.tick(2)
        nodes.put(node, b"k")
        machine = node.replica().machine
        assert machine is not None
        times.append(machine.clock_ms)
    assert sorted(times) == times
    assert times[-1] - times[0] < 60_000, "an hour's jump is not taken over"


def test_wall_clock_before_1970_stops_nobody() -> None:
    """A machine without a battery: its first leader begins at 0, and goes on by its monotonic clock."""
    nodes = Nodes(1)
    node = nodes[1]
    node.clock.jump_wall_ms(-(1 << 40))
    nodes.lead()
    assert isinstance(nodes.put(node, b"k").result, WriteResult)
    machine = node.replica().machine
    assert machine is not None
    assert machine.clock_ms >= 0


def test_crash_at_any_step_of_installing_a_snapshot_leaves_the_old_state_or_the_new_one() -> None:
    """Pitfall 25: the follower's disk stops at the n-th operation, for every n; it starts again, and is level in the end."""
    interrupted = 0
    for step in range(0, 200, 5):
        nodes = Nodes(3, seed=step)
        leader = nodes.lead()
        victim = others(nodes, leader)[0]
        nodes.put(leader, b"before")
        nodes.tick(2)
        victim.crash()
        for number in range(5):
            nodes.put(leader, b"k%d" % number)
        checkpoint(nodes, leader)
        nodes.tick(3)
        victim.start()
        crash_at = victim.disk.crash_at = victim.disk.operations + step
        with contextlib.suppress(SimulatedCrash, Ended):
            nodes.tick(15)
        if victim.host is not None and victim.disk.operations < crash_at:
            assert "snapshot_installed" in victim.observer.names()
            break
        interrupted += 1
        victim.crash(power_cut=bool(step % 2))
        victim.start()
        nodes.until(nodes.level, f"the follower to be level after a crash at step {step}")
    assert interrupted > 3


def test_retry_through_another_node_after_a_lost_answer_does_not_count_twice() -> None:
    """Pitfall 31: the increment was carried out and its answer was lost; the same stamp through another node gets the same
    reply."""
    nodes = Nodes(3)
    leader = nodes.lead()
    first, second = others(nodes, leader)
    opened = nodes.ask(first, OpenSession(), shard=SHARD)
    assert isinstance(opened.result, SessionResult)
    stamp = SessionStamp(opened.result.session, 1, 1)
    nodes.lose_answers = lambda call: call.kind == KIND_FORWARD
    lost = nodes.ask(first, Increment(b"n"), stamp=stamp, timeout_ns=300 * MS)
    nodes.tick(5)
    assert isinstance(lost.result, OutcomeUnknown)
    nodes.lose_answers = lambda call: False
    for node in (second, leader, first):
        again = nodes.ask(node, Increment(b"n"), stamp=stamp)
        assert isinstance(again.result, IncrementResult)
        assert 1 == again.result.value
    # And through a new leader, which has the session from the log.
    nodes.make_leader(second)
    again = nodes.ask(first, Increment(b"n"), stamp=stamp)
    assert isinstance(again.result, IncrementResult)
    assert 1 == again.result.value


def test_session_arrives_with_the_snapshot() -> None:
    """Pitfall 24: a replica that knows the past from a snapshot alone repeats the first reply, and counts nothing twice."""
    nodes = Nodes(3)
    leader = nodes.lead()
    victim = others(nodes, leader)[0]
    victim.crash()
    opened = nodes.ask(leader, OpenSession(), shard=SHARD)
    assert isinstance(opened.result, SessionResult)
    stamp = SessionStamp(opened.result.session, 1, 1)
    first = nodes.ask(leader, Increment(b"n"), stamp=stamp)
    checkpoint(nodes, leader)
    nodes.tick(3)
    assert leader.replica().log.first_index() > leader.replica().log.snapshot().index, "the log has it no more"  # type: ignore[union-attr]
    victim.start()
    nodes.until(nodes.level, "the node to be level again")
    assert "snapshot_installed" in victim.observer.names()
    nodes.make_leader(victim)
    again = nodes.ask(victim, Increment(b"n"), stamp=stamp)
    assert isinstance(again.result, IncrementResult)
    assert first.result == again.result


def test_one_dead_follower_costs_bounded_memory_and_no_latency() -> None:
    """Pitfall 28: thousands of writes while it is away: each is answered at once, and the leader keeps no copy of them."""
    nodes = Nodes(3, log_bytes_per_checkpoint=50_000)
    leader = nodes.lead()
    others(nodes, leader)[0].crash()
    for number in range(300):
        asked = nodes.put(leader, b"k%d" % (number % 10), b"x" * 1_000)
        assert isinstance(asked.result, WriteResult)
        if number % 10 == 0:
            nodes.tick()
    raft = leader.replica().raft
    dead = next(p for p, progress in raft.progress.items() if progress.match < raft.commit)
    assert raft.progress[dead].inflights.bytes_in_flight <= 8 << 20
    assert len(raft.log._recent) < 10
    assert leader.replica().log.data_bytes < 200_000, "the log is not kept for it: it gets a snapshot"
