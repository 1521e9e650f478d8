"""The data directory: one process, one identity, and no way to become an old node again."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from raftcache.errors import (
    ConfigError,
    Corruption,
    DataDirectoryInUse,
    IdentityMismatch,
    StorageFull,
    UnsupportedVersion,
)
from raftcache.ids import ClusterId, NodeId, ReplicaId, ShardId
from raftcache.storage.data_directory import NO_CLUSTER, DataDirectory
from raftcache.storage.disk import Disk, OsDisk, read_file, remove_tree
from raftcache.storage.simulated_disk import SimulatedCrash, SimulatedDisk
from raftcache.storage.wal import Wal
from tests.storage.log_model import SMALL, fatal

C1, C2 = ClusterId(1), ClusterId(2)


@pytest.fixture(params=["os", "simulated"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Disk, str]:
    """A disk of either kind, and the path of a directory that does not exist yet."""
    if request.param == "os":
        return OsDisk(), f"{tmp_path}/data"
    return SimulatedDisk(Random(0)), "data"


def drawn(*ids: int) -> Callable[[], NodeId]:
    left = list(ids)
    return lambda: NodeId(left.pop(0))


def open_directory(place: tuple[Disk, str], *ids: int, process_id: int = 100) -> DataDirectory:
    return DataDirectory.open(*place, process_id=process_id, new_node_id=drawn(*ids))


def test_identity_is_drawn_once_and_incarnations_count_the_starts(place: tuple[Disk, str]) -> None:
    """The node id stays, the incarnation grows by one at each start, the cluster is set once."""
    directory = open_directory(place, 41)
    assert (directory.identity.node, directory.identity.cluster, directory.identity.incarnation) == (41, NO_CLUSTER, 1)
    directory.set_cluster(C1)
    directory.close()
    directory = open_directory(place)
    assert (directory.identity.node, directory.identity.cluster, directory.identity.incarnation) == (41, C1, 2)
    directory.set_cluster(C1)
    with pytest.raises(IdentityMismatch, match="cannot join cluster 2"):
        directory.set_cluster(C2)


def test_an_emptied_directory_is_a_new_node(place: tuple[Disk, str]) -> None:
    """Pitfall 35: whoever wipes the directory gets another node id, never the old one's votes."""
    disk, path = place
    open_directory(place, 41).close()
    remove_tree(disk, path)
    directory = open_directory(place, 42)
    assert (directory.identity.node, directory.identity.incarnation) == (42, 1)


def test_a_second_process_is_refused_and_told_the_holder(place: tuple[Disk, str]) -> None:
    """The lock is exclusive, the message names the process id; closing releases it."""
    directory = open_directory(place, 41, process_id=12345)
    with pytest.raises(DataDirectoryInUse, match="process with id 12345") as caught:
        open_directory(place, process_id=9)
    assert caught.value.metadata == {"process_id": "12345"}
    directory.close()
    open_directory(place, process_id=9).close()
    again = open_directory(place, process_id=77)
    with pytest.raises(DataDirectoryInUse, match="process with id 77;"):
        open_directory(place)
    again.close()


def test_the_lock_holds_between_processes(tmp_path: Path) -> None:
    """Another process on the same directory is refused as well."""
    directory = open_directory((OsDisk(), f"{tmp_path}/data"), 41)
    program = (
        "import sys\n"
        "from raftcache.errors import DataDirectoryInUse\n"
        "from raftcache.storage.data_directory import DataDirectory\n"
        "from raftcache.storage.disk import OsDisk\n"
        "try:\n"
        "    DataDirectory.open(OsDisk(), sys.argv[1], process_id=1, new_node_id=lambda: 1)\n"
        "except DataDirectoryInUse:\n"
        "    sys.exit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, f"{tmp_path}/data"], check=False, timeout=60)
    assert done.returncode == 3
    directory.close()


def test_a_directory_of_somebody_else_is_refused_untouched(tmp_path: Path) -> None:
    """Files without an identity are not ours: the message names some, and nothing is changed but the lock file."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"not a raftcache data directory.*notes.txt, photos"):
        open_directory((OsDisk(), str(tmp_path)), 41)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "notes.txt", "photos"]


def test_a_lost_identity_does_not_become_a_new_one(place: tuple[Disk, str]) -> None:
    """A directory with a log and no identity is refused: it must not vote under a name that it makes up."""
    disk, path = place
    directory = open_directory(place, 41)
    directory.open_log(SMALL, fatal=fatal).close()
    directory.close()
    disk.unlink(f"{path}/identity.json")
    with pytest.raises(ConfigError, match="its identity was lost"):
        open_directory(place, 42)


@pytest.mark.parametrize("bit", [0x10, 0x01], ids=["no JSON any more", "another digit"])
def test_a_damaged_identity_is_refused(place: tuple[Disk, str], bit: int) -> None:
    """Each changed byte of the identity is noticed, also where it is an identity still, though another one."""
    disk, path = place
    open_directory(place, 41).close()
    text = read_file(disk, f"{path}/identity.json")
    for offset in range(len(text)):
        changed = bytearray(text)
        changed[offset] ^= bit
        file = disk.open(f"{path}/identity.json")
        file.pwrite(bytes(changed), 0)
        file.close()
        try:
            facts = json.loads(changed)
        except ValueError:
            facts = None
        if facts == json.loads(text):
            continue  # other white space
        with pytest.raises(Corruption, match=r"identity\.json is damaged"):
            open_directory(place)


def test_a_newer_directory_is_refused(place: tuple[Disk, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of a later release is left alone, with both versions in the message."""
    with monkeypatch.context() as patch:
        patch.setattr("raftcache.storage.data_directory.DATA_DIRECTORY_VERSION", 2)
        open_directory(place, 41).close()
    with pytest.raises(UnsupportedVersion, match="format 2, this release knows up to 1"):
        open_directory(place)


def test_an_unusable_path_is_explained(tmp_path: Path) -> None:
    """A missing parent and a file in the way are configuration errors that name the path."""
    with pytest.raises(ConfigError, match="does not exist"):
        open_directory((OsDisk(), f"{tmp_path}/no/data"), 41)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="not a directory"):
        open_directory((OsDisk(), f"{tmp_path}/file"), 41)


