"""Elections: who may win, who must yield, and that only durable votes of the present term count."""

import pytest

from raftcache.ids import NO_REPLICA, Index, ReplicaId, Term
from raftcache.raft.messages import (
    Append,
    AppendReply,
    HardState,
    HeartbeatReply,
    RequestVote,
    Role,
    TimeoutNow,
    VoteReply,
)
from tests.raft.cluster import ELECTION_TICKS, Cluster, Shell, beat, ids, only

ONE, TWO, THREE = ids(1, 2, 3)
MODES = pytest.mark.parametrize("pre_vote", [True, False], ids=["pre-vote", "no pre-vote"])


@MODES
@pytest.mark.parametrize(
    ("size", "down", "wins"),
    [(3, (), True), (3, (2,), True), (3, (2, 3), False), (4, (2, 3), False), (5, (2, 3), True), (5, (2, 3, 4), False)],
)
def test_majority_of_reachable_voters_decides(pre_vote: bool, size: int, down: tuple[int, ...], wins: bool) -> None:
    """With a majority up a candidate wins; without, it stays a (pre-)candidate and nobody leads."""
    cluster = Cluster(size, pre_vote=pre_vote)
    cluster.crash(*down)
    cluster[1].call("campaign")
    cluster.settle()
    undecided = Role.PRE_CANDIDATE if pre_vote else Role.CANDIDATE
    assert cluster[1].raft.role is (Role.LEADER if wins else undecided)
    assert cluster[1].raft.term == (1 if pre_vote and not wins else 2)


@MODES
def test_leadership_goes_round_all_voters(pre_vote: bool) -> None:
    """Each replica of a healthy group can become leader in turn, each in a term of its own."""
    cluster = Cluster(3, pre_vote=pre_vote)
    for term, number in enumerate([1, 2, 3, 1], start=2):
        cluster.elect(number)
        cluster.tick()
        assert [shell.id for shell in cluster.leaders()] == [number]
        assert {(shell.raft.leader, shell.raft.term) for shell in cluster.shells} == {(number, term)}


@MODES
def test_legitimate_leader_overwrites_logs_of_newer_terms(pre_vote: bool) -> None:
    """Entries of a higher term that never got a majority give way to a leader elected without them."""
    # 1 won term 2 and reached 2; 3 won term 3 by the votes of 4 and 5, wrote, and reached nobody.
    cluster = Cluster(
        5,
        logs={1: (2,), 2: (2,), 3: (3,)},
        terms={1: 2, 2: 2, 3: 3, 4: 3, 5: 3},
        pre_vote=pre_vote,
    )
    # The first attempt may only teach 1 the newer term; the second wins it with the votes of 2, 4 and 5.
    cluster[1].call("campaign")
    cluster.settle()
    if cluster[1].raft.role is not Role.LEADER:
        assert cluster[1].raft.term == 3
        cluster.elect(1)
    cluster.tick(3)
    assert cluster[3].terms() == [2, cluster[1].raft.term]
    cluster.assert_converged()


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.name.lower())
@pytest.mark.parametrize("pre", [False, True], ids=["vote", "pre-vote"])
def test_vote_of_a_newer_term_is_answered_in_any_role(role: Role, pre: bool) -> None:
    """Whatever a replica is doing, it answers a candidate of a newer term; only a real vote changes its state."""
    shell = Shell(1, pre_vote=role is Role.PRE_CANDIDATE, check_quorum=False)
    match role:
        case Role.FOLLOWER:
            pass
        case Role.PRE_CANDIDATE | Role.CANDIDATE:
            shell.call("campaign")
        case Role.LEADER:
            shell.become_leader()
    shell.run()
    assert shell.raft.role is role
    before = shell.observe()
    sent = shell.deliver(RequestVote(ONE, TWO, Term(before.term + 1), Index(42), Term(before.term + 1), pre=pre))
    replies = only(sent, VoteReply)
    assert [(r.to, r.term, r.granted, r.pre) for r in replies] == [(2, before.term + 1, True, pre)]
    if pre:
        assert shell.observe() == before
    else:
        after = shell.observe()
        assert (after.role, after.term, after.vote) == (Role.FOLLOWER, before.term + 1, 2)


