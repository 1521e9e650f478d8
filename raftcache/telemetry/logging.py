"""Logs: one JSON object a line, or columns on a terminal.

Rules of this file:
- an event's name is a constant of `names.EVENTS`, what varies is a field; `node_id` and what else is known for good is given
  once, as `fields`;
- what repeats is written a few times per window, and then once with `suppressed=n`: a peer that is down must not fill a disk.
  Caveat: the count of a window is written with the *next* such event, or by `close`;
- keys and values of users are no fields. Bytes that get here all the same are shown by their length alone;
- integers beyond 2**53 are written as text, because most readers of JSON would round them (node and cluster ids are that big);
- to write a log line never raises: a full disk or a closed pipe behind standard error must not stop a node. It *can* block
  on a pipe that nobody reads, like every write to standard error.

There is no global logger and no configuration of structlog as a whole: a `Logging` is made by the composition root and
handed down.
"""

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TextIO

import structlog

from raftcache.telemetry.names import EVENTS, Level

Fields = MutableMapping[str, object]

REPEATS_MAX = 5
"""Lines per event, shard and peer within one window: enough to see that it repeats, and how fast."""
WINDOW_NS = 10_000_000_000
"""Ten seconds: a node that logs one repeating error writes 30 lines a minute, some 10 MB a day."""
REPEATING_KEYS_MAX = 1024
"""Different repeating events that are counted at once; each is about 200 bytes. Beyond, the oldest is written out."""
SAFE_INTEGER = 2**53
"""Above this a double does not hold every integer."""

_IDENTIFYING = ("shard", "peer", "from_node", "to", "replica", "logger", "reason")


class Logging:
    """The node's log. `event` is its one verb."""

    def __init__(
        self,
        *,
        stream: TextIO,
        level: str,
        format: str,
        monotonic_ns: Callable[[], int],
        wall_ms: Callable[[], int],
        fields: Mapping[str, object] | None = None,
    ) -> None:
        """`level` and `format` as in the settings `log.level` and `log.format`; `auto` looks at the stream."""
        self._level = Level[level.upper()]
        self._wall_ms = wall_ms
        self._output = _Output(stream)
        self._repeats = _Repeats(monotonic_ns)
        console = format == "console" or (format == "auto" and stream.isatty())
        render = _render_console(colors=stream.isatty()) if console else _render_json
        logger: structlog.BoundLogger = structlog.wrap_logger(
            self._output, processors=[self._drop_or_stamp, render], wrapper_class=structlog.BoundLogger
        )
        self._logger = logger.bind(**dict(fields or {}))

    @property
    def level(self) -> Level:
        """The least severe that is written. May be set at any time."""
        return self._level

    @level.setter
    def level(self, level: Level) -> None:
        self._level = level

    @property
    def lost(self) -> int:
        """Lines that could not be written."""
        return self._output.lost

    def event(self, name: str, **fields: object) -> None:
        """Something happened. Its level is the one in the table; a name that is not there is a bug, and reported as one."""
        level, _ = EVENTS.get(name, (Level.WARNING, ""))
        if name not in EVENTS:
            name, fields = "unknown_event", {"name": name, **fields}
        self.write(level, name, fields)

    def write(self, level: Level, name: str, fields: Mapping[str, object]) -> None:
        """As `event`, with another level than the table's: for words of libraries, whose levels are their own."""
        if level >= self._level:
            # The key `level` is ours; nothing below may be overwritten by a field of the same name.
            clean = {(f"{key}_" if key in ("ts", "level", "event") else key): value for key, value in fields.items()}
            self._logger.info(name, level=level.name.lower(), **clean)

    def close(self) -> None:
        """Write the counts of what is still being suppressed."""
        for name, suppressed in self._repeats.drain():
            level, _ = EVENTS[name]
            self._logger.info(name, level=level.name.lower(), suppressed=suppressed, _always=True)

    @contextmanager
    def routed_stdlib(self) -> Iterator[None]:
        """While inside: what libraries write through `logging`, and Python's warnings, come out here.

        The process' root logger is changed, so there is one of these per process, at the top.
        """
        root = logging.getLogger()
        before, level_before = root.handlers[:], root.level
        handler = _StdlibHandler(self)
        root.handlers[:] = [handler]
        # Libraries' debugging is for those who develop them.
        root.setLevel(max(self._level, Level.INFO))
        show_before = warnings.showwarning
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            warnings.showwarning = show_before
            root.handlers[:] = before
            root.setLevel(level_before)

    def _drop_or_stamp(self, _logger: object, _method: str, fields: Fields) -> Fields:
        """The one processor before rendering: rate limit, time, and the order of the first three keys."""
        always = fields.pop("_always", False)
        if not always:
            suppressed = self._repeats.admit(fields)
            if suppressed is None:
                raise structlog.DropEvent
            if suppressed:
                fields["suppressed"] = suppressed
        level, name = fields.pop("level"), fields.pop("event")
        time = datetime.fromtimestamp(self._wall_ms() / 1000, tz=UTC).isoformat(timespec="milliseconds")
        return {"ts": time.replace("+00:00", "Z"), "level": level, "event": name, **fields}


