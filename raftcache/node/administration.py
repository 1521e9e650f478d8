"""What operators ask of a cluster, answered by any of its nodes: init, join, status, membership, leadership.

Rules of this file:
- the node that is asked does the asking around itself; the caller needs one endpoint;
- every change is validated here against facts gathered just now, and again, deterministically, where it is written
  (`directory.with_change` inside the catalog's compare-and-swap);
- every call is idempotent: asked again after a lost answer, it reports what it finds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from raftcache.errors import (
    IdentityMismatch,
    InvalidRequest,
    OutcomeUnknown,
    PreconditionFailed,
    RaftCacheError,
    Unavailable,
)
from raftcache.ids import NO_REPLICA, ClusterId, NodeId, ReplicaId, ShardId, Slot
from raftcache.kv.result_codec import error_of
from raftcache.kv.slots import slot_of
from raftcache.node.api import ClusterInfo
from raftcache.node.directory import (
    Directory,
    DirectoryNode,
    DirectoryShard,
    ReplicaChange,
    first_directory,
    with_change,
    with_node,
    without_node,
)
from raftcache.node.kinds import KIND_IDENTIFY, KIND_INIT, KIND_JOIN, KIND_STATUS, KIND_TRANSFER
from raftcache.node.membership import tolerance_of
from raftcache.node.settings import MS
from raftcache.node.status import cluster_info
from raftcache.raft.messages import Configuration

if TYPE_CHECKING:
    from raftcache.node.host import Host

ASK_TIMEOUT_NS = 1_500 * MS
"""A node that is up answers in milliseconds; one that is down must not hold a status up for longer than this."""
INIT_TIMEOUT_NS = 20_000 * MS
"""A node creates and syncs its first replicas: with 64 shards some seconds on a slow disk."""
POLL_SECONDS = 0.05

_Outcome = TypeVar("_Outcome")


class Administrator:
    """Implements `node.api.Administration` over a `Host`."""

    def __init__(self, host: Host) -> None:
        self._host = host

    # --- Asking around ------------------------------------------------------------------------------------------------

    async def _ask(self, node: NodeId, kind: int, document: dict[str, Any], timeout_ns: int) -> dict[str, Any]:
        """One request to a node of the cluster. Raises what it answered, or `Unavailable` / `OutcomeUnknown`."""
        if node == self._host.node:
            return unwrap(self._host.answer(kind, json.dumps(document).encode()))
        payload = json.dumps(document).encode()
        deadline_ns = self._host.clock.monotonic_ns() + timeout_ns
        return unwrap(await _future(lambda done: self._host.network.request(node, kind, payload, done, deadline_ns)))

    async def _errand(self, address: str, kind: int, payload: bytes, timeout_ns: int) -> dict[str, Any]:
        """One request to whoever lives at an address."""
        deadline_ns = self._host.clock.monotonic_ns() + timeout_ns
        return unwrap(
            await _future(
                lambda done: self._host.network.request_address(
                    parse_address(address), kind, payload, done, deadline_ns
                )
            )
        )

    # --- A new cluster ------------------------------------------------------------------------------------------------

    async def init(self, peer_addresses: list[str], shards: int) -> ClusterId:
        """Makes one cluster of the nodes at `peer_addresses`, this one among them.

        Resumable: the plan is durable before anybody is told, and the same call goes on with it.
        Raises: `PreconditionFailed` where a node belongs to a cluster already, `InvalidRequest`, `Unavailable`.
        """
        host = self._host
        if host.engine is not None:
            raise PreconditionFailed(
                f"this node belongs to cluster {host.cluster} already; `raftcache status` shows it"
            )
        members = [await self._identify(address) for address in peer_addresses]
        if host.node not in {member.node for member in members}:
            members.insert(0, host.own_entry())
        plan = host.load_plan()
        if plan is None or set(plan.nodes) != {member.node for member in members}:
            await self._refuse_members_of_others(members, None)
            plan = first_directory(ClusterId(host.new_id()), members, shards, host.session_limits())
            host.save_plan(plan)
        else:
            await self._refuse_members_of_others(members, plan.cluster)
        payload = plan.encode()
        for member in plan.nodes.values():
            if member.node != host.node:
                await self._errand(member.peer_address, KIND_INIT, payload, INIT_TIMEOUT_NS)
        unwrap(await _future(partial(host.begin_init, payload)))
        return plan.cluster

    async def _identify(self, address: str) -> DirectoryNode:
        try:
            answer = await self._errand(address, KIND_IDENTIFY, b"{}", ASK_TIMEOUT_NS)
        except IdentityMismatch as refusal:
            raise PreconditionFailed(
                f"the node at {address} cannot be taken in: {refusal.message}. Start it on an empty data directory"
            ) from refusal
        return DirectoryNode(
            NodeId(int(answer["node"])),
            answer["name"],
            answer["peer_address"],
            answer["client_address"],
            answer["admin_address"],
        )

    async def _refuse_members_of_others(self, members: list[DirectoryNode], own: ClusterId | None) -> None:
        for member in members:
            if member.node == self._host.node:
                continue
            answer = await self._errand(member.peer_address, KIND_IDENTIFY, b"{}", ASK_TIMEOUT_NS)
            cluster = int(answer["cluster"])
            if cluster and cluster != own:
                raise PreconditionFailed(
                    f"the node at {member.peer_address} belongs to cluster {cluster} already: "
                    "start it on an empty data directory, or leave it out"
                )

    # --- Looking ------------------------------------------------------------------------------------------------------

    async def cluster(self) -> ClusterInfo:
        """The whole cluster as its nodes report it now; waits at most `ASK_TIMEOUT_NS` for those that are down."""
        directory = self._host.running().directory
        answers: dict[NodeId, dict[str, Any]] = {}

        async def ask(node: NodeId) -> None:
            try:
                answers[node] = await self._ask(node, KIND_STATUS, {}, ASK_TIMEOUT_NS)
            except RaftCacheError:
                return

        async with asyncio.TaskGroup() as group:
            for node in directory.nodes:
                group.create_task(ask(node), name=f"status of {node}")
        return cluster_info(directory, answers)

    def locate(self, key: bytes) -> tuple[Slot, ShardId]:
        """The key's slot and the shard that owns it, by this node's directory."""
        slot = slot_of(key)
        return slot, self._host.running().owner(slot)

    # --- Nodes --------------------------------------------------------------------------------------------------------

    async def node_join(self, peer_address: str) -> NodeId:
        """Takes the node at `peer_address` into the cluster, so far without replicas; refreshes its addresses if it is in."""
        engine = self._host.running()
        entry = await self._identify(peer_address)
        answer = await self._errand(peer_address, KIND_IDENTIFY, b"{}", ASK_TIMEOUT_NS)
        cluster = int(answer["cluster"])
        if cluster and cluster != engine.directory.cluster:
            raise PreconditionFailed(
                f"the node at {peer_address} belongs to cluster {cluster}, not to {engine.directory.cluster}: "
                "start it on an empty data directory"
            )
        directory = await self._update(lambda directory: _joined(directory, entry))
        await self._errand(entry.peer_address, KIND_JOIN, _with_epoch(directory), INIT_TIMEOUT_NS)
        return entry.node

    async def node_remove(self, node: NodeId, *, dry_run: bool = False) -> str:
        """Forgets a node that holds no replicas. Raises: `PreconditionFailed` while it does, with the commands to move them."""
        engine = self._host.running()
        if node not in engine.directory.nodes:
            return f"node {node} is not in the cluster"
        if dry_run:
            without_node(engine.directory, node)
            return f"node {node} holds no replicas and would be removed"
        await self._update(lambda directory: without_node(directory, node))
        return f"node {node} was removed"

    async def _update(self, transform: Callable[[Directory], Directory]) -> Directory:
        engine = self._host.running()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Directory | RaftCacheError] = loop.create_future()
        engine.keeper.update(transform, partial(_settle, future))
        outcome = await future
        if isinstance(outcome, RaftCacheError):
            raise outcome
        engine.adopt(outcome)
        return outcome

    # --- Replicas -----------------------------------------------------------------------------------------------------

    async def change_replicas(
        self,
        shard: ShardId,
        *,
        action: str,
        node: NodeId,
        target: NodeId | None = None,
        dry_run: bool = False,
    ) -> str:
        """Writes a membership change down for the shard's leader to carry out; see `Administration`."""
        info = await self.cluster()
        directory = self._host.running().directory
        planned = with_change(directory, shard, action=action, node=node, target=target)
        if planned is directory:
            found = directory.shards[shard]
            if found.change is None:
                return f"shard {shard} is so already: nothing to do"
            return f"shard {shard} is at it: {next(s.change for s in info.shards if s.shard == shard)}"
        change = planned.shards[shard].change
        assert change is not None, f"with_change changed shard {shard} without a change"
        self._check_quorum(info, directory.shards[shard], change)
        before, after = self._tolerance(info, directory.shards[shard], change)
        summary = f"shard {shard}: {change.describe()}; failure tolerance {before} now, {after} after"
        if dry_run:
            return f"{summary} (dry run: nothing was changed)"
        await self._update(lambda directory: with_change(directory, shard, action=action, node=node, target=target))
        return summary

    def _tolerance(self, info: ClusterInfo, shard: DirectoryShard, change: ReplicaChange) -> tuple[int, int]:
        listed = next(s for s in info.shards if s.shard == shard.shard)
        voters = tuple(sorted(r.replica for r in listed.replicas if r.membership in ("voter", "leaving")))
        live = {r.replica for r in listed.replicas if r.role != "unknown"}
        tolerance = tolerance_of(Configuration(voters=voters), change, live)
        return tolerance.before, tolerance.after

    def _check_quorum(self, info: ClusterInfo, shard: DirectoryShard, change: ReplicaChange) -> None:
        before, after = self._tolerance(info, shard, change)
        listed = next(s for s in info.shards if s.shard == shard.shard)
        if before < 0 or listed.leader == NO_REPLICA:
            raise PreconditionFailed(
                f"shard {shard.shard} has no quorum now (failure tolerance {before}): no change can be committed. "
                "Bring its nodes back first"
            )
        if after < 0:
            raise PreconditionFailed(
                f"shard {shard.shard}: {change.describe()} would leave it without a quorum: "
                f"failure tolerance {before} now, {after} after. Add a replica or bring a node back first"
            )
        if after < min(before, 1) and change.incoming == NO_REPLICA:
            raise PreconditionFailed(
                f"shard {shard.shard}: {change.describe()} would put its quorum at risk: failure tolerance {before} "
                f"now, {after} after, so the next failure would stop it. Use `move`, or add a replica first"
            )

    async def transfer_leader(self, shard: ShardId, target: NodeId | None) -> str:
        """Hands leadership over, to `target` or to the most up-to-date voter, and waits until somebody else leads."""
        engine = self._host.running()
        found = engine.directory.shards.get(shard)
        if found is None:
            raise InvalidRequest(f"there is no shard {shard}; `raftcache shard list` names them")
        info = await self.cluster()
        listed = next(s for s in info.shards if s.shard == shard)
        if listed.leader == NO_REPLICA:
            raise Unavailable(f"shard {shard} has no leader to hand over")
        if target is not None and listed.leader_node == target:
            return f"node {target} leads shard {shard} already"
        document = {"shard": shard, "target": str(target or 0)}
        answer = await self._ask(listed.leader_node, KIND_TRANSFER, document, ASK_TIMEOUT_NS)
        to = ReplicaId(answer["to"])
        for _ in range(60):
            await asyncio.sleep(POLL_SECONDS)
            status = await self.cluster()
            now = next(s for s in status.shards if s.shard == shard)
            if now.leader == to:
                return f"node {now.leader_node} leads shard {shard} now (term {now.term})"
        raise OutcomeUnknown(f"shard {shard}: replica {to} was told to take over and has not within 3 s")


