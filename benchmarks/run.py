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
import platform
import shutil
import signal
import statistics
import subprocess
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

from benchmarks import clients, failures, footprint, h2load, report, systems, throughput, usage, wanted  # noqa: E402
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
}
PARTS = (*COMPARED, "shards", "client", "failover", "handover", "footprint", "idle")

SHARDS = 16
IDLE_SHARDS = 64
IDLE_SECONDS = 20.0
KILLS = 20
STOPS = 5
FOOTPRINT_KEYS = 1_000_000
QUICK_KILLS = 3
QUICK_STOPS = 2
QUICK_KEYS = 100_000
QUICK_SECONDS = 1.5
SECONDS = 5.0
WARM_UP_SHARE = 0.3
DISK_PROBES = 200
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
        parts: dict[str, Callable[[], None]] = {
            "failover": self._failover,
            "handover": self._handover,
            "footprint": self._footprint,
            "idle": self._idle,
        }
        for run in range(1, self.options.runs + 1):
            for name, load in COMPARED.items():
                if name in self.options.only and self.compared:
                    self._attempt(f"{name}, run {run}", lambda load=load, run=run: self._compare(load, run))  # type: ignore[misc]
            if "shards" in self.options.only:
                self._attempt(f"shards, run {run}", lambda run=run: self._shards(run))  # type: ignore[misc]
            if "client" in self.options.only:
                self._attempt(f"client, run {run}", lambda run=run: self._client(run))  # type: ignore[misc]
        for name, part in parts.items():
            if name in self.options.only:
                self._attempt(name, part)

    def _attempt(self, name: str, part: Callable[[], None]) -> None:
        say(f"\n== {name}")
        try:
            part()
        except Exception as error:  # noqa: BLE001 # reported at the end, and the exit status tells
            say(traceback.format_exc(limit=-4))
            self.failed.append(f"{name}: {type(error).__name__}: {str(error)[:PROBLEM_CHARACTERS_MAX]}")

    def _directory(self) -> Path:
        self._clusters += 1
        return self.scratch / f"cluster{self._clusters}"

    def _plan(self, run: int) -> Plan:
        seconds = self.options.seconds
        return Plan(run, seconds, seconds * WARM_UP_SHARE, self.scratch, self._record)

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
        for shards in (1, SHARDS) if run % 2 else (SHARDS, 1):
            with self._ours(shards) as ours:
                throughput.many_shards(ours, self._plan(run))

    def _client(self, run: int) -> None:
        with self._ours() as ours:
            clients.by_tasks(ours, self._plan(run))
            clients.by_threads(ours, self._plan(run))

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

    def finish(self, machine: dict[str, object]) -> int:
        """Prints and writes the results; returns the exit status."""
        summaries = summarise(self.measurements)
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
        if problems:
            say("\nProblems:\n" + "\n".join(f"- {problem}" for problem in problems))
        self._write(
            {
                "machine": machine,
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
            }
        )
        if problems:
            return EXIT_PROBLEMS
        if not self.compared:
            say("\nSKIPPED: " + missing())
            return EXIT_SKIPPED
        return 0

    def _write(self, results: dict[str, object]) -> None:
        path = self.options.output
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        say(f"\nresults: {path}")


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


def disk_probe(directory: Path) -> float:
    """Median microseconds of an fdatasync of 4 KiB: most of what a write takes with one outstanding."""
    taken = []
    descriptor, name = tempfile.mkstemp(dir=directory)
    try:
        block = bytes(4096)
        os.pwrite(descriptor, block * DISK_PROBES, 0)
        os.fsync(descriptor)
        for number in range(DISK_PROBES):
            began = time.perf_counter_ns()
            os.pwrite(descriptor, block, number * len(block))
            os.fdatasync(descriptor)
            taken.append((time.perf_counter_ns() - began) / 1000)
    finally:
        os.close(descriptor)
        os.unlink(name)
    return statistics.median(taken)


def describe_machine(scratch: Path) -> dict[str, object]:
    """What a reader has to know to make anything of the figures."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processors": os.cpu_count(),
        "model": model,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "file_system": usage.file_system(scratch),
        "fdatasync_us": round(disk_probe(scratch), 1),
        "load_average": round(os.getloadavg()[0], 2),
        "commit": _first_line(["git", "-C", str(TOP), "describe", "--always", "--dirty"]),
        "etcd": _first_line(["etcd", "--version"]),
        "h2load": _first_line(["h2load", "--version"]),
    }


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return "not installed"
    return (done.stdout.splitlines() or [""])[0]


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=0, help="repetitions, of which the median counts (default 3)")
    parser.add_argument("--quick", action="store_true", help="one short run: to see that it works, not to measure")
    parser.add_argument("--seconds", type=float, default=0.0, help=f"of each measurement (default {SECONDS:g})")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"of: {', '.join(PARTS)}"
    )
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
        machine = describe_machine(scratch)
        say("\n".join(f"{name:13} {value}" for name, value in machine.items()))
        if machine["file_system"] in MEMORY_FILE_SYSTEMS:
            say(f"WARNING: {scratch} is in memory, where an fdatasync costs nothing: use --directory")
        bench = Bench(options, scratch)
        if not bench.compared:
            say("SKIPPED: " + missing())
            if not set(options.only) - set(COMPARED):
                return EXIT_SKIPPED
        try:
            bench.run()
        except KeyboardInterrupt:
            say("\nended early; all clusters are stopped, and this is what was measured until then")
            bench.finish(machine)
            return EXIT_INTERRUPTED
        return bench.finish(machine)


if __name__ == "__main__":
    sys.exit(main())
