"""The life cycle of a replica's state, the same over LMDB and in the simulator."""

from pathlib import Path

import crc32c
import pytest

from raftcache.errors import Corruption, UnsupportedVersion
from raftcache.ids import Index, Term
from raftcache.raft.messages import SnapshotMeta
from raftcache.storage.checkpoint_file import HEADER_FILE, STATE_FILE
from raftcache.storage.disk import Disk, OsDisk, read_file, write_file_atomically
from raftcache.storage.simulated_state import MemoryLive
from raftcache.storage.state import CheckpointFailed, CheckpointResult
from tests.storage.state_driver import CONFIGURATION, FIRST, Home, Replica, transfer, verified


@pytest.fixture(params=["lmdb", "simulated"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    return Home.lmdb(tmp_path, OsDisk()) if request.param == "lmdb" else Home.memory()


def disk_of(home: Home) -> Disk:
    assert home.disk is not None, "every home here has a disk"
    return home.disk


def names(home: Home, directory: str) -> list[str]:
    return disk_of(home).listdir(f"{home.directory(1)}/{directory}")


def flip(home: Home, path: str, offset: int) -> None:
    """One bit of a file changes behind everybody's back."""
    data = bytearray(read_file(disk_of(home), path))
    data[offset] ^= 0x10
    write_file_atomically(disk_of(home), path, data)


def test_replica_without_a_state_opens_as_nothing(home: Home) -> None:
    """A replica that joins a group has neither records nor a checkpoint."""
    store = home.store(1)

    assert store.open() is None
    assert store.newest() is None


def test_first_state_is_durable_as_a_checkpoint(home: Home) -> None:
    """After bootstrap the state comes back although its live records are discarded."""
    replica = Replica(home).bootstrap()
    replica.store.discard_live()

    assert replica.reopen() == FIRST.index
    assert replica.store.newest() == FIRST
    assert not replica.store.resumed
    replica.verify()
    replica.store.discard_live()


def test_unclean_stop_goes_back_to_the_checkpoint(home: Home) -> None:
    """What was applied after the checkpoint is not believed, committed or not; the log brings it back."""
    replica = Replica(home).bootstrap()
    replica.put(b"a", b"1")
    verified(replica.checkpoint())
    replica.put(b"b", b"2")
    replica.machine.flush()
    replica.store.commit()
    replica.store.discard_live()

    assert replica.reopen() == Index(2)
    assert (replica.get(b"a"), replica.get(b"b")) == (b"1", b"2")
    replica.verify()
    replica.store.discard_live()


def test_clean_marker_is_honoured_exactly_once(home: Home) -> None:
    """A clean stop resumes the live records; a crash right after that start finds no marker any more."""
    replica = Replica(home).bootstrap()
    replica.put(b"a", b"1")
    replica.close_clean()

    assert replica.reopen() == Index(2)
    assert replica.store.resumed
    assert replica.get(b"a") == b"1"
    replica.verify()
    replica.store.discard_live()
    assert replica.reopen() == FIRST.index
    assert not replica.store.resumed
    replica.store.discard_live()


def test_marker_of_an_incompletely_flushed_state_is_not_written(home: Home) -> None:
    """Without a complete flush the records do not describe themselves, so nothing may vouch for them."""
    replica = Replica(home).bootstrap()
    replica.put(b"a", b"1")
    replica.machine.flush(complete=False)
    replica.store.close_clean()

    assert replica.reopen() == FIRST.index
    replica.store.discard_live()


def test_damaged_marker_vouches_for_nothing(home: Home) -> None:
    """A marker that fails its checksum is consumed and the state is rebuilt."""
    replica = Replica(home).bootstrap()
    replica.put(b"a", b"1")
    replica.close_clean()
    flip(home, f"{home.directory(1)}/clean", 30)

    assert replica.reopen() == FIRST.index
    assert "clean" not in disk_of(home).listdir(home.directory(1))
    replica.store.discard_live()


@pytest.mark.parametrize("damage", ["flipped", "longer", "shorter"])
def test_live_file_that_changed_after_the_marker_is_discarded(home: Home, damage: str) -> None:
    """The marker vouches for each byte of the live file and for no other file."""
    replica = Replica(home).bootstrap()
    replica.put(b"a", b"1")
    replica.close_clean()
    path = f"{home.directory(1)}/live/{'state' if home.simulated else 'data.mdb'}"
    data = read_file(disk_of(home), path)
    if damage == "flipped":
        flip(home, path, len(data) // 2)
    else:
        write_file_atomically(disk_of(home), path, data + bytes(4096) if damage == "longer" else data[:-4096])

    assert replica.reopen() == FIRST.index
    assert replica.get(b"a") == b"1"
    replica.store.discard_live()


def test_newer_checkpoint_supersedes_the_older(home: Home) -> None:
    """Only the newest checkpoint is kept once it is verified."""
    replica = Replica(home).bootstrap()
    replica.put(b"a", b"1")

    assert verified(replica.checkpoint()).meta == replica.store.newest() == replica.meta
    home.loop.run_until(lambda: names(home, "checkpoints") == ["2-1"])
    replica.store.discard_live()


def test_checkpoint_being_sent_is_kept_until_the_reader_closes(home: Home) -> None:
    """A transfer that takes long does not lose its file to the next checkpoint, and releases it in the end."""
    replica = Replica(home).bootstrap()
    source = replica.store.open_checkpoint_for_read(FIRST)
    replica.put(b"a", b"1")
    verified(replica.checkpoint())
    home.loop.drain()

    assert names(home, "checkpoints") == ["1-1", "2-1"]
    chunks = []
    while chunk := source.chunk():
        chunks.append(chunk)
    assert sum(map(len, chunks)) == source.size
    source.close()
    home.loop.run_until(lambda: names(home, "checkpoints") == ["2-1"])
    replica.store.discard_live()


def test_checkpoint_holds_exactly_the_commit_it_was_begun_at(home: Home) -> None:
    """The writer goes on while the copy is drawn, and commits; the checkpoint knows nothing of it."""
    replica = Replica(home).bootstrap()
    replica.put_many({b"key%d" % number: bytes(500) for number in range(2_000)})
    results = replica.begin_checkpoint()
    meta = replica.meta
    for number in range(20):
        replica.put(b"later%d" % number, b"x")
        replica.machine.flush()
        replica.store.commit()
    home.loop.run_until(lambda: bool(results))

    assert verified(results[0]).meta == meta
    replica.store.discard_live()
    replica.log.clear()
    assert replica.reopen() == meta.index
    assert replica.get(b"later0") is None
    replica.store.discard_live()


def test_second_checkpoint_of_the_same_state_is_a_scrub(home: Home) -> None:
    """With nothing new to keep the copy is verified all the same, and the checkpoint that is there stays."""
    replica = Replica(home).bootstrap()

    assert verified(replica.checkpoint()).meta == FIRST
    home.loop.drain()
    assert names(home, "checkpoints") == ["1-1"]
    replica.store.discard_live()


def test_snapshot_is_received_verified_and_installed(home: Home) -> None:
    """A replica without a state gets one from another; so does one with an older state."""
    sender = Replica(home, 1).bootstrap()
    sender.put(b"a", b"1")
    verified(sender.checkpoint())
    blank = Replica(home, 2)
    assert blank.store.open() is None
    old = Replica(home, 3).bootstrap()
    old.put(b"stale", b"x")

    for receiver in (blank, old):
        result = transfer(sender.store, receiver.store, home.loop)
        assert verified(result).meta == sender.meta
        receiver.adopt(receiver.store.install(sender.meta))
        assert (receiver.get(b"a"), receiver.get(b"stale")) == (b"1", None)
        receiver.verify()
        receiver.put(b"after", b"2")
        assert verified(receiver.checkpoint()).meta.index == sender.meta.index + 1
        receiver.store.discard_live()
    sender.store.discard_live()


def test_received_snapshot_survives_a_crash_before_it_was_installed(home: Home) -> None:
    """Once it was reported as verified, the next start begins from it."""
    sender = Replica(home, 1).bootstrap()
    sender.put(b"a", b"1")
    verified(sender.checkpoint())
    receiver = Replica(home, 2).bootstrap()
    verified(transfer(sender.store, receiver.store, home.loop))
    receiver.store.discard_live()

    assert receiver.reopen() == sender.meta.index
    assert receiver.get(b"a") == b"1"
    receiver.store.discard_live()
    sender.store.discard_live()


@pytest.mark.parametrize("damage", ["flipped", "cut", "too long", "other index", "other digest"])
def test_snapshot_that_is_not_what_was_announced_is_refused(home: Home, damage: str) -> None:
    """Nothing that came damaged, short, long or under another name becomes a checkpoint; the state stays as it was."""
    sender = Replica(home, 1).bootstrap()
    sender.put(b"a", b"1")
    verified(sender.checkpoint())
    receiver = Replica(home, 2).bootstrap()
    source = sender.store.open_checkpoint_for_read(sender.meta)
    chunks = []
    while chunk := source.chunk():
        chunks.append(chunk)
    meta, digest = sender.meta, source.digest
    if damage == "flipped":
        chunks[-1] = chunks[-1][:-100] + bytes([chunks[-1][-100] ^ 1]) + chunks[-1][-99:]
    if damage == "cut":
        chunks[-1] = chunks[-1][:-1]
    if damage == "too long":
        chunks.append(b"x")
    if damage == "other index":
        meta = SnapshotMeta(Index(7), Term(1), CONFIGURATION)
    if damage == "other digest":
        digest = bytes(16)

    incoming = receiver.store.begin_incoming(meta, size=source.size, digest=digest)
    results: list[CheckpointResult] = []
    try:
        for chunk in chunks:
            incoming.add(chunk)
    except Corruption:
        incoming.abandon()
    else:
        incoming.finish(results.append)
        home.loop.run_until(lambda: bool(results))
        assert isinstance(results[0], CheckpointFailed)
        assert not results[0].fatal
    assert receiver.store.newest() == FIRST
    assert disk_of(home).listdir(f"{home.directory(2)}/checkpoints") == ["1-1"]
    receiver.store.discard_live()
    sender.store.discard_live()


def test_own_checkpoint_does_not_prune_a_snapshot_that_was_just_received(home: Home) -> None:
    """Both end at once: whichever is heard of first, the newer one stays."""
    sender = Replica(home, 1).bootstrap()
    for number in range(5):
        sender.put(b"a", b"%d" % number)
    verified(sender.checkpoint())
    receiver = Replica(home, 2).bootstrap()
    receiver.put(b"b", b"1")
    source = sender.store.open_checkpoint_for_read(sender.meta)
    incoming = receiver.store.begin_incoming(sender.meta, size=source.size, digest=source.digest)
    while chunk := source.chunk():
        incoming.add(chunk)
    source.close()
    results = receiver.begin_checkpoint()
    incoming.finish(results.append)
    home.loop.run_until(lambda: len(results) == 2)

    assert {verified(result).meta.index for result in results} == {2, 6}
    assert receiver.store.newest() == sender.meta
    receiver.adopt(receiver.store.install(sender.meta))
    assert receiver.get(b"a") == b"4"
    receiver.store.discard_live()
    assert receiver.reopen() == Index(6)
    receiver.store.discard_live()
    sender.store.discard_live()


def test_install_never_takes_what_another_checkpoint_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A received snapshot is made ready, then a checkpoint of the grown state makes itself ready in the same place."""
    home = Home.memory()
    monkeypatch.setattr(MemoryLive, "grown", lambda _: True)
    sender = Replica(home, 1).bootstrap()
    for number in range(5):
        sender.put(b"a", b"%d" % number)
    verified(sender.checkpoint())
    receiver = Replica(home, 2).bootstrap()
    receiver.put(b"b", b"1")
    source = sender.store.open_checkpoint_for_read(sender.meta)
    incoming = receiver.store.begin_incoming(sender.meta, size=source.size, digest=source.digest)
    while chunk := source.chunk():
        incoming.add(chunk)
    received: list[CheckpointResult] = []
    incoming.finish(received.append)
    receiver.begin_checkpoint()
    home.loop.run_until(lambda: bool(received))

    receiver.adopt(receiver.store.install(verified(received[0]).meta))
    assert receiver.machine.applied_index == sender.meta.index
    assert (receiver.get(b"a"), receiver.get(b"b")) == (b"4", None)


def test_snapshot_that_has_come_to_its_end_is_not_abandoned(home: Home) -> None:
    """Whoever drops it late, after it was handed over to be verified, takes nothing away; and it takes nothing more."""
    sender = Replica(home, 1).bootstrap()
    receiver = Replica(home, 2)
    assert receiver.store.open() is None
    source = sender.store.open_checkpoint_for_read(FIRST)
    incoming = receiver.store.begin_incoming(FIRST, size=source.size, digest=source.digest)
    while chunk := source.chunk():
        incoming.add(chunk)
    source.close()
    results: list[CheckpointResult] = []
    incoming.finish(results.append)
    incoming.abandon()
    with pytest.raises(Corruption, match="not wanted"):
        incoming.add(b"x")
    home.loop.run_until(lambda: bool(results))
    assert FIRST == verified(results[0]).meta
    receiver.store.discard_live()
    sender.store.discard_live()


def test_second_incoming_snapshot_replaces_the_first(home: Home) -> None:
    """A leader that starts over is not held up by what it began before."""
    sender = Replica(home, 1).bootstrap()
    receiver = Replica(home, 2)
    assert receiver.store.open() is None
    first = receiver.store.begin_incoming(FIRST, size=1000, digest=b"")
    verified(transfer(sender.store, receiver.store, home.loop))

    with pytest.raises(Corruption, match="not wanted"):
        first.add(b"x")
    receiver.adopt(receiver.store.install(FIRST))
    receiver.verify()
    receiver.store.discard_live()
    sender.store.discard_live()


@pytest.mark.parametrize("part", [HEADER_FILE, STATE_FILE])
def test_flipped_bit_in_the_only_checkpoint_is_reported_not_served(home: Home, part: str) -> None:
    """With no intact checkpoint the store says so and what to do, and still takes a snapshot from the leader."""
    sender = Replica(home, 1).bootstrap()
    replica = Replica(home, 2).bootstrap()
    replica.store.discard_live()
    flip(home, f"{home.directory(2)}/checkpoints/1-1/{part}", 100)

    store = home.store(2)
    with pytest.raises(Corruption, match="fetches a snapshot from its leader"):
        store.open()
    assert store.newest() is None
    verified(transfer(sender.store, store, home.loop))
    replica.adopt(store.install(FIRST))
    replica.verify()
    store.discard_live()
    assert replica.reopen() == FIRST.index
    replica.store.discard_live()
    sender.store.discard_live()


@pytest.mark.parametrize("damage", ["flipped", "cut", "header cut"])
def test_damaged_newest_checkpoint_falls_back_to_an_older_one(home: Home, damage: str) -> None:
    """An older checkpoint that is still there serves; whether the log reaches it is the node's to check."""
    replica = Replica(home).bootstrap()
    source = replica.store.open_checkpoint_for_read(FIRST)
    replica.put(b"a", b"1")
    verified(replica.checkpoint())
    replica.store.discard_live()
    source.close()
    path = f"{home.directory(1)}/checkpoints/2-1/{HEADER_FILE if damage == 'header cut' else STATE_FILE}"
    if damage == "flipped":
        flip(home, path, 5000 if not home.simulated else 500)
    else:
        write_file_atomically(disk_of(home), path, read_file(disk_of(home), path)[:-7])

    assert replica.reopen() == FIRST.index
    assert replica.store.newest() == FIRST
    assert replica.get(b"a") == b"1"
    verified(replica.checkpoint())
    replica.store.discard_live()
    assert replica.reopen() == Index(2)
    replica.store.discard_live()


def test_damaged_checkpoint_under_a_clean_live_state_is_not_offered(home: Home) -> None:
    """The live state goes on; its damaged checkpoint is not sent and bounds no log, and the next one replaces it."""
    replica = Replica(home).bootstrap()
    replica.close_clean()
    flip(home, f"{home.directory(1)}/checkpoints/1-1/{STATE_FILE}", 100)

    assert replica.reopen() == FIRST.index
    assert replica.store.resumed
    assert replica.store.newest() is None
    with pytest.raises(Corruption):
        replica.store.open_checkpoint_for_read(FIRST)
    verified(replica.checkpoint())
    assert replica.store.newest() == FIRST
    replica.store.discard_live()
    assert replica.reopen() == FIRST.index
    replica.store.discard_live()


def test_damaged_checkpoint_is_not_installed(home: Home) -> None:
    """It is refused, never half taken, and offered to nobody from then on."""
    replica = Replica(home).bootstrap()
    flip(home, f"{home.directory(1)}/checkpoints/1-1/{STATE_FILE}", 100)
    with pytest.raises(Corruption):
        replica.store.install(FIRST)
    assert replica.store.newest() is None
    replica.store.discard_live()


def test_checkpoint_of_a_newer_release_is_kept_and_not_opened(home: Home) -> None:
    """After a downgrade the node refuses to start, with both versions in the message, and destroys nothing."""
    replica = Replica(home).bootstrap()
    replica.store.discard_live()
    path = f"{home.directory(1)}/checkpoints/1-1/{HEADER_FILE}"
    body = read_file(disk_of(home), path).split(b"\n")[0].replace(b'"version": 1', b'"version": 9')
    write_file_atomically(disk_of(home), path, body + b"\n" + f"{crc32c.crc32c(body):08x}\n".encode())

    with pytest.raises(UnsupportedVersion, match="version 9"):
        home.store(1).open()
    assert names(home, "checkpoints/1-1") == [HEADER_FILE, STATE_FILE]


def test_checkpoint_of_another_engine_is_fetched_anew(home: Home) -> None:
    """A data directory that moved to a machine with another page size is not mapped there."""
    replica = Replica(home).bootstrap()
    replica.store.discard_live()
    path = f"{home.directory(1)}/checkpoints/1-1/{HEADER_FILE}"
    form = replica.store.format.encode()
    body = read_file(disk_of(home), path).split(b"\n")[0].replace(form, b"lmdb 0.9, page 512")
    write_file_atomically(disk_of(home), path, body + b"\n" + f"{crc32c.crc32c(body):08x}\n".encode())

    with pytest.raises(Corruption, match="page 512 is not the form"):
        home.store(1).open()


def test_interrupted_work_is_reported_and_leaves_nothing_behind(home: Home) -> None:
    """Whoever waits for a checkpoint hears of it exactly once, also where the state was discarded meanwhile."""
    replica = Replica(home).bootstrap()
    replica.put(b"a", b"1")
    results = replica.begin_checkpoint()
    incoming = replica.store.begin_incoming(replica.meta, size=10, digest=b"")
    replica.store.discard_live()
    home.loop.drain()

    assert len(results) == 1
    with pytest.raises(Corruption):
        incoming.add(b"x")
    # The simulator's job was done at once, so its checkpoint may be there; a draft may not.
    assert set(names(home, "checkpoints")) <= {"1-1", "2-1"}
    replica.reopen()
    assert replica.get(b"a") == b"1"
    replica.store.discard_live()


def test_destroyed_replica_leaves_no_files(home: Home) -> None:
    """Nothing of a removed replica stays on the disk, whatever was in progress."""
    replica = Replica(home).bootstrap()
    replica.begin_checkpoint()
    replica.store.begin_incoming(FIRST, size=10, digest=b"")
    replica.store.destroy()
    home.loop.run_until(lambda: disk_of(home).listdir(f"{home.root}/replicas") == [])
    replica.store.destroy()
    home.loop.drain()


def test_checkpoint_that_claims_another_index_is_damage(home: Home) -> None:
    """The index is read from the copy: what the caller believes is checked against it."""
    replica = Replica(home).bootstrap()
    results: list[CheckpointResult] = []
    replica.store.begin_checkpoint(SnapshotMeta(Index(9), Term(1), CONFIGURATION), results.append)
    home.loop.run_until(lambda: bool(results))

    assert "not 9 of term 1" in str(results[0])
    assert replica.store.newest() == FIRST
    replica.store.discard_live()
