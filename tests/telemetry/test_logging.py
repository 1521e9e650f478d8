"""Logs: their form, what they leave out, and that they never raise."""

import io
import json
import logging
import warnings

import pytest

from raftcache.clock import ManualClock
from raftcache.telemetry.logging import REPEATING_KEYS_MAX, REPEATS_MAX, WINDOW_NS, Logging
from raftcache.telemetry.names import EVENTS, Level


class Log:
    """A log whose lines can be read, and whose clock can be moved."""

    def __init__(self, *, level: str = "debug", format: str = "json", stream: io.StringIO | None = None) -> None:
        self.clock = ManualClock(wall_ms=1_700_000_000_123)
        self.stream = stream or io.StringIO()
        self.logging = Logging(
            stream=self.stream,
            level=level,
            format=format,
            monotonic_ns=self.clock.monotonic_ns,
            wall_ms=self.clock.wall_ms,
            fields={"node_id": 2**62 + 1},
        )

    def lines(self) -> list[dict[str, object]]:
        """All lines so far, as objects."""
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def test_an_event_is_one_json_object_with_time_level_and_name_first() -> None:
    """In that order, then what was bound, then the fields."""
    log = Log()
    log.logging.event("snapshot_sent", shard=3, ok=True, seconds=0.5)
    (line,) = log.lines()
    assert ["ts", "level", "event", "node_id", "shard", "ok", "seconds"] == list(line)
    assert ("2023-11-14T22:13:20.123Z", "info", "snapshot_sent") == (line["ts"], line["level"], line["event"])


def test_integers_that_readers_would_round_are_text() -> None:
    """Node and cluster ids have 63 bits; jq reads doubles."""
    log = Log()
    log.logging.event("replica_opened", applied=2**53, to=2**53 + 1)
    (line,) = log.lines()
    assert (str(2**62 + 1), 2**53, str(2**53 + 1)) == (line["node_id"], line["applied"], line["to"])


def test_bytes_are_shown_by_their_length_alone() -> None:
    """Keys and values of users do not end up in logs, not even nested."""
    log = Log()
    log.logging.event("replica_opened", key=b"secret", more={"a": [b"secret"]})
    text = log.stream.getvalue()
    assert "secret" not in text
    assert "<6 bytes>" == log.lines()[0]["key"]


def test_floats_that_json_has_no_words_for_are_text() -> None:
    """The line stays valid JSON for strict readers."""
    log = Log()
    log.logging.event("replica_opened", a=float("nan"), b=float("inf"))
    assert ("nan", "inf") == (log.lines()[0]["a"], log.lines()[0]["b"])


def test_a_field_cannot_take_the_place_of_time_level_or_name() -> None:
    """Such a field is kept under another name."""
    log = Log()
    log.logging.event("replica_opened", level="x", ts="y")
    (line,) = log.lines()
    assert ("info", "x", "y") == (line["level"], line["level_"], line["ts_"])


def test_one_event_is_one_line_on_a_terminal_too() -> None:
    """Whatever a field contains; `auto` chooses columns for a terminal and JSON elsewhere."""
    terminal = Terminal()
    log = Log(format="auto", stream=terminal)
    log.logging.event("library_log", message="two\nlines", traceback="a\nb")
    assert 1 == terminal.getvalue().count("\n")
    assert "library_log" in terminal.getvalue()
    log = Log(format="auto")
    log.logging.event("node_stopped")
    assert 1 == len(log.lines())


def test_less_severe_events_than_the_level_are_not_written() -> None:
    """The level can be changed while the node runs."""
    log = Log(level="warning")
    log.logging.event("node_started")
    log.logging.event("state_lost")
    log.logging.level = Level.INFO
    log.logging.event("node_started")
    assert ["state_lost", "node_started"] == [line["event"] for line in log.lines()]


def test_repeats_are_suppressed_and_counted() -> None:
    """A few per window, then the number of those left out with the next one after it."""
    log = Log()
    for _ in range(REPEATS_MAX + 7):
        log.logging.event("peer_refused", peer="77")
    log.logging.event("peer_refused", peer="88")
    assert REPEATS_MAX + 1 == len(log.lines())
    log.clock.advance_ns(WINDOW_NS)
    log.logging.event("peer_refused", peer="77")
    assert 7 == log.lines()[-1]["suppressed"]
    log.clock.advance_ns(WINDOW_NS)
    log.logging.event("peer_refused", peer="77")
    assert "suppressed" not in log.lines()[-1]


def test_suppressed_repeats_are_written_at_the_end() -> None:
    """So that a storm just before the end is not lost."""
    log = Log()
    for _ in range(REPEATS_MAX + 3):
        log.logging.event("peer_refused", peer="77")
    log.logging.close()
    assert ("peer_refused", 3) == (log.lines()[-1]["event"], log.lines()[-1]["suppressed"])


def test_the_memory_of_repeats_is_bounded() -> None:
    """However many different things repeat."""
    log = Log()
    for number in range(3 * REPEATING_KEYS_MAX):
        log.logging.event("peer_refused", peer=str(number))
    assert REPEATING_KEYS_MAX == len(log.logging._repeats._windows)


def test_an_event_outside_the_table_is_reported_as_a_bug() -> None:
    """It is written all the same, under the name of the bug."""
    log = Log()
    log.logging.event("no_such_event", shard=1)
    (line,) = log.lines()
    assert ("unknown_event", "no_such_event", 1) == (line["event"], line["name"], line["shard"])
    assert "unknown_event" in EVENTS


def test_a_stream_that_fails_does_not_stop_the_node() -> None:
    """A full disk or a closed pipe costs lines, which are counted."""

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    log = Log(stream=Full())
    log.logging.event("node_started")
    closed = io.StringIO()
    log_closed = Log(stream=closed)
    closed.close()
    log_closed.logging.event("node_started")
    assert (1, 1) == (log.logging.lost, log_closed.logging.lost)


def test_libraries_words_and_pythons_warnings_come_out_here() -> None:
    """With the logger's name, the message and, for an error, the traceback; and only while routed."""
    log = Log(level="info")
    with log.logging.routed_stdlib():
        logging.getLogger("some.library").warning("no %s", "luck")
        logging.getLogger("some.library").debug("chatter")
        try:
            raise RuntimeError("broken")
        except RuntimeError:
            logging.getLogger("some.library").exception("failed")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("old", UserWarning, stacklevel=1)
    logging.getLogger("some.library").info("unheard")

    warned, failed, warning = log.lines()
    assert ("warning", "library_log", "some.library", "no luck") == (
        warned["level"],
        warned["event"],
        warned["logger"],
        warned["message"],
    )
    assert "RuntimeError: broken" in str(failed["traceback"])
    assert "UserWarning: old" in str(warning["message"])


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_every_level_of_the_settings_is_a_level(level: str) -> None:
    """The setting's choices and the enumeration agree."""
    assert Level[level.upper()] is Log(level=level).logging.level
