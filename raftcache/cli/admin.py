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
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped] # no py.typed in the package

from raftcache.admin.v1 import admin_pb2, admin_pb2_grpc
from raftcache.cli.exits import Exit, Failure
from raftcache.clock import NS_PER_SECOND, SystemClock
from raftcache.errors import (
    DeadlineExpired,
    OutcomeUnknown,
    Overloaded,
    PermissionDenied,
    RaftCacheError,
    Unauthenticated,
    Unavailable,
    UnsupportedVersion,
    error_of,
)

if TYPE_CHECKING:
    from raftcache.cli.options import ClientTls, Target

DETAILS = "grpc-status-details-bin"
ANSWER_SECONDS_MAX = 3.0
"""For one node to answer while there are others to ask: twice what it waits for nodes that are down itself."""

_WITHOUT_DETAILS: dict[grpc.StatusCode, type[RaftCacheError]] = {
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExpired,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedVersion,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
}
"""What gRPC itself says, without a word of the node's."""

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
        failed: list[tuple[str, RaftCacheError]] = []
        for endpoint in list(self._endpoints):
            last = endpoint == self._endpoints[-1]
            seconds = self.seconds_left if last else min(self.seconds_left, ANSWER_SECONDS_MAX)
            try:
                answer = ask(self._stub(endpoint), seconds)
            except grpc.RpcError as error:
                raised = _error_of(error)
                if not isinstance(raised, Unavailable | DeadlineExpired):
                    raise raised from error
                failed.append((endpoint, raised))
                continue
            self._endpoints.remove(endpoint)
            self._endpoints.insert(0, endpoint)
            return answer
        raise self._nobody(failed)

    def _change(self, ask: Callable[[admin_pb2_grpc.AdminServiceStub, float], Response]) -> Response:
        """Asks the first node that can be reached; it may take as long as the whole deadline to answer.

        Commands look at the cluster before they change it, so the first endpoint is one that has just answered.
        """
        failed: list[tuple[str, RaftCacheError]] = []
        for endpoint in self._endpoints:
            try:
                return ask(self._stub(endpoint), self.seconds_left)
            except grpc.RpcError as error:
                raised = _error_of(error)
                if isinstance(raised, DeadlineExpired) and not _has_details(error):
                    raise OutcomeUnknown(
                        f"{endpoint} has not answered within {self._target.timeout:g} s: the change may be under way"
                    ) from error
                if not isinstance(raised, Unavailable) or _has_details(error):
                    raise raised from error
                failed.append((endpoint, raised))
        raise self._nobody(failed)

    def _stub(self, endpoint: str) -> admin_pb2_grpc.AdminServiceStub:
        return admin_pb2_grpc.AdminServiceStub(self._channel(endpoint))

    def _channel(self, endpoint: str) -> grpc.Channel:
        if endpoint not in self._channels:
            self._channels[endpoint] = open_channel(endpoint, self._target.tls)
        return self._channels[endpoint]

    def _nobody(self, failed: list[tuple[str, RaftCacheError]]) -> Failure:
        hint = "start a cluster on this machine with `raftcache dev`, or name one with --endpoints or RAFTCACHE_ENDPOINTS"
        if self._target.found_by != "the default address":
            hint = f"the endpoints come from {self._target.found_by}; is the port the one for clients?"
        lines = "; ".join(f"{endpoint}: {error.message}" for endpoint, error in failed)
        return Failure(f"no node answers: {lines}", code=Exit.UNAVAILABLE, hint=hint)


def open_channel(endpoint: str, tls: ClientTls | None) -> grpc.Channel:
    """A channel to one node. Raises: `Failure` where a certificate cannot be read."""
    # A proxy for the web is none for a cluster; and each command is one process with one connection for each node.
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 1000)]
    if tls is None:
        return grpc.insecure_channel(endpoint, options)
    try:
        credentials = grpc.ssl_channel_credentials(
            tls.authority.read_bytes(),
            tls.key.read_bytes() if tls.key is not None else None,
            tls.certificate.read_bytes() if tls.certificate is not None else None,
        )
    except OSError as error:
        raise Failure(f"{error.filename} cannot be read: {error.strerror}", code=Exit.USAGE) from error
    return grpc.secure_channel(endpoint, credentials, options)


def _has_details(error: grpc.RpcError) -> bool:
    assert isinstance(error, grpc.Call)
    return any(name == DETAILS for name, _ in error.trailing_metadata() or ())


def _error_of(error: grpc.RpcError) -> RaftCacheError:
    """The node's error, or, where gRPC failed by itself, what that means."""
    assert isinstance(error, grpc.Call)
    message = error.details() or str(error.code())
    for name, value in error.trailing_metadata() or ():
        if name == DETAILS:
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return error_of(info.reason, message, dict(info.metadata))
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        message = "no connection" if "connect" in message.lower() else message
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        message = "no answer in time"
    return _WITHOUT_DETAILS.get(error.code(), RaftCacheError)(message)
