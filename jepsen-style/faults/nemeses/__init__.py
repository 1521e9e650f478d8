"""The faults, by name: `NEMESES`. Each module registers its own."""

from faults.nemeses import damage, disks, links, membership, nodes, packets, partitions, points, timing
from faults.nemeses.nemesis import NEMESES, Nemesis

__all__ = [
    "NEMESES",
    "Nemesis",
    "damage",
    "disks",
    "links",
    "membership",
    "nodes",
    "packets",
    "partitions",
    "points",
    "timing",
]
