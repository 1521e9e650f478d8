"""Loads that measure throughput and latency, each run against one cluster at a time.

    one key      h2load, and our loader on the same request, which shows what our loader is worth
    many keys    100,000 random keys, our loader
    batches      10 and 100 puts in one request: our Batch, etcd's Txn; and our stream of batches

Every load ends with a check that it was what it claims: the revision went up by as many writes as were counted, the answers
have the size of a real answer, and a real client reads what was written.
"""

import itertools
import os
import random
import resource
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import h2load, prometheus
from benchmarks.loader import LoadResult, Requests, run_stream, run_unary
from benchmarks.measurement import Measurement, Watch
from benchmarks.messages import ETCD_TXN, etcd_txn_of_puts, framed
from benchmarks.systems import BATCH, PIPELINE, SHARD, Raftcache, System
from raftcache.kv.slots import slot_of
from raftcache.v1 import kv_pb2

OUTSTANDING = (1, 64, 256)
VALUE = b"v" * 100
ONE_KEY = b"benchmark/one-key"
KEYS = 100_000
BATCHES = ((10, 64), (100, 16))
"""Puts in a request, and requests outstanding."""
BATCH_OPERATIONS, BATCH_OUTSTANDING = BATCHES[-1]
BATCH_DRAWS = 40_000
"""Draws of a key in the distinct batches that are sent in turn, some 4 MiB."""
FILL_OPERATIONS = 100
FILL_OUTSTANDING = 8
ANSWER_BYTES_SLACK = 8
"""Log index and revision are numbers of variable length, and grow meanwhile."""
H2LOAD_REQUESTS_MIN = 200
ANSWERS_KEPT = 50
SEED = 20_261

Record = Callable[[Measurement], None]


@dataclass(frozen=True)
class Plan:
    """How long, where, and which repetition this is."""

    run: int
    seconds: float
    """Of each measurement."""
    warm_up_seconds: float
    directory: Path
    """Scratch space; bodies and logs of h2load."""
    record: Record
    outstanding: Sequence[int] = OUTSTANDING


def keys_of(count: int, start: int = 0) -> list[bytes]:
    """Keys that are spread over all slots."""
    return [b"benchmark/%08d" % number for number in range(start, start + count)]


# --- One key --------------------------------------------------------------------------------------------------------


def one_key(system: System, plan: Plan) -> None:
    """Unary Put and Get of one key, by h2load and by our loader."""
    for operation in ("put", "get"):
        path = system.put_path if operation == "put" else system.get_path
        message = system.put_message(ONE_KEY, VALUE) if operation == "put" else system.get_message(ONE_KEY)
        body = framed(message)
        unary(system, plan, "", system.put_path, _always(framed(system.put_message(ONE_KEY, VALUE))), 1, count=1)
        for outstanding in plan.outstanding:
            load = f"{operation}, one key"
            unary(system, plan, "", path, _always(body), outstanding, seconds=plan.warm_up_seconds)
            ours = unary(system, plan, load, path, _always(body), outstanding, writes=operation == "put")
            requests = max(H2LOAD_REQUESTS_MIN, int(ours.operations_per_second * plan.seconds))
            _h2load(system, plan, load, path, body, outstanding, requests, writes=operation == "put")


def _always(body: bytes) -> Requests:
    return itertools.repeat((0, body))


