"""Snapshots: who gets one, what it restores, and how progress goes on after it arrived, failed or was overtaken."""

import pytest

from raftcache.ids import Index, ReplicaId, Term
from raftcache.raft.configuration import ConfigurationChange
from raftcache.raft.messages import (
    Append,
    AppendReply,
    Configuration,
    HeartbeatReply,
    InstallSnapshot,
    Role,
    SnapshotMeta,
    SnapshotRequest,
)
from raftcache.raft.progress import ProgressState
from tests.raft.cluster import ELECTION_TICKS, Applied, Cluster, Shell, beat, entry, ids, only

ONE, TWO, THREE = ids(1, 2, 3)
VOTERS = Configuration(voters=ids(1, 2, 3))


def offer(shell: Shell, index: int, term: int, configuration: Configuration = VOTERS) -> InstallSnapshot:
    """A snapshot from leader 2 (in the term of the entry), whose content the group knows."""
    content: tuple[Applied, ...] = tuple(
        (e.index, e.term, e.kind, e.data) for e in (entry(1, i) for i in range(2, index))
    )
    last = entry(term, index)
    shell.group.snapshots[Index(index), Term(term)] = (*content, (last.index, last.term, last.kind, last.data))
    return InstallSnapshot(
        shell.id, TWO, Term(max(term, shell.raft.term, 1)), SnapshotMeta(Index(index), Term(term), configuration)
    )


def lagging(**options: object) -> Shell:
    """Leader 1 whose log begins at 7, and a follower 2 that has nothing after (1, 1); 3 has everything."""
    shell = Shell(1, **options).become_leader(acknowledged_by=(3,))  # type: ignore[arg-type]
    for _ in range(5):
        shell.propose()
    shell.run()
    shell.acknowledge(3)
    shell.compact(6)
    return shell


@pytest.mark.parametrize("log", [(), (1, 1), (1,) * 20], ids=["empty log", "short log", "long but other log"])
def test_snapshot_replaces_an_older_log(log: tuple[int, ...]) -> None:
    """Log, commit, applied state and configuration come from the snapshot; the acknowledgement leaves when installed."""
    shell = Shell(1, log=log)
    message = offer(shell, 11, 3, Configuration(voters=ids(1, 2, 3, 4), learners=ids(5)))
    shell.stalled = True
    shell.step(message)
    assert only(shell.run(), AppendReply) == []
    shell.stalled = False
    shell.sync()
    replies = only(shell.run(), AppendReply)
    assert [(r.to, r.index, r.rejected) for r in replies] == [(2, 11, False)]
    assert (shell.raft.commit, shell.raft.applied, shell.raft.last_index) == (11, 11, 11)
    assert shell.raft.log.term(Index(11)) == 3
    assert shell.raft.configuration == Configuration(voters=ids(1, 2, 3, 4), learners=ids(5))
    assert shell.terms() == []
    assert len(shell.machine) == 10


@pytest.mark.parametrize(
    "configuration",
    [
        Configuration(voters=ids(2, 3), learners=ids(1, 4)),
        Configuration(voters=ids(1, 2, 3), voters_outgoing=ids(2, 3, 4), learners=ids(5)),
        Configuration(voters=ids(1, 2), voters_outgoing=ids(1, 2, 3), learners_next=ids(3)),
    ],
    ids=["learners", "joint", "staged learners"],
)
def test_snapshot_restores_every_kind_of_configuration(configuration: Configuration) -> None:
    """Learners, the outgoing half and staged learners all come back; a restart from the checkpoint has them, too."""
    shell = Shell(1, empty=True)
    shell.deliver(offer(shell, 11, 3, configuration))
    assert shell.raft.configuration == configuration
    shell.crash()
    shell.restart()
    assert shell.raft.configuration == configuration
    assert shell.raft.commit == 11


def test_snapshot_turns_a_voter_into_a_learner() -> None:
    """A replica that slept through its demotion learns of it by the snapshot, and does not campaign."""
    shell = Shell(1)
    shell.deliver(offer(shell, 11, 3, Configuration(voters=ids(2, 3), learners=ids(1))))
    shell.tick(3 * ELECTION_TICKS)
    assert shell.raft.role is Role.FOLLOWER


