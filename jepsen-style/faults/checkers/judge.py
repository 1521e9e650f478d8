"""All checks that apply to a history: what is on a key follows from what was done to it."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from faults.checkers.bank import check_bank
from faults.checkers.calls import by_key
from faults.checkers.counter import check_counter
from faults.checkers.form import check_form
from faults.checkers.objects import check_list, check_register
from faults.checkers.sessions import check_sessions
from faults.checkers.sets import check_set
from faults.checkers.stale import check_stale_reads
from faults.checkers.verdict import Budget, Verdict
from faults.checkers.witness import check_index_order, check_witness
from faults.history import Op

Thing: TypeAlias = Literal["register", "list", "counter", "set", "bank"]

MARKS: dict[str, Thing] = {"add": "set", "append": "list", "list": "list", "increment": "counter", "txn": "bank"}
"""Operations that only one kind of object has."""

CHECKS: dict[Thing, Callable[..., Verdict]] = {
    "register": check_register,
    "list": check_list,
    "counter": check_counter,
    "set": check_set,
    "bank": check_bank,
}


def judge(history: Sequence[Op], *, budget: Budget | None = None) -> list[Verdict]:
    """One verdict of each check that has something to judge. `combine` makes one of them."""
    verdicts = [check_form(history)]
    if any(op.ok and op.index is not None for op in history):
        verdicts.append(check_index_order(history))
    claimed = any(op.ok and (op.index is not None or op.revision is not None) for op in history)
    things = things_of(history)
    if claimed and set(things.values()) - {"set"}:
        verdicts.append(check_witness([op for op in history if things[op.key] != "set"]))
    for thing, check in CHECKS.items():
        mine = [op for op in history if things[op.key] == thing]
        if any(op.op != "stale_read" for op in mine):
            verdicts.append(check(mine, budget=budget))
    if any(op.op == "stale_read" for op in history):
        verdicts.append(check_stale_reads(history))
    if any(op.extra.get("seq") is not None for op in history):
        verdicts.append(check_sessions(history))
    return verdicts


def things_of(history: Sequence[Op]) -> dict[str, Thing]:
    """What each key holds. One that was only read holds what all the others hold."""
    marked: dict[str, set[Thing]] = {
        key: {MARKS[op.op] for op in ops if op.op in MARKS} for key, ops in by_key(history).items()
    }
    everywhere = set().union(*marked.values())
    only = next(iter(everywhere)) if len(everywhere) == 1 else None
    things: dict[str, Thing] = {}
    for key, ops in by_key(history).items():
        alone = all(op.op in ("read", "stale_read") for op in ops)
        opened = only == "bank" and any(op.op == "write" and isinstance(op.argument, dict) for op in ops)
        found = marked[key]
        things[key] = next(iter(found)) if len(found) == 1 else only if only and (alone or opened) else "register"
    return things
