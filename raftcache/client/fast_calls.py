"""Calls of the client's own transport, each between whoever waits for it and its HTTP/2 stream.

    start ─► FastCall ─► FastConnection.begin ─► stream ... on_head, on_data, on_trailers, on_lost ─► settle(bytes | Failure)

Rules of this file:
- a call is *over* once it is settled or given up; after that it does nothing, whoever still knows it;
- every call that was started is settled once, unless its caller gave it up. What it is settled with says for certain whether
  the node may have seen the request: `Failure.definite`;
- an answer that arrives in one piece, as most do, is never buffered.
"""

from __future__ import annotations

import asyncio
from collections import deque
from threading import Lock
from typing import TYPE_CHECKING, Final

from raftcache.client.failure import Failure, failure_of_status, lost
from raftcache.wire.grpc_reply import ReplyHead, reply_head, status_of
from raftcache.wire.grpc_wire import UNKNOWN, MessageReader, Refusal, WireError, framed, whole_message
from raftcache.wire.http2_stream import HeadersReceived

if TYPE_CHECKING:
    from raftcache.client.fast_connection import FastConnection
    from raftcache.client.steps import Call
    from raftcache.wire.hpack import HeaderList
    from raftcache.wire.http2_stream import Stream

MESSAGE_BYTES_MAX: Final = (1 << 30) + (64 << 20)
"""Of one answer. Answers are bounded by the limits of what was asked (`limits.batch_reply_bytes_max` is at most 1 GiB); a
smaller bound here could only turn an applied write into an error. This one is for a server that is none of ours."""
STREAM_WINDOW: Final = 1 << 20
"""What an answer may have under way before anybody looked at it; large ones are let through as their length is known."""
UNREAD_BYTES_MAX: Final = 4 << 20
"""Of a stream's messages that nobody has taken yet; beyond it the node waits."""

_OK: Final = object()
"""The `meaning` of trailers that say so."""

Outcome = bytes | Failure


class FastCall:
    """What calls of both kinds have."""

    __slots__ = ("connection", "endpoint", "head", "over", "path", "reader", "seconds", "stream", "tick")

    def __init__(self, endpoint: str, path: str, seconds: float | None) -> None:
        self.endpoint = endpoint
        self.path = path
        self.seconds = seconds
        """How long it may take; None: as long as it likes."""
        self.over = False
        self.tick = 0
        """When it is overdue; see `Deadlines`."""
        self.connection: FastConnection | None = None
        self.stream: Stream | None = None
        """None: not a byte of it was written."""
        self.head: ReplyHead | None = None
        self.reader: MessageReader | None = None

    def send(self, connection: FastConnection, stream: Stream) -> None:
        """Writes the request to a stream that was opened for it."""
        raise NotImplementedError

    def settle(self, outcome: Outcome) -> None:
        """The call is over: tells whoever waits."""
        raise NotImplementedError

    def on_head(self, event: HeadersReceived) -> None:
        """The reply has begun, and often that is all of it."""
        raise NotImplementedError

    def on_data(self, data: bytes, ended: bool) -> None:
        """More of it."""
        raise NotImplementedError

    def on_trailers(self, trailers: HeaderList) -> None:
        """The end of it."""
        raise NotImplementedError

    def take_head(self, headers: HeaderList) -> ReplyHead:
        """What the head means, kept with it."""
        head: ReplyHead | None = headers.meaning
        if head is None:
            head = headers.meaning = reply_head(headers)
        self.head = head
        return head

    def feed(self, data: bytes) -> MessageReader:
        """Buffers `data`. Raises: `WireError`."""
        reader = self.reader
        if reader is None:
            assert self.head is not None, "DATA before HEADERS is HTTP/2's to refuse"
            reader = self.reader = MessageReader(MESSAGE_BYTES_MAX, gzip=self.head.gzip)
        reader.feed(data)
        return reader

    def status(self, trailers: HeaderList) -> Refusal | None:
        """How the call ended; None: well."""
        head = self.head
        assert head is not None, "the head of a reply comes first"
        if trailers.meaning is _OK and head.refusal is None:
            return None
        refusal = status_of(trailers.fields, head)
        if refusal is None and trailers.meaning is None:  # where a head is all there is, its meaning is that of a head
            trailers.meaning = _OK
        return refusal


