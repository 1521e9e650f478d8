"""What clients notice when a leader dies, and when it is stopped in order."""

import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped] # no py.typed in the package

from benchmarks.systems import Raftcache
from raftcache.v1 import kv_pb2
from tests.support.cluster import Node, wait_until

KEY = b"benchmark/failures"
CALL_SECONDS = 5.0
HEAL_SECONDS = 120.0
WRITERS = 8
AROUND_SECONDS = 1.0
"""Of load before and after a stop."""
RETRY_PAUSE_SECONDS = 0.01
RETRIES_MAX = 500


def healed(system: Raftcache) -> None:
    """Until every shard has a leader and all its voters again. Raises: `TimeoutError`."""

    def whole() -> bool:
        try:
            info = system.cluster.info()
        except grpc.RpcError:
            return False
        return info.failure_tolerance == 1 and all(shard.leader for shard in info.shards)

    wait_until(whole, "the cluster to be whole", HEAL_SECONDS)


def new_leader(system: Raftcache, times: int, say: Callable[[str], None]) -> list[float]:
    """Kills the leader so many times; seconds until a write through another node is acknowledged."""
    found = []
    for number in range(times):
        healed(system)
        leader = system.leader_node()
        other = next(node for node in system.cluster.nodes if node is not leader)
        stub = system.cluster.kv(other)
        stub.Put(kv_pb2.PutRequest(key=KEY, value=b"before"), timeout=CALL_SECONDS)
        began = time.monotonic()
        leader.kill()
        attempts = 0
        while True:
            attempts += 1
            try:
                stub.Put(kv_pb2.PutRequest(key=KEY, value=b"after"), timeout=CALL_SECONDS)
                break
            except grpc.RpcError:
                time.sleep(RETRY_PAUSE_SECONDS)
            if time.monotonic() - began > HEAL_SECONDS:
                raise TimeoutError(f"no write in {HEAL_SECONDS} s after kill -9 of {leader.name}:\n{other.tail()}")
        found.append(time.monotonic() - began)
        say(f"  kill {number + 1} of {times}: {found[-1]:.2f} s, {attempts} attempts")
        leader.start()
    return found


@dataclass
class Stops:
    """What clients saw while leaders were stopped in order."""

    client: str
    requests: int = 0
    failures: "Counter[str]" = field(default_factory=Counter)
    acknowledged: list[float] = field(default_factory=list)
    """When (monotonic seconds)."""
    stop_seconds: list[float] = field(default_factory=list)
    """From SIGTERM to the end of the process."""
    exits: list[int] = field(default_factory=list)

    def longest_gap(self) -> float:
        """Seconds without any acknowledgement."""
        times = sorted(self.acknowledged)
        return max((after - before for before, after in itertools.pairwise(times)), default=0.0)


Write = Callable[[bytes, bytes], None]
"""Puts a key. Raises whatever its client reports as a failure."""


def clean_stops(
    system: Raftcache,
    times: int,
    open_client: "Callable[[Raftcache], contextlib.AbstractContextManager[tuple[str, Write]]]",
) -> Stops:
    """Stops the leader with SIGTERM under load so many times, and starts it again; counts what clients see of it."""
    healed(system)
    stopping = threading.Event()
    with open_client(system) as (name, write):
        stops = Stops(name)
        threads = [
            threading.Thread(target=_write_on, args=(number, write, stops, stopping), name=f"writer {number}")
            for number in range(WRITERS)
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in range(times):
                stopping.wait(AROUND_SECONDS)
                leader = system.leader_node()
                _stop(leader, stops)
                stopping.wait(AROUND_SECONDS)
                leader.start()
                healed(system)
        finally:
            stopping.set()
            for thread in threads:
                thread.join()
    return stops


def _stop(leader: Node, stops: Stops) -> None:
    began = time.monotonic()
    stops.exits.append(leader.stop())
    stops.stop_seconds.append(time.monotonic() - began)


def _write_on(number: int, write: Write, stops: Stops, stopping: threading.Event) -> None:
    count = 0
    while not stopping.is_set():
        count += 1
        stops.requests += 1
        try:
            write(b"benchmark/stop-%d-%d" % (number, count % 1000), b"%d" % count)
        except Exception as error:  # noqa: BLE001 # whatever a client raises is what is counted
            stops.failures[f"{type(error).__name__}: {str(error)[:120]}"] += 1
        else:
            stops.acknowledged.append(time.monotonic())


@contextlib.contextmanager
def plain_client(system: Raftcache) -> Iterator[tuple[str, Write]]:
    """Generated stubs over all nodes; tries again what the server calls definite, and nothing else."""
    stubs = [system.cluster.kv(node) for node in system.cluster.nodes]

    def write(key: bytes, value: bytes) -> None:
        for attempt in range(RETRIES_MAX):
            try:
                stubs[attempt % len(stubs)].Put(kv_pb2.PutRequest(key=key, value=value), timeout=CALL_SECONDS)
                return
            except grpc.RpcError as error:
                if not _definite(error) or attempt == RETRIES_MAX - 1:
                    raise
                time.sleep(RETRY_PAUSE_SECONDS)

    yield "generated stubs, retries of definite errors", write


def _definite(error: grpc.RpcError) -> bool:
    """Whether the write had no effect for certain and may be sent again: the server's details say so, or nothing was sent."""
    assert isinstance(error, grpc.Call), error
    for name, data in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            assert isinstance(data, bytes), data
            return _retryable(status_pb2.Status.FromString(data))
    # Without details the error is the library's own; only this one tells that there was no connection to send on.
    return error.code() is grpc.StatusCode.UNAVAILABLE and "failed to connect" in str(error.details())


def _retryable(status: status_pb2.Status) -> bool:
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return bool(info.metadata["definite"] == info.metadata["retryable"] == "true")
    return False
