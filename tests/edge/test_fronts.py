"""Both fronts over real grpcio channels: what a client can see must not depend on which of them it is."""

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from raftcache.admin.v1 import admin_pb2, admin_pb2_grpc
from raftcache.clock import SystemClock
from raftcache.edge.front import Call, Handlers
from raftcache.edge.front_config import LIVENESS, READINESS
from raftcache.errors import ConfigError, OutcomeUnknown, PreconditionFailed
from raftcache.gateway.errors import refusal_of
from raftcache.gateway.handlers import handlers_of
from raftcache.gateway.pipeline import Pipeline
from raftcache.v1 import kv_pb2, kv_pb2_grpc, shard_map_pb2
from tests.edge.conftest import SETTINGS, Bench, FrontClass, front_config
from tests.gateway.memory_node import CLUSTER, MemoryAdministration, MemoryNode
from tests.gateway.test_errors import details_of
from tests.gateway.test_kv_service import get_item, put_item
from tests.support.refusals import DETAILS_TRAILER


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason in the status's details."""
    for key, value in error.trailing_metadata():
        if key == DETAILS_TRAILER:
            assert isinstance(value, bytes)
            reason: str = details_of(value)[1]["ErrorInfo"].reason  # type: ignore[attr-defined]
            return reason
    return ""


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until `condition` holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 # what is waited for has no event: it happens inside of grpcio
            await asyncio.sleep(0.001)


def batches(*numbers: int) -> list[kv_pb2.PipelineRequest]:
    return [
        kv_pb2.PipelineRequest(request_id=number, operations=[put_item(b"k%d" % number, b"v")]) for number in numbers
    ]


async def test_every_unary_method_is_served(bench: Bench) -> None:
    """Each method of the key-value service answers over a channel."""
    kv = bench.kv
    assert (await kv.Put(kv_pb2.PutRequest(key=b"k", value=b"1"))).succeeded
    assert b"1" == (await kv.Get(kv_pb2.GetRequest(key=b"k"))).entry.value
    assert (await kv.CompareAndSwap(kv_pb2.CompareAndSwapRequest(key=b"k", expected=b"1", value=b"2"))).succeeded
    assert 3 == (await kv.Increment(kv_pb2.IncrementRequest(key=b"k"))).value
    assert [b"k"] == [entry.key for entry in (await kv.Scan(kv_pb2.ScanRequest())).entries]
    transaction = await kv.Transaction(kv_pb2.TransactionRequest(then=[get_item(b"k")]))
    assert b"3" == transaction.results[0].get.entry.value
    opened = await kv.OpenSession(kv_pb2.OpenSessionRequest(shard=1))
    assert opened.session
    await kv.CloseSession(kv_pb2.CloseSessionRequest(shard=1, session=opened.session))
    assert 2 == len((await kv.Batch(kv_pb2.BatchRequest(operations=[get_item(b"k"), get_item(b"j")]))).results)
    assert (await kv.Delete(kv_pb2.DeleteRequest(key=b"k"))).deleted
    assert CLUSTER == (await kv.ShardMap(shard_map_pb2.ShardMapRequest())).cluster


async def test_admin_calls_are_served(bench: Bench) -> None:
    """The admin service answers on the same port, and its refusals carry details."""
    admin: admin_pb2_grpc.AdminServiceAsyncStub = admin_pb2_grpc.AdminServiceStub(bench.channel)
    assert CLUSTER == (await admin.GetCluster(admin_pb2.GetClusterRequest())).cluster
    bench.administration.error = PreconditionFailed("no")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await admin.RemoveNode(admin_pb2.RemoveNodeRequest(node=1))
    assert (grpc.StatusCode.FAILED_PRECONDITION, "PRECONDITION_FAILED") == (
        caught.value.code(),
        reason_of(caught.value),
    )


