"""One call of a client from beginning to end: its deadline, its attempts, and what a failed attempt leads to.

Rules of this file:
- a read may be sent again after any failure that another attempt can mend;
- a write may be sent again after a *definite* refusal; after an outcome that is not known only under a session, with the
  same stamp. Without a session it ends there, as `AmbiguousResult`;
- once an attempt of a write is lost (`unknown`), no refusal of a later attempt proves that the lost one had no effect:
  only a real answer settles it. The exception is what the state machine itself says of the operation (INVALID_REQUEST):
  a session keeps that reply, and it is the lost attempt's as well;
- pauses grow from 10 to 500 ms with full jitter, so that clients that failed together do not come back together. What
  leads to somebody else at once (a hint, another node, a newer map) costs no pause, the first time.
"""

from enum import Enum, auto
from random import Random

from raftcache.client.errors import AmbiguousResult, ClientClosed, DeadlineExceeded
from raftcache.client.failure import Failure
from raftcache.client.options import Options
from raftcache.client.router import Router
from raftcache.client.sessions import Sessions
from raftcache.clock import NS_PER_SECOND, Clock
from raftcache.errors import InvalidRequest, NotLeader, RaftCacheError, SessionExpired, Unavailable, WrongShard

PAUSE_SECONDS_MIN = 0.01
PAUSE_SECONDS_MAX = 0.5
PAUSE_DOUBLINGS_MAX = 6
"""10 ms doubled six times is past the maximum."""
ATTEMPT_SECONDS_MAX = 2.0
"""Of one attempt that may be repeated: a node that stopped without a word must not use up the caller's time. Longer than the
election of a leader, which nodes wait for by themselves."""
SILENT_SECONDS = 1.0
"""Who has not answered for so long is taken for unreachable. A caller with less patience learns nothing about the node."""
ADVICE_SECONDS_MAX = 1.0
"""Who is told to come back after more than this, and has less time, is told so at once."""


class Core:
    """What all calls of one client in one process share."""

    __slots__ = ("clock", "closed", "options", "random", "router", "sessions")

    def __init__(self, options: Options, sessions: Sessions | None, clock: Clock, random: Random) -> None:
        self.options = options
        self.sessions = sessions
        """None: writes are not stamped."""
        self.clock = clock
        self.random = random
        self.router = Router(options.endpoints, direct=options.routing == "direct", random=random)
        self.closed = False


class Verdict(Enum):
    """What a failure means for one operation."""

    AGAIN = auto()
    """Send it again."""
    REROUTE = auto()
    """... to the shard that owns the slot now, under that shard's session."""
    REOPEN = auto()
    """... under a new session."""
    REFUSED = auto()
    """It failed, and had no effect."""
    AMBIGUOUS = auto()
    """It failed, and may have had an effect."""


def judge(failure: Failure, *, writes: bool, stamped: bool, unknown: bool) -> Verdict:
    """What `failure` means for an operation of which an earlier attempt is `unknown`, or not."""
    reason = failure.error.reason
    if not writes:
        if reason == WrongShard.reason:
            return Verdict.REROUTE
        return Verdict.AGAIN if failure.again else Verdict.REFUSED
    if not failure.definite:
        return Verdict.AGAIN if stamped and failure.again else Verdict.AMBIGUOUS
    if reason == WrongShard.reason:
        # The slot may have moved after the lost attempt was applied.
        return Verdict.AMBIGUOUS if unknown else Verdict.REROUTE
    if reason == SessionExpired.reason and stamped:
        # The session may have gone after the lost attempt was applied, and the answer with it.
        return Verdict.AMBIGUOUS if unknown else Verdict.REOPEN
    if failure.again:
        return Verdict.AGAIN
    return Verdict.AMBIGUOUS if unknown and reason != InvalidRequest.reason else Verdict.REFUSED


