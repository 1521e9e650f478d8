"""Raft messages as bytes: what stands inside one RAFT frame.

A frame carries one *section*: the messages of all shards from one node to one other.

    version u8 | heartbeats u32 | heartbeat replies u32 | messages u32      (the head: how many of each)
    heartbeat records        fixed size, one per shard
    heartbeat reply records  fixed size, one per shard
    messages                 kind u8 | shard u32 | to u64 | from u64 | term u64 | fields of the kind

Rules of this file:
- little-endian, fixed-width integers: a record is one `struct` call each way;
- an entry's `data` is never copied here: it goes into the list of buffers by reference and is copied once, when the
  frame is joined. Indexes of an Append's entries are not on the wire: they follow `previous_index` without a gap;
- decoding is strict. Whatever is not exactly a section raises `ProtocolError`, a newer version `UnsupportedVersion`;
  nothing is allocated by a count that the bytes themselves do not back up.
"""

import struct
from collections.abc import Iterable
from typing import assert_never

from raftcache.errors import Corruption, ProtocolError, UnsupportedVersion
from raftcache.ids import Index, ShardId, Term
from raftcache.raft.configuration import decode_configuration, encode_configuration
from raftcache.raft.messages import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    ReadIndexReply,
    ReadIndexRequest,
    RequestVote,
    SnapshotMeta,
    SnapshotRequest,
    TimeoutNow,
    VoteReply,
)

SECTION_VERSION = 1

Payload = bytes | memoryview
"""What is decoded. Of a view, only what outlives the call is copied: the data of entries."""

_HEAD = struct.Struct("<BIII")
SECTION_HEAD_BYTES = _HEAD.size

_HEARTBEAT = struct.Struct("<IQQQQQB")
"""shard, to, from, term, commit, read position, level."""
_HEARTBEAT_REPLY = struct.Struct("<IQQQQ")
"""shard, to, from, term, read position."""
HEARTBEAT_BYTES = _HEARTBEAT.size
HEARTBEAT_REPLY_BYTES = _HEARTBEAT_REPLY.size

# The kinds are part of the wire format. Heartbeats and their replies have no kind: they have sections of their own.
_KIND_APPEND = 1
_KIND_APPEND_REPLY = 2
_KIND_REQUEST_VOTE = 3
_KIND_VOTE_REPLY = 4
_KIND_INSTALL_SNAPSHOT = 5
_KIND_TIMEOUT_NOW = 6
_KIND_READ_INDEX_REQUEST = 7
_KIND_READ_INDEX_REPLY = 8
_KIND_SNAPSHOT_REQUEST = 9

_APPEND = struct.Struct("<BIQQQQQQI")
"""kind, shard, to, from, term, previous index, previous term, commit, number of entries."""
_ENTRY = struct.Struct("<QBI")
"""term, kind, length of the data."""
_APPEND_REPLY = struct.Struct("<BIQQQQBQQ")
"""..., index, rejected, hint index, hint term."""
_REQUEST_VOTE = struct.Struct("<BIQQQQQB")
"""..., last index, last term, flags (1 = pre, 2 = transfer)."""
_VOTE_REPLY = struct.Struct("<BIQQQB")
"""..., flags (1 = granted, 2 = pre)."""
_INSTALL_SNAPSHOT = struct.Struct("<BIQQQQQI")
"""..., index, term of the snapshot, length of the configuration."""
_TIMEOUT_NOW = struct.Struct("<BIQQQ")
_READ_INDEX_REQUEST = struct.Struct("<BIQQQQ")
"""..., context."""
_READ_INDEX_REPLY = struct.Struct("<BIQQQQQ")
"""..., context, index."""
_SNAPSHOT_REQUEST = struct.Struct("<BIQQQQ")
"""..., least index."""

_ENTRY_KINDS = (EntryKind.COMMANDS, EntryKind.CONFIGURATION, EntryKind.EMPTY)
assert all(kind == number for number, kind in enumerate(_ENTRY_KINDS))
assert len(_ENTRY_KINDS) == len(EntryKind)


def encode_heartbeat(shard: ShardId, m: Heartbeat) -> bytes:
    return _HEARTBEAT.pack(shard, m.to, m.from_, m.term, m.commit, m.read_position, m.level)


def encode_heartbeat_reply(shard: ShardId, m: HeartbeatReply) -> bytes:
    return _HEARTBEAT_REPLY.pack(shard, m.to, m.from_, m.term, m.read_position)


