"""Loads that differ in where the requests go: to the leaders of many shards, or to a node that has to pass them on."""

from collections.abc import Sequence

from benchmarks.measurement import Measurement
from benchmarks.systems import Raftcache
from benchmarks.throughput import KEYS, Plan, fill, keys_of, random_requests, unary

SHARDS_OUTSTANDING = (64, 256)
HOP_OUTSTANDING = 64


def many_shards(system: Raftcache, plan: Plan) -> None:
    """The same load on one shard and on some, each request sent to its leader, as our own client sends it.

    With the leaders of all shards on one node it shows what shards cost a node: they share its log, fdatasyncs and frames.
    With the leaders spread, as a cluster has them, three leaders share what one had on a machine that has one disk.
    """
    keys = keys_of(KEYS)
    fill(system, keys)
    for gathered in (True, False) if system.shards > 1 else (True,):
        for operation in ("put", "get"):
            for outstanding in SHARDS_OUTSTANDING:
                if gathered:
                    system.gather()
                else:
                    system.settle()
                measurement = _random_keys(system, plan, operation, keys, outstanding)
                measurement.load = f"{operation}, by shards"
                if not gathered:
                    measurement.system += ", leaders spread"
                plan.record(measurement)


def one_hop(system: Raftcache, plan: Plan) -> None:
    """The same load sent to the leader, and to a node that passes it on; which is first alternates with the runs."""
    keys = keys_of(KEYS)
    fill(system, keys)
    leader = system.leader_node()
    follower = next(node for node in system.cluster.nodes if node is not leader)
    nodes = [("", leader), (", one hop", follower)]
    for operation in ("put", "get"):
        for suffix, node in nodes if plan.run % 2 else reversed(nodes):
            measurement = _random_keys(system, plan, operation, keys, HOP_OUTSTANDING, to=node.address)
            measurement.load = f"{operation}, by gateway"
            measurement.system += suffix
            plan.record(measurement)


def _random_keys(
    system: Raftcache, plan: Plan, operation: str, keys: Sequence[bytes], outstanding: int, *, to: str = ""
) -> Measurement:
    """Not recorded: the caller gives it its name. Sent to the leader of each key, or all `to` one address."""
    path = system.put_path if operation == "put" else system.get_path
    addresses, requests = random_requests(system, operation, keys)
    if to:
        assert len(addresses) == 1, f"{len(addresses)} leaders: there is no one node that is none"
        addresses = [to]
    unary(system, plan, "", path, requests, outstanding, seconds=plan.warm_up_seconds, addresses=addresses)
    return unary(system, plan, "", path, requests, outstanding, writes=operation == "put", addresses=addresses)
