"""The promises of Raft as executable statements, in LogCabin's manner: run after every step of every test.

Three kinds, by what they look at:
- **state**: one observation of one replica is legal by itself;
- **step**: what one call may change, and what it may never change;
- **ghost**: what the whole group has promised so far. The `Ghost` remembers what no single replica does: who led which
  term, who voted for whom (across restarts), every entry ever seen, every entry ever committed.

Rules of this file:
- pure statements over plain values: no Raft object comes in here, so each invariant has a test of its own that feeds it
  a broken value and sees it trip (`test_invariants.py`; a checker that cannot fail proves nothing);
- an invariant that trips raises `InvariantViolated`, whose message begins with the invariant's name and carries the numbers.

Sources: Raft (extended version) Figure 3 for election safety, leader append-only, log matching, leader completeness and
state-machine safety; LogCabin's `RaftConsensusInvariants.cc` for the form.

Caveat: log matching is checked by induction. Every entry is registered under (index, term) together with the term of the
entry before it; if no registration ever disagrees, two logs that hold the same (index, term) are equal up to there.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from raftcache.ids import NO_REPLICA, Index, ReplicaId, Term
from raftcache.raft.messages import Configuration, Entry, EntryKind, HardState, Role


class InvariantViolated(AssertionError):
    """A promise of Raft is broken. `name` is the function that noticed."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name


@dataclass(frozen=True, slots=True)
class Peer:
    """A leader's view of one member, as far as the invariants read it."""

    replica: ReplicaId
    match: Index
    next: Index
    probing: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """One observation of one replica."""

    replica: ReplicaId
    role: Role
    term: Term
    vote: ReplicaId
    leader: ReplicaId
    commit: Index
    applied: Index
    last_index: Index
    last_term: Term
    configuration: Configuration
    configuration_index: Index
    transferee: ReplicaId = NO_REPLICA
    peers: tuple[Peer, ...] = ()
    durable_index: Index = Index(0)
    """The last entry that is on this replica's disk for certain (in the same log as `last_index`)."""


def members_of(configuration: Configuration) -> set[ReplicaId]:
    """Everyone whom the leader replicates to."""
    return set(configuration.voters) | set(configuration.voters_outgoing) | set(configuration.learners)


def voters_of(configuration: Configuration) -> set[ReplicaId]:
    """Everyone whose vote counts in one half or the other."""
    return set(configuration.voters) | set(configuration.voters_outgoing)


def is_quorum(configuration: Configuration, replicas: Iterable[ReplicaId]) -> bool:
    """A majority of every non-empty half, counted the slow and obvious way (thesis §4.3)."""
    present = set(replicas)
    halves = [half for half in (configuration.voters, configuration.voters_outgoing) if half]
    return all(2 * len(present & set(half)) > len(half) for half in halves)


# --- State: one observation of one replica ----------------------------------------------------------------------------


def check_order_of_positions(state: State) -> None:
    """Applied never passes commit, and commit never passes the end of the log."""
    if not 0 <= state.applied <= state.commit <= state.last_index:
        raise InvariantViolated(
            "check_order_of_positions",
            f"{state.replica}: applied {state.applied}, commit {state.commit}, last {state.last_index}",
        )


def check_log_term_within_term(state: State) -> None:
    """No entry comes from a term that the replica has not reached."""
    if state.last_term > state.term:
        raise InvariantViolated(
            "check_log_term_within_term", f"{state.replica}: last term {state.last_term} in term {state.term}"
        )


def check_leader_knows_itself(state: State) -> None:
    """A leader names itself as leader and has its own vote; nobody else names itself."""
    if (state.role is Role.LEADER) != (state.leader == state.replica):
        raise InvariantViolated(
            "check_leader_knows_itself", f"{state.replica} is {state.role.name} and names leader {state.leader}"
        )
    if state.role is Role.LEADER and state.vote != state.replica:
        raise InvariantViolated(
            "check_leader_knows_itself", f"{state.replica} leads term {state.term} with a vote for {state.vote}"
        )


def check_candidate_votes_for_itself(state: State) -> None:
    """A candidate has its own vote, and neither kind of candidate follows anyone."""
    if state.role is Role.CANDIDATE and state.vote != state.replica:
        raise InvariantViolated(
            "check_candidate_votes_for_itself", f"{state.replica} is a candidate and voted for {state.vote}"
        )
    if state.role in (Role.CANDIDATE, Role.PRE_CANDIDATE) and state.leader != NO_REPLICA:
        raise InvariantViolated(
            "check_candidate_votes_for_itself", f"{state.replica} is {state.role.name} and follows {state.leader}"
        )


