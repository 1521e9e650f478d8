"""What leaves first, what waits, and what is dropped."""

from raftcache.ids import Index, ReplicaId, ShardId, Term
from raftcache.raft.messages import Append, AppendReply, Heartbeat, HeartbeatReply, Message, VoteReply
from raftcache.transport.codec import decode_section
from raftcache.transport.frames import FrameParser, FrameType
from raftcache.transport.outbox import SECTION_BYTES_MAX, TURN_BYTES, URGENT_BYTES_MAX, Call, Outbox
from tests.transport.network import append, heartbeat

MIB = 1 << 20


def frames_of(data: bytearray) -> list[tuple[FrameType, bytes]]:
    parser = FrameParser()
    parser.receive(bytes(data))
    found = []
    while (frame := parser.next_frame()) is not None:
        found.append((frame[0], bytes(frame[1])))
    return found


def messages_of(data: bytearray) -> list[tuple[ShardId, Message]]:
    return [
        message for kind, payload in frames_of(data) if kind is FrameType.RAFT for message in decode_section(payload)
    ]


def vote(number: int) -> VoteReply:
    return VoteReply(ReplicaId(number), ReplicaId(1), Term(1), True)


def test_one_flush_of_small_messages_is_one_frame() -> None:
    """The usual turn: heartbeats of all shards, acknowledgements and small appends share one frame."""
    outbox = Outbox()
    for shard in range(64):
        assert outbox.add_message(ShardId(shard), heartbeat())
    assert outbox.add_message(ShardId(1), append(5, 1000))
    assert outbox.add_message(ShardId(1), vote(3))
    data = outbox.take(MIB)
    assert len(frames_of(data)) == 1
    kinds = [type(message) for _, message in messages_of(data)]
    assert kinds == [Heartbeat] * 64 + [VoteReply, Append]
    assert outbox.is_empty()


def test_heartbeats_leave_before_the_appends_that_came_earlier() -> None:
    """64 MiB of appends wait; what is urgent is nevertheless the first frame of the next write, and of the one after."""
    outbox = Outbox(bulk_bytes_max=80 * MIB)
    for index in range(1, 65):
        assert outbox.add_message(ShardId(1), append(index, MIB))
    received: list[tuple[ShardId, Message]] = []
    writes = 0
    while not outbox.is_empty():
        outbox.add_message(ShardId(7), heartbeat(commit=writes))
        data = outbox.take(MIB)
        first = decode_section(frames_of(data)[0][1])
        assert first == [(7, heartbeat(commit=writes))]
        assert len(data) < 2 * MIB + 1000, "a write hands over little more than it was asked for"
        received += [(shard, message) for shard, message in messages_of(data) if isinstance(message, Append)]
        writes += 1
    assert received == [(1, append(index, MIB)) for index in range(1, 65)]
    assert writes >= 32


def test_newer_heartbeat_replaces_one_that_still_waits() -> None:
    """A peer that does not read for an hour is owed one heartbeat per shard, not 36,000."""
    outbox = Outbox()
    for commit in range(1000):
        outbox.add_message(ShardId(1), heartbeat(commit=commit))
        outbox.add_message(ShardId(2), heartbeat(commit=commit, to=5))
        outbox.add_message(ShardId(1), HeartbeatReply(ReplicaId(2), ReplicaId(1), Term(commit)))
    assert messages_of(outbox.take(MIB)) == [
        (1, heartbeat(commit=999)),
        (2, heartbeat(commit=999, to=5)),
        (1, HeartbeatReply(ReplicaId(2), ReplicaId(1), Term(999))),
    ]


def test_full_bulk_lane_drops_appends_and_nothing_else() -> None:
    """The bound holds for appends; heartbeats and votes still find room."""
    outbox = Outbox(bulk_bytes_max=4 * MIB)
    taken = [outbox.add_message(ShardId(1), append(index, MIB)) for index in range(1, 10)]
    assert taken == [True] * 3 + [False] * 6
    assert outbox.bytes_waiting < 4 * MIB
    assert outbox.add_message(ShardId(1), heartbeat())
    assert outbox.add_message(ShardId(1), vote(2))
    assert outbox.clear() == 5


