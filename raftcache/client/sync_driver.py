"""Does what flows ask for, in the caller's thread. Decides nothing; how calls are made is its transport's.

One `SyncDriver` belongs to one process: a forked child makes its own, and lets its parent's alone.
"""

import os
import time
from collections.abc import Callable, Iterator
from random import Random
from threading import Event
from typing import Any, Protocol, TypeVar, cast

from raftcache.client.course import Core
from raftcache.client.failure import Failure
from raftcache.client.flows import close_sessions
from raftcache.client.options import Options
from raftcache.client.sessions import Sessions
from raftcache.client.steps import Call, Flow, Pause, Together, Wait
from raftcache.clock import SystemClock
from raftcache.v1 import kv_pb2

T = TypeVar("T")


def new_core(options: Options, new_waiter: Callable[[], Any]) -> Core:
    """What the flows of one client in one process share."""
    sessions = Sessions(new_waiter) if options.sessions else None
    # Clients that start together must not pause together.
    return Core(options, sessions, SystemClock(), Random(int.from_bytes(os.urandom(8), "big")))


class SyncTransport(Protocol):
    """How calls are made. Safe with threads."""

    def call(self, call: Call) -> Any:
        """The answer's message, or a `Failure`. Raises: `ConfigError` for what no attempt can mend."""
        ...

    def together(self, calls: list[Call]) -> list[Any]:
        """As `call`, several at once; in their order."""
        ...

    def open_stream(self, endpoint: str, requests: Iterator[kv_pb2.PipelineRequest]) -> "SyncStream":
        """A pipeline, which sends what `requests` yields, from another thread. Raises: `ClientClosed`."""
        ...

    def close(self) -> None:
        """Closes all connections; calls in flight end."""
        ...


class SyncStream(Protocol):
    """One pipeline's stream."""

    failure: Failure | None
    """Why it ended; None: well, or it has not. After the last response."""

    def __iter__(self) -> Iterator[kv_pb2.PipelineResponse]: ...

    def cancel(self) -> None:
        """Ends it, from any thread."""
        ...


class SyncDriver:
    """Runs flows in the caller's thread. Safe with threads."""

    def __init__(self, options: Options) -> None:
        self.core = new_core(options, Event)
        self.process_id = os.getpid()
        self.transport = _transport_of(options)

    def run(self, flow: Flow[T]) -> T:
        """Runs a flow to its end. Raises what it raises."""
        answer: Any = None
        call = self.transport.call
        try:
            while True:
                step = flow.send(answer)
                answer = call(step) if type(step) is Call else self._others(step)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            flow.close()

    def close(self) -> None:
        """Says goodbye and closes every connection; calls in flight end. May be called again."""
        core = self.core
        if not core.closed and core.sessions is not None:
            self.run(close_sessions(core, core.sessions.idle()))
        core.closed = True
        self.transport.close()

    def _others(self, step: Call | Together | Pause | Wait) -> Any:
        match step:
            case Together(calls):
                return self.transport.together(calls)
            case Pause(seconds):
                time.sleep(seconds)
            case Wait(waiter, seconds):
                cast(Event, waiter).wait(seconds)
            case Call():
                return self.transport.call(step)
        return None


def _transport_of(options: Options) -> SyncTransport:
    # Each is imported where it is used: grpcio takes a while to import, and starts threads that survive no fork.
    if options.transport == "grpcio":
        from raftcache.client.grpcio_sync import GrpcioTransport

        return GrpcioTransport(options)
    from raftcache.client.fast_sync import FastTransport

    return FastTransport(options)
