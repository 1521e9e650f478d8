"""What the client's tests share: one real cluster for all of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from raftcache.client import Client
from tests.client.cluster import Cluster

SHARDS = 4


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three node processes with four shards. A test that kills a node starts it again."""
    directory: Path = tmp_path_factory.mktemp("cluster")
    found = Cluster(directory, SHARDS)
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture
def rc(cluster: Cluster) -> Iterator[Client]:
    """A client with patience: the machine may be busy."""
    with Client(cluster.endpoints, timeout=30.0) as client:
        yield client
