"""A shard's machine over records in memory, fed one entry after the other: what most tests here drive."""

from raftcache.errors import RaftCacheError
from raftcache.ids import Index, ShardId, Slot, Term
from raftcache.kv.codec import encode_batch
from raftcache.kv.limits import CEILINGS, KvLimits, check_operation
from raftcache.kv.machine import Machine
from raftcache.kv.operations import (
    Command,
    Failure,
    Get,
    GetResult,
    KeyEntry,
    OpenSession,
    Result,
    Scan,
    ScanResult,
    SessionResult,
    SessionStamp,
    WriteOperation,
)
from raftcache.kv.records import MemoryRecords
from raftcache.kv.slots import SLOT_COUNT, slot_of

ALL_SLOTS = ((Slot(0), Slot(SLOT_COUNT)),)
TERM = Term(1)


class Shard:
    """One machine and its records. Operations go in as commands of the slot they belong to."""

    def __init__(
        self,
        *,
        limits: KvLimits | None = None,
        ranges: tuple[tuple[Slot, Slot], ...] = ALL_SLOTS,
        records: MemoryRecords | None = None,
    ) -> None:
        self.limits = limits or KvLimits()
        self.records = MemoryRecords() if records is None else records
        Machine.create(
            self.records,
            shard=ShardId(7),
            ranges=ranges,
            epoch=1,
            index=Index(1),
            term=TERM,
            configuration=b"members",
            limits=self.limits,
        )
        self.machine = Machine(self.records, self.limits)

    def run(
        self, *operations: WriteOperation, stamps: list[SessionStamp] | None = None, at_ms: int = 0
    ) -> list[Result]:
        """Apply operations as one entry."""
        commands = []
        for position, operation in enumerate(operations):
            stamp = stamps[position] if stamps else None
            commands.append(Command(operation, slot_for(operation), stamp))
        return self.apply(encode_batch(commands, proposed_ms=at_ms))

    def one(self, operation: WriteOperation, stamp: SessionStamp | None = None) -> Result:
        """Apply one operation as one entry."""
        (result,) = self.run(operation, stamps=None if stamp is None else [stamp])
        return result

    def apply(self, data: bytes) -> list[Result]:
        """Apply the next entry."""
        return self.machine.apply(Index(self.machine.applied_index + 1), TERM, data)

    def refused(self, operation: WriteOperation, stamp: SessionStamp | None = None) -> Failure:
        """Apply one operation that must be refused and change nothing."""
        before = (self.machine.revision, self.machine.state_hash, self.machine.record_count)
        result = self.one(operation, stamp)
        assert isinstance(result, Failure), result
        assert before == (self.machine.revision, self.machine.state_hash, self.machine.record_count)
        return result

    def open(self) -> int:
        """Open a session."""
        result = self.one(OpenSession())
        assert isinstance(result, SessionResult)
        return result.session

    def get(self, key: bytes, namespace: int = 0) -> KeyEntry | None:
        """Read a key."""
        slot = slot_of(key) if namespace == 0 else Slot(-1)
        result = self.machine.read(Get(key, namespace), slot)
        assert isinstance(result, GetResult), result
        return result.entry

    def value(self, key: bytes) -> bytes | None:
        """Read a key's value."""
        entry = self.get(key)
        return None if entry is None else entry.value

    def scan(self, scan: Scan) -> ScanResult:
        """Read a page."""
        result = self.machine.read(scan, Slot(-1))
        assert isinstance(result, ScanResult), result
        return result

    def reload(self) -> None:
        """Flush, and take the state up again from the records."""
        self.machine.flush()
        self.machine = Machine(self.records, self.limits)

    def assert_verified(self) -> None:
        """Flush; the scrub must find nothing, and the machine's own totals."""
        self.machine.flush()
        found = Machine.verify(self.records)
        assert found.problems == []
        assert (self.machine.record_count, self.machine.state_hash) == (found.record_count, found.state_hash)


def slot_for(operation: WriteOperation) -> Slot:
    """The slot a gateway would send a command with; -1 for one that it would refuse."""
    try:
        return check_operation(operation, CEILINGS, internal=True)
    except RaftCacheError:
        return Slot(-1)
