"""One replica: a Raft core, its log, its state machine, and the requests that wait on them.

A replica is a synchronous object that the engine steps; it has no task, no lock and no clock of its own. Its life in one
turn of the loop:

    offer() ... -> propose() + ask_read_index() -> [engine: Ready, WAL, network] -> take() + serve_reads() -> replies

Rules of this file:
- a write is answered when its entry is applied, a linearizable read when its read index is applied, and never earlier;
- after an append only three things may be said: the result, "another term's entry was committed in its place" (definite),
  or "unknown" (deadline passed, state replaced). Raft §8; STYLE: when in doubt, indefinite;
- requests are refused before the proposal with an error that says so.

Invariant: `machine.applied_index == raft.applied`, except inside `take`.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from raftcache.errors import (
    DeadlineExpired,
    InvalidRequest,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    RaftCacheError,
    Unavailable,
    WrongShard,
)
from raftcache.ids import Index, ReplicaId, Revision, ShardId, Term
from raftcache.kv.codec import encode_batch
from raftcache.kv.limits import is_plain
from raftcache.kv.machine import Machine
from raftcache.kv.operations import (
    Command,
    Failure,
    Get,
    Put,
    PutMany,
    PutManyResult,
    Result,
    Scan,
    ScanResult,
    WriteResult,
    value_bytes,
)
from raftcache.kv.result_codec import error_of
from raftcache.kv.slots import SHARD_WIDE
from raftcache.node.api import Reply, ReplySink, Request
from raftcache.node.forwarding import not_read
from raftcache.node.observer import Observer
from raftcache.node.settings import MS, EngineSettings
from raftcache.node.tracing import EntryTraces
from raftcache.raft.core import Raft
from raftcache.raft.messages import Entry, EntryKind, ReadState, Ready, Role
from raftcache.storage.state import StateStore
from raftcache.storage.wal import ReplicaLog

Waiting = tuple[Request, ReplySink]
"""A request and where its reply goes."""

Answer = Callable[[Request, ReplySink, Reply], None]
"""Hands a reply to the engine's outbox."""

NOTHING_TIMED = (Index(0), Term(0), 0)
READ_BYTES_PER_TURN: Final = 4 << 20
"""Read in one turn, by all replicas of a node together. The rest waits: no limit counts what is read and not written to its client
yet, and the front, which has such limits, takes it at the end of each turn. Reading that much takes some milliseconds."""
ENTRY_OVERHEAD_BYTES: Final = 200
"""Of the objects that an entry is made of, and the work."""
REPLY_BYTES_PER_ENTRY: Final = 128 << 20
"""What the writes of one log entry may return, at the most: all of it is there at once when the entry is applied, and of each shard as
many entries as are in flight. 128 conditional writes with `limits.value_bytes_max` as it comes."""


