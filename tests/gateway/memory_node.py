"""A node in memory, as the gateway sees one: real state machines, no log, no network.

Replies come at once, or, with `hold`, when `release` says so: what is in flight can then be looked at.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from raftcache.clock import Clock, ManualClock
from raftcache.edge.front import NO_DEADLINE, Answer, Call, Refusal
from raftcache.errors import DeadlineExpired, RaftCacheError, WrongShard, error_of
from raftcache.gateway.gateway import Gateway, GatewaySettings
from raftcache.gateway.routes import Hint, NodeRoute, RoutingTable, ShardRoute
from raftcache.ids import ClusterId, Index, NodeId, ReplicaId, ShardId, Slot, Term
from raftcache.kv.codec import encode_batch
from raftcache.kv.limits import KvLimits
from raftcache.kv.machine import Machine
from raftcache.kv.operations import Command, Failure, Get, Result, Scan
from raftcache.kv.records import MemoryRecords
from raftcache.kv.slots import SLOT_COUNT
from raftcache.node.api import ClusterInfo, Consistency, NodeInfo, ReplicaInfo, Reply, ReplySink, Request, ShardInfo
from raftcache.node.directory import split_slots

CLUSTER = ClusterId(7_000_000_000_000_000_001)
THIS_NODE = NodeId(11)
OTHER_NODE = NodeId(22)
OTHER_ADDRESS = "127.0.0.1:22022"
EPOCH = 5


class MemoryNode:
    """`Submit` and `Routes` over one state machine for each of `shards` shards, numbered from 1."""

    def __init__(self, *, shards: int = 3, clock: Clock | None = None, limits: KvLimits | None = None) -> None:
        self.clock = clock or ManualClock(monotonic_ns=1_000_000_000)
        self.limits = limits or KvLimits()
        self.ranges = split_slots(shards)
        self.machines: dict[ShardId, Machine] = {}
        for number, pair in enumerate(self.ranges, 1):
            records = MemoryRecords()
            Machine.create(
                records,
                shard=ShardId(number),
                ranges=(pair,),
                epoch=EPOCH,
                index=Index(1),
                term=Term(1),
                configuration=b"",
            )
            self.machines[ShardId(number)] = Machine(records, self.limits)
        self.submitted: list[list[Request]] = []
        """Every list that was handed over."""
        self.hold = False
        self.held: list[tuple[Request, ReplySink]] = []
        self.fail: Callable[[Request], RaftCacheError | None] = lambda _: None
        """What to answer in place of a result."""
        self.led_elsewhere: set[ShardId] = set()

    @property
    def requests(self) -> list[Request]:
        """All requests that were handed over."""
        return [request for requests in self.submitted for request in requests]

    # --- Submit -------------------------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request], sink: ReplySink) -> None:
        self.submitted.append(list(requests))
        self.held += [(request, sink) for request in requests]
        if not self.hold:
            self.release()

    def release(self, count: int | None = None) -> None:
        """Answers what is held, the first `count` of it, in order."""
        now, self.held = self.held[:count], [] if count is None else self.held[count:]
        by_sink: dict[ReplySink, list[Reply]] = {}
        for request, sink in now:
            by_sink.setdefault(sink, []).append(self.answer(request))
        for sink, replies in by_sink.items():
            sink.deliver(replies)

    def answer(self, request: Request) -> Reply:
        """Carries one request out."""
        error = self.fail(request)
        if error is None and request.deadline_ns <= self.clock.monotonic_ns():
            error = DeadlineExpired("too late")
        shard = request.shard if request.shard is not None else self.shard_of(request.slot)
        machine = self.machines.get(shard)
        if error is None and machine is None:
            error = WrongShard(f"there is no shard {shard}")
        if error is not None:
            return Reply(request.token, error, shard)
        assert machine is not None
        result: Result | RaftCacheError
        operation = request.operation
        if isinstance(operation, (Get, Scan)):
            result = machine.read(operation, request.slot)
        else:
            data = encode_batch([Command(operation, request.slot, request.stamp)], proposed_ms=0)
            (result,) = machine.apply(Index(machine.applied_index + 1), Term(1), data)
        if isinstance(result, Failure):
            result = error_of(result.reason, result.message)
        age_ms = 40 if request.consistency is Consistency.STALE else 0
        return Reply(request.token, result, shard, machine.applied_index, age_ms)

    def shard_of(self, slot: Slot) -> ShardId:
        return next(ShardId(number) for number, (lo, hi) in enumerate(self.ranges, 1) if lo <= slot < hi)

    # --- Routes -------------------------------------------------------------------------------------------------------

    def table(self) -> RoutingTable:
        return RoutingTable(
            EPOCH,
            CLUSTER,
            THIS_NODE,
            tuple(
                ShardRoute(
                    ShardId(number),
                    (pair,),
                    OTHER_NODE if number in self.led_elsewhere else THIS_NODE,
                    (THIS_NODE, OTHER_NODE),
                )
                for number, pair in enumerate(self.ranges, 1)
            ),
            (NodeRoute(THIS_NODE, "one", "127.0.0.1:11011"), NodeRoute(OTHER_NODE, "two", OTHER_ADDRESS)),
        )

    def slot_owners(self) -> Sequence[ShardId]:
        return [self.shard_of(Slot(slot)) for slot in range(SLOT_COUNT)]

    def hint(self, shard: ShardId) -> Hint | None:
        return Hint(OTHER_ADDRESS, EPOCH) if shard in self.led_elsewhere else None

    def gateway(self, settings: GatewaySettings | None = None) -> Gateway:
        """A gateway over this node."""
        return Gateway(self, self, self.clock, self.limits, settings or GatewaySettings())


@contextmanager
def slow_key(node: MemoryNode, key: bytes) -> Iterator[None]:
    """What is asked of `key` meanwhile is answered at the end."""
    submit, waiting = node.submit, list[tuple[Request, ReplySink]]()

    def partly(requests: Sequence[Request], sink: ReplySink) -> None:
        waiting.extend((request, sink) for request in requests if getattr(request.operation, "key", None) == key)
        rest = [request for request in requests if getattr(request.operation, "key", None) != key]
        if rest:
            submit(rest, sink)

    node.submit = partly  # type: ignore[method-assign]
    yield
    node.submit = submit  # type: ignore[method-assign]
    for request, sink in waiting:
        submit([request], sink)


class NobodyPeer:
    """A caller of whom nothing is known."""

    address = "nowhere"
    identities: Sequence[str] = ()
    metadata: dict[str, str | bytes] = {}  # noqa: RUF012 # never written


class CollectingSink:
    """A front that keeps the answers."""

    def __init__(self) -> None:
        self.answers: dict[object, bytes | Refusal] = {}
        self.pieces: list[int] = []
        """How many answers came at once, each time."""

    def deliver(self, answers: list[Answer]) -> None:
        self.pieces.append(len(answers))
        for call, answer in answers:
            assert call.token not in self.answers, f"two answers to {call.token!r}"
            self.answers[call.token] = answer


def call_of(method: str, message: bytes, token: object = None, *, deadline_ns: int = NO_DEADLINE) -> Call:
    """A call of the key-value service."""
    return Call(f"/raftcache.v1.KvService/{method}", message, deadline_ns, NobodyPeer(), token)


class MemoryAdministration:
    """`Administration` that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.error: RaftCacheError | None = None

    def _ask(self, *question: object) -> None:
        self.asked.append(question)
        if self.error is not None:
            raise self.error

    async def init(self, peer_addresses: list[str], shards: int) -> ClusterId:
        self._ask("init", peer_addresses, shards)
        return CLUSTER

    async def cluster(self) -> ClusterInfo:
        self._ask("cluster")
        node = NodeInfo(THIS_NODE, "one", "p:1", "c:1", "a:1", True, "0.1.0", 1, 1, True)
        replicas = [
            ReplicaInfo(ReplicaId(4), THIS_NODE, "voter", "leader", Index(9), 0),
            ReplicaInfo(ReplicaId(5), OTHER_NODE, "learner"),
        ]
        shard = ShardInfo(
            ShardId(1), [(0, 16384)], ReplicaId(4), THIS_NODE, Term(3), Index(9), Index(8), 0, replicas, "waits", 12
        )
        return ClusterInfo(CLUSTER, EPOCH, [node], [shard], 0, False, ["one voter"])

    async def node_join(self, peer_address: str) -> NodeId:
        self._ask("node_join", peer_address)
        return OTHER_NODE

    async def node_remove(self, node: NodeId, *, dry_run: bool = False) -> str:
        self._ask("node_remove", node, dry_run)
        return "removed"

    async def change_replicas(
        self, shard: ShardId, *, action: str, node: NodeId, target: NodeId | None = None, dry_run: bool = False
    ) -> str:
        self._ask("change_replicas", shard, action, node, target, dry_run)
        return "changed"

    async def transfer_leader(self, shard: ShardId, target: NodeId | None) -> str:
        self._ask("transfer_leader", shard, target)
        return "transferred"

    def locate(self, key: bytes) -> tuple[Slot, ShardId]:
        self._ask("locate", key)
        return Slot(12182), ShardId(3)
