"""Membership: one change at a time, joint where more than one voter changes, in force when appended."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.errors import NotLeader, PreconditionFailed
from raftcache.ids import Index, ReplicaId, Term
from raftcache.raft.configuration import (
    ConfigurationChange,
    change_configuration,
    decode_configuration,
    encode_configuration,
    leave_joint,
)
from raftcache.raft.messages import (
    Append,
    AppendReply,
    Configuration,
    Entry,
    EntryKind,
    Heartbeat,
    InstallSnapshot,
    RequestVote,
    Role,
    VoteReply,
)
from raftcache.raft.progress import ProgressState
from tests.raft.cluster import ELECTION_TICKS, Cluster, Shell, entry, ids, only

ONE, TWO, THREE, FOUR, FIVE = ids(1, 2, 3, 4, 5)


def adding(*voters: int) -> ConfigurationChange:
    """These become voters."""
    return ConfigurationChange(add_voters=ids(*voters))


def learning(*learners: int) -> ConfigurationChange:
    """These become learners."""
    return ConfigurationChange(add_learners=ids(*learners))


def removing(*members: int) -> ConfigurationChange:
    """These leave."""
    return ConfigurationChange(remove=ids(*members))


def configuration_entry(term: int, index: int, configuration: Configuration) -> Entry:
    """A configuration in the log."""
    return Entry(Term(term), Index(index), EntryKind.CONFIGURATION, encode_configuration(configuration))


def test_change_is_in_force_when_it_is_appended() -> None:
    """The proposer acts under it at once, a follower from the append on, committed or not."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.isolate(3)
    cluster[1].call("propose_configuration", adding(4))
    assert cluster[1].raft.configuration.voters == (1, 2, 3, 4)
    assert FOUR in cluster[1].raft.progress
    cluster.settle()
    assert cluster[1].raft.commit == 2
    assert cluster[2].raft.configuration.voters == (1, 2, 3, 4)
    assert cluster[3].raft.configuration.voters == (1, 2, 3)


def test_second_change_is_refused_while_one_is_uncommitted() -> None:
    """The refusal is definite and appends nothing; once the first is committed the second passes."""
    shell = Shell(1).become_leader(acknowledged_by=(2,))
    shell.call("propose_configuration", learning(4))
    shell.run()
    last = shell.raft.last_index
    with pytest.raises(PreconditionFailed) as caught:
        shell.call("propose_configuration", learning(5))
    assert caught.value.definite
    assert shell.raft.last_index == last
    shell.acknowledge(2)
    shell.call("propose_configuration", learning(5))
    assert shell.raft.configuration.learners == (4, 5)


def test_new_leader_refuses_changes_before_its_first_commit() -> None:
    """Changes of an earlier leader may be in the log or in somebody else's: no change before an own entry is committed."""
    change_in_log = configuration_entry(1, 2, Configuration(voters=ids(1, 2, 3), learners=ids(4)))
    for entries in ([], [change_in_log]):
        shell = Shell(1, entries=entries).become_leader()
        with pytest.raises(PreconditionFailed):
            shell.call("propose_configuration", learning(5))
        shell.acknowledge(2)
        shell.call("propose_configuration", learning(5))


def test_followers_cannot_change_the_configuration() -> None:
    """Only the leader proposes."""
    with pytest.raises(NotLeader):
        Shell(1).call("propose_configuration", learning(4))


@pytest.mark.parametrize(
    "change",
    [
        ConfigurationChange(),
        adding(1),
        removing(9),
        removing(1, 2, 3),
        ConfigurationChange(add_voters=ids(4), remove=ids(4)),
        ConfigurationChange(add_voters=ids(4), add_learners=ids(4)),
        learning(1, 2, 3),
        adding(0),
    ],
    ids=str,
)
def test_senseless_changes_are_refused(change: ConfigurationChange) -> None:
    """Nothing changed, members named twice or unknown, no voter left, nobody: refused definitely, nothing appended."""
    shell = Shell(1).become_leader(acknowledged_by=(2,))
    last = shell.raft.last_index
    with pytest.raises(PreconditionFailed):
        shell.call("propose_configuration", change)
    assert shell.raft.last_index == last


def test_added_voter_counts_and_catches_up() -> None:
    """A new voter gets log and state, and from then on its disk counts."""
    cluster = Cluster(1)
    cluster.elect(1)
    cluster.propose(1, b"x")
    cluster.add(2)
    cluster.change(1, adding(2))
    cluster.tick(3)
    cluster.assert_converged()
    cluster.crash(2)
    index = cluster.propose(1, b"y")
    assert cluster[1].raft.commit == index - 1


