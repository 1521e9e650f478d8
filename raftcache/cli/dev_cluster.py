"""A development cluster's life: started, made one, killed and mended node by node, stopped.

Every node is a process `raftcache serve` of its own, in a session of its own: what the terminal sends (Ctrl-C) reaches the
command that watches over them, not them.

Rules of this file:
- a process is written down as soon as it is started: whatever happens next, `raftcache dev stop` finds it;
- every wait has a bound, looks at a condition, and, where it fails, shows the last words of the node's log;
- these functions run under the lock of the cluster's tag.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from raftcache.admin.v1 import admin_pb2
from raftcache.cli import dev_state
from raftcache.cli.admin import AdminClient
from raftcache.cli.dev_state import DevCluster, DevNode
from raftcache.cli.exits import Exit, Failure
from raftcache.cli.options import Target
from raftcache.cli.output import note
from raftcache.cli.processes import ProcessIdentity, identity_of, is_alive, send_signal, wait_gone
from raftcache.clock import NS_PER_SECOND, SystemClock
from raftcache.config.load import ENVIRONMENT_PREFIX
from raftcache.errors import Unavailable

HOST = "127.0.0.1"
PORTS_PER_NODE = 10
"""Between the first ports of two nodes: 7400, 7410, 7420 are the ones to remember."""
START_SECONDS = 60.0
"""For a process to listen: about a second, or a minute where the machine does something else as well."""
LEADER_SECONDS = 60.0
STOP_SECONDS = 20.0
"""For a clean end: a node hands over for up to 5 s, and then closes its state."""
POLL_SECONDS = 0.05
OWN_SECTIONS = ("node", "listen", "tls")
"""Of the settings: those that nobody else sets for a node of a development cluster."""
LOG_LINES_SHOWN = 8
RANDOM_PORTS = (10_000, 28_000)
"""Below those that Linux gives to outgoing connections (from 32768): a node that was killed finds its ports free when it
comes back."""


# --- Ports --------------------------------------------------------------------------------------------------------


def ports_from(base: int, nodes: int) -> list[tuple[int, int, int]]:
    """Client, peer and admin port of each node. Raises: `Failure` where there are not so many."""
    ports = [(first, first + 1, first + 2) for first in range(base, base + nodes * PORTS_PER_NODE, PORTS_PER_NODE)]
    if ports[-1][2] > 65_535:
        raise Failure(f"--base-port {base} is too high for {nodes} nodes", code=Exit.USAGE)
    return ports


def require_free(nodes: Iterable[DevNode]) -> None:
    """Raises: `Failure` that names the first address in use."""
    for node in nodes:
        for purpose, address in (("clients", node.client), ("peers", node.peer), ("metrics", node.admin)):
            port = int(address.rpartition(":")[2])
            if not _is_free(port):
                raise Failure(
                    f"port {port} ({node.name}, for {purpose}) is in use by another process",
                    hint="choose other ports with --base-port or --random-ports, or see who has it: "
                    f"ss -ltnp 'sport = :{port}'",
                )


def random_ports(nodes: int) -> list[tuple[int, int, int]]:
    """Free ports, all different."""
    found: list[int] = []
    for _ in range(1000):
        port = RANDOM_PORTS[0] + secrets.randbelow(RANDOM_PORTS[1] - RANDOM_PORTS[0])
        if port not in found and _is_free(port):
            found.append(port)
        if len(found) == 3 * nodes:
            return [(found[3 * n], found[3 * n + 1], found[3 * n + 2]) for n in range(nodes)]
    raise Failure(f"no {3 * nodes} free ports were found between {RANDOM_PORTS[0]} and {RANDOM_PORTS[1]}")


def new_node(number: int, ports: tuple[int, int, int]) -> DevNode:
    """A node that was never started."""
    client, peer, admin = (f"{HOST}:{port}" for port in ports)
    return DevNode(f"n{number}", client, peer, admin)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the node will: connections of an earlier process that are still winding down are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True


# --- Processes ----------------------------------------------------------------------------------------------------


def spawn(cluster: DevCluster, node: DevNode) -> None:
    """Starts the node's process on its data as they are, and writes it down. Does not wait."""
    directory = cluster.node_directory(node)
    directory.mkdir(parents=True, exist_ok=True)
    ready_file = _ready_file(cluster, node)
    ready_file.unlink(missing_ok=True)
    settings = [
        f"node.name={node.name}",
        f"node.data_dir={directory / 'data'}",
        f"listen.client={node.client}",
        f"listen.peer={node.peer}",
        f"listen.admin={node.admin}",
        "log.format=json",
        *cluster.settings,
    ]
    command = [sys.executable, "-m", "raftcache.cli", "serve", "--ready-file", str(ready_file)]
    for setting in settings:
        command += ["--set", setting]
    with cluster.log(node).open("ab") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            env=_environment(),
        )
    node.process = identity_of(child.pid)
    _children.append(child)
    dev_state.save(cluster)


