"""Both clients against a real cluster: every method, the same tests for both."""

import asyncio
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from raftcache import ops, when
from raftcache.client import AmbiguousResult, AsyncClient, Client, ClientClosed, ConditionFailed, DeadlineExceeded
from raftcache.client.fast_sync import FastTransport
from raftcache.client.grpcio_sync import GrpcioTransport
from raftcache.client.options import Transport
from raftcache.errors import CrossSlot, InvalidRequest, KeyTooLong, ValueTooLarge
from tests.client.conftest import PATIENCE_SECONDS, SHARDS
from tests.support.cluster import Cluster


def endpoints_of(rc: Client) -> set[str]:
    """Whom a client has connected to."""
    transport = rc._driver.transport
    if isinstance(transport, FastTransport):
        assert transport._thread is not None
        return set(transport._thread.channels._channels)
    assert isinstance(transport, GrpcioTransport)
    return set(transport._channels)


@pytest.fixture
def name() -> str:
    """A prefix of this test's own: the cluster is shared."""
    return uuid.uuid4().hex[:12]


async def test_what_is_written_is_read(rc: Any, name: str) -> None:
    """An entry tells value, version and revisions; an absent key is None; an empty value is a value."""
    assert await rc.get(name) is None
    first = await rc.put(name, b"one")
    second = await rc.put(name, b"", return_previous=True)
    assert (b"one", 1) == (second.previous.value, second.previous.version)
    entry = await rc.get(name)
    assert (name.encode(), b"", 2) == (entry.key, entry.value, entry.version)
    assert (first.revision, second.revision) == (entry.create_revision, entry.revision)
    gone = await rc.delete(name, return_previous=True)
    assert gone
    assert b"" == gone.previous.value
    assert not await rc.delete(name)


async def test_conditions_guard_a_write(rc: Any, name: str) -> None:
    """Each kind of condition, held and not held; what is stored comes with the error."""
    with pytest.raises(ConditionFailed) as raised:
        await rc.put(name, b"v", if_exists=True)
    assert raised.value.current is None
    revision = (await rc.put(name, b"1", if_absent=True)).revision
    with pytest.raises(ConditionFailed) as raised:
        await rc.put(name, b"2", if_absent=True)
    assert raised.value.current is not None
    assert (b"1", revision) == (raised.value.current.value, raised.value.current.revision)
    assert raised.value.attempts >= 1
    with pytest.raises(ConditionFailed):
        await rc.delete(name, if_revision=revision + 1)
    await rc.put(name, b"2", if_revision=revision, if_version=1)
    await rc.delete(name, if_version=2)
    await rc.put(name, b"3", if_version=0)


async def test_compare_and_swap_answers_and_does_not_raise(rc: Any, name: str) -> None:
    """A lost race is an answer."""
    assert await rc.cas(name, None, b"1")
    result = await rc.cas(name, b"0", b"2")
    assert not result
    assert b"1" == result.current.value
    assert await rc.cas(name, b"1", b"2")


async def test_numbers_are_counted(rc: Any, name: str) -> None:
    """From `initial`, by `delta`, and not past what is no number."""
    assert [1, 6, -4] == [await rc.incr(name), await rc.incr(name, 5), await rc.incr(name, -10)]
    assert 105 == await rc.incr(name + "x", 5, initial=100)
    assert b"-4" == (await rc.get(name)).value
    await rc.put(name, b"text")
    with pytest.raises(InvalidRequest) as raised:
        await rc.incr(name)
    assert raised.value.definite
    assert raised.value.shard is not None


async def test_transactions_take_one_branch(rc: Any, name: str) -> None:
    """With results of each operation of it, at one revision."""
    a, b = f"{{{name}}}a", f"{{{name}}}b"
    result = await rc.txn([when.absent(a)], [ops.put(a, b"1"), ops.incr(b), ops.get(a)], [ops.get(b)])
    assert result
    put, count, entry = result.results
    assert (result.revision, 1, b"1") == (put.revision, count, entry.value)
    other = await rc.txn([when.version(a) == 7], [ops.delete(a)], [ops.get(b), ops.get(f"{{{name}}}c")])
    assert not other
    assert [b"1", None] == [other.results[0].value, other.results[1]]
    with pytest.raises(CrossSlot):
        await rc.txn(then=[ops.put("a", b"1"), ops.put("b", b"1")])


async def test_bad_requests_are_told_apart(rc: Any) -> None:
    """By class, without an effect, with the limit's name."""
    with pytest.raises(KeyTooLong) as raised:
        await rc.put("k" * 5000, b"v")
    assert raised.value.metadata["limit"]
    with pytest.raises(ValueTooLarge):
        await rc.put("k", bytes(2 << 20))


