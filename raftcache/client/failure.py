"""What a failed request tells: from a gRPC status, or from the error in the place of one result, to a `Failure`.

Rules of this file:
- the facts come from the details that the server sends; the class only names them. What a newer release calls by a name
  unknown here keeps its `definite` and `retryable`;
- a status without details is from the gRPC library itself (or a proxy): nobody knows how far the request came. The one
  exception is a connection that could not be made, which the library says in words; if they change, the outcome counts as
  unknown, which is the safe side (a test compares them with the installed library);
- `again` means that sending the same request again may help. Whether it is *allowed* is the flows' to decide.

Caveat: grpcio calls it UNKNOWN, INTERNAL or CANCELLED as well when a connection breaks in the middle of a call.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped] # no py.typed in the package

from raftcache.errors import (
    BatchTooLarge,
    Corruption,
    DeadlineExpired,
    OutcomeUnknown,
    PermissionDenied,
    RaftCacheError,
    SessionWindow,
    Unauthenticated,
    Unavailable,
    UnsupportedVersion,
    error_of,
)
from raftcache.v1 import types_pb2

DETAILS_TRAILER = "grpc-status-details-bin"
DOMAIN = "raftcache"
"""Of our ErrorInfo."""
NEVER_CONNECTED = "failed to connect to all addresses"
"""How gRPC's core begins the details of a call that found no connection, and so was never sent."""

_AGAIN = frozenset(
    {
        # Definite, and worth another attempt while the caller's own time is not up: an attempt may have less than that.
        DeadlineExpired.reason,
        # Definite: the window moves on as other writes of the session are answered.
        SessionWindow.reason,
        # Not definite: only where a repetition is harmless.
        OutcomeUnknown.reason,
        Corruption.reason,
    }
)
"""Reasons that are not `retryable` as such, but worth another attempt here."""

_REFUSED: dict[grpc.StatusCode, type[RaftCacheError]] = {
    # The other end's gRPC library refused to read a message of this size.
    grpc.StatusCode.RESOURCE_EXHAUSTED: BatchTooLarge,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedVersion,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
}
"""Codes that say without details that the request was not let in."""

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(slots=True)
class Failure:
    """A request failed."""

    error: RaftCacheError
    definite: bool
    """It had no effect, and never will."""
    again: bool
    """Sending it again may help."""
    unreachable: bool = False
    """The endpoint itself did not answer: another one may."""
    timed_out: bool = False
    """It had not answered when the attempt's time was over."""
    retry_after: float = 0.0
    """Seconds to wait before that, as the server advises."""

    @property
    def reason(self) -> str:
        """The stable name of the error."""
        return self.error.reason


def failure_of_status(endpoint: str, code: grpc.StatusCode, details: str | None, trailers: Metadata | None) -> Failure:
    """What a call's status means."""
    for key, value in trailers or ():
        if key == DETAILS_TRAILER and isinstance(value, bytes):
            failure = _of_details(details or "", value)
            if failure is not None:
                return failure
    said = f"{endpoint}: {details or code.name}"
    refused = _REFUSED.get(code)
    if refused is not None:
        return Failure(refused(said), definite=True, again=False)
    if code is grpc.StatusCode.UNAVAILABLE and (details or "").startswith(NEVER_CONNECTED):
        return Failure(Unavailable(f"cannot connect: {said}"), definite=True, again=True, unreachable=True)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Failure(OutcomeUnknown(f"no answer in time: {said}"), definite=False, again=True, timed_out=True)
    return Failure(OutcomeUnknown(f"no answer: {code.name}: {said}"), definite=False, again=True, unreachable=True)


def failure_of_detail(detail: types_pb2.ErrorDetail) -> Failure:
    """What the error in the place of one result means."""
    error = error_of(detail.reason, detail.message, dict(detail.metadata))
    return _failure(error, definite=detail.definite, retryable=detail.retryable, retry_after=0.0)


def _of_details(message: str, data: bytes) -> Failure | None:
    """From a serialised google.rpc.Status; None if it is not one of raftcache's."""
    error: RaftCacheError | None = None
    facts: dict[str, str] = {}
    retry_after = 0.0
    try:
        status = status_pb2.Status.FromString(data)
        for packed in status.details:
            name = packed.type_url.rpartition("/")[2]
            if name == "google.rpc.ErrorInfo":
                info = error_details_pb2.ErrorInfo.FromString(packed.value)
                if info.domain == DOMAIN:
                    facts = dict(info.metadata)
                    error = error_of(info.reason, status.message or message, facts)
            elif name == "google.rpc.RetryInfo":
                delay = error_details_pb2.RetryInfo.FromString(packed.value).retry_delay
                retry_after = delay.seconds + delay.nanos / 1e9
    except DecodeError:
        return None
    if error is None:
        return None
    return _failure(
        error,
        definite=facts.get("definite") == "true",
        retryable=facts.get("retryable") == "true",
        retry_after=retry_after,
    )


def _failure(error: RaftCacheError, *, definite: bool, retryable: bool, retry_after: float) -> Failure:
    shard = error.metadata.get("shard", "")
    if shard.isdecimal():
        error.shard = int(shard)
    return Failure(error, definite, retryable or error.reason in _AGAIN, retry_after=retry_after)
