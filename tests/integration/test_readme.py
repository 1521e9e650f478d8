"""The README's first steps, run as they stand there: the commands of a newcomer, and the Python program after them.

Only the ports differ: any free ones, because those of the README may be taken on a machine that runs tests.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftcache.cli.exits import Exit

UNHEALTHY_MAX = 20
"""How often `raftcache status` may find something that passes by itself."""
README = Path(__file__).parents[2] / "README.md"


class Shell:
    """Runs `raftcache` commands with a state directory of its own, and no settings from outside."""

    def __init__(self, directory: Path) -> None:
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAFTCACHE_")}
        self.environment["XDG_STATE_HOME"] = str(directory)
        self.environment["TMPDIR"] = str(directory)

    def run(self, line: str) -> str:
        """Runs a command line; returns what it says. Fails the test if it fails."""
        words = shlex.split(line, comments=True)
        assert words[0] == "raftcache", line
        done = self.python("-m", "raftcache.cli", *words[1:])
        for _ in range(UNHEALTHY_MAX):
            # A leadership may be on its way from one node to another just now.
            if done.returncode != Exit.UNHEALTHY:
                break
            done = self.python("-m", "raftcache.cli", *words[1:])
        assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], env=self.environment, capture_output=True, text=True, check=False
        )


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """No node outlives the test."""
    shell = Shell(tmp_path)
    yield shell
    shell.python("-m", "raftcache.cli", "dev", "stop", "--all")


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}$(.*?)^## ", README.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, f"no section {heading!r}"
    return found[1]


def block(text: str, language: str) -> str:
    """The first code block of a language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found is not None, text
    return found[1]


def test_first_steps_work_as_they_are_written(shell: Shell) -> None:
    """Each command succeeds; the value is there with one node dead; the program prints what its comments say."""
    lines = [line for line in block(section("A cluster to try"), "").splitlines() if line.startswith("raftcache ")]
    assert lines[0].startswith("raftcache dev ")
    assert lines[-1] == "raftcache dev stop"
    ready = json.loads(shell.run(f"{lines[0]} --random-ports"))
    for line in lines[1:-1]:
        said = shell.run(line)
        if line == "raftcache get greeting":
            assert "hello" == said
        if line == "raftcache status -o json":
            assert json.loads(said)["healthy"] is True
        if line == "raftcache shard locate greeting":
            assert said.startswith("slot 12714, shard 7, leader n")

    program = block(section("From Python"), "python")
    program, replaced = re.subn(r'Client\("[^"]+"\)', f"Client({','.join(ready['endpoints'])!r})", program)
    assert 1 == replaced
    done = shell.python("-c", program)
    assert done.returncode == 0, done.stderr
    promised = re.findall(r"print\(.*\) +# (.+)", program)
    assert len(promised) >= 3
    assert promised == done.stdout.splitlines()[: len(promised)]
    shell.run(lines[-1])
