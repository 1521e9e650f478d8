"""A program that is killed, or whose files are damaged, while it keeps a state: `python -m tests.storage.state_victim`.

    operations DIRECTORY STRIDE     a life that ends by SIGKILL before the n-th disk operation, for every STRIDE-th n
    flips DIRECTORY COUNT SEED      a bit of the live file changes; what does a checkpoint say?
    busy DIRECTORY                  commits, checkpoints and installs without end, and says what it promised

The first two run each life in a forked child. LMDB must not be forked, so this process itself never opens an
environment.
"""

import os
import signal
import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from raftcache.errors import RaftCacheError
from raftcache.storage.background import Job
from raftcache.storage.disk import Buffer, OsDisk, OsFile
from raftcache.storage.live_state import Damaged, Verified
from raftcache.storage.lmdb_state import ChildVerifier
from raftcache.storage.state import CheckpointDamaged, CheckpointVerified
from raftcache.storage.verify_checkpoint import verify
from tests.storage.state_driver import Home, Replica, transfer, verified


class KillingDisk(OsDisk):
    """Counts what changes the disk and kills the process before operation `kill_at`."""

    def __init__(self, kill_at: int) -> None:
        self.operations = 0
        self.kill_at = kill_at

    def _count(self) -> None:
        if self.operations == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.operations += 1

    def open(self, path: str, *, create: bool = False) -> "KillingFile":
        if create:
            self._count()
        return KillingFile(super().open(path, create=create), self._count)

    def rename(self, source: str, target: str) -> None:
        self._count()
        super().rename(source, target)

    def unlink(self, path: str) -> None:
        self._count()
        super().unlink(path)

    def mkdir(self, path: str) -> None:
        self._count()
        super().mkdir(path)

    def rmdir(self, path: str) -> None:
        self._count()
        super().rmdir(path)

    def fsync_directory(self, path: str) -> None:
        self._count()
        super().fsync_directory(path)


class KillingFile(OsFile):
    """A file of a `KillingDisk`; it takes over the descriptor of an open one."""

    __slots__ = ("_count",)

    def __init__(self, file: OsFile, count: Callable[[], None]) -> None:
        super().__init__(file.path, file._descriptor)
        self._count = count

    def pwrite(self, data: Buffer, offset: int) -> None:
        self._count()
        super().pwrite(data, offset)

    def fdatasync(self) -> None:
        self._count()
        super().fdatasync()

    def truncate(self, size: int) -> None:
        self._count()
        super().truncate(size)


def verify_here(self: ChildVerifier, path: str, job: Job) -> Verified:
    """In place of a child process: these lives are short and many."""
    return verify(path)


def life(home: Home, sender: Replica, say: Callable[[int], None]) -> None:
    """Every transition once. `say` is told the index that a start may not fall below."""
    replica = Replica(home)
    replica.bootstrap()
    say(1)
    replica.put(b"a", b"1")
    verified(replica.checkpoint())
    say(2)
    home.loop.drain()
    verified(transfer(sender.store, replica.store, home.loop))
    say(4)
    replica.adopt(replica.store.install(sender.meta))
    replica.put(b"c", b"3")
    replica.close_clean()
    say(5)
    replica = Replica(home)
    # The marker is consumed from here on.
    say(4)
    replica.reopen()
    if replica.machine.applied_index == 4:
        replica.put(b"c", b"3")
    replica.put(b"d", b"4")
    verified(replica.checkpoint())
    say(6)
    replica.store.discard_live()
    home.loop.drain()


def sender_at_4(path: Path) -> Replica:
    sender = Replica(Home.lmdb(path))
    sender.bootstrap()
    for key, value in ((b"a", b"1"), (b"b", b"2"), (b"a", b"5")):
        sender.put(key, value)
    verified(sender.checkpoint())
    return sender


