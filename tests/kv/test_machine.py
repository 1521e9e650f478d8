"""What each command does to the state, and what it answers."""

import pytest

from raftcache.errors import Corruption, UnsupportedVersion
from raftcache.ids import Index, Revision, Slot, Term
from raftcache.kv import limits as kv_limits
from raftcache.kv.codec import encode_batch
from raftcache.kv.layout import DEFAULT_PREFIX, seal
from raftcache.kv.limits import KvLimits
from raftcache.kv.machine import Machine
from raftcache.kv.meta import OWNERSHIP_KEY, STATE_KEY
from raftcache.kv.operations import (
    SYSTEM_NAMESPACE,
    Command,
    CompareAndSwap,
    Comparison,
    Condition,
    ConditionKind,
    Delete,
    Failure,
    Get,
    GetResult,
    Increment,
    IncrementResult,
    KeyEntry,
    Put,
    PutMany,
    PutManyResult,
    Scan,
    SetOwnership,
    Transaction,
    TransactionOperation,
    TransactionResult,
    WriteOperation,
    WriteResult,
)
from raftcache.kv.records import MemoryRecords
from raftcache.kv.slots import slot_of
from tests.kv.shard import TERM, Shard

FOO_SLOT = slot_of(b"foo")
BAR_SLOT = slot_of(b"bar")


def entry(key: bytes, value: bytes, *, version: int, create: int, mod: int) -> KeyEntry:
    return KeyEntry(key, value, version, create, mod)  # type: ignore[arg-type]


def done(revision: int) -> WriteResult:
    return WriteResult(revision)  # type: ignore[arg-type]


@pytest.fixture
def shard() -> Shard:
    return Shard()


# --- Single keys ---------------------------------------------------------------------------------------------------


def test_a_put_creates_and_then_overwrites(shard: Shard) -> None:
    """Version counts the writes, the create revision stays, and each put is one revision."""
    assert [done(1), done(2), done(3)] == shard.run(Put(b"a", b"1"), Put(b"b", b"1"), Put(b"a", b""))
    assert entry(b"a", b"", version=2, create=1, mod=3) == shard.get(b"a")
    assert 2 == shard.machine.record_count
    shard.assert_verified()


def test_a_deleted_key_starts_over(shard: Shard) -> None:
    """Delete answers whether the key was there, and what it was if asked; the next put is version 1 again."""
    shard.run(Put(b"a", b"1"), Put(b"a", b"2"))
    result = shard.one(Delete(b"a", return_previous=True))
    previous = entry(b"a", b"2", version=2, create=1, mod=2)
    assert WriteResult(3, True, previous, None, True) == result  # type: ignore[arg-type]
    assert shard.get(b"a") is None
    shard.one(Put(b"a", b"3"))
    assert entry(b"a", b"3", version=1, create=4, mod=4) == shard.get(b"a")
    shard.assert_verified()


def test_deleting_an_absent_key_succeeds_and_is_no_revision(shard: Shard) -> None:
    """Nothing changed, so nothing is counted."""
    shard.one(Put(b"a", b"1"))
    assert done(1) == shard.one(Delete(b"b"))
    assert 1 == shard.machine.revision


