"""A snapshot arrives whole or not at all, whatever happens on the way."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftcache.errors import ProtocolError, RaftCacheError, StorageFull, UnsupportedVersion
from raftcache.ids import Index, NodeId, ReplicaId, ShardId, Term
from raftcache.raft.messages import Configuration, InstallSnapshot, SnapshotMeta, TimeoutNow
from raftcache.transport.codec import encode_message
from raftcache.transport.frames import FrameType
from raftcache.transport.handshake import Purpose
from raftcache.transport.snapshots import SnapshotSink, decode_begin, encode_begin
from tests.transport.network import FAST, HandPeer, Node, Rig, hand_identity, heartbeat, listen_by_hand, rig
from tests.transport.strategies import install_snapshots, shards, u64

MIB = 1 << 20
CHUNK_BYTES = 128 << 10
TWO = NodeId(2)
SHARD = ShardId(3)


def offer(to: int = 21, index: int = 900) -> InstallSnapshot:
    meta = SnapshotMeta(Index(index), Term(4), Configuration(voters=(ReplicaId(20), ReplicaId(21))))
    return InstallSnapshot(ReplicaId(to), ReplicaId(20), Term(5), meta)


class Source:
    """Some bytes, in chunks; can wait, and can fail."""

    def __init__(self, data: bytes, *, digest: bytes = b"digest", fails_after: int | None = None) -> None:
        self.size = len(data)
        self.digest = digest
        self._data = data
        self._fails_after = fails_after
        self._position = 0

    def chunk(self) -> bytes:
        if self._fails_after is not None and self._position >= self._fails_after:
            raise RaftCacheError("the file ends early")
        chunk = self._data[self._position : self._position + CHUNK_BYTES]
        self._position += len(chunk)
        return chunk


@dataclass
class Receiver:
    """Takes every snapshot that is offered, and remembers what became of each."""

    refuse: RaftCacheError | None = None
    full_after: int | None = None
    verdict: bool | None = True
    """None: keeps the sender waiting; `finished` has the callback."""
    offers: list[tuple[NodeId, ShardId, InstallSnapshot, int, bytes]] = field(default_factory=list)
    sinks: list["Sink"] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(
        self, from_node: NodeId, shard: ShardId, message: InstallSnapshot, *, size: int, digest: bytes
    ) -> SnapshotSink:
        self.offers.append((from_node, shard, message, size, digest))
        if self.refuse is not None:
            raise self.refuse
        sink = Sink(self)
        self.sinks.append(sink)
        self.changed.set()
        return sink

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@dataclass
class Sink:
    owner: Receiver
    data: bytearray = field(default_factory=bytearray)
    aborts: int = 0
    finished: Callable[[bool], None] | None = None

    def add(self, chunk: bytes) -> None:
        if self.owner.full_after is not None and len(self.data) >= self.owner.full_after:
            raise StorageFull("no space for the snapshot")
        self.data += chunk
        self.owner.changed.set()

    def finish(self, done: Callable[[bool], None]) -> None:
        self.finished = done
        if self.owner.verdict is not None:
            done(self.owner.verdict)
        self.owner.changed.set()

    def abort(self) -> None:
        self.aborts += 1
        self.owner.changed.set()


async def transfer(node: Node, source: Source, message: InstallSnapshot | None = None) -> bool:
    done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    node.network.send_snapshot(TWO, SHARD, message or offer(), source, done.set_result)
    async with asyncio.timeout(20):
        return await done


async def one_and_receiver(net: Rig, receiver: Receiver) -> tuple[Node, Node]:
    return await net.node(1), await net.node(2, begin_snapshot=receiver.begin)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 5 * MIB + 17])
async def test_snapshot_arrives_whole(size: int) -> None:
    """The bytes, and everything that was said about them at the beginning."""
    receiver = Receiver()
    data = bytes(range(256)) * (size // 256 + 1)
    async with rig() as net:
        one, _ = await one_and_receiver(net, receiver)
        assert await transfer(one, Source(data[:size]))
    assert receiver.offers == [(NodeId(1), SHARD, offer(), size, b"digest")]
    assert bytes(receiver.sinks[0].data) == data[:size]
    assert receiver.sinks[0].aborts == 0


async def test_receiver_finds_it_damaged() -> None:
    """The sender is told, so that Raft can try again."""
    receiver = Receiver(verdict=False)
    async with rig() as net:
        one, _ = await one_and_receiver(net, receiver)
        assert not await transfer(one, Source(b"abc"))
        assert "found the snapshot damaged" in one.reported("snapshot_not_sent")[0]


async def test_sender_waits_for_the_verification() -> None:
    """`on_done` speaks of what the receiver has verified, not of what was sent."""
    receiver = Receiver(verdict=None)
    async with rig() as net:
        one, _ = await one_and_receiver(net, receiver)
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        one.network.send_snapshot(TWO, SHARD, offer(), Source(b"abc"), done.set_result)
        await receiver.until(lambda: bool(receiver.sinks) and receiver.sinks[0].finished is not None)
        assert not done.done()
        finished = receiver.sinks[0].finished
        assert finished is not None
        finished(True)
        assert await done


async def test_unwanted_snapshot_is_refused_with_the_reason() -> None:
    """An old term, an unknown replica: the receiver's words reach the sender's report."""
    receiver = Receiver(refuse=RaftCacheError("there is no replica 21 here"))
    async with rig() as net:
        one, _ = await one_and_receiver(net, receiver)
        assert not await transfer(one, Source(b""))
        assert one.reported("snapshot_not_sent") == ["the receiver refused the snapshot: there is no replica 21 here"]


async def test_full_disk_at_the_receiver_ends_the_transfer() -> None:
    """It is aborted at once, not after the rest of it was sent for nothing."""
    receiver = Receiver(full_after=MIB)
    async with rig() as net:
        one, _ = await one_and_receiver(net, receiver)
        assert not await transfer(one, Source(bytes(64 * MIB)))
    assert receiver.sinks[0].aborts == 1
    assert len(receiver.sinks[0].data) < 2 * MIB


async def test_unreadable_source_ends_the_transfer() -> None:
    """The sender's file ends early: the receiver aborts, and the sender is told that it failed."""
    receiver = Receiver()
    async with rig() as net:
        one, _ = await one_and_receiver(net, receiver)
        assert not await transfer(one, Source(bytes(4 * MIB), fails_after=2 * MIB))
        assert one.reported("snapshot_not_sent") == ["the file ends early"]
        await receiver.until(lambda: receiver.sinks[0].aborts == 1)


