"""A follower as its leader sees it: states, the window, and answers in any order."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.ids import Index
from raftcache.raft.progress import Inflights, Progress, ProgressState


def progress(match: int = 0, next_: int = 1, *, messages_max: int = 4, bytes_max: int = 100) -> Progress:
    """A follower in PROBE."""
    inflights = Inflights(messages_max=messages_max, bytes_max=bytes_max)
    return Progress(match=Index(match), next_=Index(next_), inflights=inflights)


def replicating(match: int, *, messages_max: int = 4, bytes_max: int = 100) -> Progress:
    """A follower in REPLICATE."""
    follower = progress(match, match + 1, messages_max=messages_max, bytes_max=bytes_max)
    follower.become_replicate()
    return follower


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 30),
    st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=40),
)
def test_window_is_a_bounded_queue(messages_max: int, bytes_max: int, steps: list[tuple[bool, int]]) -> None:
    """Count and bytes are those of the messages that were added and not freed, and `full` follows from both."""
    window = Inflights(messages_max=messages_max, bytes_max=bytes_max)
    model: list[tuple[int, int]] = []
    last = 0
    for is_add, number in steps:
        if is_add and not window.full():
            last += 1 + number % 3
            window.add(Index(last), number)
            model.append((last, number))
        elif not is_add:
            index = last - number % 4
            window.free_to(Index(index))
            model = [item for item in model if item[0] > index]
        assert len(model) == len(window)
        assert sum(size for _, size in model) == window.bytes_in_flight
        assert window.full() == (len(model) >= messages_max or sum(size for _, size in model) >= bytes_max)


def test_message_larger_than_the_window_passes_when_it_is_empty() -> None:
    """The byte limit never locks out an entry for ever."""
    window = Inflights(messages_max=4, bytes_max=10)
    window.add(Index(1), 1000)
    assert window.full()
    window.free_to(Index(1))
    assert not window.full()


def test_cleared_window_holds_nothing() -> None:
    """Neither messages nor bytes: the next message of exactly the window's size fits, and fills it."""
    window = Inflights(messages_max=4, bytes_max=10)
    window.add(Index(1), 7)
    window.clear()
    assert (0, 0) == (len(window), window.bytes_in_flight)
    window.add(Index(2), 10)
    assert window.full()


def test_full_window_refuses_more() -> None:
    """Adding to a full window is a bug, not a silent overrun."""
    window = Inflights(messages_max=1, bytes_max=10)
    window.add(Index(1), 1)
    with pytest.raises(AssertionError, match="window full"):
        window.add(Index(2), 1)


def test_probe_pauses_after_one_message() -> None:
    """In PROBE one message is out at a time."""
    follower = progress(match=0, next_=5)
    assert not follower.is_paused()
    follower.sent(3, 30, Index(2))
    assert follower.is_paused()
    assert Index(5) == follower.next


def test_replicate_runs_ahead_until_the_window_is_full() -> None:
    """In REPLICATE `next` moves with every message, and the window stops it."""
    follower = replicating(3, messages_max=2)
    follower.sent(2, 10, Index(0))
    assert (Index(6), False) == (follower.next, follower.is_paused())
    follower.sent(1, 10, Index(0))
    assert (Index(7), True) == (follower.next, follower.is_paused())
    assert follower.maybe_update(Index(5))
    follower.inflights.free_to(Index(5))
    assert not follower.is_paused()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12), st.integers(0, 12)), max_size=30))
def test_answers_in_any_order_keep_match_below_next(steps: list[tuple[bool, int, int]]) -> None:
    """Acknowledgements and refusals, old or new, never move `match` back nor `next` to or below it."""
    follower = replicating(0)
    for accepted, index, hint in steps:
        before = follower.match
        if accepted:
            follower.maybe_update(Index(index))
        else:
            follower.maybe_decrease(rejected=Index(index), hint=Index(min(hint, index)))
        assert before <= follower.match < follower.next


def test_old_refusal_is_ignored() -> None:
    """A refusal of what is proved, or of another probe than the last, changes nothing."""
    follower = replicating(5)
    assert not follower.maybe_decrease(rejected=Index(5), hint=Index(1))
    prober = progress(match=0, next_=9)
    assert not prober.maybe_decrease(rejected=Index(3), hint=Index(1))
    assert prober.maybe_decrease(rejected=Index(8), hint=Index(2))
    assert Index(3) == prober.next


@pytest.mark.parametrize(("rejected", "hint", "next_"), [(9, 9, 9), (9, 2, 3), (9, 100, 9), (1, 0, 1)])
def test_refused_probe_goes_on_at_the_hint(rejected: int, hint: int, next_: int) -> None:
    """The next probe is right after the hint, and always below the refused one (or at 1)."""
    follower = progress(match=0, next_=rejected + 1)
    assert follower.maybe_decrease(rejected=Index(rejected), hint=Index(hint))
    assert Index(next_) == follower.next


def test_an_empty_message_that_was_due_is_not_due_after_a_change_of_state() -> None:
    """What was lost before it is sent again anyway."""
    for change in (
        Progress.become_probe,
        Progress.become_replicate,
        lambda follower: follower.become_snapshot(Index(9)),
    ):
        follower = replicating(3)
        follower.probe_due = True
        change(follower)
        assert not follower.probe_due


def test_snapshot_pauses_and_its_end_is_the_best_guess() -> None:
    """During a snapshot nothing is sent; afterwards probing starts right behind it."""
    follower = progress(match=2, next_=3)
    follower.become_snapshot(Index(10))
    assert follower.is_paused()
    follower.become_probe()
    assert (Index(2), Index(11), ProgressState.PROBE) == (follower.match, follower.next, follower.state)


def test_failed_snapshot_returns_to_what_is_proved() -> None:
    """Without the snapshot, probing starts right behind `match`."""
    follower = progress(match=2, next_=3)
    follower.become_snapshot(Index(10))
    follower.pending_snapshot = Index(0)
    follower.become_probe()
    assert Index(3) == follower.next


def test_loss_of_acknowledged_entries_is_noticed_only_by_a_probe_at_match() -> None:
    """A follower that refuses a probe at `match` has lost entries; no other refusal proves it."""
    follower = replicating(8)
    assert not follower.regress(rejected=Index(8), hint=Index(3))
    follower.become_probe()
    assert not follower.regress(rejected=Index(7), hint=Index(3))
    assert follower.regress(rejected=Index(8), hint=Index(3))
    assert (Index(3), Index(4), False) == (follower.match, follower.next, follower.paused)


def test_newcomer_counts_as_active() -> None:
    """A new peer gets an election timeout before its silence counts."""
    assert progress().recent_active
