"""Seeds of the simulator, its determinism, and proof that it can fail: broken builds of the zoo must be caught."""

import os
import subprocess
import sys

import pytest

from tests.simulation.history import Event, History, violations
from tests.simulation.lanes import Lanes
from tests.simulation.plan import draw_plan
from tests.simulation.run import run
from tests.simulation.shrink import shrink
from tests.simulation.zoo import BUGS, Patches, broken

SEEDS = range(1000, 1060)
"""The gate: about a minute of processor time."""


@pytest.mark.parametrize("seed", SEEDS)
def test_no_schedule_of_faults_breaks_a_promise(seed: int) -> None:
    """Crashes, failing disks, cuts, loss, pauses, jumping clocks, replicas and leaders moved about: no invariant is ever
    violated, a healed majority commits within its bound, and all converge."""
    verdict = run(seed)
    assert [] == [str(problem) for problem in verdict.problems], f"replay with: make sim SEED={seed}"
    assert verdict.commands > 0, verdict


def test_these_seeds_are_worth_running() -> None:
    """Among them are seeds of every kind: settings that rule each other out are not what a simulator is for."""
    plans = [draw_plan(seed) for seed in SEEDS]
    kinds = {fault.kind for plan in plans for fault in plan.faults}
    assert len(kinds) >= 20, sorted(kinds)
    assert 10 <= sum(plan.operate_every_ms > 0 for plan in plans)
    assert 10 <= sum(plan.settings.sync_inline_below_ns < 0 for plan in plans)
    assert 3 <= sum(plan.flips_node > 0 for plan in plans)
    assert {"down", "cut", "none"} == {plan.left_out for plan in plans}


def test_one_seed_is_one_history() -> None:
    """The same seed gives the same trace hash twice in one process, and another seed another one."""
    assert run(3).trace_hash == run(3).trace_hash
    assert run(3).trace_hash != run(4).trace_hash


def test_one_seed_is_one_history_whatever_the_hash_seed() -> None:
    """The same seed gives the same trace hash in interpreters with different hash seeds."""
    printed = set()
    for hash_seed in ("1", "2"):
        completed = subprocess.run(
            [sys.executable, "-m", "tests.simulation", "42", "--lanes"],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        printed.add(completed.stdout)
    assert 1 == len(printed), printed
    assert "trace" in printed.pop()


# --- Canaries: a checker that cannot fail proves nothing. All bugs, and how soon each is found: docs/proof.md ---------


@pytest.mark.parametrize(
    "name",
    [
        "no_fsync",
        "vote_not_persisted",
        "promise_before_fsync",
        "ack_above_durable",
        "leader_counts_itself_early",
        "truncate_always",
        "stale_leader_reads",
        "no_dedup",
        "sessions_left_out",
        "joint_configuration_skipped",
    ],
)
def test_a_broken_build_is_caught(name: str) -> None:
    """Random schedules find each of these deliberate bugs within a few seeds."""
    with broken(name):
        for seed in range(1, 41):
            if run(seed).problems:
                return
    pytest.fail(f"{name} survived")


def test_a_patch_whose_target_is_gone_is_no_patch() -> None:
    """The zoo follows the product: what it cannot break any more, it does not pretend to break."""
    with pytest.raises(AttributeError):
        Patches().set(run, "there_is_no_such_name", None)


def test_a_bug_ends_with_its_block() -> None:
    """What the zoo breaks is whole again afterwards."""
    assert len(BUGS) >= 12
    before = run(12)
    for name in BUGS:
        with broken(name):
            pass
    assert before.trace_hash == run(12).trace_hash
    assert [] == before.problems


# --- What a failure prints -----------------------------------------------------------------------------------------


def test_a_failing_script_is_shrunk_to_what_matters() -> None:
    """Of a script of many faults the shrinker leaves those without which it passes; the same few fail again."""
    with broken("sessions_left_out"):
        seed = next(seed for seed in range(1, 100) if len(draw_plan(seed).faults) > 5 and run(seed).problems)
        plan = draw_plan(seed)
        [problem, *_] = run(seed).problems
        small, kept = shrink(plan, problem, budget_s=6)
        assert len(kept) < len(plan.faults)
        assert problem.kind in {found.kind for found in run(seed, small).problems}
    assert [] == run(seed, small).problems, "it is the bug that fails, not the script"


def test_lanes_show_who_did_what_and_when() -> None:
    """One lane per node, time downwards; notes of one moment stand together."""
    lanes = Lanes(2)
    lanes.add(1_000_000, 1, "start")
    lanes.add(1_000_000, 1, "leader_changed")
    lanes.add(7_000_000, 2, "END (torn)")
    lanes.add(9_000_000, 0, "healed")
    rows = lanes.draw().splitlines()
    assert "       1  start; leader_changed" == rows[1]
    assert rows[2].startswith("       7  ")
    assert rows[2].endswith("END (torn)")
    assert "       9  ---- healed" == rows[3]


# --- The history checker on histories made by hand -----------------------------------------------------------------


def _put(value: bytes, start: int, end: int, revision: int) -> Event:
    return Event(1, "put", b"k", value, start, end, "ok", 1, revision)


def _get(value: bytes | None, start: int, end: int, revision: int, mod_revision: int = 0) -> Event:
    return Event(2, "get", b"k", value, start, end, "ok", 1, revision, mod_revision)


def test_a_history_in_order_passes() -> None:
    """Two writes and reads between them, as they should be."""
    events = [_put(b"a", 0, 1, 1), _get(b"a", 2, 3, 1, 1), _put(b"b", 4, 5, 2), _get(b"b", 6, 7, 2, 2)]
    assert [] == violations(History(events))


@pytest.mark.parametrize(
    ("events", "word"),
    [
        ([_put(b"a", 0, 1, 1), _put(b"b", 2, 3, 2), _get(b"a", 4, 5, 1, 1)], "real time"),
        ([_put(b"a", 0, 1, 1), _get(None, 2, 3, 1)], "stale or lost"),
        ([_put(b"a", 0, 1, 2), _put(b"b", 2, 3, 1)], "real time"),
        ([_put(b"a", 0, 1, 1), _put(b"b", 0, 1, 1)], "two writes"),
        ([_get(b"x", 0, 1, 1, 1)], "never written"),
    ],
)
def test_a_broken_history_is_named(events: list[Event], word: str) -> None:
    """Stale reads, lost writes, two writes at one revision, values from nowhere: each is found and named."""
    assert any(word in violation for violation in violations(History(events)))
