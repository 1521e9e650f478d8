"""Metrics: what is pushed, with its children bound once, and what is read only when somebody scrapes.

Rules of this file:
- every name, help text and bucket comes from `names`;
- the write path pushes a handful of observations per *batch* (0.3 to 0.6 us each), never per command; the state of shards,
  peers and queues is not pushed at all but collected from a callback at scrape time;
- the registry is handed in, so that several nodes can live in one process, as they do in tests.
"""

import platform
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import Metric as MetricFamily
from prometheus_client.process_collector import ProcessCollector

from raftcache.telemetry import names
from raftcache.telemetry.names import Metric, MetricKind
from raftcache.telemetry.samples import NodeSample, PeerSample, ShardSample

NS_PER_SECOND = 1_000_000_000


class ObservedHistogram(Protocol):
    """A histogram's bound child, as its users see it."""

    def observe(self, amount: float) -> None: ...


class Metrics:
    """All that is pushed. Attributes are bound children: an update is one call."""

    __slots__ = (
        "_events",
        "_rpc_bound",
        "_rpc_handled",
        "_rpc_seconds",
        "apply_seconds",
        "checkpoints",
        "lmdb_commit_seconds",
        "loop_lag",
        "raft_commit_seconds",
        "read_index_seconds",
        "registry",
        "snapshots_received",
        "snapshots_sent",
        "wal_fsync_commands",
        "wal_fsync_entries",
        "wal_fsync_seconds",
        "wal_write_bytes",
    )

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """Into `registry`, or into a new one that also measures this process."""
        self.registry = registry = new_registry() if registry is None else registry
        self.wal_fsync_seconds = _histogram(names.WAL_FSYNC_SECONDS, registry)
        self.wal_fsync_entries = _histogram(names.WAL_FSYNC_ENTRIES, registry)
        self.wal_fsync_commands = _histogram(names.WAL_FSYNC_COMMANDS, registry)
        self.wal_write_bytes = _counter(names.WAL_WRITE_BYTES, registry)
        self.apply_seconds = _histogram(names.APPLY_SECONDS, registry)
        self.raft_commit_seconds = _histogram(names.RAFT_COMMIT_SECONDS, registry)
        self.read_index_seconds = _histogram(names.READ_INDEX_SECONDS, registry)
        self.lmdb_commit_seconds = _histogram(names.LMDB_COMMIT_SECONDS, registry)
        self.loop_lag = _histogram(names.LOOP_LAG, registry)
        self.checkpoints = _bound(names.CHECKPOINTS, registry, "ok", "failed")
        self.snapshots_sent = _bound(names.SNAPSHOTS_SENT, registry, "ok", "failed")
        self.snapshots_received = _bound(names.SNAPSHOTS_RECEIVED, registry, "ok", "refused")
        self._events = _bound(names.EVENTS_TOTAL, registry, *names.EVENTS)
        self._rpc_handled = _counter(names.RPC_HANDLED, registry)
        self._rpc_seconds = _histogram(names.RPC_SECONDS, registry)
        self._rpc_bound: dict[tuple[str, str], tuple[Counter, Histogram]] = {}

    def event(self, name: str) -> None:
        """Something happened that has a name in `names.EVENTS`."""
        self._events[name].inc()

    def rpc(self, method: str, code: str, took_ns: int) -> None:
        """A call was answered. `method` and `code` come from fixed sets: the service's methods, gRPC's codes."""
        bound = self._rpc_bound.get((method, code))
        if bound is None:
            bound = self._rpc_handled.labels(method, code), self._rpc_seconds.labels(method)
            self._rpc_bound[method, code] = bound
        handled, seconds = bound
        handled.inc()
        seconds.observe(took_ns / NS_PER_SECOND)


def _histogram(metric: Metric, registry: CollectorRegistry) -> Histogram:
    assert metric.kind is MetricKind.HISTOGRAM, metric
    return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=registry)


def _bound(metric: Metric, registry: CollectorRegistry, *values: str) -> dict[str, Counter]:
    """A counter's children by the values of its only label: there from the start, so that a rate has a beginning."""
    counter = _counter(metric, registry)
    return {value: counter.labels(value) for value in values}


def _counter(metric: Metric, registry: CollectorRegistry) -> Counter:
    assert metric.kind is MetricKind.COUNTER, metric
    return Counter(metric.name, metric.help, metric.labels, registry=registry)


# --- What is collected at scrape time -----------------------------------------------------------------------------

