"""What the peer network tells the node, and what it asks it: messages, requests, snapshots, addresses."""

from raftcache.errors import Unavailable
from raftcache.ids import NodeId, ShardId
from raftcache.node.administration import format_address, parse_address
from raftcache.node.checkpointing import Incoming
from raftcache.node.host import Host
from raftcache.raft.messages import InstallSnapshot, Message
from raftcache.storage.data_directory import DataDirectory
from raftcache.transport.handshake import Address
from raftcache.transport.local_node import Respond


class HostHandler:
    """Implements the transport's `PeerHandler` and `BeginSnapshot` over a host, and keeps the address book."""

    def __init__(self, data: DataDirectory) -> None:
        self.host: Host | None = None
        """Set once it is built; the network may ask for addresses before."""
        self.incarnations = data.incarnations()
        """The newest life of each node; the network keeps it up to date."""
        self._data = data
        self._heard = data.addresses()
        """Where nodes said that they want to be dialed: newer than the directory where a node has moved, older where it
        has moved and could not tell us."""
        self._saved = dict(self.incarnations)
        self._tried: dict[NodeId, str] = {}
        """What was dialed last, by nodes that have not been met since."""

    def address_of(self, node: NodeId) -> Address | None:
        """Asked at each dial: what the node itself said last and what the directory says, in turns until it is met."""
        engine = self.host.engine if self.host is not None else None
        listed = engine.directory.nodes.get(node) if engine is not None else None
        candidates = [self._heard[node]] if node in self._heard else []
        if listed is not None and listed.peer_address not in candidates:
            candidates.append(listed.peer_address)
        if not candidates:
            return None
        connected = self.host is not None and self.host.network.connected(node)
        again = candidates[0] == self._tried.get(node) and len(candidates) > 1 and not connected
        self._tried[node] = candidates[1] if again else candidates[0]
        return parse_address(self._tried[node])

    def on_messages(self, from_node: NodeId, messages: list[tuple[ShardId, Message]]) -> None:
        engine = self.host.engine if self.host is not None else None
        if engine is not None:
            engine.on_messages(from_node, messages)

    def on_request(self, from_node: NodeId, kind: int, payload: bytes, respond: Respond) -> None:
        if self.host is None:
            # The ports are open and the node is not: whoever asks is told so, and need not wait for his deadline.
            respond(b"")
            return
        self.host.on_request(from_node, kind, payload, respond)

    def on_snapshot(
        self, from_node: NodeId, shard: ShardId, message: InstallSnapshot, *, size: int, digest: bytes
    ) -> Incoming:
        """See `BeginSnapshot`. Raises: `RaftCacheError` where it is not wanted."""
        engine = self.host.engine if self.host is not None else None
        if engine is None:
            raise Unavailable("this node does not belong to a cluster yet")
        return engine.checkpointing.receive(from_node, shard, message, size=size, digest=digest)

    def on_connected(self, node: NodeId, address: Address) -> None:
        """Saved only where it is news: an address, or another life of the node."""
        self._tried.pop(node, None)
        said = format_address(address)
        if self._heard.get(node) == said and self._saved == self.incarnations:
            return
        self._heard[node] = said
        engine = self.host.engine if self.host is not None else None
        if engine is not None and engine.directory.epoch > 0:
            # Nodes that have left the cluster are forgotten, or the book would only grow. Not their incarnations: a
            # restored copy of one is refused for ever.
            members = engine.directory.nodes
            self._heard = {n: a for n, a in self._heard.items() if n in members or n == node}
        if self._data.save_addresses(self._heard, self.incarnations):
            self._saved = dict(self.incarnations)

    def on_disconnected(self, node: NodeId) -> None:
        self._lost(node)

    def on_dropped(self, node: NodeId) -> None:
        self._lost(node)

    def _lost(self, node: NodeId) -> None:
        engine = self.host.engine if self.host is not None else None
        if engine is not None:
            engine.on_disconnected(node)
