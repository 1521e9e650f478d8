"""Nodes that come and go while clients write, and leaderships that do not stay."""

import asyncio
from collections.abc import AsyncIterator, Coroutine

import grpc

from faults.failpoints import MEMBERSHIP_POINTS
from faults.nemeses.nemesis import nemesis
from faults.nemeses.nodes import start
from faults.processes import Node
from faults.scene import Scene
from raftcache.admin.v1 import admin_pb2


@nemesis("grow-shrink", hold=(0.5, 3.0), chaos=False)
async def grow_shrink(scene: Scene) -> AsyncIterator[str]:
    """A node joins and gets a voter in every shard; later one of all nodes, perhaps a leader, loses its and leaves."""
    cluster = scene.cluster
    added = await cluster.add_node()
    await added.start()
    new_id = await cluster.join(added)
    for shard in range(cluster.shards + 1):
        await cluster.change(shard, "ADD", new_id)
        scene.counts["membership changes"] += 1
    try:
        yield f"{added.name} joined"
    finally:
        leaving = scene.dice.choice(scene.nodes)
        node_id = (await cluster.ids())[leaving.name]
        held = await cluster.shards_on(node_id)
        for shard in range(cluster.shards + 1):
            # Each shard ends with as many replicas as it began with.
            await cluster.change(shard, "REMOVE", node_id if shard in held else new_id)
            scene.counts["membership changes"] += 1
        await cluster.remove(node_id)
        await cluster.forget(leaving)


@nemesis("wipe-replace", hold=(0.5, 2.0), chaos=False)
async def wipe_replace(scene: Scene) -> AsyncIterator[str]:
    """A node dies with its disk; a new one takes its places."""
    victim = scene.dice.choice(scene.nodes)
    scene.counts["kills"] += victim.kill()
    victim.wipe()
    scene.counts["lost disks"] += 1
    try:
        yield victim.name
    finally:
        await replace(scene, victim)


async def replace(scene: Scene, victim: Node) -> None:
    """A new node takes the places of one that is dead, and must not come back."""
    cluster = scene.cluster
    old_id = (await cluster.ids())[victim.name]
    replacement = await cluster.add_node()
    await replacement.start()
    new_id = await cluster.join(replacement)
    for shard in await cluster.shards_on(old_id):
        await cluster.change(shard, "MOVE", old_id, new_id)
        scene.counts["membership changes"] += 1
    await cluster.remove(old_id)
    await cluster.forget(victim)


@nemesis("membership-kills", hold=(0.5, 2.0), chaos=False)
async def membership_kills(scene: Scene) -> AsyncIterator[str]:
    """As grow-shrink, and all the while nodes are killed, some of them while they apply a configuration."""

    async def kill_on() -> None:
        while True:
            await asyncio.sleep(scene.between(1.0, 4.0))
            victim = scene.dice.choice(scene.nodes)
            if not victim.listening:
                continue
            if scene.dice.random() < 0.5:
                await victim.try_order("arm", point=scene.dice.choice(MEMBERSHIP_POINTS), passes=0)
                await asyncio.sleep(scene.between(0.5, 2.0))
            scene.counts["kills"] += victim.kill()
            await asyncio.sleep(scene.between(0.2, 1.5))
            if victim in scene.nodes:
                await start([victim])

    async for said in _meanwhile(scene, kill_on()):
        yield said
    await start(scene.nodes)


@nemesis("membership-partitions", hold=(0.5, 2.0), chaos=False)
async def membership_partitions(scene: Scene) -> AsyncIterator[str]:
    """As grow-shrink, and all the while a node is cut off, mostly one that leads, or that joins or leaves."""

    async def cut_on() -> None:
        while True:
            await asyncio.sleep(scene.between(0.5, 3.0))
            name = (await scene.leader()).name if scene.dice.random() < 0.5 else scene.dice.choice(scene.names)
            scene.network.separate([name], [other for other in scene.names if other != name])
            scene.counts["partitions"] += 1
            await asyncio.sleep(scene.between(0.5, 3.0))
            await scene.network.heal(scene.network.between())

    async for said in _meanwhile(scene, cut_on()):
        yield said
    await scene.network.heal(scene.network.between())


async def _meanwhile(scene: Scene, disturbance: Coroutine[None, None, None]) -> AsyncIterator[str]:
    """A node joins and a node leaves, while something else happens as well."""
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(disturbance, name="disturbance")
        try:
            async for said in grow_shrink(scene):
                yield said
        finally:
            running.cancel()


@nemesis("transfer-storm")
async def transfer_storm(scene: Scene) -> AsyncIterator[str]:
    """Leaderships are handed over several times a second."""
    cluster = scene.cluster

    async def storm() -> None:
        while True:
            node = scene.dice.choice(scene.nodes)
            shard = scene.dice.randint(0, cluster.shards)
            if node.up:
                try:
                    request = admin_pb2.TransferLeaderRequest(shard=shard)
                    await cluster.admin(node).TransferLeader(request, timeout=2.0)
                    scene.counts["transfers"] += 1
                except grpc.RpcError:
                    pass
            await asyncio.sleep(scene.between(0.02, 0.3))

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(storm(), name="transfer storm")
        try:
            yield "all shards"
        finally:
            running.cancel()
