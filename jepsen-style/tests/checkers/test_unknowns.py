"""What is left out and bounded among unknown outcomes changes no verdict: held to the plain search."""

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from checkers.histories import Shape, cas, list_history, mutate, read, register_history, write
from faults.checkers.calls import NEVER, Call, Model, calls_of, merge_attempts, prune
from faults.checkers.models import ListModel, RegisterModel
from faults.checkers.search import search
from faults.history import Op

seeds = st.integers(0, 2**32)
shapes = st.builds(
    Shape,
    operations=st.integers(2, 14),
    clients=st.integers(2, 4),
    info_rate=st.sampled_from((0.2, 0.5, 0.8)),
    values=st.sampled_from((None, None, 3)),
    silent_cas=st.booleans(),
)


def pruned(ops: list[Op], model: Model | None = None) -> list[Call]:
    model = model or RegisterModel()
    return prune(calls_of(ops, model), initial=model.initial())


@given(seeds, shapes)
def test_pruning_a_register_changes_no_verdict(seed: int, shape: Shape) -> None:
    """Also where values repeat, swaps are unknown, and refusals are silent."""
    rng = random.Random(seed)
    history = register_history(rng, shape)
    for ops in (history, mutate(rng, history), mutate(rng, mutate(rng, history))):
        assert search(calls_of(ops, RegisterModel())).kind == search(pruned(ops)).kind


@given(seeds, shapes)
def test_pruning_a_list_changes_no_verdict(seed: int, shape: Shape) -> None:
    """The same of lists."""
    rng = random.Random(seed)
    history = list_history(rng, shape)
    for ops in (history, mutate(rng, history), mutate(rng, mutate(rng, history))):
        assert search(calls_of(ops, ListModel())).kind == search(pruned(ops, ListModel())).kind


def test_an_unknown_write_that_nobody_saw_is_left_out() -> None:
    """It may have happened; no answer depends on it."""
    assert [1] == [call.op.argument for call in pruned([write(1, 0, 10), write(2, 5, None)])]


def test_an_unknown_write_that_somebody_saw_ends_with_its_first_observer() -> None:
    """It took effect before the first answer that names it."""
    calls = pruned([write(1, 0, None), read(1, 50, 60), read(1, 20, 30)])
    assert 30 == calls[0].end


def test_a_chain_of_unknown_swaps_is_bounded_by_the_end_of_the_chain() -> None:
    """Who saw the last one has seen them all."""
    calls = pruned([cas(None, 1, 0, None), cas(1, 2, 5, None), read(2, 30, 40)])
    assert [40, 40, 40] == [call.end for call in calls]


def test_a_swap_that_nobody_saw_is_no_observer() -> None:
    """Neither it nor the unknown write that it would have needed has happened, as far as anybody can tell."""
    assert [] == pruned([write(1, 0, None), cas(1, 2, 5, None)])


def test_nothing_is_left_out_where_a_refusal_does_not_say_what_it_found() -> None:
    """It may have found any of them."""
    refused = replace(cas(1, 9, 30, 40, swapped=False), result={"swapped": False})
    calls = pruned([write(1, 0, 10), write(2, 5, None), refused])
    assert [10, NEVER, 40] == [call.end for call in calls]


def test_values_that_are_written_twice_are_left_alone() -> None:
    """Whoever saw the value may have seen the other write."""
    calls = pruned([write(1, 0, None), write(1, 5, None), read(1, 20, 30)])
    assert [NEVER, NEVER, 30] == [call.end for call in calls]


def test_what_an_unknown_swap_may_have_needed_is_kept() -> None:
    """The value of the swap has another writer, so nobody knows whether it was seen; found by chance."""
    ops = [write(0, 0, None), cas(0, 2, 20, None), write(2, 25, 30), cas(2, 1, 40, 50), read(2, 60, 70)]
    assert [NEVER, NEVER, 30, 50, 70] == [call.end for call in pruned(ops)]
    assert "ok" == search(pruned(ops)).kind


def test_attempts_of_one_number_are_one_operation() -> None:
    """From the first start to the first answer; unknown only if no attempt was answered."""
    mark = {"session": 1, "seq": 7}
    lost = write(1, 0, None, extra=mark)
    answered = write(1, 20, 30, extra=mark)
    assert [(0, 30, "ok")] == [(op.start_ns, op.end_ns, op.status) for op in merge_attempts([lost, answered])]
    assert [(0, "info")] == [
        (op.start_ns, op.status) for op in merge_attempts([lost, write(1, 5, 6, status="fail", extra=mark)])
    ]
