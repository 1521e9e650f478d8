"""The directory as a document, and which changes of it are allowed."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.errors import InvalidRequest, PreconditionFailed, UnsupportedVersion
from raftcache.ids import ClusterId, NodeId, ReplicaId, ShardId
from raftcache.kv.slots import SLOT_COUNT
from raftcache.node.directory import (
    VOTERS_MAX,
    Directory,
    DirectoryNode,
    first_directory,
    split_slots,
    with_change,
    with_change_done,
    with_node,
    without_node,
)
from raftcache.node.membership import failure_tolerance, tolerance_of
from raftcache.raft.messages import Configuration

ONE = ShardId(1)


def node(number: int) -> DirectoryNode:
    address = f"10.0.0.{number}:7401"
    return DirectoryNode(NodeId(number), f"n{number}", address, address, address)


def directory(nodes: int = 3, shards: int = 2, *, more: int = 2) -> Directory:
    """A cluster of `nodes`, and `more` nodes that joined and hold nothing."""
    made = first_directory(ClusterId(9), [node(n) for n in range(1, nodes + 1)], shards)
    for number in range(nodes + 1, nodes + more + 1):
        made = with_node(made, node(number))
    return made


def changed(of: Directory, action: str, at: int, target: int | None = None, shard: ShardId = ONE) -> Directory:
    return with_change(of, shard, action=action, node=NodeId(at), target=NodeId(target) if target is not None else None)


def finished(of: Directory, *, voters: set[int], learners: set[int] | None = None) -> Directory:
    ids = {r.node: r.replica for r in of.shards[ONE].replicas}
    return with_change_done(
        of,
        ONE,
        voters={ids[NodeId(n)] for n in voters},
        learners={ids[NodeId(n)] for n in learners or set()},
    )


def test_first_directory_spreads_three_voters_of_each_shard_over_the_nodes() -> None:
    """Preferred leaders too: the first replica of each shard is on another node than that of its neighbour."""
    made = directory(5, 10, more=0)
    assert all(3 == len(shard.voters()) for shard in made.shards.values())
    first = [shard.replicas[0].node for shard in made.shards.values()]
    assert all(a != b for a, b in itertools.pairwise(first))
    ids = [r.replica for shard in made.shards.values() for r in shard.replicas]
    assert list(range(1, len(ids) + 1)) == ids
    assert len(ids) + 1 == made.next_replica


@pytest.mark.parametrize("shards", [1, 2, 3, 64, 1000])
def test_slots_are_shared_out_completely_and_evenly(shards: int) -> None:
    """All 16384 of them, once; no shard has more than one more than another."""
    ranges = split_slots(shards)
    assert SLOT_COUNT == sum(hi - lo for lo, hi in ranges)
    assert {0} == {lo for lo, _ in ranges[:1]}
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
    assert 1 >= max(hi - lo for lo, hi in ranges) - min(hi - lo for lo, hi in ranges)


@pytest.mark.parametrize("shards", [0, -1, 1025])
def test_impossible_numbers_of_shards_are_refused(shards: int) -> None:
    """With what is possible in the message."""
    with pytest.raises(InvalidRequest, match="1 to 1024"):
        first_directory(ClusterId(9), [node(1)], shards)


def test_directory_of_a_newer_release_is_refused() -> None:
    """Not misread."""
    data = directory().encode().replace(b'"format":1', b'"format":2')
    with pytest.raises(UnsupportedVersion, match="upgrade"):
        Directory.decode(data, 1)


@pytest.mark.parametrize(
    ("action", "at", "target", "why"),
    [
        ("add", 9, None, "not in the cluster"),
        ("move", 1, 9, "not in the cluster"),
        ("move", 1, None, "needs a target"),
        ("move", 1, 1, "needs a target"),
        ("shuffle", 1, None, "unknown action"),
    ],
)
def test_changes_that_make_no_sense_are_refused(action: str, at: int, target: int | None, why: str) -> None:
    """As the caller's mistake."""
    with pytest.raises(InvalidRequest, match=why):
        changed(directory(), action, at, target)


def test_changes_that_must_not_be_are_refused() -> None:
    """By a safety check, with what to do."""
    made = directory()
    with pytest.raises(PreconditionFailed, match="add one"):
        changed(made, "promote", 4)
    with pytest.raises(PreconditionFailed, match="no replica"):
        changed(made, "move", 4, 5)
    with pytest.raises(PreconditionFailed, match="move to a node without one"):
        changed(made, "move", 1, 2)
    alone = first_directory(ClusterId(9), [node(1)], 1)
    with pytest.raises(PreconditionFailed, match="only voter"):
        changed(alone, "remove", 1)
    full = directory(more=6)
    for number in (4, 5, 6, 7):
        full = finished(changed(full, "add", number), voters=set(range(1, number + 1)))
    assert VOTERS_MAX == len(full.shards[ONE].voters())
    with pytest.raises(PreconditionFailed, match=str(VOTERS_MAX)):
        changed(full, "add", 8)


