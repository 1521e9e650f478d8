"""The command line as its users have it: in this process where that will do, as a process of its own where it must be."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from raftcache.cli import main
from raftcache.cli.processes import identity_of
from tests.cli.fake_admin import FakeAdmin

Run = Callable[..., Result]

SECONDS = 90.0
"""For a command that starts processes, on a machine that does something else as well."""


@pytest.fixture
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No development cluster of whoever runs the tests is seen, and none of theirs settings."""
    for name in [name for name in os.environ if name.startswith("RAFTCACHE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def run(state_home: Path) -> Run:
    """Runs a command in this process."""
    del state_home

    def run_(*arguments: str, **options: Any) -> Result:
        return CliRunner().invoke(main, list(arguments), **options)

    return run_


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    """A node that answers the admin service as it is told."""
    with FakeAdmin() as server:
        yield server


@dataclass
class Shell:
    """Commands in an environment of their own: in this process, which is quick, or as processes."""

    home: Path
    pids: set[int] = field(default_factory=set)
    """Of all nodes that were ever seen."""

    @property
    def environ(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAFTCACHE_")}
        return clean | {"XDG_STATE_HOME": str(self.home), "TMPDIR": str(self.home)}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "raftcache.cli", *arguments]

    def run(self, *arguments: str, stdin: bytes | str = b"") -> Result:
        """A command in this process."""
        gone = dict.fromkeys(set(os.environ) - set(self.environ))
        return CliRunner().invoke(main, list(arguments), input=stdin, env={**gone, "XDG_STATE_HOME": str(self.home)})

    def __call__(self, *arguments: str, stdin: bytes = b"", status: int = 0) -> bytes:
        """Standard output of a command in this process that must end with `status`."""
        done = self.run(*arguments, stdin=stdin)
        assert done.exit_code == status, f"{arguments} ended with {done.exit_code}:\n{done.output}\n{done.exception!r}"
        return done.stdout_bytes

    def process(self, *arguments: str, stdin: bytes = b"", status: int = 0) -> bytes:
        """The same of a command that is a process."""
        done = subprocess.run(
            self.command(*arguments), input=stdin, capture_output=True, env=self.environ, timeout=SECONDS, check=False
        )
        assert done.returncode == status, f"{arguments} ended with {done.returncode}:\n{done.stderr.decode()}"
        return done.stdout

    def start(self, tag: str, *arguments: str) -> dict[str, Any]:
        """A detached development cluster on random ports, and what is said when it is ready."""
        command = ("dev", "--tag", tag, "--detach", *arguments, "-o", "json")
        ready: dict[str, Any] = json.loads(self.process(*command))
        self.pids |= {node["pid"] for node in ready["nodes"]}
        return ready

    def nodes(self, tag: str) -> dict[str, dict[str, Any]]:
        """The nodes of a development cluster by name; their processes are remembered."""
        (cluster,) = json.loads(self("dev", "ps", "--tag", tag, "-o", "json"))["clusters"]
        self.pids |= {node["pid"] for node in cluster["nodes"] if node["pid"]}
        return {node["name"]: node for node in cluster["nodes"]}


def alive(pids: set[int]) -> set[int]:
    """Those that still run."""
    return {pid for pid in pids if identity_of(pid) is not None}


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A shell in which nothing runs yet; and nothing is left running in it."""
    shell = Shell(tmp_path_factory.mktemp("shell"))
    try:
        yield shell
    finally:
        shell("dev", "stop", "--all")
    assert set() == alive(shell.pids), "processes were left behind"
    assert [] == list(shell.home.glob("raftcache-dev-*")), "ephemeral data was left behind"


@pytest.fixture(scope="session")
def cluster(shell: Shell) -> Shell:
    """A development cluster of three nodes with the tag `default`."""
    shell.start("default", "--random-ports", "--ephemeral", "--shards", "4")
    return shell


@pytest.fixture
def here(cluster: Shell) -> Run:
    """Commands in this process, against the development cluster."""

    def run_(*arguments: str, input: str | bytes = b"") -> Result:
        return cluster.run(*arguments, stdin=input)

    return run_
