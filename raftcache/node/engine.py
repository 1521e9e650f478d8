"""The node's brain: all replicas of one node, stepped in turns, with one write-ahead log and one fdatasync for all.

One turn of the loop (paper Figure 2 and thesis §10.2.1 give the order; the batching is ours):

    1. each touched replica proposes what is queued and asks for a read index
    2. each yields its `Ready`: messages leave at once (a leader sends while it writes), committed entries are applied
    3. what must be durable, of all replicas, becomes ONE write and ONE fdatasync
    4. only then: `persisted`, and the messages that promise durability
    5. replies of all of this leave, one list per sink; frames leave, one per peer

Rules of this file:
- synchronous: nothing here awaits. The loop (production) or the simulator calls `tick`, `turn`, `on_messages`, `submit`;
- at most one fdatasync is in flight; what must be durable meanwhile waits in `_group` and goes with the next;
- `Ready`s of a replica are persisted in the order in which they were taken;
- a failed fsync ends the process (`fatal`); a bug (`AssertionError`) or lost state ends one replica, not the node.

Invariant: a promise (vote, acknowledgement) never leaves before the sync that covers it returned.
"""

from __future__ import annotations

import contextlib
import random as random_module
from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol

from raftcache.clock import Clock
from raftcache.errors import Corruption, RaftCacheError, StorageFull, Unavailable
from raftcache.ids import CATALOG_SHARD, NO_REPLICA, Index, NodeId, ReplicaId, ShardId
from raftcache.kv.limits import KvLimits
from raftcache.kv.machine import Machine
from raftcache.kv.operations import SYSTEM_NAMESPACE, Get, GetResult
from raftcache.kv.slots import SHARD_WIDE
from raftcache.node.api import ReplySink, Request
from raftcache.node.checkpointing import Checkpointing
from raftcache.node.directory import DIRECTORY_KEY, Directory
from raftcache.node.keeper import Keeper
from raftcache.node.kinds import KIND_FORWARD
from raftcache.node.observer import Observer
from raftcache.node.replica import Replica
from raftcache.node.router import Router
from raftcache.node.settings import EngineSettings
from raftcache.node.tracing import EntryTraces
from raftcache.raft.configuration import decode_configuration
from raftcache.raft.core import Raft, RaftConfig
from raftcache.raft.messages import (
    Append,
    Configuration,
    Heartbeat,
    InstallSnapshot,
    Message,
    Ready,
    Role,
)
from raftcache.storage.state import OutgoingCheckpoint, StateLost, StateStore
from raftcache.storage.wal import ReplicaWrite, Wal
from raftcache.telemetry.names import SPAN_FSYNC
from raftcache.telemetry.tracing import NO_SPAN, NO_TRACER, Span, Tracer

KEEP_LOG_TICKS = 10
"""The log is kept about once a second: a few unlinks, and one fdatasync where something was written since."""
ROUNDS_PER_TURN_MAX = 4
"""Rounds of one turn: propose, persist, commit of a one-voter group, apply. The rest waits until the loop has done I/O."""


class Network(Protocol):
    """The engine's way to other nodes. Sending never blocks and never fails loudly: Raft repairs what is lost."""

    def send(self, node: NodeId, shard: ShardId, message: Message) -> None: ...
    def flush(self) -> None: ...
    def request(
        self,
        node: NodeId,
        kind: int,
        payload: bytes,
        on_reply: Callable[[bytes | RaftCacheError], None],
        deadline_ns: int,
    ) -> None: ...
    def send_snapshot(
        self,
        node: NodeId,
        shard: ShardId,
        message: InstallSnapshot,
        source: OutgoingCheckpoint,
        on_done: Callable[[bool], None],
    ) -> None: ...
    def connected(self, node: NodeId) -> bool: ...


class Scheduler(Protocol):
    """Who runs the engine: an event loop, or the simulator."""

    def call_soon(self, function: Callable[[], None]) -> None: ...
    def run_blocking(self, work: Callable[[], None], done: Callable[[], None]) -> None:
        """Runs `work` off the loop, then `done` on it."""
        ...


