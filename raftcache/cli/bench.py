"""`raftcache bench`: so many clients at once, each with one request at a time, for so long.

Rules of this file:
- only keys of its own: under a prefix that no earlier run had, removed at the end;
- everything is bounded: clients, keys, bytes, time, and the memory that latencies take;
- an error is counted by its reason and never hidden; a write of unknown outcome is one of them.

Caveat: the load comes from one process of Python, which is soon busier than the cluster. This is for a first look, and for
comparing a cluster with itself.
"""

import asyncio
import random
import secrets
import signal
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from raftcache.cli.exits import Exit
from raftcache.cli.latencies import Latencies
from raftcache.cli.options import Target, duration, target_options
from raftcache.cli.output import JSON, Document, note, output_option, table, write_json

if TYPE_CHECKING:
    from raftcache.client import AsyncClient
    from raftcache.client.options import Routing

CLIENTS_MAX = 4_096
KEYS_MAX = 1_000_000
SIZE_MAX = 1 << 20
"""The default `limits.value_bytes_max`."""
SECONDS_MAX = 3_600.0
BATCH_BYTES = 1 << 20
BATCH_OPERATIONS = 500
"""Both a quarter to a half of what a node takes in one batch by default."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for."""

    clients: int
    seconds: float
    size: int
    keys: int
    read_ratio: float
    prefix: bytes

    def key(self, number: int) -> bytes:
        return self.prefix + b"%d" % number


@dataclass(slots=True)
class Measured:
    """What came of it."""

    reads: Latencies = field(default_factory=Latencies)
    writes: Latencies = field(default_factory=Latencies)
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


