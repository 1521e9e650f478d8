"""A TCP proxy for one link, and what can go wrong on it. No root needed.

    dialer ──► listener ─ Flow (forward) ──►  target
           ◄───────────── Flow (backward) ◄──

Rules of this file:
- TCP loses no bytes in the middle, so neither does a link: bytes wait (`blocked`, `delay_ms`, `bytes_per_second`) or the
  connection ends (`cut_chance`, `reset`, `refuse`). Where bytes are thrown away (`discard`, half-open), the connection never
  carries another one and is reset when the link heals;
- what is blocked is not read either: the sender's socket fills, as behind a real partition. A connection that is made
  meanwhile is accepted by the proxy and goes no further, so the dialer waits for an answer that does not come;
- the end of a connection travels like data: behind a block nobody learns of it.

Caveat: the kernel under the proxy acknowledges bytes that a cut cable would not have taken; timeouts of the kernel
(TCP_USER_TIMEOUT) are therefore not exercised here, only those of the nodes. The `nft` nemesis does that, with root.
"""

import asyncio
import random
import socket
import struct
from collections import deque
from dataclasses import dataclass, fields
from typing import cast

from tests.support.ports import free_port

NS_PER_SECOND = 1_000_000_000
QUEUED_BYTES_MAX = 1 << 20
"""Delayed bytes of one direction of one connection; past it the sender waits."""


@dataclass(slots=True)
class Conditions:
    """One direction of a link, for all its connections. The defaults are a good network."""

    blocked: bool = False
    """Nothing moves, and nothing is read."""
    discard: bool = False
    """Everything is read and thrown away: the other side's answers, say, get lost."""
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    """Added to the delay, drawn evenly from 0 to this. Order is kept."""
    bytes_per_second: float = 0.0
    """0: as fast as it goes."""
    cut_chance: float = 0.0
    """Of each chunk: half of it passes, then both sides see a reset. Mostly in the middle of a frame."""

    @property
    def clear(self) -> bool:
        """Whether bytes pass at once."""
        return not (
            self.blocked or self.discard or self.delay_ms or self.jitter_ms or self.bytes_per_second or self.cut_chance
        )


