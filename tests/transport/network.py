"""Real nodes on loopback, with a recorder for a brain, and a peer played by hand, frame by frame."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from raftcache.clock import NS_PER_SECOND, SystemClock
from raftcache.errors import RaftCacheError
from raftcache.ids import ClusterId, Index, NodeId, ReplicaId, ShardId, Term
from raftcache.raft.messages import Append, Entry, EntryKind, Heartbeat, Message
from raftcache.transport.codec import decode_section
from raftcache.transport.frames import FrameParser, FrameType, encode_frame
from raftcache.transport.handshake import (
    Address,
    Hello,
    HelloReply,
    Identity,
    Purpose,
    decode_hello,
    encode_hello,
    encode_hello_reply,
)
from raftcache.transport.local_node import PeerSettings, Respond
from raftcache.transport.peers import PeerNetwork
from raftcache.transport.snapshots import BeginSnapshot
from raftcache.transport.tls import PeerTls

CLUSTER = ClusterId(7)
PATIENCE_S = 20
"""Only a test that would fail waits this long."""
KIND_ECHO = 1
KIND_IDENTIFY = 16
CLOCK = SystemClock()


def soon_ns(seconds: float = PATIENCE_S) -> int:
    return CLOCK.monotonic_ns() + int(seconds * NS_PER_SECOND)


def heartbeat(commit: int = 1, to: int = 2) -> Heartbeat:
    return Heartbeat(ReplicaId(to), ReplicaId(1), Term(1), Index(commit))


def append(index: int, size: int, to: int = 2) -> Append:
    entry = Entry(Term(1), Index(index), EntryKind.COMMANDS, bytes(size))
    return Append(ReplicaId(to), ReplicaId(1), Term(1), Index(index - 1), Term(1), Index(0), [entry])


@dataclass
class Node:
    """A `PeerNetwork` and what its handler heard."""

    number: NodeId
    address: Address = ("127.0.0.1", 0)
    messages: list[tuple[NodeId, ShardId, Message]] = field(default_factory=list)
    requests: list[tuple[NodeId, int, bytes]] = field(default_factory=list)
    unanswered: list[Respond] = field(default_factory=list)
    """Requests are kept here while `answering` is False."""
    answering: bool = True
    events: list[tuple[str, NodeId]] = field(default_factory=list)
    reports: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    network: PeerNetwork = field(init=False)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for a condition that some callback of this node makes true."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def beat_until(self, to: int, condition: Callable[[], bool]) -> None:
        """Sends a heartbeat every few milliseconds, as a leader's ticks do, until the condition holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self.network.send(NodeId(to), ShardId(0), heartbeat(to=to))
                self.network.flush()
                await asyncio.sleep(0.005)

    def heard(self, event: str, node: int) -> int:
        return self.events.count((event, NodeId(node)))

    async def ask(self, node: int, payload: bytes, *, kind: int = KIND_ECHO, seconds: float = PATIENCE_S) -> bytes:
        """One request. Raises what the callback was given."""
        return await outcome(lambda done: self.network.request(NodeId(node), kind, payload, done, soon_ns(seconds)))

    # --- PeerHandler, Report --------------------------------------------------------------------------------------------

    def on_messages(self, from_node: NodeId, messages: list[tuple[ShardId, Message]]) -> None:
        self.messages += [(from_node, shard, message) for shard, message in messages]
        self.changed.set()

    def on_request(self, from_node: NodeId, kind: int, payload: bytes, respond: Respond) -> None:
        self.requests.append((from_node, kind, payload))
        if self.answering:
            respond(b"answer to " + payload)
        else:
            self.unanswered.append(respond)
        self.changed.set()

    def on_connected(self, node: NodeId, address: Address) -> None:
        self._event("connected", node)

    def on_disconnected(self, node: NodeId) -> None:
        self._event("disconnected", node)

    def on_dropped(self, node: NodeId) -> None:
        self._event("dropped", node)

    def _event(self, event: str, node: NodeId) -> None:
        self.events.append((event, node))
        self.changed.set()

    def report(self, name: str, **fields: object) -> None:
        self.reports.append((name, fields))
        self.changed.set()

    def reported(self, name: str) -> list[str]:
        return [str(fields.get("error")) for found, fields in self.reports if found == name]


async def outcome(ask: Callable[[Callable[[bytes | RaftCacheError], None]], None]) -> bytes:
    """Turns a callback into a result or an exception."""
    future: asyncio.Future[bytes | RaftCacheError] = asyncio.get_running_loop().create_future()
    ask(future.set_result)
    async with asyncio.timeout(PATIENCE_S):
        result = await future
    if isinstance(result, RaftCacheError):
        raise result
    return result


