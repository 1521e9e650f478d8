"""The node's brain: all replicas of one node, stepped in turns, with one write-ahead log and one fdatasync for all.

One turn of the loop (paper Figure 2 and thesis §10.2.1 give the order; the batching is ours):

    1. each touched replica proposes what is queued and asks for a read index
    2. each yields its `Ready`: messages leave at once, a leader sends while it writes
    3. what must be durable, of all replicas, becomes ONE write and ONE fdatasync
    4. only then: `persisted`, and the messages that promise durability
    5. what was committed is applied, while a slow disk still syncs and the followers have their part
    6. replies of all of this leave, one list per sink; frames leave, one per peer

Rules of this file:
- synchronous: nothing here awaits. The loop (production) or the simulator calls `tick`, `turn`, `on_messages`, `submit`;
- durability is `GroupCommit`'s, the coming and going of replicas `Lifecycle`'s, routes are `KnownPlaces`' and `Router`'s;
- a failed fsync ends the process (`fatal`). The engine supervises its replicas: lost state is rebuilt, and any other
  exception in one (a bug) stops that one and nothing else; the others of the node, and its peers elsewhere, go on;
- after `close` nothing happens any more, whoever calls.
"""

from __future__ import annotations

import contextlib
import random as random_module
from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol

from raftcache.clock import Clock
from raftcache.errors import Corruption, RaftCacheError, StorageFull, Unavailable, UnsupportedVersion
from raftcache.ids import CATALOG_SHARD, NO_REPLICA, NodeId, ReplicaId, ShardId
from raftcache.kv.limits import KvLimits
from raftcache.kv.machine import Machine
from raftcache.kv.operations import SYSTEM_NAMESPACE, Get, GetResult
from raftcache.kv.slots import SHARD_WIDE
from raftcache.node.api import ReplySink, Request
from raftcache.node.checkpointing import Checkpointing
from raftcache.node.directory import DIRECTORY_KEY, Directory, DirectoryNode
from raftcache.node.group_commit import GroupCommit, Scheduler, Taken
from raftcache.node.keeper import Keeper
from raftcache.node.kinds import KIND_FORWARD
from raftcache.node.lifecycle import Lifecycle
from raftcache.node.observer import Observer
from raftcache.node.places import KnownPlaces
from raftcache.node.replica import READ_BYTES_PER_TURN, Replica
from raftcache.node.router import Router
from raftcache.node.settings import EngineSettings
from raftcache.raft.messages import (
    Append,
    Heartbeat,
    InstallSnapshot,
    Message,
    Ready,
    Role,
)
from raftcache.storage.state import OutgoingCheckpoint, StateLost, StateStore
from raftcache.storage.wal import Wal
from raftcache.telemetry.tracing import NO_TRACER, Tracer

HOUSEKEEPING_TICKS = 10
"""About once a second: a few unlinks, a look at the disk, and one fdatasync where something was written since."""
STATE_FULL_PERCENT = 90
STATE_ROOM_PERCENT = 85
"""Of `storage.map_bytes`. The rest is for what was taken already (`config.rules` compares the two), for deletes, which write
too, and for pages that a checkpoint under way holds; lower to come back than to stop, so that nothing flickers."""
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
    def resting(self, node: NodeId) -> bool:
        """Whether `node` was not reachable a moment ago: a request to it would be refused at once."""
        ...

    def answer_bytes_waiting(self, node: NodeId) -> int:
        """Answers to requests of `node` that it has not taken yet."""
        ...


