"""Scans merge the shards' parts by key, page by page."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.errors import Unavailable
from raftcache.gateway.scan import merge
from raftcache.ids import Revision
from raftcache.kv.limits import KvLimits
from raftcache.kv.operations import KeyEntry, Scan, ScanResult
from raftcache.v1 import kv_pb2, types_pb2
from tests.gateway.memory_node import MemoryNode
from tests.gateway.test_kv_service import Caller, put_item


def pages_of(caller: Caller, **fields: object) -> list[kv_pb2.ScanResponse]:
    """All pages of a scan."""
    pages: list[kv_pb2.ScanResponse] = []
    token = b""
    while not pages or token:
        reply = caller.reply("Scan", kv_pb2.ScanRequest(page_token=token, **fields))  # type: ignore[arg-type]
        assert isinstance(reply, kv_pb2.ScanResponse)
        pages.append(reply)
        token = reply.next_page_token
        assert len(pages) <= 1_000, "the scan does not get on"
    return pages


def keys_in(pages: list[kv_pb2.ScanResponse]) -> list[bytes]:
    return [entry.key for page in pages for entry in page.entries]


@settings(max_examples=50)
@given(
    st.sets(st.binary(min_size=1, max_size=3), max_size=80),
    st.binary(max_size=2),
    st.binary(max_size=2),
    st.integers(1, 30),
    st.integers(1, 200),
    st.booleans(),
)
def test_pages_are_the_range_in_order(
    keys: set[bytes], lo: bytes, hi: bytes, limit: int, bytes_max: int, keys_only: bool
) -> None:
    """However small the pages, together they hold each key of the range once, in order, and none is larger than asked."""
    caller = Caller(MemoryNode(shards=4))
    for key in sorted(keys):
        caller.put(key, b"value")
    expected = sorted(key for key in keys if lo <= key and (not hi or key < hi))
    pages = pages_of(caller, lo=lo, hi=hi, limit=limit, bytes_max=bytes_max, keys_only=keys_only)
    assert expected == keys_in(pages)
    assert len(expected) == sum(page.count for page in pages)
    for page in pages:
        size = sum(len(entry.key) + len(entry.value) for entry in page.entries)
        assert len(page.entries) <= limit
        assert size <= bytes_max or len(page.entries) == 1
        assert not (keys_only and any(entry.value for entry in page.entries))
    counts = pages_of(caller, lo=lo, hi=hi, limit=limit, count_only=True)
    assert len(expected) == sum(page.count for page in counts)
    assert [] == keys_in(counts)


@given(
    st.lists(st.tuples(st.sets(st.binary(min_size=1, max_size=2), max_size=8), st.booleans()), min_size=1, max_size=5),
    st.integers(1, 20),
)
def test_a_merged_page_stops_below_what_a_shard_has_not_shown(parts: list[tuple[set[bytes], bool]], limit: int) -> None:
    """No entry at or above the next page's start is on the page, and none below it is missing."""
    pages = []
    taken: set[bytes] = set()
    for keys, more in parts:
        own = sorted(keys - taken)
        taken |= keys
        if more and len(own) >= 2:
            entries, next_key = own[:-1], own[-1]
        else:
            entries, next_key = own, b""
        found = [KeyEntry(key, b"", 1, Revision(1), Revision(1)) for key in entries]
        pages.append(ScanResult(Revision(1), found, len(found), bool(next_key), next_key))
    entries_, next_key = merge(pages, limit, 1 << 20)
    keys_ = [entry.key for entry in entries_]
    shown = sorted(entry.key for page in pages for entry in page.entries)
    assert shown[: len(keys_)] == keys_
    assert len(keys_) <= limit
    if next_key:
        assert keys_, "a page that is not the last shows something"
        assert keys_[-1] < next_key <= min([p.next_key for p in pages if p.more] + shown[len(keys_) :])
    else:
        assert shown == keys_


def test_a_named_shard_is_asked_alone() -> None:
    """With `shard` set, the page is of that shard, and there is one header."""
    caller = Caller(MemoryNode(shards=3))
    for number in range(60):
        caller.put(b"k%d" % number, b"v")
    merged = keys_in(pages_of(caller))
    apart = [pages_of(caller, shard=shard, limit=7) for shard in (1, 2, 3)]
    assert merged == sorted(key for pages in apart for key in keys_in(pages))
    assert {1} == {len(page.headers) for pages in apart for page in pages}
    assert [[1, 2, 3]] == [[header.shard for header in page.headers] for page in pages_of(caller)]


