"""Known ways to get Raft wrong, one named test each (as far as the core decides; `docs/properties.md` maps the others).

The numbers are those of the project's list of pitfalls. Each test stages the failure that the pitfall is known for and
shows that it does not happen; where a *shell* could spoil what the core does right, a second test lets it, and the
invariants must notice (a canary).
"""

import itertools
import random
import subprocess
import sys
from collections.abc import Sequence

import pytest

from raftcache.errors import Overloaded, PreconditionFailed
from raftcache.ids import NO_REPLICA, Index, ReplicaId, Term
from raftcache.raft.configuration import ConfigurationChange, encode_configuration
from raftcache.raft.messages import (
    Append,
    AppendReply,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    ReadIndexReply,
    RequestVote,
    Role,
    TimeoutNow,
    VoteReply,
)
from tests.raft.cluster import ELECTION_TICKS, Cluster, Shell, beat, entry, ids, only
from tests.raft.invariants import InvariantViolated

ONE, TWO, THREE, FOUR = ids(1, 2, 3, 4)


def adding(*voters: int) -> ConfigurationChange:
    """These become voters."""
    return ConfigurationChange(add_voters=ids(*voters))


def removing(*voters: int) -> ConfigurationChange:
    """These leave."""
    return ConfigurationChange(remove=ids(*voters))


# --- Membership ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("voters", "first", "second"),
    [(4, adding(5), removing(2)), (4, adding(5), adding(6)), (4, removing(1), removing(2))],
    ids=["add and remove", "two additions", "two removals"],
)
def test_pitfall_01_interleaved_changes_of_two_leaders(
    voters: int, first: ConfigurationChange, second: ConfigurationChange
) -> None:
    """Ongaro's three schedules (2015): leader 1 appends a change that stays alone with it, leader 2 makes another, 1 is back.

    Without a committed entry of the own term the two configurations could have majorities that do not meet. The second
    leader has such an entry on a majority of the common configuration, so the first cannot come back with its own.
    """
    cluster = Cluster(voters)
    cluster.elect(1)
    cluster.tick()
    for number in (5, 6):
        cluster.add(number)
    # 1 appends its change; beside a newcomer nobody hears of it.
    for other in range(2, voters + 1):
        cluster.cut(1, other)
    cluster[1].call("propose_configuration", first)
    cluster.settle()
    cluster.lose_patience(*range(3, voters + 1))
    with cluster.dropping(lambda m: isinstance(m, AppendReply) and m.to == 2):
        cluster.elect(2)
        with pytest.raises(PreconditionFailed):
            cluster[2].call("propose_configuration", second)
    cluster.tick(2)
    cluster[2].call("propose_configuration", second)
    cluster.settle()
    # 1 is back, with its change and whoever it added; 2 is gone. Safety is watched by the ghost.
    cluster.isolate(2)
    for pair in itertools.permutations([1, *range(3, voters + 1)], 2):
        cluster.cut_links.discard((ReplicaId(pair[0]), ReplicaId(pair[1])))
    for _ in range(3):
        cluster[1].call("campaign")
        cluster.settle()
        cluster.tick(ELECTION_TICKS)
    cluster.heal()
    cluster.wait_for_leader()
    cluster.tick(5)
    leader = cluster.leader()
    configurations = {cluster[member].raft.configuration for member in leader.raft.configuration.voters}
    assert configurations == {leader.raft.configuration}


def test_pitfall_02_second_change_while_one_is_uncommitted() -> None:
    """Two changes back to back: the second is refused, in simple and in joint configurations, by old and new leaders."""
    shell = Shell(1).become_leader(acknowledged_by=(2,))
    shell.call("propose_configuration", ConfigurationChange(add_voters=ids(4, 5)))
    for change in (adding(6), removing(3)):
        with pytest.raises(PreconditionFailed):
            shell.call("propose_configuration", change)
    shell.run()
    # Also while the joint configuration is committed and the way out of it is not.
    for peer in (2, 4, 5):
        shell.acknowledge(peer, 3)
    assert shell.raft.configuration.voters_outgoing == ()
    with pytest.raises(PreconditionFailed):
        shell.call("propose_configuration", removing(3))


