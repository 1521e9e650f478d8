"""Batches, one after the other, into zero-filled segment files: the write-ahead log without what its records mean.

    append(batch) append(batch) ... sync()

Rules of this file:
- a batch goes into one segment. A full segment is followed by the spare, which was created ahead of time, and whose
  first batch is an `Opening` (the owner states it); the switch costs one more write and one more fdatasync;
- room is made for all batches of a write *before* the first is written, so that a full disk refuses the write as a
  whole (`StorageFull`, `full`) and in-flight batches still fit; the last `HOUSEKEEPING_BYTES` of a segment are kept for
  batches that free space;
- any other error ends the process (`fatal`): after a failed fsync the page cache shows what the disk lacks.

Invariants: `synced <= end`; `vouched <= synced`; `unsynced` are the segments written to since the last sync.
"""

import errno
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from raftcache.errors import StorageFull
from raftcache.ids import ClusterId, NodeId
from raftcache.storage.disk import Disk
from raftcache.storage.segment import Segment, create_segment
from raftcache.storage.wal_format import (
    BATCH_HEADER_BYTES,
    NOWHERE_YET,
    OFFSET_BITS,
    SEGMENT_HEADER_BYTES,
    BatchBuilder,
    Position,
    position_of,
)
from raftcache.storage.wal_recovery import Recovered

HOUSEKEEPING_BYTES = 4096
"""Kept free at the end of each segment for removals and for renouncing other segments: a full disk can be freed."""


@dataclass(slots=True, frozen=True)
class WalConfig:
    """Limits of the log. Sizes in bytes."""

    segment_bytes: int = 16 << 20
    """Zero-filling one takes 10 to 20 ms of a disk; at 100 MB/s of log a segment lasts six times that. (etcd: 64 MB.)"""
    batch_bytes_max: int = 4 << 20
    """More than this in one `write` becomes several batches (one entry is never divided)."""
    cache_bytes_max: int = 64 << 20
    """Recent entries kept in memory, of all replicas together: what a follower a little behind is served from."""
    pinned_bytes_max: int = 256 << 20
    """Past it, entries that hold the oldest segment are written again further on, where the rest is small."""

    def __post_init__(self) -> None:
        assert self.segment_bytes >= 2 * HOUSEKEEPING_BYTES, f"segment_bytes {self.segment_bytes}"
        assert self.segment_bytes < 1 << OFFSET_BITS, f"segment_bytes {self.segment_bytes}"
        assert self.batch_bytes_max > BATCH_HEADER_BYTES, f"batch_bytes_max {self.batch_bytes_max}"


@dataclass(slots=True)
class WalStats:
    """Counters since the start, for metrics. `entries` are log entries; how many commands they carry the log knows not."""

    fdatasyncs: int = 0
    """Of segments, on the way of `sync`; hard state and allocation ahead are not in it."""
    batches: int = 0
    entries: int = 0
    bytes: int = 0
    moved_bytes: int = 0
    segments_created: int = 0
    segments_deleted: int = 0
    hard_state_saves: int = 0