def test_newcomer_is_probed_at_once() -> None:
    """The first message to a new member leaves with the change, not at the next heartbeat."""
    shell = Shell(1).become_leader(acknowledged_by=(2, 3))
    shell.call("propose_configuration", adding(4))
    assert only(shell.run(), Append, to=4) != []
    assert shell.raft.progress[FOUR].state is ProgressState.PROBE


def test_added_learner_counts_for_nothing() -> None:
    """A learner is replicated to; neither elections nor commits depend on it."""
    cluster = Cluster(2, learners=(3, 4, 5))
    cluster.elect(1)
    cluster.propose(1, b"x")
    cluster.assert_converged()
    cluster.crash(2)
    index = cluster.propose(1, b"y")
    assert cluster[1].raft.commit < index
    cluster.restart(2)
    cluster.crash(3, 4, 5)
    cluster.tick(2)
    assert cluster[1].raft.commit == index


def test_newcomer_counts_as_active_at_first() -> None:
    """A new voter that has not answered yet does not make the quorum check fail right away."""
    shell = Shell(1, voters=(1,)).become_leader()
    shell.call("propose_configuration", adding(2))
    shell.run()
    shell.tick(ELECTION_TICKS)
    shell.run()
    assert shell.raft.role is Role.LEADER
    shell.tick(2 * ELECTION_TICKS)
    assert shell.raft.role is not Role.LEADER


def test_removed_member_is_forgotten() -> None:
    """It is no longer sent anything, nor counted; its late messages change nothing."""
    shell = Shell(1).become_leader(acknowledged_by=(2, 3))
    shell.call("propose_configuration", removing(3))
    shell.run()
    assert THREE not in shell.raft.progress
    shell.propose()
    shell.tick()
    sent = shell.run()
    assert [m for m in sent if m.to == 3] == []
    shell.deliver(AppendReply(ONE, THREE, Term(2), shell.raft.last_index))
    assert shell.raft.commit == 2
    shell.acknowledge(2)
    assert shell.raft.commit == shell.raft.last_index


def test_removed_learner_is_forgotten() -> None:
    """The same for a learner, without any effect on quorums."""
    shell = Shell(1, voters=(1, 2), learners=(3,)).become_leader(acknowledged_by=(2,))
    shell.call("propose_configuration", removing(3))
    assert shell.raft.configuration == Configuration(voters=ids(1, 2))
    shell.run()
    assert THREE not in shell.raft.progress


def test_last_voter_cannot_be_removed() -> None:
    """A group never ends without voters."""
    shell = Shell(1, voters=(1,), learners=(2,)).become_leader()
    with pytest.raises(PreconditionFailed):
        shell.call("propose_configuration", removing(1))


@pytest.mark.parametrize(
    ("voters", "learners", "promotable"),
    [((1,), (), True), ((1, 2, 3), (), True), ((2, 3), (), False), ((2, 3), (1,), False), ((), (), False)],
    ids=str,
)
def test_only_voters_campaign(voters: tuple[int, ...], learners: tuple[int, ...], promotable: bool) -> None:
    """Learners, strangers and newcomers never stand, neither by timeout nor when told to."""
    shell = Shell(1, voters=voters, learners=learners, empty=not voters, pre_vote=False)
    assert shell.raft.promotable() is promotable
    shell.tick(3 * ELECTION_TICKS)
    shell.call("campaign")
    assert (shell.raft.role is not Role.FOLLOWER) is promotable


def test_members_are_visited_in_ascending_order() -> None:
    """Messages to members leave in the order of their ids, so runs can be repeated."""
    shell = Shell(3, voters=(5, 3, 9, 1, 7), check_quorum=False).become_leader()
    shell.tick()
    assert [m.to for m in only(shell.run(), Heartbeat)] == [1, 5, 7, 9]
    assert list(shell.raft.progress) == [1, 3, 5, 7, 9]


def test_uncommitted_change_goes_with_its_entry() -> None:
    """When another leader overwrites the entry, the configuration before it is in force again."""
    shell = Shell(1)
    four = Configuration(voters=ids(1, 2, 3, 4))
    shell.deliver(Append(ONE, TWO, Term(2), Index(1), Term(1), Index(1), [configuration_entry(2, 2, four)]))
    assert (shell.raft.configuration, shell.raft.configuration_index) == (four, 2)
    shell.deliver(Append(ONE, THREE, Term(3), Index(1), Term(1), Index(1), [entry(3, 2)]))
    assert shell.raft.configuration == Configuration(voters=ids(1, 2, 3))
    assert shell.raft.configuration_index == 1