async def test_sender_that_dies_midway_leaves_nothing() -> None:
    """A cut connection aborts the sink, once."""
    receiver = Receiver()
    async with rig() as net:
        two = await net.node(2, begin_snapshot=receiver.begin)
        peer = await net.dial(two, hand_identity(1), purpose=Purpose.SNAPSHOT)
        await peer.read_kind(FrameType.HELLO_REPLY)
        peer.write(FrameType.SNAPSHOT_BEGIN, encode_begin(SHARD, offer(), size=100, digest=b""))
        peer.write(FrameType.SNAPSHOT_CHUNK, bytes(60))
        await receiver.until(lambda: bool(receiver.sinks) and len(receiver.sinks[0].data) == 60)
        peer.cut()
        await receiver.until(lambda: receiver.sinks[0].aborts == 1)
        assert receiver.sinks[0].finished is None


async def test_receiver_that_dies_midway_is_a_failure() -> None:
    """The sender hears of it by the cut, or by silence."""

    async def play(peer: HandPeer) -> None:
        await peer.accept(2)
        await peer.read_kind(FrameType.SNAPSHOT_CHUNK)
        peer.cut()

    async with listen_by_hand(play) as address, rig() as net:
        one = await net.node(1)
        net.book[TWO] = address
        assert not await transfer(one, Source(bytes(4 * MIB)))


async def test_receiver_that_stops_reading_is_a_failure() -> None:
    """The sender has patience, and then no more."""

    async def play(peer: HandPeer) -> None:
        await peer.accept(2)
        await asyncio.Event().wait()

    async with listen_by_hand(play) as address, rig() as net:
        one = await net.node(1, replace(FAST, snapshot_stall_ms=50))
        net.book[TWO] = address
        assert not await transfer(one, Source(bytes(16 * MIB)))
        assert one.reported("snapshot_not_sent") == ["the receiver does not go on"]


