"""The client's side of exactly-once: one session for each shard, shared by all threads or tasks of a process.

A write takes a *ticket*: the session, and the next sequence number in it. It is sent under that stamp, again and again if
need be, and the shard applies it once. When its fate is known, or nobody will ask any more, the ticket is given back; the
numbers below the first one still out are what the shard may forget.

Rules of this file:
- a session is opened by the first write that needs it; others wait for that one;
- at most `WINDOW` numbers from the first one out: the shard would refuse more. Who finds the window full waits;
- giving a ticket back is safe while a copy of the write may still be under way: the shard refuses numbers below the first
  unacknowledged one, so a late copy is never applied once a later write has told it so;
- sessions are a process's own: two processes that number their writes in one session would get each other's answers.
"""

from collections import deque
from collections.abc import Callable
from threading import RLock
from typing import NamedTuple

from raftcache.client.steps import Waiter

WINDOW = 1024
"""The default of `limits.session_window`. Where it is set lower, the shard says SESSION_WINDOW and the write is sent again."""


class Session:
    """One session. Invariant: all numbers below `first_unacked` were given back, and it was not."""

    __slots__ = ("first_unacked", "id", "next", "out", "shard")

    def __init__(self, shard: int, session_id: int) -> None:
        self.shard = shard
        self.id = session_id
        self.next = 1
        """The sequence number of the next ticket."""
        self.first_unacked = 1
        self.out: set[int] = set()
        """Numbers not given back."""

    def room(self) -> int:
        """How many more tickets there are right now."""
        return self.first_unacked + WINDOW - self.next


class Ticket(NamedTuple):
    """The right to one write."""

    session: Session
    sequence: int


class _Place:
    """A shard's session, or the lack of one."""

    __slots__ = ("opening", "session", "waiters")

    def __init__(self) -> None:
        self.session: Session | None = None
        self.opening = False
        """Somebody is opening one."""
        self.waiters: deque[Waiter] = deque()

    def wake(self, count: int) -> None:
        """Lets the first `count` waiters try again."""
        for _ in range(min(count, len(self.waiters))):
            self.waiters.popleft().set()


class Sessions:
    """All sessions of one client in one process. Safe with threads."""

    def __init__(self, new_waiter: Callable[[], Waiter]) -> None:
        self._new_waiter = new_waiter
        # Re-entrant: the collector may end an abandoned flow, which gives its ticket back, while this is held.
        self._lock = RLock()
        self._places: dict[int, _Place] = {}

    def take(self, shard: int) -> Ticket | Waiter | None:
        """A ticket; or what to wait for before trying again; or None: the caller is to open a session, and to call
        `opened` or `not_opened` whatever happens."""
        with self._lock:
            place = self._places.get(shard)
            if place is None:
                place = self._places[shard] = _Place()
            session = place.session
            if session is not None and session.next - session.first_unacked < WINDOW:
                sequence = session.next
                session.next = sequence + 1
                session.out.add(sequence)
                return Ticket(session, sequence)
            if session is None and not place.opening:
                place.opening = True
                return None
            waiter = self._new_waiter()
            place.waiters.append(waiter)
            return waiter

    def has_room(self, shard: int) -> bool:
        """Whether `take` would, at this moment, give a ticket or ask to open a session, and not to wait."""
        with self._lock:
            place = self._places.get(shard)
            if place is None or place.session is None:
                return place is None or not place.opening
            return place.session.room() > 0

    def give_back(self, ticket: Ticket) -> None:
        """The write's fate is known, or nobody asks any more. Once for each ticket."""
        session, sequence = ticket
        with self._lock:
            session.out.remove(sequence)
            if sequence != session.first_unacked:
                return
            while sequence < session.next and sequence not in session.out:
                sequence += 1
            session.first_unacked = sequence
            place = self._places[session.shard]
            if place.waiters and place.session is session:
                place.wake(session.room())

    def stop_waiting(self, shard: int, waiter: Waiter) -> None:
        """The waiter is not needed any more; if it was woken meanwhile, the next one is in its stead."""
        with self._lock:
            place = self._places[shard]
            if waiter in place.waiters:
                place.waiters.remove(waiter)
            else:
                place.wake(1)

    def opened(self, shard: int, session_id: int) -> None:
        """The caller of `take` has opened a session."""
        with self._lock:
            place = self._places[shard]
            place.session = Session(shard, session_id)
            place.opening = False
            place.wake(WINDOW)

    def not_opened(self, shard: int) -> None:
        """The caller of `take` could not, and somebody else may try."""
        with self._lock:
            place = self._places[shard]
            place.opening = False
            place.wake(1)

    def expired(self, session: Session) -> None:
        """The shard does not know the session (any more): the next write opens another."""
        with self._lock:
            place = self._places[session.shard]
            if place.session is session:
                place.session = None
                place.wake(len(place.waiters))

    def idle(self) -> list[Session]:
        """The sessions that no write is using."""
        with self._lock:
            return [place.session for place in self._places.values() if place.session and not place.session.out]
