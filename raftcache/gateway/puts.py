"""Batches of nothing but plain puts: one request to each shard, whatever their number. Serves `Batch`.

    Batch of plain puts ── PutMany ──► shard 1          any other batch ──► batches.BatchRunner
                        └─ PutMany ──► shard 2

Rules of this file:
- only what needs no decision of its own comes this way: the plain namespace, no condition, session, time or previous value,
  within the limits, and in slots that somebody owns. `plain_puts` says None to everything else;
- the answer to each put is what a request of its own would have got. A put that its shard no longer owns is sent once more,
  as such a request: the node then finds out where it belongs.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from raftcache.edge.front import Call
from raftcache.errors import RaftCacheError
from raftcache.gateway.encode import failure_of, fill_header
from raftcache.gateway.errors import fill_detail
from raftcache.gateway.gateway import Gateway
from raftcache.ids import ShardId, Slot
from raftcache.kv.operations import Put, PutMany, PutManyResult, WriteResult
from raftcache.kv.slots import SHARD_WIDE, slot_of
from raftcache.node.api import Reply, Request
from raftcache.v1 import kv_pb2


class PlainPuts(NamedTuple):
    """The puts of one batch, by column."""

    keys: list[bytes]
    values: list[bytes]
    slots: list[Slot]
    shards: list[ShardId]
    """Of each slot, by this node's directory."""


def plain_puts(gateway: Gateway, call: Call, request: kv_pb2.BatchRequest) -> PlainPuts | None:
    """The batch by column, if it holds nothing but plain puts that may be sent; else None.

    That they are plain is seen by the size: a message that has just the bytes that its keys and values need has nothing
    else in it. Looking at every field would take as long as everything else together.
    """
    puts = [item.put for item in request.operations]
    keys, values = [put.key for put in puts], [put.value for put in puts]
    limits = gateway.kv_limits
    key_sizes, value_sizes = list(map(len, keys)), list(map(len, values))
    if not puts or not min(key_sizes) or max(key_sizes) > limits.key_bytes_max:
        return None
    if max(value_sizes) > limits.value_bytes_max or sum(map(_plain_bytes, key_sizes, value_sizes)) != len(call.message):
        return None
    slots = list(map(slot_of, keys))
    owners = gateway.routes.slot_owners()
    shards = [owners[slot] for slot in slots]
    if min(shards) < 0:
        return None
    try:
        gateway.authorizer.authorize(call.peer, call.method, keys)
    except RaftCacheError:
        return None
    return PlainPuts(keys, values, slots, shards)


@lru_cache(maxsize=4096)
def _plain_bytes(key_bytes: int, value_bytes: int) -> int:
    """The bytes of a plain put of such a key and value in a batch, in the one encoding that is shortest."""
    put = kv_pb2.PutRequest(key=bytes(key_bytes), value=bytes(value_bytes))
    return kv_pb2.BatchRequest(operations=[kv_pb2.Operation(put=put)]).ByteSize()


class PutBatch:
    """One such batch on its way. Is the `ReplySink` of its own requests; each carries the positions of its puts."""

    def __init__(self, gateway: Gateway, puts: PlainPuts, deadline_ns: int, answer: Callable[[bytes], None]) -> None:
        self._gateway = gateway
        self._puts = puts
        self._deadline_ns = deadline_ns
        self._answer = answer
        self._remaining = len(puts.keys)
        self._results: list[tuple[kv_pb2.OperationResult, int]] = [_NOTHING] * self._remaining
        """By position: the result, and the revision that is still to be written into it; 0 = an error."""

    def begin(self) -> None:
        """Hands the puts to the node."""
        keys, values, _, shards = self._puts
        if shards.count(shards[0]) == len(shards):
            requests = [self._request(shards[0], range(len(shards)), PutMany(keys, values))]
        else:
            by_shard: dict[ShardId, list[int]] = {}
            for position, shard in enumerate(shards):
                by_shard.setdefault(shard, []).append(position)
            requests = [
                self._request(shard, places, PutMany([keys[at] for at in places], [values[at] for at in places]))
                for shard, places in by_shard.items()
            ]
        self._gateway.node.submit(requests, self)

    def _request(self, shard: ShardId, positions: Sequence[int], puts: PutMany) -> Request:
        return Request(positions, puts, SHARD_WIDE, self._deadline_ns, shard=shard)

    def deliver(self, replies: list[Reply]) -> None:
        """Takes the node's replies; answers when every put has its result."""
        again: list[Request] = []
        for reply in replies:
            again += self._take(reply)
        if again:
            self._gateway.node.submit(again, self)
        elif not self._remaining:
            self._answer(self._encoded())

    def _take(self, reply: Reply) -> list[Request]:
        """Notes the results of one request. Returns the requests for puts that are to be sent once more."""
        positions = reply.token
        assert isinstance(positions, Sequence), f"the token of a request came back as {positions!r}"
        result, message = reply.result, kv_pb2.OperationResult()
        again: list[Request] = []
        failure = failure_of(reply)
        if failure is not None:
            fill_detail(message.error, failure, reply.shard)
            revisions: Sequence[int] = [0] * len(positions)
        else:
            assert isinstance(result, (PutManyResult, WriteResult)), f"puts were answered by {result}"
            if isinstance(result, PutManyResult) and result.refused:
                again = [self._single(positions[place]) for place in result.refused]
                refused = set(result.refused)
                positions = [position for place, position in enumerate(positions) if place not in refused]
            fill_header(message.put.header, reply, 0, self._gateway.routes.hint)
            message.put.succeeded = True
            revisions = range(result.revision - len(positions) + 1, result.revision + 1)
        results = self._results
        for position, revision in zip(positions, revisions, strict=True):
            results[position] = (message, revision)
        self._remaining -= len(positions)
        return again

    def _single(self, position: int) -> Request:
        keys, values, slots, _ = self._puts
        return Request((position,), Put(keys[position], values[position]), slots[position], self._deadline_ns)

    def _encoded(self) -> bytes:
        response = kv_pb2.BatchResponse()
        append = response.results.append
        for message, revision in self._results:
            if revision:
                # Puts of one request differ by their revision alone, and `append` copies.
                message.put.header.revision = revision
            append(message)
        data: bytes = response.SerializeToString()
        return data


_NOTHING = (kv_pb2.OperationResult(), 0)