@pytest.mark.parametrize(("error", "expected"), [(13, ConfigError), (30, ConfigError), (28, StorageFull)])
def test_a_directory_that_cannot_be_written_is_explained(error: int, expected: type[Exception]) -> None:
    """No permission, a read-only file system, a full disk: each says so, and the lock is released."""
    disk = SimulatedDisk(Random(0))
    disk.inject("pwrite", error, path_part="identity")
    with pytest.raises(expected, match="data"):
        open_directory((disk, "data"), 41)
    open_directory((disk, "data"), 42).close()


def test_a_crash_at_any_operation_of_the_first_start_leaves_a_directory_that_starts() -> None:
    """Whatever the crash left, the next start works; once an identity was returned it stays."""
    for seed in range(3):
        for crash_at in range(40):
            disk = SimulatedDisk(Random(seed))
            disk.crash_at = crash_at
            node = None
            try:
                directory = open_directory((disk, "data"), 41)
                node = directory.identity.node
                directory.open_log(SMALL, fatal=fatal).close()
            except SimulatedCrash:
                pass
            disk.crash(Random(seed + 100 * crash_at))
            directory = open_directory((disk, "data"), 42)
            assert node is None or directory.identity.node == node
            directory.open_log(SMALL, fatal=fatal).close()
            assert directory.identity.log_created


def test_a_log_that_existed_is_not_created_again(place: tuple[Disk, str]) -> None:
    """An emptied log directory under a living identity is a loss, and refused."""
    disk, path = place
    directory = open_directory(place, 41)
    directory.open_log(SMALL, fatal=fatal).close()
    remove_tree(disk, f"{path}/log")
    with pytest.raises(Corruption, match="had a log"):
        directory.open_log(SMALL, fatal=fatal)
    directory.close()


def test_joining_a_cluster_remembers_that_the_log_exists(place: tuple[Disk, str]) -> None:
    """A log made before the cluster id was written is a log that existed: if it is lost later, it is not made again."""
    disk, path = place
    directory = open_directory(place, 41)
    Wal.open(disk, f"{path}/log", SMALL, (C1, NodeId(41)), fatal=fatal).close()
    directory.set_cluster(C1)
    remove_tree(disk, f"{path}/log")
    with pytest.raises(Corruption, match="had a log"):
        directory.open_log(SMALL, fatal=fatal)


def test_addresses_are_hints(place: tuple[Disk, str]) -> None:
    """The book comes back after a restart; without one, or with a damaged one, it is empty; a full disk costs nothing."""
    disk, path = place
    directory = open_directory(place, 41)
    assert directory.addresses() == {}
    book = {NodeId(1): "a:1", NodeId(2**62): "b:2"}
    assert directory.save_addresses(book)
    directory.close()
    directory = open_directory(place)
    assert directory.addresses() == book
    for damage in (b"", b"[]", b"\xff\xfe", b'{"addresses": 3}', b'{"addresses": {"x": 1}}'):
        file = disk.open(f"{path}/addresses.json")
        file.truncate(0)
        file.pwrite(damage, 0)
        file.close()
        assert directory.addresses() == {}
    if isinstance(disk, SimulatedDisk):
        disk.capacity_bytes = 0
        assert not directory.save_addresses(book)


def test_replica_directories_of_removed_replicas_are_deleted(place: tuple[Disk, str]) -> None:
    """What a crash left of a removed replica goes at the next start; the others stay."""
    disk, _ = place
    directory = open_directory(place, 41)
    wal = directory.open_log(SMALL, fatal=fatal)
    for replica in (ReplicaId(1), ReplicaId(2)):
        wal.create(replica, ShardId(0), None)
        path = directory.replica_directory(replica)
        assert path == directory.replica_directory(replica)
        disk.mkdir(f"{path}/live")
        disk.open(f"{path}/live/data", create=True).close()
    wal.remove(ReplicaId(1))
    wal.sync()
    assert directory.delete_replica_directories(wal.removed()) == [1]
    assert disk.listdir(f"{directory.path}/replicas") == ["2"]
    assert directory.delete_replica_directories(wal.removed()) == []
