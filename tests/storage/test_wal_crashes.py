"""The promise of the log under crashes: what was synced is there, in order, and what was cut stays cut."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.errors import Corruption
from raftcache.ids import ReplicaId, ShardId, Term
from raftcache.raft.messages import HardState
from raftcache.storage import simulated_disk
from raftcache.storage.simulated_disk import SimulatedCrash
from tests.storage.log_model import Workload, disk_of, entries, simulated_machine, write


def run_with_crashes(seed: int, *, steps: int, crashes: int, power_cut: bool = False) -> None:
    """Random writes; a crash at random operations, also within recovery; after each, the log is held against the model."""
    random = Random(seed)
    machine = simulated_machine(seed)
    disk = disk_of(machine)
    load = Workload(machine, random)
    for _ in range(crashes):
        disk.crash_at = disk.operations + random.randint(0, 3 * steps)
        try:
            for _ in range(steps):
                load.step()
        except SimulatedCrash:
            pass
        while True:
            disk.crash(random, power_cut=power_cut)
            if random.random() < 0.4:
                disk.crash_at = disk.operations + random.randint(0, 30)
            try:
                load.recover()
            except SimulatedCrash:
                continue
            disk.crash_at = None
            break


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_a_crash_at_any_operation_leaves_the_synced_log_and_at_most_a_prefix_of_the_rest(seed: int) -> None:
    """Random writes, random page loss, random crashes: each recovery equals the synced state plus whole writes in order."""
    run_with_crashes(seed, steps=40, crashes=6)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_a_power_cut_leaves_everything_that_was_synced(seed: int) -> None:
    """With nothing un-synced surviving, the recovered log still has all that was synced."""
    run_with_crashes(seed, steps=40, crashes=6, power_cut=True)


@pytest.mark.parametrize("seed", range(3))
def test_a_crash_at_each_single_operation_of_a_run_is_survived(seed: int) -> None:
    """The same run is stopped at every one of its disk operations in turn, with random page loss."""
    crash_at = 0
    while True:
        random = Random(seed)
        machine = simulated_machine(seed)
        disk = disk_of(machine)
        load = Workload(machine, random)
        disk.crash_at = disk.operations + crash_at
        try:
            for _ in range(60):
                load.step()
            return
        except SimulatedCrash:
            pass
        disk.crash(Random(crash_at))
        load.recover()
        for _ in range(5):
            load.step()
        crash_at += 1


def test_what_a_killed_process_created_is_durable_before_the_next_one_builds_on_it() -> None:
    """Killed at any operation of its life, then started, written to and synced; then the power fails: nothing is lost.

    A file that the first process had renamed and not yet fsynced the directory of is seen by the second one, and used.
    """
    killed = 0
    for operation in range(200):
        machine = simulated_machine(1)
        disk = disk_of(machine)
        disk.crash_at = operation
        try:
            wal = machine.open()
            wal.create(ReplicaId(1), ShardId(1), None)
            wal.preallocate()
        except SimulatedCrash:
            killed += 1
        disk.kill()
        wal = machine.open()
        if ReplicaId(1) not in wal.replicas():
            wal.create(ReplicaId(1), ShardId(1), None)
        wal.write([write(1, entries(1, 3), hard_state=HardState(Term(1), ReplicaId(1)))])
        wal.sync()
        disk.crash(Random(1), power_cut=True)
        log = machine.open(create=False).log(ReplicaId(1))
        assert log.last_index() == 2, f"killed at operation {operation}"
    assert 5 < killed < 200


def test_a_spare_outlives_a_power_cut() -> None:
    """Allocated ahead is durably so: a node whose disk is full then starts all the same."""
    machine = simulated_machine()
    wal = machine.open()
    wal.create(ReplicaId(1), ShardId(1), None)
    wal.sync()
    wal.preallocate()
    disk_of(machine).crash(Random(1), power_cut=True)
    disk_of(machine).capacity_bytes = 0
    wal = machine.open(create=False)
    assert 0 == wal.stats.segments_created


def test_a_disk_that_lies_about_fdatasync_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary: without a working fdatasync the crash test above must fail, or it tests nothing."""
    monkeypatch.setattr(simulated_disk._Inode, "sync", lambda self: None)

    def some_seed_fails() -> None:
        for seed in range(20):
            run_with_crashes(seed, steps=40, crashes=6)

    with pytest.raises((AssertionError, Corruption)):
        some_seed_fails()
