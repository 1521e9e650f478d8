"""Is each key linearizable, by what its clients saw? Registers (read, write, compare-and-swap) and lists (append).

Keys are independent, so each is judged on its own (Herlihy and Wing: linearizability is local). First the linear passes over
all keys, then the search, in rounds of growing budgets: a violation in one key is not kept waiting by another key that is
hard to search. Claims of the servers (index, revision) are not looked at: `witness` does that.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from faults.checkers import passes
from faults.checkers.calls import Call, Model, NotJudged, by_key, calls_of, merge_attempts, prune, refused_writes
from faults.checkers.models import ListModel, RegisterModel
from faults.checkers.search import search
from faults.checkers.shrink import shrink
from faults.checkers.verdict import Budget, Verdict, ok, unknown, violation
from faults.history import Json, Op

ROUNDS = (0.01, 0.1, 1.0)
"""Shares of the budget. Nearly all keys are decided in the first round."""


def check_register(history: Sequence[Op], *, budget: Budget | None = None) -> Verdict:
    """Each key is a linearizable register. Stale reads are left to `check_stale_reads`."""
    found = (passes.seen_but_not_written, passes.stretches_overlap)
    return _check("register", history, RegisterModel, found, budget or Budget())


def check_list(history: Sequence[Op], *, budget: Budget | None = None) -> Verdict:
    """Each key is a linearizable list, to which unique elements are appended."""
    found = (passes.seen_but_not_written, passes.lists_disagree, passes.lists_go_back)
    return _check("list", history, ListModel, found, budget or Budget())


@dataclass(frozen=True, slots=True)
class _Key:
    ops: list[Op]
    calls: list[Call]
    """Pruned."""


def _check(
    checker: str,
    history: Sequence[Op],
    make_model: Callable[[], Model],
    linear: Sequence[passes.Pass],
    budget: Budget,
) -> Verdict:
    began = time.monotonic()
    facts: dict[str, Json] = {"operations": len(history), "keys": 0, "states": 0}

    def verdict_of(found: passes.Found, ops: Sequence[Op]) -> Verdict:
        reason, proof = found
        return violation(checker, f"{reason} (key {ops[0].key})", _smallest(ops, proof, make_model), **spent())

    def spent() -> dict[str, Json]:
        return {**facts, "seconds": round(time.monotonic() - began, 3)}

    try:
        keys = {}
        # Stale reads have a check of their own, and say nothing here.
        fresh = [op for op in history if op.op != "stale_read"]
        for key, ops in by_key(merge_attempts(fresh)).items():
            model = make_model()
            calls = prune(calls_of(ops, model), initial=model.initial())
            keys[key] = _Key(ops, calls)
            evidence = passes.Evidence(calls, refused_writes(ops, model), model.initial())
            for each in linear:
                found = each(evidence)
                if found is not None:
                    return verdict_of(found, ops)
    except NotJudged as error:
        return unknown(checker, str(error), **spent())
    facts["keys"] = len(keys)
    left = list(keys)
    states = 0
    for share in ROUNDS:
        part = replace(
            budget, states_max=max(1, int(budget.states_max * share)), seconds_max=budget.seconds_max * share
        )
        undecided = []
        for key in left:
            if time.monotonic() - began > budget.total_seconds_max:
                undecided.append(key)
                continue
            outcome = search(keys[key].calls, part)
            states += outcome.states
            facts["states"] = states
            if outcome.kind == "violation":
                needed = {id(call.op) for call in keys[key].calls[: outcome.needed]}
                proof = [op for op in keys[key].ops if id(op) in needed]
                return verdict_of(("no order explains all answers", proof), keys[key].ops)
            if outcome.kind == "unknown":
                undecided.append(key)
        left = undecided
        if not left:
            return ok(checker, f"all {len(keys)} keys are linearizable", **spent())
    facts["keys_unknown"] = len(left)
    return unknown(checker, f"{len(left)} of {len(keys)} keys took more than the budget, first {left[0]}", **spent())


def _smallest(ops: Sequence[Op], proof: Sequence[Op], make_model: Callable[[], Model]) -> list[Op]:
    """The proof, closed and shrunk; all of the key where the proof alone convinces nobody."""
    mine = {id(op) for op in proof}
    part = [op for op in ops if id(op) in mine]
    for candidate in (part, ops):
        small = shrink(candidate, make_model, within=ops)
        if small:
            return small
    return part
