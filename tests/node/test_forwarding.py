"""Requests and replies between nodes, as bytes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.errors import (
    NotLeader,
    OutcomeUnknown,
    RaftCacheError,
    Unavailable,
    UnsupportedVersion,
)
from raftcache.ids import Index, Revision, ShardId, Slot
from raftcache.kv.operations import (
    CompareAndSwap,
    Delete,
    Get,
    GetResult,
    Increment,
    KeyEntry,
    OpenSession,
    Operation,
    Put,
    Result,
    Scan,
    ScanResult,
    SessionStamp,
    WriteResult,
)
from raftcache.node.api import Consistency, Reply, Request
from raftcache.node.forwarding import (
    AGAIN,
    REPLY_BYTES_MAX,
    decode_replies,
    decode_requests,
    encode_replies,
    encode_requests,
    refuse_requests,
)

SHARD = ShardId(3)
MS = 1_000_000

keys = st.binary(min_size=1, max_size=20)
values = st.binary(max_size=100)
operations: st.SearchStrategy[Operation] = st.one_of(
    st.builds(Put, keys, values),
    st.builds(Get, keys),
    st.builds(Delete, keys),
    st.builds(Increment, keys, st.integers(-5, 5)),
    st.builds(CompareAndSwap, keys, st.none() | values, values),
    st.builds(Scan, keys, st.none() | keys),
    st.builds(OpenSession),
)
stamps = st.builds(SessionStamp, *[st.integers(0, 2**64 - 1)] * 3)
requests = st.lists(
    st.builds(
        Request,
        token=st.uuids(),
        operation=operations,
        slot=st.integers(0, 16383).map(Slot),
        deadline_ns=st.integers(0, 10**12),
        shard=st.none() | st.just(SHARD),
        stamp=st.none() | stamps,
        consistency=st.sampled_from(Consistency),
    ),
    max_size=5,
)
entries = st.builds(KeyEntry, keys, values, st.just(1), st.just(Revision(1)), st.just(Revision(2)))
results: st.SearchStrategy[Result | RaftCacheError] = st.one_of(
    st.builds(WriteResult, st.just(Revision(4)), previous=st.none() | entries),
    st.builds(GetResult, st.just(Revision(4)), st.none() | entries),
    st.builds(ScanResult, st.just(Revision(4)), st.lists(entries, max_size=3)),
    st.builds(NotLeader, st.text(max_size=20)),
    st.builds(OutcomeUnknown, st.text(max_size=20)),
)


@settings(max_examples=100, deadline=None)
@given(sent=requests, now_ns=st.integers(0, 10**12))
def test_requests_come_out_as_they_went_in(sent: list[Request], now_ns: int) -> None:
    """But for the token, which is the position, and the deadline, which is what is left of it."""
    shard, got = decode_requests(encode_requests(SHARD, sent, now_ns), 10**15)
    assert SHARD == shard
    assert len(sent) == len(got)
    for position, (before, after) in enumerate(zip(sent, got, strict=True)):
        assert after.forwarded
        assert position == after.token
        assert (before.operation, before.slot, before.shard, before.stamp, before.consistency) == (
            after.operation,
            after.slot,
            after.shard,
            after.stamp,
            after.consistency,
        )
        left_ns = max(0, before.deadline_ns - now_ns)
        assert 0 <= left_ns - (after.deadline_ns - 10**15) < MS


@settings(max_examples=100, deadline=None)
@given(outcomes=st.lists(results, max_size=6), order=st.randoms(use_true_random=False))
def test_replies_find_their_requests_in_whatever_order_they_came(
    outcomes: list[Result | RaftCacheError], order: object
) -> None:
    """By their positions."""
    sent = [Request(object(), Get(b"k"), Slot(0), 0) for _ in outcomes]
    replies = [Reply(position, outcome, SHARD, Index(7), 9) for position, outcome in enumerate(outcomes)]
    order.shuffle(replies)  # type: ignore[attr-defined]
    got = decode_replies(encode_replies(SHARD, replies, bytes_max=REPLY_BYTES_MAX), sent)
    assert [request.token for request in sent] == [reply.token for reply in got]
    for outcome, reply in zip(outcomes, got, strict=True):
        assert (SHARD, 7, 9) == (reply.shard, reply.index, reply.age_ms)
        if isinstance(outcome, RaftCacheError):
            assert isinstance(reply.result, type(outcome))
        else:
            assert outcome == reply.result


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_payloads_raise_what_their_readers_expect(data: st.DataObject) -> None:
    """Cut, extended or with flipped bytes: `ValueError` or `UnsupportedVersion`, whatever the damage, and nothing else."""
    sent = [Request(0, Put(b"k", b"v"), Slot(1), 5, stamp=SessionStamp(1, 2, 3)), Request(1, Get(b"k"), Slot(1), 5)]
    asked = bytearray(encode_requests(SHARD, sent, 0))
    told = bytearray(
        encode_replies(SHARD, [Reply(n, WriteResult(Revision(1)), SHARD) for n in range(2)], bytes_max=REPLY_BYTES_MAX)
    )
    for payload, read in (
        (asked, lambda p: decode_requests(p, 0)),
        (told, lambda p: decode_replies(p, sent)),
        (asked, lambda p: refuse_requests(p, Unavailable("starting"))),
    ):
        damaged = bytearray(payload)
        for _ in range(data.draw(st.integers(1, 3))):
            if damaged:
                damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        damaged = damaged[: data.draw(st.integers(0, len(damaged)))] + data.draw(st.binary(max_size=3))
        try:
            read(bytes(damaged))  # type: ignore[no-untyped-call]
        except (ValueError, UnsupportedVersion):
            continue


def test_newer_formats_are_refused_as_such() -> None:
    """An upgrade in progress is not mistaken for damage."""
    payload = bytearray(encode_requests(SHARD, [], 0))
    payload[0] = 9
    with pytest.raises(UnsupportedVersion, match="finish the upgrade"):
        decode_requests(bytes(payload), 0)


def test_what_a_write_returned_is_never_left_out() -> None:
    """Reads can be asked again, writes cannot: their replies go first, however large."""
    big = KeyEntry(b"k", b"x" * 1000, 1, Revision(1), Revision(1))
    outcomes = [
        GetResult(Revision(1), big),
        WriteResult(Revision(2), previous=big),
        GetResult(Revision(1), big),
        WriteResult(Revision(3), previous=big),
        GetResult(Revision(1), big),
    ]
    replies = [Reply(position, outcome, SHARD) for position, outcome in enumerate(outcomes)]
    sent = [Request(n, Get(b"k"), Slot(0), 0) for n in range(5)]
    got = [reply.result for reply in decode_replies(encode_replies(SHARD, replies, bytes_max=3_400), sent)]
    assert outcomes[1] == got[1]
    assert outcomes[3] == got[3]
    assert outcomes[0] == got[0], "one read is always let through, or asking again would never end"
    left_out = [outcome for outcome in got if isinstance(outcome, Unavailable)]
    assert 2 == len(left_out)
    assert all(AGAIN == outcome.metadata for outcome in left_out)


def test_refusal_of_a_whole_payload_reaches_each_of_its_requests() -> None:
    """A node that is starting says so once for each."""
    sent = [Request(n, Get(b"k"), Slot(0), 10**9) for n in range(3)]
    got = decode_replies(refuse_requests(encode_requests(SHARD, sent, 0), Unavailable("starting")), sent)
    assert all(isinstance(reply.result, Unavailable) for reply in got)
