"""One measurement: what a load achieved, what it cost, and whether it was what it claims to be."""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks import usage
from benchmarks.figures import median_of, percentile, ratio, spread

PEER = "etcd"
"""The system that others are compared with."""
PLAIN = "raftcache"
"""Ours as it comes: one shard, asked directly. Other ways to run it have longer names, and are compared with it."""

STUBS = "stubs"
"""The generator that the Python client is compared with: gRPC's own, with the generated stubs."""
OURS = "raftcache"
"""The Python client as it comes."""


@dataclass
class Measurement:
    """A row of the results. Times are microseconds, memory bytes."""

    load: str
    """What was asked for, as in `put, one key`."""
    generator: str
    """Who asked: `h2load`, `loader`, or one of `clients.KINDS`."""
    system: str
    outstanding: int
    run: int
    operations: int = 0
    """Succeeded; a batch of 100 counts as 100."""
    seconds: float = 0.0
    p50_us: float = 0.0
    p99_us: float = 0.0
    p999_us: float = 0.0
    """Of requests: of a batch as a whole."""
    errors: int = 0
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    """By node, the leader of shard 1 first."""
    anonymous_bytes: dict[str, int] = field(default_factory=dict)
    file_bytes: dict[str, int] = field(default_factory=dict)
    generator_cpu_seconds: float = 0.0
    others_cpu_share: float = 0.0
    """Share of the machine that went to processes which have nothing to do with the benchmark."""
    details: dict[str, float] = field(default_factory=dict)
    """What else is known, as commands per fsync."""
    problems: list[str] = field(default_factory=list)
    """Why this figure does not mean what it says; empty = it does."""

    @property
    def operations_per_second(self) -> float:
        return self.operations / self.seconds if self.seconds else 0.0

    @property
    def cpu_us(self) -> float:
        """Processor time of all nodes together, per operation."""
        return sum(self.cpu_seconds.values()) * 1e6 / self.operations if self.operations else 0.0

    @property
    def anonymous_bytes_max(self) -> int:
        """Of the largest node."""
        return max(self.anonymous_bytes.values(), default=0)

    def take_latencies(self, ordered_us: "Iterable[int]") -> None:
        """`ordered_us` ascends."""
        ordered = list(ordered_us)
        self.p50_us, self.p99_us = percentile(ordered, 0.5), percentile(ordered, 0.99)
        self.p999_us = percentile(ordered, 0.999)

    def take_memory(self, processes: dict[str, int]) -> None:
        """Of the nodes as they are now, by their process ids."""
        for name, pid in processes.items():
            memory = usage.memory(pid)
            self.anonymous_bytes[name] = memory.anonymous
            self.file_bytes[name] = memory.file

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "operations_per_second": round(self.operations_per_second, 1)}


class Watch:
    """What the nodes and the machine spend between `begin` and `end`."""

    def __init__(self, processes: dict[str, int], leader: str) -> None:
        first = [leader] if leader in processes else []
        self._processes = {name: processes[name] for name in [*first, *sorted(processes.keys() - {leader})]}
        self._cpu: dict[str, float] = {}
        self._busy = 0.0
        self._began = 0.0

    def begin(self) -> None:
        self._began = time.monotonic()
        self._busy = usage.busy_seconds()
        self._cpu = {name: usage.cpu_seconds(pid) for name, pid in self._processes.items()}

    def end(self, measurement: Measurement, *, processors: int) -> None:
        """Fills in what was spent. `generator_cpu_seconds` has to be there."""
        cpu = {name: usage.cpu_seconds(pid) - self._cpu[name] for name, pid in self._processes.items()}
        busy = usage.busy_seconds() - self._busy
        measurement.cpu_seconds = {name: round(spent, 3) for name, spent in cpu.items()}
        others = busy - sum(cpu.values()) - measurement.generator_cpu_seconds
        # Not the load's own seconds: connecting and parting belong to what was watched.
        watched = time.monotonic() - self._began
        measurement.others_cpu_share = round(max(0.0, others / watched / processors), 3)
        measurement.take_memory(self._processes)


