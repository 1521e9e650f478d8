"""Term and vote of every replica of the node: one pair of checksummed files, both durable before a vote leaves.

Why a pair, and why both are synced each time: a replica that forgets a vote may vote twice in one term and elect two
leaders (Raft §5.2). Alternating between two files would not do: damage to the newest would fall back to the older
vote. So the first copy is written and synced, then the second, and only then does `save` return:

    damage or a torn write hits ...        what is left
    copy A while it is being written       copy B, whole: the state before; the new one has not been promised to anybody
    copy B while it is being written       copy A, whole: the new state
    either copy later                      the other one, equal

Either copy bad: the other is used and the bad one rewritten. Both bad: the node must not start, because it may have
voted for what it no longer knows; it comes back as a new member.

The files also carry the log's watermark (see `wal.py`) at the time they were written: a second place, in another file,
that says how far the log is proven to be on the disk.

Caveat: a copy of the directory from an earlier day (a restored disk image) is whole, consistent and wrong. Nothing in
it can tell; the leader notices that the replica's log went back.
"""

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from crc32c import crc32c

from raftcache.errors import Corruption, IdentityMismatch, StorageFull, UnsupportedVersion
from raftcache.ids import ClusterId, NodeId, ReplicaId, Term
from raftcache.raft.messages import HardState
from raftcache.storage.disk import Disk, DiskFile, read_file, write_file_atomically
from raftcache.storage.wal_format import NOWHERE_YET, Position

HARD_STATE_VERSION = 1
_MAGIC = b"RAFTHARD"
_HEADER = struct.Struct("<8sIIQQQQQ")  # magic, version, replicas, sequence, cluster, node, incarnation, watermark
_SLOT = struct.Struct("<QQQ")  # replica, term, vote
_CRC = struct.Struct("<I")

COPIES = ("hard_state.a", "hard_state.b")

RESERVE_BYTES = 64 << 10
"""Room for some 2,700 replicas, allocated at birth: term and vote can be written on a full disk."""


def hard_state_paths(directory: str) -> tuple[str, str]:
    return f"{directory}/{COPIES[0]}", f"{directory}/{COPIES[1]}"


@dataclass(slots=True)
class HardStateTable:
    """What both files hold."""

    sequence: int
    """+1 at each save; the copy with the higher one is newer."""
    watermark: Position
    states: dict[ReplicaId, HardState]


