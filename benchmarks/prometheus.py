"""A node's /metrics, as numbers."""

import urllib.request
from collections.abc import Mapping

FETCH_SECONDS_MAX = 10.0


def parse(text: str) -> dict[str, float]:
    """Series by their name with labels, as written."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found


def fetch(admin_address: str) -> dict[str, float]:
    """Raises: `OSError`."""
    with urllib.request.urlopen(f"http://{admin_address}/metrics", timeout=FETCH_SECONDS_MAX) as answer:
        return parse(answer.read().decode())


def mean_between(before: Mapping[str, float], after: Mapping[str, float], histogram: str) -> float:
    """The mean of what a histogram observed between two scrapes; 0 where it observed nothing."""
    count = after.get(f"{histogram}_count", 0.0) - before.get(f"{histogram}_count", 0.0)
    total = after.get(f"{histogram}_sum", 0.0) - before.get(f"{histogram}_sum", 0.0)
    return total / count if count else 0.0


def percentile_between(
    before: Mapping[str, float], after: Mapping[str, float], histogram: str, share: float
) -> tuple[float, float]:
    """The bucket with the smallest value that `share` of what was observed between two scrapes is not above.

    Its bounds: more than the first, at most the second; both 0 where nothing was observed.
    """
    start, end = f'{histogram}_bucket{{le="', '"}'
    bounds = {float(name[len(start) : -len(end)]): name for name in after if name.startswith(start)}
    total = after.get(f"{histogram}_count", 0.0) - before.get(f"{histogram}_count", 0.0)
    lower = 0.0
    for bound, name in sorted(bounds.items()):
        if total and after[name] - before.get(name, 0.0) >= share * total:
            return lower, bound
        lower = bound
    return 0.0, 0.0
