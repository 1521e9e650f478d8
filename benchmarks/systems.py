"""The clusters that are compared: ours and etcd's, each three fresh processes on this machine, with default settings.

Rules of this file:
- only processes that were started here are signalled, by their id;
- `with` ends a cluster in every case, Ctrl-C and SIGTERM included (`run.py` makes the latter an exception);
- each cluster has its own ports and its own directory, on one and the same file system; one is alive at a time.
"""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import grpc

from benchmarks import messages, prometheus
from benchmarks.messages import ETCD_PUT, ETCD_RANGE
from raftcache.admin.v1 import admin_pb2
from raftcache.v1 import kv_pb2
from tests.support.cluster import Cluster, Node, free_ports, running, wait_until

PUT = "/raftcache.v1.KvService/Put"
GET = "/raftcache.v1.KvService/Get"
BATCH = "/raftcache.v1.KvService/Batch"
PIPELINE = "/raftcache.v1.KvService/Pipeline"

SHARD = 1
"""The first shard of keys; 0 is the catalog."""
CALL_SECONDS = 20.0
SETTLE_SECONDS = 60.0
ETCD_STOP_SECONDS = 10.0


class System(Protocol):
    """One running cluster, as a load sees it."""

    name: str
    put_path: str
    get_path: str

    def leader(self) -> str:
        """The client address of the node that leads (shard 1)."""
        ...

    def leader_name(self) -> str: ...
    def processes(self) -> dict[str, int]:
        """Process ids by name."""
        ...

    def put_message(self, key: bytes, value: bytes) -> bytes: ...
    def get_message(self, key: bytes) -> bytes: ...
    def read(self, key: bytes) -> tuple[bytes | None, int, int]:
        """One linearizable read by a real gRPC client: the value, the revision, and the bytes of the answer."""
        ...


class Raftcache:
    """Our cluster. Made by `raftcache_cluster`."""

    put_path = PUT
    get_path = GET

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.shards = cluster.shards
        self.name = "raftcache" if cluster.shards == 1 else f"raftcache, {cluster.shards} shards"

    def leader(self) -> str:
        return self.cluster.leader_of(SHARD).address

    def leader_name(self) -> str:
        return self.leader_node().name

    def leader_node(self) -> Node:
        return self.cluster.leader_of(SHARD)

    def processes(self) -> dict[str, int]:
        return {node.name: node.process.pid for node in self.cluster.nodes if node.process is not None and node.running}

    def put_message(self, key: bytes, value: bytes) -> bytes:
        return kv_pb2.PutRequest(key=key, value=value).SerializeToString()

    def get_message(self, key: bytes) -> bytes:
        return kv_pb2.GetRequest(key=key).SerializeToString()

    def read(self, key: bytes) -> tuple[bytes | None, int, int]:
        stub = self.cluster.kv(self.leader_node())
        answer = stub.Get(kv_pb2.GetRequest(key=key), timeout=CALL_SECONDS)
        value = answer.entry.value if answer.HasField("entry") else None
        return value, answer.header.revision, answer.ByteSize()

    def leaders(self) -> dict[int, str]:
        """Client addresses of the leaders, by shard."""
        info = self.cluster.info()
        addresses = {node.node: node.client_address for node in info.nodes}
        return {shard.shard: addresses[shard.leader_node] for shard in info.shards if shard.leader_node}

    def metrics(self) -> dict[str, float]:
        """Of the node that leads shard 1."""
        return prometheus.fetch(self.leader_node().admin_address)

    def settle(self) -> None:
        """Puts each shard's lead where the cluster itself would put it a little later, so that it stays there."""
        self._lead_from({shard.shard: shard.replicas[0].node for shard in self.cluster.info().shards})

    def gather(self) -> None:
        """Puts all leads on the node that leads shard 1. The cluster begins to spread them again after 15 s."""
        shards = self.cluster.info().shards
        node = next(shard.leader_node for shard in shards if shard.shard == SHARD)
        self._lead_from({shard.shard: node for shard in shards})

    def _lead_from(self, places: dict[int, int]) -> None:
        stub = self.cluster.admin(self.cluster.nodes[0])

        def there() -> bool:
            # Asked again each time: the cluster may move a lead home while others are still on their way.
            astray = [each for each in self.cluster.info().shards if each.leader_node != places[each.shard]]
            for shard in astray:
                request = admin_pb2.TransferLeaderRequest(shard=shard.shard, target_node=places[shard.shard])
                with contextlib.suppress(grpc.RpcError):
                    stub.TransferLeader(request, timeout=CALL_SECONDS)
            return not astray

        wait_until(there, "the leaders to be where they were sent", SETTLE_SECONDS)