async def test_errors_arrive_with_code_message_and_details(bench: Bench) -> None:
    """A refusal is a status with a message of any characters, and the details in the trailer."""
    bench.node.fail = lambda _: OutcomeUnknown("wer weiß?\n100 %")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.kv.Put(kv_pb2.PutRequest(key=b"k", value=b"1"))
    error = caught.value
    assert (grpc.StatusCode.UNKNOWN, "wer weiß?\n100 %", "OUTCOME_UNKNOWN") == (
        error.code(),
        error.details(),
        reason_of(error),
    )


async def test_an_unknown_method_is_unimplemented(bench: Bench) -> None:
    """What no service has is UNIMPLEMENTED."""
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
    call = bench.channel.unary_unary("/raftcache.v1.KvService/Nonsense")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_calls_of_one_turn_are_submitted_together(bench: Bench) -> None:
    """Many calls at once reach the node in far fewer lists."""
    for rounds in range(1, 11):
        async with asyncio.TaskGroup() as tasks:
            for number in range(200):
                tasks.create_task(put(bench, b"k%d" % number))
        assert 200 * rounds == len(bench.node.requests)
        if len(bench.node.submitted) < 200 * rounds:
            return
        # On a busy machine grpcio may hand each over in a turn of its own.
    raise AssertionError("in ten rounds each call came alone")


async def put(bench: Bench, key: bytes) -> None:
    await bench.kv.Put(kv_pb2.PutRequest(key=key, value=b"v"))


async def test_a_callers_deadline_reaches_the_node(bench: Bench) -> None:
    """The time that is left becomes a deadline of the node's clock."""
    before_ns = bench.node.clock.monotonic_ns()
    await bench.kv.Get(kv_pb2.GetRequest(key=b"k"), timeout=7)
    await bench.kv.Get(kv_pb2.GetRequest(key=b"k"))
    after_ns = bench.node.clock.monotonic_ns()
    first, second = bench.node.requests
    # grpcio's timeouts are rounded up, to at most 1 % more.
    assert before_ns + 6_000_000_000 < first.deadline_ns <= after_ns + 7_100_000_000
    assert before_ns + 10_000_000_000 <= second.deadline_ns <= after_ns + 10_000_000_000


async def test_a_caller_that_hangs_up_is_forgotten(bench: Bench) -> None:
    """A cancelled call counts no longer, and its late reply is dropped."""
    bench.node.hold = True
    call = bench.kv.Put(kv_pb2.PutRequest(key=b"k", value=b"1"))
    await until(lambda: bool(bench.node.held))
    assert 1 == bench.front.in_flight
    call.cancel()
    await until(lambda: bench.front.in_flight == 0)
    bench.node.release()
    bench.node.hold = False
    assert b"1" == (await bench.kv.Get(kv_pb2.GetRequest(key=b"k"))).entry.value


