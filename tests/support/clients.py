"""Clients of several kinds that run beside a test and remember what they were told.

Each counts what was acknowledged and what went wrong; none hides anything. They are used in a `with` block, and what they
remember is read afterwards.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

import raftcache
from raftcache.v1 import kv_pb2
from tests.support.cluster import Cluster, Node, wait_until
from tests.support.nodejs import NODE

PROGRESS_SECONDS = 60.0
PACE_SECONDS = 0.01
"""Between two things that one thread does. Clients at full speed take the processors from the nodes that are to start."""
NODEJS_OUTSTANDING = 2
"""Calls of the Node.js client at a time: few, for the same reason."""


class Beside:
    """Threads that each do one thing again and again until the block ends."""

    def __init__(self, threads: int, name: str) -> None:
        self.acknowledged: dict[bytes, bytes] = {}
        """What was written, as acknowledged; no key is written twice."""
        self.errors: Counter[str] = Counter()
        self.done = [0] * threads
        """Turns of each thread, well or badly ended."""
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"{name} {number}") for number in range(threads)
        ]

    def turn(self, thread: int, number: int) -> None:
        """One thing. What it raises is counted."""
        raise NotImplementedError

    def _run(self, thread: int) -> None:
        while not self._stopping.is_set():
            try:
                self.turn(thread, self.done[thread])
            except raftcache.RaftCacheError as error:
                self.errors[f"{error.reason}: {error}"] += 1
            except grpc.RpcError as error:
                self.errors[f"{error.code().name}: {error.details()}"] += 1
            self.done[thread] += 1
            self._stopping.wait(PACE_SECONDS)

    def progress(self, turns: int = 1) -> None:
        """Waits until every thread has ended so many more turns that began after this call."""
        goals = [done + 1 + turns for done in self.done]
        wait_until(
            lambda: all(done >= goal for done, goal in zip(self.done, goals, strict=True)),
            f"{turns} more turns of every client; errors: {self.errors}",
            PROGRESS_SECONDS,
        )

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


class PutClient(Beside):
    """`raftcache.Client` as a program uses it: one client, all endpoints, default settings, some threads."""

    def __init__(self, cluster: Cluster, *, threads: int = 2) -> None:
        super().__init__(threads, "put")
        self._client = raftcache.Client(cluster.endpoints)

    def turn(self, thread: int, number: int) -> None:
        key, value = b"client%d/%d" % (thread, number), b"%d" % number
        self._client.put(key, value)
        self.acknowledged[key] = value

    def __exit__(self, *raised: object) -> None:
        super().__exit__(None, None, None)
        self._client.close()


class PlainPuts(Beside):
    """Bare gRPC stubs through any nodes but one. Nothing is ever sent again."""

    def __init__(self, cluster: Cluster, *, threads: int = 2) -> None:
        super().__init__(threads, "plain")
        self._cluster = cluster
        self._avoided: Node | None = None

    def avoid(self, node: Node | None) -> None:
        """From the return on, no call is under way through `node`."""
        self._avoided = node
        self.progress()

    def turn(self, thread: int, number: int) -> None:
        nodes = [node for node in self._cluster.nodes if node is not self._avoided]
        stub = self._cluster.kv(nodes[number % len(nodes)])
        key, value = b"plain%d/%d" % (thread, number), b"%d" % number
        # wait_for_ready: a connection to a node that was down for a while is made anew, and that is no failed request.
        stub.Put(kv_pb2.PutRequest(key=key, value=value), timeout=10, wait_for_ready=True)
        self.acknowledged[key] = value


class Counting(Beside):
    """Increments of a few counters by one client with sessions: each is to be counted once, whatever happens."""

    def __init__(self, cluster: Cluster, *, threads: int = 3, counters: int = 4, timeout: float = 60.0) -> None:
        super().__init__(threads, "count")
        self._client = raftcache.Client(cluster.endpoints, timeout=timeout)
        self._counters = counters
        self._lock = threading.Lock()
        self.counted: Counter[bytes] = Counter()
        """Acknowledged increments of each counter."""

    def turn(self, thread: int, number: int) -> None:
        key = b"counter-%d" % (number % self._counters)
        self._client.incr(key)
        with self._lock:
            self.counted[key] += 1

    def stored(self) -> dict[bytes, int]:
        """What the cluster has counted."""
        found = {}
        for key in self.counted:
            entry = self._client.get(key)
            found[key] = int(entry.value) if entry is not None else 0
        return found

    def close(self) -> None:
        self._client.close()


class NodejsLoad:
    """`client.mjs --load`: a process of another language, which prints each key when its write is acknowledged."""

    def __init__(self, example: Path, cluster: Cluster) -> None:
        assert NODE, "the test is to be marked with needs_node"
        command = [NODE, "client.mjs", "--address", cluster.endpoints, "--load", "--prefix", "nodejs/"]
        command += ["--outstanding", str(NODEJS_OUTSTANDING)]
        self._errors = (cluster.root / "nodejs.stderr").open("w+b")
        self.process = subprocess.Popen(
            command,
            cwd=example,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | {"NODE_NO_WARNINGS": "1"},
            start_new_session=True,
        )
        self.acknowledged: dict[bytes, bytes] = {}
        self._reader = threading.Thread(target=self._read, name="nodejs output")
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            facts = json.loads(line)
            self.acknowledged[facts["key"].encode()] = facts["value"].encode()

    def progress(self, writes: int) -> None:
        """Waits until so many more writes were acknowledged."""
        goal = len(self.acknowledged) + writes
        wait_until(
            lambda: len(self.acknowledged) >= goal or self.process.poll() is not None,
            f"{writes} more writes of the Node.js client",
            PROGRESS_SECONDS,
        )

    def stop(self) -> int:
        """Asks it to end as a person would (SIGTERM), reads the rest of its output, and returns its exit status."""
        self.process.terminate()
        status = self.process.wait(30)
        self._reader.join()
        return status

    def close(self) -> None:
        """Leaves no process behind."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._errors.close()
