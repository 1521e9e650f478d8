"""Statistics, the parsers of what tools and the kernel print, and what is concluded from them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import growth, h2load, idle_loop, prometheus, soak, usage
from benchmarks.figures import median_of, percentile, ratio, spread
from benchmarks.footprint import PUTS_LOAD, PUTS_OUTSTANDING
from benchmarks.growth import NODE_BYTES_MAX, Step, feasible
from benchmarks.lag import CHECKPOINTS, LAG, NodeLag, lag_between
from benchmarks.measurement import OURS, STUBS, Measurement, summarise
from benchmarks.report import client_table, verdict_table
from benchmarks.systems import System
from benchmarks.throughput import NotFilled, Plan
from benchmarks.wanted import LAG_SECONDS_MAX, Absolute, Verdict, verdicts
from raftcache.telemetry import names

CLIENTS = {STUBS: 100, OURS: 250, "raftcache + grpcio": 80}
"""Calls a second."""
H2LOAD = """starting benchmark...
Application protocol: h2c
progress: 100% done

finished in 114.49ms, 26203.30 req/s, 2.10MB/s
requests: 3000 total, 3000 started, 3000 done, 2998 succeeded, 2 failed, 0 errored, 0 timeout
status codes: 2998 2xx, 0 3xx, 2 4xx, 0 5xx
traffic: 246.19KB (252098) total, 8.86KB (9075) headers (space savings 96.27%), 105.47KB (108000) data
                     min         max         mean         sd        +/- sd
time for request:    13.45ms    398.39ms     87.58ms     62.32ms    84.93%
"""
STAT = "4242 (a) b (c) S 1 4242 4242 0 -1 4194304 100 0 0 0 150 50 7 8 20 0 9 0 1000 1000000 5000"
STATUS = "Name:\tpython\nVmRSS:\t  70000 kB\nRssAnon:\t   40000 kB\nRssFile:\t   25000 kB\nRssShmem:\t    5000 kB\n"


def test_h2load_report_is_read() -> None:
    """Seconds in whatever unit it chose, successes, and bytes of data."""
    report = h2load.parse_report(H2LOAD)
    assert (3000, 2998, 2, 108_000) == (report.requests, report.succeeded, report.failed, report.data_bytes)
    assert pytest.approx(0.11449) == report.seconds


def test_h2load_report_without_its_lines_is_refused() -> None:
    """As when it cannot connect."""
    with pytest.raises(ValueError, match="cannot be read"):
        h2load.parse_report("starting benchmark...\n")


def test_h2load_log_gives_the_time_of_each_success() -> None:
    """Start, status, duration; a failure has no time."""
    assert [6945, 9691] == list(h2load.parse_log("1795415324193003\t200\t6945\n17954\t200\t9691\n17955\t500\t1\n"))


def test_processor_time_is_found_behind_any_name() -> None:
    """A name with spaces and parentheses; 200 ticks."""
    assert 200 / usage.TICKS_PER_SECOND == usage.parse_cpu_seconds(STAT)


def test_memory_is_told_by_kind() -> None:
    """Anonymous memory apart from that of files."""
    assert usage.Memory(anonymous=40_000 * 1024, file=30_000 * 1024) == usage.parse_memory(STATUS)


def test_busy_time_counts_no_waiting() -> None:
    """Idle and iowait are the fourth and fifth."""
    assert (1 + 2 + 3 + 6 + 7) / usage.TICKS_PER_SECOND == usage.parse_busy_seconds(
        "cpu  1 2 3 4 5 6 7 8 0 0\ncpu0 1\n"
    )


def test_metrics_are_read_with_their_labels() -> None:
    """Comments are not series."""
    text = '# HELP a x\na_sum 10.0\na_count 4.0\nb{shard="1"} 2e3\n'
    found = prometheus.parse(text)
    assert {"a_sum": 10.0, "a_count": 4.0, 'b{shard="1"}': 2000.0} == found
    assert 3.0 == prometheus.mean_between({"a_sum": 4.0, "a_count": 2.0}, found, "a")
    assert 0.0 == prometheus.mean_between(found, found, "a")


def lags(*, by_4_ms: int, by_5_ms: int, by_8_ms: int, checkpoints: int = 0) -> dict[str, float]:
    """What a node's metrics say: so many probes late by at most that."""
    counts = {"0.004": by_4_ms, "0.005": by_5_ms, "0.008": by_8_ms, "+Inf": by_8_ms}
    buckets = {f'{LAG}_bucket{{le="{bound}"}}': float(count) for bound, count in counts.items()}
    return {**buckets, f"{LAG}_count": float(by_8_ms), CHECKPOINTS: float(checkpoints)}


