"""A replica's state over LMDB: damage, full maps, foreign formats, dying verifiers and kill -9."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import crc32c
import pytest

from raftcache.errors import StorageFull, Unavailable, UnsupportedVersion
from raftcache.ids import Index, Term
from raftcache.kv.codec import encode_batch
from raftcache.kv.operations import Command, Delete
from raftcache.kv.slots import slot_of
from raftcache.storage.background import Job
from raftcache.storage.checkpoint_file import LOGICAL_FORMAT, STREAM_LENGTH
from raftcache.storage.disk import OsDisk
from raftcache.storage.live_state import Damaged
from raftcache.storage.lmdb_records import LmdbConfig
from raftcache.storage.lmdb_state import ChildVerifier, LmdbLive
from raftcache.storage.state import (
    CheckpointDamaged,
    CheckpointFailed,
    CheckpointResult,
    StateConfig,
    StateLost,
)
from raftcache.storage.verify_checkpoint import check_size, verify
from tests.storage.state_driver import FIRST, LMDB, Home, Replica, transfer, verified


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.lmdb(tmp_path)


def flip_in_place(path: Path, needle: bytes) -> None:
    """One bit of a mapped file changes, as on a failing disk or in bad memory."""
    data = path.read_bytes()
    offset = data.index(needle)
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        file.write(bytes([data[offset] ^ 1]))


def live_file(home: Home) -> Path:
    return Path(home.directory(1)) / "live" / "data.mdb"


def test_flipped_bit_in_the_live_state_is_found_by_its_checkpoint(home: Home) -> None:
    """The copy does not add up, which means that the live state is damaged; rebuilt, it is whole."""
    replica = Replica(home).bootstrap()
    replica.put(b"key", b"precious value")
    replica.machine.flush()
    replica.store.commit()
    flip_in_place(live_file(home), b"precious")

    result = replica.checkpoint()
    assert isinstance(result, CheckpointDamaged)
    assert "checksum" in result.found
    assert replica.store.newest() == FIRST
    replica.store.discard_live()
    replica.reopen()
    assert replica.get(b"key") == b"precious value"
    verified(replica.checkpoint())
    replica.store.discard_live()


def test_flipped_bits_anywhere_in_the_live_state_never_make_a_wrong_checkpoint(tmp_path: Path) -> None:
    """Wherever the bit lies, the checkpoint reports damage, or the process dies, or the bit meant nothing."""
    lines = victim(["flips", str(tmp_path), "16", "1"]).splitlines()

    outcomes = [int(line.split()[1]) for line in lines]
    assert len(outcomes) == 16
    signals = [-signal.SIGBUS, -signal.SIGSEGV, -signal.SIGABRT]
    assert set(outcomes) <= {10, 11, *signals}, lines
    assert 10 in outcomes


def test_truncated_file_is_refused_before_it_is_mapped(home: Home) -> None:
    """A state file shorter than its meta page claims is damage, and not a SIGBUS; be it by one byte."""
    replica = Replica(home).bootstrap()
    replica.put_many({b"key%d" % number: bytes(1000) for number in range(100)})
    verified(replica.checkpoint())
    path = f"{home.directory(1)}/checkpoints/2-1/state"
    replica.store.discard_live()
    check_size(path)
    size = os.stat(path).st_size
    for left in (size - 1, size // 2):
        os.truncate(path, left)
        with pytest.raises(Damaged, match="claims"):
            check_size(path)
    with pytest.raises(Damaged, match="claims"):
        ChildVerifier().verify(path, Job())
    os.truncate(path, 0)
    with pytest.raises(Damaged, match="not an LMDB file"):
        ChildVerifier().verify(path, Job())


def test_verified_file_is_forgotten_by_the_page_cache(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it does not add up; and once nobody maps it any more, or the kernel would keep it."""
    replica = Replica(home).bootstrap()
    replica.put(b"key", b"precious value")
    replica.machine.flush()
    replica.store.commit()
    path = live_file(home).parent / "closed"
    path.write_bytes(live_file(home).read_bytes())
    forgotten: list[tuple[int, int]] = []

    def fadvise(descriptor: int, offset: int, length: int, advice: int) -> None:
        assert (0, 0, os.POSIX_FADV_DONTNEED) == (offset, length, advice)
        mapped = Path("/proc/self/maps").read_text()
        forgotten.append((os.fstat(descriptor).st_ino, mapped.count(str(path))))

    monkeypatch.setattr(os, "posix_fadvise", fadvise)
    expected = (path.stat().st_ino, 0)
    verify(str(path))
    assert [expected] == forgotten
    flip_in_place(path, b"precious")
    with pytest.raises(Damaged):
        verify(str(path))
    assert [expected, expected] == forgotten
    replica.store.discard_live()