def check_configuration_shape(state: State) -> None:
    """Members are sorted and unique; nobody both votes and learns; staged learners are outgoing voters."""
    c = state.configuration
    for part in (c.voters, c.voters_outgoing, c.learners, c.learners_next):
        if list(part) != sorted(set(part)):
            raise InvariantViolated("check_configuration_shape", f"{state.replica}: {part} is not a sorted set")
    if set(c.learners) & voters_of(c):
        raise InvariantViolated("check_configuration_shape", f"{state.replica}: a learner of {c} votes")
    if not set(c.learners_next) <= set(c.voters_outgoing) or set(c.learners_next) & set(c.voters):
        raise InvariantViolated(
            "check_configuration_shape", f"{state.replica}: staged learners of {c} are not outgoing"
        )
    if not 0 <= state.configuration_index <= state.last_index:
        raise InvariantViolated(
            "check_configuration_shape",
            f"{state.replica}: configuration of index {state.configuration_index}, log ends at {state.last_index}",
        )


def check_peers_are_the_members(state: State) -> None:
    """A leader tracks exactly the members of the configuration in force (and at most itself beside them)."""
    if state.role is not Role.LEADER:
        return
    tracked = {peer.replica for peer in state.peers}
    if tracked - {state.replica} != members_of(state.configuration) - {state.replica}:
        raise InvariantViolated(
            "check_peers_are_the_members", f"{state.replica} tracks {sorted(tracked)} under {state.configuration}"
        )


def check_peer_positions(state: State) -> None:
    """For each member match < next, and nobody is believed to have more than the leader's log."""
    if state.role is not Role.LEADER:
        return
    for peer in state.peers:
        if not (peer.match < peer.next and peer.match <= state.last_index):
            raise InvariantViolated(
                "check_peer_positions",
                f"{state.replica} believes {peer.replica} at match {peer.match}, next {peer.next}; "
                f"its own log ends at {state.last_index}",
            )


def check_own_acknowledgement_is_durable(state: State) -> None:
    """A leader's acknowledgement of its own entries never runs ahead of its own disk."""
    if state.role is not Role.LEADER:
        return
    for peer in state.peers:
        if peer.replica == state.replica and peer.match > state.durable_index:
            raise InvariantViolated(
                "check_own_acknowledgement_is_durable",
                f"{state.replica} counts itself to {peer.match}, durable to {state.durable_index}",
            )


def check_transferee_is_a_voter(state: State) -> None:
    """Leadership is being handed only by a leader, to another voter."""
    if state.transferee == NO_REPLICA:
        return
    if (
        state.role is not Role.LEADER
        or state.transferee == state.replica
        or state.transferee not in voters_of(state.configuration)
    ):
        raise InvariantViolated(
            "check_transferee_is_a_voter",
            f"{state.replica} ({state.role.name}) hands leadership to {state.transferee} under {state.configuration}",
        )


STATE_INVARIANTS: tuple[Callable[[State], None], ...] = (
    check_order_of_positions,
    check_log_term_within_term,
    check_leader_knows_itself,
    check_candidate_votes_for_itself,
    check_configuration_shape,
    check_peers_are_the_members,
    check_peer_positions,
    check_own_acknowledgement_is_durable,
    check_transferee_is_a_voter,
)


# --- Step: before and after one call to one replica -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """Two observations of one replica in one life, around one call."""

    before: State
    after: State
    term_at_old_commit: Term | None
    """The term that the log now has at `before.commit`; None where it is compacted."""
    term_at_old_commit_before: Term | None
    term_at_old_last: Term | None
    """The term that the log now has at `before.last_index`; None where it is compacted or cut."""
    state_replaced: bool = False
    """A lost state was just replaced by that of a snapshot, which may be older than what had been applied."""


def check_term_never_goes_back(step: Step) -> None:
    """A replica's term only grows."""
    if step.after.term < step.before.term:
        raise InvariantViolated(
            "check_term_never_goes_back", f"{step.after.replica}: {step.before.term} -> {step.after.term}"
        )


def check_one_vote_in_a_term(step: Step) -> None:
    """Within a term a vote is given once and kept."""
    before, after = step.before, step.after
    if before.term == after.term and before.vote not in (NO_REPLICA, after.vote):
        raise InvariantViolated(
            "check_one_vote_in_a_term", f"{after.replica} in term {after.term}: {before.vote} -> {after.vote}"
        )