class _Output:
    """structlog's innermost logger: a line to a stream, without ever raising."""

    __slots__ = ("_stream", "lost")

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost = 0

    def info(self, line: str) -> None:
        try:
            self._stream.write(f"{line}\n")
            self._stream.flush()
        except (OSError, ValueError):
            # ValueError: the stream is closed, or holds no such characters.
            self.lost += 1


class _Repeats:
    """Counts what repeats, by name and by the fields that tell one source from another."""

    __slots__ = ("_monotonic_ns", "_windows")

    def __init__(self, monotonic_ns: Callable[[], int]) -> None:
        self._monotonic_ns = monotonic_ns
        # Key -> [start of the window, seen in it]. Ordered by the start of the window, oldest first.
        self._windows: dict[tuple[object, ...], list[int]] = {}

    def admit(self, fields: Mapping[str, object]) -> int | None:
        """None: not this one. Otherwise how many like it were suppressed since the last that was written."""
        key = (fields["event"], *(str(fields[name]) for name in _IDENTIFYING if name in fields))
        now_ns = self._monotonic_ns()
        window = self._windows.get(key)
        if window is not None and now_ns - window[0] < WINDOW_NS:
            window[1] += 1
            return 0 if window[1] <= REPEATS_MAX else None
        self._windows.pop(key, None)
        if len(self._windows) >= REPEATING_KEYS_MAX:
            del self._windows[next(iter(self._windows))]
        self._windows[key] = [now_ns, 1]
        return max(0, window[1] - REPEATS_MAX) if window is not None else 0

    def drain(self) -> Iterator[tuple[str, int]]:
        """Name and count of all that is suppressed now; forgets them."""
        for key, (_, seen) in self._windows.items():
            if seen > REPEATS_MAX:
                yield str(key[0]), seen - REPEATS_MAX
        self._windows.clear()


class _StdlibHandler(logging.Handler):
    """Words of libraries: one event for all, with the logger's name and the message as fields."""

    def __init__(self, log: Logging) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, object] = {"logger": record.name, "message": record.getMessage()}
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = repr(record.exc_info[1])
            # The traceback is the one thing that makes an unforeseen error of a library findable.
            fields["traceback"] = self._traceback(record)
        self._log.write(_level_of(record.levelno), "library_log", fields)

    def _traceback(self, record: logging.LogRecord) -> str:
        formatter = self.formatter or logging.Formatter()
        assert record.exc_info is not None
        return formatter.formatException(record.exc_info)


def _level_of(levelno: int) -> Level:
    for level in (Level.ERROR, Level.WARNING, Level.INFO):
        if levelno >= level:
            return level
    return Level.DEBUG


# --- Rendering ----------------------------------------------------------------------------------------------------


def _render_json(_logger: object, _method: str, fields: Fields) -> str:
    return json.dumps({key: _plain(value) for key, value in fields.items()}, default=repr, separators=(",", ":"))


def _plain(value: object) -> object:
    """`value` as JSON may hold it without lies."""
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int):
        return value if -SAFE_INTEGER <= value <= SAFE_INTEGER else str(value)
    if isinstance(value, float):
        # JSON has no words for infinity and NaN.
        return value if value - value == 0 else repr(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return str(value)


def _render_console(*, colors: bool) -> Callable[[object, str, Fields], str]:
    renderer = structlog.dev.ConsoleRenderer(colors=colors, timestamp_key="ts", sort_keys=False, pad_event_to=24)

    def render(logger: object, method: str, fields: Fields) -> str:
        text = renderer(logger, method, {key: _plain(value) for key, value in fields.items()})
        # One event is one line, whatever a library puts into its message.
        return text.replace("\n", "\\n")

    return render


def standard_error() -> TextIO:
    """Where a node logs; standard output belongs to the command line's answers."""
    return sys.stderr
