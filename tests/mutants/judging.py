"""One mutant before one instrument: in a process of its own, within a budget, and with an answer in any case.

Rules of this file:
- the process is forked from one that has imported what all tests need, and nothing of what is judged;
- a budget is processor time, so that a busy machine judges as an idle one does. What uses it up is caught: it *hangs*. So is
  what waits for ever (a generous bound of real time), and what ends the process;
- the tests are those of the mutant's package that were seen to enter the changed function, the most particular first. Where
  none was seen (only child processes enter it, or nobody), they are all tests of the package.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NoReturn

import hypothesis
import pytest

from tests.mutants.force import force
from tests.mutants.mutations import TOP

TEST_PROCESSOR_S_MAX = 20
"""Of one test. The longest takes a fifth of it."""
TESTS_PROCESSOR_S_MAX = 120
"""Of all tests of one mutant; without a mutant they take less than a fourth of it."""
SEED_PROCESSOR_S_MAX = 20
"""Of one seed of the simulator, beyond the budget. Most take one."""
REACHING_SEEDS = 12
"""By which it is known what the simulator enters at all."""
WAITING_S_MAX = 400
DATA_BYTES_MAX = 3 << 29
"""What a process may have for itself; memory maps of files do not count."""

FAILED = "the launcher itself has failed"
"""No answer, and not because of a mutant: what a test or a seed raises is caught where it is run."""

Reach = Mapping[str, "Test"]


class Hung(BaseException):
    """Nothing in the product's code handles this one."""


@dataclass(slots=True)
class Test:
    """What is known of a test from a run without a mutant."""

    __test__ = False

    seconds: float = 0.0
    functions: list[str] = field(default_factory=list)
    """`module:qualified name` of those of its package that it entered in its own process."""


@dataclass(slots=True)
class Verdict:
    """What one instrument said."""

    caught: bool
    by: str = ""
    """The test that failed, or the invariant that spoke."""
    seconds: float = 0.0
    """Of processor time, children included."""
    looked_at: int = 0
    """Tests or seeds."""


def prepare() -> None:
    """Imports what all tests need and nobody judges, so that children need not."""
    for name in ("asyncio", "crc32c", "lmdb", "prometheus_client", "structlog", "xxhash"):
        importlib.import_module(name)
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        pytest.main(["--version"])  # loads its plugins


# --- A process of its own -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Children:
    """Runs functions in forked processes, so many at a time; each answers with something that JSON can hold."""

    directory: Path
    jobs: int
    _running: dict[int, tuple[str, Path, float]] = field(default_factory=dict)
    _started: int = 0

    def run(self, tasks: Iterator[tuple[str, Callable[[], Any]]], done: Callable[[str, Any, str, float], None]) -> None:
        """`done(name, answer, how it ended without one, processor seconds)` for each."""
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            for name, task in tasks:
                while len(self._running) >= self.jobs:
                    self._wait(done)
                self._start(name, task)
            while self._running:
                self._wait(done)
        finally:
            for pid, (_, path, _) in self._running.items():
                os.killpg(pid, signal.SIGKILL)
                path.with_suffix(".txt").unlink(missing_ok=True)

    def _start(self, name: str, task: Callable[[], Any]) -> None:
        self._started += 1
        answer = self.directory / f"answer-{os.getpid()}-{self._started}.json"
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            _be_a_child(task, answer)
        os.setpgid(pid, pid)
        self._running[pid] = (name, answer, time.monotonic() + WAITING_S_MAX)

    def _wait(self, done: Callable[[str, Any, str, float], None]) -> None:
        pid = 0
        while not pid:
            time.sleep(0.01)
            for waiting, (_, _, until) in self._running.items():
                if time.monotonic() > until:
                    os.killpg(waiting, signal.SIGKILL)
                pid, status, used = os.wait4(waiting, os.WNOHANG)
                if pid:
                    break
        name, path, _ = self._running.pop(pid)
        text = path.read_text() if path.exists() else ""
        path.unlink(missing_ok=True)
        ended = ""
        if not text:
            code = os.waitstatus_to_exitcode(status)
            ended = (
                FAILED
                if code == 1
                else f"the process ended with status {code}"
                if code >= 0
                else f"hang ({signal.Signals(-code).name})"
            )
        done(name, json.loads(text) if text else None, ended, used.ru_utime + used.ru_stime)


