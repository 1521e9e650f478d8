"""`PeerNetwork`: the engine's way to other nodes, over TCP.

The engine is synchronous, and so is everything it calls here: `send` and `request` queue, `flush` at the end of the
engine's turn builds one write per peer, and whatever comes back comes as a call of the handler. In the simulator another
class plays this role.

    engine ── send / flush / request ──► Link per peer ──► Connection ──►  ... ──► Accepted ──► handler of the other node

Rules of this file:
- every queue is bounded, and at its bound Raft messages are dropped and counted, requests refused;
- a peer is addressed by its node id; where it lives is asked of `address_of` at each dial;
- `start` and `aclose` are the only coroutines an owner needs; tasks (dials, outgoing snapshots) live in the owner's group.

Caveats: ordering holds per peer and lane (`outbox.py`), not between lanes, and not across a reconnect. Raft needs neither.
"""

import asyncio
import random as random_module
from collections.abc import Callable
from dataclasses import dataclass

from raftcache.clock import NS_PER_MS, Clock
from raftcache.errors import Unavailable
from raftcache.ids import ClusterId, NodeId, ShardId
from raftcache.raft.messages import InstallSnapshot, Message
from raftcache.transport.accepted import Listener
from raftcache.transport.connections import Traffic
from raftcache.transport.handshake import ANY_NODE, Address, Identity
from raftcache.transport.links import Link, LinkState
from raftcache.transport.local_node import (
    LocalNode,
    OnReply,
    PeerHandler,
    PeerSettings,
    Report,
    ignore_report,
)
from raftcache.transport.snapshots import BeginSnapshot, IncomingSnapshots, OutgoingSnapshots, SnapshotSource
from raftcache.transport.tls import PeerTls

ERRANDS_MAX = 64
"""Requests to bare addresses at once: `init` asks each first member, a joining node each seed."""


@dataclass(slots=True, frozen=True)
class PeerStatus:
    """What is known of one peer, for metrics and for `raftcache node list`."""

    node: NodeId
    state: LinkState
    address: Address | None
    """Last dialed; None if never."""
    round_trip_ns: int
    """0 = not measured yet."""
    queued_bytes: int
    error: str
    """Why the last attempt or connection failed; empty while up."""
    traffic: Traffic
    """Both directions; live counters, not a copy."""


