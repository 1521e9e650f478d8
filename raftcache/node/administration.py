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
from dataclasses import dataclass
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
from raftcache.node.api import ClusterInfo, ShardInfo
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
from raftcache.node.membership import Tolerance, tolerance_of
from raftcache.node.settings import MS
from raftcache.node.status import cluster_info
from raftcache.raft.messages import Configuration

if TYPE_CHECKING:
    from raftcache.node.host import Host

ASK_TIMEOUT_NS = 1_500 * MS
"""A node that is up answers in milliseconds; one that is down must not hold a status up for longer than this."""
INIT_TIMEOUT_NS = 20_000 * MS
"""A node creates and syncs its first replicas: with 64 shards some seconds on a slow disk."""
TRANSFER_TIMEOUT_NS = 3_000 * MS
"""A hand-over takes two round trips, and is given up by its leader after an election timeout."""
POLL_SECONDS = 0.05

_Outcome = TypeVar("_Outcome")


@dataclass(slots=True, frozen=True)
class Identified:
    """Who answered at an address."""

    address: str
    entry: DirectoryNode
    cluster: ClusterId | None


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

        Resumable: the plan is durable before anybody is told, whoever becomes a member keeps a copy, and the same call, on
        any of the nodes, goes on with it. Asked again when all is done, it says so.
        Raises: `PreconditionFailed` where a node belongs to another cluster, `InvalidRequest`, `Unavailable`,
        `OutcomeUnknown` (ask again).
        """
        host = self._host
        if host.making is not None:
            raise Unavailable("an init is in progress on this node; wait for it")
        members = await self._first_members(peer_addresses)
        plan = await self._plan_for(members, shards)
        if host.making is not None:
            raise Unavailable("an init is in progress on this node; wait for it")
        host.making = plan.cluster
        try:
            payload = plan.encode()
            for node, member in members.items():
                if node != host.node:
                    # At the address where it answered just now: the plan may be older than its present port.
                    await self._errand(member.entry.peer_address, KIND_INIT, payload, INIT_TIMEOUT_NS)
            unwrap(await _future(partial(host.begin_init, payload)))
        finally:
            host.making = None
        return plan.cluster

    async def _first_members(self, peer_addresses: list[str]) -> dict[NodeId, Identified]:
        """Who answers at the addresses, and this node. Raises: `InvalidRequest` where two of them are one node."""
        members: dict[NodeId, Identified] = {}
        for address in peer_addresses:
            found = await self._identify(address)
            twin = members.get(found.entry.node)
            if twin is not None:
                raise InvalidRequest(
                    f"{twin.address} and {address} lead to the same node {found.entry.node}: name each node once"
                )
            members[found.entry.node] = found
        own = self._host.own_entry()
        members.setdefault(own.node, Identified(own.peer_address, own, self._host.cluster))
        return members

    async def _plan_for(self, members: dict[NodeId, Identified], shards: int) -> Directory:
        """The plan that is under way among these nodes, or else a new one, durable here.

        Raises: `PreconditionFailed` where a node belongs to a cluster that is not being made of just these nodes.
        """
        host = self._host
        made = {member.cluster: member for member in members.values() if member.cluster is not None}
        if len(made) > 1:
            where = ", ".join(f"{member.address} to {cluster}" for cluster, member in sorted(made.items()))
            raise PreconditionFailed(f"these nodes belong to different clusters ({where}): leave some out")
        plan = host.load_plan()
        for cluster, member in made.items():
            if plan is None or plan.cluster != cluster:
                plan = await self._plan_of(member)
            if plan is None or plan.cluster != cluster or set(plan.nodes) != set(members):
                raise PreconditionFailed(
                    f"the node at {member.address} belongs to cluster {cluster} already: "
                    "start it on an empty data directory, or leave it out"
                )
        if plan is not None and set(plan.nodes) == set(members):
            if len(plan.shards) - 1 == shards:
                return plan
            if made:
                raise PreconditionFailed(
                    f"an init of these nodes with {len(plan.shards) - 1} shards is under way: ask for as many"
                )
        entries = [member.entry for member in members.values()]
        plan = first_directory(ClusterId(host.new_id()), entries, shards, host.session_limits())
        host.save_plan(plan)
        return plan

    async def _plan_of(self, member: Identified) -> Directory | None:
        answer = await self._errand(member.entry.peer_address, KIND_IDENTIFY, b'{"plan":true}', ASK_TIMEOUT_NS)
        plan: str = answer.get("plan", "")
        return Directory.decode(plan.encode(), 1) if plan else None

    async def _identify(self, address: str) -> Identified:
        """Who answers at an address, and under the address that it tells others.

        Raises: `InvalidRequest` where that leads to somebody else or nowhere: the cluster would be made of wrong addresses.
        """
        found = await self._ask_who(address)
        advertised = found.entry.peer_address
        if advertised == address or found.entry.node == self._host.node:
            return found
        hint = f"the node at {address} tells others to reach it at {advertised} (listen.advertise_peer)"
        try:
            there = await self._ask_who(advertised)
        except (InvalidRequest, PreconditionFailed, Unavailable, OutcomeUnknown) as error:
            raise InvalidRequest(f"{hint}, and there nobody answers: {error.message}") from error
        if there.entry.node != found.entry.node:
            raise InvalidRequest(f"{hint}, and there node {there.entry.node} answers")
        return found

    async def _ask_who(self, address: str) -> Identified:
        try:
            answer = await self._errand(address, KIND_IDENTIFY, b"{}", ASK_TIMEOUT_NS)
        except IdentityMismatch as refusal:
            raise PreconditionFailed(
                f"the node at {address} cannot be taken in: {refusal.message}. Start it on an empty data directory"
            ) from refusal
        entry = DirectoryNode(
            NodeId(int(answer["node"])),
            answer["name"],
            answer["peer_address"],
            answer["client_address"],
            answer["admin_address"],
        )
        cluster = int(answer["cluster"])
        return Identified(address, entry, ClusterId(cluster) if cluster else None)

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
        """Takes the node at `peer_address` into the cluster, so far without replicas; refreshes its addresses if it is in.

        Asked again after an interruption it goes on. Raises: `PreconditionFailed` where it belongs to another cluster.
        """
        engine = self._host.running()
        found = await self._identify(peer_address)
        if found.cluster not in (None, engine.directory.cluster):
            raise PreconditionFailed(
                f"the node at {peer_address} belongs to cluster {found.cluster}, not to {engine.directory.cluster}: "
                "start it on an empty data directory"
            )
        directory = await self._update(lambda directory: _joined(directory, found.entry))
        await self._errand(found.entry.peer_address, KIND_JOIN, _with_epoch(directory), INIT_TIMEOUT_NS)
        return found.entry.node

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
        """Writes a membership change down for the shard's leader to carry out; see `Administration`.

        `remove` of the replica that a change in progress brings cancels that change: the way out where its node never comes.
        """
        info = await self.cluster()
        directory = self._host.running().directory
        planned = with_change(directory, shard, action=action, node=node, target=target)
        if planned is directory:
            found = directory.shards[shard]
            if found.change is None:
                return f"shard {shard} is so already: nothing to do"
            return f"shard {shard} is at it: {_listed(info, shard).change}"
        change = planned.shards[shard].change
        assert change is not None, f"with_change changed shard {shard} without a change"
        listed = _listed(info, shard)
        if change.action != "cancel":
            _check_nodes(info, planned.shards[shard], change)
            _check_quorum(listed, change)
        tolerance = _tolerance(listed, change)
        summary = (
            f"shard {shard}: {change.describe()}; failure tolerance {tolerance.before} now, {tolerance.after} after"
        )
        if dry_run:
            return f"{summary} (dry run: nothing was changed)"
        await self._update(lambda directory: with_change(directory, shard, action=action, node=node, target=target))
        return summary

    async def transfer_leader(self, shard: ShardId, target: NodeId | None) -> str:
        """Hands leadership over, to `target` or to the most up-to-date voter, and waits until somebody else leads."""
        engine = self._host.running()
        found = engine.directory.shards.get(shard)
        if found is None:
            raise InvalidRequest(f"there is no shard {shard}; `raftcache shard list` names them")
        listed = _listed(await self.cluster(), shard)
        if listed.leader == NO_REPLICA:
            raise Unavailable(f"shard {shard} has no leader to hand over")
        if target is not None and listed.leader_node == target:
            return f"node {target} leads shard {shard} already"
        document = {"shard": shard, "target": str(target or 0)}
        answer = await self._ask(listed.leader_node, KIND_TRANSFER, document, ASK_TIMEOUT_NS)
        to = ReplicaId(answer["to"])
        give_up_ns = self._host.clock.monotonic_ns() + TRANSFER_TIMEOUT_NS
        while self._host.clock.monotonic_ns() < give_up_ns:
            await asyncio.sleep(POLL_SECONDS)
            now = _listed(await self.cluster(), shard)
            if now.leader == to:
                return f"node {now.leader_node} leads shard {shard} now (term {now.term})"
        raise OutcomeUnknown(
            f"shard {shard}: replica {to} was told to take over and has not within {TRANSFER_TIMEOUT_NS // MS} ms"
        )


def _listed(info: ClusterInfo, shard: ShardId) -> ShardInfo:
    found = next((each for each in info.shards if each.shard == shard), None)
    if found is None:
        raise Unavailable(f"shard {shard} is not in the directory of epoch {info.epoch}; ask again")
    return found


def _check_nodes(info: ClusterInfo, shard: DirectoryShard, change: ReplicaChange) -> None:
    """A replica is not given to a node that does not answer: the change would wait for it, and keep others waiting."""
    placed = shard.replica(change.incoming)
    node = next((each for each in info.nodes if placed is not None and each.node == placed.node), None)
    if node is not None and not node.alive:
        raise PreconditionFailed(
            f"node {node.name} ({node.node}) does not answer at {node.peer_address}: start it before it gets a replica"
        )


def _tolerance(listed: ShardInfo, change: ReplicaChange) -> Tolerance:
    voters = tuple(sorted(r.replica for r in listed.replicas if r.votes))
    live = {r.replica for r in listed.replicas if r.role != "unknown"}
    return tolerance_of(Configuration(voters=voters), change, live)


def _check_quorum(listed: ShardInfo, change: ReplicaChange) -> None:
    """Raises: `PreconditionFailed`, with the failure tolerance before and after, where the change would risk the quorum."""
    tolerance = _tolerance(listed, change)
    before, after = tolerance.before, tolerance.after
    if before < 0 or listed.leader == NO_REPLICA:
        raise PreconditionFailed(
            f"shard {listed.shard} has no quorum now (failure tolerance {before}): no change can be committed. "
            "Bring its nodes back first"
        )
    if after < 0:
        raise PreconditionFailed(
            f"shard {listed.shard}: {change.describe()} would leave it without a quorum: "
            f"failure tolerance {before} now, {after} after. Add a replica or bring a node back first"
        )
    if after < min(before, 1) and change.incoming == NO_REPLICA:
        raise PreconditionFailed(
            f"shard {listed.shard}: {change.describe()} would put its quorum at risk: failure tolerance {before} "
            f"now, {after} after, so the next failure would stop it. Use `move`, or add a replica first"
        )


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
    """`host:port`, with an IPv6 address in brackets (RFC 3986 §3.2.2). Raises: `InvalidRequest`."""
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    name = host[1:-1] if bracketed else host
    plain = name and not set(name) & set("[]") and (":" in name) == bracketed
    if not plain or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise InvalidRequest(
            f"{address!r} is not an address: write host:port, as in 10.0.0.5:7401, node-1:7401 or [fd00::5]:7401"
        )
    return name, int(port)


def format_address(address: tuple[str, int]) -> str:
    """The inverse of `parse_address`."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def wrap(document: dict[str, Any]) -> bytes:
    """A good answer between nodes."""
    return json.dumps({"ok": document}).encode()


def wrap_error(error: RaftCacheError) -> bytes:
    """A refusal between nodes."""
    return json.dumps({"error": [error.reason, error.message, error.definite, error.metadata]}).encode()


def unwrap(payload: bytes) -> dict[str, Any]:
    """The answer's document. Raises: the error that it carries; `OutcomeUnknown` where it is no answer at all."""
    try:
        answer: dict[str, Any] = json.loads(payload)
        if "error" not in answer:
            document: dict[str, Any] = answer["ok"]
            return document
        reason, message, definite, metadata = answer["error"]
        error = error_of(reason, message, definite=definite, metadata=metadata)
    except (ValueError, KeyError, TypeError, AttributeError) as unreadable:
        raise OutcomeUnknown(f"another node's answer cannot be read ({unreadable!r})") from unreadable
    raise error