class Engine:
    """See the module. Built by the composition root once the node belongs to a cluster."""

    def __init__(
        self,
        *,
        node: NodeId,
        settings: EngineSettings,
        limits: KvLimits,
        wal: Wal,
        open_state: Callable[[ReplicaId, ShardId], StateStore],
        network: Network,
        scheduler: Scheduler,
        clock: Clock,
        random: random_module.Random,
        observer: Observer,
        directory: Directory,
        on_directory: Callable[[Directory], None],
        fatal: Callable[[str], NoReturn],
        disk_free: Callable[[], int],
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self.node = node
        self.settings = settings
        self.clock = clock
        self.observer = observer
        self.directory = directory
        self.fatal = fatal
        self.draining = False
        self.strangers = 0
        """Messages for a replica that is not here."""
        self.replicas: dict[ReplicaId, Replica] = {}
        self.network = network
        self.router = Router(
            settings=settings,
            clock=clock,
            places=self,
            forward=self._forward,
            touch=self.touch,
            damaged=self.rebuild,
            wake=self._schedule,
        )
        self.wal = wal
        self.checkpointing = Checkpointing(self)
        self.keeper = Keeper(self)
        self._limits = limits
        self._open_state = open_state
        self._scheduler = scheduler
        self._random = random
        self._disk_free = disk_free
        self._tracer = tracer
        self._on_directory = on_directory
        self._by_shard: dict[ShardId, Replica] = {}
        self._replica_nodes: dict[ReplicaId, NodeId] = {}
        self._slot_table = directory.slot_table()
        self._leader_hints: dict[ShardId, NodeId] = {}
        self._touched: dict[ReplicaId, Replica] = {}
        self._group: list[tuple[Replica, Ready]] = []
        self._side_writes: list[ReplicaWrite] = []
        self._syncing = False
        self._between_syncs: list[Callable[[], None]] = []
        self._turn_scheduled = False
        self._in_turn = False
        self._sync_mean_ns = 0
        self._full = False
        """The log has no room: the group waits for the next tick."""
        self._preallocating = False
        self._ticks = 0

    # --- Life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Opens every replica that the log knows. Raises: `Corruption`, with what to do."""
        for replica_id in self.wal.replicas():
            self._open_replica(replica_id, self.wal.shard(replica_id))
        self.adopt(self.directory, force=True)

    def close(self) -> None:
        """Writes the clean-shutdown markers and closes everything. Nothing may be called afterwards."""
        for replica in self.replicas.values():
            replica.abandon(Unavailable("the node is shutting down"))
        self.router.flush()
        for replica in self.replicas.values():
            if replica.machine is not None and not replica.stopped:
                replica.machine.flush()
                replica.state.close_clean()
        self.wal.close()

    def submit(self, requests: Sequence[Request], sink: ReplySink) -> None:
        """See `node.api.Submit`."""
        self.router.submit(requests, sink)

    # --- Replicas -----------------------------------------------------------------------------------------------------

    def _open_replica(self, replica_id: ReplicaId, shard: ShardId) -> Replica:
        """From what is durable to a running replica: checkpoint or clean live state, then the log after it."""
        log = self.wal.log(replica_id)
        state = self._open_state(replica_id, shard)
        machine = None
        applied = Index(0)
        configuration = Configuration()
        records = None
        try:
            records = state.open()
        except Corruption as damage:
            # The log and the vote are intact. The core sees a log that begins after the state and asks its leader for a
            # snapshot; until that is installed it votes and acknowledges, but neither campaigns nor serves.
            self.observer.event("state_lost", shard=shard, replica=replica_id, reason=str(damage))
        if records is not None:
            machine = Machine(records, self._limits)
            applied = machine.applied_index
            configuration = decode_configuration(machine.configuration)
            newest = state.newest()
            if newest is not None:
                log.set_snapshot(newest)
            if log.term(applied) != machine.applied_term:
                # A crash came between installing a snapshot and the log's record of it: finish the installation.
                assert newest is not None, f"a state at {applied} that no checkpoint vouches for is not in the log"
                assert newest.index == applied, f"the state is at {applied}, its checkpoint at {newest.index}"
                self.wal.write([ReplicaWrite(replica_id, snapshot=newest)])
                self.wal.sync()
        raft = Raft(
            RaftConfig(
                replica=replica_id,
                election_timeout_ticks=self.settings.election_timeout_ticks,
                heartbeat_ticks=self.settings.heartbeat_ticks,
                append_bytes_max=self.settings.append_bytes_max,
                inflight_messages_max=self.settings.inflight_messages_max,
                inflight_bytes_max=self.settings.inflight_bytes_max,
                uncommitted_bytes_max=self.settings.uncommitted_bytes_max,
                committed_bytes_max_per_ready=self.settings.committed_bytes_per_ready,
                reads_pending_max=self.settings.reads_pending_max,
            ),
            log,
            hard_state=self.wal.hard_state(replica_id),
            configuration=configuration,
            configurations=log.configurations(after=applied),
            applied=applied,
            random=self._random,
        )
        replica = Replica(
            shard=shard,
            replica_id=replica_id,
            raft=raft,
            log=log,
            state=state,
            machine=machine,
            settings=self.settings,
            answer=self.router.settle,
        )
        if self._tracer.active:
            replica.traces = EntryTraces(self._tracer, shard)
        self.replicas[replica_id] = replica
        self._by_shard[shard] = replica
        self.observer.event(
            "replica_opened", shard=shard, replica=replica_id, applied=applied, last_index=log.last_index()
        )
        return replica

    def _create_replica(self, replica_id: ReplicaId, shard: ShardId) -> None:
        """A new member of a running group: an empty log, no state, no configuration; the leader sends the rest."""
        self.wal.create(replica_id, shard, None)
        self.wal.sync()
        self._open_replica(replica_id, shard)

    def _destroy_replica(self, replica: Replica) -> None:
        """The directory no longer lists it, so its group removed it: leave a durable tombstone, then delete its files."""
        replica.abandon(Unavailable(f"shard {replica.shard} left this node"))
        self.replicas.pop(replica.replica_id, None)
        if self._by_shard.get(replica.shard) is replica:
            del self._by_shard[replica.shard]
        self._touched.pop(replica.replica_id, None)
        self._group = [(other, ready) for other, ready in self._group if other is not replica]
        self.wal.remove(replica.replica_id)
        self.wal.sync()
        replica.state.destroy()
        self.observer.event("replica_removed", shard=replica.shard, replica=replica.replica_id)

    def between_syncs(self, action: Callable[[], None]) -> None:
        """Runs `action` when no fdatasync is in flight: now, or right after the present one."""
        if self._syncing or self._in_turn:
            self._between_syncs.append(action)
            self._schedule()
        else:
            action()

    def rebuild(self, replica: Replica, reason: str) -> None:
        """The live state is not to be trusted: discard it and come back from checkpoint and log, as after a restart."""
        self.observer.event("state_lost", shard=replica.shard, replica=replica.replica_id, reason=reason)
        replica.abandon(Unavailable(f"shard {replica.shard} rebuilds its state on this node: {reason}"))
        replica.stopped = reason
        self._touched.pop(replica.replica_id, None)

        def reopen() -> None:
            if self.replicas.get(replica.replica_id) is not replica:
                return
            self._group = [(other, ready) for other, ready in self._group if other is not replica]
            replica.state.discard_live()
            try:
                self._open_replica(replica.replica_id, replica.shard)
            except (Corruption, StateLost) as error:
                self.observer.event(
                    "replica_stopped", shard=replica.shard, replica=replica.replica_id, reason=str(error)
                )

        self.between_syncs(reopen)

    def _stop(self, replica: Replica, error: BaseException) -> None:
        """A bug was caught in this replica: it does nothing more; the other replicas of the node go on."""
        replica.stopped = f"{type(error).__name__}: {error}"
        replica.abandon(Unavailable(f"shard {replica.shard} stopped on this node: {replica.stopped}"))
        self.observer.event("replica_stopped", shard=replica.shard, replica=replica.replica_id, reason=replica.stopped)

    # --- Turns --------------------------------------------------------------------------------------------------------

    def touch(self, replica: Replica) -> None:
        self._touched[replica.replica_id] = replica
        self._schedule()

    def _schedule(self) -> None:
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self._scheduler.call_soon(self.turn)

    def turn(self) -> None:
        """See the module."""
        self._turn_scheduled = False
        self._in_turn = True
        try:
            for _ in range(ROUNDS_PER_TURN_MAX):
                if not self._touched:
                    break
                touched, self._touched = self._touched, {}
                now_ns = self.clock.monotonic_ns()
                wall_ms = self.clock.wall_ms()
                for replica in touched.values():
                    self._step_replica(replica, now_ns, wall_ms)
                if not self._syncing and not self._full:
                    self._persist()
        finally:
            self._in_turn = False
        if not self._syncing:
            if (self._group or self._side_writes) and not self._full:
                self._persist()
            while self._between_syncs and not self._syncing:
                self._between_syncs.pop(0)()
        self.router.flush()
        self.network.flush()
        if self._touched:
            self._schedule()

    def _step_replica(self, replica: Replica, now_ns: int, wall_ms: int) -> None:
        if replica.stopped or self.replicas.get(replica.replica_id) is not replica:
            return
        try:
            if replica.leads:
                replica.propose(now_ns, wall_ms)
                replica.ask_read_index()
            if replica.unplaced or not replica.leads:
                released = replica.release_unproposed()
                if released:
                    self.router.return_unplaced(replica.shard, released)
            if replica.raft.has_ready():
                ready = self._ready_of(replica)
                self._dispatch(replica, ready, now_ns)
                self._group.append((replica, ready))
            if replica.raft.role is not replica.known_role:
                replica.known_role = replica.raft.role
                replica.elections += replica.known_role is Role.CANDIDATE
                replica.led_since_ns = now_ns
            if replica.raft.leader != replica.known_leader:
                self._on_leader_change(replica)
        except (Corruption, StateLost) as error:
            self.rebuild(replica, str(error))
        except AssertionError as error:
            self._stop(replica, error)

    def _ready_of(self, replica: Replica) -> Ready:
        """The next `Ready`. It reads the log for followers; damage there is not the state's, which could be rebuilt.

        This version does not repair a log: the process ends, and the recovery at its next start says what is damaged.
        """
        try:
            return replica.raft.ready()
        except Corruption as damage:
            self.fatal(f"the log of shard {replica.shard}: {damage}")

    def _dispatch(self, replica: Replica, ready: Ready, now_ns: int) -> None:
        for message in ready.messages:
            self._send(replica, message)
        if ready.snapshot is not None:
            self._install(replica, ready)
        before = replica.commands_applied
        replica.take(ready, now_ns)
        if ready.committed:
            self.observer.applied(self.clock.monotonic_ns() - now_ns, replica.commands_applied - before)
            self._after_apply(replica, now_ns)

    def _send(self, replica: Replica, message: Message) -> None:
        if isinstance(message, InstallSnapshot):
            self.checkpointing.send(replica, message)
            return
        node = self.node_of(message.to)
        if node is not None:
            self.network.send(node, replica.shard, message)

    def node_of(self, replica_id: ReplicaId) -> NodeId | None:
        """Where a replica is, by the directory, or by where its last message came from."""
        return self._replica_nodes.get(replica_id)

    def _install(self, replica: Replica, ready: Ready) -> None:
        """A received snapshot becomes the live state; its file is durable already, the log's record of it comes with the sync."""
        assert ready.snapshot is not None, "only called with a snapshot"
        replica.abandon_through(ready.snapshot.index)
        replica.machine = Machine(replica.state.install(ready.snapshot), self._limits)
        assert replica.machine.applied_index == ready.snapshot.index, (
            f"snapshot {ready.snapshot.index} holds the state at {replica.machine.applied_index}"
        )
        replica.log.set_snapshot(ready.snapshot)
        replica.checkpoint_log_bytes = 0
        replica.uncommitted_commands = replica.uncommitted_bytes = 0
        self.observer.event("snapshot_installed", shard=replica.shard, index=ready.snapshot.index)
        if replica.shard == CATALOG_SHARD:
            self._read_directory(replica)

    def _after_apply(self, replica: Replica, now_ns: int) -> None:
        settings = self.settings
        if (
            replica.uncommitted_commands >= settings.commit_commands_max
            or replica.uncommitted_bytes >= settings.commit_bytes_max
        ):
            self.commit_state(replica, now_ns)
        if replica.shard == CATALOG_SHARD:
            self._read_directory(replica)

    def commit_state(self, replica: Replica, now_ns: int, *, complete: bool = False) -> None:
        """Commits the live environment, unsynced: the log is what is durable. Raises: `StateLost`.

        `complete` is for a checkpoint: sessions and slot hashes go with the data then.
        """
        assert replica.machine is not None, f"replica {replica.replica_id} has no state to commit"
        started_ns = self.clock.monotonic_ns()
        replica.machine.flush(complete=complete)
        replica.state.commit()
        self.observer.committed(self.clock.monotonic_ns() - started_ns)
        replica.uncommitted_commands = replica.uncommitted_bytes = 0
        replica.committed_ns = now_ns

    # --- Durability ---------------------------------------------------------------------------------------------------

    def _persist(self) -> None:
        """Makes the group durable: one write and one fdatasync for all replicas, or none where nothing needs it."""
        group, self._group = self._group, []
        writes, self._side_writes = self._side_writes, []
        for replica, ready in group:
            snapshot = None if ready.snapshot_keeps_log else ready.snapshot
            if ready.entries or ready.hard_state is not None or snapshot is not None:
                writes.append(ReplicaWrite(replica.replica_id, ready.entries, ready.hard_state, snapshot=snapshot))
        if not writes:
            self._persisted(group)
            return
        # The leader sends while it writes; it counts itself only when durable (thesis §10.2.1).
        self.network.flush()
        try:
            self.wal.write(writes)
        except StorageFull as full:
            self._hold_back(group, full)
            return
        self._observe_write(group)
        span = self._fsync_span(group) if self._tracer.active else NO_SPAN
        started_ns = self.clock.monotonic_ns()
        if self._sync_mean_ns <= self.settings.sync_inline_below_ns:
            self.wal.sync()
            span.end()
            self._after_sync(group, started_ns)
        else:
            self._syncing = True
            self._scheduler.run_blocking(self.wal.sync, lambda: self._on_synced(group, started_ns, span))

    def _fsync_span(self, group: list[tuple[Replica, Ready]]) -> Span:
        links = [
            span
            for replica, ready in group
            if replica.traces is not None
            for span in replica.traces.recorded(ready.entries)
        ]
        return self._tracer.start(SPAN_FSYNC, links=links) if links else NO_SPAN

    def _hold_back(self, group: list[tuple[Replica, Ready]], full: StorageFull) -> None:
        """No room in the log and none to be had: nothing of the group is promised to anybody until there is.

        The node refuses writes and hands its leaderships to nodes with room; what it holds is tried again each tick.
        """
        self._group = group + self._group
        if not self.router.refusing:
            self.observer.event("disk_low", reason=full.message)
        self.router.refusing = full.message
        self._full = True

    def _observe_write(self, group: list[tuple[Replica, Ready]]) -> None:
        entries = commands = size = 0
        for replica, ready in group:
            entries += len(ready.entries)
            commands += replica.commands_in(ready.entries)
            for entry in ready.entries:
                size += len(entry.data)
        self.observer.wrote(entries=entries, commands=commands, written_bytes=size)

    def _on_synced(self, group: list[tuple[Replica, Ready]], started_ns: int, span: Span) -> None:
        self._syncing = False
        span.end()
        self._after_sync(group, started_ns)
        self._schedule()

    def _after_sync(self, group: list[tuple[Replica, Ready]], started_ns: int) -> None:
        took_ns = self.clock.monotonic_ns() - started_ns
        self._sync_mean_ns += (took_ns - self._sync_mean_ns) // 16
        self.observer.synced(took_ns)
        self._persisted(group)

    def _persisted(self, group: list[tuple[Replica, Ready]]) -> None:
        for replica, ready in group:
            if replica.stopped or self.replicas.get(replica.replica_id) is not replica:
                continue
            try:
                replica.raft.persisted(ready)
            except AssertionError as error:
                self._stop(replica, error)
                continue
            for message in ready.messages_after_persist:
                self._send(replica, message)
            if replica.raft.has_ready() or replica.busy():
                self._touched[replica.replica_id] = replica

    def write_later(self, write: ReplicaWrite) -> None:
        """A log record that no promise waits for (compaction): it goes with the next sync."""
        self._side_writes.append(write)

    # --- What comes in from other nodes -------------------------------------------------------------------------------

    def on_messages(self, from_node: NodeId, messages: list[tuple[ShardId, Message]]) -> None:
        """Steps each message at the replica it names. A message for somebody else is counted and dropped."""
        now_ns = self.clock.monotonic_ns()
        for shard, message in messages:
            replica = self.replicas.get(message.to)
            if replica is None or replica.shard != shard:
                self.strangers += 1
                continue
            if replica.stopped:
                continue
            if message.from_ not in self._replica_nodes:
                self._replica_nodes[message.from_] = from_node
            try:
                replica.raft.step(message)
            except Corruption as damage:
                self.fatal(f"the log of shard {shard}: {damage}")
            except AssertionError as error:
                self._stop(replica, error)
                continue
            if isinstance(message, (Append, Heartbeat)) and replica.raft.leader == message.from_:
                if replica.raft.applied >= message.commit and replica.raft.applied >= replica.raft.commit:
                    replica.level_ns = now_ns
            self._touched[replica.replica_id] = replica
        self._schedule()

    def on_disconnected(self, node: NodeId) -> None:
        """Tells every leader here that its peers on that node miss what was sent."""
        for replica in self.replicas.values():
            if replica.leads:
                for peer in replica.raft.progress:
                    if self._replica_nodes.get(peer) == node:
                        replica.raft.report_unreachable(peer)

    # --- Time ---------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """One tick of Raft time for every replica, and the node's housekeeping."""
        self._ticks += 1
        now_ns = self.clock.monotonic_ns()
        for replica in list(self.replicas.values()):
            if replica.stopped:
                continue
            try:
                replica.raft.tick()
                replica.expire(now_ns)
                if replica.uncommitted_commands and now_ns - replica.committed_ns >= self.settings.commit_interval_ns:
                    self.commit_state(replica, now_ns)
            except StateLost as error:
                self.rebuild(replica, str(error))
                continue
            except AssertionError as error:
                self._stop(replica, error)
                continue
            if replica.raft.has_ready() or replica.busy():
                self._touched[replica.replica_id] = replica
        self.router.expire(now_ns)
        self.router.unpark_all()
        self._keep_log()
        self.checkpointing.tick()
        self.keeper.tick()
        self._schedule()

    def _keep_log(self) -> None:
        """Room ahead in the log, segments that nobody needs, and a mark that vouches for the last batch of a busy time."""
        if self._full:
            self._full = False
        if self.wal.wants_spare and not self._preallocating:
            self._preallocating = True
            self._scheduler.run_blocking(self._preallocate, self._on_preallocated)
        if self._ticks % KEEP_LOG_TICKS == 0:
            self._check_disk()
            self.between_syncs(self.wal.collect)
            self.between_syncs(self.wal.mark_synced)

    def _check_disk(self) -> None:
        """Below the floor writes are refused and leadership goes to nodes with room; votes and reads go on."""
        low = self.wal.full or self._full or self._disk_free() < self.settings.disk_free_bytes_min
        if low and not self.router.refusing:
            self.router.refusing = (
                "the disk of this node is full: less than storage.disk_free_bytes_min "
                f"({self.settings.disk_free_bytes_min} bytes) is free; writes are refused until there is room"
            )
            self.observer.event("disk_low", reason=self.router.refusing)
        elif not low and self.router.refusing:
            self.router.refusing = ""
            self.observer.event("disk_recovered")
        if low:
            for replica in self.replicas.values():
                if replica.leads and replica.raft.lead_transferee == NO_REPLICA:
                    self.transfer(replica)

    def _preallocate(self) -> None:
        with contextlib.suppress(StorageFull):
            self.wal.preallocate()

    def _on_preallocated(self) -> None:
        self._preallocating = False

    # --- Places (what the router asks) --------------------------------------------------------------------------------

    def local(self, shard: ShardId) -> Replica | None:
        return self._by_shard.get(shard)

    def owner(self, slot: int) -> ShardId:
        return self._slot_table[slot]

    def leader_node(self, shard: ShardId) -> NodeId | None:
        """The node that leads the shard, as far as is known here; None where it is not known or is this node."""
        replica = self._by_shard.get(shard)
        if replica is not None and not replica.stopped and replica.machine is not None:
            leader = replica.raft.leader
            node = self._replica_nodes.get(leader) if leader != NO_REPLICA else None
            if node is not None and node != self.node:
                return node
            return None
        hint = self._leader_hints.get(shard)
        return hint if hint is not None else self.nearest_node(shard)

    def known_leader(self, shard: ShardId) -> NodeId | None:
        """The node that leads the shard, this one included, as far as it is *known* here; never a guess."""
        replica = self._by_shard.get(shard)
        if replica is None:
            return self._leader_hints.get(shard)
        return self.node if replica.leads else self.leader_node(shard)

    def choose(self, nodes: list[NodeId]) -> NodeId:
        return self._random.choice(nodes)

    def nearest_node(self, shard: ShardId) -> NodeId | None:
        """A connected node with a replica of the shard; by chance, so that load and bad luck are spread."""
        found = self.directory.shards.get(shard)
        if found is None:
            return None
        nodes = [r.node for r in found.replicas if r.node != self.node and r.membership == "voter"]
        reachable = [node for node in nodes if self.network.connected(node)]
        return self._random.choice(reachable or nodes) if nodes else None

    def address(self, node: NodeId) -> str:
        found = self.directory.nodes.get(node)
        return found.client_address if found is not None else ""

    def learned_leader(self, shard: ShardId, node: NodeId | None) -> None:
        if node is None or node == self.node:
            self._leader_hints.pop(shard, None)
        else:
            self._leader_hints[shard] = node

    def _on_leader_change(self, replica: Replica) -> None:
        replica.known_leader = replica.raft.leader
        replica.leader_changes += 1
        self.observer.event("leader_changed", shard=replica.shard, term=replica.raft.term, leader=replica.raft.leader)
        if replica.raft.leader != NO_REPLICA:
            self.router.unpark(replica.shard)

    def _forward(
        self, node: NodeId, payload: bytes, on_reply: Callable[[bytes | RaftCacheError], None], deadline_ns: int
    ) -> None:
        self.network.request(node, KIND_FORWARD, payload, on_reply, deadline_ns)

    # --- The directory ------------------------------------------------------------------------------------------------

    def _read_directory(self, replica: Replica) -> None:
        """The catalog's own replica is the first to see a new directory: it applies it."""
        assert replica.machine is not None, "only called after an apply"
        result = replica.machine.read(Get(DIRECTORY_KEY, namespace=SYSTEM_NAMESPACE), SHARD_WIDE)
        if isinstance(result, GetResult) and result.entry is not None and result.entry.version > self.directory.epoch:
            self.adopt(Directory.decode(result.entry.value, result.entry.version))

    def adopt(self, directory: Directory, *, force: bool = False) -> None:
        """Takes a newer directory: routes, addresses, and which replicas this node is to have."""
        if directory.epoch <= self.directory.epoch and not force:
            return
        self.directory = directory
        self._slot_table = directory.slot_table()
        for shard in directory.shards.values():
            for placed in shard.replicas:
                self._replica_nodes[placed.replica] = placed.node
        self._on_directory(directory)
        self.between_syncs(self._match_directory)

    def _match_directory(self) -> None:
        """Creates the replicas that the directory gives this node and destroys those that it no longer lists."""
        wanted = {
            placed.replica: shard.shard
            for shard in self.directory.shards.values()
            for placed in shard.replicas
            if placed.node == self.node
        }
        for replica_id in sorted(set(self.replicas) - set(wanted)):
            self._destroy_replica(self.replicas[replica_id])
        for replica_id in sorted(set(wanted) - set(self.replicas)):
            if replica_id in self.wal.removed():
                continue
            self._create_replica(replica_id, wanted[replica_id])

    # --- Leadership ---------------------------------------------------------------------------------------------------

    def transfer(self, replica: Replica, to: ReplicaId = NO_REPLICA) -> ReplicaId:
        """Hands leadership to `to`, or to the most up-to-date connected voter. Returns whom; 0 = there is nobody.

        Raises: `PreconditionFailed` where `to` cannot lead.
        """
        if to == NO_REPLICA:
            candidates = [
                (progress.match, -peer)
                for peer, progress in replica.raft.progress.items()
                if peer != replica.replica_id and peer in replica.raft.configuration.voters and progress.recent_active
            ]
            if not candidates:
                return NO_REPLICA
            to = ReplicaId(-max(candidates)[1])
        replica.raft.transfer_leadership(to)
        self.touch(replica)
        return to

    def drain(self) -> int:
        """Starts to hand every leadership over; returns how many are still here. Called again until 0 or out of patience."""
        self.draining = True
        left = 0
        for replica in self.replicas.values():
            if replica.leads and len(replica.raft.configuration.voters) > 1:
                left += 1
                if replica.raft.lead_transferee == NO_REPLICA:
                    self.transfer(replica)
        return left

    def leaders(self) -> int:
        return sum(1 for replica in self.replicas.values() if replica.raft.role is Role.LEADER)
