"""Linearizable reads: a read index covers what was committed before the question, or the read is dropped."""

import pytest

from raftcache.errors import Overloaded, Unavailable
from raftcache.ids import Index, ReplicaId, Term
from raftcache.raft.configuration import ConfigurationChange
from raftcache.raft.messages import (
    Append,
    AppendReply,
    Configuration,
    Heartbeat,
    HeartbeatReply,
    ReadIndexReply,
    ReadIndexRequest,
    Role,
)
from tests.raft.cluster import ELECTION_TICKS, Cluster, Shell, beat, ids, only

ONE, TWO, THREE = ids(1, 2, 3)


def states(shell: Shell) -> list[tuple[int, int]]:
    """The answered reads, as (context, index)."""
    return [(state.context, state.index) for state in shell.read_states]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("at", ["leader", "follower"])
def test_read_index_covers_everything_committed_before(size: int, at: str) -> None:
    """Whoever is asked, the answer is at or above the commit index of the moment of the question."""
    cluster = Cluster(size)
    cluster.elect(1)
    for number in range(4):
        cluster.propose(1, b"%d" % number)
        reader = 1 if at == "leader" else size
        context = cluster.read(reader)
        assert states(cluster[reader])[-1] == (context, cluster[1].raft.commit)


def test_learner_reads_through_the_leader() -> None:
    """A learner forwards its reads; its own answers to heartbeats do not confirm anybody's."""
    cluster = Cluster(3, learners=(4,))
    cluster.elect(1)
    cluster.propose(1, b"x")
    context = cluster.read(4)
    assert states(cluster[4]) == [(context, cluster[1].raft.commit)]
    cluster.isolate(2, 3)
    cluster.cut_links.discard((ReplicaId(1), ReplicaId(4)))
    pending = cluster.read(1)
    assert pending not in dict(states(cluster[1]))


def test_read_waits_for_a_quorum_of_heartbeat_answers() -> None:
    """A leader serves a read only when a majority has answered a heartbeat that left after the question."""
    shell = Shell(1, voters=(1, 2, 3, 4, 5)).become_leader(acknowledged_by=(2, 3, 4, 5))
    shell.read(7)
    sent = only(shell.run(), Heartbeat)
    positions = {message.read_position for message in sent}
    assert len(positions) == 1
    position = positions.pop()
    assert position > 0
    shell.deliver(HeartbeatReply(ONE, TWO, Term(2), position))
    shell.deliver(HeartbeatReply(ONE, TWO, Term(2), position))
    assert states(shell) == []
    shell.deliver(HeartbeatReply(ONE, THREE, Term(2), position))
    assert states(shell) == [(7, 2)]


def test_heartbeat_answers_from_before_the_question_confirm_nothing() -> None:
    """Answers to earlier heartbeats carry earlier positions and do not count for a later read."""
    shell = Shell(1).become_leader(acknowledged_by=(2, 3))
    shell.tick()
    shell.run()
    shell.read(1)
    first = only(shell.run(), Heartbeat)[0].read_position
    shell.deliver(HeartbeatReply(ONE, TWO, Term(2), 0))
    assert states(shell) == []
    shell.deliver(HeartbeatReply(ONE, TWO, Term(2), first))
    assert states(shell) == [(1, 2)]
    shell.read(2)
    second = only(shell.run(), Heartbeat)[0].read_position
    assert second > first
    shell.deliver(HeartbeatReply(ONE, THREE, Term(2), first))
    assert states(shell) == [(1, 2)]
    shell.deliver(HeartbeatReply(ONE, THREE, Term(2), second))
    assert states(shell) == [(1, 2), (2, 2)]


def test_answers_of_learners_do_not_confirm_reads() -> None:
    """Only voters prove leadership."""
    shell = Shell(1, learners=(4, 5)).become_leader(acknowledged_by=(2, 3))
    shell.read(1)
    sent = only(shell.run(), Heartbeat)
    position = max(message.read_position for message in sent)
    for learner in (4, 5):
        shell.deliver(HeartbeatReply(ONE, ReplicaId(learner), Term(2), position))
    assert states(shell) == []


