"""The node's write-ahead log: one for all its replicas, so that one fdatasync makes a whole turn of the loop durable.

    write(batch) write(batch) ... sync()        what was written is durable when `sync` returns, hard state included

Rules of this file:
- a record is in the log before the index in memory (`ReplicaLog`) speaks of it, and neither is durable before `sync`;
- **order within `sync`: log first, then hard state.** Nothing may be said to anybody before both are durable, so each
  order is safe; this one lets the hard-state files vouch for the log just synced. A crash in between leaves entries of
  a new term beside an old hard state: harmless, because a vote or promise of that term has not left, and because
  `hard_state` then answers with the log's term and no vote (Raft §5.1: the current term is never below the log's);
- a batch goes into one segment. A full segment is followed by the spare, which was zero-filled ahead of time;
- a segment is deleted when no replica has an entry in it *and* a later record, proven to be on the disk, renounces it.
  Every segment's `Opening` repeats starts, snapshots and tombstones of all logs: a COMPACT or REMOVE cannot be lost while
  older records that it supersedes are still there;
- any error of write, fdatasync or rename ends the process (`fatal`): after a failed fsync the page cache shows what the
  disk lacks, and a retry would succeed. Except ENOSPC while allocating ahead: then `full` is set, `StorageFull` raised,
  and nothing written.

Threads: `sync` and `preallocate` may each run in a thread. `write`, `create`, `remove`, `mark_synced` and `collect` may
not be called while `sync` runs; reading logs may.

Caveats: (1) damage to exactly the last synced batch, before anything vouches for it, is taken for a torn tail; call
`mark_synced` when idle. (2) A sector is assumed to be written whole, and rewriting it with the same leading bytes to
leave those intact (SQLite's "powersafe overwrite"): batches are not padded to sectors. (3) This version refuses to
start on damage; it does not yet isolate the replicas concerned.
"""

import errno
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from raftcache.errors import Corruption, StorageFull
from raftcache.ids import ClusterId, Index, NodeId, ReplicaId, ShardId, Term
from raftcache.raft.messages import Entry, HardState, SnapshotMeta
from raftcache.storage.disk import Disk, exit_process, make_directory
from raftcache.storage.hard_state import HardStateFiles, hard_state_paths
from raftcache.storage.replica_log import RecentEntries, ReplicaLog
from raftcache.storage.segment import Segment, create_segment, segment_numbers
from raftcache.storage.wal_format import (
    BATCH_HEADER_BYTES,
    ENTRY_BYTES,
    NOWHERE_YET,
    OFFSET_BITS,
    SEGMENT_HEADER_BYTES,
    BatchBuilder,
    Opening,
    Position,
    position_of,
)
from raftcache.storage.wal_recovery import Recovered, recover

__all__ = ["ReplicaLog", "ReplicaWrite", "Wal", "WalConfig", "WalStats"]

HOUSEKEEPING_BYTES = 4096
"""Kept free at the end of each segment for renouncing others and for removals: disk can be freed on a full disk."""

MOVE_BYTES_MAX = 1 << 20
"""Entries written again per `collect`: a few milliseconds of the loop."""


@dataclass(slots=True, frozen=True)
class WalConfig:
    """Limits of the log. Sizes in bytes."""

    segment_bytes: int = 16 << 20
    """Zero-filling one takes 10 to 20 ms of a disk; at 100 MB/s of log a segment lasts six times that. (etcd: 64 MB.)"""
    batch_bytes_max: int = 4 << 20
    """More than this in one `write` becomes several batches (one entry is never divided). At most a segment's size."""
    cache_bytes_max: int = 64 << 20
    """Recent entries kept in memory, of all replicas together: what a follower a little behind is served from."""
    pinned_bytes_max: int = 256 << 20
    """Past it, entries that hold the oldest segment are written again further on, where the rest is small."""

    def __post_init__(self) -> None:
        assert 2 * HOUSEKEEPING_BYTES <= self.segment_bytes < 1 << OFFSET_BITS, f"segment_bytes {self.segment_bytes}"
        assert self.batch_bytes_max >= BATCH_HEADER_BYTES, f"batch_bytes_max {self.batch_bytes_max}"


