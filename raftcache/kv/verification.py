"""The scrub: everything that the records say about themselves, recomputed and compared.

Runs over closed checkpoint files, in a process of its own, and in tests over anything. It finds a flipped bit in any
record (checksum), and a record that is missing, stale or too many (counts and hashes per slot). A few microseconds a record.

Rules of this file: a pure scan that never stops at the first finding; what it cannot read is a problem, not an exception.
"""

from dataclasses import dataclass, field

from raftcache.errors import Corruption, UnsupportedVersion
from raftcache.ids import Slot
from raftcache.kv.layout import (
    TABLE_DATA,
    TABLE_HASHES,
    TABLE_META,
    TABLE_SESSIONS,
    decode_record,
    hash_of,
    unseal,
)
from raftcache.kv.meta import META_KEYS, Ownership, SessionLimits, State, StoredConfiguration
from raftcache.kv.records import Records
from raftcache.kv.sessions import Sessions
from raftcache.kv.slots import slot_of
from raftcache.kv.state_hash import StateHash

PROBLEMS_MAX = 100
"""A report of more is no easier to act on: the replica is rebuilt after the first."""


@dataclass(slots=True)
class Verification:
    """What a scrub found. `applied_index`, counts and hash are of the records as they *are*, 0 where unreadable."""

    problems: list[str] = field(default_factory=list)
    """Findings in words, at most `PROBLEMS_MAX`; empty = the records are what was written."""
    applied_index: int = 0
    record_count: int = 0
    state_hash: int = 0
    session_count: int = 0
    foreign_count: int = 0
    """Keys in slots that the shard does not own. No problem: a split leaves them behind until they are swept."""
    slots: list[Slot] = field(default_factory=list)
    """Slots whose count or hash is not what was stored, ascending."""

    @property
    def ok(self) -> bool:
        return not self.problems

    def add(self, problem: str) -> None:
        """Note a problem, up to the limit."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


def verify(records: Records) -> Verification:
    """Recompute and compare. Never raises for anything that the records contain."""
    found = Verification()
    actual = StateHash()
    revision_max = 0
    for key, record in records.scan(b"", None):
        table = key[:1]
        try:
            if table == TABLE_DATA:
                entry = decode_record(key, record)
                actual.change(slot_of(entry.key), count=1, hash_delta=hash_of(record))
                revision_max = max(revision_max, entry.mod_revision)
            elif table in (TABLE_HASHES, TABLE_SESSIONS) or key in META_KEYS:
                unseal(key, record)
            else:
                found.add(f"the record under {key[:80]!r} belongs to no table ({TABLE_META!r} has fixed names)")
        except (Corruption, UnsupportedVersion) as error:
            found.add(error.message)
    found.record_count = actual.record_count()
    found.state_hash = actual.total()
    try:
        _compare(records, found, actual, revision_max)
    except (Corruption, UnsupportedVersion) as error:
        # Of the rest nothing can be said; if the record at fault was named above, it is named twice.
        found.add(error.message)
    return found


def _compare(records: Records, found: Verification, actual: StateHash, revision_max: int) -> None:
    state = State.load(records)
    found.applied_index = state.applied_index
    if not state.complete:
        found.add(f"the state at index {state.applied_index} was flushed without its hashes and sessions")
        return
    ownership = Ownership.load(records)
    configuration = StoredConfiguration.load(records)
    if configuration.index > state.applied_index:
        found.add(f"the configuration of index {configuration.index} is past the applied index {state.applied_index}")
    stored = StateHash.load(records)
    # The others are empty on both sides.
    for slot in sorted({*stored.counts, *actual.counts}):
        if stored.of(Slot(slot)) != actual.of(Slot(slot)):
            found.slots.append(Slot(slot))
            found.add(
                f"slot {slot} has {actual.of(Slot(slot))[0]} records, and {stored.of(Slot(slot))[0]} were stored; "
                f"their hash is {actual.of(Slot(slot))[1]:032x}, and {stored.of(Slot(slot))[1]:032x} was stored"
            )
    if (state.record_count, state.state_hash) != (found.record_count, found.state_hash):
        found.add(
            f"the shard has {found.record_count} records and hash {found.state_hash:032x}; {state.record_count} and "
            f"{state.state_hash:032x} were stored"
        )
    if revision_max > state.revision:
        found.add(f"a record has revision {revision_max}, and the shard's is {state.revision}")
    sessions = Sessions.load(records, SessionLimits.load(records))
    found.session_count = len(sessions)
    if (state.session_count, state.session_hash) != (len(sessions), sessions.flushed_hash()):
        found.add(
            f"the shard has {len(sessions)} sessions, and {state.session_count} were stored, or their hash differs"
        )
    owned = [range(lo, hi) for lo, hi in ownership.ranges]
    for slot, count in actual.counts.items():
        if not any(slot in part for part in owned):
            found.foreign_count += count
