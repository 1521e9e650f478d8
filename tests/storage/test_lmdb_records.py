"""Records in LMDB: a dict with an order, and nothing of LMDB but `StateLost` ever comes out."""

import threading
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.storage.live_state import Damaged, StateLost
from raftcache.storage.lmdb_records import DATA_FILE, KEY_BYTES_MAX, ClosedFile, LmdbConfig, LmdbRecords

SMALL = LmdbConfig(map_bytes=1 << 20)
LARGE = LmdbConfig(map_bytes=1 << 30)


@pytest.fixture
def records(tmp_path: Path) -> Iterator[LmdbRecords]:
    opened = LmdbRecords(tmp_path, LARGE)
    yield opened
    opened.close(synced=False)


KEYS = st.one_of(st.sampled_from([b"a", b"ab", b"b", b"c"]), st.binary(min_size=1, max_size=KEY_BYTES_MAX))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, st.binary(max_size=9000)),
        st.tuples(st.just("delete"), KEYS, st.none()),
        st.tuples(st.just("get"), KEYS, st.none()),
        st.tuples(st.just("scan"), st.one_of(st.just(b""), KEYS), st.one_of(st.none(), KEYS)),
        st.tuples(st.just("commit"), st.none(), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=100)
@given(steps=STEPS)
def test_records_behave_as_an_ordered_dict(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, bytes, bytes | None]]
) -> None:
    """Own writes are visible at once, committed or not; ranges are half-open and ascending."""
    records = LmdbRecords(tmp_path_factory.mktemp("env"), LARGE)
    model: dict[bytes, bytes] = {}
    for action, key, value in steps:
        if action == "put":
            records.put(key, value or b"")
            model[key] = value or b""
        elif action == "delete":
            assert records.delete(key) == (model.pop(key, None) is not None)
        elif action == "get":
            assert records.get(key) == model.get(key)
        elif action == "commit":
            records.commit()
        else:
            expected = [(k, model[k]) for k in sorted(model) if k >= key and (value is None or k < value)]
            assert list(records.scan(key, value)) == expected
    records.close(synced=False)


def test_scan_is_lazy_and_may_be_dropped(records: LmdbRecords) -> None:
    """A caller bounds a scan by stopping; a dropped scan holds nothing up."""
    for number in range(1000):
        records.put(b"%04d" % number, b"x")

    scan = records.scan(b"0005", None)
    assert next(scan) == (b"0005", b"x")
    del scan
    records.commit()
    assert records.get(b"0005") == b"x"


def test_scan_across_a_commit_is_caught(records: LmdbRecords) -> None:
    """A cursor belongs to one transaction: going on after a commit is a bug of the caller and is told so."""
    records.put(b"a", b"1")
    records.put(b"b", b"2")
    scan = records.scan(b"", None)
    next(scan)
    records.commit()

    with pytest.raises(AssertionError, match="continued"):
        next(scan)


@pytest.mark.parametrize("key", [b"", bytes(KEY_BYTES_MAX + 1)])
def test_key_that_lmdb_does_not_take_is_a_bug_of_the_caller(records: LmdbRecords, key: bytes) -> None:
    """Key lengths are limited long before; here they are asserted, so that no BadValsizeError is ever raised."""
    for call in (lambda: records.get(key), lambda: records.put(key, b""), lambda: records.delete(key)):
        with pytest.raises(AssertionError, match="LMDB takes"):
            call()
    records.put(b"k" * KEY_BYTES_MAX, b"")


def test_full_map_is_lost_state(tmp_path: Path) -> None:
    """At a full map every operation says that the state is lost: the transaction with its answered writes is gone."""
    records = LmdbRecords(tmp_path, SMALL)
    with pytest.raises(StateLost, match="MDB_MAP_FULL"):
        for number in range(100_000):
            records.put(b"%d" % number, bytes(1000))

    for call in (
        lambda: records.get(b"1"),
        lambda: records.put(b"1", b""),
        lambda: records.delete(b"1"),
        lambda: list(records.scan(b"", None)),
        records.commit,
        records.live_bytes,
        lambda: records.close(synced=True),
    ):
        with pytest.raises(StateLost):
            call()
    records.close(synced=False)


