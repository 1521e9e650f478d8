"""Keeps the directory: changes it in the catalog, spreads it, and carries out the membership changes it asks for.

Rules of this file:
- the directory is changed by compare-and-swap on its version and nothing else; a change is a pure function, applied to
  whatever is there, so a lost race or an unknown outcome is answered by reading again;
- the catalog's replicas learn of a change by applying it; its leader pushes it to every other node, and a node that
  missed that asks a random node now and then;
- the leader of a shard, and nobody else, carries out that shard's change (`membership.next_step`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from raftcache.errors import (
    OutcomeUnknown,
    RaftCacheError,
    Unavailable,
)
from raftcache.ids import CATALOG_SHARD, NO_REPLICA, ShardId, Slot
from raftcache.kv.operations import (
    SYSTEM_NAMESPACE,
    Comparison,
    Condition,
    ConditionKind,
    Get,
    GetResult,
    Put,
    WriteResult,
)
from raftcache.node.api import Reply, Request
from raftcache.node.directory import DIRECTORY_KEY, Directory, ReplicaChange, with_change_done
from raftcache.node.kinds import KIND_DIRECTORY, KIND_DIRECTORY_PUSH
from raftcache.node.membership import AddLearner, ChangeVoters, Done, HandOver, Step, Wait, next_step
from raftcache.node.settings import MS
from raftcache.raft.configuration import ConfigurationChange

if TYPE_CHECKING:
    from raftcache.node.engine import Engine
    from raftcache.node.replica import Replica

UPDATE_TIMEOUT_NS = 5_000 * MS
"""For one read or write of the directory: the catalog may be electing."""
UPDATE_ATTEMPTS_MAX = 10
"""Of a compare-and-swap; each lost race means that somebody else's change went through."""
ASK_EVERY_TICKS = 20
"""A node that missed a push asks after 2 s at the latest."""
PUSH_TIMEOUT_NS = 2_000 * MS
BALANCE_EVERY_TICKS = 5
"""At most two hand-overs a second and node: 64 leaders go home within a minute of a restart, without a thundering herd."""
BALANCE_TENURE_NS = 15_000 * MS
"""A leader keeps what it got for longer than a clean shutdown takes, lest it hand a shard back to a node that is leaving."""
STEP_EVERY_TICKS = 2
"""Membership steps are taken five times a second: a change has four or five of them."""

_EPOCH = struct.Struct("<Q")

Transform = Callable[[Directory], Directory]
"""A change of the directory. Pure; returns the same object where nothing is to change. Raises: `RaftCacheError`."""


class _Once:
    """A sink for one internal request."""

    def __init__(self, callback: Callable[[Reply], None]) -> None:
        self._callback = callback

    def deliver(self, replies: list[Reply]) -> None:
        for reply in replies:
            self._callback(reply)


