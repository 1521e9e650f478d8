"""Quorum arithmetic against a twin that counts."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.ids import ReplicaId
from raftcache.raft.quorum import UNBOUNDED, VoteResult, joint_index, joint_vote, majority_index, majority_vote

INDEXES = st.lists(st.integers(0, 12), max_size=7)
VOTERS = st.lists(st.integers(1, 7).map(ReplicaId), max_size=7, unique=True)
VOTES = st.dictionaries(st.integers(1, 7).map(ReplicaId), st.booleans())


def naive_index(acknowledged: Sequence[int]) -> int:
    """The largest value that more than half have reached, by counting for every candidate."""
    if not acknowledged:
        return UNBOUNDED
    return max(
        candidate
        for candidate in [0, *acknowledged]
        if 2 * sum(1 for index in acknowledged if index >= candidate) > len(acknowledged)
    )


@settings(max_examples=200, deadline=None)
@given(INDEXES)
def test_majority_index_is_what_more_than_half_have_reached(acknowledged: list[int]) -> None:
    """The sorted position and the count agree for every group size."""
    assert naive_index(acknowledged) == majority_index(acknowledged)


@settings(max_examples=100, deadline=None)
@given(INDEXES, INDEXES)
def test_joint_index_needs_both_halves(incoming: list[int], outgoing: list[int]) -> None:
    """Neither half alone can commit, and an empty half asks for nothing."""
    assert min(naive_index(incoming), naive_index(outgoing)) == joint_index(incoming, outgoing)
    assert majority_index(incoming) == joint_index(incoming, [])


@settings(max_examples=200, deadline=None)
@given(VOTERS, VOTES)
def test_election_is_decided_exactly_when_the_missing_votes_cannot_change_it(
    voters: list[ReplicaId], votes: dict[ReplicaId, bool]
) -> None:
    """Won or lost only when it would stay so however the silent voters answer."""
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    silent = sum(1 for voter in voters if voter not in votes)
    wins_without_them = not voters or 2 * granted > len(voters)
    wins_with_them = not voters or 2 * (granted + silent) > len(voters)
    expected = VoteResult.PENDING
    if wins_without_them:
        expected = VoteResult.WON
    elif not wins_with_them:
        expected = VoteResult.LOST
    assert expected == majority_vote(voters, votes)


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ({1: True, 2: True}, VoteResult.PENDING),
        ({1: True, 2: True, 4: True, 5: True}, VoteResult.WON),
        ({1: True, 2: True, 4: False, 5: False}, VoteResult.LOST),
        ({1: False, 2: False}, VoteResult.LOST),
    ],
)
def test_joint_election_is_won_in_both_halves_and_lost_in_either(
    votes: dict[ReplicaId, bool], expected: VoteResult
) -> None:
    """A majority of one half decides nothing alone, unless it is a refusal."""
    incoming = [ReplicaId(1), ReplicaId(2), ReplicaId(3)]
    outgoing = [ReplicaId(4), ReplicaId(5), ReplicaId(6)]
    assert expected == joint_vote(incoming, outgoing, votes)
    assert expected == joint_vote(outgoing, incoming, votes)
