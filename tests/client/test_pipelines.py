"""Pipelines on real streams: order, windows, and what a broken one leaves behind."""

import asyncio
import threading
import uuid

import pytest

from raftcache import ops, when
from raftcache.client import AmbiguousResult, AsyncClient, Client, ClientClosed, ConditionFailed
from raftcache.client.options import Transport
from raftcache.errors import Unavailable
from tests.client.conftest import PATIENCE_SECONDS
from tests.support.cluster import Cluster


@pytest.fixture
def name() -> str:
    """A prefix of this test's own: the cluster is shared."""
    return uuid.uuid4().hex[:12]


@pytest.fixture(autouse=True)
def leaders_stay(cluster: Cluster) -> None:
    """What a pipeline has under way while a leader moves is refused: its order counts, so no node tries it again."""
    cluster.wait_home()


def test_operations_on_a_key_take_effect_in_order(client: Client, name: str) -> None:
    """However many are under way, over all shards at once."""
    with client.pipeline(window=200) as pipeline:
        futures = [pipeline.incr(f"{name}{number % 20}") for number in range(2_000)]
        reads = [pipeline.get(f"{name}{number}") for number in range(20)]
    assert [number // 20 + 1 for number in range(2_000)] == [future.result() for future in futures]
    for read in reads:
        entry = read.result()
        assert entry is not None
        assert b"100" == entry.value, "a read sees the writes before it"


async def test_operations_on_a_key_take_effect_in_order_with_asyncio(
    cluster: Cluster, name: str, transport: Transport
) -> None:
    """As with threads."""
    async with AsyncClient(cluster.endpoints, timeout=PATIENCE_SECONDS, transport=transport) as rc:
        async with rc.pipeline(window=200) as pipeline:
            futures = [await pipeline.incr(f"{name}{number % 20}") for number in range(2_000)]
            read = await pipeline.get(f"{name}7")
        assert [number // 20 + 1 for number in range(2_000)] == [future.result() for future in futures]
        entry = await read
        assert entry is not None
        assert b"100" == entry.value


def test_every_operation_has_its_own_outcome(client: Client, name: str) -> None:
    """Results as the client's methods have them; errors in the future."""
    key = f"{{{name}}}"
    with client.pipeline() as pipeline:
        absent = pipeline.get(key)
        put = pipeline.put(key, b"1")
        refused = pipeline.put(key, b"2", if_absent=True)
        cas = pipeline.cas(key, b"1", b"3")
        txn = pipeline.txn([when.value(key) == b"3"], [ops.get(key)])
        deleted = pipeline.delete(key)
        assert pipeline.incr(f"{name}n", 5).result(PATIENCE_SECONDS) == 5, "answers come while it is open"
    assert absent.result() is None
    assert put.result().revision > 0
    assert isinstance(refused.exception(), ConditionFailed)
    assert cas.result()
    assert txn.result()
    assert deleted.result()
    with pytest.raises(ClientClosed):
        pipeline.get(key)
    with pytest.raises(ClientClosed):
        client.pipeline().get(key)


async def test_every_operation_has_its_own_outcome_with_asyncio(
    cluster: Cluster, name: str, transport: Transport
) -> None:
    """As with threads."""
    key = f"{{{name}}}"
    async with AsyncClient(cluster.endpoints, timeout=PATIENCE_SECONDS, transport=transport) as rc:
        async with rc.pipeline() as pipeline:
            put = await pipeline.put(key, b"1")
            refused = await pipeline.put(key, b"2", if_absent=True)
            cas = await pipeline.cas(key, b"1", b"3")
            txn = await pipeline.txn([when.value(key) == b"3"], [ops.get(key)])
            deleted = await pipeline.delete(key)
            assert 5 == await (await pipeline.incr(f"{name}n", 5))
        assert (await put).revision > 0
        assert isinstance(refused.exception(), ConditionFailed)
        assert all([await cas, await txn, await deleted])
        with pytest.raises(ClientClosed):
            await (await pipeline.get(key))


def test_threads_share_a_pipeline(client: Client, name: str) -> None:
    """And wait for one another's answers where the window is full."""
    with client.pipeline(window=10) as pipeline:
        threads = [threading.Thread(target=lambda: [pipeline.incr(name) for _ in range(100)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert 401 == client.incr(name)


def test_an_exception_leaves_without_waiting(client: Client, name: str) -> None:
    """It comes out as it is; what has no answer is ambiguous or was never sent."""
    with pytest.raises(ZeroDivisionError):
        with client.pipeline() as pipeline:
            futures = [pipeline.incr(name) for _ in range(50)]
            raise ZeroDivisionError
    for future in futures:
        assert isinstance(future.exception(PATIENCE_SECONDS), AmbiguousResult | Unavailable | None)


async def test_an_exception_leaves_without_waiting_with_asyncio(
    cluster: Cluster, name: str, transport: Transport
) -> None:
    """As with threads: it is not wrapped in a group."""
    async with AsyncClient(cluster.endpoints, timeout=PATIENCE_SECONDS, transport=transport) as rc:
        with pytest.raises(ZeroDivisionError):
            async with rc.pipeline() as pipeline:
                futures = [await pipeline.incr(name) for _ in range(50)]
                raise ZeroDivisionError
        for future in futures:
            assert isinstance(future.exception(), AmbiguousResult | Unavailable | None)


def test_a_client_closed_under_a_pipeline_leaves_it_ambiguous(
    cluster: Cluster, name: str, transport: Transport
) -> None:
    """The stream is cut: a definite error would be a guess."""
    rc = Client(cluster.endpoints, timeout=PATIENCE_SECONDS, transport=transport)
    with rc.pipeline() as pipeline:
        futures = [pipeline.incr(name) for _ in range(500)]
        rc.close()
        errors = [future.exception(PATIENCE_SECONDS) for future in futures]
        assert {type(error) for error in errors} <= {AmbiguousResult, Unavailable, type(None)}
        with pytest.raises(Unavailable):
            while True:
                pipeline.incr(name)


async def test_a_cancelled_body_ends_its_pipeline(cluster: Cluster, name: str, transport: Transport) -> None:
    """No task is left behind."""

    async def work(rc: AsyncClient, begun: asyncio.Event) -> None:
        async with rc.pipeline() as pipeline:
            await (await pipeline.incr(name))
            begun.set()
            await asyncio.Event().wait()

    async with AsyncClient(cluster.endpoints, timeout=PATIENCE_SECONDS, transport=transport) as rc:
        begun = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work(rc, begun), name="work")
            await begun.wait()
            task.cancel()
        assert task.cancelled()
        assert [] == [one.get_name() for one in asyncio.all_tasks() if one.get_name().startswith("raftcache-pipeline")]
