"""Disks that lose power, fail, or are full (`faults/disks.py`). All of them need root."""

from collections.abc import AsyncIterator, Sequence

from faults.disks import Loop, Thin
from faults.nemeses.nemesis import nemesis
from faults.nemeses.nodes import start
from faults.processes import Node, came_true
from faults.scene import Scene

FATAL_STATUS = 70
"""How a node ends by itself after a failed sync."""
NOTICE_SECONDS = 10.0


def _disk(node: Node) -> Loop:
    assert isinstance(node.volume, Loop), f"{node.name} has no disk of its own"
    return node.volume


async def _power_cut(scene: Scene, victims: Sequence[Node]) -> AsyncIterator[str]:
    # The disks first: between a kill and a cut the kernel would go on writing back.
    for node in victims:
        _disk(node).shut_down()
    for node in victims:
        node.kill()
        scene.counts["power cuts"] += 1
    try:
        yield ", ".join(node.name for node in victims)
    finally:
        for node in victims:
            _disk(node).remount()
        await start(victims)


@nemesis("power-cut-one", needs=("power-cut",), volume="loop", hold=(0.2, 4.0))
async def power_cut_one(scene: Scene) -> AsyncIterator[str]:
    """A node at random loses power: what its disk had not synced is gone."""
    async for said in _power_cut(scene, scene.some(1)):
        yield said


@nemesis("power-cut-leader", needs=("power-cut",), volume="loop", hold=(0.2, 4.0))
async def power_cut_leader(scene: Scene) -> AsyncIterator[str]:
    """The node that leads a shard loses power."""
    async for said in _power_cut(scene, [await scene.leader()]):
        yield said


@nemesis("power-cut-all", needs=("power-cut",), volume="loop", hold=(0.1, 1.0))
async def power_cut_all(scene: Scene) -> AsyncIterator[str]:
    """All nodes lose power at once."""
    async for said in _power_cut(scene, scene.nodes):
        yield said


async def _fatal(scene: Scene, node: Node) -> None:
    """Until the node has ended by itself, as it must. A node that has nothing to write may live on."""
    await came_true(lambda: not node.running, NOTICE_SECONDS)
    if node.exit_status == FATAL_STATUS:
        scene.counts["fatal syncs"] += 1
    elif node.exit_status is not None:
        scene.problems.append(f"{node.name} ended with {node.exit_status} after a disk error: {node.tail(3)}")


@nemesis("sync-fails", needs=("power-cut",), volume="loop", hold=(0.1, 1.0))
async def sync_fails(scene: Scene) -> AsyncIterator[str]:
    """The disk of a running node dies: its next sync fails, and the node must end at once."""
    victim = scene.dice.choice(scene.nodes)
    if victim.running:
        _disk(victim).shut_down()
        await _fatal(scene, victim)
    victim.kill()
    try:
        yield victim.name
    finally:
        _disk(victim).remount()
        await start([victim])


@nemesis("disk-eio", needs=("thin-disk",), volume="thin", hold=(0.1, 1.0))
async def disk_eio(scene: Scene) -> AsyncIterator[str]:
    """The device under a file system fails for new blocks: EIO once, after which the kernel forgets the data."""
    victim = scene.dice.choice(scene.nodes)
    disk = _disk(victim)
    assert isinstance(disk, Thin)
    disk.starve()
    await _fatal(scene, victim)
    victim.kill()
    try:
        yield victim.name
    finally:
        disk.feed()
        disk.remount()
        await start([victim])


@nemesis("disk-full", needs=("power-cut",), volume="loop", hold=(2.0, 6.0))
async def disk_full(scene: Scene) -> AsyncIterator[str]:
    """No room on the disks of some nodes. They refuse writes, hand over, and go on when there is room."""
    victims = scene.some(scene.dice.randint(1, len(scene.nodes)))
    for node in victims:
        _disk(node).fill()
        scene.counts["full disks"] += 1
    try:
        yield ", ".join(node.name for node in victims)
    finally:
        for node in victims:
            _disk(node).free()
            if not node.running:
                scene.problems.append(f"{node.name} ended with {node.exit_status} on a full disk: {node.tail(3)}")
        await start(victims)