class Replica:
    """See the module. The engine owns it and is the only one that calls it."""

    def __init__(
        self,
        *,
        shard: ShardId,
        replica_id: ReplicaId,
        raft: Raft,
        log: ReplicaLog,
        state: StateStore,
        machine: Machine | None,
        settings: EngineSettings,
        answer: Answer,
        observer: Observer,
    ) -> None:
        self.shard = shard
        self.replica_id = replica_id
        self.raft = raft
        self.log = log
        self.state = state
        self.machine = machine
        """None until a first snapshot is installed (a replica that joins an existing group)."""
        self.stopped = ""
        """Why this replica stopped for good (a bug was caught in it); empty while it runs."""
        self.full = ""
        """Why this replica, as leader, takes no writes that add to its state; empty while there is room."""
        self.state_bytes = 0
        """What the live state takes, as last measured."""
        self.level_ns = 0
        """When this replica last knew itself level with a leader: the age of stale reads counts from here."""
        self.checkpoint_log_bytes = 0
        """Bytes of log entries applied since the newest checkpoint."""
        self.uncommitted_commands = 0
        """Commands applied to the live environment since its last commit; with `uncommitted_bytes`, what bounds it."""
        self.uncommitted_bytes = 0
        self.committed_ns = 0
        self.known_leader = ReplicaId(0)
        """The leader at the engine's last look; a change of it wakes parked requests."""
        self.known_role = Role.FOLLOWER
        self.led_since_ns = 0
        """Since when it has its present role."""
        self.leader_changes = 0
        self.elections = 0
        """Campaigns of this replica; pre-votes do not count."""
        self.commands_applied = 0
        self.proposals_failed = 0
        self.unplaced = False
        """The core refused what waits here (no leader, hand-over in progress); the engine takes it back."""
        self.rebuilding = False
        """Stopped only until its state is rebuilt from checkpoint and log."""
        self.traces: EntryTraces | None = None
        """Set by the engine where tracing is on."""
        self._settings = settings
        self._answer = answer
        self._observer = observer
        self._queue: deque[Waiting] = deque()
        self._proposed: dict[Index, tuple[Term, list[Waiting]]] = {}
        """By the index that was proposed. Those of an older term wait for what will be committed there in their place."""
        self._reads: list[Waiting] = []
        self._reads_in_flight: dict[int, list[Waiting]] = {}
        self._reads_ready: list[tuple[Index, list[Waiting]]] = []
        """Reads that have their index and wait for apply to reach it; ascending."""
        self._in_hand: list[Waiting] = []
        """Taken out of their queue by a method and not placed or answered yet: where that raises, `abandon` finds them."""
        self._next_context = 1
        self._timed_entry: tuple[Index, Term, int] = NOTHING_TIMED
        """One of the entries in flight, and when it was proposed: a sample, so that no entry costs more for it."""
        self._timed_round: tuple[int, int] = (0, 0)
        """The same of a round of reads: its context, and when it began."""
        self._time_base: tuple[Term, int, int] = (Term(0), 0, 0)
        self._heard: tuple[Index, int] = (Index(0), 0)
        """The leader's commit index as last heard, and when; level once apply has reached it."""

    def count_on(self, earlier: "Replica") -> None:
        """Takes the place of an object that was given up: counters never go back while the process lives."""
        self.leader_changes, self.elections = earlier.leader_changes, earlier.elections
        self.commands_applied, self.proposals_failed = earlier.commands_applied, earlier.proposals_failed

    # --- What comes in ------------------------------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        return self.raft.role is Role.LEADER and not self.stopped

    def offer(self, waiting: list[Waiting]) -> None:
        """Queues requests; the next `propose` and `ask_read_index` take them up."""
        for pair in waiting:
            if isinstance(pair[0].operation, (Get, Scan)):
                self._reads.append(pair)
            else:
                self._queue.append(pair)

    def propose(self, now_ns: int, wall_ms: int) -> None:
        """Turns the queue into log entries, as many commands in each as fit.

        No timer holds a batch back: while `batches_in_flight_max` are on their way, the queue fills the next one.
        """
        while self._queue and self._may_propose():
            batch, commands = self._next_batch(now_ns)
            if not batch:
                return
            self._in_hand = batch
            try:
                data = encode_batch(commands, proposed_ms=self._shard_time(now_ns, wall_ms))
                term, index = self.raft.propose(data)
            except Overloaded as refusal:
                self.proposals_failed += len(batch)
                for request, sink in batch:
                    self._refuse(request, sink, refusal)
                self._in_hand = []
                continue
            except (NotLeader, Unavailable):
                # Nothing was appended: all of it, in order, may go to the next leader.
                self._queue.extendleft(reversed(batch))
                self._in_hand = []
                self.unplaced = True
                return
            except ValueError:
                self._refuse_unencodable(batch)
                continue
            self._give_up_proposal(index)
            self._proposed[index] = (term, batch)
            if self._timed_entry[1] != term:
                self._timed_entry = (index, term, now_ns)
            self._in_hand = []
            if self.traces is not None:
                self.traces.proposed(index, [request for request, _ in batch])

    def _may_propose(self) -> bool:
        """Whether fewer batches than allowed are in flight. Those of an older term are in nobody's way any more."""
        term, limit = self.raft.term, self._settings.batches_in_flight_max
        return len(self._proposed) < limit or sum(t == term for t, _ in self._proposed.values()) < limit

    def _next_batch(self, now_ns: int) -> tuple[list[Waiting], list[Command]]:
        """Takes from the queue what one entry holds; what is late is refused."""
        settings = self._settings
        batch: list[Waiting] = []
        commands: list[Command] = []
        lone: Put | None = None
        puts: PutMany | None = None
        size = returned = 0
        while self._queue and size < settings.entry_bytes_max and len(batch) < settings.entry_commands_max:
            if returned >= REPLY_BYTES_PER_ENTRY:
                break
            request, sink = self._queue.popleft()
            if request.deadline_ns <= now_ns:
                self._refuse(request, sink, DeadlineExpired("the deadline passed before the write was proposed"))
                continue
            operation = request.operation
            assert not isinstance(operation, (Get, Scan)), "reads are never proposed"
            if type(operation) is not Put or request.stamp is not None or not is_plain(operation):
                lone = puts = None
                commands.append(Command(operation, request.slot, request.stamp))
            elif puts is not None:
                puts.keys.append(operation.key)
                puts.values.append(operation.value)
            elif lone is not None:
                # Puts next to each other are one command: everybody who applies it is spared the others.
                puts = PutMany([lone.key, operation.key], [lone.value, operation.value])
                commands[-1] = Command(puts, SHARD_WIDE)
            else:
                lone = operation
                commands.append(Command(operation, request.slot))
            batch.append((request, sink))
            size += request.cost
            returned += request.reply_cost
        return batch, commands

    def _refuse_unencodable(self, batch: list[Waiting]) -> None:
        """Some number in the batch fits no field: refuses that command, and puts the others back, in order.

        The gateway checks what clients send; this is for the day when it forgets something, so that it costs one request.
        """
        good = []
        for request, sink in batch:
            assert not isinstance(request.operation, (Get, Scan)), "reads are never proposed"
            try:
                encode_batch([Command(request.operation, request.slot, request.stamp)], proposed_ms=0)
            except ValueError as error:
                self._refuse(request, sink, InvalidRequest(f"the command cannot be encoded: {error}"))
            else:
                good.append((request, sink))
        assert len(good) < len(batch), f"each of {len(batch)} commands can be encoded, and all together cannot"
        self._queue.extendleft(reversed(good))
        self._in_hand = []

    def _give_up_proposal(self, index: Index) -> None:
        """An older batch at this index was truncated from our log. Whether its copies elsewhere are ever committed is open
        until something else is, there; nobody will tell us any more, as the index now stands for something newer."""
        given_up = self._proposed.pop(index, None)
        if given_up is None:
            return
        _, batch = given_up
        self.proposals_failed += len(batch)
        unknown = OutcomeUnknown(f"shard {self.shard}: leadership was lost while the write was in flight")
        for request, sink in batch:
            if not request.answered:
                self._refuse(request, sink, unknown)

    def ask_read_index(self, now_ns: int) -> None:
        """Thesis §6.4: one round confirms leadership for every read that waits now."""
        if not self.may_ask():
            return
        context = self._next_context
        self._next_context += 1
        try:
            self.raft.read_index(context)
        except Overloaded as refusal:
            reads, self._reads = self._reads, []
            for request, sink in reads:
                self._refuse(request, sink, refusal)
            return
        except (NotLeader, Unavailable):
            self.unplaced = True
            return
        if self._timed_round[0] not in self._reads_in_flight:
            self._timed_round = (context, now_ns)
        self._reads_in_flight[context], self._reads = self._reads, []

    def _shard_time(self, now_ns: int, wall_ms: int) -> int:
        """Shard time in ms: a leader goes on from the state machine's time by its monotonic clock.

        So a wall clock that is set back, or forward, in mid-term moves nothing; the first leader of all starts at its
        wall clock.
        """
        term, base_ms, base_ns = self._time_base
        if term != self.raft.term:
            applied_ms = self.machine.clock_ms if self.machine is not None else 0
            base_ms, base_ns = (applied_ms or max(0, wall_ms)), now_ns
            self._time_base = (self.raft.term, base_ms, base_ns)
        return base_ms + (now_ns - base_ns) // MS

    # --- What the core hands out --------------------------------------------------------------------------------------

    def take(self, ready: Ready, now_ns: int) -> None:
        """Applies what is committed, and notes what may be read. Raises: `Corruption`, `StateLost` (the state is gone)."""
        if ready.committed:
            self._time_commit(ready.committed[-1].index, now_ns)
            self._apply(ready.committed)
        for context in ready.reads_dropped:
            for request, sink in self._reads_in_flight.pop(context, ()):
                self._refuse(
                    request, sink, NotLeader(f"shard {self.shard}: leadership was lost before the read was confirmed")
                )
        if ready.read_states:
            self._hold_reads(ready.read_states, now_ns)

    def _time_commit(self, through: Index, now_ns: int) -> None:
        index, term, began_ns = self._timed_entry
        if term and through >= index:
            # What is committed there in another term is not what was timed.
            if term == self.raft.term:
                self._observer.replicated(now_ns - began_ns)
            self._timed_entry = NOTHING_TIMED

    def _apply(self, entries: list[Entry]) -> None:
        machine = self.machine
        assert machine is not None, f"replica {self.replica_id} was handed entries before it had a state"
        for entry in entries:
            results: list[Result] = []
            span = self.traces.applying(entry.index) if self.traces is not None else None
            if entry.kind is EntryKind.COMMANDS:
                results = machine.apply(entry.index, entry.term, entry.data)
                commands = sum(result.count if type(result) is PutManyResult else 1 for result in results)
                self.uncommitted_commands += commands
                self.commands_applied += commands
            elif entry.kind is EntryKind.CONFIGURATION:
                machine.apply_configuration(entry.index, entry.term, entry.data)
            else:
                machine.apply_empty(entry.index, entry.term)
            size = len(entry.data)
            self.uncommitted_bytes += size
            self.checkpoint_log_bytes += size
            proposed = self._proposed.pop(entry.index, None)
            if proposed is not None:
                self._answer_entry(entry, proposed, results)
            if span is not None and self.traces is not None:
                span.end()
                self.traces.answered(entry.index)
        self.raft.applied_to(entries[-1].index)
        self._note_level()

    def _answer_entry(self, entry: Entry, proposed: tuple[Term, list[Waiting]], results: list[Result]) -> None:
        term, batch = proposed
        if term != entry.term:
            # Another term's entry is committed at this index: ours can never be. Only now the failure is definite.
            self.proposals_failed += len(batch)
            lost = NotLeader(f"shard {self.shard}: leadership was lost and the write was replaced; it had no effect")
            for request, sink in batch:
                self._refuse(request, sink, lost)
            return
        self._in_hand = batch
        if any(type(result) is PutManyResult for result in results):
            results = self._by_request(results, batch)
        assert len(results) == len(batch), f"{len(results)} results for {len(batch)} requests at index {entry.index}"
        shard, index, answer = self.shard, entry.index, self._answer
        for (request, sink), result in zip(batch, results, strict=True):
            outcome = error_of(result.reason, result.message, definite=True) if isinstance(result, Failure) else result
            answer(request, sink, Reply(request.token, outcome, shard, index))
        self._in_hand = []

    def _by_request(self, results: list[Result], batch: list[Waiting]) -> list[Result]:
        """The results with those of puts that `_next_batch` put together taken apart again."""
        found: list[Result] = []
        for result in results:
            if type(result) is not PutManyResult or type(batch[len(found)][0].operation) is PutMany:
                found.append(result)
                continue
            refused = set(result.refused)
            revision = result.revision - (result.count - len(refused))
            for position in range(result.count):
                if position in refused:
                    found.append(
                        Failure(WrongShard.reason, f"shard {self.shard} does not own the slot; nothing was changed")
                    )
                else:
                    revision += 1
                    found.append(WriteResult(Revision(revision)))
        return found

    def _hold_reads(self, read_states: list[ReadState], now_ns: int) -> None:
        for read_state in read_states:
            if read_state.context == self._timed_round[0]:
                self._observer.confirmed(now_ns - self._timed_round[1])
            reads = self._reads_in_flight.pop(read_state.context, None)
            if reads:
                self._reads_ready.append((read_state.index, reads))

    def may_read(self) -> bool:
        """Whether `serve_reads` has something to do."""
        return bool(self._reads_ready) and self._reads_ready[0][0] <= self.raft.applied

    def serve_reads(self, now_ns: int, bytes_max: int) -> int:
        """Answers reads whose index is applied, until they take `bytes_max` together; how much they do.

        Raises: `Corruption`, `StateLost`.
        """
        served = 0
        while self.may_read():
            machine = self.machine
            assert machine is not None, f"replica {self.replica_id} got a read index before it had a state"
            index, reads = self._reads_ready.pop(0)
            self._in_hand = reads
            for position, (request, sink) in enumerate(reads):
                if served >= bytes_max:
                    self._reads_ready.insert(0, (index, reads[position:]))
                    self._in_hand = []
                    return served
                if request.deadline_ns <= now_ns:
                    self._refuse(request, sink, DeadlineExpired("the deadline passed before the read was served"))
                elif not request.has_room:
                    self._refuse(request, sink, not_read())
                else:
                    reply = self.read(request, machine, index)
                    size = result_bytes(reply.result)
                    request.take_room(size)
                    served += size
                    self._answer(request, sink, reply)
            self._in_hand = []
        return served

    def read(self, request: Request, machine: Machine, index: Index, age_ms: int = 0) -> Reply:
        """Reads the live state now. Raises: `Corruption`."""
        operation = request.operation
        assert isinstance(operation, (Get, Scan)), f"{type(operation).__name__} is not a read"
        result = machine.read(operation, request.slot)
        outcome = error_of(result.reason, result.message, definite=True) if isinstance(result, Failure) else result
        return Reply(request.token, outcome, self.shard, index, age_ms)

    # --- How old a stale read is ---------------------------------------------------------------------------------------

    def heard(self, commit: Index, now_ns: int) -> None:
        """The leader's own commit index (not what it believes that we have) came in at `now_ns`."""
        self._heard = (commit, now_ns)
        self._note_level()

    def _note_level(self) -> None:
        commit, at_ns = self._heard
        if self.raft.applied >= commit:
            self.level_ns = max(self.level_ns, at_ns)

    def age_ms(self, now_ns: int) -> int:
        """How long ago this replica knew itself level with a leader.

        A leader is level with itself. Caveat: one that was replaced and has not noticed is wrong by the time that
        check-quorum takes, two election timeouts at most.
        """
        raft = self.raft
        if self.leads and raft.committed_in_own_term() and raft.applied >= raft.commit:
            self.level_ns = now_ns
        return (now_ns - self.level_ns) // MS

    # --- What ends otherwise ------------------------------------------------------------------------------------------

    def expire(self, now_ns: int) -> None:
        """Answers what has passed its deadline: what was proposed is unknown, what was not is definite."""
        if self._queue:
            kept: deque[Waiting] = deque()
            for request, sink in self._queue:
                if request.deadline_ns <= now_ns:
                    self._refuse(request, sink, DeadlineExpired("the deadline passed before the write was proposed"))
                else:
                    kept.append((request, sink))
            self._queue = kept
        for index, (term, batch) in list(self._proposed.items()):
            for request, sink in batch:
                if request.deadline_ns <= now_ns and not request.answered:
                    self._refuse(request, sink, OutcomeUnknown("the deadline passed after the write was proposed"))
            if term != self.raft.term and all(request.answered for request, _ in batch):
                # Its index may lie beyond the log's new end, and never come.
                del self._proposed[index]
        for reads in (self._reads, *self._reads_in_flight.values(), *(reads for _, reads in self._reads_ready)):
            late = [pair for pair in reads if pair[0].deadline_ns <= now_ns]
            for request, sink in late:
                self._refuse(request, sink, DeadlineExpired("the deadline passed before the read was served"))
            if late:
                reads[:] = [pair for pair in reads if pair[0].deadline_ns > now_ns]

    def holds_writes(self) -> bool:
        """Whether a write waits here that nobody has proposed yet."""
        return bool(self._queue)

    def holds_unproposed(self) -> bool:
        """Whether something waits here that nobody has proposed yet."""
        return bool(self._queue or self._reads)

    def release_unproposed(self) -> list[Waiting]:
        """Gives back what was never proposed, for another leader; called when this replica no longer leads."""
        released = [*self._queue, *self._reads]
        self._queue.clear()
        self._reads = []
        self.unplaced = False
        return released

    def abandon(self, error: RaftCacheError) -> None:
        """The state is replaced or gone: what was proposed has an unknown outcome, everything else gets `error`."""
        unknown = OutcomeUnknown(f"shard {self.shard}: the replica's state was replaced while the write was in flight")
        for _, batch in self._proposed.values():
            for request, sink in batch:
                if not request.answered:
                    self._refuse(request, sink, unknown)
        self._proposed.clear()
        for request, sink in self._in_hand:
            if not request.answered:
                read = isinstance(request.operation, (Get, Scan))
                self._refuse(request, sink, error if read else unknown)
        self._in_hand = []
        for reads in (*self._reads_in_flight.values(), *(reads for _, reads in self._reads_ready)):
            for request, sink in reads:
                self._refuse(request, sink, error)
        self._reads_in_flight.clear()
        self._reads_ready.clear()
        for request, sink in self.release_unproposed():
            self._refuse(request, sink, error)

    def abandon_through(self, index: Index) -> None:
        """A snapshot replaced the log up to `index`: whether our proposals there were in it is unknown."""
        for proposed in [i for i in self._proposed if i <= index]:
            _, batch = self._proposed.pop(proposed)
            for request, sink in batch:
                if not request.answered:
                    self._refuse(
                        request, sink, OutcomeUnknown("a snapshot replaced the log while the write was in flight")
                    )

    def busy(self) -> bool:
        """Whether the next turn has something to propose or to ask."""
        return bool(self._queue and self._may_propose()) or self.may_ask()

    def may_ask(self) -> bool:
        """Whether reads wait for a round, and there may be one."""
        return bool(self._reads) and len(self._reads_in_flight) < self._settings.read_rounds_in_flight_max

    def proposed_in(self, entries: list[Entry]) -> list[list[Waiting]]:
        """What was proposed here and is carried by these entries; a list for each such entry."""
        proposed = [(entry.term, self._proposed.get(entry.index)) for entry in entries]
        return [found[1] for term, found in proposed if found is not None and found[0] == term]

    def reads_pending(self) -> bool:
        """Whether reads wait here, for their index or for their turn."""
        return bool(self._reads or self._reads_in_flight or self._reads_ready)

    def proposals_pending(self) -> int:
        return len(self._queue) + sum(len(batch) for _, batch in self._proposed.values())

    def _refuse(self, request: Request, sink: ReplySink, error: RaftCacheError) -> None:
        self._answer(request, sink, Reply(request.token, error, self.shard))


def result_bytes(result: Result | RaftCacheError) -> int:
    """What a result takes in memory, roughly."""
    if isinstance(result, RaftCacheError):
        return ENTRY_OVERHEAD_BYTES
    size = ENTRY_OVERHEAD_BYTES + value_bytes(result)
    if isinstance(result, ScanResult):
        size += sum(ENTRY_OVERHEAD_BYTES + len(entry.key) for entry in result.entries)
    return size
