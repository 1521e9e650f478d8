"""The checkers prove themselves: for each invariant a sound value that passes, and a broken one that trips exactly it."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from raftcache.ids import NO_REPLICA, Index, ReplicaId, Term
from raftcache.raft.messages import Configuration, Entry, EntryKind, HardState, Role
from tests.raft.cluster import entry, ids
from tests.raft.invariants import (
    GHOST_INVARIANTS,
    STATE_INVARIANTS,
    STEP_INVARIANTS,
    Durable,
    Ghost,
    InvariantViolated,
    Peer,
    State,
    Step,
    check_state,
    check_step,
    is_quorum,
)

THREE = Configuration(voters=ids(1, 2, 3))
LEADER = State(
    replica=ReplicaId(1),
    role=Role.LEADER,
    term=Term(3),
    vote=ReplicaId(1),
    leader=ReplicaId(1),
    commit=Index(4),
    applied=Index(4),
    last_index=Index(6),
    last_term=Term(3),
    configuration=THREE,
    configuration_index=Index(1),
    transferee=NO_REPLICA,
    peers=(
        Peer(ReplicaId(1), Index(5), Index(7)),
        Peer(ReplicaId(2), Index(4), Index(7)),
        Peer(ReplicaId(3), Index(0), Index(5)),
    ),
    durable_index=Index(5),
)
FOLLOWER = replace(LEADER, role=Role.FOLLOWER, vote=ReplicaId(2), leader=ReplicaId(2), peers=())
CANDIDATE = replace(FOLLOWER, role=Role.CANDIDATE, vote=ReplicaId(1), leader=NO_REPLICA)

BROKEN_STATES: dict[str, list[State]] = {
    "check_order_of_positions": [
        replace(FOLLOWER, applied=Index(5)),
        replace(FOLLOWER, commit=Index(7)),
        replace(FOLLOWER, commit=Index(-1), applied=Index(-1)),
    ],
    "check_log_term_within_term": [replace(FOLLOWER, last_term=Term(4))],
    "check_leader_knows_itself": [
        replace(LEADER, leader=ReplicaId(2)),
        replace(LEADER, vote=ReplicaId(2)),
        replace(FOLLOWER, leader=ReplicaId(1)),
    ],
    "check_candidate_votes_for_itself": [
        replace(CANDIDATE, vote=ReplicaId(2)),
        replace(CANDIDATE, leader=ReplicaId(2)),
        replace(CANDIDATE, role=Role.PRE_CANDIDATE, leader=ReplicaId(2)),
    ],
    "check_configuration_shape": [
        replace(FOLLOWER, configuration=Configuration(voters=(ReplicaId(2), ReplicaId(1)))),
        replace(FOLLOWER, configuration=Configuration(voters=(ReplicaId(1), ReplicaId(1)))),
        replace(FOLLOWER, configuration=Configuration(voters=ids(1, 2), learners=ids(2))),
        replace(FOLLOWER, configuration=Configuration(voters=ids(1, 2), learners_next=ids(3))),
        replace(
            FOLLOWER,
            configuration=Configuration(voters=ids(1, 2), voters_outgoing=ids(1, 2), learners_next=ids(2)),
        ),
        replace(FOLLOWER, configuration_index=Index(7)),
    ],
    "check_peers_are_the_members": [
        replace(LEADER, peers=LEADER.peers[:2]),
        replace(LEADER, peers=(*LEADER.peers, Peer(ReplicaId(4), Index(0), Index(1)))),
    ],
    "check_peer_positions": [
        replace(LEADER, peers=(*LEADER.peers[:2], Peer(ReplicaId(3), Index(5), Index(5)))),
        replace(LEADER, peers=(*LEADER.peers[:2], Peer(ReplicaId(3), Index(7), Index(8)))),
    ],
    "check_own_acknowledgement_is_durable": [replace(LEADER, durable_index=Index(4))],
    "check_transferee_is_a_voter": [
        replace(LEADER, transferee=ReplicaId(1)),
        replace(LEADER, transferee=ReplicaId(4)),
        replace(FOLLOWER, transferee=ReplicaId(3)),
    ],
}


def step_of(before: State, after: State, **terms: Term | None) -> Step:
    """A step in which the log kept what it had, unless told otherwise."""
    settings: dict[str, Term | None] = {
        "term_at_old_commit": Term(2),
        "term_at_old_commit_before": Term(2),
        "term_at_old_last": before.last_term,
    }
    settings.update(terms)
    return Step(before, after, **settings)  # type: ignore[arg-type]


BROKEN_STEPS: dict[str, list[Step]] = {
    "check_term_never_goes_back": [step_of(FOLLOWER, replace(FOLLOWER, term=Term(2)))],
    "check_one_vote_in_a_term": [
        step_of(FOLLOWER, replace(FOLLOWER, vote=ReplicaId(3))),
        step_of(FOLLOWER, replace(FOLLOWER, vote=NO_REPLICA)),
    ],
    "check_commit_never_goes_back": [step_of(FOLLOWER, replace(FOLLOWER, commit=Index(3), applied=Index(3)))],
    "check_applied_never_goes_back": [step_of(FOLLOWER, replace(FOLLOWER, applied=Index(3)))],
    "check_committed_prefix_is_kept": [
        step_of(FOLLOWER, replace(FOLLOWER, last_index=Index(3), commit=Index(4))),
        step_of(FOLLOWER, FOLLOWER, term_at_old_commit=Term(3)),
    ],
    "check_leader_only_appends": [
        step_of(LEADER, replace(LEADER, last_index=Index(5))),
        step_of(LEADER, LEADER, term_at_old_last=Term(2)),
    ],
    "check_role_change_is_legal": [
        step_of(LEADER, replace(CANDIDATE, term=Term(4))),
        step_of(LEADER, replace(LEADER, term=Term(4))),
        step_of(FOLLOWER, LEADER),
        step_of(CANDIDATE, replace(LEADER, term=Term(4))),
        step_of(replace(CANDIDATE, role=Role.PRE_CANDIDATE), CANDIDATE),
        step_of(FOLLOWER, replace(CANDIDATE, role=Role.PRE_CANDIDATE, term=Term(4))),
    ],
    "check_one_leader_in_a_term_is_followed": [step_of(FOLLOWER, replace(FOLLOWER, leader=ReplicaId(3)))],
    "check_match_never_goes_back": [
        step_of(
            LEADER, replace(LEADER, peers=(LEADER.peers[0], Peer(ReplicaId(2), Index(3), Index(4)), LEADER.peers[2]))
        )
    ],
}


@pytest.mark.parametrize("state", [LEADER, FOLLOWER, CANDIDATE], ids=["leader", "follower", "candidate"])
def test_sound_state_passes(state: State) -> None:
    """A legal observation trips nothing."""
    check_state(state)
    check_step(step_of(state, state))


@pytest.mark.parametrize("invariant", STATE_INVARIANTS, ids=lambda invariant: invariant.__name__)
def test_broken_state_trips_its_invariant(invariant: Callable[[State], None]) -> None:
    """Each state invariant trips on each of its broken states, and by name in the whole set."""
    for state in BROKEN_STATES[invariant.__name__]:
        with pytest.raises(InvariantViolated) as caught:
            invariant(state)
        assert caught.value.name == invariant.__name__
        with pytest.raises(InvariantViolated):
            check_state(state)


@pytest.mark.parametrize("invariant", STEP_INVARIANTS, ids=lambda invariant: invariant.__name__)
def test_broken_step_trips_its_invariant(invariant: Callable[[Step], None]) -> None:
    """Each step invariant trips on each of its broken steps, and by name in the whole set."""
    for step in BROKEN_STEPS[invariant.__name__]:
        with pytest.raises(InvariantViolated) as caught:
            invariant(step)
        assert caught.value.name == invariant.__name__
        with pytest.raises(InvariantViolated):
            check_step(step)


def disk(replica: int, *terms: int, term: int = 3, vote: int = 0, compacted_to: int = 0) -> Durable:
    """A disk with entries of these terms from index 1 on."""
    held = {Index(index): Term(t) for index, t in enumerate(terms, start=1)}
    return Durable(ReplicaId(replica), HardState(Term(term), ReplicaId(vote)), held.get, Index(compacted_to))


def trip_election_safety(ghost: Ghost) -> None:
    ghost.check_election_safety(ReplicaId(1), Term(2))
    ghost.check_election_safety(ReplicaId(1), Term(2))
    ghost.check_election_safety(ReplicaId(2), Term(3))
    ghost.check_election_safety(ReplicaId(2), Term(2))


def trip_followed_leader(ghost: Ghost) -> None:
    ghost.check_election_safety(ReplicaId(1), Term(2))
    ghost.check_followed_leader_was_elected(ReplicaId(3), Term(2), ReplicaId(1))
    ghost.check_followed_leader_was_elected(ReplicaId(3), Term(2), NO_REPLICA)
    ghost.check_followed_leader_was_elected(ReplicaId(3), Term(2), ReplicaId(2))


def trip_vote_once(ghost: Ghost) -> None:
    ghost.check_vote_is_given_once(ReplicaId(3), Term(2), ReplicaId(1))
    ghost.check_vote_is_given_once(ReplicaId(3), Term(2), ReplicaId(1))
    ghost.check_vote_is_given_once(ReplicaId(3), Term(2), ReplicaId(2))


def trip_log_matching_by_content(ghost: Ghost) -> None:
    ghost.check_log_matching(entry(2, 5, b"a"), Term(1))
    ghost.check_log_matching(entry(2, 5, b"a"), None)
    ghost.check_log_matching(entry(2, 5, b"b"), Term(1))


def trip_log_matching_by_predecessor(ghost: Ghost) -> None:
    ghost.check_log_matching(entry(2, 5), None)
    ghost.check_log_matching(entry(2, 5), Term(1))
    ghost.check_log_matching(entry(2, 5), Term(2))


def trip_state_machine_safety(ghost: Ghost) -> None:
    ghost.check_state_machine_safety(ReplicaId(1), entry(2, 5, b"a"))
    ghost.check_state_machine_safety(ReplicaId(2), entry(2, 5, b"a"))
    ghost.check_state_machine_safety(ReplicaId(3), entry(3, 5, b"a"))


def trip_committed_once(ghost: Ghost) -> None:
    ghost.check_committed_once(ReplicaId(1), Index(5), Term(2), Term(2))
    ghost.check_committed_once(ReplicaId(2), Index(5), Term(2), Term(3))
    ghost.check_committed_once(ReplicaId(3), Index(5), Term(3), Term(3))


def trip_leader_completeness(ghost: Ghost) -> None:
    ghost.check_committed_once(ReplicaId(1), Index(5), Term(2), Term(2))
    have = {Index(5): Term(2)}
    ghost.check_leader_completeness(LEADER, have.get, Index(1))
    ghost.check_leader_completeness(LEADER, {}.get, Index(6))
    ghost.check_leader_completeness(replace(LEADER, term=Term(2)), {}.get, Index(1))
    ghost.check_leader_completeness(LEADER, {}.get, Index(1))


def trip_commit_durable(ghost: Ghost) -> None:
    disks = [disk(1, 1, 1, 3), disk(2, 1, 1), disk(3, compacted_to=3)]
    ghost.check_commit_is_durable_on_a_quorum(LEADER, Index(3), Term(3), disks)
    ghost.check_commit_is_durable_on_a_quorum(LEADER, Index(3), Term(3), disks[:2])


def trip_commit_durable_in_outgoing_half(ghost: Ghost) -> None:
    joint = replace(LEADER, configuration=Configuration(voters=ids(1, 2, 3), voters_outgoing=ids(3, 4, 5)))
    disks = [disk(number, 1, 1, 3) for number in (1, 2, 3)]
    ghost.check_commit_is_durable_on_a_quorum(joint, Index(3), Term(3), [*disks, disk(4, 1, 1, 3)])
    ghost.check_commit_is_durable_on_a_quorum(joint, Index(3), Term(3), disks)


def trip_commit_own_term(ghost: Ghost) -> None:
    ghost.check_commit_is_of_own_term(LEADER, Index(5), Term(3))
    ghost.check_commit_is_of_own_term(LEADER, Index(5), Term(2))


def trip_vote_durable(ghost: Ghost) -> None:
    ghost.check_granted_vote_is_durable(ReplicaId(2), Term(3), disk(1, vote=2))
    ghost.check_granted_vote_is_durable(ReplicaId(2), Term(3), disk(1, vote=0, term=4))
    ghost.check_granted_vote_is_durable(ReplicaId(2), Term(3), disk(1, vote=0))


def trip_acknowledgement_durable(ghost: Ghost) -> None:
    ghost.check_acknowledgement_is_durable(Index(5), Index(5), ReplicaId(1))
    ghost.check_acknowledgement_is_durable(Index(6), Index(5), ReplicaId(1))


def trip_read_fresh(ghost: Ghost) -> None:
    ghost.check_read_is_fresh(ReplicaId(1), Index(5), Index(5))
    ghost.check_read_is_fresh(ReplicaId(1), Index(4), Index(5))


def trip_configuration_latest(ghost: Ghost) -> None:
    ghost.configurations[Index(3), Term(2)] = Configuration(voters=ids(1, 2, 3, 4))
    sound = replace(FOLLOWER, configuration=Configuration(voters=ids(1, 2, 3, 4)), configuration_index=Index(3))
    log = {Index(3): Term(2)}
    ghost.check_configuration_is_the_latest_in_the_log(sound, log.get, Index(1))
    ghost.check_configuration_is_the_latest_in_the_log(FOLLOWER, {Index(3): Term(1)}.get, Index(1))
    ghost.check_configuration_is_the_latest_in_the_log(FOLLOWER, log.get, Index(1))


def trip_configuration_content(ghost: Ghost) -> None:
    ghost.configurations[Index(3), Term(2)] = Configuration(voters=ids(1, 2, 3, 4))
    state = replace(FOLLOWER, configuration_index=Index(3))
    ghost.check_configuration_is_the_latest_in_the_log(state, {Index(3): Term(2)}.get, Index(1))


def trip_configuration_index(ghost: Ghost) -> None:
    ghost.configurations[Index(3), Term(2)] = THREE
    ghost.configurations[Index(5), Term(2)] = THREE
    log = {Index(3): Term(2)}
    ghost.check_configuration_is_the_latest_in_the_log(FOLLOWER, log.get, Index(1))
    log[Index(5)] = Term(2)
    ghost.check_configuration_is_the_latest_in_the_log(FOLLOWER, log.get, Index(1))


TRIPS: dict[str, list[Callable[[Ghost], None]]] = {
    "check_election_safety": [trip_election_safety],
    "check_followed_leader_was_elected": [trip_followed_leader],
    "check_vote_is_given_once": [trip_vote_once],
    "check_log_matching": [trip_log_matching_by_content, trip_log_matching_by_predecessor],
    "check_state_machine_safety": [trip_state_machine_safety],
    "check_committed_once": [trip_committed_once],
    "check_leader_completeness": [trip_leader_completeness],
    "check_commit_is_durable_on_a_quorum": [trip_commit_durable, trip_commit_durable_in_outgoing_half],
    "check_commit_is_of_own_term": [trip_commit_own_term],
    "check_granted_vote_is_durable": [trip_vote_durable],
    "check_acknowledgement_is_durable": [trip_acknowledgement_durable],
    "check_read_is_fresh": [trip_read_fresh],
    "check_configuration_is_the_latest_in_the_log": [
        trip_configuration_latest,
        trip_configuration_content,
        trip_configuration_index,
    ],
}


@pytest.mark.parametrize("name", GHOST_INVARIANTS)
def test_broken_history_trips_its_invariant(name: str) -> None:
    """Each ghost invariant accepts the sound steps before the last one, and trips on the last."""
    for trip in TRIPS[name]:
        ghost = Ghost()
        with pytest.raises(InvariantViolated) as caught:
            trip(ghost)
        assert caught.value.name == name
        # The violation comes from the last line of the scenario: all that stands before it was accepted.
        frames = [frame for frame in caught.traceback if frame.name == trip.__name__]
        last_line = trip.__code__.co_firstlineno + max(
            line - trip.__code__.co_firstlineno for _, _, line in trip.__code__.co_lines() if line is not None
        )
        assert frames[-1].lineno + 1 == last_line, f"{name} tripped early, on line {frames[-1].lineno + 1}"


def test_every_invariant_has_its_broken_values() -> None:
    """No invariant is without a proof that it can fail."""
    assert {invariant.__name__ for invariant in STATE_INVARIANTS} == set(BROKEN_STATES)
    assert {invariant.__name__ for invariant in STEP_INVARIANTS} == set(BROKEN_STEPS)
    assert set(GHOST_INVARIANTS) == set(TRIPS)


def test_quorum_needs_a_majority_of_each_half() -> None:
    """The ghost's own idea of a quorum, by example."""
    assert is_quorum(THREE, ids(1, 2))
    assert not is_quorum(THREE, ids(1))
    assert not is_quorum(Configuration(voters=ids(1, 2, 3, 4)), ids(1, 2))
    joint = Configuration(voters=ids(1, 2, 3), voters_outgoing=ids(3, 4, 5))
    assert is_quorum(joint, ids(1, 3, 4))
    assert not is_quorum(joint, ids(1, 2, 3))
    assert is_quorum(THREE, [ReplicaId(2), ReplicaId(3), ReplicaId(9)])


def test_entry_kinds_belong_to_the_identity_of_an_entry() -> None:
    """An empty entry and a command at one position are different entries, though both have no data."""
    ghost = Ghost()
    ghost.check_log_matching(Entry(Term(2), Index(3), EntryKind.EMPTY, b""), Term(1))
    with pytest.raises(InvariantViolated, match="check_log_matching"):
        ghost.check_log_matching(Entry(Term(2), Index(3), EntryKind.COMMANDS, b""), Term(1))
