"""What `raftcache dev` remembers between commands: one small file for each development cluster.

    $XDG_STATE_HOME/raftcache/dev/TAG.json      while the cluster runs: its nodes, their processes, where the data is
    DATA_DIR/dev.json                           as long as the data: its shape, so that it is started as it was made

Rules of this file:
- a file appears whole or not at all (written beside, then renamed), and changes under the lock of its tag only;
- a process is recorded with its start (`processes`), so that the file may be as old as it likes;
- a data directory is deleted only if it was made by us for a cluster whose data is ephemeral, which its own file says.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from raftcache.cli.exits import Exit, Failure
from raftcache.cli.output import note
from raftcache.cli.processes import ProcessIdentity, is_alive, is_paused
from raftcache.clock import NS_PER_SECOND, SystemClock

DEFAULT_TAG = "default"
SCHEMA = "raftcache.dev-state/v1"
DATA_FILE = "dev.json"
LOCK_SECONDS = 90.0
"""Longer than a start takes; whoever waits for this long waits for something that hangs."""
LOCK_POLL_SECONDS = 0.05

_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(slots=True)
class DevNode:
    """One node of a development cluster."""

    name: str
    client: str
    peer: str
    admin: str
    process: ProcessIdentity | None = None
    """The last that was started; it may be gone."""

    @property
    def state(self) -> str:
        """`running`, `paused` or `dead`."""
        if self.process is None or not is_alive(self.process):
            return "dead"
        return "paused" if is_paused(self.process) else "running"


@dataclass(slots=True)
class DevCluster:
    """One development cluster."""

    tag: str
    directory: Path
    """Holds everything: the nodes' data and their logs."""
    ephemeral: bool
    """Whether `directory` is ours, to be deleted when the cluster is stopped."""
    shards: int
    settings: list[str] = field(default_factory=list)
    """`section.key=value`, for all nodes."""
    nodes: list[DevNode] = field(default_factory=list)
    supervisor: ProcessIdentity | None = None
    """The `raftcache dev` in the foreground; None = detached."""

    @property
    def alive(self) -> bool:
        """Whether any process of it is left."""
        processes = [*(node.process for node in self.nodes), self.supervisor]
        return any(process is not None and is_alive(process) for process in processes)

    def node_directory(self, node: DevNode) -> Path:
        return self.directory / node.name

    def log(self, node: DevNode) -> Path:
        return self.node_directory(node) / "log.jsonl"

    def node(self, text: str) -> DevNode:
        """The node of this number or name. Raises: `Failure`."""
        for number, node in enumerate(self.nodes, 1):
            if text in (node.name, str(number)):
                return node
        names = ", ".join(f"{number} ({node.name})" for number, node in enumerate(self.nodes, 1))
        raise Failure(
            f"development cluster {self.tag!r} has no node {text!r}", code=Exit.NOT_FOUND, hint=f"there are {names}"
        )

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Client addresses: of the nodes that run, or, if none does, of all."""
        running = tuple(node.client for node in self.nodes if node.state == "running")
        return running or tuple(node.client for node in self.nodes)


# --- Files --------------------------------------------------------------------------------------------------------


def state_directory() -> Path:
    """Where the state of programs belongs (XDG base directory specification)."""
    home = os.environ.get("XDG_STATE_HOME", "")
    base = Path(home) if Path(home).is_absolute() else Path.home() / ".local" / "state"
    return base / "raftcache" / "dev"


def check_tag(tag: str) -> str:
    """Raises: `UsageError` for what cannot name a file."""
    if not _TAG.fullmatch(tag):
        raise click.UsageError(f"{tag!r} is no tag: letters, digits, '.', '_' and '-', at most 63 of them")
    return tag


def load(tag: str) -> DevCluster | None:
    """The cluster of this tag, dead or alive; None if there is none. Raises: `Failure` for a file that is not ours."""
    path = state_directory() / f"{tag}.json"
    try:
        return _decoded(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise Failure(
            f"{path} cannot be read: {error}",
            hint="it lists the processes of a development cluster; look for `raftcache serve` among yours, then remove it",
        ) from error


def save(cluster: DevCluster) -> None:
    """Records it."""
    directory = state_directory()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(directory / f"{cluster.tag}.json", json.dumps(_encoded(cluster), indent=1))


def forget(cluster: DevCluster) -> None:
    """Removes the record, and the data if that is ephemeral. The processes must be gone."""
    assert all(node.state == "dead" for node in cluster.nodes), cluster
    if cluster.ephemeral:
        _delete_ephemeral(cluster.directory)
    (state_directory() / f"{cluster.tag}.json").unlink(missing_ok=True)


def save_shape(cluster: DevCluster) -> None:
    """Writes into the data directory how the cluster was made."""
    document = _encoded(cluster)
    for node in document["nodes"]:
        node.pop("process")
    document.pop("supervisor")
    write_file(cluster.directory / DATA_FILE, json.dumps(document, indent=1))


def load_shape(directory: Path) -> DevCluster | None:
    """How the cluster in a data directory was made; None if there is none. Raises: `Failure`."""
    path = directory / DATA_FILE
    try:
        return _decoded(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise Failure(f"{path} cannot be read: {error}", hint="name another --data-dir") from error


def write_file(path: Path, text: str) -> None:
    """Whole or not at all. Raises: `Failure`."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        temporary.write_text(text + "\n")
        temporary.replace(path)
    except OSError as error:
        raise Failure(
            f"{path} cannot be written: {error.strerror}", hint="free space, or name another directory"
        ) from error


