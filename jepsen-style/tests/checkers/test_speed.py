"""How long judging takes. The figures are printed (`pytest -s`) and never judged: what fails here is a verdict."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from checkers.histories import Shape, bank_history, counter_history, list_history, register_history
from faults.checkers import Verdict, check_bank, check_counter, check_list, check_register, check_witness
from faults.history import Op

Check = Callable[[Sequence[Op]], Verdict]

RIGHT: dict[str, tuple[Callable[[random.Random, Shape], list[Op]], Shape, Sequence[Check]]] = {
    "register, 50,000 operations on one key": (register_history, Shape(50_000, 3), (check_register, check_witness)),
    "register, 10,000 on 50 keys, 5 % unknown": (
        register_history, Shape(10_000, 5, info_rate=0.05, keys=50), (check_register, check_witness),
    ),
    "list, 1,500 on one key, 5 % unknown": (list_history, Shape(1_500, 5, info_rate=0.05), (check_list, check_witness)),
    "counter, 20,000 on one key": (counter_history, Shape(20_000, 5), (check_counter, check_witness)),
    "bank, 2,000, 2 % unknown": (bank_history, Shape(2_000, 5, info_rate=0.02), (check_bank, check_witness)),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_large_histories_are_decided(name: str) -> None:
    """None of them exceeds the budget of a search."""
    make, shape, checks = RIGHT[name]
    history = make(random.Random(1), shape)
    for check in checks:
        assert "ok" == timed(name, check, history).kind


@pytest.mark.parametrize("clients", [5, 10, 20])
def test_a_violation_among_many_unknown_writes_is_decided(clients: int) -> None:
    """A stale read with 40 unknown writes: more than a plain search decides in minutes."""
    history = register_history(random.Random(1), Shape(300, clients, info_rate=0.13))
    reads = [number for number, each in enumerate(history) if each.op == "read" and each.ok and each.result is not None]
    history[reads[-1]] = replace(history[reads[-1]], result=history[reads[len(reads) // 2]].result)
    verdict = timed(f"stale read, {clients} clients", check_register, history)
    assert "violation" == verdict.kind
    assert len(verdict.counterexample) <= 5


def timed(name: str, check: Check, history: Sequence[Op]) -> Verdict:
    """Prints what it took."""
    before = time.process_time()
    verdict = check(history)
    print(f"\n{name}: {verdict.checker} {verdict.kind} in {time.process_time() - before:.2f} s, {dict(verdict.facts)}")
    return verdict
