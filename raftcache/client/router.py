"""Which endpoint to ask: the shard map, what answers said about leaders, and which endpoints did not answer lately.

Rules of this file:
- everything here is a hint. A wrong one costs a hop or a definite refusal, never a wrong answer;
- any node answers any request, so there is always somebody to ask: the leader if it is known and answers, else a node with
  a replica, else whatever is known, the least recently failed first;
- an endpoint that did not answer is left alone for `AVOID_SECONDS`, unless nothing else is left;
- safe with threads without a lock: single reads and writes of dicts, and a table that is replaced as a whole.
"""

from random import Random

from raftcache.client.results import NodeInfo, ShardInfo, ShardMap
from raftcache.clock import NS_PER_SECOND
from raftcache.errors import IdentityMismatch
from raftcache.kv.slots import SLOT_COUNT
from raftcache.v1 import shard_map_pb2, types_pb2

AVOID_SECONDS = 1.0
"""A process is restarted in about this time. Shorter, and every call would trip over a dead node; longer, and one that is
back stays idle."""

NO_SHARD = -1


class Table:
    """One shard map, made for looking up."""

    __slots__ = ("cluster", "epoch", "replicas", "shards", "slots")

    def __init__(self, response: shard_map_pb2.ShardMapResponse) -> None:
        self.epoch = response.epoch
        self.cluster = response.cluster
        self.slots = [NO_SHARD] * SLOT_COUNT
        """Shard by slot."""
        addresses = {node.node: node.client_address for node in response.nodes}
        self.replicas: dict[int, tuple[str, ...]] = {}
        """The addresses of the nodes that have a replica, by shard."""
        for route in response.shards:
            for owned in route.ranges:
                self.slots[owned.lo : owned.hi] = [route.shard] * (owned.hi - owned.lo)
            known = (addresses.get(node, "") for node in route.replica_nodes)
            self.replicas[route.shard] = tuple(address for address in known if address)


class Router:
    """The routes of one client in one process."""

    def __init__(self, seeds: tuple[str, ...], *, direct: bool, random: Random) -> None:
        self._direct = direct
        self._random = random
        self.table: Table | None = None
        self.table_due = True
        """The table is missing, or known to be old: the next flow that needs it fetches it."""
        self.leaders: dict[int, str] = {}
        """The leader's address by shard, as last heard of."""
        self._endpoints = seeds
        """The configured ones, then those of the table. The first is where requests without a shard go, until it fails; it
        is chosen at random, so that many clients spread."""
        self._seeds = seeds
        self._first = random.randrange(len(seeds))
        self._failed_ns: dict[str, int] = {}
        """When an endpoint did not answer, if it has not since."""

    def shard_of(self, slot: int) -> int:
        """The shard that owns `slot`; `NO_SHARD` where it is not known, or the slot is none."""
        table = self.table
        return NO_SHARD if table is None or slot < 0 else table.slots[slot]

    def endpoint_for(self, shard: int, *, stale: bool, now_ns: int) -> str:
        """Whom to ask."""
        failed = self._failed_ns
        if self._direct and shard != NO_SHARD:
            if not stale:
                leader = self.leaders.get(shard)
                if leader is not None and (not failed or self._answers(leader, now_ns)):
                    return leader
            table = self.table
            replicas = table.replicas.get(shard, ()) if table is not None else ()
            candidates = [address for address in replicas if self._answers(address, now_ns)]
            if candidates:
                return self._random.choice(candidates)
        endpoints = self._endpoints
        count = len(endpoints)
        first = self._first
        for offset in range(count):
            endpoint = endpoints[(first + offset) % count]
            if not failed or self._answers(endpoint, now_ns):
                # Stays there: connections that are in use already are better than others.
                self._first = (first + offset) % count
                return endpoint
        return min(endpoints, key=lambda endpoint: failed.get(endpoint, 0))

    def learn(self, header: types_pb2.ResponseHeader, endpoint: str, *, stale: bool) -> None:
        """An answer came from `endpoint`, with this header."""
        if self._failed_ns:
            self._failed_ns.pop(endpoint, None)
        hint = header.leader_address
        if hint:
            self.leaders[header.shard] = hint
            table = self.table
            if table is not None and header.epoch > table.epoch:
                self.table_due = True
        elif not stale:
            # No hint and a linearizable answer: it leads.
            self.leaders[header.shard] = endpoint

    def on_not_leader(self, shard: int, endpoint: str, hint: str) -> bool:
        """`endpoint` could not serve `shard`. Returns whether it named somebody else to ask at once."""
        if hint and hint != endpoint:
            self.leaders[shard] = hint
            return self._direct
        if self.leaders.get(shard) == endpoint:
            self.leaders.pop(shard, None)
        if self._endpoints[self._first % len(self._endpoints)] == endpoint:
            self._first += 1
        return False

    def on_unreachable(self, endpoint: str, now_ns: int) -> bool:
        """`endpoint` did not answer. Returns whether there is another that may."""
        self._failed_ns[endpoint] = now_ns
        return any(self._answers(other, now_ns) for other in self._endpoints)

    def adopt(self, response: shard_map_pb2.ShardMapResponse) -> None:
        """A node's shard map, unless the one at hand is newer. Raises: `IdentityMismatch` for another cluster's."""
        table = self.table
        if table is not None and response.cluster != table.cluster:
            raise IdentityMismatch(
                f"the shard map is of cluster {response.cluster:x}; this client talked to cluster {table.cluster:x} before. "
                f"Do the endpoints lead to one cluster?"
            )
        self.table_due = False
        if table is not None and response.epoch < table.epoch:
            return
        for route in response.shards:
            if route.leader_address:
                self.leaders[route.shard] = route.leader_address
        if table is None or response.epoch > table.epoch:
            self.table = Table(response)
        if self._direct:
            # In gateway mode the nodes' own addresses may lead nowhere from here.
            addresses = (node.client_address for node in response.nodes if node.client_address)
            self._endpoints = tuple(dict.fromkeys((*self._seeds, *addresses)))

    def _answers(self, endpoint: str, now_ns: int) -> bool:
        failed_ns = self._failed_ns.get(endpoint)
        return failed_ns is None or now_ns - failed_ns > AVOID_SECONDS * NS_PER_SECOND


def shard_map_of(response: shard_map_pb2.ShardMapResponse) -> ShardMap:
    """The routing table as callers see it."""
    addresses = {node.node: node.client_address for node in response.nodes}
    return ShardMap(
        response.epoch,
        response.cluster,
        tuple(
            ShardInfo(
                route.shard,
                tuple((owned.lo, owned.hi) for owned in route.ranges),
                route.leader_address,
                tuple(addresses.get(node, "") for node in route.replica_nodes),
            )
            for route in response.shards
        ),
        tuple(NodeInfo(node.node, node.name, node.client_address) for node in response.nodes),
    )
