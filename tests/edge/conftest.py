"""Both fronts on a free loopback port, over a node in memory, and a channel to it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import pytest

from raftcache.clock import SystemClock
from raftcache.edge.fast_front import FastFront
from raftcache.edge.front_config import FrontConfig
from raftcache.edge.grpcio_front import GrpcFront
from raftcache.gateway.gateway import GatewaySettings
from raftcache.gateway.handlers import handlers_of
from raftcache.v1 import kv_pb2_grpc
from tests.gateway.memory_node import MemoryAdministration, MemoryNode

AnyFront = GrpcFront | FastFront
FrontClass = type[GrpcFront] | type[FastFront]


@dataclass
class Bench:
    """What a test works with."""

    node: MemoryNode
    administration: MemoryAdministration
    front: AnyFront
    channel: grpc.aio.Channel

    @property
    def kv(self) -> "kv_pb2_grpc.KvServiceAsyncStub":
        stub: kv_pb2_grpc.KvServiceAsyncStub = kv_pb2_grpc.KvServiceStub(self.channel)
        return stub


SETTINGS = GatewaySettings(
    batch_operations_max=50,
    batch_bytes_max=256 << 10,
    pipeline_batches_max=4,
    pipeline_operations_max=100,
    pipeline_bytes_max=1 << 20,
)
"""Small, so that tests reach the limits."""


def front_config(**changes: object) -> FrontConfig:
    """A front's configuration on a free port."""
    return FrontConfig(**({"address": "127.0.0.1:0", "message_bytes_max": 512 << 10} | changes))  # type: ignore[arg-type]


@pytest.fixture(params=[GrpcFront, FastFront], ids=["grpcio", "fast"])
def front_class(request: pytest.FixtureRequest) -> FrontClass:
    """Each front in turn."""
    found: FrontClass = request.param
    return found


@pytest.fixture
async def bench(front_class: FrontClass) -> AsyncIterator[Bench]:
    """A front that serves."""
    node, administration = MemoryNode(clock=SystemClock()), MemoryAdministration()
    front = front_class(handlers_of(node.gateway(SETTINGS), administration), front_config(), node.clock)
    await front.start()
    await front.set_serving(True)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.port}") as channel:
        yield Bench(node, administration, front, channel)
    await front.stop(0.2)
