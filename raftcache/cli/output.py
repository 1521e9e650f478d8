"""How answers are written: tables for people, JSON for programs, bytes as they are.

Rules of this file:
- answers go to standard output, everything else (progress, notes, errors) to standard error;
- a table has a heading in capitals, columns that line up, and no boxes: grep and awk find their way;
- JSON is one object with a `schema`, as in `raftcache.status/v1`. Within a version fields are only added. Integers that may
  outgrow a double (ids, revisions, indexes, terms, numbers of users) are *strings*: jq and JavaScript would round them;
- bytes in JSON are `{"text": ...}` where they are UTF-8, else `{"b64": ...}`;
- what others wrote is never sent raw to a terminal, which obeys control characters: it is escaped there.
"""

import base64
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from raftcache.cli.exits import Failure

TABLE, JSON = "table", "json"

Document = dict[str, Any]
Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def output_option(function: Decorated) -> Decorated:
    """Adds `-o table|json`, as the parameter `output`."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice([TABLE, JSON]),
        default=TABLE,
        show_default=True,
        help="For people, or for programs.",
    )(function)


def write_json(schema: str, document: Document) -> None:
    """One JSON object on one line, with its schema first."""
    click.echo(json.dumps({"schema": f"raftcache.{schema}/v1", **document}, ensure_ascii=False))


def note(text: str) -> None:
    """Words beside the answer."""
    click.echo(text, err=True)


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, right: frozenset[int] = frozenset()) -> str:
    """Columns that line up; those in `right` are numbers."""
    cells = [[str(heading) for heading in headings], *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    lines = []
    for row in cells:
        parts = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def bytes_document(data: bytes) -> dict[str, str]:
    """Bytes in JSON."""
    try:
        return {"text": data.decode()}
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(data).decode()}


def printable(data: bytes, *, lines: bool = False) -> str:
    """Bytes as one may show them: text as it is, the rest as escapes. `lines` lets line ends and tabs through.

    A backslash is doubled where anything was escaped, so that the reader can tell.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return "".join(_escaped_byte(byte) for byte in data)
    if all(character.isprintable() or (lines and character in "\n\t") for character in text):
        return text
    return "".join(_escaped_character(character) for character in text)


def _escaped_byte(byte: int) -> str:
    if byte == 0x5C:
        return "\\\\"
    return chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}"


def _escaped_character(character: str) -> str:
    if character == "\\":
        return "\\\\"
    return character if character.isprintable() else ascii(character)[1:-1]


def write_value(value: bytes) -> None:
    """A value: on a terminal as text, elsewhere exactly its bytes and nothing more."""
    if sys.stdout is None:
        raise Failure("there is no standard output to write the value to")
    if not sys.stdout.isatty():
        sys.stdout.buffer.write(value)
        sys.stdout.buffer.flush()
        return
    shown = printable(value, lines=True)
    click.echo(shown)
    if shown.encode() != value:
        note(f"({len(value)} bytes, shown with escapes; a pipe or -o json gives them exactly)")
