"""Somebody sets a machine's clock: the production node on simulated disks, where time is the test's to move.

Shard time decides what has expired, so it goes through the log and never falls; what a wall clock says counts once, when a
shard begins.
"""

from dataclasses import replace

import pytest

from raftcache.ids import NodeId, ShardId
from raftcache.kv.operations import Put
from raftcache.kv.slots import slot_of
from raftcache.node.api import Reply, Request
from raftcache.node.replica import Replica
from raftcache.node.settings import MS, EngineSettings
from raftcache.raft.messages import Role
from tests.simulation.plan import draw_plan
from tests.simulation.world import World

SHARD = ShardId(1)
KEY = b"k"
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


class Answers:
    """Takes replies."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []

    def deliver(self, replies: list[Reply]) -> None:
        self.replies += replies


class Shard:
    """The one shard of a quiet cluster: no faults, whoever leads it is asked."""

    def __init__(self, nodes: int) -> None:
        quiet = replace(draw_plan(7), nodes=nodes, spares=0, shards=1, operate_every_ms=0, slow_node_ticks=0, faults=())
        self.world = World(7, replace(quiet, settings=EngineSettings()))
        self.world.healed = frozenset(self.world.nodes)
        self.world.start()
        self.pass_ms(5_000)

    def pass_ms(self, duration_ms: int) -> None:
        """Real time passes, on all nodes."""
        self.world.run_until(self.world.now_ns + duration_ms * MS)

    def leader(self) -> tuple[NodeId, Replica]:
        """The node that leads, and its replica."""
        for number, node in self.world.nodes.items():
            if node.host is not None and node.host.engine is not None:
                replica = node.host.engine.local(SHARD)
                if replica is not None and replica.raft.role is Role.LEADER:
                    return number, replica
        raise LookupError("no leader")

    def time_ms(self) -> int:
        """The shard's time after one more write, as its leader's state machine has it."""
        number, replica = self.leader()
        host = self.world.nodes[number].host
        assert host is not None
        answers = Answers()
        host.submit([Request(None, Put(KEY, b"v"), slot_of(KEY), self.world.now_ns + 3_000 * MS)], answers)
        self.pass_ms(500)
        assert 1 == len(answers.replies), answers.replies
        assert not isinstance(answers.replies[0].result, Exception), answers.replies
        assert replica.machine is not None
        return replica.machine.clock_ms


@pytest.mark.parametrize("jump_ms", [-DAY_MS, -1, DAY_MS], ids=["a day back", "a moment back", "a day ahead"])
def test_shard_time_runs_on_when_the_leaders_clock_is_set(jump_ms: int) -> None:
    """In mid-term it goes on by the leader's monotonic clock, whichever way the wall clock jumps."""
    shard = Shard(nodes=1)
    before_ms = shard.time_ms()
    number, _ = shard.leader()
    shard.world.nodes[number].clock.jump_wall_ms(jump_ms)
    shard.pass_ms(10_000)
    passed_ms = shard.time_ms() - before_ms
    assert 10_000 <= passed_ms <= 11_000


def test_shard_time_does_not_fall_when_a_node_restarts_with_its_clock_set_back() -> None:
    """A new term continues from the state machine's time, not from the wall."""
    shard = Shard(nodes=1)
    before_ms = shard.time_ms()
    node = shard.world.nodes[NodeId(1)]
    node.end("as the test wants it", "cut", for_ms=10)
    node.clock.jump_wall_ms(-DAY_MS)
    shard.pass_ms(5_000)
    after_ms = shard.time_ms()
    assert before_ms <= after_ms <= before_ms + 20_000


def test_shard_time_does_not_jump_to_the_clock_of_the_next_leader() -> None:
    """Nodes whose clocks lie a day behind and a day ahead take over in turn: the shard's time neither falls nor leaps."""
    shard = Shard(nodes=3)
    first, _ = shard.leader()
    behind, ahead = (NodeId(number) for number in (1, 2, 3) if number != first)
    shard.world.nodes[behind].clock.jump_wall_ms(-DAY_MS)
    shard.world.nodes[ahead].clock.jump_wall_ms(DAY_MS)
    latest_ms = shard.time_ms()
    for successor in (behind, ahead, first):
        number, replica = shard.leader()
        host, to = shard.world.nodes[number].host, shard.world.nodes[successor].host
        assert host is not None
        assert host.engine is not None
        assert to is not None
        assert to.engine is not None
        target = to.engine.local(SHARD)
        assert target is not None
        host.engine.transfer(replica, target.replica_id)
        shard.pass_ms(1_000)
        assert successor == shard.leader()[0], "leaders may go home after a while, but not at once"
        now_ms = shard.time_ms()
        assert latest_ms <= now_ms <= latest_ms + 5_000
        latest_ms = now_ms
