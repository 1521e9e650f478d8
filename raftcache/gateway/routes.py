"""What the gateway knows of the cluster's layout: a table for `ShardMap` and for scans, and hints for every reply.

The node implements `Routes` from its directory and from what its replicas know of their leaders. Both answers may be
old: the truth is in each shard's own state machine and log, and a wrong route ends in a definite error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from raftcache.ids import ClusterId, NodeId, ShardId
from raftcache.node.directory import Directory


class Hint(NamedTuple):
    """Where a shard's leader is, if it is another node than this."""

    leader_address: str
    """The client address of that node."""
    epoch: int
    """Of the directory that the address is from."""


Hints = Callable[[ShardId], Hint | None]
"""Where else a shard is led; None where it is led from here, or by nobody known."""


@dataclass(frozen=True, slots=True)
class ShardRoute:
    """One shard that owns slots."""

    shard: ShardId
    ranges: tuple[tuple[int, int], ...]
    """`[lo, hi)`."""
    leader_node: NodeId
    """0 = not known."""
    replica_nodes: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class NodeRoute:
    """One node."""

    node: NodeId
    name: str
    client_address: str


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """The layout at one moment. Before `init` it is empty, with epoch and cluster 0."""

    epoch: int
    cluster: ClusterId
    this_node: NodeId
    shards: tuple[ShardRoute, ...] = ()
    """In the order of their ids, without the catalog."""
    nodes: tuple[NodeRoute, ...] = ()
    """In the order of their ids."""


class Routes(Protocol):
    """The node's knowledge of the layout."""

    def table(self) -> RoutingTable: ...

    def slot_owners(self) -> Sequence[ShardId]:
        """The owner of each of the 16384 slots; -1 where nobody owns it. As old as the directory that it is from. Cheap."""
        ...

    def hint(self, shard: ShardId) -> Hint | None:
        """For the header of each reply: None where this node leads `shard`, or no leader is known. Cheap."""
        ...


class DirectoryRoutes:
    """`Routes` from the node's copy of the directory and what it knows of leaders."""

    def __init__(
        self,
        directory: Callable[[], Directory],
        slot_owners: Callable[[], Sequence[ShardId]],
        leader_node: Callable[[ShardId], NodeId | None],
        this_node: NodeId,
    ) -> None:
        self._directory = directory
        self._slot_owners = slot_owners
        self._leader_node = leader_node
        self._this_node = this_node

    def table(self) -> RoutingTable:
        """The table as of now."""
        directory = self._directory()
        shards = tuple(
            ShardRoute(
                shard.shard,
                shard.ranges,
                self._leader_node(shard.shard) or NodeId(0),
                tuple(replica.node for replica in shard.replicas if replica.membership != "joining"),
            )
            for _, shard in sorted(directory.shards.items())
            if shard.ranges
        )
        nodes = tuple(
            NodeRoute(node.node, node.name, node.client_address) for _, node in sorted(directory.nodes.items())
        )
        return RoutingTable(directory.epoch, directory.cluster, self._this_node, shards, nodes)

    def slot_owners(self) -> Sequence[ShardId]:
        """By the directory, as this node has it."""
        return self._slot_owners()

    def hint(self, shard: ShardId) -> Hint | None:
        """Where the leader is, if not here."""
        leader = self._leader_node(shard)
        if leader is None or leader == self._this_node:
            return None
        directory = self._directory()
        node = directory.nodes.get(leader)
        return None if node is None else Hint(node.client_address, directory.epoch)
