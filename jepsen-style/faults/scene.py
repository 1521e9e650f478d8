"""What a nemesis acts on, and what it may ask: the cluster, the seed's dice, and a tally of what it did."""

import random
from collections import Counter
from dataclasses import dataclass, field

from faults.cluster import Cluster
from faults.network import Network
from faults.processes import Node


@dataclass(slots=True)
class Scene:
    """One run's stage."""

    cluster: Cluster
    dice: random.Random
    """Of the nemeses: clients and proxies have their own, so that they do not change each other's draws."""
    counts: Counter[str] = field(default_factory=Counter)
    """Kills, partitions, power cuts, ...: what the report shows."""
    damaged: set[str] = field(default_factory=set)
    """Nodes of which a file was damaged: they may refuse to start, or end when they find it."""
    problems: list[str] = field(default_factory=list)
    """What went wrong that no client could see: a node that does not come back, a change that never ends."""

    @property
    def network(self) -> Network:
        return self.cluster.network

    @property
    def nodes(self) -> list[Node]:
        return self.cluster.nodes

    @property
    def names(self) -> list[str]:
        return [node.name for node in self.nodes]

    @property
    def minority(self) -> int:
        """The most nodes that may fail while the rest goes on."""
        return (len(self.nodes) - 1) // 2

    def some(self, count: int) -> list[Node]:
        """Nodes at random."""
        return self.dice.sample(self.nodes, min(count, len(self.nodes)))

    async def leader(self) -> Node:
        """The leader of a shard at random; a node at random where there is none."""
        shard = self.dice.randint(0, self.cluster.shards)
        return await self.cluster.leader(shard) or self.dice.choice(self.nodes)

    def between(self, lo: float, hi: float) -> float:
        return self.dice.uniform(lo, hi)
