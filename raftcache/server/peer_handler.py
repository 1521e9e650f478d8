"""What the peer network tells the node, and what it asks it: messages, requests, snapshots, addresses."""

from raftcache.errors import Unavailable
from raftcache.ids import NodeId, ShardId
from raftcache.node.administration import parse_address
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
        self._data = data
        self._heard = data.addresses()
        """Where nodes said that they want to be dialed: newer than the directory where a node has moved."""

    def address_of(self, node: NodeId) -> Address | None:
        """Asked at each dial: what the node itself said last, else what the directory says."""
        heard = self._heard.get(node)
        if heard is not None:
            return parse_address(heard)
        engine = self.host.engine if self.host is not None else None
        listed = engine.directory.nodes.get(node) if engine is not None else None
        return parse_address(listed.peer_address) if listed is not None else None

    def on_messages(self, from_node: NodeId, messages: list[tuple[ShardId, Message]]) -> None:
        engine = self.host.engine if self.host is not None else None
        if engine is not None:
            engine.on_messages(from_node, messages)

    def on_request(self, from_node: NodeId, kind: int, payload: bytes, respond: Respond) -> None:
        if self.host is not None:
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
        said = f"{address[0]}:{address[1]}"
        if self._heard.get(node) != said:
            self._heard[node] = said
            self._data.save_addresses(self._heard)

    def on_disconnected(self, node: NodeId) -> None:
        self._lost(node)

    def on_dropped(self, node: NodeId) -> None:
        self._lost(node)

    def _lost(self, node: NodeId) -> None:
        engine = self.host.engine if self.host is not None else None
        if engine is not None:
            engine.on_disconnected(node)
