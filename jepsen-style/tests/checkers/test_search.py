"""The search, held to a naive one that tries every order; and what it says of large histories."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkers.histories import Shape, brute_force, cas, list_history, mutate, op, read, register_history, write
from faults.checkers import Budget
from faults.checkers.calls import calls_of
from faults.checkers.models import ListModel, RegisterModel
from faults.checkers.objects import check_list, check_register
from faults.checkers.search import search
from faults.history import Op

seeds = st.integers(0, 2**32)
small = st.builds(
    Shape,
    operations=st.integers(2, 6),
    clients=st.integers(2, 4),
    info_rate=st.sampled_from((0.0, 0.3)),
    fail_rate=st.sampled_from((0.0, 0.1)),
    values=st.sampled_from((None, 2)),
    silent_cas=st.booleans(),
)
large = st.builds(
    Shape,
    operations=st.just(60),
    clients=st.integers(1, 6),
    info_rate=st.sampled_from((0.0, 0.2)),
    fail_rate=st.sampled_from((0.0, 0.2)),
    keys=st.integers(1, 3),
)


def linearizable(ops: list[Op]) -> bool:
    """What the search says of one register, nothing left out."""
    return search(calls_of(ops, RegisterModel())).kind == "ok"


@given(seeds, large)
def test_linearizable_registers_pass(seed: int, shape: Shape) -> None:
    """A history that was made by one order of effects is never called a violation, whatever was lost."""
    verdict = check_register(register_history(random.Random(seed), shape))
    assert "ok" == verdict.kind, verdict


@given(seeds, large)
def test_linearizable_lists_pass(seed: int, shape: Shape) -> None:
    """The same of lists."""
    verdict = check_list(list_history(random.Random(seed), shape))
    assert "ok" == verdict.kind, verdict


@given(seeds, small)
def test_a_register_is_judged_as_by_trying_all_orders(seed: int, shape: Shape) -> None:
    """Passes, pruning and search together say what the naive search says, of right and of damaged histories."""
    rng = random.Random(seed)
    history = register_history(rng, shape)
    for ops in (history, mutate(rng, history), mutate(rng, mutate(rng, history))):
        expected = brute_force(ops, RegisterModel())
        assert expected == linearizable(ops)
        assert expected == (check_register(ops).kind == "ok")


@given(seeds, small)
def test_a_list_is_judged_as_by_trying_all_orders(seed: int, shape: Shape) -> None:
    """The same of lists."""
    rng = random.Random(seed)
    history = list_history(rng, shape)
    for ops in (history, mutate(rng, history), mutate(rng, mutate(rng, history))):
        expected = brute_force(ops, ListModel())
        assert expected == (search(calls_of(ops, ListModel())).kind == "ok")
        assert expected == (check_list(ops).kind == "ok")


@given(seeds, small)
def test_what_a_violation_needs_is_a_violation(seed: int, shape: Shape) -> None:
    """The prefix that the search names fails on its own."""
    rng = random.Random(seed)
    calls = calls_of(mutate(rng, register_history(rng, shape)), RegisterModel())
    outcome = search(calls)
    if outcome.kind == "violation":
        assert "violation" == search(calls[: outcome.needed]).kind


VIOLATIONS = {
    "stale read": [write(1, 0, 10), write(2, 20, 30), read(1, 40, 50)],
    "lost write": [write(1, 0, 10), read(None, 20, 30)],
    "lost update": [write(1, 0, 10), cas(1, 2, 20, 40), cas(1, 3, 25, 45)],
    "read from the future": [read(1, 0, 10), write(1, 20, 30)],
    "read of what nobody wrote": [write(1, 0, 10), read(2, 20, 30)],
    "refused write that took effect": [write(1, 0, 10, status="fail"), read(1, 20, 30)],
    "value that comes back": [write(1, 0, 10), write(2, 0, 50), read(2, 20, 30), read(1, 60, 70), read(2, 80, 90)],
    "reads that disagree on the order": [
        *(write(1, 0, 100), write(2, 0, 100)),
        *(read(1, 10, 20), read(2, 30, 40), read(1, 50, 60)),
    ],
    "swap that expected what was gone": [write(1, 0, 10), write(2, 20, 30), cas(1, 3, 40, 50)],
    "swap refused without a reason": [write(1, 0, 10), cas(1, 2, 20, 30, swapped=False, found=1)],
    "unknown write that was seen, and went": [
        *(write(1, 0, 10), write(2, 20, None), read(2, 30, 40), read(1, 50, 60)),
    ],
    "unknown write seen twice": [
        *(write(1, 0, None), read(1, 10, 20), write(2, 30, 40), read(2, 50, 60), read(1, 70, 80)),
    ],
    "deleted, and back": [write(1, 0, 10), write(None, 20, 30), read(1, 40, 50)],
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_is_found(name: str) -> None:
    """Each is found by all together, by the search alone, and by trying all orders."""
    ops = VIOLATIONS[name]
    assert not brute_force(ops, RegisterModel())
    assert not linearizable(ops)
    verdict = check_register(ops)
    assert "violation" == verdict.kind
    assert not brute_force(list(verdict.counterexample), RegisterModel())


LEGAL = {
    "concurrent write not yet seen": [write(1, 0, 10), write(2, 20, 60), read(1, 30, 40)],
    "unknown write seen late": [write(1, 0, None), read(None, 10, 20), read(1, 30, 40)],
    "unknown write after its client gave up": [
        *(write(1, 0, 10, status="info"), write(2, 20, 30), read(2, 40, 50), read(1, 60, 70)),
    ],
    "unknown swap that happened": [write(1, 0, 10), cas(1, 2, 20, None), read(2, 30, 40)],
    "unknown swaps in a chain": [cas(None, 1, 0, None), cas(1, 2, 5, None), read(2, 30, 40)],
    "touching operations are concurrent": [write(1, 0, 10), read(None, 10, 20)],
    "unknown reads say nothing": [write(1, 0, 10), read(7, 20, None)],
}


@pytest.mark.parametrize("name", LEGAL)
def test_what_may_happen_is_no_violation(name: str) -> None:
    """Unknown outcomes and concurrency excuse what they excuse."""
    assert brute_force(LEGAL[name], RegisterModel())
    assert "ok" == check_register(LEGAL[name]).kind


def test_a_search_without_budget_says_unknown() -> None:
    """And unknown is not ok."""
    history = register_history(random.Random(1), Shape(operations=200))
    verdict = check_register(history, budget=Budget(states_max=10))
    assert "unknown" == verdict.kind
    assert not verdict.ok


def test_a_hard_history_is_given_up_in_time() -> None:
    """Twenty writers of two values, and a swap of what nobody wrote: an exponential search, ended by its budget."""
    ops = [write(number % 2, number, None) for number in range(20)]
    ops += [write(number % 2, 30 + number, 1_000) for number in range(20)]
    ops += [read(number % 2, 100 + 10 * number, 105 + 10 * number) for number in range(60)]
    outcome = search(calls_of([*ops, cas(7, 8, 4_000, 4_001)], RegisterModel()), Budget(states_max=2_000))
    assert "unknown" == outcome.kind


def test_an_operation_of_another_kind_is_not_judged() -> None:
    """What a model does not know makes the verdict unknown, never ok."""
    for strange in (op("rotate", 0, 10), op("cas", 0, 10, argument=[1, 2], result=True), op("cas", 0, 10)):
        assert "unknown" == check_register([write(1, 0, 10), strange]).kind
    assert "unknown" == check_list([op("list", 0, 10, result="abc")]).kind