class UnaryCall(FastCall):
    """One request, one answer."""

    __slots__ = ("body",)

    def __init__(self, call: Call) -> None:
        super().__init__(call.endpoint, call.method.path, call.seconds)
        data: bytes = call.message.SerializeToString()
        self.body = framed(data)

    def send(self, connection: FastConnection, stream: Stream) -> None:
        connection.http2.sender.request(stream, connection.shape(self.path, self.seconds), self.body)
        self.body = b""

    def on_head(self, event: HeadersReceived) -> None:
        head: ReplyHead | None = event.headers.meaning
        if head is None:
            head = self.take_head(event.headers)
        self.head, data, trailers = head, event.data, event.trailers
        if trailers is not None and trailers.meaning is _OK and head.refusal is None:
            message = whole_message(data)
            if message is not None:
                self.finish(message)
                return
        if head.refusal is not None and trailers is None and (data or not event.ended):
            # No gRPC: the rest is a page for people.
            self.give_up(failure_of(self.endpoint, head.refusal))
        elif data or event.ended:
            self._take(data, event.ended, trailers or (event.headers if event.ended else None))

    def on_data(self, data: bytes, ended: bool) -> None:
        self._take(data, ended, None)

    def on_trailers(self, trailers: HeaderList) -> None:
        self._take(b"", True, trailers)

    def _take(self, data: bytes, ended: bool, last: HeaderList | None) -> None:
        try:
            reader = self.feed(data)
            if not ended:
                assert self.connection is not None, "an answer comes on a connection"
                assert self.stream is not None, "an answer comes on a stream"
                self.connection.http2.allow(self.stream, max(reader.missing, STREAM_WINDOW))
                return
            refusal = Refusal(UNKNOWN, "the answer ends without trailers") if last is None else self.status(last)
            if refusal is not None:
                self.finish(failure_of(self.endpoint, refusal))
                return
            message = reader.next()
            if message is None or reader.buffered:
                raise WireError(UNKNOWN, "the answer is not exactly one message")
        except WireError as error:
            self.give_up(lost(self.endpoint, str(error)))
            return
        self.finish(message)

    def finish(self, outcome: Outcome) -> None:
        """The answer is complete, or the call failed."""
        assert self.connection is not None, "an answer comes on a connection"
        self.connection.forget(self)
        self.settle(outcome)

    def give_up(self, failure: Failure) -> None:
        """The answer cannot be understood: there is no use in the rest of it."""
        assert self.connection is not None, "an answer comes on a connection"
        self.connection.abandon(self)
        self.settle(failure)


class AsyncCall(UnaryCall):
    """Awaited on the transport's own loop."""

    __slots__ = ("future",)

    def __init__(self, call: Call, future: asyncio.Future[Outcome]) -> None:
        super().__init__(call)
        self.future = future

    def settle(self, outcome: Outcome) -> None:
        # Whoever waits may have been cancelled in this same turn, and will give the call up.
        if not self.future.done():
            self.future.set_result(outcome)


