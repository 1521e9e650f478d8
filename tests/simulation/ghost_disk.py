"""What a power cut at this moment would leave, asked of the production code's own recovery on a copy of the platter."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from raftcache.errors import Corruption
from raftcache.ids import ClusterId, Index, ReplicaId
from raftcache.raft.messages import HardState
from raftcache.storage.hard_state import HardStateFiles
from raftcache.storage.simulated_disk import SimulatedDisk
from raftcache.storage.wal import Wal
from tests.simulation.constants import DATA, WAL

if TYPE_CHECKING:
    from tests.simulation.nodes import SimulatedNode

LOG = f"{DATA}/log"
HEAD_BYTES = 16
"""Before an entry's data: enough of its record to tell an entry without data from what was there before."""


def entry_survives(disk: SimulatedDisk, wal: Wal, replica: ReplicaId, index: Index) -> bool:
    """Whether this entry is on the platter, as the log has it. (Those before it were written before it.)"""
    if replica not in wal.replicas():
        return False
    log = wal.log(replica)
    place = index - log.start_index - 1
    if place < 0:
        return True  # in a checkpoint
    if place >= len(log._offsets):
        return False
    segment = log._find_segment(log._segment_of(index))
    start = log._offsets[place]
    return disk.survives(segment.path, start - HEAD_BYTES, start + log._lengths[place])


def hard_state_left(node: SimulatedNode, cluster: ClusterId) -> dict[ReplicaId, HardState]:
    """Terms and votes on the platter. Raises: `Corruption`, where both copies are damaged."""
    files = HardStateFiles.open(node.disk.survivor(), LOG, cluster=cluster, node=node.node, incarnation=0, fatal=_fatal)
    return {replica: files.get(replica) for replica in files.replicas()}


def log_left(node: SimulatedNode, cluster: ClusterId) -> Wal:
    """The whole log as its next process would recover it. Raises: `Corruption`, `UnsupportedVersion`."""
    return Wal.open(node.disk.survivor(), LOG, WAL, (cluster, node.node), create=False, fatal=_fatal)


def _fatal(reason: str) -> NoReturn:
    raise Corruption(reason)
