"""Records in memory behave as ordered records with commits do."""

from hypothesis import given
from hypothesis import strategies as st

from raftcache.kv.records import MemoryRecords

KEYS = st.binary(max_size=2)
STEPS = st.lists(
    st.tuples(st.just("put"), KEYS, st.binary(max_size=3))
    | st.tuples(st.just("delete"), KEYS, st.just(b""))
    | st.tuples(st.sampled_from(["commit", "rollback", "copy"]), st.just(b""), st.just(b""))
    | st.tuples(st.just("scan"), KEYS, KEYS),
    max_size=30,
)


@given(STEPS)
def test_records_agree_with_a_sorted_dict(steps: list[tuple[str, bytes, bytes]]) -> None:
    """Any sequence of writes, scans, commits and rollbacks leaves what a dict with a copy would hold."""
    records = MemoryRecords()
    now: dict[bytes, bytes] = {}
    committed: dict[bytes, bytes] = {}
    for step, key, value in steps:
        if step == "put":
            records.put(key, value)
            now[key] = value
        elif step == "delete":
            assert (now.pop(key, None) is not None) == records.delete(key)
        elif step == "commit":
            records.commit()
            committed = dict(now)
        elif step == "rollback":
            records.rollback()
            now = dict(committed)
        elif step == "copy":
            records.copy().put(b"other", b"")
        else:
            hi = value or None
            expected = [(k, v) for k, v in sorted(now.items()) if key <= k and (hi is None or k < hi)]
            assert expected == list(records.scan(key, hi))
        assert now.get(key) == records.get(key)
        assert len(now) == len(records)
    assert sorted(now.items()) == list(records.scan(b"", None))