def _environment() -> dict[str, str]:
    """Ours, without what a development cluster decides itself: a node's name, addresses and certificates."""
    own = tuple(f"{ENVIRONMENT_PREFIX}{section.upper()}__" for section in OWN_SECTIONS)
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}


_children: list[subprocess.Popen[bytes]] = []
"""What this very command started, to collect it when it ends."""


def reap() -> None:
    """Collects those of this command's processes that have ended."""
    for child in list(_children):
        if child.poll() is not None:
            _children.remove(child)


def wait_ready(cluster: DevCluster, nodes: Iterable[DevNode]) -> None:
    """Until the nodes listen. Raises: `Failure` with the log's last lines where one ends instead."""
    for node in nodes:
        ready_file = _ready_file(cluster, node)

        def listens(node: DevNode = node, ready_file: Path = ready_file) -> bool:
            reap()
            if node.state == "dead":
                raise _did_not_start(cluster, node, "ended")
            return ready_file.exists()

        if not _wait(listens, START_SECONDS):
            raise _did_not_start(cluster, node, f"does not listen after {START_SECONDS:.0f} s")


def _ready_file(cluster: DevCluster, node: DevNode) -> Path:
    return cluster.node_directory(node) / "ready.json"


def _did_not_start(cluster: DevCluster, node: DevNode, what: str) -> Failure:
    return Failure(f"{node.name} {what}; the last lines of its log:", hint="\n".join(last_words(cluster.log(node))))


def last_words(log: Path, lines: int = LOG_LINES_SHOWN) -> list[str]:
    """The end of a log."""
    try:
        return log.read_text(errors="replace").splitlines()[-lines:]
    except OSError as error:
        return [f"{log}: {error.strerror}"]


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    clock = SystemClock()
    give_up_ns = clock.monotonic_ns() + int(seconds * NS_PER_SECOND)
    while not condition():
        if clock.monotonic_ns() > give_up_ns:
            return False
        time.sleep(POLL_SECONDS)
    return True


# --- The cluster --------------------------------------------------------------------------------------------------


def target_of(cluster: DevCluster, seconds: float) -> Target:
    """How commands reach it."""
    return Target(cluster.endpoints, f"the development cluster {cluster.tag!r}", seconds)


def start(cluster: DevCluster) -> int:
    """Starts all nodes, makes them a cluster if they are none, waits until every shard has a leader; the cluster's id.

    Raises: `Failure`; whatever was started by then is the caller's to stop.
    """
    for node in cluster.nodes:
        spawn(cluster, node)
    count = len(cluster.nodes)
    note(f"starting {count} node{'s'[: count > 1]}")
    wait_ready(cluster, cluster.nodes)
    _init(cluster)
    return wait_leaders(cluster)


def _init(cluster: DevCluster) -> None:
    first = Target((cluster.nodes[0].client,), "this command", START_SECONDS)
    with AdminClient(first) as admin:
        # A node that is in a cluster answers; what it says is of no interest yet.
        with suppress(Failure):
            admin.cluster()
            return
        peers = [node.peer for node in cluster.nodes]
        note(f"making a cluster of {cluster.shards} shard{'s'[: cluster.shards > 1]}")
        admin.init(admin_pb2.InitRequest(peer_addresses=peers, shards=cluster.shards))


