"""What the client does for each of its methods, as flows (see `steps`): routing, stamps, attempts, answers.

    perform ── wants a shard ──► refresh          asks for the shard map
       │       wants a ticket ─► take_ticket      opens the session, or waits for one
       └────── Call ──► answer, or `judge` it and go round again

Both clients run these same flows; nothing here knows which.
"""

from collections.abc import Generator
from typing import Any, TypeVar

from raftcache.client.course import Core, Course, Verdict, judge
from raftcache.client.errors import ClientClosed, ConditionFailed
from raftcache.client.failure import Failure
from raftcache.client.ops import CLOSE_SESSION, OPEN_SESSION, SCAN, SHARD_MAP, Method, Operation, entry_of
from raftcache.client.options import check_consistency
from raftcache.client.results import Entry, Pong, ShardMap
from raftcache.client.router import NO_SHARD, shard_map_of
from raftcache.client.sessions import Session, Sessions, Ticket
from raftcache.client.steps import Call, Flow, Pause, Step, Wait
from raftcache.errors import RaftCacheError, Unavailable
from raftcache.v1 import kv_pb2, shard_map_pb2, types_pb2

T = TypeVar("T")

NO_SLOT = -1
"""Of a request that any node answers for the whole cluster."""

SCAN_PAGE_ENTRIES = 1_000
"""Below the server's maximum of 4,096: a page of small entries fits one network round trip."""
CLOSE_SECONDS = 0.5
"""For saying goodbye to the shards. They forget sessions that nobody closes as well, only later."""


# --- One operation --------------------------------------------------------------------------------------------------


def run_operation(
    core: Core, operation: Operation[T], timeout: float | None, consistency: str | None = None
) -> Flow[T]:
    """One operation, and what its caller gets. The operation's message is stamped in place: it must be the caller's own."""
    kind, message = operation.kind, operation.message
    stale = False
    if not kind.writes:
        stale = is_stale(core, consistency)
        if stale:
            message.consistency = types_pb2.CONSISTENCY_STALE
    course = Course(core, timeout)
    response = yield from perform(core, course, kind.method, message, operation.slot, writes=kind.writes, stale=stale)
    try:
        return operation.result_of(response)
    except ConditionFailed as error:
        course.marked(error)
        raise


def is_stale(core: Core, consistency: str | None) -> bool:
    """Whether a read with this consistency, or the client's own, may be stale. Raises: `ConfigError`."""
    if consistency is None:
        return core.options.consistency == "stale"
    check_consistency(consistency)
    return consistency == "stale"


def perform(
    core: Core, course: Course, method: Method, message: Any, slot: int, *, writes: bool, stale: bool
) -> Flow[Any]:
    """Sends one request until it is answered for good; returns the answer's message."""
    router = core.router
    sessions = core.sessions if writes else None
    needs_table = slot != NO_SLOT and (sessions is not None or core.options.routing == "direct")
    harmless = sessions is not None or not writes
    unknown = False
    ticket: Ticket | None = None
    try:
        while True:
            failure: Failure | None = None
            if needs_table and router.table_due:
                failure = yield from refresh(core, course)
            if failure is None:
                shard = course.shard = router.shard_of(slot)
                if sessions is not None and ticket is None:
                    found = yield from take_ticket(core, course, sessions, shard, slot)
                    if isinstance(found, Failure):
                        failure = found
                    else:
                        ticket = found
            if failure is None:
                if ticket is not None:
                    stamp(message, ticket)
                course.attempts += 1
                answer = yield next_call(core, course, method, message, shard, harmless=harmless, stale=stale)
                if type(answer) is not Failure:
                    if slot != NO_SLOT:
                        router.learn(answer.header, course.endpoint, stale=stale)
                    return answer
                failure = answer
                _raise_if_closed(core, course, failure, writes=writes, unknown=unknown)
                verdict = judge(failure, writes=writes, stamped=ticket is not None, unknown=unknown)
                if verdict is Verdict.AMBIGUOUS:
                    raise course.ambiguous(failure.error)
                if verdict is Verdict.REFUSED:
                    raise course.marked(failure.error)
                unknown = unknown or (writes and not failure.definite)
                if ticket is not None and sessions is not None and verdict is not Verdict.AGAIN:
                    sessions.give_back(ticket)
                    if verdict is Verdict.REOPEN:
                        sessions.expired(ticket.session)
                    ticket = None
            elif not failure.again:
                raise course.ambiguous(failure.error) if unknown else course.marked(failure.error)
            pause = course.pause_after(failure, at_once=course.note(failure))
            if pause is None:
                raise course.gives_up(failure, unknown=unknown)
            if pause:
                yield Pause(pause)
    finally:
        if ticket is not None:
            assert sessions is not None
            sessions.give_back(ticket)


def next_call(
    core: Core, course: Course, method: Method, message: Any, shard: int, *, harmless: bool, stale: bool = False
) -> Call:
    """The next request. `harmless`: it may be repeated, and so is not given all the time there is."""
    course.endpoint = core.router.endpoint_for(shard, stale=stale, now_ns=core.clock.monotonic_ns())
    return Call(course.endpoint, method, message, course.seconds_of_attempt(harmless=harmless))


def stamp(message: Any, ticket: Ticket) -> None:
    """Puts a ticket on a write."""
    session, sequence = ticket
    target = message.stamp
    target.session, target.sequence, target.first_unacked = session.id, sequence, session.first_unacked


def _raise_if_closed(core: Core, course: Course, failure: Failure, *, writes: bool, unknown: bool) -> None:
    """Ends a call under which the client was closed."""
    if core.closed:
        if writes and (unknown or not failure.definite):
            raise course.ambiguous(failure.error)
        raise course.marked(ClientClosed("the client was closed meanwhile"))


