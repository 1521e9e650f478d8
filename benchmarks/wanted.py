"""What the project holds itself to, and whether a run shows it. Pure.

Each front has its own ratios: grpcio costs a call more than all that is behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.figures import median_of
from benchmarks.measurement import OURS, STUBS, Summary

MIB = 1 << 20


@dataclass(frozen=True)
class Verdict:
    """One line: met or not."""

    what: str
    wanted: str
    measured: str
    met: bool


@dataclass(frozen=True)
class RatioWanted:
    """At least `ratio` times the peer's operations a second."""

    load: str
    outstanding: int
    ratio: float


def _unary(operation: str, *ratios: tuple[int, float]) -> tuple[RatioWanted, ...]:
    return tuple(
        RatioWanted(f"{operation}, {keys}", outstanding, ratio)
        for keys in ("one key", "100,000 keys")
        for outstanding, ratio in ratios
    )


RATIOS_WANTED = {
    "grpcio": (*_unary("put", (64, 0.2)), *_unary("get", (64, 0.3)), RatioWanted("batches of 100 puts", 16, 2.0)),
    "fast": (
        *_unary("put", (1, 1.2), (64, 2.0), (256, 2.5)),
        *_unary("get", (1, 2.0), (64, 4.0), (256, 5.0)),
        RatioWanted("batches of 100 puts", 16, 4.0),
    ),
}
"""By the front of our nodes."""
CLIENT_RATIO_MIN = 2.0
"""The Python client at 64 outstanding, times the ordinary grpcio client with the generated stubs; on the fast front."""
CLIENT_OUTSTANDING = 64
COMMANDS_PER_FSYNC_MIN = 20.0
"""On a loaded leader: group commit works."""
SHARDS_RATIO_MIN = 0.85
"""16 shards to one: they share a log, an fdatasync and frames."""
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


def verdicts(summaries: Sequence[Summary], absolute: Absolute, *, front: str) -> list[Verdict]:
    """Whatever was measured of what is wanted, of nodes with this front."""
    return [
        *_ratios(summaries, front),
        *_shards(summaries),
        *_clients(summaries),
        *_fsyncs(summaries),
        *_absolute(absolute),
    ]


def _ratios(summaries: Sequence[Summary], front: str) -> list[Verdict]:
    found = []
    for wanted in RATIOS_WANTED[front]:
        for each in summaries:
            if (each.load, each.outstanding, each.system) == (wanted.load, wanted.outstanding, "raftcache"):
                if each.ratio is not None:
                    what = f"{each.load} at {each.outstanding} ({each.generator}), times etcd's"
                    met = each.ratio >= wanted.ratio
                    found.append(Verdict(what, f">= {wanted.ratio}", f"{each.ratio:.2f}", met))
    return found


def _shards(summaries: Sequence[Summary]) -> list[Verdict]:
    found = []
    one = {(each.load, each.outstanding): each for each in summaries if each.system == "raftcache"}
    for each in summaries:
        alone = one.get((each.load, each.outstanding))
        if each.system.endswith(" shards") and alone is not None and alone.operations_per_second:
            share = each.operations_per_second / alone.operations_per_second
            what = f"{each.load} at {each.outstanding}: {each.system}, times those of one"
            found.append(Verdict(what, f">= {SHARDS_RATIO_MIN}", f"{share:.2f}", share >= SHARDS_RATIO_MIN))
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
    return found


def _below(what: str, seconds: float, limit: float) -> Verdict:
    return Verdict(what + ", s", f"< {limit:g}", f"{seconds:.2f}", seconds < limit)
