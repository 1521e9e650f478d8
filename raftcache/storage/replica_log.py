"""One replica's entries in the node's shared log: where each lies, and the recent ones in memory.

Rules of this file:
- this is an *index* of the write-ahead log, rebuilt by recovery; it writes nothing itself. Every change of it follows
  the record that is already in the log (`Wal` and `recovery` are the only callers of the mutating methods);
- what `entries` returns was either kept in memory since it was appended, or read back and held against its checksum;
- indexes are consecutive: entry `i` stands at `i - start_index - 1` of each array. 21 bytes of index per entry.

Invariants: `first_index() == start_index + 1`; the runs are ascending and cover exactly the entries; the cached entries
are the last ones of the log, without gaps.
"""

import errno
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence

from crc32c import crc32c

from raftcache.errors import Corruption
from raftcache.ids import Index, ReplicaId, ShardId, Term
from raftcache.raft.configuration import decode_configuration
from raftcache.raft.messages import Configuration, Entry, EntryKind, SnapshotMeta
from raftcache.storage.segment import Segment
from raftcache.storage.wal_format import LogState

NOWHERE = 0
"""The segment of an entry that an `Opening` mentions and no record has shown yet. Only during recovery."""

ENTRY_OVERHEAD_BYTES = 128
"""An `Entry` object, its integers and the header of its bytes object, as counted against the cache's limit."""

READ_GAP_BYTES_MAX = 16 << 10
"""Two entries no further apart than this are read by one call: 16 KiB are copied in the time of two system calls."""

_KINDS = tuple(EntryKind)


