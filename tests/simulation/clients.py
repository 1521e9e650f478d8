"""Clients of the simulated cluster: each does one thing at a time, through any node, and writes down what it saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raftcache.errors import RaftCacheError
from raftcache.kv.operations import Get, GetResult, Put, WriteResult
from raftcache.kv.slots import slot_of
from raftcache.node.api import Reply, Request
from tests.simulation.history import Event, History
from tests.simulation.network import MS

if TYPE_CHECKING:
    from tests.simulation.world import SimulatedNode, World

TIMEOUT_NS = 3_000 * MS
KEYS = [b"k%d" % number for number in range(6)]


@dataclass(slots=True)
class Client:
    """Runs until `stop`; an operation without an answer in time is left as unknown, and its number retired."""

    world: World
    history: History
    number: int
    stopped: bool = False
    written: int = 0

    def start(self) -> None:
        self.world.after(self.world.random.randrange(50) * MS, self._next)

    def _next(self) -> None:
        if self.stopped:
            return
        draw = self.world.random
        nodes = [node for node in self.world.nodes.values() if node.host is not None]
        if not nodes:
            self.world.after(100 * MS, self._next)
            return
        node = draw.choice(nodes)
        key = draw.choice(KEYS)
        if draw.random() < 0.5:
            self.written += 1
            value = b"%d.%d" % (self.number, self.written)
            event = Event(self.number, "put", key, value, self.world.now_ns)
            operation: Put | Get = Put(key, value)
        else:
            event = Event(self.number, "get", key, None, self.world.now_ns)
            operation = Get(key)
        self.history.events.append(event)
        assert node.host is not None
        request = Request(None, operation, slot_of(key), node.clock.monotonic_ns() + TIMEOUT_NS)
        sink = _Sink(self, event, node, node.life)
        node.host.submit([request], sink)
        self.world.after(TIMEOUT_NS + 500 * MS, sink.give_up)

    def done(self) -> None:
        self.world.after(self.world.random.randrange(1, 80) * MS, self._next)


class _Sink:
    """Takes the one reply; a node that died meanwhile never sends it."""

    def __init__(self, client: Client, event: Event, node: SimulatedNode, life: int) -> None:
        self._client = client
        self._event = event
        self._node = node
        self._life = life
        self._over = False

    def deliver(self, replies: list[Reply]) -> None:
        if self._over or self._node.life != self._life:
            return
        self._over = True
        [reply] = replies
        event, result = self._event, reply.result
        event.shard = reply.shard
        if isinstance(result, RaftCacheError):
            event.status = "fail" if result.definite else "unknown"
        elif isinstance(result, GetResult):
            event.end_ns, event.status, event.revision = self._client.world.now_ns, "ok", result.revision
            if result.entry is not None:
                event.value, event.mod_revision = result.entry.value, result.entry.mod_revision
        else:
            assert isinstance(result, WriteResult), result
            event.end_ns, event.status, event.revision = self._client.world.now_ns, "ok", result.revision
        self._client.done()

    def give_up(self) -> None:
        if not self._over:
            self._over = True
            self._client.done()