def test_snapshot_turns_a_learner_into_a_voter() -> None:
    """A learner that slept through its promotion learns of it by the snapshot, and campaigns."""
    shell = Shell(1, voters=(2, 3), learners=(1,), pre_vote=False)
    shell.tick(3 * ELECTION_TICKS)
    assert shell.raft.role is Role.FOLLOWER
    shell.deliver(offer(shell, 11, 3))
    shell.tick(3 * ELECTION_TICKS)
    assert shell.raft.role is Role.CANDIDATE


def test_learner_receives_a_snapshot() -> None:
    """A learner that is too far behind gets the state like everyone else."""
    cluster = Cluster(3, learners=(4,))
    cluster.elect(1)
    cluster.crash(4)
    for number in range(5):
        cluster.propose(1, b"%d" % number)
    cluster[1].compact()
    cluster.restart(4)
    cluster.tick(3)
    cluster.assert_converged()


def test_old_snapshot_is_ignored() -> None:
    """A snapshot at or below the commit index changes nothing, and is answered with the commit index."""
    shell = Shell(1, log=(1, 1, 1), term=1)
    shell.deliver(Append(ONE, TWO, Term(1), Index(4), Term(1), Index(4)))
    before = shell.observe()
    for index in (2, 4):
        replies = only(shell.deliver(offer(shell, index, 1)), AppendReply)
        assert [(r.index, r.rejected) for r in replies] == [(4, False)]
    assert shell.observe() == before


def test_matching_snapshot_keeps_the_log_and_moves_commit() -> None:
    """If the log has the snapshot's last entry, nothing is thrown away: all up to it is committed."""
    shell = Shell(1, log=(1, 1, 1, 1), term=1)
    shell.deliver(offer(shell, 4, 1))
    assert (shell.raft.commit, shell.raft.last_index) == (4, 5)
    assert shell.terms() == [1, 1, 1, 1]
    assert [index for index, *_ in shell.machine] == [2, 3, 4]


def test_snapshot_of_an_old_term_is_refused() -> None:
    """A deposed leader's snapshot is not installed."""
    shell = Shell(1, term=5)
    message = offer(shell, 11, 3)
    message.term = Term(4)
    shell.deliver(message)
    assert shell.raft.last_index == 1


def test_lagging_follower_is_sent_a_snapshot() -> None:
    """When the entry before `next` is compacted, a snapshot is announced and replication pauses."""
    shell = lagging()
    sent = shell.deliver(AppendReply(ONE, TWO, Term(2), Index(6), True, Index(1), Term(1)))
    sent += shell.deliver(HeartbeatReply(ONE, TWO, Term(2)))
    snapshots = only(sent, InstallSnapshot)
    assert [(s.to, s.meta.index, s.meta.term, s.meta.configuration) for s in snapshots] == [(2, 7, 2, VOTERS)]
    progress = shell.raft.progress[TWO]
    assert (progress.state, progress.pending_snapshot) == (ProgressState.SNAPSHOT, 7)


def test_pending_snapshot_pauses_replication() -> None:
    """While the snapshot travels, no entries and no second snapshot go to that follower, whatever it answers."""
    shell = lagging()
    shell.deliver(HeartbeatReply(ONE, TWO, Term(2)))
    assert shell.raft.progress[TWO].state is ProgressState.SNAPSHOT
    for _ in range(3):
        shell.propose()
        sent = shell.run() + shell.deliver(HeartbeatReply(ONE, TWO, Term(2)))
        assert only(sent, Append, to=2) == []
        assert only(sent, InstallSnapshot) == []


