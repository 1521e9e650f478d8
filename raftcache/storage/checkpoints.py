"""The checkpoints of one replica on disk: drafts that become checkpoints by one rename, reading, sending, pruning.

    checkpoints/<index>-<term>/{state,header.json}    complete, verified, durable
    checkpoints/draft-<n>/...                         being written; swept at start
    checkpoints/old-<n>/...                           being removed; swept at start

Rules of this file:
- everything goes through the `Disk` seam, so that the simulator crashes the very steps that production takes;
- order of a publication: state file synced and closed, verified by the caller, header synced, draft's directory synced,
  RENAME, parent directory synced. Before the rename nothing is there, after it everything is;
- the order of a removal: rename away first, so that a half-removed checkpoint is never met under its name;
- a failed sync is told apart (`SyncFailed`), because it must end the process.

The table of known checkpoints belongs to the loop; drafts belong to whoever writes them (one thread at a time).
"""

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from raftcache.errors import Corruption, RaftCacheError, StorageFull
from raftcache.raft.messages import SnapshotMeta
from raftcache.storage.checkpoint_file import (
    HEADER_BYTES_MAX,
    HEADER_FILE,
    STATE_FILE,
    STREAM_LENGTH,
    BlockDigest,
    CheckpointHeader,
    decode_header,
    directory_name,
    parse_directory_name,
)
from raftcache.storage.disk import Disk, DiskFile, own_directory, read_file, remove_tree

CHUNK_BYTES = 128 << 10
"""A chunk on its way to another replica: 64 to 256 KiB keep a stream busy without holding up the loop."""

READ_BYTES = 1 << 20
"""Files are copied and digested in pieces of this size: one block of the digest."""

SYNC_EVERY_BYTES = 8 << 20
"""A draft is synced in pieces: the log's fdatasync then queues behind at most 80 ms of ours (at 100 MB/s)."""

_DRAFT = "draft-"
_OLD = "old-"


class SyncFailed(RaftCacheError):
    """A sync failed: what is on the disk is unknown from here on. Fatal for the process; never retried."""

    reason = "SYNC_FAILED"


def storage_error(error: OSError, *, action: str) -> RaftCacheError:
    """What a failed operation on a checkpoint means to the caller."""
    message = f"{action}: {error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(message)
    return Corruption(f"{message}; check the disk")


@dataclass(slots=True)
class Known:
    """A checkpoint in the table."""

    header: CheckpointHeader
    readers: int = 0
    """Open `Outgoing`s; it is not pruned while there are any."""


class Draft:
    """A checkpoint being written. Invisible until `publish`, gone after `discard` or a crash."""

    def __init__(self, disk: Disk, parent: str, number: int, *, sync_inline: bool) -> None:
        self._disk = disk
        self._parent = parent
        self.directory = f"{parent}/{_DRAFT}{number}"
        self.state_path = f"{self.directory}/{STATE_FILE}"
        self.digest = BlockDigest()
        """Of what was appended."""
        self.unsynced = 0
        """Bytes appended since the last sync; reset by whoever syncs."""
        self._sync_inline = sync_inline
        disk.mkdir(self.directory)
        self.file: DiskFile = disk.open(self.state_path, create=True)

    def append(self, data: bytes | memoryview) -> None:
        """Write the next bytes of the state file; with `sync_inline`, sync it now and then.

        Raises: `OSError`, `SyncFailed`.
        """
        self.file.pwrite(data, self.digest.size)
        self.digest.update(data)
        self.unsynced += len(data)
        if self._sync_inline and self.unsynced >= SYNC_EVERY_BYTES:
            self.unsynced = 0
            self.sync()

    def sync(self) -> None:
        """What was appended so far is durable after this. Raises: `SyncFailed`."""
        self._sync(self.file)

    def adopt(self) -> None:
        """The state file was written by somebody else: take its digest. Raises: `OSError`."""
        assert self.digest.size == 0, f"{self.digest.size} bytes were appended here"
        while block := self.file.pread(READ_BYTES, self.digest.size):
            self.digest.update(block)

    def seal(self) -> None:
        """All is written: sync and close, and forget the cached pages, so that the verifier reads what the disk holds.

        Raises: `SyncFailed`.
        """
        self.sync()
        self.file.drop_cache()
        self.file.close()

    def publish(self, header: CheckpointHeader) -> None:
        """Make it a checkpoint, durably; for a sealed and verified draft. Raises: `OSError`, `SyncFailed`."""
        assert header.state_bytes == self.digest.size, (
            f"header says {header.state_bytes}, drafted {self.digest.size} bytes"
        )
        file = self._disk.open(f"{self.directory}/{HEADER_FILE}", create=True)
        try:
            file.pwrite(header.encode(), 0)
            self._sync(file)
        finally:
            file.close()
        self._sync_directory(self.directory)
        target = f"{self._parent}/{directory_name(header.meta)}"
        if self._disk.exists(target):
            # It was found damaged: over an intact one nobody publishes, so nothing is lost by a crash in between.
            set_aside(self._disk, self._parent, directory_name(header.meta))
        self._disk.rename(self.directory, target)
        self._sync_directory(self._parent)

    def discard(self) -> None:
        """Remove it. Never raises: what cannot be removed is swept at the next start."""
        self.file.close()
        try:
            remove_tree(self._disk, self.directory)
        except OSError:
            pass

    def _sync(self, file: DiskFile) -> None:
        try:
            file.fdatasync()
        except OSError as error:
            raise SyncFailed(f"{self.directory}: fdatasync: {error}") from error

    def _sync_directory(self, path: str) -> None:
        try:
            self._disk.fsync_directory(path)
        except OSError as error:
            raise SyncFailed(f"{path}: fsync: {error}") from error


