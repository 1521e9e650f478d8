"""What a status means: with details of ours, without any, and from the installed gRPC library itself."""

import grpc
import grpc.aio
import pytest

from raftcache.client.failure import Failure, failure_of_detail
from raftcache.client.grpcio_async import failure_of_aio
from raftcache.client.grpcio_sync import DETAILS_TRAILER, NEVER_CONNECTED, failure_of, failure_of_grpcio
from raftcache.client.options import CHANNEL_OPTIONS
from raftcache.errors import (
    BatchTooLarge,
    Corruption,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    RaftCacheError,
    Unavailable,
    UnsupportedVersion,
    error_classes,
)
from raftcache.gateway.errors import fill_detail, refusal_of, status_code
from raftcache.ids import ShardId
from raftcache.v1 import types_pb2


def of_server(error: RaftCacheError, shard: int = -1) -> Failure:
    """`error`, as the server sends it and as the client reads it."""
    refusal = refusal_of(error, ShardId(shard))
    return failure_of_grpcio("a:1", status_code(error), refusal.message, [(DETAILS_TRAILER, refusal.details)])


@pytest.mark.parametrize(("reason", "cls"), sorted(error_classes().items()))
def test_every_error_of_the_server_arrives_as_itself(reason: str, cls: type[RaftCacheError]) -> None:
    """Class, message, facts, and whether it is definite; by both ways that an error can take."""
    failure = of_server(cls("what happened", metadata={"limit": "3"}), shard=4)
    assert (cls, "what happened", cls.definite) == (type(failure.error), failure.error.message, failure.definite)
    assert "3" == failure.error.metadata["limit"]
    assert 4 == failure.error.shard
    assert not cls.retryable or failure.again
    detail = types_pb2.ErrorDetail()
    fill_detail(detail, cls("what happened"), 4)
    beside = failure_of_detail(detail)
    assert (cls, cls.definite, failure.again, 4) == (
        type(beside.error),
        beside.definite,
        beside.again,
        beside.error.shard,
    )
    assert reason == failure.reason


def test_hints_and_advice_come_along() -> None:
    """Where the leader is, and when to come back."""
    assert "c:1" == of_server(NotLeader("x", metadata={"leader_address": "c:1"})).error.metadata["leader_address"]
    assert 0.1 == of_server(Overloaded("x")).retry_after


def test_a_reason_of_a_newer_release_keeps_what_it_says_of_itself() -> None:
    """Its name is unknown here, its facts are not."""
    detail = types_pb2.ErrorDetail(reason="BRAND_NEW", message="x", definite=True, retryable=True)
    failure = failure_of_detail(detail)
    assert (RaftCacheError, True, True) == (type(failure.error), failure.definite, failure.again)


@pytest.mark.parametrize(
    ("code", "details", "expected", "definite", "again"),
    [
        (grpc.StatusCode.UNAVAILABLE, f"{NEVER_CONNECTED}; last error: x", Unavailable, True, True),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", OutcomeUnknown, False, True),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", OutcomeUnknown, False, True),
        (grpc.StatusCode.CANCELLED, "Channel closed!", OutcomeUnknown, False, True),
        (grpc.StatusCode.UNKNOWN, "Stream removed", OutcomeUnknown, False, True),
        (grpc.StatusCode.INTERNAL, "RST_STREAM", OutcomeUnknown, False, True),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "message larger than max", BatchTooLarge, True, False),
        (grpc.StatusCode.UNIMPLEMENTED, "Method not found", UnsupportedVersion, True, False),
    ],
)
def test_a_status_without_details_is_taken_with_care(
    code: grpc.StatusCode, details: str, expected: type[RaftCacheError], definite: bool, again: bool
) -> None:
    """The library and not the server speaks: the outcome is unknown, unless the request was never let in."""
    failure = failure_of_grpcio("a:1", code, details, None)
    assert (expected, definite, again) == (type(failure.error), failure.definite, failure.again)
    assert "a:1" in failure.error.message


@pytest.mark.parametrize("data", [b"\xff\xff", b""])
def test_details_that_are_not_ours_count_as_none(data: bytes) -> None:
    """A proxy may have put them there."""
    failure = failure_of_grpcio("a:1", grpc.StatusCode.UNAVAILABLE, "x", [(DETAILS_TRAILER, data)])
    assert (OutcomeUnknown, False) == (type(failure.error), failure.definite)


def test_damage_is_worth_another_attempt_where_that_is_harmless() -> None:
    """Another replica has the same data."""
    failure = of_server(Corruption("x"))
    assert (False, True) == (failure.definite, failure.again)


def test_the_installed_grpc_says_that_it_could_not_connect() -> None:
    """The words by which a request counts as never sent: if they change, every refused connection becomes ambiguous."""
    with grpc.insecure_channel("127.0.0.1:1", CHANNEL_OPTIONS) as channel:
        call = channel.unary_unary("/a/b", request_serializer=bytes, response_deserializer=bytes)
        with pytest.raises(grpc.RpcError) as raised:
            call(b"x", timeout=20)
    failure = failure_of("127.0.0.1:1", raised.value)
    assert (Unavailable, True, True) == (type(failure.error), failure.definite, failure.unreachable)


async def test_the_installed_grpc_aio_says_that_it_could_not_connect() -> None:
    """As above, by the other stack."""
    async with grpc.aio.insecure_channel("127.0.0.1:1", CHANNEL_OPTIONS) as channel:
        call = channel.unary_unary("/a/b", request_serializer=bytes, response_deserializer=bytes)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(b"x", timeout=20)
    failure = failure_of_aio("127.0.0.1:1", raised.value)
    assert (Unavailable, True, True) == (type(failure.error), failure.definite, failure.unreachable)
