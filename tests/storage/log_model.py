"""What the write-ahead log should hold, kept the naive way, and the machines on which it is tried."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import NoReturn

from raftcache.ids import ClusterId, Index, NodeId, ReplicaId, ShardId, Term
from raftcache.raft.messages import Configuration, Entry, EntryKind, HardState, SnapshotMeta
from raftcache.storage.disk import Disk, OsDisk
from raftcache.storage.simulated_disk import SimulatedDisk
from raftcache.storage.wal import ReplicaWrite, Wal, WalConfig

CLUSTER = ClusterId(11)
NODE = NodeId(7)
SMALL = WalConfig(segment_bytes=16 << 10, batch_bytes_max=8 << 10, cache_bytes_max=4 << 10, pinned_bytes_max=64 << 10)
THREE = Configuration((ReplicaId(1), ReplicaId(2), ReplicaId(3)))


class Fatal(Exception):
    """The fatal handler of the tests: what would have ended the process."""


def fatal(reason: str) -> NoReturn:
    raise Fatal(reason)


def entry(index: int, term: int = 1, data: bytes = b"", kind: EntryKind = EntryKind.COMMANDS) -> Entry:
    return Entry(Term(term), Index(index), kind, data or b"%d/%d" % (index, term))


def entries(lo: int, hi: int, term: int = 1, size: int = 0) -> list[Entry]:
    """Entries `[lo, hi)`, each with `size` bytes (or a few)."""
    return [entry(index, term, (b"%d/%d." % (index, term)).ljust(size, b"x")) for index in range(lo, hi)]


def write(replica: int, new: list[Entry], **more: object) -> ReplicaWrite:
    return ReplicaWrite(ReplicaId(replica), new, **more)  # type: ignore[arg-type]


class Machine:
    """A disk with a log directory on it, real or simulated."""

    def __init__(self, disk: Disk, root: str, config: WalConfig = SMALL) -> None:
        self.disk = disk
        self.root = root
        self.config = config

    @property
    def log_directory(self) -> str:
        return f"{self.root}/log"

    def open(self, *, cluster: ClusterId = CLUSTER, node: NodeId = NODE, create: bool = True) -> Wal:
        return Wal.open(
            self.disk, self.log_directory, self.config, (cluster, node), incarnation=1, create=create, fatal=fatal
        )

    def segment_paths(self) -> list[str]:
        names = [name for name in self.disk.listdir(self.log_directory) if name.endswith(".wal")]
        return [f"{self.log_directory}/{name}" for name in names]

    def read(self, path: str) -> bytes:
        file = self.disk.open(path)
        data = file.pread(file.size(), 0)
        file.close()
        return data

    def overwrite(self, path: str, data: bytes) -> None:
        """Replace the file's bytes, as damage would."""
        file = self.disk.open(path)
        file.truncate(len(data))
        file.pwrite(data, 0)
        file.fdatasync()
        file.close()

    def flip(self, path: str, offset: int, bit: int = 0) -> None:
        data = bytearray(self.read(path))
        data[offset] ^= 1 << bit
        self.overwrite(path, bytes(data))


def simulated_machine(seed: int = 0, config: WalConfig = SMALL, *, capacity_bytes: int | None = None) -> Machine:
    disk = SimulatedDisk(Random(seed), capacity_bytes=capacity_bytes)
    disk.mkdir("node")
    disk.fsync_directory(".")
    return Machine(disk, "node", config)


def os_machine(root: str, config: WalConfig = SMALL) -> Machine:
    return Machine(OsDisk(), root, config)


def disk_of(machine: Machine) -> SimulatedDisk:
    assert isinstance(machine.disk, SimulatedDisk)
    return machine.disk


# --- The model ------------------------------------------------------------------------------------------------------


@dataclass
class ReplicaModel:
    """One replica's log as a list."""

    shard: ShardId
    start: tuple[int, int] = (0, 0)
    entries: list[Entry] = field(default_factory=list)

    @property
    def last_index(self) -> int:
        return self.start[0] + len(self.entries)

    def term(self, index: int) -> int:
        return self.start[1] if index == self.start[0] else self.entries[index - self.start[0] - 1].term


State = tuple[object, ...]
"""Everything a log says, comparable."""


@dataclass
class LogModel:
    """All logs of a node."""

    replicas: dict[ReplicaId, ReplicaModel] = field(default_factory=dict)
    removed: set[ReplicaId] = field(default_factory=set)
    hard: dict[ReplicaId, HardState] = field(default_factory=dict)

    def write(self, batch: list[ReplicaWrite]) -> None:
        for item in batch:
            model = self.replicas[item.replica]
            if item.snapshot is not None:
                model.start = (item.snapshot.index, item.snapshot.term)
                model.entries = []
            if item.entries:
                model.entries = model.entries[: item.entries[0].index - model.start[0] - 1] + list(item.entries)
            if item.compact_to is not None and item.compact_to > model.start[0]:
                start = (item.compact_to, model.term(item.compact_to))
                model.entries = model.entries[item.compact_to - model.start[0] :]
                model.start = start
            if item.hard_state is not None:
                self.hard[item.replica] = item.hard_state

    def state(self) -> State:
        logs = tuple(
            (replica, model.shard, model.start, tuple((e.index, e.term, e.kind, e.data) for e in model.entries))
            for replica, model in sorted(self.replicas.items())
        )
        return logs, tuple(sorted(self.removed))


