"""Progress and flow control: how much a leader sends to whom, and when it pauses."""

import pytest

from raftcache.errors import Overloaded
from raftcache.ids import Index, Term
from raftcache.raft.messages import Append, AppendReply, Heartbeat, HeartbeatReply, Role
from raftcache.raft.progress import ProgressState
from tests.raft.cluster import Cluster, Shell, beat, entry, ids, only

ONE, TWO, THREE = ids(1, 2, 3)


def leader(**options: object) -> Shell:
    """Replica 1 leads 2, term 2; 2 has acknowledged everything and is pipelined."""
    settings: dict[str, object] = {"voters": (1, 2), "check_quorum": False, **options}
    return Shell(1, **settings).become_leader(acknowledged_by=(2,))  # type: ignore[arg-type]


def test_leader_is_never_paused_by_its_own_disk() -> None:
    """However long its disk takes, the leader goes on appending and sending."""
    shell = leader()
    shell.stalled = True
    for number in range(5):
        shell.propose(b"%d" % number)
        assert [len(a.entries) for a in only(shell.run(), Append)] == [1]


def test_probing_sends_one_message_and_waits() -> None:
    """While it is unknown where the logs agree, one append is out at a time."""
    shell = Shell(1, voters=(1, 2), check_quorum=False).become_leader()
    assert shell.raft.progress[TWO].state is ProgressState.PROBE
    for _ in range(3):
        shell.propose()
        assert only(shell.run(), Append) == []


def test_heartbeat_reply_resumes_a_paused_probe() -> None:
    """An answered heartbeat says that the follower is there though the probe's answer is not: one more probe."""
    shell = Shell(1, voters=(1, 2), check_quorum=False).become_leader()
    shell.propose()
    assert only(shell.run(), Append) == []
    shell.tick()
    assert [m.to for m in only(shell.run(), Heartbeat)] == [2]
    for _ in range(3):
        probes = only(shell.deliver(HeartbeatReply(ONE, TWO, Term(2))), Append)
        assert [(p.previous_index, bool(p.entries)) for p in probes] == [(1, True)]
        assert only(shell.run(), Append) == []


def test_probe_carries_entries() -> None:
    """The first message to a follower brings entries at once, so that agreement costs no extra round."""
    shell = Shell(1, voters=(1, 2))
    shell.call("campaign")
    shell.run()
    shell.step(_granted(shell, pre=True))
    shell.run()
    sent = shell.deliver(_granted(shell, pre=False))
    assert [len(a.entries) for a in only(sent, Append)] == [1]


def _granted(shell: Shell, *, pre: bool):  # type: ignore[no-untyped-def]
    from raftcache.raft.messages import VoteReply

    return VoteReply(ONE, TWO, Term(shell.raft.term + pre), granted=True, pre=pre)


def test_replicating_pipelines_without_waiting() -> None:
    """Once in step, every proposal leaves at once, next running ahead of match."""
    shell = leader()
    progress = shell.raft.progress[TWO]
    for number in range(1, 6):
        shell.propose()
        assert [a.previous_index for a in only(shell.run(), Append)] == [1 + number]
        assert (progress.match, progress.next) == (2, 3 + number)


def test_pipelined_messages_are_bounded_by_count() -> None:
    """At most `inflight_messages_max` appends with entries are unanswered; an answer frees its place."""
    shell = leader(inflight_messages_max=3)
    for _ in range(6):
        shell.propose()
        shell.run()
    assert shell.raft.progress[TWO].next == 6
    sent = shell.acknowledge(2, 3)
    carried = [e.index for a in only(sent, Append) for e in a.entries]
    assert carried[0] == 6
    assert len(shell.raft.progress[TWO].inflights) <= 3


def test_pipelined_messages_are_bounded_by_bytes() -> None:
    """Unanswered bytes are bounded; one entry above the bound still passes an empty window."""
    shell = leader(inflight_bytes_max=250, append_bytes_max=100)
    for _ in range(6):
        shell.propose(bytes(100))
        shell.run()
    assert shell.raft.progress[TWO].inflights.bytes_in_flight <= 300
    assert shell.raft.progress[TWO].next == 6
    shell.acknowledge(2, 5)
    shell.acknowledge(2)
    shell.propose(bytes(1000))
    assert [len(a.entries[0].data) for a in only(shell.run(), Append)] == [1000]


