"""The leaves at their boundaries, against naive twins: the log's view, progress, the in-flight window, quorums."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from raftcache.ids import Index, ReplicaId, Term
from raftcache.raft.log import RaftLog
from raftcache.raft.messages import Configuration, HardState, SnapshotMeta
from raftcache.raft.progress import Inflights, Progress, ProgressState
from raftcache.raft.quorum import VoteResult, joint_index, joint_vote
from tests.raft.cluster import Checkpoint, Image, MemoryLog, entry, ids
from tests.raft.invariants import is_quorum


def log_of(*terms: int, base: tuple[int, int] = (1, 1), applied: int | None = None) -> RaftLog:
    """A log whose storage holds these terms after `base`."""
    start = SnapshotMeta(Index(base[0]), Term(base[1]), Configuration(voters=ids(1)))
    items = [entry(term, base[0] + 1 + offset) for offset, term in enumerate(terms)]
    image = Image(HardState(), start, items, Checkpoint(start))
    return RaftLog(MemoryLog(image), applied=Index(base[0] if applied is None else applied))


@pytest.mark.parametrize(
    ("index", "term"), [(0, None), (4, None), (5, 2), (6, 2), (7, 3), (8, 3), (9, None), (99, None)]
)
def test_term_of_an_index_is_known_exactly_from_the_base_to_the_end(index: int, term: int | None) -> None:
    """The last compacted entry's term is still known; below it and beyond the end it is not."""
    log = log_of(2, 3, base=(5, 2))
    log.append([entry(3, 8)])
    assert log.term(Index(index)) == term


@pytest.mark.parametrize(
    ("last_term", "last_index", "up_to_date"),
    [(4, 3, True), (4, 4, True), (4, 5, True), (2, 3, False), (2, 9, False), (3, 3, False), (3, 4, True), (3, 5, True)],
)
def test_up_to_date_compares_terms_first(last_term: int, last_index: int, up_to_date: bool) -> None:
    """A log that ends at (4, term 3), compared with others."""
    log = log_of(1, 2, 3)
    assert log.is_up_to_date(last_term=Term(last_term), last_index=Index(last_index)) is up_to_date


@pytest.mark.parametrize(
    ("terms", "index", "term", "expected"),
    [
        ((1, 2, 2, 5, 5), 6, 5, (6, 5)),
        ((1, 2, 2, 5, 5), 6, 4, (4, 2)),
        ((1, 2, 2, 5, 5), 6, 1, (2, 1)),
        ((1, 2, 2, 5, 5), 3, 9, (3, 2)),
        ((4, 4, 4), 4, 3, (1, 1)),
        ((4, 4, 4), 1, 1, (1, 1)),
    ],
)
def test_conflict_hint_skips_terms(terms: tuple[int, ...], index: int, term: int, expected: tuple[int, int]) -> None:
    """The largest index at or below with a term at or below."""
    assert log_of(*terms).find_conflict_by_term(Index(index), Term(term)) == expected


