"""Real processes killed, paused, wiped and restarted while clients write: nothing that was acknowledged is lost."""

import json
import shutil
import time
from pathlib import Path

import grpc
import pytest

from raftcache.v1 import kv_pb2, types_pb2
from tests.support.cluster import Cluster, running, wait_until
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
        victim.start()
        cluster.wait_leaders()
        more_writes(writers, 100)
        for node in cluster.nodes:
            node.kill()
        for node in cluster.nodes:
            node.start(wait=False)
        for node in cluster.nodes:
            node.wait_ready()
        cluster.wait_leaders()
        more_writes(writers, 100)
        acknowledged = writers.stop()
        assert [] == lost(cluster, acknowledged)


def test_paused_minority_stops_nobody_and_comes_back_level(tmp_path: Path) -> None:
    """A node that is stopped (SIGSTOP) for longer than an election costs its shards a new leader, and nothing else."""
    with running(tmp_path, shards=2) as cluster, Writers(cluster) as writers:
        more_writes(writers, 50)
        paused = cluster.leader_of(1)
        paused.pause()
        others = [node for node in cluster.nodes if node is not paused]
        wait_until(lambda: _leader_among(cluster, others, shard=1), "a leader among the others")
        more_writes(writers, 50)
        paused.resume()
        more_writes(writers, 50)
        acknowledged = writers.stop()
        wait_until(lambda: _level(cluster), "all replicas to be level")
        assert [] == lost(cluster, acknowledged)


def _leader_among(cluster: Cluster, nodes: list[object], *, shard: int) -> bool:
    for node in cluster.nodes:
        if node in nodes:
            try:
                info = cluster.admin(node).GetCluster(_get_cluster(), timeout=5)
            except grpc.RpcError:
                return False
            names = {each.node: each.name for each in info.nodes}
            leader = next(each.leader_node for each in info.shards if each.shard == shard)
            return names.get(leader) in {each.name for each in cluster.nodes if each in nodes}
    return False


def _get_cluster() -> object:
    from raftcache.admin.v1 import admin_pb2

    return admin_pb2.GetClusterRequest()


def _level(cluster: Cluster) -> bool:
    try:
        info = cluster.info()
    except grpc.RpcError:
        return False
    return all(replica.lag_entries == 0 for shard in info.shards for replica in shard.replicas)


@pytest.mark.timeout(180)
def test_follower_that_was_down_for_long_catches_up_by_snapshot(tmp_path: Path) -> None:
    """The log it needs is compacted meanwhile: it gets a snapshot, is level again, and restarts from it by itself."""
    with running(tmp_path, shards=1, settings=SMALL_LOG) as cluster:
        follower = next(node for node in cluster.nodes if node is not cluster.leader_of(1))
        follower.kill()
        value = b"x" * 4096
        acknowledged: dict[bytes, bytes] = {}
        stub = cluster.kv(cluster.leader_of(1))
        for number in range(300):
            key = b"big-%d" % number
            stub.Put(kv_pb2.PutRequest(key=key, value=value), timeout=10)
            acknowledged[key] = value
        follower.start()
        wait_until(lambda: bool(follower.events("snapshot_installed")), "a snapshot to be installed")
        wait_until(lambda: _level(cluster), "the follower to be level")
        # Whatever it has now it must have on disk: alone with one other, it is needed for every write.
        for node in cluster.nodes:
            node.kill()
        for node in cluster.nodes:
            node.start(wait=False)
        for node in cluster.nodes:
            node.wait_ready()
        cluster.wait_leaders()
        assert [] == lost(cluster, acknowledged)