def test_a_shard_that_is_not_there_is_not_waited_for() -> None:
    """A scan of a shard that the map does not have is refused at once: nobody will ever lead it."""
    node = MemoryNode(shards=3)
    assert "WRONG_SHARD" == Caller(node).refused("Scan", kv_pb2.ScanRequest(shard=4))
    assert [] == node.submitted


def test_what_is_asked_of_each_shard_is_bounded() -> None:
    """Each of many shards is asked for its share of a page, not for all of it."""
    node = MemoryNode(shards=64)
    Caller(node).reply("Scan", kv_pb2.ScanRequest(limit=1_000, bytes_max=4 << 20))
    scans = [request.operation for request in node.requests]
    assert 64 == len(scans)
    for scan in scans:
        assert isinstance(scan, Scan)
        assert (32, 128 << 10) == (scan.limit, scan.bytes_max)


def test_a_page_beyond_the_limits_is_cut_to_them() -> None:
    """More than `limits.scan_entries_max` may be asked for; the page then has as many as that."""
    caller = Caller(MemoryNode(shards=1, limits=KvLimits(scan_entries_max=10)))
    caller.batch(*[put_item(b"k%02d" % number, b"v") for number in range(25)])
    assert [10, 10, 5] == [len(page.entries) for page in pages_of(caller, limit=1_000_000)]


def test_one_shard_that_fails_fails_the_page() -> None:
    """A page without one shard's part would hide keys, so there is none."""
    node = MemoryNode(shards=3)
    node.fail = lambda request: Unavailable("no leader") if request.shard == 2 else None
    assert "UNAVAILABLE" == Caller(node).refused("Scan", kv_pb2.ScanRequest())


def test_before_init_a_scan_is_refused() -> None:
    """A node that knows no shards says so."""
    node = MemoryNode(shards=1)
    node.ranges = []
    assert "UNAVAILABLE" == Caller(node).refused("Scan", kv_pb2.ScanRequest())


def test_stale_scans_are_handed_on() -> None:
    """The consistency of a scan goes to every shard, and ages come back."""
    reply = Caller(MemoryNode(shards=2)).reply("Scan", kv_pb2.ScanRequest(consistency=types_pb2.CONSISTENCY_STALE))
    assert isinstance(reply, kv_pb2.ScanResponse)
    assert [40, 40] == [header.age_ms for header in reply.headers]


@pytest.mark.parametrize(
    "token", [b"x", b"\x01", b"\x01\x00", b"\x01\x00\x00\x00\x00\x05\x00ab", b"\x02\x00\x00\x00\x00\x01\x00a"]
)
def test_tokens_that_fit_no_scan_are_refused(token: bytes) -> None:
    """A page token that is cut short, made up or of another scan is a bad request."""
    assert "INVALID_REQUEST" == Caller(MemoryNode()).refused("Scan", kv_pb2.ScanRequest(page_token=token))


def test_a_token_belongs_to_its_range() -> None:
    """A token beyond the range, or of a count in a scan of entries, is refused."""
    caller = Caller(MemoryNode(shards=2))
    for letter in b"abcdefghijklmnop":
        caller.put(bytes([letter]), b"v")
    first = caller.reply("Scan", kv_pb2.ScanRequest(limit=1))
    counted = caller.reply("Scan", kv_pb2.ScanRequest(limit=1, count_only=True))
    assert isinstance(first, kv_pb2.ScanResponse)
    assert isinstance(counted, kv_pb2.ScanResponse)
    for request in (
        kv_pb2.ScanRequest(lo=b"c", page_token=first.next_page_token),
        kv_pb2.ScanRequest(hi=b"b", page_token=first.next_page_token),
        kv_pb2.ScanRequest(count_only=True, page_token=first.next_page_token),
        kv_pb2.ScanRequest(page_token=counted.next_page_token),
        kv_pb2.ScanRequest(page_token=counted.next_page_token, count_only=True, shard=2),
    ):
        assert "INVALID_REQUEST" == caller.refused("Scan", request)


@given(st.binary(max_size=40))
def test_no_token_breaks_the_service(token: bytes) -> None:
    """Whatever bytes come as a token, the answer is a page or a refusal."""
    caller = Caller(MemoryNode(shards=2))
    caller.answer("Scan", kv_pb2.ScanRequest(page_token=token))
    caller.answer("Scan", kv_pb2.ScanRequest(page_token=token, count_only=True))
    assert 2 == len(caller.sink.answers)