def test_a_put_returns_what_was_there_if_asked(shard: Shard) -> None:
    """`return_previous` gives the old entry, None where there was none."""
    assert done(1) == shard.one(Put(b"a", b"1", return_previous=True))
    result = shard.one(Put(b"a", b"2", return_previous=True))
    assert WriteResult(2, True, entry(b"a", b"1", version=1, create=1, mod=1)) == result  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("condition", "on_present", "on_absent"),
    [
        (Condition(b"k", ConditionKind.ABSENT), False, True),
        (Condition(b"k", ConditionKind.EXISTS), True, False),
        (Condition(b"k", ConditionKind.VERSION, number=2), True, False),
        (Condition(b"k", ConditionKind.VERSION, Comparison.GREATER, 1), True, False),
        (Condition(b"k", ConditionKind.VERSION, Comparison.GREATER, 2), False, False),
        (Condition(b"k", ConditionKind.VERSION, Comparison.LESS, 1), False, True),
        (Condition(b"k", ConditionKind.VERSION, Comparison.LESS, 2), False, True),
        (Condition(b"k", ConditionKind.VERSION, Comparison.EQUAL, 0), False, True),
        (Condition(b"k", ConditionKind.CREATE_REVISION, number=1), True, False),
        (Condition(b"k", ConditionKind.MOD_REVISION, number=2), True, False),
        (Condition(b"k", ConditionKind.MOD_REVISION, Comparison.NOT_EQUAL, 2), False, True),
        (Condition(b"k", ConditionKind.VALUE, value=b"v2"), True, False),
        (Condition(b"k", ConditionKind.VALUE, Comparison.NOT_EQUAL, value=b"x"), True, False),
        (Condition(b"k", ConditionKind.VALUE, Comparison.GREATER, value=b"v1"), True, False),
        (Condition(b"k", ConditionKind.VALUE, Comparison.LESS, value=b"v1"), False, False),
        (Condition(b"k", ConditionKind.VALUE, Comparison.EQUAL, value=b""), False, False),
    ],
)
def test_conditions_decide_over_present_and_absent_keys(
    condition: Condition, on_present: bool, on_absent: bool
) -> None:
    """An absent key compares as version and revision 0, and no comparison with its value is true."""
    for write in (Put(b"k", b"new", (condition,)), Delete(b"k", (condition,))):
        shard = Shard()
        shard.run(Put(b"k", b"v1"), Put(b"k", b"v2"))
        present = shard.one(write)
        assert isinstance(present, WriteResult)
        assert on_present == present.succeeded
        assert (None if on_present else entry(b"k", b"v2", version=2, create=1, mod=2)) == present.current
        absent = Shard().one(write)
        assert isinstance(absent, WriteResult)
        assert (on_absent, None) == (absent.succeeded, absent.current)


def test_a_put_needs_all_its_conditions(shard: Shard) -> None:
    """One false condition is enough, and it changes nothing."""
    shard.one(Put(b"k", b"1"))
    conditions = (Condition(b"k", ConditionKind.EXISTS), Condition(b"k", ConditionKind.VERSION, number=9))
    result = shard.one(Put(b"k", b"2", conditions))
    assert WriteResult(1, False, None, entry(b"k", b"1", version=1, create=1, mod=1)) == result  # type: ignore[arg-type]
    assert b"1" == shard.value(b"k")


def test_compare_and_swap_writes_only_over_what_was_expected(shard: Shard) -> None:
    """Absent, equal, different: what fails says what is there."""
    assert done(1) == shard.one(CompareAndSwap(b"k", None, b"1"))
    lost = shard.one(CompareAndSwap(b"k", None, b"2"))
    assert WriteResult(1, False, None, entry(b"k", b"1", version=1, create=1, mod=1)) == lost  # type: ignore[arg-type]
    assert done(2) == shard.one(CompareAndSwap(b"k", b"1", b"2"))
    assert isinstance(shard.one(CompareAndSwap(b"absent", b"1", b"2")), WriteResult)
    assert shard.get(b"absent") is None
    # An empty value is a value, and not the same as none.
    shard.one(Put(b"empty", b""))
    assert not shard.one(CompareAndSwap(b"empty", None, b"x")).succeeded  # type: ignore[union-attr]
    assert shard.one(CompareAndSwap(b"empty", b"", b"x")).succeeded  # type: ignore[union-attr]
    shard.assert_verified()


# --- Numbers -------------------------------------------------------------------------------------------------------


def test_increment_counts_from_the_initial_value(shard: Shard) -> None:
    """`initial` where the key is absent, then the delta; the value is plain decimal."""
    assert IncrementResult(1, 11) == shard.one(Increment(b"n", 1, 10))  # type: ignore[arg-type]
    assert IncrementResult(2, -9) == shard.one(Increment(b"n", -20, 10))  # type: ignore[arg-type]
    assert b"-9" == shard.value(b"n")


