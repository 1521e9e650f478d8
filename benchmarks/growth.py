"""Throughput and latency as the data grows: more keys, and larger values. By itself, for it takes its time.

A step is not made, and said to be not made, where a node's memory, of files included, would exceed `NODE_BYTES_MAX`, or where
the time that the whole part has is over, or where writing it failed. What is measured begins when the disk has all of that.
"""

import itertools
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import usage
from benchmarks.loader import Requests
from benchmarks.measurement import Measurement
from benchmarks.messages import framed
from benchmarks.systems import Raftcache, System
from benchmarks.throughput import SEED, NotFilled, Plan, fill, keys_of, unary

MIB = 1 << 20
OUTSTANDING = 64
KEY_COUNTS = (10_000, 100_000, 1_000_000, 5_000_000)
KEY_VALUE_BYTES = 100
VALUE_SIZES = (1 << 10, 16 << 10, 256 << 10)
VALUE_KEYS = 10_000
PEER_KEYS_MAX = 1_000_000
"""etcd is not measured beyond: filling it takes minutes, and its default quota is 2 GiB."""
PEER_VALUE_BYTES_MAX = 16 << 10
NODE_BYTES_MAX = 3_000_000_000
SECONDS_MAX = 840.0
"""Of the whole part, starts and stops apart."""
FILL_SECONDS_MAX = 260.0
"""Of writing one step, so that one which is slow leaves time for the others."""
BATCH_BYTES_MAX = MIB
BATCH_OPERATIONS_MAX = 100
CHUNK_BYTES = 32 * MIB
CHUNK_KEYS = 100_000
"""What is written between two looks at the time and the memory."""
SENT_KEYS_MAX = 200_000
SENT_BYTES_MAX = 256 * MIB
"""Distinct requests that are made beforehand: more than a measurement sends, unless the values are large."""


@dataclass(frozen=True)
class Step:
    """So many keys with values of one size."""

    keys: int
    value_bytes: int

    def __str__(self) -> str:
        size = f"{self.value_bytes // 1024} KiB" if self.value_bytes >= 1024 else f"{self.value_bytes} B"
        return f"{self.keys:,} keys of {size}"


KEY_STEPS = tuple(Step(keys, KEY_VALUE_BYTES) for keys in KEY_COUNTS)
VALUE_STEPS = tuple(Step(VALUE_KEYS, value_bytes) for value_bytes in VALUE_SIZES)


class TooMuch(Exception):
    """A step would exceed what it may take; says what."""


def feasible(step: Step, *, peer: bool) -> str:
    """Why a step is not even begun; empty = it is."""
    size = step.keys * step.value_bytes
    if size > NODE_BYTES_MAX:
        return f"{size / 1e9:.1f} GB of values alone, {NODE_BYTES_MAX / 1e9:g} a node are allowed"
    if peer and (step.keys > PEER_KEYS_MAX or step.value_bytes > PEER_VALUE_BYTES_MAX):
        return "etcd is measured up to a size that it is filled with quickly"
    return ""


def measure(
    system: System, plan: Plan, steps: tuple[Step, ...], deadline: float, say: Callable[[str], None]
) -> list[str]:
    """Each step on top of the one before. Returns the steps that were not made, with why."""
    skipped: list[str] = []
    filled = Step(0, 0)
    over = ""
    for step in steps:
        why = over or feasible(step, peer=not isinstance(system, Raftcache))
        if not why:
            try:
                # Larger values replace the smaller ones; of values of the same size, more are added.
                first = filled.keys if filled.value_bytes == step.value_bytes else 0
                _fill(system, step, first, min(deadline, time.monotonic() + FILL_SECONDS_MAX))
                filled = step
                _measure(system, plan, step)
            except TooMuch as error:
                why, over = str(error), "the step before it was too much"
        if why:
            skipped.append(f"{system.name}: {step}: {why}")
            say(f"  not measured: {skipped[-1]}")
    return skipped


def _fill(system: System, step: Step, first: int, deadline: float) -> None:
    value = bytes(step.value_bytes)
    operations = max(1, min(BATCH_OPERATIONS_MAX, BATCH_BYTES_MAX // step.value_bytes))
    chunk = max(operations, min(CHUNK_KEYS, CHUNK_BYTES // step.value_bytes))
    for start in range(first, step.keys, chunk):
        count = min(chunk, step.keys - start)
        try:
            fill(system, keys_of(count, start), operations=operations, value=value)
        except NotFilled as error:
            raise TooMuch(f"after {start:,} keys, {error}") from error
        taken = max(sum((memory.anonymous, memory.file)) for memory in map(usage.memory, system.processes().values()))
        if taken > NODE_BYTES_MAX:
            raise TooMuch(f"a node took {taken / 1e9:.1f} GB after {start + count:,} keys")
        if time.monotonic() > deadline:
            raise TooMuch(f"the time was over after {start + count:,} keys")
    os.sync()


def _measure(system: System, plan: Plan, step: Step) -> None:
    for operation in ("put", "get"):
        path = system.put_path if operation == "put" else system.get_path
        requests = _requests(system, operation, step)
        unary(system, plan, "", path, requests, OUTSTANDING, seconds=plan.warm_up_seconds)
        measurement = unary(system, plan, "", path, requests, OUTSTANDING, writes=operation == "put")
        measurement.load = f"{operation}, {step}"
        _note(measurement, system, step)
        plan.record(measurement)


def _note(measurement: Measurement, system: System, step: Step) -> None:
    measurement.details |= {"keys": step.keys, "value_bytes": step.value_bytes}
    if isinstance(system, Raftcache):
        disk = max(usage.disk_bytes(node.data) for node in system.cluster.nodes)
        measurement.details["disk_bytes"] = disk


def _requests(system: System, operation: str, step: Step) -> Requests:
    count = min(step.keys, SENT_KEYS_MAX, SENT_BYTES_MAX // step.value_bytes)
    value = bytes(step.value_bytes)
    keys = [b"benchmark/%08d" % number for number in random.Random(SEED).sample(range(step.keys), count)]
    message: Callable[[bytes], bytes] = (
        (lambda key: system.put_message(key, value)) if operation == "put" else system.get_message
    )
    return itertools.cycle([(0, framed(message(key))) for key in keys])
