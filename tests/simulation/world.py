"""A whole cluster in one thread and one heap of events: production engine, log, state machine and codecs over simulated
disks, clocks and a simulated network, all by one seed.

Rules of this file:
- time is integer nanoseconds; the heap's order is (time, sequence number), so ties are deterministic;
- an event belongs to a life of a node (its timers, replies on their way to it) and is dropped when that life has ended, or
  to no life in particular (a message finds whatever process runs when it arrives);
- what fails is in the plan (`plan.py`), how it fails in `faults.py`; here is only what they act upon;
- every event goes into the *trace hash*: same seed, same hash, in any interpreter with any hash seed. Every event is
  followed by a look at the node that it concerned (`ghost.py`); the first violation stops the world.

Caveat: events are counted without idle ones, that is without ticks that left nothing to do, and turns that found nothing.
"""

from __future__ import annotations

import hashlib
import heapq
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

from raftcache.ids import ClusterId, NodeId, ReplicaId, ShardId
from raftcache.kv.slots import slot_of
from raftcache.node.api import ReplySink, Request
from raftcache.node.directory import first_directory
from raftcache.node.kinds import KIND_INIT
from raftcache.node.settings import MS
from tests.simulation.constants import PORT_BASE
from tests.simulation.ghost import Ghost
from tests.simulation.history import History
from tests.simulation.kinds import Kind
from tests.simulation.lanes import Lanes
from tests.simulation.nodes import Crashed, SimulatedNode
from tests.simulation.plan import Plan, draw_plan

TICK, TURN = Kind.TICK, Kind.TURN
_STAMP = struct.Struct("<QQII")
HEALED_DELAY_NS = 1 * MS
DELAY_NS_MIN = 50_000


@dataclass(frozen=True, slots=True)
class Problem:
    """A violation. `kind` is what the shrinker keeps while it takes everything else away."""

    kind: str
    text: str
    at_ns: int

    def __str__(self) -> str:
        return f"{self.kind} at {self.at_ns / 1e9:.3f} s: {self.text}"