def _be_a_child(task: Callable[[], Any], answer: Path) -> NoReturn:
    status = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        output = os.open(answer.with_suffix(".txt"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        resource.setrlimit(resource.RLIMIT_DATA, (DATA_BYTES_MAX, DATA_BYTES_MAX))
        signal.signal(signal.SIGPROF, _hung)
        found = json.dumps(task())
        answer.write_text(found)
        answer.with_suffix(".txt").unlink()
        status = 0
    except BaseException:  # noqa: BLE001 - it must not come back to the parent's loop
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _hung(number: int, frame: FrameType | None) -> None:
    raise Hung("processor time is used up")


def _allow(seconds: float) -> None:
    """Of processor time from now on; then `Hung`, again and again where somebody swallows it."""
    signal.setitimer(signal.ITIMER_PROF, seconds, 1.0 if seconds else 0.0)


# --- Tests ----------------------------------------------------------------------------------------------------------


class _Watch:
    """A plugin: which tests run, in which order, and which fails first."""

    def __init__(self, wanted: Sequence[str] | None) -> None:
        self._order = None if wanted is None else {name: place for place, name in enumerate(wanted)}
        self.failed = ""
        self.count = 0

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self._order is not None:
            order = self._order
            items[:] = sorted((item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        _allow(TEST_PROCESSOR_S_MAX)
        try:
            return (yield)
        finally:
            _allow(0)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.failed:
            self.failed = f"{report.nodeid} (cannot be imported)"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.count += report.when == "call"
        if report.failed and not self.failed:
            hung = "Hung" in report.longreprtext.rpartition("\n")[2] or "Timeout" in report.longreprtext[-200:]
            self.failed = report.nodeid + (" (hang)" if hung else "")


class _Reaching(_Watch):
    """And which functions each test enters: the interpreter is asked about calls, not about lines. What is found is kept at
    once, and tests of which it is known are left out."""

    def __init__(self, package: str, kept: Path) -> None:
        super().__init__(None)
        self._inside = str(TOP / "raftcache" / package) + os.sep
        self._kept = kept
        self._known = known_tests(kept)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid not in self._known]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        started = time.process_time()
        seen: set[CodeType] = set()
        try:
            with _entered(seen):
                return (yield)
        finally:
            functions = _qualified(seen, self._inside)
            if not self.failed:
                test = Test(round(time.process_time() - started, 4), functions)
                with self._kept.open("a") as file:
                    file.write(json.dumps({item.nodeid: asdict(test)}) + "\n")


def known_tests(kept: Path) -> dict[str, Test]:
    """What runs without a mutant have kept."""
    lines = kept.read_text().splitlines() if kept.exists() else []
    return {name: Test(**test) for line in lines for name, test in json.loads(line).items()}


@contextmanager
def _entered(seen: set[CodeType]) -> Iterator[None]:
    """Adds all code that is entered in this block, by any thread."""

    def enter(frame: FrameType, event: str, argument: object) -> None:
        seen.add(frame.f_code)

    threading.settrace(enter)
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]


def _qualified(seen: set[CodeType], inside: str) -> list[str]:
    """`module:qualified name` of what lies in this directory."""
    return sorted(
        f"{'.'.join(Path(code.co_filename).relative_to(TOP).with_suffix('').parts)}:{code.co_qualname.replace('.<locals>', '')}"
        for code in seen
        if code.co_filename.startswith(inside)
    )


def _pytest(paths: Sequence[str], plugin: _Watch) -> int:
    """In this process, at once and with random tests that draw the same few examples each time."""
    hypothesis.settings.register_profile(
        "quick",
        deadline=None,
        max_examples=25,
        derandomize=True,
        database=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    os.environ["HYPOTHESIS_PROFILE"] = "quick"
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.chdir(TOP)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", f"timeout={WAITING_S_MAX // 4}"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # hypothesis was imported before the fork
    return int(pytest.main([*options, *paths], plugins=[plugin]))


def reach(package: str, kept: Path) -> str:
    """All tests of the package of which nothing is kept, without a mutant: they must pass. What failed, or nothing."""
    plugin = _Reaching(package, kept)
    code = _pytest([f"tests/{package}"], plugin)
    return plugin.failed or ("" if code in (0, pytest.ExitCode.NO_TESTS_COLLECTED) else f"pytest ended with {code}")


def entering(function: str, known: Reach) -> list[str]:
    """Those that enter the function, most particular first: what enters few others. All where none was seen to."""
    there = [name for name, test in known.items() if function in test.functions] or list(known)
    return sorted(there, key=lambda name: (len(known[name].functions), known[name].seconds, name))


def by_tests(mutant: str | None, wanted: Sequence[str]) -> dict[str, Any]:
    """Runs these tests until one fails: first those in the file of the first one, which often suffices, as to import all
    files takes longer than most tests."""
    resource.setrlimit(resource.RLIMIT_CPU, (TESTS_PROCESSOR_S_MAX, TESTS_PROCESSOR_S_MAX))
    if mutant is not None:
        force(mutant)
    first = wanted[0].split("::")[0]
    looked_at = 0
    for part in (
        [name for name in wanted if name.split("::")[0] == first],
        [name for name in wanted if name.split("::")[0] != first],
    ):
        if part:
            plugin = _Watch(part)
            code = _pytest(sorted({name.split("::")[0] for name in part}), plugin)
            looked_at += plugin.count
            if code != 0:
                return asdict(Verdict(True, plugin.failed or f"pytest ended with {code}", 0.0, looked_at))
    return asdict(Verdict(False, "", 0.0, looked_at))


# --- The simulator --------------------------------------------------------------------------------------------------


def reach_of_simulation(kept: Path) -> str:
    """What some seeds enter, without a mutant: nothing else can be found by the simulator. What failed, or nothing."""
    from tests.simulation.run import run

    seen: set[CodeType] = set()
    with _entered(seen):
        for seed in range(REACHING_SEEDS):
            if problems := run(seed).problems:
                return str(problems[0])
    test = Test(0.0, _qualified(seen, str(TOP / "raftcache") + os.sep))
    kept.write_text(json.dumps({"simulation": asdict(test)}) + "\n")
    return ""


def by_simulation(mutant: str | None, *, first_seed: int, budget_s: float) -> dict[str, Any]:
    """Runs fresh seeds until one fails or the budget is used up."""
    if mutant is not None:
        force(mutant)
    started = time.process_time()
    _allow(budget_s + SEED_PROCESSOR_S_MAX)
    seeds = 0
    try:
        # Here, and not above: what is judged is imported for the first time.
        from tests.simulation.run import run

        while time.process_time() - started < budget_s:
            seeds += 1
            verdict = run(first_seed + seeds)
            if verdict.problems:
                return asdict(Verdict(True, verdict.problems[0].kind, 0.0, seeds))
    except Hung:
        return asdict(Verdict(True, "hang", 0.0, seeds))
    except Exception as error:  # noqa: BLE001 - outside of a run, so while it was imported or built
        return asdict(Verdict(True, f"exception ({type(error).__name__})", 0.0, seeds))
    finally:
        _allow(0)
    return asdict(Verdict(False, "", 0.0, seeds))
