"""Our load generator against a server of the tests: what it sends, and when it counts a call as begun."""

import itertools
import time
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest

from benchmarks.loader import Share, Target, run_beside, run_unary
from benchmarks.messages import framed
from benchmarks.openloop import OpenLoad, run_open

ECHO = "/test.Echo/Echo"
REFUSE = "/test.Echo/Refuse"


def echo(request: bytes, context: grpc.ServicerContext) -> bytes:
    return request


def refuse(request: bytes, context: grpc.ServicerContext) -> bytes:
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no")
    raise AssertionError("abort returned")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server that answers with what it was asked, or refuses."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Refuse": grpc.unary_unary_rpc_method_handler(refuse),
    }
    server.add_registered_method_handlers("test.Echo", methods)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def requests(count: int) -> Iterator[tuple[int, bytes]]:
    return ((0, framed(b"%d" % number)) for number in range(count))


def test_a_closed_loop_ends_with_its_requests(address: str) -> None:
    """All of them are answered and timed."""
    result = run_unary([address], ECHO, requests(50), outstanding=8, seconds=60.0, keep_answers=3)
    assert (50, 0, 50) == (result.succeeded, result.failed, len(result.latencies_ns))
    assert 3 == len(result.answers)
    assert set(result.answers) < {b"%d" % number for number in range(50)}


def test_loads_beside_each_other_are_told_apart(address: str) -> None:
    """Each by its own statuses."""
    shares = [Share(address, ECHO, requests(20), 4), Share(address, REFUSE, requests(10), 4)]
    good, bad = run_beside(shares, seconds=60.0)
    assert (20, 0, 0, 10) == (good.succeeded, good.failed, bad.succeeded, bad.failed)
    assert {grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]: 10} == bad.statuses


def test_an_open_loop_sends_all_that_fell_due(address: str) -> None:
    """Some hundred calls, each answered and each with the time by which it was late."""
    result, late_us = run_open(address, ECHO, itertools.repeat((0, framed(b"x"))), rate=2000, seconds=0.05)
    assert result.succeeded == len(late_us) == len(result.latencies_ns) > 0
    assert 0 == result.failed
    assert min(late_us) >= 0


async def test_latency_of_an_open_loop_counts_from_the_time_a_call_was_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that waits here for room, because the server is slow, has waited: its latency says so."""
    load = OpenLoad(itertools.repeat((0, framed(b"x"))), rate=1000, outstanding_max=2)
    target = Target("127.0.0.1:1", ECHO, load.on_events)
    load.targets.append(target)
    load.offer(0, seconds=1.0)
    load.send_due(500_000_000)
    first, second = target.started_ns
    assert 0 == target.started_ns[first] < target.started_ns[second] < 500_000_000
    monkeypatch.setattr(time, "perf_counter_ns", lambda: 600_000_000)
    load.on_events(target, [(first, None, 0)])
    assert [600_000_000] == list(load.result.latencies_ns)
    third = max(target.started_ns)
    assert target.started_ns[second] < target.started_ns[third] < 500_000_000, "due long ago, sent only now"
    assert 2 == len(target.started_ns)