def test_window_slides_only_forward() -> None:
    """Late and repeated acknowledgements free nothing; a newer one frees all below it."""
    shell = leader(inflight_messages_max=4)
    for _ in range(4):
        shell.propose()
        shell.run()
    inflights = shell.raft.progress[TWO].inflights
    assert inflights.full()
    shell.acknowledge(2, 2)
    shell.acknowledge(2, 1)
    assert inflights.full()
    shell.acknowledge(2, 4)
    assert len(inflights) == 2
    shell.acknowledge(2, 3)
    assert len(inflights) == 2


def test_full_window_recovers_by_heartbeats_after_loss() -> None:
    """If all of a full window is lost, heartbeats alone get replication going again."""
    cluster = Cluster(2, inflight_messages_max=2, check_quorum=False)
    cluster.elect(1)
    with cluster.dropping(lambda m: isinstance(m, Append)):
        for number in range(4):
            cluster.propose(1, b"%d" % number)
    assert cluster[1].raft.progress[TWO].inflights.full()
    cluster.tick_until(lambda: cluster[2].raft.commit == cluster[1].raft.last_index, ticks_max=10)
    cluster.assert_converged()


def test_full_window_allows_an_empty_append_after_a_heartbeat_reply() -> None:
    """A full window gets an empty append when a heartbeat is answered: its refusal would tell of the loss."""
    shell = leader(inflight_messages_max=1)
    shell.propose()
    shell.run()
    for _ in range(2):
        sent = only(shell.deliver(HeartbeatReply(ONE, TWO, Term(2))), Append)
        assert [a.entries for a in sent] == [[]]
        assert shell.run() == []


def test_append_messages_are_bounded_in_bytes() -> None:
    """A long log travels in pages of `append_bytes_max`, at least one entry each."""
    shell = Shell(1, voters=(1, 2), append_bytes_max=250, check_quorum=False).become_leader()
    for size in (100, 100, 100, 400, 50):
        shell.propose(bytes(size))
    shell.run()
    pages = [[len(e.data) for e in a.entries] for a in only(shell.acknowledge(2, 2), Append)]
    assert pages == [[100, 100], [100], [400], [50]]


def test_refusal_in_pipeline_falls_back_to_probing() -> None:
    """A refused pipelined append means something was lost: back to one message at a time, from what is proved."""
    shell = leader()
    for _ in range(3):
        shell.propose()
        shell.run()
    progress = shell.raft.progress[TWO]
    sent = only(shell.deliver(AppendReply(ONE, TWO, Term(2), Index(4), True, Index(2), Term(2))), Append)
    assert progress.state is ProgressState.PROBE
    assert [a.previous_index for a in sent] == [2]
    shell.propose()
    assert only(shell.run(), Append) == []


def test_unreachable_follower_is_probed() -> None:
    """When the transport reports a lost connection, the leader stops running ahead."""
    shell = leader()
    for _ in range(3):
        shell.propose()
        shell.run()
    progress = shell.raft.progress[TWO]
    assert progress.next == 6
    shell.call("report_unreachable", TWO)
    assert progress.state is ProgressState.PROBE
    assert progress.next == progress.match + 1 == 3


def test_an_answer_that_brings_nothing_new_ends_a_probe() -> None:
    """A follower that had everything when it was lost says so once it is back, and is pipelined again at once."""
    shell = leader()
    shell.call("report_unreachable", TWO)
    shell.run()
    progress = shell.raft.progress[TWO]
    assert (progress.state, progress.match) == (ProgressState.PROBE, shell.raft.last_index)
    shell.acknowledge(2)
    assert progress.state is ProgressState.REPLICATE
    for _ in range(3):
        shell.propose()
        assert [len(a.entries) for a in only(shell.run(), Append)] == [1]


def test_unreachable_report_of_a_stranger_or_by_a_follower_is_ignored() -> None:
    """Reports about replicas that are no members, or to a follower, change nothing."""
    shell = leader()
    shell.call("report_unreachable", ids(9)[0])
    shell.deliver(beat(2, 1, 5))
    shell.call("report_unreachable", TWO)
    assert shell.raft.role is Role.FOLLOWER


