"""The two replies that nearly every call gets, put together byte by byte: of a Get, and of a Put that returns no entry.

The library makes up to three objects for each, and sets up to ten fields one by one: a fifth of what a get costs. What is written
here is what the library writes (`tests/gateway/test_plain_replies.py` compares the bytes): fields in the order of their numbers,
each a tag and its number or bytes, those that are zero or empty left out.

Source: https://protobuf.dev/programming-guides/encoding, proto/raftcache/v1/kv.proto and types.proto.
"""

from functools import lru_cache
from typing import Final

from raftcache.gateway.routes import Hint, Hints
from raftcache.ids import Index, Revision, ShardId
from raftcache.kv.operations import Get, GetResult, KeyEntry, Operation, Put, WriteResult
from raftcache.node.api import Reply

_LAST: Final = tuple(bytes([number]) for number in range(0x80))
_MORE: Final = tuple(bytes([number | 0x80]) for number in range(0x80))


def plain_reply(operation: Operation, reply: Reply, hints: Hints) -> bytes | None:
    """The serialised reply; None where it is not one of these two."""
    result = reply.result
    if type(result) is GetResult and type(operation) is Get:
        header = _header_of_reads(reply.shard, reply.index, result.revision, reply.age_ms, hints(reply.shard))
        return header if result.entry is None else header + _field(b"\x12", _entry(result.entry))
    if type(result) is WriteResult and type(operation) is Put and result.previous is None and result.current is None:
        header = _header(reply.shard, reply.index, result.revision, reply.age_ms, hints(reply.shard))
        return header + b"\x10\x01" if result.succeeded else header
    return None


def varint(number: int) -> bytes:
    """An unsigned number, seven bits to a byte, the lowest first."""
    assert number >= 0, f"{number} is negative: no field of these is"
    return _LAST[number] if number < 0x80 else _MORE[number & 0x7F] + varint(number >> 7)


def _header(shard: ShardId, index: Index, revision: Revision, age_ms: int, hint: Hint | None) -> bytes:
    """The field `header` of either."""
    fields = _number(b"\x08", shard) + _number(b"\x10", index) + _number(b"\x18", revision) + _number(b"\x20", age_ms)
    if hint is not None:
        address, epoch = hint
        if address:
            fields += _field(b"\x2a", address.encode())
        fields += _number(b"\x30", epoch)
    return _field(b"\x0a", fields)


_header_of_reads = lru_cache(maxsize=64)(_header)
"""Reads that were confirmed by one round are answered at one index and revision."""


def _entry(entry: KeyEntry) -> bytes:
    """A KeyEntry's fields."""
    fields = _field(b"\x0a", entry.key)
    if entry.value:
        fields += _field(b"\x12", entry.value)
    fields += (
        _number(b"\x18", entry.version) + _number(b"\x20", entry.create_revision) + _number(b"\x28", entry.mod_revision)
    )
    return fields + _number(b"\x30", entry.lease) + _number(b"\x38", entry.expiry_ms)


def _number(tag: bytes, number: int) -> bytes:
    return tag + varint(number) if number else b""


def _field(tag: bytes, data: bytes) -> bytes:
    return tag + varint(len(data)) + data
