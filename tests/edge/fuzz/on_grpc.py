"""gRPC's bytes: messages and their compression beside a reader that is given everything at once; heads; statuses."""

import gzip
import re
import zlib
from base64 import b64decode
from urllib.parse import unquote_to_bytes

from raftcache.wire import grpc_wire, http2_headers
from raftcache.wire.grpc_wire import INTERNAL, PREFIX_BYTES, RESOURCE_EXHAUSTED, MessageReader, Refusal, WireError
from raftcache.wire.hpack import Fields, HeaderList
from tests.edge.fuzz.program import Program

_FILLINGS = (b"", b"x", b"abc" * 40, bytes(2_000), bytes(200_000))
_LIMITS = (1_000, 10, 0, 100_000)


def run_grpc(data: bytes) -> None:
    """The first byte says what is done with the others."""
    program = Program(data)
    (_read_messages, _read_head, _write_status)[program.byte() % 3](program)


# --- Messages ---------------------------------------------------------------------------------------------------------


def _read_messages(program: Program) -> None:
    """Messages cut anywhere are those of the whole, never larger than allowed, and nothing else is held."""
    limit, is_gzip = program.choice(_LIMITS), program.flag()
    step = program.byte() + 1
    data = _messages(program)
    expected, error, held = _expected(data, limit, is_gzip=is_gzip)
    reader, found, failure, fed = MessageReader(limit, gzip=is_gzip), [], None, 0
    try:
        # Pieces that grow: the first bytes one by one, if the program says so, and the many behind them not.
        while fed < len(data):
            piece = data[fed : fed + step]
            fed, step = fed + len(piece), step + step // 2 + 1
            reader.feed(piece)
            while (message := reader.next()) is not None:
                assert len(message) <= limit, f"a message of {len(message)} bytes; {limit} are allowed"
                found.append(message)
            missing = reader.missing
            assert 0 < missing <= limit + PREFIX_BYTES, f"{missing} bytes are missing, and none was taken"
            assert reader.buffered < limit + PREFIX_BYTES, (
                f"{reader.buffered} bytes are held of a message within {limit}"
            )
    except WireError as caught:
        failure = caught.refusal.code
    assert expected == found, f"{len(found)} messages, expected {len(expected)}"
    assert (error is None) == (failure is None), f"{failure}, expected {error}"
    assert failure in (error or (None,)), f"{failure}, expected {error}"
    if failure is None:
        assert held == reader.buffered, f"{reader.buffered} bytes held, expected {held}"


def _messages(program: Program) -> bytes:
    """A stream's DATA: messages plain, packed, packed twice in a row, cut short, damaged, or any bytes."""
    parts = []
    while program.more and len(parts) < 12:
        kind = program.byte() % 6
        if kind == 0:
            parts.append(program.take(program.byte()))
            continue
        message = program.choice(_FILLINGS) or program.take(program.byte())
        if kind == 1:
            parts.append(grpc_wire.framed(message))
            continue
        packed = gzip.compress(message, 1, mtime=0)
        if kind == 3:
            packed += program.take(4) or packed
        elif kind == 4:
            packed = packed[: program.size(len(packed))]
        elif kind == 5:
            place = program.size(len(packed))
            packed = packed[:place] + program.take(1) + packed[place + 1 :]
        parts.append(b"\x01" + grpc_wire.framed(packed)[1:])
    return b"".join(parts)


def _expected(data: bytes, limit: int, *, is_gzip: bool) -> tuple[list[bytes], tuple[int, ...] | None, int]:
    """The messages in `data`, how reading fails behind them (one of these codes), and how much is left otherwise."""
    messages: list[bytes] = []
    while len(data) >= PREFIX_BYTES:
        flag, length = data[0], int.from_bytes(data[1:PREFIX_BYTES], "big")
        if length > limit:
            return messages, (RESOURCE_EXHAUSTED,), 0
        if flag > 1 or (flag and not is_gzip):
            return messages, (INTERNAL,), 0
        if len(data) < PREFIX_BYTES + length:
            break
        message, data = data[PREFIX_BYTES : PREFIX_BYTES + length], data[PREFIX_BYTES + length :]
        if flag:
            unpacked, errors = _unpacked(message, limit)
            if errors is not None:
                return messages, errors, 0
            message = unpacked
        messages.append(message)
    return messages, None, len(data)