def test_second_environment_on_the_same_path_is_refused(tmp_path: Path, records: LmdbRecords) -> None:
    """LMDB allows one environment per path and process; a second one is an error here and not undefined behaviour."""
    with pytest.raises(StateLost, match="open failed"):
        LmdbRecords(tmp_path, LARGE)


def test_file_that_is_no_environment_is_lost_state(tmp_path: Path) -> None:
    """Garbage under the environment's name is reported as what it is."""
    (tmp_path / DATA_FILE).write_bytes(b"garbage" * 10_000)

    with pytest.raises(StateLost):
        LmdbRecords(tmp_path, LARGE)


def test_pinned_copy_is_the_last_commit_whatever_the_writer_does(tmp_path: Path) -> None:
    """A copy that is drawn late, in another thread, holds what was committed when it was pinned, and nothing else."""
    (tmp_path / "live").mkdir()
    records = LmdbRecords(tmp_path / "live", LARGE)
    expected = {b"%05d" % number: b"old" for number in range(5000)}
    for key, value in expected.items():
        records.put(key, value)
    records.commit()
    records.put(b"uncommitted", b"x")
    copy = records.pin()
    for round_ in range(3):
        for key in expected:
            records.put(key, b"new%d" % round_)
        records.delete(b"00000")
        records.commit()
    with (tmp_path / "copy").open("wb") as file:
        thread = threading.Thread(target=copy.write_to, args=(file.fileno(),))
        thread.start()
        thread.join()
    copy.release()
    records.close(synced=False)

    closed = ClosedFile(str(tmp_path / "copy"))
    assert dict(closed.scan(b"", None)) == expected
    assert closed.check_lookups() == len(expected)
    closed.close()


def test_released_copy_lets_pages_be_reused(tmp_path: Path) -> None:
    """Without a reader the same keys rewritten again and again stay within a few times their size."""
    records = LmdbRecords(tmp_path, LARGE)
    copy = records.pin()
    copy.release()
    for _ in range(50):
        for number in range(500):
            records.put(b"%d" % number, bytes(500))
        records.commit()

    assert records.used_bytes() < 8 * records.live_bytes()
    records.close(synced=False)


def test_key_hidden_by_a_damaged_separator_is_found_missing(tmp_path: Path) -> None:
    """A scan walks past a damaged branch page and sees every record; only lookups notice that some cannot be found."""
    path = tmp_path / "file"
    environment = lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 26, lib_version=0)
    with environment.begin(write=True) as transaction:
        for number in range(3000):
            transaction.put(b"key%06d" % number, b"v" * 20)
    environment.close()
    data = bytearray(path.read_bytes())
    closed = ClosedFile(str(path))
    records = list(closed.scan(b"", None))
    assert closed.check_lookups() == 3000
    closed.close()
    # The separators of the one branch page: its flag is 1, at offset 10 of a page.
    branch = next(page for page in range(2, len(data) // 4096) if data[page * 4096 + 10] == 0x01)
    at = data.index(b"key0015", branch * 4096, (branch + 1) * 4096)
    data[at + 3] = ord("9")
    path.write_bytes(data)

    closed = ClosedFile(str(path))
    assert list(closed.scan(b"", None)) == records
    with pytest.raises(Damaged, match="cannot be looked up"):
        closed.check_lookups()
    closed.close()


def test_a_copy_that_cannot_be_begun_is_a_lost_state(records: LmdbRecords) -> None:
    """The engine has places for so many readers; one more gets no copy, and the error is none of the engine's."""
    pinned = []
    try:
        with pytest.raises(StateLost, match="begin of a copy"):
            for _ in range(1000):
                pinned.append(records.pin())  # noqa: PERF401 - it ends with the error
    finally:
        for copy in pinned:
            copy.release()


def test_file_that_is_none_of_lmdb_is_damage(tmp_path: Path) -> None:
    """It is named as what it is, and not met as an error of the engine that nobody expects."""
    path = tmp_path / "file"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(Damaged, match="LMDB cannot open"):
        ClosedFile(str(path))