def test_joint_configuration_needs_both_majorities_for_a_read() -> None:
    """While joint, heartbeat answers must come from a majority of each half."""
    shell = Shell(1, configuration=Configuration(voters=ids(1, 2, 3), voters_outgoing=ids(1, 4, 5)))
    shell.become_leader()
    for peer in (2, 4):
        # The first entry commits, and with it the leader would leave the joint configuration: keep 5 and 3 silent.
        shell.step(AppendReply(ONE, ReplicaId(peer), Term(2), Index(2)))
    shell.run()
    shell.read(1)
    beats = only(shell.run(), Heartbeat)
    position = beats[0].read_position
    shell.deliver(HeartbeatReply(ONE, TWO, Term(2), position))
    if shell.raft.configuration.voters_outgoing:
        assert states(shell) == []
        shell.deliver(HeartbeatReply(ONE, ReplicaId(4), Term(2), position))
    assert [context for context, _ in states(shell)] == [1]


def test_a_round_under_way_is_confirmed_by_a_change_to_fewer_voters() -> None:
    """Who was still to answer is no voter any more: nobody else would come to confirm it, and later reads wait behind it."""
    shell = Shell(1, configuration=Configuration(voters=ids(1, 2))).become_leader(acknowledged_by=(2,))
    shell.read(1)
    position = only(shell.run(), Heartbeat)[0].read_position
    assert states(shell) == []
    shell.call("propose_configuration", ConfigurationChange(remove=ids(2)))
    shell.run()
    assert [context for context, _ in states(shell)] == [1]
    shell.deliver(HeartbeatReply(ONE, TWO, Term(2), position))
    assert [context for context, _ in states(shell)] == [1]


def test_an_answer_that_was_not_enough_is_enough_for_fewer_voters() -> None:
    """Two of four are none; once the fourth is removed, they are a majority of three, and need not be asked again."""
    shell = Shell(1, configuration=Configuration(voters=ids(1, 2, 3, 4))).become_leader(acknowledged_by=(2, 3))
    shell.read(1)
    position = only(shell.run(), Heartbeat)[0].read_position
    shell.deliver(HeartbeatReply(ONE, TWO, Term(2), position))
    assert states(shell) == []
    shell.call("propose_configuration", ConfigurationChange(remove=ids(4)))
    shell.run()
    assert [context for context, _ in states(shell)] == [1]


def test_new_leader_answers_reads_only_after_its_first_commit() -> None:
    """Until an entry of its own term is committed a leader does not know what is, so reads wait, then all get answers."""
    shell = Shell(1, log=(1, 1), term=1).become_leader()
    shell.read(1)
    shell.read(2)
    shell.tick()
    for message in only(shell.run(), Heartbeat):
        shell.deliver(HeartbeatReply(ONE, message.to, Term(2), message.read_position))
    assert states(shell) == []
    sent = shell.acknowledge(2)
    for message in only(sent, Heartbeat):
        shell.deliver(HeartbeatReply(ONE, message.to, Term(2), message.read_position))
    assert states(shell) == [(1, 4), (2, 4)]


