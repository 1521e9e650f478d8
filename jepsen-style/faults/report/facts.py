"""What a report tells about: one run of one workload under one nemesis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    log_files: Sequence[str] = ()
    """Paths relative to the report's folder; they become links."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """What this machine cannot do, and why: shown as skipped, never as passed."""
    started_at: str = ""
    """Date and time, for people."""
