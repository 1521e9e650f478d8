"""What may not be proposed is refused with its limit, the setting's name, the actual size, and what to do."""

import pytest

from raftcache.errors import BatchTooLarge, ConfigError, CrossSlot, InvalidRequest, KeyTooLong, ValueTooLarge
from raftcache.ids import Slot
from raftcache.kv.layout import DEFAULT_PREFIX, RECORD_KEY_BYTES_MAX
from raftcache.kv.limits import CEILINGS, KEY_BYTES_CEILING, KvLimits, check_operation, check_stamp
from raftcache.kv.operations import (
    SYSTEM_NAMESPACE,
    CloseSession,
    CompareAndSwap,
    Comparison,
    Condition,
    ConditionKind,
    Delete,
    Get,
    Increment,
    OpenSession,
    Operation,
    Put,
    PutMany,
    Scan,
    SessionStamp,
    SetOwnership,
    Transaction,
)
from raftcache.kv.slots import slot_of

LIMITS = KvLimits(key_bytes_max=10, value_bytes_max=20, transaction_operations_max=3, transaction_bytes_max=50)
EXISTS = ConditionKind.EXISTS


@pytest.mark.parametrize(
    "operation",
    [
        Get(b"k" * 10),
        Put(b"k", b""),
        Put(b"k", b"v" * 20, (Condition(b"k", EXISTS),), return_previous=True),
        Delete(b"k"),
        CompareAndSwap(b"k", None, b""),
        Increment(b"k", -(2**63), 2**63 - 1),
        Transaction((), (Put(b"k", b"1"), Get(b"k")), (Delete(b"k"),)),
        Transaction((Condition(b"{t}1", EXISTS),), (Put(b"{t}2", b""),)),
    ],
)
def test_what_keeps_to_the_limits_passes_with_its_slot(operation: Operation) -> None:
    """A legal operation on keys is let through, and its slot is the keys'."""
    if isinstance(operation, Transaction):
        key = operation.then[0].key
    else:
        assert not isinstance(operation, (Scan, PutMany, OpenSession, CloseSession, SetOwnership))
        key = operation.key
    assert slot_of(key) == check_operation(operation, LIMITS)


@pytest.mark.parametrize(
    "operation",
    [
        OpenSession(),
        CloseSession(5),
        PutMany([b"k", b"k" * 10], [b"", b"v" * 20]),
        Scan(b""),
        Scan(b"k" * 11, b"", limit=1),
    ],
)
def test_operations_of_a_whole_shard_have_no_slot(operation: Operation) -> None:
    """Sessions and scans concern the shard: slot -1."""
    assert Slot(-1) == check_operation(operation, LIMITS)


