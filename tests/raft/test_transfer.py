"""Leadership transfer: it completes, or it is over within one election timeout; proposals are refused meanwhile."""

import pytest

from raftcache.errors import NotLeader, PreconditionFailed, Unavailable
from raftcache.ids import NO_REPLICA, Index, Term
from raftcache.raft.configuration import ConfigurationChange
from raftcache.raft.messages import Append, AppendReply, RequestVote, Role, TimeoutNow
from tests.raft.cluster import ELECTION_TICKS, Cluster, Shell, beat, entry, ids, only

ONE, TWO, THREE = ids(1, 2, 3)


def led_by_1(**options: object) -> Cluster:
    """Three replicas; 1 leads and everyone is up to date."""
    cluster = Cluster(3, **options)  # type: ignore[arg-type]
    cluster.elect(1)
    cluster.propose(1, b"x")
    cluster.tick(2)
    return cluster


def hand_over(cluster: Cluster, to: int) -> None:
    """Asks the leader 1 to hand over, and settles."""
    cluster[1].call("transfer_leadership", ids(to)[0])
    cluster.settle()


def test_up_to_date_target_takes_over_at_once() -> None:
    """No tick passes: the target stands, wins past the lease, and the old leader follows."""
    cluster = led_by_1()
    hand_over(cluster, 2)
    assert (cluster[2].raft.role, cluster[2].raft.term) == (Role.LEADER, 3)
    assert cluster[1].raft.role is Role.FOLLOWER
    cluster.tick()
    cluster.assert_converged()


def test_target_skips_the_pre_vote() -> None:
    """The leader's word is permission enough: the campaign is a real one, marked as a transfer."""
    shell = Shell(1)
    shell.deliver(beat(2, 1, 2))
    requests = only(shell.deliver(TimeoutNow(ONE, TWO, Term(2))), RequestVote)
    assert [(r.to, r.term, r.pre, r.transfer) for r in requests] == [(2, 3, False, True), (3, 3, False, True)]


def test_only_a_leader_can_transfer() -> None:
    """A follower refuses and knows nothing of a transferee."""
    cluster = led_by_1()
    with pytest.raises(NotLeader):
        cluster[2].call("transfer_leadership", THREE)
    assert cluster[2].raft.lead_transferee == NO_REPLICA


def test_lagging_target_is_brought_up_to_date_first() -> None:
    """The word to stand is given only when the target has the whole log."""
    cluster = led_by_1()
    cluster.isolate(3)
    cluster.propose(1, b"y")
    told: list[TimeoutNow] = []
    cluster.watchers.append(lambda m: told.append(m) if isinstance(m, TimeoutNow) else None)
    hand_over(cluster, 3)
    assert told == []
    assert cluster[1].raft.lead_transferee == 3
    cluster.heal()
    cluster.tick(3)
    assert [m.to for m in told] == [3]
    assert cluster[3].raft.role is Role.LEADER
    assert cluster[3].data() == [b"x", b"y"]


def test_transfer_to_oneself_changes_nothing() -> None:
    """The leader stays, and proposals pass."""
    cluster = led_by_1()
    hand_over(cluster, 1)
    assert cluster[1].raft.lead_transferee == NO_REPLICA
    cluster.propose(1, b"y")


@pytest.mark.parametrize("target", [4, 9], ids=["learner", "stranger"])
def test_target_must_be_a_voter(target: int) -> None:
    """Learners and strangers are refused definitely."""
    cluster = Cluster(3, learners=(4,))
    cluster.elect(1)
    with pytest.raises(PreconditionFailed) as caught:
        cluster[1].call("transfer_leadership", ids(target)[0])
    assert caught.value.definite
    assert cluster[1].raft.lead_transferee == NO_REPLICA


def test_transfer_is_given_up_after_an_election_timeout() -> None:
    """If the target does not take over in that time, the leader takes proposals again."""
    cluster = led_by_1()
    cluster.crash(3)
    hand_over(cluster, 3)
    assert cluster[1].raft.lead_transferee == 3
    cluster.tick(ELECTION_TICKS)
    assert cluster[1].raft.lead_transferee == NO_REPLICA
    assert cluster[1].raft.role is Role.LEADER
    cluster.propose(1, b"y")
    assert cluster[1].data() == [b"x", b"y"]


def test_proposals_are_refused_while_leadership_is_handed_over() -> None:
    """Commands and membership changes alike, definitely."""
    cluster = led_by_1()
    cluster.isolate(3)
    hand_over(cluster, 3)
    last = cluster[1].raft.last_index
    for name, argument in (("propose", b"y"), ("propose_configuration", ConfigurationChange(add_learners=ids(4)))):
        with pytest.raises(Unavailable) as caught:
            cluster[1].call(name, argument)
        assert caught.value.definite
    assert cluster[1].raft.last_index == last


def test_newer_term_ends_a_transfer() -> None:
    """A leader that sees a newer term forgets whom it was handing over to."""
    cluster = led_by_1()
    cluster.isolate(3)
    hand_over(cluster, 3)
    cluster[1].deliver(RequestVote(ONE, TWO, Term(9), Index(99), Term(9), transfer=True))
    assert (cluster[1].raft.role, cluster[1].raft.lead_transferee) == (Role.FOLLOWER, NO_REPLICA)