def test_append_larger_than_the_lane_passes_alone() -> None:
    """A bound must not stop progress for ever."""
    outbox = Outbox(bulk_bytes_max=1000)
    assert outbox.add_message(ShardId(1), append(1, 5000))
    assert not outbox.add_message(ShardId(1), append(2, 10))


def test_full_urgent_lane_drops() -> None:
    """Votes and acknowledgements are bounded as well."""
    outbox = Outbox()
    taken = 0
    while outbox.add_message(ShardId(1), vote(taken)):
        taken += 1
    assert outbox.bytes_waiting <= URGENT_BYTES_MAX
    assert len(messages_of(outbox.take(MIB))) == taken


def test_message_larger_than_a_frame_is_refused() -> None:
    """The peer would have to refuse it, and the connection with it."""
    outbox = Outbox()
    outbox.frame_bytes_max = 2000
    assert not outbox.add_message(ShardId(1), append(1, 2000))
    assert outbox.add_message(ShardId(1), append(1, 1900))


def test_no_frame_exceeds_what_the_peer_allows() -> None:
    """With everything full, the smallest frame size that can be configured still holds every frame."""
    outbox = Outbox()
    outbox.frame_bytes_max = 128 << 10
    for shard in range(1025):
        outbox.add_message(ShardId(shard), heartbeat())
        outbox.add_message(ShardId(shard), HeartbeatReply(ReplicaId(2), ReplicaId(1), Term(1)))
        for number in range(5):
            outbox.add_message(ShardId(shard), AppendReply(ReplicaId(number), ReplicaId(1), Term(1), Index(1)))
    for index in range(1, 40):
        outbox.add_message(ShardId(1), append(index, 50_000))
    sizes = []
    count = 0
    while not outbox.is_empty():
        data = outbox.take(MIB)
        sizes += [len(payload) for _, payload in frames_of(data)]
        count += len(messages_of(data))
    assert max(sizes) <= 128 << 10
    assert count == 1025 * 7 + 39
    assert SECTION_BYTES_MAX < 128 << 10


def test_calls_and_appends_take_turns() -> None:
    """Neither a flood of requests nor a follower that catches up starves the other."""
    outbox = Outbox()
    for index in range(1, 20):
        outbox.add_message(ShardId(1), append(index, 200_000))
        assert outbox.add_call(Call(FrameType.REQUEST, [bytes(200_000)]))
    order = [kind for kind, _ in frames_of(outbox.take(4 * MIB))]
    runs = [order[0]]
    for kind in order[1:]:
        if kind is not runs[-1]:
            runs.append(kind)
    assert len(runs) >= 2 * MIB // TURN_BYTES // 2
    assert max(order[i : i + 4].count(FrameType.REQUEST) for i in range(len(order) - 4)) <= 3


def test_cancelled_call_never_leaves_and_a_taken_one_says_so() -> None:
    """`handed_over` is what makes an outcome indefinite; a call that was withdrawn in time stays definite."""
    outbox = Outbox()
    calls = [Call(FrameType.REQUEST, [b"x"]) for _ in range(3)]
    for call in calls:
        outbox.add_call(call)
    calls[1].cancelled = True
    assert len(frames_of(outbox.take(MIB))) == 2
    assert [call.handed_over for call in calls] == [True, False, True]
    assert outbox.is_empty()
    assert outbox.call_bytes_waiting == 0


def test_full_call_lane_refuses() -> None:
    """Requests are refused, not dropped: their owner is told at once."""
    outbox = Outbox(call_bytes_max=1000)
    assert outbox.add_call(Call(FrameType.REQUEST, [bytes(900)]))
    assert not outbox.add_call(Call(FrameType.REQUEST, [bytes(200)]))


def test_control_frames_come_first() -> None:
    """A ping measures the network, not our own queue."""
    outbox = Outbox()
    outbox.add_message(ShardId(1), heartbeat())
    outbox.add_control(FrameType.PING, bytes(8))
    assert [kind for kind, _ in frames_of(outbox.take(MIB))] == [FrameType.PING, FrameType.RAFT]
