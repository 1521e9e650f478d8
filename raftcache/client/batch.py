"""Many operations at once, each with a result of its own: grouped by leader, repeated one by one where that is allowed.

    pending ── wave: at most one operation for each key ──► one request for each endpoint ──► settled, or pending again

Rules of this file:
- operations on one key take effect in the order in which they were given: the second is sent when the first is settled. A
  key that stands in a batch many times costs as many rounds;
- everything else is in no order, and nothing is atomic;
- each write has its own stamp, and its own `unknown`: what is not settled when the time is over is ambiguous, or was
  certainly without effect, each for itself.
"""

from collections.abc import Sequence
from typing import Any

from raftcache.client.course import Core, Course, Verdict, judge
from raftcache.client.errors import ClientClosed
from raftcache.client.failure import Failure, failure_of_detail
from raftcache.client.flows import is_stale, refresh, stamp, take_ticket
from raftcache.client.ops import BATCH, Operation, fill_operation
from raftcache.client.results import OperationValue
from raftcache.client.sessions import Ticket
from raftcache.client.steps import Call, Flow, Pause, Together
from raftcache.errors import RaftCacheError
from raftcache.v1 import kv_pb2, types_pb2

Outcome = OperationValue | RaftCacheError

CHUNK_OPERATIONS = 500
"""Half of the default of `limits.batch_operations_max`."""
CHUNK_BYTES = 1 << 20
"""A quarter of the default of `limits.batch_bytes_max`; an operation that is larger goes alone."""


class _Item:
    """One operation of the batch."""

    __slots__ = ("index", "operation", "settled", "shard", "ticket", "unknown")

    def __init__(self, index: int, operation: Operation[Any]) -> None:
        self.index = index
        self.operation = operation
        self.shard = -1
        self.ticket: Ticket | None = None
        self.unknown = False
        """An attempt may have been applied."""
        self.settled = False


