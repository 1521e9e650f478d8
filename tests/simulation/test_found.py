"""What the simulator found, each as a test with a name. How it was found: docs/proof.md."""

from dataclasses import replace

from raftcache.ids import Index, NodeId
from raftcache.node.settings import MS, EngineSettings
from tests.simulation.clients import Client
from tests.simulation.plan import Plan, draw_plan
from tests.simulation.world import World


def calm_plan(settings: EngineSettings) -> Plan:
    """Three nodes, one shard, and nothing that fails."""
    return replace(
        draw_plan(1),
        faults=(),
        spares=0,
        shards=1,
        loss=0.0,
        duplicate=0.0,
        delay_ms_max=1,
        reorder=False,
        operate_every_ms=0,
        turn_us_max=0,
        slow_node_ticks=0,
        flips_node=0,
        pause_ms_max=5,
        settings=settings,
    )


def test_a_backlog_is_applied_without_waiting_for_ticks() -> None:
    """A replica that comes back applies page after page (`committed_bytes_per_ready`), and not one page per heartbeat."""
    world = World(1, calm_plan(EngineSettings(committed_bytes_per_ready=1)))
    world.start()
    clients = [Client(world, number) for number in range(4)]
    for client in clients:
        client.start()
    world.run_until(4_000 * MS)
    victim = world.nodes[NodeId(2)]
    victim.end("a kill", "kill", 10)
    for client in clients:
        client.stopped = True
    world.run_until(5_500 * MS)
    assert victim.engine is not None
    for replica in victim.engine.replicas.values():
        assert replica.raft.applied == replica.raft.commit, f"shard {replica.shard}"
    assert max(replica.raft.commit for replica in victim.engine.replicas.values()) > 100


def test_what_a_node_acknowledged_counts_after_its_log_was_damaged() -> None:
    """A leader that hears of it later commits with it, and is right: the copy was durable, and its node never votes again."""
    world = World(1, calm_plan(EngineSettings()))
    world.start()
    client = Client(world, 0)
    client.start()
    world.run_until(3_000 * MS)
    client.stopped = True
    world.run_until(4_000 * MS)
    victim = next(node for node in world.nodes.values() if node.engine is not None and not node.engine.leaders())
    assert victim.engine is not None
    raft = next(replica.raft for replica in victim.engine.replicas.values() if replica.raft.commit > 10)
    victim.end("a power cut", "cut", 60_000)
    world.ghost._left.pop(victim.node)
    assert not world.ghost._survives(raft.id, raft.commit, raft.term), "nobody damaged anything: it is lost"
    victim.flipped_segment = 1
    assert world.ghost._survives(raft.id, raft.commit, raft.term)
    assert not world.ghost._survives(raft.id, Index(raft.last_index + 1), raft.term)
