"""`make demo`, in a short form: it ends with nothing lost, and it notices if something is.

Most of what follows is about the second half: a demonstration that cannot fail shows nothing.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from raftcache import Entry, RaftCacheError, Unavailable

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = ("--seconds", "0.2", "--files", "40")


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, as a module."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import demo

    return demo


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What it holds the cluster to."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import ledger

    return ledger


class Cluster:
    """Answers batches of gets from a dict; a value that is an error is the answer."""

    def __init__(self, held: dict[bytes, bytes | RaftCacheError]) -> None:
        self.held = held

    def batch(self, operations: Sequence[Any], *, timeout: float | None = None) -> list[object]:
        return [self._answer(operation.keys[0]) for operation in operations]

    def _answer(self, key: bytes) -> object:
        found = self.held.get(key)
        return Entry(key, found, 1, 1, 1) if isinstance(found, bytes) else found


def run_demo(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program as `make demo` starts it; what it leaves behind is in `directory`."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py"), *SHORT, *arguments],
        env={**os.environ, "TMPDIR": str(directory)},
        capture_output=True,
        text=True,
        check=False,
    )


def number(output: str, name: str) -> int:
    """The first number of a line of the summary."""
    found = re.search(rf"^{name} +([\d,]+)", output, re.MULTILINE)
    assert found is not None, f"no line {name!r} in:\n{output}"
    return int(found[1].replace(",", ""))


@pytest.mark.timeout(300)
def test_demo_kills_nodes_and_loses_nothing(tmp_path: Path) -> None:
    """Every acknowledged write is verified, the exit status is 0, and neither data nor processes are left."""
    done = run_demo(tmp_path)
    assert 0 == done.returncode, done.stdout + done.stderr
    assert 0 == number(done.stdout, "lost")
    acknowledged = number(done.stdout, "writes acknowledged")
    assert acknowledged > 40, done.stdout
    assert acknowledged == number(done.stdout, "verified byte for byte")
    assert [] == list(tmp_path.iterdir())


@pytest.mark.timeout(300)
def test_demo_notices_one_key_removed_behind_its_back(tmp_path: Path) -> None:
    """The canary: exactly that key is reported as lost, the exit status says so, and the nodes' data is kept to look at."""
    done = run_demo(tmp_path, "--sabotage")
    assert 1 == done.returncode, done.stdout + done.stderr
    assert 1 == number(done.stdout, "lost")
    removed = re.search(r"sabotage: removed (b'.+') behind", done.stderr)
    assert removed is not None, done.stderr
    assert f": {removed[1]}" in done.stdout
    assert number(done.stdout, "writes acknowledged") - 1 == number(done.stdout, "verified byte for byte")
    assert "are kept in" in done.stderr


def test_verification_tells_lost_from_changed_from_unread(ledger: ModuleType) -> None:
    """Each way of being wrong has its own list, and any of them is not good."""
    book = ledger.Ledger()
    for key in (b"right", b"gone", b"other", b"silent"):
        book.acknowledge(key, b"sent " + key)
    cluster = Cluster({b"right": b"sent right", b"other": b"something else", b"silent": Unavailable("no leader")})
    verdict = ledger.verify(cluster, book, seconds=0)
    assert 1 == verdict.verified
    assert [b"gone"] == verdict.lost
    assert [b"other"] == verdict.changed
    assert [b"silent"] == verdict.unread
    assert not verdict.good


@pytest.mark.parametrize("kind", ["lost", "changed", "unread"])
def test_any_one_wrong_key_is_not_good(ledger: ModuleType, kind: str) -> None:
    """One is enough."""
    verdict = ledger.Verdict(verified=1_000_000)
    assert verdict.good
    getattr(verdict, kind).append(b"k")
    assert not verdict.good


def test_unknown_write_may_be_there_or_not_but_not_as_something_else(ledger: ModuleType) -> None:
    """An unknown outcome excuses absence, and nothing more."""
    book = ledger.Ledger()
    for key in (b"there", b"absent", b"mangled"):
        book.fail(key, b"sent", RaftCacheError("lost on its way"))
    assert not RaftCacheError.definite, "this test needs an indefinite error"
    verdict = ledger.verify(Cluster({b"there": b"sent", b"mangled": b"other"}), book)
    assert 1 == verdict.unknown_there
    assert [b"mangled"] == verdict.changed


def test_refused_write_that_took_effect_is_wrong(ledger: ModuleType) -> None:
    """A definite error promises that nothing happened; the demo holds the cluster to that as well."""
    book = ledger.Ledger()
    book.fail(b"k", b"sent", Unavailable("no leader"))
    assert ledger.verify(Cluster({}), book).good
    assert [b"k"] == ledger.verify(Cluster({b"k": b"sent"}), book).changed


def test_reads_that_fail_at_first_are_repeated(ledger: ModuleType) -> None:
    """A cluster that is still electing is asked again."""
    book = ledger.Ledger()
    book.acknowledge(b"k", b"v")

    class Electing(Cluster):
        def batch(self, operations: Sequence[Any], *, timeout: float | None = None) -> list[object]:
            answers = super().batch(operations)
            self.held[b"k"] = b"v"
            return answers

    verdict = ledger.verify(Electing({b"k": Unavailable("no leader")}), book)
    assert verdict.good
    assert 1 == verdict.verified


def test_longest_silence_is_that_of_the_worst_shard(ledger: ModuleType) -> None:
    """Counted from the last acknowledgement before the kill, or up to the end where none comes any more."""
    book = ledger.Ledger()
    book.acknowledged_at = {1: [0.9, 1.5, 1.6, 9.0], 2: [0.5, 3.5, 3.6, 3.9], 3: [1.0, 1.1]}
    assert 3.0 == book.longest_silence(1.0, 4.0)
    book.acknowledged_at = {1: [0.5]}
    assert 3.5 == book.longest_silence(1.0, 4.0)


@pytest.mark.parametrize(("wrong_read", "lost", "expected"), [(False, False, 0), (False, True, 1), (True, False, 1)])
def test_exit_status_says_whether_anything_was_wrong(
    demo: ModuleType,
    ledger: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    wrong_read: bool,
    lost: bool,
    expected: int,
) -> None:
    """A reader that met a wrong value fails the demo even if everything is there in the end."""

    def run(_: object, __: object, book: Any, ___: object) -> object:
        if wrong_read:
            book.wrong_reads.append(b"k")
        return ledger.Verdict(lost=[b"k"] if lost else [])

    monkeypatch.setattr(demo, "run", run)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert expected == demo.main([])


def test_demo_that_cannot_start_fails(demo: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cluster, no proof: the exit status is not 0."""

    def run(*_: object) -> object:
        raise demo.Failed("no ports")

    monkeypatch.setattr(demo, "run", run)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert 1 == demo.main([])
