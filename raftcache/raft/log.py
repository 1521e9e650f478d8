"""The log as the core sees it: what storage holds, the recent entries on top of it, and the cursors over both.

Rules of this file:
- no roles, no peers, no messages: indexes, terms and entries only;
- a truncation never reaches a committed entry; an assertion with both numbers stands where it would;
- storage is asked only for what lies below `offset`; above it, the recent entries are the log, whatever storage says.

    applied <= applying <= min(commit, durable)            commit <= last_index            durable <= handed <= last_index

Recent entries stay in memory until they are both durable *and* handed out for apply, so that the common path (append,
replicate, persist, apply) never reads back from storage what it has just written.

**Durability is exact.** Each write handed out (one per `Ready` that needs the disk) remembers how far it reaches; a
truncation shortens every write still in flight. When a write is reported done, the log is durable through what was
left of it. So an entry that was truncated, or truncated and then appended again with the very same term (the ABA case),
is never counted for a write that carried its former self.

Caveat: commit is volatile. After a restart it is what was applied, and the leader tells the rest.
"""

from collections import deque
from dataclasses import dataclass
from typing import Protocol

from raftcache.ids import Index, Term
from raftcache.raft.messages import Entry, SnapshotMeta

RECENT_BYTES_MAX = 16 << 20
"""Entries that are durable but not yet handed out for apply stay in memory up to twice the in-flight window of a leader
(8 MiB); beyond that, or while nothing can be applied, they are read back from storage when their turn comes."""


class LogReader(Protocol):
    """What the core reads of the durable log."""

    def first_index(self) -> Index:
        """The first entry held; `snapshot.index + 1` for an empty log."""
        ...

    def last_index(self) -> Index:
        """The last entry appended."""
        ...

    def term(self, index: Index) -> Term | None:
        """None: compacted (below `first_index - 1`), or not there."""
        ...

    def entries(self, lo: Index, hi: Index, bytes_max: int) -> list[Entry]:
        """`[lo, hi)`: at least one entry, then up to `bytes_max` payload bytes."""
        ...

    def snapshot(self) -> SnapshotMeta | None:
        """The newest checkpoint that can be sent to a follower."""
        ...


@dataclass(slots=True)
class _Write:
    """One write in flight. `reach` is the last index that will be durable once it is done, given later truncations."""

    number: int
    reach: Index
    snapshot: SnapshotMeta | None
    keeps_log: bool