@pytest.mark.parametrize("change", ["remove", "demote"])
def test_target_that_is_no_voter_any_more_ends_the_transfer(change: str) -> None:
    """A change that was on its way when the transfer began must not leave a transferee who cannot lead."""
    # No change can be proposed during a transfer, so one arrives by leaving a joint configuration.
    cluster = led_by_1()
    cluster.add(4)
    how = {"remove": ids(3)} if change == "remove" else {"add_learners": ids(3)}
    held = cluster.hold(lambda m: isinstance(m, AppendReply) and m.from_ in (2, 4))
    cluster.change(1, ConfigurationChange(add_voters=ids(4), **how))
    assert cluster[1].raft.configuration.voters_outgoing == (1, 2, 3)
    with pytest.raises(PreconditionFailed):
        hand_over(cluster, 3)
    cluster.release(held)
    cluster.settle()
    cluster.tick(3)
    assert cluster[1].raft.lead_transferee == NO_REPLICA
    assert 3 not in cluster[1].raft.configuration.voters


def test_leadership_can_be_handed_back() -> None:
    """There and back again, without a tick in between."""
    cluster = led_by_1()
    hand_over(cluster, 2)
    cluster[2].call("transfer_leadership", ONE)
    cluster.settle()
    assert (cluster[1].raft.role, cluster[1].raft.term) == (Role.LEADER, 4)


def test_second_transfer_to_another_supersedes_the_first() -> None:
    """The newer wish counts."""
    cluster = led_by_1()
    cluster.isolate(3)
    hand_over(cluster, 3)
    hand_over(cluster, 2)
    assert cluster[2].raft.role is Role.LEADER


def test_second_transfer_to_the_same_target_does_not_extend_the_time() -> None:
    """Asking again is no reason to wait longer."""
    cluster = led_by_1()
    cluster.isolate(3)
    hand_over(cluster, 3)
    cluster.tick(ELECTION_TICKS // 2)
    hand_over(cluster, 3)
    cluster.tick(ELECTION_TICKS // 2)
    assert cluster[1].raft.lead_transferee == NO_REPLICA


def test_word_to_stand_is_ignored_by_who_may_not() -> None:
    """Learners, strangers, newcomers, and a replica without its state stay followers."""
    for shell in (
        Shell(1, voters=(2, 3), learners=(1,)),
        Shell(1, voters=(2, 3)),
        Shell(1, empty=True),
    ):
        shell.deliver(beat(2, 1, 2))
        shell.deliver(TimeoutNow(ONE, TWO, Term(2)))
        assert (shell.raft.role, shell.raft.term) == (Role.FOLLOWER, 2)
    lost = Shell(1)
    lost.deliver(beat(2, 1, 2))
    lost.call("request_snapshot", Index(1))
    lost.deliver(TimeoutNow(ONE, TWO, Term(2)))
    assert (lost.raft.role, lost.raft.term) == (Role.FOLLOWER, 2)


def test_acknowledgement_of_less_than_everything_does_not_start_the_target() -> None:
    """The target is told to stand when it has the *last* entry, durable."""
    shell = Shell(1).become_leader(acknowledged_by=(2, 3))
    for _ in range(3):
        shell.propose()
    shell.run()
    shell.call("transfer_leadership", TWO)
    assert only(shell.run(), TimeoutNow) == []
    assert only(shell.acknowledge(2, 4), TimeoutNow) == []
    assert [m.to for m in only(shell.acknowledge(2, 5), TimeoutNow)] == [2]


@pytest.mark.parametrize("kill", ["before it is told", "when it is told", "when it has won"])
def test_target_dies_during_the_transfer(kill: str) -> None:
    """Whenever the target dies, the group goes on within an election timeout or two, and loses nothing acknowledged."""
    cluster = led_by_1()
    if kill == "before it is told":
        cluster.isolate(2)
        cluster.propose(1, b"y")
        cluster.crash(2)
        cluster.heal()
        hand_over(cluster, 2)
    elif kill == "when it is told":
        with cluster.dropping(lambda m: isinstance(m, RequestVote)):
            hand_over(cluster, 2)
        cluster.crash(2)
    else:
        hand_over(cluster, 2)
        cluster.crash(2)
    cluster.tick(2 * ELECTION_TICKS)
    leader = cluster.wait_for_leader(ticks_max=5 * ELECTION_TICKS)
    cluster.propose(leader.id, b"z")
    cluster.tick(2)
    assert leader.data()[0] == b"x"
    assert leader.data()[-1] == b"z"
    # If 2 had raised its term before it died, its return costs one more election.
    cluster.restart(2)
    cluster.tick(3)
    cluster.wait_for_leader(ticks_max=5 * ELECTION_TICKS)
    cluster.tick(3)
    cluster.assert_converged()


def test_transfer_works_with_every_setting() -> None:
    """With and without pre-vote and check-quorum."""
    for pre_vote in (True, False):
        for check_quorum in (True, False):
            cluster = led_by_1(pre_vote=pre_vote, check_quorum=check_quorum)
            hand_over(cluster, 3)
            assert cluster[3].raft.role is Role.LEADER
            assert entry(1, 1).index == 1


def test_entries_appended_before_the_transfer_are_committed_by_the_target() -> None:
    """What the old leader had accepted when it was asked to go is in the new leader's log."""
    cluster = led_by_1()
    with cluster.dropping(lambda m: isinstance(m, AppendReply)):
        cluster.propose(1, b"y")
    with cluster.dropping(lambda m: isinstance(m, Append) and m.to == 3):
        hand_over(cluster, 2)
        cluster.tick(3)
    cluster.tick_until(lambda: cluster[2].raft.role is Role.LEADER, ticks_max=2 * ELECTION_TICKS)
    cluster.tick(2)
    assert cluster[2].data() == [b"x", b"y"]
