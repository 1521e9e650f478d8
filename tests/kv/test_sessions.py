"""A write under a session is applied once, whatever is sent twice, and sessions stay bounded."""

import pytest

from raftcache.errors import Corruption, UnsupportedVersion
from raftcache.ids import Slot
from raftcache.kv.layout import seal
from raftcache.kv.limits import KvLimits
from raftcache.kv.machine import Machine
from raftcache.kv.operations import (
    CloseSession,
    CompareAndSwap,
    Failure,
    Increment,
    IncrementResult,
    OpenSession,
    Put,
    SessionResult,
    SessionStamp,
    SetOwnership,
    WriteOperation,
    WriteResult,
)
from raftcache.kv.sessions import REPLY_OVERHEAD_BYTES, RETRIED_FAILURE, SESSION_VERSION, session_key
from raftcache.kv.slots import slot_of
from tests.kv.shard import Shard


@pytest.fixture
def shard() -> Shard:
    return Shard()


def test_a_retry_gets_the_same_reply_and_changes_nothing(shard: Shard) -> None:
    """The reply of the first attempt, at its revision, also after a reload; the counter counts once."""
    session = shard.open()
    first = shard.one(Increment(b"n", 5), SessionStamp(session, 1, 1))
    shard.one(Put(b"other", b""))
    assert first == shard.one(Increment(b"n", 5), SessionStamp(session, 1, 1))
    shard.reload()
    assert first == shard.one(Increment(b"n", 5), SessionStamp(session, 1, 1))
    assert IncrementResult(1, 5) == first  # type: ignore[arg-type]
    assert (b"5", 2) == (shard.value(b"n"), shard.machine.revision)
    shard.assert_verified()


@pytest.mark.parametrize("reloaded", [False, True])
def test_retries_repeat_every_kind_of_reply(shard: Shard, reloaded: bool) -> None:
    """Plain writes, returned entries, lost swaps: all come out as they were."""
    session = shard.open()
    operations: list[WriteOperation] = [
        Put(b"k", b"1"),
        Put(b"k", b"2", return_previous=True),
        CompareAndSwap(b"k", b"no", b"3"),
        Increment(b"n"),
    ]
    stamps = [SessionStamp(session, number, 1) for number in range(1, 5)]
    first = shard.run(*operations, stamps=stamps)
    if reloaded:
        shard.reload()
    assert first == shard.run(*operations, stamps=stamps)


def test_retries_within_one_entry_are_caught(shard: Shard) -> None:
    """Two copies of a command in one batch are one command."""
    session = shard.open()
    stamps = [SessionStamp(session, 1, 1)] * 3
    results = shard.run(*[Increment(b"n")] * 3, stamps=stamps)
    assert [IncrementResult(1, 1)] * 3 == results  # type: ignore[arg-type]


def test_numbers_in_the_window_come_in_any_order(shard: Shard) -> None:
    """A pipelining client's commands are applied as they arrive."""
    session = shard.open()
    for sequence in (3, 1, 4, 2):
        assert isinstance(shard.one(Increment(b"n"), SessionStamp(session, sequence, 1)), IncrementResult)
    assert b"4" == shard.value(b"n")
    assert IncrementResult(2, 2) == shard.one(Increment(b"n"), SessionStamp(session, 1, 1))  # type: ignore[arg-type]


def test_numbers_outside_the_window_are_refused() -> None:
    """Acknowledged numbers and numbers too far ahead get SESSION_WINDOW, and change nothing."""
    shard = Shard(limits=KvLimits(session_window=4))
    session = shard.open()
    assert isinstance(shard.one(Increment(b"n"), SessionStamp(session, 4, 1)), IncrementResult)
    ahead = shard.refused(Increment(b"n"), SessionStamp(session, 5, 1))
    assert "SESSION_WINDOW" == ahead.reason
    assert "limits.session_window allows 4" in ahead.message
    # The refused number is free: with a higher first_unacked it is applied.
    assert isinstance(shard.one(Increment(b"n"), SessionStamp(session, 5, 3)), IncrementResult)
    below = shard.refused(Increment(b"n"), SessionStamp(session, 2, 1))
    assert "SESSION_WINDOW" == below.reason
    assert "below 3" in below.message
    # An old message with an old first_unacked does not move the window back.
    assert "SESSION_WINDOW" == shard.refused(Increment(b"n"), SessionStamp(session, 7, 1)).reason


