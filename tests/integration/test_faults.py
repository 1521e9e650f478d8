"""Real processes killed, paused, wiped and restarted: nothing that was acknowledged is lost, and nobody serves what is not so.

The tests share a cluster of three nodes, and one of a single node; each leaves them as it found them. Kills under load are
in `test_clients.py`, starts that are refused in `test_refused_starts.py`.
"""

import json
import shutil
from collections.abc import Iterator

import grpc
import pytest

from raftcache.v1 import kv_pb2, types_pb2
from tests.support.cluster import Cluster, Node, running, wait_until
from tests.support.load import Writers, lost

SMALL_LOG = {
    "storage.log_bytes_per_checkpoint": "128KiB",
    "storage.trailing_log_bytes": "32KiB",
    "log.level": "debug",
}
"""Checkpoints every few hundred writes, so that snapshots are what lagging followers need."""


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes, two shards."""
    with running(tmp_path_factory.mktemp("three"), shards=2, settings=SMALL_LOG) as cluster:
        yield cluster


@pytest.fixture
def cluster(three: Cluster) -> Iterator[Cluster]:
    """The three nodes, all of them up before and after the test."""
    yield three
    for node in three.nodes:
        node.resume()
    three.restart(*(node for node in three.nodes if not node.running))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One node, one shard."""
    with running(tmp_path_factory.mktemp("one"), nodes=1, shards=1, settings=SMALL_LOG) as cluster:
        yield cluster


def test_paused_minority_stops_nobody_and_comes_back_level(cluster: Cluster) -> None:
    """A node that is stopped (SIGSTOP) for longer than an election costs its shards a new leader, and nothing else."""
    with Writers(cluster) as writers:
        writers.progress(50)
        paused = cluster.leader_of(1)
        paused.pause()
        other = next(node for node in cluster.nodes if node is not paused)
        wait_until(lambda: _leads_elsewhere(cluster, other, paused, shard=1), "a leader among the others")
        writers.progress(50)
        paused.resume()
        writers.progress(50)
    wait_until(cluster.level, "all replicas to be level")
    assert [] == lost(cluster, writers.acknowledged)


def _leads_elsewhere(cluster: Cluster, asked: Node, paused: Node, *, shard: int) -> bool:
    """Whether a node other than `paused` leads the shard. One node is asked, by its metrics: it waits for nobody."""
    return (
        asked.metric("raftcache_raft_has_leader", shard=str(shard)) == 1
        and sum(
            node.metric("raftcache_raft_is_leader", shard=str(shard)) for node in cluster.nodes if node is not paused
        )
        == 1
    )


def test_follower_that_was_down_for_long_catches_up_by_snapshot(cluster: Cluster) -> None:
    """The log it needs is compacted meanwhile: it gets a snapshot, is level again, and restarts from it by itself."""
    leader = cluster.leader_of(1)
    follower, third = (node for node in cluster.nodes if node is not leader)
    follower.kill()
    taken = len(checkpoints_of(leader, shard=1))
    acknowledged = fill(cluster, leader, count=500, value_bytes=4096)
    wait_until(lambda: len(checkpoints_of(leader, shard=1)) > taken + 1, "checkpoints that let go of the log")
    follower.start()
    wait_until(lambda: bool(follower.events("snapshot_installed")), "a snapshot to be installed")
    wait_until(cluster.level, "the follower to be level")
    # Whatever it has now it must have on disk: alone with one other, it is needed for every write.
    for node in cluster.nodes:
        node.kill()
    cluster.restart(follower, third)
    assert [] == lost(cluster, acknowledged)


def checkpoints_of(node: Node, *, shard: int) -> list[dict[str, object]]:
    """Those that the node took of one shard."""
    return [event for event in node.events("checkpoint_taken") if event["shard"] == shard]


