"""What waits to leave on one connection, and in which order it leaves. Sans-IO.

Three lanes, each bounded:

- *urgent*: heartbeats, votes, acknowledgements, pings. All of it leaves before anything else of the same write: a
  heartbeat must never wait behind tens of MiB of appends (reliability pitfall 30: head-of-line blocking
  by big entries starves heartbeats and elects leaders for nothing).
- *calls*: requests and responses, which must not be dropped silently. Full: refused.
- *bulk*: Appends, in order (an Append that overtook another would be refused by the follower as a gap). Full: dropped,
  as a network may; Raft sends again.

Rules of this file:
- `take(bytes)` hands over about that much, joined once; the rest waits for the next time the socket is writable. Calls
  and bulk take turns, so that neither starves the other;
- a heartbeat waits at most once per shard: a newer one of the same sender says all that the older one said, and more
  (higher term, commit, read position). So this lane is bounded by the number of shards;
- bytes are counted when they come in, so that bounds hold without encoding twice.
"""

from collections import deque

from raftcache.ids import ReplicaId, ShardId
from raftcache.raft.messages import Append, Heartbeat, HeartbeatReply, Message
from raftcache.transport.codec import (
    HEARTBEAT_BYTES,
    HEARTBEAT_REPLY_BYTES,
    SECTION_HEAD_BYTES,
    encode_head,
    encode_heartbeat,
    encode_heartbeat_reply,
    encode_message,
)
from raftcache.transport.frames import FRAME_BYTES_MAX, FrameType, FrameWriter

URGENT_BYTES_MAX = 1 << 20
"""Votes, acknowledgements and read indexes: some 60 bytes each, so 17,000 of them; 16 for each of 1,024 shards."""
BULK_BYTES_MAX = 32 << 20
"""The full windows (`raft.inflight_bytes_max` 8 MiB) of four shards that catch up at once."""
CALL_BYTES_MAX = 32 << 20
"""Requests, or responses, that wait for one peer: eight of `limits.batch_bytes_max`."""
TURN_BYTES = 256 << 10
"""What calls, or bulk, may write before it is the other's turn: 2 ms at 1 Gbit/s."""
SECTION_BYTES_MAX = 96 << 10
"""Everything that is urgent, and the Appends, share one frame up to here; beyond it, urgent messages must not wait for the
checksum of a frame that takes a while to arrive. Holds the heartbeats *and* replies of 1,025 shards (80 KiB), and is below
the smallest `limits.frame_bytes_max` (128 KiB)."""
assert SECTION_HEAD_BYTES + 1025 * (HEARTBEAT_BYTES + HEARTBEAT_REPLY_BYTES) < SECTION_BYTES_MAX


class Call:
    """A request or a response on its way out, as one frame."""

    __slots__ = ("buffers", "cancelled", "handed_over", "kind", "size")

    def __init__(self, kind: FrameType, buffers: list[bytes]) -> None:
        self.kind = kind
        self.buffers = buffers
        self.size = sum(map(len, buffers))
        self.handed_over = False
        """Given to the socket: from here on the peer may have it. Set once, by `Outbox.take`."""
        self.cancelled = False
        """Its owner no longer wants it; it never leaves. Only while not handed over."""