def test_acknowledged_replies_are_forgotten(shard: Shard) -> None:
    """One by one or by a leap, the replies below first_unacked are dropped."""
    session = shard.open()
    for sequence in range(1, 21):
        shard.one(Put(b"k", b""), SessionStamp(session, sequence, max(1, sequence - 3)))
    assert 4 * (REPLY_OVERHEAD_BYTES + 11) == shard.machine.session_reply_bytes
    shard.one(Put(b"k", b""), SessionStamp(session, 2**40, 2**40))
    assert REPLY_OVERHEAD_BYTES + 11 == shard.machine.session_reply_bytes


@pytest.mark.parametrize("stamp", [(1, 2), (0, 0), (5, 6)])
def test_stamps_that_make_no_sense_are_refused(shard: Shard, stamp: tuple[int, int]) -> None:
    """A command that acknowledges its own reply is refused, and the session is as before."""
    session = shard.open()
    shard.refused(Increment(b"n"), SessionStamp(session, *stamp))
    assert isinstance(shard.one(Increment(b"n"), SessionStamp(session, 1, 1)), IncrementResult)


def test_unknown_sessions_are_refused(shard: Shard) -> None:
    """Never opened, closed: SESSION_EXPIRED, and the command is never applied as new."""
    session = shard.open()
    assert "SESSION_EXPIRED" == shard.refused(Increment(b"n"), SessionStamp(session + 1, 1, 1)).reason
    assert WriteResult(0, deleted=True) == shard.one(CloseSession(session))  # type: ignore[arg-type]
    assert "SESSION_EXPIRED" == shard.refused(Increment(b"n"), SessionStamp(session, 1, 1)).reason
    assert WriteResult(0) == shard.one(CloseSession(session))  # type: ignore[arg-type]
    shard.reload()
    assert "SESSION_EXPIRED" == shard.refused(Increment(b"n"), SessionStamp(session, 1, 1)).reason


def test_refusals_are_kept_like_replies(shard: Shard) -> None:
    """A duplicate of a refused command stays refused, even where it would succeed by now."""
    session = shard.open()
    shard.one(Put(b"n", b"x"))
    first = shard.refused(Increment(b"n"), SessionStamp(session, 1, 1))
    shard.one(Put(b"n", b"1"))
    for _ in range(2):
        assert Failure(first.reason, RETRIED_FAILURE) == shard.refused(Increment(b"n"), SessionStamp(session, 1, 1))
        shard.reload()
    assert b"1" == shard.value(b"n")


def test_a_wrong_shard_is_no_reply(shard: Shard) -> None:
    """The number stays free where the slot was not owned, and a reply given before stays the reply after."""
    session = shard.open()
    first = shard.one(Increment(b"foo"), SessionStamp(session, 1, 1))
    slot = slot_of(b"foo")
    shard.one(SetOwnership(((Slot(0), slot),), 2))
    assert first == shard.one(Increment(b"foo"), SessionStamp(session, 1, 1))
    assert "WRONG_SHARD" == shard.refused(Increment(b"foo"), SessionStamp(session, 2, 1)).reason
    shard.one(SetOwnership(((slot, Slot(slot + 1)),), 3))
    assert IncrementResult(2, 2) == shard.one(Increment(b"foo"), SessionStamp(session, 2, 1))  # type: ignore[arg-type]


def test_session_ids_come_from_the_log_position(shard: Shard) -> None:
    """Unique, never 0, and the same on every replica."""
    results = shard.run(OpenSession(), OpenSession())
    other = Shard().run(OpenSession(), OpenSession())
    assert results == other
    ids = [result.session for result in results if isinstance(result, SessionResult)]
    assert [2 << 20, 2 << 20 | 1] == ids