def wait_leaders(cluster: DevCluster) -> int:
    """Until every shard has a leader, and all nodes that run answer; the cluster's id. Raises: `Failure`."""
    missing = "no node answers"
    identity = 0

    def all_led() -> bool:
        nonlocal missing, identity
        reap()
        for node in cluster.nodes:
            if node.state == "dead":
                raise _did_not_start(cluster, node, "ended")
        try:
            with AdminClient(target_of(cluster, 5.0)) as admin:
                info = admin.cluster()
        except (Failure, Unavailable) as error:
            missing = error.message
            return False
        identity = info.cluster
        leaderless = [str(shard.shard) for shard in info.shards if not shard.leader]
        silent = [node.name for node in info.nodes if not node.alive]
        missing = f"no leader in shards {', '.join(leaderless)}" if leaderless else f"no answer of {', '.join(silent)}"
        return len(info.shards) > 1 and not leaderless and not silent

    if not _wait(all_led, LEADER_SECONDS):
        raise Failure(
            f"the nodes run, but after {LEADER_SECONDS:.0f} s: {missing}",
            code=Exit.UNAVAILABLE,
            hint="\n".join(
                line for node in cluster.nodes for line in [f"{node.name}:", *last_words(cluster.log(node))]
            ),
        )
    return identity


def stop(cluster: DevCluster) -> None:
    """Ends all nodes and forgets the cluster: cleanly where the data is kept, at once where it goes anyway."""
    processes = [node.process for node in cluster.nodes if node.process is not None]
    if not cluster.ephemeral:
        for process in processes:
            # A paused process hears nothing until it goes on.
            send_signal(process, signal.SIGTERM)
            send_signal(process, signal.SIGCONT)
        left = wait_gone(processes, STOP_SECONDS)
        if left:
            note(f"{len(left)} of the nodes did not end within {STOP_SECONDS:.0f} s and are killed")
    kill(processes)
    dev_state.forget(cluster)


def kill(processes: Iterable[ProcessIdentity]) -> None:
    """SIGKILL, and waits until they are gone. Raises: `Failure` if they are not."""
    processes = list(processes)
    for process in processes:
        send_signal(process, signal.SIGKILL)
    left = wait_gone(processes, STOP_SECONDS)
    reap()
    if left:
        raise Failure(f"processes {', '.join(str(process.pid) for process in left)} do not end, not even by SIGKILL")


def stop_node(cluster: DevCluster, node: DevNode) -> None:
    """A clean end of one node: leaderships handed over, state closed. Raises: `Failure`."""
    if node.process is None or not is_alive(node.process):
        return
    send_signal(node.process, signal.SIGTERM)
    send_signal(node.process, signal.SIGCONT)
    if wait_gone([node.process], STOP_SECONDS):
        raise Failure(
            f"{node.name} did not end within {STOP_SECONDS:.0f} s",
            hint=f"`raftcache dev kill {node.name}` ends it at once",
        )
    reap()


def ready_document(cluster: DevCluster, identity: int) -> dict[str, object]:
    """What a program wants to know of a cluster that is ready."""
    return {
        "event": "ready",
        "tag": cluster.tag,
        "cluster": str(identity),
        "endpoints": [node.client for node in cluster.nodes],
        "admin_urls": [f"http://{node.admin}" for node in cluster.nodes],
        "shards": cluster.shards,
        "data_dir": str(cluster.directory),
        "ephemeral": cluster.ephemeral,
        "pid": os.getpid(),
        "nodes": [
            {
                "name": node.name,
                "client": node.client,
                "peer": node.peer,
                "admin": node.admin,
                "pid": node.process.pid if node.process is not None else None,
            }
            for node in cluster.nodes
        ],
    }


def write_ready_file(path: Path, document: dict[str, object]) -> None:
    """The same document, for who waits for a file."""
    dev_state.write_file(path, json.dumps({"schema": "raftcache.dev-ready/v1", **document}))
