"""The admin port: a small HTTP/1.1 server for probes and scrapes.

    GET /metrics           Prometheus' text, or OpenMetrics for who asks for it
    GET /livez             200 while the event loop runs; says nothing of quorum, so that no probe restarts a healthy minority
    GET /readyz            200 when clients should come here, 503 with the reasons when not; ?verbose lists all checks
    GET /version           JSON

Rules of this file:
- read only: GET and HEAD, no bodies; anything else is refused and the connection closed, so that nothing after it can be
  taken for a request (RFC 9112 §11.2);
- everything is bounded: connections, the size of a request's head, the time for it to arrive, the time for the answer to be
  taken, the time a connection may idle. A request's time runs from its first byte, not from its latest (slow loris);
- one synchronous `asyncio.Protocol` per connection and no task: a request is answered inside `data_received`. While an
  answer waits in the socket, further requests of that connection are not read;
- a handler that raises is a bug: asyncio reports it and closes that connection, the server goes on.

The syntax is RFC 9112's, read strictly: lines end in CRLF, no folded headers, one Host.
"""

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

HEAD_BYTES_MAX = 8 * 1024
"""Request line and headers; nginx' default for a large header is 8 KiB. Probes send 200 bytes."""
CONNECTIONS_MAX = 64
"""Probes, two Prometheus servers and some people; each costs a socket and a few KiB."""
HEAD_SECONDS_MAX = 5.0
"""For a request to arrive, from its first byte (or from the connection's start)."""
WRITE_SECONDS_MAX = 10.0
"""For an answer to be taken: Prometheus' default scrape timeout."""
IDLE_SECONDS_MAX = 75.0
"""Between requests of one connection: above the 60 s at which Prometheus scrapes at the latest in practice."""

_FIRST_BYTE = re.compile(rb"[\r\nA-Za-z]")
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_ABSOLUTE_FORM = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)

_PHRASES = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}

_TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of readiness. `detail` says in words what is missing, or how things stand."""

    name: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Handlers:
    """What the port shows. All are called on the loop and must return at once."""

    metrics: Callable[[str], tuple[str, bytes]]
    """From an Accept header to content type and body."""
    ready: Callable[[], list[Check]]
    version: Mapping[str, str]


@dataclass(slots=True)
class _Request:
    method: bytes
    path: bytes
    query: bytes
    accept: str
    keep_alive: bool


@dataclass(slots=True)
class _Response:
    status: int
    body: bytes
    content_type: str = _TEXT
    headers: tuple[tuple[str, str], ...] = ()


class _Refused(Exception):
    """The request cannot be answered, and the connection cannot be kept."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class AdminServer:
    """Listens from `start` to `stop`."""

    def __init__(self, handlers: Handlers, *, connections_max: int = CONNECTIONS_MAX) -> None:
        self.handlers = handlers
        self.connections: set[_Connection] = set()
        self.connections_max = connections_max
        self.refused = 0
        """Connections turned away because there were too many."""
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; returns the address that it got (port 0 takes a free one). Raises: `OSError`."""
        assert self._server is None, "started twice"
        self._server = await asyncio.get_running_loop().create_server(lambda: _Connection(self), host, port)
        bound = self._server.sockets[0].getsockname()
        return bound[0], bound[1]

    async def stop(self) -> None:
        """Stop listening and cut what is open. May be called twice."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for connection in list(self.connections):
            connection.abort()
        await server.wait_closed()


