"""The contract of `Ready`: what it holds, in which order it is persisted, and that nothing is skipped, repeated or early."""

import pytest

from raftcache.ids import Index, ReplicaId, Term
from raftcache.raft.messages import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    HardState,
    HeartbeatReply,
    RequestVote,
    Role,
    VoteReply,
)
from tests.raft.cluster import Cluster, Shell, beat, entry, ids, only

ONE, TWO, THREE = ids(1, 2, 3)


def append(previous: tuple[int, int], *terms: int, term: int = 2, commit: int = 0) -> Append:
    """An append of leader 2 to replica 1."""
    items = [entry(t, previous[0] + 1 + offset) for offset, t in enumerate(terms)]
    return Append(ONE, TWO, Term(term), Index(previous[0]), Term(previous[1]), Index(commit), items)


def test_fresh_replica_owes_nothing() -> None:
    """Neither a new replica nor one that was restarted has anything to do before something happens."""
    shell = Shell(1, log=(1, 1), term=1)
    assert not shell.raft.has_ready()
    shell.deliver(append((3, 1), 2, commit=2))
    assert not shell.raft.has_ready()
    shell.crash()
    shell.restart()
    assert not shell.raft.has_ready()


def test_readies_are_numbered_and_taken_once() -> None:
    """1, 2, 3 ...; what one has handed out the next does not repeat."""
    shell = Shell(1, voters=(1,))
    shell.become_leader()
    shell.stalled = True
    shell.propose(b"a")
    first = shell.take()
    assert not shell.raft.has_ready()
    shell.propose(b"b")
    second = shell.take()
    assert second.number == first.number + 1
    assert [e.data for e in first.entries] == [b"a"]
    assert [e.data for e in second.entries] == [b"b"]


def test_hard_state_is_handed_out_when_it_changed_and_only_then() -> None:
    """Term and vote go to disk with the next `Ready`, and not again until they change again."""
    shell = Shell(1)
    shell.step(RequestVote(ONE, TWO, Term(2), Index(1), Term(1)))
    ready = shell.take()
    assert ready.hard_state == HardState(Term(2), TWO)
    assert ready.must_sync
    shell.sync()
    shell.step(append((1, 1), 2))
    ready = shell.take()
    assert ready.hard_state is None
    assert ready.must_sync
    shell.sync()
    shell.step(beat(2, 1, 2, commit=2))
    ready = shell.take()
    assert not ready.must_sync


def test_promises_wait_and_the_rest_leaves_at_once() -> None:
    """Votes and acknowledgements stand in `messages_after_persist`; entries to followers and heartbeats do not wait."""
    follower = Shell(1)
    follower.step(RequestVote(ONE, TWO, Term(2), Index(1), Term(1)))
    follower.step(append((1, 1), 2))
    ready = follower.take()
    assert {type(m) for m in ready.messages_after_persist} == {VoteReply, AppendReply}
    assert ready.messages == []
    leader = Shell(1).become_leader(acknowledged_by=(2, 3))
    leader.propose()
    leader.tick()
    ready = leader.take()
    assert ready.entries
    assert only(ready.messages, Append)
    assert ready.messages_after_persist == []


def test_vote_request_leaves_only_when_the_own_vote_is_durable() -> None:
    """A candidate asks when its term and its vote for itself are on disk: a crash must not let it stand twice in a term."""
    shell = Shell(1, pre_vote=False)
    shell.stalled = True
    shell.call("campaign")
    assert only(shell.run(), RequestVote) == []
    shell.stalled = False
    shell.sync()
    assert [m.to for m in only(shell.run(), RequestVote)] == [2, 3]
    assert shell.image.hard_state == HardState(Term(2), ONE)


def test_stalled_disk_does_not_hold_back_heartbeat_answers() -> None:
    """A heartbeat's answer promises nothing about entries; a slow disk must not look like a dead replica."""
    shell = Shell(1)
    shell.deliver(beat(2, 1, 2))
    shell.stalled = True
    shell.step(append((1, 1), 2))
    shell.run()
    shell.step(beat(2, 1, 2))
    assert [m.to for m in only(shell.run(), HeartbeatReply)] == [2]


