"""The scrub finds what is damaged, missing, stale or too many, and names the slot."""

import random

import pytest
from xxhash import xxh3_64_intdigest

from raftcache.errors import Corruption
from raftcache.ids import Slot
from raftcache.kv.layout import DEFAULT_PREFIX, TABLE_HASHES, seal, table_end, unseal
from raftcache.kv.limits import KvLimits
from raftcache.kv.machine import Machine
from raftcache.kv.operations import Delete, Put, SessionStamp
from raftcache.kv.records import MemoryRecords
from raftcache.kv.slots import SLOT_COUNT, slot_of
from raftcache.kv.state_hash import PAGE_SLOTS, PAGE_VERSION, page_key
from raftcache.kv.verification import PROBLEMS_MAX
from tests.kv.shard import Shard


@pytest.fixture
def shard() -> Shard:
    """A shard with keys in two namespaces, sessions and a history of overwrites."""
    shard = Shard()
    session = shard.open()
    shard.run(*(Put(b"key%d" % number, b"old") for number in range(30)))
    shard.machine.flush()
    shard.run(*(Put(b"key%d" % number, b"new") for number in range(10)), Put(b"system", b"1", namespace=1))
    shard.one(Put(b"stamped", b"1"), SessionStamp(session, 1, 1))
    shard.one(Delete(b"key29"))
    shard.machine.flush()
    return shard


def test_an_intact_state_has_no_problems(shard: Shard) -> None:
    """And the verification says what it found."""
    found = Machine.verify(shard.records)
    assert (True, []) == (found.ok, found.problems)
    assert (31, 1, 5) == (found.record_count, found.session_count, found.applied_index - 1)
    assert shard.machine.state_hash == found.state_hash


def test_any_flipped_bit_anywhere_is_found(shard: Shard) -> None:
    """Keys and records of all tables; each flip alone is a problem."""
    rng = random.Random(5)
    everything = list(shard.records.scan(b"", None))
    for key, record in everything:
        for _ in range(4):
            at = rng.randrange(len(key) + len(record))
            flipped = bytearray(key + record)
            flipped[at] ^= 1 << rng.randrange(8)
            new_key, new_record = bytes(flipped[: len(key)]), bytes(flipped[len(key) :])
            records = shard.records.copy()
            records.delete(key)
            records.put(new_key, new_record)
            assert not Machine.verify(records).ok, (key, at)


def test_any_missing_record_is_found(shard: Shard) -> None:
    """Each record, taken away, is missed; a missing key is named by its slot."""
    for key, _ in list(shard.records.scan(b"", None)):
        records = shard.records.copy()
        records.delete(key)
        found = Machine.verify(records)
        assert not found.ok, key
        if key.startswith(DEFAULT_PREFIX):
            assert [slot_of(key[5:])] == found.slots


def test_a_stale_record_is_found(shard: Shard) -> None:
    """A record that was valid once, back in place of its successor: a lost write, found by the hash of its slot."""
    key = DEFAULT_PREFIX + b"key3"
    older = Shard()
    older.open()
    older.run(*(Put(b"key%d" % number, b"old") for number in range(30)))
    shard.records.put(key, older.records.get(key) or b"")
    found = Machine.verify(shard.records)
    assert [slot_of(b"key3")] == found.slots
    assert any(f"slot {slot_of(b'key3')} has 1 records, and 1 were stored" in problem for problem in found.problems)


def test_a_record_too_many_is_found(shard: Shard) -> None:
    """A deleted key that came back, sealed and all."""
    key = DEFAULT_PREFIX + b"key29"
    older = Shard()
    older.open()
    older.run(*(Put(b"key%d" % number, b"old") for number in range(30)))
    shard.records.put(key, older.records.get(key) or b"")
    assert [slot_of(b"key29")] == Machine.verify(shard.records).slots


def test_a_rolled_back_page_of_hashes_is_found(shard: Shard) -> None:
    """Damage to the book-keeping is damage too."""
    key = page_key(slot_of(b"key3") // 64)
    page = bytearray((shard.records.get(key) or b"")[:-4])
    page[1 + slot_of(b"key3") % 64 * 24 + 7] += 1
    shard.records.put(key, seal(key, bytes(page)))
    assert not Machine.verify(shard.records).ok


def test_a_page_of_hashes_behind_the_last_slot_is_damage(shard: Shard) -> None:
    """However valid it looks by itself: no slot has it."""
    last, beyond = (page_key(SLOT_COUNT // PAGE_SLOTS - 1), page_key(SLOT_COUNT // PAGE_SLOTS))
    empty = bytes([PAGE_VERSION]) + bytes(PAGE_SLOTS * 24)
    shard.records.put(last, seal(last, empty))
    Machine(shard.records, KvLimits())
    shard.records.put(beyond, seal(beyond, empty))
    with pytest.raises(Corruption, match="is no page of hashes"):
        Machine(shard.records, KvLimits())
    assert not Machine.verify(shard.records).ok


def test_records_of_no_table_are_problems(shard: Shard) -> None:
    """What nobody wrote does not belong there."""
    for key in (b"X", b"Mother", b"\0"):
        records = shard.records.copy()
        records.put(key, seal(key, b"\1"))
        assert not Machine.verify(records).ok


def test_a_ruin_is_reported_and_not_raised() -> None:
    """Nothing, noise, and more problems than anybody wants to read."""
    assert not Machine.verify(MemoryRecords()).ok
    noise = MemoryRecords({bytes([number % 256, number // 256]): b"noise" for number in range(1000)})
    found = Machine.verify(noise)
    assert PROBLEMS_MAX == len(found.problems)


def test_the_hash_is_what_it_is_defined_as(shard: Shard) -> None:
    """The sum, over all key records, of XXH3-64 of key and body, seeded with the key's length."""
    total = 0
    for key, record in shard.records.scan(b"D", b"E"):
        total += xxh3_64_intdigest(key + record[:-8], seed=len(key))
    assert total % 2**128 == shard.machine.state_hash


def test_a_page_of_hashes_is_its_slots_one_after_the_other(shard: Shard) -> None:
    """Checkpoints have these bytes: a version, and for each of 64 slots eight bytes of count and sixteen of hash."""
    for number in range(200):
        shard.one(Put(b"key-%d" % number, b"v"))
    shard.machine.flush()
    hashes = shard.machine._hashes
    pages = list(shard.records.scan(TABLE_HASHES, table_end(TABLE_HASHES)))
    assert pages
    for key, record in pages:
        first = int.from_bytes(key[1:], "big") * 64
        slots = [hashes.of(Slot(slot)) for slot in range(first, first + 64)]
        expected = b"\1" + b"".join(count.to_bytes(8, "big") + total.to_bytes(16, "big") for count, total in slots)
        assert expected == unseal(key, record)


def test_slot_hashes_add_up_to_the_shards(shard: Shard) -> None:
    """Counts and sums per slot are what a split hands over."""
    slots = [shard.machine._hashes.of(Slot(slot)) for slot in range(16384)]
    assert shard.machine.record_count == sum(count for count, _ in slots)
    assert shard.machine.state_hash == sum(total for _, total in slots) % 2**128
