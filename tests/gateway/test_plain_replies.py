"""What is put together by hand is what protobuf writes, to the byte."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raftcache.gateway.encode import ENCODERS, fill_header
from raftcache.gateway.plain_replies import plain_reply, varint
from raftcache.gateway.routes import Hint
from raftcache.ids import Index, Revision, ShardId
from raftcache.kv.operations import Delete, Get, GetResult, KeyEntry, Operation, Put, WriteResult
from raftcache.node.api import Reply

NUMBERS = st.one_of(st.sampled_from([0, 1, 127, 128, 16_383, 16_384, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1))
ENTRIES = st.builds(
    KeyEntry,
    key=st.binary(min_size=1, max_size=300),
    value=st.binary(max_size=300),
    version=NUMBERS,
    create_revision=NUMBERS,
    mod_revision=NUMBERS,
    lease=NUMBERS,
    expiry_ms=NUMBERS,
)
ENTRY = KeyEntry(b"key", b"", 1, Revision(1), Revision(1))
RESULTS = st.one_of(
    st.tuples(st.just(Get(b"key")), st.builds(GetResult, NUMBERS, st.none() | ENTRIES)),
    st.tuples(st.just(Put(b"key", b"")), st.builds(WriteResult, NUMBERS, st.booleans())),
)
REPLIES = st.tuples(
    RESULTS, st.integers(0, 2**32 - 1), NUMBERS, NUMBERS, st.none() | st.builds(Hint, st.text(), NUMBERS)
)


def by_the_library(operation: Operation, reply: Reply, hint: Hint | None) -> bytes:
    """The same reply, its message filled and serialised."""
    encoder = ENCODERS[type(operation)]
    message = encoder.message()
    result = reply.result
    assert isinstance(result, (GetResult, WriteResult))
    fill_header(message.header, reply, result.revision, lambda _: hint)
    encoder.fill(message, operation, result)
    data: bytes = message.SerializeToString()
    return data


@given(REPLIES)
@example(((Get(b"key"), GetResult(Revision(0), ENTRY)), 0, 0, 0, Hint("", 0)))
def test_a_reply_is_what_the_library_writes(
    drawn: tuple[tuple[Operation, GetResult | WriteResult], int, int, int, Hint | None],
) -> None:
    """Every field, absent ones too, and every length of a number."""
    (operation, result), shard, index, age_ms, hint = drawn
    reply = Reply(None, result, ShardId(shard), Index(index), age_ms)
    assert by_the_library(operation, reply, hint) == plain_reply(operation, reply, lambda _: hint)


@pytest.mark.parametrize(
    ("operation", "result"),
    [
        (Put(b"key", b"value"), WriteResult(Revision(1), previous=ENTRY)),
        (Put(b"key", b"value"), WriteResult(Revision(1), succeeded=False, current=ENTRY)),
        (Delete(b"key"), WriteResult(Revision(1), deleted=True)),
        (Put(b"key", b"value"), GetResult(Revision(1), None)),
    ],
)
def test_every_other_reply_is_left_to_the_library(operation: Operation, result: GetResult | WriteResult) -> None:
    """A Put that returns an entry, whatever else answers with a WriteResult, and a result of another operation."""
    assert plain_reply(operation, Reply(None, result), lambda _: None) is None


def test_a_negative_number_is_refused() -> None:
    """The library raises too. It would be a bug, and is not to be sent as another number."""
    with pytest.raises(AssertionError):
        varint(-1)
