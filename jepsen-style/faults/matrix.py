"""Many runs within a time budget: every nemesis once before any comes twice, the workloads in turn.

With one workload and one nemesis this is that run, again and again, with a new seed each time.
"""

import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from faults import doctor
from faults.nemeses import NEMESES
from faults.report.facts import RunFacts
from faults.report.overview import Line, line_of, write_overview
from faults.runner import CHAOS, NONE, Plan, outcome, run
from faults.workloads import WORKLOADS

OVERHEAD_SECONDS = 11.0
"""Of a run, apart from its faults: start 4, healing and final reads 5, judging and report 2."""
FAULT_SECONDS = (10.0, 60.0)
"""How long the faults of one run last, at least and at most."""
DISPLAY_SECONDS = 10.0
"""Between two lines of progress, where nobody looks at a terminal."""
OK, VIOLATION, UNKNOWN = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for on the command line."""

    minutes: float
    workloads: list[str]
    """Empty: all."""
    nemeses: list[str]
    """Empty: all that the machine can do, and chaos."""
    seed: int
    nodes: int
    folder: Path
    bug: str = ""
    front: str = ""


def run_matrix(request: Request) -> int:
    """Runs until the minutes are over, one run at least. Returns the exit status."""
    started, give_up = time.monotonic(), time.monotonic() + request.minutes * 60
    lacking = doctor.missing()
    skipped = doctor.skipped(request.nodes, lacking)
    nemeses = [name for name in request.nemeses or [NONE, *NEMESES, CHAOS] if name not in skipped]
    for name in request.nemeses:
        if name in skipped:
            print(f"skipped  {name}: {skipped[name]}")
    if not nemeses:
        print("nothing was run, so nothing has passed")
        return UNKNOWN
    seconds = min(max(request.minutes * 60 / len(nemeses) - OVERHEAD_SECONDS, FAULT_SECONDS[0]), FAULT_SECONDS[1])
    dice = random.Random(f"{request.seed}/matrix")
    workloads = request.workloads or [*WORKLOADS]
    queue: list[str] = []
    request.folder.mkdir(parents=True, exist_ok=True)
    show = _display()
    tally = Tally()
    number = 0
    while not number or time.monotonic() + seconds / 2 < give_up:
        if not queue:
            queue = dice.sample(nemeses, len(nemeses))
        if number % len(workloads) == 0:
            dice.shuffle(workloads)
        workload, nemesis = workloads[number % len(workloads)], queue.pop()
        folder = request.folder / f"{number + 1:03}-{workload}-{nemesis}"
        plan = Plan(
            workload=workload,
            nemesis=nemesis,
            seed=request.seed + number,
            seconds=seconds,
            folder=folder,
            nodes=request.nodes,
            bug=request.bug,
            front=request.front,
            skipped=skipped,
        )
        tally.add(plan, run(plan, show), show)
        number += 1
        unreached = [name for name in nemeses if name not in tally.nemeses]
        write_overview(
            request.folder,
            tally.lines,
            tally.counts,
            skipped | dict.fromkeys(unreached, "not reached in this time"),
            title=f"seed {request.seed}, {request.nodes} nodes"
            + (f", with the bug {request.bug}" if request.bug else ""),
        )
    print(tally.summary(time.monotonic() - started, skipped, unreached))
    (request.folder / "summary.json").write_text(
        json.dumps(tally.document(request, skipped, unreached), indent=1) + "\n"
    )
    print(f"everything is in {request.folder}; begin with index.html")
    return tally.status()


class Tally:
    """What came of the runs so far."""

    def __init__(self) -> None:
        self.nemeses: Counter[str] = Counter()
        self.workloads: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.failures: list[str] = []
        self.lines: list[Line] = []

    def add(self, plan: Plan, facts: RunFacts, show: Callable[[str], None]) -> None:
        verdict = outcome(facts)
        self.nemeses[plan.nemesis] += 1
        self.workloads[plan.workload] += 1
        self.counts.update(facts.counts)
        self.kinds[verdict.kind] += 1
        self.lines.append(line_of(facts, f"{plan.folder.name}/report.html"))
        line = (
            f"{verdict.kind:9}  {plan.workload} x {plan.nemesis}  seed {plan.seed}  "
            f"{facts.counts['operations']:,} operations, {facts.counts.get('faults', 0)} faults"
        )
        show("")
        print(line, flush=True)
        if not verdict.ok:
            for each in facts.verdicts:
                if not each.ok:
                    print(f"           {each.kind}: {each.checker}: {each.reason}", flush=True)
            print(f"           see {plan.folder}/report.html; again: {plan.command()}", flush=True)
            self.failures.append(f"{line}: {verdict.reason}")

    def status(self) -> int:
        if self.kinds["violation"]:
            return VIOLATION
        return OK if self.kinds["ok"] and not self.kinds["unknown"] else UNKNOWN

    def summary(self, seconds: float, skipped: dict[str, str], unreached: list[str]) -> str:
        counts = ", ".join(f"{name} {count:,}" for name, count in self.counts.items())
        lines = [
            "",
            f"{sum(self.kinds.values())} runs in {seconds / 60:.1f} min: "
            + ", ".join(f"{self.kinds[kind]} {kind}" for kind in ("ok", "violation", "unknown")),
            counts,
        ]
        lines += [f"skipped, not passed: {name}: {why}" for name, why in skipped.items()]
        if unreached:
            lines.append(f"not reached in this time, not passed: {', '.join(unreached)}")
        return "\n".join(lines + self.failures)

    def document(self, request: Request, skipped: dict[str, str], unreached: list[str]) -> dict[str, object]:
        return {
            "seed": request.seed,
            "nodes": request.nodes,
            "front": request.front or "drawn",
            "bug": request.bug,
            "runs": dict(self.kinds),
            "counts": dict(self.counts),
            "workloads": dict(self.workloads),
            "nemeses": dict(self.nemeses),
            "skipped": skipped,
            "unreached": unreached,
            "failures": self.failures,
        }


def _display() -> Callable[[str], None]:
    """One line that is written over on a terminal; now and then a line elsewhere."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1

        def overwrite(text: str) -> None:
            print(f"\r\x1b[K{text[:width]}", end="", flush=True)

        return overwrite
    last = [0.0]

    def now_and_then(text: str) -> None:
        if text and time.monotonic() - last[0] >= DISPLAY_SECONDS:
            last[0] = time.monotonic()
            print(text, flush=True)

    return now_and_then