@MODES
def test_dueling_candidates_end_with_one_leader(pre_vote: bool) -> None:
    """Two candidates that cannot see each other's success: the later one cannot win with the shorter log."""
    cluster = Cluster(3, pre_vote=pre_vote, check_quorum=False)
    cluster.cut(1, 3)
    cluster[1].call("campaign")
    cluster[3].call("campaign")
    cluster.settle()
    # 1 was first at 2; 3 stays what it was, for nobody decides its election.
    assert cluster[1].raft.role is Role.LEADER
    assert cluster[3].raft.role in (Role.CANDIDATE, Role.PRE_CANDIDATE, Role.FOLLOWER)
    cluster.heal()
    # 3 tries again with its shorter log.
    cluster[3].call("campaign")
    cluster.settle()
    assert cluster[3].raft.role is not Role.LEADER
    if pre_vote:
        assert cluster[1].raft.role is Role.LEADER
        assert cluster[1].raft.term == 2
    cluster.wait_for_leader()
    cluster.tick(2)
    cluster.assert_converged()


def test_candidate_concedes_to_the_leader_and_takes_its_log() -> None:
    """A candidate of an old term that comes back follows, and gives up what it wrote."""
    cluster = Cluster(3, pre_vote=False)
    cluster.isolate(1)
    cluster[1].call("campaign")
    cluster.elect(3)
    cluster.propose(3, b"force follower")
    cluster.heal()
    cluster.tick(2)
    assert cluster[1].raft.role is Role.FOLLOWER
    assert cluster[1].raft.leader == 3
    assert cluster[1].data() == [b"force follower"]


@MODES
def test_single_voter_elects_itself(pre_vote: bool) -> None:
    """A group of one needs nobody else, but does need its own disk."""
    shell = Shell(1, voters=(1,), pre_vote=pre_vote)
    shell.stalled = True
    shell.call("campaign")
    shell.run()
    assert shell.raft.role is not Role.LEADER
    shell.stalled = False
    shell.sync()
    shell.run()
    assert (shell.raft.role, shell.raft.term) == (Role.LEADER, 2)


def test_all_servers_step_down_for_a_newer_term() -> None:
    """Follower, pre-candidate, candidate and leader alike: a vote request or an append of term 5 leaves followers."""
    for prepare in ("follower", "pre-candidate", "candidate", "leader"):
        for message in (
            RequestVote(ONE, TWO, Term(5), Index(9), Term(4)),
            Append(ONE, TWO, Term(5), Index(1), Term(1), Index(1)),
        ):
            shell = Shell(1, pre_vote=prepare == "pre-candidate", check_quorum=False)
            if prepare == "leader":
                shell.become_leader()
            elif prepare != "follower":
                shell.call("campaign")
                shell.run()
            last = shell.raft.last_index
            shell.deliver(message)
            assert (shell.raft.role, shell.raft.term, shell.raft.last_index) == (Role.FOLLOWER, 5, last)
            assert shell.raft.leader == (2 if isinstance(message, Append) else NO_REPLICA)


@pytest.mark.parametrize("kind", ["heartbeat", "append"])
def test_lone_candidate_is_reset_by_its_leader(kind: str) -> None:
    """A replica that campaigned alone in the old term follows on the first heartbeat or append of the newer term."""
    cluster = Cluster(3, pre_vote=False, check_quorum=False)
    cluster.elect(1)
    cluster.isolate(3)
    cluster.tick(2 * ELECTION_TICKS, only=3)
    assert cluster[3].raft.role is Role.CANDIDATE
    high = cluster[3].raft.term
    # The leader learns of the higher term by a refused heartbeat, steps down, and a new one gets 3 back.
    cluster.heal()
    if kind == "append":
        cluster[1].propose(b"x")
    else:
        cluster[1].tick()
    cluster.settle()
    cluster.wait_for_leader()
    cluster.tick(2)
    assert cluster[3].raft.term >= high
    assert cluster[3].raft.leader == cluster.leader().id
    cluster.assert_converged()


