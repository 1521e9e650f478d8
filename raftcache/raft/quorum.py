"""What a majority has acknowledged, and whether a majority has voted: arithmetic, with no knowledge of the core.

Rules of this file:
- pure functions; the joint rule (thesis §4.3) is always "both halves", and a half without members agrees to everything,
  so a configuration that is not joint is the joint one whose outgoing half is empty;
- because an empty half agrees to everything, a configuration with no voters at all must never be asked: the callers see
  to that (a replica with an empty configuration neither campaigns nor leads).

Tested against a naive twin that counts, for each candidate index, how many have reached it.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum

from raftcache.ids import ReplicaId

UNBOUNDED = (1 << 63) - 1
"""What a half without members has acknowledged: more than any index or read position."""


class VoteResult(IntEnum):
    """Where an election stands."""

    PENDING = 0
    WON = 1
    LOST = 2


def majority_of(count: int) -> int:
    """The smallest number of `count` voters such that any two such sets overlap."""
    return count // 2 + 1


def majority_index(acknowledged: Sequence[int]) -> int:
    """The largest index that a majority has reached, given each voter's (in any order).

    Raft §5.3: sorted ascending, the value with a majority of voters at or above it.
    """
    count = len(acknowledged)
    if count == 0:
        return UNBOUNDED
    if count == 1:
        return acknowledged[0]
    return sorted(acknowledged)[count - majority_of(count)]


def joint_index(incoming: Sequence[int], outgoing: Sequence[int]) -> int:
    """Thesis §4.3: agreement needs a majority of each half."""
    return min(majority_index(incoming), majority_index(outgoing))


def majority_vote(voters: Sequence[ReplicaId], votes: Mapping[ReplicaId, bool]) -> VoteResult:
    """Raft §5.2: won with a majority of grants, lost once refusals make a majority impossible."""
    if not voters:
        return VoteResult.WON
    granted = refused = 0
    for voter in voters:
        vote = votes.get(voter)
        if vote is True:
            granted += 1
        elif vote is False:
            refused += 1
    needed = majority_of(len(voters))
    if granted >= needed:
        return VoteResult.WON
    if len(voters) - refused < needed:
        return VoteResult.LOST
    return VoteResult.PENDING


def joint_vote(
    incoming: Sequence[ReplicaId], outgoing: Sequence[ReplicaId], votes: Mapping[ReplicaId, bool]
) -> VoteResult:
    """Thesis §4.3: an election is won in both halves, and lost as soon as it is lost in either."""
    one = majority_vote(incoming, votes)
    other = majority_vote(outgoing, votes)
    if one == other:
        return one
    if VoteResult.LOST in (one, other):
        return VoteResult.LOST
    return VoteResult.PENDING