@pytest.mark.parametrize(
    ("operation", "error", "words"),
    [
        (Get(b""), InvalidRequest, ["empty"]),
        (Get(b"k" * 11), KeyTooLong, ["11 bytes", "limits.key_bytes_max", "allows 10", "shorten"]),
        (Put(b"k" * 11, b""), KeyTooLong, ["limits.key_bytes_max"]),
        (Put(b"k", b"v" * 21), ValueTooLarge, ["21 bytes", "limits.value_bytes_max", "allows 20", "compress"]),
        (CompareAndSwap(b"k", b"v" * 21, b""), ValueTooLarge, ["limits.value_bytes_max"]),
        (Put(b"k", b"", ttl_ms=5), InvalidRequest, ["`ttl_ms` is 5", "reserved"]),
        (CompareAndSwap(b"k", None, b"", lease=6), InvalidRequest, ["`lease` is 6", "reserved"]),
        (Put(b"k", b"", namespace=9), InvalidRequest, ["namespace 9 is reserved"]),
        (Get(b"k", SYSTEM_NAMESPACE), InvalidRequest, ["namespace 1", "cluster's own"]),
        (Scan(b"", namespace=SYSTEM_NAMESPACE), InvalidRequest, ["cluster's own"]),
        (SetOwnership((), 1), InvalidRequest, ["cluster itself"]),
        (CloseSession(0), InvalidRequest, ["session is 0"]),
        (PutMany([], []), InvalidRequest, ["0 keys and 0 values"]),
        (PutMany([b"k"], []), InvalidRequest, ["1 keys and 0 values"]),
        (PutMany([b"k", b""], [b"", b""]), InvalidRequest, ["empty"]),
        (PutMany([b"k", b"k" * 11], [b"", b""]), KeyTooLong, ["limits.key_bytes_max"]),
        (PutMany([b"k", b"l"], [b"", b"v" * 21]), ValueTooLarge, ["21 bytes"]),
        (Put(b"k", b"", (Condition(b"other", EXISTS),)), InvalidRequest, ["need a transaction"]),
        (Put(b"k", b"", (Condition(b"k", EXISTS, Comparison.LESS),)), InvalidRequest, ["EXISTS", "EQUAL"]),
        (Delete(b"k", (Condition(b"k", EXISTS),) * 4), BatchTooLarge, ["4 conditions"]),
        (Increment(b"k", 2**63), InvalidRequest, ["delta", str(2**63)]),
        (Increment(b"k", 1, -(2**63) - 1), InvalidRequest, ["initial"]),
        (Scan(b"", limit=0), InvalidRequest, ["limits.scan_entries_max", "next_key"]),
        (Scan(b"", limit=10**6), InvalidRequest, ["limits.scan_entries_max allows 1 to 4096"]),
        (Scan(b"", bytes_max=1 << 30), InvalidRequest, ["limits.scan_bytes_max"]),
        (Scan(b"k" * 12), KeyTooLong, ["`lo`"]),
        (Scan(b"", b"k" * 12), KeyTooLong, ["`hi`"]),
        (Transaction(), InvalidRequest, ["no key"]),
        (Transaction((), (Get(b"k"),) * 4), BatchTooLarge, ["`then`", "4 items", "transaction_operations_max", "3"]),
        (
            Transaction((), (), (Put(b"a", b"v" * 20), Put(b"{a}", b"v" * 20), Put(b"b{a}", b"v" * 9))),
            BatchTooLarge,
            ["57"],
        ),
        (
            Transaction((Condition(b"k", ConditionKind.VALUE, value=b"v" * 20),) * 3, (), (Get(b"k"),)),
            BatchTooLarge,
            ["64"],
        ),
        (Transaction((), (Put(b"k", b""), Delete(b"k"))), InvalidRequest, ["b'k'", "written twice"]),
        (Transaction((), (Put(b"k", b"", (Condition(b"k", EXISTS),)),)), InvalidRequest, ["conditions of its own"]),
        (Transaction((), (Get(b"k", namespace=1),)), InvalidRequest, ["namespace 1, its transaction in 0"]),
        (Transaction((), (), (Put(b"k", b"v" * 21),)), ValueTooLarge, ["21 bytes"]),
    ],
)
def test_refusals_name_limit_setting_and_remedy(
    operation: Operation, error: type[InvalidRequest], words: list[str]
) -> None:
    """Each refusal is of its class, and its message says what the caller needs."""
    with pytest.raises(InvalidRequest) as refusal:
        check_operation(operation, LIMITS)
    assert error is type(refusal.value)
    for word in words:
        assert word in refusal.value.message


def test_limit_errors_carry_their_facts_for_machines() -> None:
    """Setting, limit and actual size are in the metadata."""
    with pytest.raises(KeyTooLong) as refusal:
        check_operation(Get(b"k" * 11), LIMITS)
    assert {"setting": "limits.key_bytes_max", "limit": "10", "actual": "11"} == refusal.value.metadata


def test_keys_of_two_slots_are_named_with_the_remedy() -> None:
    """CrossSlot names two keys, their slots, and explains tags."""
    with pytest.raises(CrossSlot) as refusal:
        check_operation(Transaction((Condition(b"foo", EXISTS),), (), (Get(b"bar"),)), LIMITS)
    for word in ("b'foo' (slot 12182)", "b'bar' (slot 5061)", "{user1}name"):
        assert word in refusal.value.message


