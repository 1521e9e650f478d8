"""One replica of one Raft group: messages, ticks and proposals in, one `Ready` out. No I/O, no clock, no threads.

How to read this file: the public methods first (what the shell calls), then the roles and elections, then one section
per theme (replication, reads, membership, transfer, snapshots), each with the message handlers that belong to it.

The life of a turn. The shell calls `tick`, `step`, `propose`, `read_index` ... as often as it likes: they change the state
in memory and note what is owed. `ready()` then collects it: messages that may leave at once, what must become durable,
promises that may leave only after that, entries to apply, reads to serve. Appends and commit news are built there, not in
`propose` and `step`: however many proposals and acknowledgements a turn brought, each follower gets one message.

Rules of this file:
- **A promise leaves after the write it speaks of.** Votes, acknowledgements *and requests for votes* go into
  `messages_after_persist`. A candidate asks only once its term, its own vote and the log that it boasts of are durable.
  So no vote can be collected for a log that a crash shortens, and no replica campaigns twice in one term (were
  the request sent before the fsync, a crash and a restart could make one replica leader of one term with two logs).
- **Own vote, own acknowledgement: through the disk, too.** They count in `persisted`, never earlier. A group of one voter
  therefore needs a `Ready` round to elect itself, and one more to commit.
- **A configuration is in force from the moment it is appended**, and no longer once it is truncated (thesis §4.1).
- Peers are visited in ascending id order; randomness is injected; no set is iterated. Same input, same output.
- Assertions stay on. One that fails means that safety is lost or a peer is broken: the replica must stop.

Sources: the Raft paper, extended version ("Raft §"), Ongaro's thesis ("thesis §"), etcd-io/raft for the choices that both
leave open. Names of the roles and terms are the paper's.

Caveats:
- `lease_reads` counts ticks. A process that is paused misses ticks; the shell must check its own clock around a lease read.
- A leader that is removed leads on until the removal is committed, without counting itself (thesis §4.2.2); a replica
  whose log ends in an *uncommitted* removal of itself may still campaign, as the group might otherwise have nobody who can.
- A removed replica is no longer sent anything, so it may never learn of its removal; pre-vote and the lease keep it harmless.
- A replica that lost its state refuses logs behind its own and does not campaign itself. Where its vote is needed (the only
  other voters up have shorter logs), the group waits until its state, or another voter, is back.
- A leader learns that a follower lost acknowledged entries when it probes it: after `report_unreachable`, or with the next
  entry. The shell reports every lost connection.
"""

import random as random_module
from dataclasses import dataclass, field
from typing import assert_never

from raftcache.errors import NotLeader, Overloaded, PreconditionFailed, Unavailable
from raftcache.ids import NO_REPLICA, Index, ReplicaId, Term
from raftcache.raft.configuration import (
    ConfigurationChange,
    change_configuration,
    decode_configuration,
    encode_configuration,
    is_joint,
    is_voter,
    leave_joint,
    members_of,
    voters_of,
)
from raftcache.raft.configuration import check as check_configuration
from raftcache.raft.log import LogReader, RaftLog
from raftcache.raft.messages import (
    Append,
    AppendReply,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    ReadIndexReply,
    ReadIndexRequest,
    ReadState,
    Ready,
    RequestVote,
    Role,
    SnapshotRequest,
    TimeoutNow,
    VoteReply,
)
from raftcache.raft.progress import Inflights, Progress, ProgressState
from raftcache.raft.quorum import VoteResult, joint_index, joint_vote
from raftcache.raft.reads import ForwardedReads, ReadQueue

LEASE_MARGIN_TICKS = 2
"""A lease is this much shorter than the time for which voters refuse others: one tick because a voter's first tick may
come right after the heartbeat, one for clocks that tick at different rates."""


@dataclass(frozen=True, slots=True)
class RaftConfig:
    """The settings of one replica. Times are in ticks, sizes in payload bytes."""

    replica: ReplicaId
    election_timeout_ticks: int = 10
    """T: a follower campaigns after T to 2T-1 silent ticks, a leader without a quorum steps down after T."""
    heartbeat_ticks: int = 1
    append_bytes_max: int = 1 << 20
    """Entries per Append; a single larger entry still passes."""
    inflight_messages_max: int = 256
    """Appends with entries that may be unacknowledged per follower."""
    inflight_bytes_max: int = 8 << 20
    uncommitted_bytes_max: int = 64 << 20
    """Proposals beyond this uncommitted tail are refused; empty ones and the first always pass."""
    committed_bytes_max_per_ready: int = 4 << 20
    """Entries to apply per `Ready`, so that a long catch-up cannot starve heartbeats."""
    pre_vote: bool = True
    check_quorum: bool = True
    push_commits: bool = True
    """Whether an Append without entries tells followers of a new commit index at once, as etcd does. Otherwise they learn of
    it from the next Append, or the next heartbeat: half the messages under load, and followers lag by a heartbeat when idle. Of the
    first commit of a term they hear at once in either case: it ends the probing of their logs."""
    lease_reads: bool = False
    reads_pending_max: int = 65536
    """Reads that wait for an answer, at the leader or here."""

    def __post_init__(self) -> None:
        assert self.replica > 0, self.replica
        assert 0 < self.heartbeat_ticks < self.election_timeout_ticks, (
            f"heartbeat {self.heartbeat_ticks} must be below the election timeout {self.election_timeout_ticks}"
        )
        assert self.append_bytes_max > 0, self.append_bytes_max
        assert self.inflight_messages_max > 0, self.inflight_messages_max
        assert self.inflight_bytes_max > 0, self.inflight_bytes_max
        assert self.uncommitted_bytes_max > 0, self.uncommitted_bytes_max
        assert self.committed_bytes_max_per_ready > 0, self.committed_bytes_max_per_ready
        assert self.reads_pending_max > 0, self.reads_pending_max
        # Thesis §6.4.1: without check-quorum nobody refuses votes, and there is no lease.
        assert self.check_quorum or not self.lease_reads, "lease_reads needs check_quorum"
        assert not self.lease_reads or self.election_timeout_ticks > LEASE_MARGIN_TICKS + self.heartbeat_ticks, (
            f"no lease fits an election timeout of {self.election_timeout_ticks} ticks"
        )


@dataclass(frozen=True, slots=True)
class ProgressStatus:
    """One follower in `RaftStatus`."""

    replica: ReplicaId
    match: Index
    next: Index
    state: ProgressState
    inflight_messages: int
    inflight_bytes: int
    recent_active: bool