class RaftLog:
    """See the module's docstring."""

    __slots__ = (
        "_recent",
        "_recent_bytes",
        "_restoring",
        "_restoring_keeps_log",
        "_restoring_taken",
        "_writes",
        "applied",
        "applying",
        "commit",
        "durable",
        "handed",
        "last_index",
        "last_term",
        "offset",
        "reader",
        "state_lost",
    )

    def __init__(self, reader: LogReader, *, applied: Index) -> None:
        first, last = reader.first_index(), reader.last_index()
        last_term = reader.term(last)
        assert last_term is not None, f"storage does not know the term of its own last index {last}"
        assert applied <= last, f"applied {applied} beyond the log's last index {last}"
        self.reader = reader
        self.last_index: Index = last
        self.last_term: Term = last_term
        self.offset: Index = Index(last + 1)
        """Index of `_recent[0]`; below it, storage is the log."""
        self._recent: list[Entry] = []
        self._recent_bytes = 0
        self.handed: Index = last
        """The last entry handed out to be written."""
        self.durable: Index = last
        """The last entry that is durable here, with all before it."""
        self.commit: Index = Index(max(applied, first - 1))
        """The last entry known to be committed. What is compacted was applied somewhere, hence committed."""
        self.applying: Index = applied
        """The last entry handed out for apply."""
        self.applied: Index = applied
        """The last entry reported applied."""
        self.state_lost = applied + 1 < first
        """The state machine's state is missing or condemned: nothing is handed out for apply until a snapshot brings it."""
        self._writes: deque[_Write] = deque()
        self._restoring: SnapshotMeta | None = None
        """A received snapshot that is not installed yet."""
        self._restoring_keeps_log = False
        self._restoring_taken = False
        """The restoring snapshot has been handed out in a `Ready`."""

    # --- reading ----------------------------------------------------------------------------------------------------

    @property
    def restoring(self) -> bool:
        """Whether a received snapshot is not installed yet."""
        return self._restoring is not None

    def first_index(self) -> Index:
        """The first entry that can be read."""
        if self._restoring is not None and not self._restoring_keeps_log:
            return Index(self._restoring.index + 1)
        return self.reader.first_index()

    def term(self, index: Index) -> Term | None:
        """The term of the entry at `index`; None where it is compacted or not there. Index 0 has term 0."""
        if index >= self.offset:
            if index > self.last_index:
                return None
            return self._recent[index - self.offset].term
        if index == self.last_index:
            return self.last_term
        restoring = self._restoring
        if restoring is not None and not self._restoring_keeps_log:
            # Storage still holds the log that the snapshot replaces.
            return restoring.term if index == restoring.index else None
        return self.reader.term(index)

    def entries(self, lo: Index, hi: Index, bytes_max: int) -> list[Entry]:
        """`[lo, hi)`: at least one entry, then up to `bytes_max` payload bytes; may stop early where storage ends."""
        assert lo < hi <= self.last_index + 1, f"[{lo}, {hi}) of a log that ends at {self.last_index}"
        offset = self.offset
        if lo < offset:
            found = self.reader.entries(lo, Index(min(hi, offset)), bytes_max)
            assert found, f"storage has no entry {lo}, but the log begins at {self.first_index()}"
            assert found[0].index == lo, f"asked storage for {lo}, got {found[0].index}"
            return found
        chosen = self._recent[lo - offset : hi - offset]
        size = 0
        for at, entry in enumerate(chosen):
            size += len(entry.data)
            if size > bytes_max and at:
                return chosen[:at]
        return chosen

    def is_up_to_date(self, *, last_term: Term, last_index: Index) -> bool:
        """Raft §5.4.1: whether a log that ends so is at least as up to date as ours."""
        return last_term > self.last_term or (last_term == self.last_term and last_index >= self.last_index)

    def find_conflict_by_term(self, index: Index, term: Term) -> tuple[Index, Term]:
        """The largest index at or below `index` whose term is at most `term`, and its term (0 where it is not known).

        Raft §5.3, the optimisation at its end: whatever lies between cannot match a log whose entry at `index` has
        `term`, as terms never decrease along a log. Both sides use it, so that one probe per term is enough.
        """
        while index > 0:
            ours = self.term(index)
            if ours is None:
                return index, Term(0)
            if ours <= term:
                return index, ours
            index = Index(index - 1)
        return Index(0), Term(0)

    # --- appending --------------------------------------------------------------------------------------------------

    def append(self, entries: list[Entry]) -> None:
        """Adds entries right after the last one."""
        first, last = entries[0], entries[-1]
        assert first.index == self.last_index + 1, f"append at {first.index} to a log that ends at {self.last_index}"
        assert last.index == self.last_index + len(entries), f"a gap in [{first.index}, {last.index}]"
        assert first.term >= self.last_term, f"term goes back from {self.last_term} to {first.term} at {first.index}"
        self._recent += entries
        self._recent_bytes += _size(entries)
        self.last_index = last.index
        self.last_term = last.term

    def truncate(self, index: Index) -> None:
        """Removes the entries at `index` and above: they conflict with the leader's."""
        # Raft §5.3, Leader Append-Only and State Machine Safety: what is committed stands.
        assert index > self.commit, f"truncate at {index} what is committed through {self.commit}"
        assert index <= self.last_index, f"truncate at {index} a log that ends at {self.last_index}"
        term = self.term(Index(index - 1))
        assert term is not None, f"truncate at {index}, with nothing known before it"
        if index <= self.offset:
            self._recent = []
            self.offset = index
        else:
            del self._recent[index - self.offset :]
        self._recent_bytes = _size(self._recent)
        keep = Index(index - 1)
        self.last_index, self.last_term = keep, term
        self._cut_durability(keep)

    def _cut_durability(self, keep: Index) -> None:
        self.handed = min(self.handed, keep)
        self.durable = min(self.durable, keep)
        for write in self._writes:
            write.reach = min(write.reach, keep)

    def commit_to(self, index: Index) -> None:
        """Everything through `index` is committed."""
        assert index >= self.commit, f"commit goes back from {self.commit} to {index}"
        assert index <= self.last_index, f"commit {index} beyond the last index {self.last_index}"
        self.commit = index

    # --- snapshots --------------------------------------------------------------------------------------------------

    def restore(self, meta: SnapshotMeta) -> None:
        """A snapshot takes the log's place; what storage holds is void from now on."""
        assert meta.index > self.commit, f"snapshot {meta.index} is not news: commit is {self.commit}"
        # What was committed is a prefix of the snapshot and stays durable until the snapshot itself is.
        self._cut_durability(min(self.commit, meta.index))
        self.handed = meta.index
        self._recent = []
        self._recent_bytes = 0
        self.offset = Index(meta.index + 1)
        self.last_index, self.last_term = meta.index, meta.term
        self.commit = meta.index
        self._restoring, self._restoring_keeps_log, self._restoring_taken = meta, False, False

    def restore_state(self, meta: SnapshotMeta) -> None:
        """A snapshot brings back a lost state; the log agrees with it, and stays as it is."""
        assert self.state_lost, "a state that is not lost needs no snapshot"
        assert meta.index >= self.first_index() - 1, (
            f"snapshot {meta.index}, but the log begins at {self.first_index()}"
        )
        assert meta.index <= self.last_index, f"snapshot {meta.index} beyond the log's last index {self.last_index}"
        self.commit = max(self.commit, meta.index)
        self._restoring, self._restoring_keeps_log, self._restoring_taken = meta, True, False

    # --- writing ----------------------------------------------------------------------------------------------------

    def has_unwritten(self) -> bool:
        """Whether entries or a snapshot wait to be handed out."""
        return self.handed < self.last_index or (self._restoring is not None and not self._restoring_taken)

    def take_unwritten(self, number: int, *, also: bool) -> tuple[list[Entry], SnapshotMeta | None, bool]:
        """Hands out what storage does not have yet, as write `number`: entries, snapshot, whether it keeps the log.

        `also` says that the write carries something else (the hard state), so that it is one even without entries.
        """
        entries: list[Entry] = []
        if self.handed < self.last_index:
            assert self.handed + 1 >= self.offset, f"unwritten from {self.handed + 1}, recent from {self.offset}"
            entries = self._recent[self.handed + 1 - self.offset :]
            self.handed = self.last_index
        snapshot: SnapshotMeta | None = None
        if self._restoring is not None and not self._restoring_taken:
            snapshot = self._restoring
            self._restoring_taken = True
        keeps_log = snapshot is not None and self._restoring_keeps_log
        if entries or snapshot is not None or also:
            reach = entries[-1].index if entries else self.durable
            if snapshot is not None and not keeps_log:
                reach = max(reach, snapshot.index)
            self._writes.append(_Write(number, reach, snapshot, keeps_log))
        return entries, snapshot, keeps_log

    @property
    def writes_in_flight(self) -> int:
        """Writes handed out and not reported done."""
        return len(self._writes)

    def oldest_write(self) -> int:
        """The number of the oldest write in flight; 0 if there is none."""
        return self._writes[0].number if self._writes else 0

    def written(self, number: int) -> None:
        """Write `number`, the oldest in flight, is durable."""
        write = self._writes.popleft()
        assert write.number == number, f"write {number} is done before write {write.number}"
        if write.snapshot is not None:
            self._installed(write.snapshot)
        if write.reach > self.durable:
            self.durable = write.reach
        assert self.durable <= self.handed, f"durable {self.durable} beyond what was handed out, {self.handed}"
        self._trim()

    def _installed(self, meta: SnapshotMeta) -> None:
        if self._restoring is not meta:
            return  # a newer snapshot has taken its place meanwhile
        self._restoring = None
        self.state_lost = False
        self.applying = self.applied = meta.index

    # --- applying ---------------------------------------------------------------------------------------------------

    def can_apply(self) -> bool:
        """Whether entries can be handed out for apply."""
        return (
            self.applying < self.commit
            and self.applying < self.durable
            and not self.state_lost
            and self._restoring is None
        )

    def take_committed(self, bytes_max: int) -> list[Entry]:
        """Hands out committed entries in order, never above what is durable here (etcd #14370), in bounded pages."""
        if not self.can_apply():
            return []
        hi = Index(min(self.commit, self.durable) + 1)
        entries = self.entries(Index(self.applying + 1), hi, bytes_max)
        self.applying = entries[-1].index
        self._trim()
        return entries

    def applied_to(self, index: Index) -> None:
        """The state machine has applied everything through `index`."""
        assert self.applied <= index, f"applied goes back from {self.applied} to {index}"
        assert index <= self.applying, f"applied {index}, but only {self.applying} was handed out"
        self.applied = index

    def _trim(self) -> None:
        """Recent entries that are durable and handed out for apply can be read from storage, should anybody need them."""
        through = min(self.durable, self.applying)
        if self._recent_bytes > RECENT_BYTES_MAX or self.state_lost:
            through = self.durable
        count = through + 1 - self.offset
        if count > 0:
            self._recent_bytes -= _size(self._recent[:count])
            del self._recent[:count]
            self.offset = Index(self.offset + count)


def _size(entries: list[Entry]) -> int:
    return sum([len(entry.data) for entry in entries])
