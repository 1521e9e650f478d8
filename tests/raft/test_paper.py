"""The Raft paper, section by section: one test for each statement that a replica can be held to.

The group begins at (1, term 1); a log written `log=(1, 2, 2)` has entries of these terms from index 2 on. The rows are
those that etcd-io/raft's paper tests cover; the scenarios are our own.
"""

from itertools import product

import pytest

from raftcache.ids import NO_REPLICA, Index, ReplicaId, Term
from raftcache.raft.messages import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    Message,
    RequestVote,
    Role,
    VoteReply,
)
from tests.raft.cluster import BOOT_INDEX, ELECTION_TICKS, Cluster, Shell, beat, entry, ids, only

ONE, TWO, THREE = ids(1, 2, 3)


def shell_in(role: Role, **options: object) -> Shell:
    """A replica 1 of three in this role, in term 2 (a follower: of leader 2)."""
    settings: dict[str, object] = {"pre_vote": False, "check_quorum": False, **options}
    shell = Shell(1, **settings)  # type: ignore[arg-type]
    match role:
        case Role.FOLLOWER:
            shell.deliver(beat(2, 1, 2))
        case Role.CANDIDATE:
            shell.become_candidate()
        case Role.LEADER:
            shell.become_leader()
        case Role.PRE_CANDIDATE:
            raise AssertionError("the paper proper has no pre-candidates")
    assert (shell.raft.role, shell.raft.term) == (role, 2)
    return shell


def append(to: int, from_: int, term: int, previous: tuple[int, int], *entries: Entry, commit: int = 0) -> Append:
    """An append after `previous` = (index, term)."""
    return Append(
        ReplicaId(to), ReplicaId(from_), Term(term), Index(previous[0]), Term(previous[1]), Index(commit), list(entries)
    )


# --- §5.1 Terms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE, Role.LEADER], ids=lambda role: role.name.lower())
@pytest.mark.parametrize(
    "message",
    [
        append(1, 2, 5, (1, 1)),
        Heartbeat(ONE, TWO, Term(5), Index(0)),
        RequestVote(ONE, TWO, Term(5), Index(1), Term(1)),
        AppendReply(ONE, TWO, Term(5), Index(1), rejected=True),
        HeartbeatReply(ONE, TWO, Term(5)),
        VoteReply(ONE, TWO, Term(5), granted=False),
    ],
    ids=lambda message: type(message).__name__,
)
def test_higher_term_makes_any_role_a_follower(role: Role, message: Message) -> None:
    """§5.1: whoever sees a newer term adopts it and follows."""
    shell = shell_in(role)
    shell.deliver(message)
    assert (shell.raft.role, shell.raft.term) == (Role.FOLLOWER, 5)
    assert shell.raft.leader == (2 if isinstance(message, (Append, Heartbeat)) else NO_REPLICA)


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE, Role.LEADER], ids=lambda role: role.name.lower())
def test_messages_of_an_old_term_change_nothing(role: Role) -> None:
    """§5.1: requests and replies of an older term are turned away before any role looks at them."""
    shell = shell_in(role)
    before = shell.observe()
    replies = shell.deliver(
        append(1, 3, 1, (1, 1), entry(1, 2), commit=2),
        Heartbeat(ONE, THREE, Term(1), Index(2)),
        RequestVote(ONE, THREE, Term(1), Index(9), Term(1)),
        AppendReply(ONE, THREE, Term(1), Index(9)),
        HeartbeatReply(ONE, THREE, Term(1), read_position=9),
        VoteReply(ONE, THREE, Term(1), granted=True),
    )
    assert shell.observe() == before
    # Whatever is answered says the newer term, and grants or accepts nothing.
    for reply in replies:
        assert reply.term == 2
        assert not (isinstance(reply, VoteReply) and reply.granted)
        assert not (isinstance(reply, AppendReply) and not reply.rejected and reply.index > BOOT_INDEX)


# --- §5.2 Elections -----------------------------------------------------------------------------------------------------