def test_a_long_key_is_cut_in_messages() -> None:
    """An error about a key of a megabyte is not a megabyte long."""
    with pytest.raises(KeyTooLong) as refusal:
        check_operation(Get(b"k" * (1 << 20)), LIMITS)
    assert len(refusal.value.message) < 500


def test_internal_callers_may_use_the_system_namespace() -> None:
    """The node itself reads and writes the catalog; those operations have no slot, and may span slots."""
    transaction = Transaction((), (Put(b"foo", b"", namespace=1), Put(b"bar", b"", namespace=1)), namespace=1)
    for operation in (Get(b"k", 1), Put(b"k", b"", namespace=1), Scan(b"", namespace=1), transaction):
        assert Slot(-1) == check_operation(operation, LIMITS, internal=True)
    assert Slot(-1) == check_operation(SetOwnership(((Slot(0), Slot(1)),), 3), LIMITS, internal=True)


@pytest.mark.parametrize("ranges", [((5, 5),), ((0, 16385),), ((5, 9), (8, 10)), ((5, 9), (0, 1)), ((-1, 4),)])
def test_slot_ranges_that_make_no_sense_are_refused(ranges: tuple[tuple[Slot, Slot], ...]) -> None:
    """Ranges are non-empty, ascending, disjoint and inside the slots."""
    with pytest.raises(InvalidRequest, match="slot range"):
        check_operation(SetOwnership(ranges, 1), LIMITS, internal=True)


@pytest.mark.parametrize(
    "stamp",
    [
        SessionStamp(0, 1, 1),
        SessionStamp(1, 0, 1),
        SessionStamp(1, 1, 0),
        SessionStamp(1, 4, 5),
        SessionStamp(2**64, 1, 1),
        SessionStamp(1, 2**64, 1),
    ],
)
def test_stamps_that_make_no_sense_are_refused(stamp: SessionStamp) -> None:
    """Sessions and numbers start at 1 and have 64 bits, and nobody acknowledges the reply that is being asked for."""
    with pytest.raises(InvalidRequest):
        check_stamp(stamp)


@pytest.mark.parametrize(
    ("name", "ceiling"),
    [
        ("key_bytes_max", 506),
        ("value_bytes_max", 16 << 20),
        ("transaction_operations_max", 1024),
        ("transaction_bytes_max", 32 << 20),
        ("scan_entries_max", 1 << 20),
        ("scan_bytes_max", 64 << 20),
        ("session_window", 65_536),
        ("session_reply_bytes_max", 32 << 20),
        ("session_reply_bytes_total_max", 1 << 32),
        ("sessions_max", 1 << 24),
    ],
)
def test_each_limit_may_be_what_the_format_holds_and_not_one_more(name: str, ceiling: int) -> None:
    """Whoever sets a limit to its ceiling gets it."""
    assert ceiling == getattr(KvLimits(**{name: ceiling}), name)
    with pytest.raises(ConfigError, match=name):
        KvLimits(**{name: ceiling + 1})


def test_limits_above_their_ceiling_are_refused() -> None:
    """A limit that the format cannot hold is a configuration error that names it."""
    with pytest.raises(ConfigError, match=r"limits\.key_bytes_max is 507; it must lie in \[1, 506\]"):
        KvLimits(key_bytes_max=507)
    with pytest.raises(ConfigError, match="session_window"):
        KvLimits(session_window=0)
    with pytest.raises(ConfigError, match="push"):
        KvLimits(session_reply_bytes_max=2, session_reply_bytes_total_max=1)


def test_the_longest_key_fits_the_records() -> None:
    """Prefix and longest key are what LMDB takes, and no byte more."""
    assert RECORD_KEY_BYTES_MAX == len(DEFAULT_PREFIX) + KEY_BYTES_CEILING
    assert CEILINGS.key_bytes_max == KEY_BYTES_CEILING