def check_commit_never_goes_back(step: Step) -> None:
    """What was known to be committed stays so."""
    if step.after.commit < step.before.commit:
        raise InvariantViolated(
            "check_commit_never_goes_back", f"{step.after.replica}: {step.before.commit} -> {step.after.commit}"
        )


def check_applied_never_goes_back(step: Step) -> None:
    """What was applied stays applied, unless the state itself was lost and comes back from a snapshot."""
    if not step.state_replaced and step.after.applied < step.before.applied:
        raise InvariantViolated(
            "check_applied_never_goes_back", f"{step.after.replica}: {step.before.applied} -> {step.after.applied}"
        )


def check_committed_prefix_is_kept(step: Step) -> None:
    """The log is never cut or rewritten at or below the commit index."""
    old, new = step.term_at_old_commit_before, step.term_at_old_commit
    if step.after.last_index < step.before.commit or (old is not None and new is not None and old != new):
        raise InvariantViolated(
            "check_committed_prefix_is_kept",
            f"{step.after.replica}: commit {step.before.commit} had term {old}, has {new}; "
            f"the log ends at {step.after.last_index}",
        )


def check_leader_only_appends(step: Step) -> None:
    """Figure 3, leader append-only: a leader never overwrites or deletes entries of its log."""
    before, after = step.before, step.after
    if before.role is not Role.LEADER or after.role is not Role.LEADER:
        return
    cut = after.last_index < before.last_index
    if cut or (step.term_at_old_last is not None and step.term_at_old_last != before.last_term):
        raise InvariantViolated(
            "check_leader_only_appends",
            f"{after.replica}: ({before.last_index}, term {before.last_term}) -> last {after.last_index}, "
            f"term there {step.term_at_old_last}",
        )


def check_role_change_is_legal(step: Step) -> None:
    """Who becomes what: Figure 4 of the paper, with the pre-candidate of thesis §9.6."""
    before, after = step.before, step.after
    same_term = before.term == after.term
    legal = True
    if before.role is Role.LEADER:
        # A leader stays leader of its one term, or becomes a follower.
        legal = after.role is Role.FOLLOWER or (after.role is Role.LEADER and same_term)
    elif after.role is Role.LEADER:
        # Only a candidate wins, and it wins the term in which it stood.
        legal = before.role is Role.CANDIDATE and same_term
    elif after.role is Role.CANDIDATE and not (before.role is Role.CANDIDATE and same_term):
        # Standing for election always opens exactly one new term.
        legal = after.term == before.term + 1
    elif after.role is Role.PRE_CANDIDATE and before.role is not Role.PRE_CANDIDATE:
        # Asking whether one would win changes no term.
        legal = same_term
    if not legal:
        raise InvariantViolated(
            "check_role_change_is_legal",
            f"{after.replica}: {before.role.name} of term {before.term} -> {after.role.name} of term {after.term}",
        )


def check_one_leader_in_a_term_is_followed(step: Step) -> None:
    """Within a term a replica never changes from one leader to another."""
    before, after = step.before, step.after
    if before.term == after.term and NO_REPLICA not in (before.leader, after.leader) and before.leader != after.leader:
        raise InvariantViolated(
            "check_one_leader_in_a_term_is_followed",
            f"{after.replica} in term {after.term}: {before.leader} -> {after.leader}",
        )


def check_match_never_goes_back(step: Step) -> None:
    """While it leads, a leader believes less of a member than it did only if that member refuses a probe for it.

    A refusal of what was acknowledged shows that the member has lost entries; then less is the truth, and always safe.
    """
    if step.before.role is not Role.LEADER or step.after.role is not Role.LEADER:
        return
    old = {peer.replica: peer.match for peer in step.before.peers}
    for peer in step.after.peers:
        if peer.match < old.get(peer.replica, 0) and not peer.probing:
            raise InvariantViolated(
                "check_match_never_goes_back",
                f"{step.after.replica} on {peer.replica}: {old[peer.replica]} -> {peer.match}",
            )


STEP_INVARIANTS: tuple[Callable[[Step], None], ...] = (
    check_term_never_goes_back,
    check_one_vote_in_a_term,
    check_commit_never_goes_back,
    check_applied_never_goes_back,
    check_committed_prefix_is_kept,
    check_leader_only_appends,
    check_role_change_is_legal,
    check_one_leader_in_a_term_is_followed,
    check_match_never_goes_back,
)