class HandPeer:
    """One end of a connection, played by the test: it reads only when told to, and writes whatever it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._parser = FrameParser()
        self.hello: Hello | None = None

    async def read_frame(self) -> tuple[FrameType, bytes] | None:
        """The next frame; None at the end of the stream."""
        async with asyncio.timeout(PATIENCE_S):
            while (frame := self._parser.next_frame()) is None:
                try:
                    data = await self._reader.read(1 << 16)
                except ConnectionError:
                    return None
                if not data:
                    return None
                self._parser.receive(data)
        return frame[0], bytes(frame[1])

    async def read_messages(self) -> list[tuple[ShardId, Message]]:
        """The messages of the next RAFT frame; other frames are skipped."""
        while (frame := await self.read_frame()) is not None:
            if frame[0] is FrameType.RAFT:
                return decode_section(frame[1])
        raise AssertionError("the stream ended where Raft messages were expected")

    async def read_kind(self, kind: FrameType) -> bytes:
        while (frame := await self.read_frame()) is not None:
            if frame[0] is kind:
                return frame[1]
        raise AssertionError(f"the stream ended where a {kind.name} frame was expected")

    async def read_to_the_end(self) -> list[FrameType]:
        kinds = []
        while (frame := await self.read_frame()) is not None:
            kinds.append(frame[0])
        return kinds

    def write(self, kind: FrameType, payload: bytes) -> None:
        self._writer.write(encode_frame(kind, payload))

    def write_bytes(self, data: bytes) -> None:
        self._writer.write(data)

    def cut(self) -> None:
        self._writer.transport.abort()

    def finish(self) -> None:
        self._writer.close()

    async def accept(self, node: int, *, cluster: ClusterId = CLUSTER, frame_bytes_max: int = 8 << 20) -> None:
        """Takes the HELLO and agrees."""
        frame = await self.read_frame()
        assert frame is not None
        assert frame[0] is FrameType.HELLO
        self.hello = decode_hello(frame[1])
        identity = hand_identity(node, cluster=cluster, frame_bytes_max=frame_bytes_max)
        self.write(FrameType.HELLO_REPLY, encode_hello_reply(HelloReply(identity, 1)))


def hand_identity(
    node: int, *, cluster: ClusterId = CLUSTER, incarnation: int = 1, frame_bytes_max: int = 8 << 20
) -> Identity:
    return Identity(cluster, NodeId(node), incarnation, ("127.0.0.1", 9), frame_bytes_max)


FAST = PeerSettings(
    backoff_min_ms=5, backoff_max_ms=20, housekeeping_ms=10, ping_interval_ms=20, idle_timeout_ms=10_000
)


class Rig:
    """Some nodes on loopback that know each other's addresses."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.book: dict[NodeId, Address] = {}
        self.nodes: list[Node] = []
        self.peers: list[HandPeer] = []
        self._tasks = tasks

    async def node(
        self,
        number: int,
        settings: PeerSettings = FAST,
        *,
        cluster: ClusterId = CLUSTER,
        incarnation: int = 1,
        tls: PeerTls | None = None,
        begin_snapshot: BeginSnapshot | None = None,
    ) -> Node:
        node = Node(NodeId(number))
        node.network = PeerNetwork(
            settings,
            cluster=cluster,
            node=node.number,
            incarnation=incarnation,
            handler=node,
            address_of=self.book.get,
            clock=CLOCK,
            random=random.Random(number),
            tls=tls,
            begin_snapshot=begin_snapshot,
            bootstrap_kinds=frozenset({KIND_IDENTIFY}),
            report=node.report,
        )
        node.address = self.book[node.number] = await node.network.start(self._tasks)
        self.nodes.append(node)
        return node

    async def connect(self, node: Node) -> HandPeer:
        """A bare connection to a node, on which nothing was said yet."""
        peer = HandPeer(*await asyncio.open_connection(*node.address))
        self.peers.append(peer)
        return peer

    async def dial(self, node: Node, identity: Identity, *, purpose: Purpose = Purpose.LINK) -> HandPeer:
        """Connects to a node and says HELLO; the answer is still to be read."""
        peer = await self.connect(node)
        peer.write(FrameType.HELLO, encode_hello(Hello(identity, node.number, purpose)))
        return peer

    async def pair(self, settings: PeerSettings = FAST) -> tuple[Node, Node]:
        """Two nodes, the first linked to the second."""
        one, two = await self.node(1, settings), await self.node(2, settings)
        one.network.send(two.number, ShardId(0), heartbeat())
        one.network.flush()
        await one.until(lambda: one.network.connected(two.number))
        await two.until(lambda: bool(two.messages))
        two.messages.clear()
        return one, two


@asynccontextmanager
async def rig() -> AsyncIterator[Rig]:
    """Everything is closed at the end, whatever the test did."""
    async with asyncio.TaskGroup() as tasks:
        made = Rig(tasks)
        try:
            yield made
        finally:
            for peer in made.peers:
                peer.cut()
            for node in made.nodes:
                await node.network.aclose(patience_ms=200)
            await settle()


async def settle() -> None:
    """Lets the loop do what is due already."""
    for _ in range(5):
        await asyncio.sleep(0)


async def until_blocked(node: Node) -> None:
    """Lets the loop run until the kernel takes no more for node 2."""
    status = node.network.status()[0]
    sent = -1
    async with asyncio.timeout(20):
        while sent != status.traffic.bytes_sent or node.network.status()[0].queued_bytes == 0:
            sent = status.traffic.bytes_sent
            for _ in range(50):
                await asyncio.sleep(0)


@asynccontextmanager
async def listen_by_hand(play: Callable[[HandPeer], Awaitable[None]]) -> AsyncIterator[Address]:
    """A listener whose connections are played by `play`, and which reads little ahead of it."""
    peers: list[HandPeer] = []
    failures: list[BaseException] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = HandPeer(reader, writer)
        peers.append(peer)
        try:
            await play(peer)
        except (AssertionError, TimeoutError) as failure:
            failures.append(failure)
            peer.cut()

    with socket.create_server(("127.0.0.1", 0)) as sock:
        # What the kernel would read ahead must be small beside what the tests keep waiting.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        server = await asyncio.start_server(connected, sock=sock, limit=1 << 16)
        try:
            yield sock.getsockname()[:2]
        finally:
            server.close()
            await settle()  # a connection that the kernel has taken already still becomes a peer
            for peer in peers:
                peer.cut()
            await settle()
    assert not failures, failures
