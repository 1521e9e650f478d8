"""Links that are bad without being cut."""

from collections.abc import AsyncIterator, Iterable

from faults.nemeses.nemesis import nemesis
from faults.network import worsen
from faults.proxy import Link
from faults.scene import Scene


async def _bad(scene: Scene, links: Iterable[Link], said: str) -> AsyncIterator[str]:
    affected = [*links]
    scene.counts["bad links"] += len(affected)
    try:
        yield said
    finally:
        await scene.network.heal(affected)


def _some_links(scene: Scene) -> list[Link]:
    """A part of all links, those of clients included."""
    links = [*scene.network.between(), *scene.network.of_clients()]
    return scene.dice.sample(links, scene.dice.randint(1, len(links)))


@nemesis("flaky-links")
async def flaky_links(scene: Scene) -> AsyncIterator[str]:
    """Connections are reset again and again, mostly in the middle of a frame."""
    links, chance = _some_links(scene), scene.between(0.005, 0.1)
    worsen(links, cut_chance=chance)
    async for said in _bad(scene, links, f"{len(links)} links, {chance:.1%} of the chunks"):
        yield said


@nemesis("slow-links")
async def slow_links(scene: Scene) -> AsyncIterator[str]:
    """Bytes arrive late, and not evenly."""
    links, delay, jitter = _some_links(scene), scene.between(20, 300), scene.between(0, 300)
    worsen(links, delay_ms=delay, jitter_ms=jitter)
    async for said in _bad(scene, links, f"{len(links)} links, {delay:.0f} ms and up to {jitter:.0f}"):
        yield said


@nemesis("narrow-links")
async def narrow_links(scene: Scene) -> AsyncIterator[str]:
    """Links with little bandwidth."""
    links, rate = _some_links(scene), scene.between(4_000, 60_000)
    worsen(links, bytes_per_second=rate)
    async for said in _bad(scene, links, f"{len(links)} links, {rate / 1000:.0f} kB/s"):
        yield said


@nemesis("half-open")
async def half_open(scene: Scene) -> AsyncIterator[str]:
    """One end of the connections is gone, and the other has not heard."""
    links = _some_links(scene)
    for link in links:
        link.leave_half_open()
    async for said in _bad(scene, links, f"{len(links)} links"):
        yield said


@nemesis("refuse")
async def refuse(scene: Scene) -> AsyncIterator[str]:
    """Connections to a node and from it are reset, and new ones refused."""
    name = scene.dice.choice(scene.names)
    links = [*scene.network.touching(name)]
    for link in links:
        await link.refuse()
    async for said in _bad(scene, links, name):
        yield said


@nemesis("reset", hold=(0.1, 1.0))
async def reset(scene: Scene) -> AsyncIterator[str]:
    """Every connection there is ends with a reset."""
    links = [*scene.network.links.values()]
    for link in links:
        link.reset()
    async for said in _bad(scene, links, f"{len(links)} links"):
        yield said


@nemesis("lost-replies", hold=(1.0, 4.0))
async def lost_replies(scene: Scene) -> AsyncIterator[str]:
    """What clients ask arrives, and what they are answered does not."""
    count = scene.dice.randint(1, len(scene.nodes))
    links = [*scene.network.of_clients(*(node.name for node in scene.some(count)))]
    for link in links:
        link.backward.discard = True
        link.changed()
    async for said in _bad(scene, links, ", ".join(link.name for link in links)):
        yield said


@nemesis("clients-cut")
async def clients_cut(scene: Scene) -> AsyncIterator[str]:
    """Clients do not get through to some nodes, which are well."""
    links = [*scene.network.of_clients(*(node.name for node in scene.some(scene.minority or 1)))]
    for link in links:
        link.forward.blocked = link.backward.blocked = True
        link.changed()
    async for said in _bad(scene, links, ", ".join(link.name for link in links)):
        yield said
