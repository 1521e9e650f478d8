"""Damaged, missing and foreign files: what was synced is never dropped silently, and a torn tail is only a tail."""

import copy
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.errors import Corruption, IdentityMismatch, RaftCacheError, UnsupportedVersion
from raftcache.ids import ClusterId, Index, NodeId, ReplicaId, ShardId, Term
from raftcache.raft.messages import HardState
from raftcache.storage.disk import OsDisk
from raftcache.storage.simulated_disk import SimulatedCrash
from raftcache.storage.wal_format import (
    BATCH_MAGIC_BYTES,
    SEGMENT_HEADER_BYTES,
    encode_segment_header,
    read_batch,
    segment_seed,
)
from tests.storage.log_model import (
    CLUSTER,
    NODE,
    Machine,
    Workload,
    disk_of,
    entries,
    entry,
    os_machine,
    simulated_machine,
    state_of,
    write,
)

R1 = ReplicaId(1)


def used_bytes(machine: Machine, path: str) -> int:
    """Where the valid batches of a segment end."""
    content = machine.read(path)
    number = int(Path(path).stem, 16)
    offset = SEGMENT_HEADER_BYTES
    while (batch := read_batch(content, offset, segment_seed(NODE, number))) is not None:
        offset = batch.end
    return offset


def filled_machine(seed: int) -> Machine:
    """A log of several segments after a random workload, cleanly closed (so that all of it is vouched for)."""
    machine = simulated_machine(seed)
    load = Workload(machine, Random(seed))
    for _ in range(60):
        load.step()
    load.wal.close()
    return machine


@settings(max_examples=150)
@given(
    seed=st.integers(0, 7), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), which=st.floats(0, 0.999)
)
def test_any_flipped_bit_before_the_watermark_is_refused(seed: int, place: float, bit: int, which: float) -> None:
    """Whatever bit of a header or a synced batch flips, the log does not open, and says which file is damaged."""
    machine = filled_machine(seed)
    paths = machine.segment_paths()
    # A spare has nothing that was synced; the others are all needed or they would have been deleted.
    paths = [path for path in paths if used_bytes(machine, path) > SEGMENT_HEADER_BYTES]
    path = paths[int(which * len(paths))]
    disk_of(machine).flip_bit(path, int(place * used_bytes(machine, path)), bit)
    with pytest.raises(Corruption) as caught:
        machine.open()
    assert "file" in caught.value.metadata
    assert "refuses to start" in caught.value.message


@settings(max_examples=60)
@given(seed=st.integers(0, 7), where=st.randoms(use_true_random=False))
def test_damage_anywhere_gives_the_log_or_an_error_never_a_shorter_log(seed: int, where: Random) -> None:
    """Zeroed pages, copied pages, cut and swapped files: the log opens with everything, or not at all."""
    machine = filled_machine(seed)
    expected = state_of(machine.open())
    paths = machine.segment_paths()
    path = where.choice(paths)
    content = bytearray(machine.read(path))
    kind = where.choice(("zero", "copy", "cut", "swap", "delete"))
    if kind == "zero":
        start = where.randrange(0, len(content), 512)
        content[start : start + 512] = bytes(len(content[start : start + 512]))
        machine.overwrite(path, bytes(content))
    elif kind == "copy":
        source, target = (where.randrange(0, len(content), 512) for _ in range(2))
        content[target : target + 512] = content[source : source + 512]
        machine.overwrite(path, bytes(content[: len(machine.read(path))]))
    elif kind == "cut":
        machine.overwrite(path, bytes(content[: where.randrange(len(content))]))
    elif kind == "swap":
        other = where.choice(paths)
        theirs = machine.read(other)
        machine.overwrite(other, bytes(content))
        machine.overwrite(path, theirs)
    else:
        machine.disk.unlink(path)
    try:
        wal = machine.open()
    except RaftCacheError:
        return
    assert state_of(wal) == expected


