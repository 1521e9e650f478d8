"""Replication and commit: what reaches the followers, what counts, and what late or repeated messages must not do."""

import random

import pytest

from raftcache.errors import NotLeader
from raftcache.ids import Index, ReplicaId, Term
from raftcache.raft.messages import Append, AppendReply, EntryKind, Heartbeat, HeartbeatReply, Role
from raftcache.raft.progress import ProgressState
from tests.raft.cluster import ELECTION_TICKS, Cluster, Shell, beat, entry, ids, only

ONE, TWO, THREE = ids(1, 2, 3)


def append(previous: tuple[int, int], *terms: int, term: int = 2, commit: int = 0, leader: int = 2) -> Append:
    """An append to replica 1 of entries with these terms."""
    items = [entry(t, previous[0] + 1 + offset) for offset, t in enumerate(terms)]
    return Append(ONE, ReplicaId(leader), Term(term), Index(previous[0]), Term(previous[1]), Index(commit), items)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_proposals_reach_every_state_machine_in_order(size: int) -> None:
    """What the leader accepts is applied everywhere, once, in the order of the log."""
    cluster = Cluster(size)
    cluster.elect(1)
    for number in range(20):
        cluster.propose(1, b"%d" % number)
    cluster.tick(2)
    assert cluster[1].data() == [b"%d" % number for number in range(20)]
    cluster.assert_converged()


def test_commit_index_travels_with_the_next_message_where_it_is_not_pushed() -> None:
    """Followers hear of it from the next Append or heartbeat; of the first commit of a term, and only of that, at once."""
    cluster = Cluster(3, push_commits=False)
    cluster.elect(1)
    assert cluster[1].raft.commit == cluster[2].raft.commit
    cluster.propose(1, b"x")
    assert ([b"x"], []) == (cluster[1].data(), cluster[2].data())
    cluster.propose(1, b"y")
    assert ([b"x", b"y"], [b"x"]) == (cluster[1].data(), cluster[2].data())
    cluster.tick(1)
    assert [b"x", b"y"] == cluster[2].data()
    cluster.assert_converged()


@pytest.mark.parametrize("stop", ["follower", "majority"])
def test_proposal_commits_only_with_a_majority_up(stop: str) -> None:
    """One follower down does not stop a group of three; two do, until one is back."""
    cluster = Cluster(3)
    cluster.elect(1)
    cluster.crash(2)
    if stop == "majority":
        cluster.crash(3)
    cluster.propose(1, b"x")
    assert cluster[1].data() == ([b"x"] if stop == "follower" else [])
    if stop == "majority":
        cluster.restart(3)
        cluster.tick(3)
        assert cluster[1].data() == [b"x"]


def test_single_voter_commits_by_its_own_disk_alone() -> None:
    """A group of one commits when its entry is durable, and not a moment earlier."""
    shell = Shell(1, voters=(1,)).become_leader()
    shell.stalled = True
    index = shell.propose(b"x")
    shell.run()
    assert shell.raft.commit < index
    assert shell.data() == []
    shell.stalled = False
    shell.sync()
    shell.run()
    assert shell.raft.commit == index
    assert shell.data() == [b"x"]


@pytest.mark.parametrize("with_new_entry", [False, True])
def test_old_entries_wait_for_an_entry_of_the_new_term(with_new_entry: bool) -> None:
    """Replicated entries of a deposed leader are committed with the new leader's first entry, and only with it."""
    cluster = Cluster(5)
    cluster.elect(1)
    cluster.isolate(3, 4, 5)
    cluster.propose(1, b"a")
    cluster.propose(1, b"b")
    assert cluster[1].raft.commit == 2
    cluster.heal()
    cluster.isolate(1)
    held = cluster.hold(lambda m: isinstance(m, Append) and any(e.kind is EntryKind.EMPTY for e in m.entries))
    cluster.elect(2)
    cluster.tick(3)
    assert (cluster[2].raft.role, cluster[2].raft.commit) == (Role.LEADER, 2)
    if with_new_entry:
        cluster.release(held)
        cluster.settle()
        cluster.tick(2)
        assert cluster[2].data() == [b"a", b"b"]
        assert cluster[2].raft.commit == cluster[2].raft.last_index == 5