def test_restart_from_checkpoint_needs_only_the_log_after_it(tmp_path: Path) -> None:
    """After checkpoints the log is compacted, and a killed node opens at the checkpoint and replays the rest."""
    with running(tmp_path, nodes=1, shards=1, settings=SMALL_LOG) as cluster:
        node = cluster.nodes[0]
        stub = cluster.kv(node)
        acknowledged: dict[bytes, bytes] = {}
        for number in range(200):
            key, value = b"k%d" % number, b"%d" % number * 800
            stub.Put(kv_pb2.PutRequest(key=key, value=value), timeout=10)
            acknowledged[key] = value
        wait_until(lambda: bool(node.events("checkpoint_taken")), "a checkpoint")
        cluster.kv(node).Put(kv_pb2.PutRequest(key=b"after", value=b"the checkpoint"), timeout=10)
        acknowledged[b"after"] = b"the checkpoint"
        node.kill()
        node.start()
        cluster.wait_leaders()
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
        node.start()
        cluster.wait_leaders()
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


@pytest.mark.parametrize("lost_part", ["log", "directory.json"])
def test_node_that_lost_part_of_its_directory_refuses_to_start(tmp_path: Path, lost_part: str) -> None:
    """An identity without its log or its directory is damage, not a beginning; the message says what to do."""
    with running(tmp_path, nodes=1, shards=1) as cluster:
        node = cluster.nodes[0]
        node.kill()
        path = node.data / lost_part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        node.start(wait=False)
        wait_until(lambda: not node.running, "the node to refuse")
        assert 1 == node.exit_status
        assert "raftcache:" in node.tail(5), node.tail()


def test_newer_data_directory_is_refused(tmp_path: Path) -> None:
    """A directory of a newer release is left untouched; the message names both versions."""
    with running(tmp_path, nodes=1, shards=1) as cluster:
        node = cluster.nodes[0]
        node.kill()
        path = node.data / "identity.json"
        facts = json.loads(path.read_text())
        del facts["crc32c"]
        facts["format_version"] = 99
        from crc32c import crc32c

        facts["crc32c"] = crc32c(json.dumps(facts, sort_keys=True).encode())
        path.write_text(json.dumps(facts))
        node.start(wait=False)
        wait_until(lambda: not node.running, "the node to refuse")
        assert 1 == node.exit_status
        assert "99" in node.tail(3), node.tail()


def test_second_process_on_one_directory_is_refused(tmp_path: Path) -> None:
    """The directory is locked; the message has the process id of the holder."""
    with running(tmp_path, nodes=1, shards=1) as cluster:
        node = cluster.nodes[0]
        twin = cluster.add_node()
        twin.settings["node.data_dir"] = str(node.data)
        twin.start(wait=False)
        wait_until(lambda: not twin.running, "the second process to refuse")
        assert node.process is not None
        assert str(node.process.pid) in twin.tail(3), twin.tail()


def test_port_in_use_is_named(tmp_path: Path) -> None:
    """A port that another process listens on is named, with its setting."""
    with running(tmp_path, nodes=1, shards=1) as cluster:
        twin = cluster.add_node()
        twin.client_port = cluster.nodes[0].client_port
        twin.start(wait=False)
        wait_until(lambda: not twin.running, "the second process to refuse")
        assert 1 == twin.exit_status
        assert str(twin.client_port) in twin.tail(5), twin.tail()


def test_stale_read_says_how_old_it_is(tmp_path: Path) -> None:
    """Any node with a replica answers a stale read from what it has, with its applied index and its age."""
    with running(tmp_path, shards=1) as cluster:
        leader = cluster.leader_of(1)
        cluster.kv(leader).Put(kv_pb2.PutRequest(key=b"k", value=b"v"), timeout=10)
        follower = next(node for node in cluster.nodes if node is not leader)
        wait_until(lambda: _level(cluster), "the follower to be level")
        request = kv_pb2.GetRequest(key=b"k", consistency=types_pb2.CONSISTENCY_STALE)
        response = cluster.kv(follower).Get(request, timeout=10)
        assert b"v" == response.entry.value
        assert response.header.index > 0
        assert response.header.age_ms < 5_000
        # Without the others its answer only grows older.
        for node in cluster.nodes:
            if node is not follower:
                node.kill()
        time.sleep(0)
        wait_until(
            lambda: cluster.kv(follower).Get(request, timeout=10).header.age_ms > 1_000, "the stale answer to grow old"
        )
