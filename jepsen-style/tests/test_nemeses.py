"""What the faults do to links and files, and that their healing leaves nothing of it. No node runs here."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from faults.cluster import Cluster
from faults.nemeses import NEMESES, partitions
from faults.nemeses.damage import WAYS, damage
from faults.network import CLIENTS
from faults.proxy import Conditions
from faults.scene import Scene

NODES = 5
OF_LINKS = [name for name, each in NEMESES.items() if each.group == "network" and not each.needs]
"""Packets need root."""


@asynccontextmanager
async def scene_of(root: Path, seed: int) -> AsyncIterator[Scene]:
    """Links between nodes that are not started."""
    async with asyncio.TaskGroup() as tasks:
        cluster = Cluster(root, random.Random(seed), tasks, nodes=NODES, shards=1, settings={})
        try:
            for _ in range(NODES):
                await cluster.add_node()
            yield Scene(cluster, random.Random(seed))
        finally:
            await cluster.close()


def hears(scene: Scene, one: str, other: str) -> bool:
    """Whether what the other says reaches the one, on both links between them."""
    links = scene.network.links
    return not (links[other, one].forward.blocked or links[one, other].backward.blocked)


def neighbours(scene: Scene, name: str) -> set[str]:
    """Itself, and those with whom it can talk."""
    return {
        other for other in scene.names if other == name or (hears(scene, name, other) and hears(scene, other, name))
    }


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "SWIZZLE_SECONDS", (0.0, 0.0))


@pytest.mark.parametrize("name", OF_LINKS)
async def test_a_bad_network_is_bad_until_it_is_healed_and_good_afterwards(tmp_path: Path, name: str) -> None:
    """Of every fault of links: something is wrong while it is in force, nothing once it is not."""

    def wrong() -> list[str]:
        good = Conditions()
        return [
            link.name
            for link in scene.network.links.values()
            if (link.forward, link.backward) != (good, good) or link.half_open or link.refusing
        ]

    for seed in range(3):
        async with scene_of(tmp_path / str(seed), seed) as scene:
            async with NEMESES[name].strike(scene) as said:
                assert said
                assert bool(wrong()) == (name != "reset")  # a reset is over at once
            assert [] == wrong()


@pytest.mark.parametrize("name", ["partition-leader", "partition-one"])
async def test_one_node_is_alone_and_all_others_are_together(tmp_path: Path, name: str) -> None:
    """Clients reach it all the same."""
    async with scene_of(tmp_path, 1) as scene, NEMESES[name].strike(scene):
        assert [1, 4, 4, 4, 4] == sorted(len(neighbours(scene, each)) for each in scene.names)
        assert all(not scene.network.links[CLIENTS, each].forward.blocked for each in scene.names)


async def test_halves_do_not_see_each_other(tmp_path: Path) -> None:
    """Two of five, and three of five."""
    async with scene_of(tmp_path, 1) as scene, NEMESES["partition-halves"].strike(scene):
        parts = {frozenset(neighbours(scene, each)) for each in scene.names}
        assert [2, 3] == sorted(map(len, parts))


@pytest.mark.parametrize(("name", "is_heard"), [("partition-in", True), ("partition-out", False)])
async def test_one_way_is_one_way(tmp_path: Path, name: str, is_heard: bool) -> None:
    """A deaf node is heard by all, a mute one hears all."""
    async with scene_of(tmp_path, 1) as scene, NEMESES[name].strike(scene) as said:
        victim = said.split()[0]
        others = [each for each in scene.names if each != victim]
        assert [is_heard] * 4 == [hears(scene, other, victim) for other in others]
        assert [not is_heard] * 4 == [hears(scene, victim, other) for other in others]


async def test_in_a_ring_of_majorities_each_node_sees_another_one(tmp_path: Path) -> None:
    """Every node sees a majority, and no two see the same."""
    async with scene_of(tmp_path, 1) as scene, NEMESES["partition-ring"].strike(scene):
        seen = {frozenset(neighbours(scene, each)) for each in scene.names}
        assert [3] * 5 == sorted(map(len, seen))


async def test_a_bridge_is_the_only_node_that_sees_both_halves(tmp_path: Path) -> None:
    """The halves see it, and not each other."""
    async with scene_of(tmp_path, 1) as scene, NEMESES["partition-bridge"].strike(scene):
        assert [3, 3, 3, 3, 5] == sorted(len(neighbours(scene, each)) for each in scene.names)


def test_damage_is_in_one_file_and_every_kind_of_file_gets_it(tmp_path: Path) -> None:
    """What is said to be damaged is, and nothing else."""
    files = ["wal/000000000000000a.wal", "wal/000000000000000b.wal", "hard_state.a", "shards/1/checkpoints/41"]
    contents = {name: random.Random(name).randbytes(9_000) + bytes(3_000) for name in files}
    done: set[tuple[str, str]] = set()
    for seed in range(150):
        for name, content in contents.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
        file, _, way = damage(tmp_path, random.Random(seed)).partition(": ")
        changed = [name for name in files if (tmp_path / name).read_bytes() != contents[name]]
        assert [] == changed or [file] == changed, (seed, file, way)
        done |= {(name, way) for name in changed}
    assert {(name, way) for name in files for way in WAYS} == done
