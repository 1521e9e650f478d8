"""Batches: grouped by leader, settled one by one, in order for each key; without a network."""

from typing import Any

import pytest

from raftcache.client import ops
from raftcache.client.batch import CHUNK_BYTES, CHUNK_OPERATIONS, Batch, Outcome
from raftcache.client.errors import AmbiguousResult, ConditionFailed, DeadlineExceeded
from raftcache.client.ops import Operation
from raftcache.client.results import Entry, PutResult
from raftcache.client.sessions import WINDOW
from raftcache.errors import (
    BatchTooLarge,
    InvalidRequest,
    KeyTooLong,
    NotLeader,
    OutcomeUnknown,
    RaftCacheError,
    SessionExpired,
    Unavailable,
    WrongShard,
)
from raftcache.kv.slots import slot_of
from raftcache.v1 import kv_pb2
from tests.client.scripted import Scripted, header, lost, refused

IN_1 = [key for key in (f"k{i}" for i in range(9000)) if slot_of(key.encode()) < 8192]
IN_2 = [key for key in (f"k{i}" for i in range(9000)) if slot_of(key.encode()) >= 8192]


def run(script: Scripted, operations: list[Operation[Any]], timeout: float | None = None) -> list[Outcome]:
    return script.run(Batch(script.core, operations, timeout, None).run())


def ok(call: Any) -> kv_pb2.BatchResponse:
    """Every operation succeeds; the revision of a put is its sequence number."""
    response = kv_pb2.BatchResponse()
    for operation in call.message.operations:
        fill_ok(response.results.add(), operation)
    return response


def fill_ok(result: kv_pb2.OperationResult, operation: kv_pb2.Operation) -> None:
    if operation.HasField("put"):
        result.put.succeeded = True
        result.put.header.CopyFrom(header(revision=operation.put.stamp.sequence))
    elif operation.HasField("increment"):
        result.increment.value = 1
    else:
        result.get.entry.key = operation.get.key


def fails(*errors: RaftCacheError | None) -> Any:
    """An answer in which the operations fail with `errors`; None succeeds."""

    def answer(call: Any) -> kv_pb2.BatchResponse:
        response = kv_pb2.BatchResponse()
        assert len(errors) == len(call.message.operations)
        for error, operation in zip(errors, call.message.operations, strict=True):
            result = response.results.add()
            if error is None:
                fill_ok(result, operation)
            else:
                result.error.reason, result.error.message = error.reason, error.message
                result.error.definite, result.error.retryable = error.definite, error.retryable
                for name, value in error.metadata.items():
                    result.error.metadata[name] = value
        return response

    return answer


def keys_of(call: Any) -> list[str]:
    """The keys of one request."""
    names = [operation.WhichOneof("operation") for operation in call.message.operations]
    return [getattr(item, name).key.decode() for name, item in zip(names, call.message.operations, strict=True) if name]


def test_results_stand_in_the_order_of_the_operations() -> None:
    """Whatever leaders they were sent to."""
    script = Scripted(ok, ok)
    outcomes = run(script, [ops.get(IN_1[0]), ops.put(IN_2[0], b"v"), ops.get(IN_2[1]), ops.put(IN_1[1], b"v")])
    assert [Entry, PutResult, Entry, PutResult] == [type(outcome) for outcome in outcomes]
    assert ["a:1", "b:1"] == script.endpoints
    assert [[IN_1[0], IN_1[1]], [IN_2[0], IN_2[1]]] == [keys_of(call) for call in script.calls]


def test_an_empty_batch_asks_nobody() -> None:
    """Nothing in, nothing out."""
    script = Scripted()
    assert [] == run(script, [])
    assert 0 == script.maps


def test_only_what_failed_is_sent_again() -> None:
    """Each operation has its own fate."""
    script = Scripted(fails(None, Unavailable("no leader"), None), ok)
    outcomes = run(script, [ops.put(key, b"v") for key in IN_1[:3]])
    assert all(isinstance(outcome, PutResult) for outcome in outcomes)
    assert [IN_1[:3], [IN_1[1]]] == [keys_of(call) for call in script.calls]


