"""Bytes of results: for replies between nodes, and for the replies that sessions keep.

A result is a version, a tag, flags, the shard's revision, and what the tag demands. An *outcome* is a result or an
operating error; errors travel with reason and metadata, and a reason that this release does not know comes out as
`OutcomeUnknown` unless it was sent as definite.

Rules of this file are those of `codec.py`: strict, canonical, `MalformedBytes` or `UnsupportedVersion` and nothing else.
"""

from struct import Struct, pack, unpack_from
from struct import error as struct_error
from typing import assert_never

from raftcache import errors
from raftcache.errors import OutcomeUnknown, RaftCacheError, Unavailable
from raftcache.ids import Revision
from raftcache.kv.layout import newer
from raftcache.kv.operations import (
    Failure,
    GetResult,
    IncrementResult,
    KeyEntry,
    PutManyResult,
    Result,
    ScanResult,
    SessionResult,
    TransactionResult,
    WriteResult,
)

RESULT_VERSION = 1

_RESULT = Struct(">BBBQ")
"""Version (in nested results 0), tag, flags, revision."""
_ENTRY = Struct(">BHIQQQ")
"""Flags, key bytes, value bytes, version, create revision, mod revision."""
_ENTRY_RESERVED = Struct(">QQ")
_NUMBER = Struct(">q")
_SESSION = Struct(">Q")
_SCAN = Struct(">IQH")
"""Count of entries, count of matches, bytes of the next key."""
_COUNT = Struct(">I")
_TEXT = Struct(">H")
_MANY = Struct(">II")
"""Count of puts, count of refused ones."""

_WRITE, _GET, _INCREMENT, _SCANNED, _TRANSACTION, _OPENED, _FAILURE, _ERROR, _WROTE_MANY = range(1, 10)

_SUCCEEDED = 0x01
_DELETED = 0x02
_PREVIOUS = 0x04
_CURRENT = 0x08
_ENTRY_FOLLOWS = 0x01
_MORE = 0x01
_DEFINITE = 0x01
_RESERVED = 0x01

_FLAGS = {
    _WRITE: _SUCCEEDED | _DELETED | _PREVIOUS | _CURRENT,
    _GET: _ENTRY_FOLLOWS,
    _INCREMENT: 0,
    _SCANNED: _MORE,
    _TRANSACTION: _SUCCEEDED,
    _OPENED: 0,
    _FAILURE: 0,
    _ERROR: _DEFINITE,
    _WROTE_MANY: 0,
}

TEXT_BYTES_MAX = 8192
"""Of one message or one metadata value in a reply; longer ones are cut. A reply is not the place for a dump."""


class MalformedBytes(ValueError):
    """Bytes are not what any release of this version wrote: damage, or a bug of whoever encoded them."""


def encode_result(result: Result) -> bytes:
    """A result as bytes. Raises: `ValueError` where a number does not fit its field."""
    # What a plain put answers, most of all results.
    if type(result) is WriteResult and result.previous is None and result.current is None and not result.deleted:
        return _RESULT.pack(RESULT_VERSION, _WRITE, _SUCCEEDED if result.succeeded else 0, result.revision)
    parts: list[bytes] = []
    try:
        _encode(parts, result, version=RESULT_VERSION)
    except struct_error as error:
        raise ValueError(f"a {type(result).__name__} cannot be encoded: {error}") from error
    return b"".join(parts)


def decode_result(data: bytes) -> Result:
    """The inverse of `encode_result`. Raises: `MalformedBytes`, `UnsupportedVersion`."""
    outcome = decode_outcome(data)
    if isinstance(outcome, RaftCacheError):
        raise MalformedBytes(f"an error ({outcome.reason}) stands where a result is expected")
    return outcome


def encode_outcome(outcome: Result | RaftCacheError) -> bytes:
    """A result or an operating error, for the way between nodes."""
    if not isinstance(outcome, RaftCacheError):
        return encode_result(outcome)
    parts = [_RESULT.pack(RESULT_VERSION, _ERROR, _DEFINITE if outcome.definite else 0, 0)]
    _encode_text(parts, outcome.reason)
    _encode_text(parts, outcome.message)
    parts.append(_COUNT.pack(len(outcome.metadata)))
    for name, value in sorted(outcome.metadata.items()):
        _encode_text(parts, name)
        _encode_text(parts, value)
    return b"".join(parts)