@given(st.lists(st.integers(1, 5), max_size=8), st.integers(1, 9), st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_conflict_hint_equals_its_definition(steps: list[int], index: int, term: int) -> None:
    """Against the sentence that defines it, for logs with ascending terms."""
    terms = sorted(steps)
    log = log_of(*terms)
    full = {1: 1, **{2 + offset: t for offset, t in enumerate(terms)}}
    index = min(index, len(full))
    below = [i for i in range(1, index + 1) if full[i] <= term]
    found = log.find_conflict_by_term(Index(index), Term(term))
    assert found == ((below[-1], full[below[-1]]) if below else (0, 0))


@pytest.mark.parametrize(
    ("lo", "hi", "bytes_max", "count"), [(2, 6, 10**6, 4), (2, 6, 1, 1), (2, 6, 7, 2), (4, 6, 3, 1), (3, 4, 0, 1)]
)
def test_entries_are_paged_with_at_least_one(lo: int, hi: int, bytes_max: int, count: int) -> None:
    """Half-open, bounded, and never empty; entries here have three bytes each."""
    log = log_of()
    log.append([entry(1, index, b"abc") for index in range(2, 6)])
    assert [e.index for e in log.entries(Index(lo), Index(hi), bytes_max)] == list(range(lo, lo + count))


@pytest.mark.parametrize("index", [1, 2, 3])
def test_truncating_what_is_committed_is_impossible(index: int) -> None:
    """The assertion that guards state-machine safety."""
    log = log_of(1, 1, 1)
    log.commit_to(Index(3))
    with pytest.raises(AssertionError):
        log.truncate(Index(index))
    log.truncate(Index(4))
    assert log.last_index == 3


def test_commit_neither_goes_back_nor_beyond_the_log() -> None:
    """Both ends are guarded."""
    log = log_of(1, 1)
    log.commit_to(Index(3))
    for index in (2, 4):
        with pytest.raises(AssertionError):
            log.commit_to(Index(index))


@pytest.mark.parametrize(
    "items", [[entry(1, 5)], [entry(1, 3)], [entry(1, 4), entry(1, 6)]], ids=["hole", "overlap", "gap"]
)
def test_append_takes_only_what_fits(items: list) -> None:  # type: ignore[type-arg]
    """Appended entries start right after the last one and have no gaps."""
    with pytest.raises(AssertionError):
        log_of(1, 1).append(items)


class LogModel(RuleBasedStateMachine):
    """The core's log view against lists: random appends, truncations, writes, commits and applies.

    The twin is obvious: the whole log as a list, the disk as a list, and a queue of writes as (first index, entries).
    """

    def __init__(self) -> None:
        super().__init__()
        self.log = log_of()
        self.image = self.log.reader.image  # type: ignore[attr-defined]
        self.twin: list[tuple[int, int]] = [(1, 1)]
        self.disk: list[tuple[int, int]] = [(1, 1)]
        self.writes: list[tuple[int, list]] = []  # type: ignore[type-arg]
        self.number = 0
        self.term = 1
        self.handed = 1
        self.handed_out = 1

    @rule(count=st.integers(1, 3), newer=st.booleans())
    def append(self, count: int, newer: bool) -> None:
        self.term += newer
        last = self.twin[-1][0]
        items = [entry(self.term, last + 1 + offset) for offset in range(count)]
        self.log.append(items)
        self.twin += [(e.index, e.term) for e in items]

    @precondition(lambda self: self.twin[-1][0] > self.log.commit)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(self.log.commit + 1, self.twin[-1][0]))
        self.log.truncate(Index(index))
        self.twin = [(i, t) for i, t in self.twin if i < index]
        self.handed = min(self.handed, index - 1)
        self.term += 1  # whoever truncates is a leader of a newer term

    @precondition(lambda self: self.log.has_unwritten())
    @rule()
    def take(self) -> None:
        self.number += 1
        entries, snapshot, _ = self.log.take_unwritten(self.number, also=False)
        assert snapshot is None
        expected = [(i, t) for i, t in self.twin if i > self.handed]
        assert [(e.index, e.term) for e in entries] == expected
        self.handed = self.twin[-1][0]
        first = entries[0].index
        del self.image.entries[first - 2 :]
        self.image.entries.extend(entries)
        self.writes.append((self.number, list(entries)))

    @precondition(lambda self: self.writes)
    @rule()
    def finish(self) -> None:
        number, entries = self.writes.pop(0)
        first = entries[0].index
        self.disk = [(i, t) for i, t in self.disk if i < first] + [(e.index, e.term) for e in entries]
        self.log.written(number)

    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        self.log.commit_to(Index(data.draw(st.integers(self.log.commit, self.twin[-1][0]))))

    @rule(bytes_max=st.integers(1, 20))
    def apply(self, bytes_max: int) -> None:
        for item in self.log.take_committed(bytes_max):
            assert (item.index, item.term) == (self.handed_out + 1, dict(self.twin)[item.index])
            assert (item.index, item.term) in self.disk, "handed out before it is durable"
            self.handed_out += 1
        self.log.applied_to(Index(self.handed_out))

    @invariant()
    def views_agree(self) -> None:
        last, term = self.twin[-1]
        assert (self.log.last_index, self.log.last_term) == (last, term)
        for index, expected in self.twin:
            assert self.log.term(Index(index)) == expected
        assert self.log.term(Index(last + 1)) is None
        if last > 1:
            found = self.log.entries(Index(2), Index(last + 1), 10**6)
            assert [(e.index, e.term) for e in found] == self.twin[1 : 1 + len(found)]

    @invariant()
    def durable_is_a_promise(self) -> None:
        # Everything called durable is on disk now, and no write in the queue will take it away.
        durable = self.log.durable
        assert all(position in self.disk for position in self.twin if position[0] <= durable)
        for _, entries in self.writes:
            for item in entries:
                assert item.index > durable or (item.index, item.term) in self.twin

    @invariant()
    def durable_is_not_needlessly_small(self) -> None:
        if not self.writes and not self.log.has_unwritten():
            assert self.log.durable == self.log.last_index


LogModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLogAgainstLists = LogModel.TestCase


# --- Progress and the in-flight window ----------------------------------------------------------------------------------


def progress(match: int, next_: int, state: ProgressState) -> Progress:
    """A member in this state."""
    found = Progress(match=Index(match), next_=Index(next_), inflights=Inflights(messages_max=3, bytes_max=1000))
    if state is ProgressState.REPLICATE:
        found.become_replicate()
        found.next = Index(next_)
    elif state is ProgressState.SNAPSHOT:
        found.become_snapshot(Index(next_))
    return found


@pytest.mark.parametrize(
    ("index", "news", "match", "next_"),
    [(2, False, 3, 5), (3, False, 3, 5), (4, True, 4, 5), (5, True, 5, 6), (9, True, 9, 10)],
)
def test_acknowledgement_moves_match_and_pulls_next(index: int, news: bool, match: int, next_: int) -> None:
    """From match 3, next 5: old ones are no news; newer ones move match, and next only where it must."""
    member = progress(3, 5, ProgressState.PROBE)
    assert member.maybe_update(Index(index)) is news
    assert (member.match, member.next) == (match, next_)


@pytest.mark.parametrize(
    ("state", "match", "next_", "rejected", "hint", "news", "expected"),
    [
        # While replicating: only what is above match can be refused, and next falls back to match + 1.
        (ProgressState.REPLICATE, 5, 10, 5, 5, False, 10),
        (ProgressState.REPLICATE, 5, 10, 4, 4, False, 10),
        (ProgressState.REPLICATE, 5, 10, 9, 9, True, 6),
        # While probing: only the answer to the last probe counts, and the hint bounds the fall.
        (ProgressState.PROBE, 0, 10, 7, 7, False, 10),
        (ProgressState.PROBE, 0, 10, 5, 5, False, 10),
        (ProgressState.PROBE, 0, 10, 9, 9, True, 9),
        (ProgressState.PROBE, 0, 10, 9, 2, True, 3),
        (ProgressState.PROBE, 0, 2, 1, 0, True, 1),
    ],
)
def test_refusal_moves_next_back_but_never_to_match(
    state: ProgressState, match: int, next_: int, rejected: int, hint: int, news: bool, expected: int
) -> None:
    """A table of refusals."""
    member = progress(match, next_, state)
    assert member.maybe_decrease(rejected=Index(rejected), hint=Index(hint)) is news
    assert (member.match, member.next) == (match, expected)


