"""What a flow asks of its driver, and nothing else: the border between deciding and doing.

A *flow* is a generator. It yields a step, the driver does it and sends back what came of it:

    Call         one request to one endpoint      -> the answer's message, or a Failure
    Together     several requests at once         -> a list of these, in the same order
    Pause        some time passes                 -> None
    Wait         until `waiter` is set, or later  -> None

What the flow returns is what the caller gets; what it raises is what the caller sees. Flows never block, and drivers never
decide: every driver that does these four steps is a complete client.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from raftcache.client.ops import Method

T = TypeVar("T")


class Waiter(Protocol):
    """Something to wait for, of the driver's kind: a `threading.Event` or an `asyncio.Event`."""

    def set(self) -> None: ...

    def is_set(self) -> bool: ...


@dataclass(slots=True)
class Call:
    """Send one request."""

    endpoint: str
    """`host:port`."""
    method: Method
    message: Any
    """The request, a protobuf message of the method's."""
    seconds: float
    """How long to wait for the answer; goes with the request as its deadline."""


@dataclass(slots=True)
class Together:
    """Send several requests at once."""

    calls: list[Call]


@dataclass(slots=True)
class Pause:
    """Let time pass."""

    seconds: float


@dataclass(slots=True)
class Wait:
    """Wait until `waiter` is set, and no longer than `seconds`."""

    waiter: Waiter
    seconds: float


Step = Call | Together | Pause | Wait
Flow = Generator[Step, Any, T]
