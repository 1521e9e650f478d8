"""The records of the machine's own state: how far it has applied, what it owns, who its members are.

    M state           positions, clock, counts and sums; written at every flush
    M ownership       shard, epoch, slot ranges; written when they change
    M configuration   the group's members, opaque here; written when they change
    M sessions        the limits of sessions, which decide state; written once, at creation

Rules of this file: as in `layout.py`, every record is sealed and versioned; a missing one is corruption, because
`Machine.create` writes all four.
"""

from dataclasses import dataclass
from struct import Struct
from struct import error as struct_error

from raftcache.errors import Corruption
from raftcache.ids import Index, Revision, ShardId, Slot, Term
from raftcache.kv.layout import TABLE_META, damaged, newer, seal, unseal
from raftcache.kv.limits import KvLimits
from raftcache.kv.records import Records
from raftcache.kv.state_hash import HASH_BYTES

META_VERSION = 1

STATE_KEY = TABLE_META + b"state"
OWNERSHIP_KEY = TABLE_META + b"ownership"
CONFIGURATION_KEY = TABLE_META + b"configuration"
SESSIONS_KEY = TABLE_META + b"sessions"
META_KEYS = (CONFIGURATION_KEY, OWNERSHIP_KEY, SESSIONS_KEY, STATE_KEY)

_STATE = Struct(">BBQQQQQ16sQ16s")
_OWNERSHIP = Struct(">BQQH")
_RANGE = Struct(">HH")
_CONFIGURATION = Struct(">BQQ")
_SESSIONS = Struct(">BIQQI")


@dataclass(slots=True, kw_only=True)
class State:
    """`M state`."""

    complete: bool
    """Whether hashes and sessions were flushed with it. If not, only a replica that goes on living may use it."""
    applied_index: Index
    applied_term: Term
    revision: Revision
    clock_ms: int
    """Shard time. Invariant: never goes back."""
    record_count: int
    state_hash: int
    session_count: int
    session_hash: int
    """Sum modulo 2^128 of the hashes of the session records. 0 and meaningless where not `complete`."""

    def store(self, records: Records) -> None:
        body = _STATE.pack(
            META_VERSION,
            self.complete,
            self.applied_index,
            self.applied_term,
            self.revision,
            self.clock_ms,
            self.record_count,
            self.state_hash.to_bytes(HASH_BYTES, "big"),
            self.session_count,
            self.session_hash.to_bytes(HASH_BYTES, "big"),
        )
        records.put(STATE_KEY, seal(STATE_KEY, body))

    @staticmethod
    def load(records: Records) -> "State":
        body = _load(records, STATE_KEY)
        try:
            _, complete, index, term, revision, clock_ms, count, digest, sessions, session_digest = _STATE.unpack(body)
        except struct_error as error:
            raise damaged(STATE_KEY, body, f"is no state: {error}") from error
        return State(
            complete=bool(complete),
            applied_index=Index(index),
            applied_term=Term(term),
            revision=Revision(revision),
            clock_ms=clock_ms,
            record_count=count,
            state_hash=int.from_bytes(digest, "big"),
            session_count=sessions,
            session_hash=int.from_bytes(session_digest, "big"),
        )


@dataclass(slots=True)
class Ownership:
    """`M ownership`: the slot ranges `[lo, hi)` that the shard owns, as of a catalog epoch."""

    shard: ShardId
    epoch: int
    ranges: tuple[tuple[Slot, Slot], ...]

    def store(self, records: Records) -> None:
        parts = [_OWNERSHIP.pack(META_VERSION, self.shard, self.epoch, len(self.ranges))]
        parts += [_RANGE.pack(lo, hi) for lo, hi in self.ranges]
        records.put(OWNERSHIP_KEY, seal(OWNERSHIP_KEY, b"".join(parts)))

    @staticmethod
    def load(records: Records) -> "Ownership":
        body = _load(records, OWNERSHIP_KEY)
        try:
            _, shard, epoch, count = _OWNERSHIP.unpack_from(body)
            pairs = list(_RANGE.iter_unpack(body[_OWNERSHIP.size :]))
        except struct_error as error:
            raise damaged(OWNERSHIP_KEY, body, f"is no ownership: {error}") from error
        if len(pairs) != count:
            raise damaged(OWNERSHIP_KEY, body, f"has {len(pairs)} ranges and claims {count}")
        return Ownership(ShardId(shard), epoch, tuple((Slot(lo), Slot(hi)) for lo, hi in pairs))


@dataclass(slots=True)
class StoredConfiguration:
    """`M configuration`: the newest applied configuration of the group, in the bytes of its log entry."""

    index: Index
    term: Term
    data: bytes

    def store(self, records: Records) -> None:
        body = _CONFIGURATION.pack(META_VERSION, self.index, self.term) + self.data
        records.put(CONFIGURATION_KEY, seal(CONFIGURATION_KEY, body))

    @staticmethod
    def load(records: Records) -> "StoredConfiguration":
        body = _load(records, CONFIGURATION_KEY)
        try:
            _, index, term = _CONFIGURATION.unpack_from(body)
        except struct_error as error:
            raise damaged(CONFIGURATION_KEY, body, f"is no configuration: {error}") from error
        return StoredConfiguration(Index(index), Term(term), body[_CONFIGURATION.size :])


@dataclass(slots=True, frozen=True, kw_only=True)
class SessionLimits:
    """`M sessions`: the limits of sessions. They decide which command is refused, so all replicas must have the same."""

    window: int
    reply_bytes_max: int
    reply_bytes_total_max: int
    sessions_max: int

    @staticmethod
    def of(limits: KvLimits) -> "SessionLimits":
        return SessionLimits(
            window=limits.session_window,
            reply_bytes_max=limits.session_reply_bytes_max,
            reply_bytes_total_max=limits.session_reply_bytes_total_max,
            sessions_max=limits.sessions_max,
        )

    def store(self, records: Records) -> None:
        body = _SESSIONS.pack(
            META_VERSION, self.window, self.reply_bytes_max, self.reply_bytes_total_max, self.sessions_max
        )
        records.put(SESSIONS_KEY, seal(SESSIONS_KEY, body))

    @staticmethod
    def load(records: Records) -> "SessionLimits":
        body = _load(records, SESSIONS_KEY)
        try:
            _, window, reply_bytes_max, reply_bytes_total_max, sessions_max = _SESSIONS.unpack(body)
        except struct_error as error:
            raise damaged(SESSIONS_KEY, body, f"has no session limits: {error}") from error
        return SessionLimits(
            window=window,
            reply_bytes_max=reply_bytes_max,
            reply_bytes_total_max=reply_bytes_total_max,
            sessions_max=sessions_max,
        )


def _load(records: Records, key: bytes) -> bytes:
    record = records.get(key)
    if record is None:
        raise Corruption(
            f"the live state has no record {key!r}: it is not a shard's state, or lost part of it; discard it and "
            f"rebuild it from checkpoint and log, or from the peers"
        )
    body = unseal(key, record)
    if body[0] > META_VERSION:
        raise newer(f"the record {key!r}", found=body[0], known=META_VERSION)
    if body[0] != META_VERSION:
        raise damaged(key, record, f"has version {body[0]}, which no release wrote")
    return body
