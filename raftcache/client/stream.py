"""A pipeline without its transport: what was enqueued, what is in flight, and what an answer or an end means for it.

    enqueue ──► queue ──► next_request ──► in flight ──► on_response ──► settled
                                               └───────── on_end ──────► settled: without effect, or ambiguous

Rules of this file:
- nothing is repeated: what was sent keeps its order because it is sent once. Operations on one key take effect in the order
  in which they were enqueued;
- the window bounds what is enqueued and not answered; whoever finds it full waits, in the way of the driver;
- what is enqueued while the last request is still being written leaves together in the next one;
- a stream that leaves an operation without an answer past its time is taken for broken, and ended by the driver;
- futures are settled by whoever drives, from the lists returned here: never under a lock.
"""

from collections import deque
from dataclasses import replace
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from raftcache.client.errors import AmbiguousResult, ClientClosed, ConditionFailed
from raftcache.client.failure import Failure, failure_of_detail
from raftcache.client.ops import Operation, fill_operation
from raftcache.clock import NS_PER_SECOND, Clock
from raftcache.errors import BatchTooLarge, RaftCacheError, Unavailable
from raftcache.v1 import kv_pb2

REQUEST_OPERATIONS_MAX = 250
"""Of one request: a sixteenth of the operations that the server reads ahead, and a quarter of its limit for one batch."""
REQUEST_BYTES_MAX = 1 << 20
"""... and of keys and values; a larger operation goes alone."""
DEFAULT_WINDOW = 1_000
"""Operations enqueued and not answered. Some 10 ms of work for a cluster, which is a few round trips."""
GRACE_SECONDS = 1.0
"""How much later than its deadline an answer may come: the server refuses in time, and the answer has its way to go."""


class Settable(Protocol):
    """A `concurrent.futures.Future` or an `asyncio.Future`."""

    def set_result(self, result: Any, /) -> None: ...

    def set_exception(self, exception: BaseException, /) -> None: ...

    def done(self) -> bool: ...


F = TypeVar("F", bound=Settable)


class _Item(NamedTuple, Generic[F]):
    """One operation and who waits for it."""

    operation: Operation[Any]
    future: F


class _Sent(NamedTuple, Generic[F]):
    """One request in flight."""

    items: list[_Item[F]]
    expires_ns: int


