"""How a list of requests travels to another node, and its replies back: one payload each way, all of one shard.

Rules of this file:
- operations and results go in the encoding of `kv.codec`, so a forwarded write is encoded once, for the wire and the log;
- deadlines travel as the time that is left, never as a clock reading;
- a payload of replies has a limit. What a write returned goes first and always; reads that do not fit any more are
  answered with `AGAIN`. At least one read fits, so that asking again comes to an end, unless the node does not take its answers:
  then none is read, and it asks with the next tick. What surely does not fit is not even read (`AnswerRoom`);
- strict: a payload that does not parse to its last byte raises `ValueError`, a newer one `UnsupportedVersion`.
"""

import struct
from collections.abc import Callable

from raftcache.errors import RaftCacheError, Unavailable, UnsupportedVersion
from raftcache.ids import Index, ShardId, Slot
from raftcache.kv.codec import decode_operation, encode_operation
from raftcache.kv.operations import GetResult, ScanResult, SessionStamp
from raftcache.kv.result_codec import decode_outcome, encode_outcome
from raftcache.kv.slots import SHARD_WIDE, SLOT_COUNT
from raftcache.node.api import AnswerRoom, Consistency, Reply, Request

FORMAT = 1
REPLY_BYTES_MAX = 4 << 20
"""What is read for one payload, but for the one read that is always let through."""
AGAIN = {"again": "payload"}
"""Metadata of the refusal of a read whose reply did not fit; the sender asks again, at once where others did fit."""
_HEAD = struct.Struct("<BII")  # format, shard, count
_REQUEST = struct.Struct("<BiII")  # flags, slot, milliseconds left, operation bytes
_STAMP = struct.Struct("<QQQ")
_REPLY = struct.Struct("<QII")  # index, age in ms, outcome bytes

_HAS_STAMP = 1
_STALE = 2
_WHOLE_SHARD = 4

_MS = 1_000_000


def encode_requests(shard: ShardId, requests: list[Request], now_ns: int) -> bytes:
    """One payload with all `requests`, which all belong to `shard`."""
    parts = [_HEAD.pack(FORMAT, shard, len(requests))]
    for request in requests:
        body = encode_operation(request.operation)
        flags = _STALE if request.consistency is Consistency.STALE else 0
        if request.shard is not None:
            flags |= _WHOLE_SHARD
        if request.stamp is not None:
            flags |= _HAS_STAMP
        left_ms = min(max(0, (request.deadline_ns - now_ns) // _MS), 0xFFFFFFFF)
        parts.append(_REQUEST.pack(flags, request.slot, left_ms, len(body)))
        parts.append(body)
        if request.stamp is not None:
            stamp = request.stamp
            parts.append(_STAMP.pack(stamp.session, stamp.sequence, stamp.first_unacked))
    return b"".join(parts)


def not_read() -> Unavailable:
    """The answer to a read for which there is no room."""
    return Unavailable("the replies did not fit into one message between nodes", metadata=AGAIN)


def decode_requests(
    payload: bytes, now_ns: int, crowded: Callable[[], bool] = lambda: False
) -> tuple[ShardId, list[Request]]:
    """The requests, marked as forwarded; each `token` is its position in the list. `crowded` as in `AnswerRoom`.

    Raises: `ValueError`, `UnsupportedVersion`.
    """
    shard_number, count = _read_head(payload)
    shard = ShardId(shard_number)
    at = _HEAD.size
    room = AnswerRoom(REPLY_BYTES_MAX, crowded)
    requests = []
    try:
        for position in range(count):
            flags, slot, left_ms, size = _REQUEST.unpack_from(payload, at)
            at += _REQUEST.size
            if at + size > len(payload):
                raise ValueError("a forwarded operation is cut short")
            operation = decode_operation(payload[at : at + size])
            at += size
            stamp = None
            if flags & _HAS_STAMP:
                stamp = SessionStamp(*_STAMP.unpack_from(payload, at))
                at += _STAMP.size
            whole_shard = bool(flags & _WHOLE_SHARD)
            if not (0 <= slot < SLOT_COUNT or (slot == SHARD_WIDE and whole_shard)):
                raise ValueError(f"a forwarded request is for slot {slot}")
            requests.append(
                Request(
                    token=position,
                    operation=operation,
                    slot=Slot(slot),
                    deadline_ns=now_ns + left_ms * _MS,
                    shard=shard if whole_shard else None,
                    stamp=stamp,
                    consistency=Consistency.STALE if flags & _STALE else Consistency.LINEARIZABLE,
                    forwarded=True,
                    room=room,
                )
            )
    except struct.error as error:
        raise ValueError(f"a forwarded list of requests is cut short: {error}") from error
    if at != len(payload):
        raise ValueError(f"a forwarded list of requests has {len(payload) - at} trailing bytes")
    return shard, requests


def encode_replies(shard: ShardId, replies: list[Reply], *, bytes_max: int) -> bytes:
    """The replies in the order of their tokens, which are the positions of the requests; see the module on `bytes_max`."""
    ordered = sorted(replies, key=_position)
    bodies = [encode_outcome(reply.result) for reply in ordered]
    size = sum(map(len, bodies))
    if size > bytes_max:
        again = encode_outcome(not_read())
        reads = [at for at, reply in enumerate(ordered) if isinstance(reply.result, (GetResult, ScanResult))]
        for at in reversed(reads[1:]):
            if size <= bytes_max:
                break
            size += len(again) - len(bodies[at])
            bodies[at] = again
    parts = [_HEAD.pack(FORMAT, shard, len(replies))]
    for reply, body in zip(ordered, bodies, strict=True):
        parts.append(_REPLY.pack(reply.index, min(reply.age_ms, 0xFFFFFFFF), len(body)))
        parts.append(body)
    return b"".join(parts)


def decode_replies(payload: bytes, requests: list[Request]) -> list[Reply]:
    """The replies to `requests`, each under its request's own token. Raises: `ValueError`, `UnsupportedVersion`."""
    shard_number, count = _read_head(payload)
    if count != len(requests):
        raise ValueError(f"{count} replies to {len(requests)} requests")
    at = _HEAD.size
    replies = []
    try:
        for request in requests:
            index, age_ms, size = _REPLY.unpack_from(payload, at)
            at += _REPLY.size
            outcome = decode_outcome(payload[at : at + size])
            at += size
            replies.append(Reply(request.token, outcome, ShardId(shard_number), Index(index), age_ms))
    except struct.error as error:
        raise ValueError(f"a list of replies is cut short: {error}") from error
    if at != len(payload):
        raise ValueError(f"a list of replies has {len(payload) - at} trailing bytes")
    return replies


def refuse_requests(payload: bytes, refusal: RaftCacheError) -> bytes:
    """The replies of a node that takes none of them. Raises: `ValueError`, `UnsupportedVersion`."""
    shard, requests = decode_requests(payload, 0)
    return encode_replies(shard, [Reply(request.token, refusal) for request in requests], bytes_max=REPLY_BYTES_MAX)


def _position(reply: Reply) -> int:
    assert isinstance(reply.token, int), f"a forwarded request's token is its position, not {reply.token!r}"
    return reply.token


def _read_head(payload: bytes) -> tuple[int, int]:
    if len(payload) < _HEAD.size:
        raise ValueError(f"a forwarded list of {len(payload)} bytes is shorter than its head")
    version, shard, count = _HEAD.unpack_from(payload)
    if version > FORMAT:
        raise UnsupportedVersion(
            f"another node forwards in format {version}, this release reads up to {FORMAT}: finish the upgrade"
        )
    return shard, count
