"""Client sessions: a write that is sent twice is applied once, and answered twice with the same reply.

A client opens a session in a shard and numbers its writes there from 1. Each write says which is the first number whose
reply the client has *not* received; every reply below it is forgotten, every reply from it on is kept. A number that
has a reply gets that reply again, at its old revision; a number below the first unacknowledged one, or `window` or more
above it, is refused. Numbers inside the window may arrive in any order: clients pipeline. (Thesis §6.3.)

Rules of this file:
- everything here is a function of the log: ids, order, evictions. No clock; a session ends when the client closes it,
  or when it is the least recently used and there are too many, or too many bytes of replies, in the shard;
- a session that is gone is *gone*: its commands get SESSION_EXPIRED, and are never applied as if they were new;
- what a command was refused for is kept like any other reply, or a duplicate on its way could still be applied after
  the client has read that it was not. Only refusals by the session itself and WRONG_SHARD are not kept: the first
  change nothing, and after the second the client turns to another shard;
- sessions live in memory. Those touched go to records at a complete flush, and a record depends on the log alone, not
  on when flushes were.

Caveat: of a kept failure only the reason is stored. Messages may change between releases, and the stored state may not.
"""

from dataclasses import dataclass, field
from struct import Struct
from struct import error as struct_error
from typing import TypeGuard

from raftcache.errors import InvalidRequest, SessionExpired, SessionWindow
from raftcache.ids import Index, Revision
from raftcache.kv.layout import TABLE_SESSIONS, damaged, hash_of, newer, seal, table_end, unseal
from raftcache.kv.limits import check_stamp
from raftcache.kv.meta import SessionLimits
from raftcache.kv.operations import Failure, Result, SessionStamp, WriteResult
from raftcache.kv.records import Records
from raftcache.kv.result_codec import MalformedBytes, decode_result, encode_result
from raftcache.kv.state_hash import HASH_MASK

SESSION_VERSION = 1
_HEAD = Struct(">BQQII")
"""Version, first unacked, used index, used position, count of replies."""
_REPLY = Struct(">QI")

POSITION_BITS = 20
"""A session's id is `index << 20 | position`: unique, never 0, and room for 2^43 log entries (278 years at 1,000/s)."""

REPLY_OVERHEAD_BYTES = 128
"""What one kept reply costs in memory beyond its bytes (dict slot, int, bytes header), counted into the byte limits."""

PLAIN_REPLY_BYTES = len(encode_result(WriteResult(Revision(0)))) + REPLY_OVERHEAD_BYTES

RETRIED_FAILURE = "the first attempt of this command was refused for this reason; nothing was changed"


@dataclass(slots=True)
class Session:
    """One client's session. Invariant: every number in `replies` is at least `first_unacked`."""

    id: int
    first_unacked: int = 1
    """Every reply below was received by the client; only rises."""
    replies: dict[int, bytes | int] = field(default_factory=dict)
    """Sequence number -> what a decided command was answered: an encoded result, or, for what nearly all of them are,
    a plain `WriteResult`, just its revision."""
    reply_bytes: int = 0
    """Of `replies`, with overhead."""
    used_index: Index = Index(0)
    used_position: int = 0
    """Log position of the last command under this session; orders sessions by use, uniquely."""


