"""Counters, sets and banks: right histories pass, and each way of being wrong is found."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkers.histories import Shape, bank_history, counter_history, op, write
from faults.checkers import check_bank, check_counter, check_set, check_witness
from faults.history import Json, Op

seeds = st.integers(0, 2**32)
shapes = st.builds(
    Shape,
    operations=st.just(40),
    clients=st.integers(1, 5),
    info_rate=st.sampled_from((0.0, 0.1, 0.3)),
    fail_rate=st.sampled_from((0.0, 0.2)),
)


def increment(by: int, result: Json, start: int, end: int | None, **fields: object) -> Op:
    return op("increment", start, end, argument=by, result=result, **fields)


def add(element: Json, start: int, end: int | None, **fields: object) -> Op:
    return op("add", start, end, argument=element, **fields)


def move(source: str, target: str, amount: int, start: int, end: int | None, *, done: bool = True) -> Op:
    argument = {"from": source, "to": target, "amount": amount}
    return op("txn", start, end, argument=argument, result=None if end is None else done)


def read(value: Json, start: int, end: int) -> Op:
    return op("read", start, end, result=value)


# --- Counter ----------------------------------------------------------------------------------------------------------


@given(seeds, shapes)
def test_right_counters_pass(seed: int, shape: Shape) -> None:
    """Whatever replies were lost."""
    history = counter_history(random.Random(seed), shape)
    assert check_counter(history).kind in ("ok", "unknown")
    if any(each.ok for each in history):
        assert "ok" == check_counter(history).kind


WRONG_COUNTERS = {
    "lost increment": [increment(1, 1, 0, 10), read(0, 20, 30)],
    "increment applied twice": [increment(1, 1, 0, 10), read(2, 20, 30)],
    "unknown increment applied twice": [increment(1, None, 0, None), read(2, 20, 30)],
    "refused increment applied": [increment(1, None, 0, 10, status="fail"), read(1, 20, 30)],
    "same number for two": [increment(1, 1, 0, 50), increment(1, 1, 5, 55), read(2, 60, 70)],
    "overlapping numbers": [increment(3, 3, 0, 50), increment(3, 5, 5, 55), increment(1, None, 0, None)],
    "number within an increment": [increment(3, 3, 0, 50), increment(2, None, 0, None), read(2, 10, 60)],
    "read goes back": [increment(1, None, 0, None), read(1, 10, 20), read(0, 30, 40)],
    "own increment is not in its answer": [increment(1, 1, 0, 10), increment(1, 1, 20, 30)],
    "counted before it began": [read(1, 0, 10), increment(1, 1, 20, 30)],
    "decrement lost": [increment(5, None, 0, 10), increment(-2, None, 20, 30), read(5, 40, 50)],
    "decrement applied twice": [increment(5, None, 0, 10), increment(-2, None, 20, 30), read(1, 40, 50)],
}


@pytest.mark.parametrize("name", WRONG_COUNTERS)
def test_a_wrong_counter_is_found(name: str) -> None:
    """Each by arithmetic alone."""
    verdict = check_counter(WRONG_COUNTERS[name])
    assert "violation" == verdict.kind
    assert verdict.counterexample


def test_a_number_out_of_bounds_is_shown_with_what_came_before_it() -> None:
    """What began later has nothing to do with it."""
    history = [increment(1, None, 10 * number, 10 * number + 5) for number in range(20)]
    verdict = check_counter([*history, read(9, 51, 53)])
    assert "violation" == verdict.kind
    assert [0, 10, 20, 30, 40, 50, 51] == [each.start_ns for each in verdict.counterexample]


def test_a_retried_increment_counts_once() -> None:
    """Two attempts of one number are one increment, and twice its amount is a violation."""
    mark: Json = {"session": 3, "seq": 1}
    attempts = [increment(1, None, 0, None, extra=mark), increment(1, 1, 20, 30, extra=mark)]
    assert "ok" == check_counter([*attempts, read(1, 40, 50)]).kind
    assert "violation" == check_counter([*attempts, read(2, 40, 50)]).kind


def test_an_unknown_increment_may_be_seen_or_not() -> None:
    """But not taken back."""
    lost = increment(2, None, 0, None)
    assert "ok" == check_counter([lost, read(0, 20, 30)]).kind
    assert "ok" == check_counter([lost, read(0, 20, 30), read(2, 40, 50)]).kind


def test_a_counter_of_which_nothing_is_known_is_unknown() -> None:
    """No number, no verdict."""
    assert "unknown" == check_counter([increment(1, None, 0, 10)]).kind
    assert "unknown" == check_counter([read("many", 0, 10)]).kind


# --- Set --------------------------------------------------------------------------------------------------------------


WRONG_SETS = {
    "acknowledged element missing": [add(1, 0, 10), add(2, 5, 15), read([2], 20, 30)],
    "refused element present": [add(1, 0, 10, status="fail"), read([1], 20, 30)],
    "element that nobody added": [add(1, 0, 10), read([1, 7], 20, 30)],
    "element before its add": [read([1], 0, 10), add(1, 20, 30)],
    "unknown element seen, then gone": [add(1, 0, None), read([1], 10, 20), read([], 30, 40)],
    "element twice": [add(1, 0, 10), read([1, 1], 20, 30)],
    "everything gone": [add(1, 0, 10), read(None, 20, 30)],
}


@pytest.mark.parametrize("name", WRONG_SETS)
def test_a_wrong_set_is_found(name: str) -> None:
    """Each with the operations that prove it."""
    verdict = check_set(WRONG_SETS[name])
    assert "violation" == verdict.kind
    assert 1 <= len(verdict.counterexample) <= 3


@given(seeds)
def test_right_sets_pass(seed: int) -> None:
    """Elements are there after their add has ended, and may be there from its start."""
    rng = random.Random(seed)
    adds = []
    for number in range(20):
        start = rng.randrange(1_000)
        unknown = rng.random() < 0.2
        adds.append((rng.randint(start, start + 100), add(number, start, None if unknown else start + 100)))
    moments = sorted(rng.randrange(1_200) for _ in range(10))
    reads = [
        read([each.argument for effect, each in adds if effect <= moment], moment - rng.randrange(20), moment + 5)
        for moment in moments
    ]
    assert "ok" == check_set([each for _, each in adds] + reads).kind


def test_a_set_that_was_not_read_is_unknown() -> None:
    """Acknowledgements alone prove nothing; an element added twice could hide its loss."""
    assert "unknown" == check_set([add(1, 0, 10)]).kind
    assert "unknown" == check_set([add(1, 0, 10), add(1, 20, 30), read([1], 40, 50)]).kind


# --- Bank -------------------------------------------------------------------------------------------------------------

OPENING = write({"a": 10, "b": 10}, 0, 10)


@given(seeds, shapes)
def test_right_banks_pass(seed: int, shape: Shape) -> None:
    """By arithmetic, and by replaying the claimed order."""
    history = bank_history(random.Random(seed), shape)
    if any(each.ok and each.op == "read" for each in history):
        assert "ok" == check_bank(history).kind
    assert check_witness(history).kind in ("ok", "unknown")


WRONG_BANKS = {
    "money lost": [OPENING, move("a", "b", 5, 20, 30), read({"a": 5, "b": 10}, 40, 50)],
    "money made": [OPENING, move("a", "b", 5, 20, 30), read({"a": 10, "b": 15}, 40, 50)],
    "half a transfer": [OPENING, move("a", "b", 5, 20, 60), read({"a": 5, "b": 10}, 40, 50)],
    "account missing": [OPENING, read({"a": 10}, 40, 50)],
    "debts": [OPENING, read({"a": -5, "b": 25}, 40, 50)],
    "account from nowhere": [OPENING, read({"a": 10, "b": 5, "z": 5}, 40, 50)],
    "bank gone": [OPENING, read({}, 40, 50)],
}


@pytest.mark.parametrize("name", WRONG_BANKS)
def test_a_wrong_bank_is_found(name: str) -> None:
    """Each by its snapshot."""
    verdict = check_bank(WRONG_BANKS[name])
    assert "violation" == verdict.kind
    assert verdict.counterexample[-1].op == "read"


def test_a_bank_without_opening_or_snapshot_is_unknown() -> None:
    """Then nobody knows what it should add up to, or what it adds up to."""
    assert "unknown" == check_bank([move("a", "b", 5, 20, 30), read({"a": 5}, 40, 50)]).kind
    assert "unknown" == check_bank([OPENING]).kind


def test_a_transfer_that_snapshots_forget_is_found_by_replaying() -> None:
    """The total is right, so only the claimed order can tell."""
    history = [
        write({"a": 10, "b": 10}, 0, 10, revision=1),
        op("txn", 20, 30, argument={"from": "a", "to": "b", "amount": 5}, result=True, revision=2),
        op("read", 40, 50, result={"a": 10, "b": 10}, revision=2),
    ]
    assert "ok" == check_bank(history).kind
    assert "violation" == check_witness(history).kind


def test_a_transfer_on_condition_happens_only_where_it_holds() -> None:
    """What an unknown transfer had expected tells whether it can be the one that a snapshot shows."""
    transfer: dict[str, Json] = {"from": "a", "to": "b", "amount": 5, "expected": {"a": 9, "b": 11}}
    history = [
        write({"a": 10, "b": 10}, 0, 10, revision=1),
        op("txn", 20, None, argument=transfer),
        op("read", 40, 50, result={"a": 5, "b": 15}, revision=2),
    ]
    assert "violation" == check_witness(history).kind
    possible: Json = {**transfer, "expected": {"a": 10, "b": 10}}
    assert "ok" == check_witness([history[0], replace(history[1], argument=possible), history[2]]).kind