@pytest.mark.parametrize(("action", "at", "target"), [("add", 1, None), ("promote", 1, None), ("remove", 4, None)])
def test_what_is_so_already_changes_nothing(action: str, at: int, target: int | None) -> None:
    """The very same document comes back."""
    made = directory()
    assert made is changed(made, action, at, target)


@pytest.mark.parametrize(("action", "at", "target"), [("add", 4, None), ("move", 1, 4), ("remove", 1, None)])
def test_change_that_is_asked_for_again_is_the_same_change(action: str, at: int, target: int | None) -> None:
    """No second replica is allocated, before or after it is done."""
    once = changed(directory(), action, at, target)
    assert once is changed(once, action, at, target)
    voters = {"add": {1, 2, 3, 4}, "move": {2, 3, 4}, "remove": {2, 3}}[action]
    done = finished(once, voters=voters)
    assert done is changed(done, action, at, target)


def test_one_change_at_a_time() -> None:
    """A second one is refused, with the way out."""
    once = changed(directory(), "add", 4)
    for action, at, target in (("add", 5, None), ("move", 1, 5), ("remove", 1, None)):
        with pytest.raises(PreconditionFailed, match=r"in progress.*cancels"):
            changed(once, action, at, target)
    assert changed(once, "add", 5, shard=ShardId(2)).shards[ShardId(2)].change is not None


def test_removing_the_replica_that_comes_cancels_its_change() -> None:
    """Once and for all: asked again, it is the same cancellation; done, nothing is left of it but its id."""
    once = changed(directory(), "move", 1, 4)
    cancelled = changed(once, "remove", 4)
    change = cancelled.shards[ONE].change
    assert change is not None
    assert "cancel" == change.action
    assert "not to come" in change.describe()
    assert cancelled is changed(cancelled, "remove", 4)
    with pytest.raises(PreconditionFailed):
        changed(cancelled, "move", 1, 4)
    done = finished(cancelled, voters={1, 2, 3})
    assert {1, 2, 3} == {r.node for r in done.shards[ONE].replicas}
    assert done.next_replica == once.next_replica == directory().next_replica + 1


def test_ids_of_replicas_are_never_used_twice() -> None:
    """Not even those of changes that were given up."""
    made = directory()
    seen = {r.replica for shard in made.shards.values() for r in shard.replicas}
    for _ in range(5):
        made = changed(made, "add", 4)
        incoming = made.shards[ONE].replicas[-1].replica
        assert incoming not in seen
        seen.add(incoming)
        made = finished(changed(made, "remove", 4), voters={1, 2, 3})


def test_node_with_replicas_is_not_forgotten() -> None:
    """The message has the commands; a node without any goes, and an unknown one is gone already."""
    made = directory()
    with pytest.raises(PreconditionFailed, match=r"raftcache shard replicas move 0 1 TARGET"):
        without_node(made, NodeId(1))
    with pytest.raises(PreconditionFailed):
        without_node(changed(made, "add", 4), NodeId(4))
    assert NodeId(4) not in without_node(made, NodeId(4)).nodes
    assert made is without_node(made, NodeId(77))


@settings(max_examples=100, deadline=None)
@given(
    voters=st.sets(st.integers(1, 7), min_size=1),
    live=st.sets(st.integers(1, 7)),
    extra=st.sets(st.integers(1, 7), max_size=7),
)
def test_failure_tolerance_is_how_many_more_may_fail(voters: set[int], live: set[int], extra: set[int]) -> None:
    """Against its definition: the largest number of live voters that may go while a majority of all is left."""
    mine = {ReplicaId(v) for v in voters}
    up = {ReplicaId(v) for v in live}
    most = max((k for k in range(len(mine) + 1) if 2 * (len(mine & up) - k) > len(mine)), default=None)
    tolerance = failure_tolerance(mine, up)
    assert tolerance == most if most is not None else tolerance < 0
    # More nodes up never make it less.
    assert failure_tolerance(mine, up | {ReplicaId(v) for v in extra}) >= tolerance


def test_tolerance_of_a_replacement_of_a_dead_voter_does_not_fall() -> None:
    """What is allowed, and why."""
    made = changed(directory(), "move", 3, 4)
    change = made.shards[ONE].change
    assert change is not None
    ids = {r.node: r.replica for r in made.shards[ONE].replicas}
    voters = tuple(ids[NodeId(n)] for n in (1, 2, 3))
    tolerance = tolerance_of(Configuration(voters=voters), change, {ids[NodeId(1)], ids[NodeId(2)]})
    assert (0, 1) == (tolerance.before, tolerance.after)
