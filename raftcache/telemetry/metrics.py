"""Metrics: what is pushed, into tallies and bound counters, and what is read only when somebody scrapes.

Rules of this file:
- every name, help text and bucket comes from `names`;
- what is observed per batch or per call goes into a `Tally`, a tenth of what the library's histogram costs, and is made into
  the library's families at scrape time; rare events go to its counters;
- the state of shards, peers and queues is not pushed at all but collected from a callback at scrape time;
- the registry is handed in, so that several nodes can live in one process, as they do in tests.
"""

import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import Metric as MetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.utils import floatToGoString

from raftcache.telemetry import names
from raftcache.telemetry.names import Metric, MetricKind
from raftcache.telemetry.samples import NodeSample, PeerSample, ShardSample

NS_PER_SECOND = 1_000_000_000


class Tally:
    """Observations of one kind, counted by bucket. Belongs to one thread, the event loop's, which also scrapes."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Iterable[float]) -> None:
        """`bounds`: of the buckets, ascending, each inclusive; beyond the last there is one more."""
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, amount: float) -> None:
        """Counts `amount` in."""
        self._counts[bisect_left(self._bounds, amount)] += 1
        self._sum += amount

    def add_to(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        """What was observed so far, as a series of the family."""
        bounds = [
            floatToGoString(bound)  # type: ignore[no-untyped-call] # the package leaves it untyped
            for bound in (*self._bounds, float("inf"))
        ]
        counts = [float(count) for count in accumulate(self._counts)]
        family.add_metric(labels, list(zip(bounds, counts, strict=True)), self._sum)


class Metrics:
    """All that is pushed; an update is one call."""

    __slots__ = (
        "_events",
        "_rpc_handled",
        "_rpc_seconds",
        "_tallies",
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
        self._tallies: list[tuple[Metric, Tally]] = []
        self.wal_fsync_seconds = self._tally(names.WAL_FSYNC_SECONDS)
        self.wal_fsync_entries = self._tally(names.WAL_FSYNC_ENTRIES)
        self.wal_fsync_commands = self._tally(names.WAL_FSYNC_COMMANDS)
        self.wal_write_bytes = _counter(names.WAL_WRITE_BYTES, registry)
        self.apply_seconds = self._tally(names.APPLY_SECONDS)
        self.raft_commit_seconds = self._tally(names.RAFT_COMMIT_SECONDS)
        self.read_index_seconds = self._tally(names.READ_INDEX_SECONDS)
        self.lmdb_commit_seconds = self._tally(names.LMDB_COMMIT_SECONDS)
        self.loop_lag = self._tally(names.LOOP_LAG)
        self.checkpoints = _bound(names.CHECKPOINTS, registry, "ok", "failed")
        self.snapshots_sent = _bound(names.SNAPSHOTS_SENT, registry, "ok", "failed")
        self.snapshots_received = _bound(names.SNAPSHOTS_RECEIVED, registry, "ok", "refused")
        self._events = _bound(names.EVENTS_TOTAL, registry, *names.EVENTS)
        self._rpc_handled: dict[tuple[str, str], int] = {}
        self._rpc_seconds: dict[str, Tally] = {}
        registry.register(self)

    def event(self, name: str) -> None:
        """Something happened that has a name in `names.EVENTS`."""
        self._events[name].inc()

    def rpc(self, method: str, code: str, took_ns: int) -> None:
        """A call is over. `method` and `code` come from fixed sets: the service's methods, gRPC's codes."""
        answered = (method, code)
        self._rpc_handled[answered] = self._rpc_handled.get(answered, 0) + 1
        seconds = self._rpc_seconds.get(method)
        if seconds is None:
            seconds = self._rpc_seconds[method] = Tally(names.RPC_SECONDS.buckets)
        seconds.observe(took_ns / NS_PER_SECOND)

    def describe(self) -> Iterator[MetricFamily]:
        """The families, so that the registry knows their names and refuses them to others."""
        return self.collect()

    def collect(self) -> Iterator[MetricFamily]:
        """All tallies, as families. Called by the registry, once per scrape."""
        for metric, tally in self._tallies:
            family = _histogram(metric)
            tally.add_to(family, [])
            yield family
        handled = CounterMetricFamily(names.RPC_HANDLED.name, names.RPC_HANDLED.help, labels=names.RPC_HANDLED.labels)
        for answered, count in self._rpc_handled.items():
            handled.add_metric(answered, count)
        yield handled
        seconds = _histogram(names.RPC_SECONDS)
        for method, tally in self._rpc_seconds.items():
            tally.add_to(seconds, [method])
        yield seconds

    def _tally(self, metric: Metric) -> Tally:
        tally = Tally(metric.buckets)
        self._tallies.append((metric, tally))
        return tally


def _histogram(metric: Metric) -> HistogramMetricFamily:
    assert metric.kind is MetricKind.HISTOGRAM, metric
    return HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)


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
