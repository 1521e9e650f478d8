"""What is fuzzed, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from raftcache.wire.http2_frames import CONTINUATION, HEADERS, frame
from tests.edge.fuzz.on_answers import SEEDS, mutate_answers, run_answers
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
    seeds: tuple[bytes, ...] = ()
    """Inputs that reach no code that others do not, and yet something of their own."""
    mutate: Mutate | None = None
    """Changes an input by what it means: the input, its largest size, a seed, and what changes bytes regardless."""


TARGETS: Final = {
    "frames": Target(
        run_frames,
        4_096,
        # A header block that outgrows its limit, and one of too many pieces.
        (
            b"\1\xff\0" + frame(HEADERS, 0, 1, bytes(1_000)) + frame(CONTINUATION, 0, 1, bytes(1_500)),
            b"\1\xff\0" + frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, 0, 1, b"") * 20,
        ),
        mutate_frames,
    ),
    "answers": Target(run_answers, 4_096, SEEDS, mutate_answers),
    "hpack": Target(
        run_hpack,
        1_024,
        # The same block twice, with another newest entry in the table.
        (bytes.fromhex("010000 0005 4001610162 0001 be 0005 4001610163 0001 be"),),
    ),
    "huffman": Target(run_huffman, 128),
    "grpc": Target(run_grpc, 1_024),
    "peer": Target(run_peer, 402),
    "front": Target(run_front, 600),
}
