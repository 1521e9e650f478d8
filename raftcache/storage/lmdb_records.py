"""The live state machine's records in LMDB: one environment per replica, one write transaction that is always open.

Rules of this file:
- The write transaction lives on the node's loop thread and serves reads and writes alike, so a read sees every applied
  write, committed or not. py-lmdb releases the GIL on every put: in a thread beside a busy loop puts fall a
  hundredfold.
- Commits are **not synced**. Unsynced LMDB breaks silently on power loss, which is why nothing here is ever trusted
  after an unclean stop: the log and the checkpoints are the truth, this is the state that they produce (see
  `lmdb_state.py`).
- WRITEMAP never: a full disk is then SIGBUS, and one stray write corrupts. The map is large, sparse and fixed:
  `set_mapsize` in service invalidates open readers.
- No `lmdb.Error` leaves this file. Whatever LMDB reports on a read, a write or a commit may have rolled state that was
  already *answered* back to the last commit, so all of it becomes `StateLost`: stop serving, discard, rebuild.
- One environment per path and process; never fork after opening one (child processes are spawned by exec).

Caveats: a cursor does not survive `commit()`; a scan that is continued across one fails an assertion. Anonymous memory
is what the open transaction has dirtied, so commits bound it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import lmdb

from raftcache.storage.live_state import Damaged, StateLost

KEY_BYTES_MAX = 511
"""LMDB 0.9's compiled-in maximum. User keys are capped far below (`limits.key_bytes_max`), so exceeding it is a bug,
not bad input."""

ENGINE = 0
"""`lib_version` of py-lmdb: LMDB 0.9. Neither engine reads the other's files; checkpoints name theirs."""

DATA_FILE = "data.mdb"


@dataclass(slots=True, frozen=True)
class LmdbConfig:
    """How environments are opened."""

    map_bytes: int = 64 << 30
    """Address space reserved per environment; sparse, so it costs nothing until used. The
    state cannot outgrow it. 64 GiB times 64 shards is 4 TiB of 128 TiB of user address space."""
    waste_bytes_min: int = 256 << 20
    """Free pages below this are not worth replacing an environment for: a checkpoint
    under load leaves some behind every time (its reader pins the old pages; measured: 170 MiB at 20,000 random puts/s),
    and the writer uses them up again."""
    readers_max: int = 16
    """Reader slots. A replica has at most one reader, the checkpoint copy; the rest is headroom for a slot that LMDB
    frees late."""


