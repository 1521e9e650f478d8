"""The bytes of the write-ahead log: segment headers, batches, records. Pure: no file is touched here.

    segment file  = header (64 bytes) batch batch ... zeros
    batch         = crc32c | magic | length | previous crc | sequence | synced_upto | payload   (padded to 8 bytes)
    payload       = record record ... (a zero byte ends it)

Rules of this file:
- little endian throughout; integers are unsigned; a batch is written by one pwrite and is valid as a whole or not at all;
- the crc of a batch covers all of it but itself, and also the node, the segment's number and the batch's offset, so that
  a block that was written to (or copied from) another place fails;
- `previous crc` and `sequence` chain the batches: one that is missing, stale or out of order cannot go unnoticed;
- the first batch of a segment holds an `Opening` and nothing else. It repeats where its predecessor ended (the seal),
  and states every replica's log as it was then, so that recovery may begin at any segment.

A change of the format needs a new `FORMAT_VERSION`; the place of magic, version and crc in the header stays for ever.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType

from crc32c import crc32c

from raftcache.errors import Corruption, IdentityMismatch, RaftCacheError, UnsupportedVersion
from raftcache.ids import ClusterId, Index, NodeId, ReplicaId, ShardId, Term
from raftcache.raft.configuration import decode_configuration, encode_configuration
from raftcache.raft.messages import Entry, SnapshotMeta

FORMAT_VERSION = 1

Position = NewType("Position", int)
"""A place in the node's log: segment number in the high bits, offset in its file in the low 32. Grows for ever."""

NOWHERE_YET = Position(0)
"""Before the first segment (which has number 1)."""

OFFSET_BITS = 32


def position_of(segment: int, offset: int) -> Position:
    assert 0 <= offset < 1 << OFFSET_BITS, f"offset {offset} does not fit into {OFFSET_BITS} bits"
    return Position(segment << OFFSET_BITS | offset)


def describe_position(position: Position) -> str:
    """For messages to people."""
    return f"segment {position >> OFFSET_BITS}, offset {position & ((1 << OFFSET_BITS) - 1)}"


# --- The segment's header -------------------------------------------------------------------------------------------

SEGMENT_MAGIC = b"RAFTCWAL"
_SEGMENT_HEADER = struct.Struct("<8sIIQQQ20x")  # magic, version, reserved, cluster, node, number
_CRC = struct.Struct("<I")
SEGMENT_HEADER_BYTES = _SEGMENT_HEADER.size + _CRC.size
assert SEGMENT_HEADER_BYTES == 64


def encode_segment_header(cluster: ClusterId, node: NodeId, number: int) -> bytes:
    fields = _SEGMENT_HEADER.pack(SEGMENT_MAGIC, FORMAT_VERSION, 0, cluster, node, number)
    return fields + _CRC.pack(crc32c(fields))


def is_segment_header_valid(data: bytes, *, path: str, cluster: ClusterId, node: NodeId, number: int) -> bool:
    """False where the header is damaged.

    Raises:
        UnsupportedVersion: a newer release wrote it.
        IdentityMismatch: it belongs to another node or cluster. (0 = the node had no cluster yet.)
    """
    if len(data) < SEGMENT_HEADER_BYTES:
        return False
    fields = data[: _SEGMENT_HEADER.size]
    if crc32c(fields) != _CRC.unpack_from(data, _SEGMENT_HEADER.size)[0]:
        return False
    magic, version, _, found_cluster, found_node, found_number = _SEGMENT_HEADER.unpack(fields)
    if magic != SEGMENT_MAGIC:
        return False
    if version > FORMAT_VERSION:
        raise UnsupportedVersion(
            f"{path} has log format {version}, this release reads up to {FORMAT_VERSION}: start the newer release again",
            metadata={"file": path, "found": str(version), "supported": str(FORMAT_VERSION)},
        )
    if found_node != node or found_cluster not in (0, cluster):
        raise IdentityMismatch(
            f"{path} belongs to node {found_node} of cluster {found_cluster}, "
            f"but this directory is node {node} of cluster {cluster}: the file came from elsewhere",
            metadata={"file": path},
        )
    return bool(found_number == number)


# --- Batches --------------------------------------------------------------------------------------------------------

