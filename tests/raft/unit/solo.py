"""One core by itself, driven by hand: every `Ready` is taken, written and persisted at the test's word."""

import random
from typing import TypeVar

from raftcache.ids import Index, ReplicaId, Term
from raftcache.raft.core import Raft, RaftConfig
from raftcache.raft.messages import (
    Append,
    AppendReply,
    Configuration,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Message,
    Ready,
    RequestVote,
    SnapshotMeta,
    VoteReply,
)
from tests.raft.unit.storage import Storage

M = TypeVar("M", bound=Message)

THREE = Configuration(voters=(ReplicaId(1), ReplicaId(2), ReplicaId(3)))
TIMEOUT = 10
"""The election timeout, in ticks."""


class Solo:
    """Replica 1 of `configuration`. `start` is where its checkpoint and its log begin."""

    def __init__(
        self,
        *,
        entries: list[Entry] | None = None,
        start: tuple[int, int] = (1, 1),
        term: int = 1,
        vote: int = 0,
        configuration: Configuration = THREE,
        applied: int | None = None,
        vote_floor: tuple[int, int] | None = None,
        settings: RaftConfig | None = None,
    ) -> None:
        self.storage = Storage(start[0], start[1], list(entries or []))
        self.checkpoint = SnapshotMeta(Index(start[0]), Term(start[1]), configuration)
        self.storage.snapshot = lambda: self.checkpoint  # type: ignore[method-assign]
        self.raft = Raft(
            settings or RaftConfig(ReplicaId(1)),
            self.storage,
            hard_state=HardState(Term(term), ReplicaId(vote)),
            configuration=configuration,
            configurations=[],
            applied=Index(start[0] if applied is None else applied),
            random=random.Random(1),
            vote_floor=None if vote_floor is None else (Term(vote_floor[0]), Index(vote_floor[1])),
        )

    def take(self) -> Ready:
        """One `Ready`, written but not persisted."""
        ready = self.raft.ready()
        self.storage.write(ready.entries, ready.snapshot, ready.snapshot_keeps_log)
        return ready

    def turn(self) -> list[Message]:
        """Takes and persists until nothing is owed; all messages, in order of leaving."""
        sent: list[Message] = []
        while self.raft.has_ready():
            ready = self.take()
            self.raft.persisted(ready)
            sent += [*ready.messages, *ready.messages_after_persist]
            if ready.committed:
                self.raft.applied_to(ready.committed[-1].index)
        return sent

    def lead(self) -> None:
        """Becomes leader, by the votes of everybody, and takes the turn."""
        self.raft.campaign()
        self.turn()
        for pre in (True, False):
            term = Term(self.raft.term + 1) if pre else self.raft.term
            for voter in self.raft.configuration.voters:
                if voter != self.raft.id:
                    self.raft.step(VoteReply(self.raft.id, voter, term, granted=True, pre=pre))
            self.turn()

    def acknowledge(self, *peers: int) -> None:
        """These followers have everything."""
        for peer in peers:
            self.raft.step(AppendReply(self.raft.id, ReplicaId(peer), self.raft.term, self.raft.last_index))


def append(
    term: int, previous: tuple[int, int], entries: list[Entry] | None = None, *, commit: int = 0, from_: int = 2
) -> Append:
    """An Append to replica 1 after (index, term) `previous`."""
    index, previous_term = previous
    return Append(
        ReplicaId(1), ReplicaId(from_), Term(term), Index(index), Term(previous_term), Index(commit), entries or []
    )


def heartbeat(term: int, *, commit: int = 0, position: int = 0, from_: int = 2) -> Heartbeat:
    """A heartbeat to replica 1."""
    return Heartbeat(ReplicaId(1), ReplicaId(from_), Term(term), Index(commit), position)


def beaten(term: int, *, from_: int, position: int = 0) -> HeartbeatReply:
    """A follower's answer to a heartbeat of replica 1."""
    return HeartbeatReply(ReplicaId(1), ReplicaId(from_), Term(term), position)


def ask_vote(
    term: int, last: tuple[int, int], *, from_: int = 2, pre: bool = False, transfer: bool = False
) -> RequestVote:
    """A candidate's request to replica 1; its log ends at (index, term) `last`."""
    index, last_term = last
    return RequestVote(ReplicaId(1), ReplicaId(from_), Term(term), Index(index), Term(last_term), pre, transfer)


def of(kind: type[M], messages: list[Message]) -> list[M]:
    """The messages of one kind."""
    return [message for message in messages if isinstance(message, kind)]
