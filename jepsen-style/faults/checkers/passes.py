"""What can be said in linear time, before any search: the violations that people understand at once.

Each pass looks for one proof that no order exists, and finds it in O(n log n) however many outcomes are unknown. A pass
never accuses wrongly, but what it finds nothing in may still be a violation: that is the search's to say.

Zones are those of Gibbons and Korach ("Testing shared memories", 1997). Where each value is written once, the time during
which a register holds it is one stretch, from its write to its last observer. If an operation of the value ended before
another one of it started, the register held the value between these two moments: a *forward* zone. Two of them must not
overlap. If all operations of a value overlap, it was held at some time in their common part: a *backward* zone, which must
not lie within a forward zone of another value.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from faults.checkers.calls import NEVER, Call, writers
from faults.checkers.models import elements
from faults.history import Op

Found: TypeAlias = tuple[str, list[Op]]
"""A reason, and the operations that prove it."""
Pass: TypeAlias = Callable[["Evidence"], Found | None]


@dataclass(frozen=True, slots=True)
class Evidence:
    """All about one key."""

    calls: Sequence[Call]
    """Pruned, by start."""
    failed: Mapping[Hashable, Op]
    """Writes that certainly had no effect, by their value."""
    initial: Hashable | None


def seen_but_not_written(evidence: Evidence) -> Found | None:
    """An answer names a value that nobody wrote, or whose write was refused, or began after the answer."""
    started: dict[Hashable, Call] = {}
    for call in evidence.calls:
        if not call.pure:
            started.setdefault(call.footprint.writes, call)
    for call in evidence.calls:
        # What an unknown one would have seen, nobody has seen.
        for name in call.footprint.sees if call.end < NEVER else ():
            if name == evidence.initial:
                continue
            source = started.get(name)
            if source is None and name in evidence.failed:
                return "a write that was refused has taken effect", [evidence.failed[name], call.op]
            if source is None:
                return "a value was answered that nobody had written", [call.op]
            if call.end < source.start:
                return "a value was answered before its write began", [call.op, source.op]
    return None


@dataclass(frozen=True, slots=True)
class _Zone:
    low: float
    """When the first operation of the value had ended."""
    high: float
    """When the last one started. A forward zone has `low < high`."""
    first: Call | None
    """None: the initial value, held since ever."""
    last: Call | None


def stretches_overlap(evidence: Evidence) -> Found | None:
    """A register went back to an older value, or skipped one."""
    zones = _zones(evidence)
    forward = sorted((zone for zone in zones if zone.low < zone.high), key=lambda zone: zone.low)
    for one, other in pairwise(forward):
        if other.low < one.high:
            return "an older value came back after a newer one", _ops(one, other)
    lows = [zone.low for zone in forward]
    for zone in zones:
        if zone.low < zone.high:
            continue
        # Here `high` is where the common part begins, and `low` where it ends.
        position = bisect_right(lows, zone.high) - 1
        if position >= 0 and forward[position].low < zone.high and zone.low < forward[position].high:
            return "a newer value was overlooked", _ops(forward[position], zone)
    return None


def _zones(evidence: Evidence) -> list[_Zone]:
    only = writers(evidence.calls)
    first: dict[Hashable, Call] = {}
    last: dict[Hashable, Call] = {}
    for call in evidence.calls:
        if call.end == NEVER:
            continue
        for name in {call.footprint.writes, *call.footprint.sees}:
            if name in only or name == evidence.initial:
                if name not in first or call.end < first[name].end:
                    first[name] = call
                last[name] = call  # calls come by start
    zones = [
        _Zone(first[name].end, last[name].start, first[name], last[name])
        for name in first
        if name in only and name != evidence.initial
    ]
    written_again = any(call.footprint.writes == evidence.initial for call in evidence.calls if not call.pure)
    if evidence.initial in last and not written_again:
        zones.append(_Zone(-NEVER, last[evidence.initial].start, None, last[evidence.initial]))
    return zones


def _ops(*zones: _Zone) -> list[Op]:
    found: list[Op] = []
    for zone in zones:
        found += [call.op for call in (zone.first, zone.last) if call is not None and call.op not in found]
    return found


def lists_disagree(evidence: Evidence) -> Found | None:
    """A list with an element twice, or two lists of which neither begins with the other."""
    shown = [call for call in evidence.calls if call.op.ok and call.op.result is not None]
    shown.sort(key=lambda call: len(elements(call.op.result)))
    for call in shown:
        names = call.footprint.sees + ((call.footprint.writes,) if not call.pure else ())
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice:
            return "an element is in the list twice", [call.op]
    for one, other in pairwise(shown):
        shorter, longer = elements(one.op.result), elements(other.op.result)
        if list(longer[: len(shorter)]) != list(shorter):
            return "two lists were answered of which neither continues the other", [one.op, other.op]
    return None


def lists_go_back(evidence: Evidence) -> Found | None:
    """A list without an element that had been appended or answered before; or in an order against real time."""
    reads = [call for call in evidence.calls if call.op.ok and call.op.result is not None]
    if not reads:
        return None
    # They agree (`lists_disagree`), so the longest one knows all places.
    shown = _order(max(reads, key=lambda call: len(elements(call.op.result))))
    length = {name: place for place, name in enumerate(shown, start=1)}
    ended = sorted((call for call in evidence.calls if call.end < NEVER), key=lambda call: call.end)
    newest, witness = 0.0, None
    position = 0
    for call in reads:
        while position < len(ended) and ended[position].end < call.start:
            before = ended[position]
            position += 1
            reached = _reached(before, length)
            if reached > newest:
                newest, witness = reached, before
        if witness is not None and newest > len(elements(call.op.result)):
            return "an element is missing that was there before", [witness.op, call.op]
    return None


def _order(call: Call) -> list[Hashable]:
    """The names of the elements that it answered, in their order."""
    if call.pure:
        return list(call.footprint.sees)
    return [*call.footprint.sees, call.footprint.writes]


def _reached(call: Call, length: Mapping[Hashable, int]) -> float:
    """How long the list certainly was when this ended; without end for an element that no list ever shows."""
    if call.op.ok and call.op.result is not None:
        return len(elements(call.op.result))
    return length.get(call.footprint.writes, NEVER) if not call.pure else 0
