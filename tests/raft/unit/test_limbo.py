"""Replicas that lost something: their state, or the tail of their log."""

import pytest

from raftcache.errors import NotLeader, Unavailable
from raftcache.ids import Index, ReplicaId, Term
from raftcache.raft.messages import (
    Append,
    AppendReply,
    InstallSnapshot,
    RequestVote,
    Role,
    SnapshotMeta,
    SnapshotRequest,
    TimeoutNow,
    VoteReply,
)
from tests.raft.unit.solo import THREE, TIMEOUT, Solo, append, ask_vote, heartbeat, of
from tests.raft.unit.storage import entry


def snapshot(index: int, term: int, *, of_term: int = 1) -> InstallSnapshot:
    """A snapshot at (index, of_term), from leader 2 of `term`."""
    meta = SnapshotMeta(Index(index), Term(of_term), THREE)
    return InstallSnapshot(ReplicaId(1), ReplicaId(2), Term(term), meta)


def lost_state() -> Solo:
    """A replica with the entries 11 to 14, whose checkpoint (at 10) is gone."""
    return Solo(start=(10, 1), entries=[entry(index, 1) for index in range(11, 15)], applied=0)


# --- The state is lost, the log is not ----------------------------------------------------------------------------


def test_replica_whose_log_begins_after_its_state_asks_for_a_snapshot() -> None:
    """As soon as it knows a leader it asks, and again with each election timeout; others it serves nothing."""
    solo = lost_state()
    assert solo.raft.snapshot_wanted
    solo.raft.step(heartbeat(1))
    solo.raft.tick()
    assert [Index(10)] == [message.min_index for message in of(SnapshotRequest, solo.turn())]
    with pytest.raises(Unavailable):
        solo.raft.read_index(1)
    for _ in range(TIMEOUT + 1):
        solo.raft.step(heartbeat(1))
        solo.raft.tick()
    assert 1 == len(of(SnapshotRequest, solo.turn()))


def test_replica_without_state_neither_campaigns_nor_applies() -> None:
    """However long it hears nobody, and whoever asks it to lead."""
    solo = lost_state()
    solo.raft.step(heartbeat(1, commit=14))
    for _ in range(5 * TIMEOUT):
        solo.raft.tick()
    solo.raft.campaign()
    solo.raft.step(TimeoutNow(ReplicaId(1), ReplicaId(2), Term(1)))
    assert [] == of(RequestVote, solo.turn())
    assert (Role.FOLLOWER, Index(0)) == (solo.raft.role, solo.raft.applied)


def test_replica_without_state_votes_and_acknowledges() -> None:
    """Its log is whole, so its word counts."""
    solo = lost_state()
    solo.raft.step(append(1, (14, 1), [entry(15, 1)]))
    assert [Index(15)] == [reply.index for reply in of(AppendReply, solo.turn())]
    for _ in range(2 * TIMEOUT):
        solo.raft.tick()
    solo.raft.step(ask_vote(2, (15, 1), from_=3))
    assert [True] == [reply.granted for reply in of(VoteReply, solo.turn())]


def test_snapshot_inside_the_log_brings_the_state_and_keeps_the_log() -> None:
    """Entries beyond the snapshot may be acknowledged: they stay, and those that are committed are applied again."""
    solo = lost_state()
    solo.raft.step(heartbeat(1, commit=14))
    solo.turn()
    solo.raft.step(snapshot(12, 1))
    ready = solo.take()
    assert ready.snapshot is not None
    assert (Index(12), True, True) == (ready.snapshot.index, ready.snapshot_keeps_log, ready.must_sync)
    assert [] == ready.committed
    solo.raft.persisted(ready)
    assert (Index(12), False) == (solo.raft.applied, solo.raft.snapshot_wanted)
    assert [13, 14] == [each.index for each in solo.take().committed]
    assert Index(14) == solo.raft.last_index
    assert solo.raft.promotable()


def test_snapshot_from_before_the_log_does_not_bring_the_state_back() -> None:
    """Between such a snapshot and the log, entries would be missing."""
    solo = lost_state()
    solo.raft.request_snapshot(Index(13))
    for index in (9, 10, 12):
        solo.raft.step(snapshot(index, 1))
    assert all(ready is None for ready in [solo.take().snapshot])
    assert solo.raft.snapshot_wanted
    solo.raft.step(snapshot(13, 1))
    solo.turn()
    assert not solo.raft.snapshot_wanted


def test_snapshot_beyond_the_log_replaces_log_and_state() -> None:
    """Then the log is reset, as for any follower that is too far behind."""
    solo = lost_state()
    solo.raft.step(snapshot(20, 2, of_term=2))
    ready = solo.take()
    assert ready.snapshot is not None
    assert not ready.snapshot_keeps_log
    solo.raft.persisted(ready)
    assert (Index(20), Index(20), False) == (solo.raft.last_index, solo.raft.applied, solo.raft.snapshot_wanted)


