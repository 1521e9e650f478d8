"""Work that would hold up the loop, run beside it, with its outcome back on the loop.

A job is a function that runs elsewhere and returns a *continuation*, which runs on the loop. Whoever started the job
may cancel it: after `Job.cancel` the work has ended and its continuation will not run.

Two implementations: `ThreadBackground` (a thread per job: jobs are checkpoints and removals, a handful a minute) and
`InlineBackground` for the simulator (the work is done at once, the continuation comes later through `post`).

Rules of this file:
- the work touches nothing that belongs to the loop; its continuation does;
- an exception that leaves the work is a bug and is raised again on the loop, where it stops the replica.
"""

import threading
from collections.abc import Callable
from typing import Protocol

Post = Callable[[Callable[[], None]], object]
"""Runs a callable on the node's loop, soon; safe from any thread: `call_soon_threadsafe`, or the simulator's queue."""

Continuation = Callable[[], None]


class Cancelled(Exception):
    """Raised inside a job's work, at its next `check` or `pause`, after the job was cancelled."""


class Job:
    """One piece of work, as both sides see it."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._ended = threading.Event()
        self.delivered = False
        """The continuation ran (or began to). Loop only."""

    # --- The work's side ---

    def check(self) -> None:
        """Raises: `Cancelled`."""
        if self._cancelled.is_set():
            raise Cancelled

    def pause(self, seconds: float) -> None:
        """Wait, unless cancelled. Raises: `Cancelled`."""
        if self._cancelled.wait(seconds):
            raise Cancelled

    # --- The loop's side ---

    def cancel(self) -> bool:
        """End the work and wait for that: as long as one write, sync or removal takes. False if it was delivered."""
        self._cancelled.set()
        self._ended.wait()
        return not self.delivered

    def run(self, work: "Work", post: Post) -> None:
        """Do the work, and post what follows."""
        failure: BaseException | None = None
        continuation: Continuation | None = None
        try:
            continuation = work(self)
        except Cancelled:
            pass
        except BaseException as error:  # noqa: BLE001 - carried to the loop and raised there
            failure = error

        def deliver() -> None:
            if self._cancelled.is_set():
                return
            self.delivered = True
            if failure is not None:
                raise failure
            assert continuation is not None, "work that was not cancelled returns its continuation"
            continuation()

        # Posted before `cancel` returns, so that a loop whose jobs were all cancelled may close at once.
        post(deliver)
        self._ended.set()


Work = Callable[[Job], Continuation]


class Background(Protocol):
    """Who runs the work."""

    def start(self, name: str, work: Work) -> Job: ...


class ThreadBackground:
    """A named thread per job. Daemonic: a node that exits waits for nothing; half-done work is swept at the start."""

    def __init__(self, post: Post) -> None:
        self._post = post

    def start(self, name: str, work: Work) -> Job:
        job = Job()
        threading.Thread(target=job.run, args=(work, self._post), name=name, daemon=True).start()
        return job


class InlineBackground:
    """Does the work at once. Deterministic."""

    def __init__(self, post: Post) -> None:
        self._post = post

    def start(self, name: str, work: Work) -> Job:
        job = Job()
        job.run(work, self._post)
        return job


class Jobs:
    """The jobs of one owner: what runs, and what becomes of it when the owner moves on. Loop only."""

    def __init__(self, background: Background, post: Post) -> None:
        self.post = post
        self._background = background
        self._running: dict[Job, Continuation] = {}
        """With what is posted in place of a continuation if all are cancelled."""

    def start(self, name: str, work: Work, cancelled: Continuation) -> Job:
        """Run `work` beside the loop and its continuation on it; `cancelled` instead after `cancel_all`."""

        def tracked(job: Job) -> Continuation:
            continuation = work(job)

            def finish() -> None:
                del self._running[job]
                continuation()

            return finish

        job = self._background.start(name, tracked)
        self._running[job] = cancelled
        return job

    def cancel(self, job: Job) -> None:
        """End one job and wait for that; nothing is posted."""
        job.cancel()
        self._running.pop(job, None)

    def cancel_all(self) -> None:
        """End every job and wait for that, so that none touches anything any more; whoever waits for one is told."""
        running, self._running = self._running, {}
        for job, cancelled in running.items():
            job.cancel()
            self.post(cancelled)


def nothing() -> None:
    """The continuation of a job that nobody waits for."""