@dataclass(frozen=True, slots=True)
class RaftStatus:
    """What a metric or an operator wants to know; a copy."""

    replica: ReplicaId
    role: Role
    term: Term
    vote: ReplicaId
    leader: ReplicaId
    commit: Index
    applied: Index
    last_index: Index
    durable_index: Index
    configuration: Configuration
    configuration_index: Index
    uncommitted_bytes: int
    reads_pending: int
    writes_in_flight: int
    lead_transferee: ReplicaId
    snapshot_wanted: bool
    log_regressions: int
    progress: tuple[ProgressStatus, ...]


@dataclass(slots=True)
class _Owed:
    """What the next `Ready` owes the shell, but for what the log knows itself."""

    messages: list[Message] = field(default_factory=list)
    messages_after_persist: list[Message] = field(default_factory=list)
    read_states: list[ReadState] = field(default_factory=list)
    reads_dropped: list[int] = field(default_factory=list)


class Raft:
    """One replica of one group. See the module's docstring.

    Attributes without underscore may be read by anybody and are changed only here.
    """

    def __init__(
        self,
        config: RaftConfig,
        log: LogReader,
        *,
        hard_state: HardState,
        configuration: Configuration,
        configurations: list[tuple[Index, Configuration]],
        applied: Index,
        random: random_module.Random,
        vote_floor: tuple[Term, Index] | None = None,
    ) -> None:
        """A replica as its storage remembers it.

        `configuration` is the checkpoint's, `configurations` those of the log after it, ascending. `applied` is what the
        state machine holds; if the log begins after that, the state is taken for lost and a snapshot is asked for.

        `vote_floor` (term and index of the true last entry) says that the log lost its tail to damage ("limbo"): until
        the log has been refilled, this replica does not campaign and votes only for logs that reach the floor.
        """
        self.config = config
        self.id: ReplicaId = config.replica
        self.log = RaftLog(log, applied=applied)
        self._random = random

        # Hard state. Invariant: term never goes back; vote changes only with the term or from nobody.
        self.term: Term = hard_state.term
        self.vote: ReplicaId = hard_state.vote
        self._hard_state_given = (hard_state.term, hard_state.vote)
        """What the last `Ready` with a hard state carried."""

        self.role = Role.FOLLOWER
        self.leader: ReplicaId = NO_REPLICA
        """The leader of this term, as far as it is known; else 0."""
        self._votes: dict[ReplicaId, bool] = {}
        """Candidates: who answered what."""
        self._campaign_write = 0
        """Number of the `Ready` that carries the own vote of this campaign; 0 = not handed out yet."""
        self.vote_floor = vote_floor
        """Set while in limbo. The shell may forget its durable copy once this is None again."""

        # Membership. Invariant: ascending indexes; the first is committed, the last is in force.
        first = Index(log.first_index() - 1)
        self._configurations: list[tuple[Index, Configuration]] = [(first, configuration), *configurations]
        for _, each in self._configurations:
            check_configuration(each)
        assert not configurations or configurations[-1][0] <= self.log.last_index, (
            f"a configuration at {configurations[-1][0]} beyond the last index {self.log.last_index}"
        )
        self.configuration: Configuration = configuration
        self.configuration_index: Index = first
        self._adopt_latest_configuration()
        self._forget_old_configurations()

        # Timers, in ticks.
        self._ticks = 0
        self._election_elapsed = 0
        """Since the leader was heard, a vote was granted or a campaign began; for a leader, since the last quorum check."""
        self._heartbeat_elapsed = 0
        self._transfer_elapsed = 0
        self._snapshot_request_pause = 0
        """Until the next SnapshotRequest, while the state is lost."""
        self.randomized_timeout_ticks = 0
        """Silence after which this replica campaigns; drawn from [T, 2T-1] with every role or term change (Raft §5.2).
        Tests may set it."""
        self._draw_timeout()

        # Leader only.
        self.progress: dict[ReplicaId, Progress] = {}
        """All members, ascending, with oneself if one is a member; empty unless leader."""
        self._term_start: Index = Index(0)
        """The first entry of the own term."""
        self._replicate_due = False
        """Some follower may be owed an Append; `ready` looks."""
        self._uncommitted: list[tuple[Index, int]] = []
        self._uncommitted_bytes = 0
        self.lead_transferee: ReplicaId = NO_REPLICA
        """Whom leadership is being handed to; proposals are refused meanwhile."""
        self._lease_forfeited = False
        """A TimeoutNow left in this term: its receiver may campaign at any time, so no lease is safe until the next term."""
        self._lease_tick = -1
        """The tick at which the newest confirmed round of heartbeats left; -1 = none in this term."""

        # Reads.
        self._reads = ReadQueue()
        self._forwarded = ForwardedReads(first_position=random.getrandbits(62))

        # Snapshots.
        self._snapshot_wanted: Index = Index(log.first_index() - 1)
        """While the state is lost: the least snapshot that the log can continue from."""
        self.checkpoint_wanted: Index = Index(0)
        """Leader: some follower needs a snapshot of at least this index and the newest checkpoint is older (or there is
        none). The shell should make one; 0 = nobody waits."""

        self.log_regressions = 0
        """Times that a replica, this or a follower, proved to have lost entries that it had acknowledged: damage or a
        wiped disk. Never on a healthy node."""

        self._ready_number = 0
        self._owed = _Owed()

    # --- what the shell reads ---------------------------------------------------------------------------------------

    @property
    def commit(self) -> Index:
        """The last entry known to be committed."""
        return self.log.commit

    @property
    def applied(self) -> Index:
        """The last entry that the shell reported applied. Goes back only where a snapshot replaces a lost state."""
        return self.log.applied

    @property
    def last_index(self) -> Index:
        """The last entry of the log, durable or not."""
        return self.log.last_index

    @property
    def snapshot_wanted(self) -> bool:
        """Whether the state is lost and a snapshot is awaited: no campaign, no reads, no applies until then."""
        return self.log.state_lost

    def committed_in_own_term(self) -> bool:
        """Leader: whether an entry of its own term is committed, so that `commit` is truly the group's (thesis §6.4)."""
        return self.role is Role.LEADER and self.log.commit >= self._term_start

    def lease_holds(self) -> bool:
        """Leader with `lease_reads`: whether no other leader can have been elected yet, by ticks (thesis §6.4.1)."""
        return (
            self.config.lease_reads
            and self.role is Role.LEADER
            and not self._lease_forfeited
            and self._lease_tick >= 0
            and self._ticks - self._lease_tick < self.config.election_timeout_ticks - LEASE_MARGIN_TICKS
        )

    def promotable(self) -> bool:
        """Whether this replica may campaign: a voter with its state and its log intact."""
        if self.log.state_lost or self.log.restoring or self.vote_floor is not None:
            return False
        if is_voter(self.configuration, self.id):
            return True
        # Thesis §4.2.2: a server that its newest configuration leaves out still campaigns while that configuration is
        # uncommitted: it may be the only one whose log is complete enough. It does not count itself.
        return (
            self.configuration_index > self.log.commit
            and len(self._configurations) > 1
            and is_voter(self._configurations[-2][1], self.id)
        )

    def status(self) -> RaftStatus:
        """A copy of everything that metrics and operators ask for."""
        return RaftStatus(
            replica=self.id,
            role=self.role,
            term=self.term,
            vote=self.vote,
            leader=self.leader,
            commit=self.log.commit,
            applied=self.log.applied,
            last_index=self.log.last_index,
            durable_index=self.log.durable,
            configuration=self.configuration,
            configuration_index=self.configuration_index,
            uncommitted_bytes=self._uncommitted_bytes,
            reads_pending=len(self._reads) + len(self._forwarded),
            writes_in_flight=self.log.writes_in_flight,
            lead_transferee=self.lead_transferee,
            snapshot_wanted=self.log.state_lost,
            log_regressions=self.log_regressions,
            progress=tuple(
                ProgressStatus(
                    replica=peer,
                    match=progress.match,
                    next=progress.next,
                    state=progress.state,
                    inflight_messages=len(progress.inflights),
                    inflight_bytes=progress.inflights.bytes_in_flight,
                    recent_active=progress.recent_active,
                )
                for peer, progress in self.progress.items()
            ),
        )

    # --- input ------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """One unit of time has passed."""
        self._ticks += 1
        if self.role is Role.LEADER:
            self._tick_leader()
        else:
            self._tick_follower()

    def step(self, message: Message) -> None:
        """A message has arrived. Old, duplicated and reordered ones are harmless."""
        assert message.to == self.id, f"a message to {message.to} reached {self.id}"
        if message.term != self.term and not self._admit(message):
            return
        match message:  # hottest first
            case Append():
                self._on_append(message)
            case AppendReply():
                self._on_append_reply(message)
            case Heartbeat():
                self._on_heartbeat(message)
            case HeartbeatReply():
                self._on_heartbeat_reply(message)
            case ReadIndexRequest():
                self._on_read_index_request(message)
            case ReadIndexReply():
                self._on_read_index_reply(message)
            case RequestVote():
                self._on_request_vote(message)
            case VoteReply():
                self._on_vote_reply(message)
            case TimeoutNow():
                self._on_timeout_now(message)
            case SnapshotRequest():
                self._on_snapshot_request(message)
            case InstallSnapshot():
                self._on_install_snapshot(message)
            case _:
                assert_never(message)

    def propose(self, data: bytes) -> tuple[Term, Index]:
        """Appends one entry of commands; the position it will have if it commits.

        Raises (all definite, nothing was appended):
            NotLeader: this replica does not lead.
            Unavailable: leadership is being handed over.
            Overloaded: the uncommitted tail is at `uncommitted_bytes_max`.
        """
        self._check_may_propose()
        size = len(data)
        # An empty proposal costs nothing, and one into an empty tail must pass however large, or it never could.
        if size and self._uncommitted_bytes and self._uncommitted_bytes + size > self.config.uncommitted_bytes_max:
            raise Overloaded(
                f"{self._uncommitted_bytes} uncommitted bytes; the limit is {self.config.uncommitted_bytes_max}",
                metadata={"limit": "uncommitted_bytes_max"},
            )
        return self._append_own(EntryKind.COMMANDS, data)

    def propose_configuration(self, change: ConfigurationChange) -> tuple[Term, Index]:
        """Appends a membership change, in force at once. More than one voter at a time goes through a joint
        configuration, which the leader leaves on its own.

        Raises (all definite, nothing was appended):
            NotLeader, Unavailable: as for `propose`.
            PreconditionFailed: a change is under way, the leader has not committed in its term yet, or the change itself
                makes no sense.
        """
        self._check_may_propose()
        # Ongaro's correction to thesis §4.1 (2015): without a committed entry of the own term, an unfinished change of
        # an earlier leader may be lurking, and the two need not have overlapping majorities.
        if not self.committed_in_own_term():
            raise PreconditionFailed(
                f"the leader has not committed an entry of its term {self.term} yet (commit {self.log.commit}, "
                f"term begins at {self._term_start})"
            )
        # Thesis §4.1: one change at a time.
        if self.configuration_index > self.log.commit:
            raise PreconditionFailed(
                f"the change at {self.configuration_index} is not committed yet (commit {self.log.commit})"
            )
        configuration = change_configuration(self.configuration, change)
        return self._append_own(EntryKind.CONFIGURATION, encode_configuration(configuration), configuration)

    def read_index(self, context: int) -> None:
        """Asks for a linearizable read; `Ready.read_states` or `Ready.reads_dropped` will name `context`.

        Raises (definite):
            Unavailable: no leader is known, or this replica's state is lost.
            Overloaded: `reads_pending_max` reads wait already.
        """
        if self.log.state_lost or self.log.restoring:
            raise Unavailable(f"replica {self.id} waits for a snapshot")
        if self.leader == NO_REPLICA:
            raise Unavailable(f"replica {self.id} knows no leader in term {self.term}")
        if len(self._reads) + len(self._forwarded) >= self.config.reads_pending_max:
            raise Overloaded(
                f"{self.config.reads_pending_max} reads are pending", metadata={"limit": "reads_pending_max"}
            )
        if self.role is not Role.LEADER:
            self._forwarded.add(context)
        elif self.committed_in_own_term() and self.lease_holds():
            self._owed.read_states.append(ReadState(context, self.log.commit))
        else:
            self._reads.add(NO_REPLICA, context)

    def campaign(self) -> None:
        """Campaigns at once, as if the election timeout had passed; no effect for a leader, or where it may not."""
        if self.role is Role.LEADER or not self.promotable():
            return
        self._election_elapsed = 0
        if self.config.pre_vote:
            self._become_pre_candidate()
        else:
            self._become_candidate(transfer=False)

    def transfer_leadership(self, to: ReplicaId) -> None:
        """Thesis §3.10: hands leadership to the voter `to` as soon as its log is complete. Proposals are refused until it
        takes over or one election timeout has passed. A second call supersedes the first; to oneself means to stay.

        Raises (definite):
            NotLeader: this replica does not lead.
            PreconditionFailed: `to` is not a voter.
        """
        if self.role is not Role.LEADER:
            raise self._not_leader()
        if to not in self.configuration.voters:
            raise PreconditionFailed(f"{to} is not a voter of {list(self.configuration.voters)}")
        if to == self.lead_transferee:
            return
        self._abort_transfer()
        if to == self.id:
            return
        self.lead_transferee = to
        self._transfer_elapsed = 0
        self._replicate_due = True
        self._maybe_send_timeout_now()

    def request_snapshot(self, min_index: Index = Index(0)) -> None:
        """The state is lost (though the log is not): asks the leader for a snapshot of at least `min_index`. Until it is
        installed this replica votes and acknowledges, but neither campaigns nor serves. A leader steps down."""
        self.log.state_lost = True
        self._snapshot_wanted = max(min_index, Index(self.log.first_index() - 1))
        if self.role is not Role.FOLLOWER:
            self._become_follower(self.term, NO_REPLICA)
        self._drop_reads()
        self._snapshot_request_pause = 0
        self._maybe_request_snapshot()

    def report_unreachable(self, peer: ReplicaId) -> None:
        """Messages to `peer` were probably lost: stop pipelining, probe."""
        progress = self.progress.get(peer)
        if progress is not None and peer != self.id and progress.state is ProgressState.REPLICATE:
            progress.become_probe()

    def report_snapshot(self, peer: ReplicaId, ok: bool) -> None:
        """The snapshot that an InstallSnapshot to `peer` announced has arrived there, or has failed."""
        progress = self.progress.get(peer)
        if progress is None:
            return
        progress.snapshot_requested = False
        if progress.state is not ProgressState.SNAPSHOT:
            return
        if not ok:
            progress.pending_snapshot = Index(0)
        progress.become_probe()
        # Wait for the acknowledgement (it follows an installed snapshot), or for the next heartbeat's answer.
        progress.paused = True

    # --- output -----------------------------------------------------------------------------------------------------

    def has_ready(self) -> bool:
        """Whether `ready` would return anything of use."""
        owed = self._owed
        return bool(
            self.log.has_unwritten()
            or owed.messages
            or owed.messages_after_persist
            or self.log.can_apply()
            or self._replicate_due
            or owed.read_states
            or owed.reads_dropped
            or self._forwarded.waiting
            or (self._reads.waiting and self.committed_in_own_term())
            or (self.term, self.vote) != self._hard_state_given
        )

    def ready(self) -> Ready:
        """Everything owed since the last one; taking it is accepting it.

        Several may be in flight. They are persisted in the order in which they were taken, and a Ready's
        `messages_after_persist` wait for all earlier ones, even where it has nothing to persist itself: an
        acknowledgement of a duplicate speaks of entries that an earlier Ready carries.
        """
        self._open_read_round()
        if self._replicate_due:
            self._flush_appends()
        self._ready_number += 1
        number = self._ready_number

        hard_state: HardState | None = None
        if (self.term, self.vote) != self._hard_state_given:
            self._hard_state_given = (self.term, self.vote)
            hard_state = HardState(self.term, self.vote)
            if self.role is Role.CANDIDATE:
                self._campaign_write = number
        entries, snapshot, keeps_log = self.log.take_unwritten(number, also=hard_state is not None)
        owed, self._owed = self._owed, _Owed()
        return Ready(
            number=number,
            hard_state=hard_state,
            entries=entries,
            snapshot=snapshot,
            snapshot_keeps_log=keeps_log,
            committed=self.log.take_committed(self.config.committed_bytes_max_per_ready),
            messages=owed.messages,
            messages_after_persist=owed.messages_after_persist,
            read_states=owed.read_states,
            reads_dropped=owed.reads_dropped,
            must_sync=hard_state is not None or bool(entries) or snapshot is not None,
        )

    def persisted(self, ready: Ready) -> None:
        """Everything in `ready` is durable. Counts the own vote and the own acknowledgement."""
        oldest = self.log.oldest_write()
        if not ready.must_sync:
            assert oldest == 0 or oldest > ready.number, f"ready {ready.number} before ready {oldest} is persisted"
            return
        assert oldest == ready.number, f"ready {ready.number} is persisted, but the oldest in flight is {oldest}"
        self.log.written(ready.number)
        if self.role is Role.LEADER:
            progress = self.progress.get(self.id)
            # Raft §5.3, with thesis §10.2.1: the leader writes in parallel with its followers, and counts itself when done.
            if progress is not None and progress.maybe_update(self.log.durable):
                self._maybe_commit()
        elif self.role is Role.CANDIDATE:
            if self._campaign_write == ready.number:
                self._record_vote(self.id, granted=True)
        elif self.vote_floor is not None:
            self._maybe_leave_limbo()

    def applied_to(self, index: Index) -> None:
        """The state machine has applied everything through `index`."""
        self.log.applied_to(index)

    # --- terms ------------------------------------------------------------------------------------------------------

    def _admit(self, message: Message) -> bool:
        """Raft §5.1, for a message of another term: whether to go on with it. May change the term."""
        if message.term > self.term:
            return self._admit_higher(message)
        self._answer_lower(message)
        return False

    def _admit_higher(self, message: Message) -> bool:
        match message:
            case RequestVote():
                # Thesis §4.2.3: who hears a leader disregards candidates, so that a replica that was removed, or cannot
                # hear, disrupts nobody. The leader itself asked for a `transfer` campaign.
                if not message.transfer and self._hears_a_leader():
                    return False
                if message.pre:
                    return True  # Thesis §9.6: a question about a future term changes nothing.
                self._become_follower(message.term, NO_REPLICA)
            case VoteReply(pre=True, granted=True):
                pass  # its term is the one that we asked about
            case Append() | Heartbeat() | InstallSnapshot():
                self._become_follower(message.term, message.from_)
            case _:
                # Raft §5.1: whoever sees a higher term adopts it and becomes a follower.
                self._become_follower(message.term, NO_REPLICA)
        return True

    def _hears_a_leader(self) -> bool:
        """Whether the lease holds that makes this replica refuse votes."""
        if not self.config.check_quorum:
            return False
        if self.leader != NO_REPLICA and self._election_elapsed < self.config.election_timeout_ticks:
            return True
        # With lease reads a voter's silence is a promise, and a restart must not break it: what was heard shortly before
        # the restart is forgotten, so wait it out.
        return self.config.lease_reads and self._ticks < self.config.election_timeout_ticks

    def _answer_lower(self, message: Message) -> None:
        """Raft §5.1: a request with a stale term is refused; the answer's term tells its sender to step down.

        That a *leader* learns of our higher term also frees a replica that campaigned in vain and can neither win nor
        be heard (etcd #8243): the leader steps down, and the next election is in a term that everybody accepts.
        """
        to, nothing = message.from_, Index(0)
        match message:
            case Append() | InstallSnapshot():
                self._owed.messages_after_persist.append(AppendReply(to, self.id, self.term, nothing, rejected=True))
            case Heartbeat():
                self._owed.messages_after_persist.append(HeartbeatReply(to, self.id, self.term))
            case RequestVote():
                self._owed.messages_after_persist.append(
                    VoteReply(to, self.id, self.term, granted=False, pre=message.pre)
                )
            case _:
                pass

    # --- roles ------------------------------------------------------------------------------------------------------

    def _reset(self, term: Term) -> None:
        """What every change of role or term begins with."""
        if term != self.term:
            assert term > self.term, f"term goes back from {self.term} to {term}"
            self.term = term
            self.vote = NO_REPLICA
        self.leader = NO_REPLICA
        self._votes = {}
        self._campaign_write = 0
        self._election_elapsed = 0
        self._heartbeat_elapsed = 0
        self._draw_timeout()
        self.progress = {}
        self._replicate_due = False
        self._uncommitted = []
        self._uncommitted_bytes = 0
        self.lead_transferee = NO_REPLICA
        self._lease_forfeited = False
        self._lease_tick = -1
        self.checkpoint_wanted = Index(0)
        self._drop_reads()

    def _draw_timeout(self) -> None:
        # Raft §5.2: randomised, so that split votes are rare and resolved soon.
        timeout = self.config.election_timeout_ticks
        self.randomized_timeout_ticks = self._random.randint(timeout, 2 * timeout - 1)

    def _become_follower(self, term: Term, leader: ReplicaId) -> None:
        self._reset(term)
        self.role = Role.FOLLOWER
        self.leader = leader
        self._snapshot_request_pause = 0

    def _become_pre_candidate(self) -> None:
        """Thesis §9.6: ask first whether an election could be won; neither term nor vote change."""
        assert self.role is not Role.LEADER, "a leader does not campaign"
        self._reset(self.term)
        self.role = Role.PRE_CANDIDATE
        self._request_votes(term=Term(self.term + 1), pre=True, transfer=False)
        # A pre-vote promises nothing, so the own one needs no disk.
        self._record_vote(self.id, granted=True)

    def _become_candidate(self, *, transfer: bool) -> None:
        """Raft §5.2: a new term, the own vote, and requests to all other voters."""
        assert self.role is not Role.LEADER, "a leader does not campaign"
        self._reset(Term(self.term + 1))
        self.role = Role.CANDIDATE
        self.vote = self.id
        self._request_votes(term=self.term, pre=False, transfer=transfer)

    def _become_leader(self) -> None:
        assert self.role is Role.CANDIDATE, f"a {self.role.name} cannot become leader"
        assert self.vote == self.id, f"leader of term {self.term} voted for {self.vote}"
        self._reset(self.term)
        self.role = Role.LEADER
        self.leader = self.id
        self._rebuild_progress(next_=Index(self.log.last_index + 1))
        # Raft §8: a blank entry at the start of the term; until it commits, nobody knows what is committed (Raft §5.4.2).
        self._term_start = Index(self.log.last_index + 1)
        self._append_own(EntryKind.EMPTY, b"")

    # --- elections --------------------------------------------------------------------------------------------------

    def _tick_follower(self) -> None:
        self._election_elapsed += 1
        if self._forwarded:
            # The request or its answer may be lost: give it up after an election timeout; who asked, asks again.
            sent_before = self._ticks - self.config.election_timeout_ticks
            self._owed.reads_dropped.extend(self._forwarded.expire(sent_before=sent_before))
        if self.log.state_lost:
            self._maybe_request_snapshot()
        if self._election_elapsed >= self.randomized_timeout_ticks and self.promotable():
            self.campaign()

    def _request_votes(self, *, term: Term, pre: bool, transfer: bool) -> None:
        # A question promises nothing. A campaign does: that this replica has this log, and voted for itself in this term.
        queue = self._owed.messages if pre else self._owed.messages_after_persist
        last_index, last_term = self.log.last_index, self.log.last_term
        for voter in voters_of(self.configuration):
            if voter != self.id:
                queue.append(RequestVote(voter, self.id, term, last_index, last_term, pre=pre, transfer=transfer))

    def _on_request_vote(self, message: RequestVote) -> None:
        candidate = message.from_
        # Raft §5.2: one vote per term, first come; again to the same candidate. Not once the term has a leader. A question
        # about a future term (thesis §9.6) is free.
        free = (
            self.vote == candidate
            or (self.vote == NO_REPLICA and self.leader == NO_REPLICA)
            or (message.pre and message.term > self.term)
        )
        # Raft §5.4.1: only a log at least as up to date as the own. Learners vote too when asked: the candidate may know
        # of a promotion that has not reached us (etcd's campaign_learner_must_vote).
        granted = free and self.log.is_up_to_date(last_term=message.last_term, last_index=message.last_index)
        if granted and self.vote_floor is not None:
            # Limbo: what the lost tail held may have been acknowledged. Only a log that reaches it is complete.
            granted = (message.last_term, message.last_index) >= self.vote_floor
        if granted and not message.pre:
            self._election_elapsed = 0
            self.vote = candidate
        term = message.term if message.pre and granted else self.term
        self._owed.messages_after_persist.append(VoteReply(candidate, self.id, term, granted=granted, pre=message.pre))

    def _on_vote_reply(self, message: VoteReply) -> None:
        if self.role is Role.PRE_CANDIDATE:
            # A grant speaks of the term asked about; an old round's is of a lower one.
            if not message.pre or (message.granted and message.term != self.term + 1):
                return
        elif self.role is not Role.CANDIDATE or message.pre or message.term != self.term:
            return
        self._record_vote(message.from_, granted=message.granted)

    def _record_vote(self, voter: ReplicaId, *, granted: bool) -> None:
        # The first answer stands: a voter does not change its mind, and a duplicate does not count twice.
        self._votes.setdefault(voter, granted)
        result = joint_vote(self.configuration.voters, self.configuration.voters_outgoing, self._votes)
        if result is VoteResult.PENDING:
            return
        if result is VoteResult.LOST:
            self._become_follower(self.term, NO_REPLICA)
        elif self.role is Role.PRE_CANDIDATE:
            self._become_candidate(transfer=False)
        else:
            self._become_leader()

    # --- leader: time -----------------------------------------------------------------------------------------------

    def _tick_leader(self) -> None:
        self._heartbeat_elapsed += 1
        self._election_elapsed += 1
        if self.lead_transferee != NO_REPLICA:
            self._transfer_elapsed += 1
            if self._transfer_elapsed >= self.config.election_timeout_ticks:
                # Thesis §3.10: after about an election timeout the leader resumes.
                self._abort_transfer()
        if self._election_elapsed >= self.config.election_timeout_ticks:
            self._election_elapsed = 0
            if self.config.check_quorum and not self._quorum_is_active():
                # Thesis §6.2: a leader that cannot reach a majority steps down, so that clients look for another.
                self._become_follower(self.term, NO_REPLICA)
                return
        if self._heartbeat_elapsed >= self.config.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            if self.config.lease_reads and self.committed_in_own_term():
                # Every heartbeat is a round, to renew the lease. (Not earlier: it would take waiting reads along.)
                self._reads.open_round(index=self.log.commit, tick=self._ticks)
                self._confirm_reads()
            self._broadcast_heartbeat(voters_only=False)

    def _quorum_is_active(self) -> bool:
        active: dict[ReplicaId, bool] = {}
        for peer, progress in self.progress.items():
            active[peer] = peer == self.id or progress.recent_active
            progress.recent_active = False
        return joint_vote(self.configuration.voters, self.configuration.voters_outgoing, active) is VoteResult.WON

    def _broadcast_heartbeat(self, *, voters_only: bool) -> None:
        position = self._reads.pending_position
        for peer, progress in self.progress.items():
            if peer == self.id or (voters_only and not is_voter(self.configuration, peer)):
                continue
            # Never beyond what the follower is known to have: it could not tell what it has from what it should have.
            commit = min(progress.match, self.log.commit)
            # A leader that has not committed in its term does not know what is committed (Raft §5.4.2): nobody is level.
            level = commit == self.log.commit and self.committed_in_own_term()
            self._owed.messages.append(Heartbeat(peer, self.id, self.term, commit, position, level))

    def _on_heartbeat(self, message: Heartbeat) -> None:
        self._follow(message.from_)
        commit = message.commit
        if commit > self.log.last_index:
            # We acknowledged this entry once, and have it no more. Safe (we can only lag), but worth an alarm.
            self.log_regressions += 1
            commit = self.log.last_index
        self._commit_to(commit)
        # Says nothing about entries, so a slow disk does not hold it back.
        self._owed.messages.append(HeartbeatReply(message.from_, self.id, self.term, message.read_position))

    def _on_heartbeat_reply(self, message: HeartbeatReply) -> None:
        progress = self.progress.get(message.from_)
        if progress is None:
            return
        progress.recent_active = True
        progress.paused = False
        if progress.state is ProgressState.PROBE:
            self._replicate_due = True
        elif progress.match < self.log.last_index:
            progress.probe_due = True
            self._replicate_due = True
        if message.read_position > progress.read_position:
            progress.read_position = message.read_position
            self._confirm_reads()

    # --- leader: replication ----------------------------------------------------------------------------------------

    def _check_may_propose(self) -> None:
        if self.role is not Role.LEADER:
            raise self._not_leader()
        if self.lead_transferee != NO_REPLICA:
            # Thesis §3.10: or the target would never catch up.
            raise Unavailable(f"leadership is being handed to {self.lead_transferee}")

    def _not_leader(self) -> NotLeader:
        return NotLeader(
            f"replica {self.id} is {self.role.name.lower()} in term {self.term}; leader: {self.leader or 'unknown'}",
            metadata={"leader": str(self.leader)} if self.leader else None,
        )

    def _append_own(
        self, kind: EntryKind, data: bytes, configuration: Configuration | None = None
    ) -> tuple[Term, Index]:
        """Raft §5.3: the leader appends to its own log first; `ready` then hands the entry to disk and followers alike."""
        index = Index(self.log.last_index + 1)
        self.log.append([Entry(self.term, index, kind, data)])
        if data:
            self._uncommitted.append((index, len(data)))
            self._uncommitted_bytes += len(data)
        self._replicate_due = True
        if configuration is not None:
            self._configurations.append((index, configuration))
            self._adopt_latest_configuration()
            self._rebuild_progress(next_=index)
            if self.lead_transferee not in self.configuration.voters:
                self._abort_transfer()
            # With fewer voters those that answered may be enough, and nobody else may be left to.
            self._confirm_reads()
        return self.term, index

    def _rebuild_progress(self, *, next_: Index) -> None:
        """Fits `progress` to the configuration in force. A newcomer is probed at once, from `next_` on."""
        config, old = self.config, self.progress
        self.progress = {}
        for member in members_of(self.configuration):
            progress = old.get(member)
            if progress is None:
                inflights = Inflights(messages_max=config.inflight_messages_max, bytes_max=config.inflight_bytes_max)
                progress = Progress(match=Index(0), next_=next_, inflights=inflights)
                if member == self.id:
                    progress.maybe_update(self.log.durable)
                    progress.become_replicate()
            self.progress[member] = progress
        self._replicate_due = True

    def _flush_appends(self) -> None:
        """Sends every follower what it may have and lacks: entries, a snapshot, or news of the commit index."""
        self._replicate_due = False
        for peer, progress in self.progress.items():
            if peer != self.id:
                self._send_appends(peer, progress)

    def _send_appends(self, peer: ReplicaId, progress: Progress) -> None:
        last, commit = self.log.last_index, self.log.commit
        while True:
            if progress.is_paused():
                # A window that is full may be full of lost messages: after an answered heartbeat an empty message goes
                # out all the same, and its refusal will tell.
                if progress.state is ProgressState.REPLICATE and progress.probe_due:
                    self._send_append(peer, progress, with_entries=False)
                return
            if progress.state is ProgressState.PROBE or progress.next <= last:
                if not self._send_append(peer, progress, with_entries=progress.next <= last):
                    return
                continue
            # Nothing new to send. News of the commit index is pushed at once where the follower can make use of it.
            if progress.probe_due or progress.sent_commit < min(commit, progress.next - 1):
                self._send_append(peer, progress, with_entries=False)
            return

    def _send_append(self, peer: ReplicaId, progress: Progress, *, with_entries: bool) -> bool:
        """One Append, or the snapshot that must come first. Returns whether an Append went out."""
        previous = Index(progress.next - 1)
        previous_term = self.log.term(previous)
        if previous_term is None:
            self._send_snapshot(peer, progress)
            return False
        entries: list[Entry] = []
        size = 0
        if with_entries:
            hi = Index(self.log.last_index + 1)
            entries = self.log.entries(progress.next, hi, self.config.append_bytes_max)
            size = sum([len(entry.data) for entry in entries])
        commit = self.log.commit
        self._owed.messages.append(Append(peer, self.id, self.term, previous, previous_term, commit, entries))
        progress.sent(len(entries), size, commit)
        return True

    def _on_append_reply(self, message: AppendReply) -> None:
        peer = message.from_
        progress = self.progress.get(peer)
        if progress is None or peer == self.id:
            return
        progress.recent_active = True
        if message.rejected:
            self._on_rejected(progress, message)
            return
        index = message.index
        assert index <= self.log.last_index, f"{peer} acknowledges {index}, the log ends at {self.log.last_index}"
        was_paused = progress.is_paused()
        if not progress.maybe_update(index) and not (progress.state is ProgressState.PROBE and index == progress.match):
            return
        if progress.state is ProgressState.REPLICATE:
            progress.inflights.free_to(index)
        elif progress.state is ProgressState.PROBE or progress.match + 1 >= self.log.first_index():
            # The logs agree through `match`. After a snapshot: as soon as the log reconnects, whichever snapshot it was.
            progress.become_replicate()
        if was_paused or progress.next <= self.log.last_index:
            self._replicate_due = True
        if progress.match > self.log.commit:
            self._maybe_commit()
        if peer == self.lead_transferee and self.role is Role.LEADER:
            self._maybe_send_timeout_now()

    def _on_rejected(self, progress: Progress, message: AppendReply) -> None:
        hint = message.hint_index
        if message.hint_term > 0:
            # The same skip on our side: nothing above can have the term that the follower's entry there has.
            hint, _ = self.log.find_conflict_by_term(min(hint, self.log.last_index), message.hint_term)
        if progress.regress(rejected=message.index, hint=hint):
            self.log_regressions += 1
        elif not progress.maybe_decrease(rejected=message.index, hint=hint):
            return  # old
        if progress.state is ProgressState.REPLICATE:
            progress.become_probe()
        self._replicate_due = True

    def _maybe_commit(self) -> None:
        configuration, progress = self.configuration, self.progress
        incoming = [progress[voter].match for voter in configuration.voters]
        outgoing = [progress[voter].match for voter in configuration.voters_outgoing]
        index = joint_index(incoming, outgoing)
        # Raft §5.4.2: only entries of the own term are committed by counting; those before them follow. As leader, the
        # entries of the own term are exactly those from `_term_start` on.
        if index > self.log.commit and index >= self._term_start:
            self.log.commit_to(Index(index))
            self._on_leader_commit()

    def _on_leader_commit(self) -> None:
        commit = self.log.commit
        if self.config.push_commits:
            self._replicate_due = True
        done = 0
        for index, size in self._uncommitted:
            if index > commit:
                break
            self._uncommitted_bytes -= size
            done += 1
        del self._uncommitted[:done]
        if self.configuration_index <= commit:
            self._forget_old_configurations()
            if is_joint(self.configuration):
                self._leave_joint()
            elif self.id not in self.configuration.voters:
                # Thesis §4.2.2: a leader that is no voter any more steps down once that is committed; it tells the others
                # first, or they would wait for the commit index until the next leader.
                self._flush_appends()
                self._become_follower(self.term, NO_REPLICA)

    # --- follower: replication --------------------------------------------------------------------------------------

    def _follow(self, leader: ReplicaId) -> None:
        """A message from the leader of this term."""
        # Raft §5.2, Election Safety: at most one leader per term.
        assert self.role is not Role.LEADER, f"two leaders in term {self.term}: {self.id} and {leader}"
        assert self.leader in (NO_REPLICA, leader), f"two leaders in term {self.term}: {self.leader} and {leader}"
        if self.role is not Role.FOLLOWER:
            # Raft §5.2: a candidate yields to the leader of its term.
            self._become_follower(self.term, leader)
        self.leader = leader
        self._election_elapsed = 0

    def _on_append(self, message: Append) -> None:
        self._follow(message.from_)
        log = self.log
        previous, entries = message.previous_index, message.entries
        if previous < log.commit:
            # Old. What is committed is the same everywhere, so the commit index is a truthful acknowledgement.
            self._acknowledge(log.commit)
            return
        if log.term(previous) != message.previous_term:
            # Raft §5.3, the consistency check. The hint skips whatever cannot match, term by term.
            hint = log.find_conflict_by_term(min(previous, log.last_index), message.previous_term)
            self._owed.messages_after_persist.append(
                AppendReply(message.from_, self.id, self.term, previous, True, hint[0], hint[1])
            )
            return
        matched = Index(previous + len(entries))
        if entries:
            assert entries[0].index == previous + 1, f"entries from {entries[0].index} after {previous}"
            assert entries[-1].index == matched, f"{len(entries)} entries after {previous} end at {entries[-1].index}"
            if previous != log.last_index:
                entries = self._drop_known(entries)
            if entries:
                self._append_received(entries)
        self._commit_to(min(message.commit, matched))
        # `matched` may not be durable yet, even where this message brought nothing new (its first copy is still on its
        # way to the disk). This reply leaves after the next Ready is persisted, hence after all earlier ones.
        self._acknowledge(matched)

    def _drop_known(self, entries: list[Entry]) -> list[Entry]:
        """Raft §5.3: skips entries that the log has; truncates at the first that conflicts, and *only* there: a delayed
        shorter Append must not erase what a later one brought."""
        last, term = self.log.last_index, self.log.term
        for at, entry in enumerate(entries):
            if entry.index > last:
                return entries[at:]
            if term(entry.index) != entry.term:
                self.log.truncate(entry.index)
                # Thesis §4.1: a configuration that is truncated is no longer in force.
                while self._configurations[-1][0] >= entry.index:
                    self._configurations.pop()
                    assert self._configurations, f"the truncation at {entry.index} removed every configuration"
                self._adopt_latest_configuration()
                return entries[at:]
        return []

    def _append_received(self, entries: list[Entry]) -> None:
        self.log.append(entries)
        adopt = False
        for entry in entries:
            if entry.kind == EntryKind.CONFIGURATION:
                self._configurations.append((entry.index, decode_configuration(entry.data)))
                adopt = True
        if adopt:
            self._adopt_latest_configuration()

    def _acknowledge(self, index: Index) -> None:
        """Acknowledges everything through `index`, once the next Ready is persisted. Acknowledgements are cumulative, so
        one per Ready is enough."""
        queue = self._owed.messages_after_persist
        if queue:
            newest = queue[-1]
            if (
                type(newest) is AppendReply
                and not newest.rejected
                and newest.term == self.term
                and newest.to == self.leader
            ):
                newest.index = max(newest.index, index)
                return
        queue.append(AppendReply(self.leader, self.id, self.term, index))

    def _commit_to(self, index: Index) -> None:
        if index <= self.log.commit:
            return
        self.log.commit_to(index)
        self._forget_old_configurations()
        if self.vote_floor is not None:
            self._maybe_leave_limbo()

    def _maybe_leave_limbo(self) -> None:
        """The lost tail is made good once the log holds, durably, an entry that the *current* leader committed in its own
        term and that reaches the floor: that leader was elected without our unrestricted vote, so it has whatever of
        the tail was committed, and now we do too."""
        assert self.vote_floor is not None
        index = min(self.log.commit, self.log.durable)
        term = self.log.term(index)
        if term == self.term and self.leader != NO_REPLICA and (term, index) >= self.vote_floor:
            self.vote_floor = None

    # --- reads ------------------------------------------------------------------------------------------------------

    def _open_read_round(self) -> None:
        """All reads of the turn share one round of heartbeats, or one request to the leader."""
        if self._forwarded.waiting and self.leader != NO_REPLICA:
            position = self._forwarded.open_batch(tick=self._ticks)
            self._owed.messages.append(ReadIndexRequest(self.leader, self.id, self.term, position))
        # Thesis §6.4: a new leader does not know what is committed until an entry of its own term is; reads wait.
        if self._reads.waiting and self.committed_in_own_term():
            self._reads.open_round(index=self.log.commit, tick=self._ticks)
            self._broadcast_heartbeat(voters_only=True)
            if self.configuration.voters == (self.id,):
                self._confirm_reads()

    def _confirm_reads(self) -> None:
        """Thesis §6.4: a round whose position a quorum has echoed proves that we were still leader after it opened."""
        if not self._reads.pending_position:
            return
        newest = self._reads.position
        incoming = [newest if v == self.id else self.progress[v].read_position for v in self.configuration.voters]
        outgoing = [
            newest if v == self.id else self.progress[v].read_position for v in self.configuration.voters_outgoing
        ]
        for read_round in self._reads.confirm(joint_index(incoming, outgoing)):
            self._lease_tick = read_round.tick
            for read in read_round.reads:
                self._answer_read(read.origin, read.context, read_round.index)

    def _answer_read(self, origin: ReplicaId, context: int, index: Index) -> None:
        if origin == NO_REPLICA:
            self._owed.read_states.append(ReadState(context, index))
        else:
            self._owed.messages.append(ReadIndexReply(origin, self.id, self.term, context, index))

    def _on_read_index_request(self, message: ReadIndexRequest) -> None:
        if self.role is not Role.LEADER:
            return  # the follower gives it up in time
        if self.committed_in_own_term() and self.lease_holds():
            self._answer_read(message.from_, message.context, self.log.commit)
        elif len(self._reads) < self.config.reads_pending_max:
            self._reads.add(message.from_, message.context)

    def _on_read_index_reply(self, message: ReadIndexReply) -> None:
        for context in self._forwarded.answer(message.context):
            self._owed.read_states.append(ReadState(context, message.index))

    def _drop_reads(self) -> None:
        """A new term or role: nobody will confirm these any more."""
        if self._reads:
            self._owed.reads_dropped.extend(self._reads.drop())
        if self._forwarded:
            self._owed.reads_dropped.extend(self._forwarded.drop())

    # --- membership -------------------------------------------------------------------------------------------------

    def _adopt_latest_configuration(self) -> None:
        self.configuration_index, self.configuration = self._configurations[-1]

    def _forget_old_configurations(self) -> None:
        """Keeps the newest committed configuration, to which a truncation may lead back, and those after it."""
        configurations, commit = self._configurations, self.log.commit
        while len(configurations) > 1 and configurations[1][0] <= commit:
            del configurations[0]

    def _leave_joint(self) -> None:
        """Thesis §4.3: once the joint configuration is committed, the leader appends the incoming half alone. After a
        change of leader the new one gets here too, with its first commit, as that covers the joint entry."""
        configuration = leave_joint(self.configuration)
        self._append_own(EntryKind.CONFIGURATION, encode_configuration(configuration), configuration)

    # --- leadership transfer ----------------------------------------------------------------------------------------

    def _abort_transfer(self) -> None:
        self.lead_transferee = NO_REPLICA
        self._transfer_elapsed = 0

    def _maybe_send_timeout_now(self) -> None:
        """Thesis §3.10: as soon as the target's log is complete, it campaigns without waiting."""
        progress = self.progress.get(self.lead_transferee)
        if progress is not None and progress.match == self.log.last_index:
            self._owed.messages.append(TimeoutNow(self.lead_transferee, self.id, self.term))
            # The target's campaign passes every lease, whenever the message arrives.
            self._lease_forfeited = True

    def _on_timeout_now(self, message: TimeoutNow) -> None:
        if self.role is Role.FOLLOWER and self.promotable():
            self._become_candidate(transfer=True)

    # --- snapshots --------------------------------------------------------------------------------------------------

    def _send_snapshot(self, peer: ReplicaId, progress: Progress) -> None:
        """What the follower needs next is compacted."""
        if not progress.recent_active:
            return  # nobody there to receive it; its first sign of life brings us back here
        meta = self.log.reader.snapshot()
        if meta is None or meta.index + 1 < self.log.first_index():
            self.checkpoint_wanted = max(self.checkpoint_wanted, Index(self.log.first_index() - 1))
            return
        progress.become_snapshot(meta.index)
        self._checkpoint_is_there(meta.index)
        self._owed.messages.append(InstallSnapshot(peer, self.id, self.term, meta))

    def _checkpoint_is_there(self, index: Index) -> None:
        if index >= self.checkpoint_wanted:
            self.checkpoint_wanted = Index(0)

    def _on_snapshot_request(self, message: SnapshotRequest) -> None:
        """A follower has lost its state. Replication to it goes on: its log is intact, its acknowledgements count."""
        progress = self.progress.get(message.from_)
        if progress is None or self.role is not Role.LEADER:
            return
        progress.recent_active = True
        if progress.snapshot_requested or progress.state is ProgressState.SNAPSHOT:
            return  # on its way
        meta = self.log.reader.snapshot()
        if meta is None or meta.index < message.min_index:
            self.checkpoint_wanted = max(self.checkpoint_wanted, message.min_index)
            return  # it asks again
        progress.snapshot_requested = True
        self._checkpoint_is_there(meta.index)
        self._owed.messages.append(InstallSnapshot(message.from_, self.id, self.term, meta))

    def _maybe_request_snapshot(self) -> None:
        """Asks at once, and again with every election timeout: the request may be lost, or the leader too poor."""
        if self.role is not Role.FOLLOWER or self.leader == NO_REPLICA or self.log.restoring:
            return
        if self._snapshot_request_pause > 0:
            self._snapshot_request_pause -= 1
            return
        self._snapshot_request_pause = self.config.election_timeout_ticks
        self._owed.messages.append(SnapshotRequest(self.leader, self.id, self.term, self._snapshot_wanted))

    def _on_install_snapshot(self, message: InstallSnapshot) -> None:
        self._follow(message.from_)
        meta, log = message.meta, self.log
        check_configuration(meta.configuration)
        matches = log.term(meta.index) == meta.term
        if log.state_lost and matches:
            if meta.index >= self._snapshot_wanted and not log.restoring:
                log.restore_state(meta)
                self._forget_old_configurations()
        elif matches and meta.index > log.commit:
            # Thesis §5: the log has it all already. Keep it, and learn what is committed.
            self._commit_to(meta.index)
        elif meta.index > log.commit:
            log.restore(meta)
            self._configurations = [(meta.index, meta.configuration)]
            self._adopt_latest_configuration()
        # Else it is old. In every case the commit index is what agrees with the leader for certain.
        self._acknowledge(log.commit)