async def test_calls_beyond_the_limit_are_refused(front_class: FrontClass) -> None:
    """At `in_flight_max` a further call is RESOURCE_EXHAUSTED with details, and works again afterwards."""
    node = MemoryNode()
    front = front_class(
        handlers_of(node.gateway(SETTINGS), MemoryAdministration()), front_config(in_flight_max=2), node.clock
    )
    await front.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.port}") as channel:
        bench = Bench(node, MemoryAdministration(), front, channel)
        node.hold = True
        async with asyncio.TaskGroup() as tasks:
            for key in (b"a", b"b"):
                tasks.create_task(put(bench, key))
            await until(lambda: len(node.held) == 2)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await put(bench, b"c")
            assert (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED") == (caught.value.code(), reason_of(caught.value))
            # One that sends something may see its own broken write before the refusal.
            stream = bench.kv.Pipeline()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            assert "OVERLOADED" == reason_of(caught.value), caught.value
            node.hold = False
            node.release()
        await put(bench, b"c")
    await front.stop(0)


async def test_messages_a_little_too_large_are_refused_with_details(bench: Bench) -> None:
    """Between the gateway's limit and the transport's, the refusal names the limit; beyond, the transport refuses unread."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.kv.Put(kv_pb2.PutRequest(key=b"k", value=bytes(300 << 10)))
    assert (grpc.StatusCode.INVALID_ARGUMENT, "BATCH_TOO_LARGE") == (caught.value.code(), reason_of(caught.value))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bench.kv.Put(kv_pb2.PutRequest(key=b"k", value=bytes(600 << 10)))
    assert (grpc.StatusCode.RESOURCE_EXHAUSTED, "") == (caught.value.code(), reason_of(caught.value))
    assert [] == bench.node.submitted


async def test_connections_beyond_the_limit_are_not_served(front_class: FrontClass) -> None:
    """At `connections_max` a further client gets no connection, and the first keeps its own."""
    node = MemoryNode()
    front = front_class(
        handlers_of(node.gateway(), MemoryAdministration()), front_config(connections_max=1), node.clock
    )
    await front.start()
    # Channels with equal options would share one connection.
    options = [("grpc.use_local_subchannel_pool", 1)]
    address = f"127.0.0.1:{front.port}"
    async with (
        grpc.aio.insecure_channel(address, options) as first,
        grpc.aio.insecure_channel(address, options) as second,
    ):
        await put(Bench(node, MemoryAdministration(), front, first), b"a")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await put(Bench(node, MemoryAdministration(), front, second), b"b")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await put(Bench(node, MemoryAdministration(), front, first), b"c")
    await front.stop(0)
    assert [b"a", b"c"] == [request.operation.key for request in node.requests]  # type: ignore[union-attr]


async def test_a_port_in_use_is_a_clear_error(bench: Bench, front_class: FrontClass) -> None:
    """Two fronts never share a port: the second says which address it could not have."""
    address = f"127.0.0.1:{bench.front.port}"
    second = front_class(Handlers(refusal=refusal_of), front_config(address=address), bench.node.clock)
    with pytest.raises(ConfigError, match=address):
        await second.start()


# --- Streams --------------------------------------------------------------------------------------------------------


async def test_a_stream_answers_in_order_and_ends_on_half_close(bench: Bench) -> None:
    """Batches on one key act in the order sent; after the client's half-close the stream ends with OK."""
    operations = [[put_item(b"k", b"%d" % number), get_item(b"k")] for number in range(50)]
    requests = [kv_pb2.PipelineRequest(request_id=n, operations=items) for n, items in enumerate(operations)]
    call = bench.kv.Pipeline(iter(requests))
    found = [(response.request_id, response.results[1].get.entry.value) async for response in call]
    assert [(number, b"%d" % number) for number in range(50)] == found
    assert await call.code() is grpc.StatusCode.OK
    await until(lambda: bench.front.in_flight == 0)


async def test_a_stream_works_both_ways_at_once(bench: Bench) -> None:
    """An answer comes while the client has not finished sending."""
    call = bench.kv.Pipeline()
    for request in batches(1, 2, 3):
        await call.write(request)
        answer = await call.read()
        assert isinstance(answer, kv_pb2.PipelineResponse)
        assert request.request_id == answer.request_id
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_the_server_stops_reading_when_the_window_is_full(bench: Bench) -> None:
    """With nothing answered, only a window of batches (and one read ahead) leaves the client's stream for the node."""
    bench.node.hold = True
    window = SETTINGS.pipeline_batches_max

    async def endless() -> AsyncIterator[kv_pb2.PipelineRequest]:
        for request in batches(*range(1, 101)):
            yield request

    call = bench.kv.Pipeline(endless())
    await until(lambda: len(bench.node.requests) >= window)
    # Another call's round trip: had more been read, it would have arrived by then.
    bench.node.fail = lambda _: None
    for _ in range(3):
        await bench.kv.ShardMap(shard_map_pb2.ShardMapRequest())
    assert window == len(bench.node.requests)
    bench.node.hold = False
    bench.node.release()
    assert list(range(1, 101)) == [response.request_id async for response in call]


async def test_a_cancelled_stream_is_cleaned_up(bench: Bench) -> None:
    """When the client cancels, the stream counts no longer and nothing more of it reaches the node."""
    bench.node.hold = True
    call = bench.kv.Pipeline()
    await call.write(kv_pb2.PipelineRequest(request_id=1, operations=[put_item(b"k", b"1"), get_item(b"k")]))
    await until(lambda: bool(bench.node.held))
    call.cancel()
    await until(lambda: bench.front.in_flight == 0)
    bench.node.release()
    assert 1 == len(bench.node.requests), "the read that waited was handed over"
    assert "read /raftcache.v1.KvService/Pipeline" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_a_client_that_reads_nothing_stops_the_stream_and_may_hang_up(bench: Bench) -> None:
    """With its answers untaken, a client's further batches are not read; when it cancels, the stream is cleaned up."""
    await bench.kv.Put(kv_pb2.PutRequest(key=b"k", value=bytes(200 << 10)))
    call = bench.kv.Pipeline()
    written = 0

    async def write() -> None:
        nonlocal written
        while True:
            await call.write(kv_pb2.PipelineRequest(request_id=written, operations=[get_item(b"k")]))
            written += 1

    async with asyncio.TaskGroup() as tasks:
        writer = tasks.create_task(write())
        await until(lambda: bench.front.in_flight == 1)
        # The server has stopped when round trips of another call no longer find more of the stream's requests.
        before = -1
        while before != len(bench.node.requests):
            before = len(bench.node.requests)
            for _ in range(20):
                await bench.kv.ShardMap(shard_map_pb2.ShardMapRequest())
        assert 1 == bench.front.in_flight
        # Cancels the call, too, if a write was under way.
        writer.cancel()
    # Answers that the transport's buffers took, and one window.
    assert len(bench.node.requests) < 100
    call.cancel()
    await until(lambda: bench.front.in_flight == 0)
    assert "read /raftcache.v1.KvService/Pipeline" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_a_bug_leaves_no_caller_waiting(front_class: FrontClass) -> None:
    """What a handler raises is told to who keeps the log; the callers of that turn get INTERNAL, and others are served."""
    node, bugs = MemoryNode(), []
    handlers = handlers_of(node.gateway(SETTINGS), MemoryAdministration())
    front = front_class(handlers, front_config(), node.clock, on_bug=bugs.append)
    submit = next(iter(front._submits))
    proper = front._submits[submit]

    def broken(calls: list[Call]) -> None:
        raise KeyError("a bug")

    front._submits[submit] = broken
    await front.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.port}") as channel, asyncio.timeout(10):
        kv: kv_pb2_grpc.KvServiceAsyncStub = kv_pb2_grpc.KvServiceStub(channel)
        calls = [kv.Put(kv_pb2.PutRequest(key=b"k%d" % number, value=b"1")) for number in range(20)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        failed = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
        assert 20 == len(failed)
        assert {(grpc.StatusCode.INTERNAL, "INTERNAL")} == {(error.code(), reason_of(error)) for error in failed}
        assert {"KeyError"} == {type(error).__name__ for error in bugs}
        assert 0 == front.in_flight
        front._submits[submit] = proper
        assert (await kv.Put(kv_pb2.PutRequest(key=b"k", value=b"1"))).succeeded
    await front.stop(0.2)


async def test_an_awaited_handler_that_is_cancelled_from_within_is_a_bug(
    monkeypatch: pytest.MonkeyPatch, front_class: FrontClass
) -> None:
    """Nobody gave the call up, so its caller is answered; and it counts no longer."""
    node, administration, bugs = MemoryNode(), MemoryAdministration(), list[Exception]()

    async def cancelled(self: MemoryAdministration) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(MemoryAdministration, "cluster", cancelled)
    front = front_class(
        handlers_of(node.gateway(SETTINGS), administration), front_config(), node.clock, on_bug=bugs.append
    )
    await front.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.port}") as channel, asyncio.timeout(10):
        admin: admin_pb2_grpc.AdminServiceAsyncStub = admin_pb2_grpc.AdminServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await admin.GetCluster(admin_pb2.GetClusterRequest())
        assert grpc.StatusCode.INTERNAL is caught.value.code()
        assert 1 == len(bugs)
        assert 0 == front.in_flight
    await front.stop(0.2)


