"""`raftcache.v1.KvService`: lists of calls in, one list of requests to the node, lists of answers out.

    front ─ [Call] ─► _Attachment.submit ─ [Request] ─► node
    front ◄ [Answer] ─ _Attachment.deliver ◄ [Reply] ─┘

Rules of this file:
- the hot path is one pass over the list: parse, check, append. What is refused is answered at once, in one list;
- nothing reaches the node whose deadline has passed, whose caller may not, or that `check_operation` refuses;
- a scan, a batch and a stream are each a `ReplySink` of their own; single operations share the attachment's.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from raftcache.edge.front import Answer, Call, CallSink, Refusal, StreamSink
from raftcache.errors import InvalidRequest, RaftCacheError
from raftcache.gateway.batches import Batch, BatchRunner, keys_of
from raftcache.gateway.decode import DECODERS, Decoded
from raftcache.gateway.encode import encode_reply, failure_of
from raftcache.gateway.errors import refusal_of
from raftcache.gateway.gateway import Gateway, parse
from raftcache.gateway.pipeline import Pipeline
from raftcache.gateway.puts import PutBatch, plain_puts
from raftcache.gateway.scan import ScanCall, client_shard
from raftcache.ids import NodeId, ShardId
from raftcache.kv.limits import check_operation, check_stamp
from raftcache.kv.operations import CloseSession, Get, OpenSession, Operation
from raftcache.kv.slots import SHARD_WIDE, slot_of
from raftcache.node.api import Reply, Request
from raftcache.v1 import kv_pb2, shard_map_pb2

SERVICE = "raftcache.v1.KvService"


class _Single(NamedTuple):
    """A method of one operation."""

    from_string: Callable[[bytes], Any]
    decode: Callable[[Any], Decoded]


_SINGLES = {
    f"/{SERVICE}/Get": _Single(kv_pb2.GetRequest.FromString, DECODERS["get"]),
    f"/{SERVICE}/Put": _Single(kv_pb2.PutRequest.FromString, DECODERS["put"]),
    f"/{SERVICE}/Delete": _Single(kv_pb2.DeleteRequest.FromString, DECODERS["delete"]),
    f"/{SERVICE}/CompareAndSwap": _Single(kv_pb2.CompareAndSwapRequest.FromString, DECODERS["compare_and_swap"]),
    f"/{SERVICE}/Increment": _Single(kv_pb2.IncrementRequest.FromString, DECODERS["increment"]),
    f"/{SERVICE}/Transaction": _Single(kv_pb2.TransactionRequest.FromString, DECODERS["transaction"]),
}

PIPELINE = f"/{SERVICE}/Pipeline"


class KvService:
    """The service; one for all fronts of a node. Is a `UnaryService` and, for `Pipeline`, a `StreamService`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    @property
    def unary_methods(self) -> tuple[str, ...]:
        """The full names of all unary methods."""
        return (*_SINGLES, *_OTHERS)

    def attach(self, sink: CallSink) -> Callable[[list[Call]], None]:
        """Connects a front."""
        return _Attachment(self._gateway, sink).submit

    def open(self, call: Call, sink: StreamSink) -> Pipeline:
        """Begins a `Pipeline`."""
        return Pipeline(self._gateway, call, sink)


_Token = tuple[Call, Operation]


READS_AT_ONCE: Final = 32
"""Answers to reads in one piece. Their clients ask again while the rest is made, instead of all at once when we have nothing to do
(gets of one key at 64 and 256 outstanding: a quarter and a third more). Writes are answered together: they come back together, and
share an fdatasync."""


