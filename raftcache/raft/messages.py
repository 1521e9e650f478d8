"""What goes into and comes out of the Raft core: entries, configurations, messages, and the one output, `Ready`.

Rules of this file:
- plain slotted dataclasses, no behaviour beyond construction; nothing here knows bytes on a wire;
- a replica addresses peers by `ReplicaId`; the shard is the shell's business;
- ranges are half-open `[lo, hi)` unless a name says `last`.

Sources: Raft (Ongaro & Ousterhout, extended version) Figure 2; Ongaro's thesis sections 3 to 6.
"""

from dataclasses import dataclass, field
from enum import IntEnum

from raftcache.ids import NO_REPLICA, Index, ReplicaId, Term


class EntryKind(IntEnum):
    """What an entry's `data` means. The values are part of the log format."""

    COMMANDS = 0
    """Opaque to the core: a batch of commands for the state machine."""
    CONFIGURATION = 1
    """An encoded `Configuration` (see `configuration.py`), in force from the moment it is appended."""
    EMPTY = 2
    """A leader's first entry of its term. Thesis §6.4: until it commits, no read index is served."""


@dataclass(slots=True)
class Entry:
    """One log entry. `data` is opaque to the core and usually carries many commands."""

    term: Term
    index: Index
    kind: EntryKind
    data: bytes


@dataclass(slots=True, frozen=True)
class Configuration:
    """The members of a group. All tuples are sorted and free of duplicates.

    Joint (thesis §4.3) while `voters_outgoing` is not empty: elections and commits then need a majority of
    `voters` *and* of `voters_outgoing`. `learners_next` are outgoing voters that become learners when the
    joint configuration is left.
    """

    voters: tuple[ReplicaId, ...] = ()
    voters_outgoing: tuple[ReplicaId, ...] = ()
    learners: tuple[ReplicaId, ...] = ()
    learners_next: tuple[ReplicaId, ...] = ()


@dataclass(slots=True, frozen=True)
class HardState:
    """What a replica must remember across a crash, apart from its log (commit is deliberately not here)."""

    term: Term = Term(0)
    vote: ReplicaId = NO_REPLICA


@dataclass(slots=True, frozen=True)
class SnapshotMeta:
    """Names a snapshot: the state after applying `index` (of `term`), under `configuration`."""

    index: Index
    term: Term
    configuration: Configuration


# --- Messages. Every message has `to`, `from_` and the sender's `term`. -------------------------------------------


@dataclass(slots=True)
class Append:
    """Leader to follower: the entries after (`previous_index`, `previous_term`), and the leader's commit index.

    May carry no entries (a probe, or news of a commit index).
    """

    to: ReplicaId
    from_: ReplicaId
    term: Term
    previous_index: Index
    previous_term: Term
    commit: Index
    entries: list[Entry] = field(default_factory=list)


@dataclass(slots=True)
class AppendReply:
    """Follower to leader. Leaves only when the entries it speaks of are durable.

    Accepted: `index` is the last index known to match *and be durable*. Rejected: `index` is the refused
    `previous_index`; `hint_index` / `hint_term` name the largest entry at or below it whose term is at most
    the refused `previous_term`.
    """

    to: ReplicaId
    from_: ReplicaId
    term: Term
    index: Index
    rejected: bool = False
    hint_index: Index = Index(0)
    hint_term: Term = Term(0)


@dataclass(slots=True)
class Heartbeat:
    """Leader to every other member, each heartbeat interval. `commit` is clamped to what the follower has.

    `read_position` is the position of the newest pending read (0 = none): thesis §6.4. `level` says that `commit` is not
    clamped but the leader's own: who has applied it lacks nothing. (Without it a follower that receives heartbeats and
    nothing else could not tell, and would take itself for level for ever.)
    """

    to: ReplicaId
    from_: ReplicaId
    term: Term
    commit: Index
    read_position: int = 0
    level: bool = False


@dataclass(slots=True)
class HeartbeatReply:
    """Echoes `read_position`. A stale-term reply makes an old leader step down."""

    to: ReplicaId
    from_: ReplicaId
    term: Term
    read_position: int = 0


