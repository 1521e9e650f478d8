"""gRPC's bytes: timeouts, metadata, statuses, messages."""

import gzip
import itertools
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftcache.edge.front import Refusal
from raftcache.wire import grpc_wire
from raftcache.wire.grpc_wire import INTERNAL, RESOURCE_EXHAUSTED, MessageReader, WireError, framed, request_head
from raftcache.wire.hpack import Fields, HeaderList
from raftcache.wire.http2_headers import flaw_of_trailers
from tests.edge.wire_client import request_fields


def head_of(*more: tuple[bytes, bytes], fields: Fields | None = None) -> grpc_wire.RequestHead:
    return request_head(HeaderList((fields or request_fields()) + more, too_large=False))


@pytest.mark.parametrize(
    ("text", "ns"),
    [(b"1n", 1), (b"2u", 2_000), (b"3m", 3_000_000), (b"4S", 4 * 10**9), (b"99999999H", 99999999 * 3600 * 10**9)],
)
def test_timeouts(text: bytes, ns: int) -> None:
    """Every unit, and the most digits."""
    assert ns == head_of((b"grpc-timeout", text)).timeout_ns


@pytest.mark.parametrize("text", [b"S", b"1", b"1s", b"-1S", b"123456789S", b"1.5S"])
def test_bad_timeouts_fail_the_call(text: bytes) -> None:
    """A deadline that cannot be read must not be taken for none."""
    error = head_of((b"grpc-timeout", text)).error
    assert error is not None
    assert INTERNAL == error.code


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        (b"application/grpc", b"200"),
        (b"application/grpc+proto", b"200"),
        (b"application/grpc-web", b"415"),
        (b"text/html", b"415"),
    ],
)
def test_content_types(content_type: bytes, status: bytes) -> None:
    """What is no gRPC gets an HTTP status."""
    fields = tuple((name, content_type if name == b"content-type" else value) for name, value in request_fields())
    assert status == head_of(fields=fields).http_status


def test_unknown_compression_is_unimplemented() -> None:
    """The status that clients fall back upon."""
    error = head_of((b"grpc-encoding", b"snappy")).error
    assert error is not None
    assert grpc_wire.UNIMPLEMENTED == error.code


def test_metadata() -> None:
    """Bytes under -bin keys, padded or not; the last of several; nothing of the protocol's."""
    fields = request_fields(
        b"/a/b",
        (b"x", b"1"),
        (b"x", b"2"),
        (b"a-bin", b"AP8"),
        (b"b-bin", b"AP8="),
        (b"c-bin", b"AA,AP8"),
        (b"d-bin", b"!"),
    )
    assert {"x": "2", "a-bin": b"\0\xff", "b-bin": b"\0\xff", "c-bin": b"\0\xff"} == grpc_wire.metadata_of(fields)


@given(st.text())
def test_messages_of_statuses_are_percent_encoded(message: str) -> None:
    """Printable ASCII on the wire, and the text again behind it; lone surrogates become escapes."""
    encoded = grpc_wire.percent_encoded(message)
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    assert message.encode("utf-8", "backslashreplace").decode() == unquote(encoded.decode())


@pytest.mark.parametrize("message", [" ", " a", "a ", "  a b  "])
def test_spaces_at_the_ends_of_a_message_are_encoded(message: str) -> None:
    """RFC 9113 §8.2.1 forbids them there, and a client may take the whole answer for malformed."""
    trailers = grpc_wire.trailers_of(Refusal(5, message))
    assert "" == flaw_of_trailers(trailers)
    assert message == unquote(dict(trailers)[b"grpc-message"].decode())


def test_trailers_carry_details_without_padding() -> None:
    """As the other implementations send them."""
    trailers = dict(grpc_wire.trailers_of(Refusal(5, "no", b"\0")))
    assert {b"grpc-status": b"5", b"grpc-message": b"no", b"grpc-status-details-bin": b"AA"} == trailers


@given(st.lists(st.binary(max_size=50), max_size=8), st.lists(st.integers(0, 400), max_size=10))
def test_messages_may_be_cut_anywhere(messages: list[bytes], cuts: list[int]) -> None:
    """The same messages, however their bytes arrive; gzip or not."""
    data = b"".join(
        framed(message) if number % 2 else b"\x01" + framed(gzip.compress(message))[1:]
        for number, message in enumerate(messages)
    )
    reader = MessageReader(1_000, gzip=True)
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    found = []
    for lo, hi in itertools.pairwise(places):
        reader.feed(data[lo:hi])
        while (message := reader.next()) is not None:
            found.append(message)
    assert messages == found
    assert (0, grpc_wire.PREFIX_BYTES) == (reader.buffered, reader.missing)


def test_a_bomb_is_not_unpacked() -> None:
    """A message that unpacks to more than is allowed is refused at the limit."""
    reader = MessageReader(10_000, gzip=True)
    packed = gzip.compress(bytes(5_000_000))
    reader.feed(b"\x01" + framed(packed)[1:])
    with pytest.raises(WireError) as caught:
        reader.next()
    assert RESOURCE_EXHAUSTED == caught.value.refusal.code


@pytest.mark.parametrize("more", [b"more", gzip.compress(b"more", mtime=0)], ids=["anything", "a second member"])
def test_what_is_behind_gzip_data_is_not_lost_in_silence(more: bytes) -> None:
    """A second member, or anything else: the call fails, as with gRPC's own libraries."""
    reader = MessageReader(10_000, gzip=True)
    reader.feed(b"\x01" + framed(gzip.compress(b"first") + more)[1:])
    with pytest.raises(WireError) as caught:
        reader.next()
    assert INTERNAL == caught.value.refusal.code


def test_a_message_is_not_lost_by_what_follows_it() -> None:
    """However the bytes are cut: the message first, then the error of the next one's prefix."""
    reader = MessageReader(1_000, gzip=False)
    reader.feed(framed(b"good") + b"\x02\x00\x00\x00\x00")
    assert b"good" == reader.next()
    with pytest.raises(WireError):
        reader.next()


def test_a_message_that_cannot_be_unpacked_stays_counted() -> None:
    """Whoever counts what is buffered takes off what the reader still holds, and comes to nothing."""
    reader = MessageReader(1_000, gzip=True)
    reader.feed(data := b"\x01" + framed(b"no gzip")[1:])
    with pytest.raises(WireError):
        reader.next()
    assert len(data) == reader.buffered


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x00\x7f\xff\xff\xff", RESOURCE_EXHAUSTED),
        (b"\x02\x00\x00\x00\x00", INTERNAL),
        (b"\x01\x00\x00\x00\x01x", INTERNAL),
    ],
)
def test_bad_prefixes_are_refused_before_the_message_comes(data: bytes, code: int) -> None:
    """Too long, of an unknown kind, or compressed by nothing that was named."""
    with pytest.raises(WireError) as caught:
        MessageReader(1_000, gzip=False).feed(data)
    assert code == caught.value.refusal.code