class Engine:
    """See the module. Built by the composition root once the node belongs to a cluster."""

    def __init__(
        self,
        *,
        entry: DirectoryNode,
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
        on_directory: Callable[[Directory], bool],
        fatal: Callable[[str], NoReturn],
        disk_free: Callable[[], int],
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """`entry`: this node as it is now. `on_directory` keeps a newer directory, and says whether the disk took it."""
        self.node = entry.node
        self.entry = entry
        self.settings, self.limits = settings, limits
        self.clock, self.random = clock, random
        self.observer = observer
        self.fatal = fatal
        self.draining = False
        self.strangers = 0
        """Messages for a replica that is not here, or of one that is not where they came from."""
        self.replicas: dict[ReplicaId, Replica] = {}
        self.network, self.wal = network, wal
        self.places = KnownPlaces(
            node=self.node,
            directory=directory,
            network=network,
            clock=clock,
            random=random,
            on_leader=lambda shard: self.router.retry(shard),  # noqa: PLW0108 - the router is built next
        )
        self.router = Router(
            settings=settings,
            value_bytes_max=limits.value_bytes_max,
            clock=clock,
            places=self.places,
            forward=self._forward,
            touch=self.touch,
            replica_failed=self.on_replica_error,
            wake=self._schedule,
            sink_failed=lambda error: observer.event("replies_lost", reason=f"{type(error).__name__}: {error}"),
        )
        self.commit = GroupCommit(
            wal=wal,
            settings=settings,
            scheduler=scheduler,
            clock=clock,
            observer=observer,
            tracer=tracer,
            flush=network.flush,
            persisted=self._persisted,
            wake=self._schedule,
            in_flight=lambda: self.router.in_flight,
            checkpointing=lambda: self.checkpointing.running,
        )
        self.lifecycle = Lifecycle(self, open_state, tracer)
        self.checkpointing = Checkpointing(self)
        self.keeper = Keeper(self)
        self._scheduler, self._disk_free = scheduler, disk_free
        self._on_directory = on_directory
        self._directory_kept = True
        self._touched: dict[ReplicaId, Replica] = {}
        self._held: dict[ReplicaId, Replica] = {}
        """Leaders with writes that came during a sync: proposed when it ends, they are one group, on every node's disk."""
        self._backlog: dict[ReplicaId, Replica] = {}
        """Replicas with more to apply, or to read, than one turn does."""
        self._turn_scheduled = self._preallocating = self._closed = False
        self._ticks = 0

    # --- Life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Opens every replica that the log knows. Raises: `UnsupportedVersion`: files of a newer release."""
        self.lifecycle.open_all()
        catalog = self.local(CATALOG_SHARD)
        if catalog is not None and catalog.machine is not None:
            # It may be newer than the copy beside it.
            self._read_directory(catalog)
        self.lifecycle.match_soon()

    def close(self) -> None:
        """Answers everything, writes the clean-shutdown markers and closes. What is called afterwards does nothing."""
        self._closed = True
        # A sync may be in flight in its thread, and nothing may touch the log beside it.
        self._scheduler.wait()
        self.commit.close()
        self.router.close()
        ending = Unavailable("the node is shutting down")
        for replica in self.replicas.values():
            replica.abandon(ending)
        self.router.finish()
        for replica in self.replicas.values():
            if replica.machine is not None and not replica.stopped:
                # Without its marker a state is rebuilt at the next start; the others must get theirs all the same.
                with contextlib.suppress(RaftCacheError, AssertionError):
                    replica.machine.flush()
                    replica.state.close_clean()
            replica.state.discard_live()
        self.wal.close()

    def submit(self, requests: Sequence[Request], sink: ReplySink) -> None:
        """See `node.api.Submit`."""
        self.router.submit(requests, sink)
        if self._closed:
            self.router.flush()

    # --- Replicas -----------------------------------------------------------------------------------------------------

    @property
    def directory(self) -> Directory:
        """The newest directory that this node has seen."""
        return self.places.directory

    def local(self, shard: ShardId) -> Replica | None:
        """This node's replica of the shard."""
        return self.places.local(shard)

    def owner(self, slot: int) -> ShardId:
        """The shard that owns the slot; -1 where nobody does."""
        return self.places.owner(slot)

    def known_leader(self, shard: ShardId) -> NodeId | None:
        """The node that is known to lead the shard, this one included."""
        return self.places.known_leader(shard)

    def node_of(self, replica_id: ReplicaId) -> NodeId | None:
        """Where a replica is."""
        return self.places.node_of(replica_id)

    def house(self, replica: Replica) -> None:
        """A replica was opened; it takes the place of an older object of its id."""
        self.replicas[replica.replica_id] = replica
        self.places.house(replica)
        self._forget(replica)

    def evict(self, replica: Replica) -> None:
        """A replica is gone."""
        self.replicas.pop(replica.replica_id, None)
        self.places.evict(replica)
        self._forget(replica)
        self.commit.drop(replica)

    def _forget(self, replica: Replica) -> None:
        for waiting in (self._touched, self._held, self._backlog):
            waiting.pop(replica.replica_id, None)

    def not_serving(self) -> list[tuple[ShardId, str]]:
        """The shards of which this node's replica does not work, each with the reason."""
        stopped = [(replica.shard, replica.stopped) for replica in self.replicas.values() if replica.stopped]
        return stopped + [(absent.shard, absent.reason) for absent in self.lifecycle.absent.values()]

    def rebuild(self, replica: Replica, reason: str) -> None:
        """The live state of the replica is not to be trusted; see `Lifecycle.rebuild`."""
        self.lifecycle.rebuild(replica, reason)

    def on_replica_error(self, replica: Replica, error: Exception) -> None:
        """An exception left a replica's code: its state is lost, or it has a bug."""
        if isinstance(error, (Corruption, StateLost)):
            self.lifecycle.rebuild(replica, str(error))
        else:
            self.lifecycle.stop(replica, error)

    # --- Turns --------------------------------------------------------------------------------------------------------

    def touch(self, replica: Replica) -> None:
        """The replica has something to do."""
        self._touched[replica.replica_id] = replica
        self._schedule()

    def _schedule(self) -> None:
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self._scheduler.call_soon(self.turn)

    def turn(self) -> None:
        """See the module."""
        self._turn_scheduled = False
        if self._closed:
            return
        self.router.try_due()
        if self._held and not self.commit.syncing:
            self._touched = self._held | self._touched
            self._held = {}
        read_bytes_left = READ_BYTES_PER_TURN
        passed_over: dict[ReplicaId, Replica] = {}
        for _ in range(ROUNDS_PER_TURN_MAX):
            if not self._touched:
                break
            touched, self._touched = self._touched, {}
            now_ns = self.clock.monotonic_ns()
            wall_ms = self.clock.wall_ms()
            readies = [self._step_replica(replica, now_ns, wall_ms) for replica in touched.values()]
            self.commit.persist()
            # Last: what is committed has time, and what is new is on its way to disks and followers meanwhile.
            share = max(0, read_bytes_left) // len(touched)
            for replica, ready in zip(touched.values(), readies, strict=True):
                if ready is not None or replica.may_read():
                    may_read = max(1, min(share, read_bytes_left)) if read_bytes_left > 0 else 0
                    read_bytes_left -= self._take(replica, ready, now_ns, may_read)
                    if not may_read and replica.may_read():
                        passed_over[replica.replica_id] = replica
        self.commit.finish_turn()
        self.router.flush()
        self.network.flush()
        if self._backlog:
            # One page of each in a turn, so that I/O comes in between; the next at once, and not with the next tick.
            self._touched = passed_over | self._touched | self._backlog
            self._backlog.clear()
        if self._touched:
            self._schedule()

    def _step_replica(self, replica: Replica, now_ns: int, wall_ms: int) -> Ready | None:
        """Takes from the core what there is to do; messages leave with it, and its entries go to the log."""
        ready: Ready | None = None
        if replica.stopped or self.replicas.get(replica.replica_id) is not replica:
            return None
        try:
            if replica.leads:
                if not self.commit.syncing:
                    replica.propose(now_ns, wall_ms)
                elif replica.holds_writes():
                    self._held[replica.replica_id] = replica
                replica.ask_read_index(now_ns)
            if replica.unplaced or not replica.leads:
                released = replica.release_unproposed()
                if released:
                    self.router.return_unplaced(replica.shard, released)
            if replica.raft.has_ready():
                ready = self._ready_of(replica)
                for message in ready.messages:
                    self._send(replica, message)
                if ready.snapshot is not None:
                    self._install(replica, ready)
                self.commit.add(replica, ready)
            if replica.raft.role is not replica.known_role:
                replica.known_role = replica.raft.role
                replica.elections += replica.known_role is Role.CANDIDATE
                replica.led_since_ns = now_ns
            if replica.raft.leader != replica.known_leader:
                self._on_leader_change(replica)
        except Exception as error:  # noqa: BLE001 - the supervisor of replicas
            self.on_replica_error(replica, error)
        return ready

    def _ready_of(self, replica: Replica) -> Ready:
        """The next `Ready`. It reads the log for followers; damage there is not the state's, which could be rebuilt.

        This version does not repair a log: the process ends, and the recovery at its next start says what is damaged.
        """
        try:
            return replica.raft.ready()
        except Corruption as damage:
            self.fatal(f"the log of shard {replica.shard}: {damage}")

    def _take(self, replica: Replica, ready: Ready | None, now_ns: int, read_bytes_max: int) -> int:
        """Applies what is committed, and serves what may be read; how many bytes that was."""
        served = 0
        if replica.stopped or self.replicas.get(replica.replica_id) is not replica:
            return served
        before, started_ns = replica.commands_applied, self.clock.monotonic_ns()
        try:
            if ready is not None:
                replica.take(ready, now_ns)
            served = replica.serve_reads(now_ns, read_bytes_max)
            if ready is not None and ready.committed:
                self.observer.applied(self.clock.monotonic_ns() - started_ns, replica.commands_applied - before)
                self._after_apply(replica, now_ns)
                if replica.raft.log.can_apply():
                    self._backlog[replica.replica_id] = replica
            if replica.may_read() or replica.busy():
                # Also what waited for the round or the batch that has just ended: no later message may come and bring it to mind.
                self._backlog[replica.replica_id] = replica
        except Exception as error:  # noqa: BLE001 - the supervisor of replicas
            self.on_replica_error(replica, error)
        return served

    def _send(self, replica: Replica, message: Message) -> None:
        if isinstance(message, InstallSnapshot):
            self.checkpointing.send(replica, message)
            return
        node = self.node_of(message.to)
        if node is not None:
            self.network.send(node, replica.shard, message)

    def _install(self, replica: Replica, ready: Ready) -> None:
        """A received snapshot becomes the live state; its file is durable already, the log's record of it comes with the sync."""
        assert ready.snapshot is not None, "only called with a snapshot"
        replica.abandon_through(ready.snapshot.index)
        replica.machine = Machine(replica.state.install(ready.snapshot), self.limits)
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
        self._check_space(replica)

    def _persisted(self, group: list[Taken]) -> None:
        """These are durable: promises may leave."""
        if self._closed:
            return
        for replica, ready in group:
            if replica.stopped or self.replicas.get(replica.replica_id) is not replica:
                continue
            try:
                replica.raft.persisted(ready)
                for message in ready.messages_after_persist:
                    self._send(replica, message)
                if replica.raft.has_ready() or replica.busy():
                    self._touched[replica.replica_id] = replica
            except Corruption as damage:
                self.fatal(f"the log of shard {replica.shard}: {damage}")
            except Exception as error:  # noqa: BLE001 - the supervisor of replicas
                self.on_replica_error(replica, error)

    # --- What comes in from other nodes -------------------------------------------------------------------------------

    def on_messages(self, from_node: NodeId, messages: list[tuple[ShardId, Message]]) -> None:
        """Steps each message at the replica it names. A message for or of somebody else is counted and dropped."""
        if self._closed:
            return
        now_ns = self.clock.monotonic_ns()
        for shard, message in messages:
            replica = self.replicas.get(message.to)
            if replica is None or replica.shard != shard or not self.places.comes_from(message.from_, from_node):
                self.strangers += 1
                continue
            if replica.stopped:
                continue
            try:
                replica.raft.step(message)
                if isinstance(message, Append) or (isinstance(message, Heartbeat) and message.level):
                    if replica.raft.leader == message.from_:
                        replica.heard(message.commit, now_ns)
            except Corruption as damage:
                self.fatal(f"the log of shard {shard}: {damage}")
            except Exception as error:  # noqa: BLE001 - the supervisor of replicas
                self.on_replica_error(replica, error)
                continue
            self._touched[replica.replica_id] = replica
        self._schedule()

    def on_disconnected(self, node: NodeId) -> None:
        """Tells every leader here that its peers on that node miss what was sent."""
        if self._closed:
            return
        for replica in self.replicas.values():
            if replica.leads:
                for peer in replica.raft.progress:
                    if self.node_of(peer) == node:
                        replica.raft.report_unreachable(peer)

    def _forward(
        self, node: NodeId, payload: bytes, on_reply: Callable[[bytes | RaftCacheError], None], deadline_ns: int
    ) -> None:
        self.network.request(node, KIND_FORWARD, payload, on_reply, deadline_ns)

    # --- Time ---------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """One tick of Raft time for every replica, and the node's housekeeping."""
        if self._closed:
            return
        self._ticks += 1
        now_ns, interval_ns = self.clock.monotonic_ns(), self.settings.commit_interval_ns
        # A commit takes about a millisecond: those of many shards are spread over the interval.
        commits_left = 1 + len(self.replicas) * self.settings.tick_ns // max(1, interval_ns)
        for replica in list(self.replicas.values()):
            if replica.stopped:
                continue
            try:
                replica.raft.tick()
                replica.expire(now_ns)
                due = replica.uncommitted_commands and now_ns - replica.committed_ns >= interval_ns
                if due and commits_left:
                    commits_left -= 1
                    self.commit_state(replica, now_ns)
                elif self._ticks % HOUSEKEEPING_TICKS == 0:
                    self._check_space(replica)
                if replica.raft.has_ready() or replica.busy():
                    self._touched[replica.replica_id] = replica
            except Exception as error:  # noqa: BLE001 - the supervisor of replicas
                self.on_replica_error(replica, error)
        self.router.tick(now_ns)
        self.commit.retry()
        if self.wal.wants_spare and not self._preallocating:
            self._preallocating = True
            self._scheduler.run_blocking(self._preallocate, self._on_preallocated)
        if self._ticks % HOUSEKEEPING_TICKS == 0:
            self._check_disk()
            self.commit.keep_house()
            if not self._directory_kept:
                self._directory_kept = self._on_directory(self.directory)
        if self.router.refusing:
            self.keeper.hand_off()
        self.lifecycle.tick()
        self.checkpointing.tick()
        self.keeper.tick()
        self._schedule()

    def _check_disk(self) -> None:
        """Below the floor writes are refused and leadership goes to nodes with room (`Keeper.hand_off`); votes and reads go on."""
        free, floor = self._disk_free(), self.settings.disk_free_bytes_min
        low = self.commit.full or ("the log has no room" if self.wal.full else "")
        if not low and free < floor:
            low = f"{free} bytes are free, less than storage.disk_free_bytes_min ({floor})"
        if low and not self.router.refusing:
            self.router.refusing = f"the disk of this node is full: {low}; writes are refused until there is room"
            self.observer.event("disk_low", reason=self.router.refusing)
        elif not low and self.router.refusing:
            self.router.refusing = ""
            self.observer.event("disk_recovered")

    def _check_space(self, replica: Replica) -> None:
        """A full map would lose the live state: before, its leader refuses what adds to it. It keeps the leadership, because
        the others hold the same records. Raises: `StateLost`."""
        taken, limit = replica.state.space()
        replica.state_bytes = taken
        full = taken * 100 >= limit * (STATE_ROOM_PERCENT if replica.full else STATE_FULL_PERCENT) if limit else False
        if full and not replica.full:
            replica.full = (
                f"the state of shard {replica.shard} takes {taken} bytes, near storage.map_bytes ({limit}): delete keys, or "
                "start the nodes with more"
            )
            self.observer.event("state_full", shard=replica.shard, reason=replica.full)
        elif replica.full and not full:
            replica.full = ""
            self.observer.event("state_has_room", shard=replica.shard)

    def _preallocate(self) -> None:
        with contextlib.suppress(StorageFull):
            self.wal.preallocate()

    def _on_preallocated(self) -> None:
        self._preallocating = False

    # --- The directory ------------------------------------------------------------------------------------------------

    def _read_directory(self, replica: Replica) -> None:
        """The catalog's own replica is the first to see a new directory: it applies it."""
        assert replica.machine is not None, "only called after an apply"
        result = replica.machine.read(Get(DIRECTORY_KEY, namespace=SYSTEM_NAMESPACE), SHARD_WIDE)
        if isinstance(result, GetResult) and result.entry is not None and result.entry.version > self.directory.epoch:
            try:
                self.adopt(Directory.decode(result.entry.value, result.entry.version))
            except UnsupportedVersion as error:
                # The upgrade goes on elsewhere; this node keeps what it understood last.
                self.observer.event("bad_request_from_node", from_node=self.node, error=str(error))

    def adopt(self, directory: Directory) -> None:
        """Takes a newer directory: routes, addresses, and which replicas this node is to have."""
        if directory.epoch <= self.directory.epoch:
            return
        if directory.cluster != self.directory.cluster:
            self.observer.event(
                "bad_request_from_node", from_node=self.node, error=f"a directory of cluster {directory.cluster}"
            )
            return
        self.places.adopt(directory)
        self._directory_kept = self._on_directory(directory)
        self.lifecycle.match_soon()

    # --- Leadership ---------------------------------------------------------------------------------------------------

    @property
    def wants_to_lead(self) -> bool:
        """Whether leaderships are welcome here: not while the node is leaving, or refuses writes."""
        return not self.draining and not self.router.refusing

    def _on_leader_change(self, replica: Replica) -> None:
        replica.known_leader = replica.raft.leader
        replica.leader_changes += 1
        self.observer.event("leader_changed", shard=replica.shard, term=replica.raft.term, leader=replica.raft.leader)
        if replica.raft.leader != NO_REPLICA:
            self.router.unpark(replica.shard)

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
        """How many shards are led from here."""
        return sum(replica.leads for replica in self.replicas.values())