# --- What a write needs first ---------------------------------------------------------------------------------------


def refresh(core: Core, course: Course) -> Flow[Failure | None]:
    """Fetches the shard map. A failure is definite, and told only where there is no older map to go by."""
    router = core.router
    # Whoever comes meanwhile goes by the old one, if there is one.
    router.table_due = router.table is None
    answer = yield next_call(core, course, SHARD_MAP, shard_map_pb2.ShardMapRequest(), NO_SHARD, harmless=True)
    if core.closed:
        raise course.marked(ClientClosed("the client was closed meanwhile"))
    if type(answer) is not Failure:
        return _adopt(core, answer)
    answer.definite = True
    if router.table is None:
        return answer
    course.note(answer)
    return None


def _adopt(core: Core, response: shard_map_pb2.ShardMapResponse) -> Failure | None:
    if not response.shards:
        core.router.table_due = True
        none = Unavailable("the cluster has no shards yet: was it initialised, with `raftcache init`?")
        return Failure(none, definite=True, again=True)
    try:
        core.router.adopt(response)
    except RaftCacheError as error:
        return Failure(error, definite=True, again=False)
    return None


def take_ticket(
    core: Core, course: Course, sessions: Sessions, shard: int, slot: int
) -> Generator[Step, Any, Ticket | Failure]:
    """A ticket of the shard's session, which is opened if there is none."""
    if shard == NO_SHARD:
        core.router.table_due = True
        nobody = Unavailable(f"no shard owns slot {slot}, as far as the shard map knows")
        return Failure(nobody, definite=True, again=True)
    while True:
        found = sessions.take(shard)
        if isinstance(found, Ticket):
            return found
        if found is None:
            failure = yield from _open_session(core, course, sessions, shard)
            if failure is not None:
                return failure
            continue
        try:
            yield Wait(found, max(0.0, course.remaining()))
        except BaseException:
            sessions.stop_waiting(shard, found)
            raise
        if course.remaining() <= 0 or not found.is_set():
            sessions.stop_waiting(shard, found)
            full = Unavailable(
                f"the window of the session in shard {shard} was full all the time: too many writes at once"
            )
            return Failure(full, definite=True, again=True)


def _open_session(core: Core, course: Course, sessions: Sessions, shard: int) -> Flow[Failure | None]:
    session_id = 0
    try:
        request = kv_pb2.OpenSessionRequest(shard=shard)
        answer = yield next_call(core, course, OPEN_SESSION, request, shard, harmless=True)
        if type(answer) is Failure:
            # A session that was opened unheard is one that nobody uses.
            answer.definite = True
            return answer
        core.router.learn(answer.header, course.endpoint, stale=False)
        session_id = answer.session
        return None
    finally:
        if session_id:
            sessions.opened(shard, session_id)
        else:
            sessions.not_opened(shard)


# --- Everything else ------------------------------------------------------------------------------------------------


class Scan:
    """A scan: page after page until `done`."""

    def __init__(
        self,
        core: Core,
        lo: bytes,
        hi: bytes,
        *,
        limit: int | None,
        keys_only: bool,
        count_only: bool,
        consistency: str | None,
        timeout: float | None,
    ) -> None:
        self._core = core
        self._stale = is_stale(core, consistency)
        self._timeout = timeout
        self._left = limit
        self._request = kv_pb2.ScanRequest(lo=lo, hi=hi, keys_only=keys_only, count_only=count_only)
        if self._stale:
            self._request.consistency = types_pb2.CONSISTENCY_STALE
        self.done = limit is not None and limit <= 0
        self.count = 0
        """Keys seen so far."""

    def page(self) -> Flow[list[Entry]]:
        """The next page; it may be empty and yet not the last. Has the whole timeout for itself."""
        request, left = self._request, self._left
        if not request.count_only:
            request.limit = SCAN_PAGE_ENTRIES if left is None else min(left, SCAN_PAGE_ENTRIES)
        course = Course(self._core, self._timeout)
        response = yield from perform(self._core, course, SCAN, request, NO_SLOT, writes=False, stale=self._stale)
        self.count += response.count
        if left is not None:
            self._left = left = left - response.count
        request.page_token = response.next_page_token
        self.done = not response.next_page_token or (left is not None and left <= 0)
        age = max((header.age_ms for header in response.headers), default=0) / 1000
        return [entry_of(entry, age) for entry in response.entries]


def fetch_shard_map(core: Core, timeout: float | None) -> Flow[ShardMap]:
    """The shard map as a node knows it now."""
    course = Course(core, timeout)
    response = yield from perform(
        core, course, SHARD_MAP, shard_map_pb2.ShardMapRequest(), NO_SLOT, writes=False, stale=False
    )
    if response.shards:
        core.router.adopt(response)
    return shard_map_of(response)


def ping(core: Core, timeout: float | None) -> Flow[Pong]:
    """Asks any node whether it is there."""
    started_ns = core.clock.monotonic_ns()
    course = Course(core, timeout)
    response = yield from perform(
        core, course, SHARD_MAP, shard_map_pb2.ShardMapRequest(), NO_SLOT, writes=False, stale=False
    )
    seconds = (core.clock.monotonic_ns() - started_ns) / 1e9
    return Pong(course.endpoint, response.answered_by, response.cluster, seconds)


def close_sessions(core: Core, idle: list[Session]) -> Flow[None]:
    """Says goodbye to the shards, as far as that goes without waiting for anybody."""
    course = Course(core, CLOSE_SECONDS)
    for session in idle:
        request = kv_pb2.CloseSessionRequest(shard=session.shard, session=session.id)
        answer = yield next_call(core, course, CLOSE_SESSION, request, session.shard, harmless=True)
        if type(answer) is Failure or course.remaining() <= 0:
            return