def test_replica_waits_the_whole_drawn_timeout() -> None:
    """No campaign before T ticks, one certainly at 2T - 1; a heartbeat starts the wait again."""
    for seed in range(20):
        shell = Shell(1, pre_vote=False, seed=seed)
        shell.tick(ELECTION_TICKS - 1)
        assert shell.raft.role is Role.FOLLOWER
        shell.deliver(beat(2, 1, 2))
        shell.tick(ELECTION_TICKS - 1)
        assert shell.raft.role is Role.FOLLOWER
        shell.tick(ELECTION_TICKS)
        assert shell.raft.role is Role.CANDIDATE


@MODES
def test_leader_does_not_campaign_against_itself(pre_vote: bool) -> None:
    """Being told to campaign changes nothing for a leader."""
    shell = Shell(1, pre_vote=pre_vote).become_leader()
    before = shell.observe()
    shell.call("campaign")
    assert shell.run() == []
    assert shell.observe() == before


@pytest.mark.parametrize("pre_vote", [False, True], ids=["vote", "pre-vote"])
def test_own_vote_of_a_lost_election_does_not_count(pre_vote: bool) -> None:
    """A candidate whose own vote was still being written when it lost does not count it when it is durable at last."""
    shell = Shell(1, pre_vote=pre_vote)
    shell.stalled = True
    shell.call("campaign")
    shell.run()
    shell.step(beat(2, 1, shell.raft.term + 1))
    shell.run()
    assert shell.raft.role is Role.FOLLOWER
    shell.stalled = False
    shell.sync()
    shell.run()
    assert (shell.raft.role, shell.raft.leader) == (Role.FOLLOWER, 2)
    # A vote of the lost term, late: no use either.
    shell.deliver(VoteReply(ONE, TWO, Term(shell.raft.term), granted=True))
    assert shell.raft.role is Role.FOLLOWER


def test_own_pre_vote_does_not_become_a_vote() -> None:
    """A pre-candidate that becomes a candidate while its pre-vote is still being written counts it for the pre-election only."""
    shell = Shell(1, voters=(1, 2, 3), pre_vote=True)
    shell.stalled = True
    shell.call("campaign")
    shell.run()
    shell.step(VoteReply(ONE, TWO, Term(2), granted=True, pre=True))
    shell.step(VoteReply(ONE, THREE, Term(2), granted=True, pre=True))
    shell.run()
    assert shell.raft.role is Role.CANDIDATE
    # The first write (if the pre-vote made one) is done; the vote itself is not durable yet.
    while len(shell.pending) > 1:
        shell.sync(1)
    shell.step(VoteReply(ONE, TWO, Term(2), granted=True, pre=True))
    assert shell.raft.role is Role.CANDIDATE
    assert shell.image.hard_state == HardState(Term(1), NO_REPLICA)
    # With its own vote durable and one more it wins.
    shell.step(VoteReply(ONE, TWO, Term(2), granted=True))
    assert shell.raft.role is Role.CANDIDATE
    shell.sync()
    assert shell.raft.role is Role.LEADER


def test_own_acknowledgement_of_an_old_term_does_not_count() -> None:
    """A leader whose entries were still being written when it was deposed does not count them in a later term."""
    shell = Shell(1, pre_vote=False, check_quorum=False).become_leader()
    shell.stalled = True
    shell.propose(b"old")
    shell.run()
    # Deposed, and its tail replaced by leader 2; then it leads again, with the first write finished only now.
    shell.step(Append(ONE, TWO, Term(3), Index(1), Term(1), Index(1), []))
    shell.run()
    shell.stalled = False
    shell.sync(1)
    shell.run()
    assert shell.raft.role is Role.FOLLOWER
    assert shell.raft.commit == 1


def test_votes_of_non_voters_and_strangers_do_not_count() -> None:
    """Only voters of the configuration are counted, whatever arrives."""
    shell = Shell(1, voters=(1, 2, 3), learners=(4,), pre_vote=False).become_candidate()
    shell.deliver(
        VoteReply(ONE, ReplicaId(4), Term(2), granted=True),
        VoteReply(ONE, ReplicaId(9), Term(2), granted=True),
        VoteReply(ONE, ONE, Term(2), granted=True),
    )
    assert shell.raft.role is Role.CANDIDATE
    shell.deliver(VoteReply(ONE, TWO, Term(2), granted=True))
    assert shell.raft.role is Role.LEADER