class Checkpoints:
    """The table of one replica's checkpoints. Call `sweep` once before anything else."""

    def __init__(self, disk: Disk, directory: str) -> None:
        self._disk = disk
        self.directory = directory
        self._known: list[Known] = []
        """Newest first; headers intact, state files checked by whoever reads them."""
        self._drafts = 0
        self.refused: dict[str, str] = {}
        """By name: what `sweep` and `refuse` found damaged, in words, for the error where nothing else is left."""

    def sweep(self) -> None:
        """Read the table from disk; remove what was left half-done.

        Raises: `OSError`; `UnsupportedVersion`, because what a newer release wrote is not to be replaced but kept.
        """
        own_directory(self._disk, self.directory)
        self._known.clear()
        for name in self._disk.listdir(self.directory):
            if parse_directory_name(name) is None:
                remove_tree(self._disk, f"{self.directory}/{name}")
                continue
            try:
                self._known.append(Known(self._read_header(name)))
            except (Corruption, FileNotFoundError) as error:
                self.refused[name] = str(error)
        self._known.sort(key=lambda known: (known.header.meta.index, known.header.meta.term), reverse=True)

    def _read_header(self, name: str) -> CheckpointHeader:
        path = f"{self.directory}/{name}/{HEADER_FILE}"
        header = decode_header(read_file(self._disk, path), source=path)
        if directory_name(header.meta) != name:
            raise Corruption(f"{path} describes {directory_name(header.meta)}; the checkpoint is not used")
        return header

    def newest(self) -> CheckpointHeader | None:
        """The newest one that was not found damaged."""
        return self._known[0].header if self._known else None

    def find(self, meta: SnapshotMeta) -> CheckpointHeader | None:
        """The one of that index and term, if it is here."""
        known = self._find(meta)
        return known.header if known else None

    def _find(self, meta: SnapshotMeta) -> Known | None:
        for known in self._known:
            if (known.header.meta.index, known.header.meta.term) == (meta.index, meta.term):
                return known
        return None

    def state_path(self, header: CheckpointHeader) -> str:
        """Where its state file lies."""
        return f"{self.directory}/{directory_name(header.meta)}/{STATE_FILE}"

    def draft(self, *, sync_inline: bool = True) -> Draft:
        """Begin to write one. Raises: `OSError`."""
        self._drafts += 1
        return Draft(self._disk, self.directory, self._drafts, sync_inline=sync_inline)

    def add(self, header: CheckpointHeader) -> None:
        """Take a published draft into the table."""
        self.refused.pop(directory_name(header.meta), None)
        self._known = [known for known in self._known if known.header.meta != header.meta]
        self._known.append(Known(header))
        self._known.sort(key=lambda known: (known.header.meta.index, known.header.meta.term), reverse=True)

    def refuse(self, header: CheckpointHeader, found: str) -> None:
        """It turned out to be damaged: never hand it out again. Its files stay until the next prune, as evidence."""
        self._known = [known for known in self._known if known.header is not header]
        self.refused[directory_name(header.meta)] = found

    def superseded(self) -> list[str]:
        """Rename away what the newest one supersedes, but for those being read, and everything found damaged.

        The caller removes the returned directories, at leisure. Raises: `OSError`.
        """
        if not self._known:
            return []
        newest = self._known[0]
        keep = {directory_name(known.header.meta) for known in self._known if known is newest or known.readers}
        self._known = [known for known in self._known if directory_name(known.header.meta) in keep]
        removed = []
        for name in self._disk.listdir(self.directory):
            position = parse_directory_name(name)
            # One that is newer than the newest known was published by a job whose continuation is still to come.
            older = position is not None and position < (newest.header.meta.index, newest.header.meta.term)
            if name.startswith(_OLD):
                removed.append(f"{self.directory}/{name}")
            elif name not in keep and (older or name in self.refused):
                self.refused.pop(name, None)
                removed.append(set_aside(self._disk, self.directory, name))
        return removed

    def blocks(self, header: CheckpointHeader) -> Iterator[bytes]:
        """The state file in order. Raises: `Corruption` *at the end* where the bytes are not those that were written.

        So nothing made of them may be used before the iteration has ended.
        """
        yield from checked_blocks(self._disk, self.state_path(header), size=header.state_bytes, digest=header.digest)

    def reader(self, header: CheckpointHeader, *, on_closed: Callable[[], None]) -> "Outgoing":
        """Send it; it is kept until then.

        Raises: `Corruption` where it is not as long as its header says or cannot be read.
        """
        known = self._find(header.meta)
        assert known is not None, f"checkpoint {directory_name(header.meta)} is not in the table"
        path = self.state_path(header)
        file = _open_sized(self._disk, path, header.state_bytes)

        def release() -> None:
            file.close()
            known.readers -= 1
            on_closed()

        known.readers += 1
        return Outgoing(file, path, header, release)


