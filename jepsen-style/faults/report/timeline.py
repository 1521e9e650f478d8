"""A run at one glance: which fault was in force, how many operations were answered, how fast, and which shard was silent.

All panels share one axis of time. Faults are bars in the first panel and faint columns behind all others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import log10

from faults.history import Op
from faults.report import svg
from faults.report.availability import SECOND, Silence, Span, events_of, quantile, shards_of, span_of
from faults.report.facts import NemesisEvent, RunFacts

WIDTH = 1180
GUTTER = 168
"""For names, on the left."""
RIGHT = WIDTH - 12
BUCKETS = 160
"""Of time; fewer where a run is so short that they would be emptier than this needs."""
BUCKET_MIN_NS = SECOND // 5
DOTS_MAX = 6_000
"""Operations drawn one by one; of more, every n-th. What was not answered is always drawn, up to as many again."""
LANES_MAX = 14
SHARDS_MAX = 12
DETAIL_CHARACTER = 6.0
"""Width of one, in the words on a fault's bar."""

HUES = ("#7c6cf0", "#e0862f", "#2f9e8f", "#d2557f", "#4a90d9", "#8a9a2b", "#b3689b", "#c0883e", "#5b8c5a", "#a06a50")
"""Of nemeses, by order of appearance. They lie behind data, so none is the blue, amber or red of outcomes."""


@dataclass(slots=True)
class _Canvas:
    """What was drawn so far, and where the next panel begins."""

    span: Span
    columns: list[tuple[NemesisEvent, str]]
    y: float = 20.0
    shapes: list[str] = field(default_factory=list)

    def x(self, moment_ns: float) -> float:
        return GUTTER + (RIGHT - GUTTER) * min(max(self.span.seconds(moment_ns) / self.span.length, 0.0), 1.0)

    def panel(self, name: str, note: str, height: float) -> tuple[float, float]:
        """Begins a panel. Returns its top and bottom."""
        top, bottom = self.y, self.y + height
        self.shapes += [
            svg.text(0, top + 13, name, "panel"),
            svg.text(0, top + 29, note, "note"),
            svg.rect(GUTTER, top, RIGHT - GUTTER, height, "ground"),
        ]
        for event, hue in self.columns:
            start, end = self.x(event.start_ns), self.x(self.span.end_ns if event.end_ns is None else event.end_ns)
            self.shapes.append(svg.rect(start, top, end - start, height, "column", fill=hue))
        self.y = bottom + 18
        return top, bottom


def timeline(run: RunFacts, silences: Sequence[Silence]) -> str:
    """One SVG."""
    events = events_of(run)
    hues = {name: HUES[number % len(HUES)] for number, name in enumerate(dict.fromkeys(event.name for event in events))}
    canvas = _Canvas(span_of(run), [(event, hues[event.name]) for event in events])
    _faults(canvas, hues)
    _throughput(canvas, run.history)
    _latency(canvas, run.history)
    _shards(canvas, run.history, silences)
    _wrong(canvas, run)
    _axis(canvas)
    return svg.figure(WIDTH, canvas.y, canvas.shapes, "faults, throughput, latency and availability over time")


def _faults(canvas: _Canvas, hues: dict[str, str]) -> None:
    names = list(hues)
    if not names:
        return
    # More than fit share the last lane.
    lane = {name: min(number, LANES_MAX - 1) for number, name in enumerate(names)}
    canvas.shapes.append(svg.text(0, canvas.y + 11, "faults", "panel"))
    top = canvas.y
    for name in names[:LANES_MAX]:
        y = top + 20 * lane[name]
        shown = name if lane[name] < LANES_MAX - 1 or len(names) <= LANES_MAX else "others"
        canvas.shapes += [
            svg.text(GUTTER - 10, y + 11, shown, "lane", anchor="end"),
            svg.line(GUTTER, y + 7.5, RIGHT, y + 7.5, "rule"),
        ]
    for event, hue in canvas.columns:
        end = canvas.span.end_ns if event.end_ns is None else event.end_ns
        start_x, end_x = canvas.x(event.start_ns), canvas.x(end)
        seconds = (end - event.start_ns) / SECOND
        title = f"{event.name}: {event.detail}\nfrom {canvas.span.seconds(event.start_ns):.2f} s, for {seconds:.2f} s"
        y = top + 20 * lane[event.name]
        canvas.shapes.append(
            svg.rect(start_x, y, max(end_x - start_x, 3), 15, "fault", title=title, radius=3, fill=hue)
        )
        if room := int((end_x - start_x - 8) / DETAIL_CHARACTER):
            words = event.detail if len(event.detail) <= room else f"{event.detail[: room - 1]}…"
            canvas.shapes.append(svg.text(start_x + 5, y + 11, words if room > 3 else "", "detail"))
    canvas.y = top + 20 * (max(lane.values()) + 1) + 12