def test_replica_starts_as_follower() -> None:
    """§5.2: every replica starts as a follower who knows no leader, in the term of its disk."""
    shell = Shell(1, term=7)
    assert (shell.raft.role, shell.raft.leader, shell.raft.term) == (Role.FOLLOWER, NO_REPLICA, 7)


def test_leader_sends_empty_heartbeats_to_all_each_interval() -> None:
    """§5.2: a leader keeps its authority by a heartbeat to every other member, once an interval."""
    shell = Shell(1, voters=(1, 2, 3), learners=(4,), heartbeat_ticks=3, check_quorum=False).become_leader()
    for _ in range(2):
        shell.tick(2)
        assert only(shell.run(), Heartbeat) == []
        shell.tick()
        beats = only(shell.run(), Heartbeat)
        assert [(b.to, b.term) for b in beats] == [(peer, shell.raft.term) for peer in ids(2, 3, 4)]


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE], ids=["follower", "candidate"])
def test_election_timeout_opens_a_new_term_and_asks_everyone(role: Role) -> None:
    """§5.2: who hears no leader for a timeout raises its term, votes for itself and asks all voters; again if undecided."""
    shell = shell_in(role)
    requests: list[RequestVote] = []
    for _ in range(2 * ELECTION_TICKS):
        shell.tick()
        requests = only(shell.run(), RequestVote)
        if requests:
            break
    assert (shell.raft.role, shell.raft.term, shell.raft.vote) == (Role.CANDIDATE, 3, 1)
    assert [(r.to, r.term, r.pre) for r in requests] == [(2, 3, False), (3, 3, False)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_election_outcome_follows_the_votes(size: int) -> None:
    """§5.2: a majority of yes wins, a majority of no (or any other impossibility) loses, all else stays open."""
    voters = tuple(range(1, size + 1))
    for answers in product((True, False, None), repeat=size - 1):
        shell = Shell(1, voters=voters, pre_vote=False).become_candidate()
        for peer, answer in zip(voters[1:], answers, strict=True):
            if answer is not None and shell.raft.role is Role.CANDIDATE:
                shell.deliver(VoteReply(ONE, ReplicaId(peer), Term(2), granted=answer))
        yes, no = 1 + answers.count(True), answers.count(False)
        majority = size // 2 + 1
        expected = Role.LEADER if yes >= majority else Role.FOLLOWER if no > size - majority else Role.CANDIDATE
        # Answers arrive in order, so an election that is decided early stays decided.
        assert shell.raft.role is expected, f"{size} voters, answers {answers}"
        assert shell.raft.term == 2


@pytest.mark.parametrize(
    ("vote", "candidate", "granted"),
    [(0, 2, True), (0, 3, True), (2, 2, True), (3, 3, True), (2, 3, False), (3, 2, False)],
)
def test_one_vote_in_a_term_first_come_first_served(vote: int, candidate: int, granted: bool) -> None:
    """§5.2: a voter gives one vote in a term, and gives the same one again when asked again."""
    shell = Shell(1, term=2, vote=vote, log=())
    replies = only(shell.deliver(RequestVote(ONE, ReplicaId(candidate), Term(2), Index(1), Term(1))), VoteReply)
    assert [(r.to, r.term, r.granted) for r in replies] == [(candidate, 2, granted)]
    assert shell.raft.vote == (vote or candidate)


@pytest.mark.parametrize("term", [2, 3], ids=["same term", "higher term"])
def test_candidate_yields_to_a_leader(term: int) -> None:
    """§5.2: an append or heartbeat of a leader of at least its own term ends a candidacy."""
    for message in (append(1, 3, term, (1, 1)), beat(3, 1, term)):
        shell = shell_in(Role.CANDIDATE)
        shell.deliver(message)
        assert (shell.raft.role, shell.raft.term, shell.raft.leader) == (Role.FOLLOWER, term, 3)


def ticks_until_campaign(shell: Shell) -> int:
    """How many ticks pass until the replica raises its term."""
    term = shell.raft.term
    for count in range(1, 100):
        shell.tick()
        shell.run()
        if shell.raft.term > term:
            return count
    raise AssertionError("no campaign in 100 ticks")


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE], ids=["follower", "candidate"])
def test_election_timeouts_are_spread_over_the_whole_range(role: Role) -> None:
    """§5.2: over many draws every timeout from T to 2T-1 ticks occurs, and no other."""
    seen = set()
    for seed in range(200):
        shell = shell_in(role, seed=seed)
        seen.add(ticks_until_campaign(shell))
    assert seen == set(range(ELECTION_TICKS, 2 * ELECTION_TICKS))


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE], ids=["followers", "candidates"])
def test_simultaneous_timeouts_are_rare(role: Role) -> None:
    """§5.2: among five replicas, most often exactly one times out first."""
    conflicts = 0
    for seed in range(100):
        counts = []
        for number in range(1, 6):
            shell = Shell(number, voters=(1, 2, 3, 4, 5), seed=seed, pre_vote=False, check_quorum=False)
            if role is Role.FOLLOWER:
                shell.deliver(beat(number % 5 + 1, number, 2))
            else:
                shell.become_candidate()
            counts.append(ticks_until_campaign(shell))
        conflicts += counts.count(min(counts)) > 1
    # With five draws from ten values the chance that the smallest is not unique is 0.32; 100 draws stay well below 0.5.
    assert conflicts < 50


