"""A cluster of real node processes on loopback, for tests that want the whole way."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc

from raftcache.admin.v1 import admin_pb2, admin_pb2_grpc
from raftcache.client import Client

TOP = Path(__file__).parents[2]
START_SECONDS = 60.0
"""Until a node or a cluster counts as broken: the machine may be busy."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at the moment."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Node:
    """One node, which can be killed and started again on its data and ports."""

    def __init__(self, number: int, directory: Path) -> None:
        self.name = f"n{number}"
        self.client_port, self.peer_port, self.admin_port = free_ports(3)
        self.address = f"127.0.0.1:{self.client_port}"
        self._directory = directory / self.name
        self._log = directory / f"{self.name}.log"
        self._process: subprocess.Popen[str] | None = None

    @property
    def running(self) -> bool:
        """Whether it was started, and not killed since."""
        return self._process is not None

    def start(self) -> None:
        """Begins to start it."""
        ports = [str(port) for port in (self.client_port, self.peer_port, self.admin_port)]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.client.node_main", self.name, str(self._directory), *ports],
                cwd=TOP,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def wait_until_ready(self) -> None:
        """Waits until it serves."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert "ready\n" == line, f"{self.name} did not start:\n{self._log.read_text()[-4000:]}"

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


class Cluster:
    """Three nodes and `shards` shards."""

    def __init__(self, directory: Path, shards: int) -> None:
        self.nodes = [Node(number, directory) for number in (1, 2, 3)]
        self._shards = shards

    @property
    def endpoints(self) -> list[str]:
        """All client addresses."""
        return [node.address for node in self.nodes]

    def start(self) -> None:
        """Starts and initialises it; every shard has a leader then."""
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.wait_until_ready()
        with grpc.insecure_channel(self.nodes[0].address) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            peers = [f"127.0.0.1:{node.peer_port}" for node in self.nodes]
            stub.Init(admin_pb2.InitRequest(peer_addresses=peers, shards=self._shards), timeout=START_SECONDS)
        self.wait_for_leaders()

    def wait_for_leaders(self) -> None:
        """Waits until every shard has a leader that some node knows."""
        give_up = time.monotonic() + START_SECONDS
        with Client(self.endpoints, timeout=START_SECONDS) as rc:
            while time.monotonic() < give_up:
                shards = rc.shard_map().shards
                if len(shards) == self._shards and all(shard.leader for shard in shards):
                    return
                time.sleep(0.01)
        raise AssertionError("the shards have no leaders")

    def node_at(self, address: str) -> Node:
        """The node with this client address."""
        return next(node for node in self.nodes if node.address == address)

    def stop(self) -> None:
        """Kills all of it."""
        for node in self.nodes:
            node.kill()
