"""What clients saw, and whether one order of all writes explains it: the witness check.

Every answer carries its shard's revision, and each mutating command has one of its own. So the order of the writes is
*claimed* by the answers themselves, and the history is linearizable if that order (1) agrees with real time and (2) makes
every read return what was last written. Passing proves it; failing is a bug even where another order would do.

A write whose outcome is unknown may stand anywhere after its start, or nowhere: it counts where somebody read its value.
Values are unique, so a value names its write.
"""

from bisect import bisect_right
from dataclasses import dataclass, field


@dataclass(slots=True)
class Event:
    """One operation of one client. Times are simulated nanoseconds; `end_ns` is None while the outcome is unknown."""

    client: int
    kind: str
    """`put` or `get`."""
    key: bytes
    value: bytes | None
    """What was written, or what was read (None: absent)."""
    start_ns: int
    end_ns: int | None = None
    status: str = "unknown"
    """`ok`, `fail` (definitely no effect) or `unknown`."""
    shard: int = -1
    revision: int = 0
    mod_revision: int = 0
    """Of a read that found something: the revision of the write it saw."""


@dataclass(slots=True)
class History:
    """All events, in the order of their starts."""

    events: list[Event] = field(default_factory=list)

    def acknowledged(self) -> list[Event]:
        return [event for event in self.events if event.status == "ok"]


def violations(history: History) -> list[str]:
    """Every way in which the claimed order fails; empty for a linearizable history."""
    found: list[str] = []
    ok = history.acknowledged()
    for shard in sorted({event.shard for event in ok}):
        mine = [event for event in ok if event.shard == shard]
        found += _real_time(mine)
        found += _reads(mine, history)
    return found


def _real_time(events: list[Event]) -> list[str]:
    """If A ended before B began, A's revision is at most B's; less, where B is a write."""
    found = []
    by_end = sorted(events, key=lambda event: event.end_ns or 0)
    by_start = sorted(events, key=lambda event: event.start_ns)
    newest: Event | None = None
    position = 0
    for event in by_start:
        while position < len(by_end) and (by_end[position].end_ns or 0) < event.start_ns:
            if newest is None or by_end[position].revision > newest.revision:
                newest = by_end[position]
            position += 1
        if newest is None:
            continue
        if event.revision < newest.revision or (event.kind == "put" and event.revision == newest.revision):
            found.append(f"real time: {newest} ended before {event} began")
    return found


def _reads(events: list[Event], history: History) -> list[str]:
    """Each read at revision r returns the write of its key with the greatest revision at most r."""
    found = []
    order: dict[bytes, dict[int, bytes]] = {}
    seen: dict[int, Event] = {}
    for event in events:
        if event.kind == "put":
            if event.revision in seen:
                found.append(f"two writes at revision {event.revision}: {seen[event.revision]} and {event}")
            seen[event.revision] = event
            order.setdefault(event.key, {})[event.revision] = event.value or b""
    written = {event.value: event for event in history.events if event.kind == "put"}
    places = {event.value: event.revision for event in events if event.kind == "put"}
    for event in events:
        if event.kind != "get" or event.value is None:
            continue
        source = written.get(event.value)
        if source is None or source.key != event.key:
            found.append(f"never written: {event}")
        elif source.status == "fail":
            found.append(f"a refused write was read: {event}")
        else:
            writes = order.setdefault(event.key, {})
            if writes.get(event.mod_revision, event.value) != event.value:
                found.append(f"another value at that revision: {event}")
            writes[event.mod_revision] = event.value
            if places.setdefault(event.value, event.mod_revision) != event.mod_revision:
                found.append(f"written twice, at revision {places[event.value]} too: {event}")
    ascending = {key: sorted(writes) for key, writes in order.items()}
    for event in events:
        if event.kind != "get":
            continue
        revisions = ascending.get(event.key, [])
        before = bisect_right(revisions, event.revision)
        expected = order[event.key][revisions[before - 1]] if before else None
        if expected != event.value:
            found.append(f"stale or lost: {event} should have read {expected!r}")
    return found