def test_failed_snapshot_starts_probing_again() -> None:
    """After a failure the follower is probed at its old position, with the next heartbeat's answer, and gets another."""
    shell = lagging()
    shell.deliver(HeartbeatReply(ONE, TWO, Term(2)))
    shell.call("report_snapshot", TWO, False)
    progress = shell.raft.progress[TWO]
    assert (progress.state, progress.next, progress.pending_snapshot) == (ProgressState.PROBE, 1, 0)
    assert only(shell.run(), InstallSnapshot) == []
    assert len(only(shell.deliver(HeartbeatReply(ONE, TWO, Term(2))), InstallSnapshot)) == 1


def test_arrived_snapshot_is_followed_by_the_log_after_it() -> None:
    """After success the follower is probed right behind the snapshot, and pipelined once it acknowledges."""
    shell = lagging()
    shell.deliver(HeartbeatReply(ONE, TWO, Term(2)))
    shell.call("report_snapshot", TWO, True)
    progress = shell.raft.progress[TWO]
    assert (progress.state, progress.next) == (ProgressState.PROBE, 8)
    shell.deliver(AppendReply(ONE, TWO, Term(2), Index(7)))
    assert (progress.state, progress.match) == (ProgressState.REPLICATE, 7)


def test_acknowledgement_that_reconnects_ends_the_snapshot_early() -> None:
    """If the follower got there by other means (an older snapshot, entries), its acknowledgement resumes replication."""
    shell = lagging()
    shell.deliver(HeartbeatReply(ONE, TWO, Term(2)))
    shell.propose()
    shell.run()
    sent = shell.deliver(AppendReply(ONE, TWO, Term(2), Index(6)))
    progress = shell.raft.progress[TWO]
    assert progress.state is ProgressState.REPLICATE
    assert progress.match == 6
    assert [e.index for a in only(sent, Append, to=2) for e in a.entries] == [7, 8]


def test_acknowledgement_below_the_log_does_not_end_the_snapshot() -> None:
    """An acknowledgement that still leaves a gap to the leader's log keeps the pause: the snapshot is needed."""
    shell = lagging()
    shell.deliver(HeartbeatReply(ONE, TWO, Term(2)))
    shell.deliver(AppendReply(ONE, TWO, Term(2), Index(3)))
    progress = shell.raft.progress[TWO]
    assert (progress.state, progress.match) == (ProgressState.SNAPSHOT, 3)


def test_snapshot_is_not_sent_to_a_silent_follower() -> None:
    """A follower from which nothing is heard gets no snapshot until it shows signs of life."""
    shell = Shell(1, check_quorum=True).become_leader(acknowledged_by=(3,))
    shell.propose()
    shell.run()
    shell.acknowledge(3)
    for _ in range(ELECTION_TICKS + 1):
        shell.tick()
        shell.deliver(HeartbeatReply(ONE, THREE, Term(2)))
    shell.compact()
    shell.call("report_unreachable", TWO)
    shell.propose()
    sent = shell.run()
    assert only(sent, InstallSnapshot) == []
    sent = shell.deliver(HeartbeatReply(ONE, TWO, Term(2)))
    assert len(only(sent, InstallSnapshot)) == 1


def test_one_snapshot_is_under_way_per_follower() -> None:
    """However often a follower asks or answers, a second snapshot starts only when the first is reported."""
    shell = lagging()
    sent = shell.deliver(HeartbeatReply(ONE, TWO, Term(2)))
    for _ in range(3):
        sent += shell.deliver(SnapshotRequest(ONE, TWO, Term(2), Index(1)), HeartbeatReply(ONE, TWO, Term(2)))
    assert len(only(sent, InstallSnapshot)) == 1


def test_without_a_checkpoint_the_leader_asks_its_shell_for_one() -> None:
    """A request that no checkpoint can serve is noted for the shell, and served when there is one."""
    shell = Shell(1).become_leader(acknowledged_by=(2, 3))
    for _ in range(3):
        shell.propose()
    shell.run()
    shell.acknowledge(2)
    assert only(shell.deliver(SnapshotRequest(ONE, THREE, Term(2), Index(4))), InstallSnapshot) == []
    assert shell.raft.checkpoint_wanted == 4
    shell.checkpoint()
    sent = shell.deliver(SnapshotRequest(ONE, THREE, Term(2), Index(4)))
    assert [s.meta.index for s in only(sent, InstallSnapshot)] == [5]


