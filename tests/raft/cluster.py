"""A group of Raft cores in memory: a network that can misbehave, disks that can stall and lose, and virtual ticks.

One `Shell` drives one core as a node would: it takes each `Ready`, writes, sends, syncs, reports `persisted`, sends the
promises, applies, reports `applied_to`. A `Cluster` connects shells and delivers their messages in order, one at a time.

Rules of this file:
- deterministic: no clock, no global randomness; the same calls give the same run;
- after *every* call into a core the invariants of `invariants.py` are checked, of the replica and of the group;
- the disk is explicit. What a core reads (`MemoryLog`) holds everything *written*; `Disk.image` holds what is *synced*.
  A stalled disk accepts writes and finishes none; a crash keeps the image, plus as many unfinished writes as the test
  says had reached the platter unacknowledged;
- a snapshot travels as its `InstallSnapshot` message; the content is looked up under (index, term), which state-machine
  safety makes unambiguous.

Caveat: restart follows the design, not the shortest path: the state machine always comes back from the checkpoint and is
replayed from the log.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from raftcache.ids import NO_REPLICA, Index, ReplicaId, Term
from raftcache.raft.configuration import decode_configuration
from raftcache.raft.core import Raft, RaftConfig
from raftcache.raft.messages import (
    Append,
    AppendReply,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    InstallSnapshot,
    Message,
    ReadState,
    Ready,
    RequestVote,
    Role,
    SnapshotMeta,
    VoteReply,
)
from raftcache.raft.progress import ProgressState
from tests.raft.invariants import Durable, Ghost, InvariantViolated, Peer, State, Step, check_state, check_step

BOOT_INDEX = Index(1)
BOOT_TERM = Term(1)
"""A group begins with a synthetic snapshot at (1, term 1) that names the first voters."""
SETTLE_STEPS_MAX = 10_000
"""More deliveries than any test needs; beyond it messages chase each other for ever."""
ELECTION_TICKS = 10
"""The election timeout of all tests; a drawn timeout lies in [10, 19]."""

Applied = tuple[Index, Term, EntryKind, bytes]


def ids(*numbers: int) -> tuple[ReplicaId, ...]:
    """Replica ids, sorted."""
    return tuple(ReplicaId(number) for number in sorted(numbers))


def entry(term: int, index: int, data: bytes | None = None, kind: EntryKind = EntryKind.COMMANDS) -> Entry:
    """An entry whose data, unless given, follow from its position: two entries of one position are equal."""
    return Entry(
        term=Term(term), index=Index(index), kind=kind, data=b"%d.%d" % (term, index) if data is None else data
    )


@dataclass(slots=True)
class Checkpoint:
    """A state machine at one index: what it names itself, and everything applied to it so far."""

    meta: SnapshotMeta
    content: tuple[Applied, ...] = ()


@dataclass(slots=True)
class Image:
    """What is on the platter: it survives a crash whole."""

    hard_state: HardState
    start: SnapshotMeta
    """The log begins after this position."""
    entries: list[Entry]
    checkpoint: Checkpoint

    def last_index(self) -> Index:
        """The last entry on disk."""
        return Index(self.start.index + len(self.entries))

    def term_at(self, index: Index) -> Term | None:
        """The term on disk at an index; None where it is compacted or absent."""
        if index == self.start.index:
            return self.start.term
        if self.start.index < index <= self.last_index():
            return self.entries[index - self.start.index - 1].term
        return None

    def write(self, ready: Ready, snapshots: dict[tuple[Index, Term], tuple[Applied, ...]]) -> None:
        """Takes over what one `Ready` asks to be durable."""
        if ready.hard_state is not None:
            self.hard_state = ready.hard_state
        if ready.snapshot is not None:
            meta = ready.snapshot
            if ready.snapshot_keeps_log:
                # Only the state was lost: the log agrees with the snapshot and goes on beyond it.
                assert self.term_at(meta.index) == meta.term, f"snapshot {meta} does not agree with the log"
            else:
                self.start, self.entries = meta, []
            self.checkpoint = Checkpoint(meta, snapshots[meta.index, meta.term])
        if ready.entries:
            first = ready.entries[0].index
            assert self.start.index < first <= self.last_index() + 1, f"hole: {first} after {self.last_index()}"
            del self.entries[first - self.start.index - 1 :]
            self.entries.extend(ready.entries)

    def copy(self) -> "Image":
        """An independent image (entries themselves are never changed)."""
        return Image(self.hard_state, self.start, list(self.entries), self.checkpoint)


class MemoryLog:
    """The `LogReader` of the tests: everything written, synced or not."""

    def __init__(self, image: Image) -> None:
        self.image = image

    def first_index(self) -> Index:
        return Index(self.image.start.index + 1)

    def last_index(self) -> Index:
        return self.image.last_index()

    def term(self, index: Index) -> Term | None:
        return self.image.term_at(index)

    def entries(self, lo: Index, hi: Index, bytes_max: int) -> list[Entry]:
        assert self.first_index() <= lo < hi <= self.last_index() + 1, f"[{lo}, {hi}) of [{self.first_index()}, ...]"
        found: list[Entry] = []
        size = 0
        for item in self.image.entries[lo - self.image.start.index - 1 : hi - self.image.start.index - 1]:
            size += len(item.data)
            if found and size > bytes_max:
                break
            found.append(item)
        return found

    def snapshot(self) -> SnapshotMeta | None:
        return self.image.checkpoint.meta


class Observer(Protocol):
    """Whoever wants to hear what happens in a group: the narrator of the scripts, or a test."""

    def called(self, shell: "Shell", name: str, argument: Any, before: State, after: State) -> None: ...

    def taken(self, shell: "Shell", ready: Ready) -> None: ...

    def sent(self, shell: "Shell", message: Message) -> None: ...


@dataclass(slots=True)
class Group:
    """What the shells of one group share: the ghost, the contents of snapshots, and whoever listens."""

    ghost: Ghost = field(default_factory=Ghost)
    snapshots: dict[tuple[Index, Term], tuple[Applied, ...]] = field(default_factory=dict)
    shells: dict[ReplicaId, "Shell"] = field(default_factory=dict)
    observer: "Observer | None" = None


class Shell:
    """One replica: its core, its disk and its state machine, driven by hand or by a `Cluster`."""

    def __init__(
        self,
        replica: int = 1,
        voters: Sequence[int] = (1, 2, 3),
        *,
        log: Sequence[int] = (),
        term: int | None = None,
        vote: int = 0,
        learners: Sequence[int] = (),
        configuration: Configuration | None = None,
        empty: bool = False,
        group: Group | None = None,
        seed: int = 0,
        checked: bool = True,
        entries: Sequence[Entry] | None = None,
        **options: Any,
    ) -> None:
        """A replica that starts with the synthetic snapshot at (1, term 1) and entries of the terms in `log` from 2 on.

        `empty` starts it as a newcomer instead: no log, no configuration. `options` go into its `RaftConfig`.
        """
        self.id = ReplicaId(replica)
        self.group = group if group is not None else Group()
        self.group.shells[self.id] = self
        self.seed, self.lives, self.checked, self.options = seed, 0, checked, options
        first = configuration or Configuration(voters=ids(*voters), learners=ids(*learners))
        start = SnapshotMeta(BOOT_INDEX, BOOT_TERM, first)
        if empty:
            start = SnapshotMeta(Index(0), Term(0), Configuration())
        self.group.snapshots.setdefault((start.index, start.term), ())
        items = list(entries) if entries is not None else [entry(t, start.index + 1 + i) for i, t in enumerate(log)]
        last_term = items[-1].term if items else start.term
        hard_state = HardState(Term(term if term is not None else last_term), ReplicaId(vote))
        self.image = Image(hard_state, start, items, Checkpoint(start))
        self.running = False
        self.stalled = False
        self.apply_stalled = False
        self.restart()

    # --- Life and disk ----------------------------------------------------------------------------------------------

    def restart(self) -> None:
        """Comes back from what is on disk: checkpoint, log, hard state."""
        assert not self.running, f"{self.id} is running"
        self.lives += 1
        self.running, self.pending, self.outbox, self.held = True, deque[Ready](), list[Message](), list[Ready]()
        self.written = self.image.copy()
        self.log = MemoryLog(self.written)
        checkpoint = self.image.checkpoint
        self.machine: list[Applied] = list(checkpoint.content)
        self.to_apply: deque[Entry] = deque()
        self.read_states: list[ReadState] = []
        self.reads_dropped: list[int] = []
        self.reads_asked: dict[int, Index] = {}
        self.ready_number = 0
        self.handed_out = checkpoint.meta.index
        in_log = [
            (item.index, decode_configuration(item.data))
            for item in self.image.entries
            if item.kind is EntryKind.CONFIGURATION and item.index > checkpoint.meta.index
        ]
        previous = self.image.start.term
        for item in self.image.entries:
            self._register(item, previous)
            previous = item.term
        self.raft = Raft(
            RaftConfig(replica=self.id, **{"election_timeout_ticks": ELECTION_TICKS, **self.options}),
            self.log,
            hard_state=self.image.hard_state,
            configuration=checkpoint.meta.configuration,
            configurations=in_log,
            applied=checkpoint.meta.index,
            random=random.Random(self.seed * 1_000_003 + self.id * 1_009 + self.lives),
        )
        if self.checked:
            check_state(self.observe())

    def crash(self, *, reached_the_disk: int = 0) -> None:
        """Stops at once. Of the writes not yet acknowledged the first `reached_the_disk` turn out to be there."""
        for ready in [ready for ready in self.pending if ready.must_sync][:reached_the_disk]:
            self.image.write(ready, self.group.snapshots)
        self.running = False
        self.stalled = self.apply_stalled = False

    def checkpoint(self) -> None:
        """Keeps the state machine as it is now for restarts and followers."""
        index = self.machine[-1][0] if self.machine else self.image.checkpoint.meta.index
        if index <= self.image.checkpoint.meta.index:
            return
        content = tuple(self.machine)
        meta = SnapshotMeta(index, content[-1][1], self.configuration_at(index))
        self.group.snapshots[index, meta.term] = content
        self.image.checkpoint = self.written.checkpoint = Checkpoint(meta, content)

    def compact(self, to: int | None = None) -> None:
        """Makes a checkpoint and drops the log up to and including `to` (by default, all that the checkpoint covers)."""
        self.checkpoint()
        checkpoint = self.image.checkpoint.meta
        index = Index(min(checkpoint.index if to is None else to, checkpoint.index))
        for image in (self.image, self.written):
            if image.start.index < index:
                term = image.term_at(index)
                assert term is not None, f"{self.id} compacts to {index}, log ends at {image.last_index()}"
                del image.entries[: index - image.start.index]
                image.start = SnapshotMeta(index, term, checkpoint.configuration)

    def configuration_at(self, index: Index) -> Configuration:
        """The configuration that the log puts in force at an index."""
        configuration = self.image.checkpoint.meta.configuration
        for item in self.written.entries:
            if item.index <= index and item.kind is EntryKind.CONFIGURATION:
                configuration = decode_configuration(item.data)
        return configuration

    # --- Calls into the core ----------------------------------------------------------------------------------------

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls one method of the core and checks every invariant around it."""
        assert self.running, f"{self.id} is down"
        if not self.checked:
            return getattr(self.raft, name)(*arguments)
        before = self.observe()
        commit_term = self.raft.log.term(before.commit)
        try:
            return getattr(self.raft, name)(*arguments)
        finally:
            after = self.observe()
            check_state(after)
            check_step(
                Step(
                    before,
                    after,
                    term_at_old_commit=self.raft.log.term(before.commit),
                    term_at_old_commit_before=commit_term,
                    term_at_old_last=self.raft.log.term(before.last_index),
                    state_replaced=name == "persisted" and arguments[0].snapshot_keeps_log,
                )
            )
            self._check_against_ghost(before, after)
            if self.group.observer is not None:
                self.group.observer.called(self, name, arguments[0] if arguments else None, before, after)

    def tick(self, count: int = 1) -> None:
        """Lets virtual time pass for this replica alone."""
        for _ in range(count):
            self.call("tick")

    def step(self, message: Message) -> None:
        """Delivers one message."""
        self.call("step", message)

    def read(self, number: int) -> None:
        """Asks for a read index; what is committed anywhere now must be covered by the answer."""
        self.reads_asked[number] = self.group.ghost.commit_max
        self.call("read_index", number)

    def run(self) -> list[Message]:
        """Takes and finishes `Ready`s until there is none, and returns everything that left, in order of leaving."""
        while self.running and self.raft.has_ready():
            self.take()
            if self.stalled:
                self._finish_what_needs_no_disk()
            else:
                self.sync()
            self.apply()
        sent, self.outbox = self.outbox, []
        return sent

    def take(self) -> Ready:
        """Takes one `Ready`, writes it (unsynced) and lets its unconditional messages leave."""
        ready: Ready = self.call("ready")
        self.ready_number += 1
        assert ready.number == self.ready_number, f"ready {ready.number} taken as number {self.ready_number}"
        owes = ready.hard_state is not None or bool(ready.entries) or ready.snapshot is not None
        assert ready.must_sync or not owes, f"{self.id}: ready {ready.number} needs a sync and does not say so"
        for item in ready.committed:
            self._check_handed_out(item)
        if self.group.observer is not None:
            self.group.observer.taken(self, ready)
        self.written.write(ready, self.group.snapshots)
        if ready.snapshot is not None:
            self.handed_out = ready.snapshot.index
        if ready.entries:
            previous = self.written.term_at(Index(ready.entries[0].index - 1))
            for item in ready.entries:
                self._register(item, previous)
                previous = item.term
        self.pending.append(ready)
        self._send(ready.messages)
        if ready.snapshot is None:
            self.to_apply.extend(ready.committed)
        for state in ready.read_states:
            if self.checked and state.context in self.reads_asked:
                self.group.ghost.check_read_is_fresh(self.id, state.index, self.reads_asked[state.context])
        self.read_states.extend(ready.read_states)
        self.reads_dropped.extend(ready.reads_dropped)
        return ready

    def sync(self, count: int | None = None) -> None:
        """The disk finishes its oldest `count` writes (all by default); each is reported, then its promises leave."""
        self._finish_what_needs_no_disk()
        for _ in range(len(self.pending) if count is None else count):
            if self.pending:
                self._finish(self.pending.popleft())
                self._finish_what_needs_no_disk()

    def _finish_what_needs_no_disk(self) -> None:
        """A `Ready` without a write is finished as soon as all before it are."""
        while self.pending and not self.pending[0].must_sync:
            self._finish(self.pending.popleft())

    def _finish(self, ready: Ready) -> None:
        self.image.write(ready, self.group.snapshots)
        if ready.snapshot is not None:
            self.machine = list(self.image.checkpoint.content)
            self.to_apply.clear()
        self.call("persisted", ready)
        if ready.snapshot is not None:
            self.to_apply.extend(ready.committed)
        self._send(ready.messages_after_persist)

    def apply(self) -> None:
        """Applies what was handed out, and says so."""
        if self.apply_stalled or any(ready.snapshot is not None for ready in self.pending) or not self.to_apply:
            return
        while self.to_apply:
            item = self.to_apply.popleft()
            if self.checked:
                self.group.ghost.check_state_machine_safety(self.id, item)
            self.machine.append((item.index, item.term, item.kind, item.data))
        self.call("applied_to", self.machine[-1][0])

    def deliver(self, *messages: Message) -> list[Message]:
        """Steps messages and returns all that leaves because of them, with a healthy disk."""
        for message in messages:
            self.step(message)
        return self.run()

    # --- Short ways for tests of one replica ------------------------------------------------------------------------

    def become_candidate(self) -> "Shell":
        """Stands for election, its own vote durable (needs `pre_vote=False`)."""
        self.call("campaign")
        self.run()
        assert self.raft.role in (Role.CANDIDATE, Role.LEADER), f"{self.id} is {self.raft.role.name}"
        return self

    def become_leader(self, *, acknowledged_by: Sequence[int] = ()) -> "Shell":
        """Wins an election by everyone's votes; the named followers then acknowledge the leader's first entry."""
        self.call("campaign")
        self.run()
        others = [peer for peer in sorted(self._voters()) if peer != self.id]
        if self.raft.role is Role.PRE_CANDIDATE:
            for peer in others:
                self.step(VoteReply(self.id, peer, Term(self.raft.term + 1), granted=True, pre=True))
            self.run()
        for peer in others:
            if self.raft.role is Role.CANDIDATE:
                self.step(VoteReply(self.id, peer, self.raft.term, granted=True))
        self.run()
        assert self.raft.role is Role.LEADER, f"{self.id} is {self.raft.role.name}"
        for follower in acknowledged_by:
            self.acknowledge(follower)
        return self

    def acknowledge(self, peer: int, index: int | None = None) -> list[Message]:
        """A follower reports everything up to `index` (by default the whole log) durable."""
        position = self.raft.last_index if index is None else Index(index)
        return self.deliver(AppendReply(self.id, ReplicaId(peer), self.raft.term, position))

    def propose(self, data: bytes = b"x") -> Index:
        """Proposes and returns the index."""
        _, index = self.call("propose", data)
        assert isinstance(index, int)
        return Index(index)

    def terms(self) -> list[Term]:
        """The terms of the written log after the synthetic snapshot or compaction point."""
        return [item.term for item in self.written.entries]

    def data(self) -> list[bytes]:
        """What the clients wrote, as this replica's state machine has it, in order."""
        return [data for _, _, kind, data in self.machine if kind is EntryKind.COMMANDS]

    # --- Observation ------------------------------------------------------------------------------------------------

    def observe(self) -> State:
        """What the invariants need to know of this replica now."""
        raft = self.raft
        last_term = raft.log.term(raft.last_index)
        return State(
            replica=self.id,
            role=raft.role,
            term=raft.term,
            vote=raft.vote,
            leader=raft.leader,
            commit=raft.commit,
            applied=raft.applied,
            last_index=raft.last_index,
            last_term=last_term if last_term is not None else Term(0),
            configuration=raft.configuration,
            configuration_index=raft.configuration_index,
            transferee=raft.lead_transferee,
            peers=tuple(
                Peer(peer, p.match, p.next, p.state is ProgressState.PROBE) for peer, p in sorted(raft.progress.items())
            )
            if raft.role is Role.LEADER
            else (),
            durable_index=self.durable_index(),
        )

    def durable_index(self) -> Index:
        """The end of the common prefix of the written log and the disk."""
        index: int = min(self.image.last_index(), self.written.last_index())
        while index > self.written.start.index and self.image.term_at(Index(index)) != self.written.term_at(
            Index(index)
        ):
            index -= 1
        return Index(index)

    def durable(self) -> Durable:
        """The disk as the ghost sees it."""
        image = self.image
        return Durable(self.id, image.hard_state, image.term_at, image.start.index)

    def _voters(self) -> set[ReplicaId]:
        configuration = self.raft.configuration
        return set(configuration.voters) | set(configuration.voters_outgoing)

    def _register(self, item: Entry, previous_term: Term | None) -> None:
        if not self.checked:
            return
        self.group.ghost.check_log_matching(item, previous_term)
        if item.kind is EntryKind.CONFIGURATION:
            self.group.ghost.configurations[item.index, item.term] = decode_configuration(item.data)

    def _check_handed_out(self, item: Entry) -> None:
        if item.index != self.handed_out + 1:
            raise InvariantViolated(
                "apply_without_gaps", f"{self.id} is handed {item.index} after {self.handed_out}: skipped or repeated"
            )
        self.handed_out = item.index
        if self.checked and self.image.term_at(item.index) != item.term:
            raise InvariantViolated(
                "apply_only_durable",
                f"{self.id} is handed ({item.index}, term {item.term}); its disk has {self.image.term_at(item.index)}",
            )

    def _send(self, messages: list[Message]) -> None:
        ghost = self.group.ghost
        for message in messages:
            assert message.from_ == self.id, f"{self.id} sends a message of {message.from_}: {message}"
            assert message.to not in (self.id, NO_REPLICA), f"{self.id} sends to {message.to}: {message}"
            if self.checked:
                match message:
                    case VoteReply(granted=True, pre=False):
                        ghost.check_granted_vote_is_durable(message.to, message.term, self.durable())
                        ghost.check_vote_is_given_once(self.id, message.term, message.to)
                    case AppendReply(rejected=False):
                        ghost.check_acknowledgement_is_durable(message.index, self.image.last_index(), self.id)
                    case Append():
                        previous = message.previous_term
                        for offset, item in enumerate(message.entries):
                            assert item.index == message.previous_index + 1 + offset, f"hole in {message}"
                            self._register(item, previous)
                            previous = item.term
                    case RequestVote(pre=False):
                        ghost.check_vote_is_given_once(self.id, message.term, self.id)
                    case _:
                        pass
            if self.group.observer is not None:
                self.group.observer.sent(self, message)
        self.outbox.extend(messages)

    def _check_against_ghost(self, before: State, after: State) -> None:
        ghost, raft = self.group.ghost, self.raft
        first = Index(self.written.start.index + 1)
        # A vote in memory binds only once it has left (checked in `_send`): a crash may forget it before.
        if after.role is Role.LEADER:
            ghost.check_election_safety(self.id, after.term)
            if before.role is not Role.LEADER:
                ghost.check_leader_completeness(after, raft.log.term, first)
        ghost.check_followed_leader_was_elected(self.id, after.term, after.leader)
        if after.commit > before.commit:
            by_counting = after.role is Role.LEADER
            top = raft.log.term(after.commit)
            assert top is not None, f"{self.id} commits {after.commit}, of which it knows no term"
            if by_counting:
                ghost.check_commit_is_of_own_term(after, after.commit, top)
                disks = [shell.durable() for shell in self.group.shells.values()]
                if len(disks) > 1:
                    ghost.check_commit_is_durable_on_a_quorum(after, after.commit, top, disks)
            for index in range(before.commit + 1, after.commit + 1):
                term = raft.log.term(Index(index))
                if term is not None:
                    ghost.check_committed_once(self.id, Index(index), term, after.term)
        if (before.configuration_index, before.last_index, before.last_term) != (
            after.configuration_index,
            after.last_index,
            after.last_term,
        ):
            ghost.check_configuration_is_the_latest_in_the_log(after, raft.log.term, first)