class SegmentedLog:
    """See the module. The owner is `Wal`; nobody else appends."""

    def __init__(
        self,
        disk: Disk,
        directory: str,
        config: WalConfig,
        recovered: Recovered,
        *,
        cluster: ClusterId,
        node: NodeId,
        fatal: Callable[[str], NoReturn],
        opening: Callable[[Position, int], BatchBuilder],
    ) -> None:
        """`opening(previous_end, number)` is the first batch of segment `number`."""
        self.cluster = cluster
        self.stats = WalStats()
        self.full = False
        """The last attempt to allocate a segment met a full disk. Cleared by a success."""
        self.segments = recovered.segments
        """Oldest first; the same dict that the logs look their segments up in."""
        self.spares: list[Segment] = [] if recovered.spare is None else [recovered.spare]
        self.current: Segment | None = None
        self.offset = 0
        """In the current segment, where the next batch goes."""
        self.synced = recovered.end
        """Proven to be on the disk. Recovery synced all that it read."""
        self.vouched = NOWHERE_YET
        """The highest watermark that is itself on the disk: in a synced batch, or (the owner says so) in another file."""
        self._disk = disk
        self._directory = directory
        self._config = config
        self._node = node
        self._fatal = fatal
        self._opening = opening
        self._creating = threading.Lock()
        """Held while a segment is created: by the thread that allocates ahead, or by a write that cannot wait for it."""
        self._number_max = recovered.number_max
        self._previous_end = recovered.end
        self._last_crc = recovered.last_crc
        self._sequence = recovered.sequence
        self._unsynced: list[Segment] = []
        self._last_watermark = NOWHERE_YET
        """The watermark in the last batch written."""

    def begin(self, dead: Sequence[Segment]) -> None:
        """Go on after recovery, in a fresh segment. A crash at any step leaves the same log to the next recovery.

        Raises: OSError, `StorageFull`.
        """
        # Dead segments go first: once the new opening is durable, numbers alone say what was proven.
        for segment in dead:
            segment.file.close()
            self._disk.unlink(segment.path)
        if dead:
            self._disk.fsync_directory(self._directory)
        cut = self.synced
        if not self.spares:
            self._add_spare()
        self._roll()
        self.sync()
        left = self.segments.get(cut >> OFFSET_BITS)
        if left is not None:
            # The cut is recorded. Giving the rest of the file back as well keeps a node in a restart loop from filling
            # the disk with segments that it hardly used.
            used = cut & ((1 << OFFSET_BITS) - 1)
            if used < left.size:
                left.file.truncate(used)
                left.file.fdatasync()
                left.size = used

    @property
    def end(self) -> Position:
        """Where the next batch goes."""
        return self._previous_end if self.current is None else position_of(self.current.number, self.offset)

    @property
    def bytes_allocated(self) -> int:
        return sum(segment.size for segment in (*self.segments.values(), *self.spares))

    @property
    def room_bytes(self) -> int:
        """What can be written without allocating."""
        room = sum(spare.size for spare in self.spares)
        return room if self.current is None else room + self.current.size - self.offset - HOUSEKEEPING_BYTES

    def make_room(self, sizes: Sequence[int]) -> None:
        """See that batches of these (padded) sizes fit, in this order, allocating where they do not.

        Raises: `StorageFull`; nothing was written then.
        """
        assert self.current is not None, "the log has not begun"
        room = self.current.size - self.offset - HOUSEKEEPING_BYTES
        used_spares = 0
        for size in sizes:
            if size > room:
                if used_spares == len(self.spares):
                    with self._creating:
                        # The thread that allocates ahead may just have finished.
                        if used_spares == len(self.spares):
                            self._add_spare()
                spare = self.spares[used_spares]
                used_spares += 1
                opening = self._opening(self.end, spare.number).padded_size()
                needed = SEGMENT_HEADER_BYTES + opening + size + HOUSEKEEPING_BYTES
                try:
                    if needed > spare.size:
                        spare.file.allocate(needed)
                        spare.size = needed
                except OSError as error:
                    self._refuse(error)
                room = spare.size - needed + size
            room -= size

    def append(self, builder: BatchBuilder, *, reserve: int = HOUSEKEEPING_BYTES) -> tuple[int, int]:
        """Write one batch, for which there is room. Returns the segment's number and the batch's offset in it.

        With `reserve` 0 it may fill the segment to the end without `make_room`. Raises `StorageFull` then, at worst.
        """
        size = builder.padded_size()
        assert self.current is not None, "the log has not begun"
        if self.offset + size > self.current.size - reserve:
            if self.spares:
                self._roll()
            self._enlarge(self.current, self.offset + size, may_refuse=reserve == 0)
        offset = self.offset
        self._write(builder, self.current, offset)
        return self.current.number, offset

    def sync(self) -> None:
        """Make all batches durable; the oldest segment first, so that a hole can only be at the end."""
        end, watermark = self.end, self._last_watermark
        for segment in self._unsynced:
            try:
                segment.file.fdatasync()
            except OSError as error:
                self._fatal(f"{segment.path}: fdatasync: {error}")
            self.stats.fdatasyncs += 1
        self._unsynced.clear()
        self.synced = end
        self.vouched = max(self.vouched, watermark)

    def preallocate(self) -> None:
        """Have a spare. May run in a thread. Raises: `StorageFull` (and sets `full`)."""
        with self._creating:
            if not self.spares:
                self._add_spare()

    def delete_before(self, number: int) -> None:
        """Unlink older segments, which a proven record has renounced."""
        doomed = [older for older in self.segments if older < number]
        try:
            for older in doomed:
                segment = self.segments.pop(older)
                segment.file.close()
                self._disk.unlink(segment.path)
                self.stats.segments_deleted += 1
            if doomed:
                self._disk.fsync_directory(self._directory)
        except OSError as error:
            self._fatal(f"{self._directory}: deleting segments: {error}")

    def close(self) -> None:
        for segment in (*self.segments.values(), *self.spares):
            segment.file.close()

    # --- Inside -------------------------------------------------------------------------------------------------------

    def _write(self, builder: BatchBuilder, segment: Segment, offset: int) -> None:
        self._sequence += 1
        self._last_watermark = self.synced
        framed, self._last_crc = builder.frame(
            seed=segment.seed,
            offset=offset,
            previous_crc=self._last_crc,
            sequence=self._sequence,
            synced_upto=self.synced,
        )
        if not self._unsynced or self._unsynced[-1] is not segment:
            self._unsynced.append(segment)
        try:
            segment.file.pwrite(framed, offset)
        except OSError as error:
            self._fatal(f"{segment.path}, offset {offset}: write of {len(framed)} bytes: {error}")
        self.offset = offset + len(framed)
        self.stats.batches += 1
        self.stats.bytes += len(framed)

    def _roll(self) -> None:
        """Go on in the spare: its opening seals the segment before."""
        segment = self.spares.pop(0)
        assert segment.number > self.end >> OFFSET_BITS, f"spare {segment.number} is older than the end {self.end}"
        builder = self._opening(self.end, segment.number)
        self._enlarge(segment, SEGMENT_HEADER_BYTES + builder.padded_size())
        self.segments[segment.number] = segment
        self.current = segment
        self._write(builder, segment, SEGMENT_HEADER_BYTES)

    def _enlarge(self, segment: Segment, size: int, *, may_refuse: bool = False) -> None:
        """For what was not foreseen: an opening that outgrew its estimate, housekeeping that filled the reserve."""
        if size > segment.size:
            try:
                segment.file.allocate(size)
            except OSError as error:
                if may_refuse:
                    self._refuse(error)
                self._fatal(f"{segment.path}: allocation of {size} bytes: {error}")
            segment.size = size

    def _add_spare(self) -> None:
        """Raises `StorageFull`. The caller holds `_creating`, or is alone."""
        self._number_max += 1
        try:
            segment = create_segment(
                self._disk,
                self._directory,
                self._number_max,
                size=self._config.segment_bytes,
                cluster=self.cluster,
                node=self._node,
            )
        except OSError as error:
            self._refuse(error)
        self.spares.append(segment)
        self.full = False
        self.stats.segments_created += 1

    def _refuse(self, error: OSError) -> NoReturn:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            self._fatal(f"{self._directory}: allocating a segment: {error}")
        self.full = True
        raise StorageFull(
            f"{self._directory}: no space for another log segment of {self._config.segment_bytes} bytes; "
            "free space on this disk, or compact (checkpoint) the shards of this node",
            metadata={"directory": self._directory},
        ) from error
