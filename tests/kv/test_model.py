"""The machine against a naive twin: a dict, a counter, and no bytes.

The twin follows the documented rules as plainly as they can be written: it copies the whole dict before a transaction,
keeps every reply of a session for ever, and knows no slots, hashes or records.
"""

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from raftcache.kv.limits import KvLimits
from raftcache.kv.machine import Machine
from raftcache.kv.operations import (
    CloseSession,
    CompareAndSwap,
    Comparison,
    Condition,
    ConditionKind,
    Delete,
    Failure,
    Get,
    GetResult,
    Increment,
    IncrementResult,
    KeyEntry,
    OpenSession,
    Put,
    PutMany,
    PutManyResult,
    Result,
    Scan,
    SessionResult,
    SessionStamp,
    Transaction,
    TransactionOperation,
    TransactionResult,
    WriteOperation,
    WriteResult,
)
from tests.kv.shard import Shard

WINDOW = 4
SESSIONS_MAX = 3
LIMITS = KvLimits(session_window=WINDOW, sessions_max=SESSIONS_MAX)


class Refused(Exception):
    """The twin's word for a Failure; carries the reason."""


@dataclass
class TwinSession:
    first_unacked: int = 1
    replies: dict[int, Result | str] = field(default_factory=dict)


class Twin:
    """The data model as the documentation tells it."""

    def __init__(self) -> None:
        self.keys: dict[bytes, KeyEntry] = {}
        self.revision = 0
        self.sessions: dict[int, TwinSession] = {}

    def apply(self, operation: WriteOperation, stamp: SessionStamp | None, position: int) -> Result | str:
        """The result, or the reason of the refusal."""
        if stamp is None:
            return self.decide(operation, position)
        session = self.sessions.pop(stamp.session, None)
        if session is None:
            return "SESSION_EXPIRED"
        self.sessions[stamp.session] = session
        if stamp.first_unacked > session.first_unacked:
            if stamp.first_unacked > stamp.sequence:
                return "INVALID_REQUEST"
            session.first_unacked = stamp.first_unacked
        if not session.first_unacked <= stamp.sequence < session.first_unacked + WINDOW:
            return "SESSION_WINDOW"
        if stamp.sequence not in session.replies:
            session.replies[stamp.sequence] = self.decide(operation, position)
        return session.replies[stamp.sequence]

    def decide(self, operation: WriteOperation, position: int) -> Result | str:
        before = dict(self.keys)
        next_revision = self.revision + 1
        try:
            if isinstance(operation, OpenSession):
                if len(self.sessions) == SESSIONS_MAX:
                    del self.sessions[next(iter(self.sessions))]
                self.sessions[position] = TwinSession()
                return SessionResult(self.revision, position)  # type: ignore[arg-type]
            if isinstance(operation, CloseSession):
                found = self.sessions.pop(operation.session, None) is not None
                return WriteResult(self.revision, deleted=found)  # type: ignore[arg-type]
            result: Result
            if isinstance(operation, PutMany):
                for key, value in zip(operation.keys, operation.values, strict=True):
                    self.revision += 1
                    self.set(key, value, self.revision)
                return PutManyResult(self.revision, len(operation.keys))  # type: ignore[arg-type]
            if isinstance(operation, Transaction):
                for branch in (operation.then, operation.otherwise):
                    written = [inner.key for inner in branch if not isinstance(inner, Get)]
                    if len(set(written)) != len(written):
                        raise Refused("INVALID_REQUEST")
                if not (operation.conditions or operation.then or operation.otherwise):
                    raise Refused("INVALID_REQUEST")
                holds = all(self.holds(condition) for condition in operation.conditions)
                branch = operation.then if holds else operation.otherwise
                results = [self.execute(inner, next_revision) for inner in branch]
                result = TransactionResult(next_revision, holds, results)  # type: ignore[arg-type]
            else:
                assert isinstance(operation, (Put, Delete, CompareAndSwap, Increment))
                result = self.execute(operation, next_revision)
        except Refused as refusal:
            self.keys = before
            return str(refusal)
        self.revision += self.keys != before
        for one in [result, *(result.results if isinstance(result, TransactionResult) else [])]:
            assert not isinstance(one, Failure)
            one.revision = self.revision  # type: ignore[assignment]
        return result

    def execute(self, operation: TransactionOperation, revision: int) -> Result:
        key = operation.key
        old = self.keys.get(key)
        none = GetResult(0, None).revision  # type: ignore[arg-type]
        if isinstance(operation, Get):
            return GetResult(none, old)
        if isinstance(operation, Increment):
            text = b"%d" % operation.initial if old is None else old.value
            try:
                number = int(text)
            except ValueError:
                raise Refused("INVALID_REQUEST") from None
            if str(number).encode() != text or not -(2**63) <= number + operation.delta < 2**63:
                raise Refused("INVALID_REQUEST")
            self.set(key, b"%d" % (number + operation.delta), revision)
            return IncrementResult(none, number + operation.delta)
        if isinstance(operation, CompareAndSwap):
            if (old.value if old else None) != operation.expected:
                return WriteResult(none, False, None, old)
            self.set(key, operation.value, revision)
            return WriteResult(none)
        if not all(self.holds(condition) for condition in operation.conditions):
            return WriteResult(none, False, None, old)
        previous = old if operation.return_previous else None
        if isinstance(operation, Delete):
            return WriteResult(none, True, previous, None, self.keys.pop(key, None) is not None)
        self.set(key, operation.value, revision)
        return WriteResult(none, True, previous)

    def set(self, key: bytes, value: bytes, revision: int) -> None:
        old = self.keys.get(key)
        version, create = (old.version + 1, old.create_revision) if old else (1, revision)
        self.keys[key] = KeyEntry(key, value, version, create, revision)  # type: ignore[arg-type]

    def holds(self, condition: Condition) -> bool:
        entry = self.keys.get(condition.key)
        if condition.kind is ConditionKind.ABSENT:
            return entry is None
        if condition.kind is ConditionKind.EXISTS:
            return entry is not None
        if condition.kind is ConditionKind.VALUE:
            if entry is None:
                return False
            left, right = entry.value, condition.value
            order = (left > right) - (left < right)
        else:
            name = condition.kind.name.lower()
            order = (getattr(entry, name) if entry else 0) - condition.number
        return {
            Comparison.EQUAL: order == 0,
            Comparison.NOT_EQUAL: order != 0,
            Comparison.GREATER: order > 0,
            Comparison.LESS: order < 0,
        }[condition.comparison]


