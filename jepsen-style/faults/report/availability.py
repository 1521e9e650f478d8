"""When the cluster answered, and when not: rates, latencies, silences, and how long it took to recover.

All is computed from the clients' history. A *silence* is a time in which a shard answered nobody although it was asked; where
operations do not name their shard, all keys count as one.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from faults.history import Op
from faults.report.facts import NemesisEvent, RunFacts

SECOND = 1_000_000_000

SILENCE_MIN_NS = SECOND // 4
"""Shorter pauses are no outage: an operation on a busy machine takes milliseconds, an election a second."""
REST_NS = SECOND // 2
"""Between a refusal and the next try; after longer ones nobody asked."""
AFTERMATH_NS = 5 * SECOND
"""A silence that begins this soon after a fault was healed still belongs to it."""


@dataclass(frozen=True, slots=True)
class Span:
    """The time of a run."""

    start_ns: int
    end_ns: int

    def seconds(self, moment_ns: float) -> float:
        """Since the beginning."""
        return (moment_ns - self.start_ns) / SECOND

    @property
    def length(self) -> float:
        return max(self.seconds(self.end_ns), 1e-3)


@dataclass(frozen=True, slots=True)
class Silence:
    """Nobody was answered."""

    shard: str
    start_ns: int
    end_ns: int
    during: tuple[str, ...]
    """The faults in force at some time of it; where there is none, those healed shortly before."""

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / SECOND


@dataclass(frozen=True, slots=True)
class Recovery:
    """What one nemesis did to availability, over all times that it struck."""

    name: str
    times: int
    seconds: float
    """In force, all together."""
    ok_per_second: float
    """Answered while it was in force."""
    longest_silence: float
    """Seconds; 0 where there was none."""
    recovered_median: float
    """Seconds from healing until every shard had answered an operation that began after it."""
    recovered_max: float


def span_of(run: RunFacts) -> Span:
    """From the first start to the last end, faults included."""
    times = [op.start_ns for op in run.history] + [op.end_ns for op in run.history if op.end_ns is not None]
    for event in events_of(run):
        times += [event.start_ns, event.start_ns if event.end_ns is None else event.end_ns]
    return Span(min(times), max(times)) if times else Span(0, SECOND)


def events_of(run: RunFacts) -> list[NemesisEvent]:
    """By their starts."""
    return sorted((NemesisEvent(*event) for event in run.nemesis_events), key=lambda event: event.start_ns)


def shards_of(history: Sequence[Op]) -> dict[str, list[Op]]:
    """The operations on each shard. One that was not answered belongs to the shard of its key."""
    known = {op.key: str(op.extra["shard"]) for op in history if op.extra.get("shard") is not None}
    shards: dict[str, list[Op]] = {}
    for op in history:
        shards.setdefault(known.get(op.key, "all") if known else "all", []).append(op)
    if len(shards) > 1:
        # Keys that were never answered: nobody knows where they would have been.
        shards.pop("all", None)
    return dict(sorted(shards.items(), key=lambda entry: (len(entry[0]), entry[0])))


def silences(run: RunFacts) -> list[Silence]:
    """The longest first. A silence begins when the last answer has come and somebody waits for the next one."""
    span, events = span_of(run), events_of(run)
    found = []
    for shard, ops in shards_of(run.history).items():
        # Without an end nobody knows when its client gave up: it waits to the end.
        asked = sorted((op.start_ns, span.end_ns if op.end_ns is None else op.end_ns) for op in ops)
        waiting_until = list(accumulate((over for _, over in asked), max))
        answers = sorted(op.end_ns for op in ops if op.ok and op.end_ns is not None)
        for last, answered in pairwise([asked[0][0], *answers, waiting_until[-1]]):
            for start, end in _waits(asked, waiting_until, last, answered):
                if end - start >= SILENCE_MIN_NS:
                    found.append(Silence(shard, start, end, tuple(_in_force(events, start, end))))
    return sorted(found, key=lambda silence: silence.start_ns - silence.end_ns)


def _waits(
    asked: Sequence[tuple[int, int]], waiting_until: Sequence[int], last: int, answered: int
) -> Iterator[tuple[int, int]]:
    """When somebody waited, between one answer and the next. Whoever was refused and rests still waits."""
    position = bisect_left(asked, (last, 0))
    start = waited = last
    if position:
        waited = max(waited, waiting_until[position - 1])
    while position < len(asked) and asked[position][0] < answered:
        if asked[position][0] > waited + (REST_NS if waited > start else 0):
            yield start, waited
            start = asked[position][0]
        waited = max(waited, waiting_until[position])
        position += 1
    yield start, min(waited, answered)


def together(found: Sequence[Silence]) -> list[list[Silence]]:
    """Silences of several shards that began at about the same time, the longest of them first."""
    groups: list[list[Silence]] = []
    for silence in found:
        for group in groups:
            if abs(group[0].start_ns - silence.start_ns) < SECOND and all(
                silence.shard != each.shard for each in group
            ):
                group.append(silence)
                break
        else:
            groups.append([silence])
    return groups


def _in_force(events: Sequence[NemesisEvent], start: int, end: int) -> Iterator[str]:
    """The faults in force; where there is none, those that were healed shortly before."""

    def names(aftermath: int) -> dict[str, None]:
        return {
            event.name: None
            for event in events
            if event.start_ns < end and start < (end if event.end_ns is None else event.end_ns) + aftermath
        }

    yield from names(0) or names(AFTERMATH_NS)


def recoveries(run: RunFacts, found: Sequence[Silence]) -> list[Recovery]:
    """One line for each nemesis, in the order of their first strikes."""
    span, events = span_of(run), events_of(run)
    answered = sorted(op.end_ns for op in run.history if op.ok and op.end_ns is not None)
    by_start = [
        sorted((op.start_ns, op.end_ns) for op in ops if op.ok and op.end_ns is not None)
        for ops in shards_of(run.history).values()
    ]
    lines = []
    for name in dict.fromkeys(event.name for event in events):
        mine = [
            (event.start_ns, span.end_ns if event.end_ns is None else event.end_ns)
            for event in events
            if event.name == name
        ]
        seconds = sum(end - start for start, end in mine) / SECOND
        count = sum(bisect_left(answered, end) - bisect_left(answered, start) for start, end in mine)
        recovered = sorted(
            max((_first_answer(ops, end) for ops in by_start), default=0.0) for _, end in mine if end < span.end_ns
        )
        longest = max((silence.seconds for silence in found if name in silence.during), default=0.0)
        lines.append(
            Recovery(
                name, len(mine), seconds, count / seconds if seconds else 0.0, longest,
                recovered[len(recovered) // 2] if recovered else 0.0, recovered[-1] if recovered else 0.0,
            )
        )  # fmt: skip
    return lines


def _first_answer(ops: Sequence[tuple[int, int]], healed: int) -> float:
    position = bisect_left(ops, (healed, 0))
    return (min(end for _, end in ops[position : position + 20]) - healed) / SECOND if position < len(ops) else 0.0


def quantile(values: Sequence[float], share: float) -> float:
    """Of sorted values."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0