@contextlib.contextmanager
def raftcache_cluster(directory: Path, *, shards: int = 1, front: str = "fast") -> Iterator[Raftcache]:
    """Three fresh nodes with default settings but for their front, gone afterwards with their data."""
    try:
        with running(directory, nodes=3, shards=shards, settings={"front.kind": front}) as cluster:
            system = Raftcache(cluster)
            system.settle()
            yield system
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Etcd:
    """Three members of etcd. Made by `etcd_cluster`."""

    name = "etcd"
    put_path = ETCD_PUT
    get_path = ETCD_RANGE

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._members: list[tuple[str, str, str]] = []
        """Name, client address, peer address."""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._channels: dict[str, grpc.Channel] = {}

    def start(self) -> None:
        """Raises: `RuntimeError` where a member ends, `TimeoutError` where no leader comes."""
        ports = free_ports(6)
        for number in range(3):
            client, peer = ports[2 * number], ports[2 * number + 1]
            self._members.append((f"etcd{number + 1}", f"127.0.0.1:{client}", f"127.0.0.1:{peer}"))
        everybody = ",".join(f"{name}=http://{peer}" for name, _, peer in self._members)
        for name, client_address, peer_address in self._members:
            home = self._directory / name
            home.mkdir(parents=True)
            command = ["etcd", "--name", name, "--data-dir", str(home / "data")]
            command += [
                "--listen-client-urls",
                f"http://{client_address}",
                "--advertise-client-urls",
                f"http://{client_address}",
            ]
            command += ["--listen-peer-urls", f"http://{peer_address}"]
            command += ["--initial-advertise-peer-urls", f"http://{peer_address}"]
            command += ["--initial-cluster", everybody, "--initial-cluster-state", "new"]
            with (home / "log").open("ab") as log:
                self._processes[name] = subprocess.Popen(
                    command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
        wait_until(self._led, "etcd to have a leader", SETTLE_SECONDS)

    def _led(self) -> bool:
        for name, process in self._processes.items():
            if process.poll() is not None:
                log = (self._directory / name / "log").read_text(errors="replace")
                raise RuntimeError(f"{name} ended with {process.returncode}:\n{log[-2000:]}")
        try:
            return bool(self.leader())
        except grpc.RpcError:
            return False

    def leader(self) -> str:
        for _, client, _ in self._members:
            # StatusResponse: header = 1 with member_id = 2; leader = 4.
            status = self._call(client, "/etcdserverpb.Maintenance/Status", b"")
            leader = messages.number_of(status, 4)
            if leader and leader == messages.number_of(status, 1, 2):
                return client
        return ""

    def leader_name(self) -> str:
        leader = self.leader()
        return next((name for name, client, _ in self._members if client == leader), "")

    def processes(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._processes.items() if process.poll() is None}

    def put_message(self, key: bytes, value: bytes) -> bytes:
        return messages.etcd_put(key, value)

    def get_message(self, key: bytes) -> bytes:
        return messages.etcd_range(key)

    def read(self, key: bytes) -> tuple[bytes | None, int, int]:
        answer = self._call(self.leader(), ETCD_RANGE, messages.etcd_range(key))
        value: bytes | None = None
        found = dict(messages.fields(answer)).get(2)
        if isinstance(found, bytes):
            # KeyValue: value = 5.
            entry = dict(messages.fields(found)).get(5, b"")
            assert isinstance(entry, bytes), "a value of bytes"
            value = entry
        return value, messages.etcd_revision(answer), len(answer)

    def _call(self, address: str, path: str, message: bytes) -> bytes:
        if address not in self._channels:
            self._channels[address] = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        # Without serializers grpcio passes bytes through; its stubs do not know that.
        call: Callable[..., bytes] = self._channels[address].unary_unary(path)
        return call(message, timeout=CALL_SECONDS, wait_for_ready=True)

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        give_up = time.monotonic() + ETCD_STOP_SECONDS
        for process in self._processes.values():
            try:
                process.wait(max(0.0, give_up - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def etcd_cluster(directory: Path) -> Iterator[Etcd]:
    """Three fresh members with default settings, gone afterwards with their data."""
    system = Etcd(directory)
    try:
        system.start()
        yield system
    finally:
        system.close()
        shutil.rmtree(directory, ignore_errors=True)


def etcd_installed() -> bool:
    """Whether there is an etcd here."""
    return shutil.which("etcd") is not None
