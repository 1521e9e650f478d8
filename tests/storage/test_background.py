"""Jobs beside the loop: their outcome comes back on it, once, or not at all after a cancel."""

import threading

import pytest

from raftcache.storage.background import (
    Background,
    Continuation,
    InlineBackground,
    Job,
    Jobs,
    ThreadBackground,
    nothing,
)
from tests.storage.state_driver import Loop


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture(params=[ThreadBackground, InlineBackground])
def background(request: pytest.FixtureRequest, loop: Loop) -> Background:
    made: Background = request.param(loop.post)
    return made


def test_continuation_runs_on_the_loop_with_what_the_work_found(loop: Loop, background: Background) -> None:
    """The work may run anywhere; what follows runs where it was asked for."""
    seen: list[threading.Thread] = []

    def work(job: Job) -> Continuation:
        job.check()
        return lambda: seen.append(threading.current_thread())

    Jobs(background, loop.post).start("test", work, nothing)
    loop.run_until(lambda: bool(seen))
    assert seen == [threading.current_thread()]


def test_bug_in_the_work_is_raised_on_the_loop(loop: Loop, background: Background) -> None:
    """An assertion that fails in a job stops its replica like any other, and does not vanish with a thread."""

    def work(job: Job) -> Continuation:
        raise AssertionError("a bug")

    Jobs(background, loop.post).start("test", work, nothing)
    with pytest.raises(AssertionError, match="a bug"):
        loop.run_until(lambda: False)


def test_cancelled_job_has_ended_and_tells_whoever_waits(loop: Loop) -> None:
    """After `cancel_all` no work runs any more, its continuation never does, and the replacement does."""
    started = threading.Event()
    heard: list[str] = []

    def work(job: Job) -> Continuation:
        started.set()
        try:
            job.pause(3600)
        finally:
            heard.append("ended")
        raise AssertionError("a pause ends at a cancel")

    jobs = Jobs(ThreadBackground(loop.post), loop.post)
    jobs.start("test", work, lambda: heard.append("cancelled"))
    started.wait()
    jobs.cancel_all()

    assert heard == ["ended"]
    loop.drain()
    assert heard == ["ended", "cancelled"]


def test_continuation_that_was_posted_before_a_cancel_does_not_run(loop: Loop) -> None:
    """Work that had ended when it was cancelled is as if it had never been."""
    heard: list[str] = []
    jobs = Jobs(InlineBackground(loop.post), loop.post)
    jobs.start("test", lambda job: lambda: heard.append("done"), lambda: heard.append("cancelled"))
    jobs.cancel_all()
    loop.drain()

    assert heard == ["cancelled"]


def test_job_that_was_cancelled_by_itself_is_not_told_of_again(loop: Loop) -> None:
    """Whoever cancels one job knows it; a later `cancel_all` posts nothing for it."""
    heard: list[str] = []
    jobs = Jobs(InlineBackground(loop.post), loop.post)
    job = jobs.start("test", lambda job: lambda: heard.append("done"), lambda: heard.append("cancelled"))
    jobs.cancel(job)
    jobs.cancel_all()
    loop.drain()

    assert heard == []