def test_messages_of_a_deposed_leader_are_harmless() -> None:
    """An append of an old term, however tempting, is refused and changes no log."""
    cluster = Cluster(3, pre_vote=False, check_quorum=False)
    cluster.elect(1)
    cluster.elect(2)
    cluster.elect(1)
    before = cluster[3].observe()
    cluster[3].deliver(Append(THREE, TWO, Term(3), Index(3), Term(3), Index(9), [entry(3, 4, b"ghost")]))
    assert cluster[3].observe() == before
    cluster.propose(1, b"x")
    cluster.tick()
    assert cluster[3].data() == [b"x"]
    cluster.assert_converged()


@pytest.mark.parametrize("prepare", ["follower", "candidate", "pre-candidate", "newcomer", "learner"])
def test_only_a_leader_accepts_a_proposal(prepare: str) -> None:
    """Everyone else refuses definitely: nothing was appended."""
    shell = Shell(
        1,
        voters=(2, 3) if prepare == "learner" else (1, 2, 3),
        learners=(1,) if prepare == "learner" else (),
        empty=prepare == "newcomer",
        pre_vote=prepare == "pre-candidate",
    )
    if prepare.endswith("candidate"):
        shell.call("campaign")
        shell.run()
    last = shell.raft.last_index
    with pytest.raises(NotLeader) as caught:
        shell.call("propose", b"x")
    assert caught.value.definite
    assert shell.raft.last_index == last


@pytest.mark.parametrize(
    ("matches", "terms", "commit"),
    [
        ((2,), (2,), 2),
        ((2,), (1,), 1),
        ((1,), (2,), 1),
        ((2, 1, 1), (2,), 1),
        ((2, 1, 2), (2,), 2),
        ((2, 1, 2), (1,), 1),
        ((3, 2, 2, 1), (1, 2), 1),
        ((3, 3, 2, 2), (1, 2), 1),
        ((3, 3, 3, 1), (1, 2), 3),
        ((3, 3, 3, 1, 1), (1, 2), 3),
        ((3, 3, 2, 1, 1), (1, 2), 1),
    ],
)
def test_commit_index_is_what_a_majority_has_of_the_own_term(
    matches: tuple[int, ...], terms: tuple[int, ...], commit: int
) -> None:
    """A table: what each member has, the terms of the log, and what follows for a leader of term 2."""
    voters = tuple(range(1, len(matches) + 1))
    shell = Shell(1, voters=voters, log=terms[:-1] if terms[-1] == 2 else terms, term=1).become_leader()
    # The leader's own first entry (term 2) ends the log; members are counted only as far as the table says.
    if terms[-1] != 2:
        # No entry of the own term may be acknowledged by anyone in this row.
        assert max(matches[1:], default=0) <= 1 + len(terms) or len(matches) == 1
    for peer, match in zip(voters[1:], matches[1:], strict=True):
        if match > 1:
            shell.acknowledge(peer, match)
    expected = commit
    if len(matches) == 1:
        # Alone, its own disk has everything, the first entry of its term included.
        expected = shell.raft.last_index
    assert shell.raft.commit == expected


@pytest.mark.parametrize(
    ("message", "accepted", "last", "commit"),
    [
        (append((3, 2), term=3, commit=3), False, 3, 1),
        (append((4, 2), term=2, commit=3), False, 3, 1),
        (append((2, 1), term=2, commit=1), True, 3, 1),
        (append((1, 1), 2, term=2, commit=1), True, 2, 1),
        (append((3, 2), 2, 2, term=2, commit=3), True, 5, 3),
        (append((3, 2), 2, term=2, commit=4), True, 4, 4),
        (append((2, 1), 2, term=2, commit=4), True, 3, 3),
        (append((1, 1), term=2, commit=3), True, 3, 1),
        (append((2, 1), 2, term=2, commit=2), True, 3, 2),
        (append((3, 2), term=2, commit=9), True, 3, 3),
    ],
)
def test_follower_handles_an_append(message: Append, accepted: bool, last: int, commit: int) -> None:
    """A table for a log 1(1) 2(1) 3(2): consistency, truncation, and commit no further than what is proved to match."""
    terms = (1, 2) if message.previous_term != 2 or message.term != 3 else (1, 1)
    shell = Shell(1, log=terms, term=2)
    replies = only(shell.deliver(message), AppendReply)
    assert [r.rejected for r in replies] == [not accepted]
    assert (shell.raft.last_index, shell.raft.commit) == (last, commit)


