"""The Python client beside the ordinary one: calls of one process, on one key of one cluster, by tasks of a loop and by threads.

    raftcache      AsyncClient and Client, with sessions, on the client's own transport
    + grpcio       the same on grpcio
    stubs          grpc.aio's and grpcio's channel with the generated stubs: no sessions, no retries, no routing

All of them go to the leader, one after the other in each run, so that what is behind them is the same.
"""

import asyncio
import threading
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio

from benchmarks.measurement import OURS, STUBS, Measurement
from benchmarks.systems import Raftcache
from benchmarks.throughput import ONE_KEY, VALUE, Checked, Plan
from raftcache import AsyncClient, Client
from raftcache.client.options import Transport
from raftcache.v1 import kv_pb2, kv_pb2_grpc

OURS_ON_GRPCIO = "raftcache + grpcio"
KINDS: tuple[tuple[str, Transport | None], ...] = ((STUBS, None), (OURS, "fast"), (OURS_ON_GRPCIO, "grpcio"))
THREADS = (1, 64)
TIMEOUT_SECONDS = 30.0

Timed = tuple[float, "array[int]"]
"""Seconds, and what each call took, in microseconds."""


def by_tasks(system: Raftcache, plan: Plan) -> None:
    """Puts and gets, so many tasks at a time."""
    for outstanding in plan.outstanding:
        for number in range(len(KINDS)):
            # Whoever is first finds another machine than whoever is last: they take turns.
            name, transport = KINDS[(number + plan.run) % len(KINDS)]
            asyncio.run(_by_tasks(system, plan, name, transport, outstanding))


def by_threads(system: Raftcache, plan: Plan) -> None:
    """As `by_tasks`, so many threads at a time."""
    for outstanding in THREADS:
        for number in range(len(KINDS)):
            name, transport = KINDS[(number + plan.run) % len(KINDS)]
            with _blocking(system.leader(), transport) as calls:
                for operation, call in calls.items():
                    _run_threads(call, outstanding, plan.warm_up_seconds)
                    with _measured(system, plan, f"{operation}, threads", name, outstanding) as take:
                        take(_run_threads(call, outstanding, plan.seconds))


async def _by_tasks(system: Raftcache, plan: Plan, name: str, transport: Transport | None, outstanding: int) -> None:
    leader = system.leader()
    if transport is None:
        async with grpc.aio.insecure_channel(leader) as channel:
            stub: Any = kv_pb2_grpc.KvServiceStub(channel)
            calls: dict[str, Callable[[], Awaitable[Any]]] = {
                "put": lambda: stub.Put(kv_pb2.PutRequest(key=ONE_KEY, value=VALUE), timeout=TIMEOUT_SECONDS),
                "get": lambda: stub.Get(kv_pb2.GetRequest(key=ONE_KEY), timeout=TIMEOUT_SECONDS),
            }
            await _tasks_of(system, plan, name, calls, outstanding)
    else:
        async with AsyncClient(leader, timeout=TIMEOUT_SECONDS, transport=transport) as rc:
            await _tasks_of(
                system, plan, name, {"put": lambda: rc.put(ONE_KEY, VALUE), "get": lambda: rc.get(ONE_KEY)}, outstanding
            )


async def _tasks_of(
    system: Raftcache, plan: Plan, name: str, calls: dict[str, Callable[[], Awaitable[Any]]], outstanding: int
) -> None:
    for operation, call in calls.items():
        await _run_tasks(call, outstanding, plan.warm_up_seconds)
        with _measured(system, plan, f"{operation}, tasks", name, outstanding) as take:
            take(await _run_tasks(call, outstanding, plan.seconds))


async def _run_tasks(call: Callable[[], Awaitable[Any]], outstanding: int, seconds: float) -> Timed:
    taken_us = array("q")
    began = time.perf_counter_ns()
    end = began + int(seconds * 1e9)

    async def work() -> None:
        then = time.perf_counter_ns()
        while then < end:
            await call()
            now = time.perf_counter_ns()
            taken_us.append((now - then) // 1000)
            then = now

    async with asyncio.TaskGroup() as group:
        for number in range(outstanding):
            group.create_task(work(), name=f"caller-{number}")
    return (time.perf_counter_ns() - began) / 1e9, taken_us


def _run_threads(call: Callable[[], Any], outstanding: int, seconds: float) -> Timed:
    parts = [array("q") for _ in range(outstanding)]
    failed: list[BaseException] = []
    began = time.perf_counter_ns()
    end = began + int(seconds * 1e9)

    def work(taken_us: "array[int]") -> None:
        then = time.perf_counter_ns()
        try:
            while then < end:
                call()
                now = time.perf_counter_ns()
                taken_us.append((now - then) // 1000)
                then = now
        except BaseException as error:  # noqa: BLE001 # raised below, in the main thread
            failed.append(error)

    threads = [threading.Thread(target=work, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return (time.perf_counter_ns() - began) / 1e9, sum(parts, array("q"))


@contextmanager
def _blocking(leader: str, transport: Transport | None) -> Iterator[dict[str, Callable[[], Any]]]:
    if transport is None:
        with grpc.insecure_channel(leader) as channel:
            stub: Any = kv_pb2_grpc.KvServiceStub(channel)
            yield {
                "put": lambda: stub.Put(kv_pb2.PutRequest(key=ONE_KEY, value=VALUE), timeout=TIMEOUT_SECONDS),
                "get": lambda: stub.Get(kv_pb2.GetRequest(key=ONE_KEY), timeout=TIMEOUT_SECONDS),
            }
    else:
        with Client(leader, timeout=TIMEOUT_SECONDS, transport=transport) as rc:
            yield {"put": lambda: rc.put(ONE_KEY, VALUE), "get": lambda: rc.get(ONE_KEY)}


@contextmanager
def _measured(
    system: Raftcache, plan: Plan, load: str, name: str, outstanding: int
) -> Iterator[Callable[[Timed], None]]:
    """A measurement with what surrounds it, recorded at the end; what is yielded takes the result."""
    measurement = Measurement(load, name, system.name, outstanding, plan.run)
    with Checked(system, measurement) as surroundings:
        spent = time.process_time()

        def take(timed: Timed) -> None:
            measurement.generator_cpu_seconds = time.process_time() - spent
            measurement.seconds, taken_us = timed
            measurement.operations = len(taken_us)
            measurement.take_latencies(array("q", sorted(taken_us)))
            surroundings.writes = measurement.operations if load.startswith("put") else 0
            if measurement.operations:
                us = measurement.generator_cpu_seconds * 1e6 / measurement.operations
                measurement.details["client_cpu_us"] = round(us, 1)

        yield take
    plan.record(measurement)