@dataclass
class Summary:
    """The median of all runs of one measurement on one system."""

    load: str
    generator: str
    outstanding: int
    system: str
    operations_per_second: float
    spread: float
    """Between the fastest and the slowest run, as a share of the median: what differences below it mean nothing."""
    p50_us: float
    p99_us: float
    p999_us: float
    errors: int
    ratio: float | None
    """Operations per second to the peer's: the median of the ratios of each run. So are the other ratios."""
    p99_ratio: float | None
    cpu_ratio: float | None
    """Of processor time per operation, all nodes together."""
    memory_ratio: float | None
    """Of anonymous memory, each the largest node's."""
    plain_ratio: float | None
    """Operations per second to those of `PLAIN`, where this is another way to run it."""
    cores: list[float]
    """Processors used by each node, the leader first."""
    cpu_us: float
    """Of all nodes together, per operation."""
    anonymous_bytes: int
    """Of the largest node."""
    file_bytes: int
    """Of the node with the most."""
    others_cpu_share: float
    details: dict[str, float]


def summarise(measurements: list[Measurement]) -> list[Summary]:
    """Loads in the order in which they were first made, the systems of each beside each other.

    Ratios compare within one run only.
    """
    bases = {
        (m.load, m.generator, m.outstanding, m.run, m.system): m for m in measurements if m.system in (PEER, PLAIN)
    }
    groups: dict[tuple[str, str, int], dict[str, list[Measurement]]] = {}
    for measurement in measurements:
        key = (measurement.load, measurement.generator, measurement.outstanding)
        groups.setdefault(key, {}).setdefault(measurement.system, []).append(measurement)
    return [
        _summary((*key, system), runs, bases)
        for key, systems in groups.items()
        for system, runs in sorted(systems.items(), key=lambda item: (item[0] == PEER, item[0]))
    ]


def _summary(
    key: tuple[str, str, int, str], runs: list[Measurement], bases: dict[tuple[str, str, int, int, str], Measurement]
) -> Summary:
    load, generator, outstanding, system = key

    def beside(base: str) -> list[tuple[Measurement, Measurement]]:
        found = ((run, bases.get((load, generator, outstanding, run.run, base))) for run in runs if system != base)
        return [(run, other) for run, other in found if other is not None]

    pairs = beside(PEER)
    plain = beside(PLAIN) if system != PEER else []
    cores = [[spent / run.seconds for spent in run.cpu_seconds.values()] for run in runs if run.seconds]
    names = {name for run in runs for name in run.details}
    return Summary(
        load=load,
        generator=generator,
        outstanding=outstanding,
        system=system,
        operations_per_second=median_of(run.operations_per_second for run in runs),
        spread=spread(run.operations_per_second for run in runs),
        p50_us=median_of(run.p50_us for run in runs),
        p99_us=median_of(run.p99_us for run in runs),
        p999_us=median_of(run.p999_us for run in runs),
        errors=sum(run.errors for run in runs),
        ratio=_median_ratio((run.operations_per_second, peer.operations_per_second) for run, peer in pairs),
        p99_ratio=_median_ratio((run.p99_us, peer.p99_us) for run, peer in pairs),
        cpu_ratio=_median_ratio((run.cpu_us, peer.cpu_us) for run, peer in pairs),
        memory_ratio=_median_ratio((run.anonymous_bytes_max, peer.anonymous_bytes_max) for run, peer in pairs),
        plain_ratio=_median_ratio((run.operations_per_second, other.operations_per_second) for run, other in plain),
        cores=[median_of(column) for column in zip(*cores, strict=False)],
        cpu_us=median_of(run.cpu_us for run in runs),
        anonymous_bytes=int(median_of(run.anonymous_bytes_max for run in runs)),
        file_bytes=int(median_of(max(run.file_bytes.values(), default=0) for run in runs)),
        others_cpu_share=median_of(run.others_cpu_share for run in runs),
        details={name: median_of(run.details[name] for run in runs if name in run.details) for name in sorted(names)},
    )


def _median_ratio(pairs: Iterable[tuple[float, float]]) -> float | None:
    """Of ours to theirs in each run; None where there is nothing to compare with."""
    found = [each for each in (ratio(ours, theirs) for ours, theirs in pairs) if each is not None]
    return median_of(found) if found else None
