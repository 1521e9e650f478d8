"""Whole nodes in one thread, on simulated disks and a network in memory, moved by hand: no time passes but by `tick`.

    nodes = Nodes(3)                    three hosts, initialised as one cluster with one shard
    leader = nodes.lead(SHARD)          ticks until somebody leads
    asked = nodes.ask(leader, Put(...)) submits; `asked.reply` is there once `run` came to rest

Rules of this file:
- production code above the seams; what is faked is the scheduler, the network, the clock and the observer;
- `run` does what is possible now, in a fixed order, until nothing is left; the same calls give the same run;
- whatever a test holds back (a sync, a request, a message, a snapshot) it names, and nothing else is delayed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from typing import NoReturn, TypeVar

from raftcache.clock import ManualClock
from raftcache.errors import OutcomeUnknown, RaftCacheError, Unavailable
from raftcache.ids import ClusterId, NodeId, ReplicaId, ShardId, Slot
from raftcache.kv.limits import KvLimits
from raftcache.kv.operations import Get, Operation, Put, SessionStamp
from raftcache.kv.slots import slot_of
from raftcache.node.api import Consistency, Reply, Request
from raftcache.node.directory import Directory, DirectoryNode, first_directory
from raftcache.node.engine import Engine
from raftcache.node.host import Host
from raftcache.node.kinds import KIND_INIT
from raftcache.node.observer import NoObserver
from raftcache.node.replica import Replica
from raftcache.node.settings import MS, EngineSettings
from raftcache.raft.messages import InstallSnapshot, Message
from raftcache.server.home import DiskHome
from raftcache.storage.data_directory import DataDirectory
from raftcache.storage.simulated_disk import SimulatedCrash, SimulatedDisk
from raftcache.storage.simulated_state import simulated_state_store
from raftcache.storage.state import OutgoingCheckpoint
from raftcache.storage.wal import WalConfig
from raftcache.transport.codec import decode_section, encode_section

CATALOG = ShardId(0)
SHARD = ShardId(1)
PORT_BASE = 7000
DATA = "data"
SETTINGS = EngineSettings(patience_ns=2_000 * MS, log_bytes_per_checkpoint=1 << 30, trailing_log_bytes=0)
ROUNDS_MAX = 100_000
TIMEOUT_NS = 5_000 * MS

Result = TypeVar("Result")


class Ended(BaseException):
    """The process ended itself."""


class Recorder(NoObserver):
    """An observer that remembers the events, and how long commits and rounds of reads took."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []
        self.replicated_ns: list[int] = []
        self.confirmed_ns: list[int] = []

    def event(self, name: str, **fields: object) -> None:
        self.events.append((name, fields))

    def replicated(self, took_ns: int) -> None:
        self.replicated_ns.append(took_ns)

    def confirmed(self, took_ns: int) -> None:
        self.confirmed_ns.append(took_ns)

    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    def of(self, name: str) -> list[dict[str, object]]:
        return [fields for found, fields in self.events if found == name]


class Scheduler:
    """Runs what the engine puts off; with `hold` the work off the loop stays undone until `release`."""

    def __init__(self) -> None:
        self.soon: deque[Callable[[], None]] = deque()
        self.blocking: deque[tuple[Callable[[], None], Callable[[], None]]] = deque()
        self.hold = False

    def call_soon(self, function: Callable[[], None]) -> None:
        self.soon.append(function)

    def run_blocking(self, work: Callable[[], None], done: Callable[[], None]) -> None:
        self.blocking.append((work, done))

    def wait(self) -> None:
        while self.blocking:
            self.step_blocking()

    def step_blocking(self) -> None:
        work, done = self.blocking.popleft()
        work()
        self.soon.append(done)

    def step(self) -> bool:
        if self.soon:
            self.soon.popleft()()
            return True
        if self.blocking and not self.hold:
            self.step_blocking()
            return True
        return False


@dataclass(slots=True)
class Call:
    """A request between nodes on its way."""

    origin: Node
    target: NodeId
    kind: int
    payload: bytes
    deadline_ns: int
    life: int
    on_reply: Callable[[bytes | RaftCacheError], None]
    over: bool = False

    def answer(self, outcome: bytes | RaftCacheError) -> None:
        if not self.over and self.origin.life == self.life:
            self.over = True
            self.on_reply(outcome)