@dataclass(slots=True)
class ReplicaWrite:
    """What one replica adds to the log; applied in the order snapshot, entries, compaction."""

    replica: ReplicaId
    entries: Sequence[Entry] = ()
    """Consecutive. Where the first one's index is in the log already, the log is cut there first (Raft §5.3)."""
    hard_state: HardState | None = None
    snapshot: SnapshotMeta | None = None
    """Drop all entries; the log restarts after this index."""
    compact_to: Index | None = None
    """Drop the entries up to and including this index."""


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


_Change = SnapshotMeta | tuple[Index, Term] | tuple[Sequence[Entry], int, bool]
"""What a record does to its log: restart, compact to (index, term), or entries at an offset in the batch (moved?)."""


@dataclass(slots=True)
class _Part:
    """One batch to be, and what follows from it in memory."""

    builder: BatchBuilder = field(default_factory=BatchBuilder)
    changes: list[tuple[ReplicaLog, _Change]] = field(default_factory=list)


class Wal:
    """See the module."""

    def __init__(
        self,
        disk: Disk,
        directory: str,
        config: WalConfig,
        *,
        cluster: ClusterId,
        node: NodeId,
        hard_state: HardStateFiles,
        recovered: Recovered,
        cache: RecentEntries,
        fatal: Callable[[str], NoReturn],
    ) -> None:
        """Use `Wal.open`."""
        self.stats = WalStats()
        self.full = False
        """The last attempt to allocate a segment met a full disk: proposals should be refused. Cleared by a success."""
        self.cache = cache
        self._disk = disk
        self._directory = directory
        self._config = config
        self._cluster = cluster
        self._node = node
        self._fatal = fatal
        self._hard_state = hard_state
        self._logs = recovered.logs
        self._removed = recovered.removed
        self._segments = recovered.segments
        """Oldest first; the same dict that the logs look their segments up in."""
        self._spares: list[Segment] = [] if recovered.spare is None else [recovered.spare]
        self._creating = threading.Lock()
        """Held while a segment is created: by the thread that allocates ahead, or by a `write` that cannot wait for it."""
        self._number_max = recovered.number_max
        self._last_crc = recovered.last_crc
        self._sequence = recovered.sequence
        self._unsynced: list[Segment] = []
        """Segments with writes that no fdatasync has covered, oldest first."""
        self._end = recovered.end
        self._synced = recovered.end
        """Proven to be on the disk. Recovery synced all that it read."""
        self._vouched = NOWHERE_YET
        """The highest watermark that is itself on the disk: in a synced batch, or in the hard-state files."""
        self._last_watermark = NOWHERE_YET
        """The watermark in the last batch written."""
        self._marked = NOWHERE_YET
        """Where the last marker ended; nothing was written since if that is still the end."""

    @staticmethod
    def open(
        disk: Disk,
        directory: str,
        config: WalConfig,
        identity: tuple[ClusterId, NodeId],
        *,
        incarnation: int = 0,
        create: bool = True,
        fatal: Callable[[str], NoReturn] = exit_process,
    ) -> "Wal":
        """Recover the log in `directory` (whose parent exists) and continue it in a fresh segment, durably.

        With `create`, an empty directory becomes a new log; without, it is a log that was lost, and refused.

        Raises:
            Corruption: synced data is damaged or missing; names the file and offset, and says what to do.
            IdentityMismatch, UnsupportedVersion: files of another node, or of a newer release.
            StorageFull: no space for the fresh segment.
        """
        cluster, node = identity
        try:
            make_directory(disk, directory)
            if not segment_numbers(disk, directory) and not any(map(disk.exists, hard_state_paths(directory))):
                if not create:
                    raise Corruption(
                        f"{directory} is empty, but this node had a log. It may have voted and acknowledged what it no "
                        "longer knows: move the data directory away and start on an empty one, as a new member.",
                        metadata={"file": directory},
                    )
                HardStateFiles.create(disk, directory, cluster=cluster, node=node, incarnation=incarnation)
            hard_state = HardStateFiles.open(
                disk, directory, cluster=cluster, node=node, incarnation=incarnation, fatal=fatal
            )
            cache = RecentEntries(config.cache_bytes_max)
            recovered = recover(
                disk,
                directory,
                cluster=cluster,
                node=node,
                watermark=hard_state.watermark,
                cache=cache,
                fatal=fatal,
            )
            wal = Wal(
                disk,
                directory,
                config,
                cluster=cluster,
                node=node,
                hard_state=hard_state,
                recovered=recovered,
                cache=cache,
                fatal=fatal,
            )
            wal._begin(recovered)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise StorageFull(f"{directory}: no space left to open the log; free some and start again") from error
            fatal(f"{directory}: {error}")
        return wal

    def _begin(self, recovered: Recovered) -> None:
        """From what was read to a log that goes on. A crash at any step leaves the same log to the next recovery."""
        # Dead segments go first: once the new opening is durable, numbers alone say what was proven.
        for segment in recovered.dead:
            segment.file.close()
            self._disk.unlink(segment.path)
        if recovered.dead:
            self._disk.fsync_directory(self._directory)
        previous = self._segments.get(self._end >> OFFSET_BITS)
        if not self._spares:
            self._add_spare()
        self._roll()
        for replica in self._hard_state.replicas():
            if replica not in self._logs:
                self._hard_state.drop(replica)
        self.sync()
        self._save_hard_state()
        if previous is not None:
            # The cut is recorded; giving the rest of the file back as well keeps a node in a restart loop from
            # filling the disk with segments it hardly used.
            self._shorten(previous, self._end_of(previous, recovered.end))
        self._delete_before(self._oldest_needed())

    def _shorten(self, segment: Segment, used: int) -> None:
        """Give back the zeros that a segment will not use any more."""
        if used < segment.size:
            try:
                segment.file.truncate(used)
                segment.file.fdatasync()
            except OSError as error:
                self._fatal(f"{segment.path}: giving back its end: {error}")
            segment.size = used

    @staticmethod
    def _end_of(segment: Segment, end: Position) -> int:
        assert end >> OFFSET_BITS == segment.number, f"end {end} is not in segment {segment.number}"
        return end & ((1 << OFFSET_BITS) - 1)

    # --- Reading ------------------------------------------------------------------------------------------------------

    def replicas(self) -> list[ReplicaId]:
        """Those with a log, ascending."""
        return sorted(self._logs)

    def removed(self) -> set[ReplicaId]:
        """Tombstones: replicas that were here and must never come back. Do not change it."""
        return self._removed

    def log(self, replica: ReplicaId) -> ReplicaLog:
        return self._logs[replica]

    def shard(self, replica: ReplicaId) -> ShardId:
        return self._logs[replica].shard

    def hard_state(self, replica: ReplicaId) -> HardState:
        """As durable (or as about to be, after a `write`). Raft §5.1: the term is never below that of the log."""
        state = self._hard_state.get(replica)
        last_term = self._logs[replica].last_term()
        return HardState(last_term) if last_term > state.term else state

    @property
    def repaired(self) -> list[str]:
        """Copies of the hard state that were bad at `open` and were rewritten from the other; for the log and metrics."""
        return self._hard_state.repaired

    @property
    def log_bytes(self) -> int:
        """What all segments take on the disk, the spare included."""
        return sum(segment.size for segment in self._segments.values()) + sum(spare.size for spare in self._spares)

    @property
    def room_bytes(self) -> int:
        """What can be written without allocating."""
        current = self._current
        return (
            current.size
            - HOUSEKEEPING_BYTES
            - self._end_of(current, self._end)
            + sum(spare.size for spare in self._spares)
        )

    def pinned_by(self) -> ReplicaId | None:
        """The replica whose entries hold the oldest segment, and by most: checkpointing and compacting it frees disk."""
        held = [
            (oldest, -log.data_bytes, log.replica) for log in self._logs.values() if (oldest := log.oldest_segment())
        ]
        return min(held)[2] if held else None

    # --- Writing ------------------------------------------------------------------------------------------------------

    def create(self, replica: ReplicaId, shard: ShardId, snapshot: SnapshotMeta | None) -> None:
        """A new, empty log, which begins after `snapshot` where given. Durable with the next `sync`.

        Raises: `StorageFull`, with nothing written.
        """
        assert replica > 0, f"replica {replica}"
        assert replica not in self._logs, f"replica {replica} has a log"
        assert replica not in self._removed, f"replica {replica} was removed: ids are never used twice"
        self._hard_state.reserve(len(self._logs) + 1)
        part = _Part()
        part.builder.create(replica, shard)
        if snapshot is not None:
            part.builder.snapshot(replica, snapshot)
        self._make_room([part])
        log = ReplicaLog(replica, shard, cache=self.cache, find_segment=self._segments.__getitem__)
        self._append(part)
        self._logs[replica] = log
        if snapshot is not None:
            log.restart_after(snapshot)

    def remove(self, replica: ReplicaId) -> None:
        """The replica's log and hard state are gone for good, its tombstone stays. Durable with the next `sync`."""
        part = _Part()
        part.builder.remove(replica)
        # In the reserve if need be: removing a replica is a way out of a full disk.
        self._append(part, reserve=0)
        self._logs.pop(replica).release()
        self._removed.add(replica)
        self._hard_state.drop(replica)

    def write(self, batch: Sequence[ReplicaWrite]) -> None:
        """Append what the replicas of one turn have to say: one pwrite, not durable before `sync`.

        What is too much for one batch (`batch_bytes_max`) becomes several; a crash may then keep only the first ones.

        Raises:
            StorageFull: no room left and none to be had; nothing of `batch` was written.
        """
        parts = self._encode(batch)
        if parts:
            self._make_room(parts)
            for part in parts:
                self._append(part)
        for write in batch:
            if write.hard_state is not None and write.replica in self._logs:
                self._hard_state.set(write.replica, write.hard_state)

    def sync(self) -> None:
        """Make everything written durable: one fdatasync (one more where a segment was filled), then the hard state
        if any changed. When it returns, votes and acknowledgements may leave. An error does not return (`fatal`)."""
        end, watermark = self._end, self._last_watermark
        for segment in self._unsynced:
            try:
                segment.file.fdatasync()
            except OSError as error:
                self._fatal(f"{segment.path}: fdatasync: {error}")
            self.stats.fdatasyncs += 1
        self._unsynced.clear()
        self._synced = end
        self._vouched = max(self._vouched, watermark)
        if self._hard_state.changed:
            self._save_hard_state()

    def mark_synced(self) -> None:
        """For a moment of idleness: sync, and leave a marker that vouches for the last batch. Does nothing twice."""
        self.sync()
        if self._vouched < self._synced and self._marked != self._end:
            part = _Part()
            self._make_room([part])
            self._append(part)
            self.sync()
            self._marked = self._end

    def set_cluster(self, cluster: ClusterId) -> None:
        """The node has joined a cluster; later segments and hard states carry its id."""
        assert self._cluster in (0, cluster), f"the log belongs to cluster {self._cluster}, not {cluster}"
        self._cluster = self._hard_state.cluster = cluster

    def close(self) -> None:
        """Sync, vouch for it, and close the files. Nothing may be called afterwards."""
        self.mark_synced()
        for segment in (*self._segments.values(), *self._spares):
            segment.file.close()
        self._hard_state.close()

    # --- Keeping house ------------------------------------------------------------------------------------------------

    @property
    def wants_spare(self) -> bool:
        """No segment is allocated ahead: call `preallocate`, best in a thread."""
        return not self._spares

    def preallocate(self) -> None:
        """Have a zero-filled spare ready for when the current segment is full. Takes tens of milliseconds.

        Raises: `StorageFull` (and sets `full`); the log goes on in the room that it has.
        """
        with self._creating:
            if not self._spares:
                self._add_spare()

    def collect(self) -> None:
        """Delete segments that nobody needs, and loosen what holds the oldest. Call after compactions, every second or so.

        Takes a few milliseconds at most: unlinks, and at most `MOVE_BYTES_MAX` written.
        """
        needed = self._oldest_needed()
        if needed > min(self._segments):
            part = _Part()
            part.builder.renounce(needed)
            self._append(part, reserve=0)
            self.sync()
            self._delete_before(needed)
        held = sum(segment.size for number, segment in self._segments.items() if number >= needed)
        live = sum(log.data_bytes for log in self._logs.values())
        # Moving pays only where little is live in much log; else only checkpoints and compaction help (`pinned_by`).
        if held > self._config.pinned_bytes_max and live <= self._config.pinned_bytes_max // 2:
            self._move_out_of(needed)

    def _move_out_of(self, segment: int) -> None:
        part = _Part()
        budget = MOVE_BYTES_MAX
        for replica in self.replicas():
            log = self._logs[replica]
            if log.oldest_segment() != segment or budget <= 0:
                continue
            lo, hi = log.run_in(segment)
            entries = log.entries(lo, hi, budget)
            data_at = part.builder.entries(replica, entries, moved=True)
            part.changes.append((log, (entries, data_at, True)))
            budget -= sum(len(entry.data) + ENTRY_BYTES for entry in entries)
        self._make_room([part])
        self._append(part)
        self.stats.moved_bytes += part.builder.size

    def _delete_before(self, needed: int) -> None:
        """Unlink the segments that a synced record has renounced."""
        doomed = [number for number in self._segments if number < needed]
        if doomed:
            # Recovery begins where the newest *proven* record says; without proof it would look for what is gone.
            self._save_hard_state()
        try:
            for number in doomed:
                segment = self._segments.pop(number)
                segment.file.close()
                self._disk.unlink(segment.path)
                self.stats.segments_deleted += 1
            if doomed:
                self._disk.fsync_directory(self._directory)
        except OSError as error:
            self._fatal(f"{self._directory}: deleting segments: {error}")

    def _oldest_needed(self, *, default: int = 0) -> int:
        """The oldest segment in which an entry lies; without entries the current one, or `default`."""
        oldest = [found for log in self._logs.values() if (found := log.oldest_segment()) is not None]
        return min(oldest) if oldest else default or self._current.number

    # --- Inside -------------------------------------------------------------------------------------------------------

    @property
    def _current(self) -> Segment:
        return self._segments[self._end >> OFFSET_BITS]

    def _encode(self, batch: Sequence[ReplicaWrite]) -> list[_Part]:
        """The batches for these writes; usually one."""
        part = _Part()
        parts = [part]
        limit = self._config.batch_bytes_max
        for write in batch:
            log = self._logs.get(write.replica)
            if log is None:
                # A compaction that was waiting when its replica was removed. Nobody waits for its durability.
                assert write.replica in self._removed, f"replica {write.replica} has no log"
                continue
            if write.snapshot is not None:
                part.builder.snapshot(log.replica, write.snapshot)
                part.changes.append((log, write.snapshot))
            if write.entries and part.builder.size + _size_of(write.entries) <= limit:
                part.changes.append((log, (write.entries, part.builder.entries(log.replica, write.entries), False)))
            else:
                for entries in _chunks(write.entries, limit - BATCH_HEADER_BYTES):
                    if part.changes and part.builder.size + _size_of(entries) > limit:
                        part = _Part()
                        parts.append(part)
                    part.changes.append((log, (entries, part.builder.entries(log.replica, entries), False)))
            if write.compact_to is not None and write.compact_to > log.start_index:
                term = _term_of(log, write, batch)
                part.builder.compact(log.replica, write.compact_to, term)
                part.changes.append((log, (write.compact_to, term)))
        return parts if part.changes else parts[:-1]

    def _append(self, part: _Part, *, reserve: int = HOUSEKEEPING_BYTES) -> None:
        """One batch into the current segment, or the next one; then into the logs in memory. Room has been made."""
        builder = part.builder
        size = builder.padded_size()
        if self._end_of(self._current, self._end) + size > self._current.size - reserve:
            if self._spares:
                self._roll()
            self._enlarge(self._current, self._end_of(self._current, self._end) + size)
        segment, offset = self._current, self._end_of(self._current, self._end)
        self._write_batch(builder, segment, offset)
        for log, change in part.changes:
            match change:
                case (entries, data_at, moved):
                    if moved:
                        lengths = [len(entry.data) for entry in entries]
                        log.move(entries[0].index, lengths=lengths, segment=segment.number, offset=offset + data_at)
                    else:
                        log.append(entries, segment=segment.number, offset=offset + data_at)
                        self.stats.entries += len(entries)
                case (index, term):
                    log.compact(index, term)
                case SnapshotMeta():
                    log.restart_after(change)

    def _write_batch(self, builder: BatchBuilder, segment: Segment, offset: int) -> None:
        self._sequence += 1
        self._last_watermark = self._synced
        framed, self._last_crc = builder.frame(
            seed=segment.seed,
            offset=offset,
            previous_crc=self._last_crc,
            sequence=self._sequence,
            synced_upto=self._synced,
        )
        if not self._unsynced or self._unsynced[-1] is not segment:
            self._unsynced.append(segment)
        try:
            segment.file.pwrite(framed, offset)
        except OSError as error:
            self._fatal(f"{segment.path}, offset {offset}: write of {len(framed)} bytes: {error}")
        self._end = position_of(segment.number, offset + len(framed))
        self.stats.batches += 1
        self.stats.bytes += len(framed)

    def _roll(self) -> None:
        """Go on in the spare: its opening seals the segment before."""
        segment = self._spares.pop(0)
        assert segment.number > self._end >> OFFSET_BITS, f"spare {segment.number} is older than the end {self._end}"
        builder = self._opening(self._oldest_needed(default=segment.number))
        self._segments[segment.number] = segment
        self._enlarge(segment, SEGMENT_HEADER_BYTES + builder.padded_size())
        self._write_batch(builder, segment, SEGMENT_HEADER_BYTES)

    def _opening(self, first_segment: int) -> BatchBuilder:
        builder = BatchBuilder()
        logs = [self._logs[replica].state() for replica in self.replicas()]
        builder.opening(Opening(self._end, first_segment, logs, sorted(self._removed)))
        return builder

    def _make_room(self, parts: Sequence[_Part]) -> None:
        """See that all of `parts` fit, allocating where they do not: a write is refused as a whole or not at all."""
        room = self._current.size - self._end_of(self._current, self._end) - HOUSEKEEPING_BYTES
        spares_used = 0
        for part in parts:
            size = part.builder.padded_size()
            if size > room:
                if spares_used == len(self._spares):
                    with self._creating:
                        # The thread that allocates ahead may just have finished.
                        if spares_used == len(self._spares):
                            self._add_spare()
                spare = self._spares[spares_used]
                spares_used += 1
                used = SEGMENT_HEADER_BYTES + self._opening(0).padded_size() + HOUSEKEEPING_BYTES
                try:
                    if used + size > spare.size:
                        spare.file.allocate(used + size)
                        spare.size = used + size
                except OSError as error:
                    self._refuse(error)
                room = spare.size - used
            room -= size

    def _enlarge(self, segment: Segment, size: int) -> None:
        """For an opening that outgrew its estimate while the write before it went through."""
        if size > segment.size:
            try:
                segment.file.allocate(size)
            except OSError as error:
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
                cluster=self._cluster,
                node=self._node,
            )
        except OSError as error:
            self._refuse(error)
        self._spares.append(segment)
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

    def _save_hard_state(self) -> None:
        self._hard_state.save(self._synced)
        self._vouched = max(self._vouched, self._synced)
        self.stats.hard_state_saves += 1


def _size_of(entries: Sequence[Entry]) -> int:
    return sum(len(entry.data) for entry in entries) + len(entries) * ENTRY_BYTES


def _chunks(entries: Sequence[Entry], bytes_max: int) -> list[Sequence[Entry]]:
    """`entries` in stretches of at most `bytes_max`, or of one entry."""
    chunks: list[Sequence[Entry]] = []
    start, size = 0, 0
    for place, entry in enumerate(entries):
        cost = len(entry.data) + ENTRY_BYTES
        if place > start and size + cost > bytes_max:
            chunks.append(entries[start:place])
            start, size = place, 0
        size += cost
    if entries:
        chunks.append(entries[start:])
    return chunks


def _term_of(log: ReplicaLog, write: ReplicaWrite, batch: Sequence[ReplicaWrite]) -> Term:
    """The term at `write.compact_to`: in the log, or among the entries that are just being written."""
    index = write.compact_to
    assert index is not None
    for other in batch:
        if other.replica == log.replica:
            for entry in other.entries:
                if entry.index == index:
                    return entry.term
    term = log.term(index)
    assert term is not None, (
        f"replica {log.replica}: compaction to {index}, log [{log.first_index()}, {log.last_index()}]"
    )
    return term