def test_restart_acts_under_the_last_configuration_of_the_log() -> None:
    """After a crash the configuration comes back from checkpoint and log, uncommitted entries included."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick()
    cluster.isolate(3)
    cluster.crash(2)
    cluster[1].call("propose_configuration", adding(4))
    cluster.settle()
    cluster.crash(1)
    cluster.restart(1)
    assert cluster[1].raft.configuration.voters == (1, 2, 3, 4)
    assert cluster[1].raft.commit < cluster[1].raft.configuration_index


def test_joint_change_needs_both_majorities_to_commit_and_to_elect() -> None:
    """Between C_old,new and C_new neither half decides alone."""
    joint = Configuration(voters=ids(1, 4, 5), voters_outgoing=ids(1, 2, 3))
    shell = Shell(1, configuration=joint, pre_vote=False)
    shell.call("campaign")
    assert [m.to for m in only(shell.run(), RequestVote)] == [2, 3, 4, 5]
    shell.deliver(VoteReply(ONE, FOUR, Term(2), granted=True), VoteReply(ONE, FIVE, Term(2), granted=True))
    assert shell.raft.role is Role.CANDIDATE
    shell.deliver(VoteReply(ONE, TWO, Term(2), granted=True))
    assert shell.raft.role is Role.LEADER
    index = shell.raft.last_index
    shell.acknowledge(4, index)
    shell.acknowledge(5, index)
    assert shell.raft.commit < index
    shell.acknowledge(3, index)
    assert shell.raft.commit >= index


def test_joint_configuration_is_lost_in_either_half() -> None:
    """An election that one half refuses is lost, whatever the other says."""
    joint = Configuration(voters=ids(1, 4, 5), voters_outgoing=ids(1, 2, 3))
    shell = Shell(1, configuration=joint, pre_vote=False).become_candidate()
    shell.deliver(
        VoteReply(ONE, FOUR, Term(2), granted=True),
        VoteReply(ONE, TWO, Term(2), granted=False),
        VoteReply(ONE, THREE, Term(2), granted=False),
    )
    assert shell.raft.role is Role.FOLLOWER


def test_joint_configuration_is_left_on_its_own() -> None:
    """When the joint entry is committed the leader appends the incoming half alone; staged learners become learners."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.add(4)
    cluster.change(1, ConfigurationChange(add_voters=ids(4), add_learners=ids(3)))
    cluster.tick(3)
    expected = Configuration(voters=ids(1, 2, 4), learners=ids(3))
    assert [cluster[n].raft.configuration for n in (1, 2, 3, 4)] == [expected] * 4


