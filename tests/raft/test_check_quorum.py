"""Check-quorum, the lease it makes, and replicas that would disrupt a healthy group."""

import pytest

from raftcache.errors import NotLeader
from raftcache.ids import Index, ReplicaId, Term
from raftcache.raft.messages import Append, HeartbeatReply, RequestVote, Role, VoteReply
from tests.raft.cluster import ELECTION_TICKS, Cluster, Shell, beat, ids, only

ONE, TWO, THREE = ids(1, 2, 3)


def test_leader_stays_while_a_quorum_answers() -> None:
    """Answers from a majority within each election timeout keep a leader in office, a silent minority notwithstanding."""
    shell = Shell(1).become_leader()
    for _ in range(5 * ELECTION_TICKS):
        shell.tick()
        shell.deliver(HeartbeatReply(ONE, TWO, Term(2)))
    assert shell.raft.role is Role.LEADER


def test_leader_steps_down_when_a_quorum_is_silent() -> None:
    """Without a majority's answers for two election timeouts at most, a leader is one no more, in the same term."""
    shell = Shell(1, voters=(1, 2, 3, 4, 5)).become_leader()
    for _ in range(2 * ELECTION_TICKS):
        shell.tick()
        if shell.raft.role is Role.LEADER:
            shell.deliver(HeartbeatReply(ONE, TWO, Term(2)))
    assert shell.raft.role is not Role.LEADER
    assert shell.raft.term == 2
    with pytest.raises(NotLeader):
        shell.call("propose", b"x")


def test_learners_do_not_keep_a_leader_in_office() -> None:
    """Only voters count as a quorum, however many learners answer."""
    shell = Shell(1, voters=(1, 2, 3), learners=(4, 5, 6)).become_leader()
    for _ in range(2 * ELECTION_TICKS):
        shell.tick()
        for learner in (4, 5, 6):
            if shell.raft.role is Role.LEADER:
                shell.deliver(HeartbeatReply(ONE, ReplicaId(learner), Term(2)))
    assert shell.raft.role is not Role.LEADER


def test_without_check_quorum_a_leader_stays() -> None:
    """The setting is what does it."""
    shell = Shell(1, check_quorum=False).become_leader()
    shell.tick(5 * ELECTION_TICKS)
    assert shell.raft.role is Role.LEADER


@pytest.mark.parametrize("pre", [False, True], ids=["vote", "pre-vote"])
@pytest.mark.parametrize("silence", [0, ELECTION_TICKS - 1, ELECTION_TICKS])
def test_votes_are_refused_while_a_leader_is_heard(pre: bool, silence: int) -> None:
    """Within an election timeout of a leader's word no candidate gets an answer; then it does."""
    shell = Shell(1)
    shell.deliver(beat(2, 1, 2))
    shell.raft.randomized_timeout_ticks = 2 * ELECTION_TICKS
    shell.tick(silence)
    replies = only(shell.deliver(RequestVote(ONE, THREE, Term(3), Index(9), Term(2), pre=pre)), VoteReply)
    if silence < ELECTION_TICKS:
        assert replies == []
        assert shell.raft.term == 2
    else:
        assert [r.granted for r in replies] == [True]


def test_vote_asked_by_the_leader_passes_the_lease() -> None:
    """A campaign that the leader asked for (transfer) is answered although the leader is alive."""
    shell = Shell(1)
    shell.deliver(beat(2, 1, 2))
    replies = only(shell.deliver(RequestVote(ONE, THREE, Term(3), Index(9), Term(2), transfer=True)), VoteReply)
    assert [r.granted for r in replies] == [True]


