"""Processes that are killed, stand still, or are restarted in good order."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from faults.cluster import LAG_UNDER_LOAD
from faults.nemeses.nemesis import nemesis
from faults.processes import Node
from faults.scene import Scene


async def _dead(scene: Scene, victims: Sequence[Node]) -> AsyncIterator[str]:
    killed = [node.name for node in victims if node.kill()]
    scene.counts["kills"] += len(killed)
    try:
        yield ", ".join(killed)
    finally:
        await start(victims)


async def start(nodes: Sequence[Node]) -> None:
    """Starts those that are down, all at once, and waits until they listen."""
    for node in nodes:
        await node.start(wait=False)
    for node in nodes:
        await node.wait_ready()


@nemesis("kill-one")
async def kill_one(scene: Scene) -> AsyncIterator[str]:
    """kill -9 of a node at random."""
    async for said in _dead(scene, scene.some(1)):
        yield said


@nemesis("kill-leader")
async def kill_leader(scene: Scene) -> AsyncIterator[str]:
    """kill -9 of the node that leads a shard."""
    async for said in _dead(scene, [await scene.leader()]):
        yield said


@nemesis("kill-minority")
async def kill_minority(scene: Scene) -> AsyncIterator[str]:
    """kill -9 of as many nodes as may fail."""
    async for said in _dead(scene, scene.some(max(1, scene.minority))):
        yield said


@nemesis("kill-majority", hold=(0.5, 3.0))
async def kill_majority(scene: Scene) -> AsyncIterator[str]:
    """kill -9 of one node more than may fail."""
    async for said in _dead(scene, scene.some(scene.minority + 1)):
        yield said


@nemesis("kill-all", hold=(0.1, 1.0))
async def kill_all(scene: Scene) -> AsyncIterator[str]:
    """kill -9 of every node at once."""
    async for said in _dead(scene, scene.nodes):
        yield said


@nemesis("restart-all", hold=(0.1, 0.5))
async def restart_all(scene: Scene) -> AsyncIterator[str]:
    """kill -9 of every node, several times, each time before they have recovered."""
    rounds = scene.dice.randint(2, 4)
    for _ in range(rounds - 1):
        for node in scene.nodes:
            scene.counts["kills"] += node.kill()
        for node in scene.nodes:
            await node.start(wait=False)
        await asyncio.sleep(scene.between(0.3, 3.0))
    async for said in _dead(scene, scene.nodes):
        yield f"{rounds} times {said}"


async def _paused(scene: Scene, victims: Sequence[Node]) -> AsyncIterator[str]:
    paused = [node.name for node in victims if node.pause()]
    scene.counts["pauses"] += len(paused)
    try:
        yield ", ".join(paused)
    finally:
        for node in victims:
            node.resume()


@nemesis("pause-one", hold=(0.5, 6.0))
async def pause_one(scene: Scene) -> AsyncIterator[str]:
    """SIGSTOP of a node at random."""
    async for said in _paused(scene, scene.some(1)):
        yield said


@nemesis("pause-leader", hold=(0.5, 6.0))
async def pause_leader(scene: Scene) -> AsyncIterator[str]:
    """SIGSTOP of the node that leads a shard: afterwards it believes that it still does."""
    async for said in _paused(scene, [await scene.leader()]):
        yield said


@nemesis("pause-majority", hold=(0.5, 4.0))
async def pause_majority(scene: Scene) -> AsyncIterator[str]:
    """SIGSTOP of one node more than may fail."""
    async for said in _paused(scene, scene.some(scene.minority + 1)):
        yield said


@nemesis("rolling-restart", hold=(0.1, 1.0), chaos=False)
async def rolling_restart(scene: Scene) -> AsyncIterator[str]:
    """SIGTERM and start, one node after the other, as an upgrade does it."""
    for node in [*scene.nodes]:
        status = await node.stop()
        scene.counts["clean restarts"] += 1
        if status != 0:
            scene.problems.append(f"{node.name} ended with {status} after SIGTERM: {node.tail(3)}")
        await node.start()
        await scene.cluster.wait_serving(lag_max=LAG_UNDER_LOAD)
    yield ", ".join(scene.names)