# --- §5.3 Log replication -----------------------------------------------------------------------------------------------


def test_leader_appends_and_sends_with_the_position_before() -> None:
    """§5.3: a proposal goes to the own log and to every follower, with index and term of the entry before it."""
    shell = Shell(1).become_leader(acknowledged_by=(2, 3))
    shell.run()
    index = shell.propose(b"x")
    appends = only(shell.run(), Append)
    expected = Entry(Term(2), index, EntryKind.COMMANDS, b"x")
    assert [(a.to, a.previous_index, a.previous_term, a.entries) for a in appends if a.entries] == [
        (peer, index - 1, 2, [expected]) for peer in ids(2, 3)
    ]
    assert shell.written.entries[-1] == expected


def test_leader_commits_when_a_majority_has_the_entry_and_tells_the_others() -> None:
    """§5.3: a majority's acknowledgement commits; the commit index travels in later messages, and the entry is applied."""
    shell = Shell(1).become_leader(acknowledged_by=(2, 3))
    index = shell.propose(b"x")
    shell.run()
    assert shell.raft.commit == index - 1
    sent = shell.acknowledge(2)
    assert shell.raft.commit == index
    assert shell.data() == [b"x"]
    assert {a.to for a in only(sent, Append) if a.commit == index} == set(ids(2, 3))


@pytest.mark.parametrize(
    ("size", "acknowledging", "committed"),
    [
        (1, (), True),
        (2, (), False),
        (2, (2,), True),
        (3, (), False),
        (3, (2,), True),
        (3, (2, 3), True),
        (4, (2,), False),
        (4, (2, 3), True),
        (5, (2,), False),
        (5, (2, 3), True),
        (5, (4, 5), True),
    ],
)
def test_commit_needs_a_majority_of_any_size(size: int, acknowledging: tuple[int, ...], committed: bool) -> None:
    """§5.3: the leader's disk and those that acknowledge must be more than half."""
    voters = tuple(range(1, size + 1))
    shell = Shell(1, voters=voters).become_leader(acknowledged_by=voters[1:])
    index = shell.propose(b"x")
    shell.run()
    for peer in acknowledging:
        shell.acknowledge(peer)
    assert (shell.raft.commit >= index) is committed


@pytest.mark.parametrize("log", [(), (2,), (1, 2), (1,)], ids=str)
def test_committing_an_own_entry_commits_all_before_it(log: tuple[int, ...]) -> None:
    """§5.3, §5.4.2: entries of earlier terms are committed by an entry of the leader's own term above them."""
    shell = Shell(1, log=log, term=2).become_leader()
    index = shell.propose(b"x")
    shell.run()
    assert shell.raft.commit == BOOT_INDEX
    shell.acknowledge(2)
    assert shell.raft.commit == index == len(log) + 3
    assert [(i, t) for i, t, _, _ in shell.machine] == [(2 + offset, term) for offset, term in enumerate([*log, 3, 3])]


