"""The pair of hard-state files: no vote is ever forgotten, and what cannot be known is not guessed."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.errors import Corruption, IdentityMismatch, StorageFull, UnsupportedVersion
from raftcache.ids import ClusterId, NodeId, ReplicaId, Term
from raftcache.raft.messages import HardState
from raftcache.storage.disk import Disk, OsDisk
from raftcache.storage.hard_state import RESERVE_BYTES, HardStateFiles, hard_state_paths
from raftcache.storage.simulated_disk import SimulatedCrash, SimulatedDisk
from raftcache.storage.wal_format import Position
from tests.storage.log_model import CLUSTER, NODE, fatal

R1, R2 = ReplicaId(1), ReplicaId(2)
VOTED = HardState(Term(5), R2)


@pytest.fixture(params=["os", "simulated"])
def disk_and_directory(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Disk, str]:
    """A disk of either kind, and a directory on it."""
    if request.param == "os":
        return OsDisk(), str(tmp_path)
    return simulated()


def simulated(seed: int = 0) -> tuple[SimulatedDisk, str]:
    disk = SimulatedDisk(Random(seed))
    disk.mkdir("d")
    disk.fsync_directory(".")
    return disk, "d"


def open_files(
    disk: Disk, directory: str, *, cluster: ClusterId = CLUSTER, node: NodeId = NODE, incarnation: int = 1
) -> HardStateFiles:
    return HardStateFiles.open(disk, directory, cluster=cluster, node=node, incarnation=incarnation, fatal=fatal)


def create(disk: Disk, directory: str) -> HardStateFiles:
    HardStateFiles.create(disk, directory, cluster=CLUSTER, node=NODE, incarnation=1)
    return open_files(disk, directory)


def flip(disk: Disk, path: str, offset: int, bit: int) -> None:
    file = disk.open(path)
    [byte] = file.pread(1, offset)
    file.pwrite(bytes([byte ^ 1 << bit]), offset)
    file.fdatasync()
    file.close()


def test_what_was_saved_is_there_after_a_restart(disk_and_directory: tuple[Disk, str]) -> None:
    """Term and vote of each replica and the watermark come back; unknown replicas have never voted."""
    disk, directory = disk_and_directory
    files = create(disk, directory)
    files.set(R1, VOTED)
    files.set(R2, HardState(Term(3), R1))
    files.drop(R2)
    assert files.changed
    files.save(Position(77))
    assert not files.changed
    files = open_files(disk, directory)
    assert (files.get(R1), files.get(R2), files.watermark) == (VOTED, HardState(), 77)
    assert files.replicas() == [R1]
    assert files.repaired == []


@settings(max_examples=60)
@given(copy=st.integers(0, 1), offset=st.integers(0, 83), bit=st.integers(0, 7))
def test_one_damaged_copy_is_repaired_from_the_other(copy: int, offset: int, bit: int) -> None:
    """Any flipped bit in either copy: the other one is used, and the damaged one is whole again afterwards."""
    disk, directory = simulated()
    files = create(disk, directory)
    files.set(R1, VOTED)
    files.save(Position(9))
    path = hard_state_paths(directory)[copy]
    flip(disk, path, offset, bit)
    files = open_files(disk, directory)
    assert (files.get(R1), files.watermark, files.repaired) == (VOTED, 9, [path])
    # The repaired copy alone is good enough.
    disk.unlink(hard_state_paths(directory)[1 - copy])
    files = open_files(disk, directory)
    assert files.get(R1) == VOTED


def test_two_damaged_copies_refuse_to_start(disk_and_directory: tuple[Disk, str]) -> None:
    """With both copies bad the node may have voted for what it no longer knows: it must not start, and is told how to."""
    disk, directory = disk_and_directory
    create(disk, directory).close()
    for path in hard_state_paths(directory):
        flip(disk, path, 20, 3)
    with pytest.raises(Corruption, match="joins as a new member"):
        open_files(disk, directory)
    for path in hard_state_paths(directory):
        disk.unlink(path)
    with pytest.raises(Corruption):
        open_files(disk, directory)


def test_one_copy_put_in_place_of_the_other_does_not_pass(disk_and_directory: tuple[Disk, str]) -> None:
    """Copy A under the name of copy B is recognised and replaced by a true copy B."""
    disk, directory = disk_and_directory
    files = create(disk, directory)
    files.set(R1, VOTED)
    files.save(Position(1))
    first, second = hard_state_paths(directory)
    source, target = disk.open(first), disk.open(second)
    target.pwrite(source.pread(source.size(), 0), 0)
    files = open_files(disk, directory)
    assert files.repaired == [second]
    assert files.get(R1) == VOTED


@pytest.mark.parametrize("seed", range(4))
def test_a_crash_at_any_operation_of_a_save_leaves_the_old_or_the_new_state(seed: int) -> None:
    """However torn the write: before `save` returned it is the old or the new state, afterwards it is the new one."""
    for crash_at in range(6):
        disk, directory = simulated(seed)
        files = create(disk, directory)
        old = {ReplicaId(replica): HardState(Term(1), R1) for replica in range(1, 400)}
        for replica, state in old.items():
            files.set(replica, state)
        files.save(Position(1))
        for replica in old:
            files.set(replica, HardState(Term(2), R2))
        disk.crash_at = disk.operations + crash_at
        finished = False
        try:
            files.save(Position(2))
            finished = True
        except SimulatedCrash:
            pass
        disk.crash(Random(seed * 100 + crash_at))
        files = open_files(disk, directory)
        found = {files.get(replica) for replica in old}
        assert found in (
            [{HardState(Term(2), R2)}] if finished else [{HardState(Term(2), R2)}, {HardState(Term(1), R1)}]
        )
        assert open_files(disk, directory).repaired == []


def test_both_copies_are_synced_when_save_returns() -> None:
    """After a power cut either copy alone has the vote: damage to one of them later does not bring an old vote back."""
    for lost in (0, 1):
        disk, directory = simulated()
        files = create(disk, directory)
        files.set(R1, VOTED)
        files.save(Position(1))
        disk.crash(Random(1), power_cut=True)
        disk.unlink(hard_state_paths(directory)[lost])
        assert open_files(disk, directory).get(R1) == VOTED


def test_terms_do_not_go_back_and_votes_are_not_changed() -> None:
    """A caller that would vote twice in a term, or return to an older one, is stopped by an assertion."""
    files = create(*simulated())
    files.set(R1, VOTED)
    with pytest.raises(AssertionError, match="term 4 after 5"):
        files.set(R1, HardState(Term(4)))
    with pytest.raises(AssertionError, match="vote for 1 in term 5 after one for 2"):
        files.set(R1, HardState(Term(5), R1))
    files.set(R1, HardState(Term(6), R1))


def test_a_replica_that_was_dropped_is_gone_with_the_next_save() -> None:
    """To drop one is a change that is to be saved, like a vote; to drop one that was never there is none."""
    disk, directory = simulated()
    files = create(disk, directory)
    files.set(R1, VOTED)
    files.save(Position(1))
    files.drop(R2)
    assert not files.changed
    files.drop(R1)
    assert files.changed
    files.save(Position(1))
    assert [] == open_files(disk, directory).replicas()


def test_files_of_another_node_or_a_newer_release_are_refused() -> None:
    """Identity and version are checked before anything is believed; both copies newer is a newer release."""
    disk, directory = simulated()
    create(disk, directory).close()
    with pytest.raises(IdentityMismatch):
        open_files(disk, directory, node=NodeId(8))
    with pytest.raises(IdentityMismatch):
        open_files(disk, directory, cluster=ClusterId(12))
    for path in hard_state_paths(directory):
        flip(disk, path, 8, 1)
    with pytest.raises(UnsupportedVersion):
        open_files(disk, directory)


def test_a_pair_that_contradicts_itself_is_refused() -> None:
    """Two valid copies with one sequence and different votes can only come from a hand: neither is believed."""
    disk, directory = simulated()
    files = create(disk, directory)
    other, other_directory = simulated()
    theirs = create(other, other_directory)
    files.set(R1, VOTED)
    files.save(Position(1))
    theirs.set(R1, HardState(Term(9), R1))
    theirs.save(Position(1))
    path = hard_state_paths(directory)[0]
    disk.open(path).pwrite(other.open(path).pread(RESERVE_BYTES, 0), 0)
    with pytest.raises(Corruption, match="replaced by hand"):
        open_files(disk, directory)


@pytest.mark.parametrize("replicas", [2000, 5459])
def test_room_is_reserved_before_it_is_needed(replicas: int) -> None:
    """On a full disk votes of the replicas that exist are saved; room for more is refused before anything changes. Also for
    as many as leave no room for the checksum in a file that has room for all else."""
    disk, directory = simulated()
    files = create(disk, directory)
    files.reserve(replicas)
    disk.capacity_bytes = disk.used_bytes()
    with pytest.raises(StorageFull):
        files.reserve(replicas + RESERVE_BYTES)
    for replica in range(1, replicas + 1):
        files.set(ReplicaId(replica), VOTED)
    files.save(Position(1))
    assert open_files(disk, directory).get(ReplicaId(replicas)) == VOTED
