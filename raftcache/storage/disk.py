"""The seam to the disk: what the storage layer asks of a file system, and the real one.

Rules of this file:
- every call is the system call of the same name, unbuffered: what `pwrite` returned from is in the page cache, what
  `fdatasync` returned from is on the disk, and a name is on the disk only after `fsync_directory` of its directory;
- errors are `OSError`, untranslated: what they mean is decided by the caller (most are fatal, see `exit_process`);
- paths are plain strings with "/" between the parts.

The second implementation is `simulated_disk.SimulatedDisk`, which loses what was not synced.

Caveats. After a failed `fdatasync` the kernel marks the pages clean: the page cache still shows the data, the disk
lacks it, and the next `fdatasync` succeeds (measured on ext4; "fsyncgate", 2018). Hence nobody may retry one, and a
recovery scan first calls `drop_cache`.
"""

import errno
import fcntl
import os
from typing import NoReturn, Protocol

from raftcache.errors import Corruption

Buffer = bytes | bytearray | memoryview

ZERO_FILL_CHUNK_BYTES = 1 << 20
"""Zeros are written and synced in pieces of this size, so that filling a segment never queues more than about 10 ms
of writes (at 100 MB/s) ahead of the log's own fdatasync."""

_ZEROS = bytes(ZERO_FILL_CHUNK_BYTES)