def test_repeated_contexts_are_answered_each() -> None:
    """A caller may use a context twice: each question gets an answer of its own, none is mixed up with the other."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick()
    cluster[1].read(9)
    cluster.settle()
    cluster.propose(1, b"x")
    cluster[1].read(9)
    cluster.settle()
    assert states(cluster[1]) == [(9, 2), (9, 3)]


def test_many_reads_share_one_round() -> None:
    """All reads of a turn cost one heartbeat to each voter."""
    shell = Shell(1).become_leader(acknowledged_by=(2, 3))
    for number in range(100):
        shell.read(number)
    sent = shell.run()
    assert [message.to for message in only(sent, Heartbeat)] == [2, 3]
    position = only(sent, Heartbeat)[0].read_position
    shell.deliver(HeartbeatReply(ONE, TWO, Term(2), position))
    assert states(shell) == [(number, 2) for number in range(100)]


def test_many_reads_of_a_follower_share_one_request() -> None:
    """A follower asks its leader once for all reads of a turn."""
    shell = Shell(1)
    shell.deliver(beat(2, 1, 2))
    for number in range(100):
        shell.read(number)
    requests = only(shell.run(), ReadIndexRequest)
    assert [request.to for request in requests] == [2]
    shell.deliver(ReadIndexReply(ONE, TWO, Term(2), requests[0].context, Index(1)))
    assert [context for context, _ in states(shell)] == list(range(100))


def test_answered_reads_leave_the_queues() -> None:
    """After thousands of reads nothing of them remains in memory."""
    cluster = Cluster(3)
    cluster.elect(1)
    for _ in range(200):
        cluster.read(1)
        cluster.read(2)
    assert all(shell.raft.status().reads_pending == 0 for shell in cluster.shells)


def test_pending_reads_are_bounded() -> None:
    """Beyond `reads_pending_max` a read is refused definitely, at the leader and at a follower."""
    for role in ("leader", "follower"):
        shell = Shell(1, reads_pending_max=3)
        if role == "leader":
            shell.become_leader(acknowledged_by=(2,))
        else:
            shell.deliver(beat(2, 1, 2))
        for number in range(3):
            shell.read(number)
        shell.run()
        with pytest.raises(Overloaded) as caught:
            shell.call("read_index", 3)
        assert caught.value.definite


def test_leader_bounds_forwarded_reads_too() -> None:
    """Requests of followers beyond the bound are not queued; the follower gives them up in time."""
    shell = Shell(1, reads_pending_max=2).become_leader(acknowledged_by=(2, 3))
    for context in range(5):
        shell.step(ReadIndexRequest(ONE, TWO, Term(2), context))
    assert shell.raft.status().reads_pending == 2


def test_reads_are_dropped_when_leadership_ends() -> None:
    """A leader that steps down reports its pending reads as dropped, each once; none is answered later."""
    shell = Shell(1).become_leader(acknowledged_by=(2, 3))
    for number in range(3):
        shell.read(number)
    sent = only(shell.run(), Heartbeat)
    shell.deliver(beat(2, 1, 3))
    assert shell.reads_dropped == [0, 1, 2]
    shell.deliver(HeartbeatReply(ONE, TWO, Term(2), sent[0].read_position))
    assert states(shell) == []


def test_reads_of_a_follower_are_dropped_when_the_leader_changes() -> None:
    """A forwarded read does not outlive the term in which it was asked."""
    shell = Shell(1)
    shell.deliver(beat(2, 1, 2))
    shell.read(5)
    request = only(shell.run(), ReadIndexRequest)[0]
    shell.deliver(beat(3, 1, 3))
    assert shell.reads_dropped == [5]
    shell.deliver(ReadIndexReply(ONE, TWO, Term(2), request.context, Index(1)))
    shell.deliver(ReadIndexReply(ONE, THREE, Term(3), request.context, Index(1)))
    assert states(shell) == []


def test_lost_forwarded_read_is_dropped_after_a_timeout() -> None:
    """If the request or its answer is lost, the follower gives up after about an election timeout."""
    cluster = Cluster(3)
    cluster.elect(1)
    with cluster.dropping(lambda m: isinstance(m, ReadIndexReply)):
        context = cluster.read(3)
        cluster.tick(2 * ELECTION_TICKS)
    assert cluster[3].reads_dropped == [context]


def test_read_without_a_known_leader_is_refused() -> None:
    """Nobody to ask: definite, try again."""
    shell = Shell(1)
    with pytest.raises(Unavailable) as caught:
        shell.call("read_index", 1)
    assert caught.value.definite


def test_read_sent_to_a_deposed_leader_is_not_answered_by_it() -> None:
    """A follower's question that reaches a leader of the old term gets no answer that could be stale."""
    cluster = Cluster(3, check_quorum=False)
    cluster.elect(1)
    cluster.tick()
    held = cluster.hold(lambda m: isinstance(m, ReadIndexRequest))
    context = cluster.read(3)
    cluster.isolate(1)
    cluster.elect(2)
    index = cluster.propose(2, b"new")
    cluster.heal()
    cluster.release(held)
    cluster.settle()
    cluster.tick(2)
    answered = dict(states(cluster[3]))
    assert context not in answered or answered[context] >= index
    assert context in answered or context in cluster[3].reads_dropped


def test_partitioned_leader_never_answers_a_read() -> None:
    """A leader that was superseded cannot confirm itself, however long it believes to lead."""
    cluster = Cluster(3, check_quorum=False)
    cluster.elect(1)
    cluster.tick()
    cluster.isolate(1)
    cluster.elect(2)
    cluster.propose(2, b"new")
    context = cluster.read(1)
    cluster.tick(3 * ELECTION_TICKS)
    assert cluster[1].raft.role is Role.LEADER
    assert states(cluster[1]) == []
    cluster.heal()
    cluster.tick(2)
    assert cluster[1].reads_dropped == [context]