class _Attachment:
    """The service as one front uses it. Is the `ReplySink` of single operations."""

    def __init__(self, gateway: Gateway, sink: CallSink) -> None:
        self._gateway = gateway
        self._sink = sink
        self._requests: list[Request] = []
        """Of the list of calls that is being gone through."""
        self._answers: list[Answer] = []
        """... and what is answered already. Both are empty between calls of `submit`."""

    def submit(self, calls: list[Call]) -> None:
        """Takes calls; each is answered through the sink, at once or later."""
        gateway = self._gateway
        now_ns = gateway.clock.monotonic_ns()
        for call in calls:
            try:
                single = _SINGLES.get(call.method)
                if single is not None:
                    self._single(call, single, now_ns)
                else:
                    gateway.check_bytes(call.message)
                    _OTHERS[call.method](self, call, now_ns)
            except RaftCacheError as error:
                self._answers.append((call, refusal_of(error)))
        requests, self._requests = self._requests, []
        answers, self._answers = self._answers, []
        if requests:
            gateway.node.submit(requests, self)
        if answers:
            self._sink.deliver(answers)

    def deliver(self, replies: list[Reply]) -> None:
        """Takes the node's replies to single operations."""
        answers: list[Answer] = []
        hints = self._gateway.routes.hint
        for reply in replies:
            call, operation = _token_of(reply)
            if len(answers) >= READS_AT_ONCE and type(operation) is Get:
                self._sink.deliver(answers)
                answers = []
            failure = failure_of(reply)
            if failure is None:
                answers.append((call, encode_reply(operation, reply, hints)))
            else:
                answers.append((call, refusal_of(failure, reply.shard)))
        self._sink.deliver(answers)

    def _single(self, call: Call, single: _Single, now_ns: int) -> None:
        gateway = self._gateway
        deadline_ns = gateway.deadline_of(call.deadline_ns, now_ns)
        gateway.check_bytes(call.message)
        operation, stamp, consistency, _ = single.decode(parse(single.from_string, call.message))
        slot = check_operation(operation, gateway.kv_limits)
        if stamp is not None:
            check_stamp(stamp)
        gateway.authorizer.authorize(call.peer, call.method, keys_of(operation))
        token: _Token = (call, operation)
        self._requests.append(Request(token, operation, slot, deadline_ns, stamp=stamp, consistency=consistency))

    def _scan(self, call: Call, now_ns: int) -> None:
        ScanCall(self._gateway, call, self._answer).begin(now_ns)

    def _batch(self, call: Call, now_ns: int) -> None:
        gateway = self._gateway
        deadline_ns = gateway.deadline_of(call.deadline_ns, now_ns)
        request = parse(kv_pb2.BatchRequest.FromString, call.message)
        gateway.check_count(len(request.operations))
        puts = plain_puts(gateway, call, request)
        if puts is not None:
            PutBatch(gateway, puts, deadline_ns, lambda answer: self._answer(call, answer)).begin()
            return
        batch = Batch(kv_pb2.BatchResponse(), len(request.operations), len(call.message))

        def on_complete(_: list[Batch]) -> None:
            self._answer(call, batch.response.SerializeToString())

        runner = BatchRunner(gateway, call.peer, call.method, on_complete)
        runner.add(batch, request.operations, deadline_ns)
        if batch.remaining:
            runner.flush()
        else:
            self._answers.append((call, batch.response.SerializeToString()))

    def _open_session(self, call: Call, now_ns: int) -> None:
        gateway = self._gateway
        deadline_ns = gateway.deadline_of(call.deadline_ns, now_ns)
        request = parse(kv_pb2.OpenSessionRequest.FromString, call.message)
        target = request.WhichOneof("target")
        shard: ShardId | None = None
        slot = SHARD_WIDE
        if target == "key":
            slot = slot_of(request.key)
        elif target == "shard":
            shard = client_shard(gateway, request.shard)
        else:
            raise InvalidRequest("name the shard of the session, or a key in it", metadata={"field": "target"})
        gateway.authorizer.authorize(call.peer, call.method, (request.key,) if target == "key" else ())
        operation = OpenSession()
        token: _Token = (call, operation)
        self._requests.append(Request(token, operation, slot, deadline_ns, shard=shard))

    def _close_session(self, call: Call, now_ns: int) -> None:
        gateway = self._gateway
        deadline_ns = gateway.deadline_of(call.deadline_ns, now_ns)
        request = parse(kv_pb2.CloseSessionRequest.FromString, call.message)
        shard = client_shard(gateway, request.shard)
        operation = CloseSession(request.session)
        slot = check_operation(operation, gateway.kv_limits)
        gateway.authorizer.authorize(call.peer, call.method, ())
        token: _Token = (call, operation)
        self._requests.append(Request(token, operation, slot, deadline_ns, shard=shard))

    def _shard_map(self, call: Call, now_ns: int) -> None:
        gateway = self._gateway
        gateway.deadline_of(call.deadline_ns, now_ns)
        parse(shard_map_pb2.ShardMapRequest.FromString, call.message)
        gateway.authorizer.authorize(call.peer, call.method, ())
        self._answers.append((call, _shard_map_of(gateway).SerializeToString()))

    def _answer(self, call: Call, answer: bytes | Refusal) -> None:
        self._sink.deliver([(call, answer)])


_OTHERS: Final[dict[str, Callable[[_Attachment, Call, int], None]]] = {
    f"/{SERVICE}/Scan": _Attachment._scan,
    f"/{SERVICE}/Batch": _Attachment._batch,
    f"/{SERVICE}/OpenSession": _Attachment._open_session,
    f"/{SERVICE}/CloseSession": _Attachment._close_session,
    f"/{SERVICE}/ShardMap": _Attachment._shard_map,
}
"""The unary methods that are no single operation."""


def _shard_map_of(gateway: Gateway) -> shard_map_pb2.ShardMapResponse:
    table = gateway.routes.table()
    addresses: dict[NodeId, str] = {node.node: node.client_address for node in table.nodes}
    response = shard_map_pb2.ShardMapResponse(epoch=table.epoch, cluster=table.cluster, answered_by=table.this_node)
    for shard in table.shards:
        route = response.shards.add(
            shard=shard.shard,
            leader_node=shard.leader_node,
            leader_address=addresses.get(shard.leader_node, ""),
            replica_nodes=shard.replica_nodes,
        )
        for lo, hi in shard.ranges:
            route.ranges.add(lo=lo, hi=hi)
    for node in table.nodes:
        response.nodes.add(node=node.node, client_address=node.client_address, name=node.name)
    return response


def _token_of(reply: Reply) -> _Token:
    token = reply.token
    assert isinstance(token, tuple), f"the token of a call came back as {token!r}"
    return token
