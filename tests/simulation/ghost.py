"""What must hold, looked at after every event: by a ghost that sees all nodes at once, their memories and their platters.

    look        after each event, at the node that it concerned, and there only at replicas that changed
    promised    at each vote, request for votes and acknowledgement, before it leaves
    after_end   what the platter holds of everything that was promised; all logs compared with each other
    compare     every `COMPARE_EVENTS` events: all logs, entry by entry, and all limits; and one node's platter in turn

The **ghost log** is what has been committed, by anybody, ever: per shard and index the entry's term, and the term of
the leader that committed it. The **ghost disk** is what a power cut at this moment would leave (`SimulatedDisk.survivor`).

Caveat: what is compared between logs is the term and checksum of entries; equal terms with different bytes would be seen by
`compare` and by the hashes of states, not by `look`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from raftcache.errors import Corruption, UnsupportedVersion
from raftcache.ids import Index, ReplicaId, ShardId, Term
from raftcache.node.replica import Replica
from raftcache.raft.configuration import decode_configuration
from raftcache.raft.core import Raft
from raftcache.raft.messages import (
    AppendReply,
    Configuration,
    EntryKind,
    HardState,
    Message,
    RequestVote,
    Role,
    VoteReply,
)
from raftcache.raft.quorum import majority_of
from raftcache.storage.wal import ReplicaLog, Wal
from tests.simulation.ghost_disk import entry_survives, hard_state_left, log_left
from tests.simulation.limits import over_limits

if TYPE_CHECKING:
    from tests.simulation.nodes import SimulatedNode
    from tests.simulation.world import World

COMPARE_EVENTS = 2_000
TERMS_REMEMBERED = 4
"""Acknowledgements are kept for so many terms of each replica: older ones were repeated in newer terms, or are void."""


@dataclass(slots=True)
class _Seen:
    """A replica as it was after the last event that changed it."""

    raft: Raft
    shard: ShardId
    term: int = 0
    role: Role = Role.FOLLOWER
    commit: int = 0
    last_index: int = 0
    last_term: int = 0
    applied: int = -1


@dataclass(slots=True)
class _Promises:
    """What a replica has told others, and may therefore never forget."""

    term: int = 0
    vote: int = 0
    """In `term`."""
    acknowledged: dict[int, int] = field(default_factory=dict)
    """Term of the acknowledgement -> index: it holds what the leader of that term had up to there."""


@dataclass(slots=True)
class _GhostLog:
    """What is committed in one shard."""

    terms: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Index -> term of the entry, term in which it was committed."""
    top: int = 0
    acknowledged: int = 0
    """The newest index of which a client knows."""
    leaders: dict[int, int] = field(default_factory=dict)
    states: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Applied index -> what identifies the state there."""


class Ghost:
    """See the module. The world's; calls `world.fail`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._logs: dict[ShardId, _GhostLog] = {}
        self._seen: dict[ReplicaId, _Seen] = {}
        self._keys: dict[ReplicaId, tuple[object, ...]] = {}
        """The same, to be compared at once: it is done after every event."""
        self._promises: dict[ReplicaId, _Promises] = {}
        self._votes: dict[tuple[ReplicaId, int], int] = {}
        """Every vote that ever left: (voter, term) -> candidate."""
        self._wals: dict[int, Wal] = {}
        """The log of each node's present or last process."""
        self._left: dict[int, Wal] = {}
        """What is on the platters of nodes that are down."""
        self._looks = 0
        self._turn = 0
        """The node whose platter is read next, while it runs."""
        self.tally: dict[str, int] = {}
        """How often what happened: events of engines, faults, checks."""

    def log(self, shard: ShardId) -> _GhostLog:
        return self._logs.setdefault(shard, _GhostLog())

    def wal_of(self, node: SimulatedNode) -> Wal | None:
        """The node's log: as it runs, or as it is on the platter."""
        engine = node.engine
        return engine.wal if engine is not None else self._left.get(node.node)

    def configurations(self, replica: ReplicaId) -> list[Configuration]:
        """Those that the replica knew when it last ran."""
        seen = self._seen.get(replica)
        return [each for _, each in seen.raft._configurations] if seen is not None else []

    def standing(self, shard: ShardId) -> dict[ReplicaId, tuple[tuple[int, int], Configuration]]:
        """Of each replica of the shard, when it last ran: term and index of its last entry, and its configuration."""
        return {
            replica: ((seen.last_term, seen.last_index), seen.raft.configuration)
            for replica, seen in self._seen.items()
            if seen.shard == shard
        }

    # --- What clients see ---------------------------------------------------------------------------------------------

    def written(self, node: SimulatedNode, shard: ShardId, index: Index) -> None:
        """A write was acknowledged: its entry is committed, and `_on_commit` found it on a quorum's platters."""
        ghost = self.log(shard)
        if index > ghost.top:
            # Perhaps it was committed by this node, and in this very event.
            self.look(node)
        if index > ghost.top:
            self._world.fail(
                "acknowledged too early", f"shard {shard}: {index} is acknowledged, committed is {ghost.top}"
            )
        ghost.acknowledged = max(ghost.acknowledged, index)

    def newest(self, shard: ShardId) -> int:
        """What a linearizable read that begins now must see."""
        return self.log(shard).acknowledged

    def read(self, shard: ShardId, index: Index, newest: int) -> None:
        """A read was answered at a read index; `newest` is what had been acknowledged when it began."""
        if index < newest:
            self._world.fail("stale read", f"shard {shard}: read at {index}, {newest} had been acknowledged before")

    def count(self, what: str) -> None:
        self.tally[what] = self.tally.get(what, 0) + 1

    # --- After every event --------------------------------------------------------------------------------------------

    def look(self, node: SimulatedNode) -> None:
        """At the replicas of the node that changed."""
        host = node.host
        if host is None or host.engine is None:
            return
        keys = self._keys
        for replica_id, replica in host.engine.replicas.items():
            raft = replica.raft
            log = raft.log
            key = (log.commit, log.last_index, log.last_term, log.applied, raft, raft.term, raft.role, replica.stopped)
            if keys.get(replica_id) != key:
                keys[replica_id] = key
                self._changed(node, replica, self._seen.get(replica_id))
        self._looks += 1
        if self._looks % COMPARE_EVENTS == 0:
            self.compare()

    def _changed(self, node: SimulatedNode, replica: Replica, seen: _Seen | None) -> None:
        raft, log, ghost = replica.raft, replica.raft.log, self.log(replica.shard)
        if replica.stopped and not replica.rebuilding:
            self._fail("assertion", replica, f"stopped: {replica.stopped}")
            return
        if seen is None or seen.raft is not raft:
            seen = _Seen(raft, replica.shard, raft.term, Role.FOLLOWER, 0, log.last_index, log.last_term)
            self._seen[replica.replica_id] = seen
            engine = node.engine
            assert engine is not None, "it has replicas"
            self._wals[node.node] = engine.wal
        if raft.term < seen.term or log.commit < seen.commit:
            self._fail("going back", replica, f"term {seen.term} -> {raft.term}, commit {seen.commit} -> {log.commit}")
        if raft.role is not seen.role or raft.term != seen.term:
            self._on_role(replica, ghost)
        elif raft.role is Role.LEADER and log.last_index < seen.last_index:
            # Raft §5.3, Leader Append-Only.
            self._fail("leader append-only", replica, f"the log shrinks from {seen.last_index} to {log.last_index}")
        if log.last_index != seen.last_index or log.last_term != seen.last_term:
            self._on_log(replica, ghost, seen)
        if log.commit > seen.commit:
            self._on_commit(replica, ghost, seen.commit)
        machine = replica.machine
        if machine is not None and log.applied != seen.applied and machine.applied_index == log.applied:
            # Raft §5.4.3, State Machine Safety: at an equal index equal states.
            state = (machine.state_hash, machine.revision, machine.clock_ms, machine.session_count)
            if ghost.states.setdefault(log.applied, state) != state:
                self._fail(
                    "state hashes", replica, f"at index {log.applied}: {state}, elsewhere {ghost.states[log.applied]}"
                )
        seen.term, seen.role, seen.commit = raft.term, raft.role, log.commit
        seen.last_index, seen.last_term, seen.applied = log.last_index, log.last_term, log.applied

    def _on_role(self, replica: Replica, ghost: _GhostLog) -> None:
        raft = replica.raft
        if raft.role is not Role.LEADER:
            return
        self.count("elections won")
        # Raft §5.2, Election Safety: at most one leader per term.
        first = ghost.leaders.setdefault(raft.term, replica.replica_id)
        if first != replica.replica_id:
            self._fail("election safety", replica, f"leads term {raft.term}, as {first} did")
        # Raft §5.4, Leader Completeness: what was committed in an earlier term is in its log.
        for index in range(ghost.top, max(0, ghost.top - 100), -1):
            term, committed_in = ghost.terms.get(index, (0, raft.term))
            mine = raft.log.term(Index(index))
            if committed_in < raft.term and mine != term and (mine is not None or index > raft.last_index):
                self._fail(
                    "leader completeness",
                    replica,
                    f"leads term {raft.term} without entry {index} of term {term}, committed in term {committed_in}; "
                    f"its own there is of term {mine}",
                )
                return

    def _on_log(self, replica: Replica, ghost: _GhostLog, seen: _Seen) -> None:
        raft = replica.raft
        if raft.last_index < seen.last_index or raft.log.term(Index(seen.last_index)) not in (seen.last_term, None):
            self.count("truncations")
            floor = self._floor(replica.replica_id, ghost)
            kept, committed = raft.log.term(Index(floor)), ghost.terms.get(floor, (None, 0))[0]
            if raft.last_index < floor or (kept is not None and committed is not None and kept != committed):
                self._fail(
                    "acknowledged entries",
                    replica,
                    f"{floor} of term {committed} was acknowledged; there is {kept} now, and the log ends at {raft.last_index}",
                )
            self._configurations_in_log(replica)
        # Thesis §4.1: a change of more than one voter at a time needs a joint configuration.
        configurations = raft._configurations
        for (_, one), (_, other) in pairwise(configurations):
            if not _overlap(one, other):
                self._fail("configurations", replica, f"{one} and {other} have majorities that do not overlap")

    def _configurations_in_log(self, replica: Replica) -> None:
        """Thesis §4.1: the latest configuration *in the log* is in force, so one that was truncated is not."""
        log = replica.raft.log
        for index, configuration in replica.raft._configurations:
            if index < log.first_index():
                continue  # it came with a checkpoint, or its entry was compacted
            found = log.entries(index, Index(index + 1), 1) if index <= log.last_index else []
            if (
                not found
                or found[0].kind != EntryKind.CONFIGURATION
                or decode_configuration(found[0].data) != configuration
            ):
                self._fail("configurations", replica, f"{configuration} of index {index} is not in the log any more")

    def _on_commit(self, replica: Replica, ghost: _GhostLog, before: int) -> None:
        raft, commit, news = replica.raft, replica.raft.commit, False
        for index in range(max(before, raft.log.first_index() - 1) + 1, commit + 1):
            term = raft.log.term(Index(index))
            if term is None:
                continue
            known = ghost.terms.setdefault(index, (term, raft.term))
            if known[0] != term:
                self._fail(
                    "committed entries", replica, f"entry {index} of term {term} is committed, as one of {known[0]} was"
                )
                return
            news = news or index > ghost.top
        if not news:
            return
        ghost.top = commit
        if raft.role is not Role.LEADER:
            return
        # Raft §5.4.2: only entries of the own term are committed by counting.
        if raft.log.term(commit) != raft.term:
            self._fail(
                "commit of an old term", replica, f"{commit} of term {raft.log.term(commit)} in term {raft.term}"
            )
        # Promise 1: what is committed, and hence what may be acknowledged, survives a power cut on a quorum.
        for half in (raft.configuration.voters, raft.configuration.voters_outgoing):
            durable = [voter for voter in half if self._survives(voter, commit, raft.term)]
            if half and len(durable) < majority_of(len(half)):
                self._fail(
                    "durable on a quorum",
                    replica,
                    f"entry {commit} is committed in term {raft.term}; of the voters {half} only {durable} have it on "
                    "their platters",
                )

    # --- Promises -----------------------------------------------------------------------------------------------------

    def promised(self, node: SimulatedNode, message: Message) -> None:
        """A message leaves that says: this is on my disk."""
        if isinstance(message, AppendReply):
            if not message.rejected:
                self._acknowledged(node, message)
        elif isinstance(message, VoteReply):
            if message.granted and not message.pre:
                self._voted(node, message.from_, message.term, message.to)
        elif isinstance(message, RequestVote) and not message.pre:
            self._voted(node, message.from_, message.term, message.from_)

    def _acknowledged(self, node: SimulatedNode, message: AppendReply) -> None:
        promises = self._promises.setdefault(message.from_, _Promises())
        acknowledged = promises.acknowledged
        acknowledged[message.term] = max(acknowledged.get(message.term, 0), message.index)
        if len(acknowledged) > TERMS_REMEMBERED:
            del acknowledged[min(acknowledged)]
        engine = node.engine
        assert engine is not None, "nobody else sends"
        if not entry_survives(node.disk, engine.wal, message.from_, message.index):
            self._world.fail(
                "promise before fsync",
                f"replica {message.from_} on node {node.node} acknowledges {message.index}, which is not on its platter",
            )

    def _voted(self, node: SimulatedNode, voter: ReplicaId, term: Term, candidate: ReplicaId) -> None:
        self.count("votes")
        # Raft §5.2: one vote per term, across restarts.
        first = self._votes.setdefault((voter, term), candidate)
        if first != candidate:
            self._world.fail("two votes in a term", f"{voter} votes for {candidate} in term {term}, and for {first}")
        promises = self._promises.setdefault(voter, _Promises())
        if term >= promises.term:
            promises.term, promises.vote = term, candidate
        kept = hard_state_left(node, self._world.cluster).get(voter, HardState())
        if kept.term < term or (kept.term == term and kept.vote != candidate):
            self._world.fail(
                "promise before fsync", f"{voter} votes for {candidate} in term {term}; on its platter is {kept}"
            )

    def _floor(self, replica: ReplicaId, ghost: _GhostLog) -> int:
        """The last committed entry that the replica must have, because it acknowledged it."""
        floor = 0
        for term, acknowledged in self._promises.get(replica, _Promises()).acknowledged.items():
            index = min(acknowledged, ghost.top)
            # What was committed in a later term need not be what this replica had when it acknowledged.
            while index > floor and ghost.terms.get(index, (0, 0))[1] > term:
                index -= 1
            floor = max(floor, index)
        return floor

    def _survives(self, replica: ReplicaId, index: Index, term: int) -> bool:
        """Whether the replica, wherever it is, has the entry of this term on its platter; or had, before a bit flipped in the
        one log that may be damaged: its node answers no more, so nobody is elected who lacks what it acknowledged."""
        for node in self._world.nodes.values():
            engine, wal = node.engine, self.wal_of(node)
            if wal is not None and replica in wal.replicas():
                log = wal.log(replica)
                if index <= log.start_index:
                    return True
                return log.term(index) == term and (engine is None or entry_survives(node.disk, wal, replica, index))
        if not any(node.flipped_segment >= 0 and self.wal_of(node) is None for node in self._world.nodes.values()):
            return False
        promises = self._promises.get(replica)
        return promises is not None and promises.acknowledged.get(term, 0) >= index

    # --- Ends and starts ----------------------------------------------------------------------------------------------

    def after_end(self, node: SimulatedNode) -> None:
        """What the platter holds now of everything that was promised."""
        self.count("ends")
        self._left.pop(node.node, None)
        if node.node not in self._wals:
            return
        try:
            left = log_left(node, self._world.cluster)
        except (Corruption, UnsupportedVersion) as damage:
            if self._world.plan.flips_node != node.node:
                self._world.fail("corruption", f"after the end of node {node.node}: {damage}")
            return
        self._left[node.node] = left
        self._check_kept(node, left)
        self.compare()

    def after_start(self, node: SimulatedNode) -> None:
        """What the new process knows of everything that was promised."""
        self._left.pop(node.node, None)
        if node.engine is not None and node.node in self._wals:
            if node.flipped_segment in node.engine.wal._tail.segments:
                self._world.fail(
                    "unnoticed damage",
                    f"node {node.node} goes on with segment {node.flipped_segment}, where a bit flipped",
                )
            self._check_kept(node, node.engine.wal)
            self._wals[node.node] = node.engine.wal
            self.look(node)
            self.compare()

    def _check_kept(self, node: SimulatedNode, wal: Wal) -> None:
        for replica in self._wals[node.node].replicas():
            promises = self._promises.get(replica)
            if promises is None or replica in wal.removed():
                continue
            if replica not in wal.replicas():
                self._world.fail("forgotten", f"node {node.node} knows nothing of its replica {replica} any more")
                return
            kept = wal.hard_state(replica)
            if kept.term < promises.term or (kept.term == promises.term and kept.vote != promises.vote):
                self._world.fail(
                    "forgotten", f"{replica} voted for {promises.vote} in term {promises.term}, and knows of {kept}"
                )
            log = wal.log(replica)
            floor = self._floor(replica, self.log(log.shard))
            if log.last_index() < floor:
                self._world.fail("forgotten", f"{replica} acknowledged {floor}, and its log ends at {log.last_index()}")

    # --- Now and then -------------------------------------------------------------------------------------------------

    def compare(self) -> None:
        """All logs with each other, those of nodes that are down included, and everything that has a limit."""
        self.count("log comparisons")
        self._turn = self._turn % len(self._world.nodes) + 1
        shards: dict[ShardId, list[ReplicaLog]] = {}
        for node in self._world.nodes.values():
            engine, wal = node.engine, self.wal_of(node)
            wals = [wal] if wal is not None else []
            if engine is not None and node.node in self._wals and node.node == self._turn:
                wals += self._platter(node)
            for each in wals:
                for replica in each.replicas():
                    log = each.log(replica)
                    shards.setdefault(log.shard, []).append(log)
            if engine is not None:
                for excess in over_limits(engine):
                    self._world.fail("bounded memory", f"node {node.node}: {excess}")
        for shard, logs in shards.items():
            for place, one in enumerate(logs):
                for other in logs[place + 1 :]:
                    if not _match(one, other):
                        self._world.fail(
                            "log matching",
                            f"the logs of {one.replica} and {other.replica} of shard {shard} part and meet",
                        )

    def _platter(self, node: SimulatedNode) -> list[Wal]:
        """What a power cut now would leave of the node's log, if anything can be read: it must hold what was promised."""
        try:
            left = log_left(node, self._world.cluster)
        except (Corruption, UnsupportedVersion) as damage:
            if self._world.plan.flips_node != node.node:
                self._world.fail("corruption", f"a power cut of node {node.node} now: {damage}")
            return []
        self._check_kept(node, left)
        return [left]

    def _fail(self, kind: str, replica: Replica, text: str) -> None:
        self._world.fail(kind, f"shard {replica.shard}, replica {replica.replica_id}: {text}")


def _match(one: ReplicaLog, other: ReplicaLog) -> bool:
    """Raft §5.3, Log Matching: where two logs have an entry of one term at one index, they agree on all before it."""
    lo = int(max(one.start_index, other.start_index))
    hi = int(min(one.last_index(), other.last_index()))
    mine, others = one._terms, other._terms
    while hi > lo and mine[hi - one.start_index - 1] != others[hi - other.start_index - 1]:
        hi -= 1
    if hi <= lo:
        return True
    first, second = (slice(lo - log.start_index, hi - log.start_index) for log in (one, other))
    return mine[first] == others[second] and one._crcs[first] == other._crcs[second]


def _overlap(one: Configuration, other: Configuration) -> bool:
    """Whether any majority of one meets any majority of the other; for each pair of their halves, one must."""
    if not one.voters or not other.voters:
        return True

    def meet(a: tuple[ReplicaId, ...], b: tuple[ReplicaId, ...]) -> bool:
        return majority_of(len(a)) + majority_of(len(b)) > len({*a, *b})

    halves = [[half for half in (each.voters, each.voters_outgoing) if half] for each in (one, other)]
    return any(meet(a, b) for a in halves[0] for b in halves[1])
