"""Metrics: what is exported, when the node is asked, and what it costs."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from raftcache.telemetry import names
from raftcache.telemetry.logging import Logging
from raftcache.telemetry.metrics import Metrics, NodeCollector, Tally, new_registry, render
from raftcache.telemetry.names import MetricKind
from raftcache.telemetry.observer import TelemetryObserver
from raftcache.telemetry.samples import NodeSample, PeerSample, ShardSample


def shard(number: int, role: str, **more: int) -> ShardSample:
    """A replica in good order."""
    return ShardSample(number, role, role != "stopped", 3, 20, 19, 21, **more)


class Node:
    """Counts how often it is asked."""

    def __init__(self, sample: NodeSample) -> None:
        self.sample = sample
        self.asked = 0

    def __call__(self) -> NodeSample:
        self.asked += 1
        return self.sample


def registered(node: Node, *, shard_metrics_max: int = 100) -> CollectorRegistry:
    """A registry with everything in it but the process."""
    registry = new_registry(process=False)
    Metrics(registry)
    registry.register(NodeCollector(node, version="1.2.3", shard_metrics_max=shard_metrics_max))
    return registry


NODE = NodeSample(
    shards=[shard(0, "leader", leader_changes=2), shard(1, "follower", full=True, state_bytes=77), shard(2, "stopped")],
    peers=[PeerSample("77", connected=True, queue_bytes=5)],
    disk_free_bytes=1000,
    forwarded=4,
)


def test_everything_in_the_table_is_exported_and_nothing_else() -> None:
    """The table is the documentation; it cannot lie."""
    registry = registered(Node(NODE))
    _, body = render(registry)
    exported = {family.name for family in text_string_to_metric_families(body.decode())}
    exported = {name for name in exported if not name.endswith("_created")}
    assert {metric.name.removesuffix("_total") for metric in names.METRICS} == {
        name.removesuffix("_total") for name in exported
    }


def test_the_node_is_asked_once_per_scrape_and_not_before() -> None:
    """Neither registering nor an update asks for a sample."""
    node = Node(NODE)
    registry = registered(node)
    assert 0 == node.asked
    render(registry)
    assert 1 == node.asked


def test_a_sample_becomes_series() -> None:
    """Per shard, per peer and as sums over the node."""
    registry = registered(Node(NODE))
    value = registry.get_sample_value
    assert 1 == value("raftcache_raft_is_leader", {"shard": "0"})
    assert 0 == value("raftcache_raft_has_leader", {"shard": "2"})
    assert 19 == value("raftcache_raft_applied_index", {"shard": "1"})
    assert 2 == value("raftcache_raft_leader_changes_total", {"shard": "0"})
    assert 77 == value("raftcache_state_bytes", {"shard": "1"})
    assert 1 == value("raftcache_node_replicas_full")
    assert 5 == value("raftcache_peer_send_queue_bytes", {"peer": "77"})
    assert (1, 1, 1) == (
        value("raftcache_node_leaders"),
        value("raftcache_node_shards_without_leader"),
        value("raftcache_node_replicas_stopped"),
    )
    assert 1 == value("raftcache_node_replicas", {"role": "follower"})
    assert 4 == value("raftcache_rpc_forwarded_total")


def test_a_node_with_very_many_shards_exports_only_sums() -> None:
    """Series are what a Prometheus pays for; the sums stay right."""
    registry = registered(Node(NODE), shard_metrics_max=2)
    assert registry.get_sample_value("raftcache_raft_term", {"shard": "0"}) is None
    assert 1 == registry.get_sample_value("raftcache_node_leaders")


def test_pushed_metrics_are_seen() -> None:
    """The observer turns nanoseconds into seconds and counts events, known or not."""
    registry = new_registry(process=False)
    metrics = Metrics(registry)
    observer = TelemetryObserver(metrics, quiet_log())
    observer.synced(1_500_000)
    observer.wrote(entries=2, commands=40, written_bytes=4096)
    observer.applied(2_000_000, 40)
    observer.committed(3_000_000)
    observer.replicated(4_000_000)
    observer.confirmed(5_000_000)
    observer.event("state_lost", shard=1)
    observer.event("no_such_event")
    metrics.rpc("Put", "OK", 1_000_000)
    metrics.rpc("Put", "OK", 1_000_000)

    value = registry.get_sample_value
    assert 0.0015 == value("raftcache_wal_fsync_duration_seconds_sum")
    assert 4096 == value("raftcache_wal_write_bytes_total")
    assert 40 == value("raftcache_wal_fsync_commands_sum")
    assert 1 == value("raftcache_raft_apply_duration_seconds_count")
    assert 0.004 == value("raftcache_raft_commit_duration_seconds_sum")
    assert 0.005 == value("raftcache_raft_read_index_duration_seconds_sum")
    assert 1 == value("raftcache_events_total", {"event": "state_lost"})
    assert 1 == value("raftcache_events_total", {"event": "unknown_event"})
    assert 2 == value("raftcache_rpc_handled_total", {"method": "Put", "code": "OK"})
    assert 0.002 == value("raftcache_rpc_duration_seconds_sum", {"method": "Put"})
    assert 2 == value("raftcache_wal_fsync_entries_sum")
    assert 0.003 == value("raftcache_lmdb_commit_duration_seconds_sum")


def test_the_registry_knows_what_is_tallied() -> None:
    """It finds one family by its name, and refuses the name to others, as it does with the library's own metrics."""
    registry = new_registry(process=False)
    metrics = Metrics(registry)
    metrics.loop_lag.observe(1.0)
    alone = registry.restricted_registry(["raftcache_eventloop_lag_seconds_count"])
    assert [1.0] == [sample.value for family in alone.collect() for sample in family.samples]
    with pytest.raises(ValueError, match="raftcache_eventloop_lag_seconds"):
        Histogram("raftcache_eventloop_lag_seconds", "Another.", registry=registry)


