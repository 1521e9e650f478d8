"""A node that answers the admin service as a test tells it, on a real port."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import grpc
from google.protobuf.message import Message

from raftcache.admin.v1 import admin_pb2, admin_pb2_grpc
from raftcache.errors import RaftCacheError
from raftcache.gateway.errors import refusal_of

A, B, C = 4065183404355984058, 1651903361495519483, 4543011734490518702
"""Ids of nodes, as large as they are."""
CLUSTER = 17237436991929493444
"""What jq makes of it as a number ends in 494000."""


def small_cluster() -> admin_pb2.GetClusterResponse:
    """Three nodes, the catalog and one shard; healthy."""
    cluster = admin_pb2.GetClusterResponse(cluster=CLUSTER, epoch=3, failure_tolerance=1, healthy=True)
    for number, (node, name) in enumerate(((A, "n1"), (B, "n2"), (C, "n3"))):
        cluster.nodes.add(
            node=node,
            name=name,
            peer_address=f"127.0.0.1:74{number}1",
            client_address=f"127.0.0.1:74{number}0",
            alive=True,
            version="0.1.0",
            replicas=2,
            leaders=2 if name == "n1" else 0,
            catalog_voter=True,
        )
    for number in (0, 1):
        shard = cluster.shards.add(
            shard=number, leader=4 * number + 1, leader_node=A, term=2, commit_index=9, failure_tolerance=1, keys=12
        )
        if number:
            shard.ranges.add(lo=0, hi=16384)
        for offset, node in enumerate((A, B, C), 1):
            shard.replicas.add(
                replica=4 * number + offset,
                node=node,
                membership="voter",
                role="leader" if node == A else "follower",
                match_index=9,
                lag_entries=0,
            )
    return cluster


class FakeAdmin(admin_pb2_grpc.AdminServiceServicer):
    """Remembers what it was asked. A context manager."""

    def __init__(self) -> None:
        self.asked: list[Message] = []
        self.clusters: list[admin_pb2.GetClusterResponse] = [small_cluster()]
        """The answers to GetCluster, one after the other; the last one stays."""
        self.error: RaftCacheError | None = None
        """Of every call but GetCluster."""
        self.cluster_error: RaftCacheError | None = None
        self.held: threading.Event | None = None
        """If set: what every call but GetCluster waits for."""
        self._server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
        admin_pb2_grpc.add_AdminServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

    @property
    def changes(self) -> list[Message]:
        """What was asked beyond looking."""
        return [request for request in self.asked if not isinstance(request, admin_pb2.GetClusterRequest)]

    def _answer(self, request: Message, context: Any, answer: Callable[[], Any], error: RaftCacheError | None) -> Any:
        self.asked.append(request)
        if self.held is not None and not isinstance(request, admin_pb2.GetClusterRequest):
            self.held.wait(30)
        if error is not None:
            refusal = refusal_of(error)
            context.set_trailing_metadata((("grpc-status-details-bin", refusal.details),))
            code = next(code for code in grpc.StatusCode if code.value[0] == refusal.code)
            context.abort(code, refusal.message)
        return answer()

    def GetCluster(self, request: Any, context: Any) -> Any:
        return self._answer(request, context, self._next_cluster, self.cluster_error)

    def _next_cluster(self) -> admin_pb2.GetClusterResponse:
        return self.clusters.pop(0) if len(self.clusters) > 1 else self.clusters[0]

    def Init(self, request: Any, context: Any) -> Any:
        if self.error is None:
            self.cluster_error = None
        return self._answer(request, context, lambda: admin_pb2.InitResponse(cluster=CLUSTER), self.error)

    def JoinNode(self, request: Any, context: Any) -> Any:
        return self._answer(request, context, lambda: admin_pb2.JoinNodeResponse(node=C), self.error)

    def RemoveNode(self, request: Any, context: Any) -> Any:
        return self._answer(
            request, context, lambda: admin_pb2.RemoveNodeResponse(description="was removed"), self.error
        )

    def ChangeReplicas(self, request: Any, context: Any) -> Any:
        return self._answer(
            request, context, lambda: admin_pb2.ChangeReplicasResponse(description="will change"), self.error
        )

    def TransferLeader(self, request: Any, context: Any) -> Any:
        return self._answer(
            request, context, lambda: admin_pb2.TransferLeaderResponse(description="leads now"), self.error
        )

    def LocateKey(self, request: Any, context: Any) -> Any:
        return self._answer(request, context, lambda: admin_pb2.LocateKeyResponse(slot=2780, shard=1), self.error)
