"""What leaves before the disk answers, and what waits."""

import pytest

from raftcache.ids import Index, ReplicaId, Term
from raftcache.raft.configuration import ConfigurationChange
from raftcache.raft.messages import (
    Append,
    AppendReply,
    Configuration,
    Heartbeat,
    HeartbeatReply,
    RequestVote,
    Role,
    VoteReply,
)
from tests.raft.unit.solo import Solo, append, ask_vote, beaten, heartbeat, of
from tests.raft.unit.storage import entry


def test_campaign_is_announced_only_after_its_vote_is_durable() -> None:
    """A candidate that crashes before its fsync has asked nobody, so it cannot campaign twice in one term."""
    solo = Solo()
    solo.raft.campaign()
    asked = solo.take()
    assert [True, True] == [message.pre for message in of(RequestVote, asked.messages)]
    for voter in (2, 3):
        solo.raft.step(VoteReply(ReplicaId(1), ReplicaId(voter), Term(2), granted=True, pre=True))
    ready = solo.take()
    assert [] == ready.messages
    assert [Term(2), Term(2)] == [message.term for message in of(RequestVote, ready.messages_after_persist)]
    assert ready.hard_state is not None
    assert (Term(2), ReplicaId(1)) == (ready.hard_state.term, ready.hard_state.vote)


def test_single_voter_needs_its_disk_to_lead_and_to_commit() -> None:
    """In a group of one, each step waits for a persisted `Ready`."""
    solo = Solo(configuration=Configuration(voters=(ReplicaId(1),)))
    solo.raft.campaign()
    vote = solo.take()
    assert Role.CANDIDATE is solo.raft.role
    solo.raft.persisted(vote)
    assert solo.raft.role is not Role.CANDIDATE
    first = solo.take()
    assert Index(1) == solo.raft.commit
    solo.raft.persisted(first)
    assert Index(2) == solo.raft.commit


def test_duplicate_append_is_acknowledged_behind_the_write_of_its_first_copy() -> None:
    """With the disk stalled, a repeated Append brings nothing to write; its reply still waits for the earlier write."""
    solo = Solo()
    message = append(1, (1, 1), [entry(2, 1)])
    solo.raft.step(message)
    first = solo.take()
    solo.raft.step(message)
    second = solo.take()
    assert not second.must_sync
    assert [] == of(AppendReply, first.messages) + of(AppendReply, second.messages)
    assert [Index(2)] == [reply.index for reply in of(AppendReply, second.messages_after_persist)]
    with pytest.raises(AssertionError, match="ready 2 before ready 1"):
        solo.raft.persisted(second)
    solo.raft.persisted(first)
    solo.raft.persisted(second)


def test_heartbeats_are_answered_while_the_disk_stalls() -> None:
    """A slow disk delays promises, not signs of life."""
    solo = Solo()
    solo.raft.step(append(1, (1, 1), [entry(2, 1)]))
    solo.take()
    solo.raft.step(heartbeat(1))
    assert 1 == len(of(HeartbeatReply, solo.take().messages))


def test_acknowledgements_of_one_turn_are_one_message() -> None:
    """They are cumulative: the last one says it all."""
    solo = Solo()
    for index in range(2, 6):
        solo.raft.step(append(1, (index - 1, 1), [entry(index, 1)]))
    replies = of(AppendReply, solo.turn())
    assert [Index(5)] == [reply.index for reply in replies]


def test_writes_are_reported_in_the_order_they_were_taken() -> None:
    """A shell that reports a later write first has a bug, and is told so."""
    solo = Solo()
    solo.raft.step(append(1, (1, 1), [entry(2, 1)]))
    solo.take()
    solo.raft.step(append(1, (2, 1), [entry(3, 1)]))
    second = solo.take()
    with pytest.raises(AssertionError, match="ready 2 is persisted, but the oldest in flight is 1"):
        solo.raft.persisted(second)


def test_own_vote_of_an_earlier_campaign_does_not_count() -> None:
    """The disk answers for a campaign that was given up; the next one waits for its own write."""
    solo = Solo(configuration=Configuration(voters=(ReplicaId(1),)))
    solo.raft.campaign()
    first = solo.take()
    solo.raft.campaign()
    second = solo.take()
    solo.raft.persisted(first)
    assert Role.CANDIDATE is solo.raft.role
    solo.raft.persisted(second)
    assert (Role.LEADER, Term(3)) == (solo.raft.role, solo.raft.term)


