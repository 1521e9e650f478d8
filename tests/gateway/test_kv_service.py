"""The key-value service over a node in memory, without a front."""

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from raftcache.clock import NS_PER_MS, ManualClock
from raftcache.edge.front import Call, Peer, Refusal
from raftcache.errors import NotLeader, OutcomeUnknown, PermissionDenied
from raftcache.gateway.gateway import Gateway, GatewaySettings
from raftcache.gateway.handlers import handlers_of
from raftcache.gateway.kv_service import READS_AT_ONCE, KvService
from raftcache.ids import ShardId
from raftcache.kv.slots import slot_of
from raftcache.node.api import Consistency
from raftcache.v1 import kv_pb2, shard_map_pb2, types_pb2
from tests.gateway.memory_node import (
    EPOCH,
    OTHER_ADDRESS,
    CollectingSink,
    MemoryAdministration,
    MemoryNode,
    call_of,
    slow_key,
)
from tests.gateway.test_errors import details_of

REPLIES: dict[str, type[Message]] = {
    "Get": kv_pb2.GetResponse,
    "Put": kv_pb2.PutResponse,
    "Delete": kv_pb2.DeleteResponse,
    "CompareAndSwap": kv_pb2.CompareAndSwapResponse,
    "Increment": kv_pb2.IncrementResponse,
    "Scan": kv_pb2.ScanResponse,
    "Transaction": kv_pb2.TransactionResponse,
    "OpenSession": kv_pb2.OpenSessionResponse,
    "CloseSession": kv_pb2.CloseSessionResponse,
    "Batch": kv_pb2.BatchResponse,
    "ShardMap": shard_map_pb2.ShardMapResponse,
}


class Caller:
    """Calls the service and waits for nothing: the node in memory answers at once."""

    def __init__(self, node: MemoryNode, gateway: Gateway | None = None) -> None:
        self.node = node
        self.sink = CollectingSink()
        self.submit = KvService(gateway or node.gateway()).attach(self.sink)

    def answer(self, method: str, request: Message | bytes, **options: int) -> bytes | Refusal:
        data = request if isinstance(request, bytes) else request.SerializeToString()
        token = len(self.sink.answers)
        self.submit([call_of(method, data, token, **options)])
        return self.sink.answers[token]

    def refused(self, method: str, request: Message | bytes, **options: int) -> str:
        """The reason that the call is refused for."""
        answer = self.answer(method, request, **options)
        assert isinstance(answer, Refusal), f"{method} was answered"
        reason: str = details_of(answer.details)[1]["ErrorInfo"].reason  # type: ignore[attr-defined]
        return reason

    def reply(self, method: str, request: Message) -> Message:
        answer = self.answer(method, request)
        assert isinstance(answer, bytes), f"{method} was refused: {answer}"
        return REPLIES[method].FromString(answer)

    def get(self, key: bytes) -> kv_pb2.GetResponse:
        reply = self.reply("Get", kv_pb2.GetRequest(key=key))
        assert isinstance(reply, kv_pb2.GetResponse)
        return reply

    def put(self, key: bytes, value: bytes, **fields: object) -> kv_pb2.PutResponse:
        reply = self.reply("Put", kv_pb2.PutRequest(key=key, value=value, **fields))  # type: ignore[arg-type]
        assert isinstance(reply, kv_pb2.PutResponse)
        return reply

    def batch(self, *operations: kv_pb2.Operation) -> list[kv_pb2.OperationResult]:
        reply = self.reply("Batch", kv_pb2.BatchRequest(operations=operations))
        assert isinstance(reply, kv_pb2.BatchResponse)
        return list(reply.results)


@pytest.fixture
def caller() -> Caller:
    return Caller(MemoryNode())


def put_item(key: bytes, value: bytes) -> kv_pb2.Operation:
    return kv_pb2.Operation(put=kv_pb2.PutRequest(key=key, value=value))


def get_item(key: bytes) -> kv_pb2.Operation:
    return kv_pb2.Operation(get=kv_pb2.GetRequest(key=key))


