"""What comes of a checkpoint, made or received, and what one looks like on its way out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from raftcache.errors import RaftCacheError, Unavailable
from raftcache.raft.messages import SnapshotMeta
from raftcache.storage.checkpoints import SyncFailed, storage_error


@dataclass(slots=True, frozen=True)
class CheckpointVerified:
    """The checkpoint is complete, verified and durable. The log at or below `meta.index` may be compacted."""

    meta: SnapshotMeta
    bytes: int
    record_count: int


@dataclass(slots=True, frozen=True)
class CheckpointDamaged:
    """The copy does not add up, though every byte is as it was written: what it was copied *from* is damaged.

    Own checkpoint: the live state is damaged; stop serving and rebuild. Received: the sender's is; nothing was
    installed.
    """

    meta: SnapshotMeta
    found: str
    """What did not add up, for the log and the operator."""


@dataclass(slots=True, frozen=True)
class CheckpointFailed:
    """There is no checkpoint, and nothing is known about the state: disk full, verifier killed, cancelled. Try later.

    `fatal`: an fsync failed. Durability can no longer be judged, so the process must end.
    """

    meta: SnapshotMeta
    error: RaftCacheError
    fatal: bool = False


CheckpointResult = CheckpointVerified | CheckpointDamaged | CheckpointFailed
OnCheckpoint = Callable[[CheckpointResult], None]
"""Called on the loop, exactly once; also for what `discard_live`, `close_clean` and `destroy` cancelled."""


class OutgoingCheckpoint(Protocol):
    """A checkpoint being sent. It is not pruned until `close`."""

    meta: SnapshotMeta
    size: int
    """Bytes of all chunks together."""
    digest: bytes
    """Of the state file in it; the receiver passes it to `begin_incoming`."""

    def chunk(self) -> bytes:
        """The next `CHUNK_BYTES` at most; empty at the end. Raises: `Corruption` where the file cannot be read."""
        ...

    def close(self) -> None:
        """Let go of it; idempotent."""
        ...


OnConverted = Callable[[OutgoingCheckpoint | CheckpointFailed], None]


def failed(meta: SnapshotMeta, error: RaftCacheError | OSError) -> CheckpointFailed:
    """The result for an error on the way."""
    if isinstance(error, OSError):
        error = storage_error(error, action=f"checkpoint at index {meta.index}")
    return CheckpointFailed(meta, error, fatal=isinstance(error, SyncFailed))


def cancelled(meta: SnapshotMeta) -> CheckpointFailed:
    """The result for a checkpoint whose replica moved on."""
    return CheckpointFailed(
        meta, Unavailable(f"the checkpoint at index {meta.index} was cancelled: its replica moved on")
    )
