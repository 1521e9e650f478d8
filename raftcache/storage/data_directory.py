"""The node's directory: who may use it, who it is, and what lies where in it.

    lock                held exclusively while a node runs; holds its process id
    identity.json       cluster, node, incarnation; generated here, never configured
    addresses.json      last known addresses of other nodes: hints, never truth
    log/                write-ahead log, hard state, tombstones of removed replicas (`wal.py`)
    replicas/<id>/      live state and checkpoints of one replica (`state.py`)

Rules of this file:
- the node id is drawn when the directory gets its identity. An empty directory is therefore always a *new* node, even
  in the place of an old one: a node that lost its disk must not vote under the old name (it forgot its promises);
- the incarnation grows by one at each start and is durable before anything else happens: peers can tell an old
  connection from a new one;
- a directory with files in it and no identity is somebody else's, and is refused untouched.

Caveat: whoever copies a whole directory and starts both has two nodes with one identity. The lock is per file, so it
cannot see that; peers notice by the incarnation and the addresses.
"""

import errno
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

from crc32c import crc32c

from raftcache.errors import (
    ConfigError,
    Corruption,
    DataDirectoryInUse,
    IdentityMismatch,
    StorageFull,
    UnsupportedVersion,
)
from raftcache.ids import ClusterId, NodeId, ReplicaId
from raftcache.storage.disk import (
    Disk,
    DiskFile,
    exit_process,
    make_directory,
    own_directory,
    parent_of,
    read_file,
    remove_tree,
    write_file_atomically,
)
from raftcache.storage.hard_state import hard_state_paths
from raftcache.storage.wal import Wal, WalConfig

DATA_DIRECTORY_VERSION = 1
"""Of the directory as a whole. A newer one is refused; each file below has a version of its own."""

NO_CLUSTER = ClusterId(0)

LOCK = "lock"
IDENTITY = "identity.json"
ADDRESSES = "addresses.json"
LOG = "log"
REPLICAS = "replicas"

PID_BYTES_MAX = 32

_HARMLESS = frozenset({LOCK, IDENTITY + ".tmp", "lost+found"})
"""What may lie in a directory that has no identity yet: our own first steps, and a file system's root."""


@dataclass(slots=True, frozen=True)
class Identity:
    """Who this directory is."""

    node: NodeId
    cluster: ClusterId
    """`NO_CLUSTER` until `init` or an invitation."""
    incarnation: int
    """1 at the first start."""
    log_created: bool
    """The log has existed: an empty `log/` is a loss from now on, not a beginning."""


