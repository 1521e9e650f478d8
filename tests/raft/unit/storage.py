"""A `LogReader` over a list, for the tests of single replicas."""

from raftcache.ids import Index, Term
from raftcache.raft.messages import Entry, EntryKind, SnapshotMeta


def entry(index: int, term: int, size: int = 1) -> Entry:
    """An entry of `size` payload bytes."""
    return Entry(Term(term), Index(index), EntryKind.COMMANDS, b"x" * size)


class Storage:
    """A `LogReader` over a list: everything written, whether synced or not."""

    def __init__(self, start: int = 0, term: int = 0, entries: list[Entry] | None = None) -> None:
        self.start, self.start_term = Index(start), Term(term)
        self.held = entries or []

    def first_index(self) -> Index:
        return Index(self.start + 1)

    def last_index(self) -> Index:
        return Index(self.start + len(self.held))

    def term(self, index: Index) -> Term | None:
        if index == self.start:
            return self.start_term
        if self.start < index <= self.last_index():
            return self.held[index - self.start - 1].term
        return None

    def entries(self, lo: Index, hi: Index, bytes_max: int) -> list[Entry]:
        assert self.start < lo < hi <= self.last_index() + 1, f"[{lo}, {hi}) of ({self.start}, {self.last_index()}]"
        found: list[Entry] = []
        size = 0
        for each in self.held[lo - self.start - 1 : hi - self.start - 1]:
            size += len(each.data)
            if found and size > bytes_max:
                break
            found.append(each)
        return found

    def snapshot(self) -> SnapshotMeta | None:
        return None

    def write(self, entries: list[Entry], snapshot: SnapshotMeta | None, keeps_log: bool) -> None:
        """What storage does with one write."""
        if snapshot is not None and not keeps_log:
            self.start, self.start_term, self.held = snapshot.index, snapshot.term, []
        if entries:
            assert self.start < entries[0].index <= self.last_index() + 1
            del self.held[entries[0].index - self.start - 1 :]
            self.held += entries

    def copy(self) -> "Storage":
        """As it would be found after a crash."""
        return Storage(self.start, self.start_term, list(self.held))
