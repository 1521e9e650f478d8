"""Batches: many operations in one message, each with a result of its own. Serves `Batch` and `Pipeline`.

Rules of this file:
- an operation that is refused here gets its error in its place and does not hold up the others;
- what is handed to the node is one list per turn, whatever number of batches it comes from;
- an answer is bounded, however small the request: what goes beyond is reported, never cut off;
- a batch is complete when every operation has its result; then, and only then, its owner is told.
"""

from collections.abc import Callable, Sequence

from raftcache.edge.front import Peer
from raftcache.errors import OutcomeUnknown, Overloaded, RaftCacheError
from raftcache.gateway.decode import decode_item
from raftcache.gateway.encode import fill_result
from raftcache.gateway.errors import fill_detail
from raftcache.gateway.gateway import Gateway, too_much_unfinished
from raftcache.gateway.order import SlotOrder
from raftcache.ids import Slot
from raftcache.kv.limits import check_operation, check_stamp
from raftcache.kv.operations import Get, Operation, value_bytes
from raftcache.node.api import Reply, Request
from raftcache.v1 import kv_pb2


class Batch:
    """One batch that is being worked on."""

    __slots__ = ("bytes", "operations", "remaining", "reply_bytes", "response")

    def __init__(self, response: kv_pb2.BatchResponse | kv_pb2.PipelineResponse, operations: int, size: int) -> None:
        self.response = response
        """Filled as results come; complete when `remaining` is 0."""
        self.operations = operations
        """How many it has."""
        self.remaining = 0
        """Operations without a result."""
        self.bytes = size
        """Of the request."""
        self.reply_bytes = 0
        """Of the values in `response`."""


_Token = tuple[Batch, kv_pb2.OperationResult, Operation, Slot]
"""What a request carries: where its result goes, and what it was."""


class BatchRunner:
    """Runs the batches of one stream, or the one batch of a unary call, in order by slot. Is a `ReplySink`."""

    __slots__ = ("_gateway", "_method", "_on_complete", "_order", "_peer", "_stopped", "unfinished_bytes")

    def __init__(self, gateway: Gateway, peer: Peer, method: str, on_complete: Callable[[list[Batch]], None]) -> None:
        self._gateway = gateway
        self._peer = peer
        self._method = method
        self._on_complete = on_complete
        self._order = SlotOrder()
        self._stopped = False
        self.unfinished_bytes = 0
        """Of the values in answers that are not complete."""

    def add(self, batch: Batch, operations: Sequence[kv_pb2.Operation], deadline_ns: int) -> None:
        """Checks and queues a batch; `flush` hands it over. Every operation gets a result or a request."""
        gateway, admit, results = self._gateway, self._order.admit, batch.response.results
        limits, authorize, peer, method = gateway.kv_limits, gateway.authorizer.authorize, self._peer, self._method
        for item in operations:
            result = results.add()
            try:
                _, (operation, stamp, consistency, writes) = decode_item(item)
                slot = check_operation(operation, limits)
                if stamp is not None:
                    check_stamp(stamp)
                authorize(peer, method, keys_of(operation))
            except RaftCacheError as error:
                fill_detail(result.error, error)
                continue
            token: _Token = (batch, result, operation, slot)
            request = Request(token, operation, slot, deadline_ns, stamp=stamp, consistency=consistency)
            admit(request, writes=writes)
            batch.remaining += 1

    def flush(self) -> None:
        """Hands everything that may go now to the node."""
        ready = self._order.take_ready()
        if ready:
            self._gateway.node.submit(ready, self)

    def deliver(self, replies: list[Reply]) -> None:
        """Takes the node's replies; tells the owner of batches that are complete by them."""
        if self._stopped:
            return
        complete: list[Batch] = []
        answered, hints = self._order.answered, self._gateway.routes.hint
        bytes_max = self._gateway.settings.batch_reply_bytes_max
        unfinished, unfinished_max = self._gateway.unfinished, self._gateway.settings.unfinished_bytes_max
        for reply in replies:
            batch, result, operation, slot = _token_of(reply)
            size = 0 if isinstance(reply.result, RaftCacheError) else value_bytes(reply.result)
            if size and batch.reply_bytes + size > bytes_max:
                fill_detail(result.error, _reply_too_large(operation, bytes_max), reply.shard)
            elif size and unfinished.bytes + size > unfinished_max and isinstance(operation, Get):
                fill_detail(result.error, too_much_unfinished("key", unfinished_max), reply.shard)
            else:
                batch.reply_bytes += size
                unfinished.bytes += size
                self.unfinished_bytes += size
                fill_result(result, operation, reply, hints)
            answered(slot)
            batch.remaining -= 1
            if not batch.remaining:
                unfinished.bytes -= batch.reply_bytes
                self.unfinished_bytes -= batch.reply_bytes
                complete.append(batch)
        self.flush()
        if complete:
            self._on_complete(complete)

    def stop(self) -> None:
        """The caller is gone: what was not handed over never will be, and late replies are dropped."""
        self._stopped = True
        self._gateway.unfinished.bytes -= self.unfinished_bytes
        self.unfinished_bytes = 0
        self._order.forget_waiting()


def _reply_too_large(operation: Operation, bytes_max: int) -> RaftCacheError:
    limit = f"the values in the answer to one batch are limited to limits.batch_reply_bytes_max, {bytes_max} bytes"
    facts = {"setting": "limits.batch_reply_bytes_max", "limit": str(bytes_max)}
    if isinstance(operation, Get):
        return Overloaded(f"{limit}: ask for this key in another batch", metadata=facts)
    return OutcomeUnknown(
        f"the operation was carried out, and what it returned does not fit: {limit}. Under a session, send it again "
        f"with the same sequence number; else read the key",
        metadata=facts,
    )


def keys_of(operation: Operation) -> Sequence[bytes]:
    """All keys that an operation names."""
    key = getattr(operation, "key", None)
    if key is not None:
        return (key,)
    parts = (
        *getattr(operation, "conditions", ()),
        *getattr(operation, "then", ()),
        *getattr(operation, "otherwise", ()),
    )
    return [part.key for part in parts]


def _token_of(reply: Reply) -> _Token:
    token = reply.token
    assert isinstance(token, tuple), f"the token of a batch's request came back as {token!r}"
    return token
