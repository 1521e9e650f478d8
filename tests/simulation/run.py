"""One seed, from start to verdict; `python -m tests.simulation.run SEED` replays it."""

import argparse
import hashlib
import sys
import time
from dataclasses import dataclass, field

from raftcache.ids import Index, ShardId
from raftcache.kv.operations import Get, GetResult
from raftcache.kv.slots import slot_of
from raftcache.node.directory import Directory
from tests.simulation.clients import Client
from tests.simulation.counters import Counter
from tests.simulation.history import History, violations
from tests.simulation.network import MS
from tests.simulation.operator import Operator
from tests.simulation.world import World

SAFETY_MS = 8_000
"""Simulated time under faults, per seed."""
HEAL_MS = 16_000
"""Within this, after everything healed, every shard has a leader, every change of membership has come to its end, all
replicas are level and their hashes equal."""
CLIENTS = 4
COUNTERS = 3
MOMENT_MS = 3_000
CHECK_EVERY_MS = 50


@dataclass(slots=True)
class Verdict:
    """What one seed came to."""

    seed: int
    problems: list[str] = field(default_factory=list)
    events: int = 0
    acknowledged: int = 0
    unknown: int = 0
    crashes: int = 0
    changes: int = 0
    """Changes of membership that an operator wrote down."""
    transfers: int = 0
    increments: int = 0
    """Acknowledged ones, under sessions."""
    retries: int = 0
    digest: str = ""
    """Of the whole history: the same seed gives the same one."""


class Watch:
    """Invariants of the cluster, checked every `CHECK_EVERY_MS` of simulated time."""

    def __init__(self, world: World, problems: list[str]) -> None:
        self._world = world
        self._problems = problems
        self._leaders: dict[tuple[ShardId, int], int] = {}
        self._hashes: dict[tuple[ShardId, Index], int] = {}

    def run(self) -> None:
        # Raft §5.2, election safety: at most one leader per term, ever.
        for place, leaders in self._world.leaders().items():
            for leader in leaders:
                if self._leaders.setdefault(place, leader) != leader:
                    self._problems.append(f"two leaders of shard, term {place}: {self._leaders[place]} and {leader}")
        # Raft §5.4.3, state-machine safety: at an equal index, equal states.
        for node in self._world.nodes.values():
            engine = node.engine
            if engine is None:
                continue
            self._problems += [f"replica {r}: {absent.reason}" for r, absent in engine.lifecycle.absent.items()]
            for replica in engine.replicas.values():
                if replica.stopped and not replica.rebuilding:
                    self._problems.append(f"replica {replica.replica_id} stopped: {replica.stopped}")
                if replica.machine is None:
                    continue
                place = (replica.shard, replica.machine.applied_index)
                state_hash = replica.machine.state_hash
                if self._hashes.setdefault(place, state_hash) != state_hash:
                    self._problems.append(f"states of shard, index {place} differ")
        if not self._problems:
            self._world.after(CHECK_EVERY_MS * MS, self.run)


