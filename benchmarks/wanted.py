"""What the project holds itself to, and whether a run shows it. Pure.

Each front has its own ratios: grpcio costs a call more than all that is behind it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.figures import median_of
from benchmarks.footprint import PUTS_LOAD, PUTS_OUTSTANDING
from benchmarks.lag import NodeLag
from benchmarks.measurement import OURS, PLAIN, STUBS, Summary

MIB = 1 << 20


@dataclass(frozen=True)
class Verdict:
    """One line: met or not. Some have an aim beyond what is owed."""

    what: str
    wanted: str
    measured: str
    met: bool
    aim: str = ""
    aim_met: bool | None = None
    """None = there is no aim."""


FIGURES: dict[str, tuple[str, Callable[[Summary], float | None]]] = {
    "ops": ("times etcd's", lambda each: each.ratio),
    "p99": ("p99, times etcd's", lambda each: each.p99_ratio),
    "cpu": ("processor time of all nodes per operation, times etcd's", lambda each: each.cpu_ratio),
    "memory": ("anonymous memory of a node, times etcd's", lambda each: each.memory_ratio),
}
"""What is compared with the peer's. Of operations a second more is better, of all others less."""


@dataclass(frozen=True)
class RatioWanted:
    """Of one load: what is owed, and what is hoped for."""

    load: str
    outstanding: int
    floor: float
    aim: float | None = None
    figure: str = "ops"

    def verdict(self, what: str, measured: float) -> Verdict:
        """What a measured ratio is worth."""
        more = self.figure == "ops"
        sign = ">=" if more else "<="
        return Verdict(
            what,
            f"{sign} {self.floor:g}",
            f"{measured:.2f}",
            measured >= self.floor if more else measured <= self.floor,
            "" if self.aim is None else f"{sign} {self.aim:g}",
            None if self.aim is None else measured >= self.aim if more else measured <= self.aim,
        )


Level = tuple[int, float, float | None]
"""Outstanding requests, floor, and aim where there is one."""


def _unary(operation: str, *levels: Level, figure: str = "ops") -> tuple[RatioWanted, ...]:
    return tuple(
        RatioWanted(f"{operation}, {keys}", outstanding, floor, aim, figure)
        for keys in ("one key", "100,000 keys")
        for outstanding, floor, aim in levels
    )


RATIOS_WANTED = {
    "grpcio": (
        *_unary("put", (64, 0.2, None)),
        *_unary("get", (64, 0.3, None)),
        RatioWanted("batches of 100 puts", 16, 2.0),
    ),
    "fast": (
        *_unary("put", (1, 1.2, 1.5), (64, 2.0, 3.0), (256, 2.5, 4.0)),
        *_unary("get", (1, 2.0, 3.0), (64, 4.0, 7.0), (256, 5.0, 9.0)),
        RatioWanted("batches of 10 puts", 64, 5.0, 8.0),
        RatioWanted("batches of 100 puts", 16, 4.0, 6.0),
        *_unary("put", (64, 0.5, 0.25), (256, 0.5, 0.25), figure="p99"),
        *_unary("put", (256, 0.5, 0.3), figure="cpu"),
        RatioWanted(PUTS_LOAD, PUTS_OUTSTANDING, 0.7, 0.5, figure="memory"),
    ),
}
"""By the front of our nodes."""
CLIENT_RATIO_MIN = 2.0
"""The Python client at 64 outstanding, times the ordinary grpcio client with the generated stubs; behind either front."""
CLIENT_OUTSTANDING = 64
COMMANDS_PER_FSYNC_MIN = 20.0
"""On a loaded leader: group commit works."""
SHARDS_RATIOS_MIN = {16: 0.9, 64: 0.85}
"""Shards, to one: they share a log, an fdatasync and frames."""
HOP_RATIO_MIN = 0.6
"""Through a node that does not lead, to the leader asked directly."""
LAG_SECONDS_MAX = 0.005
"""p99.9 of the event loop's lag under load, while checkpoints are taken."""
LAG_PROBES_MIN = 1_000
"""Of fewer, one in a thousand is none."""
SOAK_P99_GROWTH_MAX = 1.5
"""Of the last third of a soak, to the first. Runs of the same load minutes apart differ by less on a quiet machine."""
SOAK_MEMORY_GROWTH_MAX = 1.1
NEW_LEADER_MEDIAN_SECONDS_MAX = 2.0
NEW_LEADER_WORST_SECONDS_MAX = 4.0
ANONYMOUS_BYTES_MAX = 300 * MIB
"""A node with 1,000,000 keys of 100 bytes."""
RESTART_SECONDS_MAX = 30.0
IDLE_CORES_MAX = 0.05
"""A node with 64 shards and nothing to do."""


