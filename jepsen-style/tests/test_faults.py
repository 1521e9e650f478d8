"""The tables of faults are consistent: with the code that they act on, with each other, and with what is told of a run."""

import importlib

from faults import doctor, failpoints
from faults.matrix import Tally
from faults.nemeses import NEMESES
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


def test_the_issues_workloads_are_all_there() -> None:
    """Their names are part of the command line."""
    assert {"register", "counter", "append", "bank", "set", "stale", "sessions"} == {*WORKLOADS}
