"""Batches of the log: what was framed is read back, every record by its own length."""

from crc32c import crc32c

from raftcache.ids import Index, ReplicaId, ShardId, Term
from raftcache.raft.messages import SnapshotMeta
from raftcache.storage.wal_format import (
    BatchBuilder,
    Compact,
    Create,
    Position,
    Remove,
    Renounce,
    Snapshot,
    decode_records,
    encode_segment_header,
    is_segment_header_valid,
    read_batch,
)
from tests.storage.log_model import CLUSTER, NODE, THREE

R1 = ReplicaId(1)
SEED = 12345


def test_every_kind_of_record_may_be_followed_by_any_other() -> None:
    """A batch may hold them in any order: none is taken for the last."""
    meta = SnapshotMeta(Index(9), Term(3), THREE)
    records = [Create(R1, ShardId(4)), Snapshot(R1, meta), Compact(R1, Index(10), Term(3)), Remove(R1), Renounce(7)]
    for shift in range(len(records)):
        builder = BatchBuilder()
        expected = records[shift:] + records[:shift]
        for record in expected:
            match record:
                case Create():
                    builder.create(record.replica, record.shard)
                case Snapshot():
                    builder.snapshot(record.replica, record.meta)
                case Compact():
                    builder.compact(record.replica, record.index, record.term)
                case Remove():
                    builder.remove(record.replica)
                case Renounce():
                    builder.renounce(record.first_segment)
        framed, _ = builder.frame(seed=SEED, offset=0, previous_crc=1, sequence=2, synced_upto=Position(3))
        content = bytes(framed)
        batch = read_batch(content, 0, SEED)
        assert batch is not None
        assert expected == decode_records(content, batch, "test")


def test_a_header_of_another_kind_of_file_is_no_header_of_a_segment() -> None:
    """A right checksum is not enough: what it begins with says what it is."""
    header = encode_segment_header(CLUSTER, NODE, 3)
    assert is_segment_header_valid(header, path="x", cluster=CLUSTER, node=NODE, number=3)
    fields = bytes([header[0] ^ 1]) + header[1:-4]
    foreign = fields + crc32c(fields).to_bytes(4, "little")
    assert not is_segment_header_valid(foreign, path="x", cluster=CLUSTER, node=NODE, number=3)