BATCH_MAGIC = 0x31424C57
BATCH_MAGIC_BYTES = BATCH_MAGIC.to_bytes(4, "little")
_BATCH_HEADER = struct.Struct("<IIIIQQ")
BATCH_HEADER_BYTES = _BATCH_HEADER.size
assert BATCH_HEADER_BYTES == 32
BATCH_ALIGNMENT = 8
"""Batches begin at multiples of it, which makes the search for batches behind a damaged one cheap and unambiguous."""

_HEADER_SPACE = bytes(BATCH_HEADER_BYTES)
_PADDING = tuple(bytes(count) for count in range(BATCH_ALIGNMENT))
_SEED = struct.Struct("<QQ")
_OFFSET = struct.Struct("<Q")


def segment_seed(node: NodeId, number: int) -> int:
    """What every batch of the segment is checksummed on top of."""
    return crc32c(_SEED.pack(node, number))


@dataclass(slots=True, frozen=True)
class BatchHeader:
    """A batch that was read and whose checksum is right."""

    offset: int
    end: int
    """Where the next batch begins."""
    crc: int
    previous_crc: int
    sequence: int
    synced_upto: Position
    """Everything before this position was proven to be on the disk when this batch was written."""


def read_batch(content: bytes, offset: int, seed: int) -> BatchHeader | None:
    """The batch at `offset` of a segment's content, or None where there is no valid one."""
    if offset + BATCH_HEADER_BYTES > len(content):
        return None
    crc, magic, length, previous_crc, sequence, synced_upto = _BATCH_HEADER.unpack_from(content, offset)
    end = offset + BATCH_HEADER_BYTES + length
    if magic != BATCH_MAGIC or end > len(content) or length % BATCH_ALIGNMENT:
        return None
    with memoryview(content) as view:
        if crc32c(view[offset + 4 : end], crc32c(_OFFSET.pack(offset), seed)) != crc:
            return None
    return BatchHeader(offset, end, crc, previous_crc, sequence, Position(synced_upto))


# --- Records --------------------------------------------------------------------------------------------------------

_END, _ENTRIES, _MOVED, _SNAPSHOT, _COMPACT, _CREATE, _REMOVE, _OPENING, _RENOUNCE = range(9)

_ENTRIES_HEADER = struct.Struct("<BQQII")  # kind, replica, first index, count, bytes of data
_ENTRY = struct.Struct("<QBI")  # term, kind, length
_SNAPSHOT_HEADER = struct.Struct("<BQQQI")  # kind, replica, index, term, length of the configuration
_COMPACT_RECORD = struct.Struct("<BQQQ")  # kind, replica, index, term
_CREATE_RECORD = struct.Struct("<BQQ")  # kind, replica, shard
_REMOVE_RECORD = struct.Struct("<BQ")  # kind, replica
_OPENING_HEADER = struct.Struct("<BQQII")  # kind, previous end, first segment, replicas, removed replicas
_RENOUNCE_RECORD = struct.Struct("<BQ")  # kind, first segment
_LOG_STATE = struct.Struct(
    "<QQQQQQQI"
)  # replica, shard, start index, start term, last index, snapshot index and term, length
_REPLICA = struct.Struct("<Q")

ENTRY_BYTES = _ENTRY.size
"""What an entry costs in the log beside its data."""


@dataclass(slots=True)
class Entries:
    """Entries appended to a replica's log; where they overlap it, the log is first cut at `first_index`.

    With `moved`, the same entries as the log has, written again so that an old segment can go: nothing is cut.
    """

    replica: ReplicaId
    first_index: Index
    moved: bool
    terms: list[int]
    kinds: list[int]
    lengths: list[int]
    crcs: list[int]
    """crc32c of each entry's data."""
    offset: int
    """Of the first entry's data, in the segment's file; the others follow without gaps."""


@dataclass(slots=True)
class Snapshot:
    """The replica's log restarts after `meta`; all entries are dropped."""

    replica: ReplicaId
    meta: SnapshotMeta


@dataclass(slots=True)
class Compact:
    """Entries up to and including `index` are dropped."""

    replica: ReplicaId
    index: Index
    term: Term


@dataclass(slots=True)
class Create:
    """A new replica, with an empty log."""

    replica: ReplicaId
    shard: ShardId


@dataclass(slots=True)
class Remove:
    """The tombstone of a replica: its log is gone, its id will never be used again."""

    replica: ReplicaId