def test_several_readies_in_flight_are_persisted_in_order() -> None:
    """Each write is reported by itself; acknowledgements follow in the same order and never ahead of the disk."""
    shell = Shell(1)
    shell.deliver(beat(2, 1, 2))
    shell.stalled = True
    for index in range(1, 5):
        shell.step(append((index, 1 if index == 1 else 2), 2))
        shell.run()
    assert len(shell.pending) == 4
    seen = []
    while shell.pending:
        shell.sync(1)
        seen += [m.index for m in only(shell.run(), AppendReply)]
    assert seen == [2, 3, 4, 5]


def test_reporting_out_of_order_is_a_bug_of_the_shell() -> None:
    """The core notices when a later write is reported before an earlier one."""
    shell = Shell(1)
    shell.stalled = True
    shell.step(append((1, 1), 2))
    shell.take()
    shell.step(append((2, 2), 2))
    second = shell.take()
    with pytest.raises(AssertionError):
        shell.raft.persisted(second)


def test_truncated_write_is_not_counted_when_it_finishes() -> None:
    """Entries are written, replaced while on their way, and written again with the same positions but another term."""
    shell = Shell(1)
    shell.stalled = True
    shell.step(append((1, 1), 2, 2, 2))
    shell.run()
    shell.step(append((1, 1), 3, term=3))
    shell.run()
    # The first write (three entries of term 2) is done; of the present log nothing but (1, 1) is durable.
    shell.sync(1)
    assert [m.index for m in only(shell.run(), AppendReply) if m.term == 3] == []
    assert shell.raft.log.durable == 1
    shell.sync(1)
    assert [m.index for m in only(shell.run(), AppendReply) if m.term == 3] == [2]


def test_same_entry_truncated_and_appended_again_counts_only_when_rewritten() -> None:
    """The ABA case: (2, term 2) is written, cut by leader 3, and comes back from leader 4; its first write proves nothing.

    The disk holds writes in order: first the entry, then its replacement. Between the two the first life of the entry is
    durable, but a later write in the queue will overwrite it.
    """
    shell = Shell(1, voters=(1, 2, 3, 4, 5))
    shell.stalled = True
    shell.step(append((1, 1), 2))
    shell.run()
    shell.step(Append(ONE, THREE, Term(3), Index(1), Term(1), Index(0), [entry(3, 2)]))
    shell.run()
    shell.step(Append(ONE, ReplicaId(4), Term(4), Index(1), Term(1), Index(0), [entry(2, 2), entry(4, 3)]))
    shell.run()
    shell.sync(1)
    shell.sync(1)
    assert shell.raft.log.durable == 1
    assert [m for m in only(shell.run(), AppendReply) if m.term == 4] == []
    shell.sync(1)
    assert [m.index for m in only(shell.run(), AppendReply) if m.term == 4] == [3]


def test_committed_entries_wait_for_the_local_disk() -> None:
    """What the group has committed is handed out for apply here only when it is durable here."""
    shell = Shell(1)
    shell.stalled = True
    shell.step(append((1, 1), 2, 2, commit=3))
    shell.run()
    assert shell.raft.commit == 3
    assert shell.machine == []
    shell.sync(1)
    shell.run()
    assert [index for index, *_ in shell.machine] == [2, 3]


@pytest.mark.parametrize("bytes_max", [1, 10, 25, 1000])
def test_apply_is_paged_without_gaps_or_repeats(bytes_max: int) -> None:
    """However small the pages, every committed entry is handed out once, in order (the shell checks each hand-out)."""
    cluster = Cluster(3, committed_bytes_max_per_ready=bytes_max)
    cluster.elect(1)
    for number in range(30):
        cluster[1].propose(b"%010d" % number)
    cluster.settle()
    assert cluster[1].data() == [b"%010d" % number for number in range(30)]
    cluster.tick(2)
    cluster.assert_converged()


def test_pages_respect_their_limit() -> None:
    """At least one entry, and no more bytes than allowed."""
    shell = Shell(1, voters=(1,), committed_bytes_max_per_ready=25).become_leader()
    for _ in range(6):
        shell.propose(bytes(10))
    sizes = []
    while shell.raft.has_ready():
        ready = shell.take()
        sizes.append(sum(len(item.data) for item in ready.committed))
        shell.sync()
        shell.apply()
    assert max(sizes) <= 25
    assert sum(sizes) == 60