@pytest.mark.parametrize(("start", "delta"), [(2**63 - 1, 1), (-(2**63), -1), (1, 2**63 - 1)])
def test_overflow_is_refused_and_changes_nothing(shard: Shard, start: int, delta: int) -> None:
    """Numbers are signed 64-bit; they never wrap."""
    shard.one(Put(b"n", b"%d" % start))
    failure = shard.refused(Increment(b"n", delta))
    assert "INVALID_REQUEST" == failure.reason
    assert str(start + delta) in failure.message
    assert b"%d" % start == shard.value(b"n")


@pytest.mark.parametrize(
    "value",
    [b"", b"x", b"+1", b" 1", b"1 ", b"01", b"-0", b"1_0", b"0x1", b"1.0", b"-", b"9223372036854775808", b"1" * 400,
     "١".encode()],
)  # fmt: skip
def test_what_is_no_number_is_not_incremented(shard: Shard, value: bytes) -> None:
    """Only the form that increments write is a number."""
    shard.one(Put(b"n", value))
    failure = shard.refused(Increment(b"n"))
    assert "INVALID_REQUEST" == failure.reason
    assert "no signed 64-bit number" in failure.message


def test_the_extreme_numbers_are_numbers(shard: Shard) -> None:
    """Both ends of 64 bits are reached, and left again."""
    shard.run(Put(b"n", b"%d" % (2**63 - 2)), Increment(b"n"), Put(b"m", b"%d" % -(2**63)), Increment(b"m"))
    assert (b"%d" % (2**63 - 1), b"%d" % (1 - 2**63)) == (shard.value(b"n"), shard.value(b"m"))


# --- Transactions --------------------------------------------------------------------------------------------------


def test_a_transaction_happens_at_one_revision(shard: Shard) -> None:
    """All writes and all results carry the same revision; reads see the writes before them."""
    shard.one(Put(b"{t}a", b"1"))
    operations: tuple[TransactionOperation, ...] = (
        Get(b"{t}b"),
        Put(b"{t}b", b"2"),
        Get(b"{t}b"),
        Delete(b"{t}a"),
        Get(b"{t}a"),
        Increment(b"{t}n", 5),
        CompareAndSwap(b"{t}c", None, b"3"),
    )
    result = shard.one(Transaction((Condition(b"{t}a", ConditionKind.EXISTS),), operations))
    assert isinstance(result, TransactionResult)
    assert (True, 2) == (result.succeeded, result.revision)
    assert [2] * 7 == [inner.revision for inner in result.results if not isinstance(inner, Failure)]
    gets = [inner.entry for inner in result.results if isinstance(inner, GetResult)]
    assert [None, entry(b"{t}b", b"2", version=1, create=2, mod=2), None] == gets
    assert (None, b"2", b"5", b"3") == tuple(shard.value(b"{t}" + key) for key in (b"a", b"b", b"n", b"c"))
    assert 2 == shard.machine.revision
    shard.assert_verified()


def test_the_other_branch_runs_where_a_condition_fails(shard: Shard) -> None:
    """Exactly one branch runs, and the result says which."""
    condition = Condition(b"k", ConditionKind.EXISTS)
    result = shard.one(Transaction((condition,), (Put(b"k", b"then"),), (Put(b"k", b"otherwise"),)))
    assert TransactionResult(1, False, [done(1)]) == result  # type: ignore[arg-type]
    assert b"otherwise" == shard.value(b"k")


def test_a_transaction_that_writes_nothing_is_no_revision(shard: Shard) -> None:
    """Reads, deletes of absent keys and lost swaps leave the revision, in their results too."""
    shard.one(Put(b"k", b"1"))
    result = shard.one(Transaction((), (Get(b"k"), Delete(b"x{k}"), CompareAndSwap(b"{k}", b"1", b"2"))))
    assert isinstance(result, TransactionResult)
    assert [1, 1, 1] == [inner.revision for inner in result.results if not isinstance(inner, Failure)]
    assert 1 == shard.machine.revision == result.revision


def test_a_refusal_inside_a_transaction_undoes_all_of_it(shard: Shard) -> None:
    """The writes before the operation that cannot be are not made either."""
    shard.one(Put(b"{t}n", b"no number"))
    failure = shard.refused(Transaction((), (Put(b"{t}a", b"1"), Delete(b"{t}n"), Increment(b"{t}a"))))
    assert "written twice" in failure.message
    failure = shard.refused(Transaction((), (Put(b"{t}a", b"1"), Increment(b"{t}n"))))
    assert "no signed 64-bit number" in failure.message
    assert shard.get(b"{t}a") is None


