"""The page around the pictures. One file, nothing from elsewhere: it can be mailed, and opened in ten years."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from faults.checkers.verdict import Verdict, combine
from faults.report.availability import Recovery, Silence, recoveries, silences, span_of, together
from faults.report.facts import RunFacts
from faults.report.lanes import lanes
from faults.report.timeline import timeline

STYLE = Path(__file__).with_name("style.css")
SILENCES_MAX = 8
MARKS = {"ok": "✓", "violation": "✗", "unknown": "?"}
WORDS = {"ok": "No violation", "violation": "Violation", "unknown": "Unknown"}


def write_report(folder: Path, run: RunFacts) -> Path:
    """Writes `report.html` into the folder of a run, and returns its path."""
    path = folder / "report.html"
    path.write_text(page(run), encoding="utf-8")
    return path


def page(run: RunFacts) -> str:
    """The whole report."""
    verdict = combine(run.verdicts)
    found = silences(run)
    title = f"{WORDS[verdict.kind]}: {run.workload} under {run.nemesis}, seed {run.seed}"
    body = [
        _head(run, verdict),
        _tiles(run),
        _counterexamples(run.verdicts),
        _section("Over time", f'{_legend()}<div class="scroll">{timeline(run, found)}</div>', "wide")
        if run.history
        else "",
        '<div class="pair">',
        _section("Verdicts", _verdicts(run.verdicts)),
        _section("Recovery", _recoveries(recoveries(run, found)) + _silences(run, found)),
        "</div>",
        _section("Run", _config(run)),
    ]
    return document(title, "".join(body))


def document(title: str, body: str) -> str:
    """A whole HTML file."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _section(title: str, inner: str, style: str = "") -> str:
    return f'<section class="{style}"><h2>{escape(title)}</h2>\n{inner}</section>\n' if inner else ""


def _head(run: RunFacts, verdict: Verdict) -> str:
    seconds = span_of(run).length
    length = f"{seconds / 60:.1f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
    when = f", {escape(run.started_at)}" if run.started_at else ""
    return (
        f'<header class="{verdict.kind}"><div class="mark">{MARKS[verdict.kind]}</div><div>'
        f"<h1>{WORDS[verdict.kind]}</h1>"
        f'<p class="what"><b>{escape(run.workload)}</b> under <b>{escape(run.nemesis)}</b></p>'
        f'<p class="reason">{escape(verdict.reason)}</p></div>'
        f'<p class="run">seed <b>{run.seed}</b><br>{length}{when}</p></header>\n'
    )


def _tiles(run: RunFacts) -> str:
    tiles = [f"<div><b>{number:,}</b><span>{escape(name)}</span></div>" for name, number in run.counts.items()]
    return f'<div class="tiles">{"".join(tiles)}</div>\n' if tiles else ""


def _counterexamples(verdicts: Sequence[Verdict]) -> str:
    parts = []
    for each in verdicts:
        if each.kind == "violation":
            drawn = lanes(each.counterexample) if each.counterexample else ""
            says = f'<p class="says"><b>{escape(each.checker)}</b> {escape(each.reason)}</p>'
            parts.append(f'<div class="case">{says}<div class="scroll">{drawn}</div></div>')
    note = (
        '<p class="note">The fewest operations that cannot all be right. Order is exact, lengths are not. '
        "Equal values have equal colours; an open box with a question mark has an unknown outcome. "
        "On the right of each box: the node that was asked.</p>"
    )
    return (
        _section("What must not happen, and did", f'<div class="cases">{"".join(parts)}</div>{note}', "alarm")
        if parts
        else ""
    )


def _legend() -> str:
    keys = (
        ("ok", "answered"),
        ("fail", "refused"),
        ("info", "unknown"),
        ("p50", "p50"),
        ("p99", "p99"),
        ("silent", "no answer"),
    )
    return '<p class="legend">' + "".join(f'<span class="{key}">{words}</span>' for key, words in keys) + "</p>"


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    rows = []
    for each in verdicts:
        facts = ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in each.facts.items())
        rows.append(
            f'<tr><td class="kind {each.kind}">{MARKS[each.kind]}</td><td><b>{escape(each.checker)}</b><br>'
            f'{escape(each.reason)}<br><span class="note">{escape(facts)}</span></td></tr>'
        )
    return f'<table class="verdicts">{"".join(rows)}</table>'


def _recoveries(lines: Sequence[Recovery]) -> str:
    rows = [
        (
            escape(line.name), f"{line.times}", f"{line.seconds:.0f} s", f"{line.ok_per_second:,.0f}",
            _seconds(line.longest_silence), _seconds(line.recovered_median), _seconds(line.recovered_max),
        )
        for line in lines
    ]  # fmt: skip
    return (
        _table(("fault", "times", "in force", "answers/s", "longest silence", "recovered in", "at most"), rows)
        if rows
        else ""
    )


def _silences(run: RunFacts, found: Sequence[Silence]) -> str:
    if not found:
        return '<p class="note">There was no silence of a quarter of a second or more.</p>'
    span = span_of(run)
    rows = [
        (
            escape(", ".join(group[0].during) or "no fault"),
            escape("" if group[0].shard == "all" else ", ".join(silence.shard for silence in group)),
            f"{span.seconds(group[0].start_ns):.1f} s",
            f"<b>{group[0].seconds:.2f} s</b>",
        )
        for group in together(found)
    ]
    more = f'<p class="note">and {len(rows) - SILENCES_MAX} shorter ones</p>' if len(rows) > SILENCES_MAX else ""
    return "<h3>Silences</h3>" + _table(("fault", "shards", "at", "for"), rows[:SILENCES_MAX]) + more


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="numbers"><tr>{top}</tr>{body}</table></div>'


def _config(run: RunFacts) -> str:
    pairs = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(_number(value))}</dd></div>" for name, value in run.config.items()
    )
    links = " ".join(f'<a href="{escape(name)}">{escape(name)}</a>' for name in run.files)
    skipped = "".join(f"<li><b>{escape(name)}</b> {escape(why)}</li>" for name, why in run.skipped.items())
    parts = [f"<dl>{pairs}</dl>" if pairs else ""]
    parts.append(f'<p class="links">{links}</p>' if links else "")
    parts.append(f'<h3>Skipped on this machine, not passed</h3><ul class="skipped">{skipped}</ul>' if skipped else "")
    return "".join(parts)


def _number(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.4g}"
        case Mapping():
            return ", ".join(f"{name} {_number(inner)}" for name, inner in value.items()) or "none"
        case None | "" | [] | ():
            return "none"
        case list() | tuple():
            return ", ".join(map(_number, value))
        case _:
            return str(value)


def _seconds(value: float) -> str:
    return "" if not value else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
