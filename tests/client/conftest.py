"""What the client's tests share: one real cluster for all of them, and both clients behind one face."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, cast, get_args

import pytest

from raftcache.client import AsyncClient, Client
from raftcache.client.options import Transport
from tests.support.cluster import Cluster, running

SHARDS = 4
PATIENCE_SECONDS = 60.0
"""Timeout of calls that are expected to succeed: the machine may be busy."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three node processes with four shards. A test that kills a node starts it again."""
    with running(tmp_path_factory.mktemp("cluster"), shards=SHARDS) as found:
        yield found


@pytest.fixture(params=get_args(Transport))
def transport(request: pytest.FixtureRequest) -> Transport:
    """How calls are made: each way in turn."""
    return cast(Transport, request.param)


@pytest.fixture
def client(cluster: Cluster, transport: Transport) -> Iterator[Client]:
    """A client with patience."""
    with Client(cluster.endpoints, timeout=PATIENCE_SECONDS, transport=transport) as found:
        yield found


class Awaited:
    """A `Client` that looks like an `AsyncClient`, so that one test is for both. Blocks the loop, which nobody else uses."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        async def call(*args: Any, **options: Any) -> Any:
            return method(*args, **options)

        return call

    async def scan(self, **options: Any) -> AsyncIterator[Any]:
        for entry in self._client.scan(**options):
            yield entry


@pytest.fixture(params=["threads", "asyncio"])
async def rc(request: pytest.FixtureRequest, cluster: Cluster, transport: Transport) -> AsyncIterator[Any]:
    """Both clients, one after the other."""
    if request.param == "threads":
        with Client(cluster.endpoints, timeout=PATIENCE_SECONDS, transport=transport) as client:
            yield Awaited(client)
    else:
        async with AsyncClient(cluster.endpoints, timeout=PATIENCE_SECONDS, transport=transport) as client_of_loop:
            yield client_of_loop
