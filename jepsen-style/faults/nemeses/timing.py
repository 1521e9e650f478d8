"""Nodes whose disk, loop or clock is not what they think. By orders to the launcher; gone when a node restarts."""

import asyncio
from collections.abc import AsyncIterator

from faults.nemeses.nemesis import nemesis
from faults.scene import Scene

MINUTE_MS = 60_000


@nemesis("slow-disk")
async def slow_disk(scene: Scene) -> AsyncIterator[str]:
    """Every fdatasync takes long, on some nodes."""
    victims, delay_ms = scene.some(scene.dice.randint(1, len(scene.nodes))), scene.between(5, 400)
    scene.counts["slow disks"] += len(victims)
    for node in victims:
        await node.try_order("disk", delay_ms=delay_ms)
    try:
        yield f"{', '.join(node.name for node in victims)}: {delay_ms:.0f} ms"
    finally:
        for node in victims:
            await node.try_order("disk", delay_ms=0)


@nemesis("loop-stall", hold=(0.5, 4.0))
async def loop_stall(scene: Scene) -> AsyncIterator[str]:
    """The event loop of some nodes stands still for longer than an election takes; their kernel answers for them."""
    victims, stall_ms = scene.some(scene.dice.randint(1, len(scene.nodes))), scene.between(300, 4000)
    scene.counts["stalls"] += len(victims)
    for node in victims:
        await node.try_order("stall", ms=stall_ms)
    yield f"{', '.join(node.name for node in victims)}: {stall_ms:.0f} ms"


@nemesis("clock-jump")
async def clock_jump(scene: Scene) -> AsyncIterator[str]:
    """Wall clocks are set, by minutes, either way, each node's differently."""
    offsets = {node: round(scene.between(-10, 10) * MINUTE_MS) for node in scene.some(len(scene.nodes))}
    scene.counts["clock jumps"] += len(offsets)
    for node, offset_ms in offsets.items():
        await node.try_order("clock", offset_ms=offset_ms)
    try:
        yield ", ".join(f"{node.name} {offset_ms / MINUTE_MS:+.1f} min" for node, offset_ms in offsets.items())
    finally:
        for node in offsets:
            await node.try_order("clock", offset_ms=0)


@nemesis("clock-strobe", hold=(2.0, 5.0))
async def clock_strobe(scene: Scene) -> AsyncIterator[str]:
    """A wall clock is set forth and back, many times a second."""
    victim = scene.dice.choice(scene.nodes)
    swing_ms = round(scene.between(1, 5) * MINUTE_MS)

    async def strobe() -> None:
        while True:
            for offset_ms in (swing_ms, -swing_ms):
                await victim.try_order("clock", offset_ms=offset_ms)
                scene.counts["clock jumps"] += 1
                await asyncio.sleep(scene.between(0.01, 0.2))

    try:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(strobe(), name="clock strobe")
            try:
                yield f"{victim.name} +-{swing_ms / MINUTE_MS:.1f} min"
            finally:
                running.cancel()
    finally:
        await victim.try_order("clock", offset_ms=0)