def test_every_method_of_the_interface_has_a_handler() -> None:
    """The services' descriptors and the handlers name the same methods."""
    from raftcache.admin.v1 import admin_pb2

    handlers = handlers_of(MemoryNode().gateway(), MemoryAdministration())
    services = (
        kv_pb2.DESCRIPTOR.services_by_name["KvService"],
        admin_pb2.DESCRIPTOR.services_by_name["AdminService"],
    )
    declared = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert declared == {*handlers.unary, *handlers.awaited, *handlers.streams}
    assert tuple(service.full_name for service in services) == handlers.services


def test_a_value_is_read_back_with_its_history(caller: Caller) -> None:
    """Get returns what Put wrote, with version, revisions and a header."""
    assert not caller.get(b"k").HasField("entry")
    assert caller.put(b"k", b"1").succeeded
    second = caller.put(b"k", b"", return_previous=True)
    assert b"1" == second.previous.value
    found = caller.get(b"k")
    assert (b"k", b"", 2) == (found.entry.key, found.entry.value, found.entry.version)
    assert found.entry.mod_revision == found.header.revision == second.header.revision
    assert found.entry.create_revision < found.entry.mod_revision


def test_a_condition_that_does_not_hold_is_an_answer(caller: Caller) -> None:
    """A failed condition is `succeeded: false` with what is there, for each kind of condition."""
    absent = types_pb2.Condition(exists=False)
    assert caller.put(b"k", b"1", conditions=[absent]).succeeded
    refused = caller.put(b"k", b"2", conditions=[absent])
    assert (False, b"1") == (refused.succeeded, refused.current.value)
    number = caller.put(b"other{k}", b"").header.revision
    condition = types_pb2.Condition
    for asked, holds in (
        (condition(exists=True), True),
        (condition(key=b"k", version=7), False),
        (condition(version=0, comparison=types_pb2.COMPARISON_GREATER), True),
        (condition(mod_revision=number, comparison=types_pb2.COMPARISON_EQUAL), False),
        (condition(mod_revision=number, comparison=types_pb2.COMPARISON_NOT_EQUAL), True),
        (condition(create_revision=number, comparison=types_pb2.COMPARISON_LESS), False),
        (condition(value=b"1"), True),
        (condition(value=b""), False),
    ):
        reply = caller.reply("Delete", kv_pb2.DeleteRequest(key=b"k", conditions=[asked], return_previous=True))
        assert isinstance(reply, kv_pb2.DeleteResponse)
        assert (holds, holds) == (reply.succeeded, reply.deleted), asked
        assert b"1" == (reply.previous if holds else reply.current).value
        caller.put(b"k", b"1")


def test_compare_and_swap_tells_absent_from_empty(caller: Caller) -> None:
    """An unset `expected` means absent, a set and empty one the empty value."""

    def swap(**fields: bytes) -> kv_pb2.CompareAndSwapResponse:
        reply = caller.reply("CompareAndSwap", kv_pb2.CompareAndSwapRequest(key=b"k", **fields))  # type: ignore[arg-type]
        assert isinstance(reply, kv_pb2.CompareAndSwapResponse)
        return reply

    assert not swap(expected=b"", value=b"x").HasField("current")
    assert swap(value=b"").succeeded
    assert not swap(value=b"x").succeeded
    assert swap(expected=b"", value=b"x").succeeded
    assert b"x" == swap(expected=b"y", value=b"z").current.value


def test_increment_adds_one_unless_told(caller: Caller) -> None:
    """An unset delta is 1, a set 0 is 0, and `initial` counts where the key is absent."""

    def increment(**fields: int) -> int:
        reply = caller.reply("Increment", kv_pb2.IncrementRequest(key=b"n", **fields))  # type: ignore[arg-type]
        assert isinstance(reply, kv_pb2.IncrementResponse)
        return reply.value

    assert [11, 12, 12, -3] == [increment(initial=10), increment(), increment(delta=0), increment(delta=-15)]


