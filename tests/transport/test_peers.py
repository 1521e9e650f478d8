"""Real connections on loopback: what arrives and in which order, what is lost and who is told."""

import asyncio
from dataclasses import replace

import pytest

from raftcache.errors import (
    ConfigError,
    RaftCacheError,
    Unavailable,
)
from raftcache.ids import NodeId, ReplicaId, ShardId, Term
from raftcache.raft.messages import Append, Heartbeat, Message, VoteReply
from raftcache.transport.codec import encode_section
from raftcache.transport.frames import FrameType, encode_frame
from raftcache.transport.links import LinkState
from raftcache.transport.local_node import PeerSettings
from tests.transport.network import (
    FAST,
    KIND_ECHO,
    HandPeer,
    append,
    hand_identity,
    heartbeat,
    listen_by_hand,
    rig,
    soon_ns,
    until_blocked,
)

MIB = 1 << 20
TWO = NodeId(2)


def section(*messages: tuple[ShardId, Message]) -> bytes:
    return b"".join(encode_section(messages))


# --- Messages -----------------------------------------------------------------------------------------------------------


async def test_first_messages_survive_the_dial() -> None:
    """What is sent before there is a connection causes it; votes arrive, and each side learns the other's address."""
    async with rig() as net:
        one, two = await net.node(1), await net.node(2)
        vote = VoteReply(ReplicaId(2), ReplicaId(1), Term(3), True)
        one.network.send(TWO, ShardId(4), vote)
        one.network.flush()
        await two.until(lambda: bool(two.messages))
        assert two.messages == [(NodeId(1), ShardId(4), vote)]
        assert one.heard("connected", 2) == 1
        assert two.heard("connected", 1) == 1


async def test_one_flush_is_one_write() -> None:
    """Messages of many shards leave in one frame and one write."""
    async with rig() as net:
        one, two = await net.pair(replace(FAST, ping_interval_ms=3000))
        traffic = one.network.status()[0].traffic
        writes = traffic.writes
        for shard in range(64):
            one.network.send(TWO, ShardId(shard), heartbeat())
        one.network.send(TWO, ShardId(3), append(1, 10_000))
        one.network.flush()
        assert traffic.writes == writes + 1
        await two.until(lambda: len(two.messages) == 65)


async def test_link_comes_back_after_the_peer_restarts_elsewhere() -> None:
    """The address is asked for at each dial, so a node that comes back under another one is found again."""
    async with rig() as net:
        one, two = await net.pair()
        await two.network.aclose()
        await one.until(lambda: one.heard("disconnected", 2) == 1)
        assert not one.network.connected(TWO)
        again = await net.node(2, incarnation=2)
        assert again.address != two.address
        await one.beat_until(2, lambda: bool(again.messages))
        assert one.heard("connected", 2) == 2


async def test_peer_that_dials_us_ends_our_back_off() -> None:
    """A node that has just come up is linked to at once, however long the pause was to be."""
    async with rig() as net:
        one = await net.node(1, replace(FAST, backoff_min_ms=3_600_000, backoff_max_ms=3_600_000))
        one.network.send(TWO, ShardId(1), heartbeat())
        one.network.flush()
        await one.until(lambda: bool(one.reported("peer_unreachable")))
        assert one.reported("peer_unreachable") == ["no address of node 2 is known"]
        two = await net.node(2)
        await two.beat_until(1, lambda: two.heard("connected", 1) == 1)
        await one.beat_until(2, lambda: one.network.connected(TWO))


async def test_failed_dials_are_reported_once_per_streak() -> None:
    """A node that is down for a day fills no log."""
    async with rig() as net:
        one, two = await net.pair()
        await two.network.aclose()
        traffic = one.network.status()[0].traffic
        await one.beat_until(2, lambda: traffic.dial_failures >= 5)
        assert len(one.reported("peer_unreachable")) <= 1
        status = one.network.status()[0]
        assert status.state in (LinkState.RESTING, LinkState.DIALING, LinkState.IDLE)
        assert status.error


async def test_newer_link_replaces_the_older() -> None:
    """A second link from the same node means that the first is dead at its end."""
    async with rig() as net:
        one = await net.node(1)
        first = await net.dial(one, hand_identity(2))
        await first.read_kind(FrameType.HELLO_REPLY)
        second = await net.dial(one, hand_identity(2))
        await second.read_kind(FrameType.HELLO_REPLY)
        assert await first.read_to_the_end() == []
        second.write(FrameType.RAFT, section((ShardId(1), heartbeat())))
        await one.until(lambda: len(one.messages) == 1)


# --- Bounds -------------------------------------------------------------------------------------------------------------


