"""One simulated machine: its disk and clocks outlive its processes, which run the production host and engine.

Rules of this file:
- a process ends when it ends itself (`fatal`), at a moment of its own (`disk.crash_at`, `armed`), or when the world says so;
- how it ends is one of `plan.ENDS`. A process that ends *itself* is a kill: the page cache stays;
- it is started again after a while, as by a supervisor, and so long until it starts.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from raftcache.errors import ConfigError, Corruption, StorageFull, UnsupportedVersion
from raftcache.ids import NodeId
from raftcache.kv.limits import KvLimits
from raftcache.node.directory import DirectoryNode
from raftcache.node.engine import Engine
from raftcache.node.host import Host
from raftcache.node.observer import NoObserver
from raftcache.node.settings import MS
from raftcache.server.home import DiskHome
from raftcache.storage.data_directory import DataDirectory
from raftcache.storage.simulated_disk import SimulatedDisk
from raftcache.storage.simulated_state import simulated_state_store
from raftcache.transport.codec import decode_section
from tests.simulation.constants import DATA, PORT_BASE, WAL
from tests.simulation.kinds import Kind
from tests.simulation.network import SimulatedNetwork
from tests.simulation.plan import Extremes

if TYPE_CHECKING:
    from tests.simulation.world import World

RESTART_MS = 300
"""After a process that ended itself."""


class Crashed(BaseException):
    """The simulated process ended itself, or its machine's power failed: no handler of the product may catch it."""


class SimulatedClock:
    """A node's two hands on the world's time."""

    __slots__ = ("_offset_ms", "_world")

    def __init__(self, world: World, offset_ms: int) -> None:
        self._world = world
        self._offset_ms = offset_ms

    def monotonic_ns(self) -> int:
        return self._world.now_ns

    def wall_ms(self) -> int:
        return self._world.now_ns // MS + self._offset_ms

    def jump_wall_ms(self, difference_ms: int) -> None:
        self._offset_ms += difference_ms


class WorldObserver(NoObserver):
    """Counts what the engine tells, and writes it into the lanes."""

    __slots__ = ("_node",)

    def __init__(self, node: SimulatedNode) -> None:
        self._node = node

    def event(self, name: str, **fields: object) -> None:
        world = self._node.world
        world.ghost.count(name)
        if name == "replies_lost":
            # The router goes on when a front raises; here it is one of our clients, and that is a finding.
            world.fail("exception", f"node {self._node.node}: {fields}")
        if world.lanes is not None:
            told = " ".join(str(fields[key]) for key in ("shard", "term", "leader", "index", "reason") if key in fields)
            world.note(self._node.node, f"{name} {told}")


