"""Sessions across leader changes: one number takes effect once, and a client's own view never goes back.

Attempts of one operation carry the same `extra.session` and `extra.seq`. All that are answered must be answered alike, with
one revision, whichever leader answered; the changes of a session come in the order of their numbers; and a client that
waits for each answer sees revisions that never fall: it reads its own writes.

Revisions are claims of the servers; that the sums are right as well is `check_counter`'s to say.
"""

from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import TypeAlias

from faults.checkers.calls import merge_attempts
from faults.checkers.realtime import preceded
from faults.checkers.verdict import Budget, Verdict, ok, unknown, violation
from faults.history import Op

Attempts: TypeAlias = dict[tuple[str, str, int], list[Op]]
"""By key, session and number. Sessions are those of a shard, so keys elsewhere may have the same numbers."""


def check_sessions(history: Sequence[Op], *, budget: Budget | None = None) -> Verdict:
    """Attempts agree, numbers are applied in order, and each client's revisions on a shard never fall."""
    del budget
    attempts: Attempts = {}
    for op in history:
        session, seq = op.extra.get("session"), op.extra.get("seq")
        if session is not None and isinstance(seq, int):
            attempts.setdefault((op.key, str(session), seq), []).append(op)
    if not attempts:
        return unknown("sessions", "no operation belongs to a session")
    found = _differently_answered(attempts) or _out_of_order(attempts) or _view_goes_back(history)
    if found is not None:
        reason, proof = found
        return violation("sessions", reason, proof)
    repeated = sum(len(each) > 1 for each in attempts.values())
    return ok("sessions", f"{len(attempts)} numbers took effect once each", numbers=len(attempts), repeated=repeated)


def _differently_answered(attempts: Attempts) -> tuple[str, list[Op]] | None:
    for (_, session, seq), ops in attempts.items():
        answered = [op for op in ops if op.ok]
        for one, other in pairwise(answered):
            if one.result != other.result:
                return f"session {session} got two answers for number {seq}", [one, other]
            if None not in (one.revision, other.revision) and one.revision != other.revision:
                return f"session {session} has number {seq} applied twice", [one, other]
    return None


def _out_of_order(attempts: Attempts) -> tuple[str, list[Op]] | None:
    """A client sends the next number after the answer to the last one, so its revisions rise, shard by shard."""
    sessions: dict[Hashable, list[tuple[int, Op]]] = {}
    for (_, session, seq), ops in attempts.items():
        for op in merge_attempts(ops):
            if op.ok and op.revision is not None and _changes(op):
                sessions.setdefault((session, _shard(op)), []).append((seq, op))
    for numbered in sessions.values():
        numbered.sort(key=lambda entry: entry[0])
        for (_, one), (_, other) in pairwise(numbered):
            if one.end < other.start_ns and (other.revision or 0) <= (one.revision or 0):
                return "a session's changes were applied against the order of their numbers", [one, other]
    return None


def _view_goes_back(history: Sequence[Op]) -> tuple[str, list[Op]] | None:
    views: dict[Hashable, list[Op]] = {}
    for op in merge_attempts(history):
        if op.ok and op.revision is not None and op.op != "stale_read":
            views.setdefault((op.client, _shard(op)), []).append(op)
    for view in views.values():
        for op, before in preceded(view, lambda each: each.revision or 0):
            if (op.revision or 0) < (before.revision or 0):
                return f"client {op.client} saw less than it had seen before", [before, op]
    return None


def _changes(op: Op) -> bool:
    return op.op in ("write", "increment", "append", "add") or (op.op == "txn" and op.result is not False)


def _shard(op: Op) -> Hashable:
    """Revisions of different shards do not compare; a key is within one."""
    shard = op.extra.get("shard")
    return ("key", op.key) if shard is None else ("shard", str(shard))