def test_slow_follower_is_restored_and_goes_on() -> None:
    """A follower that slept through compactions catches up by snapshot and log, and votes like everyone."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.crash(3)
    for number in range(20):
        cluster.propose(1, b"%d" % number)
        if number % 5 == 0:
            cluster[1].compact()
    cluster.restart(3)
    cluster.tick(5)
    cluster.assert_converged()
    cluster.crash(2)
    cluster.propose(1, b"with 3")
    assert cluster[3].raft.commit == cluster[1].raft.last_index


def test_follower_slower_than_compaction_still_catches_up() -> None:
    """Each time the snapshot arrives the leader has compacted further: as long as a trailing log is kept, it converges."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.crash(3)
    for number in range(10):
        cluster.propose(1, b"%d" % number)
    cluster[1].compact()
    cluster.restart(3)
    count = 0
    for round_ in range(30):
        cluster.propose(1, b"more %d" % round_)
        index = cluster[1].raft.commit
        cluster[1].compact(index - 4)
        cluster.tick()
        count += 1
        if cluster[3].raft.commit >= index:
            break
    assert count < 10


def test_transfer_to_a_follower_that_needs_a_snapshot() -> None:
    """A hand-over waits for the snapshot as it waits for entries."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.crash(3)
    for number in range(5):
        cluster.propose(1, b"%d" % number)
    cluster[1].compact()
    cluster.restart(3)
    cluster[1].call("transfer_leadership", THREE)
    cluster.tick_until(lambda: cluster[3].raft.role is Role.LEADER, ticks_max=ELECTION_TICKS)
    cluster.tick(2)
    cluster.assert_converged()


def test_lost_state_is_brought_back_by_a_snapshot_without_losing_the_log() -> None:
    """A replica whose state is lost asks for a snapshot; its log, beyond the snapshot, stays and keeps counting."""
    cluster = Cluster(3)
    cluster.elect(1)
    for number in range(4):
        cluster.propose(1, b"%d" % number)
    cluster[1].checkpoint()
    for number in range(4, 8):
        cluster.propose(1, b"%d" % number)
    shell = cluster[3]
    last = shell.raft.last_index
    shell.machine.clear()
    shell.call("request_snapshot", Index(1))
    assert shell.raft.snapshot_wanted
    # Until then it acknowledges: the group of 1 and 3 commits without 2.
    cluster.crash(2)
    with cluster.dropping(lambda m: isinstance(m, InstallSnapshot)):
        index = cluster.propose(1, b"8")
        assert cluster[1].raft.commit == index
        assert shell.raft.role is Role.FOLLOWER
    cluster.tick(3 * ELECTION_TICKS)
    assert not shell.raft.snapshot_wanted
    assert shell.raft.last_index > last
    cluster.restart(2)
    cluster.tick(5)
    cluster.assert_converged()


def test_replica_without_its_state_votes_but_does_not_campaign() -> None:
    """What was promised by the log stays promised; leading without a state makes no sense."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1, b"x")
    cluster.crash(1)
    cluster[2].call("request_snapshot", Index(1))
    cluster.tick(5 * ELECTION_TICKS, only=2)
    cluster[2].call("campaign")
    assert cluster[2].raft.role is Role.FOLLOWER
    cluster.tick(5 * ELECTION_TICKS)
    assert [shell.id for shell in cluster.leaders()] == [3]


