"""What a report tells about: one run of one workload under one nemesis."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from faults.checkers.verdict import Verdict
from faults.history import Json, Op


class NemesisEvent(NamedTuple):
    """A fault, from its injection until it was healed. A plain tuple in this order will do."""

    start_ns: int
    """On the clock of the history."""
    end_ns: int | None
    """None: never healed. A kill ends when the process was started again."""
    name: str
    """Of the nemesis: `kill leader`, `partition halves`. Equal names get the same colour."""
    detail: str
    """For people: which nodes, which links."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One run, all of it."""

    workload: str
    nemesis: str
    seed: int
    config: Mapping[str, Json]
    """Whatever reproduces the run: nodes, shards, clients, minutes, settings."""
    history: Sequence[Op]
    nemesis_events: Sequence[NemesisEvent | tuple[int, int | None, str, str]]
    verdicts: Sequence[Verdict]
    counts: Mapping[str, int]
    """Operations, kills, partitions, power cuts, ...: a tile for each, in this order."""
    files: Sequence[str] = ()
    """Of the run: paths relative to the report's folder; they become links."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """What this machine cannot do, and why: shown as skipped, never as passed."""
    started_at: str = ""
    """Date and time, for people."""


def write_facts(path: Path, run: RunFacts) -> None:
    """All but the history, as JSON for other programs. Times are those of the history."""
    document = {
        "workload": run.workload,
        "nemesis": run.nemesis,
        "seed": run.seed,
        "started_at": run.started_at,
        "config": dict(run.config),
        "counts": dict(run.counts),
        "verdicts": [
            {"kind": each.kind, "checker": each.checker, "reason": each.reason, "facts": dict(each.facts)}
            for each in run.verdicts
        ],
        "faults": [NemesisEvent(*each)._asdict() for each in run.nemesis_events],
        "skipped": dict(run.skipped),
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