def _unpacked(packed: bytes, limit: int) -> tuple[bytes, tuple[int, ...] | None]:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        message = unpacker.decompress(packed)
    except zlib.error:
        # Where the damage lies behind the limit, it is the limit that is met first.
        return b"", (INTERNAL, RESOURCE_EXHAUSTED)
    if len(message) > limit:
        return b"", (RESOURCE_EXHAUSTED,)
    return message, None if unpacker.eof and not unpacker.unused_data else (INTERNAL,)


# --- Heads ------------------------------------------------------------------------------------------------------------

_HEAD_NAMES = (b"grpc-timeout", b"grpc-encoding", b"content-type", b"a-bin", b"x", b"-bin", b"te", b"grpc-x", b"")
_HEAD_VALUES = (b"", b"1S", b"99999999H", b"gzip", b"identity", b"application/grpc", b"trailers", b"AP8", b"AA,AP8=")
_TIMEOUT = re.compile(rb"[0-9]{1,8}[HMSmun]")
_BASE64 = re.compile(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2,3})?")


def _read_head(program: Program) -> None:
    """A list that HTTP/2 finds valid is a head, perhaps one with an error; metadata of any of them can be read."""
    http2_headers._good.clear()
    fields: list[tuple[bytes, bytes]] = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a/b")]
    if program.flag():
        fields.append((b"content-type", b"application/grpc"))
    while program.more and len(fields) < 12:
        name = program.choice(_HEAD_NAMES) or program.take(program.byte() % 16)
        value = program.choice(_HEAD_VALUES) or program.take(program.byte() % 64)
        fields.append((name, value))
    headers = HeaderList(tuple(fields), too_large=False)
    if http2_headers.flaw_of_request(headers):
        return
    head = grpc_wire.request_head(headers)
    timeout = dict(fields).get(b"grpc-timeout", b"")
    encoding = dict(fields).get(b"grpc-encoding", b"identity")
    if head.http_status == b"200":
        is_bad = encoding not in (b"identity", b"gzip") or bool(timeout and not _TIMEOUT.fullmatch(timeout))
        assert is_bad == (head.error is not None), f"{head.error} of {timeout!r} and {encoding!r}"
        assert is_bad or (head.timeout_ns is not None) == bool(timeout), f"{timeout!r} was read as {head.timeout_ns}"
        assert head.gzip == (encoding == b"gzip"), encoding
    expected: dict[str, str | bytes] = {}
    for name, value in fields:
        if name.startswith((b":", b"grpc-")) or name in (b"te", b"content-type"):
            continue
        if not name.endswith(b"-bin"):
            expected[name.decode()] = value.decode("latin-1")
            continue
        last = value.split(b",")[-1].strip()
        if _BASE64.fullmatch(bare := last.rstrip(b"=")) and _padded(last) == _padded(bare):
            expected[name.decode()] = b64decode(_padded(bare))
    assert expected == grpc_wire.metadata_of(head.fields), fields


def _padded(bare: bytes) -> bytes:
    return bare + b"=" * (-len(bare) % 4)


# --- Statuses ---------------------------------------------------------------------------------------------------------


def _write_status(program: Program) -> None:
    """Any message and details make trailers that HTTP/2 allows, and come out again."""
    http2_headers._good.clear()
    code, details = program.byte() % 16 + 1, program.take(program.byte() % 64)
    message = program.rest().decode("utf-8", "surrogateescape")
    trailers: Fields = grpc_wire.trailers_of(Refusal(code, message, details))
    assert not http2_headers.flaw_of_trailers(trailers), trailers
    found = dict(trailers)
    assert b"%d" % code == found[b"grpc-status"]
    assert message.encode("utf-8", "backslashreplace") == unquote_to_bytes(found[b"grpc-message"])
    assert re.fullmatch(rb"[ -~]*", found[b"grpc-message"]), found
    assert details == b64decode(_padded(found.get(b"grpc-status-details-bin", b"")))