def test_lag_of_an_event_loop_is_what_was_noted_between_two_scrapes() -> None:
    """The bucket of the 999th of 1,000; what stands in it from before is not counted."""
    before = lags(by_4_ms=0, by_5_ms=0, by_8_ms=50, checkpoints=3)
    within = lags(by_4_ms=998, by_5_ms=999, by_8_ms=1050, checkpoints=5)
    assert NodeLag(1000, above=0.004, below=0.005, checkpoints=2) == lag_between(before, within)
    beyond = lags(by_4_ms=998, by_5_ms=998, by_8_ms=1050, checkpoints=5)
    assert (0.005, 0.008) == prometheus.percentile_between(before, beyond, LAG, 0.999)
    assert (0.0, 0.0) == prometheus.percentile_between(before, before, LAG, 0.999)


def test_the_limit_of_the_lag_can_be_told_from_the_metric() -> None:
    """A bucket of the node's histogram ends at it; the names are those that a node has."""
    assert LAG_SECONDS_MAX in names.LOOP_LAG.buckets
    assert (names.LOOP_LAG.name, f'{names.CHECKPOINTS.name}{{outcome="ok"}}') == (LAG, CHECKPOINTS)


def test_files_of_a_directory_are_counted_by_the_blocks_that_they_take(tmp_path: Path) -> None:
    """A file of a hole takes none."""
    (tmp_path / "deep").mkdir()
    before = usage.disk_bytes(tmp_path)
    (tmp_path / "deep" / "full").write_bytes(b"x" * 100_000)
    with (tmp_path / "hole").open("wb") as hole:
        hole.truncate(1 << 30)
    assert 100_000 <= usage.disk_bytes(tmp_path) - before < 1 << 20


@given(st.lists(st.integers(0, 1000), min_size=1), st.floats(0.01, 1.0))
def test_a_percentile_is_a_value_that_its_share_is_not_above(values: list[int], share: float) -> None:
    """Nearest rank: no value is invented, and none smaller would do."""
    ordered = sorted(values)
    found = percentile(ordered, share)
    assert found in ordered
    assert sum(value <= found for value in ordered) >= share * len(ordered)
    assert sum(value < found for value in ordered) < share * len(ordered)


def test_figures_of_nothing_are_harmless() -> None:
    """An empty run is reported, and must not raise."""
    assert (0, 0.0, None, 0.0) == (percentile([], 0.5), median_of([]), ratio(1.0, 0.0), spread([]))


def measured(system: str, run: int, operations: int, load: str = "put, one key", outstanding: int = 64) -> Measurement:
    """One second's worth."""
    return Measurement(
        load,
        "loader",
        system,
        outstanding,
        run,
        operations=operations,
        seconds=1.0,
        cpu_seconds={"n1": 0.5, "n2": 0.25},
        anonymous_bytes={"n1": 10, "n2": 20},
    )


