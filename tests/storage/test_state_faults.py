"""Disk errors on the way to a checkpoint: some are survived, some fatal, and a failed sync is never forgotten."""

import errno

import pytest

from raftcache.errors import Corruption, StorageFull
from raftcache.storage.checkpoints import SYNC_EVERY_BYTES, SyncFailed
from raftcache.storage.simulated_disk import SimulatedDisk, SimulatedFile
from raftcache.storage.state import CheckpointFailed, CheckpointResult, StateLost
from tests.storage.state_driver import FIRST, Home, Replica, transfer, verified


@pytest.fixture
def home() -> Home:
    return Home.memory()


def disk_of(home: Home) -> SimulatedDisk:
    assert isinstance(home.disk, SimulatedDisk)
    return home.disk


def failed(result: CheckpointResult) -> CheckpointFailed:
    assert isinstance(result, CheckpointFailed), result
    return result


def big(replica: Replica, size: int = 100_000) -> None:
    replica.put_many({b"key%d" % number: bytes([number]) * size for number in range(4)})


def test_full_disk_fails_the_checkpoint_and_nothing_else(home: Home) -> None:
    """The draft goes away, the old checkpoint stays, and the next attempt succeeds where there is space again."""
    replica = Replica(home).bootstrap()
    big(replica)
    disk_of(home).inject("pwrite", errno.ENOSPC, path_part="draft")

    result = failed(replica.checkpoint())
    assert isinstance(result.error, StorageFull)
    assert not result.fatal
    assert disk_of(home).listdir(f"{home.directory(1)}/checkpoints") == ["1-1"]
    assert verified(replica.checkpoint()).meta == replica.meta


@pytest.mark.parametrize("operation", ["mkdir", "create", "rename"])
def test_disk_that_refuses_a_name_fails_the_checkpoint(home: Home, operation: str) -> None:
    """Every operation of a publication may fail; the state that was there before is still there."""
    replica = Replica(home).bootstrap()
    big(replica)
    disk_of(home).inject(operation, errno.EIO, path_part="checkpoints")

    result = failed(replica.checkpoint())
    assert isinstance(result.error, Corruption)
    assert not result.fatal
    assert replica.store.newest() == FIRST
    assert replica.get(b"key1") == bytes([1]) * 100_000


@pytest.mark.parametrize(
    ("operation", "part"), [("fdatasync", "state"), ("fdatasync", "header"), ("fsync_directory", "draft")]
)
def test_failed_sync_of_a_checkpoint_is_fatal(home: Home, operation: str, part: str) -> None:
    """After a failed sync nobody knows what the disk holds: the process must end, and nobody retries."""
    replica = Replica(home).bootstrap()
    big(replica)
    disk_of(home).inject(operation, errno.EIO, path_part=part)

    assert failed(replica.checkpoint()).fatal


def test_failed_sync_of_a_first_state_is_raised(home: Home) -> None:
    """A group is not begun on a disk that does not sync."""
    replica = Replica(home)
    assert replica.store.open() is None
    disk_of(home).inject("fdatasync", errno.EIO, path_part="draft")

    with pytest.raises(SyncFailed):
        replica.bootstrap()


def test_failed_sync_in_the_middle_of_a_receipt_is_fatal_at_its_end(home: Home) -> None:
    """The file's later syncs succeed without the lost pages; the first failure counts."""
    sender = Replica(home, 1).bootstrap()
    sender.put_many({b"key%d" % number: bytes(1 << 20) for number in range(SYNC_EVERY_BYTES // (1 << 20) + 2)})
    verified(sender.checkpoint())
    receiver = Replica(home, 2)
    assert receiver.store.open() is None
    disk_of(home).inject("fdatasync", errno.EIO, path_part="replicas/2")

    assert failed(transfer(sender.store, receiver.store, home.loop)).fatal
    assert receiver.store.newest() is None


def test_full_disk_during_a_receipt_is_told_to_the_sender(home: Home) -> None:
    """The chunk that found no space raises; abandoned, the draft is gone."""
    sender = Replica(home, 1).bootstrap()
    receiver = Replica(home, 2)
    assert receiver.store.open() is None
    source = sender.store.open_checkpoint_for_read(FIRST)
    incoming = receiver.store.begin_incoming(FIRST, size=source.size, digest=source.digest)
    disk_of(home).inject("pwrite", errno.ENOSPC, path_part="replicas/2")

    with pytest.raises(StorageFull):
        while chunk := source.chunk():
            incoming.add(chunk)
    incoming.abandon()
    assert disk_of(home).listdir(f"{home.directory(2)}/checkpoints") == []


def test_receipt_is_synced_every_stretch_and_not_every_chunk(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that syncs all the time keeps the log waiting."""
    sender = Replica(home, 1).bootstrap()
    sender.put_many({b"key%d" % number: bytes(1 << 20) for number in range(2 * SYNC_EVERY_BYTES // (1 << 20) + 2)})
    verified(sender.checkpoint())
    receiver = Replica(home, 2)
    assert receiver.store.open() is None
    source = sender.store.open_checkpoint_for_read(sender.meta)
    incoming = receiver.store.begin_incoming(sender.meta, size=source.size, digest=source.digest)
    syncs: list[str] = []
    fdatasync = SimulatedFile.fdatasync

    def counted(file: SimulatedFile) -> None:
        syncs.append(file.path)
        fdatasync(file)

    monkeypatch.setattr(SimulatedFile, "fdatasync", counted)
    chunks = 0
    while chunk := source.chunk():
        incoming.add(chunk)
        home.loop.drain()
        chunks += 1
    assert (2, True) == (len(syncs), chunks > 6)
    incoming.abandon()


def test_snapshot_that_cannot_be_converted_leaves_nothing(home: Home) -> None:
    """It has come, as a logical stream, and there is no place for what is to be made of it: both are gone."""
    sender = Replica(home, 1).bootstrap()
    receiver = Replica(home, 2)
    assert receiver.store.open() is None
    receiver.store._live.format = "something else"
    disk_of(home).inject("mkdir", errno.ENOSPC, path_part="replicas/2", skip=1)

    result = failed(transfer(sender.store, receiver.store, home.loop))
    assert isinstance(result.error, StorageFull)
    assert disk_of(home).listdir(f"{home.directory(2)}/checkpoints") == []


def test_unreadable_checkpoint_is_reported_at_the_start(home: Home) -> None:
    """A read error is damage like any other: the replica says what to do instead of raising an OSError."""
    replica = Replica(home).bootstrap()
    replica.store.discard_live()
    disk_of(home).inject("pread", errno.EIO, path_part="state")

    with pytest.raises(Corruption, match="fetches a snapshot"):
        home.store(1).open()


def test_disk_that_cannot_remove_the_marker_keeps_the_state_closed(home: Home) -> None:
    """A marker that cannot be consumed might vouch twice, so nothing is opened under it."""
    replica = Replica(home).bootstrap()
    replica.close_clean()
    disk_of(home).inject("unlink", errno.EIO, path_part="clean")

    with pytest.raises(StateLost):
        home.store(1).open()
    assert replica.reopen() == FIRST.index


@pytest.mark.parametrize("operation", ["fdatasync", "rename", "fsync_directory"])
def test_clean_stop_that_fails_leaves_no_valid_marker(home: Home, operation: str) -> None:
    """A stop never raises; what it could not finish is rebuilt."""
    replica = Replica(home).bootstrap()
    replica.put(b"a", b"1")
    disk_of(home).inject(operation, errno.EIO)
    replica.close_clean()

    replica.reopen()
    assert replica.get(b"a") == b"1"
    replica.verify()
