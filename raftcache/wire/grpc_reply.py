"""The client's half of gRPC over HTTP/2: the head of a request, and what a reply's head and trailers say.

Rules of this file: as in `grpc_wire`. Whatever a server or a proxy on the way sends, the outcome is a status.
"""

import re
from dataclasses import dataclass
from typing import Final

from raftcache.wire.grpc_wire import (
    DETAILS_TRAILER,
    INTERNAL,
    PERMISSION_DENIED,
    STATUS_NAMES,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    UNKNOWN,
    Refusal,
    decoded_binary,
    is_grpc,
)
from raftcache.wire.hpack import Fields, HeaderList

_MS_PER_SECOND: Final = 1_000
_COARSE_ABOVE_MS: Final = 1_000
_COARSE_MS: Final = 10
_TIMEOUT_MS_MAX: Final = 99_999_999
"""Eight digits: 27 hours."""

_OF_HTTP: Final = {
    b"400": INTERNAL,
    b"401": UNAUTHENTICATED,
    b"403": PERMISSION_DENIED,
    b"404": UNIMPLEMENTED,
    b"429": UNAVAILABLE,
    b"502": UNAVAILABLE,
    b"503": UNAVAILABLE,
    b"504": UNAVAILABLE,
}
"""doc/http-grpc-status-mapping.md of the gRPC project."""

_escapes: Final = re.compile(rb"%([0-9A-Fa-f]{2})")


def request_head(path: str, timeout_ms: int | None, *, authority: str, scheme: str, agent: str) -> Fields:
    """A request's header list."""
    timeout = () if timeout_ms is None else ((b"grpc-timeout", b"%dm" % timeout_ms),)
    return (
        (b":method", b"POST"),
        (b":scheme", scheme.encode()),
        (b":path", path.encode()),
        (b":authority", authority.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", agent.encode()),
        *timeout,
    )


def timeout_ms(seconds: float) -> int:
    """What is told to the server: rounded up, and coarse, so that heads of calls with about the same time are the same.

    The caller keeps its own time; the server's is a little longer at most.
    """
    ms = int(seconds * _MS_PER_SECOND) + 1
    if ms > _COARSE_ABOVE_MS:
        ms = -(-(ms - 1) // _COARSE_MS) * _COARSE_MS
    return min(ms, _TIMEOUT_MS_MAX)


@dataclass(slots=True, eq=False)
class ReplyHead:
    """What a reply's head says. Made once for equal ones."""

    refusal: Refusal | None
    """Why there will be no message in it."""
    gzip: bool


def reply_head(headers: HeaderList) -> ReplyHead:
    """Reads a header list that HTTP/2 has found valid. Of a reply that has nothing else, see `status_of` as well."""
    status = headers.fields[0][1]
    content_type = encoding = b""
    for name, value in headers.fields:
        if name == b"content-type":
            content_type = value
        elif name == b"grpc-encoding":
            encoding = value
    refusal = None
    if status != b"200":
        refusal = Refusal(_OF_HTTP.get(status, UNKNOWN), f"the answer is HTTP status {status.decode()}, and not gRPC")
    elif not is_grpc(content_type):
        refusal = Refusal(UNKNOWN, f"the answer is {content_type.decode('ascii', 'replace')!r}, and not gRPC")
    elif encoding not in (b"", b"identity", b"gzip"):
        named = encoding.decode("ascii", "replace")
        refusal = Refusal(INTERNAL, f"the answer is compressed by {named!r}, which was not asked for")
    return ReplyHead(refusal, encoding == b"gzip")


def status_of(fields: Fields, head: ReplyHead) -> Refusal | None:
    """How a call ended, by its trailers, or by the head of a reply that has nothing else; None: well."""
    status, message, details = b"", b"", b""
    for name, value in fields:
        if name == b"grpc-status":
            status = value
        elif name == b"grpc-message":
            message = value
        elif name == DETAILS_TRAILER:
            details = value
    if status == b"0" or not status:
        missing = None if status else Refusal(UNKNOWN, "the answer ends without a gRPC status")
        return head.refusal or missing
    if not status.isdigit() or len(status) > 2 or int(status) >= len(STATUS_NAMES):
        return Refusal(UNKNOWN, f"the answer's gRPC status is {status!r}")
    return Refusal(int(status), percent_decoded(message), decoded_binary(details) or b"")


def percent_decoded(message: bytes) -> str:
    """The value of `grpc-message`. What is no escape stands for itself."""
    return _escapes.sub(lambda found: bytes((int(found[1], 16),)), message).decode("utf-8", "replace")
