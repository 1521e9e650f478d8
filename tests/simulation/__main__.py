"""`make sim`: seeds until the time is up, or one seed again; `python -m tests.simulation --help`."""

from __future__ import annotations

import argparse
import gc
import sys
import time
from dataclasses import dataclass, field, replace

from tests.simulation.lanes import Lanes
from tests.simulation.plan import Plan, draw_plan
from tests.simulation.run import Verdict, run
from tests.simulation.shrink import shrink


@dataclass(slots=True)
class Totals:
    """Of many seeds."""

    seeds: int = 0
    events: int = 0
    commands: int = 0
    simulated_ms: int = 0
    unknown: int = 0
    retries: int = 0
    live_ms_max: int = 0
    level_ms_max: int = 0
    tally: dict[str, int] = field(default_factory=dict)

    def add(self, verdict: Verdict) -> None:
        self.seeds += 1
        self.events += verdict.events
        self.commands += verdict.commands
        self.simulated_ms += verdict.simulated_ms
        self.unknown += verdict.unknown
        self.retries += verdict.retries
        self.live_ms_max = max(self.live_ms_max, verdict.live_ms)
        self.level_ms_max = max(self.level_ms_max, verdict.level_ms)
        for what, count in verdict.tally.items():
            self.tally[what] = self.tally.get(what, 0) + count

    def report(self, processor_s: float, first: int) -> str:
        rows = [
            f"{self.seeds:,} seeds from {first}, {self.simulated_ms / 3_600_000:.2f} simulated hours in "
            f"{processor_s:,.0f} s of one processor",
            f"{self.events:,} events ({self.events / processor_s:,.0f}/s; idle ticks and turns are not counted), "
            f"{self.commands:,} commands ({self.commands / processor_s:,.0f}/s), {self.unknown:,} unknown outcomes, "
            f"{self.retries:,} retries",
            f"a healed majority committed in all shards after {self.live_ms_max} ms at most, all was level after "
            f"{self.level_ms_max} ms at most",
        ]
        rows += [f"  {count:10,}  {what}" for what, count in sorted(self.tally.items())]
        return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?", help="replay this seed")
    parser.add_argument("--faults", help="of the seed's script only these faults: numbers with commas, or 'none'")
    parser.add_argument("--calm", default="", help="settings of the seed's plan to change: name=value, with commas")
    parser.add_argument("--lanes", action="store_true", help="draw what happened, passed or not")
    parser.add_argument("--script", action="store_true", help="print the seed's plan")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--first", type=int, default=int(time.time()), help="the first seed of a long run")
    parser.add_argument(
        "--hashes", type=int, default=0, help="only print so many seeds' trace hashes, to compare builds"
    )
    parser.add_argument(
        "--shrink", type=float, default=120.0, help="seconds for finding the shortest script that fails"
    )
    arguments = parser.parse_args()
    # What is imported stays: nobody needs to look through it between two seeds.
    gc.freeze()
    if arguments.seed is not None:
        return replay(arguments)
    if arguments.hashes:
        for seed in range(arguments.first, arguments.first + arguments.hashes):
            plan = draw_plan(seed)
            print(line_of(plan, run(seed, plan)), flush=True)
        return 0
    totals, until, started = Totals(), time.monotonic() + arguments.minutes * 60, time.process_time()
    while time.monotonic() < until:
        verdict = run(arguments.first + totals.seeds)
        totals.add(verdict)
        if verdict.problems:
            explain(draw_plan(verdict.seed), verdict, budget_s=arguments.shrink)
            return 1
    print(totals.report(time.process_time() - started, arguments.first))
    print("no violation")
    return 0


def replay(arguments: argparse.Namespace) -> int:
    """One seed, whole or in part."""
    plan = draw_plan(arguments.seed)
    for change in filter(None, arguments.calm.split(",")):
        name, _, value = change.partition("=")
        kind = type(getattr(plan, name))
        plan = replace(plan, **{name: value == "True" if kind is bool else kind(value)})
    if arguments.faults is not None:
        plan = plan.only([int(place) for place in arguments.faults.split(",")] if arguments.faults != "none" else [])
    if arguments.script:
        print(replace(plan, faults=()))
        for place, fault in enumerate(plan.faults):
            print(f"{place:4}  {fault}")
    lanes = Lanes(plan.nodes + plan.spares)
    verdict = run(arguments.seed, plan, lanes)
    if verdict.problems or arguments.lanes:
        print(lanes.draw())
    for problem in verdict.problems:
        print(problem)
    print(line_of(plan, verdict))
    return 1 if verdict.problems else 0


def line_of(plan: Plan, verdict: Verdict) -> str:
    """What became of one seed."""
    return (
        f"seed {verdict.seed}: {verdict.events} events, {verdict.commands} commands, {len(plan.faults)} faults, "
        f"trace {verdict.trace_hash}, {'FAILED' if verdict.problems else 'no violation'}"
    )


def explain(plan: Plan, verdict: Verdict, *, budget_s: float) -> None:
    """What is needed to understand a failure: the seed, the shortest script that still fails, and its lanes."""
    problem = verdict.problems[0]
    print(f"seed {plan.seed} FAILED; replay it with: make sim SEED={plan.seed}\n  {problem}")
    print(f"its script has {len(plan.faults)} faults; looking for the shortest that fails ...", flush=True)
    small, kept = shrink(plan, problem, budget_s=budget_s)
    lanes = Lanes(plan.nodes + plan.spares)
    again = run(plan.seed, small, lanes)
    calm = [
        f"{name}={getattr(small, name)}"
        for name in Plan.__dataclass_fields__
        if name not in ("faults", "settings") and getattr(small, name) != getattr(plan, name)
    ]
    print(f"{len(kept)} faults are enough:")
    for fault in small.faults:
        print(f"  {fault}")
    print("\n" + lanes.draw() + "\n")
    for found in again.problems:
        print(found)
    faults = ",".join(map(str, kept)) or "none"
    print(f"replay it with: make sim SEED={plan.seed} FAULTS={faults}" + (f" CALM={','.join(calm)}" if calm else ""))


if __name__ == "__main__":
    sys.exit(main())
