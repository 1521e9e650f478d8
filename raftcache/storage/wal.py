"""The node's write-ahead log: one for all its replicas, so that one fdatasync makes a whole turn of the loop durable.

    write(batch) write(batch) ... sync()        what was written is durable when `sync` returns, hard state included

Rules of this file:
- a record is in the log before the index in memory (`ReplicaLog`) speaks of it, and neither is durable before `sync`;
- **order within `sync`: log first, then hard state.** Nothing may be said to anybody before both are durable, so each
  order is safe; this one lets the hard-state files vouch for the log just synced. A crash in between leaves entries of
  a new term beside an old hard state: harmless, because a vote or promise of that term has not left, and because
  `hard_state` then answers with the log's term and no vote (Raft §5.1: the current term is never below the log's);
- what a batch of records changes in memory is applied when it is written, not when it is synced: the Raft core counts
  what is durable, the logs here say what was appended;
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from raftcache.errors import Corruption, StorageFull
from raftcache.ids import ClusterId, Index, NodeId, ReplicaId, ShardId, Term
from raftcache.raft.messages import Entry, HardState, SnapshotMeta
from raftcache.storage.disk import Disk, exit_process, own_directory
from raftcache.storage.hard_state import HardStateFiles, hard_state_paths
from raftcache.storage.replica_log import RecentEntries, ReplicaLog
from raftcache.storage.segment import segment_numbers
from raftcache.storage.segmented_log import SegmentedLog, WalConfig, WalStats
from raftcache.storage.wal_format import BATCH_HEADER_BYTES, ENTRY_BYTES, BatchBuilder, Opening, Position
from raftcache.storage.wal_recovery import Recovered, recover

__all__ = ["ReplicaLog", "ReplicaWrite", "Wal", "WalConfig", "WalStats"]

MOVE_BYTES_MAX = 1 << 20
"""Entries written again per `collect`: a few milliseconds of the loop."""

UNDIVIDED = 1 << 62
"""No limit: the usual write fits into one batch, and is only taken apart after it turned out not to."""


@dataclass(slots=True)
class ReplicaWrite:
    """What one replica adds to the log; applied in the order snapshot, entries, compaction."""

    replica: ReplicaId
    entries: Sequence[Entry] = ()
    """Consecutive. Where the first one's index is in the log already, the log is cut there first (Raft §5.3)."""
    hard_state: HardState | None = None
    snapshot: SnapshotMeta | None = None
    """Drop all entries; the log restarts after this index, which never lies before where it starts."""
    compact_to: Index | None = None
    """Drop the entries up to and including this index."""


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
        recovered: Recovered,
        *,
        cluster: ClusterId,
        node: NodeId,
        hard_state: HardStateFiles,
        cache: RecentEntries,
        fatal: Callable[[str], NoReturn],
    ) -> None:
        """Use `Wal.open`."""
        self.cache = cache
        self._config = config
        self._hard_state = hard_state
        self._logs = recovered.logs
        self._removed = recovered.removed
        self._tail = SegmentedLog(
            disk, directory, config, recovered, cluster=cluster, node=node, fatal=fatal, opening=self._opening
        )
        self.stats = self._tail.stats

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
            own_directory(disk, directory)
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
                recovered,
                cluster=cluster,
                node=node,
                hard_state=hard_state,
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
        self._tail.begin(recovered.dead)
        for replica in self._hard_state.replicas():
            if replica not in self._logs:
                self._hard_state.drop(replica)
        self._save_hard_state()
        self._tail.delete_before(self._oldest_needed())

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
        return self._tail.bytes_allocated

    def bytes_needed(self) -> int:
        """`log_bytes` as the next `collect` will leave it."""
        needed = self._oldest_needed()
        unneeded = sum(segment.size for number, segment in self._tail.segments.items() if number < needed)
        return self.log_bytes - unneeded

    @property
    def room_bytes(self) -> int:
        """What can be written without allocating."""
        return self._tail.room_bytes

    @property
    def full(self) -> bool:
        """The last attempt to allocate a segment met a full disk: refuse proposals. Cleared by a success."""
        return self._tail.full

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
        builder = BatchBuilder()
        builder.create(replica, shard)
        if snapshot is not None:
            builder.snapshot(replica, snapshot)
        self._tail.make_room([builder.padded_size()])
        self._tail.append(builder)
        log = ReplicaLog(replica, shard, cache=self.cache, find_segment=self._tail.segments.__getitem__)
        if snapshot is not None:
            log.restart_after(snapshot)
        self._logs[replica] = log

    def remove(self, replica: ReplicaId) -> None:
        """The replica's log and hard state are gone for good, its tombstone stays. Durable with the next `sync`.

        Raises: `StorageFull`, with nothing written, where even the reserve for housekeeping is used up.
        """
        builder = BatchBuilder()
        builder.remove(replica)
        # In the reserve if need be: removing a replica is a way out of a full disk.
        self._tail.append(builder, reserve=0)
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
        if parts and parts[0].builder.size > self._config.batch_bytes_max:
            parts = self._encode(batch, self._config.batch_bytes_max)
        if parts:
            self._tail.make_room([part.builder.padded_size() for part in parts])
            for part in parts:
                self._append(part)
        for write in batch:
            if write.hard_state is not None and write.replica in self._logs:
                self._hard_state.set(write.replica, write.hard_state)

    def sync(self) -> None:
        """Make everything written durable: one fdatasync (one more where a segment was filled), then the hard state
        if any changed. When it returns, votes and acknowledgements may leave. An error does not return (`fatal`)."""
        self._tail.sync()
        if self._hard_state.changed:
            self._save_hard_state()

    def mark_synced(self) -> None:
        """For a moment of idleness: sync, and let the hard-state files vouch for the last batch. Does nothing twice."""
        self.sync()
        if self._tail.vouched < self._tail.synced:
            self._save_hard_state()

    def set_cluster(self, cluster: ClusterId) -> None:
        """The node has joined a cluster; later segments and hard states carry its id."""
        assert self._tail.cluster in (0, cluster), f"the log belongs to cluster {self._tail.cluster}, not {cluster}"
        self._tail.cluster = self._hard_state.cluster = cluster

    def close(self) -> None:
        """Sync, vouch for it, and close the files. Nothing may be called afterwards."""
        self.mark_synced()
        self._tail.close()
        self._hard_state.close()

    # --- Keeping house ------------------------------------------------------------------------------------------------

    @property
    def wants_spare(self) -> bool:
        """No segment is allocated ahead: call `preallocate`, best in a thread."""
        return not self._tail.spares

    def preallocate(self) -> None:
        """Have a zero-filled spare ready for when the current segment is full. Takes tens of milliseconds.

        Raises: `StorageFull` (and sets `full`); the log goes on in the room that it has.
        """
        self._tail.preallocate()

    def collect(self) -> None:
        """Delete segments that nobody needs, and loosen what holds the oldest. Call after compactions, every second or so.

        Takes a few milliseconds: at most three syncs, the unlinks, and `MOVE_BYTES_MAX` written.
        """
        try:
            needed = self._oldest_needed()
            if needed > min(self._tail.segments):
                self._renounce_before(needed)
            held = sum(segment.size for segment in self._tail.segments.values())
            live = sum(log.data_bytes for log in self._logs.values())
            # Moving pays only where little is live in much log; else only checkpoints and compaction help (`pinned_by`).
            if held > self._config.pinned_bytes_max and live <= self._config.pinned_bytes_max // 2:
                self._move_out_of(needed)
        except StorageFull:
            # `full` says so to those who ask; housekeeping is tried again with the next call.
            pass

    def _renounce_before(self, needed: int) -> None:
        """Say durably that older segments than `needed` are not needed, then delete them. Raises: `StorageFull`."""
        builder = BatchBuilder()
        builder.renounce(needed)
        self._tail.append(builder, reserve=0)
        self._tail.sync()
        # Recovery begins where the newest *proven* record says; without proof it would look for what is gone.
        self._save_hard_state()
        self._tail.delete_before(needed)

    def _move_out_of(self, segment: int) -> None:
        """Write entries that lie in `segment` again, so that it can go with a later `collect`."""
        part = _Part()
        budget = MOVE_BYTES_MAX
        for replica in self.replicas():
            log = self._logs[replica]
            if log.oldest_segment() == segment and budget > 0:
                lo, hi = log.run_in(segment)
                entries = log.entries(lo, hi, budget)
                part.changes.append((log, (entries, part.builder.entries(replica, entries, moved=True), True)))
                budget -= _size_of(entries)
        if part.changes:
            self._tail.make_room([part.builder.padded_size()])
            self._append(part)
            self.stats.moved_bytes += part.builder.size

    def _oldest_needed(self) -> int:
        """The oldest segment in which an entry lies; without entries, the current one."""
        oldest = [found for log in self._logs.values() if (found := log.oldest_segment()) is not None]
        current = self._tail.current
        assert current is not None, "the log has not begun"
        return min(oldest, default=current.number)

    # --- Inside -------------------------------------------------------------------------------------------------------

    def _opening(self, previous_end: Position, number: int) -> BatchBuilder:
        """The first batch of segment `number`: the state of all logs, on which recovery may begin."""
        logs = [self._logs[replica] for replica in self.replicas()]
        oldest = [found for log in logs if (found := log.oldest_segment()) is not None]
        builder = BatchBuilder()
        builder.opening(
            Opening(previous_end, min(oldest, default=number), [log.state() for log in logs], sorted(self._removed))
        )
        return builder

    def _encode(self, batch: Sequence[ReplicaWrite], bytes_max: int = UNDIVIDED) -> list[_Part]:
        """The batches for these writes, none larger than `bytes_max` (but for a single large entry)."""
        part = _Part()
        parts = [part]
        for write in batch:
            log = self._logs.get(write.replica)
            if log is None:
                # A compaction that was waiting when its replica was removed. Nobody waits for its durability.
                assert write.replica in self._removed, f"replica {write.replica} has no log"
                continue
            if write.snapshot is not None:
                # An older one would drop entries that were acknowledged: a state that is behind its log is not mended so.
                assert write.snapshot.index >= log.start_index, (
                    f"replica {log.replica}: snapshot {write.snapshot.index} before the log's start, {log.start_index}"
                )
                part.builder.snapshot(log.replica, write.snapshot)
                part.changes.append((log, write.snapshot))
            if write.entries:
                for entries in _chunks(write.entries, bytes_max):
                    if part.changes and part.builder.size + _size_of(entries) > bytes_max:
                        part = _Part()
                        parts.append(part)
                    part.changes.append((log, (entries, part.builder.entries(log.replica, entries), False)))
            if write.compact_to is not None and write.compact_to > log.start_index:
                term = _term_of(log, write, batch)
                part.builder.compact(log.replica, write.compact_to, term)
                part.changes.append((log, (write.compact_to, term)))
        return parts if part.changes else parts[:-1]

    def _append(self, part: _Part) -> None:
        """One batch to the disk's cache, then into the logs in memory."""
        segment, offset = self._tail.append(part.builder)
        for log, change in part.changes:
            match change:
                case (entries, data_at, False):
                    log.append(entries, segment=segment, offset=offset + data_at)
                    self.stats.entries += len(entries)
                case (entries, data_at, _):
                    lengths = [len(entry.data) for entry in entries]
                    log.move(entries[0].index, lengths=lengths, segment=segment, offset=offset + data_at)
                case (index, term):
                    log.compact(index, term)
                case SnapshotMeta():
                    log.restart_after(change)

    def _save_hard_state(self) -> None:
        self._hard_state.save(self._tail.synced)
        self._tail.vouched = max(self._tail.vouched, self._tail.synced)
        self.stats.hard_state_saves += 1


def _size_of(entries: Sequence[Entry]) -> int:
    return sum(len(entry.data) for entry in entries) + len(entries) * ENTRY_BYTES


def _chunks(entries: Sequence[Entry], bytes_max: int) -> list[Sequence[Entry]]:
    """`entries` in stretches that leave a batch of at most `bytes_max`, or of one entry."""
    if len(entries) == 1 or bytes_max == UNDIVIDED:
        return [entries]
    chunks: list[Sequence[Entry]] = []
    start, size, limit = 0, 0, bytes_max - BATCH_HEADER_BYTES
    for place, entry in enumerate(entries):
        cost = len(entry.data) + ENTRY_BYTES
        if place > start and size + cost > limit:
            chunks.append(entries[start:place])
            start, size = place, 0
        size += cost
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