@click.command()
@click.option("--clients", type=click.IntRange(1, CLIENTS_MAX), default=16, show_default=True, help="Requests at once.")
@click.option(
    "--duration", "seconds", type=duration, default="10s", show_default=True, metavar="DURATION", help="How long."
)
@click.option("--size", type=click.IntRange(0, SIZE_MAX), default=100, show_default=True, help="Bytes of a value.")
@click.option("--keys", type=click.IntRange(1, KEYS_MAX), default=1_000, show_default=True, help="Different keys.")
@click.option("--read-ratio", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Share of reads.")
@click.option(
    "--routing",
    type=click.Choice(["direct", "gateway"]),
    default="direct",
    show_default=True,
    help="direct: to the leaders; gateway: to the endpoints, which forward.",
)
@click.option("--keep", is_flag=True, help="Leave the keys there.")
@target_options
@output_option
def bench(
    clients: int,
    seconds: float,
    size: int,
    keys: int,
    read_ratio: float,
    routing: "Routing",
    keep: bool,
    target: Target,
    output: str,
) -> None:
    """Put load on a cluster and measure it.

    Writes keys of its own first, then reads and writes them at random, then removes them. Reads are linearizable. Ctrl-C
    ends it early, with a report. Exit code 1: there were errors.

    \b
    raftcache bench
    raftcache bench --clients 64 --duration 30s --read-ratio 0.9
    raftcache bench --size 1000 --keys 100000 -o json | jq .operations_per_second
    """
    from raftcache.cli.failures import reported

    if seconds > SECONDS_MAX:
        raise click.UsageError("--duration is at most 1h")
    prefix = f"raftcache-bench/{secrets.token_hex(4)}/".encode()
    load = Load(clients, seconds, size, keys, read_ratio, prefix)
    with reported(writes=False):
        measured = asyncio.run(_run(load, target, routing, keep=keep))
    if output == JSON:
        write_json("bench", report_document(load, measured))
    else:
        click.echo(report_text(load, measured))
    if measured.errors:
        sys.exit(Exit.FAILURE)


# --- The run ------------------------------------------------------------------------------------------------------


async def _run(load: Load, target: Target, routing: "Routing", *, keep: bool) -> Measured:
    from raftcache.client import AsyncClient, ops

    async with AsyncClient(target.endpoints, routing=routing, timeout=target.timeout, tls=target.tls) as client:
        # Where nobody answers there is nothing to write, nor to remove afterwards.
        await client.ping()
        note(f"writing {load.keys} keys of {load.size} bytes under {load.prefix.decode()}")
        value = bytes(load.size)
        try:
            await _in_batches(client, load, [ops.put(load.key(number), value) for number in range(load.keys)])
            note(f"{load.clients} clients for {load.seconds:g} s")
            return await _measure(client, load)
        finally:
            if not keep:
                await _remove_keys(client, load)


async def _remove_keys(client: "AsyncClient", load: Load) -> None:
    from raftcache.client import ops
    from raftcache.errors import RaftCacheError

    note("removing the keys")
    try:
        await _in_batches(client, load, [ops.delete(load.key(number)) for number in range(load.keys)])
    except RaftCacheError as error:
        # What was measured, or what went wrong before, matters more.
        note(f"some keys under {load.prefix.decode()} are left: {error.message}")


async def _in_batches(client: "AsyncClient", load: Load, operations: list[Any]) -> None:
    """Runs them all. Raises: the first error."""
    step = max(1, min(BATCH_OPERATIONS, BATCH_BYTES // max(1, load.size)))
    for start in range(0, len(operations), step):
        for outcome in await client.batch(operations[start : start + step]):
            if isinstance(outcome, Exception):
                raise outcome


async def _measure(client: "AsyncClient", load: Load) -> Measured:
    from raftcache.clock import NS_PER_SECOND, SystemClock

    clock, measured, loop = SystemClock(), Measured(), asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGINT, stopped.set)
    started_ns = clock.monotonic_ns()
    end_ns = started_ns + int(load.seconds * NS_PER_SECOND)

    async def one_client(random_source: random.Random) -> None:
        while clock.monotonic_ns() < end_ns and not stopped.is_set():
            await _one(client, load, measured, random_source, clock)

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(load.clients):
                group.create_task(one_client(random.Random(number)), name=f"bench client {number}")
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    measured.seconds = (clock.monotonic_ns() - started_ns) / NS_PER_SECOND
    return measured


async def _one(client: "AsyncClient", load: Load, measured: Measured, random_source: random.Random, clock: Any) -> None:
    """One operation; its latency counts if it succeeds, its reason if not."""
    from raftcache.errors import RaftCacheError

    key = load.key(random_source.randrange(load.keys))
    reads = random_source.random() < load.read_ratio
    started_ns = clock.monotonic_ns()
    try:
        if reads:
            await client.get(key)
        else:
            await client.put(key, random_source.randbytes(load.size))
    except RaftCacheError as error:
        measured.errors[error.reason] += 1
        return
    (measured.reads if reads else measured.writes).add(clock.monotonic_ns() - started_ns)


# --- The report ---------------------------------------------------------------------------------------------------


def report_document(load: Load, measured: Measured) -> Document:
    """The report for programs."""
    total = measured.reads.merged(measured.writes)
    return {
        "clients": load.clients,
        "keys": load.keys,
        "value_bytes": load.size,
        "read_ratio": load.read_ratio,
        "seconds": round(measured.seconds, 3),
        "operations": str(total.count),
        "operations_per_second": _rate(total, measured),
        "all": _latency_document(total, measured),
        "reads": _latency_document(measured.reads, measured),
        "writes": _latency_document(measured.writes, measured),
        "errors": {reason: str(count) for reason, count in sorted(measured.errors.items())},
    }


def _rate(latencies: Latencies, measured: Measured) -> float:
    return round(latencies.count / measured.seconds, 1) if measured.seconds else 0.0


def _latency_document(latencies: Latencies, measured: Measured) -> Document:
    return {
        "operations": str(latencies.count),
        "operations_per_second": _rate(latencies, measured),
        "p50_ms": _ms(latencies.percentile_ns(50)),
        "p99_ms": _ms(latencies.percentile_ns(99)),
        "p999_ms": _ms(latencies.percentile_ns(99.9)),
        "max_ms": _ms(latencies.max_ns),
    }


def _ms(latency_ns: int) -> float:
    return round(latency_ns / 1e6, 3)


def report_text(load: Load, measured: Measured) -> str:
    """The report for people."""
    rows = []
    for name, latencies in (
        ("reads", measured.reads),
        ("writes", measured.writes),
        ("all", measured.reads.merged(measured.writes)),
    ):
        document = _latency_document(latencies, measured)
        rows.append((name, document["operations"], *(f"{document[key]:.1f}" for key in _COLUMNS)))
    headings = ("", "OPERATIONS", "PER SECOND", "P50 MS", "P99 MS", "P99.9 MS", "MAX MS")
    lines = [table(headings, rows, right=frozenset(range(1, 7)))]
    errors = sum(measured.errors.values())
    lines.append(f"errors: {errors}" + "".join(f"\n  {reason}: {n}" for reason, n in sorted(measured.errors.items())))
    return "\n".join(lines)


_COLUMNS = ("operations_per_second", "p50_ms", "p99_ms", "p999_ms", "max_ms")