class World:
    """See the module."""

    def __init__(self, seed: int, plan: Plan | None = None, lanes: Lanes | None = None) -> None:
        self.plan = plan if plan is not None else draw_plan(seed)
        self.settings = self.plan.settings
        self.cluster = ClusterId(seed + 1)
        self.random = random.Random(f"world {seed}")
        self.lanes = lanes
        self.now_ns = 0
        self.events = 0
        """Without idle ones."""
        self.steps = 0
        """With them."""
        self.healed: frozenset[NodeId] = frozenset()
        """Nodes that nothing happens to any more; empty in the safety phase."""
        self.problems: list[Problem] = []
        self.ghost = Ghost(self)
        self.history = History()
        """What clients did and saw."""
        self.cuts: dict[tuple[NodeId, NodeId], int] = {}
        """Directed links that are cut, and how many faults cut each."""
        self.slow: dict[tuple[NodeId, NodeId], int] = {}
        """Directed links that take this many nanoseconds longer."""
        self.isolates_on_change_ms = 0
        """For so long the next leader that sends a change of membership will be alone; 0: it will not be."""
        self.leader_back_ns = 0
        self.outage_until_ns = 0
        """Until then some fault keeps a node away, where they come one at a time, and until then a leader."""
        self._heap: list[tuple[int, int, Kind, SimulatedNode | None, int, Callable[[], None]]] = []
        self._sequence = 0
        self._arrivals: dict[tuple[NodeId, NodeId], int] = {}
        """When the last message of each directed link arrives."""
        self._slot_table: list[ShardId] = []
        self._trace = hashlib.blake2b(digest_size=16)
        self.nodes: dict[NodeId, SimulatedNode] = {
            NodeId(number): SimulatedNode(self, NodeId(number))
            for number in range(1, self.plan.nodes + self.plan.spares + 1)
        }

    @property
    def seed(self) -> int:
        return self.plan.seed

    # --- Time ---------------------------------------------------------------------------------------------------------

    def after(
        self,
        delay_ns: int,
        function: Callable[[], None],
        *,
        kind: Kind = Kind.TIMER,
        node: SimulatedNode | None = None,
        any_life: bool = False,
    ) -> None:
        """Runs `function` later; with a `node` only while this life of it lasts, or `any_life`."""
        self._sequence += 1
        life = 0 if node is None or any_life else node.life
        heapq.heappush(self._heap, (self.now_ns + delay_ns, self._sequence, kind, node, life, function))

    def run_until(self, time_ns: int) -> None:
        """Runs every event up to `time_ns`, or up to the first violation."""
        heap, pop, stamp, look = self._heap, heapq.heappop, _STAMP.pack, self.ghost.look
        problems, trace = self.problems, self._trace.update
        while heap and heap[0][0] <= time_ns and not problems:
            at, sequence, kind, node, life, function = pop(heap)
            if node is None:
                self.now_ns = at
                trace(stamp(at, sequence, kind, 0))
                self.steps += 1
                self.events += 1
                function()
                continue
            if life and node.life != life:
                continue
            if node.paused_until > at:
                heapq.heappush(heap, (node.paused_until, sequence, kind, node, life, function))
                continue
            self.now_ns = at
            trace(stamp(at, sequence, kind, node.node))
            self.steps += 1
            idle = kind == TURN and not node.has_work()
            if not idle and kind != TICK:
                self.events += 1
            try:
                function()
                if not idle:
                    look(node)
                    if kind == TICK and node.has_work():
                        self.events += 1
            except Crashed as end:
                node.end(str(end), node.ends_how, node.ends_for_ms)
        if not self.problems:
            self.now_ns = max(self.now_ns, time_ns)

    def fail(self, kind: str, text: str) -> None:
        """A promise was broken: nothing goes on after this event."""
        self.problems.append(Problem(kind, text, self.now_ns))
        self.note(0, f"!! {kind}")

    def note(self, node: int, text: str) -> None:
        """For the lanes, where they are drawn."""
        if self.lanes is not None:
            self.lanes.add(self.now_ns, node, text)

    @property
    def trace_hash(self) -> str:
        """Of all events so far: their times, kinds, nodes, and the bytes of messages."""
        return self._trace.hexdigest()

    # --- Network ------------------------------------------------------------------------------------------------------

    def connected(self, a: NodeId, b: NodeId) -> bool:
        return (a, b) not in self.cuts and self.nodes[b].host is not None

    def copies(self, a: NodeId, b: NodeId) -> int:
        """How often a message from a to b arrives."""
        if (a, b) in self.cuts:
            return 0
        if a in self.healed:
            return 1
        plan, draw = self.plan, self.random.random
        if plan.loss and draw() < plan.loss:
            return 0
        return 2 if plan.duplicate and draw() < plan.duplicate else 1

    def deliver(self, a: NodeId, b: NodeId, data: bytes, function: Callable[[SimulatedNode], None]) -> None:
        """Runs `function` at b after the network's delay, unless the link is cut by then. `data` is for the trace."""
        if a in self.healed:
            delay_ns = DELAY_NS_MIN + int(self.random.random() * HEALED_DELAY_NS)
        else:
            delay_ns = DELAY_NS_MIN + int(self.random.random() * self.plan.delay_ms_max * MS)
            delay_ns += self.slow.get((a, b), 0)
        if a in self.healed or not self.plan.reorder:
            # One connection: nothing overtakes.
            due_ns = self._arrivals[a, b] = max(self.now_ns + delay_ns, self._arrivals.get((a, b), 0))
            delay_ns = due_ns - self.now_ns
        target = self.nodes[b]

        def arrive() -> None:
            if target.host is not None and (a, b) not in self.cuts:
                function(target)

        self._trace.update(_STAMP.pack(delay_ns, len(data), crc32(data), a << 8 | b))
        self._sequence += 1
        heapq.heappush(self._heap, (self.now_ns + delay_ns, self._sequence, Kind.MESSAGE, target, 0, arrive))

    def cut(self, pairs: list[tuple[NodeId, NodeId]], for_ms: int) -> None:
        """These directed links carry nothing for a while."""
        cuts = self.cuts
        for pair in pairs:
            cuts[pair] = cuts.get(pair, 0) + 1

        def mend() -> None:
            # In the table of then: `heal` makes a new one.
            for pair in pairs:
                cuts[pair] -= 1
                if not cuts[pair]:
                    del cuts[pair]

        if for_ms:
            self.after(for_ms * MS, mend, kind=Kind.FAULT)

    def isolate(self, alone: NodeId, for_ms: int) -> None:
        """Nothing reaches the node, and nothing of it reaches others."""
        others = [other for other in self.nodes if other != alone]
        self.cut([(alone, other) for other in others] + [(other, alone) for other in others], for_ms)

    def change_left(self, node: NodeId) -> None:
        """A leader sends a change of membership: it may be alone from now on, and the change then was for nothing."""
        for_ms, self.isolates_on_change_ms = self.isolates_on_change_ms, 0
        if for_ms and not self.healed:
            self.note(node, "* alone with a change of membership")
            self.ghost.count("fault: isolated on a change")
            self.isolate(node, for_ms)

    def submit(self, node: SimulatedNode, request: Request, sink: ReplySink) -> None:
        """A client's request reaches the node: at once, or when its process is awake again, or never if that ends."""
        host = node.host
        assert host is not None, "clients turn to nodes that run"
        self.after(0, lambda: host.submit([request], sink), kind=Kind.CLIENT, node=node)

    def reachable(self) -> list[SimulatedNode]:
        """Nodes that clients may turn to: those that run; once some are healed, those."""
        return [
            node
            for node in self.nodes.values()
            if node.host is not None and (not self.healed or node.node in self.healed)
        ]

    def shard_of(self, key: bytes) -> ShardId:
        """Slots never move here, so the first plan says where a key lies."""
        return self._slot_table[slot_of(key)]

    def replicas_of(self, node: SimulatedNode) -> list[ReplicaId]:
        """The replicas on this node, running or not."""
        wal = self.ghost.wal_of(node)
        return wal.replicas() if wal is not None else []

    def node_at(self, port: int) -> NodeId:
        return NodeId(port - PORT_BASE)

    # --- Life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts all nodes and makes the first of them a cluster."""
        for node in self.nodes.values():
            node.start()
        first = [node for node in self.nodes.values() if node.node <= self.plan.nodes]
        entries = [node.host.own_entry() for node in first if node.host is not None]
        plan = first_directory(self.cluster, entries, self.plan.shards)
        self._slot_table = plan.slot_table()
        for node in first:
            assert node.host is not None
            node.host.answer(KIND_INIT, plan.encode())
            assert node.host.engine is not None, "init failed"
            self.ghost.look(node)

    def heal(self, core: frozenset[NodeId]) -> None:
        """From here on nothing fails in the core. The others stay as they are, and are cut off from it."""
        self.healed = core
        self.slow.clear()
        self._arrivals.clear()
        self.cuts = {(a, b): 1 for a in self.nodes for b in self.nodes if a != b and (a not in core) | (b not in core)}
        self.note(0, f"healed: {sorted(core)}")
        for node in self.nodes.values():
            if node.node in core:
                node.heal()
