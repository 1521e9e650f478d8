"""What a header list must look like (RFC 9113 §8.2 and §8.3).

Rules of this file:
- a function returns "" for a good list, else what is wrong with it: one such list ends its stream, not the connection;
- what a head says of its body's length is noted in its list; to count is `http2`'s;
- fields repeat from call to call. Those that were found good are remembered, up to a bound.
"""

import re
from typing import Final

from raftcache.wire.hpack import Field, Fields, HeaderList

_bad_name: Final = re.compile(rb"[^!#$%&'*+\-.^_`|~0-9a-z]").search
"""Token characters, without upper case (§8.2.1)."""
_bad_value: Final = re.compile(rb"[\x00\r\n]|^[ \t]|[ \t]\Z").search
_length: Final = re.compile(rb"[0-9]{1,18}").fullmatch

_is_status: Final = re.compile(rb"[1-9][0-9]{2}").fullmatch

_CONNECTION_SPECIFIC: Final = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
)
"""§8.2.2."""
_REQUEST_PSEUDO: Final = frozenset({b":method", b":scheme", b":path", b":authority"})

_good: set[Field] = set()
_GOOD_FIELDS_MAX: Final = 1_024
_GOOD_FIELD_BYTES_MAX: Final = 256


def flaw_of_request(headers: HeaderList) -> str:
    """Of a request's header list, whose `content_length` it sets."""
    fields = headers.fields
    pseudo: dict[bytes, bytes] = {}
    count = 0
    for field in fields:
        name, value = field
        if name[:1] != b":":
            break
        if name not in _REQUEST_PSEUDO or name in pseudo:
            return f"pseudo-header {name!r} is unknown or repeated"
        if field not in _good:
            if _bad_value(value):
                return f"the value of {name!r} has characters that are not allowed"
            _remember(field)
        pseudo[name] = value
        count += 1
    if b":method" not in pseudo or b":scheme" not in pseudo or not pseudo.get(b":path"):
        return "a request needs :method, :scheme and :path"
    return _flaw_of_regular(fields[count:], headers)


def flaw_of_response(headers: HeaderList) -> str:
    """Of a response's header list, whose `content_length` it sets: its first field is the only pseudo-header."""
    fields = headers.fields
    if not fields or fields[0][0] != b":status" or not _is_status(fields[0][1]):
        return "a response begins with a :status of three digits"
    return _flaw_of_regular(fields[1:], headers)


def flaw_of_trailers(fields: Fields) -> str:
    """Of trailers, a request's or a response's: no pseudo-headers (§8.1)."""
    return _flaw_of_regular(fields, None)


def _flaw_of_regular(fields: Fields, head: HeaderList | None) -> str:
    for field in fields:
        # A good pseudo-header is good only in its place.
        if field in _good and field[0][:1] != b":":
            continue
        name, value = field
        # A colon is no token character, so this finds a pseudo-header behind a regular one, too (§8.3).
        if not name or _bad_name(name):
            return f"the field name {name!r} is not allowed here"
        if _bad_value(value):
            return f"the value of {name!r} has characters that are not allowed"
        if name in _CONNECTION_SPECIFIC or (name == b"te" and value != b"trailers"):
            return f"{name!r} is a field of HTTP/1 connections"
        if name == b"content-length":
            if not _length(value) or (head is not None and head.content_length not in (None, int(value))):
                return f"content-length is {value!r}"
            if head is not None:
                head.content_length = int(value)
            continue  # not remembered, so that it is seen again
        _remember(field)
    return ""


def _remember(field: Field) -> None:
    if len(field[0]) + len(field[1]) <= _GOOD_FIELD_BYTES_MAX:
        if len(_good) >= _GOOD_FIELDS_MAX:
            _good.clear()
        _good.add(field)