class Network:
    """One node's end; the mail lies in `Nodes`."""

    def __init__(self, nodes: Nodes, owner: Node) -> None:
        self._nodes = nodes
        self._owner = owner
        self.sent: list[tuple[NodeId, ShardId, Message]] = []
        """Everything that was sent and flushed, for tests to look at."""
        self._waiting: list[tuple[NodeId, ShardId, Message]] = []

    def send(self, node: NodeId, shard: ShardId, message: Message) -> None:
        self._waiting.append((node, shard, message))

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for node, shard, message in waiting:
            self.sent.append((node, shard, message))
            data = b"".join(encode_section([(shard, message)]))
            self._nodes.post(self._owner, node, lambda peer, data=data: peer.take(self._owner.node, data))

    def request(
        self,
        node: NodeId,
        kind: int,
        payload: bytes,
        on_reply: Callable[[bytes | RaftCacheError], None],
        deadline_ns: int,
    ) -> None:
        self._nodes.call(Call(self._owner, node, kind, payload, deadline_ns, self._owner.life, on_reply))

    def request_address(
        self,
        address: tuple[str, int],
        kind: int,
        payload: bytes,
        on_reply: Callable[[bytes | RaftCacheError], None],
        deadline_ns: int,
    ) -> None:
        self.request(self._nodes.at_port(address[1]), kind, payload, on_reply, deadline_ns)

    def send_snapshot(
        self,
        node: NodeId,
        shard: ShardId,
        message: InstallSnapshot,
        source: OutgoingCheckpoint,
        on_done: Callable[[bool], None],
    ) -> None:
        life = self._owner.life
        over = False

        def done(ok: bool) -> None:
            nonlocal over
            if not over and self._owner.life == life:
                over = True
                self._owner.scheduler.call_soon(lambda: on_done(ok))

        self._nodes.transfers.append((node, done))

        def start() -> None:
            if self._owner.life != life:
                return
            peer = self._nodes.nodes.get(node)
            if (
                peer is None
                or peer.host is None
                or peer.host.engine is None
                or self._nodes.is_cut(self._owner.node, node)
            ):
                done(False)
                return
            try:
                incoming = peer.engine.checkpointing.receive(
                    self._owner.node, shard, message, size=source.size, digest=source.digest
                )
                while chunk := source.chunk():
                    incoming.add(chunk)
                incoming.finish(done)
            except (RaftCacheError, SimulatedCrash):
                done(False)

        if self._nodes.hold_snapshots:
            self._nodes.held_snapshots.append(start)
        else:
            self._owner.scheduler.call_soon(start)

    def connected(self, node: NodeId) -> bool:
        peer = self._nodes.nodes.get(node)
        return peer is not None and peer.host is not None and not self._nodes.is_cut(self._owner.node, node)

    def resting(self, node: NodeId) -> bool:
        del node
        return False

    def answer_bytes_waiting(self, node: NodeId) -> int:
        del node
        return 0

    def set_cluster(self, cluster: ClusterId) -> None:
        del cluster


@dataclass(slots=True, eq=False)
class Asked:
    """One request and what came of it. A sink."""

    request: Request
    replies: list[Reply] = field(default_factory=list)

    def deliver(self, replies: list[Reply]) -> None:
        self.replies.extend(replies)
        assert len(self.replies) == 1, f"{len(self.replies)} replies to one request: {self.replies}"

    @property
    def reply(self) -> Reply:
        assert self.replies, f"no reply to {self.request}"
        return self.replies[0]

    @property
    def result(self) -> object:
        return self.reply.result