class LmdbRecords:
    """`kv.Records` over one LMDB environment. Not thread-safe: belongs to the thread that opened it."""

    def __init__(self, directory: Path, config: LmdbConfig) -> None:
        """Open (or create) the environment in `directory` and begin the write transaction.

        Raises: `StateLost` if LMDB cannot open it.
        """
        self.directory = directory
        self.commits = 0
        """Commits since opening; a cursor belongs to one of them."""
        try:
            self._environment = lmdb.open(
                os.fspath(directory),
                map_size=config.map_bytes,
                sync=False,
                metasync=False,
                writemap=False,
                map_async=False,
                readahead=False,
                max_readers=config.readers_max,
                max_spare_txns=0,
                max_dbs=0,
                lib_version=ENGINE,
            )
        except (lmdb.Error, OSError) as error:
            raise _lost(directory, "open", error) from error
        try:
            self._transaction: lmdb.Transaction[bytes] = self._environment.begin(write=True)
        except lmdb.Error as error:
            self._environment.close()
            raise _lost(directory, "begin", error) from error

    # --- kv.Records -----------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """The value at `key`, or None. Raises: `StateLost`."""
        assert 0 < len(key) <= KEY_BYTES_MAX, f"key of {len(key)} bytes, LMDB takes 1..{KEY_BYTES_MAX}"
        try:
            return self._transaction.get(key)
        except lmdb.Error as error:
            self._fail("get", error)

    def put(self, key: bytes, value: bytes) -> None:
        """Write `key`. Raises: `StateLost`, also where the map or the disk is full."""
        assert 0 < len(key) <= KEY_BYTES_MAX, f"key of {len(key)} bytes, LMDB takes 1..{KEY_BYTES_MAX}"
        try:
            self._transaction.put(key, value)
        except lmdb.Error as error:
            self._fail("put", error)

    def delete(self, key: bytes) -> bool:
        """Remove `key`; True if it was there. Raises: `StateLost`."""
        assert 0 < len(key) <= KEY_BYTES_MAX, f"key of {len(key)} bytes, LMDB takes 1..{KEY_BYTES_MAX}"
        try:
            return self._transaction.delete(key)
        except lmdb.Error as error:
            self._fail("delete", error)

    def scan(self, lo: bytes, hi: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Records with keys in `[lo, hi)`, ascending; `hi=None`: to the end. Lazy: the caller bounds it by stopping.

        Must be finished or dropped before the next `commit()`. Raises: `StateLost`.
        """
        commits = self.commits
        try:
            for item in _scan(self._transaction, lo, hi):
                yield item
                assert commits == self.commits, f"scan begun in commit {commits} continued in {self.commits}"
        except lmdb.Error as error:
            self._fail("scan", error)

    # --- The owner's side -----------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Commit, unsynced, and begin the next write transaction.

        Raises: `StateLost`: all since the last commit may be gone.
        """
        self.commits += 1
        try:
            self._transaction.commit()
            self._transaction = self._environment.begin(write=True)
        except lmdb.Error as error:
            self._fail("commit", error)

    def pin(self) -> PinnedCopy:
        """A copy of the state as of the last commit, to be drawn by another thread while this one goes on writing.

        Everything before the last `commit()` is in the copy, nothing after it. Raises: `StateLost`.
        """
        try:
            return PinnedCopy(self._environment, self._environment.begin(write=False))
        except lmdb.Error as error:
            self._fail("begin of a copy", error)

    def used_bytes(self) -> int:
        """Bytes of the environment's file that hold pages, free ones included."""
        try:
            information = self._environment.info()
            return (information["last_pgno"] + 1) * self._environment.stat()["psize"]
        except lmdb.Error as error:
            self._fail("info", error)

    def live_bytes(self) -> int:
        """Bytes of pages that hold records, as of now; without LMDB's own list of free pages."""
        try:
            pages = self._transaction.stat()
        except lmdb.Error as error:
            self._fail("stat", error)
        return (2 + pages["branch_pages"] + pages["leaf_pages"] + pages["overflow_pages"]) * pages["psize"]

    def close(self, *, synced: bool) -> None:
        """Close the environment. With `synced` commit and sync it first, without it drop the open transaction.

        Copies must be released before. Raises: `StateLost` (only with `synced`).
        """
        try:
            if synced:
                self._transaction.commit()
                self._environment.sync(True)
            else:
                self._transaction.abort()
        except lmdb.Error as error:
            if synced:
                self._fail("close", error)
        finally:
            self._environment.close()

    def _fail(self, action: str, error: lmdb.Error) -> NoReturn:
        raise _lost(self.directory, action, error) from error


class PinnedCopy:
    """A read transaction for one compact copy: made on the loop thread, drawn in another, released once by either."""

    def __init__(self, environment: lmdb.Environment, transaction: lmdb.Transaction[bytes]) -> None:
        self._environment = environment
        self._transaction = transaction

    def write_to(self, descriptor: int) -> None:
        """Write the whole state to `descriptor`, compacted. Blocks, without the GIL, at the pace of the pipe's reader.

        Compact only: LMDB's plain copy waits for the writer, and our writer never ends. Raises: `OSError` where the
        pipe was closed by its reader, `Damaged` where LMDB finds its own pages inconsistent.
        """
        try:
            self._environment.copyfd(descriptor, compact=True, txn=self._transaction)
        except lmdb.Error as error:
            if error.code > 0:
                raise OSError(error.code, os.strerror(error.code)) from error
            raise Damaged(f"LMDB cannot copy the live state: {error}") from error

    def release(self) -> None:
        """End the read transaction, so that LMDB may reuse pages again. The environment must still be open."""
        self._transaction.abort()


class ClosedFile:
    """Read-only `kv.Records` over a closed LMDB file, for the verifier's process; never a live one, it takes no lock.

    Raises: `Damaged` from every method where LMDB finds the file inconsistent. Damage that LMDB does not notice may
    end the process by a signal; that is why it has one to itself.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._environment = lmdb.open(
                path, subdir=False, readonly=True, lock=False, readahead=True, max_dbs=0, lib_version=ENGINE
            )
            self._transaction = self._environment.begin()
        except lmdb.Error as error:
            raise Damaged(f"LMDB cannot open {path}: {error}") from error

    def get(self, key: bytes) -> bytes | None:
        try:
            return self._transaction.get(key)
        except lmdb.Error as error:
            raise Damaged(f"{self._path}: {error}") from error

    def put(self, key: bytes, value: bytes) -> None:
        raise AssertionError("a closed file is not written to")

    def delete(self, key: bytes) -> bool:
        raise AssertionError("a closed file is not written to")

    def scan(self, lo: bytes, hi: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        try:
            yield from _scan(self._transaction, lo, hi)
        except lmdb.Error as error:
            raise Damaged(f"{self._path}: {error}") from error

    def check_lookups(self) -> int:
        """Look up every key that a scan finds; the number of keys. Raises: `Damaged`.

        A scan follows the pointers of the tree and passes by its separators, a lookup follows the separators: a
        damaged one hides keys that a scan, and so a hash over a scan, still sees. If every key is found by lookup,
        every separator is right, and a lookup of an absent key finds nothing for the right reason.
        """
        count = 0
        last = b""
        get = self._transaction.get
        try:
            with self._transaction.cursor() as cursor:
                for key in cursor.iternext(keys=True, values=False):
                    if key <= last or get(key) is None:
                        raise Damaged(f"{self._path}: the key {key[:80]!r} cannot be looked up, or is out of order")
                    last = key
                    count += 1
        except lmdb.Error as error:
            raise Damaged(f"{self._path}: {error}") from error
        return count

    def close(self) -> None:
        self._transaction.abort()
        self._environment.close()


def page_bytes() -> int:
    """The page size of environments that this machine creates: LMDB takes the operating system's, up to 32 KiB."""
    return min(mmap.PAGESIZE, 32 << 10)


def _scan(transaction: lmdb.Transaction[bytes], lo: bytes, hi: bytes | None) -> Iterator[tuple[bytes, bytes]]:
    with transaction.cursor() as cursor:
        if not (cursor.set_range(lo) if lo else cursor.first()):
            return
        for key, value in cursor:
            if hi is not None and key >= hi:
                return
            yield key, value


def _lost(directory: Path, action: str, error: Exception) -> StateLost:
    return StateLost(
        f"live state in {directory}: LMDB {action} failed: {error}. The replica discards it and rebuilds from its "
        "newest checkpoint and the log; if this repeats, check the disk and `storage.map_bytes`"
    )