def test_ratios_compare_within_one_run() -> None:
    """The median of the ratios of each run: a machine that slows down for one run slows both."""
    ours = [measured("raftcache", 1, 100), measured("raftcache", 2, 10), measured("raftcache", 3, 60)]
    theirs = [measured("etcd", 1, 200), measured("etcd", 2, 20), measured("etcd", 3, 100)]
    mine, others = summarise(ours + theirs)
    assert ("raftcache", 60.0, 0.5) == (mine.system, mine.operations_per_second, mine.ratio)
    assert ("etcd", 100.0) == (others.system, others.operations_per_second)
    assert ([0.5, 0.25], 20) == (mine.cores, mine.anonymous_bytes)


def test_without_a_peer_there_is_no_ratio() -> None:
    """As for the stream, which etcd does not have."""
    (mine,) = summarise([measured("raftcache", 1, 100)])
    assert mine.ratio is None


def test_what_is_wanted_is_compared_with_what_was_measured() -> None:
    """A ratio that is met, one that is not, and shards."""
    runs = [
        measured("raftcache", 1, 30),
        measured("etcd", 1, 100),
        measured("raftcache", 1, 100, "batches of 100 puts", 16),
        measured("etcd", 1, 100, "batches of 100 puts", 16),
        measured("raftcache", 1, 100, "put, by shards"),
        measured("raftcache, 16 shards", 1, 90, "put, by shards"),
    ]
    found = {each.what: (each.measured, each.met) for each in verdicts(summarise(runs), Absolute(), front="grpcio")}
    assert {
        "put, one key at 64 (loader), times etcd's": ("0.30", True),
        "batches of 100 puts at 16 (loader), times etcd's": ("1.00", False),
        "put, by shards at 64: raftcache, 16 shards, times those of one": ("0.90", True),
    } == found


def judged(*runs: Measurement, front: str = "fast") -> dict[str, Verdict]:
    return {each.what: each for each in verdicts(summarise(list(runs)), Absolute(), front=front)}


def test_a_floor_and_an_aim_are_judged_apart() -> None:
    """A floor that is met and an aim that is missed are one line; the table tells both."""
    runs = [measured("raftcache", 1, 250), measured("etcd", 1, 100)]
    found = judged(*runs)["put, one key at 64 (loader), times etcd's"]
    assert (">= 2", "2.50", True, ">= 3", False) == (
        found.wanted,
        found.measured,
        found.met,
        found.aim,
        found.aim_met,
    )
    lines = [line.split() for line in verdict_table([found, Verdict("x", "< 1", "2", met=False)]).splitlines()]
    assert (["ok", "missed"], ["NOT", "2"]) == ([lines[1][0], lines[1][-1]], [lines[2][0], lines[2][-1]])
    assert judged(measured("raftcache", 1, 300), measured("etcd", 1, 100))[found.what].aim_met


def test_batches_of_both_sizes_have_their_own_floors() -> None:
    """Ten in a request gain more than a hundred."""
    runs = [
        measured(system, 1, operations, f"batches of {size} puts", outstanding)
        for size, outstanding in ((10, 64), (100, 16))
        for system, operations in (("raftcache", 450), ("etcd", 100))
    ]
    assert [(">= 5", False), (">= 4", True)] == [(each.wanted, each.met) for each in judged(*runs).values()]


def test_of_latency_and_processor_time_less_is_better() -> None:
    """p99 half of the peer's is just enough; processor time is that of all nodes, per operation."""
    ours = replace(measured("raftcache", 1, 1000, outstanding=256), p99_us=50, cpu_seconds={"n1": 0.5, "n2": 0.5})
    theirs = replace(measured("etcd", 1, 400, outstanding=256), p99_us=100, cpu_seconds={"e1": 0.5, "e2": 0.75})
    assert (1000, 3125) == (ours.cpu_us, theirs.cpu_us)
    found = {what: (each.measured, each.met, each.aim_met) for what, each in judged(ours, theirs).items()}
    assert {
        "put, one key at 256 (loader), times etcd's": ("2.50", True, False),
        "put, one key at 256 (loader), p99, times etcd's": ("0.50", True, False),
        "put, one key at 256 (loader), processor time of all nodes per operation, times etcd's": ("0.32", True, False),
    } == found