class Outgoing:
    """A checkpoint as a stream of chunks: see `checkpoint_file` for the form. `state.OutgoingCheckpoint`."""

    def __init__(self, file: DiskFile, path: str, header: CheckpointHeader, release: Callable[[], None]) -> None:
        self._file = file
        self._path = path
        self._release: Callable[[], None] | None = release
        self._position = 0
        encoded = header.encode()
        self._head = STREAM_LENGTH.pack(len(encoded)) + encoded
        self.meta = header.meta
        self.digest = header.digest
        self.size = len(self._head) + header.state_bytes

    def chunk(self) -> bytes:
        """The next `CHUNK_BYTES` at most; empty at the end.

        Raises: `Corruption` where the file ends early or cannot be read.
        """
        if self._head:
            data, self._head = self._head, b""
            return data
        try:
            data = self._file.pread(CHUNK_BYTES, self._position)
        except OSError as error:
            raise storage_error(error, action=f"{self._path} at {self._position}") from error
        self._position += len(data)
        return data

    def close(self) -> None:
        """Let go of it; idempotent."""
        if self._release is not None:
            release, self._release = self._release, None
            release()


class StreamParser:
    """The receiving end of `Outgoing`: takes the header off the front, passes on the state's bytes, counts both."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._seen = 0
        self._front = bytearray()
        self.header: CheckpointHeader | None = None

    def feed(self, chunk: bytes) -> bytes:
        """The bytes of the state file in this chunk. Raises: `Corruption`, `UnsupportedVersion`."""
        self._seen += len(chunk)
        if self._seen > self._size:
            raise Corruption(f"an incoming checkpoint of {self._size} bytes has at least {self._seen}")
        if self.header is not None:
            return chunk
        self._front += chunk
        if len(self._front) < STREAM_LENGTH.size:
            return b""
        (length,) = STREAM_LENGTH.unpack_from(self._front)
        if length > HEADER_BYTES_MAX:
            raise Corruption(
                f"an incoming checkpoint has a header of {length} bytes, at most {HEADER_BYTES_MAX} are legal"
            )
        end = STREAM_LENGTH.size + length
        if len(self._front) < end:
            return b""
        self.header = decode_header(bytes(self._front[STREAM_LENGTH.size : end]), source="an incoming checkpoint")
        if self.header.state_bytes != self._size - end:
            raise Corruption(
                f"an incoming checkpoint of {self._size} bytes says it has {end} + {self.header.state_bytes}"
            )
        return bytes(self._front[end:])

    def complete(self) -> CheckpointHeader:
        """The header, when all has come. Raises: `Corruption` where it has not."""
        if self.header is None or self._seen != self._size:
            raise Corruption(f"an incoming checkpoint of {self._size} bytes ended after {self._seen}")
        return self.header


def checked_blocks(disk: Disk, path: str, *, size: int, digest: bytes) -> Iterator[bytes]:
    """A file in order. Raises: `Corruption`, before the first block (size) or after the last one (digest)."""
    file = _open_sized(disk, path, size)
    found = BlockDigest()
    try:
        while found.size < size:
            block = file.pread(min(READ_BYTES, size - found.size), found.size)
            if not block:
                raise Corruption(f"{path} ended at {found.size} of {size} bytes while it was read")
            found.update(block)
            yield block
    except OSError as error:
        raise storage_error(error, action=f"{path} at {found.size}") from error
    finally:
        file.close()
    if found.digest() != digest:
        raise Corruption(f"{path}: digest {found.digest().hex()}, written as {digest.hex()}: the file is damaged")


def _open_sized(disk: Disk, path: str, size: int) -> DiskFile:
    try:
        file = disk.open(path)
    except OSError as error:
        raise storage_error(error, action=path) from error
    if file.size() != size:
        found = file.size()
        file.close()
        raise Corruption(f"{path} has {found} bytes, written were {size}: the file is damaged")
    return file


def set_aside(disk: Disk, parent: str, name: str) -> str:
    """Rename a checkpoint to a name that is never read and swept at start; the new path. Raises: `OSError`."""
    number = 1
    while disk.exists(f"{parent}/{_OLD}{number}"):
        number += 1
    disk.rename(f"{parent}/{name}", f"{parent}/{_OLD}{number}")
    return f"{parent}/{_OLD}{number}"
