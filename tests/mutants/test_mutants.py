"""Mutants are drawn alike by a seed, are in force where they should be, and one that breaks something is caught."""

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.mutants.campaign import SIMULATION, TESTS, Campaign, examined, place_of, report
from tests.mutants.force import ENVIRONMENT, STARTUP, force
from tests.mutants.judging import Children, Test, Verdict, entering
from tests.mutants.mutations import PACKAGES, TOP, Mutant, modules, mutated, places, sample, source_of

MODULE = "raftcache.raft.quorum"

SOURCE = '''
LIMIT = 10

class Thing:
    """A thing."""

    def __repr__(self) -> str:
        return "thing" if self.size > 3 else "none"

    def grow(self, by: int = 5) -> bool:
        """Grows it by 7."""
        assert by > 3, f"{by - 1} is too little"
        if by < 0 and not self.size:
            raise ValueError(f"{by + 1}")
        self.size += max(by, 2)
        log(self.size)
        return True
'''


def mutant_of(change: str) -> Mutant:
    """The canary: one of `majority_of` or `majority_index`."""
    from tests.mutants.mutations import mutant

    here = places(ast.parse(source_of(MODULE).read_text()))
    every = [
        mutant(MODULE, place, choice, here) for place, each in enumerate(here) for choice in range(len(each.choices))
    ]
    [found] = [each for each in every if each.change == change]
    return found


# --- What is drawn --------------------------------------------------------------------------------------------------


