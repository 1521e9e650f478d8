"""Channels of the client's own transport: the connections to each endpoint, who waits for one, and what is overdue.

    start ─► a connection with room ─► begin
       └── none: waiting ─► dial ─► begin, or `never_sent`

Rules of this file:
- an endpoint is dialled when a call needs it. After a failure it is left alone for a moment, in which calls fail at once;
- one connection carries up to as many calls as the node allows (1,000); beyond that there is another, up to `CONNECTIONS_MAX`,
  and then calls wait;
- one timer for all deadlines: calls stand in buckets of a few milliseconds, and leave them when they are answered.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import Final

from raftcache.client.failure import closed, never_sent, overdue
from raftcache.client.fast_calls import FastCall
from raftcache.client.fast_connection import FastConnection
from raftcache.clock import NS_PER_MS, NS_PER_SECOND, Clock

CONNECTIONS_MAX: Final = 4
"""To one endpoint. The node takes 20,000 calls at a time by default, of all clients."""
CONNECT_SECONDS: Final = 2.0
"""For connection, TLS and the first SETTINGS; one lost packet of TCP costs a second."""
REDIAL_SECONDS_MIN: Final = 0.1
REDIAL_SECONDS_MAX: Final = 1.0
"""A node that restarts is back in a second or two."""
FAREWELL_SECONDS: Final = 1.0
"""For connections to close in an orderly way."""
TURNS_TO_ABORT: Final = 3
TICK_NS: Final = 8 * NS_PER_MS
"""By how much later than its deadline a call may end."""


class Deadlines:
    """When calls are overdue."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self._loop = loop
        self._clock = clock
        self._buckets: dict[int, set[FastCall]] = {}
        """By tick. Invariant: while there are any, the timer is set for the first."""
        self._timer: asyncio.TimerHandle | None = None
        self._first = 0

    def add(self, call: FastCall) -> None:
        """Watches a call, from now on."""
        if call.seconds is None:
            return
        now_ns = self._clock.monotonic_ns()
        call.tick = tick = int(now_ns + call.seconds * NS_PER_SECOND) // TICK_NS + 1
        bucket = self._buckets.get(tick)
        if bucket is not None:
            bucket.add(call)
            return
        self._buckets[tick] = {call}
        if self._timer is None or tick < self._first:
            self._set(tick, now_ns)

    def discard(self, call: FastCall) -> None:
        """The call is over."""
        bucket = self._buckets.get(call.tick)
        if bucket is not None:
            bucket.discard(call)

    def stop(self) -> None:
        """Watches nothing any more."""
        self._buckets.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, tick: int, now_ns: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._first = tick
        self._timer = self._loop.call_later(max(tick * TICK_NS - now_ns, 0) / NS_PER_SECOND, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now_ns = self._clock.monotonic_ns()
        for tick in sorted(tick for tick in self._buckets if tick * TICK_NS <= now_ns):
            for call in self._buckets.pop(tick):
                if not call.over:
                    _expire(call)
        if self._buckets and self._timer is None:
            self._set(min(self._buckets), now_ns)


def _expire(call: FastCall) -> None:
    sent = call.connection is not None
    if call.connection is not None:
        # Also where it still waits to be written: it will be, with its end behind it, and the node may be faster than that.
        call.connection.abandon(call)
    call.over = True
    call.settle(overdue(call.endpoint, sent=sent))


class Channel:
    """All connections to one endpoint."""

    def __init__(
        self,
        endpoint: str,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        deadlines: Deadlines,
        tls: ssl.SSLContext | None,
    ) -> None:
        self.authority = endpoint
        self.scheme = "http" if tls is None else "https"
        self.loop = loop
        self.clock = clock
        self.deadlines = deadlines
        host, _, port = endpoint.rpartition(":")
        # A node's own idea of its address may be anything; what is no port is found out, and told, by who resolves it.
        self._host, self._port = host.removeprefix("[").removesuffix("]"), port
        self._tls = tls
        self._connections: list[FastConnection] = []
        """Those that take calls, or will as soon as one ends."""
        self._open: set[FastConnection] = set()
        """Those, and others that say hello or only finish what they have."""
        self._waiting: deque[FastCall] = deque()
        """Calls for which no connection has room; some may be over."""
        self._dialling: asyncio.Task[None] | None = None
        self._failures = 0
        """In a row."""
        self._failed = ""
        """Why the last one was."""
        self._left_alone_until_ns = 0

    def start(self, call: FastCall) -> None:
        """Sends a call, now or when there is a connection for it."""
        if call.seconds is not None and call.seconds <= 0:
            call.over = True
            call.settle(overdue(call.endpoint, sent=False))
            return
        while self._waiting and self._waiting[0].over:
            self._waiting.popleft()
        if not self._waiting:
            for connection in self._connections:
                if connection.http2.room > 0:
                    self.deadlines.add(call)
                    connection.begin(call)
                    return
        if not self._connections and self._dialling is None:
            if self._failures and self.clock.monotonic_ns() < self._left_alone_until_ns:
                call.over = True
                call.settle(never_sent(call.endpoint, self._failed))
                return
        self.deadlines.add(call)
        self._waiting.append(call)
        self._dial()

    def abandon(self, call: FastCall) -> None:
        """Nobody waits for the call any more."""
        if call.over:
            return
        if call.connection is not None:
            call.connection.abandon(call)
        else:
            call.over = True  # and is skipped when its turn comes
            self.deadlines.discard(call)

    async def close(self) -> None:
        """Ends everything."""
        if self._dialling is not None:
            self._dialling.cancel()
        self._fail_waiting(None)
        connections = list(self._open)
        for connection in connections:
            connection.leave()
        if connections:
            await asyncio.wait([connection.gone for connection in connections], timeout=FAREWELL_SECONDS)
        for connection in connections:
            connection.abort()
        if self._dialling is not None:
            await asyncio.wait([self._dialling])
        # A transport that is aborted, or cut off in its handshake, closes its socket in one of the next turns.
        for _ in range(TURNS_TO_ABORT):
            await asyncio.sleep(0)

    # --- What connections tell ----------------------------------------------------------------------------------------

    def on_open(self, connection: FastConnection) -> None:
        """A connection is there, and says hello."""
        self._open.add(connection)

    def on_room(self, connection: FastConnection) -> None:
        """Something arrived on a connection, perhaps the end of a call."""
        waiting = self._waiting
        while waiting and connection.http2.room > 0 and connection in self._connections:
            call = waiting.popleft()
            if not call.over:
                connection.begin(call)

    def on_leaving(self, connection: FastConnection) -> None:
        """A connection takes no more calls."""
        if connection in self._connections:
            self._connections.remove(connection)
            if self._waiting:
                self._dial()

    def on_gone(self, connection: FastConnection) -> None:
        """A connection is closed."""
        self.on_leaving(connection)
        self._open.discard(connection)

    # --- Dialling -----------------------------------------------------------------------------------------------------

    def _dial(self) -> None:
        if self._dialling is None and len(self._connections) < CONNECTIONS_MAX:
            # Not in a TaskGroup: no coroutine lives as long as the channel does. It is named, held here, and ends in time.
            self._dialling = self.loop.create_task(self._connect(), name=f"raftcache-dial {self.authority}")

    async def _connect(self) -> None:
        connection: FastConnection | None = None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await self.loop.create_connection(
                    lambda: FastConnection(self),
                    self._host,
                    int(self._port),
                    ssl=self._tls,
                    server_hostname=None if self._tls is None else self._host,
                )
                await connection.hello
        except (OSError, ValueError, OverflowError) as error:
            # `TimeoutError`, `ssl.SSLError` and failures to resolve a name are all `OSError`s; the others are about addresses that
            # are none.
            why = str(error) or "it does not answer"
            if connection is not None or isinstance(error, ssl.SSLError):
                why += " (is that the address for clients, and is TLS as it should be?)"
            self._on_failed(why)
            return
        finally:
            self._dialling = None
            if connection is not None and (not connection.hello.done() or connection.hello.exception() is not None):
                connection.abort()
        if connection.gone.done() or connection.http2.leaving:
            self._on_failed("it said goodbye at once")
            return
        self._failures = 0
        self._connections.append(connection)
        self.on_room(connection)
        if self._waiting:
            self._dial()

    def _on_failed(self, why: str) -> None:
        self._failures += 1
        self._failed = why
        seconds = min(REDIAL_SECONDS_MIN * 2 ** min(self._failures - 1, 8), REDIAL_SECONDS_MAX)
        self._left_alone_until_ns = self.clock.monotonic_ns() + int(seconds * NS_PER_SECOND)
        # Where there are connections, they will have room.
        if not self._connections:
            self._fail_waiting(why)

    def _fail_waiting(self, why: str | None) -> None:
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            if not call.over:
                call.over = True
                self.deadlines.discard(call)
                call.settle(closed(sent=False) if why is None else never_sent(call.endpoint, why))


class FastChannels:
    """All channels of one client on one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock, tls: ssl.SSLContext | None) -> None:
        self._loop = loop
        self._clock = clock
        self._tls = tls
        self._channels: dict[str, Channel] = {}
        self._deadlines = Deadlines(loop, clock)
        self._closed = False

    def start(self, call: FastCall) -> None:
        """Sends a call. It is settled in time, whatever happens, unless it is abandoned."""
        channel = self._channels.get(call.endpoint)
        if channel is None:
            if self._closed:
                call.over = True
                call.settle(closed(sent=False))
                return
            channel = self._channels[call.endpoint] = Channel(
                call.endpoint, self._loop, self._clock, self._deadlines, self._tls
            )
        channel.start(call)

    def abandon(self, call: FastCall) -> None:
        """Nobody waits for the call any more."""
        channel = self._channels.get(call.endpoint)
        if channel is not None:
            channel.abandon(call)

    def refuse(self) -> None:
        """Takes no calls any more."""
        self._closed = True

    async def close(self) -> None:
        """Ends all calls and connections. May be called again."""
        self.refuse()
        channels = list(self._channels.values())
        self._channels.clear()
        async with asyncio.TaskGroup() as group:
            for channel in channels:
                group.create_task(channel.close(), name=f"raftcache-close {channel.authority}")
        self._deadlines.stop()