def _buckets(span: Span) -> tuple[int, float]:
    """How many, and nanoseconds of each."""
    whole = span.end_ns - span.start_ns
    count = max(1, min(BUCKETS, int(whole / BUCKET_MIN_NS)))
    return count, max(whole / count, 1.0)


def _moment(op: Op) -> int:
    """When it was over for its client."""
    return op.start_ns if op.end_ns is None else op.end_ns


def _throughput(canvas: _Canvas, history: Sequence[Op]) -> None:
    top, bottom = canvas.panel("operations", "per second", 120)
    count, width = _buckets(canvas.span)
    rates = {status: [0.0] * count for status in ("ok", "fail", "info")}
    for op in history:
        bucket = min(int((_moment(op) - canvas.span.start_ns) / width), count - 1)
        rates[op.status][bucket] += SECOND / width
    peak = max((sum(rates[status][bucket] for status in rates) for bucket in range(count)), default=0.0) or 1.0

    def place(bucket: int, rate: float) -> tuple[float, float]:
        return canvas.x(canvas.span.start_ns + (bucket + 0.5) * width), bottom - (bottom - top - 8) * rate / peak

    for rate in svg.ticks(peak, 3):
        y = place(0, rate)[1]
        canvas.shapes += [
            svg.line(GUTTER, y, RIGHT, y, "rule"),
            svg.text(GUTTER - 10, y + 4, f"{rate:,.0f}", "tick", anchor="end"),
        ]
    below = [0.0] * count
    for status, values in rates.items():
        above = [low + value for low, value in zip(below, values, strict=True)]
        upper = [place(bucket, rate) for bucket, rate in enumerate(above)]
        if any(values):
            canvas.shapes.append(
                svg.area(upper, [place(bucket, rate) for bucket, rate in enumerate(below)], f"area {status}")
            )
        if status == "ok":
            canvas.shapes.append(svg.path(upper, "edge ok"))
        below = above