@dataclass(eq=False)
class Node:
    """One node: its disk outlives its processes."""

    nodes: Nodes
    node: NodeId
    disk: SimulatedDisk
    clock: ManualClock
    port: int
    settings: EngineSettings
    observer: Recorder = field(default_factory=Recorder)
    scheduler: Scheduler = field(default_factory=Scheduler)
    life: int = 0
    host: Host | None = None
    disk_free: int = 1 << 40
    fatal_reason: str = ""

    @property
    def engine(self) -> Engine:
        assert self.host is not None, f"node {self.node} is down"
        assert self.host.engine is not None, f"node {self.node} is in no cluster"
        return self.host.engine

    @property
    def network(self) -> Network:
        assert self.host is not None, f"node {self.node} is down"
        network = self.host.network
        assert isinstance(network, Network)
        return network

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def replica(self, shard: ShardId = SHARD) -> Replica:
        found = self.engine.local(shard)
        assert found is not None, f"node {self.node} has no replica of shard {shard}"
        return found

    def leads(self, shard: ShardId = SHARD) -> bool:
        found = self.engine.local(shard) if self.host is not None and self.host.engine is not None else None
        return found is not None and found.leads

    def start(self) -> None:
        self.life += 1
        self.scheduler = Scheduler()
        self.observer = Recorder()
        scheduler = self.scheduler
        data = DataDirectory.open(self.disk, DATA, process_id=self.life, new_node_id=lambda: self.node)
        home = DiskHome(self.disk, data, WalConfig(segment_bytes=self.nodes.segment_bytes), self.fatal)
        host = Host(
            entry=DirectoryNode(self.node, f"n{self.node}", self.address, self.address, self.address),
            cluster=home.cluster,
            version="test",
            settings=self.settings,
            limits=KvLimits(),
            home=home,
            open_state=lambda replica, shard: simulated_state_store(
                data.replica_directory(replica), disk=self.disk, post=scheduler.call_soon
            ),
            network=Network(self.nodes, self),
            scheduler=scheduler,
            clock=self.clock,
            random=random.Random(self.node * 1000 + self.life),
            new_id=lambda: self.nodes.random.getrandbits(62) + 1,
            observer=self.observer,
            fatal=self.fatal,
            disk_free=lambda: self.disk_free,
        )
        self.host = host
        host.open()

    def fatal(self, reason: str) -> NoReturn:
        self.fatal_reason = reason
        raise Ended(reason)

    def crash(self, *, power_cut: bool = True) -> None:
        """The process ends, and what was not synced is lost."""
        self.life += 1
        self.host = None
        self.disk.crash(self.nodes.random, power_cut=power_cut)
        for target, done in self.nodes.transfers:
            if target == self.node:
                done(False)

    def stop(self) -> None:
        """A clean shutdown."""
        self.engine.close()
        self.life += 1
        self.host = None
        # The lock goes with the process; what is synced stays.
        self.disk.crash(self.nodes.random)

    def take(self, from_node: NodeId, data: bytes) -> None:
        if self.host is not None and self.host.engine is not None:
            self.host.engine.on_messages(from_node, decode_section(data))


