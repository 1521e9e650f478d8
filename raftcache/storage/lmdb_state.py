"""The parts of a `StateStore` in production: an LMDB environment, a copying thread, and a verifying child process.

    <directory>/live/data.mdb, lock.mdb     the environment in use
    <directory>/live-next/data.mdb          a checkpoint's state file, copied and proven, about to become it
    <directory>/live-old/                   the one before, being removed

Rules of this file:
- a live environment is made from a checkpoint by copying its file: LMDB writes in place, a checkpoint never changes;
- nothing here is synced but in a clean shutdown; the truth is elsewhere;
- nobody maps a file that was not proven first: by digest, or by a marker's digest.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from raftcache.errors import Unavailable
from raftcache.ids import Index, Term
from raftcache.kv.records import Records
from raftcache.storage.background import Cancelled, Job, Post, ThreadBackground
from raftcache.storage.checkpoint_file import BlockDigest, lmdb_format
from raftcache.storage.checkpoints import checked_blocks
from raftcache.storage.disk import Disk, OsDisk
from raftcache.storage.live_state import Damaged, Verified
from raftcache.storage.lmdb_records import DATA_FILE, LmdbConfig, LmdbRecords, PinnedCopy, page_bytes
from raftcache.storage.state import StateConfig, StateStore

PIPE_BYTES = 1 << 20
"""LMDB writes copies in pieces of this size; a pipe as large saves the copying thread most of its wake-ups."""

POLL_SECONDS = 0.05
"""How long a cancelled verification may go on."""

_SIGNALS_OF_DAMAGE = (signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGXCPU)
"""Faults while reading, and a processor-time limit that only a tree with a circle in it reaches."""


def lmdb_state_store(
    directory: str,
    *,
    post: Post,
    lmdb_config: LmdbConfig | None = None,
    config: StateConfig | None = None,
    disk: Disk | None = None,
) -> StateStore:
    """A `StateStore` for one replica of a real node. `disk` is a seam for tests; its paths must be real ones."""
    disk = disk or OsDisk()
    return StateStore(
        directory,
        disk=disk,
        live=LmdbLive(directory, lmdb_config or LmdbConfig(), disk),
        verifier=ChildVerifier(),
        background=ThreadBackground(post),
        post=post,
        config=config or StateConfig(),
    )


class LmdbLive:
    """`LiveState` in LMDB."""

    def __init__(self, directory: str, config: LmdbConfig, disk: Disk) -> None:
        self.format = lmdb_format(page_bytes())
        self._config = config
        self._disk = disk
        self._directory = Path(directory)
        self._live = self._directory / "live"
        self._next = self._directory / "live-next"
        self._old = self._directory / "live-old"
        self._records: LmdbRecords | None = None

    def create(self) -> Records:
        self.close(synced=False)
        _empty(self._live)
        self._records = LmdbRecords(self._live, self._config)
        return self._records

    def prepare(self, blocks: Iterator[bytes]) -> None:
        _empty(self._next)
        try:
            with (self._next / DATA_FILE).open("wb", buffering=0) as file:
                for block in blocks:
                    rest = memoryview(block)
                    while rest:
                        rest = rest[file.write(rest) :]
        except BaseException:
            shutil.rmtree(self._next)
            raise

    def load(self) -> Records:
        self.close(synced=False)
        if self._live.exists():
            # Unlinking costs 0.2 ms a MiB, renaming nothing; `sweep` unlinks beside the loop.
            self.sweep()
            self._live.rename(self._old)
        self._next.rename(self._live)
        self._records = LmdbRecords(self._live, self._config)
        return self._records

    def resume(self, proof: dict[str, str]) -> Records:
        path = os.fspath(self._live / DATA_FILE)
        for _ in checked_blocks(self._disk, path, size=int(proof["bytes"]), digest=bytes.fromhex(proof["digest"])):
            pass
        self._records = LmdbRecords(self._live, self._config)
        return self._records

    def commit(self) -> None:
        self._open().commit()

    def copy(self) -> "LmdbCopy":
        return LmdbCopy(self._open().pin())

    def close(self, *, synced: bool) -> dict[str, str]:
        records, self._records = self._records, None
        if records is None:
            return {}
        records.close(synced=synced)
        if not synced:
            return {}
        # The names must be as durable as the pages, or a marker would vouch for a file that a power cut took away.
        self._disk.fsync_directory(os.fspath(self._live))
        self._disk.fsync_directory(os.fspath(self._directory))
        digest = BlockDigest()
        with (self._live / DATA_FILE).open("rb", buffering=0) as file:
            while block := file.read(PIPE_BYTES):
                digest.update(block)
        return {"bytes": str(digest.size), "digest": digest.digest().hex()}

    def space(self) -> tuple[int, int]:
        # Without free pages: they are taken again, so that what was deleted makes room at once.
        return self._open().live_bytes(), self._config.map_bytes

    def grown(self) -> bool:
        records = self._open()
        live = records.live_bytes()
        waste = records.used_bytes() - live
        return waste >= self._config.waste_bytes_min and waste > live

    def sweep(self) -> None:
        shutil.rmtree(self._old, ignore_errors=True)

    def _open(self) -> LmdbRecords:
        assert self._records is not None, f"{self._live} is closed"
        return self._records


def _empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()


class LmdbCopy:
    """`LiveCopy` of an environment: LMDB writes into a pipe in one thread, the job reads it at its pace in another."""

    def __init__(self, pinned: PinnedCopy) -> None:
        self._pinned = pinned

    def draw(self, write: Callable[[bytes], None]) -> None:
        reading, writing = os.pipe()
        failures: list[Exception] = []

        def copy() -> None:
            try:
                self._pinned.write_to(writing)
            except (Damaged, OSError) as error:
                failures.append(error)
            finally:
                os.close(writing)

        try:
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            pass  # A user's pipe memory is limited; the default of 64 KiB works as well, with more wake-ups.
        thread = threading.Thread(target=copy, name="lmdb copy", daemon=True)
        thread.start()
        try:
            while block := os.read(reading, PIPE_BYTES):
                write(block)
        finally:
            # Closed early, it ends the copy with EPIPE: `failures` then says nothing new.
            os.close(reading)
            thread.join()
        if failures:
            raise failures[0]

    def release(self) -> None:
        self._pinned.release()


class ChildVerifier:
    """`Verifier` by `verify_checkpoint` in a child process."""

    def verify(self, path: str, job: Job) -> Verified:
        found = self._run(["verify", path], job)
        return Verified(
            index=Index(int(found["index"])),
            term=Term(int(found["term"])),
            configuration=bytes.fromhex(found["configuration"]),
            record_count=int(found["record_count"]),
            state_hash=int(found["state_hash"], 16),
            digest=bytes.fromhex(found["digest"]),
        )

    def convert(self, source: str, target: str, *, to_logical: bool, job: Job) -> None:
        self._run(["dump" if to_logical else "load", source, target], job)

    def _run(self, arguments: list[str], job: Job) -> dict[str, str]:
        # -P: the directory in which the node was started must not decide which code verifies.
        command = [sys.executable, "-P", "-m", "raftcache.storage.verify_checkpoint", *arguments]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            while True:
                try:
                    output, errors = child.communicate(timeout=POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    try:
                        job.check()
                    except Cancelled:
                        child.kill()
                        raise
        if -child.returncode in _SIGNALS_OF_DAMAGE:
            raise Damaged(
                f"{arguments[1]}: the verifier died of {signal.Signals(-child.returncode).name} while it read it"
            )
        if child.returncode != 0:
            raise Unavailable(f"verifying {arguments[1]} ended with status {child.returncode}: {errors[-500:]}")
        answer: dict[str, str] = json.loads(output)
        if "damaged" in answer:
            raise Damaged(answer["damaged"])
        return answer
