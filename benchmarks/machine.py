"""The machine that the figures belong to."""

import datetime
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks import usage
from raftcache.raft import core

TOP = Path(__file__).resolve().parents[1]
DISK_PROBES = 200


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


def describe(scratch: Path) -> dict[str, object]:
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
        "compiled": not core.__file__.endswith(".py"),
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