@pytest.mark.parametrize(
    ("entries", "commit"),
    [(1, 2), (2, 3), (2, 2), (3, 3), (2, 9)],
)
def test_follower_applies_in_order_what_the_leader_calls_committed(entries: int, commit: int) -> None:
    """§5.3: a follower applies up to the leader's commit index, as far as this message proves its log to match."""
    shell = Shell(1)
    items = [entry(2, 2 + offset) for offset in range(entries)]
    shell.deliver(append(1, 2, 2, (1, 1), *items, commit=commit))
    expected = items[: min(commit, 1 + entries) - 1]
    assert shell.raft.commit == 1 + len(expected)
    assert [(i, t, d) for i, t, _, d in shell.machine] == [(e.index, e.term, e.data) for e in expected]


@pytest.mark.parametrize(
    ("previous", "accepted_to", "hint"),
    [
        ((1, 1), 1, None),
        ((2, 1), 2, None),
        ((3, 2), 3, None),
        ((3, 1), None, (2, 1)),
        ((3, 3), None, (3, 2)),
        ((4, 4), None, (3, 2)),
        ((9, 2), None, (3, 2)),
        ((9, 1), None, (2, 1)),
    ],
)
def test_follower_checks_the_entry_before_and_hints_where_to_go(
    previous: tuple[int, int], accepted_to: int | None, hint: tuple[int, int] | None
) -> None:
    """§5.3: without the entry before, an append is refused, with the best lower candidate for a match as a hint."""
    shell = Shell(1, log=(1, 2), term=2)
    replies = only(shell.deliver(append(1, 2, 5, previous)), AppendReply)
    if accepted_to is not None:
        assert replies == [AppendReply(TWO, ONE, Term(5), Index(accepted_to))]
    else:
        assert hint is not None
        assert replies == [AppendReply(TWO, ONE, Term(5), Index(previous[0]), True, Index(hint[0]), Term(hint[1]))]
    assert shell.terms() == [1, 2]


@pytest.mark.parametrize(
    ("previous", "terms", "log"),
    [
        ((3, 2), (3,), (1, 2, 3)),
        ((2, 1), (3, 4), (1, 3, 4)),
        ((1, 1), (1,), (1, 2)),
        ((1, 1), (3,), (3,)),
        ((1, 1), (1, 2), (1, 2)),
        ((1, 1), (1, 2, 3), (1, 2, 3)),
        ((2, 1), (), (1, 2)),
    ],
)
def test_follower_removes_only_what_conflicts(
    previous: tuple[int, int], terms: tuple[int, ...], log: tuple[int, ...]
) -> None:
    """§5.3: an entry of another term at the same index removes the tail; entries that are there already stay, and their tail too."""
    shell = Shell(1, log=(1, 2), term=2)
    items = [entry(term, previous[0] + 1 + offset) for offset, term in enumerate(terms)]
    shell.deliver(append(1, 2, 4, previous, *items))
    assert shell.terms() == list(log)
    assert [item.data for item in shell.written.entries] == [b"%d.%d" % (t, 2 + i) for i, t in enumerate(log)]


