"""Percentiles from a fixed amount of memory."""

from hypothesis import given
from hypothesis import strategies as st

from raftcache.cli.latencies import Latencies

LATENCIES = st.lists(st.integers(0, 10**12), min_size=1, max_size=60)


def counted(values: list[int]) -> Latencies:
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    return latencies


@given(LATENCIES, st.sampled_from([1.0, 50.0, 99.0, 99.9, 100.0]))
def test_a_percentile_is_never_too_low_and_at_most_a_32nd_too_high(values: list[int], percent: float) -> None:
    """Against sorting them all."""
    rank = max(1, -(-len(values) * percent // 100))
    exact = sorted(values)[int(rank) - 1]
    found = counted(values).percentile_ns(percent)
    assert exact <= found <= exact + exact / 32 + 1


@given(LATENCIES, LATENCIES)
def test_two_counts_together_are_the_count_of_both(one: list[int], other: list[int]) -> None:
    """Reads and writes are reported apart and together."""
    both, together = counted(one).merged(counted(other)), counted(one + other)
    assert (together.count, together.max_ns) == (both.count, both.max_ns)
    assert together.percentile_ns(99) == both.percentile_ns(99)


def test_of_nothing_every_percentile_is_zero() -> None:
    """A run without a write has a report too."""
    assert 0 == Latencies().percentile_ns(99)
