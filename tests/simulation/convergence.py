"""What must have become of a cluster once everything healed: all level, all where the directory says, nothing lost.

Caveat: a node that refuses to start, because bits flipped in its log, is left out; its replicas are not waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from raftcache.ids import NodeId, ReplicaId, ShardId
from raftcache.kv.operations import Get, GetResult
from raftcache.kv.slots import slot_of
from raftcache.node.directory import Directory
from tests.simulation.counters import Counter

if TYPE_CHECKING:
    from tests.simulation.world import World


def not_converged(world: World) -> list[str]:
    """What is not level or not in its place yet."""
    problems = []
    states: dict[ShardId, set[tuple[int, int]]] = {}
    directories: dict[int, Directory] = {}
    for node in world.nodes.values():
        engine = node.engine
        if node.condemned:
            continue
        if node.host is None:
            problems.append(f"node {node.node} is not up at the end")
        if engine is None:
            continue  # not taken in yet
        directories[engine.directory.epoch] = engine.directory
        for replica_id, absent in engine.lifecycle.absent.items():
            problems.append(f"replica {replica_id} is absent at the end: {absent.reason}")
        for replica in engine.replicas.values():
            if replica.machine is None:
                problems.append(f"replica {replica.replica_id} has no state at the end")
            else:
                states.setdefault(replica.shard, set()).add((replica.machine.applied_index, replica.machine.state_hash))
    problems += [f"shard {shard} is not level at the end: {found}" for shard, found in states.items() if len(found) > 1]
    if len(directories) > 1:
        problems.append(f"the nodes know different epochs at the end: {sorted(directories)}")
    if not directories:
        return [*problems, "no node belongs to the cluster at the end"]
    return problems + _misplaced(world, directories[max(directories)])


def _misplaced(world: World, directory: Directory) -> list[str]:
    """The newest directory, the groups' own logs and what is on the nodes must be one and the same in the end."""
    problems = []
    for shard in directory.shards.values():
        if shard.change is not None:
            problems.append(f"shard {shard.shard}: {shard.change.describe()} has not come to its end")
        listed = {placed.replica: placed.node for placed in shard.replicas}
        here: dict[ReplicaId, NodeId] = {}
        led = False
        for node in world.nodes.values():
            if node.condemned:
                here |= {replica: at for replica, at in listed.items() if at == node.node}
                continue
            replica = node.engine.local(shard.shard) if node.engine is not None else None
            if replica is not None:
                here[replica.replica_id] = node.node
                members = {*replica.raft.configuration.voters, *replica.raft.configuration.learners}
                led = led or replica.leads
                if replica.leads and members != set(listed):
                    problems.append(f"shard {shard.shard} has the members {members}, listed are {set(listed)}")
        if here != listed:
            problems.append(f"shard {shard.shard} is at {here}, listed at {listed}")
        if not led:
            problems.append(f"nobody leads shard {shard.shard}")
    return problems


def miscounted(world: World, counters: list[Counter]) -> list[str]:
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


def run_until(world: World, done: Callable[[], bool], *, bound_ms: int, step_ms: int = 50) -> int:
    """Simulated milliseconds until `done`, or -1 where it is not within the bound (or something broke meanwhile)."""
    started_ns = world.now_ns
    while not world.problems:
        if done():
            return (world.now_ns - started_ns) // 1_000_000
        if world.now_ns - started_ns >= bound_ms * 1_000_000:
            return -1
        world.run_until(world.now_ns + step_ms * 1_000_000)
    return -1