BOUNDS = (0.25, 1.0, 4.0)


@given(st.lists(st.one_of(st.sampled_from(BOUNDS), st.floats(0, 10, allow_subnormal=False)), max_size=50))
def test_a_tally_says_what_the_librarys_histogram_says(amounts: list[float]) -> None:
    """Bounds belong to their buckets, and what is beyond the last is counted too."""
    registry = CollectorRegistry()
    theirs = Histogram("amount", "About it.", ("label",), buckets=BOUNDS, registry=registry).labels("a")
    ours = Tally(BOUNDS)
    for amount in amounts:
        theirs.observe(amount)
        ours.observe(amount)
    family = HistogramMetricFamily("amount", "About it.", labels=("label",))
    ours.add_to(family, ["a"])
    (expected,) = registry.collect()
    seen = {(sample.name, *sample.labels.items()): sample.value for sample in family.samples}
    assert len(seen) == len(BOUNDS) + 3
    assert seen == {
        (sample.name, *sample.labels.items()): sample.value
        for sample in expected.samples
        if not sample.name.endswith("_created")
    }


def test_checkpoints_and_snapshots_are_counted_by_outcome_from_their_events() -> None:
    """Failures and successes are series from the start, so that a rate has a beginning."""
    metrics = Metrics(new_registry(process=False))
    observer = TelemetryObserver(metrics, quiet_log())
    value = metrics.registry.get_sample_value
    assert 0 == value("raftcache_checkpoints_total", {"outcome": "failed"})
    observer.event("checkpoint_taken", shard=1)
    observer.event("checkpoint_failed", shard=1)
    observer.event("snapshot_sent", shard=1, ok=True)
    observer.event("snapshot_sent", shard=1, ok=False)
    observer.event("snapshot_installed", shard=1)
    observer.event("snapshot_refused", shard=1)
    for name, outcome in (
        ("checkpoints", "ok"),
        ("checkpoints", "failed"),
        ("snapshots_sent", "ok"),
        ("snapshots_sent", "failed"),
        ("snapshots_received", "ok"),
        ("snapshots_received", "refused"),
    ):
        assert 1 == value(f"raftcache_{name}_total", {"outcome": outcome}), (name, outcome)


def test_an_fsync_and_an_outage_fall_into_different_buckets() -> None:
    """The buckets reach from a quarter of a millisecond to eight seconds."""
    assert 0.00025 == names.SECONDS_BUCKETS[0]
    assert 8 < names.SECONDS_BUCKETS[-1] < 10
    assert all(metric.buckets for metric in names.METRICS if metric.kind is MetricKind.HISTOGRAM)


def test_openmetrics_is_given_to_who_asks_for_it() -> None:
    """Prometheus does, curl does not; both get a content type that fits."""
    registry = registered(Node(NODE))
    content_type, body = render(registry, "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    content_type, body = render(registry)
    assert content_type.startswith("text/plain")


def test_the_process_is_measured_too() -> None:
    """Memory, CPU and open files come with the real registry."""
    _, body = render(Metrics().registry)
    assert b"process_resident_memory_bytes" in body
    assert b"python_gc_collections_total" in body


def quiet_log() -> Logging:
    """A log that nobody reads."""
    return Logging(stream=io.StringIO(), level="error", format="json", monotonic_ns=lambda: 0, wall_ms=lambda: 0)
