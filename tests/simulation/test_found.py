"""What the simulator found, each as a test with a name. How it was found: docs/proof.md."""

from dataclasses import replace

from raftcache.ids import NodeId
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
