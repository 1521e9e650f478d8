"""HPACK, the compression of header lists (RFC 7541): a decoder and an encoder, each with its dynamic table.

Rules of this file:
- a decoder and an encoder belong to one connection and see every header block of it, in order;
- names and values are bytes. What they may contain is not checked here: that is `http2_headers`;
- whatever the input, the work is linear in the size of the block, and what is kept is bounded: by the table's size, and
  by `fields_bytes_max` for a decoded list.

A client sends the same few header blocks again and again. A block that changes nothing in the dynamic table always means
the same list while the table stays as it is; the decoder keeps a few of those, and returns the same `HeaderList` object,
on which the layers above keep what they made of it.
"""

from typing import Any, Final

from raftcache.wire import huffman
from raftcache.wire.hpack_static import STATIC_INDEX, STATIC_NAME_INDEX, STATIC_TABLE
from raftcache.wire.http2_errors import HpackError

Field = tuple[bytes, bytes]
"""Name and value."""
Fields = tuple[Field, ...]

TABLE_BYTES_DEFAULT: Final = 4096
"""SETTINGS_HEADER_TABLE_SIZE before anybody says otherwise. We keep it: gRPC's repeated fields take some 500 bytes."""
ENTRY_OVERHEAD_BYTES: Final = 32
"""What an entry counts beside its name and value (§4.1)."""

_STATIC_COUNT: Final = 61
_INTEGER_BYTES_MAX: Final = 4
"""Continuation bytes of an integer: 28 bits, more than any length or index here can be."""

_CACHED_BLOCKS_MAX: Final = 8
"""Per connection: a method or two with and without a timeout. Beyond, the cache starts anew."""
_CACHED_BLOCK_BYTES_MAX: Final = 512

NEVER_INDEXED: Final = frozenset({b"authorization", b"cookie", b"set-cookie", b"proxy-authorization"})
"""Secrets: neither we nor any intermediary may put them into a table, where compression could betray them (§7.1.3)."""
_NOT_INDEXED: Final = frozenset({b"grpc-timeout", b"grpc-message", b"grpc-status-details-bin", b"content-length"})
"""Differ from call to call: in the table they would only push out what repeats."""


class HeaderList:
    """A decoded header block. One object may stand for many equal blocks; see the module."""

    __slots__ = ("content_length", "fields", "flaw", "meaning", "too_large")

    def __init__(self, fields: Fields, too_large: bool) -> None:
        self.fields = fields
        self.too_large = too_large
        """The list exceeded the limit; `fields` is what fitted."""
        self.flaw: str | None = None
        """Why it is no valid head, None while nobody looked and "" if it is one. Kept by the HTTP/2 layer."""
        self.content_length: int | None = None
        """How much DATA a head says that comes; set with `flaw`."""
        self.meaning: Any = None
        """What the layer above HTTP/2 made of it; not looked at here."""


class DynamicTable:
    """The entries, oldest first, and their size."""

    __slots__ = ("_bytes", "bytes_max", "entries")

    def __init__(self) -> None:
        self.entries: list[Field] = []
        self._bytes = 0
        self.bytes_max = TABLE_BYTES_DEFAULT
        """Invariant: the sizes of all entries sum up to at most this."""

    def add(self, field: Field) -> None:
        """Adds the newest entry, and evicts the oldest as needed. One that is too large empties the table (§4.4)."""
        self.entries.append(field)
        self._bytes += len(field[0]) + len(field[1]) + ENTRY_OVERHEAD_BYTES
        if self._bytes > self.bytes_max:
            self._evict()

    def resize(self, bytes_max: int) -> None:
        """Sets the most that the entries may take."""
        self.bytes_max = bytes_max
        self._evict()

    def _evict(self) -> None:
        gone = 0
        while self._bytes > self.bytes_max:
            name, value = self.entries[gone]
            self._bytes -= len(name) + len(value) + ENTRY_OVERHEAD_BYTES
            gone += 1
        del self.entries[:gone]


