"""Real nodes, killed, paused and cut off for a few seconds each, and what the clients saw. `make jepsen` is the long version."""

from pathlib import Path

import pytest

from faults.history import read_history
from faults.runner import Plan, outcome, run

SECONDS = 10.0
SEED = 20_261_123


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("workload", "nemesis"),
    [
        ("register", "kill-leader"),
        ("append", "kill-all"),
        ("counter", "lost-replies"),
        ("sessions", "partition-leader"),
        ("set", "partition-in"),
        ("stale", "pause-leader"),
        ("bank", "failpoint"),
    ],
)
def test_clients_see_nothing_that_must_not_be(tmp_path: Path, workload: str, nemesis: str) -> None:
    """The cluster comes back, every key is read, the replicas are equal, and every checker says ok."""
    plan = Plan(workload, nemesis, SEED, SECONDS, tmp_path / "run")
    facts = run(plan, lambda text: None)
    verdict = outcome(facts)
    assert "ok" == verdict.kind, f"{verdict.reason} (seed {SEED}; everything is in {plan.folder})"
    assert facts.counts["ok"] > 0, facts.counts
    assert facts.counts["faults"] > 0, facts.counts
    assert len(facts.history) == len(read_history(plan.folder / "history.jsonl"))
