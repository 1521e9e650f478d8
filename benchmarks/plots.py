"""The results as pictures: SVG by hand, so that nothing has to be installed for them. Pure.

One picture has one unit on each axis; both axes may be logarithmic, which ratios are read from.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.growth import KEY_VALUE_BYTES, VALUE_KEYS
from benchmarks.measurement import PEER, Measurement, Summary

WIDTH, HEIGHT = 800, 460
LEFT, RIGHT, TOP, BOTTOM = 80, 200, 50, 60
COLOURS = {"raftcache": "#1f6fb4", PEER: "#d1495b"}
OTHER_COLOURS = ("#1f6fb4", "#d1495b", "#3a7d44", "#8a5fbf")
DASHES = {"p50": "2 3", "p99": "", "p99.9": "8 4", "put": "", "get": "6 4"}
LATENCIES_MS: dict[str, Callable[[Summary], float]] = {
    "p50": lambda each: each.p50_us / 1000,
    "p99": lambda each: each.p99_us / 1000,
    "p99.9": lambda each: each.p999_us / 1000,
}
STEPS = (1, 2, 5)
LOG_STEPS = ((1,), STEPS, (1, 1.5, 2, 3, 4, 5, 7))
"""Within a decade: as few as give `TICKS_MIN`."""
TICKS_MIN = 4
MIB = 1 << 20

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line of a chart; points from left to right."""

    name: str
    points: Sequence[Point]
    colour: str
    dash: str = ""


@dataclass(frozen=True)
class Axis:
    """From the smallest value to the largest; ticks at round numbers within."""

    label: str
    low: float
    high: float
    log: bool

    def place(self, value: float) -> float:
        """Where between 0 and 1 a value lies."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round numbers: on a logarithmic axis within decades, else equal steps."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            choices = [self._within(step * 10.0**decade for decade in decades for step in steps) for steps in LOG_STEPS]
            return next((found for found in choices if len(found) >= TICKS_MIN), choices[-1])
        rough = (self.high - self.low) / 6
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(step * power for step in (*STEPS, 10) if step * power >= rough * (1 - 1e-9))
        return self._within(
            step * number for number in range(math.floor(self.low / step), math.ceil(self.high / step) + 1)
        )

    def _within(self, ticks: Iterable[float]) -> list[float]:
        return [tick for tick in ticks if self.low * (1 - 1e-9) <= tick <= self.high * (1 + 1e-9)]


def axis(label: str, values: Iterable[float], *, log: bool) -> Axis:
    """One that holds all of `values`, and zero where it is not logarithmic."""
    found = list(values)
    low, high = min(found), max(found)
    if log:
        return Axis(label, low / 1.15, high * 1.15, log)
    return Axis(label, min(0.0, low), high * 1.1 or 1.0, log)


def chart(title: str, x_label: str, y_label: str, lines: Sequence[Line], *, log: bool = True) -> str:
    """An SVG document. `log` is about both axes; values at or below zero have no place on a logarithmic one."""
    if log:
        lines = [
            Line(line.name, [p for p in line.points if p[0] > 0 and p[1] > 0], line.colour, line.dash) for line in lines
        ]
    lines = [line for line in lines if line.points]
    assert lines, f"{title}: there is nothing to draw"
    x = axis(x_label, (point[0] for line in lines for point in line.points), log=log)
    y = axis(y_label, (point[1] for line in lines for point in line.points), log=log)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="28" font-size="16">{escape(title)}</text>',
        *_grid(x, y),
    ]
    for number, line in enumerate(lines):
        parts += _drawn(line, x, y)
        parts += _legend(line, number)
    return "\n".join((*parts, "</svg>")) + "\n"


def _across(x: Axis, value: float) -> float:
    return round(LEFT + x.place(value) * (WIDTH - LEFT - RIGHT), 1)


def _up(y: Axis, value: float) -> float:
    return round(HEIGHT - BOTTOM - y.place(value) * (HEIGHT - TOP - BOTTOM), 1)


def _grid(x: Axis, y: Axis) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in x.ticks():
        at = _across(x, tick)
        parts.append(f'<path d="M{at} {TOP}V{bottom}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{at}" y="{bottom + 18}" text-anchor="middle">{short(tick)}</text>')
    for tick in y.ticks():
        at = _up(y, tick)
        parts.append(f'<path d="M{LEFT} {at}H{right}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4}" text-anchor="end">{short(tick)}</text>')
    parts.append(f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#222"/>')
    middle = (TOP + bottom) / 2
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 16}" text-anchor="middle">{escape(x.label)}</text>')
    parts.append(f'<text transform="translate(20 {middle}) rotate(-90)" text-anchor="middle">{escape(y.label)}</text>')
    return parts


def _drawn(line: Line, x: Axis, y: Axis) -> list[str]:
    places = [(_across(x, one), _up(y, other)) for one, other in line.points]
    path = "L".join(f"{across} {up}" for across, up in places)
    parts = [f'<path d="M{path}" fill="none" stroke="{line.colour}" stroke-width="2" stroke-dasharray="{line.dash}"/>']
    parts += [f'<circle cx="{across}" cy="{up}" r="2.5" fill="{line.colour}"/>' for across, up in places]
    return parts


def _legend(line: Line, number: int) -> list[str]:
    left, at = WIDTH - RIGHT + 16, TOP + 12 + 20 * number
    return [
        f'<path d="M{left} {at}h32" stroke="{line.colour}" stroke-width="2" stroke-dasharray="{line.dash}"/>',
        f'<text x="{left + 40}" y="{at + 4}">{escape(line.name)}</text>',
    ]


def short(number: float) -> str:
    """As in 0.5, 20, 5k, 2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"