def test_a_transaction_runs_one_branch(caller: Caller) -> None:
    """A transaction's answer has one result per operation of the branch that ran."""
    request = kv_pb2.TransactionRequest(
        conditions=[types_pb2.Condition(key=b"{t}a", exists=False)],
        then=[
            put_item(b"{t}a", b"1"),
            get_item(b"{t}b"),
            kv_pb2.Operation(increment=kv_pb2.IncrementRequest(key=b"{t}n")),
        ],
        otherwise=[get_item(b"{t}a")],
    )
    first, second = caller.reply("Transaction", request), caller.reply("Transaction", request)
    assert isinstance(first, kv_pb2.TransactionResponse)
    assert isinstance(second, kv_pb2.TransactionResponse)
    assert first.succeeded
    assert ["put", "get", "increment"] == [result.WhichOneof("result") for result in first.results]
    assert (True, False, 1) == (
        first.results[0].put.succeeded,
        first.results[1].get.HasField("entry"),
        first.results[2].increment.value,
    )
    assert not second.succeeded
    assert [b"1"] == [result.get.entry.value for result in second.results]


def test_a_session_makes_writes_exactly_once(caller: Caller) -> None:
    """A write repeated under its stamp is answered from memory; a closed session is refused."""
    opened = caller.reply("OpenSession", kv_pb2.OpenSessionRequest(key=b"n"))
    assert isinstance(opened, kv_pb2.OpenSessionResponse)
    stamp = types_pb2.SessionStamp(session=opened.session, sequence=1, first_unacked=1)
    request = kv_pb2.IncrementRequest(key=b"n", stamp=stamp)
    replies = [caller.reply("Increment", request) for _ in range(3)]
    assert [1, 1, 1] == [reply.value for reply in replies if isinstance(reply, kv_pb2.IncrementResponse)]
    caller.reply("CloseSession", kv_pb2.CloseSessionRequest(shard=opened.header.shard, session=opened.session))
    assert "SESSION_EXPIRED" == caller.refused("Increment", request)


def test_a_session_is_opened_where_it_is_asked_for(caller: Caller) -> None:
    """OpenSession takes a shard or a key; neither, or the catalog, is refused."""
    by_shard = caller.reply("OpenSession", kv_pb2.OpenSessionRequest(shard=2))
    assert isinstance(by_shard, kv_pb2.OpenSessionResponse)
    assert 2 == by_shard.header.shard
    assert "INVALID_REQUEST" == caller.refused("OpenSession", kv_pb2.OpenSessionRequest())
    assert "INVALID_REQUEST" == caller.refused("OpenSession", kv_pb2.OpenSessionRequest(shard=0))
    assert "WRONG_SHARD" == caller.refused("OpenSession", kv_pb2.OpenSessionRequest(shard=99))


def test_a_batch_answers_each_operation_alone(caller: Caller) -> None:
    """Operations in any shards succeed or fail each for itself, in the order of the request."""
    results = caller.batch(
        put_item(b"a", b"1"),
        put_item(b"", b"1"),
        get_item(b"a"),
        kv_pb2.Operation(),
        kv_pb2.Operation(delete=kv_pb2.DeleteRequest(key=b"nothing")),
        put_item(b"foo", b"2"),
    )
    assert ["put", "error", "get", "error", "delete", "put"] == [result.WhichOneof("result") for result in results]
    assert b"1" == results[2].get.entry.value
    assert "INVALID_REQUEST" == results[1].error.reason
    assert results[1].error.definite
    assert not results[4].delete.deleted


def test_operations_on_one_key_of_a_batch_act_in_their_order(caller: Caller) -> None:
    """A read inside a batch sees the writes before it and not those after it."""
    results = caller.batch(
        get_item(b"k"), put_item(b"k", b"1"), get_item(b"k"), put_item(b"k", b"2"), put_item(b"k", b"3"), get_item(b"k")
    )
    assert [b"", b"1", b"3"] == [results[position].get.entry.value for position in (0, 2, 5)]


def test_a_batch_is_handed_over_in_one_list(caller: Caller) -> None:
    """Operations on different keys reach the node together, in one list."""
    caller.batch(*[put_item(b"k%d" % number, b"v") for number in range(99)], get_item(b"other"))
    assert 100 == sum(len(requests) for requests in caller.node.submitted[:1])


def test_what_a_batch_brings_back_is_bounded() -> None:
    """Reads beyond the limit can be asked for again; a write beyond it was carried out, and says that it is unknown."""
    node = MemoryNode()
    caller = Caller(node, node.gateway(GatewaySettings(batch_reply_bytes_max=2_500)))
    caller.put(b"k", bytes(1_000))
    swap = kv_pb2.PutRequest(key=b"k", value=b"new", return_previous=True)
    results = caller.batch(*[get_item(b"k")] * 3, kv_pb2.Operation(put=swap), get_item(b"k"))
    assert ["", "", "OVERLOADED", "OUTCOME_UNKNOWN", ""] == [result.error.reason for result in results]
    assert [True, False] == [results[2].error.definite, results[3].error.definite]
    assert "limits.batch_reply_bytes_max, 2500 bytes" in results[2].error.message
    assert b"new" == results[4].get.entry.value, "a later small result still fits"