def state_of(wal: Wal) -> State:
    logs = []
    for replica in wal.replicas():
        log = wal.log(replica)
        start = log.first_index() - 1
        held = log.entries(log.first_index(), Index(log.last_index() + 1), 1 << 40)
        assert [e.index for e in held] == list(range(log.first_index(), log.last_index() + 1))
        assert [e.term for e in held] == [log.term(e.index) for e in held]
        logs.append(
            (
                replica,
                log.shard,
                (start, log.term(Index(start))),
                tuple((e.index, e.term, e.kind, e.data) for e in held),
            )
        )
    return tuple(logs), tuple(sorted(wal.removed()))


class Workload:
    """Drives a log and its model together with random, legal writes, and knows what a crash may leave.

    `possible[0]` is what was last synced, the others what each later write made of it: a recovered log must equal one.
    """

    def __init__(self, machine: Machine, random: Random) -> None:
        self.machine = machine
        self.random = random
        self.model = LogModel()
        self.possible: list[State] = [self.model.state()]
        self.hard_synced: dict[ReplicaId, HardState] = {}
        self.hard_written: dict[ReplicaId, list[HardState]] = {}
        self.wal = machine.open()
        self._next_replica = 1
        self._term = 1

    def step(self) -> None:
        action = self.random.choices(
            ("write", "create", "remove", "sync", "collect", "preallocate", "mark"), (60, 4, 2, 22, 4, 4, 4)
        )[0]
        if action == "write" and self.model.replicas:
            self._write()
        elif action == "create" and len(self.model.replicas) < 5:
            self._create()
        elif action == "remove" and len(self.model.replicas) > 2:
            self._remove()
        elif action == "sync":
            self.sync()
        elif action == "collect":
            self.sync()
            self.wal.collect()
        elif action == "preallocate":
            self.wal.preallocate()
        elif action == "mark":
            with self._syncing():
                self.wal.mark_synced()

    def sync(self) -> None:
        with self._syncing():
            self.wal.sync()

    def recover(self) -> None:
        """Open the log again and hold it against what it may be; go on from what it is."""
        self.wal = self.machine.open()
        found = state_of(self.wal)
        assert found in self.possible, f"recovered {found}\nwhich is none of {self.possible}"
        self.possible = [found]
        logs, removed = found
        assert isinstance(logs, tuple)
        assert isinstance(removed, tuple)
        self.model.removed = set(removed)
        self.model.replicas = {
            replica: ReplicaModel(shard, start, [Entry(Term(t), Index(i), k, d) for i, t, k, d in held])
            for replica, shard, start, held in logs
        }
        for replica, model in self.model.replicas.items():
            hard = self.wal.hard_state(replica)
            allowed = [self.hard_synced.get(replica, HardState()), *self.hard_written.get(replica, [])]
            last = model.term(model.last_index)
            # A term below the log's last one is answered with that term, and no vote.
            assert hard in [state if state.term >= last else HardState(Term(last)) for state in allowed], (
                f"hard state {hard} of replica {replica} is none of {allowed} (last term {last})"
            )
            self.hard_synced[replica] = self.model.hard[replica] = hard
        self.hard_written.clear()
        self._next_replica = max([*self.model.replicas, *self.model.removed, self._next_replica - 1], default=0) + 1

    @contextmanager
    def _syncing(self) -> Iterator[None]:
        yield
        self.possible = [self.model.state()]
        for replica, states in self.hard_written.items():
            self.hard_synced[replica] = states[-1]
        self.hard_written.clear()

    def _write(self) -> None:
        batch = []
        chosen = self.random.sample(sorted(self.model.replicas), self.random.randint(1, len(self.model.replicas)))
        for replica in chosen:
            item = ReplicaWrite(replica)
            model = self.model.replicas[replica]
            luck = self.random.random()
            if luck < 0.75:
                lo = model.last_index + 1
                if luck < 0.15 and model.entries:
                    lo = self.random.randint(model.start[0] + 1, model.last_index + 1)
                self._term += self.random.random() < 0.1
                size = self.random.choice((0, 10, 100, 700))
                item.entries = entries(lo, lo + self.random.randint(1, 4), self._term, size)
            elif luck < 0.9 and model.entries:
                item.compact_to = Index(self.random.randint(model.start[0], model.last_index))
            elif luck < 0.93:
                index = model.last_index + self.random.randint(1, 9)
                item.snapshot = SnapshotMeta(Index(index), Term(self._term), THREE)
            if self.random.random() < 0.2:
                old = self.model.hard.get(replica, HardState())
                item.hard_state = HardState(
                    Term(old.term + self.random.randint(1, 2)), ReplicaId(self.random.randint(0, 3))
                )
                self.hard_written.setdefault(replica, []).append(item.hard_state)
            batch.append(item)
        # Known as possible before the call: a crash within it may leave the batch whole.
        self.model.write(batch)
        self.possible.append(self.model.state())
        self.wal.write(batch)

    def _create(self) -> None:
        replica, shard = ReplicaId(self._next_replica), ShardId(self._next_replica % 3)
        self._next_replica += 1
        snapshot = SnapshotMeta(Index(1), Term(1), THREE) if self.random.random() < 0.5 else None
        self.model.replicas[replica] = ReplicaModel(shard, (1, 1) if snapshot else (0, 0))
        self.possible.append(self.model.state())
        self.wal.create(replica, shard, snapshot)

    def _remove(self) -> None:
        replica = self.random.choice(sorted(self.model.replicas))
        del self.model.replicas[replica]
        self.model.removed.add(replica)
        self.model.hard.pop(replica, None)
        self.possible.append(self.model.state())
        self.wal.remove(replica)
