"""Promise 6, bounded: what a running node holds, against the limits that it was given."""

from __future__ import annotations

from raftcache.node.engine import Engine
from raftcache.node.group_commit import READIES_HELD_MAX
from raftcache.raft.log import RECENT_BYTES_MAX
from tests.simulation.constants import WAL

SLACK_BYTES = 64 << 10
"""More than the largest entry of these simulations: a limit is checked before the last one is let in."""
SEGMENTS_SPARE = 256
"""Segments that a log may have beside what its shards hold: it is tidied up once a second, and in some seconds clients
write no more than this. A log that is never collected exceeds it in a few more."""


def over_limits(engine: Engine) -> list[str]:
    """Everything that is more than it may be."""
    settings, found = engine.settings, []

    def hold(what: str, value: int, limit: int) -> None:
        if value > limit:
            found.append(f"{what}: {value}, at most {limit}")

    hold("requests in flight", engine.router.in_flight, settings.in_flight_requests_max)
    if len(engine.commit._group) > READIES_HELD_MAX:
        # What must be synced may not be dropped, and is kept beyond it; there is no more of it than of promises.
        promises = sum(not ready.must_sync for _, ready in engine.commit._group)
        hold("promises held", promises, READIES_HELD_MAX)
        hold("readies held that must be synced", len(engine.commit._group) - promises, READIES_HELD_MAX)
    hold("recent entries of all logs", engine.wal.cache.bytes_held, WAL.cache_bytes_max)
    # What calls for a checkpoint, four times: while one is being made as much again may come in, and twice that while the node rests.
    held = len(engine.replicas) * 4 * (settings.log_bytes_per_checkpoint + settings.trailing_log_bytes)
    hold("log", engine.wal.log_bytes, held + WAL.pinned_bytes_max + SEGMENTS_SPARE * WAL.segment_bytes)
    hold("snapshots on their way out", len(engine.checkpointing._sending), settings.snapshots_out_max)
    for replica in engine.replicas.values():
        raft, name = replica.raft, f"replica {replica.replica_id}, "
        hold(name + "uncommitted bytes", raft._uncommitted_bytes, settings.uncommitted_bytes_max + SLACK_BYTES)
        hold(name + "recent entries", raft.log._recent_bytes, RECENT_BYTES_MAX + SLACK_BYTES)
        hold(name + "reads", len(raft._reads) + len(raft._forwarded), settings.reads_pending_max)
        for peer, progress in raft.progress.items():
            hold(f"{name}in flight to {peer}", len(progress.inflights), settings.inflight_messages_max)
    return found