class Sessions:
    """The sessions of one shard, least recently used first."""

    def __init__(self, limits: SessionLimits) -> None:
        self._limits = limits
        self._sessions: dict[int, Session] = {}
        """By id, in order of use: a dict keeps insertion order, and use means removing and inserting again."""
        self._latest: Session | None = None
        """The last of them, if it is still there: who sends a batch of commands uses one session many times."""
        self._reply_bytes = 0
        self._touched: dict[int, None] = {}
        """Ids whose record is not what memory says, or is to be deleted."""
        self._flushed: dict[int, int] = {}
        """Id -> hash of its record."""
        self._hash = 0

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def reply_bytes(self) -> int:
        """Bytes of all kept replies, with overhead."""
        return self._reply_bytes

    def flushed_hash(self) -> int:
        """Sum modulo 2^128 of the hashes of the session records, as of the last flush."""
        return self._hash & HASH_MASK

    # --- For the machine, while it applies ---

    def open(self, index: Index, position: int) -> int:
        """A new session for the command at this log position; the least recently used one goes if there are too many."""
        assert 0 <= position < 1 << POSITION_BITS, f"position {position} in a batch"
        assert 0 < index < 1 << (63 - POSITION_BITS), f"log index {index} leaves no room for a position"
        if len(self._sessions) >= self._limits.sessions_max:
            self._remove(next(iter(self._sessions)))
        session = Session(index << POSITION_BITS | position, used_index=index, used_position=position)
        self._sessions[session.id] = session
        self._latest = session
        self._touched[session.id] = None
        return session.id

    def close(self, session_id: int) -> bool:
        """Forget a session. False if it is not there."""
        if session_id not in self._sessions:
            return False
        self._remove(session_id)
        return True

    def admit(self, stamp: SessionStamp, index: Index, position: int) -> Session | Result:
        """What to do with a stamped command: apply it in this session (and `keep` its reply), or answer this result."""
        session_id = stamp.session
        session = self._latest
        if session is None or session.id != session_id:
            session = self._use(session_id)
        if session is None:
            return Failure(
                SessionExpired.reason,
                f"session {session_id} is not known to this shard: it was closed, pushed out by newer ones (at most "
                f"{self._limits.sessions_max} in a shard), or never opened here; whether an earlier attempt of this "
                f"command was applied is unknown",
            )
        session.used_index = index
        session.used_position = position
        sequence = stamp.sequence
        first = stamp.first_unacked
        if first > session.first_unacked:
            if first > sequence:
                return _refused_stamp(stamp)
            self._acknowledge(session, first)
        if sequence in session.replies:
            return _kept_result(session.replies[sequence])
        first = session.first_unacked
        if first <= sequence < first + self._limits.window and session.reply_bytes < self._limits.reply_bytes_max:
            return session
        return self._refuse(session, sequence)

    def keep(self, session: Session, sequence: int, result: Result) -> None:
        """Keep the reply of a command that `admit` let through."""
        if session is not self._latest and session.id not in self._sessions:
            # The command itself ended its session: by closing it, or by opening one too many.
            return
        if _is_plain(result):
            reply: bytes | int = result.revision
            size = PLAIN_REPLY_BYTES
        else:
            if type(result) is Failure:
                result = Failure(result.reason, "")
            reply = encode_result(result)
            size = len(reply) + REPLY_OVERHEAD_BYTES
        assert sequence not in session.replies, f"session {session.id} answered {sequence} twice"
        session.replies[sequence] = reply
        session.reply_bytes += size
        self._reply_bytes += size
        if self._reply_bytes > self._limits.reply_bytes_total_max:
            self._shed(session)

    def _refuse(self, session: Session, sequence: int) -> Failure:
        first, limits = session.first_unacked, self._limits
        if sequence < first:
            why = f"its reply was acknowledged: every number below {first} was"
        elif sequence >= first + limits.window:
            why = (
                f"limits.session_window allows {limits.window} numbers from the first unacknowledged one, {first}: "
                f"wait for replies, and send a higher first_unacked"
            )
        else:
            why = (
                f"the session's kept replies have {session.reply_bytes} bytes, and limits.session_reply_bytes_max is "
                f"{limits.reply_bytes_max}: wait for replies, and send a higher first_unacked"
            )
        return Failure(SessionWindow.reason, f"sequence number {sequence} of session {session.id} is refused: {why}")

    def _acknowledge(self, session: Session, first_unacked: int) -> None:
        replies = session.replies
        freed = 0
        # A client that acknowledges one by one must not pay for the whole window, nor a leap for its distance.
        if first_unacked - session.first_unacked <= len(replies):
            for sequence in range(session.first_unacked, first_unacked):
                reply = replies.pop(sequence, None)
                if reply is not None:
                    freed += _size(reply)
        else:
            for sequence in [sequence for sequence in replies if sequence < first_unacked]:
                freed += _size(replies.pop(sequence))
        session.first_unacked = first_unacked
        session.reply_bytes -= freed
        self._reply_bytes -= freed

    def _shed(self, current: Session) -> None:
        """Too many bytes of replies: the least recently used sessions that hold any go, until a tenth is free.

        A tenth, so that this pass over all sessions is rare.
        """
        target = self._limits.reply_bytes_total_max - self._limits.reply_bytes_total_max // 10
        for session in list(self._sessions.values()):
            if self._reply_bytes <= target:
                break
            if session.reply_bytes and session is not current:
                self._remove(session.id)

    def _use(self, session_id: int) -> Session | None:
        session = self._sessions.pop(session_id, None)
        if session is not None:
            self._sessions[session_id] = session
            self._latest = session
            self._touched[session_id] = None
        return session

    def _remove(self, session_id: int) -> None:
        session = self._sessions.pop(session_id)
        self._reply_bytes -= session.reply_bytes
        if session is self._latest:
            self._latest = None
        if session_id in self._flushed:
            self._touched[session_id] = None
        else:
            # It never had a record: sessions that come and go between two flushes must not pile up here.
            self._touched.pop(session_id, None)

    # --- Records ---

    def flush(self, records: Records) -> None:
        """Write what changed since the last flush."""
        for session_id in self._touched:
            key = session_key(session_id)
            session = self._sessions.get(session_id)
            self._hash -= self._flushed.pop(session_id, 0)
            if session is None:
                records.delete(key)
                continue
            record = seal(key, _encode(session))
            records.put(key, record)
            self._flushed[session_id] = hash_of(record)
            self._hash += self._flushed[session_id]
        self._touched.clear()
        # The next use, by whomever, has to be noted again.
        self._latest = None

    @staticmethod
    def load(records: Records, limits: SessionLimits) -> "Sessions":
        """What was flushed. Raises: `Corruption`, `UnsupportedVersion`."""
        found: list[Session] = []
        sessions = Sessions(limits)
        for key, record in records.scan(TABLE_SESSIONS, table_end(TABLE_SESSIONS)):
            session = _decode(key, record)
            found.append(session)
            sessions._flushed[session.id] = hash_of(record)
            sessions._hash += sessions._flushed[session.id]
            sessions._reply_bytes += session.reply_bytes
        found.sort(key=lambda session: (session.used_index, session.used_position))
        sessions._sessions = {session.id: session for session in found}
        return sessions


