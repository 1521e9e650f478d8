"""Stale reads may be old, but not wrong: each is a state that there was, and one life of a node never goes back.

Judged on registers: the value of a stale read is the initial one, or that of a write that began before the read ended and was
not refused. Of two stale reads from the same life of a node (`extra.incarnation`), the later one is no older: by revision or
applied index where answers carry them, and by real time alone where the write of the one had ended before the write of the
other began.
"""

from collections.abc import Hashable, Sequence

from faults.checkers.calls import Call, Model, NotJudged, by_key, calls_of, merge_attempts, refused_writes, writers
from faults.checkers.models import RegisterModel, model_for, name_of
from faults.checkers.realtime import preceded
from faults.checkers.verdict import Budget, Verdict, ok, unknown, violation
from faults.history import Op


def check_stale_reads(history: Sequence[Op], *, budget: Budget | None = None) -> Verdict:
    """Each stale read is a past state, and each node's are monotone while it lives."""
    del budget
    checked = 0
    for key, ops in by_key(merge_attempts(history)).items():
        stale = [op for op in ops if op.op == "stale_read" and op.ok]
        if not stale:
            continue
        checked += len(stale)
        try:
            found = _back_by_claim(stale) or _past_states([op for op in ops if op.op != "stale_read"], stale)
        except NotJudged as error:
            return unknown("stale reads", f"key {key}: {error}")
        if found is not None:
            reason, proof = found
            return violation("stale reads", f"{reason} (key {key})", proof)
    if not checked:
        return unknown("stale reads", "there is no stale read")
    known = sum(op.op == "stale_read" and op.ok and op.extra.get("incarnation") is not None for op in history)
    order = f", and the {known} of known lives never went back" if known else "; which lives answered is not known"
    return ok("stale reads", f"{checked} stale reads are past states{order}", stale_reads=checked, of_known_lives=known)


def _lives(stale: Sequence[Op]) -> list[list[Op]]:
    """Those of each life. Which life answered is not always known, and nothing follows from two unknown ones."""
    lives: dict[Hashable, list[Op]] = {}
    for op in stale:
        if op.extra.get("incarnation") is not None:
            life = (str(op.extra.get("served_by", op.node)), str(op.extra["incarnation"]))
            lives.setdefault(life, []).append(op)
    return list(lives.values())


def _back_by_claim(stale: Sequence[Op]) -> tuple[str, list[Op]] | None:
    for life in _lives(stale):
        for claim in ("revision", "index"):
            claimed = [op for op in life if getattr(op, claim) is not None]
            for op, before in preceded(claimed, lambda each, claim=claim: getattr(each, claim)):  # type: ignore[misc]
                if getattr(op, claim) < getattr(before, claim):
                    return f"a node's stale reads went back, by their {claim}", [before, op]
    return None


def _past_states(ops: Sequence[Op], stale: Sequence[Op]) -> tuple[str, list[Op]] | None:
    model = model_for(ops)
    if not isinstance(model, RegisterModel):
        return None
    calls = calls_of(ops, model)
    started: dict[Hashable, Call] = {}
    for call in calls:
        if not call.pure:
            started.setdefault(call.footprint.writes, call)
    failed = refused_writes(ops, model)
    for op in stale:
        name = name_of(op.result)
        if name == model.initial():
            continue
        if name not in started:
            if name in failed:
                return "a write that was refused has taken effect", [failed[name], op]
            return "a value was answered that nobody had written", [op]
        if op.end < started[name].start:
            return "a value was answered before its write began", [op, started[name].op]
    return _back_by_time(stale, calls, model)


def _back_by_time(stale: Sequence[Op], calls: Sequence[Call], model: Model) -> tuple[str, list[Op]] | None:
    """The write of the later read had ended before the write of an earlier read began."""
    only = writers(calls)

    def write_of(op: Op) -> Call | None:
        name = name_of(op.result)
        return only.get(name) if name != model.initial() else None

    def began(op: Op) -> float:
        write = write_of(op)
        return -1.0 if write is None else write.start

    rewritten = any(call.footprint.writes == model.initial() for call in calls)
    for life in _lives(stale):
        for op, before in preceded(life, began):
            newer, older = write_of(before), write_of(op)
            if newer is None:
                continue
            if older is None and name_of(op.result) == model.initial() and not rewritten:
                return "a node's stale reads went back to the beginning", [newer.op, before, op]
            if older is not None and older.end < newer.start:
                return "a node's stale reads went back to an overwritten value", [older.op, newer.op, before, op]
    return None
