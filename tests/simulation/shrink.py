"""The shortest script that still fails: delta debugging over a plan's faults, and what made the network bad taken away.

Zeller's ddmin on the list of faults, with a budget of processor time: it returns the best that was found when that is used up.
*Still fails* means: with a violation of the same kind. Anything else is another bug, for another day.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from tests.simulation.plan import Plan
from tests.simulation.run import run
from tests.simulation.world import Problem

BUDGET_S = 120.0


def shrink(plan: Plan, problem: Problem, *, budget_s: float = BUDGET_S) -> tuple[Plan, list[int]]:
    """A smaller plan that fails in the same way, and which of the original's faults it has left."""
    until = time.process_time() + budget_s

    def fails(candidate: Plan) -> bool:
        if time.process_time() > until:
            return False
        return any(found.kind == problem.kind for found in run(candidate.seed, candidate).problems)

    if fails(plan.only([])):
        return _calm(plan, [], fails).only([]), []
    # What comes after the violation cannot have caused it.
    kept = [place for place, fault in enumerate(plan.faults) if fault.at_ms * 1_000_000 <= problem.at_ns]
    if not fails(plan.only(kept)):
        kept = list(range(len(plan.faults)))
    parts = 2
    while kept and parts <= len(kept) and time.process_time() < until:
        size = -(-len(kept) // parts)
        chunks = [kept[start : start + size] for start in range(0, len(kept), size)]
        for chunk in chunks:
            rest = [place for place in kept if place not in chunk]
            if fails(plan.only(rest)):
                kept, parts = rest, max(2, parts - 1)
                break
        else:
            if parts == len(kept):
                break
            parts = min(len(kept), parts * 2)
    return _calm(plan, kept, fails).only(kept), kept


def _calm(plan: Plan, kept: list[int], fails: Callable[[Plan], bool]) -> Plan:
    """Takes away loss, doubles, delays and slowness, as far as it still fails."""
    for calmer in (
        {"loss": 0.0},
        {"duplicate": 0.0},
        {"reorder": False},
        {"delay_ms_max": 1},
        {"sync_ms_max": 2},
        {"slow_node_ticks": 0},
        {"turn_us_max": 0},
        {"left_out": "none"},
        {"counters": 0},
    ):
        name, value = next(iter(calmer.items()))
        if getattr(plan, name) != value:
            candidate = replace(plan, **calmer)
            if fails(candidate.only(kept)):
                plan = candidate
    return plan