def test_what_waits_in_unfinished_batches_is_bounded() -> None:
    """One operation that waits holds the answers to all others of its batch; beyond the bound reads are to be asked for again."""
    node = MemoryNode()
    gateway = node.gateway(GatewaySettings(unfinished_bytes_max=2_500))
    caller = Caller(node, gateway)
    caller.put(b"k", bytes(1_000))
    message = kv_pb2.BatchRequest(operations=[get_item(b"k"), get_item(b"k"), get_item(b"slow")]).SerializeToString()
    with slow_key(node, b"slow"):
        caller.submit([call_of("Batch", message, "first")])
        assert 2_000 == gateway.unfinished.bytes
        caller.submit([call_of("Batch", message, "second")])
    assert 0 == gateway.unfinished.bytes
    found = []
    for token in ("first", "second"):
        answer = caller.sink.answers[token]
        assert isinstance(answer, bytes)
        found.append([result.error.reason for result in kv_pb2.BatchResponse.FromString(answer).results])
    assert [["", "", ""], ["OVERLOADED", "OVERLOADED", ""]] == found


def twelve_records(*, unfinished_bytes_max: int) -> tuple[MemoryNode, Gateway, Caller]:
    """Of 1,000 bytes each, over three shards, which from now on answer when they are told."""
    node = MemoryNode(shards=3)
    gateway = node.gateway(GatewaySettings(unfinished_bytes_max=unfinished_bytes_max))
    caller = Caller(node, gateway)
    for number in range(12):
        caller.put(b"k%d" % number, bytes(1_000))
    node.hold = True
    return node, gateway, caller


def test_what_waits_in_unfinished_scans_is_bounded() -> None:
    """Pages wait for those of the slowest shard; beyond the bound they are dropped, and their scans to be asked for again."""
    node, gateway, caller = twelve_records(unfinished_bytes_max=25_000)
    scan = kv_pb2.ScanRequest().SerializeToString()
    tokens = ["first", "second", "third", "fourth"]
    for token in tokens:
        caller.submit([call_of("Scan", scan, token)])
    slow = [(request, sink) for request, sink in node.held if request.shard == 3]
    node.held = [pair for pair in node.held if pair not in slow]
    node.release()
    assert 20_000 < gateway.unfinished.bytes <= 25_000
    assert not caller.sink.answers.keys() & set(tokens)
    node.held = slow
    node.release()
    assert 0 == gateway.unfinished.bytes
    answers = [caller.sink.answers[token] for token in tokens]
    pages = [kv_pb2.ScanResponse.FromString(answer) for answer in answers if isinstance(answer, bytes)]
    refused = [details_of(answer.details)[1]["ErrorInfo"].reason for answer in answers if isinstance(answer, Refusal)]  # type: ignore[attr-defined]
    assert {12} == {len(page.entries) for page in pages}
    assert {"OVERLOADED"} == set(refused)


def test_a_scan_alone_may_hold_more_than_the_bound() -> None:
    """Each shard shows one record at least, whatever its size: refused now, it would be refused for ever."""
    node, gateway, caller = twelve_records(unfinished_bytes_max=1_500)
    caller.submit([call_of("Scan", kv_pb2.ScanRequest().SerializeToString(), "alone")])
    for _ in range(3):
        node.release(1)
    answer = caller.sink.answers["alone"]
    assert isinstance(answer, bytes)
    assert 12 == len(kv_pb2.ScanResponse.FromString(answer).entries)
    assert 0 == gateway.unfinished.bytes


def test_an_empty_batch_is_answered(caller: Caller) -> None:
    """No operations, no results, and nothing for the node."""
    assert [] == caller.batch()
    assert [] == caller.node.submitted


