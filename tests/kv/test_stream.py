"""The logical record stream carries all records, in pieces of any size, or raises."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.errors import Corruption, UnsupportedVersion
from raftcache.kv.machine import Machine
from raftcache.kv.operations import Put
from raftcache.kv.records import MemoryRecords
from raftcache.kv.stream import CHUNK_BYTES, dump, load
from tests.kv.shard import Shard

CONTENTS = st.dictionaries(st.binary(min_size=1, max_size=8), st.binary(max_size=30), max_size=12)


def loaded(data: bytes) -> MemoryRecords:
    records = MemoryRecords()
    load([data], records)
    return records


def everything(records: MemoryRecords) -> list[tuple[bytes, bytes]]:
    return list(records.scan(b"", None))


@given(CONTENTS, st.integers(1, 40))
def test_records_survive_the_stream_in_pieces_of_any_size(contents: dict[bytes, bytes], piece: int) -> None:
    """What is loaded is what was dumped; how the bytes were cut on the way does not matter."""
    data = b"".join(dump(MemoryRecords(contents)))
    records = MemoryRecords()
    summary = load((data[at : at + piece] for at in range(0, len(data), piece)), records)
    assert sorted(contents.items()) == everything(records)
    assert len(contents) == summary.record_count


def test_a_shard_survives_the_stream() -> None:
    """A machine over the loaded records is the machine that was dumped; several chunks, one bigger than a chunk."""
    shard = Shard()
    shard.open()
    shard.run(*(Put(b"key%d" % number, b"v" * 9000) for number in range(100)), Put(b"big", b"v" * (2 * CHUNK_BYTES)))
    shard.machine.flush()
    pieces = list(dump(shard.records))
    assert len(pieces) > 5
    records = MemoryRecords()
    load(pieces, records)
    assert everything(shard.records) == everything(records)
    machine = Machine(records, shard.limits)
    assert shard.machine.state_hash == machine.state_hash


def test_tables_can_be_chosen() -> None:
    """A backup wants the keys, and not the sessions of a cluster that is gone."""
    shard = Shard()
    shard.open()
    shard.run(Put(b"a", b"1"))
    shard.machine.flush()
    assert [b"D\0\0\0\0a"] == [key for key, _ in everything(loaded(b"".join(dump(shard.records, tables=b"D"))))]


@given(CONTENTS, st.data())
@settings(max_examples=200)
def test_a_damaged_stream_is_never_loaded(contents: dict[bytes, bytes], draw: st.DataObject) -> None:
    """A flipped bit, a cut, or bytes too many: Corruption or UnsupportedVersion, whatever the place."""
    data = bytearray(b"".join(dump(MemoryRecords(contents))))
    action = draw.draw(st.sampled_from(["flip", "cut", "extend", "remove"]))
    at = draw.draw(st.integers(0, len(data) - 1))
    if action == "flip":
        data[at] ^= 1 << draw.draw(st.integers(0, 7))
    elif action == "cut":
        del data[at:]
    elif action == "remove":
        del data[at]
    else:
        data += b"\0"
    with pytest.raises((Corruption, UnsupportedVersion)):
        loaded(bytes(data))


def test_a_newer_stream_is_refused_with_both_versions() -> None:
    """A backup of a newer release is not guessed at."""
    data = bytearray(b"".join(dump(MemoryRecords())))
    data[9] = 2
    with pytest.raises(UnsupportedVersion, match="version 2, and this release knows versions up to 1"):
        loaded(bytes(data))


def test_a_stream_out_of_order_is_refused() -> None:
    """Two streams spliced chunk by chunk do not become one."""
    first = list(dump(MemoryRecords({b"b": b""})))
    second = list(dump(MemoryRecords({b"a": b""})))
    with pytest.raises(Corruption, match="after"):
        load([first[0], first[1], second[1], second[2]], MemoryRecords())
    with pytest.raises(Corruption, match="digest"):
        load([first[0], first[1], second[2]], MemoryRecords())
