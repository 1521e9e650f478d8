"""Many mutants up the ladder of instruments, cheapest first; what is known already is not asked again.

    1  the tests of the mutant's package
    2  the simulator: all mutants that the tests let through, and, whatever the tests say, a part of the sample drawn by the seed,
       so that it is known what the simulator finds by itself

What was found is kept line by line in `found.jsonl`, under the mutant's name *and* its change: where the code has moved on, it is
another mutant. A run that is stopped goes on where it was.
"""

from __future__ import annotations

import json
import random
import re
import statistics
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.mutants.judging import (
    FAILED,
    Children,
    Test,
    Verdict,
    by_simulation,
    by_tests,
    entering,
    known_tests,
    prepare,
    reach,
    reach_of_simulation,
)
from tests.mutants.mutations import PACKAGES, TOP, Mutant, sample

TESTS, SIMULATION = "tests", "simulation"
SIMULATED_ANYWAY = 60
"""So many of the sample are shown to the simulator whatever the tests said."""
SIMULATION_S = 30.0
SEEDS_PER_MUTANT = 10_000
FIRST_SEED = 1_000_000
"""Seeds that no test of the project runs."""
EXAMINED = TOP / "docs" / "mutants.md"


@dataclass(slots=True)
class Campaign:
    """One sample, and what is known of it."""

    directory: Path
    mutants: list[Mutant]
    simulated_anyway: frozenset[Mutant]
    verdicts: dict[tuple[str, str, str], Verdict] = field(default_factory=dict)
    known: dict[str, dict[str, Test]] = field(default_factory=dict)
    """By package: its tests, from a run without a mutant."""

    @classmethod
    def open(cls, directory: Path, *, count: int, seed: int) -> Campaign:
        """With everything that earlier runs found."""
        mutants = sample(count, seed)
        anyway = random.Random(seed).sample(mutants, min(SIMULATED_ANYWAY, count))
        campaign = cls(directory, mutants, frozenset(anyway))
        if campaign._file.exists():
            for line in campaign._file.read_text().splitlines():
                found = json.loads(line)
                key = (found["mutant"], found["change"], found["instrument"])
                campaign.verdicts[key] = Verdict(**found["verdict"])
        return campaign

    @property
    def _file(self) -> Path:
        return self.directory / "found.jsonl"

    def verdict(self, mutant: Mutant, instrument: str) -> Verdict | None:
        return self.verdicts.get((mutant.name, mutant.change, instrument))

    def survivors(self) -> list[Mutant]:
        """Those that every instrument has let through."""
        return [
            mutant
            for mutant in self.mutants
            if not any((found := self.verdict(mutant, each)) is None or found.caught for each in (TESTS, SIMULATION))
        ]

    def open_questions(self) -> list[tuple[Mutant, str]]:
        """What a run has still to ask: the tests first, as what they let through goes on to the simulator."""
        of_survivors: list[tuple[Mutant, str]] = []
        of_others: list[tuple[Mutant, str]] = []
        unasked = [(mutant, TESTS) for mutant in self.mutants if self.verdict(mutant, TESTS) is None]
        for mutant in self.mutants:
            by_tests = self.verdict(mutant, TESTS)
            let_through = by_tests is not None and not by_tests.caught
            if (let_through or mutant in self.simulated_anyway) and self.verdict(mutant, SIMULATION) is None:
                (of_survivors if let_through else of_others).append((mutant, SIMULATION))
        return unasked + of_survivors + of_others

    def forget_survivors_of_tests(self) -> None:
        """The tests have changed: they are asked again about what they let through, unless that was examined and accepted."""
        for mutant in self.mutants:
            found = self.verdict(mutant, TESTS)
            if found is not None and not found.caught and not examined(place_of(mutant)):
                del self.verdicts[mutant.name, mutant.change, TESTS]
        lines = [_line(*key, verdict) for key, verdict in self.verdicts.items()]
        self._file.write_text("".join(lines))
        for package in PACKAGES:
            kept = self._reach_file(package)
            self._complete(package).unlink(missing_ok=True)
            if not kept.exists():
                continue
            known = {
                name: test
                for name, test in known_tests(kept).items()
                if (TOP / name.split("::")[0]).stat().st_mtime < kept.stat().st_mtime
            }
            kept.write_text("".join(json.dumps({name: asdict(test)}) + "\n" for name, test in known.items()))

    # --- Running ----------------------------------------------------------------------------------------------------

    def run(self, *, jobs: int, simulation_s: float, go_on: Callable[[], bool], say: Callable[[str], None]) -> None:
        """Asks what is open, until all is answered or it is told to stop. Raises: `RuntimeError` if the tests fail by
        themselves: then they prove nothing about mutants."""
        self.directory.mkdir(parents=True, exist_ok=True)
        prepare()
        children = Children(self.directory, jobs)
        self._learn_reach(children, say)
        while go_on() and (questions := self.open_questions()):
            by_name = {f"{mutant.name} {instrument}": (mutant, instrument) for mutant, instrument in questions}

            def done(
                name: str, answer: Any, ended: str, seconds: float, by_name: dict[str, tuple[Mutant, str]] = by_name
            ) -> None:
                mutant, instrument = by_name[name]
                if ended == FAILED:
                    raise RuntimeError(
                        f"{instrument} could not be asked about {mutant}; see {self.directory}/answer-*.txt"
                    )
                verdict = Verdict(**answer) if answer else Verdict(True, ended)
                verdict.seconds = round(seconds, 2)
                self._keep(mutant, instrument, verdict)
                say(f"{mutant}\n    {instrument}: {verdict.by or 'SURVIVED'} ({verdict.seconds} s)")

            children.run(self._tasks(by_name, simulation_s, go_on), done)

    def _tasks(
        self, questions: dict[str, tuple[Mutant, str]], simulation_s: float, go_on: Callable[[], bool]
    ) -> Iterator[tuple[str, Callable[[], Any]]]:
        for name, (mutant, instrument) in questions.items():
            if not go_on():
                return
            if instrument == TESTS:
                wanted = entering(f"{mutant.module}:{mutant.function}", self.known[mutant.package])
                yield name, lambda mutant=mutant, wanted=wanted: by_tests(mutant.name, wanted)
            elif f"{mutant.module}:{mutant.function}" not in self.known[SIMULATION][SIMULATION].functions:
                self._keep(mutant, SIMULATION, Verdict(False))
            else:
                first_seed = FIRST_SEED + self.mutants.index(mutant) * SEEDS_PER_MUTANT
                yield (
                    name,
                    lambda mutant=mutant, first=first_seed: by_simulation(
                        mutant.name, first_seed=first, budget_s=simulation_s
                    ),
                )

    def _learn_reach(self, children: Children, say: Callable[[str], None]) -> None:
        def done(package: str, failed: str | None, ended: str, seconds: float) -> None:
            if failed is None or failed:
                raise RuntimeError(f"{package} fails without a mutant: {failed or ended}")
            self._complete(package).touch()
            say(f"{package} passes without a mutant")

        tasks: dict[str, Callable[[], str]] = {
            package: lambda package=package: reach(package, self._reach_file(package)) for package in PACKAGES
        }
        tasks[SIMULATION] = lambda: reach_of_simulation(self._reach_file(SIMULATION))
        missing = (each for each in tasks.items() if not self._complete(each[0]).exists())
        children.run(missing, done)
        self.known = {name: known_tests(self._reach_file(name)) for name in tasks}

    def _reach_file(self, package: str) -> Path:
        return self.directory / f"tests-{package}.jsonl"

    def _complete(self, package: str) -> Path:
        return self.directory / f"tests-{package}.complete"

    def _keep(self, mutant: Mutant, instrument: str, verdict: Verdict) -> None:
        self.verdicts[mutant.name, mutant.change, instrument] = verdict
        with self._file.open("a") as file:
            file.write(_line(mutant.name, mutant.change, instrument, verdict))


