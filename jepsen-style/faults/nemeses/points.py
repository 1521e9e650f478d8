"""Nodes that die at a named step (`failpoints.py`): before or after a write, a sync, a vote, an apply, a rename."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from faults.failpoints import ORDINARY_POINTS, SNAPSHOT_POINTS, START_POINTS
from faults.nemeses.nemesis import nemesis
from faults.nemeses.nodes import start
from faults.processes import Node, came_true
from faults.scene import Scene

PASSES_MAX = 30
START_PASSES_MAX = 3
DEATH_SECONDS = 5.0
"""To come by the point; a node that does not is left alone."""
SHORT_LOGS = {"storage.log_bytes_per_checkpoint": "64KiB", "storage.trailing_log_bytes": "0"}
"""So that a node which was away needs a snapshot."""
AWAY_SECONDS = (3.0, 6.0)
"""How long a follower is gone before it needs a snapshot."""


async def _until_dead(victims: Sequence[Node], seconds: float) -> int:
    """Waits for deaths; returns how many there were."""
    await came_true(lambda: not any(node.running for node in victims), seconds)
    return sum(not node.running for node in victims)


async def _revive(scene: Scene, victims: Sequence[Node]) -> None:
    for node in victims:
        await node.try_order("disarm")
        if not node.running and scene.dice.random() < 0.4:
            # It dies once more on its way up.
            point = scene.dice.choice(START_POINTS)
            await node.start(arm={point: scene.dice.randint(0, START_PASSES_MAX)})
            scene.counts["failpoints"] += await _until_dead([node], 1.0)
            await node.try_order("disarm")
    await start(victims)


@nemesis("failpoint", hold=(0.1, 1.5))
async def failpoint(scene: Scene) -> AsyncIterator[str]:
    """Some nodes die at a step of the write path, each at its own, and perhaps again while they start."""
    victims = scene.some(scene.dice.choice([1, 1, 2, len(scene.nodes)]))
    points = {node: scene.dice.choice(ORDINARY_POINTS) for node in victims}
    for node, point in points.items():
        await node.try_order("arm", point=point, passes=scene.dice.randint(0, PASSES_MAX))
    scene.counts["failpoints"] += await _until_dead(victims, DEATH_SECONDS)
    try:
        yield ", ".join(f"{node.name} {point}" for node, point in points.items())
    finally:
        await _revive(scene, victims)


@nemesis("failpoint-snapshot", hold=(0.1, 1.0), settings=SHORT_LOGS)
async def failpoint_snapshot(scene: Scene) -> AsyncIterator[str]:
    """A node that was away too long is filled by a snapshot, and somebody dies while it is sent, received or installed."""
    victim = scene.dice.choice(scene.nodes)
    scene.counts["kills"] += victim.kill()
    await asyncio.sleep(scene.between(*AWAY_SECONDS))
    point, passes = scene.dice.choice(SNAPSHOT_POINTS), scene.dice.randint(0, 2)
    if "send" in point:
        victims = [node for node in scene.nodes if node is not victim]
        for node in victims:
            await node.try_order("arm", point=point, passes=passes)
        await victim.start()
    else:
        victims = [victim]
        await victim.start(arm={point: passes})
    scene.counts["failpoints"] += await _until_dead(victims, DEATH_SECONDS)
    try:
        yield f"{victim.name} away, then {point}"
    finally:
        await _revive(scene, scene.nodes)