def fill(cluster: Cluster, node: Node, *, count: int, value_bytes: int) -> dict[bytes, bytes]:
    """Writes so many keys through `node`, some in each call; all are acknowledged."""
    written = {b"key-%d" % number: b"%d." % number + b"x" * value_bytes for number in range(count)}
    items = [kv_pb2.Operation(put=kv_pb2.PutRequest(key=key, value=value)) for key, value in written.items()]
    for start in range(0, count, 20):
        response = cluster.kv(node).Batch(kv_pb2.BatchRequest(operations=items[start : start + 20]), timeout=20)
        assert all(result.put.succeeded for result in response.results), response
    return written


def test_stale_read_says_how_old_it_is(cluster: Cluster) -> None:
    """Any node with a replica answers a stale read from what it has, with its applied index and its age."""
    leader = cluster.leader_of(1)
    cluster.kv(leader).Put(kv_pb2.PutRequest(key=b"k", value=b"v"), timeout=10)
    follower = next(node for node in cluster.nodes if node is not leader)
    request = kv_pb2.GetRequest(key=b"k", consistency=types_pb2.CONSISTENCY_STALE)
    # A follower hears that the write is committed with the next message of its leader.
    wait_until(
        lambda: cluster.kv(follower).Get(request, timeout=10, wait_for_ready=True).entry.value == b"v",
        "the follower to have the write",
    )
    response = cluster.kv(follower).Get(request, timeout=10)
    assert b"v" == response.entry.value
    assert response.header.index > 0
    assert response.header.age_ms < 5_000
    # Without the others its answer only grows older.
    for node in cluster.nodes:
        if node is not follower:
            node.kill()
    wait_until(
        lambda: cluster.kv(follower).Get(request, timeout=10).header.age_ms > 1_000, "the stale answer to grow old"
    )


def test_wiped_node_does_not_come_back_under_its_old_name(three: Cluster) -> None:
    """An empty directory is a new node: it has a new id, holds nothing, and the cluster does not take it for the old one.

    The last test of the three nodes, one of which is none of them any more.
    """
    node = three.nodes[2]
    before = three.node_id(node)
    node.kill()
    shutil.rmtree(node.data)
    node.start()
    identity = json.loads((node.data / "identity.json").read_text())
    assert before != identity["node"]
    assert 0 == identity["cluster"]
    wait_until(
        lambda: any("belongs to node" in str(event["error"]) for event in three.nodes[0].events("peer_unreachable")),
        "another node to see that the address is somebody else's",
    )
    with pytest.raises(grpc.RpcError) as refused:
        three.kv(node).Get(kv_pb2.GetRequest(key=b"k"), timeout=5, wait_for_ready=True)
    assert "does not belong to a cluster" in (refused.value.details() or "")


def test_restart_from_checkpoint_needs_only_the_log_after_it(alone: Cluster) -> None:
    """After checkpoints the log is compacted, and a killed node opens at the checkpoint and replays the rest."""
    [node] = alone.nodes
    acknowledged = fill(alone, node, count=200, value_bytes=2048)
    wait_until(lambda: bool(checkpoints_of(node, shard=1)), "a checkpoint")
    alone.kv(node).Put(kv_pb2.PutRequest(key=b"after", value=b"the checkpoint"), timeout=10)
    acknowledged[b"after"] = b"the checkpoint"
    node.kill()
    alone.restart(node)
    opened = [event for event in node.events("replica_opened") if event["shard"] == 1][-1]
    assert int(str(opened["applied"])) > 1, opened
    assert int(str(opened["applied"])) < int(str(opened["last_index"])), opened
    assert [] == lost(alone, acknowledged)


def test_clean_shutdown_resumes_the_live_state(alone: Cluster) -> None:
    """After SIGTERM the marker vouches for the live state: the node opens at its last applied index."""
    [node] = alone.nodes
    alone.kv(node).Put(kv_pb2.PutRequest(key=b"k", value=b"v"), timeout=10, wait_for_ready=True)
    assert 0 == node.stop()
    alone.restart(node)
    opened = [event for event in node.events("replica_opened") if event["shard"] == 1][-1]
    assert opened["applied"] == opened["last_index"]
    response = alone.kv(node).Get(kv_pb2.GetRequest(key=b"k"), timeout=10, wait_for_ready=True)
    assert b"v" == response.entry.value
