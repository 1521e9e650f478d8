"""Keeps the directory: changes it in the catalog, spreads it, and carries out the membership changes it asks for.

Rules of this file:
- the directory is changed by compare-and-swap on its version and nothing else; a change is a pure function, applied to
  whatever is there, so a lost race or an unknown outcome is answered by reading again;
- the catalog's replicas learn of a change by applying it; its leader pushes it to every other node, and a node that
  missed that asks a random node now and then;
- the leader of a shard, and nobody else, carries out that shard's change (`membership.next_step`);
- leaders go home one at a time, and only to a node that says, asked for it, that it wants to lead;
- a node that finds itself under another address than it has corrects the directory; one that the directory does not list
  was removed, and leaves it alone.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from raftcache.errors import (
    OutcomeUnknown,
    RaftCacheError,
    Unavailable,
)
from raftcache.ids import CATALOG_SHARD, NO_REPLICA, NodeId, ReplicaId, ShardId, Slot
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
from raftcache.node.directory import (
    DIRECTORY_KEY,
    Directory,
    DirectoryShard,
    ReplicaChange,
    with_change_done,
    with_node,
)
from raftcache.node.kinds import KIND_DIRECTORY, KIND_DIRECTORY_PUSH, KIND_WILLING
from raftcache.node.membership import AddLearner, ChangeVoters, Done, HandOver, Remove, Step, Wait, leftover, next_step
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
BALANCE_PAUSE_TICKS = 150
"""A node that did not want to lead is asked again after 15 s: until then it has left, or has room again."""
HAND_OFF_EVERY_TICKS = 2
"""Between two questions who takes a leadership that has to go."""
REFRESH_EVERY_TICKS = 50
"""How often a node looks whether the directory has it as it is; also the pause after a failed correction."""
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
        self._refreshing = False
        self._balancing = False
        """A question to a preferred leader's node is on its way."""
        self._unwilling: dict[NodeId, int] = {}
        """Nodes that did not want to lead, and the tick until which they are left in peace."""
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
            try:
                current = Directory.decode(entry.value, entry.version)
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

    # --- Time ---------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Takes the next steps of all that is under way."""
        self._ticks += 1
        if self._ticks % STEP_EVERY_TICKS == 0:
            self._step_changes()
        if self._ticks % BALANCE_EVERY_TICKS == 0 and not self._engine.draining:
            self._balance()
        if self._ticks % REFRESH_EVERY_TICKS == 0:
            self._refresh()
        catalog = self._engine.local(CATALOG_SHARD)
        if catalog is not None and catalog.leads and self._pushed_epoch < self._engine.directory.epoch:
            self._push()
        elif self._ticks % ASK_EVERY_TICKS == 0 and (catalog is None or not catalog.leads):
            self._ask()

    # --- Leaders go home ----------------------------------------------------------------------------------------------

    def _balance(self) -> None:
        """Hands one leadership to the shard's *preferred* replica, the first that the directory lists.

        The directory spreads those over the nodes, so leaders spread too, and go home after a restart. One at a time, and
        only to a voter that answers and is level, so that nobody waits, on a node that wants it: one that hands its
        leaderships off (it is leaving, its disk is full) would send it back, over and over.
        """
        if self._balancing:
            return
        engine = self._engine
        self._unwilling = {node: until for node, until in self._unwilling.items() if until > self._ticks}
        for shard in engine.directory.shards.values():
            replica = engine.local(shard.shard)
            if replica is None or not self._may_go_home(replica, shard):
                continue
            node = shard.replicas[0].node
            if node in self._unwilling:
                continue
            self._balancing = True
            epoch, preferred = engine.directory.epoch, shard.replicas[0].replica
            engine.network.request(
                node,
                KIND_WILLING,
                b"",
                lambda answer: self._on_willing(answer, node, shard.shard, preferred, epoch),  # noqa: B023 - it returns
                engine.clock.monotonic_ns() + PUSH_TIMEOUT_NS,
            )
            return

    def _may_go_home(self, replica: Replica, shard: DirectoryShard) -> bool:
        engine = self._engine
        if not replica.leads or shard.change is not None or not shard.replicas:
            return False
        preferred = shard.replicas[0].replica
        progress = replica.raft.progress.get(preferred)
        return (
            preferred != replica.replica_id
            and engine.clock.monotonic_ns() - replica.led_since_ns >= BALANCE_TENURE_NS
            and progress is not None
            and preferred in replica.raft.configuration.voters
            and progress.recent_active
            and progress.match >= replica.raft.commit
            and replica.raft.lead_transferee == NO_REPLICA
        )

    def _on_willing(
        self, answer: bytes | RaftCacheError, node: NodeId, shard_id: ShardId, preferred: ReplicaId, epoch: int
    ) -> None:
        self._balancing = False
        engine = self._engine
        if isinstance(answer, RaftCacheError) or answer != b"\1":
            self._unwilling[node] = self._ticks + BALANCE_PAUSE_TICKS
            return
        shard, replica = engine.directory.shards.get(shard_id), engine.local(shard_id)
        # Time has passed; everything is looked at again.
        if shard is None or replica is None or engine.directory.epoch != epoch or engine.draining:
            return
        if self._may_go_home(replica, shard):
            engine.transfer(replica, preferred)

    # --- Leaders leave a full disk ------------------------------------------------------------------------------------

    def hand_off(self) -> None:
        """Every shard led here goes to a voter that has room; called with each tick while this node has none.

        Asked first: where every disk is full, a leadership would go round and round, and nobody would answer reads.
        """
        engine = self._engine
        if self._ticks % HAND_OFF_EVERY_TICKS:
            return
        for replica in engine.replicas.values():
            if not replica.leads or replica.raft.lead_transferee != NO_REPLICA:
                continue
            for peer, progress in replica.raft.progress.items():
                node = engine.node_of(peer)
                if node is None or node == engine.node or peer not in replica.raft.configuration.voters:
                    continue
                if progress.recent_active:
                    deadline_ns = engine.clock.monotonic_ns() + PUSH_TIMEOUT_NS
                    engine.network.request(node, KIND_WILLING, b"", partial(self._on_taker, replica, peer), deadline_ns)

    def _on_taker(self, replica: Replica, peer: ReplicaId, answer: bytes | RaftCacheError) -> None:
        engine = self._engine
        if answer != b"\1" or engine.wants_to_lead or engine.replicas.get(replica.replica_id) is not replica:
            return
        # The first who wants it gets it.
        if replica.leads and replica.raft.lead_transferee == NO_REPLICA and peer in replica.raft.configuration.voters:
            engine.transfer(replica, peer)

    def on_willing_asked(self) -> bytes:
        """Whether leaderships are welcome here."""
        return b"\1" if self._engine.wants_to_lead else b"\0"

    # --- This node's own entry ----------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Brings the directory up to date where this node was restarted under another address or name."""
        engine = self._engine
        entry = engine.entry
        if self._refreshing or engine.directory.nodes.get(entry.node, entry) == entry:
            return

        def transform(directory: Directory) -> Directory:
            listed = directory.nodes.get(entry.node)
            return directory if listed is None or listed == entry else with_node(directory, entry)

        def done(outcome: Directory | RaftCacheError) -> None:
            self._refreshing = False
            if not isinstance(outcome, RaftCacheError):
                engine.adopt(outcome)

        self._refreshing = True
        self.update(transform, done)

    # --- Spreading the directory --------------------------------------------------------------------------------------

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
        others = [node for node in engine.places.nodes() if node != engine.node]
        if not others:
            return
        deadline_ns = engine.clock.monotonic_ns() + PUSH_TIMEOUT_NS
        payload = _EPOCH.pack(engine.directory.epoch)
        engine.network.request(engine.random.choice(others), KIND_DIRECTORY, payload, self._on_told, deadline_ns)

    def _on_told(self, payload: bytes | RaftCacheError) -> None:
        if isinstance(payload, RaftCacheError):
            return
        try:
            self.on_push(payload)
        except (ValueError, KeyError, TypeError, AttributeError, RaftCacheError) as error:
            # Of a newer release, or nonsense: the next node is asked in two seconds.
            self._engine.observer.event("bad_request_from_node", from_node=NodeId(0), error=str(error) or repr(error))

    def on_push(self, payload: bytes) -> None:
        """A directory from another node; older ones are ignored.

        Raises: `UnsupportedVersion`, and `ValueError`, `KeyError`, `TypeError` for what is none.
        """
        if len(payload) > _EPOCH.size:
            (epoch,) = _EPOCH.unpack_from(payload)
            if epoch > self._engine.directory.epoch:
                self._engine.adopt(Directory.decode(payload[_EPOCH.size :], epoch))

    def on_asked(self, payload: bytes) -> bytes:
        """Another node tells its epoch: answer with the directory where ours is newer, else with nothing.

        Raises: `struct.error`.
        """
        (epoch,) = _EPOCH.unpack(payload)
        directory = self._engine.directory
        return _EPOCH.pack(directory.epoch) + directory.encode() if directory.epoch > epoch else b""

    # --- Carrying it out ----------------------------------------------------------------------------------------------

    def _step_changes(self) -> None:
        for shard in self._engine.directory.shards.values():
            replica = self._engine.local(shard.shard)
            if replica is None or not replica.leads:
                self.waiting_for.pop(shard.shard, None)
                continue
            try:
                self._step_change(replica, shard)
            except RaftCacheError as refusal:
                self.waiting_for[shard.shard] = refusal.message
            except Exception as error:  # noqa: BLE001 - the supervisor of replicas
                self._engine.on_replica_error(replica, error)

    def _step_change(self, replica: Replica, shard: DirectoryShard) -> None:
        step: Step
        if shard.change is None:
            self.waiting_for.pop(shard.shard, None)
            unlisted = leftover(shard, replica.raft, next_replica=ReplicaId(self._engine.directory.next_replica))
            if unlisted == NO_REPLICA:
                return
            step = HandOver() if unlisted == replica.replica_id else Remove(unlisted)
        else:
            step = next_step(
                shard.change,
                replica.raft,
                own=replica.replica_id,
                lag_entries_max=self._engine.settings.learner_lag_entries_max,
            )
        waits = self._take(replica, shard.change, step)
        if shard.change is not None:
            self.waiting_for[shard.shard] = waits

    def _take(self, replica: Replica, change: ReplicaChange | None, step: Step) -> str:
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
            case Remove():
                replica.raft.propose_configuration(ConfigurationChange(remove=(step.replica,)))
                self._engine.touch(replica)
                return f"the removal of replica {step.replica} to be committed"
            case HandOver():
                # Whom it asked first may need a moment: asking another one now would begin anew.
                if replica.raft.lead_transferee == NO_REPLICA:
                    self._engine.transfer(replica)
                return f"replica {replica.replica_id}, which is to go, to hand leadership over"
            case Done():
                assert change is not None, "nothing is done without a change"
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
