"""The simulator's parts of a `StateStore`: records in memory, state files as logical streams on a `Disk`, no threads.

The live records die with the process, as production's do by rule. Everything else - drafts, publication, marker,
pruning, sending, receiving - is the code that production runs, on a disk that loses what was not synced.

Deterministic: jobs are done at once, and their continuations come through `post`, in order.
"""

from collections.abc import Callable, Iterator

from raftcache.errors import Corruption
from raftcache.kv.records import MemoryRecords, Records
from raftcache.kv.stream import dump, load
from raftcache.storage.background import InlineBackground, Job, Post
from raftcache.storage.checkpoint_file import LOGICAL_FORMAT, BlockDigest
from raftcache.storage.checkpoints import READ_BYTES, checked_blocks
from raftcache.storage.disk import Disk, make_directory
from raftcache.storage.live_state import Damaged, Verified
from raftcache.storage.state import StateConfig, StateStore


def simulated_state_store(directory: str, *, disk: Disk, post: Post, free_bytes_min: int = 0) -> StateStore:
    """A `StateStore` for one replica in the simulator."""
    return StateStore(
        directory,
        disk=disk,
        live=MemoryLive(f"{directory}/live", disk),
        verifier=InlineVerifier(disk),
        background=InlineBackground(post),
        post=post,
        config=StateConfig(copy_bytes_per_second=0, free_bytes_min=free_bytes_min),
    )


class MemoryLive:
    """`LiveState` in a dict. A clean shutdown writes it to a file, so that the marker's path is simulated too."""

    format = LOGICAL_FORMAT

    def __init__(self, directory: str, disk: Disk) -> None:
        self._directory = directory
        self._path = f"{directory}/state"
        self._disk = disk
        self._records: MemoryRecords | None = None
        self._prepared: MemoryRecords | None = None

    def create(self) -> Records:
        self._records = MemoryRecords()
        return self._records

    def prepare(self, blocks: Iterator[bytes]) -> None:
        self._prepared = None
        prepared = _loaded(blocks)
        prepared.commit()
        self._prepared = prepared

    def load(self) -> Records:
        assert self._prepared is not None, "load without prepare"
        self._records, self._prepared = self._prepared, None
        return self._records

    def resume(self, proof: dict[str, str]) -> Records:
        blocks = checked_blocks(self._disk, self._path, size=int(proof["bytes"]), digest=bytes.fromhex(proof["digest"]))
        self._records = _loaded(blocks)
        return self._records

    def commit(self) -> None:
        self._open().commit()

    def copy(self) -> "MemoryCopy":
        return MemoryCopy(self._open().copy())

    def close(self, *, synced: bool) -> dict[str, str]:
        records, self._records = self._records, None
        if records is None or not synced:
            return {}
        make_directory(self._disk, self._directory)
        digest = BlockDigest()
        file = self._disk.open(self._path, create=True)
        try:
            file.truncate(0)
            for chunk in dump(records):
                file.pwrite(chunk, digest.size)
                digest.update(chunk)
            file.fdatasync()
        finally:
            file.close()
        self._disk.fsync_directory(self._directory)
        return {"bytes": str(digest.size), "digest": digest.digest().hex()}

    def space(self) -> tuple[int, int]:
        return 0, 0

    def grown(self) -> bool:
        return False

    def sweep(self) -> None:
        """Nothing is left behind in memory."""

    def _open(self) -> MemoryRecords:
        assert self._records is not None, "the live records are closed"
        return self._records


class MemoryCopy:
    """`LiveCopy` of a `MemoryLive`."""

    def __init__(self, records: MemoryRecords) -> None:
        self._records = records

    def draw(self, write: Callable[[bytes], None]) -> None:
        for chunk in dump(self._records):
            write(chunk)

    def release(self) -> None:
        """Nothing is held but memory."""


class InlineVerifier:
    """`Verifier` in the same process; the logical stream is its native format, so it converts nothing."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def verify(self, path: str, job: Job) -> Verified:
        job.check()
        digest = BlockDigest()
        try:
            return Verified.of(_loaded(_digested(self._disk, path, digest)), digest.digest())
        except Corruption as error:
            raise Damaged(error.message) from error

    def convert(self, source: str, target: str, *, to_logical: bool, job: Job) -> None:
        raise AssertionError(f"{source} is a logical stream already")


def _digested(disk: Disk, path: str, digest: BlockDigest) -> Iterator[bytes]:
    file = disk.open(path)
    try:
        while block := file.pread(READ_BYTES, digest.size):
            digest.update(block)
            yield block
    finally:
        file.close()


def _loaded(blocks: Iterator[bytes]) -> MemoryRecords:
    records = MemoryRecords()
    load(blocks, records)
    # To the very end, where the digest is checked.
    for block in blocks:
        raise Corruption(f"{len(block)} bytes after the end of the stream")
    return records
