"""The directory: who is in the cluster, which shard owns which slots, and where its replicas are.

It is *one* document under one key of the catalog (shard 0), so every change of it is one compare-and-swap and every
node sees either all of a change or nothing. Its epoch is the version of that key: each change adds one.

Rules of this file:
- pure: documents in, documents out; a change that must not happen raises `PreconditionFailed` and says why;
- a `ReplicaId` is taken from `next_replica` and never returns, not even when its change is given up;
- the directory is a *directory*: members of a group are what the group's own log says, and slot ownership is what the
  shard's own state machine says. The directory says what should become so (`change`), and where to look.

Caveats: the document must fit in one value (`value_bytes_max`): some 3,000 shards of three replicas at 1 MiB.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

from raftcache.errors import InvalidRequest, PreconditionFailed, UnsupportedVersion
from raftcache.ids import SHARDS_MAX, ClusterId, NodeId, ReplicaId, ShardId, Slot
from raftcache.kv.slots import SLOT_COUNT

DIRECTORY_KEY = b"directory"
FORMAT = 1
VOTERS_MAX = 7
"""More voters add latency and no safety that an operator can use; etcd advises at most 7."""
CATALOG_VOTERS = 3


@dataclass(slots=True, frozen=True)
class DirectoryNode:
    """Where a node was last known to be. Addresses are hints: the handshake proves who answers."""

    node: NodeId
    name: str
    peer_address: str
    client_address: str
    admin_address: str


@dataclass(slots=True, frozen=True)
class DirectoryReplica:
    """A replica's place. `membership`: `voter`, `learner`, or `joining` (allocated; not yet in the group's log)."""

    replica: ReplicaId
    node: NodeId
    membership: str


@dataclass(slots=True, frozen=True)
class ReplicaChange:
    """The one membership change in progress in a shard; the shard's leader carries it out and then clears it."""

    action: str
    """`add`, `remove`, `move`, `promote`; or `cancel`: whatever brings `incoming` is given up, if it is not too late."""
    incoming: ReplicaId = ReplicaId(0)
    """Becomes a voter (0 = none)."""
    outgoing: ReplicaId = ReplicaId(0)
    """Leaves the group (0 = none)."""

    def describe(self) -> str:
        """In words, for operators."""
        if self.action == "cancel":
            return f"cancel: replica {self.incoming} is not to come after all"
        parts = [self.action]
        if self.incoming:
            parts.append(f"replica {self.incoming} comes")
        if self.outgoing:
            parts.append(f"replica {self.outgoing} goes")
        return ", ".join(parts)


@dataclass(slots=True, frozen=True)
class DirectoryShard:
    """One shard: the slot ranges `[lo, hi)` it owns (none for the catalog), its replicas in id order, its change."""

    shard: ShardId
    ranges: tuple[tuple[Slot, Slot], ...]
    replicas: tuple[DirectoryReplica, ...]
    change: ReplicaChange | None = None

    def on_node(self, node: NodeId) -> DirectoryReplica | None:
        return next((replica for replica in self.replicas if replica.node == node), None)

    def replica(self, replica_id: ReplicaId) -> DirectoryReplica | None:
        return next((replica for replica in self.replicas if replica.replica == replica_id), None)

    def voters(self) -> tuple[DirectoryReplica, ...]:
        return tuple(replica for replica in self.replicas if replica.membership == "voter")


@dataclass(slots=True, frozen=True)
class Directory:
    """The document. `epoch` is not stored in it: it is the version of the key that holds it (1 at `init`)."""

    cluster: ClusterId
    epoch: int
    nodes: dict[NodeId, DirectoryNode] = field(default_factory=dict)
    shards: dict[ShardId, DirectoryShard] = field(default_factory=dict)
    next_replica: int = 1
    session_limits: dict[str, int] = field(default_factory=dict)
    """`KvLimits`' limits of sessions, which decide state and so must be the same wherever a shard is created: those of
    the node that made the cluster."""

    def node_of(self, replica_id: ReplicaId) -> NodeId | None:
        for shard in self.shards.values():
            found = shard.replica(replica_id)
            if found is not None:
                return found.node
        return None

    def slot_table(self) -> list[ShardId]:
        """The owner of each of the 16384 slots, by index; -1 where nobody owns it."""
        table = [ShardId(-1)] * SLOT_COUNT
        for shard in self.shards.values():
            for lo, hi in shard.ranges:
                table[lo:hi] = [shard.shard] * (hi - lo)
        return table

    def encode(self) -> bytes:
        document = {
            "format": FORMAT,
            "cluster": str(self.cluster),
            "next_replica": self.next_replica,
            "session_limits": self.session_limits,
            "nodes": [asdict(self.nodes[node]) | {"node": str(node)} for node in sorted(self.nodes)],
            "shards": [_encode_shard(self.shards[shard]) for shard in sorted(self.shards)],
        }
        return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()

    @staticmethod
    def decode(data: bytes, epoch: int) -> "Directory":
        """Raises: `UnsupportedVersion` for a document that a newer release wrote."""
        document = json.loads(data)
        if document["format"] > FORMAT:
            raise UnsupportedVersion(
                f"the catalog's directory has format {document['format']}, this release reads up to {FORMAT}: "
                "upgrade this node"
            )
        nodes = [DirectoryNode(**(entry | {"node": NodeId(int(entry["node"]))})) for entry in document["nodes"]]
        shards = [_decode_shard(entry) for entry in document["shards"]]
        return Directory(
            cluster=ClusterId(int(document["cluster"])),
            epoch=epoch,
            nodes={node.node: node for node in nodes},
            shards={shard.shard: shard for shard in shards},
            next_replica=document["next_replica"],
            session_limits=document["session_limits"],
        )