def _kept_result(reply: bytes | int) -> Result:
    if isinstance(reply, int):
        return WriteResult(Revision(reply))
    result = decode_result(reply)
    return Failure(result.reason, RETRIED_FAILURE) if isinstance(result, Failure) else result


def _is_plain(result: Result) -> TypeGuard[WriteResult]:
    """Whether a result is a write's that says nothing but its revision."""
    return (
        type(result) is WriteResult
        and result.succeeded
        and not result.deleted
        and result.previous is None
        and result.current is None
    )


def _size(reply: bytes | int) -> int:
    return PLAIN_REPLY_BYTES if isinstance(reply, int) else len(reply) + REPLY_OVERHEAD_BYTES


def _refused_stamp(stamp: SessionStamp) -> Failure:
    try:
        check_stamp(stamp)
    except InvalidRequest as refusal:
        return Failure(refusal.reason, refusal.message)
    raise AssertionError(f"{stamp} was refused, and the check finds nothing")


def session_key(session_id: int) -> bytes:
    """The record key of a session."""
    return TABLE_SESSIONS + session_id.to_bytes(8, "big")


def _encode(session: Session) -> bytes:
    # In the order in which they were decided: that of the log, which reloading keeps.
    parts = [
        _HEAD.pack(
            SESSION_VERSION, session.first_unacked, session.used_index, session.used_position, len(session.replies)
        )
    ]
    for sequence, reply in session.replies.items():
        if isinstance(reply, int):
            reply = encode_result(WriteResult(Revision(reply)))
        parts.append(_REPLY.pack(sequence, len(reply)))
        parts.append(reply)
    return b"".join(parts)


def _decode(key: bytes, record: bytes) -> Session:
    body = unseal(key, record)
    if body[0] > SESSION_VERSION:
        raise newer(f"the session record {key!r}", found=body[0], known=SESSION_VERSION)
    try:
        version, first_unacked, used_index, used_position, count = _HEAD.unpack_from(body)
        session = Session(
            int.from_bytes(key[1:], "big"), first_unacked, used_index=Index(used_index), used_position=used_position
        )
        at = _HEAD.size
        for _ in range(count):
            sequence, size = _REPLY.unpack_from(body, at)
            at += _REPLY.size + size
            reply = body[at - size : at]
            result = decode_result(reply)
            session.replies[sequence] = result.revision if _is_plain(result) else reply
            session.reply_bytes += size + REPLY_OVERHEAD_BYTES
    except (struct_error, MalformedBytes) as error:
        raise damaged(key, record, f"is no session: {error}") from error
    if version != SESSION_VERSION or at != len(body) or len(key) != 9:
        raise damaged(key, record, "is no session")
    return session