def test_pitfall_03_joint_configuration_outlives_its_leader() -> None:
    """The leader dies between the joint entry and the next: both majorities elect the successor, which leaves it."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick()
    for number in (4, 5, 6):
        cluster.add(number)
    is_new = encode_configuration(Configuration(voters=ids(4, 5, 6)))
    with cluster.dropping(lambda m: isinstance(m, Append) and any(e.data == is_new for e in m.entries)):
        cluster[1].call("propose_configuration", ConfigurationChange(add_voters=ids(4, 5, 6), remove=ids(1, 2, 3)))
        cluster.settle()
    cluster.crash(1)
    # Neither half alone elects anybody.
    cluster.split((2, 3), (4, 5, 6))
    cluster.tick(5 * ELECTION_TICKS)
    assert cluster.leaders() == []
    cluster.heal()
    cluster.wait_for_leader()
    cluster.tick(5)
    leader = cluster.wait_for_leader()
    assert leader.raft.configuration == Configuration(voters=ids(4, 5, 6))


def test_pitfall_04_slow_apply_does_not_delay_a_configuration() -> None:
    """Followers that apply nothing act under an appended removal all the same: no second leader by the old majority."""
    cluster = Cluster(4)
    cluster.elect(1)
    cluster.tick()
    for number in (2, 3, 4):
        cluster[number].apply_stalled = True
    cluster.change(1, removing(4))
    cluster.change(1, removing(3))
    assert [cluster[n].raft.configuration.voters for n in (1, 2)] == [(1, 2)] * 2
    # 3 and 4 know of at least their own removal or the one before; together they are no majority of anything.
    cluster.split((1, 2), (3, 4))
    cluster.tick(10 * ELECTION_TICKS)
    assert [shell.id for shell in cluster.leaders()] == [1]


def test_pitfall_04_truncated_configuration_is_rolled_back() -> None:
    """Append-time configurations go when their entry goes, at a leader that lost its majority and at its follower."""
    cluster = Cluster(5)
    cluster.elect(1)
    cluster.tick()
    cluster.split((1, 2), (3, 4, 5))
    cluster[1].call("propose_configuration", removing(5))
    cluster.settle()
    assert cluster[2].raft.configuration.voters == (1, 2, 3, 4)
    cluster.elect(3)
    cluster.heal()
    cluster.tick(3)
    assert {cluster[n].raft.configuration.voters for n in range(1, 6)} == {(1, 2, 3, 4, 5)}


def test_pitfall_05_shrinking_with_the_removed_member_dead() -> None:
    """3 -> 2 -> 1 with the member dead at each step: the removal itself needs only the members that remain."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick()
    cluster.crash(3)
    cluster.change(1, removing(3))
    cluster.crash(2)
    cluster.change(1, removing(2))
    assert cluster[1].raft.configuration.voters == (1,)
    index = cluster.propose(1, b"x")
    assert cluster[1].raft.commit == index


@pytest.mark.parametrize("knows", [True, False], ids=["knows of its removal", "does not know"])
def test_pitfall_06_removed_replica_disrupts_nobody(knows: bool) -> None:
    """It runs on for ten election timeouts; leader and term of the group stay."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick()
    if not knows:
        cluster.isolate(3)
    cluster.change(1, removing(3))
    cluster.heal()
    cluster.tick(10 * ELECTION_TICKS)
    assert [(shell.id, shell.raft.term) for shell in cluster.leaders()] == [(1, 2)]
    assert cluster[2].raft.term == 2


def test_pitfall_07_removed_leader_does_not_count_itself() -> None:
    """Of {1,2,3,4} without 1 three remain: 1's own disk and one follower's are no majority; then 1 steps down."""
    cluster = Cluster(4)
    cluster.elect(1)
    cluster.tick()
    cluster.isolate(3, 4)
    cluster.change(1, removing(1))
    assert cluster[1].raft.commit == 2
    cluster.heal()
    cluster.tick(3)
    assert cluster[1].raft.role is Role.FOLLOWER
    assert cluster.wait_for_leader().id in (2, 3, 4)


# --- Elections ----------------------------------------------------------------------------------------------------------


def test_pitfall_08_isolated_follower_does_not_raise_the_term() -> None:
    """Thirty election timeouts alone, then back: the term has not moved."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick()
    cluster.isolate(3)
    cluster.tick(30 * ELECTION_TICKS)
    cluster.heal()
    cluster.tick(3 * ELECTION_TICKS)
    assert [(shell.id, shell.raft.term) for shell in cluster.leaders()] == [(1, 2)]


