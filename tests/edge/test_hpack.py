"""HPACK, against RFC 7541's examples, against itself, and against the `hpack` package as an oracle."""

import random

import hpack as oracle
import pytest
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.wire import huffman
from raftcache.wire.hpack import Decoder, Encoder, Fields, HeaderList
from raftcache.wire.hpack_static import STATIC_TABLE
from raftcache.wire.http2_errors import HpackError

names = st.sampled_from([b":path", b":method", b"te", b"user-agent", b"authorization", b"x-a", b"grpc-timeout"])
values = st.one_of(st.sampled_from([b"POST", b"trailers", b"", b"1S"]), st.binary(max_size=40), st.just(b"v" * 1_500))
header_lists = st.lists(st.tuples(names, values), max_size=12).map(tuple)


def decoder() -> Decoder:
    return Decoder(1 << 20)


def pairs(headers: object) -> Fields:
    """The oracle's header tuples as ours."""
    return tuple((bytes(name), bytes(value)) for name, value in headers)  # type: ignore[attr-defined]


def test_the_static_table_is_the_rfcs() -> None:
    """All 61 entries."""
    assert tuple(HeaderTable.STATIC_TABLE) == STATIC_TABLE


def test_the_examples_of_the_rfc() -> None:
    """RFC 7541, appendix C.4: three requests with Huffman codes on one connection."""
    blocks = (
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        "828684be5886a8eb10649cbf",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
    )
    ours = decoder()
    first, second, third = (ours.decode(bytes.fromhex(block)).fields for block in blocks)
    assert (b":authority", b"www.example.com") == first[3]
    assert (b"cache-control", b"no-cache") == second[4]
    assert ((b":path", b"/index.html"), (b"custom-key", b"custom-value")) == (third[2], third[4])


@given(st.binary(max_size=200))
def test_huffman_strings_are_the_oracles(data: bytes) -> None:
    """Encoded here, decoded here and there."""
    encoded = huffman.encode(data)
    assert data == huffman.decode(encoded)
    assert data == decode_huffman(encoded)


@given(st.binary(max_size=40))
def test_huffman_accepts_what_the_oracle_accepts(data: bytes) -> None:
    """Any bytes: the same string, or refused by both."""
    try:
        expected: bytes | None = bytes(decode_huffman(data))
    except oracle.HPACKDecodingError:
        expected = None
    try:
        found: bytes | None = huffman.decode(data)
    except HpackError:
        found = None
    assert expected == found


@given(st.lists(header_lists, max_size=8), st.lists(st.integers(0, 8192), max_size=8))
def test_the_oracle_decodes_what_we_encode(lists: list[Fields], sizes: list[int]) -> None:
    """Any sequence of header lists, with table sizes that change between them."""
    ours, theirs = Encoder(), oracle.Decoder(max_header_list_size=1 << 20)
    own = decoder()
    for number, fields in enumerate(lists):
        if number < len(sizes):
            ours.resize(sizes[number])
            theirs.max_allowed_table_size = 8192
        block = ours.encode(fields)
        assert fields == pairs(theirs.decode(block, raw=True))
        assert fields == own.decode(block).fields


@given(st.lists(header_lists, max_size=8), st.booleans())
def test_we_decode_what_the_oracle_encodes(lists: list[Fields], is_huffman: bool) -> None:
    """The other way round; every list twice, so that the decoder's cache is used."""
    ours, theirs = decoder(), oracle.Encoder()
    for fields in [each for each in lists for _ in range(2)]:
        assert fields == ours.decode(theirs.encode(fields, huffman=is_huffman)).fields


@settings(max_examples=300)
@given(st.lists(st.binary(min_size=1, max_size=60), max_size=4))
def test_any_bytes_are_decoded_alike_or_refused_by_both(blocks: list[bytes]) -> None:
    """What the oracle decodes we decode to the same, or refuse for an integer's length; nothing else is raised."""
    ours, theirs = decoder(), oracle.Decoder(max_header_list_size=1 << 20)
    for block in blocks:
        try:
            expected = pairs(theirs.decode(block, raw=True))
        except oracle.HPACKError:
            with pytest.raises(HpackError):
                ours.decode(block)
            return
        try:
            assert expected == ours.decode(block).fields
        except HpackError as error:
            assert "too long" in str(error) or "table size" in str(error) or "are allowed" in str(error)
            return


def test_mutated_traffic_is_decoded_alike() -> None:
    """Header blocks as clients send them, with single bytes changed: a thousand seeds."""
    for seed in range(1_000):
        chance = random.Random(seed)
        theirs, ours = oracle.Decoder(max_header_list_size=1 << 20), decoder()
        encoder = oracle.Encoder()
        for number in range(4):
            block = bytearray(
                encoder.encode([(":path", f"/a/{number % 2}"), ("grpc-timeout", f"{seed}m"), ("te", "trailers")])
            )
            if chance.random() < 0.5:
                block[chance.randrange(len(block))] = chance.randrange(256)
            try:
                expected = pairs(theirs.decode(bytes(block), raw=True))
            except oracle.HPACKError:
                with pytest.raises(HpackError):
                    ours.decode(bytes(block))
                break
            try:
                found = ours.decode(bytes(block)).fields
            except HpackError:
                break
            assert expected == found, f"seed {seed}"


def test_a_repeated_block_is_decoded_once() -> None:
    """The same object comes back while the table stays as it is, and another one when indexes mean something else."""
    ours, encoder = decoder(), Encoder()
    fields: Fields = ((b":path", b"/a"), (b"x-a", b"1"))
    ours.decode(encoder.encode(fields))
    block = encoder.encode(fields)
    first = ours.decode(block)
    assert first is ours.decode(block)
    ours.decode(encoder.encode(((b"x-b", b"2"),)))
    assert fields != ours.decode(block).fields


def test_a_list_beyond_the_limit_keeps_the_tables_in_step() -> None:
    """What does not fit is dropped, and the entries that the block added are there."""
    ours, encoder = Decoder(200), Encoder()
    large = ours.decode(encoder.encode(tuple((b"x-%d" % number, b"v" * 20) for number in range(20))))
    assert (True, 3) == (large.too_large, len(large.fields))
    assert ((b"x-19", b"v" * 20),) == ours.decode(encoder.encode(((b"x-19", b"v" * 20),))).fields


def test_secrets_never_enter_a_table() -> None:
    """They are marked as never indexed (§6.2.3)."""
    block = Encoder().encode(((b"authorization", b"Bearer x"),))
    assert 0x10 == block[0] & 0xF0
    decoded: HeaderList = decoder().decode(block)
    assert ((b"authorization", b"Bearer x"),) == decoded.fields