def test_new_leader_supersedes_an_old_one_only_after_the_lease() -> None:
    """While the group hears leader 1 replica 3 gets no vote; once it does not, 3 wins and 1 follows."""
    cluster = Cluster(3, pre_vote=False)
    cluster.elect(1)
    cluster.tick()
    cluster[3].call("campaign")
    cluster.settle()
    assert cluster[3].raft.role is Role.CANDIDATE
    cluster.lose_patience(2)
    cluster[3].call("campaign")
    cluster.settle()
    assert cluster[3].raft.role is Role.LEADER
    assert cluster[1].raft.role is Role.FOLLOWER


def test_election_succeeds_with_check_quorum_from_a_cold_start() -> None:
    """A group that has just started, and hears nobody, elects at once: there is no lease to wait for."""
    cluster = Cluster(3)
    cluster[2].call("campaign")
    cluster.settle()
    assert cluster[2].raft.role is Role.LEADER


def test_stuck_candidate_of_a_higher_term_is_freed() -> None:
    """A replica that raised its term alone and cannot win gets the group to a term in which it takes part again."""
    cluster = Cluster(3, pre_vote=False)
    cluster.elect(1)
    cluster.tick()
    cluster.isolate(3)
    cluster.tick(4 * ELECTION_TICKS, only=3)
    stuck = cluster[3].raft.term
    assert stuck > cluster[1].raft.term
    cluster.propose(1, b"x")  # so that 3 cannot win
    cluster.heal()
    taken = cluster.tick_until(
        lambda: bool(cluster.leaders()) and all(shell.raft.term >= stuck for shell in cluster.shells),
        ticks_max=10 * ELECTION_TICKS,
    )
    assert taken <= 10 * ELECTION_TICKS
    cluster.wait_for_leader()
    cluster.tick(2)
    cluster.assert_converged()


def test_replica_that_may_not_campaign_still_takes_part() -> None:
    """A voter whose own configuration does not list it yet follows and votes, and never campaigns."""
    cluster = Cluster(2)
    cluster.elect(1)
    newcomer = cluster.add(3)
    newcomer.tick(5 * ELECTION_TICKS)
    assert newcomer.raft.role is Role.FOLLOWER
    assert newcomer.raft.term == 0
    replies = only(newcomer.deliver(RequestVote(THREE, TWO, Term(3), Index(5), Term(2))), VoteReply)
    assert [r.granted for r in replies] == [True]


@pytest.mark.parametrize("pre_vote", [True, False], ids=["pre-vote", "no pre-vote"])
def test_follower_that_hears_nothing_disrupts_only_without_pre_vote(pre_vote: bool) -> None:
    """One follower's inbound link is dead: with pre-votes the term stays; without, its higher term ends the leader's."""
    cluster = Cluster(3, pre_vote=pre_vote)
    cluster.elect(1)
    cluster.tick(2)
    cluster.cut(1, 3, one_way=True)
    cluster.cut(2, 3, one_way=True)
    cluster.tick(5 * ELECTION_TICKS)
    cluster.heal()
    cluster.tick(3)
    if pre_vote:
        assert (cluster[1].raft.role, cluster[1].raft.term) == (Role.LEADER, 2)
    else:
        cluster.wait_for_leader()
        assert cluster.leader().raft.term > 2
    cluster.tick(3)
    cluster.assert_converged()


def test_replica_with_the_smaller_term_but_longer_log_can_win() -> None:
    """Log up to date and term behind: an election completes all the same, as refusals bring the newer term along."""
    cluster = Cluster(3, logs={1: (2, 2), 2: (2, 2), 3: ()}, terms={1: 2, 2: 2, 3: 6})
    cluster.crash(2)
    leader = cluster.wait_for_leader(ticks_max=10 * ELECTION_TICKS)
    assert leader.id == 1
    assert leader.raft.term > 6


def test_split_pre_vote_is_resolved() -> None:
    """Two pre-candidates at once, of one term: chance lets one of them through soon, and the other follows."""
    for seed in range(10):
        cluster = Cluster(3, seed=seed)
        cluster.elect(1)
        cluster.crash(1)
        cluster.lose_patience(2, 3)
        cluster[2].call("campaign")
        cluster[3].call("campaign")
        cluster.settle()
        leader = cluster.wait_for_leader(ticks_max=10 * ELECTION_TICKS)
        assert leader.id in (2, 3)


