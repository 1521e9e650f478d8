"""What the client's methods return: plain frozen data, nothing of gRPC or protobuf.

Revisions count the mutating commands of one *shard*; those of different shards do not compare.
"""

from dataclasses import dataclass

from raftcache.kv.slots import slot_of


@dataclass(frozen=True, slots=True)
class Entry:
    """A key as it is stored."""

    key: bytes
    value: bytes
    """Empty where values were left out (`keys_only`)."""
    version: int
    """How often the key was written since it was created; 1 for a new key."""
    revision: int
    """The shard's revision at which the key was last written. Give it to `if_revision`."""
    create_revision: int
    """The shard's revision at which the key was created."""
    age: float = 0.0
    """Of a stale read: seconds since the replica that answered last knew itself level with a leader."""


@dataclass(frozen=True, slots=True)
class PutResult:
    """A key was written."""

    revision: int
    """The shard's revision after the write."""
    shard: int
    previous: Entry | None = None
    """What was stored before, if `return_previous` asked for it and there was anything."""


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """A key is gone."""

    deleted: bool
    """Whether there was a key to remove."""
    revision: int
    """The shard's revision after it."""
    shard: int
    previous: Entry | None = None
    """What was stored before, if `return_previous` asked for it and there was anything."""

    def __bool__(self) -> bool:
        return self.deleted


@dataclass(frozen=True, slots=True)
class CasResult:
    """A value was, or was not, the expected one."""

    succeeded: bool
    """Whether it was, and was replaced."""
    current: Entry | None
    """Where it was not: what is stored, None if nothing is."""
    revision: int
    """The shard's revision after it."""
    shard: int

    def __bool__(self) -> bool:
        return self.succeeded


@dataclass(frozen=True, slots=True)
class TxnResult:
    """A transaction ran."""

    succeeded: bool
    """True: all conditions held and `then` ran. False: `otherwise` ran."""
    results: "tuple[OperationValue, ...]"
    """One for each operation of the branch that ran."""
    revision: int
    """The shard's revision after it."""
    shard: int

    def __bool__(self) -> bool:
        return self.succeeded


OperationValue = Entry | PutResult | DeleteResult | CasResult | TxnResult | int | None
"""What one operation returns: a get `Entry | None`, an incr `int`."""


@dataclass(frozen=True, slots=True)
class Pong:
    """A node answered."""

    address: str
    """The one that was asked."""
    node: int
    """The id of the node that answered."""
    cluster: int
    """The cluster it belongs to; 0 if it is in none yet."""
    seconds: float
    """From request to answer, retries included."""


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """Where one shard is."""

    shard: int
    ranges: tuple[tuple[int, int], ...]
    """The slots it owns, as `[lo, hi)`."""
    leader: str
    """The client address of its leader, as far as the answering node knew; empty = not known."""
    replicas: tuple[str, ...]
    """The client addresses of all nodes that hold a replica."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """Where one node is."""

    node: int
    name: str
    address: str


@dataclass(frozen=True, slots=True)
class ShardMap:
    """The routing table as one node knows it."""

    epoch: int
    """Grows with every change of the table. Leaders change without a new epoch."""
    cluster: int
    shards: tuple[ShardInfo, ...]
    nodes: tuple[NodeInfo, ...]

    def shard_of(self, key: str | bytes) -> ShardInfo:
        """The shard that owns a key. Raises: `LookupError` if none does."""
        slot = slot_of(key.encode() if isinstance(key, str) else key)
        for shard in self.shards:
            if any(lo <= slot < hi for lo, hi in shard.ranges):
                return shard
        raise LookupError(f"no shard owns slot {slot}, in which {key!r} lies")
