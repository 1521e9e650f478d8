"""One write and one fdatasync for everything that a turn wants durable, of all replicas of the node.

    Ready, Ready, ... ──add──► group ──persist──► write, fdatasync ──► `persisted`: only now may promises leave

Rules of this file:
- at most one fdatasync is in flight; what must be durable meanwhile waits in the group and goes with the next;
- `Ready`s of a replica are persisted in the order in which they were taken;
- a fast disk is synced on the loop, a slow one in a thread, by the running mean of what it took; and on the loop only where
  no other request waits at this node: a loop that syncs takes nothing in, and the next group would have to be as small;
- while a checkpoint is written the sync of a group is a thread's: some then take fifty times the mean, and heartbeats would wait;
- what needs the log to itself (a replica that comes or goes, deleting segments) waits for the moment *between* two
  syncs, and gets it after every single one: under load there is always a next group, and it would wait for ever;
- a full disk holds back what needs room and nothing else: votes need none, and go on.

Invariant: a promise (vote, acknowledgement) never leaves before the sync that covers it returned.
"""

from collections.abc import Callable
from typing import Protocol

from raftcache.clock import Clock
from raftcache.errors import StorageFull
from raftcache.ids import ReplicaId
from raftcache.kv.operations import puts_in
from raftcache.node.observer import Observer
from raftcache.node.replica import Replica
from raftcache.node.settings import EngineSettings
from raftcache.raft.messages import Ready
from raftcache.storage.wal import ReplicaWrite, Wal
from raftcache.telemetry.names import SPAN_FSYNC
from raftcache.telemetry.tracing import NO_SPAN, Span, Tracer

Taken = tuple[Replica, Ready]
"""A replica and what it wants persisted."""

READIES_HELD_MAX = 10_000
"""While the log takes nothing, a replica still answers: some ten `Ready`s a second, each a few hundred bytes. Past this
many its promises are dropped, as if they had been lost on their way."""


class Scheduler(Protocol):
    """Who runs the engine: an event loop, or the simulator."""

    def call_soon(self, function: Callable[[], None]) -> None: ...
    def run_blocking(self, work: Callable[[], None], done: Callable[[], None]) -> None:
        """Runs `work` off the loop, then `done` on it."""
        ...

    def wait(self) -> None:
        """Returns when all `work` has ended. Its `done` may come later, or never."""
        ...