class Keeper:
    """See the module. One per node; everything runs on the loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ticks = 0
        self._pushed_epoch = 0
        self._clearing: set[ShardId] = set()
        self.waiting_for: dict[ShardId, str] = {}
        """What each change that this node carries out waits for."""

    # --- Changing it --------------------------------------------------------------------------------------------------

    def update(self, transform: Transform, done: Callable[[Directory | RaftCacheError], None]) -> None:
        """Applies `transform` to the directory in the catalog. `done` gets the directory as it then stands, or the error."""
        self._attempt(transform, done, UPDATE_ATTEMPTS_MAX)

    def _attempt(self, transform: Transform, done: Callable[[Directory | RaftCacheError], None], attempts: int) -> None:
        if attempts == 0:
            done(Unavailable("the directory kept changing under this change; try again"))
            return

        def on_read(reply: Reply) -> None:
            if isinstance(reply.result, RaftCacheError):
                done(reply.result)
                return
            assert isinstance(reply.result, GetResult), f"a Get was answered by {type(reply.result).__name__}"
            entry = reply.result.entry
            assert entry is not None, "the catalog has no directory: init wrote one at index 1"
            current = Directory.decode(entry.value, entry.version)
            try:
                changed = transform(current)
            except RaftCacheError as refusal:
                done(refusal)
                return
            if changed is current:
                done(current)
                return
            self._write(current, changed, on_written)

        def on_written(outcome: Directory | RaftCacheError | None) -> None:
            if outcome is None or isinstance(outcome, OutcomeUnknown):
                self._attempt(transform, done, attempts - 1)
            else:
                done(outcome)

        self._submit(Get(DIRECTORY_KEY, namespace=SYSTEM_NAMESPACE), on_read)

    def _write(
        self, current: Directory, changed: Directory, done: Callable[[Directory | RaftCacheError | None], None]
    ) -> None:
        data = changed.encode()
        unchanged = Condition(DIRECTORY_KEY, ConditionKind.VERSION, Comparison.EQUAL, number=current.epoch)

        def on_put(reply: Reply) -> None:
            if isinstance(reply.result, RaftCacheError):
                done(reply.result)
                return
            assert isinstance(reply.result, WriteResult), f"a Put was answered by {type(reply.result).__name__}"
            done(Directory.decode(data, current.epoch + 1) if reply.result.succeeded else None)

        self._submit(Put(DIRECTORY_KEY, data, (unchanged,), namespace=SYSTEM_NAMESPACE), on_put)

    def _submit(self, operation: Get | Put, callback: Callable[[Reply], None]) -> None:
        deadline_ns = self._engine.clock.monotonic_ns() + UPDATE_TIMEOUT_NS
        request = Request(None, operation, Slot(-1), deadline_ns, shard=CATALOG_SHARD)
        self._engine.submit([request], _Once(callback))

    # --- Spreading it -------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        self._ticks += 1
        if self._ticks % STEP_EVERY_TICKS == 0:
            self._step_changes()
        if self._ticks % BALANCE_EVERY_TICKS == 0 and not self._engine.draining:
            self._balance()
        catalog = self._engine.local(CATALOG_SHARD)
        if catalog is not None and catalog.leads and self._pushed_epoch < self._engine.directory.epoch:
            self._push()
        elif self._ticks % ASK_EVERY_TICKS == 0 and (catalog is None or not catalog.leads):
            self._ask()

    def _balance(self) -> None:
        """Hands one leadership to the shard's *preferred* replica, the first that the directory lists.

        The directory spreads those over the nodes, so leaders spread too, and go home after a restart. One at a time, and
        only to a voter that answers and is level, so that nobody waits.
        """
        now_ns = self._engine.clock.monotonic_ns()
        for shard in self._engine.directory.shards.values():
            replica = self._engine.local(shard.shard)
            if replica is None or not replica.leads or shard.change is not None or not shard.replicas:
                continue
            preferred = shard.replicas[0].replica
            progress = replica.raft.progress.get(preferred)
            if (
                preferred != replica.replica_id
                and now_ns - replica.led_since_ns >= BALANCE_TENURE_NS
                and progress is not None
                and preferred in replica.raft.configuration.voters
                and progress.recent_active
                and progress.match >= replica.raft.commit
                and replica.raft.lead_transferee == NO_REPLICA
            ):
                self._engine.transfer(replica, preferred)
                return

    def _push(self) -> None:
        directory = self._engine.directory
        self._pushed_epoch = directory.epoch
        payload = _EPOCH.pack(directory.epoch) + directory.encode()
        deadline_ns = self._engine.clock.monotonic_ns() + PUSH_TIMEOUT_NS
        for node in sorted(directory.nodes):
            if node != self._engine.node:
                self._engine.network.request(node, KIND_DIRECTORY_PUSH, payload, lambda _: None, deadline_ns)

    def _ask(self) -> None:
        engine = self._engine
        others = [node for node in sorted(engine.directory.nodes) if node != engine.node]
        if not others:
            return
        deadline_ns = engine.clock.monotonic_ns() + PUSH_TIMEOUT_NS
        payload = _EPOCH.pack(engine.directory.epoch)
        engine.network.request(engine.choose(others), KIND_DIRECTORY, payload, self._on_told, deadline_ns)

    def _on_told(self, payload: bytes | RaftCacheError) -> None:
        if not isinstance(payload, RaftCacheError):
            self.on_push(payload)

    def on_push(self, payload: bytes) -> None:
        """A directory from another node; older ones are ignored."""
        if len(payload) > _EPOCH.size:
            (epoch,) = _EPOCH.unpack_from(payload)
            if epoch > self._engine.directory.epoch:
                self._engine.adopt(Directory.decode(payload[_EPOCH.size :], epoch))

    def on_asked(self, payload: bytes) -> bytes:
        """Another node tells its epoch: answer with the directory where ours is newer, else with nothing."""
        (epoch,) = _EPOCH.unpack(payload)
        directory = self._engine.directory
        return _EPOCH.pack(directory.epoch) + directory.encode() if directory.epoch > epoch else b""

    # --- Carrying it out ----------------------------------------------------------------------------------------------

    def _step_changes(self) -> None:
        for shard in self._engine.directory.shards.values():
            replica = self._engine.local(shard.shard)
            if shard.change is None or replica is None or not replica.leads:
                self.waiting_for.pop(shard.shard, None)
                continue
            step = next_step(
                shard.change,
                replica.raft,
                own=replica.replica_id,
                lag_entries_max=self._engine.settings.learner_lag_entries_max,
            )
            try:
                self.waiting_for[shard.shard] = self._take(replica, shard.change, step)
            except RaftCacheError as refusal:
                self.waiting_for[shard.shard] = refusal.message

    def _take(self, replica: Replica, change: ReplicaChange, step: Step) -> str:
        """Takes the step; returns what the change waits for now."""
        match step:
            case Wait():
                return step.reason
            case AddLearner():
                replica.raft.propose_configuration(ConfigurationChange(add_learners=(step.replica,)))
                self._engine.touch(replica)
                return f"replica {step.replica} to be recorded as a learner"
            case ChangeVoters():
                replica.raft.propose_configuration(
                    ConfigurationChange(
                        add_voters=(step.incoming,) if step.incoming != NO_REPLICA else (),
                        remove=(step.outgoing,) if step.outgoing != NO_REPLICA else (),
                    )
                )
                self._engine.touch(replica)
                return "the new configuration to be committed"
            case HandOver():
                self._engine.transfer(replica)
                return f"replica {replica.replica_id}, which is to go, to hand leadership over"
            case Done():
                self._clear(replica, change)
                return "the directory to be brought up to date"

    def _clear(self, replica: Replica, change: ReplicaChange) -> None:
        shard = replica.shard
        if shard in self._clearing:
            return
        self._clearing.add(shard)
        voters = set(replica.raft.configuration.voters)
        learners = set(replica.raft.configuration.learners)

        def transform(directory: Directory) -> Directory:
            found = directory.shards.get(shard)
            if found is None or found.change != change:
                return directory
            return with_change_done(directory, shard, voters=voters, learners=learners)

        def done(outcome: Directory | RaftCacheError) -> None:
            self._clearing.discard(shard)
            if not isinstance(outcome, RaftCacheError):
                self._engine.observer.event("membership_changed", shard=shard, voters=sorted(voters))
                self._engine.adopt(outcome)

        self.update(transform, done)
