"""The simulated network: messages of real bytes that are late, lost, doubled or cut off, by the world's dice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from raftcache.errors import OutcomeUnknown, RaftCacheError, Unavailable
from raftcache.ids import ClusterId, NodeId, ShardId
from raftcache.node.settings import MS
from raftcache.raft.messages import Append, AppendReply, EntryKind, InstallSnapshot, Message, RequestVote, VoteReply
from raftcache.storage.state import OutgoingCheckpoint
from raftcache.transport.codec import encode_section

if TYPE_CHECKING:
    from tests.simulation.nodes import SimulatedNode
    from tests.simulation.world import World

STALL_NS = 3_000 * MS
"""After which a snapshot's sender gives it up."""


def _arrive(from_node: NodeId, data: bytes, peer: SimulatedNode) -> None:
    peer.on_bytes(from_node, data)


def _changes_membership(message: Message) -> bool:
    return isinstance(message, Append) and any(entry.kind == EntryKind.CONFIGURATION for entry in message.entries)


class SimulatedNetwork:
    """One node's end of it; implements the host's network."""

    def __init__(self, world: World, owner: SimulatedNode) -> None:
        self._world = world
        self._owner = owner
        self._waiting: list[tuple[NodeId, ShardId, Message]] = []

    def send(self, node: NodeId, shard: ShardId, message: Message) -> None:
        kind = type(message)
        if kind is AppendReply or kind is VoteReply or kind is RequestVote:
            self._world.ghost.promised(self._owner, message)
        elif kind is Append and self._world.isolates_on_change_ms and _changes_membership(message):
            self._world.change_left(self._owner.node)
        self._waiting.append((node, shard, message))

    def flush(self) -> None:
        world, owner = self._world, self._owner
        waiting, self._waiting = self._waiting, []
        for node, shard, message in waiting:
            # Each in a frame of its own, so that each has a fate of its own.
            data = b"".join(encode_section([(shard, message)]))
            for _ in range(world.copies(owner.node, node)):
                world.deliver(owner.node, node, data, partial(_arrive, owner.node, data))
            if owner.armed and type(message).__name__ == owner.armed:
                owner.message_left()

    def request(
        self,
        node: NodeId,
        kind: int,
        payload: bytes,
        on_reply: Callable[[bytes | RaftCacheError], None],
        deadline_ns: int,
    ) -> None:
        world, owner, life = self._world, self._owner, self._owner.life
        answered = False

        def answer(outcome: bytes | RaftCacheError) -> None:
            nonlocal answered
            if not answered and owner.life == life and owner.host is not None:
                answered = True
                on_reply(outcome)

        def arrive(peer: SimulatedNode) -> None:
            assert peer.host is not None

            def respond(reply: bytes) -> None:
                # Answers are lost like anything else: what was asked for was done all the same.
                if world.copies(peer.node, owner.node):
                    world.deliver(peer.node, owner.node, reply, lambda _: answer(reply))

            peer.host.on_request(owner.node, kind, payload, respond)

        if node not in world.nodes or not self.connected(node):
            world.after(MS, lambda: answer(Unavailable(f"node {node} is not connected")), node=owner)
            return
        if world.copies(owner.node, node):
            world.deliver(owner.node, node, payload, arrive)
        wait_ns = max(0, min(deadline_ns - owner.clock.monotonic_ns(), 2_000 * MS))
        world.after(wait_ns, lambda: answer(OutcomeUnknown(f"node {node} did not answer")), node=owner)

    def request_address(
        self,
        address: tuple[str, int],
        kind: int,
        payload: bytes,
        on_reply: Callable[[bytes | RaftCacheError], None],
        deadline_ns: int,
    ) -> None:
        self.request(self._world.node_at(address[1]), kind, payload, on_reply, deadline_ns)

    def send_snapshot(
        self,
        node: NodeId,
        shard: ShardId,
        message: InstallSnapshot,
        reader: OutgoingCheckpoint,
        on_done: Callable[[bool], None],
    ) -> None:
        world, owner, life = self._world, self._owner, self._owner.life
        over = False

        def done(ok: bool) -> None:
            nonlocal over
            if not over and owner.life == life and owner.host is not None:
                over = True
                on_done(ok)

        # As the real one: a transfer that stalls is given up.
        world.after(STALL_NS, lambda: done(False), node=owner)
        chunks = []
        try:
            while chunk := reader.chunk():
                chunks.append(chunk)
        except (RaftCacheError, OSError):
            world.after(0, lambda: done(False), node=owner)
            return

        def arrive(peer: SimulatedNode) -> None:
            assert peer.host is not None
            engine = peer.host.engine
            if engine is None:
                world.deliver(peer.node, owner.node, b"refused", lambda _: done(False))
                return
            try:
                incoming = engine.checkpointing.receive(
                    owner.node, shard, message, size=reader.size, digest=reader.digest
                )
                for chunk in chunks:
                    incoming.add(chunk)
                incoming.finish(lambda ok: world.deliver(peer.node, owner.node, b"done", lambda _: done(ok)))
            except RaftCacheError:
                world.deliver(peer.node, owner.node, b"refused", lambda _: done(False))

        if world.copies(owner.node, node):
            world.deliver(owner.node, node, reader.digest, arrive)
        else:
            world.after(500 * MS, lambda: done(False), node=owner)
        if owner.armed == "InstallSnapshot":
            owner.message_left()

    def connected(self, node: NodeId) -> bool:
        return self._world.connected(self._owner.node, node)

    def resting(self, node: NodeId) -> bool:
        del node
        return False

    def answer_bytes_waiting(self, node: NodeId) -> int:
        del node
        return 0

    def set_cluster(self, cluster: ClusterId) -> None:
        del cluster
