"""The state machine of one shard: a log in, results and records out, the same on every replica.

`apply` takes the entries of the log one by one, in order. A command is first evaluated against the state, and written
only when nothing can refuse it any more; a command that is refused changes nothing, and its `Failure` is its result,
equal on every replica. Around that stand the shard's revision, its clock, the slots it owns, its sessions, and the
state hash, all of them functions of the log.

Rules of this file:
- deterministic: no clock, no randomness, no order but that of the log and of keys. Failure messages may quote state,
  and never what differs between nodes, such as settings;
- three kinds of trouble, apart. A *command* that cannot be: a `Failure`, and the log goes on. *Bytes* that cannot be, in
  the log or in the records: `Corruption` or `UnsupportedVersion`, and this replica stops, because skipping an entry
  that others apply is how replicas part silently. A *bug*: whatever it raises goes through. After either of the latter
  two the records may hold half an entry, the machine refuses to go on, and its owner discards both;
- the owner of the records commits them, right after `flush`; between two flushes the records lag behind in everything
  but data.

The entry that no release can decode is thus a poison pill, and stops every replica of the shard. It cannot come from a
client: entries are encoded by the leader from checked operations. It means a bug, or a release that broke the rule of
`codec.py` that new tags need a new version; stopping keeps the data as they were until a release that can read it.

Invariants, checked by `verify`: record counts and hashes per slot are those of the records; `applied_index` rises by 1
with each entry; `revision` rises by 1 with each command that changed a key; `clock_ms` never falls.
"""

from collections.abc import Sequence
from typing import assert_never

from xxhash import xxh3_64_digest

from raftcache.errors import Corruption, InvalidRequest, PreconditionFailed, WrongShard
from raftcache.ids import Index, Revision, ShardId, Slot, Term
from raftcache.kv.codec import MalformedBytes, decode_batch
from raftcache.kv.evaluation import Evaluation
from raftcache.kv.layout import (
    DEFAULT_PREFIX,
    HASH_BYTES,
    RECORD_BYTES_MIN,
    RECORD_HEAD,
    RECORD_VERSION,
    TABLE_DATA,
    damaged,
    data_prefix,
    decode_record,
    encode_record,
    hash_of,
    table_end,
)
from raftcache.kv.limits import (
    CEILINGS,
    KEY_BYTES_CEILING,
    KvLimits,
    check_operation,
    check_ranges,
    is_plain,
    shown,
)
from raftcache.kv.meta import Ownership, SessionLimits, State, StoredConfiguration
from raftcache.kv.operations import (
    DEFAULT_NAMESPACE,
    SYSTEM_NAMESPACE,
    CloseSession,
    Command,
    CompareAndSwap,
    Delete,
    Failure,
    Get,
    GetResult,
    Increment,
    KeyEntry,
    OpenSession,
    Put,
    PutMany,
    PutManyResult,
    ReadOperation,
    Result,
    Scan,
    SessionResult,
    SetOwnership,
    Transaction,
    WriteOperation,
    WriteResult,
)
from raftcache.kv.records import Records
from raftcache.kv.scan import scan
from raftcache.kv.sessions import Session, Sessions
from raftcache.kv.slots import SHARD_WIDE, SLOT_COUNT, slot_of
from raftcache.kv.state_hash import PAGE_SLOTS, StateHash
from raftcache.kv.verification import Verification, verify


