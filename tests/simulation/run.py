"""One seed, from start to verdict: a safety phase, a liveness phase, and what must be true in the end."""

from __future__ import annotations

import gc
import hashlib
import traceback
from dataclasses import dataclass, field

from raftcache.node.settings import MS
from tests.simulation.clients import Client
from tests.simulation.convergence import miscounted, not_converged, run_until
from tests.simulation.counters import Counter
from tests.simulation.faults import inject
from tests.simulation.history import violations
from tests.simulation.lanes import Lanes
from tests.simulation.liveness import heal_a_majority
from tests.simulation.operator import Operator
from tests.simulation.plan import Plan
from tests.simulation.world import Problem, World

HEAL_MS = 20_000
"""Within this, after everything healed, every shard has a leader, every change of membership has come to its end, all
replicas are level and their hashes equal."""
MOMENT_MS = 1_000
"""For which clients go on in a healed cluster."""


@dataclass(slots=True)
class Verdict:
    """What one seed came to."""

    seed: int
    problems: list[Problem] = field(default_factory=list)
    events: int = 0
    """Without idle ones."""
    simulated_ms: int = 0
    acknowledged: int = 0
    """Reads and writes."""
    increments: int = 0
    """Acknowledged ones, under sessions."""
    unknown: int = 0
    retries: int = 0
    live_ms: int = -1
    """How long the healed majority needed until all shards had committed."""
    level_ms: int = -1
    """How long it took until all was level again."""
    tally: dict[str, int] = field(default_factory=dict)
    """How often what happened: faults, elections, snapshots, checks."""
    trace_hash: str = ""

    @property
    def commands(self) -> int:
        """Committed for clients."""
        return self.acknowledged + self.increments


def run(seed: int, plan: Plan | None = None, lanes: Lanes | None = None) -> Verdict:
    """Runs the seed, or a part of its plan; the same input always comes to the same verdict and trace hash."""
    # What one world leaves is collected before the next, and not in the middle of it: a tenth of the time otherwise.
    gc.collect()
    gc.disable()
    try:
        return _run(seed, plan, lanes)
    finally:
        gc.enable()


def _run(seed: int, plan: Plan | None, lanes: Lanes | None) -> Verdict:
    world = World(seed, plan, lanes)
    actors = _Actors(world)
    verdict = Verdict(seed)
    try:
        _phases(world, actors, verdict)
    except Exception as error:  # noqa: BLE001 - whatever leaves the product's code is a finding
        where = "".join(traceback.format_tb(error.__traceback__)[-3:])
        kind = "assertion" if isinstance(error, AssertionError) else "exception"
        world.fail(kind, f"{type(error).__name__}: {error}\n{where}")
    verdict.problems = world.problems
    verdict.events = world.events
    verdict.simulated_ms = world.now_ns // MS
    verdict.acknowledged = len(actors.history.acknowledged())
    verdict.unknown = sum(event.status == "unknown" for event in actors.history.events)
    verdict.increments = sum(counter.acknowledged for counter in actors.counters)
    verdict.retries = sum(counter.retries for counter in actors.counters)
    verdict.tally = dict(sorted(world.ghost.tally.items()))
    verdict.tally["membership changes"] = actors.operator.changes
    seen = repr((actors.history.events, [counter.values for counter in actors.counters]))
    verdict.trace_hash = hashlib.blake2b((world.trace_hash + seen).encode(), digest_size=8).hexdigest()
    return verdict


class _Actors:
    """Everybody who wants something of the cluster."""

    def __init__(self, world: World) -> None:
        self.history = world.history
        self.clients = [Client(world, number) for number in range(world.plan.clients)]
        self.counters = [Counter(world, number) for number in range(world.plan.counters)]
        self.operator = Operator(world)

    def start(self) -> None:
        for client in self.clients:
            client.start()
        for counter in self.counters:
            counter.start()
        self.operator.start()

    def stop(self) -> None:
        for client in self.clients:
            client.stopped = True
        for counter in self.counters:
            counter.stopped = True


def _phases(world: World, actors: _Actors, verdict: Verdict) -> None:
    world.start()
    actors.start()
    inject(world)
    world.run_until(world.plan.safety_ms * MS)
    if world.problems:
        return
    verdict.live_ms = heal_a_majority(world)
    world.run_until(world.now_ns + MOMENT_MS * MS)
    if world.problems:
        return
    world.heal(frozenset(node.node for node in world.nodes.values() if not node.condemned))
    world.run_until(world.now_ns + MOMENT_MS * MS)
    actors.stop()
    verdict.level_ms = run_until(
        world, lambda: not not_converged(world) and not miscounted(world, actors.counters), bound_ms=HEAL_MS
    )
    if verdict.level_ms < 0 and not world.problems:
        left = not_converged(world)
        if left:
            world.fail("convergence", "; ".join(left))
    for kind, found in (
        ("linearizability", violations(actors.history)),
        ("exactly once", miscounted(world, actors.counters)),
    ):
        if found:
            world.fail(kind, f"{found[0]} ({len(found)} in all)")
    world.ghost.compare()
