"""Batches of plain puts: what goes the short way, and that nobody can tell from the answer."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from raftcache.errors import NotLeader, PermissionDenied
from raftcache.gateway.gateway import GatewaySettings
from raftcache.ids import ShardId
from raftcache.kv.operations import Put, PutMany
from raftcache.kv.slots import slot_of
from raftcache.v1 import kv_pb2, types_pb2
from tests.gateway.memory_node import OTHER_ADDRESS, MemoryNode
from tests.gateway.test_kv_service import Caller, get_item, put_item

KEYS = st.binary(max_size=200)
VALUES = st.binary(max_size=300)
PLAIN = st.builds(put_item, KEYS.filter(bool), VALUES)


@st.composite
def decorated(draw: st.DrawFn) -> kv_pb2.Operation:
    """A put with one thing in it that needs more than a put."""
    item = draw(PLAIN)
    put = item.put
    extra = draw(st.integers(0, 7))
    if extra == 0:
        put.return_previous = True
    elif extra == 1:
        put.conditions.add(key=put.key, exists=draw(st.booleans()))
    elif extra == 2:
        put.ttl_ms = 1
    elif extra == 3:
        put.lease = 1
    elif extra == 4:
        put.namespace = draw(st.integers(1, 2))
    elif extra == 5:
        put.stamp.CopyFrom(types_pb2.SessionStamp(session=1, sequence=1, first_unacked=1))
    elif extra == 6:
        put.key = b""
    else:
        return get_item(put.key)
    return item


def went_the_short_way(caller: Caller) -> bool:
    return any(isinstance(request.operation, PutMany) for request in caller.node.requests)


@given(st.lists(PLAIN, min_size=1, max_size=8))
def test_plain_puts_are_answered_as_if_sent_alone(items: list[kv_pb2.Operation]) -> None:
    """The same keys, revisions, headers and results; one request to each shard in place of one for each put."""
    together, alone = Caller(MemoryNode()), Caller(MemoryNode())
    results = together.batch(*items)
    assert went_the_short_way(together)
    assert len({slot_of(item.put.key) for item in items}) >= len(together.node.requests)
    for item, result in zip(items, results, strict=True):
        expected = alone.put(item.put.key, item.put.value)
        # Puts of one request share their log entry.
        assert result.put.header.index <= expected.header.index
        expected.header.index = result.put.header.index
        assert expected == result.put
    for item in items:
        assert alone.get(item.put.key).entry == together.get(item.put.key).entry


@given(st.lists(PLAIN, max_size=4), decorated(), st.lists(PLAIN, max_size=4))
def test_whatever_needs_more_than_a_put_goes_the_long_way(
    before: list[kv_pb2.Operation], one: kv_pb2.Operation, after: list[kv_pb2.Operation]
) -> None:
    """One of them among any number of plain puts is enough; nothing of it is overlooked."""
    caller = Caller(MemoryNode())
    assert len(before) + 1 + len(after) == len(caller.batch(*before, one, *after))
    assert not went_the_short_way(caller)


def test_other_encodings_of_a_plain_put_go_the_long_way_and_mean_the_same() -> None:
    """Fields out of order, twice, unknown, or empty and yet there: protobuf allows it all, and the size shows it."""
    key, value = b"\x0a\x01k", b"\x12\x01v"
    for put in (key + b"\x12\x00" + value, value + key + b"\x0a\x01k", key + value + b"\xf8\x07\x01"):
        operation = b"\x12" + bytes([len(put)]) + put
        caller = Caller(MemoryNode())
        answer = caller.answer("Batch", b"\x0a" + bytes([len(operation)]) + operation)
        assert isinstance(answer, bytes)
        assert kv_pb2.BatchResponse.FromString(answer).results[0].put.succeeded
        assert b"v" == caller.get(b"k").entry.value
        assert not went_the_short_way(caller)


def test_limits_hold_for_plain_puts() -> None:
    """What is too large gets its error in its place, and the others are carried out."""
    caller = Caller(MemoryNode())
    results = caller.batch(put_item(b"a", b"1"), put_item(bytes(1000), b"1"), put_item(b"b", bytes(2 << 20)))
    assert ["", "KEY_TOO_LONG", "VALUE_TOO_LARGE"] == [result.error.reason for result in results]
    assert b"1" == caller.get(b"a").entry.value


def test_plain_puts_are_authorized() -> None:
    """Each key is: those that the caller may not write get their error in their place."""

    class NotThese:
        def authorize(self, peer: object, method: str, keys: object, scanned: object = None) -> None:
            assert isinstance(keys, (list, tuple))
            if b"secret" in keys:
                raise PermissionDenied("not this key")

    node = MemoryNode()
    caller = Caller(node, replace(node.gateway(GatewaySettings()), authorizer=NotThese()))
    results = caller.batch(put_item(b"a", b"1"), put_item(b"secret", b"1"))
    assert ["", "PERMISSION_DENIED"] == [result.error.reason for result in results]
    assert not went_the_short_way(caller)


def test_an_error_of_a_shard_is_the_error_of_each_of_its_puts() -> None:
    """The puts of other shards are not touched by it."""
    caller = Caller(MemoryNode())
    caller.node.fail = lambda request: (
        NotLeader("elsewhere", metadata={"leader_address": OTHER_ADDRESS}) if request.shard == ShardId(1) else None
    )
    keys = [b"k%d" % number for number in range(30)]
    results = caller.batch(*[put_item(key, b"v") for key in keys])
    for key, result in zip(keys, results, strict=True):
        assert result.HasField("error") == (caller.node.shard_of(slot_of(key)) == 1)
        if result.HasField("error"):
            assert ("NOT_LEADER", "1") == (result.error.reason, result.error.metadata["shard"])
        else:
            assert result.put.succeeded


def test_puts_to_a_slot_that_moved_are_sent_once_more_by_themselves() -> None:
    """The shard that has the slot now carries them out, after the others; in their order where they share a key."""
    node = MemoryNode(shards=2)
    caller = Caller(node)
    moved = slot_of(b"k")
    old = node.shard_of(moved)
    new = ShardId(3 - old)
    node.machines[old]._owned = _without(node.machines[old]._owned, moved)
    node.machines[new]._owned = b"\1" * 16384
    node.shard_of = lambda slot: new if slot == moved else old  # type: ignore[method-assign]
    owners = [old] * 16384
    node.slot_owners = lambda: owners  # type: ignore[method-assign]
    stays = [key for key in (b"k%d" % number for number in range(99)) if node.machines[old]._owned[slot_of(key)]][:3]
    results = caller.batch(
        put_item(stays[0], b"1"), put_item(b"k", b"1"), put_item(stays[1], b"1"), put_item(b"k", b"2")
    )
    assert [old, new, old, new] == [result.put.header.shard for result in results]
    assert all(result.put.succeeded for result in results)
    assert [1, 1, 2, 2] == [result.put.header.revision for result in results]
    assert [PutMany, Put, Put] == [type(request.operation) for request in node.requests]
    assert b"2" == caller.get(b"k").entry.value


def _without(owned: bytes, slot: int) -> bytes:
    return owned[:slot] + b"\0" + owned[slot + 1 :]