@pytest.mark.parametrize("moment", ["joint entry not replicated", "joint entry committed", "C_new appended"])
def test_leader_crash_between_the_two_configurations(moment: str) -> None:
    """Whenever the leader dies, its successor finishes the change, or it is gone as if it had never been."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick()
    cluster.add(4)
    cluster.add(5)
    change = ConfigurationChange(add_voters=ids(4, 5), remove=ids(2, 3))
    if moment == "joint entry not replicated":
        cluster.isolate(1)
        cluster[1].call("propose_configuration", change)
        cluster.settle()
    elif moment == "joint entry committed":
        # C_new is lost on its way.
        def is_left(configuration: Configuration) -> bool:
            return configuration.voters == (1, 4, 5) and not configuration.voters_outgoing

        with cluster.dropping(
            lambda m: (
                isinstance(m, Append)
                and any(e.kind is EntryKind.CONFIGURATION and is_left(decode_configuration(e.data)) for e in m.entries)
            )
        ):
            cluster[1].call("propose_configuration", change)
            cluster.settle()
            cluster.crash(1)
    else:
        cluster[1].call("propose_configuration", change)
        cluster.settle()
    if cluster[1].running:
        cluster.crash(1)
    cluster.heal()
    leader = cluster.wait_for_leader()
    cluster.restart(1)
    cluster.tick(5)
    leader = cluster.leader()
    expected = (1, 2, 3) if moment == "joint entry not replicated" else (1, 4, 5)
    assert leader.raft.configuration == Configuration(voters=ids(*expected))
    cluster.propose(leader.id, b"x")
    for number in expected:
        assert cluster[number].data() == [b"x"]


def test_learner_does_not_campaign_until_promoted() -> None:
    """Time alone makes no candidate of a learner; its promotion does."""
    cluster = Cluster(2, learners=(3,), pre_vote=False)
    cluster.elect(1)
    cluster.tick()
    cluster.isolate(3)
    cluster.tick(5 * ELECTION_TICKS, only=3)
    assert cluster[3].raft.role is Role.FOLLOWER
    cluster.heal()
    cluster.tick(2)
    cluster.change(1, adding(3))
    cluster.tick(2)
    cluster.crash(1)
    cluster.lose_patience(2)
    cluster[3].call("campaign")
    cluster.settle()
    assert cluster[3].raft.role is Role.LEADER


def test_learner_votes_when_asked() -> None:
    """A learner may be a voter already and not know it; its vote, if asked for, is given by the rules."""
    shell = Shell(1, voters=(2, 3), learners=(1,))
    replies = only(shell.deliver(RequestVote(ONE, TWO, Term(2), Index(1), Term(1))), VoteReply)
    assert [r.granted for r in replies] == [True]


def test_promoted_learner_that_does_not_know_is_needed_to_elect() -> None:
    """The leader promotes the learner and dies before the learner hears: its vote is needed, and it gives it."""
    cluster = Cluster(2, learners=(3,))
    cluster.elect(1)
    cluster.tick()
    cluster.isolate(3)
    cluster.change(1, adding(3))
    assert cluster[3].raft.configuration.voters == (1, 2)
    cluster.crash(1)
    cluster.heal()
    leader = cluster.wait_for_leader(ticks_max=20 * ELECTION_TICKS)
    assert leader.id == 2
    cluster.tick(3)
    assert cluster[3].raft.configuration.voters == (1, 2, 3)


def test_learner_can_be_asked_for_nothing_it_lacks() -> None:
    """A learner that is promoted is known with what it has acknowledged before, not anew."""
    shell = Shell(1, voters=(1, 2), learners=(3,)).become_leader(acknowledged_by=(2, 3))
    match = shell.raft.progress[THREE].match
    shell.call("propose_configuration", adding(3))
    assert shell.raft.progress[THREE].match == match == 2


def test_demoted_voter_becomes_a_learner() -> None:
    """One voter less, one learner more, and its acknowledgements no longer count."""
    shell = Shell(1).become_leader(acknowledged_by=(2, 3))
    shell.call("propose_configuration", learning(3))
    shell.run()
    shell.acknowledge(3)
    assert shell.raft.commit == 2
    shell.acknowledge(2)
    assert shell.raft.commit == 3
    assert shell.raft.configuration == Configuration(voters=ids(1, 2), learners=ids(3))


def test_removed_leader_does_not_count_itself_and_steps_down() -> None:
    """From the append of its own removal on the leader's disk does not count; when it is committed, it is no leader."""
    shell = Shell(1, voters=(1, 2, 3, 4)).become_leader(acknowledged_by=(2, 3, 4))
    shell.call("propose_configuration", removing(1))
    shell.run()
    index = shell.raft.last_index
    shell.acknowledge(2)
    assert shell.raft.commit < index  # 1 and 2 would be two of four; but only 2, 3 and 4 count
    assert shell.raft.role is Role.LEADER
    sent = shell.acknowledge(3)
    assert shell.raft.commit == index
    assert shell.raft.role is Role.FOLLOWER
    # The others learn of the commit before it goes.
    assert {a.to for a in only(sent, Append) if a.commit == index} >= {2, 3}
    shell.tick(5 * ELECTION_TICKS)
    assert shell.raft.role is Role.FOLLOWER


def test_demoted_leader_steps_down_too() -> None:
    """A leader that becomes a learner goes the same way."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick()
    cluster.change(1, learning(1))
    cluster.tick(2)
    assert cluster[1].raft.role is Role.FOLLOWER
    cluster.wait_for_leader(among=(2, 3))
    cluster.tick(2)
    assert cluster[1].raft.configuration == Configuration(voters=ids(2, 3), learners=ids(1))
    cluster.assert_converged()


def test_replica_outside_its_uncommitted_configuration_may_still_campaign() -> None:
    """As long as its removal is uncommitted it may be the only one whose log is complete; it wins by the others' votes."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick()
    cluster.isolate(3)
    cluster[1].call("propose_configuration", removing(2))
    cluster.settle()
    # 2 has the entry of its own removal; 3 does not. 1 dies. 2 leads with the votes of 3 (and 1, if it were there).
    cluster.crash(1)
    cluster.heal()
    cluster.restart(1)
    leader = cluster.wait_for_leader()
    cluster.tick(3)
    assert cluster.leader().raft.configuration.voters == (1, 3)
    assert leader.id in (1, 2, 3)
    assert cluster.wait_for_leader().id in (1, 3)