# --- What is drawn ----------------------------------------------------------------------------------------------------


def pictures(summaries: Sequence[Summary], measurements: Sequence[Measurement]) -> dict[str, str]:
    """SVG documents by name: those of whatever was measured."""
    return {**_openloop(summaries), **_sizes(summaries), **_soak(measurements)}


def _openloop(summaries: Sequence[Summary]) -> dict[str, str]:
    found = {}
    for operation in ("put", "get"):
        mine = [each for each in summaries if each.generator == "open" and each.load.startswith(operation)]
        lines = [
            Line(
                f"{system} {name}",
                [(each.details["offered"], figure(each)) for each in mine if each.system == system],
                COLOURS[system],
                DASHES[name],
            )
            for system in COLOURS
            for name, figure in LATENCIES_MS.items()
        ]
        if mine:
            found[f"openloop-{operation}"] = chart(
                f"{operation}: latency from the time a call was due, against offered load",
                "calls offered a second",
                "ms",
                lines,
            )
    return found


def _sizes(summaries: Sequence[Summary]) -> dict[str, str]:
    sized = [each for each in summaries if "value_bytes" in each.details]
    by_keys = [each for each in sized if each.details["value_bytes"] == KEY_VALUE_BYTES]
    by_values = [each for each in sized if each.details["value_bytes"] != KEY_VALUE_BYTES]
    found = {}
    for name, some, across, label in (
        ("keys", by_keys, "keys", f"keys, of {KEY_VALUE_BYTES} bytes each"),
        ("values", by_values, "value_bytes", f"bytes of a value, {VALUE_KEYS:,} keys"),
    ):
        for what, figure, unit in (
            ("throughput", lambda each: each.operations_per_second, "calls a second"),
            ("p99", LATENCIES_MS["p99"], "ms"),
        ):
            if some:
                lines = _by_system(some, across, figure)
                found[f"sizes-{name}-{what}"] = chart(f"{what} as the data grows, 64 outstanding", label, unit, lines)
    return found


def _by_system(summaries: Sequence[Summary], across: str, figure: Callable[[Summary], float]) -> list[Line]:
    return [
        Line(
            f"{system} {operation}",
            [
                (each.details[across], figure(each))
                for each in summaries
                if each.system == system and each.load.startswith(operation)
            ],
            COLOURS[system],
            DASHES[operation],
        )
        for system in COLOURS
        for operation in ("put", "get")
    ]


def _soak(measurements: Sequence[Measurement]) -> dict[str, str]:
    windows = [each for each in measurements if each.load.endswith(", soak")]
    if not windows:
        return {}
    latency = [
        Line(operation, _over_time(windows, operation, lambda each: each.p99_us / 1000), colour)
        for operation, colour in zip(("put", "get"), OTHER_COLOURS, strict=False)
    ]
    nodes = sorted(windows[0].anonymous_bytes)
    memory = [
        Line(node, _over_time(windows, "put", lambda each, node=node: each.anonymous_bytes[node] / MIB), colour)  # type: ignore[misc]
        for node, colour in zip(nodes, OTHER_COLOURS, strict=False)
    ]
    return {
        "soak-p99": chart("soak: p99 of each minute", "minutes", "ms", latency, log=False),
        "soak-memory": chart("soak: anonymous memory of each node", "minutes", "MiB", memory, log=False),
    }


def _over_time(windows: Sequence[Measurement], operation: str, figure: Callable[[Measurement], float]) -> list[Point]:
    points, passed = [], 0.0
    for each in windows:
        if each.load.startswith(operation):
            passed += each.seconds / 60
            points.append((passed, figure(each)))
    return points
