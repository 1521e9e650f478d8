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