async def test_sender_that_goes_silent_is_cut_off() -> None:
    """The receiver does not keep half a snapshot for ever."""
    receiver = Receiver()
    async with rig() as net:
        two = await net.node(2, replace(FAST, snapshot_stall_ms=50), begin_snapshot=receiver.begin)
        peer = await net.dial(two, hand_identity(1), purpose=Purpose.SNAPSHOT)
        await peer.read_kind(FrameType.HELLO_REPLY)
        peer.write(FrameType.SNAPSHOT_BEGIN, encode_begin(SHARD, offer(), size=100, digest=b""))
        assert await peer.read_to_the_end() == []
        assert receiver.sinks[0].aborts == 1


GOOD_END = (0).to_bytes(4, "little")


@pytest.mark.parametrize(
    "frames",
    [
        [(FrameType.SNAPSHOT_CHUNK, b"x")],
        [(FrameType.SNAPSHOT_END, GOOD_END)],
        [(FrameType.SNAPSHOT_BEGIN, b"x")],
        [(FrameType.SNAPSHOT_BEGIN, encode_begin(SHARD, offer(), size=9, digest=b""))] * 2,
        [
            (FrameType.SNAPSHOT_BEGIN, encode_begin(SHARD, offer(), size=9, digest=b"")),
            (FrameType.SNAPSHOT_CHUNK, bytes(10)),
        ],
        [
            (FrameType.SNAPSHOT_BEGIN, encode_begin(SHARD, offer(), size=9, digest=b"")),
            (FrameType.SNAPSHOT_CHUNK, bytes(8)),
            (FrameType.SNAPSHOT_END, GOOD_END),
        ],
        [
            (FrameType.SNAPSHOT_BEGIN, encode_begin(SHARD, offer(), size=0, digest=b"")),
            (FrameType.SNAPSHOT_END, b""),
        ],
        [(FrameType.RAFT, b"")],
    ],
    ids=["no begin", "only end", "bad begin", "two begins", "too much", "too little", "bad end", "raft"],
)
async def test_malformed_transfer_is_cut_off(frames: list[tuple[FrameType, bytes]]) -> None:
    """Nothing that is not exactly a snapshot is ever finished."""
    receiver = Receiver()
    async with rig() as net:
        two = await net.node(2, begin_snapshot=receiver.begin)
        peer = await net.dial(two, hand_identity(1), purpose=Purpose.SNAPSHOT)
        await peer.read_kind(FrameType.HELLO_REPLY)
        for kind, payload in frames:
            peer.write(kind, payload)
        assert await peer.read_to_the_end() == []
        assert [sink.finished for sink in receiver.sinks] == [None] * len(receiver.sinks)
        assert [sink.aborts for sink in receiver.sinks] == [1] * len(receiver.sinks)


async def test_wrong_total_checksum_is_refused() -> None:
    """Chunks that were each good but are not together what was sent."""
    receiver = Receiver()
    async with rig() as net:
        two = await net.node(2, begin_snapshot=receiver.begin)
        peer = await net.dial(two, hand_identity(1), purpose=Purpose.SNAPSHOT)
        await peer.read_kind(FrameType.HELLO_REPLY)
        peer.write(FrameType.SNAPSHOT_BEGIN, encode_begin(SHARD, offer(), size=3, digest=b""))
        peer.write(FrameType.SNAPSHOT_CHUNK, b"abc")
        peer.write(FrameType.SNAPSHOT_END, (1).to_bytes(4, "little"))
        result = await peer.read_kind(FrameType.SNAPSHOT_RESULT)
        assert result[0] == 0
        assert b"checksum" in result
        assert (receiver.sinks[0].aborts, receiver.sinks[0].finished) == (1, None)


async def test_one_snapshot_per_follower_and_a_few_per_node_leave() -> None:
    """What is beyond the limits fails at once; Raft asks again."""
    receiver = Receiver(verdict=None)
    async with rig() as net:
        one, _ = await one_and_receiver(net, receiver)
        results: list[tuple[int, bool]] = []

        def send(to: int) -> None:
            one.network.send_snapshot(TWO, SHARD, offer(to), Source(b"x"), lambda ok: results.append((to, ok)))

        for to in (21, 21, 22, 23):
            send(to)
        assert results == [], "nobody is called back from inside send_snapshot"
        await receiver.until(lambda: [sink.finished is not None for sink in receiver.sinks] == [True, True])
        assert results == [(21, False), (23, False)]