def test_leader_that_loses_its_state_steps_down() -> None:
    """It cannot serve, so somebody else must."""
    solo = Solo()
    solo.lead()
    solo.raft.request_snapshot(Index(0))
    assert Role.FOLLOWER is solo.raft.role
    with pytest.raises(NotLeader):
        solo.raft.propose(b"x")


def test_leader_keeps_replicating_to_a_follower_that_asks_for_a_snapshot() -> None:
    """The follower's log is whole; only its state machine waits. One snapshot at a time is on its way."""
    solo = Solo()
    solo.lead()
    solo.acknowledge(2, 3)
    solo.turn()
    solo.checkpoint = SnapshotMeta(Index(2), solo.raft.term, THREE)
    request = SnapshotRequest(ReplicaId(1), ReplicaId(2), solo.raft.term, Index(2))
    solo.raft.step(request)
    solo.raft.step(request)
    assert [2] == [message.meta.index for message in of(InstallSnapshot, solo.turn())]
    solo.raft.propose(b"x")
    assert [2, 3] == [message.to for message in of(Append, solo.turn())]
    solo.raft.report_snapshot(ReplicaId(2), ok=False)
    solo.raft.step(request)
    assert 1 == len(of(InstallSnapshot, solo.turn()))


def test_leader_without_a_fresh_checkpoint_wants_one() -> None:
    """A checkpoint that is too old for the follower is not sent; the shell is told to make a newer one."""
    solo = Solo()
    solo.lead()
    solo.acknowledge(2, 3)
    solo.turn()
    request = SnapshotRequest(ReplicaId(1), ReplicaId(2), solo.raft.term, Index(2))
    solo.raft.step(request)
    assert [] == of(InstallSnapshot, solo.turn())
    assert Index(2) == solo.raft.checkpoint_wanted
    solo.checkpoint = SnapshotMeta(Index(2), solo.raft.term, THREE)
    solo.raft.step(request)
    assert 1 == len(of(InstallSnapshot, solo.turn()))
    assert Index(0) == solo.raft.checkpoint_wanted


# --- The tail of the log is lost ----------------------------------------------------------------------------------


def lost_tail() -> Solo:
    """A replica whose log ended at index 9 of term 3; damage left it with 2 to 5."""
    return Solo(entries=[entry(index, 2) for index in range(2, 6)], term=3, vote_floor=(3, 9))


@pytest.mark.parametrize(
    ("last", "granted"), [((5, 2), False), ((8, 3), False), ((20, 2), False), ((9, 3), True), ((6, 4), True)]
)
def test_replica_with_a_damaged_log_votes_only_for_logs_that_reach_what_it_lost(
    last: tuple[int, int], granted: bool
) -> None:
    """What the lost tail held may have been acknowledged: its vote must not elect a log without it."""
    solo = lost_tail()
    solo.raft.step(ask_vote(5, last))
    assert [granted] == [reply.granted for reply in of(VoteReply, solo.turn())]


def test_replica_with_a_damaged_log_does_not_campaign() -> None:
    """Its own log lacks what it may have acknowledged."""
    solo = lost_tail()
    for _ in range(5 * TIMEOUT):
        solo.raft.tick()
    assert Role.FOLLOWER is solo.raft.role
    assert [] == solo.turn()


def test_limbo_ends_with_a_durable_entry_that_the_leader_committed_in_its_own_term() -> None:
    """Not by old entries, not by uncommitted ones, not before the disk has them."""
    solo = lost_tail()
    refill = [entry(index, 3) for index in range(6, 11)]
    solo.raft.step(append(4, (5, 2), refill, commit=10))
    solo.turn()
    assert solo.raft.vote_floor is not None, "committed, but of an earlier term than the leader's"
    solo.raft.step(append(4, (10, 3), [entry(11, 4)], commit=10))
    solo.turn()
    assert solo.raft.vote_floor is not None, "of the leader's term, but not committed"
    solo.raft.step(append(4, (11, 4), [entry(12, 4)], commit=12))
    ready = solo.take()
    solo.raft.step(heartbeat(4, commit=12))
    assert solo.raft.vote_floor is None, "11 is durable and committed"
    solo.raft.persisted(ready)
    assert solo.raft.promotable()


def test_limbo_waits_for_the_disk() -> None:
    """An entry that reaches the floor but is still on its way to the disk proves nothing."""
    solo = lost_tail()
    refill = [*[entry(index, 3) for index in range(6, 11)], entry(11, 4)]
    solo.raft.step(append(4, (5, 2), refill, commit=11))
    ready = solo.take()
    assert solo.raft.vote_floor is not None
    solo.raft.persisted(ready)
    assert solo.raft.vote_floor is None