@pytest.mark.parametrize("pre_votes", list(itertools.product([True, False], repeat=2)), ids=str)
def test_pitfall_09_lower_term_and_longer_log_against_higher_term(pre_votes: Sequence[bool]) -> None:
    """Of two survivors one has the log and the other the term: they elect within ten timeouts, whatever their settings."""
    for seed in range(5):
        cluster = Cluster(3, seed=seed, logs={1: (2, 2), 2: ()}, terms={1: 2, 2: 9, 3: 9}, check_quorum=True)
        cluster.crash(3)
        for number, pre_vote in zip((1, 2), pre_votes, strict=True):
            cluster.crash(number)
            cluster[number].options["pre_vote"] = pre_vote
        cluster.restart(1, 2)
        assert cluster.wait_for_leader(ticks_max=10 * ELECTION_TICKS).id == 1


def test_pitfall_10_bridge_partition_does_not_stop_the_group() -> None:
    """{1,2,3} connected, 4 only to 2, 5 only to 3, leader on the edge: progress within twenty timeouts, and no livelock."""
    cluster = Cluster(5)
    cluster.elect(5)
    cluster.tick()
    for left, right in ((4, 1), (4, 3), (4, 5), (5, 1), (5, 2)):
        cluster.cut(left, right)
    leader = cluster.wait_for_leader(ticks_max=20 * ELECTION_TICKS, among=(1, 2, 3))
    cluster.tick(2 * ELECTION_TICKS)
    assert cluster[5].raft.role is not Role.LEADER
    index = cluster.propose(leader.id, b"x")
    assert leader.raft.commit == index


@pytest.mark.parametrize("pre", [True, False], ids=["pre-vote", "vote"])
@pytest.mark.parametrize("transfer", [True, False])
def test_pitfall_11_leader_cannot_be_stolen_while_it_is_heard(pre: bool, transfer: bool) -> None:
    """Whoever heard the leader within an election timeout refuses both kinds of vote, but for the leader's own wish."""
    shell = Shell(1)
    shell.deliver(beat(2, 1, 2))
    shell.tick(ELECTION_TICKS - 1)
    message = RequestVote(ONE, THREE, Term(3), Index(9), Term(2), pre=pre, transfer=transfer)
    granted = [reply.granted for reply in only(shell.deliver(message), VoteReply)]
    assert granted == ([True] if transfer else [])


@pytest.mark.parametrize("step", ["caught up", "told", "voted", "won"])
def test_pitfall_12_transfer_survives_the_death_of_its_target(step: str) -> None:
    """The target dies at each step; within an election timeout (plus an election) proposals pass again, nothing is lost."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1, b"x")
    cluster.tick()
    kinds = {"caught up": TimeoutNow, "told": RequestVote, "voted": VoteReply, "won": Append}
    with cluster.dropping(lambda m: isinstance(m, kinds[step])):
        cluster[1].call("transfer_leadership", TWO)
        cluster.settle()
    cluster.crash(2)
    leader = cluster.wait_for_leader(ticks_max=5 * ELECTION_TICKS)
    cluster.tick(ELECTION_TICKS)
    leader = cluster.wait_for_leader(ticks_max=5 * ELECTION_TICKS)
    cluster.propose(leader.id, b"y")
    assert leader.data() == [b"x", b"y"]


# --- Reads --------------------------------------------------------------------------------------------------------------


def test_pitfall_13_read_waits_for_the_first_commit_of_the_term() -> None:
    """A new leader whose commit index is behind the group's serves no read until it knows better."""
    cluster = Cluster(3)
    cluster.elect(1)
    # 2 has the entry, but does not know that it is committed.
    with cluster.dropping(lambda m: isinstance(m, Append) and not m.entries and m.to == 2):
        index = cluster.propose(1, b"x")
    cluster.crash(1)
    assert cluster[2].raft.commit < index
    with cluster.dropping(lambda m: isinstance(m, AppendReply)):
        cluster.elect(2)
        context = cluster.read(2)
        cluster.tick(3)
        assert cluster[2].read_states == []
    cluster.tick(3)
    assert [(s.context, s.index > index) for s in cluster[2].read_states] == [(context, True)]


