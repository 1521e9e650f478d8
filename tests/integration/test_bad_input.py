"""What can never succeed is refused by a running node with a reason for programs and a sentence for people.

One small node with low limits serves all tests; none of them leaves anything behind that another one would see.
"""

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.message import Message

from raftcache.admin.v1 import admin_pb2
from raftcache.kv.slots import slot_of
from raftcache.v1 import kv_pb2, kv_pb2_grpc, types_pb2
from tests.support.cluster import Cluster, Node, running, wait_until
from tests.support.refusals import refused

CONNECTIONS_MAX = 5
IN_FLIGHT_MAX = 300
MIB = 1 << 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One node, two shards, few connections, few requests in flight."""
    settings = {"limits.connections_max": CONNECTIONS_MAX, "limits.in_flight_requests_max": IN_FLIGHT_MAX}
    with running(tmp_path_factory.mktemp("input"), nodes=1, shards=2, settings=settings) as cluster:
        yield cluster


@pytest.fixture
def node(cluster: Cluster) -> Node:
    return cluster.nodes[0]


@pytest.fixture
def kv(cluster: Cluster) -> kv_pb2_grpc.KvServiceStub:
    return cluster.kv(cluster.nodes[0])


def get(key: bytes) -> kv_pb2.Operation:
    return kv_pb2.Operation(get=kv_pb2.GetRequest(key=key))


def put(key: bytes, value: bytes = b"v") -> kv_pb2.Operation:
    return kv_pb2.Operation(put=kv_pb2.PutRequest(key=key, value=value))


BAD = {
    "key too long": (
        "Put",
        kv_pb2.PutRequest(key=b"k" * 401),
        "KEY_TOO_LONG",
        ("401 bytes", "limits.key_bytes_max allows 400", "shorten"),
    ),
    "key of a read too long": ("Get", kv_pb2.GetRequest(key=b"k" * 401), "KEY_TOO_LONG", ("limits.key_bytes_max",)),
    "empty key": ("Put", kv_pb2.PutRequest(value=b"v"), "INVALID_REQUEST", ("the key is empty", "at least one byte")),
    "value too large": (
        "Put",
        kv_pb2.PutRequest(key=b"k", value=bytes(MIB + 1)),
        "VALUE_TOO_LARGE",
        (f"{MIB + 1} bytes", f"limits.value_bytes_max allows {MIB}", "split"),
    ),
    "unknown consistency": (
        "Get",
        kv_pb2.GetRequest(key=b"k", consistency=9),  # type: ignore[arg-type]
        "INVALID_REQUEST",
        ("consistency", "9"),
    ),
    "unknown comparison": (
        "Put",
        kv_pb2.PutRequest(key=b"k", conditions=[types_pb2.Condition(version=1, comparison=77)]),  # type: ignore[arg-type]
        "INVALID_REQUEST",
        ("comparison", "77"),
    ),
    "reserved field": ("Put", kv_pb2.PutRequest(key=b"k", ttl_ms=5), "INVALID_REQUEST", ("ttl_ms", "reserved")),
    "reserved namespace": ("Get", kv_pb2.GetRequest(key=b"k", namespace=3), "INVALID_REQUEST", ("namespace 3",)),
    "too many operations": (
        "Batch",
        kv_pb2.BatchRequest(operations=[get(b"k")] * 1001),
        "BATCH_TOO_LARGE",
        ("1001", "limits.batch_operations_max", "1000"),
    ),
    "too many bytes": (
        "Batch",
        kv_pb2.BatchRequest(operations=[put(b"k", bytes(MIB))] * 4),
        "BATCH_TOO_LARGE",
        ("limits.batch_bytes_max", str(4 * MIB)),
    ),
    "keys of two slots": (
        "Transaction",
        kv_pb2.TransactionRequest(then=[put(b"alice"), put(b"bob")]),
        "CROSS_SLOT",
        (
            f"b'alice' (slot {slot_of(b'alice')})",
            f"b'bob' (slot {slot_of(b'bob')})",
            "common part in braces",
            "{user1}name",
        ),
    ),
    "transaction without a key": ("Transaction", kv_pb2.TransactionRequest(), "INVALID_REQUEST", ("names no key",)),
    "page token of nobody": ("Scan", kv_pb2.ScanRequest(page_token=b"x"), "INVALID_REQUEST", ("page token",)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_request_is_refused_with_reason_and_words(kv: kv_pb2_grpc.KvServiceStub, name: str) -> None:
    """INVALID_ARGUMENT, definite, not to be retried, and a sentence that names the limit or the field."""
    method, request, reason, words = BAD[name]
    refusal = refused(lambda: getattr(kv, method)(request, timeout=10))
    assert (grpc.StatusCode.INVALID_ARGUMENT, reason) == (refusal.code, refusal.reason), refusal
    assert ("true", "false") == (refusal.facts["definite"], refusal.facts["retryable"])
    assert refusal.retry_after_ms is None
    for word in words:
        assert word in refusal.message, refusal.message


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("OpenSession", kv_pb2.OpenSessionRequest(shard=99)),
        ("CloseSession", kv_pb2.CloseSessionRequest(shard=99, session=1)),
        ("Scan", kv_pb2.ScanRequest(shard=99)),
    ],
    ids=["open", "close", "scan"],
)
def test_shard_that_is_not_there_is_not_waited_for(
    kv: kv_pb2_grpc.KvServiceStub, method: str, request_: Message
) -> None:
    """The map of the caller must be another one: WRONG_SHARD, definite, and where to look."""
    refusal = refused(lambda: getattr(kv, method)(request_, timeout=10))
    assert (grpc.StatusCode.ABORTED, "WRONG_SHARD") == (refusal.code, refusal.reason), refusal
    assert "99" == refusal.facts["shard"]
    assert "no shard 99" in refusal.message
    assert "ShardMap" in refusal.message


@pytest.mark.parametrize("name", ["key too long", "value too large", "too many operations"])
def test_limit_travels_as_facts_for_programs(kv: kv_pb2_grpc.KvServiceStub, name: str) -> None:
    """Setting, limit and actual number are metadata, so that a program need not read the sentence."""
    method, request, _, _ = BAD[name]
    facts = refused(lambda: getattr(kv, method)(request, timeout=10)).facts
    assert facts["setting"].startswith("limits."), facts
    assert int(facts["actual"]) == int(facts["limit"]) + 1, facts


def test_largest_key_and_value_are_taken(kv: kv_pb2_grpc.KvServiceStub) -> None:
    """At the limit is within it; an empty value is a value."""
    key, value = b"k" * 400, bytes(MIB)
    assert kv.Put(kv_pb2.PutRequest(key=key, value=value), timeout=20).succeeded
    assert value == kv.Get(kv_pb2.GetRequest(key=key), timeout=20).entry.value
    assert kv.Put(kv_pb2.PutRequest(key=b"empty"), timeout=20).succeeded
    response = kv.Get(kv_pb2.GetRequest(key=b"empty"), timeout=20)
    assert response.HasField("entry")
    assert b"" == response.entry.value


def test_message_far_beyond_the_limit_is_refused_unread(kv: kv_pb2_grpc.KvServiceStub) -> None:
    """The gRPC library says so itself, without our details, as docs/errors.md tells."""
    request = kv_pb2.PutRequest(key=b"k", value=bytes(8 * MIB))
    refusal = refused(lambda: kv.Put(request, timeout=20))
    assert (grpc.StatusCode.RESOURCE_EXHAUSTED, "") == (refusal.code, refusal.reason)


def test_what_is_no_message_is_refused(cluster: Cluster, node: Node) -> None:
    """Bytes that are no protobuf message of the method: INVALID_REQUEST, and the node goes on."""
    call = cluster.channel(node.address).unary_unary("/raftcache.v1.KvService/Put")
    refusal = refused(lambda: call(b"\xff\xff\xff", timeout=10))
    assert (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST") == (refusal.code, refusal.reason)


def test_unknown_field_of_a_newer_client_is_ignored(kv: kv_pb2_grpc.KvServiceStub) -> None:
    """As protobuf has it: a field that this release does not know changes nothing."""
    request = kv_pb2.GetRequest.FromString(kv_pb2.GetRequest(key=b"k").SerializeToString() + b"\xc2\x3e\x01x")
    assert kv.Get(request, timeout=10).header.index > 0


@pytest.mark.parametrize(
    ("method", "request_", "words"),
    [
        (
            "ChangeReplicas",
            admin_pb2.ChangeReplicasRequest(shard=1, action=77, node=1),  # type: ignore[arg-type]
            ("action",),
        ),
        (
            "ChangeReplicas",
            admin_pb2.ChangeReplicasRequest(shard=99, action="REPLICA_ACTION_ADD", node=1),
            ("shard 99",),
        ),
        ("TransferLeader", admin_pb2.TransferLeaderRequest(shard=99), ("no shard 99",)),
        ("JoinNode", admin_pb2.JoinNodeRequest(peer_address="nowhere"), ("'nowhere'", "host:port")),
    ],
    ids=["unknown action", "change in no shard", "leader of no shard", "address that is none"],
)
def test_bad_order_of_an_operator_is_refused_with_words(
    cluster: Cluster, node: Node, method: str, request_: Message, words: tuple[str, ...]
) -> None:
    """The same for what operators ask: INVALID_REQUEST, and what to mend."""
    refusal = refused(lambda: getattr(cluster.admin(node), method)(request_, timeout=10))
    assert (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST") == (refusal.code, refusal.reason), refusal
    for word in words:
        assert word in refusal.message, refusal.message


def test_bad_operation_in_a_batch_fails_alone(kv: kv_pb2_grpc.KvServiceStub) -> None:
    """Its neighbours succeed; its own place holds the error, with the same facts."""
    request = kv_pb2.BatchRequest(
        operations=[put(b"batch/1"), put(b""), put(b"batch/3", bytes(MIB + 1)), get(b"batch/1")]
    )
    one, empty, large, read = kv.Batch(request, timeout=10).results
    assert one.put.succeeded
    assert "INVALID_REQUEST" == empty.error.reason
    assert ("VALUE_TOO_LARGE", "limits.value_bytes_max") == (large.error.reason, large.error.metadata["setting"])
    assert large.error.definite
    assert not large.error.retryable
    assert b"v" == read.get.entry.value


def test_bad_batch_on_a_stream_fails_alone(kv: kv_pb2_grpc.KvServiceStub) -> None:
    """A refused batch is answered under its id, and the stream goes on."""
    requests = [
        kv_pb2.PipelineRequest(request_id=1, operations=[put(b"stream")]),
        kv_pb2.PipelineRequest(request_id=2, operations=[get(b"stream")] * 1001),
        kv_pb2.PipelineRequest(request_id=3, operations=[put(b"stream/4"), put(b"x" * 401)]),
    ]
    answers = {answer.request_id: answer for answer in kv.Pipeline(iter(requests), timeout=20)}
    assert answers[1].results[0].put.succeeded
    assert "BATCH_TOO_LARGE" == answers[2].error.reason
    assert ["put", "error"] == [result.WhichOneof("result") for result in answers[3].results]
    assert "KEY_TOO_LONG" == answers[3].results[1].error.reason


def test_number_is_expected_where_something_else_is_stored(kv: kv_pb2_grpc.KvServiceStub) -> None:
    """An increment of a text is refused at apply, definite, and changes nothing."""
    kv.Put(kv_pb2.PutRequest(key=b"text", value=b"seven"), timeout=10)
    refusal = refused(lambda: kv.Increment(kv_pb2.IncrementRequest(key=b"text"), timeout=10))
    assert ("INVALID_REQUEST", "true") == (refusal.reason, refusal.facts["definite"])
    assert b"seven" == kv.Get(kv_pb2.GetRequest(key=b"text"), timeout=10).entry.value


def test_unknown_session_is_refused(kv: kv_pb2_grpc.KvServiceStub) -> None:
    """A stamp of a session that the shard does not know: SESSION_EXPIRED, and nothing is written."""
    stamp = types_pb2.SessionStamp(session=987654321, sequence=1, first_unacked=1)
    refusal = refused(lambda: kv.Put(kv_pb2.PutRequest(key=b"stamped", value=b"v", stamp=stamp), timeout=10))
    assert (grpc.StatusCode.FAILED_PRECONDITION, "SESSION_EXPIRED") == (refusal.code, refusal.reason)
    assert not kv.Get(kv_pb2.GetRequest(key=b"stamped"), timeout=10).HasField("entry")


def test_requests_beyond_the_limit_in_flight_are_told_to_come_later(kv: kv_pb2_grpc.KvServiceStub, node: Node) -> None:
    """The first so many are served; the rest is OVERLOADED, definite, with the setting and its limit in words."""
    operations = [put(b"flood/%d" % number) for number in range(IN_FLIGHT_MAX + 100)]
    for operation in operations:
        # Plain puts are one request for all of them.
        operation.put.return_previous = True
    results = kv.Batch(kv_pb2.BatchRequest(operations=operations), timeout=10).results
    served = [result for result in results if result.WhichOneof("result") == "put"]
    refused_ = [result.error for result in results if result.WhichOneof("result") == "error"]
    assert (IN_FLIGHT_MAX, 100) == (len(served), len(refused_))
    assert {"OVERLOADED"} == {error.reason for error in refused_}
    assert all(error.definite and error.retryable for error in refused_)
    assert f"limits.in_flight_requests_max is {IN_FLIGHT_MAX}" in refused_[0].message
    assert 100 == node.metric("raftcache_rpc_overloaded_total")
    assert 0 == node.metric("raftcache_rpc_inflight"), "what was refused holds nothing"


def test_connections_beyond_the_limit_are_closed_and_the_others_served(
    kv: kv_pb2_grpc.KvServiceStub, node: Node
) -> None:
    """A full node keeps its clients and takes another as soon as one has left."""
    request = kv_pb2.GetRequest(key=b"k")
    kv.Get(request, timeout=10)  # this test's own connection is one of them
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 100)]
    channels = [grpc.insecure_channel(node.address, options) for _ in range(CONNECTIONS_MAX + 1)]
    try:
        stubs = [kv_pb2_grpc.KvServiceStub(channel) for channel in channels]
        for stub in stubs[: CONNECTIONS_MAX - 1]:
            stub.Get(request, timeout=10)
        turned_away = refused(lambda: stubs[CONNECTIONS_MAX - 1].Get(request, timeout=10))
        assert (grpc.StatusCode.UNAVAILABLE, "") == (turned_away.code, turned_away.reason), turned_away
        for stub in [kv, *stubs[: CONNECTIONS_MAX - 1]]:
            stub.Get(request, timeout=10)
        # The one that was turned away keeps dialling, and would take the place that becomes free.
        channels[CONNECTIONS_MAX - 1].close()
        channels[0].close()

        def taken() -> bool:
            try:
                stubs[CONNECTIONS_MAX].Get(request, timeout=1)
            except grpc.RpcError:
                return False
            return True

        wait_until(taken, "another client to be taken")
    finally:
        for channel in channels:
            channel.close()
