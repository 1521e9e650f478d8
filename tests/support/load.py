"""Writers that remember what they were told, so that a test can hold the cluster to it."""

import itertools
import random
import threading
import time
from collections import Counter

import grpc

from raftcache.v1 import kv_pb2, kv_pb2_grpc
from tests.support.cluster import Cluster, wait_until

CALL_SECONDS = 4.0
PAUSE_SECONDS = 0.02


class Writers:
    """Threads that write numbered keys through random nodes until `stop`; no key is written twice."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        threads: int = 3,
        value_bytes: int = 64,
        seed: int = 1,
        pace_seconds: float = 0.0,
    ) -> None:
        self.acknowledged: dict[bytes, bytes] = {}
        self.errors: Counter[str] = Counter()
        self.times: list[float] = []
        """When each acknowledgement came (monotonic seconds)."""
        self._cluster = cluster
        self._value_bytes = value_bytes
        self._seed = seed
        self._pace_seconds = pace_seconds
        """A pause after each write, so that nodes find the processors free to start."""
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"writer {number}") for number in range(threads)
        ]

    def start(self) -> "Writers":
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> dict[bytes, bytes]:
        """Ends the writers; returns what was acknowledged."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        return self.acknowledged

    def progress(self, writes: int) -> None:
        """Waits until so many more were acknowledged."""
        goal = len(self.acknowledged) + writes
        wait_until(lambda: len(self.acknowledged) >= goal, f"{writes} more acknowledged writes: {self.errors}")

    def __enter__(self) -> "Writers":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self, writer: int) -> None:
        dice = random.Random(self._seed * 1000 + writer)
        number = 0
        while not self._stopping.is_set():
            # A client gives up on a node that stands still after one call; here that is left out, for it only takes time.
            node = dice.choice([node for node in self._cluster.nodes if node.starts and not node.paused])
            key, value = b"w%d-%d" % (writer, number), dice.randbytes(self._value_bytes)
            number += 1
            try:
                stub = kv_pb2_grpc.KvServiceStub(self._cluster.channel(node.address))
                stub.Put(kv_pb2.PutRequest(key=key, value=value), timeout=CALL_SECONDS)
            except grpc.RpcError as error:
                self.errors[f"{error.code().name}: {(error.details() or '')[:60]}"] += 1
                self._stopping.wait(PAUSE_SECONDS)
            else:
                self.acknowledged[key] = value
                self.times.append(time.monotonic())
                self._stopping.wait(self._pace_seconds)

    def longest_gap(self) -> float:
        """Seconds between two acknowledgements, of all writers together, at most."""
        times = sorted(self.times)
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)


def lost(cluster: Cluster, acknowledged: dict[bytes, bytes]) -> list[bytes]:
    """The acknowledged keys that a linearizable read through some node does not return as written."""
    keys = list(acknowledged)
    missing = []
    stub = cluster.kv(next(node for node in cluster.nodes if node.running))
    for start in range(0, len(keys), 500):
        part = keys[start : start + 500]
        request = kv_pb2.BatchRequest(operations=[kv_pb2.Operation(get=kv_pb2.GetRequest(key=key)) for key in part])
        response = stub.Batch(request, timeout=30, wait_for_ready=True)
        for key, result in zip(part, response.results, strict=True):
            assert result.WhichOneof("result") == "get", f"{key!r}: {result}"
            if not result.get.HasField("entry") or result.get.entry.value != acknowledged[key]:
                missing.append(key)
    return missing