def test_pitfall_14_reads_do_not_survive_a_change_of_leader() -> None:
    """A paused leader with a pending read: by the time it resumes another has written; its read fails or is fresh."""
    cluster = Cluster(3, check_quorum=False)
    cluster.elect(1)
    cluster.tick()
    held = cluster.hold(lambda m: isinstance(m, (Heartbeat, HeartbeatReply)))
    context = cluster.read(1)
    cluster.isolate(1)
    cluster.elect(3)
    cluster.propose(3, b"new")
    # Retried at the new leader under the same number: the answers are of different positions and must not mix.
    cluster[3].read(context)
    cluster.settle()
    cluster.heal()
    cluster.release(held)
    cluster.settle()
    cluster.tick(2)
    assert cluster[1].read_states == []
    assert cluster[1].reads_dropped == [context]
    assert [s.index for s in cluster[3].read_states] == [cluster[3].raft.commit]


def test_pitfall_14_late_answer_does_not_meet_a_new_question() -> None:
    """A follower's read is retried in the next term; the old leader's answer, delayed, matches nothing."""
    cluster = Cluster(3, check_quorum=False)
    cluster.elect(1)
    cluster.tick()
    held = cluster.hold(lambda m: isinstance(m, ReadIndexReply))
    context = cluster.read(3)
    cluster.isolate(1)
    cluster.elect(2)
    cluster.propose(2, b"new")
    stale = list(held.messages)
    cluster[3].read(context)
    cluster.release(held)
    cluster.settle()
    for message in stale:
        assert isinstance(message, ReadIndexReply)
        # The same reply again, as if its term were the present one.
        cluster[3].deliver(ReadIndexReply(THREE, TWO, cluster[3].raft.term, message.context, message.index))
    assert [s.index for s in cluster[3].read_states] == [cluster[2].raft.commit]


def test_pitfall_15_read_index_may_be_ahead_of_apply() -> None:
    """A slow state machine has not reached the read index: the shell is given the index and must wait for it."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster[3].apply_stalled = True
    for number in range(5):
        cluster.propose(1, b"%d" % number)
    cluster.read(3)
    state = cluster[3].read_states[0]
    assert state.index == 7 > cluster[3].raft.applied


def test_pitfall_16_leases_are_off_and_end_before_anyone_else_leads() -> None:
    """Without the setting there is never a lease; with it, in ticks, none overlaps the next leader's time."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick(5)
    assert not cluster[1].raft.lease_holds()
    for seed in range(5):
        cluster = Cluster(3, seed=seed, lease_reads=True)
        old = cluster.wait_for_leader()
        cluster.tick(3)
        cluster.isolate(old.id)
        others = [shell for shell in cluster.shells if shell is not old]
        for _ in range(5 * ELECTION_TICKS):
            # The others' clocks may be a tick ahead within each step.
            for shell in [*others, old]:
                shell.tick()
                cluster.settle()
            assert not (old.raft.lease_holds() and any(s.raft.role is Role.LEADER for s in others))


def test_pitfall_17_superseded_leader_serves_nothing() -> None:
    """In a partition the old leader's read waits for ever, or until it knows that it was superseded."""
    cluster = Cluster(5, check_quorum=False)
    cluster.elect(1)
    cluster.tick()
    cluster.split((1, 2), (3, 4, 5))
    cluster.elect(3)
    cluster.propose(3, b"new")
    context = cluster.read(1)
    from_follower = cluster.read(2)
    cluster.tick(5 * ELECTION_TICKS)
    assert cluster[1].read_states == []
    assert cluster[2].read_states == []
    cluster.heal()
    cluster.tick(2)
    assert cluster[1].reads_dropped == [context]
    assert cluster[2].reads_dropped == [from_follower]


# --- Replication and disks ----------------------------------------------------------------------------------------------


def test_pitfall_18_old_entries_are_not_committed_by_counting() -> None:
    """Figure 8 in miniature (the scripts have it in full): a majority holds (2, term 1); the leader of term 3 does not count it."""
    shell = Shell(1, voters=(1, 2, 3, 4, 5), log=(1,), term=2).become_leader()
    shell.acknowledge(2, 2)
    shell.acknowledge(3, 2)
    assert shell.raft.commit == 1
    shell.acknowledge(2, 3)
    shell.acknowledge(3, 3)
    assert shell.raft.commit == 3


