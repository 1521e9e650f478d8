"""The cluster as the admin service describes it: found by name, shown as tables and as JSON.

Nodes are named by people and numbered by the cluster. Commands take both, and show both.
"""

from raftcache.admin.v1 import admin_pb2
from raftcache.cli.exits import Exit, Failure
from raftcache.cli.output import Document, table

SHARDS_SHOWN_MAX = 32
"""In `status`; with more, only those that need attention. `shard list` shows all."""

Cluster = admin_pb2.GetClusterResponse


# --- Finding ------------------------------------------------------------------------------------------------------


def find_node(cluster: Cluster, text: str) -> admin_pb2.Node:
    """The node of this id, or of this name if only one has it. Raises: `Failure`."""
    by_id = [node for node in cluster.nodes if str(node.node) == text]
    named = by_id or [node for node in cluster.nodes if node.name == text]
    if len(named) == 1:
        return named[0]
    listed = ", ".join(f"{node.name} ({node.node})" for node in cluster.nodes)
    if named:
        raise Failure(
            f"{len(named)} nodes have the name {text!r}", code=Exit.USAGE, hint=f"name it by its id: {listed}"
        )
    raise Failure(f"the cluster has no node {text!r}", code=Exit.NOT_FOUND, hint=f"there are {listed}")


def find_shard(cluster: Cluster, number: int) -> admin_pb2.Shard:
    """The shard of this id. Raises: `Failure`."""
    for shard in cluster.shards:
        if shard.shard == number:
            return shard
    raise Failure(
        f"the cluster has no shard {number}",
        code=Exit.NOT_FOUND,
        hint=f"there are {len(cluster.shards)}; `raftcache shard list` shows them",
    )


def name_of(cluster: Cluster, node: int) -> str:
    """A node's name, if it is unique, else its id."""
    names = [each.name for each in cluster.nodes]
    for each in cluster.nodes:
        if each.node == node:
            return each.name if each.name and names.count(each.name) == 1 else str(node)
    return str(node)


def slots_of(shard: admin_pb2.Shard) -> int:
    """How many slots it owns."""
    return sum(pair.hi - pair.lo for pair in shard.ranges)


# --- For people ---------------------------------------------------------------------------------------------------


def status_text(cluster: Cluster) -> str:
    """The whole cluster."""
    tolerance = cluster.failure_tolerance
    health = "healthy" if cluster.healthy else "UNHEALTHY"
    heading = f"cluster {cluster.cluster}: {health}; {_tolerance(tolerance)}"
    shown = list(cluster.shards)
    rest = ""
    if len(shown) > SHARDS_SHOWN_MAX:
        shown = [shard for shard in shown if needs_attention(shard)]
        rest = f"\n{len(cluster.shards) - len(shown)} more shards with a leader and nothing to do: raftcache shard list"
    parts = [heading, nodes_text(cluster)]
    parts.append((shards_text(cluster, shown) if shown else "") + rest)
    if cluster.problems:
        parts.append("\n".join(["problems:", *(f"  {problem}" for problem in cluster.problems)]))
    return "\n\n".join(part.strip("\n") for part in parts)


def needs_attention(shard: admin_pb2.Shard) -> bool:
    """Whether a shard is worth a line of its own."""
    unknown = any(replica.role == "unknown" for replica in shard.replicas)
    return not shard.leader or bool(shard.change) or unknown


def _tolerance(tolerance: int) -> str:
    if tolerance < 0:
        return "some shard has lost its majority"
    if tolerance == 0:
        return "no node may fail"
    return f"any {tolerance} more node{'s'[: tolerance > 1]} may fail"


def nodes_text(cluster: Cluster) -> str:
    """One line for each node."""
    rows = [
        (
            node.name,
            node.node,
            "up" if node.alive else "DOWN",
            node.version or "-",
            node.replicas,
            node.leaders,
            "voter" if node.catalog_voter else "-",
            node.client_address,
            node.peer_address,
        )
        for node in sorted(cluster.nodes, key=lambda each: (each.name, each.node))
    ]
    headings = ("NODE", "ID", "STATE", "VERSION", "REPLICAS", "LEADS", "CATALOG", "CLIENTS", "PEERS")
    return table(headings, rows, right=frozenset({4, 5}))


def shards_text(cluster: Cluster, shards: list[admin_pb2.Shard]) -> str:
    """One line for each shard."""
    rows = [
        (
            shard.shard,
            "catalog" if shard.shard == 0 else slots_of(shard),
            name_of(cluster, shard.leader_node) if shard.leader else "NONE",
            shard.term,
            shard.commit_index,
            shard.keys if shard.HasField("keys") else "-",
            shard.failure_tolerance,
            " ".join(_replica(cluster, replica) for replica in shard.replicas),
            shard.change,
        )
        for shard in shards
    ]
    headings = ("SHARD", "SLOTS", "LEADER", "TERM", "COMMIT", "KEYS", "MAY FAIL", "REPLICAS", "CHANGE")
    return table(headings, rows, right=frozenset({0, 3, 4, 5, 6}))


def _replica(cluster: Cluster, replica: admin_pb2.Replica) -> str:
    """The node's name, and what is not as usual: `n3(learner,12 behind)`."""
    facts = [] if replica.membership == "voter" else [replica.membership]
    if replica.role == "unknown":
        facts.append("no answer")
    elif replica.HasField("lag_entries") and replica.lag_entries:
        facts.append(f"{replica.lag_entries} behind")
    return name_of(cluster, replica.node) + (f"({','.join(facts)})" if facts else "")


# --- For programs -------------------------------------------------------------------------------------------------


def status_document(cluster: Cluster) -> Document:
    """The whole cluster."""
    return {
        "cluster": str(cluster.cluster),
        "epoch": str(cluster.epoch),
        "healthy": cluster.healthy,
        "failure_tolerance": cluster.failure_tolerance,
        "problems": list(cluster.problems),
        "nodes": [node_document(node) for node in cluster.nodes],
        "shards": [shard_document(cluster, shard) for shard in cluster.shards],
    }


def node_document(node: admin_pb2.Node) -> Document:
    """One node."""
    return {
        "node": str(node.node),
        "name": node.name,
        "alive": node.alive,
        "version": node.version,
        "replicas": node.replicas,
        "leaders": node.leaders,
        "catalog_voter": node.catalog_voter,
        "client_address": node.client_address,
        "peer_address": node.peer_address,
        "admin_address": node.admin_address,
    }


def shard_document(cluster: Cluster, shard: admin_pb2.Shard) -> Document:
    """One shard."""
    return {
        "shard": shard.shard,
        "ranges": [[pair.lo, pair.hi] for pair in shard.ranges],
        "leader": str(shard.leader) if shard.leader else None,
        "leader_node": str(shard.leader_node) if shard.leader_node else None,
        "leader_name": name_of(cluster, shard.leader_node) if shard.leader_node else None,
        "term": str(shard.term),
        "commit_index": str(shard.commit_index),
        "applied_index": str(shard.applied_index),
        "keys": str(shard.keys) if shard.HasField("keys") else None,
        "failure_tolerance": shard.failure_tolerance,
        "change": shard.change or None,
        "replicas": [
            {
                "replica": str(replica.replica),
                "node": str(replica.node),
                "name": name_of(cluster, replica.node),
                "membership": replica.membership,
                "role": replica.role,
                "match_index": str(replica.match_index),
                "lag_entries": str(replica.lag_entries) if replica.HasField("lag_entries") else None,
            }
            for replica in shard.replicas
        ],
    }
