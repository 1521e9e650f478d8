"""What a cluster shows of itself while it serves: metrics, probes, gRPC health, and how well it groups what it is given.

The tests share three nodes, in this order: the last one takes the quorum away.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from raftcache.telemetry.names import METRICS, MetricKind
from raftcache.v1 import kv_pb2, kv_pb2_grpc
from tests.support.cluster import Cluster, Node, running, wait_until

STREAMS = 4
OUTSTANDING = 64
"""Batches on each stream."""
BATCH = 4
"""Commands in each: few, so that it is the node that groups them. Our own client sends up to 250 together."""
COMMANDS = 2_000
"""On each stream."""
COMMANDS_PER_SYNC_MIN = 20

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes, one shard, and little patience with requests that nobody can serve."""
    root = tmp_path_factory.mktemp("serving")
    with running(root, nodes=3, shards=1, settings={"limits.patience_ms": 1000}) as cluster:
        yield cluster


def health(cluster: Cluster, node: Node, name: str = "") -> int:
    """What the standard health service says of `name`."""
    stub = health_pb2_grpc.HealthStub(cluster.channel(node.address))
    status: int = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status
    return status


def test_metrics_are_what_prometheus_reads(cluster: Cluster) -> None:
    """Every metric of the table is there under its name and type, and the numbers are those of this cluster."""
    node = cluster.leader_of(1)
    cluster.kv(node).Put(kv_pb2.PutRequest(key=b"measured", value=b"v"), timeout=10)
    status, text = node.http("/metrics")
    assert 200 == status
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for metric in METRICS:
        is_counter = metric.kind in (MetricKind.COUNTER, MetricKind.SCRAPED_COUNTER)
        family = families[metric.name.removesuffix("_total") if is_counter else metric.name]
        expected = "histogram" if metric.kind is MetricKind.HISTOGRAM else "counter" if is_counter else "gauge"
        assert expected == family.type, metric.name
        assert family.documentation == metric.help
    assert 1 == node.metric("raftcache_raft_is_leader", shard="1")
    assert 1 == node.metric("raftcache_rpc_handled_total", method="Put", code="OK")
    assert 1 == node.metric("raftcache_state_records", shard="1")
    assert 2 == node.metric("raftcache_peer_connected")
    assert node.metric("raftcache_wal_fsync_duration_seconds_count") > 0


def test_healthy_node_is_ready_in_every_way(cluster: Cluster) -> None:
    """/livez and /readyz are 200, and gRPC health says so of all names."""
    for node in cluster.nodes:
        assert 200 == node.http("/livez")[0]
        wait_until(lambda node=node: 200 == node.http("/readyz")[0], "readiness")  # type: ignore[misc]
        for name in ("", "raftcache.v1.KvService", "raftcache.admin.v1.AdminService", "readiness", "liveness"):
            wait_until(lambda node=node, name=name: SERVING == health(cluster, node, name), name)  # type: ignore[misc]


def test_loaded_leader_makes_many_commands_durable_at_once(cluster: Cluster) -> None:
    """Some streams with many commands outstanding: at least 20 of them share an fsync, with nothing held back for it."""
    leader = cluster.leader_of(1)
    before = [leader.metric(f"raftcache_wal_fsync_commands_{part}") for part in ("sum", "count")]
    asyncio.run(_load(leader.address))
    commands, syncs = (
        leader.metric(f"raftcache_wal_fsync_commands_{part}") - value
        for part, value in zip(("sum", "count"), before, strict=True)
    )
    assert commands >= STREAMS * COMMANDS
    assert commands / syncs >= COMMANDS_PER_SYNC_MIN, f"{commands:.0f} commands in {syncs:.0f} syncs"


async def _load(address: str) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(STREAMS):
            tasks.create_task(_stream(address, b"stream%d/" % number), name=f"stream {number}")


async def _stream(address: str, prefix: bytes) -> None:
    """Puts `COMMANDS` keys in batches of a few, always `OUTSTANDING` batches of them unanswered. All must succeed."""
    room = asyncio.Semaphore(OUTSTANDING)

    async def requests() -> AsyncIterator[kv_pb2.PipelineRequest]:
        for first in range(1, COMMANDS + 1, BATCH):
            await room.acquire()
            puts = [kv_pb2.PutRequest(key=prefix + b"%d" % (first + n), value=b"x" * 100) for n in range(BATCH)]
            yield kv_pb2.PipelineRequest(request_id=first, operations=[kv_pb2.Operation(put=put) for put in puts])

    succeeded = 0
    # A connection of its own for each stream.
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        async for answer in kv_pb2_grpc.KvServiceStub(channel).Pipeline(requests(), timeout=60):
            room.release()
            succeeded += sum(result.put.succeeded for result in answer.results)
    assert COMMANDS == succeeded


def test_node_that_belongs_to_no_cluster_is_alive_and_not_ready(cluster: Cluster) -> None:
    """It says what to do, in /readyz and to whoever sends it a request."""
    node = cluster.add_node()
    try:
        node.start()
        assert 200 == node.http("/livez")[0]
        status, text = node.http("/readyz")
        assert 503 == status
        assert "raftcache init" in text
        assert SERVING == health(cluster, node, "liveness")
        assert [NOT_SERVING] * 3 == [
            health(cluster, node, name) for name in ("", "raftcache.v1.KvService", "readiness")
        ]
        with pytest.raises(grpc.RpcError) as refused:
            cluster.kv(node).Get(kv_pb2.GetRequest(key=b"k"), timeout=10)
        assert "raftcache init" in (refused.value.details() or "")
        assert "raftcache node join" in (refused.value.details() or "")
    finally:
        node.kill()
        cluster.nodes.remove(node)


def test_node_without_quorum_is_alive_and_not_ready(cluster: Cluster) -> None:
    """/livez stays 200, so that nobody restarts a healthy minority; /readyz and gRPC's readiness name what is missing."""
    survivor = cluster.leader_of(1)
    for node in cluster.nodes:
        if node is not survivor:
            node.kill()
    # Check-quorum: a leader that hears no majority for an election timeout steps down, each shard's for itself.
    wait_until(
        lambda: survivor.metric("raftcache_node_shards_without_leader") == 2, "the node to see that there is no quorum"
    )
    status, text = survivor.http("/readyz")
    assert 503 == status
    assert "leaders" in text
    assert "no leader known: 0, 1" in text
    assert 200 == survivor.http("/livez")[0]
    wait_until(lambda: NOT_SERVING == health(cluster, survivor, "readiness"), "gRPC's readiness to follow")
    assert SERVING == health(cluster, survivor, "liveness")
    assert SERVING == health(cluster, survivor), "requests for other shards would still pass through here"
    # A request waits for a leader as long as the node's patience lasts, and is then refused for certain.
    with pytest.raises(grpc.RpcError) as refused:
        cluster.kv(survivor).Put(kv_pb2.PutRequest(key=b"k", value=b"v"), timeout=20)
    assert grpc.StatusCode.UNAVAILABLE is refused.value.code()
    assert "leader" in (refused.value.details() or "")