@pytest.mark.parametrize("reloaded", [False, True])
def test_the_least_recently_used_session_makes_room(reloaded: bool) -> None:
    """One session too many pushes out the one whose last command is the oldest, also after a reload."""
    shard = Shard(limits=KvLimits(sessions_max=3))
    first, second, third = (shard.open() for _ in range(3))
    shard.one(Put(b"k", b""), SessionStamp(first, 1, 1))
    if reloaded:
        shard.reload()
    fourth = shard.open()
    assert 3 == shard.machine.session_count
    assert "SESSION_EXPIRED" == shard.refused(Put(b"k", b""), SessionStamp(second, 1, 1)).reason
    for session in (first, third, fourth):
        assert isinstance(shard.one(Put(b"k", b""), SessionStamp(session, 9, 1)), WriteResult)
    shard.assert_verified()


def test_a_session_full_of_replies_takes_no_new_commands() -> None:
    """Its retries still work, and acknowledging makes room."""
    shard = Shard(limits=KvLimits(session_reply_bytes_max=2 * (REPLY_OVERHEAD_BYTES + 11)))
    session = shard.open()
    for sequence in (1, 2):
        shard.one(Put(b"k", b""), SessionStamp(session, sequence, 1))
    full = shard.refused(Put(b"k", b""), SessionStamp(session, 3, 1))
    assert "SESSION_WINDOW" == full.reason
    assert "limits.session_reply_bytes_max" in full.message
    assert WriteResult(2) == shard.one(Put(b"k", b""), SessionStamp(session, 2, 1))  # type: ignore[arg-type]
    assert WriteResult(3) == shard.one(Put(b"k", b""), SessionStamp(session, 3, 2))  # type: ignore[arg-type]


def test_too_many_bytes_of_replies_push_out_the_least_recently_used() -> None:
    """The shard's limit holds; sessions without replies and the one in use stay."""
    reply = REPLY_OVERHEAD_BYTES + 11
    shard = Shard(limits=KvLimits(session_reply_bytes_max=reply * 10, session_reply_bytes_total_max=reply * 10))
    idle, old, new = (shard.open() for _ in range(3))
    for sequence in range(1, 6):
        shard.one(Put(b"k", b""), SessionStamp(old, sequence, 1))
    for sequence in range(1, 7):
        shard.one(Put(b"k", b""), SessionStamp(new, sequence, 1))
    assert reply * 6 == shard.machine.session_reply_bytes
    assert "SESSION_EXPIRED" == shard.refused(Put(b"k", b""), SessionStamp(old, 6, 1)).reason
    for session in (idle, new):
        assert isinstance(shard.one(Put(b"k", b""), SessionStamp(session, 9, 1)), WriteResult)
    shard.assert_verified()


def test_no_more_sessions_are_pushed_out_than_must_be() -> None:
    """As soon as a tenth is free, those that were used later keep their replies."""
    reply = REPLY_OVERHEAD_BYTES + 11
    shard = Shard(limits=KvLimits(session_reply_bytes_max=reply * 10, session_reply_bytes_total_max=reply * 10))
    oldest, older, new = (shard.open() for _ in range(3))
    for session, count in ((oldest, 4), (older, 4), (new, 3)):
        for sequence in range(1, count + 1):
            shard.one(Put(b"k", b""), SessionStamp(session, sequence, 1))
    assert reply * 7 == shard.machine.session_reply_bytes
    assert "SESSION_EXPIRED" == shard.refused(Put(b"k", b""), SessionStamp(oldest, 5, 1)).reason
    assert WriteResult(8) == shard.one(Put(b"k", b""), SessionStamp(older, 4, 1))  # type: ignore[arg-type]


def test_replies_up_to_the_limit_push_nobody_out() -> None:
    """To the last byte: every one of them is still there for a retry."""
    reply = REPLY_OVERHEAD_BYTES + 11
    shard = Shard(limits=KvLimits(session_reply_bytes_max=reply * 10, session_reply_bytes_total_max=reply * 10))
    old, new = (shard.open() for _ in range(2))
    for session in (old, new):
        for sequence in range(1, 6):
            shard.one(Put(b"k", b""), SessionStamp(session, sequence, 1))
    assert reply * 10 == shard.machine.session_reply_bytes
    assert WriteResult(1) == shard.one(Put(b"k", b""), SessionStamp(old, 1, 1))  # type: ignore[arg-type]