class _Connection(asyncio.Protocol):
    """One connection: bytes in, answers out.

    Invariant: exactly one timer runs while the connection is open; what it stands for is in `_waiting_for`.
    """

    __slots__ = ("_buffer", "_closing", "_paused", "_server", "_timer", "_transport", "_waiting_for")

    def __init__(self, server: AdminServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._waiting_for = "head"
        self._paused = False
        # An answer with `Connection: close` was written; nothing more is read.
        self._closing = False

    # --- Called by asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        # Low, so that `resume_writing` means that the peer has taken the answer but for one packet.
        self._transport.set_write_buffer_limits(high=64 * 1024, low=0)
        if len(self._server.connections) >= self._server.connections_max:
            self._server.refused += 1
            self._answer(_Response(503, b"too many connections to the admin port\n"), keep_alive=False, head_only=False)
            return
        self._server.connections.add(self)
        self._wait("head", HEAD_SECONDS_MAX)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport = None

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if not self._buffer and self._waiting_for == "idle":
            self._wait("head", HEAD_SECONDS_MAX)
        self._buffer += data
        self._serve_buffered()

    def eof_received(self) -> bool:
        # Half-closed by a client that still reads (`printf ... | nc`): let what is being written go out.
        if self._transport is not None and self._transport.get_write_buffer_size() and not self._buffer:
            self._closing = True
            self._transport.close()
            return True
        return False

    def pause_writing(self) -> None:
        self._paused = True
        self._wait("write", WRITE_SECONDS_MAX)

    def resume_writing(self) -> None:
        self._paused = False
        if self._closing or self._transport is None:
            return
        self._transport.resume_reading()
        self._wait_for_request()
        self._serve_buffered()

    # --- Ours ---

    def abort(self) -> None:
        """Cut at once."""
        if self._transport is not None:
            self._transport.abort()

    def _wait(self, for_what: str, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._waiting_for = for_what
        self._timer = asyncio.get_running_loop().call_later(seconds, self._on_timeout)

    def _wait_for_request(self) -> None:
        if self._buffer:
            self._wait("head", HEAD_SECONDS_MAX)
        else:
            self._wait("idle", IDLE_SECONDS_MAX)

    def _on_timeout(self) -> None:
        if self._waiting_for == "head" and self._buffer and not self._closing:
            self._refuse(408, "the request took too long to arrive")
        else:
            self.abort()

    def _serve_buffered(self) -> None:
        """Answer all complete requests that are here."""
        while self._buffer and not self._closing and not self._paused:
            end = self._buffer.find(b"\r\n\r\n", 0, HEAD_BYTES_MAX)
            if end < 0:
                if len(self._buffer) >= HEAD_BYTES_MAX:
                    self._refuse(431, f"the request's head has more than {HEAD_BYTES_MAX} bytes")
                elif not _FIRST_BYTE.match(self._buffer):
                    # Most often somebody's TLS handshake: tell at once, not when the time is up.
                    self._refuse(400, "this is not HTTP; the admin port speaks plain HTTP/1.1")
                return
            head = bytes(self._buffer[:end])
            del self._buffer[: end + 4]
            try:
                request = _parse(head)
            except _Refused as refused:
                self._refuse(refused.status, refused.reason)
                return
            self._wait_for_request()
            response = _respond(request, self._server.handlers)
            keep_alive = request.keep_alive and response.status != 405
            self._answer(response, keep_alive=keep_alive, head_only=request.method == b"HEAD")

    def _refuse(self, status: int, reason: str) -> None:
        self._answer(_Response(status, f"{reason}\n".encode()), keep_alive=False, head_only=False)

    def _answer(self, response: _Response, *, keep_alive: bool, head_only: bool) -> None:
        assert self._transport is not None, "answering a closed connection"
        lines = [
            f"HTTP/1.1 {response.status} {_PHRASES[response.status]}",
            f"Content-Type: {response.content_type}",
            f"Content-Length: {len(response.body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            f"Connection: {'keep-alive' if keep_alive else 'close'}",
            *(f"{name}: {value}" for name, value in response.headers),
        ]
        head = "\r\n".join([*lines, "", ""]).encode("ascii")
        self._transport.write(head if head_only else head + response.body)
        if not keep_alive:
            self._closing = True
            self._buffer.clear()
            # `close` sends what is buffered first; the timer cuts a peer that does not take it.
            self._wait("write", WRITE_SECONDS_MAX)
            self._transport.close()
        elif self._paused:
            # Backpressure: no further request of this connection is read until this answer is taken.
            self._transport.pause_reading()


# --- Pure: bytes to request, request to response --------------------------------------------------------------------


def _parse(head: bytes) -> _Request:
    """The request in `head`, without its final empty line. Raises: `_Refused`."""
    # RFC 9112 §2.2: an empty line before the request line is ignored.
    request_line, *field_lines = head.lstrip(b"\r\n").split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(request_line)
    if match is None:
        raise _Refused(400, "the request line is not METHOD target HTTP/1.1")
    method, target, major, minor = match.groups()
    if major != b"1":
        raise _Refused(505, "this port speaks HTTP/1.1")

    fields: dict[bytes, list[bytes]] = {}
    for line in field_lines:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise _Refused(400, "a header is not name: value")
        fields.setdefault(name.lower(), []).append(value.strip(b" \t"))

    if len(fields.get(b"host", [])) != 1 and (minor != b"0" or b"host" in fields):
        raise _Refused(400, "there must be one Host header")
    if b"transfer-encoding" in fields or any(value != b"0" for value in fields.get(b"content-length", [])):
        raise _Refused(400, "requests to this port have no body")

    target = _ABSOLUTE_FORM.sub(b"", target, count=1) or b"/"
    if not target.startswith(b"/"):
        raise _Refused(400, "the target is not a path")
    path, _, query = target.partition(b"?")
    connection = {option.strip().lower() for value in fields.get(b"connection", []) for option in value.split(b",")}
    keep_alive = b"close" not in connection and (minor != b"0" or b"keep-alive" in connection)
    accept = b",".join(fields.get(b"accept", [])).decode("latin-1")
    return _Request(method, path, query, accept, keep_alive)


def _respond(request: _Request, handlers: Handlers) -> _Response:
    if request.path not in (b"/metrics", b"/livez", b"/readyz", b"/version"):
        return _Response(404, b"there is /metrics /livez /readyz /readyz?verbose /version\n")
    if request.method not in (b"GET", b"HEAD"):
        return _Response(405, b"this port is read only\n", headers=(("Allow", "GET, HEAD"),))
    match request.path:
        case b"/metrics":
            content_type, body = handlers.metrics(request.accept)
            return _Response(200, body, content_type)
        case b"/livez":
            return _Response(200, b"ok\n")
        case b"/readyz":
            return _ready(handlers.ready(), verbose=b"verbose" in re.split(rb"[&=]", request.query))
        case _:
            body = json.dumps(dict(handlers.version)).encode()
            return _Response(200, body + b"\n", "application/json")


def _ready(checks: list[Check], *, verbose: bool) -> _Response:
    """Ready if every check is. The form of the lines is that of the Kubernetes API server."""
    ok = all(check.ok for check in checks)
    lines = [
        f"[{'+' if check.ok else '-'}] {check.name}{': ' if check.detail else ''}{check.detail}"
        for check in checks
        if verbose or not check.ok
    ]
    lines.append("ready" if ok else "not ready")
    return _Response(200 if ok else 503, ("\n".join(lines) + "\n").encode())
