"""What processes and the machine spent, read from /proc: processor time and memory."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
KIB = 1024
BLOCK_BYTES = 512
"""What `st_blocks` counts in, whatever the file system has."""


@dataclass(frozen=True)
class Memory:
    """Of one process, bytes. Anonymous memory is its own; file memory can be dropped and read again (maps of databases)."""

    anonymous: int
    file: int


def parse_cpu_seconds(stat: str) -> float:
    """User and system time of all threads, from `/proc/<pid>/stat`. The name in parentheses may hold anything."""
    fields = stat[stat.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def parse_memory(status: str) -> Memory:
    """From `/proc/<pid>/status`."""
    found = dict(line.split(":", 1) for line in status.splitlines() if line.startswith("Rss"))
    return Memory(
        anonymous=int(found["RssAnon"].split()[0]) * KIB,
        file=(int(found["RssFile"].split()[0]) + int(found["RssShmem"].split()[0])) * KIB,
    )


def parse_busy_seconds(stat: str) -> float:
    """What all processors of the machine worked since its start, from `/proc/stat`: all but idle and waiting for disks."""
    fields = [int(number) for number in stat.splitlines()[0].split()[1:]]
    user, nice, system, _, _, interrupts, soft_interrupts, *_ = fields
    return (user + nice + system + interrupts + soft_interrupts) / TICKS_PER_SECOND


def cpu_seconds(pid: int) -> float:
    """Of one process since its start."""
    return parse_cpu_seconds(Path(f"/proc/{pid}/stat").read_text())


def memory(pid: int) -> Memory:
    """Of one process now."""
    return parse_memory(Path(f"/proc/{pid}/status").read_text())


def busy_seconds() -> float:
    """Of the machine since its start."""
    return parse_busy_seconds(Path("/proc/stat").read_text())


def file_system(path: Path) -> str:
    """The type of the file system that holds `path`, as in `ext4`."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, name, *_ = line.split()
        if path.resolve().is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, name
    return kind


def disk_bytes(directory: Path) -> int:
    """What the files of a directory take on the disk. A file that goes meanwhile is not counted."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_blocks * BLOCK_BYTES
    return total
