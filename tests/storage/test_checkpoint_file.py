"""Headers, digests and names of checkpoints: what was written is read back, and nothing else."""

from itertools import pairwise

import crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.errors import Corruption, UnsupportedVersion
from raftcache.ids import Index, ReplicaId, Term
from raftcache.raft.messages import Configuration, SnapshotMeta
from raftcache.storage.checkpoint_file import (
    DIGEST_BLOCK_BYTES,
    HEADER_BYTES_MAX,
    HEADER_VERSION,
    STREAM_LENGTH,
    BlockDigest,
    CheckpointHeader,
    decode_header,
    directory_name,
    parse_directory_name,
)
from raftcache.storage.checkpoints import StreamParser

NUMBERS = st.integers(0, 2**64 - 1)
MEMBERS = st.lists(st.integers(1, 2**63).map(ReplicaId), max_size=9, unique=True).map(lambda ids: tuple(sorted(ids)))
HEADERS = st.builds(
    CheckpointHeader,
    format=st.text(max_size=40),
    meta=st.builds(
        SnapshotMeta,
        NUMBERS.map(Index),
        NUMBERS.map(Term),
        st.builds(Configuration, MEMBERS, MEMBERS, MEMBERS, MEMBERS),
    ),
    record_count=NUMBERS,
    state_hash=st.integers(0, 2**128 - 1),
    state_bytes=NUMBERS,
    digest=st.binary(min_size=16, max_size=16),
)
HEADER = CheckpointHeader("f", SnapshotMeta(Index(7), Term(2), Configuration((ReplicaId(1),))), 5, 99, 10, bytes(16))


def digest_of(data: bytes) -> bytes:
    digest = BlockDigest()
    digest.update(data)
    return digest.digest()


@given(header=HEADERS)
def test_header_is_read_back_as_it_was_written(header: CheckpointHeader) -> None:
    """Every field survives, joint configurations too, and the header stays below its limit."""
    encoded = header.encode()

    assert decode_header(encoded, source="test") == header
    assert len(encoded) <= HEADER_BYTES_MAX


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_header_with_any_flipped_bit_is_refused(position: float, bit: int) -> None:
    """No single bit of a header can change without notice."""
    encoded = bytearray(HEADER.encode())
    encoded[int(position * len(encoded))] ^= 1 << bit

    with pytest.raises(Corruption, match="here"):
        decode_header(bytes(encoded), source="here")


def test_header_of_a_newer_release_is_refused_by_its_version() -> None:
    """The message names both versions, because the way out is an upgrade."""
    body = HEADER.encode().split(b"\n")[0].replace(b'"version": 1', b'"version": 2')
    with pytest.raises(UnsupportedVersion, match=f"version 2, this release reads up to {HEADER_VERSION}"):
        decode_header(body + b"\n" + f"{crc32c.crc32c(body):08x}\n".encode(), source="test")


@settings(max_examples=30)
@given(
    size=st.integers(1, 3 * DIGEST_BLOCK_BYTES),
    cuts=st.lists(st.floats(0, 1), max_size=5),
    position=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_digest_depends_on_every_bit_and_on_no_chunking(
    size: int, cuts: list[float], position: float, bit: int
) -> None:
    """The same bytes in other pieces have the same digest; a flipped bit or a cut gives another."""
    data = bytearray(b"0123456789abcdef" * (size // 16 + 1))[:size]
    expected = digest_of(bytes(data))
    pieces = BlockDigest()
    bounds = sorted({0, size, *(int(cut * size) for cut in cuts)})
    for lo, hi in pairwise(bounds):
        pieces.update(memoryview(data)[lo:hi])

    assert pieces.digest() == expected
    assert digest_of(bytes(data[:-1])) != expected
    data[int(position * size)] ^= 1 << bit
    assert digest_of(bytes(data)) != expected


def test_digest_tells_swapped_blocks_apart() -> None:
    """Blocks in another order are another file."""
    first, second = b"a" * DIGEST_BLOCK_BYTES, b"b" * DIGEST_BLOCK_BYTES

    assert digest_of(first + second) != digest_of(second + first)


@pytest.mark.parametrize("name", ["draft-1", "old-2", "1-2-3", "-1", "x1-2", "1-2 ", "١-٢", ""])
def test_other_names_are_no_checkpoints(name: str) -> None:
    """Only what is named like a checkpoint is read as one."""
    assert parse_directory_name(name) is None
    assert parse_directory_name(directory_name(HEADER.meta)) == (7, 2)


@settings(max_examples=50)
@given(data=st.binary(max_size=600), cuts=st.lists(st.floats(0, 1), max_size=8))
def test_stream_parser_separates_header_and_state_at_any_chunking(data: bytes, cuts: list[float]) -> None:
    """Chunks may end anywhere, inside the header too."""
    header = CheckpointHeader("f", HEADER.meta, 5, 99, len(data), digest_of(data))
    encoded = header.encode()
    stream = STREAM_LENGTH.pack(len(encoded)) + encoded + data
    parser = StreamParser(len(stream))
    bounds = sorted({0, len(stream), *(int(cut * len(stream)) for cut in cuts)})
    state = b"".join(parser.feed(stream[lo:hi]) for lo, hi in pairwise(bounds))

    assert state == data
    assert parser.complete() == header


def test_stream_with_an_oversized_header_is_refused_before_it_is_buffered() -> None:
    """A peer cannot make us hold more than a header's worth."""
    with pytest.raises(Corruption, match="header of"):
        StreamParser(1 << 40).feed(STREAM_LENGTH.pack(HEADER_BYTES_MAX + 1))


def test_stream_that_goes_on_behind_its_end_is_refused_at_once() -> None:
    """A peer cannot make us store more than was announced, and checked against the room that there is."""
    header = CheckpointHeader("f", HEADER.meta, 5, 99, 3, digest_of(b"abc"))
    encoded = header.encode()
    stream = STREAM_LENGTH.pack(len(encoded)) + encoded + b"abc"
    parser = StreamParser(len(stream))
    assert b"abc" == parser.feed(stream)
    with pytest.raises(Corruption, match="has at least"):
        parser.feed(b"d")


def test_header_and_digest_are_stable() -> None:
    """A golden value: the forms on disk do not change by accident."""
    golden = (
        b'{"version": 1, "format": "f", "index": 7, "term": 2, "voters": [1], "voters_outgoing": [], "learners": [], '
        b'"learners_next": [], "record_count": 5, "state_hash": "00000000000000000000000000000063", "state_bytes": 10, '
        b'"digest": "00000000000000000000000000000000"}\n'
    )
    assert HEADER.encode().startswith(golden)
    assert digest_of(b"raftcache").hex() == "32505e1806c6eb2eef297053d34ee5ff"