class Nodes:
    """See the module."""

    def __init__(
        self,
        count: int = 3,
        *,
        shards: int = 1,
        settings: EngineSettings = SETTINGS,
        init: bool = True,
        seed: int = 1,
        segment_bytes: int = 256 << 10,
        **overrides: object,
    ) -> None:
        self.random = random.Random(seed)
        self.settings = replace(settings, **overrides)  # type: ignore[arg-type]
        self.segment_bytes = segment_bytes
        self.nodes: dict[NodeId, Node] = {}
        self.cuts: set[tuple[NodeId, NodeId]] = set()
        self.mail: deque[tuple[NodeId, NodeId, Callable[[Node], None]]] = deque()
        self.calls: list[Call] = []
        self.hold_calls: Callable[[Call], bool] = lambda call: False
        """Requests between nodes that stay in `held` until the test lets them go."""
        self.lose_answers: Callable[[Call], bool] = lambda call: False
        self.held: list[Call] = []
        self.answer_bytes_max = 0
        """The largest answer between nodes so far."""
        self.transfers: list[tuple[NodeId, Callable[[bool], None]]] = []
        """Snapshots begun, and whom to tell when the connection breaks."""
        self.hold_snapshots = False
        self.held_snapshots: list[Callable[[], None]] = []
        for _ in range(count):
            self.add()
        if init:
            self.init(shards)

    def __getitem__(self, number: int) -> Node:
        return self.nodes[NodeId(number)]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def add(self) -> Node:
        """One more node, running, in no cluster."""
        number = NodeId(len(self.nodes) + 1)
        disk = SimulatedDisk(random.Random(number))
        node = Node(self, number, disk, ManualClock(wall_ms=1_000_000), PORT_BASE + number, self.settings)
        self.nodes[number] = node
        node.start()
        return node

    def init(self, shards: int) -> Directory:
        """All nodes become one cluster."""
        entries = [node.host.own_entry() for node in self if node.host is not None]
        plan = first_directory(ClusterId(77), entries, shards)
        for node in self:
            assert node.host is not None
            node.host.answer(KIND_INIT, plan.encode())
            assert node.host.engine is not None, f"init of node {node.node} failed"
        self.run()
        return plan

    def at_port(self, port: int) -> NodeId:
        return next((node.node for node in self if node.port == port), NodeId(0))

    # --- Links ---

    def is_cut(self, a: NodeId, b: NodeId) -> bool:
        return (a, b) in self.cuts

    def cut(self, a: Node, b: Node) -> None:
        self.cuts |= {(a.node, b.node), (b.node, a.node)}

    def isolate(self, node: Node) -> None:
        for other in self:
            if other is not node:
                self.cut(node, other)

    def heal(self) -> None:
        self.cuts.clear()

    def post(self, origin: Node, target: NodeId, function: Callable[[Node], None]) -> None:
        self.mail.append((origin.node, target, function))

    def call(self, call: Call) -> None:
        self.calls.append(call)
        if self.hold_calls(call):
            self.held.append(call)
        else:
            self.let_go(call)

    def let_go(self, call: Call) -> None:
        """The request sets out."""
        target = self.nodes.get(call.target)
        if target is None or target.host is None or self.is_cut(call.origin.node, call.target):
            refused = Unavailable(f"node {call.target} is not connected")
            call.origin.scheduler.call_soon(lambda: call.answer(refused))
            return

        def answer(reply: bytes) -> None:
            self.answer_bytes_max = max(self.answer_bytes_max, len(reply))
            if not self.lose_answers(call):
                self.post(target, call.origin.node, lambda _: call.answer(reply))

        def arrive(peer: Node) -> None:
            if peer.host is not None:
                peer.host.on_request(call.origin.node, call.kind, call.payload, answer)

        self.post(call.origin, call.target, arrive)

    # --- Time ---

    def run(self) -> None:
        """Everything that can be done without time passing."""
        for _ in range(ROUNDS_MAX):
            moved = False
            for node in list(self):
                if node.host is None:
                    continue
                try:
                    while node.host is not None and node.scheduler.step():
                        moved = True
                except Ended:
                    node.crash()
            if self.mail:
                origin, target, function = self.mail.popleft()
                moved = True
                peer = self.nodes.get(target)
                if peer is not None and peer.host is not None and not self.is_cut(origin, target):
                    try:
                        function(peer)
                    except Ended:
                        peer.crash()
            if not moved:
                return
        raise AssertionError("the nodes do not come to rest")

    def tick(self, count: int = 1) -> None:
        """Time passes, one tick after the other."""
        for _ in range(count):
            for node in self:
                node.clock.advance_ns(self.settings.tick_ns)
            for node in list(self):
                if node.host is not None and node.host.engine is not None:
                    try:
                        node.host.engine.tick()
                    except Ended:
                        node.crash()
            for call in self.calls:
                if not call.over and call.deadline_ns <= call.origin.clock.monotonic_ns():
                    call.answer(OutcomeUnknown(f"node {call.target} did not answer"))
            self.calls = [call for call in self.calls if not call.over]
            self.run()

    def until(self, condition: Callable[[], bool], what: str, ticks: int = 200) -> None:
        """Ticks until `condition` holds."""
        for _ in range(ticks):
            if condition():
                return
            self.tick()
        raise AssertionError(f"waited {ticks} ticks for {what}")

    def lead(self, shard: ShardId = SHARD) -> Node:
        """The node that leads the shard, once the leader has committed in its term."""

        def leader() -> Node | None:
            leading = [node for node in self if node.host is not None and node.leads(shard)]
            newest = max(leading, key=lambda node: node.replica(shard).raft.term, default=None)
            return newest if newest is not None and newest.replica(shard).raft.committed_in_own_term() else None

        self.until(lambda: leader() is not None, f"a leader of shard {shard}")
        found = leader()
        assert found is not None
        return found

    def make_leader(self, node: Node, shard: ShardId = SHARD) -> Node:
        """Hands leadership of the shard to `node`."""
        leader = self.lead(shard)
        if leader is not node:
            leader.engine.transfer(leader.replica(shard), node.replica(shard).replica_id)
            self.run()
        self.until(
            lambda: node.leads(shard) and node.replica(shard).raft.committed_in_own_term(), f"{node.node} to lead"
        )
        return node

    def level(self, shard: ShardId = SHARD) -> bool:
        """Whether all running replicas of the shard hold the same state."""
        states = set()
        for node in self:
            replica = node.engine.local(shard) if node.host is not None and node.host.engine is not None else None
            if replica is not None:
                if replica.machine is None or replica.stopped:
                    return False
                states.add((replica.machine.applied_index, replica.machine.state_hash))
        return len(states) == 1

    # --- Clients ---

    def ask(
        self,
        node: Node,
        operation: Operation,
        *,
        timeout_ns: int = TIMEOUT_NS,
        stamp: SessionStamp | None = None,
        consistency: Consistency = Consistency.LINEARIZABLE,
        ordered: bool = False,
        shard: ShardId | None = None,
        run: bool = True,
    ) -> Asked:
        """Submits one request at `node`."""
        key = getattr(operation, "key", None)
        slot = slot_of(key) if key is not None and shard is None else Slot(-1)
        deadline_ns = node.clock.monotonic_ns() + timeout_ns
        request = Request(
            object(),
            operation,
            slot,
            deadline_ns,
            shard=shard,
            stamp=stamp,
            consistency=consistency,
            ordered=ordered,
        )
        asked = Asked(request)
        assert node.host is not None, f"node {node.node} is down"
        node.host.submit([request], asked)
        if run:
            self.run()
        return asked

    def put(self, node: Node, key: bytes, value: bytes = b"v", **options: object) -> Asked:
        return self.ask(node, Put(key, value), **options)  # type: ignore[arg-type]

    def get(self, node: Node, key: bytes, **options: object) -> Asked:
        return self.ask(node, Get(key), **options)  # type: ignore[arg-type]