def in_child(work: Callable[[], int]) -> int:
    """The exit status of a fork that does `work`; negative for the signal that ended it."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = work()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_life(path: Path, kill_at: int) -> int:
    """The life, on a disk that kills; the promise of the moment stands in the file `promised`."""
    path.mkdir()
    (path / "sender").mkdir()
    (path / "data").mkdir()
    sender = sender_at_4(path / "sender")

    def promise(index: int) -> None:
        (path / "promising").write_text(str(index))
        (path / "promising").rename(path / "promised")

    life(Home.lmdb(path / "data", KillingDisk(kill_at)), sender, promise)
    return 0


def checked_start(path: Path) -> int:
    """What a start finds after the kill; 0 if it is one of the possible states and adds up."""
    promised = int((path / "promised").read_text()) if (path / "promised").exists() else 0
    replica = Replica(Home.lmdb(path / "data"))
    records = replica.store.open()
    if records is None:
        return 0 if promised == 0 else 3
    replica.adopt(records)
    replica.verify()
    index = replica.machine.applied_index
    expected: dict[int, list[bytes | None]] = {
        1: [None, None, None, None],
        2: [b"1", None, None, None],
        4: [b"5", b"2", None, None],
        5: [b"5", b"2", b"3", None],
        6: [b"5", b"2", b"3", b"4"],
    }
    if index < promised:
        return 4
    return 0 if [replica.get(key) for key in (b"a", b"b", b"c", b"d")] == expected[index] else 5


def run_operations(directory: Path, stride: int) -> None:
    kill_at = 0
    while True:
        path = directory / str(kill_at)
        ended = in_child(partial(killed_life, path, kill_at))
        started = in_child(partial(checked_start, path))
        sys.stdout.write(f"{kill_at} {ended} {started}\n")
        if ended == 0:
            return
        kill_at += stride


def run_flips(directory: Path, count: int, seed: int) -> None:
    random = Random(seed)
    for number in range(count):
        path = directory / str(number)
        position, bit = random.random(), random.randrange(8)
        ended = in_child(partial(flipped_life, path, position, bit))
        sys.stdout.write(f"{number} {ended} {position:.4f} {bit}\n")


def flipped_life(path: Path, position: float, bit: int) -> int:
    """10: the checkpoint reports damage. 11: it verifies, and indeed nothing is wrong. 12: it verifies and lies."""
    path.mkdir()
    replica = Replica(Home.lmdb(path))
    replica.bootstrap()
    values = {b"key%05d" % number: b"value %d" % number for number in range(600)}
    replica.put_many(values)
    replica.machine.flush()
    replica.store.commit()
    live = path / "replicas" / "1" / "live" / "data.mdb"
    offset = int(position * live.stat().st_size)
    with live.open("r+b", buffering=0) as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))
    try:
        result = replica.checkpoint()
    except (AssertionError, RaftCacheError, Damaged, struct.error, ValueError, KeyError):
        # The machine or LMDB met the damage before the copy did.
        return 10
    if isinstance(result, CheckpointDamaged):
        return 10
    if not isinstance(result, CheckpointVerified):
        return 13
    meta = replica.meta
    replica.store.discard_live()
    replica.log.clear()
    replica.reopen()
    if replica.meta == meta and all(replica.get(key) == value for key, value in values.items()):
        return 11
    return 12


def run_busy(directory: Path) -> None:
    """Prints `promised <index>` after each promise; the test kills it somewhere."""
    (directory / "sender").mkdir()
    (directory / "data").mkdir()
    sender = Replica(Home.lmdb(directory / "sender"))
    sender.bootstrap()
    home = Home.lmdb(directory / "data")
    replica = Replica(home)
    replica.bootstrap()
    random = Random(1)
    while True:
        for _ in range(random.randrange(1, 20)):
            sender.put(b"key%d" % random.randrange(100), random.randbytes(300))
        verified(sender.checkpoint())
        verified(transfer(sender.store, replica.store, home.loop))
        sys.stdout.write(f"promised {sender.meta.index}\n")
        sys.stdout.flush()
        replica.adopt(replica.store.install(sender.meta))
        for _ in range(random.randrange(1, 20)):
            replica.put(b"key%d" % random.randrange(100), random.randbytes(300))
            replica.machine.flush()
            replica.store.commit()
        verified(replica.checkpoint())
        sys.stdout.write(f"promised {replica.meta.index}\n")
        sys.stdout.flush()
        # The sender's index must stay ahead.
        while sender.machine.applied_index <= replica.machine.applied_index:
            sender.put(b"more", b"x")


def main(arguments: list[str]) -> None:
    ChildVerifier.verify = verify_here  # type: ignore[method-assign]
    match arguments:
        case ["operations", directory, stride]:
            run_operations(Path(directory), int(stride))
        case ["flips", directory, count, seed]:
            run_flips(Path(directory), int(count), int(seed))
        case ["busy", directory]:
            run_busy(Path(directory))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