@pytest.mark.parametrize("on", ["os", "simulated"])
def test_a_tail_cut_at_every_byte_loses_the_unsynced_batch_or_nothing(on: str, tmp_path: Path) -> None:
    """Whichever bytes of the last, un-synced batch reach the disk, what was synced before is whole, and the cut stays."""
    machine = os_machine(str(tmp_path)) if on == "os" else simulated_machine()
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    wal.write([write(1, entries(1, 4))])
    wal.sync()
    wal.mark_synced()
    without = state_of(wal)
    path = machine.segment_paths()[-1]
    start = used_bytes(machine, path)
    wal.write([write(1, entries(4, 6, 2))])
    whole = state_of(wal)
    end = used_bytes(machine, path)
    content = machine.read(path)
    files = {
        name: machine.read(f"{machine.log_directory}/{name}") for name in machine.disk.listdir(machine.log_directory)
    }
    # Real files take an fsync each: some of the bytes there, all of them on the simulated disk.
    for cut in range(start, end + 1, 9 if on == "os" else 1):
        for rest in (bytes(end - cut), b"\xff" * (end - cut)):
            for name in machine.disk.listdir(machine.log_directory):
                machine.disk.unlink(f"{machine.log_directory}/{name}")
            for name, data in files.items():
                machine.disk.open(f"{machine.log_directory}/{name}", create=True).close()
                machine.overwrite(f"{machine.log_directory}/{name}", data)
            machine.overwrite(path, content[:cut] + rest + content[end:])
            recovered = machine.open()
            found = state_of(recovered)
            # The last byte of the batch may be padding, and zero anyway.
            assert found == whole if cut == end else found in (without, whole)
            if cut < end - 8:
                assert found == without
                # Cut once is cut for good, even if the bytes come back.
                recovered.close()
                machine.overwrite(path, content)
                assert state_of(machine.open()) == without


def test_a_batch_that_was_cut_does_not_come_back() -> None:
    """A torn batch hides a valid one behind it; once cut, the valid one is dead, and new entries take the indexes."""
    machine = simulated_machine()
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    wal.write([write(1, entries(1, 3))])
    wal.mark_synced()
    path = machine.segment_paths()[-1]
    torn = used_bytes(machine, path)
    wal.write([write(1, entries(3, 5))])
    wal.write([write(1, entries(5, 8))])
    content = bytearray(machine.read(path))
    saved = bytes(content)
    content[torn + 4 : torn + 12] = bytes(8)
    machine.overwrite(path, bytes(content))
    wal = machine.open()
    assert wal.log(R1).last_index() == 2
    wal.write([write(1, entries(3, 4, 9))])
    wal.sync()
    # The old bytes reappear, as a page that was written late would.
    machine.overwrite(path, saved)
    wal = machine.open()
    assert (wal.log(R1).last_index(), wal.log(R1).term(Index(3))) == (3, 9)


def test_a_torn_tail_may_hold_what_looks_like_a_batch() -> None:
    """Recovery that looks for valid batches behind a torn one passes over users' data that have a batch's magic, anywhere."""
    machine = simulated_machine()
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    wal.write([write(1, entries(1, 3))])
    wal.mark_synced()
    path = machine.segment_paths()[-1]
    torn = used_bytes(machine, path)
    wal.write([write(1, [entry(3, data=b"".join(BATCH_MAGIC_BYTES + bytes(pad) for pad in range(9)))])])
    content = bytearray(machine.read(path))
    content[torn + 4 : torn + 12] = bytes(8)
    machine.overwrite(path, bytes(content))
    assert 2 == machine.open().log(R1).last_index()


def test_damage_to_the_very_last_unvouched_batch_is_taken_for_a_torn_tail() -> None:
    """The stated limit: until something vouches for the last synced batch, damage to it cannot be told from a crash."""
    machine = simulated_machine()
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    wal.write([write(1, entries(1, 3))])
    wal.sync()
    path = machine.segment_paths()[-1]
    start = used_bytes(machine, path)
    wal.write([write(1, entries(3, 5))])
    wal.sync()
    disk_of(machine).flip_bit(path, start + 40, 1)
    assert machine.open().log(R1).last_index() == 2


