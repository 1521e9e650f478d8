"""From segment files to logs: what of the write-ahead log is true after a crash, and what must not be touched.

The log is one sequence of batches over all segments. Recovery reads it forward to the first place where no valid next
batch stands (the *break*) and then decides, by one number, what the break is. The number is the **watermark**: the
highest position of which any valid batch (before or behind the break) or the hard-state files say "synced up to here".

    break at or past the watermark      a torn tail: nobody was ever promised those bytes; the log ends at the break
    break before the watermark          damage to what was synced: `Corruption`. Never cut silently, never skipped

"A bad batch with a valid one behind it is damage" would be wrong: pages of un-synced batches reach the disk in any
order. And a valid batch that was never synced may stay: it may become durable late, like a delayed write.

**The cut is recorded.** After recovery the log goes on in a *fresh* segment, whose `Opening` says where the log went on
from; what the old segment holds beyond is dead for every later recovery, however valid it looks.

How the segments hang together: each `Opening` names the position it continues from. The forward scan therefore hops to
the segment that claims the place where it stands. Where to begin: at the `first_segment` that the newest `Opening` or
`Renounce` states that is proven synced, since segments are deleted only after the record that renounces them is.

Before anything is read: `fdatasync` (so that what is read is on the disk: a crash of the process alone leaves dirty
pages; `Wal.open` has done the same for the names, by fsync of the directory), then `drop_cache` (so that pages which a
failed fsync left clean are not believed).

Caveat, stated and not curable (the very last batch has no successor to vouch for it): if exactly the *last* synced
batch is damaged and no hard state was written since, it looks like a torn tail. `Wal.mark_synced` closes
the gap when the node is idle.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn, assert_never

from raftcache.errors import Corruption
from raftcache.ids import ClusterId, NodeId, ReplicaId
from raftcache.storage.disk import Disk
from raftcache.storage.replica_log import NOWHERE, RecentEntries, ReplicaLog
from raftcache.storage.segment import Segment, open_segment, segment_numbers, segment_path, unfinished_segments
from raftcache.storage.wal_format import (
    BATCH_ALIGNMENT,
    BATCH_MAGIC_BYTES,
    NOWHERE_YET,
    OFFSET_BITS,
    SEGMENT_HEADER_BYTES,
    BatchHeader,
    Compact,
    Create,
    Entries,
    Opening,
    Position,
    Record,
    Remove,
    Renounce,
    Snapshot,
    decode_records,
    describe_position,
    is_segment_header_valid,
    position_of,
    read_batch,
)

_MAGIC_OFFSET = 4
"""Of the magic within a batch."""

ADVICE = (
    "This node refuses to start rather than forget what it acknowledged. If the disk is sound and an intact copy of the "
    "file exists, put it back. Otherwise remove this node's replicas from their shards, move the data directory away and "
    "start the node on an empty one: it joins as a new member and is filled by the others."
)


@dataclass(slots=True)
class _Scanned:
    """One segment file, read once."""

    segment: Segment
    header_valid: bool
    batches: dict[int, tuple[BatchHeader, list[Record]]]
    """By offset; every batch whose checksum is right, also those behind a bad one."""
    blank: bool
    """Nothing but zeros after the header: allocated ahead, never used."""

    @property
    def opening(self) -> tuple[Opening, BatchHeader] | None:
        found = self.batches.get(SEGMENT_HEADER_BYTES)
        if found is None or not found[1] or not isinstance(found[1][0], Opening):
            return None
        return found[1][0], found[0]


@dataclass(slots=True)
class Recovered:
    """The log as it is, and what `Wal` needs to go on with it."""

    logs: dict[ReplicaId, ReplicaLog] = field(default_factory=dict)
    removed: set[ReplicaId] = field(default_factory=set)
    segments: dict[int, Segment] = field(default_factory=dict)
    """Those that the log runs through, oldest first."""
    dead: list[Segment] = field(default_factory=list)
    """Behind the cut, or older than any record that is needed."""
    spare: Segment | None = None
    """Allocated ahead by an earlier life, and blank."""
    end: Position = NOWHERE_YET
    """Where the log ends. 0: there is no log yet."""
    last_crc: int = 0
    sequence: int = 0
    number_max: int = 0
    """The highest segment number in use, dead ones included."""


def recover(
    disk: Disk,
    directory: str,
    *,
    cluster: ClusterId,
    node: NodeId,
    watermark: Position,
    cache: RecentEntries,
    fatal: Callable[[str], NoReturn],
) -> Recovered:
    """Read all segments. `watermark` is what the hard-state files know. Changes nothing but leftovers of creation.

    Raises:
        Corruption: what was proven synced is damaged or missing; names file and offset, what is lost, what to do.
        IdentityMismatch, UnsupportedVersion: a segment is another node's, or a newer release's.
    """
    for path in unfinished_segments(disk, directory):
        disk.unlink(path)
    scanned: dict[int, _Scanned] = {}
    for number in segment_numbers(disk, directory):
        scanned[number] = _scan(disk, directory, number, cluster=cluster, node=node, fatal=fatal)
        for batch, _ in scanned[number].batches.values():
            watermark = max(watermark, batch.synced_upto)
    recovered = Recovered(number_max=max(scanned, default=0))
    first = _first_segment(scanned, watermark)
    replay = _Replay(recovered, directory, cache)
    stop = replay.run(scanned, first)
    _require(scanned, stop, watermark, directory, recovered)
    replay.check_complete()
    for number, found in scanned.items():
        if number in recovered.segments:
            continue
        if found.blank and found.header_valid and number == recovered.number_max and number > stop >> OFFSET_BITS:
            recovered.spare = found.segment
        else:
            recovered.dead.append(found.segment)
    return recovered


def _scan(
    disk: Disk,
    directory: str,
    number: int,
    *,
    cluster: ClusterId,
    node: NodeId,
    fatal: Callable[[str], NoReturn],
) -> _Scanned:
    path = segment_path(directory, number)
    segment = open_segment(disk, directory, number, node=node)
    try:
        segment.file.fdatasync()
    except OSError as error:
        fatal(f"{path}: fdatasync before recovery: {error}")
    try:
        segment.file.drop_cache()
        content = segment.file.pread(segment.size, 0)
    except OSError as error:
        raise _unreadable(path, error) from error
    header = content[:SEGMENT_HEADER_BYTES]
    valid = is_segment_header_valid(header, path=path, cluster=cluster, node=node, number=number)
    batches: dict[int, tuple[BatchHeader, list[Record]]] = {}
    offset = SEGMENT_HEADER_BYTES
    while offset < len(content):
        batch = read_batch(content, offset, segment.seed)
        if batch is not None:
            batches[offset] = batch, decode_records(content, batch, path)
            offset = batch.end
            continue
        # Behind a bad batch, or at the end: look for whatever else is valid. Its watermark is evidence.
        place = content.find(BATCH_MAGIC_BYTES, offset + _MAGIC_OFFSET + 1)
        while place >= 0 and (place - _MAGIC_OFFSET) % BATCH_ALIGNMENT:
            place = content.find(BATCH_MAGIC_BYTES, place + 1)
        if place < 0:
            break
        offset = place - _MAGIC_OFFSET
    blank = not batches and not content[SEGMENT_HEADER_BYTES:].strip(b"\0")
    return _Scanned(segment, valid, batches, blank)


def _unreadable(path: str, error: OSError) -> Corruption | OSError:
    if error.errno != errno.EIO:
        return error
    return Corruption(f"{path} cannot be read: {error.strerror}. {ADVICE}", metadata={"file": path})


def _first_segment(scanned: dict[int, _Scanned], watermark: Position) -> int:
    """Where the log begins: what the newest proven statement says, or else at the oldest file."""
    proven = [
        record.first_segment
        for number, found in scanned.items()
        for batch, records in found.batches.values()
        if position_of(number, batch.end) <= watermark
        for record in records
        if isinstance(record, Opening | Renounce)
    ]
    return max(proven, default=min(scanned, default=0))


def _require(
    scanned: dict[int, _Scanned], stop: Position, watermark: Position, directory: str, recovered: Recovered
) -> None:
    """The decision of this file: is the break a torn tail, or damage?"""
    if stop < watermark:
        if not scanned:
            raise Corruption(
                f"{directory} holds no segment of the log, which is proven to have been on the disk up to "
                f"{describe_position(watermark)}. {ADVICE}",
                metadata={"file": directory, "watermark": str(watermark)},
            )
        number, offset = stop >> OFFSET_BITS, stop & ((1 << OFFSET_BITS) - 1)
        found = scanned.get(number)
        what = "is missing" if found is None else f"is damaged at offset {offset}"
        if found is not None:
            follows = [place for place in found.batches if place > offset]
            missing = [later for later in (number + 1, watermark >> OFFSET_BITS) if later not in scanned]
            if follows:
                what += " (valid data follows)"
            elif missing:
                # Nothing behind the break in this file, so the log went on in one that is not there.
                number, offset, what = missing[0], 0, f"is missing (segment {number} ends at offset {offset})"
        path = segment_path(directory, number)
        known = ", ".join(str(replica) for replica in sorted(recovered.logs)) or "none"
        raise Corruption(
            f"{path} {what}. The log is proven to have been on the disk up to {describe_position(watermark)}, so "
            f"acknowledged entries may be lost. Replicas that the log names up to there: {known}. {ADVICE}",
            metadata={"file": path, "offset": str(offset), "watermark": str(watermark)},
        )
    for number, found in scanned.items():
        if number in recovered.segments and not found.header_valid:
            raise Corruption(
                f"{found.segment.path}: the header is damaged, its batches are not. {ADVICE}",
                metadata={"file": found.segment.path, "offset": "0"},
            )


class _Replay:
    """Applies the records in order. Any contradiction between valid records is `Corruption`, too."""

    def __init__(self, recovered: Recovered, directory: str, cache: RecentEntries) -> None:
        self._recovered = recovered
        self._directory = directory
        self._cache = cache
        self._path = ""

    def run(self, scanned: dict[int, _Scanned], first: int) -> Position:
        """Follow the log from the `Opening` of segment `first` to the break, and return where that is."""
        recovered = self._recovered
        claims: dict[Position, int] = {}
        for number, found in scanned.items():
            if found.opening is not None and number > first:
                # Two claims on one place: the older was torn in a crash during recovery, and the newer replaced it.
                claims[found.opening[0].previous_end] = number
        number, offset = first, SEGMENT_HEADER_BYTES
        current = scanned.get(first)
        if current is None or current.opening is None:
            return NOWHERE_YET if not scanned else position_of(first, 0 if current is None else offset)
        recovered.last_crc = current.opening[1].previous_crc
        recovered.sequence = current.opening[1].sequence - 1
        recovered.segments[number] = current.segment
        while True:
            successor = claims.get(position_of(number, offset))
            if successor is not None:
                opening = scanned[successor].opening
                if opening is not None and opening[1].previous_crc == recovered.last_crc:
                    number, offset, current = successor, SEGMENT_HEADER_BYTES, scanned[successor]
                    recovered.segments[number] = current.segment
            batch = current.batches.get(offset)
            if batch is None or not self._follows(batch[0]):
                break
            self._path = current.segment.path
            for record in batch[1]:
                try:
                    self._apply(record, number)
                except (AssertionError, KeyError, ValueError) as error:
                    raise Corruption(
                        f"{self._path}, offset {offset}: the log contradicts itself ({error}). {ADVICE}",
                        metadata={"file": self._path, "offset": str(offset)},
                    ) from error
            offset = batch[0].end
            recovered.last_crc, recovered.sequence = batch[0].crc, batch[0].sequence
        recovered.end = position_of(number, offset)
        return recovered.end

    def _follows(self, batch: BatchHeader) -> bool:
        return batch.previous_crc == self._recovered.last_crc and batch.sequence == self._recovered.sequence + 1

    def _apply(self, record: Record, segment: int) -> None:
        logs = self._recovered.logs
        match record:
            case Entries():
                self._entries(record, segment)
            case Compact():
                logs[record.replica].compact(record.index, record.term)
            case Snapshot():
                logs[record.replica].restart_after(record.meta)
            case Create():
                assert record.replica not in logs, f"replica {record.replica} created twice"
                logs[record.replica] = self._new_log(record)
            case Remove():
                del logs[record.replica]
                self._recovered.removed.add(record.replica)
            case Opening():
                self._open(record)
            case Renounce():
                pass  # see `_first_segment`
            case _:
                assert_never(record)

    def _entries(self, record: Entries, segment: int) -> None:
        log = self._recovered.logs[record.replica]
        if record.moved:
            log.restore_moved(
                record.first_index, terms=record.terms, kinds=record.kinds, lengths=record.lengths, crcs=record.crcs
            )
            log.move(record.first_index, lengths=record.lengths, segment=segment, offset=record.offset)
            return
        log.append_index(
            record.first_index,
            terms=record.terms,
            kinds=record.kinds,
            lengths=record.lengths,
            crcs=record.crcs,
            segment=segment,
            offset=record.offset,
        )

    def _open(self, opening: Opening) -> None:
        recovered = self._recovered
        if len(recovered.segments) > 1:
            # Not where we began: the opening repeats what was just replayed, which is a check of both.
            stated = {log.replica: log for log in opening.logs}
            replayed = {log.replica: log.state() for log in recovered.logs.values()}
            assert stated == replayed, f"segment states {stated}, replayed {replayed}"
            assert set(opening.removed) == recovered.removed, f"{opening.removed} removed, not {recovered.removed}"
            return
        recovered.removed.update(opening.removed)
        for state in opening.logs:
            log = self._new_log(Create(state.replica, state.shard))
            log.expect(state)
            recovered.logs[state.replica] = log

    def _new_log(self, create: Create) -> ReplicaLog:
        return ReplicaLog(
            create.replica, create.shard, cache=self._cache, find_segment=self._recovered.segments.__getitem__
        )

    def check_complete(self) -> None:
        """Every entry that an opening announced was seen, moved, or dropped since."""
        for log in self._recovered.logs.values():
            if log.oldest_segment() == NOWHERE:
                raise Corruption(
                    f"{self._directory}: entries from {log.first_index()} on of replica {log.replica} (shard {log.shard}) "
                    f"are in no segment. {ADVICE}",
                    metadata={"file": self._directory, "shard": str(log.shard)},
                )
