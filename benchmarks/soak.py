"""A mixed load for a long time, minute by minute: do latencies and memory stay as they were?"""

from collections.abc import Sequence

from benchmarks.figures import median_of, ratio
from benchmarks.loader import Share, run_beside
from benchmarks.measurement import Measurement
from benchmarks.systems import Raftcache
from benchmarks.throughput import ANSWERS_KEPT, KEYS, Checked, Plan, fill, keys_of, random_requests, take

OUTSTANDING = 32
"""Of puts, and as many of gets beside them."""
LOADS = ("put, soak", "get, soak")
WINDOWS_MIN = 6
"""A third has to have some."""


def minutes(system: Raftcache, plan: Plan, count: int) -> None:
    """So many windows of puts and gets of random ones of 100,000 keys; each is recorded as a run.

    Processor time in each row is that of both loads. Between windows there is a pause of a blink, in which figures are read.
    """
    keys = keys_of(KEYS)
    fill(system, keys)
    (leader,), puts = random_requests(system, "put", keys)
    _, gets = random_requests(system, "get", keys)
    shares = [
        Share(leader, system.put_path, puts, OUTSTANDING),
        Share(leader, system.get_path, gets, OUTSTANDING),
    ]
    for window in range(1, count + 1):
        pair = [Measurement(load, "loader", system.name, OUTSTANDING, window) for load in LOADS]
        with Checked(system, pair[0]) as writing, Checked(system, pair[1]):
            results = run_beside(shares, seconds=plan.seconds, keep_answers=ANSWERS_KEPT)
            for measurement, result in zip(pair, results, strict=True):
                take(measurement, result)
            writing.writes = results[0].succeeded
        for measurement in pair:
            plan.record(measurement)


def growth(measurements: Sequence[Measurement]) -> dict[str, float]:
    """The last third of the windows to the first: medians of p99 and of memory. Empty where there were too few windows."""
    found: dict[str, float] = {}
    for load in LOADS:
        windows = [each for each in measurements if each.load == load]
        if len(windows) < WINDOWS_MIN:
            return {}
        third = len(windows) // 3
        found["windows"] = len(windows)
        found["seconds"] = sum(each.seconds for each in windows)
        for name, figure in (
            (f"p99 of {load.split(',')[0]}s", [each.p99_us for each in windows]),
            ("anonymous memory", [float(each.anonymous_bytes_max) for each in windows]),
        ):
            grown = ratio(median_of(figure[-third:]), median_of(figure[:third]))
            if grown is not None:
                found[name] = grown
    return found
