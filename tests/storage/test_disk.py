"""The disk: both implementations behave alike, and the simulated one forgets what was not synced."""

import errno
import os
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.errors import Corruption
from raftcache.storage.disk import (
    Disk,
    OsDisk,
    make_directory,
    read_file,
    remove_tree,
    write_file_atomically,
    zero_fill,
)
from raftcache.storage.simulated_disk import PAGE_BYTES, SECTOR_BYTES, SimulatedCrash, SimulatedDisk


@pytest.fixture(params=["os", "simulated"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Disk, str]:
    """A disk of either kind, and an empty directory on it."""
    if request.param == "os":
        return OsDisk(), str(tmp_path)
    disk = SimulatedDisk(Random(0))
    make_directory(disk, "d")
    return disk, "d"


def simulated(**options: int) -> SimulatedDisk:
    disk = SimulatedDisk(Random(0), **options)
    make_directory(disk, "d")
    return disk


def test_files_hold_what_was_written_where_it_was_written(place: tuple[Disk, str]) -> None:
    """Writes at offsets, holes, overlaps, reads past the end, growth and truncation."""
    disk, directory = place
    file = disk.open(f"{directory}/f", create=True)
    assert (file.size(), file.pread(10, 0)) == (0, b"")
    file.pwrite(b"abc", 5000)
    file.pwrite(b"xy", 4999)
    assert file.size() == 5003
    assert file.pread(100, 4997) == b"\0\0xybc"
    file.truncate(5001)
    file.truncate(9000)
    assert file.pread(10, 4999) == b"xy" + bytes(8)
    file.allocate(100)
    assert file.size() == 9000
    file.allocate(10_000)
    file.fdatasync()
    file.drop_cache()
    assert file.size() == 10_000
    assert file.pread(3, 4999) == b"xy\0"
    file.close()


def test_names_are_created_moved_and_removed(place: tuple[Disk, str]) -> None:
    """Create, rename over another, unlink, directories; missing and superfluous names raise what the system raises."""
    disk, directory = place
    for name in ("b", "a"):
        disk.open(f"{directory}/{name}", create=True).close()
    assert disk.listdir(directory) == ["a", "b"]
    file = disk.open(f"{directory}/a")
    file.pwrite(b"of a", 0)
    disk.rename(f"{directory}/a", f"{directory}/b")
    assert disk.listdir(directory) == ["b"]
    assert read_file(disk, f"{directory}/b") == b"of a"
    disk.mkdir(f"{directory}/sub")
    disk.open(f"{directory}/sub/x", create=True).close()
    disk.rename(f"{directory}/sub", f"{directory}/moved")
    assert disk.exists(f"{directory}/moved/x")
    with pytest.raises(OSError, match="not empty"):
        disk.rmdir(f"{directory}/moved")
    for call, error in (
        (lambda: disk.open(f"{directory}/none"), FileNotFoundError),
        (lambda: disk.open(f"{directory}/none/f", create=True), FileNotFoundError),
        (lambda: disk.unlink(f"{directory}/none"), FileNotFoundError),
        (lambda: disk.rename(f"{directory}/none", f"{directory}/y"), FileNotFoundError),
        (lambda: disk.mkdir(f"{directory}/moved"), FileExistsError),
        (lambda: disk.listdir(f"{directory}/b"), NotADirectoryError),
        (lambda: disk.listdir(f"{directory}/none"), FileNotFoundError),
        (lambda: disk.open(f"{directory}/moved"), IsADirectoryError),
    ):
        with pytest.raises(error):
            call()
    remove_tree(disk, f"{directory}/moved")
    assert disk.listdir(directory) == ["b"]
    assert disk.free_bytes(directory) > 0


def test_an_unlinked_file_stays_readable_while_open(place: tuple[Disk, str]) -> None:
    """As on any POSIX file system; a file of the same name is another one."""
    disk, directory = place
    file = disk.open(f"{directory}/f", create=True)
    file.pwrite(b"old", 0)
    disk.unlink(f"{directory}/f")
    disk.open(f"{directory}/f", create=True).pwrite(b"new", 0)
    assert (file.pread(3, 0), read_file(disk, f"{directory}/f")) == (b"old", b"new")


def test_a_lock_excludes_others_until_it_is_closed(place: tuple[Disk, str]) -> None:
    """One holder at a time, per open file."""
    disk, directory = place
    first = disk.open(f"{directory}/lock", create=True)
    second = disk.open(f"{directory}/lock")
    assert (first.lock(), second.lock()) == (True, False)
    first.close()
    assert second.lock()
    second.close()


def test_zero_filling_reserves_and_writes(place: tuple[Disk, str]) -> None:
    """The file has its size, and nothing but zeros."""
    disk, directory = place
    file = disk.open(f"{directory}/f", create=True)
    zero_fill(file, 3 * PAGE_BYTES + 1)
    assert file.pread(1 << 20, 0) == bytes(3 * PAGE_BYTES + 1)


# --- Crashes ------------------------------------------------------------------------------------------------------


def test_synced_data_under_a_synced_name_survives_every_crash() -> None:
    """fdatasync of the file and fsync of its directory are enough, whatever else is lost."""
    for seed in range(50):
        disk = simulated()
        file = disk.open("d/f", create=True)
        file.pwrite(b"x" * 9000, 0)
        file.fdatasync()
        disk.fsync_directory("d")
        file.pwrite(b"y" * 9000, 9000)
        disk.crash(Random(seed))
        assert read_file(disk, "d/f")[:9000] == b"x" * 9000


def test_a_power_cut_keeps_nothing_that_was_not_synced() -> None:
    """Data without fdatasync, a name without fsync of its directory, a rename, an unlink: all undone."""
    disk = simulated()
    kept = disk.open("d/kept", create=True)
    kept.pwrite(b"old", 0)
    kept.fdatasync()
    disk.fsync_directory("d")
    kept.pwrite(b"new", 0)
    named = disk.open("d/named", create=True)
    named.pwrite(b"data", 0)
    named.fdatasync()
    disk.mkdir("d/sub")
    disk.rename("d/kept", "d/renamed")
    disk.crash(Random(1), power_cut=True)
    assert disk.listdir("d") == ["kept"]
    assert read_file(disk, "d/kept") == b"old"


def test_a_name_without_its_directorys_sync_is_kept_by_some_crashes_only() -> None:
    """Each pending operation survives or not, and a rename only together with the creation it depends on."""
    outcomes = set()
    for seed in range(200):
        disk = simulated()
        disk.open("d/a", create=True).close()
        disk.open("d/b", create=True).close()
        disk.rename("d/a", "d/c")
        disk.crash(Random(seed))
        outcomes.add(tuple(disk.listdir("d")))
    assert outcomes == {(), ("a",), ("b",), ("c",), ("a", "b"), ("b", "c")}


def test_unsynced_pages_are_kept_in_any_subset_and_torn_between_sectors() -> None:
    """A later page may survive without an earlier one; within a page, whole sectors are old or new."""
    later_without_earlier = torn = 0
    for seed in range(300):
        disk = simulated()
        file = disk.open("d/f", create=True)
        file.pwrite(b"o" * 4 * PAGE_BYTES, 0)
        file.fdatasync()
        disk.fsync_directory("d")
        file.pwrite(b"n" * 4 * PAGE_BYTES, 0)
        disk.crash(Random(seed))
        data = read_file(disk, "d/f")
        sectors = [data[start : start + SECTOR_BYTES] for start in range(0, len(data), SECTOR_BYTES)]
        assert all(sector in (b"o" * SECTOR_BYTES, b"n" * SECTOR_BYTES) for sector in sectors)
        pages = [data[start : start + PAGE_BYTES] for start in range(0, len(data), PAGE_BYTES)]
        later_without_earlier += pages[0] == b"o" * PAGE_BYTES and pages[3] == b"n" * PAGE_BYTES
        torn += any(len(set(page)) == 2 for page in pages)
    assert later_without_earlier > 10
    assert torn > 10


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32))
def test_an_atomic_replacement_is_old_or_new_at_every_crash(seed: int) -> None:
    """`write_file_atomically` interrupted anywhere leaves the old content or the new, and the new once it returned."""
    random = Random(seed)
    disk = simulated()
    write_file_atomically(disk, "d/f", b"old" * 3000)
    disk.crash_at = disk.operations + random.randrange(8)
    try:
        write_file_atomically(disk, "d/f", b"newer" * 3000)
        allowed = [b"newer" * 3000]
    except SimulatedCrash:
        allowed = [b"old" * 3000, b"newer" * 3000]
    disk.crash(random)
    assert read_file(disk, "d/f") in allowed