def _line(name: str, change: str, instrument: str, verdict: Verdict) -> str:
    found = {"mutant": name, "change": change, "instrument": instrument, "verdict": asdict(verdict)}
    return json.dumps(found) + "\n"


# --- What came out --------------------------------------------------------------------------------------------------


def report(campaign: Campaign) -> str:
    """Counts, who catches what and how soon, and the survivors with what their examination came to; in Markdown."""
    rows = [
        "| package | mutants | caught by its tests | median s | slowest s | then by the simulator | survived |",
        "|---|---|---|---|---|---|---|",
    ]
    for package in (*PACKAGES, "all"):
        mutants = [mutant for mutant in campaign.mutants if package in (mutant.package, "all")]
        rows.append(_counts(campaign, package, mutants))
    alone = [campaign.verdict(mutant, SIMULATION) for mutant in campaign.mutants if mutant in campaign.simulated_anyway]
    asked = [verdict for verdict in alone if verdict is not None]
    caught = [verdict for verdict in asked if verdict.caught]
    rows += ["", f"The simulator by itself, of {len(asked)} drawn from these: {len(caught)} caught{_times(caught)}."]
    spoke = Tally(verdict.by for verdict in caught)
    rows += [f"By: {', '.join(f'{kind} {count}' for kind, count in spoke.most_common())}.", ""]
    rows += ["| survivor | change | examined |", "|---|---|---|"]
    rows += [f"{key} {examined(key) or 'NOT EXAMINED'} |" for key in map(place_of, campaign.survivors())]
    left = len(campaign.open_questions())
    return "\n".join([*rows, "", f"{left} questions are open" if left else "nothing is open"])


def place_of(mutant: Mutant) -> str:
    """The first columns of a survivor's row: a function and a change, as lines move."""
    file = mutant.module.removeprefix("raftcache.").replace(".", "/") + ".py"
    return f"| `{file}` {mutant.function} | {mutant.change} |"


def examined(row: str, document: Path = EXAMINED) -> str:
    """What the document says of this survivor."""
    text = document.read_text() if document.exists() else ""
    section = text.partition("## Survivors")[2].partition("\n## ")[0]
    found = re.search(re.escape(row) + r" (.*) \|$", section, re.MULTILINE)
    return found[1] if found else ""


def _counts(campaign: Campaign, package: str, mutants: Sequence[Mutant]) -> str:
    tests = [verdict for mutant in mutants if (verdict := campaign.verdict(mutant, TESTS)) and verdict.caught]
    later = [
        verdict
        for mutant in mutants
        if (first := campaign.verdict(mutant, TESTS)) and not first.caught
        if (verdict := campaign.verdict(mutant, SIMULATION)) and verdict.caught
    ]
    survived = sum(mutant in mutants for mutant in campaign.survivors())
    seconds = [verdict.seconds for verdict in tests] or [0.0]
    return (
        f"| {package} | {len(mutants)} | {len(tests)} | {statistics.median(seconds):.1f} | {max(seconds):.1f} "
        f"| {len(later)} | {survived} |"
    )


def _times(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return ""
    seconds = [verdict.seconds for verdict in verdicts]
    return f", after {statistics.median(seconds):.1f} s in the median and {max(seconds):.1f} s at most"
