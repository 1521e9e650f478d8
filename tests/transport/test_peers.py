"""Real connections on loopback: who gets in, what arrives, what is lost, and who is told."""

import asyncio
from dataclasses import replace

import pytest

from raftcache.errors import (
    BatchTooLarge,
    ConfigError,
    DeadlineExpired,
    OutcomeUnknown,
    Overloaded,
    RaftCacheError,
    Unavailable,
)
from raftcache.ids import ClusterId, NodeId, ReplicaId, ShardId, Term
from raftcache.raft.messages import Append, Heartbeat, Message, VoteReply
from raftcache.transport.calls import Status, decode_request, encode_goodbye, encode_response
from raftcache.transport.codec import encode_section
from raftcache.transport.frames import FrameType, encode_frame
from raftcache.transport.handshake import (
    NO_CLUSTER,
    Refusal,
    Refused,
    decode_refusal,
    encode_refusal,
)
from raftcache.transport.links import LinkState
from raftcache.transport.local_node import PeerSettings
from tests.transport.network import (
    CLUSTER,
    FAST,
    KIND_ECHO,
    KIND_IDENTIFY,
    HandPeer,
    Node,
    append,
    hand_identity,
    heartbeat,
    listen_by_hand,
    outcome,
    rig,
    soon_ns,
)

MIB = 1 << 20
TWO = NodeId(2)


def section(*messages: tuple[ShardId, Message]) -> bytes:
    return b"".join(encode_section(messages))


# --- Messages -----------------------------------------------------------------------------------------------------


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


# --- Bounds -------------------------------------------------------------------------------------------------------


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


async def until_blocked(node: Node) -> None:
    """Lets the loop run until the kernel takes no more for node 2."""
    status = node.network.status()[0]
    sent = -1
    async with asyncio.timeout(20):
        while sent != status.traffic.bytes_sent or node.network.status()[0].queued_bytes == 0:
            sent = status.traffic.bytes_sent
            for _ in range(50):
                await asyncio.sleep(0)


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


# --- Damage -------------------------------------------------------------------------------------------------------

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


# --- Handshake ----------------------------------------------------------------------------------------------------


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


# --- Before there is a cluster --------------------------------------------------------------------------------------


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
        with pytest.raises(Unavailable):
            await outcome(lambda done: ask(("127.0.0.1", 1), KIND_IDENTIFY, b"who", done, soon_ns()))
        answer = await outcome(lambda done: ask(one.address, KIND_IDENTIFY, b"me", done, soon_ns()))
        assert answer == b"answer to me", "`init` names all first members, this node among them"


# --- Requests -----------------------------------------------------------------------------------------------------


async def test_requests_are_answered_each_by_its_own_answer() -> None:
    """Many at once, answered in another order than asked."""
    async with rig() as net:
        one, two = await net.pair()
        two.answering = False
        answers: dict[int, bytes | RaftCacheError] = {}
        for number in range(20):

            def on_reply(result: bytes | RaftCacheError, number: int = number) -> None:
                answers[number] = result
                one.changed.set()

            one.network.request(TWO, KIND_ECHO, b"%d" % number, on_reply, soon_ns())
        assert answers == {}, "nobody is called back from inside request"
        await two.until(lambda: len(two.unanswered) == 20)
        for number in reversed(range(20)):
            two.unanswered[number](b"re %d" % number)
        await one.until(lambda: len(answers) == 20)
        assert answers == {number: b"re %d" % number for number in range(20)}


async def test_request_to_an_unreachable_node_is_definite() -> None:
    """It never left, so it may safely be sent elsewhere."""
    async with rig() as net:
        one = await net.node(1)
        net.book[TWO] = ("127.0.0.1", 1)
        with pytest.raises(Unavailable) as refused:
            await one.ask(2, b"x")
        assert refused.value.definite
        with pytest.raises(Unavailable, match="node 2 is not reachable"):
            await one.ask(2, b"x")