def test_the_same_seed_makes_the_same_disk() -> None:
    """Everything random comes from the generators that were passed in."""

    def run() -> list[tuple[str, bytes]]:
        disk = simulated()
        for number in range(20):
            file = disk.open(f"d/{number}", create=True)
            file.pwrite(bytes([number]) * 10_000, number)
            if number % 3 == 0:
                file.fdatasync()
        disk.crash(Random(5))
        return [(name, read_file(disk, f"d/{name}")) for name in disk.listdir("d")]

    assert run() == run()


# --- Faults -------------------------------------------------------------------------------------------------------


def test_after_a_failed_fsync_the_cache_shows_what_the_disk_lacks() -> None:
    """Fsyncgate: the error comes once, the next sync succeeds, and a part of the data is gone with the cache."""
    disk = simulated()
    file = disk.open("d/f", create=True)
    disk.fsync_directory("d")
    file.pwrite(b"x" * 20 * PAGE_BYTES, 0)
    disk.inject("fdatasync", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        file.fdatasync()
    file.fdatasync()
    assert file.pread(20 * PAGE_BYTES, 0) == b"x" * 20 * PAGE_BYTES
    file.drop_cache()
    left = file.pread(20 * PAGE_BYTES, 0)
    assert 0 < left.count(b"x") < 20 * PAGE_BYTES
    file.pwrite(b"y", 0)
    file.fdatasync()
    assert file.pread(1, 0) == b"y"


def test_a_file_is_read_as_the_disk_holds_it() -> None:
    """What a failed fsync left in the cache alone is not believed."""
    disk = simulated()
    file = disk.open("d/f", create=True)
    disk.fsync_directory("d")
    file.pwrite(b"x" * 20 * PAGE_BYTES, 0)
    disk.inject("fdatasync", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        file.fdatasync()
    assert 20 * PAGE_BYTES == file.pread(20 * PAGE_BYTES, 0).count(b"x")
    assert 20 * PAGE_BYTES > read_file(disk, "d/f").count(b"x")


def test_a_full_disk_writes_what_fits_and_raises() -> None:
    """ENOSPC at a byte capacity, for writes, allocation and growth; freeing makes room again."""
    disk = simulated(capacity_bytes=4 * PAGE_BYTES)
    file = disk.open("d/f", create=True)
    with pytest.raises(OSError, match="No space") as caught:
        file.pwrite(b"x" * 5 * PAGE_BYTES, 0)
    assert caught.value.errno == errno.ENOSPC
    assert (file.size(), disk.free_bytes("d")) == (4 * PAGE_BYTES, 0)
    other = disk.open("d/g", create=True)
    with pytest.raises(OSError, match="No space"):
        other.allocate(1)
    with pytest.raises(OSError, match="No space"):
        other.truncate(1)
    with pytest.raises(OSError, match="No space"):
        other.pwrite(b"1", 0)
    disk.unlink("d/f")
    other.pwrite(b"1", 0)
    assert disk.free_bytes("d") == 3 * PAGE_BYTES


def test_faults_hit_the_operation_and_path_they_were_meant_for() -> None:
    """`skip` lets some pass, `times` limits, `path_part` chooses."""
    disk = simulated()
    first, second = disk.open("d/one", create=True), disk.open("d/two", create=True)
    disk.inject("pwrite", errno.EIO, path_part="two", skip=1, times=2)
    first.pwrite(b"x", 0)
    second.pwrite(b"x", 0)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            second.pwrite(b"x", 0)
    second.pwrite(b"x", 0)


def test_flipped_bits_are_seen_by_readers_and_stay() -> None:
    """Bit rot on the platter shows through the cache and survives a crash."""
    disk = simulated()
    write_file_atomically(disk, "d/f", b"\0" * 100)
    disk.flip_bit("d/f", 50, 3)
    assert read_file(disk, "d/f")[50] == 8
    disk.crash(Random(1))
    assert read_file(disk, "d/f")[50] == 8


def test_files_opened_before_a_crash_are_unusable() -> None:
    """A handle is of one life of the machine."""
    disk = simulated()
    file = disk.open("d/f", create=True)
    file.lock()
    disk.fsync_directory("d")
    disk.crash(Random(1))
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.pwrite(b"x", 0)
    assert disk.open("d/f").lock()


def test_an_unreadable_file_is_corruption() -> None:
    """EIO on reading is damage that names the file; other errors stay what they are."""
    disk = simulated()
    write_file_atomically(disk, "d/f", b"x")
    disk.inject("pread", errno.EIO)
    with pytest.raises(Corruption, match="d/f cannot be read"):
        read_file(disk, "d/f")
    with pytest.raises(FileNotFoundError):
        read_file(disk, "d/none")


def test_a_killed_process_loses_nothing_and_syncs_nothing() -> None:
    """kill -9: the page cache stays, locks go, and a power cut afterwards still takes what was not synced."""
    disk = simulated()
    file = disk.open("d/f", create=True)
    file.pwrite(b"synced", 0)
    file.fdatasync()
    disk.fsync_directory("d")
    file.pwrite(b"cached", 0)
    assert file.lock()
    disk.kill()
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.pread(6, 0)
    assert disk.open("d/f").lock()
    assert b"cached" == read_file(disk, "d/f")
    disk.crash(Random(1), power_cut=True)
    assert b"synced" == read_file(disk, "d/f")


def test_what_would_survive_a_power_cut_can_be_asked_without_one() -> None:
    """The survivor is a disk of its own; `survives` says the same of a stretch of one file."""
    disk = simulated()
    file = disk.open("d/f", create=True)
    file.pwrite(b"a" * 100, 0)
    file.fdatasync()
    assert not disk.survives("d/f", 0, 100), "its name is not there yet"
    disk.fsync_directory("d")
    file.pwrite(b"b" * 10, 50)
    assert (True, False) == (disk.survives("d/f", 0, 50), disk.survives("d/f", 0, 51))
    survivor = disk.survivor()
    assert b"a" * 100 == read_file(survivor, "d/f")
    survivor.open("d/f").pwrite(b"c", 0)
    assert b"a" * 50 + b"b" * 10 + b"a" * 40 == read_file(disk, "d/f")
    assert (["d/f"], 100) == (disk.paths(), disk.size_of("d/f"))


def test_what_the_kernel_cuts_short_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads and writes may end early (a signal, a 2 GiB limit); the caller gets all, and a read ends with the file."""
    pread, pwrite = os.pread, os.pwrite
    monkeypatch.setattr("os.pread", lambda descriptor, length, offset: pread(descriptor, min(length, 3), offset))
    monkeypatch.setattr("os.pwrite", lambda descriptor, data, offset: pwrite(descriptor, bytes(data[:4]), offset))
    file = OsDisk().open(f"{tmp_path}/file", create=True)
    file.pwrite(b"0123456789", 1)
    assert b"\x000123456789" == file.pread(11, 0)
    assert b"456789" == file.pread(100, 5)
    file.close()
