"""The order of operations within one stream or batch: those on one slot take effect in the order in which they came.

    admit ──► ready (handed to the node)      another operation on the slot is in flight, and could be overtaken
         └──► waiting, by slot ──► ready      ... until that one is answered

Rules of this file:
- pure: requests in, requests out. The owner hands `take_ready()` to the node and reports each answer by `answered`;
- reads of one slot run side by side, and so do writes; a read waits for the writes before it, and a write for the reads
  before it. A linearizable read would else be free to see the state before a write that is still in flight;
- writes side by side are kept in order by the log, as long as the node does not try one of them again by itself:
  they carry `ordered`, which forbids it that. A write that is alone on its slot stays free to be tried again, which hides
  a change of leaders from the caller; writes that come while it is in flight wait for its answer.

By slot and not by key: a transaction has several keys but one slot, and 16,384 lanes make chance meetings rare.
"""

from collections import deque
from dataclasses import dataclass, field

from raftcache.ids import Slot
from raftcache.node.api import Request


@dataclass(slots=True)
class _Lane:
    """The requests of one slot."""

    writes: bool
    """What is in flight: writes, or reads."""
    in_flight: int
    """Handed out and not answered. Invariant: at least 1."""
    alone: Request | None
    """The single write in flight, if it is not `ordered`."""
    round: int
    """The round of `take_ready` that `alone` belongs to."""
    waiting: deque[tuple[Request, bool]] = field(default_factory=deque)
    """In their order, each with whether it writes."""


class SlotOrder:
    """The lanes of one stream."""

    __slots__ = ("_lanes", "_ready", "_round")

    def __init__(self) -> None:
        self._lanes: dict[Slot, _Lane] = {}
        self._ready: list[Request] = []
        self._round = 0

    def admit(self, request: Request, *, writes: bool) -> None:
        """Takes the stream's next request."""
        lane = self._lanes.get(request.slot)
        if lane is None:
            self._lanes[request.slot] = _Lane(writes, 1, request if writes else None, self._round)
            self._ready.append(request)
            return
        gone_alone = lane.alone is not None and lane.round != self._round
        if lane.waiting or lane.writes != writes or gone_alone:
            lane.waiting.append((request, writes))
            return
        if writes:
            if lane.alone is not None:
                # Not handed out yet, so it is not too late to say that its order counts.
                lane.alone.ordered = True
                lane.alone = None
            request.ordered = True
        lane.in_flight += 1
        self._ready.append(request)

    def answered(self, slot: Slot) -> None:
        """One request of `slot` was answered; those that waited for it may become ready."""
        lane = self._lanes[slot]
        lane.in_flight -= 1
        assert lane.in_flight >= 0, f"slot {slot} has {lane.in_flight} requests in flight"
        if lane.in_flight:
            return
        if not lane.waiting:
            del self._lanes[slot]
            return
        first, writes = lane.waiting.popleft()
        lane.writes, lane.in_flight, lane.round = writes, 1, self._round
        lane.alone = first if writes else None
        self._ready.append(first)
        while lane.waiting and lane.waiting[0][1] == writes:
            request, _ = lane.waiting.popleft()
            if writes:
                first.ordered = request.ordered = True
                lane.alone = None
            lane.in_flight += 1
            self._ready.append(request)

    def take_ready(self) -> list[Request]:
        """What the node may have now, in order; empties the list."""
        ready, self._ready = self._ready, []
        self._round += 1
        return ready

    def forget_waiting(self) -> None:
        """Drops everything that was not handed out: the stream is over."""
        self._ready = []
        for lane in self._lanes.values():
            lane.waiting.clear()
