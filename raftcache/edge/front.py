"""The contract between a front, which speaks a protocol to clients, and the handlers, which know what calls mean.

    bytes from a socket ─► front ─ Call ─► handlers ─► node
                           front ◄─ bytes | Refusal ─┘

Rules of this file:
- plain data and protocols; neither side knows what the other is made of: no protobuf types, no grpcio, no HTTP/2;
- lists, not items: a front hands on all calls of one loop turn in one list, and gets answers as lists. Nothing is
  created per call but the `Call`;
- every call gets exactly one answer; a front may have lost interest by then (the caller hung up) and drops it;
- all of it happens on the loop's thread; `submit`, `receive`, `deliver` and `send` are synchronous and short;
- times are monotonic nanoseconds of the node's clock.

Three kinds of method. *Unary* ones are the hot path, handed over as lists. *Awaited* ones are rare and slow (an
operator's call); the front awaits each in a task of its own. *Streams* are objects driven from both sides, with the
flow control that `Stream` describes.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from raftcache.errors import RaftCacheError
from raftcache.wire.grpc_wire import Refusal as Refusal  # part of the contract: handlers make them

NO_DEADLINE = (1 << 63) - 1
"""The `deadline_ns` of a caller who set none; later than any clock reading."""


class Peer(Protocol):
    """Who calls. Each property is worked out when it is asked for: most calls never ask."""

    @property
    def address(self) -> str:
        """The socket address, in the front's notation."""
        ...

    @property
    def identities(self) -> Sequence[str]:
        """The names in the verified client certificate; empty without mutual TLS."""
        ...

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """The call's metadata, keys in lower case; the last of repeated ones."""
        ...


@dataclass(slots=True, eq=False)
class Call:
    """One call on its way to the handlers."""

    method: str
    """The full name, as in `/raftcache.v1.KvService/Get`."""
    message: bytes
    """The serialised request; empty for a stream."""
    deadline_ns: int
    """`NO_DEADLINE` where the caller set none."""
    peer: Peer
    token: Any
    """The front's own."""


Answer = tuple[Call, bytes | Refusal]
"""A call and its serialised reply, or why there is none."""


class CallSink(Protocol):
    """Where the answers to unary calls go: a front."""

    def deliver(self, answers: list[Answer]) -> None:
        """Takes answers, as many as one turn produced. Never raises."""
        ...


class UnaryService(Protocol):
    """A set of unary methods, whose calls may come mixed in one list."""

    def attach(self, sink: CallSink) -> Callable[[list[Call]], None]:
        """Connects a front, once, before its first call. Returns the function that takes lists of calls.

        That function never raises for what a caller did wrong; each call is answered through `sink`, even before the
        function returns.
        """
        ...


class StreamSink(Protocol):
    """The front's end of one stream."""

    def send(self, messages: list[bytes]) -> None:
        """Queues messages for the client. Each is reported back by `Stream.sent` once the transport has taken it."""
        ...

    def finish(self, refusal: Refusal | None) -> None:
        """Ends the stream behind everything that was queued; None is success. Called at most once, and last."""
        ...

    def resume(self) -> None:
        """`Stream.reading` has become true again."""
        ...


class Stream(Protocol):
    """The handler's end of one stream.

    Back-pressure: the front calls `receive` only while `reading` is true, and then waits for `StreamSink.resume`. The
    handler counts what it has received and not been told `sent`, so that a client which does not read its replies is
    not read from either. A front may hold at most one message more than it was asked to read.
    """

    @property
    def reading(self) -> bool:
        """Whether the front may read more."""
        ...

    def receive(self, messages: list[bytes]) -> None:
        """Takes messages in the order in which the client sent them."""
        ...

    def half_close(self) -> None:
        """The client will send no more; what is in flight is answered, then the stream ends."""
        ...

    def sent(self, count: int) -> None:
        """The transport has taken `count` more of the messages sent."""
        ...

    def drain(self) -> None:
        """The server is stopping: read no more, answer what was read, then end the stream as unavailable."""
        ...

    def cancel(self) -> None:
        """The client or its connection is gone, or the stream is over. Idempotent; nothing may be sent after it."""
        ...


class StreamService(Protocol):
    """A streaming method."""

    def open(self, call: Call, sink: StreamSink) -> Stream:
        """Begins a stream. May already `finish` it through `sink`."""
        ...


AwaitedMethod = Callable[[Call], Awaitable[bytes | Refusal]]
"""A rare, slow method; raises nothing but `CancelledError`."""


@dataclass(frozen=True, slots=True)
class Handlers:
    """Everything a front can be asked. Keys are full method names; no name stands in two of the mappings."""

    refusal: Callable[[RaftCacheError], Refusal]
    """Turns an error of the front itself (a limit, a stop) into a status."""
    unary: Mapping[str, UnaryService] = field(default_factory=dict)
    awaited: Mapping[str, AwaitedMethod] = field(default_factory=dict)
    streams: Mapping[str, StreamService] = field(default_factory=dict)
    services: tuple[str, ...] = ()
    """Full service names, for reflection and health."""

    @property
    def health_names(self) -> tuple[str, ...]:
        """The names under which the whole is known to the health service: "" and the services' own."""
        return ("", *self.services)

    def attach(self, sink: CallSink) -> dict[int, Callable[[list[Call]], None]]:
        """Connects a front to each of the unary services; what takes their calls, by the service's `id`."""
        return {
            id(service): service.attach(sink) for service in {id(each): each for each in self.unary.values()}.values()
        }
