"""What a node tells of itself to the others (`KIND_STATUS`), and the whole cluster put together from those answers.

Rules of this file:
- pure: answers in, `ClusterInfo` out; a node that did not answer is `alive = False`, and what only it knew is unknown;
- of several answers on one shard, its leader's counts; of several leaders, the one of the greatest term.
"""

from typing import Any

from raftcache.ids import NO_REPLICA, Index, NodeId, ReplicaId, ShardId, Term
from raftcache.node.api import ClusterInfo, NodeInfo, ReplicaInfo, ShardInfo
from raftcache.node.directory import Directory, DirectoryShard
from raftcache.node.engine import Engine
from raftcache.node.membership import failure_tolerance
from raftcache.raft.messages import Role

ROLE_NAMES = {
    Role.FOLLOWER: "follower",
    Role.PRE_CANDIDATE: "pre-candidate",
    Role.CANDIDATE: "candidate",
    Role.LEADER: "leader",
}


def local_status(engine: Engine, version: str) -> dict[str, Any]:
    """This node's answer to `KIND_STATUS`."""
    replicas = []
    for replica in engine.replicas.values():
        raft = replica.raft
        replicas.append(
            {
                "replica": replica.replica_id,
                "shard": replica.shard,
                "role": ROLE_NAMES[raft.role] if not replica.stopped else "unknown",
                "stopped": replica.stopped,
                "full": replica.full,
                "term": raft.term,
                "leader": raft.leader,
                "commit": raft.commit,
                "applied": raft.applied,
                "last": raft.last_index,
                "keys": replica.machine.record_count if replica.machine is not None else -1,
                "voters": list(raft.configuration.voters),
                "learners": list(raft.configuration.learners),
                "voters_outgoing": list(raft.configuration.voters_outgoing),
                "match": {str(p): [x.match, x.recent_active] for p, x in raft.progress.items()}
                if replica.leads
                else {},
                "waiting_for": engine.keeper.waiting_for.get(replica.shard, ""),
            }
        )
    absent = [
        {"replica": replica_id, "shard": absent.shard, "reason": absent.reason}
        for replica_id, absent in engine.lifecycle.absent.items()
    ]
    return {
        "version": version,
        "epoch": engine.directory.epoch,
        "refusing": engine.router.refusing,
        "replicas": replicas,
        "absent": absent,
    }


def cluster_info(directory: Directory, answers: dict[NodeId, dict[str, Any]]) -> ClusterInfo:
    """The cluster, from the directory and each node's answer; nodes without an answer are down."""
    reports: dict[ReplicaId, dict[str, Any]] = {
        report["replica"]: report for answer in answers.values() for report in answer["replicas"]
    }
    live = {
        placed.replica
        for shard in directory.shards.values()
        for placed in shard.replicas
        if placed.replica in reports and not reports[placed.replica]["stopped"]
    }
    info = ClusterInfo(directory.cluster, directory.epoch)
    info.shards = [_shard_info(directory, shard, reports, live) for shard in directory.shards.values()]
    leaders = [shard.leader_node for shard in info.shards]
    for node in directory.nodes.values():
        answer = answers.get(node.node)
        info.nodes.append(
            NodeInfo(
                node=node.node,
                name=node.name,
                peer_address=node.peer_address,
                client_address=node.client_address,
                admin_address=node.admin_address,
                alive=answer is not None,
                version=answer["version"] if answer is not None else "",
                replicas=sum(1 for shard in directory.shards.values() if shard.on_node(node.node)),
                leaders=leaders.count(node.node),
                catalog_voter=any(r.node == node.node for r in directory.shards[ShardId(0)].voters()),
            )
        )
    info.failure_tolerance = min((shard.failure_tolerance for shard in info.shards), default=0)
    info.problems = _problems(info, reports)
    for answering, answer in answers.items():
        # A node of an earlier release does not say.
        if refusing := answer.get("refusing"):
            info.problems.append(f"node {directory.nodes[answering].name} ({answering}): {refusing}")
        info.problems += [
            f"replica {absent['replica']} of shard {absent['shard']} is not running: {absent['reason']}"
            for absent in answer["absent"]
        ]
    info.healthy = not info.problems
    return info


def _shard_info(
    directory: Directory, shard: DirectoryShard, reports: dict[ReplicaId, dict[str, Any]], live: set[ReplicaId]
) -> ShardInfo:
    own = [reports[placed.replica] for placed in shard.replicas if placed.replica in reports]
    leading = max((r for r in own if r["role"] == "leader"), key=lambda r: r["term"], default=None)
    best = leading or max(own, key=lambda r: (r["term"], r["commit"]), default=None)
    leader = ReplicaId(leading["replica"]) if leading is not None else NO_REPLICA
    listed = {placed.replica for placed in shard.voters()}
    voters = set(best["voters"]) or listed if best is not None else listed
    # Thesis §4.3: while the configuration is joint, each half needs its majority.
    outgoing = set(best["voters_outgoing"]) if best is not None else set()
    info = ShardInfo(
        shard=shard.shard,
        ranges=[(lo, hi) for lo, hi in shard.ranges],
        leader=leader,
        leader_node=directory.node_of(leader) or NodeId(0) if leader else NodeId(0),
        term=Term(best["term"]) if best is not None else Term(0),
        commit_index=Index(best["commit"]) if best is not None else Index(0),
        applied_index=Index(best["applied"]) if best is not None else Index(0),
        failure_tolerance=min(failure_tolerance(half, live) for half in (voters, outgoing or voters)),
        keys=best["keys"] if best is not None else -1,
    )
    if shard.change is not None:
        waits = leading["waiting_for"] if leading is not None else "a leader"
        info.change = shard.change.describe() + (f"; waits for {waits}" if waits else "")
    matches = leading["match"] if leading is not None else {}
    for placed in shard.replicas:
        report = reports.get(placed.replica)
        match = (
            leading["last"]
            if leading is not None and placed.replica == leader
            else matches.get(str(placed.replica), [None])[0]
        )
        info.replicas.append(
            ReplicaInfo(
                replica=placed.replica,
                node=placed.node,
                membership=_membership(placed.replica, placed.membership, best, shard),
                votes=placed.replica in voters | outgoing,
                role=report["role"] if report is not None and not report["stopped"] else "unknown",
                match_index=Index(match or 0),
                lag_entries=max(0, leading["last"] - match) if leading is not None and match is not None else -1,
            )
        )
    return info


def _membership(replica: ReplicaId, listed: str, best: dict[str, Any] | None, shard: DirectoryShard) -> str:
    if shard.change is not None:
        cancelled = shard.change.action == "cancel"
        if replica == (shard.change.incoming if cancelled else shard.change.outgoing):
            return "leaving"
    if best is None:
        return listed
    if replica in best["voters"]:
        return "voter"
    return "learner" if replica in best["learners"] else "joining"


def _problems(info: ClusterInfo, reports: dict[ReplicaId, dict[str, Any]]) -> list[str]:
    problems = [f"node {node.name} ({node.node}) does not answer" for node in info.nodes if not node.alive]
    for shard in info.shards:
        if shard.failure_tolerance < 0:
            problems.append(f"shard {shard.shard} has lost its quorum")
        elif shard.leader == NO_REPLICA:
            problems.append(f"shard {shard.shard} has no leader")
        for replica in shard.replicas:
            stopped = reports.get(replica.replica, {}).get("stopped")
            if stopped:
                problems.append(f"replica {replica.replica} of shard {shard.shard} stopped: {stopped}")
        full = reports.get(shard.leader, {}).get("full")
        if full:
            problems.append(f"shard {shard.shard} refuses writes: {full}")
    return problems