@pytest.mark.parametrize(
    ("state", "paused", "full", "expected"),
    [
        (ProgressState.PROBE, False, False, False),
        (ProgressState.PROBE, True, False, True),
        (ProgressState.REPLICATE, False, False, False),
        (ProgressState.REPLICATE, False, True, True),
        (ProgressState.SNAPSHOT, False, False, True),
        (ProgressState.SNAPSHOT, True, True, True),
    ],
)
def test_who_is_paused(state: ProgressState, paused: bool, full: bool, expected: bool) -> None:
    """Probing pauses after one message, pipelining when the window is full, a snapshot always."""
    member = progress(3, 5, state)
    member.paused = paused
    if full:
        for index in (5, 6, 7):
            member.inflights.add(Index(index), 1)
    assert member.is_paused() is expected


def test_probing_after_a_snapshot_starts_behind_it() -> None:
    """What was sent as a snapshot is the best guess; without one it is what was acknowledged."""
    member = progress(1, 1 + 1, ProgressState.SNAPSHOT)
    member.become_snapshot(Index(10))
    member.become_probe()
    assert (member.state, member.next) == (ProgressState.PROBE, 11)
    member.become_replicate()
    assert (member.state, member.next) == (ProgressState.REPLICATE, 2)


@given(
    st.lists(st.one_of(st.tuples(st.just("add"), st.integers(1, 40)), st.tuples(st.just("free"), st.integers(0, 60))))
)
@settings(max_examples=80, deadline=None)
def test_window_equals_a_plain_list(steps: list[tuple[str, int]]) -> None:
    """Count and bytes of the window against a list of what is in it."""
    window = Inflights(messages_max=4, bytes_max=100)
    twin: list[tuple[int, int]] = []
    last = 0
    for verb, value in steps:
        if verb == "free":
            window.free_to(Index(value))
            twin = [(index, size) for index, size in twin if index > value]
        elif not window.full():
            last += 1
            window.add(Index(last), value)
            twin.append((last, value))
        assert len(window) == len(twin)
        assert window.bytes_in_flight == sum(size for _, size in twin)
        assert window.full() is (len(twin) >= 4 or window.bytes_in_flight >= 100)


# --- Quorums ------------------------------------------------------------------------------------------------------------

HALVES = st.sets(st.integers(1, 7), max_size=5)


@given(HALVES.filter(bool), HALVES, st.dictionaries(st.integers(1, 7), st.integers(0, 9)))
@settings(max_examples=100, deadline=None)
def test_committed_index_is_the_largest_that_a_quorum_has(
    voters: set[int], outgoing: set[int], acknowledged: dict[int, int]
) -> None:
    """Against trying every index in turn and counting who has it."""
    configuration = Configuration(voters=ids(*voters), voters_outgoing=ids(*outgoing))
    tried = [
        index
        for index in range(10)
        if is_quorum(configuration, [ReplicaId(v) for v in voters | outgoing if acknowledged.get(v, 0) >= index])
    ]
    found = joint_index([acknowledged.get(v, 0) for v in voters], [acknowledged.get(v, 0) for v in outgoing])
    assert found == max(tried)


@given(HALVES.filter(bool), HALVES, st.dictionaries(st.integers(1, 7), st.booleans()))
@settings(max_examples=100, deadline=None)
def test_vote_is_decided_exactly_when_the_missing_cannot_change_it(
    voters: set[int], outgoing: set[int], votes: dict[int, bool]
) -> None:
    """Against playing through every answer that is still missing."""
    configuration = Configuration(voters=ids(*voters), voters_outgoing=ids(*outgoing))
    everyone = sorted(voters | outgoing)
    missing = [v for v in everyone if v not in votes]
    outcomes = set()
    for answers in product((True, False), repeat=len(missing)):
        final = {**votes, **dict(zip(missing, answers, strict=True))}
        outcomes.add(is_quorum(configuration, [ReplicaId(v) for v in everyone if final[v]]))
    found = joint_vote(
        configuration.voters, configuration.voters_outgoing, {ReplicaId(v): granted for v, granted in votes.items()}
    )
    expected = VoteResult.PENDING if len(outcomes) == 2 else VoteResult.WON if True in outcomes else VoteResult.LOST
    assert found is expected
