"""Which faults this machine can do, found out by trying. What it cannot do is skipped, and said to be skipped."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from faults import namespace
from faults.disks import DiskFailed, Loop, Thin
from faults.nemeses import NEMESES


def _root() -> str:
    return "" if os.geteuid() == 0 else "needs root"


def _power_cut() -> str:
    """Mounts a file system in a file, cuts it, and looks whether what was synced is there and what was not is gone."""
    if why := _root():
        return why
    with tempfile.TemporaryDirectory(prefix="raftcache-doctor-") as folder:
        try:
            disk = Loop(Path(folder))
        except DiskFailed as error:
            return str(error)
        try:
            synced, unsynced = disk.path / "synced", disk.path / "unsynced"
            with synced.open("wb", buffering=0) as file:
                file.write(b"x" * 100)
                os.fsync(file.fileno())
            unsynced.write_bytes(b"x" * 100)
            disk.shut_down()
            disk.remount()
            if not synced.exists() or synced.stat().st_size != 100:
                return "a synced file did not survive the cut"
            if unsynced.exists() and unsynced.stat().st_size == 100:
                return "a file that was not synced survived the cut"
        except (DiskFailed, OSError) as error:
            return str(error)
        finally:
            disk.close()
    return ""


def _thin_disk() -> str:
    """Mounts a file system on a device that runs out of blocks, and looks whether a sync says so."""
    if why := _root():
        return why
    with tempfile.TemporaryDirectory(prefix="raftcache-doctor-") as folder:
        try:
            disk = Thin(Path(folder))
        except DiskFailed as error:
            return str(error)
        try:
            disk.starve()
            with (disk.path / "file").open("wb", buffering=0) as file:
                file.write(b"x" * (4 << 20))
                try:
                    os.fsync(file.fileno())
                except OSError:
                    return ""
            return "a sync on a starved device succeeded"
        except (DiskFailed, OSError) as error:
            return str(error)
        finally:
            disk.close()


def _packet_filter() -> str:
    if why := _root():
        return why
    if shutil.which("nft") is None:
        return "there is no nft (Debian, Ubuntu: apt install nftables)"
    if not namespace.works():
        return "no network namespace can be made (unshare --net)"
    trial = ["unshare", "--net", "nft", "add", "table", "ip", namespace.TABLE]
    done = subprocess.run(trial, capture_output=True, text=True, check=False)
    return done.stderr.strip().partition("\n")[0] if done.returncode else ""


CAPABILITIES: dict[str, Callable[[], str]] = {
    "power-cut": _power_cut,
    "thin-disk": _thin_disk,
    "packet-filter": _packet_filter,
}
"""What nemeses may need, and how to find out why it is missing (empty: it is there)."""


def missing() -> dict[str, str]:
    """Each capability that this machine lacks, and why."""
    return {name: why for name, find in CAPABILITIES.items() if (why := find())}


def skipped(nodes: int, lacking: dict[str, str]) -> dict[str, str]:
    """Each nemesis that cannot be done here with so many nodes, and why."""
    found = {}
    for name, nemesis in NEMESES.items():
        why = next((lacking[need] for need in nemesis.needs if need in lacking), "")
        if not why and nodes < nemesis.nodes_min:
            why = f"needs {nemesis.nodes_min} nodes (NODES={nemesis.nodes_min})"
        if why:
            found[name] = why
    return found


def report(nodes: int) -> str:
    """The table for people."""
    not_here = skipped(nodes, missing())
    width = max(len(name) for name in NEMESES)
    lines = [
        f"{name:{width}}  {'skipped: ' + not_here[name] if name in not_here else 'available'}\n{'':{width}}    {nemesis.about}"
        for name, nemesis in NEMESES.items()
    ]
    count = len(NEMESES) - len(not_here)
    return "\n".join([*lines, "", f"{count} of {len(NEMESES)} faults can be done here with {nodes} nodes."])
