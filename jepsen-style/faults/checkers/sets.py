"""A set to which unique elements are added: what was acknowledged is there, what was refused is not, and nothing goes."""

from collections.abc import Hashable, Sequence

from faults.checkers.calls import NEVER, NotJudged, by_key, judged_by_key, merge_attempts
from faults.checkers.models import elements, name_of
from faults.checkers.verdict import Budget, Verdict, ok, unknown
from faults.history import Op


def check_set(history: Sequence[Op], *, budget: Budget | None = None) -> Verdict:
    """Each read has all elements whose add had ended, or which a read that had ended showed; and none but those begun.

    Unknown adds may be there or not; once seen, they stay. Sets of 10,000 elements read 100 times take a second.
    """
    del budget
    keys = by_key(merge_attempts(history))
    verdict = judged_by_key("set", keys, _judge)
    if verdict is not None:
        return verdict
    reads = sum(op.ok and op.op in ("read", "list") for ops in keys.values() for op in ops)
    adds = sum(op.ok and op.op == "add" for ops in keys.values() for op in ops)
    if not reads:
        return unknown("set", "nothing was read")
    return ok("set", f"{adds} added elements are where they belong", adds=adds, reads=reads, keys=len(keys))


def _judge(ops: Sequence[Op]) -> tuple[str, list[Op]] | None:
    added: dict[Hashable, Op] = {}
    for op in ops:
        if op.op not in ("add", "read", "list", "stale_read"):
            raise NotJudged(f"a set knows no {op.op!r}")
        if op.op == "add":
            # A refused element may be added again, by another operation.
            known = added.get(name_of(op.argument))
            if known is not None and known.status != "fail" and op.status != "fail":
                raise NotJudged(f"{op.argument!r} is added twice, so its loss would not be seen")
            if known is None or known.status == "fail":
                added[name_of(op.argument)] = op
    reads = sorted((op for op in ops if op.ok and op.op in ("read", "list")), key=lambda op: op.start_ns)
    present_since: dict[Hashable, tuple[float, Op]] = {
        name: (op.end, op) for name, op in added.items() if op.status != "fail" and op.end < NEVER
    }
    for read in reads:
        shown = [name_of(element) for element in elements(read.result)]
        for name in shown:
            wrong = _strange(added.get(name), read)
            if wrong is not None:
                return wrong
            if read.end < present_since.get(name, (NEVER, read))[0]:
                present_since[name] = (read.end, read)
        if len(set(shown)) < len(shown):
            return "an element is in the set twice", [read]
    # Due elements only grow, so each read looks at those that became due since the last one, and at all of itself.
    due = sorted(present_since.items(), key=lambda entry: entry[1][0])
    names = [name for name, _ in due]
    position = 0
    for read in reads:
        while position < len(due) and due[position][1][0] < read.start_ns:
            position += 1
        missing = set(names[:position]).difference(name_of(element) for element in elements(read.result))
        if missing:
            first = min(missing, key=lambda name: present_since[name][0])
            witness = present_since[first][1]
            proof = [witness, read] if witness is added[first] else [added[first], witness, read]
            return f"{len(missing)} elements are missing that were there before", proof
    return None


def _strange(add: Op | None, read: Op) -> tuple[str, list[Op]] | None:
    if add is None:
        return "an element is in the set that nobody added", [read]
    if add.status == "fail":
        return "an add that was refused has taken effect", [add, read]
    if add.start_ns > read.end:
        return "an element was in the set before its add began", [read, add]
    return None
