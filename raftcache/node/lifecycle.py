"""The life of the replicas of one node: found at the start, created, rebuilt, removed.

    log knows it ──open──► running ──damage──► stopped ──rebuild──► running        (checkpoint, then the log after it)
    directory gives it ──create──► running, empty: its leader sends a snapshot
    directory takes it ──destroy──► tombstone in the log, no files

Rules of this file:
- the log says which replicas are here; the directory says which should be. A replica is destroyed only by a directory
  that *knows of it and no longer lists it*: one that is older than the replica (a copy that was put back) destroys nothing;
- a replica that the directory lists as a *voter* is never created: it was here, voted and acknowledged, and is lost. A
  blank one in its place would vote again in a term that it voted in (pitfall 35). It stays away until it is replaced;
- one replica that cannot be opened stops no other. It is tried again, with growing pauses;
- whatever is done to the log is done between two syncs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raftcache.errors import Corruption, StorageFull, Unavailable, UnsupportedVersion
from raftcache.ids import Index, ReplicaId, ShardId
from raftcache.kv.machine import Machine
from raftcache.node.replica import Replica
from raftcache.node.tracing import EntryTraces
from raftcache.raft.configuration import decode_configuration
from raftcache.raft.core import Raft, RaftConfig
from raftcache.raft.messages import Configuration
from raftcache.storage.state import StateStore
from raftcache.storage.wal import ReplicaLog, ReplicaWrite
from raftcache.telemetry.tracing import Tracer

if TYPE_CHECKING:
    from raftcache.node.engine import Engine

NEVER = 1 << 62
PAUSE_TICKS_MIN = 10
"""Before the second attempt to bring a replica back without progress between them (the first is made at once): 1 s."""
PAUSE_TICKS_MAX = 600
"""... and at most, after doubling (1 min): what is wrong is a full disk, or wrong in every attempt."""


@dataclass(slots=True)
class Absent:
    """A replica that should be here, and is not."""

    shard: ShardId
    reason: str
    due_tick: int = NEVER
    """When it is tried again."""
    attempts: int = 0


class Lifecycle:
    """See the module. The engine's; everything runs on the loop."""

    def __init__(self, engine: Engine, open_state: Callable[[ReplicaId, ShardId], StateStore], tracer: Tracer) -> None:
        self.absent: dict[ReplicaId, Absent] = {}
        """Not opened, and why; for the status."""
        self._engine = engine
        self._open_state = open_state
        self._tracer = tracer
        self._ticks = 0
        self._losses: dict[ReplicaId, tuple[Index, int]] = {}
        """How far apply had come when the state was last given up, and how often in a row it came no further."""
        self._due: dict[ReplicaId, int] = {}
        """Stopped replicas that are waiting to be rebuilt, and the tick for that."""
        self._unmatched = False
        """The disk had no room for what the directory wants."""

    def open_all(self) -> None:
        """Opens every replica that the log knows. Raises: `UnsupportedVersion`: files of a newer release."""
        wal = self._engine.wal
        for replica_id in wal.replicas():
            self._try_open(replica_id, wal.shard(replica_id), attempts=0)

    def tick(self) -> None:
        """Tries again what is due."""
        self._ticks += 1
        engine = self._engine
        for replica_id, absent in list(self.absent.items()):
            if absent.due_tick <= self._ticks:
                absent.due_tick = NEVER
                engine.commit.between_syncs(f"open {replica_id}", lambda r=replica_id: self._retry(r))  # type: ignore[misc]
        for replica_id, due_tick in list(self._due.items()):
            if due_tick <= self._ticks:
                del self._due[replica_id]
                replica = engine.replicas.get(replica_id)
                if replica is not None:
                    self._reopen_soon(replica)
        if self._unmatched:
            self.match_soon()

    # --- Opening ------------------------------------------------------------------------------------------------------

    def _try_open(self, replica_id: ReplicaId, shard: ShardId, *, attempts: int) -> None:
        try:
            self._open(replica_id, shard)
        except UnsupportedVersion:
            raise
        except Exception as error:  # noqa: BLE001 - the supervisor of replicas: one that cannot be opened stops no other
            self._set_absent(replica_id, Absent(shard, f"{type(error).__name__}: {error}", 0, attempts))

    def _set_absent(self, replica_id: ReplicaId, absent: Absent) -> None:
        if absent.due_tick != NEVER:
            absent.due_tick = self._ticks + _pause(absent.attempts + 1)
        self.absent[replica_id] = absent
        self._engine.observer.event("replica_stopped", shard=absent.shard, replica=replica_id, reason=absent.reason)

    def _retry(self, replica_id: ReplicaId) -> None:
        absent = self.absent.pop(replica_id, None)
        if absent is not None and replica_id in self._engine.wal.replicas():
            self._try_open(replica_id, absent.shard, attempts=absent.attempts + 1)

    def _open(self, replica_id: ReplicaId, shard: ShardId) -> Replica:
        """From what is durable to a running replica: checkpoint or clean live state, then the log after it."""
        engine = self._engine
        settings = engine.settings
        log = engine.wal.log(replica_id)
        state = self._open_state(replica_id, shard)
        try:
            machine = self._load(replica_id, shard, log, state)
            applied, configuration = Index(0), Configuration()
            if machine is not None:
                applied, configuration = machine.applied_index, decode_configuration(machine.configuration)
            raft = Raft(
                RaftConfig(
                    replica=replica_id,
                    election_timeout_ticks=settings.election_timeout_ticks,
                    heartbeat_ticks=settings.heartbeat_ticks,
                    append_bytes_max=settings.append_bytes_max,
                    inflight_messages_max=settings.inflight_messages_max,
                    inflight_bytes_max=settings.inflight_bytes_max,
                    uncommitted_bytes_max=settings.uncommitted_bytes_max,
                    committed_bytes_max_per_ready=settings.committed_bytes_per_ready,
                    reads_pending_max=settings.reads_pending_max,
                    push_commits=settings.push_commits,
                ),
                log,
                hard_state=engine.wal.hard_state(replica_id),
                configuration=configuration,
                configurations=log.configurations(after=applied),
                applied=applied,
                random=engine.random,
            )
        except BaseException:
            state.discard_live()
            raise
        replica = Replica(
            shard=shard,
            replica_id=replica_id,
            raft=raft,
            log=log,
            state=state,
            machine=machine,
            settings=settings,
            answer=engine.router.settle,
            observer=engine.observer,
        )
        newest = log.snapshot()
        replica.checkpoint_log_bytes = log.bytes_between(newest.index if newest is not None else Index(0), applied)
        if self._tracer.active:
            replica.traces = EntryTraces(self._tracer, shard)
        engine.house(replica)
        engine.observer.event(
            "replica_opened", shard=shard, replica=replica_id, applied=applied, last_index=log.last_index()
        )
        return replica

    def _load(self, replica_id: ReplicaId, shard: ShardId, log: ReplicaLog, state: StateStore) -> Machine | None:
        """The state that the log goes on from; None for a newcomer, and where the state is lost.

        Lost: the log and the vote are intact. The core sees a log that begins after the state and asks its leader for a
        snapshot; until that is installed it votes and acknowledges, but neither campaigns nor serves.
        """
        log.forget_snapshot()
        try:
            machine = self._machine(state)
            if machine is not None and state.resumed and not _fits(machine, log):
                # The clean marker vouched for the state, and the log is not the one it was made from.
                state.discard_live()
                machine = self._machine(state)
        except Corruption as damage:
            self._engine.observer.event("state_lost", shard=shard, replica=replica_id, reason=str(damage))
            state.discard_live()
            return None
        newest = state.newest()
        if newest is not None:
            log.set_snapshot(newest)
        if machine is not None and not _fits(machine, log) and machine.applied_index > log.start_index:
            # A crash came between installing a snapshot and the log's record of it: finish the installation. (A state
            # *before* the log's beginning, from an older checkpoint, is another matter: the core takes it for lost.)
            assert newest is not None, f"a state at {machine.applied_index} that no checkpoint vouches for"
            assert newest.index == machine.applied_index, f"state {machine.applied_index}, checkpoint {newest.index}"
            self._engine.wal.write([ReplicaWrite(replica_id, snapshot=newest)])
            self._engine.wal.sync()
        return machine

    def _machine(self, state: StateStore) -> Machine | None:
        records = state.open()
        return Machine(records, self._engine.limits) if records is not None else None

    # --- As the directory wants it ------------------------------------------------------------------------------------

    def match_soon(self) -> None:
        """Creates the replicas that the directory gives this node and destroys those that it takes, between two syncs."""
        self._engine.commit.between_syncs("match", self._match)

    def _match(self) -> None:
        self._unmatched = False
        engine = self._engine
        directory = engine.directory
        wanted = {
            placed.replica: (shard.shard, placed.membership)
            for shard in directory.shards.values()
            for placed in shard.replicas
            if placed.node == engine.node
        }
        try:
            for replica_id in sorted({*engine.wal.replicas(), *self.absent} - wanted.keys()):
                if replica_id < directory.next_replica:
                    self._destroy(replica_id)
            for replica_id in sorted(wanted.keys() - {*engine.wal.replicas(), *self.absent} - engine.wal.removed()):
                shard, membership = wanted[replica_id]
                if membership == "voter":
                    reason = "it was a voter here and its log is gone: replace it (`raftcache shard replicas move`)"
                    self._set_absent(replica_id, Absent(shard, reason))
                else:
                    self._create(replica_id, shard)
        except StorageFull as full:
            self._unmatched = True
            engine.observer.event("disk_low", reason=full.message)

    def _create(self, replica_id: ReplicaId, shard: ShardId) -> None:
        """A new member of a running group: an empty log, no state, no configuration; the leader sends the rest.

        Raises: `StorageFull`, with nothing done.
        """
        self._engine.wal.create(replica_id, shard, None)
        self._engine.wal.sync()
        self._try_open(replica_id, shard, attempts=0)

    def _destroy(self, replica_id: ReplicaId) -> None:
        """Its group removed it: leave a durable tombstone, then delete its files. Raises: `StorageFull`, nothing done."""
        engine = self._engine
        absent = self.absent.get(replica_id)
        if replica_id in engine.wal.replicas():
            engine.wal.remove(replica_id)
            engine.wal.sync()
        self.absent.pop(replica_id, None)
        self._losses.pop(replica_id, None)
        self._due.pop(replica_id, None)
        replica = engine.replicas.get(replica_id)
        if replica is None:
            assert absent is not None, f"replica {replica_id} is neither running nor absent"
            self._open_state(replica_id, absent.shard).destroy()
            return
        engine.evict(replica)
        replica.abandon(Unavailable(f"shard {replica.shard} left this node"))
        replica.state.destroy()
        engine.observer.event("replica_removed", shard=replica.shard, replica=replica_id)

    # --- Damage -------------------------------------------------------------------------------------------------------

    def rebuild(self, replica: Replica, reason: str) -> None:
        """The live state is not to be trusted: discard it and come back from checkpoint and log, as after a restart.

        At once; but where it is lost again without having come further (an entry that cannot be applied, a disk without
        room), with growing pauses, so that nothing spins.
        """
        engine = self._engine
        if replica.stopped:
            return
        engine.observer.event("state_lost", shard=replica.shard, replica=replica.replica_id, reason=reason)
        replica.stopped = reason
        replica.rebuilding = True
        engine.commit.drop(replica)
        replica.abandon(Unavailable(f"shard {replica.shard} rebuilds its state on this node: {reason}"))
        applied, repeats = self._losses.get(replica.replica_id, (Index(0), 0))
        repeats = 0 if replica.raft.applied > applied else repeats + 1
        self._losses[replica.replica_id] = (replica.raft.applied, repeats)
        if repeats:
            self._due[replica.replica_id] = self._ticks + _pause(repeats)
        else:
            self._reopen_soon(replica)

    def _reopen_soon(self, replica: Replica) -> None:
        self._engine.commit.between_syncs(f"reopen {replica.replica_id}", lambda: self._reopen(replica))

    def _reopen(self, replica: Replica) -> None:
        engine = self._engine
        if engine.replicas.get(replica.replica_id) is not replica:
            return
        replica.state.discard_live()
        try:
            self._open(replica.replica_id, replica.shard).count_on(replica)
        except Exception as error:  # noqa: BLE001 - the supervisor of replicas
            replica.stopped = f"{type(error).__name__}: {error}"
            applied, repeats = self._losses[replica.replica_id]
            self._losses[replica.replica_id] = (applied, repeats + 1)
            self._due[replica.replica_id] = self._ticks + _pause(repeats + 1)
            engine.observer.event(
                "replica_stopped", shard=replica.shard, replica=replica.replica_id, reason=replica.stopped
            )

    def stop(self, replica: Replica, error: BaseException) -> None:
        """A bug was caught in this replica: it does nothing more; the other replicas of the node go on."""
        engine = self._engine
        replica.stopped = f"{type(error).__name__}: {error}"
        engine.commit.drop(replica)
        replica.abandon(Unavailable(f"shard {replica.shard} stopped on this node: {replica.stopped}"))
        engine.observer.event(
            "replica_stopped", shard=replica.shard, replica=replica.replica_id, reason=replica.stopped
        )


def _fits(machine: Machine, log: ReplicaLog) -> bool:
    """Whether the log goes on where the state ends."""
    return log.term(machine.applied_index) == machine.applied_term


def _pause(attempts: int) -> int:
    assert attempts > 0, attempts
    return int(min(PAUSE_TICKS_MIN << min(attempts - 1, 16), PAUSE_TICKS_MAX))