class Decoder:
    """Decodes the header blocks of one direction of a connection."""

    def __init__(self, fields_bytes_max: int, table_bytes_max: int = TABLE_BYTES_DEFAULT) -> None:
        self._fields_bytes_max = fields_bytes_max
        self._table_bytes_max = table_bytes_max
        """What we allow the peer, by our settings."""
        self._table = DynamicTable()
        self._cache: dict[bytes, HeaderList] = {}
        self.changes = 0
        """Grows when the table changes: blocks that were decoded before may mean something else now."""

    def decode(self, block: bytes) -> HeaderList:
        """The header list of one whole block. Raises: `HpackError`."""
        cached = self._cache.get(block)
        return self._decode(block) if cached is None else cached

    def knows(self, block: bytes) -> HeaderList | None:
        """What a block means as long as the table does not change; None if that is not known, or the block changes it."""
        return self._cache.get(block)

    def _decode(self, block: bytes) -> HeaderList:
        table, end = self._table, len(block)
        fields: list[Field] = []
        room = self._fields_bytes_max
        position, changed = 0, False
        while position < end:
            first = block[position]
            if first & 0x80:  # §6.1: indexed
                if 0x80 < first <= 0x80 + _STATIC_COUNT:  # the shortest way for the most frequent
                    field = STATIC_TABLE[first - 0x81]
                    position += 1
                else:
                    index, position = _integer(block, position, 7)
                    field = self._entry(index)
            elif first & 0xE0 == 0x20:  # §6.3: the table's size; §4.2: only where a block begins
                if room < self._fields_bytes_max:
                    raise HpackError("a table size update inside of a header block")
                size, position = _integer(block, position, 5)
                if size > self._table_bytes_max:
                    raise HpackError(f"a table of {size} bytes; {self._table_bytes_max} are allowed")
                table.resize(size)
                changed = True
                continue
            else:  # §6.2: literal, to be added to the table (01), or not (0000), or never by anybody (0001)
                index, position = _integer(block, position, 6 if first & 0x40 else 4)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, position = _string(block, position)
                value, position = _string(block, position)
                field = (name, value)
                if first & 0x40:
                    table.add(field)
                    changed = True
            # RFC 9113 §6.5.2: the size of a list counts 32 bytes for each field. Past the limit the block is decoded to its
            # end, because the table must stay in step, but nothing more is kept: what a small block unfolds to is bounded.
            room -= len(field[0]) + len(field[1]) + ENTRY_OVERHEAD_BYTES
            if room >= 0:
                fields.append(field)
        headers = HeaderList(tuple(fields), room < 0)
        if changed:
            # Indexes mean something else from now on.
            self._cache.clear()
            self.changes += 1
        elif end <= _CACHED_BLOCK_BYTES_MAX:
            if len(self._cache) >= _CACHED_BLOCKS_MAX:
                self._cache.clear()
            self._cache[block] = headers
        return headers

    def _entry(self, index: int) -> Field:
        if 0 < index <= _STATIC_COUNT:
            return STATIC_TABLE[index - 1]
        entries = self._table.entries
        if _STATIC_COUNT < index <= _STATIC_COUNT + len(entries):
            return entries[_STATIC_COUNT - index]
        raise HpackError(f"index {index} of a table with {_STATIC_COUNT + len(entries)} entries")


class Encoder:
    """Encodes the header lists of one direction of a connection."""

    def __init__(self) -> None:
        self._table = DynamicTable()
        self._resized_to: list[int] = []
        """Sizes to announce at the start of the next block: the smallest since the last one, and the present one (§4.2)."""
        self.changes = 0
        """Grows when the table changes: blocks that were encoded before may mean something else now."""

    def resize(self, table_bytes_max: int) -> None:
        """The peer's SETTINGS_HEADER_TABLE_SIZE. We never use more than the default."""
        size = min(table_bytes_max, TABLE_BYTES_DEFAULT)
        if size == self._table.bytes_max and not self._resized_to:
            return
        self._resized_to = [min([size, *self._resized_to]), size]
        self._table.resize(size)
        self.changes += 1

    def encode(self, fields: Fields) -> bytes:
        """One header block. Fields that repeat go into the table, secrets never."""
        parts: list[bytes] = []
        if self._resized_to:
            parts += [_encoded_integer(size, 5, 0x20) for size in dict.fromkeys(self._resized_to)]
            self._resized_to = []
            self.changes += 1  # this block must not be sent a second time
        for field in fields:
            self._encode_field(field, parts)
        return b"".join(parts)

    def _encode_field(self, field: Field, parts: list[bytes]) -> None:
        name, value = field
        index = STATIC_INDEX.get(field, 0)
        if not index and field in self._table.entries:
            index = _STATIC_COUNT + len(self._table.entries) - self._table.entries.index(field)
        if index:
            parts.append(_encoded_integer(index, 7, 0x80))
            return
        size = len(name) + len(value) + ENTRY_OVERHEAD_BYTES
        name_index = STATIC_NAME_INDEX.get(name, 0)
        if name in NEVER_INDEXED:
            parts.append(_encoded_integer(name_index, 4, 0x10))
        elif name in _NOT_INDEXED or size > self._table.bytes_max // 4:
            parts.append(_encoded_integer(name_index, 4, 0x00))
        else:
            parts.append(_encoded_integer(name_index, 6, 0x40))
            self._table.add(field)
            self.changes += 1
        if not name_index:
            parts.append(_encoded_string(name))
        parts.append(_encoded_string(value))


def _integer(block: bytes, position: int, prefix_bits: int) -> tuple[int, int]:
    """An integer (§5.1) and where it ends. Raises: `HpackError`."""
    full = (1 << prefix_bits) - 1
    try:
        value = block[position] & full
        position += 1
        if value < full:
            return value, position
        for count in range(_INTEGER_BYTES_MAX):
            byte = block[position]
            position += 1
            value += (byte & 0x7F) << 7 * count
            if byte < 0x80:
                return value, position
    except IndexError:
        raise HpackError("a header block ends inside of an integer") from None
    raise HpackError("an integer is too long")


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    """A string (§5.2) and where it ends. Raises: `HpackError`."""
    if position >= len(block):
        raise HpackError("a header block ends where a string should begin")
    is_huffman = block[position] & 0x80
    length, position = _integer(block, position, 7)
    end = position + length
    if end > len(block):
        raise HpackError(f"a string of {length} bytes in a block that has {len(block) - position} left")
    data = block[position:end]
    return (huffman.decode(data) if is_huffman else data), end


def _encoded_integer(value: int, prefix_bits: int, pattern: int) -> bytes:
    full = (1 << prefix_bits) - 1
    if value < full:
        return bytes((pattern | value,))
    out = bytearray((pattern | full,))
    value -= full
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _encoded_string(data: bytes) -> bytes:
    short = huffman.encode(data)
    if len(short) < len(data):
        return _encoded_integer(len(short), 7, 0x80) + short
    return _encoded_integer(len(data), 7, 0x00) + data