def test_calls_of_one_turn_reach_the_node_in_one_list(caller: Caller) -> None:
    """A list of mixed calls is one list of requests; what is refused is not in it."""
    caller.submit(
        [
            call_of("Put", kv_pb2.PutRequest(key=b"a", value=b"1").SerializeToString(), "a"),
            call_of("Put", kv_pb2.PutRequest().SerializeToString(), "b"),
            call_of("Get", kv_pb2.GetRequest(key=b"a").SerializeToString(), "c"),
        ]
    )
    assert [2] == [len(requests) for requests in caller.node.submitted]
    assert {"a", "b", "c"} == set(caller.sink.answers)


def test_reads_are_answered_in_pieces_and_writes_together(caller: Caller) -> None:
    """So that readers ask again while the rest is made, and writers come back at once, for one fdatasync."""
    get, put = kv_pb2.GetRequest(key=b"a").SerializeToString(), kv_pb2.PutRequest(key=b"a").SerializeToString()
    caller.submit([call_of("Get", get, number) for number in range(2 * READS_AT_ONCE + 1)])
    assert [READS_AT_ONCE, READS_AT_ONCE, 1] == caller.sink.pieces
    caller.sink.pieces.clear()
    caller.submit([call_of("Put", put, -number) for number in range(1, 3 * READS_AT_ONCE)])
    assert [3 * READS_AT_ONCE - 1] == caller.sink.pieces