def test_one_seed_draws_one_sample() -> None:
    """The same seed gives the same mutants, in an interpreter with another hash seed as well, and another seed others."""
    program = "from tests.mutants.mutations import sample; print([mutant.name for mutant in sample(50, 7)])"
    there = subprocess.run(
        [sys.executable, "-c", program],
        cwd=TOP,
        env=os.environ | {"PYTHONHASHSEED": "3"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    here = [mutant.name for mutant in sample(50, 7)]
    assert f"{here}\n" == there
    assert here != [mutant.name for mutant in sample(50, 8)]


def test_a_sample_is_spread_over_all_that_is_judged() -> None:
    """Every package has its share by size, and no function has many."""
    drawn = sample(200, 1)
    assert 200 == len(set(drawn))
    size = Counter(
        module.split(".")[1] for module in modules() for _ in places(ast.parse(source_of(module).read_text()))
    )
    share = Counter(mutant.package for mutant in drawn)
    for package in PACKAGES:
        assert abs(share[package] - 200 * size[package] / size.total()) <= 1, (share, size)
    most = Counter((mutant.module, mutant.function) for mutant in drawn).most_common(1)
    assert most[0][1] <= 6, most


def test_each_kind_of_change_is_found_and_what_nobody_notices_is_left_alone() -> None:
    """Conditions, operators, constants, calls and statements are changed; texts, assertions and defaults are not."""
    changes = {
        f"{ast.unparse(place.node)} -> {ast.unparse(choice)}"
        for place in places(ast.parse(SOURCE))
        for choice in place.choices
    }
    expected = {
        "by < 0 and (not self.size) -> by < 0 or not self.size",
        "by < 0 and (not self.size) -> by < 0",
        "by < 0 and (not self.size) -> not self.size",
        "by < 0 and (not self.size) -> not (by < 0 and (not self.size))",
        "by < 0 and (not self.size) -> True",
        "by < 0 and (not self.size) -> False",
        "by < 0 -> by <= 0",
        "by < 0 -> by >= 0",
        "0 -> 1",
        "0 -> -1",
        "raise ValueError(f'{by + 1}') -> pass",
        "self.size += max(by, 2) -> self.size -= max(by, 2)",
        "self.size += max(by, 2) -> pass",
        "max(by, 2) -> min(by, 2)",
        "2 -> 3",
        "2 -> 1",
        "log(self.size) -> pass",
        "True -> False",
    }
    assert expected == changes


def test_every_change_of_the_product_compiles_and_changes_it() -> None:
    """A mutant that is no Python, or is the same Python, would be counted for nothing."""
    for mutant in sample(40, 2):
        source = source_of(mutant.module).read_text()
        changed = mutated(source, mutant.place, mutant.choice)
        assert compile(source, mutant.module, "exec") != compile(changed, mutant.module, "exec"), str(mutant)


# --- What is in force -----------------------------------------------------------------------------------------------


def test_a_mutant_is_in_force_here_and_in_the_processes_that_are_started() -> None:
    """The process that forces it and its children, also one that runs the module itself, have the changed code; no file is
    changed."""
    before = source_of(MODULE).read_text()
    mutant = mutant_of("`count // 2 + 1` → `count // 2 - 1`")
    ask = f"from {MODULE} import majority_of; print(majority_of(6))"
    program = f"""
import runpy, subprocess, sys
from tests.mutants.force import force
force({mutant.name!r})
{ask}
sys.stdout.flush()
subprocess.run([sys.executable, "-P", "-c", {ask!r}], check=True)
print(runpy.run_module({MODULE!r})["majority_of"](6))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=TOP, capture_output=True, text=True, check=True)
    assert ["2", "2", "2"] == done.stdout.split()
    assert before == source_of(MODULE).read_text()


def test_a_mutant_that_comes_too_late_is_refused() -> None:
    """Whoever has imported the module as it is would keep it, and the mutant would survive for nothing."""
    import raftcache.raft.quorum  # noqa: F401 - it must be there

    with pytest.raises(AssertionError, match="imported before"):
        force(f"{MODULE}:0:0")
    assert ENVIRONMENT not in os.environ
    assert str(STARTUP) not in os.environ.get("PYTHONPATH", "")


# --- Who catches what: the canary -----------------------------------------------------------------------------------

JUDGE = """
import json, sys
from pathlib import Path
from tests.mutants.judging import Children, by_simulation, by_tests
found = {}
tests = ["tests/raft/unit/test_quorum.py::test_majority_index_is_what_more_than_half_have_reached"]
Children(Path(sys.argv[1]), 1).run(
    iter([
        ("tests", lambda: by_tests(sys.argv[2] or None, tests)),
        ("simulation", lambda: by_simulation(sys.argv[2] or None, first_seed=1, budget_s=1)),
    ]),
    lambda name, answer, ended, seconds: found.update({name: answer or ended}),
)
print(json.dumps(found))
"""


@pytest.mark.parametrize("broken", [True, False])
def test_a_broken_majority_is_caught_by_tests_and_simulator_and_a_whole_one_by_neither(
    broken: bool, tmp_path: Path
) -> None:
    """The canary: the instruments see the mutant, and see nothing where there is none."""
    name = mutant_of("`count // 2 + 1` → `count // 2 - 1`").name if broken else ""
    done = subprocess.run(
        [sys.executable, "-c", JUDGE, str(tmp_path), name], cwd=TOP, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert broken == found["tests"]["caught"], found
    assert broken == found["simulation"]["caught"], found
    assert found["tests"]["looked_at"] > 0
    assert found["simulation"]["looked_at"] > 0


def test_a_process_that_ends_or_hangs_is_an_answer(tmp_path: Path) -> None:
    """A mutant that ends the process, or never comes to an end, does not stop the campaign."""
    found: dict[str, str] = {}

    def spin() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
        while True:
            pass

    tasks = iter([("ends", lambda: os._exit(70)), ("hangs", spin), ("answers", lambda: {"seconds": 1})])
    Children(tmp_path, 2).run(
        tasks, lambda name, answer, ended, seconds: found.update({name: str(answer) if answer else ended})
    )
    assert "the process ended with status 70" == found["ends"]
    assert "hang" == found["hangs"].split()[0]
    assert "{'seconds': 1}" == found["answers"]


def test_tests_that_enter_the_function_come_most_particular_first() -> None:
    """A function that no test was seen to enter has all of them."""
    known = {"slow": Test(2.0, ["m:f", "m:g"]), "quick": Test(3.0, ["m:f"]), "other": Test(0.5, [])}
    assert ["quick", "slow"] == entering("m:f", known)
    assert ["slow"] == entering("m:g", known)
    assert ["other", "quick", "slow"] == entering("m:h", known)


# --- What is kept and told ------------------------------------------------------------------------------------------


def test_a_campaign_goes_on_where_it_was(tmp_path: Path) -> None:
    """What was found is read again and not asked again; tests that have changed are asked about survivors alone."""
    campaign = Campaign.open(tmp_path, count=4, seed=1)
    caught, survivor, other, _ = campaign.mutants
    campaign._keep(caught, TESTS, Verdict(True, "test_a", 0.5, 3))
    campaign._keep(survivor, TESTS, Verdict(False, "", 4.0, 9))
    campaign._keep(survivor, SIMULATION, Verdict(False, "", 30.0, 20))
    campaign._keep(other, TESTS, Verdict(False, "", 4.0, 9))
    again = Campaign.open(tmp_path, count=4, seed=1)
    assert asdict(Verdict(True, "test_a", 0.5, 3)) == asdict(again.verdicts[caught.name, caught.change, TESTS])
    assert [survivor] == again.survivors()
    assert (other, SIMULATION) in again.open_questions()
    assert (survivor, SIMULATION) not in again.open_questions()
    again.forget_survivors_of_tests()
    last = Campaign.open(tmp_path, count=4, seed=1)
    asked = {mutant for mutant, instrument in last.open_questions() if instrument == TESTS}
    assert set(last.mutants) - {caught} == asked


def test_a_survivor_that_nobody_examined_is_named(tmp_path: Path) -> None:
    """The report says so, until a row of the document begins with its function and its change."""
    campaign = Campaign.open(tmp_path, count=4, seed=987)
    survivor = campaign.mutants[0]
    for instrument in (TESTS, SIMULATION):
        campaign._keep(survivor, instrument, Verdict(False, "", 1.0, 1))
    row, other = map(place_of, campaign.mutants[:2])
    assert f"{row} NOT EXAMINED |" in report(campaign)
    document = tmp_path / "document.md"
    document.write_text(f"## Survivors\n\n{row} equivalent: it is a bound |\n\n## Others\n\n{other} caught |\n")
    assert "equivalent: it is a bound" == examined(row, document)
    assert "" == examined(other, document)
