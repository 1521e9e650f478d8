"""Linearizable reads without the log: the queues behind ReadIndex (thesis §6.4).

Rules of this file:
- reads that arrive in one turn share one *round*; a round has a **position**, a number that is never used twice in the
  life of the process. Followers echo positions, never what users passed in, so a retried read cannot be confused with
  its first attempt (etcd #20418);
- the read index of a round is the commit index when the round opens, which is at or after the arrival of its reads;
- a round is confirmed by a quorum that echoed its position *or a later one*: each echo was sent after the round opened;
- both queues are bounded, and everything in them ends as a read state or as dropped.
"""

from collections import deque
from dataclasses import dataclass, field

from raftcache.ids import NO_REPLICA, Index, ReplicaId


@dataclass(slots=True)
class Read:
    """One read that waits at the leader. `origin` 0 is the leader itself, else the follower that asked."""

    origin: ReplicaId
    context: int


@dataclass(slots=True)
class ReadRound:
    """The reads that one exchange of heartbeats confirms."""

    position: int
    index: Index
    """The commit index when the round opened."""
    tick: int
    """The leader's tick count when the round opened: a confirmed round is also a lease from that tick on."""
    reads: list[Read] = field(default_factory=list)


class ReadQueue:
    """The leader's reads: waiting for the next round, then in rounds that wait for their quorum."""

    __slots__ = ("_count", "_position", "_rounds", "_waiting")

    def __init__(self) -> None:
        self._waiting: list[Read] = []
        self._rounds: deque[ReadRound] = deque()
        self._position = 0
        self._count = 0

    def __len__(self) -> int:
        """Reads that are not answered yet."""
        return self._count

    @property
    def waiting(self) -> bool:
        """Whether reads wait for a round to open."""
        return bool(self._waiting)

    @property
    def position(self) -> int:
        """The position of the newest round, confirmed or not."""
        return self._position

    @property
    def pending_position(self) -> int:
        """The position that heartbeats carry: the newest unconfirmed round's, or 0."""
        return self._rounds[-1].position if self._rounds else 0

    def add(self, origin: ReplicaId, context: int) -> None:
        """Queues a read for the next round."""
        self._waiting.append(Read(origin, context))
        self._count += 1

    def open_round(self, *, index: Index, tick: int) -> int:
        """Puts all waiting reads (none is fine: a round can renew the lease only) into a round; its position."""
        self._position += 1
        self._rounds.append(ReadRound(self._position, index, tick, self._waiting))
        self._waiting = []
        return self._position

    def confirm(self, position: int) -> list[ReadRound]:
        """A quorum has echoed `position` or more: all rounds up to it, oldest first, which leave the queue."""
        confirmed: list[ReadRound] = []
        while self._rounds and self._rounds[0].position <= position:
            read_round = self._rounds.popleft()
            self._count -= len(read_round.reads)
            confirmed.append(read_round)
        return confirmed

    def drop(self) -> list[int]:
        """Gives everything up (the leader is none any more); the contexts of the own reads, oldest first."""
        reads = [read for read_round in self._rounds for read in read_round.reads] + self._waiting
        self._rounds.clear()
        self._waiting = []
        self._count = 0
        return [read.context for read in reads if read.origin == NO_REPLICA]


@dataclass(slots=True)
class _ForwardedBatch:
    position: int
    tick: int
    contexts: list[int]


class ForwardedReads:
    """A follower's reads: one request to the leader for all reads of a turn.

    Positions start at a random number, so that an answer to a request of this process's previous life matches nothing.
    An unanswered request is given up after `expire` says so; the caller retries under a new position.
    """

    __slots__ = ("_batches", "_count", "_position", "_waiting")

    def __init__(self, *, first_position: int) -> None:
        self._position = first_position
        self._waiting: list[int] = []
        self._batches: deque[_ForwardedBatch] = deque()
        self._count = 0

    def __len__(self) -> int:
        """Reads that are not answered yet."""
        return self._count

    @property
    def waiting(self) -> bool:
        """Whether reads wait for a request to be sent."""
        return bool(self._waiting)

    def add(self, context: int) -> None:
        """Queues a read for the next request."""
        self._waiting.append(context)
        self._count += 1

    def open_batch(self, *, tick: int) -> int:
        """Puts the waiting reads into one request; its position, which the request carries."""
        assert self._waiting, "no read waits"
        self._position += 1
        self._batches.append(_ForwardedBatch(self._position, tick, self._waiting))
        self._waiting = []
        return self._position

    def answer(self, position: int) -> list[int]:
        """The leader has answered the request at `position`; the contexts that it carried (none if it is unknown)."""
        for at, batch in enumerate(self._batches):
            if batch.position == position:
                del self._batches[at]
                self._count -= len(batch.contexts)
                return batch.contexts
        return []

    def expire(self, *, sent_before: int) -> list[int]:
        """Gives up all requests sent before that tick; their contexts."""
        expired: list[int] = []
        while self._batches and self._batches[0].tick < sent_before:
            contexts = self._batches.popleft().contexts
            self._count -= len(contexts)
            expired.extend(contexts)
        return expired

    def drop(self) -> list[int]:
        """Gives everything up (the leader is another or none); the contexts, oldest first."""
        contexts = [context for batch in self._batches for context in batch.contexts] + self._waiting
        self._batches.clear()
        self._waiting = []
        self._count = 0
        return contexts
