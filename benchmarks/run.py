"""The benchmark: `make bench`, or `python benchmarks/run.py --help`.

Compares a cluster of three raftcache nodes with a fresh cluster of three etcd members on this machine, one alive at a time,
with all load generators on the same processors and all data on the same disk. Ratios are what counts: figures of one machine
and hour do not compare with those of another.

Exit status: 0 = measured; 1 = something was not what it claimed to be (see "problems"); 3 = etcd or h2load is not installed
and the comparison was skipped; 130 = ended by Ctrl-C or SIGTERM. A figure below what is wanted is reported, and does not fail the run.
"""

import argparse
import contextlib
import datetime
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
# Run as a program this directory is on the path, and not the repository with `benchmarks` and `tests`.
sys.path.insert(0, str(TOP))

from benchmarks import (  # noqa: E402
    clients,
    failures,
    footprint,
    growth,
    h2load,
    lag,
    machine,
    openloop,
    plots,
    report,
    routing,
    soak,
    systems,
    throughput,
    wanted,
)
from benchmarks.measurement import Measurement, summarise  # noqa: E402
from benchmarks.systems import etcd_cluster, etcd_installed, raftcache_cluster  # noqa: E402
from benchmarks.throughput import Plan  # noqa: E402

EXIT_PROBLEMS = 1
EXIT_SKIPPED = 3
EXIT_INTERRUPTED = 130
"""As shells have it: 128 and SIGINT's number."""

COMPARED: dict[str, Callable[[systems.System, Plan], None]] = {
    "one-key": throughput.one_key,
    "many-keys": throughput.many_keys,
    "batches": throughput.batches,
    "memory": footprint.after_puts,
}
"""Both systems, in every run."""
REPEATED = ("shards", "hop", "client")
"""Ours alone, in every run."""
ONCE = ("lag", "openloop", "failover", "handover", "footprint", "idle")
ASKED_FOR = ("sizes", "soak")
"""Long ones, which run only if they are named."""
PARTS = (*COMPARED, *REPEATED, *ONCE, *ASKED_FOR)

SHARDS = (1, 16, 64)
IDLE_SHARDS = 64
IDLE_SECONDS = 20.0
KILLS = 20
STOPS = 5
LAG_SECONDS = 120.0
"""Long enough for some checkpoints, and for 2,000 probes of the event loop on each node."""
SOAK_MINUTES = 30
FOOTPRINT_KEYS = 1_000_000
QUICK_KILLS = 3
QUICK_STOPS = 2
QUICK_KEYS = 100_000
QUICK_LAG_SECONDS = 10.0
QUICK_WINDOWS = 6
QUICK_KEY_STEPS = growth.KEY_STEPS[:2]
QUICK_VALUE_STEPS = growth.VALUE_STEPS[:2]
QUICK_SECONDS = 1.5
SECONDS = 5.0
WARM_UP_SHARE = 0.3
PROBLEM_CHARACTERS_MAX = 500
"""The whole of it stands above, where it happened."""
MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})