def test_a_lost_request_is_repeated_with_its_stamps() -> None:
    """Under sessions each write of it is applied once."""
    script = Scripted(lost(OutcomeUnknown("broken")), ok)
    outcomes = run(script, [ops.put(key, b"v") for key in IN_1[:3]])
    assert [1, 2, 3] == [outcome.revision for outcome in outcomes if isinstance(outcome, PutResult)]
    stamps = [
        [(operation.put.stamp.session, operation.put.stamp.sequence) for operation in call.message.operations]
        for call in script.calls
    ]
    assert [[(100, 1), (100, 2), (100, 3)]] * 2 == stamps


def test_without_sessions_lost_writes_are_ambiguous_and_lost_reads_repeated() -> None:
    """In one and the same request."""
    script = Scripted(lost(OutcomeUnknown("broken")), ok, sessions=False)
    outcomes = run(script, [ops.put(IN_1[0], b"v"), ops.get(IN_1[1])])
    assert isinstance(outcomes[0], AmbiguousResult)
    assert isinstance(outcomes[1], Entry)
    assert [IN_1[1]] == keys_of(script.calls[1])


def test_errors_stand_in_their_place() -> None:
    """A refusal of one operation is no refusal of the batch."""
    conditional = ops.put(IN_1[1], b"v", if_absent=True)

    def answer(call: Any) -> kv_pb2.BatchResponse:
        response: kv_pb2.BatchResponse = fails(KeyTooLong("long"), None, None)(call)
        response.results[1].put.succeeded = False
        response.results[1].put.current.value = b"there"
        return response

    outcomes = run(Scripted(answer), [ops.get(IN_1[0]), conditional, ops.get(IN_1[2])])
    assert isinstance(outcomes[0], KeyTooLong)
    assert isinstance(outcomes[1], ConditionFailed)
    assert outcomes[1].current is not None
    assert (b"there", "a:1") == (outcomes[1].current.value, outcomes[1].node)
    assert isinstance(outcomes[2], Entry)


def test_a_request_that_is_refused_as_a_whole_fails_all_of_it() -> None:
    """And no others."""
    script = Scripted(refused(BatchTooLarge("split it")), ok)
    outcomes = run(script, [ops.get(IN_1[0]), ops.get(IN_1[1]), ops.get(IN_2[0])])
    assert [BatchTooLarge, BatchTooLarge, Entry] == [type(outcome) for outcome in outcomes]


def test_operations_on_one_key_wait_for_one_another() -> None:
    """Otherwise the first, sent again, would overtake the second."""
    script = Scripted(fails(Unavailable("no leader"), None), ok, ok, ok)
    run(script, [ops.put(IN_1[0], b"1"), ops.put(IN_1[0], b"2"), ops.put(IN_1[1], b"v"), ops.put(IN_1[0], b"3")])
    assert [[IN_1[0], IN_1[1]], [IN_1[0]], [IN_1[0]], [IN_1[0]]] == [keys_of(call) for call in script.calls]
    values = [operation.put.value for call in script.calls[1:] for operation in call.message.operations]
    assert [b"1", b"2", b"3"] == values


def test_a_transaction_waits_for_each_of_its_keys() -> None:
    """Its keys are all those it names."""
    put, other = ops.put("{t}a", b"1"), ops.put("{t}b", b"1")
    txn = ops.txn(then=[ops.get("{t}a"), ops.get("{t}b")])

    def txn_ok(call: Any) -> kv_pb2.BatchResponse:
        response = kv_pb2.BatchResponse()
        response.results.add().transaction.succeeded = True
        return response

    script = Scripted(ok, txn_ok)
    run(script, [put, other, txn])
    assert [2, 1] == [len(call.message.operations) for call in script.calls]


