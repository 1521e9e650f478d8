"""Networks that fall apart. Clients still reach every node, so that a node without its majority is asked, too."""

import asyncio
from collections.abc import AsyncIterator

from faults.nemeses.nemesis import nemesis
from faults.scene import Scene

SWIZZLE_SECONDS = (0.1, 1.5)
"""Between one node and the next."""


async def _cut(scene: Scene, said: str) -> AsyncIterator[str]:
    scene.counts["partitions"] += 1
    try:
        yield said
    finally:
        await scene.network.heal(scene.network.between())


def _isolate(scene: Scene, name: str) -> None:
    scene.network.separate([name], [other for other in scene.names if other != name])


@nemesis("partition-leader")
async def partition_leader(scene: Scene) -> AsyncIterator[str]:
    """The node that leads a shard is alone."""
    name = (await scene.leader()).name
    _isolate(scene, name)
    async for said in _cut(scene, f"{name} alone"):
        yield said


@nemesis("partition-one")
async def partition_one(scene: Scene) -> AsyncIterator[str]:
    """A node at random is alone."""
    name = scene.dice.choice(scene.names)
    _isolate(scene, name)
    async for said in _cut(scene, f"{name} alone"):
        yield said


@nemesis("partition-halves")
async def partition_halves(scene: Scene) -> AsyncIterator[str]:
    """Two parts, as equal as can be."""
    names = scene.dice.sample(scene.names, len(scene.nodes))
    one, other = names[: len(names) // 2], names[len(names) // 2 :]
    scene.network.separate(one, other)
    async for said in _cut(scene, f"{'+'.join(one)} | {'+'.join(other)}"):
        yield said


@nemesis("partition-in")
async def partition_in(scene: Scene) -> AsyncIterator[str]:
    """One way: a node hears nothing, and is heard."""
    name = scene.dice.choice(scene.names)
    for other in scene.names:
        scene.network.block(other, name)
    async for said in _cut(scene, f"{name} is deaf"):
        yield said


@nemesis("partition-out")
async def partition_out(scene: Scene) -> AsyncIterator[str]:
    """One way: a node is not heard, and hears."""
    name = (await scene.leader()).name
    for other in scene.names:
        scene.network.block(name, other)
    async for said in _cut(scene, f"{name} is mute"):
        yield said


@nemesis("partition-everyone", hold=(1.0, 4.0))
async def partition_everyone(scene: Scene) -> AsyncIterator[str]:
    """Every node is alone."""
    for name in scene.names:
        _isolate(scene, name)
    async for said in _cut(scene, "all alone"):
        yield said


@nemesis("partition-pair")
async def partition_pair(scene: Scene) -> AsyncIterator[str]:
    """Two nodes do not see each other, and all others see both: with three nodes, a bridge."""
    one, other = scene.dice.sample(scene.names, 2)
    scene.network.separate([one], [other])
    async for said in _cut(scene, f"{one} and {other} apart"):
        yield said


@nemesis("partition-swizzle", hold=(0.5, 3.0))
async def partition_swizzle(scene: Scene) -> AsyncIterator[str]:
    """One node after the other is cut off, and in another order they come back."""
    cut: list[str] = []
    for name in scene.dice.sample(scene.names, scene.dice.randint(scene.minority + 1, len(scene.nodes))):
        _isolate(scene, name)
        cut.append(name)
        await asyncio.sleep(scene.between(*SWIZZLE_SECONDS))
    scene.counts["partitions"] += 1
    try:
        yield ", ".join(cut)
    finally:
        for name in scene.dice.sample(cut, len(cut)):
            cut.remove(name)
            alone = {link.name for other in cut for link in scene.network.touching(other)}
            await scene.network.heal(link for link in scene.network.touching(name) if link.name not in alone)
            await asyncio.sleep(scene.between(*SWIZZLE_SECONDS))


@nemesis("partition-ring", nodes_min=5)
async def partition_ring(scene: Scene) -> AsyncIterator[str]:
    """Majorities ring: every node sees a majority, and no two see the same."""
    names = scene.dice.sample(scene.names, len(scene.nodes))
    reach = len(names) // 4 or 1
    for place, name in enumerate(names):
        for step in range(reach + 1, len(names) - reach):
            scene.network.separate([name], [names[(place + step) % len(names)]])
    async for said in _cut(scene, "-".join(names)):
        yield said


@nemesis("partition-bridge", nodes_min=5)
async def partition_bridge(scene: Scene) -> AsyncIterator[str]:
    """Two halves that only one node sees both of."""
    bridge, *rest = scene.dice.sample(scene.names, len(scene.nodes))
    one, other = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    scene.network.separate(one, other)
    async for said in _cut(scene, f"{'+'.join(one)} - {bridge} - {'+'.join(other)}"):
        yield said
