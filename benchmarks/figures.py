"""Statistics of a run: percentiles, medians, ratios. Pure."""

from collections.abc import Iterable, Sequence
from statistics import median


def percentile(ordered: Sequence[int], share: float) -> int:
    """The smallest value that at least `share` of all are not above (nearest rank). `ordered` ascends; 0 where it is empty."""
    assert 0 < share <= 1, f"{share} is no share"
    if not ordered:
        return 0
    rank = -(-len(ordered) * share // 1)
    return ordered[min(len(ordered), max(1, int(rank))) - 1]


def median_of(values: Iterable[float]) -> float:
    """The median; 0 of nothing."""
    found = list(values)
    return median(found) if found else 0.0


def ratio(ours: float, theirs: float) -> float | None:
    """Ours for one of theirs; None where there is nothing to compare with."""
    return ours / theirs if theirs else None


def spread(values: Iterable[float]) -> float:
    """How far apart the largest and the smallest are, as a share of the median: what the noise of a figure is worth."""
    found = list(values)
    middle = median_of(found)
    return (max(found) - min(found)) / middle if middle else 0.0
