"""Real processes killed, paused, wiped and restarted while clients write: nothing that was acknowledged is lost."""

import json
import shutil
from pathlib import Path

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


def more_writes(writers: Writers, count: int) -> None:
    """Waits until `count` more writes were acknowledged."""
    target = len(writers.acknowledged) + count
    wait_until(lambda: len(writers.acknowledged) >= target, f"{count} more acknowledged writes: {writers.errors}")


def test_killed_leader_and_killed_cluster_lose_nothing(tmp_path: Path) -> None:
    """kill -9 of a leader, then of all three nodes at once, under load: every acknowledged write is there afterwards."""
    with running(tmp_path, shards=2) as cluster, Writers(cluster) as writers:
        more_writes(writers, 100)
        victim = cluster.leader_of(1)
        victim.kill()
        more_writes(writers, 100)
        cluster.restart(victim)
        more_writes(writers, 100)
        for node in cluster.nodes:
            node.kill()
        cluster.restart(*cluster.nodes)
        more_writes(writers, 100)
        acknowledged = writers.stop()
        assert [] == lost(cluster, acknowledged)


def test_paused_minority_stops_nobody_and_comes_back_level(tmp_path: Path) -> None:
    """A node that is stopped (SIGSTOP) for longer than an election costs its shards a new leader, and nothing else."""
    with running(tmp_path, shards=2) as cluster, Writers(cluster) as writers:
        more_writes(writers, 50)
        paused = cluster.leader_of(1)
        paused.pause()
        other = next(node for node in cluster.nodes if node is not paused)
        wait_until(lambda: _leads_elsewhere(cluster, other, paused, shard=1), "a leader among the others")
        more_writes(writers, 50)
        paused.resume()
        more_writes(writers, 50)
        acknowledged = writers.stop()
        wait_until(cluster.level, "all replicas to be level")
        assert [] == lost(cluster, acknowledged)


def _leads_elsewhere(cluster: Cluster, asked: Node, paused: Node, *, shard: int) -> bool:
    """Whether a node other than `paused` leads the shard. One node is asked, by its metrics: it waits for nobody."""
    return (
        asked.metric("raftcache_raft_has_leader", shard=str(shard)) == 1
        and sum(
            node.metric("raftcache_raft_is_leader", shard=str(shard)) for node in cluster.nodes if node is not paused
        )
        == 1
    )


def test_follower_that_was_down_for_long_catches_up_by_snapshot(tmp_path: Path) -> None:
    """The log it needs is compacted meanwhile: it gets a snapshot, is level again, and restarts from it by itself."""
    with running(tmp_path, shards=1, settings=SMALL_LOG) as cluster:
        leader = cluster.leader_of(1)
        follower = next(node for node in cluster.nodes if node is not leader)
        follower.kill()
        acknowledged = fill(cluster, leader, count=300, value_bytes=4096)
        wait_until(lambda: len(leader.events("checkpoint_taken")) > 1, "checkpoints that let go of the log")
        follower.start()
        wait_until(lambda: bool(follower.events("snapshot_installed")), "a snapshot to be installed")
        wait_until(cluster.level, "the follower to be level")
        # Whatever it has now it must have on disk: alone with one other, it is needed for every write.
        for node in cluster.nodes:
            node.kill()
        cluster.restart(follower, leader)
        assert [] == lost(cluster, acknowledged)


def fill(cluster: Cluster, node: Node, *, count: int, value_bytes: int) -> dict[bytes, bytes]:
    """Writes so many keys through `node`, some in each call; all are acknowledged."""
    written = {b"key-%d" % number: b"%d." % number + b"x" * value_bytes for number in range(count)}
    items = [kv_pb2.Operation(put=kv_pb2.PutRequest(key=key, value=value)) for key, value in written.items()]
    for start in range(0, count, 20):
        response = cluster.kv(node).Batch(kv_pb2.BatchRequest(operations=items[start : start + 20]), timeout=20)
        assert all(result.put.succeeded for result in response.results), response
    return written


def test_restart_from_checkpoint_needs_only_the_log_after_it(tmp_path: Path) -> None:
    """After checkpoints the log is compacted, and a killed node opens at the checkpoint and replays the rest."""
    with running(tmp_path, nodes=1, shards=1, settings=SMALL_LOG) as cluster:
        node = cluster.nodes[0]
        acknowledged = fill(cluster, node, count=200, value_bytes=2048)
        wait_until(lambda: bool(node.events("checkpoint_taken")), "a checkpoint")
        cluster.kv(node).Put(kv_pb2.PutRequest(key=b"after", value=b"the checkpoint"), timeout=10)
        acknowledged[b"after"] = b"the checkpoint"
        node.kill()
        cluster.restart(node)
        opened = [event for event in node.events("replica_opened") if event["shard"] == 1][-1]
        assert int(str(opened["applied"])) > 1, opened
        assert int(str(opened["applied"])) < int(str(opened["last_index"])), opened
        assert [] == lost(cluster, acknowledged)


def test_clean_shutdown_resumes_the_live_state(tmp_path: Path) -> None:
    """After SIGTERM the marker vouches for the live state: the node opens at its last applied index."""
    with running(tmp_path, nodes=1, shards=1) as cluster:
        node = cluster.nodes[0]
        cluster.kv(node).Put(kv_pb2.PutRequest(key=b"k", value=b"v"), timeout=10)
        assert 0 == node.stop()
        cluster.restart(node)
        opened = [event for event in node.events("replica_opened") if event["shard"] == 1][-1]
        assert opened["applied"] == opened["last_index"]
        response = cluster.kv(node).Get(kv_pb2.GetRequest(key=b"k"), timeout=10, wait_for_ready=True)
        assert b"v" == response.entry.value


def test_wiped_node_does_not_come_back_under_its_old_name(tmp_path: Path) -> None:
    """An empty directory is a new node: it has a new id, holds nothing, and the cluster does not take it for the old one."""
    with running(tmp_path, shards=1) as cluster:
        node = cluster.nodes[2]
        before = cluster.node_id(node)
        node.kill()
        shutil.rmtree(node.data)
        node.start()
        identity = json.loads((node.data / "identity.json").read_text())
        assert before != identity["node"]
        assert 0 == identity["cluster"]
        wait_until(
            lambda: any(
                "belongs to node" in str(event["error"]) for event in cluster.nodes[0].events("peer_unreachable")
            ),
            "another node to see that the address is somebody else's",
        )
        with pytest.raises(grpc.RpcError) as refused:
            cluster.kv(node).Get(kv_pb2.GetRequest(key=b"k"), timeout=5)
        assert "does not belong to a cluster" in (refused.value.details() or "")


def test_stale_read_says_how_old_it_is(tmp_path: Path) -> None:
    """Any node with a replica answers a stale read from what it has, with its applied index and its age."""
    with running(tmp_path, shards=1) as cluster:
        leader = cluster.leader_of(1)
        cluster.kv(leader).Put(kv_pb2.PutRequest(key=b"k", value=b"v"), timeout=10)
        follower = next(node for node in cluster.nodes if node is not leader)
        wait_until(cluster.level, "the follower to be level")
        request = kv_pb2.GetRequest(key=b"k", consistency=types_pb2.CONSISTENCY_STALE)
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
