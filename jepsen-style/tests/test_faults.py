"""The tables of faults are consistent: with the code that they act on, with each other, and with what is told of a run."""

import asyncio
import importlib
import random
from pathlib import Path

from faults import doctor, failpoints
from faults.checkers import check_stale_reads
from faults.cluster import Cluster
from faults.history import Op
from faults.matrix import Tally
from faults.nemeses import NEMESES
from faults.runner import FRONTS, Plan, Run, settings_of, without_lives
from faults.workloads import WORKLOADS


def test_every_failpoint_is_a_method_of_the_node() -> None:
    """A renamed method must not turn a failpoint into nothing."""
    for name, point in failpoints.POINTS.items():
        owner = getattr(importlib.import_module(point.module), point.owner)
        assert callable(vars(owner).get(point.method)), f"{name}: {point.owner} has no {point.method}"


def test_every_failpoint_belongs_to_a_nemesis() -> None:
    """None is in the table for show."""
    used = {*failpoints.ORDINARY_POINTS, *failpoints.SNAPSHOT_POINTS, *failpoints.MEMBERSHIP_POINTS}
    assert {*failpoints.POINTS} == used | {*failpoints.START_POINTS}


def test_every_nemesis_says_what_it_is_and_what_it_needs() -> None:
    """`make jepsen-doctor` shows both."""
    for nemesis in NEMESES.values():
        assert nemesis.about, nemesis.name
        assert {*nemesis.needs} <= {*doctor.CAPABILITIES}, nemesis.name
        assert bool(nemesis.volume) <= bool(nemesis.needs), f"{nemesis.name}: a disk of its own needs root"
        assert nemesis.group in ("process", "network", "time")


def test_what_the_machine_lacks_is_skipped_with_the_reason() -> None:
    """Nothing that needs root is offered without it; what needs more nodes says how many."""
    skipped = doctor.skipped(3, {"power-cut": "needs root"})
    assert "needs root" == skipped["power-cut-all"]
    assert "NODES=5" in skipped["partition-ring"]
    assert "kill-one" not in skipped
    assert "partition-ring" not in doctor.skipped(5, {})


def test_only_ok_is_success() -> None:
    """A violation is 1, an unknown is 2, and no run at all is not a success either."""
    tally = Tally()
    assert 2 == tally.status()
    tally.kinds["ok"] += 1
    assert 0 == tally.status()
    tally.kinds["unknown"] += 1
    assert 2 == tally.status()
    tally.kinds["violation"] += 1
    assert 1 == tally.status()


def test_every_workload_has_its_name() -> None:
    """Their names are part of the command line."""
    assert {"register", "counter", "append", "bank", "set", "stale", "sessions"} == {*WORKLOADS}


def test_both_fronts_come_by_seed_unless_one_is_asked_for(tmp_path: Path) -> None:
    """Whichever is the product's default, the suite tries the other one too."""
    assert {*FRONTS} == {settings_of(seed)["front.kind"] for seed in range(20)}
    for front in FRONTS:
        for seed in range(5):
            plan = Plan("register", "none", seed, 1.0, tmp_path, front=front)
            assert front == Run(plan, lambda text: None).settings["front.kind"]


def test_a_run_that_failed_says_how_to_have_it_again() -> None:
    """All that was chosen is in the command; what was not chosen is not."""
    plain = Plan("bank", "chaos", 7, 10.0, Path("run"))
    assert "make jepsen WORKLOAD=bank NEMESIS=chaos SEED=7 MINUTES=1" == plain.command()
    chosen = Plan("set", "kill-one", 8, 10.0, Path("run"), nodes=5, front="fast", bug="no_dedup")
    assert chosen.command().endswith("SEED=8 MINUTES=1 NODES=5 FRONT=fast BUG=no_dedup")


async def test_nobody_claims_to_know_which_replica_answered_once_a_node_was_added(tmp_path: Path) -> None:
    """A node that joins or leaves has replicas of some shards for a while: others answer stale reads in its place."""
    async with asyncio.TaskGroup() as tasks:
        cluster = Cluster(tmp_path, random.Random(1), tasks, nodes=3, shards=1, settings={})
        try:
            known = []
            for _ in range(4):
                await cluster.add_node()
                known.append(cluster.everything_everywhere)
            assert [False, False, True, False] == known
            await cluster.forget(cluster.nodes[0])
            assert not cluster.everything_everywhere
        finally:
            await cluster.close()


def test_a_node_that_lost_a_state_is_not_held_to_one_life() -> None:
    """It begins anew, or asks another node meanwhile: its stale reads may go back. Those of others may not."""
    history = [
        Op(
            1,
            "x",
            "stale_read",
            None,
            None,
            start,
            start + 5,
            "ok",
            node=node,
            revision=revision,
            extra={"incarnation": 1},
        )
        for node in ("n1", "n2")
        for start, revision in ((10, 7), (20, 6))
    ]
    assert "violation" == check_stale_reads(without_lives(history, {"n1"})).kind
    assert "ok" == check_stale_reads(without_lives(history, {"n1", "n2"})).kind
