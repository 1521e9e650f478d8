"""Clients of the simulated cluster: each does one thing at a time, through any node, and writes down what it saw."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raftcache.errors import RaftCacheError
from raftcache.kv.operations import Get, GetResult, Put, WriteResult
from raftcache.kv.slots import slot_of
from raftcache.node.api import Reply, Request
from raftcache.node.settings import MS
from tests.simulation.history import Event
from tests.simulation.kinds import Kind

if TYPE_CHECKING:
    from tests.simulation.nodes import SimulatedNode
    from tests.simulation.world import World

GRACE_NS = 500 * MS
"""How long after its deadline an answer may still come."""
VISITOR = -1
"""The number of those who come by once."""
KEYS = [b"k%d" % number for number in range(6)]


@dataclass(slots=True)
class Client:
    """Runs until `stop`; an operation without an answer in time is left as unknown, and its number retired."""

    world: World
    number: int
    stopped: bool = False
    written: int = 0
    node: SimulatedNode | None = None
    """The one that it is faithful to."""
    random: random.Random = field(init=False)
    """Its own, so that what it asks for does not depend on what fails."""

    def __post_init__(self) -> None:
        self.random = random.Random(f"client {self.world.seed} {self.number}")

    def start(self) -> None:
        self._later(self.random.randrange(50))

    def _later(self, delay_ms: int) -> None:
        self.world.after(delay_ms * MS, self._next, kind=Kind.CLIENT)

    def _next(self) -> None:
        if self.stopped:
            return
        draw, plan = self.random, self.world.plan
        nodes = self.world.reachable()
        if not nodes:
            self._later(100)
            return
        node = draw.choice(nodes)
        if plan.faithful:
            node = self.node = self.node if self.node in nodes else node
        key = draw.choice(KEYS)
        if draw.random() >= plan.reads:
            self.written += 1
            value = b"%d.%d" % (self.number, self.written) + b"." * draw.randrange(plan.value_bytes_max)
            event = Event(self.number, "put", key, value, self.world.now_ns)
            operation: Put | Get = Put(key, value)
        else:
            event = Event(self.number, "get", key, None, self.world.now_ns)
            operation = Get(key)
        _ask(self.world, event, operation, node, self.done)

    def done(self, ok: bool) -> None:
        if not ok:
            self.node = None
        self._later(self.random.randrange(1, self.world.plan.pause_ms_max))


def visit(world: World, node: SimulatedNode) -> None:
    """Somebody reads every key through this very node: one that was a leader a moment ago, and may not know better.

    And writes one, which is never committed if it knows no better: the next leader replaces it.
    """
    if node.host is not None:
        for key in KEYS:
            _ask(world, Event(VISITOR, "get", key, None, world.now_ns), Get(key), node, lambda ok: None)
        key, value = KEYS[world.now_ns // MS % len(KEYS)], b"%d.%d" % (VISITOR, len(world.history.events))
        _ask(world, Event(VISITOR, "put", key, value, world.now_ns), Put(key, value), node, lambda ok: None)


def _ask(world: World, event: Event, operation: Put | Get, node: SimulatedNode, done: Callable[[bool], None]) -> None:
    world.history.events.append(event)
    timeout_ns = world.plan.client_timeout_ms * MS
    request = Request(None, operation, slot_of(event.key), node.clock.monotonic_ns() + timeout_ns)
    sink = _Sink(world, event, node, done)
    world.submit(node, request, sink)
    world.after(timeout_ns + GRACE_NS, sink.give_up, kind=Kind.CLIENT)


class _Sink:
    """Takes the one reply; a node that died meanwhile never sends it."""

    def __init__(self, world: World, event: Event, node: SimulatedNode, done: Callable[[bool], None]) -> None:
        self._world = world
        self._event = event
        self._node = node
        self._life = node.life
        self._done = done
        self._over = False
        self._newest = world.ghost.newest(world.shard_of(event.key))

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
            event.end_ns, event.status, event.revision = self._world.now_ns, "ok", result.revision
            self._world.ghost.read(reply.shard, reply.index, self._newest)
            if result.entry is not None:
                event.value, event.mod_revision = result.entry.value, result.entry.mod_revision
        else:
            assert isinstance(result, WriteResult), result
            event.end_ns, event.status, event.revision = self._world.now_ns, "ok", result.revision
            self._world.ghost.written(self._node, reply.shard, reply.index)
        self._done(event.status == "ok")

    def give_up(self) -> None:
        if not self._over:
            self._over = True
            self._done(False)