def decode_outcome(data: bytes) -> Result | RaftCacheError:
    """The inverse of `encode_outcome`. Raises: `MalformedBytes`, `UnsupportedVersion`."""
    try:
        if data[0] > RESULT_VERSION:
            raise newer("the result", found=data[0], known=RESULT_VERSION)
        outcome: Result | RaftCacheError
        if data[0] == RESULT_VERSION and data[1] == _ERROR:
            outcome, at = _decode_error(data)
        else:
            outcome, at = _decode(data, 0, version=RESULT_VERSION)
    except (struct_error, IndexError) as error:
        raise MalformedBytes(f"the result of {len(data)} bytes is cut short: {error}") from error
    if at != len(data):
        raise MalformedBytes(f"the result has {len(data)} bytes, and ends at {at}")
    return outcome


# --- Encoding ----------------------------------------------------------------------------------------------------


def _encode(parts: list[bytes], result: Result, *, version: int) -> None:
    match result:
        case WriteResult():
            flags = (_SUCCEEDED if result.succeeded else 0) | (_DELETED if result.deleted else 0)
            flags |= (0 if result.previous is None else _PREVIOUS) | (0 if result.current is None else _CURRENT)
            parts.append(_RESULT.pack(version, _WRITE, flags, result.revision))
            for entry in (result.previous, result.current):
                if entry is not None:
                    _encode_entry(parts, entry)
        case GetResult():
            entry = result.entry
            parts.append(_RESULT.pack(version, _GET, 0 if entry is None else _ENTRY_FOLLOWS, result.revision))
            if entry is not None:
                _encode_entry(parts, entry)
        case IncrementResult():
            parts += (_RESULT.pack(version, _INCREMENT, 0, result.revision), _NUMBER.pack(result.value))
        case ScanResult():
            parts.append(_RESULT.pack(version, _SCANNED, _MORE if result.more else 0, result.revision))
            parts += (_SCAN.pack(len(result.entries), result.count, len(result.next_key)), result.next_key)
            for entry in result.entries:
                _encode_entry(parts, entry)
        case TransactionResult():
            flags = _SUCCEEDED if result.succeeded else 0
            parts += (_RESULT.pack(version, _TRANSACTION, flags, result.revision), _COUNT.pack(len(result.results)))
            for inner in result.results:
                _encode(parts, inner, version=0)
        case PutManyResult():
            refused = result.refused
            parts += (_RESULT.pack(version, _WROTE_MANY, 0, result.revision), _MANY.pack(result.count, len(refused)))
            parts.append(pack(f">{len(refused)}I", *refused))
        case SessionResult():
            parts += (_RESULT.pack(version, _OPENED, 0, result.revision), _SESSION.pack(result.session))
        case Failure():
            parts.append(_RESULT.pack(version, _FAILURE, 0, 0))
            _encode_text(parts, result.reason)
            _encode_text(parts, result.message)
        case _:
            assert_never(result)


def _encode_entry(parts: list[bytes], entry: KeyEntry) -> None:
    flags = _RESERVED if entry.lease or entry.expiry_ms else 0
    parts.append(
        _ENTRY.pack(flags, len(entry.key), len(entry.value), entry.version, entry.create_revision, entry.mod_revision)
    )
    if flags:
        parts.append(_ENTRY_RESERVED.pack(entry.lease, entry.expiry_ms))
    parts += (entry.key, entry.value)


def _encode_text(parts: list[bytes], text: str) -> None:
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > TEXT_BYTES_MAX:
        # Cut between characters, or the other side could not decode it.
        data = data[:TEXT_BYTES_MAX].decode("utf-8", "ignore").encode()
    parts += (_TEXT.pack(len(data)), data)


# --- Decoding ----------------------------------------------------------------------------------------------------