Predicate = Callable[[Message], bool]


@dataclass(slots=True)
class Held:
    """Messages that a test keeps back; `Cluster.release` lets them go."""

    matches: Predicate
    messages: list[Message] = field(default_factory=list)
    active: bool = True


class Cluster:
    """Several shells and the network between them. Messages are delivered one at a time, oldest first."""

    def __init__(
        self,
        size: int = 3,
        *,
        seed: int = 0,
        learners: Sequence[int] = (),
        logs: dict[int, Sequence[int]] | None = None,
        terms: dict[int, int] | None = None,
        **options: Any,
    ) -> None:
        """Voters 1..size (and learners) that all start from one synthetic snapshot.

        `logs` gives the terms of the entries from index 2 on by replica, `terms` the hard-state term.
        """
        self.seed, self.options = seed, options
        self.group = Group()
        self.queue: deque[Message] = deque()
        self.cut_links: set[tuple[ReplicaId, ReplicaId]] = set()
        self.drops: list[Predicate] = []
        self.duplicates: list[Predicate] = []
        self.holds: list[Held] = []
        self.delivered = 0
        self.dropped_snapshots_are_reported = True
        self.watchers: list[Callable[[Message], None]] = []
        """Called with each message at the moment of its delivery."""
        self._contexts = 0
        voters = range(1, size + 1)
        for number in [*voters, *learners]:
            self._start(
                number,
                voters=tuple(voters),
                learners=tuple(learners),
                log=(logs or {}).get(number, ()),
                term=(terms or {}).get(number),
            )

    def _start(self, number: int, **settings: Any) -> Shell:
        options = {**self.options, **settings}
        return Shell(number, group=self.group, seed=self.seed, **options)

    def __getitem__(self, number: int) -> Shell:
        return self.group.shells[ReplicaId(number)]

    @property
    def shells(self) -> list[Shell]:
        """All replicas, running or not, in ascending order."""
        return [shell for _, shell in sorted(self.group.shells.items())]

    @property
    def running(self) -> list[Shell]:
        """The replicas that are up, in ascending order."""
        return [shell for shell in self.shells if shell.running]

    def add(self, number: int) -> Shell:
        """Starts a newcomer: an empty log and no configuration."""
        return self._start(number, empty=True)

    # --- Network ----------------------------------------------------------------------------------------------------

    def cut(self, left: int, right: int, *, one_way: bool = False) -> None:
        """Nothing passes from `left` to `right` (nor back, unless `one_way`)."""
        self.cut_links.add((ReplicaId(left), ReplicaId(right)))
        if not one_way:
            self.cut_links.add((ReplicaId(right), ReplicaId(left)))

    def isolate(self, *numbers: int) -> None:
        """Each of these replicas is alone."""
        for number in numbers:
            for other in self.group.shells:
                if other != number:
                    self.cut(number, other)

    def split(self, *sides: Sequence[int]) -> None:
        """The replicas of different sides cannot reach each other."""
        for position, side in enumerate(sides):
            for other_side in sides[position + 1 :]:
                for left in side:
                    for right in other_side:
                        self.cut(left, right)

    def heal(self) -> None:
        """All links work again. What was lost stays lost."""
        self.cut_links.clear()

    @contextmanager
    def dropping(self, matches: Predicate) -> Iterator[None]:
        """Matching messages are lost inside the block."""
        self.drops.append(matches)
        try:
            yield
        finally:
            self.drops.remove(matches)

    def hold(self, matches: Predicate) -> Held:
        """From now on keeps matching messages back."""
        held = Held(matches)
        self.holds.append(held)
        return held

    def release(self, held: Held, *, order: Callable[[list[Message]], list[Message]] | None = None) -> None:
        """Lets held messages go (reordered by `order`) and keeps no more."""
        held.active = False
        self.holds.remove(held)
        messages = held.messages if order is None else order(held.messages)
        self.queue.extend(messages)

    def post(self, messages: Sequence[Message]) -> None:
        """Takes over what replicas have sent."""
        for message in messages:
            if (message.from_, message.to) in self.cut_links or any(matches(message) for matches in self.drops):
                self._lost(message)
                continue
            holder = next((held for held in self.holds if held.active and held.matches(message)), None)
            if holder is not None:
                holder.messages.append(message)
                continue
            self.queue.append(message)
            if any(matches(message) for matches in self.duplicates):
                self.queue.append(message)

    def _lost(self, message: Message) -> None:
        sender = self.group.shells[message.from_]
        if isinstance(message, InstallSnapshot) and self.dropped_snapshots_are_reported and sender.running:
            sender.call("report_snapshot", message.to, False)

    def deliver_next(self, position: int = 0) -> None:
        """Delivers one message of the queue (the oldest by default)."""
        message = self.queue[position]
        del self.queue[position]
        receiver = self.group.shells.get(message.to)
        if receiver is None or not receiver.running or (message.from_, message.to) in self.cut_links:
            self._lost(message)
            return
        self.delivered += 1
        for watcher in self.watchers:
            watcher(message)
        receiver.step(message)
        sender = self.group.shells[message.from_]
        if isinstance(message, InstallSnapshot) and sender.running:
            sender.call("report_snapshot", message.to, True)
        self.post(receiver.run())

    def collect(self) -> None:
        """Lets every replica finish what it has ready."""
        for shell in self.running:
            self.post(shell.run())

    def settle(self) -> None:
        """Delivers until nothing is left to deliver."""
        self.collect()
        for _ in range(SETTLE_STEPS_MAX):
            if self.queue:
                self.deliver_next()
                continue
            self.collect()
            if not self.queue:
                return
        raise AssertionError(f"messages do not settle: {list(self.queue)[:5]}")

    # --- Time and requests ------------------------------------------------------------------------------------------

    def tick(self, count: int = 1, only: int | None = None) -> None:
        """Virtual time passes for all (or one), tick by tick, and everything settles after each."""
        for _ in range(count):
            for shell in self.running:
                if only is None or shell.id == only:
                    shell.tick()
            self.settle()

    def tick_until(self, condition: Callable[[], bool], *, ticks_max: int = 400, only: int | None = None) -> int:
        """Lets time pass until the condition holds; the number of ticks it took."""
        for count in range(ticks_max):
            if condition():
                return count
            self.tick(only=only)
        raise AssertionError(f"not after {ticks_max} ticks: {self.describe()}")

    def lose_patience(self, *numbers: int) -> None:
        """An election timeout passes for these replicas without a word from a leader, and without their campaigning.

        Their lease is over: they vote for whoever asks.
        """
        for number in numbers:
            shell = self[number]
            if shell.running and shell.raft.role is not Role.LEADER:
                shell.raft.randomized_timeout_ticks = 2 * ELECTION_TICKS + 1
                shell.tick(ELECTION_TICKS)

    def elect(self, number: int) -> Shell:
        """Makes a replica campaign and win now; the others have lost patience with whoever led before."""
        shell = self[number]
        self.lose_patience(*[other.id for other in self.running if other is not shell])
        shell.call("campaign")
        self.settle()
        assert shell.raft.role is Role.LEADER, self.describe()
        return shell

    def leaders(self) -> list[Shell]:
        """Everyone who believes to lead now, the highest term last."""
        return sorted((s for s in self.running if s.raft.role is Role.LEADER), key=lambda shell: shell.raft.term)

    def leader(self) -> Shell:
        """The leader of the highest term."""
        leaders = self.leaders()
        assert leaders, f"no leader: {self.describe()}"
        return leaders[-1]

    def wait_for_leader(self, *, ticks_max: int = 400, among: Sequence[int] | None = None) -> Shell:
        """Lets time pass until someone (of these) leads and its first entry is committed."""

        def led() -> bool:
            found = [shell for shell in self.leaders() if among is None or shell.id in among]
            return bool(found) and found[-1].raft.log.term(found[-1].raft.commit) == found[-1].raft.term

        self.tick_until(led, ticks_max=ticks_max)
        return [shell for shell in self.leaders() if among is None or shell.id in among][-1]

    def propose(self, number: int, data: bytes = b"x") -> Index:
        """Proposes at a replica and settles; the index."""
        index = self[number].propose(data)
        self.settle()
        return index

    def change(self, number: int, change: Any) -> Index:
        """Proposes a configuration change at a replica and settles; the index."""
        _, index = self[number].call("propose_configuration", change)
        self.settle()
        return Index(index)

    def read(self, number: int) -> int:
        """Asks a replica for a read index and settles; the read's number, to be looked up in `read_states`."""
        self._contexts += 1
        self[number].read(self._contexts)
        self.settle()
        return self._contexts

    def crash(self, *numbers: int, reached_the_disk: int = 0) -> None:
        """Stops replicas at once."""
        for number in numbers:
            self[number].crash(reached_the_disk=reached_the_disk)

    def restart(self, *numbers: int) -> None:
        """Starts replicas from their disks, and settles."""
        for number in numbers:
            self[number].restart()
        self.settle()

    def stall(self, *numbers: int) -> None:
        """From now on these disks finish no write."""
        for number in numbers:
            self[number].stalled = True

    def unstall(self, *numbers: int) -> None:
        """These disks finish everything that was written, and work again."""
        for number in numbers:
            self[number].stalled = False
            self[number].sync()
            self[number].apply()
        self.settle()

    # --- Outcome ----------------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """One line for each replica, for messages."""
        return "; ".join(
            f"{shell.id} {'down' if not shell.running else shell.raft.role.name.lower()} term {shell.raft.term} "
            f"commit {shell.raft.commit} last {shell.raft.last_index}"
            for shell in self.shells
        )

    def assert_converged(self, *, without: Sequence[int] = ()) -> None:
        """Every running replica has the same log end, commit index and applied data."""
        shells = [shell for shell in self.running if shell.id not in without]
        first = shells[0]
        for shell in shells[1:]:
            assert (shell.raft.commit, shell.raft.last_index) == (first.raft.commit, first.raft.last_index), (
                self.describe()
            )
            assert shell.raft.log.term(shell.raft.last_index) == first.raft.log.term(first.raft.last_index), (
                self.describe()
            )
            assert shell.data() == first.data(), f"{first.id} has {first.data()}, {shell.id} has {shell.data()}"


def only(messages: Sequence[Message], kind: type, *, to: int | None = None) -> list[Any]:
    """The messages of one kind (to one replica)."""
    return [message for message in messages if isinstance(message, kind) and (to is None or message.to == to)]


def beat(leader: int, to: int, term: int, commit: int = 0) -> Heartbeat:
    """A heartbeat as a test writes it."""
    return Heartbeat(ReplicaId(to), ReplicaId(leader), Term(term), Index(commit))