class DataDirectory:
    """An open, locked data directory."""

    def __init__(self, disk: Disk, path: str, lock: DiskFile, identity: Identity) -> None:
        """Use `DataDirectory.open`."""
        self.path = path
        self.identity = identity
        self._disk = disk
        self._lock = lock

    @staticmethod
    def open(disk: Disk, path: str, *, process_id: int, new_node_id: Callable[[], NodeId]) -> "DataDirectory":
        """Lock the directory (created if its parent exists), find or draw its identity, and count the start.

        `new_node_id` draws a random 63-bit number, not 0; it is called only where there is no identity yet.

        Raises:
            DataDirectoryInUse: another process holds the lock; the message has its pid.
            ConfigError: not a raftcache directory, no such directory, or no permission.
            Corruption, UnsupportedVersion: the identity is damaged, or a newer release's.
            StorageFull: no space even for the identity.
        """
        try:
            make_directory(disk, path)
            lock = _take_lock(disk, path, process_id)
            try:
                identity = _next_identity(disk, path, new_node_id)
                _save_identity(disk, path, identity)
                own_directory(disk, f"{path}/{REPLICAS}")
            except BaseException:
                lock.close()
                raise
        except OSError as error:
            raise _explain(path, error) from error
        return DataDirectory(disk, path, lock, identity)

    def set_cluster(self, cluster: ClusterId) -> None:
        """The node belongs to `cluster` from now on, durably; where its log exists already, that is remembered as well.

        Raises:
            IdentityMismatch: it belongs to another one already. That never changes; use an empty directory.
        """
        assert cluster != NO_CLUSTER, "a cluster id is never 0"
        if self.identity.cluster == cluster:
            return
        if self.identity.cluster != NO_CLUSTER:
            raise IdentityMismatch(
                f"{self.path} belongs to cluster {self.identity.cluster} and cannot join cluster {cluster}; "
                "start the node on an empty directory",
                metadata={"cluster": str(self.identity.cluster)},
            )
        log_created = self.identity.log_created or any(map(self._disk.exists, hard_state_paths(f"{self.path}/{LOG}")))
        self._change_identity(replace(self.identity, cluster=cluster, log_created=log_created))

    def open_log(self, config: WalConfig, *, fatal: Callable[[str], NoReturn] = exit_process) -> Wal:
        """The write-ahead log, recovered. Once it has been created, an empty one is refused. Raises: see `Wal.open`."""
        identity = self.identity
        wal = Wal.open(
            self._disk,
            f"{self.path}/{LOG}",
            config,
            (identity.cluster, identity.node),
            incarnation=identity.incarnation,
            create=not identity.log_created,
            fatal=fatal,
        )
        if not identity.log_created:
            self._change_identity(replace(identity, log_created=True))
        return wal

    def _change_identity(self, identity: Identity) -> None:
        try:
            _save_identity(self._disk, self.path, identity)
        except OSError as error:
            raise _explain(self.path, error) from error
        self.identity = identity

    # --- Replicas -----------------------------------------------------------------------------------------------------

    def replica_directory(self, replica: ReplicaId) -> str:
        """Where the replica's state lives; created if need be. Raises OSError."""
        path = f"{self.path}/{REPLICAS}/{replica}"
        make_directory(self._disk, path)
        return path

    def delete_replica_directories(self, removed: Iterable[ReplicaId]) -> list[ReplicaId]:
        """Delete what a crash left of removed replicas (`Wal.removed` has their tombstones). Returns those found."""
        present = set(self._disk.listdir(f"{self.path}/{REPLICAS}"))
        found = sorted(replica for replica in removed if str(replica) in present)
        for replica in found:
            remove_tree(self._disk, f"{self.path}/{REPLICAS}/{replica}")
        return found

    # --- Addresses ----------------------------------------------------------------------------------------------------

    def addresses(self) -> dict[NodeId, str]:
        """Where other nodes were last heard of. Hints: a damaged book is an empty one."""
        return {node: str(address) for node, address in self._book("addresses").items()}

    def incarnations(self) -> dict[NodeId, int]:
        """The newest life in which each other node was met: an older one is a copy that was restored. Hints, too."""
        return {node: life for node, life in self._book("incarnations").items() if isinstance(life, int)}

    def _book(self, part: str) -> dict[NodeId, object]:
        try:
            book = json.loads(read_file(self._disk, f"{self.path}/{ADDRESSES}"))
            return {NodeId(int(node)): value for node, value in book[part].items()}
        except (OSError, Corruption, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def save_addresses(self, addresses: Mapping[NodeId, str], incarnations: Mapping[NodeId, int] | None = None) -> bool:
        """Remember both for the next start. False where the disk did not take them, which costs nothing but a hint."""
        book = {
            "version": 1,
            "addresses": {str(node): address for node, address in sorted(addresses.items())},
            "incarnations": {str(node): life for node, life in sorted((incarnations or {}).items())},
        }
        try:
            write_file_atomically(self._disk, f"{self.path}/{ADDRESSES}", json.dumps(book, indent=1).encode())
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()


def _take_lock(disk: Disk, path: str, process_id: int) -> DiskFile:
    lock_path = f"{path}/{LOCK}"
    lock = disk.open(lock_path, create=True)
    if not lock.lock():
        holder = lock.pread(PID_BYTES_MAX, 0).decode("ascii", "replace").strip("\0\n ") or "unknown"
        lock.close()
        raise DataDirectoryInUse(
            f"{path} is in use by the process with id {holder}; two nodes cannot share a data directory",
            metadata={"process_id": holder},
        )
    # A hint for people, not synced; padded so that no digit of an earlier, longer id stays.
    lock.pwrite(f"{process_id}\n".encode().ljust(PID_BYTES_MAX), 0)
    return lock


def _next_identity(disk: Disk, path: str, new_node_id: Callable[[], NodeId]) -> Identity:
    if disk.exists(f"{path}/{IDENTITY}"):
        identity = _load_identity(disk, path)
        return replace(identity, incarnation=identity.incarnation + 1)
    foreign = [name for name in disk.listdir(path) if name not in _HARMLESS]
    if foreign:
        names = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
        raise ConfigError(
            f"{path} is not a raftcache data directory: it has no {IDENTITY}, and there are other files in it ({names}). "
            "Name an empty or a new directory. If this was a data directory, its identity was lost, and with it the right "
            "to vote: use an empty directory, the node joins as a new member.",
            metadata={"directory": path},
        )
    node = new_node_id()
    assert 0 < node < 1 << 63, f"node id {node} is not a positive 63-bit number"
    return Identity(node=node, cluster=NO_CLUSTER, incarnation=1, log_created=False)


def _facts(identity: Identity) -> dict[str, int | bool]:
    return {
        "format_version": DATA_DIRECTORY_VERSION,
        "cluster": identity.cluster,
        "node": identity.node,
        "incarnation": identity.incarnation,
        "log_created": identity.log_created,
    }


def _checksum(facts: Mapping[str, object]) -> int:
    return crc32c(json.dumps(facts, sort_keys=True).encode())


def _save_identity(disk: Disk, path: str, identity: Identity) -> None:
    facts = _facts(identity)
    text = json.dumps({**facts, "crc32c": _checksum(facts)}, indent=1)
    write_file_atomically(disk, f"{path}/{IDENTITY}", text.encode() + b"\n")


def _load_identity(disk: Disk, path: str) -> Identity:
    identity_path = f"{path}/{IDENTITY}"
    try:
        facts = json.loads(read_file(disk, identity_path))
        found = facts.pop("crc32c")
        if found != _checksum(facts):
            raise ValueError("the checksum is wrong")
        version = facts["format_version"]
        if version > DATA_DIRECTORY_VERSION:
            raise UnsupportedVersion(
                f"{path} has the format {version}, this release knows up to {DATA_DIRECTORY_VERSION}: "
                "start the newer release again",
                metadata={"found": str(version), "supported": str(DATA_DIRECTORY_VERSION)},
            )
        return Identity(
            node=NodeId(facts["node"]),
            cluster=ClusterId(facts["cluster"]),
            incarnation=facts["incarnation"],
            log_created=facts["log_created"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corruption(
            f"{identity_path} is damaged ({error}). Without it the node does not know who it is, and must not vote: put "
            "an intact copy back, or move the directory away and start on an empty one, as a new member.",
            metadata={"file": identity_path},
        ) from error


def _explain(path: str, error: OSError) -> ConfigError | StorageFull:
    if error.errno == errno.ENOSPC:
        return StorageFull(f"{path}: the disk is full; free some space and start again")
    match error:
        case PermissionError():
            reason = "no permission to write there; see who owns it"
        case FileNotFoundError():
            reason = f"{parent_of(path)} does not exist"
        case NotADirectoryError() | FileExistsError():
            reason = "not a directory"
        case _:
            reason = error.strerror or str(error)
    return ConfigError(f"the data directory {path} cannot be used: {reason}", metadata={"directory": path})