# --- Ghost: what the whole group has promised -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Durable:
    """What is certain to survive a crash of one replica at this instant."""

    replica: ReplicaId
    hard_state: HardState
    term_at: Callable[[Index], Term | None]
    """The term of the entry on disk at an index; None where the disk has none. Compacted counts by `compacted_to`."""
    compacted_to: Index = Index(0)

    def holds(self, index: Index, term: Term) -> bool:
        """The entry (index, term) is on this disk, as an entry or inside a checkpoint."""
        return index <= self.compacted_to or self.term_at(index) == term


@dataclass(slots=True)
class CommittedEntry:
    """An entry that some replica has declared committed, and the smallest term of a replica that declared it."""

    entry: Entry | None
    """None where the entry was first seen inside a snapshot's position."""
    term: Term
    in_term: Term


@dataclass(slots=True)
class Ghost:
    """The memory that no replica has. Every method may raise `InvariantViolated`."""

    leaders: dict[Term, ReplicaId] = field(default_factory=dict)
    votes: dict[tuple[ReplicaId, Term], ReplicaId] = field(default_factory=dict)
    entries: dict[tuple[Index, Term], tuple[EntryKind, bytes, Term | None]] = field(default_factory=dict)
    committed: dict[Index, CommittedEntry] = field(default_factory=dict)
    applied: dict[Index, tuple[Term, EntryKind, bytes]] = field(default_factory=dict)
    commit_max: Index = Index(0)
    configurations: dict[tuple[Index, Term], Configuration] = field(default_factory=dict)

    def check_election_safety(self, replica: ReplicaId, term: Term) -> None:
        """Figure 3, election safety: at most one leader in a term, across the whole history of the group."""
        other = self.leaders.setdefault(term, replica)
        if other != replica:
            raise InvariantViolated("check_election_safety", f"{other} and {replica} both lead term {term}")

    def check_followed_leader_was_elected(self, follower: ReplicaId, term: Term, leader: ReplicaId) -> None:
        """Whoever is followed in a term is the one that was seen to win it."""
        elected = self.leaders.get(term)
        if leader != NO_REPLICA and elected is not None and elected != leader:
            raise InvariantViolated(
                "check_followed_leader_was_elected", f"{follower} follows {leader} in term {term}, won by {elected}"
            )

    def check_vote_is_given_once(self, replica: ReplicaId, term: Term, candidate: ReplicaId) -> None:
        """No replica votes for two candidates in one term, in this life or another."""
        earlier = self.votes.setdefault((replica, term), candidate)
        if earlier != candidate:
            raise InvariantViolated(
                "check_vote_is_given_once", f"{replica} voted in term {term} for {earlier} and for {candidate}"
            )

    def check_log_matching(self, entry: Entry, previous_term: Term | None) -> None:
        """Figure 3, log matching, by induction: (index, term) names one entry and one predecessor, for ever."""
        seen = self.entries.get((entry.index, entry.term))
        if seen is None:
            self.entries[entry.index, entry.term] = (entry.kind, entry.data, previous_term)
            return
        kind, data, before = seen
        if (kind, data) != (entry.kind, entry.data):
            raise InvariantViolated(
                "check_log_matching", f"({entry.index}, term {entry.term}) is {data!r} and {entry.data!r}"
            )
        if before is None:
            self.entries[entry.index, entry.term] = (kind, data, previous_term)
        elif previous_term is not None and before != previous_term:
            raise InvariantViolated(
                "check_log_matching",
                f"({entry.index}, term {entry.term}) follows an entry of term {before} and one of term {previous_term}",
            )

    def check_state_machine_safety(self, replica: ReplicaId, entry: Entry) -> None:
        """Figure 3, state-machine safety: nobody applies something else at an index where somebody applied already."""
        mine = (entry.term, entry.kind, entry.data)
        other = self.applied.setdefault(entry.index, mine)
        if other != mine:
            raise InvariantViolated(
                "check_state_machine_safety", f"{replica} applies {mine} at {entry.index}, another applied {other}"
            )

    def check_committed_once(self, replica: ReplicaId, index: Index, term: Term, in_term: Term) -> None:
        """An index is committed with one term, for ever, whoever says so."""
        seen = self.committed.get(index)
        if seen is None:
            self.committed[index] = CommittedEntry(entry=None, term=term, in_term=in_term)
            self.commit_max = max(self.commit_max, index)
        elif seen.term != term:
            raise InvariantViolated(
                "check_committed_once",
                f"{replica} commits ({index}, term {term}), committed before with term {seen.term}",
            )
        else:
            seen.in_term = min(seen.in_term, in_term)

    def check_leader_completeness(self, leader: State, term_of: Callable[[Index], Term | None], first: Index) -> None:
        """Figure 3, leader completeness: a leader has every entry that was committed in an earlier term."""
        for index, committed in self.committed.items():
            if committed.in_term < leader.term and index >= first and term_of(index) != committed.term:
                raise InvariantViolated(
                    "check_leader_completeness",
                    f"{leader.replica}, leader of term {leader.term}, has term {term_of(index)} at {index}, where an "
                    f"entry of term {committed.term} was committed in term {committed.in_term}",
                )

    def check_commit_is_durable_on_a_quorum(
        self, leader: State, index: Index, term: Term, disks: Iterable[Durable]
    ) -> None:
        """What a leader calls committed is on the disks of a majority of each half of its configuration."""
        holders = [disk.replica for disk in disks if disk.holds(index, term)]
        if not is_quorum(leader.configuration, holders):
            raise InvariantViolated(
                "check_commit_is_durable_on_a_quorum",
                f"{leader.replica} commits ({index}, term {term}); durable on {holders} of {leader.configuration}",
            )

    def check_commit_is_of_own_term(self, leader: State, index: Index, term: Term) -> None:
        """§5.4.2: a leader moves its commit index only onto an entry of its own term."""
        if term != leader.term:
            raise InvariantViolated(
                "check_commit_is_of_own_term",
                f"{leader.replica}, leader of term {leader.term}, commits by counting an entry of term {term} at {index}",
            )

    def check_granted_vote_is_durable(self, to: ReplicaId, term: Term, disk: Durable) -> None:
        """A vote leaves only when term and vote are on disk."""
        if disk.hard_state.term == term and disk.hard_state.vote == to:
            return
        # Overtaken by a newer term on the same disk: the promise was durable first, and cannot be given again.
        if disk.hard_state.term > term:
            return
        raise InvariantViolated(
            "check_granted_vote_is_durable",
            f"{disk.replica} sends its vote for {to} in term {term}, its disk says {disk.hard_state}",
        )

    def check_acknowledgement_is_durable(self, index: Index, last_durable: Index, sender: ReplicaId) -> None:
        """An acknowledgement leaves only when what it speaks of is on disk."""
        if index > last_durable:
            raise InvariantViolated(
                "check_acknowledgement_is_durable", f"{sender} acknowledges {index}, durable to {last_durable}"
            )

    def check_read_is_fresh(self, replica: ReplicaId, index: Index, committed_at_request: Index) -> None:
        """A read index covers everything that anyone had committed when the read was asked for."""
        if index < committed_at_request:
            raise InvariantViolated(
                "check_read_is_fresh",
                f"{replica} may read at {index}, but {committed_at_request} was committed before the question",
            )

    def check_configuration_is_the_latest_in_the_log(
        self, state: State, term_of: Callable[[Index], Term | None], first: Index
    ) -> None:
        """The configuration in force is that of the last configuration entry of the log, committed or not.

        Where it is committed its exact index no longer matters (a restart may know it only as the checkpoint's).
        """
        in_log = [
            (index, configuration)
            for (index, term), configuration in self.configurations.items()
            if first <= index <= state.last_index and term_of(index) == term
        ]
        if not in_log:
            return
        index, configuration = max(in_log, key=lambda item: item[0])
        newest = state.configuration_index
        if newest > index and (newest, term_of(newest)) not in self.entries:
            return  # appended a moment ago; it is looked at again when the next `Ready` shows it
        if state.configuration != configuration or (index > state.commit and index != state.configuration_index):
            raise InvariantViolated(
                "check_configuration_is_the_latest_in_the_log",
                f"{state.replica} is under {state.configuration} of index {state.configuration_index}, its log has "
                f"{configuration} at {index}",
            )


GHOST_INVARIANTS = tuple(sorted(name for name in vars(Ghost) if name.startswith("check_")))


def check_state(state: State) -> None:
    """All invariants of one observation."""
    for invariant in STATE_INVARIANTS:
        invariant(state)


def check_step(step: Step) -> None:
    """All invariants of one call."""
    for invariant in STEP_INVARIANTS:
        invariant(step)
