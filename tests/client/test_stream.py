"""Pipelines without a stream: what leaves together, what an answer settles, and what an end means."""

from concurrent.futures import Future
from typing import Any

import pytest

from raftcache.client import ops
from raftcache.client.errors import AmbiguousResult, ClientClosed, ConditionFailed
from raftcache.client.failure import Failure
from raftcache.client.ops import Operation
from raftcache.client.results import PutResult
from raftcache.client.stream import GRACE_SECONDS, REQUEST_BYTES_MAX, REQUEST_OPERATIONS_MAX, Settled, StreamState
from raftcache.clock import ManualClock
from raftcache.errors import BatchTooLarge, KeyTooLong, OutcomeUnknown, RaftCacheError, Unavailable
from raftcache.v1 import kv_pb2

AnyFuture = Future[Any]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(monotonic_ns=1)


@pytest.fixture
def state(clock: ManualClock) -> StreamState[AnyFuture]:
    return StreamState("a:1", 5.0, 1_000, clock)


def enqueue(state: StreamState[AnyFuture], *operations: Operation[Any]) -> list[AnyFuture]:
    futures: list[AnyFuture] = [Future() for _ in operations]
    for operation, future in zip(operations, futures, strict=True):
        state.enqueue(operation, future)
    return futures


def apply(settled: list[Settled[AnyFuture]]) -> None:
    for one in settled:
        one.apply()


def sent(state: StreamState[AnyFuture]) -> kv_pb2.PipelineRequest:
    request = state.next_request()
    assert request is not None
    return request


def puts_ok(request: kv_pb2.PipelineRequest) -> kv_pb2.PipelineResponse:
    response = kv_pb2.PipelineResponse(request_id=request.request_id)
    for _ in request.operations:
        response.results.add().put.succeeded = True
    return response


def test_what_is_enqueued_meanwhile_leaves_together_and_in_order(state: StreamState[AnyFuture]) -> None:
    """The batching of a pipeline: one request for all that has gathered."""
    enqueue(state, ops.put("a", b"1"), ops.put("b", b"2"), ops.put("a", b"3"))
    assert [b"a", b"b", b"a"] == [operation.put.key for operation in sent(state).operations]
    assert state.next_request() is None