def _decode(data: bytes, at: int, *, version: int) -> tuple[Result, int]:
    found, tag, flags, number = _RESULT.unpack_from(data, at)
    at += _RESULT.size
    if found != version or tag not in _FLAGS or flags & ~_FLAGS[tag]:
        raise MalformedBytes(f"result before {at}: version {found}, tag {tag} or flags {flags:#x} unknown here")
    revision = Revision(number)
    if tag == _WRITE:
        previous = current = None
        if flags & _PREVIOUS:
            previous, at = _decode_entry(data, at)
        if flags & _CURRENT:
            current, at = _decode_entry(data, at)
        return WriteResult(revision, bool(flags & _SUCCEEDED), previous, current, bool(flags & _DELETED)), at
    if tag == _GET:
        entry = None
        if flags:
            entry, at = _decode_entry(data, at)
        return GetResult(revision, entry), at
    if tag == _INCREMENT:
        return IncrementResult(revision, _NUMBER.unpack_from(data, at)[0]), at + _NUMBER.size
    if tag == _OPENED:
        return SessionResult(revision, _SESSION.unpack_from(data, at)[0]), at + _SESSION.size
    if tag == _SCANNED:
        entry_count, count, next_bytes = _SCAN.unpack_from(data, at)
        at += _SCAN.size + next_bytes
        next_key = data[at - next_bytes : at]
        entries: list[KeyEntry] = []
        for _ in range(entry_count):
            scanned, at = _decode_entry(data, at)
            entries.append(scanned)
        return ScanResult(revision, entries, count, bool(flags), next_key), at
    if tag == _WROTE_MANY and version:
        count, refused_count = _MANY.unpack_from(data, at)
        at += _MANY.size
        refused = unpack_from(f">{refused_count}I", data, at)
        if any(lo >= hi for lo, hi in zip(refused, (*refused[1:], count), strict=bool(refused))):
            raise MalformedBytes(f"result before {at}: refused positions {refused[:20]} of {count}")
        return PutManyResult(revision, count, refused), at + 4 * refused_count
    if tag == _TRANSACTION and version:
        (count,) = _COUNT.unpack_from(data, at)
        at += _COUNT.size
        results: list[Result] = []
        for _ in range(count):
            inner, at = _decode(data, at, version=0)
            results.append(inner)
        return TransactionResult(revision, bool(flags), results), at
    if tag == _FAILURE and not number:
        reason, at = _decode_text(data, at)
        message, at = _decode_text(data, at)
        return Failure(reason, message), at
    raise MalformedBytes(f"result before {at}: tag {tag} cannot stand here")


def _decode_entry(data: bytes, at: int) -> tuple[KeyEntry, int]:
    flags, key_bytes, value_bytes, version, create_revision, mod_revision = _ENTRY.unpack_from(data, at)
    at += _ENTRY.size
    lease = expiry_ms = 0
    if flags:
        lease, expiry_ms = _ENTRY_RESERVED.unpack_from(data, at)
        at += _ENTRY_RESERVED.size
        if flags != _RESERVED or not (lease or expiry_ms):
            raise MalformedBytes(f"entry before {at}: flags {flags:#x}, lease {lease}, expiry {expiry_ms}")
    value_at = at + key_bytes
    end = value_at + value_bytes
    entry = KeyEntry(
        data[at:value_at],
        data[value_at:end],
        version,
        Revision(create_revision),
        Revision(mod_revision),
        lease,
        expiry_ms,
    )
    return entry, end


def _decode_text(data: bytes, at: int) -> tuple[str, int]:
    (length,) = _TEXT.unpack_from(data, at)
    at += _TEXT.size
    try:
        return data[at : at + length].decode(), at + length
    except UnicodeDecodeError as error:
        raise MalformedBytes(f"text at {at} is not UTF-8") from error


def _decode_error(data: bytes) -> tuple[RaftCacheError, int]:
    _, _, flags, number = _RESULT.unpack_from(data)
    if flags & ~_DEFINITE or number:
        raise MalformedBytes(f"error with flags {flags:#x} and number {number}")
    reason, at = _decode_text(data, _RESULT.size)
    message, at = _decode_text(data, at)
    (count,) = _COUNT.unpack_from(data, at)
    at += _COUNT.size
    metadata: dict[str, str] = {}
    for _ in range(count):
        name, at = _decode_text(data, at)
        metadata[name], at = _decode_text(data, at)
    return error_of(reason, message, definite=bool(flags), metadata=metadata), at


def error_of(
    reason: str, message: str, *, definite: bool = False, metadata: dict[str, str] | None = None
) -> RaftCacheError:
    """The error of a reason, as of a `Failure` or an error from another node.

    A reason unknown here (of a newer release) keeps what matters, whether it is definite: `Unavailable` or
    `OutcomeUnknown`, with the reason in the message.
    """
    known = _BY_REASON.get(reason)
    if known is None:
        known = Unavailable if definite else OutcomeUnknown
        message = f"{reason}: {message}"
    return known(message, metadata=metadata)


_BY_REASON: dict[str, type[RaftCacheError]] = {
    found.reason: found
    for found in vars(errors).values()
    if isinstance(found, type) and issubclass(found, RaftCacheError)
}