def test_marking_the_log_synced_closes_the_gap_at_the_tail() -> None:
    """After `mark_synced` the same damage is recognised; a second call writes nothing."""
    machine = simulated_machine()
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    path = machine.segment_paths()[-1]
    start = used_bytes(machine, path)
    wal.write([write(1, entries(1, 5))])
    wal.mark_synced()
    operations = disk_of(machine).operations
    wal.mark_synced()
    assert disk_of(machine).operations == operations
    disk_of(machine).flip_bit(path, start + 40, 1)
    with pytest.raises(Corruption, match="proven to have been on the disk"):
        machine.open()


def test_a_save_of_the_hard_state_vouches_for_the_log() -> None:
    """A vote that is synced with a batch makes later damage to that batch recognisable."""
    machine = simulated_machine()
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    path = machine.segment_paths()[-1]
    start = used_bytes(machine, path)
    wal.write([write(1, entries(1, 5), hard_state=HardState(Term(1), R1))])
    wal.sync()
    disk_of(machine).flip_bit(path, start + 40, 1)
    with pytest.raises(Corruption):
        machine.open()


@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_missing_segment_is_refused(which: int) -> None:
    """The first, a middle or the newest segment is gone: the log does not open, and names the file or the directory."""
    machine = simulated_machine()
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    for lo in range(1, 100, 10):
        wal.write([write(1, entries(lo, lo + 10, 1, 500))])
        wal.sync()
    wal.close()
    paths = machine.segment_paths()
    assert len(paths) >= 3
    machine.disk.unlink(paths[which])
    with pytest.raises(Corruption) as caught:
        machine.open()
    assert caught.value.metadata["file"] == paths[which]
    assert "is missing" in caught.value.message


def test_a_lost_log_is_refused_however_much_is_missing() -> None:
    """All segments gone, or the hard state, or both: none of it passes for a new log once there was one."""
    for lost in (".wal", "hard_state", ""):
        machine = simulated_machine()
        wal = machine.open()
        wal.create(R1, ShardId(0), None)
        wal.write([write(1, entries(1, 5))])
        wal.close()
        for name in machine.disk.listdir(machine.log_directory):
            if lost in name:
                machine.disk.unlink(f"{machine.log_directory}/{name}")
        with pytest.raises(Corruption):
            machine.open(create=False)
        if lost:
            with pytest.raises(Corruption):
                machine.open(create=True)


def test_segments_of_another_node_or_cluster_are_refused() -> None:
    """A file that came from elsewhere is named, with both identities."""
    machine = filled_machine(1)
    for cluster, node in ((CLUSTER, NodeId(8)), (ClusterId(12), NODE)):
        with pytest.raises(IdentityMismatch, match=f"node {node} of cluster {cluster}"):
            machine.open(cluster=cluster, node=node)
    theirs = simulated_machine(2)
    theirs.open(node=NodeId(8)).close()
    path = machine.segment_paths()[-1]
    machine.overwrite(path, theirs.read(theirs.segment_paths()[0]))
    with pytest.raises(IdentityMismatch, match="belongs to node 8"):
        machine.open()


def test_a_newer_segment_format_is_refused_by_name() -> None:
    """A segment of a later release is not damage: the message names both versions."""
    machine = filled_machine(1)
    path = machine.segment_paths()[-1]
    content = bytearray(machine.read(path))
    header = bytearray(encode_segment_header(CLUSTER, NODE, int(Path(path).stem, 16)))
    header[8] = 2
    from crc32c import crc32c

    header[60:64] = crc32c(bytes(header[:60])).to_bytes(4, "little")
    content[:64] = header
    machine.overwrite(path, bytes(content))
    with pytest.raises(UnsupportedVersion, match="log format 2"):
        machine.open()


def test_pages_lost_by_a_failed_fsync_are_not_believed() -> None:
    """Fsyncgate: the page cache shows entries that the disk lacks; the restarted node reads what the disk has."""
    machine = simulated_machine(3)
    disk = disk_of(machine)
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    wal.write([write(1, entries(1, 3))])
    wal.sync()
    before = state_of(wal)
    for attempt in range(40):
        lo = wal.log(R1).last_index() + 1
        wal.write([write(1, entries(lo, lo + 2, 2, 3000))])
        disk.inject("fdatasync", 5, path_part=".wal")
        with pytest.raises(Exception, match="fdatasync"):
            wal.sync()
        # The process is gone, the machine is not: files keep what the cache shows, minus what recovery drops.
        wal = machine.open()
        found = state_of(wal)
        disk.crash(Random(attempt), power_cut=True)
        wal = machine.open()
        assert state_of(wal) == found
    assert wal.log(R1).entries(Index(1), Index(3), 1 << 30) == entries(1, 3)
    assert before != ()


