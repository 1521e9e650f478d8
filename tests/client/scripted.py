"""A driver without a network: flows against a script, in time that the test owns.

ShardMap and OpenSession are answered by themselves, unless the script says otherwise; everything else gets the script's next
answer. What the flow did is in `calls` and `pauses`.
"""

import threading
from collections.abc import Callable
from random import Random
from typing import Any, TypeVar

from raftcache.client.course import Core
from raftcache.client.failure import Failure
from raftcache.client.ops import OPEN_SESSION, SHARD_MAP
from raftcache.client.options import Options
from raftcache.client.sessions import Sessions
from raftcache.client.steps import Call, Flow, Pause, Step, Together, Wait
from raftcache.clock import ManualClock
from raftcache.errors import RaftCacheError
from raftcache.v1 import kv_pb2, shard_map_pb2, types_pb2

T = TypeVar("T")

Answer = Any
"""A message, a `Failure`, or a function of the call that returns one."""

SEEDS = ("a:1", "b:1", "c:1")
CLUSTER = 7


def table(epoch: int = 1, leaders: tuple[str, ...] = ("a:1", "b:1"), cluster: int = CLUSTER) -> Any:
    """A map of equal shards, 1 to n, with replicas on all three nodes."""
    response = shard_map_pb2.ShardMapResponse(epoch=epoch, cluster=cluster, answered_by=1)
    width = 16384 // len(leaders)
    for number, leader in enumerate(leaders, start=1):
        route = response.shards.add(shard=number, leader_address=leader, replica_nodes=(1, 2, 3))
        route.ranges.add(lo=(number - 1) * width, hi=number * width)
    for number, address in enumerate(SEEDS, start=1):
        response.nodes.add(node=number, client_address=address, name=f"n{number}")
    return response


def header(shard: int = 1, revision: int = 5, leader: str = "", epoch: int = 0) -> types_pb2.ResponseHeader:
    """Where an answer comes from."""
    return types_pb2.ResponseHeader(shard=shard, index=9, revision=revision, leader_address=leader, epoch=epoch)


def put_answer(shard: int = 1, revision: int = 5) -> kv_pb2.PutResponse:
    """A put that succeeded."""
    return kv_pb2.PutResponse(header=header(shard, revision), succeeded=True)


def get_answer(value: bytes = b"v", shard: int = 1) -> kv_pb2.GetResponse:
    """A get that found something."""
    entry = types_pb2.KeyEntry(key=b"k", value=value, version=1, create_revision=3, mod_revision=5)
    return kv_pb2.GetResponse(header=header(shard), entry=entry)


def refused(error: RaftCacheError, retry_after: float = 0.0) -> Failure:
    """The node refused; it certainly had no effect."""
    shard = error.metadata.get("shard")
    error.shard = int(shard) if shard else None
    return Failure(error, definite=True, again=error.retryable, retry_after=retry_after)


def lost(error: RaftCacheError, *, timed_out: bool = False) -> Failure:
    """Nobody knows how far the request came."""
    return Failure(error, definite=False, again=True, unreachable=not timed_out, timed_out=timed_out)


class Scripted:
    """Runs flows against answers given in advance."""

    def __init__(self, *answers: Answer, **options: Any) -> None:
        self.clock = ManualClock(monotonic_ns=1_000)
        self.answers = list(answers)
        self.table: Answer = table()
        self.open_session: Answer = None
        """What OpenSession is answered; None: session 100, 101, ..."""
        self.calls: list[Call] = []
        """Without those for the shard map."""
        self.pauses: list[float] = []
        self.maps = 0
        """How often the shard map was asked for."""
        self.on_wait: Callable[[], None] = lambda: None
        """What happens while a flow waits."""
        checked = Options(endpoints=SEEDS, **options)
        sessions = Sessions(threading.Event) if checked.sessions else None
        self.core = Core(checked, sessions, self.clock, Random(1))
        self._next_session = 100

    @property
    def endpoints(self) -> list[str]:
        """Whom the flow asked, in order."""
        return [call.endpoint for call in self.calls]

    @property
    def stamps(self) -> list[tuple[int, int, int]]:
        """The stamps of the writes sent: session, sequence, first unacknowledged."""
        found = [call.message.stamp for call in self.calls if hasattr(call.message, "stamp")]
        return [(stamp.session, stamp.sequence, stamp.first_unacked) for stamp in found]

    def run(self, flow: Flow[T]) -> T:
        """Runs a flow to its end."""
        answer: Any = None
        try:
            while True:
                answer = self.do(flow.send(answer))
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            flow.close()

    def do(self, step: Step) -> Any:
        """Does one step."""
        match step:
            case Call():
                return self._call(step)
            case Together(calls):
                return [self._call(call) for call in calls]
            case Pause(seconds):
                self.pauses.append(seconds)
                self.clock.advance_ns(int(seconds * 1e9))
            case Wait(waiter, seconds):
                self.on_wait()
                if not waiter.is_set():
                    self.clock.advance_ns(int(seconds * 1e9))
        return None

    def _call(self, call: Call) -> Any:
        # What is sent is bytes: the flow may change its message afterwards.
        sent = type(call.message)()
        sent.CopyFrom(call.message)
        call = Call(call.endpoint, call.method, sent, call.seconds)
        if call.method is SHARD_MAP:
            self.maps += 1
            return self._answer(self.table, call)
        if call.method is OPEN_SESSION and self.open_session is None:
            self._next_session += 1
            return kv_pb2.OpenSessionResponse(header=header(call.message.shard), session=self._next_session - 1)
        if call.method is OPEN_SESSION:
            return self._answer(self.open_session, call)
        self.calls.append(call)
        assert self.answers, f"the script has no answer to {call}"
        return self._answer(self.answers.pop(0), call)

    def _answer(self, answer: Answer, call: Call) -> Any:
        if callable(answer):
            answer = answer(call)
        if isinstance(answer, Failure) and answer.timed_out:
            self.clock.advance_ns(int(call.seconds * 1e9))
        return answer