def test_full_map_loses_the_state_and_a_larger_one_rebuilds_it(home: Home) -> None:
    """The replica stops at the full map; opened with more room, it comes back by checkpoint and log."""
    replica = Replica(home)
    replica.store = home.store(1, lmdb=LmdbConfig(map_bytes=4 << 20))
    replica.bootstrap()
    with pytest.raises(StateLost, match=r"storage\.map_bytes"):
        for number in range(1000):
            replica.put_many({b"key%d-%d" % (number, item): bytes(1000) for item in range(20)})
    replica.store.discard_live()

    assert replica.reopen() == FIRST.index
    assert replica.machine.applied_index == max(replica.log)
    replica.verify()
    replica.store.discard_live()


def test_first_state_begins_without_what_an_interrupted_one_left(tmp_path: Path) -> None:
    """A group that is begun once more finds no record of the first attempt, whatever that had got to."""
    live = LmdbLive(str(tmp_path), LMDB, OsDisk())
    for _ in range(2):
        records = live.create()
        assert [] == list(records.scan(b"", None))
        records.put(b"k", b"v")
        live.close(synced=True)


def test_deleted_records_make_room_at_once(home: Home) -> None:
    """What a state takes is what its records take: a page that holds nothing any more is counted as free."""
    replica = Replica(home)
    replica.store = home.store(1, lmdb=LmdbConfig(map_bytes=16 << 20))
    assert (0, 0) == replica.store.space(), "not open"
    replica.bootstrap()
    empty, limit = replica.store.space()
    assert 16 << 20 == limit
    keys = [b"key%d" % number for number in range(500)]
    replica.put_many(dict.fromkeys(keys, bytes(4_000)))
    full, _ = replica.store.space()
    assert full > empty + 500 * 4_000
    for key in keys:
        index = Index(replica.machine.applied_index + 1)
        replica.machine.apply(index, Term(1), encode_batch([Command(Delete(key), slot_of(key))], proposed_ms=1))
    left, _ = replica.store.space()
    assert left < empty + 100_000
    replica.store.discard_live()


def test_full_map_at_a_clean_stop_leaves_no_marker(home: Home) -> None:
    """What could not be committed is not vouched for."""
    replica = Replica(home)
    replica.store = home.store(1, lmdb=LmdbConfig(map_bytes=4 << 20))
    replica.bootstrap()
    with pytest.raises(StateLost):
        for number in range(1000):
            replica.put_many({b"key%d-%d" % (number, item): bytes(1000) for item in range(20)})
    replica.store.close_clean()

    assert not (Path(home.directory(1)) / "clean").exists()
    assert replica.reopen() == FIRST.index
    replica.store.discard_live()