_SHARD_METRICS: tuple[tuple[Metric, Callable[[ShardSample], float]], ...] = (
    (names.RAFT_HAS_LEADER, lambda sample: sample.has_leader),
    (names.RAFT_IS_LEADER, lambda sample: sample.role == "leader"),
    (names.RAFT_TERM, lambda sample: sample.term),
    (names.RAFT_COMMIT_INDEX, lambda sample: sample.commit_index),
    (names.RAFT_APPLIED_INDEX, lambda sample: sample.applied_index),
    (names.RAFT_LAST_INDEX, lambda sample: sample.last_index),
    (names.RAFT_LEADER_CHANGES, lambda sample: sample.leader_changes),
    (names.RAFT_ELECTIONS, lambda sample: sample.elections),
    (names.RAFT_PROPOSALS_APPLIED, lambda sample: sample.proposals_applied),
    (names.RAFT_PROPOSALS_FAILED, lambda sample: sample.proposals_failed),
    (names.RAFT_PROPOSALS_PENDING, lambda sample: sample.proposals_pending),
    (names.RAFT_FOLLOWER_LAG, lambda sample: sample.follower_lag_entries),
    (names.STATE_RECORDS, lambda sample: sample.records),
    (names.STATE_BYTES, lambda sample: sample.state_bytes),
)

_PEER_METRICS: tuple[tuple[Metric, Callable[[PeerSample], float]], ...] = (
    (names.PEER_CONNECTED, lambda sample: sample.connected),
    (names.PEER_ROUND_TRIP, lambda sample: sample.round_trip_seconds),
    (names.PEER_SEND_FAILURES, lambda sample: sample.send_failures),
    (names.PEER_QUEUE_BYTES, lambda sample: sample.queue_bytes),
    (names.PEER_SENT_BYTES, lambda sample: sample.sent_bytes),
    (names.PEER_RECEIVED_BYTES, lambda sample: sample.received_bytes),
)

_NODE_METRICS: tuple[tuple[Metric, Callable[[NodeSample], float]], ...] = (
    (names.NODE_LEADERS, lambda node: sum(sample.role == "leader" for sample in node.shards)),
    (names.NODE_LEADERLESS, lambda node: sum(not sample.has_leader for sample in node.shards)),
    (names.NODE_STOPPED, lambda node: sum(sample.role == "stopped" for sample in node.shards)),
    (names.NODE_FULL, lambda node: sum(sample.full for sample in node.shards)),
    (names.NODE_DISK_FREE, lambda node: node.disk_free_bytes),
    (names.NODE_WAL_BYTES, lambda node: node.wal_bytes),
    (names.RPC_INFLIGHT, lambda node: node.in_flight_requests),
    (names.RPC_INFLIGHT_BYTES, lambda node: node.in_flight_bytes),
    (names.RPC_FORWARDED, lambda node: node.forwarded),
    (names.RPC_REFUSED, lambda node: node.overloaded),
)

ROLES = ("leader", "follower", "candidate", "pre-candidate", "learner", "stopped")


class NodeCollector:
    """Asks the node for a `NodeSample` at every scrape, on the thread that scrapes: the event loop's."""

    def __init__(self, sample: Callable[[], NodeSample], *, version: str, shard_metrics_max: int) -> None:
        self._sample = sample
        self._version = version
        self._shard_metrics_max = shard_metrics_max

    def describe(self) -> Iterable[MetricFamily]:
        """The families without values, so that registering asks the node for nothing."""
        return [_family(metric) for metric in names.METRICS if metric.kind in _SCRAPED]

    def collect(self) -> Iterator[MetricFamily]:
        """Called by the registry, once per scrape."""
        node = self._sample()
        build = _family(names.BUILD_INFO)
        build.add_metric([self._version, platform.python_version()], 1)
        yield build
        for metric, read in _NODE_METRICS:
            family = _family(metric)
            family.add_metric([], read(node))
            yield family
        replicas = _family(names.NODE_REPLICAS)
        for role in ROLES:
            replicas.add_metric([role], sum(sample.role == role for sample in node.shards))
        yield replicas
        for peer_metric, read_peer in _PEER_METRICS:
            family = _family(peer_metric)
            for peer in node.peers:
                family.add_metric([peer.peer], read_peer(peer))
            yield family
        # With very many shards the node's sums above have to do: series are what a Prometheus pays for.
        if len(node.shards) <= self._shard_metrics_max:
            for shard_metric, read_shard in _SHARD_METRICS:
                family = _family(shard_metric)
                for shard in node.shards:
                    family.add_metric([str(shard.shard)], read_shard(shard))
                yield family


_SCRAPED = (MetricKind.SCRAPED_GAUGE, MetricKind.SCRAPED_COUNTER)


def _family(metric: Metric) -> GaugeMetricFamily | CounterMetricFamily:
    assert metric.kind in _SCRAPED, metric
    if metric.kind is MetricKind.SCRAPED_GAUGE:
        return GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    return CounterMetricFamily(metric.name, metric.help, labels=metric.labels)


def new_registry(*, process: bool = True) -> CollectorRegistry:
    """A registry of its own; with `process`, also memory, CPU, open files and garbage collection of this process."""
    registry = CollectorRegistry(auto_describe=False)
    if process:
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
    return registry


def render(registry: CollectorRegistry, accept: str = "") -> tuple[str, bytes]:
    """Content type and body of `/metrics`: OpenMetrics for who asks for it, else Prometheus' text."""
    encode, content_type = choose_encoder(accept)
    return content_type, encode(registry)
