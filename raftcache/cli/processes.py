"""Processes that an earlier command started, found again by more than their number.

A pid says nothing by itself: the process may be long gone and its number somebody else's. What identifies a process is its
pid together with when it started, in ticks since this boot of the machine (proc(5), field 22 of stat).

Rules of this file:
- nothing is signalled but the very process that was recorded: a file descriptor of the process is opened first, then its
  start is compared, then the descriptor is signalled (pidfd_open(2)). Between the last two steps nothing can change;
- a process that has ended and was not yet collected by its parent (a zombie) counts as gone.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from raftcache.clock import NS_PER_SECOND, SystemClock

POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process, for ever."""

    pid: int
    started: str
    """When, in words that no other process with this pid can have; compared, never read."""


def identity_of(pid: int) -> ProcessIdentity | None:
    """The process that has this pid now; None if none has."""
    found = _look(pid)
    return None if found is None else ProcessIdentity(pid, found[0])


def is_alive(process: ProcessIdentity) -> bool:
    """Whether that very process still runs (or is paused)."""
    found = _look(process.pid)
    return found is not None and found[0] == process.started


def is_paused(process: ProcessIdentity) -> bool:
    """Whether it was stopped by a signal, as `SIGSTOP`."""
    found = _look(process.pid)
    return found is not None and found[0] == process.started and found[1] in "Tt"


def send_signal(process: ProcessIdentity, number: signal.Signals) -> bool:
    """Signals that very process; false if it is gone. Raises: `PermissionError`."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    except (AttributeError, OSError):
        # A kernel without pidfds (before Linux 5.3, or not Linux): compare and signal, as closely as can be.
        return _send_without_descriptor(process, number)
    try:
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def _send_without_descriptor(process: ProcessIdentity, number: signal.Signals) -> bool:
    if not is_alive(process):
        return False
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def wait_gone(processes: Iterable[ProcessIdentity], seconds: float) -> list[ProcessIdentity]:
    """Waits until they have ended; returns those that have not after `seconds`."""
    clock = SystemClock()
    give_up_ns = clock.monotonic_ns() + int(seconds * NS_PER_SECOND)
    left = [process for process in processes if is_alive(process)]
    while left and clock.monotonic_ns() < give_up_ns:
        time.sleep(POLL_SECONDS)
        left = [process for process in left if is_alive(process)]
    return left


def _look(pid: int) -> tuple[str, str] | None:
    """When the process started, and its state's letter; None if there is none, or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self/stat").exists() else _look_by_ps(pid)
    # The second field is the program's name, in parentheses, and may hold anything, even parentheses.
    fields = stat.rpartition(")")[2].split()
    state, started = fields[0], fields[19]
    return None if state in "ZXx" else (f"{_boot()}/{started}", state)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _look_by_ps(pid: int) -> tuple[str, str] | None:
    done = subprocess.run(
        ["ps", "-o", "state=", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    state, _, started = done.stdout.strip().partition(" ")
    return None if done.returncode or not state or state[0] == "Z" else (started.strip(), state[0])
