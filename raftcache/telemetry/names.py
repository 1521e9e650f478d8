"""Every name by which the outside knows what happens inside: events, spans, metrics.

Rules of this file:
- names are part of the interface: dashboards, alerts and scripts hold on to them, so they are added and never renamed;
- events and spans are constant `snake_case`; what varies is a field;
- metrics are `raftcache_<subsystem>_<what>_<unit>[_total]`, in seconds and bytes;
- a `shard` label stands on few metrics only, because every shard of every node is a time series of each.

Tests hold the code to these tables: no code speaks of an event that is not here, a metric that is not here is not exported,
and none stands here that no code feeds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """How much a person should care. The values are those of the standard library's `logging`."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    """Somebody should look when there is time: something was refused, dropped, repaired or slow."""
    ERROR = 40
    """Somebody should look now: a replica or the node is not serving."""


# --- Events -------------------------------------------------------------------------------------------------------

EVENTS: Mapping[str, tuple[Level, str]] = {
    # The process.
    "node_started": (Level.INFO, "All ports are open and the data directory is recovered."),
    "node_draining": (Level.INFO, "SIGTERM or an operator: leaderships are handed off, new requests are refused."),
    "node_drained": (Level.INFO, "... and this is how many it led, and how many of them nobody took over in time."),
    "node_stopped": (Level.INFO, "A clean end."),
    "node_fatal": (Level.ERROR, "The process ends at once, because going on could lose or invent data."),
    "loop_stalled": (Level.WARNING, "The event loop did not run for longer than a tick."),
    "disk_low": (Level.WARNING, "Less free space than storage.disk_free_bytes_min: writes are refused."),
    "disk_recovered": (Level.INFO, "There is room again."),
    "state_full": (Level.WARNING, "A shard's state nears storage.map_bytes: writes that add to it are refused."),
    "state_has_room": (Level.INFO, "There is room in the shard's state again."),
    "directory_lost": (Level.WARNING, "The node's copy of the directory is damaged or gone; it asks for a new one."),
    "joined_cluster": (Level.INFO, "The node became a member of a cluster; from now on its data belongs to it."),
    # Replicas.
    "replica_opened": (Level.INFO, "A replica was recovered or created."),
    "replica_removed": (Level.INFO, "A replica left its group; a tombstone remains."),
    "replica_stopped": (Level.ERROR, "A replica does not serve any more; `reason` says why."),
    "state_lost": (Level.WARNING, "A live state was given up and is rebuilt from checkpoint and log."),
    "leader_changed": (Level.INFO, "A shard has a new leader, or none."),
    "membership_changed": (Level.INFO, "A configuration of a group was committed."),
    "stranger_refused": (Level.WARNING, "A message came for or from a replica that is not a member here."),
    "request_failed": (Level.ERROR, "A request met a bug of ours; its caller got INTERNAL, others may have, too."),
    "replies_lost": (Level.ERROR, "Replies could not be handed to their front, a bug of ours; the callers time out."),
    # Checkpoints and snapshots.
    "checkpoint_taken": (Level.DEBUG, "A verified checkpoint is durable; log below it may go."),
    "checkpoint_failed": (Level.WARNING, "A checkpoint was given up; the log stays."),
    "snapshot_sent": (Level.INFO, "A follower got a snapshot, or did not (`ok`)."),
    "snapshot_not_sent": (Level.WARNING, "A snapshot did not get to its receiver; its leader offers it again."),
    "snapshot_installed": (Level.INFO, "A replica's state was replaced by its leader's snapshot."),
    "snapshot_refused": (Level.WARNING, "An incoming snapshot did not verify or was not wanted."),
    "snapshot_unreadable": (Level.WARNING, "A checkpoint could not be read to be sent."),
    # The network.
    "peer_connected": (Level.INFO, "A connection to another node is up and its identity is proven."),
    "peer_unreachable": (Level.WARNING, "Another node cannot be dialled; it is tried again."),
    "peer_disconnected": (Level.INFO, "A connection to another node ended."),
    "peer_message_too_large": (Level.WARNING, "A Raft message exceeds what the other node takes, and was dropped."),
    "peer_refused": (Level.WARNING, "The other side is of another cluster, node, incarnation or protocol version."),
    "bad_request_from_node": (Level.WARNING, "Another node asked for something that cannot be understood or done."),
    # Others' words, routed through.
    "library_log": (
        Level.INFO,
        "A library wrote through the standard library's `logging`; its words are in `message`.",
    ),
    "unknown_event": (Level.WARNING, "An event that is not in this table; its name is in `name`. A bug of ours."),
}


