"""What a refused call tells: the facts of google.rpc.Status, read as any client of any language would."""

from collections.abc import Callable
from dataclasses import dataclass, field

import grpc
from google.rpc import error_details_pb2, status_pb2

DETAILS_TRAILER = "grpc-status-details-bin"


@dataclass(slots=True)
class Refusal:
    """A failed call. Without details (a status of the gRPC library itself) `reason` is empty."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    field_: str = ""
    """Of BadRequest: the part of the request that is at fault."""
    retry_after_ms: int | None = None


def refusal_of(error: grpc.RpcError) -> Refusal:
    """What the error of a call says."""
    refusal = Refusal(error.code(), error.details() or "")
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_TRAILER:
            for packed in status_pb2.Status.FromString(value).details:
                _read(packed, refusal)
    return refusal


def _read(packed: object, refusal: Refusal) -> None:
    info, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    if packed.Unpack(info):  # type: ignore[attr-defined]
        assert info.domain == "raftcache", info
        refusal.reason, refusal.facts = info.reason, dict(info.metadata)
    elif packed.Unpack(retry):  # type: ignore[attr-defined]
        refusal.retry_after_ms = retry.retry_delay.ToMilliseconds()
    elif packed.Unpack(bad):  # type: ignore[attr-defined]
        refusal.field_ = bad.field_violations[0].field


def refused(call: Callable[[], object]) -> Refusal:
    """Makes a call that must fail. Raises: `AssertionError` where it succeeds."""
    try:
        answer = call()
    except grpc.RpcError as error:
        return refusal_of(error)
    raise AssertionError(f"nothing was refused: {answer}")
