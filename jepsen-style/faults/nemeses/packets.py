"""Partitions in the kernel, by a packet filter: no proxy acknowledges what a cut cable would not have taken."""

from collections.abc import AsyncIterator

from faults import namespace
from faults.nemeses.nemesis import nemesis
from faults.scene import Scene


async def _dropped(scene: Scene, pairs: list[tuple[str, str]], said: str) -> AsyncIterator[str]:
    """Drops what goes from the first to the second of each pair, on both their links (`network.py`)."""
    links = scene.network.links
    ports = [(links[source, target].port, True) for source, target in pairs if (source, target) in links]
    ports += [(links[target, source].port, False) for source, target in pairs if (target, source) in links]
    namespace.drop(ports)
    scene.counts["partitions"] += 1
    try:
        yield said
    finally:
        namespace.drop_nothing()


@nemesis("packets-leader", needs=("packet-filter",), hold=(2.0, 8.0), chaos=False)
async def packets_leader(scene: Scene) -> AsyncIterator[str]:
    """All packets between the node that leads a shard and the others are dropped."""
    name = (await scene.leader()).name
    pairs = [pair for other in scene.names if other != name for pair in ((name, other), (other, name))]
    async for said in _dropped(scene, pairs, f"{name} alone"):
        yield said


@nemesis("packets-one-way", needs=("packet-filter",), hold=(2.0, 8.0), chaos=False)
async def packets_one_way(scene: Scene) -> AsyncIterator[str]:
    """All packets from a node to the others are dropped; acknowledgements of what they send come through no more."""
    name = scene.dice.choice(scene.names)
    async for said in _dropped(scene, [(name, other) for other in scene.names if other != name], f"{name} is mute"):
        yield said