def _latency(canvas: _Canvas, history: Sequence[Op]) -> None:
    timed = [op for op in history if op.end_ns is not None]
    if not timed:
        return
    top, bottom = canvas.panel("latency", "each operation;", 190)
    canvas.shapes.append(svg.text(0, top + 44, "p50, p99 of answers", "note"))
    millis = sorted(_millis(op) for op in timed)
    low, high = log10(max(quantile(millis, 0.005), 0.02)), log10(max(millis[-1], 1.0))
    low = min(low, high - 1)

    def y(value: float) -> float:
        share = (log10(max(value, 1e-3)) - low) / (high - low)
        return bottom - 6 - (bottom - top - 14) * min(max(share, 0.0), 1.0)

    steps = (1,) if high - low > 2.5 else (1, 3)
    for value in [step * 10.0**power for power in range(int(low) - 1, int(high) + 2) for step in steps]:
        if low <= log10(value) <= high:
            canvas.shapes += [
                svg.line(GUTTER, y(value), RIGHT, y(value), "rule"),
                svg.text(GUTTER - 10, y(value) + 4, _duration(value), "tick", anchor="end"),
            ]
    for status in ("ok", "fail", "info"):
        mine = [op for op in timed if op.status == status]
        every = -(-len(mine) // DOTS_MAX) or 1
        canvas.shapes.append(
            svg.dots(((canvas.x(_moment(op)), y(_millis(op))) for op in mine[::every]), f"dots {status}")
        )
    for share, style in ((0.5, "p50"), (0.99, "p99")):
        for points in _quantiles(canvas, timed, share):
            canvas.shapes.append(svg.path([(x, y(value)) for x, value in points], f"edge {style}"))


def _quantiles(canvas: _Canvas, timed: Sequence[Op], share: float) -> Iterator[list[tuple[float, float]]]:
    """A line for each stretch without a silence."""
    count, width = _buckets(canvas.span)
    buckets: list[list[float]] = [[] for _ in range(count)]
    for op in timed:
        if op.ok:
            buckets[min(int((_moment(op) - canvas.span.start_ns) / width), count - 1)].append(_millis(op))
    points: list[tuple[float, float]] = []
    for number, values in enumerate(buckets):
        if values:
            points.append((canvas.x(canvas.span.start_ns + (number + 0.5) * width), quantile(sorted(values), share)))
        elif points:
            yield points
            points = []
    yield points


def _millis(op: Op) -> float:
    return max((_moment(op) - op.start_ns) / 1e6, 1e-3)


def _duration(millis: float) -> str:
    return f"{millis / 1000:g} s" if millis >= 1000 else f"{millis:g} ms" if millis >= 1 else f"{millis * 1000:g} µs"


def _shards(canvas: _Canvas, history: Sequence[Op], silences: Sequence[Silence]) -> None:
    """A row for each shard: where it answered, and in red where nobody was answered."""
    shards = list(shards_of(history).items())[:SHARDS_MAX]
    height = 16 * len(shards) + 4
    top, _ = canvas.panel("answers", "by shard; blank" if len(shards) > 1 else "blank", max(height, 46))
    canvas.shapes.append(svg.text(0, top + 44, "where nobody asked", "note"))
    count, width = _buckets(canvas.span)
    for row, (shard, ops) in enumerate(shards):
        y = top + 4 + 16 * row
        if len(shards) > 1:
            canvas.shapes.append(svg.text(GUTTER - 10, y + 10, shard, "tick", anchor="end"))
        filled = {min(int((_moment(op) - canvas.span.start_ns) / width), count - 1) for op in ops if op.ok}
        for start, end in _runs(sorted(filled)):
            left = canvas.x(canvas.span.start_ns + start * width)
            canvas.shapes.append(svg.rect(left, y, canvas.x(canvas.span.start_ns + end * width) - left, 11, "answers"))
        for silence in silences:
            if silence.shard == shard:
                left, right = canvas.x(silence.start_ns), canvas.x(silence.end_ns)
                title = f"no answer for {silence.seconds:.2f} s\n{', '.join(silence.during) or 'no fault in force'}"
                canvas.shapes.append(svg.rect(left, y, max(right - left, 2), 11, "silence", title=title, radius=2))


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Half-open ranges of successive numbers."""
    start = previous = None
    for number in numbers:
        if start is None or previous is None or number != previous + 1:
            if start is not None and previous is not None:
                yield start, previous + 1
            start = number
        previous = number
    if start is not None and previous is not None:
        yield start, previous + 1


def _wrong(canvas: _Canvas, run: RunFacts) -> None:
    """Where the first counter-example ends."""
    ends = [max(map(_moment, each.counterexample)) for each in run.verdicts if each.counterexample]
    if ends:
        x = canvas.x(min(ends))
        anchor = "end" if x > (GUTTER + RIGHT) / 2 else "start"
        canvas.shapes += [
            svg.line(x, 2, x, canvas.y - 14, "wrong"),
            svg.text(x + (-6 if anchor == "end" else 6), 11, "violation", "wrong-name", anchor=anchor),
        ]


def _axis(canvas: _Canvas) -> None:
    y = canvas.y - 6
    for second in svg.ticks(canvas.span.length, 10):
        x = canvas.x(canvas.span.start_ns + second * SECOND)
        anchor = "end" if x > RIGHT - 10 else "middle"
        canvas.shapes.append(svg.text(x, y + 8, f"{second:g} s", "tick", anchor=anchor))
    canvas.y += 14
