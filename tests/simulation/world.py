"""A whole cluster in one thread and one heap of events: production engine, log, state machine and codecs over simulated
disks, clocks and a simulated network, all by one seed.

Rules of this file:
- time is integer nanoseconds; the heap's order is (time, sequence number), so ties are deterministic;
- what belongs to a life of a node (its timers, replies on their way to it) is dropped when that life ends;
- faults are drawn from the seed: crashes that lose what was not synced, failing and slow syncs, partitions, lost, doubled
  and late messages, lost answers, clocks that jump; and beside them an operator who moves replicas and leaders;
- two phases: first safety, while anything may fail; then everything heals and must converge within a bound.
"""

from __future__ import annotations

import errno
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from raftcache.clock import ManualClock
from raftcache.errors import ConfigError, StorageFull
from raftcache.ids import ClusterId, NodeId, ReplicaId, ShardId
from raftcache.kv.limits import KvLimits
from raftcache.node.directory import DirectoryNode, first_directory
from raftcache.node.engine import Engine
from raftcache.node.host import Host
from raftcache.node.kinds import KIND_INIT
from raftcache.node.observer import NoObserver
from raftcache.node.settings import EngineSettings
from raftcache.raft.messages import Role
from raftcache.server.home import DiskHome
from raftcache.storage.data_directory import DataDirectory
from raftcache.storage.simulated_disk import SimulatedDisk
from raftcache.storage.simulated_state import simulated_state_store
from raftcache.storage.wal import WalConfig
from raftcache.transport.codec import decode_section
from tests.simulation.network import MS, SimulatedNetwork

DATA = "data"
PORT_BASE = 7000


class Crashed(BaseException):
    """The simulated process ended itself (a failed fsync)."""


@dataclass(slots=True)
class Faults:
    """This seed's rates: drawn once, so that seeds differ in kind and not only in detail."""

    loss: float
    duplicate: float
    delay_ms_max: int
    crash_every_ms: int
    cut_every_ms: int
    torn: bool
    sync_ms_max: int
    """A sync in its thread takes up to this long."""
    failing_sync: float
    """Of the crashes, how many come from an fdatasync that reports an error."""
    clock_jump_every_ms: int
    lose_state_every_ms: int
    """How often a live state is given up, as after an error of its engine."""
    fill_every_ms: int
    """How often a disk takes nothing more for a while; 0 = never."""
    operate_every_ms: int
    """How often the operator does something; 0 = there is none."""


@dataclass(slots=True)
class SimulatedNode:
    """One machine: its disk outlives its processes."""

    world: World
    node: NodeId
    port: int
    disk: SimulatedDisk
    clock: ManualClock
    life: int = 0
    host: Host | None = None
    network: SimulatedNetwork | None = None

    def start(self) -> None:
        """A new process on the disk as it is."""
        self.life += 1
        self.network = SimulatedNetwork(self.world, self)
        data = DataDirectory.open(self.disk, DATA, process_id=self.life, new_node_id=lambda: self.node)
        home = DiskHome(self.disk, data, WalConfig(segment_bytes=64 << 10), self.fatal)
        scheduler = _Scheduler(self.world, self, self.life)
        address = f"127.0.0.1:{self.port}"
        self.host = Host(
            entry=DirectoryNode(self.node, f"n{self.node}", address, address, address),
            cluster=home.cluster,
            version="simulated",
            settings=self.world.settings,
            limits=KvLimits(),
            home=home,
            open_state=lambda replica, shard: simulated_state_store(
                data.replica_directory(replica), disk=self.disk, post=scheduler.call_soon
            ),
            network=self.network,
            scheduler=scheduler,
            clock=self.clock,
            random=random.Random(self.world.random.getrandbits(64)),
            new_id=lambda: self.world.random.getrandbits(62) + 1,
            observer=NoObserver(),
            fatal=self.fatal,
            disk_free=lambda: 1 << 40,
        )
        self.host.open()
        self._tick(self.life)

    @property
    def engine(self) -> Engine | None:
        """The running engine, if there is one."""
        return self.host.engine if self.host is not None else None

    def _tick(self, life: int) -> None:
        if self.life != life or self.host is None:
            return
        # First, so that a tick that ends the process does not end its successor's.
        self.world.after(self.world.settings.tick_ns, lambda: self._tick(life), node=self)
        if self.host.engine is not None:
            self.host.engine.tick()

    def on_bytes(self, from_node: NodeId, data: bytes) -> None:
        if self.host is not None and self.host.engine is not None:
            self.host.engine.on_messages(from_node, decode_section(data))

    def fatal(self, reason: str) -> NoReturn:
        raise Crashed(reason)

    def crash(self) -> None:
        """The process ends and the power with it: what was not synced is lost, in part or whole. It is started again."""
        self.life += 1
        self.host = None
        self.network = None
        self.disk.crash(self.world.random, power_cut=not self.world.faults.torn)
        self.world.after(self.world.random.randrange(10, 2_000) * MS, self.restart, node=self)

    def restart(self) -> None:
        """Unless it runs already."""
        if self.host is not None:
            return
        try:
            self.start()
        except (ConfigError, StorageFull):
            # The disk failed once more, or is full: a supervisor starts the node again.
            self.crash()