async def test_request_that_left_before_a_cut_is_indefinite() -> None:
    """The peer may have carried it out: the outcome is unknown, and says so. One that had not left is definite."""
    got_request = asyncio.Event()

    async def play(peer: HandPeer) -> None:
        await peer.accept(2)
        await peer.read_kind(FrameType.REQUEST)
        got_request.set()
        await asyncio.Event().wait()

    async with listen_by_hand(play) as address, rig() as net:
        one = await net.node(1)
        net.book[TWO] = address
        results: list[bytes | RaftCacheError] = []
        one.network.request(TWO, KIND_ECHO, b"left", results.append, soon_ns())
        async with asyncio.timeout(20):
            await got_request.wait()
        # Fill the socket, so that the next request cannot leave.
        for index in range(1, 9):
            one.network.send(TWO, ShardId(1), append(index, 4 * MIB))
        one.network.flush()
        await until_blocked(one)
        one.network.request(TWO, KIND_ECHO, b"waits", results.append, soon_ns())
        one.network.flush()
        one.network.forget(TWO)
        await one.until(lambda: len(results) == 2)
        by_definite = {result.definite: type(result) for result in results if isinstance(result, RaftCacheError)}
        assert by_definite == {False: OutcomeUnknown, True: Unavailable}


async def test_request_without_answer_ends_at_its_deadline() -> None:
    """Indefinite, since it left; an answer that comes later is dropped."""
    async with rig() as net:
        one, two = await net.pair()
        two.answering = False
        with pytest.raises(OutcomeUnknown, match="within the deadline"):
            await one.ask(2, b"x", seconds=0.05)
        await two.until(lambda: len(two.unanswered) == 1)
        two.unanswered[0](b"late")
        two.answering = True
        assert await one.ask(2, b"y") == b"answer to y"


async def test_request_that_could_not_leave_before_its_deadline_is_definite() -> None:
    """It waited behind a peer that does not read, and never will leave."""

    async def play(peer: HandPeer) -> None:
        await peer.accept(2)
        await asyncio.Event().wait()

    async with listen_by_hand(play) as address, rig() as net:
        one = await net.node(1)
        net.book[TWO] = address
        one.network.send(TWO, ShardId(1), heartbeat())
        one.network.flush()
        await one.until(lambda: one.network.connected(TWO))
        for index in range(1, 9):
            one.network.send(TWO, ShardId(1), append(index, 4 * MIB))
        one.network.flush()
        await until_blocked(one)
        with pytest.raises(DeadlineExpired):
            await one.ask(2, b"x", seconds=0.05)


async def test_too_many_requests_in_flight_are_refused() -> None:
    """At the bound the caller hears of it at once, definitely."""
    async with rig() as net:
        one, two = await net.pair(replace(FAST, requests_in_flight_max=2))
        two.answering = False
        results: list[bytes | RaftCacheError] = []
        for _ in range(2):
            one.network.request(TWO, KIND_ECHO, b"x", results.append, soon_ns())
        with pytest.raises(Overloaded, match="2 requests to node 2 are in flight"):
            await one.ask(2, b"y")
        assert results == []


async def test_acceptor_bounds_what_it_takes() -> None:
    """A dialer that keeps no bound of its own is told that there is one."""
    async with rig() as net:
        one = await net.node(1, replace(FAST, requests_in_flight_max=2))
        one.answering = False
        peer = await net.dial(one, hand_identity(2))
        await peer.read_kind(FrameType.HELLO_REPLY)
        for number in (1, 2, 3):
            peer.write(FrameType.REQUEST, bytes([number, 0, 0, 0, 0, 0, 0, 0, KIND_ECHO]))
        response = await peer.read_kind(FrameType.RESPONSE)
        assert (response[0], response[8]) == (3, Status.OVERLOADED)


async def test_request_larger_than_a_frame_is_refused() -> None:
    """With the limit's name: it is a setting."""
    async with rig() as net:
        one, _ = await net.pair(replace(FAST, frame_bytes_max=MIB))
        with pytest.raises(BatchTooLarge, match="larger than a frame of 1048576 bytes"):
            await one.ask(2, bytes(MIB))


