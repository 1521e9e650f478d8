"""The bug zoo: deliberately broken builds, each a named patch that is applied from outside. No broken branch ships.

    with broken("no_fsync"): ...        for a while, in this process (the simulator, tests)
    infect("no_fsync")                  for good, before the product starts (a launcher of real processes)

Rules of this file:
- a bug is one that somebody made, somewhere, in a Raft implementation or a database; `like` names where, or the rule broken;
- a patch replaces as little as possible, and by name: one whose target is not there any more raises, and does not pass as
  a bug that was not found;
- it needs nothing but the product: whatever runs the product can keep it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from raftcache.errors import NotLeader
from raftcache.ids import NO_REPLICA, Index, ReplicaId, ShardId, Term
from raftcache.kv.machine import Machine
from raftcache.kv.operations import SessionStamp
from raftcache.kv.sessions import Sessions
from raftcache.node.engine import Engine
from raftcache.node.lifecycle import Lifecycle
from raftcache.node.replica import Replica
from raftcache.raft import configuration, core
from raftcache.raft.configuration import ConfigurationChange, is_voter
from raftcache.raft.core import Raft
from raftcache.raft.log import RaftLog
from raftcache.raft.messages import (
    AppendReply,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    Ready,
    RequestVote,
    Role,
)
from raftcache.raft.quorum import joint_index, majority_of
from raftcache.storage import wal_format, wal_recovery
from raftcache.storage.disk import OsFile
from raftcache.storage.hard_state import HardStateFiles
from raftcache.storage.replica_log import ReplicaLog
from raftcache.storage.simulated_disk import SimulatedFile
from raftcache.storage.state import StateStore
from raftcache.storage.wal import Wal
from raftcache.storage.wal_format import BatchHeader


class Patches:
    """What was replaced, to put it back."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> Any:
        """Replaces the attribute, which must be there and be called alike; returns what it was."""
        old = getattr(owner, name)
        if inspect.isfunction(old):
            # A bug that cannot even be called is caught by anybody.
            assert _needed(value) == _needed(old), f"{name} needs {_needed(old)} arguments by now"
        self._undo.append((owner, name, old))
        setattr(owner, name, value)
        return old

    def undo(self) -> None:
        for owner, name, old in reversed(self._undo):
            setattr(owner, name, old)
        self._undo.clear()


def _needed(function: Callable[..., Any]) -> int:
    return sum(each.default is each.empty for each in inspect.signature(function).parameters.values())


@dataclass(frozen=True, slots=True)
class Bug:
    """One broken build."""

    name: str
    what: str
    like: str
    apply: Callable[[Patches], None]


BUGS: dict[str, Bug] = {}


def _bug(what: str, like: str) -> Callable[[Callable[[Patches], None]], Callable[[Patches], None]]:
    def register(apply: Callable[[Patches], None]) -> Callable[[Patches], None]:
        BUGS[apply.__name__] = Bug(apply.__name__, what, like, apply)
        return apply

    return register


@contextmanager
def broken(name: str) -> Iterator[None]:
    """The product has this bug inside the block."""
    patches = Patches()
    try:
        BUGS[name].apply(patches)
        yield
    finally:
        patches.undo()


def infect(name: str) -> None:
    """The product has this bug from now on."""
    BUGS[name].apply(Patches())


# --- Disks ----------------------------------------------------------------------------------------------------------


@_bug("the disk says that it has synced, and has not", "a controller that lies; pitfall 20")
def no_fsync(patch: Patches) -> None:
    patch.set(SimulatedFile, "fdatasync", lambda self: None)
    patch.set(OsFile, "fdatasync", lambda self: None)


@_bug("checkpoints are published without being synced", "rename before fsync")
def checkpoint_not_synced(patch: Patches) -> None:
    for kind in (SimulatedFile, OsFile):

        def fdatasync(self: Any, original: Callable[[Any], None] = kind.fdatasync) -> None:
            if "checkpoint" not in self.path:
                original(self)

        patch.set(kind, "fdatasync", fdatasync)