def test_a_lost_swap_inside_a_transaction_leaves_the_rest(shard: Shard) -> None:
    """It is a result, not a refusal; what must hold for all belongs into the conditions."""
    result = shard.one(Transaction((), (CompareAndSwap(b"{t}a", b"x", b"1"), Put(b"{t}b", b"2"))))
    assert isinstance(result, TransactionResult)
    assert not result.results[0].succeeded  # type: ignore[union-attr]
    assert b"2" == shard.value(b"{t}b")


def test_a_transaction_with_too_large_results_is_refused(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it reads is bounded, before it writes anything."""
    monkeypatch.setattr("raftcache.kv.evaluation.TRANSACTION_REPLY_BYTES_CEILING", 10)
    shard.run(Put(b"{t}a", b"v" * 6), Put(b"{t}b", b"v" * 6))
    shard.one(Transaction((), (Get(b"{t}a"), Put(b"{t}c", b""))))
    failure = shard.refused(Transaction((), (Put(b"{t}c", b"1"), Get(b"{t}a"), Get(b"{t}b"))))
    assert "BATCH_TOO_LARGE" == failure.reason


# --- What may not be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (Put(b"", b"v"), "INVALID_REQUEST"),
        (Put(b"k" * 507, b"v"), "KEY_TOO_LONG"),
        (Put(b"k", b"v" * (kv_limits.VALUE_BYTES_CEILING + 1)), "VALUE_TOO_LARGE"),
        (Put(b"k", b"v", ttl_ms=1), "INVALID_REQUEST"),
        (Put(b"k", b"v", lease=1), "INVALID_REQUEST"),
        (Put(b"k", b"v", namespace=2), "INVALID_REQUEST"),
        (Delete(b""), "INVALID_REQUEST"),
        (Put(b"k", b"v", (Condition(b"other", ConditionKind.EXISTS),)), "INVALID_REQUEST"),
        (Transaction((), (Put(b"foo", b""), Put(b"bar", b""))), "CROSS_SLOT"),
        (Transaction(), "INVALID_REQUEST"),
    ],
)
def test_bad_commands_in_the_log_are_failures(shard: Shard, operation: WriteOperation, reason: str) -> None:
    """Whatever a gateway let through by mistake is refused at apply, the commands around it are applied."""
    shard.one(Put(b"k", b"1"))
    assert reason == shard.refused(operation).reason
    before, bad, after = shard.run(Put(b"x", b""), operation, Put(b"y", b""))
    assert isinstance(bad, Failure)
    assert [done(2), done(3)] == [before, after]


def test_apply_holds_to_ceilings_and_not_to_settings() -> None:
    """A node's limits decide no state: nodes with other settings must answer the same."""
    shard = Shard(limits=KvLimits(key_bytes_max=1, value_bytes_max=1))
    assert done(1) == shard.one(Put(b"k" * 506, b"v" * 1000))


def test_a_slot_that_is_not_the_keys_is_refused(shard: Shard) -> None:
    """The slot in a command is checked against its key, or the hash of another slot would carry it."""
    for operation in (Put(b"foo", b""), Delete(b"foo"), Transaction((), (Put(b"foo", b""),))):
        for slot in (BAR_SLOT, Slot(-1)):
            (result,) = shard.apply(encode_batch([Command(operation, slot)], proposed_ms=0))
            assert isinstance(result, Failure)
            assert f"slot {FOO_SLOT}, and was sent as of slot {slot}" in result.message
    assert isinstance(shard.machine.read(Get(b"foo"), BAR_SLOT), Failure)


# --- Ownership -----------------------------------------------------------------------------------------------------


def test_slots_of_others_are_refused_in_writes_and_reads() -> None:
    """WRONG_SHARD, with shard, slot and epoch, for whatever the shard does not own."""
    shard = Shard(ranges=((FOO_SLOT, Slot(FOO_SLOT + 1)),))
    shard.one(Put(b"foo", b"1"))
    for operation in (Put(b"bar", b"1"), Increment(b"bar"), Transaction((), (Put(b"bar", b""),))):
        failure = shard.refused(operation)
        assert ("WRONG_SHARD", True) == (failure.reason, f"slot {BAR_SLOT}" in failure.message)
    for result in (shard.machine.read(Get(b"bar"), BAR_SLOT), shard.machine.read(Scan(b""), BAR_SLOT)):
        assert isinstance(result, Failure)
        assert "WRONG_SHARD" == result.reason
    assert isinstance(shard.machine.read(Scan(b""), FOO_SLOT), type(shard.scan(Scan(b""))))


def test_many_puts_are_as_many_puts() -> None:
    """Each has its revision in order, the last one of a key stays, and what is not owned is named and not written."""
    shard = Shard(ranges=((FOO_SLOT, Slot(FOO_SLOT + 1)),))
    other = Shard(ranges=((FOO_SLOT, Slot(FOO_SLOT + 1)),))
    shard.one(Put(b"foo", b"0"))
    other.one(Put(b"foo", b"0"))
    keys = [b"foo", b"bar", b"{foo}2", b"foo", b"{bar}"]
    many = shard.one(PutMany(keys, [b"1", b"2", b"3", b"4", b"5"]))
    assert PutManyResult(Revision(4), 5, (1, 4)) == many
    for key, value in ((b"foo", b"1"), (b"{foo}2", b"3"), (b"foo", b"4")):
        other.one(Put(key, value))
    assert other.scan(Scan(b"")) == shard.scan(Scan(b""))
    assert other.machine.state_hash == shard.machine.state_hash
    shard.assert_verified()


def test_a_damaged_record_stops_many_puts(shard: Shard) -> None:
    """What is overwritten is verified first, as in any write."""
    shard.one(Put(b"foo", b"1"))
    key = DEFAULT_PREFIX + b"foo"
    record = bytearray(shard.records.get(key) or b"")
    record[-9] ^= 1
    shard.records.put(key, bytes(record))
    with pytest.raises(Corruption, match="fails its checksum"):
        shard.one(PutMany([b"bar", b"foo"], [b"", b""]))


def test_ownership_changes_at_a_higher_epoch_only(shard: Shard) -> None:
    """Repeating it is fine, going back is not, and the revision stays."""
    mine = ((Slot(0), FOO_SLOT), (Slot(FOO_SLOT + 1), Slot(16384)))
    shard.run(Put(b"foo", b"1"), Put(b"bar", b"1"))
    assert done(2) == shard.one(SetOwnership(mine, 5))
    assert done(2) == shard.one(SetOwnership(mine, 5))
    assert "PRECONDITION_FAILED" == shard.refused(SetOwnership((), 5)).reason
    assert "PRECONDITION_FAILED" == shard.refused(SetOwnership(mine, 4)).reason
    assert "INVALID_REQUEST" == shard.refused(SetOwnership(((Slot(4), Slot(2)),), 9)).reason
    assert "WRONG_SHARD" == shard.refused(Put(b"foo", b"2")).reason
    shard.reload()
    assert (mine, 5) == (shard.machine.ranges, shard.machine.epoch)


def test_keys_of_given_away_slots_disappear_from_scans(shard: Shard) -> None:
    """Until they are swept the records are there, but nobody reads them; back they are when the slot is."""
    shard.run(Put(b"foo", b"1"), Put(b"bar", b"1"))
    shard.one(SetOwnership(((Slot(0), FOO_SLOT),), 2))
    for _ in range(2):
        assert [b"bar"] == [found.key for found in shard.scan(Scan(b"")).entries]
        assert 2 == shard.machine.record_count
        shard.reload()
    assert 1 == Machine.verify(shard.records).foreign_count
    shard.one(SetOwnership(((Slot(0), Slot(16384)),), 3))
    assert [b"bar", b"foo"] == [found.key for found in shard.scan(Scan(b"")).entries]


# --- Namespaces ----------------------------------------------------------------------------------------------------


def test_the_system_namespace_is_apart_and_needs_no_slot() -> None:
    """The same key in two namespaces is two keys; the system's need no ownership, and its transactions span slots."""
    shard = Shard(ranges=())
    assert "WRONG_SHARD" == shard.refused(Put(b"foo", b"client")).reason
    operations = (Put(b"foo", b"1", namespace=SYSTEM_NAMESPACE), Put(b"bar", b"2", namespace=SYSTEM_NAMESPACE))
    result = shard.one(Transaction((), operations, namespace=SYSTEM_NAMESPACE))
    assert isinstance(result, TransactionResult)
    found = shard.get(b"foo", SYSTEM_NAMESPACE)
    assert found is not None
    assert b"1" == found.value
    assert [b"bar", b"foo"] == [one.key for one in shard.scan(Scan(b"", namespace=SYSTEM_NAMESPACE)).entries]
    assert [] == shard.scan(Scan(b"")).entries
    shard.assert_verified()


def test_unknown_namespaces_cannot_be_read(shard: Shard) -> None:
    """Reserved means refused, also for reads."""
    for operation in (Get(b"k", 2), Scan(b"", namespace=2)):
        assert isinstance(shard.machine.read(operation, Slot(-1)), Failure)


# --- Scans ---------------------------------------------------------------------------------------------------------


def test_scans_page_through_the_range_in_order() -> None:
    """Each page starts where the last one said, and together they are the range, once."""
    shard = Shard(limits=KvLimits(scan_entries_max=3))
    keys = [b"k%02d" % number for number in range(20)]
    shard.run(*(Put(key, b"v") for key in reversed(keys)), Put(b"a", b""), Put(b"z", b""))
    seen: list[bytes] = []
    lo = b"k"
    while True:
        page = shard.scan(Scan(lo, b"k15", limit=1000))
        assert len(page.entries) <= 3
        assert page.count == len(page.entries)
        seen += [found.key for found in page.entries]
        if not page.more:
            break
        assert page.next_key > seen[-1]
        lo = page.next_key
    assert keys[:15] == seen
    assert b"" == page.next_key


def test_scan_modes_leave_out_what_is_not_asked_for(shard: Shard) -> None:
    """Keys only has no values, count only has no entries."""
    shard.run(Put(b"a", b"1"), Put(b"b", b"2"), Put(b"c", b"3"))
    page = shard.scan(Scan(b"", keys_only=True, limit=2))
    assert [(b"a", b""), (b"b", b"")] == [(found.key, found.value) for found in page.entries]
    assert (2, True, b"c") == (page.count, page.more, page.next_key)
    counted = shard.scan(Scan(b"b", count_only=True))
    assert (2, [], False) == (counted.count, counted.entries, counted.more)
    # What was read for a scan without values is whole for everybody else.
    assert b"1" == shard.value(b"a")


def test_a_page_has_at_least_one_entry_and_then_keeps_to_its_bytes(shard: Shard) -> None:
    """A value larger than the page still comes out, alone."""
    shard.run(Put(b"a", b"v" * 100), Put(b"b", b"v" * 10), Put(b"c", b"v" * 10), Put(b"d", b"v" * 10))
    first = shard.scan(Scan(b"", bytes_max=25))
    assert ([b"a"], True, b"b") == ([found.key for found in first.entries], first.more, first.next_key)
    second = shard.scan(Scan(b"b", bytes_max=25))
    assert [b"b", b"c"] == [found.key for found in second.entries]


def test_the_bytes_of_a_page_are_those_of_its_keys_too(shard: Shard) -> None:
    """Without values they are all that counts; with them they count as well."""
    shard.run(Put(b"aaaa", b"1"), Put(b"bbbb", b"2"), Put(b"cccc", b"3"))
    assert [b"aaaa", b"bbbb"] == [found.key for found in shard.scan(Scan(b"", keys_only=True, bytes_max=8)).entries]
    assert [b"aaaa"] == [found.key for found in shard.scan(Scan(b"", keys_only=True, bytes_max=7)).entries]
    assert [b"aaaa", b"bbbb"] == [found.key for found in shard.scan(Scan(b"", bytes_max=10)).entries]
    assert [b"aaaa"] == [found.key for found in shard.scan(Scan(b"", bytes_max=9)).entries]


def test_bounds_that_no_key_can_have_are_refused(shard: Shard) -> None:
    """A scan from beyond the longest record key must not reach the records."""
    for scan in (Scan(b"k" * 507), Scan(b"", b"k" * 507)):
        result = shard.machine.read(scan, Slot(-1))
        assert isinstance(result, Failure)
        assert "KEY_TOO_LONG" == result.reason
    for key in (b"", b"k" * 507):
        assert isinstance(shard.machine.read(Get(key), slot_of(key)), Failure)


# --- Log position, time, state -------------------------------------------------------------------------------------


def test_shard_time_never_goes_back(shard: Shard) -> None:
    """The clock is the latest stamp so far, whatever a later leader's clock says."""
    for stamp, expected in ((100, 100), (50, 100), (101, 101)):
        shard.run(at_ms=stamp)
        assert expected == shard.machine.clock_ms
    shard.reload()
    assert 101 == shard.machine.clock_ms


def test_entries_are_applied_once_and_in_order(shard: Shard) -> None:
    """An entry that is not the next one, or of an older term, is a bug, and caught."""
    data = encode_batch([], proposed_ms=0)
    for index, term in ((Index(1), TERM), (Index(3), TERM), (Index(2), Term(0))):
        with pytest.raises(AssertionError, match="entry"):
            shard.machine.apply(index, term, data)
    shard.machine.apply(Index(2), Term(4), data)
    shard.machine.apply_empty(Index(3), Term(5))
    shard.machine.apply_configuration(Index(4), Term(5), b"new members")
    shard.reload()
    machine = shard.machine
    assert (4, 5, b"new members", 4) == (
        machine.applied_index,
        machine.applied_term,
        machine.configuration,
        machine.configuration_index,
    )


def test_the_state_survives_its_records(shard: Shard) -> None:
    """Everything that the machine says of itself is the same after a reload."""
    shard.run(Put(b"a", b"1"), Put(b"b", b"2"), Delete(b"a"), at_ms=77)
    shard.open()

    def said(machine: Machine) -> tuple[object, ...]:
        return (
            machine.applied_index, machine.applied_term, machine.revision, machine.clock_ms, machine.record_count,
            machine.state_hash, machine.ranges, machine.epoch, machine.shard, machine.configuration,
            machine.session_count, machine._hashes.of(slot_of(b"b")),
        )  # fmt: skip

    before = said(shard.machine)
    shard.reload()
    assert before == said(shard.machine)


def test_an_emptied_shard_has_the_hash_of_a_new_one(shard: Shard) -> None:
    """The hash depends on what is there, not on how it came to be; no page of hashes stays behind."""
    empty = shard.machine.state_hash
    shard.machine.flush()
    keys = [key for key, _ in shard.records.scan(b"", None)]
    shard.run(*(Put(b"%d" % number, b"") for number in range(50)))
    shard.machine.flush()
    assert empty != shard.machine.state_hash
    shard.run(*(Delete(b"%d" % number) for number in range(50)))
    shard.machine.flush()
    assert (empty, 0) == (shard.machine.state_hash, shard.machine.record_count)
    assert keys == [key for key, _ in shard.records.scan(b"", None)]


def test_an_incomplete_flush_cannot_be_started_from(shard: Shard) -> None:
    """It serves the running process; a start from it is refused, and a complete one heals it."""
    shard.one(Put(b"a", b"1"))
    shard.machine.flush(complete=False)
    with pytest.raises(Corruption, match="flushed without its hashes"):
        Machine(shard.records, KvLimits())
    assert not Machine.verify(shard.records).ok
    shard.one(Put(b"b", b"1"))
    shard.assert_verified()
    shard.reload()


def test_restored_keys_are_counted_into_a_new_shard(shard: Shard) -> None:
    """A shard created over the key records of a backup has their count, hash, and at least their revision."""
    shard.run(Put(b"a", b"1"), Put(b"b", b"2"), Put(b"a", b"3"))
    restored = MemoryRecords()
    for key, record in shard.records.scan(b"D", b"E"):
        restored.put(key, record)
    again = Shard(records=restored)
    assert (shard.machine.state_hash, 2, 3) == (
        again.machine.state_hash,
        again.machine.record_count,
        again.machine.revision,
    )
    again.assert_verified()


# --- Damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operation",
    [Put(b"k", b"new"), Delete(b"k"), CompareAndSwap(b"k", b"old", b"new"), Increment(b"k"),
     Transaction((), (Put(b"k", b"new"),)), Transaction((), (Get(b"k"),))],
)  # fmt: skip
def test_no_write_passes_over_a_damaged_record(shard: Shard, operation: WriteOperation) -> None:
    """The read before an overwrite is a read: Corruption, and the machine goes no further."""
    shard.one(Put(b"k", b"old"))
    key = DEFAULT_PREFIX + b"k"
    record = bytearray(shard.records.get(key) or b"")
    record[30] ^= 1
    shard.records.put(key, bytes(record))
    with pytest.raises(Corruption, match="fails its checksum"):
        shard.one(operation)
    for use in (lambda: shard.one(Put(b"x", b"")), shard.machine.flush, lambda: shard.get(b"x")):
        with pytest.raises(AssertionError, match="half applied"):
            use()