def test_pitfall_19_late_append_does_not_truncate() -> None:
    """Entries 2..6 are there; a delayed append of 2..4 arrives: all five stay."""
    shell = Shell(1)
    everything = [entry(2, index) for index in range(2, 7)]
    shell.deliver(Append(ONE, TWO, Term(2), Index(1), Term(1), Index(1), everything))
    for count in (3, 1, 0):
        replies = shell.deliver(Append(ONE, TWO, Term(2), Index(1), Term(1), Index(1), everything[:count]))
        assert shell.raft.last_index == 6
        assert [r.index for r in only(replies, AppendReply)] == [1 + count]


def test_pitfall_20_nothing_is_promised_before_it_is_durable() -> None:
    """With stalled disks no vote, no acknowledgement and no request for votes leaves; a crash then loses no promise."""
    cluster = Cluster(3)
    cluster.stall(1, 2, 3)
    for number in (1, 2, 3):
        cluster[number].call("campaign")
    cluster.settle()
    cluster.crash(1, 2, 3)
    cluster.restart(1, 2, 3)
    assert {shell.raft.term for shell in cluster.shells} == {1}
    cluster.elect(1)
    cluster.stall(2, 3)
    index = cluster.propose(1, b"x")
    assert cluster[1].raft.commit < index
    cluster.crash(2, 3)
    cluster.restart(2, 3)
    assert all(cluster[n].raft.last_index < index for n in (2, 3))


class HastyShell(Shell):
    """A broken shell, for canaries: promises leave before the disk has what they speak of."""

    def take(self):  # type: ignore[no-untyped-def]
        ready = super().take()
        self._send(ready.messages_after_persist)
        ready.messages_after_persist = []
        return ready


@pytest.mark.parametrize("promise", ["vote", "acknowledgement"])
def test_pitfall_20_canary_promise_before_fsync_is_noticed(promise: str) -> None:
    """A shell that sends first and syncs later is caught by the invariants at the first promise."""
    shell = HastyShell(1)
    message = (
        RequestVote(ONE, TWO, Term(2), Index(1), Term(1))
        if promise == "vote"
        else Append(ONE, TWO, Term(1), Index(1), Term(1), Index(1), [entry(1, 2)])
    )
    with pytest.raises(InvariantViolated, match="durable"):
        shell.deliver(message)


def test_pitfall_20_canary_vote_forgotten_in_a_crash_is_noticed() -> None:
    """A disk that loses the vote after it was sent: the second vote in the same term is caught."""
    shell = Shell(1)
    shell.deliver(RequestVote(ONE, TWO, Term(2), Index(1), Term(1)))
    shell.crash()
    shell.image.hard_state = HardState(Term(2), NO_REPLICA)
    shell.restart()
    with pytest.raises(InvariantViolated, match="check_vote_is_given_once"):
        shell.deliver(RequestVote(ONE, THREE, Term(2), Index(1), Term(1)))


def test_pitfall_21_duplicates_do_not_acknowledge_ahead_of_the_disk() -> None:
    """While the disk is stalled the same append comes again, and an empty one, and a heartbeat: no acknowledgement leaves."""
    shell = Shell(1)
    shell.deliver(beat(2, 1, 2))
    shell.stalled = True
    append = Append(ONE, TWO, Term(2), Index(1), Term(1), Index(1), [entry(2, 2)])
    for message in (append, append, Append(ONE, TWO, Term(2), Index(2), Term(2), Index(2)), beat(2, 1, 2, 2)):
        shell.step(message)
        assert only(shell.run(), AppendReply) == []
    shell.stalled = False
    shell.sync()
    assert {reply.index for reply in only(shell.run(), AppendReply)} == {2}


def test_pitfall_22_single_voter_waits_for_its_disk() -> None:
    """A group of one neither commits nor applies what a power cut could take back."""
    shell = Shell(1, voters=(1,)).become_leader()
    shell.stalled = True
    shell.propose(b"x")
    shell.run()
    assert shell.data() == []
    assert shell.raft.commit == 2
    shell.crash()
    shell.restart()
    assert shell.raft.last_index == 2


