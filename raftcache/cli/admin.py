"""The admin service as commands use it: any node will do, and the next one is asked where one does not answer.

Rules of this file:
- every call of the service may be repeated (see `admin.proto`), so a node that does not answer costs a try and nothing else;
- `grpc.RpcError` ends here: what leaves is a `RaftCacheError`, the node's own where it sent one;
- the deadline is one for all tries together.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import grpc

from raftcache.admin.v1 import admin_pb2, admin_pb2_grpc
from raftcache.cli.exits import Exit, Failure
from raftcache.client.failure import Failure as CallFailure
from raftcache.client.grpcio_sync import credentials_of, failure_of
from raftcache.client.options import CHANNEL_OPTIONS
from raftcache.clock import NS_PER_SECOND, SystemClock
from raftcache.errors import OutcomeUnknown, Unavailable

if TYPE_CHECKING:
    from raftcache.cli.options import Target

ANSWER_SECONDS_MAX = 3.0
"""For one node to answer while there are others to ask: twice what it waits for nodes that are down itself."""

Response = TypeVar("Response")


class AdminClient:
    """Asks the nodes of one cluster, in turn. A context manager."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._endpoints = list(target.endpoints)
        self._clock = SystemClock()
        self._deadline_ns = self._clock.monotonic_ns() + int(target.timeout * NS_PER_SECOND)
        self._channels: dict[str, grpc.Channel] = {}

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels.values():
            channel.close()

    @property
    def seconds_left(self) -> float:
        """Until the deadline; never negative."""
        return max(0.0, (self._deadline_ns - self._clock.monotonic_ns()) / NS_PER_SECOND)

    def cluster(self) -> admin_pb2.GetClusterResponse:
        """The whole cluster. Raises: `RaftCacheError`, `Failure` where no node answers."""
        return self._read(lambda stub, seconds: stub.GetCluster(admin_pb2.GetClusterRequest(), timeout=seconds))

    def locate(self, key: bytes) -> admin_pb2.LocateKeyResponse:
        """A key's slot and shard."""
        return self._read(lambda stub, seconds: stub.LocateKey(admin_pb2.LocateKeyRequest(key=key), timeout=seconds))

    def init(self, request: admin_pb2.InitRequest) -> admin_pb2.InitResponse:
        """Makes a cluster of the first endpoint's node and others."""
        return self._change(lambda stub, seconds: stub.Init(request, timeout=seconds))

    def join_node(self, request: admin_pb2.JoinNodeRequest) -> admin_pb2.JoinNodeResponse:
        """Takes a node in."""
        return self._change(lambda stub, seconds: stub.JoinNode(request, timeout=seconds))

    def remove_node(self, request: admin_pb2.RemoveNodeRequest) -> admin_pb2.RemoveNodeResponse:
        """Lets a node go."""
        return self._change(lambda stub, seconds: stub.RemoveNode(request, timeout=seconds))

    def change_replicas(self, request: admin_pb2.ChangeReplicasRequest) -> admin_pb2.ChangeReplicasResponse:
        """Begins a change of a shard's members."""
        return self._change(lambda stub, seconds: stub.ChangeReplicas(request, timeout=seconds))

    def transfer_leader(self, request: admin_pb2.TransferLeaderRequest) -> admin_pb2.TransferLeaderResponse:
        """Hands a shard's lead over."""
        return self._change(lambda stub, seconds: stub.TransferLeader(request, timeout=seconds))

    # --- Asking -------------------------------------------------------------------------------------------------------

    def _read(self, ask: Callable[[admin_pb2_grpc.AdminServiceStub, float], Response]) -> Response:
        """Asks one node after the other, until one answers; that one is asked first from then on."""
        failed: list[CallFailure] = []
        for endpoint in list(self._endpoints):
            last = endpoint == self._endpoints[-1]
            seconds = self.seconds_left if last else min(self.seconds_left, ANSWER_SECONDS_MAX)
            try:
                answer = ask(self._stub(endpoint), seconds)
            except grpc.RpcError as error:
                failure = failure_of(endpoint, error)
                if not failure.again:
                    raise failure.error from error
                failed.append(failure)
                continue
            self._endpoints.remove(endpoint)
            self._endpoints.insert(0, endpoint)
            return answer
        raise self._nobody(failed)

    def _change(self, ask: Callable[[admin_pb2_grpc.AdminServiceStub, float], Response]) -> Response:
        """Asks the first node that can be reached; it may take as long as the whole deadline to answer.

        Commands look at the cluster before they change it, so the first endpoint is one that has just answered.
        """
        failed: list[CallFailure] = []
        for endpoint in self._endpoints:
            try:
                return ask(self._stub(endpoint), self.seconds_left)
            except grpc.RpcError as error:
                failure = failure_of(endpoint, error)
                if failure.timed_out:
                    raise OutcomeUnknown(
                        f"{endpoint} has not answered within {self._target.timeout:g} s: the change may be under way"
                    ) from error
                if not (failure.unreachable and failure.definite):
                    raise failure.error from error
                failed.append(failure)
        raise self._nobody(failed)

    def _stub(self, endpoint: str) -> admin_pb2_grpc.AdminServiceStub:
        return admin_pb2_grpc.AdminServiceStub(self._channel(endpoint))

    def _channel(self, endpoint: str) -> grpc.Channel:
        if endpoint not in self._channels:
            self._channels[endpoint] = self._opened(endpoint)
        return self._channels[endpoint]

    def _opened(self, endpoint: str) -> grpc.Channel:
        if self._target.tls is None:
            return grpc.insecure_channel(endpoint, CHANNEL_OPTIONS)
        try:
            return grpc.secure_channel(endpoint, credentials_of(self._target.tls), CHANNEL_OPTIONS)
        except OSError as error:
            raise Failure(f"{error.filename} cannot be read: {error.strerror}", code=Exit.USAGE) from error

    def _nobody(self, failed: list[CallFailure]) -> Failure:
        hint = (
            "start a cluster on this machine with `raftcache dev`, or name one with --endpoints or RAFTCACHE_ENDPOINTS"
        )
        if self._target.found_by != "the default address":
            hint = f"the addresses come from {self._target.found_by}; are they those for clients, and is TLS as it should be?"
        if all(failure.reason == Unavailable.reason and not failure.unreachable for failure in failed):
            # They did answer.
            return Failure(failed[0].error.message, code=Exit.UNAVAILABLE)
        reasons = "; ".join(dict.fromkeys(_brief(failure) for failure in failed))
        return Failure(f"no node answers: {reasons}", code=Exit.UNAVAILABLE, hint=hint)


def _brief(failure: CallFailure) -> str:
    """One node's failure without gRPC's own repetitions."""
    return failure.error.message.replace("failed to connect to all addresses; last error: ", "")
