"""What a request costs is what entries and payloads are filled by: never less than its encoding."""

from hypothesis import given

from raftcache.ids import Slot
from raftcache.kv.codec import encode_batch, encode_operation
from raftcache.kv.operations import (
    Command,
    CompareAndSwap,
    Comparison,
    Condition,
    ConditionKind,
    Operation,
    Transaction,
)
from raftcache.node.api import Request
from raftcache.node.router import cost_of
from tests.kv.strategies import COMMANDS, OPERATIONS


def _cost(operation: Operation) -> int:
    return cost_of(Request(None, operation, Slot(0), 0))


@given(OPERATIONS)
def test_a_request_costs_at_least_its_encoding(operation: Operation) -> None:
    """Of every kind of operation, with all that it may carry."""
    assert len(encode_operation(operation)) <= _cost(operation)


@given(COMMANDS)
def test_a_command_costs_at_least_what_it_adds_to_an_entry(command: Command) -> None:
    """The entry's own head is far below the overhead that each command is charged."""
    assert len(encode_batch([command], proposed_ms=0)) <= _cost(command.operation)


def test_what_is_compared_counts() -> None:
    """An expected value and the values of conditions travel too: without them three requests made a 9 MiB entry."""
    mebi = b"x" * (1 << 20)
    assert _cost(CompareAndSwap(b"k", mebi, b"")) > len(mebi)
    condition = Condition(b"k", ConditionKind.VALUE, Comparison.EQUAL, value=mebi)
    assert _cost(Transaction(conditions=(condition,) * 3)) > 3 * len(mebi)