def test_a_large_batch_is_cut() -> None:
    """By operations and by bytes; what is larger goes alone."""
    script = Scripted(ok, ok, ok, sessions=False)
    run(script, [ops.get(key) for key in IN_1[: 2 * CHUNK_OPERATIONS + 1]])
    assert [CHUNK_OPERATIONS, CHUNK_OPERATIONS, 1] == [len(call.message.operations) for call in script.calls]
    script = Scripted(ok, ok, ok, sessions=False)
    sizes = [CHUNK_BYTES // 2, CHUNK_BYTES * 2, 10, 10]
    run(script, [ops.put(key, bytes(size)) for key, size in zip(IN_1, sizes, strict=False)])
    assert [1, 1, 2] == [len(call.message.operations) for call in script.calls]


def test_a_batch_beyond_the_sessions_window_goes_in_rounds() -> None:
    """The answers to the first part make room for the rest: the batch never waits for itself."""
    script = Scripted(*[ok] * 20)
    outcomes = run(script, [ops.put(key, b"v") for key in IN_1[: WINDOW + 100]])
    assert all(isinstance(outcome, PutResult) for outcome in outcomes)
    assert WINDOW + 100 == sum(len(call.message.operations) for call in script.calls)
    sessions = script.core.sessions
    assert sessions is not None
    assert 1 == len(sessions.idle())


def test_what_moved_goes_to_its_new_shard_under_another_session() -> None:
    """The rest stays where it is."""
    script = Scripted(fails(None, WrongShard("moved")), ok)
    outcomes = run(script, [ops.put(key, b"v") for key in IN_1[:2]])
    assert all(isinstance(outcome, PutResult) for outcome in outcomes)
    assert 2 == script.maps


def test_a_session_that_is_gone_is_replaced() -> None:
    """For writes of which nothing was lost; the others are ambiguous."""
    gone = SessionExpired("gone")
    script = Scripted(fails(gone, gone), ok)
    outcomes = run(script, [ops.put(key, b"v") for key in IN_1[:2]])
    assert all(isinstance(outcome, PutResult) for outcome in outcomes)
    assert {101} == {operation.put.stamp.session for operation in script.calls[1].message.operations}
    script = Scripted(lost(OutcomeUnknown("broken")), fails(gone, None))
    outcomes = run(script, [ops.put(key, b"v") for key in IN_1[:2]])
    assert [AmbiguousResult, PutResult] == [type(outcome) for outcome in outcomes]


def test_at_the_deadline_each_operation_has_its_own_verdict() -> None:
    """Lost writes are ambiguous; reads, and writes that were refused every time, had no effect."""
    never = Unavailable("no leader")
    first = fails(OutcomeUnknown("lost"), never, never)
    script = Scripted(first, *[fails(never, never, never)] * 60)
    outcomes = run(script, [ops.put(IN_1[0], b"v"), ops.put(IN_1[1], b"v"), ops.get(IN_1[2])], timeout=3.0)
    assert [AmbiguousResult, DeadlineExceeded, DeadlineExceeded] == [type(outcome) for outcome in outcomes]


def test_several_leaders_that_moved_are_all_learnt_from_one_answer() -> None:
    """One round for the hints, not one for each shard."""
    hints = [
        NotLeader("no", metadata={"shard": "1", "leader_address": "c:1"}),
        NotLeader("no", metadata={"shard": "2", "leader_address": "a:1"}),
    ]
    script = Scripted(fails(hints[0]), fails(hints[1]), ok, ok)
    run(script, [ops.get(IN_1[0]), ops.get(IN_2[0])])
    assert ["a:1", "b:1", "c:1", "a:1"] == script.endpoints
    assert [] == script.pauses


@pytest.mark.parametrize("count", [0, 2])
def test_an_answer_of_the_wrong_length_is_not_matched_up(count: int) -> None:
    """Results without a place are nobody's: writes are ambiguous."""
    response = kv_pb2.BatchResponse()
    for _ in range(count):
        response.results.add().put.succeeded = True
    script = Scripted(response)
    assert [AmbiguousResult] == [type(outcome) for outcome in run(script, [ops.put(IN_1[0], b"v")])]


def test_an_operation_may_be_used_many_times() -> None:
    """It is not changed by being sent."""
    put = ops.put(IN_1[0], b"v")
    before = put.message.SerializeToString()
    script = Scripted(ok, ok)
    run(script, [put])
    run(script, [put])
    assert before == put.message.SerializeToString()
    assert [1, 2] == [call.message.operations[0].put.stamp.sequence for call in script.calls]


def test_bad_operations_are_refused_when_they_are_made() -> None:
    """Not when the batch is under way."""
    with pytest.raises(InvalidRequest):
        ops.put("", b"v")
    with pytest.raises(InvalidRequest):
        ops.put("k", b"v", if_absent=True, if_exists=True)
    with pytest.raises(InvalidRequest):
        ops.txn()
    with pytest.raises(InvalidRequest):
        ops.txn(then=[ops.txn(then=[ops.get("k")])])
