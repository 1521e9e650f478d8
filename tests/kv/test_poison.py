"""No entry, whatever its bytes, makes one replica do what another does not.

Declared: bytes that are no batch stop the replica with `Corruption`, a newer batch with `UnsupportedVersion`, both
before anything is changed. Whatever decodes is applied or refused command by command, and nothing else is raised.
"""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.errors import Corruption, UnsupportedVersion
from raftcache.kv.codec import encode_batch
from raftcache.kv.limits import KvLimits
from raftcache.kv.machine import Machine
from raftcache.kv.operations import Command, Put
from raftcache.kv.records import MemoryRecords
from raftcache.kv.slots import slot_of
from tests.kv.shard import Shard
from tests.kv.strategies import COMMANDS
from tests.kv.test_codec import damaged


def prepared() -> Shard:
    shard = Shard()
    shard.open()
    shard.run(Put(b"a", b"1"), Put(b"b", b"x"))
    shard.machine.flush()
    shard.records.commit()
    return shard


def contents(records: MemoryRecords) -> list[tuple[bytes, bytes]]:
    return list(records.scan(b"", None))


def outcome(data: bytes) -> object:
    """What an entry does to a shard: its results and records, or its error and untouched records."""
    shard = prepared()
    before = contents(shard.records)
    try:
        results = shard.apply(data)
    except (Corruption, UnsupportedVersion) as error:
        assert before == contents(shard.records)
        with pytest.raises(AssertionError, match="half applied"):
            shard.run()
        return type(error)
    shard.assert_verified()
    return results, contents(shard.records)


@given(st.binary(max_size=80), st.sampled_from([None, 0, 1, 1, 1, 2]))
@settings(max_examples=60)
def test_random_bytes_stop_or_apply_alike_on_every_replica(data: bytes, version: int | None) -> None:
    """Noise as an entry has one of the declared outcomes, twice the same."""
    if version is not None:
        data = struct.pack(">BQI", version, 5, 1) + data
    assert outcome(data) == outcome(data)


@given(st.lists(COMMANDS, min_size=1, max_size=4), st.data())
@settings(max_examples=60)
def test_damaged_and_senseless_batches_stop_or_apply_alike(commands: list[Command], draw: st.DataObject) -> None:
    """Commands that no gateway would let through, whole and damaged, have one of the declared outcomes, twice the same."""
    data = encode_batch(commands, proposed_ms=draw.draw(st.integers(0, 2**64 - 1)))
    for entry in (data, damaged(data, draw)):
        assert outcome(entry) == outcome(entry)


def test_a_batch_that_is_none_stops_the_replica() -> None:
    """Skipping what others may have applied would part the replicas: Corruption, which says where."""
    shard = prepared()
    with pytest.raises(Corruption, match=r"index 4, term 1 of shard 7 cannot be decoded"):
        shard.apply(b"\1no batch")
    # The next start finds the state before the entry, and can apply what a better release makes of it.
    shard.records.rollback()
    machine = Machine(shard.records, KvLimits())
    assert (3, 2) == (machine.applied_index, machine.revision)


def test_a_newer_batch_stops_the_replica_until_it_is_upgraded() -> None:
    """A mixed cluster's old node halts at the first command it does not know, and changes nothing."""
    newer = bytes([2]) + encode_batch([Command(Put(b"a", b"2"), slot_of(b"a"))], proposed_ms=0)[1:]
    assert UnsupportedVersion is outcome(newer)
