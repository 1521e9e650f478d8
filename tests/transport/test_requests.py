"""Requests between nodes: each ends exactly once, and its error tells whether it may have arrived."""

import asyncio
from dataclasses import replace

import pytest

from raftcache.errors import (
    ANSWER_DROPPED,
    BatchTooLarge,
    DeadlineExpired,
    OutcomeUnknown,
    Overloaded,
    RaftCacheError,
    Unavailable,
)
from raftcache.ids import NodeId, ShardId
from raftcache.transport import accepted, calls
from raftcache.transport.accepted import SMALL_ANSWER_BYTES
from raftcache.transport.calls import CALL_OVERHEAD_BYTES, Status, decode_request, encode_goodbye, encode_response
from raftcache.transport.frames import FrameType
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
        await one.until(lambda: ("peer_message_too_large", {"peer": TWO, "frame_bytes_max": 200_000}) in one.reports)


@pytest.mark.parametrize("more", [-CALL_OVERHEAD_BYTES, 0, 1, 4 * MIB])
async def test_answer_larger_than_a_frame_comes_in_parts(more: int) -> None:
    """And the others between them."""
    answers = [bytes([1]) * (MIB + more), b"small", bytes([3]) * (MIB + more)]
    async with rig() as net:
        one, two = await net.pair(replace(FAST, frame_bytes_max=MIB))
        two.answering = False
        asked = [asyncio.ensure_future(one.ask(2, b"x")) for _ in answers]
        await two.until(lambda: len(two.unanswered) == len(answers))
        for respond, answer in zip(two.unanswered, answers, strict=True):
            respond(answer)
        assert answers == await asyncio.gather(*asked)


async def test_answer_larger_than_any_is_an_unknown_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was carried out; only the answer does not fit."""
    monkeypatch.setattr(accepted, "ANSWER_BYTES_MAX", 2 * MIB)
    async with rig() as net:
        one, two = await net.pair(replace(FAST, frame_bytes_max=MIB))
        two.answering = False
        asked = asyncio.ensure_future(one.ask(2, b"x"))
        await two.until(lambda: len(two.unanswered) == 1)
        two.unanswered[0](bytes(2 * MIB + 1))
        with pytest.raises(OutcomeUnknown, match="carried it out") as caught:
            await asked
        assert ANSWER_DROPPED == caught.value.metadata


async def test_answers_beyond_what_may_wait_are_dropped_and_the_link_goes_on() -> None:
    """Here 4 MiB may wait. The link is Raft's, and everybody else's requests': small answers pass, and nothing is cut off."""
    answers = [bytes(MIB + MIB // 2)] * 5 + [bytes(SMALL_ANSWER_BYTES)] * 2
    async with rig() as net:
        one, two = await net.pair(replace(FAST, frame_bytes_max=MIB, call_bytes_max=MIB))
        two.answering = False
        asked = [asyncio.ensure_future(one.ask(2, b"x")) for _ in answers]
        await two.until(lambda: len(two.unanswered) == len(answers))
        for respond, answer in zip(two.unanswered, answers, strict=True):
            respond(answer)
        assert not any(connection.reading_paused for connection in two.network._listener.connections)
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert answers[:2] == results[:2]
        assert [OutcomeUnknown] * 3 == [type(result) for result in results[2:5]]
        assert answers[5:] == results[5:]
        assert not one.heard("disconnected", 2)


async def test_peer_whose_answer_has_no_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are kept, so there is a limit to them."""
    monkeypatch.setattr(calls, "ANSWER_BYTES_MAX", 1_000)

    async def play(peer: HandPeer) -> None:
        await peer.accept(2)
        request_id, _, _ = decode_request(await peer.read_kind(FrameType.REQUEST))
        for _ in range(3):
            call = encode_response(request_id, Status.PART, bytes(400))
            peer.write(call.kind, b"".join(call.buffers))
        await peer.read_to_the_end()

    async with listen_by_hand(play) as address, rig() as net:
        one = await net.node(1)
        net.book[TWO] = address
        with pytest.raises(OutcomeUnknown):
            await one.ask(2, b"x")
        assert one.heard("disconnected", 2) == 1


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
