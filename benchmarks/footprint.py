"""What a node takes: memory with many keys, time to come back with them, and processor time when there is nothing to do."""

import time
from collections.abc import Callable

import grpc

from benchmarks import usage
from benchmarks.failures import healed
from benchmarks.messages import framed
from benchmarks.systems import Raftcache, System
from benchmarks.throughput import KEYS, Plan, batch_message, batch_path, fill, keys_of, unary
from raftcache.v1 import kv_pb2, types_pb2
from tests.support.cluster import Node

FILL_OPERATIONS = 1_000
"""`limits.batch_operations_max`."""
CALL_SECONDS = 5.0
RESTART_SECONDS_GIVE_UP = 300.0
POLL_SECONDS = 0.02
SETTLE_SECONDS = 5.0
"""Commits, checkpoints and allocators come to rest before memory is read and idleness begins."""


PUTS = 400_000
PUTS_OPERATIONS, PUTS_OUTSTANDING = 100, 16
PUTS_SECONDS_MAX = 600.0
PUTS_LOAD = f"{PUTS:,} puts on {KEYS:,} keys"


def after_puts(system: System, plan: Plan) -> None:
    """Memory of the nodes of either system after 400,000 puts on 100,000 keys, quickly made: 100 in a request."""
    keys = keys_of(KEYS)
    batches = [keys[start : start + PUTS_OPERATIONS] for start in range(0, len(keys), PUTS_OPERATIONS)]
    bodies = [(0, framed(batch_message(system, batch))) for batch in batches] * (PUTS // KEYS)
    measurement = unary(
        system,
        plan,
        "",
        batch_path(system),
        iter(bodies),
        PUTS_OUTSTANDING,
        seconds=PUTS_SECONDS_MAX,
        operations=PUTS_OPERATIONS,
        writes=True,
    )
    if measurement.operations != PUTS:
        measurement.problems.append(f"{measurement.operations:,} puts of {PUTS:,} were made")
    time.sleep(SETTLE_SECONDS)
    measurement.take_memory(system.processes())
    measurement.load = PUTS_LOAD
    plan.record(measurement)


def many_keys(system: Raftcache, count: int, say: Callable[[str], None]) -> dict[str, float]:
    """Memory of the nodes with so many keys of 100 bytes, and how long they take to serve again after kill -9."""
    keys = keys_of(count)
    began = time.monotonic()
    fill(system, keys, operations=FILL_OPERATIONS)
    say(f"  {count:,} keys written in {time.monotonic() - began:.1f} s")
    time.sleep(SETTLE_SECONDS)
    memories = [usage.memory(pid) for pid in system.processes().values()]
    found = {
        "keys": float(count),
        "anonymous_bytes": float(max(memory.anonymous for memory in memories)),
        "file_bytes": float(max(memory.file for memory in memories)),
    }
    last = keys[-1]
    follower = next(node for node in system.cluster.nodes if node is not system.leader_node())
    follower.kill()
    began = time.monotonic()
    follower.start(wait=False)
    _until_serving([follower], last, types_pb2.CONSISTENCY_STALE)
    found["restart_one_seconds"] = time.monotonic() - began
    say(f"  a follower serves {found['restart_one_seconds']:.2f} s after kill -9")
    healed(system)
    for node in system.cluster.nodes:
        node.kill()
    began = time.monotonic()
    for node in system.cluster.nodes:
        node.start(wait=False)
    _until_serving(system.cluster.nodes, last, types_pb2.CONSISTENCY_LINEARIZABLE)
    found["restart_all_seconds"] = time.monotonic() - began
    say(f"  all three serve {found['restart_all_seconds']:.2f} s after kill -9 of all")
    healed(system)
    _, revision, _ = system.read(last)
    if revision < count:
        raise RuntimeError(f"{count} keys were acknowledged, the revision is {revision} after the restart")
    return found


def _until_serving(nodes: list[Node], key: bytes, consistency: types_pb2.Consistency.ValueType) -> None:
    """Until each node answers a read of `key` with its value: a stale one from its own replica, or a linearizable one."""
    give_up = time.monotonic() + RESTART_SECONDS_GIVE_UP
    request = kv_pb2.GetRequest(key=key, consistency=consistency)
    for node in nodes:
        node.wait_ready()
        with grpc.insecure_channel(node.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            get: Callable[..., kv_pb2.GetResponse] = channel.unary_unary(
                "/raftcache.v1.KvService/Get",
                request_serializer=kv_pb2.GetRequest.SerializeToString,
                response_deserializer=kv_pb2.GetResponse.FromString,
            )
            while True:
                try:
                    if get(request, timeout=CALL_SECONDS, wait_for_ready=True).HasField("entry"):
                        break
                except grpc.RpcError:
                    pass
                if time.monotonic() > give_up:
                    raise TimeoutError(f"{node.name} does not serve:\n{node.tail()}")
                time.sleep(POLL_SECONDS)


def idle(system: Raftcache, seconds: float) -> list[float]:
    """Share of a core that each node takes when nobody asks for anything."""
    time.sleep(SETTLE_SECONDS)
    processes = system.processes()
    before = {pid: usage.cpu_seconds(pid) for pid in processes.values()}
    began = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    return [(usage.cpu_seconds(pid) - before[pid]) / took for pid in processes.values()]