async def test_heartbeats_overtake_appends_when_a_stopped_peer_reads_again() -> None:
    """64 appends of 1 MiB wait for a peer that does not read; its next heartbeats come after little of that, not after all."""
    reading = asyncio.Event()
    done = asyncio.Event()
    received: list[tuple[ShardId, Message]] = []

    async def play(peer: HandPeer) -> None:
        await peer.accept(2)
        await reading.wait()
        while len(received) < 128:
            received.extend(await peer.read_messages())
        done.set()

    async with listen_by_hand(play) as address, rig() as net:
        one = await net.node(1, replace(FAST, bulk_bytes_max=80 * MIB))
        net.book[TWO] = address
        one.network.send(TWO, ShardId(99), heartbeat())
        one.network.flush()
        await one.until(lambda: one.network.connected(TWO))
        for index in range(1, 65):
            one.network.send(TWO, ShardId(1), append(index, MIB))
        one.network.flush()
        await until_blocked(one)
        for shard in range(63):
            one.network.send(TWO, ShardId(shard), heartbeat())
        one.network.flush()
        reading.set()
        async with asyncio.timeout(20):
            await done.wait()
        kinds = [type(message) for _, message in received[1:]]
        assert kinds.index(Heartbeat) <= 6, "what had left already: the write in progress and the kernels' buffers"
        assert kinds.count(Append) == 64
        assert [message.entries[0].index for _, message in received if isinstance(message, Append)] == list(
            range(1, 65)
        )
        assert one.network.status()[0].traffic.messages_dropped == 0


async def test_peer_that_does_not_read_costs_a_bounded_queue() -> None:
    """Appends beyond the bound are dropped and counted, and the owner is told once per flush."""

    async def play(peer: HandPeer) -> None:
        await peer.accept(2)
        await asyncio.Event().wait()

    async with listen_by_hand(play) as address, rig() as net:
        one = await net.node(1, replace(FAST, bulk_bytes_max=4 * MIB))
        net.book[TWO] = address
        one.network.send(TWO, ShardId(1), heartbeat())
        one.network.flush()
        await one.until(lambda: one.network.connected(TWO))
        for index in range(1, 65):
            one.network.send(TWO, ShardId(1), append(index, MIB))
        one.network.flush()
        assert one.heard("dropped", 2) == 1
        status = one.network.status()[0]
        assert status.traffic.messages_dropped >= 60
        assert status.queued_bytes <= 4 * MIB


async def test_appends_are_dropped_without_a_connection_and_votes_wait() -> None:
    """While dialing, a vote is kept; an append is dropped, and the owner told at the flush."""
    async with rig() as net:
        one, two = await net.node(1), await net.node(2)
        one.network.send(TWO, ShardId(1), append(1, 10))
        one.network.send(TWO, ShardId(1), heartbeat())
        assert one.events == [], "nobody is called back from inside send"
        one.network.flush()
        assert one.events == [("dropped", TWO)]
        await two.until(lambda: bool(two.messages))
        assert [type(message) for _, _, message in two.messages] == [Heartbeat]


async def test_silent_peer_is_cut_off() -> None:
    """A peer that accepts and then says nothing is dead, however healthy its kernel is."""

    async def play(peer: HandPeer) -> None:
        await peer.accept(2)
        await peer.read_to_the_end()

    async with listen_by_hand(play) as address, rig() as net:
        one = await net.node(1, replace(FAST, idle_timeout_ms=60, ping_interval_ms=20))
        net.book[TWO] = address
        one.network.send(TWO, ShardId(1), heartbeat())
        one.network.flush()
        await one.until(lambda: one.heard("disconnected", 2) == 1)
        assert one.reported("peer_disconnected") == ["node 2 was silent for 60 ms"]


async def test_dialer_that_goes_silent_is_cut_off() -> None:
    """The accepting side needs no pings of its own: it misses the dialer's."""
    async with rig() as net:
        one = await net.node(1, replace(FAST, idle_timeout_ms=60, ping_interval_ms=20))
        peer = await net.dial(one, hand_identity(2))
        await peer.read_kind(FrameType.HELLO_REPLY)
        assert await peer.read_to_the_end() == []


async def test_connection_without_introduction_is_cut_off() -> None:
    """Whoever connects and says nothing does not hold a place for ever."""
    async with rig() as net:
        one = await net.node(1, replace(FAST, dial_timeout_ms=60))
        peer = await net.connect(one)
        assert await peer.read_to_the_end() == []


