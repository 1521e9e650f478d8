"""Reads without a round: only while no other leader can exist."""

import pytest

from raftcache.errors import Overloaded
from raftcache.ids import Index, ReplicaId
from raftcache.raft.core import LEASE_MARGIN_TICKS, RaftConfig
from raftcache.raft.messages import Heartbeat, ReadIndexReply, ReadIndexRequest, TimeoutNow, VoteReply
from tests.raft.unit.solo import TIMEOUT, Solo, ask_vote, beaten, heartbeat, of

LEASED = RaftConfig(ReplicaId(1), lease_reads=True)


def leader(settings: RaftConfig = LEASED) -> Solo:
    """A leader whose first entry is committed."""
    solo = Solo(settings=settings)
    solo.lead()
    solo.acknowledge(2, 3)
    solo.turn()
    return solo


def beat(solo: Solo) -> int:
    """One tick; the position that its heartbeats carry."""
    solo.raft.tick()
    beats = of(Heartbeat, solo.turn())
    return beats[-1].read_position


def test_lease_read_is_served_at_once_while_a_quorum_was_heard_lately() -> None:
    """One follower of two echoed a heartbeat: for most of an election timeout nobody else can be elected."""
    solo = leader()
    assert not solo.raft.lease_holds()
    solo.raft.step(beaten(solo.raft.term, from_=2, position=beat(solo)))
    solo.raft.read_index(7)
    assert [(7, solo.raft.commit)] == [(read.context, read.index) for read in solo.take().read_states]
    for _ in range(TIMEOUT - LEASE_MARGIN_TICKS):
        assert solo.raft.lease_holds()
        solo.raft.tick()
    assert not solo.raft.lease_holds()


def test_read_after_the_lease_goes_the_long_way() -> None:
    """Without a lease the read waits for a round, as without `lease_reads`."""
    solo = leader()
    solo.raft.read_index(7)
    ready = solo.take()
    assert [] == ready.read_states
    position = of(Heartbeat, ready.messages)[-1].read_position
    solo.raft.step(beaten(solo.raft.term, from_=3, position=position))
    assert [7] == [read.context for read in solo.take().read_states]


def test_lease_is_forfeited_by_a_transfer() -> None:
    """The successor's campaign passes every lease, even if the leader has given the transfer up meanwhile."""
    solo = leader()
    solo.raft.step(beaten(solo.raft.term, from_=2, position=beat(solo)))
    assert solo.raft.lease_holds()
    solo.raft.transfer_leadership(ReplicaId(2))
    assert 1 == len(of(TimeoutNow, solo.turn()))
    for _ in range(TIMEOUT):
        solo.raft.step(beaten(solo.raft.term, from_=2, position=beat(solo)))
        assert not solo.raft.lease_holds()
    assert 0 == solo.raft.lead_transferee


def test_restarted_voter_keeps_the_promise_it_has_forgotten() -> None:
    """With lease reads a voter that has just started refuses votes for one election timeout."""
    solo = Solo(settings=LEASED)
    solo.raft.step(ask_vote(2, (1, 1)))
    assert [] == of(VoteReply, solo.turn())
    for _ in range(TIMEOUT):
        solo.raft.tick()
    solo.raft.step(ask_vote(2, (1, 1)))
    assert [True] == [reply.granted for reply in of(VoteReply, solo.turn())]


def test_lease_rounds_do_not_take_reads_along_before_the_first_commit() -> None:
    """A new leader's reads wait for its own term's commit, whatever its heartbeats do meanwhile."""
    solo = Solo(settings=LEASED)
    solo.lead()
    solo.raft.read_index(7)
    for _ in range(3):
        solo.raft.step(beaten(solo.raft.term, from_=2, position=beat(solo)))
        solo.raft.step(beaten(solo.raft.term, from_=3, position=solo.raft._reads.position))
    assert [] == solo.take().read_states
    solo.acknowledge(2, 3)
    ready = solo.take()
    position = of(Heartbeat, ready.messages)[-1].read_position
    solo.raft.step(beaten(solo.raft.term, from_=2, position=position))
    assert [(7, solo.raft.commit)] == [(read.context, read.index) for read in solo.take().read_states]


def test_followers_reads_share_one_request_and_expire_unanswered() -> None:
    """All reads of a turn go as one request under a fresh position; without an answer they are dropped, not leaked."""
    solo = Solo()
    solo.raft.step(heartbeat(1))
    solo.raft.read_index(1)
    solo.raft.read_index(2)
    request = of(ReadIndexRequest, solo.take().messages)
    assert 1 == len(request)
    assert request[0].context > 2, "a position, not what the user passed in"
    reply = ReadIndexReply(ReplicaId(1), ReplicaId(2), solo.raft.term, request[0].context, Index(5))
    solo.raft.step(reply)
    solo.raft.step(reply)
    assert [(1, 5), (2, 5)] == [(read.context, read.index) for read in solo.take().read_states]
    solo.raft.read_index(3)
    solo.take()
    dropped: list[int] = []
    for _ in range(TIMEOUT + 1):
        solo.raft.step(heartbeat(1))
        solo.raft.tick()
        dropped += solo.take().reads_dropped
    assert [3] == dropped


def test_pending_reads_are_bounded() -> None:
    """At the limit a read is refused, definitely."""
    solo = leader(RaftConfig(ReplicaId(1), reads_pending_max=2))
    solo.raft.read_index(1)
    solo.raft.read_index(2)
    with pytest.raises(Overloaded):
        solo.raft.read_index(3)