KEYS = st.sampled_from([b"{t}", b"a{t}", b"b{t}"])
VALUES = st.sampled_from([b"", b"x", b"1", b"-7", b"01", b"9223372036854775807"])
NUMBERS = st.integers(0, 4)
COMPARED = st.builds(
    Condition,
    KEYS,
    st.sampled_from([kind for kind in ConditionKind if kind not in (ConditionKind.ABSENT, ConditionKind.EXISTS)]),
    st.sampled_from(Comparison),
    NUMBERS,
    VALUES,
)
CONDITIONS = COMPARED | st.builds(Condition, KEYS, st.sampled_from([ConditionKind.ABSENT, ConditionKind.EXISTS]))
DELTAS = st.sampled_from([1, -1, 2**62, -(2**63)])


@st.composite
def conditional(draw: st.DrawFn) -> WriteOperation:
    """A put or delete with conditions on its own key."""
    key = draw(KEYS)
    conditions = tuple(replace(one, key=key) for one in draw(st.lists(CONDITIONS, max_size=2)))
    if draw(st.booleans()):
        return Put(key, draw(VALUES), conditions, draw(st.booleans()))
    return Delete(key, conditions, draw(st.booleans()))


PUTS = st.builds(Put, KEYS, VALUES)
MANY_PUTS = st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=4).map(
    lambda puts: PutMany([key for key, _ in puts], [value for _, value in puts])
)
SWAPS = st.builds(CompareAndSwap, KEYS, st.none() | VALUES, VALUES)
INCREMENTS = st.builds(Increment, KEYS, DELTAS, st.sampled_from([0, 5]))
INNER = st.builds(Get, KEYS) | PUTS | st.builds(Delete, KEYS, return_previous=st.booleans()) | SWAPS | INCREMENTS
BRANCHES = st.lists(INNER, max_size=3).map(tuple)
TRANSACTIONS = st.builds(Transaction, st.lists(CONDITIONS, max_size=2).map(tuple), BRANCHES, BRANCHES)
# Sessions are named by the order of their opening, and turned into ids when they are used.
STAMPS = st.none() | st.builds(SessionStamp, st.integers(0, 4), st.integers(0, 7), st.integers(0, 5))
STEPS = st.tuples(
    PUTS
    | MANY_PUTS
    | conditional()
    | SWAPS
    | INCREMENTS
    | TRANSACTIONS
    | st.just(OpenSession())
    | st.builds(CloseSession, NUMBERS),
    STAMPS,
)
ENTRIES = st.lists(
    st.tuples(st.lists(STEPS, min_size=1, max_size=6), st.sampled_from(["", "", "flush", "reload"])), max_size=8
)


@given(ENTRIES)
@settings(max_examples=100)
def test_the_machine_agrees_with_its_twin(
    entries: list[tuple[list[tuple[WriteOperation, SessionStamp | None]], str]],
) -> None:
    """Every result, the keys, the revision and the sessions are the twin's, whatever is sent, flushed or reloaded."""
    shard = Shard(limits=LIMITS)
    twin = Twin()
    opened: list[int] = []

    def session_of(number: int) -> int:
        return opened[-1 - number] if number < len(opened) else 0xDEAD + number

    for steps, afterwards in entries:
        operations: list[WriteOperation] = []
        stamps: list[SessionStamp | None] = []
        expected: list[Result | str] = []
        index = shard.machine.applied_index + 1
        for position, (operation, stamp) in enumerate(steps):
            if isinstance(operation, CloseSession):
                operation = CloseSession(session_of(operation.session))
            if stamp is not None:
                stamp = replace(stamp, session=session_of(stamp.session))
            operations.append(operation)
            stamps.append(stamp)
            outcome = twin.apply(operation, stamp, index << 20 | position)
            if isinstance(outcome, SessionResult) and outcome.session not in opened:
                opened.append(outcome.session)
            # As it is now: a later command must not change what this one answered.
            expected.append(outcome if isinstance(outcome, str) else replace(outcome))
        results = shard.run(*operations, stamps=stamps)  # type: ignore[arg-type]
        assert expected == [result.reason if isinstance(result, Failure) else result for result in results]
        assert twin.revision == shard.machine.revision
        if afterwards == "flush":
            shard.machine.flush()
        elif afterwards == "reload":
            shard.reload()
    assert [twin.keys[key] for key in sorted(twin.keys)] == shard.scan(Scan(b"")).entries
    assert len(twin.sessions) == shard.machine.session_count
    shard.assert_verified()
    assert len(twin.keys) == Machine.verify(shard.records).record_count
