"""What the node shows when it is scraped: plain numbers read off the engine at that moment."""

from raftcache.clock import NS_PER_SECOND
from raftcache.ids import NO_REPLICA
from raftcache.node.host import Host
from raftcache.node.replica import Replica
from raftcache.node.status import ROLE_NAMES
from raftcache.telemetry.samples import NodeSample, PeerSample, ShardSample
from raftcache.transport.links import LinkState
from raftcache.transport.peers import PeerNetwork


def sample(host: Host, network: PeerNetwork, disk_free_bytes: int) -> NodeSample:
    """The node now; before it belongs to a cluster, only its disk."""
    engine = host.engine
    if engine is None:
        return NodeSample(disk_free_bytes=disk_free_bytes)
    return NodeSample(
        shards=[_shard(replica) for replica in engine.replicas.values()]
        + [ShardSample(absent.shard, "stopped", False, 0, 0, 0, 0) for absent in engine.lifecycle.absent.values()],
        peers=_peers(network),
        disk_free_bytes=disk_free_bytes,
        wal_bytes=engine.wal.log_bytes,
        in_flight_requests=engine.router.in_flight,
        in_flight_bytes=engine.router.in_flight_bytes,
        forwarded=engine.router.forwarded,
        overloaded=engine.router.overloaded,
    )


def _shard(replica: Replica) -> ShardSample:
    raft = replica.raft
    lags = [raft.last_index - raft.progress[peer].match for peer in raft.configuration.voters if peer in raft.progress]
    role = ROLE_NAMES[raft.role]
    if replica.replica_id in raft.configuration.learners:
        role = "learner"
    return ShardSample(
        shard=replica.shard,
        role="stopped" if replica.stopped else role,
        has_leader=raft.leader != NO_REPLICA and not replica.stopped,
        term=raft.term,
        commit_index=raft.commit,
        applied_index=raft.applied,
        last_index=raft.last_index,
        leader_changes=replica.leader_changes,
        elections=replica.elections,
        proposals_applied=replica.commands_applied,
        proposals_failed=replica.proposals_failed,
        proposals_pending=replica.proposals_pending(),
        follower_lag_entries=max(lags, default=0) if replica.leads else 0,
        records=replica.machine.record_count if replica.machine is not None else 0,
        state_bytes=replica.state_bytes,
        full=bool(replica.full),
    )


def _peers(network: PeerNetwork) -> list[PeerSample]:
    return [
        PeerSample(
            peer=str(status.node),
            connected=status.state is LinkState.UP,
            round_trip_seconds=status.round_trip_ns / NS_PER_SECOND,
            send_failures=status.traffic.messages_dropped,
            queue_bytes=status.queued_bytes,
            sent_bytes=status.traffic.bytes_sent,
            received_bytes=status.traffic.bytes_received,
        )
        for status in network.status()
    ]