class PeerNetwork:
    """See the module."""

    def __init__(
        self,
        settings: PeerSettings,
        *,
        cluster: ClusterId,
        node: NodeId,
        incarnation: int,
        handler: PeerHandler,
        address_of: Callable[[NodeId], Address | None],
        clock: Clock,
        random: random_module.Random,
        tls: PeerTls | None = None,
        insecure: bool = False,
        begin_snapshot: BeginSnapshot | None = None,
        bootstrap_kinds: frozenset[int] = frozenset(),
        incarnations: dict[NodeId, int] | None = None,
        report: Report = ignore_report,
    ) -> None:
        """`incarnations`: the newest lives seen, kept up to date in place, so that the owner can save them."""
        self._settings = settings
        self._identity = Identity(
            cluster, node, incarnation, settings.advertise or settings.listen, settings.frame_bytes_max
        )
        self._handler = handler
        self._address_of = address_of
        self._clock = clock
        self._random = random
        self._tls = tls
        self._insecure = insecure
        self._begin_snapshot = begin_snapshot
        self._bootstrap_kinds = bootstrap_kinds
        self._incarnations = incarnations if incarnations is not None else {}
        self._report = report
        self._links: dict[NodeId, Link] = {}
        self._errands: set[Link] = set()
        self._housekeeping: asyncio.TimerHandle | None = None

    async def start(self, tasks: asyncio.TaskGroup) -> Address:
        """Listens and begins to work; returns the address that it listens on (port 0 has become a number).

        Raises: `ConfigError` where it may not listen (no TLS on an address that others reach), `OSError`.
        """
        self._local = LocalNode(
            identity=self._identity,
            settings=self._settings,
            handler=self._handler,
            clock=self._clock,
            random=self._random,
            tasks=tasks,
            tls=self._tls,
            report=self._report,
            bootstrap_kinds=self._bootstrap_kinds,
            incarnations=self._incarnations,
        )
        incoming = IncomingSnapshots(self._begin_snapshot, count_max=self._settings.snapshots_in_max)
        self._outgoing = OutgoingSnapshots(self._local, self._address_of)
        self._listener = Listener(self._local, incoming, heard_from=self._heard_from)
        bound = await self._listener.start(insecure=self._insecure)
        if self._settings.advertise is None:
            self._local.set_address(bound)
        self._schedule_housekeeping()
        return bound

    async def aclose(self, *, patience_ms: int = 1000) -> None:
        """Says goodbye, lets what was written leave and what others asked be answered, for at most `patience_ms`.

        Requests of this node that are not answered by then end as `OutcomeUnknown`, or `Unavailable` if they never left.
        """
        why = "this node is shutting down"
        links = [*self._links.values(), *self._errands]
        dialed = (link.connection for link in links)
        self._outgoing.stop()
        self._listener.stop()
        for link in links:
            link.close(why)
        ending = [connection for connection in dialed if connection is not None] + self._listener.connections
        try:
            async with asyncio.timeout(patience_ms / 1000):
                for connection in ending:
                    await connection.gone.wait()
        except TimeoutError:
            pass
        for connection in ending:
            connection.abort(Unavailable(why))
        for connection in ending:
            await connection.gone.wait()
        if self._housekeeping is not None:
            self._housekeeping.cancel()

    # --- Called by the engine -----------------------------------------------------------------------------------------

    def send(self, node: NodeId, shard: ShardId, message: Message) -> None:
        """Queues a Raft message until `flush`. At its bound, or with no connection, it is dropped and counted."""
        link = self._links.get(node)
        if link is None:
            link = self._link(node)
        link.send(shard, message)

    def flush(self) -> None:
        """Writes what was queued: one write per peer, urgent messages first; dials peers that have none yet."""
        if self._local.dirty:
            self._local.flush()

    def request(self, node: NodeId, kind: int, payload: bytes, on_reply: OnReply, deadline_ns: int) -> None:
        """Asks another node. `on_reply` is called once, later: with the answer, or with an error that says whether the
        request may have arrived (`definite`). `deadline_ns` is of the clock given; its precision is `housekeeping_ms`."""
        link = self._links.get(node)
        if link is None:
            link = self._link(node)
        link.request(kind, payload, on_reply, deadline_ns)

    def request_address(self, address: Address, kind: int, payload: bytes, on_reply: OnReply, deadline_ns: int) -> None:
        """Asks whoever lives at `address`, on a connection for this one request: `init`, `join`, `identify`."""
        link = Link(self._local, ANY_NODE, lambda: address, on_idle=lambda: self._end_errand(link))
        if len(self._errands) >= ERRANDS_MAX:
            link.close("too many errands to bare addresses are on their way")
        self._errands.add(link)
        link.request(kind, payload, on_reply, deadline_ns)

    def send_snapshot(
        self,
        node: NodeId,
        shard: ShardId,
        message: InstallSnapshot,
        source: SnapshotSource,
        on_done: Callable[[bool], None],
    ) -> None:
        """Streams a checkpoint to a follower. `on_done` is called once, later: did the receiver verify it and keep it?"""
        self._outgoing.send(node, shard, message, source, on_done)

    def connected(self, node: NodeId) -> bool:
        """Whether the link to `node` is up."""
        link = self._links.get(node)
        return link is not None and link.state is LinkState.UP and not link.bootstrap_only

    def resting(self, node: NodeId) -> bool:
        """Whether a dial failed a moment ago, so that requests are refused at once."""
        link = self._links.get(node)
        return link is not None and link.state is LinkState.RESTING

    def answer_bytes_waiting(self, node: NodeId) -> int:
        """Answers to requests of `node` that it has not taken yet."""
        return self._listener.answer_bytes_waiting(node)

    def status(self) -> list[PeerStatus]:
        """All peers ever dialed since the start, in order of their ids."""
        return [
            PeerStatus(
                node=node,
                state=link.state,
                address=link.dialed,
                round_trip_ns=link.round_trip_ns,
                queued_bytes=link.outbox.bytes_waiting,
                error=link.error,
                traffic=link.traffic,
            )
            for node, link in sorted(self._links.items())
        ]

    # --- Called by the composition root -------------------------------------------------------------------------------

    def set_cluster(self, cluster: ClusterId) -> None:
        """This node has become a member (`init` or `join`): from now on it introduces itself as one."""
        self._local.set_cluster(cluster)
        self._listener.drop_bootstrap_links()
        for link in self._links.values():
            if link.bootstrap_only:
                link.abort("this node has joined a cluster")

    def forget(self, node: NodeId) -> None:
        """The node has been removed: its link is closed and its queues freed."""
        link = self._links.pop(node, None)
        if link is not None:
            link.close("the node was removed")
            link.abort("the node was removed")
            self._local.traffic.pop(node, None)

    async def reload_tls(self, tls: PeerTls) -> None:
        """New connections use the new certificates; those that are up stay."""
        await self._listener.reload_tls(tls)

    # --- Inside -------------------------------------------------------------------------------------------------------

    def _link(self, node: NodeId) -> Link:
        assert node not in (ANY_NODE, self._local.identity.node), (
            f"node {node} does not talk to itself over the network"
        )
        link = self._links[node] = Link(self._local, node, lambda: self._address_of(node), on_idle=None)
        return link

    def _end_errand(self, link: Link) -> None:
        link.close("the errand is done")
        self._errands.discard(link)

    def _heard_from(self, node: NodeId) -> None:
        link = self._links.get(node)
        if link is not None:
            link.heard_from()

    def _schedule_housekeeping(self) -> None:
        loop = asyncio.get_running_loop()
        self._housekeeping = loop.call_later(self._settings.housekeeping_ms * NS_PER_MS / 1e9, self._housekeep)

    def _housekeep(self) -> None:
        now_ns = self._clock.monotonic_ns()
        for link in (*self._links.values(), *self._errands):
            link.housekeep(now_ns)
        self._listener.housekeep()
        self._schedule_housekeeping()
