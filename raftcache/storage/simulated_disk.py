"""A disk in memory that forgets what was not synced: the simulator's, and the storage tests'.

The model, and on purpose a hostile one (weaker than ext4 with its journal):
- writes go to *dirty* pages of 4 KiB. A crash keeps any subset of them, each whole, not at all, or torn between
  sectors of 512 bytes; `fdatasync` moves all of a file's dirty pages and its size to the platter;
- names (create, rename, unlink, mkdir, rmdir) are pending operations until `fsync_directory`. A crash keeps any subset
  in which an operation survives only together with the earlier pending ones on the same names;
- a failed `fdatasync` (EIO) writes a random part, and marks the rest clean: reads go on showing it, later syncs
  succeed, and it is gone after a crash or `drop_cache` (fsyncgate);
- a sector is written whole or not at all, and rewriting a sector with the same leading bytes does not harm them.

Everything random comes from the `random.Random` that the caller passes, in a sorted order: same seed, same disk.

Caveats: files are never sparse in `capacity_bytes`; an unlinked file's space is free at once; no permissions.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from random import Random

from raftcache.storage.disk import Buffer, parent_of

PAGE_BYTES = 4096
SECTOR_BYTES = 512
_ZERO_PAGE = bytes(PAGE_BYTES)


class SimulatedCrash(Exception):
    """Raised by the operation at which the test asked the machine to stop (`crash_at`); that operation did nothing."""


class _Inode:
    """One file's bytes: on the platter, and in the page cache above it."""

    __slots__ = ("dirty", "durable", "durable_size", "locked_by", "lost", "number", "size")

    def __init__(self, number: int) -> None:
        self.number = number
        self.durable: dict[int, bytes] = {}
        """Pages on the platter; a missing one is zeros."""
        self.durable_size = 0
        self.dirty: dict[int, bytearray] = {}
        """Pages written and not yet synced."""
        self.lost: dict[int, bytearray] = {}
        """Pages that a failed fdatasync marked clean: visible, and not on the platter."""
        self.size = 0
        """As the processes see it."""
        self.locked_by: SimulatedFile | None = None

    def page(self, number: int) -> bytes | bytearray:
        found = self.dirty.get(number) or self.lost.get(number)
        return found if found is not None else self.durable.get(number, _ZERO_PAGE)

    def page_to_write(self, number: int) -> bytearray:
        found = self.dirty.get(number)
        if found is None:
            # A rewritten "lost" page becomes dirty as a whole: the next fdatasync does write it.
            found = self.lost.pop(number, None) or bytearray(self.durable.get(number, _ZERO_PAGE))
            self.dirty[number] = found
        return found

    def write_back(self, number: int) -> None:
        self.durable[number] = bytes(self.dirty.pop(number))
        # A stray write-back past the size that is on the platter carries the size along, as ext4's does.
        self.durable_size = max(self.durable_size, min(self.size, (number + 1) * PAGE_BYTES))

    def sync(self) -> None:
        for number in list(self.dirty):
            self.write_back(number)
        self.durable_size = self.size
        for number in [n for n in self.durable if n * PAGE_BYTES >= self.size]:
            del self.durable[number]

    def fail_sync(self, random: Random) -> None:
        for number in sorted(self.dirty):
            if random.random() < 0.5:
                self.write_back(number)
            else:
                self.lost[number] = self.dirty.pop(number)

    def crash(self, random: Random, keep: float) -> None:
        for number in sorted(self.dirty):
            luck = random.random()
            if luck < keep:
                self.write_back(number)
            elif luck < keep + 0.25 * min(keep, 1 - keep):
                self._tear(number, random)
        if self.size < self.durable_size and random.random() < keep:
            self.durable_size = self.size
        self.dirty.clear()
        self.lost.clear()
        self.size = self.durable_size
        self.locked_by = None

    def survivor(self) -> _Inode:
        """What is on the platter. Pages there are immutable, so nothing is copied but the table."""
        copy = _Inode(self.number)
        copy.durable = dict(self.durable)
        copy.size = copy.durable_size = self.durable_size
        return copy

    def _tear(self, number: int, random: Random) -> None:
        """Some sectors of the page reach the platter, the others do not."""
        old = self.durable.get(number, _ZERO_PAGE)
        new = self.dirty[number]
        for start in range(0, PAGE_BYTES, SECTOR_BYTES):
            if random.random() < 0.5:
                new[start : start + SECTOR_BYTES] = old[start : start + SECTOR_BYTES]
        self.write_back(number)


