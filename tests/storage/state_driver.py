"""One replica's state as its node drives it: a machine over a `StateStore`, a loop, and what should be in it."""

import queue
from collections.abc import Callable
from pathlib import Path
from random import Random

from raftcache.ids import Index, ReplicaId, ShardId, Slot, Term
from raftcache.kv.codec import encode_batch
from raftcache.kv.limits import KvLimits
from raftcache.kv.machine import Machine
from raftcache.kv.operations import Command, Get, GetResult, Put
from raftcache.kv.records import Records
from raftcache.kv.slots import slot_of
from raftcache.raft.configuration import encode_configuration
from raftcache.raft.messages import Configuration, SnapshotMeta
from raftcache.storage.disk import Disk
from raftcache.storage.live_state import Verified
from raftcache.storage.lmdb_records import LmdbConfig
from raftcache.storage.lmdb_state import lmdb_state_store
from raftcache.storage.simulated_disk import SimulatedDisk
from raftcache.storage.simulated_state import simulated_state_store
from raftcache.storage.state import CheckpointResult, CheckpointVerified, StateConfig, StateStore

CONFIGURATION = Configuration(voters=(ReplicaId(1), ReplicaId(2), ReplicaId(3)))
FIRST = SnapshotMeta(Index(1), Term(1), CONFIGURATION)
LMDB = LmdbConfig(map_bytes=1 << 30)
UNPACED = StateConfig(copy_bytes_per_second=0, free_bytes_min=0)
PATIENCE_SECONDS = 60


class Loop:
    """Stands for the node's loop: runs what is posted, when the test says so."""

    def __init__(self) -> None:
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def post(self, call: Callable[[], None]) -> None:
        self._posted.put(call)

    def run_until(self, done: Callable[[], bool]) -> None:
        while not done():
            self._posted.get(timeout=PATIENCE_SECONDS)()

    def drain(self) -> None:
        """What is there now; jobs in threads may post more."""
        while not self._posted.empty():
            self._posted.get()()


class Home:
    """Where replicas live, and what makes their stores: real files and LMDB, or a simulated disk and memory."""

    def __init__(self, root: str, disk: Disk | None, *, simulated: bool) -> None:
        self.root = root
        self.disk = disk
        self.simulated = simulated
        self.loop = Loop()

    @staticmethod
    def lmdb(path: Path, disk: Disk | None = None) -> "Home":
        return Home(str(path), disk, simulated=False)

    @staticmethod
    def memory(disk: SimulatedDisk | None = None) -> "Home":
        disk = disk or SimulatedDisk(Random(0))
        if not disk.exists("data"):
            disk.mkdir("data")
            disk.fsync_directory(".")
        return Home("data", disk, simulated=True)

    def directory(self, replica: int) -> str:
        return f"{self.root}/replicas/{replica}"

    def store(self, replica: int, *, lmdb: LmdbConfig = LMDB, config: StateConfig = UNPACED) -> StateStore:
        if self.simulated:
            assert self.disk is not None, "a simulated home has a disk"
            return simulated_state_store(self.directory(replica), disk=self.disk, post=self.loop.post)
        return lmdb_state_store(
            self.directory(replica), post=self.loop.post, lmdb_config=lmdb, config=config, disk=self.disk
        )


class Replica:
    """A store, its machine and the values that were put; `log` replays what is above a checkpoint, as the node does."""

    def __init__(self, home: Home, number: int = 1) -> None:
        self.home = home
        self.number = number
        self.log: dict[Index, bytes] = {}
        self.store = home.store(number)
        self._machine: Machine | None = None

    @property
    def machine(self) -> Machine:
        assert self._machine is not None, "the replica has no state"
        return self._machine

    @property
    def meta(self) -> SnapshotMeta:
        """Names the state as it is now."""
        return SnapshotMeta(self.machine.applied_index, self.machine.applied_term, CONFIGURATION)

    def bootstrap(self) -> "Replica":
        assert self.store.open() is None, "there is a state already"
        self.adopt(self.store.bootstrap(FIRST, write_first_state))
        return self

    def reopen(self) -> Index:
        """A new life of the process: open, and apply the log from there. The index that was opened at."""
        self.store = self.home.store(self.number)
        records = self.store.open()
        assert records is not None, "the replica never had a state"
        self.adopt(records)
        opened_at = self.machine.applied_index
        for index in sorted(self.log):
            if index > opened_at:
                self.machine.apply(index, Term(1), self.log[index])
        return opened_at

    def adopt(self, records: Records) -> None:
        self.records = records
        self._machine = Machine(records, KvLimits())

    def put(self, key: bytes, value: bytes) -> None:
        self.put_many({key: value})

    def put_many(self, values: dict[bytes, bytes]) -> None:
        commands = [Command(Put(key, value), slot_of(key)) for key, value in values.items()]
        index = Index(self.machine.applied_index + 1)
        self.log[index] = encode_batch(commands, proposed_ms=1)
        self.machine.apply(index, Term(1), self.log[index])

    def get(self, key: bytes) -> bytes | None:
        result = self.machine.read(Get(key), slot_of(key))
        assert isinstance(result, GetResult), f"reading {key!r} answered {result}"
        return None if result.entry is None else result.entry.value

    def begin_checkpoint(self) -> list[CheckpointResult]:
        """The list gets the result when it is there."""
        self.machine.flush()
        results: list[CheckpointResult] = []
        self.store.begin_checkpoint(self.meta, results.append)
        return results

    def checkpoint(self) -> CheckpointResult:
        results = self.begin_checkpoint()
        self.home.loop.run_until(lambda: bool(results))
        return results[0]

    def close_clean(self) -> None:
        self.machine.flush()
        self.store.close_clean()
        self.home.loop.drain()

    def verify(self) -> None:
        """The live records add up. Raises: `Damaged`."""
        self.machine.flush()
        Verified.of(self.records, b"")


def write_first_state(records: Records) -> None:
    Machine.create(
        records,
        shard=ShardId(1),
        ranges=((Slot(0), Slot(16384)),),
        epoch=1,
        index=FIRST.index,
        term=FIRST.term,
        configuration=encode_configuration(CONFIGURATION),
    )


def verified(result: CheckpointResult) -> CheckpointVerified:
    """The result, which must be a success."""
    assert isinstance(result, CheckpointVerified), result
    return result


def transfer(sender: StateStore, receiver: StateStore, loop: Loop, *, logical: bool = False) -> CheckpointResult:
    """Sends the newest checkpoint, as the nodes do."""
    meta = sender.newest()
    assert meta is not None, "there is nothing to send"
    source = sender.open_checkpoint_for_read(meta)
    if logical:
        source.close()
        converted: list[object] = []
        sender.begin_conversion(meta, converted.append)
        loop.run_until(lambda: bool(converted))
        source = converted[0]  # type: ignore[assignment] # an error would fail below, with its text
    incoming = receiver.begin_incoming(meta, size=source.size, digest=source.digest)
    while chunk := source.chunk():
        incoming.add(chunk)
    source.close()
    results: list[CheckpointResult] = []
    incoming.finish(results.append)
    loop.run_until(lambda: bool(results))
    return results[0]