def test_what_recovery_found_is_durable_before_it_is_relied_on() -> None:
    """The process dies, then the machine, at each operation of the recovery in between: the log opens with a prefix of
    what was written, and with all of it once a recovery has finished."""
    crash_at, finished = 0, False
    while not finished:
        machine = simulated_machine()
        disk = disk_of(machine)
        wal = machine.open()
        wal.create(R1, ShardId(0), None)
        wal.sync()
        wal.write([write(1, entries(1, 9))])
        disk.crash_at = disk.operations + crash_at
        try:
            machine.open()
            finished = True
        except SimulatedCrash:
            crash_at += 1
        disk.crash(Random(crash_at), power_cut=True)
        last = machine.open().log(R1).last_index()
        assert last == 8 if finished else last in (0, 8)


def test_a_batch_of_another_history_does_not_fit_into_the_chain() -> None:
    """Two copies of a node go on differently; a page of one in the other's file has the right checksum, and is refused."""
    machine = simulated_machine()
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    wal.close()
    twin = copy.deepcopy(machine)
    ends = []
    for each, letter in ((machine, b"a"), (twin, b"b")):
        wal = each.open()
        for index in (1, 2, 3):
            wal.write([write(1, [entry(index, 1, letter * 100)])])
            ends.append(used_bytes(each, each.segment_paths()[-1]))
        wal.close()
    assert ends[:3] == ends[3:]
    path = machine.segment_paths()[-1]
    content, other = bytearray(machine.read(path)), twin.read(path)
    content[ends[0] : ends[1]] = other[ends[0] : ends[1]]
    machine.overwrite(path, bytes(content))
    with pytest.raises(Corruption):
        machine.open()


def test_a_dead_segment_does_not_say_where_the_log_begins() -> None:
    """A compaction is lost with a torn tail, the next segment's opening, which already relied on it, is not: it is dead,
    and no later recovery may begin where it says."""
    machine = simulated_machine()
    wal = machine.open()
    wal.create(R1, ShardId(0), None)
    wal.write([write(1, entries(1, 10, 1, 500))])
    wal.mark_synced()
    before = state_of(wal)
    path = machine.segment_paths()[-1]
    start = used_bytes(machine, path)
    wal.write([write(1, [], compact_to=Index(9))])
    end = used_bytes(machine, path)
    while len(machine.segment_paths()) == 1:
        last = wal.log(R1).last_index()
        wal.write([write(1, entries(last + 1, last + 5, 1, 500))])
        wal.write([write(1, [], compact_to=Index(last + 4))])
    wal.write([write(1, [], compact_to=wal.log(R1).last_index())])
    wal.write([write(1, entries(wal.log(R1).last_index() + 1, wal.log(R1).last_index() + 20, 1, 500))])
    content = bytearray(machine.read(path))
    content[start:end] = bytes(end - start)
    machine.overwrite(path, bytes(content))
    for _ in range(3):
        assert state_of(machine.open()) == before


def test_leftovers_of_an_interrupted_creation_are_removed() -> None:
    """A segment that never got its name holds nothing and goes."""
    machine = simulated_machine()
    machine.open().close()
    path = f"{machine.log_directory}/{99:016x}.wal.tmp"
    machine.disk.open(path, create=True).close()
    machine.open().close()
    assert not machine.disk.exists(path)


def test_foreign_names_in_the_log_directory_are_left_alone(tmp_path: Path) -> None:
    """Only files that are named like segments are read or deleted."""
    machine = os_machine(str(tmp_path))
    machine.open().close()
    (tmp_path / "log" / "README").write_text("mine")
    machine.open().close()
    assert (tmp_path / "log" / "README").read_text() == "mine"
    assert isinstance(machine.disk, OsDisk)
