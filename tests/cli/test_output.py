"""What is written is what is there: to the byte, or visibly escaped."""

import base64
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftcache.cli import output
from raftcache.cli.output import bytes_document, printable, table


@given(st.binary(max_size=40))
def test_bytes_in_json_come_back_as_they_were(data: bytes) -> None:
    """As text where they are text, in base64 where not."""
    document = json.loads(json.dumps(bytes_document(data)))
    ((form, text),) = document.items()
    assert data == (base64.b64decode(text) if form == "b64" else text.encode())


@given(st.binary(max_size=40))
def test_what_is_shown_never_controls_a_terminal(data: bytes) -> None:
    """No escape sequence of a value reaches the terminal."""
    assert printable(data).isprintable()


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"hello", "hello"),
        ("käse".encode(), "käse"),
        (b"a\\b", "a\\b"),
        (b"\x1b[31m\\", "\\x1b[31m\\\\"),
        (b"\xff\\", "\\xff\\\\"),
        (b"two\nlines", "two\\nlines"),
    ],
)
def test_text_is_shown_as_it_is_and_the_rest_escaped(data: bytes, shown: str) -> None:
    """A backslash is doubled only where there are escapes."""
    assert shown == printable(data)


def test_a_terminal_gets_lines_and_a_pipe_gets_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line end is added on a terminal only."""

    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    for kind, value, expected in (
        (io.TextIOWrapper, b"a\n\xff", b"a\n\xff"),
        (Terminal, b"a\nb", b"a\nb\n"),
        (Terminal, b"\x1b", b"\\x1b\n"),
    ):
        raw = io.BytesIO()
        monkeypatch.setattr("sys.stdout", kind(raw, write_through=True))
        output.write_value(value)
        assert expected == raw.getvalue()


def test_columns_line_up_and_numbers_stand_right() -> None:
    """No boxes, and nothing behind the last column."""
    assert "A    N\nx   10\nyy   9" == table(("A", "N"), [("x", 10), ("yy", 9)], right=frozenset({1}))
