"""64 shards on three nodes: neither silence nor the largest values cost one of them its leader.

The only leaders that change are those that go home: the directory names a preferred replica for each shard, and whoever
leads in its place hands over, in one term. Anything else is an election because somebody was not heard in time.
"""

import concurrent.futures
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from raftcache.v1 import kv_pb2
from tests.support.cluster import Cluster, running, wait_until

SHARDS = 64
HEARTBEATS = 20
HEARTBEAT_SECONDS = 0.1
"""`raft.tick_ms`, of which a leader's heartbeat interval has one."""
VALUE = bytes(1 << 20)
WRITES = 96
WRITERS = 6


class Lead(NamedTuple):
    """Who leads a shard, and since which term."""

    term: int
    leader: int
    preferred: int


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Default settings."""
    with running(tmp_path_factory.mktemp("shards"), nodes=3, shards=SHARDS) as cluster:
        yield cluster


def leads(cluster: Cluster) -> dict[int, Lead]:
    """Of every shard, the catalog included, at a moment when none is just being handed over."""
    found: dict[int, Lead] = {}

    def all_led() -> bool:
        for shard in cluster.info().shards:
            found[shard.shard] = Lead(shard.term, shard.leader, shard.replicas[0].replica)
        return all(lead.leader for lead in found.values())

    wait_until(all_led, "a moment with all leaders")
    return found


def lost_leaders(before: dict[int, Lead], after: dict[int, Lead]) -> dict[int, tuple[Lead, Lead]]:
    """The shards whose leader changed, other than by going home."""
    return {
        shard: (was, now)
        for shard, was in before.items()
        if (now := after[shard]) != was
        and not (was.leader != was.preferred and now == Lead(was.term + 1, was.preferred, was.preferred))
    }


def test_idle_shards_keep_their_leaders(cluster: Cluster) -> None:
    """Over twenty heartbeats of nothing else, no shard has an election."""
    before = leads(cluster)
    assert SHARDS + 1 == len(before)
    time.sleep(HEARTBEATS * HEARTBEAT_SECONDS)  # not for anything: what is tested is what time alone does
    assert {} == lost_leaders(before, leads(cluster))


def test_largest_values_into_all_shards_start_no_election(cluster: Cluster) -> None:
    """Concurrent puts of 1 MiB pass through the same connections as the heartbeats of 64 shards; none is missed."""
    before = leads(cluster)

    def put(number: int) -> int:
        stub = cluster.kv(cluster.nodes[number % len(cluster.nodes)])
        response = stub.Put(kv_pb2.PutRequest(key=b"large/%d" % number, value=VALUE), timeout=60)
        assert response.succeeded
        return response.header.shard

    with concurrent.futures.ThreadPoolExecutor(WRITERS) as writers:
        shards = set(writers.map(put, range(WRITES)))
    assert len(shards) > SHARDS // 2, shards
    assert {} == lost_leaders(before, leads(cluster))
