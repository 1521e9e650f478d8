"""This project's Python client at both fronts, by both of its transports: what it sees does not depend on either."""

import asyncio
from typing import get_args

import pytest

from raftcache import ops
from raftcache.client import AmbiguousResult, AsyncClient, Client, ConditionFailed
from raftcache.client.options import Transport
from raftcache.clock import SystemClock
from raftcache.edge import fast_connection
from raftcache.edge.fast_front import FastFront
from raftcache.errors import BatchTooLarge, InvalidRequest
from raftcache.gateway.handlers import handlers_of
from tests.edge.conftest import SETTINGS, Bench, front_config
from tests.gateway.memory_node import MemoryAdministration, MemoryNode

PATIENCE_SECONDS = 60.0


@pytest.fixture(params=get_args(Transport))
def transport(request: pytest.FixtureRequest) -> Transport:
    """How calls are made."""
    found: Transport = request.param
    return found


def endpoint(bench: Bench) -> str:
    return f"127.0.0.1:{bench.front.port}"


async def test_calls_errors_and_streams_of_a_loop(bench: Bench, transport: Transport) -> None:
    """Unary calls, a thousand at once; a condition that fails; a request that is refused; a pipeline."""
    rc = AsyncClient(endpoint(bench), timeout=PATIENCE_SECONDS, sessions=False, routing="gateway", transport=transport)
    async with rc:
        assert (await rc.put("k", bytes(200_000))).revision > 0
        entry = await rc.get("k")
        assert entry is not None
        assert bytes(200_000) == entry.value
        with pytest.raises(ConditionFailed):
            await rc.put("k", b"v", if_absent=True)
        with pytest.raises(InvalidRequest):
            await rc.get(b"")
        too_many = [ops.put(f"k{number}", b"v") for number in range(SETTINGS.batch_operations_max + 1)]
        assert {BatchTooLarge} == {type(outcome) for outcome in await rc.batch(too_many)}
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(rc.put(f"k{number}", b"v"), name=f"put-{number}") for number in range(300)]
        assert all(task.result().revision > 0 for task in tasks)
        async with rc.pipeline(window=SETTINGS.batch_operations_max) as pipeline:
            futures = [await pipeline.get(f"k{number}") for number in range(300)]
        assert [b"v"] * 300 == [(await future).value for future in futures]


async def test_calls_errors_and_streams_of_threads(bench: Bench, transport: Transport) -> None:
    """The same, from a thread."""

    def work() -> None:
        options = {"timeout": PATIENCE_SECONDS, "sessions": False, "routing": "gateway", "transport": transport}
        with Client(endpoint(bench), **options) as rc:  # type: ignore[arg-type]
            assert rc.put("k", bytes(200_000)).revision > 0
            entry = rc.get("k")
            assert entry is not None
            assert bytes(200_000) == entry.value
            with pytest.raises(ConditionFailed):
                rc.put("k", b"v", if_absent=True)
            with pytest.raises(InvalidRequest):
                rc.get(b"")
            with rc.pipeline(window=SETTINGS.batch_operations_max) as pipeline:
                futures = [pipeline.put(f"k{number}", b"v") for number in range(500)]
            assert all(future.result().revision > 0 for future in futures)

    await asyncio.to_thread(work)


async def test_an_answer_that_was_dropped_is_not_told_as_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not take its answers loses some; what they would have told was done all the same."""
    monkeypatch.setattr(fast_connection, "UNSENT_BYTES_MAX", -1)
    node = MemoryNode(clock=SystemClock())
    front = FastFront(handlers_of(node.gateway(SETTINGS), MemoryAdministration()), front_config(), node.clock)
    await front.start()
    async with AsyncClient(f"127.0.0.1:{front.port}", sessions=False, routing="gateway") as rc:
        with pytest.raises(AmbiguousResult, match="was dropped"):
            await rc.put("k", b"v")
        monkeypatch.undo()
        assert await rc.get("k") is not None
    await front.stop(0.2)
