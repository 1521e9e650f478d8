"""Real connections on loopback: who gets in, and who is turned away with which words."""

import re
from dataclasses import replace

import pytest

from raftcache.errors import IdentityMismatch, Unavailable
from raftcache.ids import ClusterId, NodeId, ShardId
from raftcache.raft.messages import Message
from raftcache.transport.calls import Status
from raftcache.transport.codec import encode_section
from raftcache.transport.frames import FrameType
from raftcache.transport.handshake import (
    NO_CLUSTER,
    Refusal,
    Refused,
    decode_refusal,
    encode_refusal,
)
from tests.transport.network import (
    CLUSTER,
    FAST,
    KIND_ECHO,
    KIND_IDENTIFY,
    HandPeer,
    hand_identity,
    heartbeat,
    listen_by_hand,
    outcome,
    rig,
    soon_ns,
)

TWO = NodeId(2)


def section(*messages: tuple[ShardId, Message]) -> bytes:
    return b"".join(encode_section(messages))


# --- Handshake ----------------------------------------------------------------------------------------------------------


async def test_wrong_cluster_is_refused_and_said() -> None:
    """Both sides report it; no message passes."""
    async with rig() as net:
        one, two = await net.node(1), await net.node(2, cluster=ClusterId(8))
        one.network.send(TWO, ShardId(1), heartbeat())
        one.network.flush()
        await one.until(lambda: bool(one.reported("peer_unreachable")))
        assert one.reported("peer_unreachable") == ["node 2 belongs to cluster 8, node 1 to cluster 7"]
        assert two.reported("peer_refused") == ["node 2 belongs to cluster 8, node 1 to cluster 7"]
        assert two.messages == []


async def test_address_of_somebody_else_is_refused() -> None:
    """After addresses were swapped, a message meant for node 3 does not reach node 2."""
    async with rig() as net:
        one, two = await net.node(1), await net.node(2)
        net.book[NodeId(3)] = two.address
        one.network.send(NodeId(3), ShardId(1), heartbeat())
        one.network.flush()
        await one.until(lambda: bool(one.reported("peer_unreachable")))
        assert one.reported("peer_unreachable") == ["this address belongs to node 2, not to node 3"]
        assert two.messages == []


async def test_own_address_under_another_name_is_refused() -> None:
    """A stale hint may lead a node to itself."""
    async with rig() as net:
        one = await net.node(1)
        net.book[NodeId(3)] = one.address
        one.network.send(NodeId(3), ShardId(1), heartbeat())
        one.network.flush()
        await one.until(lambda: bool(one.reported("peer_unreachable")))
        assert "its own id" in one.reported("peer_unreachable")[0]


async def test_older_life_of_a_node_is_refused() -> None:
    """A data directory restored from a copy has voted already; it must not come back as the same node."""
    async with rig() as net:
        one = await net.node(1)
        newer = await net.dial(one, hand_identity(2, incarnation=5))
        await newer.read_kind(FrameType.HELLO_REPLY)
        older = await net.dial(one, hand_identity(2, incarnation=4))
        refusal = decode_refusal(await older.read_kind(FrameType.REFUSE))
        assert refusal.why is Refused.INCARNATION
        newer.write(FrameType.RAFT, section((ShardId(1), heartbeat())))
        await one.until(lambda: len(one.messages) == 1)


async def test_older_life_is_refused_by_the_dialer_too() -> None:
    """Whoever dials it finds it out as well."""

    async def play(peer: HandPeer) -> None:
        await peer.accept(2)
        await peer.read_to_the_end()

    async with listen_by_hand(play) as address, rig() as net:
        one = await net.node(1)
        newer = await net.dial(one, hand_identity(2, incarnation=5))
        await newer.read_kind(FrameType.HELLO_REPLY)
        net.book[TWO] = address
        one.network.send(TWO, ShardId(1), heartbeat())
        one.network.flush()
        await one.until(lambda: bool(one.reported("peer_unreachable")))
        assert "restored from a copy" in one.reported("peer_unreachable")[0]


async def test_newer_release_is_refused_with_both_versions() -> None:
    """The dialer's report carries the acceptor's words."""

    async def play(peer: HandPeer) -> None:
        await peer.read_kind(FrameType.HELLO)
        peer.write(FrameType.REFUSE, encode_refusal(Refusal(Refused.VERSION, "node 2 speaks 4 to 5")))

    async with listen_by_hand(play) as address, rig() as net:
        one = await net.node(1)
        net.book[TWO] = address
        one.network.send(TWO, ShardId(1), heartbeat())
        one.network.flush()
        await one.until(lambda: bool(one.reported("peer_unreachable")))
        assert one.reported("peer_unreachable") == ["node 2 speaks 4 to 5"]


