"""All runs of one command on one page: a line for each, with its verdict, its shape over time, and the way to its report.

Written anew after each run, so that it can be looked at meanwhile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from faults.checkers.verdict import Kind, combine
from faults.report import svg
from faults.report.availability import SECOND, events_of, silences, span_of
from faults.report.facts import RunFacts
from faults.report.page import MARKS, document

WIDTH, HEIGHT = 300.0, 34.0
BUCKETS = 75
WORDS = {"ok": "No violation", "violation": "Violation", "unknown": "Not all could be judged"}
"""Of all runs together."""


@dataclass(frozen=True, slots=True)
class Line:
    """One run."""

    link: str
    """Its report, from the page."""
    kind: Kind
    workload: str
    nemesis: str
    seed: int
    reason: str
    operations: int
    faults: int
    longest_silence: float
    """Seconds; 0: there was none."""
    picture: str


def line_of(run: RunFacts, link: str) -> Line:
    """What the page keeps of a run: not its history."""
    verdict, found = combine(run.verdicts), silences(run)
    return Line(
        link=link,
        kind=verdict.kind,
        workload=run.workload,
        nemesis=run.nemesis,
        seed=run.seed,
        reason="" if verdict.ok else verdict.reason,
        operations=len(run.history),
        faults=len(run.nemesis_events),
        longest_silence=found[0].seconds if found else 0.0,
        picture=_shape(run),
    )


def write_overview(
    folder: Path, lines: Sequence[Line], counts: Mapping[str, int], not_done: Mapping[str, str], *, title: str
) -> Path:
    """Writes `index.html` into the folder of all runs, and returns its path. `not_done`: faults, and why not."""
    kinds = [line.kind for line in lines]
    kind: Kind = "violation" if "violation" in kinds else "unknown" if "unknown" in kinds or not kinds else "ok"
    order = {"violation": 0, "unknown": 1, "ok": 2}
    rows = "".join(map(_row, sorted(lines, key=lambda line: order[line.kind])))
    tiles = "".join(f"<div><b>{number:,}</b><span>{escape(name)}</span></div>" for name, number in counts.items())
    missing = "".join(f"<li><b>{escape(name)}</b> {escape(why)}</li>" for name, why in not_done.items())
    body = (
        f'<header class="{kind}"><div class="mark">{MARKS[kind]}</div><div><h1>{WORDS[kind]}</h1>'
        f'<p class="what"><b>{kinds.count("ok")}</b> of <b>{len(kinds)}</b> runs ok</p>'
        f'<p class="reason">{escape(title)}</p></div></header>\n'
        f'<div class="tiles">{tiles}</div>\n'
        '<section><h2>Runs</h2><p class="legend"><span class="ok">answers per second</span>'
        '<span class="band">a fault in force</span><span class="silent">no answer</span></p>'
        '<div class="scroll"><table class="runs"><tr><th></th><th>workload</th><th>faults</th><th>over time</th>'
        "<th>operations</th><th>faults</th><th>longest silence</th><th>seed</th></tr>"
        f"{rows}</table></div></section>\n"
    )
    if missing:
        body += f'<section><h2>Not done, not passed</h2><ul class="skipped">{missing}</ul></section>\n'
    path = folder / "index.html"
    path.write_text(document(f"{WORDS[kind]}: {len(kinds)} runs", body), encoding="utf-8")
    return path


def _row(line: Line) -> str:
    silence = f"{line.longest_silence:.2f} s" if line.longest_silence else ""
    reason = f'<br><span class="note">{escape(line.reason)}</span>' if line.reason else ""
    return (
        f'<tr><td class="kind {line.kind}">{MARKS[line.kind]}</td>'
        f'<td><a href="{escape(line.link)}">{escape(line.workload)}</a></td><td>{escape(line.nemesis)}{reason}</td>'
        f"<td>{line.picture}</td><td>{line.operations:,}</td><td>{line.faults}</td><td>{silence}</td>"
        f"<td>{line.seed}</td></tr>\n"
    )


def _shape(run: RunFacts) -> str:
    """Answers per second as an area, faults as bands behind it, silences as red marks below it."""
    span = span_of(run)

    def x(moment_ns: float) -> float:
        return WIDTH * min(max(span.seconds(moment_ns) / span.length, 0.0), 1.0)

    shapes = [svg.rect(0, 0, WIDTH, HEIGHT, "ground", radius=3)]
    for event in events_of(run):
        start, end = x(event.start_ns), x(span.end_ns if event.end_ns is None else event.end_ns)
        shapes.append(svg.rect(start, 0, end - start, HEIGHT, "band", title=f"{event.name}: {event.detail}"))
    rates = [0] * BUCKETS
    for op in run.history:
        if op.ok and op.end_ns is not None:
            rates[min(int(x(op.end_ns) / WIDTH * BUCKETS), BUCKETS - 1)] += 1
    peak, base = max(rates) or 1, HEIGHT - 5
    upper = [((number + 0.5) * WIDTH / BUCKETS, base - (base - 3) * rate / peak) for number, rate in enumerate(rates)]
    per_second = peak * BUCKETS / span.length
    shapes += [
        svg.area(upper, [(point, base) for point, _ in upper], "area ok"),
        svg.path(upper, "edge ok"),
    ]
    for silence in silences(run):
        left, right = x(silence.start_ns), x(silence.end_ns)
        shapes.append(svg.rect(left, HEIGHT - 4, max(right - left, 1.5), 4, "silence"))
    seconds = (span.end_ns - span.start_ns) / SECOND
    return svg.figure(WIDTH, HEIGHT, shapes, f"{seconds:.0f} s, at most {per_second:,.0f} answers a second")