class GroupCommit:
    """See the module. Everything is called on the loop."""

    def __init__(
        self,
        *,
        wal: Wal,
        settings: EngineSettings,
        scheduler: Scheduler,
        clock: Clock,
        observer: Observer,
        tracer: Tracer,
        flush: Callable[[], None],
        persisted: Callable[[list[Taken]], None],
        wake: Callable[[], None],
        in_flight: Callable[[], int],
        checkpointing: Callable[[], bool],
    ) -> None:
        """`flush`: what was sent leaves; `persisted`: these are durable; `wake`: another turn is wanted; `in_flight`: how
        many requests wait at this node; `checkpointing`: whether a checkpoint is being written."""
        self.full = ""
        """Why the log takes nothing now; empty while it does."""
        self.syncing = False
        """A thread is in the log: nobody else may write to it."""
        self._wal = wal
        self._settings = settings
        self._scheduler = scheduler
        self._clock = clock
        self._observer = observer
        self._tracer = tracer
        self._flush = flush
        self._persisted = persisted
        self._wake = wake
        self._in_flight = in_flight
        self._checkpointing = checkpointing
        self._group: list[Taken] = []
        self._side_writes: dict[ReplicaId, ReplicaWrite] = {}
        """The newest of each replica, so that what comes again and again waits only once."""
        self._between: dict[str, Callable[[], None]] = {}
        """By name, so that what comes again and again waits only once."""
        self._sync_mean_ns = 0
        self._closed = False
        self._was_full = False
        """Nothing has been written since the log was full: that it still is, is no news."""

    # --- What is to become durable ------------------------------------------------------------------------------------

    def add(self, replica: Replica, ready: Ready) -> None:
        """Takes a `Ready` whose messages left; `persisted` is called with it."""
        if not ready.must_sync and not ready.messages_after_persist:
            return
        if len(self._group) >= READIES_HELD_MAX and not ready.must_sync:
            return
        self._group.append((replica, ready))

    def drop(self, replica: Replica) -> None:
        """The replica is stopped or gone: what it wanted persisted and was not yet written never happened."""
        self._group = [(other, ready) for other, ready in self._group if other is not replica]

    def write_later(self, write: ReplicaWrite) -> None:
        """A compaction, for which no promise waits: it goes with the next sync. A later one of the replica takes its place."""
        self._side_writes[write.replica] = write

    def between_syncs(self, name: str, action: Callable[[], None]) -> None:
        """Runs `action` when nothing else is in the log, at the end of a turn; under one `name` only the last one."""
        if not self._closed:
            self._between[name] = action
            self._wake()

    def close(self) -> None:
        """Nothing more is written. A sync that has ended in its thread may still say so on the loop, and finds nothing."""
        self._group.clear()
        self._between.clear()
        self._closed = True

    # --- The turn -----------------------------------------------------------------------------------------------------

    def persist(self) -> None:
        """Begins to make the group durable, unless a sync is in flight: then it waits for the next."""
        if self.syncing:
            return
        group, self._group = self._group, []
        side: dict[ReplicaId, ReplicaWrite] = {}
        if self.full:
            group = self._hold_back(group)
        else:
            side, self._side_writes = self._side_writes, {}
        try:
            wrote = self._write([*side.values()], group)
        except StorageFull as full:
            if not self._was_full:
                self._observer.event("disk_low", reason=full.message)
            self.full, self._was_full = full.message, True
            self._side_writes = side | self._side_writes
            group = self._hold_back(group)
            wrote = self._write([], group)
        else:
            self._was_full = self._was_full and (bool(self.full) or not wrote)
        if not wrote:
            self._persisted(group)
            return
        span = self._fsync_span(group) if self._tracer.active else NO_SPAN
        took_ns = 0

        def sync() -> None:
            # Timed where it runs: with the way back to a busy loop in it, a fast disk would be taken for slow for ever.
            nonlocal took_ns
            started_ns = self._clock.monotonic_ns()
            self._wal.sync()
            took_ns = self._clock.monotonic_ns() - started_ns

        proposed = sum(len(batch) for replica, ready in group for batch in replica.proposed_in(ready.entries))
        self._off_loop(sync, lambda: self._synced(group, took_ns, span), others=self._in_flight() > proposed)

    def finish_turn(self) -> None:
        """Persists what the last round left, and does what waits for the log."""
        if self._group or self._side_writes:
            self.persist()
        self._run_between()

    def retry(self) -> None:
        """With each tick: is there room again? Compaction goes first: it is small, and lets go of what takes the room."""
        if not self.full or self.syncing:
            return
        side, self._side_writes = self._side_writes, {}
        try:
            self._wal.write([*side.values()])
        except StorageFull:
            self._side_writes = side | self._side_writes
        self.full = ""
        self._wake()

    def keep_house(self) -> None:
        """Once a second: segments that nobody needs, and a mark that vouches for the last batch of a busy time."""
        self.between_syncs("collect", self._collect)
        self.between_syncs("mark", lambda: self._off_loop(self._wal.mark_synced, lambda: None))

    # --- Inside -------------------------------------------------------------------------------------------------------

    def _write(self, side: list[ReplicaWrite], group: list[Taken]) -> bool:
        """Writes what of the group needs it; whether anything did. Raises: `StorageFull`, with nothing written."""
        writes = list(side)
        for replica, ready in group:
            snapshot = None if ready.snapshot_keeps_log else ready.snapshot
            if ready.entries or ready.hard_state is not None or snapshot is not None:
                writes.append(ReplicaWrite(replica.replica_id, ready.entries, ready.hard_state, snapshot=snapshot))
        if not writes:
            return False
        # The leader sends while it writes; it counts itself only when durable (thesis §10.2.1).
        self._flush()
        self._wal.write(writes)
        self._observe(group)
        return True

    def _hold_back(self, group: list[Taken]) -> list[Taken]:
        """Keeps for later what needs room in the log, and what its replica said after it; returns the rest."""
        passing: list[Taken] = []
        held: list[Taken] = []
        behind: set[int] = set()
        for replica, ready in group:
            needs_room = bool(ready.entries) or (ready.snapshot is not None and not ready.snapshot_keeps_log)
            if needs_room or replica.replica_id in behind:
                behind.add(replica.replica_id)
                held.append((replica, ready))
            else:
                passing.append((replica, ready))
        self._group = held + self._group
        return passing

    def _off_loop(self, work: Callable[[], None], done: Callable[[], None], *, others: bool = False) -> None:
        """Does the work, which syncs, and then `done`: here on a fast disk that has nothing else to do and no
        `others` waiting, else in a thread."""
        fast = self._sync_mean_ns <= self._settings.sync_inline_below_ns and not self._checkpointing()
        if fast and not others:
            work()
            done()
            return

        def finished() -> None:
            self.syncing = False
            done()
            # Before the next group is written: see the module.
            self._run_between()
            self._wake()

        self.syncing = True
        self._scheduler.run_blocking(work, finished)

    def _synced(self, group: list[Taken], took_ns: int, span: Span) -> None:
        span.end()
        self._sync_mean_ns += (took_ns - self._sync_mean_ns) // 16
        self._observer.synced(took_ns)
        self._persisted(group)
        # A leader waits for these promises, and nobody for what this turn applies next.
        self._flush()

    def _run_between(self) -> None:
        while self._between and not self.syncing:
            self._between.pop(next(iter(self._between)))()

    def _collect(self) -> None:
        try:
            self._wal.collect()
        except StorageFull:
            # It wanted to move what holds the oldest segment; it is tried again in a second.
            return

    def _observe(self, group: list[Taken]) -> None:
        entries = commands = size = 0
        for replica, ready in group:
            entries += len(ready.entries)
            for batch in replica.proposed_in(ready.entries):
                commands += sum(puts_in(request.operation) for request, _ in batch)
            for entry in ready.entries:
                size += len(entry.data)
        self._observer.wrote(entries=entries, commands=commands, written_bytes=size)

    def _fsync_span(self, group: list[Taken]) -> Span:
        links = [
            span
            for replica, ready in group
            if replica.traces is not None
            for span in replica.traces.recorded(ready.entries)
        ]
        return self._tracer.start(SPAN_FSYNC, links=links) if links else NO_SPAN