async def test_too_many_connections_are_refused() -> None:
    """The bound on accepted connections holds, and those that are there stay."""
    async with rig() as net:
        one = await net.node(1, replace(FAST, accepted_max=1))
        first = await net.dial(one, hand_identity(2))
        await first.read_kind(FrameType.HELLO_REPLY)
        second = await net.dial(one, hand_identity(3))
        assert await second.read_to_the_end() == []
        first.write(FrameType.RAFT, section((ShardId(1), heartbeat())))
        await one.until(lambda: len(one.messages) == 1)


async def test_round_trip_is_measured() -> None:
    """Pings are echoed; the smoothed time is there for the metrics."""
    async with rig() as net:
        one, _ = await net.pair()
        await one.beat_until(2, lambda: one.network.status()[0].round_trip_ns > 0)


# --- Damage -------------------------------------------------------------------------------------------------------------

RAFT_FRAME = bytes(encode_frame(FrameType.RAFT, section((ShardId(1), heartbeat()))))
GOOD_SECTION = section((ShardId(1), heartbeat()))


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (RAFT_FRAME[:-1] + bytes([RAFT_FRAME[-1] ^ 1]), "checksum"),
        (bytes(encode_frame(FrameType.RAFT, GOOD_SECTION[:-1])), "ends at byte"),
        (bytes(encode_frame(FrameType.RAFT, GOOD_SECTION + b"x")), "ends at byte"),
        (bytes(encode_frame(FrameType.RAFT, b"\x02" + GOOD_SECTION[1:])), "format 2"),
        (bytes(encode_frame(FrameType.RESPONSE, bytes(9))), "RESPONSE"),
        (bytes(encode_frame(FrameType.HELLO, b"")), "HELLO"),
        (bytes(encode_frame(FrameType.SNAPSHOT_CHUNK, b"abc")), "not for snapshots"),
        (bytes(encode_frame(FrameType.REQUEST, b"abc")), "no head"),
        (bytes(encode_frame(FrameType.PING, b"abc")), "ping of 3 bytes"),
        (b"\0" * 12, "begins with"),
    ],
    ids=["bit", "cut", "trailing", "newer", "response", "hello", "chunk", "request", "ping", "noise"],
)
async def test_damaged_frame_closes_the_connection(stream: bytes, words: str) -> None:
    """What came before it counts, nothing after it does, and the report says what was wrong."""
    async with rig() as net:
        one = await net.node(1)
        peer = await net.dial(one, hand_identity(2))
        await peer.read_kind(FrameType.HELLO_REPLY)
        peer.write_bytes(RAFT_FRAME + stream + RAFT_FRAME)
        assert await peer.read_to_the_end() == []
        await one.until(lambda: bool(one.reported("peer_refused")))
        assert words in one.reported("peer_refused")[0]
        assert len(one.messages) == 1


async def test_large_frame_before_the_handshake_is_refused() -> None:
    """A stranger cannot make us buffer megabytes."""
    async with rig() as net:
        one = await net.node(1)
        peer = await net.connect(one)
        peer.write(FrameType.HELLO, bytes(5000))
        assert await peer.read_to_the_end() == []
        assert "at most 4096 are allowed here" in one.reported("peer_refused")[0]


# --- Life ---------------------------------------------------------------------------------------------------------------


async def test_listening_beyond_loopback_needs_tls_or_a_word() -> None:
    """The refusal says what to do."""
    async with rig() as net:
        with pytest.raises(ConfigError, match=r"refusing to listen on 0\.0\.0\.0 without TLS"):
            await net.node(1, replace(FAST, listen=("0.0.0.0", 0)))


async def test_close_ends_a_dial_in_progress() -> None:
    """A node that shuts down while it dials does not hang, and pending requests end."""

    async def play(peer: HandPeer) -> None:
        await peer.read_to_the_end()

    async with listen_by_hand(play) as address, rig() as net:
        one = await net.node(1, replace(FAST, dial_timeout_ms=3_600_000))
        net.book[TWO] = address
        results: list[bytes | RaftCacheError] = []
        one.network.request(TWO, KIND_ECHO, b"x", results.append, soon_ns())
        one.network.flush()
        await asyncio.sleep(0)
        await one.network.aclose()
        assert [type(result) for result in results] == [Unavailable]
        with pytest.raises(Unavailable, match="shutting down"):
            await one.ask(2, b"late")


async def test_forgotten_node_frees_its_link() -> None:
    """After a node is removed nothing of it is kept."""
    async with rig() as net:
        one, two = await net.pair()
        one.network.forget(TWO)
        await one.until(lambda: one.heard("disconnected", 2) == 1)
        assert one.network.status() == []
        assert two.network.status() == []


def test_settings_that_cannot_work_are_a_bug() -> None:
    """The composition root derives them from checked settings."""
    with pytest.raises(AssertionError, match="two lost pings"):
        PeerSettings(ping_interval_ms=2000, idle_timeout_ms=3000)
