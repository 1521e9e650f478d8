"""The golden scenes: each script runs, and tells what it told when it was last read by a human.

`RAFTCACHE_REWRITE=1 pytest tests/raft/test_scripts.py` writes what really happened into the files; read the difference
before you keep it. The `expect` lines hold in any case.
"""

import os
from pathlib import Path

import pytest

from tests.raft.script import Script, explanation_of, scripts

REWRITE = os.environ.get("RAFTCACHE_REWRITE") == "1"
SCRIPTS_MIN = 14


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.stem)
def test_script_tells_its_golden_story(path: Path) -> None:
    """The scene happens as it is told."""
    text = path.read_text()
    told = Script(text).render()
    if REWRITE:
        path.write_text(told)
    else:
        assert told.splitlines() == text.splitlines()


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.stem)
def test_script_explains_itself_and_expects_something(path: Path) -> None:
    """Each script opens with what it teaches, and ends on an expectation."""
    text = path.read_text()
    assert len(" ".join(explanation_of(text))) > 80, "say what the scene teaches"
    commands = [line for line in text.splitlines() if line.strip() and not line.startswith(("#", " "))]
    assert commands[-1].startswith("expect")


def test_all_scripts_are_there() -> None:
    """The directory was found, and holds the agreed number of scenes."""
    assert len(scripts()) >= SCRIPTS_MIN


def test_script_runs_the_same_way_twice() -> None:
    """Nothing in a scene depends on anything but its text."""
    for path in scripts()[:3]:
        assert Script(path.read_text()).render() == Script(path.read_text()).render()


def test_script_notices_a_wrong_expectation() -> None:
    """An expectation that does not hold fails the scene, with the command named."""
    with pytest.raises(AssertionError, match="at `expect term 1 = 7`"):
        Script("nodes 3\nexpect term 1 = 7\n").render()


def test_script_notices_a_changed_story() -> None:
    """A golden line that does not happen is not repeated in what is told."""
    told = Script("nodes 3\ncampaign 1\n    1 does something else\n").render()
    assert "1 does something else" not in told
    assert "1 leads term 2" in told