class SimulatedNode:
    """See the module."""

    def __init__(self, world: World, node: NodeId) -> None:
        self.world = world
        self.node = node
        self.port = PORT_BASE + node
        self.disk = SimulatedDisk(random.Random(f"disk {world.seed} {node}"))
        self.disk.crash_error = Crashed
        self.clock = SimulatedClock(world, 1_000_000 + 77_000 * node)
        self.life = 0
        """+1 at each start and each end."""
        self.host: Host | None = None
        self.network: SimulatedNetwork | None = None
        self.random = random.Random(f"node {world.seed} {node}")
        self.paused_until = 0
        self.disk_slow_until = 0
        self.ends_how, self.ends_for_ms = "kill", RESTART_MS
        """What becomes of it when a `Crashed` is raised."""
        self.armed, self.armed_skip = "", 0
        """The kind of message after which the process ends, and how many of them still pass."""
        self.held_down = False
        """Nobody starts it for now."""
        self.condemned = ""
        """Why it refuses to start for good: damage that the design says it must not go on with."""
        self.flipped_copy = ""
        """The copy of the hard state in which bits flip: never in both."""
        self.flipped_segment = -1
        """The segment of the log in which a bit flipped, before what is proven to have been synced."""
        slower = world.plan.slow_node_ticks if node == 1 else 0
        self.tick_ns = world.settings.tick_ns * (100 + slower) // 100
        self._soon_ns = 0

    @property
    def engine(self) -> Engine | None:
        """The running engine, if there is one."""
        return self.host.engine if self.host is not None else None

    def has_work(self) -> bool:
        """Whether a turn now would have something to do."""
        engine = self.engine
        return engine is None or bool(engine._touched or engine.commit._group or engine.commit._between)

    # --- Life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """A new process on the disk as it is."""
        world = self.world
        self.life += 1
        self.network = SimulatedNetwork(world, self)
        data = DataDirectory.open(self.disk, DATA, process_id=self.life, new_node_id=lambda: self.node)
        home = DiskHome(self.disk, data, WAL, self.fatal)
        scheduler = _Scheduler(self)
        address = f"127.0.0.1:{self.port}"
        make_random = Extremes if world.plan.extremes else random.Random
        self.host = Host(
            entry=DirectoryNode(self.node, f"n{self.node}", address, address, address),
            cluster=home.cluster,
            version="simulated",
            settings=world.settings,
            limits=KvLimits(),
            home=home,
            open_state=lambda replica, shard: simulated_state_store(
                data.replica_directory(replica), disk=self.disk, post=scheduler.call_soon
            ),
            network=self.network,
            scheduler=scheduler,
            clock=self.clock,
            random=make_random(self.random.getrandbits(64)),
            new_id=lambda: self.random.getrandbits(62) + 1,
            observer=WorldObserver(self),
            fatal=self.fatal,
            disk_free=lambda: 1 << 40,
        )
        self.host.open()
        world.note(self.node, "start")
        self._tick_later(self.random.randrange(self.tick_ns))

    def fatal(self, reason: str) -> NoReturn:
        # It ends by itself: whatever was planned for it, the machine goes on.
        self.ends_how, self.ends_for_ms = "kill", RESTART_MS
        raise Crashed(reason)

    def end(self, reason: str, how: str, for_ms: int) -> None:
        """The process ends, or the machine's power; it is started again after `for_ms`."""
        world = self.world
        self.life += 1
        self.host = None
        self.network = None
        self.armed, self.armed_skip = "", 0
        self.ends_how, self.ends_for_ms = "kill", RESTART_MS
        self.paused_until = self._soon_ns = 0
        if how == "kill":
            self.disk.kill()
        else:
            self.disk.crash(self.disk.random, power_cut=how == "cut")
        world.note(self.node, f"END ({how}) {reason}")
        world.ghost.after_end(self)
        world.after(max(1, for_ms) * MS, self.restart, node=self)

    def restart(self) -> None:
        """Unless it runs already, or must not."""
        if self.host is not None or self.held_down or self.condemned:
            return
        try:
            self.start()
        except (Corruption, UnsupportedVersion) as damage:
            self.host = None
            if self.world.plan.flips_node == self.node:
                # As it should: it may have promised what it no longer knows.
                self.condemned = str(damage)
                self.disk.kill()
                self.world.note(self.node, f"refuses to start: {damage}")
                return
            self.world.fail("corruption", f"node {self.node} refuses to start: {damage}")
        except (ConfigError, StorageFull) as error:
            # The disk failed once more, or is full: a supervisor starts the node again.
            self.end(str(error), "kill", RESTART_MS)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self.end(str(error), "kill", RESTART_MS)
        else:
            self.world.ghost.after_start(self)

    def message_left(self) -> None:
        """A message of the armed kind is on its way: this was the last thing that the process did, if its turn has come."""
        if self.armed_skip:
            self.armed_skip -= 1
        else:
            raise Crashed(f"after sending {self.armed}")

    def heal(self) -> None:
        """Nothing fails here any more."""
        self.disk.clear_faults()
        self.disk.capacity_bytes = None
        self.disk.crash_at = None
        self.armed = ""
        self.paused_until = self.disk_slow_until = 0
        self.held_down = False
        self.restart()

    def _tick_later(self, delay_ns: int) -> None:
        self.world.after(delay_ns, self._tick, kind=Kind.TICK, node=self)

    def _tick(self) -> None:
        # First, so that a tick that ends the process does not end its successor's.
        self._tick_later(self.tick_ns)
        # Not `host.tick`: what the engine raises is a finding here, and no reason to end the process.
        if self.host is not None and self.host.engine is not None:
            self.host.engine.tick()

    def on_bytes(self, from_node: NodeId, data: bytes) -> None:
        engine = self.engine
        if engine is not None:
            engine.on_messages(from_node, decode_section(data))


class _Scheduler:
    """The node's loop and its one thread."""

    def __init__(self, owner: SimulatedNode) -> None:
        self._owner = owner
        self._world = owner.world

    def call_soon(self, function: Callable[[], None]) -> None:
        owner, world = self._owner, self._world
        delay_ns = 0
        if world.plan.turn_us_max and owner.node not in world.healed:
            # A busy loop: later, and never out of order.
            due_ns = world.now_ns + int(world.random.random() * world.plan.turn_us_max) * 1_000
            owner._soon_ns = max(owner._soon_ns, due_ns)
            delay_ns = owner._soon_ns - world.now_ns
        kind = Kind.TURN if getattr(function, "__name__", "") == Engine.turn.__name__ else Kind.TIMER
        world.after(delay_ns, function, kind=kind, node=owner)

    def wait(self) -> None:
        """Never needed: a simulated node ends, and is not closed."""

    def run_blocking(self, work: Callable[[], None], done: Callable[[], None]) -> None:
        owner, world = self._owner, self._world

        def run() -> None:
            work()
            self.call_soon(done)

        slowest_ms = 2 if owner.node in world.healed else world.plan.sync_ms_max
        delay_ns = 1 + int(world.random.random() * slowest_ms * MS)
        delay_ns = max(delay_ns, owner.disk_slow_until - world.now_ns)
        world.after(delay_ns, run, kind=Kind.DISK, node=owner)