@_bug("the log is read back without looking at its checksums", "pitfall 38; NATS, NuRaft #185")
def log_without_checksums(patch: Patches) -> None:
    original = wal_format.read_batch

    def read_batch(content: bytes, offset: int, seed: int) -> BatchHeader | None:
        checked = original(content, offset, seed)
        if checked is not None or offset + wal_format.BATCH_HEADER_BYTES > len(content):
            return checked
        crc, magic, length, previous, sequence, synced = wal_format._BATCH_HEADER.unpack_from(content, offset)
        end = offset + wal_format.BATCH_HEADER_BYTES + length
        if magic != wal_format.BATCH_MAGIC or end > len(content):
            return None
        return BatchHeader(offset, end, crc, previous, sequence, synced)

    patch.set(wal_recovery, "read_batch", read_batch)


@_bug("recovery does not cut what a new leader replaced", "pitfall 26; etcd #22442")
def truncation_not_replayed(patch: Patches) -> None:
    original = wal_recovery._Replay._entries

    def keep(self: Any, record: Any, segment: int) -> None:
        log = self._recovered.logs[record.replica]
        if record.moved or record.first_index > log.last_index():
            original(self, record, segment)

    patch.set(wal_recovery._Replay, "_entries", keep)


# --- Promises -------------------------------------------------------------------------------------------------------


@_bug("the term of a vote is stored, whom it was for is not", "PySyncObj; pitfall 20")
def vote_not_persisted(patch: Patches) -> None:
    original = HardStateFiles.set
    patch.set(
        HardStateFiles, "set", lambda self, replica, state: original(self, replica, HardState(state.term, NO_REPLICA))
    )


@_bug("votes are stored by the housekeeping, a second later", "hard state apart from the log's sync")
def vote_saved_late(patch: Patches) -> None:
    def sync(self: Wal) -> None:
        self._tail.sync()

    def mark_synced(self: Wal) -> None:
        self._tail.sync()
        self._save_hard_state()

    patch.set(Wal, "sync", sync)
    patch.set(Wal, "mark_synced", mark_synced)


@_bug("votes and acknowledgements leave before the fsync", "pitfall 20")
def promise_before_fsync(patch: Patches) -> None:
    original = Raft.ready

    def ready(self: Raft) -> Ready:
        made = original(self)
        made.messages += made.messages_after_persist
        made.messages_after_persist = []
        return made

    patch.set(Raft, "ready", ready)


@_bug("a follower acknowledges what it has, not what is durable", "pitfall 21; yugabyte #32875")
def ack_above_durable(patch: Patches) -> None:
    def acknowledge(self: Raft, index: Index) -> None:
        self._owed.messages.append(AppendReply(self.leader, self.id, self.term, index))

    patch.set(Raft, "_acknowledge", acknowledge)


@_bug("a leader counts its own copy before it is durable", "pitfall 23")
def leader_counts_itself_early(patch: Patches) -> None:
    original = Raft._append_own

    def append_own(
        self: Raft, kind: EntryKind, data: bytes, configuration: Configuration | None = None
    ) -> tuple[Term, Index]:
        appended = original(self, kind, data, configuration)
        if self.id in self.progress:
            self.progress[self.id].maybe_update(self.last_index)
        return appended

    patch.set(Raft, "_append_own", append_own)


# --- Elections and replication ----------------------------------------------------------------------------------------


@_bug("a voter votes for everybody who asks", "Raft §5.2")
def votes_for_everybody(patch: Patches) -> None:
    original = Raft._on_request_vote

    def on_request_vote(self: Raft, message: RequestVote) -> None:
        if not message.pre:
            self.vote, self.leader = NO_REPLICA, NO_REPLICA
        original(self, message)

    patch.set(Raft, "_on_request_vote", on_request_vote)


@_bug("a vote does not ask how complete the candidate's log is", "Raft §5.4.1")
def vote_without_log_check(patch: Patches) -> None:
    patch.set(RaftLog, "is_up_to_date", lambda self, *, last_term, last_index: True)


