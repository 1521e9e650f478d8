"""An operator of the simulated cluster: takes nodes in, moves replicas and leaderships about, changes his mind; all through
the nodes' keepers, and whatever else fails at the same time.

He breaks no rule that the administration would hold him to: groups keep three voters, and no node gets two of one.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from raftcache.errors import PreconditionFailed, RaftCacheError
from raftcache.ids import NO_REPLICA, NodeId, ShardId
from raftcache.node.directory import Directory, DirectoryShard, with_change, with_node
from raftcache.node.kinds import KIND_JOIN
from raftcache.node.settings import MS

if TYPE_CHECKING:
    from tests.simulation.nodes import SimulatedNode
    from tests.simulation.world import World

VOTERS_MIN = 3


class Operator:
    """Does something every now and then; once the world heals he only finishes what he began."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = random.Random(f"operator {world.seed}")
        self.changes = 0
        """Membership changes that were written down."""
        self.transfers = 0

    def start(self) -> None:
        if self._world.plan.operate_every_ms:
            self._again()

    def _again(self) -> None:
        world = self._world

        def act() -> None:
            if world.healed:
                self._finish_joins()
            else:
                self._act()
            self._again()

        world.after(self._random.randrange(world.plan.operate_every_ms) * MS, act)

    def _act(self) -> None:
        world, draw = self._world, self._random
        members = [node for node in world.nodes.values() if node.engine is not None]
        if not members:
            return
        through = draw.choice(members)
        strangers = [n for n in world.nodes.values() if n.host is not None and n.host.cluster is None]
        if strangers and draw.random() < 0.5:
            self.take_in(through, draw.choice(strangers))
        elif draw.random() < 0.4:
            self._transfer(draw.choice(members))
        else:
            self._change(through)

    def _finish_joins(self) -> None:
        """A join that was interrupted is repeated, as the command line would; nothing new is begun."""
        for through in self._world.nodes.values():
            engine = through.engine
            if engine is None:
                continue
            for stranger in self._world.nodes.values():
                if (
                    stranger.host is not None
                    and stranger.host.cluster is None
                    and stranger.node in engine.directory.nodes
                ):
                    self.take_in(through, stranger)
            return

    def take_in(self, through: SimulatedNode, stranger: SimulatedNode) -> None:
        """`raftcache node join`."""
        assert stranger.host is not None
        entry = stranger.host.own_entry()
        engine = through.engine
        assert engine is not None

        def joined(directory: Directory) -> Directory:
            return directory if directory.nodes.get(entry.node) == entry else with_node(directory, entry)

        def tell(outcome: Directory | RaftCacheError) -> None:
            if isinstance(outcome, Directory) and through.network is not None:
                payload = outcome.epoch.to_bytes(8, "little") + outcome.encode()
                deadline_ns = through.clock.monotonic_ns() + 1_000 * MS
                through.network.request(entry.node, KIND_JOIN, payload, lambda _: None, deadline_ns)

        engine.keeper.update(joined, tell)

    def _transfer(self, node: SimulatedNode) -> None:
        """`raftcache shard transfer`."""
        engine = node.engine
        assert engine is not None
        led = [replica for replica in engine.replicas.values() if replica.leads]
        if led:
            replica = self._random.choice(led)
            if engine.transfer(replica) != NO_REPLICA:
                self.transfers += 1

    def _change(self, through: SimulatedNode) -> None:
        """`raftcache shard replicas add | remove | move`."""
        draw = self._random
        engine = through.engine
        assert engine is not None
        shard_id = draw.choice(sorted(engine.directory.shards))
        action, seed = draw.choice(["add", "move", "move", "remove"]), draw.random()

        def transform(directory: Directory) -> Directory:
            return self._changed(directory, shard_id, action, seed)

        def done(outcome: Directory | RaftCacheError) -> None:
            if isinstance(outcome, Directory):
                self.changes += 1

        engine.keeper.update(transform, done)

    def _changed(self, directory: Directory, shard_id: ShardId, action: str, seed: float) -> Directory:
        """A pure function, as a transform must be: the dice were thrown before."""
        shard = directory.shards[shard_id]
        here = [placed.node for placed in shard.replicas]
        free = [node for node in sorted(directory.nodes) if node not in here]
        if shard.change is not None:
            return self._cancelled(directory, shard, seed)
        node = here[int(seed * len(here))]
        if action == "remove":
            if len(shard.voters()) <= VOTERS_MIN:
                raise PreconditionFailed("too few would be left")
            return with_change(directory, shard_id, action="remove", node=node, target=None)
        if not free:
            raise PreconditionFailed("every node has a replica")
        target = free[int(seed * len(free))]
        if action == "add":
            return with_change(directory, shard_id, action="add", node=target, target=None)
        return with_change(directory, shard_id, action="move", node=node, target=target)

    def _cancelled(self, directory: Directory, shard: DirectoryShard, seed: float) -> Directory:
        """One change in five is cancelled on its way."""
        assert shard.change is not None
        coming = shard.replica(shard.change.incoming)
        if coming is None or seed > 0.2:
            raise PreconditionFailed("there is a change in progress")
        return with_change(directory, shard.shard, action="remove", node=NodeId(coming.node), target=None)