class ReplicaLog:
    """Implements the Raft core's `LogReader`. Reading is safe while the log is being synced in a thread."""

    __slots__ = (
        "_cache",
        "_cached",
        "_crcs",
        "_find_segment",
        "_kinds",
        "_lengths",
        "_newest_checkpoint",
        "_offsets",
        "_runs",
        "_terms",
        "data_bytes",
        "recorded_snapshot",
        "replica",
        "shard",
        "start_index",
        "start_term",
    )

    def __init__(
        self, replica: ReplicaId, shard: ShardId, *, cache: "RecentEntries", find_segment: Callable[[int], Segment]
    ) -> None:
        self.replica = replica
        self.shard = shard
        self.start_index = Index(0)
        """The entry before the first: compacted, covered by a snapshot, or 0. Its term is known."""
        self.start_term = Term(0)
        self.recorded_snapshot: SnapshotMeta | None = None
        """The last snapshot that the log restarted after."""
        self.data_bytes = 0
        """Sum of the lengths of all entries' data."""
        self._newest_checkpoint: SnapshotMeta | None = None
        self._terms = array("Q")
        self._kinds = bytearray()
        self._lengths = array("I")
        self._offsets = array("I")
        """Of the data, in the file of its segment."""
        self._crcs = array("I")
        self._runs: list[tuple[Index, int]] = []
        """(index, segment): from this index on, up to the next run, entries lie in this segment."""
        self._cached: list[Entry] = []
        self._cache = cache
        self._find_segment = find_segment

    # --- What the Raft core reads -----------------------------------------------------------------------------------

    def first_index(self) -> Index:
        """Of the first entry held; one past the start for an empty log."""
        return Index(self.start_index + 1)

    def last_index(self) -> Index:
        """Of the last entry appended, durable or not."""
        return Index(self.start_index + len(self._terms))

    def last_term(self) -> Term:
        return Term(self._terms[-1]) if self._terms else self.start_term

    def term(self, index: Index) -> Term | None:
        """None: compacted away, or not there yet."""
        place = index - self.start_index - 1
        if 0 <= place < len(self._terms):
            return Term(self._terms[place])
        return self.start_term if place == -1 else None

    def snapshot(self) -> SnapshotMeta | None:
        """The newest checkpoint that can be sent to a follower, as `set_snapshot` was told."""
        return self._newest_checkpoint

    def set_snapshot(self, meta: SnapshotMeta) -> None:
        """A checkpoint has been verified and is durable. Writes nothing; compaction is asked for separately.

        It may be older than the one before, where that was found damaged and the leader sent what it had.
        """
        self._newest_checkpoint = meta

    def forget_snapshot(self) -> None:
        """The replica's state is opened anew: whether the checkpoint is still good is about to be found out."""
        self._newest_checkpoint = None

    def entries(self, lo: Index, hi: Index, bytes_max: int) -> list[Entry]:
        """Entries `[lo, hi)`: the first in any case, then as many as keep the sum of their data within `bytes_max`.

        Raises:
            Corruption: what was read back is not what was written; with the file, the offset and what to do.
        """
        if lo >= hi:
            return []
        start = self.start_index + 1
        assert start <= lo, f"replica {self.replica}: entry {lo} is compacted, the log begins at {start}"
        assert hi <= start + len(self._terms), f"replica {self.replica}: entry {hi - 1} of {self.last_index()} entries"
        lengths = self._lengths
        end = lo + 1
        size = lengths[lo - start]
        while end < hi:
            size += lengths[end - start]
            if size > bytes_max:
                break
            end += 1
        cached_from = start + len(self._terms) - len(self._cached)
        if lo >= cached_from:
            return self._cached[lo - cached_from : end - cached_from]
        found = self._read(lo, Index(min(end, cached_from)))
        if end > cached_from:
            found += self._cached[: end - cached_from]
        return found

    # --- What the node asks beside -------------------------------------------------------------------------------------

    def configurations(self, *, after: Index) -> list[tuple[Index, Configuration]]:
        """The configurations in entries above `after`, in order: a restarted core needs them (thesis §4.1)."""
        found = []
        place = self._kinds.find(EntryKind.CONFIGURATION, max(0, after - self.start_index))
        while place >= 0:
            index = Index(self.start_index + 1 + place)
            [entry] = self.entries(index, Index(index + 1), 0)
            found.append((index, decode_configuration(entry.data)))
            place = self._kinds.find(EntryKind.CONFIGURATION, place + 1)
        return found

    def index_keeping(self, bytes_max: int, *, upto: Index) -> Index:
        """How far to compact so that the entries above, up to and including `upto`, have at most `bytes_max` of data."""
        index = min(upto, self.last_index())
        kept = 0
        while index > self.start_index:
            kept += self._lengths[index - self.start_index - 1]
            if kept > bytes_max:
                break
            index = Index(index - 1)
        return Index(max(index, self.start_index))

    def bytes_between(self, after: Index, upto: Index) -> int:
        """Data of the entries `(after, upto]` that the log holds."""
        return sum(self._lengths[max(0, after - self.start_index) : max(0, upto - self.start_index)])

    def oldest_segment(self) -> int | None:
        """The oldest segment in which an entry of this log lies; None for an empty log."""
        return min([segment for _, segment in self._runs]) if self._runs else None

    def run_in(self, segment: int) -> tuple[Index, Index]:
        """The first stretch `[lo, hi)` of consecutive entries that lie in `segment`."""
        for place, (lo, found) in enumerate(self._runs):
            if found == segment:
                last_run = place + 1 == len(self._runs)
                return lo, Index(self.last_index() + 1) if last_run else self._runs[place + 1][0]
        raise AssertionError(f"replica {self.replica} has no entry in segment {segment}")

    def state(self) -> LogState:
        """For a segment's `Opening`."""
        return LogState(
            self.replica, self.shard, self.start_index, self.start_term, self.last_index(), self.recorded_snapshot
        )

    # --- Changes, each after its record in the log ----------------------------------------------------------------------

    def append(self, entries: Sequence[Entry], *, segment: int, offset: int) -> None:
        """Entries just written; `offset` is that of the first one's data in the segment's file."""
        first = entries[0]
        if len(entries) == 1 and first.index == self.start_index + len(self._terms) + 1:
            # The usual turn: one entry with many commands.
            size = len(first.data)
            if not self._runs or self._runs[-1][1] != segment:
                self._runs.append((first.index, segment))
            self._terms.append(first.term)
            self._kinds.append(first.kind)
            self._lengths.append(size)
            self._crcs.append(crc32c(first.data))
            self._offsets.append(offset)
            self.data_bytes += size
            self._cached.append(first)
            self._cache.add(self, first.index, size + ENTRY_OVERHEAD_BYTES)
            return
        data = [entry.data for entry in entries]
        lengths = [len(item) for item in data]
        self.append_index(
            first.index,
            terms=[entry.term for entry in entries],
            kinds=[entry.kind for entry in entries],
            lengths=lengths,
            crcs=[crc32c(item) for item in data],
            segment=segment,
            offset=offset,
        )
        self._cached.extend(entries)
        self._cache.add(self, entries[-1].index, sum(lengths) + len(data) * ENTRY_OVERHEAD_BYTES)

    def append_index(
        self,
        first_index: Index,
        *,
        terms: Sequence[int],
        kinds: Sequence[int],
        lengths: Sequence[int],
        crcs: Sequence[int],
        segment: int,
        offset: int,
    ) -> None:
        """Raft §5.3: where they overlap the log, its entries from `first_index` on give way."""
        if first_index <= self.last_index():
            self._truncate_from(first_index)
        assert first_index == self.last_index() + 1, (
            f"replica {self.replica}: entry {first_index} after {self.last_index()} would leave a gap"
        )
        if not self._runs or self._runs[-1][1] != segment:
            self._runs.append((first_index, segment))
        self._terms.extend(terms)
        self._kinds.extend(kinds)
        self._lengths.extend(lengths)
        self._crcs.extend(crcs)
        offsets = self._offsets
        for length in lengths:
            offsets.append(offset)
            offset += length
            self.data_bytes += length

    def restart_after(self, meta: SnapshotMeta) -> None:
        """A snapshot was installed (or the group began with one): every entry is dropped."""
        self._reset(meta.index, meta.term, entries=0)
        self.recorded_snapshot = meta

    def compact(self, index: Index, term: Term) -> None:
        """Drop the entries up to and including `index`, whose term is `term`."""
        if index <= self.start_index:
            return
        assert index <= self.last_index(), f"replica {self.replica}: compaction to {index} of {self.last_index()}"
        count = index - self.start_index
        cached_from = self.last_index() - len(self._cached)
        if index > cached_from:
            self._forget(index - cached_from)
        self.data_bytes -= sum(self._lengths[:count])
        del self._terms[:count], self._kinds[:count], self._lengths[:count]
        del self._offsets[:count], self._crcs[:count]
        self.start_index, self.start_term = index, term
        keep = bisect_right(self._runs, Index(index + 1), key=_run_index) - 1
        if self._terms:
            self._runs[: keep + 1] = [(Index(index + 1), self._runs[keep][1])]
        else:
            self._runs.clear()

    def move(self, first_index: Index, *, lengths: Sequence[int], segment: int, offset: int) -> None:
        """The same entries now also lie in a newer segment; from here on they are read there."""
        count = len(lengths)
        place = first_index - self.start_index - 1
        assert place >= 0, f"replica {self.replica}: moved entry {first_index} is compacted"
        assert place + count <= len(self._terms), f"replica {self.replica}: moved {count} entries from {first_index} on"
        for length in lengths:
            self._offsets[place] = offset
            offset += length
            place += 1
        self._set_run(first_index, Index(first_index + count), segment)

    def forget_through(self, index: Index) -> None:
        """Give the memory of the cached entries up to `index` back; they are read from the log from now on."""
        cached_from = self.last_index() - len(self._cached)
        if self._cached and index > cached_from:
            self._forget(min(index - cached_from, len(self._cached)))

    def release(self) -> None:
        """The replica is removed: nothing of it stays in memory."""
        self._reset(self.start_index, self.start_term, entries=0)

    # --- Recovery ------------------------------------------------------------------------------------------------------

    def expect(self, state: LogState) -> None:
        """Begin as an `Opening` states: its entries are somewhere, and must be seen, moved or dropped by later records."""
        self._reset(state.start_index, state.start_term, entries=state.last_index - state.start_index)
        self.recorded_snapshot = state.snapshot

    def restore_moved(
        self,
        first_index: Index,
        *,
        terms: Sequence[int],
        kinds: Sequence[int],
        lengths: Sequence[int],
        crcs: Sequence[int],
    ) -> None:
        """What is known of moved entries beside their place; entries that were only expected become known.

        Raises ValueError where the log holds other entries at these indexes.
        """
        place = first_index - self.start_index - 1
        if place < 0 or place + len(terms) > len(self._terms):
            raise ValueError(f"moved entries [{first_index}, {first_index + len(terms)}) are not in the log")
        for term, kind, length, crc in zip(terms, kinds, lengths, crcs, strict=True):
            if self._segment_of(Index(self.start_index + 1 + place)) != NOWHERE and self._terms[place] != term:
                raise ValueError(f"entry {self.start_index + 1 + place} has term {self._terms[place]}, moved as {term}")
            self.data_bytes += length - self._lengths[place]
            self._terms[place] = term
            self._kinds[place] = kind
            self._lengths[place] = length
            self._crcs[place] = crc
            place += 1

    # --- Inside --------------------------------------------------------------------------------------------------------

    def _reset(self, index: Index, term: Term, *, entries: int) -> None:
        self._forget(len(self._cached))
        self.start_index, self.start_term = index, term
        self.data_bytes = 0
        self._terms = array("Q", bytes(8 * entries))
        self._kinds = bytearray(entries)
        self._lengths = array("I", bytes(4 * entries))
        self._offsets = array("I", bytes(4 * entries))
        self._crcs = array("I", bytes(4 * entries))
        self._runs = [(Index(index + 1), NOWHERE)] if entries else []

    def _truncate_from(self, index: Index) -> None:
        place = index - self.start_index - 1
        assert place >= 0, (
            f"replica {self.replica}: entry {index} is at or below the start of the log, {self.start_index}"
        )
        cached_from = self.last_index() - len(self._cached)
        dropped = self._cached[max(0, index - 1 - cached_from) :]
        del self._cached[len(self._cached) - len(dropped) :]
        self._cache.give_back(dropped)
        self.data_bytes -= sum(self._lengths[place:])
        del self._terms[place:], self._kinds[place:], self._lengths[place:], self._offsets[place:], self._crcs[place:]
        while self._runs and self._runs[-1][0] >= index:
            self._runs.pop()

    def _forget(self, count: int) -> None:
        self._cache.give_back(self._cached[:count])
        del self._cached[:count]

    def _segment_of(self, index: Index) -> int:
        return self._runs[bisect_right(self._runs, index, key=_run_index) - 1][1]

    def _set_run(self, lo: Index, hi: Index, segment: int) -> None:
        after = self._segment_of(hi) if hi <= self.last_index() else None
        runs = [run for run in self._runs if run[0] < lo]
        runs.append((lo, segment))
        if after is not None:
            runs.append((hi, after))
        runs += [run for run in self._runs if run[0] > hi]
        # Neighbours in the same segment are one run.
        self._runs = [run for place, run in enumerate(runs) if place == 0 or runs[place - 1][1] != run[1]]

    def _read(self, lo: Index, hi: Index) -> list[Entry]:
        """Entries `[lo, hi)` from the files, one call per stretch of neighbours."""
        base = self.start_index + 1
        found: list[Entry] = []
        while lo < hi:
            run = bisect_right(self._runs, lo, key=_run_index) - 1
            limit = min(hi, self._runs[run + 1][0]) if run + 1 < len(self._runs) else hi
            end = self._offsets[lo - base] + self._lengths[lo - base]
            stop = lo + 1
            while stop < limit and 0 <= self._offsets[stop - base] - end <= READ_GAP_BYTES_MAX:
                end = self._offsets[stop - base] + self._lengths[stop - base]
                stop += 1
            found += self._read_stretch(lo, Index(stop), self._find_segment(self._runs[run][1]), end)
            lo = Index(stop)
        return found

    def _read_stretch(self, lo: Index, hi: Index, segment: Segment, end: int) -> list[Entry]:
        base = self.start_index + 1
        start = self._offsets[lo - base]
        try:
            content = segment.file.pread(end - start, start)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise self._damaged(segment, start, lo, f"cannot be read ({error.strerror})") from error
        found = []
        for place in range(lo - base, hi - base):
            offset = self._offsets[place]
            data = content[offset - start : offset - start + self._lengths[place]]
            index = Index(base + place)
            if len(data) != self._lengths[place] or crc32c(data) != self._crcs[place]:
                raise self._damaged(segment, offset, index, "is not what was written")
            found.append(Entry(Term(self._terms[place]), index, _KINDS[self._kinds[place]], data))
        return found

    def _damaged(self, segment: Segment, offset: int, index: Index, what: str) -> Corruption:
        return Corruption(
            f"{segment.path}, offset {offset}: entry {index} of replica {self.replica} (shard {self.shard}) {what}. "
            "The other replicas have it: remove this replica and add a new one on a sound disk.",
            metadata={"file": segment.path, "offset": str(offset), "shard": str(self.shard), "index": str(index)},
        )


class RecentEntries:
    """What all logs of a node keep in memory together: the newest entries, within a byte limit, oldest first out."""

    __slots__ = ("_queue", "bytes_held", "bytes_max")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_held = 0
        self._queue: deque[tuple[ReplicaLog, Index]] = deque()
        """(log, last index) of each append, in order. What a log dropped by itself stays queued, harmlessly."""

    def add(self, log: ReplicaLog, last_index: Index, size: int) -> None:
        self.bytes_held += size
        self._queue.append((log, last_index))
        # Every append holds an entry, so a longer queue names appends of which nothing is held any more.
        while self.bytes_held > self.bytes_max or len(self._queue) * ENTRY_OVERHEAD_BYTES > self.bytes_max:
            if not self._queue:
                break
            oldest, upto = self._queue.popleft()
            oldest.forget_through(upto)

    def give_back(self, entries: Sequence[Entry]) -> None:
        self.bytes_held -= sum(len(entry.data) for entry in entries) + len(entries) * ENTRY_OVERHEAD_BYTES
        assert self.bytes_held >= 0, f"{self.bytes_held} bytes of recent entries"


def _run_index(run: tuple[Index, int]) -> Index:
    return run[0]
