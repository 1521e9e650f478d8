"""`raftcache.admin.v1.AdminService`: operators' calls, each awaited on its own.

Rules of this file:
- no decisions: every method translates, asks `Administration`, and translates back;
- what `Administration` raises is a status, like any other error.
"""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from google.protobuf.message import Message

from raftcache.admin.v1 import admin_pb2
from raftcache.edge.front import AwaitedMethod, Call, Refusal
from raftcache.errors import InvalidRequest, RaftCacheError
from raftcache.gateway.authorization import Authorizer
from raftcache.gateway.errors import refusal_of
from raftcache.gateway.gateway import parse
from raftcache.ids import NodeId, ShardId
from raftcache.node.api import Administration, ClusterInfo, ShardInfo

SERVICE = "raftcache.admin.v1.AdminService"

_ACTIONS = {
    admin_pb2.REPLICA_ACTION_ADD: "add",
    admin_pb2.REPLICA_ACTION_REMOVE: "remove",
    admin_pb2.REPLICA_ACTION_MOVE: "move",
    admin_pb2.REPLICA_ACTION_PROMOTE: "promote",
}

AnyRequest = TypeVar("AnyRequest", bound=Message)


class _Method(Generic[AnyRequest]):
    """One method, from bytes to bytes. Is an `AwaitedMethod`."""

    def __init__(
        self,
        authorizer: Authorizer,
        from_string: Callable[[bytes], AnyRequest],
        run: Callable[[AnyRequest], Awaitable[Message]],
    ) -> None:
        self._authorizer = authorizer
        self._from_string = from_string
        self._run = run

    async def __call__(self, call: Call) -> bytes | Refusal:
        try:
            self._authorizer.authorize(call.peer, call.method, ())
            response = await self._run(parse(self._from_string, call.message))
        except RaftCacheError as error:
            return refusal_of(error)
        return response.SerializeToString()


class AdminService:
    """The service."""

    def __init__(self, administration: Administration, authorizer: Authorizer) -> None:
        self._administration = administration
        self._authorizer = authorizer

    def methods(self) -> dict[str, AwaitedMethod]:
        """All methods by their full names."""
        allow = self._authorizer
        return {
            f"/{SERVICE}/GetCluster": _Method(allow, admin_pb2.GetClusterRequest.FromString, self._get_cluster),
            f"/{SERVICE}/Init": _Method(allow, admin_pb2.InitRequest.FromString, self._init),
            f"/{SERVICE}/JoinNode": _Method(allow, admin_pb2.JoinNodeRequest.FromString, self._join_node),
            f"/{SERVICE}/RemoveNode": _Method(allow, admin_pb2.RemoveNodeRequest.FromString, self._remove_node),
            f"/{SERVICE}/ChangeReplicas": _Method(
                allow, admin_pb2.ChangeReplicasRequest.FromString, self._change_replicas
            ),
            f"/{SERVICE}/TransferLeader": _Method(
                allow, admin_pb2.TransferLeaderRequest.FromString, self._transfer_leader
            ),
            f"/{SERVICE}/LocateKey": _Method(allow, admin_pb2.LocateKeyRequest.FromString, self._locate_key),
        }

    async def _get_cluster(self, _: admin_pb2.GetClusterRequest) -> admin_pb2.GetClusterResponse:
        return cluster_message(await self._administration.cluster())

    async def _init(self, request: admin_pb2.InitRequest) -> admin_pb2.InitResponse:
        cluster = await self._administration.init(list(request.peer_addresses), request.shards)
        return admin_pb2.InitResponse(cluster=cluster)

    async def _join_node(self, request: admin_pb2.JoinNodeRequest) -> admin_pb2.JoinNodeResponse:
        return admin_pb2.JoinNodeResponse(node=await self._administration.node_join(request.peer_address))

    async def _remove_node(self, request: admin_pb2.RemoveNodeRequest) -> admin_pb2.RemoveNodeResponse:
        description = await self._administration.node_remove(NodeId(request.node), dry_run=request.dry_run)
        return admin_pb2.RemoveNodeResponse(description=description)

    async def _change_replicas(self, request: admin_pb2.ChangeReplicasRequest) -> admin_pb2.ChangeReplicasResponse:
        action = _ACTIONS.get(request.action)
        if action is None:
            raise InvalidRequest(
                f"the action {request.action} is not known to this release", metadata={"field": "action"}
            )
        target = NodeId(request.target_node) if request.HasField("target_node") else None
        if (target is not None) != (action == "move"):
            raise InvalidRequest(
                "a move needs a target_node, and nothing else has one", metadata={"field": "target_node"}
            )
        description = await self._administration.change_replicas(
            ShardId(request.shard), action=action, node=NodeId(request.node), target=target, dry_run=request.dry_run
        )
        return admin_pb2.ChangeReplicasResponse(description=description)

    async def _transfer_leader(self, request: admin_pb2.TransferLeaderRequest) -> admin_pb2.TransferLeaderResponse:
        target = NodeId(request.target_node) if request.HasField("target_node") else None
        description = await self._administration.transfer_leader(ShardId(request.shard), target)
        return admin_pb2.TransferLeaderResponse(description=description)

    async def _locate_key(self, request: admin_pb2.LocateKeyRequest) -> admin_pb2.LocateKeyResponse:
        if not request.key:
            raise InvalidRequest("the key is empty; keys have at least one byte", metadata={"field": "key"})
        slot, shard = self._administration.locate(request.key)
        return admin_pb2.LocateKeyResponse(slot=slot, shard=shard)


def cluster_message(info: ClusterInfo) -> admin_pb2.GetClusterResponse:
    """The whole cluster as a message."""
    response = admin_pb2.GetClusterResponse(
        cluster=info.cluster,
        epoch=info.epoch,
        failure_tolerance=info.failure_tolerance,
        healthy=info.healthy,
        problems=info.problems,
    )
    for node in info.nodes:
        response.nodes.add(
            node=node.node,
            name=node.name,
            peer_address=node.peer_address,
            client_address=node.client_address,
            admin_address=node.admin_address,
            alive=node.alive,
            version=node.version,
            replicas=node.replicas,
            leaders=node.leaders,
            catalog_voter=node.catalog_voter,
        )
    for shard in info.shards:
        _fill_shard(response.shards.add(), shard)
    return response


def _fill_shard(message: admin_pb2.Shard, shard: ShardInfo) -> None:
    message.shard = shard.shard
    for lo, hi in shard.ranges:
        message.ranges.add(lo=lo, hi=hi)
    message.leader = shard.leader
    message.leader_node = shard.leader_node
    message.term = shard.term
    message.commit_index = shard.commit_index
    message.applied_index = shard.applied_index
    message.failure_tolerance = shard.failure_tolerance
    message.change = shard.change
    if shard.keys >= 0:
        message.keys = shard.keys
    for replica in shard.replicas:
        entry = message.replicas.add(
            replica=replica.replica,
            node=replica.node,
            membership=replica.membership,
            role=replica.role,
            match_index=replica.match_index,
        )
        if replica.lag_entries >= 0:
            entry.lag_entries = replica.lag_entries