def test_pre_vote_of_a_lagging_log_is_refused_without_disturbance() -> None:
    """A pre-candidate behind the group's log is told so; nobody's term moves, and those up to date win."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.isolate(3)
    cluster.propose(1, b"x")
    cluster.crash(1)
    cluster.heal()
    cluster.lose_patience(2)
    cluster[3].call("campaign")
    cluster.settle()
    assert cluster[3].raft.role is not Role.LEADER
    assert cluster[2].raft.term == 2
    assert cluster.wait_for_leader().id == 2


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)], ids=str)
def test_settings_can_be_rolled_over_one_by_one(order: tuple[int, ...]) -> None:
    """Pre-vote and check-quorum are switched on replica by replica; after each step the group elects within ten timeouts."""
    cluster = Cluster(3, pre_vote=False, check_quorum=False)
    cluster.wait_for_leader()
    for number in order:
        shell = cluster[number]
        cluster.crash(number)
        shell.options.update(pre_vote=True, check_quorum=True)
        # Meanwhile it was away, the others may have gone on to another term.
        cluster.tick(3 * ELECTION_TICKS)
        cluster.restart(number)
        cluster.wait_for_leader(ticks_max=10 * ELECTION_TICKS)
        cluster.crash(cluster.leader().id)
        leader = cluster.wait_for_leader(ticks_max=10 * ELECTION_TICKS)
        for other in cluster.shells:
            if not other.running:
                cluster.restart(other.id)
        cluster.propose(leader.id, b"%d" % number)
        cluster.tick(3)
        cluster.assert_converged()


def test_stuck_pre_candidate_of_a_higher_term_is_freed_in_a_mixed_group() -> None:
    """One replica asks pre-votes in a higher term with a shorter log; the others do not use pre-votes: nobody is stuck."""
    cluster = Cluster(3, logs={1: (2,), 2: (2,)}, terms={1: 2, 2: 2, 3: 5}, pre_vote=False)
    shell = cluster[3]
    cluster.crash(3)
    shell.options.update(pre_vote=True)
    cluster.restart(3)
    cluster.crash(2)
    leader = cluster.wait_for_leader(ticks_max=10 * ELECTION_TICKS)
    assert leader.id == 1
    cluster.restart(2)
    cluster.tick(5)
    cluster.assert_converged()


def test_answers_to_the_deposed_tell_the_newer_term() -> None:
    """Heartbeats, appends and vote requests of an old term are answered with the newer one, so their sender steps down."""
    shell = Shell(1, term=5)
    sent = shell.deliver(
        beat(2, 1, 3),
        Append(ONE, TWO, Term(3), Index(1), Term(1), Index(1)),
        RequestVote(ONE, TWO, Term(3), Index(9), Term(9), pre=True),
    )
    assert {m.term for m in sent} == {5}
    assert len(sent) == 3


def test_bridge_partition_makes_progress() -> None:
    """Only the middle replicas reach a majority: within twenty timeouts one of them leads, and stays in office."""
    for seed in range(3):
        cluster = Cluster(5, seed=seed)
        cluster.elect(4)
        cluster.tick(2)
        # 1, 2 and 3 are connected; 4 reaches only 2, and 5 only 3.
        for left, right in ((4, 1), (4, 3), (4, 5), (5, 1), (5, 2)):
            cluster.cut(left, right)
        leader = cluster.wait_for_leader(ticks_max=20 * ELECTION_TICKS, among=(1, 2, 3))
        term = leader.raft.term
        cluster.tick(20 * ELECTION_TICKS)
        assert leader.raft.role is Role.LEADER
        assert leader.raft.term == term
        index = cluster.propose(leader.id, b"x")
        assert leader.raft.commit == index
