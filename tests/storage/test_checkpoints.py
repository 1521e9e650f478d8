"""The table of a replica's checkpoints: what is known once, what is refused, and what the newest one supersedes."""

import os
from pathlib import Path
from random import Random

import pytest

from raftcache.ids import Index, ReplicaId, Term
from raftcache.raft.messages import Configuration, SnapshotMeta
from raftcache.storage.checkpoint_file import CheckpointHeader, directory_name
from raftcache.storage.checkpoints import Checkpoints
from raftcache.storage.disk import Disk, OsDisk
from raftcache.storage.simulated_disk import SimulatedDisk

CONFIGURATION = Configuration((ReplicaId(1),))


class Table:
    """The checkpoints in a directory of a disk."""

    def __init__(self, disk: Disk, directory: str = "checkpoints") -> None:
        self.disk = disk
        self.checkpoints = Checkpoints(disk, directory)
        self.checkpoints.sweep()

    def publish(self, index: int) -> CheckpointHeader:
        """One with this index, on the disk and in the table."""
        draft = self.checkpoints.draft()
        draft.append(b"state")
        draft.seal()
        meta = SnapshotMeta(Index(index), Term(1), CONFIGURATION)
        header = CheckpointHeader("f", meta, 1, 2, draft.digest.size, draft.digest.digest())
        draft.publish(header)
        self.checkpoints.add(header)
        return header

    def names(self) -> list[str]:
        return sorted(self.disk.listdir("checkpoints"))


@pytest.fixture
def table() -> Table:
    return Table(SimulatedDisk(Random(1)))


def test_a_checkpoint_that_is_published_again_is_known_once(table: Table) -> None:
    """Where it turns out to be damaged afterwards, nothing of it is left to be handed out."""
    table.publish(5)
    again = table.publish(5)
    assert again == table.checkpoints.newest()
    table.checkpoints.refuse(again, "a flipped bit")
    assert table.checkpoints.newest() is None
    assert table.checkpoints.find(again.meta) is None


def test_the_newest_supersedes_what_is_older_and_what_was_refused(table: Table) -> None:
    """Both are renamed away and named to the caller, and what was said of them is forgotten with them."""
    table.publish(5)
    damaged = table.publish(7)
    table.checkpoints.refuse(damaged, "a flipped bit")
    assert ["a flipped bit"] == list(table.checkpoints.refused.values())
    newest = table.publish(6)
    removed = table.checkpoints.superseded()
    assert {f"checkpoints/{name}" for name in table.names()} == {*removed, f"checkpoints/{directory_name(newest.meta)}"}
    assert 2 == len(removed)
    assert {} == table.checkpoints.refused


def test_what_nobody_removed_is_named_again(table: Table) -> None:
    """A removal that failed half-way is repeated with the next one, and not only after a restart."""
    table.publish(5)
    table.publish(6)
    left = table.checkpoints.superseded()
    assert 1 == len(left)
    assert left == table.checkpoints.superseded()


def test_a_checkpoint_that_was_sent_is_held_open_no_longer(tmp_path: Path) -> None:
    """However many followers are filled: a closed reader has given its file back."""
    table = Table(OsDisk(), f"{tmp_path}/checkpoints")
    header = table.publish(5)
    held = len(os.listdir("/proc/self/fd"))
    closed: list[None] = []
    reader = table.checkpoints.reader(header, on_closed=lambda: closed.append(None))
    assert held < len(os.listdir("/proc/self/fd"))
    reader.close()
    assert (held, 1) == (len(os.listdir("/proc/self/fd")), len(closed))
