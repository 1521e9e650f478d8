"""The witness check: the servers claim an order, so hold them to it.

Every reply carries a log index and a revision. Sorted by revision, the answers of a key must be those of the sequential
object, and no operation may stand before another one that had ended when it started. If that holds, the order *is* a
linearization and the history is proven right; if it fails, that is a bug even where another order would do. It is fast, so it
judges everything, always; `objects` trusts no claim and judges again.

- The order is that of revisions: each command that changed something has one of its own, and an answer that changed nothing
  comes after the change whose revision it names. Those of one revision come as real time allows: also a deletion, which may
  have found nothing to delete. Where replies carry no revision the log index takes its place.
- An unknown write has no reply, hence no place: anywhere after all that had ended when it started, or nowhere. So the answers
  become calls one after the other, the unknown ones may come in between, and `search` finds out which do.
- The log index must agree with real time on its own, over all keys of a shard where `extra.shard` names it: a write that
  began after another operation had ended has a greater index; a read has one that is no smaller.

Caveat: which of many unknown transfers or increments explain a number is a search; past its budget it says unknown.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from faults.checkers.calls import Call, Model, NotJudged, by_key, calls_of, merge_attempts, prune, writers
from faults.checkers.models import model_for
from faults.checkers.realtime import preceded
from faults.checkers.search import search
from faults.checkers.verdict import Budget, Verdict, ok, unknown, violation
from faults.history import Op


def check_witness(history: Sequence[Op], *, budget: Budget | None = None) -> Verdict:
    """The order that the replies claim explains all answers and agrees with real time. Sets are left to `check_set`."""
    judged, left_out = 0, 0
    undecided = ""
    for key, ops in by_key(merge_attempts([op for op in history if op.op != "stale_read"])).items():
        model = model_for(ops)
        if model is None:
            left_out += 1
            continue
        try:
            verdict = _judge(key, calls_of(ops, model), model, budget)
        except NotJudged as error:
            verdict = unknown("witness", f"key {key}: {error}")
        if verdict.kind == "violation":
            return verdict
        if verdict.kind == "unknown":
            undecided = undecided or verdict.reason
        judged += len(ops)
    facts = {"operations": judged, "sets_left_out": left_out}
    if undecided:
        return unknown("witness", undecided, **facts)
    return ok("witness", "the claimed order explains all answers and agrees with real time", **facts)


def _judge(key: str, calls: Sequence[Call], model: Model, budget: Budget | None) -> Verdict:
    answered = [call for call in calls if call.op.ok]
    if any(call.op.revision is None and call.op.index is None for call in answered):
        return unknown("witness", f"key {key}: an answer carries neither revision nor index")
    by_revision = all(call.op.revision is not None for call in answered)
    slots: dict[tuple[int, bool], list[Call]] = {}
    for call in answered:
        claimed = call.op.revision if by_revision else call.op.index
        assert claimed is not None
        settled = not call.pure and not (by_revision and _deletes(call))
        slots.setdefault((claimed, not settled), []).append(call)
    for (_, shared), slot in slots.items():
        if not shared and len(slot) > 1:
            if by_revision:
                return violation(
                    "witness", f"two commands claim one revision (key {key})", [each.op for each in slot[:2]]
                )
            return unknown("witness", f"key {key}: two writes share an index and carry no revision")
    order = [slots[place] for place in sorted(slots)]
    return _real_time(key, order) or _replay(key, order, calls, model, budget)


def _deletes(call: Call) -> bool:
    return call.op.op == "write" and call.op.argument is None


def _real_time(key: str, order: Sequence[Sequence[Call]]) -> Verdict | None:
    """Nobody stands before a call that had ended when it started."""
    earliest: Call | None = None
    for slot in reversed(order):
        for call in slot:
            if earliest is not None and earliest.end < call.start:
                reason = f"the claimed order contradicts real time (key {key})"
                return violation("witness", reason, [call.op, earliest.op])
        earliest = min([*slot, *([earliest] if earliest else [])], key=lambda call: call.end)
    return None


def _replay(
    key: str, order: Sequence[Sequence[Call]], calls: Sequence[Call], model: Model, budget: Budget | None
) -> Verdict:
    """The slots one after the other, and the unknown calls from the first place that real time allows them."""
    width = 2 * len(calls) + 2
    ranked: list[Call] = []
    moments: list[list[float]] = []
    ends: list[tuple[float, int]] = []
    for number, slot in enumerate(order):
        # Within a slot real time decides, so its moments are numbered; starts come first where they are equal.
        events = sorted([(call.start, 0, id(call)) for call in slot] + [(call.end, 1, id(call)) for call in slot])
        at = {(is_end, name): place for place, (_, is_end, name) in enumerate(events, start=number * width)}
        ranked += [replace(call, start=at[0, id(call)], end=at[1, id(call)]) for call in slot]
        moments.append([moment for moment, _, _ in events])
        ends += [(call.end, number) for call in slot]
    ends.sort()
    # Of each end, in the order of ends, the last slot among all up to it.
    last = list(accumulate((number for _, number in ends), max, initial=-1))
    for call in calls:
        if not call.op.ok:
            after = last[bisect_left(ends, (call.start, -1))]
            passed = bisect_left(moments[after], call.start) if after >= 0 else 0
            ranked.append(replace(call, start=max(after, 0) * width + passed))
    ranked.sort(key=lambda call: call.start)
    outcome = search(prune(ranked, initial=model.initial()), budget)
    if outcome.kind == "unknown":
        return unknown("witness", f"key {key}: too many unknown operations to explain an answer")
    if outcome.blocked is None:
        return ok("witness", f"key {key}")
    before = [call.op for slot in order[: int(outcome.blocked.start) // width] for call in slot if not call.pure]
    return _unexplained(key, outcome.blocked, before[-1:], calls)


def _unexplained(key: str, blocked: Call, before: Sequence[Op], calls: Sequence[Call]) -> Verdict:
    """The answer, what wrote the values that it names, and the last change before it."""
    only = writers(calls)
    proof = [only[name].op for name in blocked.footprint.sees if name in only][-3:]
    proof += [op for op in before if op not in proof]
    at = blocked.op.index if blocked.op.revision is None else blocked.op.revision
    reason = f"the claimed order does not explain the answer at {at} (key {key})"
    return violation("witness", reason, [*(op for op in proof if op is not blocked.op), blocked.op])


def check_index_order(history: Sequence[Op], *, budget: Budget | None = None) -> Verdict:
    """Log indexes never go back in real time: within a shard where it is known, else within a key."""
    del budget
    groups: dict[str, list[Op]] = {}
    for op in merge_attempts([op for op in history if op.op != "stale_read"]):
        if op.ok and op.index is not None:
            shard = op.extra.get("shard")
            groups.setdefault(f"key {op.key}" if shard is None else f"shard {shard}", []).append(op)
    if not groups:
        return unknown("index order", "no answer carries a log index")
    for group, ops in sorted(groups.items()):
        for op, before in preceded(ops, lambda each: each.index or 0):
            if (op.index or 0) < (before.index or 0):
                return violation("index order", f"the log index went back ({group})", [before, op])
            if op.index == before.index and _changed(op):
                reason = f"a write that began later has no greater log index ({group})"
                return violation("index order", reason, [before, op])
    checked = sum(len(ops) for ops in groups.values())
    return ok("index order", "log indexes agree with real time", operations=checked, groups=len(groups))


def _changed(op: Op) -> bool:
    """It certainly took an entry of the log that changed something."""
    return op.op in ("write", "increment", "append", "add")