class Course:
    """The state of one call."""

    __slots__ = ("_core", "_deadline_ns", "_pauses", "_start_ns", "attempts", "endpoint", "seconds", "shard", "timeout")

    def __init__(self, core: Core, timeout: float | None) -> None:
        if core.closed:
            raise ClientClosed("the client is closed")
        self._core = core
        self.timeout = core.options.timeout if timeout is None else timeout
        self._start_ns = core.clock.monotonic_ns()
        self._deadline_ns = self._start_ns + int(self.timeout * NS_PER_SECOND)
        self._pauses = 0
        self.attempts = 0
        """How often the operation itself was sent."""
        self.endpoint = ""
        """Asked last."""
        self.seconds = 0.0
        """That it had for its answer."""
        self.shard = -1
        """The shard concerned, if known."""
        if self.timeout <= 0:
            raise self.exceeded(None)

    def remaining(self) -> float:
        """Seconds left; 0 or less: none."""
        return (self._deadline_ns - self._core.clock.monotonic_ns()) / NS_PER_SECOND

    def seconds_of_attempt(self, *, harmless: bool) -> float:
        """How long the next attempt may take. What is harmless to repeat is not given all the time there is."""
        seconds = self.remaining()
        if harmless and seconds > ATTEMPT_SECONDS_MAX:
            seconds = ATTEMPT_SECONDS_MAX
        self.seconds = seconds = max(seconds, 0.0)
        return seconds

    def note(self, failure: Failure) -> bool:
        """Takes note of where not to go. Returns whether there is somebody else to ask at once."""
        router, endpoint, reason = self._core.router, self.endpoint, failure.error.reason
        if failure.unreachable or (failure.timed_out and self.seconds >= SILENT_SECONDS):
            return router.on_unreachable(endpoint, self._core.clock.monotonic_ns())
        if reason == NotLeader.reason or reason == Unavailable.reason:
            shard = failure.error.shard if failure.error.shard is not None else self.shard
            return router.on_not_leader(shard, endpoint, failure.error.metadata.get("leader_address", ""))
        if reason == WrongShard.reason:
            router.table_due = True
            return True
        return reason == SessionExpired.reason

    def pause_after(self, failure: Failure, *, at_once: bool) -> float | None:
        """How many seconds to wait before the next attempt; None where there is no time for one.

        `at_once`: the next attempt goes elsewhere.
        """
        pauses = self._pauses
        self._pauses = pauses + 1
        remaining = self.remaining()
        if at_once and pauses == 0:
            return 0.0 if remaining > 0 else None
        ceiling = min(PAUSE_SECONDS_MAX, PAUSE_SECONDS_MIN * 2 ** min(pauses, PAUSE_DOUBLINGS_MAX))
        pause = failure.retry_after + self._core.random.uniform(0.0, ceiling)
        return pause if pause < remaining else None

    def gives_up(self, failure: Failure, *, unknown: bool) -> RaftCacheError:
        """What the caller sees when there is no time for another attempt."""
        if unknown:
            return self.ambiguous(failure.error)
        if failure.definite and failure.retry_after > ADVICE_SECONDS_MAX:
            # To come back in five seconds is no matter of this deadline.
            return self.marked(failure.error)
        return self.exceeded(failure.error)

    def exceeded(self, cause: RaftCacheError | None) -> RaftCacheError:
        """The time is over, without effect."""
        last = f"; the last attempt: {cause.message}" if cause is not None else ""
        tries = f", in {self._tries()}" if self.attempts else ""
        error = DeadlineExceeded(f"no success within {self.timeout:g} s{tries}{last}")
        error.__cause__ = cause
        return self.marked(error)

    def ambiguous(self, cause: RaftCacheError) -> RaftCacheError:
        """The write may have been applied."""
        error = AmbiguousResult(
            f"the write may have been applied, or may yet be, after {self._tries()}: {cause.message}",
            metadata=dict(cause.metadata),
        )
        error.shard = cause.shard
        error.__cause__ = cause
        return self.marked(error)

    def marked(self, error: RaftCacheError) -> RaftCacheError:
        """`error`, with the facts of this call."""
        if error.shard is None and self.shard >= 0:
            error.shard = self.shard
        error.node = self.endpoint
        error.attempts = self.attempts
        error.elapsed = (self._core.clock.monotonic_ns() - self._start_ns) / NS_PER_SECOND
        return error

    def _tries(self) -> str:
        return "1 attempt" if self.attempts == 1 else f"{self.attempts} attempts"