@pytest.mark.parametrize(
    ("method", "request_", "reason"),
    [
        ("Put", kv_pb2.PutRequest(key=b"k" * 401), "KEY_TOO_LONG"),
        ("Put", kv_pb2.PutRequest(key=b"k", value=bytes((1 << 20) + 1)), "VALUE_TOO_LARGE"),
        ("Put", kv_pb2.PutRequest(key=b"k", ttl_ms=1), "INVALID_REQUEST"),
        ("Put", kv_pb2.PutRequest(key=b"k", lease=1), "INVALID_REQUEST"),
        ("Get", kv_pb2.GetRequest(key=b"k", namespace=1), "INVALID_REQUEST"),
        ("Get", kv_pb2.GetRequest(key=b"k", consistency=9), "INVALID_REQUEST"),  # type: ignore[arg-type]
        ("Scan", kv_pb2.ScanRequest(consistency=9), "INVALID_REQUEST"),  # type: ignore[arg-type]
        ("Scan", kv_pb2.ScanRequest(namespace=1), "INVALID_REQUEST"),
        ("Scan", kv_pb2.ScanRequest(shard=0), "INVALID_REQUEST"),
        ("Scan", kv_pb2.ScanRequest(lo=bytes(500)), "KEY_TOO_LONG"),
        ("Put", kv_pb2.PutRequest(key=b"k", conditions=[types_pb2.Condition()]), "INVALID_REQUEST"),
        (
            "Put",
            kv_pb2.PutRequest(key=b"k", conditions=[types_pb2.Condition(version=1, comparison=77)]),  # type: ignore[arg-type]
            "INVALID_REQUEST",
        ),
        (
            "Put",
            kv_pb2.PutRequest(key=b"k", conditions=[types_pb2.Condition(key=b"j", exists=True)]),
            "INVALID_REQUEST",
        ),
        ("Put", kv_pb2.PutRequest(key=b"k", stamp=types_pb2.SessionStamp(session=1)), "INVALID_REQUEST"),
        ("Transaction", kv_pb2.TransactionRequest(), "INVALID_REQUEST"),
        ("Transaction", kv_pb2.TransactionRequest(then=[get_item(b"a"), get_item(b"b")]), "CROSS_SLOT"),
        (
            "Transaction",
            kv_pb2.TransactionRequest(then=[kv_pb2.Operation(transaction=kv_pb2.TransactionRequest())]),
            "INVALID_REQUEST",
        ),
        (
            "Transaction",
            kv_pb2.TransactionRequest(
                then=[kv_pb2.Operation(put=kv_pb2.PutRequest(key=b"a", stamp=types_pb2.SessionStamp(session=1)))]
            ),
            "INVALID_REQUEST",
        ),
        (
            "Transaction",
            kv_pb2.TransactionRequest(
                then=[kv_pb2.Operation(get=kv_pb2.GetRequest(key=b"a", consistency=types_pb2.CONSISTENCY_STALE))]
            ),
            "INVALID_REQUEST",
        ),
        ("CloseSession", kv_pb2.CloseSessionRequest(shard=1), "INVALID_REQUEST"),
        ("Batch", kv_pb2.BatchRequest(operations=[get_item(b"k")] * 1001), "BATCH_TOO_LARGE"),
        ("Batch", kv_pb2.BatchRequest(operations=[put_item(b"k", bytes(1 << 20))] * 4), "BATCH_TOO_LARGE"),
        ("Get", b"\xff\xff", "INVALID_REQUEST"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_requests_are_refused_before_the_node(
    caller: Caller, method: str, request_: Message | bytes, reason: str
) -> None:
    """What can never succeed is refused with its reason, and nothing of it reaches the node."""
    assert reason == caller.refused(method, request_)
    assert [] == caller.node.submitted


def test_the_cross_slot_message_explains_tags(caller: Caller) -> None:
    """The refusal of a transaction over two slots names the keys and says what to do."""
    answer = caller.answer("Transaction", kv_pb2.TransactionRequest(then=[get_item(b"a"), get_item(b"b")]))
    assert isinstance(answer, Refusal)
    for part in ("b'a'", "b'b'", "braces"):
        assert part in answer.message


def test_an_expired_call_is_not_submitted() -> None:
    """A deadline that has passed is refused as DEADLINE_EXPIRED, definite, and the node never sees the call."""
    clock = ManualClock(monotonic_ns=5_000)
    caller = Caller(MemoryNode(clock=clock))
    for method in REPLIES:
        assert "DEADLINE_EXPIRED" == caller.refused(method, b"", deadline_ns=5_000)
    assert [] == caller.node.submitted


def test_deadlines_are_given_and_cut() -> None:
    """A call without a deadline gets the default one; one that is too late is cut to the maximum."""
    clock = ManualClock(monotonic_ns=0)
    node = MemoryNode(clock=clock)
    caller = Caller(node, node.gateway(GatewaySettings(deadline_default_ms=70, deadline_max_ms=90)))
    request = kv_pb2.GetRequest(key=b"k")
    caller.answer("Get", request)
    caller.answer("Get", request, deadline_ns=80 * NS_PER_MS)
    caller.answer("Get", request, deadline_ns=1_000 * NS_PER_MS)
    assert [70, 80, 90] == [request.deadline_ns // NS_PER_MS for request in node.requests]


def test_errors_of_the_node_become_statuses(caller: Caller) -> None:
    """An error in a reply ends the call with its reason, shard and facts; in a batch it stands in the operation's place."""
    caller.node.fail = lambda _: NotLeader("elsewhere", metadata={"leader_address": OTHER_ADDRESS})
    answer = caller.answer("Put", kv_pb2.PutRequest(key=b"foo"))
    assert isinstance(answer, Refusal)
    info = details_of(answer.details)[1]["ErrorInfo"]
    assert ("NOT_LEADER", OTHER_ADDRESS, "3") == (
        info.reason,  # type: ignore[attr-defined]
        info.metadata["leader_address"],  # type: ignore[attr-defined]
        info.metadata["shard"],  # type: ignore[attr-defined]
    )
    caller.node.fail = lambda request: OutcomeUnknown("who knows") if request.slot == slot_of(b"foo") else None
    results = caller.batch(put_item(b"bar", b"1"), put_item(b"foo", b"1"), get_item(b"other"))[:2]
    assert ["put", "error"] == [result.WhichOneof("result") for result in results]
    assert ("OUTCOME_UNKNOWN", False, "3") == (
        results[1].error.reason,
        results[1].error.definite,
        results[1].error.metadata["shard"],
    )


def test_stale_reads_say_how_old_they_are(caller: Caller) -> None:
    """The consistency is handed on, and the reply's age comes back in the header."""
    reply = caller.reply("Get", kv_pb2.GetRequest(key=b"k", consistency=types_pb2.CONSISTENCY_STALE))
    assert isinstance(reply, kv_pb2.GetResponse)
    assert 40 == reply.header.age_ms
    assert [Consistency.STALE] == [request.consistency for request in caller.node.requests]


def test_replies_from_elsewhere_carry_a_hint(caller: Caller) -> None:
    """Where another node leads the shard, header and shard map say which; else the header has no hint."""
    shard = caller.put(b"k", b"v").header.shard
    assert "" == caller.get(b"k").header.leader_address
    caller.node.led_elsewhere.add(ShardId(shard))
    header = caller.get(b"k").header
    assert (OTHER_ADDRESS, EPOCH) == (header.leader_address, header.epoch)
    table = caller.reply("ShardMap", shard_map_pb2.ShardMapRequest())
    assert isinstance(table, shard_map_pb2.ShardMapResponse)
    assert OTHER_ADDRESS == {route.shard: route.leader_address for route in table.shards}[shard]


def test_the_shard_map_covers_all_slots(caller: Caller) -> None:
    """Every slot has one owner, and every named node an address."""
    table = caller.reply("ShardMap", shard_map_pb2.ShardMapRequest())
    assert isinstance(table, shard_map_pb2.ShardMapResponse)
    owned = sorted(slot for route in table.shards for pair in route.ranges for slot in range(pair.lo, pair.hi))
    assert list(range(16384)) == owned
    addresses = {node.node: node.client_address for node in table.nodes}
    assert all(node in addresses for route in table.shards for node in route.replica_nodes)
    assert (EPOCH, table.answered_by in addresses) == (table.epoch, True)


def test_the_authorizer_sees_method_keys_and_ranges() -> None:
    """Every call passes the hook with all its keys; what it forbids never reaches the node."""
    seen: list[tuple[str, list[bytes], tuple[bytes, bytes | None] | None]] = []

    class Only:
        def authorize(
            self, peer: Peer, method: str, keys: object, scanned: tuple[bytes, bytes | None] | None = None
        ) -> None:
            assert peer.address == "nowhere"
            seen.append((method.rpartition("/")[2], list(keys), scanned))  # type: ignore[call-overload]
            raise PermissionDenied("no")

    node = MemoryNode()
    gateway = Gateway(node, node, node.clock, node.limits, GatewaySettings(), Only())
    caller = Caller(node, gateway)
    assert "PERMISSION_DENIED" == caller.refused("Put", kv_pb2.PutRequest(key=b"k"))
    assert "PERMISSION_DENIED" == caller.refused("Scan", kv_pb2.ScanRequest(lo=b"a", hi=b"c"))
    assert "PERMISSION_DENIED" == caller.refused("ShardMap", shard_map_pb2.ShardMapRequest())
    assert "PERMISSION_DENIED" == caller.refused("OpenSession", kv_pb2.OpenSessionRequest(key=b"s"))
    transaction = kv_pb2.TransactionRequest(
        conditions=[types_pb2.Condition(key=b"{t}1", exists=True)],
        then=[get_item(b"{t}2")],
        otherwise=[get_item(b"{t}3")],
    )
    (result,) = caller.batch(kv_pb2.Operation(transaction=transaction))
    assert "PERMISSION_DENIED" == result.error.reason
    assert [
        ("Put", [b"k"], None),
        ("Scan", [], (b"a", b"c")),
        ("ShardMap", [], None),
        ("OpenSession", [b"s"], None),
        ("Batch", [b"{t}1", b"{t}2", b"{t}3"], None),
    ] == seen
    assert [] == node.submitted


def test_each_front_gets_the_answers_to_its_own_calls(caller: Caller) -> None:
    """Two fronts over one service do not see each other's answers, also when replies come late."""
    other = CollectingSink()
    service = KvService(caller.node.gateway())
    first, second = service.attach(caller.sink), service.attach(other)
    caller.node.hold = True
    message = kv_pb2.GetRequest(key=b"k").SerializeToString()
    first([call_of("Get", message, 1)])
    second([call_of("Get", message, 2), Call("/raftcache.v1.KvService/Scan", b"", 1 << 62, call_of("", b"").peer, 3)])
    caller.node.release()
    assert ([1], [2, 3]) == (sorted(caller.sink.answers, key=str), sorted(other.answers, key=str))


@given(st.sampled_from(sorted(REPLIES)), st.binary(max_size=60))
def test_no_bytes_break_the_service(method: str, data: bytes) -> None:
    """Whatever bytes come as a request, each call gets one answer or refusal."""
    caller = Caller(MemoryNode(shards=1))
    caller.answer(method, data)
    assert 1 == len(caller.sink.answers)
