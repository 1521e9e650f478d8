"""The logical record stream: a shard's records as bytes that any release, engine and page size can read.

For snapshots between nodes whose files differ, and for backups.

    header      magic 8 bytes | format version u16 | reserved u16
    chunk       payload bytes u32 | CRC-32 of the payload u32 | payload
    payload     records: key bytes u16 | value bytes u32 | key | value
    end         0 u32 | count of records u64 | BLAKE2b-256 over the header, all payloads and the count

Rules of this file:
- keys ascend strictly, over the whole stream; the last chunk is followed by the end, and the end by nothing;
- a reader must not *use* anything before `load` has returned: only then is the digest known to be right;
- records travel sealed, as they are stored, so damage at the sender is found at the latest by the receiver's
  verification. The sender should have verified what it sends;
- buffers are bounded by one chunk.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from struct import Struct
from zlib import crc32

from raftcache.errors import Corruption
from raftcache.kv.layout import RECORD_KEY_BYTES_MAX, newer
from raftcache.kv.limits import SESSION_REPLY_BYTES_CEILING, TRANSACTION_REPLY_BYTES_CEILING
from raftcache.kv.records import Records

MAGIC = b"rcstream"
STREAM_VERSION = 1

CHUNK_BYTES = 256 << 10
"""A chunk is closed at this size. Small enough to keep no loop for long, large enough that its head costs nothing."""
CHUNK_BYTES_MAX = CHUNK_BYTES + SESSION_REPLY_BYTES_CEILING + TRANSACTION_REPLY_BYTES_CEILING + (4 << 20)
"""What a reader accepts. The last record of a chunk may go over its size, and the largest record is a session's: the
replies it may keep, one more that went over, and 4 MiB for the numbers and keys of all of them."""
DIGEST_BYTES = 32

_HEADER = Struct(">8sHH")
_CHUNK = Struct(">II")
_RECORD = Struct(">HI")
_END = Struct(">IQ32s")
_COUNT = Struct(">Q")


@dataclass(slots=True)
class StreamSummary:
    """What was loaded."""

    record_count: int
    payload_bytes: int
    digest: bytes


def dump(records: Records, *, tables: bytes | None = None) -> Iterator[bytes]:
    """The stream of all records, or of the tables whose bytes stand in `tables` (`b"D"` = keys only)."""
    header = _HEADER.pack(MAGIC, STREAM_VERSION, 0)
    digest = blake2b(header, digest_size=DIGEST_BYTES)
    yield header
    count = size = 0
    parts: list[bytes] = []
    ranges: list[tuple[bytes, bytes | None]] = [(b"", None)]
    if tables is not None:
        ranges = [(bytes([table]), bytes([table + 1])) for table in sorted(tables)]
    for lo, hi in ranges:
        for key, value in records.scan(lo, hi):
            parts += (_RECORD.pack(len(key), len(value)), key, value)
            count += 1
            size += _RECORD.size + len(key) + len(value)
            if size >= CHUNK_BYTES:
                yield _chunk(parts, digest)
                parts, size = [], 0
    if parts:
        yield _chunk(parts, digest)
    digest.update(_COUNT.pack(count))
    yield _END.pack(0, count, digest.digest())


def load(chunks: Iterable[bytes], records: Records) -> StreamSummary:
    """Put a stream's records into `records`, which should be empty. The bytes may come in pieces of any size.

    Raises: `Corruption` where the stream is damaged, cut short or goes on; `UnsupportedVersion` where it is of a newer
    release. After either, and before it returns, `records` are to be discarded.
    """
    source = _Source(chunks)
    header = source.take(_HEADER.size, "the header")
    magic, version, reserved = _HEADER.unpack(header)
    if magic != MAGIC:
        raise Corruption(f"this is no stream of records: it begins with {magic!r}, not {MAGIC!r}")
    if version > STREAM_VERSION:
        raise newer("the stream of records", found=version, known=STREAM_VERSION)
    if version != STREAM_VERSION or reserved:
        raise Corruption(f"the stream of records has version {version} and flags {reserved:#x}, which no release wrote")
    digest = blake2b(header, digest_size=DIGEST_BYTES)
    count = total = 0
    last = b""
    while True:
        start = source.position
        (size,) = Struct(">I").unpack(source.take(4, "a chunk's size"))
        if not size:
            break
        (crc,) = Struct(">I").unpack(source.take(4, "a chunk's checksum"))
        if size > CHUNK_BYTES_MAX:
            raise Corruption(f"the chunk at offset {start} claims {size} bytes, at most {CHUNK_BYTES_MAX}")
        payload = source.take(size, "a chunk")
        if crc32(payload) != crc:
            raise Corruption(f"the chunk of {size} bytes at offset {start} of the stream fails its checksum")
        digest.update(payload)
        total += size
        for key, value in _records_of(payload, start):
            if key <= last:
                raise Corruption(f"the chunk at offset {start} of the stream has {key[:80]!r} after {last[:80]!r}")
            records.put(key, value)
            last = key
            count += 1
    stored_count, stored_digest = Struct(">Q32s").unpack(source.take(_END.size - 4, "the end"))
    digest.update(_COUNT.pack(count))
    if stored_count != count or stored_digest != digest.digest():
        raise Corruption(
            f"the stream has {count} records and digest {digest.hexdigest()}; its end says {stored_count} and "
            f"{stored_digest.hex()}"
        )
    source.expect_end()
    return StreamSummary(count, total, stored_digest)


def _chunk(parts: list[bytes], digest: "blake2b") -> bytes:
    payload = b"".join(parts)
    digest.update(payload)
    return _CHUNK.pack(len(payload), crc32(payload)) + payload


def _records_of(payload: bytes, start: int) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(payload):
        value_at = end = len(payload) + 1
        if at + _RECORD.size <= len(payload):
            key_bytes, value_bytes = _RECORD.unpack_from(payload, at)
            at += _RECORD.size
            value_at = at + key_bytes
            end = value_at + value_bytes
            if not 0 < key_bytes <= RECORD_KEY_BYTES_MAX:
                raise Corruption(f"the chunk at offset {start} of the stream has a key of {key_bytes} bytes")
        if end > len(payload):
            raise Corruption(f"the chunk at offset {start} of the stream ends inside a record")
        yield payload[at:value_at], payload[value_at:end]
        at = end


class _Source:
    """Bytes that come in pieces, taken in the sizes that the format wants."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._parts: list[bytes] = []
        self._held = 0
        self.position = 0
        """Offset in the stream of the next byte to be taken."""

    def take(self, size: int, what: str) -> bytes:
        while self._held < size:
            piece = next(self._pieces, None)
            if piece is None:
                raise Corruption(
                    f"the stream ends at offset {self.position + self._held}, inside {what} that starts at "
                    f"{self.position} with {size} bytes"
                )
            self._parts.append(piece)
            self._held += len(piece)
        together = b"".join(self._parts)
        self._parts = [together[size:]] if self._held > size else []
        self._held -= size
        self.position += size
        return together[:size]

    def expect_end(self) -> None:
        if self._held or any(self._pieces):
            raise Corruption(f"the stream goes on after its end at offset {self.position}")
