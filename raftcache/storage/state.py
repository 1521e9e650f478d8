"""A replica's state on disk: live records, checkpoints, and every way from one to the other.

    log ──apply──► live records ──begin_checkpoint──► checkpoint ──open_checkpoint_for_read──► other replica
                        ▲                                 │                                         │
                        └───────── open, install ─────────┘◄──────────── begin_incoming ────────────┘

    <directory>/live/, live-next/     the live records and their successor being prepared; the `LiveState`'s business
    <directory>/checkpoints/          see `checkpoints.py`
    <directory>/clean                 the marker of a clean shutdown

Rules of this file:
- **The log and the checkpoints are the truth; the live records are what they produce**, and may be thrown away at
  any time. `open` throws them away at every start, unless a clean-shutdown marker vouches for them, byte by byte.
  The marker is consumed durably *before* they are opened: it vouches once.
- **The rename of a checkpoint is the one commit point.** Nothing is ever there under a checkpoint's name before it is
  complete, verified and synced; a crash at any step reopens as before the step or as after it.
- A checkpoint is *verified* when its record checksums, its recomputed hashes, its counts and its index are what it
  says they are, and its bytes have their digest. Only verified ones are installed, sent, or let the log be compacted.
- Everything is called on the node's loop. What takes long runs as a `background` job, and its continuation on the loop.

There is one `StateStore` and two sets of parts: LMDB, child processes and threads (`lmdb_state.py`), and memory, inline
and deterministic, for the simulator (`simulated_state.py`), which so crashes the transitions that production takes.

Caveats: a received checkpoint is newer than the log until the node has reset the log to start after it. After a crash
in between, `open` returns a state beyond the log's last entry: the node then finishes the reset. A checkpoint that was
damaged after its verification is found at the next start or by its receiver, not before.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from raftcache.errors import Corruption, RaftCacheError, StorageFull, UnsupportedVersion
from raftcache.kv.records import Records
from raftcache.raft.configuration import decode_configuration
from raftcache.raft.messages import SnapshotMeta
from raftcache.storage.background import Background, Cancelled, Continuation, Job, Jobs, Post, nothing
from raftcache.storage.checkpoint_file import LOGICAL_FORMAT, CheckpointHeader
from raftcache.storage.checkpoint_result import (
    CheckpointDamaged,
    CheckpointFailed,
    CheckpointResult,
    CheckpointVerified,
    OnCheckpoint,
    OnConverted,
    OutgoingCheckpoint,
    cancelled,
    failed,
)
from raftcache.storage.checkpoints import Checkpoints, Draft, Outgoing, storage_error
from raftcache.storage.clean_marker import consume_marker, position_of, write_marker
from raftcache.storage.disk import Disk, make_directory, parent_of, remove_tree
from raftcache.storage.incoming import IncomingCheckpoint
from raftcache.storage.live_state import Damaged, LiveState, StateLost, Verified, Verifier

__all__ = [
    "CheckpointDamaged",
    "CheckpointFailed",
    "CheckpointResult",
    "CheckpointVerified",
    "IncomingCheckpoint",
    "OutgoingCheckpoint",
    "StateConfig",
    "StateLost",
    "StateStore",
]


@dataclass(slots=True, frozen=True)
class StateConfig:
    """Settings of a `StateStore`."""

    copy_bytes_per_second: int = 128 << 20
    """Pace of checkpoint writes, so that the log's share of the disk is never small; a slower disk sets its own pace,
    because the copy waits for its syncs. Not lower, because the copy pins old pages while it lasts. 0 = unpaced."""
    free_bytes_min: int = 256 << 20
    """Left free on the disk by checkpoints, own and received, so that the log can go on."""


class StateStore:
    """The state of one replica; one instance per replica directory and opening. See the module for the rules."""

    def __init__(
        self,
        directory: str,
        *,
        disk: Disk,
        live: LiveState,
        verifier: Verifier,
        background: Background,
        post: Post,
        config: StateConfig,
    ) -> None:
        self.directory = directory
        self.resumed = False
        """Whether `open` found the live state vouched for; False where it rebuilt it."""
        self._disk = disk
        self._live = live
        self._verifier = verifier
        self._jobs = Jobs(background, post)
        self._config = config
        self._checkpoints = Checkpoints(disk, f"{directory}/checkpoints")
        self._records: Records | None = None
        """The live records while they are open."""
        self._prepared: SnapshotMeta | None = None
        """The checkpoint that `LiveState.prepare` has made ready. Jobs set it, holding `_preparing`; the loop reads it while
        none runs."""
        self._preparing = threading.Lock()
        """There is one place to make a checkpoint ready in, and an own one and a received one may end at once."""
        self._incoming: IncomingCheckpoint | None = None
        """The newest one, finished or not."""
        self._checkpointing = False

    @property
    def format(self) -> str:
        """The form in which this store takes a checkpoint as it is. Others need `begin_conversion` at the sender."""
        return self._live.format

    # --- Opening and closing --------------------------------------------------------------------------------------

    def open(self) -> Records | None:
        """The state to go on from; None for a replica that never had one. The records say which index they are at.

        That is the live state if the marker vouches for it, else the newest intact checkpoint: the caller checks that
        its log reaches it. Blocks for the digest and the copy of a checkpoint.
        Raises: `Corruption` where there are checkpoints but none is intact; the store can still take an incoming
        checkpoint and `install` it. `StateLost` where the disk or LMDB refuses. `UnsupportedVersion` where a newer
        release was here.
        """
        assert self._records is None, f"{self.directory} is open already"
        with self._losing_state():
            make_directory(self._disk, parent_of(self.directory))
            make_directory(self._disk, self.directory)
            proof = consume_marker(self._disk, self.directory)
            self._checkpoints.sweep()
        if proof is not None:
            self._records = self._resume(proof)
            self.resumed = self._records is not None
        while (newest := self._checkpoints.newest()) is not None:
            try:
                if newest.format != self.format:
                    raise Corruption(f"{newest.format} is not the form of this node's engine, {self.format}")
                if self._records is None:
                    self._load(newest)
                else:
                    for _ in self._checkpoints.blocks(newest):
                        pass
                return self._records
            except Corruption as error:
                self._checkpoints.refuse(newest, error.message)
        if self._records is None and self._checkpoints.refused:
            raise Corruption(
                f"{self.directory}: no checkpoint is intact ({'; '.join(self._checkpoints.refused.values())}). Log and vote are "
                "not affected: the replica fetches a snapshot from its leader. If no replica of the shard has a state, "
                "restore from a backup"
            )
        return self._records

    def _resume(self, proof: dict[str, str]) -> Records | None:
        """The live state, if all that the marker says about it is true."""
        try:
            records = self._live.resume(proof)
            position = position_of(records)
        except (RaftCacheError, OSError):
            position = None
        if position is None or not position.items() <= proof.items():
            self._live.close(synced=False)
            return None
        return records

    def _load(self, header: CheckpointHeader) -> Records:
        """The checkpoint as live records. Raises: `Corruption`, `StateLost`."""
        with self._losing_state():
            prepared, self._prepared = self._prepared, None
            if prepared != header.meta:
                self._live.prepare(self._checkpoints.blocks(header))
            self._records = None
            self._records = self._live.load()

        def sweep(job: Job) -> Continuation:
            self._live.sweep()
            return nothing

        self._jobs.start("sweep", sweep, nothing)
        return self._records

    def bootstrap(self, meta: SnapshotMeta, write: Callable[[Records], None]) -> Records:
        """Creates the first state with `write`, and its checkpoint; durable on return. After a crash, call it again.

        The state is a handful of records just written, so it is verified here and not in a child process.
        Raises: `StateLost` where the disk or LMDB refuses, `SyncFailed` (fatal).
        """
        assert self._records is None, f"{self.directory} has a state already"
        with self._losing_state():
            records = self._live.create()
            write(records)
            self._live.commit()
            copy = self._live.copy()
            draft = self._checkpoints.draft()
            try:
                copy.draw(draft.append)
            finally:
                copy.release()
            draft.seal()
            header = self._checked(Verified.of(records, draft.digest.digest()), draft, meta)
            draft.publish(header)
        self._checkpoints.add(header)
        self._records = records
        return records

    def commit(self) -> None:
        """Commits what was applied, unsynced. Raises: `StateLost`."""
        self._live.commit()

    def close_clean(self) -> None:
        """Commits, syncs and closes the live records and leaves the marker that vouches for them. Blocks for the sync.

        The state machine must have been flushed. Never raises: where anything fails there is no marker, and the next
        `open` rebuilds. Cancels what is in progress.
        """
        self._cancel_all()
        if self._records is None:
            return
        try:
            position = position_of(self._records)
            if position is not None:
                proof = self._live.close(synced=True)
                write_marker(self._disk, self.directory, position | proof)
        except (RaftCacheError, OSError):
            pass
        self._live.close(synced=False)
        self._records = None

    def discard_live(self) -> None:
        """Closes the live records; the next `open` rebuilds. Cancels what is in progress. Never raises."""
        self._cancel_all()
        self._live.close(synced=False)
        self._records = None

    def destroy(self) -> None:
        """Closes everything and removes it beside the loop (unlinking costs 0.2 ms a MiB), after the replica left its group.
        Never raises; repeat it after a crash."""
        self.discard_live()

        def work(job: Job) -> Continuation:
            try:
                if self._disk.exists(self.directory):
                    remove_tree(self._disk, self.directory)
            except OSError:
                pass
            return nothing

        self._jobs.start("removal", work, nothing)

    @contextmanager
    def _losing_state(self) -> Iterator[None]:
        """An `OSError` on the way to live records means that there are none."""
        try:
            yield
        except OSError as error:
            raise StateLost(f"{self.directory}: {error}; free space or check the disk") from error

    # --- Checkpoints ----------------------------------------------------------------------------------------------

    def newest(self) -> SnapshotMeta | None:
        """The newest verified checkpoint, known after `open`: may be sent, and the log may be compacted up to it."""
        header = self._checkpoints.newest()
        return header.meta if header else None

    def begin_checkpoint(self, meta: SnapshotMeta, on_done: OnCheckpoint) -> None:
        """Commits, then makes a checkpoint of exactly that state, which `meta` must describe. One at a time per store.

        The state machine must have been flushed. The checkpoint is also the scrub of the live state. Of a state that
        has an intact checkpoint already only the scrub is done. Raises: `StateLost` from the commit.
        """
        assert self._records is not None, f"{self.directory} has no state to copy"
        assert not self._checkpointing, f"{self.directory}: a checkpoint is in progress"
        self._live.commit()
        grown = self._live.grown()
        try:
            # Found out by writing, it would be the log that meets a full disk. The floor does not count: a checkpoint lets go of log.
            taken, _ = self._live.space()
            if grown:
                taken *= 2  # the live state is made anew of it, beside the old one
            free = self._disk.free_bytes(self.directory)
            if free < taken:
                raise StorageFull(f"a checkpoint needs {taken} bytes, {free} are free; the old one stays")
            draft = self._checkpoints.draft()
        except (OSError, StorageFull) as error:
            self._jobs.post(partial(on_done, failed(meta, error)))
            return
        copy = self._live.copy()
        self._checkpointing = True

        def make(job: Job) -> CheckpointHeader:
            def write(block: bytes) -> None:
                draft.append(block)
                if self._config.copy_bytes_per_second:
                    job.pause(len(block) / self._config.copy_bytes_per_second)

            try:
                copy.draw(write)
            finally:
                copy.release()
            draft.seal()
            return self._checked(self._verifier.verify(draft.state_path, job), draft, meta)

        def done(result: CheckpointResult) -> None:
            self._checkpointing = False
            on_done(result)

        self._start_publication("checkpoint", draft, meta, make, done, prepare=grown)

    def _checked(self, found: Verified, draft: Draft, meta: SnapshotMeta) -> CheckpointHeader:
        """The header of a sealed draft in which `found` was found.

        Raises: `Damaged`, `Corruption` (the disk's doing).
        """
        digest = draft.digest.digest()
        if found.digest != digest:
            raise Corruption(
                f"{draft.state_path}: written with digest {digest.hex()}, read back with {found.digest.hex()}"
            )
        if (found.index, found.term) != (meta.index, meta.term):
            raise Damaged(f"it holds index {found.index} of term {found.term}, not {meta.index} of term {meta.term}")
        configuration = decode_configuration(found.configuration)
        if configuration != meta.configuration:
            raise Damaged(f"it holds the configuration {configuration}, not {meta.configuration}")
        return CheckpointHeader(
            format=self.format,
            meta=meta,
            record_count=found.record_count,
            state_hash=found.state_hash,
            state_bytes=draft.digest.size,
            digest=digest,
        )

    def _start_publication(
        self,
        name: str,
        draft: Draft,
        meta: SnapshotMeta,
        make: Callable[[Job], CheckpointHeader],
        on_done: OnCheckpoint,
        *,
        prepare: bool = False,
    ) -> None:
        """A job that makes a verified draft and publishes it; with `prepare` it also makes `install` of it fast."""
        known = self._checkpoints.find(meta) is not None

        def work(job: Job) -> Continuation:
            try:
                header = make(job)
                job.check()
                if known:
                    draft.discard()
                else:
                    draft.publish(header)
            except Damaged as error:
                draft.discard()
                return partial(on_done, CheckpointDamaged(meta, str(error)))
            except (RaftCacheError, OSError) as error:
                draft.discard()
                return partial(on_done, failed(meta, error))
            except Cancelled:
                draft.discard()
                raise
            if prepare:
                self._prepare(header, job)
            return partial(self._published, header, on_done)

        self._jobs.start(name, work, partial(on_done, cancelled(meta)))

    def _prepare(self, header: CheckpointHeader, job: Job) -> None:
        """Makes the checkpoint ready for `install`, which does this itself where it was not done."""
        with self._preparing:
            self._prepared = None
            try:
                self._live.prepare(_cancellable(self._checkpoints.blocks(header), job))
            except (RaftCacheError, OSError):
                return
            self._prepared = header.meta

    def _published(self, header: CheckpointHeader, on_done: OnCheckpoint) -> None:
        if self._checkpoints.find(header.meta) is None:
            self._checkpoints.add(header)
        self._prune()
        on_done(CheckpointVerified(header.meta, header.state_bytes, header.record_count))

    def _prune(self) -> None:
        """Remove what the newest checkpoint supersedes: renamed away here, unlinked beside the loop."""
        try:
            directories = self._checkpoints.superseded()
        except OSError:
            return  # Swept at the next start, or tried again after the next checkpoint.

        def work(job: Job) -> Continuation:
            for directory in directories:
                job.check()
                try:
                    remove_tree(self._disk, directory)
                except OSError:
                    pass
            return nothing

        if directories:
            self._jobs.start("prune", work, nothing)

    # --- Sending --------------------------------------------------------------------------------------------------

    def open_checkpoint_for_read(self, meta: SnapshotMeta) -> OutgoingCheckpoint:
        """The checkpoint as chunks, in `format`. Raises: `Corruption` if it is not there any more or cannot be read."""
        header = self._checkpoints.find(meta)
        if header is None:
            raise Corruption(f"{self.directory}: no checkpoint at index {meta.index}, term {meta.term}")
        return self._checkpoints.reader(header, on_closed=self._prune_if_open)

    def begin_conversion(self, meta: SnapshotMeta, on_done: OnConverted) -> None:
        """The same as a logical record stream, for a receiver of another `format`; every store takes those.

        Raises: `Corruption` if it is not there any more.
        """
        source = self._checkpoints.find(meta)
        if source is None:
            raise Corruption(f"{self.directory}: no checkpoint at index {meta.index}, term {meta.term}")
        if self.format == LOGICAL_FORMAT:
            self._jobs.post(partial(on_done, self.open_checkpoint_for_read(meta)))
            return
        try:
            draft = self._checkpoints.draft()
        except OSError as error:
            self._jobs.post(partial(on_done, failed(meta, error)))
            return

        def work(job: Job) -> Continuation:
            try:
                self._verifier.convert(self._checkpoints.state_path(source), draft.state_path, to_logical=True, job=job)
                draft.adopt()
            except Damaged as error:
                draft.discard()
                return partial(on_done, failed(meta, Corruption(str(error))))
            except (RaftCacheError, OSError) as error:
                draft.discard()
                return partial(on_done, failed(meta, error))
            except Cancelled:
                draft.discard()
                raise
            header = replace(source, format=LOGICAL_FORMAT, state_bytes=draft.digest.size, digest=draft.digest.digest())
            return lambda: on_done(Outgoing(draft.file, draft.state_path, header, draft.discard))

        self._jobs.start("conversion", work, partial(on_done, cancelled(meta)))

    # --- Receiving ------------------------------------------------------------------------------------------------

    def begin_incoming(self, meta: SnapshotMeta, *, size: int, digest: bytes) -> IncomingCheckpoint:
        """Receive a checkpoint of `size` bytes. An earlier incoming one is abandoned.

        Raises: `StorageFull`, `Corruption`.
        """
        if self._incoming is not None:
            self._incoming.abandon()
        # Twice: the checkpoint, and the live state that is made of it while the old one is still there.
        needed = 2 * size + self._config.free_bytes_min
        try:
            free = self._disk.free_bytes(self.directory)
            if free < needed:
                raise StorageFull(f"a snapshot of {size} bytes needs {needed} bytes free, there are {free}")
            draft = self._checkpoints.draft(sync_inline=False)
        except OSError as error:
            raise storage_error(error, action=f"{self.directory}: begin to receive a snapshot") from error
        self._incoming = IncomingCheckpoint(
            draft, meta, size=size, digest=digest, jobs=self._jobs, receive=self._receive
        )
        return self._incoming

    def _receive(self, draft: Draft, meta: SnapshotMeta, header: CheckpointHeader, on_done: OnCheckpoint) -> None:
        """All bytes are there: from here on as with an own checkpoint, but that the header is checked too."""
        if header.format not in (self.format, LOGICAL_FORMAT):
            draft.discard()
            error = UnsupportedVersion(f"a snapshot came as '{header.format}'; this node takes '{self.format}'")
            self._jobs.post(partial(on_done, failed(meta, error)))
            return
        native = draft
        if header.format != self.format:
            try:
                native = self._checkpoints.draft()
            except OSError as os_error:
                draft.discard()
                self._jobs.post(partial(on_done, failed(meta, os_error)))
                return

        def make(job: Job) -> CheckpointHeader:
            try:
                draft.seal()
                if draft.digest.digest() != header.digest:
                    raise Corruption(f"the snapshot at index {meta.index} was damaged on its way: its digest differs")
                if native is not draft:
                    self._verifier.convert(draft.state_path, native.state_path, to_logical=False, job=job)
                    native.adopt()
                    native.seal()
            finally:
                if native is not draft:
                    draft.discard()
            found = self._checked(self._verifier.verify(native.state_path, job), native, meta)
            if (found.record_count, found.state_hash) != (header.record_count, header.state_hash):
                raise Damaged(
                    f"it holds {found.record_count} records, hash {found.state_hash:032x}; the header differs"
                )
            return found

        self._start_publication("incoming checkpoint", native, meta, make, on_done, prepare=True)

    def install(self, meta: SnapshotMeta) -> Records:
        """Replaces the live records by the verified checkpoint `meta`; earlier `Records` are dead. Fast after `finish`.

        Cancels a checkpoint in progress. Raises: `Corruption` if it is not there or damaged, `StateLost`.
        """
        self._cancel_all()
        header = self._checkpoints.find(meta)
        if header is None:
            raise Corruption(f"{self.directory}: no checkpoint at index {meta.index}, term {meta.term} to install")
        try:
            return self._load(header)
        except Corruption as error:
            self._checkpoints.refuse(header, error.message)
            raise

    def space(self) -> tuple[int, int]:
        """Bytes that the live records take, and the most that they can take; 0 where there is no such figure. Cheap.

        Raises: `StateLost`.
        """
        return self._live.space() if self._records is not None else (0, 0)

    def needs_compaction(self) -> bool:
        """Whether the live file has grown past twice its records, by enough to matter.

        Then: take a checkpoint, `install` it, apply the log from there. A checkpoint that was begun in this state makes
        its `install` fast. Not urgent: a replica that leads hands leadership off first.
        """
        return self._records is not None and self._live.grown()

    def _cancel_all(self) -> None:
        """End what is in progress and wait for that: nothing touches the live records or drafts any more."""
        if self._incoming is not None:
            self._incoming.abandon()
            self._incoming = None
        self._jobs.cancel_all()

    def _prune_if_open(self) -> None:
        if self._records is not None:
            self._prune()


def _cancellable(blocks: Iterator[bytes], job: Job) -> Iterator[bytes]:
    for block in blocks:
        job.check()
        yield block