def test_memory_is_compared_by_the_largest_node() -> None:
    """Anonymous memory; that of files is told beside it and not judged."""
    ours = replace(measured("raftcache", 1, 1, PUTS_LOAD, PUTS_OUTSTANDING), file_bytes={"n1": 900, "n2": 800})
    theirs = replace(ours, system="etcd", anonymous_bytes={"e1": 25, "e2": 5})
    summary, _ = summarise([ours, theirs])
    assert (20, 900) == (summary.anonymous_bytes, summary.file_bytes)
    (found,) = judged(ours, theirs).values()
    assert ("<= 0.7", "0.80", False, False) == (found.wanted, found.measured, found.met, found.aim_met)


def test_shards_and_hops_have_their_own_shares() -> None:
    """16 shards owe more than 64, and a node that passes calls on owes less; leaders that are spread owe nothing."""
    found = judged(
        measured("raftcache", 1, 100, "put, by shards"),
        measured("raftcache, 16 shards", 1, 87, "put, by shards"),
        measured("raftcache, 64 shards", 1, 87, "put, by shards"),
        measured("raftcache, 64 shards, leaders spread", 1, 10, "put, by shards"),
        measured("raftcache", 1, 100, "get, by gateway"),
        measured("raftcache, one hop", 1, 61, "get, by gateway"),
    )
    assert [(">= 0.9", False), (">= 0.85", True), (">= 0.6", True)] == [
        (each.wanted, each.met) for each in found.values()
    ]


def test_shards_are_compared_within_one_run() -> None:
    """As etcd is: a run in which the machine was slow slows both."""
    found = judged(
        *(measured("raftcache", run, ops, "put, by shards") for run, ops in ((1, 100), (2, 10), (3, 50))),
        *(measured("raftcache, 64 shards", run, ops, "put, by shards") for run, ops in ((1, 90), (2, 9), (3, 10))),
    )
    assert ["0.90"] == [each.measured for each in found.values()]


def test_lag_is_shown_only_with_a_checkpoint_and_enough_probes() -> None:
    """The worst node counts; a window in which one of them took no checkpoint shows nothing."""
    good = NodeLag(2000, above=0.004, below=0.005, checkpoints=1)
    for other, met, words in (
        (good, True, "4 to 5 (2,000 probes, 1 checkpoints a node)"),
        (replace(good, above=0.005, below=0.008), False, "5 to 8 (2,000 probes, 1 checkpoints a node)"),
        (replace(good, checkpoints=0), False, "not shown, not every node took a checkpoint meanwhile"),
        (replace(good, probes=999), False, "not shown, the probes are too few"),
    ):
        (found,) = verdicts([], Absolute(loop_lag={"n1": good, "n2": other}), front="fast")
        assert met == found.met
        assert found.measured.endswith(words)


def test_lag_is_told_beside_that_of_a_loop_that_does_nothing() -> None:
    """Whether a bound can be met at all on a machine is seen from what is not ours."""
    node = NodeLag(2000, above=0.004, below=0.005, checkpoints=1)
    idle = {"probes": 2000.0, "p99_9_seconds": 0.0042, "max_seconds": 0.02}
    (found,) = verdicts([], Absolute(loop_lag={"n1": node}, idle_loop=idle), front="fast")
    assert "an idle loop beside them 4.2" in found.measured


def test_idle_loop_measures_in_a_process_of_its_own() -> None:
    """Twenty times a second, and no lag is negative."""
    found = idle_loop.finish(idle_loop.start(0.5), 30.0)
    assert 1 <= found["probes"] <= 10
    assert 0 <= found["p99_9_seconds"] <= found["max_seconds"]