@contextlib.contextmanager
def at_end_nothing_in_flight(nodes: Nodes) -> Iterator[None]:
    """Whatever happened inside: in the end every request was answered and nothing is counted any more."""
    yield
    for node in nodes:
        if node.host is not None and node.host.engine is not None:
            router = node.engine.router
            assert (0, 0) == (router.in_flight, router.in_flight_bytes), f"node {node.node} leaks"


def replica_ids(nodes: Nodes, shard: ShardId = SHARD) -> dict[NodeId, ReplicaId]:
    """Where the replicas of the shard are, by the newest directory."""
    directory = max((node.engine.directory for node in nodes if node.host and node.host.engine), key=lambda d: d.epoch)
    return {placed.node: placed.replica for placed in directory.shards[shard].replicas}


def administer(nodes: Nodes, call: Coroutine[object, object, Result], *, ticks: int = 400) -> Result:
    """Runs an operator's call to its end, while time passes as it needs."""

    async def drive() -> Result:
        task = asyncio.ensure_future(call)
        for _ in range(ticks):
            for _ in range(50):
                nodes.run()
                await asyncio.sleep(0)
                if task.done():
                    return task.result()
            nodes.tick()
        task.cancel()
        raise AssertionError("the call does not end")

    return asyncio.run(drive())


def change(
    nodes: Nodes, asked: Node, action: str, node: Node, target: Node | None = None, shard: ShardId = SHARD
) -> str:
    """Asks `asked` for a change of replicas; what it says."""
    assert asked.host is not None
    to = target.node if target is not None else None
    return administer(nodes, asked.host.administration.change_replicas(shard, action=action, node=node.node, target=to))


def join(nodes: Nodes, node: Node, through: Node) -> None:
    """Takes a new node in."""
    assert through.host is not None
    administer(nodes, through.host.administration.node_join(node.address))


def settled(nodes: Nodes, asked: Node, shard: ShardId = SHARD) -> bool:
    """Whether no change is in progress, as `asked` knows."""
    return asked.engine.directory.shards[shard].change is None


def voters(node: Node, shard: ShardId = SHARD) -> set[NodeId]:
    """The nodes whose replicas vote, by the group's own log."""
    found = {node.engine.node_of(replica) for replica in node.replica(shard).raft.configuration.voters}
    return {each for each in found if each is not None}
