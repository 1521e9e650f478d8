"""What a front hands to the node and what it gets back: lists of requests, lists of replies, nothing per operation.

Rules of this file:
- plain data; a front never sees a replica, a log or a shard map's inside;
- `submit` is synchronous and cheap, and never raises for an operating error: every request gets exactly one reply,
  now or later, through the sink it was submitted with;
- times are monotonic nanoseconds of the node's clock.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

from raftcache.errors import RaftCacheError
from raftcache.ids import ClusterId, Index, NodeId, ReplicaId, ShardId, Slot, Term
from raftcache.kv.operations import Operation, Result, SessionStamp
from raftcache.telemetry.tracing import Span


class Consistency(IntEnum):
    """How fresh a read must be."""

    LINEARIZABLE = 0
    """ReadIndex through the leader; the default."""
    STALE = 1
    """This node's own replica, if it has one (else the nearest one's), with applied index and age in the reply."""


@dataclass(slots=True, eq=False)
class AnswerRoom:
    """What may still be read for one answer to another node, shared by all requests of that answer."""

    bytes_left: int
    crowded: Callable[[], bool]
    """Whether too many answers wait for that node to take them."""

    @property
    def is_left(self) -> bool:
        return self.bytes_left > 0 and not self.crowded()


@dataclass(slots=True)
class Request:
    """One operation on its way to a shard."""

    token: Any
    """The front's own; returned untouched in the reply."""
    operation: Operation
    slot: Slot
    """-1 where the request names a `shard` instead (sessions, per-shard scans)."""
    deadline_ns: int
    """Work whose deadline has passed is not proposed."""
    shard: ShardId | None = None
    stamp: SessionStamp | None = None
    consistency: Consistency = Consistency.LINEARIZABLE
    forwarded: bool = False
    """Came from another node; is not forwarded again."""
    room: AnswerRoom | None = None
    """Of what was forwarded: where none is left a read is not done, and is asked for again."""
    ordered: bool = False
    """Part of a stream whose order counts: the node does not try it again by itself, which could overtake."""
    cost: int = 0
    """Bytes it holds in memory, roughly; filled by the node."""
    reply_cost: int = 0
    """Bytes that the reply to a write may hold; filled by the node."""
    give_up_ns: int = 0
    """Until when the node looks for a leader by itself; filled by the node."""
    span: Span | None = None
    """Its gateway span, when tracing is on."""
    answered: bool = False
    """Set by the node with the one reply; a late result is then dropped."""

    @property
    def has_room(self) -> bool:
        """Whether there is room for what a read brings."""
        return self.room is None or self.room.is_left

    def take_room(self, size: int) -> None:
        """A read brought so many bytes."""
        if self.room is not None:
            self.room.bytes_left -= size


@dataclass(slots=True)
class Reply:
    """The answer to one request: a result, or an error that says whether it is definite."""

    token: Any
    result: Result | RaftCacheError
    shard: ShardId = ShardId(-1)
    index: Index = Index(0)
    """Log index of a write; read index of a linearizable read; applied index of a stale one."""
    age_ms: int = 0
    """Of a stale read: the time since this replica last knew itself level with a leader."""


class ReplySink(Protocol):
    """Where replies go; called on the loop, with as many replies as one turn produced."""

    def deliver(self, replies: list[Reply]) -> None: ...


class Submit(Protocol):
    """The node as a front sees it."""

    def submit(self, requests: Sequence[Request], sink: ReplySink) -> None: ...


# --- The cluster as operators see it ------------------------------------------------------------------------------


@dataclass(slots=True)
class ReplicaInfo:
    """One replica of a shard, as its leader (or, without one, the answering node) knows it."""

    replica: ReplicaId
    node: NodeId
    membership: str
    """`voter`, `learner`, `joining` (allocated, not yet a learner) or `leaving`."""
    role: str = "unknown"
    """`leader`, `follower`, `candidate`, `pre-candidate`, or `unknown` (no answer)."""
    match_index: Index = Index(0)
    lag_entries: int = -1
    """Entries behind the leader's last one; -1 = unknown."""
    votes: bool = False
    """Whether its vote counts now, be it on its way out."""


@dataclass(slots=True)
class ShardInfo:
    """One shard. `failure_tolerance` is how many more of its voters may fail before it stops."""

    shard: ShardId
    ranges: list[tuple[int, int]]
    leader: ReplicaId
    leader_node: NodeId
    term: Term
    commit_index: Index
    applied_index: Index
    failure_tolerance: int
    replicas: list[ReplicaInfo] = field(default_factory=list)
    change: str = ""
    """The membership change in progress and what it waits for, in words; empty = none."""
    keys: int = -1


@dataclass(slots=True)
class NodeInfo:
    """One node. Addresses are the advertised ones."""

    node: NodeId
    name: str
    peer_address: str
    client_address: str
    admin_address: str
    alive: bool
    version: str = ""
    replicas: int = 0
    leaders: int = 0
    catalog_voter: bool = False


@dataclass(slots=True)
class ClusterInfo:
    """The whole cluster. `failure_tolerance` is the smallest of its shards'."""

    cluster: ClusterId
    epoch: int
    nodes: list[NodeInfo] = field(default_factory=list)
    shards: list[ShardInfo] = field(default_factory=list)
    failure_tolerance: int = 0
    healthy: bool = False
    problems: list[str] = field(default_factory=list)


class Administration(Protocol):
    """What the admin service of every node can be asked. Any node answers; it asks the others itself.

    Raises: `PreconditionFailed` (with reason and failure tolerance before and after), `InvalidRequest`, `Unavailable`,
    `OutcomeUnknown`. Every call is idempotent: asked again, it reports the state it finds.
    With `dry_run` a change is checked and described, not made.
    """

    async def init(self, peer_addresses: list[str], shards: int) -> ClusterId: ...
    async def cluster(self) -> ClusterInfo: ...
    async def node_join(self, peer_address: str) -> NodeId: ...
    async def node_remove(self, node: NodeId, *, dry_run: bool = False) -> str: ...
    async def change_replicas(
        self, shard: ShardId, *, action: str, node: NodeId, target: NodeId | None = None, dry_run: bool = False
    ) -> str:
        """`action`: `add` (learner on `node`, then voter), `remove` (from `node`), `move` (`node` -> `target`), `promote`."""
        ...

    async def transfer_leader(self, shard: ShardId, target: NodeId | None) -> str: ...
    def locate(self, key: bytes) -> tuple[Slot, ShardId]: ...
