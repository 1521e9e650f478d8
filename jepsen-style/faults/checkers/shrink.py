"""The smallest part of a violation that still is one.

Leaving operations out must not make a violation of something that was none, so only this may go:

- an answer that changed nothing: without it there is less to explain;
- a write whose value no remaining answer names: an order that explains the whole explains the rest without it (`calls`);
- of lists, an element everywhere at once: leaving it out of every list keeps their order.

So a candidate is always closed under "who wrote what is seen", and what remains is a proof that needs nothing else.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from faults.checkers.calls import Model, calls_of, prune
from faults.checkers.models import ListModel, elements, name_of
from faults.checkers.search import search
from faults.checkers.verdict import Budget
from faults.history import Json, Op

TRIAL = Budget(states_max=20_000, seconds_max=1.0)
"""For one candidate. A part is searched faster than the whole, and what is not refuted in time just stays."""


def shrink(
    part: Sequence[Op], make_model: Callable[[], Model], *, within: Sequence[Op], seconds_max: float = 10.0
) -> list[Op]:
    """The smallest violation in a part of a key's operations, with those of `within` that it needs.

    All come by start. Empty where the part is no violation, or is not refuted within `TRIAL`.
    """
    deadline = time.monotonic() + seconds_max

    def close(kept: list[Op]) -> list[Op]:
        return _closed(kept, within, make_model)

    def bad(kept: list[Op]) -> bool:
        return violates(kept, make_model)

    ops = close(list(part))
    if not bad(ops):
        return []
    if isinstance(make_model(), ListModel):
        within = ops = _fewer_elements(ops, make_model, deadline)
    return _least(ops, close, bad, deadline)


def violates(ops: Sequence[Op], make_model: Callable[[], Model]) -> bool:
    """Whether the search refutes these operations on their own."""
    model = make_model()
    return search(prune(calls_of(ops, model), initial=model.initial()), TRIAL).kind == "violation"


def _least(
    ops: list[Op], close: Callable[[list[Op]], list[Op]], bad: Callable[[list[Op]], bool], deadline: float
) -> list[Op]:
    """Takes out halves, quarters, ..., and single operations, until none can go any more."""
    size = max(1, len(ops) // 2)
    while True:
        before = len(ops)
        position = 0
        while position < len(ops) and time.monotonic() < deadline:
            candidate = close(ops[:position] + ops[position + size :])
            if len(candidate) < len(ops) and bad(candidate):
                ops = candidate
            else:
                position += size
        if size == 1 and (len(ops) == before or time.monotonic() >= deadline):
            return ops
        size = max(1, size // 2)


def _closed(kept: list[Op], ops: Sequence[Op], make_model: Callable[[], Model]) -> list[Op]:
    """These, and all that wrote what they see, and so on; in the order of `ops`."""
    model = make_model()
    feet = {id(op): model.footprint(op) for op in ops}
    if any(feet[id(op)].blurred for op in kept):
        # It may depend on any write.
        mine = {id(op) for op in kept}
        return [op for op in ops if id(op) in mine or feet[id(op)].writes is not None]
    writers: dict[object, list[Op]] = {}
    for op in ops:
        writers.setdefault(feet[id(op)].writes, []).append(op)
    closed: set[int] = set()
    todo = list(kept)
    while todo:
        op = todo.pop()
        if id(op) not in closed:
            closed.add(id(op))
            for name in feet[id(op)].sees:
                todo += writers.get(name, ())
    return [op for op in ops if id(op) in closed]


def _fewer_elements(ops: list[Op], make_model: Callable[[], Model], deadline: float) -> list[Op]:
    """Leaves elements out of all lists; `extra` says of how many the list was."""
    names = sorted({name for op in ops for name in map(name_of, _named(op))}, key=repr)
    size = max(1, len(names) // 2)
    while True:
        position = 0
        while position < len(names) and time.monotonic() < deadline:
            rest = names[:position] + names[position + size :]
            candidate = _only(ops, set(rest))
            if violates(candidate, make_model):
                ops, names = candidate, rest
            else:
                position += size
        if size == 1:
            return ops
        size = max(1, size // 2)


def _named(op: Op) -> list[Json]:
    shown: list[Json] = list(elements(op.result)) if op.ok else []
    return [*shown, op.argument] if op.op == "append" else shown


def _only(ops: Sequence[Op], names: set[object]) -> list[Op]:
    kept = []
    for op in ops:
        if op.op == "append" and name_of(op.argument) not in names:
            if op.ok and op.result is not None:
                # Its answer still says what was there: as a read it says the same.
                op = replace(op, op="list", argument=None)
            else:
                continue
        if op.ok and op.result is not None:
            shown = [element for element in elements(op.result) if name_of(element) in names]
            if len(shown) < len(elements(op.result)):
                extra = {"list_length": len(elements(op.result)), **op.extra}
                op = replace(op, result=shown, extra=extra)
        kept.append(op)
    return kept
