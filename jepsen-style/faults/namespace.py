"""Namespaces of the runner's own, where it is root: its mounts end with it, and its packet filter is nobody else's."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable

ENTERED = "RAFTCACHE_FAULTS_NAMESPACE"
TABLE = "raftcache_faults"


def enter() -> None:
    """Runs this program again in network and mount namespaces of its own, if it may; returns inside, or where it may not."""
    if os.geteuid() != 0 or os.environ.get(ENTERED) or not works():
        return
    command = ["unshare", "--net", "--mount", "--propagation", "private", sys.executable, *sys.orig_argv[1:]]
    os.execvpe("unshare", command, os.environ | {ENTERED: "1"})


def inside() -> bool:
    """Whether this process is in namespaces of its own; the loopback of a new one is up afterwards."""
    if not os.environ.get(ENTERED):
        return False
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return True


def works() -> bool:
    """Whether this machine has what `enter` needs."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    trial = ["unshare", "--net", "--mount", "--propagation", "private", "ip", "link", "set", "lo", "up"]
    return subprocess.run(trial, capture_output=True, check=False).returncode == 0


# --- The packet filter ------------------------------------------------------------------------------------------------


def drop(ports: Iterable[tuple[int, bool]]) -> None:
    """Drops what goes to a port (True), or comes from it. The kernel retransmits, backs off and gives up, as over a cable."""
    rules = "".join(f"    tcp {'dport' if to else 'sport'} {port} drop\n" for port, to in ports)
    _nft(f"table ip {TABLE} {{\n  chain out {{\n    type filter hook output priority 0;\n{rules}  }}\n}}\n")


def drop_nothing() -> None:
    with contextlib.suppress(subprocess.CalledProcessError):
        _nft(f"delete table ip {TABLE}\n")


def _nft(script: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True, capture_output=True)
