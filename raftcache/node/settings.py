"""The node's limits and intervals, each with its derivation; the composition root fills them from the configuration."""

from dataclasses import dataclass

MS = 1_000_000
"""Nanoseconds in a millisecond."""


@dataclass(slots=True, frozen=True)
class EngineSettings:
    """What the engine is bounded by. Times are nanoseconds, sizes bytes."""

    tick_ns: int = 100 * MS
    election_timeout_ticks: int = 10
    heartbeat_ticks: int = 2
    """Five of them make the election timeout. Each costs an idle shard, so they are not more frequent."""
    entry_bytes_max: int = 1 << 20
    """A log entry takes commands until it has this many bytes; one larger command goes alone."""
    entry_commands_max: int = 4096
    """Bounds the work of one apply to some tens of milliseconds."""
    batches_in_flight_max: int = 2
    """Per shard. One is being made durable while the next fills: natural group commit, no timer. Measured: more are
    slower, because the batches get smaller."""
    read_rounds_in_flight_max: int = 1
    """Read-index rounds per shard; what comes meanwhile joins the next one. Measured: with more, rounds carry fewer reads,
    and reads at 64 and 256 outstanding are slower."""
    in_flight_requests_max: int = 20_000
    in_flight_bytes_max: int = 256 << 20
    frame_bytes_max: int = 8 << 20
    """Of a frame between nodes."""
    patience_ns: int = 5_000 * MS
    """How long a request waits here for a leader before it is refused: two election rounds and a restart's margin."""
    commit_commands_max: int = 1000
    """Applied commands between two (unsynced) commits of a live environment: bounds the dirty pages held in memory."""
    commit_bytes_max: int = 8 << 20
    commit_interval_ns: int = 2_000 * MS
    log_bytes_per_checkpoint: int = 64 << 20
    """Bounds replay at restart: 64 MiB of 130-byte commands is about half a million, some 5 s."""
    trailing_log_bytes: int = 16 << 20
    """Kept below a checkpoint, so that a follower that was away for a moment needs no snapshot."""
    log_bytes_max: int = 1 << 30
    """Of all shards together; past it the shard that pins the oldest segment is checkpointed."""
    learner_lag_entries_max: int = 64
    """A learner this close to the leader's last entry counts as caught up (thesis §4.2.1: before it gets a vote)."""
    snapshots_out_max: int = 2
    """Per node: a snapshot is read and sent at the cost of the data path."""
    sync_inline_below_ns: int = 1_000_000
    """Where the running mean of fdatasync is below this, it runs on the loop: a hop to a thread costs 50 us idle and
    500 us beside a busy loop (measured), and 1 ms is a hundredth of a tick."""
    committed_bytes_per_ready: int = 4 << 20
    append_bytes_max: int = 1 << 20
    inflight_messages_max: int = 256
    inflight_bytes_max: int = 8 << 20
    uncommitted_bytes_max: int = 64 << 20
    reads_pending_max: int = 1024
    push_commits: bool = False
    """See `RaftConfig.push_commits`. Measured: with 16 busy shards half of what nodes say to each other would be that."""
    disk_free_bytes_min: int = 256 << 20
    """Below it proposals are refused and leadership is handed off; votes go on."""
