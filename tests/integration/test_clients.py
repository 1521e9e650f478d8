"""Clients that go on while nodes are stopped and killed under them: no request fails for a planned stop, and whatever
happens, what was acknowledged is there, once.

All tests share one cluster, which is whole again after each.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from raftcache.admin.v1 import admin_pb2
from tests.support.clients import PACE_SECONDS, Counting, NodejsLoad, PlainPuts, PutClient
from tests.support.cluster import Cluster, Node, running
from tests.support.load import Writers, lost
from tests.support.nodejs import NODE, NPM, installed_example, needs_node

ROUNDS_OF_ALL = 3
SPREAD_SECONDS = 0.3
"""Within which the nodes of a round are killed: some die before and some after they hear of each other's end."""
SEED = 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes, three shards: each node leads one when all is quiet."""
    with running(tmp_path_factory.mktemp("clients"), nodes=3, shards=3) as cluster:
        yield cluster


def test_clean_stop_of_each_node_in_turn_fails_no_request(cluster: Cluster) -> None:
    """SIGTERM under load: the shards it leads have another leader before it ends, with status 0, and nobody notices."""
    led = []
    with PutClient(cluster) as client, PlainPuts(cluster) as plain:
        for node in cluster.nodes:
            client.progress(20)
            plain.avoid(node)
            plain.progress(20)
            if not shards_led_by(cluster, node):
                lead_one(cluster, node)
            assert 0 == node.stop()
            drained = node.events("node_drained")[-1]
            assert 0 == drained["left"], f"{node.name} ended as the leader of {drained['left']} of {drained['led']}"
            assert node.events("node_stopped"), node.tail()
            led.append(drained["led"])
            client.progress(20)
            plain.progress(20)
            cluster.restart(node)
            plain.avoid(None)
    # A leadership may have gone home by itself just before the order; not at all three nodes.
    assert any(led), "no node led anything when it was told to stop"
    assert {} == client.errors
    assert {} == plain.errors
    assert [] == lost(cluster, client.acknowledged | plain.acknowledged)


def shards_led_by(cluster: Cluster, node: Node) -> set[int]:
    """The shards that `node` leads now."""
    own = cluster.node_id(node)
    return {shard.shard for shard in cluster.info().shards if shard.leader_node == own}


def lead_one(cluster: Cluster, node: Node) -> None:
    """Makes `node` the leader of a shard."""
    request = admin_pb2.TransferLeaderRequest(shard=1, target_node=cluster.node_id(node))
    cluster.admin(node).TransferLeader(request, timeout=10)


@dataclass(frozen=True)
class Storm:
    """What clients remember of it."""

    writers: Writers
    counting: Counting
    nodejs: NodejsLoad | None
    nodejs_status: int


@pytest.fixture(scope="module")
def storm(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storm]:
    """Six rounds of kill -9: each node alone, then thrice all of them within an instant; the clients never stop.

    Three kinds of them: bare stubs that try each write once, our client with sessions, and the Node.js example.
    """
    example = installed_example(tmp_path_factory.mktemp("nodejs")) if NODE and NPM else None
    nodejs = NodejsLoad(example, cluster) if example is not None else None
    counting = Counting(cluster)
    dice = random.Random(SEED)
    try:
        with counting, Writers(cluster, pace_seconds=PACE_SECONDS) as writers:
            rounds = [[node] for node in cluster.nodes] + [list(cluster.nodes) for _ in range(ROUNDS_OF_ALL)]
            for victims in rounds:
                go_on(writers, counting, nodejs)
                dice.shuffle(victims)
                for victim in victims:
                    time.sleep(dice.uniform(0, SPREAD_SECONDS / len(victims)))  # at a random time, not for anything
                    victim.kill()
                if len(victims) < len(cluster.nodes):
                    go_on(writers, counting, nodejs)
                cluster.restart(*victims)
            go_on(writers, counting, nodejs)
        status = nodejs.stop() if nodejs is not None else 0
        yield Storm(writers, counting, nodejs, status)
    finally:
        counting.close()
        if nodejs is not None:
            nodejs.close()


def go_on(writers: Writers, counting: Counting, nodejs: NodejsLoad | None) -> None:
    """Until all clients have got something done."""
    writers.progress(20)
    counting.progress(2)
    if nodejs is not None:
        nodejs.progress(20)


@pytest.mark.timeout(240)  # the storm itself
def test_killed_leaders_and_killed_cluster_lose_nothing(cluster: Cluster, storm: Storm) -> None:
    """kill -9 of whoever leads, then of all three at once, under load: every acknowledged write is there afterwards."""
    assert len(storm.writers.acknowledged) > 200
    assert [] == lost(cluster, storm.writers.acknowledged)


def test_storms_of_kills_count_every_increment_once(storm: Storm) -> None:
    """Retried under a session, each increment is applied exactly once: the counters are what was acknowledged."""
    assert {} == storm.counting.errors
    assert storm.counting.counted == storm.counting.stored()
    assert storm.counting.counted.total() > 40


@needs_node
def test_nodejs_client_loses_nothing_that_it_was_told_is_written(cluster: Cluster, storm: Storm) -> None:
    """Every key that the Node.js client printed as acknowledged has its value after the storm."""
    assert storm.nodejs is not None
    assert 0 == storm.nodejs_status
    assert len(storm.nodejs.acknowledged) > 200
    assert [] == lost(cluster, storm.nodejs.acknowledged)
