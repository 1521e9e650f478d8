"""From the node's replies to protobuf messages.

Rules of this file:
- functions *fill* a message that exists already, so that one result inside a batch and a reply of its own are written by
  the same code and nothing is copied;
- which message a result goes into is decided by its *operation*; a result of another kind is a bug of the node and fails
  an assertion.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from raftcache.errors import RaftCacheError, error_of
from raftcache.gateway.errors import fill_detail
from raftcache.gateway.plain_replies import plain_reply
from raftcache.gateway.routes import Hints
from raftcache.kv.operations import (
    CloseSession,
    CompareAndSwap,
    Delete,
    Failure,
    Get,
    GetResult,
    Increment,
    IncrementResult,
    KeyEntry,
    OpenSession,
    Operation,
    Put,
    Result,
    SessionResult,
    Transaction,
    TransactionResult,
    WriteResult,
)
from raftcache.node.api import Reply
from raftcache.v1 import kv_pb2, types_pb2


def fill_header(header: types_pb2.ResponseHeader, reply: Reply, revision: int, hints: Hints) -> None:
    """Where the reply comes from."""
    header.shard = reply.shard
    header.index = reply.index
    header.revision = revision
    if reply.age_ms:
        header.age_ms = reply.age_ms
    hint = hints(reply.shard)
    if hint is not None:
        header.leader_address, header.epoch = hint


def fill_entry(message: types_pb2.KeyEntry, entry: KeyEntry) -> None:
    """A key as stored."""
    message.key = entry.key
    if entry.value:
        message.value = entry.value
    message.version = entry.version
    message.create_revision = entry.create_revision
    message.mod_revision = entry.mod_revision
    if entry.lease:
        message.lease = entry.lease
    if entry.expiry_ms:
        message.expiry_ms = entry.expiry_ms


def fill_result(message: kv_pb2.OperationResult, operation: Operation, reply: Reply, hints: Hints) -> None:
    """The reply to one operation of a batch: its result with a header, or its error."""
    result = reply.result
    failure = failure_of(reply)
    if failure is not None:
        fill_detail(message.error, failure, reply.shard)
        return
    assert not isinstance(result, (RaftCacheError, Failure)), f"{result} is a failure"
    encoder = ENCODERS[type(operation)]
    answer = getattr(message, encoder.name)
    fill_header(answer.header, reply, result.revision, hints)
    encoder.fill(answer, operation, result)


def encode_reply(operation: Operation, reply: Reply, hints: Hints) -> bytes:
    """The serialised reply of a unary call. The reply is no failure."""
    result = reply.result
    assert not isinstance(result, (RaftCacheError, Failure)), f"{result} is a failure: ask failure_of first"
    plain = plain_reply(operation, reply, hints)
    if plain is not None:
        return plain
    encoder = ENCODERS[type(operation)]
    message = encoder.message()
    fill_header(message.header, reply, result.revision, hints)
    encoder.fill(message, operation, result)
    data: bytes = message.SerializeToString()
    return data


def failure_of(reply: Reply) -> RaftCacheError | None:
    """The reply's error, if it is one."""
    result = reply.result
    if isinstance(result, RaftCacheError):
        return result
    if isinstance(result, Failure):
        return error_of(result.reason, result.message)
    return None


# --- One function for each kind of operation ------------------------------------------------------------------------


def _fill_get(message: kv_pb2.GetResponse, _: Get, result: GetResult) -> None:
    assert isinstance(result, GetResult), f"a Get was answered by {result}"
    if result.entry is not None:
        fill_entry(message.entry, result.entry)


def _fill_put(message: kv_pb2.PutResponse, _: Put, result: WriteResult) -> None:
    assert isinstance(result, WriteResult), f"a Put was answered by {result}"
    message.succeeded = result.succeeded
    if result.previous is not None:
        fill_entry(message.previous, result.previous)
    if result.current is not None:
        fill_entry(message.current, result.current)


def _fill_delete(message: kv_pb2.DeleteResponse, _: Delete, result: WriteResult) -> None:
    assert isinstance(result, WriteResult), f"a Delete was answered by {result}"
    message.succeeded = result.succeeded
    message.deleted = result.deleted
    if result.previous is not None:
        fill_entry(message.previous, result.previous)
    if result.current is not None:
        fill_entry(message.current, result.current)


def _fill_compare_and_swap(message: kv_pb2.CompareAndSwapResponse, _: CompareAndSwap, result: WriteResult) -> None:
    assert isinstance(result, WriteResult), f"a CompareAndSwap was answered by {result}"
    message.succeeded = result.succeeded
    if result.current is not None:
        fill_entry(message.current, result.current)


def _fill_increment(message: kv_pb2.IncrementResponse, _: Increment, result: IncrementResult) -> None:
    assert isinstance(result, IncrementResult), f"an Increment was answered by {result}"
    message.value = result.value


def _fill_transaction(message: kv_pb2.TransactionResponse, operation: Transaction, result: TransactionResult) -> None:
    assert isinstance(result, TransactionResult), f"a Transaction was answered by {result}"
    message.succeeded = result.succeeded
    branch = operation.then if result.succeeded else operation.otherwise
    assert len(branch) == len(result.results), f"{len(result.results)} results of {len(branch)} operations"
    for inner, inner_result in zip(branch, result.results, strict=True):
        item = message.results.add()
        if isinstance(inner_result, Failure):
            fill_detail(item.error, error_of(inner_result.reason, inner_result.message))
            continue
        encoder = ENCODERS[type(inner)]
        answer = getattr(item, encoder.name)
        answer.SetInParent()  # An answer may be empty, and yet says which kind it is.
        encoder.fill(answer, inner, inner_result)


def _fill_open_session(message: kv_pb2.OpenSessionResponse, _: OpenSession, result: SessionResult) -> None:
    assert isinstance(result, SessionResult), f"an OpenSession was answered by {result}"
    message.session = result.session


def _fill_close_session(message: kv_pb2.CloseSessionResponse, _: CloseSession, result: Result) -> None:
    """Its header says it all."""


class Encoder(NamedTuple):
    """How the result of one kind of operation is written."""

    name: str
    """Its field in `OperationResult`; empty where it has none."""
    # The three types of an entry belong together, which the type of the table cannot say.
    message: Callable[[], Any]
    fill: Callable[[Any, Any, Any], None]


ENCODERS: dict[type, Encoder] = {
    Get: Encoder("get", kv_pb2.GetResponse, _fill_get),
    Put: Encoder("put", kv_pb2.PutResponse, _fill_put),
    Delete: Encoder("delete", kv_pb2.DeleteResponse, _fill_delete),
    CompareAndSwap: Encoder("compare_and_swap", kv_pb2.CompareAndSwapResponse, _fill_compare_and_swap),
    Increment: Encoder("increment", kv_pb2.IncrementResponse, _fill_increment),
    Transaction: Encoder("transaction", kv_pb2.TransactionResponse, _fill_transaction),
    OpenSession: Encoder("", kv_pb2.OpenSessionResponse, _fill_open_session),
    CloseSession: Encoder("", kv_pb2.CloseSessionResponse, _fill_close_session),
}
"""By the operation's class. Scans are merged, in scan.py."""