def test_leader_sends_each_follower_one_append_for_all_proposals_of_a_turn() -> None:
    """However many proposals a turn brings, they travel together."""
    solo = Solo()
    solo.lead()
    solo.acknowledge(2, 3)
    solo.turn()
    for at in range(5):
        solo.raft.propose(b"%d" % at)
    appends = of(Append, solo.turn())
    assert [(2, 5), (3, 5)] == [(message.to, len(message.entries)) for message in appends]


def test_leader_is_told_of_acknowledged_entries_that_are_gone() -> None:
    """A follower that refuses a probe at what it acknowledged has lost it: it is counted, and refilled."""
    solo = Solo()
    solo.lead()
    solo.acknowledge(2, 3)
    solo.turn()
    for at in range(3):
        solo.raft.propose(b"%d" % at)
    solo.turn()
    solo.acknowledge(2, 3)
    solo.turn()
    last, term = solo.raft.last_index, solo.raft.term
    solo.raft.report_unreachable(ReplicaId(2))
    solo.raft.step(beaten(term, from_=2))
    assert [last] == [message.previous_index for message in of(Append, solo.turn()) if message.to == 2]
    refusal = AppendReply(ReplicaId(1), ReplicaId(2), term, last, True, Index(2), Term(2))
    solo.raft.step(refusal)
    sent = [message for message in of(Append, solo.turn()) if message.to == 2]
    assert 1 == solo.raft.log_regressions
    assert [3, 4, 5] == [each.index for each in sent[0].entries]
    assert last == solo.raft.commit


def test_replica_left_out_by_an_uncommitted_configuration_may_still_campaign() -> None:
    """Its log may be the only complete one (thesis 4.2.2); once the removal is committed it never campaigns again."""
    solo = Solo(configuration=Configuration(voters=(ReplicaId(1), ReplicaId(2))))
    solo.lead()
    solo.acknowledge(2)
    solo.turn()
    solo.raft.propose_configuration(ConfigurationChange(remove=(ReplicaId(1),)))
    solo.turn()
    solo.raft.step(heartbeat(solo.raft.term + 1))
    assert solo.raft.promotable()
    solo.raft.campaign()
    asked = of(RequestVote, solo.turn())
    assert [(2, True)] == [(message.to, message.pre) for message in asked]
    assert Role.PRE_CANDIDATE is solo.raft.role
    solo.raft.step(heartbeat(solo.raft.term, commit=solo.raft.last_index))
    solo.turn()
    assert not solo.raft.promotable()


def test_removed_leader_does_not_count_itself_and_steps_down() -> None:
    """It leads on until its removal is committed by the others alone, tells them, and becomes a follower."""
    solo = Solo()
    solo.lead()
    solo.acknowledge(2, 3)
    solo.turn()
    _, index = solo.raft.propose_configuration(ConfigurationChange(remove=(ReplicaId(1),)))
    solo.turn()
    solo.acknowledge(2)
    assert solo.raft.commit < index
    assert Role.LEADER is solo.raft.role
    solo.acknowledge(3)
    assert (index, Role.FOLLOWER) == (solo.raft.commit, solo.raft.role)
    assert [(2, index), (3, index)] == [(message.to, message.commit) for message in of(Append, solo.turn())]


def test_stale_requests_are_refused_with_the_newer_term() -> None:
    """Raft §5.1: the sender learns that it is out of date, and a replica that cannot win frees the group (etcd #8243)."""
    solo = Solo(term=7)
    solo.raft.step(append(5, (1, 1), from_=2))
    solo.raft.step(heartbeat(5, from_=3))
    solo.raft.step(ask_vote(6, (9, 6), from_=3))
    replies = solo.turn()
    assert [(2, True)] == [(reply.to, reply.rejected) for reply in of(AppendReply, replies)]
    assert [3] == [reply.to for reply in of(HeartbeatReply, replies)]
    assert [False] == [reply.granted for reply in of(VoteReply, replies)]
    assert {7} == {reply.term for reply in replies}


def test_heartbeat_beyond_the_log_is_clamped_and_counted() -> None:
    """A leader that believes us to have what we have not: an alarm, but no crash loop."""
    solo = Solo()
    solo.raft.step(heartbeat(1, commit=9))
    assert (Index(1), 1) == (solo.raft.commit, solo.raft.log_regressions)


def test_heartbeat_to_a_follower_carries_no_more_than_it_has() -> None:
    """Its commit index is clamped to what the follower acknowledged."""
    solo = Solo()
    solo.lead()
    solo.acknowledge(2)
    solo.turn()
    solo.raft.tick()
    beats = of(Heartbeat, solo.turn())
    assert [(2, solo.raft.commit), (3, 0)] == [(beat.to, beat.commit) for beat in beats]
