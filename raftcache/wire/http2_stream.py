"""One HTTP/2 stream, and what a connection reports of its streams."""

from collections import deque
from dataclasses import dataclass
from typing import Any

from raftcache.wire.hpack import Fields, HeaderList


class Stream:
    """The state of one stream. It is in its connection's `streams` until both sides have ended it, or one has reset it."""

    __slots__ = (
        "call",
        "chunks_taken",
        "headed",
        "id",
        "length_left",
        "local_ended",
        "queue",
        "receive_window",
        "remote_ended",
        "scheduled",
        "send_window",
        "trailers",
    )

    def __init__(self, stream_id: int, send_window: int, receive_window: int, remote_ended: bool) -> None:
        self.id = stream_id
        self.send_window = send_window
        """Bytes of DATA that we may send; negative after the peer has shrunk its initial window (RFC 9113 §6.9.2)."""
        self.receive_window = receive_window
        """Bytes of DATA that the peer may send."""
        self.remote_ended = remote_ended
        self.headed = False
        """The peer has sent its head: a request's, of course, or that of its response."""
        self.length_left: int | None = None
        """Bytes of DATA that the head's `content-length` still promises; None: it has none, as gRPC's have not."""
        self.local_ended = False
        self.queue: deque[bytes | memoryview] | None = None
        """What waits for a window, or for the transport. None: nothing ever did."""
        self.trailers: Fields | None = None
        """What ends the stream behind the queue."""
        self.scheduled = False
        """Invariant: true exactly while the stream is in the sender's round."""
        self.chunks_taken = 0
        """Of those given to `send_data`, how many have left since the layer above last looked."""
        self.call: Any = None
        """The layer above's own; not looked at here."""


@dataclass(slots=True)
class HeadersReceived:
    """A request or response has begun, and often that is all of it: DATA that follow at once come with the head."""

    stream: Stream
    headers: HeaderList
    data: bytes
    ended: bool
    """The peer sends nothing more on it."""
    trailers: HeaderList | None = None
    """Of a response that came whole."""


@dataclass(slots=True)
class DataReceived:
    """DATA; with `ended`, and no bytes, also what trailers look like from above: gRPC requests have none to speak of."""

    stream: Stream
    data: bytes
    ended: bool


@dataclass(slots=True)
class TrailersReceived:
    """A response that did not come whole is complete now."""

    stream: Stream
    trailers: HeaderList


@dataclass(slots=True)
class StreamReset:
    """The stream is over: the peer reset it, or broke the protocol on it."""

    stream: Stream
    code: int


@dataclass(slots=True)
class StreamRefused:
    """The stream is over, and the server has not looked at it (RFC 9113 §8.7): what it asked for had no effect."""

    stream: Stream


@dataclass(slots=True)
class PeerLeaving:
    """The server takes no new streams on this connection."""

    code: int
    reason: bytes


@dataclass(slots=True)
class PingAcknowledged:
    """The answer to one of our pings."""

    data: bytes


@dataclass(slots=True)
class ConnectionEnded:
    """The peer broke the protocol or an abuse limit, or `end` was called, or the transport is gone: nothing more will be read."""

    code: int
    reason: str


Event = (
    HeadersReceived
    | DataReceived
    | TrailersReceived
    | StreamReset
    | StreamRefused
    | PingAcknowledged
    | PeerLeaving
    | ConnectionEnded
)
