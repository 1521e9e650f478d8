"""A counter that counts each increment exactly once, also when replies are lost and clients try again.

Sums over time: when an answer was given, all increments that had ended by its start are in it, and none that started after
its end. In between, concurrent and unknown ones may be. If all differences are positive, more is certain: the number after
an increment belongs to it alone, numbers never go back in real time, and what no answered increment accounts for must be
made of unknown ones.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise

from faults.checkers.calls import NotJudged, by_key, judged_by_key, merge_attempts
from faults.checkers.models import number
from faults.checkers.realtime import preceded
from faults.checkers.verdict import Budget, Verdict, ok, unknown
from faults.history import Op

PROOF_MAX = 6
"""Increments that are shown with a number that is out of bounds."""


def check_counter(history: Sequence[Op], *, budget: Budget | None = None) -> Verdict:
    """Each read and each increment's answer is within the bounds that the increments allow."""
    del budget
    keys = by_key(merge_attempts(history))
    verdict = judged_by_key("counter", keys, _judge)
    if verdict is not None:
        return verdict
    increments = [op for ops in keys.values() for op in ops if op.op == "increment"]
    counted, unknowns = sum(op.ok for op in increments), sum(op.status == "info" for op in increments)
    if not any(op.ok and op.result is not None for ops in keys.values() for op in ops):
        return unknown("counter", "no answer carries a number")
    return ok(
        "counter", f"{counted} increments counted once each", increments=counted, unknown=unknowns, keys=len(keys)
    )


def _judge(ops: Sequence[Op]) -> tuple[str, list[Op]] | None:
    strange = [op for op in ops if op.op not in ("increment", "read", "stale_read")]
    if strange:
        raise NotJudged(f"a counter knows no {strange[0].op!r}")
    increments = [op for op in ops if op.op == "increment" and op.status != "fail"]
    shown = [op for op in ops if op.ok and (op.op == "read" or (op.op == "increment" and op.result is not None))]
    found = _within_bounds(increments, shown)
    if found is None and all(number(op.argument) > 0 for op in increments):
        found = _once_each(increments, shown) or _never_back(shown)
    return found


class _Sums:
    """Sums of differences up to a moment."""

    def __init__(self, entries: list[tuple[float, int]]) -> None:
        entries.sort()
        self._times = [time for time, _ in entries]
        self._sums = [0, *accumulate(amount for _, amount in entries)]

    def before(self, moment: float) -> int:
        return self._sums[bisect_left(self._times, moment)]


def _within_bounds(increments: Sequence[Op], shown: Sequence[Op]) -> tuple[str, list[Op]] | None:
    """Certain: ended before it started. Possible: started before it ended. An answered increment has itself in it."""
    up = [op for op in increments if number(op.argument) > 0]
    down = [op for op in increments if number(op.argument) < 0]
    certain_up = _Sums([(op.end, number(op.argument)) for op in up])
    certain_down = _Sums([(op.end, number(op.argument)) for op in down])
    possible_up = _Sums([(op.start_ns, number(op.argument)) for op in up])
    possible_down = _Sums([(op.start_ns, number(op.argument)) for op in down])
    for op in shown:
        value = number(op.result)
        own = number(op.argument) if op.op == "increment" else 0
        # Touching is concurrent: what started at the very end may be in it.
        last = op.end + 1
        low = certain_up.before(op.start_ns) + possible_down.before(last) + max(own, 0)
        high = possible_up.before(last) + certain_down.before(op.start_ns) + min(own, 0)
        if value < low:
            ended = [each for each in increments if each.end < op.start_ns]
            return f"{value} is too little: at least {low} had been counted", [*_before(op, ended), op]
        if value > high:
            return f"{value} is too much: at most {high} can have been counted", [*_before(op, increments), op]
    return None


def _before(op: Op, increments: Sequence[Op]) -> list[Op]:
    """The last few that it may have counted. All would be the proof, but nobody reads hundreds."""
    return [each for each in increments if each.start_ns <= op.end and each is not op][-PROOF_MAX:]


def _once_each(increments: Sequence[Op], shown: Sequence[Op]) -> tuple[str, list[Op]] | None:
    """The numbers from `result - difference` to `result` belong to one increment; the gaps belong to unknown ones."""
    known = sorted((op for op in increments if op.ok and op.result is not None), key=lambda op: number(op.result))
    for one, other in pairwise(known):
        if number(other.result) - number(other.argument) < number(one.result):
            return "two increments count the same", [one, other]
    if any(op.ok and op.result is None for op in increments):
        return None
    results = [number(op.result) for op in known]
    sums = [0, *accumulate(number(op.argument) for op in known)]
    unknown_before = _Sums([(op.start_ns, number(op.argument)) for op in increments if not op.ok])
    for op in shown:
        value = number(op.result)
        accounted = bisect_left(results, value + 1)
        following = known[accounted] if accounted < len(known) else op
        if following is not op and number(following.result) - number(following.argument) < value:
            return f"{value} was answered within an increment", [following, op]
        gap, possible = value - sums[accounted], unknown_before.before(op.end + 1)
        if gap > possible:
            proof = [each for each in known if number(each.result) <= value][-4:]
            return f"{gap} of {value} were incremented by nobody, or twice", [
                *(each for each in proof if each is not op),
                op,
            ]
    return None


def _never_back(shown: Sequence[Op]) -> tuple[str, list[Op]] | None:
    for op, before in preceded(shown, lambda each: number(each.result)):
        own = number(op.argument) if op.op == "increment" else 0
        if number(op.result) < number(before.result) + own:
            return "the counter went back", [before, op]
    return None
