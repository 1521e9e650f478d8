"""Is it a history at all? What is not well formed cannot be judged, and must not pass either."""

from collections.abc import Sequence

from faults.checkers.verdict import Budget, Verdict, ok, unknown
from faults.history import Op, flaw_of


def check_form(history: Sequence[Op], *, budget: Budget | None = None) -> Verdict:
    """Each operation is one, and each client waits for its answer, and is retired after an unknown outcome.

    Attempts of one session and number may follow an unknown one: they are the same operation.
    """
    del budget
    last: dict[int, Op] = {}
    for op in sorted(history, key=lambda op: (op.start_ns, op.end)):
        flaw = flaw_of(op)
        before = last.get(op.client)
        if not flaw and before is not None:
            given_up = before.end_ns if before.end_ns is not None else op.start_ns
            if given_up > op.start_ns:
                flaw = "it started before its client had the last answer"
            elif before.status == "info" and not _same(before, op):
                flaw = "its client went on after an unknown outcome: take a new number"
        if flaw:
            return unknown("form", f"client {op.client}, {op.op} at {op.start_ns}: {flaw}")
        last[op.client] = op
    answered = sum(op.ok for op in history)
    if not answered:
        return unknown("form", "nothing was answered")
    return ok("form", f"{len(history):,} operations, {answered:,} answered", operations=len(history), answered=answered)


def _same(one: Op, other: Op) -> bool:
    name = ("session", "seq")
    return one.extra.get("seq") is not None and all(one.extra.get(key) == other.extra.get(key) for key in name)