@pytest.mark.parametrize("where", ["__init__", "receive", "half_close"])
async def test_a_bug_ends_its_stream(where: str, monkeypatch: pytest.MonkeyPatch, front_class: FrontClass) -> None:
    """Without details, so that nobody takes what was not answered for not done."""
    node, bugs = MemoryNode(), []

    def broken(self: Pipeline, *_: object, **__: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(Pipeline, where, broken)
    front = front_class(
        handlers_of(node.gateway(SETTINGS), MemoryAdministration()), front_config(), node.clock, on_bug=bugs.append
    )
    await front.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.port}") as channel, asyncio.timeout(10):
        kv: kv_pb2_grpc.KvServiceAsyncStub = kv_pb2_grpc.KvServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in kv.Pipeline(iter(batches(1))):
                pass
        assert (grpc.StatusCode.INTERNAL, "") == (caught.value.code(), reason_of(caught.value))
        assert ["KeyError"] == [type(error).__name__ for error in bugs]
        await until(lambda: front.in_flight == 0)
    await front.stop(0.2)


async def test_every_call_is_counted(monkeypatch: pytest.MonkeyPatch, front_class: FrontClass) -> None:
    """By method and code, also what the front answers by itself, and alike by both: operators see an overload by it.

    A client whose deadline passes hangs up by itself."""
    node, administration = MemoryNode(clock=SystemClock()), MemoryAdministration()
    ended: list[tuple[str, str]] = []
    front = front_class(
        handlers_of(node.gateway(SETTINGS), administration),
        front_config(in_flight_max=1),
        node.clock,
        on_ended=lambda method, code, took_ns: ended.append((method, code)),
    )
    await front.start()

    async def outcome(call: grpc.aio.Call) -> str:
        name: str = (await call.code()).name
        return name

    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.port}") as channel, asyncio.timeout(10):
        kv: kv_pb2_grpc.KvServiceAsyncStub = kv_pb2_grpc.KvServiceStub(channel)
        admin: admin_pb2_grpc.AdminServiceAsyncStub = admin_pb2_grpc.AdminServiceStub(channel)
        seen = [("Put", await outcome(kv.Put(kv_pb2.PutRequest(key=b"k", value=b"1"))))]
        seen.append(("Get", await outcome(kv.Get(kv_pb2.GetRequest()))))
        seen.append(("GetCluster", await outcome(admin.GetCluster(admin_pb2.GetClusterRequest()))))
        node.hold = True
        held = kv.Get(kv_pb2.GetRequest(key=b"k"), timeout=0.3)
        held_code = asyncio.ensure_future(outcome(held))
        await until(lambda: front.in_flight == 1)
        seen.append(("Put", await outcome(kv.Put(kv_pb2.PutRequest(key=b"k", value=b"2")))))
        seen.append(("GetCluster", await outcome(admin.GetCluster(admin_pb2.GetClusterRequest()))))
        assert "DEADLINE_EXCEEDED" == await held_code
        seen.append(("Get", "CANCELLED"))
        await until(lambda: front.in_flight == 0)
        monkeypatch.setattr(MemoryAdministration, "cluster", None)
        seen.append(("GetCluster", await outcome(admin.GetCluster(admin_pb2.GetClusterRequest()))))
    await front.stop(0.2)
    codes = ["OK", "INVALID_ARGUMENT", "OK", "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED", "CANCELLED", "INTERNAL"]
    assert codes == [code for _, code in seen]
    assert seen == ended