FIGURE_7_LEADER = (1, 1, 4, 4, 5, 5, 6, 6, 6)
FIGURE_7 = {
    "a: one entry missing": (1, 1, 4, 4, 5, 5, 6, 6),
    "b: half the log missing": (1, 1, 4),
    "c: one entry too many": (1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
    "d: a term too many": (1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
    "e: missing and too many": (1, 1, 4, 4, 4, 4),
    "f: another history": (1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
}
"""Figure 7 of the paper without the first entry, which is the synthetic snapshot here."""


@pytest.mark.parametrize("follower_log", FIGURE_7.values(), ids=FIGURE_7.keys())
@pytest.mark.parametrize("pre_vote", [True, False], ids=["pre-vote", "no pre-vote"])
def test_every_log_of_figure_7_converges(follower_log: tuple[int, ...], pre_vote: bool) -> None:
    """§5.3, Figure 7: whatever a follower lacks or has too much, it ends with the leader's log."""
    cluster = Cluster(
        3,
        logs={1: FIGURE_7_LEADER, 2: follower_log, 3: ()},
        terms={1: 7, 2: 7, 3: 7},
        pre_vote=pre_vote,
    )
    # Replica 3 has an empty log, so its vote makes 1 the leader whatever 2 says.
    cluster.elect(1)
    cluster.propose(1, b"x")
    cluster.tick(2)
    assert cluster[2].terms() == [*FIGURE_7_LEADER, 8, 8]
    cluster.assert_converged()


@pytest.mark.parametrize(
    ("candidate", "wins"),
    [("a", True), ("b", False), ("c", True), ("d", True), ("e", False), ("f", False), ("leader", True)],
)
def test_only_the_right_logs_of_figure_7_can_win(candidate: str, wins: bool) -> None:
    """§5.4.1 on Figure 7: a (votes of b, e, f), c and d can collect four of seven votes; b, e and f never."""
    logs = dict(enumerate(FIGURE_7.values(), start=2))
    numbers = {"leader": 1, **{name[0]: number for number, name in enumerate(FIGURE_7, start=2)}}
    cluster = Cluster(
        7, logs={1: FIGURE_7_LEADER, **logs}, terms=dict.fromkeys(range(1, 8), 7), pre_vote=False, check_quorum=False
    )
    number = numbers[candidate]
    cluster[number].call("campaign")
    cluster.settle()
    assert (cluster[number].raft.role is Role.LEADER) is wins
    if wins:
        cluster.tick(3)
        cluster.assert_converged()


# --- §5.4 Safety --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log", [(), (1,), (2, 2), (1, 2, 3)], ids=str)
def test_vote_request_carries_the_end_of_the_log(log: tuple[int, ...]) -> None:
    """§5.4.1: a candidate tells index and term of its last entry."""
    shell = Shell(1, log=log, pre_vote=False)
    shell.call("campaign")
    requests = only(shell.run(), RequestVote)
    last_term = log[-1] if log else 1
    assert [(r.to, r.last_index, r.last_term) for r in requests] == [(p, 1 + len(log), last_term) for p in ids(2, 3)]


@pytest.mark.parametrize(
    ("log", "last", "granted"),
    [
        ((2,), (2, 2), True),
        ((2,), (3, 2), True),
        ((2, 2), (2, 2), False),
        ((2,), (2, 3), True),
        ((2, 2), (2, 3), True),
        ((2,), (9, 1), False),
        ((2, 3), (3, 2), False),
        ((), (1, 1), True),
    ],
)
@pytest.mark.parametrize("pre", [False, True], ids=["vote", "pre-vote"])
def test_voter_refuses_a_log_behind_its_own(
    log: tuple[int, ...], last: tuple[int, int], granted: bool, pre: bool
) -> None:
    """§5.4.1: the later last term is ahead; within one term, the longer log."""
    shell = Shell(1, log=log, term=3)
    replies = only(shell.deliver(RequestVote(ONE, TWO, Term(4), Index(last[0]), Term(last[1]), pre=pre)), VoteReply)
    assert [r.granted for r in replies] == [granted]
    assert shell.raft.vote == (2 if granted and not pre else NO_REPLICA)


@pytest.mark.parametrize(("acknowledged", "commit"), [(2, 1), (3, 1), (4, 4), (5, 5)])
def test_leader_commits_by_counting_only_in_its_own_term(acknowledged: int, commit: int) -> None:
    """§5.4.2: entries of earlier terms are never committed by counting copies."""
    shell = Shell(1, log=(1, 2), term=2).become_leader()
    shell.propose(b"x")
    shell.run()
    # The log is now 1(1) 2(1) 3(2) 4(3) 5(3).
    shell.acknowledge(2, acknowledged)
    assert shell.raft.commit == commit
