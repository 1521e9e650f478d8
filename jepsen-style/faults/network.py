"""All links of a cluster: one for each directed pair of nodes, one from the clients to each node.

A node's own connection to another carries its messages there, and the answers to its requests back. So what travels from A
to B does so *forward* on the link A->B and *backward* on the link B->A: `block("A", "B")` stops both, and nothing else.
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator

from faults.proxy import Conditions, Link

CLIENTS = "clients"
"""The name of the one end that is no node."""


class Network:
    """See the module. Nodes are known by their names."""

    def __init__(self, dice: random.Random, tasks: asyncio.TaskGroup) -> None:
        self._dice = dice
        self._tasks = tasks
        self.links: dict[tuple[str, str], Link] = {}
        self._nodes: dict[str, int] = {}
        """Name to peer port."""

    async def add_node(self, name: str, *, client_port: int, peer_port: int) -> None:
        """Makes the links from and to a new node."""
        await self._add_link(CLIENTS, name, client_port)
        for other, other_port in self._nodes.items():
            await self._add_link(name, other, other_port)
            await self._add_link(other, name, peer_port)
        self._nodes[name] = peer_port

    async def remove_node(self, name: str) -> None:
        """The node is gone for good."""
        self._nodes.pop(name, None)
        for pair in [pair for pair in self.links if name in pair]:
            await self.links.pop(pair).close()

    async def _add_link(self, source: str, target: str, port: int) -> None:
        link = Link(f"{source}>{target}", ("127.0.0.1", port), self._dice, self._tasks)
        await link.start()
        self.links[source, target] = link

    def routes(self, name: str) -> dict[str, str]:
        """What a node is to dial in the place of the others' peer addresses."""
        return {
            f"127.0.0.1:{port}": f"127.0.0.1:{self.links[name, other].port}"
            for other, port in self._nodes.items()
            if other != name
        }

    def client_address(self, name: str) -> str:
        """Where clients are to dial a node."""
        return f"127.0.0.1:{self.links[CLIENTS, name].port}"

    # --- Faults -------------------------------------------------------------------------------------------------------

    def between(self, *names: str) -> Iterator[Link]:
        """The links among these nodes, or all links among nodes where none are named."""
        for (source, target), link in self.links.items():
            if source != CLIENTS and (not names or (source in names and target in names)):
                yield link

    def of_clients(self, *names: str) -> Iterator[Link]:
        """The clients' links to these nodes, or to all."""
        for (source, target), link in self.links.items():
            if source == CLIENTS and (not names or target in names):
                yield link

    def touching(self, name: str) -> Iterator[Link]:
        """The links between a node and the others, both ways."""
        for (source, target), link in self.links.items():
            if source != CLIENTS and name in (source, target):
                yield link

    def block(self, source: str, target: str) -> None:
        """Nothing gets from `source` to `target` any more. The other way is as it was."""
        self._on_way(source, target, lambda conditions: setattr(conditions, "blocked", True))

    def _on_way(self, source: str, target: str, change: Callable[[Conditions], None]) -> None:
        for pair, forward in (((source, target), True), ((target, source), False)):
            link = self.links.get(pair)
            if link is not None:
                change(link.forward if forward else link.backward)
                link.changed()

    def separate(self, one: Iterable[str], other: Iterable[str]) -> None:
        """Nothing passes between two sets of nodes, in neither direction."""
        others = [*other]
        for a in one:
            for b in others:
                self.block(a, b)
                self.block(b, a)

    async def heal(self, links: Iterable[Link] | None = None) -> None:
        """A good network again, or good links."""
        for link in [*self.links.values()] if links is None else [*links]:
            await link.heal()

    async def close(self) -> None:
        """The end of all links."""
        for link in self.links.values():
            await link.close()
        self.links.clear()


def worsen(links: Iterable[Link], **conditions: float) -> None:
    """Sets these of the `Conditions` in both directions of some links; the others stay as they are."""
    for link in links:
        for direction in (link.forward, link.backward):
            for name, value in conditions.items():
                setattr(direction, name, value)
        link.changed()