def test_checkpoint_travels_as_a_logical_stream_between_formats(home: Home) -> None:
    """LMDB to memory, memory to LMDB, and LMDB to LMDB as if page sizes differed: the same records everywhere."""
    sender = Replica(home, 1).bootstrap()
    sender.put_many({b"key%d" % number: b"%d" % number for number in range(50)})
    verified(sender.checkpoint())
    elsewhere = Home.memory()
    elsewhere.loop = home.loop
    memory = Replica(elsewhere, 2)
    assert memory.store.open() is None
    verified(transfer(sender.store, memory.store, home.loop, logical=True))
    memory.adopt(memory.store.install(sender.meta))
    other = Replica(home, 3)
    assert other.store.open() is None
    verified(transfer(memory.store, other.store, home.loop))
    other.adopt(other.store.install(sender.meta))
    again = Replica(home, 4)
    assert again.store.open() is None
    verified(transfer(sender.store, again.store, home.loop, logical=True))
    again.adopt(again.store.install(sender.meta))

    for replica in (memory, other, again):
        replica.verify()
        assert replica.machine.state_hash == sender.machine.state_hash
        assert replica.get(b"key49") == b"49"
        replica.store.discard_live()
    sender.store.discard_live()


def test_snapshot_of_a_foreign_format_is_refused_by_its_name(home: Home) -> None:
    """A file of another engine or page size is never opened; the answer says what this node takes."""
    sender = Replica(Home.memory(), 1).bootstrap()
    receiver = Replica(home, 2)
    assert receiver.store.open() is None
    source = sender.store.open_checkpoint_for_read(FIRST)
    stream = b"".join(iter(source.chunk, b""))
    assert LOGICAL_FORMAT.encode() in stream
    receiver.store._live.format = "something else"
    # Without logical streams: rename the format in the header, which needs a new checksum.
    (length,) = STREAM_LENGTH.unpack_from(stream)
    body = stream[4 : 4 + length].split(b"\n")[0].replace(LOGICAL_FORMAT.encode(), b"lmdb 3")
    header = body + b"\n" + f"{crc32c.crc32c(body):08x}\n".encode()
    stream = STREAM_LENGTH.pack(len(header)) + header + stream[4 + length :]
    incoming = receiver.store.begin_incoming(FIRST, size=len(stream), digest=source.digest)
    incoming.add(stream)
    results: list[CheckpointResult] = []
    incoming.finish(results.append)
    home.loop.run_until(lambda: bool(results))

    assert isinstance(results[0], CheckpointFailed)
    assert isinstance(results[0].error, UnsupportedVersion)
    receiver.store.discard_live()


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("kill -BUS $$", Damaged),
        ("kill -SEGV $$", Damaged),
        ("kill -XCPU $$", Damaged),
        ("kill -KILL $$", Unavailable),
        ("echo broken >&2; exit 3", Unavailable),
    ],
)
def test_verifier_that_dies_says_as_much_as_its_death_does(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, error: type[Exception]
) -> None:
    """A fault while reading is damage; anything else leaves open whether the file is good, so nothing is concluded."""
    replica = Replica(home).bootstrap()
    replica.put(b"a", b"1")
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(fake))
    result = replica.checkpoint()

    if error is Damaged:
        assert isinstance(result, CheckpointDamaged)
    else:
        assert isinstance(result, CheckpointFailed)
        assert isinstance(result.error, error)
        assert not result.fatal
    assert replica.store.newest() == FIRST
    assert os.listdir(f"{home.directory(1)}/checkpoints") == ["1-1"]
    replica.store.discard_live()


