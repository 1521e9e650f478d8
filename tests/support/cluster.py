"""A cluster of real processes on loopback: started, initialised, killed, paused and restarted by the tests.

Rules of this file:
- only processes that were started here are signalled, by their id;
- every wait has a bound and looks at a condition, never at a clock alone;
- `close` leaves no process behind, whatever happened before.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from prometheus_client.parser import text_string_to_metric_families

from raftcache.admin.v1 import admin_pb2, admin_pb2_grpc
from raftcache.v1 import kv_pb2_grpc
from tests.support.ports import free_port

START_SECONDS = 60.0
POLL_SECONDS = 0.02
LEADER_SECONDS = 60.0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, all different."""
    return [free_port() for _ in range(count)]


def wait_until(condition: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    """Polls `condition`. Raises: `TimeoutError` that says what was waited for."""
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(POLL_SECONDS)


@dataclass
class Node:
    """One node: its settings outlive its processes."""

    name: str
    directory: Path
    client_port: int
    peer_port: int
    admin_port: int
    settings: dict[str, object] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    """Further ones for `serve`."""
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    paused: bool = False

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.client_port}"

    @property
    def peer_address(self) -> str:
        return f"127.0.0.1:{self.peer_port}"

    @property
    def admin_address(self) -> str:
        return f"127.0.0.1:{self.admin_port}"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> Path:
        return self.directory / "log.jsonl"

    @property
    def ready_file(self) -> Path:
        return self.directory / "ready.json"

    def start(self, *, wait: bool = True) -> None:
        """A new process on the data as it is."""
        assert not self.running, f"{self.name} runs already"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.ready_file.unlink(missing_ok=True)
        settings = {
            "node.name": self.name,
            "node.data_dir": self.data,
            "listen.client": self.address,
            "listen.peer": self.peer_address,
            "listen.admin": self.admin_address,
            "log.format": "json",
        } | self.settings
        command = [
            sys.executable,
            "-m",
            "raftcache.cli",
            "serve",
            "--ready-file",
            str(self.ready_file),
            *self.arguments,
        ]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        self.starts += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        def ready() -> bool:
            if not self.running:
                raise RuntimeError(f"{self.name} ended with {self.exit_status}:\n{self.tail()}")
            return self.ready_file.exists()

        wait_until(ready, f"{self.name} to listen")

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def exit_status(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None, f"{self.name} was never started"
        if self.running:
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        if self.process is not None:
            self.send(signal.SIGKILL)
            self.process.wait()

    def pause(self) -> None:
        self.paused = True
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        self.send(signal.SIGCONT)
        self.paused = False

    def stop(self, seconds: float = 30.0) -> int:
        """SIGTERM, a clean shutdown; returns the exit status."""
        assert self.process is not None, f"{self.name} was never started"
        self.send(signal.SIGTERM)
        return self.process.wait(seconds)

    def history(self) -> list[dict[str, object]]:
        """Every event in the log, in order, of all its processes."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def events(self, name: str) -> list[dict[str, object]]:
        """The lines of the log with this event."""
        return [record for record in self.history() if record.get("event") == name]

    def http(self, path: str) -> tuple[int, str]:
        """Status and body of a page of the admin port."""
        try:
            with urllib.request.urlopen(f"http://{self.admin_address}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, refusal.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels; `name` is the sample's, as in `x_total`, `x_sum`."""
        _, text = self.http("/metrics")
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


class Cluster:
    """Some nodes, the first of which form a cluster."""

    def __init__(
        self,
        root: Path,
        *,
        nodes: int = 3,
        shards: int = 4,
        settings: dict[str, object] | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self.root = root
        self.shards = shards
        self.settings = settings or {}
        self.credentials = credentials
        """What the channels of this process use; None: no TLS."""
        self.nodes: list[Node] = []
        self._channels: dict[str, grpc.Channel] = {}
        for _ in range(nodes):
            self.add_node()

    def add_node(self) -> Node:
        """One more node, not yet started, on fresh ports and an empty directory."""
        client, peer, admin = free_ports(3)
        number = len(self.nodes) + 1
        node = Node(f"n{number}", self.root / f"n{number}", client, peer, admin, dict(self.settings))
        self.nodes.append(node)
        return node

    def start(self) -> None:
        """Starts all nodes and makes them a cluster with a leader in every shard."""
        for node in self.nodes:
            node.start(wait=False)
        for node in self.nodes:
            node.wait_ready()
        request = admin_pb2.InitRequest(peer_addresses=[node.peer_address for node in self.nodes], shards=self.shards)
        self.admin(self.nodes[0]).Init(request, timeout=60)
        self.wait_leaders()

    def wait_leaders(self, *, seconds: float = LEADER_SECONDS) -> None:
        """Until every shard has a leader, as any live node sees it."""
        self._wait_shards(lambda shard: bool(shard.leader), "a leader in every shard", seconds)

    def wait_home(self, *, seconds: float = LEADER_SECONDS) -> None:
        """Until every shard is led by its preferred replica: nobody moves a leader from then on."""
        self._wait_shards(
            lambda shard: shard.leader_node == shard.replicas[0].node, "every leader to be at home", seconds
        )

    def _wait_shards(self, is_so: Callable[[admin_pb2.Shard], bool], what: str, seconds: float) -> None:
        def all_so() -> bool:
            try:
                info = self.info()
            except grpc.RpcError:
                return False
            return len(info.shards) == self.shards + 1 and all(map(is_so, info.shards))

        wait_until(all_so, what, seconds)

    def info(self) -> admin_pb2.GetClusterResponse:
        """The cluster, asked of the first node that runs."""
        node = next(node for node in self.nodes if node.running)
        return self.admin(node).GetCluster(admin_pb2.GetClusterRequest(), timeout=5)

    def node_id(self, node: Node) -> int:
        return next(info.node for info in self.info().nodes if info.name == node.name)

    def leader_of(self, shard: int) -> Node:
        """The node that leads `shard` now. Raises: `LookupError`."""
        info = self.info()
        names = {each.node: each.name for each in info.nodes}
        leader = next(each.leader_node for each in info.shards if each.shard == shard)
        for node in self.nodes:
            if node.name == names.get(leader):
                return node
        raise LookupError(f"shard {shard} has no leader")

    def channel(self, address: str) -> grpc.Channel:
        if address not in self._channels:
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 500)]
            self._channels[address] = (
                grpc.insecure_channel(address, options)
                if self.credentials is None
                else grpc.secure_channel(address, self.credentials, options)
            )
        return self._channels[address]

    def kv(self, node: Node) -> kv_pb2_grpc.KvServiceStub:
        return kv_pb2_grpc.KvServiceStub(self.channel(node.address))

    def admin(self, node: Node) -> admin_pb2_grpc.AdminServiceStub:
        return admin_pb2_grpc.AdminServiceStub(self.channel(node.address))

    def terms(self) -> dict[int, tuple[int, int]]:
        """Term and leading node of every shard, the catalog included."""
        return {shard.shard: (shard.term, shard.leader_node) for shard in self.info().shards}

    def level(self) -> bool:
        """Whether every replica of every shard has all that its leader has."""
        try:
            info = self.info()
        except grpc.RpcError:
            return False
        return all(
            replica.HasField("lag_entries") and not replica.lag_entries
            for shard in info.shards
            for replica in shard.replicas
        )

    def restart(self, *nodes: Node) -> None:
        """Starts nodes that are down, all of them at the same time, and waits for a leader in every shard."""
        for node in nodes:
            node.start(wait=False)
        for node in nodes:
            node.wait_ready()
        self.wait_leaders()

    @property
    def endpoints(self) -> str:
        return ",".join(node.address for node in self.nodes)

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
        for node in self.nodes:
            with contextlib.suppress(ProcessLookupError):
                node.resume()
            node.kill()


@contextlib.contextmanager
def running(
    root: Path,
    *,
    nodes: int = 3,
    shards: int = 4,
    settings: dict[str, object] | None = None,
    credentials: grpc.ChannelCredentials | None = None,
) -> Iterator[Cluster]:
    """A started cluster, gone afterwards."""
    cluster = Cluster(root, nodes=nodes, shards=shards, settings=settings, credentials=credentials)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()