@_bug("entries of older terms are committed by counting", "Raft figure 8; pitfall 18")
def commit_of_old_term(patch: Patches) -> None:
    def maybe_commit(self: Raft) -> None:
        incoming = [self.progress[voter].match for voter in self.configuration.voters]
        outgoing = [self.progress[voter].match for voter in self.configuration.voters_outgoing]
        index = joint_index(incoming, outgoing)
        if index > self.log.commit:
            self.log.commit_to(Index(index))
            self._on_leader_commit()

    patch.set(Raft, "_maybe_commit", maybe_commit)


@_bug("every Append cuts the log behind it", "pitfall 19")
def truncate_always(patch: Patches) -> None:
    def drop_known(self: Raft, entries: list[Entry]) -> list[Entry]:
        first = entries[0].index
        if self.log.commit < first <= self.log.last_index:
            self.log.truncate(first)
            while self._configurations[-1][0] >= first:
                self._configurations.pop()
            self._adopt_latest_configuration()
        return [entry for entry in entries if entry.index > self.log.last_index]

    patch.set(Raft, "_drop_known", drop_known)


@_bug("heartbeats carry a commit index that the follower's log need not agree with", "Raft figure 2, AppendEntries 5")
def heartbeat_commit_unclamped(patch: Patches) -> None:
    def broadcast(self: Raft, *, voters_only: bool) -> None:
        for peer in self.progress:
            if peer != self.id and not (voters_only and not is_voter(self.configuration, peer)):
                position, commit = self._reads.pending_position, self.log.commit
                self._owed.messages.append(Heartbeat(peer, self.id, self.term, commit, position, False))

    patch.set(Raft, "_broadcast_heartbeat", broadcast)


# --- Reads ------------------------------------------------------------------------------------------------------------


@_bug("a leader answers reads at once, without asking whether it still leads", "pitfall 17")
def stale_leader_reads(patch: Patches) -> None:
    def read_at_once(self: Replica, now_ns: int) -> None:
        reads, self._reads = self._reads, []
        if reads and self.machine is not None:
            for request, sink in reads:
                self._answer(request, sink, self.read(request, self.machine, self.raft.applied))

    patch.set(Replica, "ask_read_index", read_at_once)


@_bug("a leader's lease is taken for granted", "pitfall 16; tikv #964, etcd #6005")
def lease_read_without_check(patch: Patches) -> None:
    patch.set(Raft, "lease_holds", lambda self: self.role is Role.LEADER)


@_bug("a new leader serves reads before it has committed in its term", "pitfall 13; etcd #7331")
def read_before_first_commit(patch: Patches) -> None:
    has_ready = Raft.has_ready

    def open_read_round(self: Raft) -> None:
        if self._reads.waiting and self.role is Role.LEADER:
            self._reads.open_round(index=self.log.commit, tick=self._ticks)
            self._broadcast_heartbeat(voters_only=True)
            self._confirm_reads()

    patch.set(Raft, "_open_read_round", open_read_round)
    patch.set(Raft, "has_ready", lambda self: has_ready(self) or bool(self._reads.waiting))


# --- Retries, states, snapshots -----------------------------------------------------------------------------------------


@_bug("the state machine forgets what it answered to a session", "pitfall 31; etcd #14890")
def no_dedup(patch: Patches) -> None:
    admit = Sessions.admit

    def forgetful(self: Sessions, stamp: SessionStamp, index: Index, position: int) -> object:
        session = self._sessions.get(stamp.session)
        if session is not None:
            session.replies.pop(stamp.sequence, None)
        return admit(self, stamp, index, position)

    patch.set(Sessions, "admit", forgetful)


