"""What is fuzzed, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.edge.fuzz.on_frames import mutate_frames, run_frames
from tests.edge.fuzz.on_front import run_front
from tests.edge.fuzz.on_grpc import run_grpc
from tests.edge.fuzz.on_hpack import run_hpack, run_huffman
from tests.edge.fuzz.on_peer import run_peer

Mutate = Callable[[bytes, int, int, Callable[[bytes, int], bytes]], bytes]


@dataclass(frozen=True, slots=True)
class Target:
    """A function of bytes that raises when something is wrong."""

    run: Callable[[bytes], None]
    bytes_max: int
    """Of an input: larger ones reach nothing new, and take longer."""
    mutate: Mutate | None = None
    """Changes an input by what it means: the input, its largest size, a seed, and what changes bytes regardless."""


TARGETS: Final = {
    "frames": Target(run_frames, 4_096, mutate_frames),
    "hpack": Target(run_hpack, 1_024),
    "huffman": Target(run_huffman, 128),
    "grpc": Target(run_grpc, 1_024),
    "peer": Target(run_peer, 402),
    "front": Target(run_front, 600),
}