class DiskFile(Protocol):
    """One open file. Offsets and sizes in bytes."""

    def pwrite(self, data: Buffer, offset: int) -> None:
        """Write all of `data`, or raise; after an error any part of it may have been written."""

    def pread(self, length: int, offset: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""
        ...

    def fdatasync(self) -> None:
        """Make data and size durable. After an error nothing may be assumed, and it must not be retried."""

    def size(self) -> int: ...

    def truncate(self, size: int) -> None: ...

    def allocate(self, size: int) -> None:
        """Reserve space so that writes below `size` cannot fail with ENOSPC; the file becomes at least that long."""

    def drop_cache(self) -> None:
        """Forget clean pages, so that the next read shows what the disk holds. Dirty pages stay."""

    def lock(self) -> bool:
        """Take the exclusive lock, without waiting; held until `close` or the end of the process."""
        ...

    def close(self) -> None: ...


class Disk(Protocol):
    """A file system. Creating, renaming and unlinking are durable only after `fsync_directory` of the parent."""

    def open(self, path: str, *, create: bool = False) -> DiskFile:
        """Open for reading and writing. Raises FileNotFoundError unless `create`."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Atomic; replaces `target` if it exists."""

    def unlink(self, path: str) -> None: ...

    def mkdir(self, path: str) -> None:
        """Raises FileExistsError, FileNotFoundError (no parent)."""

    def rmdir(self, path: str) -> None: ...

    def listdir(self, path: str) -> list[str]:
        """Names, sorted. Raises FileNotFoundError, NotADirectoryError."""
        ...

    def fsync_directory(self, path: str) -> None: ...

    def exists(self, path: str) -> bool: ...

    def free_bytes(self, path: str) -> int:
        """What an unprivileged process may still write on the file system of `path`."""
        ...


# --- The real one -------------------------------------------------------------------------------------------------


class OsFile:
    """A file descriptor. Closed explicitly; nothing is buffered above the kernel."""

    __slots__ = ("_descriptor", "path")

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def pwrite(self, data: Buffer, offset: int) -> None:
        written = os.pwrite(self._descriptor, data, offset)
        if written == len(data):
            return
        rest = memoryview(data)[written:]
        while rest:
            offset += written
            written = os.pwrite(self._descriptor, rest, offset)
            if written == 0:
                raise OSError(errno.EIO, "pwrite wrote nothing", self.path)
            rest = rest[written:]

    def pread(self, length: int, offset: int) -> bytes:
        data = os.pread(self._descriptor, length, offset)
        if len(data) == length or not data:
            return data
        # A signal or a 2 GiB limit may cut a read short; only an empty read is the end of the file.
        parts = [data]
        got = len(data)
        while got < length:
            data = os.pread(self._descriptor, length - got, offset + got)
            if not data:
                break
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def fdatasync(self) -> None:
        os.fdatasync(self._descriptor)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def truncate(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)

    def allocate(self, size: int) -> None:
        os.posix_fallocate(self._descriptor, 0, size)

    def drop_cache(self) -> None:
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def lock(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class OsDisk:
    """The machine's own file systems."""

    __slots__ = ()

    def open(self, path: str, *, create: bool = False) -> OsFile:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        # 0o600: the log holds the users' data.
        return OsFile(path, os.open(path, flags, 0o600))

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def mkdir(self, path: str) -> None:
        os.mkdir(path, 0o700)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def fsync_directory(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def free_bytes(self, path: str) -> int:
        facts = os.statvfs(path)
        return facts.f_bavail * facts.f_frsize


# --- What every user of a disk needs --------------------------------------------------------------------------------


def exit_process(reason: str) -> NoReturn:
    """The production answer to an I/O error that must not be survived: one line, and the process is gone.

    No `finally`, no reply, no retry: a reply after a failed fsync would be a lie, and a retried fsync would succeed
    without the data. 70 is EX_SOFTWARE; a supervisor restarts the node, which then reads what the disk really holds.
    """
    os.write(2, f"raftcache: fatal storage error, exiting: {reason}\n".encode())
    os._exit(70)


def zero_fill(file: DiskFile, size: int) -> None:
    """Allocate `size` bytes and write zeros to all of them, durably.

    Blocks that were only allocated are "unwritten extents": the first write to each costs a journal commit in the
    next fdatasync (measured: 218 against 101 us a batch), so the log pays for that ahead of time.
    """
    file.allocate(size)
    for offset in range(0, size, ZERO_FILL_CHUNK_BYTES):
        chunk = min(ZERO_FILL_CHUNK_BYTES, size - offset)
        file.pwrite(_ZEROS if chunk == ZERO_FILL_CHUNK_BYTES else bytes(chunk), offset)
        file.fdatasync()


def read_file(disk: Disk, path: str) -> bytes:
    """The whole file as the disk holds it. Raises FileNotFoundError; `Corruption` where the disk cannot read it."""
    file = disk.open(path)
    try:
        file.drop_cache()
        return file.pread(file.size(), 0)
    except OSError as error:
        if error.errno == errno.EIO:
            raise Corruption(f"{path} cannot be read: {error.strerror}", metadata={"file": path}) from error
        raise
    finally:
        file.close()


def write_file_atomically(disk: Disk, path: str, data: Buffer) -> None:
    """Replace `path` by `data`, durably: after a crash it holds the old content or the new one, never a mixture.

    Raises OSError; the caller decides whether that is fatal. Leaves `path` + ".tmp" behind where interrupted.
    """
    temporary = path + ".tmp"
    file = disk.open(temporary, create=True)
    try:
        file.truncate(0)
        file.pwrite(data, 0)
        file.fdatasync()
    finally:
        file.close()
    disk.rename(temporary, path)
    disk.fsync_directory(parent_of(path))


def make_directory(disk: Disk, path: str) -> None:
    """Create `path` durably; nothing to do where it exists. The parent must exist."""
    if not disk.exists(path):
        disk.mkdir(path)
        disk.fsync_directory(parent_of(path))


def own_directory(disk: Disk, path: str) -> None:
    """`make_directory` where the parent is ours as well, and whatever has a name in either of them keeps it from now on.

    What a killed process had created or renamed is there to be seen, and not durable: a power cut would take it, and what
    was built on it since.
    """
    if not disk.exists(path):
        disk.mkdir(path)
    disk.fsync_directory(parent_of(path))
    disk.fsync_directory(path)


def remove_tree(disk: Disk, path: str) -> None:
    """Unlink `path` and all below it. Durable after `fsync_directory` of its parent, which this does."""
    _remove(disk, path)
    disk.fsync_directory(parent_of(path))


def _remove(disk: Disk, path: str) -> None:
    try:
        names = disk.listdir(path)
    except NotADirectoryError:
        disk.unlink(path)
        return
    for name in names:
        _remove(disk, f"{path}/{name}")
    disk.rmdir(path)


def parent_of(path: str) -> str:
    """The directory that holds the name `path`."""
    return os.path.dirname(path) or "."
