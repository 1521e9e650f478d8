"""`python -m raftcache.storage.verify_checkpoint`: what is done to closed state files in a process of its own.

    verify STATE            read everything, recompute everything, print what was found as one line of JSON
    dump STATE STREAM       write a native state file as a logical record stream
    load STREAM STATE       and back

In a process, because a verifying thread slowed the node's loop 3.7 times, and because a damaged LMDB file may end the
process that maps it. Niced, because nobody waits for it. Started by exec and never by fork, because the node has
environments open.

Rules of this file:
- `{"damaged": ...}` and exit status 0 means that the file was read and does not add up; any other end that is not a
  fault of the process itself (SIGBUS, SIGSEGV, SIGABRT, SIGXCPU) leaves open whether the file is good;
- the file is digested first: that reads it in order from the disk, at the disk's speed, and the scan finds it cached;
- afterwards nobody needs it in the page cache, where it would push out the live states that reads are served from;
- imports stay few: the process lives for a second.
"""

import json
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from raftcache.errors import Corruption
from raftcache.kv.stream import dump, load
from raftcache.storage.checkpoint_file import BlockDigest
from raftcache.storage.live_state import Damaged, Verified
from raftcache.storage.lmdb_records import ClosedFile, LmdbConfig, LmdbRecords

NICE = 10
"""Enough that the node's loop always comes first, not so much that a busy machine starves the check."""

CPU_SECONDS_MIN = 60
CPU_BYTES_PER_SECOND_MIN = 2 << 20
"""Processor time beyond this is a tree with a circle in it:
SIGXCPU. Measured: 60 MiB/s with records of 100 bytes; the wall clock says nothing, because a niced process may get a
tenth of a core."""

READ_BYTES = 1 << 20
COMMIT_RECORDS = 10_000
"""Bounds the dirty pages in memory while a stream is loaded."""


def verify(path: str) -> Verified:
    """Everything about one state file. Raises: `Damaged`, `OSError`."""
    digest = BlockDigest()
    for block in _blocks(path):
        digest.update(block)
    check_size(path)
    file = ClosedFile(path)
    try:
        file.check_lookups()
        return Verified.of(file, digest.digest())
    finally:
        file.close()
        _forget(path)


def _forget(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def check_size(path: str) -> None:
    """Check that a file is as long as its meta pages say, before it is mapped: LMDB meets a short one with SIGBUS.

    Raises: `Damaged`. The meta page, of 64-bit LMDB 0.9: page header of 16 bytes, magic u32, version u32, address u64,
    map size u64, two databases of 48 bytes, last page u64, transaction u64. The page size stands in the first
    database's first field.
    """
    size = os.stat(path).st_size
    with Path(path).open("rb") as file:
        page_bytes = int.from_bytes(_at(file.read(160), 40, 4), sys.byteorder)
        if page_bytes not in (1 << shift for shift in range(9, 17)):
            raise Damaged(f"{path}: not an LMDB file: page size {page_bytes}")
        for page in (0, 1):
            file.seek(page * page_bytes)
            meta = file.read(160)
            last_page = int.from_bytes(_at(meta, 136, 8), sys.byteorder)
            if (last_page + 1) * page_bytes > size:
                raise Damaged(
                    f"{path}: {size} bytes, but meta page {page} claims {last_page + 1} pages of {page_bytes}"
                )


def _at(meta: bytes, offset: int, length: int) -> bytes:
    return meta[offset : offset + length]


def dump_file(state: str, stream: str) -> None:
    """Native to logical. Raises: `Damaged`, `OSError`."""
    check_size(state)
    file = ClosedFile(state)
    try:
        with Path(stream).open("wb") as target:
            for chunk in dump(file):
                target.write(chunk)
    finally:
        file.close()


def load_file(stream: str, state: str) -> None:
    """Logical to native. Raises: `Damaged`, `OSError`."""
    directory = Path(f"{state}.loading")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    records = LmdbRecords(directory, LmdbConfig())
    try:
        load(_blocks(stream), _Committing(records))
        records.commit()
        copy = records.pin()
        try:
            with Path(state).open("wb") as target:
                copy.write_to(target.fileno())
        finally:
            copy.release()
    except Corruption as error:
        raise Damaged(error.message) from error
    finally:
        records.close(synced=False)
        shutil.rmtree(directory)


class _Committing:
    """`Records` that commit now and then."""

    def __init__(self, records: LmdbRecords) -> None:
        self._records = records
        self._puts = 0
        self.get = records.get
        self.delete = records.delete
        self.scan = records.scan

    def put(self, key: bytes, value: bytes) -> None:
        self._records.put(key, value)
        self._puts += 1
        if self._puts % COMMIT_RECORDS == 0:
            self._records.commit()


def _blocks(path: str) -> Iterator[bytes]:
    with Path(path).open("rb", buffering=0) as file:
        while block := file.read(READ_BYTES):
            yield block


def main(arguments: list[str]) -> None:
    """Do one thing and print what came of it."""
    os.nice(NICE)
    if len(arguments) > 1 and os.path.exists(arguments[1]):
        seconds = CPU_SECONDS_MIN + os.stat(arguments[1]).st_size // CPU_BYTES_PER_SECOND_MIN
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    try:
        match arguments:
            case ["verify", path]:
                found = verify(path)
                answer = {
                    "index": found.index,
                    "term": found.term,
                    "configuration": found.configuration.hex(),
                    "record_count": found.record_count,
                    "state_hash": f"{found.state_hash:032x}",
                    "digest": found.digest.hex(),
                }
            case ["dump", state, stream]:
                dump_file(state, stream)
                answer = {}
            case ["load", stream, state]:
                load_file(stream, state)
                answer = {}
            case _:
                sys.exit(__doc__)
    except Damaged as error:
        answer = {"damaged": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