def _encode_shard(shard: DirectoryShard) -> dict[str, Any]:
    return {
        "shard": shard.shard,
        "ranges": [list(pair) for pair in shard.ranges],
        "replicas": [asdict(replica) | {"node": str(replica.node)} for replica in shard.replicas],
        "change": None if shard.change is None else asdict(shard.change),
    }


def _decode_shard(entry: dict[str, Any]) -> DirectoryShard:
    return DirectoryShard(
        shard=ShardId(entry["shard"]),
        ranges=tuple((Slot(lo), Slot(hi)) for lo, hi in entry["ranges"]),
        replicas=tuple(
            DirectoryReplica(ReplicaId(r["replica"]), NodeId(int(r["node"])), r["membership"])
            for r in entry["replicas"]
        ),
        change=None if entry["change"] is None else ReplicaChange(**entry["change"]),
    )


# --- Changes of the document ---------------------------------------------------------------------------------------


def split_slots(shards: int) -> list[tuple[Slot, Slot]]:
    """`shards` contiguous ranges `[lo, hi)` that differ by at most one slot and cover all 16384."""
    bounds = [SLOT_COUNT * i // shards for i in range(shards + 1)]
    return [(Slot(lo), Slot(hi)) for lo, hi in pairwise(bounds)]


def first_directory(
    cluster: ClusterId, nodes: list[DirectoryNode], shards: int, session_limits: dict[str, int] | None = None
) -> Directory:
    """The plan of `init`: the catalog and `shards` shards, each with up to three voters, spread round-robin.

    Raises: `InvalidRequest` where the number of shards or nodes makes no sense.
    """
    if not 1 <= shards <= SHARDS_MAX:
        raise InvalidRequest(f"a cluster has 1 to {SHARDS_MAX} shards, not {shards}")
    if not nodes:
        raise InvalidRequest("init needs at least one node")
    if len({node.node for node in nodes}) != len(nodes):
        raise InvalidRequest("init was given the same node twice: name each node's peer address once")
    ordered = sorted(nodes, key=lambda node: node.node)
    voters = min(CATALOG_VOTERS, len(ordered))
    next_replica = 1
    placed: dict[ShardId, DirectoryShard] = {}
    for number, ranges in enumerate([(), *[(pair,) for pair in split_slots(shards)]]):
        members = []
        for k in range(voters):
            node = ordered[(number + k) % len(ordered)]
            members.append(DirectoryReplica(ReplicaId(next_replica), node.node, "voter"))
            next_replica += 1
        placed[ShardId(number)] = DirectoryShard(ShardId(number), ranges, tuple(members))
    return Directory(cluster, 1, {node.node: node for node in ordered}, placed, next_replica, session_limits or {})


def with_node(directory: Directory, node: DirectoryNode) -> Directory:
    """Adds a node, or brings its addresses up to date."""
    return replace(directory, nodes=directory.nodes | {node.node: node})


def without_node(directory: Directory, node: NodeId) -> Directory:
    """Forgets a node that holds nothing. Raises: `PreconditionFailed` while it holds replicas or is to receive one."""
    if node not in directory.nodes:
        return directory
    holding = [shard for shard in directory.shards.values() if shard.on_node(node)]
    if holding:
        moves = "\n".join(f"  raftcache shard replicas move {s.shard} {node} TARGET" for s in holding)
        raise PreconditionFailed(
            f"node {node} still holds replicas of {len(holding)} shards; move or remove them first:\n{moves}"
        )
    return replace(directory, nodes={n: d for n, d in directory.nodes.items() if n != node})


def with_change(
    directory: Directory, shard_id: ShardId, *, action: str, node: NodeId, target: NodeId | None
) -> Directory:
    """Writes down a membership change for the shard's leader to carry out; the same document where it is done already.

    Raises: `InvalidRequest` (unknown shard, node or action), `PreconditionFailed` (another change is in progress, ...).
    """
    shard = directory.shards.get(shard_id)
    if shard is None:
        raise InvalidRequest(f"there is no shard {shard_id}; `raftcache shard list` names them")
    for named in (node, target):
        if named is not None and named not in directory.nodes:
            raise InvalidRequest(f"node {named} is not in the cluster; `raftcache node list` names its nodes")
    incoming, outgoing = _ends(shard, action, node, target)
    if incoming is None and outgoing is None:
        return directory
    if action == "remove" and shard.change is not None and outgoing is not None:
        if outgoing.replica == shard.change.incoming:
            return _with_cancel(directory, shard, shard.change)
    next_replica = directory.next_replica
    replicas = shard.replicas
    incoming_id = ReplicaId(0)
    if incoming is not None:
        present = shard.on_node(incoming)
        if present is None:
            present = DirectoryReplica(ReplicaId(next_replica), incoming, "joining")
            next_replica += 1
            replicas = (*replicas, present)
        incoming_id = present.replica
    change = ReplicaChange(action, incoming_id, outgoing.replica if outgoing else ReplicaId(0))
    if shard.change is not None:
        if (shard.change.action, shard.change.incoming, shard.change.outgoing) == (
            action,
            incoming_id,
            change.outgoing,
        ):
            return directory
        raise PreconditionFailed(
            f"shard {shard_id} has a change in progress ({shard.change.describe()}); wait for it (`raftcache shard list` "
            "shows what it waits for), or `remove` the replica that comes, which cancels it"
        )
    changed = replace(shard, replicas=replicas, change=change)
    return replace(directory, shards=directory.shards | {shard_id: changed}, next_replica=next_replica)


def _with_cancel(directory: Directory, shard: DirectoryShard, change: ReplicaChange) -> Directory:
    """To remove the replica that a change brings is to give that change up, as when its node never comes.

    The shard's leader decides what that means: a replica that is a voter already stays, and the change is finished.
    """
    if change.action == "cancel":
        return directory
    changed = replace(shard, change=replace(change, action="cancel"))
    return replace(directory, shards=directory.shards | {shard.shard: changed})


def _ends(
    shard: DirectoryShard, action: str, node: NodeId, target: NodeId | None
) -> tuple[NodeId | None, DirectoryReplica | None]:
    """Which node is to receive a voter and which replica is to leave; (None, None) where nothing is left to do."""
    here = shard.on_node(node)
    match action:
        case "add" | "promote":
            if action == "promote" and here is None:
                raise PreconditionFailed(f"node {node} has no replica of shard {shard.shard} to promote; add one")
            if here is not None and here.membership == "voter" and shard.change is None:
                return None, None
            if len(shard.voters()) >= VOTERS_MAX:
                raise PreconditionFailed(f"shard {shard.shard} has {VOTERS_MAX} voters, the most it may have")
            return node, None
        case "remove":
            if here is None:
                return None, None
            if len(shard.voters()) == 1 and here.membership == "voter":
                raise PreconditionFailed(
                    f"replica {here.replica} is the only voter of shard {shard.shard}; add one first"
                )
            return None, here
        case "move":
            if target is None or target == node:
                raise InvalidRequest("a move needs a target node other than the source")
            there = shard.on_node(target)
            if here is None:
                if there is not None and there.membership == "voter":
                    return None, None
                raise PreconditionFailed(f"node {node} has no replica of shard {shard.shard} to move")
            if there is not None and shard.change is None:
                raise PreconditionFailed(
                    f"node {target} already has a replica of shard {shard.shard}: move to a node without one, or only remove "
                    f"the one on node {node}"
                )
            return target, here
        case _:
            raise InvalidRequest(f"unknown action {action!r}: add, remove, move or promote")


def with_change_done(
    directory: Directory, shard_id: ShardId, *, voters: set[ReplicaId], learners: set[ReplicaId]
) -> Directory:
    """Clears the shard's change and records the members that its log now has. Raises nothing; idempotent."""
    shard = directory.shards[shard_id]
    members = tuple(
        replace(replica, membership="voter" if replica.replica in voters else "learner")
        for replica in shard.replicas
        if replica.replica in voters or replica.replica in learners
    )
    return replace(directory, shards=directory.shards | {shard_id: replace(shard, replicas=members, change=None)})
