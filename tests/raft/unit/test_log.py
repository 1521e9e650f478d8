"""The log's cursors against a disk that finishes writes late, and an oracle that knows what a crash would leave."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.ids import Index, ReplicaId, Term
from raftcache.raft import log as log_module
from raftcache.raft.log import RaftLog
from raftcache.raft.messages import Configuration, Entry, SnapshotMeta
from tests.raft.unit.storage import Storage, entry

VOTERS = Configuration(voters=(ReplicaId(1),))


Write = tuple[int, list[Entry], SnapshotMeta | None, bool]


class Bench:
    """A log, its storage, the disk behind it, and the log as it should be."""

    def __init__(self) -> None:
        self.storage = Storage()
        self.disk = Storage()
        self.log = RaftLog(self.storage, applied=Index(0))
        self.model = Storage()
        self.in_flight: list[Write] = []
        self.number = 0
        self.applied: list[Entry] = []

    def append(self, count: int, term: int) -> None:
        new = [entry(self.log.last_index + 1 + at, max(term, self.log.last_term)) for at in range(count)]
        self.log.append(new)
        self.model.write(new, None, False)

    def overwrite(self, back: int, count: int, term: int) -> None:
        """Truncates `back` entries (as far as they are not committed) and appends `count`, with a term of its own choice:
        the same one as before makes the ABA case."""
        at = max(self.log.last_index - back + 1, self.log.commit + 1)
        if at > self.log.last_index:
            return
        before = self.model.term(Index(at - 1))
        assert before is not None
        new = [entry(at + offset, max(term, before)) for offset in range(count)]
        self.log.truncate(Index(at))
        self.log.append(new)
        self.model.write(new, None, False)

    def restore(self, ahead: int, term: int) -> None:
        meta = SnapshotMeta(Index(self.log.commit + 1 + ahead), Term(max(term, self.log.last_term)), VOTERS)
        self.log.restore(meta)
        self.model.write([], meta, False)

    def take(self, also: bool) -> None:
        self.number += 1
        entries, snapshot, keeps_log = self.log.take_unwritten(self.number, also=also)
        if entries or snapshot is not None or also:
            self.storage.write(entries, snapshot, keeps_log)
            self.in_flight.append((self.number, entries, snapshot, keeps_log))

    def finish(self) -> None:
        if self.in_flight:
            number, entries, snapshot, keeps_log = self.in_flight.pop(0)
            self.disk.write(entries, snapshot, keeps_log)
            self.log.written(number)

    def commit(self, count: int) -> None:
        self.log.commit_to(Index(min(self.log.commit + count, self.log.last_index)))

    def apply(self, bytes_max: int) -> None:
        taken = self.log.take_committed(bytes_max)
        if taken:
            assert taken[0].index == self.log.applied + 1
            self.log.applied_to(taken[-1].index)

    def check(self) -> None:
        """The log reads as the model; what it calls durable survives a crash now or after any of the writes in flight."""
        log, model = self.log, self.model
        assert model.last_index() == log.last_index
        assert model.term(model.last_index()) == log.last_term
        assert model.first_index() == log.first_index()
        assert log.applied <= log.applying <= log.commit <= log.last_index
        assert log.durable <= log.handed <= log.last_index
        for index in range(model.start, model.last_index() + 2):
            assert model.term(Index(index)) == log.term(Index(index)), index
        if model.held and not log.restoring:
            lo, hi = model.first_index(), Index(model.last_index() + 1)
            collected: list[Entry] = []
            while lo < hi:
                collected += log.entries(lo, hi, 3)
                lo = Index(collected[-1].index + 1)
            assert model.held == collected
        crash = self.disk.copy()
        self.check_survives(crash)
        for _, entries, snapshot, keeps_log in self.in_flight:
            crash.write(entries, snapshot, keeps_log)
            self.check_survives(crash)

    def check_survives(self, disk: Storage) -> None:
        for index in range(self.model.start, self.log.durable + 1):
            if index >= disk.start:
                assert self.model.term(Index(index)) == disk.term(Index(index)), f"durable {self.log.durable}"


OPERATIONS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 3), st.integers(1, 4)),
    st.tuples(st.just("overwrite"), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4)),
    st.tuples(st.just("restore"), st.integers(0, 6), st.integers(1, 4)),
    st.tuples(st.just("take"), st.booleans()),
    st.tuples(st.just("take"), st.booleans()),
    st.tuples(st.just("finish")),
    st.tuples(st.just("finish")),
    st.tuples(st.just("commit"), st.integers(1, 3)),
    st.tuples(st.just("apply"), st.integers(1, 4)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(OPERATIONS, min_size=20, max_size=60), st.sampled_from([2, 1 << 20]))
def test_what_the_log_calls_durable_survives_any_crash(operations: list[tuple[object, ...]], recent_max: int) -> None:
    """Appends, truncations, snapshots and late writes in any order: the log reads right, and never promises too much."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_module, "RECENT_BYTES_MAX", recent_max)
        bench = Bench()
        for name, *arguments in operations:
            getattr(bench, str(name))(*arguments)
            bench.check()
        bench.take(also=True)
        while bench.in_flight:
            bench.finish()
        bench.check()
        assert bench.log.last_index == bench.log.durable
        assert bench.disk.held == bench.model.held


