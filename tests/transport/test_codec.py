"""Every Raft message survives the wire, and nothing else does."""

import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftcache.errors import ProtocolError, UnsupportedVersion
from raftcache.ids import Index, ReplicaId, ShardId, Term
from raftcache.raft.messages import Append, Entry, EntryKind, Heartbeat, HeartbeatReply, Message, TimeoutNow
from raftcache.transport.codec import SECTION_VERSION, decode_section, encode_head, encode_section
from tests.transport.strategies import MESSAGES, sections, shards


def encode(*messages: tuple[ShardId, Message]) -> bytes:
    return b"".join(encode_section(messages))


def wire_order(message: tuple[ShardId, Message]) -> int:
    return {Heartbeat: 0, HeartbeatReply: 1}.get(type(message[1]), 2)


def test_every_kind_of_message_has_a_strategy() -> None:
    """A message that is added to the core must be added to the wire, and to these tests."""
    assert set(MESSAGES) == set(typing.get_args(Message))


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_message_comes_out_as_it_went_in(kind: type, data: st.DataObject) -> None:
    """Each kind round-trips alone, with all of its fields and their types."""
    shard, message = data.draw(shards), data.draw(MESSAGES[kind])
    decoded = decode_section(encode((shard, message)))
    assert decoded == [(shard, message)]
    assert repr(decoded) == repr([(shard, message)])


@given(sections)
def test_section_comes_out_with_heartbeats_first_and_the_rest_in_order(
    section: list[tuple[ShardId, Message]],
) -> None:
    """Messages of all shards round-trip together; the order within each part is the order of sending."""
    assert decode_section(encode(*section)) == sorted(section, key=wire_order)


def test_entry_data_goes_into_the_frame_by_reference() -> None:
    """The bytes that the log has are the bytes that are joined: they are encoded once, for every peer."""
    data = bytes(1 << 16)
    entry = Entry(Term(1), Index(8), EntryKind.COMMANDS, data)
    message = Append(ReplicaId(1), ReplicaId(2), Term(1), Index(7), Term(1), Index(7), [entry])
    assert any(buffer is data for buffer in encode_section([(ShardId(1), message)]))


def test_append_with_a_gap_is_a_bug() -> None:
    """Indexes are not on the wire, so entries that do not follow `previous_index` must not pass."""
    entry = Entry(Term(1), Index(9), EntryKind.COMMANDS, b"")
    message = Append(ReplicaId(1), ReplicaId(2), Term(1), Index(7), Term(1), Index(7), [entry])
    with pytest.raises(AssertionError, match="append after 7 starts at 9"):
        encode((ShardId(1), message))


@given(sections, st.data())
def test_cut_section_is_refused(section: list[tuple[ShardId, Message]], data: st.DataObject) -> None:
    """A section that ends early, at whatever byte, is refused as a whole."""
    encoded = encode(*section)
    with pytest.raises(ProtocolError):
        decode_section(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@given(sections, st.binary(min_size=1, max_size=60))
def test_trailing_bytes_are_refused(section: list[tuple[ShardId, Message]], more: bytes) -> None:
    """What follows the announced messages is not ignored."""
    with pytest.raises(ProtocolError):
        decode_section(encode(*section) + more)


@given(sections, st.data())
def test_damaged_section_decodes_to_something_or_is_refused(
    section: list[tuple[ShardId, Message]], data: st.DataObject
) -> None:
    """Whatever is flipped, only the declared errors come out, and what decodes encodes to the same bytes again."""
    encoded = bytearray(encode(*section))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_section(bytes(encoded))
    except (ProtocolError, UnsupportedVersion):
        return
    assert encode(*decoded) == bytes(encoded)


@given(st.binary(max_size=300))
def test_noise_is_refused(noise: bytes) -> None:
    """Random bytes raise the declared errors and nothing else."""
    try:
        decode_section(bytes([SECTION_VERSION]) + noise)
    except (ProtocolError, UnsupportedVersion):
        pass


def test_count_without_bytes_allocates_nothing() -> None:
    """A head that announces four billion messages is refused at the first one that is not there."""
    for head in (
        encode_head(heartbeats=2**32 - 1, heartbeat_replies=0, messages=0),
        encode_head(heartbeats=0, heartbeat_replies=2**32 - 1, messages=0),
        encode_head(heartbeats=0, heartbeat_replies=0, messages=2**32 - 1),
    ):
        with pytest.raises(ProtocolError):
            decode_section(head)


def test_newer_section_is_refused_with_both_versions() -> None:
    """A message of a newer release is not guessed at."""
    encoded = encode((ShardId(1), TimeoutNow(ReplicaId(1), ReplicaId(2), Term(3))))
    with pytest.raises(UnsupportedVersion, match="format 2; this release reads up to 1"):
        decode_section(bytes([SECTION_VERSION + 1]) + encoded[1:])