@dataclass(slots=True)
class RequestVote:
    """Candidate to voters. With `pre`, `term` is the term that the sender *would* campaign in (thesis §9.6).

    `transfer` marks a campaign that the leader itself asked for; it passes the lease check (thesis §4.2.3).
    """

    to: ReplicaId
    from_: ReplicaId
    term: Term
    last_index: Index
    last_term: Term
    pre: bool = False
    transfer: bool = False


@dataclass(slots=True)
class VoteReply:
    """Answers `RequestVote`; leaves only when the vote is durable. `pre` echoes the request's."""

    to: ReplicaId
    from_: ReplicaId
    term: Term
    granted: bool
    pre: bool = False


@dataclass(slots=True)
class InstallSnapshot:
    """Leader to a follower whose next entry is compacted. The shell ships the checkpoint file that `meta` names
    (or a newer one, and then says so in `meta`) and steps this message at the receiver once the file is there and verified."""

    to: ReplicaId
    from_: ReplicaId
    term: Term
    meta: SnapshotMeta


@dataclass(slots=True)
class TimeoutNow:
    """Leader to its chosen successor: campaign at once (thesis §3.10)."""

    to: ReplicaId
    from_: ReplicaId
    term: Term


@dataclass(slots=True)
class ReadIndexRequest:
    """Follower to leader: a read index for the follower's own reads. `context` is the follower's, echoed."""

    to: ReplicaId
    from_: ReplicaId
    term: Term
    context: int


@dataclass(slots=True)
class ReadIndexReply:
    """Leader to follower: everything committed when the request arrived is at or below `index`."""

    to: ReplicaId
    from_: ReplicaId
    term: Term
    context: int
    index: Index


@dataclass(slots=True)
class SnapshotRequest:
    """Follower to leader: my state is lost though my log is not; send a snapshot of at least `min_index`."""

    to: ReplicaId
    from_: ReplicaId
    term: Term
    min_index: Index


Message = (
    Append
    | AppendReply
    | Heartbeat
    | HeartbeatReply
    | RequestVote
    | VoteReply
    | InstallSnapshot
    | TimeoutNow
    | ReadIndexRequest
    | ReadIndexReply
    | SnapshotRequest
)


@dataclass(slots=True)
class ReadState:
    """A read that may be served once `index` is applied locally. `context` is what `read_index` was given."""

    context: int
    index: Index


class Role(IntEnum):
    """What a replica is doing now. The values appear in metrics."""

    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


@dataclass(slots=True)
class Ready:
    """All that the shell owes the core since the last one.

    The shell (1) sends `messages` at once; (2) makes `hard_state`, `entries` and `snapshot` durable *together or in
    that order*, then calls `Raft.persisted(ready)`, which counts the own vote / own acknowledgement; only then (3)
    sends `messages_after_persist`; (4) applies `committed` in order and calls `Raft.applied_to(index)`. Several `Ready`s
    may be in flight; they are persisted in the order in which they were taken.
    """

    number: int
    """1, 2, 3 ... per replica and life of the process."""
    hard_state: HardState | None = None
    """Set when term or vote changed."""
    entries: list[Entry] = field(default_factory=list)
    """To append. Where `entries[0].index` is at or below the log's last index, the log is cut there first."""
    snapshot: SnapshotMeta | None = None
    """A snapshot that the shell has received and must now install, atomically, before `entries`."""
    snapshot_keeps_log: bool = False
    """The `snapshot` only brings back a lost state: the log, which agrees with it, must *not* be reset, as entries beyond
    the snapshot may have been acknowledged. The log may be compacted up to it."""
    committed: list[Entry] = field(default_factory=list)
    """To apply, in order. Never above what is durable here."""
    messages: list[Message] = field(default_factory=list)
    messages_after_persist: list[Message] = field(default_factory=list)
    """Promises of durability (votes, acknowledgements): they leave only after the fsync."""
    read_states: list[ReadState] = field(default_factory=list)
    reads_dropped: list[int] = field(default_factory=list)
    """Contexts of reads that will never be answered (the leader changed, or did not answer); they may be asked again."""
    must_sync: bool = False
    """True where `hard_state`, `entries` or `snapshot` needs a durable write before `persisted`."""
