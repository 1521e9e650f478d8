"""Where things are, as this node knows it: slots, shards, replicas, and who leads.

    directory ──► slot -> shard -> replicas -> nodes            exact, perhaps old
    own replicas ──► who leads the shards that are here         what Raft knows
    hints ──► who leads the others                              what other nodes said last

Rules of this file:
- a leader is *known* (its own replica says so, or another node named it) or it is not; nothing here guesses;
- where nobody is known, a node with a replica is asked (`KIND_LEADER`), one question per shard at a time;
- what is wrong here costs a refusal and another question, never more: the truth is in the groups.
"""

import random as random_module
import struct
from collections.abc import Callable, Sequence
from typing import Protocol

from raftcache.clock import Clock
from raftcache.errors import RaftCacheError
from raftcache.ids import NO_REPLICA, NodeId, ReplicaId, ShardId
from raftcache.node.directory import Directory
from raftcache.node.kinds import KIND_LEADER
from raftcache.node.replica import Replica
from raftcache.node.settings import MS

ASK_LEADER_TIMEOUT_NS = 1_000 * MS
"""An election timeout: whoever does not answer within it is as good as down, and the next one is asked."""

_SHARD = struct.Struct("<I")
_NODE = struct.Struct("<Q")


class Asking(Protocol):
    """What is needed of the network."""

    def request(
        self,
        node: NodeId,
        kind: int,
        payload: bytes,
        on_reply: Callable[[bytes | RaftCacheError], None],
        deadline_ns: int,
    ) -> None: ...
    def connected(self, node: NodeId) -> bool: ...
    def resting(self, node: NodeId) -> bool: ...


class KnownPlaces:
    """See the module. Implements the router's `Places`; everything runs on the loop."""

    def __init__(
        self,
        *,
        node: NodeId,
        directory: Directory,
        network: Asking,
        clock: Clock,
        random: random_module.Random,
        on_leader: Callable[[ShardId], None],
    ) -> None:
        """`on_leader`: another node said who leads the shard."""
        self.directory = directory
        self._node = node
        self._network = network
        self._clock = clock
        self._random = random
        self._on_leader = on_leader
        self._by_shard: dict[ShardId, Replica] = {}
        """The replicas of this node."""
        self._replica_nodes: dict[ReplicaId, NodeId] = {}
        """By the directory; for replicas that are newer than it, by where their messages came from."""
        self._slot_table: list[ShardId] = []
        self._hints: dict[ShardId, NodeId] = {}
        self._asking: set[ShardId] = set()
        self.adopt(directory)

    def adopt(self, directory: Directory) -> None:
        """A newer directory."""
        self.directory = directory
        self._slot_table = directory.slot_table()
        newer = {r: n for r, n in self._replica_nodes.items() if r >= directory.next_replica}
        listed = {placed.replica: placed.node for shard in directory.shards.values() for placed in shard.replicas}
        self._replica_nodes = newer | listed
        self._hints = {shard: node for shard, node in self._hints.items() if node in directory.nodes}

    # --- Replicas -----------------------------------------------------------------------------------------------------

    def house(self, replica: Replica) -> None:
        """The replica is here now, in place of any older one of its shard."""
        self._by_shard[replica.shard] = replica

    def evict(self, replica: Replica) -> None:
        """The replica is here no more."""
        if self._by_shard.get(replica.shard) is replica:
            del self._by_shard[replica.shard]

    def local(self, shard: ShardId) -> Replica | None:
        """This node's replica of the shard."""
        return self._by_shard.get(shard)

    def nodes(self) -> list[NodeId]:
        """All nodes that are known: by the directory, and (should that be lost) by where messages came from."""
        return sorted({*self.directory.nodes, *self._replica_nodes.values()})

    def node_of(self, replica_id: ReplicaId) -> NodeId | None:
        """Where a replica is."""
        return self._replica_nodes.get(replica_id)

    def comes_from(self, replica_id: ReplicaId, node: NodeId) -> bool:
        """Whether a message of that replica may come from that node. A replica never moves: its id ends with it."""
        return self._replica_nodes.setdefault(replica_id, node) == node

    def owner(self, slot: int) -> ShardId:
        """The shard that owns the slot; -1 where nobody does."""
        return self._slot_table[slot]

    def slot_owners(self) -> Sequence[ShardId]:
        """`owner` of every slot."""
        return self._slot_table

    def address(self, node: NodeId) -> str:
        """The node's address for clients; empty where it is not known."""
        found = self.directory.nodes.get(node)
        return found.client_address if found is not None else ""

    def nearest_node(self, shard: ShardId) -> NodeId | None:
        """A connected node with a replica of the shard; by chance, so that load and bad luck are spread."""
        found = self.directory.shards.get(shard)
        if found is None:
            return None
        nodes = [r.node for r in found.replicas if r.node != self._node and r.membership == "voter"]
        reachable = [node for node in nodes if self._network.connected(node)]
        return self._random.choice(reachable or nodes) if nodes else None

    # --- Leaders ------------------------------------------------------------------------------------------------------

    def leader_node(self, shard: ShardId) -> NodeId | None:
        """The other node that is known to lead the shard; None where it is not known, or is this one."""
        replica = self._by_shard.get(shard)
        if replica is not None and not replica.stopped and replica.raft.leader != NO_REPLICA:
            node = self._replica_nodes.get(replica.raft.leader)
            return node if node != self._node else None
        return self._hints.get(shard)

    def known_leader(self, shard: ShardId) -> NodeId | None:
        """The node that is known to lead the shard, this one included."""
        replica = self._by_shard.get(shard)
        if replica is not None and replica.leads:
            return self._node
        return self.leader_node(shard)

    def resting(self, node: NodeId) -> bool:
        """Whether a request to `node` would be refused at once, because it was not reachable a moment ago."""
        return self._network.resting(node)

    def learned_leader(self, shard: ShardId, node: NodeId | None) -> None:
        """`node` leads the shard; None: whoever was taken for its leader is not, and somebody is asked."""
        if node is not None and node != self._node:
            self._hints[shard] = node
            return
        self._hints.pop(shard, None)
        self._ask(shard)

    def _ask(self, shard: ShardId) -> None:
        nearest = self.nearest_node(shard)
        if nearest is None or shard in self._asking:
            return
        self._asking.add(shard)

        def on_reply(payload: bytes | RaftCacheError) -> None:
            self._asking.discard(shard)
            if isinstance(payload, RaftCacheError) or len(payload) != _NODE.size:
                return
            (number,) = _NODE.unpack(payload)
            if number and number != self._node:
                self._hints[shard] = NodeId(number)
                self._on_leader(shard)

        deadline_ns = self._clock.monotonic_ns() + ASK_LEADER_TIMEOUT_NS
        self._network.request(nearest, KIND_LEADER, _SHARD.pack(shard), on_reply, deadline_ns)

    def on_asked(self, payload: bytes) -> bytes:
        """The answer to `KIND_LEADER`: the leader's node, 0 where it is not known here. Raises: `struct.error`."""
        (shard,) = _SHARD.unpack(payload)
        return _NODE.pack(self.known_leader(ShardId(shard)) or 0)
