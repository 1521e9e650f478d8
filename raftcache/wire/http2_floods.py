"""What one connection may ask of us that is no work: allowances that are earned by work and by time.

HTTP/2 lets a peer make us do things at next to no cost of its own: open and reset streams, change settings, ping, send
frames with nothing in them. All of that also happens in good use, so each kind has an allowance. It begins full, is spent
by such a frame, and is earned back by finished calls and by time. A peer that runs out of it is told
ENHANCE_YOUR_CALM and cut off.

    attack                                              allowance, or other limit
    rapid reset (CVE-2023-44487, CVE-2019-9514)         resets; streams_max
    made-you-reset (CVE-2025-8671)                      resets: a stream that we must reset for the peer's fault costs the same
    PING, SETTINGS floods (CVE-2019-9512, -9515)        control, settings
    empty frames (CVE-2019-9518), PRIORITY (-9513)      control
    data dribble, window games (CVE-2019-9511, -9517)   windows; the budgets of unsent bytes, in `fast_connection` and `fast_front`
    CONTINUATION flood (CVE-2024-27316)                 header_list_bytes_max, CONTINUATIONS_MAX
    HPACK bomb (CVE-2016-6581), empty names (-9516)     header_list_bytes_max, and 32 bytes for each field
"""

from dataclasses import dataclass
from typing import Final

from raftcache.clock import NS_PER_SECOND
from raftcache.wire.http2_errors import ENHANCE_YOUR_CALM, ConnectionViolation


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much of one kind is allowed."""

    what: str
    burst: int
    """The most that can be saved up."""
    per_second: int
    per_finished: int
    """Earned by each call that is answered."""


RESETS: Final = Allowance("cancelled or faulty streams", burst=2_000, per_second=100, per_finished=1)
"""A client that goes away cancels all it has, at most `streams_max`, and some clients give up on every other call."""
CONTROL: Final = Allowance("PING, PRIORITY, empty and unknown frames", burst=1_000, per_second=50, per_finished=2)
"""grpc-core and grpc-go ping with every other burst of data, to measure the bandwidth."""
SETTINGS: Final = Allowance("SETTINGS", burst=100, per_second=1, per_finished=0)
"""Sent once at the beginning, and by some clients again as their window grows. Each may move all streams' windows."""
WINDOWS: Final = Allowance("WINDOW_UPDATE", burst=10_000, per_second=1_000, per_finished=8)
"""The most eager clients (Node's) send two for each frame that they get: each 16 KiB of a large message earn as a call does."""


class Meter:
    """What is left of one allowance."""

    __slots__ = ("_allowance", "_finished", "_left", "_since_ns")

    def __init__(self, allowance: Allowance, now_ns: int) -> None:
        self._allowance = allowance
        self._left = float(allowance.burst)
        self._since_ns = now_ns
        self._finished = 0

    def spend(self, now_ns: int, finished: int) -> None:
        """Takes one; `finished` is the connection's count of answered calls. Raises: `ConnectionViolation` if none is left."""
        allowance = self._allowance
        earned = (now_ns - self._since_ns) * allowance.per_second / NS_PER_SECOND
        earned += float((finished - self._finished) * allowance.per_finished)
        self._finished, self._since_ns = finished, now_ns
        self._left = min(self._left + earned, float(allowance.burst)) - 1.0
        if self._left < 0:
            raise ConnectionViolation(ENHANCE_YOUR_CALM, f"too many {allowance.what}")
