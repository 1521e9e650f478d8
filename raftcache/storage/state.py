"""What a replica's state is kept in, as the node sees it: live records, checkpoints, and the way from one to the other.

    log ──apply──► live records ──begin_checkpoint──► checkpoint ──open_checkpoint_for_read──► another replica
                        ▲                                  │                                        │
                        └─────────── open / install ───────┘◄────────────begin_incoming─────────────┘

Rules of this file:
- **The log and the checkpoints are the truth; the live records are what they produce**, and may be thrown away at any time.
  `open` throws them away at every start, unless a clean-shutdown marker vouches for them, byte by byte.
- **The rename of a checkpoint is the one commit point.** Nothing under `checkpoints/` was ever there under its name before it was
  complete, verified and synced; a crash at any step reopens as before the step or as after it.
- A checkpoint is *verified* when its record checksums, its recomputed state hash, its record count and its index are what it
  says they are, and its bytes have their digest. Only verified checkpoints are installed, sent, or let the log be compacted.
- Everything is called on the node's loop; what takes long runs beside it and reports through the injected `post`.

Two implementations: `lmdb_state.LmdbStateStore` and, for the simulator, `simulated_state.SimulatedStateStore`. The protocol has more
than six methods because it is one life cycle: each method is a transition of the picture above.

Caveats: a checkpoint that was received is newer than the log until the node has reset the log to start after it. A crash in
between leaves `open` at an index above the log's last one: the node then resets the log, as it would have done.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from raftcache.errors import Corruption, RaftCacheError
from raftcache.kv.records import Records
from raftcache.raft.messages import SnapshotMeta

Post = Callable[[Callable[[], None]], object]
"""Runs a callable on the node's loop, soon; safe from any thread. `loop.call_soon_threadsafe`, or the simulator's queue."""

CHUNK_BYTES = 128 << 10
"""A chunk of a checkpoint on its way to another replica: 64 to 256 KiB keep a stream busy without holding up the loop."""


class StateLost(RaftCacheError):
    """The live records failed in a way that may have undone answered writes: an LMDB error, a full map or disk in apply or commit.

    Indefinite. The replica stops serving at once, calls `discard_live`, opens again and applies the log from there.
    """

    reason: ClassVar[str] = "STATE_LOST"


@dataclass(slots=True, frozen=True)
class CheckpointVerified:
    """The checkpoint is complete, verified and durable. The log at or below `meta.index` may be compacted."""

    meta: SnapshotMeta
    bytes: int
    record_count: int


@dataclass(slots=True, frozen=True)
class CheckpointDamaged:
    """The copy does not add up, though every byte is as it was written: what it was copied *from* is damaged.

    Own checkpoint: the live state is damaged; stop serving and rebuild. Received: the sender's is; nothing was installed.
    """

    meta: SnapshotMeta
    found: str
    """What did not add up, for the log and the operator."""


@dataclass(slots=True, frozen=True)
class CheckpointFailed:
    """There is no checkpoint, and nothing is known about the state: disk full, verifier killed, transfer incomplete. Try later.

    `fatal`: an fsync failed. Durability can no longer be judged, so the process must end.
    """

    meta: SnapshotMeta
    error: RaftCacheError
    fatal: bool = False


CheckpointResult = CheckpointVerified | CheckpointDamaged | CheckpointFailed
OnCheckpoint = Callable[[CheckpointResult], None]
"""Called on the loop, exactly once, unless the store is closed or destroyed before."""


class OutgoingCheckpoint(Protocol):
    """A checkpoint being sent. It is not pruned until `close`."""

    @property
    def meta(self) -> SnapshotMeta: ...
    @property
    def size(self) -> int:
        """Bytes of all chunks together."""
        ...

    @property
    def digest(self) -> bytes:
        """Of the state file in it; the receiver passes it to `begin_incoming`."""
        ...

    def chunk(self) -> bytes:
        """The next `CHUNK_BYTES` at most; empty at the end. Raises: `Corruption` where the file ends early."""
        ...

    def close(self) -> None: ...


class IncomingCheckpoint(Protocol):
    """A checkpoint being received. Nothing is visible until `finish` reported `CheckpointVerified`."""

    def add(self, chunk: bytes) -> None:
        """Write the next bytes. Raises: `StorageFull`, `Corruption` (more bytes than announced); the caller abandons it then."""
        ...

    def finish(self, on_done: OnCheckpoint) -> None:
        """All is there: verify, make durable, rename, and make ready for `install`."""
        ...

    def abandon(self) -> None:
        """Drop what was received. Idempotent; does nothing after `finish`."""
        ...


OnConverted = Callable[[OutgoingCheckpoint | CheckpointFailed], None]


class StateStore(Protocol):
    """The state of one replica. See the module for the rules; one instance per replica directory and opening."""

    @property
    def format(self) -> str:
        """The form in which this store takes a checkpoint as it is: engine and page size. Others need `begin_conversion`."""
        ...

    def open(self) -> Records | None:
        """The state to go on from; None for a replica that never had one. The records say which index they are at.

        That is the live state if the clean-shutdown marker vouches for it (the marker is consumed), else the newest intact
        checkpoint: the caller checks that its log reaches it. Blocks for the copy and the digest of a checkpoint.
        Raises: `Corruption` where there are checkpoints but none is intact; the store can still take an incoming checkpoint and
        `install` it. `StateLost`, `StorageFull`.
        """
        ...

    def bootstrap(self, meta: SnapshotMeta, write: Callable[[Records], None]) -> Records:
        """Creates the first state with `write` and its checkpoint; durable on return. After a crash, call it again.

        Raises: `StateLost`, `StorageFull`.
        """
        ...

    def commit(self) -> None:
        """Commits what was applied, unsynced. Raises: `StateLost`."""
        ...

    def close_clean(self) -> None:
        """Commits, syncs and closes the live records and leaves the marker that vouches for them. Blocks for the sync.

        Never raises: where anything fails, no marker is left and the next `open` rebuilds. Cancels a checkpoint in progress.
        """
        ...

    def discard_live(self) -> None:
        """Closes the live records without a marker: the next `open` rebuilds. Cancels what is in progress. Never raises."""
        ...

    def begin_checkpoint(self, meta: SnapshotMeta, on_done: OnCheckpoint) -> None:
        """Commits, then makes a checkpoint of exactly that state, which `meta` must describe. One at a time per store.

        The state machine must have flushed its own fields into the records. Raises: `StateLost` from the commit.
        """
        ...

    def newest(self) -> SnapshotMeta | None:
        """The newest verified checkpoint: what may be sent, and what the log may be compacted up to. Known after `open`."""
        ...

    def open_checkpoint_for_read(self, meta: SnapshotMeta) -> OutgoingCheckpoint:
        """The checkpoint as chunks, in `format`. Raises: `Corruption` if it is not there any more."""
        ...

    def begin_conversion(self, meta: SnapshotMeta, on_done: OnConverted) -> None:
        """The same as a logical record stream, for a receiver of another `format`; every store takes those."""
        ...

    def begin_incoming(self, meta: SnapshotMeta, *, size: int, digest: bytes) -> IncomingCheckpoint:
        """Receive a checkpoint of `size` bytes. An earlier incoming one is abandoned. Raises: `StorageFull`."""
        ...

    def install(self, meta: SnapshotMeta) -> Records:
        """Replaces the live records by the verified checkpoint `meta`; earlier `Records` are dead. Fast after `finish`.

        Raises: `Corruption` if it is not there or damaged, `StateLost`, `StorageFull`.
        """
        ...

    def needs_compaction(self) -> bool:
        """Whether the live file has grown past twice its records: take a checkpoint, `discard_live`, open again."""
        ...

    def destroy(self) -> None:
        """Closes and removes everything; the replica was removed from its group. Idempotent over crashes."""
        ...


def no_checkpoint(directory: object, detail: str) -> Corruption:
    """The error of a replica that had a state and has no way back to it."""
    return Corruption(
        f"{directory}: no intact checkpoint that the log reaches ({detail}). The log and the vote are unaffected: the replica "
        "fetches a snapshot from its leader. If no replica of the shard has one, restore from a backup"
    )