class Settled(NamedTuple, Generic[F]):
    """What became of one operation."""

    future: F
    result: Any
    error: RaftCacheError | None

    def apply(self) -> None:
        """Tells the future, unless somebody cancelled it."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class StreamState(Generic[F]):
    """One pipeline. Not safe with threads: the driver sees to that."""

    def __init__(self, endpoint: str, timeout: float, window: int, clock: Clock) -> None:
        self.endpoint = endpoint
        self._timeout = timeout
        self._window = window
        self._clock = clock
        self._queue: deque[_Item[F]] = deque()
        self._in_flight: dict[int, _Sent[F]] = {}
        """By request id, in the order of sending."""
        self._next_id = 1
        self.unanswered = 0
        """Operations enqueued and not answered."""
        self.closing = False
        """No more will be enqueued."""
        self.broken: RaftCacheError | None = None
        """Why nothing more will be answered, once that is so."""

    def has_room(self) -> bool:
        """Whether an operation may be enqueued; also true where it will be refused."""
        return self.unanswered < self._window or self.broken is not None or self.closing

    def enqueue(self, operation: Operation[Any], future: F) -> None:
        """Takes an operation. Raises: `ClientClosed`, or why the stream is broken; definite."""
        if self.closing:
            raise ClientClosed("the pipeline is closed")
        if self.broken is not None:
            raise Unavailable(f"the pipeline to {self.endpoint} is broken; this was not sent: {self.broken.message}")
        self._queue.append(_Item(operation, future))
        self.unanswered += 1

    def next_request(self) -> kv_pb2.PipelineRequest | None:
        """What to send next; None: nothing at the moment."""
        queue = self._queue
        if not queue or self.broken is not None:
            return None
        request = kv_pb2.PipelineRequest(request_id=self._next_id, timeout_ms=max(1, int(self._timeout * 1000)))
        items: list[_Item[F]] = []
        size = 0
        while queue and len(items) < REQUEST_OPERATIONS_MAX:
            size += queue[0].operation.size
            if items and size > REQUEST_BYTES_MAX:
                break
            item = queue.popleft()
            fill_operation(request.operations.add(), item.operation)
            items.append(item)
        expires_ns = self._clock.monotonic_ns() + int((self._timeout + GRACE_SECONDS) * NS_PER_SECOND)
        self._in_flight[self._next_id] = _Sent(items, expires_ns)
        self._next_id += 1
        return request

    def on_response(self, response: kv_pb2.PipelineResponse) -> list[Settled[F]]:
        """Takes an answer."""
        sent = self._in_flight.pop(response.request_id, None)
        if sent is None:
            return []
        self.unanswered -= len(sent.items)
        if response.HasField("error"):
            failure = failure_of_detail(response.error)
            return [self._failed(item, failure) for item in sent.items]
        if len(response.results) != len(sent.items):
            short = RaftCacheError(f"{self.endpoint} answered {len(response.results)} of {len(sent.items)} operations")
            return [self._failed(item, Failure(short, definite=False, again=False)) for item in sent.items]
        return [self._answered(item, result) for item, result in zip(sent.items, response.results, strict=True)]

    def on_end(self, failure: Failure | None) -> list[Settled[F]]:
        """The stream has ended; `failure` is its status, None if that is OK. A status with details of ours says that what was
        not answered had no effect; without them nobody knows."""
        if failure is None:
            failure = Failure(
                Unavailable(f"{self.endpoint} ended the pipeline before it answered everything"),
                definite=False,
                again=False,
            )
        elif isinstance(failure.error, BatchTooLarge) and len(self._in_flight) > 1:
            # One message was refused, nobody says which; those before it may have been carried out.
            failure = replace(failure, definite=False)
        if self.broken is None:
            self.broken = failure.error
        settled = [self._failed(item, failure) for sent in self._in_flight.values() for item in sent.items]
        never_sent = Failure(Unavailable(f"not sent: {failure.error.message}"), definite=True, again=True)
        settled += [self._failed(item, never_sent) for item in self._queue]
        self._in_flight.clear()
        self._queue.clear()
        self.unanswered = 0
        return settled

    def expires_in(self) -> float | None:
        """Seconds until the stream counts as broken, if no answer comes; None: nothing is awaited."""
        for sent in self._in_flight.values():
            return max(0.0, (sent.expires_ns - self._clock.monotonic_ns()) / NS_PER_SECOND)
        return None

    def queued(self) -> int:
        """Operations that are still to be sent."""
        return len(self._queue)

    def finished(self) -> bool:
        """Whether everything was answered, and no more will come."""
        return (self.closing and not self.unanswered) or self.broken is not None

    def _answered(self, item: _Item[F], result: kv_pb2.OperationResult) -> Settled[F]:
        name = result.WhichOneof("result")
        if name != item.operation.kind.field:
            return self._failed(item, failure_of_detail(result.error))
        try:
            return Settled(item.future, item.operation.result_of(getattr(result, name)), None)
        except (ConditionFailed, RaftCacheError) as error:
            return Settled(item.future, None, self._marked(error))

    def _failed(self, item: _Item[F], failure: Failure) -> Settled[F]:
        error = failure.error
        if item.operation.kind.writes and not failure.definite:
            error = AmbiguousResult(f"the write may have been applied: {error.message}", metadata=dict(error.metadata))
            error.shard = failure.error.shard
            error.__cause__ = failure.error
        return Settled(item.future, None, self._marked(error))

    def _marked(self, error: RaftCacheError) -> RaftCacheError:
        error.node = self.endpoint
        error.attempts = 1
        return error
