"""Real nodes, killed, paused and cut off for a few seconds each, and what the clients saw. `make jepsen` is the long version."""

from pathlib import Path

import pytest

from faults.history import read_history
from faults.runner import Plan, outcome, run

SECONDS = 10.0
SEED = 20_261_123


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("workload", "nemesis", "front"),
    [
        ("register", "kill-leader", "fast"),
        ("append", "kill-all", "grpcio"),
        ("counter", "lost-replies", "fast"),
        ("sessions", "partition-leader", "grpcio"),
        ("set", "partition-in", "fast"),
        ("stale", "pause-leader", "grpcio"),
        ("bank", "failpoint", "fast"),
    ],
)
def test_clients_see_nothing_that_must_not_be(tmp_path: Path, workload: str, nemesis: str, front: str) -> None:
    """The cluster comes back, every key is read, the replicas are equal, and every checker says ok."""
    plan = Plan(workload, nemesis, SEED, SECONDS, tmp_path / "run", front=front)
    facts = run(plan, lambda text: None)
    verdict = outcome(facts)
    assert "ok" == verdict.kind, f"{verdict.reason} (seed {SEED}; everything is in {plan.folder})"
    assert facts.counts["ok"] > 0, facts.counts
    assert facts.counts["faults"] > 0, facts.counts
    assert len(facts.history) == len(read_history(plan.folder / "history.jsonl"))


@pytest.mark.timeout(400)
def test_clients_see_it_when_retries_are_applied_twice(tmp_path: Path) -> None:
    """The suite is no suite if it passes nodes with a bug."""
    plan = Plan("counter", "lost-replies", SEED, SECONDS, tmp_path / "run", bug="no_dedup")
    facts = run(plan, lambda text: None)
    assert "violation" == outcome(facts).kind
    assert "counter" in [each.checker for each in facts.verdicts if each.kind == "violation"]
    assert "What must not happen, and did" in (plan.folder / "report.html").read_text()