@pytest.mark.parametrize("bytes_max", [1, 25, 1000])
def test_apply_is_paged_after_a_restart(bytes_max: int) -> None:
    """After a restart everything since the checkpoint is handed out again, once, in pages."""
    cluster = Cluster(3, committed_bytes_max_per_ready=bytes_max)
    cluster.elect(1)
    for number in range(10):
        cluster.propose(1, b"%010d" % number)
    cluster[3].checkpoint()
    for number in range(10, 20):
        cluster.propose(1, b"%010d" % number)
    cluster.crash(3)
    cluster.restart(3)
    assert cluster[3].raft.applied == 12
    cluster.tick(3)
    cluster.assert_converged()
    assert cluster[3].data() == [b"%010d" % number for number in range(20)]


def test_slow_state_machine_is_not_handed_entries_twice() -> None:
    """Entries handed out but not reported applied are not handed out again."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster[2].apply_stalled = True
    for number in range(10):
        cluster.propose(1, b"%d" % number)
    assert cluster[2].raft.applied < cluster[2].raft.commit
    cluster[2].apply_stalled = False
    cluster.tick(2)
    cluster.assert_converged()


def test_restart_brings_back_what_was_persisted() -> None:
    """Hard state and log come back as they were; commit is what the checkpoint had, and the leader tells the rest."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.propose(1, b"x")
    before = cluster[2].observe()
    cluster.crash(2)
    cluster.restart(2)
    after = cluster[2].observe()
    assert (after.term, after.vote, after.last_index, after.last_term) == (
        before.term,
        before.vote,
        before.last_index,
        before.last_term,
    )
    assert (after.role, after.leader, after.commit) == (Role.FOLLOWER, 0, 1)


def test_restart_from_a_checkpoint_begins_there() -> None:
    """Applied and commit start at the checkpoint's index; nothing at or below it is applied again."""
    cluster = Cluster(3)
    cluster.elect(1)
    for number in range(5):
        cluster.propose(1, b"%d" % number)
    cluster[2].compact()
    cluster.crash(2)
    cluster.restart(2)
    assert (cluster[2].raft.applied, cluster[2].raft.commit) == (7, 7)
    cluster.propose(1, b"5")
    cluster.tick(2)
    cluster.assert_converged()


def test_uncommitted_tail_stays_bounded_without_a_majority() -> None:
    """A leader alone refuses at its limit; log and memory stay small, and healing commits exactly what was accepted."""
    from raftcache.errors import Overloaded

    cluster = Cluster(3, uncommitted_bytes_max=1000, check_quorum=False)
    cluster.elect(1)
    cluster.tick()
    cluster.isolate(1)
    accepted = 0
    for _ in range(100):
        try:
            cluster[1].propose(bytes(100))
        except Overloaded:
            continue
        accepted += 1
    assert accepted == 10
    assert cluster[1].raft.status().uncommitted_bytes <= 1000
    cluster.heal()
    cluster.tick(3)
    assert len(cluster[1].data()) == accepted
    cluster.assert_converged()


def test_status_tells_what_is_so() -> None:
    """The copy for metrics and operators agrees with the replica."""
    shell = Shell(1).become_leader(acknowledged_by=(2,))
    shell.propose(b"abc")
    shell.run()
    status = shell.raft.status()
    assert (status.role, status.term, status.leader, status.vote) == (Role.LEADER, 2, 1, 1)
    assert (status.commit, status.applied, status.last_index, status.durable_index) == (2, 2, 3, 3)
    assert status.uncommitted_bytes == 3
    assert [p.replica for p in status.progress] == [1, 2, 3]
    assert [p.match for p in status.progress] == [3, 2, 0]


def test_cut_in_a_ready_starts_at_the_conflict() -> None:
    """Entries that replace others say by their first index where the log is cut; agreeing entries are not written again."""
    shell = Shell(1, log=(2, 2, 2), term=2)
    shell.step(append((1, 1), 2, 3, 3, term=3))
    ready = shell.take()
    assert [(e.index, e.term) for e in ready.entries] == [(3, 3), (4, 3)]
    shell.sync()
    assert shell.terms() == [2, 3, 3]


def test_empty_and_configuration_entries_are_handed_out_too() -> None:
    """The state machine sees every index, whatever the kind, so that its applied index has no holes."""
    shell = Shell(1, voters=(1,)).become_leader()
    shell.propose(b"x")
    shell.run()
    assert [(i, k) for i, _, k, _ in shell.machine] == [(2, EntryKind.EMPTY), (3, EntryKind.COMMANDS)]
    assert shell.written.entries[0] == Entry(Term(2), Index(2), EntryKind.EMPTY, b"")
