"""Failing and full disks: an error of the disk ends the process, a full disk only refuses."""

import errno
import inspect
import threading
from pathlib import Path

import pytest

from raftcache.errors import Corruption, StorageFull
from raftcache.ids import Index, ReplicaId, ShardId, Term
from raftcache.raft.messages import HardState
from raftcache.storage.disk import OsDisk, exit_process
from raftcache.storage.wal import Wal, WalConfig
from tests.storage.log_model import (
    CLUSTER,
    NODE,
    SMALL,
    Fatal,
    Machine,
    disk_of,
    entries,
    os_machine,
    simulated_machine,
    state_of,
    write,
)

R1 = ReplicaId(1)


def started(machine: Machine) -> Wal:
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    wal.sync()
    return wal


@pytest.mark.parametrize(
    ("operation", "path_part"),
    [("pwrite", ".wal"), ("fdatasync", ".wal"), ("pwrite", "hard_state.a"), ("fdatasync", "hard_state.b")],
)
def test_a_failing_write_or_fsync_ends_the_process(operation: str, path_part: str) -> None:
    """EIO in the log or in either copy of the hard state calls the fatal handler, with the file in the reason."""
    machine = simulated_machine()
    wal = started(machine)
    disk_of(machine).inject(operation, errno.EIO, path_part=path_part)

    def write_and_sync() -> None:
        wal.write([write(1, entries(1, 3), hard_state=HardState(Term(1), R1))])
        wal.sync()

    with pytest.raises(Fatal, match=path_part):
        write_and_sync()


def test_a_full_disk_under_an_allocated_segment_is_fatal_too() -> None:
    """ENOSPC where the space was allocated (a copy-on-write file system) leaves a half-written batch: nobody goes on."""
    machine = simulated_machine()
    wal = started(machine)
    disk_of(machine).inject("pwrite", errno.ENOSPC)
    with pytest.raises(Fatal):
        wal.write([write(1, entries(1, 3))])


@pytest.mark.parametrize("operation", ["rename", "fsync_directory", "allocate"])
def test_an_io_error_while_allocating_ahead_is_fatal(operation: str) -> None:
    """Only ENOSPC is survived there."""
    machine = simulated_machine()
    wal = started(machine)
    disk_of(machine).inject(operation, errno.EIO)
    with pytest.raises(Fatal):
        wal.preallocate()


@pytest.mark.parametrize("operation", ["unlink", "fsync_directory"])
def test_an_io_error_while_deleting_segments_is_fatal(operation: str) -> None:
    """A directory that fails is a disk that fails."""
    machine = simulated_machine()
    wal = started(machine)
    wal.write([write(1, entries(1, 60, 1, 500))])
    wal.write([write(1, [], compact_to=Index(59))])
    disk_of(machine).inject(operation, errno.EIO)
    with pytest.raises(Fatal):
        wal.collect()


def test_a_full_disk_refuses_to_allocate_ahead_and_the_log_goes_on_in_its_room() -> None:
    """ENOSPC while allocating a spare raises StorageFull and sets `full`; what fits is still written, votes too."""
    machine = simulated_machine()
    wal = started(machine)
    disk = disk_of(machine)
    disk.capacity_bytes = 0
    with pytest.raises(StorageFull):
        wal.preallocate()
    assert wal.full
    wal.write([write(1, entries(1, 5), hard_state=HardState(Term(3), R1))])
    wal.sync()
    assert wal.hard_state(R1) == HardState(Term(3), R1)
    disk.capacity_bytes = None
    wal.preallocate()
    assert not wal.full


@pytest.mark.parametrize("spares", [0, 1])
def test_a_write_without_room_is_refused_as_a_whole(spares: int) -> None:
    """A write that needs a segment that cannot be had changes nothing: not the log, not its index, not the hard state. Nor
    where the first of the segments that it needs is there."""
    machine = simulated_machine()
    wal = started(machine)
    wal.write([write(1, entries(1, 3))])
    if spares:
        wal.preallocate()
    before = state_of(wal)
    disk_of(machine).capacity_bytes = 0
    batches = wal.stats.batches
    with pytest.raises(StorageFull):
        wal.write([write(1, entries(3, 60, 1, 600), hard_state=HardState(Term(9), R1))])
    assert state_of(wal) == before
    assert wal.hard_state(R1).term < 9
    assert wal.stats.batches == batches
    wal.write([write(1, entries(3, 4))])
    wal.sync()
    disk_of(machine).capacity_bytes = None
    assert machine.open().log(R1).last_index() == 3


def test_a_full_disk_can_be_freed() -> None:
    """With no room left at all, a removal still lets old segments be renounced and deleted, and the log goes on."""
    machine = simulated_machine(config=WalConfig(segment_bytes=16 << 10, batch_bytes_max=8 << 10))
    wal = started(machine)
    for lo in range(1, 100, 10):
        wal.write([write(1, entries(lo, lo + 10, 1, 500))])
    disk = disk_of(machine)
    disk.capacity_bytes = disk.used_bytes()

    def fill() -> None:
        for index in range(100, 10_000):
            wal.write([write(1, entries(index, index + 1, 1, 100))])

    with pytest.raises(StorageFull):
        fill()
    wal.remove(R1)
    wal.collect()
    assert wal.stats.segments_deleted >= 4
    wal.preallocate()
    assert not wal.full
    wal.close()
    assert machine.open().removed() == {R1}


