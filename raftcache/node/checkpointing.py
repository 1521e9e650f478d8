"""Checkpoints and snapshots: when one is taken, how one is sent, how one is received.

A checkpoint bounds three things: the time to restart (log to replay), the log on disk, and how far back a follower can be
repaired from the log alone. A snapshot is a checkpoint on its way to another replica.

Rules of this file:
- one checkpoint at a time per node: each costs a copy and a verification, in a thread and a child process;
- a node rests twice as long as its last one took, unless a follower waits or the log is too long: what a checkpoint costs
  grows with the state, and the log that calls for one does not;
- the replicas of a group do not take theirs at once (`_due_bytes`): a majority should always have its disks for the log;
- the log is compacted only below a *verified, durable* checkpoint, and `trailing_log_bytes` stay below it for laggards; not
  past a snapshot that is on its way, whose receiver would need the next one;
- all replicas of a node share its log, and one with a single old entry holds all of it. So each has its share of
  `log_bytes_max`, and beyond that whoever holds the oldest segment gives up what it keeps, then takes a checkpoint;
- at most `snapshots_out_max` snapshots leave a node at once, one per follower; a refused one is asked for again by Raft;
- a received snapshot is verified here before the core hears of it: damage is never passed on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from raftcache.errors import Corruption, RaftCacheError
from raftcache.ids import NO_REPLICA, Index, NodeId, ReplicaId, ShardId
from raftcache.node.replica import Replica
from raftcache.raft.configuration import decode_configuration
from raftcache.raft.messages import InstallSnapshot, SnapshotMeta
from raftcache.raft.progress import ProgressState
from raftcache.storage.state import (
    CheckpointDamaged,
    CheckpointFailed,
    CheckpointResult,
    CheckpointVerified,
    IncomingCheckpoint,
    OutgoingCheckpoint,
)
from raftcache.storage.wal import ReplicaWrite

if TYPE_CHECKING:
    from raftcache.node.engine import Engine

REPLACE_EVERY_TICKS = 50
"""One grown environment in five seconds at most: each costs its replica a replay."""
RESTS = 2
"""Rests of a node, in lengths of its last checkpoint: these take a third of its time at most."""
RETRY_TICKS = 100
"""Ticks before a checkpoint that failed is tried again (10 s): a full disk or a killed verifier is seldom gone sooner."""


class Checkpointing:
    """The engine's housekeeper for checkpoints and snapshots. Everything runs on the loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._running: ReplicaId = NO_REPLICA
        self._not_before: dict[ReplicaId, int] = {}
        self._ticks = self._begun = self._rest_until = 0
        self._grown: set[ReplicaId] = set()
        """Replicas whose live environment is to be replaced."""
        self._sending: set[tuple[ReplicaId, ReplicaId]] = set()
        """(own replica, receiving replica) of the snapshots on their way out."""
        self.checkpoints = 0
        self.snapshots_sent = 0
        self.snapshots_received = 0

    @property
    def running(self) -> bool:
        """Whether a checkpoint is being taken."""
        return self._running != NO_REPLICA

    # --- Taking them --------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Starts the most urgent checkpoint, if any is due and none is in progress."""
        self._ticks += 1
        pinning = self._pinning()
        if pinning is not None:
            self._compact(pinning)
        if self.running:
            return
        if self._grown and self._ticks % REPLACE_EVERY_TICKS == 0:
            self._replace_grown()
        replica = self._most_urgent()
        if replica is not None:
            self.begin(replica)

    def _replace_grown(self) -> None:
        """Replaces one live environment that has grown past twice its records by its newest checkpoint and the log after it.

        Nobody is to notice: a leader hands over first, and what it proposed is answered before.
        """
        engine = self._engine
        for replica_id in sorted(self._grown):
            replica = engine.replicas.get(replica_id)
            if replica is None or replica.stopped:
                self._grown.discard(replica_id)
            elif replica.leads and len(replica.raft.configuration.voters) > 1:
                if replica.raft.lead_transferee == NO_REPLICA:
                    engine.transfer(replica)
                return
            elif replica.proposals_pending() == 0 and not replica.reads_pending():
                self._grown.discard(replica_id)
                engine.rebuild(replica, "its live environment has grown past twice its records")
                return

    def _most_urgent(self) -> Replica | None:
        engine = self._engine
        candidates = [
            replica
            for replica in engine.replicas.values()
            if replica.machine is not None
            and not replica.stopped
            and self._not_before.get(replica.replica_id, 0) <= self._ticks
        ]
        for replica in candidates:
            newest = replica.log.snapshot()
            if replica.leads and replica.raft.checkpoint_wanted > (newest.index if newest is not None else 0):
                # A follower needs a snapshot, and there is none that its log could go on from.
                return replica
        pinning = self._pinning()
        if pinning is not None and pinning in candidates and _is_behind(pinning):
            return pinning
        if self._ticks >= self._rest_until:
            longest = max(candidates, key=lambda replica: replica.checkpoint_log_bytes, default=None)
            if longest is not None and longest.checkpoint_log_bytes >= self._due_bytes(longest):
                return longest
        return None

    def _is_too_long(self) -> bool:
        """Whether the log is, with all that nobody needs any more taken away."""
        wal, bytes_max = self._engine.wal, self._engine.settings.log_bytes_max
        return wal.log_bytes > bytes_max and wal.bytes_needed() > bytes_max

    def _pinning(self) -> Replica | None:
        """Where the log is too long: the replica that holds its oldest segment."""
        engine = self._engine
        if not self._is_too_long():
            return None
        pinning = engine.wal.pinned_by()
        return None if pinning is None else engine.replicas.get(pinning)

    def _share(self, part: int) -> int:
        """A replica's share of a `part`th of the longest log."""
        return max(1, self._engine.settings.log_bytes_max // (part * max(1, len(self._engine.replicas))))

    def _due_bytes(self, replica: Replica) -> int:
        """Log after which a checkpoint is due: the limit for one of a group's three replicas (their ids follow each other),
        an eighth and two eighths less for the others."""
        limit = min(self._engine.settings.log_bytes_per_checkpoint, self._share(2))
        return limit - limit * (replica.replica_id % 3) // 8

    def begin(self, replica: Replica) -> None:
        """Takes a checkpoint of the state as it is now."""
        machine = replica.machine
        assert machine is not None, f"replica {replica.replica_id} has no state to checkpoint"
        meta = SnapshotMeta(machine.applied_index, machine.applied_term, decode_configuration(machine.configuration))
        covered = replica.checkpoint_log_bytes
        self._running, self._begun = replica.replica_id, self._ticks
        try:
            self._engine.commit_state(replica, self._engine.clock.monotonic_ns(), complete=True)
            replica.state.begin_checkpoint(meta, lambda result: self._on_checkpoint(replica, covered, result))
        except Exception as error:  # noqa: BLE001 - the supervisor of replicas
            self._running = NO_REPLICA
            self._engine.on_replica_error(replica, error)

    def _on_checkpoint(self, replica: Replica, covered: int, result: CheckpointResult) -> None:
        self._running = NO_REPLICA
        self._rest_until = self._ticks + RESTS * (self._ticks - self._begun)
        engine = self._engine
        if engine.replicas.get(replica.replica_id) is not replica or replica.stopped:
            return
        match result:
            case CheckpointVerified():
                self.checkpoints += 1
                replica.log.set_snapshot(result.meta)
                replica.checkpoint_log_bytes -= covered
                engine.observer.event(
                    "checkpoint_taken", shard=replica.shard, index=result.meta.index, bytes=result.bytes
                )
                self._compact(replica)
                self._grown.discard(replica.replica_id)
                if replica.state.needs_compaction():
                    self._grown.add(replica.replica_id)
            case CheckpointDamaged():
                engine.rebuild(replica, f"the checkpoint of the live state does not add up: {result.found}")
            case CheckpointFailed():
                self._not_before[replica.replica_id] = self._ticks + RETRY_TICKS
                engine.observer.event(
                    "checkpoint_failed", shard=replica.shard, index=result.meta.index, error=str(result.error)
                )
                if result.fatal:
                    engine.fatal(f"checkpoint of shard {replica.shard}: {result.error}")

    def _compact(self, replica: Replica) -> None:
        """Lets the log go below the newest checkpoint, but for the trailing part; all of it where the log is too long."""
        engine = self._engine
        newest = replica.log.snapshot()
        if newest is None:
            return
        if self._is_too_long():
            compact_to = min(newest.index, replica.log.last_index())
        else:
            trailing = min(engine.settings.trailing_log_bytes, self._share(4))
            upto = min((newest.index, *_snapshots_on_their_way(replica)))
            compact_to = replica.log.index_keeping(trailing, upto=upto)
        if compact_to >= replica.log.first_index():
            engine.commit.write_later(ReplicaWrite(replica.replica_id, compact_to=compact_to))

    # --- Sending them -------------------------------------------------------------------------------------------------

    def send(self, replica: Replica, message: InstallSnapshot) -> None:
        """Streams the newest checkpoint to a follower; tells the core how it ended."""
        engine = self._engine
        pair = (replica.replica_id, message.to)
        node = engine.node_of(message.to)
        meta = replica.log.snapshot()
        if pair in self._sending:
            # On its way, perhaps for an earlier term: its end is reported to whoever waits then.
            return
        if node is None or meta is None or len(self._sending) >= engine.settings.snapshots_out_max:
            replica.raft.report_snapshot(message.to, False)
            return
        try:
            reader = replica.state.open_checkpoint_for_read(meta)
        except Corruption as error:
            engine.observer.event("snapshot_unreadable", shard=replica.shard, error=str(error))
            replica.raft.report_snapshot(message.to, False)
            return
        self._sending.add(pair)
        outgoing = InstallSnapshot(message.to, message.from_, message.term, meta)
        engine.network.send_snapshot(
            node, replica.shard, outgoing, reader, lambda ok: self._on_sent(replica, message.to, reader, ok)
        )

    def _on_sent(self, replica: Replica, to: ReplicaId, reader: OutgoingCheckpoint, ok: bool) -> None:
        self._sending.discard((replica.replica_id, to))
        reader.close()
        if ok:
            self.snapshots_sent += 1
        engine = self._engine
        engine.observer.event("snapshot_sent", shard=replica.shard, to=to, index=reader.meta.index, ok=ok)
        # Whoever the replica is now: one that was rebuilt meanwhile may wait for this very transfer (see `send`).
        current = engine.replicas.get(replica.replica_id)
        if current is not None and not current.stopped:
            current.raft.report_snapshot(to, ok)
            engine.touch(current)

    # --- Receiving them -----------------------------------------------------------------------------------------------

    def receive(
        self, from_node: NodeId, shard: ShardId, message: InstallSnapshot, *, size: int, digest: bytes
    ) -> Incoming:
        """Begins to receive. Raises: `Corruption`, `StorageFull`, `RaftCacheError` where it is not wanted here."""
        engine = self._engine
        replica = engine.replicas.get(message.to)
        if replica is None or replica.shard != shard or replica.stopped:
            engine.observer.event("stranger_refused", from_node=from_node, shard=shard, replica=message.to)
            raise RaftCacheError(f"there is no replica {message.to} of shard {shard} here")
        known = message.meta.index <= replica.raft.commit and not replica.raft.snapshot_wanted
        if message.term < replica.raft.term or known:
            # The core answers with how far this replica is, or with its term. Without that answer a leader that missed the
            # acknowledgement of this very snapshot would offer it for ever.
            engine.on_messages(from_node, [(shard, message)])
            raise RaftCacheError(
                f"snapshot {message.meta.index} of term {message.term} is old: this replica is at {replica.raft.commit}"
            )
        return Incoming(self, replica, message, replica.state.begin_incoming(message.meta, size=size, digest=digest))

    def _on_received(
        self, replica: Replica, message: InstallSnapshot, result: CheckpointResult, done: Callable[[bool], None]
    ) -> None:
        engine = self._engine
        good = isinstance(result, CheckpointVerified)
        if isinstance(result, CheckpointFailed) and result.fatal:
            engine.fatal(f"snapshot of shard {replica.shard}: {result.error}")
        if not isinstance(result, CheckpointVerified):
            found = result.found if isinstance(result, CheckpointDamaged) else str(result.error)
            engine.observer.event("snapshot_refused", shard=replica.shard, index=result.meta.index, error=found)
        current = engine.replicas.get(replica.replica_id)
        if good and current is replica and not replica.stopped:
            self.snapshots_received += 1
            engine.on_messages(engine.node_of(message.from_) or engine.node, [(replica.shard, message)])
        done(good)


def _is_behind(replica: Replica) -> bool:
    """Whether a checkpoint would cover more than the newest one. An entry without data counts: it holds a segment too."""
    newest = replica.log.snapshot()
    return replica.machine is not None and (newest is None or newest.index < replica.machine.applied_index)


def _snapshots_on_their_way(replica: Replica) -> list[Index]:
    """The indexes of those that are still being sent."""
    return [
        progress.pending_snapshot
        for progress in replica.raft.progress.values()
        if replica.leads and progress.state is ProgressState.SNAPSHOT
    ]


class Incoming:
    """One snapshot being received: what the transport feeds."""

    def __init__(
        self, owner: Checkpointing, replica: Replica, message: InstallSnapshot, incoming: IncomingCheckpoint
    ) -> None:
        self._owner = owner
        self._replica = replica
        self._message = message
        self._incoming = incoming

    def add(self, chunk: bytes) -> None:
        """Raises: `StorageFull`, `Corruption`; the transport then aborts."""
        self._incoming.add(chunk)

    def finish(self, done: Callable[[bool], None]) -> None:
        """All chunks are there. `done` says whether the snapshot was verified and handed to the core."""
        self._incoming.finish(lambda result: self._owner._on_received(self._replica, self._message, result, done))

    def abort(self) -> None:
        self._incoming.abandon()