async def test_lesser_frame_size_of_the_two_counts() -> None:
    """During a change of the setting the peer may still have the smaller one; it is known after the handshake."""

    async def play(peer: HandPeer) -> None:
        await peer.accept(2, frame_bytes_max=200_000)
        await peer.read_to_the_end()

    async with listen_by_hand(play) as address, rig() as net:
        one = await net.node(1)
        net.book[TWO] = address
        with pytest.raises(BatchTooLarge, match="larger than a frame of 200000 bytes"):
            await one.ask(2, bytes(300_000))
        one.network.send(TWO, ShardId(1), append(1, 300_000))
        one.network.flush()
        assert one.heard("dropped", 2) == 1


async def test_answer_larger_than_a_frame_is_an_unknown_outcome() -> None:
    """It was carried out; only the answer does not fit."""
    async with rig() as net:
        one, two = await net.pair(replace(FAST, frame_bytes_max=MIB))
        two.answering = False
        asked = asyncio.ensure_future(one.ask(2, b"x"))
        await two.until(lambda: len(two.unanswered) == 1)
        two.unanswered[0](bytes(MIB))
        with pytest.raises(OutcomeUnknown, match="carried it out"):
            await asked


async def test_peer_that_leaves_tells_what_it_did_not_take() -> None:
    """Requests after the one that its goodbye names are definite; those before are answered still."""

    async def play(peer: HandPeer) -> None:
        await peer.accept(2)
        ids = [decode_request(await peer.read_kind(FrameType.REQUEST))[0] for _ in range(3)]
        peer.write(FrameType.GOODBYE, encode_goodbye(ids[1]))
        for request_id in ids[:2]:
            call = encode_response(request_id, Status.ANSWER, b"fine")
            peer.write(call.kind, b"".join(call.buffers))
        assert await peer.read_to_the_end() == []

    async with listen_by_hand(play) as address, rig() as net:
        one = await net.node(1)
        net.book[TWO] = address
        results: list[bytes | RaftCacheError] = []
        for _ in range(3):
            one.network.request(TWO, KIND_ECHO, b"x", results.append, soon_ns())
        await one.until(lambda: one.heard("disconnected", 2) == 1)
        assert [type(result) for result in results] == [Unavailable, bytes, bytes]


async def test_node_that_closes_answers_what_it_took() -> None:
    """A rolling restart loses no request that had arrived."""
    async with rig() as net:
        one, two = await net.pair()
        two.answering = False
        results: list[bytes | RaftCacheError] = []
        one.network.request(TWO, KIND_ECHO, b"x", results.append, soon_ns())
        await two.until(lambda: len(two.unanswered) == 1)
        closing = asyncio.ensure_future(two.network.aclose(patience_ms=10_000))
        await asyncio.sleep(0)
        two.unanswered[0](b"still answered")
        await closing
        await one.until(lambda: one.heard("disconnected", 2) == 1)
        assert results == [b"still answered"]


async def test_peer_that_does_not_read_its_answers_is_no_longer_read() -> None:
    """Answers are bounded by taking no more requests, and in the end by cutting the peer off."""
    async with rig() as net:
        settings = replace(FAST, call_bytes_max=MIB, idle_timeout_ms=300, requests_in_flight_max=1000)
        one = await net.node(1, settings)
        one.answering = False
        peer = await net.dial(one, hand_identity(2))
        await peer.read_kind(FrameType.HELLO_REPLY)
        for number in range(1, 200):
            peer.write(FrameType.REQUEST, number.to_bytes(8, "little") + bytes([KIND_ECHO]))
        await one.until(lambda: len(one.unanswered) == 199)
        for respond in one.unanswered:
            respond(bytes(MIB // 4))
        traffic = one.network._local.traffic_of(TWO)
        # It never reads; what waits is bounded, and then the connection is gone.
        async with asyncio.timeout(20):
            for connection in one.network._listener.connections:
                await connection.gone.wait()
        assert traffic.bytes_sent < 60 * MIB


# --- Life ---------------------------------------------------------------------------------------------------------


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