async def test_scans_go_through_all_shards_in_key_order(rc: Any, name: str) -> None:
    """Over several pages; by prefix or range; keys alone, or with values."""
    count = 2_300
    keys = sorted(f"{name}/{i}" for i in range(count))
    assert all(not isinstance(one, Exception) for one in await rc.batch([ops.put(key, key.encode()) for key in keys]))
    found = [entry async for entry in rc.scan(prefix=f"{name}/")]
    assert [key.encode() for key in keys] == [entry.key for entry in found]
    assert all(entry.key == entry.value for entry in found)
    assert count == await rc.count(prefix=f"{name}/")
    limited = [entry async for entry in rc.scan(start=keys[10], end=keys[2000], limit=1_500, keys_only=True)]
    assert [key.encode() for key in keys[10:1510]] == [entry.key for entry in limited]
    assert {b""} == {entry.value for entry in limited}
    assert 1_990 == await rc.count(start=keys[10], end=keys[2000], consistency="linearizable")
    assert [] == [entry async for entry in rc.scan(prefix=f"{name}//")]


async def test_a_batch_goes_to_all_shards_at_once(rc: Any, name: str) -> None:
    """Results and errors in order."""
    keys = [f"{name}{i}" for i in range(200)]
    shard_map = await rc.shard_map()
    assert SHARDS == len({shard_map.shard_of(key).shard for key in keys})
    outcomes = await rc.batch([ops.incr(key, position) for position, key in enumerate(keys)])
    assert list(range(200)) == outcomes
    mixed = await rc.batch(
        [
            ops.get(keys[7]),
            ops.put(keys[7], b"x", if_absent=True),
            ops.cas(keys[7], b"7", b"8"),
            ops.txn([when.value(keys[7]) == b"8"], [ops.delete(keys[7])]),
            ops.delete(keys[8]),
            ops.incr(keys[9], 1 << 62),
        ]
    )
    assert b"7" == mixed[0].value
    assert isinstance(mixed[1], ConditionFailed)
    assert mixed[2]
    assert mixed[3].results[0]
    assert mixed[4]
    assert (1 << 62) + 9 == mixed[5]


async def test_stale_reads_tell_their_age(rc: Any, name: str) -> None:
    """They may be old, and come from any replica; the leader's own are not."""
    await rc.put(name, b"v")
    ages = []
    for _ in range(20):
        entry = await rc.get(name, consistency="stale")
        if entry is not None:
            ages.append(entry.age)
    assert all(0 <= age < PATIENCE_SECONDS for age in ages)


async def test_the_cluster_tells_its_layout(rc: Any, cluster: Cluster) -> None:
    """Shards with their slots, leaders and replicas; nodes with their addresses; and that one of them is there."""
    shard_map = await rc.shard_map()
    assert SHARDS == len(shard_map.shards)
    assert 16384 == sum(hi - lo for shard in shard_map.shards for lo, hi in shard.ranges)
    assert set(cluster.endpoints.split(",")) == {node.address for node in shard_map.nodes}
    pong = await rc.ping()
    assert pong.node in {node.node for node in shard_map.nodes}
    assert shard_map.cluster == pong.cluster
    assert pong.address in cluster.endpoints.split(",")
    assert pong.seconds > 0


@pytest.mark.parametrize("sessions", [False, True])
def test_a_client_may_go_through_one_endpoint(
    cluster: Cluster, name: str, sessions: bool, transport: Transport
) -> None:
    """A load balancer's address is enough, with and without sessions."""
    with Client(
        cluster.nodes[0].address, routing="gateway", sessions=sessions, timeout=PATIENCE_SECONDS, transport=transport
    ) as rc:
        keys = [f"{name}{i}" for i in range(50)]
        assert [1] * 50 == rc.batch([ops.incr(key) for key in keys])
        assert all(2 == rc.incr(key) for key in keys[:8])
        assert 50 == rc.count(prefix=name)
        assert {cluster.nodes[0].address} == endpoints_of(rc)


def test_threads_share_a_client(client: Client, name: str) -> None:
    """One client for the program; every increment counts once."""

    def work(_: int) -> None:
        for _ in range(25):
            client.incr(name)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    entry = client.get(name)
    assert entry is not None
    assert b"200" == entry.value


async def test_tasks_share_a_client(cluster: Cluster, name: str, transport: Transport) -> None:
    """More writes at once than a session's window has room for."""
    async with (
        AsyncClient(cluster.endpoints, timeout=PATIENCE_SECONDS, transport=transport) as rc,
        asyncio.TaskGroup() as group,
    ):
        for number in range(1_200):
            group.create_task(rc.incr(name), name=f"incr-{number}")
    async with AsyncClient(cluster.endpoints, timeout=PATIENCE_SECONDS, transport=transport) as rc:
        entry = await rc.get(name)
        assert entry is not None
        assert b"1200" == entry.value


