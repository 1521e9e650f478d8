"""Processes are known by more than their number."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from raftcache.cli import processes
from raftcache.cli.processes import identity_of, is_alive, is_paused, send_signal, wait_gone

SECONDS = 30.0


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for its standard input to close."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.stdin.close()
        process.kill()
        process.wait()


def test_a_process_is_known_while_it_lives(child: subprocess.Popen[bytes]) -> None:
    """Paused too; not once it has ended, even if nobody has collected it yet."""
    known = identity_of(child.pid)
    assert known is not None
    assert is_alive(known)
    assert [known] == wait_gone([known], 0.0)
    assert send_signal(known, signal.SIGSTOP)
    while not is_paused(known):
        assert is_alive(known)
    assert send_signal(known, signal.SIGKILL)
    assert [] == wait_gone([known], SECONDS)
    assert not is_alive(known), "a zombie is no process"
    assert not send_signal(known, signal.SIGTERM)
    child.wait()
    assert identity_of(child.pid) is None
    assert not send_signal(known, signal.SIGTERM)


@pytest.mark.parametrize("pidfd", [True, False], ids=["with pidfd", "without"])
def test_another_process_with_the_same_number_is_never_signalled(
    child: subprocess.Popen[bytes], pidfd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a reboot, or when numbers have gone round."""
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open")
    known = identity_of(child.pid)
    assert known is not None
    earlier = replace(known, started="long ago")
    assert not is_alive(earlier)
    assert not is_paused(earlier)
    assert not send_signal(earlier, signal.SIGKILL)
    assert is_alive(known)
    assert send_signal(known, signal.SIGKILL)
    assert [] == wait_gone([known], SECONDS)


def test_without_proc_the_process_table_is_asked(child: subprocess.Popen[bytes]) -> None:
    """On systems that have no /proc."""
    found, again = processes._look_by_ps(child.pid), processes._look_by_ps(child.pid)
    assert found is not None
    assert again is not None
    assert found[0] == again[0], "the start of a process does not change"
    child.kill()
    child.wait()
    assert processes._look_by_ps(child.pid) is None