def run(seed: int, *, safety_ms: int = SAFETY_MS, heal_ms: int = HEAL_MS) -> Verdict:
    """Runs the seed; the same seed always comes to the same verdict and digest."""
    world = World(seed)
    verdict = Verdict(seed)
    history = History()
    world.start()
    Watch(world, verdict.problems).run()
    clients = [Client(world, history, number) for number in range(CLIENTS)]
    counters = [Counter(world, number) for number in range(COUNTERS)]
    operator = Operator(world)
    for actor in (*clients, *counters, operator):
        actor.start()
    world.inject()
    world.run_until(safety_ms * MS)
    verdict.crashes = sum(node.life - 1 for node in world.nodes.values())
    world.heal()
    world.run_until((safety_ms + heal_ms // 2) * MS)
    for actor in (*clients, *counters):
        actor.stopped = True
    end_ms = safety_ms + heal_ms
    world.run_until(end_ms * MS)
    # A leader may just be going home; what is on its way then is given a moment.
    while _not_converged(world) and end_ms < safety_ms + heal_ms + MOMENT_MS:
        end_ms += CHECK_EVERY_MS
        world.run_until(end_ms * MS)
    verdict.problems += violations(history)
    verdict.problems += _not_converged(world)
    verdict.problems += _miscounted(world, counters)
    verdict.problems += _made_no_progress(history, safety_ms)
    verdict.events = world.events
    verdict.acknowledged = len(history.acknowledged())
    verdict.unknown = sum(event.status == "unknown" for event in history.events)
    verdict.changes, verdict.transfers = operator.changes, operator.transfers
    verdict.increments = sum(counter.acknowledged for counter in counters)
    verdict.retries = sum(counter.retries for counter in counters)
    counted = [counter.values for counter in counters]
    verdict.digest = hashlib.blake2b(repr((history.events, counted, world.events)).encode(), digest_size=8).hexdigest()
    return verdict


def _not_converged(world: World) -> list[str]:
    problems = []
    states: dict[ShardId, set[tuple[int, int]]] = {}
    directories: dict[int, Directory] = {}
    for node in world.nodes.values():
        engine = node.engine
        if node.host is None:
            problems.append(f"node {node.node} is not up at the end")
        if engine is None:
            continue  # not taken in yet
        directories[engine.directory.epoch] = engine.directory
        for replica in engine.replicas.values():
            if replica.machine is None:
                problems.append(f"replica {replica.replica_id} has no state at the end")
            else:
                states.setdefault(replica.shard, set()).add((replica.machine.applied_index, replica.machine.state_hash))
    problems += [f"shard {shard} is not level at the end: {found}" for shard, found in states.items() if len(found) > 1]
    if len(directories) > 1:
        problems.append(f"the nodes know different epochs at the end: {sorted(directories)}")
    return problems + _misplaced(world, directories[max(directories)])


def _misplaced(world: World, directory: Directory) -> list[str]:
    """The newest directory, the groups' own logs and what is on the nodes must be one and the same in the end."""
    problems = []
    for shard in directory.shards.values():
        if shard.change is not None:
            problems.append(f"shard {shard.shard}: {shard.change.describe()} has not come to its end")
        listed = {placed.replica: placed.node for placed in shard.replicas}
        here = {}
        for node in world.nodes.values():
            replica = node.engine.local(shard.shard) if node.engine is not None else None
            if replica is not None:
                here[replica.replica_id] = node.node
                members = {*replica.raft.configuration.voters, *replica.raft.configuration.learners}
                if replica.leads and members != set(listed):
                    problems.append(f"shard {shard.shard} has the members {members}, listed are {set(listed)}")
        if here != listed:
            problems.append(f"shard {shard.shard} is at {here}, listed at {listed}")
    return problems


def _miscounted(world: World, counters: list[Counter]) -> list[str]:
    """Pitfall 31: each counter is what was acknowledged, no more and no less."""
    problems = []
    for counter in counters:
        for node in world.nodes.values():
            engine = node.engine
            replica = engine.local(engine.owner(slot_of(counter.key))) if engine is not None else None
            if replica is not None and replica.leads and replica.machine is not None:
                result = replica.machine.read(Get(counter.key), slot_of(counter.key))
                assert isinstance(result, GetResult), result
                value = int(result.entry.value) if result.entry is not None else 0
                problems += counter.problems(value)
    return problems


def _made_no_progress(history: History, safety_ms: int) -> list[str]:
    late = [event for event in history.acknowledged() if event.start_ns > (safety_ms + 4_000) * MS]
    return [] if len(late) > 50 else [f"only {len(late)} operations succeeded after everything healed"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "seed", type=int, nargs="?", help="replay this seed; without it, run seeds until the time is up"
    )
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--first", type=int, default=int(time.time()), help="the first seed of a long run")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        verdict = run(arguments.seed)
        print(verdict)
        return 1 if verdict.problems else 0
    until = time.monotonic() + arguments.minutes * 60
    seed, events, acknowledged, crashes, changes, increments = arguments.first, 0, 0, 0, 0, 0
    started = time.monotonic()
    while time.monotonic() < until:
        verdict = run(seed)
        events += verdict.events
        acknowledged += verdict.acknowledged
        crashes += verdict.crashes
        changes += verdict.changes
        increments += verdict.increments
        if verdict.problems:
            print(f"seed {seed} FAILED; replay it with: make sim SEED={seed}")
            for problem in verdict.problems[:10]:
                print(f"  {problem}")
            return 1
        seed += 1
    seconds = time.monotonic() - started
    print(
        f"{seed - arguments.first} seeds from {arguments.first}: {events} events ({events / seconds:.0f}/s), "
        f"{acknowledged} acknowledged operations, {increments} increments, {crashes} crashes, {changes} changes of "
        "membership, no violation"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