async def test_a_cancelled_task_leaves_the_client_usable(cluster: Cluster, name: str, transport: Transport) -> None:
    """Its number is given back, and others go on."""
    async with AsyncClient(cluster.endpoints, timeout=PATIENCE_SECONDS, transport=transport) as rc:
        await rc.put(name, b"v")
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(rc.incr(name + str(i)), name=f"incr-{i}") for i in range(20)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
        assert 10 == sum(not task.cancelled() for task in tasks)
        driver = rc._driver
        assert driver is not None
        assert driver.core.sessions is not None
        assert driver.core.sessions.idle()


async def test_a_closed_client_says_so(rc: Any, name: str) -> None:
    """Every method, and closing again is fine."""
    scan = rc.scan(prefix=name)
    await rc.put(name, b"v")
    await rc.close()
    await rc.close()
    for call in (rc.get(name), rc.put(name, b"v"), rc.batch([ops.get(name)]), rc.ping(), rc.count()):
        with pytest.raises(ClientClosed):
            await call
    with pytest.raises(ClientClosed):
        async for _ in scan:
            pass


def test_closing_says_goodbye_to_the_shards(cluster: Cluster, name: str, transport: Transport) -> None:
    """Sessions are few; who comes and goes must not leave them behind."""
    rc = Client(cluster.endpoints, timeout=PATIENCE_SECONDS, transport=transport)
    rc.put(name, b"v")
    sessions = rc._driver.core.sessions
    assert sessions is not None
    (session,) = sessions.idle()
    rc.close()
    with Client(cluster.endpoints, timeout=PATIENCE_SECONDS, transport=transport) as other:
        theirs = other._driver.core.sessions
        assert theirs is not None
        assert theirs.take(session.shard) is None
        theirs.opened(session.shard, session.id)
        other.put(name, b"w")
        assert session.id not in [one.id for one in theirs.idle()], "the old session was taken as expired"


def test_a_client_closed_under_its_calls_ends_them(cluster: Cluster, name: str, transport: Transport) -> None:
    """Reads are told that it is closed, writes that nobody knows."""
    rc = Client(cluster.endpoints, timeout=PATIENCE_SECONDS, transport=transport)
    started = threading.Barrier(9)

    def work(number: int) -> BaseException | None:
        started.wait()
        try:
            while True:
                rc.get(name) if number % 2 else rc.put(name, b"v")
        except (ClientClosed, AmbiguousResult) as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(work, number) for number in range(8)]
        started.wait()
        rc.close()
        for number, one in enumerate(running):
            assert isinstance(
                one.result(PATIENCE_SECONDS), ClientClosed if number % 2 else ClientClosed | AmbiguousResult
            )


async def test_an_async_client_closed_under_its_calls_ends_them(
    cluster: Cluster, name: str, transport: Transport
) -> None:
    """As with threads; and no task is cancelled that nobody cancelled."""
    rc = AsyncClient(cluster.endpoints, timeout=PATIENCE_SECONDS, transport=transport)

    async def work(number: int) -> None:
        with pytest.raises(ClientClosed if number % 2 else (ClientClosed, AmbiguousResult)):
            while True:
                await (rc.get(name) if number % 2 else rc.put(name, b"v"))

    await rc.put(name, b"v")
    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(work(number), name=f"worker-{number}")
        await asyncio.sleep(0.01)
        await rc.close()


def test_a_deadline_that_cannot_be_kept_is_told(cluster: Cluster, name: str, transport: Transport) -> None:
    """A read had no effect; of a write nobody knows, unless nothing was sent."""
    with Client(cluster.endpoints, timeout=PATIENCE_SECONDS, transport=transport) as rc:
        rc.put(name, b"v")
        with pytest.raises(DeadlineExceeded):
            for _ in range(1_000):  # grpcio's deadlines come with its timers: an answer may be faster than those
                rc.get(name, timeout=1e-9)
        with pytest.raises((AmbiguousResult, DeadlineExceeded)):
            for _ in range(1_000):
                rc.put(name, b"w", timeout=1e-9)
    with Client("127.0.0.1:1", timeout=0.3, transport=transport) as nobody:
        for call in (lambda: nobody.put("k", b"v"), lambda: nobody.get("k"), nobody.ping):
            with pytest.raises(DeadlineExceeded, match="cannot connect"):
                call()


def test_an_async_client_serves_one_loop_after_another(cluster: Cluster, name: str, transport: Transport) -> None:
    """As a global of a program that calls `asyncio.run` more than once."""
    rc = AsyncClient(cluster.endpoints, timeout=PATIENCE_SECONDS, transport=transport)
    assert [1, 2] == [asyncio.run(rc.incr(name)) for _ in range(2)]