class SyncCall(UnaryCall):
    """Waited for by a thread."""

    __slots__ = ("_settled", "outcome")

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.outcome: Outcome | None = None
        self._settled = Lock()
        self._settled.acquire()

    def settle(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._settled.release()

    def wait(self, seconds: float) -> Outcome | None:
        """The outcome; None if there is none in time."""
        self._settled.acquire(timeout=seconds)
        return self.outcome


class StreamCall(FastCall):
    """Messages both ways. Used on the transport's loop."""

    __slots__ = ("_ended", "_messages", "_outcome", "_reading", "_unread", "_writing")

    def __init__(self, endpoint: str, path: str) -> None:
        super().__init__(endpoint, path, None)
        self._messages: deque[bytes] = deque()
        self._unread = 0
        """Their bytes."""
        self._outcome: Failure | None = None
        self._ended = False
        self._reading: asyncio.Future[None] | None = None
        self._writing: asyncio.Future[None] | None = None

    # --- What its user does -------------------------------------------------------------------------------------------

    async def write(self, message: bytes) -> bool:
        """Sends a message, with its prefix; returns when it has left, and false if the stream is over. For one task."""
        while self.stream is None:
            if self.over:
                return False
            await self._wait_to_write()
        assert self.connection is not None, "a stream is on a connection"
        if self.over or self.stream.local_ended:
            return False
        self.connection.http2.sender.send_data(self.stream, [message])
        self.connection.touch()
        while self.stream.queue and not self.over:
            await self._wait_to_write()
        return not self.over

    def end(self) -> None:
        """Sends no more."""
        if not self.over and self.connection is not None and self.stream is not None and not self.stream.local_ended:
            self.connection.http2.sender.end(self.stream, ())
            self.connection.touch()

    async def read(self) -> bytes | None:
        """The next message; None at the end, of which `failure` tells more. For one task."""
        while not self._messages:
            if self._ended:
                return None
            self._reading = asyncio.get_running_loop().create_future()
            try:
                await self._reading
            finally:
                self._reading = None
        message = self._messages.popleft()
        self._unread -= len(message)
        self._let_in()
        return message

    @property
    def failure(self) -> Failure | None:
        """How the stream ended; None: well."""
        return self._outcome

    # --- What the connection does -------------------------------------------------------------------------------------

    def send(self, connection: FastConnection, stream: Stream) -> None:
        connection.http2.sender.send_headers(stream, connection.shape(self.path, self.seconds).head)
        self.on_sent()

    def on_sent(self) -> None:
        """What was queued has left."""
        if self._writing is not None and not self._writing.done():
            self._writing.set_result(None)

    def settle(self, outcome: Outcome) -> None:
        assert not isinstance(outcome, bytes), "a stream ends with a status"
        self._end(outcome)

    def on_head(self, event: HeadersReceived) -> None:
        head = self.take_head(event.headers)
        if head.refusal is not None and not event.ended:
            self._give_up(failure_of(self.endpoint, head.refusal))
            return
        if event.data:
            self.on_data(event.data, False)
        if event.ended and not self.over:
            self.on_trailers(event.trailers or event.headers)

    def on_data(self, data: bytes, ended: bool) -> None:
        try:
            reader = self.feed(data)
            while (message := reader.next()) is not None:
                self._messages.append(message)
                self._unread += len(message)
        except WireError as error:
            self._give_up(lost(self.endpoint, str(error)))
            return
        if ended:
            self._give_up(lost(self.endpoint, "the stream ends without trailers"))
            return
        self._let_in()
        self._wake_reader()

    def on_trailers(self, trailers: HeaderList) -> None:
        refusal = self.status(trailers)
        assert self.connection is not None, "trailers come on a connection"
        self.connection.forget(self)
        if refusal is not None:
            self._end(failure_of(self.endpoint, refusal))
        elif self.reader is not None and self.reader.buffered:
            self._end(lost(self.endpoint, "the stream ends inside of a message"))
        else:
            self._end(None)

    def _let_in(self) -> None:
        if not self.over and self._unread < UNREAD_BYTES_MAX and self.connection is not None:
            assert self.stream is not None, "what was read came on a stream"
            missing = self.reader.missing if self.reader is not None else 0
            self.connection.http2.allow(self.stream, max(missing, STREAM_WINDOW))
            self.connection.touch()

    async def _wait_to_write(self) -> None:
        self._writing = asyncio.get_running_loop().create_future()
        try:
            await self._writing
        finally:
            self._writing = None

    def _give_up(self, failure: Failure) -> None:
        assert self.connection is not None, "an answer comes on a connection"
        self.connection.abandon(self)
        self._end(failure)

    def _end(self, failure: Failure | None) -> None:
        self._outcome, self._ended = failure, True
        self._wake_reader()
        self.on_sent()

    def _wake_reader(self) -> None:
        if self._reading is not None and not self._reading.done():
            self._reading.set_result(None)


def failure_of(endpoint: str, refusal: Refusal) -> Failure:
    """What a status means."""
    return failure_of_status(endpoint, refusal.code, refusal.message, refusal.details)