def test_uncommitted_bytes_are_bounded() -> None:
    """Beyond the limit a proposal is refused definitely; empty ones and the first always pass; commits free room."""
    shell = leader(uncommitted_bytes_max=300)
    shell.propose(bytes(1000))  # the first passes whatever its size
    shell.run()
    with pytest.raises(Overloaded) as caught:
        shell.call("propose", bytes(1))
    assert caught.value.definite
    shell.propose(b"")  # an empty one costs nothing
    shell.run()
    shell.acknowledge(2)
    for _ in range(3):
        shell.propose(bytes(100))
        shell.run()
    with pytest.raises(Overloaded):
        shell.call("propose", bytes(100))
    shell.acknowledge(2)
    shell.propose(bytes(100))


def test_uncommitted_bytes_start_anew_with_leadership() -> None:
    """What an earlier leader left uncommitted does not lock out its successor's clients for ever."""
    cluster = Cluster(3, uncommitted_bytes_max=100)
    cluster.elect(1)
    cluster.isolate(1)
    cluster.propose(1, bytes(100))
    with pytest.raises(Overloaded):
        cluster[1].propose(bytes(10))
    cluster.wait_for_leader(among=(2, 3))
    cluster.heal()
    cluster.tick(3)
    cluster.wait_for_leader()
    number = cluster.leader().id
    for _ in range(5):
        cluster.propose(number, bytes(90))
    cluster.assert_converged()


def test_follower_that_is_far_ahead_in_next_still_gets_the_first_entry() -> None:
    """A follower whose log is longer than the leader's is brought back to it by probing."""
    shell = Shell(1, voters=(1, 2), log=(1,), term=1, check_quorum=False).become_leader()
    sent = shell.deliver(AppendReply(ONE, TWO, Term(2), Index(2), True, Index(1), Term(1)))
    assert [(a.previous_index, a.entries[0].index) for a in only(sent, Append)] == [(1, 2)]


def test_slow_follower_does_not_hold_the_others() -> None:
    """With one window full, the other followers get everything and commit goes on."""
    cluster = Cluster(3, inflight_messages_max=2)
    cluster.elect(1)
    held = cluster.hold(lambda m: isinstance(m, AppendReply) and m.from_ == 3)
    for number in range(50):
        cluster.propose(1, b"%d" % number)
    assert cluster[1].raft.commit == cluster[1].raft.last_index == 52
    assert len(cluster[1].raft.progress[THREE].inflights) <= 2
    cluster.release(held)
    cluster.settle()
    cluster.tick(2)
    cluster.assert_converged()


def test_entries_are_sent_again_from_match_after_a_restart_of_the_follower() -> None:
    """A follower that lost unsynced entries in a crash refuses, and gets them again."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.stall(3)
    for number in range(5):
        cluster.propose(1, b"%d" % number)
    cluster.crash(3)
    cluster.restart(3)
    cluster.tick(3)
    cluster.assert_converged()
    assert entry(1, 2).index == 2


def test_follower_that_lost_what_it_acknowledged_is_noticed_and_repaired() -> None:
    """Damage took acknowledged entries: the leader's next probe is refused below match, is counted, and they come again."""
    cluster = Cluster(3)
    cluster.elect(1)
    for number in range(4):
        cluster.propose(1, b"%d" % number)
    cluster.crash(3)
    cluster[3].image.entries = cluster[3].image.entries[:2]
    cluster.restart(3)
    cluster[1].call("report_unreachable", THREE)
    cluster.propose(1, b"next")
    cluster.tick(3)
    assert cluster[1].raft.log_regressions >= 1
    cluster.assert_converged()


def test_appends_of_one_turn_are_acknowledged_to_the_last() -> None:
    """Several appends before one write: one acknowledgement, of the largest index."""
    shell = Shell(1)
    shell.deliver(beat(2, 1, 2))
    for index, previous_term in ((2, 1), (3, 2), (4, 2)):
        shell.step(Append(ONE, TWO, Term(2), Index(index - 1), Term(previous_term), Index(1), [entry(2, index)]))
    assert [reply.index for reply in only(shell.run(), AppendReply)] == [4]


def test_uncommitted_bytes_are_exact_across_terms() -> None:
    """What was uncommitted under an earlier leadership does not count, nor is it subtracted, under the next."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.tick()
    with cluster.dropping(lambda m: isinstance(m, AppendReply)):
        cluster.propose(1, bytes(100))
        cluster.elect(2)
    cluster.tick(3)
    cluster.elect(1)
    with cluster.dropping(lambda m: isinstance(m, AppendReply)):
        cluster.propose(1, bytes(7))
        assert cluster[1].raft.status().uncommitted_bytes == 7
    cluster.tick(3)
    assert cluster[1].raft.status().uncommitted_bytes == 0