async def test_a_stream_that_sends_nonsense_ends_with_details(bench: Bench) -> None:
    """A message that is no batch ends the stream as INVALID_ARGUMENT."""
    pipeline: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
    pipeline = bench.channel.stream_stream("/raftcache.v1.KvService/Pipeline")
    call = pipeline(iter([b"\xff\xff"]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST") == (caught.value.code(), reason_of(caught.value))


# --- Stopping -------------------------------------------------------------------------------------------------------


async def test_stop_finishes_what_is_in_flight(bench: Bench) -> None:
    """A call and a batch in flight when the server stops are answered; the stream then ends as unavailable, definite."""
    bench.node.hold = True
    call = bench.kv.Put(kv_pb2.PutRequest(key=b"a", value=b"1"))
    stream = bench.kv.Pipeline()
    await stream.write(batches(1)[0])
    await until(lambda: len(bench.node.held) == 2)
    async with asyncio.TaskGroup() as tasks:
        stopping = tasks.create_task(bench.front.stop(10))
        await asyncio.sleep(0)
        assert not stopping.done()
        bench.node.release()
        assert (await call).succeeded
        answer = await stream.read()
        assert isinstance(answer, kv_pb2.PipelineResponse)
        assert 1 == answer.request_id
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE") == (caught.value.code(), reason_of(caught.value))
    assert 0 == bench.front.in_flight


async def test_stop_cuts_off_what_takes_too_long(bench: Bench) -> None:
    """After the grace a call that is not answered is cut off, and the server is down."""
    bench.node.hold = True
    call = bench.kv.Put(kv_pb2.PutRequest(key=b"a", value=b"1"))
    await until(lambda: bool(bench.node.held))
    await bench.front.stop(0.05)
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await call
    await until(lambda: bench.front.in_flight == 0)
    bench.node.release()


async def test_stop_is_idempotent(front_class: FrontClass) -> None:
    """A front that never started, or has stopped, can be stopped."""
    node = MemoryNode()
    front = front_class(handlers_of(node.gateway(), MemoryAdministration()), front_config(), node.clock)
    await front.stop(1)
    await front.start()
    await front.stop(1)
    await front.stop(1)


# --- Health, reflection, TLS ----------------------------------------------------------------------------------------


async def health_of(bench: Bench, name: str) -> str:
    stub = health_pb2_grpc.HealthStub(bench.channel)
    reply = await stub.Check(health_pb2.HealthCheckRequest(service=name))
    status: str = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    return status


async def test_health_is_told_by_name(bench: Bench) -> None:
    """The services, "" and readiness follow the server; liveness does not; an unknown name is NOT_FOUND."""
    for serving, status in ((True, "SERVING"), (False, "NOT_SERVING")):
        await bench.front.set_serving(serving)
        for name in ("", "raftcache.v1.KvService", READINESS):
            assert status == await health_of(bench, name)
        assert "SERVING" == await health_of(bench, LIVENESS)
    await bench.front.set_serving(True, READINESS)
    assert ("SERVING", "NOT_SERVING") == (await health_of(bench, READINESS), await health_of(bench, ""))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_of(bench, "nonsense")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_can_be_watched(bench: Bench) -> None:
    """A watcher sees a change without asking again."""
    watch = health_pb2_grpc.HealthStub(bench.channel).Watch(health_pb2.HealthCheckRequest(service=READINESS))
    assert health_pb2.HealthCheckResponse.SERVING == (await watch.read()).status
    await bench.front.set_serving(False)
    assert health_pb2.HealthCheckResponse.NOT_SERVING == (await watch.read()).status
    watch.cancel()


async def test_reflection_lists_the_services(bench: Bench) -> None:
    """Tools find the services, and the descriptors of their methods, without the .proto files."""
    stub = reflection_pb2_grpc.ServerReflectionStub(bench.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="raftcache.v1.KvService"),
    ]
    listed, described = [reply async for reply in stub.ServerReflectionInfo(iter(asked))]
    names = {service.name for service in listed.list_services_response.service}
    assert {"raftcache.v1.KvService", "raftcache.admin.v1.AdminService", "grpc.health.v1.Health"} <= names
    assert described.file_descriptor_response.file_descriptor_proto


async def test_reflection_can_be_turned_off(front_class: FrontClass) -> None:
    """Without reflection its service is UNIMPLEMENTED."""
    node = MemoryNode()
    front = front_class(handlers_of(node.gateway(), MemoryAdministration()), front_config(reflection=False), node.clock)
    await front.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.port}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        # Nothing is sent: grpcio's client may fail by itself where the call ends while it still writes.
        call = stub.ServerReflectionInfo()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.done_writing()
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await front.stop(0)