def test_pitfall_23_leader_counts_itself_only_when_durable() -> None:
    """With its own disk stalled the leader needs both followers of three."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick()
    cluster.stall(1)
    cluster.crash(3)
    index = cluster.propose(1, b"x")
    assert cluster[1].raft.commit < index
    cluster.restart(3)
    cluster.tick(3)
    assert cluster[1].raft.commit == index
    # A crash of the leader now loses its copy, and nothing else.
    cluster.crash(1)
    leader = cluster.wait_for_leader()
    assert leader.data() == [b"x"]


def test_pitfall_24_snapshot_carries_term_and_configuration() -> None:
    """A blank replica restored by a snapshot votes, counts and checks logs as if it had been there all the time."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick()
    for number in range(5):
        cluster.propose(1, b"%d" % number)
    cluster[1].compact()
    cluster.add(4)
    cluster.change(1, adding(4))
    cluster.tick(3)
    newcomer = cluster[4]
    assert newcomer.raft.configuration.voters == (1, 2, 3, 4)
    assert newcomer.raft.log.term(Index(7)) == 2
    refused = only(newcomer.deliver(RequestVote(FOUR, THREE, Term(9), Index(2), Term(2), transfer=True)), VoteReply)
    assert [r.granted for r in refused] == [False]


@pytest.mark.parametrize("reached", [0, 1, 2])
def test_pitfall_25_crash_at_each_step_of_an_installation(reached: int) -> None:
    """Snapshot, then entries behind it, in separate writes: whatever reached the disk, the replica is old or new, not mixed."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.crash(3)
    for number in range(5):
        cluster.propose(1, b"%d" % number)
    cluster[1].compact()
    cluster.restart(3)
    cluster.stall(3)
    cluster.tick(3)
    cluster.propose(1, b"after")
    cluster.tick(2)
    cluster.crash(3, reached_the_disk=reached)
    cluster.restart(3)
    assert (cluster[3].image.last_index() == 2) is (reached == 0)
    cluster.tick(5)
    cluster.assert_converged()


def test_pitfall_26_truncated_entries_do_not_come_back() -> None:
    """1..5 of term 1, from 3 on overwritten in term 2, compacted at 4, restarted: the log ends at (4, term 2)."""
    shell = Shell(1, log=(1, 1, 1, 1), term=1)
    shell.deliver(Append(ONE, TWO, Term(2), Index(2), Term(1), Index(4), [entry(2, 3), entry(2, 4)]))
    shell.compact(4)
    shell.crash()
    shell.restart()
    assert (shell.raft.last_index, shell.raft.log.term(Index(4))) == (4, 2)
    # And it votes accordingly: a log that ends at (5, term 1) is behind.
    replies = only(shell.deliver(RequestVote(ONE, THREE, Term(3), Index(5), Term(1))), VoteReply)
    assert [r.granted for r in replies] == [False]


def test_pitfall_27_snapshots_do_not_come_in_storms() -> None:
    """A follower slower than the compaction: one snapshot at a time, and it catches up as a trailing log is kept."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.crash(3)
    for number in range(10):
        cluster.propose(1, b"%d" % number)
    cluster[1].compact()
    sent: list[InstallSnapshot] = []
    held = cluster.hold(lambda m: isinstance(m, InstallSnapshot))
    cluster.watchers.append(lambda m: sent.append(m) if isinstance(m, InstallSnapshot) else None)
    cluster.restart(3)
    for number in range(20):
        cluster.propose(1, b"more %d" % number)
        cluster[1].compact(cluster[1].raft.commit - 5)
        cluster.tick()
    assert len(held.messages) == 1
    # The first is too old by now: its acknowledgement does not reconnect, and exactly one more follows.
    cluster.release(held)
    cluster.settle()
    cluster.tick(5)
    cluster.assert_converged()
    assert len(sent) == 2


def test_pitfall_28_slow_follower_costs_bounded_memory_and_no_latency() -> None:
    """One follower answers nothing for a long time: what is in flight to it stays bounded, and commits go on each time."""
    cluster = Cluster(3, inflight_messages_max=4)
    cluster.elect(1)
    cluster.tick()
    held = cluster.hold(lambda m: m.from_ == 3)
    for number in range(200):
        index = cluster.propose(1, b"%d" % number)
        assert cluster[1].raft.commit == index
    assert len(cluster[1].raft.progress[THREE].inflights) <= 4
    # What is durable and applied is not kept in memory for the laggard's sake.
    assert cluster[1].raft.log.last_index - cluster[1].raft.log.offset < 50
    cluster.release(held)
    cluster.settle()
    cluster.tick(3)
    cluster.assert_converged()