class HardStateFiles:
    """The pair, open. Not for use by two threads at once.

    Attributes:
        watermark: the log's, as of the last save.
        repaired: paths of copies that were bad at `open` and have been rewritten; for the log and the metrics.
    """

    def __init__(
        self,
        disk: Disk,
        directory: str,
        *,
        cluster: ClusterId,
        node: NodeId,
        incarnation: int,
        fatal: Callable[[str], NoReturn],
        table: HardStateTable,
        damaged: list[str],
    ) -> None:
        self.cluster = cluster
        self.watermark = table.watermark
        self.repaired = damaged
        self._node = node
        self._incarnation = incarnation
        self._fatal = fatal
        self._sequence = table.sequence
        self._states = table.states
        self._changed = False
        self._paths = hard_state_paths(directory)
        self._files: list[DiskFile] = [disk.open(path) for path in self._paths]

    @staticmethod
    def open(
        disk: Disk,
        directory: str,
        *,
        cluster: ClusterId,
        node: NodeId,
        incarnation: int,
        fatal: Callable[[str], NoReturn],
    ) -> "HardStateFiles":
        """Read the pair, repair a bad copy, and be ready to save. The pair must exist (see `create`).

        Raises:
            Corruption: both copies are unusable; says how to go on.
            IdentityMismatch, UnsupportedVersion: the files are another node's, or a newer release's.
        """
        tables: list[HardStateTable] = []
        damaged: list[str] = []
        paths = hard_state_paths(directory)
        newer: UnsupportedVersion | None = None
        for copy, path in enumerate(paths):
            try:
                table = _load(disk, path, copy, cluster=cluster, node=node)
            except UnsupportedVersion as error:
                # One copy alone: a flipped bit, or a newer release that was stopped before it wrote the second copy
                # (then nothing of it was promised). Both: a newer release.
                table, newer = None, error
            if table is None:
                damaged.append(path)
            else:
                tables.append(table)
        if not tables:
            if newer is not None:
                raise newer
            raise Corruption(
                f"both copies of the hard state, {paths[0]} and {paths[1]}, are missing or damaged. This node may have "
                "voted for what it no longer knows, and must not vote again under this identity: it refuses to start. "
                "Remove its replicas from their shards, move the data directory away, and start the node on an empty "
                "one; it joins as a new member and is filled by the others.",
                metadata={"file": paths[0]},
            )
        newest = max(tables, key=lambda table: table.sequence)
        if len(tables) == 2 and tables[0].sequence == tables[1].sequence and tables[0] != tables[1]:
            raise Corruption(
                f"{paths[0]} and {paths[1]} have the sequence {newest.sequence} and different content; one of them "
                "was replaced by hand. Restore the right pair, or start this node on an empty directory.",
                metadata={"file": paths[0]},
            )
        for path in damaged:
            # Whole before it gets its name: `_write` in place needs a file that exists and has its space.
            copy = paths.index(path)
            try:
                _create_copy(disk, path, _encode(newest, copy, cluster=cluster, node=node, incarnation=incarnation))
            except OSError as error:
                fatal(f"{path}: repair failed: {error}")
        files = HardStateFiles(
            disk,
            directory,
            cluster=cluster,
            node=node,
            incarnation=incarnation,
            fatal=fatal,
            table=newest,
            damaged=damaged,
        )
        return files

    @staticmethod
    def create(disk: Disk, directory: str, *, cluster: ClusterId, node: NodeId, incarnation: int) -> None:
        """The first pair of a new log, durable. Raises OSError."""
        empty = HardStateTable(sequence=1, watermark=NOWHERE_YET, states={})
        for copy, path in enumerate(hard_state_paths(directory)):
            _create_copy(disk, path, _encode(empty, copy, cluster=cluster, node=node, incarnation=incarnation))

    def get(self, replica: ReplicaId) -> HardState:
        return self._states.get(replica, HardState())

    def replicas(self) -> list[ReplicaId]:
        return sorted(self._states)

    def set(self, replica: ReplicaId, state: HardState) -> None:
        """To be saved with the next `save`. Raft §5.1: terms never go back; §5.2: one vote a term."""
        old = self.get(replica)
        assert state.term >= old.term, f"replica {replica}: term {state.term} after {old.term}"
        assert state.term > old.term or old.vote in (0, state.vote), (
            f"replica {replica}: vote for {state.vote} in term {state.term} after one for {old.vote}"
        )
        if state != old:
            self._states[replica] = state
            self._changed = True

    def drop(self, replica: ReplicaId) -> None:
        """The replica is removed for good."""
        if self._states.pop(replica, None) is not None:
            self._changed = True

    @property
    def changed(self) -> bool:
        return self._changed

    def reserve(self, replicas: int) -> None:
        """Make sure that this many replicas fit into the files, whatever the disk holds later.

        Raises: `StorageFull`, with nothing changed.
        """
        needed = _HEADER.size + replicas * _SLOT.size + _CRC.size
        for path, file in zip(self._paths, self._files, strict=True):
            try:
                if file.size() < needed:
                    file.allocate(-(-needed // RESERVE_BYTES) * RESERVE_BYTES)
                    file.fdatasync()
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    self._fatal(f"{path}: {error}")
                raise StorageFull(f"{path}: no space for the hard state of {replicas} replicas") from error

    def save(self, watermark: Position) -> None:
        """Write and sync both copies, one after the other. Any error is fatal."""
        self._sequence += 1
        table = HardStateTable(self._sequence, watermark, self._states)
        for copy, (path, file) in enumerate(zip(self._paths, self._files, strict=True)):
            data = _encode(table, copy, cluster=self.cluster, node=self._node, incarnation=self._incarnation)
            try:
                file.pwrite(data, 0)
                file.fdatasync()
            except OSError as error:
                self._fatal(f"{path}: {error}")
        self.watermark = watermark
        self._changed = False

    def close(self) -> None:
        for file in self._files:
            file.close()


def _create_copy(disk: Disk, path: str, data: bytes) -> None:
    write_file_atomically(disk, path, data.ljust(RESERVE_BYTES, b"\0"))


def _encode(table: HardStateTable, copy: int, *, cluster: ClusterId, node: NodeId, incarnation: int) -> bytes:
    slots = [_SLOT.pack(replica, state.term, state.vote) for replica, state in sorted(table.states.items())]
    header = _HEADER.pack(
        _MAGIC, HARD_STATE_VERSION, len(slots), table.sequence, cluster, node, incarnation, table.watermark
    )
    body = b"".join([header, *slots])
    # The copy's letter is part of the checksum: one file copied over the other does not pass for the pair.
    return body + _CRC.pack(crc32c(body, copy))


def _load(disk: Disk, path: str, copy: int, *, cluster: ClusterId, node: NodeId) -> HardStateTable | None:
    """None: missing or damaged."""
    try:
        data = read_file(disk, path)
    except (FileNotFoundError, Corruption):
        return None
    if len(data) < _HEADER.size:
        return None
    magic, version, count, sequence, found_cluster, found_node, _, watermark = _HEADER.unpack_from(data)
    end = _HEADER.size + count * _SLOT.size
    if magic != _MAGIC:
        return None
    if version > HARD_STATE_VERSION:
        raise UnsupportedVersion(
            f"{path} has format {version}, this release reads up to {HARD_STATE_VERSION}: start the newer release again",
            metadata={"file": path, "found": str(version), "supported": str(HARD_STATE_VERSION)},
        )
    if end + _CRC.size > len(data) or crc32c(data[:end], copy) != _CRC.unpack_from(data, end)[0]:
        return None
    if found_node != node or found_cluster not in (0, cluster):
        raise IdentityMismatch(
            f"{path} belongs to node {found_node} of cluster {found_cluster}, "
            f"but this directory is node {node} of cluster {cluster}: the file came from elsewhere",
            metadata={"file": path},
        )
    states = {
        ReplicaId(replica): HardState(Term(term), ReplicaId(vote))
        for replica, term, vote in _SLOT.iter_unpack(data[_HEADER.size : end])
    }
    return HardStateTable(sequence, Position(watermark), states)