class Batch:
    """The state of one batch. `run` is the flow."""

    def __init__(
        self, core: Core, operations: Sequence[Operation[Any]], timeout: float | None, consistency: str | None
    ) -> None:
        self._core = core
        self._stale = is_stale(core, consistency)
        self._course = Course(core, timeout)
        self._outcomes: list[Outcome] = [None] * len(operations)
        self._at_once = False
        """Whether the failures of the last round all lead elsewhere."""
        self._pending = [_Item(index, operation) for index, operation in enumerate(operations)]

    def run(self) -> Flow[list[Outcome]]:
        """Runs until every operation has its outcome, in the order of the operations."""
        try:
            while self._pending:
                wave: list[_Item] = []
                failure = yield from self._prepare()
                if failure is None:
                    wave = self._wave()
                    failure = yield from self._stamp(wave)
                if failure is not None:
                    self._at_once = self._course.note(failure)
                    if not failure.again:
                        self._settle_all(failure)
                        break
                ready = [item for item in wave if self._is_ready(item)]
                if ready:
                    failure = (yield from self._send(ready)) or failure
                if self._core.closed:
                    closed = ClientClosed("the client was closed meanwhile")
                    self._settle_all(Failure(closed, definite=True, again=False))
                elif failure is not None:
                    yield from self._pause(failure)
        finally:
            for item in self._pending:
                self._give_back(item)
        return self._outcomes

    def _prepare(self) -> Flow[Failure | None]:
        """A shard map, where one is needed."""
        core = self._core
        needed = core.options.routing == "direct" or core.sessions is not None
        if needed and core.router.table_due:
            return (yield from refresh(core, self._course))
        return None

    def _wave(self) -> list[_Item]:
        """The operations that may go now: the first pending one on each key."""
        wave, keys = [], set[bytes]()
        shard_of = self._core.router.shard_of
        for item in self._pending:
            operation = item.operation
            if keys.isdisjoint(operation.keys):
                item.shard = shard_of(operation.slot)
                wave.append(item)
            keys.update(operation.keys)
        return wave

    def _is_ready(self, item: _Item) -> bool:
        return item.ticket is not None or self._core.sessions is None or not item.operation.kind.writes

    def _stamp(self, wave: list[_Item]) -> Flow[Failure | None]:
        """Tickets for the writes, as many as the sessions give. At least one operation is ready then, or there is a failure."""
        sessions = self._core.sessions
        if sessions is None:
            return None
        failure: Failure | None = None
        ready = sum(self._is_ready(item) for item in wave)
        unready = [item for item in wave if not self._is_ready(item)]
        full: set[int] = set()
        for item in unready:
            if item.shard in full:
                continue
            if ready and item.shard >= 0 and not sessions.has_room(item.shard):
                # The others go first: what is in their way are answers, and those may be theirs.
                full.add(item.shard)
                continue
            found = yield from take_ticket(self._core, self._course, sessions, item.shard, item.operation.slot)
            if isinstance(found, Ticket):
                item.ticket = found
                ready += 1
            else:
                failure = found
                full.add(item.shard)
        return failure

    def _send(self, items: list[_Item]) -> Flow[Failure | None]:
        """One round. Returns a failure that calls for a pause, if there was one."""
        course, calls = self._course, list[Call]()
        harmless = self._core.sessions is not None or not any(item.operation.kind.writes for item in items)
        chunks = self._chunks(items)
        for endpoint, chunk in chunks:
            request = kv_pb2.BatchRequest()
            for item in chunk:
                self._fill(request.operations.add(), item)
            calls.append(Call(endpoint, BATCH, request, course.seconds_of_attempt(harmless=harmless)))
        course.attempts += 1
        self._at_once = True
        answers = (yield Together(calls)) if len(calls) > 1 else [(yield calls[0])]
        worst: Failure | None = None
        for (endpoint, chunk), answer in zip(chunks, answers, strict=True):
            course.endpoint = endpoint
            for item, result in zip(chunk, _results_of(answer, len(chunk), endpoint), strict=True):
                course.shard = item.shard
                failure = self._take(item, result)
                if failure is not None:
                    self._at_once = course.note(failure) and self._at_once
                    if worst is None or failure.retry_after > worst.retry_after:
                        worst = failure
        self._pending = [item for item in self._pending if not item.settled]
        return worst

    def _chunks(self, items: list[_Item]) -> list[tuple[str, list[_Item]]]:
        """The items in requests: by endpoint, and small enough."""
        router, now_ns = self._core.router, self._core.clock.monotonic_ns()
        endpoints: dict[int, str] = {}
        filling: dict[str, tuple[list[_Item], int]] = {}
        chunks: list[tuple[str, list[_Item]]] = []
        for item in items:
            endpoint = endpoints.get(item.shard)
            if endpoint is None:
                endpoint = endpoints[item.shard] = router.endpoint_for(item.shard, stale=self._stale, now_ns=now_ns)
            chunk, size = filling.get(endpoint, ([], 0))
            size += item.operation.size
            if not chunk or len(chunk) >= CHUNK_OPERATIONS or size > CHUNK_BYTES:
                chunk, size = [], item.operation.size
                chunks.append((endpoint, chunk))
            chunk.append(item)
            filling[endpoint] = (chunk, size)
        return chunks

    def _fill(self, message: kv_pb2.Operation, item: _Item) -> None:
        copy = fill_operation(message, item.operation)
        if item.ticket is not None:
            stamp(copy, item.ticket)
        elif self._stale and not item.operation.kind.writes:
            copy.consistency = types_pb2.CONSISTENCY_STALE

    def _take(self, item: _Item, result: Any) -> Failure | None:
        """One result: settles the operation, or returns the failure after which it is pending again."""
        course, operation = self._course, item.operation
        if type(result) is not Failure:
            name = result.WhichOneof("result")
            if name == operation.kind.field:
                answer = getattr(result, name)
                self._core.router.learn(answer.header, course.endpoint, stale=self._stale)
                try:
                    self._settle(item, operation.result_of(answer))
                except RaftCacheError as error:
                    self._settle(item, course.marked(error))
                return None
            result = failure_of_detail(result.error)
        failure: Failure = result
        writes = operation.kind.writes
        verdict = judge(failure, writes=writes, stamped=item.ticket is not None, unknown=item.unknown)
        if verdict is Verdict.AMBIGUOUS:
            self._settle(item, course.ambiguous(failure.error))
            return None
        if verdict is Verdict.REFUSED:
            self._settle(item, course.marked(failure.error))
            return None
        item.unknown = item.unknown or (writes and not failure.definite)
        if verdict is not Verdict.AGAIN and item.ticket is not None:
            session = item.ticket.session
            self._give_back(item)
            if verdict is Verdict.REOPEN and self._core.sessions is not None:
                self._core.sessions.expired(session)
        return failure

    def _settle(self, item: _Item, outcome: Outcome) -> None:
        assert not item.settled, f"operation {item.index} of a batch has two outcomes"
        self._outcomes[item.index] = outcome
        item.settled = True
        self._give_back(item)

    def _give_back(self, item: _Item) -> None:
        ticket, item.ticket = item.ticket, None
        if ticket is not None:
            assert self._core.sessions is not None
            self._core.sessions.give_back(ticket)

    def _pause(self, failure: Failure) -> Flow[None]:
        pause = self._course.pause_after(failure, at_once=self._at_once)
        if pause is None:
            self._settle_all(failure)
        elif pause:
            yield Pause(pause)

    def _settle_all(self, failure: Failure) -> None:
        """There is no time for another attempt, or no use in one."""
        course = self._course
        for item in self._pending:
            course.shard = item.shard
            if failure.again or item.unknown:
                self._settle(item, course.gives_up(failure, unknown=item.unknown))
            else:
                self._settle(item, course.marked(failure.error))
        self._pending = []


def _results_of(answer: Any, count: int, endpoint: str) -> Sequence[Any]:
    """One result or failure for each operation of a request."""
    if type(answer) is Failure:
        return [answer] * count
    results: Sequence[Any] = answer.results
    if len(results) != count:
        short = RaftCacheError(f"{endpoint} answered {len(results)} of {count} operations")
        return [Failure(short, definite=False, again=False)] * count
    return results
