"""Is there an order? The search of Wing and Gong, with Lowe's memory, on what clients saw and nothing else.

An order is built from its beginning. Next can be any call that started before the first end among those not yet placed;
where none fits, the last choice is taken back. A configuration (which calls are placed, and the state) that was left once
without success is never entered again. Lowe, "Testing for linearizability", 2017; Wing and Gong, 1993.

What keeps it short:
- the placed calls are nearly a prefix of all calls: a configuration is that prefix's length and a few bits after it, and
  bits of their own for those of unknown outcome, which would stay behind for ever;
- a call that changes nothing and fits is placed at once and never taken back: if an order exists in which it stands later,
  then moving it here gives one, too.

Caveat: deciding this is NP-complete. Unique values and few unknown outcomes keep it linear in practice (`prune`); a search
that spends its budget says unknown.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from faults.checkers.calls import NEVER, Call, State, Step
from faults.checkers.verdict import Budget, Kind

STATES_BETWEEN_LOOKS_AT_THE_CLOCK = 4096


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search found."""

    kind: Kind
    states: int
    """Configurations that were entered."""
    needed: int = 0
    """Of a violation: no call from this one on (by start) was looked at."""
    blocked: Call | None = None
    """Of a violation: the call that no order could place, in those orders that went farthest."""


class _Timeline:
    """Starts and ends of the calls not yet placed, as a doubly linked list: placing a call takes both out in O(1).

    Node 0 is the head; call i starts at node i + 1 and ends at node n + i + 1.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        count = len(calls)
        self.count = count
        events: list[tuple[float, int, int]] = [(call.start, 0, number + 1) for number, call in enumerate(calls)]
        # At equal times starts come first: calls that touch are concurrent, which never accuses anybody wrongly.
        events += [(call.end, 1, count + number + 1) for number, call in enumerate(calls) if call.end < NEVER]
        events.sort()
        self.next = [0] * (2 * count + 1)
        self.previous = [0] * (2 * count + 1)
        self.starts_before = [0] * (2 * count + 1)
        last = started = 0
        for _, is_end, node in events:
            self.next[last], self.previous[node] = node, last
            self.starts_before[node] = started
            started += not is_end
            last = node
        self.next[last] = 0
        self.ends = [call.end < NEVER for call in calls]

    def take(self, number: int) -> None:
        after, before = self.next, self.previous
        for node in (number + 1, self.count + number + 1) if self.ends[number] else (number + 1,):
            after[before[node]] = after[node]
            before[after[node]] = before[node]

    def put_back(self, number: int) -> None:
        after, before = self.next, self.previous
        for node in (self.count + number + 1, number + 1) if self.ends[number] else (number + 1,):
            after[before[node]] = node
            before[after[node]] = node

    def fitting(self, state: State, steps: Sequence[Step], pure: Sequence[bool]) -> list[int]:
        """What can come next, the best last: one that changes nothing, and then nothing else; those that must be placed before
        those that need not be. Empty: the first end comes too early."""
        must: list[int] = []
        may: list[int] = []
        node = self.next[0]
        while 0 < node <= self.count:
            number = node - 1
            if steps[number](state) >= 0:
                if pure[number]:
                    return [number]
                (must if self.ends[number] else may).append(number)
            node = self.next[node]
        return (must + may)[::-1]

    def first_end(self) -> int:
        """The node of the first end among the calls not yet placed."""
        node = self.next[0]
        while 0 < node <= self.count:
            node = self.next[node]
        return node


def search(calls: Sequence[Call], budget: Budget | None = None) -> Outcome:
    """Whether some order of the calls, which come by start, agrees with real time and with every answer."""
    budget = budget or Budget()
    deadline = budget.deadline()
    timeline = _Timeline(calls)
    steps = [call.step for call in calls]
    pure = [call.pure for call in calls]
    # Bits of those that must be placed count from `low`, the first of them not placed; the others have bits of their own.
    place, loose_bit = _bits(calls)
    left = sum(timeline.ends)
    state: State = 0
    low = mask = loose = farthest = 0
    seen = {(0, 0, 0, 0)}
    stack: list[tuple[int, list[int], State, int, int, int]] = []
    options = timeline.fitting(state, steps, pure)
    while left:
        if not options:
            node = timeline.first_end()
            if timeline.starts_before[node] >= timeline.starts_before[farthest]:
                farthest = node
            if not stack:
                blocked = calls[farthest - len(calls) - 1]
                return Outcome("violation", len(seen), timeline.starts_before[farthest], blocked)
            chosen, options, state, low, mask, loose = stack.pop()
            timeline.put_back(chosen)
            left += timeline.ends[chosen]
            continue
        chosen = options.pop()
        new = steps[chosen](state)
        low_new, mask_new, loose_new = low, mask, loose
        if timeline.ends[chosen]:
            mask_new |= 1 << (place[chosen] - low)
            while mask_new & 1:
                mask_new >>= 1
                low_new += 1
        else:
            loose_new |= loose_bit[chosen]
        key = (low_new, mask_new, loose_new, new)
        if key in seen:
            continue
        seen.add(key)
        if len(seen) > budget.states_max:
            return Outcome("unknown", len(seen))
        if len(seen) % STATES_BETWEEN_LOOKS_AT_THE_CLOCK == 0 and time.monotonic() > deadline:
            return Outcome("unknown", len(seen))
        stack.append((chosen, options, state, low, mask, loose))
        timeline.take(chosen)
        left -= timeline.ends[chosen]
        state, low, mask, loose = new, low_new, mask_new, loose_new
        options = timeline.fitting(state, steps, pure)
    return Outcome("ok", len(seen))


def _bits(calls: Sequence[Call]) -> tuple[list[int], list[int]]:
    place, loose_bit = [0] * len(calls), [0] * len(calls)
    musts = loose = 0
    for number, call in enumerate(calls):
        if call.end < NEVER:
            place[number], musts = musts, musts + 1
        else:
            loose_bit[number], loose = 1 << loose, loose + 1
    return place, loose_bit
