"""A cluster of real nodes behind the network of proxies, and the questions that the harness asks it.

The harness asks past the proxies (client ports directly), so that it sees what clients that are cut off do not.
"""

import asyncio
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from faults.disks import VOLUMES
from faults.network import Network
from faults.processes import POLL_SECONDS, Node
from raftcache.admin.v1 import admin_pb2, admin_pb2_grpc

REPLICAS = 3
"""Of a shard."""
ADMIN_SECONDS = 10.0
CHANGE_SECONDS = 60.0
LEADER_SECONDS = 60.0
LAG_UNDER_LOAD = 50
"""Entries that a healthy replica may lack for the moment, while clients write."""
CHANNEL_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_reconnect_backoff_ms", 300),
    ("grpc.enable_retries", 0),
]


class ClusterUnavailable(Exception):
    """No node answered the harness."""


class Cluster:
    """See the module."""

    def __init__(
        self,
        root: Path,
        dice: random.Random,
        tasks: asyncio.TaskGroup,
        *,
        nodes: int,
        shards: int,
        settings: Mapping[str, object],
        volume: str = "",
        bug: str = "",
    ) -> None:
        self.root = root.resolve()
        self.shards = shards
        """Apart from the catalog, which is shard 0."""
        self.settings = dict(settings)
        self.volume = volume
        """Where the nodes' data lie: "" is a directory (`disks.VOLUMES`)."""
        self.bug = bug
        self.network = Network(dice, tasks)
        self.nodes: list[Node] = []
        """The members; those that have left are not among them."""
        self.left: list[Node] = []
        """Those that have left."""
        self._first_count = nodes
        self._numbers = 0
        self._channels: dict[str, grpc.aio.Channel] = {}

    # --- Life ---------------------------------------------------------------------------------------------------------

    async def add_node(self) -> Node:
        """A node on an empty directory, not started, with links from and to all others."""
        self._numbers += 1
        node = Node(f"n{self._numbers}", self.root / f"n{self._numbers}", self.settings, bug=self.bug)
        if self.volume:
            node.volume = VOLUMES[self.volume](node.directory)
        await self.network.add_node(node.name, client_port=node.client_port, peer_port=node.peer_port)
        self.nodes.append(node)
        for each in self.nodes:
            each.routes = self.network.routes(each.name)
            if each.running:
                await each.try_order("route", routes=each.routes)
        return node

    async def start(self) -> None:
        """All nodes up, one cluster, a leader in every shard."""
        for _ in range(self._first_count):
            await self.add_node()
        for node in self.nodes:
            await node.start(wait=False)
        for node in self.nodes:
            await node.wait_ready()
        request = admin_pb2.InitRequest(peer_addresses=[node.peer_address for node in self.nodes], shards=self.shards)
        await self.admin(self.nodes[0]).Init(request, timeout=60)
        await self.wait_serving()

    async def start_all(self) -> None:
        """Every member runs: resumed or started."""
        for node in self.nodes:
            node.resume()
            await node.start(wait=False)
        for node in self.nodes:
            await node.wait_ready()

    async def forget(self, node: Node) -> None:
        """The node has left and its process ends."""
        self.nodes.remove(node)
        self.left.append(node)
        node.close()
        await self.network.remove_node(node.name)
        channel = self._channels.pop(node.name, None)
        if channel is not None:
            await channel.close()

    async def close(self) -> None:
        """No process, port or mount remains."""
        for channel in self._channels.values():
            await channel.close()
        for node in self.nodes:
            node.close()
        await self.network.close()

    @property
    def everything_everywhere(self) -> bool:
        """Whether each node has a replica of each shard for certain: three nodes, and never another one."""
        return self._numbers == self._first_count == REPLICAS

    # --- Questions ----------------------------------------------------------------------------------------------------

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def admin(self, node: Node) -> "admin_pb2_grpc.AdminServiceAsyncStub":
        if node.name not in self._channels:
            self._channels[node.name] = grpc.aio.insecure_channel(node.address, CHANNEL_OPTIONS)
        stub: Any = admin_pb2_grpc.AdminServiceStub(self._channels[node.name])
        return stub  # type: ignore[no-any-return]

    async def info(self) -> admin_pb2.GetClusterResponse:
        """The cluster as the first node that answers sees it. Raises: `ClusterUnavailable`."""
        for node in self.nodes:
            if node.up:
                try:
                    return await self.admin(node).GetCluster(admin_pb2.GetClusterRequest(), timeout=2.0)
                except grpc.RpcError:
                    continue
        raise ClusterUnavailable("no node tells how the cluster is")

    async def leader(self, shard: int = 1) -> Node | None:
        """The node that leads a shard, as far as anybody knows."""
        try:
            info = await self.info()
        except ClusterUnavailable:
            return None
        names = {each.node: each.name for each in info.nodes}
        for each in info.shards:
            if each.shard == shard and each.leader_node in names:
                return next((node for node in self.nodes if node.name == names[each.leader_node]), None)
        return None

    async def wait_serving(self, *, lag_max: int = 0) -> None:
        """Until every shard has a leader, and every replica all that its leader has but for the last `lag_max` entries.

        While clients write, somebody nearly always lacks one: then only a `lag_max` comes true. Raises: `TimeoutError`.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + LEADER_SECONDS
        missing = ""
        while loop.time() < give_up:
            try:
                missing = self._missing(await self.info(), lag_max)
            except ClusterUnavailable as error:
                missing = str(error)
            if not missing:
                return
            await asyncio.sleep(5 * POLL_SECONDS)
        raise TimeoutError(f"after {LEADER_SECONDS:.0f} s of a healed network with all nodes up: {missing}")

    def _missing(self, info: admin_pb2.GetClusterResponse, lag_max: int) -> str:
        """Why it is not as it should be; empty if it is."""
        if len(info.shards) != self.shards + 1:
            return f"{len(info.shards)} shards of {self.shards + 1} are known"
        for shard in info.shards:
            if not shard.leader:
                return f"shard {shard.shard} has no leader"
            for replica in shard.replicas:
                if not replica.HasField("lag_entries") or replica.lag_entries > lag_max:
                    lag = replica.lag_entries if replica.HasField("lag_entries") else "unknown"
                    return f"shard {shard.shard}: replica {replica.replica} lags by {lag}"
        return ""

    async def states(self) -> list[dict[str, Any]]:
        """Every replica's index and state hash, as its own process tells them. Raises: `OrderFailed`."""
        found = []
        for node in self.nodes:
            answer = await node.order("states")
            found += [{"node": node.name, **state} for state in answer["states"]]
        return found

    # --- Membership ---------------------------------------------------------------------------------------------------

    async def ids(self) -> dict[str, int]:
        """Node ids by name. A replaced node leaves its name to the newer one only after it is removed."""
        return {each.name: each.node for each in (await self.info()).nodes}

    async def shards_on(self, node_id: int) -> list[int]:
        """The shards of which a node has a replica, the catalog included. Raises: `ClusterUnavailable`."""
        shards = (await self.info()).shards
        return [each.shard for each in shards if any(replica.node == node_id for replica in each.replicas)]

    async def ask(self, call: str, request: Any, what: str) -> Any:
        """An admin call, repeated on any node until it is taken. Raises: `TimeoutError`."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + CHANGE_SECONDS
        said = "nobody was asked"
        while loop.time() < give_up:
            for node in self.nodes:
                if not node.up:
                    continue
                try:
                    return await getattr(self.admin(node), call)(request, timeout=ADMIN_SECONDS)
                except grpc.aio.AioRpcError as error:
                    said = f"{error.code().name}: {error.details()}"
            await asyncio.sleep(0.2)
        raise TimeoutError(f"{what} was not accepted in {CHANGE_SECONDS:.0f} s: {said}")

    async def join(self, node: Node) -> int:
        """Takes a started node in; returns its id."""
        request = admin_pb2.JoinNodeRequest(peer_address=node.peer_address)
        answer = await self.ask("JoinNode", request, f"the join of {node.name}")
        return int(answer.node)

    async def change(self, shard: int, action: str, node: int, target: int | None = None) -> None:
        """A change of a shard's replicas, until it is done. Raises: `TimeoutError`."""
        value = admin_pb2.ReplicaAction.Value(f"REPLICA_ACTION_{action}")
        request = admin_pb2.ChangeReplicasRequest(shard=shard, action=value, node=node, target_node=target)
        what = f"{action} in shard {shard}"
        await self.ask("ChangeReplicas", request, what)
        loop = asyncio.get_running_loop()
        give_up = loop.time() + CHANGE_SECONDS
        change = "not asked"
        while loop.time() < give_up:
            try:
                change = next((each.change for each in (await self.info()).shards if each.shard == shard), "unknown")
            except ClusterUnavailable as error:
                change = str(error)
            if not change:
                return
            await asyncio.sleep(0.1)
        raise TimeoutError(f"{what} was not done in {CHANGE_SECONDS:.0f} s: {change}")

    async def remove(self, node_id: int) -> None:
        """Forgets a node that holds nothing any more."""
        await self.ask("RemoveNode", admin_pb2.RemoveNodeRequest(node=node_id), f"the removal of node {node_id}")
