"""What all connections of this node share: who it is, its limits, and whom it tells.

Rules of this file:
- plain data and small decisions; no sockets;
- a handler is called on the loop, and never from inside `send`, `request` or `request_address`: what they have to report
  comes at the next `flush` or loop turn, so that a caller is not re-entered.
"""

import asyncio
import random as random_module
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from raftcache.clock import Clock
from raftcache.errors import RaftCacheError
from raftcache.ids import ClusterId, NodeId, ShardId
from raftcache.raft.messages import Message
from raftcache.transport.connections import Traffic
from raftcache.transport.handshake import Address, Identity, same_cluster
from raftcache.transport.outbox import BULK_BYTES_MAX, CALL_BYTES_MAX
from raftcache.transport.tls import PeerTls

Respond = Callable[[bytes], None]
"""Answers one request, once, now or later. Does nothing where the connection has ended meanwhile."""
OnReply = Callable[[bytes | RaftCacheError], None]
"""Called once. An error says by its class whether the request may have reached the peer (`definite`)."""


@dataclass(slots=True, frozen=True)
class PeerSettings:
    """Limits and intervals of the peer network, each with its derivation. Times are milliseconds."""

    listen: Address = ("127.0.0.1", 0)
    advertise: Address | None = None
    """What others dial; None: what is listened on."""
    frame_bytes_max: int = 8 << 20
    """A full Append (1 MiB), a request of 4 MiB, and headers. The handshake takes the lesser of both ends."""
    bulk_bytes_max: int = BULK_BYTES_MAX
    call_bytes_max: int = CALL_BYTES_MAX
    requests_in_flight_max: int = 1024
    """Per peer. Each is a batch; `limits.in_flight_requests_max` counts what is inside."""
    dial_timeout_ms: int = 3000
    """Names, TCP (one retransmission of a SYN, 1 s), TLS and handshake together."""
    backoff_min_ms: int = 50
    backoff_max_ms: int = 1000
    """An election timeout: a node that comes back is connected before it is missed twice."""
    ping_interval_ms: int = 500
    idle_timeout_ms: int = 3000
    """Three election timeouts. A shorter one would cut off nodes that only wait for their disk."""
    housekeeping_ms: int = 100
    """The precision of all timeouts here."""
    accepted_max: int = 256
    """Connections accepted at once: links, snapshots and errands of some tens of nodes."""
    snapshots_in_max: int = 2
    snapshots_out_max: int = 2
    snapshot_bytes_per_second_max: int = 64 << 20
    """Half of 1 Gbit/s: the other half is for what clients wait for. 0: no limit."""
    snapshot_stall_ms: int = 30_000
    """A receiver that takes nothing for so long has a disk that will not take more."""
    snapshot_verify_ms: int = 600_000
    """From the last byte to the receiver's word: it reads and checks every record, and syncs."""

    def __post_init__(self) -> None:
        assert self.ping_interval_ms * 3 <= self.idle_timeout_ms, (
            f"two lost pings of {self.ping_interval_ms} ms must fit into {self.idle_timeout_ms} ms"
        )
        assert self.housekeeping_ms * 3 <= self.idle_timeout_ms, (self.housekeeping_ms, self.idle_timeout_ms)
        assert 0 < self.backoff_min_ms <= self.backoff_max_ms, (self.backoff_min_ms, self.backoff_max_ms)


class PeerHandler(Protocol):
    """What the node does with what comes in."""

    def on_messages(self, from_node: NodeId, messages: list[tuple[ShardId, Message]]) -> None: ...

    def on_request(self, from_node: NodeId, kind: int, payload: bytes, respond: Respond) -> None:
        """`respond` is to be called exactly once; never calling it leaves the other side to its deadline."""
        ...

    def on_connected(self, node: NodeId, address: Address) -> None:
        """The link *to* `node` is up, or `node` has linked to us; `address` is where it wants to be dialed."""
        ...

    def on_disconnected(self, node: NodeId) -> None:
        """The link to `node` was up and is no more; what was queued for it is dropped."""
        ...

    def on_dropped(self, node: NodeId) -> None:
        """Raft messages to `node` were dropped (at most one call per flush)."""
        ...


class Report(Protocol):
    """Where noteworthy events go: a constant `snake_case` name, values as fields."""

    def __call__(self, name: str, **fields: object) -> None: ...


def ignore_report(name: str, **fields: object) -> None:
    """Reports nothing."""


class Flushable(Protocol):
    """Something with bytes to write at the end of the turn."""

    def flush(self) -> None: ...


@dataclass(slots=True)
class LocalNode:
    """See the module."""

    identity: Identity
    settings: PeerSettings
    handler: PeerHandler
    clock: Clock
    random: random_module.Random
    tasks: asyncio.TaskGroup
    tls: PeerTls | None
    report: Report
    bootstrap_kinds: frozenset[int]
    """Requests that pass before both ends are initialised."""
    incarnations: dict[NodeId, int]
    """The newest life of each node seen, in this cluster only. Invariant: values only grow."""
    traffic: dict[NodeId, Traffic] = field(default_factory=dict)
    dirty: list[Flushable] = field(default_factory=list)
    """Who has something to write. Emptied by `flush`."""
    _flush_scheduled: bool = False

    def traffic_of(self, node: NodeId) -> Traffic:
        return self.traffic.setdefault(node, Traffic())

    def seen(self, theirs: Identity) -> bool:
        """Takes note of a node that proved itself. Returns whether more than bootstrap requests may pass."""
        if not same_cluster(self.identity, theirs):
            return False
        self.incarnations[theirs.node] = max(theirs.incarnation, self.incarnations.get(theirs.node, 0))
        return True

    def set_cluster(self, cluster: ClusterId) -> None:
        self.identity = replace(self.identity, cluster=cluster)

    def set_address(self, address: Address) -> None:
        self.identity = replace(self.identity, address=address)

    def flush(self) -> None:
        """Writes what waits; whoever is still not done after that goes on when its socket lets it."""
        dirty, self.dirty = self.dirty, []
        for flushable in dirty:
            flushable.flush()

    def flush_soon(self) -> None:
        """For what is queued outside of the node's turns: bootstrap requests, answers that come late."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flush_scheduled = False
        self.flush()