def encode_message(shard: ShardId, message: Message, out: list[bytes]) -> int:
    """Appends the buffers of any message but a heartbeat or its reply to `out`; returns their size in bytes."""
    # Attributes, not positional patterns: a pattern with nine fields takes longer than the packing.
    m = message
    match m:
        case Append():
            return _encode_append(shard, m, out)
        case AppendReply():
            record = _APPEND_REPLY.pack(
                _KIND_APPEND_REPLY, shard, m.to, m.from_, m.term, m.index, m.rejected, m.hint_index, m.hint_term
            )
        case ReadIndexRequest():
            record = _READ_INDEX_REQUEST.pack(_KIND_READ_INDEX_REQUEST, shard, m.to, m.from_, m.term, m.context)
        case ReadIndexReply():
            record = _READ_INDEX_REPLY.pack(_KIND_READ_INDEX_REPLY, shard, m.to, m.from_, m.term, m.context, m.index)
        case RequestVote():
            flags = m.pre | m.transfer << 1
            record = _REQUEST_VOTE.pack(
                _KIND_REQUEST_VOTE, shard, m.to, m.from_, m.term, m.last_index, m.last_term, flags
            )
        case VoteReply():
            flags = m.granted | m.pre << 1
            record = _VOTE_REPLY.pack(_KIND_VOTE_REPLY, shard, m.to, m.from_, m.term, flags)
        case TimeoutNow():
            record = _TIMEOUT_NOW.pack(_KIND_TIMEOUT_NOW, shard, m.to, m.from_, m.term)
        case SnapshotRequest():
            record = _SNAPSHOT_REQUEST.pack(_KIND_SNAPSHOT_REQUEST, shard, m.to, m.from_, m.term, m.min_index)
        case InstallSnapshot():
            configuration = encode_configuration(m.meta.configuration)
            kind, size = _KIND_INSTALL_SNAPSHOT, len(configuration)
            record = _INSTALL_SNAPSHOT.pack(kind, shard, m.to, m.from_, m.term, m.meta.index, m.meta.term, size)
            record += configuration
        case Heartbeat() | HeartbeatReply():
            raise AssertionError(f"{type(m).__name__} of shard {shard} belongs into its own section")
        case _:
            assert_never(m)
    out.append(record)
    return len(record)


def _encode_append(shard: ShardId, m: Append, out: list[bytes]) -> int:
    entries = m.entries
    count = len(entries)
    if count:
        first, last = entries[0].index, entries[-1].index
        assert first == m.previous_index + 1, f"shard {shard}: append after {m.previous_index} starts at {first}"
        assert last == m.previous_index + count, f"shard {shard}: {count} entries from {first} end at {last}"
    out.append(
        _APPEND.pack(_KIND_APPEND, shard, m.to, m.from_, m.term, m.previous_index, m.previous_term, m.commit, count)
    )
    size = _APPEND.size + _ENTRY.size * count
    pack, append = _ENTRY.pack, out.append
    for entry in entries:
        data = entry.data
        append(pack(entry.term, entry.kind, len(data)))
        append(data)
        size += len(data)
    return size


def encode_head(*, heartbeats: int, heartbeat_replies: int, messages: int) -> bytes:
    """The head of a section; the records follow in this order."""
    return _HEAD.pack(SECTION_VERSION, heartbeats, heartbeat_replies, messages)


def encode_section(messages: Iterable[tuple[ShardId, Message]]) -> list[bytes]:
    """A whole section as a list of buffers. (A connection's `Outbox` builds its sections piecemeal.)"""
    heartbeats: list[bytes] = []
    replies: list[bytes] = []
    buffers: list[bytes] = []
    count = 0
    for shard, message in messages:
        if type(message) is Heartbeat:
            heartbeats.append(encode_heartbeat(shard, message))
        elif type(message) is HeartbeatReply:
            replies.append(encode_heartbeat_reply(shard, message))
        else:
            encode_message(shard, message, buffers)
            count += 1
    head = encode_head(heartbeats=len(heartbeats), heartbeat_replies=len(replies), messages=count)
    return [head, *heartbeats, *replies, *buffers]


def decode_section(payload: Payload) -> list[tuple[ShardId, Message]]:
    """All messages of a section: heartbeats first, then heartbeat replies, then the others in the order of sending.

    Raises: `ProtocolError` (malformed; nothing of it may be used), `UnsupportedVersion` (a newer release wrote it).
    """
    if payload and payload[0] > SECTION_VERSION:
        raise UnsupportedVersion(
            f"a peer sent Raft messages in format {payload[0]}; this release reads up to {SECTION_VERSION}: "
            "upgrade this node"
        )
    try:
        version, heartbeats, replies, count = _HEAD.unpack_from(payload)
        if version != SECTION_VERSION:
            raise ProtocolError(f"a section of Raft messages has version {version}")
        position = _HEAD.size
        messages: list[tuple[ShardId, Message]] = []
        if heartbeats:
            end = position + heartbeats * _HEARTBEAT.size
            _check_end(end, payload)
            for shard, to, from_, term, commit, read, level in _HEARTBEAT.iter_unpack(payload[position:end]):
                if level > 1:
                    raise ProtocolError(f"a heartbeat of shard {shard} has the flags {level}")
                messages.append((shard, Heartbeat(to, from_, term, commit, read, level == 1)))
            position = end
        if replies:
            end = position + replies * _HEARTBEAT_REPLY.size
            _check_end(end, payload)
            for shard, to, from_, term, read in _HEARTBEAT_REPLY.iter_unpack(payload[position:end]):
                messages.append((shard, HeartbeatReply(to, from_, term, read)))
            position = end
        for _ in range(count):
            shard, message, position = _decode_message(payload, position)
            messages.append((shard, message))
    except (struct.error, IndexError) as error:
        raise ProtocolError(f"a section of Raft messages is cut or damaged: {error}") from None
    if position != len(payload):
        raise ProtocolError(f"a section of Raft messages ends at byte {position} of {len(payload)}")
    return messages


