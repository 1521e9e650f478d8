"""One file of the write-ahead log: its name, its birth, and the open file.

A segment is born complete: `N.wal.tmp` is filled with zeros, gets its header, is synced, and only then renamed, and the
rename is synced. Hence a `N.wal` without a valid header is always damage, never a crash, and a batch written to it can
be lost only by its own missing fdatasync. No file is ever used twice.
"""

import re

from raftcache.ids import ClusterId, NodeId
from raftcache.storage.disk import Disk, DiskFile, zero_fill
from raftcache.storage.wal_format import encode_segment_header, segment_seed

_NAME = re.compile(r"([0-9a-f]{16})\.wal")
_TEMPORARY_SUFFIX = ".wal.tmp"


class Segment:
    """An open segment file."""

    __slots__ = ("file", "number", "path", "seed", "size")

    def __init__(self, path: str, number: int, file: DiskFile, *, size: int, node: NodeId) -> None:
        self.path = path
        self.number = number
        self.file = file
        self.size = size
        """Bytes that are allocated and zero-filled; batches must fit below it."""
        self.seed = segment_seed(node, number)


def segment_path(directory: str, number: int) -> str:
    return f"{directory}/{number:016x}.wal"


def segment_numbers(disk: Disk, directory: str) -> list[int]:
    """The numbers of the segment files in `directory`, ascending."""
    return sorted(int(match[1], 16) for name in disk.listdir(directory) if (match := _NAME.fullmatch(name)))


def unfinished_segments(disk: Disk, directory: str) -> list[str]:
    """Paths of segments whose creation was interrupted. They hold nothing."""
    return [f"{directory}/{name}" for name in disk.listdir(directory) if name.endswith(_TEMPORARY_SUFFIX)]


def create_segment(disk: Disk, directory: str, number: int, *, size: int, cluster: ClusterId, node: NodeId) -> Segment:
    """A new segment, durable and ready for its first batch. Takes as long as writing and syncing `size` bytes.

    Raises OSError; with ENOSPC nothing is left behind.
    """
    path = segment_path(directory, number)
    temporary = path + ".tmp"
    file = disk.open(temporary, create=True)
    try:
        zero_fill(file, size)
        file.pwrite(encode_segment_header(cluster, node, number), 0)
        file.fdatasync()
        disk.rename(temporary, path)
        disk.fsync_directory(directory)
    except OSError:
        file.close()
        if disk.exists(temporary):
            disk.unlink(temporary)
        raise
    return Segment(path, number, file, size=size, node=node)


def open_segment(disk: Disk, directory: str, number: int, *, node: NodeId) -> Segment:
    path = segment_path(directory, number)
    file = disk.open(path)
    return Segment(path, number, file, size=file.size(), node=node)
