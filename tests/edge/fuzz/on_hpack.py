"""HPACK and its Huffman code, beside the `hpack` package.

Where the two may differ, and why:
- integers: `hpack` reads up to nine bytes behind the prefix, we four, which is more than any length or index here can be
  (RFC 7541 §5.1 leaves the limit to the implementation). Ours refuses more blocks by that, and by nothing else;
- lists beyond the limit: `hpack` gives the connection up; we drop the fields that do not fit and keep the table in step.
  So `hpack` runs without a limit here, and the limit is checked apart;
- a table size that is set twice between two blocks: `hpack`'s encoder then forgets to announce it. It is set once here;
- never-indexed fields (§6.2.3): `hpack` marks them for a proxy that would pass them on. We are none, and keep no mark.
"""

import hpack as oracle
from hpack.huffman_table import decode_huffman

from raftcache.wire import hpack as ours
from raftcache.wire import huffman
from raftcache.wire.hpack import ENTRY_OVERHEAD_BYTES, NEVER_INDEXED, TABLE_BYTES_DEFAULT, Fields, HeaderList
from raftcache.wire.http2_errors import HpackError
from tests.edge.fuzz.program import Program

_NAMES = (b":path", b":method", b"te", b"content-type", b"grpc-timeout", b"authorization", b"x-a", b"x-b", b"")
_VALUES = (b"POST", b"trailers", b"", b"application/grpc", b"1S", b"v" * 1_000, b"w" * 4_064, bytes(256))
_UNLIMITED = 1 << 30


def run_hpack(data: bytes) -> None:
    """The first byte says what is done with the others."""
    program = Program(data)
    if program.flag():
        _decode_any(program)
    else:
        _encode_lists(program)


def run_huffman(data: bytes) -> None:
    """A string decoded as it is, and encoded."""
    huffman._strings.clear()
    try:
        expected: bytes | None = bytes(decode_huffman(data))
    except oracle.HPACKDecodingError:
        expected = None
    for _ in range(2):  # the second time it may be remembered
        try:
            found: bytes | None = huffman.decode(data)
        except HpackError:
            found = None
        assert expected == found, f"{data.hex()}: {found!r}, expected {expected!r}"
    if expected is not None:
        # The padding is all ones, and shorter than a byte: a string has one code and no other.
        assert data == huffman.encode(expected), data.hex()
    encoded = huffman.encode(data)
    assert data == huffman.decode(encoded), data.hex()
    assert data == decode_huffman(encoded), data.hex()


def _decode_any(program: Program) -> None:
    """Blocks of any bytes: the same lists and tables as the oracle's, or refused by both."""
    table_bytes_max = program.choice((TABLE_BYTES_DEFAULT, 10_000))
    fields_bytes_max = program.choice((1 << 20, 300, 33))
    decoder = ours.Decoder(fields_bytes_max, table_bytes_max)
    theirs = oracle.Decoder(max_header_list_size=_UNLIMITED)
    theirs.max_allowed_table_size = table_bytes_max
    blocks: list[bytes] = []
    while program.more:
        again = program.byte()
        blocks.append(program.take(program.size(2_000)))
        if not _is_decoded(blocks[-1], decoder, theirs, fields_bytes_max):
            return
        # Once more, or an earlier one: what was kept of it may mean something else now, or nothing.
        if again & 1 and not _is_decoded(blocks[(again >> 1) % len(blocks)], decoder, theirs, fields_bytes_max):
            return


def _is_decoded(block: bytes, decoder: ours.Decoder, theirs: oracle.Decoder, fields_bytes_max: int) -> bool:
    """Whether both decode the block; if so, to the same."""
    try:
        expected = _pairs(theirs.decode(block, raw=True))
    except oracle.HPACKError:
        try:
            decoder.decode(block)
        except HpackError:
            return False
        raise AssertionError(f"{block.hex()} is no header block, and was decoded") from None
    try:
        _expect(expected, decoder.decode(block), fields_bytes_max)
    except HpackError as error:
        assert "an integer is too long" in str(error), f"{block.hex()}: {error}; expected {expected}"
        return False
    _compare_tables(decoder._table, theirs)
    return True


def _encode_lists(program: Program) -> None:
    """Lists that are encoded here and there and decoded on the other side, with table sizes that change between them."""
    encoder, reader = ours.Encoder(), oracle.Decoder(max_header_list_size=_UNLIMITED)
    decoder, writer = ours.Decoder(_UNLIMITED), oracle.Encoder()
    mirror = ours.Decoder(_UNLIMITED)
    kept: dict[Fields, tuple[int, bytes]] = {}
    while program.more:
        action = program.byte() % 8
        if action == 0:
            size = program.size(9_000)
            encoder.resize(size)
            reader.max_allowed_table_size = size
        elif action == 1:
            size = program.size(TABLE_BYTES_DEFAULT + 1)
            if size != writer.header_table_size:
                writer.header_table_size = size
        else:
            fields, before = _fields(program), encoder.changes
            block = encoder.encode(fields)
            assert fields == _pairs(reader.decode(block, raw=True)), block.hex()
            assert fields == mirror.decode(block).fields, block.hex()
            _compare_tables(encoder._table, reader)
            assert not [name for name, _ in encoder._table.entries if name in NEVER_INDEXED], encoder._table.entries
            at, kept_block = kept.get(fields, (-1, b""))
            assert at != before or kept_block == block, f"{fields} is another block, and `changes` says it is not"
            if before == encoder.changes:
                kept[fields] = (before, block)
            block = writer.encode(fields, huffman=program.flag())
            assert fields == decoder.decode(block).fields, block.hex()


def _fields(program: Program) -> Fields:
    fields = []
    for _ in range(program.byte() % 8):
        name = program.choice(_NAMES) or program.take(program.byte() % 16)
        value = program.choice(_VALUES) if program.flag() else program.take(program.byte())
        fields.append((name, value))
    return tuple(fields)


def _pairs(headers: object) -> Fields:
    return tuple((bytes(name), bytes(value)) for name, value in headers)  # type: ignore[attr-defined]


def _expect(expected: Fields, found: HeaderList, fields_bytes_max: int) -> None:
    """The whole list, or, beyond the limit, as much of it as fits."""
    fitting, room = [], fields_bytes_max
    for name, value in expected:
        room -= len(name) + len(value) + ENTRY_OVERHEAD_BYTES
        if room < 0:
            break
        fitting.append((name, value))
    assert tuple(fitting) == found.fields, f"{found.fields}, expected {fitting}"
    assert found.too_large == (room < 0), f"{found.too_large} with {room} bytes left"


def _compare_tables(table: ours.DynamicTable, theirs: oracle.Decoder) -> None:
    expected = list(theirs.header_table.dynamic_entries)
    assert expected == table.entries[::-1], f"{table.entries[::-1]}, expected {expected}"
    size = sum(len(name) + len(value) + ENTRY_OVERHEAD_BYTES for name, value in table.entries)
    assert size == table._bytes <= table.bytes_max, f"{size} bytes, {table._bytes} counted, {table.bytes_max} allowed"