class Machine:
    """One shard's state machine over its records."""

    def __init__(self, records: Records, limits: KvLimits) -> None:
        """Take up the state that the records hold. `limits` bound what reads return; they decide no state.

        Raises: `Corruption` where a record is damaged or missing, or parts do not belong together; `UnsupportedVersion`.
        """
        self._records = records
        self._limits = limits
        state = State.load(records)
        if not state.complete:
            raise Corruption(
                f"the state at index {state.applied_index} was flushed without its hashes and sessions: it served a "
                f"running process only; discard it, and rebuild from checkpoint and log"
            )
        self.applied_index = state.applied_index
        self.applied_term = state.applied_term
        self.revision = state.revision
        self.clock_ms = state.clock_ms
        ownership = Ownership.load(records)
        self.shard = ownership.shard
        self.epoch = ownership.epoch
        self.ranges = ownership.ranges
        self._configuration = StoredConfiguration.load(records)
        self._configuration_touched = False
        self._ownership_touched = False
        self._hashes = StateHash.load(records)
        self._sessions = Sessions.load(records, SessionLimits.load(records))
        self._halted = False
        """Set while an entry is being applied; still set after one that raised."""
        self._owned = b""
        """One byte per slot: 1 where the shard owns it."""
        self._foreign = False
        """Whether there are records in slots that the shard does not own, which scans must pass over."""
        self._own()
        found = (self.record_count, self.state_hash, len(self._sessions), self._sessions.flushed_hash())
        stored = (state.record_count, state.state_hash, state.session_count, state.session_hash)
        if found != stored:
            raise Corruption(
                f"the state at index {state.applied_index} does not add up: records, hash, sessions and their hash are "
                f"{found}, and {stored} were stored; this replica rebuilds from checkpoint and log, or from its peers"
            )

    @staticmethod
    def create(
        records: Records,
        *,
        shard: ShardId,
        ranges: tuple[tuple[Slot, Slot], ...],
        epoch: int,
        index: Index,
        term: Term,
        configuration: bytes,
        limits: KvLimits | None = None,
        revision: Revision = Revision(0),
        clock_ms: int = 0,
    ) -> None:
        """Write the first state of a shard: the same records for the same arguments, on every first member.

        `limits` gives the limits of sessions, for good, and therefore must be the same on all members: leave it out, or
        take it from what they have in common. Key records that are there already (of a restored backup) are counted
        in; `revision` is then raised to the newest of theirs.
        Raises: `InvalidRequest` for bad ranges, `Corruption` for a damaged record.
        """
        check_ranges(ranges)
        hashes = StateHash()
        for record_key, record in records.scan(TABLE_DATA, table_end(TABLE_DATA)):
            entry = decode_record(record_key, record)
            hashes.change(slot_of(entry.key), count=1, hash_delta=hash_of(record))
            revision = max(revision, entry.mod_revision)
        hashes.flush(records)
        SessionLimits.of(limits or KvLimits()).store(records)
        Ownership(shard, epoch, ranges).store(records)
        StoredConfiguration(index, term, configuration).store(records)
        State(
            complete=True,
            applied_index=index,
            applied_term=term,
            revision=revision,
            clock_ms=clock_ms,
            record_count=hashes.record_count(),
            state_hash=hashes.total(),
            session_count=0,
            session_hash=0,
        ).store(records)

    @staticmethod
    def verify(records: Records) -> Verification:
        """Recompute every checksum, count and hash, and compare with what is stored. A pure scan."""
        return verify(records)

    # --- What it is ---

    @property
    def record_count(self) -> int:
        """Keys in the shard, of all namespaces."""
        return self._hashes.record_count()

    @property
    def state_hash(self) -> int:
        """The state hash, 128 bits. Sums over the slots that hold records: for comparisons, not for every entry."""
        return self._hashes.total()

    @property
    def session_count(self) -> int:
        """Open sessions."""
        return len(self._sessions)

    @property
    def session_reply_bytes(self) -> int:
        """Bytes of the replies that sessions keep."""
        return self._sessions.reply_bytes

    @property
    def configuration(self) -> bytes:
        """The newest applied configuration of the group, as its log entry had it."""
        return self._configuration.data

    @property
    def configuration_index(self) -> Index:
        """The log index of `configuration`."""
        return self._configuration.index

    # --- Apply ---

    def apply(self, index: Index, term: Term, data: bytes) -> list[Result]:
        """Apply one entry of commands: one result per command, in order. A bad command's result is a `Failure`.

        Raises: `Corruption` (bytes that cannot be, in `data` or in a record that was read) and `UnsupportedVersion`:
        stop the replica, discard the records' uncommitted writes, and never answer the entry.
        """
        self._begin(index, term)
        try:
            batch = decode_batch(data)
        except MalformedBytes as error:
            raise Corruption(
                f"the entry at index {index}, term {term} of shard {self.shard} cannot be decoded: {error}; this "
                f"replica stops. If its peers stop at the same entry, it is a defect of this release: do not remove "
                f"data, and report it"
            ) from error
        # The log orders time: a leader whose clock is behind does not turn it back.
        if batch.proposed_ms > self.clock_ms:
            self.clock_ms = batch.proposed_ms
        results: list[Result] = []
        append = results.append
        admit = self._sessions.admit
        for position, command in enumerate(batch.commands):
            stamp = command.stamp
            if stamp is None:
                append(self._execute(command, index, position))
                continue
            admitted = admit(stamp, index, position)
            if isinstance(admitted, Session):
                result = self._execute(command, index, position)
                if not (type(result) is Failure and result.reason == WrongShard.reason):
                    self._sessions.keep(admitted, stamp.sequence, result)
                append(result)
            else:
                append(admitted)
        self._end(index, term)
        return results

    def apply_empty(self, index: Index, term: Term) -> None:
        """Apply an entry without commands."""
        self._begin(index, term)
        self._end(index, term)

    def apply_configuration(self, index: Index, term: Term, data: bytes) -> None:
        """Apply a configuration entry: remember it for checkpoints."""
        self._begin(index, term)
        self._configuration = StoredConfiguration(index, term, data)
        self._configuration_touched = True
        self._end(index, term)

    def flush(self, *, complete: bool = True) -> None:
        """Bring the records level with memory; the owner commits right after.

        With `complete=False` only positions, totals and what changed seldom are written, at one put. The records are
        then good for this process only: a machine refuses to start from them. For commits between checkpoints, if the
        live state is discarded at a crash anyway; a checkpoint and a clean shutdown need a complete flush.
        """
        assert not self._halted, f"flush after an entry past {self.applied_index} was half applied"
        if complete:
            self._hashes.flush(self._records)
            self._sessions.flush(self._records)
        if self._configuration_touched:
            self._configuration.store(self._records)
            self._configuration_touched = False
        if self._ownership_touched:
            Ownership(self.shard, self.epoch, self.ranges).store(self._records)
            self._ownership_touched = False
        State(
            complete=complete,
            applied_index=self.applied_index,
            applied_term=self.applied_term,
            revision=self.revision,
            clock_ms=self.clock_ms,
            record_count=self.record_count if complete else 0,
            state_hash=self.state_hash if complete else 0,
            session_count=len(self._sessions),
            session_hash=self._sessions.flushed_hash() if complete else 0,
        ).store(self._records)

    # --- Read ---

    def read(self, operation: ReadOperation, slot: Slot) -> Result:
        """Answer a read from the state as applied; the caller has made sure that it is fresh enough.

        A scan concerns the shard (`slot` -1), or is refused where the shard does not own `slot`; its limits are cut to
        those of this node. Raises: `Corruption`, `UnsupportedVersion`.
        """
        assert not self._halted, f"read after an entry past {self.applied_index} was half applied"
        if type(operation) is Get:
            key = operation.key
            if operation.namespace == DEFAULT_NAMESPACE:
                if slot_of(key) != slot:
                    return _misrouted(key, slot)
                if not self._owned[slot]:
                    return self._wrong_shard(slot)
                record_key = DEFAULT_PREFIX + key
            elif operation.namespace == SYSTEM_NAMESPACE:
                record_key = data_prefix(SYSTEM_NAMESPACE) + key
            else:
                return self._refusal(operation)
            if not 0 < len(key) <= KEY_BYTES_CEILING:
                return self._refusal(operation)
            record = self._records.get(record_key)
            return GetResult(self.revision, None if record is None else decode_record(record_key, record))
        assert isinstance(operation, Scan), type(operation)
        if slot != SHARD_WIDE and not (0 <= slot < SLOT_COUNT and self._owned[slot]):
            return self._wrong_shard(slot)
        if (
            max(len(operation.lo), len(operation.hi or b"")) > KEY_BYTES_CEILING
            or operation.namespace > SYSTEM_NAMESPACE
        ):
            return self._refusal(operation)
        owned = self._owned if self._foreign and operation.namespace == DEFAULT_NAMESPACE else None
        return scan(self._records, operation, self._limits, owned=owned, revision=self.revision)

    # --- Entries ---

    def _begin(self, index: Index, term: Term) -> None:
        assert not self._halted, f"entry {index} after one past {self.applied_index} was half applied"
        assert index == self.applied_index + 1, f"entry {index} after {self.applied_index}"
        assert term >= self.applied_term, f"entry {index} of term {term} after one of term {self.applied_term}"
        self._halted = True

    def _end(self, index: Index, term: Term) -> None:
        self.applied_index = index
        self.applied_term = term
        self._halted = False

    # --- Commands ---

    def _execute(self, command: Command, index: Index, position: int) -> Result:
        """Evaluate a command, then write. What it returns as a `Failure` has changed nothing."""
        operation = command.operation
        # Most of what a cache writes takes this path: a put in the plain namespace that nothing can refuse.
        if type(operation) is Put and is_plain(operation):
            key = operation.key
            if slot_of(key) != command.slot:
                # A wrong slot would be accounted in the wrong sum, and hold every later verification against us.
                return _misrouted(key, command.slot)
            if self._put((key,), (operation.value,)):
                return self._wrong_shard(command.slot)
            return WriteResult(self.revision)
        try:
            slot = check_operation(operation, CEILINGS, internal=True)
        except InvalidRequest as refusal:
            return Failure(refusal.reason, refusal.message)
        if slot != SHARD_WIDE:
            if slot != command.slot:
                return _misrouted(_first_key(operation), command.slot)
            if not self._owned[slot]:
                return self._wrong_shard(slot)
        match operation:
            case PutMany():
                refused = self._put(operation.keys, operation.values)
                return PutManyResult(self.revision, len(operation.keys), tuple(refused))
            case Put() | Delete() | CompareAndSwap() | Increment() | Transaction():
                return self._evaluate(operation, slot)
            case OpenSession():
                return SessionResult(self.revision, self._sessions.open(index, position))
            case CloseSession():
                closed = self._sessions.close(operation.session)
                return WriteResult(self.revision, deleted=closed)
            case SetOwnership():
                return self._set_ownership(operation)
            case _:
                assert_never(operation)

    def _put(self, keys: Sequence[bytes], values: Sequence[bytes]) -> list[int]:
        """Plain puts, each with everything that the general way does, inlined: most of the time of a node goes by here.

        Returns the positions of the keys in slots that the shard does not own, which are not written.
        """
        get, put, owned = self._records.get, self._records.put, self._owned
        counts, sums, touched = self._hashes.counts, self._hashes.sums, self._hashes.touched
        digest, pack, number = xxh3_64_digest, RECORD_HEAD.pack, int.from_bytes
        revision = self.revision
        refused: list[int] = []
        for position, key in enumerate(keys):
            slot = slot_of(key)
            if not owned[slot]:
                refused.append(position)
                continue
            revision += 1  # type: ignore[assignment]
            record_key = DEFAULT_PREFIX + key
            seed = len(record_key)
            old = get(record_key)
            if old is None:
                total = sums.get(slot, 0)
                counts[slot] = counts.get(slot, 0) + 1
                body = pack(RECORD_VERSION, 0, revision, revision, 1) + values[position]
            else:
                found = old[-HASH_BYTES:]
                if digest(record_key + old[:-HASH_BYTES], seed) != found or len(old) < RECORD_BYTES_MIN:
                    raise damaged(record_key, old)
                version, flags, create_revision, _, writes = RECORD_HEAD.unpack_from(old)
                if version != RECORD_VERSION or flags:
                    entry = decode_record(record_key, old)
                    create_revision, writes = entry.create_revision, entry.version
                total = sums[slot] - number(found, "big")
                body = pack(RECORD_VERSION, 0, create_revision, revision, writes + 1) + values[position]
            sealed = digest(record_key + body, seed)
            put(record_key, body + sealed)
            sums[slot] = total + number(sealed, "big")
            touched[slot // PAGE_SLOTS] = None
        self.revision = revision
        return refused

    def _evaluate(self, operation: Put | Delete | CompareAndSwap | Increment | Transaction, slot: Slot) -> Result:
        prefix = DEFAULT_PREFIX if operation.namespace == DEFAULT_NAMESPACE else data_prefix(operation.namespace)
        loaded: dict[bytes, bytes | None] = {}

        def read(key: bytes) -> KeyEntry | None:
            record_key = prefix + key
            record = loaded[key] = self._records.get(record_key)
            return None if record is None else decode_record(record_key, record)

        evaluation = Evaluation(read, revision=Revision(self.revision + 1))
        result: Result
        try:
            if isinstance(operation, Transaction):
                result = evaluation.run_transaction(operation)
            else:
                result = evaluation.run(operation)
        except InvalidRequest as refusal:
            return Failure(refusal.reason, refusal.message)
        # From here on nothing can refuse.
        for key, entry in evaluation.writes.items():
            # All keys of a command share its slot, but for those of the system namespace.
            self._write(prefix + key, slot if slot != SHARD_WIDE else slot_of(key), loaded[key], entry)
        self.revision = evaluation.revision_after
        return result

    def _write(self, record_key: bytes, slot: Slot, old: bytes | None, entry: KeyEntry | None) -> None:
        hash_delta = 0 if old is None else -hash_of(old)
        count = 0 if old is None else -1
        if entry is None:
            deleted = self._records.delete(record_key)
            assert deleted, f"the record under {record_key!r} was there when it was read"
        else:
            record = encode_record(record_key, entry)
            self._records.put(record_key, record)
            hash_delta += hash_of(record)
            count += 1
        self._hashes.change(slot, count=count, hash_delta=hash_delta)

    def _set_ownership(self, operation: SetOwnership) -> Result:
        if operation.epoch == self.epoch and operation.ranges == self.ranges:
            return WriteResult(self.revision)
        if operation.epoch <= self.epoch:
            return Failure(
                PreconditionFailed.reason,
                f"shard {self.shard} has its slots as of epoch {self.epoch}; epoch {operation.epoch} is no newer",
            )
        self.epoch = operation.epoch
        self.ranges = operation.ranges
        self._ownership_touched = True
        self._own()
        return WriteResult(self.revision)

    def _own(self) -> None:
        owned = bytearray(SLOT_COUNT)
        for lo, hi in self.ranges:
            owned[lo:hi] = b"\1" * (hi - lo)
        self._owned = bytes(owned)
        self._foreign = any(count and not owned[slot] for slot, count in self._hashes.counts.items())

    # --- Refusals ---

    def _wrong_shard(self, slot: Slot) -> Failure:
        return Failure(
            WrongShard.reason,
            f"shard {self.shard} does not own slot {slot} as of epoch {self.epoch}; nothing was changed",
        )

    def _refusal(self, operation: ReadOperation) -> Failure:
        try:
            check_operation(operation, CEILINGS, internal=True)
        except InvalidRequest as refusal:
            return Failure(refusal.reason, refusal.message)
        raise AssertionError(f"{type(operation).__name__} was refused, and the check finds nothing")


def _misrouted(key: bytes, claimed: Slot) -> Failure:
    return Failure(
        InvalidRequest.reason,
        f"the key {shown(key)} lies in slot {slot_of(key)}, and was sent as of slot {claimed}: a defect of the sender",
    )


def _first_key(operation: WriteOperation) -> bytes:
    if isinstance(operation, Transaction):
        parts = operation.conditions + operation.then + operation.otherwise
        return parts[0].key
    assert isinstance(operation, (Put, Delete, CompareAndSwap, Increment)), type(operation)
    return operation.key