def _check_end(end: int, payload: Payload) -> None:
    if end > len(payload):
        raise ProtocolError(f"a record ends at byte {end} of {len(payload)}")


def _flags(value: int, flags_max: int) -> int:
    if value > flags_max:
        raise ProtocolError(f"a message has the flags {value:#x}, of which only {flags_max:#x} are known")
    return value


def decode_message(payload: Payload, position: int) -> tuple[ShardId, Message, int]:
    """One message (no heartbeat) from `position`; returns it with the position after it.

    Raises: `ProtocolError`.
    """
    try:
        return _decode_message(payload, position)
    except (struct.error, IndexError) as error:
        raise ProtocolError(f"a Raft message is cut or damaged: {error}") from None


def _decode_message(payload: Payload, position: int) -> tuple[ShardId, Message, int]:
    kind = payload[position]
    message: Message
    if kind == _KIND_APPEND:
        return _decode_append(payload, position)
    if kind == _KIND_APPEND_REPLY:
        layout = _APPEND_REPLY
        _, shard, to, from_, term, index, flags, hint_index, hint_term = layout.unpack_from(payload, position)
        message = AppendReply(to, from_, term, index, _flags(flags, 1) == 1, hint_index, hint_term)
    elif kind == _KIND_READ_INDEX_REQUEST:
        layout = _READ_INDEX_REQUEST
        _, shard, to, from_, term, read = layout.unpack_from(payload, position)
        message = ReadIndexRequest(to, from_, term, read)
    elif kind == _KIND_READ_INDEX_REPLY:
        layout = _READ_INDEX_REPLY
        _, shard, to, from_, term, read, index = layout.unpack_from(payload, position)
        message = ReadIndexReply(to, from_, term, read, index)
    elif kind == _KIND_REQUEST_VOTE:
        layout = _REQUEST_VOTE
        _, shard, to, from_, term, index, last_term, flags = layout.unpack_from(payload, position)
        _flags(flags, 3)
        message = RequestVote(to, from_, term, index, last_term, flags & 1 == 1, flags & 2 == 2)
    elif kind == _KIND_VOTE_REPLY:
        layout = _VOTE_REPLY
        _, shard, to, from_, term, flags = layout.unpack_from(payload, position)
        _flags(flags, 3)
        message = VoteReply(to, from_, term, flags & 1 == 1, flags & 2 == 2)
    elif kind == _KIND_TIMEOUT_NOW:
        layout = _TIMEOUT_NOW
        _, shard, to, from_, term = layout.unpack_from(payload, position)
        message = TimeoutNow(to, from_, term)
    elif kind == _KIND_SNAPSHOT_REQUEST:
        layout = _SNAPSHOT_REQUEST
        _, shard, to, from_, term, index = layout.unpack_from(payload, position)
        message = SnapshotRequest(to, from_, term, index)
    elif kind == _KIND_INSTALL_SNAPSHOT:
        return _decode_install_snapshot(payload, position)
    else:
        raise ProtocolError(f"there is no Raft message of kind {kind}")
    return shard, message, position + layout.size


def _decode_append(payload: Payload, position: int) -> tuple[ShardId, Append, int]:
    _, shard, to, from_, term, previous_index, previous_term, commit, count = _APPEND.unpack_from(payload, position)
    position += _APPEND.size
    entries: list[Entry] = []
    append, unpack, size, length = entries.append, _ENTRY.unpack_from, _ENTRY.size, len(payload)
    index = previous_index
    for _ in range(count):
        entry_term, kind, data_bytes = unpack(payload, position)
        start = position + size
        position = start + data_bytes
        if position > length:
            raise ProtocolError(f"an entry of {data_bytes} bytes ends at byte {position} of {length}")
        index += 1
        append(Entry(entry_term, index, _ENTRY_KINDS[kind], bytes(payload[start:position])))
    return shard, Append(to, from_, term, previous_index, previous_term, commit, entries), position


def _decode_install_snapshot(payload: Payload, position: int) -> tuple[ShardId, InstallSnapshot, int]:
    _, shard, to, from_, term, index, meta_term, size = _INSTALL_SNAPSHOT.unpack_from(payload, position)
    start = position + _INSTALL_SNAPSHOT.size
    end = start + size
    _check_end(end, payload)
    try:
        configuration = decode_configuration(bytes(payload[start:end]))
    except Corruption as error:
        raise ProtocolError(f"a snapshot's configuration is malformed: {error.message}") from None
    meta = SnapshotMeta(Index(index), Term(meta_term), configuration)
    return shard, InstallSnapshot(to, from_, term, meta), end
