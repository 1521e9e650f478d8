"""How each fault of a plan is done to the world.

Rules of this file:
- a fault that finds nothing to act on (the node is down, nobody leads) does nothing: any part of a script can be run;
- nothing is done to nodes that have been healed;
- **bits flip** where the design says what must happen. In a checkpoint: it is not used, an older one is, or the leader sends
  its own. In one copy of the hard state: the other is used. In the log before its watermark: the process ends or refuses
  to start, and stays away for good. In no case is a wrong value served, and no more than the one node is concerned.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from raftcache.errors import PreconditionFailed, RaftCacheError
from raftcache.ids import NodeId, ShardId
from raftcache.node.engine import Engine
from raftcache.node.replica import Replica
from raftcache.node.settings import MS
from raftcache.storage.hard_state import hard_state_paths
from raftcache.storage.wal_format import OFFSET_BITS, SEGMENT_HEADER_BYTES
from tests.simulation.clients import visit
from tests.simulation.constants import DATA
from tests.simulation.kinds import Kind
from tests.simulation.nodes import SimulatedNode
from tests.simulation.plan import Fault

if TYPE_CHECKING:
    from tests.simulation.world import World


RECOVERY_MS = 1_000
"""After an outage, before the next one, where they come one at a time."""
VISIT_MS = 200
"""How often somebody reads at a leader to which something happened."""


def inject(world: World) -> None:
    """Puts the whole script on the heap."""
    for fault in world.plan.faults:
        world.after(fault.at_ms * MS, partial(_do, world, fault), kind=Kind.FAULT)


def _do(world: World, fault: Fault) -> None:
    if world.healed:
        return
    if fault.kind.endswith(" leader"):
        leader = _leader(world, fault.number)
        if leader is None:
            return
        fault = replace(fault, kind=fault.kind.removesuffix(" leader"), node=leader)
    else:
        leader = None
    if world.plan.one_at_a_time and fault.for_ms:
        # A leader goes although somebody else is away, who is soon back: leaders are what elections are about.
        if world.now_ns < (world.outage_until_ns if leader is None else world.leader_back_ns):
            return
        world.outage_until_ns = world.now_ns + (fault.for_ms + RECOVERY_MS) * MS
        if leader is not None:
            world.leader_back_ns = world.outage_until_ns
    if leader is not None:
        for later_ms in range(0, fault.for_ms + 1_500, VISIT_MS):
            world.after(later_ms * MS, partial(_visit, world, leader), kind=Kind.CLIENT)
    node = world.nodes.get(NodeId(fault.node))
    world.note(fault.node, f"* {fault.kind}{f' n{fault.to}' if fault.to else ''} {fault.how}".rstrip())
    world.ghost.tally[f"fault: {fault.kind}"] = world.ghost.tally.get(f"fault: {fault.kind}", 0) + 1
    match fault.kind:
        case "cut":
            world.cut([_link(fault), _link(fault)[::-1]], fault.for_ms)
        case "cut one way":
            world.cut([_link(fault)], fault.for_ms)
        case "isolate":
            world.isolate(NodeId(fault.node), fault.for_ms)
        case "isolate on change":
            world.isolates_on_change_ms = fault.for_ms
        case "slow link":
            world.slow[_link(fault)] = fault.number * MS

            def mend() -> None:
                world.slow.pop(_link(fault), None)

            world.after(fault.for_ms * MS, mend, kind=Kind.FAULT)
        case "crash all":
            for each in world.nodes.values():
                if each.host is not None:
                    each.end("the power fails everywhere", fault.how, fault.for_ms)
        case _ if node is not None and fault.kind == "flip":
            _flip(node, fault)
        case _ if node is not None and node.host is not None:
            _do_to(node, fault)


def _visit(world: World, node: NodeId) -> None:
    if not world.healed:
        visit(world, world.nodes[node])


def _leader(world: World, number: int) -> NodeId | None:
    """The node of the newest leader of some shard; seldom of the catalog, where no client reads."""
    shard = 1 + number % world.plan.shards if number % 8 else 0
    leading = [
        (replica.raft.term, node.node)
        for node in world.nodes.values()
        if node.engine is not None and (replica := node.engine.local(ShardId(shard))) is not None and replica.leads
    ]
    return max(leading)[1] if leading else None


def _link(fault: Fault) -> tuple[NodeId, NodeId]:
    return NodeId(fault.node), NodeId(fault.to)


def _do_to(node: SimulatedNode, fault: Fault) -> None:
    """A fault of a node that runs."""
    world, engine = node.world, node.engine
    match fault.kind:
        case "crash":
            node.end("the power fails" if fault.how != "kill" else "kill -9", fault.how, fault.for_ms)
        case "crash at write":
            node.ends_how, node.ends_for_ms = fault.how, fault.for_ms
            node.disk.crash_at = node.disk.operations + fault.number
        case "failed sync":
            # The process ends itself, at its next sync.
            node.disk.inject("fdatasync", errno.EIO)
        case "failed call":
            node.disk.inject(fault.how, errno.EIO)
        case "full disk":
            node.disk.capacity_bytes = node.disk.used_bytes() + fault.number

            def free() -> None:
                node.disk.capacity_bytes = None

            world.after(fault.for_ms * MS, free, kind=Kind.FAULT)
        case "slow disk":
            until = world.now_ns + fault.for_ms * MS
            node.disk_slow_until = max(node.disk_slow_until, until)
            if world.settings.sync_inline_below_ns >= 0:
                # It syncs on the loop, which therefore stands still.
                node.paused_until = max(node.paused_until, until)
        case "pause":
            node.paused_until = max(node.paused_until, world.now_ns + fault.for_ms * MS)
            if fault.how == "cut":
                world.isolate(node.node, fault.for_ms + 1_500)
        case "clock":
            node.clock.jump_wall_ms(fault.number)
        case _ if fault.kind.startswith("crash on "):
            node.ends_how, node.ends_for_ms = fault.how, fault.for_ms
            node.armed, node.armed_skip = fault.kind.removeprefix("crash on "), fault.number
        case _ if engine is not None:
            # On the node's own loop, like everything else that calls the engine.
            world.after(0, lambda: _do_legal(node, engine, fault), kind=Kind.FAULT, node=node)
        case _:
            pass  # it belongs to no cluster yet


def _do_legal(node: SimulatedNode, engine: Engine, fault: Fault) -> None:
    """What may happen at any moment, but seldom does."""
    if fault.kind == "disconnect":
        others = [other for other in node.world.nodes if other != node.node]
        engine.on_disconnected(others[fault.number % len(others)])
        return
    replica = _replica(engine, fault.number)
    if replica is None:
        return
    match fault.kind:
        case "campaign":
            replica.raft.campaign()
            engine.touch(replica)
        case "checkpoint":
            if replica.machine is not None and not engine.checkpointing._running:
                engine.checkpointing.begin(replica)
        case "lose state":
            engine.rebuild(replica, "simulated")
        case "transfer":
            if replica.leads:
                try:
                    engine.transfer(replica)
                except (PreconditionFailed, RaftCacheError):
                    pass
        case _:
            raise AssertionError(f"there is no fault {fault.kind!r}")


def _replica(engine: Engine, number: int) -> Replica | None:
    running = [replica for _, replica in sorted(engine.replicas.items()) if not replica.stopped]
    return running[number % len(running)] if running else None


def _flip(node: SimulatedNode, fault: Fault) -> None:
    """One bit, anywhere in what `how` names."""
    disk = node.disk
    if fault.how == "log":
        _flip_in_log(node, fault.number)
        return
    if fault.how == "hard state":
        paths = [hard_state_paths(f"{DATA}/log")[fault.number & 1]]
        # A save that is under way writes the other copy as well.
        if not all(disk.exists(path) for path in hard_state_paths(f"{DATA}/log")) or node.flipped_copy not in (
            "",
            paths[0],
        ):
            return
        node.flipped_copy = paths[0]
    else:
        paths = sorted(path for path in disk.paths() if path.startswith(f"{DATA}/replicas/") and "checkpoint" in path)
    sizes = [(path, disk.size_of(path)) for path in paths]
    sizes = [(path, size) for path, size in sizes if size]
    if not sizes:
        return
    path, size = sizes[fault.number % len(sizes)]
    place = fault.number % (size * 8) if fault.how != "hard state" else fault.number % (100 * 8)
    disk.flip_bit(path, place // 8, place % 8)
    node.world.note(node.node, f"bit {place} of {path}")


def _flip_in_log(node: SimulatedNode, number: int) -> None:
    engine = node.engine
    if engine is None:
        return
    tail = engine.wal._tail
    proven = tail.vouched
    segment = tail.segments.get(proven >> OFFSET_BITS)
    offset = proven & ((1 << OFFSET_BITS) - 1)
    if segment is None or offset <= SEGMENT_HEADER_BYTES:
        return
    place = number % (offset * 8)
    node.disk.flip_bit(segment.path, place // 8, place % 8)
    node.flipped_segment = segment.number
    node.world.note(node.node, f"bit {place} of {segment.path}")