# --- Spans --------------------------------------------------------------------------------------------------------

SPAN_GATEWAY = "gateway"
"""One request at the node that the client spoke to."""
SPAN_PROPOSE = "propose"
"""From the hand-over to the shard's leader until the reply is known."""
SPAN_FSYNC = "fsync"
"""One write and fdatasync of the log; linked to the requests in it."""
SPAN_REPLICATE = "replicate"
"""From an entry's append to its commit."""
SPAN_APPLY = "apply"
"""One entry's application to the state machine."""

SPANS = (SPAN_GATEWAY, SPAN_PROPOSE, SPAN_FSYNC, SPAN_REPLICATE, SPAN_APPLY)


# --- Metrics ------------------------------------------------------------------------------------------------------

# Doubling from a quarter of a millisecond: an fdatasync on NVMe takes 0.3 ms, a stall of 8 s is an outage (etcd's start at
# 1 ms, too coarse here).
SECONDS_BUCKETS = tuple(0.00025 * 2**power for power in range(16))
# A batch is between one command and `raft.entry_commands_max` of several shards.
COUNT_BUCKETS = tuple(float(4**power) for power in range(9))


class MetricKind(IntEnum):
    """Prometheus' types. What is `SCRAPED` is read from the node when somebody asks, and costs nothing before."""

    COUNTER = 1
    HISTOGRAM = 2
    SCRAPED_GAUGE = 3
    SCRAPED_COUNTER = 4


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table."""

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _seconds(name: str, help_: str, *labels: str) -> Metric:
    return Metric(name, MetricKind.HISTOGRAM, help_, labels, SECONDS_BUCKETS)


def _numbers(name: str, help_: str, *labels: str) -> Metric:
    return Metric(name, MetricKind.HISTOGRAM, help_, labels, COUNT_BUCKETS)


def _counter(name: str, help_: str, *labels: str) -> Metric:
    return Metric(name, MetricKind.COUNTER, help_, labels)


def _gauge(name: str, help_: str, *labels: str) -> Metric:
    return Metric(name, MetricKind.SCRAPED_GAUGE, help_, labels)


def _total(name: str, help_: str, *labels: str) -> Metric:
    return Metric(name, MetricKind.SCRAPED_COUNTER, help_, labels)


BUILD_INFO = _gauge("raftcache_build_info", "Always 1; what is running stands in the labels.", "version", "python")
EVENTS_TOTAL = _counter("raftcache_events_total", "Events by name, logged or not.", "event")

# Per shard. Precedent: etcd_server_has_leader, etcd_server_proposals_*, Consul's "trails leader by".
RAFT_HAS_LEADER = _gauge("raftcache_raft_has_leader", "1 while this replica knows a leader of its shard.", "shard")
RAFT_IS_LEADER = _gauge("raftcache_raft_is_leader", "1 while this replica leads its shard.", "shard")
RAFT_TERM = _gauge("raftcache_raft_term", "Raft term.", "shard")
RAFT_COMMIT_INDEX = _gauge("raftcache_raft_commit_index", "Last index known to be committed.", "shard")
RAFT_APPLIED_INDEX = _gauge("raftcache_raft_applied_index", "Last index applied to the state machine.", "shard")
RAFT_LAST_INDEX = _gauge("raftcache_raft_last_index", "Last index of this replica's log.", "shard")
RAFT_LEADER_CHANGES = _total("raftcache_raft_leader_changes_total", "Leaders that this replica saw come.", "shard")
RAFT_ELECTIONS = _total("raftcache_raft_elections_total", "Campaigns that this replica started.", "shard")
RAFT_PROPOSALS_APPLIED = _total("raftcache_raft_proposals_applied_total", "Commands applied.", "shard")
RAFT_PROPOSALS_FAILED = _total(
    "raftcache_raft_proposals_failed_total", "Commands proposed here whose outcome was an error or unknown.", "shard"
)
RAFT_PROPOSALS_PENDING = _gauge("raftcache_raft_proposals_pending", "Commands proposed here and not answered.", "shard")
RAFT_FOLLOWER_LAG = _gauge(
    "raftcache_raft_follower_lag_entries", "On a leader: how far the slowest voter's log is behind.", "shard"
)
STATE_RECORDS = _gauge("raftcache_state_records", "Keys in this replica's state.", "shard")
STATE_BYTES = _gauge("raftcache_state_bytes", "Bytes of this replica's live state.", "shard")

# The node.
NODE_REPLICAS = _gauge("raftcache_node_replicas", "Replicas here, by role.", "role")
NODE_LEADERS = _gauge("raftcache_node_leaders", "Shards led from here.")
NODE_LEADERLESS = _gauge("raftcache_node_shards_without_leader", "Shards here that know no leader.")
NODE_STOPPED = _gauge("raftcache_node_replicas_stopped", "Replicas here that do not serve, because of an error.")
NODE_FULL = _gauge(
    "raftcache_node_replicas_full", "Replicas here whose state nears storage.map_bytes; such a leader refuses writes."
)
NODE_DISK_FREE = _gauge("raftcache_node_disk_free_bytes", "Free space where the data directory is.")
NODE_WAL_BYTES = _gauge("raftcache_wal_bytes", "Log on disk, of all shards.")

# The write path; pushed, once per batch.
WAL_FSYNC_SECONDS = _seconds("raftcache_wal_fsync_duration_seconds", "Duration of one fdatasync of the log.")
WAL_FSYNC_ENTRIES = _numbers("raftcache_wal_fsync_entries", "Log entries made durable by one fdatasync.")
WAL_FSYNC_COMMANDS = _numbers("raftcache_wal_fsync_commands", "Commands made durable by one fdatasync.")
WAL_WRITE_BYTES = _counter("raftcache_wal_write_bytes_total", "Bytes written to the log.")
RAFT_COMMIT_SECONDS = _seconds(
    "raftcache_raft_commit_duration_seconds", "From an entry's proposal to its commit; one entry of a shard at a time."
)
READ_INDEX_SECONDS = _seconds(
    "raftcache_raft_read_index_duration_seconds",
    "Until a majority confirmed the leader for waiting reads; one round of a shard at a time.",
)
APPLY_SECONDS = _seconds("raftcache_raft_apply_duration_seconds", "Duration of applying what one turn committed.")
LMDB_COMMIT_SECONDS = _seconds("raftcache_lmdb_commit_duration_seconds", "Duration of one commit of a live state.")

# Counted from events, whose fields say more.
CHECKPOINTS = _counter("raftcache_checkpoints_total", "Checkpoints, by outcome: ok or failed.", "outcome")
SNAPSHOTS_SENT = _counter(
    "raftcache_snapshots_sent_total", "Snapshots to followers, by outcome: ok or failed.", "outcome"
)
SNAPSHOTS_RECEIVED = _counter(
    "raftcache_snapshots_received_total", "Snapshots from leaders, by outcome: ok or refused.", "outcome"
)

# Between nodes. `peer` is the other node's id.
PEER_ROUND_TRIP = _gauge(
    "raftcache_peer_round_trip_seconds", "Round trip to the other node, smoothed over the latest ones.", "peer"
)
PEER_CONNECTED = _gauge("raftcache_peer_connected", "1 while there is a proven connection to the other node.", "peer")
PEER_SEND_FAILURES = _total(
    "raftcache_peer_send_failures_total", "Messages dropped: no connection or full queue.", "peer"
)
PEER_QUEUE_BYTES = _gauge("raftcache_peer_send_queue_bytes", "Bytes that wait to be sent.", "peer")
PEER_SENT_BYTES = _total("raftcache_peer_sent_bytes_total", "Bytes sent to the other node.", "peer")
PEER_RECEIVED_BYTES = _total("raftcache_peer_received_bytes_total", "Bytes received from the other node.", "peer")

# Clients.
RPC_HANDLED = _counter(
    "raftcache_rpc_handled_total",
    "Unary calls, by method and gRPC code; CANCELLED: given up by its client, or its connection ended.",
    "method",
    "code",
)
RPC_SECONDS = _seconds("raftcache_rpc_duration_seconds", "From a call's arrival to its end.", "method")
RPC_INFLIGHT = _gauge("raftcache_rpc_inflight", "Operations accepted and not yet answered.")
RPC_INFLIGHT_BYTES = _gauge("raftcache_rpc_inflight_bytes", "... and their bytes.")
RPC_FORWARDED = _total("raftcache_rpc_forwarded_total", "Operations passed on to the node that leads their shard.")
RPC_REFUSED = _total("raftcache_rpc_overloaded_total", "Operations refused because a limit was reached.")

# The interpreter. Missed heartbeats of a Python server are nearly always this.
# 5 ms is what the benchmark allows under load; a bucket ends there, so that it can be told from the metric.
LOOP_LAG = Metric(
    "raftcache_eventloop_lag_seconds",
    MetricKind.HISTOGRAM,
    "How much later than asked the event loop ran a timer.",
    buckets=tuple(sorted((*SECONDS_BUCKETS, 0.005))),
)

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
