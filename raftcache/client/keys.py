"""What callers may give for keys and values.

A key may be a `str`: it is sent as UTF-8. A value may not: which encoding a reader will assume is the caller's to say. Bytes
of any kind are taken for both.
"""

from raftcache.errors import InvalidRequest


def encode_key(key: str | bytes) -> bytes:
    """The key's bytes. Raises: `TypeError`, `InvalidRequest` for the empty key."""
    if type(key) is str:
        key = key.encode()
    elif type(key) is not bytes:
        if isinstance(key, str):
            key = key.encode()
        elif isinstance(key, bytes | bytearray | memoryview):
            key = bytes(key)
        else:
            raise TypeError(f"a key is str or bytes, not {type(key).__name__}")
    if not key:
        raise InvalidRequest("the key is empty; it must have at least one byte", metadata={"field": "key"})
    return key


def encode_value(value: bytes) -> bytes:
    """The value's bytes. Raises: `TypeError`."""
    if type(value) is bytes:
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    advice = ": encode it first, as in value.encode()" if isinstance(value, str) else ""
    raise TypeError(f"a value is bytes, not {type(value).__name__}{advice}")


def bounds_of(prefix: str | bytes | None, start: str | bytes | None, end: str | bytes | None) -> tuple[bytes, bytes]:
    """A scan's range `[lo, hi)`; an empty bound is open. Raises: `TypeError`."""
    if prefix is not None:
        if start is not None or end is not None:
            raise TypeError("give either prefix, or start and end")
        lo = _bound(prefix)
        return lo, after_prefix(lo)
    return _bound(start), _bound(end)


def after_prefix(prefix: bytes) -> bytes:
    """The first key that is greater than all keys with this prefix; empty if there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b""


def _bound(key: str | bytes | None) -> bytes:
    return b"" if key is None or not key else encode_key(key)