class _Side(asyncio.Protocol):
    """One socket of a pair."""

    def __init__(self, pair: "_Pair") -> None:
        self.pair = pair
        self.transport: asyncio.Transport | None = None
        self.flow: _Flow | None = None
        """Takes what is received here."""
        self._congested = False
        self._held = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.pair.on_made(self)

    def data_received(self, data: bytes) -> None:
        assert self.flow is not None
        self.flow.push(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        assert self.flow is not None
        self.flow.end(reset=exc is not None)

    def pause_writing(self) -> None:
        self.pair.other(self).hold(congested=True)

    def resume_writing(self) -> None:
        self.pair.other(self).hold(congested=False)

    def hold(self, *, held: bool | None = None, congested: bool | None = None) -> None:
        """Stops reading while the flow wants no more, or the other side takes no more."""
        before = self._held or self._congested
        self._held = self._held if held is None else held
        self._congested = self._congested if congested is None else congested
        now = self._held or self._congested
        if self.transport is not None and before != now and not self.transport.is_closing():
            if now:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()


class _Flow:
    """One direction of one connection."""

    def __init__(self, conditions: Conditions, source: _Side, sink: _Side, dice: random.Random) -> None:
        self._conditions = conditions
        self._source = source
        self._sink = sink
        self._dice = dice
        self._queue: deque[tuple[int, bytes | None]] = deque()
        """(not before, bytes); None is the end of the connection."""
        self._queued = 0
        self._due_ns = 0
        self._timer: asyncio.TimerHandle | None = None
        self._reset = False

    def push(self, data: bytes) -> None:
        conditions = self._conditions
        if not self._queue and self._sink.transport is not None and conditions.clear:
            self._sink.transport.write(data)
            return
        if conditions.discard:
            self._source.pair.tainted = True
            return
        if conditions.cut_chance and self._dice.random() < conditions.cut_chance:
            data = data[: len(data) // 2]
            self._add(data)
            self.end(reset=True)
            return
        self._add(data)

    def end(self, *, reset: bool) -> None:
        """The source has closed, or is to be thought so."""
        self._reset = self._reset or reset
        self._add(None)

    def _add(self, data: bytes | None) -> None:
        conditions, size = self._conditions, len(data or b"")
        delay_ms = conditions.delay_ms + (self._dice.random() * conditions.jitter_ms if conditions.jitter_ms else 0.0)
        now_ns = self._now_ns()
        busy_ns = int(size / conditions.bytes_per_second * NS_PER_SECOND) if conditions.bytes_per_second else 0
        self._due_ns = max(now_ns + int(delay_ms * 1_000_000), self._due_ns) + busy_ns
        self._queue.append((self._due_ns, data))
        self._queued += size
        self.pump()

    def pump(self) -> None:
        """Lets pass what may pass now."""
        queue, sink = self._queue, self._sink
        while queue and sink.transport is not None and not self._conditions.blocked:
            due_ns, data = queue[0]
            # Delays end with the conditions that made them: after healing nothing lingers.
            if not self._conditions.clear and due_ns > self._now_ns():
                if self._timer is None:
                    seconds = (due_ns - self._now_ns()) / NS_PER_SECOND
                    self._timer = asyncio.get_running_loop().call_later(seconds, self._on_timer)
                break
            queue.popleft()
            if data is None:
                self._source.pair.finish(reset=self._reset)
                return
            self._queued -= len(data)
            sink.transport.write(data)
        self._source.hold(held=self._conditions.blocked or self._queued > QUEUED_BYTES_MAX)

    def _on_timer(self) -> None:
        self._timer = None
        self.pump()

    def _now_ns(self) -> int:
        return int(asyncio.get_running_loop().time() * NS_PER_SECOND)


class _Pair:
    """One connection through the proxy."""

    def __init__(self, link: "Link") -> None:
        self.link = link
        self.dialer = _Side(self)
        self.target = _Side(self)
        self.dialer.flow = self.forward = _Flow(link.forward, self.dialer, self.target, link.dice)
        self.target.flow = self.backward = _Flow(link.backward, self.target, self.dialer, link.dice)
        self.tainted = False
        """Bytes are missing: to be reset when the link heals."""
        self.dialed = False

    def other(self, side: _Side) -> _Side:
        return self.target if side is self.dialer else self.dialer

    def on_made(self, side: _Side) -> None:
        if side is self.dialer:
            self.link.pairs.add(self)
            self.link.begin(self)
        else:
            self.pump()

    def pump(self) -> None:
        self.forward.pump()
        self.backward.pump()

    def finish(self, *, reset: bool) -> None:
        """Both sides end."""
        self.link.pairs.discard(self)
        for side in (self.dialer, self.target):
            if side.transport is not None:
                if reset:
                    _reset(side.transport)
                else:
                    side.transport.close()


class Link:
    """One proxied link: listens on a port of its own, and dials `target` for each connection."""

    def __init__(self, name: str, target: tuple[str, int], dice: random.Random, tasks: asyncio.TaskGroup) -> None:
        self.name = name
        self.target = target
        self.dice = dice
        self.port = free_port()
        """Where to dial."""
        self.forward = Conditions()
        self.backward = Conditions()
        self.half_open = False
        """The target's side is gone and the dialer does not know."""
        self.refusing = False
        self.pairs: set[_Pair] = set()
        self._tasks = tasks
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listens."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Pair(self).dialer, "127.0.0.1", self.port)
        self.refusing = False

    async def refuse(self) -> None:
        """Nobody listens any more, and all connections are reset."""
        self.refusing = True
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()

    def reset(self) -> None:
        """Every connection ends with a reset, now."""
        for pair in [*self.pairs]:
            pair.finish(reset=True)

    def leave_half_open(self) -> None:
        """The targets lose their connections; the dialers keep theirs and hear nothing, until `heal`."""
        self.half_open = True
        self.forward.discard = True
        self.backward.blocked = True  # so that the target's end is not passed on: `heal` finishes what is tainted
        for pair in [*self.pairs]:
            pair.tainted = True
            if pair.target.transport is not None:
                _reset(pair.target.transport)

    def changed(self) -> None:
        """To be called after a change of `forward` or `backward`."""
        for pair in [*self.pairs]:
            self.begin(pair)
            pair.pump()

    async def heal(self) -> None:
        """A good network again."""
        for conditions in (self.forward, self.backward):
            for each in fields(conditions):
                setattr(conditions, each.name, each.default)
        self.half_open = False
        for pair in [*self.pairs]:
            if pair.tainted:
                pair.finish(reset=True)
        self.changed()
        if self.refusing:
            await self.start()

    async def close(self) -> None:
        """The end of the link."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()

    def begin(self, pair: _Pair) -> None:
        """Dials the target for a connection, unless the way there is blocked."""
        if not pair.dialed and not self.forward.blocked and not self.half_open:
            pair.dialed = True
            self._tasks.create_task(self._dial(pair), name=f"proxy {self.name}")

    async def _dial(self, pair: _Pair) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: pair.target, *self.target)
        except OSError:
            pair.finish(reset=True)
            return
        if pair not in self.pairs and pair.target.transport is not None:
            _reset(pair.target.transport)  # the dialer has gone meanwhile


def _reset(transport: asyncio.Transport) -> None:
    # Without lingering the kernel sends RST in the place of FIN.
    sock = transport.get_extra_info("socket")
    if sock is not None and not transport.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
