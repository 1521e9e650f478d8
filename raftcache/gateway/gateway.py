"""What all services of a gateway share, and the checks that every operation passes on its way to the node."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from raftcache.clock import NS_PER_MS, Clock
from raftcache.edge.front import NO_DEADLINE
from raftcache.errors import BatchTooLarge, DeadlineExpired, InvalidRequest, Overloaded
from raftcache.gateway.authorization import ALLOW_ALL, Authorizer
from raftcache.gateway.routes import Routes
from raftcache.kv.limits import KvLimits
from raftcache.node.api import Submit

AnyMessage = TypeVar("AnyMessage", bound=Message)


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Limits of the gateway; those of single operations are `KvLimits`."""

    batch_operations_max: int = 1_000
    """`limits.batch_operations_max`."""
    batch_bytes_max: int = 4 << 20
    """`limits.batch_bytes_max`, of any one request."""
    batch_reply_bytes_max: int = 32 << 20
    """`limits.batch_reply_bytes_max`: the values in the answer to one batch."""
    deadline_default_ms: int = 10_000
    """For calls without a deadline. Twice `limits.patience_ms`: a call that found no leader still gets its error."""
    deadline_max_ms: int = 60_000
    """A later deadline is cut to this: what a caller abandoned must not be held for long."""
    pipeline_batches_max: int = 64
    """Batches of one stream that are read and not answered; with one operation each, a window of 64 outstanding."""
    pipeline_operations_max: int = 4_000
    """... and their operations: four full batches, one on its way through each of network, log, apply and reply."""
    unfinished_bytes_max: int = 256 << 20
    """`limits.in_flight_bytes_max`: values in the answers to batches and scans of which a part is still waited for. Beyond it reads
    are refused, to be asked for again."""
    pipeline_bytes_max: int = 16 << 20
    """... and their bytes: four full batches. Answers that the transport has not taken may have as many."""


@dataclass(slots=True)
class Unfinished:
    """Values in the answers to batches, and in pages of scans, that are not complete, of all callers."""

    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Gateway:
    """The node and everything that the services need besides."""

    node: Submit
    routes: Routes
    clock: Clock
    kv_limits: KvLimits
    settings: GatewaySettings
    authorizer: Authorizer = ALLOW_ALL
    unfinished: Unfinished = field(default_factory=Unfinished)

    def deadline_of(self, deadline_ns: int, now_ns: int) -> int:
        """The deadline that a caller's `deadline_ns` comes to. Raises: `DeadlineExpired`."""
        if deadline_ns == NO_DEADLINE:
            return now_ns + self.settings.deadline_default_ms * NS_PER_MS
        if deadline_ns <= now_ns:
            raise DeadlineExpired("the deadline passed before the request was proposed; nothing was done")
        return min(deadline_ns, now_ns + self.settings.deadline_max_ms * NS_PER_MS)

    def check_bytes(self, message: bytes) -> None:
        """Holds one request to `limits.batch_bytes_max`. Raises: `BatchTooLarge`."""
        bytes_max = self.settings.batch_bytes_max
        if len(message) > bytes_max:
            raise BatchTooLarge(
                f"the request has {len(message)} bytes; limits.batch_bytes_max allows {bytes_max}: split it",
                metadata={"setting": "limits.batch_bytes_max", "limit": str(bytes_max), "actual": str(len(message))},
            )

    def check_count(self, count: int) -> None:
        """Holds one batch to `limits.batch_operations_max`. Raises: `BatchTooLarge`."""
        operations_max = self.settings.batch_operations_max
        if count > operations_max:
            raise BatchTooLarge(
                f"the batch has {count} operations; limits.batch_operations_max allows {operations_max}: split it",
                metadata={
                    "setting": "limits.batch_operations_max",
                    "limit": str(operations_max),
                    "actual": str(count),
                },
            )


def too_much_unfinished(what: str, bytes_max: int) -> Overloaded:
    """The refusal of what would have to be held until others of its answer are there."""
    return Overloaded(
        f"answers to unfinished batches and scans hold limits.in_flight_bytes_max, {bytes_max} bytes: ask for this {what} again later",
        metadata={"setting": "limits.in_flight_bytes_max", "limit": str(bytes_max)},
    )


def parse(from_string: Callable[[bytes], AnyMessage], data: bytes) -> AnyMessage:
    """The protobuf message in `data`. Raises: `InvalidRequest`."""
    try:
        return from_string(data)
    except DecodeError as error:
        raise InvalidRequest(f"the request is not a valid message of its type: {error}") from error
