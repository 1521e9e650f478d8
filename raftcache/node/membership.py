"""Which step a membership change takes next: a pure decision from what the directory wants and what the group's log has.

    joining ──add learner──► learner ──caught up──► joint: in with the new, out with the old ──► done: the directory says so
       └──────── cancelled ─────┴───────────────────────────────────────────────────────────────► done: as it was before

Rules of this file:
- decided anew from facts at every look, never from memory: so a new leader, or a restarted one, goes on where the last stood;
- a replica becomes a voter only when it has caught up (thesis §4.2.1), and old and new change places in *one* joint
  change (thesis §4.3), so no quorum is ever smaller than before and after;
- a leader that is to go hands over first; its successor does the rest;
- a cancelled change is undone while the newcomer has no vote, and finished once it has one;
- a member that the directory does not list any more, and nothing is about to list, is a leftover of a leader with an old
  directory, and goes.
"""

from dataclasses import dataclass

from raftcache.ids import NO_REPLICA, ReplicaId
from raftcache.node.directory import DirectoryShard, ReplicaChange
from raftcache.raft.core import Raft
from raftcache.raft.messages import Configuration


@dataclass(slots=True, frozen=True)
class Wait:
    """Nothing to do now; `reason` is what an operator is told."""

    reason: str


@dataclass(slots=True, frozen=True)
class AddLearner:
    """`replica` starts to receive the log, without a vote."""

    replica: ReplicaId


@dataclass(slots=True, frozen=True)
class ChangeVoters:
    """Joint: `incoming` becomes a voter and `outgoing` leaves; either may be 0."""

    incoming: ReplicaId
    outgoing: ReplicaId


@dataclass(slots=True, frozen=True)
class HandOver:
    """This leader is to go: let another voter lead first."""


@dataclass(slots=True, frozen=True)
class Done:
    """The group's log has it; the directory is to say so."""


@dataclass(slots=True, frozen=True)
class Remove:
    """This member leaves; nobody comes."""

    replica: ReplicaId


Step = Wait | AddLearner | ChangeVoters | HandOver | Remove | Done


def next_step(change: ReplicaChange, raft: Raft, *, own: ReplicaId, lag_entries_max: int) -> Step:
    """What the leader `own` does next for `change`."""
    configuration = raft.configuration
    if configuration.voters_outgoing:
        return Wait("the joint configuration to be left")
    if raft.configuration_index > raft.commit:
        return Wait("the configuration entry to be committed")
    incoming, outgoing = change.incoming, change.outgoing
    if change.action == "cancel" and incoming not in configuration.voters:
        return Remove(incoming) if incoming in configuration.learners else Done()
    leaves = outgoing != NO_REPLICA and (outgoing in configuration.voters or outgoing in configuration.learners)
    if incoming != NO_REPLICA and incoming not in configuration.voters:
        if incoming not in configuration.learners:
            return AddLearner(incoming)
        behind = catch_up(raft, incoming, lag_entries_max)
        if behind:
            return Wait(behind)
        if outgoing == own and len(configuration.voters) > 1:
            return HandOver()
        # A sole voter cannot hand over to a learner: bring the new one in first, then go.
        return ChangeVoters(incoming, outgoing if leaves and outgoing != own else NO_REPLICA)
    if leaves:
        return HandOver() if outgoing == own else ChangeVoters(NO_REPLICA, outgoing)
    return Done()


def leftover(shard: DirectoryShard, raft: Raft, *, next_replica: ReplicaId) -> ReplicaId:
    """A member of the group that the directory knew and lists no more; 0 = none, or this is not the moment to say.

    Only a directory without a change in progress is held against the group's log, and only for replicas that are older than
    it: what is newer is about to be heard of.
    """
    configuration = raft.configuration
    if shard.change is not None or configuration.voters_outgoing or raft.configuration_index > raft.commit:
        return NO_REPLICA
    listed = {placed.replica for placed in shard.replicas}
    unlisted = {*configuration.voters, *configuration.learners} - listed
    return min((replica for replica in unlisted if replica < next_replica), default=NO_REPLICA)


def catch_up(raft: Raft, learner: ReplicaId, lag_entries_max: int) -> str:
    """Empty where the learner is level enough to vote; else what it lacks, in words."""
    progress = raft.progress.get(learner)
    if progress is None or progress.match == 0:
        return f"learner {learner} to receive its first snapshot"
    if not progress.recent_active:
        return f"learner {learner} to answer"
    lag = raft.last_index - progress.match
    if lag > lag_entries_max:
        return f"learner {learner} to catch up: {lag} entries behind"
    return ""


@dataclass(slots=True, frozen=True)
class Tolerance:
    """How many more voters may fail: of the configuration now, and after the change."""

    before: int
    after: int


def failure_tolerance(voters: set[ReplicaId], live: set[ReplicaId]) -> int:
    """Live voters beyond a majority of all; negative where the group has no quorum."""
    return len(voters & live) - (len(voters) // 2 + 1)


def tolerance_of(configuration: Configuration, change: ReplicaChange, live: set[ReplicaId]) -> Tolerance:
    """The failure tolerance before and after `change`. An incoming replica counts as live: it votes only once it has caught up."""
    before = set(configuration.voters)
    if change.action == "cancel":
        return Tolerance(failure_tolerance(before, live), failure_tolerance(before, live))
    after = set(before)
    if change.incoming != NO_REPLICA:
        after.add(change.incoming)
    after.discard(change.outgoing)
    live_after = live | ({change.incoming} if change.incoming != NO_REPLICA else set())
    return Tolerance(failure_tolerance(before, live), failure_tolerance(after, live_after))
