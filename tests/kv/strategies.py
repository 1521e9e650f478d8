"""Hypothesis strategies for operations, commands and results; few keys and small numbers, so that they meet."""

from hypothesis import strategies as st

from raftcache.ids import Revision, Slot
from raftcache.kv.operations import (
    CloseSession,
    Command,
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
    Operation,
    Put,
    PutMany,
    PutManyResult,
    Result,
    Scan,
    ScanResult,
    SessionResult,
    SessionStamp,
    SetOwnership,
    Transaction,
    TransactionResult,
    WriteResult,
)

U64 = st.integers(0, 2**64 - 1)
I64 = st.integers(-(2**63), 2**63 - 1)
NAMESPACES = st.sampled_from([0, 0, 0, 1, 2**32 - 1])
RESERVED = st.sampled_from([0, 0, 0, 1, 2**64 - 1])
KEYS = st.binary(max_size=12)
VALUES = st.binary(max_size=40)
REVISIONS = U64.map(Revision)
SLOTS = st.integers(-1, 16383).map(Slot)

CONDITIONS = st.builds(Condition, KEYS, st.sampled_from(ConditionKind), st.sampled_from(Comparison), U64, VALUES)
OWN_CONDITIONS = st.lists(CONDITIONS, max_size=3).map(tuple)

GETS = st.builds(Get, KEYS, NAMESPACES)
PUTS = st.builds(Put, KEYS, VALUES, OWN_CONDITIONS, st.booleans(), RESERVED, RESERVED, NAMESPACES)
MANY_PUTS = st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=5).map(
    lambda puts: PutMany([key for key, _ in puts], [value for _, value in puts])
)
DELETES = st.builds(Delete, KEYS, OWN_CONDITIONS, st.booleans(), NAMESPACES)
SWAPS = st.builds(CompareAndSwap, KEYS, st.none() | VALUES, VALUES, RESERVED, RESERVED, NAMESPACES)
INCREMENTS = st.builds(Increment, KEYS, I64, I64, NAMESPACES)
SCANS = st.builds(Scan, KEYS, st.none() | KEYS, U64, U64, st.booleans(), st.booleans(), NAMESPACES)
BRANCHES = st.lists(GETS | PUTS | DELETES | SWAPS | INCREMENTS, max_size=4).map(tuple)
TRANSACTIONS = st.builds(Transaction, OWN_CONDITIONS, BRANCHES, BRANCHES, NAMESPACES)
RANGES = st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 65535)), max_size=4).map(tuple)
SYSTEM = st.builds(OpenSession) | st.builds(CloseSession, U64) | st.builds(SetOwnership, RANGES, U64)

WRITES = PUTS | MANY_PUTS | DELETES | SWAPS | INCREMENTS | TRANSACTIONS | SYSTEM
OPERATIONS: st.SearchStrategy[Operation] = WRITES | GETS | SCANS
STAMPS = st.builds(SessionStamp, U64, U64, U64)
COMMANDS = st.builds(Command, WRITES, SLOTS, st.none() | STAMPS)

ENTRIES = st.builds(KeyEntry, KEYS, VALUES, U64, REVISIONS, REVISIONS, RESERVED, RESERVED)
MAYBE_ENTRY = st.none() | ENTRIES
SIMPLE_RESULTS = (
    st.builds(WriteResult, REVISIONS, st.booleans(), MAYBE_ENTRY, MAYBE_ENTRY, st.booleans())
    | st.builds(GetResult, REVISIONS, MAYBE_ENTRY)
    | st.builds(IncrementResult, REVISIONS, I64)
)
REFUSED = st.sets(st.integers(0, 20)).map(lambda found: tuple(sorted(found)))
RESULTS: st.SearchStrategy[Result] = (
    SIMPLE_RESULTS
    | st.builds(PutManyResult, REVISIONS, st.integers(21, 2**32 - 1), REFUSED)
    | st.builds(ScanResult, REVISIONS, st.lists(ENTRIES, max_size=3), U64, st.booleans(), KEYS)
    | st.builds(TransactionResult, REVISIONS, st.booleans(), st.lists(SIMPLE_RESULTS, max_size=3))
    | st.builds(SessionResult, REVISIONS, U64)
    | st.builds(Failure, st.text(max_size=20), st.text(max_size=40))
)