def _delete_ephemeral(directory: Path) -> None:
    shape = load_shape(directory)
    if shape is not None and shape.ephemeral:
        shutil.rmtree(directory, ignore_errors=True)


def all_tags() -> list[str]:
    """The tags that have a record."""
    return sorted(path.stem for path in state_directory().glob("*.json"))


def running_clusters() -> list[DevCluster]:
    """The clusters of which a node lives. A record that cannot be read is none."""
    found = []
    for tag in all_tags():
        with contextlib.suppress(Failure):
            cluster = load(tag)
            if cluster is not None and any(node.state != "dead" for node in cluster.nodes):
                found.append(cluster)
    return found


@contextlib.contextmanager
def locked(tag: str) -> Iterator[None]:
    """Holds the lock of a tag. Raises: `Failure` where another command keeps it."""
    directory = state_directory()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    clock = SystemClock()
    give_up_ns = clock.monotonic_ns() + int(LOCK_SECONDS * NS_PER_SECOND)
    told = False
    with (directory / f"{tag}.lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if clock.monotonic_ns() > give_up_ns:
                    raise Failure(
                        f"another `raftcache dev` has been at work on cluster {tag!r} for {LOCK_SECONDS:.0f} s",
                        code=Exit.UNAVAILABLE,
                        hint="find it with `ps`, end it, and try again",
                    ) from None
                if not told:
                    note(f"waiting for another `raftcache dev` that is at work on cluster {tag!r}")
                    told = True
                time.sleep(LOCK_POLL_SECONDS)
        yield


# --- The file's form ----------------------------------------------------------------------------------------------


def _encoded(cluster: DevCluster) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "tag": cluster.tag,
        "directory": str(cluster.directory),
        "ephemeral": cluster.ephemeral,
        "shards": cluster.shards,
        "settings": cluster.settings,
        "supervisor": _encoded_process(cluster.supervisor),
        "nodes": [
            {
                "name": node.name,
                "client": node.client,
                "peer": node.peer,
                "admin": node.admin,
                "process": _encoded_process(node.process),
            }
            for node in cluster.nodes
        ],
    }


def _encoded_process(process: ProcessIdentity | None) -> dict[str, Any] | None:
    return None if process is None else {"pid": process.pid, "started": process.started}


def _decoded(document: dict[str, Any]) -> DevCluster:
    if document["schema"] != SCHEMA:
        raise ValueError(f"its schema is {document['schema']!r}, not {SCHEMA!r}")
    return DevCluster(
        tag=document["tag"],
        directory=Path(document["directory"]),
        ephemeral=document["ephemeral"],
        shards=document["shards"],
        settings=document["settings"],
        supervisor=_decoded_process(document.get("supervisor")),
        nodes=[
            DevNode(node["name"], node["client"], node["peer"], node["admin"], _decoded_process(node.get("process")))
            for node in document["nodes"]
        ],
    )


def _decoded_process(document: dict[str, Any] | None) -> ProcessIdentity | None:
    return None if document is None else ProcessIdentity(int(document["pid"]), str(document["started"]))