class SimulatedFile:
    """An open file of a `SimulatedDisk`; unusable after a crash."""

    __slots__ = ("_disk", "_generation", "_inode", "_open", "path")

    def __init__(self, disk: SimulatedDisk, path: str, inode: _Inode, generation: int) -> None:
        self._disk = disk
        self._inode = inode
        self._generation = generation
        self._open = True
        self.path = path

    def _live(self) -> _Inode:
        if not self._open or self._generation != self._disk.generation:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.path)
        return self._inode

    def pwrite(self, data: Buffer, offset: int) -> None:
        inode = self._live()
        self._disk.step("pwrite", self.path)
        room = self._disk.room_for(inode)
        view = memoryview(data)[: max(0, room - offset)] if offset + len(data) > room else memoryview(data)
        position, taken = offset, 0
        while taken < len(view):
            number, start = divmod(position, PAGE_BYTES)
            count = min(PAGE_BYTES - start, len(view) - taken)
            inode.page_to_write(number)[start : start + count] = view[taken : taken + count]
            position += count
            taken += count
        if taken:
            inode.size = max(inode.size, position)
        if len(view) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)

    def pread(self, length: int, offset: int) -> bytes:
        inode = self._live()
        self._disk.raise_fault("pread", self.path)
        length = max(0, min(length, inode.size - offset))
        if length == 0:
            return b""
        first, start = divmod(offset, PAGE_BYTES)
        last = (offset + length - 1) // PAGE_BYTES
        return b"".join([inode.page(number) for number in range(first, last + 1)])[start : start + length]

    def fdatasync(self) -> None:
        inode = self._live()
        try:
            self._disk.step("fdatasync", self.path)
        except OSError:
            inode.fail_sync(self._disk.random)
            raise
        inode.sync()

    def size(self) -> int:
        return self._live().size

    def truncate(self, size: int) -> None:
        inode = self._live()
        self._disk.step("truncate", self.path)
        if size < inode.size:
            edge, start = divmod(size, PAGE_BYTES)
            if start:
                inode.page_to_write(edge)[start:] = bytes(PAGE_BYTES - start)
                edge += 1
            # What lay beyond must read as zeros where the file grows again.
            beyond = {n for n in (*inode.durable, *inode.dirty, *inode.lost) if n >= edge}
            for number in beyond:
                inode.lost.pop(number, None)
                inode.dirty[number] = bytearray(PAGE_BYTES)
        elif size > self._disk.room_for(inode):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        inode.size = size

    def allocate(self, size: int) -> None:
        inode = self._live()
        self._disk.step("allocate", self.path)
        if size > self._disk.room_for(inode):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        inode.size = max(inode.size, size)

    def drop_cache(self) -> None:
        self._live().lost.clear()

    def lock(self) -> bool:
        inode = self._live()
        if inode.locked_by is not None and inode.locked_by is not self:
            return False
        inode.locked_by = self
        return True

    def close(self) -> None:
        self._open = False
        if self._inode.locked_by is self:
            self._inode.locked_by = None


@dataclass(slots=True)
class _Fault:
    operation: str
    error: int
    path_part: str
    skip: int
    times: int


@dataclass(slots=True, frozen=True)
class _NameChange:
    """A pending directory operation: each name is bound to an inode (None: a directory), moved, or unbound."""

    verb: str
    names: tuple[str, ...]
    inode: _Inode | None = None


_Namespace = dict[str, _Inode | None]


