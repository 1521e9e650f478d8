"""What a nemesis is: a fault with its healing, written as one function that yields in between.

    @nemesis("pause one", hold=(1, 5))
    async def pause_one(scene):
        victim = scene.dice.choice(scene.nodes)
        victim.pause()
        try:
            yield victim.name        # the fault is on; what is yielded is shown to people
        finally:
            victim.resume()

The runner enters, holds for a time drawn from `hold`, leaves, and rests. All of them can be repeated, and all leave the
cluster as they found it. What they need of the machine is named, and looked up by `doctor.py`.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from faults.scene import Scene

Fault = Callable[[Scene], AsyncIterator[str]]


@dataclass(frozen=True, slots=True)
class Nemesis:
    """One fault by name."""

    name: str
    """As on the command line: words joined by dashes."""
    about: str
    """The first line of its docstring."""
    strike: Callable[[Scene], contextlib.AbstractAsyncContextManager[str]]
    hold: tuple[float, float]
    """Seconds that it lasts, from and to."""
    needs: tuple[str, ...]
    """Capabilities of the machine (`doctor.CAPABILITIES`); none: it works everywhere."""
    volume: str
    """Where the nodes' data must lie for it: "" (a directory), "loop" or "thin" (`disks.py`)."""
    nodes_min: int
    chaos: bool
    """Whether it may run beside others."""
    settings: Mapping[str, object]
    """Of the nodes, in the place of those that the seed draws."""
    group: str
    """`process`, `network` or `time`. Two of one group never run at once: they would undo each other's work."""


_GROUPS = {
    "nodes": "process",
    "points": "process",
    "disks": "process",
    "damage": "process",
    "timing": "time",
    "membership": "time",
}
"""By module; the others are of the network."""

NEMESES: dict[str, Nemesis] = {}
"""All of them by name; filled by the modules of this package."""


def nemesis(
    name: str,
    *,
    hold: tuple[float, float] = (2.0, 6.0),
    needs: tuple[str, ...] = (),
    volume: str = "",
    nodes_min: int = 1,
    chaos: bool = True,
    settings: Mapping[str, object] | None = None,
) -> Callable[[Fault], Fault]:
    """Registers a fault."""

    def register(fault: Fault) -> Fault:
        about = (fault.__doc__ or "").strip().partition("\n")[0]
        strike = contextlib.asynccontextmanager(fault)
        assert name not in NEMESES, name
        group = _GROUPS.get(fault.__module__.rpartition(".")[2], "network")
        NEMESES[name] = Nemesis(name, about, strike, hold, needs, volume, nodes_min, chaos, settings or {}, group)
        return fault

    return register
