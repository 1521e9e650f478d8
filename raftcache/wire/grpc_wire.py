"""gRPC over HTTP/2 as bytes: request heads, messages, statuses.

The protocol is doc/PROTOCOL-HTTP2.md of the gRPC project, and doc/compression.md.

Rules of this file:
- pure functions and one small state machine, `MessageReader`; no HTTP/2 state, no calls;
- what a caller did wrong is a `WireError`, which has a gRPC status and becomes the call's;
- a message is never larger in memory than `message_bytes_max`, compressed or not.
"""

import binascii
import struct
import zlib
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Final

from raftcache.wire.hpack import Fields, HeaderList
from raftcache.wire.http2_sending import ResponseShape

OK: Final = 0
CANCELLED: Final = 1
UNKNOWN: Final = 2
INVALID_ARGUMENT: Final = 3
DEADLINE_EXCEEDED: Final = 4
NOT_FOUND: Final = 5
PERMISSION_DENIED: Final = 7
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14
UNAUTHENTICATED: Final = 16

STATUS_NAMES: Final = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
"""By code."""

DETAILS_TRAILER: Final = b"grpc-status-details-bin"
"""A serialised google.rpc.Status, in base64."""

PREFIX_BYTES: Final = 5
_PREFIX: Final = struct.Struct(">BL")

_TIMEOUT_UNITS_NS: Final = {
    b"H": 3_600_000_000_000,
    b"M": 60_000_000_000,
    b"S": 1_000_000_000,
    b"m": 1_000_000,
    b"u": 1_000,
    b"n": 1,
}
_TIMEOUT_DIGITS_MAX: Final = 8

ACCEPTED_ENCODINGS: Final = b"identity,gzip"

RESPONSE_HEAD: Final[Fields] = (
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", ACCEPTED_ENCODINGS),
)
OK_TRAILERS: Final[Fields] = ((b"grpc-status", b"0"),)
OK_RESPONSE: Final = ResponseShape(RESPONSE_HEAD, OK_TRAILERS)

_RESERVED: Final = (b":", b"grpc-")
_TRANSPORT: Final = frozenset({b"content-type", b"te"})
"""With those that begin like `_RESERVED`, what is the protocol's and not the caller's."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a call fails: a gRPC status."""

    code: int
    """The gRPC status code; never 0."""
    message: str
    """For people; any text. It is escaped on its way, as the protocol demands."""
    details: bytes = b""
    """A serialised google.rpc.Status, for `DETAILS_TRAILER`; empty = none."""


class WireError(Exception):
    """A call that cannot be understood; `refusal` is its status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.refusal = Refusal(code, message)


@dataclass(slots=True, eq=False)
class RequestHead:
    """What a request's header list says. Made once for equal ones."""

    method: str
    timeout_ns: int | None
    gzip: bool
    """Messages that are marked as compressed are so with gzip."""
    fields: Fields
    http_status: bytes = b"200"
    """Another one: this is no gRPC request, and the caller gets this and no more."""
    error: Refusal | None = None
    """The call cannot be taken."""


def request_head(headers: HeaderList) -> RequestHead:
    """Reads a header list that HTTP/2 has found valid."""
    path = content_type = timeout = b""
    method = b""
    encoding = b"identity"
    for name, value in headers.fields:
        if name == b":path":
            path = value
        elif name == b":method":
            method = value
        elif name == b"content-type":
            content_type = value
        elif name == b"grpc-timeout":
            timeout = value
        elif name == b"grpc-encoding":
            encoding = value
    head = RequestHead(path.decode("ascii", "replace"), None, encoding == b"gzip", headers.fields)
    if headers.too_large:
        head.error = Refusal(RESOURCE_EXHAUSTED, "the request's metadata is too large")
    elif not is_grpc(content_type):
        head.http_status = b"415"
    elif method != b"POST":
        head.http_status = b"405"
    elif encoding not in (b"identity", b"gzip"):
        named = encoding.decode("ascii", "replace")
        head.error = Refusal(
            UNIMPLEMENTED, f"messages compressed by {named!r} are not understood; identity and gzip are"
        )
    elif timeout:
        try:
            head.timeout_ns = timeout_ns(timeout)
        except WireError as error:
            head.error = error.refusal
    return head


def is_grpc(content_type: bytes) -> bool:
    """Whether a content type is gRPC's."""
    # gRPC-Web ("application/grpc-web") is another protocol.
    return content_type == b"application/grpc" or content_type.startswith((b"application/grpc+", b"application/grpc;"))


def timeout_ns(text: bytes) -> int:
    """The value of `grpc-timeout`. Raises: `WireError`."""
    digits, unit_ns = text[:-1], _TIMEOUT_UNITS_NS.get(text[-1:])
    if unit_ns is None or not digits.isdigit() or len(digits) > _TIMEOUT_DIGITS_MAX:
        raise WireError(INTERNAL, f"grpc-timeout is {text!r}: up to eight digits and one of H M S m u n are expected")
    return int(digits) * unit_ns