def test_housekeeping_on_a_full_disk_waits_without_an_error() -> None:
    """Entries that hold old segments cannot be moved without room; `collect` leaves them and says `full`."""
    machine = simulated_machine()
    wal = started(machine)
    wal.create(ReplicaId(2), ShardId(1), None)
    wal.write([write(2, entries(1, 3, 1, 3000))])
    for lo in range(1, 200, 10):
        wal.write([write(1, entries(lo, lo + 10, 1, 500), compact_to=Index(lo))])
    disk = disk_of(machine)
    disk.capacity_bytes = disk.used_bytes()
    with pytest.raises(StorageFull):
        wal.write([write(1, entries(201, 260, 1, 500))])
    wal.write([write(1, entries(201, 202, 1, wal.room_bytes - 200))])
    wal.sync()
    wal.collect()
    assert wal.full
    assert wal.stats.moved_bytes == 0
    disk.capacity_bytes = None
    wal.collect()
    assert wal.stats.moved_bytes > 0
    assert not wal.full


def test_creating_a_replica_on_a_full_disk_is_refused_or_done_never_half() -> None:
    """Either the replica exists with room for its votes, or nothing was written."""
    machine = simulated_machine()
    wal = machine.open()
    disk_of(machine).capacity_bytes = 0

    def create_all() -> None:
        for replica in range(1, 10_000):
            wal.create(ReplicaId(replica), ShardId(0), None)

    with pytest.raises(StorageFull):
        create_all()
    wal.sync()
    expected = state_of(wal)
    assert wal.replicas() == list(range(1, len(wal.replicas()) + 1))
    wal.write([write(1, [], hard_state=HardState(Term(1), R1))])
    wal.sync()
    disk_of(machine).capacity_bytes = None
    assert state_of(machine.open()) == expected


def test_opening_on_a_full_disk_says_so() -> None:
    """Without space for the fresh segment the log does not open, with an error that says what to do; later it does."""
    machine = simulated_machine()
    wal = started(machine)
    wal.write([write(1, entries(1, 3))])
    wal.close()
    disk = disk_of(machine)
    disk.capacity_bytes = 0
    with pytest.raises(StorageFull, match="free"):
        machine.open()
    disk.capacity_bytes = None
    assert machine.open().log(R1).last_index() == 2


def test_a_log_with_a_spare_opens_on_a_full_disk() -> None:
    """The segment that was allocated ahead lets a node restart, and vote, on a full disk."""
    machine = simulated_machine()
    wal = started(machine)
    wal.preallocate()
    wal.close()
    disk_of(machine).capacity_bytes = 0
    wal = machine.open()
    wal.write([write(1, [], hard_state=HardState(Term(2), R1))])
    wal.sync()


def test_a_segment_that_cannot_be_read_is_named_when_the_log_opens() -> None:
    """A bad sector is damage like any other: the file, and what to do, and not a fatal error without either."""
    machine = simulated_machine()
    started(machine).close()
    (path,) = machine.segment_paths()
    disk_of(machine).inject("pread", errno.EIO, path_part=".wal")
    with pytest.raises(Corruption, match=r"cannot be read.*put it back") as caught:
        machine.open()
    assert {"file": path} == caught.value.metadata


def test_recovery_syncs_before_it_believes() -> None:
    """An fdatasync error while recovering ends the process: what was read might not be on the disk."""
    machine = simulated_machine()
    started(machine)
    disk_of(machine).inject("fdatasync", errno.EIO, path_part=".wal")
    with pytest.raises(Fatal):
        machine.open()


def test_allocation_ahead_and_writes_do_not_collide(tmp_path: Path) -> None:
    """A thread allocates ahead while the log rolls through segments; every segment has one creator, nothing is lost."""
    machine = os_machine(str(tmp_path))
    wal = started(machine)
    stop = threading.Event()

    def allocate() -> None:
        while not stop.is_set():
            wal.preallocate()

    thread = threading.Thread(target=allocate)
    thread.start()
    for lo in range(1, 300, 10):
        wal.write([write(1, entries(lo, lo + 10, 1, 300))])
        wal.sync()
    stop.set()
    thread.join()
    expected = state_of(wal)
    assert state_of(machine.open()) == expected


def test_the_production_handler_exits_with_70(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line on stderr and `os._exit(70)`; nothing else runs."""
    codes: list[int] = []

    def exit_now(code: int) -> None:
        codes.append(code)
        raise Fatal

    monkeypatch.setattr("os._exit", exit_now)
    with pytest.raises(Fatal):
        exit_process("log: EIO")
    assert codes == [70]
    assert capfd.readouterr().err == "raftcache: fatal storage error, exiting: log: EIO\n"


def test_the_default_handler_is_the_production_one(tmp_path: Path) -> None:
    """Whoever forgets to pass a handler gets the safe one."""
    wal = Wal.open(OsDisk(), f"{tmp_path}/log", SMALL, (CLUSTER, NODE))
    wal.close()
    assert inspect.signature(Wal.open).parameters["fatal"].default is exit_process