def test_verifier_that_hangs_is_ended_with_its_replica(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Discarding the state does not wait for a verifier: it kills it, and the checkpoint is reported as cancelled."""
    replica = Replica(home).bootstrap()
    replica.put(b"a", b"1")
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\necho x > {fifo}\nexec cat {fifo}\n")
    fake.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(fake))
    results = replica.begin_checkpoint()
    assert fifo.read_text() == "x\n"
    replica.store.discard_live()
    home.loop.drain()

    assert isinstance(results[0], CheckpointFailed)
    assert isinstance(results[0].error, Unavailable)


def test_little_free_space_refuses_a_snapshot_before_it_comes(home: Home) -> None:
    """A snapshot that would fill the disk is refused when it is announced, and not when the log needs the space."""
    store = home.store(1, config=StateConfig(free_bytes_min=1 << 60))
    assert store.open() is None

    with pytest.raises(StorageFull, match="needs"):
        store.begin_incoming(FIRST, size=1000, digest=b"")


def test_checkpoint_without_room_is_not_begun(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would fill the disk, and the log would meet it first."""
    replica = Replica(home).bootstrap()
    replica.put_many({b"key%d" % number: bytes(1_000) for number in range(1_000)})
    replica.put(b"key", b"value")
    with monkeypatch.context() as patch:
        patch.setattr(OsDisk, "free_bytes", lambda self, path: 500_000)
        patch.setattr(LmdbLive, "copy", lambda self: pytest.fail("it was begun"))
        result = replica.checkpoint()
    assert isinstance(result, CheckpointFailed)
    assert isinstance(result.error, StorageFull)
    assert not result.fatal
    assert verified(replica.checkpoint()).meta == replica.meta


def test_environment_grown_past_twice_its_records_is_replaced(home: Home) -> None:
    """After most keys are gone the live file is waste; a checkpoint and a new start make it small again."""
    replica = Replica(home)
    replica.store = home.store(1, lmdb=LmdbConfig(map_bytes=1 << 30, waste_bytes_min=1 << 20))
    replica.bootstrap()
    names = [b"key%d" % number for number in range(300)]
    replica.put_many({name: bytes(10_000) for name in names})
    replica.machine.flush()
    replica.store.commit()
    assert not replica.store.needs_compaction()
    replica.put_many(dict.fromkeys(names, b""))
    replica.machine.flush()
    replica.store.commit()
    assert replica.store.needs_compaction()
    before = live_file(home).stat().st_size
    verified(replica.checkpoint())
    replica.adopt(replica.store.install(replica.meta))

    assert not replica.store.needs_compaction()
    assert live_file(home).stat().st_size < before // 2
    replica.verify()
    replica.store.discard_live()
    assert not (Path(home.directory(1)) / "live-old").exists()


def test_paced_copy_is_the_same_copy(home: Home) -> None:
    """The pace changes when bytes are written and not which."""
    replica = Replica(home)
    replica.store = home.store(1, config=StateConfig(copy_bytes_per_second=1 << 30, free_bytes_min=0))
    replica.bootstrap()
    replica.put_many({b"key%d" % number: bytes(5000) for number in range(600)})

    assert verified(replica.checkpoint()).bytes > 3 << 20
    replica.store.discard_live()


def victim(arguments: list[str]) -> str:
    """What a `state_victim` printed. It forks, so it is a process of its own."""
    command = [sys.executable, "-m", "tests.storage.state_victim", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout


def test_kill_before_any_disk_operation_reopens_as_old_or_as_new(tmp_path: Path) -> None:
    """Bootstrap, checkpoint, receipt, install, clean stop and start, killed at every fifth step of the disk."""
    lines = victim(["operations", str(tmp_path), "5"]).splitlines()

    assert len(lines) > 10
    for line in lines[:-1]:
        assert line.endswith(f" {-signal.SIGKILL} 0"), line
    assert lines[-1].endswith(" 0 0")


@pytest.mark.parametrize("promises", [1, 4, 9])
def test_kill_in_the_middle_of_a_busy_life_keeps_every_promise(tmp_path: Path, promises: int) -> None:
    """Killed somewhere between commits, copies and installs, it comes back at or above the last promised index."""
    command = [sys.executable, "-m", "tests.storage.state_victim", "busy", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        promised = [int(process.stdout.readline().split()[1]) for _ in range(promises)]
        process.kill()
        promised += [int(line.split()[1]) for line in process.stdout if line.endswith("\n")]

    replica = Replica(Home.lmdb(tmp_path / "data", OsDisk()))
    assert replica.reopen() >= Index(promised[-1])
    replica.verify()
    replica.store.discard_live()
