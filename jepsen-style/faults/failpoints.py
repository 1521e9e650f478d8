"""Named places in a node at which it can be made to die: kill -9 from within, before or after a step takes effect.

The node knows nothing of this. The launcher wraps the named methods before the node starts (`launch.py`); unarmed, a wrapper
costs a dictionary look-up.

A point is armed with a number of passes to let go by first, so that a seed reaches the fifth write as well as the first.
"""

import functools
import importlib
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Point:
    """Where in the code a failpoint is."""

    module: str
    owner: str
    """The class."""
    method: str
    after: bool
    """Whether the step has been done when the process dies."""


def _around(name: str, module: str, owner: str, method: str) -> dict[str, Point]:
    return {
        f"before-{name}": Point(module, owner, method, after=False),
        f"after-{name}": Point(module, owner, method, after=True),
    }


POINTS: Mapping[str, Point] = {
    # The log.
    **_around("wal-write", "raftcache.storage.wal", "Wal", "write"),
    **_around("wal-sync", "raftcache.storage.wal", "Wal", "sync"),
    **_around("wal-mark", "raftcache.storage.wal", "Wal", "mark_synced"),
    **_around("wal-collect", "raftcache.storage.wal", "Wal", "collect"),
    **_around("wal-preallocate", "raftcache.storage.wal", "Wal", "preallocate"),
    "before-fdatasync": Point("raftcache.storage.disk", "OsFile", "fdatasync", after=False),
    "after-fdatasync": Point("raftcache.storage.disk", "OsFile", "fdatasync", after=True),
    "after-rename": Point("raftcache.storage.disk", "OsDisk", "rename", after=True),
    # Term and vote. Between the two copies is `after-fdatasync` with a pass or two.
    **_around("hard-state", "raftcache.storage.hard_state", "HardStateFiles", "save"),
    # The state machine.
    **_around("apply", "raftcache.kv.machine", "Machine", "apply"),
    **_around("apply-configuration", "raftcache.kv.machine", "Machine", "apply_configuration"),
    **_around("state-commit", "raftcache.storage.state", "StateStore", "commit"),
    # Promises and replies.
    "before-promises": Point("raftcache.node.engine", "Engine", "_persisted", after=False),
    "after-promises": Point("raftcache.node.engine", "Engine", "_persisted", after=True),
    # Checkpoints and snapshots.
    **_around("checkpoint-begin", "raftcache.storage.state", "StateStore", "begin_checkpoint"),
    **_around("checkpoint-seal", "raftcache.storage.checkpoints", "Draft", "seal"),
    **_around("checkpoint-publish", "raftcache.storage.checkpoints", "Draft", "publish"),
    "before-snapshot-send": Point("raftcache.storage.checkpoints", "Outgoing", "chunk", after=False),
    "before-snapshot-receive": Point("raftcache.storage.incoming", "IncomingCheckpoint", "add", after=False),
    "after-snapshot-receive": Point("raftcache.storage.incoming", "IncomingCheckpoint", "finish", after=True),
    **_around("snapshot-install", "raftcache.storage.state", "StateStore", "install"),
    "after-log-restart": Point("raftcache.storage.replica_log", "ReplicaLog", "restart_after", after=True),
    # The start itself.
    "after-recovery": Point("raftcache.storage.wal", "Wal", "_begin", after=True),
    "after-state-open": Point("raftcache.storage.state", "StateStore", "open", after=True),
}

SNAPSHOT_POINTS = tuple(name for name in POINTS if "snapshot" in name or name == "after-log-restart")
"""Those that a replica passes only while it is filled by a snapshot, or sends one."""
MEMBERSHIP_POINTS = tuple(name for name in POINTS if "configuration" in name)
START_POINTS = ("after-recovery", "after-state-open", "before-hard-state", "after-hard-state", "after-rename")
"""Those that every start passes."""
ORDINARY_POINTS = tuple(
    name for name in POINTS if name not in SNAPSHOT_POINTS and name not in MEMBERSHIP_POINTS and "recovery" not in name
)
"""Those that a node under load passes sooner or later."""


class Failpoints:
    """What is armed in this process."""

    def __init__(self) -> None:
        self._armed: dict[str, int] = {}
        """Name to the passes that still go by."""
        self._lock = threading.Lock()

    def install(self) -> None:
        """Wraps every point. Once, before the node starts."""
        for name, point in POINTS.items():
            owner = getattr(importlib.import_module(point.module), point.owner)
            setattr(owner, point.method, self._wrapped(name, getattr(owner, point.method), after=point.after))

    def arm(self, name: str, passes: int = 0) -> None:
        assert name in POINTS, name
        self._armed[name] = passes

    def disarm(self) -> None:
        self._armed.clear()

    def _wrapped(self, name: str, function: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
        armed = self._armed

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not after and name in armed:
                self._pass(name)
            result = function(*args, **kwargs)
            if after and name in armed:
                self._pass(name)
            return result

        return wrapper

    def _pass(self, name: str) -> None:
        with self._lock:  # points are passed in several threads
            left = self._armed.get(name)
            if left is None:
                return
            if left > 0:
                self._armed[name] = left - 1
                return
            os.write(2, f'{{"event": "failpoint", "point": "{name}"}}\n'.encode())
            os.kill(os.getpid(), signal.SIGKILL)
