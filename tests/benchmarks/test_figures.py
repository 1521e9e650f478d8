"""Statistics, the parsers of what tools and the kernel print, and what is concluded from them."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import h2load, prometheus, usage
from benchmarks.figures import median_of, percentile, ratio, spread
from benchmarks.measurement import OURS, STUBS, Measurement, summarise
from benchmarks.report import client_table
from benchmarks.wanted import Absolute, verdicts

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
