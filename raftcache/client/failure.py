"""What a failed request tells: from a gRPC status, or from the error in the place of one result, to a `Failure`.

Rules of this file:
- the facts come from the details that the server sends; the class only names them. What a newer release calls by a name
  unknown here keeps its `definite` and `retryable`;
- a status without details is from a gRPC library (or a proxy): nobody knows how far the request came;
- a transport that knows how far a request came says so: `never_sent`, `refused`, `lost`, `overdue`, `closed`;
- `again` means that sending the same request again may help. Whether it is *allowed* is the flows' to decide.
"""

from dataclasses import dataclass

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped] # no py.typed in the package

from raftcache.client.errors import ClientClosed
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
from raftcache.wire.grpc_wire import (
    DEADLINE_EXCEEDED,
    PERMISSION_DENIED,
    RESOURCE_EXHAUSTED,
    STATUS_NAMES,
    UNAUTHENTICATED,
    UNIMPLEMENTED,
)

DOMAIN = "raftcache"
"""Of our ErrorInfo."""

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

_REFUSED: dict[int, type[RaftCacheError]] = {
    # The other end's gRPC library refused to read a message of this size.
    RESOURCE_EXHAUSTED: BatchTooLarge,
    UNIMPLEMENTED: UnsupportedVersion,
    UNAUTHENTICATED: Unauthenticated,
    PERMISSION_DENIED: PermissionDenied,
}
"""Codes that say without details that the request was not let in."""


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


def failure_of_status(endpoint: str, code: int, message: str, details: bytes) -> Failure:
    """What a call's status means; `details` is a serialised google.rpc.Status, or empty."""
    if details:
        failure = _of_details(message, details)
        if failure is not None:
            return failure
    name = STATUS_NAMES[code]
    said = f"{endpoint}: {message or name}"
    cls = _REFUSED.get(code)
    if cls is not None:
        return Failure(cls(said), definite=True, again=False)
    if code == DEADLINE_EXCEEDED:
        return Failure(OutcomeUnknown(f"no answer in time: {said}"), definite=False, again=True, timed_out=True)
    return Failure(OutcomeUnknown(f"no answer: {name}: {said}"), definite=False, again=True, unreachable=True)


def never_sent(endpoint: str, why: str) -> Failure:
    """There is no connection, or it broke before the first byte of the request was handed to it."""
    error = Unavailable(f"cannot connect: {endpoint}: {why}")
    return Failure(error, definite=True, again=True, unreachable=True)


def refused(endpoint: str) -> Failure:
    """The node says that it has not looked at the request (RFC 9113 §8.7)."""
    return Failure(Unavailable(f"{endpoint} takes no more requests on this connection"), definite=True, again=True)


def lost(endpoint: str, why: str) -> Failure:
    """The request was sent, at least in part, and there will be no answer that can be understood."""
    return Failure(OutcomeUnknown(f"no answer: {endpoint}: {why}"), definite=False, again=True, unreachable=True)


def overdue(endpoint: str, *, sent: bool) -> Failure:
    """The attempt's time is over."""
    if sent:
        error: RaftCacheError = OutcomeUnknown(f"no answer in time: {endpoint}")
    else:
        error = Unavailable(f"no connection in time: {endpoint}")
    return Failure(error, definite=not sent, again=True, timed_out=True)


def closed(*, sent: bool) -> Failure:
    """The client was closed under the call."""
    if sent:
        return Failure(OutcomeUnknown("no answer: the client was closed"), definite=False, again=True)
    return Failure(ClientClosed("the client is closed"), definite=True, again=False)


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
