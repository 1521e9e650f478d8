"""Operations, batches and results survive their bytes, and no other bytes are taken for them."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftcache import errors
from raftcache.errors import NotLeader, OutcomeUnknown, RaftCacheError, Unavailable, UnsupportedVersion
from raftcache.ids import Revision, Slot
from raftcache.kv import result_codec
from raftcache.kv.codec import (
    Batch,
    MalformedBytes,
    decode_batch,
    decode_operation,
    decode_outcome,
    decode_result,
    encode_batch,
    encode_operation,
    encode_outcome,
    encode_result,
)
from raftcache.kv.operations import (
    Command,
    CompareAndSwap,
    Delete,
    Failure,
    Increment,
    IncrementResult,
    KeyEntry,
    Operation,
    Put,
    Result,
    Scan,
    SessionStamp,
    WriteResult,
)
from tests.kv.strategies import COMMANDS, OPERATIONS, RESULTS, U64

ENTRY = KeyEntry(b"k", b"v", 2, Revision(3), Revision(5))


@given(st.lists(COMMANDS, max_size=6), U64)
def test_a_batch_survives_its_bytes(commands: list[Command], proposed_ms: int) -> None:
    """Decoding gives back the commands, their slots and stamps, and the time."""
    assert Batch(proposed_ms, commands) == decode_batch(encode_batch(commands, proposed_ms=proposed_ms))


@given(OPERATIONS)
def test_an_operation_survives_its_bytes(operation: Operation) -> None:
    """Reads and writes alike."""
    assert operation == decode_operation(encode_operation(operation))


@pytest.mark.parametrize(
    "operation",
    [
        Scan(b"a"),
        Scan(b"a", b"b"),
        Scan(b"a", keys_only=True),
        Scan(b"a", count_only=True),
        Put(b"a", b"1"),
        Put(b"a", b"1", return_previous=True),
        Delete(b"a"),
        Delete(b"a", return_previous=True),
        CompareAndSwap(b"a", None, b"1"),
        CompareAndSwap(b"a", b"", b"1"),
    ],
)
def test_what_is_asked_for_survives_its_bytes_and_nothing_else_is(operation: Operation) -> None:
    """Each flag by itself, and none."""
    assert operation == decode_operation(encode_operation(operation))


@given(RESULTS)
def test_a_result_survives_its_bytes(result: Result) -> None:
    """Every result, entries with reserved fields included."""
    assert result == decode_result(encode_result(result))


@pytest.mark.parametrize("succeeded", [True, False])
@pytest.mark.parametrize("deleted", [True, False])
@pytest.mark.parametrize("previous", [None, ENTRY])
@pytest.mark.parametrize("current", [None, ENTRY])
def test_what_a_write_did_survives_its_bytes_and_nothing_else_does(
    succeeded: bool, deleted: bool, previous: KeyEntry | None, current: KeyEntry | None
) -> None:
    """Each flag by itself, and none: what did not succeed never comes out as if it had."""
    result = WriteResult(Revision(7), succeeded, previous, current, deleted)
    assert result == decode_result(encode_result(result))


def damaged(data: bytes, draw: st.DataObject) -> bytes:
    """Flip, cut, double or insert bytes."""
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(changed)))
        action = draw.draw(st.sampled_from(["flip", "cut", "insert", "extend"]))
        if action == "flip" and at < len(changed):
            changed[at] ^= draw.draw(st.integers(1, 255))
        elif action == "cut":
            del changed[at : at + draw.draw(st.integers(1, 8))]
        elif action == "insert":
            changed[at:at] = draw.draw(st.binary(min_size=1, max_size=4))
        else:
            changed += draw.draw(st.binary(min_size=1, max_size=4))
    return bytes(changed)


@given(st.lists(COMMANDS, min_size=1, max_size=3), st.data())
def test_damaged_batches_are_refused_or_are_other_batches(commands: list[Command], draw: st.DataObject) -> None:
    """Damage raises one of two errors, or gives commands that encode to exactly these bytes: decoding is canonical."""
    data = damaged(encode_batch(commands, proposed_ms=1), draw)
    try:
        batch = decode_batch(data)
    except (MalformedBytes, UnsupportedVersion):
        return
    assert data == encode_batch(batch.commands, proposed_ms=batch.proposed_ms)


@given(OPERATIONS, st.data())
def test_damaged_operations_are_refused_or_are_other_operations(operation: Operation, draw: st.DataObject) -> None:
    """As for batches."""
    data = damaged(encode_operation(operation), draw)
    try:
        decoded = decode_operation(data)
    except (MalformedBytes, UnsupportedVersion):
        return
    assert data == encode_operation(decoded)


@given(RESULTS, st.data())
def test_damaged_results_raise_nothing_unexpected(result: Result, draw: st.DataObject) -> None:
    """A damaged reply from another node is one of two errors, or another outcome."""
    data = damaged(encode_result(result), draw)
    for decode in (decode_result, decode_outcome):
        try:
            decode(data)
        except (MalformedBytes, UnsupportedVersion):
            pass


@given(st.binary(max_size=60), st.sampled_from([0, 1, 1, 1, 2, 255]))
def test_random_bytes_raise_nothing_unexpected(data: bytes, version: int) -> None:
    """Noise, with and without a version in front, never raises anything but the two errors."""
    for noise in (data, bytes([version]) + data, bytes([1]) + bytes(8) + struct.pack(">I", 1) + data):
        for decode in (decode_batch, decode_operation, decode_result, decode_outcome):
            try:
                decode(noise)
            except (MalformedBytes, UnsupportedVersion):
                pass


def test_every_cut_of_a_batch_is_refused() -> None:
    """No prefix of a batch is a batch, and neither is a batch with a byte more."""
    commands = [
        Command(Put(b"key", b"value"), Slot(5), SessionStamp(1, 2, 3)),
        Command(Increment(b"n", namespace=1), Slot(-1)),
        Command(Put(b"key", b""), Slot(5)),
    ]
    data = encode_batch(commands, proposed_ms=9)
    for cut in range(len(data)):
        with pytest.raises(MalformedBytes):
            decode_batch(data[:cut])
    with pytest.raises(MalformedBytes):
        decode_batch(data + b"\0")


def test_newer_versions_are_refused_with_both_versions() -> None:
    """What a newer release wrote is UnsupportedVersion, which says what was found and what is known."""
    batch = bytes([2]) + encode_batch([], proposed_ms=0)[1:]
    operation = bytes([3]) + encode_operation(Put(b"k", b""))[1:]
    result = bytes([4]) + encode_result(Failure("X", ""))[1:]
    for decode, data, found in (
        (decode_batch, batch, 2),
        (decode_operation, operation, 3),
        (decode_result, result, 4),
        (decode_outcome, result, 4),
    ):
        with pytest.raises(UnsupportedVersion, match=f"version {found}, and this release knows versions up to 1"):
            decode(data)


@pytest.mark.parametrize("operation", [Increment(b"k", 2**63), Put(b"k" * 65536, b""), Put(b"k", b"", ttl_ms=-1)])
def test_what_fits_no_field_cannot_be_encoded(operation: Put | Increment) -> None:
    """Numbers and lengths out of range raise ValueError, alone and in a batch."""
    with pytest.raises(ValueError, match="cannot be encoded"):
        encode_operation(operation)
    with pytest.raises(ValueError, match="cannot be encoded"):
        encode_batch([Command(operation, Slot(0))], proposed_ms=0)


def test_a_result_that_fits_no_field_cannot_be_encoded() -> None:
    """It is refused, and not cut short."""
    with pytest.raises(ValueError, match="a IncrementResult cannot be encoded"):
        encode_result(IncrementResult(Revision(1), 2**63))


def test_the_bytes_of_version_1_stay_what_they_are() -> None:
    """Batches of this release are in logs; a change of these bytes needs a new version."""
    commands = [
        Command(Put(b"k", b"v"), Slot(0x1234), SessionStamp(1, 2, 3)),
        Command(Put(b"k", b"", namespace=1, ttl_ms=2, lease=3), Slot(-1)),
    ]
    expected = (
        "01" "0000000000000005" "00000002"
        "01" "80" "1234" "0001" "00000001"
        "0000000000000001" "0000000000000002" "0000000000000003" "6b" "76"
        "01" "40" "ffff" "0001" "00000000"
        "00000001" "0000000000000002" "0000000000000003" "6b"
    )  # fmt: skip
    assert expected == encode_batch(commands, proposed_ms=5).hex()
    assert "01010100000000000000ff" == encode_result(WriteResult(255)).hex()  # type: ignore[arg-type]


def error_classes() -> list[type[RaftCacheError]]:
    return [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, RaftCacheError)]


@pytest.mark.parametrize("kind", error_classes())
def test_errors_travel_between_nodes(kind: type[RaftCacheError]) -> None:
    """Class, message and metadata of every error survive."""
    decoded = decode_outcome(encode_outcome(kind("what happened", metadata={"shard": "3", "a": ""})))
    assert kind is type(decoded)
    assert isinstance(decoded, RaftCacheError)
    assert ("what happened", {"shard": "3", "a": ""}) == (decoded.message, decoded.metadata)


def test_every_reason_belongs_to_one_class() -> None:
    """Otherwise an error would come out of the wire as another."""
    reasons = [kind.reason for kind in error_classes()]
    assert sorted(set(reasons)) == sorted(reasons)


@pytest.mark.parametrize(("definite", "expected"), [(True, Unavailable), (False, OutcomeUnknown)])
def test_an_unknown_reason_keeps_whether_it_is_definite(definite: bool, expected: type[RaftCacheError]) -> None:
    """A newer peer's error becomes the one that promises no more than it did."""

    class Later(RaftCacheError):
        reason = "LATER"

    Later.definite = definite
    decoded = decode_outcome(encode_outcome(Later("words")))
    assert expected is type(decoded)
    assert str(decoded) == "LATER: words"


def test_an_error_is_no_result() -> None:
    """Where only a result can stand, an error is malformed."""
    with pytest.raises(MalformedBytes, match="NOT_LEADER"):
        decode_result(encode_outcome(NotLeader("elsewhere")))


@pytest.mark.parametrize("at", [2, 3], ids=["flags", "number"])
def test_an_error_with_what_no_release_wrote_is_refused(at: int) -> None:
    """A flag that is unknown here, or a number where none belongs, is not passed over."""
    data = bytearray(encode_outcome(NotLeader("elsewhere")))
    data[at] |= 0x80
    with pytest.raises(MalformedBytes, match="error with flags"):
        decode_outcome(bytes(data))


def test_long_messages_are_cut_between_characters() -> None:
    """A message of any length travels, cut, and as valid text."""
    decoded = decode_result(encode_result(Failure("X", "é" * 70_000)))
    assert Failure("X", "é" * (result_codec.TEXT_BYTES_MAX // 2)) == decoded