@pytest.mark.parametrize(("commit", "expected"), [(1, 1), (2, 2), (3, 3), (9, 3)])
def test_follower_takes_the_commit_index_of_a_heartbeat(commit: int, expected: int) -> None:
    """A heartbeat moves commit forward, never back, and never beyond the log."""
    shell = Shell(1, log=(2, 2), term=2)
    shell.deliver(append((3, 2), term=2, commit=1))
    replies = only(shell.deliver(beat(2, 1, 2, commit)), HeartbeatReply)
    assert [r.to for r in replies] == [2]
    assert shell.raft.commit == expected
    shell.deliver(beat(2, 1, 2, 1))
    assert shell.raft.commit == expected


def test_heartbeat_commit_never_exceeds_what_the_follower_has() -> None:
    """To each follower the leader tells the smaller of its commit index and that follower's match."""
    shell = Shell(1).become_leader(acknowledged_by=(2,))
    for _ in range(3):
        shell.propose()
    shell.run()
    shell.acknowledge(2)
    assert shell.raft.commit == 5
    shell.tick()
    beats = {b.to: b.commit for b in only(shell.run(), Heartbeat)}
    assert beats[TWO] <= 5
    assert beats[THREE] <= shell.raft.progress[THREE].match < 2


def test_heartbeat_reply_makes_the_leader_resend_what_is_missing() -> None:
    """A follower that answers heartbeats without acknowledging entries gets something to answer to."""
    shell = Shell(1).become_leader(acknowledged_by=(3,))
    shell.propose()
    shell.run()
    # 2 is still probed: its first append was lost. A heartbeat's answer lets the leader try again.
    sent = shell.deliver(HeartbeatReply(ONE, TWO, Term(2)))
    again = only(sent, Append, to=2)
    assert len(again) == 1
    assert again[0].previous_index == 1
    # Once it is up to date, a heartbeat's answer brings nothing.
    shell.acknowledge(2)
    assert only(shell.deliver(HeartbeatReply(ONE, TWO, Term(2))), Append) == []


def test_acknowledgements_move_progress_and_commit() -> None:
    """Accepted moves match; rejected moves next down to the hint; both only for the term of the leader."""
    shell = Shell(1, log=(1, 1, 1), term=1).become_leader()
    progress = shell.raft.progress[TWO]
    sent = shell.deliver(AppendReply(ONE, TWO, Term(2), Index(4), True, Index(2), Term(1)))
    assert (progress.match, progress.next) == (0, 3) or progress.next <= 4
    assert [a.previous_index for a in only(sent, Append, to=2)] == [2]
    shell.deliver(AppendReply(ONE, TWO, Term(2), Index(5)))
    assert (progress.match, progress.next) == (5, 6)
    assert shell.raft.commit == 5


def test_stale_rejection_does_not_move_next_below_match() -> None:
    """A delayed refusal of something that was acknowledged since does nothing."""
    shell = Shell(1, log=(1, 1, 1), term=1).become_leader()
    shell.acknowledge(2)
    shell.propose()
    shell.run()
    progress = shell.raft.progress[TWO]
    assert (progress.match, progress.next, progress.state) == (5, 7, ProgressState.REPLICATE)
    for index in (2, 5):
        assert shell.deliver(AppendReply(ONE, TWO, Term(2), Index(index), True, Index(1), Term(1))) == []
        assert (progress.match, progress.next, progress.state) == (5, 7, ProgressState.REPLICATE)


def test_reordered_acknowledgements_do_not_go_back() -> None:
    """Acknowledgements that overtake each other leave the largest match, and next above it."""
    shell = Shell(1).become_leader(acknowledged_by=(2,))
    for _ in range(5):
        shell.propose()
    shell.run()
    order = list(range(3, 8))
    random.Random(7).shuffle(order)
    for index in order:
        shell.acknowledge(2, index)
        assert shell.raft.progress[TWO].next > shell.raft.progress[TWO].match
    assert shell.raft.progress[TWO].match == 7
    assert shell.raft.commit == 7