def _h2load(
    system: System, plan: Plan, load: str, path: str, body: bytes, outstanding: int, requests: int, *, writes: bool
) -> None:
    measurement = Measurement(load, "h2load", system.name, outstanding, plan.run)
    with Checked(system, measurement, one_key_answer=not writes) as checked:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        report, taken_us = h2load.run(
            checked.leader, path, body, outstanding=outstanding, requests=requests, directory=plan.directory
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        measurement.generator_cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        measurement.operations, measurement.seconds, measurement.errors = (
            report.succeeded,
            report.seconds,
            report.failed,
        )
        measurement.take_latencies(taken_us)
        checked.writes = report.succeeded if writes else 0
    if not writes:
        # h2load calls a refused call a success: only the data says that there was a value.
        expected = checked.answer_bytes
        got = report.data_bytes / max(1, report.succeeded)
        if abs(got - expected) > ANSWER_BYTES_SLACK:
            measurement.problems.append(f"answers had {got:.1f} bytes of data, a real client's {expected}")
    plan.record(measurement)


# --- Many keys ------------------------------------------------------------------------------------------------------


def many_keys(system: System, plan: Plan) -> None:
    """Unary Put and Get of random ones of 100,000 keys."""
    keys = keys_of(KEYS)
    fill(system, keys)
    for operation in ("put", "get"):
        path = system.put_path if operation == "put" else system.get_path
        addresses, requests = random_requests(system, operation, keys)
        for outstanding in plan.outstanding:
            unary(system, plan, "", path, requests, outstanding, seconds=plan.warm_up_seconds, addresses=addresses)
            unary(
                system,
                plan,
                f"{operation}, {len(keys):,} keys",
                path,
                requests,
                outstanding,
                writes=operation == "put",
                addresses=addresses,
            )


def random_requests(system: System, operation: str, keys: Sequence[bytes]) -> tuple[list[str], Requests]:
    """Where to connect, and requests for the leader of each key, in an order that is the same in every run."""
    shard = _shard_by_key(system)
    leaders = system.leaders() if isinstance(system, Raftcache) else {1: system.leader()}
    addresses = sorted({leaders[shard(key)] for key in keys})
    numbers = {address: number for number, address in enumerate(addresses)}
    if operation == "put":
        bodies = [(numbers[leaders[shard(key)]], framed(system.put_message(key, VALUE))) for key in keys]
    else:
        bodies = [(numbers[leaders[shard(key)]], framed(system.get_message(key))) for key in keys]
    random.Random(SEED).shuffle(bodies)
    return addresses, itertools.cycle(bodies)


def _shard_by_key(system: System) -> Callable[[bytes], int]:
    if not isinstance(system, Raftcache) or system.shards == 1:
        return lambda key: 1
    table = {
        slot: shard.shard
        for shard in system.cluster.info().shards
        for part in shard.ranges
        for slot in range(part.lo, part.hi)
    }
    return lambda key: table[slot_of(key)]


class NotFilled(RuntimeError):
    """Some of the batches failed; says how."""


def fill(
    system: System, keys: Sequence[bytes], *, operations: int = FILL_OPERATIONS, value: bytes = VALUE
) -> LoadResult:
    """Writes every key once, in batches. Raises: `NotFilled` where some failed, `RuntimeError` where an answer is wrong."""
    batches = (keys[start : start + operations] for start in range(0, len(keys), operations))
    bodies = ((0, framed(batch_message(system, batch, value))) for batch in batches)
    result = run_unary(
        [system.leader()],
        batch_path(system),
        bodies,
        outstanding=FILL_OUTSTANDING,
        seconds=600.0,
        keep_answers=ANSWERS_KEPT,
    )
    problems = _batch_problems(system, result.answers)
    if problems:
        raise RuntimeError(f"of the batches that fill the cluster: {problems}")
    if result.failed:
        statuses = ", ".join(f"{count} with status {status}" for status, count in sorted(result.statuses.items()))
        raise NotFilled(f"of the batches that fill the cluster {result.failed} failed ({statuses})")
    return result


# --- Batches --------------------------------------------------------------------------------------------------------


def batches(system: System, plan: Plan) -> None:
    """10 and 100 puts in a request; for raftcache 100 also as a stream."""
    path = batch_path(system)
    for operations, outstanding in BATCHES:
        bodies = [(0, framed(batch_message(system, keys))) for keys in _batches_of_keys(operations)]
        requests = itertools.cycle(bodies)
        unary(system, plan, "", path, requests, outstanding, seconds=plan.warm_up_seconds)
        load = f"batches of {operations} puts"
        unary(system, plan, load, path, requests, outstanding, operations=operations, writes=True)
    if isinstance(system, Raftcache):
        _stream(system, plan)


def batch_path(system: System) -> str:
    """The method that takes `batch_message`."""
    return BATCH if isinstance(system, Raftcache) else ETCD_TXN


def batch_message(system: System, keys: Sequence[bytes], value: bytes = VALUE) -> bytes:
    """One request that puts all of `keys`."""
    if isinstance(system, Raftcache):
        operations = [kv_pb2.Operation(put=kv_pb2.PutRequest(key=key, value=value)) for key in keys]
        return kv_pb2.BatchRequest(operations=operations).SerializeToString()
    return etcd_txn_of_puts([(key, value) for key in keys])


def _batches_of_keys(operations: int) -> Iterator[list[bytes]]:
    dice = random.Random(SEED)
    keys = keys_of(KEYS)
    return (dice.sample(keys, operations) for _ in range(BATCH_DRAWS // operations))


def _stream(system: Raftcache, plan: Plan) -> None:
    """The stream of batches: one client, so many batches unanswered."""
    operations = [
        [kv_pb2.Operation(put=kv_pb2.PutRequest(key=key, value=VALUE)) for key in keys]
        for keys in _batches_of_keys(BATCH_OPERATIONS)
    ]
    bodies = [
        (0, framed(kv_pb2.PipelineRequest(request_id=number + 1, operations=each).SerializeToString()))
        for number, each in enumerate(operations)
    ]
    measurement = Measurement(
        f"stream of batches of {BATCH_OPERATIONS} puts", "loader", system.name, BATCH_OUTSTANDING, plan.run
    )
    with Checked(system, measurement) as checked:
        result = run_stream(
            checked.leader,
            PIPELINE,
            itertools.cycle(bodies),
            outstanding=BATCH_OUTSTANDING,
            seconds=plan.seconds,
            keep_answers=ANSWERS_KEPT,
        )
        take(measurement, result, BATCH_OPERATIONS)
        checked.writes = measurement.operations
    for answer in result.answers:
        response = kv_pb2.PipelineResponse.FromString(answer)
        if response.HasField("error") or any(not each.put.succeeded for each in response.results):
            measurement.problems.append(f"an answer of the stream is no success: {str(response)[:200]}")
            break
    plan.record(measurement)


def _batch_problems(system: System, answers: Sequence[bytes]) -> list[str]:
    """A batch whose puts all failed is a success to gRPC: the kept answers are looked into."""
    if not isinstance(system, Raftcache):
        return []
    for answer in answers:
        for result in kv_pb2.BatchResponse.FromString(answer).results:
            if not result.put.succeeded:
                return [f"a put of a batch failed: {str(result)[:200]}"]
    return []


# --- What they share ------------------------------------------------------------------------------------------------


def unary(
    system: System,
    plan: Plan,
    load: str,
    path: str,
    requests: Requests,
    outstanding: int,
    *,
    seconds: float = 0.0,
    count: int = 0,
    operations: int = 1,
    writes: bool = False,
    addresses: Sequence[str] = (),
) -> Measurement:
    """Our loader's measurement; recorded if `load` has a name, else it only warms up."""
    measurement = Measurement(load, "loader", system.name, outstanding, plan.run)
    if count:
        requests = itertools.islice(requests, count)
    with Checked(system, measurement) as checked:
        result = run_unary(
            addresses or [checked.leader],
            path,
            requests,
            outstanding=outstanding,
            seconds=seconds or plan.seconds,
            keep_answers=ANSWERS_KEPT,
        )
        take(measurement, result, operations)
        checked.writes = result.succeeded * checked.revisions_per(operations) if writes else 0
    if path == BATCH:
        measurement.problems += _batch_problems(system, result.answers)
    if path == system.get_path and any(len(answer) <= len(VALUE) for answer in result.answers):
        measurement.problems.append("an answer to a get has no value")
    if load:
        plan.record(measurement)
    return measurement


def take(measurement: Measurement, result: LoadResult, operations: int = 1) -> None:
    """What came of our loader's load, into its measurement."""
    measurement.operations = result.succeeded * operations
    measurement.seconds = result.seconds
    measurement.errors = result.failed
    measurement.generator_cpu_seconds = result.loader_cpu_seconds
    measurement.take_latencies(array("q", sorted(ns // 1000 for ns in result.latencies_ns)))
    if result.failed:
        measurement.problems.append(f"failed requests by gRPC status: {dict(result.statuses)}")


class Checked:
    """A measurement with what surrounds it: who leads, what was spent, and by how much the revision went up."""

    def __init__(self, system: System, measurement: Measurement, *, one_key_answer: bool = False) -> None:
        self.leader = ""
        self.writes = 0
        """How many revisions the load says it made; 0 = it made none, or they are not counted."""
        self.answer_bytes = 0
        """Of one real answer on the wire."""
        self._system = system
        self._measurement = measurement
        self._one_key_answer = one_key_answer
        self._revision = 0
        self._metrics: dict[str, float] = {}
        self._watch = Watch({}, "")

    def revisions_per(self, operations: int) -> int:
        """A batch of ours makes one revision for each put, a transaction of etcd's one for all."""
        return operations if isinstance(self._system, Raftcache) else 1

    def __enter__(self) -> "Checked":
        system = self._system
        self.leader = system.leader()
        _, self._revision, size = system.read(ONE_KEY)
        self.answer_bytes = 5 + size
        if isinstance(system, Raftcache):
            self._metrics = system.metrics()
        self._watch = Watch(system.processes(), system.leader_name())
        self._watch.begin()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            return
        system, measurement = self._system, self._measurement
        self._watch.end(measurement, processors=os.cpu_count() or 1)
        if isinstance(system, Raftcache):
            self._read_metrics(system)
        if system.leader() != self.leader:
            measurement.problems.append("the leader changed meanwhile")
        value, revision, _ = system.read(ONE_KEY)
        if self._one_key_answer and value != VALUE:
            measurement.problems.append(f"a real client reads {value!r}")
        # With several shards there are several revisions; then each answer's gRPC status has to do.
        if self.writes and (not isinstance(system, Raftcache) or system.shards == 1):
            made = revision - self._revision
            if not self.writes <= made <= self.writes + measurement.errors:
                measurement.problems.append(f"{self.writes} writes were counted, the revision went up by {made}")

    def _read_metrics(self, system: Raftcache) -> None:
        after, before, details = system.metrics(), self._metrics, self._measurement.details
        commands = prometheus.mean_between(before, after, "raftcache_wal_fsync_commands")
        details["commands_per_fsync"] = round(commands, 1)
        fsync = prometheus.mean_between(before, after, "raftcache_wal_fsync_duration_seconds")
        details["fsync_us"] = round(fsync * 1e6, 1)
        for name in ("raftcache_raft_leader_changes_total", "raftcache_raft_elections_total"):
            # Of the shard that is measured: the cluster moves other leads about as it likes.
            changed = after.get(f'{name}{{shard="{SHARD}"}}', 0.0) - before.get(f'{name}{{shard="{SHARD}"}}', 0.0)
            if changed:
                self._measurement.problems.append(f"{name} went up by {changed:.0f}")