@dataclass
class Absolute:
    """What is measured without a peer. Empty = not measured."""

    new_leader_seconds: list[float] = field(default_factory=list)
    handover_requests: int = 0
    handover_failures: dict[str, int] = field(default_factory=dict)
    handover_longest_gap_seconds: float = 0.0
    handover_stop_seconds: float = 0.0
    footprint: dict[str, float] = field(default_factory=dict)
    """Of 1,000,000 keys: `keys`, `anonymous_bytes`, `file_bytes`, `restart_one_seconds`, `restart_all_seconds`."""
    idle_cores: list[float] = field(default_factory=list)
    """Of each node with 64 shards."""
    idle_shards: int = 0
    loop_lag: dict[str, NodeLag] = field(default_factory=dict)
    """By node."""
    idle_loop: dict[str, float] = field(default_factory=dict)
    """What `idle_loop` measured meanwhile: how late the machine lets a loop be that has nothing to do."""
    sizes_skipped: list[str] = field(default_factory=list)
    """What of the growing data was not measured, and why."""
    soak: dict[str, float] = field(default_factory=dict)
    """`soak.growth`."""


def verdicts(summaries: Sequence[Summary], absolute: Absolute, *, front: str) -> list[Verdict]:
    """Whatever was measured of what is wanted, of nodes with this front."""
    return [
        *_ratios(summaries, front),
        *_within(summaries),
        *_clients(summaries),
        *_fsyncs(summaries),
        *_absolute(absolute),
    ]


def _ratios(summaries: Sequence[Summary], front: str) -> list[Verdict]:
    found = []
    for wanted in RATIOS_WANTED[front]:
        words, figure = FIGURES[wanted.figure]
        for each in summaries:
            if (each.load, each.outstanding, each.system) == (wanted.load, wanted.outstanding, PLAIN):
                measured = figure(each)
                if measured is not None:
                    what = f"{each.load} at {each.outstanding} ({each.generator}), {words}"
                    found.append(wanted.verdict(what, measured))
    return found


def _within(summaries: Sequence[Summary]) -> list[Verdict]:
    """What is compared with our own nodes: many shards with one, a node that passes calls on with the leader."""
    wanted = {f"{PLAIN}, {shards} shards": (ratio, "those of one") for shards, ratio in SHARDS_RATIOS_MIN.items()}
    wanted[f"{PLAIN}, one hop"] = (HOP_RATIO_MIN, "the leader's")
    found = []
    for each in summaries:
        if each.system in wanted and each.plain_ratio is not None:
            floor, other = wanted[each.system]
            what = f"{each.load} at {each.outstanding}: {each.system}, times {other}"
            found.append(Verdict(what, f">= {floor:g}", f"{each.plain_ratio:.2f}", each.plain_ratio >= floor))
    return found


def _clients(summaries: Sequence[Summary]) -> list[Verdict]:
    found = []
    stubs = {each.load: each for each in summaries if (each.generator, each.outstanding) == (STUBS, CLIENT_OUTSTANDING)}
    for each in summaries:
        other = stubs.get(each.load)
        if (each.generator, each.outstanding) == (OURS, CLIENT_OUTSTANDING) and other is not None:
            share = each.operations_per_second / other.operations_per_second if other.operations_per_second else 0.0
            what = f"{each.load} at {each.outstanding}: the Python client, times gRPC's stubs"
            found.append(Verdict(what, f">= {CLIENT_RATIO_MIN}", f"{share:.2f}", share >= CLIENT_RATIO_MIN))
    return found