def test_paused_leader_does_not_answer_an_old_read_from_old_answers() -> None:
    """Answers that arrive after a pause, from before the new leader's time, confirm nothing that is stale.

    The read is asked, the heartbeats leave, the answers are held. A new leader commits. Then the answers arrive: they
    were given before the write, so the read may be served at the old index: it was asked before the write as well. A
    read asked *after* the write is not served by them.
    """
    cluster = Cluster(3, check_quorum=False)
    cluster.elect(1)
    cluster.tick()
    held = cluster.hold(lambda m: isinstance(m, HeartbeatReply) and m.to == 1)
    before = cluster.read(1)
    cluster.isolate(1)
    cluster.elect(2)
    index = cluster.propose(2, b"new")
    after = cluster.read(1)
    cluster.cut_links.clear()
    cluster.release(held)
    cluster.settle()
    answered = dict(states(cluster[1]))
    assert answered.get(before, 0) < index
    assert after not in answered


def test_read_is_served_only_after_apply_reaches_it() -> None:
    """The core hands out the index; it is above what a slow state machine has applied, so the shell must wait."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster[1].apply_stalled = True
    index = cluster.propose(1, b"x")
    context = cluster.read(1)
    assert dict(states(cluster[1]))[context] == index
    assert cluster[1].raft.applied < index


def test_heartbeats_ask_for_no_confirmation_without_reads() -> None:
    """Where no read waits (and no lease is kept up) heartbeats carry no position."""
    shell = Shell(1).become_leader(acknowledged_by=(2, 3))
    for _ in range(3):
        shell.tick()
        assert {message.read_position for message in only(shell.run(), Heartbeat)} == {0}


def test_lease_read_needs_no_round_while_the_lease_holds() -> None:
    """With `lease_reads` a leader that a quorum has just answered serves at once; without answers it soon does not."""
    cluster = Cluster(3, lease_reads=True)
    cluster.tick(ELECTION_TICKS)  # a restarted voter waits out leases it may have forgotten
    cluster.wait_for_leader()
    leader = cluster.leader()
    cluster.tick(2)
    assert leader.raft.lease_holds()
    leader.read(1)
    assert only(leader.run(), Heartbeat) == []
    assert states(leader) == [(1, leader.raft.commit)]
    cluster.isolate(leader.id)
    for _ in range(ELECTION_TICKS):
        leader.tick()
        leader.run()
    assert not leader.raft.lease_holds()


def test_lease_answers_followers_at_once() -> None:
    """A forwarded read is answered under the lease as well, without a heartbeat first."""
    cluster = Cluster(3, lease_reads=True)
    leader = cluster.wait_for_leader()
    cluster.tick(2)
    assert leader.raft.lease_holds()
    follower = next(shell.id for shell in cluster.shells if shell is not leader)
    sent = leader.deliver(ReadIndexRequest(leader.id, follower, leader.raft.term, 77))
    assert sent == [ReadIndexReply(follower, leader.id, leader.raft.term, 77, leader.raft.commit)]


def test_lease_ends_before_another_leader_can_be_elected() -> None:
    """With equal clocks, whenever another replica leads, the old leader's lease is over."""
    for seed in range(10):
        cluster = Cluster(3, seed=seed, lease_reads=True)
        old = cluster.wait_for_leader()
        cluster.tick(3)
        cluster.isolate(old.id)
        for _ in range(4 * ELECTION_TICKS):
            cluster.tick()
            others = [s for s in cluster.leaders() if s is not old]
            assert not (others and old.raft.lease_holds()), f"seed {seed}"


def test_lease_is_given_up_with_a_transfer() -> None:
    """Once the successor may have been told to stand, no lease read is served in this term: its election passes the lease."""
    cluster = Cluster(3, lease_reads=True)
    leader = cluster.wait_for_leader()
    cluster.tick(3)
    target = next(shell.id for shell in cluster.shells if shell is not leader)
    assert leader.raft.lease_holds()
    cluster.isolate(leader.id)
    leader.call("transfer_leadership", target)
    assert not leader.raft.lease_holds()
    leader.run()
    for _ in range(3 * ELECTION_TICKS):
        leader.tick()
        assert not leader.raft.lease_holds()


def test_lease_read_waits_for_the_first_commit_too() -> None:
    """A lease alone is not enough for a new leader: what is committed must be known first."""
    cluster = Cluster(3, lease_reads=True, check_quorum=True)
    cluster.tick(ELECTION_TICKS)
    with cluster.dropping(lambda m: isinstance(m, (Append, AppendReply))):
        cluster.elect(2)
        cluster.tick(3)
        cluster[2].read(1)
        cluster.settle()
        assert states(cluster[2]) == []
    cluster.tick(3)
    assert [context for context, _ in states(cluster[2])] == [1]