class _Scheduler:
    def __init__(self, world: World, owner: SimulatedNode, life: int) -> None:
        self._world = world
        self._owner = owner
        self._life = life

    def call_soon(self, function: Callable[[], None]) -> None:
        self._world.after(0, lambda: function() if self._owner.life == self._life else None, node=self._owner)

    def wait(self) -> None:
        """Never needed: a simulated node crashes, and is not closed."""

    def run_blocking(self, work: Callable[[], None], done: Callable[[], None]) -> None:
        def run() -> None:
            work()
            self.call_soon(done)

        slowest_ms = 20 if self._world.healing else self._world.faults.sync_ms_max
        self._world.after(
            self._world.random.randrange(1, slowest_ms) * MS,
            lambda: run() if self._owner.life == self._life else None,
            node=self._owner,
        )


@dataclass
class World:
    """See the module."""

    seed: int
    node_count: int = 3
    """First members; some more nodes wait to be taken in."""
    shards: int = 2
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        draw = self.random
        self.faults = Faults(
            loss=draw.choice([0.0, 0.01, 0.05, 0.2]),
            duplicate=draw.choice([0.0, 0.02, 0.2]),
            delay_ms_max=draw.choice([1, 10, 100, 400]),
            crash_every_ms=draw.choice([1_000, 3_000, 10_000]),
            cut_every_ms=draw.choice([1_000, 4_000, 20_000]),
            torn=draw.random() < 0.7,
            sync_ms_max=draw.choice([20, 100, 1_000]),
            failing_sync=draw.choice([0.0, 0.3]),
            clock_jump_every_ms=draw.choice([1_000, 60_000]),
            lose_state_every_ms=draw.choice([1_000, 60_000]),
            fill_every_ms=draw.choice([0, 0, 2_000]),
            operate_every_ms=draw.choice([0, 300, 1_500]),
        )
        self.settings = EngineSettings(
            patience_ns=1_000 * MS,
            log_bytes_per_checkpoint=draw.choice([2_000, 20_000, 1 << 20]),
            trailing_log_bytes=draw.choice([0, 1_000]),
            commit_commands_max=draw.choice([1, 7, 1000]),
            batches_in_flight_max=draw.choice([1, 2, 4]),
            entry_commands_max=draw.choice([1, 3, 100]),
            sync_inline_below_ns=draw.choice([-1, 1_000_000]),
        )
        self.now_ns = 0
        self.events = 0
        self.healing = False
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self._cuts: set[tuple[NodeId, NodeId]] = set()
        self.nodes: dict[NodeId, SimulatedNode] = {}
        more = draw.choice([1, 2]) if self.faults.operate_every_ms else 0
        for number in range(1, self.node_count + more + 1):
            node = NodeId(number)
            self.nodes[node] = SimulatedNode(
                self,
                node,
                PORT_BASE + number,
                SimulatedDisk(self.random),
                ManualClock(wall_ms=1_000_000 + 77_000 * number),
            )

    # --- Time ---

    def after(self, delay_ns: int, function: Callable[[], None], *, node: SimulatedNode | None = None) -> None:
        self._sequence += 1

        def run() -> None:
            try:
                function()
            except Crashed:
                assert node is not None
                node.crash()

        heapq.heappush(self._heap, (self.now_ns + delay_ns, self._sequence, run))

    def run_until(self, time_ns: int) -> None:
        """Runs every event up to `time_ns`."""
        while self._heap and self._heap[0][0] <= time_ns:
            at, _, function = heapq.heappop(self._heap)
            step = at - self.now_ns
            if step:
                for node in self.nodes.values():
                    node.clock.advance_ns(step)
            self.now_ns = at
            self.events += 1
            function()

    # --- Network ---

    def cut(self, a: NodeId, b: NodeId) -> bool:
        return (a, b) in self._cuts or self.nodes[b].host is None

    def copies(self, a: NodeId, b: NodeId) -> int:
        """How often a message from a to b arrives."""
        if (a, b) in self._cuts:
            return 0
        if self.healing:
            return 1
        if self.random.random() < self.faults.loss:
            return 0
        return 2 if self.random.random() < self.faults.duplicate else 1

    def deliver(self, a: NodeId, b: NodeId, function: Callable[[SimulatedNode], None]) -> None:
        """Runs `function` at b after the network's delay, unless the link is cut by then."""
        delay_ns = self.random.randrange(50_000, 1 * MS if self.healing else self.faults.delay_ms_max * MS)
        target = self.nodes[b]

        def arrive() -> None:
            if target.host is not None and (a, b) not in self._cuts:
                function(target)

        self.after(delay_ns, arrive, node=target)

    def node_at(self, port: int) -> NodeId:
        return NodeId(port - PORT_BASE)

    # --- Life ---

    def start(self) -> None:
        """Starts all nodes and makes the first of them a cluster."""
        for node in self.nodes.values():
            node.start()
        first = [node for node in self.nodes.values() if node.node <= self.node_count]
        entries = [node.host.own_entry() for node in first if node.host is not None]
        plan = first_directory(ClusterId(self.seed + 1), entries, self.shards)
        for node in first:
            assert node.host is not None
            node.host.answer(KIND_INIT, plan.encode())
            assert node.host.engine is not None, "init failed"

    def inject(self) -> None:
        """Schedules this seed's faults until `heal`."""
        self._schedule_crash()
        self._schedule_cut()
        self._schedule_clock_jump()
        self._schedule_lost_state()
        if self.faults.fill_every_ms:
            self._schedule_full_disk()

    def _schedule_lost_state(self) -> None:
        def lose() -> None:
            if self.healing:
                return
            engine = self.random.choice(list(self.nodes.values())).engine
            if engine is not None and engine.replicas:
                engine.rebuild(self.random.choice(list(engine.replicas.values())), "simulated")
            self._schedule_lost_state()

        self.after(self.random.randrange(self.faults.lose_state_every_ms) * MS, lose)

    def _schedule_full_disk(self) -> None:
        def fill() -> None:
            if self.healing:
                return
            disk = self.random.choice(list(self.nodes.values())).disk
            disk.capacity_bytes = disk.used_bytes() + self.random.choice([0, 50_000])
            self.after(self.random.randrange(2_000) * MS, lambda: _free(disk))
            self._schedule_full_disk()

        self.after(self.random.randrange(self.faults.fill_every_ms) * MS, fill)

    def _schedule_clock_jump(self) -> None:
        def jump() -> None:
            if not self.healing:
                node = self.random.choice(list(self.nodes.values()))
                node.clock.jump_wall_ms(self.random.choice([-3_600_000, -5_000, 5_000, 3_600_000]))
                self._schedule_clock_jump()

        self.after(self.random.randrange(self.faults.clock_jump_every_ms) * MS, jump)

    def _schedule_crash(self) -> None:
        def crash() -> None:
            if self.healing:
                return
            victims = list(self.nodes.values())
            # One in six: everybody at once.
            chosen = victims if self.random.random() < 1 / 6 else [self.random.choice(victims)]
            for victim in chosen:
                if victim.host is None:
                    continue
                if self.random.random() < self.faults.failing_sync:
                    # The process ends itself, at its next sync.
                    victim.disk.inject("fdatasync", errno.EIO)
                else:
                    victim.crash()
            self._schedule_crash()

        self.after(self.random.randrange(self.faults.crash_every_ms) * MS, crash)

    def _schedule_cut(self) -> None:
        def cut() -> None:
            if self.healing:
                return
            self._cuts.clear()
            ids = list(self.nodes)
            match self.random.randrange(4):
                case 0:
                    alone = self.random.choice(ids)
                    self._cuts |= {(alone, other) for other in ids} | {(other, alone) for other in ids}
                case 1:
                    # One way only.
                    a, b = self.random.sample(ids, 2)
                    self._cuts.add((a, b))
                case 2:
                    a, b = self.random.sample(ids, 2)
                    self._cuts |= {(a, b), (b, a)}
                case _:
                    pass
            self._cuts -= {(node, node) for node in ids}
            self._schedule_cut()

        self.after(self.random.randrange(self.faults.cut_every_ms) * MS, cut)

    def heal(self) -> None:
        """From here on nothing fails any more."""
        self.healing = True
        self._cuts.clear()
        for node in self.nodes.values():
            node.disk.clear_faults()
            _free(node.disk)
            node.restart()

    # --- Invariants ---

    def leaders(self) -> dict[tuple[ShardId, int], set[ReplicaId]]:
        """Who leads which shard in which term, now."""
        found: dict[tuple[ShardId, int], set[ReplicaId]] = {}
        for node in self.nodes.values():
            if node.host is None or node.host.engine is None:
                continue
            for replica in node.host.engine.replicas.values():
                if replica.raft.role is Role.LEADER and not replica.stopped:
                    found.setdefault((replica.shard, replica.raft.term), set()).add(replica.replica_id)
        return found


def _free(disk: SimulatedDisk) -> None:
    disk.capacity_bytes = None
