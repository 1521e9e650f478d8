"""Operations in the form that searches want, and what may be done to those whose outcome is unknown.

A `Call` is an operation with the interval in which it takes effect, its `Step` in a sequential model, and its `Footprint`:
which value it wrote and which values its answer names. Footprints are what makes unknown outcomes cheap:

- an unknown write whose value *nobody saw* may be left out. In any order that explains the history the state that it made
  lasts until the next write, and no answer in between can tell; so without it the same order explains the rest;
- an unknown write whose value *somebody saw* did take effect, before its first observer ended; so it gets that end;
- to see includes: to be an unknown CAS that expects the value and whose own value was seen; and one of which that cannot be
  said may have seen it, so the write stays as it is.

Both need that nobody else wrote that value, and the first that every answer names the value that it depends on: a refused
CAS that does not say what was there (`blurred`) may depend on any write, so then none is left out. Only the clients' own
data is used. `tests/checkers/test_unknowns.py` holds this to the plain search.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from faults.checkers.verdict import Verdict, unknown, violation
from faults.history import Op

State: TypeAlias = int
"""States are numbered by their model; the initial one is 0."""
Step: TypeAlias = Callable[[State], State]
"""The state after the operation, or -1 where it cannot have been answered so."""

NEVER = float("inf")


class NotJudged(ValueError):
    """An operation that the model does not know, or an answer of the wrong form: no verdict but unknown."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What links an operation to others."""

    writes: Hashable | None = None
    """The value that it makes visible; None: it changes nothing."""
    sees: tuple[Hashable, ...] = ()
    """Values that must have been written before it."""
    blurred: bool = False
    """Its answer depends on the state without naming it."""


@dataclass(frozen=True, slots=True)
class Call:
    """An operation that takes effect between `start` and `end`; at `NEVER` also not at all."""

    op: Op
    start: int
    end: float
    step: Step
    footprint: Footprint

    @property
    def pure(self) -> bool:
        """It changes no state, whichever it meets."""
        return self.footprint.writes is None


class Model(Protocol):
    """A sequential object. One instance numbers the states of one key."""

    def footprint(self, op: Op) -> Footprint: ...

    def step(self, op: Op) -> Step: ...

    def initial(self) -> Hashable | None:
        """The value that is seen before anything was written; None where there is no such value."""


def by_key(history: Iterable[Op]) -> dict[str, list[Op]]:
    """The operations on each key, in the order of their starts."""
    keys: dict[str, list[Op]] = {}
    for op in sorted(history, key=lambda op: op.start_ns):
        keys.setdefault(op.key, []).append(op)
    return keys


def merge_attempts(history: Sequence[Op]) -> list[Op]:
    """Attempts on a key with one session and number are one operation: from the first start to the first end of an answer.

    It is `ok` if any attempt was answered, else `info` if any is unknown, else `fail`.
    """
    attempts: dict[Hashable, list[Op]] = {}
    for number, op in enumerate(history):
        named = op.extra.get("session") is not None and op.extra.get("seq") is not None
        # Sessions are those of a shard, so a number may be used again on a key elsewhere.
        name = (op.key, str(op.extra["session"]), op.extra["seq"]) if named else number
        attempts.setdefault(name, []).append(op)
    return [_merged(each) if len(each) > 1 else each[0] for each in attempts.values()]


def _merged(attempts: list[Op]) -> Op:
    start = min(op.start_ns for op in attempts)
    for status in ("ok", "info", "fail"):
        mine = [op for op in attempts if op.status == status]
        if mine:
            return replace(min(mine, key=lambda op: op.end), start_ns=start)
    raise AssertionError("an attempt has one of three statuses")


def calls_of(ops: Iterable[Op], model: Model) -> list[Call]:
    """Everything that an order must explain, by start. Failures are no part of it, nor unknown reads.

    Raises: NotJudged.
    """
    calls = []
    for op in ops:
        if op.status == "fail":
            continue
        footprint = model.footprint(op)
        if op.status == "info" and footprint.writes is None:
            continue
        calls.append(Call(op, op.start_ns, op.end, model.step(op), footprint))
    calls.sort(key=lambda call: call.start)
    return calls


def refused_writes(ops: Iterable[Op], model: Model) -> dict[Hashable, Op]:
    """What certainly had no effect, by the value that nobody may see.

    Raises: NotJudged.
    """
    refused = [(model.footprint(op).writes, op) for op in ops if op.status == "fail"]
    return {name: op for name, op in refused if name is not None}


def writers(calls: Iterable[Call]) -> dict[Hashable, Call]:
    """The only writer of each value that has only one."""
    calls = list(calls)
    times = Counter(call.footprint.writes for call in calls)
    return {call.footprint.writes: call for call in calls if not call.pure and times[call.footprint.writes] == 1}


def prune(calls: Sequence[Call], *, initial: Hashable | None) -> list[Call]:
    """Leaves unknown writes out that nobody saw, and bounds those that somebody saw."""
    unknown = [call for call in calls if call.end == NEVER]
    if not unknown:
        return list(calls)
    only = writers(calls)
    bounds = _first_seen(calls, {name for name in only if name != initial}, only)
    blurred = any(call.footprint.blurred for call in calls)
    kept = []
    for call in calls:
        name = call.footprint.writes
        if call.end < NEVER or name not in only or name == initial:
            kept.append(call)
        elif name in bounds:
            kept.append(replace(call, end=bounds[name]))
        elif blurred:
            kept.append(call)
    return kept


def _first_seen(calls: Sequence[Call], names: set[Hashable], only: Mapping[Hashable, Call]) -> dict[Hashable, float]:
    """Of each value that was seen: the end of its first observer; `NEVER` of those that only an unknown one may have seen."""
    bounds: dict[Hashable, float] = {}
    # An unknown one that is kept as it is, because its own value has other writers, may have seen what it expects.
    todo = [(call, call.end) for call in calls if call.end < NEVER or call.footprint.writes not in names]
    while todo:
        call, bound = todo.pop()
        for name in call.footprint.sees:
            if name in names and (name not in bounds or bound < bounds[name]):
                bounds[name] = bound
                if only[name].end == NEVER:
                    todo.append((only[name], bound))
    return bounds


def judged_by_key(
    checker: str, keys: Mapping[str, Sequence[Op]], judge: Callable[[Sequence[Op]], tuple[str, list[Op]] | None]
) -> Verdict | None:
    """The verdict of the first key that is not ok; None where all are. `judge` gives a reason and its proof, or nothing.

    A key that it cannot judge (`NotJudged`) is unknown.
    """
    for key, ops in keys.items():
        try:
            found = judge(ops)
        except NotJudged as error:
            return unknown(checker, f"key {key}: {error}")
        if found is not None:
            reason, proof = found
            return violation(checker, f"{reason} (key {key})", proof)
    return None
