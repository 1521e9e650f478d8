"""The admin service translates, and nothing else."""

import pytest
from google.protobuf.message import Message

from raftcache.admin.v1 import admin_pb2
from raftcache.edge.front import NO_DEADLINE, Call, Refusal
from raftcache.errors import PreconditionFailed
from raftcache.gateway.admin_service import AdminService
from raftcache.gateway.authorization import ALLOW_ALL
from raftcache.ids import NodeId, ShardId
from tests.gateway.memory_node import CLUSTER, OTHER_NODE, THIS_NODE, MemoryAdministration, NobodyPeer
from tests.gateway.test_errors import details_of


async def answer(administration: MemoryAdministration, method: str, request: Message) -> bytes | Refusal:
    full_name = f"/raftcache.admin.v1.AdminService/{method}"
    handler = AdminService(administration, ALLOW_ALL).methods()[full_name]
    return await handler(Call(full_name, request.SerializeToString(), NO_DEADLINE, NobodyPeer(), None))


async def test_the_cluster_is_described() -> None:
    """GetCluster carries nodes, shards and replicas; what is unknown is unset."""
    data = await answer(MemoryAdministration(), "GetCluster", admin_pb2.GetClusterRequest())
    assert isinstance(data, bytes)
    cluster = admin_pb2.GetClusterResponse.FromString(data)
    assert (CLUSTER, ["one voter"], False) == (cluster.cluster, list(cluster.problems), cluster.healthy)
    (node,), (shard,) = cluster.nodes, cluster.shards
    assert (THIS_NODE, "one", "c:1", True) == (node.node, node.name, node.client_address, node.catalog_voter)
    assert (1, 12, "waits", [(0, 16384)]) == (
        shard.shard,
        shard.keys,
        shard.change,
        [(pair.lo, pair.hi) for pair in shard.ranges],
    )
    leader, learner = shard.replicas
    assert (True, 0) == (leader.HasField("lag_entries"), leader.lag_entries)
    assert ("learner", False) == (learner.membership, learner.HasField("lag_entries"))


@pytest.mark.parametrize(
    ("method", "request_", "asked"),
    [
        ("Init", admin_pb2.InitRequest(peer_addresses=["a:1", "b:1"], shards=4), ("init", ["a:1", "b:1"], 4)),
        ("JoinNode", admin_pb2.JoinNodeRequest(peer_address="c:1"), ("node_join", "c:1")),
        ("RemoveNode", admin_pb2.RemoveNodeRequest(node=22, dry_run=True), ("node_remove", NodeId(22), True)),
        (
            "ChangeReplicas",
            admin_pb2.ChangeReplicasRequest(shard=2, action=admin_pb2.REPLICA_ACTION_MOVE, node=11, target_node=22),
            ("change_replicas", ShardId(2), "move", THIS_NODE, OTHER_NODE, False),
        ),
        (
            "ChangeReplicas",
            admin_pb2.ChangeReplicasRequest(shard=2, action=admin_pb2.REPLICA_ACTION_ADD, node=11, dry_run=True),
            ("change_replicas", ShardId(2), "add", THIS_NODE, None, True),
        ),
        ("TransferLeader", admin_pb2.TransferLeaderRequest(shard=3), ("transfer_leader", ShardId(3), None)),
        (
            "TransferLeader",
            admin_pb2.TransferLeaderRequest(shard=3, target_node=22),
            ("transfer_leader", ShardId(3), OTHER_NODE),
        ),
        ("LocateKey", admin_pb2.LocateKeyRequest(key=b"foo"), ("locate", b"foo")),
    ],
)
async def test_calls_are_handed_on(method: str, request_: Message, asked: tuple[object, ...]) -> None:
    """Every field of a request arrives at `Administration`."""
    administration = MemoryAdministration()
    assert isinstance(await answer(administration, method, request_), bytes)
    assert [asked] == administration.asked


async def test_a_refused_change_says_why() -> None:
    """What `Administration` raises is the call's status."""
    administration = MemoryAdministration()
    administration.error = PreconditionFailed("quorum would be lost", metadata={"failure_tolerance": "0"})
    refusal = await answer(administration, "RemoveNode", admin_pb2.RemoveNodeRequest(node=1))
    assert isinstance(refusal, Refusal)
    assert "quorum would be lost" == refusal.message
    info = details_of(refusal.details)[1]["ErrorInfo"]
    assert ("PRECONDITION_FAILED", "0") == (info.reason, info.metadata["failure_tolerance"])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("ChangeReplicas", admin_pb2.ChangeReplicasRequest(shard=1, node=1)),
        ("ChangeReplicas", admin_pb2.ChangeReplicasRequest(shard=1, node=1, action=99)),  # type: ignore[arg-type]
        ("ChangeReplicas", admin_pb2.ChangeReplicasRequest(shard=1, node=1, action=admin_pb2.REPLICA_ACTION_MOVE)),
        (
            "ChangeReplicas",
            admin_pb2.ChangeReplicasRequest(shard=1, node=1, action=admin_pb2.REPLICA_ACTION_ADD, target_node=2),
        ),
        ("LocateKey", admin_pb2.LocateKeyRequest()),
    ],
)
async def test_bad_requests_are_refused(method: str, request_: Message) -> None:
    """An unknown action, a move without a target, a target without a move and an empty key never get through."""
    administration = MemoryAdministration()
    refusal = await answer(administration, method, request_)
    assert isinstance(refusal, Refusal)
    assert "INVALID_REQUEST" == details_of(refusal.details)[1]["ErrorInfo"].reason  # type: ignore[attr-defined]
    assert [] == administration.asked
