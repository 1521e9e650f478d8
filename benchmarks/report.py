"""The results for people: tables of medians, what was wanted, and everything that must not be overlooked."""

from collections.abc import Iterable, Sequence

from benchmarks.measurement import PEER, STUBS, Measurement, Summary
from benchmarks.wanted import Verdict

MIB = 1 << 20


def _cells(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns; the first three to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


HEAD = (
    *("load", "by", "system", "out", "ops/s", "spread", "p50 us", "p99 us", "errors", "x etcd", "p99 x"),
    *("cores L+F+F", "cpu us/op", "cpu x", "anon MiB", "file MiB", "cmd/fsync", "fsync us", "others"),
)


def throughput_table(summaries: Iterable[Summary]) -> str:
    """One row for each load and system; medians of the runs."""
    rows: list[Sequence[str]] = [HEAD]
    rows.extend(
        (
            each.load,
            each.generator,
            each.system,
            str(each.outstanding),
            f"{each.operations_per_second:,.0f}",
            f"{each.spread:.0%}",
            f"{each.p50_us:,.0f}",
            f"{each.p99_us:,.0f}",
            str(each.errors),
            _number(each.ratio) if each.system != PEER else "",
            _number(each.p99_ratio) if each.system != PEER else "",
            "+".join(f"{cores:.2f}" for cores in each.cores),
            f"{each.cpu_us:,.0f}",
            _number(each.cpu_ratio) if each.system != PEER else "",
            f"{each.anonymous_bytes / MIB:.0f}",
            f"{each.file_bytes / MIB:.0f}",
            _detail(each, "commands_per_fsync"),
            _detail(each, "fsync_us"),
            f"{each.others_cpu_share:.0%}",
        )
        for each in summaries
    )
    return _cells(rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _detail(summary: Summary, name: str) -> str:
    return f"{summary.details[name]:,.0f}" if name in summary.details else ""


def loader_table(summaries: Sequence[Summary]) -> str:
    """Our loader beside h2load on the same request: what the loader's figures are worth."""
    by_key = {(each.load, each.outstanding, each.system, each.generator): each for each in summaries}
    rows: list[Sequence[str]] = [("load", "system", "out", "loader/s", "h2load/s", "loader : h2load")]
    for (load, outstanding, system, generator), ours in by_key.items():
        other = by_key.get((load, outstanding, system, "h2load"))
        if generator == "loader" and other is not None and other.operations_per_second:
            share = ours.operations_per_second / other.operations_per_second
            rows.append(
                (
                    load,
                    system,
                    str(outstanding),
                    f"{ours.operations_per_second:,.0f}",
                    f"{other.operations_per_second:,.0f}",
                    f"{share:.2f}",
                )
            )
    return _cells(rows) if len(rows) > 1 else ""


def client_table(summaries: Sequence[Summary]) -> str:
    """The Python client beside the ordinary one: calls a second, and what one costs the calling process."""
    stubs = {(each.load, each.outstanding): each for each in summaries if each.generator == STUBS}
    rows: list[Sequence[str]] = [("load", "out", "client", "calls/s", "cpu us/call", "x stubs")]
    for each in summaries:
        other = stubs.get((each.load, each.outstanding))
        if other is not None and other.operations_per_second:
            rows.append(
                (
                    each.load,
                    str(each.outstanding),
                    each.generator,
                    f"{each.operations_per_second:,.0f}",
                    _detail(each, "client_cpu_us"),
                    f"{each.operations_per_second / other.operations_per_second:.2f}",
                )
            )
    return _cells(rows) if len(rows) > 1 else ""


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """What is owed and what came of it; beside it what is hoped for."""
    rows: list[Sequence[str]] = [("", "wanted", "what", "measured", "aim", "")]
    for each in verdicts:
        reached = "" if each.aim_met is None else "ok" if each.aim_met else "missed"
        rows.append(("ok" if each.met else "NOT MET", each.wanted, each.what, each.measured, each.aim, reached))
    return _cells(rows)


def problems_of(measurements: Iterable[Measurement]) -> list[str]:
    """Everything that makes a figure mean something else than it says."""
    return [
        f"{m.load}, {m.generator}, {m.system}, {m.outstanding} outstanding, run {m.run}: {problem}"
        for m in measurements
        for problem in m.problems
    ]