async def test_something_else_on_the_port_is_reported() -> None:
    """An address that leads to another service fails with a hint, and is tried again later."""

    async def play(peer: HandPeer) -> None:
        peer.write_bytes(b"220 mail.example.org ESMTP\r\n")
        await peer.read_to_the_end()

    async with listen_by_hand(play) as address, rig() as net:
        one = await net.node(1)
        net.book[TWO] = address
        one.network.send(TWO, ShardId(1), heartbeat())
        one.network.flush()
        await one.until(lambda: bool(one.reported("peer_unreachable")))
        assert "not a raftcache peer port" in one.reported("peer_unreachable")[0]
        traffic = one.network.status()[0].traffic
        await one.beat_until(2, lambda: traffic.dial_failures >= 2)


async def test_acceptor_that_says_nothing_is_given_up() -> None:
    """A dial, handshake included, has a limit."""

    async def play(peer: HandPeer) -> None:
        await peer.read_to_the_end()

    async with listen_by_hand(play) as address, rig() as net:
        one = await net.node(1, replace(FAST, dial_timeout_ms=50))
        net.book[TWO] = address
        with pytest.raises(Unavailable, match="no answer within 50 ms"):
            await one.ask(2, b"?")


# --- Before there is a cluster ------------------------------------------------------------------------------------------


async def test_uninitialised_nodes_exchange_bootstrap_requests_only() -> None:
    """`identify` and `join` pass, everything else is refused, and Raft messages never leave."""
    async with rig() as net:
        one, two = await net.node(1, cluster=NO_CLUSTER), await net.node(2, cluster=NO_CLUSTER)
        assert await one.ask(2, b"who", kind=KIND_IDENTIFY) == b"answer to who"
        with pytest.raises(Unavailable, match="not in one initialised cluster"):
            await one.ask(2, b"x", kind=KIND_ECHO)
        one.network.send(TWO, ShardId(0), heartbeat())
        one.network.flush()
        assert one.network.status()[0].traffic.messages_dropped == 1
        assert not one.network.connected(TWO)
        assert two.requests == [(NodeId(1), KIND_IDENTIFY, b"who")]


@pytest.mark.parametrize("kind", [KIND_ECHO, KIND_IDENTIFY])
async def test_member_guards_its_own_door(kind: int) -> None:
    """Even a dialer that does not hold back gets no answer, and no Raft message in, without a cluster."""
    async with rig() as net:
        one = await net.node(1)
        peer = await net.dial(one, hand_identity(2, cluster=NO_CLUSTER))
        await peer.read_kind(FrameType.HELLO_REPLY)
        peer.write(FrameType.REQUEST, b"\1\0\0\0\0\0\0\0" + bytes([kind]))
        response = await peer.read_kind(FrameType.RESPONSE)
        expected = Status.ANSWER if kind == KIND_IDENTIFY else Status.NOT_INITIALISED
        assert response[8] == expected
        peer.write(FrameType.RAFT, section((ShardId(1), heartbeat())))
        assert await peer.read_to_the_end() == []
        assert one.messages == []


async def test_node_that_joins_is_linked_to_as_a_member() -> None:
    """With the cluster id set, old bootstrap connections make place for real ones."""
    async with rig() as net:
        one, two = await net.node(1), await net.node(2, cluster=NO_CLUSTER)
        await one.ask(2, b"join", kind=KIND_IDENTIFY)
        assert not one.network.connected(TWO)
        two.network.set_cluster(CLUSTER)
        await one.beat_until(2, lambda: bool(two.messages))
        await two.beat_until(1, lambda: bool(one.messages))


async def test_bare_address_answers_whoever_lives_there() -> None:
    """`init` and `join` know addresses only; the connection is for that one request."""
    async with rig() as net:
        one, two = await net.node(1, cluster=NO_CLUSTER), await net.node(2)
        ask = one.network.request_address
        answer = await outcome(lambda done: ask(two.address, KIND_IDENTIFY, b"who", done, soon_ns()))
        assert answer == b"answer to who"
        assert one.network.status() == []
        for nobody, shown in ((("127.0.0.1", 1), "127.0.0.1:1"), (("::1", 1), "[::1]:1")):
            with pytest.raises(Unavailable, match=re.escape(f"the node at {shown} is not reachable")):
                await outcome(lambda done, to=nobody: ask(to, KIND_IDENTIFY, b"who", done, soon_ns()))
        answer = await outcome(lambda done: ask(one.address, KIND_IDENTIFY, b"me", done, soon_ns()))
        assert answer == b"answer to me", "`init` names all first members, this node among them"


async def test_errand_to_another_cluster_is_refused_for_good() -> None:
    """Who asks an address and meets another cluster is told so, and not to come again later."""
    async with rig() as net:
        one, two = await net.node(1), await net.node(2, cluster=ClusterId(8))
        ask = one.network.request_address
        with pytest.raises(IdentityMismatch, match="belongs to cluster 8"):
            await outcome(lambda done: ask(two.address, KIND_IDENTIFY, b"who", done, soon_ns()))