def test_voter_that_answers_twice_counts_once() -> None:
    """A repeated reply is one vote, and a change of mind is ignored."""
    shell = Shell(1, voters=(1, 2, 3, 4, 5), pre_vote=False).become_candidate()
    for _ in range(3):
        shell.deliver(VoteReply(ONE, TWO, Term(2), granted=True))
    assert shell.raft.role is Role.CANDIDATE
    shell.deliver(VoteReply(ONE, TWO, Term(2), granted=False))
    shell.deliver(VoteReply(ONE, THREE, Term(2), granted=True))
    assert shell.raft.role is Role.LEADER


def test_pre_vote_of_another_term_does_not_count() -> None:
    """A pre-vote granted for an earlier pre-election (another future term) is not counted in this one."""
    shell = Shell(1, pre_vote=True)
    shell.call("campaign")
    shell.run()
    shell.deliver(VoteReply(ONE, TWO, Term(3), granted=True, pre=True))
    assert shell.raft.role is Role.PRE_CANDIDATE or shell.raft.role is Role.FOLLOWER
    assert shell.raft.term <= 3
    assert shell.raft.vote == NO_REPLICA


def test_refused_pre_vote_of_a_newer_term_brings_the_term_along() -> None:
    """A pre-candidate that is refused by someone of a newer term adopts that term and follows."""
    shell = Shell(1, pre_vote=True)
    shell.call("campaign")
    shell.run()
    shell.deliver(VoteReply(ONE, TWO, Term(7), granted=False, pre=True))
    assert (shell.raft.role, shell.raft.term) == (Role.FOLLOWER, 7)


def test_pre_election_is_lost_by_a_majority_of_refusals() -> None:
    """A pre-candidate that a majority refuses in its own term is a follower again, without having changed anything."""
    shell = Shell(1, voters=(1, 2, 3, 4, 5), pre_vote=True)
    shell.call("campaign")
    shell.run()
    for peer in (2, 3):
        shell.deliver(VoteReply(ONE, ReplicaId(peer), Term(1), granted=False, pre=True))
    assert shell.raft.role is Role.PRE_CANDIDATE
    shell.deliver(VoteReply(ONE, ReplicaId(4), Term(1), granted=False, pre=True))
    assert (shell.raft.role, shell.raft.term, shell.raft.vote) == (Role.FOLLOWER, 1, NO_REPLICA)


def test_vote_survives_a_restart() -> None:
    """Term and vote come back from disk: after a crash the same candidate gets the vote again, no other does."""
    shell = Shell(1)
    shell.deliver(RequestVote(ONE, TWO, Term(2), Index(1), Term(1)))
    shell.crash()
    shell.restart()
    assert (shell.raft.term, shell.raft.vote) == (2, 2)
    refused = only(shell.deliver(RequestVote(ONE, THREE, Term(2), Index(9), Term(1))), VoteReply)
    again = only(shell.deliver(RequestVote(ONE, TWO, Term(2), Index(1), Term(1))), VoteReply)
    assert [r.granted for r in refused + again] == [False, True]


def test_late_replies_to_a_leader_are_harmless() -> None:
    """Vote replies that arrive after the election, and answers from strangers, change nothing."""
    shell = Shell(1).become_leader(acknowledged_by=(2,))
    before = shell.observe()
    shell.deliver(
        VoteReply(ONE, THREE, Term(2), granted=True),
        VoteReply(ONE, TWO, Term(2), granted=False),
        VoteReply(ONE, TWO, Term(2), granted=True, pre=True),
        AppendReply(ONE, ReplicaId(9), Term(2), Index(1)),
        HeartbeatReply(ONE, ReplicaId(9), Term(2)),
    )
    assert shell.observe() == before


def test_timeout_now_of_an_old_term_is_ignored() -> None:
    """Only the leader of this term (or a newer one) may call on a replica to stand."""
    shell = Shell(1, term=5)
    shell.deliver(TimeoutNow(ONE, TWO, Term(4)))
    assert (shell.raft.role, shell.raft.term) == (Role.FOLLOWER, 5)
