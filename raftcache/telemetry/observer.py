"""What the engine's observer does with what it is told: metrics first, then the log."""

from raftcache.telemetry.logging import Logging
from raftcache.telemetry.metrics import NS_PER_SECOND, Metrics
from raftcache.telemetry.names import EVENTS


class TelemetryObserver:
    """Implements the node's `Observer`. Cheap enough for the loop: one call per batch, or per rare event."""

    __slots__ = ("_log", "_metrics", "_outcomes")

    def __init__(self, metrics: Metrics, log: Logging) -> None:
        self._metrics = metrics
        self._log = log
        # Events that are the outcome of something.
        self._outcomes = {
            "checkpoint_taken": metrics.checkpoints["ok"],
            "checkpoint_failed": metrics.checkpoints["failed"],
            "snapshot_installed": metrics.snapshots_received["ok"],
            "snapshot_refused": metrics.snapshots_received["refused"],
            "snapshot_unreadable": metrics.snapshots_sent["failed"],
        }

    def event(self, name: str, **fields: object) -> None:
        """Something happened; `name` is one of `names.EVENTS`."""
        # Counted whether or not it is written: rate limits and levels are the log's business.
        self._metrics.event(name if name in EVENTS else "unknown_event")
        counted = self._outcomes.get(name)
        if counted is not None:
            counted.inc()
        elif name == "snapshot_sent":
            self._metrics.snapshots_sent["ok" if fields.get("ok") else "failed"].inc()
        self._log.event(name, **fields)

    def synced(self, took_ns: int) -> None:
        """One fdatasync of the log took this long."""
        self._metrics.wal_fsync_seconds.observe(took_ns / NS_PER_SECOND)

    def wrote(self, *, entries: int, commands: int, written_bytes: int) -> None:
        """... and made this durable."""
        self._metrics.wal_fsync_entries.observe(entries)
        self._metrics.wal_fsync_commands.observe(commands)
        self._metrics.wal_write_bytes.inc(written_bytes)

    def applied(self, took_ns: int, commands: int) -> None:
        """The state machine applied so many commands in so long. The collector reads their number from the replicas."""
        del commands
        self._metrics.apply_seconds.observe(took_ns / NS_PER_SECOND)

    def committed(self, took_ns: int) -> None:
        """One commit of a live state took this long."""
        self._metrics.lmdb_commit_seconds.observe(took_ns / NS_PER_SECOND)

    def replicated(self, took_ns: int) -> None:
        """An entry that was proposed here was committed so long after."""
        self._metrics.raft_commit_seconds.observe(took_ns / NS_PER_SECOND)

    def confirmed(self, took_ns: int) -> None:
        """A round of reads got its index so long after it began."""
        self._metrics.read_index_seconds.observe(took_ns / NS_PER_SECOND)