def test_requests_are_bounded(state: StreamState[AnyFuture]) -> None:
    """By operations and by bytes."""
    enqueue(state, *[ops.get(f"k{i}") for i in range(REQUEST_OPERATIONS_MAX + 1)])
    assert [REQUEST_OPERATIONS_MAX, 1] == [len(sent(state).operations) for _ in range(2)]
    enqueue(state, *[ops.put("k", bytes(size)) for size in (REQUEST_BYTES_MAX // 2, REQUEST_BYTES_MAX * 2, 1, 1)])
    assert [1, 1, 2] == [len(sent(state).operations) for _ in range(3)]


def test_answers_settle_their_own_in_any_order(state: StreamState[AnyFuture]) -> None:
    """The server answers when it is ready."""
    first = enqueue(state, ops.put("a", b"1"))
    one = sent(state)
    second = enqueue(state, ops.put("b", b"1"))
    two = sent(state)
    apply(state.on_response(puts_ok(two)))
    assert [False, True] == [future.done() for future in (*first, *second)]
    apply(state.on_response(puts_ok(one)))
    assert isinstance(first[0].result(), PutResult)
    assert [] == state.on_response(puts_ok(one)), "an answer that comes twice settles nothing"


def test_the_window_counts_what_is_not_answered(clock: ManualClock) -> None:
    """Enqueued or sent makes no difference."""
    state: StreamState[AnyFuture] = StreamState("a:1", 5.0, 2, clock)
    enqueue(state, ops.put("a", b"1"), ops.put("b", b"1"))
    assert not state.has_room()
    request = sent(state)
    assert not state.has_room()
    apply(state.on_response(puts_ok(request)))
    assert state.has_room()


def test_one_operations_error_is_its_own(state: StreamState[AnyFuture]) -> None:
    """A refusal, and a condition that does not hold."""
    futures = enqueue(state, ops.get("a"), ops.put("b", b"1", if_absent=True), ops.put("c", b"1"))
    response = kv_pb2.PipelineResponse(request_id=sent(state).request_id)
    error = response.results.add().error
    error.reason, error.message, error.definite = "KEY_TOO_LONG", "long", True
    response.results.add().put.succeeded = False
    response.results.add().put.succeeded = True
    apply(state.on_response(response))
    assert [KeyTooLong, ConditionFailed, type(None)] == [type(future.exception()) for future in futures]


def test_a_batch_that_was_refused_had_no_effect(state: StreamState[AnyFuture]) -> None:
    """Nothing of it was tried."""
    futures = enqueue(state, ops.put("a", b"1"), ops.get("a"))
    response = kv_pb2.PipelineResponse(request_id=sent(state).request_id)
    response.error.reason, response.error.definite = "OVERLOADED", True
    apply(state.on_response(response))
    assert ["OVERLOADED"] * 2 == [getattr(future.exception(), "reason", None) for future in futures]


def broken(error: RaftCacheError, *, definite: bool) -> Failure:
    return Failure(error, definite=definite, again=True)


def test_a_broken_stream_leaves_writes_ambiguous_and_reads_without_answer(state: StreamState[AnyFuture]) -> None:
    """What was still waiting here was certainly not sent."""
    in_flight = enqueue(state, ops.put("a", b"1"), ops.get("a"))
    sent(state)
    waiting = enqueue(state, ops.put("b", b"1"))
    apply(state.on_end(broken(OutcomeUnknown("broken"), definite=False)))
    errors = [future.exception() for future in (*in_flight, *waiting)]
    assert [AmbiguousResult, OutcomeUnknown, Unavailable] == [type(error) for error in errors]
    assert isinstance(errors[2], Unavailable)
    assert errors[2].definite
    with pytest.raises(Unavailable, match="broken"):
        enqueue(state, ops.get("a"))


def test_a_stream_that_ends_with_our_own_status_left_nothing_behind(state: StreamState[AnyFuture]) -> None:
    """A node that stops says so: what has no answer had no effect."""
    futures = enqueue(state, ops.put("a", b"1"))
    sent(state)
    apply(state.on_end(broken(Unavailable("stopping"), definite=True)))
    assert isinstance(futures[0].exception(), Unavailable)


def test_a_message_that_is_too_large_says_nothing_of_those_before_it(state: StreamState[AnyFuture]) -> None:
    """The node ends the whole stream for it: only where it was alone under way is it known to be the one."""
    before = enqueue(state, ops.put("a", b"1"))
    sent(state)
    large = enqueue(state, ops.put("b", b"2"))
    sent(state)
    apply(state.on_end(broken(BatchTooLarge("too large"), definite=True)))
    assert [AmbiguousResult] * 2 == [type(future.exception()) for future in (*before, *large)]


def test_a_message_that_is_too_large_and_alone_had_no_effect(state: StreamState[AnyFuture]) -> None:
    """All before it was answered, so it is the one that was refused."""
    answered = enqueue(state, ops.put("a", b"1"))
    apply(state.on_response(puts_ok(sent(state))))
    large = enqueue(state, ops.put("b", b"2"))
    sent(state)
    apply(state.on_end(broken(BatchTooLarge("too large"), definite=True)))
    assert answered[0].exception() is None
    assert isinstance(large[0].exception(), BatchTooLarge)


def test_a_stream_that_ends_well_too_early_is_ambiguous(state: StreamState[AnyFuture]) -> None:
    """The status OK does not say what became of the rest."""
    futures = enqueue(state, ops.put("a", b"1"))
    sent(state)
    apply(state.on_end(None))
    assert isinstance(futures[0].exception(), AmbiguousResult)


def test_a_future_that_was_cancelled_is_left_alone(state: StreamState[AnyFuture]) -> None:
    """Its operation goes on: it is sent already."""
    futures = enqueue(state, ops.put("a", b"1"))
    futures[0].cancel()
    apply(state.on_response(puts_ok(sent(state))))
    assert futures[0].cancelled()


def test_the_oldest_request_decides_when_the_stream_is_overdue(
    state: StreamState[AnyFuture], clock: ManualClock
) -> None:
    """The server answers or refuses in time; one that does neither is gone."""
    assert state.expires_in() is None
    enqueue(state, ops.put("a", b"1"))
    assert state.expires_in() is None, "nothing was sent"
    first = sent(state)
    clock.advance_ms(2_000)
    enqueue(state, ops.put("a", b"1"))
    sent(state)
    assert pytest.approx(3.0 + GRACE_SECONDS) == state.expires_in()
    apply(state.on_response(puts_ok(first)))
    assert pytest.approx(5.0 + GRACE_SECONDS) == state.expires_in()
    clock.advance_ms(60_000)
    assert 0 == state.expires_in()


def test_a_closing_pipeline_takes_no_more_and_is_finished_with_its_last_answer(state: StreamState[AnyFuture]) -> None:
    """What was enqueued before is still sent."""
    enqueue(state, ops.put("a", b"1"))
    state.closing = True
    with pytest.raises(ClientClosed):
        enqueue(state, ops.put("b", b"1"))
    request = sent(state)
    assert not state.finished()
    apply(state.on_response(puts_ok(request)))
    assert state.finished()