def _fsyncs(summaries: Sequence[Summary]) -> list[Verdict]:
    return [
        Verdict(
            f"{each.load}: commands per fsync of the leader",
            f">= {COMMANDS_PER_FSYNC_MIN:.0f}",
            f"{each.details['commands_per_fsync']:.0f}",
            each.details["commands_per_fsync"] >= COMMANDS_PER_FSYNC_MIN,
        )
        for each in summaries
        if each.load.startswith("stream") and "commands_per_fsync" in each.details
    ]


def _absolute(absolute: Absolute) -> list[Verdict]:
    found = []
    if absolute.new_leader_seconds:
        middle, worst = median_of(absolute.new_leader_seconds), max(absolute.new_leader_seconds)
        times = len(absolute.new_leader_seconds)
        found.append(
            _below(f"kill -9 of the leader to the next write, median of {times}", middle, NEW_LEADER_MEDIAN_SECONDS_MAX)
        )
        found.append(_below(f"... and the worst of {times}", worst, NEW_LEADER_WORST_SECONDS_MAX))
    if absolute.handover_requests:
        failed = sum(absolute.handover_failures.values())
        what = (
            f"failed requests of {absolute.handover_requests:,} of the Python client across clean stops of the leader"
        )
        found.append(Verdict(what, "0", f"{failed} {absolute.handover_failures or ''}".strip(), failed == 0))
    if absolute.footprint:
        size, keys = absolute.footprint["anonymous_bytes"], absolute.footprint["keys"]
        what = f"anonymous memory of a node with {keys:,.0f} keys, MiB"
        found.append(Verdict(what, f"< {ANONYMOUS_BYTES_MAX // MIB}", f"{size / MIB:.0f}", size < ANONYMOUS_BYTES_MAX))
        for name, label in (("restart_one_seconds", "one node"), ("restart_all_seconds", "all nodes")):
            if name in absolute.footprint:
                found.append(
                    _below(f"kill -9 of {label} to serving again", absolute.footprint[name], RESTART_SECONDS_MAX)
                )
    if absolute.idle_cores:
        busiest = max(absolute.idle_cores)
        what = f"processor of the busiest node with {absolute.idle_shards} idle shards, share of a core"
        found.append(Verdict(what, f"< {IDLE_CORES_MAX:.0%}", f"{busiest:.1%}", busiest < IDLE_CORES_MAX))
    return [*found, *_lag(absolute.loop_lag, absolute.idle_loop), *_soak(absolute.soak)]


def _lag(nodes: Mapping[str, NodeLag], idle: Mapping[str, float]) -> list[Verdict]:
    """Of the node that was latest. What was not shown is not met."""
    if not nodes:
        return []
    worst = max(nodes.values(), key=lambda node: node.below)
    probes = min(node.probes for node in nodes.values())
    checkpoints = min(node.checkpoints for node in nodes.values())
    lacking = ""
    if not checkpoints:
        lacking = ": not shown, not every node took a checkpoint meanwhile"
    elif probes < LAG_PROBES_MIN:
        lacking = ": not shown, the probes are too few"
    found = f"{worst.above * 1000:g} to {worst.below * 1000:g}"
    beside = f"; an idle loop beside them {idle['p99_9_seconds'] * 1000:.1f}" if idle else ""
    measured = f"{found} ({probes:,} probes, {checkpoints} checkpoints a node{beside}){lacking}"
    what = "put at 256: lag of the worst node's event loop while checkpoints are taken, p99.9, ms"
    met = not lacking and worst.below <= LAG_SECONDS_MAX
    return [Verdict(what, f"<= {LAG_SECONDS_MAX * 1000:g}", measured, met)]


def _soak(growth: Mapping[str, float]) -> list[Verdict]:
    found = []
    for name, grown in growth.items():
        if name not in ("windows", "seconds"):
            limit = SOAK_MEMORY_GROWTH_MAX if "memory" in name else SOAK_P99_GROWTH_MAX
            what = f"soak of {growth['seconds'] / 60:.0f} minutes: {name}, last third times first"
            found.append(Verdict(what, f"<= {limit:g}", f"{grown:.2f}", grown <= limit))
    return found


def _below(what: str, seconds: float, limit: float) -> Verdict:
    return Verdict(what + ", s", f"< {limit:g}", f"{seconds:.2f}", seconds < limit)
