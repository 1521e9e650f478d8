"""Membership of a running cluster, under load: grown, healed and shrunk without losing an acknowledged write."""

import shutil
from pathlib import Path

import grpc
import pytest

from raftcache.admin.v1 import admin_pb2
from tests.support.cluster import Cluster, Node, running, wait_until
from tests.support.load import Writers, lost

SHARDS = 2
CHANGE_SECONDS = 90.0


def change(cluster: Cluster, shard: int, action: str, node: int, target: int | None = None) -> None:
    """Asks for a change and waits until the directory says that it is done."""
    request = admin_pb2.ChangeReplicasRequest(
        shard=shard, action=admin_pb2.ReplicaAction.Value(f"REPLICA_ACTION_{action}"), node=node, target_node=target
    )

    def accepted() -> bool:
        asked = next(each for each in cluster.nodes if each.running)
        try:
            cluster.admin(asked).ChangeReplicas(request, timeout=10)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN):
                return False
            raise
        return True

    wait_until(accepted, f"{action} in shard {shard} to be accepted", CHANGE_SECONDS)

    def done() -> bool:
        try:
            info = cluster.info()
        except grpc.RpcError:
            return False
        found = next(each for each in info.shards if each.shard == shard)
        return not found.change

    wait_until(done, f"{action} in shard {shard}", CHANGE_SECONDS)


def join(cluster: Cluster, node: Node) -> int:
    response = cluster.admin(cluster.nodes[0]).JoinNode(
        admin_pb2.JoinNodeRequest(peer_address=node.peer_address), timeout=30
    )
    return response.node


def voters(cluster: Cluster, shard: int) -> set[int]:
    found = next(each for each in cluster.info().shards if each.shard == shard)
    return {replica.node for replica in found.replicas if replica.membership == "voter"}


@pytest.mark.timeout(400)
def test_grow_heal_and_shrink_under_load_loses_nothing(tmp_path: Path) -> None:
    """3 nodes to 5, one killed and wiped and replaced by a new one, two removed, back to 3; writers never stop."""
    settings = {"storage.log_bytes_per_checkpoint": "256KiB", "storage.trailing_log_bytes": "64KiB"}
    with running(tmp_path, nodes=3, shards=SHARDS, settings=settings) as cluster:
        first = {node.name: cluster.node_id(node) for node in cluster.nodes}
        shards = range(SHARDS + 1)  # the catalog too
        with Writers(cluster, threads=2) as writers:
            # Grow: each shard gets a fourth and a fifth voter.
            added = []
            for _ in range(2):
                node = cluster.add_node()
                node.start()
                added.append(join(cluster, node))
            for shard in shards:
                for node_id in added:
                    change(cluster, shard, "ADD", node_id)
                assert {*first.values(), *added} == voters(cluster, shard)

            # A node dies with its disk; a new one takes its places.
            victim = cluster.nodes[1]
            victim.kill()
            shutil.rmtree(victim.data)
            replacement = cluster.add_node()
            replacement.start()
            replacement_id = join(cluster, replacement)
            for shard in shards:
                change(cluster, shard, "MOVE", first["n2"], replacement_id)
            cluster.admin(cluster.nodes[0]).RemoveNode(admin_pb2.RemoveNodeRequest(node=first["n2"]), timeout=30)
            victim.starts = 0  # out of the writers' choice

            # Shrink: the two that were added go again.
            for shard in shards:
                for node_id in added:
                    change(cluster, shard, "REMOVE", node_id)
            for node_id in added:
                cluster.admin(cluster.nodes[0]).RemoveNode(admin_pb2.RemoveNodeRequest(node=node_id), timeout=30)
            final = {first["n1"], first["n3"], replacement_id}
            for shard in shards:
                assert final == voters(cluster, shard)
        acknowledged = writers.stop()
        assert len(acknowledged) > 100, writers.errors
        assert [] == lost(cluster, acknowledged), writers.errors
        assert final == {info.node for info in cluster.info().nodes}


def test_a_change_that_would_cost_the_quorum_is_refused_with_the_numbers(tmp_path: Path) -> None:
    """With one of three voters down, removing another is refused; the message has the tolerance before and after."""
    with running(tmp_path, nodes=3, shards=1) as cluster:
        ids = [cluster.node_id(node) for node in cluster.nodes]
        cluster.nodes[2].kill()
        request = admin_pb2.ChangeReplicasRequest(shard=1, action=admin_pb2.REPLICA_ACTION_REMOVE, node=ids[1])

        def refused() -> bool:
            try:
                cluster.admin(cluster.nodes[0]).ChangeReplicas(request, timeout=10)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    assert "failure tolerance" in (error.details() or ""), error.details()
                    return True
                assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN), error
            return False

        wait_until(refused, "the removal to be refused")
        assert set(ids) == voters(cluster, 1)
