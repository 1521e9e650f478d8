"""A stream falls into the same frames however it is cut, and a damaged one into none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftcache.errors import ProtocolError, UnsupportedVersion
from raftcache.transport.frames import (
    FRAME_VERSION,
    HEADER_BYTES,
    FrameParser,
    FrameType,
    FrameWriter,
    encode_frame,
)

frames = st.lists(st.tuples(st.sampled_from(FrameType), st.binary(max_size=300)), max_size=8)


def write(contents: list[tuple[FrameType, bytes]]) -> bytes:
    writer = FrameWriter()
    for kind, payload in contents:
        half = len(payload) // 2
        writer.add(kind, [payload[:half], payload[half:]], len(payload))
    return bytes(writer.finish())


def read(parser: FrameParser) -> tuple[FrameType, bytes] | None:
    frame = parser.next_frame()
    return None if frame is None else (frame[0], bytes(frame[1]))


def parse(parser: FrameParser, chunks: list[bytes]) -> list[tuple[FrameType, bytes]]:
    found = []
    for chunk in chunks:
        parser.receive(chunk)
        while (frame := read(parser)) is not None:
            found.append(frame)
    return found


@given(frames)
def test_byte_by_byte_gives_the_same_frames(contents: list[tuple[FrameType, bytes]]) -> None:
    """The slowest of all networks changes nothing."""
    stream = write(contents)
    assert parse(FrameParser(), [stream[i : i + 1] for i in range(len(stream))]) == contents


@given(frames, st.data())
def test_any_split_gives_the_same_frames(contents: list[tuple[FrameType, bytes]], data: st.DataObject) -> None:
    """Chunks that hold parts of frames, or many of them, change nothing."""
    stream = write(contents)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    chunks = [stream[lo:hi] for lo, hi in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert parse(FrameParser(), chunks) == contents


@given(frames.filter(bool), st.data())
def test_flipped_bit_is_never_a_frame(contents: list[tuple[FrameType, bytes]], data: st.DataObject) -> None:
    """After one flipped bit the frames before it come out, and then an error, or a wait for what never comes."""
    stream = bytearray(write(contents))
    bit = data.draw(st.integers(0, len(stream) * 8 - 1))
    stream[bit // 8] ^= 1 << bit % 8
    ends, position = [], 0
    for _, payload in contents:
        position += HEADER_BYTES + len(payload)
        ends.append(position)
    intact = [frame for frame, end in zip(contents, ends, strict=True) if end <= bit // 8]
    parser = FrameParser()
    parser.receive(bytes(stream))
    for frame in intact:
        assert read(parser) == frame
    try:
        assert parser.next_frame() is None
    except (ProtocolError, UnsupportedVersion):
        pass


@given(st.binary(min_size=HEADER_BYTES, max_size=100))
def test_noise_is_not_a_frame(noise: bytes) -> None:
    """Another protocol on this port is refused, or waits; it is never believed."""
    parser = FrameParser()
    parser.receive(noise)
    try:
        assert parser.next_frame() is None
    except (ProtocolError, UnsupportedVersion):
        pass


def test_too_long_frame_is_refused_by_its_header_alone() -> None:
    """Nobody makes us buffer more than is allowed: the announcement is enough to refuse."""
    parser = FrameParser(100)
    parser.receive(bytes(encode_frame(FrameType.RAFT, bytes(100))))
    assert read(parser) == (FrameType.RAFT, bytes(100))
    parser.receive(bytes(encode_frame(FrameType.RAFT, bytes(101)))[:HEADER_BYTES])
    with pytest.raises(ProtocolError, match="announces 101 bytes"):
        parser.next_frame()


def test_http_request_is_refused_with_a_hint() -> None:
    """The message says what is likely wrong, since it will be a wrong port or one-sided TLS."""
    parser = FrameParser()
    parser.receive(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(ProtocolError, match="not a raftcache peer port, or one side speaks TLS"):
        parser.next_frame()


def test_newer_frame_is_refused_with_both_versions() -> None:
    """The frame's layout has a version of its own, checked before anything else of it is."""
    frame = encode_frame(FrameType.RAFT, b"")
    frame[5] = FRAME_VERSION + 1
    parser = FrameParser()
    parser.receive(bytes(frame))
    with pytest.raises(UnsupportedVersion, match="version 2; this release reads up to 1"):
        parser.next_frame()


def test_large_frame_in_small_chunks_is_joined_once() -> None:
    """A frame of 4 MiB in chunks of 1 KiB is copied a bounded number of times, not once per chunk."""
    joins = 0

    class Counting(FrameParser):
        __slots__ = ()

        def _join(self) -> None:
            nonlocal joins
            joins += 1
            super()._join()

    payload = bytes(4 << 20)
    stream = bytes(encode_frame(FrameType.RAFT, payload))
    found = parse(Counting(), [stream[i : i + 1024] for i in range(0, len(stream), 1024)])
    assert found == [(FrameType.RAFT, payload)]
    assert joins <= 2
