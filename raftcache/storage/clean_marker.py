"""The clean-shutdown marker: what a node that stopped in order says about a live state, for the next start to believe.

It holds the position of the state (applied index and term, state hash) and the engine's proof (size and digest of its
file), as one line of JSON and a CRC32C. It is written after the live state is synced and closed, and consumed durably
before it is opened again: a marker vouches once. Without one, or with one that does not hold, the state is rebuilt.
"""

import json

import crc32c

from raftcache.errors import RaftCacheError
from raftcache.kv.meta import State
from raftcache.kv.records import Records
from raftcache.storage.disk import Disk, read_file, write_file_atomically

MARKER_FILE = "clean"
MARKER_VERSION = "1"


def position_of(records: Records) -> dict[str, str] | None:
    """Where a state says it is; None where it was not flushed completely. Raises: `Corruption`."""
    state = State.load(records)
    if not state.complete:
        return None
    return {
        "index": str(state.applied_index),
        "term": str(state.applied_term),
        "state_hash": f"{state.state_hash:032x}",
    }


def write_marker(disk: Disk, directory: str, facts: dict[str, str]) -> None:
    """Leave a marker, durably; the last step of a clean shutdown. Raises: `OSError`."""
    body = json.dumps({"version": MARKER_VERSION, **facts}).encode()
    checksum = f"{crc32c.crc32c(body):08x}\n".encode()
    write_file_atomically(disk, f"{directory}/{MARKER_FILE}", body + b"\n" + checksum)


def consume_marker(disk: Disk, directory: str) -> dict[str, str] | None:
    """Take the marker away, durably, and return what it says; None where there is none, or none that can be read.

    Raises: `OSError`; the state must not be opened then, because the marker might vouch a second time.
    """
    path = f"{directory}/{MARKER_FILE}"
    for left_over in (f"{path}.tmp",):
        if disk.exists(left_over):
            disk.unlink(left_over)
    if not disk.exists(path):
        return None
    try:
        body, _, checksum = read_file(disk, path).partition(b"\n")
    except RaftCacheError:
        body, checksum = b"", b""
    disk.unlink(path)
    disk.fsync_directory(directory)
    if checksum != f"{crc32c.crc32c(body):08x}\n".encode():
        return None
    facts: dict[str, str] = json.loads(body)
    return facts if facts.pop("version", "") == MARKER_VERSION else None