CHANGES = st.lists(
    st.tuples(st.sets(st.integers(1, 7)), st.sets(st.integers(1, 7)), st.sets(st.integers(1, 7))), max_size=6
)


@settings(max_examples=80, deadline=None)
@given(CHANGES)
def test_any_change_reaches_what_a_plain_reading_says(sequence: list[tuple[set[int], set[int], set[int]]]) -> None:
    """Random changes, simple and joint, against sets; and every configuration on the way survives its own bytes."""
    configuration = Configuration(voters=ids(1, 2, 3))
    voters, learners = {1, 2, 3}, set[int]()
    for add, learn, remove in sequence:
        change = ConfigurationChange(ids(*add), ids(*learn), ids(*remove))
        try:
            after = change_configuration(configuration, change)
        except PreconditionFailed:
            continue
        voters = (voters | add) - learn - remove
        learners = (learners | learn) - add - remove
        if after.voters_outgoing:
            # Joint only where needed, and neither half forgets anybody.
            assert len(set(after.voters) ^ set(configuration.voters)) > 1
            assert after.voters_outgoing == configuration.voters
            assert set(after.voters) == voters
            assert decode_configuration(encode_configuration(after)) == after
            after = leave_joint(after)
        assert (set(after.voters), set(after.learners)) == (voters, learners)
        assert decode_configuration(encode_configuration(after)) == after
        configuration = after


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(1, 7), min_size=1), st.sets(st.integers(1, 7), min_size=1))
def test_joint_way_and_single_steps_end_the_same(start: set[int], end: set[int]) -> None:
    """From any voters to any others: in one joint change, or voter by voter."""
    configuration = Configuration(voters=ids(*start))
    change = ConfigurationChange(ids(*(end - start)), (), ids(*(start - end)))
    if end == start:
        return
    direct = change_configuration(configuration, change)
    if direct.voters_outgoing:
        direct = leave_joint(direct)
    steps = [("add", n) for n in sorted(end - start)] + [("remove", n) for n in sorted(start - end)]
    for verb, number in steps:
        configuration = change_configuration(configuration, adding(number) if verb == "add" else removing(number))
        assert not configuration.voters_outgoing
    assert configuration == direct


def test_replacing_all_members_under_load_loses_nothing() -> None:
    """From {1,2,3} to {4,5,6} by joint change, with proposals all the way and one crash of the leader."""
    cluster = Cluster(3, seed=5)
    cluster.elect(1)
    generator = random.Random(5)
    for number in (4, 5, 6):
        cluster.add(number)
    cluster.change(1, learning(4, 5, 6))
    written = []
    for number in range(30):
        leader = cluster.wait_for_leader()
        data = b"%d" % number
        cluster.propose(leader.id, data)
        written.append(data)
        if number == 10:
            cluster.change(leader.id, ConfigurationChange(add_voters=ids(4, 5, 6), remove=ids(1, 2, 3)))
        if number == 20:
            cluster.crash(leader.id)
            cluster.wait_for_leader(ticks_max=100)
            cluster.restart(leader.id)
        cluster.tick(generator.randrange(3))
    cluster.tick(5)
    leader = cluster.leader()
    assert leader.raft.configuration == Configuration(voters=ids(4, 5, 6))
    assert [cluster[n].data() for n in (4, 5, 6)] == [written] * 3


def test_snapshot_for_a_newcomer_carries_the_configuration() -> None:
    """A blank replica learns who the members are by the snapshot, before any entry."""
    cluster = Cluster(3)
    cluster.elect(1)
    seen: list[InstallSnapshot] = []
    cluster.watchers.append(lambda m: seen.append(m) if isinstance(m, InstallSnapshot) else None)
    cluster.add(4)
    cluster.change(1, learning(4))
    assert [(m.to, m.meta.configuration.voters) for m in seen] == [(4, (1, 2, 3))]
    assert cluster[4].raft.configuration.learners == (ReplicaId(4),)
