"""A node's home on disk, as the host uses it: the first steps into a cluster, and the last directory it knew.

    directory.json      the newest directory seen: routes and addresses for the next start
    init-plan.json      the cluster that an `init` on this node is making; kept, so that a repeated `init` goes on with it

Rules of this file:
- both files are replaced atomically and synced, and carry a checksum: one wrong digit in a directory would misdirect what
  this node does to its replicas;
- both are copies of what others have, too: where the disk is full they are saved later, where they are damaged the node
  asks the others;
- a log that is opened *fresh* belongs to an init or join that had not come to its commit point: what lies there is removed.
"""

import contextlib
import errno
from collections.abc import Callable
from typing import NoReturn

from crc32c import crc32c

from raftcache.errors import Corruption
from raftcache.ids import ClusterId
from raftcache.node.directory import Directory
from raftcache.storage.data_directory import LOG, NO_CLUSTER, REPLICAS, DataDirectory
from raftcache.storage.disk import Disk, make_directory, read_file, remove_tree, write_file_atomically
from raftcache.storage.wal import Wal, WalConfig

DIRECTORY = "directory.json"
PLAN = "init-plan.json"


class DiskHome:
    """Implements the host's `Home` over an open data directory."""

    def __init__(
        self, disk: Disk, data: DataDirectory, wal_config: WalConfig, fatal: Callable[[str], NoReturn]
    ) -> None:
        self._disk = disk
        self._data = data
        self._wal_config = wal_config
        self._fatal = fatal

    @property
    def cluster(self) -> ClusterId | None:
        """The cluster that this node is committed to; None before init or join."""
        cluster = self._data.identity.cluster
        return None if cluster == NO_CLUSTER else cluster

    def load_directory(self) -> Directory | None:
        """Raises: `Corruption`, `UnsupportedVersion`."""
        return self._load(DIRECTORY)

    def save_directory(self, directory: Directory) -> bool:
        """Durable on return; False where the disk is full."""
        return self._save(DIRECTORY, directory)

    def load_plan(self) -> Directory | None:
        """Raises: `Corruption`, `UnsupportedVersion`."""
        return self._load(PLAN)

    def save_plan(self, plan: Directory) -> bool:
        """Durable on return; False where the disk is full."""
        return self._save(PLAN, plan)

    def _load(self, name: str) -> Directory | None:
        path = f"{self._data.path}/{name}"
        if not self._disk.exists(path):
            return None
        head, _, document = read_file(self._disk, path).partition(b"\n")
        try:
            epoch, checksum = head.split()
            if int(checksum, 16) != _checksum(int(epoch), document):
                raise ValueError("its checksum is wrong")
            return Directory.decode(document, int(epoch))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Corruption(f"{path} is damaged ({error})", metadata={"file": path}) from error

    def _save(self, name: str, directory: Directory) -> bool:
        path = f"{self._data.path}/{name}"
        document = directory.encode()
        try:
            head = b"%d %08x\n" % (directory.epoch, _checksum(directory.epoch, document))
            write_file_atomically(self._disk, path, head + document)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                self._fatal(f"{path}: {error}")
            return False
        return True

    def join_cluster(self, cluster: ClusterId) -> None:
        """The commit point of init and join; durable on return."""
        self._data.set_cluster(cluster)

    def open_wal(self, cluster: ClusterId, *, fresh: bool) -> Wal:
        """The node's log. Raises: see `Wal.open`."""
        if not fresh:
            wal = self._data.open_log(self._wal_config, fatal=self._fatal)
            # What a crash left of replicas that had gone. Where it cannot be deleted, it lies there until the next start.
            with contextlib.suppress(OSError):
                self._data.delete_replica_directories(wal.removed())
            return wal
        try:
            for name in (LOG, REPLICAS):
                if self._disk.exists(f"{self._data.path}/{name}"):
                    remove_tree(self._disk, f"{self._data.path}/{name}")
            make_directory(self._disk, f"{self._data.path}/{REPLICAS}")
        except OSError as error:
            self._fatal(f"{self._data.path}: {error}")
        identity = self._data.identity
        return Wal.open(
            self._disk,
            f"{self._data.path}/{LOG}",
            self._wal_config,
            (cluster, identity.node),
            incarnation=identity.incarnation,
            fatal=self._fatal,
        )


def _checksum(epoch: int, document: bytes) -> int:
    return crc32c(b"%d\n" % epoch + document)
