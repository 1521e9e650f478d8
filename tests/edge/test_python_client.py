"""This project's Python client at both fronts, by both of its transports: what it sees does not depend on either."""

import asyncio
from typing import get_args

import pytest

from raftcache import ops
from raftcache.client import AsyncClient, Client, ConditionFailed
from raftcache.client.options import Transport
from raftcache.errors import BatchTooLarge, InvalidRequest
from tests.edge.conftest import SETTINGS, Bench

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
            futures = [await pipeline.get(f"k{number}") for number in range(500)]
        assert [b"v"] * 500 == [(await future).value for future in futures]


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