def test_leader_whose_state_is_lost_steps_down() -> None:
    """It cannot serve; somebody else leads, and sends the snapshot."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1, b"x")
    for shell in cluster.shells:
        shell.checkpoint()
    cluster[1].call("request_snapshot", Index(1))
    cluster.settle()
    assert cluster[1].raft.role is Role.FOLLOWER
    cluster.wait_for_leader(among=(2, 3))
    cluster.tick(3 * ELECTION_TICKS)
    assert not cluster[1].raft.snapshot_wanted
    cluster.assert_converged()


def test_snapshot_brings_the_change_that_was_missed() -> None:
    """A replica that slept through a membership change acts under the new one after the snapshot."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.crash(3)
    cluster.add(4)
    cluster.change(1, ConfigurationChange(add_voters=ids(4)))
    cluster.tick(2)
    for number in range(3):
        cluster.propose(1, b"%d" % number)
    cluster[1].compact()
    cluster.restart(3)
    cluster.tick(3)
    assert cluster[3].raft.configuration.voters == (1, 2, 3, 4)
    assert ReplicaId(4) in cluster[1].raft.progress


@pytest.mark.parametrize("reached", [0, 1])
def test_crash_while_a_snapshot_is_installed_leaves_old_or_new(reached: int) -> None:
    """Either the write had reached the disk whole or not at all; the replica starts from the one or the other."""
    shell = Shell(1, log=(1, 1), term=1)
    shell.deliver(beat(2, 1, 3))
    shell.stalled = True
    shell.step(offer(shell, 11, 3))
    shell.run()
    shell.crash(reached_the_disk=reached)
    shell.restart()
    assert (shell.raft.last_index, shell.raft.commit) == ((11, 11) if reached else (3, 1))
    assert shell.raft.term == 3
    shell.deliver(offer(shell, 11, 3))
    assert shell.raft.last_index == 11


def test_entries_after_a_snapshot_in_the_same_turn() -> None:
    """Entries that arrive right behind a snapshot, before it is installed, are appended after it."""
    shell = Shell(1, log=(1, 1), term=1)
    shell.stalled = True
    shell.step(offer(shell, 11, 3))
    shell.step(Append(ONE, TWO, Term(3), Index(11), Term(3), Index(13), [entry(3, 12), entry(3, 13)]))
    shell.run()
    assert shell.machine == []
    shell.stalled = False
    shell.sync()
    shell.run()
    assert (shell.raft.commit, shell.raft.applied, shell.raft.last_index) == (13, 13, 13)
    assert [index for index, *_ in shell.machine] == list(range(2, 14))


def test_requested_snapshot_is_under_way_once() -> None:
    """A follower that keeps asking while it is being replicated to gets one snapshot, and another only after the report."""
    shell = Shell(1).become_leader(acknowledged_by=(2, 3))
    shell.checkpoint()
    request = SnapshotRequest(ONE, TWO, Term(2), Index(1))
    assert [len(only(shell.deliver(request), InstallSnapshot)) for _ in range(3)] == [1, 0, 0]
    assert shell.raft.progress[TWO].state is ProgressState.REPLICATE
    shell.call("report_snapshot", TWO, False)
    assert len(only(shell.deliver(request), InstallSnapshot)) == 1


def test_wish_for_a_checkpoint_ends_with_the_leadership() -> None:
    """Who does not lead any more needs no checkpoint for a follower's sake."""
    shell = Shell(1).become_leader(acknowledged_by=(2, 3))
    shell.deliver(SnapshotRequest(ONE, TWO, Term(2), Index(9)))
    assert shell.raft.checkpoint_wanted == 9
    shell.deliver(beat(2, 1, 3))
    assert shell.raft.checkpoint_wanted == 0


def test_lost_state_is_asked_for_at_once_and_then_at_a_steady_pace() -> None:
    """A request may be lost, so it is repeated with every election timeout, and at once with a new leader."""
    shell = Shell(1)
    shell.deliver(beat(2, 1, 2))
    shell.call("request_snapshot", Index(1))
    asked = [len(only(shell.run(), SnapshotRequest))]
    for _ in range(3 * ELECTION_TICKS):
        shell.tick()
        asked.append(len(only(shell.deliver(beat(2, 1, 2)), SnapshotRequest)))
    assert asked[0] == 1
    assert 2 <= sum(asked[1:]) <= 3
    shell.deliver(beat(3, 1, 3))
    shell.tick()
    assert [m.to for m in only(shell.run(), SnapshotRequest)] == [3]