def test_pitfall_29_proposals_are_bounded_without_a_quorum() -> None:
    """A leader that has lost its majority refuses beyond the limit, definitely."""
    cluster = Cluster(3, uncommitted_bytes_max=1000, check_quorum=False)
    cluster.elect(1)
    cluster.tick()
    cluster.isolate(1)
    refused = 0
    for _ in range(50):
        try:
            cluster[1].propose(bytes(100))
        except Overloaded as error:
            assert error.definite
            refused += 1
    assert refused == 40


def test_pitfall_30_big_entries_do_not_starve_heartbeats() -> None:
    """A long catch-up goes in bounded messages, and heartbeats do not queue behind entries in the core."""
    shell = Shell(1, voters=(1, 2), append_bytes_max=1000, inflight_messages_max=3, check_quorum=False).become_leader()
    for _ in range(20):
        shell.propose(bytes(900))
    shell.run()
    sent = shell.acknowledge(2, 2)
    assert all(len(a.entries) == 1 for a in only(sent, Append))
    assert len(only(sent, Append)) == 3
    shell.tick()
    assert len(only(shell.run(), Heartbeat)) == 1


# --- Identity and time --------------------------------------------------------------------------------------------------


def test_pitfall_34_promoted_learner_votes_before_it_knows() -> None:
    """The promotion is committed by the others; its leader dies before the learner hears: the learner's vote elects."""
    cluster = Cluster(3, learners=(4,))
    cluster.elect(1)
    cluster.tick()
    cluster.isolate(4)
    cluster.change(1, adding(4))
    cluster.crash(1, 2)
    cluster.restart(2)
    cluster.heal()
    # 2, 3 and 4 of {1,2,3,4}: without 4's vote there is no majority.
    leader = cluster.wait_for_leader(ticks_max=20 * ELECTION_TICKS)
    cluster.tick(3)
    assert cluster[4].raft.configuration.voters == (1, 2, 3, 4)
    assert leader.id in (2, 3)


def test_pitfall_35_canary_wiped_disk_loses_committed_entries() -> None:
    """Why a lost disk must come back as a new member: with the old id it helps to elect a leader without the entries.

    The invariants notice. (That a node refuses to start so is the node's test.)
    """
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick()
    cluster.isolate(3)
    cluster.propose(1, b"acknowledged")
    cluster.crash(1, 2)
    wiped = cluster[2]
    start = cluster[2].image.start
    wiped.image.entries = []
    wiped.image.hard_state = HardState(Term(1), NO_REPLICA)
    wiped.image.start = start
    cluster.restart(2)
    cluster.heal()
    with pytest.raises(InvariantViolated, match="check_leader_completeness"):
        cluster.tick(10 * ELECTION_TICKS)


def test_pitfall_38_damaged_log_votes_only_for_logs_that_reach_what_it_lost() -> None:
    """A replica whose acknowledged tail was damaged (limbo) neither campaigns nor helps a log without that tail to win."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick()
    cluster.isolate(3)
    index = cluster.propose(1, b"acknowledged")
    cluster.crash(1, 2)
    # Damage takes the acknowledged entry from 2's log; storage knows where it ended.
    damaged = cluster[2]
    damaged.image.entries = damaged.image.entries[:-1]
    with_floor(damaged, (Term(2), index))
    cluster.heal()
    cluster.tick(5 * ELECTION_TICKS)
    assert cluster.leaders() == []
    cluster.restart(1)
    leader = cluster.wait_for_leader(ticks_max=10 * ELECTION_TICKS)
    assert leader.id == 1
    cluster.tick(5)
    assert damaged.raft.vote_floor is None
    assert damaged.data() == [b"acknowledged"]


def with_floor(shell: Shell, floor: tuple[Term, Index]) -> None:
    """Restarts a replica in limbo."""
    from raftcache.raft.core import Raft, RaftConfig

    shell.restart()
    checkpoint = shell.image.checkpoint.meta
    shell.raft = Raft(
        RaftConfig(replica=shell.id, election_timeout_ticks=ELECTION_TICKS),
        shell.log,
        hard_state=shell.image.hard_state,
        configuration=checkpoint.configuration,
        configurations=[],
        applied=checkpoint.index,
        random=random.Random(shell.id),
        vote_floor=floor,
    )


def test_pitfall_38_canary_damaged_log_without_limbo_is_noticed() -> None:
    """The same damage without the vote floor: a leader without an acknowledged entry is elected, and noticed."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick()
    cluster.isolate(3)
    cluster.propose(1, b"acknowledged")
    cluster.crash(1, 2)
    cluster[2].image.entries = cluster[2].image.entries[:-1]
    cluster.restart(2)
    cluster.heal()
    with pytest.raises(InvariantViolated, match="check_leader_completeness"):
        cluster.tick(10 * ELECTION_TICKS)


