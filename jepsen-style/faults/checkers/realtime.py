"""Real time against a claimed order: the sweep that several checkers share."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from faults.history import Op

Position: TypeAlias = Callable[[Op], float]


def preceded(ops: Iterable[Op], position: Position) -> Iterator[tuple[Op, Op]]:
    """Each operation, by start, with the one of greatest position among all that had ended before it started.

    Operations that touch are concurrent. Those that nothing precedes are left out.
    """
    by_start = sorted(ops, key=lambda op: op.start_ns)
    by_end = sorted((op for op in by_start if op.ok), key=lambda op: op.end)
    newest: Op | None = None
    ended = 0
    for op in by_start:
        while ended < len(by_end) and by_end[ended].end < op.start_ns:
            if newest is None or position(by_end[ended]) > position(newest):
                newest = by_end[ended]
            ended += 1
        if newest is not None:
            yield op, newest