def test_bytes_of_replies_are_the_same_after_a_reload(shard: Shard) -> None:
    """A replica that was started again pushes out the same sessions as those that were not."""
    for _ in range(2):
        session = shard.open()
        shard.one(Increment(b"n"), SessionStamp(session, 1, 1))
    held = shard.machine.session_reply_bytes
    assert held > 0
    shard.reload()
    assert held == shard.machine.session_reply_bytes


def test_a_command_may_end_its_own_session() -> None:
    """Closing under the session's own stamp, or opening one too many, leaves no bytes behind."""
    shard = Shard(limits=KvLimits(sessions_max=1))
    session = shard.open()
    assert isinstance(shard.one(CloseSession(session), SessionStamp(session, 1, 1)), WriteResult)
    session = shard.open()
    assert isinstance(shard.one(OpenSession(), SessionStamp(session, 1, 1)), SessionResult)
    assert (1, 0) == (shard.machine.session_count, shard.machine.session_reply_bytes)
    shard.reload()


def test_session_limits_are_part_of_the_state() -> None:
    """A node that restarts with other settings still refuses what its peers refuse."""
    shard = Shard(limits=KvLimits(session_window=2))
    session = shard.open()
    shard.machine.flush()
    shard.machine = Machine(shard.records, KvLimits(session_window=1000))
    assert "SESSION_WINDOW" == shard.refused(Put(b"k", b""), SessionStamp(session, 3, 1)).reason


def test_damaged_or_missing_sessions_stop_the_start(shard: Shard) -> None:
    """A session that vanished would let a retry be applied again: count and hash are checked."""
    session = shard.open()
    shard.one(Put(b"k", b""), SessionStamp(session, 1, 1))
    shard.machine.flush()
    key = session_key(session)
    good = shard.records.get(key) or b""
    older = seal(key, good[:1] + good[1:9] + bytes(12) + bytes(4))
    for bad in (None, older, good[:-5], seal(key, good[:-4] + b"\0"), seal(key, good[:-5])):
        records = shard.records.copy()
        if bad is None:
            records.delete(key)
        else:
            records.put(key, bad)
        with pytest.raises(Corruption):
            Machine(records, KvLimits())
        assert not Machine.verify(records).ok


def test_a_session_of_a_newer_release_stops_the_start(shard: Shard) -> None:
    """It is not taken for damage, which would be mended by fetching it again: both versions are named."""
    key = session_key(shard.open())
    shard.machine.flush()
    record = shard.records.get(key) or b""
    shard.records.put(key, seal(key, bytes([SESSION_VERSION + 1]) + record[1:-8]))
    with pytest.raises(UnsupportedVersion, match=f"version {SESSION_VERSION + 1}"):
        Machine(shard.records, KvLimits())


def test_a_session_is_written_again_after_each_flush(shard: Shard) -> None:
    """The session in use over a flush is noted as changed by its next command, too."""
    session = shard.open()
    for sequence in range(1, 5):
        shard.one(Increment(b"n"), SessionStamp(session, sequence, 1))
        shard.machine.flush()
    shard.reload()
    for sequence in range(1, 5):
        retried = shard.one(Increment(b"n"), SessionStamp(session, sequence, 1))
        assert IncrementResult(sequence, sequence) == retried  # type: ignore[arg-type]


def test_messages_of_refusals_are_not_part_of_the_state(shard: Shard) -> None:
    """They may change between releases, and replicas of two releases must still store the same."""
    session = shard.open()
    shard.refused(Increment(b"n", 2**63 - 1, 1), SessionStamp(session, 1, 1))
    shard.machine.flush()
    record = shard.records.get(session_key(session)) or b""
    assert b"INVALID_REQUEST" in record
    assert b"64-bit" not in record


def test_sessions_between_two_flushes_leave_nothing_to_do(shard: Shard) -> None:
    """What was opened and closed without ever being written is not deleted either."""
    for _ in range(10):
        shard.one(CloseSession(shard.open()))
    kept = shard.open()
    shard.machine.flush()
    shard.one(CloseSession(kept))
    deleted: list[bytes] = []

    def delete(key: bytes) -> bool:
        deleted.append(key)
        return False

    shard.records.delete = delete  # type: ignore[method-assign]
    for _ in range(10):
        shard.one(CloseSession(shard.open()))
    shard.machine.flush()
    assert [session_key(kept)] == deleted
