"""What clients notice when a leader dies, and when it is stopped in order."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from benchmarks.systems import Raftcache
from raftcache.client import Client
from raftcache.errors import RaftCacheError
from raftcache.v1 import kv_pb2
from tests.support.cluster import Node, wait_until

KEY = b"benchmark/failures"
CALL_SECONDS = 5.0
HEAL_SECONDS = 120.0
WRITERS = 8
AROUND_SECONDS = 1.0
"""Of load before and after a stop."""
RETRY_PAUSE_SECONDS = 0.01


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

    requests: int = 0
    failures: "Counter[str]" = field(default_factory=Counter)
    acknowledged: list[float] = field(default_factory=list)
    """When (monotonic seconds)."""
    stop_seconds: list[float] = field(default_factory=list)
    """From SIGTERM to the end of the process."""
    stopped: list[Node] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def longest_gap(self) -> float:
        """Seconds without any acknowledgement."""
        times = sorted(self.acknowledged)
        return max((after - before for before, after in itertools.pairwise(times)), default=0.0)


def clean_stops(system: Raftcache, times: int) -> Stops:
    """Stops the leader with SIGTERM under load so many times, and starts it again; counts what clients see of it.

    The client is ours, with sessions: it may try again, and each write happens once.
    """
    healed(system)
    stopping = threading.Event()
    stops = Stops()
    with Client(system.cluster.endpoints) as client:
        threads = [
            threading.Thread(target=_write_on, args=(number, client, stops, stopping), name=f"writer {number}")
            for number in range(WRITERS)
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in range(times):
                stopping.wait(AROUND_SECONDS)
                _stop(system.leader_node(), stops)
                stopping.wait(AROUND_SECONDS)
                stops.stopped[-1].start()
                healed(system)
        finally:
            stopping.set()
            for thread in threads:
                thread.join()
    return stops


def _stop(leader: Node, stops: Stops) -> None:
    began = time.monotonic()
    stops.stopped.append(leader)
    status = leader.stop()
    stops.stop_seconds.append(time.monotonic() - began)
    if status:
        stops.problems.append(f"{leader.name}, stopped in order, ended with {status}:\n{leader.tail(3)}")


def _write_on(number: int, client: Client, stops: Stops, stopping: threading.Event) -> None:
    count = 0
    while not stopping.is_set():
        count += 1
        stops.requests += 1
        try:
            client.put(b"benchmark/stop-%d-%d" % (number, count % 1000), b"%d" % count)
        except RaftCacheError as error:
            stops.failures[f"{type(error).__name__}: {str(error)[:120]}"] += 1
        else:
            stops.acknowledged.append(time.monotonic())