class Outbox:
    """The three lanes of one connection."""

    __slots__ = (
        "_bulk",
        "_bulk_bytes",
        "_bulk_bytes_max",
        "_call_bytes",
        "_call_bytes_max",
        "_calls",
        "_control",
        "_heartbeat_replies",
        "_heartbeats",
        "_urgent",
        "_urgent_bytes",
        "frame_bytes_max",
        "messages_too_large",
    )

    def __init__(self, *, bulk_bytes_max: int = BULK_BYTES_MAX, call_bytes_max: int = CALL_BYTES_MAX) -> None:
        self._heartbeats: dict[tuple[ShardId, ReplicaId], bytes] = {}
        self._heartbeat_replies: dict[tuple[ShardId, ReplicaId], bytes] = {}
        self._urgent: list[bytes] = []
        """One buffer per message."""
        self._urgent_bytes = 0
        self._control: list[tuple[FrameType, bytes]] = []
        """PING, PONG, GOODBYE: at most a few; their sender sees to that."""
        self._calls: deque[Call] = deque()
        self._call_bytes = 0
        self._bulk: deque[tuple[int, list[bytes]]] = deque()
        """(bytes, buffers) of each Append."""
        self._bulk_bytes = 0
        self._bulk_bytes_max = bulk_bytes_max
        self._call_bytes_max = call_bytes_max
        self.frame_bytes_max = FRAME_BYTES_MAX
        """The largest payload that both ends allow; set by the handshake. Nothing larger gets in."""
        self.messages_too_large = 0
        """Raft messages refused because no frame holds them: Raft would repeat them for ever, so somebody must be told."""

    # --- In -----------------------------------------------------------------------------------------------------------

    def add_message(self, shard: ShardId, message: Message) -> bool:
        """Encodes and queues. False: the lane is full or the message larger than a frame may be; it is dropped."""
        if isinstance(message, Heartbeat):
            self._heartbeats[shard, message.to] = encode_heartbeat(shard, message)
            return True
        if isinstance(message, HeartbeatReply):
            self._heartbeat_replies[shard, message.to] = encode_heartbeat_reply(shard, message)
            return True
        buffers: list[bytes] = []
        size = encode_message(shard, message, buffers)
        if SECTION_HEAD_BYTES + size > self.frame_bytes_max:
            self.messages_too_large += 1
            return False
        if isinstance(message, Append):
            # One that is larger than the whole lane still passes when it is alone: a bound must not stop progress.
            if self._bulk and self._bulk_bytes + size > self._bulk_bytes_max:
                return False
            self._bulk.append((size, buffers))
            self._bulk_bytes += size
            return True
        if self._urgent_bytes + size > URGENT_BYTES_MAX:
            return False
        assert len(buffers) == 1, f"{type(message).__name__} is one record, not {len(buffers)}"
        self._urgent += buffers
        self._urgent_bytes += size
        return True

    def add_control(self, kind: FrameType, payload: bytes) -> None:
        self._control.append((kind, payload))

    def add_call(self, call: Call) -> bool:
        """Queues a request or response. False: the lane is full, and the caller refuses."""
        assert call.size <= self.frame_bytes_max, f"a call of {call.size} bytes, at most {self.frame_bytes_max}"
        if self._calls and self._call_bytes + call.size > self._call_bytes_max:
            return False
        self._calls.append(call)
        self._call_bytes += call.size
        return True

    def clear_messages(self) -> int:
        """Forgets the Raft messages. Returns how many there were."""
        dropped = len(self._heartbeats) + len(self._heartbeat_replies) + len(self._urgent) + len(self._bulk)
        self._heartbeats.clear()
        self._heartbeat_replies.clear()
        self._urgent.clear()
        self._bulk.clear()
        self._urgent_bytes = self._bulk_bytes = 0
        return dropped

    def clear(self) -> int:
        """Forgets everything; calls are their owners' to answer for. Returns the number of Raft messages dropped."""
        self._control.clear()
        self._calls.clear()
        self._call_bytes = 0
        return self.clear_messages()

    # --- Out ----------------------------------------------------------------------------------------------------------

    def is_empty(self) -> bool:
        return not (
            self._heartbeats or self._bulk or self._urgent or self._calls or self._heartbeat_replies or self._control
        )

    @property
    def bytes_waiting(self) -> int:
        urgent = self._urgent_bytes + HEARTBEAT_BYTES * len(self._heartbeats)
        return urgent + HEARTBEAT_REPLY_BYTES * len(self._heartbeat_replies) + self._call_bytes + self._bulk_bytes

    @property
    def call_bytes_waiting(self) -> int:
        return self._call_bytes

    def take(self, bytes_wanted: int) -> bytearray:
        """The next bytes to write: all that is urgent, then calls and bulk by turns until `bytes_wanted` is reached."""
        writer = FrameWriter()
        for kind, payload in self._control:
            writer.add(kind, [payload], len(payload))
        self._control.clear()
        self._take_urgent(writer)
        while writer.size < bytes_wanted and (self._calls or self._bulk):
            self._take_calls(writer, min(bytes_wanted, writer.size + TURN_BYTES))
            if self._bulk:
                self._take_bulk(writer)
        return writer.finish()

    def _take_urgent(self, writer: FrameWriter) -> None:
        """Heartbeats, their replies and what else is urgent, and the Appends with them if all of it is small: the usual case,
        one frame per flush."""
        heartbeats, replies, urgent = self._heartbeats, self._heartbeat_replies, self._urgent
        beats = HEARTBEAT_BYTES * len(heartbeats) + HEARTBEAT_REPLY_BYTES * len(replies)
        everything = SECTION_HEAD_BYTES + beats + self._urgent_bytes + self._bulk_bytes
        if everything <= SECTION_BYTES_MAX:
            if everything > SECTION_HEAD_BYTES:
                messages = urgent.copy()
                for _, buffers in self._bulk:
                    messages += buffers
                self._add_section(writer, messages, len(urgent) + len(self._bulk), everything)
                urgent.clear()
                self._bulk.clear()
                self._urgent_bytes = self._bulk_bytes = 0
            return
        if beats:
            self._add_section(writer, [], 0, SECTION_HEAD_BYTES + beats)
        lo = 0
        while lo < len(urgent):
            hi, size = lo, SECTION_HEAD_BYTES
            while hi < len(urgent) and (hi == lo or size + len(urgent[hi]) <= SECTION_BYTES_MAX):
                size += len(urgent[hi])
                hi += 1
            self._add_section(writer, urgent[lo:hi], hi - lo, size)
            lo = hi
        urgent.clear()
        self._urgent_bytes = 0

    def _add_section(self, writer: FrameWriter, messages: list[bytes], count: int, size: int) -> None:
        """One RAFT frame of `count` messages, and of the heartbeats and replies that wait; `size` counts all of it."""
        heartbeats, replies = self._heartbeats, self._heartbeat_replies
        head = encode_head(heartbeats=len(heartbeats), heartbeat_replies=len(replies), messages=count)
        writer.add(FrameType.RAFT, [head, *heartbeats.values(), *replies.values(), *messages], size)
        heartbeats.clear()
        replies.clear()

    def _take_calls(self, writer: FrameWriter, size_wanted: int) -> None:
        calls = self._calls
        while calls and writer.size < size_wanted:
            call = calls.popleft()
            self._call_bytes -= call.size
            if call.cancelled:
                continue
            call.handed_over = True
            writer.add(call.kind, call.buffers, call.size)

    def _take_bulk(self, writer: FrameWriter) -> None:
        """One frame of Appends: at least one, and no more once `TURN_BYTES` are reached."""
        bulk = self._bulk
        messages: list[bytes] = []
        size, count = SECTION_HEAD_BYTES, 0
        size_max = min(TURN_BYTES, self.frame_bytes_max)
        while bulk and (count == 0 or size + bulk[0][0] <= size_max):
            message_bytes, buffers = bulk.popleft()
            messages += buffers
            size += message_bytes
            count += 1
            self._bulk_bytes -= message_bytes
        # No heartbeat waits here any more: `_take_urgent` came before.
        self._add_section(writer, messages, count, size)