class SimulatedDisk:
    """One machine's disk. See the file's docstring for what a crash does to it.

    Attributes:
        operations: mutating operations so far; `crash_at` is compared with it.
        crash_at: the operation (counted from 0) that raises `crash_error` instead of happening.
        crash_error: `SimulatedCrash`; the simulator has one of its own, which no handler of the code under test catches.
        capacity_bytes: writes beyond it raise ENOSPC. None: endless.
        generation: +1 per crash; files opened before it are unusable.
    """

    def __init__(self, random: Random, *, capacity_bytes: int | None = None) -> None:
        self.random = random
        self.capacity_bytes = capacity_bytes
        self.operations = 0
        self.crash_at: int | None = None
        self.crash_error: type[BaseException] = SimulatedCrash
        self.generation = 0
        self._visible: _Namespace = {"": None, ".": None, "/": None}
        self._durable: _Namespace = dict(self._visible)
        self._pending: list[_NameChange] = []
        self._faults: list[_Fault] = []
        self._inodes_created = 0

    # --- The file system ---

    def open(self, path: str, *, create: bool = False) -> SimulatedFile:
        if path in self._visible:
            inode = self._visible[path]
            if inode is None:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            self.raise_fault("open", path)
        else:
            if not create:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            self._require_directory(parent_of(path))
            self.step("create", path)
            self._inodes_created += 1
            inode = _Inode(self._inodes_created)
            self._change(_NameChange("bind", (path,), inode))
        return SimulatedFile(self, path, inode, self.generation)

    def rename(self, source: str, target: str) -> None:
        if source not in self._visible:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)
        self._require_directory(parent_of(target))
        if self._visible.get(target, self) is None and self._children(target):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), target)
        self.step("rename", target)
        self._change(_NameChange("move", (source, target)))

    def unlink(self, path: str) -> None:
        if path not in self._visible:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if self._visible[path] is None:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        self.step("unlink", path)
        self._change(_NameChange("unbind", (path,)))

    def mkdir(self, path: str) -> None:
        if path in self._visible:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self._require_directory(parent_of(path))
        self.step("mkdir", path)
        self._change(_NameChange("bind", (path,), None))

    def rmdir(self, path: str) -> None:
        self._require_directory(path)
        if self._children(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        self.step("rmdir", path)
        self._change(_NameChange("unbind", (path,)))

    def listdir(self, path: str) -> list[str]:
        self._require_directory(path)
        return self._children(path)

    def fsync_directory(self, path: str) -> None:
        self._require_directory(path)
        self.step("fsync_directory", path)
        # Whatever touches a name in this directory becomes durable, and before it what that depends on.
        needed: set[str] = set()
        chosen: list[bool] = []
        for change in reversed(self._pending):
            wanted = any(parent_of(name) == path or name in needed for name in change.names)
            if wanted:
                needed.update(change.names)
            chosen.append(wanted)
        chosen.reverse()
        for change, wanted in zip(self._pending, chosen, strict=True):
            if wanted:
                _apply(self._durable, change)
        self._pending = [change for change, wanted in zip(self._pending, chosen, strict=True) if not wanted]

    def exists(self, path: str) -> bool:
        return path in self._visible

    def free_bytes(self, path: str) -> int:
        if self.capacity_bytes is None:
            return 1 << 50
        return max(0, self.capacity_bytes - self.used_bytes())

    # --- Faults ---

    def crash(self, random: Random, *, power_cut: bool = False) -> None:
        """The machine stops and starts again: open files are gone, and of what was not synced a random part.

        With `power_cut` nothing un-synced survives at all.
        """
        keep = 0.0 if power_cut else random.choice((0.0, 0.2, 0.5, 0.8, 1.0))
        dropped: set[str] = set()
        for change in self._pending:
            if dropped.isdisjoint(change.names) and random.random() < keep:
                _apply(self._durable, change)
            else:
                dropped.update(change.names)
        self._pending.clear()
        for path in sorted(self._durable, key=len):
            if path not in ("", ".", "/") and self._durable.get(parent_of(path), self) is not None:
                del self._durable[path]
        self._visible = dict(self._durable)
        for inode in sorted(self._files(), key=lambda file: file.number):
            inode.crash(random, keep)
        self.generation += 1
        self.crash_at = None
        self._faults.clear()

    def kill(self) -> None:
        """The process ends, the machine goes on (kill -9): nothing is lost, and nothing becomes durable by it."""
        for inode in self._files():
            inode.locked_by = None
        self.generation += 1
        self.crash_at = None
        self._faults.clear()

    def survivor(self) -> SimulatedDisk:
        """A disk of its own with what a power cut at this moment would leave; this one does not notice."""
        copy = SimulatedDisk(self.random)
        copies = {id(inode): inode.survivor() for inode in self._durable.values() if inode is not None}
        for path, inode in self._durable.items():
            if path in ("", ".", "/") or self._durable.get(parent_of(path), self) is None:
                copy._durable[path] = None if inode is None else copies[id(inode)]
        copy._visible = dict(copy._durable)
        return copy

    def inject(self, operation: str, error: int, *, path_part: str = "", skip: int = 0, times: int = 1) -> None:
        """Make the next calls of `operation` ("pwrite", "fdatasync", "rename" ...) on matching paths fail with `error`."""
        self._faults.append(_Fault(operation, error, path_part, skip, times))

    def clear_faults(self) -> None:
        """From here on nothing that was injected fails any more."""
        self._faults.clear()

    def paths(self) -> list[str]:
        """All files, as the processes see them."""
        return sorted(path for path, inode in self._visible.items() if inode is not None)

    def size_of(self, path: str) -> int:
        """Bytes in a file, as the processes see it."""
        inode = self._visible[path]
        return 0 if inode is None else inode.size

    def survives(self, path: str, start: int, end: int) -> bool:
        """Whether bytes `[start, end)` of the file are on the platter as they are read, under a name that is there too."""
        inode = self._visible.get(path)
        if inode is None or self._durable.get(path) is not inode or end > inode.durable_size:
            return False
        for number in range(start // PAGE_BYTES, (end - 1) // PAGE_BYTES + 1):
            cached = inode.dirty.get(number) or inode.lost.get(number)
            if cached is not None:
                lo, hi = max(0, start - number * PAGE_BYTES), min(PAGE_BYTES, end - number * PAGE_BYTES)
                if inode.durable.get(number, _ZERO_PAGE)[lo:hi] != cached[lo:hi]:
                    return False
        return True

    def flip_bit(self, path: str, offset: int, bit: int) -> None:
        """Bit rot: one bit of what is on the platter changes, and with it what a reader sees."""
        inode = self._visible[path]
        assert inode is not None, f"{path} is a directory"
        assert 0 <= offset < inode.size, f"offset {offset} is outside of {path} ({inode.size} bytes)"
        number, start = divmod(offset, PAGE_BYTES)
        page = bytearray(inode.durable.get(number, _ZERO_PAGE))
        page[start] ^= 1 << bit
        inode.durable[number] = bytes(page)
        for cached in (inode.dirty, inode.lost):
            if number in cached:
                cached[number][start] ^= 1 << bit

    def step(self, operation: str, path: str) -> None:
        """Count a mutating operation, and fail it where asked to. Called by this disk's files."""
        if self.crash_at is not None and self.operations >= self.crash_at:
            raise self.crash_error(f"operation {self.operations}: {operation} {path}")
        self.operations += 1
        self.raise_fault(operation, path)

    def raise_fault(self, operation: str, path: str) -> None:
        for fault in self._faults:
            if fault.operation == operation and fault.path_part in path:
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                if fault.times == 0:
                    self._faults.remove(fault)
                raise OSError(fault.error, os.strerror(fault.error), path)

    def room_for(self, inode: _Inode) -> int:
        """How long `inode` may become within the capacity."""
        if self.capacity_bytes is None:
            return 1 << 50
        return _pages(inode.size) * PAGE_BYTES + max(0, self.capacity_bytes - self.used_bytes())

    def used_bytes(self) -> int:
        """What all files take, in whole pages."""
        return sum(_pages(inode.size) for inode in self._files()) * PAGE_BYTES

    # --- Inside ---

    def _change(self, change: _NameChange) -> None:
        _apply(self._visible, change)
        self._pending.append(change)

    def _require_directory(self, path: str) -> None:
        if path not in self._visible:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if self._visible[path] is not None:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)

    def _children(self, path: str) -> list[str]:
        return sorted(
            name.rpartition("/")[2] for name in self._visible if name not in ("", ".", "/") and parent_of(name) == path
        )

    def _files(self) -> list[_Inode]:
        return [inode for inode in self._visible.values() if inode is not None]


def _apply(namespace: _Namespace, change: _NameChange) -> None:
    match change.verb:
        case "bind":
            namespace[change.names[0]] = change.inode
        case "unbind":
            namespace.pop(change.names[0], None)
        case _:
            source, target = change.names
            if source not in namespace:
                return
            namespace[target] = namespace.pop(source)
            below = source + "/"
            for name in [name for name in namespace if name.startswith(below)]:
                namespace[f"{target}/{name[len(below) :]}"] = namespace.pop(name)


def _pages(size: int) -> int:
    return -(-size // PAGE_BYTES)