@dataclass(slots=True, frozen=True)
class LogState:
    """A replica's log as an `Opening` states it: entries `(start_index, last_index]`, wherever they lie."""

    replica: ReplicaId
    shard: ShardId
    start_index: Index
    start_term: Term
    last_index: Index
    snapshot: SnapshotMeta | None
    """The last `Snapshot` record's; where the log began, not the newest checkpoint."""


@dataclass(slots=True)
class Opening:
    """The first record of a segment."""

    previous_end: Position
    """Where the log went on from: what its predecessor holds beyond was cut, and is dead. 0: the first segment ever."""
    first_segment: int
    """No record in an older segment is needed any more."""
    logs: list[LogState]
    removed: list[ReplicaId]


@dataclass(slots=True)
class Renounce:
    """Older segments than `first_segment` may be deleted from here on, once this record is proven to be on the disk."""

    first_segment: int


Record = Entries | Snapshot | Compact | Create | Remove | Opening | Renounce


class BatchBuilder:
    """Collects the records of one batch as pieces of bytes; entries' data is not copied until `frame`."""

    __slots__ = ("_pieces", "size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = [_HEADER_SPACE]
        self.size = BATCH_HEADER_BYTES
        """Bytes of the whole batch so far, without padding."""

    def entries(self, replica: ReplicaId, entries: Sequence[Entry], *, moved: bool = False) -> int:
        """Returns where the first entry's data will lie, relative to the batch."""
        heads = b"".join([_ENTRY.pack(entry.term, entry.kind, len(entry.data)) for entry in entries])
        data = [entry.data for entry in entries]
        data_bytes = sum(map(len, data))
        kind = _MOVED if moved else _ENTRIES
        self._pieces += (_ENTRIES_HEADER.pack(kind, replica, entries[0].index, len(entries), data_bytes), heads, *data)
        start = self.size + _ENTRIES_HEADER.size + len(heads)
        self.size = start + data_bytes
        return start

    def snapshot(self, replica: ReplicaId, meta: SnapshotMeta) -> None:
        configuration = encode_configuration(meta.configuration)
        self._add(_SNAPSHOT_HEADER.pack(_SNAPSHOT, replica, meta.index, meta.term, len(configuration)))
        self._add(configuration)

    def compact(self, replica: ReplicaId, index: Index, term: Term) -> None:
        self._add(_COMPACT_RECORD.pack(_COMPACT, replica, index, term))

    def create(self, replica: ReplicaId, shard: ShardId) -> None:
        self._add(_CREATE_RECORD.pack(_CREATE, replica, shard))

    def remove(self, replica: ReplicaId) -> None:
        self._add(_REMOVE_RECORD.pack(_REMOVE, replica))

    def renounce(self, first_segment: int) -> None:
        self._add(_RENOUNCE_RECORD.pack(_RENOUNCE, first_segment))

    def opening(self, opening: Opening) -> None:
        logs, removed = opening.logs, opening.removed
        self._add(_OPENING_HEADER.pack(_OPENING, opening.previous_end, opening.first_segment, len(logs), len(removed)))
        for log in logs:
            index, term, configuration = 0, 0, b""
            if log.snapshot is not None:
                index, term = log.snapshot.index, log.snapshot.term
                configuration = encode_configuration(log.snapshot.configuration)
            fixed = (log.replica, log.shard, log.start_index, log.start_term, log.last_index, index, term)
            self._add(_LOG_STATE.pack(*fixed, len(configuration)))
            self._add(configuration)
        for replica in removed:
            self._add(_REPLICA.pack(replica))

    def _add(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self.size += len(piece)

    def padded_size(self) -> int:
        return -(-self.size // BATCH_ALIGNMENT) * BATCH_ALIGNMENT

    def frame(
        self, *, seed: int, offset: int, previous_crc: int, sequence: int, synced_upto: Position
    ) -> tuple[bytearray, int]:
        """The batch's bytes for this place in the log, joined once, and its crc."""
        length = self.padded_size()
        self._pieces.append(_PADDING[length - self.size])
        framed = bytearray().join(self._pieces)
        assert len(framed) == length, f"batch of {len(framed)} bytes, {length} were announced"
        _BATCH_HEADER.pack_into(
            framed, 0, 0, BATCH_MAGIC, length - BATCH_HEADER_BYTES, previous_crc, sequence, synced_upto
        )
        with memoryview(framed) as view:
            crc = crc32c(view[4:], crc32c(_OFFSET.pack(offset), seed))
        _CRC.pack_into(framed, 0, crc)
        return framed, crc


def decode_records(content: bytes, batch: BatchHeader, path: str) -> list[Record]:
    """The records of a batch whose checksum is right. Raises `Corruption` where they make no sense all the same."""
    records: list[Record] = []
    at = batch.offset + BATCH_HEADER_BYTES
    try:
        while at < batch.end and content[at] != _END:
            record, at = _decode_record(content, at)
            records.append(record)
        if at > batch.end:
            raise ValueError(f"a record ends at {at}, its batch at {batch.end}")
    except (struct.error, IndexError, ValueError, RaftCacheError) as error:
        raise Corruption(
            f"{path}, offset {at}: the batch has the right checksum and a senseless record ({error}); "
            "a defect of the release that wrote it",
            metadata={"file": path, "offset": str(at)},
        ) from error
    return records


def _decode_record(content: bytes, at: int) -> tuple[Record, int]:
    kind = content[at]
    match kind:
        case 1 | 2:
            return _decode_entries(content, at, moved=kind == _MOVED)
        case 3:
            _, replica, index, term, length = _SNAPSHOT_HEADER.unpack_from(content, at)
            at += _SNAPSHOT_HEADER.size
            meta = SnapshotMeta(Index(index), Term(term), decode_configuration(content[at : at + length]))
            return Snapshot(ReplicaId(replica), meta), at + length
        case 4:
            _, replica, index, term = _COMPACT_RECORD.unpack_from(content, at)
            return Compact(ReplicaId(replica), Index(index), Term(term)), at + _COMPACT_RECORD.size
        case 5:
            _, replica, shard = _CREATE_RECORD.unpack_from(content, at)
            return Create(ReplicaId(replica), ShardId(shard)), at + _CREATE_RECORD.size
        case 6:
            _, replica = _REMOVE_RECORD.unpack_from(content, at)
            return Remove(ReplicaId(replica)), at + _REMOVE_RECORD.size
        case 7:
            return _decode_opening(content, at)
        case 8:
            _, first_segment = _RENOUNCE_RECORD.unpack_from(content, at)
            return Renounce(first_segment), at + _RENOUNCE_RECORD.size
        case _:
            raise ValueError(f"record kind {kind} is unknown")


def _decode_entries(content: bytes, at: int, *, moved: bool) -> tuple[Entries, int]:
    _, replica, first_index, count, data_bytes = _ENTRIES_HEADER.unpack_from(content, at)
    heads_at = at + _ENTRIES_HEADER.size
    data_at = heads_at + count * _ENTRY.size
    heads = list(_ENTRY.iter_unpack(content[heads_at:data_at]))
    lengths = [head[2] for head in heads]
    if sum(lengths) != data_bytes or len(heads) != count or not count:
        raise ValueError(f"{count} entries of {sum(lengths)} bytes, announced as {data_bytes} bytes")
    crcs = []
    start = data_at
    for length in lengths:
        crcs.append(crc32c(content[start : start + length]))
        start += length
    entries = Entries(
        replica=ReplicaId(replica),
        first_index=Index(first_index),
        moved=moved,
        terms=[head[0] for head in heads],
        kinds=[head[1] for head in heads],
        lengths=lengths,
        crcs=crcs,
        offset=data_at,
    )
    return entries, start


def _decode_opening(content: bytes, at: int) -> tuple[Opening, int]:
    _, previous_end, first_segment, logs, removed = _OPENING_HEADER.unpack_from(content, at)
    at += _OPENING_HEADER.size
    opening = Opening(Position(previous_end), first_segment, [], [])
    for _ in range(logs):
        replica, shard, start_index, start_term, last_index, index, term, length = _LOG_STATE.unpack_from(content, at)
        at += _LOG_STATE.size
        snapshot = None
        if index:
            snapshot = SnapshotMeta(Index(index), Term(term), decode_configuration(content[at : at + length]))
        at += length
        opening.logs.append(
            LogState(
                ReplicaId(replica), ShardId(shard), Index(start_index), Term(start_term), Index(last_index), snapshot
            )
        )
    for _ in range(removed):
        opening.removed.append(ReplicaId(_REPLICA.unpack_from(content, at)[0]))
        at += _REPLICA.size
    return opening, at