class Bench:
    """One invocation: its options, and everything that came of it."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options = options
        self.scratch = scratch
        self.measurements: list[Measurement] = []
        self.absolute = wanted.Absolute()
        self.failed: list[str] = []
        """Parts that ended with an exception."""
        self.compared = etcd_installed() and h2load.installed()
        self._clusters = 0

    def run(self) -> None:
        """All parts that were asked for. A part that fails does not end the others."""
        repeated: dict[str, Callable[[int], None]] = {
            "shards": self._shards,
            "hop": self._hop,
            "client": self._client,
        }
        once: dict[str, Callable[[], None]] = {
            "lag": self._lag,
            "openloop": self._openloop,
            "failover": self._failover,
            "handover": self._handover,
            "footprint": self._footprint,
            "idle": self._idle,
            "sizes": self._sizes,
            "soak": self._soak,
        }
        for run in range(1, self.options.runs + 1):
            for name, load in COMPARED.items():
                if name in self.options.only and self.compared:
                    self._attempt(f"{name}, run {run}", lambda load=load, run=run: self._compare(load, run))  # type: ignore[misc]
            for name, part in repeated.items():
                if name in self.options.only:
                    self._attempt(f"{name}, run {run}", lambda part=part, run=run: part(run))  # type: ignore[misc]
        for name, alone in once.items():
            if name in self.options.only:
                self._attempt(name, alone)

    def _attempt(self, name: str, part: Callable[[], None]) -> None:
        say(f"\n== {name}")
        try:
            part()
        except Exception as error:  # noqa: BLE001 # reported at the end, and the exit status tells
            say(traceback.format_exc(limit=-4))
            self.failed.append(f"{name}: {type(error).__name__}: {str(error)[:PROBLEM_CHARACTERS_MAX]}")

    def _directory(self) -> Path:
        """Of a new cluster. What those before have left to the disk is not to be its delay."""
        os.sync()
        self._clusters += 1
        return self.scratch / f"cluster{self._clusters}"

    def _plan(self, run: int, seconds: float = 0.0) -> Plan:
        seconds = seconds or self.options.seconds
        return Plan(run, seconds, self.options.seconds * WARM_UP_SHARE, self.scratch, self._record)

    def _record(self, measurement: Measurement) -> None:
        self.measurements.append(measurement)
        cores = "+".join(f"{spent / measurement.seconds:.2f}" for spent in measurement.cpu_seconds.values())
        say(
            f"  {measurement.load:34} {measurement.generator:7} {measurement.system:20} {measurement.outstanding:4}"
            f" {measurement.operations_per_second:10,.0f} ops/s  p50 {measurement.p50_us:8,.0f} us"
            f"  p99 {measurement.p99_us:8,.0f} us  cores {cores}  others {measurement.others_cpu_share:.0%}"
        )
        for problem in measurement.problems:
            say(f"    PROBLEM: {problem}")

    def _ours(self, shards: int = 1) -> contextlib.AbstractContextManager[systems.Raftcache]:
        return raftcache_cluster(self._directory(), shards=shards, front=self.options.front)

    # --- Parts --------------------------------------------------------------------------------------------------------

    def _compare(self, load: Callable[[systems.System, Plan], None], run: int) -> None:
        """Both systems in the same minutes, each fresh; who goes first alternates."""
        for which in ("raftcache", "etcd") if run % 2 else ("etcd", "raftcache"):
            if which == "raftcache":
                with self._ours() as ours:
                    load(ours, self._plan(run))
            else:
                with etcd_cluster(self._directory()) as theirs:
                    load(theirs, self._plan(run))

    def _shards(self, run: int) -> None:
        for shards in SHARDS if run % 2 else reversed(SHARDS):
            with self._ours(shards) as ours:
                routing.many_shards(ours, self._plan(run))

    def _hop(self, run: int) -> None:
        with self._ours() as ours:
            routing.one_hop(ours, self._plan(run))

    def _client(self, run: int) -> None:
        with self._ours() as ours:
            clients.by_tasks(ours, self._plan(run))
            clients.by_threads(ours, self._plan(run))

    def _lag(self) -> None:
        with self._ours() as ours:
            plan = self._plan(1, QUICK_LAG_SECONDS if self.options.quick else LAG_SECONDS)
            self.absolute.loop_lag, self.absolute.idle_loop = lag.under_load(ours, plan)
        for name, node in self.absolute.loop_lag.items():
            say(
                f"  {name}: p99.9 of {node.probes:,} lags {node.above * 1000:g} to {node.below * 1000:g} ms,"
                f" {node.checkpoints} checkpoints taken"
            )
        idle = self.absolute.idle_loop
        say(
            f"  a loop that does nothing, beside them: {idle['p99_9_seconds'] * 1000:.1f} ms,"
            f" {idle['max_seconds'] * 1000:.1f} at most"
        )

    def _openloop(self) -> None:
        if self.compared:
            self._compare(openloop.curve, 1)

    def _sizes(self) -> None:
        deadline = time.monotonic() + growth.SECONDS_MAX
        series = (QUICK_KEY_STEPS, QUICK_VALUE_STEPS) if self.options.quick else (growth.KEY_STEPS, growth.VALUE_STEPS)

        def grow(system: systems.System, steps: tuple[growth.Step, ...]) -> None:
            self.absolute.sizes_skipped += growth.measure(system, self._plan(1), steps, deadline, say)

        for steps in series:
            with self._ours() as ours:
                grow(ours, steps)
        for steps in series if etcd_installed() else ():
            with etcd_cluster(self._directory()) as theirs:
                grow(theirs, steps)

    def _soak(self) -> None:
        with self._ours() as ours:
            if self.options.quick:
                soak.minutes(ours, self._plan(1), QUICK_WINDOWS)
            else:
                soak.minutes(ours, self._plan(1, 60.0), self.options.minutes)

    def _failover(self) -> None:
        with self._ours() as ours:
            times = QUICK_KILLS if self.options.quick else KILLS
            self.absolute.new_leader_seconds = failures.new_leader(ours, times, say)

    def _handover(self) -> None:
        with self._ours() as ours:
            stops = failures.clean_stops(ours, QUICK_STOPS if self.options.quick else STOPS)
        self.absolute.handover_requests = stops.requests
        self.absolute.handover_failures = dict(stops.failures)
        self.absolute.handover_longest_gap_seconds = stops.longest_gap()
        self.absolute.handover_stop_seconds = max(stops.stop_seconds)
        say(
            f"  {stops.requests:,} requests, {sum(stops.failures.values())} failed; no acknowledgement for"
            f" {stops.longest_gap():.2f} s at most; stops took {', '.join(f'{s:.1f}' for s in stops.stop_seconds)} s"
        )
        for failure, count in stops.failures.most_common():
            say(f"    {count} x {failure}")
        self.failed += stops.problems

    def _footprint(self) -> None:
        with self._ours() as ours:
            keys = QUICK_KEYS if self.options.quick else FOOTPRINT_KEYS
            self.absolute.footprint = footprint.many_keys(ours, keys, say)

    def _idle(self) -> None:
        with self._ours(IDLE_SHARDS) as ours:
            self.absolute.idle_shards = IDLE_SHARDS
            self.absolute.idle_cores = footprint.idle(ours, IDLE_SECONDS)
            say(f"  cores of each node: {', '.join(f'{cores:.3f}' for cores in self.absolute.idle_cores)}")

    # --- Results ------------------------------------------------------------------------------------------------------

    def finish(self, here: dict[str, object]) -> int:
        """Prints and writes the results; returns the exit status."""
        summaries = summarise(self.measurements)
        self.absolute.soak = soak.growth(self.measurements)
        verdicts = wanted.verdicts(summaries, self.absolute, front=self.options.front)
        problems = report.problems_of(self.measurements) + self.failed
        if summaries:
            say("\n" + report.throughput_table(summaries))
            beside = report.client_table(summaries)
            if beside:
                say("\nThe Python client beside gRPC's with the generated stubs, on the same server:\n" + beside)
            beside = report.loader_table(summaries)
            if beside:
                say("\nOur loader beside h2load, the same request:\n" + beside)
            say(
                "\nh2load knows no gRPC status. Puts were checked by the revision, which went up by as many as it counted;"
                "\ngets by the bytes of data in its answers and one read of a real client. The loader reads every status."
            )
        if verdicts:
            say("\n" + report.verdict_table(verdicts))
        if self.absolute.sizes_skipped:
            say("\nNot measured:\n" + "\n".join(f"- {each}" for each in self.absolute.sizes_skipped))
        if problems:
            say("\nProblems:\n" + "\n".join(f"- {problem}" for problem in problems))
        self._write(
            {
                "machine": here,
                "options": {
                    "runs": self.options.runs,
                    "seconds": self.options.seconds,
                    "parts": self.options.only,
                    "front": self.options.front,
                },
                "summaries": [asdict(each) for each in summaries],
                "absolute": asdict(self.absolute),
                "verdicts": [asdict(each) for each in verdicts],
                "problems": problems,
                "measurements": [each.as_json() for each in self.measurements],
            },
            plots.pictures(summaries, self.measurements),
        )
        if problems:
            return EXIT_PROBLEMS
        if not self.compared:
            say("\nSKIPPED: " + missing())
            return EXIT_SKIPPED
        return 0

    def _write(self, results: dict[str, object], pictures: dict[str, str]) -> None:
        path = self.options.output
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        say(f"\nresults: {path}")
        for name, picture in pictures.items():
            beside = path.with_name(f"{path.stem}-{name}.svg")
            beside.write_text(picture)
            say(f"picture: {beside}")


def say(text: str) -> None:
    """To whoever watches, at once."""
    print(text, flush=True)


def missing() -> str:
    """What is not installed and how to get it."""
    names = [name for name, there in (("etcd", etcd_installed()), ("h2load", h2load.installed())) if not there]
    return (
        f"no {' and no '.join(names)} here, so nothing was compared. "
        "Debian/Ubuntu: apt install etcd-server nghttp2-client"
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=0, help="repetitions, of which the median counts (default 3)")
    parser.add_argument("--quick", action="store_true", help="one short run: to see that it works, not to measure")
    parser.add_argument("--seconds", type=float, default=0.0, help=f"of each measurement (default {SECONDS:g})")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PARTS,
        default=[part for part in PARTS if part not in ASKED_FOR],
        metavar="PART",
        help=f"of: {', '.join(PARTS)} (default: all but {' and '.join(ASKED_FOR)})",
    )
    parser.add_argument("--minutes", type=int, default=SOAK_MINUTES, help=f"of the soak (default {SOAK_MINUTES})")
    parser.add_argument(
        "--front", choices=tuple(wanted.RATIOS_WANTED), default="fast", help="of our nodes (default fast)"
    )
    parser.add_argument(
        "--directory", type=Path, default=TOP / "build", help="where clusters keep their data; must be a real disk"
    )
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d-%H%M%S")
    parser.add_argument("--output", type=Path, default=TOP / "benchmarks" / "results" / f"{date}.json")
    options = parser.parse_args()
    options.runs = options.runs or (1 if options.quick else 3)
    options.seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    return options


@contextlib.contextmanager
def scratch_directory(parent: Path) -> Iterator[Path]:
    """Gone afterwards, whatever happens."""
    parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="bench-", dir=parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> int:
    options = parse_options()
    # As Ctrl-C, so that every `finally` runs and no cluster is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with scratch_directory(options.directory) as scratch:
        here = machine.describe(scratch)
        say("\n".join(f"{name:13} {value}" for name, value in here.items()))
        if here["file_system"] in MEMORY_FILE_SYSTEMS:
            say(f"WARNING: {scratch} is in memory, where an fdatasync costs nothing: use --directory")
        bench = Bench(options, scratch)
        if not bench.compared:
            say("SKIPPED: " + missing())
            if not set(options.only) - {*COMPARED, "openloop"}:
                return EXIT_SKIPPED
        try:
            bench.run()
        except KeyboardInterrupt:
            say("\nended early; all clusters are stopped, and this is what was measured until then")
            bench.finish(here)
            return EXIT_INTERRUPTED
        return bench.finish(here)


if __name__ == "__main__":
    sys.exit(main())
