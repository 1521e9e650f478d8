"""How late the event loop of each node is under load, while checkpoints are being taken."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks import idle_loop, prometheus
from benchmarks.systems import Raftcache
from benchmarks.throughput import KEYS, Plan, fill, keys_of, random_requests, unary

OUTSTANDING = 256
SHARE = 0.999
LAG = "raftcache_eventloop_lag_seconds"
CHECKPOINTS = 'raftcache_checkpoints_total{outcome="ok"}'


@dataclass(frozen=True)
class NodeLag:
    """Of one node: its own measurement, 20 times a second. Seconds."""

    probes: int
    above: float
    """`SHARE` of the probes were late by at most `below`; this is where the histogram's bucket begins."""
    below: float
    checkpoints: int


def under_load(system: Raftcache, plan: Plan) -> tuple[dict[str, NodeLag], dict[str, float]]:
    """By node, of a load of puts of random ones of 100,000 keys; and what `idle_loop` measured beside them."""
    keys = keys_of(KEYS)
    fill(system, keys)
    addresses, requests = random_requests(system, "put", keys)
    unary(system, plan, "", system.put_path, requests, OUTSTANDING, seconds=plan.warm_up_seconds, addresses=addresses)
    before = _scrape(system)
    load = "put, event loop's lag"
    idle = idle_loop.start(plan.seconds)
    unary(system, plan, load, system.put_path, requests, OUTSTANDING, writes=True, addresses=addresses)
    after = _scrape(system)
    beside = idle_loop.finish(idle, plan.seconds)
    return {name: lag_between(before[name], after[name]) for name in after}, beside


def _scrape(system: Raftcache) -> dict[str, dict[str, float]]:
    return {node.name: prometheus.fetch(node.admin_address) for node in system.cluster.nodes}


def lag_between(before: Mapping[str, float], after: Mapping[str, float]) -> NodeLag:
    """What a node noted between two scrapes."""
    above, below = prometheus.percentile_between(before, after, LAG, SHARE)
    return NodeLag(
        probes=int(after[f"{LAG}_count"] - before[f"{LAG}_count"]),
        above=above,
        below=below,
        checkpoints=int(after[CHECKPOINTS] - before[CHECKPOINTS]),
    )
