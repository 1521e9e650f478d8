"""Clients that count, exactly once: every increment goes out under a session until it is answered, through whichever node.

At the end the number in the cluster must be the number of increments that were answered. Retries of what was carried out
already, and copies that come late, must not count twice; what was answered must not be lost.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raftcache.errors import RaftCacheError, SessionExpired
from raftcache.ids import ShardId, Slot
from raftcache.kv.operations import (
    Increment,
    IncrementResult,
    OpenSession,
    Operation,
    Result,
    SessionResult,
    SessionStamp,
)
from raftcache.kv.slots import slot_of
from raftcache.node.api import Reply, Request
from raftcache.node.settings import MS
from tests.simulation.kinds import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.nodes import SimulatedNode
    from tests.simulation.world import World

TIMEOUT_NS = 700 * MS
"""Shorter than an outage, so that there are retries."""


@dataclass(slots=True)
class Counter:
    """One client, one key, one session at a time."""

    world: World
    number: int
    stopped: bool = False
    acknowledged: int = 0
    unknown: int = 0
    """Increments that were given up with their session: each may have counted or not."""
    retries: int = 0
    session: int = 0
    sequence: int = 0
    shard: ShardId = ShardId(-1)
    values: list[int] | None = None
    problem: str = ""
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(f"counter {self.world.seed} {self.number}")

    @property
    def key(self) -> bytes:
        return b"counter%d" % self.number

    def start(self) -> None:
        self.values = []
        self.world.after(self.random.randrange(100) * MS, self._next, kind=Kind.CLIENT)

    def _next(self) -> None:
        if self.stopped:
            return
        if not self.session:
            self._open()
        else:
            self.sequence += 1
            self._increment()

    def _open(self) -> None:
        node = self._node()
        owner = node.engine.owner(slot_of(self.key)) if node is not None and node.engine is not None else ShardId(-1)
        if node is None or owner < 0:
            self.world.after(100 * MS, self._next, kind=Kind.CLIENT)
            return
        self.shard = owner

        def opened(result: Result | RaftCacheError | None) -> None:
            if isinstance(result, SessionResult):
                self.session, self.sequence = result.session, 0
            self.world.after(self.random.randrange(1, 50) * MS, self._next, kind=Kind.CLIENT)

        self._submit(node, OpenSession(), Slot(-1), None, opened)

    def _increment(self) -> None:
        node = self._node()
        if node is None:
            self.world.after(100 * MS, self._increment, kind=Kind.CLIENT)
            return
        stamp = SessionStamp(self.session, self.sequence, self.sequence)
        self._submit(node, Increment(self.key), slot_of(self.key), stamp, self._answered)

    def _answered(self, result: Result | RaftCacheError | None) -> None:
        pause_ns = self.random.randrange(1, 150) * MS
        if isinstance(result, IncrementResult):
            self.acknowledged += 1
            assert self.values is not None
            if self.values and result.value <= self.values[-1]:
                self.problem = f"counter {self.number} went from {self.values[-1]} to {result.value}"
            self.values.append(result.value)
            self.world.after(pause_ns, self._next, kind=Kind.CLIENT)
        elif isinstance(result, SessionExpired):
            # A retry whose first attempt may have counted.
            self.unknown += 1
            self.session = 0
            self.world.after(pause_ns, self._next, kind=Kind.CLIENT)
        else:
            # Refused, unknown or silent: the same stamp again, through another node. Also where it is stopped: what was
            # begun is brought to its end.
            self.retries += 1
            self.world.after(pause_ns, self._increment, kind=Kind.CLIENT)

    def _node(self) -> SimulatedNode | None:
        up = [node for node in self.world.reachable() if node.engine is not None]
        return self.random.choice(up) if up else None

    def _submit(
        self,
        node: SimulatedNode,
        operation: Operation,
        slot: Slot,
        stamp: SessionStamp | None,
        done: Callable[[Result | RaftCacheError | None], None],
    ) -> None:
        deadline_ns = node.clock.monotonic_ns() + TIMEOUT_NS
        shard = self.shard if slot < 0 else None
        request = Request(None, operation, slot, deadline_ns, shard=shard, stamp=stamp)
        sink = _Once(node, node.life, done)
        self.world.submit(node, request, sink)
        self.world.after(TIMEOUT_NS + 100 * MS, sink.give_up, kind=Kind.CLIENT)

    def problems(self, value: int) -> list[str]:
        """What is wrong if the cluster says `value`."""
        if self.problem:
            return [self.problem]
        if not self.acknowledged <= value <= self.acknowledged + self.unknown:
            return [
                f"counter {self.number} is {value}: {self.acknowledged} increments were acknowledged, "
                f"{self.unknown} are unknown"
            ]
        return []


class _Once:
    """Takes the one reply, or gives up; a node that died never answers."""

    def __init__(self, node: SimulatedNode, life: int, done: Callable[[Result | RaftCacheError | None], None]) -> None:
        self._node = node
        self._life = life
        self._done = done
        self._over = False

    def deliver(self, replies: list[Reply]) -> None:
        if not self._over and self._node.life == self._life:
            self._over = True
            [reply] = replies
            if isinstance(reply.result, IncrementResult):
                self._node.world.ghost.written(self._node, reply.shard, reply.index)
            self._done(reply.result)

    def give_up(self) -> None:
        if not self._over:
            self._over = True
            self._done(None)
