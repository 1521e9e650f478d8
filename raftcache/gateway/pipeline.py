"""`Pipeline`: a stream of batches with a bounded window.

Rules of this file:
- the window counts what was read from the client and whose answer has not left for it: batches, operations and bytes,
  those of requests and those of answers, finished or not. While one of these is full nothing is read, so a client that
  sends faster than the cluster works, or that does not read its answers, is slowed down by its own transport;
- a batch that is refused as a whole (too large, expired, not decodable) gets its error as an answer; the stream lives on.
  Only a message that is no `PipelineRequest` at all ends it, because there is no id to answer it under;
- when the server stops, everything that was read is answered, and then the stream ends as UNAVAILABLE: what has no
  answer by then was never read, and had no effect.
"""

from collections import deque

from raftcache.clock import NS_PER_MS
from raftcache.edge.front import NO_DEADLINE, Call, StreamSink
from raftcache.errors import RaftCacheError, Unavailable
from raftcache.gateway.batches import Batch, BatchRunner
from raftcache.gateway.errors import fill_detail, refusal_of
from raftcache.gateway.gateway import Gateway, parse
from raftcache.v1 import kv_pb2


class Pipeline:
    """One open stream; a `Stream` to its front."""

    def __init__(self, gateway: Gateway, call: Call, sink: StreamSink) -> None:
        self._gateway = gateway
        self._sink = sink
        self._deadline_ns = call.deadline_ns
        self._runner = BatchRunner(gateway, call.peer, call.method, self._on_complete)
        self._batches = 0
        """Read, and their answers not yet taken by the transport."""
        self._operations = 0
        """In flight: read and not answered."""
        self._bytes = 0
        """Of the requests in flight."""
        self._untaken: deque[int] = deque()
        """Bytes of each answer that the transport has not taken, in order."""
        self._untaken_bytes = 0
        self._unanswered = 0
        """Batches read and not answered."""
        self._ending: RaftCacheError | None = None
        self._closing = False
        """No more will be read: the stream ends when all is answered."""
        self._over = False
        self._was_reading = True

    @property
    def reading(self) -> bool:
        """Whether the window has room."""
        settings = self._gateway.settings
        return (
            not self._closing
            and self._batches < settings.pipeline_batches_max
            and self._operations < settings.pipeline_operations_max
            and self._bytes < settings.pipeline_bytes_max
            and self._untaken_bytes + self._runner.unfinished_bytes < settings.pipeline_bytes_max
        )

    def receive(self, messages: list[bytes]) -> None:
        """Takes batches."""
        if self._over or self._closing:
            # Read after the end: unanswered, and the stream's status says that what is unanswered had no effect.
            return
        now_ns = self._gateway.clock.monotonic_ns()
        done: list[Batch] = []
        try:
            for data in messages:
                self._begin(data, now_ns, done)
        except RaftCacheError as error:
            self._ending = error
            self._closing = True
        self._runner.flush()
        self._was_reading = self.reading
        if done:
            self._on_complete(done)
        else:
            self._maybe_finish()

    def half_close(self) -> None:
        """The client has sent its last batch."""
        self._closing = True
        self._maybe_finish()

    def sent(self, count: int) -> None:
        """The transport has taken answers."""
        self._batches -= count
        for _ in range(count):
            self._untaken_bytes -= self._untaken.popleft()
        assert self._batches >= self._unanswered, (
            f"{self._batches} batches in the window, {self._unanswered} unanswered"
        )
        self._maybe_resume()

    def drain(self) -> None:
        """The server is stopping."""
        if not self._closing:
            self._closing = True
            self._ending = Unavailable("this node is stopping; what was not answered was not read, and had no effect")
            self._maybe_finish()

    def cancel(self) -> None:
        """The client is gone."""
        if not self._over:
            self._over = True
            self._closing = True
            self._runner.stop()

    def _begin(self, data: bytes, now_ns: int, done: list[Batch]) -> None:
        """Starts one batch, or puts it among `done` if nothing of it reaches the node."""
        request = parse(kv_pb2.PipelineRequest.FromString, data)
        response = kv_pb2.PipelineResponse(request_id=request.request_id)
        batch = Batch(response, len(request.operations), len(data))
        self._batches += 1
        self._unanswered += 1
        self._bytes += len(data)
        self._operations += len(request.operations)
        try:
            self._gateway.check_bytes(data)
            self._gateway.check_count(len(request.operations))
            deadline_ns = self._deadline_of(request.timeout_ms, now_ns)
        except RaftCacheError as error:
            fill_detail(response.error, error)
        else:
            self._runner.add(batch, request.operations, deadline_ns)
        if not batch.remaining:
            done.append(batch)

    def _deadline_of(self, timeout_ms: int, now_ns: int) -> int:
        own_ns = now_ns + timeout_ms * NS_PER_MS if timeout_ms else NO_DEADLINE
        return self._gateway.deadline_of(min(own_ns, self._deadline_ns), now_ns)

    def _on_complete(self, batches: list[Batch]) -> None:
        if self._over:
            return
        for batch in batches:
            self._operations -= batch.operations
            self._bytes -= batch.bytes
        self._unanswered -= len(batches)
        assert self._unanswered >= 0 <= self._operations, f"{self._unanswered} batches, {self._operations} operations"
        answers = [batch.response.SerializeToString() for batch in batches]
        sizes = [len(answer) for answer in answers]
        self._untaken.extend(sizes)
        self._untaken_bytes += sum(sizes)
        self._sink.send(answers)
        self._maybe_finish()
        self._maybe_resume()

    def _maybe_resume(self) -> None:
        reading = self.reading
        if reading and not self._was_reading and not self._over:
            self._sink.resume()
        self._was_reading = reading

    def _maybe_finish(self) -> None:
        if self._closing and not self._unanswered and not self._over:
            self._over = True
            self._sink.finish(None if self._ending is None else refusal_of(self._ending))