@_bug("a write that was proposed and lost its leader is reported as failed", "'when in doubt, indefinite'; Raft §8")
def failed_instead_of_unknown(patch: Patches) -> None:
    def give_up(self: Replica, index: Index) -> None:
        _, batch = self._proposed.pop(index, (Term(0), []))
        for request, sink in batch:
            if not request.answered:
                self._refuse(request, sink, NotLeader("leadership was lost"))

    def abandon(self: Replica, error: Any, original: Any = Replica.abandon) -> None:
        for index in list(self._proposed):
            give_up(self, index)
        original(self, error)

    def propose(self: Replica, now_ns: int, wall_ms: int, original: Any = Replica.propose) -> None:
        for index, (term, _) in list(self._proposed.items()):
            if term != self.raft.term:
                give_up(self, index)
        original(self, now_ns, wall_ms)

    def release(self: Replica, original: Any = Replica.release_unproposed) -> Any:
        for index in list(self._proposed):
            give_up(self, index)
        return original(self)

    patch.set(Replica, "_give_up_proposal", give_up)
    patch.set(Replica, "abandon", abandon)
    patch.set(Replica, "propose", propose)
    patch.set(Replica, "release_unproposed", release)


@_bug("a state comes back with an applied index that is one behind its data", "pitfall 42; etcd 3.5")
def applied_index_apart(patch: Patches) -> None:
    original = Lifecycle._load

    def load(self: Lifecycle, replica: ReplicaId, shard: ShardId, log: ReplicaLog, state: StateStore) -> Machine | None:
        machine = original(self, replica, shard, log, state)
        if machine is not None and log.start_index < machine.applied_index <= log.last_index():
            machine.applied_index = Index(machine.applied_index - 1)
        return machine

    patch.set(Lifecycle, "_load", load)


@_bug("a snapshot leaves out the sessions", "pitfall 24")
def sessions_left_out(patch: Patches) -> None:
    original = Engine._install

    def install(self: Engine, replica: Replica, ready: Ready) -> None:
        original(self, replica, ready)
        if replica.machine is not None:
            replica.machine._sessions = Sessions(replica.machine._sessions._limits)

    patch.set(Engine, "_install", install)


# --- Membership ---------------------------------------------------------------------------------------------------------


@_bug("a removed voter is still sent entries, and its acknowledgements count", "pitfall 7; Ongaro 2015")
def removed_node_counted(patch: Patches) -> None:
    rebuild = Raft._rebuild_progress

    def rebuild_progress(self: Raft, *, next_: Index) -> None:
        old = self.progress
        rebuild(self, next_=next_)
        if self.role is Role.LEADER:
            self.progress = dict(sorted((old | self.progress).items()))

    def maybe_commit(self: Raft) -> None:
        reached = sorted((p.match for peer, p in self.progress.items() if peer not in self.configuration.learners))
        index = reached[-majority_of(len(self.configuration.voters))]
        if index > self.log.commit and index >= self._term_start:
            self.log.commit_to(Index(index))
            self._on_leader_commit()

    patch.set(Raft, "_rebuild_progress", rebuild_progress)
    patch.set(Raft, "_maybe_commit", maybe_commit)


@_bug("a learner's acknowledgements count", "pitfall 33")
def learner_counted(patch: Patches) -> None:
    def maybe_commit(self: Raft) -> None:
        reached = sorted(progress.match for progress in self.progress.values())
        index = reached[-majority_of(len(self.configuration.voters))]
        if index > self.log.commit and index >= self._term_start:
            self.log.commit_to(Index(index))
            self._on_leader_commit()

    patch.set(Raft, "_maybe_commit", maybe_commit)


@_bug("two voters are exchanged without a joint configuration", "thesis §4.1; pitfall 3")
def joint_configuration_skipped(patch: Patches) -> None:
    original = configuration.change_configuration

    def change(current: Configuration, wanted: ConfigurationChange) -> Configuration:
        after = original(current, wanted)
        return Configuration(voters=after.voters, learners=tuple(sorted({*after.learners, *after.learners_next})))

    patch.set(core, "change_configuration", change)


@_bug("a configuration that was truncated stays in force", "thesis §4.1; pitfall 4")
def truncated_configuration_stays(patch: Patches) -> None:
    def drop_known(self: Raft, entries: list[Entry]) -> list[Entry]:
        for at, entry in enumerate(entries):
            if entry.index > self.log.last_index:
                return entries[at:]
            if self.log.term(entry.index) != entry.term:
                self.log.truncate(entry.index)
                return entries[at:]
        return []

    patch.set(Raft, "_drop_known", drop_known)
