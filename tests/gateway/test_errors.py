"""Every error has a code, a documented row, and details that fit into a trailer."""

import re
from pathlib import Path

import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped] # no py.typed in the package
from grpc import StatusCode

from raftcache.errors import (
    InvalidRequest,
    KeyTooLong,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    RaftCacheError,
    Unavailable,
    error_classes,
)
from raftcache.gateway.errors import CODES, RETRY_DELAY_MS, fill_detail, refusal_of, status_code
from raftcache.v1 import types_pb2

DOCUMENT = Path(__file__).parents[2] / "docs" / "errors.md"
TRAILERS_BYTES_MAX = 8 << 10
"""What HTTP/2 peers accept as metadata by default."""

ERRORS = sorted(error_classes().items())


def details_of(data: bytes) -> tuple[status_pb2.Status, dict[str, object]]:
    """The status in `data`, and its details by the names of their types."""
    status = status_pb2.Status.FromString(data)
    found: dict[str, object] = {}
    for packed in status.details:
        name = packed.type_url.rpartition(".")[2]
        found[name] = getattr(error_details_pb2, name).FromString(packed.value)
    return status, found


def test_the_documented_table_is_that_of_the_code() -> None:
    """docs/errors.md has one row for each error: reason, gRPC code, definite, retryable, and the delay before a retry."""
    documented = {}
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if found := re.fullmatch(r"`([A-Z_]+)`", cells[0]):
            documented[found[1]] = tuple(cells[1:5])
    expected = {}
    for reason, cls in ERRORS:
        delay = RETRY_DELAY_MS.get(cls)
        expected[reason] = (
            status_code(cls("")).name,
            "yes" if cls.definite else "no",
            "yes" if cls.retryable else "no",
            f"{delay} ms" if delay else "",
        )
    assert expected == documented


@pytest.mark.parametrize(("reason", "cls"), ERRORS)
def test_details_say_what_may_be_concluded(reason: str, cls: type[RaftCacheError]) -> None:
    """The ErrorInfo of every error carries its reason, definiteness and facts; RetryInfo and BadRequest are where they belong."""
    refusal = refusal_of(cls("a message", metadata={"leader_address": "h:1"}), shard=3)
    status, details = details_of(refusal.details)
    info = details["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (reason, "raftcache") == (info.reason, info.domain)
    assert {
        "shard": "3",
        "leader_address": "h:1",
        "definite": str(cls.definite).lower(),
        "retryable": str(cls.retryable).lower(),
    } == dict(info.metadata)
    assert cls.retryable == ("RetryInfo" in details)
    assert issubclass(cls, InvalidRequest) == ("BadRequest" in details)
    assert (refusal.code, "a message") == (status.code, status.message)


def test_generic_clients_retry_only_what_had_no_effect() -> None:
    """UNAVAILABLE, which retry policies repeat, is given to definite errors alone; an unknown outcome is UNKNOWN."""
    for _, cls in ERRORS:
        if status_code(cls("")) is StatusCode.UNAVAILABLE:
            assert cls.definite, f"{cls.__name__} would be repeated, and may have had an effect"
    assert status_code(OutcomeUnknown("")) is StatusCode.UNKNOWN


def test_a_class_without_a_row_has_the_code_of_its_ancestor() -> None:
    """KeyTooLong is not in the table; it is an InvalidRequest."""
    assert KeyTooLong not in CODES
    assert status_code(KeyTooLong("")) is StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("text", ["x", "é", "\U0001f600", "\udcff"])
def test_trailers_stay_small(text: str) -> None:
    """However long the message and the facts, in whatever characters, trailers stay below what peers accept."""
    facts = {f"fact_{number}": text * 10_000 for number in range(100)}
    refusal = refusal_of(InvalidRequest(text * 10_000, metadata=facts), shard=7)
    percent_encoded = sum(1 if 0x20 <= byte < 0x7F else 3 for byte in refusal.message.encode())
    in_base64 = -(-len(refusal.details) * 4 // 3)
    assert percent_encoded + in_base64 < TRAILERS_BYTES_MAX
    _, details = details_of(refusal.details)
    assert isinstance(details["ErrorInfo"], error_details_pb2.ErrorInfo)
    assert details["ErrorInfo"].metadata["shard"] == "7"


def test_an_item_of_a_batch_carries_the_same_facts() -> None:
    """ErrorDetail has code, reason, message, definite, retryable and metadata."""
    detail = types_pb2.ErrorDetail()
    fill_detail(detail, NotLeader("elsewhere", metadata={"leader_address": "h:1"}), shard=2)
    assert (
        types_pb2.ErrorDetail(
            code=StatusCode.UNAVAILABLE.value[0],
            reason="NOT_LEADER",
            message="elsewhere",
            definite=True,
            retryable=True,
            metadata={"leader_address": "h:1", "shard": "2"},
        )
        == detail
    )


def test_a_retry_is_told_when() -> None:
    """RetryInfo has the delay of the table."""
    for cls in (Unavailable, Overloaded, NotLeader):
        _, details = details_of(refusal_of(cls("")).details)
        retry = details["RetryInfo"]
        assert isinstance(retry, error_details_pb2.RetryInfo)
        assert RETRY_DELAY_MS[cls] == retry.retry_delay.ToMilliseconds()
