"""How every error of `raftcache.errors` looks to a gRPC client.

Rules of this file:
- one table, `CODES`: error class -> gRPC status code. A class that is not in it has the code of its nearest ancestor;
- the code is for generic clients and proxies, the `reason` in the details is for ours: several reasons share a code;
- UNAVAILABLE is what generic retry policies repeat, so only errors that certainly had no effect carry it. An unknown
  outcome is UNKNOWN, which none of them repeats;
- trailers are small: HTTP/2 peers may refuse more than 8 KiB of metadata, so messages and facts are cut to bounds.

The details are a google.rpc.Status in the trailer `grpc-status-details-bin`, built here by hand: what grpcio-status
adds is three lines. `docs/errors.md` shows this table to people; a test holds the two equal.
"""

from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped] # no py.typed in the package
from grpc import StatusCode

from raftcache.edge.front import Refusal
from raftcache.errors import (
    ConfigError,
    Corruption,
    DataDirectoryInUse,
    DeadlineExpired,
    IdentityMismatch,
    InvalidRequest,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    PermissionDenied,
    PreconditionFailed,
    ProtocolError,
    RaftCacheError,
    SessionExpired,
    SessionWindow,
    StorageFull,
    Unauthenticated,
    Unavailable,
    UnsupportedVersion,
    WrongShard,
)
from raftcache.v1 import types_pb2

DOMAIN = "raftcache"
"""The `domain` of ErrorInfo: reasons are unique within it."""

CODES: dict[type[RaftCacheError], StatusCode] = {
    RaftCacheError: StatusCode.INTERNAL,
    InvalidRequest: StatusCode.INVALID_ARGUMENT,
    UnsupportedVersion: StatusCode.FAILED_PRECONDITION,
    ConfigError: StatusCode.INVALID_ARGUMENT,
    NotLeader: StatusCode.UNAVAILABLE,
    WrongShard: StatusCode.ABORTED,
    Unavailable: StatusCode.UNAVAILABLE,
    Overloaded: StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExpired: StatusCode.DEADLINE_EXCEEDED,
    SessionExpired: StatusCode.FAILED_PRECONDITION,
    SessionWindow: StatusCode.OUT_OF_RANGE,
    PreconditionFailed: StatusCode.FAILED_PRECONDITION,
    Unauthenticated: StatusCode.UNAUTHENTICATED,
    PermissionDenied: StatusCode.PERMISSION_DENIED,
    OutcomeUnknown: StatusCode.UNKNOWN,
    Corruption: StatusCode.DATA_LOSS,
    StorageFull: StatusCode.RESOURCE_EXHAUSTED,
    IdentityMismatch: StatusCode.FAILED_PRECONDITION,
    DataDirectoryInUse: StatusCode.FAILED_PRECONDITION,
    ProtocolError: StatusCode.INTERNAL,
}

RETRY_DELAY_MS: dict[type[RaftCacheError], int] = {
    # A hint or a newer shard map is at hand: one round trip to fetch it is delay enough.
    NotLeader: 20,
    WrongShard: 20,
    # An election takes one to two seconds; several looks in that time find its end soon.
    Unavailable: 200,
    # A full queue of this node drains in some tens of milliseconds.
    Overloaded: 100,
    # Somebody must make room.
    StorageFull: 5_000,
}
"""RetryInfo of the retryable errors: when it makes sense to try again."""

MESSAGE_BYTES_MAX = 1024
"""The message travels twice: percent-encoded, which triples it at worst, and in the details, in base64: 4.4 KiB."""
METADATA_ITEMS_MAX = 8
METADATA_VALUE_BYTES_MAX = 128
"""With 8 items, 1.7 KiB in base64. With the rest of the details that stays below 8 KiB."""
VIOLATION_BYTES_MAX = 128


def status_code(error: RaftCacheError) -> StatusCode:
    """The gRPC status code of `error`."""
    for cls in type(error).__mro__:
        if (code := CODES.get(cls)) is not None:
            return code
    raise AssertionError(f"{type(error)} does not descend from RaftCacheError")


def refusal_of(error: RaftCacheError, shard: int = -1) -> Refusal:
    """The status of a call that failed with `error`, in `shard` if that is known."""
    code, message = status_code(error), _cut(error.message, MESSAGE_BYTES_MAX)
    number: int = code.value[0]
    details = [_packed(_error_info(error, shard))]
    delay_ms = RETRY_DELAY_MS.get(type(error), 0)
    if delay_ms:
        delay = duration_pb2.Duration(seconds=delay_ms // 1000, nanos=delay_ms % 1000 * 1_000_000)
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    if isinstance(error, InvalidRequest):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.metadata.get("field", ""), description=_cut(message, VIOLATION_BYTES_MAX), reason=error.reason
        )
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    status = status_pb2.Status(code=number, message=message, details=details)
    return Refusal(number, message, status.SerializeToString())


def fill_detail(detail: types_pb2.ErrorDetail, error: RaftCacheError, shard: int = -1) -> None:
    """Writes `error` in the place of one result of a batch."""
    number: int = status_code(error).value[0]
    detail.code = number
    detail.reason = error.reason
    detail.message = _cut(error.message, MESSAGE_BYTES_MAX)
    detail.definite = error.definite
    detail.retryable = error.retryable
    for name, value in _facts(error, shard).items():
        detail.metadata[name] = value


def _facts(error: RaftCacheError, shard: int) -> dict[str, str]:
    facts = {name: _cut(value, METADATA_VALUE_BYTES_MAX) for name, value in error.metadata.items()}
    if shard >= 0:
        facts.setdefault("shard", str(shard))
    return dict(list(facts.items())[-METADATA_ITEMS_MAX:])


def _error_info(error: RaftCacheError, shard: int) -> error_details_pb2.ErrorInfo:
    facts = _facts(error, shard)
    facts["definite"] = "true" if error.definite else "false"
    facts["retryable"] = "true" if error.retryable else "false"
    return error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts)


def _packed(
    message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo | error_details_pb2.BadRequest,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _cut(text: str, bytes_max: int) -> str:
    """`text`, cut so that it takes at most `bytes_max` bytes; valid UTF-8 whatever it was made of."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= bytes_max:
        return data.decode()
    return data[: bytes_max - 3].decode("utf-8", "ignore") + "..."
