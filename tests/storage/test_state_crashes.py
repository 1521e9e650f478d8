"""A replica's state on a disk that loses what was not synced, stopped at every single operation."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.errors import Corruption
from raftcache.storage import state
from raftcache.storage.checkpoints import Draft
from raftcache.storage.clean_marker import consume_marker
from raftcache.storage.disk import Disk
from raftcache.storage.simulated_disk import SimulatedCrash, SimulatedDisk
from raftcache.storage.state import OutgoingCheckpoint
from tests.storage.state_driver import Home, Replica, transfer, verified

Contents = dict[bytes, bytes]


@dataclass
class Life:
    """What a replica goes through, and what it may come back as at each moment."""

    home: Home
    sender: Replica
    possible: dict[int, Contents | None] = field(default_factory=lambda: {0: None})
    """By index: the states that a start may find. Promises take states out of it, attempts put states in."""
    step: str = "nothing"

    def attempt(self, step: str, index: int, contents: Contents) -> None:
        self.step = step
        self.possible[index] = contents

    def promise(self, index: int) -> None:
        """From here on no older state may come back."""
        self.possible = {at: contents for at, contents in self.possible.items() if at >= index}

    def run(self) -> None:
        replica = Replica(self.home)
        self.attempt("bootstrap", 1, {})
        replica.bootstrap()
        self.promise(1)
        replica.put(b"a", b"1")
        self.attempt("checkpoint", 2, {b"a": b"1"})
        verified(replica.checkpoint())
        self.promise(2)
        self.home.loop.drain()
        received = {b"a": b"5", b"b": b"2"}
        self.attempt("receive", 4, received)
        verified(transfer(self.sender.store, replica.store, self.home.loop))
        self.promise(4)
        self.step = "install"
        replica.adopt(replica.store.install(self.sender.meta))
        self.home.loop.drain()
        replica.put(b"c", b"3")
        self.attempt("close clean", 5, {**received, b"c": b"3"})
        replica.close_clean()
        # The marker was reported by nothing but the return of `close_clean`, which is a promise too.
        self.promise(5)
        self.step = "open clean"
        # From the consumption of the marker on, the checkpoint is the truth again.
        self.possible[4] = received
        replica.reopen()
        replica.put(b"d", b"4")
        self.attempt("second checkpoint", 6, {**received, b"c": b"3", b"d": b"4"})
        verified(replica.checkpoint())
        self.promise(6)
        self.step = "prune"
        self.home.loop.drain()
        self.step = "done"


class Recorded:
    """A checkpoint that is sent again and again, without a store behind it."""

    def __init__(self, source: OutgoingCheckpoint) -> None:
        self.meta, self.size, self.digest = source.meta, source.size, source.digest
        self._chunks = []
        while chunk := source.chunk():
            self._chunks.append(chunk)
        source.close()

    def chunk(self) -> bytes:
        return self._chunks.pop(0) if self._chunks else b""

    def close(self) -> None:
        """Nothing to let go of."""


def sender_at_4() -> Replica:
    sender = Replica(Home.memory()).bootstrap()
    for key, value in ((b"a", b"1"), (b"b", b"2"), (b"a", b"5")):
        sender.put(key, value)
    verified(sender.checkpoint())
    return sender


SENDER = sender_at_4()


def live_until(operation: int | None, random: Random) -> tuple[Life, SimulatedDisk]:
    """A life on a new disk that ends before `operation`, by a crash, or by itself if it has fewer."""
    disk = SimulatedDisk(random)
    home = Home.memory(disk)
    disk.operations = 0
    disk.crash_at = operation
    life = Life(home, SENDER)
    try:
        life.run()
    except SimulatedCrash:
        disk.crash(random)
    else:
        disk.crash_at = None
    return life, disk


def check(life: Life, disk: SimulatedDisk) -> None:
    """Open what is there: exactly one of the possible states, and it adds up."""
    home = Home.memory(disk)
    replica = Replica(home)
    records = replica.store.open()
    if records is None:
        assert 0 in life.possible, f"stopped in '{life.step}', the state is gone; possible were {sorted(life.possible)}"
        return
    replica.adopt(records)
    replica.verify()
    index = replica.machine.applied_index
    assert index in life.possible, f"stopped in '{life.step}', came back at {index}, possible: {sorted(life.possible)}"
    contents = life.possible[index]
    assert contents is not None
    assert {key: replica.get(key) for key in (b"a", b"b", b"c", b"d")} == {
        key: contents.get(key) for key in (b"a", b"b", b"c", b"d")
    }
    newest = replica.store.newest()
    assert newest is not None
    assert newest.index <= index


OPERATIONS = live_until(None, Random(0))[1].operations


def test_life_without_a_crash_ends_in_its_last_state() -> None:
    """The scenario itself is sound: undisturbed, it comes to its end."""
    life, disk = live_until(None, Random(0))

    assert life.step == "done"
    assert sorted(life.possible) == [6]
    disk.crash(Random(1), power_cut=True)
    check(life, disk)


@settings(max_examples=80)
@given(operation=st.integers(0, OPERATIONS - 1), seed=st.integers(0, 2**32))
def test_crash_at_any_operation_reopens_as_old_or_as_new(operation: int, seed: int) -> None:
    """Whatever part of the un-synced writes and names survives, the state is one that was complete, and no older."""
    life, disk = live_until(operation, Random(seed))
    check(life, disk)


@settings(max_examples=60)
@given(
    operation=st.integers(0, OPERATIONS - 1),
    later=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    seed=st.integers(0, 2**32),
)
def test_crash_during_recovery_loses_nothing_either(operation: int, later: list[int], seed: int) -> None:
    """Starts that are themselves interrupted, again and again, come to the same states."""
    random = Random(seed)
    life, disk = live_until(operation, random)
    for offset in later:
        disk.crash_at = disk.operations + offset
        try:
            check(life, disk)
        except SimulatedCrash:
            if life.step == "close clean" or 5 in life.possible:
                # The interrupted start may have consumed the marker.
                life.possible.setdefault(4, {b"a": b"5", b"b": b"2"})
        disk.crash(random)
    check(life, disk)


def without_directory_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Draft, "_sync_directory", lambda draft, path: None)


def without_file_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Draft, "_sync", lambda draft, file: None)


def with_marker_left_to_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    def consume(disk: Disk, directory: str) -> dict[str, str] | None:
        sync = disk.fsync_directory
        # Whoever syncs that directory later makes up for it.
        monkeypatch.setattr(disk, "fsync_directory", lambda path: None if path == directory else sync(path))
        return consume_marker(disk, directory)

    monkeypatch.setattr(state, "consume_marker", consume)


@pytest.mark.parametrize("sabotage", [without_directory_sync, without_file_sync, with_marker_left_to_chance])
def test_canary_is_found_dead(monkeypatch: pytest.MonkeyPatch, sabotage: Callable[[pytest.MonkeyPatch], None]) -> None:
    """A store that leaves out one sync is caught by the tests above, so they test something."""
    sabotage(monkeypatch)
    with pytest.raises((AssertionError, Corruption)):
        for seed in range(20):
            for operation in reversed(range(OPERATIONS)):
                life, disk = live_until(operation, Random(seed))
                check(life, disk)