def test_every_flipped_bit_of_a_record_is_noticed_by_reads(shard: Shard) -> None:
    """Each bit of record and key counts; so do a cut, an empty and a misplaced record."""
    shard.run(Put(b"k", b"value"), Put(b"m", b"other"))
    key = DEFAULT_PREFIX + b"k"
    good = shard.records.get(key) or b""
    bad = [good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :] for at in range(len(good)) for bit in range(8)]
    bad += [b"", good[:-1], good[:20], good + b"\0", shard.records.get(DEFAULT_PREFIX + b"m") or b""]
    for record in bad:
        shard.records.put(key, record)
        with pytest.raises(Corruption):
            shard.get(b"k")
        with pytest.raises(Corruption):
            shard.scan(Scan(b"", keys_only=True))
    shard.records.put(key, good)
    assert b"value" == shard.value(b"k")


@pytest.mark.parametrize("version", [2, 255])
def test_records_of_a_newer_release_stop_the_replica(shard: Shard, version: int) -> None:
    """A downgraded node does not guess: UnsupportedVersion, in reads, writes and at the start."""
    shard.one(Put(b"k", b"1"))
    key = DEFAULT_PREFIX + b"k"
    record = shard.records.get(key) or b""
    shard.records.put(key, seal(key, bytes([version]) + record[1:-8]))
    with pytest.raises(UnsupportedVersion, match=f"version {version}"):
        shard.get(b"k")
    with pytest.raises(UnsupportedVersion):
        shard.one(Put(b"k", b"2"))
    other = Shard()
    state = other.records.get(STATE_KEY) or b""
    other.records.put(STATE_KEY, seal(STATE_KEY, bytes([version]) + state[1:-8]))
    with pytest.raises(UnsupportedVersion):
        Machine(other.records, KvLimits())


def test_records_with_reserved_fields_are_read_and_overwritten(shard: Shard) -> None:
    """Lease and expiry have their place in the format of today; a plain put over them drops them."""
    shard.one(Put(b"k", b"1"))
    key = DEFAULT_PREFIX + b"k"
    body = (shard.records.get(key) or b"")[:-8]
    reserved = body[:1] + b"\1" + body[2:26] + bytes([0] * 7 + [5] + [0] * 7 + [6]) + body[26:]
    records = MemoryRecords()
    records.put(key, seal(key, reserved))
    other = Shard(records=records)
    found = other.get(b"k")
    assert found is not None
    assert (b"1", 5, 6) == (found.value, found.lease, found.expiry_ms)
    other.one(Put(b"k", b"2"))
    assert entry(b"k", b"2", version=2, create=1, mod=2) == other.get(b"k")
    other.assert_verified()


def test_a_missing_meta_record_is_corruption(shard: Shard) -> None:
    """A state without its meta is not a state."""
    for key in (STATE_KEY, OWNERSHIP_KEY):
        records = shard.records.copy()
        records.delete(key)
        with pytest.raises(Corruption, match="has no record"):
            Machine(records, KvLimits())
        assert not Machine.verify(records).ok
