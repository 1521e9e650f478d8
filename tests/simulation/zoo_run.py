"""`make zoo`: is each bug of the zoo caught, by which invariant, and how soon? `python -m tests.simulation.zoo_run --help`.

A trial takes fresh seeds, one after the other, until one fails or the budget of processor time is used up. Five trials per bug;
a bug counts as caught if all five found it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter as Tally
from dataclasses import dataclass, field

from tests.simulation.run import run
from tests.simulation.zoo import BUGS, broken

TRIALS = 5
BUDGET_S = 60.0
SEEDS_PER_TRIAL = 10_000
"""Apart enough that no two trials share a seed."""


@dataclass(slots=True)
class Catch:
    """How the trials of one bug went."""

    name: str
    by: Tally[str] = field(default_factory=Tally)
    seconds: list[float] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    """How many seeds each trial needed."""
    missed: int = 0

    def row(self) -> str:
        """As a line of a Markdown table."""
        caught = len(self.seconds)
        by = ", ".join(f"{kind} {count}" if caught > 1 else kind for kind, count in self.by.most_common())
        seconds = f"{statistics.median(self.seconds):.1f}" if self.seconds else "-"
        seeds = f"{statistics.median(self.seeds):.0f}" if self.seeds else "-"
        return f"| `{self.name}` | {BUGS[self.name].what} | {caught} of {caught + self.missed} | {seconds} | {seeds} | {by} |"


def hunt(name: str, *, first_seed: int, budget_s: float = BUDGET_S) -> tuple[str, float, int] | None:
    """Runs seeds of the broken build until one fails: (invariant, seconds, seeds). None: not within the budget."""
    started = time.process_time()
    with broken(name):
        for seeds in range(1, SEEDS_PER_TRIAL):
            verdict = run(first_seed + seeds)
            took = time.process_time() - started
            if verdict.problems:
                return verdict.problems[0].kind, took, seeds
            if took > budget_s:
                return None
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bugs", nargs="*", help="names; without any, all of them")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds of processor time per trial")
    parser.add_argument("--first", type=int, default=int(time.time()), help="seeds count from here")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.bugs) - BUGS.keys())
    if unknown:
        parser.error(f"no such bug: {', '.join(unknown)}; there are: {', '.join(BUGS)}")
    print(f"seeds from {arguments.first}, at most {arguments.budget:.0f} s of processor time per trial\n")
    print("| bug | what is broken | caught | median s | median seeds | by |\n|---|---|---|---|---|---|", flush=True)
    missed = 0
    for place, name in enumerate(arguments.bugs or BUGS):
        catch = Catch(name)
        for trial in range(arguments.trials):
            first_seed = arguments.first + (place * arguments.trials + trial) * SEEDS_PER_TRIAL
            found = hunt(name, first_seed=first_seed, budget_s=arguments.budget)
            if found is None:
                catch.missed += 1
            else:
                kind, seconds, seeds = found
                catch.by[kind] += 1
                catch.seconds.append(seconds)
                catch.seeds.append(seeds)
        missed += bool(catch.missed)
        print(catch.row(), flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
