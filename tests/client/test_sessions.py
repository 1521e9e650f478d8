"""Tickets and windows: the client's side of exactly-once."""

import threading
from random import Random

import pytest

from raftcache.client.sessions import WINDOW, Sessions, Ticket


@pytest.fixture
def sessions() -> Sessions:
    return Sessions(threading.Event)


def opened(sessions: Sessions, shard: int = 1, session_id: int = 100) -> None:
    assert sessions.take(shard) is None
    sessions.opened(shard, session_id)


def ticket(sessions: Sessions, shard: int = 1) -> Ticket:
    found = sessions.take(shard)
    assert isinstance(found, Ticket)
    return found


def waiter(sessions: Sessions, shard: int = 1) -> threading.Event:
    found = sessions.take(shard)
    assert isinstance(found, threading.Event)
    return found


def test_the_first_opens_and_the_others_wait(sessions: Sessions) -> None:
    """One session for a shard, however many threads begin at once."""
    assert sessions.take(1) is None
    waiting = [waiter(sessions) for _ in range(3)]
    assert sessions.take(2) is None, "another shard has another session"
    sessions.opened(1, 100)
    assert all(one.is_set() for one in waiting)
    assert 1 == ticket(sessions).sequence


def test_when_opening_fails_the_next_in_line_tries(sessions: Sessions) -> None:
    """One of them, not all."""
    assert sessions.take(1) is None
    waiting = [waiter(sessions) for _ in range(3)]
    sessions.not_opened(1)
    assert [True, False, False] == [one.is_set() for one in waiting]
    assert sessions.take(1) is None


def test_the_first_unacknowledged_number_moves_over_what_was_given_back(sessions: Sessions) -> None:
    """In whatever order that was."""
    opened(sessions)
    tickets = [ticket(sessions) for _ in range(5)]
    session = tickets[0].session
    for position, expected in ((1, 1), (2, 1), (0, 4), (4, 4), (3, 6)):
        sessions.give_back(tickets[position])
        assert expected == session.first_unacked


def test_a_full_window_makes_wait_and_room_wakes(sessions: Sessions) -> None:
    """As many as there is room for."""
    opened(sessions)
    tickets = [ticket(sessions) for _ in range(WINDOW)]
    assert not sessions.has_room(1)
    waiting = [waiter(sessions) for _ in range(3)]
    sessions.give_back(tickets[1])
    assert [False] * 3 == [one.is_set() for one in waiting], "the first is out still"
    sessions.give_back(tickets[0])
    assert [True, True, False] == [one.is_set() for one in waiting]


def test_who_stops_waiting_passes_the_wake_up_on(sessions: Sessions) -> None:
    """A wake-up for one that timed out meanwhile must not be lost."""
    opened(sessions)
    tickets = [ticket(sessions) for _ in range(WINDOW)]
    first, second, third = (waiter(sessions) for _ in range(3))
    sessions.stop_waiting(1, second)
    sessions.give_back(tickets[0])
    assert first.is_set()
    assert not third.is_set()
    sessions.stop_waiting(1, first)
    assert third.is_set()


def test_an_expired_session_is_replaced_and_its_tickets_still_come_back(sessions: Sessions) -> None:
    """Writes under way under the old one end in their own time."""
    opened(sessions)
    old = ticket(sessions)
    sessions.expired(old.session)
    opened(sessions, session_id=101)
    new = ticket(sessions)
    assert (101, 1) == (new.session.id, new.sequence)
    sessions.expired(old.session)
    assert 2 == ticket(sessions).sequence, "the news was about the old session"
    sessions.give_back(old)


@pytest.mark.parametrize("seed", range(5))
def test_numbers_are_unique_and_within_the_window_whatever_happens(seed: int) -> None:
    """Random takes and give-backs, against the shard's rules for a stamp."""
    random = Random(seed)
    sessions = Sessions(threading.Event)
    opened(sessions)
    out: list[Ticket] = []
    seen: set[int] = set()
    for _ in range(4 * WINDOW):
        if out and random.random() < 0.45:
            sessions.give_back(out.pop(random.randrange(min(len(out), 50))))
            continue
        found = sessions.take(1)
        if isinstance(found, Ticket):
            assert found.sequence not in seen, f"seed {seed}"
            seen.add(found.sequence)
            out.append(found)
            first = found.session.first_unacked
            assert first <= min(one.sequence for one in out), f"seed {seed}"
            assert first <= found.sequence < first + WINDOW, f"seed {seed}"
        else:
            assert isinstance(found, threading.Event)
            sessions.stop_waiting(1, found)


def test_threads_share_a_session() -> None:
    """No number twice, none left out."""
    sessions = Sessions(threading.Event)
    opened(sessions)
    taken: list[int] = []

    def work() -> None:
        for _ in range(300):
            while not isinstance(found := sessions.take(1), Ticket):
                assert isinstance(found, threading.Event)
                found.wait()
            taken.append(found.sequence)
            sessions.give_back(found)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(range(1, 2401)) == sorted(taken)
    assert [2401] == [session.first_unacked for session in sessions.idle()]
