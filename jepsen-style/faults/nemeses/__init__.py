"""The faults, by name: `NEMESES`. Each module registers its own."""

from faults.nemeses import disks, links, membership, nodes, packets, partitions, points, timing
from faults.nemeses.nemesis import NEMESES, Nemesis

__all__ = ["NEMESES", "Nemesis", "disks", "links", "membership", "nodes", "packets", "partitions", "points", "timing"]
