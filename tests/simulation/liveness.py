"""The liveness phase: a majority heals, the rest stays down or cut off, and every shard must commit again within a bound.

The bound. After the last fault a follower waits at most two election timeouts (thesis §9.3), a split vote costs another
round, a replica may have to be rebuilt and a log to be repaired one rejected Append at a time; requests wait for a leader as
long as the node's patience, and a client asks again after its own timeout. Twelve simulated seconds are an order of
magnitude above an election timeout; what seeds need in fact is reported.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raftcache.errors import RaftCacheError
from raftcache.ids import CATALOG_SHARD, NodeId, ShardId
from raftcache.kv.operations import Put
from raftcache.kv.slots import slot_of
from raftcache.node.api import Reply, Request
from raftcache.node.settings import MS
from raftcache.raft.quorum import majority_of
from tests.simulation.convergence import run_until
from tests.simulation.kinds import Kind

if TYPE_CHECKING:
    from tests.simulation.nodes import SimulatedNode
    from tests.simulation.world import World

BOUND_MS = 12_000
TIMEOUT_NS = 500 * MS


def heal_a_majority(world: World) -> int:
    """Heals a core and waits until all its shards have committed; the milliseconds that it took, or -1."""
    core = choose_core(world)
    for node in world.nodes.values():
        if node.node not in core and world.plan.left_out == "down":
            node.held_down = True
            if node.host is not None:
                node.end("left out", "kill", 1)
    world.heal(core)
    probes = [Probe(world, shard) for shard in range(1, world.plan.shards + 1)]
    for probe in probes:
        probe.send()
    took = run_until(
        world, lambda: all(probe.answered for probe in probes) and _catalog_committed(world), bound_ms=BOUND_MS
    )
    if took < 0 and not world.problems:
        waiting = [probe.shard for probe in probes if not probe.answered] or [CATALOG_SHARD]
        world.fail("liveness", f"{sorted(core)} are healed for {BOUND_MS} ms, and shards {waiting} have not committed")
    return took


def choose_core(world: World) -> frozenset[NodeId]:
    """All nodes but a minority, such that every configuration that any replica knows of keeps its majorities, and that in each
    group somebody can be elected."""
    draw = random.Random(f"core {world.seed}")
    able = [node.node for node in world.nodes.values() if not node.condemned]
    if world.plan.left_out == "none" or len(able) < len(world.nodes):
        return frozenset(able)
    out = draw.sample(able, draw.randint(1, max(1, (len(able) - 1) // 2)))
    if world.plan.flips_node and world.plan.flips_node not in out:
        # Its state may be waiting for a snapshot; it is not what a group should depend on.
        out = [NodeId(world.plan.flips_node)]
    while out:
        core = frozenset(able) - set(out)
        if all(_keeps_majority(half, core, world) for half in _halves(world)) and all(
            _somebody_can_win(ShardId(shard), core, world) for shard in range(world.plan.shards + 1)
        ):
            return core
        out.pop()
    return frozenset(able)


def _halves(world: World) -> set[tuple[int, ...]]:
    configurations = [
        each
        for node in world.nodes.values()
        for replica in world.replicas_of(node)
        for each in world.ghost.configurations(replica)
    ]
    return {half for each in configurations for half in (each.voters, each.voters_outgoing) if half}


def _keeps_majority(half: tuple[int, ...], core: frozenset[NodeId], world: World) -> bool:
    inside = sum(any(replica in world.replicas_of(world.nodes[node]) for node in core) for replica in half)
    return inside >= majority_of(len(half))


def _somebody_can_win(shard: ShardId, core: frozenset[NodeId], world: World) -> bool:
    """Raft §5.4.1: whether a replica in the core finds its majorities there among those whose logs are no newer.

    Majorities alone do not make sure of it: where a learner has the newest log, those who know it as a voter need its vote,
    which it denies them, and it does not know itself that it is one. Only who is left out can help.
    """
    inside = {replica for node in core for replica in world.replicas_of(world.nodes[node])}
    known = {replica: found for replica, found in world.ghost.standing(shard).items() if replica in inside}
    for candidate, (end, configuration) in known.items():
        halves = [half for half in (configuration.voters, configuration.voters_outgoing) if half]
        votes = [sum(voter in known and known[voter][0] <= end for voter in half) for half in halves]
        if any(candidate in half for half in halves) and all(
            count >= majority_of(len(half)) for count, half in zip(votes, halves, strict=True)
        ):
            return True
    return False


def _catalog_committed(world: World) -> bool:
    """Its clients are the nodes themselves; that a leader has committed in its own term must do."""
    for node in world.healed:
        engine = world.nodes[node].engine
        replica = engine.local(CATALOG_SHARD) if engine is not None else None
        if replica is not None and replica.leads and replica.raft.committed_in_own_term():
            return True
    return False


@dataclass(slots=True, eq=False)
class Probe:
    """Writes to one shard until it succeeds."""

    world: World
    shard: int
    answered: bool = False
    _random: random.Random = field(init=False)
    _attempt: int = 0
    _node: SimulatedNode | None = None

    def __post_init__(self) -> None:
        self._random = random.Random(f"probe {self.world.seed} {self.shard}")

    def send(self) -> None:
        if self.answered:
            return
        self._attempt += 1
        attempt = self._attempt
        self.world.after(TIMEOUT_NS + 100 * MS, lambda: self._again(attempt), kind=Kind.CLIENT)
        nodes = [node for node in self.world.reachable() if node.engine is not None]
        if not nodes:
            return
        node = self._node = self._random.choice(nodes)
        key = self._key()
        request = Request(None, Put(key, b"probe"), slot_of(key), node.clock.monotonic_ns() + TIMEOUT_NS)
        self.world.submit(node, request, self)

    def _again(self, attempt: int) -> None:
        if attempt == self._attempt:
            self.send()

    def _key(self) -> bytes:
        for number in range(10_000):
            key = b"probe%d" % number
            if self.world.shard_of(key) == self.shard:
                return key
        raise AssertionError(f"no key lies in shard {self.shard}")

    def deliver(self, replies: list[Reply]) -> None:
        # Of several attempts, perhaps, which all have this one sink.
        for reply in replies:
            if not isinstance(reply.result, RaftCacheError):
                self.answered = True
                assert self._node is not None, "an answer to nobody's question"
                self.world.ghost.written(self._node, ShardId(self.shard), reply.index)