def _joined(directory: Directory, entry: DirectoryNode) -> Directory:
    return directory if directory.nodes.get(entry.node) == entry else with_node(directory, entry)


def _with_epoch(directory: Directory) -> bytes:
    return directory.epoch.to_bytes(8, "little") + directory.encode()


def _settle(future: asyncio.Future[_Outcome], outcome: _Outcome) -> None:
    # Whoever asked may have given up (a cancelled call).
    if not future.done():
        future.set_result(outcome)


async def _future(start: Callable[[Callable[[bytes | RaftCacheError], None]], None]) -> bytes:
    future: asyncio.Future[bytes | RaftCacheError] = asyncio.get_running_loop().create_future()
    start(partial(_settle, future))
    outcome = await future
    if isinstance(outcome, RaftCacheError):
        raise outcome
    return outcome


def parse_address(address: str) -> tuple[str, int]:
    """`host:port`. Raises: `InvalidRequest`."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidRequest(f"{address!r} is not an address: write host:port, as in 10.0.0.5:7401")
    return host.strip("[]"), int(port)


def wrap(document: dict[str, Any]) -> bytes:
    """A good answer between nodes."""
    return json.dumps({"ok": document}).encode()


def wrap_error(error: RaftCacheError) -> bytes:
    """A refusal between nodes."""
    return json.dumps({"error": [error.reason, error.message, error.definite, error.metadata]}).encode()


def unwrap(payload: bytes) -> dict[str, Any]:
    """The answer's document. Raises: the error that it carries."""
    answer: dict[str, Any] = json.loads(payload)
    if "error" in answer:
        reason, message, definite, metadata = answer["error"]
        raise error_of(reason, message, definite=definite, metadata=metadata)
    document: dict[str, Any] = answer["ok"]
    return document