async def test_receiver_takes_a_few_at_once() -> None:
    """Beyond its limit it says busy in the handshake."""
    receiver = Receiver(verdict=None)
    async with rig() as net:
        one = await net.node(1)
        await net.node(2, replace(FAST, snapshots_in_max=1), begin_snapshot=receiver.begin)
        one.network.send_snapshot(TWO, SHARD, offer(21), Source(b"x"), lambda ok: None)
        await receiver.until(lambda: bool(receiver.sinks))
        assert not await transfer(one, Source(b"x"), offer(22))
        assert "as many snapshots as it may" in one.reported("snapshot_not_sent")[0]


async def test_newer_snapshot_for_a_replica_replaces_the_older() -> None:
    """A new leader does not wait for the old one's half-sent snapshot."""
    receiver = Receiver()
    async with rig() as net:
        one, two = await one_and_receiver(net, receiver)
        old = await net.dial(two, hand_identity(3), purpose=Purpose.SNAPSHOT)
        await old.read_kind(FrameType.HELLO_REPLY)
        old.write(FrameType.SNAPSHOT_BEGIN, encode_begin(SHARD, offer(), size=100, digest=b""))
        await receiver.until(lambda: len(receiver.sinks) == 1)
        assert await transfer(one, Source(b"abc"))
        assert [sink.aborts for sink in receiver.sinks] == [1, 0]
        assert b"a newer snapshot" in await old.read_kind(FrameType.SNAPSHOT_RESULT)


async def test_heartbeats_pass_while_a_snapshot_is_sent() -> None:
    """It has a connection of its own, and a rate: the link is not in its way."""
    receiver = Receiver(verdict=None)
    async with rig() as net:
        one, two = await one_and_receiver(net, receiver)
        one.network.send_snapshot(TWO, SHARD, offer(), Source(bytes(32 * MIB)), lambda ok: None)
        await receiver.until(lambda: bool(receiver.sinks))
        one.network.send(TWO, SHARD, heartbeat())
        one.network.flush()
        await two.until(lambda: bool(two.messages))
        assert receiver.sinks[0].finished is None


async def test_shutdown_ends_what_is_on_its_way() -> None:
    """Both sides are told, and nothing hangs."""
    receiver = Receiver()
    async with rig() as net:
        one, _ = await one_and_receiver(net, receiver)
        results: list[bool] = []
        one.network.send_snapshot(TWO, SHARD, offer(), Source(bytes(64 * MIB)), results.append)
        await receiver.until(lambda: bool(receiver.sinks))
        await one.network.aclose()
        await receiver.until(lambda: receiver.sinks[0].aborts == 1)
        assert results == [False]


@given(shards, install_snapshots, u64, st.binary(max_size=64))
def test_beginning_survives_the_wire(shard: ShardId, message: InstallSnapshot, size: int, digest: bytes) -> None:
    """All of it round-trips; cut anywhere, it is refused."""
    encoded = encode_begin(shard, message, size=size, digest=digest)
    assert decode_begin(encoded) == (shard, message, size, digest)
    for end in range(0, len(encoded), 7):
        with pytest.raises(ProtocolError):
            decode_begin(encoded[:end])


@given(st.binary(max_size=120))
def test_malformed_beginning_is_refused(noise: bytes) -> None:
    """Random bytes raise the declared errors and nothing else."""
    with pytest.raises((ProtocolError, UnsupportedVersion)):
        decode_begin(noise)


def test_beginning_with_another_message_is_refused() -> None:
    """Only an InstallSnapshot begins a snapshot."""
    buffers: list[bytes] = []
    encode_message(SHARD, TimeoutNow(ReplicaId(1), ReplicaId(2), Term(3)), buffers)
    with pytest.raises(ProtocolError, match="begins with a TimeoutNow"):
        decode_begin(b"".join(buffers))
