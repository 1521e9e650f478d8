"""The write-ahead log without faults, on the real disk and on the simulated one."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.errors import Corruption
from raftcache.ids import ClusterId, Index, ReplicaId, ShardId, Term
from raftcache.raft.configuration import encode_configuration
from raftcache.raft.messages import EntryKind, HardState, SnapshotMeta
from raftcache.storage.hard_state import HardStateFiles
from raftcache.storage.wal import Wal, WalConfig
from tests.storage.log_model import (
    CLUSTER,
    NODE,
    SMALL,
    THREE,
    Machine,
    Workload,
    disk_of,
    entries,
    entry,
    fatal,
    os_machine,
    simulated_machine,
    state_of,
    write,
)

R1, R2 = ReplicaId(1), ReplicaId(2)
EVERYTHING = 1 << 40

MakeMachine = Callable[..., Machine]


@pytest.fixture(params=["os", "simulated"])
def make_machine(request: pytest.FixtureRequest, tmp_path: Path) -> MakeMachine:
    """Builds a machine on the real disk, or on the simulated one; one per test."""
    if request.param == "os":
        return lambda config=SMALL: os_machine(str(tmp_path), config)
    return lambda config=SMALL: simulated_machine(config=config)


def test_what_was_written_is_read_back_and_survives_a_restart(make_machine: MakeMachine) -> None:
    """Entries of two replicas, of all kinds and sizes, come back in order from memory, from disk, and after a restart."""
    machine = make_machine()
    wal = machine.open()
    wal.create(R1, ShardId(0), SnapshotMeta(Index(1), Term(1), THREE))
    wal.create(R2, ShardId(9), None)
    first = [*entries(2, 40, 1, 200), entry(40, 2, encode_configuration(THREE), EntryKind.CONFIGURATION)]
    second = [entry(1, 1, b"", EntryKind.EMPTY), *entries(2, 9, 3)]
    wal.write([write(1, first), write(2, second, hard_state=HardState(Term(3), R2))])
    wal.sync()
    for _ in range(2):
        assert wal.replicas() == [R1, R2]
        assert (wal.shard(R1), wal.shard(R2)) == (0, 9)
        assert wal.log(R1).entries(Index(2), Index(41), EVERYTHING) == first
        assert wal.log(R2).entries(Index(1), Index(9), EVERYTHING) == second
        assert (wal.log(R1).first_index(), wal.log(R1).last_index()) == (2, 40)
        assert [wal.log(R1).term(Index(index)) for index in (0, 1, 2, 40, 41)] == [None, 1, 1, 2, None]
        assert wal.hard_state(R2) == HardState(Term(3), R2)
        assert wal.log(R1).configurations(after=Index(1)) == [(40, THREE)]
        assert wal.log(R1).configurations(after=Index(40)) == []
        recorded = wal.log(R1).recorded_snapshot
        assert recorded == SnapshotMeta(Index(1), Term(1), THREE)
        wal.close()
        wal = machine.open()


def test_entries_are_limited_by_bytes_and_never_fewer_than_one(make_machine: MakeMachine) -> None:
    """The byte limit counts data; the first entry comes whatever its size, and the limit may be met exactly."""
    machine = make_machine()
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    wal.write([write(1, entries(1, 60, 1, 100))])
    log = wal.log(R1)
    for lo in (1, 20, 58):
        for limit, count in ((0, 1), (99, 1), (100, 1), (199, 1), (200, 2), (350, 3)):
            found = log.entries(Index(lo), Index(60), limit)
            assert [e.index for e in found] == list(range(lo, min(60, lo + count)))
    assert log.entries(Index(5), Index(5), 100) == []


def test_one_fdatasync_covers_all_replicas(make_machine: MakeMachine) -> None:
    """Group commit: however many replicas write in a turn, the log is written once and synced once."""
    wal = make_machine(WalConfig(segment_bytes=1 << 20)).open()
    for replica in range(1, 65):
        wal.create(ReplicaId(replica), ShardId(replica), None)
    wal.sync()
    before = wal.stats.fdatasyncs, wal.stats.batches
    wal.write([write(replica, entries(1, 5)) for replica in range(1, 65)])
    wal.sync()
    assert (wal.stats.fdatasyncs - before[0], wal.stats.batches - before[1]) == (1, 1)
    assert wal.stats.entries == 64 * 4


def test_several_writes_may_precede_one_sync(make_machine: MakeMachine) -> None:
    """Three writes and a sync are one fdatasync; a second sync has nothing to do."""
    wal = make_machine().open()
    wal.create(R1, ShardId(0), None)
    wal.sync()
    before = wal.stats.fdatasyncs
    for index in (1, 2, 3):
        wal.write([write(1, [entry(index)])])
    wal.sync()
    wal.sync()
    assert wal.stats.fdatasyncs - before == 1


def test_hard_state_is_saved_once_per_sync_and_only_where_it_changed(make_machine: MakeMachine) -> None:
    """Many votes in one turn are one save; entries alone, or the same vote again, are none."""
    wal = make_machine().open()
    for replica in (1, 2, 3):
        wal.create(ReplicaId(replica), ShardId(replica), None)
    wal.sync()
    saves = wal.stats.hard_state_saves
    wal.write([write(replica, [], hard_state=HardState(Term(1), R1)) for replica in (1, 2, 3)])
    wal.sync()
    assert wal.stats.hard_state_saves - saves == 1
    wal.write([write(1, entries(1, 3), hard_state=HardState(Term(1), R1))])
    wal.sync()
    assert wal.stats.hard_state_saves - saves == 1


def test_restart_does_not_resurrect_overwritten_entries(make_machine: MakeMachine) -> None:
    """Pitfall 26: entries 1..5 of term 1, then 3..4 of term 2 and a snapshot at 4: the last entry is (4, term 2)."""
    machine = make_machine()
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    wal.write([write(1, entries(1, 6, 1))])
    wal.sync()
    wal.write([write(1, entries(3, 5, 2))])
    wal.sync()
    wal.write([write(1, [], compact_to=Index(4))])
    wal.sync()
    for _ in range(2):
        log = wal.log(R1)
        assert (log.first_index(), log.last_index(), log.term(Index(4))) == (5, 4, 2)
        wal = machine.open()


def test_snapshot_entries_and_compaction_of_one_write_apply_in_this_order(make_machine: MakeMachine) -> None:
    """A write may restart the log after a snapshot, append behind it, and compact into what it appended."""
    machine = make_machine()
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    wal.write([write(1, entries(1, 4))])
    meta = SnapshotMeta(Index(20), Term(3), THREE)
    wal.write([write(1, entries(21, 25, 4), snapshot=meta, compact_to=Index(22))])
    wal.sync()
    for _ in range(2):
        log = wal.log(R1)
        assert (log.first_index(), log.last_index(), log.term(Index(22))) == (23, 24, 4)
        assert log.recorded_snapshot == meta
        wal = machine.open()


def test_removed_replicas_stay_removed(make_machine: MakeMachine) -> None:
    """A tombstone outlives restarts and the deletion of the segments that held it; the id is not to be had again."""
    machine = make_machine()
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    wal.create(R2, ShardId(1), None)
    wal.write([write(1, entries(1, 9, 1, 500), hard_state=HardState(Term(5), R1)), write(2, entries(1, 3))])
    wal.remove(R1)
    wal.write([write(1, entries(9, 10), hard_state=HardState(Term(6), R1), compact_to=Index(5))])
    wal.sync()
    files = HardStateFiles.open(
        machine.disk, machine.log_directory, cluster=CLUSTER, node=NODE, incarnation=1, fatal=fatal
    )
    assert R1 not in files.replicas()
    for round_ in range(6):
        assert (wal.replicas(), wal.removed()) == ([R2], {R1})
        last = wal.log(R2).last_index()
        wal.write([write(2, entries(last + 1, last + 30, 1, 500))])
        wal.write([write(2, [], compact_to=Index(last + 20))])
        wal.sync()
        wal.collect()
        if round_ % 2:
            wal = machine.open()
    with pytest.raises(AssertionError):
        wal.create(R1, ShardId(0), None)


def test_a_write_that_is_too_large_becomes_several_batches(make_machine: MakeMachine) -> None:
    """Entries are divided at `batch_bytes_max`; one entry larger than a segment gets a segment of its own size."""
    machine = make_machine()
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    large = [*entries(1, 40, 1, 900), *entries(40, 42, 1, 50_000), *entries(42, 50, 1, 10)]
    before = wal.stats.batches
    wal.write([write(1, large)])
    wal.sync()
    assert wal.stats.batches - before >= 6
    for _ in range(2):
        assert wal.log(R1).entries(Index(1), Index(50), EVERYTHING) == large
        wal = machine.open()


def test_a_hard_state_behind_the_log_is_answered_with_the_logs_term_and_no_vote(make_machine: MakeMachine) -> None:
    """A crash between log and hard state leaves entries of a newer term; their term counts, and no vote is invented."""
    machine = make_machine()
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    wal.write([write(1, entries(1, 3, 4), hard_state=HardState(Term(4), R2))])
    wal.sync()
    assert wal.hard_state(R1) == HardState(Term(4), R2)
    wal.write([write(1, entries(3, 4, 6))])
    wal.sync()
    assert machine.open().hard_state(R1) == HardState(Term(6))


def test_segments_are_deleted_once_no_replica_needs_them(make_machine: MakeMachine) -> None:
    """Compaction frees whole segments; a replica that still has an entry in the oldest keeps it."""
    machine = make_machine(WalConfig(segment_bytes=16 << 10, batch_bytes_max=8 << 10))
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    wal.create(R2, ShardId(1), None)
    wal.write([write(2, entries(1, 2))])
    for lo in range(1, 200, 10):
        wal.write([write(1, entries(lo, lo + 10, 1, 500))])
        wal.sync()
    wal.write([write(1, [], compact_to=Index(195))])
    wal.collect()
    assert wal.stats.segments_deleted == 0
    assert wal.pinned_by() == R2
    wal.write([write(2, [], compact_to=Index(1))])
    wal.collect()
    assert wal.stats.segments_deleted >= 5
    assert len(machine.segment_paths()) <= 3
    expected = state_of(wal)
    assert state_of(machine.open()) == expected


def test_a_slow_replica_does_not_pin_the_log_for_ever(make_machine: MakeMachine) -> None:
    """Past `pinned_bytes_max` the few entries that hold old segments are written again, and the segments go."""
    machine = make_machine()
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    wal.create(R2, ShardId(1), None)
    slow = entries(1, 30, 1, 50)
    wal.write([write(2, slow)])
    size_max = 0
    for lo in range(1, 1000, 10):
        wal.write([write(1, entries(lo, lo + 10, 1, 500), compact_to=Index(max(1, lo - 20)))])
        wal.sync()
        wal.collect()
        size_max = max(size_max, wal.log_bytes)
    assert size_max <= SMALL.pinned_bytes_max + 4 * SMALL.segment_bytes
    assert wal.stats.moved_bytes > 0
    for _ in range(2):
        assert wal.log(R2).entries(Index(1), Index(30), EVERYTHING) == slow
        wal = machine.open()


def test_restarting_in_a_loop_does_not_fill_the_disk(make_machine: MakeMachine) -> None:
    """Each start goes on in a fresh segment; the rest of the one before is given back."""
    machine = make_machine()
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    wal.write([write(1, entries(1, 3))])
    wal.close()
    machine.open().close()
    before = sum(len(machine.read(path)) for path in machine.segment_paths())
    for _ in range(20):
        machine.open().close()
    after = sum(len(machine.read(path)) for path in machine.segment_paths())
    assert after - before < 20 * 400


def test_a_spare_is_allocated_ahead_and_found_again(make_machine: MakeMachine) -> None:
    """With a spare the log rolls without creating a file, and a restart uses the spare that it finds."""
    machine = make_machine()
    wal = machine.open()
    assert wal.wants_spare
    wal.preallocate()
    assert not wal.wants_spare
    paths = machine.segment_paths()
    wal.close()
    wal = machine.open()
    assert wal.stats.segments_created == 0
    assert set(machine.segment_paths()) <= set(paths)


def test_recent_entries_are_kept_within_the_byte_limit(make_machine: MakeMachine) -> None:
    """The cache of all logs together stays within its limit, and what fell out of it is read from the disk."""
    wal = make_machine().open()
    for replica in (1, 2):
        wal.create(ReplicaId(replica), ShardId(replica), None)
    for lo in range(1, 100):
        wal.write([write(replica, entries(lo, lo + 1, 1, 300)) for replica in (1, 2)])
        assert wal.cache.bytes_held <= SMALL.cache_bytes_max
    assert wal.log(R1).entries(Index(1), Index(100), EVERYTHING) == entries(1, 100, 1, 300)
    wal.remove(R1)
    wal.write([write(2, [], compact_to=Index(99))])
    assert wal.cache.bytes_held == 0


def test_recent_entries_are_read_without_the_disk() -> None:
    """What was just written is sent and applied from memory."""
    machine = simulated_machine()
    wal = machine.open()
    wal.create(R1, ShardId(3), None)
    for lo in range(1, 9):
        wal.write([write(1, entries(lo, lo + 1))])
    disk_of(machine).inject("pread", errno.EIO)
    assert entries(1, 9) == wal.log(R1).entries(Index(1), Index(9), EVERYTHING)


def test_damage_met_while_reading_is_reported_with_file_and_offset(make_machine: MakeMachine) -> None:
    """An old entry that is not what was written raises Corruption, naming where and what; it is never returned."""
    machine = make_machine()
    wal = machine.open()
    wal.create(R1, ShardId(3), None)
    wal.write([write(1, [entry(1, 1, b"needle" * 20)])])
    wal.write([write(1, entries(2, 60, 1, 200))])
    wal.sync()
    for path in machine.segment_paths():
        place = machine.read(path).find(b"needle" * 20)
        if place >= 0:
            machine.flip(path, place + 7)
            break
    with pytest.raises(Corruption) as caught:
        wal.log(R1).entries(Index(1), Index(3), EVERYTHING)
    assert caught.value.metadata == {"file": path, "offset": str(place), "shard": "3", "index": "1"}
    assert wal.log(R1).entries(Index(2), Index(60), EVERYTHING) == entries(2, 60, 1, 200)


def test_an_unreadable_sector_is_corruption_not_an_os_error() -> None:
    """EIO on a read names the entry like any other damage."""
    machine = simulated_machine()
    wal = machine.open()
    wal.create(R1, ShardId(3), None)
    wal.write([write(1, entries(1, 60, 1, 200))])
    wal.sync()
    disk_of(machine).inject("pread", errno.EIO)
    with pytest.raises(Corruption, match="entry 1 of replica 1"):
        wal.log(R1).entries(Index(1), Index(3), EVERYTHING)


def test_index_keeping_leaves_the_trailing_bytes() -> None:
    """Compaction to this index leaves the largest tail below `upto` within the byte limit."""
    wal = simulated_machine().open()
    wal.create(R1, ShardId(0), None)
    wal.write([write(1, entries(1, 21, 1, 100))])
    log = wal.log(R1)
    assert log.index_keeping(0, upto=Index(15)) == 15
    assert log.index_keeping(250, upto=Index(15)) == 13
    assert log.index_keeping(10_000, upto=Index(15)) == 0
    assert log.data_bytes == 2000


def test_a_snapshot_for_followers_is_what_was_set_last() -> None:
    """`snapshot` knows nothing until told; an older one counts too, because the newer may have been found damaged."""
    wal = simulated_machine().open()
    wal.create(R1, ShardId(0), SnapshotMeta(Index(1), Term(1), THREE))
    log = wal.log(R1)
    assert log.snapshot() is None
    newer = SnapshotMeta(Index(7), Term(2), THREE)
    log.set_snapshot(newer)
    assert log.snapshot() == newer
    older = SnapshotMeta(Index(3), Term(2), THREE)
    log.set_snapshot(older)
    assert log.snapshot() == older


def test_a_snapshot_that_was_forgotten_is_not_sent() -> None:
    """While the state is opened anew nobody knows whether it is still good."""
    wal = simulated_machine().open()
    wal.create(R1, ShardId(0), None)
    log = wal.log(R1)
    log.set_snapshot(SnapshotMeta(Index(7), Term(2), THREE))
    log.forget_snapshot()
    assert log.snapshot() is None


def test_a_configuration_that_was_moved_is_one_after_a_restart() -> None:
    """Entries that hold up an old segment are moved with their kind: a core that is restarted finds its configurations."""
    machine = simulated_machine()
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    wal.create(R2, ShardId(1), None)
    members = encode_configuration(THREE)
    wal.write([write(2, [entry(1), entry(2, data=members, kind=EntryKind.CONFIGURATION), entry(3)])])
    for lo in range(1, 400, 10):
        wal.write([write(1, entries(lo, lo + 10, 1, 500), compact_to=Index(lo))])
        wal.sync()
        wal.collect()
    assert wal.stats.moved_bytes > 0
    wal.close()
    log = machine.open().log(R2)
    assert [(Index(2), THREE)] == log.configurations(after=Index(0))


def test_a_closed_log_holds_no_file_open(tmp_path: Path) -> None:
    """Neither segments nor the hard state: a process may open and close it as often as it likes."""
    machine = os_machine(str(tmp_path))
    held = len(os.listdir("/proc/self/fd"))
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    wal.preallocate()
    assert len(os.listdir("/proc/self/fd")) > held
    wal.close()
    assert held == len(os.listdir("/proc/self/fd"))


def filled_and_compacted(machine: Machine) -> Wal:
    """Of its segments only the last one is needed."""
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    for lo in range(1, 200, 10):
        wal.write([write(1, entries(lo, lo + 10, 1, 500))])
        wal.sync()
    wal.write([write(1, [], compact_to=Index(199))])
    wal.sync()
    return wal


def test_deleted_segments_are_held_open_no_longer(tmp_path: Path) -> None:
    """Their space would stay taken otherwise, and no tool would say by what."""
    machine = os_machine(str(tmp_path))
    wal = filled_and_compacted(machine)
    others = len(os.listdir("/proc/self/fd")) - len(machine.segment_paths())
    wal.collect()
    assert wal.stats.segments_deleted > 3
    assert len(machine.segment_paths()) == len(os.listdir("/proc/self/fd")) - others


def test_a_start_deletes_the_segments_that_nobody_needs() -> None:
    """Where the process ended between a compaction and the next time that it kept house."""
    machine = simulated_machine()
    filled_and_compacted(machine).close()
    assert len(machine.segment_paths()) > 3
    machine.open()
    assert len(machine.segment_paths()) <= 2


def test_a_log_that_begins_anew_has_no_bytes() -> None:
    """What it had counts no longer, to the byte: when a checkpoint is due goes by that."""
    wal = simulated_machine().open()
    wal.create(R1, ShardId(0), None)
    wal.write([write(1, entries(1, 5, 1, 100))])
    assert 400 == wal.log(R1).data_bytes
    wal.write([write(1, [], snapshot=SnapshotMeta(Index(9), Term(1), THREE))])
    assert 0 == wal.log(R1).data_bytes


def test_a_snapshot_from_before_the_log_is_refused() -> None:
    """It would drop acknowledged entries without a word: an old checkpoint does not reset the log that went on after it."""
    wal = simulated_machine().open()
    wal.create(R1, ShardId(0), SnapshotMeta(Index(20), Term(1), THREE))
    wal.write([write(1, entries(21, 31))])
    with pytest.raises(AssertionError, match="before the log's start, 20"):
        wal.write([write(1, [], snapshot=SnapshotMeta(Index(10), Term(1), THREE))])
    assert (wal.log(R1).first_index(), wal.log(R1).last_index()) == (21, 30)


def test_a_gap_in_the_log_is_refused() -> None:
    """Appending past the end is a bug of the caller, and stops it."""
    wal = simulated_machine().open()
    wal.create(R1, ShardId(0), None)
    with pytest.raises(AssertionError, match="gap"):
        wal.write([write(1, entries(3, 4))])


def test_the_cluster_may_become_known_later() -> None:
    """A log that began without a cluster goes on under one, and is refused under another afterwards."""
    machine = simulated_machine()
    wal = machine.open(cluster=ClusterId(0))
    wal.set_cluster(ClusterId(11))
    wal.close()
    machine.open(cluster=ClusterId(11)).close()


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_any_sequence_of_writes_reads_back_as_the_model(seed: int) -> None:
    """Random appends, overwrites, compactions, snapshots, removals and restarts agree with a list, read in any way."""
    random = Random(seed)
    machine = simulated_machine(seed)
    load = Workload(machine, random)
    for _ in range(80):
        load.step()
        assert state_of(load.wal) == load.model.state()
        if random.random() < 0.05:
            load.sync()
            load.wal.close()
            load.recover()
    for replica, model in load.model.replicas.items():
        log = load.wal.log(replica)
        for _ in range(5):
            if model.entries:
                lo = random.randint(model.start[0] + 1, model.last_index)
                hi = random.randint(lo, model.last_index + 1)
                limit = random.randint(0, 2000)
                found = log.entries(Index(lo), Index(hi), limit)
                held = model.entries[lo - model.start[0] - 1 : hi - model.start[0] - 1]
                assert found == held[: len(found)]
                sizes = [len(e.data) for e in found]
                assert len(found) >= min(1, hi - lo)
                assert len(found) <= 1 or sum(sizes) <= limit
                if len(found) < len(held):
                    assert sum(sizes) + len(held[len(found)].data) > limit
