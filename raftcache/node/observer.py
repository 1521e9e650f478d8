"""What the engine tells about itself: named events, and the few durations that only it can measure.

Counters and gauges are not pushed through here: a collector reads them from the engine when it is scraped, so the hot
path pays nothing.
"""

from typing import Protocol


class Observer(Protocol):
    """Receives the engine's events. Names are constant snake_case and stand in `telemetry.names`."""

    def event(self, name: str, **fields: object) -> None: ...

    def synced(self, took_ns: int) -> None:
        """One fdatasync of the log took this long."""
        ...

    def wrote(self, *, entries: int, commands: int, written_bytes: int) -> None:
        """... and made this durable; `commands` of those proposed here."""
        ...

    def applied(self, took_ns: int, commands: int) -> None:
        """The state machine applied so many commands in so long."""
        ...

    def committed(self, took_ns: int) -> None:
        """One commit of a live state took this long."""
        ...

    def replicated(self, took_ns: int) -> None:
        """An entry that was proposed here was committed so long after; told of one entry of a shard at a time."""
        ...

    def confirmed(self, took_ns: int) -> None:
        """A round of reads got its index so long after it began; told of one round of a shard at a time."""
        ...


class NoObserver:
    """Tells nobody."""

    __slots__ = ()

    def event(self, name: str, **fields: object) -> None:
        del name, fields

    def synced(self, took_ns: int) -> None:
        del took_ns

    def wrote(self, *, entries: int, commands: int, written_bytes: int) -> None:
        del entries, commands, written_bytes

    def applied(self, took_ns: int, commands: int) -> None:
        del took_ns, commands

    def committed(self, took_ns: int) -> None:
        del took_ns

    def replicated(self, took_ns: int) -> None:
        del took_ns

    def confirmed(self, took_ns: int) -> None:
        del took_ns
