"""Random sequences of requests, faults and rebuilds: every request gets exactly one reply, and nothing is counted for ever."""

from dataclasses import dataclass, field
from random import Random

import pytest

from raftcache.ids import ShardId
from raftcache.kv.operations import Increment, Scan, WriteResult
from raftcache.node.api import Consistency
from raftcache.node.kinds import KIND_FORWARD
from raftcache.node.settings import MS
from tests.node.nodes import SHARD, Asked, Call, Node, Nodes

STEPS = 250
SEEDS = range(12)
KEYS = [b"k%d" % number for number in range(5)]


@dataclass
class Run:
    """One seed."""

    seed: int
    random: Random = field(init=False)
    nodes: Nodes = field(init=False)
    asked: list[tuple[Node, int, Asked]] = field(default_factory=list)
    """Through which node, in which life of it."""
    streams: dict[tuple[int, int, bytes], list[Asked]] = field(default_factory=dict)
    """The ordered writes of one key through one life of a node."""

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        draw = self.random
        self.nodes = Nodes(
            4,
            shards=2,
            seed=self.seed,
            batches_in_flight_max=draw.choice([1, 2, 4]),
            entry_commands_max=draw.choice([1, 3, 100]),
            read_rounds_in_flight_max=draw.choice([1, 4]),
            in_flight_requests_max=draw.choice([8, 20_000]),
            patience_ns=draw.choice([200, 2_000]) * MS,
            sync_inline_below_ns=draw.choice([-1, 1_000_000]),
            log_bytes_per_checkpoint=draw.choice([500, 1 << 30]),
        )

    def up(self) -> list[Node]:
        return [node for node in self.nodes if node.host is not None]

    def submit(self, count: int) -> None:
        draw, nodes = self.random, self.nodes
        node = draw.choice(self.up())
        timeout_ns = draw.choice([50, 500, 3_000]) * MS
        ordered = draw.random() < 0.5
        for _ in range(count):
            key = draw.choice(KEYS)
            match draw.randrange(6):
                case 0:
                    asked = nodes.get(node, key, timeout_ns=timeout_ns, run=False)
                case 1:
                    asked = nodes.get(node, key, timeout_ns=timeout_ns, run=False, consistency=Consistency.STALE)
                case 2:
                    asked = nodes.ask(node, Scan(b"", None), timeout_ns=timeout_ns, run=False, shard=SHARD)
                case 3:
                    asked = nodes.ask(node, Increment(b"n" + key), timeout_ns=timeout_ns, run=False)
                case _:
                    asked = nodes.put(node, key, timeout_ns=timeout_ns, run=False, ordered=ordered)
                    if ordered:
                        self.streams.setdefault((node.node, node.life, key), []).append(asked)
            self.asked.append((node, node.life, asked))

    def step(self) -> None:
        draw, nodes = self.random, self.nodes
        match draw.randrange(22):
            case 0:
                victim = draw.choice(list(nodes))
                if victim.host is None:
                    victim.start()
                elif len(self.up()) > 2:
                    victim.crash()
            case 1:
                nodes.isolate(draw.choice(list(nodes)))
            case 2 | 3:
                nodes.heal()
            case 4:
                nodes.cut(*draw.sample(list(nodes), 2))
            case 5:
                replica = draw.choice([r for n in self.up() for r in n.engine.replicas.values()])
                owner = next(n for n in self.up() if replica in n.engine.replicas.values())
                owner.engine.rebuild(replica, "as a test")
            case 6:
                for node in self.up():
                    for replica in node.engine.replicas.values():
                        if replica.leads and not replica.raft.lead_transferee:
                            node.engine.transfer(replica)
                            return
            case 7:
                share = draw.random()
                nodes.hold_calls = lambda call: self.holds(call, share)
            case 8:
                share = draw.random()
                nodes.lose_answers = lambda call: call.kind == KIND_FORWARD and draw.random() < share
            case 9:
                self.let_go()
            case 10:
                node = draw.choice(self.up())
                node.scheduler.hold = not node.scheduler.hold
            case 11:
                node = draw.choice(self.up())
                node.disk_free = draw.choice([0, 1 << 40])
            case 12 | 13 | 14:
                nodes.tick(draw.randrange(1, 6))
            case 15 | 16:
                nodes.run()
            case _:
                self.submit(draw.randrange(1, 8))

    def holds(self, call: Call, share: float) -> bool:
        """Requests wait at random, but none overtakes another on the same connection: the transport sees to that."""
        if call.kind != KIND_FORWARD:
            return False
        behind = any((each.origin, each.target) == (call.origin, call.target) for each in self.nodes.held)
        return behind or self.random.random() < share

    def let_go(self) -> None:
        held, self.nodes.held = self.nodes.held, []
        for call in held:
            self.nodes.let_go(call)

    def finish(self) -> None:
        nodes = self.nodes
        never: object = lambda call: False  # noqa: E731
        nodes.hold_calls = nodes.lose_answers = never  # type: ignore[assignment]
        nodes.heal()
        for node in nodes:
            if node.host is None:
                node.start()
            node.scheduler.hold = False
            node.disk_free = 1 << 40
        self.let_go()
        nodes.tick(60)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_request_gets_one_reply_and_nothing_leaks(seed: int) -> None:
    """Crashes, partitions, lost answers, slow and full disks, rebuilds, hand-overs: the books are closed in the end."""
    run = Run(seed)
    for _ in range(STEPS):
        run.step()
    run.finish()
    for node, life, asked in run.asked:
        assert len(asked.replies) <= 1
        if node.life == life:
            assert 1 == len(asked.replies), f"seed {seed}: no reply to {asked.request} through node {node.node}"
    for node in run.nodes:
        router = node.engine.router
        assert (0, 0) == (router.in_flight, router.in_flight_bytes), f"seed {seed}: node {node.node} leaks"
        assert 0 == router.parked()
        assert {} == router._away
        for replica in node.engine.replicas.values():
            assert 0 == replica.proposals_pending(), f"seed {seed}: {replica._proposed}"
            assert "" == replica.stopped
    for stream, writes in run.streams.items():
        done = [each.result.revision for each in writes if each.replies and isinstance(each.result, WriteResult)]
        assert sorted(done) == done, f"seed {seed}: {stream} was reordered"
    run.nodes.until(lambda: run.nodes.level() and run.nodes.level(ShardId(2)), "all to be level")


def test_the_books_are_closed_by_a_shutdown_too() -> None:
    """Whatever was going on: after `close` every request through that node has its reply."""
    for seed in range(5):
        run = Run(100 + seed)
        for _ in range(60):
            run.step()
        for node in run.up():
            router = node.engine.router
            node.engine.close()
            assert (0, 0) == (router.in_flight, router.in_flight_bytes), f"seed {seed}: node {node.node} leaks"
            for owner, life, asked in run.asked:
                if owner is node and life == node.life:
                    assert 1 == len(asked.replies), f"seed {seed}: no reply to {asked.request}"


def test_the_books_can_be_wrong() -> None:
    """The canary: a node that forgets the requests of one forwarded payload is found out."""
    nodes = Nodes(3)
    leader = nodes.lead()
    follower = next(node for node in nodes if node is not leader)
    lost: list[Call] = []
    nodes.hold_calls = lambda call: call.kind == KIND_FORWARD
    asked = nodes.put(follower, b"k", timeout_ns=100 * MS)
    lost.extend(nodes.held)
    follower.engine.router._away.clear()
    nodes.tick(60)
    assert [] == asked.replies
    assert 1 == follower.engine.router.in_flight