def test_step_that_cannot_be_filled_is_told_and_ends_its_series(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no figure, and what stands on it is none either."""

    def fill(*arguments: object, **options: object) -> None:
        raise NotFilled("5 failed (5 with status 4)")

    monkeypatch.setattr(growth, "fill", fill)
    said: list[str] = []
    steps = (Step(1_000, 100), Step(2_000, 100))
    theirs, plan = cast(System, SimpleNamespace(name="theirs")), cast(Plan, None)
    skipped = growth.measure(theirs, plan, steps, deadline=0.0, say=said.append)
    assert ["theirs: 1,000 keys of 100 B: after 0 keys, 5 failed (5 with status 4)"] == skipped[:1]
    assert ["theirs: 2,000 keys of 100 B: the step before it was too much"] == skipped[1:]
    assert 2 == len(said)


def soaked(*, last_p99_us: float, last_bytes: int, windows: int = 9) -> list[Measurement]:
    """Flat but for the last third."""
    first = 2 * windows // 3
    return [
        replace(
            measured("raftcache", window, 100, load, 32),
            p99_us=10.0 if window <= first else last_p99_us,
            anonymous_bytes={"n1": 100 if window <= first else last_bytes, "n2": 50},
        )
        for window in range(1, windows + 1)
        for load in soak.LOADS
    ]


def test_a_soak_compares_its_last_third_with_its_first() -> None:
    """p99 of each load, memory of the largest node; what grows too far is not met."""
    growth = soak.growth(soaked(last_p99_us=20.0, last_bytes=105))
    assert {"p99 of puts": 2.0, "p99 of gets": 2.0, "anonymous memory": 1.05} == {
        name: grown for name, grown in growth.items() if name not in ("windows", "seconds")
    }
    found = verdicts([], Absolute(soak=growth), front="fast")
    assert [False, False, True] == sorted(each.met for each in found)
    assert all(
        each.met
        for each in verdicts([], Absolute(soak=soak.growth(soaked(last_p99_us=11, last_bytes=100))), front="fast")
    )


def test_a_short_soak_says_nothing() -> None:
    """A third of it would be a window or none."""
    assert {} == soak.growth(soaked(last_p99_us=20.0, last_bytes=200, windows=soak.WINDOWS_MIN - 1))
    assert [] == verdicts([], Absolute(soak={}), front="fast")


def test_data_that_would_not_fit_is_not_written() -> None:
    """Values beyond what a node may take; for the peer, beyond what it is filled with quickly."""
    assert "" == feasible(Step(10_000, 256 << 10), peer=False)
    assert "3.0 GB of values alone" in feasible(Step(NODE_BYTES_MAX // 100 + 1, 100), peer=False)
    assert "" == feasible(Step(1_000_000, 100), peer=True)
    assert "etcd" in feasible(Step(5_000_000, 100), peer=True)
    assert ("1,000 keys of 16 KiB", "10 keys of 100 B") == (str(Step(1000, 16 << 10)), str(Step(10, 100)))


def test_the_python_client_is_compared_with_the_ordinary_one() -> None:
    """At 64 outstanding, whatever the transport that is not asked about does."""
    runs = [replace(measured("raftcache", 1, ops, "put, tasks"), generator=name) for name, ops in CLIENTS.items()]
    summaries = summarise(runs)
    (verdict,) = verdicts(summaries, Absolute(), front="fast")
    assert ("put, tasks at 64: the Python client, times gRPC's stubs", "2.50", True) == (
        verdict.what,
        verdict.measured,
        verdict.met,
    )
    lines = client_table(summaries).splitlines()
    assert ["1.00", "2.50", "0.80"] == [line.split()[-1] for line in lines[1:]]
    assert "" == client_table(summarise([measured("raftcache", 1, 100)]))


def test_absolute_figures_are_judged_where_they_were_measured() -> None:
    """The worst of several, and nothing of what was not measured."""
    absolute = Absolute(new_leader_seconds=[1.0, 1.0, 5.0], handover_requests=10, handover_failures={"x": 1})
    assert [True, False, False] == [each.met for each in verdicts([], absolute, front="fast")]
    assert [] == verdicts([], Absolute(), front="fast")
