"""The client's half of gRPC's bytes: what a request's head says, and what a reply's status is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftcache.wire.grpc_reply import ReplyHead, percent_decoded, reply_head, request_head, status_of, timeout_ms
from raftcache.wire.grpc_wire import Refusal, percent_encoded, trailers_of
from raftcache.wire.grpc_wire import request_head as head_of_request
from raftcache.wire.hpack import Fields, HeaderList
from raftcache.wire.http2_headers import flaw_of_request

GOOD = ReplyHead(None, False)


@given(st.floats(1e-6, 90_000))
def test_the_server_is_told_of_no_less_time_than_there_is(seconds: float) -> None:
    """And of little more: a millisecond, or ten where there is more than a second."""
    told = timeout_ms(seconds) / 1000
    assert seconds - 0.001 <= told <= seconds + (0.0011 if seconds < 1 else 0.0111)


@pytest.mark.parametrize("ms", [None, 1, 2_000])
def test_our_server_understands_the_head(ms: int | None) -> None:
    """A valid header list, a gRPC request, and the same time."""
    fields = request_head("/a/B", ms, authority="n1:7400", scheme="http", agent="x")
    assert "" == flaw_of_request(HeaderList(fields, False))
    head = head_of_request(HeaderList(fields, False))
    assert ("/a/B", None if ms is None else ms * 1_000_000, None, b"200") == (
        head.method,
        head.timeout_ns,
        head.error,
        head.http_status,
    )


@given(st.integers(1, 16), st.text(), st.binary(max_size=100))
def test_a_status_arrives_as_it_was_sent(code: int, message: str, details: bytes) -> None:
    """Whatever its message and details are."""
    sent = Refusal(code, message.encode("utf-8", "replace").decode(), details)
    assert sent == status_of(trailers_of(sent), GOOD)


@given(st.binary())
def test_any_bytes_are_some_message(data: bytes) -> None:
    """What is no escape, or no UTF-8, is no exception."""
    assert isinstance(percent_decoded(data), str)
    assert "100 %" == percent_decoded(b"100 %")
    assert "ö" == percent_decoded(percent_encoded("ö"))


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        (((b":status", b"200"), (b"content-type", b"application/grpc+proto")), None),
        (((b":status", b"200"), (b"content-type", b"application/grpc-web")), 2),
        (((b":status", b"200"),), 2),
        (((b":status", b"401"),), 16),
        (((b":status", b"404"),), 12),
        (((b":status", b"429"),), 14),
        (((b":status", b"418"),), 2),
    ],
)
def test_what_is_no_grpc_has_a_status_as_well(fields: Fields, code: int | None) -> None:
    """Proxies answer in HTTP; gRPC's project says which status that is."""
    refusal = reply_head(HeaderList(fields, False)).refusal
    assert code == (None if refusal is None else refusal.code)