def test_entry_appended_again_with_its_old_term_is_not_durable_by_the_old_write() -> None:
    """The ABA case: 2 is written, truncated, and appended again in the same term before the first write is done."""
    bench = Bench()
    bench.append(2, 1)
    bench.take(also=False)
    bench.overwrite(1, 1, 3)
    bench.take(also=False)
    bench.log.truncate(Index(2))
    bench.log.append([entry(2, 1)])
    bench.model.write([entry(2, 1)], None, False)
    bench.finish()
    bench.check()
    assert Index(1) == bench.log.durable


def test_committed_entries_are_handed_out_only_when_durable_here() -> None:
    """A quorum of others may commit what this disk does not hold yet (etcd #14370)."""
    bench = Bench()
    bench.append(3, 1)
    bench.log.commit_to(Index(3))
    bench.take(also=False)
    assert not bench.log.can_apply()
    assert [] == bench.log.take_committed(100)
    bench.finish()
    assert [1, 2, 3] == [each.index for each in bench.log.take_committed(100)]


def test_pages_of_committed_entries_neither_skip_nor_repeat() -> None:
    """Each page goes on where the last one ended, with at least one entry however small the page."""
    held = [entry(index, 1, size=index) for index in range(1, 8)]
    log = RaftLog(Storage(entries=held), applied=Index(0))
    log.commit_to(Index(7))
    pages: list[list[int]] = []
    while log.can_apply():
        pages.append([each.index for each in log.take_committed(6)])
    assert [[1, 2, 3], [4], [5], [6], [7]] == pages


def test_truncation_of_committed_entries_is_a_bug() -> None:
    """State-machine safety: the assertion names both numbers."""
    log = RaftLog(Storage(entries=[entry(1, 1), entry(2, 1)]), applied=Index(0))
    log.commit_to(Index(2))
    with pytest.raises(AssertionError, match="truncate at 2 what is committed through 2"):
        log.truncate(Index(2))


def test_commit_is_at_least_what_is_compacted() -> None:
    """Whatever was compacted was committed; a state that begins before it is lost."""
    log = RaftLog(Storage(start=5, term=2, entries=[entry(6, 2)]), applied=Index(3))
    assert (Index(5), True) == (log.commit, log.state_lost)
    assert not log.can_apply()


@pytest.mark.parametrize(
    ("index", "term", "expected"),
    [(9, 9, (9, 4)), (9, 3, (6, 3)), (6, 3, (6, 3)), (5, 2, (4, 2)), (9, 1, (3, 1)), (9, 0, (2, 0)), (1, 5, (1, 0))],
)
def test_conflict_search_goes_down_to_the_term(index: int, term: int, expected: tuple[int, int]) -> None:
    """The largest index at or below whose term fits; below the first known one, the term is unknown (0)."""
    terms = {4: 2, 5: 3, 6: 3, 7: 4, 8: 4, 9: 4}
    log = RaftLog(Storage(start=3, term=1, entries=[entry(i, t) for i, t in terms.items()]), applied=Index(3))
    assert expected == log.find_conflict_by_term(Index(index), Term(term))


def test_state_brought_back_keeps_the_log() -> None:
    """A lost state is replaced by a snapshot inside the log; entries beyond it stay, and are applied again."""
    held = [entry(index, 1) for index in range(1, 6)]
    storage = Storage(entries=held)
    log = RaftLog(storage, applied=Index(4))
    log.state_lost = True
    assert not log.can_apply()
    log.restore_state(SnapshotMeta(Index(2), Term(1), VOTERS))
    entries, snapshot, keeps_log = log.take_unwritten(1, also=False)
    assert ([], True) == (entries, keeps_log)
    assert snapshot is not None
    assert not log.can_apply()
    log.written(1)
    assert (Index(2), Index(4), Index(5)) == (log.applied, log.commit, log.durable)
    assert [3, 4] == [each.index for each in log.take_committed(100)]


def test_newer_snapshot_takes_the_place_of_one_on_its_way() -> None:
    """Only the last snapshot received lets applying go on."""
    bench = Bench()
    bench.restore(4, 1)
    bench.take(also=False)
    bench.restore(4, 1)
    bench.finish()
    assert bench.log.restoring
    bench.take(also=False)
    bench.finish()
    assert not bench.log.restoring
    assert (Index(10), Index(10)) == (bench.log.applied, bench.log.durable)


def test_a_page_is_filled_up_to_its_last_byte() -> None:
    """Entries that take exactly the bytes that are allowed come together; one byte less, and the last stays behind."""
    log = RaftLog(Storage(), applied=Index(0))
    log.append([entry(1, 1, 2), entry(2, 1, 3), entry(3, 1, 1)])
    assert [1, 2] == [each.index for each in log.entries(Index(1), Index(4), 5)]
    assert [1] == [each.index for each in log.entries(Index(1), Index(4), 4)]