REPLAY = """
import sys, zlib
sys.path.insert(0, {root!r})
from tests.raft.test_random_schedules import Schedule
import tests.raft.test_random_schedules as module
module.STEPS = 600
schedule = Schedule(18)
told = []
schedule.cluster.watchers.append(lambda message: told.append(repr(message)))
schedule.run()
print(zlib.crc32("".join(told).encode()), len(told))
"""


def test_pitfall_40_same_input_same_run_under_any_hash_seed() -> None:
    """A random schedule delivers the same messages, byte for byte, in two interpreters with different hash seeds."""
    root = str(__import__("pathlib").Path(__file__).parents[2])
    runs = [
        subprocess.run(
            [sys.executable, "-c", REPLAY.format(root=root)],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert int(runs[0].split()[1]) > 50


def test_pitfall_43_message_for_another_replica_is_refused() -> None:
    """A message that reaches the wrong replica stops it before anything happens."""
    shell = Shell(1)
    before = shell.observe()
    with pytest.raises(AssertionError):
        shell.raft.step(beat(2, 3, 9))
    assert shell.observe() == before


def test_pitfall_44_stalled_process_does_not_cause_elections_for_ever() -> None:
    """A follower that was stopped for two election timeouts comes back, asks, is told no, and follows."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick()
    for _ in range(2 * ELECTION_TICKS):
        for number in (1, 2):
            cluster[number].tick()
        # 3's process does not run: nothing reaches it.
        for number in (1, 2):
            cluster.post([m for m in cluster[number].run() if m.to != 3])
        while cluster.queue:
            cluster.deliver_next()
    # All missed ticks at once, before a single message.
    cluster[3].tick(2 * ELECTION_TICKS)
    cluster.settle()
    cluster.tick(3)
    assert [(shell.id, shell.raft.term) for shell in cluster.leaders()] == [(1, 2)]


def test_pitfall_45_cold_elections_are_short() -> None:
    """A thousand cold starts of three replicas: 99 in 100 have a leader within five timeouts."""
    took = sorted(cold_election(seed) for seed in range(1000))
    assert took[989] <= 5 * ELECTION_TICKS
    assert took[-1] <= 20 * ELECTION_TICKS


def cold_election(seed: int) -> int:
    """Ticks until three fresh replicas have a leader (without the invariants, for speed)."""
    cluster = Cluster(3, seed=seed, checked=False)
    return cluster.tick_until(lambda: bool(cluster.leaders()))


def test_pitfall_04_configuration_entry_of_a_deposed_leader_reaches_nobody() -> None:
    """Votes and quorums of a joint configuration that only a minority ever saw decide nothing after it is cut."""
    shell = Shell(1, pre_vote=False)
    joint = Configuration(voters=ids(1, 4, 5), voters_outgoing=ids(1, 2, 3))
    data = encode_configuration(joint)
    shell.deliver(
        Append(
            ONE, TWO, Term(2), Index(1), Term(1), Index(1), [Entry(Term(2), Index(2), EntryKind.CONFIGURATION, data)]
        )
    )
    shell.deliver(Append(ONE, THREE, Term(3), Index(1), Term(1), Index(1), [entry(3, 2)]))
    shell.raft.randomized_timeout_ticks = ELECTION_TICKS
    shell.tick(ELECTION_TICKS)
    assert [r.to for r in only(shell.run(), RequestVote)] == [2, 3]
