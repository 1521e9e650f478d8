"""Files that are not what was written to them: bits that flip, blocks that are zero, ends that are missing, chunks of elsewhere.

One node at a time, and the next one only when all replicas are level again: a majority of the copies stays good, so nothing
may be lost and the cluster must recover. What a node cannot repair it refuses to start on; an operator replaces it then, and
so does this.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

from faults.cluster import LAG_UNDER_LOAD, LEADER_SECONDS
from faults.nemeses.membership import replace
from faults.nemeses.nemesis import nemesis
from faults.processes import START_SECONDS, came_true
from faults.scene import Scene

BLOCK = 4096
LOG = ".wal"
LOG_WEIGHT = 4
"""The log is damaged as often as so many other kinds of files: promises stand in it."""


def _flip(content: bytearray, dice: random.Random) -> None:
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)


def _zero(content: bytearray, dice: random.Random) -> None:
    at = dice.randrange(len(content)) // BLOCK * BLOCK
    content[at : at + BLOCK] = bytes(len(content[at : at + BLOCK]))


def _cut(content: bytearray, dice: random.Random) -> None:
    del content[dice.randrange(len(content)) :]


def _copy(content: bytearray, dice: random.Random) -> None:
    source, target = dice.randrange(len(content)), dice.randrange(len(content))
    chunk = content[source : source + min(BLOCK, len(content) - target)]
    content[target : target + len(chunk)] = chunk


WAYS = {"a bit flipped": _flip, "a block of zeros": _zero, "its end cut off": _cut, "a chunk of elsewhere": _copy}


def damage(data: Path, dice: random.Random) -> str:
    """Damages one file below a directory. Returns which, and how. Kinds of files are drawn, then one of the kind."""
    kinds: dict[str, list[Path]] = {}
    for file in sorted(data.rglob("*")):
        if file.is_file() and file.stat().st_size:
            # All segments of the log are of one kind, and so are the copies of the hard state.
            kind = LOG if file.suffix == LOG else file.stem
            kinds.setdefault(kind, []).append(file)
    weights = [LOG_WEIGHT if kind == LOG else 1 for kind in sorted(kinds)]
    (kind,) = dice.choices(sorted(kinds), weights)
    # A segment that waits to be written is all zeros but for its header: it is drawn as rarely as it has bytes.
    (file,) = dice.choices(kinds[kind], [len(_written(each.read_bytes())) for each in kinds[kind]])
    way = dice.choice(sorted(WAYS))
    content = bytearray(file.read_bytes())
    written = _written(content)
    head, tail = content[: len(written)], content[len(written) :]
    WAYS[way](head, dice)
    file.write_bytes(head + (b"" if len(head) < len(written) else tail))
    return f"{file.relative_to(data)}: {way}"


def _written(content: bytes | bytearray) -> bytes | bytearray:
    """What stands before the zeros at the end: all, where there are only zeros."""
    return content.rstrip(b"\0") or content


@nemesis("damage", hold=(2.0, 4.0), chaos=False)
async def damaged_file(scene: Scene) -> AsyncIterator[str]:
    """A node is down, and one of its files is damaged: it comes back whole, or refuses to and is replaced."""
    victim = scene.dice.choice(scene.nodes)
    if scene.dice.random() < 0.5:
        await victim.stop()
    scene.counts["kills"] += victim.kill()
    said = damage(victim.data, scene.dice)
    scene.damaged.add(victim.name)
    scene.counts["damaged files"] += 1
    try:
        yield f"{victim.name} {said}"
    finally:
        await victim.start(wait=False)
        serving = asyncio.ensure_future(scene.cluster.wait_serving(lag_max=LAG_UNDER_LOAD))
        # It may begin to serve and end all the same, when it comes by the damage.
        await came_true(lambda: serving.done() or not victim.running, START_SECONDS + LEADER_SECONDS)
        if victim.running:
            await serving
        else:
            serving.cancel()
            scene.counts["refused starts"] += 1
            if (victim.exit_status or 0) <= 0:
                scene.problems.append(f"{victim.name} ended with {victim.exit_status} on a damaged file: {said}")
            await replace(scene, victim)