def test_reordered_and_repeated_appends_end_in_the_same_log() -> None:
    """Appends delivered in any order, some twice, leave the follower with the leader's log."""
    for seed in range(10):
        generator = random.Random(seed)
        cluster = Cluster(3)
        cluster.elect(1)
        held = cluster.hold(lambda m: isinstance(m, Append) and m.to == 2)
        for number in range(6):
            cluster.propose(1, b"%d" % number)

        def muddle(messages: list, generator: random.Random = generator) -> list:  # type: ignore[type-arg]
            messages = messages + generator.sample(messages, len(messages) // 2)
            generator.shuffle(messages)
            return messages

        cluster.release(held, order=muddle)
        cluster.settle()
        cluster.tick(3)
        cluster.assert_converged()


@pytest.mark.parametrize(
    ("leader_log", "follower_log", "probes"),
    [
        # Terms only; both begin with (1, term 1). The number of refusals is at most one for each term in question.
        ((1, 2, 2, 4, 4, 4, 4), (1, 2, 2, 3, 3, 3), 1),
        ((1, 2, 2, 4, 4, 4, 4), (1, 2, 2, 3, 3, 3, 3, 3, 3), 1),
        ((1, 1, 1, 3, 3, 3, 3), (1, 1, 1, 1, 2, 2, 2, 2), 2),
        ((1, 3, 3, 3, 4), (1,), 1),
        ((1, 3, 3, 3, 4), (1, 3, 3, 3, 4), 0),
        ((1, 5, 5, 5), (1, 4, 4, 4, 4, 4, 4), 1),
        ((4, 6, 6, 6), (2, 2, 2, 3, 3, 3, 3, 3, 3), 2),
    ],
)
def test_conflicts_are_found_with_one_probe_per_term(
    leader_log: tuple[int, ...], follower_log: tuple[int, ...], probes: int
) -> None:
    """Hints on both sides skip whole terms (end of §5.3)."""
    cluster = Cluster(3, logs={1: leader_log, 2: follower_log}, terms=dict.fromkeys((1, 2, 3), 7), pre_vote=False)
    refusals: list[AppendReply] = []
    cluster.watchers.append(lambda m: refusals.append(m) if isinstance(m, AppendReply) and m.rejected else None)
    cluster[1].call("campaign")
    cluster.settle()
    assert cluster[1].raft.role is Role.LEADER
    cluster.tick(2)
    cluster.assert_converged()
    assert len([r for r in refusals if r.from_ == 2]) <= probes


def test_commit_index_is_pushed_to_followers_at_once() -> None:
    """When commit advances, followers learn of it without waiting for a heartbeat."""
    cluster = Cluster(3)
    cluster.elect(1)
    index = cluster.propose(1, b"x")
    assert [shell.raft.commit for shell in cluster.shells] == [index] * 3


def test_commit_can_follow_from_a_removed_voter() -> None:
    """Removing a voter that is down makes the remaining acknowledgements a majority at once."""
    from raftcache.raft.configuration import ConfigurationChange

    cluster = Cluster(2)
    cluster.elect(1)
    cluster.tick()
    cluster.crash(2)
    index = cluster[1].propose(b"x")
    cluster.settle()
    assert cluster[1].raft.commit < index
    # With configurations in force when appended, the removal itself already counts only replica 1.
    cluster.change(1, ConfigurationChange(remove=ids(2)))
    assert cluster[1].raft.commit == cluster[1].raft.last_index > index


def test_leader_sends_while_it_writes() -> None:
    """Entries leave for the followers before the leader's own disk has them; only its own count waits."""
    shell = Shell(1).become_leader(acknowledged_by=(2, 3))
    shell.stalled = True
    index = shell.propose(b"x")
    sent = shell.run()
    assert {a.to for a in only(sent, Append) if a.entries} == set(ids(2, 3))
    shell.acknowledge(2)
    assert shell.raft.commit == index - 1
    # Two followers are a majority without the leader's disk; but nothing is applied here that is not durable here.
    shell.acknowledge(3)
    assert shell.raft.commit == index
    assert shell.data() == []
    shell.stalled = False
    shell.sync()
    shell.run()
    assert shell.data() == [b"x"]


def test_entries_are_proposed_with_the_position_they_get() -> None:
    """A proposal returns the term and index under which it will be found, or never."""
    shell = Shell(1).become_leader()
    term, index = shell.call("propose", b"x")
    shell.run()
    assert shell.written.term_at(index) == term == shell.raft.term
    assert shell.written.entries[-1].data == b"x"


def test_election_timeout_is_not_reached_under_heartbeats() -> None:
    """A quiet group keeps its leader and term for a long time."""
    cluster = Cluster(5)
    cluster.elect(2)
    cluster.tick(20 * ELECTION_TICKS)
    assert [shell.id for shell in cluster.leaders()] == [2]
    assert {shell.raft.term for shell in cluster.shells} == {2}
