"""A checkpoint being received: chunks in, and in the end a draft that is checked like one's own.

Rules of this file: on the loop bytes are only written (some 50 us a chunk); what is written is synced in pieces beside
it, so that the end of a large snapshot does not queue hundreds of megabytes before the log's fdatasync.
"""

from collections.abc import Callable
from functools import partial

from raftcache.errors import Corruption, RaftCacheError
from raftcache.raft.messages import SnapshotMeta
from raftcache.storage.background import Continuation, Job, Jobs, nothing
from raftcache.storage.checkpoint_file import CheckpointHeader
from raftcache.storage.checkpoint_result import OnCheckpoint, failed
from raftcache.storage.checkpoints import SYNC_EVERY_BYTES, Draft, StreamParser, SyncFailed, storage_error

Receive = Callable[[Draft, SnapshotMeta, CheckpointHeader, OnCheckpoint], None]
"""Takes over a draft whose bytes are all there."""


class IncomingCheckpoint:
    """See the module. Nothing is visible until `finish` reported `CheckpointVerified`."""

    def __init__(
        self, draft: Draft, meta: SnapshotMeta, *, size: int, digest: bytes, jobs: Jobs, receive: Receive
    ) -> None:
        self._draft = draft
        self._meta = meta
        self._digest = digest
        self._jobs = jobs
        self._receive = receive
        self._parser = StreamParser(size)
        self._open = True
        self._syncing: Job | None = None
        self._sync_failures: list[SyncFailed] = []
        """Appended to by the job itself: a failed sync must not be forgotten, the next one succeeds (see `disk`)."""

    def add(self, chunk: bytes) -> None:
        """Write the next bytes. Raises: `StorageFull`, `Corruption` (not what was announced); abandon it then."""
        if not self._open:
            raise Corruption("the snapshot is not wanted any more: the replica's state was closed or another one begun")
        state = self._parser.feed(chunk)
        try:
            if state:
                self._draft.append(state)
        except OSError as error:
            raise storage_error(error, action=self._draft.state_path) from error
        if self._draft.unsynced >= SYNC_EVERY_BYTES and self._syncing is None:
            self._draft.unsynced = 0
            self._syncing = self._jobs.start("incoming sync", self._sync, nothing)

    def _sync(self, job: Job) -> Continuation:
        try:
            self._draft.sync()
        except SyncFailed as error:
            self._sync_failures.append(error)

        def synced() -> None:
            self._syncing = None

        return synced

    def finish(self, on_done: OnCheckpoint) -> None:
        """All is there: verify, make durable, rename, and make ready for `install`."""
        try:
            if not self._open:
                raise Corruption("the snapshot is not wanted any more")
            if self._syncing is not None:
                # One file, one sync at a time, and its outcome counts.
                self._jobs.cancel(self._syncing)
                self._syncing = None
            if self._sync_failures:
                raise self._sync_failures[0]
            header = self._parser.complete()
            if header.meta != self._meta or header.digest != self._digest:
                raise Corruption(
                    f"announced was a snapshot at {self._meta.index}, {header.meta.index} came, or other bytes"
                )
        except RaftCacheError as error:
            self.abandon()
            self._jobs.post(partial(on_done, failed(self._meta, error)))
            return
        self._open = False
        self._receive(self._draft, self._meta, header, on_done)

    def abandon(self) -> None:
        """Drop what was received. Idempotent; does nothing after `finish`."""
        if self._open:
            self._open = False
            if self._syncing is not None:
                self._jobs.cancel(self._syncing)
            self._draft.discard()