def metadata_of(fields: Fields) -> dict[str, str | bytes]:
    """The caller's own metadata: bytes under keys that end in `-bin`. What is no base64 there is left out."""
    metadata: dict[str, str | bytes] = {}
    for name, value in fields:
        if name.startswith(_RESERVED) or name in _TRANSPORT:
            continue
        key = name.decode("ascii")
        if not key.endswith("-bin"):
            metadata[key] = value.decode("latin-1")
            continue
        data = decoded_binary(value)
        if data is not None:
            metadata[key] = data
    return metadata


def decoded_binary(value: bytes) -> bytes | None:
    """The value of a field whose name ends in `-bin`; None if it is no base64."""
    # Several values may be joined by commas, and padding may be missing.
    last = value.rpartition(b",")[2].strip()
    try:
        return b64decode(last + b"=" * (-len(last) % 4), validate=True)
    except binascii.Error:
        return None


def trailers_of(refusal: Refusal) -> Fields:
    """How a call fails."""
    trailers = [(b"grpc-status", b"%d" % refusal.code), (b"grpc-message", percent_encoded(refusal.message))]
    if refusal.details:
        trailers.append((DETAILS_TRAILER, b64encode(refusal.details).rstrip(b"=")))
    return tuple(trailers)


def percent_encoded(message: str) -> bytes:
    """As `grpc-message` wants it: UTF-8, and all but printable ASCII, and the percent sign, as %XX.

    So is a space at either end, which gRPC would leave as it is: RFC 9113 §8.2.1 forbids it there.
    """
    data = message.encode("utf-8", "backslashreplace")
    encoded = b"".join([_PERCENT_ENCODED[byte] for byte in data])
    if encoded[:1] == b" ":
        encoded = b"%20" + encoded[1:]
    return encoded[:-1] + b"%20" if encoded[-1:] == b" " else encoded


_PERCENT_ENCODED: Final = tuple(
    bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte for byte in range(256)
)


def framed(message: bytes) -> bytes:
    """A message with its prefix, not compressed."""
    return _PREFIX.pack(0, len(message)) + message


def whole_message(data: bytes) -> bytes | None:
    """The message, where `data` is exactly one that is not compressed: the usual case, which needs no `MessageReader`."""
    if len(data) >= PREFIX_BYTES and _PREFIX.unpack_from(data) == (0, len(data) - PREFIX_BYTES):
        return data[PREFIX_BYTES:]
    return None


class MessageReader:
    """Takes messages out of a stream's DATA."""

    __slots__ = ("_buffer", "_gzip", "_message_bytes_max", "_next_bytes")

    def __init__(self, message_bytes_max: int, *, gzip: bool) -> None:
        self._message_bytes_max = message_bytes_max
        self._gzip = gzip
        self._buffer = bytearray()
        self._next_bytes = PREFIX_BYTES
        """What the buffer must hold for a step: a prefix, or the message that its prefix told of."""

    @property
    def buffered(self) -> int:
        """Bytes that are held."""
        return len(self._buffer)

    @property
    def missing(self) -> int:
        """Bytes until the next message is complete, as far as is known; 0 if it is."""
        return max(self._next_bytes - len(self._buffer), 0)

    def feed(self, data: bytes) -> None:
        """Takes DATA. Raises: `WireError` when the next message is too large."""
        self._buffer += data
        self._read_prefix()

    def next(self) -> bytes | None:
        """The next message, or None if it is not complete. Raises: `WireError`."""
        buffer = self._buffer
        self._read_prefix()
        if len(buffer) < self._next_bytes:
            return None
        compressed, length = _PREFIX.unpack_from(buffer)
        message = bytes(memoryview(buffer)[PREFIX_BYTES : PREFIX_BYTES + length])
        if compressed:
            message = self._decompressed(message)  # in front of the next line: what fails to unpack stays counted
        del buffer[: PREFIX_BYTES + length]
        self._next_bytes = PREFIX_BYTES  # what is wrong with the next message must not lose this one
        return message

    def _read_prefix(self) -> None:
        if self._next_bytes > PREFIX_BYTES or len(self._buffer) < PREFIX_BYTES:
            return
        compressed, length = _PREFIX.unpack_from(self._buffer)
        if length > self._message_bytes_max:
            raise WireError(
                RESOURCE_EXHAUSTED, f"a message of {length} bytes; {self._message_bytes_max} are accepted: split it"
            )
        if compressed > 1 or (compressed and not self._gzip):
            raise WireError(INTERNAL, "a message is marked as compressed, and grpc-encoding does not say how")
        self._next_bytes = PREFIX_BYTES + length

    def _decompressed(self, message: bytes) -> bytes:
        # One byte beyond the limit shows that there is more, and a bomb is not unpacked any further.
        unpacker = zlib.decompressobj(wbits=31)
        try:
            data = unpacker.decompress(message, self._message_bytes_max + 1)
        except zlib.error as error:
            raise WireError(INTERNAL, f"a message is not valid gzip: {error}") from None
        if len(data) > self._message_bytes_max:
            raise WireError(
                RESOURCE_EXHAUSTED, f"a message of more than {self._message_bytes_max} bytes, unpacked: split it"
            )
        if not unpacker.eof:
            raise WireError(INTERNAL, "a message ends inside of its gzip data")
        if unpacker.unused_data:
            # A second member, say. gRPC's own libraries refuse it, too; to drop it would be to lose a part of the message.
            raise WireError(INTERNAL, "a message has more behind its gzip data")
        return data
