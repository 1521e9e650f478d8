"""The promise of sessions, against kill -9: every increment that was acknowledged counts once, and none counts twice."""

import asyncio
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import pytest

from raftcache import ops
from raftcache.client import AmbiguousResult, AsyncClient, Client
from raftcache.client.options import Transport
from raftcache.errors import RaftCacheError, Unavailable
from tests.client.conftest import PATIENCE_SECONDS
from tests.support.cluster import Cluster, Node, wait_until

TOP = Path(__file__).parents[2]
WORKERS = 4


class Tally:
    """What one kind of client has counted, on a key of its own."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.done = 0
        """Acknowledged increments."""
        self.ambiguous = 0
        """Increments of which nobody knows."""
        self.stored = 0
        """What the cluster has in the end."""
        self._lock = threading.Lock()

    def add(self, count: int = 1) -> None:
        with self._lock:
            self.done += count

    def doubt(self) -> None:
        with self._lock:
            self.ambiguous += 1


class Storm:
    """Four kinds of clients that increment keys of one shard, while its leader is killed."""

    def __init__(self, cluster: Cluster, transport: Transport) -> None:
        self.transport = transport
        tag = uuid.uuid4().hex[:12]
        self.cluster = cluster
        self.threads, self.tasks, self.without_sessions, self.pipeline = (
            Tally(f"{{{tag}}}{kind}") for kind in ("threads", "tasks", "without", "pipeline")
        )
        self.tallies = (self.threads, self.tasks, self.without_sessions, self.pipeline)
        self.stopping = False

    def run(self) -> None:
        """Lets them work, kills the leader, and lets them work on."""
        endpoints = self.cluster.endpoints
        leader = self.leader()
        with (
            self.client(endpoints) as rc,
            self.client(endpoints, sessions=False) as bare,
            self.client(leader.address, routing="gateway") as of_leader,
            ThreadPoolExecutor(2 * WORKERS + 2) as pool,
        ):
            running = [pool.submit(self.count_in_thread, rc) for _ in range(WORKERS)]
            running += [pool.submit(self.count_with_doubt, bare) for _ in range(WORKERS)]
            running += [pool.submit(asyncio.run, self.count_in_tasks())]
            running += [pool.submit(self.count_in_pipeline, of_leader)]
            try:
                self.wait_for_work()
                leader.kill()
                self.wait_for_work()
            finally:
                self.stopping = True
            for one in running:
                one.result(PATIENCE_SECONDS)
            for tally in self.tallies:
                tally.stored = rc.incr(tally.key, 0)

    def client(self, endpoints: str, **options: Any) -> Client:
        return Client(endpoints, timeout=PATIENCE_SECONDS, transport=self.transport, **options)

    def leader(self) -> Node:
        with self.client(self.cluster.endpoints) as rc:
            wait_until(lambda: bool(rc.shard_map().shard_of(self.threads.key).leader), "a leader")
            address = rc.shard_map().shard_of(self.threads.key).leader
            return next(node for node in self.cluster.nodes if node.address == address)

    def wait_for_work(self) -> None:
        """Until each has counted some more; the pipeline ends with its node."""
        then = [tally.done for tally in self.tallies]
        pairs = list(zip(self.tallies[:3], then, strict=False))
        wait_until(lambda: all(tally.done > before + 20 for tally, before in pairs), "more increments of each kind")

    def count_in_thread(self, rc: Client) -> None:
        while not self.stopping:
            rc.incr(self.threads.key)
            self.threads.add()

    def count_with_doubt(self, rc: Client) -> None:
        tally = self.without_sessions
        while not self.stopping:
            try:
                rc.incr(tally.key)
            except AmbiguousResult as error:
                assert not error.definite
                tally.doubt()
            else:
                tally.add()

    async def count_in_tasks(self) -> None:
        """Single increments and batches."""
        key = self.tasks.key

        async def work(rc: AsyncClient, *, batches: bool) -> None:
            while not self.stopping:
                if batches:
                    outcomes = await rc.batch([ops.incr(key), ops.incr(key + "x"), ops.incr(key)])
                    assert all(isinstance(outcome, int) for outcome in outcomes), outcomes
                    self.tasks.add(2)
                else:
                    await rc.incr(key)
                    self.tasks.add()

        rc = AsyncClient(self.cluster.endpoints, timeout=PATIENCE_SECONDS, transport=self.transport)
        async with rc, asyncio.TaskGroup() as group:
            for number in range(WORKERS):
                group.create_task(work(rc, batches=number % 3 == 0), name=f"worker-{number}")

    def count_in_pipeline(self, rc: Client) -> None:
        """Until its node is gone."""
        tally, futures = self.pipeline, []
        with rc.pipeline(window=50) as pipeline:
            try:
                while not self.stopping:
                    futures.append(pipeline.incr(tally.key))
            except Unavailable:
                pass
        for future in futures:
            error = future.exception(PATIENCE_SECONDS)
            if error is None:
                tally.add()
            elif isinstance(error, AmbiguousResult):
                tally.doubt()
            else:
                assert isinstance(error, RaftCacheError)
                assert error.definite, error


@pytest.fixture(scope="module", params=get_args(Transport))
def storm(request: pytest.FixtureRequest, cluster: Cluster) -> Storm:
    """After the storm: the leader was killed under load, and is back. By each transport."""
    found = Storm(cluster, request.param)
    try:
        found.run()
    finally:
        cluster.restart(*(node for node in cluster.nodes if not node.running))
    return found


def test_increments_of_threads_count_once_when_the_leader_is_killed(storm: Storm) -> None:
    """Lost attempts are repeated under their stamps, and applied once."""
    assert (storm.threads.done, 0) == (storm.threads.stored, storm.threads.ambiguous)


def test_increments_of_tasks_count_once_when_the_leader_is_killed(storm: Storm) -> None:
    """As with threads; single ones and batches."""
    assert (storm.tasks.done, 0) == (storm.tasks.stored, storm.tasks.ambiguous)


def test_without_sessions_doubt_is_told(storm: Storm) -> None:
    """What is stored lies between what was acknowledged and that plus what was ambiguous: no lie in either direction."""
    tally = storm.without_sessions
    assert tally.done <= tally.stored <= tally.done + tally.ambiguous


def test_a_pipeline_whose_node_is_killed_is_ambiguous_where_it_must_be(storm: Storm) -> None:
    """What was answered counts, what was not may; what was refused does not."""
    tally = storm.pipeline
    assert tally.done > 0
    assert tally.ambiguous > 0, "nothing was under way"
    assert tally.done <= tally.stored <= tally.done + tally.ambiguous


def test_the_same_client_works_on_with_the_node_that_came_back(storm: Storm) -> None:
    """Also where it is the only endpoint."""
    for node in storm.cluster.nodes:
        with storm.client(node.address, routing="gateway") as rc:
            assert storm.threads.stored == rc.incr(storm.threads.key, 0)


@pytest.fixture
def name() -> str:
    """A key of this test's own: the cluster is shared."""
    return uuid.uuid4().hex[:12]


def test_a_program_may_fork(cluster: Cluster, name: str, transport: Transport) -> None:
    """With a client of its own in use before, and in children and grandchildren; both clients."""
    program = [sys.executable, "-m", "tests.client.fork_main", cluster.endpoints, name, transport]
    run = subprocess.run(program, cwd=TOP, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    assert 0 == run.returncode, run.stdout + run.stderr
    counted = ["5", "10", "15", "20", "21", "22", "27", "28", "29"]
    assert (counted if transport == "grpcio" else [*counted, "30", "31"]) == run.stdout.split()


@pytest.mark.parametrize("program", ["counter.py", "pipeline_async.py"])
def test_the_examples_run(cluster: Cluster, program: str) -> None:
    """What people copy works."""
    path = Path("examples") / "python" / program
    run = subprocess.run(
        [sys.executable, str(path), cluster.endpoints],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert 0 == run.returncode, run.stdout + run.stderr
    assert run.stdout
